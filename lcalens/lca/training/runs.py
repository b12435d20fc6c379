"""Trained models: a run with its history, many runs as one table, and as a result that shows itself."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lcalens.core.results import EXAMPLE, Result
from lcalens.core.statistics import student_interval
from lcalens.lca.model.model import LCAForCausalLM
from lcalens.lca.training.config import TrainConfig
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.lca.world.provenance import world_provenance


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One trained model.

    Attributes:
        model: The trained model.
        concepts: The world it was trained on.
        config: Its recipe.
        seed: Of its weights and contexts.
        accuracy: On 16,000 fresh contexts; NaN where it diverged.
        bayes: The Bayes-optimal classifier's accuracy on the same contexts.
        history: Columns `step`, `loss` (mean cross-entropy since the row before, in nats) and `accuracy` (on
            `batch_size` fresh contexts).
        diverged: The step by which the loss was not finite or above 50 nats; None for a sound run.
    """

    model: LCAForCausalLM = field(repr=False)
    concepts: LatentConcepts
    config: TrainConfig
    seed: int
    accuracy: float
    bayes: float
    history: pd.DataFrame = field(repr=False)
    diverged: int | None = None


class Runs(Sequence[Run]):
    """Trained models, in the order of the recipes and, within each, of the seeds."""

    def __init__(self, runs: Iterable[Run]):
        self._runs = tuple(runs)

    def __getitem__(self, index: Any) -> Any:
        return Runs(self._runs[index]) if isinstance(index, slice) else self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    def to_frame(self) -> pd.DataFrame:
        """A row per run: its recipe, `seed`, `accuracy`, `bayes`, `diverged`."""
        return pd.DataFrame(
            [
                asdict(run.config)
                | {"seed": run.seed, "accuracy": run.accuracy, "bayes": run.bayes, "diverged": run.diverged}
                for run in self
            ]
        )

    @property
    def result(self) -> Result:
        """The runs as a result: loss and accuracy over the steps, means with intervals, a figure."""
        return training(self)

    def plot(self) -> Any:
        """Draw the accuracy over the steps, with Bayes: a matplotlib figure."""
        return self.result.plot()

    def __repr__(self) -> str:
        return f"Runs({len(self)})"

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        varied = [name for name in frame if name in ("seed", "accuracy", "bayes") or frame[name].nunique() > 1]
        return frame[varied].to_html(escape=True, index=False, float_format=lambda number: f"{number:.4g}")


def training(runs: "Sequence[Run]") -> Result:
    """Loss and accuracy over the steps of every run; `summary` has each recipe's mean accuracy with Student's interval.

    Args:
        runs: What `train` gave.

    Returns:
        A result over the axes example (a run) and evaluation, with `step`, `loss` (in nats) and `accuracy`.
    """
    configs = pd.DataFrame([asdict(run.config) for run in runs])
    varied = [name for name in configs if configs[name].nunique() > 1]
    examples = configs.assign(
        seed=[run.seed for run in runs], bayes=[run.bayes for run in runs], final=[run.accuracy for run in runs]
    )
    width = max(len(run.history) for run in runs)
    values = {name: np.full((len(runs), width), np.nan) for name in ("step", "loss", "accuracy")}
    for row, run in enumerate(runs):
        for name, array in values.items():
            array[row, : len(run.history)] = run.history[name]
    rows = []
    for key, group in examples.groupby(varied, dropna=False) if varied else [((), examples)]:
        sound = group["final"].dropna().to_numpy()
        low, high = student_interval(sound)
        named = dict(zip(varied, key if isinstance(key, tuple) else (key,), strict=True))
        rows.append(
            named
            | {"runs": len(group), "diverged": len(group) - len(sound)}
            | {"accuracy": sound.mean() if len(sound) else np.nan, "accuracy_low": low, "accuracy_high": high}
            | {"bayes": group["bayes"].mean()}
        )
    return Result(
        kind="training",
        axes={EXAMPLE: tuple(range(len(runs))), "evaluation": tuple(range(width))},
        values=values,
        examples=examples,
        tables={"summary": pd.DataFrame(rows)},
        provenance=world_provenance(runs[0].concepts),
    )
