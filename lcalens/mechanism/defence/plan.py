"""What a defence consists of, before anything is done with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from lcalens.mechanism.arguments import Head

Method = Literal[
    "none", "random", "boundary", "names", "attention", "detector", "span", "zero", "mean", "resample", "own-token",
    "subtracted", "direction",
]  # fmt: skip
Where = Literal["last", "all"]
Reads = Literal["residual", "attention", "both"]


@dataclass(frozen=True, eq=False)
class Detector:
    """A logistic regression at the position that is read, on what is known before a layer.

    Attributes:
        layer: Before which layer it reads; no head that it switches is in an earlier one.
        weights: Of the residual stream, of the share of attention that each head of the layers before pays to what is
            before the sentence, or of both, one behind the other.
        bias: Added to the sum.
        threshold: The cut is switched on where the sum exceeds it.
        reads: `residual`, `attention` or `both`.
    """

    layer: int
    weights: Float[Tensor, " feature"]
    bias: float
    threshold: float
    reads: Reads = "residual"

    def fires(self, features: Float[Tensor, "*batch feature"]) -> Bool[Tensor, "*batch"]:
        """Whether it takes a position for a hijacked one.

        Args:
            features: The residual stream before the layer, the shares of attention, or both.
        """
        return self.scores(features) > self.threshold

    def scores(self, features: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch"]:
        """The log odds of a hijack, by the fit's own prior.

        Args:
            features: The residual stream before the layer, the shares of attention, or both.
        """
        return features.double() @ self.weights.to(features.device).double() + self.bias


@dataclass(frozen=True, eq=False)
class Plan:
    """The parts of a defence (see `Defence`).

    Attributes:
        method: See `defend`.
        heads: The heads that are cut.
        where: `last`, at the position that is read; or `all`, at every position.
        ends: Tokens that end a sentence.
        detector: What switches the cut on; None for always.
        model: The fingerprint of the weights it was made for.
        record: How it was made.
        values: The numbers that the method works with, by name.
    """

    method: Method
    heads: tuple[Head, ...]
    where: Where
    ends: tuple[int, ...]
    detector: Detector | None
    model: str
    record: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
