"""How two studies differ: in what they are, and in the numbers of their results where both were saved."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lcalens.core.errors import LcalensError
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.studies import Kept, Study

_MISSING = "(none)"
_WHO = ("case_id", "relation_id", "subject", "target_true", "target_false")
_PARTS = ("verb", "settings", "data", "model", "versions", "code")


@dataclass(frozen=True)
class Difference:
    """One thing in which two studies differ.

    Attributes:
        name: Where it stands, such as `settings.config.seed`.
        left: The first study's.
        right: The second's.
    """

    name: str
    left: Any
    right: Any


@dataclass(frozen=True)
class Numbers:
    """How far two results' numbers are apart, at the places that both have.

    Attributes:
        quantity: Of which values.
        compared: How many pairs of numbers.
        alone: Places of which one alone has a number.
        largest: The largest difference; NaN where no pair is there.
        at: Where it is, by axis.
        left: The first result's number there.
        right: The second's.
    """

    quantity: str
    compared: int
    alone: int
    largest: float
    at: Mapping[str, Any]
    left: float
    right: float


def differences(left: Study, right: Study) -> list[Difference]:
    """Every setting, digest, version and fact of the model in which two studies differ.

    Args:
        left: One study.
        right: Another.
    """
    first, second = ({name: value for part in _PARTS for name, value in _flat(part, getattr(study, part))}
                     for study in (left, right))  # fmt: skip
    names = dict.fromkeys([*first, *second])
    return [
        Difference(name, first.get(name, _MISSING), second.get(name, _MISSING))
        for name in names
        if first.get(name, _MISSING) != second.get(name, _MISSING)
    ]


def saved_result(kept: Kept) -> Path | None:
    """The folder of a study's saved result, where it lies beside the cells or in what `--out` named.

    A result is the study's where model, data, settings and axes are the same, as far as both say them.

    Args:
        kept: The study.
    """
    places = [kept.folder]
    if kept.study.command is not None:
        places.append(kept.folder / kept.study.command.out)
    found = [head.parent for place in places for head in sorted(place.glob("*/result.json"))]
    return next((folder for folder in found if _is_of(kept.study, folder / "result.json")), None)


def compare_numbers(left: Result, right: Result) -> list[Numbers]:
    """The largest difference of every quantity that both results have, at the labels that both have.

    Args:
        left: One result.
        right: Another.

    Raises:
        LcalensError: They have other axes, or no example in common, or no quantity.
    """
    if tuple(left.axes) != tuple(right.axes):
        raise LcalensError(f"results: their axes are {tuple(left.axes)} and {tuple(right.axes)}; they do not compare.")
    quantities = [name for name in left.values if name in right.values]
    shared = {axis: _shared(axis, left, right) for axis in left.axes}
    empty = [axis for axis, (labels, _, _) in shared.items() if not labels]
    if empty or not quantities:
        raise LcalensError(f"results: they have no {empty[0] if empty else 'quantity'} in common; they do not compare.")
    places = [np.ix_(*(rows for _, *both in shared.values() for rows in [both[side]])) for side in (0, 1)]
    labels = {axis: names for axis, (names, _, _) in shared.items()}
    return [_apart(name, left.values[name][places[0]], right.values[name][places[1]], labels) for name in quantities]


def _apart(name: str, first: np.ndarray, second: np.ndarray, labels: Mapping[str, list[Any]]) -> Numbers:
    numbers = ~np.isnan(first) & ~np.isnan(second)
    alone = int((np.isnan(first) != np.isnan(second)).sum())
    if not numbers.any():
        return Numbers(name, 0, alone, float("nan"), {}, float("nan"), float("nan"))
    with np.errstate(invalid="ignore"):
        apart = np.where(first == second, 0.0, np.abs(first - second))  # two infinities of one sign are the same
    place = np.unravel_index(int(np.argmax(np.where(numbers, apart, -1.0))), apart.shape)
    at = {axis: names[index] for (axis, names), index in zip(labels.items(), place, strict=True)}
    return Numbers(name, int(numbers.sum()), alone, float(apart[place]), at, float(first[place]), float(second[place]))


def _shared(axis: str, left: Result, right: Result) -> tuple[list[Any], list[int], list[int]]:
    """The labels that both have, with their places in each; examples are told apart by their facts."""
    first, second = (_labels(axis, result) for result in (left, right))
    if axis == EXAMPLE and not _known(left, right, first, second):
        raise LcalensError("results: their examples cannot be told to be the same; they do not compare.")
    place = {label: at for at, label in enumerate(second)}
    both = [(label, at, place[label]) for at, label in enumerate(first) if label in place]
    return [label for label, _, _ in both], [at for _, at, _ in both], [at for _, _, at in both]


def _known(left: Result, right: Result, first: list[Any], second: list[Any]) -> bool:
    """Whether an example of one is that of the other under the same label."""
    if all(_WHO[0] in result.examples for result in (left, right)):
        return all(len(set(labels)) == len(labels) for labels in (first, second))
    same = [result.provenance.get("contrast") for result in (left, right)]
    return same[0] is not None and same[0] == same[1]


def _labels(axis: str, result: Result) -> list[Any]:
    if axis != EXAMPLE or _WHO[0] not in result.examples:
        return list(result.axes[axis])
    columns = [name for name in _WHO if name in result.examples]
    return [tuple(map(str, row)) for row in result.examples[columns].itertuples(index=False)]


def _is_of(study: Study, head: Path) -> bool:
    try:
        content = json.loads(head.read_text(encoding="utf-8"))
        provenance, axes = content["provenance"], content["axes"]
        fingerprint = provenance["model"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    said = {**axes, **provenance}
    shared = [name for name in (*study.settings, *study.data) if name in said]
    told = {**study.settings, **study.data}
    return (
        fingerprint == study.model.get("fingerprint")
        and any(name in study.data for name in shared)
        and all(told[name] == said[name] for name in shared)
    )


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, value
