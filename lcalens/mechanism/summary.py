"""Patched values as a result: recovery, and its intervals over examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lcalens.core.provenance import versions
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.statistics import CONFIDENCE, RESAMPLES
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.measured import Measured, bootstrap_weights, clusters_of, in_chunks

_SMALL = 1e-9


def ratio_of_means(
    part: Float[np.ndarray, "example ..."],
    whole: Float[np.ndarray, " example"],
    clusters: np.ndarray | None = None,
    *,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """The mean of `part` over the mean of `whole`, with the ends of a percentile bootstrap interval over examples.

    A ratio of means and not a mean of ratios: an example that nothing moves has no ratio. Examples where a part is NaN
    do not count for it.

    Args:
        part: What is explained.
        whole: What there is to explain.
        clusters: Of the examples; they are resampled whole.
        seed: Of the resampling.
    """
    shares = Measured({}, part.reshape(len(part), -1), whole)
    middle = shares.mean(np.ones((1, len(part))))[0]
    low, high = np.full((2, len(middle)), np.nan)
    if len(part) > 1:
        weights = bootstrap_weights(len(part), clusters, RESAMPLES, seed)
        drawn = np.vstack([shares.mean(some) for some in in_chunks(weights, len(middle))])
        known, tail = np.isfinite(drawn).any(0) & np.isfinite(middle), (1 - CONFIDENCE) / 2
        if known.any():
            low[known], high[known] = np.nanquantile(drawn[:, known], [tail, 1 - tail], axis=0)
    shape = part.shape[1:]
    return middle.reshape(shape), low.reshape(shape), high.reshape(shape)


def site_table(labels: Mapping[str, tuple[Any, ...]], columns: Mapping[str, Float[np.ndarray, "..."]]) -> pd.DataFrame:
    """A row a site: its labels, then its numbers.

    Args:
        labels: The axes.
        columns: Numbers over the axes.
    """
    grid = np.indices(tuple(len(axis) for axis in labels.values()))
    named = {name: np.array(axis, dtype=object)[grid[i]].ravel() for i, (name, axis) in enumerate(labels.items())}
    return pd.DataFrame(named | {name: values.ravel() for name, values in columns.items()}).infer_objects()


def plain_positions(positions: str | int | tuple[int, ...]) -> str | int | list[int]:
    """Positions as JSON can hold them.

    Args:
        positions: As `read_positions` gives them.
    """
    return list(positions) if isinstance(positions, tuple) else positions


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
    clusters = clusters_of(contrast.examples)
    middle, low, high = ratio_of_means(values - hijacked, ends[:, 0] - ends[:, 1], clusters)
    columns = {"value": np.asarray(np.nanmean(values, 0)), "recovery": middle, "low": low, "high": high}
    return Result(
        kind=kind,
        axes={EXAMPLE: tuple(range(len(contrast))), **labels},
        values={"value": values, "recovery": recovery},
        examples=contrast.examples.assign(clean=ends[:, 0], hijacked=ends[:, 1]),
        tables={"summary": site_table(labels, columns)},
        provenance={"model": dict(model), **settings, "excluded": len(contrast.excluded), "versions": versions()},
    )
