"""The toy world: latent concept association, its one-layer model, its training, and what can be known of it exactly.

Beside these names: `bayes` (the optimal classifier), `memory` (closed-form weights), `geometry` (angles, Gram matrices,
spectra), `attention` (mass by cluster), `theory` (the theorems and lemmas, each with a verdict).
"""

from typing import TYPE_CHECKING

from lcalens.lazy import lazy_names

_HOMES = {
    "LCAConfig": "lcalens.lca.model",
    "LCAForCausalLM": "lcalens.lca.model",
    "LatentConcepts": "lcalens.lca.concepts",
    "Run": "lcalens.lca.training",
    "Runs": "lcalens.lca.training",
    "TrainConfig": "lcalens.lca.recipe",
    "attention_pattern": "lcalens.lca.summaries",
    "gram": "lcalens.lca.summaries",
    "lca_bridge": "lcalens.lca.bridge",
    "lca_tokenizer": "lcalens.lca.model",
    "train": "lcalens.lca.training",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from lcalens.lca.bridge import lca_bridge as lca_bridge
    from lcalens.lca.concepts import LatentConcepts as LatentConcepts
    from lcalens.lca.model import LCAConfig as LCAConfig
    from lcalens.lca.model import LCAForCausalLM as LCAForCausalLM
    from lcalens.lca.model import lca_tokenizer as lca_tokenizer
    from lcalens.lca.recipe import TrainConfig as TrainConfig
    from lcalens.lca.summaries import attention_pattern as attention_pattern
    from lcalens.lca.summaries import gram as gram
    from lcalens.lca.training import Run as Run
    from lcalens.lca.training import Runs as Runs
    from lcalens.lca.training import train as train

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
