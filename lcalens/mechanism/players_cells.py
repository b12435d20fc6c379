"""The cells of `shapley`: every set of players restored in some examples, and what each player carries."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from lcalens.core.coalitions import added_by_order, joined, sampled_orders, shapley_values
from lcalens.engine.decoder import Decoder
from lcalens.engine.metrics import Metric
from lcalens.engine.reading import read_decoder
from lcalens.engine.variants import row_bytes
from lcalens.mechanism.arguments import Head, read_layers
from lcalens.mechanism.contrast.contrast import Bucket, Contrast
from lcalens.mechanism.game import Exchange, Game, Sources
from lcalens.mechanism.memory import halving

Players = Literal["heads", "positions", "tokens"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is measured of every batch.

    Attributes:
        contrast: All examples.
        heads: The heads that play, or whose sources do.
        exchange: What of a player is made the clean run's.
        players: Who plays.
        metric: What is read.
        budget: Bytes that a batch may take.
        exact: Whether every coalition is run.
        samples: Of sampled orders, how many.
        seed: Of these.
    """

    contrast: Contrast
    heads: tuple[Head, ...]
    exchange: Exchange
    players: str
    metric: Metric
    budget: float
    exact: bool
    samples: int
    seed: int

    def measure(self, model: Any, bucket: Bucket) -> tuple[dict[str, np.ndarray], int]:
        """A batch's arrays, and how often it was halved.

        Args:
            model: A TransformerBridge.
            bucket: Some examples.
        """
        decoder = read_layers(model, "shapley", self.contrast)

        def some(part: Bucket, limit: float) -> dict[str, np.ndarray]:
            game = _game(decoder, part, self.heads, self.exchange, self.players, self.metric, limit, self.contrast)
            return _measure(game, exact=self.exact, samples=self.samples, seed=self.seed)

        return halving(some, bucket, self.budget)


def tokens_present(contrast: Contrast, example: int) -> list[int]:
    """The tokens of an example's two runs.

    Args:
        contrast: All examples.
        example: Which.
    """
    return sorted({*contrast.clean[example], *contrast.hijacked[example]})


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
            [tokens_present(contrast, row) for row in bucket.indices.tolist()], device=bucket.hijacked.device
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


CODE = (_measure, _game, Game, read_decoder)
"""What a cell's values depend on besides what it is of."""
