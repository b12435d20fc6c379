"""Intervals and tests: Wilson, McNemar's exact test, Holm's correction, a bootstrap that resamples whole clusters."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.stats import binomtest
from scipy.stats import t as student_t

CONFIDENCE = 0.95
RESAMPLES = 2000


def wilson(successes: int, total: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval for a share; NaN for both ends where there is nothing to count.

    Args:
        successes: How many.
        total: Of how many.
        confidence: The interval's coverage.
    """
    if total == 0:
        return float("nan"), float("nan")
    interval = binomtest(successes, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def student_interval(values: Float[np.ndarray, " run"], *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's t interval of a mean; NaN for both ends where there are fewer than two values.

    Args:
        values: Independent measurements, such as one a seed.
        confidence: The interval's coverage.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    half = student_t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def mcnemar(before: Bool[np.ndarray, " fact"], after: Bool[np.ndarray, " fact"]) -> float:
    """McNemar's exact two-sided p-value for the same facts under two conditions; 1 where nothing changed.

    Args:
        before: Whether each fact succeeds under the first condition.
        after: Whether it does under the second.
    """
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
        values: One value a fact.
        clusters: The cluster (relation) of each.
        confidence: The interval's coverage.
        resamples: Bootstrap samples.
        seed: Of the resampling.

    Returns:
        Low and high; NaN for both where there are no values.
    """
    if len(values) == 0:
        return float("nan"), float("nan")
    labels = np.arange(len(values)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    if labels.max() == 0:
        labels = np.arange(len(values))
    sums = np.bincount(labels, weights=values)
    sizes = np.bincount(labels)
    count = len(sums)
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
    means = (weights @ sums) / (weights @ sizes)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
