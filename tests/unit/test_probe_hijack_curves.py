"""The curves' probe, held against Hugging Face's own forward passes and against rows made by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers import standins

from lcalens import held_out, load_facts
from probes.harness.facts import FactCurves
from probes.harness.work import COUNTERFACT, Work, facts_source, facts_table, judged_facts
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
            assert row["odds"][at][column] == pytest.approx(logp[0] - logp[1], abs=1e-4)
    assert row["relation"] == [fact.relation_id for fact in facts]
    assert row["parameters"] == sum(weight.numel() for weight in made.plain.parameters())
    assert set(np.ravel(row["says"])) <= {0.0, 1.0}
    assert (row["counts"], row["there"]) == ([0, 1], len(load_facts("sample")))


def test_a_relation_that_the_facts_lack_and_a_model_without_a_template_give_no_rows(standin, tmp_path, monkeypatch):
    monkeypatch.delenv(COUNTERFACT, raising=False)
    folder = standin("gpt2").folder
    assert probe.measure(_cell(folder, part="P19", scheme="negation"), Work(tmp_path)) == []
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


def _rows(strong, *, without=(), models=("smollm2",), facts=FACTS):
    """Facts where every hijack flips half at n = 1 and all after, every reverse scheme none, and no control any."""
    settings = probe.HijackCurves(models=models, counts=(0, 1, 3), few=(0, 1, 3))
    rng, rows = np.random.default_rng(0), []
    began = np.arange(facts) % 4 == 0
    for cell in probe.grid(settings):
        if cell["part"] in without:
            continue
        scheme = cell["scheme"]
        reverse = "reverse" in scheme or "{target_true}" in scheme
        hijacks = reverse or scheme in (*probe._CONTROLS, "related-form", *settings.wordings)
        end = (np.zeros(facts) if reverse else np.ones(facts)) if hijacks and strong else began.astype(float)
        half = np.where(rng.permutation(facts) % 2 == 0, end, began)
        false = np.stack([began, half, end][: len(cell["counts"])], axis=1)
        about = {"known": (~began).tolist(), "relation": [f"P{17 + i % 3 * 2}" for i in range(facts)]}
        about |= {"odds": (2 * false - 1).tolist(), "says": np.zeros_like(false).tolist(), "parameters": 7}
        rows.append(cell | {"source": SAMPLE, "counts": list(cell["counts"]), "there": 99, "scoring": "whole"} | about)
    return settings, pd.DataFrame(rows)


def _verdicts(report):
    return [rule.judge(evidence).word for rule, evidence in report.evidence if any(one.counted for one in evidence)]


@pytest.mark.parametrize(("strong", "word"), [(True, "holds"), (False, "does not hold")])
def test_verdicts_on_rows_made_by_hand(strong, word, monkeypatch):
    monkeypatch.delenv(COUNTERFACT, raising=False)
    settings, rows = _rows(strong)
    report = probe.report(settings, rows)
    words = _verdicts(report)
    words.pop(2) if not strong else None  # no change at all is no fall: "the more" asks for 0 or more
    assert words == [word] * len(words)
    assert len(words) >= len(probe.RULES) - 1
    negated = report.evidence[1][1]
    assert [(one.setting, one.counted) for one in negated[:2]] == [
        ("SmolLM2-135M-Instruct (4-bit, dequantised): negation, n = 0 to 3, 60 facts", False),
        ("SmolLM2-135M-Instruct (4-bit, dequantised), P103: negation, n = 0 to 3, 60 facts", True),
    ]
    if strong:  # a quarter began false, all end so
        assert report.evidence[0][1][0].effect.mean == pytest.approx(0.75)
        assert report.evidence[6][1][0].effect.mean == pytest.approx(-0.25)
        grows = report.evidence[2][1][0]
        drawn = rows[(rows["part"] == "random") & (rows["scheme"] == "dont-think")].iloc[0]["odds"]
        assert grows.effect.mean == pytest.approx(np.mean([row[2] - row[1] for row in drawn]))
        assert grows.setting.endswith(f"n = 1 to 3, 60 facts (ES {np.mean([row[1] > 0 for row in drawn]):.2f} to 1.00)")
    tables = {title.split(",")[0]: table for title, table in report.tables.items()}
    es, retention = tables["Efficacy score ES by n"], tables["Retention"]
    first = (es["scheme"] == "dont-think") & (es["facts of"] == "random")
    assert es[first]["subset"].tolist() == ["all", "prefers-true", "known"]
    assert es[first]["n = 3"].str.split().str[0].tolist() == (["1", "1", "1"] if strong else ["0.25", "0", "0"])
    assert es[first]["facts"].tolist() == [60, 45, 45]
    only = (retention["scheme"] == "dont-think") & (retention["facts of"] == "random")
    assert retention[only]["n = 3"].str.split().str[0].tolist() == (["0"] if strong else ["0.75"])


def test_few_facts_get_no_verdict_and_every_figure_of_the_paper_has_its_place(monkeypatch):
    monkeypatch.delenv(COUNTERFACT, raising=False)
    report = probe.report(*_rows(True, facts=39))
    assert not any(one.counted for _, evidence in report.evidence for one in evidence)
    assert [one.figure.split()[1] for one in report.paper] == ["2a", "2b", "B.2", "B.3", "B.1", "B.4"]
    assert all(one.caption in report.figures for one in report.paper)
    assert any("shipped sample" in note for note in report.notes)


def test_the_models_stand_by_size_and_are_named_in_full(monkeypatch):
    monkeypatch.delenv(COUNTERFACT, raising=False)
    settings, rows = _rows(True, models=("gpt2", "smollm2"))
    rows["parameters"] = np.where(rows["model"] == "gpt2", 9, 7)
    sizes = probe.report(settings, rows).tables["Models by size: change in ES on facts drawn at random"]
    assert sizes["model"].tolist() == ["SmolLM2-135M-Instruct (4-bit, dequantised)", "GPT-2 (124M)"]


def test_without_some_relations_the_page_still_stands(monkeypatch):
    monkeypatch.delenv(COUNTERFACT, raising=False)
    report = probe.report(*_rows(True, without=("P190", "P1412")))
    assert [len(evidence) for _, evidence in report.evidence] == [1, 4, 5, 0, 1, 1, 5]
    assert "P190 0," in " ".join(report.notes)


def test_no_judged_fact_was_published(tmp_path, monkeypatch):
    facts = load_facts("sample")
    one, other = held_out(facts)[:2]
    monkeypatch.setattr("probes.harness.work.published", lambda: {one.case_id})
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(facts.to_frame().to_dict("records")))
    monkeypatch.setenv(COUNTERFACT, str(path))
    judged = judged_facts(facts_source())
    assert other in judged
    assert one not in judged
    assert set(judged) == set(held_out(facts)) - {one}
    assert len(judged.pool) == len(facts)
    table = dict(facts_table(facts_source()).to_numpy())
    assert table["digest of these facts"] == judged.digest
    assert "held_out" in table["judged on"]
    monkeypatch.delenv(COUNTERFACT)
    assert judged_facts(facts_source()) == facts


def test_complete_cases_and_counts_that_few_facts_reach():
    nan = np.nan
    one = pd.DataFrame([[0, 1, 1], [0, 1, nan], [1, 1, nan], [0, nan, nan], [1, 0, nan]], columns=[0, 1, 3])
    other = pd.DataFrame([[0, 0, 0], [0, 1, 0], [1, nan, nan], [0, 0, 0], [1, 1, 1]], columns=[0, 1, 3])
    of = ["P1", "P1", "P2", "P2", "P3"]
    curves = FactCurves({"one": 2 * one - 1, "other": 2 * other - 1}, of, [True, False, True, False, True])
    (left, right), chosen = curves.together("one", "other")
    # n = 3 exists for 1 of the 4 facts that have n = 1, so it goes; of facts 0, 1, 4 both have n = 0 and 1.
    assert (list(left), list(right)) == ([0, 1], [0, 1])
    assert chosen.tolist() == [True, True, False, False, True]
    found = curves.evidence("m", "one", "other")
    assert (found.setting, found.counted) == ("m: one, n = 0 to 1, 3 facts", False)
    assert (found.effect.mean, found.control.mean, found.excess.mean) == pytest.approx((1 / 3, 1 / 3, 0))
    odds = curves.evidence("m", "one", "other", odds=True)
    assert odds.effect.mean == pytest.approx(2 / 3)
    assert {name: members.tolist() for name, members in curves.strata("one", chosen).items()} == {
        "all": [True, True, True],
        "prefers-true": [True, True, False],
        "known": [True, False, True],
    }
