"""The hijacking schemes and their controls: what sentence each puts before a fact's prompt.

Every scheme is a function of one fact and its surroundings that yields the sentences in order, so that fewer sentences
are always a beginning of more. `Impossible` says why a fact has none.
"""

import random
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from itertools import repeat

from lcalens.core.errors import LcalensError
from lcalens.core.near import did_you_mean
from lcalens.core.reading import Span
from lcalens.core.text import check_written, full_stop, join_between
from lcalens.llm.facts.facts import Fact, Facts
from lcalens.llm.prompts.words import Impossible, RelatedWords

_FIELDS = ("target_false", "target_true", "subject", "unrelated")
DONT_THINK = "Do not think of {target_false}."
NEUTRAL = "Do not think of anything."


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A sentence to put before a prompt.

    Attributes:
        text: The sentence.
        word: The word it works by (an object, a related word), or None where it names none.
        places: The character spans of that word in the sentence.
    """

    text: str
    word: str | None = None
    places: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Surroundings:
    """What a scheme may draw on besides the fact: the other facts, the related words, the seed."""

    facts: Facts
    words: RelatedWords
    seed: int

    @cached_property
    def by_object(self) -> dict[tuple[str, str], dict[str, Fact]]:
        """For each relation and true object, the pool's facts by subject."""
        facts_by_object: dict[tuple[str, str], dict[str, Fact]] = {}
        for fact in self.facts.pool:
            facts_by_object.setdefault((fact.relation_id, fact.target_true), {}).setdefault(fact.subject, fact)
        return facts_by_object

    @cached_property
    def objects(self) -> dict[str, frozenset[str]]:
        """The pool's true objects by relation."""
        targets_by_relation: dict[str, set[str]] = {}
        for fact in self.facts.pool:
            targets_by_relation.setdefault(fact.relation_id, set()).add(fact.target_true)
        return {relation: frozenset(targets) for relation, targets in targets_by_relation.items()}

    @cached_property
    def foreign_objects(self) -> dict[str, tuple[str, ...]]:
        """For each relation, the true objects of the others that are none of its own."""
        every = frozenset().union(*self.objects.values())
        return {relation: tuple(sorted(every - targets)) for relation, targets in self.objects.items()}

    def generator(self, fact: Fact, purpose: str) -> random.Random:
        """A generator that depends on the seed, the fact and the purpose alone."""
        return random.Random(f"{self.seed}|{purpose}|{fact.case_id}")


@cache
def neutral_sentences() -> tuple[str, ...]:
    """The shipped plain sentences that name no object, of two to twenty-two words."""
    return tuple(files("lcalens.llm").joinpath("data/neutral.txt").read_text(encoding="utf-8").splitlines())


@dataclass(frozen=True)
class Wording:
    """One way of putting sentences before a prompt.

    Attributes:
        name: What users call it.
        role: `hijack`, `reverse` (towards the true object) or `control`.
        control: The name of the control that it is compared with; empty for controls.
        summary: What its sentence is, in a line.
        sentences: The sentences for a fact, in order; may raise `Impossible`, at once or when it runs out.
    """

    name: str
    role: str
    control: str
    summary: str
    sentences: Callable[[Fact, Surroundings], Iterator[Sentence]]


def _various(fact: Fact, around: Surroundings) -> Iterator[Sentence]:
    sentences = neutral_sentences()
    for text in around.generator(fact, "neutral-various").sample(sentences, len(sentences)):
        yield Sentence(text=text)


@cache
def relations() -> dict[str, dict[str, str]]:
    """CounterFact's 34 relations: for each its `label` and the `negation` template."""
    return tomllib.loads(files("lcalens.llm").joinpath("data/relations.toml").read_text(encoding="utf-8"))


def fill(template: str, fields: dict[str, str], word: str | None) -> Sentence:
    """A template's sentence, with the places where the field named `word` went.

    Fields are replaced in one pass: a subject that holds braces is text like any other.
    """
    text, places, at = "", [], 0
    for match in re.finditer(r"\{(\w*)\}", template):
        text += template[at : match.start()]
        value = fields[match[1]]
        if match[1] == word:
            places.append((len(text), len(text) + len(value)))
        text += value
        at = match.end()
    return Sentence(text=text + template[at:], word=fields[word] if word else None, places=tuple(places))


def _dont_think(word: str) -> Iterator[Sentence]:
    return repeat(fill(DONT_THINK, {"target_false": word}, "target_false"))


def _negation(fact: Fact, around: Surroundings) -> Iterator[Sentence]:
    relation = relations().get(fact.relation_id)
    if relation is None:
        raise Impossible(f"no negated sentence is known for relation {fact.relation_id!r}")
    return repeat(fill(relation["negation"], {"subject": fact.subject, "object": fact.target_false}, "object"))


def _true_sentences(fact: Fact, target: str, around: Surroundings) -> Iterator[Sentence]:
    """True sentences of the same relation about other subjects whose object is `target`, each subject once."""
    others = around.by_object.get((fact.relation_id, target), {})
    order = sorted(others.keys() - {fact.subject})
    if not order:
        raise Impossible("the facts hold no other subject of this relation with that object")
    around.generator(fact, "factual").shuffle(order)
    for subject in order:
        before = others[subject].text
        try:
            before += join_between(before, target)
        except LcalensError as error:
            raise Impossible(str(error)) from error
        text = f"{before}{target}{full_stop(target)}"
        yield Sentence(text=text, word=target, places=((len(before), len(before) + len(target)),))


def _unrelated_object(fact: Fact, around: Surroundings) -> str:
    foreign = around.foreign_objects.get(fact.relation_id, ())
    candidates = [target for target in foreign if target != fact.target_false]
    if not candidates:
        raise Impossible("the facts hold no object of another relation")
    return around.generator(fact, "unrelated").choice(candidates)


def _related(stratum: str) -> Callable[[Fact, Surroundings], Iterator[Sentence]]:
    def sentences(fact: Fact, around: Surroundings) -> Iterator[Sentence]:
        word = around.words.related(fact.target_false, stratum)
        if word == fact.target_true:
            raise Impossible("the related word is the true object")
        return _dont_think(word)

    return sentences


def _not_related(stratum: str) -> Callable[[Fact, Surroundings], Iterator[Sentence]]:
    def sentences(fact: Fact, around: Surroundings) -> Iterator[Sentence]:
        if around.words.related(fact.target_false, stratum) == fact.target_true:
            raise Impossible("the related word is the true object")
        generator = around.generator(fact, f"unrelated {stratum}")
        return _dont_think(around.words.unrelated(fact.target_false, [fact.target_true], stratum, generator))

    return sentences


_BUILT_IN = (
    Wording(
        "dont-think", "hijack", "unrelated", "Do not think of {false object}.",
        lambda fact, around: _dont_think(fact.target_false),
    ),
    Wording(
        "negation", "hijack", "neutral", "a true negated sentence: {subject} is not in {false object}.", _negation,
    ),
    Wording(
        "factual", "hijack", "neutral-various", "true sentences about other subjects whose object is the false one",
        lambda fact, around: _true_sentences(fact, fact.target_false, around),
    ),
    Wording(
        "related-word", "hijack", "unrelated-word", "Do not think of {a word near the false object}.",
        _related("associate"),
    ),
    Wording(
        "related-form", "hijack", "unrelated-form", "Do not think of {another form of the false object}.",
        _related("form"),
    ),
    Wording(
        "reverse-dont-think", "reverse", "unrelated", "Do not think of {true object}.",
        lambda fact, around: _dont_think(fact.target_true),
    ),
    Wording(
        "reverse-factual", "reverse", "neutral-various", "true sentences about other subjects with the true object",
        lambda fact, around: _true_sentences(fact, fact.target_true, around),
    ),
    Wording(
        "unrelated", "control", "", "Do not think of {an object of another relation}.",
        lambda fact, around: _dont_think(_unrelated_object(fact, around)),
    ),
    Wording(
        "neutral", "control", "", f"{NEUTRAL} (names no object)",
        lambda fact, around: repeat(Sentence(text=NEUTRAL)),
    ),
    Wording("neutral-various", "control", "", "plain sentences that name no object, no two alike", _various),
    Wording(
        "unrelated-word", "control", "", "related-word's sentence with another object's related word",
        _not_related("associate"),
    ),
    Wording(
        "unrelated-form", "control", "", "related-form's sentence with another object's form", _not_related("form"),
    ),
)  # fmt: skip
SCHEMES: dict[str, Wording] = {scheme.name: scheme for scheme in _BUILT_IN}


def find_scheme(name: str) -> Wording:
    """A scheme by name, or a user's own template such as `"Forget about {target_false}."`.

    A template may hold `{target_false}`, `{target_true}`, `{subject}` and `{unrelated}` (a random object of another
    relation). Its hijacking word is the first of the objects it names. One that names `{unrelated}` and neither object
    is a control, and that of the template which has `{target_false}` in the same place, where both are measured.

    Raises:
        LcalensError: Neither a known name nor a template of these fields.
    """
    if not isinstance(name, str):
        raise LcalensError(f"schemes: expected names or templates, got {name!r:.60} ({type(name).__name__}).")
    check_written("schemes", name)
    if name in SCHEMES:
        return SCHEMES[name]
    if not re.search(r"[\s{}]", name.strip()):
        raise LcalensError(
            f"schemes: {name!r} is not known.{did_you_mean(name, SCHEMES)} Known: {', '.join(SCHEMES)}; or give a "
            "sentence such as 'Forget about {target_false}.'"
        )
    fields = re.findall(r"\{(\w*)\}", name)
    strange = [field for field in fields if field not in _FIELDS]
    if strange or re.search(r"[{}]", re.sub(r"\{\w*\}", "", name)) or not name.strip():
        raise LcalensError(
            f"schemes: the template {name!r:.120} may hold only {', '.join('{' + field + '}' for field in _FIELDS)}."
        )
    word = next((field for field in fields if field != "subject"), None)

    def sentences(fact: Fact, around: Surroundings) -> Iterator[Sentence]:
        values = {"target_false": fact.target_false, "target_true": fact.target_true, "subject": fact.subject}
        if "unrelated" in fields:
            values["unrelated"] = _unrelated_object(fact, around)
        return repeat(fill(name, values, word))

    names_none = "unrelated" in fields and not {"target_false", "target_true"} & set(fields)
    matched = "target_false" in fields and "unrelated" not in fields
    control = name.replace("{target_false}", "{unrelated}") if matched else "neutral"
    if names_none:
        return Wording(name, "control", "", name, sentences)
    return Wording(name, "hijack", control, name, sentences)
