"""Facts to contrasts: each fact's hijacked prompt against a control whose tokens align with it.

The controls ask different questions: against a *neutral* sentence, which names no object, both where a head looks and
what it recalls may change; against one that names *another object* of the relation, what it recalls.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any, Literal

import pandas as pd

from lcalens.core.checks import check_choice, check_int
from lcalens.core.errors import LcalensError
from lcalens.core.limits import check_length
from lcalens.core.tokens import Answer, Encoded, encode, follow, source_tokenizer, spell
from lcalens.llm.efficacy.measure import SAME_FIRST_TOKEN
from lcalens.llm.facts.facts import Fact, Facts, objects_by_relation
from lcalens.llm.prompts.hijack import HijackedPrompt, hijack_prompts, put_before
from lcalens.llm.prompts.related import EmbeddingNeighbours, RelatedTable
from lcalens.llm.prompts.schemes import Sentence, Surroundings, Wording, find_scheme, neutral_sentences
from lcalens.llm.prompts.words import Impossible
from lcalens.mechanism.contrast.contrast import Contrast

Control = Literal["neutral", "other", "other-object", "none"]
_CONTROLS = {"neutral": "neutral", "other": "other-object", "other-object": "other-object", "none": "none"}
_FIELDS = ("case_id", "relation_id", "subject", "target_true", "target_false")
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
_TRIES = 32


def contrast_facts(
    model: Any,
    facts: Facts | Sequence[Fact],
    *,
    scheme: str = "dont-think",
    n: int = 1,
    control: Control = "neutral",
    related: Literal["table", "embedding"] = "table",
    seed: int = 0,
    limit: int | None = None,
    join: str | None = None,
) -> Contrast:
    """Every fact's prompt behind n sentences of a scheme, against the same prompt behind a control.

    With the controls `neutral` and `other-object` clean and hijacked tokens are equally many, sentence by sentence, and
    those of the prompt the same. Facts without such a control are left out and counted, as are those the scheme has no
    n sentences for and those whose objects begin with the same token.

    Args:
        model: A TransformerBridge; only its source's tokenizer is used, and for `embedding` its embedding.
        facts: The facts, from `load_facts` or a list of `Fact`.
        scheme: A scheme's name, or a template such as `"Forget about {target_false}."`.
        n: How many sentences, at least 1.
        control: By the names that `contrast_concepts` has too. `neutral`: sentences that name no object, drawn for each
            fact among those of as many tokens. `other` (or `other-object`): the scheme's sentences with another object
            of the relation, neither the true nor the false one, drawn among all of as many tokens. `none`: the bare
            prompt, whose tokens align from the end only.
        related: Where the schemes `related-word` and `related-form` take their words: the shipped `table`, or the
            model's own `embedding`.
        seed: Of everything drawn; a fact's draw does not depend on the others.
        limit: The most facts to take, chosen at random and kept in order.
        join: What stands between prompts and objects, such as `" "` or `""`; None finds it (docs/text.md).

    Returns:
        A contrast with the spans `sentence`, `word` (where the scheme works by one), `subject`, `prompt` and `last`.
        Its examples have `case_id`, `relation_id`, `subject`, `target_true`, `target_false`, `true_tokens`,
        `false_tokens` (as the vocabulary spells them), `prompt` (the text), `hijacked_text`, `clean_text`, `word`,
        `control_word`, and `cluster`, the relation, which intervals resample
        whole. `excluded` has `index` (among the facts taken).

    Raises:
        LcalensError: An argument that cannot be used, or no fact gives a contrast; the message says why.

    Example:
        >>> contrast_facts(model, facts, scheme="dont-think", control="other-object")
    """
    n, seed = check_int("n", n, low=1), check_int("seed", seed, low=0)
    kind = _CONTROLS[check_choice("control", control, _CONTROLS)]
    check_choice("related", related, ("table", "embedding"))
    tokenizer = source_tokenizer(model)
    facts = facts if isinstance(facts, Facts) else Facts(facts)
    facts = facts if limit is None else facts.sample(check_int("limit", limit, low=1), seed)
    if not len(facts):
        raise LcalensError("facts: there are none; load some with load_facts().")
    try:
        chosen = find_scheme(scheme)
    except LcalensError as error:
        raise LcalensError("scheme" + str(error).removeprefix("schemes")) from error
    words = (
        RelatedTable(tokenizer)
        if related == "table"
        else EmbeddingNeighbours(model, objects_by_relation(facts).values())
    )
    hijacks = hijack_prompts(facts, chosen.name, counts=(n,), seed=seed, words=words)
    left_out = {item.fact.case_id: item.reason for item in hijacks.impossible}
    pairs = _answered(tokenizer, hijacks.prompts, left_out, join)
    if pairs:
        check_length(model, max(len(pair.encoded.ids) + max(len(pair.true), len(pair.false)) for pair in pairs))
    offers, missing = _offers(tokenizer, pairs, kind, chosen, n, Surroundings(facts, words, seed))
    fitting = _first_fitting(tokenizer, pairs, offers, aligned=kind != "none")
    left_out |= {pair.prompt.fact.case_id: missing for pair, clean in zip(pairs, fitting, strict=True) if clean is None}
    rows = [(pair, *clean) for pair, clean in zip(pairs, fitting, strict=True) if clean is not None]
    if not rows:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in Counter(left_out.values()).most_common())
        raise LcalensError(f"facts: none of {len(facts)} gives a contrast with control={control!r} ({reasons}).")
    return _contrast(tokenizer, facts, rows, left_out)


@dataclass(frozen=True)
class _Pair:
    """A hijacked prompt with its tokens and both answers' tokens."""

    prompt: HijackedPrompt
    encoded: Encoded
    true: tuple[int, ...]
    false: tuple[int, ...]


def _contrast(
    tokenizer: Any,
    facts: Facts,
    rows: Sequence[tuple[_Pair, HijackedPrompt, Encoded]],
    left_out: dict[Any, str],
) -> Contrast:
    """The runs of each hijacked prompt with its control, and a table of what they are and of what was left out."""
    # A table's column is of one type, and its whole numbers are of 64 bits.
    id_type = int if all(isinstance(fact.case_id, int) and abs(fact.case_id) < 1 << 63 for fact in facts) else str
    known = {f.case_id: {name: getattr(f, name) for name in _FIELDS} | {"case_id": id_type(f.case_id)} for f in facts}
    excluded = [
        (i, left_out[fact.case_id], *known[fact.case_id].values())
        for i, fact in enumerate(facts)
        if fact.case_id in left_out
    ]
    spans = [name for name in ("sentence", "word", "subject", "prompt") if rows[0][0].encoded.spans[name]]
    return Contrast(
        [clean.ids for _, _, clean in rows],
        [pair.encoded.ids for pair, _, _ in rows],
        true=[pair.true for pair, _, _ in rows],
        false=[pair.false for pair, _, _ in rows],
        spans={name: [pair.encoded.spans[name] for pair, _, _ in rows] for name in spans},
        examples=pd.DataFrame(
            known[pair.prompt.fact.case_id]
            | {"true_tokens": spell(tokenizer, pair.true), "false_tokens": spell(tokenizer, pair.false)}
            | {"prompt": pair.prompt.fact.text, "hijacked_text": pair.prompt.text, "clean_text": control.text}
            | {"word": pair.prompt.word, "control_word": control.word, "cluster": pair.prompt.fact.relation_id}
            for pair, control, _ in rows
        ),
        excluded=pd.DataFrame(excluded, columns=pd.Index(["index", "reason", *_FIELDS])),
    )


def _offers(
    tokenizer: Any, pairs: Sequence[_Pair], kind: str, scheme: Wording, n: int, around: Surroundings
) -> tuple[list[Iterator[HijackedPrompt]], str]:
    """The controls that each pair may have, the likeliest first, and why a pair has none where none aligns."""
    if kind == "neutral":
        return _neutral(tokenizer, pairs, around.seed), "no neutral sentences of as many tokens"
    if kind == "other-object":
        missing = "no other object of the relation gives sentences of as many tokens"
        return _others(tokenizer, pairs, scheme, n, around), missing
    return [iter([put_before(pair.prompt.fact, "none", [])]) for pair in pairs], ""


def _answered(
    tokenizer: Any, prompts: Sequence[HijackedPrompt], left_out: dict[Any, str], join: str | None
) -> list[_Pair]:
    """The prompts with the answers' tokens as they are in place; those without such are put into `left_out`."""
    plain = encode(tokenizer, [prompt.text for prompt in prompts], spans=[prompt.spans for prompt in prompts])
    answered = []
    for prompt, encoded, true, false in zip(prompts, plain, *_objects_behind(tokenizer, prompts, join), strict=True):
        problem = true.problem or false.problem
        if not problem and true.ids[true.start] == false.ids[false.start]:
            problem = SAME_FIRST_TOKEN
        if problem:
            left_out[prompt.fact.case_id] = problem
        else:
            answered.append(_Pair(prompt, encoded, true.ids[true.start :], false.ids[false.start :]))
    return answered


def _objects_behind(
    tokenizer: Any, prompts: Sequence[HijackedPrompt], join: str | None
) -> tuple[list[Answer], list[Answer]]:
    """The true and the false objects behind the prompts."""
    texts, before = [prompt.text for prompt in prompts], [prompt.fact.text for prompt in prompts]
    true, false = ([getattr(prompt.fact, name) for prompt in prompts] for name in ("target_true", "target_false"))
    objects = follow(tokenizer, texts * 2, true + false, prompts=before * 2, join=join)
    return objects[: len(texts)], objects[len(texts) :]


def _aligns(pair: _Pair, clean: Encoded) -> bool:
    """Whether sentences are as long, one by one, words in the same place, and the prompt's tokens the same."""
    hijacked, first = pair.encoded, pair.encoded.spans["prompt"][0][0]
    return (
        hijacked.ids[first:] == clean.ids[first:]  # and so as many in all
        and hijacked.ids != clean.ids
        and hijacked.spans["sentence"] == clean.spans["sentence"]
        and (not clean.spans["word"] or hijacked.spans["word"] == clean.spans["word"])
    )


def _first_fitting(
    tokenizer: Any, pairs: Sequence[_Pair], offers: Sequence[Iterator[HijackedPrompt]], *, aligned: bool
) -> list[tuple[HijackedPrompt, Encoded] | None]:
    """Each pair's first offer that aligns; all pairs' offers are encoded together, a few of each at a time."""
    fitting: list[tuple[HijackedPrompt, Encoded] | None] = [None] * len(pairs)
    waiting, width = list(range(len(pairs))), 2
    while waiting:
        tried = [(i, offer) for i in waiting for offer in islice(offers[i], width)]
        encoded = encode(tokenizer, [offer.text for _, offer in tried], spans=[offer.spans for _, offer in tried])
        for (i, offer), clean in zip(tried, encoded, strict=True):
            if fitting[i] is None and (not aligned or _aligns(pairs[i], clean)):
                fitting[i] = offer, clean
        waiting = sorted({i for i, _ in tried if fitting[i] is None})
        width = min(2 * width, _TRIES)
    return fitting


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


def _neutral(tokenizer: Any, pairs: Sequence[_Pair], seed: int) -> list[Iterator[HijackedPrompt]]:
    """Prompts with a neutral sentence of as many tokens for each sentence, one for all copies of it."""
    framed, plain = defaultdict(set), defaultdict(set)
    for pool, texts in ((framed, framed_sentences()), (plain, plain_sentences())):
        for text, length in zip(texts, _lengths(tokenizer, "It rained. ", texts), strict=True):
            pool[length].add(text)

    def offers(pair: _Pair) -> Iterator[HijackedPrompt]:
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
    tokenizer: Any, pairs: Sequence[_Pair], scheme: Wording, n: int, around: Surroundings
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
            # The subject may hold an object's name; nothing else in the control may, nor the other way about.
            text = " ".join([name, *(sentence.text.replace(fact.subject, "") for sentence in sentences)])
            if len(sentences) == n and not any(_names(text, word) or _names(word, name) for word in avoided):
                yield put_before(fact, scheme.name, sentences)

    return [offers(pair.prompt.fact) for pair in pairs]


def _lengths(tokenizer: Any, before: str, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has behind another and before a space."""
    spans = [{"text": [(len(before), len(before) + len(text))]} for text in texts]
    encoded = encode(tokenizer, [f"{before}{text} It" for text in texts], spans=spans)
    return [last - first for item in encoded for first, last in item.spans["text"]]


def _names(sentence: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", sentence, re.IGNORECASE) is not None
