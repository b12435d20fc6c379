"""The figure of memories: what stays of a hijack with each in a head's place, and what each recalls of unseen cues."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lcalens.views.style import BLUE, COLUMN, GREEN, GREY, ORANGE, SMALL, TEXT, panels_of, plain, short, source_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lcalens.core.results import Result

_CAP = {"elinewidth": 0.6, "capsize": 1.2, "capthick": 0.6, "ecolor": "k"}
_CONTROLS = {"shuffled": GREY, "same spectrum": GREEN}


def plot_memory(result: "Result") -> "Figure":
    """For each memory what stays of the hijack, held out and by a memory of all cues, and how well it recalls.

    Beside each stand the middle 95% of the same memory with cues shuffled, and of circuits of the head's spectrum.

    Args:
        result: Of `memory`.
    """
    stays, recalled = result.wide("summary").set_index("memory"), result.wide("held_out").set_index("memory")
    rows = [name for name in stays.index if "shuffled" not in name and name != "same spectrum"]
    figure, [[left, right]] = panels_of((2 * COLUMN, 0.24 * len(rows) + 1.0), 1, 2, sharey=True)
    at = np.arange(len(rows))[::-1]
    for panel, table, name in ((left, stays, "stays"), (right, recalled, "auc")):
        _draw_controls(panel, table, rows, at, name)
        _draw(panel, table.loc[rows], at, name, "D", BLUE, "held out")
    _draw(left, stays.loc[rows], at - 0.22, "stays_all", "o", ORANGE, "memory of all cues")
    for panel, label, line in (
        (left, "share of the hijack that stays", 1.0),
        (right, "wrong answers below the right one, held out", 0.5),
    ):
        panel.axvline(line, color="k", lw=0.6, ls=":")
        panel.set_xlabel(label, fontsize=TEXT)
        panel.tick_params(labelsize=SMALL, length=2, pad=1.5)
        panel.grid(axis="x", lw=0.4, alpha=0.5)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    left.set_yticks(at, rows, fontsize=TEXT)
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, fontsize=SMALL, frameon=False, ncols=4, loc="outside lower center")
    layer, head = result.provenance["head"]
    cues = len(result.provenance["cues"])
    title = f"{short(source_of(result), 40)}, L{layer}H{head}, {cues} cues, {result.provenance['judged']} examples"
    figure.suptitle(plain(title), fontsize=TEXT)
    return figure


def _draw(panel: "Axes", table: pd.DataFrame, at: np.ndarray, name: str, marker: str, colour: str, label: str) -> None:
    mean = table[name].to_numpy(dtype=float)
    low, high = (table.get(f"{name}_{end}", table[name]).to_numpy(dtype=float) for end in ("low", "high"))
    reach = np.maximum(np.stack([mean - low, high - mean]), 0.0)
    panel.errorbar(mean, at, xerr=reach, fmt="none", **_CAP)
    panel.plot(mean, at, ls="", marker=marker, ms=3.5, color=colour, label=label)


def _draw_controls(panel: "Axes", table: pd.DataFrame, rows: list[str], at: np.ndarray, name: str) -> None:
    for number, (control, colour) in enumerate(_CONTROLS.items()):
        label = f"{control}, middle 95%"
        for row, place in zip(rows, at, strict=True):
            drawn = f"{row}, shuffled" if control == "shuffled" else control
            if f"{row}, shuffled" not in table.index or f"{name}_low" not in table:
                continue  # the circuit itself, and nothing
            low, high = (float(table[f"{name}_{end}"].to_dict()[drawn]) for end in ("low", "high"))
            panel.hlines(place + 0.16 * (number + 1), low, high, color=colour, lw=2.2, label=label)
            label = "_once is enough"
