"""`head_kinds`: movers, amplifiers and counter-heads, told apart by a rule on measured effects and their intervals."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from lcalens.core.checks import check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.core.progress import ProgressCallback
from lcalens.core.provenance import provenance_of
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.stamp import holds_steady
from lcalens.core.statistics import clustered_mean_interval, ratio_of_means
from lcalens.core.tables import lengthen
from lcalens.core.workers import check_jobs
from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import trace
from lcalens.engine.metrics import Metric
from lcalens.mechanism.arguments import (
    Head,
    Heads,
    Positions,
    check_contrast,
    check_metric,
    read_heads,
    read_layers,
)
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.ends import of_the_logits
from lcalens.mechanism.exchange import batches
from lcalens.mechanism.kind_rule import KINDS, Effects, counts_table
from lcalens.mechanism.looked import OTHERS, Looked, read_looked
from lcalens.mechanism.measured import clusters_of
from lcalens.mechanism.patch import patch
from lcalens.mechanism.path import path
from lcalens.mechanism.summary import contrast_record, interval, metric_name, unit_of

_SHARE = 0.01
_ATTENTION = "attention per token"
_CARRYING: tuple[str, ...] = ("direct", "total", "heard")
_LOOKING: tuple[str, ...] = ("on_keys", "on_others", "looks")


@holds_steady
def head_kinds(
    model: Any,
    contrast: Contrast,
    heads: Heads,
    *,
    threshold: float = _SHARE,
    keys: Positions | None = None,
    over: Positions = OTHERS,
    metric: Metric = "logit-difference",
    seed: int = 0,
    memory: float | int = 2.0,
    out: str | os.PathLike[str] | None = None,
    n_jobs: int = 1,
    progress: bool | ProgressCallback = True,
) -> Result:
    """Tell heads apart by what they do for a hijack: movers, amplifiers, counter-heads, each by a rule.

    With t the threshold, a share of the whole hijack hijacked - clean, and every condition on a 95% bootstrap interval
    over examples (whole clusters), a head is

    - a *mover* if its direct path to the logits carries more than t, and from the last position it attends to a token
      of the false object more than to another token of the hijack;
    - an *amplifier* if its output, made the clean run's, takes more than t away, and so does what it hears of the
      movers: the exact paths from each of them to its query, and to its key and value at the last position, summed;
    - a *counter-head* if its direct path or its output carries less than -t: it pushes back.

    A head may be several of these, or none. What was measured stands beside every verdict. On the examples that chose
    the heads effects flatter: give others. A head that moves what another has moved is heard by `heard` alone.

    Args:
        model: A TransformerBridge, of a toy or a real model.
        contrast: Clean and hijacked runs whose hijack raises the metric. Paths to keys and values are left out where
            runs differ in length.
        heads: Heads as (layer, head), or as `leading` gives them; amplifiers hear movers among these alone.
        threshold: A share of the hijack's mean effect, at least 0.
        keys: Where the false object stands, as for `score_parts`.
        over: What attention to it is compared with, as for `score_parts`, but never nothing.
        metric: As for `patch`, but for `whole-answer`.
        seed: Of random signs.
        memory: GiB that a batch may take.
        out: A folder for finished examples: the same call again computes only what is missing.
        n_jobs: How many processes compute, as for `patch`.
        progress: True for a bar, False for silence, or a function of (done, total, what), for each measurement anew.

    Returns:
        A result over the axes example and head, in the metric's unit: `direct`, `total` and `heard` (of the movers),
        positive where they carry the hijack; and in attention per token `on_keys`, `on_others` and `looks`, their
        difference. Its tables: `summary`, a row for each head's means, with shares of the hijack, 95% intervals, the
        verdicts `mover`, `amplifier` and `counter`, and `kind`, all that hold; `counts`, how many heads are of each
        kind: `count` by the rule; `by_means`, with means in place of intervals, whose own interval comes of the rule
        applied anew in each resample of examples (fewer heads pass the stricter rule, so `count` may lie below it); and
        `by_chance`, by the rule where the effects of each cluster have a random sign and the hijack's whole effect
        stays: the mean and 95% range of 200 draws; `heard`, each mover's paths to each head behind it.

    Raises:
        LcalensError: An argument that cannot be used, a hijack that does not raise the metric or whose interval holds 0
            (that of one example does not exist), or a model that lcalens
            cannot read layer by layer.

    Example:
        >>> heads = leading(patch(model, contrast), 3)
        >>> found = head_kinds(model, contrast, heads)
        >>> found.wide()  # each head's kind, and what it was told by
        >>> found.wide("counts")
        >>> found.plot()
    """
    check_contrast(model, contrast)
    check_metric(metric, "head_kinds", but=("whole-answer",))
    limit = check_real("threshold", threshold, low=0.0)
    check_int("seed", seed, low=0)
    check_real("memory", memory, low=1e-3)
    if over is None:
        raise LcalensError("over: attention is compared with that to other tokens; 'others', a span or indices.")
    looked = read_looked(contrast, keys, over)
    decoder = read_layers(model, "head_kinds", contrast)
    chosen = read_heads("heads", heads, len(decoder.layers), decoder.layers[0].heads)
    shared: dict[str, Any] = {
        "metric": metric,
        "memory": memory,
        "out": out,
        "n_jobs": check_jobs(n_jobs, model),
        "progress": progress,
    }
    patched = patch(model, contrast, site="z", positions="last", **shared)
    ends = patched.examples[["clean", "hijacked"]].to_numpy(dtype=float)
    whole = ends[:, 1] - ends[:, 0]
    _check_raised(whole, clusters_of(contrast.examples))
    direct = path(model, contrast, senders=list(chosen), **shared).values["effect"][:, :, 0]
    value = patched.values["value"]
    total = np.stack([ends[:, 1] - value[:, layer, head] for layer, head in chosen], 1)
    told = _told(model, contrast, chosen, shared)
    on_keys, on_others = _attention(decoder, contrast, chosen, looked)
    clusters = clusters_of(contrast.examples)
    effects = Effects(direct, total, on_keys - on_others, np.sum(list(told.values()), axis=0), whole)
    verdicts = effects.by_intervals(limit, clusters)
    heard = effects.told[:, verdicts["mover"]].sum(1)
    values = {"direct": direct, "total": total, "heard": heard}
    values |= {"on_keys": on_keys, "on_others": on_others, "looks": effects.looks}
    labels = tuple(f"L{layer}H{head}" for layer, head in chosen)
    unit = unit_of(metric_name(metric))
    units: dict[str, str] = dict.fromkeys(_CARRYING, unit) | dict.fromkeys(_LOOKING, _ATTENTION)
    largest = float(np.abs(np.stack([direct.mean(0), total.mean(0)])).max())
    capped, record, grid = of_the_logits(model, contrast, metric, largest)
    summary = _summary(labels, values, whole, verdicts, clusters, unit)
    tables = {
        "summary": summary if grid is None else summary.assign(resolution=grid),
        "counts": counts_table(effects, verdicts, limit, clusters, seed),
    }
    tables |= _heard(labels, told, verdicts["mover"], whole, clusters, unit)
    settings = looked.record | {
        "heads": [list(head) for head in chosen],
        "heads_rule": getattr(heads, "rule", "as given"),
        "threshold": limit,
        "paths": list(told),
        "metric": metric_name(metric),
        "seed": seed,
    }
    return Result(
        kind="head-kinds",
        axes={EXAMPLE: tuple(range(len(contrast))), "head": labels},
        values=values,
        examples=contrast.examples.assign(clean=ends[:, 0], hijacked=ends[:, 1], **capped),
        tables=tables,
        units=units,
        provenance=provenance_of(
            model, path="growing batch", settings=settings | record | contrast_record(contrast, metric)
        ),
    )


def _check_raised(whole: Float[np.ndarray, " example"], clusters: np.ndarray | None) -> None:
    """Refuse a hijack that does not surely raise the metric: kinds are told by shares of that.

    Raises:
        LcalensError: It does not.
    """
    if not whole.mean() > 0:
        raise LcalensError(
            f"contrast: its hijack changes the metric by {whole.mean():.3g}, and kinds are told by shares of what "
            "raises it; choose examples, or another metric."
        )
    low, high = clustered_mean_interval(whole, clusters)
    if not low > 0:
        interval = "one example has no interval" if np.isnan(low) else f"its 95% interval is {low:.3g} to {high:.3g}"
        raise LcalensError(
            f"contrast: its hijack raises the metric by {whole.mean():.3g}, but {interval}, and kinds are told by "
            "intervals of shares of it; give more examples, or such as are hijacked more clearly."
        )


def _told(
    model: Any, contrast: Contrast, heads: Sequence[Head], shared: dict[str, Any]
) -> dict[str, Float[np.ndarray, "example sender receiver"]]:
    """The paths from each head to the query, key and value of each at the last position; 0 to heads not behind it."""
    later = [head for head in heads if head[0] > heads[0][0]]
    found = {}
    for at in ("q", "k", "v") if bool(contrast.aligned.all()) else ("q",):
        every = np.zeros((len(contrast), len(heads), len(heads)))
        if later:
            senders = [head for head in heads if head[0] < later[-1][0]]
            some = path(model, contrast, senders=senders, receivers=later, at=at, positions="last", **shared)
            every[:, : len(senders), len(heads) - len(later) :] = np.nan_to_num(some.values["effect"])
        found[at] = every
    return found


def _attention(
    decoder: Decoder, contrast: Contrast, heads: Sequence[Head], looked: Looked
) -> tuple[Float[np.ndarray, "example head"], Float[np.ndarray, "example head"]]:
    """What the last position of the hijacked run pays to a key, and to one of the others, on average."""
    found = np.full((2, len(contrast), len(heads)), np.nan)
    for bucket in batches(contrast, decoder):
        rows = bucket.indices.tolist()
        weights = looked.weights(rows, bucket.hijacked.shape[1])
        with torch.no_grad():
            run = trace(decoder, bucket.hijacked, keep=("pattern",))
        for at, (layer, head) in enumerate(heads):
            paid = run.kept["pattern"][layer][:, head, -1].double().cpu()
            found[:, rows, at] = (weights * paid).sum(-1).numpy()
    return found[0], found[1]


def _summary(
    labels: tuple[str, ...],
    values: dict[str, np.ndarray],
    whole: np.ndarray,
    verdicts: dict[str, np.ndarray],
    clusters: np.ndarray | None,
    unit: str,
) -> pd.DataFrame:
    columns: dict[str, Any] = {"head": list(labels)}
    units: dict[str, str] = {}
    for name in _CARRYING:
        columns |= interval(name, ratio_of_means(values[name], np.ones(len(whole)), clusters))
        columns |= interval(f"{name}_share", ratio_of_means(values[name], whole, clusters))
        units |= {name: unit, f"{name}_share": "share"}
    for name in _LOOKING:
        columns |= interval(name, ratio_of_means(values[name], np.ones(len(whole)), clusters))
        units[name] = _ATTENTION
    named = [[kind for kind in KINDS if verdicts[kind][at]] for at in range(len(labels))]
    columns |= {kind: verdicts[kind] for kind in KINDS} | {"kind": [", ".join(some) or "none" for some in named]}
    return lengthen(pd.DataFrame(columns), units, behind=[*KINDS, "kind"])


def _heard(
    labels: tuple[str, ...],
    told: dict[str, np.ndarray],
    movers: np.ndarray,
    whole: np.ndarray,
    clusters: np.ndarray | None,
    unit: str,
) -> dict[str, pd.DataFrame]:
    """Each mover's paths to each head behind it; empty where there are none."""
    layers = [int(label[1:].partition("H")[0]) for label in labels]
    rows = [
        (sender, receiver, at)
        for sender in np.flatnonzero(movers)
        for receiver in range(len(labels))
        for at in told
        if layers[sender] < layers[receiver]
    ]
    parts = [told[at][:, sender, receiver] for sender, receiver, at in rows]
    columns: dict[str, Any] = {
        "mover": [labels[sender] for sender, _, _ in rows],
        "head": [labels[receiver] for _, receiver, _ in rows],
        "at": [at for _, _, at in rows],
    }
    for name, over in (("effect", np.ones(len(whole))), ("share", whole)):
        ends = ratio_of_means(np.stack(parts, 1), over, clusters) if parts else (np.zeros(0), np.zeros(0), np.zeros(0))
        columns |= interval(name, ends)
    return {"heard": lengthen(pd.DataFrame(columns), {"effect": unit, "share": "share"})}
