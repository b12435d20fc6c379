"""Figures and attention views: the only room that draws. matplotlib is loaded when a figure is asked for."""

from typing import TYPE_CHECKING, Any

from lcalens.core.errors import LcalensError
from lcalens.mechanism.labels import token_labels
from lcalens.views.attention import AttentionView, attention_view
from lcalens.views.bars import plot_ranking, plot_split
from lcalens.views.defence import plot_defence
from lcalens.views.effects import plot_effects
from lcalens.views.efficacy import plot_answers, plot_efficacy
from lcalens.views.kinds import plot_kinds, plot_score_parts
from lcalens.views.memory import plot_memory
from lcalens.views.paths import plot_paths
from lcalens.views.players import plot_shapley
from lcalens.views.recall import plot_recall
from lcalens.views.style import drawn_in
from lcalens.views.tables import html_of
from lcalens.views.toy import plot_attention_pattern, plot_gram, plot_toy_defence, plot_training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lcalens.core.results import Result

__all__ = [
    "AttentionView",
    "attention_view",
    "html_of",
    "plot",
    "plot_answers",
    "plot_attention_pattern",
    "plot_defence",
    "plot_effects",
    "plot_efficacy",
    "plot_gram",
    "plot_kinds",
    "plot_memory",
    "plot_paths",
    "plot_ranking",
    "plot_recall",
    "plot_score_parts",
    "plot_shapley",
    "plot_split",
    "plot_toy_defence",
    "plot_training",
    "token_labels",
]


_DPI = 170  # one column of print, its letters of 6 points, is legible on a screen


def plot(result: "Result", *, ax: "Axes | None" = None, **options: Any) -> "Figure":
    """The figure of a result, by its kind.

    Args:
        result: Any result.
        ax: One of the axes of a figure of yours, made by `pyplot.subplots`: the result takes its place, and the figure
            is laid out anew (constrained). None for a figure of its own.
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
        "patching": plot_effects,
        "knockout": plot_effects,
        "exchange": plot_effects,
        "attribution": plot_effects,
        "split": plot_split,
        "ranking": plot_ranking,
        "defence": plot_defence,
        "memory": plot_memory,
        "recall": plot_recall,
        "head-kinds": plot_kinds,
        "score-parts": plot_score_parts,
        "shapley": plot_shapley,
        "path": plot_paths,
        "toy-defence": plot_toy_defence,
    }
    if result.kind not in drawn:
        raise LcalensError(f"plot: results of kind {result.kind!r} have no figure; use to_frame().")
    from matplotlib import pyplot, rcParams

    # Set back by hand: rc_context would also undo what a notebook's backend sets when the first figure loads it.
    before, rcParams["figure.dpi"] = rcParams["figure.dpi"], _DPI
    try:
        with drawn_in(ax) as whole:
            figure = drawn[result.kind](result, **options)
    finally:
        rcParams["figure.dpi"] = before
    if whole is not None:
        return whole
    pyplot.close(figure)  # a notebook shows what a cell returns; pyplot would keep it, and show it once more
    return figure
