"""What a patch would do, estimated for every layer and head at once."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from lcalens.core.checks import check_choice, check_int
from lcalens.core.errors import LcalensError
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import provenance_of
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.stamp import holds_steady
from lcalens.core.statistics import ratio_of_means
from lcalens.core.tables import lengthen
from lcalens.engine.decoder import Decoder
from lcalens.engine.direct import direct_effects
from lcalens.engine.forward import trace
from lcalens.engine.gradients import Effects, Pairs, frozen, integrated_effects, patching_effects, rows_at_once
from lcalens.engine.metrics import Asked, Metric, with_slope
from lcalens.engine.sites import HEADS, SHARED, head_labels
from lcalens.mechanism.arguments import (
    Direction,
    Positions,
    check_aligned,
    check_contrast,
    check_layer,
    check_metric,
    read_direction,
    read_layers,
    read_positions,
    read_site,
)
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.contrast.inputs import Group
from lcalens.mechanism.ends import of_the_logits
from lcalens.mechanism.labels import label_record
from lcalens.mechanism.measured import clusters_of
from lcalens.mechanism.summary import contrast_record, interval, metric_name, plain_positions, site_table, unit_of

Method = Literal["patching", "integrated-gradients", "direct"]
_DIRECT = ("z", "attn_out", "mlp_out")
_PARTS = ("heads", "mlps", "embedding", "biases")
_NOUGHT = 1e-6  # of the largest change: a relative gap is not told of less


@holds_steady
def attribute(
    model: Any,
    contrast: Contrast,
    *,
    method: Method = "patching",
    site: str = "z",
    positions: Positions = "last",
    direction: Direction = "restore",
    metric: Metric = "logit-difference",
    steps: int = 32,
    progress: bool | ProgressCallback = True,
) -> Result:
    """Estimate what `patch` would measure, for every layer (and head) of a site at once.

    `patching` is exact where the metric is linear in the site, as for the toy model's values under its own attention;
    elsewhere it is good for screening: confirm with `patch`. `integrated-gradients` moves a layer's heads together, so
    that their effects sum to what patching the layer whole does; the table `completeness` says how nearly. `direct` is
    direct logit attribution: what a head or an MLP writes at the last position along the answers' direction, in the
    source run less the base run, every norm's scale frozen at each run's own. What it does through later layers is left
    out, and the parts sum to the whole: the table `balance`.

    Args:
        model: A TransformerBridge, of a toy or a real model.
        contrast: Clean and hijacked runs.
        method: `patching`, the gradient at the base run times the difference (Nanda 2023; Syed et al. 2023); or
            `integrated-gradients`, its mean on the straight way from base to source (Sundararajan et al. 2017); or
            `direct`.
        site: As for `patch`. Key and value heads are one site each, named by the query heads they serve.
        positions: As for `patch`; for `direct`, whose sites are `head`, `attn_out` and `mlp_out`, `last`, or `each` for
            heads by the position that they look at (runs of equal length).
        direction: `restore`: the base is the hijacked run, the source the clean one; `corrupt`: the reverse.
        metric: As for `patch`, but for `whole-answer`: a name, or a function of (logits of the last position, index of
            the example), row by row, through which gradients are taken. `direct` takes `logit-difference` alone, to
            which its parts sum.
        steps: Points of integrated gradients (Gauss-Legendre).
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes example, layer, head (where the site has heads) and position (for `each`), with `effect`:
        the predicted change of the metric when the site is patched, `value` of `patch` less the base run's. `summary`
        has its means and the recovery that they predict (ratio of means), each with 95% bootstrap intervals over
        examples. Of integrated gradients, `completeness` has for each layer the mean sum of effects, the mean exact
        change, the mean absolute gap between the two, and that over the mean absolute exact change. Of direct effects,
        `balance` has heads, MLPs, embedding, biases and their total, the metric, in the clean and the hijacked run, and
        their `effect`, source less base.

    Raises:
        LcalensError: An argument that cannot be used, a site that does not align, or a model that cannot be read layer
            by layer.

    Example:
        >>> attribute(model, contrast).plot()  # one backward pass for all heads
        >>> attribute(model, contrast, method="direct", site="attn_out").wide("balance")  # parts that sum to the whole
    """
    check_contrast(model, contrast)
    check_choice("method", method, get_args(Method))
    asked, direction = read_site(site), read_direction(direction)
    metric = check_metric(metric, "attribute", but=("whole-answer",))
    if method == "direct" and metric != "logit-difference":
        raise LcalensError(
            "metric: direct effects are parts of logit(false) - logit(true), which is linear in what is written; take "
            "'logit-difference', or another method."
        )
    check_aligned(asked.site, contrast)
    steps = check_int("steps", steps, low=1, high=4096)
    positions = read_positions(positions)
    if method == "direct":
        _check_direct(asked.site, positions, contrast)
    places = contrast.places(positions)
    decoder = read_layers(model, "attribute", contrast)
    check_layer(asked, len(decoder.layers))
    site, layer = asked.site, decoder.layers[0]
    labels: dict[str, tuple[Any, ...]] = {"layer": tuple(range(len(decoder.layers)))}
    if site in HEADS | SHARED:
        labels["head"] = head_labels(layer.heads, layer.kv_heads, site)
    groups = max(map(len, places))
    size = len(contrast)
    effect = np.full((size, *(len(axis) for axis in labels.values()), groups), np.nan)
    exact = np.full((size, len(decoder.layers), groups), np.nan)
    base, source = np.full((2, size), np.nan)
    balance = np.full((len(_PARTS), 2, size), np.nan)
    integrates = method == "integrated-gradients"
    done, total = 0, size * (len(decoder.layers) if integrates else 1)
    with frozen(model), progress_callback(progress, unit="examples") as report:

        def tick(count: int) -> None:
            nonlocal done
            done += count
            report(done, total, f"{method} at {asked.site}")

        for rows, pairs in _pairs(contrast, places, decoder, direction):
            if integrates:
                measure = _measure(metric, decoder, pairs, rows, direction)
                effects = integrated_effects(decoder, pairs, site, steps, tick, measure)
            elif method == "direct":
                effects, balance[..., rows] = _direct(decoder, pairs, site, positions == "each")
            else:
                effects = patching_effects(decoder, pairs, site, _measure(metric, decoder, pairs, rows, direction))
            if not integrates:
                tick(len(rows))
            missing = groups - pairs.chosen.shape[1]  # positions are counted from the end
            effect[rows, ..., missing:] = _numbers(effects.effect)
            base[rows], source[rows] = _numbers(effects.base), _numbers(effects.source)
            if effects.exact is not None:
                exact[rows, :, missing:] = _numbers(effects.exact)
    if positions == "each":
        labels["position"] = tuple(range(-groups, 0))
    else:
        effect, exact = effect[..., 0], exact[..., 0]
    if asked.layer is not None:
        labels["layer"] = (asked.layer,)
        effect, exact = (array[:, [asked.layer]] for array in (effect, exact))
    clean, hijacked = (source, base) if direction == "restore" else (base, source)
    unit = unit_of(metric_name(metric))
    tables = {"summary": _summary(effect, clean, hijacked, base, labels, clusters_of(contrast.examples), unit)}
    largest = float(np.nanmax(np.abs(effect.mean(0)), initial=0.0))
    ends, record, grid = of_the_logits(model, contrast, metric, largest)
    if grid is not None:
        tables["summary"] = tables["summary"].assign(resolution=grid)
    if integrates:
        tables["completeness"] = _completeness(effect, exact, labels, unit)
    if method == "direct":
        tables["balance"] = _balance(balance, direction)
    return Result(
        kind="attribution",
        axes={EXAMPLE: tuple(range(size)), **labels},
        values={"effect": effect},
        examples=contrast.examples.assign(clean=clean, hijacked=hijacked, **ends),
        tables=tables,
        units={"effect": unit},
        provenance=provenance_of(
            model,
            path="layer by layer",
            settings={
                "method": method,
                "site": asked.site,
                "positions": plain_positions(positions),
                "direction": direction,
                "metric": metric_name(metric),
                **({"steps": steps} if integrates else {}),
            }
            | record
            | contrast_record(contrast, metric)
            | (label_record(model, contrast, direction) if positions == "each" else {}),
        ),
    )


def _check_direct(site: str, positions: Any, contrast: Contrast) -> None:
    if site not in _DIRECT:
        raise LcalensError(f"site: {site!r:.60} has no direct effect of its own; take one of {', '.join(_DIRECT)}.")
    by_source = isinstance(positions, str) and positions == "each"
    if not by_source and not (isinstance(positions, str) and positions == "last"):
        raise LcalensError(
            f"positions: {positions!r:.60} is not for direct effects, which are the last position's; take 'last', "
            "or 'each' for heads by the position they look at; split() sums these by span."
        )
    if by_source and site != "z":
        raise LcalensError(f"positions: only heads look at positions; take 'last' with site {site!r}.")
    if by_source and not bool(contrast.aligned.all()):
        raise LcalensError(
            "positions: 'each' needs clean and hijacked runs of equal length; take 'last', or split(), where what is "
            "inserted is a term of its own."
        )


def _numbers(values: torch.Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def _pairs(
    contrast: Contrast, places: tuple[tuple[Group, ...], ...], decoder: Decoder, direction: str
) -> Iterator[tuple[np.ndarray, Pairs]]:
    """Examples of the same lengths and number of groups, as many together as memory allows, and which they are."""
    device = decoder.layers[0].device
    for bucket in contrast.buckets():
        places_in_bucket = [places[index] for index in bucket.indices.tolist()]
        reach = max(-min(map(min, groups)) for groups in places_in_bucket)
        # Examples of the same lengths have as many groups: one, or one for each position that both runs have.
        chosen = torch.zeros(len(places_in_bucket), len(places_in_bucket[0]), reach, dtype=torch.bool)
        for row, groups in enumerate(places_in_bucket):
            for number, group in enumerate(groups):
                chosen[row, number, list(group)] = True
        runs = (bucket.hijacked, bucket.clean) if direction == "restore" else (bucket.clean, bucket.hijacked)
        whole = Pairs(*(tensor.to(device) for tensor in (*runs, bucket.true, bucket.false, chosen)))
        length = max(run.shape[1] for run in runs)
        size = max(1, rows_at_once(decoder, length) // length)
        for first in range(0, len(places_in_bucket), size):
            chunk = slice(first, first + size)
            yield bucket.indices[chunk].numpy(), whole[chunk]


def _measure(
    metric: Metric, decoder: Decoder, pairs: Pairs, rows: np.ndarray, direction: str
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The metric of residual streams after the last layer, or None for the logit difference, which needs two logits."""
    if metric == "logit-difference":
        return None
    tokens, device = pairs.source if direction == "restore" else pairs.base, decoder.unembed.device
    with torch.no_grad():
        clean = decoder.logits(trace(decoder, tokens, keep=()).final[:, -1])
    index = torch.from_numpy(rows).to(device)
    return with_slope(metric, decoder, Asked(pairs.true.to(device), pairs.false.to(device), index, clean))


def _direct(decoder: Decoder, pairs: Pairs, site: str, by_source: bool) -> tuple[Effects, np.ndarray]:
    """Direct effects, source less base; and the balance: part x (base, source) x example."""
    runs = [direct_effects(decoder, tokens, pairs.true, pairs.false) for tokens in (pairs.base, pairs.source)]
    if site == "z":
        base, source = (run.heads_by_source if by_source else run.heads[..., None] for run in runs)
    else:
        base, source = (
            (run.mlp if site == "mlp_out" else run.heads.sum(-1) + run.attention_bias)[..., None] for run in runs
        )
    balance = np.stack([[_numbers(run.balance[part]) for run in runs] for part in _PARTS])
    return Effects(source - base, runs[0].metric, runs[1].metric), balance


def _balance(balance: Float[np.ndarray, "part run example"], direction: str) -> pd.DataFrame:
    base, source = np.vstack([means := balance.mean(-1), means.sum(0)]).T
    clean, hijacked = (source, base) if direction == "restore" else (base, source)
    named = {"part": [*_PARTS, "total"], "clean": clean, "hijacked": hijacked}
    return lengthen(
        pd.DataFrame(named | {"effect": source - base}), dict.fromkeys(("clean", "hijacked", "effect"), "logits")
    )


def _summary(
    effect: Float[np.ndarray, "example ..."],
    clean: Float[np.ndarray, " example"],
    hijacked: Float[np.ndarray, " example"],
    base: Float[np.ndarray, " example"],
    labels: Mapping[str, tuple[Any, ...]],
    clusters: np.ndarray | None,
    unit: str,
) -> pd.DataFrame:
    columns = interval("effect", ratio_of_means(effect, np.ones(len(effect)), clusters))
    predicted = effect + (base - hijacked).reshape(-1, *(1 for _ in labels))
    apart = clean - hijacked
    nothing = np.full(effect.shape[1:], np.nan)
    columns |= interval(
        "recovery", ratio_of_means(predicted, apart, clusters) if apart.any() else (nothing, nothing, nothing)
    )
    return site_table(labels, columns, {"effect": unit, "recovery": "share"})


def _completeness(
    effect: Float[np.ndarray, "example layer *site"],
    exact: Float[np.ndarray, "example layer *position"],
    labels: Mapping[str, tuple[Any, ...]],
    unit: str,
) -> pd.DataFrame:
    summed = effect.sum(2) if "head" in labels else effect
    gap, size = np.nanmean(np.abs(summed - exact), 0), np.nanmean(np.abs(exact), 0)
    relative = np.divide(gap, size, out=np.full(gap.shape, np.nan), where=size > _NOUGHT * size.max())
    columns = {"effect": np.nanmean(summed, 0), "exact": np.nanmean(exact, 0), "gap": gap, "relative_gap": relative}
    units = dict.fromkeys(("effect", "exact", "gap"), unit) | {"relative_gap": "share"}
    return site_table({name: axis for name, axis in labels.items() if name != "head"}, columns, units)
