"""Attention, piece by piece: rotate, compare, look, average, write. For a run and for many variants of one alike.

Variants are suffixes of the base run's positions. The keys and values of earlier positions are the base run's, shared
by all variants; those from the first position that differs on are each variant's own.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from lcalens.engine.decoder import Decoder, Layer


def turn(
    decoder: Decoder, layer: Layer, name: str, heads: Float[Tensor, "*batch position head width"], start: int
) -> Float[Tensor, "*batch position head width"]:
    """Queries or keys as attention compares them: clipped, normalised, and rotated by their positions, in its order.

    Args:
        decoder: The model.
        layer: Whose.
        name: `q` or `k`.
        heads: What `Layer.split` gave.
        start: The first of their positions.
    """
    for step in layer.order:
        heads = _rotated(decoder, layer, heads, start) if step == "rotate" else layer.take(step, name, heads)
    return heads


def _rotated(
    decoder: Decoder, layer: Layer, heads: Float[Tensor, "*batch position head width"], start: int
) -> Float[Tensor, "*batch position head width"]:
    if layer.rotary is None:
        return heads
    length = heads.shape[-3]
    cos, sin = decoder.rotations(layer.rotary, torch.arange(start, start + length, device=heads.device))
    cos, sin = cos[:, None], sin[:, None]  # (position, 1, rotated width): alike for every head
    rotated, kept = heads.split([cos.shape[-1], heads.shape[-1] - cos.shape[-1]], -1)
    if layer.pairing == "half":
        first, second = rotated.chunk(2, -1)
        crossed = torch.cat([-second, first], -1)
    else:
        pairs = rearrange(rotated, "... (pair two) -> ... pair two", two=2)
        crossed = rearrange(torch.stack([-pairs[..., 1], pairs[..., 0]], -1), "... pair two -> ... (pair two)")
    turned = rotated * cos + crossed * sin
    return torch.cat([turned, kept], -1).to(heads.dtype) if kept.shape[-1] else turned.to(heads.dtype)


def compare(
    decoder: Decoder,
    layer: Layer,
    queries: Float[Tensor, "batch variant position head width"],
    keys: Float[Tensor, "batch kv before width"] | None,
    start: int,
    near_keys: Float[Tensor, "batch variant near kv width"] | None = None,
) -> Float[Tensor, "batch variant head position key"]:
    """Attention scores before the softmax, in float32 at least; -inf where a query may not look.

    Args:
        decoder: The model.
        layer: Whose attention.
        queries: Turned queries of positions from `start` on.
        keys: Turned keys of positions from 0 on, which all variants share; None where they share none.
        start: The queries' first position.
        near_keys: Turned keys of the variants themselves, which follow the shared ones.
    """
    variants, length = queries.shape[1:3]
    grouped = rearrange(queries, "batch variant position (kv group) width -> batch kv variant (group position) width",
                        kv=layer.kv_heads)  # fmt: skip
    blocks = []
    if keys is not None:
        rows = rearrange(grouped, "batch kv variant row width -> batch kv (variant row) width")
        blocks.append(rearrange(rows @ keys.mT, "batch kv (variant row) key -> batch kv variant row key",
                               variant=variants))  # fmt: skip
    if near_keys is not None:
        blocks.append(grouped @ rearrange(near_keys, "batch variant near kv width -> batch kv variant width near"))
    scores = torch.cat(blocks, -1) if len(blocks) > 1 else blocks[0]
    scores = rearrange(scores, "batch kv variant (group position) key -> batch variant (kv group) position key",
                       position=length)  # fmt: skip
    scores = (scores if scores.dtype == torch.float64 else scores.float()) * layer.scale
    if layer.softcap is not None:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    if decoder.key_bias is not None:
        bias = decoder.key_bias(scores.shape[-1]).to(scores)
        scores = scores + bias[:, None] * layer.bias_scale
    if decoder.causal:
        if length == 1 and layer.window is None:
            return scores  # the last position of all sees everything
        scores = scores.masked_fill(~_may_look(layer, start, length, scores.shape[-1], scores.device), -math.inf)
    return scores


def _may_look(layer: Layer, start: int, length: int, keys: int, device: torch.device) -> Bool[Tensor, "position key"]:
    back = torch.arange(start, start + length, device=device)[:, None] - torch.arange(keys, device=device)
    return (back >= 0) & (back < (layer.window or keys + length))


def look(
    layer: Layer, scores: Float[Tensor, "*batch head position key"], dtype: torch.dtype
) -> Float[Tensor, "*batch head position key"]:
    """Where each head looks: the softmax of its scores, in float32 at least, rounded to the model's type as it does.

    Args:
        layer: Whose attention; its sinks take part in the softmax.
        scores: From `compare`.
        dtype: The model's.
    """
    if layer.sinks is None:
        return scores.softmax(-1).to(dtype)
    sinks = layer.sinks.to(scores)[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1].to(dtype)


def average(
    layer: Layer,
    pattern: Float[Tensor, "batch variant head position key"],
    values: Float[Tensor, "batch kv before width"] | None,
    near_values: Float[Tensor, "batch variant near kv width"] | None = None,
) -> Float[Tensor, "batch variant position head width"]:
    """What each head reads: z.

    Args:
        layer: Whose attention.
        pattern: Where it looks.
        values: Of positions from 0 on, which all variants share; None where they share none.
        near_values: The variants' own values, which follow the shared ones.
    """
    variants, length = pattern.shape[1], pattern.shape[3]
    before = 0 if values is None else values.shape[2]
    grouped = rearrange(pattern, "batch variant (kv group) position key -> batch kv variant (group position) key",
                        kv=layer.kv_heads)  # fmt: skip
    reads = []
    if values is not None:
        rows = rearrange(grouped[..., :before], "batch kv variant row key -> batch kv (variant row) key")
        reads.append(rearrange(rows @ values, "batch kv (variant row) width -> batch kv variant row width",
                               variant=variants))  # fmt: skip
    if near_values is not None:
        reads.append(
            grouped[..., before:] @ rearrange(near_values, "batch variant near kv width -> batch kv variant near width")
        )
    z = reads[0] + reads[1] if len(reads) > 1 else reads[0]
    return rearrange(z, "batch kv variant (group position) width -> batch variant position (kv group) width",
                     position=length)  # fmt: skip


def write(layer: Layer, z: Float[Tensor, "*batch position head width"]) -> Float[Tensor, "*batch position d"]:
    """What the heads write together, before any norm that follows.

    Args:
        layer: Whose heads.
        z: What they read.
    """
    written = rearrange(z, "... head width -> ... (head width)") @ rearrange(
        layer.out, "head width d -> (head width) d"
    )
    return written if layer.out_bias is None else written + layer.out_bias
