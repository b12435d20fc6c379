"""Exact activation patching, fast: every patched variant joins one growing batch at its own layer.

`patch` puts one run's activations, site by site, into the other run, and measures what becomes of the metric. The
models that `read_decoder` can read run as `tracing` says; any other runs forward by forward through TransformerLens's
hooks (`hooked`). Both are exact; the result's provenance says which ran.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from lcalens.core.cells import CellStore, cell_key, content_key
from lcalens.core.checks import check_real
from lcalens.core.errors import LcalensError
from lcalens.core.manifest import Manifest
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import active_hooks, provenance_of
from lcalens.core.results import Result
from lcalens.core.stamp import holds_steady, stamp
from lcalens.core.work import Piece, finish
from lcalens.core.workers import check_jobs
from lcalens.engine.decoder import Decoder
from lcalens.engine.metrics import Metric
from lcalens.engine.reading import read_decoder
from lcalens.engine.sites import roles
from lcalens.mechanism.arguments import (
    Direction,
    Positions,
    check_aligned,
    check_contrast,
    check_metric,
    read_direction,
    read_positions,
    read_site,
    read_source,
)
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.contrast.inputs import Group
from lcalens.mechanism.hook_names import Place
from lcalens.mechanism.labels import label_record
from lcalens.mechanism.patch_cells import CODE, Job, Plan, jobs, site_labels
from lcalens.mechanism.sources import Source, SourceName, check_same_as_hooks, check_zero, given_source, mean_source
from lcalens.mechanism.summary import contrast_record, metric_name, patching_result, plain_positions, study_record


@holds_steady
def patch(
    model: Any,
    contrast: Contrast,
    *,
    site: str = "z",
    positions: Positions = "last",
    direction: Direction = "restore",
    source: SourceName | Mapping[str, Any] | Any = "other",
    metric: Metric = "logit-difference",
    memory: float | int = 2.0,
    out: str | os.PathLike[str] | None = None,
    n_jobs: int = 1,
    progress: bool | ProgressCallback = True,
) -> Result:
    """Patch every layer (and head) of a site, one at a time, and measure the metric.

    Args:
        model: A TransformerBridge, of a toy or a real model.
        contrast: Clean and hijacked runs.
        site: `resid_pre`, `resid_post`, `attn_out`, `mlp_out`, `z` (or `head`), `q`, `k`, `v`, `pattern` or
            `attn_scores`; or a TransformerLens hook's name, `attn.hook_z`, or `blocks.3.attn.hook_z` for that layer
            alone. Key and value heads are one site each, named by the query heads they serve.
        positions: `last`; `all`, at once; `each`, one at a time; a span's name; or indices. Query positions for `q`,
            `head`, `pattern` and `attn_scores`, key positions for `k` and `v`.
        direction: `restore` (or `denoise`) puts clean activations into the hijacked run, `corrupt` (or `noise`)
            hijacked ones into the clean one. With another `source` it says which run is ablated: `restore` the hijacked
            one, `corrupt` the clean one.
        source: What is put in. `other`, the other run's activations. `zero`, zeros, which takes the site away
            (not for `pattern` and `attn_scores`). `mean`, the mean over all the contrast's clean runs at the same
            position, counted from the end, whichever run is ablated: two examples at least, and all clean runs must
            have the positions. Or your own: an ActivationCache, as `run_with_cache` or the bridge's gives it, or a
            mapping from hook names to tensors, for every patched layer, of as many examples as the contrast has or 1
            for all, and of the run's positions (aligned from the end) or 1 for all.
        metric: `logit-difference`, logit(false) - logit(true); `probability`, Pr[false] - Pr[true]; `kl`, KL(clean run
            || patched run); `whole-answer`, log Pr[false answer] - log Pr[true answer]; or a function of (logits,
            index of the example), row by row.
        memory: GiB that the growing batch may take. Where memory runs out all the same, the batch halves itself;
            `provenance["memory"]` says how often.
        out: A folder for finished parts: the same call again computes only what is missing. With hooks attached to the
            model, nothing is kept.
        n_jobs: How many processes compute, each with the model and one thread; 1 is this one with its own threads, and
            -1 one per core. They are joblib's, or those that your `joblib.parallel_config` names.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes example, layer, head (where the site has heads) and position (for `each`; -1 is the
        last), with `value`, the patched run's metric, and `recovery`, 0 where it is the hijacked run's and 1 where it
        is the clean run's. `summary` has the recovery of the means, with 95% bootstrap intervals over examples; it has
        none where the interval of the whole hijack holds 0. With a `source` that is not the other run there is also
        `effect`, the metric of the ablated run less that of the same run untouched: what the site does in that run,
        with its sign turned. `recovery` then says how far the ablation by itself moves the metric to the clean run's.

    Raises:
        LcalensError: An argument that cannot be used, or a site that does not align.

    Example:
        >>> result = patch(model, contrast, site="z", positions="last")
        >>> result.wide().sort_values("recovery").tail(3)  # the heads that restore most
        >>> patch(model, contrast, site="blocks.3.attn.hook_z", direction="denoise")  # one layer
        >>> patch(model, contrast, source="mean", direction="corrupt")  # mean ablation, clean run
    """
    check_contrast(model, contrast, answers=isinstance(metric, str) and metric == "whole-answer")
    asked, direction, metric = read_site(site), read_direction(direction), check_metric(metric, "patch")
    source, n_jobs = read_source(source), check_jobs(n_jobs, model)
    if isinstance(source, str) and source != "zero":  # zeros are the same everywhere; what is given has its own check
        check_aligned(asked.site, contrast)
    budget = check_real("memory", memory, low=1e-3) * 2**30
    positions = read_positions(positions)
    places = contrast.places(positions)
    decoder = read_decoder(model, contrast.longest)
    if isinstance(decoder, str) and metric == "whole-answer":
        raise LcalensError(f"metric: whole-answer needs a model that lcalens can read layer by layer; {decoder}.")
    labels = site_labels(model, decoder, asked)
    put_in = _source(model, decoder, contrast, asked.site, labels["layer"], source, places, direction)
    groups = max(len(row) for row in places)
    plan = Plan(contrast, asked, direction, metric, budget, put_in)
    # A hook changes what is computed, and no key can tell how.
    store = CellStore(None if active_hooks(model) else out)
    whose = [] if out is None else [stamp(model), *asked, direction, _named(metric, out), put_in.kind, put_in.content]
    pieces = [
        Piece("" if out is None else _key(whose, contrast, job), job)
        for job in jobs(contrast, places, decoder, asked, budget)
    ]
    settings = _settings(asked, positions, direction, put_in, metric)
    manifest = Manifest(
        store, "patch", code=CODE, model=model, settings=settings | {"layer": labels["layer"], "gib": budget / 2**30},
        data=lambda: study_record(contrast, metric) | {"put_in": content_key(put_in.content)},
    )  # fmt: skip
    manifest.expect([piece.key for piece in pieces])
    values = np.full((len(contrast), *(len(axis) for axis in labels.values()), groups), np.nan)
    ends = np.full((len(contrast), 2), np.nan)
    done = halved = 0
    with (
        progress_callback(progress, unit="examples") as report,
        finish(store, pieces, plan.measure, model, code=CODE, n_jobs=n_jobs) as cells,
    ):
        for job, cell, times in cells:
            rows = job.bucket.indices.numpy()
            halved = max(halved, times)
            values[rows, ..., groups - len(job.groups) :] = cell["value"]
            ends[rows] = cell["ends"]
            done += len(rows)
            report(done, len(contrast), f"{asked.site} at {positions if isinstance(positions, str) else 'positions'}")
    manifest.end()
    each = isinstance(positions, str) and positions == "each"
    if each:
        labels["position"] = tuple(range(-groups, 0))
    return patching_result(
        contrast,
        values if each else values[..., 0],
        ends,
        labels,
        model=model,
        provenance=provenance_of(
            model,
            path="hooks: " + decoder if isinstance(decoder, str) else "growing batch",
            settings=settings
            | {"memory": {"gib": budget / 2**30, "halved": halved}}
            | contrast_record(contrast, metric)
            | (label_record(model, contrast, direction) if each else {}),
        ),
    )


def _key(whose: list[Any], contrast: Contrast, job: Job) -> str:
    what = [*whose, contrast[job.bucket.indices.tolist()].content(), [list(group) for group in job.groups]]
    return cell_key(CODE, what)


def _settings(asked: Place, positions: Any, direction: str, put_in: Source, metric: Metric) -> dict[str, Any]:
    """What was asked for, as provenance and manifests say it."""
    ablated = {} if put_in.kind == "other" else {"ablated": roles(direction)[0], "put_in": put_in.says}
    return {
        "site": asked.site,
        "positions": plain_positions(positions),
        "direction": direction,
        "source": put_in.kind,
        **ablated,
        "metric": metric_name(metric),
    }


def _named(metric: Metric, out: Any) -> str:
    if not isinstance(metric, str):
        raise LcalensError(f"out: parts of a metric of your own cannot be told apart; leave out={str(out)!r:.60} away.")
    return metric


def _source(
    model: Any,
    decoder: Decoder | str,
    contrast: Contrast,
    site: str,
    layers: tuple[int, ...],
    source: Any,
    places: tuple[tuple[Group, ...], ...],
    direction: str,
) -> Source:
    """What is put in, seen to fit these runs."""
    wanted = range(layers[0], layers[-1] + 1)
    if not isinstance(source, str):
        given = given_source(source, site, wanted, contrast)
        tokens = torch.tensor([getattr(contrast, roles(direction)[0])[0]])
        check_same_as_hooks("source", model, decoder, tokens, {site: wanted})
        return given
    if source == "mean":
        return mean_source(model, decoder, contrast, site, wanted, places)
    if source == "zero":
        check_zero(site)
        return Source("zero", says="zeros")
    return Source("other")
