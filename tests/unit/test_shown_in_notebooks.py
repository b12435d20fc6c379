"""What a notebook shows by itself: results as tables, facts with their number, figures, and one line of progress."""

import io
import os
import re
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lcalens.core.errors import LcalensError
from lcalens.core.progress import progress_callback
from lcalens.core.results import Result
from lcalens.llm.efficacy.tables import summarise
from lcalens.llm.facts.facts import load_facts
from lcalens.mechanism.leading import Leading
from lcalens.views.intervals import about_intervals
from lcalens.views.report.sections import sections_of
from lcalens.views.tables import with_intervals

EVIL = "<script>alert('1')</script>"


def headings(page):
    return [re.findall(r"<th>(.*?)</th>", head) for head in re.findall(r"<thead>(.*?)</thead>", page, re.DOTALL)]


def cells(page, table=0):
    body = re.findall(r"<tbody>(.*?)</tbody>", page, re.DOTALL)[table]
    return [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in body.split("</tr>") if "<td>" in row]


def study(source="sample"):
    """Thirty facts of which the scheme flips all at n = 1 and the control none."""
    generator = np.random.default_rng(0)
    shape = (30, 2, 2)
    false = np.full(shape, -2.0) + generator.normal(0, 0.1, shape)
    false[:, 0, 1] = 0.0
    values = {"logp_true": np.full(shape, -1.0), "logp_false": false}
    examples = pd.DataFrame({"case_id": range(30), "relation_id": [f"P{i % 3}" for i in range(30)], "known": True})
    axes = {"example": tuple(range(30)), "scheme": ("dont-think", "unrelated"), "n": (0, 1)}
    tables = summarise(examples, axes, values, Counter(), seed=0)
    provenance = {"model": {"source": source}}
    return Result(kind="efficacy", axes=axes, values=values, examples=examples, tables=tables, provenance=provenance)


def answers(contexts=("clean", "hijacked"), scored=True):
    table = {"rank": [1, 2]}
    for context in contexts:
        table |= {context: [" Paris", EVIL], f"{context}_probability": [0.61234, 0.25]}
    tables = {"answers": pd.DataFrame(table), "scored": pd.DataFrame({"answer": []})}
    if scored:
        change = {"change": [-1.25, 2.5]} if len(contexts) > 1 else {}
        logp = {f"{context}_logp": [-0.5, -3.25] for context in contexts}
        tables["scored"] = pd.DataFrame({"answer": ["Paris", "Spain"], **logp, **change, "tokens": ["a", "b"]})
    return Result(
        kind="answers",
        axes={"context": tuple(contexts), "rank": (1, 2)},
        values={"probability": np.ones((len(contexts), 2))},
        tables=tables,
        provenance={"config": {"prompt": "It is", "hijack": ["Do not think of Spain."][: len(contexts) - 1]}},
    )


def test_efficacy_is_narrow_and_has_its_changes_and_controls():
    page = study()._repr_html_()
    heads = ["scheme", "n", "facts", "ES", "ES less that at n = 0", "mean log odds, nats", "ES less the control&#x27;s"]
    assert [head.replace("'", "&#x27;") for head in headings(page)[0]] == heads
    rows = cells(page)
    assert [row[:2] for row in rows] == [
        ["dont-think", "0"],
        ["dont-think", "1"],
        ["unrelated", "0"],
        ["unrelated", "1"],
    ]
    hijacked, control = rows[1], rows[3]
    assert re.fullmatch(r"1 \[0\.\d+, 1\]\*", hijacked[3])
    wide = study().wide().query("subset == 'all' and scheme == 'dont-think' and n == 1").iloc[0]
    assert hijacked[4] == f"{wide['change']:.3g} [{wide['change_low']:.3g}, {wide['change_high']:.3g}]"
    assert hijacked[5] == f"{wide['log_odds']:.3g} [{wide['log_odds_low']:.3g}, {wide['log_odds_high']:.3g}]"
    assert re.fullmatch(r"1 \[.*\]\* \(unrelated\)", hijacked[6])
    assert control[3].startswith("0 [0, 0.")
    assert not control[3].endswith("*")
    assert control[6] == ""


def test_answers_show_their_scores_and_what_moved():
    page = answers()._repr_html_()
    assert "by +3.75 nats, towards the answer that it names" in page
    assert cells(page)[0] == ["1", "' Paris'", "0.612", "' Paris'", "0.612"]
    assert headings(page)[1] == ["answer", "clean_logp", "hijacked_logp", "change", "tokens"]
    assert cells(page, 1)[1] == ["Spain", "-3.25", "-3.25", "2.5", "b"]
    assert "<script" not in page


@pytest.mark.parametrize("contexts", [("clean",), ("clean", "hijacked")])
@pytest.mark.parametrize("scored", [True, False])
def test_answers_of_any_kind_are_shown(contexts, scored):
    page = answers(contexts, scored)._repr_html_()
    assert len(headings(page)) == 1 + scored
    assert ("nats" in page.partition("<table")[0]) == (scored and len(contexts) > 1)


def test_an_interval_stands_in_its_quantitys_cell():
    table = pd.DataFrame({"head": ["L1H2", "L3H4"], "value": [0.31, np.nan], "value_low": [0.219, np.nan],
                          "value_high": [0.4, np.nan], "low": [1.0, 2.0], "empty": [np.nan, np.nan]})  # fmt: skip
    shown = with_intervals(table)
    assert list(shown) == ["head", "value", "low"]
    assert shown["value"].to_list() == ["0.31 [0.219, 0.4]", ""]
    assert shown["low"].to_list() == ["1", "2"]


@pytest.mark.parametrize(("relations", "told"), [(1, ""), (3, "3 relations.*75%"), (9, "9 relations.*90%"), (10, "")])
def test_intervals_over_few_relations_are_said_to_be_too_narrow(relations, told):
    one = study()
    one.examples["relation_id"] = [f"P{i % relations}" for i in range(30)]
    pages = [one._repr_html_(), "\n".join(about_intervals(one))]
    assert all(bool(re.search("which are too few", page)) is bool(told) for page in pages)
    assert all(re.search(told, page) for page in pages)


@pytest.mark.parametrize(("low", "said"), [(np.nan, True), (0.1, False)])
def test_shares_without_an_interval_are_explained(low, said):
    rows = {"layer": [0, 1], "quantity": "recovery", "value": [0.5, 0.4], "value_low": low, "value_high": low + 1}
    one = Result(
        kind="patching", axes={"layer": (0, 1)}, values={"x": np.zeros(2)},
        tables={"summary": pd.DataFrame(rows | {"unit": "share"})},
    )  # fmt: skip
    pages = [one._repr_html_(), "\n".join(about_intervals(one)), " ".join(sections_of([one])[0].says)]
    assert all(("its own interval holds 0" in page) is said for page in pages)


@pytest.mark.parametrize(
    ("kind", "quantity", "value", "width", "said"),
    [
        ("patching", "value", 0.5, 0.0, True),
        ("patching", "value", 0.0, 0.0, False),  # a site that does nothing
        ("patching", "value", 0.5, 0.1, False),
        ("recall", "own_first", 0.0, 0.0, True),
        ("efficacy", "difference", 0.0, 0.0, True),
    ],
)
def test_intervals_of_no_width_are_explained(kind, quantity, value, width, said):
    rows = {"layer": [0, 1], "quantity": quantity, "value": value, "value_low": value, "value_high": value + width}
    table = pd.DataFrame(rows | {"unit": "share"})
    one = Result(kind=kind, axes={"layer": (0, 1)}, values={"x": np.zeros(2)}, tables={"other": table})
    assert ("no width" in " ".join(about_intervals(one))) is said


def test_rows_that_are_left_out_are_counted():
    def page(rows):
        table = pd.DataFrame({"layer": range(rows)})
        return Result(kind="other", axes={"n": (1,)}, values={"x": np.zeros(1)}, tables={"all": table})._repr_html_()

    assert "20 of 270 rows" in page(270)
    assert "rows" not in page(20).partition("</b>")[2]


def test_leading_heads_are_shown_by_name():
    assert Leading(((23, 4), (29, 1)), "largest <b>")._repr_html_() == "<p>L23H4, L29H1 (largest &lt;b&gt;)</p>"


def test_a_pyplot_figure_of_the_user_is_shown_after_one_of_ours():
    """A notebook's backend is loaded by the first figure, and what it sets has to stay."""
    code = (
        "import numpy as np, matplotlib; from lcalens import Result\n"
        "Result(kind='gram', axes={'distance': (0, 1)}, values={'mean': np.ones(2), 'deviation': np.ones(2)},\n"
        "       tables={'summary': __import__('pandas').DataFrame([{'a': 1.0, 'b': 1.0, 'r2_means': 1.0}])}).plot()\n"
        "from matplotlib import pyplot; print(matplotlib.is_interactive(), matplotlib.rcParams['figure.dpi'])"
    )
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | backend, capture_output=True, text=True)
    inline = (
        "import matplotlib; from matplotlib import pyplot; pyplot.figure(); print(matplotlib.is_interactive(), 100.0)"
    )
    alone = subprocess.run([sys.executable, "-c", inline], env=os.environ | backend, capture_output=True, text=True)
    assert done.stdout == alone.stdout, done.stderr


def test_facts_say_how_many_more_there_are():
    records = [{"prompt": "{} is in", "subject": f"Place {i}", "target_true": "Paris", "target_false": "Rome"}
               for i in range(13)]  # fmt: skip
    page = load_facts([*records, *range(12)])._repr_html_()
    assert "... and 3 more; to_frame() has them all." in page
    assert "... and 2 more; .skipped has them all." in page
    assert "more" not in load_facts(records[:10])._repr_html_()


def test_a_figure_of_one_column_is_legible_on_a_screen():
    """Letters of 6 points are at least 14 dots high, and none are smaller."""
    figure = study().plot()
    figure.canvas.draw()
    sizes = [
        text.get_fontsize() for text in figure.findobj(lambda item: hasattr(item, "get_fontsize")) if text.get_text()
    ]
    assert min(sizes) * figure.get_dpi() / 72 >= 14


@pytest.fixture
def notebook(monkeypatch):
    """A notebook's kernel, as far as progress asks for one: what its display areas hold, one after the other."""
    areas = []

    def display(data, *, raw, display_id):
        assert raw
        assert display_id
        areas.append([data])
        return SimpleNamespace(update=lambda data, raw: areas[-1].append(data))

    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    return areas


def test_a_notebook_has_one_line_of_progress_that_is_empty_at_the_end(notebook, capsys, monkeypatch):
    now = iter(np.arange(0, 100, 0.05))
    monkeypatch.setattr("lcalens.core.progress.time.monotonic", lambda: next(now))
    with progress_callback(True, unit="heads") as report:
        for done in range(1, 101):
            report(done, 100, "patching")
    (area,) = notebook
    assert area[0] == {"text/plain": "patching: 1 of 100 heads, 0 s"}
    assert area[-1] == {"text/plain": ""}
    assert 20 < len(area) < 30  # five a second
    assert capsys.readouterr() == ("", "")


def test_the_line_is_empty_after_an_error_too(notebook):
    def broken():
        with progress_callback(True, unit="heads") as report:
            report(1, 2, "patching")
            raise LcalensError("it: broke; mend it.")

    with pytest.raises(LcalensError, match="mend it"):
        broken()
    assert notebook[0][-1] == {"text/plain": ""}


def test_work_that_reports_nothing_shows_nothing(notebook):
    with progress_callback(True, unit="heads"):
        pass
    assert notebook == []


def test_in_a_terminal_there_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_callback(True, unit="heads") as report:
        report(1, 2, "patching")
    told = capsys.readouterr()
    assert told.out == ""
    assert "heads" in told.err
    assert "\r" in told.err


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = SimpleNamespace(at=100.0)
    monkeypatch.setattr("lcalens.core.progress.time.monotonic", lambda: now.at)
    return now


def test_a_log_has_sparse_lines_and_one_at_the_end(capsys, clock):
    with progress_callback(True, unit="heads") as report:
        for second in range(100):
            clock.at = 100.0 + second
            report(second, 200, "patching\nat  z")
        clock.at = 207.0
        report(200, 200, "patching")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "lcalens: patching at z: 5 of 200 heads, 5 s",
        "lcalens: patching at z: 35 of 200 heads, 35 s",
        "lcalens: patching at z: 65 of 200 heads, 65 s",
        "lcalens: patching at z: 95 of 200 heads, 95 s",
        "lcalens: patching: 200 of 200 heads, 107 s",
    ]
    assert "\r" not in said.err


def test_a_log_hears_how_far_work_came_that_broke(capsys, clock):
    def broken():
        with progress_callback(True, unit="heads") as report:
            for clock.at in (106.0, 107.0):
                report(int(clock.at) - 105, 9, "patching")
            raise LcalensError("it: broke; mend it.")

    with pytest.raises(LcalensError, match="mend it"):
        broken()
    assert capsys.readouterr().err.splitlines()[1:] == ["lcalens: patching: 2 of 9 heads, 7 s"]


def test_a_log_hears_nothing_of_short_work(capsys, clock):
    for ends in (0.0, 4.0):
        with progress_callback(True, unit="heads") as report:
            report(0, 2, "patching")
            clock.at += ends
            report(2, 2, "patching")
            clock.at += 100.0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("stderr", [None, "closed"])
def test_without_a_standard_error_work_goes_on(monkeypatch, clock, stderr):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream if stderr else None)
    with progress_callback(True, unit="heads") as report:
        clock.at += 50.0
        report(1, 2, "patching")
