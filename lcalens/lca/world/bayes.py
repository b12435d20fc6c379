"""What can be known: the Bayes-optimal classifier, divergences between concepts, and the bounds they give.

Everything is a XOR convolution (`xor`), in double precision throughout. Where a token is impossible its log-probability
is -inf and stays so.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.core.checks import check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.lca.world import xor
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.lca.world.xor import walsh_hadamard as walsh_hadamard
from lcalens.lca.world.xor import xor_correlate

_TIE = 1e-9
_MIXTURE_LATENTS = 8
_CHUNK = 1 << 22


def log_likelihood(
    concepts: LatentConcepts, counts: Float[Tensor, "batch vocab"], last: Int[Tensor, " batch"]
) -> Float[Tensor, "batch vocab"]:
    """Log p(context | y) for every y, but for a constant that does not depend on y; -inf where it cannot be.

    Args:
        concepts: The world.
        counts: How often each token occurs, the last one included.
        last: The last token, which comes from pi and not from p.
    """
    return xor.log_likelihood(concepts.offset_log_p, concepts.offset_log_pi, counts, last)


def posterior(
    concepts: LatentConcepts, counts: Float[Tensor, "batch vocab"], last: Int[Tensor, " batch"]
) -> Float[Tensor, "batch vocab"]:
    """p(y | context) under the clean model; NaN for a context that no concept can give.

    Args:
        concepts: The world.
        counts: How often each token occurs, the last one included.
        last: The last token.
    """
    return log_likelihood(concepts, counts, last).softmax(-1)


def mixture_posterior(
    concepts: LatentConcepts,
    counts: Float[Tensor, "batch vocab"],
    last: Int[Tensor, " batch"],
    *,
    share: float,
    distances: Sequence[int] | None = None,
) -> Float[Tensor, "batch vocab"]:
    """p(y | context) for one who knows that each token but the last is from y~ with probability `share`, and no more.

    y~ is uniform among the tokens at the given distances from y. A sum over all pairs (y, y~).

    Args:
        concepts: The world; m is at most 8.
        counts: How often each token occurs, the last one included.
        last: The last token.
        share: Probability that a position speaks of y~.
        distances: Hamming distances from y that y~ may have; all but 0 by default.

    Raises:
        LcalensError: m above 8, a share outside [0, 1], or a distance that no token has.
    """
    scores = torch.empty(len(last), concepts.vocab_size, dtype=torch.float64, device=last.device)
    for y, logs, _ in _pairs(concepts, counts, last, share, distances):
        scores[:, y] = logs.logsumexp(-1)
    return scores.softmax(-1)


def redrawn_posterior(
    concepts: LatentConcepts,
    counts: Float[Tensor, "batch vocab"],
    last: Int[Tensor, " batch"],
    *,
    share: float,
    distances: Sequence[int] | None = None,
) -> Float[Tensor, "batch vocab"]:
    """p(a copy of the token is from y~ | context) for each token, by what `mixture_posterior` knows, and no more.

    Of the last position it says nothing: that is never from y~. No detector of redrawn positions is better than this.

    Args:
        concepts: The world; m is at most 8.
        counts: How often each token occurs, the last one included.
        last: The last token.
        share: Probability that a position speaks of y~.
        distances: Hamming distances from y that y~ may have; all but 0 by default.

    Returns:
        For tokens that do not stand in the context too: as if they stood there once more, and nobody knew.

    Raises:
        LcalensError: As `mixture_posterior`.
    """
    total = torch.full((len(last),), -math.inf, dtype=torch.float64, device=last.device)
    found = torch.zeros(len(last), concepts.vocab_size, dtype=torch.float64, device=last.device)
    for _, logs, from_other in _pairs(concepts, counts, last, share, distances):
        new = torch.logaddexp(total, logs.logsumexp(-1))
        settled = torch.where(new.isfinite(), new, 0.0)  # a context that no pair has given so far
        found = found * (total - settled).exp()[:, None] + (logs - settled[:, None]).exp() @ from_other
        total = new
    return torch.where(total.isfinite()[:, None], found, math.nan)


def _pairs(
    concepts: LatentConcepts, counts: Tensor, last: Tensor, share: float, distances: Any
) -> Iterator[tuple[int, Float[Tensor, "batch other"], Float[Tensor, "other vocab"]]]:
    """For every y: log p(context, y~ | y) but for a constant, over all y~; and p(a token is from y~ | token, y, y~)."""
    check_int("m", concepts.m, low=2, high=_MIXTURE_LATENTS, why="the sum runs over V x V x V terms")
    check_real("share", share, low=0, high=1)
    chosen = range(1, concepts.m + 1) if distances is None else distances
    if isinstance(chosen, str) or not isinstance(chosen, Sequence) or not chosen:
        raise LcalensError(f"distances: expected Hamming distances from 1 to {concepts.m}, got {distances!r:.60}.")
    chosen = [check_int("distances", distance, low=1, high=concepts.m) for distance in chosen]
    size = concepts.vocab_size
    p, log_pi = concepts.offset_log_p.exp().to(last.device), concepts.offset_log_pi.to(last.device)
    others = counts.double() - torch.nn.functional.one_hot(last, size)
    offsets = torch.arange(size, device=last.device)
    keep = torch.isin(concepts.offset_distance, torch.tensor(chosen))
    apart = torch.nonzero(keep).squeeze(1).to(last.device)  # y~ XOR y
    of_other = share * p[offsets ^ apart[:, None]]
    mixed = (1 - share) * p + of_other  # (y~ XOR y, offset)
    possible = mixed > 0
    log_mixed, from_other = torch.where(possible, mixed, 1.0).log(), of_other / torch.where(possible, mixed, 1.0)
    for y in range(size):
        turned = offsets ^ y
        summed = others @ log_mixed[:, turned].T
        if not possible.all():
            summed = summed.masked_fill((others @ (~possible)[:, turned].double().T).round() > 0, -math.inf)
        yield y, summed + log_pi[last ^ y][:, None], from_other[:, turned]


def accuracy(
    scores: Float[Tensor, "batch vocab"], targets: Int[Tensor, " batch"], *, tie: float = 0.0
) -> Float[Tensor, " batch"]:
    """1 where the target has the largest score and 0 where not; a tie of k is right with probability 1/k.

    Args:
        scores: Logits, probabilities or the like; a row with NaN is wrong.
        targets: The right answers.
        tie: Scores that differ by less count as equal.
    """
    best = scores.amax(-1, keepdim=True)
    leading = scores >= best - tie
    right = leading.gather(1, targets[:, None]).squeeze(1)
    return right.double() / leading.sum(-1).clamp(min=1)


def bayes_accuracy(
    concepts: LatentConcepts,
    counts: Float[Tensor, "batch vocab"],
    last: Int[Tensor, " batch"],
    targets: Int[Tensor, " batch"],
) -> float:
    """How often the Bayes-optimal classifier is right on these contexts: the ceiling on clean ones.

    Args:
        concepts: The world.
        counts: How often each token occurs, the last one included.
        last: The last token.
        targets: The concepts.
    """
    rows = max(1, _CHUNK // concepts.vocab_size)
    right = [
        accuracy(log_likelihood(concepts, chunk, end), target, tie=_TIE)
        for chunk, end, target in zip(counts.split(rows), last.split(rows), targets.split(rows), strict=True)
    ]
    return float(torch.cat(right).mean())


def kl_divergence(concepts: LatentConcepts) -> Float[Tensor, " vocab"]:
    """KL(p(. | y) || p(. | y')) by y XOR y', in nats; infinite where y gives a token that y' cannot.

    Args:
        concepts: The world.
    """
    log_p = concepts.offset_log_p
    p, possible = log_p.exp(), log_p.isfinite()
    finite = torch.where(possible, log_p, 0.0)
    divergence = ((p * finite).sum() - xor_correlate(p[None], finite)[0]).clamp(min=0)
    outside = xor_correlate(possible.double()[None], (~possible).double())[0]  # tokens that y alone can give
    return torch.where(outside.round() > 0, math.inf, divergence)


def chernoff_information(concepts: LatentConcepts) -> Float[Tensor, " vocab"]:
    """The Chernoff information between p(. | y) and p(. | y') by y XOR y', in nats per token.

    It is infinite where they share no token. XOR with y XOR y' swaps the two distributions, so the exponent is
    symmetric in lambda and its optimum is 1/2: the Bhattacharyya distance, exactly.

    Args:
        concepts: The world.
    """
    root, possible = (concepts.offset_log_p / 2).exp(), concepts.offset_log_p.isfinite().double()
    information = -xor_correlate(root[None], root)[0].clamp(max=1).log()
    shared = xor_correlate(possible[None], possible)[0]
    return torch.where(shared.round() > 0, information, math.inf)


def union_bound(concepts: LatentConcepts, length: int) -> float:
    """A bound on the Bayes error at length L: the sum over y' of exp(-(L - 1) C(y, y')), no more than 1.

    Args:
        concepts: The world.
        length: L.

    Raises:
        LcalensError: `length` is no integer above 0.
    """
    check_int("length", length, low=1)
    return min(1.0, float((-(length - 1) * chernoff_information(concepts)[1:]).exp().sum()))
