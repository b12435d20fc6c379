"""Direct paths: what a part writes, carried to what another part reads, all that stands between held as it was.

A path is a change of the residual stream. It begins as the difference between what a sender writes in the source run
and in the base run; every layer on the way adds what it added in the base run. Where blocks only add to the stream the
change stays as it is; where a norm acts on the stream itself it is carried through. At the receiver the changed stream
is read by one query, key or value of one head alone, or is the stream from there on, and what follows is run anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from lcalens.engine.attention import average, compare, look, turn
from lcalens.engine.decoder import Decoder, Layer, identity
from lcalens.engine.forward import Trace, run
from lcalens.engine.variants import middle_of

At = Literal["q", "k", "v", "resid", "logits"]
WHOLE, EMBEDDING, MLP = -3, -2, -1  # what else than a head sends


class Sender(NamedTuple):
    """What writes to the residual stream.

    Attributes:
        layer: Whose; -1 for the embedding, and for the whole stream.
        head: Which; `MLP`, `EMBEDDING`, or `WHOLE` for all that has been written before the receiver.
    """

    layer: int
    head: int


class Receiver(NamedTuple):
    """What reads it.

    Attributes:
        layer: Before which; the number of layers for the logits.
        head: Whose query, key or value; -1 where the stream itself is meant.
    """

    layer: int
    head: int


def kept_for_paths(at: At) -> set[str]:
    """What a trace must keep for paths that end so.

    Args:
        at: What reads.
    """
    return {"z", "attn_raw", "attn_out", "mlp_out"} | {"k": {"q"}, "v": {"pattern"}}.get(at, set())


@dataclass(frozen=True, eq=False)
class Ways:
    """Where paths lead through some runs.

    Attributes:
        decoder: The model.
        base: The run that is patched.
        source: The run that senders take their output from.
        at: What reads.
        rows: Positions of the base run that the path passes.
        source_rows: The same in the source run.
        start: The first position that can change.
    """

    decoder: Decoder
    base: Trace
    source: Trace
    at: At
    rows: Sequence[int]
    source_rows: Sequence[int]
    start: int

    @property
    def local(self) -> list[int]:
        """The path's positions, counted from the first that can change."""
        return [row - self.start for row in self.rows]

    def stream(self, index: int, change: Float[Tensor, "batch variant row d"]) -> Float[Tensor, "batch variant ..."]:
        """The residual stream before a layer, from the first position that can change on.

        Args:
            index: The layer.
            change: At the path's positions.
        """
        before = self.base.resid[index][:, None, self.start :]
        changed = before.repeat(1, change.shape[1], 1, 1)
        changed[:, :, self.local] = changed[:, :, self.local] + change.to(changed)
        return changed

    def apart(self, index: int) -> Float[Tensor, "batch 1 row d"]:
        """The source's whole stream before a layer less the base's, at the path's positions.

        Args:
            index: The layer.
        """
        return self._apart(self.source.resid, self.base.resid, index)[:, None]

    def _apart(self, source: list[Tensor], base: list[Tensor], index: int) -> Tensor:
        return source[index][:, self.source_rows] - base[index][:, self.rows]

    def written(self, index: int, senders: Sequence[Sender]) -> Float[Tensor, "batch sender row d"]:
        """What each of a layer's senders changes in the stream after the layer, the layer's other parts held.

        Args:
            index: The layer.
            senders: Its heads first, then its MLP.
        """
        layer, base = self.decoder.layers[index], self.base.kept
        heads = [sender.head for sender in senders if sender.head >= 0]
        before = self.base.resid[index][:, None, self.rows]
        attended, added = (base[name][index][:, None, self.rows] for name in ("attn_out", "mlp_out"))
        changes = []
        if heads:
            read = self._apart(self.source.kept["z"], base["z"], index)[:, :, heads]
            change = einsum(read, layer.out[heads], "batch row head width, head width d -> batch head row d")
            if layer.after_attention is not identity:
                raw = base["attn_raw"][index][:, None, self.rows]
                change = layer.after_attention(raw + change) - attended
            changes.append(change if layer.open else self._closed(index, before, attended + change, added))
        if len(heads) < len(senders):
            change = self._apart(self.source.kept["mlp_out"], base["mlp_out"], index)[:, None]
            changes.append(change if layer.open else self._closed(index, before, attended, added + change))
        return torch.cat(changes, 1)

    def carried(self, index: int, change: Float[Tensor, "batch sender row d"]) -> Float[Tensor, "batch sender row d"]:
        """A change of the stream before a layer as a change of the stream after it, what the layer adds held.

        Args:
            index: The layer.
            change: Before it.
        """
        layer, base = self.decoder.layers[index], self.base.kept
        if not self.decoder.residual:
            return torch.zeros_like(change)
        if layer.open:
            return change
        before = self.base.resid[index][:, None, self.rows]
        attended, added = (base[name][index][:, None, self.rows] for name in ("attn_out", "mlp_out"))
        return self._closed(index, before + change.to(before), attended, added)

    def _closed(self, index: int, before: Tensor, attended: Tensor, added: Tensor) -> Tensor:
        """What a block that acts on the stream itself leaves, less what it left in the base run."""
        layer = self.decoder.layers[index]
        after = layer.close[1](layer.close[0](before + attended) + added)
        return after - self.base.resid[index + 1][:, None, self.rows].to(after)

    def read(
        self, index: int, heads: Sequence[int], streams: Float[Tensor, "batch variant position d"]
    ) -> list[Float[Tensor, "batch variant position d"]]:
        """The stream after a layer's attention where one head's query, key or value, each in turn, is made of another.

        Under grouped queries a key or value is changed for this query head alone, not for others that share it.

        Args:
            index: The layer.
            heads: Query heads.
            streams: What is read, from the first position that can change on.
        """
        decoder, layer, base, start = self.decoder, self.decoder.layers[index], self.base, self.start
        variants, (keys, values) = streams.shape[1], (base.keys[index], base.values[index])
        new = layer.split(self.at, layer.norm(streams))
        new = layer.averaged(new) if self.at == "v" else turn(decoder, layer, self.at, new, start)
        own = None
        if self.at == "k":
            own = turn(decoder, layer, "q", base.kept["q"][index][:, start:], start)[:, None]
            own = own.expand(-1, variants, -1, -1, -1)
        found = []
        for head in heads:
            kv = head * layer.kv_heads // layer.heads
            alone, one = _alone(decoder, layer, head)
            shared, averaged = keys[:, kv : kv + 1], values[:, kv : kv + 1]
            if self.at == "v":
                near = rearrange(averaged[:, :, start:], "batch kv position width -> batch 1 position kv width")
                pattern = base.kept["pattern"][index][:, None, [head], start:, start:].expand(-1, variants, -1, -1, -1)
                change = average(one, pattern, None, new[..., kv : kv + 1, :] - near)
            else:
                if own is None:
                    scores = compare(alone, one, new[..., head : head + 1, :], shared, start)
                else:
                    old = shared[:, :, :start] if start else None
                    near = new[..., kv : kv + 1, :]
                    scores = compare(alone, one, own[..., head : head + 1, :], old, start, near)
                read = average(one, look(one, scores, streams.dtype), averaged)
                change = read - base.kept["z"][index][:, None, start:, head : head + 1]
            if self.at == "q" and len(self.rows) < change.shape[2]:  # other positions' queries are as they were
                passed = torch.zeros(change.shape[2], 1, 1, dtype=change.dtype, device=change.device)
                passed[self.local] = 1
                change = change * passed
            written = einsum(change[..., 0, :], layer.out[head], "batch variant position width, width d -> "
                             "batch variant position d")  # fmt: skip
            raw = base.kept["attn_raw"][index][:, None, start:] + written
            found.append(middle_of(decoder, base, index, start, layer.after_attention(raw)))
        return found


def _alone(decoder: Decoder, layer: Layer, head: int) -> tuple[Decoder, Layer]:
    """A layer as if it had this head alone, and the model whose biases of keys are this head's."""
    sinks, bias, own = layer.sinks, decoder.key_bias, slice(head, head + 1)
    one = replace(layer, heads=1, kv_heads=1, out=layer.out[own], sinks=None if sinks is None else sinks[own])
    return decoder if bias is None else replace(decoder, key_bias=lambda keys: bias(keys)[own]), one


@dataclass(eq=False)
class Changes:
    """The changes that some senders make, layer after layer: each joins behind its own, and is carried on.

    Attributes:
        ways: Where they lead.
        senders: Whose changes.
        so_far: Those that stand before the layer that has been reached; the whole stream's not among them.
        present: Whose they are, in order.
    """

    ways: Ways
    senders: Sequence[Sender]
    so_far: Float[Tensor, "batch sender row d"] | None = None
    present: list[Sender] = field(default_factory=list)

    def reach(self, index: int) -> None:
        """Go on to the stream before this layer, from the one before.

        Args:
            index: The layer.
        """
        if index:
            before = index - 1
            if self.so_far is not None:
                self.so_far = self.ways.carried(before, self.so_far)
            heads = sorted(sender for sender in self.senders if sender.layer == before and sender.head >= 0)
            joining = heads + [sender for sender in self.senders if sender == (before, MLP)]
            new = self.ways.written(before, joining) if joining else None
        else:
            joining = [sender for sender in self.senders if sender.head == EMBEDDING]
            new = self.ways.apart(0) if joining else None
        if new is not None:
            parts = [new] if self.so_far is None else [self.so_far.to(new), new]
            self.so_far, self.present = torch.cat(parts, 1), self.present + joining

    def here(self, index: int) -> tuple[list[Sender], Float[Tensor, "batch sender row d"] | None]:
        """Whose changes the stream before this layer can have, and the changes.

        Args:
            index: The layer that has been reached.
        """
        whole = [sender for sender in self.senders if sender.head == WHOLE]
        if not whole:
            return self.present, self.so_far
        apart = self.ways.apart(index)
        changes = apart if self.so_far is None else torch.cat([self.so_far.to(apart), apart], 1)
        return self.present + whole, changes


@torch.no_grad()
def path_variants(
    ways: Ways, senders: Sequence[Sender], receivers: Mapping[int, Sequence[int]]
) -> tuple[list[tuple[Sender, Receiver]], Float[Tensor, "batch path d"]]:
    """Every sender's path to every receiver behind it, in one growing batch: the last position after the last layer.

    Args:
        ways: Where they lead.
        senders: Where they begin.
        receivers: By layer the heads that read; one head of -1 where the stream itself is meant.

    Returns:
        Which paths there are, and the final residual stream of each.
    """
    changes, paths = Changes(ways, senders), []

    def join(stage: str, index: int) -> Tensor | None:
        heads = receivers.get(index, ())
        if stage == "pre":
            changes.reach(index)
        if not heads or (stage == "mid") != (ways.at in ("q", "k", "v")):
            return None
        present, change = changes.here(index)
        if change is None:
            return None
        paths.extend((sender, Receiver(index, head)) for head in heads for sender in present)
        streams = ways.stream(index, change)
        return streams if stage == "pre" else torch.cat(ways.read(index, heads, streams), 1)

    final = run(ways.decoder, None, start=ways.start, before=ways.base, join=join, reads=1)
    return paths, final[:, :, -1]
