"""The figure of direct paths: a map of senders for each receiver."""

import re
from typing import TYPE_CHECKING

import numpy as np

from lcalens.core.checks import check_int
from lcalens.views.style import COLUMN, SMALL, TEXT, panels_of, plain, short, some_ticks, source_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lcalens.core.results import Result

_ACROSS = 3


def plot_paths(result: "Result", *, top: int = 6) -> "Figure":
    """Mean effect of every path: for each receiver a map of senders, layers down, heads and the MLP across.

    Red carries the hijack, blue works against it. The embedding stands above layer 0, in the MLPs' column.

    Args:
        result: Of `path`.
        top: How many receivers, those with the largest path; of more the others are left out.

    Raises:
        LcalensError: `top` is no positive integer.
    """
    check_int("top", top, low=1)
    names, effect = result.axes["receiver"], result.values["effect"].mean(0)
    largest = np.nanmax(np.abs(effect), 0, initial=0.0)
    chosen = sorted(np.argsort(-largest, kind="stable")[:top].tolist())
    places = [_place(sender) for sender in result.axes["sender"]]
    layers = max((layer for layer, _ in places), default=0) + 1
    heads = max((head for _, head in places if head is not None), default=-1) + 1
    rows = -(-len(chosen) // _ACROSS)
    across = min(len(chosen), _ACROSS)
    height = rows * (0.09 * (layers + 1) + 0.7) + 0.5
    figure, panels = panels_of((COLUMN * (1 if across == 1 else 0.75 * across), height), rows, across)
    reach = float(largest[chosen].max()) or 1.0
    image = None
    for panel, number in zip(panels.flat, chosen, strict=False):
        grid = np.full((layers + 1, heads + 1), np.nan)
        for (layer, head), value in zip(places, effect[:, number], strict=True):
            grid[layer + 1, heads if head is None else head] = value
        image = panel.imshow(grid, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
        at = str(result.provenance.get("at", ""))
        panel.set_title(plain(names[number] + ("" if at in ("resid", "logits") else f" {at}")), fontsize=TEXT)
        across_ticks, down_ticks = list(some_ticks(heads, 12)), list(some_ticks(layers, 10))
        panel.set_xticks([*across_ticks, heads], [*map(str, across_ticks), "MLP"], fontsize=SMALL)
        panel.set_yticks([0, *(tick + 1 for tick in down_ticks)], ["embed", *map(str, down_ticks)], fontsize=SMALL)
        panel.tick_params(length=2, pad=1.5)
    for panel in panels.flat[len(chosen) :]:
        panel.set_visible(False)
    panels[0, 0].set_ylabel("sender's layer", fontsize=TEXT)
    panels[-1, 0].set_xlabel("sender", fontsize=TEXT)
    assert image is not None, "a result has receivers"
    bar = figure.colorbar(image, ax=panels, shrink=0.8)
    bar.set_label(plain(f"effect of the path ({result.units['effect']})"), fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL)
    left_out = f", {len(chosen)} of {len(names)} receivers" if len(chosen) < len(names) else ""
    title = f"{short(source_of(result), 40)}{left_out}, {len(result.examples)} examples"
    figure.suptitle(plain(title), fontsize=TEXT)
    return figure


def _place(sender: str) -> tuple[int, int | None]:
    """A sender's layer, -1 for the embedding, and its head; None for what is no head."""
    numbers = [int(number) for number in re.findall(r"\d+", sender)]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (numbers[0] if numbers else -1, None)
