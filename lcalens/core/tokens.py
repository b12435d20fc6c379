"""Text to token ids and spans, for every room: one function, so that nobody's BOS rule slips in unseen.

The ids are what the source's own Hugging Face tokenizer gives for the text, never those of the bridge's copy, which
adds a BOS by a rule of its own. Two things are mended (docs/text.md): special tokens that a tokenizer puts *behind* a
text are dropped, as the model is to continue the text, and a BOS is never there twice.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lcalens.core.chat import chat_prompt, reply_join, text_start
from lcalens.core.errors import LcalensError
from lcalens.core.limits import check_length
from lcalens.core.provenance import model_info
from lcalens.core.reading import Row, Span, read
from lcalens.core.text import check_join, check_text, join_between, word_of

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Encoded:
    """One text's token ids, with the token spans of whatever character spans were asked for.

    Attributes:
        ids: Token ids, special tokens at the beginning included.
        spans: For each name, the token spans in the order of the character spans given.
        unknown: How much the vocabulary does not have: tokens that are `<unk>`, and characters that were dropped.
    """

    ids: Ids
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    unknown: int = 0


@dataclass(frozen=True)
class Answer:
    """An answer behind a prompt: `ids[start:]` are its tokens, scored given all before them.

    Attributes:
        ids: The prompt's and the answer's tokens.
        start: The first token of the answer.
        join: What stands between the two.
        problem: Why the answer cannot be scored exactly; empty where it can.
    """

    ids: Ids
    start: int
    join: str
    problem: str = ""


@dataclass(frozen=True)
class TokenBatch:
    """Texts as one left-padded batch, ready for a forward pass.

    Attributes:
        ids: Token ids, padding on the left.
        attention_mask: 1 on tokens, 0 on padding.
        position_ids: 0, 1, 2, ... from each text's first token; 0 on padding.
        spans: Each text's token spans, counted in the padded row.
    """

    ids: Int[Tensor, "batch position"]
    attention_mask: Int[Tensor, "batch position"]
    position_ids: Int[Tensor, "batch position"]
    spans: tuple[Mapping[str, tuple[Span, ...]], ...]


def source_tokenizer(model: Any) -> Any:
    """The tokenizer of the model's source, untouched by TransformerLens.

    Args:
        model: A TransformerBridge. One that `load_model` made carries its tokenizer; for another it is loaded anew
            from where the bridge's own came from.

    Raises:
        LcalensError: The bridge has no tokenizer, or its source cannot be found again.
    """
    tokenizer = model_info(model).tokenizer
    if tokenizer is not None:
        return tokenizer
    place = getattr(getattr(model, "tokenizer", None), "name_or_path", "")
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:
        raise LcalensError(
            f"model: this TransformerBridge's source tokenizer cannot be found again (name_or_path={place!r}). "
            "Make the bridge with lcalens.load_model(hf_model, tokenizer=tokenizer)."
        ) from error


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    *,
    spans: Sequence[Mapping[str, Sequence[Span]]] | None = None,
    answers: Sequence[str] | None = None,
    join: str | None = None,
    chat: bool = False,
) -> list[Encoded]:
    """Token ids as `tokenizer(text)` gives them, with character spans turned into token spans.

    A token belongs to a span when it covers at least one of its characters, so a byte-level token that holds a word's
    leading space belongs to the word.

    Args:
        tokenizer: A Hugging Face tokenizer, as its source loads it.
        texts: The texts.
        spans: For each text, names with character spans in it.
        answers: For each text, the word that follows it, put there by `follow`. Its tokens are the span `answer`, which
            holds the space before the word where that is a token of its own.
        join: What stands before every answer; None finds it.
        chat: Put each text as the user's turn of the tokenizer's chat template, up to where the assistant's reply
            begins. Spans still count characters of the bare text.

    Raises:
        LcalensError: A text is not a string or holds characters that UTF-8 cannot write; spans do not match the texts;
            an answer that cannot be scored exactly; `chat` without a chat template, or one that cannot be followed.
    """
    _check_texts(texts, spans=spans, answers=answers)
    if not texts:
        return []
    wholes = _wholes(tokenizer, texts, chat)
    start = text_start(tokenizer, wholes, texts) if chat else 0
    encoded = []
    for row, names in zip(read(tokenizer, wholes, chat), spans or [{}] * len(texts), strict=True):
        token_spans = {
            name: tuple(_token_span(row.offsets, (first + start, last + start), name) for first, last in places)
            for name, places in names.items()
        }
        encoded.append(Encoded(tuple(row.ids), token_spans, row.unknown))
    if answers is None:
        return encoded
    followed = follow(tokenizer, texts, answers, join=join, chat=chat)
    check_answers("answers", answers, followed)
    return [
        Encoded(item.ids, {**plain.spans, "answer": ((item.start, len(item.ids)),)}, plain.unknown)
        for item, plain in zip(followed, encoded, strict=True)
    ]


def follow(
    tokenizer: Any,
    texts: Sequence[str],
    answers: Sequence[str],
    *,
    prompts: Sequence[str] | None = None,
    join: str | None = None,
    chat: bool = False,
    argument: str = "answers",
) -> list[Answer]:
    """For each text, the tokens of the answer behind it: the one rule of this library (docs/text.md).

    An answer is a word, written with or without a space before it. Between text and word stands what the language and
    the text's end ask for, or `join`, or in a chat what the template writes before a reply. The answer's tokens are
    those behind the text's own in the tokens of the two together. Where these do not begin with the text's own, a token
    reaches from one into the other, and the answer has a problem instead.

    Args:
        tokenizer: A Hugging Face tokenizer.
        texts: The texts.
        answers: A word for each.
        prompts: For each text, the part of it that the join is found from: a prompt without the sentences before it.
        join: White space that stands before every answer.
        chat: Texts are users' turns of the chat template, answers the beginnings of the replies.
        argument: What to call the answers in errors.

    Raises:
        LcalensError: A malformed answer or join; a chat template that is missing or cannot be followed.
    """
    check_join(join)
    _check_texts(texts, answers=answers)
    if not texts:
        return []
    for answer in answers:
        check_text(argument, answer)
    words = {answer: word_of(argument, answer) for answer in dict.fromkeys(answers)}
    spaced = next((answer for answer in words if answer.startswith(" ")), None)
    if join is not None and spaced is not None and not join.endswith(" "):
        raise LcalensError(
            f"{argument}: {spaced!r:.60} begins with a space and join={join!r} ends without one; give one of them."
        )
    wholes = _wholes(tokenizer, texts, chat)
    if chat:
        text_start(tokenizer, wholes, texts)
        join = reply_join(tokenizer, list(words.values())) if join is None else join
    joins = [
        _join(prompt, answer, words[answer], join) for prompt, answer in zip(prompts or texts, answers, strict=True)
    ]
    pieces = [(whole, space, words[a]) for whole, a, (space, _) in zip(wholes, answers, joins, strict=True)]
    # Every text has several answers, and many texts the same: each is read once, in one batch of the tokenizer.
    texts_alone, texts_answered = list(dict.fromkeys(wholes)), list(dict.fromkeys(pieces))
    composed = [piece for piece in texts_answered if not unicodedata.is_normalized("NFC", piece[2])]
    rows = read(
        tokenizer,
        [
            *texts_alone,
            *("".join(piece) for piece in texts_answered),
            *(before + space + unicodedata.normalize("NFC", word) for before, space, word in composed),
        ],
        chat,
    )
    alone = dict(zip(texts_alone, rows, strict=False))
    answered = dict(zip(texts_answered, rows[len(alone) :], strict=False))
    usual = dict(zip(composed, rows[len(alone) + len(answered) :], strict=True))
    answer_of = {
        piece: _answer(piece, alone[piece[0]], answered[piece], usual.get(piece, answered[piece]))
        for piece in texts_answered
    }
    return [
        Answer(answer_of[piece].ids, answer_of[piece].start, piece[1], problem or answer_of[piece].problem)
        for piece, (_, problem) in zip(pieces, joins, strict=True)
    ]


def check_answers(argument: str, answers: Sequence[str], followed: Sequence[Answer]) -> None:
    """Refuse answers that cannot be scored exactly.

    Raises:
        LcalensError: The first of them that has a problem.
    """
    for answer, item in zip(answers, followed, strict=True):
        if item.problem:
            raise LcalensError(f"{argument}: {answer!r:.60}: {item.problem}.")


def _wholes(tokenizer: Any, texts: Sequence[str], chat: bool) -> list[str]:
    if not chat:
        return list(texts)
    rendered = {text: chat_prompt(tokenizer, text) for text in dict.fromkeys(texts)}
    return [rendered[text] for text in texts]


def _join(prompt: str, answer: str, word: str, join: str | None) -> tuple[str, str]:
    """What stands between a prompt and a word; and why that cannot be told, or nothing."""
    if join is not None:
        return join, ""
    try:
        return join_between(prompt, word), ""
    except LcalensError as error:
        if answer.startswith(" "):
            return " ", ""
        return "", str(error).removeprefix("join: ").rstrip(".")


def _answer(piece: tuple[str, str, str], alone: Row, answered: Row, usual: Row) -> Answer:
    """An answer's tokens, from those of its text alone, of both together, and of both where the word is in NFC."""
    before, space, _ = piece
    start, problem = len(alone.ids), ""
    if alone.unknown:
        problem = "the prompt holds what the tokenizer's vocabulary does not have"
    elif answered.ids[:start] != alone.ids:
        problem = "the prompt's tokens change when the answer follows: a token reaches from one into the other"
        if before[-1:].isspace():
            problem = (
                "the prompt ends with white space, which this tokenizer takes into the answer's first token; leave it "
                "out there, it is put where it belongs"
            )
    elif answered.unknown:
        problem = "the answer is not in the tokenizer's vocabulary"
    elif len(answered.ids) == start:
        problem = "the answer has no tokens behind the prompt"
    elif usual.ids != answered.ids:
        problem = (
            "the answer is not in Unicode's usual form (NFC) and has other tokens than in it; give "
            "unicodedata.normalize('NFC', answer)"
        )
    return Answer(tuple(answered.ids), start, space, problem)


def _check_texts(texts: Any, **others: Sequence[Any] | None) -> None:
    if isinstance(texts, str):
        raise LcalensError(f"texts: expected several texts, got one string ({texts!r:.60}); put it into a list.")
    for text in texts:
        check_text("texts", text)
    for name, values in others.items():
        if values is not None and len(values) != len(texts):
            raise LcalensError(f"{name}: {len(values)} for {len(texts)} texts; give one for each text.")


def spell(tokenizer: Any, ids: Sequence[int]) -> str:
    """Tokens as the vocabulary writes them, a space between each two: `ĠNew ĠYork`."""
    return " ".join(map(str, tokenizer.convert_ids_to_tokens(list(ids))))


def pad(encoded: Sequence[Encoded], *, device: torch.device | str | None = None) -> TokenBatch:
    """Encoded texts as one batch, padded on the left; the padding's id is never attended to.

    Args:
        encoded: At least one encoded text.
        device: Where the tensors go.

    Raises:
        LcalensError: There is nothing to pad, or a text has no tokens.
    """
    lengths = [len(item.ids) for item in encoded]
    if not lengths or min(lengths) == 0:
        raise LcalensError("encoded: nothing to pad, or a text without tokens; give texts of at least one token.")
    longest = max(lengths)
    ids = torch.zeros(len(encoded), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    positions = torch.zeros_like(ids)
    for row, (item, length) in enumerate(zip(encoded, lengths, strict=True)):
        ids[row, longest - length :] = torch.tensor(item.ids)
        mask[row, longest - length :] = 1
        positions[row, longest - length :] = torch.arange(length)
    shifted = tuple(
        {
            name: tuple((first + longest - length, last + longest - length) for first, last in places)
            for name, places in item.spans.items()
        }
        for item, length in zip(encoded, lengths, strict=True)
    )
    return TokenBatch(ids.to(device), mask.to(device), positions.to(device), shifted)


def tokenize(
    model: Any,
    texts: str | Sequence[str],
    *,
    spans: Sequence[Mapping[str, Sequence[Span]]] | None = None,
    chat: bool = False,
) -> TokenBatch:
    """Texts as a left-padded batch for `model`, on its device.

    Run it with `model(batch.ids, attention_mask=batch.attention_mask)`; the next token's logits are at `[:, -1]`.

    Args:
        model: A TransformerBridge.
        texts: One text or several.
        spans: For each text, names with character spans in it.
        chat: Ask through the chat template.

    Raises:
        LcalensError: As `encode` and `source_tokenizer`; or the model has fewer positions than a text has tokens.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    encoded = encode(source_tokenizer(model), texts, spans=spans, chat=chat)
    check_length(model, max((len(item.ids) for item in encoded), default=0))
    return pad(encoded, device=next(model.original_model.parameters()).device)


def _token_span(offsets: Sequence[tuple[int, ...]], place: Span, name: str) -> Span:
    first_char, last_char = place
    inside = [i for i, (start, end) in enumerate(offsets) if start < last_char and end > first_char and end > start]
    if not inside:
        raise LcalensError(f"spans: {name!r} at characters {place} covers no token.")
    return inside[0], inside[-1] + 1
