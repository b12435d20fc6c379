"""Figures: the only file that draws. matplotlib is loaded when a figure is asked for."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from lcalens.errors import LcalensError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lcalens.results import Result

# Okabe and Ito's palette: told apart by every kind of colour vision, and in grey by line style.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#767676"
_PANEL_WIDTH, _PANEL_HEIGHT, _COLUMNS = 2.3, 2.1, 3
_BAND = 0.15


def plot(result: "Result", **options: Any) -> "Figure":
    """The figure of a result, by its kind.

    Args:
        result: Any result.
        options: What the kind's own function takes.

    Raises:
        LcalensError: There is no figure for this kind.
    """
    drawn = {
        "efficacy": plot_efficacy,
        "answers": plot_answers,
        "training": plot_training,
        "gram": plot_gram,
        "attention-pattern": plot_attention_pattern,
    }
    if result.kind not in drawn:
        raise LcalensError(f"plot: results of kind {result.kind!r} have no figure; use to_frame().")
    from matplotlib import pyplot

    figure = drawn[result.kind](result, **options)
    pyplot.close(figure)  # a notebook shows what a cell returns; pyplot would keep it, and show it once more
    return figure


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
        color = _GREEN if roles[scheme] == "reverse" else _ORANGE
        own = table[table["scheme"] == scheme]
        _curve(panel, own, measure, counts, color=color, ls="-", marker="o", label=_legend(scheme))
        beside = _beside(result, table, scheme, measure, subset, relation)
        for (name, rows), (dashes, marker) in zip(beside, (("--", "s"), (":", "^")), strict=False):
            _curve(panel, rows, measure, counts, color=_GREY, ls=dashes, marker=marker, label=_legend(name))
        panel.set_title(_plain(_short(scheme)), fontsize=8)
        panel.set_title(f"{own['facts'].max()} facts", fontsize=5.5, color=_GREY, loc="right")
        panel.legend(fontsize=5.5, frameon=False, loc="best", handlelength=2.2)
    _label(panels, counts, "ES: false object preferred" if measure == "es" else "retention: 1 - ES")
    model = result.provenance.get("model", {}).get("source", "")
    what = f"{model}, {_facts_named(result, subset, relation)}"
    figure.suptitle(_plain(f"{what} (bands: 95% Wilson intervals)"), fontsize=8)
    return figure


def _curve(panel: "Axes", rows: pd.DataFrame, measure: str, counts: tuple[int, ...], **style: Any) -> None:
    rows = rows.sort_values("n")
    at = [counts.index(n) for n in rows["n"]]
    panel.plot(at, rows[measure], ms=3.5, lw=1.3, **style)
    panel.fill_between(at, rows[f"{measure}_low"], rows[f"{measure}_high"], color=style["color"], alpha=_BAND, lw=0)


def _beside(
    result: "Result", table: pd.DataFrame, scheme: str, measure: str, subset: str, relation: str | None
) -> list[tuple[str, pd.DataFrame]]:
    """A scheme's controls with their curves, on the facts that both have; a relation's on all of its facts."""
    controls = result.tables["controls"]
    controls = controls[(controls["scheme"] == scheme) & (controls["subset"] == subset)]
    found = []
    for name, rows in controls.groupby("control", sort=False):
        if relation is not None:
            found.append((str(name), table[table["scheme"] == name]))
            continue
        es, low, high = (rows[f"es_control{end}"] for end in ("", "_low", "_high"))
        shown = (es, low, high) if measure == "es" else (1 - es, 1 - high, 1 - low)
        columns = dict(zip((measure, f"{measure}_low", f"{measure}_high"), shown, strict=True))
        found.append((str(name), pd.DataFrame({"n": rows["n"], **columns})))
    return found


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


def _short(text: str, width: int = 26) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _plain(text: str) -> str:
    """Text in which dollar signs are dollar signs: matplotlib would read a formula between two of them."""
    return text.replace("$", r"\$")


def _legend(text: str) -> str:
    """A legend's label; matplotlib leaves out those that begin with an underscore."""
    text = _plain(_short(text))
    return f" {text}" if text.startswith("_") else text


def plot_answers(result: "Result") -> "Figure":
    """Figure 1: the top answers before and after, as bars.

    Args:
        result: Of `ask`.
    """
    from matplotlib import pyplot

    contexts, table = result.axes["context"], result.tables["answers"]
    size = (3.0 * len(contexts), 0.35 * len(table) + 0.9)
    figure, grid = pyplot.subplots(1, len(contexts), figsize=size, sharex=True, squeeze=False, layout="constrained")
    for panel, context, color in zip(grid[0], contexts, (_BLUE, _ORANGE), strict=False):
        at = np.arange(len(table))[::-1]
        panel.barh(at, table[f"{context}_probability"], color=color, height=0.7)
        panel.set_yticks(at, [_plain(repr(token)) for token in table[context]], fontsize=8)
        panel.set_title(context, fontsize=8)
        panel.set_xlabel("probability of the next token", fontsize=7)
        panel.tick_params(axis="x", labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def plot_training(result: "Result") -> "Figure":
    """Accuracy over the steps, a line for each recipe: the mean of its seeds, their range, and Bayes.

    Args:
        result: Of `lcalens.lca.training`.
    """
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(4.2, 3.0), layout="constrained")
    summary = result.summary
    varied = [name for name in summary.columns if name in result.examples.columns and name != "bayes"]
    groups = result.examples.groupby(varied, dropna=False).indices if varied else {(): np.arange(len(result.examples))}
    colors = pyplot.get_cmap("viridis")(np.linspace(0, 0.85, len(groups)))
    for (key, rows), color in zip(groups.items(), colors, strict=True):
        values = key if isinstance(key, tuple) else (key,)
        label = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                          for name, value in zip(varied, values, strict=True)) or "model"  # fmt: skip
        there = ~np.isnan(result.values["accuracy"][rows]).all(0)  # a run that diverged has no end
        steps, curves = (result.values[name][rows][:, there] for name in ("step", "accuracy"))
        if not there.any():
            continue
        steps = np.nanmax(steps, axis=0)
        panel.plot(steps, np.nanmean(curves, axis=0), color=color, lw=1.4, label=_plain(_short(label, 40)))
        panel.fill_between(steps, np.nanmin(curves, axis=0), np.nanmax(curves, axis=0), color=color, alpha=_BAND, lw=0)
    panel.axhline(result.examples["bayes"].mean(), color=_GREY, ls="--", lw=1, label="Bayes")
    panel.set(xlabel="step", ylabel="accuracy on fresh contexts", ylim=(-0.02, 1.02))
    _tidy(panel)
    panel.legend(fontsize=6, frameon=False)
    return figure


def plot_gram(result: "Result") -> "Figure":
    """Figure 3b: inner products of embeddings over Hamming distance, with the line of equation 5.2.

    Args:
        result: Of `lcalens.lca.gram`.
    """
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(3.6, 2.8), layout="constrained")
    distance, fit = np.array(result.axes["distance"]), result.summary.iloc[0]
    mean, deviation = result.values["mean"], result.values["deviation"]
    panel.errorbar(distance, mean, deviation, fmt="o", ms=4, color=_BLUE, lw=1, capsize=2, label="mean, s.d.")
    line = f"{fit['b']:.2f} − {fit['a']:.2f} D, R² of means {fit['r2_means']:.3f}"
    panel.plot(distance, fit["b"] - fit["a"] * distance, color=_ORANGE, lw=1.2, label=line)
    panel.set(xlabel="Hamming distance D of two tokens", ylabel="inner product of their embeddings")
    panel.set_xticks(distance)
    _tidy(panel)
    panel.legend(fontsize=6, frameon=False)
    return figure


def plot_attention_pattern(result: "Result") -> "Figure":
    """Figure 3c: where each last token looks, as a heat map over all pairs of tokens.

    Args:
        result: Of `lcalens.lca.attention_pattern`.
    """
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(3.8, 3.2), layout="constrained")
    pattern, names = result.values["attention"], result.axes["query"]
    image = panel.imshow(pattern, cmap="viridis", vmin=0, interpolation="nearest")
    bar = figure.colorbar(image, ax=panel, shrink=0.85)
    bar.ax.tick_params(labelsize=6)
    bar.set_label("attention", fontsize=8)
    at = np.linspace(0, len(names) - 1, min(8, len(names))).round().astype(int)
    panel.set_xticks(at, [names[i] for i in at], fontsize=5, rotation=90)
    panel.set_yticks(at, [names[i] for i in at], fontsize=5)
    panel.set_xlabel("token looked at", fontsize=8)
    panel.set_ylabel("last token", fontsize=8)
    return figure


def _tidy(panel: "Axes") -> None:
    panel.tick_params(labelsize=7)
    panel.xaxis.label.set_fontsize(8)
    panel.yaxis.label.set_fontsize(8)
    panel.grid(axis="y", lw=0.4, alpha=0.5)
    panel.spines[["top", "right"]].set_visible(False)
