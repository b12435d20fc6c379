"""Sites in order of their effect, how sure that order is, and how far two measurements agree on it."""

from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from lcalens.core.checks import check_choice, check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.core.provenance import versions
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.statistics import CONFIDENCE, RESAMPLES, bootstrap_weights, in_chunks, ratio_of_means
from lcalens.core.tables import lengthen
from lcalens.mechanism.measured import (
    DEFAULT,
    check_same_sites,
    clusters_of,
    measure,
    measure_hijack,
    paths_in_common,
    shared_examples,
)
from lcalens.mechanism.summary import interval

By = Literal["mean", "magnitude"]


def ranking(
    result: Result,
    *,
    quantity: str | None = None,
    by: By = "mean",
    held_out: Result | None = None,
    cluster: str | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Result:
    """Heads (or layers, or heads and positions) in order of their effect.

    The sites that lead are in part those that were lucky in these examples: their effects on the same examples flatter
    them. Rank on some examples and report the effects on others, `held_out`.

    Args:
        result: What `patch`, `attribute` or `split` found.
        quantity: Which of its values. By default of patching `recovery`, as a ratio of means (when hijacked activations
            are put into the clean run: recovery less 1, what is lost); of attribution `effect`; of a split `total`;
            else the first. Axes besides layer, head and position are summed.
        by: `mean`, the mean effect's magnitude; `magnitude`, the mean of the magnitudes, so that effects of either sign
            do not cancel.
        held_out: The same measured on other examples; its means and intervals stand beside the ranks.
        cluster: A column of the examples whose groups are resampled whole; `cluster` by default, where there is one.
        confidence: The intervals' coverage.
        resamples: Bootstrap samples of the examples.
        seed: Of the resampling.

    Returns:
        A result over the result's axes but `example`, with `rank` (1 leads; NaN where nothing was measured), `value`,
        the mean, bootstrap intervals of both, and `held_out` with its own. `summary` has a row for each site, in order.

    Raises:
        LcalensError: No such quantity, no examples, or a `held_out` of other sites or of the same examples.

    Example:
        >>> heads = patch(model, contrast[:2])
        >>> ranking(heads, held_out=patch(model, contrast[2:]))  # ranked on some examples, measured on others
    """
    check_choice("by", by, get_args(By))
    check_real("confidence", confidence, low=0, high=1)
    check_int("resamples", resamples, low=1)
    check_int("seed", seed, low=0)
    measured = measure("result", result, quantity)
    tail = (1 - confidence) / 2
    absolute = by == "magnitude"
    clusters = clusters_of(result.examples, cluster)
    drawing = {"confidence": confidence, "resamples": resamples, "seed": seed}
    once = np.ones((1, len(measured.part)))
    rank = _ranks(measured.mean(once, absolute=absolute))[0]
    columns = {"rank": rank} | interval("value", ratio_of_means(measured.part, measured.whole, clusters, **drawing))
    if len(measured.part) > 1:
        weights = in_chunks(bootstrap_weights(len(measured.part), clusters, resamples, seed), len(rank))
        drawn = np.vstack([_ranks(measured.mean(chunk, absolute=absolute)) for chunk in weights])
        columns["rank_low"] = np.where(np.isnan(rank), np.nan, np.quantile(drawn, tail, axis=0, method="lower"))
        columns["rank_high"] = np.where(np.isnan(rank), np.nan, np.quantile(drawn, 1 - tail, axis=0, method="higher"))
    else:
        columns |= {"rank_low": np.full(len(rank), np.nan), "rank_high": np.full(len(rank), np.nan)}
    if held_out is not None:
        held = measure("held_out", held_out, quantity)
        check_same_sites("held_out", measured, held)
        shared = len(shared_examples(result, held_out)[0])
        if shared:
            raise LcalensError(
                f"held_out: {shared} of its {len(held.part)} examples are among those ranked; measure it on others, "
                "such as contrast[100:] where contrast[:100] was ranked."
            )
        others = clusters_of(held_out.examples, cluster)
        columns |= interval("held_out", ratio_of_means(held.part, held.whole, others, **drawing))
    chosen = quantity or DEFAULT.get(result.kind, next(iter(result.values)))
    shape = tuple(len(labels) for labels in measured.axes.values())
    grid = np.indices(shape).reshape(len(shape), -1)
    named = {
        axis: pd.Series(labels).iloc[at].to_numpy()
        for (axis, labels), at in zip(measured.axes.items(), grid, strict=True)
    }
    units = {"rank": "rank"} | {name: result.units.get(chosen, "") for name in ("value", "held_out") if name in columns}
    wide = pd.DataFrame({**named, **columns}).sort_values("rank", kind="stable", ignore_index=True)
    return Result(
        kind="ranking",
        axes=measured.axes,
        values={name: values.reshape(shape) for name, values in columns.items()},
        tables={"summary": lengthen(wide, units)},
        units=units,
        provenance={
            "of": {"kind": result.kind, "examples": len(measured.part), "provenance": dict(result.provenance)},
            "quantity": chosen,
            "by": by,
            "held_out": None if held_out is None else len(held_out.axes[EXAMPLE]),
            "bootstrap": {"confidence": confidence, "resamples": resamples, "seed": seed, "cluster": cluster},
            "versions": versions(),
        },
    )


def agreement(
    a: Result,
    b: Result,
    *,
    k: int = 10,
    quantity: str | tuple[str, str] | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Result:
    """How far two results over the same sites agree: rank correlations, and the overlap of the leading sites.

    By default both are read as each site's part in the hijack, in units of the metric and positive where it raises it,
    whatever was put into what: so patching, attribution and split can be held against each other.

    Args:
        a: A result.
        b: Another, over the same sites.
        k: How many sites lead.
        quantity: A value of both, or one of each, to be compared as it is.
        confidence: The intervals' coverage.
        resamples: Bootstrap samples of the examples that both have (of clusters, where the examples have that column),
            the same for both; where they have none in common, each is resampled by itself.
        seed: Of the resampling.

    Returns:
        A result over the axis `measure`: Spearman's correlation of the mean effects, the same of their magnitudes, and
        the share of the `k` leading sites (by magnitude) that are in both. Of `path`, where the paths that both have
        are compared, there is also the share of `a`'s leading `k` that `b` misses. Its quantities are `agreement` with
        its interval, and what `chance` gives; `provenance` has the number of `sites` and of `shared` examples.

    Raises:
        LcalensError: No such quantity, other sites, or fewer sites than `k`.

    Example:
        >>> exact, estimated = patch(model, contrast), attribute(model, contrast)
        >>> agreement(exact, estimated, k=10)
    """
    check_real("confidence", confidence, low=0, high=1)
    check_int("resamples", resamples, low=1)
    check_int("seed", seed, low=0)
    names = quantity if isinstance(quantity, tuple | list) else (quantity, quantity)
    if len(names) != 2:
        raise LcalensError(f"quantity: expected a name, or one for each of the two results, got {quantity!r:.60}.")
    first, second = (
        measure_hijack(name, result) if asked is None else measure(name, result, asked)
        for name, result, asked in zip("ab", (a, b), names, strict=True)
    )
    first, second = paths_in_common(first, second)
    check_same_sites("b", first, second)
    common = shared_examples(a, b)
    shared = len(common[0])
    if shared:
        first, second = first.rows(common[0]), second.rows(common[1])
    usable = np.isfinite(first.part).any(0) & np.isfinite(second.part).any(0)
    sites = int(usable.sum())
    check_int("k", k, low=1, high=sites, why="there are no more sites")
    paths = "sender" in first.axes
    plain = [measured.mean(np.ones((1, len(measured.part))))[:, usable] for measured in (first, second)]
    for name, means in zip("ab", plain, strict=True):
        moved = int((means != 0).sum())
        if moved < k:
            raise LcalensError(
                f"k: {k} sites cannot lead in {name}, where {moved} of {sites} have an effect other than 0; ask for at "
                f"most {moved}."
                if moved
                else f"{name}: no site has an effect other than 0; nothing can be compared."
            )
    value = _compare(plain[0], plain[1], k)[:, 0]
    groups = [clusters_of(a.examples), clusters_of(b.examples)]
    if shared and groups[0] is not None:
        groups[0] = groups[0][common[0]]
    weights = [bootstrap_weights(len(first.part), groups[0], resamples, seed)]
    weights.append(weights[0] if shared else bootstrap_weights(len(second.part), groups[1], resamples, seed + 1))
    tail = (1 - confidence) / 2
    low, high = np.full((2, len(value)), np.nan)
    if min(len(first.part), len(second.part)) > 1:
        pairs = zip(*(in_chunks(sample_weights, first.part.shape[1]) for sample_weights in weights), strict=True)
        drawn = np.hstack([_compare(first.mean(x)[:, usable], second.mean(y)[:, usable], k) for x, y in pairs])
        low, high = np.nanquantile(drawn, [tail, 1 - tail], axis=1) if not np.isnan(value).all() else (low, high)
    measures = ("spearman", "spearman of magnitudes", f"overlap of the top {k}")
    chance = np.array([0.0, 0.0, k / sites])
    if paths:  # the share missed is what of the overlap is wanting, and so are the ends of its interval
        measures += (f"missed of the top {k}",)
        value, low, high, chance = (np.append(one, 1 - other[2]) for one, other in (
            (value, value), (low, high), (high, low), (chance, chance)))  # fmt: skip
    columns = {"agreement": value, "agreement_low": low, "agreement_high": high, "chance": chance}
    units = {"agreement": "share", "chance": "share"}
    return Result(
        kind="agreement",
        axes={"measure": measures},
        values=columns,
        tables={"summary": lengthen(pd.DataFrame({"measure": measures} | columns), units)},
        units=units,
        provenance={
            "of": [{"kind": result.kind, "provenance": dict(result.provenance)} for result in (a, b)],
            "quantity": list(names),
            "k": k,
            "sites": sites,
            "shared": shared,
            "bootstrap": {"confidence": confidence, "resamples": resamples, "seed": seed},
            "versions": versions(),
        },
    )


def _ranks(means: Float[np.ndarray, "sample place"]) -> Float[np.ndarray, "sample place"]:
    """Ranks by magnitude, 1 the greatest; ties share the best."""
    absent = np.isnan(means)
    ranks = rankdata(np.where(absent, np.inf, -np.abs(means)), method="min", axis=1).astype(np.float64)
    ranks[absent] = np.nan if len(means) == 1 else ranks.shape[1]
    return ranks


def _compare(
    first: Float[np.ndarray, "sample place"], second: Float[np.ndarray, "sample place"], k: int
) -> Float[np.ndarray, "3 sample"]:
    greatest = [np.argsort(-np.abs(x), axis=1, kind="stable")[:, :k] for x in (first, second)]
    flags: list[Bool[np.ndarray, "sample place"]] = []
    for x, leading in zip((first, second), greatest, strict=True):
        flags.append(np.zeros(x.shape, dtype=bool))
        np.put_along_axis(flags[-1], leading, True, axis=1)
    overlap = (flags[0] & flags[1]).sum(1) / k
    return np.stack([_spearman(first, second), _spearman(np.abs(first), np.abs(second)), overlap])


def _spearman(first: Float[np.ndarray, "sample place"], second: Float[np.ndarray, "sample place"]) -> np.ndarray:
    ranks = [rankdata(x, axis=1) for x in (first, second)]
    x, y = (r - r.mean(1, keepdims=True) for r in ranks)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
