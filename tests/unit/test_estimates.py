"""Estimates are what scipy and brute force give, and the probes have none of their own."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from lcalens.core import estimates, statistics
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.lca.world.concepts import LatentConcepts

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("size", [2, 3, 30])
def test_over_seeds_is_students_interval(size):
    values = np.random.default_rng(size).normal(size=size)
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert estimates.over_seeds(values) == pytest.approx((values.mean(), interval.low, interval.high), rel=1e-9)


def test_the_bootstraps_weights_give_the_bootstraps_interval():
    generator = np.random.default_rng(3)
    values, clusters = generator.normal(size=40), generator.integers(0, 6, size=40)
    weights = statistics.bootstrap_weights(40, clusters, statistics.RESAMPLES, 0)
    means = weights @ values / weights.sum(1)
    expected = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose(statistics.clustered_mean_interval(values, clusters), expected, rtol=1e-12)
    ratio = statistics.ratio_of_means(values, np.ones(40), clusters)
    np.testing.assert_allclose(ratio, [values.mean(), *expected], rtol=1e-12)


def test_a_resample_draws_clusters_whole():
    clusters = np.array([0, 0, 1, 2, 2, 2])
    weights = statistics.bootstrap_weights(6, clusters, 200, 1)
    for cluster in range(3):
        assert (weights[:, clusters == cluster] == weights[:, clusters == cluster][:, :1]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()
    assert (statistics.bootstrap_weights(6, np.zeros(6), 200, 1).sum(1) == 6).all()  # of one cluster, the examples


def test_a_weighted_ratio_leaves_out_what_was_not_measured():
    part, whole = np.array([[1.0, np.nan], [-3.0, 4.0]]), np.array([2.0, 4.0])
    weights = np.array([[1.0, 1.0], [2.0, 0.0]])
    np.testing.assert_allclose(
        statistics.weighted_ratio(part, whole, weights), [[-2 / 6, 1.0], [0.5, np.nan]], rtol=1e-12
    )
    np.testing.assert_allclose(
        statistics.weighted_ratio(part, whole, weights, absolute=True)[0], [4 / 6, 1.0], rtol=1e-12
    )


def test_a_difference_of_exact_numbers_is_exact():
    assert estimates.difference(estimates.exact(0.7), estimates.exact(0.2)) == pytest.approx((0.5, 0.5, 0.5))
    assert math.isnan(estimates.over_clusters([], []).mean)


def test_what_attention_gathers_is_the_attended_mean():
    concepts, model = LatentConcepts(4), LCAForCausalLM(LCAConfig(m=4, d_model=6)).double()
    drawn = concepts.sample_counts(5, 12, torch.Generator().manual_seed(0))
    counts, rows = drawn.counts.double(), model.embed.weight
    q, k = model.attn.q.weight, model.attn.k.weight
    for row in range(5):
        scores = (rows @ k.T) @ (q @ rows[drawn.last[row]]) * model.attn.scale
        mass = counts[row] * (scores - scores.max()).exp()
        expected = (mass / mass.sum()) @ rows
        torch.testing.assert_close(model.gathered(counts, drawn.last)[row], expected, rtol=1e-12, atol=1e-14)


WRITTEN_ONCE = {
    "Student's t": "scipy.stats.t",
    "normal quantiles": "scipy.stats.norm",
    "exact tests of shares": "scipy.stats.binomtest",
}


def test_intervals_are_made_in_one_place():
    at_home = {ROOT / "lcalens/core/statistics.py", ROOT / "lcalens/core/estimates.py"}
    for path in [*(ROOT / "lcalens").rglob("*.py"), *(ROOT / "probes").rglob("*.py")]:
        if path in at_home:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "scipy.stats":
                names = {f"scipy.stats.{alias.name}" for alias in node.names}
                assert not names & set(WRITTEN_ONCE.values()), path
            if isinstance(node, ast.FunctionDef):
                assert node.name not in ("wilson", "over_seeds", "ratio_of_means", "bootstrap_weights"), path
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("multinomial",) or "torch" in ast.unparse(node), path
