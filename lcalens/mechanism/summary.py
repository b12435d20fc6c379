"""Patched values as a result: recovery, and its intervals over examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lcalens.core.provenance import versions
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.statistics import ratio_of_means
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.measured import clusters_of

_SMALL = 1e-9


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
