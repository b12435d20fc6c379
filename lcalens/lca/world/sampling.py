"""Contexts drawn exactly, and the same whatever the number of threads or whether a compiler is at hand.

Every draw is a word of the splitmix64 stream (Steele, Lea and Flood 2014) that belongs to its row and place, so a
sample is a pure function of its seed. A token takes 32 bits, which an alias table in exact integer arithmetic turns
into one of V = 2^m offsets; the token is the offset XOR the concept. Probabilities are thereby rounded to multiples
of 2^-32, and what is impossible stays impossible. `sampling.c` does the same, bit for bit, about ten times as fast.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt32
from torch import Tensor

from lcalens.core.tensors import check_generator
from lcalens.lca.world import compiled as native

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as a signed word
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_BITS = 32


class Counts(NamedTuple):
    """Contexts without the order of their tokens, which the model does not see.

    Attributes:
        counts: How often each token occurs among all L tokens of the context, the last included.
        last: The last token.
        target: The concept that the context was drawn for.
    """

    counts: Float[Tensor, "batch vocab"]
    last: Int[Tensor, " batch"]
    target: Int[Tensor, " batch"]


@dataclass(frozen=True, eq=False)
class AliasTable:
    """A distribution over 2^m outcomes as Walker's alias table, in units of 2^-32.

    Attributes:
        limit: A draw whose low 32 - m bits are below it takes its own cell.
        alias: Any other draw of the cell takes this outcome.
    """

    limit: UInt32[np.ndarray, " vocab"]
    alias: UInt32[np.ndarray, " vocab"]

    @classmethod
    def of(cls, probabilities: Float[Tensor, " vocab"]) -> "AliasTable":
        """The table of a distribution; outcomes of probability 0 are never drawn.

        Args:
            probabilities: They sum to 1; their number is a power of 2.
        """
        p = probabilities.double().cpu().numpy()
        capacity = (1 << _BITS) // len(p)
        exact = p * 2.0**_BITS
        units = np.floor(exact).astype(np.int64)
        missing = (1 << _BITS) - int(units.sum())
        units[np.argsort(units - exact, kind="stable")[:missing]] += 1  # the largest remainders
        limit, alias = np.full(len(p), capacity, dtype=np.int64), np.arange(len(p), dtype=np.int64)
        small, large = [*np.flatnonzero(units < capacity)], [*np.flatnonzero(units > capacity)]
        while small:
            poor, rich = small.pop(), large[-1]
            limit[poor], alias[poor] = units[poor], rich
            units[rich] -= capacity - units[poor]
            if units[rich] <= capacity:
                large.pop()
                if units[rich] < capacity:
                    small.append(rich)
        return cls(limit.astype(np.uint32), alias.astype(np.uint32))

    def probabilities(self) -> Float[np.ndarray, " vocab"]:
        """What the table draws, exactly."""
        capacity = (1 << _BITS) // len(self.limit)
        units = self.limit.astype(np.int64)
        np.add.at(units, self.alias, capacity - self.limit.astype(np.int64))
        return units / 2.0**_BITS


def seed_words(generator: torch.Generator, count: int = 1) -> Int[Tensor, " count"]:
    """Fresh seeds from a generator, which moves on.

    Raises:
        LcalensError: It is no generator.
    """
    check_generator(generator)
    return torch.randint(-(1 << 63), (1 << 63) - 1, (count,), generator=generator, device=generator.device)


def mix(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """The finaliser of splitmix64, on int64 with wrap-around; shifts are logical.

    Args:
        x: Words.
    """
    x = (x ^ _shift(x, 30)) * _signed(_MULTIPLIERS[0])
    x = (x ^ _shift(x, 27)) * _signed(_MULTIPLIERS[1])
    return x ^ _shift(x, 31)


def _shift(x: Int[Tensor, "..."], by: int) -> Int[Tensor, "..."]:
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


def words(seeds: Int[Tensor, " block"], batch: int, per_row: int) -> Int[Tensor, "block batch per_row"]:
    """The words that belong to each row of each block: block b's row r starts at word r * per_row of its stream.

    Args:
        seeds: One per block.
        batch: Rows in a block.
        per_row: Words that a row reads.
    """
    places = torch.arange(1, batch * per_row + 1, device=seeds.device) * GOLDEN
    return rearrange(mix(seeds[:, None] + places), "block (row word) -> block row word", row=batch)


def halves(word: Int[Tensor, "..."]) -> Int[Tensor, "... 2"]:
    """Each word's low and high 32 bits, as numbers from 0 to 2^32 - 1."""
    return torch.stack([word & 0xFFFFFFFF, _shift(word, 32)], -1)


class Sampler:
    """Draws contexts of one distribution.

    Args:
        p: Probability of each offset for tokens 1 to L - 1.
        pi: Probability of each offset for the last token.
    """

    def __init__(self, p: Float[Tensor, " vocab"], pi: Float[Tensor, " vocab"]):
        self.m = len(p).bit_length() - 1
        self.table, self.last_table = AliasTable.of(p), AliasTable.of(pi)

    def draw(self, bits: Int[Tensor, "..."], *, last: bool = False) -> Int[Tensor, "..."]:
        """Offsets from 32-bit draws.

        Args:
            bits: Numbers from 0 to 2^32 - 1.
            last: Whether from pi, the last token's distribution.
        """
        table = self.last_table if last else self.table
        limit = torch.from_numpy(table.limit.astype(np.int64)).to(bits.device)
        alias = torch.from_numpy(table.alias.astype(np.int64)).to(bits.device)
        cell = bits >> (_BITS - self.m)
        return torch.where((bits & ((1 << (_BITS - self.m)) - 1)) < limit[cell], cell, alias[cell])

    def tokens(
        self, seeds: Int[Tensor, " block"], batch: int, length: int
    ) -> tuple[Int[Tensor, "block batch length"], Int[Tensor, "block batch"]]:
        """Contexts with their tokens in order, and their concepts.

        Args:
            seeds: One per block.
            batch: Contexts in a block.
            length: Tokens in a context.
        """
        drawn = words(seeds, batch, 1 + length // 2)
        target = _shift(drawn[..., 0], 64 - self.m)
        last = self.draw(halves(drawn[..., 0])[..., 0], last=True)
        draws = rearrange(halves(drawn[..., 1:]), "block row word half -> block row (word half)")
        others = self.draw(draws[..., : length - 1])  # an odd number of draws leaves the last half unused
        return torch.cat([others, last[..., None]], -1) ^ target[..., None], target

    def counts(
        self,
        seeds: Int[Tensor, " block"],
        batch: int,
        length: int,
        *,
        weight: Float[Tensor, " counts"] | None = None,
        into: Counts | None = None,
    ) -> Counts:
        """The same contexts as `tokens`, counted; one row per context, the blocks one after the other.

        Args:
            seeds: One per block.
            batch: Contexts in a block.
            length: Tokens in a context.
            weight: Written in place of each count, for counts from 0 to `length`: their logarithms, say.
            into: Written over and returned where the compiled code runs, to save the memory's allocation.
        """
        rows, size = len(seeds) * batch, 1 << self.m
        kernel = native.kernel() if seeds.device.type == "cpu" else None
        if kernel is None:
            tokens, target = self.tokens(seeds, batch, length)
            tokens = rearrange(tokens, "block row position -> (block row) position")
            counts = torch.zeros(rows, size, device=seeds.device)
            counts.scatter_add_(1, tokens, torch.ones(1, 1, device=seeds.device).expand(rows, length))
            counts = counts if weight is None else weight.to(seeds.device)[counts.long()]
            return Counts(counts, tokens[:, -1], rearrange(target, "block row -> (block row)"))
        into = into or Counts(torch.empty(rows, size), *torch.empty(2, rows, dtype=torch.long))
        weight = None if weight is None else weight.float().contiguous()
        kernel(seeds.contiguous(), batch, length, self.m, self.table, self.last_table, weight, *into)
        return into
