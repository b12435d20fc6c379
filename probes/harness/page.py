"""A probe's page, and the table of all verdicts, as Markdown."""

import html
import re
from collections.abc import Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any

import pandas as pd

from lcalens.core.errors import LcalensError
from lcalens.core.provenance import versions
from probes.harness.commits import rules_commit
from probes.harness.rules import GROUPS, Rule, Verdict, shown
from probes.harness.study import Outcome, Settings
from probes.harness.work import FIRST_SEED, WITHOUT

_NOT_JUDGED = "The quick preset shows that the probe works and measures too little for a verdict."
_SHORT = 12
COPY = (
    "The paper is arXiv 2406.18400. What we read is a Chinese rendering of its main text, from which sentences are "
    "translated here; its appendix was not read, nor its figures seen. Minima and margins are ours."
)
"""Which copy of the paper stands behind the quotations."""
FAMILIES = (
    "The intervals are of each setting by itself, and not corrected for how many claims there are: the settings of one "
    "rule are a family, which is met as a whole or is said to be met in part. Where p-values stand in a table they are "
    "Holm-corrected over its rows."
)
"""What is said of multiplicity wherever there are verdicts."""


def escaped(text: object) -> str:
    """Text that a table's cell shows as it is.

    Args:
        text: From data or from the user.
    """
    return re.sub(r"([\\`*_|$]|\](?=\())", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def table(frame: pd.DataFrame) -> list[str]:
    """A frame as Markdown, numbers to three digits.

    Args:
        frame: The rows.
    """
    rows = [[_shown(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    heads = [escaped(name) for name in frame.columns]
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows)]


def page(probe: ModuleType, outcome: Outcome, command: str, naive_seconds: float | None) -> str:
    """The probe's page.

    Args:
        probe: The module.
        outcome: Its run.
        command: The command line that made it.
        naive_seconds: What the plain script would take for what was trained.
    """
    first, _, rest = (probe.__doc__ or "").strip().partition("\n")
    lines = [f"# {first.rstrip('.')}", "", rest.strip(), "", COPY, ""]
    if not outcome.verdicts:
        lines += [_NOT_JUDGED, ""]
    for verdict in outcome.verdicts:
        lines += [*_judged(verdict), ""]
    if outcome.verdicts:
        lines += [FAMILIES, "", *_beforehand(probe), ""]
    for rule, evidence in outcome.report.evidence:
        if not evidence:
            lines += [f"Not measured with these settings: {rule.claim} ({rule.source})", ""]
        elif outcome.verdicts and rule in outcome.unmeasured:
            lines += [f"No verdict, as none of the settings counts: {rule.claim} ({_whose(rule)})", ""]
            lines += ["Measured in " + "; ".join(f"{one.setting}: {shown(one.effect)}" for one in evidence) + ".", ""]
    for number, caption in enumerate(outcome.report.figures, 1):
        lines += [f"![{caption}](figures/{outcome.name}-{number}.png)", "", f"*{caption}*", ""]
    if not outcome.verdicts:
        for rule, evidence in (told for told in outcome.report.evidence if told[1]):
            lines += [f"**{rule.claim}** ({_whose(rule)}) {rule}", ""]
            lines += ["Measured in " + "; ".join(f"{one.setting}: {shown(one.effect)}" for one in evidence) + ".", ""]
    for note in outcome.report.notes:
        lines += [f"- {note}"]
    lines += [""] * bool(outcome.report.notes)
    for title, frame in outcome.report.tables.items():
        lines += [f"## {title}", "", *table(frame), ""]
    lines += ["## What is left open", "", probe.CHOICES.strip(), "", "## Settings", ""]
    lines += [*table(_settings(outcome.settings)), "", "Made by", "", f"    {command}", ""]
    lines += [
        ", ".join(f"{name} {number}" for name, number in versions().items()) + ". " + _cost(outcome, naive_seconds)
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def verdict_table(outcomes: Sequence[Outcome], folder: str) -> list[str]:
    """All verdicts by group, the paper's claims first: a row a claim, of the setting in the middle.

    Args:
        outcomes: The probes that have run.
        folder: Where their pages are, as the table's reader sees it.
    """
    heads = ["claim", "where", "effect", "verdict", "middle setting", "effect there", "control", "difference", "page"]
    lines: list[str] = []
    for group, name in GROUPS.items():
        verdicts = [(outcome, one) for outcome in outcomes for one in outcome.verdicts if one.rule.group == group]
        if not verdicts:
            continue
        lines += ["", f"## {name[0].upper()}{name[1:]}", ""]
        lines += [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads))]
        for outcome, verdict in verdicts:
            rule, middle = verdict.rule, verdict.middle
            numbers = [shown(one) for one in (middle.effect, middle.control, middle.excess)]
            effect = f"{rule.effect} ({rule.unit}): {verdict.effects()}"
            cells = [rule.claim, rule.source, effect, _told(outcome, verdict), middle.setting, *numbers]
            lines.append(
                f"| {' | '.join(map(escaped, cells))} | [{escaped(outcome.name)}]({folder}{outcome.name}.md) |"
            )
        if left := [f"{rule.claim} ({outcome.name})" for outcome in outcomes for rule in outcome.unmeasured
                    if rule.group == group]:  # fmt: skip
            lines += ["", "No verdict with these settings: " + "; ".join(left) + "."]
    return lines[1:]


def short_table(outcomes: Sequence[Outcome], folder: str) -> list[str]:
    """The README's table: of the rules that have a headline, in plain words; twelve at most.

    Args:
        outcomes: The probes that have run.
        folder: Where their pages are.

    Raises:
        LcalensError: More than twelve rules have a headline.
    """
    chosen = [(outcome, one) for outcome in outcomes for one in outcome.verdicts if one.rule.headline]
    if len(chosen) > _SHORT:
        raise LcalensError(f"headline: {len(chosen)} rules have one; the README's table has {_SHORT} rows at most.")
    heads = ["claim", "whose", "verdict", "effect", "control", "difference"]
    lines = [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads))]
    for outcome, verdict in chosen:
        rule, middle = verdict.rule, verdict.middle
        effect = f"{rule.effect} ({rule.unit}): {verdict.effects()}"
        where = f"{shown(middle.effect)} in {middle.setting}" if len(verdict.counted) > 1 else middle.setting
        cells = [
            _told(outcome, verdict),
            f"{effect}; {where}",
            f"{rule.control}: {shown(middle.control)}",
            shown(middle.excess),
        ]
        claim = f"[{escaped(rule.headline)}]({folder}{outcome.name}.md)"
        lines.append(f"| {claim} | {GROUPS[rule.group]} | {' | '.join(map(escaped, cells))} |")
    return lines


def _told(outcome: Outcome, verdict: Verdict) -> str:
    """The verdict, and that it is of the shipped sample alone where it is."""
    missing = any(note.startswith(WITHOUT) for note in outcome.report.notes)
    return f"{verdict.told()}{' (shipped sample, without CounterFact)' if missing else ''}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, to two digits.

    Args:
        seconds: How many.
    """
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 100 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} seconds" if seconds < 100 else f"{seconds:.0f} seconds"


def _whose(rule: Rule) -> str:
    return f"{GROUPS[rule.group]}; {rule.source}"


def _judged(verdict: Verdict) -> list[str]:
    rule = verdict.rule
    lines = [f"## {rule.claim}", ""]
    if rule.sentence:
        lines += [f"> {rule.sentence}", ""]
    lines += [
        f"{rule.effect[0].upper()}{rule.effect[1:]} ({rule.unit}): {escaped(verdict.effects())} "
        f"(**{escaped(verdict.told())}**; {_whose(rule)}).",
        "",
        str(rule),
        "",
    ]
    if not all(rule.meets(one) for one in verdict.counted):
        worst = verdict.worst
        lines += [
            f"Worst setting: {escaped(worst.setting)}. Effect {shown(worst.effect)}, control {shown(worst.control)}, "
            f"difference {shown(worst.excess)}.",
            "",
        ]
    return [*lines, *table(verdict.to_frame())]


def _beforehand(probe: ModuleType) -> list[str]:
    """What was fixed before the runs: the rules' commit, and the toy's seeds."""
    told = (
        f"The minima and margins are those of commit {rules_commit(probe)}. The toy's runs have the seeds from "
        f"{FIRST_SEED} on, and no run with these seeds was looked at while the rules were written."
    )
    return [" ".join([told, *getattr(probe, "AFTERWARDS", "").split()])]


def _settings(settings: Settings) -> pd.DataFrame:
    hidden = ("out",)
    rows = [(one.name, getattr(settings, one.name)) for one in fields(settings) if one.name not in hidden]
    return pd.DataFrame([(name, _listed(value)) for name, value in rows], columns=pd.Index(["setting", "value"]))


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _cost(outcome: Outcome, naive_seconds: float | None) -> str:
    text = f"The cells took {duration(outcome.seconds)} when they were measured"
    if naive_seconds:
        text += (
            f"; a plain script, one run at a time, would need about {duration(naive_seconds)} for the training alone "
            "(see probes/harness/naive.py for how that is measured). Runs that several probes need are trained once"
        )
    return text + "."


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return escaped(value)
