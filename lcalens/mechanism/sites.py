"""The places in a model that can be patched, what they are called, and how a patched one differs from the base run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import Trace, average, compare, run_on

HEADS = frozenset({"head", "q", "pattern", "attn_scores"})  # a head each
SHARED = frozenset({"k", "v"})  # a key or value head each, which may serve several heads
NEEDS_ALIGNED = frozenset({"k", "v", "pattern", "attn_scores"})
ALIGNED_FROM_THE_END = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "q")
_KEPT = {"attn_scores": "pattern", "resid_pre": "", "resid_post": ""}


def head_labels(heads: int, kv_heads: int, site: str) -> tuple[Any, ...]:
    """Labels of a site's heads: numbers, or the query heads that a key or value head serves (`0-2`).

    Args:
        heads: Query heads of a layer.
        kv_heads: Its key and value heads.
        site: The site.
    """
    if site in HEADS or (site in SHARED and heads == kv_heads):
        return tuple(range(heads))
    size = heads // kv_heads
    return tuple(f"{first}-{first + size - 1}" for first in range(0, heads, size))


def kept_for(site: str) -> set[str]:
    """What a trace must keep so that the site can be patched.

    Args:
        site: The site.
    """
    own = _KEPT.get(site, site)
    heads = {"head", "attn_raw", "attn_out"} if site in HEADS | SHARED else set()
    return ({own} if own else set()) | heads | ({"q", "k"} if site in {"q", "k", "v"} else set())


@dataclass(frozen=True, eq=False)
class Patch:
    """One site at some positions of a bucket: where base and source agree, and what the variants join with.

    Attributes:
        decoder: The model.
        base: The run that is patched.
        source: The run the activations come from.
        site: What is patched.
        base_rows: The patched positions in the base run.
        source_rows: The same in the source run.
        start: The first position that may differ.
        layers: The layers whose variants are wanted.
    """

    decoder: Decoder
    base: Trace
    source: Trace
    site: str
    base_rows: list[int]
    source_rows: list[int]
    start: int
    layers: range

    def join(self, stage: str, index: int) -> Float[Tensor, "batch variant position d"] | None:
        """What joins before a layer, or after its attention (see `run_on`).

        Args:
            stage: `pre` or `mid`.
            index: The layer.
        """
        if stage == "mid":
            if index not in self.layers or self.site in ("resid_pre", "resid_post", "mlp_out"):
                return None
            return self._attention_differs(index)
        if self.site == "resid_pre":
            return self._replaced(index) if index in self.layers else None
        if self.site not in ("resid_post", "mlp_out") or index - 1 not in self.layers:
            return None
        if self.site == "resid_post":
            return self._replaced(index)
        return (self.base.resid[index][:, self.start :] + self._difference("mlp_out", index - 1))[:, None]

    def _replaced(self, index: int) -> Float[Tensor, "batch 1 position d"]:
        stream = self.base.resid[index][:, self.start :].clone()
        stream[:, self._local] = self.source.resid[index][:, self.source_rows]
        return stream[:, None]

    @property
    def _local(self) -> list[int]:
        return [row - self.start for row in self.base_rows]

    def _difference(self, site: str, index: int) -> Float[Tensor, "batch position *rest"]:
        """Source less base at the patched positions, and 0 at the others from `start` on."""
        base, source = self.base.kept[site][index], self.source.kept[site][index]
        found = torch.zeros_like(base[:, self.start :])
        found[:, self._local] = source[:, self.source_rows] - base[:, self.base_rows]
        return found

    def _attention_differs(self, index: int) -> Float[Tensor, "batch variant position d"]:
        stream = self.base.resid[index][:, None, self.start :] if self.decoder.residual else 0.0
        if self.site == "attn_out":
            base = self.base.kept["attn_out"][index][:, self.start :]
            return stream + (base + self._difference("attn_out", index))[:, None]
        layer = self.decoder.layers[index]
        difference = self._difference("head", index) if self.site == "head" else self._read_anew(index)
        if self.site in SHARED:
            grouped = difference.unflatten(2, (layer.kv_heads, -1))
            written = torch.einsum("bskgv,kgvd->bksd", grouped, layer.out.unflatten(0, (layer.kv_heads, -1)))
            raw = self.base.kept["attn_raw"][index][:, None, self.start :]
            return stream + layer.after_attention(raw + written)
        return written_by_heads(self.decoder, self.base, index, difference, self.start)

    def _read_anew(self, index: int) -> Float[Tensor, "batch position head width"]:
        """What every head reads with its own q, k, v or pattern patched, less what it read."""
        layer, base, source = self.decoder.layers[index], self.base, self.source
        before = base.kept["head"][index][:, self.start :]
        if self.site in ("pattern", "attn_scores"):
            found, (rows, other) = torch.zeros_like(before), (self.base_rows, self.source_rows)
            pattern = source.kept["pattern"][index][:, :, other]
            seen = pattern.shape[-1]  # a base run that goes on into an answer is longer; its last keys are not seen
            z = average(layer, pattern[:, None], base.values[index][:, :, :seen])[:, 0]
            found[:, self._local] = z - base.kept["head"][index][:, rows]
            return found
        q, keys, values = base.kept["q"][index][:, self.start :], base.keys[index], base.values[index]
        if self.site == "q":
            q = q.clone()
            q[:, self._local] = source.kept["q"][index][:, self.source_rows]
        elif self.site == "k":
            k = base.kept["k"][index].clone()
            k[:, self.base_rows] = source.kept["k"][index][:, self.source_rows]
            keys = self.decoder.turn(layer, "k", k, 0).transpose(1, 2)
        else:
            values = values.clone()
            values[:, :, self.base_rows] = source.values[index][:, :, self.source_rows]
        turned = self.decoder.turn(layer, "q", q, self.start)
        pattern = compare(self.decoder, layer, turned[:, None], keys, self.start).softmax(-1)
        return average(layer, pattern, values)[:, 0] - before


def written_by_heads(
    decoder: Decoder, base: Trace, index: int, difference: Float[Tensor, "batch position head width"], start: int
) -> Float[Tensor, "batch head position d"]:
    """The residual stream after a layer's attention where one head, each in turn, reads something else.

    Args:
        decoder: The model.
        base: The run, with `attn_raw` kept.
        index: The layer.
        difference: What each head reads less what it read, from position `start` on.
        start: The first position.
    """
    layer = decoder.layers[index]
    written = torch.einsum("bshv,hvd->bhsd", difference, layer.out)
    added = layer.after_attention(base.kept["attn_raw"][index][:, None, start:] + written)
    return base.resid[index][:, None, start:] + added if decoder.residual else added


def row_bytes(decoder: Decoder) -> int:
    """What one position of one variant takes at its widest: inside the MLP, some four times d, twice and again.

    Args:
        decoder: The model.
    """
    return 4 * 16 * decoder.unembed.shape[1]


def roles(direction: str) -> tuple[str, str]:
    """Which run is patched, and which run the activations come from.

    Args:
        direction: `restore` or `corrupt`.
    """
    return ("hijacked", "clean") if direction == "restore" else ("clean", "hijacked")


def variants_of(
    decoder: Decoder,
    base: Trace,
    source: Trace,
    site: str,
    groups: tuple[tuple[int, ...], ...],
    budget: float,
    *,
    beyond: int = 0,
    layers: range | None = None,
) -> Iterator[Float[Tensor, "batch variant read d"]]:
    """For each group of positions, the final residual streams of every layer's (and head's) patched run.

    Args:
        decoder: The model.
        base: The run that is patched.
        source: Where the activations come from.
        site: What is patched.
        groups: Positions counted from the end of the context.
        budget: Bytes that the growing batch may take.
        beyond: Positions of the base run after the context; they are read as well.
        layers: Which layers are patched, one after the other; all by default.
    """
    batch, length = base.final.shape[:2]
    ends = length - beyond, source.final.shape[1]
    layers, first_apart = (
        layers or range(len(decoder.layers)),
        _first_apart(base.tokens, source.tokens, ends[0] == ends[1]),
    )
    for group in groups:
        start = max(ends[0] + min(group), first_apart) if decoder.causal else 0
        moved = [position for position in group if ends[0] + position >= start]
        rows, others = ([end + position for position in moved] for end in ends)
        each = decoder.layers[0].heads if site in HEADS | SHARED else 1
        size = max(1, int(budget // (row_bytes(decoder) * batch * each * (length - start))))
        parts = []
        for first in range(0, len(layers), size):
            wanted = layers[first : first + size]
            one = Patch(decoder, base, source, site, rows, others, start, wanted)
            parts.append(run_on(decoder, base, start, one.join, reads=1 + beyond))
        yield torch.cat(parts, 1)


def _first_apart(base: Int[Tensor, "batch position"], source: Int[Tensor, "batch other"], aligned: bool) -> int:
    """The first position at which two causal runs of the same tokens so far can differ; the last at most."""
    length = min(base.shape[1], source.shape[1])
    apart = (base[:, :length] != source[:, :length]).any(0).nonzero()
    return min(int(apart[0]) if len(apart) else length, length - 1) if aligned else 0
