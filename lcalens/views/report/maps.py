"""Effects by layer and head as a map: one cell for each head, whose colour is its effect."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lcalens.views.report.numbers import LOST, estimate, with_lost

if TYPE_CHECKING:
    from lcalens.core.results import Result

_QUANTITIES = (LOST, "recovery", "held_out", "effect", "value", "direct effect")
_KINDS = ("patching", "knockout", "attribution")


@dataclass(frozen=True)
class Cell:
    """One head.

    Attributes:
        name: `L23H4`.
        shown: Its effect with its interval.
        strength: The effect over the map's largest, -1 to 1; colours the cell.
    """

    name: str
    shown: str
    strength: float


@dataclass(frozen=True)
class HeadMap:
    """Effects of all heads.

    Attributes:
        quantity: Which effect; of what was patched into the clean run 1 less recovery.
        largest: The largest of either sign, which has the darkest colour.
        rows: A row of cells for each layer, the last layer first.
    """

    quantity: str
    largest: float
    rows: tuple[tuple[Cell, ...], ...]


def head_map(result: "Result") -> HeadMap | None:
    """The map of a result whose summary has one effect for each head; nothing where it is of something else.

    Args:
        result: Of `patch`, `knockout` or `attribute` at the heads.
    """
    table = with_lost(result, result.wide())
    quantity = next((name for name in _QUANTITIES if name in table), None)
    axes = [name for name in result.axes if name != "example"]
    if result.kind not in _KINDS or quantity is None or axes != ["layer", "head"]:
        return None
    largest = float(np.nanmax(np.abs(table[quantity].to_numpy(dtype=float)), initial=0.0))
    rows: dict[int, list[Cell]] = {}
    for row in table.to_dict("records"):
        value = row[quantity]
        shown = estimate(value, row.get(f"{quantity}_low"), row.get(f"{quantity}_high"), signed=True)
        strength = 0.0 if np.isnan(value) or not largest else value / largest
        rows.setdefault(int(row["layer"]), []).append(Cell(f"L{row['layer']}H{row['head']}", shown, strength))
    return HeadMap(quantity, largest, tuple(tuple(rows[layer]) for layer in sorted(rows, reverse=True)))
