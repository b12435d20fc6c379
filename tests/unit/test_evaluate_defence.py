"""`evaluate_defence`: its table against counts by hand, its prompts against prompts one by one."""

from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch

from lcalens.core.errors import LcalensError
from lcalens.core.results import Result
from lcalens.core.tokens import source_tokenizer
from lcalens.llm import defences
from lcalens.llm.contrasts import contrast_facts
from lcalens.llm.defence_summary import summary_of
from lcalens.llm.defences import evaluate_defence
from lcalens.llm.facts.facts import load_facts
from lcalens.llm.plain import ASKED, HONEST, honest_contexts, plain_texts
from lcalens.mechanism.defence.defend import defend
from lcalens.mechanism.defence.last import Way
from lcalens.views.link_text import _nothing_to_recover

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
    recovery = (es[1] - es[2]) / (es[1] - es[0]) if es[1] > es[0] else np.nan
    assert table["cut", "dont-think", "recovery"] == pytest.approx(recovery, nan_ok=True)
    flipped = there & (clean <= 0) & (hijacked > 0)
    assert flipped.any()
    assert table["cut", "dont-think", "returned"] == pytest.approx((own[flipped] <= 0).mean())
    agreement = ((own > 0) == (clean > 0))[there].mean()
    assert table["cut", "dont-think", "agreement"] == pytest.approx(agreement)
    assert table["none", "dont-think", "recovery"] == pytest.approx(0 if es[1] > es[0] else np.nan, nan_ok=True)
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
            told = fact.target_false if ASKED[kind] > 0 else fact.target_true
            assert (told in text) == (kind != "examples")
            assert text.count(fact.text) == (1 if kind in ("examples", "unnamed") else 2)
            assert (text.count(fact.subject) == 1) == (kind in ("examples", "unnamed"))
    sentences = honest_contexts(facts, "long fiction")[0].removesuffix(facts[0].text).count(". ")
    assert sentences >= 5


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
        ({"schemes": "dont-think"}, "schemes"),
        ({"schemes": [("dont-think", 0)]}, "schemes"),
        ({"honest": ("lies",)}, "honest"),
        ({"texts": [""]}, "texts"),
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


def test_two_defences_of_one_name_are_refused(found):
    model, facts, cut, _ = found
    with pytest.raises(LcalensError, match=r"^defences: two are called 'random 1'"):
        evaluate_defence(model, {"random": [cut, cut], "random 1": cut}, facts, progress=False)


def test_pairs_have_their_own_number_of_sentences_and_a_span_is_pointed_out(found):
    """Behind whole sentences the boundary is the span's end, so both cut the same; behind a clause only one can."""
    model, facts, cut, _ = found
    contrast = contrast_facts(model, facts, control="none")
    told = defend(model, contrast, method="span", heads=HEADS)
    clause = "Without a thought of {target_false},"
    schemes = ("dont-think", ("dont-think", 3), clause)
    result = evaluate_defence(model, {"cut": cut, "told": told}, facts, schemes=schemes, honest=(), texts=(),
                              progress=False)  # fmt: skip
    assert list(result.axes["condition"]) == ["clean", "dont-think", "dont-think, n = 3", clause]
    none, boundary, span = np.moveaxis(result.values["difference"], 1, 0)
    no_blank = {
        case
        for case, sentence, prompt in zip(
            contrast.examples["case_id"], contrast.spans["sentence"], contrast.spans["prompt"], strict=True
        )
        if sentence[-1][1] == prompt[0][0]
    }  # a token of its own between the two is cut by one of them
    alike = result.examples["case_id"].isin(no_blank) & np.isclose(boundary[:, 0], none[:, 0], atol=1e-4)
    assert alike.sum() >= 8
    for at in (1, 2):
        assert np.isclose(boundary[alike, at], span[alike, at], atol=1e-3).all()
        assert np.abs(span[:, at] - none[:, at]).max() > 0.01
    assert np.abs(span[:, 0] - none[:, 0]).max() < 1e-3  # nothing stands before a clean prompt
    assert np.abs(span[:, 3] - none[:, 3]).max() > 0.01
    assert np.abs(none[:, 1] - none[:, 2]).max() > 0.01
    assert "plain text" not in set(result.summary["condition"])


@torch.no_grad()
def test_next_tokens_and_perplexity_are_those_of_whole_runs(found):
    model, facts, cut, result = found
    contrast = contrast_facts(model, facts, control="none")
    row_of = {case: row for row, case in enumerate(result.examples["case_id"])}
    tops = [int(model(torch.tensor([ids]))[0, -1].argmax()) for ids in contrast.clean]
    rows = [row_of[case] for case in contrast.examples["case_id"]]
    assert np.mean(result.values["top"][rows, 0, 0] == tops) > 0.95  # a tie may fall either way
    table = result.summary.set_index(["defence", "condition", "quantity"])["value"]
    right = np.mean([top == true[0] for top, true in zip(tops, contrast.true, strict=True)])
    assert table["none", "clean", "accuracy"] == pytest.approx(right, abs=0.05)
    assert table["none", "clean", "top flips"] == 0
    tokenizer = source_tokenizer(model)
    for name in ("none", "cut"):
        surprise = []
        for text in TEXTS:
            ids = tokenizer(text).input_ids
            with cut.applied(model) if name == "cut" else nullcontext():
                logs = model(torch.tensor([ids[:-1]]))[0, -1].log_softmax(-1)
            surprise.append(-float(logs[ids[-1]]))
        assert table[name, "plain text", "perplexity"] == pytest.approx(np.exp(np.mean(surprise)), rel=1e-3)


def test_without_a_cache_it_gives_the_same(found, monkeypatch):
    model, facts, cut, _ = found
    options = {"schemes": ("dont-think",), "honest": (), "texts": TEXTS, "progress": False}
    quick = evaluate_defence(model, {"cut": cut}, facts, **options)
    monkeypatch.setattr(defences, "way_of", lambda model, rows: Way(padded=False, cached=False))
    slow = evaluate_defence(model, {"cut": cut}, facts, **options)
    assert quick.provenance["cached"]
    assert not slow.provenance["cached"]
    assert quick.values["difference"] == pytest.approx(slow.values["difference"], abs=1e-3, nan_ok=True)


def test_a_scheme_that_raises_nothing_has_nothing_to_recover():
    rows = [("none", "clean", 0.25, np.nan), ("none", "negation", 0.2, np.nan), ("none", "dont-think", 0.6, 0.0)]
    rows += [("cut", "clean", 0.25, np.nan), ("cut", "negation", 0.1, np.nan), ("cut", "dont-think", 0.3, 0.9)]
    columns = ["defence", "condition", "es", "recovery"]
    told = _nothing_to_recover(pd.DataFrame(rows, columns=columns))
    assert told == ["  negation: it does not raise ES on its facts; nothing is there to recover."]
    assert _nothing_to_recover(pd.DataFrame(rows[:1] + rows[2:4], columns=columns)) == []


def test_the_table_has_no_recovery_of_a_hijack_that_raises_nothing():
    examples = pd.DataFrame({"relation_id": ["P1", "P1", "P2", "P2"], "true_token": 0})
    # Conditions: clean, a scheme that lowers ES, one that raises it; the defence prefers every true object.
    undefended, defended = [[1, -1, 1], [1, 1, 1], [-1, -1, 1], [-1, -1, -1]], [[1, -1, -1]] * 2 + [[-1, -1, -1]] * 2
    difference = np.array([[one, other] for one, other in zip(undefended, defended, strict=True)], dtype=float)
    nothing = np.empty((0, 2))
    conditions = ["clean", "lowers", "raises"]
    table = summary_of(difference, np.zeros((4, 2, 3)), nothing, nothing, ["none", "cut"], conditions, [], examples)
    recovery = table[table["quantity"] == "recovery"].set_index(["defence", "condition"])
    assert recovery.loc["cut", "raises"]["value"] == 3.0  # of .75 to .5, all the way to 0
    assert recovery.loc["cut", "raises"][["value_low", "value_high"]].isna().all()  # one fact of four may be none
    assert recovery.loc[(slice(None), "lowers"), ["value", "value_low", "value_high"]].isna().all(axis=None)
