"""The trial of every loaded model: finite weights and logits, and a bridge that computes what the model computes.

A bridge rebuilds attention from the parts of the model it wraps, and may overlook a switch of its configuration. So the
model runs a few tokens before it is bridged, the bridge runs the same ones after, and the two are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int

from lcalens.core.errors import LcalensError
from lcalens.core.tensors import one_dtype

# How far a bridge's logits may lie from the model's own, as a fraction of the logits' spread. On 27 families with three
# layers of large weights the two differ by at most 5.4 rounding steps of their type: other orders of the same sums. In
# float64 some families compute rotations or softmax in float32 all the same, and differ by its rounding.
TOLERANCES = {torch.float64: 1e-5, torch.float32: 2e-4, torch.float16: 16 * 2**-10, torch.bfloat16: 16 * 2**-7}
_LENGTHS = (2, 7, 23)
_LONGEST = 96  # lengths beyond a window or a switch of frequencies are tried up to here: a trial must stay cheap


@dataclass(frozen=True)
class Trial:
    """What the model itself said, before it was bridged.

    Attributes:
        rows: Token ids, one row per length.
        logits: The model's logits for each row.
    """

    rows: tuple[Int[torch.Tensor, "1 _"], ...]
    logits: tuple[Float[torch.Tensor, "1 _ vocab"], ...]


def check_weights(source: str, model: torch.nn.Module) -> None:
    """Refuse weights that are NaN or infinite: every result of such a model is NaN, or hides it.

    Raises:
        LcalensError: Some are; the first such tensor is named.
    """
    unfinite = first_unfinite(model)
    if unfinite is not None:
        raise LcalensError(
            f"source: {source!r:.200} has weights that are NaN or infinite, first in {unfinite}; no result of it would "
            "be a number. Download or copy it again, or load it in another dtype if float16 cannot hold its weights."
        )


@torch.no_grad()
def first_unfinite(model: torch.nn.Module) -> str | None:
    """The name of the first parameter that holds NaN or infinity; None where all are finite."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta or parameter.numel() == 0 or not parameter.is_floating_point():
            continue
        # The sum of the two ends is finite only where every element is: NaN spreads, infinity is an end.
        low, high = torch.aminmax(parameter.detach())
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            return name
    return None


@torch.no_grad()
def run_trial(model: Any) -> Trial:
    """Run the model on a few random tokens at some lengths, beyond its windows where those are short.

    Args:
        model: A Hugging Face causal language model, not bridged.
    """
    text = model.config.get_text_config(decoder=True)
    device = model.get_input_embeddings().weight.device
    generator = torch.Generator().manual_seed(0)
    ordinary = _ordinary_tokens(model.config, text)
    picks = (torch.randint(len(ordinary), (1, length), generator=generator) for length in _lengths(text))
    rows = tuple(ordinary[pick].to("cpu" if device.type == "meta" else device) for pick in picks)
    return Trial(rows, tuple(model(input_ids=row, use_cache=False).logits.detach().clone() for row in rows))


@torch.no_grad()
def check_causal(source: str, model: Any, trial: Trial) -> None:
    """Refuse a model in which a later token changes what is said at an earlier position.

    Raises:
        LcalensError: It does: the model reads both ways.
    """
    candidates = [at for at, row in enumerate(trial.rows) if row.shape[1] > 1]
    if not candidates:
        return
    row, before = trial.rows[candidates[0]], trial.logits[candidates[0]]
    other = row.clone()
    others = [int(token) for token in trial.rows[-1][0] if token != row[0, -1]]
    if not others:
        return
    other[0, -1] = others[0]
    gap = (model(input_ids=other, use_cache=False).logits - before)[0, :-1].abs().max().double().item()
    spread = (before - before.mean(-1, keepdim=True)).abs().max().double().item()
    if gap > TOLERANCES.get(before.dtype, TOLERANCES[torch.bfloat16]) * spread:
        raise LcalensError(
            f"source: {source!r:.200} is no causal language model: its logits at one position change by {gap:.3g} with "
            "the token behind it. Use a decoder, whose every position sees only those before it."
        )


@torch.no_grad()
def check_bridge(source: str, bridge: Any, trial: Trial) -> None:
    """Refuse a bridge whose logits are not the model's own.

    Args:
        source: What the user asked for.
        bridge: The TransformerBridge of the model that ran the trial.
        trial: What that model said.

    Raises:
        LcalensError: It cannot run in its precision, or the logits are not finite where the model's are, or they
            differ by more than rounding.
    """
    worst, spread = 0.0, 0.0
    for row, expected in zip(trial.rows, trial.logits, strict=True):
        with one_dtype(f"source: {source!r:.200}"):
            logits = bridge(row)
        if logits.shape != expected.shape:
            raise LcalensError(
                f"source: {source!r:.200} gives logits of shape {tuple(logits.shape)} as a TransformerBridge and of "
                f"shape {tuple(expected.shape)} as a Hugging Face model; lcalens cannot use it."
            )
        reference = expected.double()
        if not bool(torch.isfinite(reference).all()):
            continue  # said elsewhere, with the tensor's name
        gap = (logits.double().to(reference.device) - reference).abs().max().item()
        worst = gap if gap != gap else max(worst, gap)  # a NaN stays
        spread = max(spread, (reference - reference.mean(-1, keepdim=True)).abs().max().item())
        tolerance = TOLERANCES.get(expected.dtype, TOLERANCES[torch.bfloat16])
        if not gap <= tolerance * max(spread, torch.finfo(torch.float32).tiny):
            dtype = str(expected.dtype).removeprefix("torch.")
            raise LcalensError(
                f"source: {source!r:.200}: TransformerLens computes other logits than the model itself: they differ by "
                f"{gap:.3g} on {row.shape[1]} tokens, where the model's spread is {spread:.3g} and rounding in {dtype} "
                f"explains {tolerance * spread:.1g}. A setting of its config.json is one that TransformerLens' "
                f"adapter for {type(bridge.original_model).__name__} does not follow. Use another model."
            )


def check_finite(source: str, trial: Trial) -> None:
    """Refuse a model whose logits are NaN or infinite though all its weights are finite.

    Raises:
        LcalensError: They are; the length at which it happens is named.
    """
    for row, logits in zip(trial.rows, trial.logits, strict=True):
        if not bool(torch.isfinite(logits).all()):
            dtype = str(logits.dtype).removeprefix("torch.")
            raise LcalensError(
                f"source: {source!r:.200} gives logits that are NaN or infinite on {row.shape[1]} random tokens in "
                f"{dtype}, though its weights are finite: something overflows. Load it with dtype='float32'"
                f"{' or bfloat16' if logits.dtype == torch.float16 else ''}."
            )


def _lengths(text: Any) -> Sequence[int]:
    """A few lengths within the context; one behind each window or switch of frequencies that a short text can reach."""
    longest = min(_LONGEST, int(getattr(text, "max_position_embeddings", None) or _LONGEST))
    rope = getattr(text, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)] if isinstance(rope, dict) else []
    limits = [getattr(text, name, None) for name in ("sliding_window", "window_size", "attention_chunk_size")]
    limits += [entry.get("original_max_position_embeddings") for entry in [rope, *nested] if isinstance(entry, dict)]
    lengths = {*_LENGTHS, *(int(limit) + 3 for limit in limits if isinstance(limit, int) and limit > 0)}
    return sorted(length for length in lengths if length <= longest) or [1]


def _ordinary_tokens(config: Any, text: Any) -> Int[torch.Tensor, " tokens"]:
    """Ids that stand for text: not padding, not the ends, not the places of images."""
    named = [*vars(config).items(), *vars(text).items()]
    special: set[int] = set()
    for name, value in named:
        if name.endswith(("token_id", "token_index")):
            special |= {item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int)}
    vocabulary = int(text.vocab_size)
    ordinary = [token for token in range(vocabulary) if token not in special]
    return torch.tensor(ordinary or list(range(vocabulary)))
