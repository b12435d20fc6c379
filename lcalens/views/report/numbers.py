"""Rows of a result's tables, and numbers with their intervals, for sentences."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcalens.core.results import Result


def rows_of(result: "Result", table: str | None, **only: str) -> list[dict[str, Any]]:
    """A table's rows as dictionaries; of `only`, those with these entries."""
    rows = [{str(name): value for name, value in row.items()} for row in result.wide(table).to_dict("records")]
    return [row for row in rows if all(row.get(name) == value for name, value in only.items())]


def head_of(row: Any) -> str:
    """A row's head by its name."""
    return f"L{int(row['layer'])}H{int(row['head'])}"


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
