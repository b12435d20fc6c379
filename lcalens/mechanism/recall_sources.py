"""What `recall` is asked: sources, answers and what is related, as tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from lcalens.core.errors import LcalensError
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.labels import read_token, tokenizer_of
from lcalens.mechanism.words import tokens_of


@dataclass(frozen=True, eq=False)
class Asked:
    """Sources and answers as tokens.

    Attributes:
        tokens: Each source's.
        names: As they are shown.
        answers: The answers'.
        answer_names: As they are shown.
        own: Where each source's own token stands among the answers.
        related: Which answers are related to each source.
        at: For each example of a contrast the source's position in the hijacked run.
        left_out: Words that are not one token.
    """

    tokens: list[int]
    names: list[str]
    answers: list[int]
    answer_names: list[str]
    own: Int[np.ndarray, " source"]
    related: Bool[np.ndarray, "source answer"]
    at: list[int]
    left_out: list[str]

    def said(self) -> str:
        """What was left out, for an error."""
        return f"; left out as not one token: {', '.join(self.left_out)[:80]}" if self.left_out else ""


def _gathered(
    tokens: list[int],
    names: list[str],
    relations: list[list[int]],
    answers: list[int],
    model: Any,
    *,
    at: list[int],
    left_out: list[str],
) -> Asked:
    place = {token: index for index, token in enumerate(answers)}
    related = np.zeros((len(tokens), len(answers)), dtype=bool)
    for row, some in enumerate(relations):
        related[row, [place[token] for token in some if token in place and token != tokens[row]]] = True
    tokenizer = tokenizer_of(model)
    return Asked(
        tokens, names, answers, [read_token(tokenizer, token) for token in answers],
        np.array([place.get(token, -1) for token in tokens], dtype=np.int64), related, at, left_out,
    )  # fmt: skip


def asked_of_contrast(model: Any, text: Any, contrast: Contrast, related: Any) -> Asked:
    """The hijacking words of a contrast, and the answers that they may bring.

    Args:
        model: A TransformerBridge.
        text: Its tokenizer; None where tokens are no text.
        contrast: With the span `word`, or `redrawn`.
        related: From a source to what is related to it, besides the false answers.

    Raises:
        LcalensError: A contrast without the span, or an example without a place of it.
    """
    span = next((name for name in ("word", "redrawn") if name in contrast.spans), None)
    if span is None:
        raise LcalensError("sources: the contrast has no span 'word'; give Contrast(..., spans={'word': ...}).")
    missing = [example for example, rows in enumerate(contrast.spans[span]) if not rows]
    if missing:
        raise LcalensError(f"sources: example {missing[0]} has no span {span!r}; choose others, contrast[[...]].")
    places = [max(rows, key=lambda place: place[1]) for rows in contrast.spans[span]]
    at = [last - 1 for _, last in places]
    tokens = [run[position] for run, position in zip(contrast.hijacked, at, strict=True)]
    given, _, left_out = tokens_of(model, text, "related", related)
    relations = [list(given.get(token, [])) for token in tokens]
    for some, run, (first, last), false in zip(relations, contrast.hijacked, places, contrast.false, strict=True):
        if not _same_word(text, run[first:last], false):
            some.append(false[0])
    answering = (row[0] for row in (*contrast.true, *contrast.false))
    answers = sorted({*tokens, *answering, *chain.from_iterable(relations)})
    tokenizer = tokenizer_of(model)
    return _gathered(
        tokens, [read_token(tokenizer, token) for token in tokens], relations, answers, model, at=at, left_out=left_out
    )


def _same_word(text: Any, one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two are one word, however it is cut into tokens and whether or not a space stands before it."""
    if text is None or tuple(one) == tuple(other):
        return tuple(one) == tuple(other)
    return str(text.decode(list(one))).strip() == str(text.decode(list(other))).strip()


def asked_of_objects(model: Any, text: Any, objects: Any, related: Any) -> Asked:
    """Words that stand in no run, and what is related to them.

    Args:
        model: A TransformerBridge.
        text: Its tokenizer; None where tokens are no text.
        objects: Words, token ids, or a mapping from each to what is related to it.
        related: From a source to what is related to it, besides those of a mapping.

    Raises:
        LcalensError: Something else.
    """
    if isinstance(objects, str | bytes) or not isinstance(objects, Sequence | Mapping):
        raise LcalensError(f"sources: expected a Contrast, words, token ids or a mapping, got {objects!r:.60}.")
    relations, names, left_out = tokens_of(model, text, "sources", objects)
    given, _, more_left_out = tokens_of(model, text, "related", related)
    relations = {token: [*some, *given.get(token, [])] for token, some in relations.items()}
    tokens = list(relations)
    return _gathered(
        tokens,
        [names[token] for token in tokens],
        list(relations.values()),
        list(dict.fromkeys([*tokens, *chain.from_iterable(relations.values())])),
        model,
        at=[],
        left_out=list(dict.fromkeys([*left_out, *more_left_out])),
    )
