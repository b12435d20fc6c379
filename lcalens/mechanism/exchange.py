"""Several heads exchanged at once: in the hijacked run their patterns, their values, or both are made the clean run's.

Only at the last position, and only between runs of equal length. Both exchanged are the clean run's z: what `patch`
does for one head at a time, here for sets of heads together.
"""

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.engine.decoder import Decoder, read_decoder
from lcalens.engine.forward import average, compare, trace, write
from lcalens.mechanism.contrast.contrast import Bucket, Contrast

TWINS = ("pattern", "values", "both")
_TOKENS = 4096  # run at once, clean and hijacked together
Head = tuple[int, int]


class Exchanged(NamedTuple):
    """The metric, logit(false) - logit(true) before any soft cap, of both runs and of the exchanged ones.

    Attributes:
        clean: The clean run's.
        hijacked: The hijacked run's.
        patched: With the pattern, the values, or both of each set's heads exchanged.
    """

    clean: Float[np.ndarray, " example"]
    hijacked: Float[np.ndarray, " example"]
    patched: Float[np.ndarray, "example set twin"]


def exchange(
    model: Any, contrast: Contrast, sets: Sequence[Sequence[Head]], *, progress: bool | ProgressCallback = True
) -> Exchanged:
    """Put the clean run's pattern, values or both of several heads, together, into the hijacked run's last position.

    Args:
        model: A TransformerBridge of a family that lcalens reads layer by layer.
        contrast: Clean and hijacked runs of equal length.
        sets: Sets of heads as (layer, head); each is exchanged by itself, its heads together.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Raises:
        LcalensError: A model that cannot be read, runs of different lengths, or no such head.
    """
    decoder = read_decoder(model)
    if isinstance(decoder, str):
        raise LcalensError(f"model: exchange needs one that lcalens can read layer by layer, and here {decoder}.")
    if not bool(contrast.aligned.all()):
        raise LcalensError("contrast: exchange needs runs of equal length; give a control of as many tokens.")
    chosen = [check_heads("sets", one, decoder) for one in sets]
    if not chosen or not all(chosen):
        raise LcalensError(f"sets: expected sets of heads, got {sets!r:.80}; give one head at least in each.")
    clean, hijacked = np.zeros((2, len(contrast)))
    patched = np.zeros((len(contrast), len(chosen), len(TWINS)))
    done = 0
    with progress_callback(progress, unit="examples") as report:
        for bucket in batches(contrast, decoder):
            rows = bucket.indices.cpu().numpy()
            for whole, part in zip((clean, hijacked, patched), exchange_bucket(decoder, bucket, chosen), strict=True):
                whole[rows] = part.cpu().numpy()
            done += len(rows)
            report(done, len(contrast), "exchange")
    return Exchanged(clean, hijacked, patched)


def check_heads(name: str, heads: Any, decoder: Decoder) -> tuple[Head, ...]:
    """The heads, each once and in order.

    Args:
        name: The argument's name, for the error.
        heads: Pairs (layer, head).
        decoder: The model's.

    Raises:
        LcalensError: What is given is not such pairs, or the model has no such head.
    """
    layers, count = len(decoder.layers), decoder.layers[0].heads
    fits = isinstance(heads, Sequence) and not isinstance(heads, str)
    found = [head for head in heads if _is_head(head, layers, count)] if fits else []
    if not fits or len(found) < len(heads):
        raise LcalensError(
            f"{name}: expected a number of heads or pairs (layer, head) below ({layers}, {count}), got {heads!r:.80}."
        )
    return tuple(sorted({(int(layer), int(head)) for layer, head in found}))


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


def _is_head(given: Any, layers: int, heads: int) -> bool:
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 2:
        return False
    sound = all(isinstance(at, Integral) and not isinstance(at, bool) for at in given)
    return sound and 0 <= int(given[0]) < layers and 0 <= int(given[1]) < heads
