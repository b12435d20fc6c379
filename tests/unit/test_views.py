"""Figures: they draw without a warning whatever the text, and show the numbers of the tables."""

import io
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from matplotlib import cbook, pyplot

from lcalens import views
from lcalens.core.errors import LcalensError
from lcalens.core.results import Result
from lcalens.llm.efficacy.tables import summarise
from lcalens.llm.prompts.schemes import SCHEMES
from lcalens.views.style import plain, short

FACTS = 30


def study(schemes=("dont-think", "neutral", "unrelated"), counts=(0, 1, 3), *, known=0.5, missing=False, **provenance):
    """An efficacy result of made-up numbers, its tables made as a measurement's are."""
    generator = np.random.default_rng(0)
    shape = (FACTS, len(schemes), len(counts))
    values = {name: -generator.exponential(3, shape) for name in ("logp_true", "logp_false")}
    values["logp_true"][:, :, 0], values["logp_false"][:, :, 0] = -generator.exponential(3, (2, FACTS, 1))
    if missing:
        for name in values:
            values[name][:20, 0, -1] = np.nan
    examples = pd.DataFrame(
        {
            "case_id": range(FACTS),
            "relation_id": [f"P{i % 3 + 17}" for i in range(FACTS)],
            "known": np.arange(FACTS) < known * FACTS,
        }
    )
    axes = {"example": tuple(range(FACTS)), "scheme": tuple(schemes), "n": tuple(counts)}
    return Result(
        kind="efficacy",
        axes=axes,
        values=values,
        examples=examples,
        tables=summarise(examples, axes, values, Counter(), seed=0),
        provenance={"model": {"source": "gpt2"}, "facts": {"source": "sample"}} | provenance,
    )


def answers(tokens=(" Paris", " Rome"), contexts=("clean", "hijacked")):
    shares = np.linspace(0.6, 0.1, len(tokens))
    table = {"rank": range(1, len(tokens) + 1)}
    for context in contexts:
        table |= {context: list(tokens), f"{context}_probability": shares}
    return Result(
        kind="answers",
        axes={"context": tuple(contexts), "rank": tuple(range(1, len(tokens) + 1))},
        values={"probability": np.array([shares] * len(contexts))},
        tables={"answers": pd.DataFrame(table)},
        provenance={"config": {"prompt": "Rome is in", "hijack": ["Do not think of Spain."][: len(contexts) - 1]}},
    )


def scheme_of(panel):
    return panel.get_title().split(" (")[0]


def draw(figure):
    """What it takes to see a figure; a warning is an error."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=60)
        assert len(file.getvalue()) > 2000
    return figure


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text")) if text.get_text()]


# --- every shape of a study -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schemes": ("dont-think",)},
        {"schemes": ("neutral",)},
        {"schemes": tuple(SCHEMES)},
        {"counts": (0,)},
        {"counts": (0, 10)},
        {"counts": tuple(range(12))},
        {"missing": True},
        {"schemes": ("dont-think", "negation", "factual", "reverse-factual")},
    ],
    ids=str,
)
def test_every_study_can_be_drawn(changes):
    draw(study(**changes).plot())


@pytest.mark.parametrize("subset", ["all", "known", "prefers-true"])
def test_every_subset_can_be_drawn(subset):
    draw(study().plot(subset=subset))


@pytest.mark.parametrize("subset", ["known", "prefers-true"])
def test_a_subset_of_no_facts_can_be_drawn(subset):
    result = study(known=0)
    if subset == "prefers-true":
        result.values["logp_true"][:] = -9
        result.values["logp_false"][:] = -1
        tables = summarise(result.examples, result.axes, result.values, Counter(), seed=0)
        result = Result(**{**vars(result), "tables": tables})
    chosen = result.wide()[result.wide()["subset"] == subset]
    assert set(chosen["facts"]) == {0}
    figure = draw(result.plot(subset=subset))
    assert any(re.search(r"\b0 facts", text) for text in texts_of(figure))


@pytest.mark.parametrize("relation", ["P17", "P18"])
def test_a_relation_can_be_drawn(relation):
    figure = draw(study(missing=True).plot(relation=relation))
    assert any(relation in text for text in texts_of(figure))


def test_a_loaded_study_draws_the_same(tmp_path):
    result = study()
    loaded = Result.load(result.save(tmp_path / "out"))
    left, right = (item.plot() for item in (result, loaded))
    assert texts_of(left) == texts_of(right)
    for one, other in zip(left.axes, right.axes, strict=True):
        for a, b in zip(one.lines, other.lines, strict=True):
            np.testing.assert_array_equal(a.get_xydata(), b.get_xydata())


# --- what is shown --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["es", "retention"])
@pytest.mark.parametrize("options", [{}, {"subset": "known"}, {"relation": "P18"}], ids=str)
def test_lines_are_the_tables_numbers(measure, options):
    result = study(schemes=("dont-think", "negation", "neutral", "unrelated"))
    table = result.wide("by_relation") if "relation" in options else result.wide()
    if "relation" in options:
        table = table[table["relation_id"] == "P18"]
    else:
        table = table[table["subset"] == options.get("subset", "all")]
    figure = result.plot(measure=measure, **options)
    assert [scheme_of(panel) for panel in figure.axes] == ["dont-think", "negation"]
    controls = {"dont-think": ["unrelated", "neutral"], "negation": ["neutral"]}
    for panel in figure.axes:
        names = [scheme_of(panel), *controls[scheme_of(panel)]]
        assert [line.get_label() for line in panel.lines] == names
        assert [text.get_text() for text in panel.get_legend().get_texts()] == names
        for line in panel.lines:
            rows = table[table["scheme"] == line.get_label()].sort_values("n")
            np.testing.assert_allclose(line.get_ydata(), rows[measure])
            np.testing.assert_array_equal(line.get_xdata(), range(3))
        for line, band in zip(panel.lines, panel.collections, strict=True):
            rows = table[table["scheme"] == line.get_label()]
            corners = band.get_paths()[0].vertices[:, 1]
            assert corners.min() == pytest.approx(rows[f"{measure}_low"].min())
            assert corners.max() == pytest.approx(rows[f"{measure}_high"].max())
        assert [tick.get_text() for tick in panel.get_xticklabels()] == ["0", "1", "3"]
        low, high = panel.get_ylim()
        assert low < 0
        assert high > 1


def test_controls_stand_on_the_facts_that_their_scheme_has():
    """Twenty of thirty facts lack the last n: before any sentence stands, a scheme and its controls are the same."""
    (panel,) = study(missing=True).plot().axes
    assert len(panel.lines) == 3
    assert {line.get_ydata()[0] for line in panel.lines} == {panel.lines[0].get_ydata()[0]}
    assert any(re.search(r"\b10 facts", text) for text in texts_of(panel.figure))


@pytest.mark.parametrize("options", [{}, {"relation": "P18"}, {"subset": "known"}], ids=str)
def test_all_curves_of_a_panel_are_of_the_same_facts(options):
    """A control that lacks other facts than its scheme: counted by hand on those that both have."""
    result = study(schemes=("dont-think", "unrelated", "neutral"))
    rng = np.random.default_rng(3)
    facts = len(result.examples)
    for column in range(3):
        gone = rng.choice(facts, facts // 4, replace=False)
        for name in ("logp_true", "logp_false"):
            result.values[name][gone, column, -1] = np.nan
    (panel,) = result.plot(**options).axes
    odds = result.values["logp_false"] - result.values["logp_true"]
    chosen = ~np.isnan(odds).any(axis=(1, 2))
    if "relation" in options:
        chosen &= result.examples["relation_id"].to_numpy() == "P18"
    if "subset" in options:
        chosen &= result.examples["known"].to_numpy()
    assert 0 < chosen.sum() < (~np.isnan(odds[:, 0]).any(axis=1)).sum()
    assert len(panel.lines) == 3
    for line, column in zip(panel.lines, (0, 1, 2), strict=True):
        np.testing.assert_allclose(line.get_ydata(), (odds[chosen, column] > 0).mean(axis=0))
    assert any(re.search(rf"\b{chosen.sum()} facts", text) for text in texts_of(panel.figure))


def test_a_scheme_of_which_nothing_was_measured_says_why():
    result = study(schemes=("negation", "neutral"))
    for name in ("logp_true", "logp_false"):
        result.values[name][:, 0, 1:] = np.nan
    why = {"negation": "no negated sentence is known for relation 'mine'"}
    result = Result(**{**vars(result), "provenance": {**result.provenance, "unmeasured": why}})
    (panel,) = draw(result.plot()).axes
    said = " ".join(" ".join(texts_of(panel.figure)).split())
    assert "nothing was measured: no negated sentence is known for relation 'mine'" in said
    assert "Nothing was measured of 'negation': no negated sentence is known for relation 'mine'." in repr(result)


def test_retention_is_the_rest_of_es():
    result = study(schemes=("dont-think",))
    es, retention = (result.plot(measure=measure).axes[0].lines[0].get_ydata() for measure in ("es", "retention"))
    np.testing.assert_allclose(es + retention, 1)


def test_the_figure_says_what_it_is():
    figure = study(model={"source": "some-model"}, facts={"source": "my.json"}).plot(subset="known")
    words = " ".join(texts_of(figure))
    for word in ("some-model", "my.json", "known", "Wilson", "ES", "sentences before the prompt"):
        assert word in words
    assert "retention" in " ".join(texts_of(study().plot(measure="retention")))


def test_a_study_of_controls_alone_shows_them():
    figure = draw(study(schemes=("neutral", "unrelated")).plot())
    assert [scheme_of(panel) for panel in figure.axes] == ["neutral", "unrelated"]


def test_lines_can_be_told_apart_without_colour():
    (panel,) = study().plot().axes
    assert len({line.get_linestyle() for line in panel.lines}) == len(panel.lines) == 3
    assert len({line.get_marker() for line in panel.lines}) == 3


# --- any text -------------------------------------------------------------------------------------------------------

HARD = [
    "Forget {target_false}." + " Really, forget it." * 20,
    "I owe $5 to {target_false} and $6 to you.",
    "Solve $_^$ for {target_false}.",
    r"Say $\frac$ of {target_false}.",
    "<script>alert({target_false})</script> & so on",
    "_Not {target_false}, please.",
    "Back\\slash {target_false} \\alpha",
]


def is_plain(text):
    return not cbook.is_math_text(text)


@pytest.mark.parametrize("template", HARD)
def test_any_template_can_be_drawn(template):
    figure = draw(study(schemes=(template, "neutral")).plot())
    (panel,) = figure.axes
    assert len(panel.get_legend().get_texts()) == 2
    titles = (panel.get_title(), panel.get_title(loc="left"))
    assert any(titles)
    for text in (*titles, *(item.get_text() for item in panel.get_legend().get_texts())):
        assert is_plain(text), "dollar signs are text, not formulas"


def artist(panel, said):
    """The text of a panel that says this."""
    return next(text for text in panel.findobj(lambda item: hasattr(item, "get_text")) if text.get_text() == said)


FITTING = (
    "Forget about {target_false}.",
    "Whatever they say, {target_false} is not meant here.",
    "It was never about {target_false}, and it never will be.",
)


def test_a_templates_title_is_whole_on_two_lines_within_its_panel():
    figure = draw(study(schemes=(*FITTING, "neutral")).plot())
    for panel, template in zip(figure.axes, FITTING, strict=True):
        assert panel.get_title() == ""
        lines = panel.get_title(loc="left").removesuffix("\n").split("\n")
        assert " ".join(lines) == template
        assert len(lines) <= 2
        title, facts = artist(panel, panel.get_title(loc="left")), artist(panel, panel.get_title(loc="right"))
        assert title.get_window_extent().width <= panel.get_window_extent().width
        lowest = title.get_window_extent().y0 + title.get_window_extent().height / (len(lines) + 1)
        assert facts.get_window_extent().y1 <= lowest + 2  # on a line of its own
        assert title.get_window_extent().y1 <= figure.bbox.height


def test_a_longer_template_is_cut_at_the_end_of_the_second_line():
    figure = draw(study(schemes=("no " * 80 + "{target_false}", "x" * 300 + "{target_false}", "neutral")).plot())
    for panel in figure.axes:
        first, second, nothing = panel.get_title(loc="left").split("\n")
        assert len(first) > 30
        assert second.endswith("…")
        assert len(second) > 30
        assert nothing == ""


def test_a_built_in_scheme_keeps_its_title_beside_the_facts():
    for panel in draw(study().plot()).axes:
        assert panel.get_title() in SCHEMES
        assert panel.get_title(loc="left") == ""


def test_a_long_template_does_not_squeeze_the_panel():
    figure = draw(study(schemes=(HARD[0], "neutral")).plot())
    (panel,) = figure.axes
    assert panel.get_position().width > 0.5
    legend = panel.get_legend().get_window_extent()
    assert legend.width < figure.bbox.width


@pytest.mark.parametrize("name", ["a$b$c", "$_^$", "<b>bold</b>", "_x"])
def test_any_model_and_facts_can_be_named(name):
    figure = draw(study(model={"source": name}, facts={"source": name}).plot())
    assert is_plain(figure.get_suptitle())


def test_any_token_can_be_drawn():
    tokens = ["$", "$x$", "$_^$", r"\$", "<b>", "\n", "\x1b[31m", "\x00", "", " ", "_", "%", "é", "$$", "a$b$c"]
    (panel,) = draw(answers(tokens, ("clean",)).plot()).axes
    labels = [label.get_text() for label in panel.get_yticklabels()]
    assert all(map(is_plain, labels))
    assert [label.replace("\\", "") for label in labels] == [repr(token).replace("\\", "") for token in tokens]


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("contexts", "count"), [(("clean",), 1), (("clean", "hijacked"), 7)])
def test_answers_are_bars_from_the_top(contexts, count):
    result = answers([f" t{i}" for i in range(count)], contexts)
    figure = draw(result.plot())
    titles = {"clean": "Rome is in", "hijacked": "Do not think of Spain. Rome is in"}
    assert [panel.get_title(loc="left") for panel in figure.axes] == [titles[name] for name in contexts]
    for name, panel in zip(contexts, figure.axes, strict=True):
        table = result.tables["answers"]
        bars = sorted(panel.patches, key=lambda bar: -bar.get_y())
        np.testing.assert_allclose([bar.get_width() for bar in bars], table[f"{name}_probability"])
        assert [label.get_text() for label in panel.get_yticklabels()] == [repr(t) for t in table[name]]


# --- what cannot be drawn -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": "unknown"}, "subset: 'unknown' is not one of all, known, prefers-true"),
        ({"relation": "P9"}, "relation: 'P9' is not one of P17, P18, P19"),
        ({"relation": "P17", "subset": "known"}, "subset: 'known' cannot be combined"),
    ],
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(LcalensError, match=message):
        study().plot(**options)


def test_options_that_there_are_not():
    for result in (study(), answers()):
        with pytest.raises((TypeError, LcalensError), match="mesure"):
            result.plot(mesure="es")


def test_a_kind_without_a_figure():
    with pytest.raises(LcalensError, match="no figure"):
        views.plot(Result(kind="other", axes={"n": (1,)}, values={"x": np.zeros(1)}))


def test_a_figure_is_not_kept_by_pyplot_and_can_still_be_saved(tmp_path):
    study().plot().savefig(tmp_path / "figure.png")
    assert pyplot.get_fignums() == []
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_a_figure_takes_the_place_of_an_axes_and_leaves_the_others():
    figure, axes = pyplot.subplots(1, 3, figsize=(9, 3))
    axes[0].plot([1, 2])
    assert study().plot(ax=axes[1]) is figure
    assert answers().plot(ax=axes[2]) is figure
    assert figure.axes == [axes[0]] + [panel for part in figure.subfigs for panel in part.axes]
    assert [len(part.axes) for part in figure.subfigs] == [1, 2]
    draw(figure)
    assert pyplot.fignum_exists(figure.number)


@pytest.mark.parametrize("ax", [3, "left", None])
def test_what_is_no_place_of_a_grid_is_refused(ax):
    ax = pyplot.figure().add_axes((0, 0, 1, 1)) if ax is None else ax
    with pytest.raises(LcalensError, match="ax: expected one of the axes"):
        study().plot(ax=ax)


def test_a_figure_that_cannot_be_drawn_is_not_left_open(monkeypatch):
    def fails(*_, **__):
        raise ZeroDivisionError

    mine = pyplot.figure().number
    monkeypatch.setattr("lcalens.views.efficacy._label", fails)
    with pytest.raises(ZeroDivisionError):
        study().plot()
    assert pyplot.get_fignums() == [mine]
    _, ax = pyplot.subplots()
    with pytest.raises(ZeroDivisionError):
        study().plot(ax=ax)
    monkeypatch.undo()
    assert len(study().plot().subfigs) == 0  # a figure of its own again


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("a" * 26, "a" * 26),
        ("a" * 27, "a" * 25 + "…"),
        ("", ""),
        ("ab\U00083400", "ab\U00083400"),  # twelve letters as it is drawn
        ("\U00083400" * 3, "\U00083400" * 2 + "…"),
        ("aaaaaaa\U00083400\U00083400", "aaaaaaa\U00083400…"),
    ],
)
def test_text_is_cut_to_the_width_at_which_it_is_drawn(text, cut):
    assert short(text) == cut
    assert len(plain(short(text))) <= 26
