"""lcalens: context hijacking of language models, measured and traced.

The public names are loaded on first use, so that importing the package costs nothing.
"""

from typing import TYPE_CHECKING

from lcalens.lazy import lazy_names

__version__ = "0.1.0"

_HOMES = {
    "Contrast": "lcalens.mechanism.contrast",
    "Fact": "lcalens.llm.facts",
    "LCAConfig": "lcalens.lca.model",
    "LCAForCausalLM": "lcalens.lca.model",
    "LatentConcepts": "lcalens.lca.concepts",
    "LcalensError": "lcalens.errors",
    "Result": "lcalens.results",
    "TrainConfig": "lcalens.lca.recipe",
    "agreement": "lcalens.mechanism.ranking",
    "ask": "lcalens.llm.ask",
    "attention_view": "lcalens.views",
    "attribute": "lcalens.mechanism.attribution",
    "contrast_concepts": "lcalens.lca.contrasts",
    "contrast_facts": "lcalens.llm.contrasts",
    "efficacy": "lcalens.llm.efficacy",
    "knockout": "lcalens.mechanism.knockout",
    "lca_bridge": "lcalens.lca.bridge",
    "load_facts": "lcalens.llm.facts",
    "load_model": "lcalens.llm.models",
    "patch": "lcalens.mechanism.patching",
    "ranking": "lcalens.mechanism.ranking",
    "split": "lcalens.mechanism.split",
    "train": "lcalens.lca.training",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from lcalens.errors import LcalensError as LcalensError
    from lcalens.lca.bridge import lca_bridge as lca_bridge
    from lcalens.lca.concepts import LatentConcepts as LatentConcepts
    from lcalens.lca.contrasts import contrast_concepts as contrast_concepts
    from lcalens.lca.model import LCAConfig as LCAConfig
    from lcalens.lca.model import LCAForCausalLM as LCAForCausalLM
    from lcalens.lca.recipe import TrainConfig as TrainConfig
    from lcalens.lca.training import train as train
    from lcalens.llm.ask import ask as ask
    from lcalens.llm.contrasts import contrast_facts as contrast_facts
    from lcalens.llm.efficacy import efficacy as efficacy
    from lcalens.llm.facts import Fact as Fact
    from lcalens.llm.facts import load_facts as load_facts
    from lcalens.llm.models import load_model as load_model
    from lcalens.mechanism.attribution import attribute as attribute
    from lcalens.mechanism.contrast import Contrast as Contrast
    from lcalens.mechanism.knockout import knockout as knockout
    from lcalens.mechanism.patching import patch as patch
    from lcalens.mechanism.ranking import agreement as agreement
    from lcalens.mechanism.ranking import ranking as ranking
    from lcalens.mechanism.split import split as split
    from lcalens.results import Result as Result
    from lcalens.views import attention_view as attention_view

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
