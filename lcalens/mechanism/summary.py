"""Patched values as a result: recovery, and its intervals over examples."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lcalens.mechanism.contrast import Contrast
from lcalens.provenance import versions
from lcalens.results import EXAMPLE, Result
from lcalens.statistics import CONFIDENCE, RESAMPLES

_SMALL = 1e-9


def ratio_of_means(
    part: Float[np.ndarray, "example ..."], whole: Float[np.ndarray, " example"], *, seed: int = 0
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """The mean of `part` over the mean of `whole`, with the ends of a percentile bootstrap interval over examples.

    A ratio of means and not a mean of ratios: an example that nothing moves has no ratio. Examples where a part is NaN
    do not count for it.

    Args:
        part: What is explained.
        whole: What there is to explain.
        seed: Of the resampling.
    """
    flat = part.reshape(len(part), -1)
    measured = np.isfinite(flat)
    filled = np.where(measured, flat, 0.0)
    count = len(flat)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    middle = _ratio(filled.sum(0), (measured * whole[:, None]).sum(0))
    drawn = _ratio(weights @ filled, weights @ (measured * whole[:, None]))
    low, high = np.full((2, len(middle)), np.nan)
    known = np.isfinite(drawn).any(0) & np.isfinite(middle)
    if count > 1 and known.any():
        tail = (1 - CONFIDENCE) / 2
        low[known], high[known] = np.nanquantile(drawn[:, known], [tail, 1 - tail], axis=0)
    shape = part.shape[1:]
    return middle.reshape(shape), low.reshape(shape), high.reshape(shape)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where there is nothing to have a share of: rounding alone would make it any number."""
    there = np.abs(whole) > _SMALL
    return np.where(there, part / np.where(there, whole, 1.0), np.nan)


def told(positions: Any) -> str | int | list[int]:
    """Positions as JSON can hold them.

    Args:
        positions: As a user gives them.
    """
    if isinstance(positions, str):
        return positions
    return int(positions) if isinstance(positions, Integral) else [int(position) for position in positions]


def patching_result(
    contrast: Contrast,
    values: Float[np.ndarray, "example ..."],
    ends: Float[np.ndarray, "example 2"],
    labels: Mapping[str, tuple[Any, ...]],
    *,
    kind: str = "patching",
    model: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Result:
    """The result of patching.

    Args:
        contrast: The examples.
        values: The patched runs' metric.
        ends: The clean and the hijacked run's.
        labels: The axes but `example`.
        kind: Of the result.
        model: Where the model came from.
        settings: What was asked for.
    """
    shape = (-1, *(1 for _ in labels))
    clean, hijacked = (ends[:, i].reshape(shape) for i in range(2))
    gap = clean - hijacked
    with np.errstate(divide="ignore", invalid="ignore"):
        recovery = np.where(np.abs(gap) > _SMALL, (values - hijacked) / gap, np.nan)
    middle, low, high = ratio_of_means(values - hijacked, (ends[:, 0] - ends[:, 1]))
    grid = np.indices(middle.shape)
    columns = {name: np.array(axis, dtype=object)[grid[i]].ravel() for i, (name, axis) in enumerate(labels.items())}
    columns |= {"value": np.nanmean(values, 0).ravel(), "recovery": middle.ravel()}
    summary = pd.DataFrame(columns | {"low": low.ravel(), "high": high.ravel()})
    return Result(
        kind=kind,
        axes={EXAMPLE: tuple(range(len(contrast))), **labels},
        values={"value": values, "recovery": recovery},
        examples=contrast.examples.assign(clean=ends[:, 0], hijacked=ends[:, 1]),
        tables={"summary": summary.infer_objects()},
        provenance={"model": dict(model), **settings, "excluded": len(contrast.excluded), "versions": versions()},
    )
