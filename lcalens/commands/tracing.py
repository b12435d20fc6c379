"""What `lcalens trace` does: contrasts of facts, patched, attributed and split, and a page of text about it."""

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lcalens.core.errors import LcalensError
from lcalens.core.progress import ProgressCallback
from lcalens.core.results import Result
from lcalens.llm.contrasts import contrast_facts
from lcalens.mechanism.attribute import attribute
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.patch import patch
from lcalens.mechanism.ranking import agreement, ranking
from lcalens.mechanism.split import split

_LEADING = 10
_FEWEST = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """A hijack, traced.

    Attributes:
        contrast: The facts' pairs of runs.
        ranked: Heads in order of their effect on every second fact, with their effects on the others.
        patched: Exact patching on the others.
        parts: Attention against recall, on all.
        agreement: How far attribution and direct effects agree with exact patching, on the facts ranked.
    """

    contrast: Contrast
    ranked: Result
    patched: Result
    parts: Result
    agreement: pd.DataFrame


def trace_facts(
    model: Any,
    facts: Any,
    *,
    scheme: str,
    n: int,
    control: Any,
    seed: int,
    out: Path | None,
    progress: bool | ProgressCallback,
) -> Trace:
    """Rank heads on every second fact, and measure on the others.

    Args:
        model: A TransformerBridge.
        facts: The facts.
        scheme: What hijacks them.
        n: How many sentences.
        control: The clean run's sentence.
        seed: Of what is drawn.
        out: Where finished parts are kept.
        progress: As for `patch`.

    Raises:
        LcalensError: An argument that cannot be used, or fewer than four facts with a control.
    """
    contrast = contrast_facts(model, facts, scheme=scheme, n=n, control=control, seed=seed)
    if len(contrast) < _FEWEST:
        raise LcalensError(
            f"limit: {len(contrast)} facts have this scheme and control; to rank on one half and measure on the other "
            f"takes {_FEWEST} at least. Take more."
        )
    first, second = contrast[::2], contrast[1::2]
    folder = None if out is None else out / "patching"
    before, after = (patch(model, half, out=folder, progress=progress) for half in (first, second))
    estimates = {name: attribute(model, first, method=name, progress=progress) for name in ("patching", "direct")}
    rows = [
        agreement(before, estimate, k=min(_LEADING, before.values["value"][0].size)).assign(of=name)
        for name, estimate in estimates.items()
    ]
    return Trace(
        contrast=contrast,
        ranked=ranking(before, held_out=after),
        patched=after,
        parts=split(model, contrast, progress=progress),
        agreement=pd.concat(rows, ignore_index=True),
    )


def trace_text(found: Trace) -> str:
    """The ten leading heads, attention against recall, and the balance, for a terminal."""
    ranked, held_out = len(found.contrast[::2]), len(found.contrast[1::2])
    model = found.patched.provenance["model"]
    lines = [
        f"{model['source']} ({model['dtype']}); {found.contrast!r}",
        "Metric: logit(false) - logit(true) at the last position. Recovery: 0 hijacked, 1 clean. Intervals: 95%, over",
        f"relations. Heads are ranked on {ranked} facts and reported on {held_out} others.",
        "",
        "The leading heads, patched exactly (z at the last position):",
        f"  {'head':8}{'ranked':>8}{'held out':>10}  interval",
    ]
    for row in found.ranked.summary.head(_LEADING).itertuples():
        lines.append(
            f"  L{row.layer}H{row.head}".ljust(10)
            + f"{row.value:8.2f}{row.held_out:10.2f}  [{row.held_out_low:.2f}, {row.held_out_high:.2f}]"
        )
    lines += ["", "Attention against recall, logits by span (hijacked less clean, summed over heads):"]
    lines += ["  " + line for line in _wide(found.parts.summary).splitlines()]
    lines += ["", "What makes up the metric's change:"]
    lines += [
        "  " + line for line in found.parts.tables["balance"].to_string(index=False, float_format="%.3f").split("\n")
    ]
    if len(found.parts.tables.get("twin", ())):
        lines += [
            "",
            "The leading heads' patterns, values or both made clean (chosen on one half, measured on the other):",
        ]
        lines += [
            "  " + line for line in found.parts.tables["twin"].to_string(index=False, float_format="%.2f").split("\n")
        ]
    lines += ["", "How far cheaper methods agree with exact patching:"]
    shown = found.agreement[["of", "measure", "value", "low", "high", "chance"]]
    lines += _indented(shown, 2)
    return "\n".join(lines)


def _wide(summary: pd.DataFrame) -> str:
    told = zip(summary["mean"], summary["low"], summary["high"], strict=True)
    cells = ["" if pd.isna(mean) else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" for mean, low, high in told]
    table = summary.assign(cell=cells).pivot_table(
        index="group", columns="part", values="cell", aggfunc="first", sort=False
    )
    return table.to_string()


def _indented(table: pd.DataFrame, digits: int) -> list[str]:
    return ["  " + line for line in table.to_string(index=False, float_format=f"%.{digits}f").split("\n")]


def trace_markdown(found: Trace, command: str) -> str:
    """The same as a Markdown page.

    Args:
        found: The trace.
        command: What was typed.
    """
    return f"`{html.escape(command, quote=False)}`\n\n```\n{trace_text(found)}\n```\n"
