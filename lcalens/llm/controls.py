"""The controls that a hijacked prompt may have: prompts behind other sentences, the likeliest to align first."""

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

from lcalens.core.errors import LcalensError
from lcalens.core.tokens import Encoded, encode
from lcalens.llm.facts.facts import Fact, objects_by_relation
from lcalens.llm.prompts.hijack import HijackedPrompt, put_before
from lcalens.llm.prompts.schemes import Sentence, Surroundings, Wording, fill, neutral_sentences
from lcalens.llm.prompts.words import Impossible

_FRAME = "Do not think of"
_THINGS = (
    "it", "this", "that", "anything", "anyone", "something else", "anything else", "any of it", "any of this",
    "any of that", "anything at all", "anything in particular", "anything else at all",
)  # fmt: skip
_WHEN = (
    "", " now", " again", " for a moment", " at the moment", " for the time being", " yet", " today", " anymore",
    " right now", " just yet", " for now", " at this point", " for a while", " for the next few minutes",
)  # fmt: skip
_WHILE = (
    " as you go on", " while you read", " before you go on", " while you read on", " before you read the rest",
    " while you are reading the rest of this", " before you have read the rest of this page",
    " while you are slowly reading the rest of what is written here",
)  # fmt: skip
_COMPOUNDS = 1200  # of two plain sentences, and as many of three: enough for every length up to some 60 tokens
_TRIES = 32  # of neutral sentences
_OBJECTS_TRIED = 64  # of other relations: the likeliest come first, and where many of them fail, the rest will


@dataclass(frozen=True)
class Pair:
    """A hijacked prompt with its tokens and both answers' tokens."""

    prompt: HijackedPrompt
    encoded: Encoded
    true: tuple[int, ...]
    false: tuple[int, ...]


class Offer(NamedTuple):
    """The controls that a pair may have, the likeliest first, and why it has none where none of them aligns."""

    prompts: Iterator[HijackedPrompt]
    missing: str


def offered(
    tokenizer: Any, pairs: Sequence[Pair], control: str | Wording, scheme: Wording, n: int, around: Surroundings
) -> list[Offer]:
    """What each pair may have for a control.

    Args:
        tokenizer: The model's.
        pairs: The hijacked prompts.
        control: `neutral`, `other-object`, `none`, or the wording of a control's own sentence.
        scheme: What hijacks.
        n: How many sentences.
        around: The facts and the seed.

    Raises:
        LcalensError: `other-object` of a scheme whose sentences name no object.
    """
    if isinstance(control, Wording):
        return _worded(tokenizer, pairs, control, n, around)
    if control == "neutral":
        offers, missing = _neutral(tokenizer, pairs, around.seed), "no neutral sentences of as many tokens"
    elif control == "other-object":
        missing = "no other object of the relation gives sentences of as many tokens"
        offers = _others(tokenizer, pairs, scheme, n, around)
    else:
        offers, missing = [iter([put_before(pair.prompt.fact, "none", [])]) for pair in pairs], ""
    return [Offer(prompts, missing) for prompts in offers]


@cache
def framed_sentences() -> tuple[str, ...]:
    """`Do not think of anything.` and many more in this frame, of five to some twenty words, which name no object."""
    tails = [*_WHEN, *(brief + clause for brief in _WHEN[:6] for clause in _WHILE)]
    return tuple(f"{_FRAME} {noun}{tail}." for noun in _THINGS for tail in tails)


@cache
def plain_sentences() -> tuple[str, ...]:
    """The shipped neutral sentences, and longer ones made by joining two or three of them."""
    single, generator = neutral_sentences(), random.Random(0)
    draws = [generator.sample(single, size) for size in (2, 3) for _ in range(_COMPOUNDS)]
    return (*single, *dict.fromkeys(map(_compound, draws)))


def _compound(sentences: Sequence[str]) -> str:
    *middle, last = (text[0].lower() + text[1:-1] for text in sentences[1:])
    return f"{', '.join([sentences[0][:-1], *middle])}, and {last}."


def _neutral(tokenizer: Any, pairs: Sequence[Pair], seed: int) -> list[Iterator[HijackedPrompt]]:
    """Prompts with a neutral sentence of as many tokens for each sentence, one for all copies of it."""
    framed, plain = defaultdict(set), defaultdict(set)
    for pool, texts in ((framed, framed_sentences()), (plain, plain_sentences())):
        for text, length in zip(texts, _lengths(tokenizer, "It rained. ", texts), strict=True):
            pool[length].add(text)

    def offers(pair: Pair) -> Iterator[HijackedPrompt]:
        prompt, generator = pair.prompt, random.Random(f"{seed}|neutral|{pair.prompt.fact.case_id}")
        sentences = [prompt.text[first:last] for first, last in prompt.spans["sentence"]]
        tokens = [last - first for first, last in pair.encoded.spans["sentence"]]
        avoided = {word for word in (prompt.fact.target_true, prompt.fact.target_false, prompt.word) if word}
        for _ in range(_TRIES):
            chosen: dict[str, str] = {}
            for text, length in dict(zip(sentences, tokens, strict=True)).items():
                likely, rest = (framed, plain) if text.startswith(_FRAME) else (plain, framed)
                free = sorted(likely[length] - {*chosen.values()}) or sorted(rest[length] - {*chosen.values()})
                if not free:
                    return
                chosen[text] = generator.choice(free)
            if not any(_names(sentence, word) for sentence in chosen.values() for word in avoided):
                yield put_before(prompt.fact, "neutral", [Sentence(text=chosen[text]) for text in sentences])

    return [offers(pair) for pair in pairs]


def _role(scheme: Wording) -> str:
    """Which object the scheme's sentences name, or stand near; an error where it is neither."""
    fields = re.findall(r"\{(target_\w+)\}", scheme.name)
    if scheme.role == "control" or (scheme.summary == scheme.name and not fields):
        raise LcalensError(
            f"control: 'other-object' needs a scheme whose sentences name an object, and {scheme.name!r:.80} does not; "
            "use control='neutral'."
        )
    return fields[0] if fields else "target_true" if scheme.role == "reverse" else "target_false"


def _others(
    tokenizer: Any, pairs: Sequence[Pair], scheme: Wording, n: int, around: Surroundings
) -> list[Iterator[HijackedPrompt]]:
    """Prompts with the scheme's sentences for every other object of the relation, at random, the likely ones first."""
    objects, role = objects_by_relation(around.facts), _role(scheme)
    every = sorted({name for names in objects.values() for name in names})
    tokens = dict(zip(every, _lengths(tokenizer, f"{_FRAME} ", every), strict=True))

    def offers(fact: Fact) -> Iterator[HijackedPrompt]:
        avoided = (fact.target_true, fact.target_false)
        names = [name for name in objects[fact.relation_id] if name not in avoided]
        around.generator(fact, "other-object").shuffle(names)
        for name in sorted(names, key=lambda name: tokens[name] != tokens[getattr(fact, role)]):
            try:
                sentences = list(islice(scheme.sentences(replace(fact, **{role: name}), around), n))
            except Impossible:
                continue
            text = " ".join(sentence.text for sentence in sentences)
            if len(sentences) == n and _free_of(fact, text, name):
                yield put_before(fact, scheme.name, sentences)

    return [offers(pair.prompt.fact) for pair in pairs]


def _worded(tokenizer: Any, pairs: Sequence[Pair], control: Wording, n: int, around: Surroundings) -> list[Offer]:
    """Prompts behind n copies of the control's own sentence, with every object of another relation that it may name."""
    if "{unrelated}" in control.name:
        return _unrelated(tokenizer, pairs, control, n, around)
    offers = []
    for pair in pairs:
        fact = pair.prompt.fact
        sentence = fill(control.name, {"subject": fact.subject}, None)
        if _free_of(fact, sentence.text):
            offers.append(Offer(iter([put_before(fact, control.name, [sentence] * n)]), "the control's sentence has "
                                "more or fewer tokens than the scheme's"))  # fmt: skip
        else:
            offers.append(Offer(iter(()), "the control's sentence names one of the objects"))
    return offers


def _unrelated(tokenizer: Any, pairs: Sequence[Pair], control: Wording, n: int, around: Surroundings) -> list[Offer]:
    """The same with an object of another relation, at random, those first that likely give as many tokens."""
    every = sorted({name for names in around.foreign_objects.values() for name in names})
    if not every:
        return [Offer(iter(()), "the facts hold no object of another relation") for _ in pairs]

    def filled(fact: Fact, name: str) -> Sentence:
        return Sentence(text=fill(control.name, {"subject": fact.subject, "unrelated": name}, None).text, word=name)

    tokens = dict(zip(every, _lengths(tokenizer, f"{_FRAME} ", every), strict=True))
    frames = _lengths(tokenizer, "", [filled(pair.prompt.fact, every[0]).text for pair in pairs])

    def offers(pair: Pair, frame: int) -> Iterator[HijackedPrompt]:
        fact, (first, last) = pair.prompt.fact, pair.encoded.spans["sentence"][0]
        wanted = last - first - (frame - tokens[every[0]])
        names = list(around.foreign_objects[fact.relation_id])
        around.generator(fact, "unrelated control").shuffle(names)
        names.sort(key=lambda name: abs(tokens[name] - wanted))
        for name in names[:_OBJECTS_TRIED]:
            sentence = filled(fact, name)
            if _free_of(fact, sentence.text, name):
                yield put_before(fact, control.name, [sentence] * n)

    missing = "no object of another relation gives the control as many tokens"
    return [Offer(offers(pair, frame), missing) for pair, frame in zip(pairs, frames, strict=True)]


def _free_of(fact: Fact, text: str, name: str = "") -> bool:
    """Whether a control names neither object, but for its subject, which may hold one; nor they what it names."""
    rest = f"{name} {text.replace(fact.subject, '')}"
    return not any(
        _names(rest, word) or (name and _names(word, name)) for word in (fact.target_true, fact.target_false)
    )


def _lengths(tokenizer: Any, before: str, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has behind another and before a space."""
    spans = [{"text": [(len(before), len(before) + len(text))]} for text in texts]
    encoded = encode(tokenizer, [f"{before}{text} It" for text in texts], spans=spans)
    return [last - first for item in encoded for first, last in item.spans["text"]]


def _names(sentence: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", sentence, re.IGNORECASE) is not None
