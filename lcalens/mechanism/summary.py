"""Patched values as a result: recovery, and its intervals over examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lcalens.core.cells import content_key
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.statistics import ratio_of_means
from lcalens.core.tables import lengthen
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.ends import of_the_logits
from lcalens.mechanism.measured import EXAMPLE_KEYS, clusters_of

_SMALL = 1e-9
_KEY = 16  # letters of a digest
_UNITS = {"logit-difference": "logits", "probability": "probability", "kl": "nats", "whole-answer": "nats"}


def metric_name(metric: Any) -> str:
    """A metric's name, as provenance records it.

    Args:
        metric: A name, or a function of the user's.
    """
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "own")


def unit_of(metric: str) -> str:
    """A metric's unit; of a function of the user's its name, since nothing else is known.

    Args:
        metric: Its name.
    """
    return _UNITS.get(metric, metric)


def site_table(
    labels: Mapping[str, tuple[Any, ...]], columns: Mapping[str, Float[np.ndarray, "..."]], units: Mapping[str, str]
) -> pd.DataFrame:
    """A long table over sites: the axes, `quantity`, `value`, `value_low`, `value_high`, `unit`.

    Args:
        labels: The axes.
        columns: Quantities over the axes, with the ends of their intervals in `{quantity}_low` and `{quantity}_high`.
        units: Each quantity's unit.
    """
    grid = np.indices(tuple(len(axis) for axis in labels.values()))
    named = {name: np.array(axis, dtype=object)[grid[i]].ravel() for i, (name, axis) in enumerate(labels.items())}
    wide = pd.DataFrame(named | {name: values.ravel() for name, values in columns.items()}).infer_objects()
    return lengthen(wide, units)


def interval(name: str, estimate: tuple[np.ndarray, np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """A quantity and the ends of its interval, by the names of the schema.

    Args:
        name: The quantity's.
        estimate: Its value, and the low and the high end.
    """
    return dict(zip((name, f"{name}_low", f"{name}_high"), estimate, strict=True))


def plain_positions(positions: str | int | tuple[int, ...]) -> str | int | list[int]:
    """Positions as JSON can hold them.

    Args:
        positions: As `read_positions` gives them.
    """
    return list(positions) if isinstance(positions, tuple) else positions


def study_record(contrast: Contrast, metric: Any) -> dict[str, Any]:
    """What a study says of the contrast it is of, and of the logits that its metric reads.

    Args:
        contrast: The examples.
        metric: A metric's name, or a function.
    """
    logits = "before any soft cap" if metric == "logit-difference" else "after any soft cap"
    digest = content_key(contrast.content())
    return {"contrast": digest, "examples": len(contrast), "excluded": len(contrast.excluded), "logits": logits}


def contrast_record(contrast: Contrast, metric: Any) -> dict[str, Any]:
    """What a result says of its contrast: as its study does, and the digest of each example's tokens and answers.

    Args:
        contrast: The examples.
        metric: A metric's name, or a function.
    """
    sides = (contrast.clean, contrast.hijacked, contrast.true, contrast.false)
    keys = [content_key([list(side) for side in row])[:_KEY] for row in zip(*sides, strict=True)]
    return study_record(contrast, metric) | {EXAMPLE_KEYS: keys}


def patching_result(
    contrast: Contrast,
    values: Float[np.ndarray, "example ..."],
    ends: Float[np.ndarray, "example 2"],
    labels: Mapping[str, tuple[Any, ...]],
    *,
    kind: str = "patching",
    provenance: Mapping[str, Any],
    model: Any = None,
) -> Result:
    """The result of patching.

    Args:
        contrast: The examples.
        values: The patched runs' metric.
        ends: The clean and the hijacked run's.
        labels: The axes but `example`.
        kind: Of the result.
        provenance: How it was made, `metric` included. Where it says what was `ablated`, effects are told too.
        model: The TransformerBridge; of logit differences its soft cap and the grid of its dtype are told.
    """
    shape = (-1, *(1 for _ in labels))
    clean, hijacked = (ends[:, i].reshape(shape) for i in range(2))
    gap = clean - hijacked
    with np.errstate(divide="ignore", invalid="ignore"):
        recovery = np.where(np.abs(gap) > _SMALL, (values - hijacked) / gap, np.nan)
    clusters = clusters_of(contrast.examples)
    arrays, base = (
        {"value": values, "recovery": recovery},
        ends[:, 0 if provenance.get("direction") == "corrupt" else 1],
    )
    columns = interval("value", ratio_of_means(values, np.ones(len(values)), clusters))
    if "ablated" in provenance:
        arrays["effect"] = values - base.reshape(shape)
        columns |= interval("effect", ratio_of_means(arrays["effect"], np.ones(len(values)), clusters))
    columns |= interval("recovery", ratio_of_means(values - hijacked, ends[:, 0] - ends[:, 1], clusters))
    metric = str(provenance.get("metric"))
    units = {"value": unit_of(metric), "recovery": "share"}
    units |= {"effect": units["value"]} if "effect" in arrays else {}
    examples, summary = (
        contrast.examples.assign(clean=ends[:, 0], hijacked=ends[:, 1]),
        site_table(labels, columns, units),
    )
    if model is not None:
        largest = float(np.nanmax(np.abs(columns["value"] - base.mean()), initial=0.0))
        capped, record, grid = of_the_logits(model, contrast, metric, largest)
        examples, provenance = examples.assign(**capped), {**provenance, **record}
        summary = summary if grid is None else summary.assign(resolution=grid)
    return Result(
        kind=kind,
        axes={EXAMPLE: tuple(range(len(contrast))), **labels},
        values=arrays,
        examples=examples,
        tables={"summary": summary},
        units=units,
        provenance=provenance,
    )
