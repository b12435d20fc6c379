"""The one forward. Every measurement is this loop over layers, begun at some layer and position, with edits and joins.

A patch at positions from p on changes nothing before p: keys and values of the earlier positions are those of the base
run. So a patched variant is a suffix of the residual stream that joins one growing batch at its own layer.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.engine.attention import average, compare, look, turn, write
from lcalens.engine.decoder import Decoder, Layer

Edit = Callable[[str, int, Tensor], Tensor]
Join = Callable[[str, int], Tensor | None]


@dataclass(frozen=True, eq=False)
class Trace:
    """What was kept of one run of whole contexts.

    Attributes:
        tokens: What was run.
        resid: The residual stream before every layer, and after the last.
        keys: As attention compares them, for every layer: (batch, kv, position, width), which may differ by layer.
        values: What attention averages, for every layer, of shapes as those of the keys.
        kept: For each site asked for, its activation in every layer: `q`, `k`, `v` and `z` (batch, position, head,
            width); `attn_scores` and `pattern` (batch, head, query, key); `attn_out` and `mlp_out`, as they are added
            to the residual stream, and `attn_raw`, the sum over heads before any norm: (batch, position, d).
    """

    tokens: Int[Tensor, "batch position"]
    resid: list[Float[Tensor, "batch position d"]] = field(default_factory=list)
    keys: list[Float[Tensor, "batch _ position _"]] = field(default_factory=list)
    values: list[Float[Tensor, "batch _ position _"]] = field(default_factory=list)
    kept: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def final(self) -> Float[Tensor, "batch position d"]:
        """The residual stream after the last layer."""
        return self.resid[-1]

    def rows(self, which: slice) -> "Trace":
        """The same of some of the examples.

        Args:
            which: Of the batch.
        """
        streams = [[value[which] for value in values] for values in (self.resid, self.keys, self.values)]
        kept = {name: [value[which] for value in values] for name, values in self.kept.items()}
        return Trace(self.tokens[which], resid=streams[0], keys=streams[1], values=streams[2], kept=kept)


def trace(
    decoder: Decoder,
    tokens: Int[Tensor, "batch position"],
    *,
    keep: Collection[str],
    edit: Edit | None = None,
    resid: Float[Tensor, "batch position d"] | None = None,
) -> Trace:
    """Run whole contexts and keep activations.

    Args:
        decoder: The model.
        tokens: Of one length, without padding.
        keep: Sites whose activations are kept; the residual stream, keys and values always are.
        edit: As for `run`; activations have an axis of one variant behind the batch's.
        resid: The residual stream before the first layer; the embedding by default.
    """
    kept = Trace(tokens, kept={name: [] for name in keep})
    stream = decoder.embed(tokens) if resid is None else resid
    run(decoder, stream[:, None], edit=edit, record=kept)
    return kept


def trace_both(
    decoder: Decoder,
    first: Int[Tensor, "batch position"],
    second: Int[Tensor, "batch length"],
    *,
    keep: Collection[str],
) -> tuple[Trace, Trace]:
    """Two runs of the same examples, together where their lengths allow it, which is faster.

    Args:
        decoder: The model.
        first: Of one length.
        second: Of one length, not necessarily the same.
        keep: As for `trace`.
    """
    if first.shape != second.shape:
        return trace(decoder, first, keep=keep), trace(decoder, second, keep=keep)
    both = trace(decoder, torch.cat([first, second]), keep=keep)
    return both.rows(slice(len(first))), both.rows(slice(len(first), None))


def run(
    decoder: Decoder,
    stream: Float[Tensor, "batch variant position d"] | None,
    *,
    first: int = 0,
    start: int = 0,
    before: Trace | None = None,
    edit: Edit | None = None,
    join: Join | None = None,
    reads: int | None = None,
    record: Trace | None = None,
) -> Float[Tensor, "batch variant read d"]:
    """Run variants of contexts from a layer and a position on.

    Args:
        decoder: The model.
        stream: The residual stream before the layer `first`, of the positions from `start` on; None where every variant
            joins later.
        first: The layer to begin with.
        start: The first position that may differ from `before`; 0 for a model that is not causal.
        before: The base run: keys and values of the positions before `start`, and the stream that joining variants of a
            parallel block share.
        edit: Called with each site's name, layer and activation; what it returns is used instead. The sites are
            `resid_pre`, `q`, `k`, `v`, `attn_scores`, `pattern`, `z`, `attn_raw`, `attn_out`, `mlp_out`, `resid_post`.
        join: Called with `pre` (before the layer), `mid` (after attention has been added) and, for one layer past the
            last, `pre` again: the residual streams of the variants that join there, or None.
        reads: How many of the last positions to return; all by default.
        record: Where a run of whole contexts, of one variant, is kept.

    Returns:
        The residual streams after the last layer, variants in the order in which they joined.
    """
    count = len(decoder.layers)
    for index in range(first, count):
        layer = decoder.layers[index]
        # Of the last layer nothing is needed but the positions that are read.
        tail = slice(None) if reads is None or index + 1 < count else slice(-reads, None)
        stream = _together(stream, join("pre", index) if join else None, layer)
        middle = written = None
        if stream is not None:
            stream = _at(edit, record, "resid_pre", index, stream)
            added = _attend(decoder, layer, index, stream, start, tail, before, edit, record)
            stream = stream[:, :, tail]
            middle = layer.close[0](stream + added) if decoder.residual else added
            if layer.parallel:
                written = layer.mlp(stream)
        joined = join("mid", index) if join else None
        if joined is not None:
            joined = joined[:, :, tail]
            middle = _together(middle, joined, layer)
            if layer.parallel:
                assert before is not None, "variants join a parallel block beside their base run"
                # They differ in attention alone, so their MLP reads what the base run's reads: one row serves all.
                shared = layer.mlp(before.resid[index][:, None, start:][:, :, tail])
                written = _together(written, shared.expand_as(joined), layer)
        if middle is None:
            continue
        written = _at(edit, record, "mlp_out", index, layer.mlp(middle) if written is None else written)
        stream = _at(edit, record, "resid_post", index, layer.close[1](middle + written))
    joined = join("pre", count) if join else None
    if joined is not None:
        stream = _together(stream, joined if reads is None else joined[:, :, -reads:], decoder.layers[-1])
    assert stream is not None, "no variant joined"
    if record is not None:
        record.resid.append(stream[:, 0])
    return stream


def _at(edit: Edit | None, record: Trace | None, site: str, index: int, value: Tensor) -> Tensor:
    """The activation of a site, edited where somebody edits it and kept where it is to be kept."""
    value = value if edit is None else edit(site, index, value)
    if record is not None:
        if site == "resid_pre":
            record.resid.append(value[:, 0])
        if site in record.kept:
            record.kept[site].append(value[:, 0])
    return value


def _attend(
    decoder: Decoder,
    layer: Layer,
    index: int,
    stream: Float[Tensor, "batch variant position d"],
    start: int,
    tail: slice,
    before: Trace | None,
    edit: Edit | None,
    record: Trace | None,
) -> Float[Tensor, "batch variant read d"]:
    """What attention adds to the residual stream, at the positions of the tail."""
    normed = layer.norm(stream)
    first = start + stream.shape[2] - stream[:, :, tail].shape[2]
    q = _at(edit, record, "q", index, layer.split("q", normed[:, :, tail]))
    k, v = (_at(edit, record, name, index, layer.split(name, normed)) for name in "kv")
    queries, keys = turn(decoder, layer, "q", q, first), turn(decoder, layer, "k", k, start)
    values = layer.averaged(v)
    if record is not None:
        record.keys.append(keys[:, 0].transpose(1, 2))
        record.values.append(values[:, 0].transpose(1, 2))
    old_keys = old_values = None
    if before is not None and start:
        old_keys, old_values = before.keys[index][:, :, :start], before.values[index][:, :, :start]
    scores = _at(edit, record, "attn_scores", index, compare(decoder, layer, queries, old_keys, first, keys))
    pattern = _at(edit, record, "pattern", index, look(layer, scores, q.dtype))
    z = _at(edit, record, "z", index, average(layer, pattern, old_values, values))
    raw = _at(edit, record, "attn_raw", index, write(layer, z))
    return _at(edit, record, "attn_out", index, layer.after_attention(raw))


def _together(alive: Tensor | None, joining: Tensor | None, layer: Layer) -> Tensor | None:
    """Variants that are running and variants that join them, where the layer's weights are."""
    streams = [stream.to(layer.device) for stream in (alive, joining) if stream is not None]
    return torch.cat(streams, 1) if len(streams) == 2 else next(iter(streams), None)
