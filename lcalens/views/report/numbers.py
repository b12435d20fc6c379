"""Rows of a result's tables, and numbers with their intervals, for sentences."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lcalens.views.text import short_name

if TYPE_CHECKING:
    from lcalens.core.results import Result

LOST = "1 - recovery"
ENDS = f"{LOST} is 0 in the clean run and 1 in the hijacked one."
FLATTERS = "The largest of so many flatters itself; it is to be measured again on other examples."


def rows_of(result: "Result", table: str | None, **only: str) -> list[dict[str, Any]]:
    """A table's rows as dictionaries; of `only`, those with these entries."""
    rows = [{str(name): value for name, value in row.items()} for row in result.wide(table).to_dict("records")]
    return [row for row in rows if all(row.get(name) == value for name, value in only.items())]


def head_of(row: Any) -> str:
    """A row's head by its name; of key and value heads that several queries share, theirs (`L3H0-1`)."""
    return f"L{row['layer']}H{row['head']}"


def site_of(result: "Result", row: Any) -> str:
    """A row's head or layer by its name, with its position where the result has several.

    Args:
        result: Whose summary the row is of.
        row: With the axes' labels.
    """
    name = head_of(row) if "head" in row else f"layer {row['layer']}" if "layer" in row else ""
    if "position" not in row:
        return name or ", ".join(f"{axis} {short_name(row[axis])}" for axis in result.axes if axis in row)
    labels, at = result.provenance.get("position_labels", ()), int(row["position"])
    known = 0 < -at <= len(labels) and labels[at] != f"−{-at}"
    return f"{name} at position {at}" + (f" ({short_name(labels[at], 12)})" if known else "")


def sites_of(rows: list[dict[str, Any]]) -> str:
    """How many heads, or heads at one position each, some rows are."""
    if "position" in rows[0]:
        return f"{len(rows)} sites (a head at a position)"
    return f"{len(rows)} head{'' if len(rows) == 1 else 's'}"


def with_lost(result: "Result", table: pd.DataFrame) -> pd.DataFrame:
    """The table with `1 - recovery` before `recovery`, where the clean run was patched: a site's effect is that there.

    Args:
        result: Of `patch` or `attribute`.
        table: Its summary, a column for each quantity; of any other result it is given back as it is.
    """
    if result.provenance.get("direction") != "corrupt" or "recovery" not in table:
        return table
    turned = {LOST: table["recovery"]}
    if {"recovery_low", "recovery_high"} <= set(table):
        turned |= {f"{LOST}_low": table["recovery_high"], f"{LOST}_high": table["recovery_low"]}
    lost = pd.DataFrame({name: 1 - values for name, values in turned.items()})
    at = list(table).index("recovery")
    return pd.concat([table.iloc[:, :at], lost, table.iloc[:, at:]], axis=1)


def recoveries_of(result: "Result") -> tuple[str, list[dict[str, Any]]]:
    """What says how far a site moves the metric, `recovery` or `1 - recovery`, and the summary's rows that have it.

    Args:
        result: Of `patch`, `knockout` or `attribute`.
    """
    table = with_lost(result, result.wide())
    name = LOST if LOST in table else "recovery"
    rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    return name, [row for row in rows if measured(row.get(name))]


def examples_of(count: int) -> str:
    """So many examples, in words."""
    return f"{count} example{'' if count == 1 else 's'}"


def over_examples(result: "Result", row: Any) -> str:
    """Over how many examples a site's mean is: shorter ones do not have every position.

    Args:
        result: With values over examples and sites.
        row: Of its summary.
    """
    count = int(result.provenance["examples"])
    said = examples_of(count)
    if "position" not in row:
        return f"over {said}"
    at = tuple(result.axes[axis].index(row[axis]) for axis in result.axes if axis != "example")
    having = int((~np.isnan(next(iter(result.values.values()))[(slice(None), *at)])).sum())
    return f"over {said}" if having == count else f"over the {having} of {said} that have this position"


def estimate_of(row: Any, quantity: str, *, signed: bool = False) -> str:
    """A row's quantity with its interval, as text."""
    return estimate(*(row.get(f"{quantity}{end}") for end in ("", "_low", "_high")), signed=signed)


def estimate(value: float | None, low: float | None, high: float | None, *, signed: bool = False) -> str:
    """A number with its interval where it has one, as text.

    Args:
        value: The number; nothing was measured where it is missing.
        low: The interval's lower end.
        high: Its upper end.
        signed: Show the sign of what is above zero too.
    """
    if not measured(value):
        return "not measured"
    sign = "+" if signed else ""
    numbers = [number for number in (value, low, high) if number is not None and measured(number)]
    shown, *ends = (f"{round(number, 2) + 0.0:{sign}.2f}" for number in numbers)  # never -0.00
    return f"{shown} [{', '.join(ends)}]" if len(ends) == 2 else shown


def measured(number: Any) -> bool:
    """Whether there is a number."""
    return number is not None and number == number  # NaN is not
