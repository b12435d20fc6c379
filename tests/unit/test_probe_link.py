"""The link's two probes: shares against rows written by hand, and toy words against a model whose recall is known."""

import numpy as np
import pandas as pd
import pytest
import torch

from lcalens import LatentConcepts
from lcalens.lca.model.closed_forms import theorem1_model
from probes.harness.work import Work
from probes.real import link, related_words


def heads_rows(model, control, moved):
    """Twenty facts whose hijack adds 2 logits, of which each set's twins take `moved` away."""
    clusters = np.repeat(["P1", "P2", "P3", "P4"], 5)
    part = {"part": "heads", "model": model, "control": control}
    rows = [part | {"set": "ends", "clean": [0.0] * 20, "hijacked": [2.0] * 20, "cluster": clusters.tolist()}]
    rows[0]["names"] = ["L0H1", "L1H0"]
    for name, shares in moved.items():
        for twin, taken in zip(("pattern", "values", "both"), shares, strict=True):
            count = 2 if name == "random" else int(name.split()[0])
            rows.append(part | {"set": name, "twin": twin, "count": count, "patched": [2 - 2 * taken] * 20})
    return rows


def toy_rows(control, pattern, values):
    row = {"part": "toy", "m": 6, "control": control, "share": 0.5, "distance": 3, "both": 1.0}
    return [row | {"seed": seed, "pattern": pattern + seed / 1000, "values": values} for seed in range(5)]


@pytest.fixture(autouse=True)
def shipped_sample(monkeypatch):
    monkeypatch.delenv("LCALENS_COUNTERFACT", raising=False)


def report_of(**moved):
    random = {"random": moved["random"]}
    rows = heads_rows("one", "same", {"1 leading": (0.1, 0.2, 0.3), "2 leading": moved["neutral"]} | random)
    rows += heads_rows("one", "other", {"1 leading": (0, 0.2, 0.2), "2 leading": moved["other"]} | random)
    rows += toy_rows("same", 0.0, 1.0) + toy_rows("other", 0.0, 1.0)
    found = link.report(link.Link(m=(6,)), pd.DataFrame(rows))
    return found, [rule.judge(evidence) for rule, evidence in found.evidence]


def test_shares_are_what_was_put_in_and_verdicts_follow():
    found, (few, values, patterns) = report_of(neutral=(0.4, 0.7, 0.9), other=(0.0, 0.9, 0.9), random=(0, 0, 0.1))
    assert few.word == "holds"
    assert few.worst.effect == pytest.approx((0.9, 0.9, 0.9))
    assert few.worst.control == pytest.approx((0.1, 0.1, 0.1))
    assert few.worst.excess == pytest.approx((0.8, 0.8, 0.8))
    assert values.word == "holds"
    assert [one.setting for one in values.evidence] == [
        "one, neutral", "one, other-object", "toy, m = 6, neutral", "toy, m = 6, other-object",
    ]  # fmt: skip
    assert patterns.word == "holds in part"  # in the toy there is nothing to look at
    assert patterns.met == (True, False)
    table = found.tables["What they carry on facts they were not ranked on"]
    assert table["both"].tolist() == ["0.3", "0.9", "0.2", "0.9"]


def test_random_heads_that_do_as_well_leave_nothing():
    _, (few, _, _) = report_of(neutral=(0.4, 0.7, 0.9), other=(0.0, 0.9, 0.9), random=(0, 0, 0.8))
    assert few.word == "does not hold"


def test_random_sets_are_of_the_leading_layers_and_lead_nothing():
    order = [(1, 0), (0, 3), (1, 2), (0, 0), (0, 1), (0, 2), (1, 1), (1, 3), (2, 0)]
    for seed in range(20):
        drawn = link._others(order, 3, seed)
        assert sorted(layer for layer, _ in drawn) == [0, 1, 1]
        assert not set(drawn) & set(order[:3])
    assert len({tuple(link._others(order, 3, seed)) for seed in range(20)}) > 1


def words(related, unrelated):
    """Facts of four relations whose object adds 2 and a neutral sentence 0 to the log odds."""
    kept = {"related-word": 2 * related, "unrelated-word": 2 * unrelated, "related-form": np.nan, "unrelated-form": 0.0}
    row = {"part": "real", "model": "one", "dont-think": 1.0, "neutral": -1.0}
    kept = {name: value - 1 for name, value in kept.items()}
    return [row | {"relation": f"P{i % 4}"} | kept for i in range(40)]


def toy_words(related):
    row = {"part": "toy", "m": 4, "share": 0.5, "distance": 3, "unrelated": 0.1}
    return [row | {"far": far, "seed": seed, "related": related + seed / 1000} for far in (1, 2) for seed in range(5)]


@pytest.mark.parametrize(("kept", "word"), [((0.6, 0.2), "holds"), ((0.6, 0.55), "holds in part")])
def test_what_a_word_keeps_is_a_share_of_what_the_object_does(kept, word):
    rows = pd.DataFrame([*words(*kept), *toy_words(0.9)])
    found = related_words.report(related_words.RelatedWords(m=(4,)), rows)
    ((rule, evidence),) = found.evidence
    assert [one.setting for one in evidence] == ["one, word, 40 facts", "toy, m = 4, a word at distance 1 from y~"]
    assert evidence[0].effect == pytest.approx((kept[0],) * 3)
    assert evidence[0].control == pytest.approx((kept[1],) * 3)
    assert rule.judge(evidence).word == word


def test_in_theorem_1s_model_only_neighbours_of_the_other_concept_recall_it():
    """There r(t) is 1 for neighbours of y~, -1 for those of y and else 0: y~ itself does nothing but displace y."""
    concepts = LatentConcepts(5)

    class Work:
        def train(self, *_):
            return [type("Run", (), {"model": theorem1_model(concepts).float(), "seed": 0})]

    cell = {"m": 5, "length": 64, "steps": 1, "seeds": 1, "contexts": 400, "share": 0.5, "distance": 3}
    rows = {row["far"]: row for row in related_words._toy(cell, Work())}
    # Half of the context is the word. Then logit(y~) - logit(y) rises by half of r(word) over what naming y~ does.
    assert rows[1]["related"] > 2
    assert rows[2]["related"] < 0.5  # a word two bits from y~ may be one bit from y
    assert rows[5]["related"] == pytest.approx(1.0)  # y~'s complement neighbours neither
    # A neighbour of y~ is two bits from y in 3 of 5 cases, and four bits in 2. Of the 10 words two bits from y 3 are
    # neighbours of y~, of the 5 four bits from y 2 are: as often an unrelated word is a related one.
    by_chance = (3 / 5) * (3 / 10) + (2 / 5) * (2 / 5)
    assert (rows[1]["unrelated"] - 1) / (rows[1]["related"] - 1) == pytest.approx(by_chance, abs=0.08)


def test_offsets_have_the_distance_asked_for_and_all_masks_occur():
    concepts = LatentConcepts(4)
    distances = torch.arange(5).repeat(400)
    found = related_words._offset(concepts, distances, torch.Generator().manual_seed(0))
    assert torch.equal(concepts.distance(found, torch.zeros_like(found)), distances)
    assert set(found.tolist()) == set(range(16))


def test_paper_stands_for_the_papers_models():
    names = [cell["model"] for cell in related_words.grid(related_words.RelatedWords(models=("paper",), m=(4,)))[:4]]
    assert names == ["gpt2-xl", "google/gemma-2b", "google/gemma-2b-it", "meta-llama/Llama-2-7b-hf"]


def test_a_folder_is_a_model_like_any_other(standin, tmp_path):
    folder = str(standin("gpt2").folder)
    cell = {"part": "heads", "control": "other", "model": folder, "source": {"name": "sample"}, "facts": 40}
    rows = link.measure(cell | {"heads": [1], "draws": 1}, Work(tmp_path))
    ends = rows[0]
    assert len(ends["clean"]) == len(ends["cluster"]) > 4
    assert {row["set"] for row in rows} == {"ends", "1 leading", "random"}
