"""Intervals and tests against closed forms, sums by hand and slow resampling."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, norm

from lcalens.core.statistics import (
    bootstrap_coverage,
    clustered_mean_interval,
    holm,
    mcnemar,
    ratio_of_means,
    wilson,
)

shares = st.integers(1, 400).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))


# --- Wilson ---------------------------------------------------------------------------------------------------------


@given(shares, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_is_its_closed_form(share, confidence):
    successes, total = share
    z, p = norm.ppf((1 + confidence) / 2), successes / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    low, high = wilson(successes, total, confidence=confidence)
    assert low == pytest.approx(middle - half, abs=1e-12)
    assert high == pytest.approx(middle + half, abs=1e-12)


def test_wilson_covers_95_percent_unless_told_otherwise():
    assert wilson(3, 10) == wilson(3, 10, confidence=0.95) == pytest.approx((0.1078, 0.6032), abs=5e-5)


def test_wilson_of_nothing_is_nan():
    assert all(map(math.isnan, wilson(0, 0)))


# --- McNemar --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 25), st.integers(0, 25), st.integers(0, 5), st.integers(0, 5))
def test_mcnemar_is_the_binomial_sum(gained, lost, both, neither):
    before = np.array([False] * gained + [True] * lost + [True] * both + [False] * neither, dtype=bool)
    after = np.array([True] * gained + [False] * lost + [True] * both + [False] * neither, dtype=bool)
    changed = gained + lost
    ways = [math.comb(changed, k) for k in range(changed + 1)]
    expected = Fraction(sum(way for way in ways if way <= ways[gained]), 2**changed)
    assert mcnemar(before, after) == pytest.approx(float(expected), rel=1e-9)
    assert mcnemar(after, before) == pytest.approx(float(expected), rel=1e-9)


def test_mcnemar_of_no_change_is_one():
    same = np.array([True, False, True])
    assert mcnemar(same, same) == 1
    assert mcnemar(same[:0], same[:0]) == 1


# --- Holm -----------------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    # Sorted: .005 x 4 = .02, .01 x 3 = .03, .03 x 2 = .06, .04 x 1 = .04, which may not fall below .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stops_at_one():
    assert holm([0.6, 0.7, 0.001]) == pytest.approx([1, 1, 0.003])


def test_holm_neither_changes_nor_counts_nan():
    nan = float("nan")
    assert holm([nan, 0.01, nan, 0.04, 0.03, 0.005, nan]) == pytest.approx(
        [nan, 0.03, nan, 0.06, 0.06, 0.02, nan], nan_ok=True
    )
    assert holm([nan, nan]) == pytest.approx([nan, nan], nan_ok=True)
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_its_definition(p_values):
    ranked = sorted(p_values)
    steps = [min(1.0, (len(ranked) - i) * p) for i, p in enumerate(ranked)]
    for p, corrected in zip(p_values, holm(p_values), strict=True):
        # Equal p-values share the place of the first of them: the later ones' steps are smaller.
        assert corrected == pytest.approx(max(steps[: ranked.index(p) + 1]))
        assert p <= corrected <= 1


# --- the clustered bootstrap ----------------------------------------------------------------------------------------


def values_of(count=60, seed=3):
    return np.random.default_rng(seed).normal(2, 1, count)


def slow_interval(values, clusters, *, resamples=4000, seed=11):
    """Clusters are drawn one by one with all their values, and the mean of what was drawn is taken."""
    generator = np.random.default_rng(seed)
    names = sorted(set(clusters.tolist()))
    members = {name: [value for value, at in zip(values, clusters, strict=True) if at == name] for name in names}
    means = []
    for _ in range(resamples):
        drawn = [value for i in generator.integers(0, len(names), len(names)) for value in members[names[i]]]
        means.append(sum(drawn) / len(drawn))
    return np.quantile(means, [0.025, 0.975])


def test_singleton_clusters_are_the_plain_bootstrap():
    values = values_of()
    alone = np.array([f"relation {i:03}" for i in range(len(values))])
    plain = clustered_mean_interval(values)
    assert clustered_mean_interval(values, alone) == plain
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert plain == pytest.approx(tuple(theirs), abs=0.03)


def test_clusters_of_equal_values_count_once():
    means = values_of(6)
    values, clusters = np.repeat(means, 50), np.repeat(list("abcdef"), 50)
    clustered = clustered_mean_interval(values, clusters)
    assert clustered == pytest.approx(clustered_mean_interval(means), abs=1e-12)
    plain = clustered_mean_interval(values)
    assert clustered[1] - clustered[0] > 4 * (plain[1] - plain[0])


def test_clusters_of_unequal_size_weigh_by_their_values():
    clusters = np.repeat(list("abcde"), [1, 2, 4, 8, 30])
    values = values_of(len(clusters)) + np.repeat([5.0, -4, 3, -2, 0], [1, 2, 4, 8, 30])
    order = np.random.default_rng(0).permutation(len(values))
    low, high = clustered_mean_interval(values[order], clusters[order], resamples=8000)
    slow = slow_interval(values, clusters)
    assert (low, high) == pytest.approx(tuple(slow), abs=0.12 * (slow[1] - slow[0]))


def test_the_interval_is_as_wide_as_the_confidence():
    values = values_of(200)
    for confidence in (0.5, 0.8, 0.99):
        low, high = clustered_mean_interval(values, confidence=confidence, resamples=8000)
        half = norm.ppf((1 + confidence) / 2) * values.std() / math.sqrt(len(values))
        assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_one_cluster_falls_back_to_its_values():
    values = values_of()
    assert clustered_mean_interval(values, np.array(["P36"] * len(values))) == clustered_mean_interval(values)


def test_nothing_gives_nan():
    assert all(map(math.isnan, clustered_mean_interval(np.array([], dtype=float))))
    assert all(map(math.isnan, clustered_mean_interval(np.array([], dtype=float), np.array([], dtype=object))))


def test_what_does_not_vary_has_no_width():
    assert np.isnan(clustered_mean_interval(np.array([0.25]))).all(), "one value says nothing of how others differ"
    assert clustered_mean_interval(np.full(9, 0.5), np.array(list("aabbccddd"))) == pytest.approx((0.5, 0.5))


def test_the_seed_decides():
    values, clusters = values_of(), np.repeat(list("abcdefghijkl"), 5)
    again = [clustered_mean_interval(values, clusters, seed=4) for _ in range(2)]
    assert again[0] == again[1]
    assert again[0] != clustered_mean_interval(values, clusters, seed=5)
    assert clustered_mean_interval(values, clusters) == clustered_mean_interval(values, clusters, seed=0)


@settings(max_examples=20)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20), st.integers(0, 9))
def test_the_interval_lies_within_the_values(values, seed):
    low, high = clustered_mean_interval(np.array(values), resamples=200, seed=seed)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_clusters_keep_the_coverage_that_single_values_lose():
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(25), 8)
    hit = {"clustered": 0, "plain": 0}
    for _ in range(200):
        values = np.repeat(generator.normal(0, 1, 25), 8) + generator.normal(0, 0.3, 200)
        for name, given_clusters in (("clustered", clusters), ("plain", None)):
            low, high = clustered_mean_interval(values, given_clusters, resamples=400)
            hit[name] += low <= 0 <= high
    assert 0.87 <= hit["clustered"] / 200 <= 0.99  # 25 clusters are few: a percentile interval falls short of .95
    assert hit["plain"] / 200 < 0.7


@pytest.mark.parametrize("groups", [2, 3, 5, 9])
def test_how_often_an_interval_over_few_groups_holds_the_mean(groups):
    generator, held, tries = np.random.default_rng(groups), 0, 1500
    for seed in range(tries):
        means = generator.normal(size=groups)
        low, high = clustered_mean_interval(np.repeat(means, 4), np.repeat(range(groups), 4), resamples=400, seed=seed)
        held += low <= 0 <= high
    assert held / tries == pytest.approx(bootstrap_coverage(groups), abs=4 * math.sqrt(0.25 / tries))


@settings(max_examples=60)
@given(st.floats(-0.6, 0.6), st.integers(2, 30), st.booleans(), st.integers(0, 99))
def test_a_share_has_an_interval_where_that_of_its_whole_does_not_hold_0(mean, count, grouped, seed):
    generator = np.random.default_rng(seed)
    whole, part = generator.normal(mean, 1, count), generator.normal(size=(count, 3))
    clusters = np.arange(count) // 2 if grouped else None
    ratio, low, high = ratio_of_means(part, whole, clusters)
    ends = clustered_mean_interval(whole, clusters)
    assume(min(map(abs, ends)) > 0.01)  # quantiles lie between two resamples, of which one may be on each side of 0
    np.testing.assert_allclose(ratio, part.mean(0) / whole.mean(), rtol=1e-9)
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [ends[0] <= 0 <= ends[1]] * 3


def test_a_share_of_which_something_was_not_measured_has_the_interval_of_what_was():
    generator = np.random.default_rng(0)
    whole, part = generator.normal(3, 1, 12), generator.normal(size=(12, 2))
    part[:9, 1] = np.nan  # three examples are left, which most resamples hold and some do not
    ends = ratio_of_means(part, whole)
    assert np.isfinite(ends).all()
    np.testing.assert_allclose([end[0] for end in ends], np.ravel(ratio_of_means(part[:, :1], whole)), rtol=1e-9)
    whole[9:] -= whole[9:].mean()
    assert np.isfinite(ratio_of_means(part, whole + 1e-6)[1]).tolist() == [True, False]


def test_what_was_measured_in_one_example_or_one_cluster_has_no_interval():
    part = np.array([[1.0, 1.0, 1.0], [5.0, 5.0, np.nan], [9.0, 9.0, np.nan], [7.0, np.nan, np.nan]])
    for clusters, known in (("aaab", [1, 0, 0]), ("aabb", [1, 1, 0]), ("abcd", [1, 1, 0]), ("aaaa", [1, 1, 0])):
        middle, low, high = ratio_of_means(part, np.ones(4), np.array(list(clusters)))
        np.testing.assert_allclose(middle, [5.5, 5.0, 1.0])
        assert np.isfinite(low).tolist() == np.isfinite(high).tolist() == [bool(one) for one in known]


def test_what_changes_nothing_but_a_few_leaves_shares_without_an_interval():
    raised = np.array([1.0] + [0.0] * 29)  # most facts are not hijacked, and a third of the resamples have none that is
    assert np.isnan(ratio_of_means(raised[:, None], raised)[1:]).all()
    raised[:6] = 1
    assert np.isfinite(ratio_of_means(raised[:, None], raised)[1:]).all()


def test_an_interval_over_many_groups_is_what_it_is_called():
    assert bootstrap_coverage(10_000) == pytest.approx(0.95, abs=1e-4)
    assert bootstrap_coverage(10_000, confidence=0.5) == pytest.approx(0.5, abs=1e-4)
    assert bootstrap_coverage(10) == pytest.approx(0.904, abs=1e-3)
