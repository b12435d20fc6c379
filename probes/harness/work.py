"""What a probe's cells are measured with: training and models that are kept, and facts."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lcalens import LatentConcepts, TrainConfig, load_facts, load_model, train
from lcalens.core.errors import LcalensError

if TYPE_CHECKING:
    from lcalens.lca import Runs

PAPER = ("gpt2-xl", "google/gemma-2b", "google/gemma-2b-it", "meta-llama/Llama-2-7b-hf")
"""The models of the paper's Figures 1 and 2, for whoever can reach them: `--models paper`."""

FIRST_SEED = 10
"""Seeds below were used while the probes were written, so that no rule has seen the runs that it judges."""


def reported_seeds(count: int) -> range:
    """The seeds of the runs that a page reports; whatever must be apart from them, or names one, asks here.

    Args:
        count: How many.
    """
    return range(FIRST_SEED, FIRST_SEED + count)


COUNTERFACT = "LCALENS_COUNTERFACT"
_RELATIONS = (
    "P17 P19 P20 P27 P30 P36 P37 P39 P101 P103 P106 P108 P127 P131 P136 P138 P140 P159 P176 P178 P190 P264 P276 P364 "
    "P407 P413 P449 P463 P495 P641 P740 P937 P1303 P1412"
)


class Work:
    """Where a probe trains and loads; everything finished is kept under `out`.

    Args:
        out: The folder of all probes: runs and finished parts are shared by those that need the same.
        device: Where models run.

    Attributes:
        parts: The folder for `efficacy(out=)` and `patch(out=)`.
        trained: What was trained, or found trained, since `forget`: m, the recipe and the number of seeds.
    """

    def __init__(self, out: Path, device: str = "cpu"):
        self.parts, self._runs, self._device = out / "parts", out / "runs", device
        self.trained: list[dict[str, Any]] = []

    def forget(self) -> None:
        """Begin a new list of what was trained."""
        self.trained = []

    def train(
        self, concepts: LatentConcepts, configs: TrainConfig | Iterable[TrainConfig], seeds: int | Iterable[int]
    ) -> "Runs":
        """Train, or load what was trained before, by any probe.

        Args:
            concepts: The world.
            configs: A recipe or several.
            seeds: How many, from `FIRST_SEED` on, or which.
        """
        configs = [configs] if isinstance(configs, TrainConfig) else list(configs)
        which = list(reported_seeds(seeds) if isinstance(seeds, int) else seeds)
        self.trained += [
            {"m": concepts.m, "world": asdict(concepts), "config": asdict(one), "seeds": which} for one in configs
        ]
        return train(concepts, configs, seeds=which, out=self._runs, device=self._device, progress=False)

    def model(self, name: str) -> Any:
        """A model, loaded once.

        Args:
            name: As for `load_model`.
        """
        return _load(name, self._device)


@cache
def _load(name: str, device: str) -> Any:
    return load_model(name, device=device, progress=False)


def model_names(names: Iterable[str]) -> list[str]:
    """The models' names; `paper` stands for the paper's own.

    Args:
        names: As the command line gives them.

    Raises:
        LcalensError: There are none.
    """
    found = [one for name in names for one in (PAPER if name == "paper" else (name,))]
    if not found:
        raise LcalensError("models: none given; write --models smollm2 gemma3-270m, or --models paper.")
    return list(dict.fromkeys(found))


def facts_source() -> dict[str, str]:
    """Which facts the probes use, and a digest of them, so that a cell is of these facts and no others."""
    if not os.environ.get(COUNTERFACT):
        return {"name": "sample", "digest": ""}
    path = Path(os.environ[COUNTERFACT])
    if not path.is_file():
        raise LcalensError(f"{COUNTERFACT}: no file {str(path)!r}; unset the variable to use the shipped sample.")
    return {"name": "counterfact", "digest": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}


def facts_table(source: dict[str, str]) -> pd.DataFrame:
    """What the facts are, for the page: how many there are, and which of CounterFact's relations are missing.

    Args:
        source: Of `facts_source`.
    """
    everything = load_facts(source["name"])
    there = {fact.relation_id for fact in everything}
    missing = [relation for relation in _RELATIONS.split() if relation not in there]
    name = "CounterFact (the user's file)" if source["name"] == "counterfact" else "the sample shipped with lcalens"
    return pd.DataFrame(
        [{"facts": name, "records": len(everything), "relations missing": ", ".join(missing) or "none"}]
    )
