"""Intervals and tests: Wilson, Student, McNemar's exact test, Holm's correction, and the bootstrap of whole clusters.

Every interval of the library and of the probes is made here; `estimates` gives them as numbers with their ends. Each
function loads scipy.stats itself, which takes a second.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

CONFIDENCE = 0.95
RESAMPLES = 2000
_SMALL = 1e-9
_NUMBERS = 1 << 22  # held of the resamples at a time


@lru_cache(maxsize=4096)
def wilson(successes: int, total: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval for a share; NaN for both ends where there is nothing to count.

    Args:
        successes: How many.
        total: Of how many.
        confidence: The interval's coverage.
    """
    if total == 0:
        return float("nan"), float("nan")
    from scipy.stats import binomtest

    interval = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def student_interval(values: Float[np.ndarray, " run"], *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's t interval of a mean; NaN for both ends where there are fewer than two values.

    Args:
        values: Independent measurements, such as one per seed.
        confidence: The interval's coverage.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    from scipy.stats import t as student_t

    half = student_t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def mcnemar(before: Bool[np.ndarray, " fact"], after: Bool[np.ndarray, " fact"]) -> float:
    """McNemar's exact two-sided p-value for the same facts under two conditions; 1 where nothing changed.

    Args:
        before: Whether each fact succeeds under the first condition.
        after: Whether it does under the second.
    """
    from scipy.stats import binomtest

    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction over the tests of one study; NaN (no test) stays NaN and is not counted."""
    p = np.asarray(p_values, dtype=float)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return corrected.tolist()


def clustered_mean_interval(
    values: Float[np.ndarray, " fact"],
    clusters: Shaped[np.ndarray, " fact"] | None = None,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """A percentile bootstrap interval for a mean, resampling whole clusters with all their values.

    With fewer than two clusters (or none given) the values themselves are resampled.

    Args:
        values: One per fact.
        clusters: The cluster (relation) of each.
        confidence: The interval's coverage.
        resamples: Bootstrap samples.
        seed: Of the resampling.

    Returns:
        Low and high; NaN for both where there are fewer than two values: one says nothing of how others would differ.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    labels = _cluster_labels(len(values), clusters)
    sums, sizes = np.bincount(labels, weights=values), np.bincount(labels)
    weights = _drawn_clusters(len(sums), resamples, seed)
    means = (weights @ sums) / (weights @ sizes)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_weights(
    count: int, clusters: Shaped[np.ndarray, " example"] | None, resamples: int, seed: int
) -> Float[np.ndarray, "sample example"]:
    """How often each example occurs in each resample.

    Args:
        count: How many examples there are.
        clusters: Groups that are drawn whole; with fewer than two the examples are drawn.
        resamples: How many resamples.
        seed: Of the drawing.
    """
    labels = _cluster_labels(count, clusters)
    drawn = _drawn_clusters(int(labels.max(initial=0)) + 1, resamples, seed)
    return drawn[:, labels].astype(np.float64)


def random_signs(
    count: int, clusters: Shaped[np.ndarray, " example"] | None, draws: int, seed: int
) -> Float[np.ndarray, "draw example"]:
    """Signs at random, alike for all examples of a cluster: what effects would be if their direction were chance.

    Args:
        count: How many examples there are.
        clusters: Groups that share a sign; with fewer than two each example has its own.
        draws: How often they are drawn.
        seed: Of the drawing.
    """
    labels = _cluster_labels(count, clusters)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (draws, int(labels.max(initial=0)) + 1))
    return signs[:, labels]


def bootstrap_coverage(groups: int, *, confidence: float = CONFIDENCE) -> float:
    """How often a percentile bootstrap interval for a mean holds it, if groups of one size are drawn from a normal one.

    A bootstrap of k groups has the middle's spread without Student's correction: P(|t| < z sqrt((k - 1) / k)), with t
    of k - 1 degrees of freedom; and no resample reaches beyond the groups at the ends, which hold the mean between them
    with 1 - 2^(1 - k). Of 10 groups a 95% interval holds the mean 90% of the time, of 5 it is 85%, of 2 it is 50%.

    Args:
        groups: How many are resampled; at least 2.
        confidence: What the interval is called.
    """
    from scipy.stats import norm
    from scipy.stats import t as student_t

    reach = norm.ppf((1 + confidence) / 2) * np.sqrt((groups - 1) / groups)
    return float(min(1 - 2 * student_t.sf(reach, groups - 1), 1 - 2.0 ** (1 - groups)))


def _in_several(
    measured: Bool[np.ndarray, "example place"], clusters: np.ndarray | None
) -> Bool[np.ndarray, " place"] | bool:
    """Whether a place was measured in two of what is resampled, or more."""
    if measured.all():
        return True
    labels = _cluster_labels(len(measured), clusters)
    found = np.zeros((int(labels.max()) + 1, measured.shape[1]), dtype=bool)
    np.logical_or.at(found, labels, measured)
    return found.sum(0) > 1


def _cluster_labels(count: int, clusters: np.ndarray | None) -> Int[np.ndarray, " example"]:
    """Each example's cluster by number; every example its own where there are fewer than two clusters."""
    labels = np.arange(count) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    return labels if labels.max(initial=0) else np.arange(count)


def _drawn_clusters(count: int, resamples: int, seed: int) -> Int[np.ndarray, "sample cluster"]:
    """How often each cluster occurs in each resample."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)


def in_chunks(weights: np.ndarray, sites: int) -> Iterator[np.ndarray]:
    """The resamples in parts, so that memory is bounded.

    Args:
        weights: Of every resample.
        sites: How many numbers each gives.
    """
    size = max(1, _NUMBERS // max(1, sites))
    return (weights[first : first + size] for first in range(0, len(weights), size))


def weighted_ratio(
    part: Float[np.ndarray, "example place"],
    whole: Float[np.ndarray, " example"],
    weights: Float[np.ndarray, "sample example"],
    *,
    absolute: bool = False,
) -> Float[np.ndarray, "sample place"]:
    """The weighted mean of `part` over that of `whole`, in each sample; NaN where nothing was measured.

    Examples where a part is NaN do not count for it.

    Args:
        part: What is explained, at each place.
        whole: What there is to explain; 1 for means by themselves.
        weights: Of every example in every sample.
        absolute: Whether to take the parts' magnitudes.
    """
    over, under, _ = _summed(np.abs(part) if absolute else part, whole, weights)
    return _divided(over, under)


def _summed(
    part: np.ndarray, whole: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Bool[np.ndarray, "sample _"]]:
    """The weighted sums of part and whole over the examples that were measured, and whether a sample has any."""
    measured = np.isfinite(part)
    over = weights @ np.where(measured, part, 0.0)
    counted = np.ones((len(part), 1)) if measured.all() else measured
    return over, weights @ (counted * whole[:, None]), weights @ counted > 0


def _divided(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """The ratio; NaN where there is nothing to explain: rounding alone would make any share of it."""
    defined = np.abs(under) > _SMALL
    return np.where(defined, over / np.where(defined, under, 1.0), np.nan)


def ratio_of_means(
    part: Float[np.ndarray, "example ..."],
    whole: Float[np.ndarray, " example"],
    clusters: np.ndarray | None = None,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """The mean of `part` over the mean of `whole`, with the ends of a percentile bootstrap interval over examples.

    A ratio of means and not a mean of ratios: an example that nothing moves has no ratio. Examples where a part is NaN
    do not count for it, and a part that was measured in one example, or in one of several clusters, has no interval.
    Where the interval of the whole holds 0 a share of it has none (Fieller 1954): the whole may be
    nothing, and shares of it then have no bounds.

    Args:
        part: What is explained.
        whole: What there is to explain.
        clusters: Of the examples; they are resampled whole.
        confidence: The interval's coverage.
        resamples: Bootstrap samples.
        seed: Of the resampling.

    Returns:
        The ratio, and the low and the high end of its interval; NaN for both ends where it has none.
    """
    flat = part.reshape(len(part), -1)
    over, under, _ = _summed(flat, whole, np.ones((1, len(part))))
    middle, toward = _divided(over, under)[0], np.sign(under)
    low, high = np.full((2, len(middle)), np.nan)
    if len(part) > 1:
        shares, nothing, tail = [], np.zeros(under.shape[1]), (1 - confidence) / 2
        for weights in in_chunks(bootstrap_weights(len(part), clusters, resamples, seed), len(middle)):
            over, under, drawn = _summed(flat, whole, weights)
            nothing += (drawn & (under * toward <= _SMALL)).sum(0)
            shares.append(_divided(over, under))
        drawn = np.vstack(shares)
        known = np.isfinite(drawn).any(0) & np.isfinite(middle) & (nothing < tail * resamples)
        known &= _in_several(np.isfinite(flat), clusters)
        if known.any():
            low[known], high[known] = np.nanquantile(drawn[:, known], [tail, 1 - tail], axis=0)
    shape = part.shape[1:]
    return middle.reshape(shape), low.reshape(shape), high.reshape(shape)
