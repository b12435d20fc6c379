"""Games: what several do together, divided among them. Shapley values, interactions of pairs, and the best coalitions.

A game is the worth of every coalition of k players: an array whose last axis has 2^k numbers, the coalition's number
having bit i set where player i takes part. So 0 is nobody and 2^k - 1 is everybody.
"""

from collections.abc import Sequence
from math import comb

import numpy as np
from jaxtyping import Bool, Float, Int

from lcalens.core.errors import LcalensError


def members(players: int) -> Bool[np.ndarray, "coalition player"]:
    """Who takes part in each coalition, by its number.

    Args:
        players: How many there are.

    Example:
        >>> members(2).astype(int).tolist()
        [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    return (np.arange(1 << players)[:, None] >> np.arange(players) & 1).astype(bool)


def player_count(worths: Float[np.ndarray, "*batch coalition"]) -> int:
    """Of how many players a game is.

    Args:
        worths: The worth of every coalition.

    Raises:
        LcalensError: The number of coalitions is no power of two.
    """
    coalitions = worths.shape[-1]
    if coalitions < 1 or coalitions & (coalitions - 1):
        raise LcalensError(f"worths: expected 2^k coalitions, got {coalitions}; give one for every set of players.")
    return coalitions.bit_length() - 1


def shapley_values(worths: Float[np.ndarray, "*batch coalition"]) -> Float[np.ndarray, "*batch player"]:
    """Each player's mean contribution over all orders in which they can join (Shapley 1953), exactly.

    Their sum is everybody's worth less nobody's.

    Args:
        worths: The worth of every coalition.

    Raises:
        LcalensError: The number of coalitions is no power of two.

    Example:
        >>> shapley_values(np.array([0.0, 1.0, 2.0, 5.0])).tolist()
        [2.0, 3.0]
    """
    players = player_count(worths)
    if not players:
        return np.zeros((*worths.shape[:-1], 0))
    inside = members(players)
    size = inside.sum(1, keepdims=True)
    # With i, in the s-th place: 1 / (k C(k-1, s-1)); without, about to be joined by i: the same of s.
    with_player = 1 / (players * _binomials(players - 1)[np.maximum(size - 1, 0)])
    without = 1 / (players * _binomials(players - 1)[np.minimum(size, players - 1)])
    return worths @ np.where(inside, with_player, -without)


def shapley_interactions(
    worths: Float[np.ndarray, "*batch coalition"],
) -> Float[np.ndarray, "*batch player player"]:
    """What two do together beyond what each does alone, over all orders: the Shapley interaction index.

    Grabisch and Roubens (1999): the mean of v(S + i + j) - v(S + i) - v(S + j) + v(S) over the sets S of the others,
    each size of S weighing the same. It is below 0 where the two are redundant, above 0 where they need each other,
    and 0 for every pair where worths add up. NaN on the diagonal.

    Args:
        worths: The worth of every coalition.

    Raises:
        LcalensError: The number of coalitions is no power of two.

    Example:
        >>> shapley_interactions(np.array([0.0, 1.0, 2.0, 5.0]))[0, 1].item()
        2.0
    """
    players = player_count(worths)
    found = np.full((*worths.shape[:-1], players, players), np.nan)
    if players < 2:
        return found
    inside = members(players)
    first, second = np.triu_indices(players, 1)
    others = inside.sum(1, keepdims=True) - inside[:, first] - inside[:, second]
    sign = np.where(inside[:, first] == inside[:, second], 1.0, -1.0)
    pairs = worths @ (sign / ((players - 1) * _binomials(players - 2)[others]))
    found[..., first, second] = found[..., second, first] = pairs
    return found


def best_coalitions(worths: Float[np.ndarray, " coalition"]) -> Int[np.ndarray, " size"]:
    """For every number of players, from nobody to everybody, the coalition of the largest worth.

    Args:
        worths: The worth of every coalition; means over examples, say. NaN is never best.

    Raises:
        LcalensError: The number of coalitions is no power of two.

    Example:
        >>> best_coalitions(np.array([0.0, 1.0, 2.0, 5.0])).tolist()
        [0, 2, 3]
    """
    players = player_count(worths)
    sizes = members(players).sum(1)
    ordered = np.where(np.isnan(worths), -np.inf, worths)
    return np.array([np.flatnonzero(sizes == size)[ordered[sizes == size].argmax()] for size in range(players + 1)])


def _binomials(count: int) -> Float[np.ndarray, " size"]:
    return np.array([comb(count, size) for size in range(count + 1)], dtype=float)


def sampled_orders(players: int, samples: int, seed: Sequence[int]) -> np.ndarray:
    """Orders of joining, each followed by its reverse.

    Args:
        players: How many join.
        samples: How many orders, an even number.
        seed: Of the draws.
    """
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(players) for _ in range(samples // 2)]
    return np.stack([order for one in drawn for order in (one, one[::-1])])


def joined(orders: np.ndarray) -> Bool[np.ndarray, "coalition player"]:
    """Who has joined after each step but the last, of every order.

    Args:
        orders: A row each, of players.
    """
    ranks = np.argsort(orders, axis=1)
    steps = np.arange(1, orders.shape[1])
    return (ranks[:, None] < steps[:, None]).reshape(-1, orders.shape[1])


def added_by_order(orders: np.ndarray, prefixes: np.ndarray, everyone: float) -> Float[np.ndarray, "order player"]:
    """What each player adds when it joins, in every order.

    Args:
        orders: A row each, of players.
        prefixes: What the coalitions of `joined` are worth.
        everyone: What all together are worth.
    """
    samples, players = orders.shape
    steps = np.concatenate(
        [np.zeros((samples, 1)), prefixes.reshape(samples, players - 1), np.full((samples, 1), everyone)], axis=1
    )
    added = np.zeros((samples, players))
    np.put_along_axis(added, orders, np.diff(steps), axis=1)
    return added
