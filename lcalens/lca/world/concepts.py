"""Latent concept association: the toy world's data (section 5.1 of the paper), with everything about it exact.

m binary latents make V = 2^m tokens; a token's bits are its latent vector. The concept y is uniform, and

    p(t | y)  =  omega pi(t | y) + (1 - omega) / V,       pi(t | y) proportional to exp(-D_H(t, y) / beta) on N(y).

Tokens 1 to L - 1 of a context come from p, token L from pi. Nothing changes when everything is XORed with one mask, so
a distribution is a table of V numbers over the *offset* t XOR y.
"""

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcalens.core.checks import check_choice, check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.core.tensors import check_tokens
from lcalens.lca.world import xor
from lcalens.lca.world.sampling import Counts, Sampler, halves, seed_words, words

if TYPE_CHECKING:
    from datasets import IterableDataset

Neighborhood = Literal["all", "nearest", "cluster"]
LATENTS = range(2, 15)
_CHUNK = 1024


@dataclass(frozen=True)
class LatentConcepts:
    """The toy world.

    Attributes:
        m: Latent bits, 2 to 14.
        omega: Share of a context that speaks of the concept; the rest is uniform noise.
        beta: Temperature: how far from the concept its tokens lie.
        neighborhood: N(y): `all` tokens but y; the `nearest`, at distance 1; or y's `cluster`, which share first bits.
        cluster_bits: How many, for `cluster`.

    Raises:
        LcalensError: An argument outside its range.

    Example:
        >>> import torch
        >>> concepts = LatentConcepts(5)
        >>> tokens, targets = concepts.sample(batch=2, length=64, generator=torch.Generator().manual_seed(0))
        >>> tokens.shape
        torch.Size([2, 64])
    """

    m: int
    omega: float = field(default=0.5, kw_only=True)
    beta: float = field(default=1.0, kw_only=True)
    neighborhood: Neighborhood = field(default="all", kw_only=True)
    cluster_bits: int = field(default=1, kw_only=True)

    def __post_init__(self):
        m = check_int("m", self.m, low=LATENTS[0], high=LATENTS[-1], why="a vocabulary has 2^m tokens")
        omega = check_real("omega", self.omega, low=0, high=1, why="it is a share of the context")
        beta = check_real("beta", self.beta, low=0, why="it is a temperature")
        if beta == 0:
            raise LcalensError("beta: expected a number above 0, got 0; it is a temperature.")
        check_choice("neighborhood", self.neighborhood, get_args(Neighborhood))
        cluster = check_int("cluster_bits", self.cluster_bits, low=1, high=m - 1, why="a cluster holds more than y")
        for name, value in (("m", m), ("omega", omega), ("beta", beta), ("cluster_bits", cluster)):
            object.__setattr__(self, name, value)  # plain numbers, whatever kind was given

    @property
    def vocab_size(self) -> int:
        """V = 2^m."""
        return 1 << self.m

    @cached_property
    def offset_distance(self) -> Int[Tensor, " vocab"]:
        """The Hamming weight of every offset."""
        return _popcount(torch.arange(self.vocab_size), self.m)

    @cached_property
    def offset_log_pi(self) -> Float[Tensor, " vocab"]:
        """Log pi of each offset t XOR y, in double precision; -inf outside the neighbourhood."""
        distance = self.offset_distance.double()
        inside = distance > 0
        if self.neighborhood == "nearest":
            inside = distance == 1
        elif self.neighborhood == "cluster":
            inside = inside & (torch.arange(self.vocab_size) < self.vocab_size >> self.cluster_bits)
        # The nearest at 0: any temperature above 0 gives a distribution.
        return (-(distance - 1) / self.beta).masked_fill(~inside, -math.inf).log_softmax(0)

    @cached_property
    def offset_log_p(self) -> Float[Tensor, " vocab"]:
        """Log p of each offset t XOR y, in double precision; -inf where omega is 1 and pi is 0."""
        signal = self.offset_log_pi + (math.log(self.omega) if self.omega else -math.inf)
        noise = math.log((1 - self.omega) / self.vocab_size) if self.omega < 1 else -math.inf
        return torch.logaddexp(signal, torch.full_like(signal, noise))

    @cached_property
    def sampler(self) -> Sampler:
        """The alias tables behind every sample."""
        return Sampler(self.offset_log_p.exp(), self.offset_log_pi.exp())

    def p(self, tokens: Int[Tensor, "..."], y: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The exact probability of a token at positions 1 to L - 1, given y; the arguments are broadcast."""
        return self.offset_log_p.exp()[self._xor(tokens=tokens, y=y).cpu()]

    def pi(self, tokens: Int[Tensor, "..."], y: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The exact probability of the last token, given y; the arguments are broadcast."""
        return self.offset_log_pi.exp()[self._xor(tokens=tokens, y=y).cpu()]

    def bits(self, tokens: Int[Tensor, "..."]) -> Int[Tensor, "... m"]:
        """The latent bits, first bit first."""
        return (
            check_tokens("tokens", tokens, self.vocab_size)[..., None]
            >> torch.arange(self.m - 1, -1, -1, device=tokens.device)
        ) & 1

    def distance(self, a: Int[Tensor, "..."], b: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The Hamming distance D_H; the arguments are broadcast."""
        return _popcount(self._xor(a=a, b=b), self.m)

    def neighbors(self, y: int) -> Int[Tensor, " neighbor"]:
        """N(y): the tokens that pi(. | y) can give, in order."""
        check_int("y", y, low=0, high=self.vocab_size - 1, why="it is a token")
        return torch.sort(torch.nonzero(self.offset_log_pi.isfinite()).squeeze(1) ^ y).values

    def sample(
        self, batch: int, length: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, "batch length"], Int[Tensor, " batch"]]:
        """Contexts and the concepts they were drawn for.

        Args:
            batch: How many.
            length: L, tokens in each.
            generator: Where the randomness comes from; the sample is made on its device.

        Raises:
            LcalensError: `batch` or `length` is no integer above 0.
        """
        self._check_sizes(batch, length)
        (tokens,), (targets,) = self.sampler.tokens(seed_words(generator), batch, length)
        return tokens, targets

    def sample_counts(self, batch: int, length: int, generator: torch.Generator) -> Counts:
        """The contexts that `sample` draws from the same generator, counted and never written down.

        Args:
            batch: How many.
            length: L, tokens in each.
            generator: Where the randomness comes from.

        Raises:
            LcalensError: `batch` or `length` is no integer above 0.
        """
        self._check_sizes(batch, length)
        return self.sampler.counts(seed_words(generator), batch, length)

    def sample_mixture(
        self,
        concepts: Int[Tensor, "batch concept"],
        weights: Sequence[float],
        length: int,
        generator: torch.Generator,
    ) -> Int[Tensor, "batch length"]:
        """Contexts that speak of several concepts: each of positions 1 to L - 1 chooses one by weight.

        Args:
            concepts: The concepts of each context; the last token comes from pi of the first.
            weights: One for each concept; they are made to sum to 1.
            length: L, tokens in each.
            generator: Where the randomness comes from.

        Raises:
            LcalensError: A token outside the vocabulary, or weights that do not fit.
        """
        concepts = check_tokens("concepts", concepts, self.vocab_size, shape=(None, None))
        self._check_sizes(len(concepts), length)
        bounds = torch.tensor(_weights(weights, concepts.shape[1]), dtype=torch.float64).cumsum(0)
        drawn = halves(words(seed_words(generator), len(concepts), length)[0])
        bounds = (bounds * 2.0**32).long()[:-1].to(drawn.device)
        which = torch.bucketize(drawn[:, :-1, 1].contiguous(), bounds, right=True)
        others = self.sampler.draw(drawn[:, :-1, 0]) ^ concepts.gather(1, which)
        last = self.sampler.draw(drawn[:, -1, 0], last=True) ^ concepts[:, 0]
        return torch.cat([others, last[:, None]], 1)

    def hijack(
        self,
        tokens: Int[Tensor, "batch length"],
        y: Int[Tensor, " batch"],
        other: Int[Tensor, " batch"],
        *,
        share: float | None = None,
        positions: Bool[Tensor, "batch length"] | None = None,
        generator: torch.Generator,
    ) -> Int[Tensor, "batch length"]:
        """The same contexts with some positions redrawn from p(. | other); the last token stays.

        Args:
            tokens: Contexts.
            y: Their concepts.
            other: The concept that hijacks each; where it equals y, a control: fresh tokens of the same concept.
            share: Probability with which each of positions 1 to L - 1 is redrawn, independently.
            positions: Or the positions to be redrawn.
            generator: Where the randomness comes from.

        Returns:
            The hijacked contexts. One state of the generator gives the same draws whatever `other` is.

        Raises:
            LcalensError: A token outside the vocabulary, sizes that differ, a share outside [0, 1], or not exactly one
                of `share` and `positions`.
        """
        tokens = check_tokens("tokens", tokens, self.vocab_size, shape=(None, None))
        y = check_tokens("y", y, self.vocab_size, shape=(len(tokens),))
        other = check_tokens("other", other, self.vocab_size, shape=(len(tokens),))
        if (share is None) == (positions is None):
            raise LcalensError("share: give either a share or positions, and not both.")
        drawn = halves(words(seed_words(generator), len(tokens), tokens.shape[1])[0]).to(tokens.device)
        if positions is None:
            share = check_real("share", share, low=0, high=1, why="it is the probability that a position is redrawn")
            positions = drawn[..., 1] < int(share * 2**32)
        elif not isinstance(positions, Tensor) or positions.shape != tokens.shape or positions.dtype != torch.bool:
            raise LcalensError(f"positions: expected booleans of shape {tuple(tokens.shape)}, got {positions!r:.80}.")
        positions = positions.clone()
        positions[:, -1] = False
        return torch.where(positions, self.sampler.draw(drawn[..., 0]) ^ other[:, None], tokens)

    def posterior(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch vocab"]:
        """p(y | context), exactly, for clean contexts; NaN for a context that no concept can give.

        Raises:
            LcalensError: A token outside the vocabulary.
        """
        return xor.log_likelihood(self.offset_log_p, self.offset_log_pi, *self.count(tokens)).softmax(-1)

    def count(self, tokens: Int[Tensor, "batch length"]) -> tuple[Float[Tensor, "batch vocab"], Int[Tensor, " batch"]]:
        """How often each token occurs in each context, and the last token.

        Raises:
            LcalensError: A token outside the vocabulary.
        """
        tokens = check_tokens("tokens", tokens, self.vocab_size, shape=(None, None))
        one_each = torch.ones(1, 1, device=tokens.device).expand(tokens.shape)
        counts = torch.zeros(len(tokens), self.vocab_size, device=tokens.device)
        return counts.scatter_add_(1, tokens, one_each), tokens[:, -1]

    def to_dataset(self, length: int, *, seed: int, size: int | None = None) -> "IterableDataset":
        """A `datasets` stream of `{"input_ids": tokens, "labels": concept}`, the same for the same seed.

        Args:
            length: L, tokens in each.
            seed: Of the sample.
            size: How many; without end by default.

        Raises:
            LcalensError: `length` or `size` is no integer above 0.
        """
        from datasets import IterableDataset

        self._check_sizes(1, length)
        check_int("seed", seed, low=0, high=(1 << 63) - 1)
        if size is not None:
            check_int("size", size, low=1)

        def rows():
            generator = torch.Generator().manual_seed(seed)
            samples = (self.sample(_CHUNK, length, generator) for _ in itertools.repeat(None))
            pairs = (pair for tokens, y in samples for pair in zip(tokens.tolist(), y.tolist(), strict=True))
            for row, target in itertools.islice(pairs, size):
                yield {"input_ids": row, "labels": target}

        return IterableDataset.from_generator(rows)  # pyright: ignore[reportReturnType]

    def _xor(self, **pair: Any) -> Int[Tensor, "..."]:
        return operator.xor(*(check_tokens(name, values, self.vocab_size) for name, values in pair.items()))

    def _check_sizes(self, batch: int, length: int) -> None:
        check_int("batch", batch, low=1)
        check_int("length", length, low=1, why="a context holds at least its last token")


def _popcount(values: Int[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    return sum(((values >> bit) & 1 for bit in range(bits)), torch.zeros_like(values))


def _weights(weights: Any, concepts: int) -> list[float]:
    """Weights that sum to 1."""
    numbers = list(weights) if isinstance(weights, Sequence) and not isinstance(weights, str) else []
    if len(numbers) != concepts:
        raise LcalensError(f"weights: expected {concepts} numbers, one per concept, got {weights!r:.80}.")
    numbers = [check_real("weights", weight, low=0) for weight in numbers]
    most = max(numbers)
    if most == 0:
        raise LcalensError(f"weights: expected one above 0 at least, got {weights!r:.80}.")
    return [weight / most / sum(number / most for number in numbers) for weight in numbers]
