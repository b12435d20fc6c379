"""Embeddings must be trained when they have fewer dimensions than there are tokens (C.4).

Accuracy on fresh contexts over the embeddings' dimension d, with W_E trained and with W_E frozen at its Gaussian start;
W_V and the attention are trained in both. Each has the better of the paper's two learning rates at that d. Training
goes on for several numbers of steps, as frozen embeddings learn slowly at these rates. A stronger control chooses from
a wider set of learning rates. Bayes is the ceiling that nothing beats.
"""

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from einops import reduce

from lcalens import LatentConcepts
from lcalens.core.errors import LcalensError
from lcalens.core.estimates import over_seeds
from probes.harness.figures import curves
from probes.harness.paper_figures import beside, span
from probes.harness.rules import CHANGE, SHARE, Evidence, Rule, paired
from probes.harness.run import main
from probes.harness.shares import mean_change, mean_share
from probes.harness.study import Report, Settings
from probes.harness.toy import recipe
from probes.harness.work import Work, reported_seeds

_BELOW: Any = {
    "effect": "the accuracy with W_E trained",
    "unit": "accuracy",
    "minimum": 0.1,
    "control": "the accuracy with W_E frozen",
    "margin": 0.05,
    "effect_range": SHARE,
    "control_range": SHARE,
}
_ABOVE: Any = {
    "effect": "the accuracy at d = 2V with W_E trained, less that with W_E frozen",
    "unit": "difference of accuracies",
    "minimum": 0.02,
    "control": "the same difference at d = V/2",
    "margin": 0.02,
    "sense": "at most",
    "effect_range": CHANGE,
    "control_range": CHANGE,
}
RULES = (
    Rule(
        claim="Below d = V, trained embeddings are more accurate than frozen Gaussian ones.",
        source="C.4",
        group="paper",
        sentence="Figure C.4 clearly shows that embedding training is needed when the dimension is smaller than the "
        "vocabulary size (d < V).",
        unknown="steps",
        headline="Below d = V, embeddings must be trained",
        **_BELOW,
    ),
    Rule(
        claim="Above d = V, frozen Gaussian embeddings do as well as trained ones.",
        source="C.4",
        group="paper",
        sentence="In the overparameterised regime (d > V) it is not required.",
        unknown="steps",
        **_ABOVE,
    ),
    Rule(
        claim="Below d = V, trained embeddings are more accurate, with the best of a wider set of learning rates too.",
        source="C.4, a stronger control",
        group="stronger",
        **_BELOW,
    ),
    Rule(
        claim="Above d = V, frozen embeddings do as well, with the best of a wider set of learning rates too.",
        source="C.4, a stronger control",
        group="stronger",
        **_ABOVE,
    ),
)
CHOICES = """
The paper takes the better learning rate of .01 and .001 for each d, at m = 5 to 8. Its optimiser, schedule, number of
steps, L and values of d are unknown to us. Here: AdamW with a learning rate that falls linearly to 0. The rate is
chosen by the mean accuracy of runs whose seeds are not among those reported, so that the choice does not flatter; a
rate at which one of those runs diverges is not chosen. Frozen embeddings keep their length of about 1, so W_V and the
attention must grow instead, which takes many steps at these rates: at d = V/2 and 2V training is made longer, and where
the steps decide the verdict says from how many to how many. A run of more steps is a run of its own, whose learning
rate falls over all of them. Where the loss still falls when the steps are made four times as many, or was not seen to
stop, a claim that is not met depends on the steps: it has neither held nor failed. The wider set of learning rates has
one number of steps.
"""
AFTERWARDS = """
That a claim not met depends on the steps where training had not ended was added when a first run had been seen, in
which frozen embeddings above V gained with every longer training; and the learning rate 1 to the wider set, whose
largest had been chosen every time.
"""
_KINDS = {"trained": True, "frozen": False}
_DIFFERENCE = "trained - frozen"
_STILL = 0.02
"""Training has not ended where as many more steps lower the loss by a larger share than this."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingTraining(Settings):
    """Accuracy over d with W_E trained and frozen.

    Attributes:
        m: Numbers of latent bits.
        length: Context length L.
        widths: Dimensions d, as multiples of V; 1/2 and 2 are always added.
        lr: Learning rates to choose from: the paper's.
        wide_lr: Those of the stronger control.
        wide_m: Its numbers of latent bits.
        choosing: Seeds by which the learning rate is chosen.
        steps: Training steps.
        longer: Pairs of m and a larger number of steps, at d = V/2 and 2V.
    """

    m: tuple[int, ...] = (5, 6, 7, 8)
    length: int = 64
    widths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    lr: tuple[float, ...] = (0.01, 0.001)
    wide_lr: tuple[float, ...] = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
    wide_m: tuple[int, ...] = (5, 6)
    choosing: tuple[int, ...] = (100,)
    steps: int = 1000
    longer: tuple[tuple[int, int], ...] = ((5, 4000), (5, 16_000), (6, 4000))

    def __post_init__(self):
        super().__post_init__()
        reported = reported_seeds(self.seeds)
        both = sorted(set(self.choosing) & set(reported))
        if both:
            raise LcalensError(
                f"choosing: the seeds {', '.join(map(str, both))} are among those reported, {reported[0]} to "
                f"{reported[-1]}; choose by others."
            )


PRESETS = {
    "quick": EmbeddingTraining(
        preset="quick", seeds=2, m=(4,), length=32, widths=(0.5, 1.0, 2.0), wide_lr=(0.01, 0.1), wide_m=(4,), steps=50,
        longer=((4, 200),),
    ),
    "standard": EmbeddingTraining(),
    "full": EmbeddingTraining(
        preset="full", seeds=3, widths=(0.125, 0.25, 0.5, 1.0, 2.0, 4.0), wide_m=(5, 6, 7),
        longer=tuple((m, steps) for m in (5, 6, 7, 8) for steps in (4000, 16_000)),
    ),
}  # fmt: skip


def grid(settings: EmbeddingTraining) -> list[dict[str, Any]]:
    """A cell for each m and d, for longer training at d = V/2 and 2V, and for the wider set of learning rates there."""
    ends = (0.5, 2.0)
    widths = sorted({*settings.widths, *ends})
    plan = [("grid", m, width, settings.lr, settings.steps) for m in settings.m for width in widths]
    plan += [
        ("grid", m, width, settings.lr, steps)
        for m, steps in settings.longer
        for width in ends
        if m in settings.m and steps != settings.steps
    ]
    plan += [("wide", m, width, settings.wide_lr, settings.steps) for m in settings.wide_m for width in ends]
    shared = {"L": settings.length, "seeds": settings.seeds, "choosing": settings.choosing}
    return [
        {"part": part, "m": m, "d": round(width * (1 << m)), "lr": lr, "steps": steps} | shared
        for part, m, width, lr, steps in plan
    ]


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
            found["loss"] = float(run.history["loss"].iloc[-1])
            rows.append(kept | {"W_E": kind, "lr": best.lr, "seed": run.seed} | found)
    return rows


def report(settings: EmbeddingTraining, rows: pd.DataFrame) -> Report:
    """Differences between trained and frozen, by m, d and steps."""
    main_part, wide = rows[rows["part"] == "grid"], rows[rows["part"] == "wide"]
    (below, above), (wide_below, wide_above) = _evidence(main_part), _evidence(wide, at=False)
    drawn, table = [], []
    for (m, d), part in main_part[main_part["steps"] == settings.steps].groupby(["m", "d"]):
        panel = {"d": d, "panel": f"m = {m}, V = {1 << int(m)}"}  # pyright: ignore[reportArgumentType]
        drawn += [panel | {"W_E": f"W_E {kind}"} | mean_share(_of(part, kind))._asdict() for kind in _KINDS]
        drawn.append(panel | {"W_E": "Bayes"} | mean_share(part.groupby("seed")["bayes"].first())._asdict())
    for (m, d, steps), part in main_part[main_part["steps"] > settings.steps].groupby(["m", "d", "steps"]):
        panel = {"d": d, "panel": f"m = {m}, V = {1 << int(m)}", "W_E": f"W_E frozen, {steps} steps"}  # pyright: ignore[reportArgumentType]
        drawn.append(panel | mean_share(_of(part, "frozen"))._asdict())
    table = [_line(key, part) for key, part in main_part.groupby(["m", "d", "steps"])]
    chosen = main_part.groupby(["m", "d", "steps", "W_E"])["lr"].first()
    ends = {"smallest": int((chosen == min(settings.lr)).sum()), "largest": int((chosen == max(settings.lr)).sum())}
    caption = (
        f"Accuracy over d after {settings.steps} steps, and of frozen embeddings after more; mean and 95% interval "
        f"over {settings.seeds} seeds. Bayes is the ceiling."
    )
    return Report(
        evidence=tuple(zip(RULES, (below, above, wide_below, wide_above), strict=True)),
        figures={
            caption: curves(
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
            "Accuracy and loss by m, d and steps, at the learning rate chosen": pd.DataFrame(table),
            "With the wider set of learning rates": pd.DataFrame(
                [_line(key, part) for key, part in wide.groupby(["m", "d", "steps"])]
            ),
        },
        notes=(
            f"The learning rate was chosen from {', '.join(f'{lr:g}' for lr in settings.lr)} by seeds "
            f"{', '.join(map(str, settings.choosing))}; reported are {settings.seeds} others. Of {len(chosen)} "
            f"choices {ends['smallest']} fell on the smallest of the set and {ends['largest']} on the largest.",
            _still_falling(main_part),
        ),
        paper=(
            beside(
                "Figure C.4",
                f"L = {settings.length}, the values of d, AdamW, a rate that falls linearly to 0, the steps; Bayes.",
                caption,
                _seen(below, above),
            ),
        ),
    )


def _evidence(rows: pd.DataFrame, *, at: bool = True) -> tuple[list[Evidence], list[Evidence]]:
    """What each m, d and number of steps says below V and above; without a d = 2V there is nothing to say above."""
    below, above, ended = [], [], _ended(rows)
    for (m, steps), part in rows.groupby(["m", "steps"]):
        asked: dict[str, Any] = {"at": int(steps)} if at else {}  # pyright: ignore[reportArgumentType]
        vocab = 1 << int(m)  # pyright: ignore[reportArgumentType]
        of = dict(list(part.groupby("d")))
        for d, some in of.items():
            if int(d) < vocab:  # pyright: ignore[reportArgumentType]
                pair = (_of(some, "trained"), _of(some, "frozen"))
                found = paired(f"m = {m}, d = {d}, {steps} steps", *pair, **asked)
                below.append(replace(found, unfinished=(m, d) not in ended, case=f"m = {m}, d = {d}"))
        found = paired(f"m = {m}, {steps} steps", _gain(of[2 * vocab]), _gain(of[vocab // 2]), **asked)
        above.append(replace(found, unfinished=(m, 2 * vocab) not in ended, case=f"m = {m}"))
    return below, above


def _ended(rows: pd.DataFrame) -> set[tuple[Any, Any]]:
    """The m and d at which the largest number of steps lowers no loss any more; not those with one number of steps."""
    ended = set()
    for key, part in rows.groupby(["m", "d"]):
        losses = [some.groupby("steps")["loss"].mean().sort_index() for _, some in part.groupby("W_E")]
        if all(len(loss) > 1 and not _falls(loss) for loss in losses):
            ended.add(key)
    return ended


def _falls(loss: pd.Series) -> bool:
    """Whether the largest number of steps still lowers the loss."""
    return bool(loss.iloc[-1] < (1 - _STILL) * loss.iloc[-2])


def _still_falling(rows: pd.DataFrame) -> str:
    """Where the most steps of all still lower the loss, in words."""
    falls = []
    for (m, d, kind), part in rows.groupby(["m", "d", "W_E"]):
        loss = part.groupby("steps")["loss"].mean().sort_index()
        if len(loss) > 1 and _falls(loss):
            fall = 1 - loss.iloc[-1] / loss.iloc[-2]
            falls.append(f"m = {m}, d = {d}, {kind} (by {fall:.0%} from {loss.index[-2]} to {loss.index[-1]} steps)")
    if not falls:
        return "Where training was made longer, the loss no longer falls at the largest number of steps."
    return "The loss still falls at the largest number of steps at " + "; ".join(falls) + "."


def _seen(below: list[Evidence], above: list[Evidence]) -> str:
    """Both differences in words, those above V by steps."""
    at = {steps: [one for one in above if one.at == steps] for steps in sorted({one.at for one in above})}  # pyright: ignore[reportArgumentType]
    by_steps = "; ".join(f"{span(one.effect.mean for one in some)} after {steps} steps" for steps, some in at.items())
    return (
        f"Below d = V trained embeddings are {span(one.excess.mean for one in below)} more accurate than frozen ones. "
        f"At d = 2V trained less frozen is {by_steps}: at the paper's learning rates frozen embeddings need many "
        "steps, and the page of the probe says where the loss still falls."
    )


def _line(key: Any, part: pd.DataFrame) -> dict[str, Any]:
    rates = {f"lr, {kind}": part.loc[part["W_E"] == kind, "lr"].iloc[0] for kind in _KINDS}
    losses = {f"loss, {kind}": str(over_seeds(part.loc[part["W_E"] == kind, "loss"])) for kind in _KINDS}
    return dict(zip(("m", "d", "steps"), key, strict=True)) | rates | _shown(part) | losses


def _of(part: pd.DataFrame, kind: str) -> pd.Series:
    """The accuracies of one kind, by seed."""
    return part[part["W_E"] == kind].set_index("seed")["accuracy"].sort_index()


def _gain(part: pd.DataFrame) -> pd.Series:
    return _of(part, "trained") - _of(part, "frozen")


def _shown(part: pd.DataFrame) -> dict[str, Any]:
    """A table's columns for one setting."""
    return {kind: str(mean_share(_of(part, kind))) for kind in _KINDS} | {
        _DIFFERENCE: str(mean_change(_gain(part))),
        "Bayes": str(mean_share(part.groupby("seed")["bayes"].first())),
        "diverged": part["diverged"].notna().sum(),
    }


if __name__ == "__main__":
    sys.exit(main(__name__))
