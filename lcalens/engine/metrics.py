"""What is read of a patched run: by default logit(false) - logit(true), which hijacking raises."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.core.tensors import check_finite
from lcalens.engine.decoder import Decoder

MetricName = Literal["logit-difference", "probability", "kl", "whole-answer"]
OwnMetric = Callable[[Float[Tensor, "row vocab"], Int[Tensor, " row"]], Float[Tensor, " row"]]
Metric = MetricName | OwnMetric
_LOGIT_NUMBERS = 1 << 25


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked of some examples.

    Attributes:
        true: The true answers' first tokens.
        false: The false answers'.
        index: Which examples they are.
        clean: The clean runs' logits; None where only the two answers' logits are read.
    """

    true: Int[Tensor, " batch"]
    false: Int[Tensor, " batch"]
    index: Int[Tensor, " batch"]
    clean: Float[Tensor, "batch vocab"] | None = None

    def rows(self, which: Int[Tensor, " row"]) -> "Asked":
        """The same, an example for each row.

        Args:
            which: The rows' examples.
        """
        clean = None if self.clean is None else self.clean[which]
        return Asked(self.true[which], self.false[which], self.index[which], clean)


def read(metric: Metric, logits: Float[Tensor, "row vocab"], asked: Asked) -> Float[Tensor, " row"]:
    """The metric of each row of logits.

    Args:
        metric: `logit-difference`; `probability`, Pr[false] - Pr[true]; `kl`, KL(clean run || this run) in nats; or a
            function of (logits, index).
        logits: Of the next token, at the last position.
        asked: What is asked of each row.

    Raises:
        LcalensError: A function that does not give one number for each row.
    """
    if callable(metric):
        values = metric(logits, asked.index)
        if not isinstance(values, Tensor) or values.shape != asked.index.shape:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise LcalensError(
                f"metric: expected a tensor of {len(asked.index)} numbers, one for each row of logits, got {shape}."
            )
        missing = ~values.isfinite()
        if bool(missing.any()):
            raise LcalensError(
                f"metric: it is no finite number for {int(missing.sum())} of {len(values)} rows of logits, such as one "
                f"of example {int(asked.index[missing][0])}; give a number for every row, or leave the example out."
            )
        return values.to(logits.dtype)
    if metric == "kl":
        assert asked.clean is not None, "a divergence from the clean run needs its logits"
        target = asked.clean.log_softmax(-1)
        return (target.exp() * (target - logits.log_softmax(-1))).sum(-1)
    scores = logits.softmax(-1) if metric == "probability" else logits
    return scores.gather(1, asked.false[:, None]).squeeze(1) - scores.gather(1, asked.true[:, None]).squeeze(1)


def of_variants(
    metric: Metric,
    decoder: Decoder,
    resid: Float[Tensor, "batch variant d"],
    asked: Asked,
) -> Float[Tensor, "batch variant"]:
    """The metric of every variant, a bounded number of logits at a time.

    Args:
        metric: The metric.
        decoder: The model.
        resid: After the last layer, at the last position.
        asked: What is asked of each example.
    """
    if metric == "logit-difference":  # two logits of each, and not the whole vocabulary's
        found = decoder.logit_difference(resid, asked.true, asked.false)
        check_finite(found)
        return found
    assert asked.clean is not None, "every other metric is given the clean run's logits"
    rows = rearrange(resid, "batch variant d -> (batch variant) d")
    example = torch.arange(len(resid), device=asked.true.device).repeat_interleave(resid.shape[1])
    step = max(1, _LOGIT_NUMBERS // asked.clean.shape[1])
    metrics = [
        read(metric, decoder.logits(chunk), asked.rows(examples))
        for chunk, examples in zip(rows.split(step), example.split(step), strict=True)
    ]
    found = torch.cat(metrics)
    check_finite(found)
    return rearrange(found, "(batch variant) -> batch variant", batch=len(resid))


def with_slope(
    metric: Metric, decoder: Decoder, asked: Asked
) -> Callable[[Float[Tensor, "batch variant d"]], Float[Tensor, "batch variant"]]:
    """The metric of residual streams after the last layer, refused where a slope is asked for and it has none.

    Args:
        metric: The metric.
        decoder: The model.
        asked: What is asked of each example.
    """

    def measure(resid: Float[Tensor, "batch variant d"]) -> Float[Tensor, "batch variant"]:
        values = of_variants(metric, decoder, resid, asked)
        if torch.is_grad_enabled() and not values.requires_grad:
            raise LcalensError("metric: it has no gradient in the logits; use torch's own operations, or patch().")
        return values

    return measure


def ends_of(
    metric: Metric, decoder: Decoder, runs: Sequence[Float[Tensor, "batch d"]], asked: Asked
) -> tuple[Float[Tensor, "batch run"], Asked]:
    """The metric of the clean and the hijacked run, and what is asked, with the clean logits where they are needed.

    Args:
        metric: The metric.
        decoder: The model.
        runs: The clean run after the last layer at the last position, and the hijacked one.
        asked: What is asked of each example.
    """
    if metric != "logit-difference":
        asked = replace(asked, clean=decoder.logits(runs[0]))
    return of_variants(metric, decoder, torch.stack([run.to(runs[0].device) for run in runs], 1), asked), asked
