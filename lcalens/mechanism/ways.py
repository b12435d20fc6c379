"""The paths of some examples, measured: exactly in the growing batch, or by slopes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from lcalens.engine.decoder import Decoder
from lcalens.engine.edges import edge_effects
from lcalens.engine.forward import Trace, trace_both
from lcalens.engine.metrics import Asked, Metric, ends_of, of_variants, with_slope
from lcalens.engine.paths import WHOLE, At, Receiver, Sender, Ways, kept_for_paths, path_variants
from lcalens.engine.variants import first_apart, row_bytes
from lcalens.mechanism.contrast.contrast import Bucket, Contrast
from lcalens.mechanism.contrast.inputs import Group

Method = Literal["exact", "gradient", "integrated"]
ByLayer = dict[int, list[int]]
Found = tuple[list[tuple[Sender, Receiver]], torch.Tensor]
_EVERYTHING = Sender(-1, WHOLE)
_ROWS = 4096  # of the residual stream in the growing batch: more than this runs no faster


@dataclass(frozen=True)
class Sought:
    """Which paths are measured, and how.

    Attributes:
        senders: Where they begin.
        receivers: Where they end.
        at: What of a receiver reads.
        method: `exact`, or a screen.
        steps: Points of integrated gradients.
    """

    senders: tuple[Sender, ...]
    receivers: tuple[Receiver, ...]
    at: At
    method: Method
    steps: int


def jobs_of_paths(
    contrast: Contrast, places: tuple[tuple[Group, ...], ...], decoder: Decoder, paths: int
) -> Iterator[tuple[Bucket, Group]]:
    """Examples of the same lengths and positions, as many together as still run faster, on the model's device.

    Args:
        contrast: The examples.
        places: Each one's group of positions.
        decoder: The model.
        paths: How many each example has.
    """
    device = decoder.layers[0].device
    for bucket in contrast.buckets():
        alike: dict[Group, list[int]] = {}
        for row, index in enumerate(bucket.indices.tolist()):
            alike.setdefault(places[index][0], []).append(row)
        for group, rows in alike.items():
            reach = -min(group) if decoder.causal else bucket.hijacked.shape[1]
            size = max(1, _ROWS // (paths * reach))
            for first in range(0, len(rows), size):
                some = rows[first : first + size]
                yield Bucket(*(tensor[some].to(device) for tensor in bucket)), group


def measure_paths(
    decoder: Decoder, bucket: Bucket, group: Group, sought: Sought, metric: Metric, budget: float
) -> dict[str, np.ndarray]:
    """Every path's effect, each receiver's where it reads the clean run's whole stream, and both runs' metric.

    Args:
        decoder: The model.
        bucket: Examples of one length.
        group: Positions that paths pass, counted from the end.
        sought: Which paths.
        metric: What is read of every run.
        budget: Bytes that the growing batch may take.
    """
    with torch.no_grad():
        source, base = trace_both(decoder, bucket.clean, bucket.hijacked, keep=kept_for_paths(sought.at))
        asked = Asked(*(tensor.to(decoder.unembed.device) for tensor in (bucket.true, bucket.false, bucket.indices)))
        ends, asked = ends_of(metric, decoder, [run.final[:, -1] for run in (source, base)], asked)
    ways = _ways(decoder, base, source, sought.at, group)

    def exact(senders: Sequence[Sender], heads: ByLayer) -> Found:
        with torch.no_grad():
            paths, final = path_variants(ways, senders, heads)
            return paths, ends[:, 1:] - of_variants(metric, decoder, final, asked)

    def screen(senders: Sequence[Sender], heads: ByLayer) -> Found:
        steps = sought.steps if sought.method == "integrated" else None
        paths, change = edge_effects(ways, senders, heads, with_slope(metric, decoder, asked), steps)
        return paths, -change

    positions = base.tokens.shape[1] - ways.start
    size = max(1, int(budget // (row_bytes(decoder) * len(ends) * positions)))
    method, most = (exact, size) if sought.method == "exact" else (screen, len(sought.senders) * len(sought.receivers))
    return {
        "effect": _filled(ways, sought.senders, sought.receivers, method, most),
        "together": _filled(ways, [_EVERYTHING], sought.receivers, exact, size)[:, 0],
        "ends": ends.double().cpu().numpy(),
    }


def _ways(decoder: Decoder, base: Trace, source: Trace, at: At, group: Group) -> Ways:
    """Where paths lead through two runs: at positions before the first at which they are apart there is nothing."""
    ends = base.tokens.shape[1], source.tokens.shape[1]
    apart = first_apart(base.tokens, source.tokens, ends[0] == ends[1])
    start = max(ends[0] + min(group), apart) if decoder.causal else 0
    moved = [position for position in group if ends[0] + position >= start]
    rows, source_rows = ([end + position for position in moved] for end in ends)
    return Ways(decoder, base, source, at, rows, source_rows, start)


def _filled(
    ways: Ways, senders: Sequence[Sender], receivers: Sequence[Receiver], method: Callable[..., Found], most: int
) -> Float[np.ndarray, "example sender receiver"]:
    """Every path's effect, some paths at a time; NaN where the sender does not stand before the receiver."""
    places = [{part: place for place, part in enumerate(parts)} for parts in (senders, receivers)]
    values = np.full((len(ways.base.tokens), len(senders), len(receivers)), np.nan)
    if not ways.rows:  # the runs are the same wherever a path passes
        before = np.array([[sender.layer < receiver.layer for receiver in receivers] for sender in senders])
        values[:, before] = 0.0
        return values
    for some, heads in _some_at_a_time(senders, receivers, most):
        paths, effects = method(some, heads)
        at = [[place[part] for part in parts] for place, parts in zip(places, zip(*paths, strict=True), strict=True)]
        values[:, *at] = effects.double().cpu().numpy()
    return values


def _some_at_a_time(
    senders: Sequence[Sender], receivers: Sequence[Receiver], most: int
) -> Iterator[tuple[Sequence[Sender], ByLayer]]:
    """Senders and receivers, by layer, so many that their paths are no more than `most`, or one of each."""
    each = min(len(receivers), max(1, most))
    for first in range(0, len(receivers), each):
        heads: ByLayer = {}
        for receiver in receivers[first : first + each]:
            heads.setdefault(receiver.layer, []).append(receiver.head)
        before = [sender for sender in senders if sender.layer < max(heads)]
        size = max(1, most // each)
        for at in range(0, len(before), size):
            yield before[at : at + size], heads
