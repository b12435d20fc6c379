"""The game of a hijack: what the metric becomes where some players have what they have in the clean run.

A player is a head, a source position, or a token wherever it stands. Only what heads do at the last position changes,
so in a causal model that position is all that runs. Where every coalition is asked for, the batch grows: at a layer
it is doubled for each of the players who act there, so the early layers run few coalitions and the last ones all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import Trace, run, trace_both
from lcalens.engine.metrics import Asked, Metric, ends_of, of_variants
from lcalens.mechanism.arguments import Head
from lcalens.mechanism.contrast.contrast import Bucket

Exchange = Literal["both", "values", "pattern"]
_ROWS = 4096  # positions of the residual stream run at once: more run no faster


@dataclass(frozen=True, eq=False)
class Sources:
    """Players that are groups of source positions: which key positions are whose.

    Attributes:
        clean: Whether the clean run's position belongs to the player.
        hijacked: Whether the hijacked run's does.
    """

    clean: Bool[Tensor, "batch player clean_position"]
    hijacked: Bool[Tensor, "batch player position"]


@dataclass(frozen=True, eq=False)
class Game:
    """Some examples of one length, both runs, and who plays.

    Attributes:
        decoder: The model.
        bucket: The examples, on the model's device.
        heads: The heads whose part at the last position is exchanged.
        exchange: `both`, a head's z; `values`, what its own pattern averages; or `pattern`, where it looks.
        sources: Groups of source positions that play; None where the heads do.
        metric: What is measured.
        budget: Bytes that a batch may take.
        row_bytes: What one position of one coalition takes.
    """

    decoder: Decoder
    bucket: Bucket
    heads: Sequence[Head]
    exchange: Exchange
    sources: Sources | None
    metric: Metric
    budget: float
    row_bytes: int

    @property
    def players(self) -> int:
        """How many play."""
        return len(self.heads) if self.sources is None else self.sources.clean.shape[1]

    @cached_property
    def runs(self) -> tuple[Trace, Trace]:
        """The clean and the hijacked run."""
        keep = ("z",) if self.sources is None and self.exchange == "both" else ("pattern",)
        return trace_both(self.decoder, self.bucket.clean, self.bucket.hijacked, keep=keep)

    @cached_property
    def _ends(self) -> tuple[Float[Tensor, "batch run"], Asked]:
        bucket, device = self.bucket, self.decoder.unembed.device
        asked = Asked(*(tensor.to(device) for tensor in (bucket.true, bucket.false, bucket.indices)))
        return ends_of(self.metric, self.decoder, [run.final[:, -1] for run in self.runs], asked)

    @property
    def ends(self) -> Float[Tensor, "batch run"]:
        """The metric of the clean and of the hijacked run."""
        return self._ends[0]

    def every(self) -> Float[Tensor, "batch coalition"]:
        """The metric of every coalition, in the order of their numbers (see `lcalens.core.coalitions`)."""
        # As many as fit grow; the others are those of the first layers, where each batch is small anyway.
        free = min(self.players, max(0, self._rows.bit_length() - 1))
        fixed = self.players - free
        found = []
        for number in range(1 << fixed):
            bits = [bool(number >> player & 1) for player in range(fixed)] + [False] * free
            masks = torch.tensor(bits, device=self.bucket.clean.device).expand(len(self.bucket.indices), 1, -1)
            found.append(self._measured(masks, growing=frozenset(range(fixed, self.players))))
        # The free players' bits are the high ones: (fixed, free) to free * 2^fixed + fixed.
        return rearrange(torch.stack(found, -1), "batch free fixed -> batch (free fixed)")

    def some(self, masks: Bool[Tensor, "batch coalition player"]) -> Float[Tensor, "batch coalition"]:
        """The metric of chosen coalitions.

        Args:
            masks: Who takes part in each.
        """
        return torch.cat([self._measured(part) for part in masks.split(max(1, self._rows), 1)], 1)

    @property
    def start(self) -> int:
        """The first position that may differ from the hijacked run."""
        return self.bucket.hijacked.shape[1] - 1 if self.decoder.causal else 0

    @property
    def _rows(self) -> int:
        """How many coalitions of all the examples run at once."""
        length = 1 if self.decoder.causal else self.bucket.hijacked.shape[1]
        return int(min(_ROWS, self.budget // self.row_bytes) // (len(self.bucket.indices) * length))

    def _measured(
        self, masks: Bool[Tensor, "batch given player"], growing: frozenset[int] = frozenset()
    ) -> Float[Tensor, "batch coalition"]:
        """The metric of these coalitions; of each with every set of growing players, the high bits of its number."""
        edit = _Restored(self, masks, growing)
        stream = run(
            self.decoder, None, first=edit.lowest, start=self.start, before=self.runs[1], edit=edit, join=edit.join
        )
        return of_variants(self.metric, self.decoder, stream[:, :, -1], self._ends[1])


@dataclass(eq=False)
class _Restored:
    """The edit: at the last position the players who take part have what they have in the clean run.

    Attributes:
        game: Whose.
        masks: Who takes part, in each variant that runs.
        growing: The players who join at their own layers, in both ways.
        looked: Where the layer that runs looks, until its values are averaged.
        own: The values of the positions that run, as they are projected.
        after: The residual streams after the layer before.
    """

    game: Game
    masks: Bool[Tensor, "batch variant player"]
    growing: frozenset[int]
    looked: Tensor = field(default_factory=lambda: torch.empty(0))
    own: Tensor = field(default_factory=lambda: torch.empty(0))
    after: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def lowest(self) -> int:
        """The first layer that has players."""
        return self.game.heads[0][0]

    def __call__(self, site: str, index: int, value: Tensor) -> Tensor:
        if site == "resid_post":
            self.after = value
        heads = [head for layer, head in self.game.heads if layer == index]
        if not heads:
            return value
        if site == "v":
            self.own = value
        elif site == "pattern":
            self.looked = value
            if self.game.sources is None and self.game.exchange == "pattern":
                clean = self.game.runs[0].kept["pattern"][index][:, None, heads, -1]
                value = value.clone()
                value[:, :, heads, -1] = self._mixed(index, value[:, :, heads, -1], clean)
        elif site == "z" and (self.game.sources is not None or self.game.exchange != "pattern"):
            value = value.clone()
            value[:, :, -1, heads] = (
                self._mixed(index, value[:, :, -1, heads], self._clean_reads(index, heads))
                if self.game.sources is None
                else self._by_source(index, heads)
            )
        return value

    def join(self, stage: str, index: int) -> Float[Tensor, "batch variant position d"] | None:
        """Before a layer, each variant once more for every set of growing players who act from there on (see `run`).

        Args:
            stage: `pre` or `mid`.
            index: The layer.
        """
        joining = [player for player in sorted(self.growing) if self._acts_from(player) == index]
        if stage == "mid" or (index != self.lowest and not joining):
            return None
        for player in joining:
            with_player = self.masks.clone()
            with_player[:, :, player] = True
            self.masks = torch.cat([self.masks, with_player], 1)
        if index == self.lowest:
            stream = self.game.runs[1].resid[index][:, None, self.game.start :]
            return stream.expand(-1, self.masks.shape[1], -1, -1)
        return repeat(self.after, "batch variant ... -> batch (times variant) ...", times=(1 << len(joining)) - 1)

    def _acts_from(self, player: int) -> int:
        """The first layer in which it matters whether a player takes part."""
        return self.game.heads[player][0] if self.game.sources is None else self.lowest

    def _mixed(self, index: int, own: Tensor, clean: Tensor) -> Float[Tensor, "batch variant head any"]:
        """The clean run's where the head takes part, the variant's own where it does not."""
        players = [player for player, (layer, _) in enumerate(self.game.heads) if layer == index]
        return torch.where(self.masks[:, :, players, None].to(own.device), clean.to(own.dtype), own)

    def _clean_reads(self, index: int, heads: list[int]) -> Float[Tensor, "batch _ head width"]:
        """What these heads read in the clean run; or, where only values are exchanged, with their own pattern."""
        clean = self.game.runs[0]
        if self.game.exchange == "both":
            return clean.kept["z"][index][:, None, -1, heads]
        return _read(self.looked[:, :, heads, -1], clean.values[index][:, self._kv(index, heads)])

    def _by_source(self, index: int, heads: list[int]) -> Float[Tensor, "batch variant head width"]:
        """What the heads read, the terms of some source positions being the clean run's."""
        game, (clean, base), sources, kv = self.game, self.game.runs, self.game.sources, self._kv(index, heads)
        assert sources is not None, "only source positions are put together by source"
        taken = self.masks.to(self.looked)
        gone = einsum(taken, sources.hijacked.to(taken), "batch variant player, batch player key -> batch variant key")
        come = einsum(taken, sources.clean.to(taken), "batch variant player, batch player key -> batch variant key")
        looked, there = self.looked[:, :, heads, -1], clean.kept["pattern"][index][:, None, heads, -1]
        looked_there = looked if game.exchange == "values" else there
        kept, put_in = looked * (1 - gone)[:, :, None], looked_there * come[:, :, None]
        if game.exchange == "pattern":  # another weight of the same values
            return self._read_own(index, kept + put_in, base, kv)
        return self._read_own(index, kept, base, kv) + _read(put_in, clean.values[index][:, kv])

    def _read_own(
        self, index: int, pattern: Float[Tensor, "batch variant head key"], base: Trace, kv: list[int]
    ) -> Float[Tensor, "batch variant head width"]:
        """What a pattern reads of each variant's own values: those of the positions that run, and the base's before."""
        own = rearrange(self.game.decoder.layers[index].averaged(self.own)[:, :, :, kv],
                        "batch variant near head width -> batch variant head near width")  # fmt: skip
        before = pattern.shape[-1] - own.shape[-2]
        near = einsum(pattern[..., before:], own,
                      "batch variant head near, batch variant head near width -> batch variant head width")  # fmt: skip
        return near + _read(pattern[..., :before], base.values[index][:, kv, :before])

    def _kv(self, index: int, heads: list[int]) -> list[int]:
        layer = self.game.decoder.layers[index]
        return [head * layer.kv_heads // layer.heads for head in heads]


def _read(
    pattern: Float[Tensor, "batch variant head key"], values: Float[Tensor, "batch head key width"]
) -> Float[Tensor, "batch variant head width"]:
    return einsum(pattern, values,
                  "batch variant head key, batch head key width -> batch variant head width")  # fmt: skip
