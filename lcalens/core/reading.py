"""A tokenizer's tokens of a text as a model is to read them: nothing behind the text, one BOS, and what is unknown."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lcalens.core.errors import LcalensError

Span = tuple[int, int]
"""First and one past the last: of characters in a text, or of tokens in its ids."""


@dataclass(frozen=True)
class Row:
    """A text's tokens as they are read, which characters each covers, and how much the vocabulary does not have."""

    ids: list[int]
    offsets: list[Span]
    unknown: int


def read(tokenizer: Any, texts: Sequence[str], chat: bool) -> list[Row]:
    """Each text's tokens, without special tokens behind it and with one BOS at most."""
    options: dict[str, Any] = {"add_special_tokens": not chat, "padding": False, "truncation": False}
    if not getattr(tokenizer, "is_fast", False):
        return [_row(tokenizer, *row, chat=chat) for row in _slow_rows(tokenizer, texts, options)]
    dropout = getattr(getattr(tokenizer.backend_tokenizer, "model", None), "dropout", None)
    if dropout:
        raise LcalensError(
            f"texts: this tokenizer cuts words at random (dropout={dropout}), so that a text has new tokens each time; "
            "set tokenizer.backend_tokenizer.model.dropout = None."
        )
    batch = tokenizer(list(texts), return_offsets_mapping=True, return_special_tokens_mask=True, **options)
    ids, offsets, added = (batch[name] for name in ("input_ids", "offset_mapping", "special_tokens_mask"))
    return [_row(tokenizer, *row, chat=chat) for row in zip(texts, ids, offsets, added, strict=True)]


def _row(tokenizer: Any, text: str, ids: list[int], offsets: list[Span], added: Sequence[int], chat: bool) -> Row:
    first, last = 0, len(ids)
    while first < last and added[first]:
        first += 1
    while last > first and added[last - 1]:
        last -= 1
    bos = tokenizer.bos_token_id
    if first == last:  # an empty text has no middle: what ends texts, ends it as well
        ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {bos}
        while first and ids[first - 1] in ends:
            first -= 1
        last = first
    begin = first
    while bos is not None and ids[begin : begin + 1] == [bos]:
        begin += 1
    bos_in_text = begin - first
    if bos_in_text > 1 and not chat:
        raise LcalensError(
            f"texts: {text!r:.60} begins with {tokenizer.bos_token!r} twice; a model reads one: leave the other out."
        )
    if bos_in_text and ids[first - 1 : first] != [bos]:
        begin -= 1  # the text's own, where the tokenizer adds none
    unknown = _uncovered(text, offsets)
    if tokenizer.unk_token_id in (body := ids[begin:last]):
        unknown += max(0, body.count(tokenizer.unk_token_id) - text.count(tokenizer.unk_token))
    return Row(ids[:first] + body, offsets[:first] + offsets[begin:last], unknown)


def _uncovered(text: str, offsets: Sequence[Span]) -> int:
    """How many characters have no token: some tokenizers drop what they do not know."""
    end = missing = 0
    for start, stop in [*offsets, (len(text), len(text))]:
        if start > end:
            missing += sum(map(_stands_alone, text[end:start]))
        end = max(end, stop)
    return missing


def _stands_alone(character: str) -> bool:
    # A mark or a Hangul part that a tokenizer composes with the character before it has that one's token.
    return not (
        character.isspace() or unicodedata.category(character) in ("Mn", "Mc") or "\u1160" <= character <= "\u11ff"
    )


def _slow_rows(
    tokenizer: Any, texts: Sequence[str], options: dict[str, Any]
) -> Iterator[tuple[str, list[int], list[Span], list[int]]]:
    """Texts, ids, offsets and which tokens were added, of a tokenizer that tells ids only."""
    for text in texts:
        ids = tokenizer(text, **options)["input_ids"]
        plain = tokenizer(text, **options | {"add_special_tokens": False})["input_ids"]
        starts = range(len(ids) - len(plain) + 1)
        first = next((at for at in starts if plain and ids[at : at + len(plain)] == plain), len(ids))
        added = [int(not first <= at < first + len(plain)) for at in range(len(ids))]
        yield text, ids, _offsets_by_prefix(tokenizer, text, ids, options), added


def _offsets_by_prefix(tokenizer: Any, text: str, ids: Sequence[int], options: dict[str, Any]) -> list[Span]:
    """Character offsets for a tokenizer that keeps none: a token ends where a prefix of the text first contains it."""
    offsets: list[Span] = []
    start = 0
    for end in range(len(text) + 1):
        prefix = tokenizer(text[:end], **options)["input_ids"]
        known = len(offsets)
        while len(offsets) < len(ids) and len(prefix) > len(offsets) and _agree(prefix, ids, len(offsets) + 1):
            offsets.append((start, end))  # several tokens may spell one character
        if len(offsets) > known:
            start = end
    offsets += [(start, len(text))] * (len(ids) - len(offsets))
    special = set(tokenizer.all_special_ids)
    return [(0, 0) if token in special else place for token, place in zip(ids, offsets, strict=True)]


def _agree(left: Sequence[int], right: Sequence[int], count: int) -> bool:
    return list(left[:count]) == list(right[:count])
