"""When a claim holds: a minimum effect and a margin over a control, both named before anything is measured.

A claim is asked in several settings. In one it is met where the whole 95% interval of the effect clears the minimum,
and that of the effect less the control clears the margin. It *holds* where it is met in every setting, *holds in part*
where in some, and *does not hold* where in none. The number shown is of the setting that comes closest to failing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import t as student

from lcalens.core.errors import LcalensError
from lcalens.core.statistics import wilson
from lcalens.mechanism.summary import ratio_of_means

Word = Literal["holds", "holds in part", "does not hold"]
_COVERAGE = 0.95


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


def exact(number: float) -> Estimate:
    """A number without an interval.

    Args:
        number: Any.
    """
    return Estimate(float(number), float(number), float(number))


def over_seeds(values: ArrayLike) -> Estimate:
    """The mean over seeds with Student's 95% interval; NaN ends where there are fewer than two.

    Args:
        values: One a seed.

    Raises:
        LcalensError: There are none.
    """
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or not len(found):
        raise LcalensError(f"values: expected one number a seed, got an array of shape {found.shape}.")
    mean = float(found.mean())
    if len(found) < 2:
        return Estimate(mean, math.nan, math.nan)
    half = float(student.ppf((1 + _COVERAGE) / 2, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found)))
    return Estimate(mean, mean - half, mean + half)


def over_contexts(shares: ArrayLike, contexts: int) -> Estimate:
    """The mean of shares, with Wilson's 95% interval over all their contexts: for a model that is the same every time.

    Over seeds the interval of a share that is always 1 would have no width, as if it were exact.

    Args:
        shares: One for each sample of contexts.
        contexts: How many contexts each is of.
    """
    found = np.asarray(shares, dtype=float)
    mean = float(found.mean())
    if math.isnan(mean):
        return Estimate(mean, math.nan, math.nan)
    return Estimate(mean, *wilson(round(mean * contexts * found.size), contexts * found.size))


def ratio_of_facts(part: ArrayLike, whole: ArrayLike, clusters: ArrayLike) -> Estimate:
    """The mean of `part` over the mean of `whole`, with a 95% bootstrap interval that resamples whole clusters.

    Args:
        part: One number a fact: what is explained.
        whole: What there is to explain.
        clusters: The facts' relations.
    """
    arrays = (np.asarray(part, dtype=float), np.asarray(whole, dtype=float), np.asarray(clusters))
    return Estimate(*(float(end) for end in ratio_of_means(*arrays)))


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one setting says of a claim.

    Attributes:
        setting: Which world, sizes or model.
        effect: The number that the claim is about.
        control: The same number where the claim gives no reason for it.
        excess: Effect less control; paired, where both were measured on the same seeds or facts.
    """

    setting: str
    effect: Estimate
    control: Estimate
    excess: Estimate


def paired(setting: str, effect: ArrayLike, control: ArrayLike) -> Evidence:
    """Evidence from one number a seed of each, paired by seed.

    Args:
        setting: Which world, sizes or model.
        effect: One number a seed.
        control: Of the same seeds, in the same order.

    Raises:
        LcalensError: They are not of the same seeds.
    """
    one, other = np.asarray(effect, dtype=float), np.asarray(control, dtype=float)
    if one.shape != other.shape:
        raise LcalensError(f"control: {other.shape} numbers beside {one.shape} of the effect; give one a seed.")
    return Evidence(setting=setting, effect=over_seeds(one), control=over_seeds(other), excess=over_seeds(one - other))


def unpaired(setting: str, effect: Estimate, control: Estimate) -> Evidence:
    """Evidence from two intervals of independent samples; that of the difference is Newcombe's (1998, method 10).

    Args:
        setting: Which world, sizes or model.
        effect: The effect.
        control: The control.
    """
    apart = effect.mean - control.mean
    low = apart - math.hypot(effect.mean - effect.low, control.high - control.mean)
    high = apart + math.hypot(effect.high - effect.mean, control.mean - control.low)
    return Evidence(setting=setting, effect=effect, control=control, excess=Estimate(apart, low, high))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What would make a claim hold, said beforehand.

    Attributes:
        claim: What the paper says, in one sentence.
        source: Where it says so.
        effect: What the number is, with its unit.
        minimum: What the effect must reach (of `at most`: stay below).
        control: What the control is.
        margin: By how much the effect must exceed the control (of `at most`: stay below it).
        sense: Whether the effect is to be large or small.
    """

    claim: str
    source: str
    effect: str
    minimum: float
    control: str
    margin: float
    sense: Literal["at least", "at most"] = "at least"

    def __str__(self) -> str:
        """The rule in words."""
        return (
            f"Holds where {self.effect} is {self.sense} {self.minimum:g} and {self.margin:g} "
            f"{'above' if self.sense == 'at least' else 'below'} the control ({self.control}), by their whole 95% "
            "intervals, in every setting; in part where in some."
        )

    def slack(self, evidence: Evidence) -> tuple[float, float]:
        """By how much the worst ends of effect and excess clear minimum and margin; NaN where there is no interval.

        Args:
            evidence: Of one setting.
        """
        if self.sense == "at least":
            return evidence.effect.low - self.minimum, evidence.excess.low - self.margin
        return self.minimum - evidence.effect.high, -self.margin - evidence.excess.high

    def meets(self, evidence: Evidence) -> bool:
        """Whether the claim is met in this setting. What has no interval, or is no number, is not.

        Args:
            evidence: Of one setting.
        """
        return all(slack >= 0 for slack in self.slack(evidence))

    def judge(self, evidence: Sequence[Evidence]) -> "Verdict":
        """The verdict over all settings.

        Args:
            evidence: One a setting.

        Raises:
            LcalensError: There is no evidence.
        """
        if not evidence:
            raise LcalensError(f"evidence: none for {self.claim!r}; a verdict needs a setting at least.")
        met = [self.meets(one) for one in evidence]
        word: Word = "holds" if all(met) else "holds in part" if any(met) else "does not hold"

        def closest(one: Evidence) -> float:
            slack = self.slack(one)
            return -math.inf if any(math.isnan(part) for part in slack) else min(slack)

        return Verdict(rule=self, evidence=tuple(evidence), word=word, met=tuple(met), worst=min(evidence, key=closest))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A rule, the evidence and what follows.

    Attributes:
        rule: The rule.
        evidence: One a setting.
        word: `holds`, `holds in part` or `does not hold`.
        met: Whether the claim is met, setting by setting.
        worst: The setting that comes closest to failing, or fails by most.
    """

    rule: Rule
    evidence: tuple[Evidence, ...]
    word: Word
    met: tuple[bool, ...]
    worst: Evidence

    def to_frame(self) -> pd.DataFrame:
        """A row a setting: `setting`, `effect`, `control`, `excess`, `met`."""
        return pd.DataFrame(
            {
                "setting": one.setting,
                "effect": str(one.effect),
                "control": str(one.control),
                "effect - control": str(one.excess),
                "met": "yes" if met else "no",
            }
            for one, met in zip(self.evidence, self.met, strict=True)
        )
