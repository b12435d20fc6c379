"""The cells of `patch`: which examples go together, and the metric of every patched variant of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from lcalens.engine.activations import made_source, of_trace
from lcalens.engine.by_hooks import patch_hooked
from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import Trace, trace_both
from lcalens.engine.metrics import Asked, Metric, ends_of, of_variants
from lcalens.engine.reading import read_decoder
from lcalens.engine.sites import HEADS, SHARED, head_labels, roles
from lcalens.engine.variants import kept_for, row_bytes, variants_of
from lcalens.mechanism.arguments import check_layer
from lcalens.mechanism.contrast.contrast import Bucket, Contrast
from lcalens.mechanism.hook_names import Place
from lcalens.mechanism.memory import halving
from lcalens.mechanism.sources import Source
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


@dataclass(frozen=True, eq=False)
class Plan:
    """What is measured of every job.

    Attributes:
        contrast: The examples.
        asked: The site, and the layer asked for.
        direction: Which run is patched.
        metric: What is read.
        budget: Bytes that the growing batch may take.
        put_in: What is put in.
    """

    contrast: Contrast
    asked: Place
    direction: str
    metric: Metric
    budget: float
    put_in: Source

    def measure(self, model: Any, job: Job) -> tuple[dict[str, np.ndarray], int]:
        """A job's arrays, and how often its batch was halved.

        Args:
            model: A TransformerBridge.
            job: Some examples.
        """
        decoder = read_decoder(model, self.contrast.longest)

        def some(bucket: Bucket, limit: float) -> dict[str, np.ndarray]:
            smaller = Job(bucket, job.groups)
            return measure(
                model, decoder, self.contrast, smaller, self.asked, self.direction, self.metric, limit, self.put_in
            )

        return halving(some, job.bucket, self.budget)


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


def site_labels(model: Any, decoder: Decoder | str, asked: Place) -> dict[str, tuple[Any, ...]]:
    """The axes of what is patched.

    Args:
        model: A TransformerBridge.
        decoder: The same read layer by layer, or why it cannot be.
        asked: The site, and the layer asked for.

    Raises:
        LcalensError: The model has no such layer.
    """
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


@torch.no_grad()
def measure(
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
    """The metric of every patched variant of a job's examples, and both runs'.

    Args:
        model: A TransformerBridge.
        decoder: The same read layer by layer, or why it cannot be.
        contrast: All examples.
        job: Some of them.
        asked: The site, and the layer asked for.
        direction: Which run is patched.
        metric: What is read.
        budget: Bytes that the growing batch may take.
        put_in: What is put in.
    """
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
        value = value.unflatten(1, (len(site_labels(model, decoder, asked)["layer"]), -1))
    return {"value": value.double().cpu().numpy(), "ends": ends.double().cpu().numpy()}


CODE = (measure, read_decoder)
"""What a cell's values depend on besides what it is of."""
