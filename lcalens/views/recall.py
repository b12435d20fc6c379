"""The figure of recall: what each head's circuit gives related answers, and what is left without the easy reasons."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lcalens.views.style import BLUE, COLUMN, GREEN, GREY, ORANGE, SMALL, TEXT, panels_of, plain, short, source_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lcalens.core.results import Result

_NULLS = {"same spectrum": GREY, "all other heads": GREEN}
_CAP = {"elinewidth": 0.6, "capsize": 1.2, "capthick": 0.6, "ecolor": "k"}


def plot_recall(result: "Result") -> "Figure":
    """For each head the related answers' lead in logits, and `left`, the lead that own token and similarity leave.

    Beside `left` stand the middle 95% of random circuits of the head's spectrum and of all other heads.

    Args:
        result: Of `recall`.
    """
    table = result.wide()
    nulls = result.wide("nulls")
    at = np.arange(len(table))[::-1]
    height = 0.2 * max(len(table), 4) + 1.0
    figure, [[gap, left]] = panels_of((2 * COLUMN, height), 1, 2, sharey=True)
    for shift, name, colour, label in ((0.19, "own_gap", ORANGE, "own token"), (-0.19, "related_gap", BLUE, "related")):
        gap.barh(at + shift, table[name], 0.36, color=colour, label=label)
        gap.errorbar(table[name], at + shift, xerr=_reach(table, name), fmt="none", **_CAP)
    left.plot(table["left"], at, ls="", marker="D", ms=4, color=BLUE, label="head")
    left.errorbar(table["left"], at, xerr=_reach(table, "left"), fmt="none", **_CAP)
    for number, (null, colour) in enumerate(_NULLS.items()):
        rows = nulls[nulls["null"] == null].set_index("head").reindex(table["head"])
        if "left_low" not in rows:  # where nothing is related to the sources, nothing is left of it
            continue
        low, high = (rows[f"left_{end}"].to_numpy(dtype=float) for end in ("low", "high"))
        left.hlines(at - 0.16 * (number + 1), low, high, color=colour, lw=2.2, label=f"{null}, middle 95%")
    for panel, label in ((gap, "above unrelated answers, logits"), (left, "related above unrelated, what is left, sd")):
        panel.axvline(0, color="k", lw=0.6)
        panel.set_xlabel(label, fontsize=TEXT)
        panel.tick_params(labelsize=SMALL, length=2, pad=1.5)
        panel.grid(axis="x", lw=0.4, alpha=0.5)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    gap.set_yticks(at, [plain(short(str(name), 14)) for name in table["head"]], fontsize=TEXT)
    handles, names = (one + other for one, other in zip(gap.get_legend_handles_labels(),
                                                        left.get_legend_handles_labels(), strict=True))  # fmt: skip
    figure.legend(handles, names, fontsize=SMALL, frameon=False, ncols=5, loc="outside lower center")
    sources = len(result.axes[list(result.axes)[1]])
    level = result.provenance.get("level", "")
    title = f"{short(source_of(result), 40)}, {sources} sources at the level of the {level}"
    figure.suptitle(plain(title), fontsize=TEXT)
    return figure


def _reach(table: pd.DataFrame, name: str) -> np.ndarray:
    mean = table[name].to_numpy(dtype=float)
    if f"{name}_low" not in table:
        return np.full((2, len(table)), np.nan)
    low, high = (table[f"{name}_{end}"].to_numpy(dtype=float) for end in ("low", "high"))
    return np.maximum(np.stack([mean - low, high - mean]), 0.0)
