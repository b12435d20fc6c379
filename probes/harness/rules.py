"""When a claim holds: a minimum effect and a margin over a control, both named before anything is measured.

A claim is asked in several settings. In one it is met where the whole 95% interval of the effect clears the minimum,
and that of the effect less the control clears the margin. It *holds* where it is met in every setting that counts,
*holds in part* where in some, and *does not hold* where in none. A setting where an interval reaches over the minimum
or the margin decides nothing; where none is met and none fails, the claim is *undecided*. Where the paper leaves a
setting open that decides, the verdict is *depends on* it, and counts neither for the claim nor against it. So it is
where a claim is not met, but only in settings whose value of what is left open was not yet large enough to tell, such
as a training that had not ended.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median_low
from typing import Literal

import numpy as np
import pandas as pd

from lcalens.core.errors import LcalensError
from lcalens.core.estimates import Estimate, Numbers, difference, over_seeds

Group = Literal["paper", "stronger", "ours"]
GROUPS: dict[Group, str] = {"paper": "the paper's claims", "stronger": "stronger controls", "ours": "ours"}
"""What each group is called: only the first speaks of the paper."""

Word = Literal["holds", "holds in part", "does not hold", "depends on", "undecided"]
Range = tuple[float, float]
ANY: Range = (-math.inf, math.inf)
SHARE: Range = (0.0, 1.0)
CHANGE: Range = (-1.0, 1.0)
"""Of a change of a share."""
ANGLE: Range = (0.0, 90.0)
_ROUNDING = 1e-9  # an interval below this says how the machine rounds


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one setting says of a claim.

    Attributes:
        setting: Which world, sizes or model.
        effect: The number that the claim is about.
        control: The same number where the claim gives no reason for it.
        excess: Effect less control; paired, where both were measured on the same seeds or facts.
        at: The value here of what the paper leaves open, for a rule with an `unknown`.
        counted: Whether the verdict counts it; false for what is true by construction, and for settings that are ours.
        unfinished: Whether more of the `unknown` would still move the effect: training had not ended, say.
        case: The setting but for the `unknown`: from the first to the last value only the same cases are compared.
    """

    setting: str
    effect: Estimate
    control: Estimate
    excess: Estimate
    at: float | str | None = None
    counted: bool = True
    unfinished: bool = False
    case: str = ""


def paired(
    setting: str, effect: Numbers, control: Numbers, *, at: float | str | None = None, counted: bool = True
) -> Evidence:
    """Evidence from one number a seed of each, paired by seed.

    Args:
        setting: Which world, sizes or model.
        effect: One number a seed.
        control: Of the same seeds, in the same order.
        at: The value of the rule's `unknown`.
        counted: Whether the verdict counts it.

    Raises:
        LcalensError: They are not of the same seeds.
    """
    one, other = np.asarray(effect, dtype=float), np.asarray(control, dtype=float)
    if one.shape != other.shape:
        raise LcalensError(f"control: {other.shape} numbers beside {one.shape} of the effect; give one a seed.")
    means = over_seeds(one), over_seeds(other), over_seeds(one - other)
    return Evidence(setting=setting, effect=means[0], control=means[1], excess=means[2], at=at, counted=counted)


def unpaired(setting: str, effect: Estimate, control: Estimate, *, counted: bool = True) -> Evidence:
    """Evidence from two intervals of independent samples; that of the difference is Newcombe's (1998, method 10).

    Args:
        setting: Which world, sizes or model.
        effect: The effect.
        control: The control.
        counted: Whether the verdict counts it.
    """
    return Evidence(
        setting=setting, effect=effect, control=control, excess=difference(effect, control), counted=counted
    )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What would make a claim hold, said beforehand.

    Attributes:
        claim: In plain words what is measured, and never more than that.
        source: Where the paper says so.
        group: Whose claim it is: one of `GROUPS`.
        sentence: The paper's sentence that is judged, for the group `paper`: translated from the rendering.
        effect: What the number is, in words that follow "the whole 95% interval of".
        unit: Its unit, or what it is a number of.
        minimum: What the effect must reach (of `at most`: stay below).
        control: What the control is.
        margin: By how much the effect must exceed the control (of `at most`: stay below it).
        effect_range: What the effect can be.
        control_range: What the control can be.
        sense: Whether the effect is to be large or small.
        unknown: A setting that the paper leaves open and that may decide, such as L; evidence carries its value.
        headline: The claim in a few words for the README's short table; empty where it is not in it.

    Raises:
        LcalensError: The rule could not hold, or could not fail, whatever were measured; or it lacks its sentence.
    """

    claim: str
    source: str
    group: Group
    effect: str
    unit: str
    minimum: float
    control: str
    margin: float
    effect_range: Range
    control_range: Range
    sense: Literal["at least", "at most"] = "at least"
    sentence: str = ""
    unknown: str = ""
    headline: str = ""

    def __post_init__(self):
        for name in ("effect_range", "control_range"):
            low, high = getattr(self, name)
            if not low < high:
                raise LcalensError(f"{name}: expected a lower and a higher end, got {low:g} and {high:g}.")
        if self.group == "paper" and not self.sentence:
            raise LcalensError(f"sentence: {self.claim!r} is judged as the paper's claim; quote the sentence, or "
                               "put the rule in another group.")  # fmt: skip
        (effect_low, effect_high), (excess_low, excess_high) = self.effect_range, self.excess_range
        best, worst = (effect_high, excess_high), (effect_low, excess_low)
        if self.sense == "at most":
            best, worst = worst, best
        if not self._clears(*best):
            raise LcalensError(
                f"rule: {self.claim!r} cannot hold: the effect is within {_ends(self.effect_range)} and the control "
                f"within {_ends(self.control_range)}; lower the minimum or the margin."
            )
        if self._clears(*worst):
            raise LcalensError(
                f"rule: {self.claim!r} cannot fail: every effect within {_ends(self.effect_range)} beside every "
                f"control within {_ends(self.control_range)} meets it; raise the minimum or the margin."
            )

    @property
    def excess_range(self) -> Range:
        """What effect less control can be."""
        return self.effect_range[0] - self.control_range[1], self.effect_range[1] - self.control_range[0]

    def __str__(self) -> str:
        """The rule in words."""
        larger = self.sense == "at least"
        return (
            f"The whole 95% interval of {self.effect} must be {self.sense} {self.minimum:g} and "
            f"{'exceed' if larger else 'lie below'} the control's by {self.margin:g}. The control: {self.control}."
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

    def fails(self, evidence: Evidence) -> bool:
        """Whether the claim fails in this setting: the whole of one of the two intervals is on the wrong side.

        What has no interval, or is no number, such as a run that diverged, fails too.

        Args:
            evidence: Of one setting.
        """
        if any(math.isnan(slack) for slack in self.slack(evidence)):
            return True
        if self.sense == "at least":
            return evidence.effect.high < self.minimum or evidence.excess.high < self.margin
        return evidence.effect.low > self.minimum or evidence.excess.low > -self.margin

    def judge(self, evidence: Sequence[Evidence]) -> "Verdict":
        """The verdict over all settings that count. Intervals are taken as ones that stay in the quantity's range.

        Args:
            evidence: One a setting.

        Raises:
            LcalensError: There is none that counts; or it lacks the value of the rule's `unknown`.
        """
        evidence = [self._within(one) for one in evidence]
        counted = [one for one in evidence if one.counted]
        if not counted:
            raise LcalensError(f"evidence: none for {self.claim!r}; a verdict needs a setting that counts.")
        if self.unknown and any(one.at is None for one in counted):
            raise LcalensError(f"evidence: {self.claim!r} may depend on {self.unknown}; give each setting `at`.")
        met = tuple(self.meets(one) for one in evidence)
        of_counted = [self.meets(one) for one in counted]
        word: Word = "holds" if all(of_counted) else "holds in part" if any(of_counted) else "does not hold"
        unmet = [one for one, met in zip(counted, of_counted, strict=True) if not met]
        decides = (word == "holds in part" and self._differs(counted)) or all(
            one.unfinished and not math.isnan(one.effect.mean) for one in unmet
        )
        if self.unknown and word != "holds" and decides:
            word = "depends on"
        elif word == "does not hold" and not any(self.fails(one) for one in unmet):
            word = "undecided"

        def closest(one: Evidence) -> float:
            slack = self.slack(one)
            return -math.inf if any(math.isnan(part) for part in slack) else min(slack)

        return Verdict(rule=self, evidence=tuple(evidence), word=word, met=met, worst=min(counted, key=closest))

    def _clears(self, effect: float, excess: float) -> bool:
        if self.sense == "at least":
            return effect >= self.minimum and excess >= self.margin
        return effect <= self.minimum and excess <= -self.margin

    def _differs(self, evidence: Sequence[Evidence]) -> bool:
        """Whether the share of settings that are met is another at another value of what is left open."""
        at: dict[float | str | None, list[bool]] = {}
        for one in evidence:
            at.setdefault(one.at, []).append(self.meets(one))
        return len({sum(met) / len(met) for met in at.values()}) > 1

    def _within(self, evidence: Evidence) -> Evidence:
        return replace(
            evidence,
            effect=evidence.effect.within(*map(float, self.effect_range)),
            control=evidence.control.within(*map(float, self.control_range)),
            excess=evidence.excess.within(*map(float, self.excess_range)),
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A rule, the evidence and what follows.

    Attributes:
        rule: The rule.
        evidence: One a setting.
        word: `holds`, `holds in part`, `does not hold`, `undecided`, or `depends on` what the paper leaves open.
        met: Whether the claim is met, setting by setting, also where that is not counted.
        worst: Of the settings that count the one that comes closest to failing, or fails by most.
    """

    rule: Rule
    evidence: tuple[Evidence, ...]
    word: Word
    met: tuple[bool, ...]
    worst: Evidence

    @property
    def counted(self) -> list[Evidence]:
        """The settings that count."""
        return [one for one in self.evidence if one.counted]

    @property
    def share(self) -> str:
        """In how many of the settings that count it is met: `4 of 4`."""
        met = [met for one, met in zip(self.evidence, self.met, strict=True) if one.counted]
        return f"{sum(met)} of {len(met)}"

    @property
    def middle(self) -> Evidence:
        """The setting with the median effect."""
        counted = [one for one in self.counted if not math.isnan(one.effect.mean)]
        if not counted:
            return self.worst
        median = median_low(one.effect.mean for one in counted)
        return next(one for one in counted if one.effect.mean == median)

    def told(self) -> str:
        """The verdict's word with the share of settings that it rests on."""
        if self.word == "depends on":
            return f"depends on {self.rule.unknown}: {self._from_to()}"
        open_ones = sum(not self.rule.meets(one) and not self.rule.fails(one) for one in self.counted)
        undecided = f", {open_ones} undecided" if open_ones and self.word != "undecided" else ""
        told = {"holds in part": f"holds in {self.share}", "undecided": f"undecided, {self.share} met"}
        return told.get(self.word, f"{self.word}, {self.share}") + undecided

    def effects(self) -> str:
        """The range of the effect over the settings that count, and the middle one: the lower of two."""
        means = [one.effect.mean for one in self.counted if not math.isnan(one.effect.mean)]
        if len(means) < 2:
            return shown(self.middle.effect)
        if _number(min(means)) == _number(max(means)):
            return f"{_number(min(means))} in all"
        return f"{_number(min(means))} to {_number(max(means))}, middle {_number(median_low(means))}"

    def to_frame(self) -> pd.DataFrame:
        """A row a setting: `setting`, `effect`, `control`, `effect - control`, `met`."""
        words = [
            ("yes" if met else "no" if self.rule.fails(one) else "undecided") + ("" if one.counted else ", not counted")
            for one, met in zip(self.evidence, self.met, strict=True)
        ]
        return pd.DataFrame(
            {
                "setting": one.setting,
                "effect": shown(one.effect),
                "control": shown(one.control),
                "effect - control": shown(one.excess),
                "met": word,
            }
            for one, word in zip(self.evidence, words, strict=True)
        )

    def _from_to(self) -> str:
        """The mean effect, or the difference where that decides, at the first and the last value left open."""
        at: dict[float | str, list[Evidence]] = {}
        for one in self.counted:
            at.setdefault(one.at or 0, []).append(one)
        values = list(at) if any(isinstance(value, str) for value in at) else sorted(at)
        ends = (values[0], values[-1])
        both = set.intersection(*({one.case for one in at[value]} for value in ends))
        slacks = [self.rule.slack(one) for one in self.counted if not self.rule.meets(one)]
        by_difference = all(minimum >= 0 for minimum, _ in slacks)  # what misses misses the margin alone
        parts = []
        for value in ends:
            alike = [one for one in at[value] if one.case in both] or at[value]
            means = [(one.excess if by_difference else one.effect).mean for one in alike]
            met = [self.rule.meets(one) for one in alike]
            name = value if isinstance(value, str) else f"{value:g}"
            mean = _number(float(np.mean(means)))
            parts.append(f"{mean} at {self.rule.unknown} = {name} (met in {sum(met)} of {len(met)})")
        more = "; more of them would still move it" if any(one.unfinished for one in at[values[-1]]) else ""
        return f"{'a difference ' if by_difference else ''}from {parts[0]} to {parts[1]}{more}"


def shown(estimate: Estimate) -> str:
    """An estimate as text. Of what is rounding error its size alone: an interval of it says nothing.

    Args:
        estimate: Any.
    """
    if 0 < max(abs(estimate.low), abs(estimate.high)) < _ROUNDING:
        return f"{estimate.mean:.0e} (rounding error)"
    if math.isnan(estimate.low) and not math.isnan(estimate.mean):
        return f"{estimate.mean:.3g}"
    return str(estimate)


def _number(value: float) -> str:
    return f"{value:.0e}" if 0 < abs(value) < _ROUNDING else f"{value:.3g}"


def _ends(ends: Range) -> str:
    return f"[{ends[0]:g}, {ends[1]:g}]"
