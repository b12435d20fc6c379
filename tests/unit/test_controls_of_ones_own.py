"""Contrasts of facts against a sentence of one's own: aligned token by token, drawn by the seed, counted where not."""

import re
from collections import Counter

import pytest

from lcalens import Fact, LcalensError, Scheme, contrast_facts, load_facts
from lcalens.llm.facts.facts import Facts
from lcalens.llm.prompts.named import read_control

SAMPLE = load_facts("sample")
SOME = SAMPLE[::16]
FORGET = Scheme("Forget about {target_false}.", control="Forget about {unrelated}.")

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def smollm2(real_model):
    return real_model("smollm2")


def objects_of_others(relation):
    """The true objects of all other relations that are none of this one's."""
    own = {fact.target_true for fact in SAMPLE if fact.relation_id == relation}
    return {fact.target_true for fact in SAMPLE if fact.relation_id != relation} - own


def check_aligned(model, made, n=1):
    """Tokens as the tokenizer alone makes them: as many, and the same from the prompt on."""
    tokenizer = model.lcalens_info.tokenizer
    assert len(made) > 0
    for i, row in enumerate(made.examples.itertuples()):
        clean, hijacked = tokenizer(row.clean_text).input_ids, tokenizer(row.hijacked_text).input_ids
        assert (list(made.clean[i]), list(made.hijacked[i])) == (clean, hijacked)
        assert len(clean) == len(hijacked)
        first = made.spans["prompt"][i][0][0]
        assert clean[first:] == hijacked[first:]
        assert clean[:first] != hijacked[:first]
        sentences = re.findall(r"[^.]+\.", row.clean_text.removesuffix(row.prompt))
        for (begin, end), sentence in zip(made.spans["sentence"][i], sentences, strict=True):
            assert tokenizer.decode(clean[begin:end]).strip() == sentence.strip()
        assert len(sentences) == n


@pytest.mark.parametrize("n", [1, 3])
def test_a_schemes_own_control(smollm2, n):
    facts = Facts([fact for fact in SOME if "." not in fact.target_false], pool=SAMPLE.pool)
    made = contrast_facts(smollm2, facts, scheme=FORGET, n=n)
    check_aligned(smollm2, made, n)
    for row in made.examples.itertuples():
        assert row.hijacked_text == f"Forget about {row.target_false}. " * n + row.prompt
        assert row.clean_text == f"Forget about {row.control_word}. " * n + row.prompt
        assert row.control_word in objects_of_others(row.relation_id) - {row.target_true, row.target_false}
    assert len(made) > 0.9 * len(facts)
    assert len(set(made.examples["control_word"])) > len(made) / 4  # drawn, and not always the same


def test_the_control_that_is_given_goes_first(smollm2):
    neutral = contrast_facts(smollm2, SOME, scheme=FORGET, control="neutral")
    assert neutral.content() == contrast_facts(smollm2, SOME, scheme=FORGET.sentence).content()
    assert neutral.content() == contrast_facts(smollm2, SOME, scheme=Scheme(FORGET.sentence)).content()
    own = contrast_facts(smollm2, SOME, scheme=FORGET)
    assert own.content() != neutral.content()
    assert own.content() == contrast_facts(smollm2, SOME, scheme=FORGET.sentence, control=FORGET.control).content()


def test_unrelated_is_a_template_by_name(smollm2):
    named = contrast_facts(smollm2, SOME, control="unrelated")
    assert named.content() == contrast_facts(smollm2, SOME, control="Do not think of {unrelated}.").content()
    check_aligned(smollm2, named)


def test_a_plain_sentence_and_what_does_not_align(smollm2):
    sentence, tokenizer = "It is a sunny day.", smollm2.lcalens_info.tokenizer
    made = contrast_facts(smollm2, SOME, control=sentence)
    check_aligned(smollm2, made)
    assert set(made.examples["clean_text"]) == {f"{sentence} {text}" for text in made.examples["prompt"]}
    assert set(made.examples["control_word"]) == {None}
    wanted = len(tokenizer(sentence).input_ids)
    fits = [len(tokenizer(f"Do not think of {fact.target_false}.").input_ids) == wanted for fact in SOME]
    assert 0 < sum(fits) < len(SOME)
    assert made.examples["case_id"].tolist() == [fact.case_id for fact, fit in zip(SOME, fits, strict=True) if fit]
    assert Counter(made.excluded["reason"]) == {
        "the control's sentence has more or fewer tokens than the scheme's": len(SOME) - sum(fits)
    }


def test_a_control_of_another_frame(smollm2):
    """The likeliest lengths are those of the whole sentence, not of the object alone."""
    made = contrast_facts(smollm2, SOME, control="We all like {unrelated}.")
    check_aligned(smollm2, made)
    assert len(made) > 0.5 * len(SOME)
    with_subject = contrast_facts(smollm2, SOME, scheme="negation", control="{subject} is about {unrelated}.")
    for row in with_subject.examples.itertuples():
        assert row.clean_text == f"{row.subject} is about {row.control_word}. {row.prompt}"


def test_the_likeliest_come_first(smollm2, monkeypatch):
    monkeypatch.setattr("lcalens.llm.controls._OBJECTS_TRIED", 1)
    made = contrast_facts(
        smollm2, SOME, scheme="Do not speak about {target_false}.", control="We like {unrelated} now."
    )
    assert len(made) > 0.95 * len(SOME)


def test_draws_depend_on_the_seed_and_the_fact_alone(smollm2):
    one = contrast_facts(smollm2, SOME, scheme=FORGET)
    assert one.content() == contrast_facts(smollm2, SOME, scheme=FORGET).content()
    other = contrast_facts(smollm2, SOME, scheme=FORGET, seed=1)
    assert one.examples["control_word"].tolist() != other.examples["control_word"].tolist()
    few = contrast_facts(smollm2, SOME[10:15], scheme=FORGET)
    texts = one.examples.set_index("case_id")["clean_text"]
    assert few.examples["clean_text"].tolist() == texts[few.examples["case_id"]].tolist()


def test_a_control_that_names_an_object_is_left_out(smollm2):
    prompt = {"relation_id": "P36", "prompt": "The capital of {} is"}
    facts = [
        Fact(subject="France", target_true="Paris", target_false="Rome", **prompt),
        Fact(subject="Italy", target_true="Rome", target_false="Berlin", **prompt),
        Fact(subject="Spain", target_true="Madrid", target_false="Berlin", **prompt),
    ]
    made = contrast_facts(smollm2, facts, control="Have a look at Paris.")
    assert made.examples["subject"].tolist() == ["Italy", "Spain"]
    assert made.excluded["reason"].tolist() == ["the control's sentence names one of the objects"]
    with pytest.raises(LcalensError, match=r"\(3: the facts hold no object of another relation\)"):
        contrast_facts(smollm2, facts, scheme=FORGET)


@pytest.mark.parametrize(
    ("control", "said"),
    [
        ("nuetral", r"^control: 'nuetral' is not one of neutral, other, .* Did you mean 'neutral'\?"),
        ("dont-think", r"^control: 'dont-think' is not one of"),
        ("neutral-various", r"^control: 'neutral-various' is not one of"),
        ("Love {target_true}.", r"^control: 'Love {target_true}.' hijacks itself"),
        ("Love {unrelatd}.", r"^control: the template 'Love {unrelatd}.' may hold only"),
        ("Love\u200b it.", r"^control: .* cannot be seen"),
        (3, r"^control: 3 is not one of"),
    ],
)
def test_what_is_no_control(control, said):
    with pytest.raises(LcalensError, match=said):
        read_control(control)
