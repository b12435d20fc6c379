"""How often a hijack works: scoring, and the tables made of it."""

from typing import TYPE_CHECKING

from lcalens.core.lazy import lazy_names

_HOMES = {
    "EfficacyConfig": "lcalens.llm.efficacy.config",
    "SAME_FIRST_TOKEN": "lcalens.llm.efficacy.measure",
    "check_config": "lcalens.llm.efficacy.config",
    "efficacy": "lcalens.llm.efficacy.measure",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from lcalens.llm.efficacy.config import EfficacyConfig as EfficacyConfig
    from lcalens.llm.efficacy.config import check_config as check_config
    from lcalens.llm.efficacy.measure import SAME_FIRST_TOKEN as SAME_FIRST_TOKEN
    from lcalens.llm.efficacy.measure import efficacy as efficacy

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
