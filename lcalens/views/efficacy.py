"""Figures of hijacking: efficacy over the number of sentences, and the top answers."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from lcalens.core.checks import check_choice
from lcalens.core.errors import LcalensError
from lcalens.llm.efficacy.tables import rates_together
from lcalens.llm.prompts.schemes import find_scheme
from lcalens.views.style import BAND, BLUE, GREEN, GREY, ORANGE, SMALL, TEXT, legend, panels_of, plain, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lcalens.core.results import Result

_PANEL_WIDTH, _PANEL_HEIGHT, _COLUMNS = 2.3, 2.1, 3
_ONE_LINE, _LINE = 20, 35  # letters of a scheme over its panel: beside how many facts, and on lines of their own
_TITLE = 117  # letters of a prompt over its panel, in three lines


def plot_efficacy(
    result: "Result",
    *,
    measure: Literal["es", "retention"] = "es",
    subset: str = "all",
    relation: str | None = None,
) -> "Figure":
    """Figure 2: a panel for each scheme, over the number of sentences, with its controls and Wilson's intervals.

    All curves of a panel are of the same facts: those that have every n of the scheme and of its controls.

    Args:
        result: Of `efficacy`.
        measure: `es`, the share of facts where the false object wins, or `retention`, the rest (the paper's curves).
        subset: `all` facts, the `known` ones, or those where the model `prefers-true` when asked clean.
        relation: One relation's facts alone (`P190` for Figure 2b); with all facts only.

    Raises:
        LcalensError: An unknown measure, subset or relation.
    """
    _check(result, measure, subset, relation)
    roles, matched = _told_apart(result)
    shown = [scheme for scheme in roles if roles[scheme] != "control"] or list(roles)
    figure, panels = _panels(len(shown))
    counts = result.axes["n"]
    for panel, scheme in zip(panels, shown, strict=False):
        color = GREEN if roles[scheme] == "reverse" else ORANGE
        controls = [name for name in dict.fromkeys((matched[scheme], "neutral")) if name in roles]
        table = _together(result, scheme, controls if roles[scheme] != "control" else [], subset, relation)
        styles = ((color, "-", "o"), (GREY, "--", "s"), (GREY, ":", "^"))
        for (name, rows), (shade, dashes, marker) in zip(table.groupby("scheme", sort=False), styles, strict=False):
            _curve(panel, rows, measure, counts, color=shade, ls=dashes, marker=marker, label=legend(str(name)))
        unmeasured = result.provenance.get("unmeasured", {})
        for name in controls:
            if name not in set(table["scheme"]):  # a legend without it would look as if nobody had asked
                why = "not measured" if name in unmeasured else "on none of these facts"
                panel.plot([], [], color=GREY, ls="none", marker="x", ms=3.5, label=f"{legend(name)}: {why}")
        _title(panel, scheme, f"{table['facts'].max()} facts")
        panel.legend(fontsize=SMALL, frameon=False, loc="best", handlelength=2.2)
        why = unmeasured.get(scheme)
        if why:
            note = "nothing was measured:\n" + "\n".join(textwrap.wrap(str(why), 34))
            panel.text(0.5, 0.5, plain(note), fontsize=SMALL, ha="center", va="center", transform=panel.transAxes)
    _label(panels, counts, "ES: false object preferred" if measure == "es" else "retention: 1 - ES")
    model = result.provenance.get("model", {}).get("source", "")
    title = f"{model}, {_facts_named(result, subset, relation)}"
    figure.suptitle(plain(f"{title} (bands: 95% Wilson intervals)"), fontsize=8)
    return figure


def _title(panel: "Axes", scheme: str, facts: str) -> None:
    """The scheme and how many facts over a panel, side by side; a long one on two lines above the facts."""
    if len(scheme) <= _ONE_LINE:
        panel.set_title(plain(short(scheme, _ONE_LINE)), fontsize=8)
    else:
        first, *rest = textwrap.wrap(scheme, _LINE)
        second = short(" ".join(rest), _LINE)
        panel.set_title(plain("\n".join(filter(None, (short(first, _LINE), second)))) + "\n", fontsize=TEXT, loc="left")
    panel.set_title(facts, fontsize=SMALL, color=GREY, loc="right")


def _told_apart(result: "Result") -> tuple[dict[str, str], dict[str, str]]:
    """Each scheme's role and its matched control, as the result has them."""
    told = result.provenance.get("schemes", {})
    known = {
        name: told.get(name) or {"role": find_scheme(name).role, "control": find_scheme(name).control}
        for name in result.axes["scheme"]
    }
    return {name: one["role"] for name, one in known.items()}, {name: one["control"] for name, one in known.items()}


def _curve(panel: "Axes", rows: pd.DataFrame, measure: str, counts: tuple[int, ...], **style: Any) -> None:
    rows = rows.sort_values("n")
    at = [counts.index(n) for n in rows["n"]]
    panel.plot(at, rows[measure], ms=3.5, lw=1.3, **style)
    panel.fill_between(at, rows[f"{measure}_low"], rows[f"{measure}_high"], color=style["color"], alpha=BAND, lw=0)


def _together(
    result: "Result", scheme: str, controls: Sequence[str], subset: str, relation: str | None
) -> pd.DataFrame:
    """A scheme and its controls, all on the facts that have every n of each of them.

    A control that has no such fact in common with the others is left out.
    """
    names = [scheme]
    for control in controls:
        if rates_together(result, [*names, control], subset=subset, relation=relation)["facts"].max():
            names.append(control)
    return rates_together(result, names, subset=subset, relation=relation)


def _check(result: "Result", measure: str, subset: str, relation: str | None) -> None:
    check_choice("measure", measure, ("es", "retention"))
    if relation is not None:
        known = sorted(set(result.examples["relation_id"]))
        check_choice("relation", relation, known)
        if subset != "all":
            raise LcalensError(f"subset: {subset!r} cannot be combined with relation=; a relation's facts are few.")
    check_choice("subset", subset, dict.fromkeys(result.summary["subset"]))


def _facts_named(result: "Result", subset: str, relation: str | None) -> str:
    source = result.provenance.get("facts", {}).get("source", "facts")
    return f"{source} facts" + (f", {subset}" if subset != "all" else "") + (f", {relation}" if relation else "")


def _panels(count: int) -> "tuple[Figure, list[Axes]]":
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    size = (max(3.5, _PANEL_WIDTH * columns), _PANEL_HEIGHT * rows + 0.4)
    figure, grid = panels_of(size, rows, columns, sharey=True)
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
    contexts, table, asked = result.axes["context"], result.tables["answers"], result.provenance["config"]
    texts = {"clean": asked["prompt"], "hijacked": " ".join([*asked["hijack"], asked["prompt"]])}
    size = (3.0 * len(contexts), 0.35 * max(len(table), 3) + 1.1)
    figure, grid = panels_of(size, 1, len(contexts), sharex=True)
    for panel, context, color in zip(grid[0], contexts, (BLUE, ORANGE), strict=False):
        at = np.arange(len(table))[::-1]
        panel.barh(at, table[f"{context}_probability"], color=color, height=0.7)
        panel.set_yticks(at, [plain(short(repr(token))) for token in table[context]], fontsize=8)
        title = textwrap.shorten(texts[context], _TITLE, placeholder=" ...")
        panel.set_title(plain(textwrap.fill(title, _TITLE // 3)), fontsize=8, loc="left")
        panel.set_xlabel("probability of the next token", fontsize=7)
        panel.tick_params(axis="x", labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    return figure
