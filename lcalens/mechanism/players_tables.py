"""The tables of `shapley`: players, what they are together, pairs, and the best set of each size."""

from typing import Any

import numpy as np
import pandas as pd

from lcalens.core.coalitions import best_coalitions, members, shapley_interactions
from lcalens.core.results import EXAMPLE
from lcalens.core.statistics import ratio_of_means
from lcalens.core.tables import lengthen
from lcalens.mechanism.summary import interval

QUANTITIES = ("shapley", "alone", "last")


def tables_of(
    axis: str,
    labels: tuple[Any, ...],
    values: dict[str, np.ndarray],
    everyone: np.ndarray,
    whole: np.ndarray,
    worths: np.ndarray | None,
    clusters: np.ndarray | None,
    unit: str,
) -> dict[str, pd.DataFrame]:
    """Means with 95% bootstrap intervals; where every coalition was run, pairs and the best sets besides.

    Args:
        axis: What the players are called.
        labels: The players.
        values: Example by example and player by player, each of `QUANTITIES`.
        everyone: What all players together are worth, example by example.
        whole: The hijack, hijacked - clean.
        worths: Of every coalition; None where orders were sampled.
        clusters: Of the examples; they are resampled whole.
        unit: Of the values.
    """
    each = np.ones(len(whole))
    columns: dict[str, Any] = {axis: list(labels)}
    for name in QUANTITIES:  # a player that an example does not have adds nothing there
        columns |= interval(name, ratio_of_means(np.nan_to_num(values[name]), each, clusters))
    columns |= interval("share", ratio_of_means(np.nan_to_num(values["shapley"]), whole, clusters))
    tables = {"summary": lengthen(pd.DataFrame(columns), dict.fromkeys(QUANTITIES, unit) | {"share": "share"})}
    parts = {"together": everyone, "each alone, summed": np.nansum(values["alone"], 1)}
    if worths is None:
        return tables | {"together": _parts(parts, whole, clusters, unit)}
    first, second = np.triu_indices(len(labels), 1)
    between = shapley_interactions(worths)[:, first, second]
    parts |= {"redundancy": np.minimum(between, 0).sum(1), "synergy": np.maximum(between, 0).sum(1)}
    tables["together"] = _parts(parts, whole, clusters, unit)
    names = {axis: [labels[i] for i in first], "other": [labels[i] for i in second]}
    tables["pairs"] = lengthen(
        pd.DataFrame(names | interval("interaction", ratio_of_means(between, each, clusters))), {"interaction": unit}
    )
    tables["curve"] = _curve(axis, labels, worths, whole, clusters)
    tables["interactions"] = _by_example(between, names, unit)
    tables["best"] = _best(axis, labels, worths, unit)
    return tables


def _parts(parts: dict[str, np.ndarray], whole: np.ndarray, clusters: np.ndarray | None, unit: str) -> pd.DataFrame:
    stacked = np.stack(list(parts.values()), 1)
    columns = {"part": list(parts)} | interval("effect", ratio_of_means(stacked, np.ones(len(whole)), clusters))
    columns |= interval("share", ratio_of_means(stacked, whole, clusters))
    return lengthen(pd.DataFrame(columns), {"effect": unit, "share": "share"})


def _curve(
    axis: str, labels: tuple[Any, ...], worths: np.ndarray, whole: np.ndarray, clusters: np.ndarray | None
) -> pd.DataFrame:
    """The best set of each size by the mean over all examples, and what sets so chosen on other examples are worth."""
    chosen = best_coalitions(worths.mean(0))
    halves = [np.arange(len(worths)) % 2 == half for half in range(2)] if len(worths) >= 4 else []
    measured = worths[:, chosen].copy()
    for half in halves:
        measured[half] = worths[half][:, best_coalitions(worths[~half].mean(0))]
    held = ratio_of_means(measured if halves else np.full_like(measured, np.nan), whole, clusters)
    columns: dict[str, Any] = {
        "size": range(len(chosen)),
        axis: [_named(labels, number) for number in chosen.tolist()],
    }
    columns |= interval("recovery", held) | interval("here", ratio_of_means(worths[:, chosen], whole, clusters))
    return lengthen(pd.DataFrame(columns), {"recovery": "share", "here": "share"})


def _by_example(between: np.ndarray, names: dict[str, list[Any]], unit: str) -> pd.DataFrame:
    examples, pairs = between.shape
    columns: dict[str, Any] = {EXAMPLE: np.repeat(np.arange(examples), pairs)}
    columns |= {name: labels * examples for name, labels in names.items()}
    return lengthen(pd.DataFrame(columns | {"interaction": between.ravel()}), {"interaction": unit})


def _best(axis: str, labels: tuple[Any, ...], worths: np.ndarray, unit: str) -> pd.DataFrame:
    rows = [
        {EXAMPLE: example, "size": size, axis: _named(labels, number), "effect": worth[number]}
        for example, worth in enumerate(worths)
        for size, number in enumerate(best_coalitions(worth).tolist())
    ]
    return lengthen(pd.DataFrame(rows), {"effect": unit})


def _named(labels: tuple[Any, ...], number: int) -> str:
    """The members of a coalition."""
    return " ".join(str(label) for label, inside in zip(labels, members(len(labels))[number], strict=True) if inside)
