"""The toy world: latent concept association, its one-layer model, its training, and what can be known of it exactly.

Beside these names: `bayes` (the optimal classifier), `memory` (closed-form weights), `geometry` (angles, Gram matrices,
spectra), `attention` (mass by cluster), `theory` (the theorems and lemmas, each with a verdict).
"""

from typing import TYPE_CHECKING

from lcalens.core.lazy import lazy_names

_HOMES = {
    "LCAConfig": "lcalens.lca.model.model",
    "LCAForCausalLM": "lcalens.lca.model.model",
    "LatentConcepts": "lcalens.lca.world.concepts",
    "Run": "lcalens.lca.training.runs",
    "Runs": "lcalens.lca.training.runs",
    "TrainConfig": "lcalens.lca.training.config",
    "attention_pattern": "lcalens.lca.summaries",
    "evaluate_toy_defence": "lcalens.lca.defences",
    "gram": "lcalens.lca.summaries",
    "lca_bridge": "lcalens.lca.model.bridge",
    "lca_tokenizer": "lcalens.lca.model.model",
    "train": "lcalens.lca.training.training",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from lcalens.lca.defences import evaluate_toy_defence as evaluate_toy_defence
    from lcalens.lca.model.bridge import lca_bridge as lca_bridge
    from lcalens.lca.model.model import LCAConfig as LCAConfig
    from lcalens.lca.model.model import LCAForCausalLM as LCAForCausalLM
    from lcalens.lca.model.model import lca_tokenizer as lca_tokenizer
    from lcalens.lca.summaries import attention_pattern as attention_pattern
    from lcalens.lca.summaries import gram as gram
    from lcalens.lca.training.config import TrainConfig as TrainConfig
    from lcalens.lca.training.runs import Run as Run
    from lcalens.lca.training.runs import Runs as Runs
    from lcalens.lca.training.training import train as train
    from lcalens.lca.world.concepts import LatentConcepts as LatentConcepts

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
