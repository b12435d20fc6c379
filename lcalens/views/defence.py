"""The frontier of defences: what each gives back of a hijack against what it takes of all else."""

import re
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lcalens.views.style import (
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SMALL,
    TEXT,
    legend,
    panels_of,
    plain,
    short,
    source_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lcalens.core.results import Result

_COLOURS = (GREY, BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000")  # the undefended model is grey
_MARKERS = "osD^vP*X"
_Fill = Literal["full", "none"]
_ROWS = 4  # of the legend, for which the figure has room


def draws_of(result: "Result") -> dict[str, int]:
    """Names that several defences share (random heads, drawn anew), with how many: of these the table has the mean.

    Its ends are then the middle 95% of the draws, no interval over relations.

    Args:
        result: Of `evaluate_defence`.
    """
    measured, told = (
        list(dict.fromkeys(map(str, of))) for of in (result.axes.get("defence", ()), result.summary["defence"])
    )
    drawn = [name for name in measured if name not in told]
    counts = {name: sum(re.fullmatch(rf"{re.escape(name)} \d+", one) is not None for one in drawn) for name in told}
    return {name: count for name, count in counts.items() if count}


def plot_defence(result: "Result") -> "Figure":
    """Recovery of each scheme against the honest context that is kept, and against the KL on plain text.

    Up and to the right on the left panel is better, up and to the left on the right one. Bars are 95% intervals; of a
    name with several draws they are the middle 95% of these.

    Args:
        result: Of `evaluate_defence`.
    """
    from matplotlib.lines import Line2D

    table = result.summary.set_index(["defence", "condition", "quantity"])["value"]
    low, high = (
        result.summary.set_index(["defence", "condition", "quantity"])[f"value_{end}"] for end in ("low", "high")
    )
    defences = list(dict.fromkeys(result.summary["defence"]))
    recovery = result.summary[result.summary["quantity"] == "recovery"]
    schemes = list(dict.fromkeys(recovery["condition"]))
    kinds = list(dict.fromkeys(result.summary.loc[result.summary["quantity"] == "kept", "condition"]))
    colours, marks = _colours(len(defences)), _marks(len(schemes))
    rows = -(-(len(defences) + len(schemes)) // 4)
    figure, [panels] = panels_of((2 * COLUMN, 2.7 + 0.12 * max(rows - _ROWS, 0)), 1, 2, sharey=True)
    for number, defence in enumerate(defences):
        kept = np.nanmean([table[defence, kind, "kept"] for kind in kinds]) if kinds else np.nan
        places = (kept, table.get((defence, "plain text", "kl"), np.nan))
        for (mark, fill), scheme in zip(marks, schemes, strict=True):
            at = defence, scheme, "recovery"
            reach = np.maximum([[table[at] - low[at]], [high[at] - table[at]]], 0.0)  # NaN, where there is none, stays
            for panel, place in zip(panels, places, strict=True):
                panel.errorbar(place, table[at], yerr=reach, ls="", marker=mark, fillstyle=fill, ms=4,
                               color=colours[number], elinewidth=0.6)  # fmt: skip
    for panel, label in zip(panels, ("honest context kept, mean of kinds", "KL on plain text, nats"), strict=True):
        panel.set_xlabel(label, fontsize=TEXT)
        panel.axhline(0, color=GREY, lw=0.6)
        panel.axhline(1, color=GREY, lw=0.6, ls=":")
        panel.tick_params(labelsize=SMALL, length=2, pad=1.5)
        panel.grid(lw=0.4, alpha=0.5)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("recovery of ES", fontsize=TEXT)
    draws = draws_of(result)  # their bars are no intervals
    names = [f"{short(name, 14)} ({draws[name]} draws)" if name in draws else name for name in defences]
    by_colour = [Line2D([], [], ls="", marker="s", color=colours[i], label=legend(name))
                 for i, name in enumerate(names)]  # fmt: skip
    by_mark = [Line2D([], [], ls="", marker=mark, fillstyle=fill, color="k", label=legend(scheme))
               for (mark, fill), scheme in zip(marks, schemes, strict=True)]  # fmt: skip
    figure.legend(handles=[*by_colour, *by_mark], fontsize=SMALL, frameon=False, ncols=4, loc="outside lower center")
    figure.suptitle(plain(f"{short(source_of(result), 40)}, {len(result.examples)} facts"), fontsize=TEXT)
    return figure


def _marks(count: int) -> list[tuple[str, _Fill]]:
    """A marker for each scheme and how it is filled, no two alike: full ones, open ones, then the scheme's number."""
    marks: list[tuple[str, _Fill]] = []
    marks.extend((shape, "full") for shape in _MARKERS)
    marks.extend((shape, "none") for shape in _MARKERS)
    marks.extend((f"${number}$", "full") for number in range(len(marks) + 1, count + 1))
    return marks[:count]


def _colours(count: int) -> list[Any]:
    """A colour for each defence, no two alike: the usual ones while they last, else from blue to red."""
    from matplotlib import colormaps

    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    return [GREY, *colormaps["turbo"](np.linspace(0.03, 0.97, count - 1))]
