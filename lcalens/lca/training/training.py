"""Training the toy model: the recipe, many runs in one call, and runs that a kill does not lose.

Contexts are always fresh. Everything a run draws is a function of its seed, the purpose and the step, so a run that is
resumed sees what it would have seen; and runs of one seed see the same contexts whatever else differs between them.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from lcalens.core.cells import CellStore, cell_key, content_key
from lcalens.core.checks import check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.core.manifest import Manifest
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.tensors import check_device
from lcalens.core.versions import versions
from lcalens.lca.training.config import TrainConfig
from lcalens.lca.training.runs import Run, Runs
from lcalens.lca.training.trainer import NEVER, Trainer, model_of
from lcalens.lca.world.concepts import LatentConcepts

# A stack of so many numbers (runs x batch x vocabulary) still lies in the processor's cache.
_STACKED = 1 << 17


def train(
    concepts: LatentConcepts,
    config: TrainConfig | Iterable[TrainConfig],
    *,
    seeds: Iterable[int] = range(5),
    out: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    progress: bool | ProgressCallback = True,
    checkpoint_seconds: float = 30.0,
) -> Runs:
    """Train a model for every recipe and seed; those of one shape are computed as one stack.

    Args:
        concepts: The world.
        config: A recipe, or several: `config.grid(lr=(0.02, 0.05))`.
        seeds: One run each.
        out: A folder for checkpoints and finished runs: the same call again goes on where it was, to the bit on the
            same machine with the same number of threads.
        device: Where to train.
        progress: True for a bar, False for silence, or a function of (done, total, what).
        checkpoint_seconds: How often the state is saved, where `out` is given.

    Raises:
        LcalensError: An argument that cannot be used. A run that diverges raises nothing: see `Run.diverged`.

    Example:
        >>> from lcalens import LatentConcepts, TrainConfig
        >>> recipe = TrainConfig(context_length=16, d_model=8, d_head=8, steps=20)
        >>> runs = train(LatentConcepts(4), recipe, seeds=range(2))
        >>> runs.to_frame()
    """
    plan = _plan(concepts, config, seeds)
    check_real("checkpoint_seconds", checkpoint_seconds, low=0)
    device = check_device(device)
    store = CellStore(out)
    keys = [cell_key(_CODE, [asdict(concepts), asdict(recipe), seed, str(device), versions()]) for recipe, seed in plan]
    plan_of = dict(zip(keys, plan, strict=True))
    settings = {"device": str(device), "runs": [[asdict(recipe), seed] for recipe, seed in plan]}
    manifest = Manifest(store, "train", code=_CODE, settings=settings, data=lambda: {"concepts": asdict(concepts)})
    manifest.expect(keys, states=[content_key(stack) for stack in _stacks(concepts, plan_of)])
    runs: dict[str, Run] = {}
    for (recipe, seed), key in zip(plan, keys, strict=True):
        cell = store.get(key)
        if cell is not None:
            runs[key] = _run(cell, concepts, recipe, seed)
    # A stack that was begun is ended as it was; of any other, only the runs that are missing are trained.
    stacks = [
        stack if content_key(stack) in store else [key for key in stack if key not in runs]
        for stack in _stacks(concepts, plan_of)
        if not runs.keys() >= set(stack)
    ]
    total, done = sum(plan_of[key][0].steps for stack in stacks for key in stack), 0
    with progress_callback(progress, unit="steps") as report:
        for stack in stacks:
            trainer = Trainer(concepts, [plan_of[key] for key in stack], store, content_key(stack), device)
            trainer.train(checkpoint_seconds, lambda steps, what, before=done: report(before + steps, total, what))
            for key, cell in zip(stack, trainer.finish(), strict=True):
                store.put(key, cell)
                runs[key] = _run(cell, concepts, *plan_of[key])
            store.forget(content_key(stack))
            done += len(stack) * plan_of[stack[0]][0].steps
    manifest.end()
    return Runs(runs[key] for key in keys)


def _plan(concepts: Any, config: Any, seeds: Any) -> list[tuple[TrainConfig, int]]:
    if not isinstance(concepts, LatentConcepts):
        raise LcalensError(f"concepts: expected a LatentConcepts, got {concepts!r:.60} ({type(concepts).__name__}).")
    configs = [config] if isinstance(config, TrainConfig) else config
    configs = list(configs) if isinstance(configs, Iterable) else []
    if not configs or not all(isinstance(recipe, TrainConfig) for recipe in configs):
        raise LcalensError(f"config: expected a TrainConfig or several, got {config!r:.60} ({type(config).__name__}).")
    numbers = list(seeds) if isinstance(seeds, Iterable) else []
    if not numbers:
        raise LcalensError(f"seeds: expected whole numbers, one per run, got {seeds!r:.60}.")
    for seed in numbers:
        check_int("seeds", seed, low=0)
    for recipe in configs:
        recipe.model_config(concepts.m)
    return [(recipe, int(seed)) for recipe in dict.fromkeys(configs) for seed in dict.fromkeys(numbers)]


def _stacks(concepts: LatentConcepts, plan_of: dict[str, tuple[TrainConfig, int]]) -> Iterator[list[str]]:
    """Keys of the runs that are computed together: one shape, and no more of them than the cache holds."""
    alike: dict[Any, list[str]] = {}
    for key, (config, _) in plan_of.items():
        shape = replace(config, lr=0.0, weight_decay=0.0, embedding="gaussian", value="uniform", attention="uniform")
        alike.setdefault(astuple(shape), []).append(key)
    for group in alike.values():
        size = max(1, _STACKED // (plan_of[group[0]][0].batch_size * concepts.vocab_size))
        for first in range(0, len(group), size):
            yield group[first : first + size]


_CODE = (Trainer, _stacks)


def _run(cell: Mapping[str, np.ndarray], concepts: LatentConcepts, config: TrainConfig, seed: int) -> Run:
    diverged = int(cell["diverged"])
    history = pd.DataFrame({name: cell[name] for name in ("step", "loss", "accuracy")})
    return Run(
        model=model_of(cell, concepts, config, seed),
        concepts=concepts,
        config=config,
        seed=seed,
        accuracy=float(cell["final_accuracy"]),
        bayes=float(cell["bayes"]),
        history=history[history["step"] < (diverged if diverged != NEVER else np.inf)],
        diverged=None if diverged == NEVER else diverged,
    )
