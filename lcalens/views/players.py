"""The figure of Shapley values: what each player carries, alone and on top of the others, and how few suffice."""

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


def plot_shapley(result: "Result", *, top: int = 12) -> "Figure":
    """The leading players' Shapley values, beside what each takes alone and what it adds to all the others.

    Where a bar is shorter than the ring, the player's part is carried by others too. Of every set there is also a panel
    of how much the best set of each size recovers, on examples that did not choose it.

    Args:
        result: Of `shapley`.
        top: How many players, by the magnitude of their Shapley values.

    Raises:
        LcalensError: `top` is no positive integer.
    """
    check_int("top", top, low=1)
    axis = next(name for name in result.axes if name != "example")
    table = result.wide()
    order = table["shapley"].abs().sort_values(ascending=False, kind="stable").index[:top]
    shown = table.loc[order].sort_values("shapley", kind="stable")
    curve = result.wide("curve") if "curve" in result.tables else None
    panels = 1 if curve is None else 2
    figure, axes = panels_of((COLUMN * panels, 0.17 * max(len(shown), 4) + 1.0), 1, panels)
    _draw_players(axes[0, 0], shown, axis, str(result.units["shapley"]))
    if curve is not None:
        _draw_curve(axes[0, 1], curve, axis)
    for panel in axes.flat:
        panel.tick_params(labelsize=SMALL, length=2, pad=1.5)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=SMALL, frameon=False, ncols=3, loc="outside lower center")
    counted = f"{len(shown)} of {len(table)} {axis}s, " if len(shown) < len(table) else ""
    title = f"{short(source_of(result), 40)}, {counted}{len(result.examples)} examples"
    figure.suptitle(plain(title), fontsize=TEXT)
    return figure


def _draw_players(panel: "Axes", shown: pd.DataFrame, axis: str, unit: str) -> None:
    at = np.arange(len(shown))
    panel.barh(at, shown["shapley"], 0.66, color=BLUE, label="Shapley value")
    if "shapley_low" in shown:
        reach = np.stack([shown["shapley"] - shown["shapley_low"], shown["shapley_high"] - shown["shapley"]])
        panel.errorbar(shown["shapley"], at, xerr=np.maximum(reach, 0), fmt="none", **_CAP)
    panel.plot(shown["alone"], at, ls="", marker="o", ms=3.5, mfc="none", color=ORANGE, label="alone")
    panel.plot(shown["last"], at, ls="", marker="D", ms=2.4, color=GREEN, label="on top of all others")
    panel.axvline(0, color="k", lw=0.6)
    panel.set_yticks(at, [plain(short(str(name), 14)) for name in shown[axis]], fontsize=TEXT)
    panel.set_xlabel(plain(f"taken from the hijacked metric ({unit})"), fontsize=TEXT)
    panel.grid(axis="x", lw=0.4, alpha=0.5)


def _draw_curve(panel: "Axes", curve: pd.DataFrame, axis: str) -> None:
    held_out = "recovery" in curve and curve["recovery"].notna().any()
    name = "recovery" if held_out else "here"
    panel.plot(curve["size"], curve[name], marker="o", ms=3, lw=1, color=BLUE)
    if f"{name}_low" in curve:
        panel.fill_between(curve["size"], curve[f"{name}_low"], curve[f"{name}_high"], color=BLUE, alpha=0.15, lw=0)
    panel.axhline(1, color=GREY, lw=0.6, ls=":")
    panel.set_xlabel(f"{axis}s in the best set of that size", fontsize=TEXT)
    where = "on examples that\ndid not choose" if held_out else "on the examples\nthat chose"
    panel.set_ylabel(f"share of the hijack\n{where}", fontsize=TEXT)
    panel.set_xticks(curve["size"])
    panel.grid(axis="y", lw=0.4, alpha=0.5)
