"""Figures of patching, knockout and attribution: maps over layers, heads and positions, or a curve with its band.

Blue is towards the clean run and red towards the hijacked one, in every map.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from einops import rearrange

from lcalens.core.checks import check_choice
from lcalens.core.errors import LcalensError
from lcalens.core.results import EXAMPLE
from lcalens.views.style import (
    BAND,
    BLUE,
    GREY,
    ORANGE,
    SMALL,
    TEXT,
    column_figure,
    plain,
    short,
    some_ticks,
    source_of,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lcalens.core.results import Result

Quantity = Literal["recovery", "effect"]
_LEADING = 12  # heads, where there are positions too
_MOST_LABELS, _MOST_LAYERS, _MOST_HEADS = 28, 10, 16
_LABEL_WIDTH = 12
_FEW = 16  # cells: their numbers are written into them


def plot_effects(
    result: "Result", *, quantity: Quantity | None = None, labels: Sequence[str] | None = None
) -> "Figure":
    """Mean recovery or effect: a map over layers and heads or positions; over layers alone a curve with its interval.

    Over layers, heads and positions the rows are the leading heads. Where all were patched at once, the metric of each
    example in the two runs and the patched one.

    Args:
        result: Of `patch`, `knockout` or `attribute`.
        quantity: `recovery`, 0 for the hijacked run's metric and 1 for the clean one's (where the clean run was
            patched, 1 less recovery, what of the hijack came with the patch); or `effect`, the change of the metric
            that attribution predicts. By default the first that there is, of attribution `effect`.
        labels: The positions' labels, the last position's last: `lcalens.views.token_labels(model, contrast)` gives
            them. By default those that the result holds: the tokens that all examples share; where tokens differ a
            span, or the position counted from the end.

    Raises:
        LcalensError: No such quantity, or not as many labels as positions.
    """
    name, means, lows, highs = _numbers(result, quantity)
    said = _said(name, result)
    axes = {axis: tuple(at) for axis, at in result.axes.items() if axis != EXAMPLE}
    labels = result.provenance.get("position_labels") if labels is None else labels
    names = {axis: _labels(axis, at, labels) for axis, at in axes.items()}
    varied = [axis for axis, at in axes.items() if len(at) > 1]
    if not varied and "value" in result.values:
        figure = _draw_ends(result, name, *(float(array.item()) for array in (means, lows, highs)))
    elif len(varied) < 2:
        figure = _draw_curve(name, said, varied[0] if varied else "layer", names, means, lows, highs)
    elif len(varied) == 2:
        figure = _draw_map(name, said, varied, names, means.squeeze())
    else:
        figure = _draw_leading(name, said, axes, names, means)
    figure.suptitle(plain(_title(result)), fontsize=TEXT)
    return figure


def _numbers(result: "Result", quantity: str | None) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """What is shown, named, with the ends of its interval, over the axes but `example`."""
    table = result.wide()
    quantities = [name for name in ("effect", "recovery") if name in table]
    chosen = quantities[0] if quantity is None else quantity
    check_choice("quantity", chosen, quantities)
    shape = tuple(len(at) for axis, at in result.axes.items() if axis != EXAMPLE)
    nothing = np.full(len(table), np.nan)
    mean, low, high = (
        np.asarray(table.get(column, nothing), dtype=float).reshape(shape)
        for column in (chosen, f"{chosen}_low", f"{chosen}_high")
    )
    if chosen == "recovery" and result.provenance.get("direction") == "corrupt":
        return "lost", 1 - mean, 1 - high, 1 - low
    return chosen, mean, low, high


_METRICS = {
    "logit-difference": "logit(false) − logit(true)",
    "probability": "Pr[false] − Pr[true]",
    "kl": "KL from the clean run",
    "whole-answer": "log Pr[false] − log Pr[true]",
}
_SAID = {
    "recovery": "recovery (1: clean)",
    "lost": "1 − recovery (1: hijacked)",
}


def _said(name: str, result: "Result") -> str:
    """What an axis shows, in words."""
    return f"effect on {_metric(result)}" if name == "effect" else _SAID[name]


def _metric(result: "Result") -> str:
    metric = str(result.provenance.get("metric", "logit-difference"))
    return _METRICS.get(metric, plain(short(metric)))


def _labels(axis: str, at: tuple[Any, ...], labels: Sequence[str] | None) -> list[str]:
    if axis != "position":
        return [plain(str(label)) for label in at]
    if labels is None:
        return [str(label).replace("-", "−") for label in at]
    if isinstance(labels, str) or len(labels) < len(at):
        raise LcalensError(
            f"labels: expected a label for each of {len(at)} positions, got {len(labels)} in {labels!r:.60}; "
            "lcalens.views.token_labels(model, contrast) gives them."
        )
    return [plain(short(str(label), _LABEL_WIDTH)) for label in labels[len(labels) - len(at) :]]


def _title(result: "Result") -> str:
    provenance = result.provenance
    span = f"no attention to {provenance.get('span')}" if result.kind == "knockout" else str(provenance.get("site", ""))
    at = provenance.get("positions")
    where = {"last": "last position", "each": "", "all": "all positions"}.get(at, at) if isinstance(at, str) else (
        "" if at is None else f"positions {at}")  # fmt: skip
    method = {"patching": "attribution patching"}.get(str(provenance.get("method")), str(provenance.get("method", "")))
    ablated = provenance.get("ablated")
    ablation = f"{provenance.get('source')} ablation in the {ablated} run" if ablated else ""
    count = "1 example" if len(result.examples) == 1 else f"{len(result.examples)} examples"
    parts = (source_of(result), method, span, ablation, where, count)
    return ", ".join(short(str(part), 40) for part in parts if part)


def _set_ticks(panel: "Axes", which: str, axis: str, names: list[str]) -> None:
    most = {"layer": _MOST_LAYERS, "head": _MOST_HEADS}.get(axis, _MOST_LABELS)
    at = list(some_ticks(len(names), most))
    if axis == "position":
        at = sorted(len(names) - 1 - i for i in at)  # the last position always has its label
    shown = [names[i] for i in at]
    if which == "y":
        panel.set_yticks(at, shown, fontsize=SMALL)
        panel.set_ylabel(axis, fontsize=TEXT)
    else:
        turned = axis == "position" or sum(map(len, shown)) > 40
        panel.set_xticks(at, shown, fontsize=SMALL, rotation=90 if turned else 0)
        told = _position_told(names) if axis == "position" else "" if turned else axis
        panel.set_xlabel(told, fontsize=TEXT)


def _position_told(names: list[str]) -> str:
    """What the labels of positions are, unless every one is a token."""
    counted = [re.fullmatch(r"−\d+", name) is not None for name in names]
    if all(counted):
        return "position"
    mixed = any(counted) or any(re.fullmatch(r"\[[\w-]+\]", name) for name in names)
    return "position (where examples differ: [span], or from the end)" if mixed else ""


def _draw_map(name: str, said: str, axes: list[str], names: dict[str, list[str]], values: np.ndarray) -> "Figure":
    """The first axis upwards, the second to the right."""
    upwards, across = axes
    rows = len(names[upwards])
    figure, panel = column_figure(float(np.clip(0.085 * rows, 0.8, 4.2)) + 0.75 + 0.3 * (across == "position"))
    image = _image(figure, panel, name, said, values)
    _set_ticks(panel, "y", upwards, names[upwards])
    _set_ticks(panel, "x", across, names[across])
    if values.size <= _FEW:
        for (row, column), value in np.ndenumerate(values):
            dark = abs(value) > 0.6 * image.norm.vmax
            panel.text(
                column, row, f"{value:.2f}", fontsize=SMALL, ha="center", va="center", color="w" if dark else "k"
            )
    return figure


def _image(figure: "Figure", panel: "Axes", name: str, said: str, values: np.ndarray) -> Any:
    """A map with 0 in the middle of its colours; grey where nothing was measured."""
    finite = np.abs(values[np.isfinite(values)])
    most = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    # Recovery is towards the clean run, what is lost and the metric away from it.
    colors = "RdBu" if name == "recovery" else "RdBu_r"
    panel.set_facecolor("0.85")
    image = panel.imshow(
        values, cmap=colors, vmin=-most, vmax=most, aspect="auto", origin="lower", interpolation="nearest"
    )
    bar = figure.colorbar(image, ax=panel, pad=0.02, aspect=30, fraction=0.06)
    bar.ax.tick_params(labelsize=SMALL, length=2, pad=1.5)
    bar.outline.set_linewidth(0.4)  # pyright: ignore[reportCallIssue]
    bar.set_label(said, fontsize=TEXT)
    panel.spines[:].set_linewidth(0.4)
    return image


def _draw_leading(
    name: str, said: str, axes: dict[str, tuple[Any, ...]], names: dict[str, list[str]], values: np.ndarray
) -> "Figure":
    """The heads of the largest effect at any position, the first at the top."""
    flat = rearrange(values, "layer head position -> (layer head) position")
    size = np.nanmax(np.where(np.isnan(flat), 0.0, np.abs(flat)), axis=1)
    rows = np.argsort(-size, kind="stable")[:_LEADING]
    heads = [
        f"L{axes['layer'][layer]}H{axes['head'][head]}"
        for layer, head in zip(*np.unravel_index(rows, values.shape[:2]), strict=True)
    ]
    figure, panel = column_figure(0.13 * len(rows) + 1.1)
    _image(figure, panel, name, said, flat[rows])
    panel.invert_yaxis()
    panel.set_yticks(range(len(rows)), heads, fontsize=SMALL)
    panel.set_ylabel(f"leading heads of {len(flat)}", fontsize=TEXT)
    _set_ticks(panel, "x", "position", names["position"])
    return figure


def _draw_curve(
    name: str,
    said: str,
    axis: str,
    names: dict[str, list[str]],
    means: np.ndarray,
    lows: np.ndarray,
    highs: np.ndarray,
) -> "Figure":
    values, low, high = (array.reshape(-1) for array in (means, lows, highs))
    at = np.arange(len(values))
    figure, panel = column_figure(2.0 + 0.3 * (axis == "position"))
    tidy(panel)
    panel.tick_params(labelsize=SMALL)
    if axis == "layer" and len(values) > 1:
        panel.plot(at, values, color=BLUE, lw=1.2, marker="o", ms=2)
        panel.fill_between(at, low, high, color=BLUE, alpha=BAND * 1.5, lw=0)
    else:
        reach = np.abs(np.stack([values - low, high - values]))
        panel.errorbar(at, values, reach, fmt="o", ms=3, color=BLUE, lw=0.9, capsize=1.5)
        panel.set_xlim(-0.6, len(values) - 0.4)
    panel.axhline(0, color=GREY, lw=0.7)
    if name != "effect" and np.nanmax(np.append(high, values)) > 0.5:
        panel.axhline(1, color=GREY, lw=0.7, ls="--")
    _set_ticks(panel, "x", axis, names.get(axis, [""]))
    panel.set_ylabel(said, fontsize=TEXT)
    return figure


def _draw_ends(result: "Result", name: str, mean: float, low: float, high: float) -> "Figure":
    """Every example's metric in the hijacked run, the run that was changed, and the clean run."""
    changed = result.values["value"].reshape(len(result.examples))
    rows = np.stack([result.examples["hijacked"], changed, result.examples["clean"]]).astype(float)
    figure, panel = column_figure(2.0)
    tidy(panel)
    alpha = float(np.clip(2 / np.sqrt(rows.shape[1]), 0.15, 0.7))
    panel.plot(range(3), rows, color=GREY, lw=0.5, alpha=alpha, marker="o", ms=1.5)
    panel.plot(range(3), np.nanmean(rows, 1), color=ORANGE, lw=1.6, marker="o", ms=4)
    panel.axhline(0, color=GREY, lw=0.7, ls=":")
    panel.set_xticks(range(3), ["hijacked", "cut" if result.kind == "knockout" else "patched", "clean"])
    panel.tick_params(labelsize=TEXT)
    panel.set_xlim(-0.25, 2.25)
    panel.set_ylabel(_metric(result), fontsize=TEXT)
    shown = "1 − recovery" if name == "lost" else name
    interval = "" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    panel.set_title(f"mean (orange): {shown} {mean:.2f}{interval}", fontsize=SMALL, pad=3)
    return figure
