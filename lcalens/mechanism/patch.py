"""Exact activation patching, fast: every patched variant joins one growing batch at its own layer.

`patch` puts one run's activations, site by site, into the other run, and measures what becomes of the metric. The
models that `read_decoder` can read run as `tracing` says; any other runs forward by forward through TransformerLens's
hooks (`hooked`). Both are exact; the result's provenance says which ran.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from lcalens.core.cells import CellStore, cell_key
from lcalens.core.checks import check_real
from lcalens.core.errors import LcalensError
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import active_hooks, provenance_of
from lcalens.core.results import Result
from lcalens.core.stamp import holds_steady, stamp
from lcalens.engine.activations import made_source, of_trace
from lcalens.engine.by_hooks import patch_hooked
from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import Trace, trace_both
from lcalens.engine.metrics import Asked, Metric, ends_of, of_variants
from lcalens.engine.reading import read_decoder
from lcalens.engine.sites import HEADS, SHARED, head_labels, roles
from lcalens.engine.variants import kept_for, row_bytes, variants_of
from lcalens.mechanism.arguments import (
    Direction,
    Positions,
    check_aligned,
    check_contrast,
    check_layer,
    check_metric,
    read_direction,
    read_positions,
    read_site,
    read_source,
)
from lcalens.mechanism.contrast.contrast import Bucket, Contrast
from lcalens.mechanism.contrast.inputs import Group
from lcalens.mechanism.hook_names import Place
from lcalens.mechanism.labels import label_record
from lcalens.mechanism.memory import halving
from lcalens.mechanism.sources import Source, SourceName, check_same_as_hooks, check_zero, given_source, mean_source
from lcalens.mechanism.summary import contrast_record, metric_name, patching_result, plain_positions
from lcalens.mechanism.whole import whole_answers

_ROWS = 4096  # of the residual stream in the growing batch: more than this runs no faster


@dataclass(frozen=True, eq=False)
class Job:
    """Some examples of one bucket whose patched positions are the same.

    Attributes:
        bucket: The examples.
        groups: Groups of positions, counted from the end; each is patched by itself.
    """

    bucket: Bucket
    groups: tuple[tuple[int, ...], ...]


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
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes example, layer, head (where the site has heads) and position (for `each`; -1 is the
        last), with `value`, the patched run's metric, and `recovery`, 0 where it is the hijacked run's and 1 where it
        is the clean run's. `summary` has the recovery of the means, with 95% bootstrap intervals over examples. With a
        `source` that is not the other run there is also `effect`, the metric of the ablated run less that of the same
        run untouched: what the site does in that run, with its sign turned. `recovery` then says how far the ablation
        by itself moves the metric to the clean run's.

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
    source = read_source(source)
    if isinstance(source, str) and source != "zero":  # zeros are the same everywhere; what is given has its own check
        check_aligned(asked.site, contrast)
    budget = check_real("memory", memory, low=1e-3) * 2**30
    positions = read_positions(positions)
    places = contrast.places(positions)
    decoder = read_decoder(model, contrast.longest)
    if isinstance(decoder, str) and metric == "whole-answer":
        raise LcalensError(f"metric: whole-answer needs a model that lcalens can read layer by layer; {decoder}.")
    labels = _labels(model, decoder, asked)
    put_in = _source(model, decoder, contrast, asked.site, labels["layer"], source, places, direction)
    groups = max(len(row) for row in places)
    # A hook changes what is computed, and no key can tell how.
    store = CellStore(None if active_hooks(model) else out)
    whose = [] if out is None else [stamp(model), *asked, direction, _named(metric, out), put_in.kind, put_in.content]
    values = np.full((len(contrast), *(len(axis) for axis in labels.values()), groups), np.nan)
    ends = np.full((len(contrast), 2), np.nan)
    done = halved = 0
    with progress_callback(progress, unit="examples") as report:
        for job in jobs(contrast, places, decoder, asked, budget):
            rows = job.bucket.indices.numpy()
            what = [*whose, contrast[rows.tolist()].content(), [list(group) for group in job.groups]]
            key = "" if out is None else cell_key((_measure, read_decoder), what)
            cell = store.get(key)
            if cell is None:

                def measure(bucket: Bucket, limit: float, groups: Any = job.groups) -> dict[str, np.ndarray]:
                    smaller = Job(bucket, groups)
                    return _measure(model, decoder, contrast, smaller, asked, direction, metric, limit, put_in)

                cell, times = halving(measure, job.bucket, budget)
                halved = max(halved, times)
                store.put(key, cell)
            values[rows, ..., groups - len(job.groups) :] = cell["value"]
            ends[rows] = cell["ends"]
            done += len(rows)
            report(done, len(contrast), f"{asked.site} at {positions if isinstance(positions, str) else 'positions'}")
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
            settings={
                "site": asked.site,
                "positions": plain_positions(positions),
                "direction": direction,
                "source": put_in.kind,
                **({} if put_in.kind == "other" else {"ablated": roles(direction)[0], "put_in": put_in.says}),
                "metric": metric_name(metric),
                "memory": {"gib": budget / 2**30, "halved": halved},
            }
            | contrast_record(contrast, metric)
            | (label_record(model, contrast, direction) if each else {}),
        ),
    )


def _named(metric: Metric, out: Any) -> str:
    if not isinstance(metric, str):
        raise LcalensError(f"out: parts of a metric of your own cannot be told apart; leave out={str(out)!r:.60} away.")
    return metric


def _labels(model: Any, decoder: Decoder | str, asked: Place) -> dict[str, tuple[Any, ...]]:
    if isinstance(decoder, str):
        heads, layers = int(model.cfg.n_heads), int(model.cfg.n_layers)
        kv_heads = int(getattr(model.cfg, "n_key_value_heads", None) or heads)
    else:
        heads, kv_heads, layers = decoder.layers[0].heads, decoder.layers[0].kv_heads, len(decoder.layers)
    check_layer(asked, layers)
    labels: dict[str, tuple[Any, ...]] = {"layer": tuple(range(layers)) if asked.layer is None else (asked.layer,)}
    if asked.site in HEADS | SHARED:
        labels["head"] = head_labels(heads, kv_heads, asked.site)
    return labels


def _patched_layers(asked: Place) -> range | None:
    """The one layer that is patched; None for every one."""
    return None if asked.layer is None else range(asked.layer, asked.layer + 1)


def jobs(contrast: Contrast, places: Any, decoder: Decoder | str, asked: Place, budget: float) -> Iterator[Job]:
    """Examples of the same lengths and positions, as many together as still run faster.

    Args:
        contrast: The examples.
        places: Each one's groups of positions.
        decoder: The model read layer by layer, or why it cannot be.
        asked: The site, and the layer asked for.
        budget: Bytes that the growing batch may take.
    """
    per_example, bound = 1, _ROWS
    if isinstance(decoder, Decoder):
        layer = decoder.layers[0]
        layers = len(decoder.layers) if asked.layer is None else 1
        per_example = layers * (layer.heads if asked.site in HEADS | SHARED else 1)
        bound = min(bound, int(budget // row_bytes(decoder)))
    for bucket in contrast.buckets():
        alike: dict[Any, list[int]] = {}
        for row, index in enumerate(bucket.indices.tolist()):
            alike.setdefault(places[index], []).append(row)
        for groups, rows in alike.items():
            longest = max(len(groups[0]), -min(min(group) for group in groups)) if groups else 1
            size = max(1, bound // (per_example * longest))
            for first in range(0, len(rows), size):
                some = rows[first : first + size]
                yield Job(Bucket(*(tensor[some] for tensor in bucket)), groups)


@torch.no_grad()
def _measure(
    model: Any,
    decoder: Decoder | str,
    contrast: Contrast,
    job: Job,
    asked: Place,
    direction: str,
    metric: Metric,
    budget: float,
    put_in: Source,
) -> dict[str, np.ndarray]:
    bucket, site, layers = job.bucket, asked.site, _patched_layers(asked)
    examples, made = bucket.indices.tolist(), put_in.kind != "other"
    if isinstance(decoder, str):
        device = next(model.original_model.parameters()).device
        question = Asked(*(tensor.to(device) for tensor in (bucket.true, bucket.false, bucket.indices)))
        runs = bucket.clean, bucket.hijacked
        context = getattr(bucket, roles(direction)[0]).shape[1]
        fit = partial(put_in.fitted, site, examples=examples, context=context) if made else None
        value, ends = patch_hooked(model, runs, question, job.groups, site, direction, metric, layers, fit)
    else:

        def fitted(base: Trace, rows: list[int], context: int) -> Trace:
            bases = {layer: of_trace(base, site, layer) for layer in layers or range(len(decoder.layers))}
            return made_source(decoder, site, put_in.fitted(site, bases, [examples[row] for row in rows], context))

        if metric == "whole-answer":
            value, ends = whole_answers(
                decoder, contrast, bucket, job.groups, site, direction, budget, layers, fitted if made else None
            )
        else:
            device = decoder.layers[0].device
            both = trace_both(decoder, bucket.clean.to(device), bucket.hijacked.to(device), keep=kept_for(site))
            runs = {"clean": both[0], "hijacked": both[1]}
            base, source = (runs[name] for name in roles(direction))
            if made:
                source = fitted(base, list(range(len(examples))), base.tokens.shape[1])
            asking = (bucket.true, bucket.false, bucket.indices)
            question = Asked(*(tensor.to(decoder.unembed.device) for tensor in asking))
            ends, question = ends_of(metric, decoder, [run.final[:, -1] for run in both], question)
            value = torch.stack(
                [
                    of_variants(metric, decoder, variants[:, :, -1], question)
                    for variants in variants_of(decoder, base, source, site, job.groups, budget, layers=layers)
                ],
                -1,
            )
    if site in HEADS | SHARED:
        value = value.unflatten(1, (len(_labels(model, decoder, asked)["layer"]), -1))
    return {"value": value.double().cpu().numpy(), "ends": ends.double().cpu().numpy()}


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
