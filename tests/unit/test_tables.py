"""The tables that ship with lcalens: as large, and as careful, as the schemes that use them promise."""

import re
import tomllib
from collections import Counter, defaultdict
from importlib.resources import files

import pytest

from lcalens.llm.facts.facts import load_facts
from lcalens.llm.prompts.related import STRATA, related_pairs
from lcalens.llm.prompts.schemes import NEUTRAL, relations

DATA = files("lcalens.llm").joinpath("data")
# CounterFact's relations, as its authors give them.
NUMBERS = (17, 19, 20, 27, 30, 36, 37, 39, 101, 103, 106, 108, 127, 131, 136, 138, 140, 159, 176, 178, 190, 264, 276)
COUNTERFACT = [f"P{number}" for number in (*NUMBERS, 364, 407, 413, 449, 463, 495, 641, 740, 937, 1303, 1412)]
PAIRS = related_pairs()
FORMS = [pair for pair in PAIRS if pair.stratum == "form"]
ASSOCIATES = [pair for pair in PAIRS if pair.stratum == "associate"]


def name_of(pair):
    return f"{pair.object}: {pair.related}"


def pieces(text, size=4):
    """Every run of so many letters, in lower case, within words."""
    return {word[i : i + size] for word in re.findall(r"\w+", text.lower()) for i in range(len(word) - size + 1)}


# --- relations ------------------------------------------------------------------------------------------------------


def test_there_are_counterfacts_34_relations():
    assert len(COUNTERFACT) == 34
    assert sorted(relations()) == sorted(COUNTERFACT)
    assert {fact.relation_id for fact in load_facts().pool} <= set(relations())


@pytest.mark.parametrize("relation", COUNTERFACT)
def test_a_negation_names_subject_and_object_once(relation):
    entry = relations()[relation]
    assert set(entry) == {"label", "negation"}
    assert entry["label"].strip() == entry["label"] != ""
    template = entry["negation"]
    assert sorted(re.findall(r"\{.*?\}", template)) == ["{object}", "{subject}"]
    assert not re.search(r"[{}]", template.replace("{object}", "").replace("{subject}", ""))
    assert re.search(r"\b(not|never|no)\b", template)
    assert template.endswith(".")
    assert template.count(".") == 1
    assert not template[0].islower()
    assert "  " not in template


def test_labels_tell_relations_apart():
    assert len({entry["label"] for entry in relations().values()}) == 34


# --- related words --------------------------------------------------------------------------------------------------


def test_there_are_enough_pairs():
    assert len(PAIRS) >= 60
    assert Counter(pair.stratum for pair in PAIRS).keys() == set(STRATA)
    assert min(Counter(pair.stratum for pair in PAIRS).values()) >= 30


def test_the_table_is_what_the_file_holds():
    raw = tomllib.loads(DATA.joinpath("related_words.toml").read_text(encoding="utf-8"))["pairs"]
    assert [(p["object"], p["related"], p["stratum"], p["kind"]) for p in raw] == [
        (p.object, p.related, p.stratum, p.kind) for p in PAIRS
    ]


def test_an_object_has_one_word_in_a_stratum():
    twice = [key for key, count in Counter((pair.object, pair.stratum) for pair in PAIRS).items() if count > 1]
    assert twice == []


def test_a_related_word_belongs_to_one_object():
    """So that related and unrelated words are the same words, dealt out differently."""
    assert len({pair.related for pair in PAIRS}) == len(PAIRS)


def test_words_are_clean():
    for pair in PAIRS:
        for text in (pair.object, pair.related, pair.kind):
            assert text == " ".join(text.split()) != ""
            assert text.isprintable()
        assert pair.object.casefold() != pair.related.casefold()


@pytest.mark.parametrize("pair", ASSOCIATES, ids=name_of)
def test_an_associate_is_another_word_altogether(pair):
    assert not pieces(pair.object) & pieces(pair.related)
    left, right = ({word.lower() for word in text.split()} for text in (pair.object, pair.related))
    assert not left & right
    for word in left:
        for other in right:
            assert word[:4] != other[:4]
            if min(len(word), len(other)) >= 4:
                assert word not in other
                assert other not in word


def test_a_form_is_another_form_of_the_same_word():
    """They begin alike, but for a few that changed on the way (Dutch: Netherlands has no form here)."""
    alike = [pair for pair in FORMS if pair.object.lower()[:3] == pair.related.lower()[:3]]
    assert len(alike) >= 0.9 * len(FORMS)
    for pair in FORMS:
        assert pair.object[0].lower() == pair.related[0].lower(), name_of(pair)


def test_every_kind_has_words_to_choose_from():
    """The unrelated word comes from another pair of the same stratum and kind."""
    kinds = defaultdict(set)
    for pair in PAIRS:
        kinds[pair.stratum, pair.kind].add(pair.related)
    few = {kind: sorted(found) for kind, found in kinds.items() if len(found) < 5}
    assert few == {}


def test_the_table_serves_the_sample():
    objects = {pair.object for pair in ASSOCIATES}
    facts = load_facts()
    assert sum(fact.target_false in objects for fact in facts) >= 0.9 * len(facts)
    assert {pair.object for pair in FORMS} & {fact.target_false for fact in facts}


# --- neutral sentences ----------------------------------------------------------------------------------------------


def test_neutral_sentences_name_nothing():
    lines = DATA.joinpath("neutral.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 20
    assert len(set(lines)) == len(lines)
    facts = load_facts().pool
    named = {text for fact in facts for text in (fact.target_true, fact.target_false, fact.subject)}
    named |= {text for pair in PAIRS for text in (pair.object, pair.related)}
    for line in [*lines, NEUTRAL]:
        assert re.fullmatch(r"[A-Z][^.{}]*\.", line), line
        assert line.isascii()
        words = re.findall(r"\w+", line)
        phrases = {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
        assert not phrases & named, line
        # No proper names: nothing but the first word is written with a capital.
        assert not re.search(r" (?!I\b)[A-Z]", line), line
