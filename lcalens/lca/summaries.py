"""What a trained model looks like, as results that show themselves: its training, its Gram matrix, its attention."""

import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from lcalens.core.checks import check_int
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.statistics import CONFIDENCE
from lcalens.lca.geometry import gram_hamming_fit
from lcalens.lca.model.model import LCAForCausalLM
from lcalens.lca.world.concepts import LatentConcepts

if TYPE_CHECKING:
    from lcalens.lca.training.train import Run

_MOST_LATENTS = 10


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
        low, high = _student(sound)
        named = dict(zip(varied, key if isinstance(key, tuple) else (key,), strict=True))
        rows.append(
            named
            | {"runs": len(group), "diverged": len(group) - len(sound)}
            | {"accuracy": sound.mean() if len(sound) else np.nan, "low": low, "high": high}
            | {"bayes": group["bayes"].mean()}
        )
    return Result(
        kind="training",
        axes={EXAMPLE: tuple(range(len(runs))), "evaluation": tuple(range(width))},
        values=values,
        examples=examples,
        tables={"summary": pd.DataFrame(rows)},
        provenance=_provenance(runs[0].concepts),
    )


def gram(concepts: LatentConcepts, model: LCAForCausalLM) -> Result:
    """Inner products of the embeddings by Hamming distance, and the line of equation 5.2 through them.

    Args:
        concepts: The world.
        model: The model.

    Returns:
        A result over the axis distance (0 to m), with the inner products' `mean` and `deviation`; `summary` has a, b,
        b0 and both R2 of <e_t, e_t'> = b - a D_H.

    Raises:
        LcalensError: A model of another vocabulary.
    """
    embedding = model.embed.weight.detach()
    fit = gram_hamming_fit(concepts, embedding)
    squared = embedding.double().square().sum(-1).cpu().numpy()
    fitted = {name: [getattr(fit, name)] for name in ("a", "b", "b0", "r2_pairs", "r2_means")}
    return Result(
        kind="gram",
        axes={"distance": tuple(range(concepts.m + 1))},
        values={"mean": np.array([fit.b0, *fit.means]), "deviation": np.array([squared.std(), *fit.deviations])},
        tables={"summary": pd.DataFrame(fitted)},
        provenance=_provenance(concepts),
    )


def attention_pattern(concepts: LatentConcepts, model: LCAForCausalLM) -> Result:
    """Where each token as the last one looks, when every token occurs once.

    Args:
        concepts: The world.
        model: The model.

    Returns:
        A result over the axes query (the last token) and key, with `attention`; every row sums to 1.

    Raises:
        LcalensError: m above 10: the table is V x V.
    """
    check_int("m", concepts.m, low=2, high=_MOST_LATENTS, why="the table is V x V")
    size, device = concepts.vocab_size, model.embed.weight.device
    with torch.no_grad():
        pattern = model.attention_from_counts(torch.ones(size, size, device=device), torch.arange(size, device=device))
    names = tuple(format(token, f"0{concepts.m}b") for token in range(size))
    return Result(
        kind="attention-pattern",
        axes={"query": names, "key": names},
        values={"attention": pattern.double().cpu().numpy()},
        provenance=_provenance(concepts),
    )


def _student(values: np.ndarray) -> tuple[float, float]:
    """Student's interval of the mean over seeds; NaN for fewer than two."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _provenance(concepts: LatentConcepts) -> dict[str, Any]:
    from lcalens.core.provenance import versions

    return {"concepts": asdict(concepts), "versions": versions(), "machine": platform.machine()}
