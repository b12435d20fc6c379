"""What a probe's cells are measured with: training and models that are kept, and facts."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lcalens import LatentConcepts, TrainConfig, held_out, load_facts, load_model, train
from lcalens.core.errors import LcalensError
from lcalens.llm.facts.facts import Facts

if TYPE_CHECKING:
    from lcalens.lca import Runs

PAPER = ("gpt2", "google/gemma-2b", "google/gemma-2b-it", "meta-llama/Llama-2-7b-hf")
"""The models of the paper's Figures 1 and 2, for whoever can reach them: `--models paper`; gpt2-xl by its own name."""

SIZES = {
    "smollm2": "SmolLM2-135M-Instruct (4-bit, dequantised)",
    "gemma3-270m": "Gemma 3 270M (4-bit, dequantised)",
    "gpt2": "GPT-2 (124M)",
    "gpt2-xl": "GPT-2 XL (1.5B)",
    "google/gemma-2b": "Gemma 2B",
    "google/gemma-2b-it": "Gemma 2B (instruct)",
    "meta-llama/Llama-2-7b-hf": "Llama 2 7B",
}
"""What a page calls a model: its size, whether it is an instruct model, and whether its weights were quantised."""

FIRST_SEED = 20
"""Seeds below were used while the probes and their rules were written: no rule has seen the runs that it judges."""


def reported_seeds(count: int) -> range:
    """The seeds of the runs that a page reports; whatever must be apart from them, or names one, asks here.

    Args:
        count: How many.
    """
    return range(FIRST_SEED, FIRST_SEED + count)


COUNTERFACT = "LCALENS_COUNTERFACT"
FEWEST = 40
"""With fewer facts a setting is shown and gets no verdict."""

_PUBLISHED = Path(__file__).with_name("published.txt")
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


def model_label(name: str) -> str:
    """What a page calls a model.

    Args:
        name: As the command line gives it; a name that is not in `SIZES` stays as it is.
    """
    return SIZES.get(name, name)


def parameters_of(model: Any) -> int:
    """How many parameters Hugging Face's model of this kind has; a bridge holds some of them twice.

    Args:
        model: A bridge.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.original_model.config)
    return sum(weight.numel() for weight in plain.parameters())


@cache
def published() -> frozenset[int]:
    """The `case_id`s of CounterFact that stand in a table that was published before the rules were judged."""
    lines = _PUBLISHED.read_text(encoding="utf-8").splitlines()
    return frozenset(int(word) for line in lines if not line.startswith("#") for word in line.split())


def judged_facts(source: dict[str, str], relations: str | None = None) -> Facts:
    """The facts that rules are judged on. Sentences about other subjects may come from any record of the source.

    Of CounterFact they are the half that is held out, less what was published. The shipped sample is too small for
    halves and is taken whole, which the page says.

    Args:
        source: Of `facts_source`.
        relations: One relation; None for all.
    """
    facts = load_facts(source["name"])
    if source["name"] == "counterfact":
        facts = held_out(facts, without=published())
    return facts[:0] if relations is not None and relations not in facts.relations else facts.where(relations=relations)


def facts_table(source: dict[str, str]) -> pd.DataFrame:
    """What the facts are, for the page: file and digest, how many are judged on, and by relation.

    Args:
        source: Of `facts_source`.
    """
    facts = judged_facts(source)
    counts = Counter(fact.relation_id for fact in facts)
    few = [f"{relation} ({counts[relation]})" for relation in _RELATIONS.split() if counts[relation] < FEWEST]
    listed = ", ".join(
        f"{relation} {counts[relation]}" for relation in _RELATIONS.split() if counts[relation] >= FEWEST
    )
    ours = source["name"] != "counterfact"
    rows = {
        "source": "the sample shipped with lcalens, written from common knowledge"
        if ours
        else f"CounterFact, the user's file, SHA-256 {source['digest']}...",
        "records": str(len(facts.pool)),
        "judged on": f"all {len(facts)}; no half of them is held out"
        if ours
        else f"{len(facts)}: the half that `lcalens.held_out` gives, less what was published before",
        "digest of these facts": facts.digest,
        f"relations with {FEWEST} facts or more": listed,
        f"with fewer than {FEWEST}: no verdict of their own": ", ".join(few) or "none",
    }
    return pd.DataFrame({"facts": rows.keys(), "": rows.values()})


WITHOUT = "Made without CounterFact"
"""How a note begins that says so; the tables' rows say it too."""


def left_out(source: dict[str, str]) -> tuple[str, ...]:
    """What the page says where CounterFact is not there.

    Args:
        source: Of `facts_source`.
    """
    if source["name"] == "counterfact":
        return ()
    return (
        f"{WITHOUT} ({COUNTERFACT} is not set): the facts are the shipped sample's, none of them held "
        "out, and the settings on CounterFact are left out.",
    )
