"""Log-probabilities of continuations: each common beginning of the prompts is computed once, in batches.

Two paths give the same numbers. `shared` packs prompts that begin alike into tries (see `packing`); it is taken when
the model is seen to compute a small trie exactly as it computes its sequences one by one. Models that take no
positions or masks from outside, or whose attention window is shorter than the prompts, run `padded`: one sequence a
row, padded on the left.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.core.tokens import check_length
from lcalens.llm.efficacy.tries import Row, batches, pack

# Larger batches fall out of the processor's cache.
MAX_NODES = 1024
MAX_TOKENS = 1024
_LOGIT_BYTES = 1 << 28
_SCORE_BYTES = 1 << 29
_shares: "WeakKeyDictionary[Any, bool]" = WeakKeyDictionary()


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
        path: `shared` or `padded`.
        tokens: How many tokens were computed, padding included.
    """

    logp: Float[np.ndarray, " continuation"]
    greedy: Bool[np.ndarray, " continuation"]
    first_logp: Float[np.ndarray, " continuation"]
    first_greedy: Bool[np.ndarray, " continuation"]
    path: str
    tokens: int


@torch.no_grad()
def score(model: Any, continuations: Sequence[Continuation], *, share: bool = True) -> Scores:
    """The log-probability of every continuation, each common beginning computed once.

    Args:
        model: A TransformerBridge; hooks on it run, and see tries as rows (`share=False` gives them plain sequences).
        continuations: What to score.
        share: Whether common beginnings may be shared.

    Raises:
        LcalensError: A continuation with nothing to score or nothing before it, one longer than the model's context,
            or a model whose logits are not finite.
    """
    for item in continuations:
        if not 1 <= item.start < item.stop <= len(item.ids):
            raise LcalensError(
                f"continuations: tokens {item.start} to {item.stop} of {len(item.ids)} cannot be scored; there must be "
                "a token before the first one (does the tokenizer drop the prompt?)."
            )
    longest = max((item.stop for item in continuations), default=0)
    check_length(model, longest)
    share = share and longest <= _window(model.original_model.config) and can_share(model)
    paths = [item.ids[: item.stop] for item in continuations]
    starts = np.array([item.start for item in continuations], dtype=int)
    rows = pack(paths, starts.tolist(), max_nodes=MAX_NODES, share=share)
    logp, greedy = np.zeros(len(paths)), np.ones(len(paths), dtype=bool)
    first_logp, first_greedy, tokens = logp.copy(), greedy.copy(), 0
    config = model.original_model.config.get_text_config()
    width = max(len(row.ids) for row in rows) if rows else 1
    per_row = width * width * 4 * int(getattr(config, "num_attention_heads", 16))
    bound = min(MAX_TOKENS, max(1, _SCORE_BYTES // per_row) * width)
    for batch in batches(rows, max_tokens=bound, max_reads=max(1, _LOGIT_BYTES // (4 * config.vocab_size))):
        logits = _tail_logits(model, batch, share)
        keep, tokens = logits.shape[1], tokens + len(batch) * len(batch[0].ids)
        reads = [(i, len(row.ids) - keep, read) for i, row in enumerate(batch) for read in row.reads]
        where = torch.tensor([(i, read.node - skipped) for i, skipped, read in reads], device=logits.device).T
        targets = torch.tensor([paths[read.sequence][read.token] for _, _, read in reads], device=logits.device)
        chosen = logits[where[0], where[1]].float()
        right = chosen.gather(1, targets[:, None]).squeeze(1)
        found = (right - chosen.logsumexp(-1)).double().cpu().numpy()
        # Equal to the largest logit, not to its index: a tie is the model's answer too.
        best = (right >= chosen.amax(-1)).cpu().numpy()
        check_finite(torch.from_numpy(found))
        index = np.array([read.sequence for _, _, read in reads])
        np.add.at(logp, index, found)
        np.logical_and.at(greedy, index, best)
        opening = np.array([read.token for _, _, read in reads]) == starts[index]
        first_logp[index[opening]], first_greedy[index[opening]] = found[opening], best[opening]
    return Scores(logp, greedy, first_logp, first_greedy, "shared" if share else "padded", tokens)


def _tail_logits(model: Any, batch: Sequence[Row], share: bool) -> Float[Tensor, "row kept vocab"]:
    longest, keep = max(len(row.ids) for row in batch), max(row.tail for row in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    depths, seen = torch.zeros_like(ids), torch.eye(longest, dtype=torch.bool).repeat(len(batch), 1, 1)
    for i, row in enumerate(batch):
        size = len(row.ids)
        ids[i, longest - size :] = torch.from_numpy(row.ids)
        depths[i, longest - size :] = torch.from_numpy(row.depths)
        seen[i, longest - size :, longest - size :] = torch.from_numpy(row.ancestors)
    network = model.original_model
    device, dtype = next(network.parameters()).device, next(network.parameters()).dtype
    accepted = inspect.signature(network.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = keep
    if "position_ids" in accepted:
        options["position_ids"] = depths.to(device)
    if share:
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None].to(device)
    else:
        mask = torch.tensor([[0] * (longest - len(row.ids)) + [1] * len(row.ids) for row in batch], device=device)
    logits = network(input_ids=ids.to(device), attention_mask=mask, **options).logits
    return logits[:, -keep:]


def check_finite(values: Tensor) -> None:
    """Refuse what a model with NaN or infinite weights computes.

    Raises:
        LcalensError: A value is not finite.
    """
    if not values.isfinite().all():
        raise LcalensError("model: its logits are not finite (NaN or infinite weights, or an overflowing dtype).")


def can_share(model: Any) -> bool:
    """Whether the model computes a trie exactly as it computes the sequences in it, found once by trying.

    Args:
        model: A TransformerBridge.
    """
    network = model.original_model
    if network not in _shares:
        _shares[network] = _tries_are_exact(model)
    return _shares[network]


@torch.no_grad()
def _tries_are_exact(model: Any) -> bool:
    accepted = inspect.signature(model.original_model.forward).parameters
    if not {"position_ids", "attention_mask"} <= accepted.keys():
        return False
    vocabulary = model.original_model.config.get_text_config().vocab_size
    generator = np.random.default_rng(0)
    stem, *ends = (generator.integers(0, vocabulary, size).tolist() for size in (6, 5, 4, 4))
    paths = [[*stem, *end] for end in ends]
    trie = pack(paths, [len(path) - 1 for path in paths], max_nodes=MAX_NODES)
    chains = pack(paths, [len(path) - 1 for path in paths], max_nodes=MAX_NODES, share=False)
    try:
        together, apart = _tail_logits(model, trie, True)[0].float(), {}
        for row in chains:
            apart[row.reads[0].sequence] = _tail_logits(model, [row], False)[0, -1].float()
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    scale = max(logits.abs().max().item() for logits in apart.values())
    tolerance = max(1e-3, 8 * torch.finfo(next(model.original_model.parameters()).dtype).eps) * scale
    skipped = len(trie[0].ids) - trie[0].tail
    return all(
        (together[read.node - skipped] - apart[read.sequence]).abs().max().item() <= tolerance for read in trie[0].reads
    )


def _window(config: Any) -> float:
    """The shortest attention window of any layer: a mask from outside replaces windows, so prompts must fit in it."""
    settings = config.get_text_config().to_dict()
    names = ("sliding_window", "window_size", "attention_window", "attention_chunk_size", "local_attention")
    found = [settings[name] for name in names if isinstance(settings.get(name), int)]
    return float(min(found, default=float("inf")))
