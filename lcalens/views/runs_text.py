"""Run folders for a terminal: which studies they hold, how two differ, and what can go."""

import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lcalens.core.cleaning import Cleaning
from lcalens.core.comparison import Difference, Numbers
from lcalens.core.studies import Kept
from lcalens.views.text import short_name

_WIDTH = 110
_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60))
_KEYS = 6  # of a study's cells that are shown


def studies_screen(kept: Sequence[Kept], root: Path) -> str:
    """A line for every study.

    Args:
        kept: The studies.
        root: The folder in which they were looked for.
    """
    if not kept:
        return f"No study in {short_name(root, 80)}."
    rows = [["study", "folder", "verb", "model", "of", "cells", "state", "last worked on"]]
    rows += [
        [
            one.study.name[:8],
            short_name(one.folder.relative_to(root), 32),
            short_name(one.study.verb, 24),
            short_name(one.study.model.get("source", "-"), 22),
            short_name(told_data(one), 30),
            f"{len(one.present)}/{one.study.total}",
            one.state,
            ago(one.worked),
        ]
        for one in kept
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)  # fmt: skip


def study_screen(kept: Kept, command: str | None) -> str:
    """One study, whole.

    Args:
        kept: The study.
        command: Its command line, quoted for a shell; None where Python called it.
    """
    study = kept.study
    lines = [
        ("study", study.name),
        ("manifest", short_name(kept.file, 90)),
        ("command", short_name(command, 400) if command else "none: it was called from Python"),
        ("state", f"{kept.state}: {len(kept.present)} of {study.total} cells are there"),
        ("begun", f"{study.begun}, last worked on {kept.worked.isoformat(timespec='seconds')} ({ago(kept.worked)})"),
        ("ended", study.ended or "no"),
        *([("cleaned", study.cleaned)] if study.cleaned else []),
        ("verb", study.verb),
        ("code", study.code),
    ]
    for part in ("model", "data", "settings", "versions"):
        lines += [(f"{part}.{name}", value) for name, value in getattr(study, part).items()]
    more = f" and {len(study.cells) - _KEYS} more" if len(study.cells) > _KEYS else ""
    lines.append(("cells", ", ".join(study.cells[:_KEYS]) + more))
    width = max(len(name) for name, _ in lines)
    return "\n".join(
        textwrap.fill(
            short_name(value, 600), _WIDTH, initial_indent=f"{short_name(name, 60):{width}}  ",
            subsequent_indent=" " * (width + 2), break_on_hyphens=False,
        )
        for name, value in lines
    )  # fmt: skip


def comparison_screen(differing: Sequence[Difference], numbers: Sequence[Numbers], unmeasured: str) -> str:
    """In what two studies differ, and how far their numbers are apart.

    Args:
        differing: Settings, versions, model, data.
        numbers: Of every quantity the largest difference.
        unmeasured: Why there are none; empty where there are.
    """
    lines = ["They differ in nothing that a manifest says." if not differing else "They differ in:"]
    for one in differing:
        lines.append(f"  {short_name(one.name, 60)}: {short_name(one.left, 60)} | {short_name(one.right, 60)}")
    lines.append("")
    if unmeasured:
        return "\n".join([*lines, f"Numbers are not compared: {unmeasured}"])
    for one in numbers:
        lines.append(f"{short_name(one.quantity)}: {numbers_line(one)}")
    return "\n".join(lines)


def numbers_line(numbers: Numbers) -> str:
    """How far one quantity's numbers are apart, in a line.

    Args:
        numbers: Of a quantity.
    """
    alone = f"; {numbers.alone} places have a number in one alone" if numbers.alone else ""
    if not numbers.compared:
        return f"no number in common{alone}"
    at = ", ".join(f"{axis} {short_name(label, 40)}" for axis, label in numbers.at.items())
    apart = (
        f"the largest difference is {numbers.largest:.3g} ({numbers.left:.6g} | {numbers.right:.6g}; at {at})"
        if numbers.largest
        else "the same to the last bit"
    )
    return f"{numbers.compared} numbers: {apart}{alone}"


def cleaning_screen(plan: Cleaning, unsaved: Sequence[Kept], done: bool) -> str:
    """What goes, or went, and of which studies no result is saved beside the cells.

    Args:
        plan: What can go.
        unsaved: Finished studies without a saved result.
        done: Whether it is removed.
    """
    lines = []
    for why in dict.fromkeys(item.why for item in plan.waste):
        sizes = [item.size for item in plan.waste if item.why == why]
        lines.append(f"{len(sizes)} files {why}: {sum(sizes) / 1e6:.3g} MB")
    lines = lines or ["Nothing can go."]
    for kept in unsaved:
        lines.append(
            f"{short_name(kept.study.verb, 24)} {kept.study.name[:8]} is finished, and no result of it is saved "
            f"beside it: its numbers {'will' if done else 'would'} have to be computed again."
        )
    lines += [f"Cells stay where a manifest cannot be read: {error}" for error in plan.problems]
    if plan.waste:
        lines.append("Removed." if done else "Nothing is removed yet: give --yes to remove them.")
    return "\n".join(textwrap.fill(line, _WIDTH) for line in lines)


def told_data(kept: Kept) -> str:
    """What a study measures, in few words.

    Args:
        kept: The study.
    """
    data = kept.study.data
    facts: Any = next((value for value in data.values() if isinstance(value, dict) and "source" in value), None)
    if facts is not None:
        return f"{facts['source']} ({facts.get('count')} facts)"
    if "contrast" in data:
        return f"{data.get('examples')} examples {str(data['contrast'])[:8]}"
    return f"concepts m = {data['concepts'].get('m')}" if isinstance(data.get("concepts"), dict) else "-"


def ago(moment: datetime) -> str:
    """How long a moment is past, in words.

    Args:
        moment: With its time zone.
    """
    seconds = (datetime.now(UTC) - moment).total_seconds()
    for unit, length in _UNITS:
        count = int(seconds // length)
        if count >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
