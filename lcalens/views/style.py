"""What the figures share: colours, sizes, and text from data as it is, never read as a formula or as markup."""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from lcalens.core.errors import LcalensError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by every kind of colour vision, and in grey by line style.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#767676"
BAND = 0.15
COLUMN = 3.4  # inches: one column of a paper
SMALL, TEXT = 6, 7  # points
_PLACE: ContextVar[Any] = ContextVar("place", default=None)


def short(text: str, width: int = 26) -> str:
    """Text cut to a width, with an ellipsis; a character that the font lacks is as wide as its escape in `plain`.

    Args:
        text: Any.
        width: Characters at most.
    """
    ends = list(accumulate(len(_shown(c)) for c in text))
    if not ends or ends[-1] <= width:
        return text
    return text[: bisect_right(ends, width - 1)] + "…"


def plain(text: str) -> str:
    r"""Text as matplotlib shows it unchanged.

    Dollar signs are dollar signs (a formula would be read between two of them), and characters that the font lacks are
    written as escapes (`\u65e5`), where matplotlib would warn and draw boxes.

    Args:
        text: Any.
    """
    return "".join(map(_shown, text)).replace("$", r"\$")


def _shown(character: str) -> str:
    return character if character == "\n" or _has_glyph(character, _families()) else _escape(character)


def legend(text: str) -> str:
    """A legend's label; matplotlib leaves out those that begin with an underscore.

    Args:
        text: Any.
    """
    text = plain(short(text))
    return f" {text}" if text.startswith("_") else text


def tidy(panel: "Axes") -> None:
    """Small ticks, a light grid, no frame.

    Args:
        panel: To be made so.
    """
    panel.tick_params(labelsize=7)
    panel.xaxis.label.set_fontsize(8)
    panel.yaxis.label.set_fontsize(8)
    panel.grid(axis="y", lw=0.4, alpha=0.5)
    panel.spines[["top", "right"]].set_visible(False)


def column_figure(height: float, width: float = COLUMN) -> "tuple[Figure, Axes]":
    """A figure of one panel.

    Args:
        height: Inches.
        width: Inches; one column by default.
    """
    figure, [[panel]] = panels_of((width, height))
    panel.tick_params(labelsize=SMALL, length=2, pad=1.5)
    panel.set_axisbelow(True)
    return figure, panel


def panels_of(size: tuple[float, float], rows: int = 1, columns: int = 1, **options: Any) -> "tuple[Figure, Any]":
    """A figure and its panels, as an array of rows and columns; within `drawn_in`, in a place of the user's figure.

    Args:
        size: Inches, width and height; a place of a figure has its own.
        rows: Of panels.
        columns: Of panels.
        options: For matplotlib's `subplots`, such as `sharey`.
    """
    place = _PLACE.get()
    if place is not None:
        return place, place.subplots(rows, columns, squeeze=False, **options)
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)


@contextmanager
def drawn_in(ax: "Axes | None") -> "Iterator[Figure | None]":
    """Draw what is drawn inside in the place of an axes; without one in figures, which are closed if drawing fails.

    Args:
        ax: Of the user's figure, one place of its grid; it makes room. None for a figure of its own.

    Yields:
        The user's figure, if there is one.

    Raises:
        LcalensError: No axes, or one that is no place of a grid.
    """
    from matplotlib import pyplot
    from matplotlib.axes import Axes

    if ax is None:
        before = set(pyplot.get_fignums())
        try:
            yield None
        except BaseException:
            for number in set(pyplot.get_fignums()) - before:
                pyplot.close(number)
            raise
        return
    place = ax.get_subplotspec() if isinstance(ax, Axes) else None
    if place is None:
        raise LcalensError(
            f"ax: expected one of the axes that pyplot.subplots gives, got {ax!r:.60}; it has no place in a grid."
        )
    parent, whole = ax.figure, ax.get_figure(root=True)
    assert parent is not None
    assert whole is not None, "an axes with a place in a grid is a figure's"
    whole.set_layout_engine("constrained")  # legends outside of panels need it
    ax.remove()
    token = _PLACE.set(parent.add_subfigure(place))
    try:
        yield whole
    finally:
        _PLACE.reset(token)


def some_ticks(count: int, most: int) -> range:
    """Evenly spaced indices, 0 first, no more than `most`.

    Args:
        count: How many there are to choose from.
        most: How many to choose.
    """
    steps = (1, 2, 3, 4, 5, 8, 10, 16, 20, 25, 32, 50, 64, 100)
    return range(0, count, next((step for step in steps if -(-count // step) <= most), -(-count // most)))


def source_of(result: Any) -> str:
    """The model's name, as the result says it, or nothing.

    Args:
        result: Any result.
    """
    provenance = result.provenance.get("of", {}).get("provenance", result.provenance)
    return str(provenance.get("model", {}).get("source", ""))


def _families() -> tuple[str, ...]:
    from matplotlib import rcParams

    return tuple(rcParams["font.family"])


@cache
def _has_glyph(character: str, families: tuple[str, ...]) -> bool:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    # Text falls back through the families; names that are not installed end at the default font.
    return any(get_font(findfont(FontProperties(family=[name]))).get_char_index(ord(character)) for name in families)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "replace").decode("ascii")
