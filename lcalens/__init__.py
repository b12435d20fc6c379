"""lcalens: context hijacking of language models, measured and traced.

The public names are loaded on first use, so that importing the package costs nothing.
"""

from typing import TYPE_CHECKING

from lcalens.core.lazy import lazy_names
from lcalens.core.moved import find_moved_modules

__version__ = "0.2.0"

_HOMES = {
    "Contrast": "lcalens.mechanism.contrast.contrast",
    "Defence": "lcalens.mechanism.defence.defence",
    "Fact": "lcalens.llm.facts.facts",
    "LCAConfig": "lcalens.lca.model.model",
    "LCAForCausalLM": "lcalens.lca.model.model",
    "LatentConcepts": "lcalens.lca.world.concepts",
    "LcalensError": "lcalens.core.errors",
    "Result": "lcalens.core.results",
    "Scheme": "lcalens.llm.prompts.named",
    "TrainConfig": "lcalens.lca.training.config",
    "agreement": "lcalens.mechanism.ranking",
    "ask": "lcalens.llm.ask",
    "attention_view": "lcalens.views",
    "attribute": "lcalens.mechanism.attribute",
    "contrast_concepts": "lcalens.lca.contrasts",
    "contrast_facts": "lcalens.llm.contrasts",
    "defend": "lcalens.mechanism.defence.defend",
    "doctor": "lcalens.selfcheck.doctor",
    "efficacy": "lcalens.llm.efficacy.measure",
    "efficacy_cost": "lcalens.llm.efficacy.cost",
    "evaluate_defence": "lcalens.llm.defences",
    "exchange": "lcalens.mechanism.exchange",
    "forced": "lcalens.core.verdicts",
    "head_kinds": "lcalens.mechanism.kinds",
    "held_out": "lcalens.llm.facts.halves",
    "hook_name": "lcalens.mechanism.hook_names",
    "knockout": "lcalens.mechanism.knockout",
    "lca_bridge": "lcalens.lca.model.bridge",
    "learn_heads": "lcalens.mechanism.defence.learned",
    "leading": "lcalens.mechanism.leading",
    "load_activations": "lcalens.mechanism.activation_files",
    "load_facts": "lcalens.llm.facts.facts",
    "load_model": "lcalens.llm.models.load",
    "memory": "lcalens.mechanism.associative",
    "memory_estimate": "lcalens.mechanism.estimate",
    "patch": "lcalens.mechanism.patch",
    "path": "lcalens.mechanism.path",
    "ranking": "lcalens.mechanism.ranking",
    "recall": "lcalens.mechanism.recall",
    "report": "lcalens.views.report.document",
    "run_with_cache": "lcalens.mechanism.cache",
    "site_of": "lcalens.mechanism.hook_names",
    "save_activations": "lcalens.mechanism.activation_files",
    "score_parts": "lcalens.mechanism.scores",
    "shapley": "lcalens.mechanism.players",
    "split": "lcalens.mechanism.split",
    "train": "lcalens.lca.training.training",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from lcalens.core.errors import LcalensError as LcalensError
    from lcalens.core.results import Result as Result
    from lcalens.core.verdicts import forced as forced
    from lcalens.lca.contrasts import contrast_concepts as contrast_concepts
    from lcalens.lca.model.bridge import lca_bridge as lca_bridge
    from lcalens.lca.model.model import LCAConfig as LCAConfig
    from lcalens.lca.model.model import LCAForCausalLM as LCAForCausalLM
    from lcalens.lca.training.config import TrainConfig as TrainConfig
    from lcalens.lca.training.training import train as train
    from lcalens.lca.world.concepts import LatentConcepts as LatentConcepts
    from lcalens.llm.ask import ask as ask
    from lcalens.llm.contrasts import contrast_facts as contrast_facts
    from lcalens.llm.defences import evaluate_defence as evaluate_defence
    from lcalens.llm.efficacy.cost import efficacy_cost as efficacy_cost
    from lcalens.llm.efficacy.measure import efficacy as efficacy
    from lcalens.llm.facts.facts import Fact as Fact
    from lcalens.llm.facts.facts import load_facts as load_facts
    from lcalens.llm.facts.halves import held_out as held_out
    from lcalens.llm.models.load import load_model as load_model
    from lcalens.llm.prompts.named import Scheme as Scheme
    from lcalens.mechanism.activation_files import load_activations as load_activations
    from lcalens.mechanism.activation_files import save_activations as save_activations
    from lcalens.mechanism.associative import memory as memory
    from lcalens.mechanism.attribute import attribute as attribute
    from lcalens.mechanism.cache import run_with_cache as run_with_cache
    from lcalens.mechanism.contrast.contrast import Contrast as Contrast
    from lcalens.mechanism.defence.defence import Defence as Defence
    from lcalens.mechanism.defence.defend import defend as defend
    from lcalens.mechanism.defence.learned import learn_heads as learn_heads
    from lcalens.mechanism.estimate import memory_estimate as memory_estimate
    from lcalens.mechanism.exchange import exchange as exchange
    from lcalens.mechanism.hook_names import hook_name as hook_name
    from lcalens.mechanism.hook_names import site_of as site_of
    from lcalens.mechanism.kinds import head_kinds as head_kinds
    from lcalens.mechanism.knockout import knockout as knockout
    from lcalens.mechanism.leading import leading as leading
    from lcalens.mechanism.patch import patch as patch
    from lcalens.mechanism.path import path as path
    from lcalens.mechanism.players import shapley as shapley
    from lcalens.mechanism.ranking import agreement as agreement
    from lcalens.mechanism.ranking import ranking as ranking
    from lcalens.mechanism.recall import recall as recall
    from lcalens.mechanism.scores import score_parts as score_parts
    from lcalens.mechanism.split import split as split
    from lcalens.selfcheck.doctor import doctor as doctor
    from lcalens.views import attention_view as attention_view
    from lcalens.views.report.document import report as report

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
find_moved_modules()
