"""`path`: what one part of a model does through what another part reads of it, and through nothing else."""

import os
from functools import partial
from typing import Any, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float

from lcalens.core.cells import CellStore, cell_key
from lcalens.core.checks import check_choice, check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.core.manifest import Manifest
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import active_hooks, provenance_of
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.stamp import holds_steady, stamp
from lcalens.core.statistics import ratio_of_means
from lcalens.core.tables import lengthen
from lcalens.core.work import Piece, finish
from lcalens.core.workers import check_jobs
from lcalens.engine.gradients import frozen
from lcalens.engine.metrics import Metric
from lcalens.engine.paths import At
from lcalens.engine.reading import read_decoder
from lcalens.mechanism.arguments import (
    Positions,
    check_contrast,
    check_equal_lengths,
    check_metric,
    read_layers,
    read_positions,
)
from lcalens.mechanism.contrast.contrast import Bucket, Contrast
from lcalens.mechanism.contrast.inputs import Group
from lcalens.mechanism.ends import of_the_logits
from lcalens.mechanism.measured import clusters_of
from lcalens.mechanism.memory import halving
from lcalens.mechanism.parts import Parts, read_receivers, read_senders, receiver_name, sender_name
from lcalens.mechanism.summary import contrast_record, interval, metric_name, plain_positions, study_record, unit_of
from lcalens.mechanism.ways import Method, Sought, jobs_of_paths, measure_paths

_CODE = (measure_paths, read_decoder)


@holds_steady
def path(
    model: Any,
    contrast: Contrast,
    *,
    senders: Parts | None = None,
    receivers: Parts | int | None = None,
    at: At = "logits",
    positions: Positions | None = None,
    method: Method = "exact",
    metric: Metric = "logit-difference",
    steps: int = 16,
    memory: float | int = 2.0,
    out: str | os.PathLike[str] | None = None,
    n_jobs: int = 1,
    progress: bool | ProgressCallback = True,
) -> Result:
    """Patch direct paths: a sender's output is the clean run's for one receiver alone, in the hijacked run.

    What stands between sender and receiver is held as in the hijacked run: heads, with where they look and what they
    read, and MLPs too, so that the path is the residual stream alone (in Wang et al. 2022 MLPs are run anew). The
    receiver reads the changed stream through its own norm, and everything behind it is run anew.

    Args:
        model: A TransformerBridge, of a toy or a real model.
        contrast: Clean and hijacked runs; of equal length where keys or values receive.
        senders: Heads as (layer, head), or as `leading` gives them; names as in results: `L3H1`, `MLP3`, `embed` (what
            stands before the first layer); `heads` and `mlps` for all before the last receiver. By default all three.
        receivers: Heads, for `q`, `k` and `v`; layers, for `resid`; nothing for `logits`.
        at: What reads: a head's query, key or value (`q`, `k`, `v`), the residual stream before a layer and all that
            follows (`resid`), or the final norm and the unembedding (`logits`). Under grouped queries a key or value
            is changed for the query head named alone, not for others that share it.
        positions: Where the path passes, as for `patch` but for `each`: query positions for `q`, key positions for `k`
            and `v`. By default the last; of `k` and `v` all.
        method: `exact`; or a screen by slopes, all senders and receivers in one backward pass (edge attribution, Syed
            et al. 2023): `gradient`, that of the hijacked run, or `integrated`, the mean slope while what the receiver
            reads goes straight from the hijacked run's to the clean run's. `agreement` says what a screen misses.
        metric: As for `patch`, but for `whole-answer`.
        steps: Points of `integrated` (Gauss-Legendre).
        memory: GiB that the growing batch may take; where memory runs out all the same, it halves itself.
        out: A folder for finished examples: the same call again computes only what is missing.
        n_jobs: How many processes compute, each with the model and one thread; 1 is this one with its own threads, and
            -1 one per core. They are joblib's, or those that your `joblib.parallel_config` names.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes example, sender and receiver, with `effect`, metric(hijacked) - metric(patched), positive
        where the path carries the hijack; NaN where the sender does not stand before the receiver. Its tables, with 95%
        bootstrap intervals over examples: `summary`, the effects and their share of hijacked - clean; and `receivers`:
        `together`, the exact effect where the receiver reads the clean run's whole stream, beside `summed`, the sum
        over these senders.

    Raises:
        LcalensError: An argument that cannot be used, a model that lcalens cannot read layer by layer, or keys and
            values of runs of different lengths.

    Example:
        >>> path(model, contrast).plot()  # what every head and MLP says to the logits directly
        >>> movers = path(model, contrast, senders="heads", receivers=[(29, 1)], at="q")  # whom L29H1 listens to
        >>> screen = path(model, contrast, senders="heads", receivers=[(29, 1)], at="q", method="integrated")
        >>> agreement(movers, screen, k=5)  # rank correlation, and how many of the leading five the screen misses
    """
    check_contrast(model, contrast)
    check_choice("at", at, get_args(At))
    check_choice("method", method, get_args(Method))
    check_int("steps", steps, low=1, high=4096)
    n_jobs = check_jobs(n_jobs, model)
    asked: Metric = check_metric(metric, "path", but=("whole-answer",))
    if at in ("k", "v"):
        check_equal_lengths(f"path at {at!r}", contrast)
    where = _positions(positions, at)
    places = contrast.places(where)
    budget = check_real("memory", memory, low=1e-3) * 2**30
    decoder = read_layers(model, "path", contrast)
    ends_at = read_receivers(receivers, at, decoder)
    begins = read_senders(senders, decoder, max(receiver.layer for receiver in ends_at))
    sought = Sought(begins, ends_at, at, method, steps)
    if out is not None and not isinstance(metric, str):
        raise LcalensError("out: parts of a metric of your own cannot be told apart; leave out=... away.")
    whose = [stamp(model), begins, ends_at, at, method, steps, metric_name(metric)] if out is not None else []
    store = CellStore(None if active_hooks(model) else out)
    pieces = [
        Piece("" if out is None else _key(whose, contrast, job), job)
        for job in jobs_of_paths(contrast, places, decoder, len(begins) * len(ends_at))
    ]
    settings = {
        "at": at,
        "positions": plain_positions(where),
        "method": method,
        **({"steps": steps} if method == "integrated" else {}),
        "metric": metric_name(metric),
    }
    labels = {
        "sender": tuple(sender_name(sender) for sender in begins),
        "receiver": tuple(receiver_name(receiver, len(decoder.layers)) for receiver in ends_at),
    }
    manifest = Manifest(
        store, "path", code=_CODE, model=model, settings=settings | labels | {"gib": budget / 2**30},
        data=lambda: study_record(contrast, metric),
    )  # fmt: skip
    manifest.expect([piece.key for piece in pieces])
    measure = partial(_measured, contrast=contrast, sought=sought, metric=asked, budget=budget)
    effect = np.full((len(contrast), len(begins), len(ends_at)), np.nan)
    together = np.full((len(contrast), len(ends_at)), np.nan)
    ends = np.full((len(contrast), 2), np.nan)
    done = halved = 0
    with (
        progress_callback(progress, unit="examples") as report,
        finish(store, pieces, measure, model, code=_CODE, n_jobs=n_jobs) as cells,
    ):
        for (bucket, _), cell, times in cells:
            rows = bucket.indices.cpu().numpy()
            halved = max(halved, times)
            effect[rows], together[rows], ends[rows] = cell["effect"], cell["together"], cell["ends"]
            done += len(rows)
            report(done, len(contrast), f"paths to {at}")
    manifest.end()
    unit, clusters = unit_of(metric_name(metric)), clusters_of(contrast.examples)
    tables = _tables(labels, effect, together, ends[:, 1] - ends[:, 0], clusters, unit)
    largest = float(np.nanmax(np.abs(effect.mean(0)), initial=0.0))
    capped, record, grid = of_the_logits(model, contrast, metric, largest)
    if grid is not None:
        tables["summary"] = tables["summary"].assign(resolution=grid)
    return Result(
        kind="path",
        axes={EXAMPLE: tuple(range(len(contrast))), **labels},
        values={"effect": effect},
        examples=contrast.examples.assign(clean=ends[:, 0], hijacked=ends[:, 1], **capped),
        tables=tables,
        units={"effect": unit},
        provenance=provenance_of(
            model,
            path="growing batch",
            settings=settings
            | {"memory": {"gib": budget / 2**30, "halved": halved}}
            | record
            | contrast_record(contrast, metric),
        ),
    )


def _measured(
    model: Any, job: tuple[Bucket, Group], *, contrast: Contrast, sought: Sought, metric: Metric, budget: float
) -> tuple[dict[str, np.ndarray], int]:
    """A job's arrays, and how often its batch was halved."""
    bucket, group = job
    decoder = read_layers(model, "path", contrast)
    with frozen(model):
        return halving(lambda some, limit: measure_paths(decoder, some, group, sought, metric, limit), bucket, budget)


def _key(whose: list[Any], contrast: Contrast, job: tuple[Bucket, Group]) -> str:
    bucket, group = job
    return cell_key(_CODE, [*whose, contrast[bucket.indices.tolist()].content(), list(group)])


def _positions(positions: Any, at: At) -> str | int | tuple[int, ...]:
    """Where paths pass, each example in one group."""
    if positions is None:
        return "all" if at in ("k", "v") else "last"
    where = read_positions(positions)
    if isinstance(where, str) and where == "each":
        raise LcalensError("positions: 'each' is not for paths, which pass a group of positions; give one at a time.")
    if at == "logits" and where not in ("last", -1, (-1,)):
        raise LcalensError("positions: the logits that the metric reads are the last position's; leave it out.")
    return where


def _tables(
    labels: dict[str, tuple[str, ...]],
    effect: Float[np.ndarray, "example sender receiver"],
    together: Float[np.ndarray, "example receiver"],
    whole: Float[np.ndarray, " example"],
    clusters: np.ndarray | None,
    unit: str,
) -> dict[str, pd.DataFrame]:
    each, units = np.ones(len(whole)), {"effect": unit, "share": "share"}
    grid = np.indices(effect.shape[1:]).reshape(2, -1)
    rows: dict[str, Any] = {
        axis: [names[i] for i in at] for (axis, names), at in zip(labels.items(), grid, strict=True)
    }
    flat = effect.reshape(len(effect), -1)
    rows |= interval("effect", ratio_of_means(flat, each, clusters))
    rows |= interval("share", ratio_of_means(flat, whole, clusters))
    paths = pd.DataFrame(rows).iloc[np.flatnonzero(np.isfinite(flat).any(0))].reset_index(drop=True)
    ends: dict[str, Any] = {"receiver": list(labels["receiver"])}
    sums = {"together": together, "summed": np.nansum(effect, 1)}
    for name, numbers in sums.items():
        ends |= interval(name, ratio_of_means(numbers, each, clusters))
    ends |= interval("share", ratio_of_means(together, whole, clusters))
    return {
        "summary": lengthen(paths, units),
        "receivers": lengthen(pd.DataFrame(ends), dict.fromkeys(sums, unit) | {"share": "share"}),
    }
