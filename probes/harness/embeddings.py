"""What the probes of trained embeddings share: settings, cells, models."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch

from lcalens import LatentConcepts, TrainConfig
from lcalens.lca import Run
from lcalens.lca.training.trainer import start_model
from probes.harness.study import Settings
from probes.harness.work import Work

TRAINED, IDENTITY, FIXED = "W_V trained", "W_V = I", "W_V fixed at random"
KINDS: dict[str, dict[str, Any]] = {
    TRAINED: {},
    IDENTITY: {"value": "identity", "train_value": False},
    FIXED: {"train_value": False},
}
GRID, WIDTH, SPEED = "grid", "d and weight decay", "learning rate and steps"


@dataclass(frozen=True, kw_only=True)
class EmbeddingSettings(Settings):
    """What is trained for a look at its embeddings.

    Attributes:
        m: Numbers of latent bits; d is V/2, L the first of the lengths.
        spectra_m: Numbers of latent bits of the paper's spectra.
        spectra_d: Their dimensions d.
        lengths: Their context lengths L; everything else is at the first.
        lr: Learning rate.
        weight_decay: Weight decay.
        steps: Training steps.
        sweep_d: Dimensions of the first sweep.
        sweep_weight_decay: Weight decays of the first sweep.
        sweep_lr: Learning rates of the second sweep.
        sweep_steps: Steps of the second sweep.
    """

    m: tuple[int, ...] = (5, 6, 7, 8)
    spectra_m: tuple[int, ...] = (7, 8)
    spectra_d: tuple[int, ...] = (32, 64)
    lengths: tuple[int, ...] = (64, 128, 256)
    lr: float = 0.03
    weight_decay: float = 0.01
    steps: int = 1000
    sweep_d: tuple[int, ...] = (8, 16, 32)
    sweep_weight_decay: tuple[float, ...] = (0.0, 0.01, 0.1)
    sweep_lr: tuple[float, ...] = (0.01, 0.03, 0.1)
    sweep_steps: tuple[int, ...] = (300, 1000, 3000)


QUICK: dict[str, Any] = {"preset": "quick", "seeds": 2, "m": (3, 4), "lengths": (32,), "steps": 50} | {
    "spectra_m": (4,), "spectra_d": (8, 12), "sweep_d": (8,), "sweep_weight_decay": (0.01,), "sweep_lr": (0.03,),
    "sweep_steps": (30,)
}  # fmt: skip
FULL: dict[str, Any] = {"preset": "full", "seeds": 3, "spectra_d": (16, 32, 64, 128), "steps": 3000}


class Trained(NamedTuple):
    """A run with its embeddings, row t token t's.

    Attributes:
        kind: Which of `KINDS`.
        run: The run.
        embedding: At the end; None where the run diverged.
        start: Before the first step.
    """

    kind: str
    run: Run
    embedding: torch.Tensor | None
    start: torch.Tensor


def cells(settings: EmbeddingSettings, kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    """A cell for each m, for each shape of the paper's spectra, and for each point of both sweeps at the smallest m.

    Args:
        settings: The probe's.
        kinds: Which of `KINDS` are trained at d = V/2; the sweeps leave out the random W_V, the spectra train W_V.
    """
    usual = {"lr": settings.lr, "weight_decay": settings.weight_decay, "steps": settings.steps}
    least, first = min(settings.m), settings.lengths[0]
    at_least = {"m": least, "d": 1 << (least - 1), "L": first} | usual
    at_least["kinds"] = [kind for kind in kinds if kind != FIXED]
    plan = [{"m": m, "d": 1 << (m - 1), "L": first, "kinds": list(kinds)} for m in settings.m]
    taken = {(one["m"], one["d"], one["L"]) for one in plan}
    shapes = product(settings.spectra_m, settings.spectra_d, settings.lengths)
    plan += [{"m": m, "d": d, "L": n, "kinds": [TRAINED]} for m, d, n in shapes if (m, d, n) not in taken]
    plan = [{"part": GRID} | one | usual for one in plan]
    plan += [
        {"part": WIDTH} | at_least | {"d": d, "weight_decay": decay}
        for d in settings.sweep_d
        for decay in settings.sweep_weight_decay
    ]
    plan += [
        {"part": SPEED} | at_least | {"lr": lr, "steps": steps}
        for lr in settings.sweep_lr
        for steps in settings.sweep_steps
    ]
    return [one | {"seeds": settings.seeds} for one in plan]


def trained(cell: dict[str, Any], work: Work) -> Iterator[Trained]:
    """Train a cell's models.

    Args:
        cell: One of `cells`.
        work: Where to train.
    """
    concepts, d = LatentConcepts(cell["m"]), cell["d"]
    names = ("lr", "weight_decay", "steps")
    for kind in cell["kinds"]:
        config = TrainConfig(cell["L"], d, min(d, 32), **{name: cell[name] for name in names}, **KINDS[kind])
        for run in work.train(concepts, config, cell["seeds"]):
            found = run.model.embed.weight.detach() if run.diverged is None else None
            yield Trained(kind, run, found, start_model(concepts, config, run.seed).embed.weight.detach())
