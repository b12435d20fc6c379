"""Log-probabilities of continuations: each common beginning of the prompts is computed once, in batches.

Three paths give the same numbers. `shared` packs prompts that begin alike into tries (see `tries`); `padded` runs one
sequence a row, padded on the left; `single` runs every sequence by itself, as Hugging Face's model would be called.
The faster ones are taken only where a trial sees them give what `single` gives, on sequences as short and as long as
those that are asked for: a model may compute a short text otherwise beside a long one (rotary frequencies that depend
on the longest, windows, positions counted from the padding).
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.core.limits import check_length
from lcalens.core.stamp import PerState, holds_steady
from lcalens.core.tensors import check_finite, one_dtype
from lcalens.llm.efficacy.tries import Row, batches, pack

# Larger batches fall out of the processor's cache.
MAX_NODES = 1024
MAX_TOKENS = 1024
_LOGIT_BYTES = 1 << 28
_SCORE_BYTES = 1 << 29
_PATHS = ("shared", "padded", "single")
_CLOSE = 1e-4
# Settings at whose numbers of tokens a model begins to compute otherwise.
_WINDOWS = ("sliding_window", "window_size", "attention_window", "attention_chunk_size", "local_attention")
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_TURNS = (*_WINDOWS, *_CONTEXTS, "original_max_position_embeddings")
_paths = PerState()


@dataclass(frozen=True)
class Continuation:
    """A text's tokens, of which `ids[start:stop]` are to be scored given all before them.

    Attributes:
        ids: The whole text's token ids.
        start: The first token scored, at least 1.
        stop: One past the last.
    """

    ids: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Scores:
    """What `score` measured.

    Attributes:
        logp: The sum of the scored tokens' log-probabilities, in nats.
        greedy: Whether every scored token is the model's most probable one.
        first_logp: The first scored token's log-probability alone.
        first_greedy: Whether that token is the most probable one.
        path: `shared`, `padded` or `single`.
        tokens: How many tokens were computed, padding included.
    """

    logp: Float[np.ndarray, " continuation"]
    greedy: Bool[np.ndarray, " continuation"]
    first_logp: Float[np.ndarray, " continuation"]
    first_greedy: Bool[np.ndarray, " continuation"]
    path: str
    tokens: int


@holds_steady
@torch.no_grad()
def score(
    model: Any,
    continuations: Sequence[Continuation],
    *,
    share: bool = True,
    alone: bool = False,
    batch: int | None = None,
) -> Scores:
    """The log-probability of every continuation, each common beginning computed once.

    Args:
        model: A TransformerBridge; hooks on it run, and see tries as rows (`share=False` gives them plain sequences).
        continuations: What to score.
        share: Whether common beginnings may be shared.
        alone: Run one sequence at a time. A few are done sooner so than by a faster path, which is tried before.
        batch: The most tokens that run at once.

    Raises:
        LcalensError: A continuation with nothing to score or nothing before it, one longer than the model's context,
            several tokens of a model that looks ahead, or a model whose logits are not finite.
    """
    for item in continuations:
        if not 1 <= item.start < item.stop <= len(item.ids):
            raise LcalensError(
                f"continuations: tokens {item.start} to {item.stop} of {len(item.ids)} cannot be scored; there must be "
                "a token before the first one (does the tokenizer drop the prompt?)."
            )
    looks_ahead = getattr(model.cfg, "attention_dir", "causal") != "causal"
    if looks_ahead and any(item.stop - item.start > 1 for item in continuations):
        raise LcalensError(
            "answers: answers of several tokens need a model that does not look ahead, and this one does: an answer's "
            "later tokens would change what its earlier ones are given; use answers of one token."
        )
    longest = max((item.stop for item in continuations), default=0)
    check_length(model, longest)
    shortest = min((item.stop for item in continuations), default=0)
    path = _PATHS[-1] if alone else _PATHS[not share]
    if longest and not alone:
        path = path_of(model, shortest - 1, longest - 1, share=share)
    paths = [item.ids[: item.stop] for item in continuations]
    starts = np.array([item.start for item in continuations], dtype=int)
    rows = _rows(paths, starts.tolist(), path)
    logp, greedy = np.zeros(len(paths)), np.ones(len(paths), dtype=bool)
    first_logp, first_greedy, tokens = logp.copy(), greedy.copy(), 0
    config = model.original_model.config.get_text_config()
    width = max(len(row.ids) for row in rows) if rows else 1
    per_row = width * width * 4 * int(getattr(config, "num_attention_heads", 16))
    bound = 1 if path == "single" else min(batch or MAX_TOKENS, max(1, _SCORE_BYTES // per_row) * width)
    for some in batches(rows, max_tokens=bound, max_reads=max(1, _LOGIT_BYTES // (4 * config.vocab_size))):
        with one_dtype("model"):
            logits = _tail_logits(model, some, path)
        keep, tokens = logits.shape[1], tokens + len(some) * len(some[0].ids)
        reads = [(i, len(row.ids) - keep, read) for i, row in enumerate(some) for read in row.reads]
        where = torch.tensor([(i, read.node - skipped) for i, skipped, read in reads], device=logits.device).T
        targets = torch.tensor([paths[read.sequence][read.token] for _, _, read in reads], device=logits.device)
        chosen = logits[where[0], where[1]].float()
        right = chosen.gather(1, targets[:, None]).squeeze(1)
        scored = (right - chosen.logsumexp(-1)).double().cpu().numpy()
        # Equal to the largest logit, not to its index: a tie is the model's answer too.
        best = (right >= chosen.amax(-1)).cpu().numpy()
        check_finite(torch.from_numpy(scored))
        index = np.array([read.sequence for _, _, read in reads])
        np.add.at(logp, index, scored)
        np.logical_and.at(greedy, index, best)
        opening = np.array([read.token for _, _, read in reads]) == starts[index]
        first_logp[index[opening]], first_greedy[index[opening]] = scored[opening], best[opening]
    return Scores(logp, greedy, first_logp, first_greedy, path, tokens)


def _rows(sequences: Sequence[Sequence[int]], starts: Sequence[int], path: str) -> list[Row]:
    """The sequences as rows; alone, a row holds one, and those that differ in the last token only."""
    if path != "single":
        return pack(sequences, starts, max_nodes=MAX_NODES, share=path == "shared")
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, sequence in enumerate(sequences):
        alike.setdefault(tuple(sequence[:-1]), []).append(index)
    rows = []
    for indices in alike.values():
        (row,) = pack([sequences[i] for i in indices], [starts[i] for i in indices], max_nodes=MAX_NODES, share=False)
        rows.append(replace(row, reads=tuple(replace(read, sequence=indices[read.sequence]) for read in row.reads)))
    return rows


def _tail_logits(model: Any, batch: Sequence[Row], path: str) -> Float[Tensor, "row kept vocab"]:
    longest, keep = max(len(row.ids) for row in batch), max(row.tail for row in batch)
    network = model.original_model
    device, dtype = next(network.parameters()).device, next(network.parameters()).dtype
    accepted = inspect.signature(network.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = keep
    if path == "single":
        (row,) = batch
        return network(input_ids=torch.from_numpy(row.ids)[None].to(device), **options).logits[:, -keep:]
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    depths, alone = torch.zeros_like(ids), torch.eye(longest, dtype=torch.bool)
    seen = repeat(alone, "query key -> row query key", row=len(batch)).clone()  # written to, row by row
    for i, row in enumerate(batch):
        size = len(row.ids)
        ids[i, longest - size :] = torch.from_numpy(row.ids)
        depths[i, longest - size :] = torch.from_numpy(row.depths)
        seen[i, longest - size :, longest - size :] = torch.from_numpy(row.ancestors)
    if "position_ids" in accepted:
        options["position_ids"] = depths.to(device)
    if path == "shared":
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
        mask = rearrange(mask, "row query key -> row 1 query key").to(device)  # the same for every head
    else:
        mask = torch.tensor([[0] * (longest - len(row.ids)) + [1] * len(row.ids) for row in batch], device=device)
    logits = network(input_ids=ids.to(device), attention_mask=mask, **options).logits
    return logits[:, -keep:]


def path_of(model: Any, shortest: int, longest: int, *, share: bool = True) -> str:
    """The fastest path that is exact on sequences of such lengths, found by trying, once for each state of the model.

    Args:
        model: A TransformerBridge.
        shortest: Tokens of the shortest sequence, the last one scored not counted.
        longest: Of the longest.
        share: Whether common beginnings may be shared.
    """
    tried: dict[Any, bool] = _paths.get(model, dict)
    lengths = _tried_lengths(model.original_model.config, shortest, longest)
    for path in _PATHS[not share : -1]:
        # A mask from outside replaces a window, so sequences must fit in it.
        if path == "shared" and longest > _window(model.original_model.config):
            continue
        if (path, lengths) not in tried:
            tried[path, lengths] = _is_exact(model, path, *lengths)
        if tried[path, lengths]:
            return path
    return "single"


def can_share(model: Any) -> bool:
    """Whether the model computes a small trie exactly as it computes the sequences in it.

    Args:
        model: A TransformerBridge.
    """
    return path_of(model, 5, 11) == "shared"


def _tried_lengths(config: Any, shortest: int, longest: int) -> tuple[int, int]:
    """The lengths tried for a study's: no shorter range, few different ones, on the same side of every turn."""
    turns = sorted(_numbers(config.get_text_config().to_dict(), _TURNS))
    steps = [2**power for power in range(32)] + [3 * 2**power for power in range(31)]
    low = max([step for step in steps if step <= shortest] + [turn + 1 for turn in turns if turn < shortest], default=1)
    high = min([step for step in steps if step >= longest] + [turn for turn in turns if turn >= longest])
    return low, max(low, high)


def _numbers(settings: Any, names: Sequence[str]) -> set[int]:
    """The whole numbers kept under these names, at any depth."""
    numbers: set[int] = set()
    for name, value in settings.items():
        if isinstance(value, Mapping):
            numbers |= _numbers(value, names)
        elif name in names and isinstance(value, int) and value > 0:
            numbers.add(value)
    return numbers


def _is_exact(model: Any, path: str, shortest: int, longest: int) -> bool:
    """Whether a path gives the logits of `single` on a short, a long and a branching sequence, beside each other."""
    accepted = inspect.signature(model.original_model.forward).parameters
    if "attention_mask" not in accepted or (path == "shared" and "position_ids" not in accepted):
        return False
    vocabulary = model.original_model.config.get_text_config().vocab_size
    generator = np.random.default_rng(0)
    stem, other = (generator.integers(0, vocabulary, longest + 1).tolist() for _ in range(2))
    fork = max(1, longest - 3)
    paths = [stem[: shortest + 1], stem, [*stem[:fork], *other[fork:]], other[: shortest + 1]]
    starts = [max(1, len(path_ids) - 4) for path_ids in paths]
    try:
        logits_of = _read_off(model, paths, starts, path)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    expected = _read_off(model, paths, starts, "single")
    scale = max(logits.abs().max().item() for logits in expected.values())
    precision = torch.finfo(next(model.original_model.parameters()).dtype).eps
    tolerance = max(_CLOSE, 8 * precision) * scale
    return all((logits_of[key] - logits).abs().max().item() <= tolerance for key, logits in expected.items())


def _read_off(
    model: Any, sequences: Sequence[Sequence[int]], starts: Sequence[int], path: str
) -> dict[tuple[int, int], Float[Tensor, " vocab"]]:
    """The logits that predict each token, by sequence and token."""
    rows, logits_of = _rows(sequences, starts, path), {}
    for batch in [[row] for row in rows] if path == "single" else [rows]:
        logits = _tail_logits(model, batch, path).float()
        for i, row in enumerate(batch):
            for read in row.reads:
                logits_of[read.sequence, read.token] = logits[i, read.node - len(row.ids)]
    return logits_of


def _window(config: Any) -> float:
    """The shortest attention window of any layer."""
    return float(min(_numbers(config.get_text_config().to_dict(), _WINDOWS), default=float("inf")))
