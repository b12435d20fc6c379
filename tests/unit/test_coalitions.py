"""Games: Shapley values and interactions by their definitions, over orders and over sets."""

import math
from itertools import combinations, permutations

import numpy as np
import pytest

from lcalens.core.coalitions import best_coalitions, members, shapley_interactions, shapley_values
from lcalens.core.errors import LcalensError


def number(some):
    return sum(1 << player for player in some)


@pytest.mark.parametrize("players", [1, 2, 3, 5])
def test_values_are_mean_contributions_over_all_orders(players):
    worths = np.random.default_rng(players).normal(size=(2, 1 << players))
    expected = np.zeros((2, players))
    for order in permutations(range(players)):
        for step, player in enumerate(order):
            before = number(order[:step])
            expected[:, player] += (worths[:, before | 1 << player] - worths[:, before]) / math.factorial(players)
    assert shapley_values(worths) == pytest.approx(expected)
    assert shapley_values(worths).sum(1) == pytest.approx(worths[:, -1] - worths[:, 0])


@pytest.mark.parametrize("players", [2, 3, 5])
def test_interactions_are_means_over_the_sets_of_the_others(players):
    worths = np.random.default_rng(players).normal(size=1 << players)
    found = shapley_interactions(worths)
    for i, j in combinations(range(players), 2):
        others = [player for player in range(players) if player not in (i, j)]
        expected = 0.0
        for size in range(len(others) + 1):
            for some in combinations(others, size):
                at = number(some)
                change = worths[at | 1 << i | 1 << j] - worths[at | 1 << i] - worths[at | 1 << j] + worths[at]
                expected += change / ((players - 1) * math.comb(len(others), size))
        assert found[i, j] == found[j, i] == pytest.approx(expected)
    assert np.isnan(found.diagonal()).all()


def test_worths_that_add_up_have_no_interactions():
    alone = np.array([1.0, -2.0, 0.5, 3.0])
    worths = members(4) @ alone
    assert shapley_values(worths) == pytest.approx(alone)
    off = ~np.eye(4, dtype=bool)
    assert np.abs(shapley_interactions(worths)[off]).max() < 1e-12


def test_two_that_say_the_same_are_redundant_and_two_that_need_each_other_are_not():
    assert shapley_interactions(np.array([0.0, 1, 1, 1]))[0, 1] == -1
    assert shapley_interactions(np.array([0.0, 0, 0, 1]))[0, 1] == 1


def test_best_sets_of_each_size_pass_over_what_was_not_measured():
    worths = np.array([0.0, 2, 1, np.nan, 3, 1, 4, 5])
    assert best_coalitions(worths).tolist() == [0, 4, 6, 7]


def test_nobody_plays():
    assert shapley_values(np.array([[1.0], [2.0]])).shape == (2, 0)
    assert shapley_interactions(np.array([1.0, 2.0])).shape == (1, 1)


def test_a_number_of_worths_that_is_no_power_of_two_is_refused():
    with pytest.raises(LcalensError, match="worths"):
        shapley_values(np.zeros(6))
