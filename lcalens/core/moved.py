"""Modules of 0.1 under their old names, for one version: `from lcalens.tokens import encode` still works, and warns.

The promise is `lcalens.X`; modules may move. Where an old name now is a package (`lcalens.llm.models`), the package has
the old module's names itself and is not in this table.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "lcalens.cache": "lcalens.core.cache",
    "lcalens.checks": "lcalens.core.checks",
    "lcalens.errors": "lcalens.core.errors",
    "lcalens.lazy": "lcalens.core.lazy",
    "lcalens.lca.bayes": "lcalens.lca.world.bayes",
    "lcalens.lca.bridge": "lcalens.lca.model.bridge",
    "lcalens.lca.claims": "lcalens.lca.theory.claims",
    "lcalens.lca.concepts": "lcalens.lca.world.concepts",
    "lcalens.lca.embeddings": "lcalens.lca.model.embeddings",
    "lcalens.lca.lemma6": "lcalens.lca.theory.lemma6",
    "lcalens.lca.lemmas": "lcalens.lca.theory.lemmas",
    "lcalens.lca.memory": "lcalens.lca.model.closed_forms",
    "lcalens.lca.native": "lcalens.lca.world.compiled",
    "lcalens.lca.recipe": "lcalens.lca.training.config",
    "lcalens.lca.sampling": "lcalens.lca.world.sampling",
    "lcalens.lca.steps": "lcalens.lca.training.stack",
    "lcalens.lca.theorem3": "lcalens.lca.theory.theorem3",
    "lcalens.lca.theorems": "lcalens.lca.theory.theorems",
    "lcalens.lca.trainer": "lcalens.lca.training.trainer",
    "lcalens.lca.value_role": "lcalens.lca.theory.value_role",
    "lcalens.llm.faults": "lcalens.llm.models.errors",
    "lcalens.llm.files": "lcalens.llm.facts.files",
    "lcalens.llm.hijack": "lcalens.llm.prompts.hijack",
    "lcalens.llm.packing": "lcalens.llm.efficacy.tries",
    "lcalens.llm.records": "lcalens.llm.facts.records",
    "lcalens.llm.related": "lcalens.llm.prompts.related",
    "lcalens.llm.schemes": "lcalens.llm.prompts.schemes",
    "lcalens.llm.scoring": "lcalens.llm.efficacy.scoring",
    "lcalens.llm.sources": "lcalens.llm.facts.sources",
    "lcalens.llm.summary": "lcalens.llm.efficacy.tables",
    "lcalens.llm.weights": "lcalens.llm.models.gguf",
    "lcalens.mechanism.attribution": "lcalens.mechanism.attribute",
    "lcalens.mechanism.decoder": "lcalens.engine.decoder",
    "lcalens.mechanism.direct": "lcalens.engine.direct",
    "lcalens.mechanism.gradients": "lcalens.engine.gradients",
    "lcalens.mechanism.hooked": "lcalens.engine.by_hooks",
    "lcalens.mechanism.metrics": "lcalens.engine.metrics",
    "lcalens.mechanism.patching": "lcalens.mechanism.patch",
    "lcalens.mechanism.positions": "lcalens.mechanism.contrast.inputs",
    "lcalens.mechanism.sites": "lcalens.engine.sites",
    "lcalens.mechanism.shapley": "lcalens.mechanism.division",
    "lcalens.mechanism.tracing": "lcalens.engine.forward",
    "lcalens.progress": "lcalens.core.progress",
    "lcalens.provenance": "lcalens.core.provenance",
    "lcalens.quiet": "lcalens.core.quiet",
    "lcalens.results": "lcalens.core.results",
    "lcalens.runs": "lcalens.core.cells",
    "lcalens.screen": "lcalens.views.text",
    "lcalens.statistics": "lcalens.core.statistics",
    "lcalens.tensors": "lcalens.core.tensors",
    "lcalens.tokens": "lcalens.core.tokens",
    "lcalens.trace": "lcalens.llm.trace",
    "lcalens.views.labels": "lcalens.mechanism.labels",
}
"""The modules of 0.1 that stand elsewhere, with their new names."""


class MovedModules(MetaPathFinder, Loader):
    """Gives the module that stands elsewhere now, whatever was imported from it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Claim the names of the table alone."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the new module in the place of the empty one, which importlib then hands out."""
        old = module.__name__
        new = MOVED[old]
        message = f"{old} is {new} since lcalens 0.2; the old name goes in 0.3. Import {new}."
        warnings.warn(message, DeprecationWarning, stacklevel=2)  # importlib's own frames do not count
        sys.modules[old] = import_module(new)


def find_moved_modules() -> None:
    """Let Python find the old names, once."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
