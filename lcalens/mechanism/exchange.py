"""Several heads exchanged at once: in the hijacked run their patterns, their values, or both are made the clean run's.

Only at the last position, and only between runs of equal length. Both exchanged are the clean run's z: what `patch`
does for one head at a time, here for sets of heads together.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import model_info
from lcalens.core.results import Result
from lcalens.core.stamp import holds_steady
from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import average, compare, trace, write
from lcalens.mechanism.arguments import (
    Head,
    Heads,
    check_contrast,
    check_equal_lengths,
    read_head_sets,
    read_layers,
)
from lcalens.mechanism.contrast.contrast import Bucket, Contrast
from lcalens.mechanism.summary import patching_result

TWINS = ("pattern", "values", "both")
_TOKENS = 4096  # run at once, clean and hijacked together


@holds_steady
def exchange(
    model: Any, contrast: Contrast, sets: Iterable[Heads], *, progress: bool | ProgressCallback = True
) -> Result:
    """Put the clean run's pattern, values or both of several heads, together, into the hijacked run's last position.

    Both together are the clean run's z, so that the twin `both` of one head is what `patch` measures at the site `z`.

    Args:
        model: A TransformerBridge of a family that lcalens reads layer by layer.
        contrast: Clean and hijacked runs of equal length.
        sets: Sets of heads as (layer, head); each is exchanged by itself, its heads together.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes example, set (numbered as given) and twin (`pattern`, `values`, `both`), with `value`,
        the metric logit(false) - logit(true) before any soft cap, and `recovery`, 0 where it is the hijacked run's and
        1 where it is the clean run's. `provenance["sets"]` lists each set's heads.

    Raises:
        LcalensError: A model that cannot be read, runs of different lengths, or no such head.

    Example:
        >>> found = exchange(model, contrast, [[(3, 1), (3, 2)], [(4, 0)]])  # doctest: +SKIP
        >>> found.summary  # what the two sets' patterns, values and both recover  # doctest: +SKIP
    """
    check_contrast(model, contrast)
    check_equal_lengths("exchange", contrast)
    decoder = read_layers(model, "exchange")
    chosen = read_head_sets("sets", sets, len(decoder.layers), decoder.layers[0].heads)
    ends = np.zeros((len(contrast), 2))
    values = np.zeros((len(contrast), len(chosen), len(TWINS)))
    done = 0
    with progress_callback(progress, unit="examples") as report:
        for bucket in batches(contrast, decoder):
            rows = bucket.indices.cpu().numpy()
            clean, hijacked, patched = (part.cpu().numpy() for part in exchange_bucket(decoder, bucket, chosen))
            ends[rows, 0], ends[rows, 1], values[rows] = clean, hijacked, patched
            done += len(rows)
            report(done, len(contrast), "exchange")
    return patching_result(
        contrast,
        values,
        ends,
        {"set": tuple(range(len(chosen))), "twin": TWINS},
        kind="exchange",
        model=model_info(model).to_dict(),
        settings={"sets": [[list(head) for head in one] for one in chosen], "metric": "logit-difference"},
    )


def batches(contrast: Contrast, decoder: Decoder) -> Iterator[Bucket]:
    """The contrast's examples, some thousand tokens at a time, on the model's device.

    Args:
        contrast: Clean and hijacked runs.
        decoder: The model's.
    """
    device = decoder.unembed.device
    for bucket in contrast.buckets():
        size = max(1, _TOKENS // (bucket.clean.shape[1] + bucket.hijacked.shape[1]))
        for first in range(0, len(bucket.indices), size):
            yield Bucket(*(tensor[first : first + size].to(device) for tensor in bucket))


@torch.no_grad()
def exchange_bucket(
    decoder: Decoder, bucket: Bucket, sets: Sequence[tuple[Head, ...]]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"], Float[Tensor, "batch set twin"]]:
    """The metric of both runs, and of the hijacked one run again from the first of the heads' layers on, for each twin.

    Nothing before the last position changes, so in a causal model that position is all that runs; its keys and values
    are its own, all others the hijacked run's.

    Args:
        decoder: The model's.
        bucket: Examples of one length.
        sets: Sets of heads, each exchanged by itself.
    """
    rows: list[Tensor] = []

    def see(site: str, index: int, value: Tensor) -> Tensor:
        if site == "pattern":
            rows.append(value[:, :, -1].clone())
        return value

    source = trace(decoder, bucket.clean, keep=(), edit=see)
    base = trace(decoder, bucket.hijacked, keep=())
    start = bucket.hijacked.shape[1] - 1 if decoder.causal else 0
    lowest = min(layer for heads in sets for layer, _ in heads)
    # Variant 3 i + j is set i's twin j: pattern, values, both.
    alive = base.resid[lowest][:, None, start:].expand(-1, len(sets) * len(TWINS), -1, -1)
    for index, layer in enumerate(decoder.layers[lowest:], lowest):
        normed = layer.norm(alive)
        queries, own = (decoder.turn(layer, name, layer.split(name, normed), start) for name in "qk")
        keys, values = (kept[index][:, :, :start] for kept in (base.keys, base.values))
        pattern = compare(decoder, layer, queries, keys, start, own).softmax(-1)
        here = [(3 * i, head) for i, heads in enumerate(sets) for at, head in heads if at == index]
        for first, head in here:
            pattern[:, [first, first + 2], head, -1] = rows[index][:, None, head]
        z = average(layer, pattern, values, layer.split("v", normed))
        for first, head in here:
            clean = source.values[index][:, head * layer.kv_heads // layer.heads]  # (batch, position, width)
            z[:, first + 1 : first + 3, -1, head] = pattern[:, first + 1 : first + 3, head, -1] @ clean
        added = layer.after_attention(write(layer, z))
        middle = alive + added if decoder.residual else added
        alive = middle + layer.mlp(middle)
    clean, hijacked = (_metric(decoder, bucket, run.final[:, -1:]).squeeze(1) for run in (source, base))
    return clean, hijacked, _metric(decoder, bucket, alive[:, :, -1]).unflatten(1, (len(sets), len(TWINS)))


def _metric(
    decoder: Decoder, bucket: Bucket, resid: Float[Tensor, "batch variant d"]
) -> Float[Tensor, "batch variant"]:
    difference = decoder.unembed[bucket.false].double() - decoder.unembed[bucket.true].double()
    found = torch.einsum("bvd,bd->bv", decoder.final_norm(resid).double(), difference)
    bias = decoder.unembed_bias
    return found if bias is None else found + (bias[bucket.false] - bias[bucket.true]).double()[:, None]
