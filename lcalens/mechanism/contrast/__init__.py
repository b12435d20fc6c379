"""Clean and hijacked runs, made of texts or token ids."""

from typing import TYPE_CHECKING

from lcalens.core.lazy import lazy_names

_HOMES = {
    "Bucket": "lcalens.mechanism.contrast.contrast",
    "Contrast": "lcalens.mechanism.contrast.contrast",
    "answer_ids": "lcalens.mechanism.contrast.contrast",
    "Ids": "lcalens.mechanism.contrast.contrast",
    "Texts": "lcalens.mechanism.contrast.contrast",
    "Tokens": "lcalens.mechanism.contrast.contrast",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from lcalens.mechanism.contrast.contrast import Bucket as Bucket
    from lcalens.mechanism.contrast.contrast import Contrast as Contrast
    from lcalens.mechanism.contrast.contrast import Ids as Ids
    from lcalens.mechanism.contrast.contrast import Texts as Texts
    from lcalens.mechanism.contrast.contrast import Tokens as Tokens
    from lcalens.mechanism.contrast.contrast import answer_ids as answer_ids

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
