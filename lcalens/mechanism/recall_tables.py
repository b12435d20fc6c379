"""The tables of `recall`: means with intervals, nulls, and the test against random circuits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lcalens.core.statistics import holm, ratio_of_means
from lcalens.core.tables import lengthen
from lcalens.mechanism.recall_measures import QUANTITIES, UNITS
from lcalens.mechanism.summary import interval


def known_mean(values: Float[np.ndarray, " source"]) -> float:
    """The mean of what is known.

    Args:
        values: NaN where nothing is.
    """
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def spread(found: Sequence[dict[str, np.ndarray]]) -> dict[str, float]:
    """Of one table its means; of several the mean of their means, and the middle 95% of them.

    Args:
        found: Of each table, from `measures`.
    """
    row: dict[str, float] = {}
    for name in QUANTITIES:
        values = np.array([known_mean(one[name]) for one in found])
        values = values[~np.isnan(values)]
        row[name] = float(values.mean()) if len(values) else np.nan
        if len(values) > 1:
            row[f"{name}_low"], row[f"{name}_high"] = (float(end) for end in np.quantile(values, [0.025, 0.975]))
        else:
            row[f"{name}_low"] = row[f"{name}_high"] = np.nan
    return row


def summary_table(names: list[str], found: list[dict[str, np.ndarray]], clusters: np.ndarray | None) -> pd.DataFrame:
    """Each head's means over sources, with 95% bootstrap intervals.

    Args:
        names: The heads'.
        found: Of each head, from `measures`.
        clusters: Of the sources; they are resampled whole.
    """
    columns: dict[str, Any] = {"head": names}
    for name in QUANTITIES:
        stacked = np.stack([one[name] for one in found], 1)
        columns |= interval(name, ratio_of_means(stacked, np.ones(len(stacked)), clusters))
    both = [np.where(np.isnan(one["own_gap"]), np.nan, one["related_gap"]) for one in found]
    ratios = [ratio_of_means(part[:, None], np.nan_to_num(one["own_gap"]), clusters)
              for part, one in zip(both, found, strict=True)]  # fmt: skip
    columns |= interval("relative", tuple(np.concatenate([one[end] for one in ratios]) for end in range(3)))  # pyright: ignore[reportArgumentType]
    return lengthen(pd.DataFrame(columns), UNITS | {"relative": "share"})


def tests_table(names: list[str], found: list[dict[str, np.ndarray]], drawn: list[np.ndarray]) -> pd.DataFrame:
    """Of each head the share of random circuits of its spectrum with as much association left; Holm over the heads.

    Args:
        names: The heads'.
        found: Of each head, from `measures`.
        drawn: Of each head, what is left in each random circuit.
    """
    shares = []
    for one, random in zip(found, drawn, strict=True):
        left, known = known_mean(one["left"]), random[~np.isnan(random)]
        tested = not np.isnan(left) and len(known)
        shares.append(float((1 + (known >= left).sum()) / (1 + len(known))) if tested else np.nan)
    wide = pd.DataFrame({"head": names, "p": shares, "p_holm": holm(shares)})
    return lengthen(wide, {"p": "probability", "p_holm": "probability"})


def sources_table(
    names: list[str], axis: str, labels: tuple[Any, ...], found: list[dict[str, np.ndarray]]
) -> pd.DataFrame:
    """Every quantity, head by head and source by source.

    Args:
        names: The heads'.
        axis: What the sources are called.
        labels: The sources'.
        found: Of each head, from `measures`.
    """
    columns: dict[str, Any] = {
        "head": np.repeat(names, len(labels)),
        axis: list(labels) * len(names),
    }
    columns |= {name: np.concatenate([one[name] for one in found]) for name in QUANTITIES}
    return lengthen(pd.DataFrame(columns), UNITS)
