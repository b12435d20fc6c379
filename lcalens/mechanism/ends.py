"""The answers' logits in the two runs as the model gives them: after any soft cap, on the grid of the model's dtype."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lcalens.mechanism.contrast.contrast import Contrast

_TOKENS = 4096  # run at once
_SOME = 8  # examples whose logits tell how large they are
_NEAR = 8  # steps of the grid: effects below so many are told to be near it


@torch.no_grad()
def answer_logits(model: Any, contrast: Contrast) -> Float[np.ndarray, "example run answer"]:
    """The model's own logits of the true and the false answer, in the clean and the hijacked run, at the last position.

    Args:
        model: A TransformerBridge.
        contrast: The runs.
    """
    device = next(model.original_model.parameters()).device
    answer_pairs = np.zeros((len(contrast), 2, 2))
    for bucket in contrast.buckets():
        answers = torch.stack([bucket.true, bucket.false], 1)
        for column, tokens in enumerate((bucket.clean, bucket.hijacked)):
            for rows in torch.arange(len(tokens)).split(max(1, _TOKENS // tokens.shape[1])):
                logits = model(tokens[rows].to(device))[:, -1].double().cpu()
                answer_pairs[bucket.indices[rows].numpy(), column] = logits.gather(1, answers[rows]).numpy()
    return answer_pairs


def capped_ends(model: Any, contrast: Contrast) -> dict[str, Float[np.ndarray, " example"]]:
    """The logit difference of both runs after the soft cap, where the model has one; nothing where it has none.

    Args:
        model: A TransformerBridge.
        contrast: The runs.
    """
    if getattr(model.original_model.config.get_text_config(), "final_logit_softcapping", None) is None:
        return {}
    logits = answer_logits(model, contrast)
    difference = logits[..., 1] - logits[..., 0]
    return {"clean_after_cap": difference[:, 0], "hijacked_after_cap": difference[:, 1]}


def grid_of(model: Any, contrast: Contrast) -> float | None:
    """The step between neighbouring logits of a model of reduced precision, at the size of the answers' logits.

    A bfloat16 has 8 significant bits: between 8 and 16 its step is 1/16. Effects of some steps are rounding in part.

    Args:
        model: A TransformerBridge.
        contrast: The runs.

    Returns:
        The step in logits; None for a model in float32 or float64.
    """
    dtype = next(weight.dtype for weight in model.original_model.parameters() if weight.is_floating_point())
    eps = torch.finfo(dtype).eps
    if eps <= torch.finfo(torch.float32).eps:
        return None
    largest = float(np.abs(answer_logits(model, contrast[: min(_SOME, len(contrast))])).max())
    return eps * 2.0 ** math.floor(math.log2(largest)) if largest > 0 else eps


def of_the_logits(
    model: Any, contrast: Contrast, metric: Any, largest: float
) -> tuple[dict[str, Float[np.ndarray, " example"]], dict[str, Any], float | None]:
    """What every verb says of a logit difference beside its effects; nothing of another metric.

    Args:
        model: A TransformerBridge.
        contrast: The runs.
        metric: A metric's name, or a function.
        largest: The largest mean effect.

    Returns:
        Columns for the examples, both runs after any soft cap; what provenance records of the resolution; and the grid.
    """
    if metric != "logit-difference":
        return {}, {}, None
    dtype = next(weight.dtype for weight in model.original_model.parameters() if weight.is_floating_point())
    grid = grid_of(model, contrast)
    record = resolution_record(str(dtype).removeprefix("torch."), grid, largest)
    return capped_ends(model, contrast), record, grid


def resolution_record(dtype: str, grid: float | None, largest: float) -> dict[str, Any]:
    """What a result says of its resolution; nothing where the model is not of reduced precision.

    Args:
        dtype: The model's.
        grid: The step of its logits.
        largest: The largest mean effect, in logits.
    """
    if grid is None:
        return {}
    record = {"dtype": dtype, "grid": grid, "largest_effect": largest}
    if largest < _NEAR * grid:
        record["says"] = (
            f"near the grid: effects of at most {largest:.3g} logits, where {dtype}'s logits are {grid:.3g} apart; "
            "load the model in float32 to tell them from rounding."
        )
    return {"resolution": record}
