"""What a contrast is made of and asked for, as users give it: rows of token ids, masks, spans, positions, examples.

Clean and hijacked runs align from the end, so positions are counted from there: -1 is the last.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.core.near import did_you_mean
from lcalens.core.tokens import Span, encode

LAST = "last"
_NOT_SPANS = ("all", "each")
_MOST_ID = 1 << 31

Positions = str | int | Sequence[int]
"""`last`, `all`, `each`, a span's name, or indices: negative from the end, else from the hijacked tokens' start."""
Group = tuple[int, ...]
"""Positions that are taken together, counted from the end, in order."""


def read_spans(
    spans: Any,
    lengths: Sequence[int],
    texts: Sequence[str] | None,
    kept: Sequence[Sequence[bool]] | None,
    tokenizer: Any,
) -> dict[str, tuple[tuple[Span, ...], ...]]:
    """Named token spans of each example's hijacked tokens, as a user gives them, and `last`.

    Args:
        spans: Names with a pair (first, one past the last) for every example alike, or for each example a pair or
            several; or, of texts, with words, whose every occurrence is a span.
        lengths: Each example's number of hijacked tokens, without padding.
        texts: The hijacked texts, where the examples were given as such.
        kept: For each example, which of the tokens given are no padding; None where there was no mask.
        tokenizer: What `texts` were encoded with.

    Raises:
        LcalensError: A name that means something else, a span outside the tokens, a word that does not occur.
    """
    token_spans: dict[str, tuple[tuple[Span, ...], ...]] = {}
    if spans is not None and not isinstance(spans, Mapping):
        raise LcalensError(f"spans: expected a mapping from names to token spans, got {spans!r:.60}.")
    for name, places in (spans or {}).items():
        if not isinstance(name, str) or not name or name in _NOT_SPANS:
            raise LcalensError(
                f"spans: {name!r:.60} cannot be a span's name; choose a word other than 'all' and 'each'."
            )
        words = _words(places, len(lengths))
        if words is not None:
            rows = _spans_of_words(name, words, texts, tokenizer)
        else:
            rows = [_pairs(name, row) for row in _each(name, places, len(lengths))]
            if kept is not None:
                rows = [_without_padding(name, row, flags) for row, flags in zip(rows, kept, strict=True)]
        for row, length in zip(rows, lengths, strict=True):
            bad = next((pair for pair in row if not 0 <= pair[0] < pair[1] <= length), None)
            if bad is not None:
                raise LcalensError(f"spans: {name!r} at {bad} is no part of {length} hijacked tokens.")
        token_spans[name] = tuple(rows)
    last = tuple(((length - 1, length),) for length in lengths)
    if token_spans.setdefault(LAST, last) != last:
        raise LcalensError("spans: 'last' is the last token of itself; give another name to what you mean.")
    return token_spans


def place(
    positions: Any, spans: Mapping[str, Sequence[Span]], clean: Sequence[int], hijacked: Sequence[int], example: int
) -> tuple[Group, ...]:
    """The groups of positions that `positions` means in one example, counted from the end.

    Args:
        positions: `last`, `all` (one group), `each` (a group a position), a span's name, an index or several.
        spans: The example's token spans.
        clean: Its clean tokens.
        hijacked: Its hijacked tokens.
        example: Which it is, for errors.

    Raises:
        LcalensError: Unknown positions, or such as the clean run does not have.
    """
    shared = shared_length(clean, hijacked)
    everywhere = tuple(range(-shared, 0))
    if isinstance(positions, str):
        if positions == "all":
            return (everywhere,)
        if positions == "each":
            return tuple((at,) for at in everywhere)
        if positions not in spans:
            lacks = "" if spans else "; this contrast has no spans of its own (Contrast(..., spans=) gives it some)"
            known = [*spans, *_NOT_SPANS]
            raise LcalensError(
                f"positions: {positions!r:.60} is not one of {', '.join(known)}, nor indices{lacks}."
                f"{did_you_mean(positions, known)}"
            )
        offsets = sorted({at - len(hijacked) for first, last in spans[positions] for at in range(first, last)})
        if not offsets:
            raise LcalensError(
                f"positions: example {example} has no span {positions!r}; choose others, contrast[[...]]."
            )
    else:
        indices = [positions] if isinstance(positions, Integral) else _listed(positions)
        if not indices or any(isinstance(at, bool) or not isinstance(at, Integral) for at in indices):
            raise LcalensError(
                f"positions: expected a span's name, 'last', 'all', 'each' or integers, got {positions!r:.60}."
            )
        outside = [at for at in indices if not -len(hijacked) <= int(at) < len(hijacked)]
        if outside:
            raise LcalensError(
                f"positions: {outside[0]!r:.40} is outside the {len(hijacked)} hijacked tokens of example {example}."
            )
        offsets = sorted({int(at) if at < 0 else int(at) - len(hijacked) for at in indices})
    if offsets[0] < -shared:
        raise LcalensError(
            f"positions: {positions!r:.60} reaches {-offsets[0]} tokens back in example {example}, but its "
            f"{len(clean)} clean and {len(hijacked)} hijacked tokens align in the last {shared} only. Use knockout to "
            "take away what the clean run does not have, or a control of equal length."
        )
    return (tuple(offsets),)


def shared_length(clean: Sequence[int], hijacked: Sequence[int]) -> int:
    """How many positions, counted from the end, both runs have.

    All of them where the lengths are equal. Else a first token in common (a BOS) is not one: it stays at the start, so
    it would be lined up with a token in the middle of the longer run.
    """
    shorter = min(len(clean), len(hijacked))
    return max(1, shorter - 1) if len(clean) != len(hijacked) and clean[0] == hijacked[0] else shorter


def rows_of(name: str, examples: Any) -> list[Any]:
    """Examples one by one, from a tensor or sequence of them or from one alone."""
    if isinstance(examples, Tensor | np.ndarray):
        if examples.ndim not in (1, 2) or not len(examples):
            raise LcalensError(
                f"{name}: expected token ids of 1 or 2 dimensions, got the shape {tuple(examples.shape)}."
            )
        return [examples] if examples.ndim == 1 else list(examples)
    if not isinstance(examples, Sequence) or isinstance(examples, bytes) or not examples:
        raise LcalensError(f"{name}: expected text, a tensor of token ids, or sequences of them, got {examples!r:.60}.")
    return [examples] if all(isinstance(item, Integral) for item in examples) else list(examples)


def ids_of(name: str, row: Any) -> Group:
    """A row of token ids as plain integers."""
    listed = row.tolist() if isinstance(row, Tensor | np.ndarray) else row
    if not isinstance(listed, Sequence) or isinstance(listed, str | bytes):
        raise LcalensError(f"{name}: expected a sequence of token ids, got {row!r:.60}.")
    for token in listed:
        if isinstance(token, bool) or not isinstance(token, Integral) or not 0 <= int(token) < _MOST_ID:
            raise LcalensError(f"{name}: {token!r:.60} is no token id; give integers from 0 up.")
    return tuple(int(token) for token in listed)


def mask_of(name: str, mask: Any, ids: Sequence[Sequence[int]]) -> list[list[bool]]:
    """Which of the tokens are kept: one row for each of `ids`."""
    rows = [row.tolist() if isinstance(row, Tensor | np.ndarray) else row for row in rows_of(name, mask)]
    shaped = len(rows) == len(ids) and all(
        isinstance(row, Sequence) and len(row) == len(tokens) for row, tokens in zip(rows, ids, strict=False)
    )
    if not shaped or any(value not in (0, 1) for row in rows for value in row):
        raise LcalensError(f"{name}: expected 0 and 1, one for each token, got {mask!r:.80}.")
    return [[bool(value) for value in row] for row in rows]


def choose(which: Any, size: int) -> list[int]:
    """The indices of the examples that a slice, an index, several indices or a mask means."""
    if isinstance(which, slice):
        indices = list(range(size))[which]
    else:
        listed = which.tolist() if hasattr(which, "tolist") else which
        listed = [listed] if isinstance(listed, Integral) and not isinstance(listed, bool) else listed
        if not isinstance(listed, Sequence) or not all(isinstance(item, Integral) for item in listed):
            raise LcalensError(f"contrast: cannot choose examples by {which!r:.60}; give a slice, indices or a mask.")
        if listed and all(isinstance(item, bool | np.bool_) for item in listed):
            if len(listed) != size:
                raise LcalensError(f"contrast: a mask of {len(listed)} for {size} examples; give one for each.")
            indices = [index for index, chosen in enumerate(listed) if chosen]
        else:
            outside = [item for item in listed if not -size <= int(item) < size]
            if outside:
                raise LcalensError(f"contrast: there is no example {outside[0]!r:.40} among {size}.")
            indices = [int(item) % size for item in listed]
    if not indices:
        raise LcalensError(f"contrast: {which!r:.60} chooses none of the {size} examples.")
    return indices


def _listed(values: Any) -> list[Any]:
    values = values.tolist() if hasattr(values, "tolist") else values
    return list(values) if isinstance(values, Sequence) and not isinstance(values, str | bytes) else []


def _is_pair(value: Any) -> bool:
    return len(value) == 2 and all(isinstance(at, Integral) and not isinstance(at, bool) for at in value)


def _words(words: Any, count: int) -> list[str] | None:
    if isinstance(words, str):
        return [words] * count
    listed = _listed(words)
    return listed if len(listed) == count and all(isinstance(word, str) for word in listed) else None


def _spans_of_words(
    name: str, words: Sequence[str], texts: Sequence[str] | None, tokenizer: Any
) -> list[tuple[Span, ...]]:
    if texts is None:
        raise LcalensError(f"spans: {name!r} names words, but the hijacked tokens are ids; give token spans.")
    for word, text in zip(words, texts, strict=True):
        if not word or word not in text:
            raise LcalensError(f"spans: {name!r} is {word!r:.60}, which does not occur in {text!r:.120}.")
    places = [{name: list(_occurrences(word, text))} for word, text in zip(words, texts, strict=True)]
    return [encoded.spans[name] for encoded in encode(tokenizer, texts, spans=places)]


def _occurrences(word: str, text: str) -> Iterator[Span]:
    at = text.find(word)
    while at >= 0:
        yield at, at + len(word)
        at = text.find(word, at + len(word))


def _each(name: str, places: Any, count: int) -> list[Any]:
    """One item per example; a single pair holds for every example."""
    listed = _listed(places)
    if _is_pair(listed):
        return [listed] * count
    if len(listed) != count:
        raise LcalensError(
            f"spans: {name!r} has {len(listed)} items for {count} examples; give for each a pair (first, one past the "
            "last) or a list of pairs."
        )
    return listed


def _pairs(name: str, places: Any) -> tuple[Span, ...]:
    listed = _listed(places)
    pairs = [listed] if _is_pair(listed) else [_listed(pair) for pair in listed]
    if not all(_is_pair(pair) for pair in pairs) or (not listed and not isinstance(places, list | tuple)):
        raise LcalensError(f"spans: {name!r} holds {places!r:.60}; give pairs of integers (first, one past the last).")
    return tuple((int(first), int(last)) for first, last in pairs)


def _without_padding(name: str, row: tuple[Span, ...], kept: Sequence[bool]) -> tuple[Span, ...]:
    before = list(accumulate(kept, initial=0))  # how many tokens that are kept come before each
    for first, last in row:
        if not 0 <= first < last <= len(kept) or before[first] == before[last]:
            raise LcalensError(
                f"spans: {name!r} at {(first, last)} holds no token of a row of {len(kept)} but padding."
            )
    return tuple((int(before[first]), int(before[last])) for first, last in row)
