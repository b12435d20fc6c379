"""The link's two probes: shares against rows written by hand, and toy words against a model whose recall is known."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from lcalens import LatentConcepts
from lcalens.lca.model.closed_forms import theorem1_model
from probes.harness.work import Work
from probes.real import link, related_words


def heads_rows(model, control, moved, few=2):
    """Eighty facts whose hijack adds 2 logits, of which each set's twins take `moved` away; 50 have drawn sets."""
    part = {"part": "heads", "model": model, "control": control}
    ends = {"clean": [0.0] * 80, "hijacked": [2.0] * 80, "cluster": [f"P{i // 4}" for i in range(80)]}
    rows = [part | {"set": "ends", "names": ["L0H1", "L1H0"], "layers": [0, 3], "heads": 40, "few": few} | ends]
    drawn = moved.pop("random")
    rows.append(part | {"set": "drawn", "twin": "both", "patched": [[2 - 2 * share] * 50 for share in drawn]})
    for count, shares in moved.items():
        for twin, taken in zip(("pattern", "values", "both"), shares, strict=True):
            rows.append(part | {"set": "leading", "twin": twin, "count": count, "patched": [2 - 2 * taken] * 80})
    return rows


def toy_rows(control, pattern, values):
    row = {"part": "toy", "m": 6, "control": control, "share": 0.5, "distance": 3, "both": 1.0}
    return [row | {"seed": seed, "pattern": pattern + seed / 1000, "values": values} for seed in range(5)]


@pytest.fixture(autouse=True)
def shipped_sample(monkeypatch):
    monkeypatch.delenv("LCALENS_COUNTERFACT", raising=False)


def report_of(neutral, other, random):
    rows = heads_rows("smollm2", "same", {1: (0.1, 0.2, 0.3), 2: neutral, "random": random})
    rows += heads_rows("smollm2", "other", {1: (0, 0.2, 0.2), 2: other, "random": random})
    rows += toy_rows("same", 0.0, 1.0) + toy_rows("other", 0.0, 1.0)
    found = link.report(link.Link(m=(6,)), pd.DataFrame(rows))
    return found, [rule.judge(evidence) for rule, evidence in found.evidence]


def test_shares_are_what_was_put_in_and_verdicts_follow():
    found, (few, values, patterns) = report_of((0.4, 0.7, 0.9), (0.0, 0.9, 0.9), (0.0, 0.2))
    assert few.told() == "holds, 2 of 2"
    assert few.worst.effect == pytest.approx((0.9, 0.9, 0.9))
    assert few.worst.control == pytest.approx((0.1, 0.1, 0.1))
    assert few.worst.excess == pytest.approx((0.8, 0.8, 0.8))
    name = "SmolLM2-135M-Instruct (4-bit, dequantised)"
    assert [(one.setting, one.counted) for one in values.evidence] == [
        (f"{name}, neutral, 2 of 40 heads, 80 facts", True),
        (f"{name}, other-object, 2 of 40 heads, 80 facts", True),
        ("toy, m = 6, neutral", False),
        ("toy, m = 6, other-object", False),
    ]
    assert values.word == "holds"
    assert patterns.told() == "holds, 1 of 1"  # the toy has one head and N = all: shown, not counted
    assert patterns.met == (True, False)
    table = found.tables["What they carry on facts they were not ranked on"]
    assert table["both"].tolist() == ["0.3", "0.9", "0.2", "0.9"]
    place = found.tables["Where the leading set lies among sets of as many other heads"].iloc[0]
    assert (place["sets drawn"], place["of them below the leading set"]) == (2, "2 of 2")
    assert (place["leading set"], place["their median"], place["their largest"]) == ("0.9", "0.1", "0.2")


def test_random_heads_that_do_as_well_leave_nothing():
    found, (few, _, _) = report_of((0.4, 0.7, 0.9), (0.0, 0.9, 0.9), (0.8, 0.95))
    assert few.word == "does not hold"
    place = found.tables["Where the leading set lies among sets of as many other heads"].iloc[0]
    assert place["of them below the leading set"] == "1 of 2"


def test_control_sets_are_of_the_leading_heads_range_of_layers_all_different_and_lead_nothing():
    order = [(10, 0), (12, 3), *((layer, head) for layer in range(30) for head in range(9))]
    order = list(dict.fromkeys(order))
    sets, layers = link.control_sets(order, 2, 200)
    assert layers == (10, 12)  # 25 other heads in three layers: 300 pairs
    assert len({frozenset(one) for one in sets}) == len(sets) == 200
    for one in sets:
        assert len(one) == 2
        assert not set(one) & set(order[:2])
        assert all(10 <= layer <= 12 for layer, _ in one)
    assert len({head for one in sets for head in one}) == 25
    sets, layers = link.control_sets(order, 2, 400)
    assert layers == (9, 13)  # widened: 43 other heads, 903 pairs
    assert len(sets) == 400


def test_a_small_model_has_all_the_control_sets_there_are():
    order = [(0, 1), (1, 0), (0, 0), (1, 1), (2, 0), (2, 1)]
    sets, layers = link.control_sets(order, 2, 200)
    assert layers == (0, 2)
    assert {frozenset(one) for one in sets} == {frozenset(pair) for pair in itertools.combinations(order[2:], 2)}


def words(related, unrelated):
    """Facts of four relations whose object adds 2 and a neutral sentence 0 to the log odds."""
    kept = {"related-word": 2 * related, "unrelated-word": 2 * unrelated, "related-form": np.nan, "unrelated-form": 0.0}
    row = {"part": "real", "model": "gpt2", "of": "all relations", "dont-think": 1.0, "neutral": -1.0}
    kept = {name: value - 1 for name, value in kept.items()}
    return [row | {"relation": f"P{i % 4}", "form": "form"} | kept for i in range(40)]


def toy_words(related):
    row = {"part": "toy", "m": 4, "share": 0.5, "distance": 3, "unrelated": 0.1}
    return [row | {"far": far, "seed": seed, "related": related + seed / 1000} for far in (1, 2) for seed in range(5)]


@pytest.mark.parametrize(("kept", "word"), [((0.6, 0.2), "holds"), ((0.6, 0.55), "holds in part")])
def test_what_a_word_keeps_is_a_share_of_what_the_object_does(kept, word):
    rows = pd.DataFrame([*words(*kept), *toy_words(0.9)])
    found = related_words.report(related_words.RelatedWords(m=(4,)), rows)
    ((rule, evidence),) = found.evidence
    name = "GPT-2 (124M), all relations: associate, 40 facts"
    assert [one.setting for one in evidence] == [name, "toy, m = 4, a word at distance 1 from y~"]
    assert evidence[0].effect == pytest.approx((kept[0],) * 3)
    assert evidence[0].control == pytest.approx((kept[1],) * 3)
    assert rule.judge(evidence).word == word


def test_names_forms_and_associates_are_rows_of_their_own():
    rows = words(0.6, 0.2)
    for i, row in enumerate(rows):
        row |= {"related-form": 0.5 if i % 4 else 0.0, "form": "form" if i % 4 else "name"}
    rows += [row | {"of": "P1412", "relation": "P1412"} for row in rows[::4]]
    found = related_words.report(related_words.RelatedWords(m=(4,)), pd.DataFrame([*rows, *toy_words(0.9)]))
    table = found.tables["By stratum: the share of the hijack that is kept"]
    assert table[["facts of", "stratum", "facts", "related"]].to_numpy().tolist() == [
        ["all relations", "name", 10, "0.5"],
        ["all relations", "form", 30, "0.75"],
        ["all relations", "associate", 40, "0.6"],
        ["P1412", "name", 10, "0.5"],
        ["P1412", "associate", 10, "0.6"],
    ]
    ((_, evidence),) = found.evidence
    assert [one.counted for one in evidence] == [False, False, True, False, False, True]


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
    names = [cell["model"] for cell in related_words.grid(related_words.RelatedWords(models=("paper",), m=(4,)))[:8:2]]
    assert names == ["gpt2", "google/gemma-2b", "google/gemma-2b-it", "meta-llama/Llama-2-7b-hf"]


def test_a_folder_is_a_model_like_any_other(standin, tmp_path):
    folder = str(standin("gpt2").folder)
    cell = {"part": "heads", "control": "other", "model": folder, "source": {"name": "sample"}, "facts": 40}
    rows = link.measure(cell | {"heads": [1, 2], "draws": 3, "drawn_facts": 4}, Work(tmp_path))
    ends, *others = rows
    assert len(ends["clean"]) == len(ends["cluster"]) > 4
    assert ends["few"] == max(1, ends["heads"] // 20)
    assert {(row["set"], row["count"]) for row in others} == {("leading", 1), ("leading", 2), ("drawn", ends["few"])}
    assert np.shape(others[-1]["patched"]) == (3, 4)
