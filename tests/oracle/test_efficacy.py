"""`efficacy` and `ask` against plain Hugging Face loops, one prompt at a time; tables made by hand from values."""

import copy
import dataclasses
import math
import re
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import standins
from safetensors.numpy import load_file
from scipy.stats import norm

from lcalens import Fact, LcalensError, Result, ask, efficacy, load_model
from lcalens.llm.efficacy.parts import told_by
from lcalens.llm.facts.facts import Facts
from lcalens.llm.prompts.hijack import hijack_prompts
from lcalens.llm.prompts.related import RelatedTable
from lcalens.llm.prompts.schemes import SCHEMES
from lcalens.views.text import efficacy_screen

COUNTS = (0, 1, 2)
# The various neutral sentences are spelt letter by letter here, and too many tokens for the context.
MOST = tuple(name for name in SCHEMES if name != "neutral-various")
CITIES = list(standins.CAPITALS.values())
TONGUES = [
    *standins.LANGUAGES.items(),
    ("Zola", "French"), ("Proust", "French"), ("Hugo", "French"), ("Verga", "Italian"), ("Lorca", "Spanish"),
]  # fmt: skip
# French has four speakers, Italian and Spanish two: some facts have two factual sentences, some one, some none.
FALSE_TONGUES = ["French", "Italian", "Spanish", "German"]


def _facts():
    for i, (land, city) in enumerate(standins.CAPITALS.items()):
        yield Fact(
            case_id=i, relation_id="P36", prompt="The capital of {} is", subject=land, target_true=city,
            target_false=CITIES[i - 3],
        )  # fmt: skip
    for i, (name, tongue) in enumerate(TONGUES):
        false = next(word for word in FALSE_TONGUES[i % 4 :] + FALSE_TONGUES if word != tongue)
        yield Fact(
            case_id=100 + i, relation_id="P103", prompt="The mother tongue of {} is", subject=name, target_true=tongue,
            target_false=false,
        )  # fmt: skip


FACTS = Facts(_facts())
ONE_OF_EACH = [FACTS[0], FACTS[5], FACTS[16], FACTS[20]]


def run(model, facts=FACTS, **options):
    return efficacy(model, facts, **({"progress": False, "counts": COUNTS} | options))


class Slow:
    """What Hugging Face's own model says of an answer, from one forward pass over one sequence."""

    def __init__(self, made, tokenizer=None):
        self.model, self.tokenizer, self.known = made.plain, tokenizer or made.tokenizer, {}

    def __call__(self, text, answer, *, chat=False):
        key = text, answer, chat
        if key not in self.known:
            joint = " "
            if chat:
                turn = [{"role": "user", "content": text}]
                text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
                joint = ""
            found = self.tokenizer(text + joint + answer, return_offsets_mapping=True, add_special_tokens=not chat)
            ids = found.input_ids
            start = next(i for i, (_, end) in enumerate(found.offset_mapping) if end > len(text))
            logits = standins.logits_of(self.model, ids).double()
            logp = torch.log_softmax(logits, -1)
            each = [logp[i - 1, ids[i]].item() for i in range(start, len(ids))]
            best = [bool(logits[i - 1].argmax() == ids[i]) for i in range(start, len(ids))]
            self.known[key] = {
                "whole": (sum(each), all(best)), "first": (each[0], best[0]), "token": ids[start], "count": len(each)
            }  # fmt: skip
        return self.known[key]


@pytest.fixture(scope="module")
def slow(standin):
    made = {}
    return lambda family: made.setdefault(family, Slow(standin(family)))


@pytest.fixture(scope="module")
def every(standin):
    """Every scheme on the model that knows the facts."""
    return run(standin("gpt2").model, schemes=MOST)


def prompts_of(schemes, counts, *, facts=FACTS, tokenizer=None):
    """The text of each fact, scheme and n."""
    texts = {}
    for scheme in schemes:
        for prompt in hijack_prompts(facts, scheme, counts=counts, words=RelatedTable(tokenizer)).prompts:
            texts[prompt.fact.case_id, scheme, prompt.n] = prompt.text
    return texts


def check_against_loop(result, slow, texts, *, facts=FACTS, scoring="whole", chat=False):
    by_case = {fact.case_id: fact for fact in facts}
    frame = result.wide("values")
    assert len(frame) > 0
    for row in frame.itertuples():
        fact, text = by_case[row.case_id], texts[row.case_id, row.scheme, row.n]
        true, false = (slow(text, answer, chat=chat) for answer in (fact.target_true, fact.target_false))
        assert row.logp_true == pytest.approx(true[scoring][0], abs=1e-4, rel=1e-5)
        assert row.logp_false == pytest.approx(false[scoring][0], abs=1e-4, rel=1e-5)
        assert row.greedy == true[scoring][1]
        assert row.greedy_false == false[scoring][1]
    return frame


# --- every number against the loop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scoring", ["whole", "first"])
@pytest.mark.parametrize(
    ("family", "schemes", "counts"),
    [
        ("gpt2", MOST, (0, 2)),
        ("gpt2", ("neutral-various",), (0, 1)),
        ("gemma3", ("dont-think", "factual"), (0, 1, 3)),
        ("llama", ("dont-think", "factual"), (0, 1, 3)),
    ],
)
def test_every_number_is_a_plain_loops(standin, slow, family, schemes, counts, scoring):
    made = standin(family)
    result = run(made.model, schemes=schemes, counts=counts, scoring=scoring)
    texts = prompts_of(schemes, counts, tokenizer=made.tokenizer)
    frame = check_against_loop(result, slow(family), texts, scoring=scoring)
    # What was left out is what has no text, or objects that cannot be told apart by their first tokens.
    told = {
        fact.case_id
        for fact in FACTS
        if scoring == "whole"
        or slow(family)(fact.text, fact.target_true)["token"] != slow(family)(fact.text, fact.target_false)["token"]
    }
    assert {(row.case_id, row.scheme, row.n) for row in frame.itertuples()} == {key for key in texts if key[0] in told}


def test_both_ways_of_computing_were_taken(standin):
    """Gemma 3's window is 64 tokens here: longer prompts cannot share their beginnings."""
    paths = {
        family: run(standin(family).model, ONE_OF_EACH, schemes="dont-think", counts=(0, 12)).provenance["path"]
        for family in ("gpt2", "gemma3")
    }
    assert paths == {"gpt2": ["shared"], "gemma3": ["padded", "shared"]}


def test_the_hijack_works_here(every):
    """The model is trained until it knows the facts, so that what is compared is more than noise."""
    table = every.wide().set_index(["subset", "scheme", "n"])
    assert table.loc[("all", "dont-think", 0), "log_odds"] < -3
    assert table.loc[("all", "dont-think", 1), "log_odds"] > table.loc[("all", "dont-think", 0), "log_odds"] + 1


def test_objects_of_several_tokens_are_scored_whole(standin, slow):
    made = standin("gpt2")
    fact = Fact(
        case_id=1, relation_id="P36", prompt="The capital of {} is", subject="Italy",
        target_true="Rome and Xyzzyplugh", target_false="Oslo, not Quux",
    )  # fmt: skip
    result = run(made.model, [fact], counts=(0, 1))
    assert min(slow("gpt2")(fact.text, answer)["count"] for answer in (fact.target_true, fact.target_false)) > 3
    texts = {(1, "dont-think", 0): fact.text, (1, "dont-think", 1): f"Do not think of Oslo, not Quux. {fact.text}"}
    assert len(check_against_loop(result, slow("gpt2"), texts, facts=[fact])) == 2


def test_through_the_chat_template(standin, slow):
    made = standin("gpt2")
    tokenizer = copy.deepcopy(made.tokenizer)
    tokenizer.chat_template = standins.TEMPLATE
    model = load_model(made.plain, tokenizer=tokenizer)
    result = run(model, ONE_OF_EACH, counts=(0, 1), chat=True)
    texts = prompts_of(("dont-think",), (0, 1), facts=ONE_OF_EACH)
    check_against_loop(result, Slow(made, tokenizer), texts, facts=ONE_OF_EACH, chat=True)
    assert result.provenance["config"]["chat"] is True
    raw = run(model, ONE_OF_EACH, counts=(0, 1))
    assert np.abs(raw.values["logp_true"] - result.values["logp_true"]).min() > 1e-3


def neighbour_of(made, target):
    """The whole word nearest to an object in the input embedding that is no form and no token of it."""
    weight = made.plain.get_input_embeddings().weight.detach()
    own = made.tokenizer(f" {target}").input_ids
    middle = weight[own].mean(0)
    similar = {
        token[1:]: torch.cosine_similarity(weight[i], middle, dim=0).item()
        for token, i in made.tokenizer.get_vocab().items()
        if re.fullmatch("Ġ[A-Za-z]{4,}", token) and i not in own and token[1:5].lower() != target[:4].lower()
    }
    return max(similar, key=similar.get)


@pytest.mark.filterwarnings("ignore:efficacy. nothing can be measured of")
def test_related_words_from_the_embedding(standin, slow):
    made = standin("gpt2")
    schemes = ("related-word", "unrelated-word", "related-form")
    result = run(made.model, schemes=schemes, counts=(0, 1), related="embedding")
    frame = result.wide("values")
    frame = frame[frame["n"] == 1]
    objects = {fact.target_false for fact in FACTS} | {fact.target_true for fact in FACTS}
    near = {target: neighbour_of(made, target) for target in objects}
    assert (frame["scheme"] == "related-word").sum() > 20
    assert (frame["scheme"] == "unrelated-word").sum() > 5
    assert set(frame["scheme"]) == {"related-word", "unrelated-word"}
    for row in frame.itertuples():
        (fact,) = (fact for fact in FACTS if fact.case_id == row.case_id)
        if row.scheme == "related-word":
            words = {near[fact.target_false]}
        else:  # the neighbour of some other object
            words = set(near.values()) - {near[fact.target_false], near[fact.target_true]}
        scores = [slow("gpt2")(f"Do not think of {word}. {fact.text}", fact.target_false)["whole"][0] for word in words]
        assert min(abs(row.logp_false - score) for score in scores) < 1e-4


# --- the tables, by hand --------------------------------------------------------------------------------------------


def odds_of(result):
    """Log odds of the false object by scheme, fact and n, from the tidy table alone."""
    frame = result.wide("values")
    frame["odds"] = frame["logp_false"] - frame["logp_true"]
    return {
        scheme: group.pivot(index="case_id", columns="n", values="odds").reindex(columns=result.axes["n"])
        for scheme, group in frame.groupby("scheme")
    }


def members_of(result):
    """The facts of each subset."""
    frame = result.wide("values")
    clean = frame[frame["n"] == 0].drop_duplicates("case_id").set_index("case_id")
    return {
        "all": set(clean.index),
        "known": set(clean.index[clean["greedy"] == 1]),
        "prefers-true": set(clean.index[clean["logp_true"] > clean["logp_false"]]),
    }


def wilson(hits, total):
    z, p = norm.ppf(0.975), hits / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total**2))
    return middle - half, middle + half


def mcnemar(before, after):
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    changed = gained + lost
    ways = [math.comb(changed, k) for k in range(changed + 1)]
    return sum(way for way in ways if way <= ways[gained]) / 2**changed


def holm(p_values):
    known = sorted(p for p in p_values if not math.isnan(p))
    steps = [min(1, (len(known) - i) * p) for i, p in enumerate(known)]
    return [p if math.isnan(p) else max(steps[: known.index(p) + 1]) for p in p_values]


def test_summary_by_hand(every):
    odds, members = odds_of(every), members_of(every)
    table = every.wide()
    assert len(table) == 3 * len(MOST) * len(COUNTS)
    assert set(table["subset"]) == set(members)
    partial = 0
    for row in table.itertuples():
        rows = odds[row.scheme]
        complete = rows.dropna()
        partial += len(rows) > len(complete) > 0
        chosen = complete[complete.index.isin(members[row.subset])]
        assert row.facts == len(chosen)
        assert row.role == SCHEMES[row.scheme].role
        if not len(chosen):
            assert np.isnan([row.es, row.retention, row.es_low, row.es_high, row.log_odds, row.mcnemar_p]).all()
            continue
        hijacked, clean = chosen[row.n] > 0, chosen[0] > 0
        assert row.es == pytest.approx(hijacked.mean())
        assert row.retention == pytest.approx(1 - hijacked.mean())
        assert (row.es_low, row.es_high) == pytest.approx(wilson(hijacked.sum(), len(chosen)))
        assert (row.retention_low, row.retention_high) == pytest.approx((1 - row.es_high, 1 - row.es_low))
        assert row.log_odds == pytest.approx(chosen[row.n].mean())
        if len(chosen) > 1:
            assert row.log_odds_low <= row.log_odds + 1e-9
            assert row.log_odds_high >= row.log_odds - 1e-9
        else:
            assert np.isnan([row.log_odds_low, row.log_odds_high]).all()
        if row.n:
            assert row.change == pytest.approx(hijacked.mean() - clean.mean())
            assert np.isnan(row.change_low) == np.isnan(row.change_high) == (len(chosen) == 1)
            assert len(chosen) == 1 or row.change_low - 1e-9 <= row.change <= row.change_high + 1e-9
        else:
            assert np.isnan(row.change)
        if row.n and row.subset == "all":
            assert row.mcnemar_p == pytest.approx(mcnemar(clean, hijacked))
        else:
            assert math.isnan(row.mcnemar_p)
            assert math.isnan(row.holm_p)
    assert partial > 0, "no scheme here is possible for some n only: nothing was tested of complete cases"


def test_controls_by_hand(every):
    odds, members = odds_of(every), members_of(every)
    table = every.wide("controls")
    wanted = {
        (scheme.name, control)
        for scheme in SCHEMES.values()
        if scheme.role != "control"
        for control in {scheme.control, "neutral"}
        if control in MOST
    }
    assert set(zip(table["scheme"], table["control"], strict=True)) <= wanted
    assert len(table) > 3 * len(wanted)
    for row in table.itertuples():
        left, right = odds[row.scheme].dropna(), odds[row.control].dropna()
        both = [case for case in left.index if case in set(right.index) & members[row.subset]]
        with_scheme, with_control = left.loc[both, row.n] > 0, right.loc[both, row.n] > 0
        assert row.facts == len(both)
        if not both:
            assert np.isnan([row.es, row.es_control, row.difference, row.mcnemar_p]).all()
            continue
        assert row.es == pytest.approx(with_scheme.mean())
        assert row.es_control == pytest.approx(with_control.mean())
        assert row.difference == pytest.approx(with_scheme.mean() - with_control.mean())
        assert (row.es_low, row.es_high) == pytest.approx(wilson(with_scheme.sum(), len(both)))
        assert (row.es_control_low, row.es_control_high) == pytest.approx(wilson(with_control.sum(), len(both)))
        if len(both) > 1:
            assert row.difference_low - 1e-9 <= row.difference <= row.difference_high + 1e-9
        else:
            assert np.isnan([row.difference_low, row.difference_high]).all()
        if row.n == 0:
            assert row.difference == 0  # nothing stands before either
        if row.subset == "all" and row.n:
            assert row.mcnemar_p == pytest.approx(mcnemar(with_control, with_scheme))
        else:
            assert math.isnan(row.mcnemar_p)


def test_holm_corrects_over_all_tests_of_the_study(every):
    summary, controls = every.wide(), every.wide("controls")
    corrected = holm([*summary["mcnemar_p"], *controls["mcnemar_p"]])
    assert [*summary["holm_p"], *controls["holm_p"]] == pytest.approx(corrected, nan_ok=True)
    assert np.isfinite(corrected).sum() > 30


def test_relations_by_hand(every):
    odds = odds_of(every)
    relation_of = dict(zip(every.examples["case_id"], every.examples["relation_id"], strict=True))
    table = every.wide("by_relation")
    assert len(table) == 2 * len(MOST) * len(COUNTS)
    assert set(zip(table["relation_id"], table["relation"], strict=True)) == {
        ("P36", "capital"), ("P103", "mother tongue")
    }  # fmt: skip
    for row in table.itertuples():
        complete = odds[row.scheme].dropna()
        chosen = complete[[relation_of[case] == row.relation_id for case in complete.index]]
        assert row.facts == len(chosen)
        if len(chosen):
            assert row.es == pytest.approx((chosen[row.n] > 0).mean())
            assert (row.es_low, row.es_high) == pytest.approx(wilson((chosen[row.n] > 0).sum(), len(chosen)))


def test_complete_cases_by_counting(every):
    """French is the true object of five subjects here, Italian and Spanish of two each, no city of two."""
    speakers = Counter(fact.target_true for fact in FACTS)
    for scheme, target in (("factual", "target_false"), ("reverse-factual", "target_true")):
        # A fact's own subject is not one of the others.
        others = [speakers[getattr(fact, target)] - (getattr(fact, target) == fact.target_true) for fact in FACTS]
        rows = every.wide()[(every.wide()["scheme"] == scheme) & (every.wide()["subset"] == "all")]
        assert rows["n"].tolist() == list(COUNTS)
        assert set(rows["facts"]) == {sum(count >= COUNTS[-1] for count in others)}
        assert 0 < sum(count >= COUNTS[-1] for count in others) < len(FACTS)
        measured = every.wide("values")
        for n in COUNTS[1:]:
            found = measured[(measured["scheme"] == scheme) & (measured["n"] == n)]
            assert len(found) == sum(count >= n for count in others)
        assert len(measured[(measured["scheme"] == scheme) & (measured["n"] == 0)]) == len(FACTS)


def test_what_is_impossible_is_counted(every):
    table = every.tables["impossible"]
    assert list(table) == ["scheme", "n", "reason", "facts"]
    frame = every.wide("values")
    for scheme in MOST:
        for n in COUNTS:
            left_out = table[(table["scheme"] == scheme) & (table["n"] == n)]["facts"].sum()
            assert len(frame[(frame["scheme"] == scheme) & (frame["n"] == n)]) + left_out == len(FACTS)
    assert "no other subject" in " ".join(table["reason"])


def test_the_same_clean_answers_stand_before_every_scheme(every):
    for name in ("logp_true", "logp_false", "greedy"):
        clean = every.values[name][:, :, 0]
        np.testing.assert_array_equal(clean, np.repeat(clean[:, :1], len(MOST), axis=1))
    known = every.values["greedy"][:, 0, 0] == 1
    np.testing.assert_array_equal(every.examples["known"], known)
    assert known.any()


# --- first tokens ---------------------------------------------------------------------------------------------------


def test_objects_that_begin_alike_are_told_apart_whole_and_left_out_of_first_tokens(standin, slow):
    made = standin("gpt2")
    twins = [
        Fact(case_id=f"twin {i}", relation_id="P36", prompt="The capital of {} is", subject=land,
             target_true=f"{city} {first}", target_false=f"{city} {second}")
        for i, (land, city, first, second) in enumerate(
            [("Italy", "Rome", "Oslo", "Lima"), ("Spain", "Madrid", "Oslo", "Lima")]
        )
    ]  # fmt: skip
    facts = [*ONE_OF_EACH, *twins]
    for twin in twins:
        assert slow("gpt2")(twin.text, twin.target_true)["token"] == slow("gpt2")(twin.text, twin.target_false)["token"]
    schemes = ("dont-think", "neutral")
    whole = run(made.model, facts, schemes=schemes, counts=(0, 1))
    first = run(made.model, facts, schemes=schemes, counts=(0, 1), scoring="first")
    assert set(whole.wide()["facts"][whole.wide()["subset"] == "all"]) == {6}
    assert len(whole.tables["impossible"]) == 0
    assert set(first.wide()["facts"][first.wide()["subset"] == "all"]) == {4}
    assert not first.wide("values")["case_id"].str.startswith("twin").any()
    table = first.tables["impossible"]
    assert table["reason"].unique().tolist() == ["the objects begin with the same token"]
    assert {(row.scheme, row.n): row.facts for row in table.itertuples()} == {
        (s, n): 2 for s in schemes for n in (0, 1)
    }
    assert not first.examples["known"][4:].any()
    some = run(made.model, facts, schemes=("factual",), counts=(0, 1, 40), scoring="first")  # no fact has 40 sentences
    counted = some.tables["impossible"].groupby("n")["facts"].sum()
    assert counted[40] == len(facts)  # each once, though twins are impossible twice over
    assert whole.provenance["config"]["scoring"] == "whole"


def test_only_objects_that_begin_alike(standin):
    twin = Fact(
        case_id=1, relation_id="P36", prompt="The capital of {} is", subject="Italy", target_true="Rome Oslo",
        target_false="Rome Lima",
    )  # fmt: skip
    result = run(standin("gpt2").model, [twin], counts=(0, 1), scoring="first")
    assert len(result.wide("values")) == 0
    assert set(result.wide()["facts"]) == {0}
    assert result.wide()["es"].isna().all()
    assert set(result.provenance["unmeasured"]) == {"dont-think"}
    assert "Nothing was measured of 'dont-think': the objects begin with the same token" in repr(result)


def test_negation_without_known_relations_says_why(standin):
    facts = [dataclasses.replace(fact, relation_id="mine") for fact in FACTS]
    why = "no negated sentence is known for relation 'mine'"
    with pytest.warns(UserWarning, match=rf"^efficacy: nothing can be measured of 'negation' \({why}\)\. Leave it out"):
        result = run(standin("gpt2").model, facts, schemes=("dont-think", "negation"), counts=(0, 1))
    assert result.provenance["unmeasured"] == {"negation": why}
    assert f"Nothing was measured of 'negation': {why}." in repr(result)
    assert why in efficacy_screen(result)
    assert result.wide().query("subset == 'all' and scheme == 'dont-think'")["facts"].tolist() == [len(FACTS)] * 2


# --- neighbours, order, seeds ---------------------------------------------------------------------------------------


def by_case(result):
    """Every value by what it is of."""
    return (
        result.wide("values").set_index(["case_id", "scheme", "n"]).sort_index()[["logp_true", "logp_false", "greedy"]]
    )


@pytest.mark.filterwarnings("ignore:efficacy. nothing can be measured of")
@pytest.mark.parametrize("related", ["table", "embedding"])
@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_a_fact_alone_has_the_scores_it_has_among_others(standin, family, related):
    model = standin(family).model
    schemes = MOST if family == "gpt2" else ("dont-think", "factual", "related-word", "unrelated-word")
    together = by_case(run(model, schemes=schemes, counts=(0, 2), related=related))
    for i in (0, 20):
        alone = by_case(run(model, FACTS[i : i + 1], schemes=schemes, counts=(0, 2), related=related))
        of_it = together.loc[[FACTS[i].case_id]]
        assert list(alone.index) == list(of_it.index)
        np.testing.assert_allclose(alone, of_it, atol=1e-4)


def test_the_order_of_facts_schemes_and_counts_does_not_matter(standin):
    model = standin("gpt2").model
    forward = run(model, schemes=("dont-think", "factual", "neutral"), counts=(0, 1, 3))
    backward = run(
        model,
        Facts(list(FACTS)[::-1], pool=FACTS.pool),
        schemes=["neutral", "factual", "dont-think"],
        counts=(3, 0, 1, 3),
    )
    np.testing.assert_allclose(by_case(forward), by_case(backward), atol=1e-4)
    assert backward.axes["scheme"] == ("neutral", "factual", "dont-think")
    assert backward.axes["n"] == (0, 1, 3)


def test_facts_past_one_part_are_all_there(standin, slow):
    """More facts than are measured at a time."""
    many = [
        Fact(case_id=i, relation_id="P36", prompt="The capital of {} is", subject=f"{land} {i}", target_true=city,
             target_false=CITIES[i % 16 - 3])
        for i, (land, city) in enumerate(list(standins.CAPITALS.items()) * 5)
    ]  # fmt: skip
    result = run(standin("gpt2").model, many, counts=(0, 1))
    assert len(many) == 80
    assert result.provenance["cells"]["computed"] == 4
    texts = prompts_of(("dont-think",), (0, 1), facts=many)
    assert len(check_against_loop(result, slow("gpt2"), texts, facts=many)) == 160


def test_zero_sentences_are_always_measured(standin):
    model = standin("gpt2").model
    assert run(model, ONE_OF_EACH, counts=(2,)).axes["n"] == (0, 2)
    alone = run(model, ONE_OF_EACH, counts=(0,))
    assert alone.axes["n"] == (0,)
    assert len(alone.wide("values")) == 4
    assert len(alone.wide("controls")) == 0


def test_case_ids_of_two_kinds(standin, tmp_path):
    facts = [
        Fact(case_id=case, relation_id="P36", prompt="The capital of {} is", subject=land, target_true=city,
             target_false="Oslo")
        for case, land, city in ((7, "France", "Paris"), ("seven", "Italy", "Rome"), ("7", "Spain", "Madrid"))
    ]  # fmt: skip
    result = run(standin("gpt2").model, facts, counts=(0, 1))
    assert len(result.wide("values")) == 6
    assert result.examples["case_id"].tolist() == ["7", "seven", "7"]
    loaded = Result.load(result.save(tmp_path / "out"))
    pd.testing.assert_frame_equal(loaded.wide("values"), result.wide("values"))


def test_a_case_id_of_many_digits_can_be_saved(standin, tmp_path):
    fact = Fact(
        case_id=10**30, relation_id="P36", prompt="The capital of {} is", subject="France", target_true="Paris",
        target_false="Rome",
    )  # fmt: skip
    result = run(standin("gpt2").model, [fact], counts=(0,))
    loaded = Result.load(result.save(tmp_path / "out"))
    assert str(loaded.examples["case_id"][0]) == str(10**30)


# --- what a result holds --------------------------------------------------------------------------------------------


def test_the_tidy_table_says_all(every):
    long = every.to_frame()
    assert set(long["quantity"]) == {"logp_true", "logp_false", "greedy", "greedy_false"}
    frame = every.wide("values")
    assert len(long) == 4 * len(frame)
    assert {"case_id", "relation_id", "subject", "target_true", "target_false", "scheme", "n"} <= set(frame)
    assert {"logp_true", "logp_false", "greedy", "known"} <= set(frame)
    assert (frame["logp_true"] <= 0).all()
    assert (frame["logp_false"] <= 0).all()
    assert set(frame["greedy"]) <= {0.0, 1.0}
    assert set(every.tables) == {"summary", "controls", "by_relation", "impossible"}
    assert every.kind == "efficacy"
    assert every.axes == {"example": tuple(range(len(FACTS))), "scheme": MOST, "n": COUNTS}


def test_provenance_says_how_to_do_it_again(every, standin):
    found = every.provenance
    assert found["model"]["source"] == standin("gpt2").folder.name
    assert found["model"]["dtype"] == "float32"
    assert found["model"]["quantisation"] == "none"
    assert found["model"]["hooks"] == []
    assert found["facts"] == {"source": "user", "digest": FACTS.digest, "count": len(FACTS), "skipped": 0}
    assert found["config"]["schemes"] == MOST
    assert {"torch", "transformers", "transformer-lens", "lcalens", "python"} <= set(found["versions"])
    assert found["cells"]["loaded"] == 0


def test_a_result_is_saved_whole(every, tmp_path):
    loaded = Result.load(every.save(tmp_path / "out"))
    pd.testing.assert_frame_equal(loaded.wide("values"), every.wide("values"))
    for name, table in every.tables.items():
        pd.testing.assert_frame_equal(loaded.tables[name], table)


def test_progress_counts_prompts(standin):
    calls = []
    result = run(standin("gpt2").model, ONE_OF_EACH, counts=(0, 1, 2), progress=lambda *call: calls.append(call))
    done, totals, what = zip(*calls, strict=True)
    assert list(done) == sorted(done)
    assert done[0] == 0
    assert done[-1] == totals[0] == len(result.wide("values")) == 12
    assert set(totals) == {12}
    assert set(what) == {"clean", "dont-think"}


def test_silence_and_the_bar(standin, capsys, monkeypatch):
    for progress in (False, True):  # short work off a terminal is silent too
        run(standin("gpt2").model, ONE_OF_EACH, counts=(0,), progress=progress)
        assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(standin("gpt2").model, ONE_OF_EACH, counts=(0,), progress=True)
    said = capsys.readouterr()
    assert said.out == ""
    assert "prompts" in said.err


# --- a second run ---------------------------------------------------------------------------------------------------

STUDY = {"schemes": ("dont-think", "factual", "unrelated"), "counts": (0, 1, 3)}


def same(left, right, *, exactly=True):
    compare = np.testing.assert_array_equal if exactly else lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4)
    for name in left.values:
        compare(left.values[name], right.values[name])
    for name, table in left.tables.items():
        pd.testing.assert_frame_equal(table, right.tables[name], check_exact=exactly, atol=1e-4)
    return True


def test_a_second_run_computes_nothing(standin, tmp_path):
    model = standin("gpt2").model
    first = run(model, **STUDY, out=tmp_path)
    computed = first.provenance["cells"]["computed"]
    assert first.provenance["cells"] == {"loaded": 0, "computed": computed}
    assert computed >= 4
    second = run(model, **STUDY, out=str(tmp_path))
    assert second.provenance["cells"] == {"loaded": computed, "computed": 0}
    assert same(first, second)
    assert same(first, run(model, **STUDY))
    assert second.provenance["path"] == first.provenance["path"]


@pytest.mark.filterwarnings("ignore:efficacy. nothing can be measured of")
@pytest.mark.parametrize("every_part", [False, True], ids=["beside others", "a part of nothing else"])
def test_what_cannot_be_scored_is_kept_with_what_can(standin, tmp_path, every_part):
    model = standin("gpt2").model
    unusual = [dataclasses.replace(fact, target_true="Cafe\u0301", case_id=f"no {i}") for i, fact in enumerate(FACTS)]
    if every_part:  # more than a part's 64, with the same sentences and so side by side
        unusual = [dataclasses.replace(unusual[0], case_id=f"no {i}") for i in range(140)]
    facts = [*FACTS, *unusual]
    first = efficacy(model, facts, schemes="dont-think", counts=(0, 1), out=tmp_path, progress=False)
    second = efficacy(model, facts, schemes="dont-think", counts=(0, 1), out=tmp_path, progress=False)
    assert second.provenance["cells"]["computed"] == 0
    assert same(first, second)
    assert same(first, efficacy(model, facts, schemes="dont-think", counts=(0, 1), progress=False))
    cells = [load_file(file) for file in (tmp_path / "cells").iterdir()]
    assert any(not told_by(cell).path for cell in cells) is every_part
    table = first.tables["impossible"]
    told = table[table["reason"].str.contains("Unicode")].groupby("n")["facts"].sum()
    assert told.to_dict() == dict.fromkeys((0, 1), len(facts) - len(FACTS))
    plain = efficacy(model, FACTS, schemes="dont-think", counts=(0, 1), progress=False)
    np.testing.assert_allclose(first.values["logp_true"][: len(FACTS)], plain.values["logp_true"], atol=1e-4)
    assert np.isnan(first.values["logp_true"][len(FACTS) :]).all()
    assert (first.examples["true_tokens"][len(FACTS) :] == "").all()


def test_more_schemes_add_to_what_is_there(standin, tmp_path):
    model = standin("gpt2").model
    first = run(model, schemes=("dont-think",), counts=(0, 1), out=tmp_path)
    more = run(model, schemes=("dont-think", "neutral"), counts=(0, 1), out=tmp_path)
    assert more.provenance["cells"] == {"loaded": first.provenance["cells"]["computed"], "computed": 1}
    assert same(more, run(model, schemes=("dont-think", "neutral"), counts=(0, 1)))


def test_another_scoring_needs_no_model_run(standin, tmp_path):
    model = standin("gpt2").model
    run(model, **STUDY, out=tmp_path)
    first = run(model, **STUDY, scoring="first", out=tmp_path)
    assert first.provenance["cells"]["computed"] == 0
    assert same(first, run(model, **STUDY, scoring="first"))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"counts": (0, 2)},
        {"schemes": ("neutral",)},
        {"related": "embedding", "schemes": ("related-word",)},
    ],
    ids=str,
)
def test_other_options_never_take_the_wrong_part(standin, tmp_path, changes):
    model, some = standin("gpt2").model, FACTS[10:22]
    run(model, some, **(STUDY | {"schemes": ("dont-think", "factual", "unrelated", "related-word")}), out=tmp_path)
    other = STUDY | changes
    again = run(model, some, **other, out=tmp_path)
    assert same(again, run(model, some, **other), exactly=False)
    assert again.provenance["cells"]["computed"] > 0


def test_other_objects_never_take_the_wrong_part(standin, tmp_path):
    """The same texts, with the two objects changed about."""
    model = standin("gpt2").model
    swapped = [
        Fact(**{**{name: getattr(fact, name) for name in ("case_id", "relation_id", "prompt", "subject")},
                "target_true": fact.target_false, "target_false": fact.target_true})
        for fact in ONE_OF_EACH
    ]  # fmt: skip
    first = run(model, ONE_OF_EACH, schemes="neutral", counts=(0, 1), out=tmp_path)
    second = run(model, swapped, schemes="neutral", counts=(0, 1), out=tmp_path)
    assert second.provenance["cells"]["loaded"] == 0
    np.testing.assert_allclose(second.values["logp_true"], first.values["logp_false"], atol=1e-4)


def test_fewer_facts_of_the_same_folder(standin, tmp_path):
    model = standin("gpt2").model
    run(model, **STUDY, out=tmp_path)
    part = FACTS[3:20]
    assert same(run(model, part, **STUDY, out=tmp_path), run(model, part, **STUDY), exactly=False)


def test_another_model_never_takes_the_wrong_part(standin, tmp_path):
    for family in ("llama", "gemma3"):
        again = run(standin(family).model, ONE_OF_EACH, counts=(0, 1), out=tmp_path)
        assert again.provenance["cells"]["loaded"] == 0


def editable(standin):
    """A model of the test's own, and the Hugging Face parameters that it computes with."""
    plain = copy.deepcopy(standin("gpt2").plain)
    return plain, load_model(plain, tokenizer=standin("gpt2").tokenizer)


@pytest.mark.parametrize("what", ["all weights", "one matrix", "one neuron", "one embedding"])
def test_edited_weights_never_take_the_wrong_part(standin, tmp_path, what):
    plain, model = editable(standin)
    before = run(model, ONE_OF_EACH, counts=(0, 1), out=tmp_path)
    with torch.no_grad():
        block = plain.transformer.h[1].mlp
        if what == "all weights":
            for parameter in plain.parameters():
                parameter.mul_(0.5)
        elif what == "one matrix":
            block.c_proj.weight.zero_()
        elif what == "one neuron":
            block.c_fc.weight[:, 1] = 3.0  # an input vector of one neuron, as a knock-in would write it
        else:
            word = standin("gpt2").tokenizer(" France").input_ids[0]
            plain.transformer.wte.weight[word, 1::2] += 2.0
    fresh = run(model, ONE_OF_EACH, counts=(0, 1))
    assert np.abs(fresh.values["logp_true"] - before.values["logp_true"]).max() > 1e-3
    again = run(model, ONE_OF_EACH, counts=(0, 1), out=tmp_path)
    assert same(again, fresh, exactly=False)


def test_another_chat_template_never_takes_the_wrong_part(standin, tmp_path):
    made = standin("gpt2")
    results = []
    for template in (standins.TEMPLATE, standins.TEMPLATE.replace("turn", "The answer is")):
        tokenizer = copy.deepcopy(made.tokenizer)
        tokenizer.chat_template = template
        model = load_model(made.plain, tokenizer=tokenizer)
        options = {"counts": (0, 1), "chat": True}
        results.append(run(model, ONE_OF_EACH, **options, out=tmp_path))
        assert same(results[-1], run(model, ONE_OF_EACH, **options), exactly=False)
    assert np.abs(results[0].values["logp_true"] - results[1].values["logp_true"]).max() > 1e-3


def test_chat_and_raw_are_kept_apart(standin, tmp_path):
    made = standin("gpt2")
    tokenizer = copy.deepcopy(made.tokenizer)
    tokenizer.chat_template = standins.TEMPLATE
    model = load_model(made.plain, tokenizer=tokenizer)
    run(model, ONE_OF_EACH, counts=(0, 1), out=tmp_path)
    again = run(model, ONE_OF_EACH, counts=(0, 1), chat=True, out=tmp_path)
    assert again.provenance["cells"]["loaded"] == 0


def test_a_damaged_part_is_computed_again(standin, tmp_path):
    model = standin("gpt2").model
    first = run(model, **STUDY, out=tmp_path)
    files = sorted((tmp_path / "cells").glob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:40])
    files[1].unlink()
    again = run(model, **STUDY, out=tmp_path)
    assert again.provenance["cells"] == {"loaded": len(files) - 2, "computed": 2}
    assert same(first, again)


# --- hooks ----------------------------------------------------------------------------------------------------------


def test_hooks_work_are_named_and_nothing_is_kept(standin, tmp_path):
    """A hooked model is another model: its numbers are neither kept nor taken from what is kept."""
    model = standin("gpt2").model
    point = "blocks.1.hook_mlp_out"
    options = {"counts": (0, 1), "out": tmp_path}
    clean = run(model, ONE_OF_EACH, **options)
    kept = sorted(tmp_path.rglob("*"))
    with model.hooks(fwd_hooks=[(point, lambda value, hook: value * 0)]):
        hooked = run(model, ONE_OF_EACH, **options)
        again = run(model, ONE_OF_EACH, **options)
    assert point in hooked.provenance["model"]["hooks"]
    assert all(name.startswith("blocks.1.") for name in hooked.provenance["model"]["hooks"])  # it has two names
    assert again.provenance["cells"]["loaded"] == 0
    assert sorted(tmp_path.rglob("*")) == kept
    assert np.abs(hooked.values["logp_true"] - clean.values["logp_true"]).min() > 1e-3
    after = run(model, ONE_OF_EACH, **options)
    assert after.provenance["model"]["hooks"] == []
    assert after.provenance["cells"]["computed"] == 0
    assert same(after, clean)


def test_torchs_own_hooks_count_too(standin, tmp_path):
    _, model = editable(standin)
    options = {"counts": (0, 1)}
    clean = run(model, ONE_OF_EACH, **options, out=tmp_path)
    handle = model.original_model.get_input_embeddings().register_forward_hook(lambda module, given, value: value * 0.3)
    fresh, hooked = run(model, ONE_OF_EACH, **options), run(model, ONE_OF_EACH, **options, out=tmp_path)
    handle.remove()
    assert np.abs(fresh.values["logp_true"] - clean.values["logp_true"]).max() > 1e-3
    assert same(hooked, fresh)


# --- ask ------------------------------------------------------------------------------------------------------------


def top_of(made, text, count):
    ids = made.tokenizer(text).input_ids
    found = standins.logits_of(made.plain, ids)[-1].double().softmax(-1).topk(count)
    return found.indices.tolist(), found.values.tolist()


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "llama"])
def test_top_answers_are_hugging_faces(standin, family):
    made = standin(family)
    prompt, sentences = "The capital of Spain is", ["Do not think of Rome.", "Do not think of Oslo."]
    texts = {"clean": prompt, "hijacked": " ".join([*sentences, prompt])}
    result = ask(made.model, prompt, hijack=sentences, top=7)
    assert result.axes == {"context": ("clean", "hijacked"), "rank": tuple(range(1, 8))}
    table = result.tables["answers"]
    assert list(table["rank"]) == list(range(1, 8))
    for i, (context, text) in enumerate(texts.items()):
        ids, shares = top_of(made, text, 7)
        assert result.values["token_id"][i].tolist() == ids
        np.testing.assert_allclose(result.values["probability"][i], shares, atol=1e-4)
        assert table[context].tolist() == [made.tokenizer.decode([token]) for token in ids]
        np.testing.assert_allclose(table[f"{context}_probability"], shares, atol=1e-4)
    assert result.provenance["config"]["hijack"] == sentences


def test_asking_without_a_hijack_shows_the_clean_answers_alone(standin):
    made = standin("gpt2")
    for nothing in (None, []):
        result = ask(made.model, "The capital of Spain is", hijack=nothing)
        assert result.axes["context"] == ("clean",)
        assert result.tables["answers"]["clean"][0] == " Madrid"
        assert list(result.tables["answers"]) == ["rank", "clean", "clean_probability"]


def test_one_sentence_is_a_sentence(standin):
    made = standin("gpt2")
    one, many = (
        ask(made.model, "The capital of Spain is", hijack=text) for text in ("Think of Rome.", ["Think of Rome."])
    )
    pd.testing.assert_frame_equal(one.tables["answers"], many.tables["answers"])


@pytest.mark.parametrize("end", ["", "\n", " ", "  \n", "\n\n"])
def test_the_question_is_read_to_its_end(standin, end):
    made = standin("gpt2")
    text = f"The capital of Spain is{end}"
    result = ask(made.model, text, top=3, hijack="Think of Rome.")
    for row, whole in enumerate((text, f"Think of Rome. {text}")):
        ids, shares = top_of(made, whole, 3)
        assert result.values["token_id"][row].tolist() == ids
        np.testing.assert_allclose(result.values["probability"][row], shares, atol=1e-4)
    assert result.provenance["config"]["prompt"] == text


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_whole_answers_are_scored(standin, slow, family):
    made = standin(family)
    prompt, hijack, answers = "The capital of Spain is", "Do not think of Rome.", ["Madrid", "Rome", "Oslo, in Norway"]
    table = ask(made.model, prompt, hijack=hijack, answers=answers).tables["scored"]
    assert table["answer"].tolist() == answers
    for row in table.itertuples():
        clean, hijacked = (slow(family)(text, row.answer)["whole"][0] for text in (prompt, f"{hijack} {prompt}"))
        assert row.clean_logp == pytest.approx(clean, abs=1e-4)
        assert row.hijacked_logp == pytest.approx(hijacked, abs=1e-4)
        assert row.change == pytest.approx(hijacked - clean, abs=2e-4)
    assert list(ask(made.model, prompt, answers=answers).tables["scored"]) == ["answer", "clean_logp", "tokens"]
    assert len(ask(made.model, prompt).tables["scored"]) == 0


def test_asking_through_the_chat_template(standin, slow):
    made = standin("gpt2")
    tokenizer = copy.deepcopy(made.tokenizer)
    tokenizer.chat_template = standins.TEMPLATE
    model = load_model(made.plain, tokenizer=tokenizer)
    result = ask(model, "The capital of Spain is", chat=True, answers=["Madrid"])
    turn = [{"role": "user", "content": "The capital of Spain is"}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    ids, shares = top_of(made, text, 5)
    assert result.values["token_id"][0].tolist() == ids
    np.testing.assert_allclose(result.values["probability"][0], shares, atol=1e-4)
    expected = Slow(made, tokenizer)("The capital of Spain is", "Madrid", chat=True)["whole"][0]
    assert result.tables["scored"]["clean_logp"][0] == pytest.approx(expected, abs=1e-4)


def test_answers_of_ask_are_saved_and_drawn(standin, tmp_path):
    result = ask(standin("gpt2").model, "The capital of Spain is", hijack="Do not think of Rome.", answers=["Rome"])
    loaded = Result.load(result.save(tmp_path / "out"))
    for name in ("answers", "scored"):
        pd.testing.assert_frame_equal(loaded.tables[name], result.tables[name])
    loaded.plot().savefig(tmp_path / "figure.png")
    assert "Madrid" in result._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "  "}, "prompt: .* is empty"),
        ({"prompt": "a\ud800"}, "prompt: .* UTF-8 cannot write"),
        ({"answers": ["Rome", " "]}, "answers: .* is empty"),
        ({"hijack": ["fine", "\udfff"]}, "hijack: .* UTF-8 cannot write"),
        ({"top": 0}, "top: 0 is not a whole number from 1"),
        ({"top": 100_000}, "top: 100000 is not a whole number from 1 to the vocabulary"),
        ({"chat": True}, "chat: this tokenizer has no chat template"),
        ({"prompt": "word " * 300}, "context holds 160"),
        ({"hijack": ["Do not think of Rome."] * 100}, "context holds 160"),
    ],
    ids=str,
)
def test_what_ask_refuses(standin, arguments, message):
    with pytest.raises(LcalensError, match=message):
        ask(standin("gpt2").model, **({"prompt": "The capital of Spain is"} | arguments))
