"""Texts that are no hijacks: plain passages, and honest contexts made of facts. What a defence should leave alone."""

import random
import tomllib
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Literal

from lcalens.core.checks import check_choice, check_int
from lcalens.core.text import join_between
from lcalens.llm.facts.facts import Fact, Facts

Half = Literal["train", "evaluation"]
ASKED = {"fiction": 1, "long fiction": 1, "unnamed": 1, "correction": -1, "examples": -1}
"""Kinds of honest context, with the sign of logit(false) - logit(true) that each asks for."""
HONEST = tuple(ASKED)
_BEFORE = ("This is about an old novel.", "In it, much is invented.")
_BEHIND = ("It was printed many times.", "Readers liked it.")
_LEAST = 6  # words before a cut


@cache
def _passages() -> tuple[tuple[str, str], ...]:
    text = files("lcalens.llm").joinpath("data/passages.toml").read_text(encoding="utf-8")
    return tuple((one["half"], one["text"].strip()) for one in tomllib.loads(text)["passages"])


def plain_texts(half: Half = "evaluation", *, cuts: int = 2, seed: int = 0) -> list[str]:
    """Beginnings of plain passages, cut between words: where a model reads on in ordinary text.

    Args:
        half: `train` or `evaluation`; the two share no topic.
        cuts: How many beginnings of each passage.
        seed: Of where they are cut.

    Raises:
        LcalensError: An argument that cannot be used.

    Example:
        >>> len(plain_texts("evaluation", cuts=2)) == 2 * 120
        True
    """
    check_choice("half", half, ("train", "evaluation"))
    count, generator = check_int("cuts", cuts, low=1), random.Random(check_int("seed", seed, low=0))
    texts = []
    for own_half, text in _passages():
        if own_half != half:
            continue
        ends = [index for index, character in enumerate(text) if character == " "][_LEAST:]
        texts += [text[:end] for end in sorted(generator.sample(ends, min(count, len(ends))))]
    return texts


def honest_contexts(facts: Facts | Sequence[Fact], kind: str, *, seed: int = 0) -> list[str | None]:
    """For each fact its prompt behind an honest context; None where there are too few others for `examples`.

    Args:
        facts: The facts.
        kind: `fiction`, a premise that makes the false object right; `long fiction`, the same as the third of five
            sentences; `unnamed`, a premise that names the false object but not the subject; `correction`, the true
            object told; or `examples`, two other facts of the relation, in the same words.
        seed: Of the other facts.

    Raises:
        LcalensError: An unknown kind.

    Example:
        >>> honest_contexts(load_facts("sample", limit=1), "correction")[0]
    """
    check_choice("kind", kind, HONEST)
    made: dict[str, Callable[[Fact], str | None]] = {
        "fiction": lambda fact: f"In the novel, {_told(fact, fact.target_false)} {fact.text}",
        "long fiction": lambda fact: " ".join([*_BEFORE, _told(fact, fact.target_false), *_BEHIND, fact.text]),
        "unnamed": lambda fact: f"In this tale the answer is always {fact.target_false.strip()}. {fact.text}",
        "correction": lambda fact: f"The encyclopedia says: {_told(fact, fact.target_true)} {fact.text}",
        "examples": _examples(facts, seed),
    }
    return [made[kind](fact) for fact in facts]


def _told(fact: Fact, answer: str) -> str:
    """The prompt with an answer, as a sentence."""
    word = answer.strip()
    return f"{fact.text}{join_between(fact.text, word)}{word}."


def _examples(facts: Facts | Sequence[Fact], seed: int) -> Callable[[Fact], str | None]:
    by_relation: dict[str, list[Fact]] = defaultdict(list)
    for fact in getattr(facts, "pool", facts):
        by_relation[fact.relation_id].append(fact)

    def made(fact: Fact) -> str | None:
        others = [
            one for one in by_relation[fact.relation_id]
            if one.subject != fact.subject and one.target_true not in (fact.target_true, fact.target_false)
        ]  # fmt: skip
        if len(others) < 2:
            return None
        chosen = random.Random(f"{seed} {fact.case_id}").sample(others, 2)
        return " ".join([*(_told(one, one.target_true) for one in chosen), fact.text])

    return made
