"""`split`: whether a hijack works by where heads look or by what they recall there; and its causal twin."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from lcalens.core.checks import check_int
from lcalens.core.errors import LcalensError
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import provenance_of
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.stamp import holds_steady
from lcalens.core.statistics import clustered_mean_interval, ratio_of_means
from lcalens.core.tables import lengthen
from lcalens.engine.decoder import Decoder
from lcalens.engine.direct import direct_effects
from lcalens.engine.metrics import Metric
from lcalens.mechanism.arguments import Head, Heads, check_contrast, check_metric, read_heads, read_layers
from lcalens.mechanism.contrast.contrast import Bucket, Contrast
from lcalens.mechanism.division import DIVIDED, REST, UNDIVIDED, divide, group_names, group_positions
from lcalens.mechanism.ends import of_the_logits
from lcalens.mechanism.exchange import TWINS, batches, exchange_bucket
from lcalens.mechanism.leading import Leading, lead
from lcalens.mechanism.measured import clusters_of
from lcalens.mechanism.summary import contrast_record, interval

_TOTAL = "total"
_LEADING = 10


@holds_steady
def split(
    model: Any,
    contrast: Contrast,
    *,
    groups: Sequence[str] | None = None,
    twin: int | Heads = _LEADING,
    metric: Metric = "logit-difference",
    progress: bool | ProgressCallback = True,
) -> Result:
    """Divide what each head adds to a hijack into where it looks, what it recalls there, and the norms' scale.

    At the last position a head's direct effect on logit(false) - logit(true), before any soft cap, is the sum over
    positions of attention x recall x scale: recall is what that position's value writes through W_O along the answer
    direction, scale that of the final norm (and Gemma 2's and 3's norm after attention), each run's own. What changes
    from the clean to the hijacked run is divided, position by position, by Shapley values, whose sum is the change.
    Only runs of the same length are divided. Else what comes from positions that one run alone has is `inserted`
    (negative where only the clean run has them), and the others' change is `shared`, undivided.

    In the toy model recall depends only on the token. So its recall change is identically 0 if positions are grouped by
    token, whatever the hijack; by position, as here, it is what other tokens in the same places recall.

    Args:
        model: A TransformerBridge, of a toy or a real model, whose blocks add to the residual stream.
        contrast: Clean and hijacked runs.
        groups: Names of spans. Each position belongs to the first that holds it, or to `rest`. By default spans of your
            own names in their order, then `word`, `sentence`, `subject`, `last`, `prompt`.
        twin: How many leading heads the causal twin takes (by the magnitude of their direct effects, see `leading`), 0
            for none; or these heads, as (layer, head) or as `leading` gives them. `provenance["twin_rule"]` says which.
        metric: `logit-difference` alone, which is linear in what heads write: of others no part is exact, and they are
            refused; `patch` and `exchange` take any.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes example, layer, head and group, in logits: `attention`, `recall` and `scale` (NaN where
        lengths differ), `inserted` and `shared` (0 where they do not), and `total`. Its tables, with 95% bootstrap
        intervals over examples: `summary`, each part by group, summed over heads; `heads`, the ten of the largest mean
        total on these examples (which flatters them: report on others, `contrast[1::2]`); `balance`, both runs' heads,
        MLPs, embedding and biases, whose sum is the metric, and the largest error by which they miss it; `twin`, of
        examples of equal length: in the hijacked run the last position's pattern of the leading heads, the values it
        averages, or both are made the clean run's. There `recovery` is 0 for the hijacked metric, 1 for the clean one;
        `interaction` is both - pattern - values. With a number of heads and four examples or more, the heads are chosen
        on every second one and reported on the others.

    Raises:
        LcalensError: An argument that cannot be used, or a model that lcalens cannot read layer by layer.

    Example:
        >>> parts = split(model, contrast)
        >>> parts.wide("balance")  # heads, MLPs, embedding and biases sum to the metric
    """
    check_contrast(model, contrast)
    if check_metric(metric, "split") != "logit-difference":
        raise LcalensError(
            "metric: split divides logit(false) - logit(true) alone, which is linear in what each head writes, so that "
            "parts sum to it; take exchange() or patch() for another metric."
        )
    decoder = read_layers(model, "split", contrast)
    names = group_names(contrast, groups)
    chosen = _check_twin(decoder, twin)
    labels, lone = group_positions(contrast, names)
    if any(len(names) in row for row, _ in labels) or any(len(names) in row for _, row in labels):
        names = (*names, REST)
    first = decoder.layers[0]
    shape = (len(contrast), len(decoder.layers), first.heads, len(names))
    values = {name: np.zeros(shape) for name in (*DIVIDED, *UNDIVIDED, _TOTAL)}
    balance: list[dict[str, np.ndarray]] = [{}, {}]
    ranked, reported = _twin_examples(chosen, contrast.aligned.numpy())
    total = len(contrast) + len(reported)
    with progress_callback(progress, unit="examples") as report:
        done = 0
        for bucket in batches(contrast, decoder):
            rows = bucket.indices.tolist()
            clean, hijacked = (
                direct_effects(decoder, tokens, bucket.true, bucket.false) for tokens in (bucket.clean, bucket.hijacked)
            )
            grouped, alone = (_sides([row[i] for i in rows], bucket) for row in (labels, lone))
            for name, effects in divide(clean, hijacked, grouped, alone, len(names)).items():
                values[name][rows] = effects.cpu().numpy()
            for tallies, run in zip(balance, (clean, hijacked), strict=True):
                for name, effects in (run.balance | {"metric": run.metric, "error": run.error}).items():
                    tallies.setdefault(name, np.zeros(len(contrast)))[rows] = effects.cpu().numpy()
            done += len(rows)
            report(done, total, "split")
        clusters = clusters_of(contrast.examples)
        aligned = contrast.aligned.numpy()
        tables = {"summary": _summary(values, names, aligned, clusters)}
        tables |= {
            "heads": _heads(values, aligned, clusters),
            "balance": _balance_table(balance[0], balance[1], clusters),
        }
        heads: list[Head] = []
        rule = "none"
        if len(reported):
            lead_by = _leading(values[_TOTAL][ranked], chosen) if isinstance(chosen, int) else chosen
            heads, rule = sorted(lead_by), getattr(lead_by, "rule", getattr(twin, "rule", "as given"))
            patched = np.zeros((len(reported), len(TWINS)))
            for bucket in batches(contrast[reported.tolist()], decoder):
                patched[bucket.indices.cpu().numpy()] = (
                    exchange_bucket(decoder, bucket, [tuple(heads)])[1][:, 0].cpu().numpy()
                )
                done += len(bucket.indices)
                report(done, total, "twin")
            twin_clusters = None if clusters is None else clusters[reported]
            clean_metric, hijacked_metric = (run["metric"][reported] for run in balance)
            tables["twin"] = _twin_table(clean_metric, hijacked_metric, patched, twin_clusters)
    largest = float(np.abs(values[_TOTAL].sum(-1).mean(0)).max())
    ends, record, grid = of_the_logits(model, contrast, "logit-difference", largest)
    if grid is not None:
        tables["summary"] = tables["summary"].assign(resolution=grid)
    axes = {EXAMPLE: tuple(range(shape[0])), "layer": tuple(range(shape[1])), "head": tuple(range(shape[2]))}
    settings = {
        "metric": "logit-difference",
        "groups": list(names),
        "twin": [list(head) for head in heads],
        "twin_rule": rule,
        "heads_rule": _leading(values[_TOTAL], _LEADING).rule,
        "twin_examples": reported.tolist(),
    }
    return Result(
        kind="split",
        axes=axes | {"group": names},
        values=values,
        examples=contrast.examples.assign(clean=balance[0]["metric"], hijacked=balance[1]["metric"], **ends),
        tables=tables,
        units=dict.fromkeys(values, "logits"),
        provenance=provenance_of(
            model, path="layer by layer", settings=settings | record | contrast_record(contrast, "logit-difference")
        ),
    )


def _check_twin(decoder: Decoder, twin: Any) -> int | tuple[Head, ...]:
    layers, count = len(decoder.layers), decoder.layers[0].heads
    if isinstance(twin, Integral):
        return min(check_int("twin", twin, low=0, why="it is a number of heads"), layers * count)
    return read_heads("twin", twin, layers, count)


def _sides(rows: Sequence[Any], bucket: Bucket) -> tuple[Tensor, Tensor]:
    """What is known of each clean position and of each hijacked one, as two tensors."""
    clean, hijacked = (torch.tensor([row[side] for row in rows], device=bucket.clean.device) for side in (0, 1))
    return clean, hijacked


def _interval(values: np.ndarray, clusters: np.ndarray | None) -> dict[str, Any]:
    measured = ~np.isnan(values)
    numbers = values[measured].astype(float)
    low, high = clustered_mean_interval(numbers, None if clusters is None else clusters[measured])
    return {"value": float(numbers.mean()), "value_low": low, "value_high": high, "unit": "logits"}


def _summary(
    values: dict[str, np.ndarray], names: tuple[str, ...], aligned: np.ndarray, clusters: np.ndarray | None
) -> pd.DataFrame:
    """By group, and over all of them: each part's mean over the examples that have it, summed over heads."""
    rows = []
    for group, which in [*((name, [i]) for i, name in enumerate(names)), ("all", list(range(len(names))))]:
        for quantity, array in values.items():
            mask = _having(quantity, aligned)
            if mask.any():
                sums = np.where(mask, array[..., which].sum((1, 2, 3)), np.nan)
                rows.append({"group": group, "quantity": quantity} | _interval(sums, clusters) | {"n": int(mask.sum())})
    return pd.DataFrame(rows)


def _leading(total: np.ndarray, count: int) -> Leading:
    return lead(total.sum(-1).mean(0), count, by="magnitude", kind="split", examples=len(total))


def _having(quantity: str, aligned: Bool[np.ndarray, " example"]) -> Bool[np.ndarray, " example"]:
    """Which examples have a part: of runs that align, of those that do not, or all."""
    parts = {**dict.fromkeys(DIVIDED, aligned), **dict.fromkeys(UNDIVIDED, ~aligned)}
    return parts.get(quantity, np.ones(len(aligned), dtype=bool))


def _heads(values: dict[str, np.ndarray], aligned: np.ndarray, clusters: np.ndarray | None) -> pd.DataFrame:
    rows = []
    for layer, head in _leading(values[_TOTAL], _LEADING):
        for name, array in values.items():
            mask = _having(name, aligned)
            if mask.any():
                effect = np.where(mask, array[:, layer, head].sum(-1), np.nan)
                named = {"layer": layer, "head": head, "quantity": name}
                rows.append(named | _interval(effect, clusters) | {"n": int(mask.sum())})
    return pd.DataFrame(rows)


def _balance_table(
    clean: dict[str, np.ndarray], hijacked: dict[str, np.ndarray], clusters: np.ndarray | None
) -> pd.DataFrame:
    rows = []
    for name in clean:
        if name == "error":
            worst = max(float(run[name].max()) for run in (clean, hijacked))
            ends = {"value_low": np.nan, "value_high": np.nan, "unit": "logits"}
            rows.append({"part": "largest error", "quantity": "error", "value": worst} | ends)
            continue
        changes = {"clean": clean[name], "hijacked": hijacked[name], "change": hijacked[name] - clean[name]}
        part = _TOTAL if name == "metric" else name
        rows += [
            {"part": part, "quantity": quantity} | _interval(numbers, clusters) for quantity, numbers in changes.items()
        ]
    return pd.DataFrame(rows)


def _twin_examples(chosen: int | tuple[Head, ...], aligned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The examples that the twin's heads are chosen on, and those their effects are reported on."""
    rows = np.flatnonzero(aligned)
    if not chosen:
        return rows[:0], rows[:0]
    return (rows[::2], rows[1::2]) if isinstance(chosen, int) and len(rows) >= 4 else (rows, rows)


def _twin_table(
    clean: np.ndarray, hijacked: np.ndarray, patched: np.ndarray, clusters: np.ndarray | None
) -> pd.DataFrame:
    moved = hijacked[:, None] - patched
    moved = np.column_stack([moved, moved[:, 2] - moved[:, 0] - moved[:, 1]])
    columns = {"twin": [*TWINS, "interaction"]} | interval(
        "recovery", ratio_of_means(moved, hijacked - clean, clusters)
    )
    return lengthen(pd.DataFrame(columns | {"n": len(clean)}), {"recovery": "share"}, behind=["n"])
