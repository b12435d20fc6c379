"""What is shown of recall and of defences: whose brackets are intervals, and that every scheme is drawn."""

from dataclasses import replace

import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from lcalens import Result, recall
from lcalens.views.defence import draws_of, plot_defence
from lcalens.views.intervals import about_intervals
from lcalens.views.link_text import defence_screen, recall_screen
from lcalens.views.report.words import sentences

MODEL = {"source": "a model", "dtype": "float32", "quantisation": "none"}
DRAWN = "random: the mean of 2 draws, and in brackets the middle 95% of them, no interval."


def evaluated(measured, told, schemes=("dont-think",), *, interval: float | None = 0.1):
    """A result of `evaluate_defence` whose numbers are all alike.

    Args:
        measured: All defences.
        told: Those of the table.
        schemes: Names.
        interval: How far each reaches either way; None for no intervals.
    """
    rows = []
    for name in told:
        quantities = [
            ("clean", "es"),
            ("clean", "flips"),
            ("clean", "accuracy"),
            ("true", "kept"),
            ("plain text", "kl"),
        ]
        quantities += [(scheme, quantity) for scheme in schemes for quantity in ("es", "recovery", "agreement")]
        for condition, quantity in quantities:
            ends = (float("nan"),) * 2 if interval is None else (0.5 - interval, 0.5 + interval)
            rows.append((name, condition, quantity, 0.5, *ends, "share", 9))
    columns = ["defence", "condition", "quantity", "value", "value_low", "value_high", "unit", "n"]
    made = {"model": MODEL, "schemes": {scheme: (scheme, 1) for scheme in schemes}, "cells": {"loaded": 0}}
    return Result(kind="defence", axes={"defence": tuple(measured)}, values={}, provenance=made,
                  tables={"summary": pd.DataFrame(rows, columns=columns)})  # fmt: skip


def test_brackets_of_draws_are_said_to_be_no_intervals():
    drawn = evaluated(("none", "cut", "random 1", "random 2"), ("none", "cut", "random"))
    assert draws_of(drawn) == {"random": 2}
    assert DRAWN in defence_screen(drawn).splitlines()
    assert DRAWN in sentences(drawn)
    plain = evaluated(("none", "cut", "cut 1"), ("none", "cut", "cut 1"))
    assert draws_of(plain) == {}
    assert "draws" not in defence_screen(plain)
    assert "draws" not in " ".join(sentences(plain))
    beside = evaluated(("none", "a 1", "a 2", "a 3", "b+ 1", "b+ 2"), ("none", "a", "a 3", "b+"))
    assert draws_of(beside) == {"a": 2, "b+": 2}


@pytest.mark.parametrize("count", [1, 8, 10, 16, 19])
def test_every_scheme_is_drawn_with_a_marker_of_its_own(count):
    schemes = [f"scheme {number}" for number in range(count)]
    figure = plot_defence(evaluated(("none", "cut"), ("none", "cut"), schemes))
    figure.canvas.draw()
    for panel in figure.axes:
        assert len(panel.containers) == 2 * count
        marks = {(bars[0].get_marker(), bars[0].get_fillstyle()) for bars in panel.containers}
        assert len(marks) == count
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["none", "cut", *schemes]
    shown = figure.legends[0].legend_handles[2:]
    assert {(line.get_marker(), line.get_fillstyle()) for line in shown} == marks


def test_the_figure_says_whose_bars_are_of_draws_and_draws_no_bar_where_there_is_no_interval():
    figure = plot_defence(evaluated(("none", "random 1", "random 2"), ("none", "random")))
    assert "random (2 draws)" in [text.get_text() for text in figure.legends[0].get_texts()]
    figure = plot_defence(evaluated(("none", "cut"), ("none", "cut"), interval=None))
    figure.canvas.draw()
    bars = [line for line in figure.axes[0].collections if isinstance(line, LineCollection)]
    assert not [segment for line in bars for segment in line.get_segments() if segment.size]


def test_the_screen_of_recall_says_what_its_intervals_are_worth(standin):
    words = {30: [31], 32: [33], 34: [35], 36: []}
    found = recall(standin("llama").model, words, [(0, 0), (1, 1)], draws=5, progress=False)
    about = about_intervals(found)
    assert about
    said = " ".join(recall_screen(found).split())
    assert all(" ".join(line.split()) in said for line in about)


def test_a_ratio_of_draws_around_0_is_not_shown(standin):
    words = {30: [31], 32: [33], 34: [35], 36: []}
    found = recall(standin("llama").model, words, [(0, 0)], draws=5, progress=False)
    nulls = found.tables["nulls"]
    for low, shown in ((-0.1, False), (0.1, True)):
        ends = nulls.assign(value_low=low, value_high=0.4).where(nulls["quantity"] == "own_gap", nulls)
        one = replace(found, tables=found.tables | {"nulls": ends})
        name = "same spectrum"
        row = next(
            line for line in recall_screen(one).splitlines() if line.lstrip().startswith("L0H0") and name in line
        )
        own, related = (found.wide("nulls").set_index("null").loc[name, f"{kind}_gap"] for kind in ("own", "related"))
        assert (f"{related / own:.2f}" in row) is shown
