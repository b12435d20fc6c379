"""Where the last sentence began, by tokens: what a cut head still sees."""

import re
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

_ENDS = (".", "!", "?", "…", "。", "！", "？", "\u0964", "\u06d4", "\u061f")
_CLOSING = "\"'”’»)]}*_`"
_CHUNK = 4096
_NO_NAMES = frozenset(
    re.findall(
        r"\w+",
        """
        The This That These Those There Do Does Did Don Not No In On At Of It Its He She His Her
        They Their We Our You Your If When While Although And But Or So As An For From By With To
        What Who Which Where How Why Is Was Are Were
        """,
    )
)  # words that begin a sentence and name nothing


def ends_sentence(text: str) -> bool:
    r"""Whether a token's text ends a sentence: its last sign, but for quotes and brackets, or a line break in it.

    Args:
        text: A token, decoded.

    Example:
        >>> [ends_sentence(text) for text in (".", '."', " Rome", "\n", " 3.5")]
        [True, True, False, True, False]
    """
    if "\n" in text:
        return True
    return text.strip().rstrip(_CLOSING).endswith(_ENDS)


@lru_cache(maxsize=8)
def _end_tokens(tokenizer: Any) -> tuple[int, ...]:
    size = len(tokenizer)
    special = set(tokenizer.all_special_ids)
    found = []
    for first in range(0, size, _CHUNK):
        ids = range(first, min(first + _CHUNK, size))
        texts = tokenizer.batch_decode([[token] for token in ids])
        found += [token for token, text in zip(ids, texts, strict=True) if token not in special and ends_sentence(text)]
    return tuple(found)


def end_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The tokens of a vocabulary that end a sentence.

    Args:
        tokenizer: A Hugging Face tokenizer.
    """
    return _end_tokens(tokenizer)


def sentence_starts(
    tokens: Int[Tensor, "batch position"],
    ends: Int[Tensor, " end"],
    real: Bool[Tensor, "batch position"],
) -> Int[Tensor, "batch position"]:
    """For every position, where its sentence begins; the text's first position where no sentence ended before.

    A sentence end belongs to the sentence that it ends, so a prompt's own full stop cuts nothing off. Positions before
    the first real token, which are padding, begin where the text does.

    Args:
        tokens: Token ids.
        ends: Those that end a sentence.
        real: Where there is no padding.

    Example:
        >>> told = torch.tensor([[5, 9, 5, 5, 9]])  # 9 ends a sentence
        >>> sentence_starts(told, torch.tensor([9]), torch.ones_like(told).bool()).tolist()
        [[0, 0, 2, 2, 2]]
    """
    index = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    ended = torch.isin(tokens, ends.to(tokens.device)) & real
    first = real.int().argmax(1, keepdim=True)
    last_end = torch.where(ended, index, -1).cummax(1).values
    before = torch.nn.functional.pad(last_end[:, :-1], (1, 0), value=-1)
    start = torch.where(before < 0, first, before + 1)
    # An end closes the sentence before it, which is that of the last token that is no end.
    content = torch.where(real & ~ended, index, -1).cummax(1).values
    return torch.where(content < 0, first, start.gather(1, content.clamp(min=0)))


def hidden_keys(
    starts: Int[Tensor, "batch query"], first: Int[Tensor, " batch"], keys: int
) -> Bool[Tensor, "batch query key"]:
    """What each query no longer sees: all before its sentence but the text's first token, which heads rest on.

    Args:
        starts: Where each query's sentence begins.
        first: The text's first position.
        keys: How many keys there are.
    """
    key = torch.arange(keys, device=starts.device)
    return (key > first[:, None, None]) & (key < starts[:, :, None])


def shares_name(before: str, after: str) -> bool:
    """Whether a text names something that the text before it names, by words with a capital.

    Args:
        before: The earlier text.
        after: The later one.

    Example:
        >>> shares_name("Do not think of Rome.", " The Eiffel Tower is in")
        False
        >>> shares_name("In the novel, the Eiffel Tower is in Rome.", " The Eiffel Tower is in")
        True
    """
    return bool(_names(before) & _names(after))


def _names(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text) if word[0].isupper() and len(word) > 1} - _NO_NAMES
