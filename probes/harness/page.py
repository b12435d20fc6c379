"""A probe's page, and the table of all verdicts, as Markdown."""

import html
import re
from collections.abc import Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any

import pandas as pd

from lcalens.core.provenance import versions
from probes.harness.rules import Verdict
from probes.harness.study import Outcome, Settings

_NOT_JUDGED = "The quick preset shows that the probe works and measures too little for a verdict."


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
    lines = [f"# {first.rstrip('.')}", "", rest.strip(), ""]
    if not outcome.verdicts:
        lines += [_NOT_JUDGED, ""]
    for verdict in outcome.verdicts:
        lines += [*_judged(verdict), ""]
    for rule, evidence in outcome.report.evidence:
        if not evidence:
            lines += [f"Not measured with these settings: {rule.claim} ({rule.source})", ""]
    for number, caption in enumerate(outcome.report.figures, 1):
        lines += [f"![{caption}](figures/{outcome.name}-{number}.png)", "", f"*{caption}*", ""]
    if not outcome.verdicts:
        for rule, evidence in (told for told in outcome.report.evidence if told[1]):
            lines += [f"**{rule.claim}** ({rule.source}) {rule}", ""]
            lines += ["Measured in " + "; ".join(f"{one.setting}: {one.effect}" for one in evidence) + ".", ""]
    for note in outcome.report.notes:
        lines += [f"- {note}"]
    lines += [""] * bool(outcome.report.notes)
    for title, frame in outcome.report.tables.items():
        lines += [f"## {title}", "", *table(frame), ""]
    lines += ["## What the paper leaves open", "", probe.CHOICES.strip(), "", "## Settings", ""]
    lines += [*table(_settings(outcome.settings)), "", "Made by", "", f"    {command}", ""]
    lines += [
        ", ".join(f"{name} {number}" for name, number in versions().items()) + ". " + _cost(outcome, naive_seconds)
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def verdict_table(outcomes: Sequence[Outcome], folder: str) -> list[str]:
    """All verdicts, a row a claim.

    Args:
        outcomes: The probes that have run.
        folder: Where their pages are, as the table's reader sees it.
    """
    rows = ["| claim | where | verdict | number | control | page |", "| --- | --- | --- | --- | --- | --- |"]
    for outcome in outcomes:
        for verdict in outcome.verdicts:
            number, control = (escaped(text) for text in (verdict.worst.effect, verdict.worst.control))
            rows.append(
                f"| {verdict.rule.claim} | {verdict.rule.source} | **{verdict.word}** ({_share(verdict)}) | {number} | "
                f"{control} | [{escaped(outcome.name)}]({folder}{outcome.name}.md) |"
            )
    return rows


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, to two digits.

    Args:
        seconds: How many.
    """
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 100 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} seconds" if seconds < 100 else f"{seconds:.0f} seconds"


def _share(verdict: Verdict) -> str:
    return f"{sum(verdict.met)} of {len(verdict.met)} settings"


def _judged(verdict: Verdict) -> list[str]:
    worst, rule = verdict.worst, verdict.rule
    return [
        f"## {rule.claim}",
        "",
        f"**{verdict.word[0].upper()}{verdict.word[1:]}** ({rule.source}): met in {_share(verdict)}. In the one "
        f"closest to failing, or failing by most ({escaped(worst.setting)}), {rule.effect} is "
        f"{escaped(worst.effect)}; of the control, {rule.control}, {escaped(worst.control)}.",
        "",
        str(rule),
        "",
        *table(verdict.to_frame()),
    ]


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
