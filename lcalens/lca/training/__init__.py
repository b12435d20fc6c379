"""Training of many toy models at once."""

from typing import TYPE_CHECKING

from lcalens.core.lazy import lazy_names

_HOMES = {
    "Run": "lcalens.lca.training.runs",
    "Runs": "lcalens.lca.training.runs",
    "train": "lcalens.lca.training.training",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from lcalens.lca.training.runs import Run as Run
    from lcalens.lca.training.runs import Runs as Runs
    from lcalens.lca.training.training import train as train

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
