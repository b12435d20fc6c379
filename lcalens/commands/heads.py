"""Which heads a command is about: named, or so many that lead on facts."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lcalens.core.errors import LcalensError

if TYPE_CHECKING:
    from pathlib import Path

HEADS_HELP = "So many leading heads, ranked by patching (`10`), or heads by layer and head (`23.4 29.2`, `L23H4`)."
_NAMED = re.compile(r"[Ll]?(\d{1,6})(?:\.|[Hh])(\d{1,6})")
_COUNT = re.compile(r"\d{1,6}")


def named_heads(words: Sequence[str]) -> int | list[tuple[int, int]]:
    """How many leading heads, or these by name.

    Args:
        words: What was typed.

    Raises:
        LcalensError: It is neither.
    """
    if len(words) == 1 and _COUNT.fullmatch(words[0]) and int(words[0]):
        return int(words[0])
    found = [_NAMED.fullmatch(word) for word in words]
    if not words or None in found:
        bad = next((word for word, match in zip(words, found, strict=True) if match is None), "nothing")
        raise LcalensError(f"heads: {bad!r:.40} is neither one number of heads nor a head such as '23.4' or 'L23H4'.")
    heads = [(int(match[1]), int(match[2])) for match in found if match is not None]
    if len(set(heads)) < len(heads):
        raise LcalensError("heads: one is named twice; name each once.")
    return heads


def lead(model: Any, contrast: Any, count: int, out: "Path | None") -> tuple[Any, Any]:
    """The heads that carry a contrast's hijack most, and the result of patching that says so.

    Args:
        model: A TransformerBridge.
        contrast: What ranks them.
        count: How many.
        out: Where finished parts of patching are kept.
    """
    from lcalens import leading, patch

    patched = patch(model, contrast, out=None if out is None else out / "patching")
    return leading(patched, count, by="carrying"), patched
