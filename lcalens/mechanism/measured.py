"""What results hold of each site, example by example, and how it is resampled: what rankings are made of."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from lcalens.core.checks import check_choice
from lcalens.core.errors import LcalensError
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.statistics import weighted_ratio

DEFAULT = {"patching": "recovery", "knockout": "recovery", "attribution": "effect", "split": "total"}
_PATCHED = ("patching", "knockout")  # kinds whose values are the metric of a changed run
_PATHS = ("sender", "receiver")
_SITES = ("layer", "head", "position", *_PATHS)
_ENDS = ("clean", "hijacked")  # the metrics in a result's examples
_CLOSE = 1e-3
CLUSTER = "cluster"
EXAMPLE_KEYS = "example_keys"  # in provenance: a digest of each example


@dataclass(frozen=True, eq=False)
class Measured:
    """Effects over the sites in one row, and what they are a share of (1 for effects by themselves)."""

    axes: dict[str, tuple[Any, ...]]
    part: Float[np.ndarray, "example place"]
    whole: Float[np.ndarray, " example"]

    def mean(self, weights: Float[np.ndarray, "sample example"], *, absolute: bool = False) -> np.ndarray:
        """Weighted means, or ratios of them; of magnitudes if asked. NaN where nothing was measured."""
        return weighted_ratio(self.part, self.whole, weights, absolute=absolute)

    def rows(self, which: Int[np.ndarray, " row"]) -> "Measured":
        """Some of the examples."""
        return Measured(self.axes, self.part[which], self.whole[which])


def _checked(name: str, result: Any, quantity: str | None) -> str:
    if not isinstance(result, Result):
        raise LcalensError(f"{name}: expected a Result, got {type(result).__name__} ({result!r:.60}).")
    if "side" in result.axes:
        raise LcalensError(
            f"{name}: a result of kind {result.kind!r} has two sides, each of which sums to the whole score, so that a "
            "head's parts have no sum of their own; take its tables, such as wide('heads')."
        )
    if EXAMPLE not in result.axes or not set(result.axes) & set(_SITES):
        raise LcalensError(
            f"{name}: a result of kind {result.kind!r} over {', '.join(result.axes)} has no effects by example."
        )
    chosen = DEFAULT.get(result.kind, next(iter(result.values))) if quantity is None else quantity
    return check_choice("quantity", chosen, result.values)


def _flat(result: Result, values: np.ndarray) -> tuple[dict[str, tuple[Any, ...]], Float[np.ndarray, "example place"]]:
    """The sites' axes and the values with the sites in one row, any other axis summed."""
    others = tuple(i for i, axis in enumerate(result.axes) if axis != EXAMPLE and axis not in _SITES)
    kept = [axis for axis in result.axes if axis == EXAMPLE or axis in _SITES]
    if others:
        nothing = np.isnan(values).all(others)
        values = np.where(nothing, np.nan, np.nansum(values, others))
    values = np.moveaxis(values, kept.index(EXAMPLE), 0)
    axes = {axis: tuple(result.axes[axis]) for axis in kept if axis != EXAMPLE}
    return axes, values.reshape(len(values), -1).astype(np.float64)


def measure(name: str, result: Any, quantity: str | None) -> Measured:
    """A result's quantity, or its kind's own.

    Args:
        name: The argument.
        result: What was given for it.
        quantity: Which of its values.

    Raises:
        LcalensError: It has no such quantity, or no examples or sites.
    """
    chosen = _checked(name, result, quantity)
    one_each = np.ones(len(result.examples))
    if chosen == "recovery" and result.kind in _PATCHED:
        clean, hijacked = (result.examples[end].to_numpy(np.float64) for end in _ENDS)
        axes, values = _flat(result, result.values["value"])
        base = clean if _direction(result) == "corrupt" else hijacked
        return Measured(axes, values - base[:, None], clean - hijacked)
    return Measured(*_flat(result, result.values[chosen]), one_each)


def measure_hijack(name: str, result: Any) -> Measured:
    """Each site's part in the hijack: what goes when it is restored, or comes when it is corrupted.

    Args:
        name: The argument.
        result: What was given for it.

    Raises:
        LcalensError: It has no examples or sites.
    """
    measured = measure(name, result, None)
    restores = result.kind in (*_PATCHED, "attribution") and _direction(result) != "corrupt"
    return Measured(measured.axes, -measured.part if restores else measured.part, np.ones(len(measured.part)))


def _direction(result: Result) -> Any:
    return result.provenance.get("direction", "restore")


def check_same_sites(name: str, first: Measured, second: Measured) -> None:
    """Refuse results over different sites.

    Raises:
        LcalensError: They are.
    """
    if first.axes != second.axes:
        sizes = [", ".join(f"{axis} {len(labels)}" for axis, labels in m.axes.items()) for m in (first, second)]
        raise LcalensError(
            f"{name}: its sites ({sizes[1]}) are not those of the other result ({sizes[0]}), or named apart."
        )


def paths_in_common(first: Measured, second: Measured) -> tuple[Measured, Measured]:
    """Of paths those that both have, so that a screen of all is held against what was measured of some.

    Args:
        first: Effects over sites.
        second: Others; what is not over senders and receivers stays as it is.
    """
    if any(tuple(measured.axes) != _PATHS for measured in (first, second)):
        return first, second
    axes = {axis: tuple(label for label in first.axes[axis] if label in second.axes[axis]) for axis in _PATHS}
    found = []
    for measured in (first, second):
        at = np.ix_(*([measured.axes[axis].index(label) for label in axes[axis]] for axis in _PATHS))
        shape = tuple(len(measured.axes[axis]) for axis in _PATHS)
        places = np.arange(np.prod(shape)).reshape(shape)[at].ravel()
        found.append(Measured(axes, measured.part[:, places], measured.whole))
    return found[0], found[1]


def shared_examples(a: Result, b: Result) -> tuple[Int[np.ndarray, " shared"], Int[np.ndarray, " shared"]]:
    """Where the examples that both have stand in each: of the same tokens and answers.

    Results that say nothing of these have the examples in common that are alike in every column but measured numbers.
    An index alone does not tell those apart: where both measured the same metric of the runs, it must be close too.

    Args:
        a: A result.
        b: Another.
    """
    digests = [r.provenance.get(EXAMPLE_KEYS, ()) for r in (a, b)]
    if all(len(some) == len(r.examples) > 0 for some, r in zip(digests, (a, b), strict=True)):
        first, second = ([str(key) for key in some] for some in digests)
        return _paired(first, second, *(np.zeros((len(some), 0)) for some in (first, second)))
    both = [name for name in a.examples if name in b.examples and name not in _ENDS]
    both = [name for name in both if not any(pd.api.types.is_float_dtype(r.examples[name]) for r in (a, b))]
    ends = list(_ENDS) if _metric(a) == _metric(b) and all(set(_ENDS) <= set(r.examples) for r in (a, b)) else []
    if not both and not ends:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    keys = [[str(row) for row in r.examples[both].itertuples(index=False, name=None)] for r in (a, b)]
    measured = [r.examples[ends].to_numpy(np.float64) for r in (a, b)]
    return _paired(keys[0], keys[1], measured[0], measured[1])


def _paired(
    first: list[str], second: list[str], ends: Float[np.ndarray, "first end"], others: Float[np.ndarray, "second end"]
) -> tuple[Int[np.ndarray, " shared"], Int[np.ndarray, " shared"]]:
    """Rows of one key and of ends that are close, each once."""
    where: dict[str, list[int]] = {}
    for row, key in enumerate(second):
        where.setdefault(key, []).append(row)
    pairs = []
    for row, key in enumerate(first):
        for candidate in where.get(key, []):
            if np.allclose(ends[row], others[candidate], rtol=_CLOSE, atol=_CLOSE, equal_nan=True):
                where[key].remove(candidate)
                pairs.append((row, candidate))
                break
    rows = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def _metric(result: Result) -> Any:
    before_cap = result.kind == "split" or result.provenance.get("method") == "direct"
    return "before any soft cap" if before_cap else result.provenance.get("metric")


def clusters_of(examples: pd.DataFrame, cluster: str | None = None) -> np.ndarray | None:
    """Each example's cluster: the given column, or the column `cluster` where there is one.

    Args:
        examples: A contrast's or a result's.
        cluster: A column.

    Raises:
        LcalensError: The examples have no such column.
    """
    if cluster is not None:
        return examples[check_choice("cluster", cluster, map(str, examples.columns))].to_numpy()
    return examples[CLUSTER].to_numpy() if CLUSTER in examples else None
