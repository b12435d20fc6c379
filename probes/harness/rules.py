"""When a claim holds: a minimum effect and a margin over a control, both named before anything is measured.

A claim is asked in several settings. In one it is met where the whole 95% interval of the effect clears the minimum,
and that of the effect less the control clears the margin. It *holds* where it is met in every setting, *holds in part*
where in some, and *does not hold* where in none. The number shown is of the setting that comes closest to failing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from lcalens.core.errors import LcalensError
from lcalens.core.estimates import Estimate, Numbers, difference, over_seeds

Word = Literal["holds", "holds in part", "does not hold"]


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


def paired(setting: str, effect: Numbers, control: Numbers) -> Evidence:
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
    return Evidence(setting=setting, effect=effect, control=control, excess=difference(effect, control))


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
