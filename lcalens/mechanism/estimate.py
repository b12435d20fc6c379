"""What a verb will take of memory, tried on one and two examples before a long run."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lcalens.core.checks import check_choice, check_real
from lcalens.core.errors import LcalensError
from lcalens.core.memory import LiveTensors, free_memory
from lcalens.core.stamp import holds_steady
from lcalens.engine.decoder import Decoder
from lcalens.engine.gradients import rows_at_once
from lcalens.engine.reading import read_decoder
from lcalens.mechanism.arguments import check_contrast, read_positions, read_site
from lcalens.mechanism.attribute import attribute
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.exchange import batches, exchange
from lcalens.mechanism.patch import patch
from lcalens.mechanism.patch_cells import jobs

_VERBS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"patch": patch, "attribute": attribute, "exchange": exchange}
)


@dataclass(frozen=True)
class MemoryEstimate:
    """What a call is going to take at its widest, beside the model's weights.

    Attributes:
        bytes: Of tensors, on all devices together.
        free: Bytes that are free where the model is.
        examples: How many examples run together then.
        tokens: How many tokens each of them has, clean and hijacked.
    """

    bytes: int
    free: int
    examples: int
    tokens: int

    @property
    def fits(self) -> bool:
        """Whether it is free."""
        return self.bytes <= self.free

    def __str__(self) -> str:
        said = f"{self.bytes / 1e9:.3g} GB for {self.examples} examples of {self.tokens} tokens at once"
        return f"{said}; {self.free / 1e9:.3g} GB are free"


@holds_steady
def memory_estimate(model: Any, contrast: Contrast, *, verb: str = "patch", **arguments: Any) -> MemoryEstimate:
    """What a verb takes of memory on this contrast, before it is run on all of it.

    The verb runs on one example and on two, of the lengths that take the most, while the tensors that live are counted.
    What a second example adds is multiplied by how many examples the verb runs together. Parts that several processes
    or the allocator hold back are not in it.

    Args:
        model: A TransformerBridge.
        contrast: The contrast that is going to be measured.
        verb: `patch`, `attribute` or `exchange`.
        arguments: What the verb is going to be called with; of `patch` without `out`, of all without `progress`.

    Returns:
        The estimate. Where it is more than what is free there is also a warning (`patch` halves its batch then).

    Raises:
        LcalensError: An argument that cannot be used, or one that the verb refuses.

    Example:
        >>> print(memory_estimate(model, contrast, site="z", positions="all"))  # 0.52 GB for 15 examples of ...
    """
    check_contrast(model, contrast)
    check_choice("verb", verb, _VERBS)
    left_out = sorted({"out", "progress"} & set(arguments))
    if left_out:
        raise LcalensError(f"{left_out[0]}: an estimate keeps and shows nothing; leave it out.")
    if arguments.get("source") == "mean":
        # A mean of few examples takes as much as one that is given.
        arguments = arguments | {"source": "other"}
    together = _together(model, contrast, verb, arguments)
    example, count = max(together, key=lambda at: at[1] * _tokens(contrast, at[0]))
    peaks = [_peak(model, contrast[[example] * size], verb, arguments) for size in (1, 2)]
    # Weights are on one device, or parts of them: the first is asked.
    free = free_memory(next(model.original_model.parameters()).device)
    total = peaks[0] + (count - 1) * max(peaks[1] - peaks[0], 0)
    estimate = MemoryEstimate(total, free, count, _tokens(contrast, example))
    if not estimate.fits:
        smaller = "a smaller memory= or " if verb == "patch" else ""
        warnings.warn(f"{verb} takes {estimate}; give {smaller}fewer or shorter examples.", UserWarning, stacklevel=3)
    return estimate


def _tokens(contrast: Contrast, example: int) -> int:
    return len(contrast.clean[example]) + len(contrast.hijacked[example])


def _together(model: Any, contrast: Contrast, verb: str, arguments: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Of every batch that the verb is going to run: one of its examples, and how many it has."""
    decoder = read_decoder(model, contrast.longest)
    if verb == "patch":
        places = contrast.places(read_positions(arguments.get("positions", "last")))
        budget = check_real("memory", arguments.get("memory", 2.0), low=1e-3) * 2**30
        made = jobs(contrast, places, decoder, read_site(arguments.get("site", "z")), budget)
        return [(int(job.bucket.indices[0]), len(job.bucket.indices)) for job in made]
    if isinstance(decoder, str):
        raise LcalensError(
            f"model: {verb} needs a model that lcalens reads layer by layer, and cannot here: {decoder}."
        )
    if verb == "exchange":
        return [(int(bucket.indices[0]), len(bucket.indices)) for bucket in batches(contrast, decoder)]
    return [(int(bucket.indices[0]), _with_graph(decoder, bucket)) for bucket in contrast.buckets()]


def _with_graph(decoder: Decoder, bucket: Any) -> int:
    """How many examples `attribute` runs together."""
    length = max(bucket.clean.shape[1], bucket.hijacked.shape[1])
    return min(len(bucket.indices), max(1, rows_at_once(decoder, length) // length))


def _peak(model: Any, contrast: Contrast, verb: str, arguments: Mapping[str, Any]) -> int:
    live = LiveTensors()
    with live:
        _VERBS[verb](model, contrast, **arguments, progress=False)
    return live.peak
