"""The report: a section for each result, sentences that are true of its numbers, refusals, and what is escaped."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import standins

from lcalens import LcalensError, Result, cli, report
from lcalens.commands.report import saved_results
from lcalens.core.tables import lengthen
from lcalens.views.report import published
from lcalens.views.report.numbers import estimate
from lcalens.views.report.sections import _STORY
from lcalens.views.report.words import sentences

MODEL = {"source": "a model", "dtype": "float32", "quantisation": "none", "fingerprint": "abc"}
HOSTILE = "<script>alert(1)</script>"


def patched(values=((0.1, -0.4), (0.9, 0.0)), **told):
    """Recoveries of two layers of two heads, as a result of `patch`."""
    array = np.array(values)[None]
    rows = [
        {"layer": layer, "head": head, "value": 0.0, "recovery": array[0, layer, head],
         "recovery_low": array[0, layer, head] - 0.1, "recovery_high": array[0, layer, head] + 0.1}
        for layer in range(2) for head in range(2)
    ]  # fmt: skip
    return Result(
        kind="patching",
        axes={"example": (0,), "layer": (0, 1), "head": (0, 1)},
        values={"value": np.zeros_like(array), "recovery": array},
        examples=pd.DataFrame({"prompt": ["x"]}),
        tables={"summary": lengthen(pd.DataFrame(rows), {"value": "logits", "recovery": "share"})},
        provenance={"model": MODEL, "site": "z", "examples": 1, **told},
    )


def efficacy(fingerprint="abc", schemes=("dont-think", "neutral"), control=(0.2, 0.1, 0.3), before=0.2):
    """A curve of ten facts with one control; `before` is ES without a sentence of the facts that have the control."""
    shares = pd.DataFrame([
        {"subset": "all", "scheme": scheme, "role": "hijack", "n": n, "es": es, "es_low": es - 0.1, "es_high": es + 0.1,
         "facts": 10}
        for scheme, by_count in zip(schemes, ((0.2, 0.6), (0.2, control[0])), strict=True)
        for n, es in enumerate(by_count)
    ])  # fmt: skip
    difference = 0.6 - control[0]
    controls = pd.DataFrame([
        {"subset": "all", "scheme": schemes[0], "control": schemes[1], "n": 0, "es": before, "es_control": before,
         "difference": 0.0, "facts": 10},
        {"subset": "all", "scheme": schemes[0], "control": schemes[1], "n": 1, "es": 0.6, "es_low": 0.5, "es_high": 0.7,
         "es_control": control[0], "difference": difference, "difference_low": difference - control[1],
         "difference_high": difference + control[2], "holm_p": 0.01, "facts": 10}
    ])  # fmt: skip
    es = {"es": "share"}
    return Result(
        kind="efficacy",
        axes={"scheme": schemes, "n": (0, 1)},
        values={"es": np.array([[0.2, 0.6], [0.2, control[0]]])},
        tables={
            "summary": lengthen(shares, es, behind=["facts"]),
            "controls": lengthen(controls, {**es, "es_control": "share", "difference": "share",
                                            "holm_p": "probability"}, behind=["facts"]),
            "impossible": pd.DataFrame(columns=["scheme", "n", "reason", "facts"]),
        },
        provenance={"model": {**MODEL, "fingerprint": fingerprint}, "facts": {"count": 10, "source": "sample"},
                    "config": {"schemes": schemes, "scoring": "whole", "chat": False, "related": "table"}},
    )  # fmt: skip


@pytest.fixture
def no_figures(monkeypatch):
    """Curves made by hand lack what a figure needs."""
    monkeypatch.setattr("lcalens.views.report.sections._figure", lambda result: b"a figure")


def test_sections_stand_in_the_order_of_the_story(no_figures):
    page = report([patched(), efficacy(), patched()])
    assert [section.name for section in page.sections] == ["efficacy", "patching-1", "patching-2"]
    text = page.page()
    assert [text.index(f'id="{section.name}"') for section in page.sections] == sorted(
        text.index(f'id="{section.name}"') for section in page.sections
    )
    assert "a model" in page.title
    assert all(f'href="#{section.name}"' in text for section in page.sections)


def test_sentences_are_of_the_numbers():
    (said,) = sentences(patched())
    assert "Of 4 heads" in said
    assert "L1H0 brings back most: 0.90 [0.80, 1.00]" in said
    assert "L0H1 works the other way most: -0.40 [-0.50, -0.30]" in said
    (said,) = sentences(efficacy())
    assert "dont-think, n = 1" in said
    assert "0.60 [0.50, 0.70] of 10 facts, 0.20 without a sentence" in said
    assert "difference is +0.40 [+0.30, +0.70], whose interval does not hold zero" in said
    (said,) = sentences(efficacy(control=(0.5, 0.2, 0.3)))
    assert "+0.10 [-0.10, +0.40], whose interval holds zero" in said
    (said,) = sentences(patched(source="zero", direction="restore"))
    assert "the largest recovery is that of L1H0, 0.90" in said
    assert "to the clean one" not in said
    assert sentences(patched(values=((np.nan, np.nan), (np.nan, np.nan)))) == []
    said = sentences(patched(resolution={"says": "there is nothing to recover."}))
    assert said[-1] == "Resolution: there is nothing to recover."


def test_all_numbers_of_an_efficacy_sentence_are_of_the_same_facts():
    (said,) = sentences(efficacy(before=0.4))  # of all facts of the scheme 0.20
    assert "0.60 [0.50, 0.70] of 10 facts, 0.40 without a sentence" in said


def test_without_a_negative_effect_nothing_works_the_other_way():
    (said,) = sentences(patched(values=((0.1, 0.2), (0.9, 0.3))))
    assert "The smallest is that of L0H0: 0.10 [0.00, 0.20]." in said
    assert "other way" not in said


def test_in_the_clean_run_a_site_does_what_recovery_lacks_of_one():
    result = patched(values=((1.0, 1.1), (0.25, 1.0)), direction="corrupt")
    (said,) = sentences(result)
    assert "L1H0 brings most of the hijack into the clean run: 0.75 [0.65, 0.85] of the way, over 1 example." in said
    assert "L0H1 works the other way most: -0.10 [-0.20, 0.00]" in said
    assert "1 - recovery is 0 in the clean run and 1 in the hijacked one." in said
    (section,) = report([result]).sections
    assert section.map is not None
    assert section.map.quantity == "1 - recovery"
    assert section.map.largest == 0.75
    assert [[round(cell.strength, 3) for cell in row] for row in section.map.rows] == [[1, 0], [0, -0.133]]
    (table,) = section.tables
    assert table.columns[-2:] == ("1 - recovery (share)", "recovery (share)")
    assert [entry.text for entry in table.rows[0]] == ["1", "0", "0.00", "0.75 [0.65, 0.85]", "0.25 [0.15, 0.35]"]
    assert [row[3].order for row in table.rows] == pytest.approx([0.75, -0.1, 0, 0])
    (said,) = sentences(patched(values=((1.0, 1.1), (0.25, 1.0)), direction="corrupt", source="zero"))
    assert "the largest 1 - recovery is that of L1H0, 0.75 [0.65, 0.85]" in said


def test_a_table_ends_with_what_was_not_measured():
    (table,) = report([patched(values=((np.nan, -0.4), (0.9, np.nan)))]).sections[0].tables
    assert [row[3].text for row in table.rows] == ["0.90 [0.80, 1.00]", "-0.40 [-0.50, -0.30]", "", ""]


def test_a_number_is_never_minus_nothing():
    assert estimate(-0.001, -0.004, 0.2) == "0.00 [0.00, 0.20]"
    assert estimate(float("nan"), None, None) == "not measured"
    assert estimate(0.5, float("nan"), 1.0) == "0.50"
    assert estimate(0.5, 0.25, 1.0, signed=True) == "+0.50 [+0.25, +1.00]"


def test_the_map_has_every_head_and_its_colour_is_its_effect():
    (section,) = report([patched()]).sections
    effects = section.map
    assert effects is not None
    assert [[cell.name for cell in row] for row in effects.rows] == [["L1H0", "L1H1"], ["L0H0", "L0H1"]]
    assert [round(cell.strength, 3) for cell in effects.rows[1]] == [0.111, -0.444]
    assert effects.largest == 0.9
    assert section.figure is None


def test_tables_say_what_they_leave_out_and_hold_the_largest():
    rng = np.random.default_rng(0)
    layers, heads = 6, 5
    values = rng.normal(size=(1, layers, heads))
    rows = [{"layer": i, "head": j, "recovery": values[0, i, j]} for i in range(layers) for j in range(heads)]
    result = Result(
        kind="patching",
        axes={"example": (0,), "layer": tuple(range(layers)), "head": tuple(range(heads))},
        values={"recovery": values},
        examples=pd.DataFrame({"prompt": ["x"]}),
        tables={"summary": lengthen(pd.DataFrame(rows), {"recovery": "share"})},
        provenance={"model": MODEL, "examples": 1},
    )
    (section,) = report([result]).sections
    (table,) = section.tables
    assert len(table.rows) + table.left_out == layers * heads
    assert table.left_out == 10
    shown = [abs(row[2].order or 0) for row in table.rows]
    assert shown == sorted(np.abs(values).ravel(), reverse=True)[: len(shown)]
    assert f"{table.left_out} more rows are in the result." in report([result]).page()


@pytest.mark.parametrize("word", [HOSTILE, "</style><img src=x>", "{{ 7*7 }}", "日本 $x$ \x1b[2J"])
def test_words_of_users_are_text(word, no_figures):
    page = report([efficacy(schemes=(word, "neutral"))], title=word, command=word).page()
    assert word not in page or "<" not in word
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", page)[0]
    assert page.count("<script") == 1


def test_results_of_two_models_are_refused():
    other = patched(model={**MODEL, "source": "another", "fingerprint": "def"})
    with pytest.raises(LcalensError, match=r"results: they are of several models: a model \(abc\), another \(def\)"):
        report([patched(), other])


def test_a_page_that_is_too_large_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("lcalens.views.report.document._LARGEST", 1000)
    with pytest.raises(LcalensError, match=r"results: the page would have .* MB"):
        report([patched()]).save(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_page_is_written_or_refused_by_name(tmp_path):
    page = report([patched()])
    path = page.save(tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8") == page.page()
    assert "http" not in re.sub(r'http-equiv="', "", re.sub(r"<script.*?</script>", "", page.page(), flags=re.DOTALL))
    with pytest.raises(LcalensError, match="path"):
        page.save(tmp_path)
    assert page._repr_html_().startswith("<iframe")
    assert len(repr(page)) < 200


def test_every_kind_that_is_drawn_has_a_place():
    from lcalens import views

    written = Path(views.__file__).read_text(encoding="utf-8")
    drawn = set(re.findall(r'^        "([a-z-]+)": plot_', written, re.MULTILINE))
    assert drawn == set(_STORY)


def test_published_numbers_stand_beside_those_of_the_same_weights(monkeypatch, no_figures):
    told = {"models": {"abc": {"dont-think": {"1": {"es": 0.7, "low": 0.6, "high": 0.8, "facts": 200}}}},
            "sentences": {"dont-think": "A sentence."}}  # fmt: skip
    monkeypatch.setattr(published, "_published", lambda: told)
    (row,) = report([efficacy()]).beside
    assert (row.scheme, row.n, row.here, row.published) == ("dont-think", 1, "0.60 [0.50, 0.70]", "0.70 [0.60, 0.80]")
    assert "A sentence." in report([efficacy()]).page()
    assert report([efficacy(fingerprint="other")]).beside == ()


def test_the_published_numbers_are_those_of_the_page():
    from probes.harness.published import FILE, curves

    page = (Path(__file__).parents[2] / "docs" / "claims" / "hijack_curves.md").read_text(encoding="utf-8")
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    labels = ("SmolLM2-135M-Instruct (4-bit, dequantised)", "Gemma 3 270M (4-bit, dequantised)")
    wanted = curves(page, dict(zip(labels, stored["models"], strict=True)))
    assert stored["models"] == wanted
    with pytest.raises(LcalensError, match="no curve of GPT-5"):
        curves(page, {"GPT-5": "x"})
    with pytest.raises(LcalensError, match="table is missing"):
        curves("nothing", {})


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def lc(standin, tmp_path, capsys, unhurried):
    """A function from arguments to the exit status, the output and the errors of `lcalens report`."""
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps(standins.capital_records()))
    given = (
        "report",
        "--model",
        str(standin("gpt2").folder),
        "--facts",
        str(facts),
        "--heads",
        "3",
        "--views",
        "1",
        "--control",
        "other-object",
    )

    def run(*arguments):
        capsys.readouterr()
        status = cli.main([*given, *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_the_command_measures_and_writes_one_page(lc, tmp_path):
    out = tmp_path / "new" / "page.html"
    status, said, errors = lc("--counts", 0, 1, "--out", out)
    assert (status, errors) == (0, "")
    page = out.read_text(encoding="utf-8")
    for name in ("answers", "efficacy", "patching", "ranking", "split", "shapley", "recall", "attention", "again"):
        assert f'id="{name}"' in page
    assert "lcalens report --model" in page
    assert f"Written: {out}" in said
    assert {file.name for file in out.parent.iterdir()} == {"page.html", "page-parts"}


def test_what_was_measured_before_is_shown_and_not_measured_again(lc, tmp_path, no_figures):
    efficacy(fingerprint="x").save(tmp_path / "hijack" / "result")
    out = tmp_path / "page.html"
    found = saved_results(tmp_path / "hijack")
    assert [result.kind for result in found] == ["efficacy"]
    status, said, _ = lc("--parts", "curve", "--results", tmp_path / "hijack", "--out", out)
    assert status == 0
    assert "0.60 [0.50, 0.70] of 10 facts" in " ".join(said.split())
    assert not (tmp_path / "page-parts").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--limit", 3), "limit: expected"),
        (("--heads", 0), "heads: expected"),
        (("--heads", 13), "heads: expected"),
        (("--scheme", "nonsense"), "scheme"),
        (("--schemes", "nonsense"), "scheme"),
        (("--out", "report"), "out: 'report' is not the name of a page"),
        (("--results", "nowhere"), "results: there is no folder 'nowhere'; give one that holds a result"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_loaded(capsys, arguments, named, monkeypatch):
    monkeypatch.setattr("lcalens.llm.models.load.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert cli.main(["report", *map(str, arguments)]) == 2
    assert named in capsys.readouterr().err
