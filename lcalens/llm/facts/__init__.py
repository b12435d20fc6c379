"""Facts: what one is, and where they come from."""

from typing import TYPE_CHECKING

from lcalens.core.lazy import lazy_names

_HOMES = {
    "Fact": "lcalens.llm.facts.records",
    "Facts": "lcalens.llm.facts.facts",
    "Skipped": "lcalens.llm.facts.records",
    "load_facts": "lcalens.llm.facts.facts",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from lcalens.llm.facts.facts import Facts as Facts
    from lcalens.llm.facts.facts import load_facts as load_facts
    from lcalens.llm.facts.records import Fact as Fact
    from lcalens.llm.facts.records import Skipped as Skipped

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
