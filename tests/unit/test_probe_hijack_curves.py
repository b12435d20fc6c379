"""The curves' probe, held against Hugging Face's own forward passes and against rows made by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers import standins

from lcalens import load_facts
from probes.harness.facts import FactCurves
from probes.harness.work import COUNTERFACT, Work
from probes.real import hijack_curves as probe

SAMPLE = {"name": "sample", "digest": ""}


def _cell(folder, **changes):
    cell = {"model": str(folder), "part": "random", "limit": 4, "scheme": "dont-think", "counts": (0, 1)}
    return cell | {"chat": False, "source": SAMPLE, "seed": 0} | changes


def test_rows_say_which_object_the_plain_model_prefers(standin, tmp_path, monkeypatch):
    monkeypatch.delenv(COUNTERFACT, raising=False)
    made = standin("gpt2")
    (row,) = probe.measure(_cell(made.folder), Work(tmp_path))
    facts = load_facts("sample").sample(4, 0)
    for at, fact in enumerate(facts):
        for column, sentence in enumerate(("", f"Do not think of {fact.target_false}. ")):
            prompt = made.tokenizer(sentence + fact.text).input_ids
            logp = []
            for answer in (fact.target_false, fact.target_true):
                ids = prompt + made.tokenizer(" " + answer).input_ids
                logp.append(standins.brute_force(made.plain, tuple(ids), len(prompt), len(ids))[0])
            assert row["false"][at][column] == (logp[0] > logp[1])
    assert row["relation"] == [fact.relation_id for fact in facts]
    assert (row["counts"], row["there"]) == ([0, 1], len(load_facts("sample")))


def test_a_relation_that_the_facts_lack_and_a_model_without_a_template_give_no_rows(standin, tmp_path, monkeypatch):
    monkeypatch.delenv(COUNTERFACT, raising=False)
    folder = standin("gpt2").folder
    assert probe.measure(_cell(folder, part="P190", scheme="negation"), Work(tmp_path)) == []
    assert probe.measure(_cell(folder, part="sweep", chat=True), Work(tmp_path)) == []


def test_other_facts_make_other_cells(tmp_path, monkeypatch):
    monkeypatch.delenv(COUNTERFACT, raising=False)
    one = probe.grid(probe.PRESETS["quick"])
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([]))
    monkeypatch.setenv(COUNTERFACT, str(path))
    other = probe.grid(probe.PRESETS["quick"])
    assert not [cell for cell in one if cell in other]


FACTS = 60


def _rows(strong, *, twin=True):
    """Facts where every hijack flips half at n = 1 and all at n = 3, every reverse scheme none, and no control any."""
    settings = probe.HijackCurves(counts=(0, 1, 3), few=(0, 1, 3))
    rng, rows = np.random.default_rng(0), []
    began = (np.arange(FACTS) % 4 == 0).astype(float)
    for cell in probe.grid(settings):
        if cell["part"] == "P190" and not twin:
            continue
        hijacks = cell["scheme"] in (*probe._CONTROLS, *settings.wordings)
        end = (0.0 if "reverse" in cell["scheme"] else 1.0) if hijacks and strong else began
        half = np.where(rng.permutation(FACTS) % 2 == 0, end, began)
        false = np.stack([began, half, np.broadcast_to(end, FACTS)][: len(cell["counts"])], axis=1)
        about = {"known": (began == 0).tolist(), "relation": [f"P{17 + i % 3 * 2}" for i in range(FACTS)]}
        row = cell | {"source": SAMPLE, "counts": list(cell["counts"]), "false": false.tolist(), "there": 99} | about
        rows.append(row | {"scoring": "whole"})
    return settings, pd.DataFrame(rows)


@pytest.mark.parametrize(("strong", "word"), [(True, "holds"), (False, "does not hold")])
def test_verdicts_on_rows_made_by_hand(strong, word, monkeypatch):
    monkeypatch.delenv(COUNTERFACT, raising=False)
    settings, rows = _rows(strong)
    report = probe.report(settings, rows)
    assert [rule.judge(evidence).word for rule, evidence in report.evidence] == [word] * len(probe.RULES)
    settings_of = [[one.setting for one in evidence] for _, evidence in report.evidence]
    assert settings_of[1] == ["smollm2: negation, n = 3, 60 facts", "smollm2, P190: negation, n = 3, 60 facts"]
    if strong:  # a quarter began false, all end so
        assert report.evidence[0][1][0].effect.mean == pytest.approx(0.75)
        assert report.evidence[5][1][0].effect.mean == pytest.approx(-0.25)
    es, retention = (report.tables[title] for title in list(report.tables)[1:3])
    first = (es["scheme"] == "dont-think") & (es["facts of"] == "random")
    assert es[first]["n = 3"].str.split().str[0].tolist() == (["1", "1"] if strong else ["0.25", "0"])
    assert retention[first]["n = 3"].str.split().str[0].tolist() == (["0", "0"] if strong else ["0.75", "1"])
    assert es[first]["facts"].tolist() == [60, 45]


def test_without_p190_the_page_still_stands(monkeypatch):
    monkeypatch.delenv(COUNTERFACT, raising=False)
    report = probe.report(*_rows(True, twin=False))
    assert [len(evidence) for _, evidence in report.evidence] == [1, 1, 2, 1, 1, 2]
    assert "P190" in report.tables["The facts"]["relations missing"].iloc[0]
    assert "P190: 0 facts" in report.notes[0]


def test_complete_cases_and_counts_that_few_facts_reach():
    nan = np.nan
    one = pd.DataFrame([[0, 1, 1], [0, 1, nan], [1, 1, nan], [0, nan, nan], [1, 0, nan]], columns=[0, 1, 3])
    other = pd.DataFrame([[0, 0, 0], [0, 1, 0], [1, nan, nan], [0, 0, 0], [1, 1, 1]], columns=[0, 1, 3])
    curves = FactCurves({"one": one, "other": other}, ["P1", "P1", "P2", "P2", "P3"], [True, False, True, False, True])
    (left, right), chosen = curves.together("one", "other")
    # n = 3 exists for 1 of the 4 facts that have n = 1, so it goes; of facts 0, 1, 4 both have n = 0 and 1.
    assert (list(left), list(right)) == ([0, 1], [0, 1])
    assert chosen.tolist() == [True, True, False, False, True]
    found = curves.evidence("m", "one", "other")
    assert found.setting == "m: one, n = 1, 3 facts"
    assert (found.effect.mean, found.control.mean, found.excess.mean) == pytest.approx((1 / 3, 1 / 3, 0))
