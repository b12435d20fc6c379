"""A result's tables, cut to what a page can hold: an estimate and its interval in one cell, sorted by the number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lcalens.core.tables import SCHEMA
from lcalens.views.report.numbers import LOST, estimate, with_lost

if TYPE_CHECKING:
    from lcalens.core.results import Result

_ROWS = 20
_SHOWN = {  # of the kinds whose tables are many
    "answers": ("answers", "scored"),
    "efficacy": ("controls", "summary", "impossible"),
    "split": ("summary", "balance", "twin"),
    "shapley": ("summary", "together", "curve"),
    "recall": ("summary", "nulls", "tests"),
    "ranking": ("summary",),
}
# What stands in the tables besides, and is not needed to read them.
_LEFT_OUT = {
    "efficacy": ("retention", "log_odds", "mcnemar_p", "es_control"),
    "recall": ("own_last", "own_rank", "related_rank"),
    "ranking": ("rank",),
}


@dataclass(frozen=True)
class Entry:
    """One cell.

    Attributes:
        text: As it is shown.
        order: What it is sorted by: a number, or nothing where it is text.
    """

    text: str
    order: float | None = None


@dataclass(frozen=True)
class Table:
    """A table as it is shown.

    Attributes:
        title: Its name.
        columns: Their names, with units.
        rows: The cells.
        left_out: How many rows more the result has.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    left_out: int


def tables_of(result: "Result") -> tuple[Table, ...]:
    """The tables of a result that a reader wants to see.

    Args:
        result: Any.
    """
    names = [name for name in _SHOWN.get(result.kind, list(result.tables)[:2]) if name in result.tables]
    leave = _LEFT_OUT.get(result.kind, ())
    tables = [(name, _chosen(result, result.wide(name)), result.tables[name]) for name in names]
    return tuple(_table(name, wide, long, leave) for name, wide, long in tables if len(wide))


def _chosen(result: "Result", wide: pd.DataFrame) -> pd.DataFrame:
    """The rows that are read first: all facts behind one sentence or more, heads by the size of their effect."""
    kind = result.kind
    if kind == "efficacy" and {"subset", "n"} <= set(wide):
        rows = (wide["subset"] == "all") & ((wide["n"] > 0) | ("control" not in wide))
        return wide[rows].drop(columns="subset").reset_index(drop=True)
    if kind not in ("patching", "knockout", "attribution"):
        return wide
    wide = with_lost(result, wide)
    effect = next((name for name in (LOST, "recovery", "effect", "value") if name in wide), None)
    if effect is None:
        return wide
    return wide.sort_values(effect, key=np.abs, ascending=False, kind="stable", ignore_index=True)


def _table(name: str, wide: pd.DataFrame, table: pd.DataFrame, leave: Sequence[str]) -> Table:
    units = dict(zip(table["quantity"], table["unit"], strict=True)) if set(SCHEMA) <= set(table) else {}
    units |= {LOST: units["recovery"]} if LOST in wide else {}
    ends = {f"{quantity}_{end}" for quantity in wide for end in ("low", "high", "n", "facts")}
    empty = {str(column) for column in wide if wide[column].isna().all()}
    columns = [column for column in map(str, wide) if column not in {*ends, *leave, *empty}]
    head = tuple(_named(column, units.get(column, "")) for column in columns)
    rows = tuple(tuple(_entry(row, column) for column in columns) for row in wide.head(_ROWS).to_dict("records"))
    return Table(name.replace("_", " "), head, rows, max(len(wide) - _ROWS, 0))


def _named(column: str, unit: str) -> str:
    name = "ES" if column == "es" else column.replace("_", " ")
    return f"{name} ({unit})" if unit and unit not in (name, "rank", "probability") else name


def _entry(row: dict[Any, Any], column: str) -> Entry:
    value = row[column]
    if isinstance(value, str):
        return Entry(value if value.isprintable() else repr(value))
    if isinstance(value, bool | np.bool_):
        return Entry("yes" if value else "no", float(value))
    if isinstance(value, int | np.integer):
        return Entry(str(value), float(value))
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return Entry("")
        low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
        small = low is None and 0 < abs(value) < 0.005
        text = f"{value:.1e}" if small else estimate(float(value), low, high)
        return Entry(text + _counted(row, column), float(value))
    return Entry("" if value is None else str(value))


def _counted(row: dict[Any, Any], column: str) -> str:
    """Of how many a number is, where a row's numbers are of different counts."""
    counts = ((name, row.get(f"{column}_{name}")) for name in ("n", "facts"))
    return "".join(f" ({name} = {count})" for name, count in counts if count is not None and count is not pd.NA)
