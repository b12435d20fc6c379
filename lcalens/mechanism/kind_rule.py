"""The rule by which heads are told apart: on intervals, on means, in resamples, and by chance."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from lcalens.core.statistics import CONFIDENCE, RESAMPLES, bootstrap_weights, in_chunks, random_signs, ratio_of_means
from lcalens.core.tables import lengthen

KINDS = ("mover", "amplifier", "counter")
_DRAWS = 200  # of signs, each with its own intervals
_COUNTED = (*KINDS, "mover and amplifier", "none")


@dataclass(frozen=True, eq=False)
class Effects:
    """What each head does, example by example; positive where it carries the hijack.

    Attributes:
        direct: By its direct path to the logits.
        total: By all that follows of it.
        looks: How much more it attends to a key than to another token.
        told: By the paths from each head to each behind it.
        whole: The whole hijack.
    """

    direct: Float[np.ndarray, "example head"]
    total: Float[np.ndarray, "example head"]
    looks: Float[np.ndarray, "example head"]
    told: Float[np.ndarray, "example sender head"]
    whole: Float[np.ndarray, " example"]

    def by_intervals(self, threshold: float, clusters: np.ndarray | None) -> dict[str, Bool[np.ndarray, " head"]]:
        """Which kinds each head is of; intervals must lie wholly on one side of the threshold.

        Args:
            threshold: A share of the whole.
            clusters: Of the examples.
        """
        (_, direct, direct_high), (_, total, total_high) = (
            ratio_of_means(effect, self.whole, clusters) for effect in (self.direct, self.total)
        )
        looks = ratio_of_means(self.looks, np.ones(len(self.whole)), clusters)[1]
        movers = (direct > threshold) & (looks > 0)
        heard = ratio_of_means(self.told[:, movers].sum(1), self.whole, clusters)[1]
        return {
            "mover": movers,
            "amplifier": (total > threshold) & (heard > threshold),
            "counter": (direct_high < -threshold) | (total_high < -threshold),
        }

    def times(self, signs: Float[np.ndarray, " example"]) -> "Effects":
        """The same with a sign for each example, the whole hijack as it is.

        Args:
            signs: 1 or -1.
        """
        of_head, of_pair = signs[:, None], signs[:, None, None]
        return Effects(
            self.direct * of_head, self.total * of_head, self.looks * of_head, self.told * of_pair, self.whole
        )

    def by_means(
        self, threshold: float, weights: Float[np.ndarray, "sample example"]
    ) -> dict[str, Bool[np.ndarray, "sample head"]]:
        """The same with means in place of intervals.

        Args:
            threshold: A share of the whole.
            weights: How often each example is in each sample.
        """
        limit = threshold * (weights @ self.whole)[:, None]
        direct, total, looks = (weights @ effect for effect in (self.direct, self.total, self.looks))
        movers = (direct > limit) & (looks > 0)
        count = self.told.shape[1]
        told = (weights @ self.told.reshape(len(self.whole), -1)).reshape(-1, count, count)
        heard = (told * movers[:, :, None]).sum(1)
        return {
            "mover": movers,
            "amplifier": (total > limit) & (heard > limit),
            "counter": (direct < -limit) | (total < -limit),
        }


def counts_table(
    effects: Effects, verdicts: dict[str, np.ndarray], threshold: float, clusters: np.ndarray | None, seed: int
) -> pd.DataFrame:
    """How many heads are of each kind: by the rule, by means with an interval, and by chance.

    Args:
        effects: Of the heads.
        verdicts: By the rule.
        threshold: A share of the whole.
        clusters: Of the examples.
        seed: Of random signs.
    """
    size, tail = len(effects.whole), (1 - CONFIDENCE) / 2
    every = np.ones((1, size))
    drawn = bootstrap_weights(size, clusters, RESAMPLES, 0)
    columns: dict[str, object] = {"kind": list(_COUNTED), "count": _counted(verdicts)[0]}
    columns["by_means"] = _counts(effects, threshold, every)[0]
    signed = [effects.times(signs) for signs in random_signs(size, clusters, _DRAWS, seed)] if size > 1 else []
    chance = np.concatenate(
        [_counted(verdicts), *(_counted(some.by_intervals(threshold, clusters)) for some in signed)]
    )
    columns["by_chance"] = chance[1:].mean(0) if signed else np.full(len(_COUNTED), np.nan)
    for name, found in (("by_means", _counts(effects, threshold, drawn)), ("by_chance", chance[1:])):
        low, high = np.quantile(found, [tail, 1 - tail], axis=0) if size > 1 else np.full((2, len(_COUNTED)), np.nan)
        columns |= {f"{name}_low": low, f"{name}_high": high}
    return lengthen(pd.DataFrame(columns), dict.fromkeys(("count", "by_means", "by_chance"), "heads"))


def _counts(
    effects: Effects, threshold: float, weights: Float[np.ndarray, "sample example"]
) -> Float[np.ndarray, "sample kind"]:
    """How many heads are of each kind in each sample, by means."""
    parts = in_chunks(weights, effects.told.shape[1] ** 2)
    return np.concatenate([_counted(effects.by_means(threshold, some)) for some in parts])


def _counted(verdicts: dict[str, np.ndarray]) -> Float[np.ndarray, "sample kind"]:
    some = np.atleast_3d(np.stack([np.atleast_2d(verdicts[kind]) for kind in KINDS], -1))
    both = some[..., 0] & some[..., 1]
    return np.concatenate([some.sum(1), both.sum(1)[:, None], (~some.any(-1)).sum(1)[:, None]], 1).astype(float)
