"""A decoder run with its activations kept and, if asked, edited; and its variants run on from the layer they differ at.

A patch at positions from p on changes nothing before p: keys and values of the earlier positions are those of the base
run. So a patched variant is a suffix of the residual stream that joins one growing batch at its own layer.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcalens.engine.decoder import Decoder, Layer

Edit = Callable[[str, int, Tensor], Tensor]
Join = Callable[[str, int], Tensor | None]


@dataclass(frozen=True, eq=False)
class Trace:
    """What was kept of one run.

    Attributes:
        tokens: What was run.
        resid: The residual stream before every layer, and after the last.
        keys: As attention compares them, for every layer; `values` beside them.
        values: What attention averages.
        kept: For each site asked for, its activation in every layer: `q`, `k`, `v` and `head` (batch, position, head,
            width); `attn_scores` and `pattern` (batch, head, query, key); `attn_out` and `mlp_out`, as they are added
            to the residual stream, and `attn_raw`, the sum over heads before Gemma's norm: (batch, position, d).
    """

    tokens: Int[Tensor, "batch position"]
    resid: list[Float[Tensor, "batch position d"]] = field(default_factory=list)
    keys: list[Float[Tensor, "batch head position width"]] = field(default_factory=list)
    values: list[Float[Tensor, "batch head position width"]] = field(default_factory=list)
    kept: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def final(self) -> Float[Tensor, "batch position d"]:
        """The residual stream after the last layer."""
        return self.resid[-1]


def trace(
    decoder: Decoder,
    tokens: Int[Tensor, "batch position"],
    *,
    keep: Collection[str],
    edit: Edit | None = None,
    first: int = 0,
    resid: Float[Tensor, "batch position d"] | None = None,
) -> Trace:
    """Run the decoder and keep activations.

    Args:
        decoder: The model.
        tokens: Of one length, without padding.
        keep: Sites whose activations are kept; the residual stream always is.
        edit: Called with each site's name, layer and activation; what it returns is used instead.
        first: The layer to start before.
        resid: The residual stream there; the embedding by default.
    """
    found = Trace(tokens, kept={name: [] for name in keep})

    def at(site: str, index: int, value: Tensor) -> Tensor:
        value = value if edit is None else edit(site, index, value)
        if site in found.kept:
            found.kept[site].append(value)
        return value

    stream = decoder.embed(tokens) if resid is None else resid
    for index, layer in enumerate(decoder.layers):
        if index < first:
            continue
        stream = at("resid_pre", index, stream)
        found.resid.append(stream)
        normed = layer.norm(stream)
        q, k, v = (at(name, index, layer.split(name, normed)) for name in "qkv")
        turned = decoder.turn(layer, "q", q, 0)
        keys = decoder.turn(layer, "k", k, 0).transpose(1, 2)  # (batch, head, position, width)
        values = v.transpose(1, 2)
        found.keys.append(keys)
        found.values.append(values)
        scores = compare(decoder, layer, turned[:, None], keys, 0)[:, 0]  # (batch, head, query, key)
        pattern = at("pattern", index, at("attn_scores", index, scores).softmax(-1))
        z = at("head", index, average(layer, pattern[:, None], values)[:, 0])
        raw = at("attn_raw", index, write(layer, z))
        added = at("attn_out", index, layer.after_attention(raw))
        middle = stream + added if decoder.residual else added
        stream = at("resid_post", index, middle + at("mlp_out", index, layer.mlp(middle)))
    found.resid.append(stream)
    return found


def compare(
    decoder: Decoder,
    layer: Layer,
    queries: Float[Tensor, "batch variant position head width"],
    keys: Float[Tensor, "batch kv before width"],
    start: int,
    own: Float[Tensor, "batch variant near kv width"] | None = None,
) -> Float[Tensor, "batch variant head position key"]:
    """Attention scores before the softmax; -inf where a query may not look.

    Args:
        decoder: The model.
        layer: Whose attention.
        queries: Turned queries of positions from `start` on.
        keys: Turned keys of positions from 0 on, which all variants share.
        start: The queries' first position.
        own: Turned keys of the variants themselves, from position `start` on; shared ones then end before it.
    """
    batch, variants, length, heads = queries.shape[:4]
    groups = layer.kv_heads, heads // layer.kv_heads
    grouped = queries.unflatten(3, groups).permute(0, 3, 1, 4, 2, 5)  # (batch, kv, variant, group, position, width)
    shared = grouped.flatten(2, 4) @ keys.mT
    scores = shared.view(batch, groups[0], variants, groups[1], length, -1)
    if own is not None:
        near = own.permute(0, 3, 1, 2, 4)  # (batch, kv, variant, key, width)
        mine = (grouped.flatten(3, 4) @ near.mT).view(batch, groups[0], variants, groups[1], length, -1)
        scores = torch.cat([scores, mine], -1)
    scores = scores.transpose(1, 2).flatten(2, 3) * layer.scale  # (batch, variant, head, position, key)
    if layer.softcap is not None:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    if decoder.causal:
        scores = scores.masked_fill(~_may_look(layer, start, length, scores.shape[-1], scores.device), -math.inf)
    return scores


def _may_look(layer: Layer, start: int, length: int, keys: int, device: torch.device) -> Bool[Tensor, "position key"]:
    back = torch.arange(start, start + length, device=device)[:, None] - torch.arange(keys, device=device)
    return (back >= 0) & (back < (layer.window or keys + length))


def average(
    layer: Layer,
    pattern: Float[Tensor, "batch variant head position key"],
    values: Float[Tensor, "batch kv before width"],
    own: Float[Tensor, "batch variant near kv width"] | None = None,
) -> Float[Tensor, "batch variant position head width"]:
    """What each head reads: z.

    Args:
        layer: Whose attention.
        pattern: Where it looks.
        values: Of positions from 0 on, which all variants share.
        own: The variants' own values, which follow the shared ones.
    """
    grouped = pattern.unflatten(2, (layer.kv_heads, -1)).transpose(1, 2)  # (batch, kv, variant, group, position, key)
    before = values.shape[2]
    z = grouped[..., :before].flatten(2, 4) @ values
    z = z.view(*grouped.shape[:5], values.shape[3])
    if own is not None:
        near = own.permute(0, 3, 1, 2, 4)  # (batch, kv, variant, key, width)
        z = z + (grouped[..., before:].flatten(3, 4) @ near).view(z.shape)
    return z.permute(0, 2, 4, 1, 3, 5).flatten(3, 4)


def write(layer: Layer, z: Float[Tensor, "*batch position head width"]) -> Float[Tensor, "*batch position d"]:
    """What the heads write together, before any norm that follows.

    Args:
        layer: Whose heads.
        z: What they read.
    """
    written = z.flatten(-2) @ layer.out.flatten(0, 1)
    return written if layer.out_bias is None else written + layer.out_bias


def run_on(
    decoder: Decoder, base: Trace, start: int, join: Join, *, reads: int = 1
) -> Float[Tensor, "batch variant read d"]:
    """Run variants of the base run to the end, each from the layer it differs at.

    Args:
        decoder: The model.
        base: The base run: keys and values of the positions before `start` are taken from it.
        start: The first position that differs; 0 for a model that is not causal.
        join: Called with `pre` (before the layer), `mid` (after its attention) and, for one layer past the last, `pre`
            again: the residual streams of the variants that join there, (batch, variant, position, d) of the positions
            from `start` on, or None.
        reads: How many of the last positions to return.

    Returns:
        The residual streams after the last layer, variants in the order in which they joined.
    """
    alive: Tensor | None = None
    for index, layer in enumerate(decoder.layers):
        alive = _together(alive, join("pre", index))
        middle = None
        # Of the last layer nothing is needed but the positions that are read.
        kept = slice(-reads, None) if index + 1 == len(decoder.layers) else slice(None)
        if alive is not None:
            middle = _attend(decoder, layer, base, index, alive, start, kept)
        joined = join("mid", index)
        middle = _together(middle, None if joined is None else joined[:, :, kept])
        alive = None if middle is None else middle + layer.mlp(middle)
    joined = join("pre", len(decoder.layers))
    alive = _together(alive, None if joined is None else joined[:, :, -reads:])
    assert alive is not None, "no variant joined"
    return alive


def _attend(
    decoder: Decoder, layer: Layer, base: Trace, index: int, alive: Tensor, start: int, kept: slice
) -> Float[Tensor, "batch variant position d"]:
    normed = layer.norm(alive)
    first = start + alive.shape[2] - alive[:, :, kept].shape[2]
    queries = decoder.turn(layer, "q", layer.split("q", normed[:, :, kept]), first)
    own = decoder.turn(layer, "k", layer.split("k", normed), start)
    values = layer.split("v", normed)
    before = base.keys[index][:, :, :start], base.values[index][:, :, :start]
    pattern = compare(decoder, layer, queries, before[0], first, own).softmax(-1)
    added = layer.after_attention(write(layer, average(layer, pattern, before[1], values)))
    return alive[:, :, kept] + added if decoder.residual else added


def _together(alive: Tensor | None, joining: Tensor | None) -> Tensor | None:
    if alive is None or joining is None:
        return joining if alive is None else alive
    return torch.cat([alive, joining], 1)
