"""`evaluate_defence`: its table against counts by hand, its prompts against prompts one by one."""

import numpy as np
import pytest
import torch

from lcalens.core.errors import LcalensError
from lcalens.core.results import Result
from lcalens.llm.contrasts import contrast_facts
from lcalens.llm.defences import evaluate_defence
from lcalens.llm.facts.facts import load_facts
from lcalens.llm.plain import HONEST, honest_contexts, plain_texts
from lcalens.mechanism.defence.defend import defend

HEADS = [(0, 1), (1, 3), (2, 0)]
TEXTS = ["A house stood by the road. The door was", "It rained. We went back to the"]


@pytest.fixture
def found(standin):
    model = standin("llama").model
    facts = load_facts("sample").sample(24, 0)
    contrast = contrast_facts(model, facts, control="none")
    cut = defend(model, contrast, heads=HEADS)
    draws = [defend(model, contrast, method="random", heads=HEADS, seed=seed) for seed in range(2)]
    result = evaluate_defence(model, {"cut": cut, "random": draws}, facts, schemes=("dont-think", "negation"),
                              texts=TEXTS, progress=False)  # fmt: skip
    return model, facts, cut, result


@torch.no_grad()
def test_differences_are_those_of_single_prompts(found):
    model, facts, cut, result = found
    contrast = contrast_facts(model, facts, control="none")
    at = {name: place for place, name in enumerate(result.axes["defence"])}
    column = {name: place for place, name in enumerate(result.axes["condition"])}
    row_of = {case: row for row, case in enumerate(result.examples["case_id"])}
    for row, case in list(enumerate(contrast.examples["case_id"]))[:6]:
        for name, ids in (("clean", contrast.clean[row]), ("dont-think", contrast.hijacked[row])):
            tokens = torch.tensor([ids])
            plain = model(tokens)[0, -1]
            with cut.applied(model):
                defended = model(tokens)[0, -1]
            for defence, logits in (("none", plain), ("cut", defended)):
                expected = logits[contrast.false[row][0]] - logits[contrast.true[row][0]]
                told = result.values["difference"][row_of[case], at[defence], column[name]]
                assert told == pytest.approx(float(expected), abs=2e-3)


def test_the_table_counts_what_the_differences_say(found):
    *_, result = found
    difference = result.values["difference"]
    names, conditions = list(result.axes["defence"]), list(result.axes["condition"])
    assert names == ["none", "cut", "random 1", "random 2"]
    table = result.summary.set_index(["defence", "condition", "quantity"])["value"]
    clean, hijacked = (difference[:, 0, conditions.index(name)] for name in ("clean", "dont-think"))
    own = difference[:, 1, conditions.index("dont-think")]
    there = ~np.isnan(hijacked)
    es = [float((some[there] > 0).mean()) for some in (clean, hijacked, own)]
    assert table["cut", "dont-think", "es"] == pytest.approx(es[2])
    assert es[1] != es[0]
    assert table["cut", "dont-think", "recovery"] == pytest.approx((es[1] - es[2]) / (es[1] - es[0]))
    flipped = there & (clean <= 0) & (hijacked > 0)
    assert flipped.any()
    assert table["cut", "dont-think", "returned"] == pytest.approx((own[flipped] <= 0).mean())
    agreement = ((own > 0) == (clean > 0))[there].mean()
    assert table["cut", "dont-think", "agreement"] == pytest.approx(agreement)
    assert table["none", "dont-think", "recovery"] == pytest.approx(0) or es[1] == es[0]
    assert table["none", "plain text", "kl"] == 0
    assert table["cut", "plain text", "kl"] >= 0
    fiction = difference[:, 0, conditions.index("fiction")]
    changed = (clean <= 0) & (fiction > 0)
    assert changed.any()
    kept = (difference[:, 1, conditions.index("fiction")][changed] > 0).mean()
    assert table["cut", "fiction", "kept"] == pytest.approx(kept)
    mean = np.mean([(difference[there, at, conditions.index("dont-think")] > 0).mean() for at in (2, 3)])
    assert table["random", "dont-think", "es"] == pytest.approx(mean)


def test_clean_prompts_of_one_sentence_are_left_as_they_are(found):
    *_, result = found
    table = result.summary.set_index(["defence", "condition", "quantity"])["value"]
    single = [text.count(".") == 0 for text in result.examples["subject"]]
    place = list(result.axes["condition"]).index("clean")
    same = np.isclose(result.values["difference"][:, 0, place], result.values["difference"][:, 1, place], atol=1e-4)
    assert same[np.array(single)].mean() > 0.8  # a prompt may itself have two sentences
    assert 0 <= table["cut", "clean", "flips"] <= 0.2


def test_it_is_saved_loaded_and_drawn(found, tmp_path):
    *_, result = found
    result.save(tmp_path / "kept")
    assert Result.load(tmp_path / "kept").kind == "defence"
    assert result.plot() is not None


def test_honest_contexts_end_in_the_prompt_and_name_what_they_should():
    facts = load_facts("sample").sample(12, 0)
    for kind in HONEST:
        texts = honest_contexts(facts, kind)
        for fact, text in zip(facts, texts, strict=True):
            if text is None:
                assert kind == "examples"
                continue
            assert text.endswith(fact.text)
            told = fact.target_false if kind == "fiction" else fact.target_true
            assert (told in text) == (kind != "examples")
            assert text.count(fact.text) == (1 if kind == "examples" else 2)


def test_plain_texts_of_the_halves_share_nothing():
    train, evaluation = (plain_texts(half, cuts=2) for half in ("train", "evaluation"))
    assert len(train) == len(evaluation) == 240
    assert not {text[:40] for text in train} & {text[:40] for text in evaluation}
    assert not any("do not think" in text.lower() for text in (*train, *evaluation))
    assert plain_texts("train", cuts=2, seed=1) != train


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"defences": {}}, "defences"),
        ({"defences": {"cut": []}}, "defences"),
        ({"schemes": ()}, "schemes"),
        ({"honest": ("lies",)}, "honest"),
        ({"texts": ()}, "texts"),
        ({"n": 0}, "n"),
    ],
)
def test_what_cannot_be_used_is_named(found, options, named):
    model, facts, cut, _ = found
    given = {"defences": {"cut": cut}, "texts": TEXTS} | options
    with pytest.raises(LcalensError, match=rf"^{named}"):
        evaluate_defence(model, given.pop("defences"), facts, **given, progress=False)


def test_the_undefended_name_is_taken(found):
    model, facts, cut, _ = found
    with pytest.raises(LcalensError, match=r"^defences: 'none'"):
        evaluate_defence(model, {"none": cut}, facts, progress=False)
