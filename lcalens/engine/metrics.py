"""What is read of a patched run: by default logit(false) - logit(true), which hijacking raises."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.engine.decoder import Decoder

MetricName = Literal["logit-difference", "probability", "kl", "whole-answer"]
OwnMetric = Callable[[Float[Tensor, "row vocab"], Int[Tensor, " row"]], Float[Tensor, " row"]]
Metric = MetricName | OwnMetric
_LOGIT_NUMBERS = 1 << 25


def read(
    metric: Metric,
    logits: Float[Tensor, "row vocab"],
    true: Int[Tensor, " row"],
    false: Int[Tensor, " row"],
    clean: Float[Tensor, "row vocab"],
    index: Int[Tensor, " row"],
) -> Float[Tensor, " row"]:
    """The metric of each row of logits.

    Args:
        metric: `logit-difference`; `probability`, Pr[false] - Pr[true]; `kl`, KL(clean run || this run) in nats; or a
            function of (logits, index).
        logits: Of the next token, at the last position.
        true: The true answers' first tokens.
        false: The false answers'.
        clean: The clean runs' logits.
        index: Which example each row belongs to.

    Raises:
        LcalensError: A function that does not give one number a row.
    """
    if callable(metric):
        found = metric(logits, index)
        if not isinstance(found, Tensor) or found.shape != index.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise LcalensError(f"metric: expected a tensor of {len(index)} numbers, one a row, got {shape}.")
        return found.to(logits.dtype)
    if metric == "kl":
        target = clean.log_softmax(-1)
        return (target.exp() * (target - logits.log_softmax(-1))).sum(-1)
    read_from = logits.softmax(-1) if metric == "probability" else logits
    return read_from.gather(1, false[:, None]).squeeze(1) - read_from.gather(1, true[:, None]).squeeze(1)


def of_variants(
    metric: Metric,
    decoder: Decoder,
    resid: Float[Tensor, "batch variant d"],
    true: Int[Tensor, " batch"],
    false: Int[Tensor, " batch"],
    clean: Float[Tensor, "batch vocab"],
    index: Int[Tensor, " batch"],
) -> Float[Tensor, "batch variant"]:
    """The metric of every variant, a bounded number of logits at a time.

    Args:
        metric: The metric.
        decoder: The model.
        resid: After the last layer, at the last position.
        true: The true answers' first tokens.
        false: The false answers'.
        clean: The clean runs' logits.
        index: Which examples these are.
    """
    if metric == "logit-difference":  # two logits of each, and not the whole vocabulary's
        return decoder.logits_of(resid, false) - decoder.logits_of(resid, true)
    rows = resid.flatten(0, 1)
    example = torch.arange(len(resid), device=resid.device).repeat_interleave(resid.shape[1])
    step = max(1, _LOGIT_NUMBERS // clean.shape[1])
    parts = [
        read(metric, decoder.logits(part), true[which], false[which], clean[which], index[which])
        for part, which in zip(rows.split(step), example.split(step), strict=True)
    ]
    return torch.cat(parts).view(resid.shape[:2])
