"""Figures of the split and of rankings: bars with their intervals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lcalens.core.checks import check_int
from lcalens.core.errors import LcalensError
from lcalens.views.style import (
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SMALL,
    TEXT,
    column_figure,
    plain,
    short,
    source_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lcalens.core.results import Result

_PARTS = {  # told apart in grey by their hatching
    "attention": (BLUE, ""),
    "recall": (ORANGE, "////"),
    "scale": (GREEN, "...."),
    "inserted": (PURPLE, "xxxx"),
    "shared": ("#999999", ""),
}
_TOTAL, _ALL = "total", "all"
_NAME_WIDTH = 14


def plot_split(result: "Result") -> "Figure":
    """What hijacking changes, by span: where heads look, what they recall, the norms' scale; the total is marked.

    Args:
        result: Of `split`.
    """
    table = result.tables["summary"]
    parts = [part for part in _PARTS if part in set(table["quantity"])]
    groups = list(dict.fromkeys(table["group"]))
    figure, panel = column_figure(2.3, max(COLUMN, 0.5 * len(groups) + 0.4))
    counts = table.groupby("quantity")["n"].first()
    width = 0.84 / (len(parts) + 1)
    for i, part in enumerate([*parts, _TOTAL]):
        rows = table[table["quantity"] == part].set_index("group").reindex(groups)
        at = np.arange(len(groups)) + (i - len(parts) / 2) * width
        label = part if counts.nunique() == 1 else f"{part} ({counts[part]})"  # of how many examples, where they differ
        if part == _TOTAL:
            panel.plot(at, rows["value"], ls="", marker="D", ms=3.2, color="k", label=label)
        else:
            color, hatch = _PARTS[part]
            panel.bar(at, rows["value"], width, color=color, hatch=hatch, edgecolor="white", lw=0, label=label)
        panel.errorbar(
            at, rows["value"], _reach(rows), fmt="none", ecolor="k", elinewidth=0.6, capsize=1.2, capthick=0.6
        )
    panel.axhline(0, color=GREY, lw=0.6)
    if groups[-1] == _ALL and len(groups) > 1:
        panel.axvline(len(groups) - 1.5, color=GREY, lw=0.6, ls=":")
    panel.set_xticks(range(len(groups)), [plain(short(str(group), _NAME_WIDTH)) for group in groups], fontsize=TEXT)
    if sum(len(str(group)) + 1 for group in groups) > 44:
        panel.tick_params(axis="x", rotation=30)
    panel.set_ylabel("hijacked − clean, logits", fontsize=TEXT)
    panel.grid(axis="y", lw=0.4, alpha=0.5)
    panel.spines[["top", "right"]].set_visible(False)
    columns = 4 if len(parts) < 4 and counts.nunique() == 1 else 3
    handles, names = panel.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: names[i].startswith(_TOTAL))  # lines would come before bars
    shown = [handles[i] for i in order], [names[i] for i in order]
    figure.legend(*shown, fontsize=SMALL, frameon=False, ncols=columns, loc="outside lower center")
    figure.suptitle(plain(_named(result, f"{len(result.examples)} examples")), fontsize=TEXT)
    return figure


def _reach(rows: pd.DataFrame, quantity: str = "value") -> np.ndarray:
    """How far the interval reaches below and above the mean; NaN, which is not drawn, where there is none."""
    names = (quantity, f"{quantity}_low", f"{quantity}_high")
    mean, low, high = (
        rows[name].to_numpy(dtype=float) if name in rows else np.full(len(rows), np.nan) for name in names
    )
    return np.maximum(np.stack([mean - low, high - mean]), 0.0)


def _named(result: "Result", *parts: str) -> str:
    return ", ".join(short(part, 40) for part in (source_of(result), *parts) if part)


def plot_ranking(result: "Result", *, top: int = 10, labels: Sequence[str] | None = None) -> "Figure":
    """The leading sites' effects with intervals, the held-out effects beside them, and how sure each rank is.

    Args:
        result: Of `ranking`.
        top: How many sites.
        labels: The positions' labels, the last position's last, where sites have positions
            (`lcalens.views.token_labels`).

    Raises:
        LcalensError: `top` is no positive integer, or there are fewer labels than positions.
    """
    check_int("top", top, low=1)
    table = result.wide()
    leading = table[table["value"].notna()].head(top)
    at = np.arange(len(leading))[::-1]
    held = "held_out" in table
    figure, panel = column_figure((0.22 if held else 0.17) * max(len(leading), 3) + 0.95)
    shift = 0.19 if held else 0.0
    thick = 0.36 if held else 0.66
    ranked = result.provenance.get("of", {})
    ranked_label = f"ranked on {ranked.get('examples', 'these')}" if held else None
    panel.barh(at + shift, leading["value"], thick, color=BLUE, label=ranked_label)
    _whiskers(panel, at + shift, leading, "value")
    if held:
        label = f"held out, {result.provenance.get('held_out', 'others')}"
        panel.barh(at - shift, leading["held_out"], thick, color=ORANGE, hatch="////", edgecolor="w", lw=0, label=label)
        _whiskers(panel, at - shift, leading, "held_out")
    panel.axvline(0, color="k", lw=0.6)
    names = [plain(name) for name in _sites(leading, result.axes, labels)]
    panel.set_yticks(at, names, fontsize=TEXT)
    panel.set_ylim(-0.6, len(leading) - 0.4)
    panel.set_xlabel(plain(_quantity(result)), fontsize=TEXT)
    panel.grid(axis="x", lw=0.4, alpha=0.5)
    panel.spines[["top", "right"]].set_visible(False)
    if "rank_low" in leading and leading["rank_low"].notna().any():
        ranks = panel.secondary_yaxis("right")
        ranks.set_yticks(at, [_range(*pair) for pair in zip(leading["rank_low"], leading["rank_high"], strict=True)])
        ranks.tick_params(labelsize=SMALL, length=0)
        ranks.spines[:].set_visible(False)
        ranks.set_ylabel("interval of the rank", fontsize=SMALL, color=GREY)
    if held:
        handles, names = panel.get_legend_handles_labels()
        figure.legend(handles, names, fontsize=SMALL, frameon=False, ncols=2, loc="outside lower center")
    counted = f"{len(leading)} leading of {len(table)}"
    figure.suptitle(plain(_named(result, counted)), fontsize=TEXT)
    return figure


def _whiskers(panel: "Axes", at: np.ndarray, rows: pd.DataFrame, quantity: str) -> None:
    reach = _reach(rows, quantity)
    panel.errorbar(rows[quantity], at, xerr=reach, fmt="none", ecolor="k", elinewidth=0.6, capsize=1.2, capthick=0.6)


def _range(low: float, high: float) -> str:
    if np.isnan(low):
        return ""
    return f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}"


def _sites(rows: pd.DataFrame, axes: Any, labels: Sequence[str] | None) -> list[str]:
    """L23H4, and at which position."""
    names = []
    for i in range(len(rows)):
        name = "".join(f"{axis[0].upper()}{rows[axis].iloc[i]}" for axis in ("layer", "head") if axis in rows)
        if "position" in rows:
            name = f"{name} at {_position(rows['position'].iloc[i], axes['position'], labels)}".strip()
        names.append(name)
    return names


def _position(at: Any, axis: Sequence[Any], labels: Sequence[str] | None) -> str:
    if labels is None:
        return str(at).replace("-", "−")
    if isinstance(labels, str) or len(labels) < len(axis):
        raise LcalensError(
            f"labels: expected a label for each of {len(axis)} positions, got {len(labels)} in {labels!r:.60}; "
            "lcalens.views.token_labels(model, contrast) gives them."
        )
    label = str(labels[len(labels) - len(axis) + list(axis).index(at)])
    counted = f"{at}".replace("-", "−")
    return counted if label == counted else f"{short(label, 10)} ({counted})"


def _quantity(result: "Result") -> str:
    provenance = result.provenance
    quantity = str(provenance.get("quantity", "effect"))
    of = provenance.get("of", {})
    if quantity == "recovery" and of.get("provenance", {}).get("direction") == "corrupt":
        quantity = "recovery − 1"
    words = {"recovery": "recovery", "total": "direct effect, hijacked − clean", "effect": "effect on the metric"}
    confidence = provenance.get("bootstrap", {}).get("confidence")
    suffix = "" if confidence is None else f" ({confidence:.0%} intervals)"
    return words.get(quantity, quantity) + suffix
