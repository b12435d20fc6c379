"""Text to token ids and spans, for every room: one function, so that nobody's BOS rule slips in unseen.

The ids are what the source's own Hugging Face tokenizer gives for the text: never the bridge's copy, which adds a BOS
by a rule of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.core.provenance import model_info

_SENTINEL = "\ue000"  # for private use: in nobody's template

Span = tuple[int, int]
"""First and one past the last: of characters in a text, or of tokens in its ids."""


@dataclass(frozen=True)
class Encoded:
    """One text's token ids, with the token spans of whatever character spans were asked for.

    Attributes:
        ids: Token ids, special tokens included.
        spans: For each name, the token spans in the order of the character spans given.
    """

    ids: tuple[int, ...]
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)


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
    chat: bool = False,
) -> list[Encoded]:
    """Token ids exactly as `tokenizer(text)` gives them, with character spans turned into token spans.

    A token belongs to a span when it covers at least one of its characters, so a byte-level token that holds a word's
    leading space belongs to the word.

    Args:
        tokenizer: A Hugging Face tokenizer, as its source loads it.
        texts: The texts.
        spans: For each text, names with character spans in it.
        answers: For each text, what follows it: after one space, or as the beginning of the reply in a chat. Its tokens
            are the span `answer`, which holds the space where that is a token of its own.
        chat: Put each text as the user's turn of the tokenizer's chat template, up to where the assistant's reply
            begins. Spans still count characters of the bare text.

    Raises:
        LcalensError: A text is not a string or holds characters that UTF-8 cannot write; spans do not match the texts;
            `chat` without a chat template.
    """
    if isinstance(texts, str):
        raise LcalensError(f"texts: expected several texts, got one string ({texts!r:.60}); put it into a list.")
    for text in texts:
        check_text("texts", text)
    for name, given in (("spans", spans), ("answers", answers)):
        if given is not None and len(given) != len(texts):
            raise LcalensError(f"{name}: {len(given)} for {len(texts)} texts; give one for each text.")
    if not texts:
        return []
    whole = [chat_prompt(tokenizer, text) for text in texts] if chat else list(texts)
    starts = [_chat_start(tokenizer, *pair) if chat else 0 for pair in zip(whole, texts, strict=True)]
    wanted = [
        {name: [(first + start, last + start) for first, last in places] for name, places in names.items()}
        for names, start in zip(spans or [{}] * len(texts), starts, strict=True)
    ]
    if answers is not None:
        joint = "" if chat else " "
        for i, answer in enumerate(answers):
            check_text("answers", answer)
            wanted[i]["answer"] = [(len(whole[i]), len(whole[i]) + len(joint) + len(answer))]
            whole[i] += joint + answer
    options: dict[str, Any] = {"add_special_tokens": not chat, "padding": False, "truncation": False}
    if getattr(tokenizer, "is_fast", False):
        batch = tokenizer(whole, return_offsets_mapping=True, **options)
        offsets = [[tuple(pair) for pair in row] for row in batch["offset_mapping"]]
    else:
        batch = tokenizer(whole, **options)
        offsets = [
            _offsets_by_prefix(tokenizer, full, ids, options)
            for full, ids in zip(whole, batch["input_ids"], strict=True)
        ]
    encoded = []
    for ids, offset, names in zip(batch["input_ids"], offsets, wanted, strict=True):
        found = {name: tuple(_token_span(offset, place, name) for place in places) for name, places in names.items()}
        encoded.append(Encoded(tuple(ids), found))
    return encoded


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


def check_length(model: Any, longest: int) -> None:
    """Refuse what does not fit the model's positions.

    Raises:
        LcalensError: `longest` tokens are more than the model's context holds.
    """
    limit = getattr(model.original_model.config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise LcalensError(
            f"texts: the longest has {longest} tokens, the model's context holds {limit}; shorten it, "
            "or put fewer sentences before it."
        )


def check_text(argument: str, text: Any) -> None:
    """Refuse what is not text that UTF-8 can write.

    Raises:
        LcalensError: Not a string, or it holds lone surrogates.
    """
    if not isinstance(text, str):
        raise LcalensError(f"{argument}: expected a string, got {type(text).__name__} ({text!r:.60}).")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LcalensError(
            f"{argument}: {text!r:.60} holds a character that UTF-8 cannot write, at {error.start}."
        ) from error


def chat_prompt(tokenizer: Any, text: str) -> str:
    """`text` as the user's turn of the tokenizer's chat template, up to where the assistant's reply begins.

    Raises:
        LcalensError: The tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise LcalensError("chat: this tokenizer has no chat template (a base model?); leave chat=False.")
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )


def _chat_start(tokenizer: Any, whole: str, text: str) -> int:
    """Where a text's characters are counted from within its chat prompt; templates strip what they are given."""
    start = chat_prompt(tokenizer, _SENTINEL).index(_SENTINEL)
    if not whole.startswith(text.strip(), start):
        raise LcalensError(f"chat: the chat template rewrites the text {text!r:.60}, so its spans cannot be followed.")
    return start - len(text) + len(text.lstrip())


def _token_span(offsets: Sequence[tuple[int, ...]], place: Span, name: str) -> Span:
    first_char, last_char = place
    inside = [i for i, (start, end) in enumerate(offsets) if start < last_char and end > first_char and end > start]
    if not inside:
        raise LcalensError(f"spans: {name!r} at characters {place} covers no token.")
    return inside[0], inside[-1] + 1


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
