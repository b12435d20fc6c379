"""Embeddings must be trained when they have fewer dimensions than there are tokens (C.4).

Accuracy on fresh contexts over the embeddings' dimension d, with W_E trained and with W_E frozen at its Gaussian start;
W_V and the attention are trained in both. Each has the learning rate that suits it best at that d. The control is the
difference at the largest d, 2V, where random embeddings are nearly orthogonal and nothing should force their training.
Bayes is the ceiling that nothing beats.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from einops import reduce

from lcalens import LatentConcepts
from lcalens.core.errors import LcalensError
from lcalens.core.estimates import over_seeds
from probes.harness.figures import curves
from probes.harness.rules import CHANGE, Rule, paired
from probes.harness.run import main
from probes.harness.study import Report, Settings
from probes.harness.toy import recipe
from probes.harness.work import Work, reported_seeds

RULES = (
    Rule(
        claim="Below d = V, trained embeddings are more accurate than frozen Gaussian ones.",
        source="C.4",
        group="paper",
        sentence=(
            "Figure C.4 clearly shows that embedding training is needed when the dimension is smaller than the "
            "vocabulary size (d < V)."
        ),
        effect="accuracy with W_E trained, less that with W_E frozen",
        unit="accuracy",
        minimum=0.05,
        control="the same difference at d = 2V",
        margin=0.02,
        effect_range=CHANGE,
        control_range=CHANGE,
    ),
    Rule(
        claim="Above d = V, frozen Gaussian embeddings do as well as trained ones.",
        source="C.4",
        group="paper",
        sentence="In the overparameterised regime (d > V) it is not required.",
        effect="accuracy at d = 2V with W_E trained, less that with W_E frozen",
        unit="accuracy",
        minimum=0.02,
        control="the same difference at d = V/2",
        margin=0.02,
        sense="at most",
        effect_range=CHANGE,
        control_range=CHANGE,
    ),
)
CHOICES = """
The paper takes the better of two learning rates for each d, under an optimiser and a number of steps that are not
public. Here: AdamW with a learning rate that falls linearly to 0, the best of a set for each m, d and kind of W_E. It
is chosen by the mean accuracy of runs whose seeds are not among those reported, so the choice does not flatter; a rate
at which one of those runs diverges is not chosen. Choices at either end of the set may mean that the set is too narrow:
the page says how many there are. Frozen embeddings keep their length of about 1, so W_V and the attention must grow
instead; this is why the number of steps matters more to them. The sweep shows the difference over learning rates and
numbers of steps at d = V/2 and the smallest m; its largest number of steps is the full preset's.
"""
_KINDS = {"trained": True, "frozen": False}
_DIFFERENCE = "trained - frozen"


@dataclass(frozen=True, kw_only=True)
class EmbeddingTraining(Settings):
    """Accuracy over d with W_E trained and frozen.

    Attributes:
        m: Numbers of latent bits.
        length: Context length L.
        smallest: The smallest d, a power of 2 below V; the others are its doubles up to 2V.
        lr: Learning rates to choose from.
        choosing: Seeds by which the learning rate is chosen.
        steps: Training steps.
        sweep_lr: Learning rates of the sweep.
        sweep_steps: Steps of the sweep.
    """

    m: tuple[int, ...] = (5, 6)
    length: int = 64
    smallest: int = 8
    lr: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    choosing: tuple[int, ...] = (100, 101)
    steps: int = 1000
    sweep_lr: tuple[float, ...] = (0.03, 0.1, 0.3)
    sweep_steps: tuple[int, ...] = (300, 1000, 3000)

    def __post_init__(self):
        super().__post_init__()
        most = 1 << (min(self.m) - 1)
        if self.smallest not in {1 << power for power in range(min(self.m))}:
            raise LcalensError(f"smallest: expected a power of 2 up to V/2 = {most}, got {self.smallest}.")
        reported = reported_seeds(self.seeds)
        both = sorted(set(self.choosing) & set(reported))
        if both:
            raise LcalensError(
                f"choosing: the seeds {', '.join(map(str, both))} are among those reported, {reported[0]} to "
                f"{reported[-1]}; choose by others."
            )


PRESETS = {
    "quick": EmbeddingTraining(
        preset="quick", seeds=2, m=(4,), length=32, lr=(0.03, 0.1), steps=50, sweep_lr=(0.03,), sweep_steps=(30,)
    ),
    "standard": EmbeddingTraining(),
    "full": EmbeddingTraining(preset="full", m=(5, 6, 7), steps=3000),
}


def grid(settings: EmbeddingTraining) -> list[dict[str, Any]]:
    """A cell for each m and d, and for each point of the sweep."""
    shared = {"L": settings.length, "seeds": settings.seeds, "choosing": settings.choosing}
    least = min(settings.m)
    plan = []
    for m in settings.m:
        d = settings.smallest
        while d <= 2 << m:
            plan.append({"part": "grid", "m": m, "d": d, "lr": settings.lr, "steps": settings.steps})
            d *= 2
    plan += [
        {"part": "sweep", "m": least, "d": 1 << (least - 1), "lr": (lr,), "steps": steps}
        for lr in settings.sweep_lr
        for steps in settings.sweep_steps
    ]
    return [one | shared for one in plan]


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """Choose a learning rate for each kind of W_E, then train on the seeds that are reported; a row a run."""
    concepts, d = LatentConcepts(cell["m"]), cell["d"]
    kept = {name: cell[name] for name in ("part", "m", "d", "steps")}
    rows = []
    for kind, train_embedding in _KINDS.items():
        recipes = [
            recipe(cell["m"], cell["L"], lr, cell["steps"], d, train_embedding=train_embedding) for lr in cell["lr"]
        ]
        best = recipes[0]
        if len(recipes) > 1:
            tried = work.train(concepts, recipes, cell["choosing"])
            accuracies = np.array([run.accuracy for run in tried])
            means = reduce(accuracies, "(recipe seed) -> recipe", "mean", recipe=len(recipes))
            best = recipes[int(np.nan_to_num(means, nan=-1.0).argmax())]
        for run in work.train(concepts, best, cell["seeds"]):
            found = {"accuracy": run.accuracy, "bayes": run.bayes, "diverged": run.diverged}
            rows.append(kept | {"W_E": kind, "lr": best.lr, "seed": run.seed} | found)
    return rows


def report(settings: EmbeddingTraining, rows: pd.DataFrame) -> Report:
    """Differences between trained and frozen, by m and d."""
    main_part, sweep = rows[rows["part"] == "grid"], rows[rows["part"] == "sweep"]
    below, above, drawn, table = [], [], [], []
    for m, of_m in main_part.groupby("m"):
        vocab = 1 << int(m)  # pyright: ignore[reportArgumentType]
        gains = {d: _gain(part) for d, part in of_m.groupby("d")}
        for d, part in of_m.groupby("d"):
            if int(d) < vocab:  # pyright: ignore[reportArgumentType]
                below.append(paired(f"m = {m}, d = {d}", gains[d], gains[2 * vocab]))
            rates = {f"lr, {kind}": part.loc[part["W_E"] == kind, "lr"].iloc[0] for kind in _KINDS}
            table.append({"m": m, "V": vocab, "d": d} | rates | _shown(part))
            panel = {"d": d, "panel": f"m = {m}, V = {vocab}"}
            drawn += [panel | {"W_E": f"W_E {kind}"} | over_seeds(_of(part, kind))._asdict() for kind in _KINDS]
            drawn.append(panel | {"W_E": "Bayes"} | over_seeds(part.groupby("seed")["bayes"].first())._asdict())
        above.append(paired(f"m = {m}", gains[2 * vocab], gains[vocab // 2]))
    chosen = main_part.groupby(["m", "d", "W_E"])["lr"].first()
    ends = {"smallest": int((chosen == min(settings.lr)).sum()), "largest": int((chosen == max(settings.lr)).sum())}
    swept = [
        {"lr": lr, "steps": steps} | _shown(part) for (lr, steps), part in sweep.groupby(["lr", "steps"], sort=True)
    ]
    return Report(
        evidence=((RULES[0], below), (RULES[1], above)),
        figures={
            f"Accuracy over d; mean and 95% interval over {settings.seeds} seeds. Bayes is the ceiling.": curves(
                pd.DataFrame(drawn),
                x="d",
                y="mean",
                xlabel="dimension d",
                ylabel="accuracy",
                panel="panel",
                series="W_E",
                log2=True,
                ylim=(0, 1),
            )
        },
        tables={
            "Accuracy by m and d, at the learning rate chosen": pd.DataFrame(table),
            f"The sweep: m = {min(settings.m)}, d = {1 << (min(settings.m) - 1)}": pd.DataFrame(swept),
        },
        notes=(
            f"The learning rate was chosen from {', '.join(f'{lr:g}' for lr in settings.lr)} by seeds "
            f"{', '.join(map(str, settings.choosing))}; reported are {settings.seeds} others. Of {len(chosen)} "
            f"choices {ends['smallest']} fell on the smallest of the set and {ends['largest']} on the largest.",
        ),
    )


def _of(part: pd.DataFrame, kind: str) -> pd.Series:
    """The accuracies of one kind, by seed."""
    return part[part["W_E"] == kind].set_index("seed")["accuracy"].sort_index()


def _gain(part: pd.DataFrame) -> pd.Series:
    return _of(part, "trained") - _of(part, "frozen")


def _shown(part: pd.DataFrame) -> dict[str, Any]:
    """A table's columns for one setting."""
    return {kind: str(over_seeds(_of(part, kind))) for kind in _KINDS} | {
        _DIFFERENCE: str(over_seeds(_gain(part))),
        "Bayes": str(over_seeds(part.groupby("seed")["bayes"].first())),
        "diverged": part["diverged"].notna().sum(),
    }


if __name__ == "__main__":
    sys.exit(main(__name__))
