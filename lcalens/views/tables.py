"""Results as tables for a notebook: an interval stands in its quantity's cell, and what is cut is counted."""

import html
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lcalens.views.answers_text import moved_in_words
from lcalens.views.intervals import about_intervals
from lcalens.views.text import printable

if TYPE_CHECKING:
    from lcalens.core.results import Result

_ROWS = 20
_ALPHA = 0.05


def html_of(result: "Result") -> str:
    """A result's tables as HTML; all text is escaped.

    Args:
        result: Any. Of `efficacy`, `ask` and `doctor` what they are asked for is shown, of all others the most
            important table.
    """
    model = result.provenance.get("model", {})
    described = ", ".join(str(model[key]) for key in ("source", "dtype", "quantisation") if model.get(key))
    drawn = _summary
    if result.kind == "efficacy" and {"summary", "controls"} <= set(result.tables):
        drawn = _efficacy
    elif result.kind == "answers" and "answers" in result.tables:
        drawn = _answers
    elif result.kind == "doctor":
        drawn = _verdicts
    told = "".join(f"<p>{html.escape(line)}</p>" for line in about_intervals(result) if _has_intervals(result))
    return f"<p><b>{html.escape(repr(result))}</b><br>{html.escape(described)}</p>{drawn(result)}{told}"


def with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """The same table, numbers as text: `x_low` and `x_high` stand behind `x` in its cell, `0.31 [0.22, 0.4]`.

    Columns without a number are left out, unless all are.

    Args:
        table: As `Result.wide` gives it.
    """
    names = list(table.columns)
    ends = {end for name in names for end in (f"{name}_low", f"{name}_high")
            if {f"{name}_low", f"{name}_high"} <= set(names)}  # fmt: skip
    shown = {}
    for name in names:
        if name in ends or (len(table) and table[name].isna().all() and not table.isna().all(axis=None)):
            continue
        column = table[name]
        if f"{name}_low" in ends:
            columns = (column, table[f"{name}_low"], table[f"{name}_high"])
            shown[name] = [_estimate(*values) for values in zip(*columns, strict=True)]
        elif pd.api.types.is_float_dtype(column):
            shown[name] = [_number(value) for value in column]
        else:
            shown[name] = column.to_list()
    return pd.DataFrame(shown, columns=pd.Index(list(shown)))


def _has_intervals(result: "Result") -> bool:
    return any(str(name).endswith("_low") for table in result.tables.values() for name in table)


def _summary(result: "Result") -> str:
    return _html(with_intervals(result.wide()))


def _efficacy(result: "Result") -> str:
    """ES, its change, the log odds, and ES less the control's, for all facts: a row for each scheme and n."""
    table = result.wide()
    table = table[table["subset"] == "all"]
    controls = result.wide("controls")
    controls = controls[controls["subset"] == "all"].set_index(["scheme", "n"])
    rows = []
    for _, row in table.iterrows():
        cells = {"scheme": row["scheme"], "n": row["n"], "facts": row["facts"], "ES": _starred(row, "es")}
        cells["ES less that at n = 0"] = _of(row, "change") if row["n"] else ""
        cells["mean log odds, nats"] = _of(row, "log_odds")
        cells["ES less the control's"] = ""
        if row["n"] and (row["scheme"], row["n"]) in controls.index:
            beside = controls.loc[[(row["scheme"], row["n"])]].iloc[0]
            cells["ES less the control's"] = f"{_starred(beside, 'difference')} ({beside['control']})"
        rows.append(cells)
    told = (
        "ES: the share of facts whose false object is the likelier, of all facts, with 95% intervals. "
        f"* differs from n = 0, or from the control (McNemar, Holm-corrected, p &lt; {_ALPHA:g})."
    )
    others = [str(name) for name in dict.fromkeys(result.wide()["subset"]) if name != "all"]
    more = f" <code>wide()</code> has the facts {html.escape(' and '.join(others))} besides." if others else ""
    return f"<p>{told}{more}</p>{_html(pd.DataFrame(rows), most=60)}"


def _verdicts(result: "Result") -> str:
    """How many identities hold, and every one of them: none is cut, for the one that fails may be the last."""
    counts = ", ".join(f"{count} {word}" for word, count in result.provenance["counts"].items())
    table = result.wide().drop(columns=["says", "verbs"])
    numbers = {name: [_number(value) for value in table[name]] for name in ("error", "tolerance", "effect", "seconds")}
    return f"<p>{html.escape(counts)}</p>{_html(table.assign(**numbers), most=len(table))}"


def _answers(result: "Result") -> str:
    """The likeliest next tokens, the whole answers' scores, and in words which way a sentence moved them."""
    contexts = result.axes["context"]
    table, scored = result.tables["answers"], result.tables.get("scored", pd.DataFrame())
    parts = []
    if len(contexts) > 1 and "config" in result.provenance and "answer" in scored:
        parts.append(f"<p>{html.escape(moved_in_words(result))}</p>")
    shown = {"rank": table["rank"].to_list()}
    for context in contexts:
        shown[f"{context}: next token"] = [printable(str(token)) for token in table[context]]
        shown[f"{context}: probability"] = [f"{share:.3g}" for share in table[f"{context}_probability"]]
    parts.append(_html(pd.DataFrame(shown)))
    if len(scored):
        parts.append("<p>Log-probability of whole answers, nats:</p>" + _html(with_intervals(scored)))
    return "".join(parts)


def _html(table: pd.DataFrame, *, most: int = _ROWS) -> str:
    cut = f"<p>{most} of {len(table)} rows; <code>wide()</code> has them all.</p>" if len(table) > most else ""
    text = table.to_html(escape=True, index=False, max_rows=most, float_format=_number, border=0)
    return text + cut


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3g}"


def _estimate(value: float, low: float, high: float) -> str:
    if pd.isna(value):
        return ""
    return _number(value) if pd.isna(low) or pd.isna(high) else f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _of(row: pd.Series, name: str) -> str:
    return _estimate(row[name], row.get(f"{name}_low", np.nan), row.get(f"{name}_high", np.nan))


def _starred(row: pd.Series, name: str) -> str:
    p = row.get("holm_p", np.nan)
    return _of(row, name) + ("*" if pd.notna(p) and p < _ALPHA else "")
