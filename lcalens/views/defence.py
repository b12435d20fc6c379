"""The frontier of defences: what each gives back of a hijack against what it takes of all else."""

from typing import TYPE_CHECKING, Any

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


def plot_defence(result: "Result") -> "Figure":
    """Recovery of each scheme against the honest context that is kept, and against the KL on plain text.

    Up and to the right on the left panel is better, up and to the left on the right one.

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
    colours = _colours(len(defences))
    figure, [panels] = panels_of((2 * COLUMN, 2.7), 1, 2, sharey=True)
    for number, defence in enumerate(defences):
        kept = np.nanmean([table[defence, kind, "kept"] for kind in kinds]) if kinds else np.nan
        places = (kept, table.get((defence, "plain text", "kl"), np.nan))
        for mark, scheme in zip(_MARKERS, schemes, strict=False):
            at = defence, scheme, "recovery"
            reach = [[max(0.0, table[at] - low[at])], [max(0.0, high[at] - table[at])]]
            for panel, place in zip(panels, places, strict=True):
                panel.errorbar(place, table[at], yerr=np.nan_to_num(reach), ls="", marker=mark, ms=4,
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
    by_colour = [Line2D([], [], ls="", marker="s", color=colours[i], label=legend(name))
                 for i, name in enumerate(defences)]  # fmt: skip
    by_mark = [Line2D([], [], ls="", marker=mark, color="k", mfc="none", label=legend(scheme))
               for mark, scheme in zip(_MARKERS, schemes, strict=False)]  # fmt: skip
    figure.legend(handles=[*by_colour, *by_mark], fontsize=SMALL, frameon=False, ncols=4, loc="outside lower center")
    figure.suptitle(plain(f"{short(source_of(result), 40)}, {len(result.examples)} facts"), fontsize=TEXT)
    return figure


def _colours(count: int) -> list[Any]:
    """A colour for each defence, no two alike: the usual ones while they last, else from blue to red."""
    from matplotlib import colormaps

    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    return [GREY, *colormaps["turbo"](np.linspace(0.03, 0.97, count - 1))]
