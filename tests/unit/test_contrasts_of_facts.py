"""Contrasts of facts: aligned tokens, spans that spell their words, controls that name what they should, counts."""

import re

import numpy as np
import pandas as pd
import pytest
from helpers import standins

from lcalens.core.errors import LcalensError
from lcalens.llm.contrasts import contrast_facts
from lcalens.llm.controls import framed_sentences, plain_sentences
from lcalens.llm.facts.facts import Fact, Facts, load_facts
from lcalens.llm.prompts.hijack import hijack_prompts
from lcalens.llm.prompts.schemes import neutral_sentences

SAMPLE = load_facts("sample")
SOME = SAMPLE[::16]
SCHEMES = ("dont-think", "negation", "factual", "related-word", "reverse-dont-think", "Forget about {target_false}.")
LANDS = list(standins.CAPITALS.items())
CAPITALS = Facts(
    Fact(case_id=i, relation_id="P36", prompt="The capital of {} is", subject=land, target_true=city,
         target_false=LANDS[i - 1][1])
    for i, (land, city) in enumerate(LANDS)
)  # fmt: skip
# The small tokenizers know few words, so that a plain sentence has many tokens.
LONG = "Whatever you are told, nobody should ever mention {target_false} again."


@pytest.fixture(scope="module")
def smollm2(real_model):
    return real_model("smollm2")


def says(text, word):
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def before_prompt(row):
    assert row.clean_text.endswith(row.prompt)
    assert row.hijacked_text.endswith(row.prompt)
    return row.clean_text.removesuffix(row.prompt), row.hijacked_text.removesuffix(row.prompt)


@pytest.mark.real
@pytest.mark.parametrize("control", ["neutral", "other-object"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_tokens_are_the_tokenizers_and_all_positions_align(smollm2, scheme, control):
    tokenizer = smollm2.lcalens_info.tokenizer
    made = contrast_facts(smollm2, SOME, scheme=scheme, control=control)
    rows = made.examples
    assert [list(row) for row in made.hijacked] == tokenizer(rows["hijacked_text"].tolist()).input_ids
    assert [list(row) for row in made.clean] == tokenizer(rows["clean_text"].tolist()).input_ids
    assert made.aligned.all()
    for clean, hijacked, ((first, last),) in zip(made.clean, made.hijacked, made.spans["prompt"], strict=True):
        assert clean[first:] == hijacked[first:]
        assert last == len(hijacked)
        assert clean[:first] != hijacked[:first]
    assert len(made) + len(made.excluded) == len(SOME)
    assert set(rows["case_id"]) | set(made.excluded["case_id"]) == {fact.case_id for fact in SOME}
    for index, case_id in zip(made.excluded["index"], made.excluded["case_id"], strict=True):
        assert SOME[int(index)].case_id == case_id


@pytest.mark.real
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_hijacked_text_is_the_schemes(smollm2, scheme):
    made = contrast_facts(smollm2, SOME, scheme=scheme, control="none")
    prompts = {item.fact.case_id: item for item in hijack_prompts(SOME, scheme, counts=(1,)).prompts}
    for row in made.examples.itertuples():
        assert row.hijacked_text == prompts[row.case_id].text
        assert row.clean_text == row.prompt == prompts[row.case_id].fact.text
        assert row.control_word is None
        assert row.cluster == prompts[row.case_id].fact.relation_id  # what intervals resample whole


@pytest.mark.real
@pytest.mark.parametrize("n", [1, 3])
def test_spans_spell_what_they_are_named_for(smollm2, n):
    tokenizer = smollm2.lcalens_info.tokenizer
    made = contrast_facts(smollm2, SOME, n=n)
    assert list(made.spans) == ["sentence", "word", "subject", "prompt", "last"]
    for i, row in enumerate(made.examples.itertuples()):
        text = {name: [tokenizer.decode(made.hijacked[i][a:b]).strip() for a, b in spans[i]] for name, spans in made.spans.items()}  # fmt: skip # noqa: E501
        assert text["sentence"] == [f"Do not think of {row.target_false}."] * n
        assert all(word.rstrip(".") == row.target_false.rstrip(".") for word in text["word"])
        assert len(text["word"]) == n
        # A token that holds the subject's last letters may hold what follows it, "'s" for one.
        assert len(text["subject"]) == 1
        assert row.subject in text["subject"][0]
        assert text["prompt"] == [row.prompt]
        assert text["last"][0] == tokenizer.decode(made.hijacked[i][-1:]).strip()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("control", ["neutral", "other-object", "none"])
def test_answers_follow_both_prompts_in_place(standin, family, control):
    place = standin(family)
    made = contrast_facts(place.model, CAPITALS, scheme=LONG, control=control)
    assert len(made) > 0
    for i, row in enumerate(made.examples.itertuples()):
        for answer, ids in ((row.target_true, made.true[i]), (row.target_false, made.false[i])):
            assert place.tokenizer(f"{row.hijacked_text} {answer}").input_ids == [*made.hijacked[i], *ids]
            assert place.tokenizer(f"{row.clean_text} {answer}").input_ids == [*made.clean[i], *ids]
        assert made.true[i][0] != made.false[i][0]
    assert bool(made.aligned.all()) == (control != "none")


def test_objects_that_begin_alike_are_left_out(standin):
    place = standin("gpt2")
    fact = CAPITALS[0]
    first = place.tokenizer(" Paris").input_ids[0]
    alike = Fact(case_id="x", relation_id="P36", prompt=fact.prompt, subject="Peru", target_true="Paris",
                 target_false="Paris Texas")  # fmt: skip
    assert place.tokenizer(" Paris Texas").input_ids[0] == first
    made = contrast_facts(place.model, [alike, *CAPITALS[:3]], control="none")
    assert made.excluded[["index", "reason", "case_id"]].to_numpy().tolist() == [
        [0, "the objects begin with the same token", "x"]
    ]
    assert made.examples["case_id"].tolist() == ["0", "1", "2"]  # text, as one of them is
    with pytest.raises(LcalensError, match=r"^facts: none of 1 .*\(1: the objects begin with the same token\)"):
        contrast_facts(place.model, [alike], control="none")


@pytest.mark.real
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("scheme", ["dont-think", "negation", "factual"])
def test_neutral_sentences_name_nothing_and_are_as_many(smollm2, scheme, n):
    made = contrast_facts(smollm2, SOME, scheme=scheme, n=n)
    pool = {*framed_sentences(), *plain_sentences()}
    for row in made.examples.itertuples():
        clean, hijacked = before_prompt(row)
        assert not says(clean, row.target_false)
        assert not says(clean, row.target_true)
        # Every way of cutting the text at full stops gives sentences of the pool, as many different ones.
        sentences = re.findall(r"[^.]+\.", clean)
        assert {text.strip() for text in sentences} <= pool
        assert len(sentences) == n
        assert len(set(map(str.strip, sentences))) == (
            1 if len(set(re.split(r"(?<=\.) ", hijacked.strip()))) == 1 else n
        )
        if scheme == "dont-think":
            assert clean.startswith("Do not think of ")


@pytest.mark.real
@pytest.mark.parametrize("scheme", ["dont-think", "reverse-dont-think", "negation", "Forget about {target_false}."])
def test_the_other_object_is_the_relations_and_neither_of_the_two(smollm2, scheme):
    objects = {}
    for fact in SAMPLE:
        objects.setdefault(fact.relation_id, set()).update((fact.target_true, fact.target_false))
    made = contrast_facts(smollm2, SOME, scheme=scheme, control="other-object")
    tokenizer = smollm2.lcalens_info.tokenizer
    role = "target_true" if scheme.startswith("reverse") else "target_false"
    for i, row in enumerate(made.examples.itertuples()):
        assert row.word == getattr(row, role)
        assert row.control_word in objects[row.relation_id] - {row.target_true, row.target_false}
        clean, hijacked = before_prompt(row)
        assert clean == hijacked.replace(row.word, row.control_word)
        for (first, last), clean_ids in ((span, made.clean[i]) for span in made.spans["word"][i]):
            assert tokenizer.decode(clean_ids[first:last]).strip(" .") == row.control_word.strip(".")


@pytest.mark.real
def test_draws_depend_on_the_seed_and_the_fact_alone(smollm2):
    for control in ("neutral", "other-object"):
        one = contrast_facts(smollm2, SOME, control=control)
        assert one.content() == contrast_facts(smollm2, SOME, control=control).content()
        other = contrast_facts(smollm2, SOME, control=control, seed=1)
        assert one.hijacked == other.hijacked
        assert one.examples["clean_text"].tolist() != other.examples["clean_text"].tolist()
        few = contrast_facts(smollm2, SOME[10:15], control=control)
        texts = one.examples.set_index("case_id")["clean_text"]
        assert few.examples["clean_text"].tolist() == texts[few.examples["case_id"]].tolist()


@pytest.mark.real
def test_the_other_object_is_drawn_among_all(smollm2):
    facts = SAMPLE.where(relations="P30")[:1]  # a continent
    drawn = {contrast_facts(smollm2, facts, control="other-object", seed=seed).examples["control_word"][0] for seed in range(40)}  # fmt: skip # noqa: E501
    tokenizer = smollm2.lcalens_info.tokenizer
    length = len(tokenizer(f" {facts[0].target_false}").input_ids)
    named = {name for fact in SAMPLE.where(relations="P30") for name in (fact.target_true, fact.target_false)}
    possible = {name for name in named - {facts[0].target_true, facts[0].target_false} if len(tokenizer(f" {name}").input_ids) == length}  # fmt: skip # noqa: E501
    assert drawn == possible


@pytest.mark.real
def test_limit_takes_a_seeded_sample(smollm2):
    made = contrast_facts(smollm2, SAMPLE, limit=30, seed=3, control="none")
    assert made.examples["case_id"].tolist() == [fact.case_id for fact in SAMPLE.sample(30, 3)]


@pytest.mark.real
def test_facts_without_enough_sentences_are_counted(smollm2):
    made = contrast_facts(smollm2, SAMPLE, scheme="factual", n=7, control="none")
    missing = hijack_prompts(SAMPLE, "factual", counts=(7,)).impossible
    assert dict(zip(made.excluded["case_id"], made.excluded["reason"], strict=True)) == {
        item.fact.case_id: item.reason for item in missing
    }
    assert len(missing) > 0


@pytest.mark.real
@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_nearly_all_facts_of_the_sample_have_a_control(real_model, name):
    model = real_model(name)
    for control in ("neutral", "other-object"):
        made = contrast_facts(model, SAMPLE, control=control)
        assert len(made) > 0.95 * len(SAMPLE)
        if name == "gemma3-270m":
            begin = model.lcalens_info.tokenizer.bos_token_id
            assert {row[0] for row in (*made.clean, *made.hijacked)} == {begin}
            assert all(span[0][0] == 1 for span in made.spans["sentence"])


def test_a_control_that_does_not_name_is_no_span(standin):
    made = contrast_facts(standin("llama").model, CAPITALS, scheme="neutral", control="none")
    assert "word" not in made.spans
    assert made.examples["word"].isna().all()


def test_neutral_sentences_are_sentences():
    assert "Do not think of anything." in framed_sentences()
    assert set(neutral_sentences()) <= set(plain_sentences())
    for sentences in (framed_sentences(), plain_sentences()):
        assert len(set(sentences)) == len(sentences)
        assert all(re.fullmatch(r"[A-Z][A-Za-z ',]*[a-z]\.", text) for text in sentences)
        assert not any(re.search(r"\b(\w+) \1\b|  | ,", text) for text in sentences)
    lengths = np.array([len(text.split()) for text in plain_sentences()])
    assert set(range(2, 45)) <= set(lengths)


def test_examples_can_be_kept_in_a_table(standin, tmp_path):
    made = contrast_facts(standin("llama").model, CAPITALS, scheme=LONG)
    made.examples.to_parquet(tmp_path / "examples.parquet")
    assert pd.read_parquet(tmp_path / "examples.parquet").shape == made.examples.shape
