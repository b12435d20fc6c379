"""A number with its 95% interval: one function for each kind of sample, each naming the interval that suits it."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from lcalens.core.errors import LcalensError
from lcalens.core.statistics import (
    CONFIDENCE,
    clustered_mean_interval,
    ratio_of_means,
    student_interval,
    wilson,
)

Numbers = Iterable[Any]
"""Numbers in any collection: a list, a NumPy array, a column of a data frame."""


class Estimate(NamedTuple):
    """A number with the ends of its 95% interval; both are the number itself where it is exact."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """`0.123 [0.1, 0.146]`, or the number alone where it is exact."""
        if math.isclose(self.low, self.high, rel_tol=1e-12):
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"

    def within(self, least: float, most: float) -> "Estimate":
        """The same with an interval that stays in the quantity's range; as it is where it does already.

        It is Wilson's for a share that has this interval's width at the mean: the variance is taken to fall to 0 at the
        ends, as (x - least)(most - x), or as x - least where there is one end alone. With both ends at infinity nothing
        changes.

        Args:
            least: The least that the quantity can be.
            most: The most.

        Raises:
            LcalensError: The mean itself lies outside.

        Example:
            >>> str(Estimate(0.99, 0.97, 1.01).within(0.0, 1.0))
            '0.99 [0.944, 0.998]'
        """
        slack = 1e-9 * max(1.0, abs(self.mean))
        if not self.mean >= least - slack or not self.mean <= most + slack:
            if math.isnan(self.mean):
                return self
            raise LcalensError(f"estimate: the mean {self.mean:g} lies outside [{least:g}, {most:g}].")
        if math.isnan(self.low) or (self.low >= least and self.high <= most):
            return self
        if math.isinf(least):
            low, high = Estimate(-self.mean, -self.high, -self.low).within(-most, math.inf)[1:]
            return Estimate(self.mean, -high, -low)
        half, above = max(self.mean - self.low, self.high - self.mean), self.mean - least
        if math.isinf(most):
            if above <= slack:
                return Estimate(self.mean, self.mean, self.high)
            spread = half**2 / above
            reach = math.sqrt(spread * above + spread**2 / 4)
            return Estimate(self.mean, least + above + spread / 2 - reach, least + above + spread / 2 + reach)
        width = most - least
        part = above / width
        if not slack < part < 1 - slack:
            return Estimate(self.mean, max(self.low, least), min(self.high, most))
        spread = (half / width) ** 2 / (part * (1 - part))
        middle = (part + spread / 2) / (1 + spread)
        reach = math.sqrt(spread * part * (1 - part) + spread**2 / 4) / (1 + spread)
        return Estimate(self.mean, least + width * (middle - reach), least + width * (middle + reach))


NOTHING = Estimate(math.nan, math.nan, math.nan)
"""The estimate from no measurement at all."""


def exact(number: float) -> Estimate:
    """A number without an interval.

    Args:
        number: Any.

    Example:
        >>> str(exact(0.5))
        '0.5'
    """
    return Estimate(float(number), float(number), float(number))


def over_seeds(values: Numbers) -> Estimate:
    """The mean over seeds with Student's interval; NaN ends where there are fewer than two.

    Args:
        values: One per seed.

    Raises:
        LcalensError: There are none.

    Example:
        >>> str(over_seeds([0.1, 0.2, 0.3]))
        '0.2 [-0.0484, 0.448]'
    """
    measured = np.asarray(values, dtype=float)
    if measured.ndim != 1 or not len(measured):
        raise LcalensError(f"values: expected one number per seed, got an array of shape {measured.shape}.")
    return Estimate(float(measured.mean()), *student_interval(measured))


def over_contexts(shares: Numbers, contexts: int) -> Estimate:
    """The mean of shares, with Wilson's interval over all their contexts: for a model that is the same every time.

    Over seeds the interval of a share that is always 1 would have no width, as if it were exact.

    Args:
        shares: One for each sample of contexts.
        contexts: How many contexts each is of.
    """
    measured = np.asarray(shares, dtype=float)
    mean = float(measured.mean())
    if math.isnan(mean):
        return NOTHING
    return Estimate(mean, *wilson(round(mean * contexts * measured.size), contexts * measured.size))


def share(successes: Numbers) -> Estimate:
    """A share with Wilson's interval.

    Args:
        successes: Whether each example succeeds, 0 or 1.
    """
    measured = np.asarray(successes, dtype=float)
    if not len(measured):
        return NOTHING
    return Estimate(float(measured.mean()), *wilson(int(measured.sum()), len(measured)))


def matched(before: Numbers, after: Numbers) -> Estimate:
    """The share after less the share before, with Agresti and Min's (2005) interval for matched pairs.

    Half an example is added to each of the four ways in which one can go: where all of a few examples go the same way,
    a bootstrap would claim certainty, this does not.

    Args:
        before: Whether each example succeeds, 0 or 1.
        after: The same examples, in the same order.

    Raises:
        LcalensError: They are not of the same examples.
    """
    first, second = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if first.shape != second.shape or first.ndim != 1:
        raise LcalensError(f"after: {second.shape} facts beside {first.shape} before; give one number per fact.")
    if not len(first):
        return NOTHING
    gained, lost = (second > first).sum() + 0.5, (second < first).sum() + 0.5
    total = len(first) + 2
    middle = (gained - lost) / total
    from scipy.stats import norm

    half = float(norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(((gained + lost) / total - middle**2) / total)
    return Estimate(float((second - first).mean()), float(max(middle - half, -1)), float(min(middle + half, 1)))


def difference(effect: Estimate, control: Estimate) -> Estimate:
    """The difference of two independent estimates, with Newcombe's (1998) interval, his method 10.

    Args:
        effect: The effect.
        control: What is taken from it.
    """
    apart = effect.mean - control.mean
    low = apart - math.hypot(effect.mean - effect.low, control.high - control.mean)
    high = apart + math.hypot(effect.high - effect.mean, control.mean - control.low)
    return Estimate(apart, low, high)


def over_clusters(values: Numbers, clusters: Numbers) -> Estimate:
    """A mean with a bootstrap interval that resamples whole clusters.

    Args:
        values: One per fact.
        clusters: The facts' relations.
    """
    measured = np.asarray(values, dtype=float)
    if not len(measured):
        return NOTHING
    return Estimate(float(measured.mean()), *clustered_mean_interval(measured, np.asarray(clusters)))


def ratio_of_facts(part: Numbers, whole: Numbers, clusters: Numbers) -> Estimate:
    """The mean of `part` over the mean of `whole`, with a bootstrap interval that resamples whole clusters.

    Args:
        part: What is explained, one number per fact.
        whole: What there is to explain.
        clusters: The facts' relations.
    """
    arrays = (np.asarray(part, dtype=float), np.asarray(whole, dtype=float), np.asarray(clusters))
    return Estimate(*(float(end) for end in ratio_of_means(*arrays)))
