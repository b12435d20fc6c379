"""Results as text: for a terminal, and as a Markdown page."""

import html
import math
import re
import textwrap
from typing import TYPE_CHECKING, Any

import pandas as pd

from lcalens.views.intervals import about_intervals

if TYPE_CHECKING:
    from lcalens.core.results import Result
    from lcalens.llm.trace import Trace

_SUBSETS = {
    "all": "all facts",
    "known": "known facts: greedy decoding of the clean prompt gives the true object",
    "known, by the first token": "known facts: the clean prompt's likeliest next token begins the true object",
    "prefers-true": "facts where the clean prompt gives the true object the higher probability",
}
_SCORING = {"whole": "whole-object scoring", "first": "first-token scoring"}
_ALPHA = 0.05
_LEADING = 10


def efficacy_screen(result: "Result") -> str:
    """ES by scheme and n with intervals, the controls, and what could not be made."""
    facts, config = result.provenance["facts"], result.provenance["config"]
    lines = [
        f"{model_line(result)}; {facts['count']} facts of {facts['source']!r}; {_SCORING[config['scoring']]}"
        + ("; through the chat template" if config["chat"] else ""),
        "ES: share of facts where the false object is the more probable [95% Wilson interval]; retention = 1 - ES.",
        "*: differs from n=0, and behind a difference from the control (McNemar's exact test, Holm-corrected over all",
        f"tests of this study, p < {_ALPHA}).",
    ]
    for subset, table in _estimates(result, "summary").groupby("subset", sort=False):
        lines += ["", f"ES, {_subset(str(subset), result)}", _pivot(table)]
    controls = _estimates(result, "controls")
    last = max(result.axes["n"])
    against = controls[(controls["subset"] == "all") & (controls["n"] == last)]
    if last and len(against):
        lines += [
            "",
            f"ES of each scheme minus its control's, n={last} [{_bootstrap(result)}]",
        ]
        lines += [
            f"  {short_name(row.scheme):28} - {short_name(row.control):16}{row.difference:+.2f} "
            f"{_ends(row.difference_low, row.difference_high, '+')}"
            f"{'*' if _significant(row.holm_p) else ' '} {row.facts:5d} facts"
            for row in against.itertuples()
        ]
        lines += [f"  {line}" for line in about_intervals(result)]
    if len(result.tables["impossible"]):
        lines += ["", "Not possible, and left out (a scheme's curve uses the facts that have every n):"]
        lines += [
            f"  {short_name(scheme):28} n={','.join(map(str, rows['n']))}: {_counts(rows['facts'])} facts: {reason}"
            for (scheme, reason), rows in _reasons(result)
        ]
    if facts["skipped"]:
        lines += ["", f"{facts['skipped']} malformed records of the source were skipped (--strict stops at the first)."]
    cells = result.provenance["cells"]
    if cells["loaded"]:
        lines += ["", f"{cells['loaded']} parts were found finished, {cells['computed']} computed."]
    return "\n".join(lines)


def _subset(name: str, result: "Result") -> str:
    """What a subset of the facts is; by the first token where nothing else was scored."""
    first = result.provenance["config"]["scoring"] == "first" and name == "known"
    return _SUBSETS["known, by the first token" if first else name]


def _bootstrap(result: "Result") -> str:
    """What the interval of a difference is over: relations, or the facts themselves where they are of one relation."""
    over = (
        "clustered by relation" if result.examples["relation_id"].nunique() > 1 else "over facts, all of one relation"
    )
    return f"95% bootstrap interval, {over}"


def _code(text: str) -> str:
    """Markdown's code span, whatever backticks the text holds."""
    if "`" not in text:
        return f"`{text}`"
    fence = "`" * (1 + _longest_run(text))
    return f"{fence} {text} {fence}"


def _longest_run(text: str) -> int:
    """The most backticks in a row."""
    return max((len(run) for run in re.findall("`+", text)), default=0)


def efficacy_markdown(result: "Result", command: str) -> str:
    """The same tables as a Markdown page, with the command that made them under them.

    Args:
        result: Of `efficacy`.
        command: The command line.
    """
    facts, config, versions = (result.provenance[name] for name in ("facts", "config", "versions"))
    lines = [
        f"## {_escaped(model_line(result))}: {facts['count']} facts of {_escaped(facts['source'])}, "
        f"{_SCORING[config['scoring']]}" + (", chat template" if config["chat"] else ""),
        "",
        "ES [95% Wilson interval] over the number of sentences n; retention is 1 - ES. \\* differs from n = 0, and "
        "behind a difference from the control "
        f"(McNemar's exact test, Holm-corrected over all tests of this study, p < {_ALPHA}).",
    ]
    heads = [f"n = {n}" for n in result.axes["n"]]
    for subset, table in _estimates(result, "summary").groupby("subset", sort=False):
        rows = [
            [_escaped(scheme), rows["role"].iloc[0], str(rows["facts"].iloc[0]), *map(_cell, rows.itertuples())]
            for scheme, rows in table.groupby("scheme", sort=False)
        ]
        title = _subset(str(subset), result)
        lines += ["", f"### {title[0].upper()}{title[1:]}", "", *_table(["scheme", "role", "facts", *heads], rows)]
    controls = _estimates(result, "controls")
    if len(controls):
        rows = [
            [
                _escaped(row.scheme),
                str(row.control),
                str(row.n),
                str(row.facts),
                f"{row.difference:+.2f} {_ends(row.difference_low, row.difference_high, '+')}{_star(row.holm_p)}",
            ]
            for row in controls[(controls["subset"] == "all") & (controls["n"] > 0)].itertuples()
        ]
        title = f"### ES of a scheme minus its control's [{_bootstrap(result)}]"
        lines += ["", title, "", *_table(["scheme", "control", "n", "facts", "difference"], rows)]
        lines += [line for told in about_intervals(result) for line in ("", told)]
    missing = [
        [_escaped(scheme), ", ".join(map(str, rows["n"])), _counts(rows["facts"]), _escaped(reason)]
        for (scheme, reason), rows in _reasons(result)
    ]
    if missing:
        lines += ["", "### Not possible, and left out", "", *_table(["scheme", "n", "facts", "reason"], missing)]
    libraries = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines += [
        "",
        f"Made by {_code(command)}",
        f"({libraries}; facts {facts['digest']}, weights "
        f"{result.provenance['model']['fingerprint']}, path {'/'.join(result.provenance['path'])}).",
    ]
    return "\n".join(lines) + "\n"


def _estimates(result: "Result", name: str) -> pd.DataFrame:
    """A table with a column for each quantity and for both ends of those that are shown, where no fact has one too."""
    table = result.wide(name)
    ends = [f"{quantity}_{end}" for quantity in ("es", "difference") for end in ("low", "high")]
    return table.assign(**{end: float("nan") for end in ends if end not in table})


def _reasons(result: "Result") -> Any:
    """What could not be made, by scheme and reason, with the n's and how many facts each."""
    return result.tables["impossible"].groupby(["scheme", "reason"], sort=False)


def _counts(facts: pd.Series) -> str:
    """How many facts at each n; once, where it is the same for all."""
    return ", ".join(map(str, facts.unique() if facts.nunique() == 1 else facts))


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows]]


def _escaped(text: object) -> str:
    return html.escape(str(text), quote=False).replace("|", "\\|").replace("\n", " ")


def _star(p: object) -> str:
    return "\\*" if _significant(p) else ""


def _cell(row: Any) -> str:
    return f"{row.es:.2f} [{row.es_low:.2f}, {row.es_high:.2f}]{_star(row.holm_p)}" if row.facts else "-"


def model_line(result: "Result") -> str:
    """The model that a result is of, its type, and how its weights were stored."""
    model = result.provenance["model"]
    stored = "" if model["quantisation"] == "none" else f", {model['quantisation']}"
    return f"{model['source']} ({model['dtype']}{stored})"


def printable(text: str) -> str:
    """Text whose control characters are written out, so that a token cannot steer a terminal."""
    return repr(text)


def plain_line(text: str) -> str:
    """A sentence for a terminal in one line: what cannot be printed is written out.

    Args:
        text: Of anybody's.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _significant(p: object) -> bool:
    return isinstance(p, float) and p < _ALPHA  # NaN, where nothing was tested, is not


def short_name(name: object, most: int = 28) -> str:
    """A name that fits its column, its control characters written out.

    Args:
        name: As it was given.
        most: How many characters.
    """
    text = str(name)
    text = text if text.isprintable() else printable(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _pivot(table: pd.DataFrame) -> str:
    cells = [
        "     -"
        if not row.facts
        else f"{row.es:.2f} [{row.es_low:.2f}, {row.es_high:.2f}]{'*' if _significant(row.holm_p) else ' '}"
        for row in table.itertuples()
    ]
    schemes = table["scheme"].map(short_name)
    frame = pd.DataFrame({"scheme": schemes, "facts": table["facts"], "n": table["n"], "cell": cells})
    lines = ["  " + f"{'scheme':30}{'facts':>6}  " + "".join(f"{f'n={n}':21}" for n in frame["n"].unique()).rstrip()]
    for (scheme, facts), rows in frame.groupby(["scheme", "facts"], sort=False):
        lines.append(f"  {scheme:30}{facts:6d}  " + "".join(f"{cell:21}" for cell in rows["cell"]).rstrip())
    return "\n".join(lines)


def trace_screen(traced: "Trace") -> str:
    """The ten leading heads, attention against recall, and the balance, for a terminal."""
    ranked, held_out = len(traced.contrast[::2]), len(traced.contrast[1::2])
    model = traced.patched.provenance["model"]
    lines = [
        f"{model['source']} ({model['dtype']}); {traced.contrast!r}",
        "Metric: logit(false) - logit(true) at the last position. Recovery: 0 hijacked, 1 clean. Intervals: 95%, over",
        f"relations. Heads are ranked on {ranked} facts and reported on {held_out} others.",
        *about_intervals(traced.patched),
        "",
        f"The leading heads, patched exactly (z at the last position; {traced.leading.rule}):",
        f"  {'head':8}{'ranked':>8}{'held out':>10}  interval",
    ]
    for row in traced.ranked.wide().head(_LEADING).to_dict("records"):
        ends = (row.get(f"held_out_{end}", math.nan) for end in ("low", "high"))
        lines.append(
            f"  L{row['layer']}H{row['head']}".ljust(10)
            + f"{row['value']:8.2f}{row['held_out']:10.2f}  {_ends(*ends)}".rstrip()
        )
    examples = traced.patched.examples
    if "clean_after_cap" in examples:
        ends = [
            f"{end} {examples[end].mean():.3f} before the soft cap, {examples[f'{end}_after_cap'].mean():.3f} after"
            for end in ("clean", "hijacked")
        ]
        lines += ["", f"The metric of the facts held out: {'; '.join(ends)}. All else here is before it."]
    if "says" in traced.patched.provenance.get("resolution", {}):
        lines += ["", f"Resolution: {traced.patched.provenance['resolution']['says']}"]
    lines += ["", "Attention against recall, logits by span (hijacked less clean, summed over heads):"]
    lines += ["  " + line for line in _wide(traced.parts.summary).splitlines()]
    lines += ["", "What makes up the metric's change:"]
    lines += _indented(
        traced.parts.wide("balance")[["part", "clean", "hijacked", "change", "change_low", "change_high"]].dropna(
            subset=["clean"]
        ),
        3,
    )
    if len(traced.twin.tables.get("twin", ())):
        lines += ["", "These heads' patterns, values or both made clean, all heads together, on the facts held out:"]
        lines += textwrap.wrap(str(traced.leading), 110, initial_indent="  ", subsequent_indent="  ")
        lines += _indented(traced.twin.wide("twin"), 2)
    lines += ["", "How far cheaper methods agree with exact patching:"]
    shown = traced.agreement[["of", "measure", "agreement", "agreement_low", "agreement_high", "chance"]]
    lines += _indented(shown, 2)
    return "\n".join(lines)


def _wide(summary: pd.DataFrame) -> str:
    estimates = zip(summary["value"], summary["value_low"], summary["value_high"], strict=True)
    cells = ["" if pd.isna(mean) else f"{mean:+.2f} {_ends(low, high, '+')}".rstrip() for mean, low, high in estimates]
    table = summary.assign(cell=cells).pivot_table(
        index="group", columns="quantity", values="cell", aggfunc="first", sort=False
    )
    return table.to_string()


def _ends(low: Any, high: Any, sign: str = "") -> str:
    return "" if math.isnan(low) else f"[{low:{sign}.2f}, {high:{sign}.2f}]"


def _indented(table: pd.DataFrame, digits: int) -> list[str]:
    return ["  " + line for line in table.to_string(index=False, float_format=f"%.{digits}f").split("\n")]


def trace_markdown(traced: "Trace", command: str) -> str:
    """The same as a Markdown page.

    Args:
        traced: The trace.
        command: What was typed.
    """
    return fenced(trace_screen(traced), command)


def fenced(text: str, command: str) -> str:
    """A terminal's text as a Markdown page, under the command that made it.

    Args:
        text: What was printed.
        command: What was typed.
    """
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{_code(command)}\n\n{fence}\n{text}\n{fence}\n"
