"""What the toy probes share: one recipe, so a run is trained once for all; what a model answers; means over seeds."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lcalens import TrainConfig
from lcalens.core.estimates import Estimate, over_seeds
from lcalens.lca import LCAForCausalLM, Run
from lcalens.lca.world import bayes

Reader = Callable[[Tensor, Tensor], Tensor]
"""From a context's counts and its last token to a score for every token."""


def recipe(
    m: int,
    length: int,
    lr: float = TrainConfig.lr,
    steps: int = TrainConfig.steps,
    d_model: int | None = None,
    **changes: Any,
) -> TrainConfig:
    """The toy probes' recipe; d_a is d, and at most 32.

    Args:
        m: Latent bits.
        length: L.
        lr: Learning rate.
        steps: Training steps.
        d_model: d; V/2 by default.
        **changes: Other fields of `TrainConfig`.
    """
    width = 1 << (m - 1) if d_model is None else d_model
    return TrainConfig(length, width, min(width, 32), lr=lr, steps=steps, **changes)


def reader(run: Run, change: Callable[[LCAForCausalLM], LCAForCausalLM] | None = None) -> Reader:
    """The run's logits, or those of its model once changed; NaN where the run diverged.

    Args:
        run: A run.
        change: Gives another model, from the run's.
    """
    if run.diverged is not None:
        return lambda counts, last: torch.full_like(counts, torch.nan)
    return (run.model if change is None else change(run.model)).from_counts


@torch.no_grad()
def answered(read: Reader, counts: Tensor, last: Tensor, *wanted: Tensor) -> list[float]:
    """In what share of the contexts each wanted token has the largest score; a tie of k counts 1/k; NaN for NaN.

    Args:
        read: A model's, or Bayes'.
        counts: How often each token occurs, the last one included.
        last: The last token.
        *wanted: One token a context; several times.
    """
    scores = read(counts, last)
    missing = bool(scores.isnan().any())
    return [torch.nan if missing else float(bayes.accuracy(scores, one).mean()) for one in wanted]


def means(rows: pd.DataFrame, names: Sequence[str], value: str) -> pd.DataFrame:
    """The mean over seeds of every group, with `low` and `high`, for figures.

    Args:
        rows: A row a seed.
        names: Columns that tell groups apart; they stay, in the order in which the groups are met.
        value: The column of numbers.
    """
    groups = rows.groupby(list(names), sort=False)[value]
    return pd.DataFrame([dict(zip(names, key, strict=True)) | over_seeds(one)._asdict() for key, one in groups])  # pyright: ignore[reportArgumentType]


def wide(rows: pd.DataFrame, names: Sequence[str], across: str, value: str) -> pd.DataFrame:
    """The same as a table: a row for each of `names`, and a column of means with intervals for each of `across`.

    Args:
        rows: A row a seed.
        names: The columns that name a row.
        across: The column whose values become columns.
        value: The column of numbers.
    """
    frame = means(rows, [*names, across], value)
    frame["shown"] = [str(Estimate._make(one)) for one in frame[["mean", "low", "high"]].to_numpy()]
    table = frame.pivot(index=list(names), columns=across, values="shown")[list(dict.fromkeys(frame[across]))]
    return table.reset_index().rename_axis(columns=None)
