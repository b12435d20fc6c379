"""The growing batch: every patched variant of a base run joins one batch at the layer that it differs from."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.engine.attention import average, compare, look, turn
from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import Trace, run
from lcalens.engine.sites import BY_QUERY, HEADS, SHARED

_KEPT = {"attn_scores": "pattern", "resid_pre": "", "resid_post": ""}


def kept_for(site: str) -> set[str]:
    """What a trace must keep so that the site can be patched.

    Args:
        site: The site.
    """
    stored = _KEPT.get(site, site)
    heads = {"z", "attn_raw"} if site in HEADS | SHARED else set()
    heads |= {"attn_out"} if site == "mlp_out" else set()  # post-norm models add both before they normalise
    return ({stored} if stored else set()) | heads | ({"q", "k"} if site in {"q", "k", "v"} else set())


@dataclass(frozen=True, eq=False)
class Patch:
    """One site at some positions of a batch: where base and source differ, and what the variants join with.

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
        """What joins before a layer, or after its attention (see `run`).

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
        return self._replaced(index) if self.site == "resid_post" else self._mlp_differs(index - 1)

    def _replaced(self, index: int) -> Float[Tensor, "batch 1 position d"]:
        stream = self.base.resid[index][:, self.start :].clone()
        stream[:, self._local] = self.source.resid[index][:, self.source_rows].to(stream.device)
        return stream[:, None]

    def _mlp_differs(self, index: int) -> Float[Tensor, "batch 1 position d"]:
        difference = self._difference("mlp_out", index)
        layer = self.decoder.layers[index]
        if layer.open:
            # The next layer may be on another device, and so is the stream before it.
            after = self.base.resid[index + 1][:, self.start :]
            return (after + difference.to(after.device))[:, None]
        middle = self.base.resid[index] + self.base.kept["attn_out"][index]
        written = self.base.kept["mlp_out"][index][:, self.start :] + difference
        return layer.close[1](layer.close[0](middle[:, self.start :]) + written)[:, None]

    @property
    def _local(self) -> list[int]:
        return [row - self.start for row in self.base_rows]

    def _difference(self, site: str, index: int) -> Float[Tensor, "batch position *rest"]:
        """Source less base at the patched positions, and 0 at the others from `start` on."""
        base, source = self.base.kept[site][index], self.source.kept[site][index]
        difference = torch.zeros_like(base[:, self.start :])
        difference[:, self._local] = source[:, self.source_rows] - base[:, self.base_rows]
        return difference

    def _attention_differs(self, index: int) -> Float[Tensor, "batch variant position d"]:
        layer = self.decoder.layers[index]
        if self.site == "attn_out":
            added = (self.base.kept["attn_out"][index][:, self.start :] + self._difference("attn_out", index))[:, None]
            return middle_of(self.decoder, self.base, index, self.start, added)
        if self.site in ("q", "k") and layer.norms_join_heads:
            return self._each_head_anew(index)
        difference = self._difference("z", index) if self.site == "z" else self._read_anew(index)
        if self.site not in SHARED:
            return written_by_heads(self.decoder, self.base, index, difference, self.start)
        grouped = rearrange(difference, "batch position (kv group) width -> batch position kv group width",
                            kv=layer.kv_heads)  # fmt: skip
        out = rearrange(layer.out, "(kv group) width d -> kv group width d", kv=layer.kv_heads)
        written = einsum(grouped, out, "batch position kv group width, kv group width d -> batch kv position d")
        raw = self.base.kept["attn_raw"][index][:, None, self.start :] + written
        return middle_of(self.decoder, self.base, index, self.start, layer.after_attention(raw))

    def _read_anew(self, index: int) -> Float[Tensor, "batch position head width"]:
        """What every head reads with its own q, k, v or pattern patched, less what it read."""
        layer, base, source = self.decoder.layers[index], self.base, self.source
        before = base.kept["z"][index][:, self.start :]
        if self.site in BY_QUERY:
            difference, rows = torch.zeros_like(before), self.base_rows
            if not rows:  # both runs are the same there
                return difference
            pattern = source.kept["pattern"][index][:, :, self.source_rows]
            seen = pattern.shape[-1]  # a base run that goes on into an answer is longer; its last keys are not seen
            z = average(layer, pattern[:, None], base.values[index][:, :, :seen])[:, 0]
            difference[:, self._local] = z - base.kept["z"][index][:, rows]
            return difference
        return self._looked_anew(index, slice(None)) - before

    def _each_head_anew(self, index: int) -> Float[Tensor, "batch variant position d"]:
        """The stream after attention where one head's query or key, each in turn, moves those of the others too."""
        layer, base = self.decoder.layers[index], self.base
        before = base.kept["z"][index][:, self.start :]
        written = [
            einsum(self._looked_anew(index, slice(head, head + 1)) - before, layer.out,
                   "batch position head width, head width d -> batch position d")
            for head in range(layer.heads if self.site == "q" else layer.kv_heads)
        ]  # fmt: skip
        raw = base.kept["attn_raw"][index][:, None, self.start :] + torch.stack(written, 1)
        return middle_of(self.decoder, base, index, self.start, layer.after_attention(raw))

    def _looked_anew(self, index: int, heads: slice) -> Float[Tensor, "batch position head width"]:
        """What every head reads where the queries, keys or values of some heads are the source's."""
        layer, base, source = self.decoder.layers[index], self.base, self.source
        q, keys, values = base.kept["q"][index][:, self.start :], base.keys[index], base.values[index]
        if self.site == "q":
            q = q.clone()
            q[:, self._local, heads] = source.kept["q"][index][:, self.source_rows, heads]
        elif self.site == "k":
            k = base.kept["k"][index].clone()
            k[:, self.base_rows, heads] = source.kept["k"][index][:, self.source_rows, heads]
            keys = turn(self.decoder, layer, "k", k, 0).transpose(1, 2)
        else:
            values = values.clone()
            values[:, :, self.base_rows] = source.values[index][:, :, self.source_rows]
        turned = turn(self.decoder, layer, "q", q, self.start)
        pattern = look(layer, compare(self.decoder, layer, turned[:, None], keys, self.start), q.dtype)
        return average(layer, pattern, values)[:, 0]


def middle_of(
    decoder: Decoder, base: Trace, index: int, start: int, added: Float[Tensor, "batch variant position d"]
) -> Float[Tensor, "batch variant position d"]:
    """The residual stream after something else has been added by a layer's attention.

    Args:
        decoder: The model.
        base: The run that it is added in.
        index: The layer.
        start: The first position.
        added: In place of what attention adds, from that position on.
    """
    if not decoder.residual:
        return added
    return decoder.layers[index].close[0](base.resid[index][:, None, start:] + added)


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
    written = einsum(difference, layer.out, "batch position head width, head width d -> batch head position d")
    added = layer.after_attention(base.kept["attn_raw"][index][:, None, start:] + written)
    return middle_of(decoder, base, index, start, added)


def row_bytes(decoder: Decoder) -> int:
    """What one position of one variant takes at its widest: inside the MLP, some four times d, twice and again.

    Args:
        decoder: The model.
    """
    return decoder.unembed.element_size() * 16 * decoder.unembed.shape[1]


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
    layers = layers or range(len(decoder.layers))
    apart = first_apart(base.tokens, source.tokens, ends[0] == ends[1])
    for group in groups:
        start = max(ends[0] + min(group), apart) if decoder.causal else 0
        moved = [position for position in group if ends[0] + position >= start]
        rows, others = ([end + position for position in moved] for end in ends)
        each = decoder.layers[0].heads if site in HEADS | SHARED else 1
        size = max(1, int(budget // (row_bytes(decoder) * batch * each * (length - start))))
        parts = []
        for lowest in range(0, len(layers), size):
            chunk = layers[lowest : lowest + size]
            patch = Patch(decoder, base, source, site, rows, others, start, chunk)
            parts.append(run(decoder, None, start=start, before=base, join=patch.join, reads=1 + beyond))
        yield torch.cat(parts, 1)


def first_apart(base: Int[Tensor, "batch position"], source: Int[Tensor, "batch other"], aligned: bool) -> int:
    """The first position at which two causal runs of the same tokens so far can differ; the last at most.

    Args:
        base: Tokens of the one.
        source: Of the other.
        aligned: Whether positions are the same from the start on; where not, it is the first.
    """
    length = min(base.shape[1], source.shape[1])
    apart = (base[:, :length] != source[:, :length]).any(0).nonzero()
    return min(int(apart[0]) if len(apart) else length, length - 1) if aligned else 0
