"""Figures of what heads do for a hijack: their kinds, and the parts of their scores."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lcalens.core.checks import check_int
from lcalens.views.style import BLUE, COLUMN, GREEN, GREY, ORANGE, SMALL, TEXT, panels_of, plain, short, source_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lcalens.core.results import Result

_CAP = {"elinewidth": 0.6, "capsize": 1.2, "capthick": 0.6, "ecolor": "k"}
_CARRIED = {"direct_share": (BLUE, "", "direct path"), "total_share": (ORANGE, "////", "all that follows"),
            "heard_share": (GREEN, "....", "heard of movers")}  # fmt: skip
_LOOKED = {"on_keys": (BLUE, "o", "false object"), "on_others": (GREY, "D", "other tokens")}


def plot_kinds(result: "Result", *, top: int = 20) -> "Figure":
    """What each head carries of the hijack, and where it looks; its kind stands beside its name.

    Dotted lines are the threshold.

    Args:
        result: Of `head_kinds`.
        top: How many heads, by the magnitude of their total effects; they stay in the model's order.

    Raises:
        LcalensError: `top` is no positive integer.
    """
    check_int("top", top, low=1)
    table = result.wide()
    kept = table["total"].abs().sort_values(ascending=False, kind="stable").index[:top]
    shown = table.loc[sorted(kept)].reset_index(drop=True)
    at = np.arange(len(shown))[::-1]
    size = (2 * COLUMN, 0.26 * max(len(shown), 3) + 0.95)
    figure, [[carried, looked]] = panels_of(size, 1, 2, sharey=True, width_ratios=(3, 2))
    for number, (name, (color, hatch, label)) in enumerate(_CARRIED.items()):
        places = at + 0.27 * (1 - number)
        carried.barh(places, shown[name], 0.26, color=color, hatch=hatch, edgecolor="white", lw=0, label=label)
        _whiskers(carried, places, shown, name)
    for side in (-1, 1):
        carried.axvline(side * float(result.provenance.get("threshold", 0.0)), color=GREY, lw=0.6, ls=":")
    carried.axvline(0, color="k", lw=0.6)
    carried.set_xlabel("share of the hijack", fontsize=TEXT)
    for number, (name, (color, marker, label)) in enumerate(_LOOKED.items()):
        places = at + 0.15 * (1 - 2 * number)
        _whiskers(looked, places, shown, name)
        looked.plot(shown[name], places, ls="", marker=marker, ms=3, color=color, label=label)
    looked.set_xlabel("attention per token", fontsize=TEXT)
    names = [f"{head}  {kind}" if kind != "none" else head for head, kind in shown[["head", "kind"]].to_numpy()]
    carried.set_yticks(at, [plain(name) for name in names])
    carried.set_ylim(-0.6, len(shown) - 0.4)
    _finish(figure, (carried, looked), result, f"{len(shown)} of {len(table)} heads" if len(shown) < len(table) else "")
    return figure


def plot_score_parts(result: "Result", *, top: int = 8, heads: int = 4) -> "Figure":
    """The parts that move each head's score most, of its query and of the keys, with intervals.

    Args:
        result: Of `score_parts`.
        top: How many parts of each side, by the magnitude of their means.
        heads: How many heads, the first in the model's order.

    Raises:
        LcalensError: `top` or `heads` is no positive integer.
    """
    check_int("top", top, low=1)
    check_int("heads", heads, low=1)
    table, names, sides = result.wide(), result.axes["head"][:heads], result.axes["side"]
    figure, panels = panels_of((2 * COLUMN, len(names) * (0.13 * top + 0.45) + 0.5), len(names), len(sides))
    for row, head in zip(panels, names, strict=True):
        for panel, side, color in zip(row, sides, (BLUE, ORANGE), strict=True):
            rows = table[(table["head"] == head) & (table["side"] == side)]
            order = rows["score"].abs().sort_values(ascending=False, kind="stable").index[:top]
            shown, at = rows.loc[order], np.arange(len(order))[::-1]
            panel.barh(at, shown["score"], 0.66, color=color, hatch="" if side == "query" else "////", edgecolor="w",
                       lw=0)  # fmt: skip
            _whiskers(panel, at, shown, "score")
            panel.axvline(0, color="k", lw=0.6)
            panel.set_yticks(at, [plain(str(part)) for part in shown["part"]])
            panel.set_title(plain(f"{head}, {side}"), fontsize=TEXT)
    compared = "score on the keys" + ("" if result.provenance.get("over") is None else " − on the others")
    for panel in panels[-1]:
        panel.set_xlabel(compared, fontsize=TEXT)
    left_out = len(result.axes["head"]) - len(names)
    _finish(figure, panels.flat, result, f"{len(names)} of {len(names) + left_out} heads" if left_out else "")
    return figure


def _whiskers(panel: "Axes", at: np.ndarray, rows: pd.DataFrame, name: str) -> None:
    if f"{name}_low" not in rows:  # one example has no interval
        return
    reach = np.stack([rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]])
    panel.errorbar(rows[name], at, xerr=np.maximum(reach, 0), fmt="none", **_CAP)


def _finish(figure: "Figure", panels: "tuple[Axes, ...] | np.flatiter", result: "Result", counted: str) -> None:
    for panel in panels:
        panel.tick_params(labelsize=SMALL, length=2, pad=1.5)
        panel.grid(axis="x", lw=0.4, alpha=0.5)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    legends = [panel.get_legend_handles_labels() for panel in figure.axes]
    handles, names = ([item for some in listed for item in some] for listed in zip(*legends, strict=True))
    if handles:
        figure.legend(handles, names, fontsize=SMALL, frameon=False, ncols=5, loc="outside lower center")
    said = ", ".join(
        part for part in (short(source_of(result), 40), counted, f"{len(result.examples)} examples") if part
    )
    figure.suptitle(plain(said), fontsize=TEXT)
