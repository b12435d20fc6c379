"""Figures of hijacking: efficacy over the number of sentences, and the top answers."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from lcalens.core.errors import LcalensError
from lcalens.views.style import BAND, BLUE, GREEN, GREY, ORANGE, legend, plain, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lcalens.core.results import Result

_PANEL_WIDTH, _PANEL_HEIGHT, _COLUMNS = 2.3, 2.1, 3


def plot_efficacy(
    result: "Result",
    *,
    measure: Literal["es", "retention"] = "es",
    subset: str = "all",
    relation: str | None = None,
) -> "Figure":
    """Figure 2: a panel for each scheme, over the number of sentences, with its controls and Wilson's intervals.

    Args:
        result: Of `efficacy`.
        measure: `es`, the share of facts where the false object wins, or `retention`, the rest (the paper's curves).
        subset: `all` facts, the `known` ones, or those where the model `prefers-true` when asked clean.
        relation: One relation's facts alone (`P190` for Figure 2b); with all facts only.

    Raises:
        LcalensError: An unknown measure, subset or relation.
    """
    table = _chosen(result, measure, subset, relation)
    roles = result.summary.drop_duplicates("scheme").set_index("scheme")["role"]
    shown = [scheme for scheme in result.axes["scheme"] if roles[scheme] != "control"] or list(result.axes["scheme"])
    figure, panels = _panels(len(shown))
    counts = result.axes["n"]
    for panel, scheme in zip(panels, shown, strict=False):
        color = GREEN if roles[scheme] == "reverse" else ORANGE
        rows_of_scheme = table[table["scheme"] == scheme]
        _curve(panel, rows_of_scheme, measure, counts, color=color, ls="-", marker="o", label=legend(scheme))
        beside = _beside(result, table, scheme, measure, subset, relation)
        for (name, rows), (dashes, marker) in zip(beside, (("--", "s"), (":", "^")), strict=False):
            _curve(panel, rows, measure, counts, color=GREY, ls=dashes, marker=marker, label=legend(name))
        panel.set_title(plain(short(scheme)), fontsize=8)
        panel.set_title(f"{rows_of_scheme['facts'].max()} facts", fontsize=5.5, color=GREY, loc="right")
        panel.legend(fontsize=5.5, frameon=False, loc="best", handlelength=2.2)
    _label(panels, counts, "ES: false object preferred" if measure == "es" else "retention: 1 - ES")
    model = result.provenance.get("model", {}).get("source", "")
    title = f"{model}, {_facts_named(result, subset, relation)}"
    figure.suptitle(plain(f"{title} (bands: 95% Wilson intervals)"), fontsize=8)
    return figure


def _curve(panel: "Axes", rows: pd.DataFrame, measure: str, counts: tuple[int, ...], **style: Any) -> None:
    rows = rows.sort_values("n")
    at = [counts.index(n) for n in rows["n"]]
    panel.plot(at, rows[measure], ms=3.5, lw=1.3, **style)
    panel.fill_between(at, rows[f"{measure}_low"], rows[f"{measure}_high"], color=style["color"], alpha=BAND, lw=0)


def _beside(
    result: "Result", table: pd.DataFrame, scheme: str, measure: str, subset: str, relation: str | None
) -> list[tuple[str, pd.DataFrame]]:
    """A scheme's controls with their curves, on the facts that both have; a relation's on all of its facts."""
    controls = result.tables["controls"]
    controls = controls[(controls["scheme"] == scheme) & (controls["subset"] == subset)]
    controls_beside = []
    for name, rows in controls.groupby("control", sort=False):
        if relation is not None:
            controls_beside.append((str(name), table[table["scheme"] == name]))
            continue
        es, low, high = (rows[f"es_control{end}"] for end in ("", "_low", "_high"))
        shown = (es, low, high) if measure == "es" else (1 - es, 1 - high, 1 - low)
        columns = dict(zip((measure, f"{measure}_low", f"{measure}_high"), shown, strict=True))
        controls_beside.append((str(name), pd.DataFrame({"n": rows["n"], **columns})))
    return controls_beside


def _chosen(result: "Result", measure: str, subset: str, relation: str | None) -> pd.DataFrame:
    if measure not in ("es", "retention"):
        raise LcalensError(f"measure: {measure!r} is neither 'es' nor 'retention'.")
    if relation is not None:
        table = result.tables["by_relation"]
        known = sorted(set(table["relation_id"]))
        if relation not in known:
            raise LcalensError(f"relation: {relation!r} is not one of {', '.join(known)}.")
        if subset != "all":
            raise LcalensError(f"subset: {subset!r} cannot be combined with relation=; a relation's facts are few.")
        return table[table["relation_id"] == relation]
    known = list(dict.fromkeys(result.summary["subset"]))
    if subset not in known:
        raise LcalensError(f"subset: {subset!r} is not one of {', '.join(known)}.")
    return result.summary[result.summary["subset"] == subset]


def _facts_named(result: "Result", subset: str, relation: str | None) -> str:
    source = result.provenance.get("facts", {}).get("source", "facts")
    return f"{source} facts" + (f", {subset}" if subset != "all" else "") + (f", {relation}" if relation else "")


def _panels(count: int) -> "tuple[Figure, list[Axes]]":
    from matplotlib import pyplot

    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    size = (max(3.5, _PANEL_WIDTH * columns), _PANEL_HEIGHT * rows + 0.4)
    figure, grid = pyplot.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    flat = list(grid.ravel())
    for extra in flat[count:]:
        extra.remove()
    return figure, flat[:count]


def _label(panels: "list[Axes]", counts: tuple[int, ...], measure: str) -> None:
    for i, panel in enumerate(panels):
        if i % _COLUMNS == 0:
            panel.set_ylabel(measure, fontsize=7)
        panel.set_xticks(range(len(counts)), [str(n) for n in counts], fontsize=7)
        panel.set_ylim(-0.03, 1.03)
        panel.tick_params(labelsize=7)
        panel.grid(axis="y", lw=0.4, alpha=0.5)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlabel("sentences before the prompt", fontsize=7)


def plot_answers(result: "Result") -> "Figure":
    """Figure 1: the top answers before and after, as bars.

    Args:
        result: Of `ask`.
    """
    from matplotlib import pyplot

    contexts, table = result.axes["context"], result.tables["answers"]
    size = (3.0 * len(contexts), 0.35 * len(table) + 0.9)
    figure, grid = pyplot.subplots(1, len(contexts), figsize=size, sharex=True, squeeze=False, layout="constrained")
    for panel, context, color in zip(grid[0], contexts, (BLUE, ORANGE), strict=False):
        at = np.arange(len(table))[::-1]
        panel.barh(at, table[f"{context}_probability"], color=color, height=0.7)
        panel.set_yticks(at, [plain(repr(token)) for token in table[context]], fontsize=8)
        panel.set_title(context, fontsize=8)
        panel.set_xlabel("probability of the next token", fontsize=7)
        panel.tick_params(axis="x", labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    return figure
