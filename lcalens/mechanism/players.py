"""`shapley`: what each of several heads, positions or tokens carries of a hijack, where their effects overlap."""

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch

from lcalens.core.cells import CellStore, cell_key
from lcalens.core.checks import check_choice, check_int, check_real
from lcalens.core.coalitions import added_by_order, joined, sampled_orders, shapley_values
from lcalens.core.errors import LcalensError
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import active_hooks, provenance_of
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.stamp import holds_steady, stamp
from lcalens.engine.decoder import Decoder
from lcalens.engine.metrics import Metric
from lcalens.engine.reading import read_decoder
from lcalens.engine.variants import row_bytes
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
from lcalens.mechanism.game import Exchange, Game, Sources
from lcalens.mechanism.measured import clusters_of
from lcalens.mechanism.memory import halving
from lcalens.mechanism.players_tables import QUANTITIES, tables_of
from lcalens.mechanism.summary import contrast_record, metric_name, unit_of

Players = Literal["heads", "positions", "tokens"]
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
    values = {name: np.full((len(contrast), len(labels)), np.nan) for name in (*QUANTITIES, "error")}
    ends, everyone = np.full((len(contrast), 2), np.nan), np.full(len(contrast), np.nan)
    worths = np.full((len(contrast), 1 << len(labels)), np.nan) if _exact(contrast, players, labels) else None
    done = 0
    with progress_callback(progress, unit="examples") as report:
        for bucket in _batches(contrast, decoder, players):
            rows = bucket.indices.cpu().numpy()
            key = "" if out is None else cell_key(
                (_measure, _game, Game, read_decoder), [*whose, rows.tolist(), contrast[rows.tolist()].content()]
            )  # fmt: skip
            cell = store.get(key)
            if cell is None:

                def measure(part: Bucket, limit: float) -> dict[str, np.ndarray]:
                    game = _game(decoder, part, chosen, exchange, players, asked, limit, contrast)
                    return _measure(game, exact=worths is not None, samples=samples, seed=seed)

                cell, _ = halving(measure, bucket, budget)
                store.put(key, cell)
            at = _places(contrast, rows, labels, players)
            ends[rows], everyone[rows] = cell["ends"], cell["everyone"]
            for name in (*QUANTITIES, "error"):
                values[name][rows[:, None], at] = cell[name]
            if worths is not None:
                worths[rows] = cell["worths"]
            done += len(rows)
            report(done, len(contrast), f"shapley of {len(labels)} {players}")
    whole, clusters = ends[:, 1] - ends[:, 0], clusters_of(contrast.examples)
    if worths is not None:
        del values["error"]
    unit = unit_of(metric_name(metric))
    examples = contrast.examples.assign(clean=ends[:, 0], hijacked=ends[:, 1], together=everyone)
    tables = tables_of(axis, labels, values, everyone, whole, worths, clusters, unit)
    capped, record, grid = of_the_logits(model, contrast, metric, float(np.abs(np.nanmean(values["shapley"], 0)).max()))
    if grid is not None:
        tables["summary"] = tables["summary"].assign(resolution=grid)
    sampled = {"method": "sampled orders", "samples": samples, "seed": seed}
    how = {"method": "every set"} if worths is not None else sampled
    settings = {
        "heads": [list(head) for head in chosen],
        "heads_rule": getattr(heads, "rule", "all" if heads is None else "as given"),
        "exchange": exchange,
        "players": players,
        "metric": metric_name(metric),
    }
    return Result(
        kind="shapley",
        axes={EXAMPLE: tuple(range(len(contrast))), axis: labels},
        values=values,
        examples=examples.assign(**capped),
        tables=tables,
        units=dict.fromkeys(values, unit),
        provenance=provenance_of(
            model, path="growing batch", settings=settings | how | record | contrast_record(contrast, metric)
        ),
    )


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


def _present(contrast: Contrast, example: int) -> list[int]:
    """The tokens of an example's two runs."""
    return sorted({*contrast.clean[example], *contrast.hijacked[example]})


def _labels(contrast: Contrast, heads: Sequence[Head], players: str) -> tuple[Any, ...]:
    if players == "heads":
        return tuple(f"L{layer}H{head}" for layer, head in heads)
    if players == "positions":
        return tuple(range(-max(map(len, contrast.hijacked)), 0))
    return tuple(sorted({token for example in range(len(contrast)) for token in _present(contrast, example)}))


def _places(contrast: Contrast, rows: np.ndarray, labels: Sequence[Any], players: str) -> np.ndarray:
    """For each of these examples, where its players stand among the labels."""
    if players == "heads":
        return np.tile(np.arange(len(labels)), (len(rows), 1))
    if players == "positions":
        length = len(contrast.hijacked[rows[0]])
        return np.tile(np.arange(len(labels) - length, len(labels)), (len(rows), 1))
    at = {token: place for place, token in enumerate(labels)}
    return np.array([[at[token] for token in _present(contrast, row)] for row in rows.tolist()])


def _batches(contrast: Contrast, decoder: Decoder, players: str) -> Iterator[Bucket]:
    """Examples with as many players, on the model's device; one by one where each has tokens of its own."""
    device = decoder.layers[0].device
    for bucket in contrast.buckets():
        tokens = bucket.clean.shape[1] + bucket.hijacked.shape[1]
        size = 1 if players == "tokens" else max(1, min(_TOKENS // tokens, 16))
        for first in range(0, len(bucket.indices), size):
            yield Bucket(*(tensor[first : first + size].to(device) for tensor in bucket))


def _game(
    decoder: Decoder,
    bucket: Bucket,
    heads: tuple[Head, ...],
    exchange: Exchange,
    players: str,
    metric: Metric,
    budget: float,
    contrast: Contrast,
) -> Game:
    sources = None
    if players == "positions":
        own = torch.eye(bucket.hijacked.shape[1], dtype=torch.bool, device=bucket.hijacked.device)
        sources = Sources(*[own.expand(len(bucket.indices), -1, -1)] * 2)
    elif players == "tokens":
        present = torch.tensor(
            [_present(contrast, row) for row in bucket.indices.tolist()], device=bucket.hijacked.device
        )
        sources = Sources(*(present[:, :, None] == tokens[:, None] for tokens in (bucket.clean, bucket.hijacked)))
    return Game(decoder, bucket, heads, exchange, sources, metric, budget, row_bytes(decoder))


@torch.no_grad()
def _measure(game: Game, *, exact: bool, samples: int, seed: int) -> dict[str, np.ndarray]:
    """Of some examples: both runs' metric, everybody's worth, and each player's quantities; all worths where exact."""
    ends = _numbers(game.ends)
    if exact:
        worths = ends[:, 1:] - _numbers(game.every())
        everybody = worths.shape[1] - 1
        singles = 1 << np.arange(game.players)
        found = {
            "shapley": shapley_values(worths),
            "alone": worths[:, singles],
            "last": worths[:, -1:] - worths[:, everybody - singles],
        }
        return found | {
            "ends": ends,
            "everyone": worths[:, -1],
            "error": np.zeros_like(found["alone"]),
            "worths": worths,
        }
    orders = np.stack([sampled_orders(game.players, samples, [seed, row]) for row in game.bucket.indices.tolist()])
    own = np.eye(game.players, dtype=bool)
    masks = [np.ones((1, game.players), dtype=bool), own, ~own]
    together = np.stack([np.concatenate([*masks, joined(some)]) for some in orders])
    metrics = _numbers(game.some(torch.from_numpy(together).to(game.bucket.hijacked.device)))
    worths = ends[:, 1:] - metrics
    everyone, alone, without = np.split(worths[:, : 1 + 2 * game.players], [1, 1 + game.players], axis=1)
    added = np.stack(
        [added_by_order(*one) for one in zip(orders, worths[:, 1 + 2 * game.players :], everyone[:, 0], strict=True)]
    )
    pairs = (added[:, 0::2] + added[:, 1::2]) / 2
    return {
        "ends": ends,
        "everyone": everyone[:, 0],
        "shapley": added.mean(1),
        "alone": alone,
        "last": everyone - without,
        "error": pairs.std(1, ddof=1) / np.sqrt(pairs.shape[1]),
    }


def _numbers(metrics: torch.Tensor) -> np.ndarray:
    return metrics.double().cpu().numpy()
