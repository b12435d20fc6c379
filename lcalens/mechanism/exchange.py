"""Several heads exchanged at once: in the hijacked run their patterns, their values, or both are made the clean run's.

Only at the last position, and only between runs of equal length. Both exchanged are the clean run's z: what `patch`
does for one head at a time, here for sets of heads together.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import provenance_of
from lcalens.core.results import Result
from lcalens.core.stamp import holds_steady
from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import Trace, run, trace_both
from lcalens.engine.metrics import Asked, Metric, ends_of, of_variants
from lcalens.mechanism.arguments import (
    Head,
    Heads,
    check_contrast,
    check_equal_lengths,
    check_metric,
    read_head_sets,
    read_layers,
)
from lcalens.mechanism.contrast.contrast import Bucket, Contrast
from lcalens.mechanism.summary import contrast_record, metric_name, patching_result

TWINS = ("pattern", "values", "both")
_TOKENS = 4096  # run at once, clean and hijacked together


@holds_steady
def exchange(
    model: Any,
    contrast: Contrast,
    sets: Iterable[Heads],
    *,
    metric: Metric = "logit-difference",
    progress: bool | ProgressCallback = True,
) -> Result:
    """Put the clean run's pattern, values or both of several heads, together, into the hijacked run's last position.

    Both together are the clean run's z, so that the twin `both` of one head is what `patch` measures at the site `z`.

    Args:
        model: A TransformerBridge, of a toy or a real model.
        contrast: Clean and hijacked runs of equal length.
        sets: Sets of heads as (layer, head); each is exchanged by itself, its heads together.
        metric: As for `patch`, but for `whole-answer`: a name, or a function of (logits of the last position, index of
            the example), row by row.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes example, set (numbered as given) and twin (`pattern`, `values`, `both`), with `value`,
        the metric (a logit difference is before any soft cap), and `recovery`, 0 where it is the hijacked run's and
        1 where it is the clean run's. `provenance["sets"]` lists each set's heads.

    Raises:
        LcalensError: A model that cannot be read, runs of different lengths, or no such head.

    Example:
        >>> found = exchange(model, contrast, [[(3, 1), (3, 2)], [(4, 0)]])
        >>> found.summary  # what the two sets' patterns, values and both recover
    """
    check_contrast(model, contrast)
    check_equal_lengths("exchange", contrast)
    metric = check_metric(metric, "exchange", but=("whole-answer",))
    decoder = read_layers(model, "exchange", contrast)
    chosen = read_head_sets("sets", sets, len(decoder.layers), decoder.layers[0].heads)
    ends = np.zeros((len(contrast), 2))
    values = np.zeros((len(contrast), len(chosen), len(TWINS)))
    done = 0
    with progress_callback(progress, unit="examples") as report:
        for bucket in batches(contrast, decoder):
            rows = bucket.indices.cpu().numpy()
            metrics = exchange_bucket(decoder, bucket, chosen, metric)
            ends[rows], values[rows] = (numbers.double().cpu().numpy() for numbers in metrics)
            done += len(rows)
            report(done, len(contrast), "exchange")
    return patching_result(
        contrast,
        values,
        ends,
        {"set": tuple(range(len(chosen))), "twin": TWINS},
        kind="exchange",
        model=model,
        provenance=provenance_of(
            model,
            path="layer by layer",
            settings={
                "sets": [[list(head) for head in heads] for heads in chosen],
                "metric": metric_name(metric),
            }
            | contrast_record(contrast, metric),
        ),
    )


def batches(contrast: Contrast, decoder: Decoder) -> Iterator[Bucket]:
    """The contrast's examples, some thousand tokens at a time, on the model's device.

    Args:
        contrast: Clean and hijacked runs.
        decoder: The model's.
    """
    device = decoder.layers[0].device
    for bucket in contrast.buckets():
        size = max(1, _TOKENS // (bucket.clean.shape[1] + bucket.hijacked.shape[1]))
        for first in range(0, len(bucket.indices), size):
            yield Bucket(*(tensor[first : first + size].to(device) for tensor in bucket))


@torch.no_grad()
def exchange_bucket(
    decoder: Decoder, bucket: Bucket, sets: Sequence[tuple[Head, ...]], metric: Metric = "logit-difference"
) -> tuple[Float[Tensor, "batch run"], Float[Tensor, "batch set twin"]]:
    """The metric of both runs, clean first, and of the hijacked one run again from the heads' first layer on, by twin.

    Nothing before the last position changes, so in a causal model that position is all that runs; its keys and values
    are its own, all others the hijacked run's.

    Args:
        decoder: The model's.
        bucket: Examples of one length.
        sets: Sets of heads, each exchanged by itself.
        metric: What is read of every run.
    """
    source, base = trace_both(decoder, bucket.clean, bucket.hijacked, keep=("pattern",))
    start = bucket.hijacked.shape[1] - 1 if decoder.causal else 0
    lowest = min(layer for heads in sets for layer, _ in heads)
    edit = _Twins(decoder, source, sets)
    stream = base.resid[lowest][:, None, start:].expand(-1, len(sets) * len(TWINS), -1, -1)
    patched = run(decoder, stream, first=lowest, start=start, before=base, edit=edit)[:, :, -1]
    asked = Asked(*(tensor.to(decoder.unembed.device) for tensor in (bucket.true, bucket.false, bucket.indices)))
    ends, asked = ends_of(metric, decoder, [run.final[:, -1] for run in (source, base)], asked)
    patched = of_variants(metric, decoder, patched, asked)
    return ends, rearrange(patched, "batch (set twin) -> batch set twin", twin=len(TWINS))


@dataclass(frozen=True, eq=False)
class _Twins:
    """The edit that exchanges: variants are sets by twins, and a twin has the source's pattern, values or both.

    Attributes:
        decoder: The model.
        source: The run whose patterns and values are put in, with `pattern` kept.
        sets: Sets of heads, each exchanged by itself.
        last: Where the patterns of the layer that runs stand until its values are averaged.
    """

    decoder: Decoder
    source: Trace
    sets: Sequence[tuple[Head, ...]]
    last: list[Tensor] = field(default_factory=list)

    def __call__(self, site: str, index: int, value: Tensor) -> Tensor:
        swapped = [(at, head) for at, heads in enumerate(self.sets) for layer, head in heads if layer == index]
        if not swapped or site not in ("pattern", "z"):
            return value
        layer = self.decoder.layers[index]
        by_set = rearrange(value.clone(), "batch (set twin) ... -> batch set twin ...", twin=len(TWINS))
        pattern, values, both = (TWINS.index(twin) for twin in TWINS)
        if site == "pattern":
            rows = self.source.kept["pattern"][index][:, :, -1]  # (batch, head, key)
            for at, head in swapped:
                by_set[:, at, [pattern, both], head, -1] = rows[:, None, head]
            self.last[:] = [by_set]
        else:
            (looked,) = self.last
            for at, head in swapped:
                source = self.source.values[index][:, head * layer.kv_heads // layer.heads]  # (batch, position, width)
                by_set[:, at, [values, both], -1, head] = looked[:, at, [values, both], head, -1] @ source
        return rearrange(by_set, "batch set twin ... -> batch (set twin) ...")
