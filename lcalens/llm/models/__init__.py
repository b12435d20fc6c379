"""Real models: loaded, converted from GGUF, and what can go wrong meanwhile."""

from typing import TYPE_CHECKING

from lcalens.core.lazy import lazy_names

_HOMES = {
    "load_model": "lcalens.llm.models.load",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from lcalens.llm.models.load import load_model as load_model

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
