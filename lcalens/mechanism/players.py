"""`shapley`: what each of several heads, positions or tokens carries of a hijack, where their effects overlap."""

import os
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np

from lcalens.core.cells import CellStore, cell_key
from lcalens.core.checks import check_choice, check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.core.manifest import Manifest
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import active_hooks, provenance_of
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.stamp import holds_steady, stamp
from lcalens.core.work import Piece, finish
from lcalens.core.workers import check_jobs
from lcalens.engine.decoder import Decoder
from lcalens.engine.metrics import Metric
from lcalens.mechanism.arguments import (
    Head,
    Heads,
    check_contrast,
    check_equal_lengths,
    check_metric,
    read_heads,
    read_layers,
)
from lcalens.mechanism.contrast.contrast import Bucket, Contrast
from lcalens.mechanism.ends import of_the_logits
from lcalens.mechanism.game import Exchange
from lcalens.mechanism.measured import clusters_of
from lcalens.mechanism.players_cells import CODE, Plan, Players, tokens_present
from lcalens.mechanism.players_tables import QUANTITIES, tables_of
from lcalens.mechanism.summary import contrast_record, metric_name, study_record, unit_of

MOST = 12
"""Players whose every coalition is run; of more, orders are sampled."""
_SAMPLES = 200
_TOKENS = 4096  # of both runs at once


@holds_steady
def shapley(
    model: Any,
    contrast: Contrast,
    heads: Heads | None = None,
    *,
    exchange: Exchange = "both",
    players: Players = "heads",
    metric: Metric = "logit-difference",
    samples: int = _SAMPLES,
    seed: int = 0,
    memory: float | int = 2.0,
    out: str | os.PathLike[str] | None = None,
    n_jobs: int = 1,
    progress: bool | ProgressCallback = True,
) -> Result:
    """Divide a hijack among players whose effects overlap: Shapley values, exactly up to twelve players.

    Patched one at a time, heads that say the same thing count twice, and heads that need each other not at all. Here
    every set of them is made the clean run's, together, at the last position of the hijacked run, and its worth is
    what that takes from the metric: metric(hijacked) - metric(set restored). A player's Shapley value is its mean
    contribution over all orders in which players can be restored; the values sum to the worth of all together.

    Args:
        model: A TransformerBridge, of a toy or a real model.
        contrast: Clean and hijacked runs; of equal length, but for `exchange="both"` of heads or tokens.
        heads: Heads as (layer, head), or as `leading` gives them; all where the model has no more than twelve.
        exchange: What of a player is made the clean run's: `both`, what the head reads (z); `values`, with the hijacked
            run's own pattern; `pattern`, with its own values.
        players: `heads`; `positions`, source positions of these heads, all heads at once; or `tokens`, the same with
            all positions of a token together, which needs `both`. In the toy, whose one head is one player, the latter
            two divide it.
        metric: As for `patch`, but for `whole-answer`.
        samples: Of more than twelve players: how many orders, drawn anew for each example, half of them the other
            half's reverse. There are no interactions and no curve then.
        seed: Of the orders.
        memory: GiB that a batch may take; where memory runs out all the same, it halves itself.
        out: A folder for finished examples: the same call again computes only what is missing.
        n_jobs: How many processes compute, each with the model and one thread; 1 is this one with its own threads, and
            -1 one per core. They are joblib's, or those that your `joblib.parallel_config` names.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes example and head (`L23H4`), position (-1 is the last) or token (its id), in the metric's
        unit, positive for what carries the hijack: `shapley`; `alone`, the worth of this player by itself; `last`, what
        it adds to all the others; of sampled orders `error`, the standard error by sampling. NaN where an example has
        no such position or token. Its tables, with 95% bootstrap intervals over examples: `summary`, these and `share`,
        the Shapley value's share of hijacked - clean; `together`, all at once beside the sum of each alone, redundancy
        and synergy (the negative and the positive interactions of each example, summed over pairs); `pairs`, the
        Shapley interaction index (Grabisch and Roubens 1999: below 0 two players are redundant); `curve`, for every
        number of players the best set, chosen on half of the examples and measured on the other, both ways; and by
        example `interactions` and `best`, the best set of each size.

    Raises:
        LcalensError: An argument that cannot be used, or a model that lcalens cannot read layer by layer.

    Example:
        >>> heads = leading(patch(model, contrast[::2]), 8, by="carrying")
        >>> found = shapley(model, contrast[1::2], heads)
        >>> found.wide()  # each head's value, alone, last, and its share of the hijack
        >>> found.wide("curve")
    """
    check_contrast(model, contrast)
    asked: Metric = check_metric(metric, "shapley", but=("whole-answer",))
    _check_game(contrast, players, exchange)
    check_int("seed", seed, low=0)
    n_jobs = check_jobs(n_jobs, model)
    if check_int("samples", samples, low=4, why="it is a number of orders, half of them reversed") % 2:
        raise LcalensError(f"samples: expected an even number of orders, half of them reversed, got {samples}.")
    budget = check_real("memory", memory, low=1e-3) * 2**30
    decoder = read_layers(model, "shapley", contrast)
    chosen = _heads(decoder, heads)
    labels = _labels(contrast, chosen, players)
    axis = players.removesuffix("s")
    whose = [stamp(model), chosen, exchange, players, seed, samples, metric_name(metric)]
    if out is not None and not isinstance(metric, str):
        raise LcalensError("out: parts of a metric of your own cannot be told apart; leave out=... away.")
    store = CellStore(None if active_hooks(model) else out)
    exact = _exact(contrast, players, labels)
    pieces = [
        Piece("" if out is None else _key(whose, contrast, bucket), bucket)
        for bucket in _batches(contrast, decoder, players)
    ]
    sampled = {"method": "sampled orders", "samples": samples, "seed": seed}
    settings = {
        "heads": [list(head) for head in chosen],
        "heads_rule": getattr(heads, "rule", "all" if heads is None else "as given"),
        "exchange": exchange,
        "players": players,
        "metric": metric_name(metric),
    } | ({"method": "every set"} if exact else sampled)
    manifest = Manifest(
        store, "shapley", code=CODE, model=model, settings=settings | {"gib": budget / 2**30},
        data=lambda: study_record(contrast, metric),
    )  # fmt: skip
    manifest.expect([piece.key for piece in pieces])
    plan = Plan(contrast, chosen, exchange, players, asked, budget, exact, samples, seed)
    values = {name: np.full((len(contrast), len(labels)), np.nan) for name in (*QUANTITIES, "error")}
    ends, everyone = np.full((len(contrast), 2), np.nan), np.full(len(contrast), np.nan)
    worths = np.full((len(contrast), 1 << len(labels)), np.nan) if exact else None
    done = 0
    with (
        progress_callback(progress, unit="examples") as report,
        finish(store, pieces, plan.measure, model, code=CODE, n_jobs=n_jobs) as cells,
    ):
        for bucket, cell, _ in cells:
            rows = bucket.indices.cpu().numpy()
            at = _places(contrast, rows, labels, players)
            ends[rows], everyone[rows] = cell["ends"], cell["everyone"]
            for name in (*QUANTITIES, "error"):
                values[name][rows[:, None], at] = cell[name]
            if worths is not None:
                worths[rows] = cell["worths"]
            done += len(rows)
            report(done, len(contrast), f"shapley of {len(labels)} {players}")
    manifest.end()
    whole, clusters = ends[:, 1] - ends[:, 0], clusters_of(contrast.examples)
    if worths is not None:
        del values["error"]
    unit = unit_of(metric_name(metric))
    examples = contrast.examples.assign(clean=ends[:, 0], hijacked=ends[:, 1], together=everyone)
    tables = tables_of(axis, labels, values, everyone, whole, worths, clusters, unit)
    capped, record, grid = of_the_logits(model, contrast, metric, float(np.abs(np.nanmean(values["shapley"], 0)).max()))
    if grid is not None:
        tables["summary"] = tables["summary"].assign(resolution=grid)
    return Result(
        kind="shapley",
        axes={EXAMPLE: tuple(range(len(contrast))), axis: labels},
        values=values,
        examples=examples.assign(**capped),
        tables=tables,
        units=dict.fromkeys(values, unit),
        provenance=provenance_of(
            model, path="growing batch", settings=settings | record | contrast_record(contrast, metric)
        ),
    )


def _key(whose: list[Any], contrast: Contrast, bucket: Bucket) -> str:
    rows = bucket.indices.tolist()
    return cell_key(CODE, [*whose, rows, contrast[rows].content()])


def _check_game(contrast: Contrast, players: Any, exchange: Any) -> None:
    """Refuse games that are not defined: values of tokens, and positions that do not align."""
    check_choice("players", players, get_args(Players))
    check_choice("exchange", exchange, get_args(Exchange))
    if players == "tokens" and exchange != "both":
        raise LcalensError(
            f"exchange: {exchange!r} of tokens says nothing, as a token's value is its own in both runs; take 'both', "
            "or players='positions'."
        )
    if exchange != "both" or players == "positions":
        check_equal_lengths(f"shapley of {players}, {exchange}", contrast)


def _heads(decoder: Decoder, heads: Any) -> tuple[Head, ...]:
    layers, count = len(decoder.layers), decoder.layers[0].heads
    if heads is not None:
        return read_heads("heads", heads, layers, count)
    if layers * count > MOST:
        raise LcalensError(
            f"heads: the model has {layers * count}, and all are taken only where there are {MOST} or fewer; give "
            "some, such as leading(patch(model, contrast), 8)."
        )
    return tuple((layer, head) for layer in range(layers) for head in range(count))


def _exact(contrast: Contrast, players: str, labels: Sequence[Any]) -> bool:
    """Whether every coalition is run: where all examples have the same players, and few."""
    alike = len({len(tokens) for tokens in contrast.hijacked}) == 1
    return len(labels) <= MOST and (players == "heads" or (players == "positions" and alike))


def _labels(contrast: Contrast, heads: Sequence[Head], players: str) -> tuple[Any, ...]:
    if players == "heads":
        return tuple(f"L{layer}H{head}" for layer, head in heads)
    if players == "positions":
        return tuple(range(-max(map(len, contrast.hijacked)), 0))
    return tuple(sorted({token for example in range(len(contrast)) for token in tokens_present(contrast, example)}))


def _places(contrast: Contrast, rows: np.ndarray, labels: Sequence[Any], players: str) -> np.ndarray:
    """For each of these examples, where its players stand among the labels."""
    if players == "heads":
        return np.tile(np.arange(len(labels)), (len(rows), 1))
    if players == "positions":
        length = len(contrast.hijacked[rows[0]])
        return np.tile(np.arange(len(labels) - length, len(labels)), (len(rows), 1))
    at = {token: place for place, token in enumerate(labels)}
    return np.array([[at[token] for token in tokens_present(contrast, row)] for row in rows.tolist()])


def _batches(contrast: Contrast, decoder: Decoder, players: str) -> Iterator[Bucket]:
    """Examples with as many players, on the model's device; one by one where each has tokens of its own."""
    device = decoder.layers[0].device
    for bucket in contrast.buckets():
        tokens = bucket.clean.shape[1] + bucket.hijacked.shape[1]
        size = 1 if players == "tokens" else max(1, min(_TOKENS // tokens, 16))
        for first in range(0, len(bucket.indices), size):
            yield Bucket(*(tensor[first : first + size].to(device) for tensor in bucket))
