"""One schema of tables: the axes, then `quantity`, `value`, `value_low`, `value_high` and `unit`.

A table whose columns are quantities of different kinds leaves it open which interval is whose. So tables are long, a
row for each quantity at each place; what is counted besides (`n`, `facts`) stands behind. `widen` gives a view for
showing.

Records are no such tables: a row for each example, answer or reason, with its texts and its own numbers side by side
(`examples`; `answers` and `scored` of `ask`; `impossible` of `efficacy`). They stay as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

SCHEMA = ("quantity", "value", "value_low", "value_high", "unit")
_ENDS = ("low", "high")


def lengthen(wide: pd.DataFrame, units: Mapping[str, str], *, behind: Sequence[str] = ()) -> pd.DataFrame:
    """A wide table as a long one: its rows in order, and in each the quantities in order.

    Args:
        wide: A column for each quantity, its interval in `{quantity}_low` and `{quantity}_high` where there is one; all
            other columns are axes.
        units: Each quantity's unit.
        behind: Columns that stand behind the unit, such as the number of examples.
    """
    ends = {f"{name}_{end}" for name in units for end in _ENDS}
    axes = [name for name in wide.columns if name not in units and name not in ends and name not in behind]
    at = np.repeat(np.arange(len(wide)), len(units))
    columns = {name: wide[name].iloc[at].reset_index(drop=True) for name in axes}
    columns["quantity"] = pd.Series(list(units) * len(wide))
    for column, suffix in (("value", ""), ("value_low", "_low"), ("value_high", "_high")):
        columns[column] = pd.Series(_numbers(wide, [name + suffix for name in units]))
    columns["unit"] = pd.Series(list(units.values()) * len(wide))
    columns |= {name: wide[name].iloc[at].reset_index(drop=True) for name in behind}
    return pd.DataFrame(columns)


def widen(table: pd.DataFrame) -> pd.DataFrame:
    """A long table as a wide one, for showing: a column for each quantity, and its interval where it has one.

    What is counted behind the unit (`n`, `facts`) has one column where a place's quantities share it, and else one for
    each quantity (`recovery_n`).

    Args:
        table: As `lengthen` makes it; one that is not long is given back as it is.
    """
    if not set(SCHEMA) <= set(table.columns):
        return table
    named = [str(name) for name in table.columns]
    behind = named[named.index("unit") + 1 :]  # counts, such as `n`
    axes = [name for name in named if name not in SCHEMA and name not in behind]
    if table.duplicated([*axes, "quantity"]).any():  # what stands behind tells these rows apart
        axes, behind = [*axes, *behind], []
    keys = [tuple(_key(value) for value in row) for row in table[axes].itertuples(index=False, name=None)]
    places: dict[Any, int] = {}
    rows = np.array([places.setdefault(key, len(places)) for key in keys], dtype=np.int64)
    first = np.unique(rows, return_index=True)[1]
    axes += [name for name in behind if (table[name].to_numpy() == table[name].to_numpy()[first][rows]).all()]
    columns: dict[str, Any] = {name: table[name].iloc[first].reset_index(drop=True) for name in axes}
    for name in dict.fromkeys(table["quantity"]):
        of_quantity = (table["quantity"] == name).to_numpy()
        for column, suffix in (("value", ""), ("value_low", "_low"), ("value_high", "_high")):
            values = np.full(len(places), np.nan)
            values[rows[of_quantity]] = table[column].to_numpy(dtype=float)[of_quantity]
            if column == "value" or np.isfinite(values).any():
                columns[f"{name}{suffix}"] = values
        for counted in behind:
            if counted not in axes:
                counts = pd.array([pd.NA] * len(places), dtype="Int64")
                counts[rows[of_quantity]] = table[counted].to_numpy()[of_quantity]
                columns[f"{name}_{counted}"] = counts
    return pd.DataFrame(columns)


def _numbers(wide: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    missing = np.full(len(wide), np.nan)
    columns = [wide[name].to_numpy(dtype=float, na_value=np.nan) if name in wide else missing for name in names]
    return np.stack(columns, 1).ravel() if columns else np.zeros(0)


def _key(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value
