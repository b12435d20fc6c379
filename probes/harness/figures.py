"""Figures that several probes draw: curves with bands, dots with intervals, heat maps; a panel a setting."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lcalens.views.style import BAND, BLUE, GREEN, GREY, ORANGE, PURPLE, plain, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY, "#E69F00", "#56B4E9", "#222222")
_DASHES = ("-", "--", "-.", ":")
_WIDTH, _HEIGHT, _ACROSS = 2.6, 2.2, 4
_FEW = 8  # ticks
_LIGHT = "#BBBBBB"  # the second of two bars of Bayes


def panels(count: int, *, across: int = _ACROSS, height: float = _HEIGHT, **options: Any) -> tuple["Figure", list[Any]]:
    """A figure of panels, the ones left over taken away.

    Args:
        count: How many panels.
        across: At most so many in a row.
        height: Inches of a panel.
        options: For matplotlib's `subplots`, such as `sharey`.
    """
    from matplotlib import pyplot

    columns = min(count, across)
    rows = -(-count // columns)
    size = (max(columns * _WIDTH + 0.4, 3.4), rows * height + 0.3)
    figure, grid = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)
    for panel in grid.flat[count:]:
        panel.remove()
    return figure, list(grid.flat[:count])


def curves(
    frame: pd.DataFrame,
    *,
    x: str,
    y: str,
    xlabel: str,
    ylabel: str,
    panel: str | None = None,
    series: str | None = None,
    log2: bool = False,
    ylim: tuple[float, float] | None = None,
) -> "Figure":
    """Lines with their 95% bands over `x`, a line a series and a panel a setting.

    Args:
        frame: Columns `x`, `y`, `low`, `high`, and those of series and panel; NaN ends draw no band.
        x: The column of the horizontal axis.
        y: The column of the means.
        xlabel: The horizontal axis in words.
        ylabel: The vertical axis in words.
        panel: A column: a panel for each of its values.
        series: A column: a line for each of its values.
        log2: Whether the horizontal axis is logarithmic.
        ylim: The vertical axis's ends.
    """
    parts = [(None, frame)] if panel is None else list(frame.groupby(panel, sort=False))
    names = [None] if series is None else list(dict.fromkeys(frame[series]))
    figure, axes = panels(len(parts), sharey=True)
    for axis, (title, part) in zip(axes, parts, strict=True):
        for index, name in enumerate(names):
            line = (part if name is None else part[part[series] == name]).sort_values(x)
            if not len(line):
                continue
            look: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "ls": _DASHES[index // len(COLOURS) % 4]}
            look |= {"lw": 1.2, "marker": "o", "ms": 2.5}
            if str(name).startswith("Bayes"):  # the ceiling, not one of what is compared
                look |= {"ls": "--", "lw": 0.9, "marker": ""} | ({"color": GREY} if name == "Bayes" else {})
            at = line[x].to_numpy(dtype=float)
            axis.plot(at, line[y], label=None if name is None else plain(str(name)), **look)
            low, high = line["low"].to_numpy(dtype=float), line["high"].to_numpy(dtype=float)
            axis.fill_between(at, low, high, color=look["color"], alpha=BAND, lw=0)
        if log2:
            axis.set_xscale("log", base=2)
        ticks = sorted(set(part[x]))
        if log2 or len(ticks) <= _FEW:
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
        axis.set_xlabel(xlabel)
        if ylim is not None:
            axis.set_ylim(*ylim)
        if title is not None:
            axis.set_title(plain(str(title)), fontsize=8)
        tidy(axis)
    axes[0].set_ylabel(ylabel)
    if series is not None:
        _below(figure, axes)
    return figure


def bars(
    frame: pd.DataFrame,
    *,
    x: str,
    y: str,
    xlabel: str,
    ylabel: str,
    series: str,
    panel: str | None = None,
    ylim: tuple[float, float] | None = None,
) -> "Figure":
    """Groups of bars with their 95% intervals, a colour a series and a panel a setting.

    Args:
        frame: Columns `x`, `y`, `low`, `high`, and those of series and panel; NaN ends draw no interval.
        x: The column of groups, each at its own place whatever its value.
        y: The column of the means.
        xlabel: The groups in words.
        ylabel: The vertical axis in words.
        series: A column: a bar for each of its values in every group.
        panel: A column: a panel for each of its values.
        ylim: The vertical axis's ends.
    """
    parts = [(None, frame)] if panel is None else list(frame.groupby(panel, sort=False))
    names, groups = list(dict.fromkeys(frame[series])), sorted(set(frame[x]))
    figure, axes = panels(len(parts), sharey=True)
    width = 0.8 / len(names)
    for axis, (title, part) in zip(axes, parts, strict=True):
        for index, name in enumerate(names):
            rows = part[part[series] == name].sort_values(x)
            at = np.array([groups.index(one) for one in rows[x]]) + (index - (len(names) - 1) / 2) * width
            reach = np.nan_to_num(np.array([rows[y] - rows["low"], rows["high"] - rows[y]], dtype=float)).clip(min=0)
            colour = COLOURS[index % len(COLOURS)]
            if str(name).startswith("Bayes"):
                colour = GREY if name == next(one for one in names if str(one).startswith("Bayes")) else _LIGHT
            axis.bar(at, rows[y], width, yerr=reach, color=colour, label=plain(str(name)), error_kw={"lw": 0.8})
        axis.set_xticks(range(len(groups)), [f"{group:g}" for group in groups])
        axis.set_xlabel(xlabel)
        if ylim is not None:
            axis.set_ylim(*ylim)
        if title is not None:
            axis.set_title(plain(str(title)), fontsize=8)
        tidy(axis)
    axes[0].set_ylabel(ylabel)
    _below(figure, axes)
    return figure


def dots(frame: pd.DataFrame, *, xlabel: str, series: str, panel: str | None = None) -> "Figure":
    """Means with their 95% intervals, a row a setting and a colour a series.

    Args:
        frame: Columns `setting`, `mean`, `low`, `high`, and those of series and panel.
        xlabel: The horizontal axis in words.
        series: A column: a colour for each of its values.
        panel: A column: a panel for each of its values.
    """
    from matplotlib.ticker import MaxNLocator

    parts = [(None, frame)] if panel is None else list(frame.groupby(panel, sort=False))
    settings, names = list(dict.fromkeys(frame["setting"])), list(dict.fromkeys(frame[series]))
    lines = max((str(title).count("\n") + str(title).count(" (") for title, _ in parts), default=0)
    height = 0.9 + 0.15 * lines + 0.28 * len(settings)  # titles of several lines, and a legend of several rows
    figure, axes = panels(len(parts), across=2, height=height, sharey=True)
    for axis, (title, part) in zip(axes, parts, strict=True):
        for index, name in enumerate(names):
            rows = part[part[series] == name]
            y = np.array([settings.index(one) for one in rows["setting"]]) + (index - (len(names) - 1) / 2) * 0.7 / len(
                names
            )
            reach = np.nan_to_num(np.array([rows["mean"] - rows["low"], rows["high"] - rows["mean"]], dtype=float))
            colour = COLOURS[index % len(COLOURS)]
            axis.errorbar(rows["mean"], y, xerr=reach.clip(min=0), fmt="o", ms=3, lw=1, color=colour,
                          label=plain(str(name)))  # fmt: skip
        axis.set_yticks(range(len(settings)), [plain(str(one)) for one in settings])
        axis.set_ylim(len(settings) - 0.5, -0.5)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_xlabel(xlabel)
        if title is not None:
            axis.set_title(plain(str(title).replace(" (", "\n(")), fontsize=8)
        tidy(axis)
        axis.grid(axis="x", lw=0.4, alpha=0.5)
    _below(figure, axes)
    return figure


def scatter(
    frame: pd.DataFrame, *, x: str, y: str, xlabel: str, ylabel: str, series: str, group: str, panel: str
) -> "Figure":
    """A mark a row: a colour a group, and within it a shape a series.

    Args:
        frame: Columns `x`, `y`, and those of series, group and panel.
        x: The column of the horizontal axis.
        y: The column of the vertical axis.
        xlabel: The horizontal axis in words.
        ylabel: The vertical axis in words.
        series: A column: a mark, and a line of the legend, for each of its values.
        group: A column: a colour for each of its values.
        panel: A column: a panel for each of its values.
    """
    marks: dict[Any, tuple[str, str]] = {}
    for number, (_, own) in enumerate(frame.groupby(group, sort=False)):
        for name, shape in zip(dict.fromkeys(own[series]), cycle("osD^v*PX"), strict=False):
            marks[name] = COLOURS[number % len(COLOURS)], shape
    parts = list(frame.groupby(panel, sort=False))
    figure, axes = _side_by_side(len(parts), 0.18 * -(-len(marks) // 3))
    for axis, (title, part) in zip(axes, parts, strict=True):
        for name, own in part.groupby(series, sort=False):
            colour, shape = marks[name]
            axis.plot(own[x], own[y], shape, color=colour, ms=5, alpha=0.85, label=plain(str(name)))
        axis.set_xlabel(xlabel)
        axis.set_title(plain(str(title).replace(" (", "\n(")), fontsize=8)
        tidy(axis)
        axis.grid(lw=0.4, alpha=0.5)
    axes[0].set_ylabel(ylabel)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return figure


def _side_by_side(count: int, under: float) -> tuple["Figure", list[Any]]:
    """Large panels that share their axes, with room for a legend under them."""
    from matplotlib import pyplot

    size = (max(3.2 * count, 5.2), 3.4 + under)
    figure, grid = pyplot.subplots(
        1, count, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    return figure, list(grid[0])


def heat_maps(
    maps: Mapping[str, np.ndarray], *, xlabel: str, ylabel: str, label: str, ticks: Sequence[str] | None = None
) -> "Figure":
    """Matrices as colours, a panel each, one scale for all, from 0.

    Args:
        maps: Titles with matrices.
        xlabel: The columns in words.
        ylabel: The rows in words.
        label: The colour in words.
        ticks: Labels of rows and columns, where there are few.
    """
    figure, axes = panels(len(maps), height=2.4)
    most = max(float(np.nanmax(one)) for one in maps.values())
    for axis, (title, one) in zip(axes, maps.items(), strict=True):
        image = axis.imshow(one, cmap="viridis", vmin=0, vmax=most, interpolation="nearest")
        axis.set_title(plain(title), fontsize=8)
        axis.set_xlabel(xlabel, fontsize=8)
        axis.tick_params(labelsize=6)
        if ticks is not None:
            axis.set_xticks(range(len(ticks)), ticks, rotation=90)
            axis.set_yticks(range(len(ticks)), ticks)
    axes[0].set_ylabel(ylabel, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.8).set_label(label, fontsize=8)
    return figure


def _below(figure: "Figure", axes: Sequence[Any]) -> None:
    """One legend for all panels, under them."""
    known: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    if known:
        # As many as fit: a name takes some .06 inches a character, and .4 for its line.
        widest = 0.4 + 0.06 * max(len(label) for label in known)
        columns = min(len(known), min(len(axes), 3) + 1, max(1, int(figure.get_figwidth() / widest)))
        figure.legend(
            known.values(), known.keys(), loc="outside lower center", ncols=columns, fontsize=7, frameon=False
        )
