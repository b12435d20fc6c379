"""Hijacked prompts: their text, their spans, what each scheme says, and what it cannot say."""

import random
import re
import unicodedata
from collections import Counter
from dataclasses import replace

import pytest
from helpers import standins
from hypothesis import given, settings
from hypothesis import strategies as st

from lcalens import efficacy
from lcalens.core.errors import LcalensError
from lcalens.core.tokens import encode
from lcalens.llm.facts.facts import Fact, Facts, load_facts
from lcalens.llm.prompts.hijack import check_counts, hijack_prompts
from lcalens.llm.prompts.related import EmbeddingNeighbours, RelatedPair, RelatedTable, related_pairs
from lcalens.llm.prompts.schemes import NEUTRAL, SCHEMES, find_scheme, neutral_sentences, relations

COUNTS = (0, 1, 2, 3, 5, 10)
TEMPLATE = "{subject} and {target_false}, not {target_true}: {unrelated}, {target_false}!"
SAMPLE = load_facts(limit=250)
EVERY = [*SCHEMES, TEMPLATE]


def make(case_id=0, **changes):
    fields = {
        "case_id": case_id,
        "relation_id": "P36",
        "prompt": "The capital of {} is",
        "subject": "France",
        "target_true": "Paris",
        "target_false": "Rome",
    }
    return Fact(**(fields | changes))


def around(fact, *others):
    """The fact with what the schemes need besides: two other relations' facts."""
    extra = [
        make(901, relation_id="P103", prompt="The mother tongue of {} is", subject="Homer", target_true="Greek"),
        make(902, relation_id="P106", prompt="{} works as a", subject="Ibsen", target_true="writer"),
    ]
    return Facts([fact], pool=[fact, *others, *extra])


def other(target, case_id=1, **changes):
    """Another fact of the relation, whose true object is `target`."""
    return make(case_id, **({"subject": "Latium", "target_true": target, "target_false": "Nowhere"} | changes))


def cut(prompt, name):
    return [prompt.text[first:last] for first, last in prompt.spans[name]]


def sentences_of(scheme, fact, *others, n=1, **options):
    (prompt,) = hijack_prompts(around(fact, *others), scheme, counts=(n,), **options).prompts
    return cut(prompt, "sentence")


@pytest.fixture(scope="module")
def made():
    """Every scheme's prompts for the sample's facts, made once."""
    return {scheme: hijack_prompts(SAMPLE, scheme, counts=COUNTS) for scheme in EVERY}


# --- texts and spans ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", EVERY)
def test_texts_are_sentences_and_prompt_joined_by_one_space(made, scheme):
    for prompt in made[scheme].prompts:
        assert prompt.text == " ".join([*cut(prompt, "sentence"), prompt.fact.text])
        assert len(prompt.spans["sentence"]) == prompt.n
        assert prompt.scheme == scheme


@pytest.mark.parametrize("scheme", EVERY)
def test_spans_cut_out_what_they_name(made, scheme):
    for prompt in made[scheme].prompts:
        fact = prompt.fact
        assert set(prompt.spans) == {"sentence", "word", "subject", "prompt"}
        assert cut(prompt, "prompt") == [fact.prompt.replace("{}", fact.subject)]
        assert cut(prompt, "subject") == [fact.subject]
        ((first, _),) = prompt.spans["subject"]
        assert prompt.text[:first].endswith(fact.prompt.split("{}")[0])
        assert set(cut(prompt, "word")) <= {prompt.word}
        if prompt.n == 0:
            assert prompt.word is None
            assert prompt.text == fact.text
        elif prompt.word is None:
            assert scheme in ("neutral", "neutral-various")
        else:
            for start, stop in prompt.spans["sentence"]:
                inside = [place for place in prompt.spans["word"] if start <= place[0] and place[1] <= stop]
                assert len(inside) == (2 if scheme == TEMPLATE else 1)
            assert len(prompt.spans["word"]) == prompt.n * (2 if scheme == TEMPLATE else 1)


@pytest.mark.parametrize("scheme", EVERY)
def test_every_fact_and_n_is_a_prompt_or_impossible(made, scheme):
    found = made[scheme]
    wanted = {(fact.case_id, n) for fact in SAMPLE for n in COUNTS}
    possible = [(item.fact.case_id, item.n) for item in found.prompts]
    impossible = [(item.fact.case_id, item.n) for item in found.impossible]
    assert sorted(possible + impossible) == sorted(wanted)
    assert {fact.case_id for fact in SAMPLE} == {case for case, n in possible if n == 0}
    assert possible == sorted(possible, key=lambda at: ([f.case_id for f in SAMPLE].index(at[0]), at[1]))
    assert found.reasons() == Counter((item.n, item.reason) for item in found.impossible)
    assert all(item.reason and item.scheme == scheme for item in found.impossible)


@pytest.mark.parametrize("scheme", EVERY)
def test_fewer_sentences_are_a_beginning_of_more(made, scheme):
    longest = {}
    for prompt in reversed(made[scheme].prompts):
        sentences = cut(prompt, "sentence")
        more = longest.setdefault(prompt.fact.case_id, sentences)
        assert more[: prompt.n] == sentences


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_token_spans_decode_to_what_they_name(standin, made, family):
    """Tokens hold whole words here, so all that may come along is a space before and a full stop behind."""
    tokenizer = standin(family).tokenizer
    for scheme in EVERY:
        prompts = random.Random(0).sample(made[scheme].prompts, 12)
        encoded = encode(tokenizer, [p.text for p in prompts], spans=[p.spans for p in prompts])
        for prompt, item in zip(prompts, encoded, strict=True):
            for name in ("sentence", "word", "subject", "prompt"):
                assert len(item.spans[name]) == len(prompt.spans[name])
                for (first, last), text in zip(item.spans[name], cut(prompt, name), strict=True):
                    decoded = tokenizer.decode(item.ids[first:last], clean_up_tokenization_spaces=False)
                    assert re.fullmatch(r"\W*" + re.escape(text) + r"[^\w\s]*", decoded), (decoded, text)
                    # And no token less would do.
                    for shorter in ((first + 1, last), (first, last - 1)):
                        assert text not in tokenizer.decode(item.ids[slice(*shorter)])


# --- what each scheme says ------------------------------------------------------------------------------------------


def test_do_not_think():
    assert sentences_of("dont-think", make(), n=3) == ["Do not think of Rome."] * 3
    assert sentences_of("reverse-dont-think", make(), n=2) == ["Do not think of Paris."] * 2
    assert sentences_of("neutral", make(), n=2) == [NEUTRAL] * 2
    assert NEUTRAL == "Do not think of anything."


@pytest.mark.parametrize("relation", sorted(relations()))
def test_negation_names_the_false_object_of_the_subject(relation):
    fact = make(relation_id=relation, subject="Zyx Wvu", target_false="Qponm")
    first, second = sentences_of("negation", fact, n=2)
    assert first == second
    assert first.count("Zyx Wvu") == first.count("Qponm") == 1
    assert first.endswith(".")
    assert "Paris" not in first
    assert re.search(r"\bnot\b", first)


def test_negation_by_hand():
    assert sentences_of("negation", make()) == ["The capital of France is not Rome."]
    twin = make(relation_id="P190", prompt="{} is a twin city of", subject="Lyon", target_false="Milan")
    assert sentences_of("negation", twin) == ["Lyon is not a twin city of Milan."]
    located = make(relation_id="P17", prompt="{} is in", subject="Angkor", target_false="Chile")
    assert sentences_of("negation", located) == ["Angkor is not located in Chile."]


@pytest.mark.parametrize(("scheme", "target"), [("factual", "target_false"), ("reverse-factual", "target_true")])
def test_factual_sentences_are_other_facts_of_the_relation(made, scheme, target):
    possible = [prompt for prompt in made[scheme].prompts if prompt.n]
    assert len(possible) > 200
    for prompt in possible:
        fact, sentences = prompt.fact, cut(prompt, "sentence")
        true = {
            f"{other.text} {other.target_true}.": other.subject
            for other in SAMPLE.pool
            if other.relation_id == fact.relation_id and other.target_true == getattr(fact, target)
        }
        subjects = [true[sentence] for sentence in sentences]
        assert len(set(subjects)) == prompt.n
        assert fact.subject not in subjects
        assert prompt.word == getattr(fact, target)


@pytest.mark.parametrize(("scheme", "target"), [("factual", "target_false"), ("reverse-factual", "target_true")])
def test_factual_uses_every_subject_there_is(made, scheme, target):
    most = Counter()
    for prompt in made[scheme].prompts:
        most[prompt.fact.case_id] = max(most[prompt.fact.case_id], prompt.n)
    for fact in SAMPLE:
        subjects = {
            other.subject
            for other in SAMPLE.pool
            if other.relation_id == fact.relation_id and other.target_true == getattr(fact, target)
        } - {fact.subject}
        assert most[fact.case_id] == max(n for n in COUNTS if n <= len(subjects))


def test_factual_names_each_subject_once():
    """A subject that occurs in several facts is not said twice."""
    twins = [
        other("Rome", i, prompt=prompt)
        for i, prompt in enumerate(["The capital of {} is", "{} has the capital"], start=1)
    ]
    found = hijack_prompts(around(make(), *twins), "factual", counts=(0, 1, 2))
    assert [prompt.n for prompt in found.prompts] == [0, 1]
    assert cut(found.prompts[1], "sentence")[0] in {"The capital of Latium is Rome.", "Latium has the capital Rome."}


def test_factual_draws_from_the_whole_source():
    narrow = Facts([make()], pool=[make(), other("Rome")])
    assert [prompt.n for prompt in hijack_prompts(narrow, "factual", counts=(0, 1)).prompts] == [0, 1]
    assert [prompt.n for prompt in hijack_prompts([make()], "factual", counts=(0, 1)).prompts] == [0]


def test_various_neutral_sentences_are_no_two_alike(made):
    said = set()
    for prompt in made["neutral-various"].prompts:
        sentences = cut(prompt, "sentence")
        assert len(set(sentences)) == len(sentences)
        assert prompt.word is None
        said.update(sentences)
    assert said <= set(neutral_sentences())
    assert len(said) > 20
    assert {prompt.n for prompt in made["neutral-various"].prompts} == set(COUNTS)


def test_unrelated_objects_belong_to_another_relation(made):
    of_relation = {}
    for fact in SAMPLE.pool:
        of_relation.setdefault(fact.relation_id, set()).add(fact.target_true)
    words = []
    for prompt in made["unrelated"].prompts:
        if prompt.n:
            fact = prompt.fact
            assert set(cut(prompt, "sentence")) == {f"Do not think of {prompt.word}."}
            assert prompt.word not in of_relation[fact.relation_id]
            assert any(prompt.word in objects for name, objects in of_relation.items() if name != fact.relation_id)
            assert prompt.word not in (fact.target_true, fact.target_false)
            words.append(prompt.word)
    assert len(set(words)) > 50


# --- related words --------------------------------------------------------------------------------------------------

STRATUM = {"related-word": "associate", "related-form": "form"}


def alike(left, right):
    """Whether two names have a word in common, or words whose first four letters are the same."""
    return any(a == b or (len(a) > 3 and a[:4] == b[:4]) for a in left.lower().split() for b in right.lower().split())


@pytest.mark.parametrize("scheme", STRATUM)
def test_related_words_are_the_tables(made, scheme):
    table = {pair.object: pair.related for pair in related_pairs() if pair.stratum == STRATUM[scheme]}
    possible = [prompt for prompt in made[scheme].prompts if prompt.n]
    assert len(possible) > 100
    for prompt in possible:
        assert prompt.word == table[prompt.fact.target_false]
        assert set(cut(prompt, "sentence")) == {f"Do not think of {prompt.word}."}
        assert prompt.word not in (prompt.fact.target_false, prompt.fact.target_true)
        if scheme == "related-word":
            assert not alike(prompt.word, prompt.fact.target_false)


@pytest.mark.parametrize("scheme", STRATUM)
def test_unrelated_words_are_of_the_same_kind_and_touch_neither_object(made, scheme):
    pairs = [pair for pair in related_pairs() if pair.stratum == STRATUM[scheme]]
    kind_of = {pair.object: pair.kind for pair in pairs}
    near = {}
    for pair in related_pairs():
        near.setdefault(pair.object, set()).add(pair.related)
    control = {"related-word": "unrelated-word", "related-form": "unrelated-form"}[scheme]
    possible = [prompt for prompt in made[control].prompts if prompt.n]
    assert len(possible) > 100
    for prompt in possible:
        fact = prompt.fact
        sources = {pair.object for pair in pairs if pair.related == prompt.word}
        assert kind_of[fact.target_false] in {kind_of[source] for source in sources}
        for target in (fact.target_true, fact.target_false):
            assert prompt.word not in near.get(target, set())
            assert not alike(prompt.word, target)
            assert sources != {target}


def test_words_near_either_object_are_never_the_unrelated_one(monkeypatch):
    """Not even where another object of the table has the same related word."""
    of_table = {
        "Guam": "Hagatna",  # the false object
        "Micronesia": "Hagatna",  # another with the same word
        "Samoa": "Apia",  # the true object
        "Polynesia": "Apia",  # another with the same word
        "Fiji": "Suva",
    }
    pairs = tuple(RelatedPair(name, word, "associate", "city") for name, word in of_table.items())
    monkeypatch.setattr("lcalens.llm.prompts.related.related_pairs", lambda: pairs)
    table = RelatedTable()
    assert {table.unrelated("Guam", ["Samoa"], "associate", random.Random(seed)) for seed in range(40)} == {"Suva"}


@pytest.mark.parametrize("scheme", STRATUM)
def test_a_related_word_and_its_control_exist_together(made, scheme):
    """Else the two would be compared on facts chosen by one of them."""
    control = {"related-word": "unrelated-word", "related-form": "unrelated-form"}[scheme]
    left, right = ({p.fact.case_id for p in made[name].prompts if p.n} for name in (scheme, control))
    assert right <= left
    assert len(left - right) <= 0.02 * len(left)


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_an_associate_shares_no_token_with_its_object(standin, family):
    tokenizer = standin(family).tokenizer
    found = hijack_prompts(SAMPLE, "related-word", counts=(1,), words=RelatedTable(tokenizer))
    assert len(found.prompts) > 20
    for prompt in found.prompts:
        left, right = (
            {i for i in tokenizer(f" {text}", add_special_tokens=False).input_ids if tokenizer.decode([i]).strip()}
            for text in (prompt.word, prompt.fact.target_false)
        )
        assert not left & right, (prompt.word, prompt.fact.target_false)


def test_an_associate_that_shares_a_token_is_refused_and_counted(standin):
    tokenizer = standin("gpt2").tokenizer
    without = hijack_prompts(SAMPLE, "related-word", counts=(1,))
    strict = hijack_prompts(SAMPLE, "related-word", counts=(1,), words=RelatedTable(tokenizer))
    refused = strict.reasons()[1, "the related word shares a token with the object"]
    assert refused > 0  # this tokenizer knows few words, so letters are shared
    assert len(without.prompts) - len(strict.prompts) == refused


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_embedding_neighbours_are_the_nearest_of_another_stem(standin, family):
    import torch

    made = standin(family)
    objects = ["Rome", "Paris", "Oslo", "Greek", "Spanish"]
    words = EmbeddingNeighbours(made.model, [objects])
    weight = made.plain.get_input_embeddings().weight.detach()
    whole = {}
    for token, i in made.tokenizer.get_vocab().items():
        if re.fullmatch(r"[Ġ▁][A-Za-z]{4,}", token):
            whole[token[1:]] = i
    for target in objects:
        ids = set(made.tokenizer(f" {target}", add_special_tokens=False).input_ids)
        mean = weight[sorted(ids)].mean(0) if len(ids) > 1 else weight[next(iter(ids))]
        similar = {
            word: torch.cosine_similarity(weight[i], mean, dim=0).item()
            for word, i in whole.items()
            if word.lower()[:4] != target.lower()[:4] and i not in ids
        }
        assert words.related(target, "associate") == max(similar, key=similar.get)


def test_embedding_neighbours_of_another_object_are_the_control(standin):
    words = EmbeddingNeighbours(standin("gpt2").model, [["Rome", "Paris", "Oslo", "Havana"], ["Greek", "Spanish"]])
    own, true = words.related("Rome", "associate"), words.related("Paris", "associate")
    others = {words.related(name, "associate") for name in ("Oslo", "Havana")}  # of the same kind
    for seed in range(20):
        word = words.unrelated("Rome", ["Paris"], "associate", random.Random(seed))
        assert word in others - {own, true, "Rome", "Paris"}


# --- what is impossible, and why ------------------------------------------------------------------------------------


def reason_of(scheme, facts, **options):
    (item,) = hijack_prompts(facts, scheme, counts=(1,), **options).impossible
    return item.reason


def test_reasons():
    assert "no other subject" in reason_of("factual", around(make()))
    assert "no other subject" in reason_of("reverse-factual", around(make()))
    assert "no negated sentence is known for relation 'P9999'" in reason_of(
        "negation", around(make(relation_id="P9999"))
    )
    nobody = around(make(target_false="Xyzzy"))
    assert "no related word" in reason_of("related-word", nobody)
    assert "no related word" in reason_of("unrelated-word", nobody)
    assert "'form'" in reason_of("related-form", nobody)
    assert "no object of another relation" in reason_of("unrelated", [make()])
    assert "no object of another relation" in reason_of("Forget {unrelated}.", [make()])
    france = around(make(relation_id="P17", target_true="Paris", target_false="France"))
    assert reason_of("related-word", france) == "the related word is the true object"


def test_the_fact_itself_is_no_other_subject():
    again = make(1, prompt="{} has the capital", target_true="Rome", target_false="Paris")
    assert "no other subject" in reason_of("factual", around(make(), again))


def test_too_few_sentences_is_a_reason_of_its_own():
    found = hijack_prompts(around(make(), other("Rome")), "factual", counts=(0, 1, 2, 3))
    assert [prompt.n for prompt in found.prompts] == [0, 1]
    assert found.reasons() == {
        (2, "too few sentences of this kind exist"): 1,
        (3, "too few sentences of this kind exist"): 1,
    }


# --- seeds ----------------------------------------------------------------------------------------------------------


def texts(scheme, facts=SAMPLE[:60], **options):
    return {(prompt.fact.case_id, prompt.n): prompt.text for prompt in hijack_prompts(facts, scheme, **options).prompts}


DRAWN = ["factual", "reverse-factual", "unrelated", "unrelated-word", "unrelated-form", "neutral-various", TEMPLATE]


@pytest.mark.parametrize("scheme", EVERY)
def test_the_seed_decides_what_is_drawn_and_nothing_else(scheme):
    once, again, other = (texts(scheme, counts=(0, 1, 3), seed=seed) for seed in (1, 1, 2))
    assert once == again
    assert (once != other) is (scheme in DRAWN)
    assert once.keys() == other.keys()
    assert texts(scheme, counts=(0, 1, 3)) == texts(scheme, counts=(0, 1, 3), seed=0)


@pytest.mark.parametrize("scheme", EVERY)
def test_a_facts_prompts_do_not_hang_on_the_facts_beside_it(scheme):
    every = texts(scheme, SAMPLE[:40], counts=(0, 2))
    for facts in (SAMPLE[10:12], SAMPLE[39:40]):
        alone = texts(scheme, facts, counts=(0, 2))
        assert alone.items() <= every.items()
    backwards = Facts(list(SAMPLE[:40])[::-1], pool=SAMPLE.pool)
    assert texts(scheme, backwards, counts=(0, 2)) == every


@pytest.mark.parametrize("scheme", EVERY)
def test_counts_do_not_change_one_another(scheme):
    every = texts(scheme, counts=(0, 1, 3, 10))
    assert texts(scheme, counts=(3,)) == {key: text for key, text in every.items() if key[1] == 3}


# --- what stands between ----------------------------------------------------------------------------------------------


def test_sentences_and_prompts_of_other_languages_and_ends():
    japan = make(prompt="{}の首都は", subject="日本", target_true="東京", target_false="大阪")
    for template, prompt, text in (
        (
            "{target_false}のことは考えないで。",
            japan.prompt,
            "大阪のことは考えないで。大阪のことは考えないで。日本の首都は",
        ),
        ("{target_false}不要想", japan.prompt, "大阪不要想大阪不要想日本の首都は"),
        ("Do not think of {target_false}.", japan.prompt, "Do not think of 大阪. Do not think of 大阪. 日本の首都は"),
        ("Not {target_false}!\n", "Q: {}?\nA:\n", "Not 大阪!\nNot 大阪!\nQ: 日本?\nA:\n"),
        ("Not {target_false}.", "\n{} is in ", "Not 大阪. Not 大阪.\n日本 is in "),
    ):
        fact = replace(japan, prompt=prompt)
        (made,) = hijack_prompts([fact], template, counts=(2,)).prompts
        assert made.text == text
        assert cut(made, "prompt") == [fact.text]
        assert cut(made, "sentence") == [template.replace("{target_false}", "大阪")] * 2
        assert set(cut(made, "word")) == {"大阪"}


def test_factual_sentences_are_written_as_their_language_is():
    one = make(prompt="{}の首都は", subject="日本", target_true="東京", target_false="大阪")
    other = make(1, prompt="{}の首都は", subject="某国", target_true="大阪", target_false="東京")
    (made,) = hijack_prompts(Facts([one], pool=[one, other]), "factual", counts=(1,)).prompts
    assert made.text == "某国の首都は大阪。日本の首都は"
    assert cut(made, "word") == ["大阪"]
    one, other = (replace(fact, prompt="Capital of {}?\n") for fact in (one, other))
    (made,) = hijack_prompts(Facts([one], pool=[one, other]), "factual", counts=(1,)).prompts
    assert made.text == "Capital of 某国?\n大阪。Capital of 日本?\n"


# --- braces ---------------------------------------------------------------------------------------------------------

BRACES = ["{x}", "{target_false}", "{}", "{subject} {object}", "}{", "{{0}}", r"\g<0>", "%s {unrelated}"]


@pytest.mark.parametrize("text", BRACES)
@pytest.mark.parametrize("field", ["subject", "target_false", "target_true"])
def test_braces_are_text(field, text):
    for scheme in ("dont-think", "negation", "factual", "reverse-dont-think", TEMPLATE):
        check_braces(scheme, field, text)


def check_braces(scheme, field, text):
    fact = make(**{field: text})
    found = hijack_prompts(around(fact, other(fact.target_false)), scheme, counts=(0, 1))
    assert [prompt.n for prompt in found.prompts] == [0, 1]
    for prompt in found.prompts:
        assert cut(prompt, "subject") == [fact.subject]
        assert cut(prompt, "prompt") == [f"The capital of {fact.subject} is"]
    (sentence,) = cut(found.prompts[1], "sentence")
    said = {
        "dont-think": f"Do not think of {fact.target_false}.",
        "negation": f"The capital of {fact.subject} is not {fact.target_false}.",
        "factual": f"The capital of Latium is {fact.target_false}.",
        "reverse-dont-think": f"Do not think of {fact.target_true}.",
    }
    if scheme in said:
        assert sentence == said[scheme]
    else:
        start = f"{fact.subject} and {fact.target_false}, not {fact.target_true}: "
        assert sentence.startswith(start)
        assert sentence.endswith(f", {fact.target_false}!")
        assert sentence[len(start) : -len(f", {fact.target_false}!")] in {"Greek", "writer"}


def test_a_prompt_may_hold_other_braces():
    fact = make(prompt="In {lang}, {} is called {x}")
    (prompt,) = hijack_prompts([fact], "dont-think", counts=(1,)).prompts
    assert prompt.text == "Do not think of Rome. In {lang}, France is called {x}"
    assert cut(prompt, "subject") == ["France"]


def test_the_subjects_span_is_the_placeholders_and_not_the_first_match():
    fact = make(prompt="is of {} is", subject="is")
    (prompt,) = hijack_prompts([fact], "dont-think", counts=(1,)).prompts
    assert prompt.spans["subject"] == ((len("Do not think of Rome. is of "), len("Do not think of Rome. is of is")),)


names = st.text(
    st.characters(
        codec="utf-8",
        exclude_categories=["Cs", "Cc", "Cf", "Zs", "Zl", "Zp"],
        exclude_characters="\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0",
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(
    names, names, names, st.sampled_from(["dont-think", "negation", "reverse-dont-think", TEMPLATE]), st.integers(1, 4)
)
def test_any_names(subject, true, false, scheme, n):
    if len({unicodedata.normalize("NFC", name).casefold() for name in (true, false)}) < 2 or not (
        subject.strip() and true.strip() and false.strip()
    ):
        return
    fact = make(subject=subject, target_true=true, target_false=false)
    (prompt,) = hijack_prompts(around(fact), scheme, counts=(n,)).prompts
    assert prompt.text == " ".join([*cut(prompt, "sentence"), fact.text])
    assert cut(prompt, "subject") == [fact.subject]
    assert set(cut(prompt, "word")) == {fact.target_true if scheme.startswith("reverse") else fact.target_false}


# --- templates of one's own -----------------------------------------------------------------------------------------


def test_a_template_is_filled():
    (sentence,) = sentences_of("Forget {target_false}; it is {target_true}, {subject}.", make())
    assert sentence == "Forget Rome; it is Paris, France."


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("Forget {target_false} of {subject}.", "Rome"),
        ("{subject} is {target_true}, {target_false}.", "Paris"),
        ("Think of {subject}.", None),
        ("Nothing at all.", None),
    ],
)
def test_the_word_of_a_template_is_its_first_object(template, word):
    (prompt,) = hijack_prompts(around(make()), template, counts=(2,)).prompts
    assert prompt.word == word
    assert cut(prompt, "word") == ([word] * 2 if word else [])


@pytest.mark.parametrize(
    ("template", "role", "control"),
    [
        ("Forget {target_false}.", "hijack", "Forget {unrelated}."),
        ("Forget {unrelated}.", "control", ""),
        ("Not {unrelated} but {target_false}.", "hijack", "neutral"),
        ("It is {target_true}.", "hijack", "neutral"),
        ("{subject} again.", "hijack", "neutral"),
    ],
)
def test_a_templates_control_is_the_same_sentence_about_an_unrelated_object(template, role, control):
    scheme = find_scheme(template)
    assert (scheme.name, scheme.role, scheme.control) == (template, role, control)


def test_a_template_is_compared_with_its_own_control(standin):
    facts = load_facts(standins.capital_records())
    schemes = ("Forget about {target_false}.", "Forget about {unrelated}.", "neutral")
    result = efficacy(standin("gpt2").model, facts, schemes=schemes, counts=(1,), progress=False)
    pairs = set(result.wide("controls")[["scheme", "control"]].itertuples(index=False, name=None))
    assert pairs == {(schemes[0], schemes[1]), (schemes[0], "neutral")}


@pytest.mark.parametrize(
    "template",
    [
        "Forget {object}.",
        "Forget {target_flase}.",
        "Forget {}.",
        "Forget {0}.",
        "Forget {target_false!r}.",
        "Forget {target_false.__class__}.",
        "Forget {target_false.",
        "Forget target_false}.",
        "Forget {{target_false}}.",
        "Forget {target_false}}.",
        "Forget { target_false }.",
    ],
)
def test_a_template_of_other_fields_is_refused(template):
    with pytest.raises(LcalensError, match=r"schemes: the template .* may hold only \{target_false\}, \{target_true\}"):
        hijack_prompts([make()], template)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("dont_think", "dont-think"), ("don't-think", "dont-think"), ("factul", "factual"), ("Neutral", "neutral"),
     ("reverse-factal", "reverse-factual"), ("relatedword", "related-word"), ("negations", "negation")],
)  # fmt: skip
def test_a_misspelt_name_suggests_the_nearest(name, meant):
    with pytest.raises(LcalensError, match=rf"schemes: .*is not known. Did you mean '{meant}'\?") as caught:
        hijack_prompts([make()], name)
    for known in SCHEMES:
        assert known in str(caught.value)


@pytest.mark.parametrize("name", ["", "  ", "zzzz", "☃"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(LcalensError, match=r"schemes: .* is not known") as caught:
        hijack_prompts([make()], name)
    assert "dont-think" in str(caught.value)


def test_every_scheme_is_described():
    assert [scheme.name for scheme in SCHEMES.values()] == list(SCHEMES)
    for scheme in SCHEMES.values():
        assert find_scheme(scheme.name) is scheme
        assert scheme.role in {"hijack", "reverse", "control"}
        assert scheme.summary.strip()
        if scheme.role == "control":
            assert scheme.control == ""
        else:
            assert SCHEMES[scheme.control].role == "control"
    spec = {"dont-think", "negation", "factual", "related-word", "unrelated", "neutral"}
    assert spec <= set(SCHEMES)
    assert {"reverse-dont-think", "reverse-factual"} <= {s.name for s in SCHEMES.values() if s.role == "reverse"}


# --- counts ---------------------------------------------------------------------------------------------------------


def test_counts_come_once_and_in_order():
    assert check_counts((3, 0, 3, 1)) == (0, 1, 3)
    assert check_counts(range(3)) == (0, 1, 2)
    assert check_counts([5]) == (5,)
    found = hijack_prompts([make()], "dont-think", counts=(2, 0, 2)).prompts
    assert [prompt.n for prompt in found] == [0, 2]


@pytest.mark.parametrize("counts", [(), (-1,), (0, -3), (1, True), (False,)])
def test_counts_that_are_none(counts):
    with pytest.raises(LcalensError, match=r"counts: .*whole numbers? from 0 up"):
        hijack_prompts([make()], "dont-think", counts=counts)


def test_facts_with_one_case_id_are_refused():
    with pytest.raises(LcalensError, match="case_id"):
        hijack_prompts([make(), replace(make(), subject="Italy")])
