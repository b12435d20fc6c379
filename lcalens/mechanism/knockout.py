"""Taking a sentence away where it is read: attention from chosen positions to a span is cut in chosen heads.

Patching needs a clean run whose positions align. Where what differs is a sentence that the clean run does not have,
this is the intervention that is defined: the hijacked run goes on as it was, but some heads no longer see the span.
"""

from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from lcalens.core.checks import check_bool, check_choice
from lcalens.core.errors import LcalensError
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import provenance_of
from lcalens.core.results import Result
from lcalens.core.stamp import holds_steady
from lcalens.engine.attention import average
from lcalens.engine.decoder import Decoder, Layer
from lcalens.engine.forward import Trace, run, trace_both
from lcalens.engine.metrics import Asked, Metric, ends_of, of_variants
from lcalens.engine.variants import written_by_heads
from lcalens.mechanism.arguments import (
    Heads,
    Positions,
    check_contrast,
    check_metric,
    read_heads,
    read_layers,
    read_positions,
)
from lcalens.mechanism.contrast.contrast import Bucket, Contrast
from lcalens.mechanism.contrast.inputs import place
from lcalens.mechanism.summary import contrast_record, metric_name, patching_result, plain_positions

_WHICH = ("all", "each")
_EXAMPLES = 16


@holds_steady
def knockout(
    model: Any,
    contrast: Contrast,
    *,
    span: str = "sentence",
    positions: Positions = "all",
    heads: str | Heads = "all",
    renormalise: bool = True,
    metric: Metric = "logit-difference",
    progress: bool | ProgressCallback = True,
) -> Result:
    """Cut attention from positions to a span of the hijacked run, and measure the metric.

    Args:
        model: A TransformerBridge, of a toy or a real model.
        contrast: Clean and hijacked runs, of any lengths: of the clean one only the metric is needed.
        span: The span that is no longer seen; positions inside it still see themselves and it.
        positions: The queries that no longer see it: `all`, `last`, a span's name, or indices of the hijacked tokens.
        heads: `all` heads at once; `each`, one at a time; or pairs (layer, head), at once.
        renormalise: Whether the attention that is left is made to sum to 1; if not, what was paid to the span is lost.
        metric: As for `patch`, but for `whole-answer`.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axis example (and layer and head, for `each`): `value`, and `recovery`, 0 where it is the
        hijacked run's and 1 where it is the clean run's.

    Raises:
        LcalensError: An argument that cannot be used, or a model that cannot be read.

    Example:
        >>> heads = leading(patch(model, contrast[::2]), 3)
        >>> knockout(model, contrast[1::2], span="word", heads=heads).wide()
    """
    check_contrast(model, contrast)
    metric = check_metric(metric, "knockout", but=("whole-answer",))
    check_bool("renormalise", renormalise)
    check_choice("span", span, contrast.spans)
    positions = read_positions(positions)
    decoder = read_layers(model, "knockout", contrast)
    chosen = _chosen(decoder, heads)
    shape = (len(decoder.layers), decoder.layers[0].heads) if chosen is None else ()
    values, ends = np.full((len(contrast), *shape), np.nan), np.full((len(contrast), 2), np.nan)
    done = 0
    with progress_callback(progress, unit="examples") as report:
        for bucket in contrast.buckets():
            for chosen_rows in torch.arange(len(bucket.indices)).split(_EXAMPLES):
                examples = Bucket(*(tensor[chosen_rows] for tensor in bucket))
                rows = examples.indices.numpy()
                cut = _cut(decoder, contrast, examples, span, positions, chosen, renormalise, metric)
                values[rows], ends[rows] = cut[0].reshape(len(rows), *shape), cut[1]
                done += len(rows)
                report(done, len(contrast), f"no attention to {span}")
    labels = {"layer": tuple(range(shape[0])), "head": tuple(range(shape[1]))} if shape else {}
    settings = {
        "span": span,
        "positions": plain_positions(positions),
        "heads": heads if isinstance(heads, str) else sorted(chosen or []),
        "renormalise": renormalise,
        "metric": metric_name(metric),
    }
    return patching_result(
        contrast,
        values,
        ends,
        labels,
        kind="knockout",
        model=model,
        provenance=provenance_of(model, path="layer by layer", settings=settings | contrast_record(contrast, metric)),
    )


def _chosen(decoder: Decoder, heads: Any) -> set[tuple[int, int]] | None:
    """The heads that are cut together; None for one at a time."""
    count, layers = decoder.layers[0].heads, len(decoder.layers)
    if isinstance(heads, str):
        if check_choice("heads", heads, _WHICH) == "each":
            return None
        return {(layer, head) for layer in range(layers) for head in range(count)}
    return set(read_heads("heads", heads, layers, count))


@torch.no_grad()
def _cut(
    decoder: Decoder,
    contrast: Contrast,
    bucket: Bucket,
    span: str,
    positions: Positions,
    chosen: set[tuple[int, int]] | None,
    renormalise: bool,
    metric: Metric,
) -> tuple[np.ndarray, np.ndarray]:
    device = decoder.layers[0].device
    hidden = _hidden(contrast, bucket, span, positions).to(device)
    clean, base = trace_both(
        decoder, bucket.clean.to(device), bucket.hijacked.to(device), keep=("pattern", "z", "attn_raw")
    )
    asked = Asked(*(tensor.to(decoder.unembed.device) for tensor in (bucket.true, bucket.false, bucket.indices)))
    ends, asked = ends_of(metric, decoder, [run.final[:, -1] for run in (clean, base)], asked)
    resid = (
        _one_by_one(decoder, base, hidden, renormalise)
        if chosen is None
        else _together(decoder, base, hidden, renormalise, chosen)
    )
    value = of_variants(metric, decoder, resid[:, :, -1], asked)
    return value.double().cpu().numpy(), ends.double().cpu().numpy()


def _together(
    decoder: Decoder,
    base: Trace,
    hidden: Bool[Tensor, "batch query key"],
    renormalise: bool,
    chosen: set[tuple[int, int]],
) -> Float[Tensor, "batch 1 1 d"]:
    def edit(site: str, index: int, value: Tensor) -> Tensor:
        cut = [head for layer, head in chosen if layer == index]
        if site != "pattern" or not cut:
            return value
        value = value.clone()
        value[:, 0, cut] = without(
            decoder.layers[index], value[:, 0, cut], hidden[:, -value.shape[-2] :].to(value.device), renormalise
        )
        return value

    return run(decoder, base.resid[0][:, None], edit=edit, reads=1)


def _one_by_one(
    decoder: Decoder, base: Trace, hidden: Bool[Tensor, "batch query key"], renormalise: bool
) -> Float[Tensor, "batch variant 1 d"]:
    start = int(hidden.any(0).any(-1).nonzero()[0]) if decoder.causal else 0

    def join(stage: str, index: int) -> Tensor | None:
        if stage != "mid":
            return None
        layer, looked = decoder.layers[index], base.kept["pattern"][index]
        pattern = without(layer, looked, hidden.to(looked.device), renormalise)[:, :, start:]
        z = average(layer, pattern[:, None], base.values[index])[:, 0]
        return written_by_heads(decoder, base, index, z - base.kept["z"][index][:, start:], start)

    return run(decoder, None, start=start, before=base, join=join, reads=1)


def without(
    layer: Layer,
    pattern: Float[Tensor, "batch head query key"],
    hidden: Bool[Tensor, "batch query key"],
    renormalise: bool,
) -> Float[Tensor, "batch head query key"]:
    """The pattern with nothing paid to what is hidden; a row that has nothing else left stays 0.

    Args:
        layer: Whose heads; its sinks keep their share.
        pattern: Where some of them look.
        hidden: Which keys each query no longer sees.
        renormalise: Whether what is left is made to sum to 1.
    """
    left = pattern.masked_fill(hidden[:, None], 0.0)
    if not renormalise:
        return left
    touched = rearrange(hidden.any(-1), "batch query -> batch 1 query 1")
    total = left.sum(-1, keepdim=True)
    if layer.sinks is not None:  # a sink stays in the softmax with the share that it had beside what is left
        total = total + (1 - pattern.sum(-1, keepdim=True)).clamp(min=0)
    return torch.where(touched & (total > 0), left / total.clamp(min=torch.finfo(left.dtype).tiny), left)


def _hidden(contrast: Contrast, bucket: Bucket, span: str, positions: Positions) -> Bool[Tensor, "batch query key"]:
    """Which keys each query no longer sees."""
    length = bucket.hijacked.shape[1]
    hidden = torch.zeros(len(bucket.indices), length, length, dtype=torch.bool)
    for row, index in enumerate(bucket.indices.tolist()):
        tokens, spans = contrast.hijacked[index], {name: rows[index] for name, rows in contrast.spans.items()}
        inside = sorted({at for first, last in spans[span] for at in range(first, last)})
        if not inside:
            raise LcalensError(f"span: example {index} has no span {span!r}; choose others, contrast[[...]].")
        (group,) = place(
            [*range(-length, 0)] if isinstance(positions, str) and positions == "each" else positions,
            spans,
            tokens,
            tokens,
            index,
        )
        queries = sorted({length + at for at in group} - set(inside))
        if not queries:
            raise LcalensError(f"positions: {positions!r:.60} lies within the span {span!r} in example {index}.")
        hidden[row][np.ix_(queries, inside)] = True
    return hidden
