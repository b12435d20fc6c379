"""Chat templates: a text as the user's turn, and what a template writes between where a reply begins and the reply."""

from collections.abc import Iterable, Sequence
from typing import Any

from lcalens.core.errors import LcalensError

_TEXT, _REPLY = "\ue000", "\ue001"  # for private use: in nobody's template


def chat_prompt(tokenizer: Any, text: str) -> str:
    """`text` as the user's turn of the tokenizer's chat template, up to where the assistant's reply begins.

    Raises:
        LcalensError: The tokenizer has no chat template, or it cannot be rendered.
    """
    return _rendered(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)


def text_start(tokenizer: Any, wholes: Iterable[str], texts: Sequence[str]) -> int:
    """Where the texts begin within their chat prompts.

    Raises:
        LcalensError: A text does not stand in its prompt as it was given; many templates strip it.
    """
    start = chat_prompt(tokenizer, _TEXT).find(_TEXT)
    for whole, text in zip(wholes, texts, strict=True):
        if start >= 0 and whole.startswith(text, start):
            continue
        if start >= 0 and whole.startswith(text.strip(), start):
            raise LcalensError(f"chat: the chat template drops the white space around {text!r:.60}; leave it out.")
        raise LcalensError(f"chat: the chat template rewrites the text {text!r:.60}, so its tokens cannot be followed.")
    return start


def reply_join(tokenizer: Any, words: Sequence[str]) -> str:
    """What the chat template writes between where a reply begins and the reply's first word: nothing, or a space.

    It is found by rendering replies, as the words of a template's author differ from what a model was trained on.

    Args:
        tokenizer: A Hugging Face tokenizer.
        words: The replies that it is wanted for.

    Raises:
        LcalensError: The template writes replies elsewhere, behind other text (`<think>`), or changes them.
    """
    before = chat_prompt(tokenizer, _TEXT)

    def reply(word: str) -> str:
        whole = _rendered(tokenizer, [{"role": "user", "content": _TEXT}, {"role": "assistant", "content": word}])
        if not whole.startswith(before):
            raise LcalensError(
                f"chat: the chat template lets a reply begin behind {before[-30:]!r} but does not write one there; "
                "leave chat=False, or give join='' to put answers right there."
            )
        return whole[len(before) :]

    join, marker, _ = reply(_REPLY).partition(_REPLY)
    if not marker or join.strip():
        raise LcalensError(
            f"chat: the chat template puts {join[:60]!r} before a reply, which is no part of an answer; leave "
            "chat=False, or give join='' to put answers right where a reply begins."
        )
    for word in dict.fromkeys(words):
        if not reply(word).startswith(join + word):
            raise LcalensError(f"chat: the chat template rewrites the reply {word!r:.60}; leave chat=False.")
    return join


def _rendered(tokenizer: Any, turns: list[dict[str, str]], **options: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise LcalensError("chat: this tokenizer has no chat template (a base model?); leave chat=False.")
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise LcalensError(f"chat: the chat template cannot be rendered ({error}); leave chat=False.") from error
