"""Bayes, divergences and bounds against loops over every concept, every pair and every context."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers.closeness import rounding
from helpers.slow_world import NAMES, WORLDS, hamming, likelihood, strings, tables
from scipy.linalg import hadamard
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from lcalens.lca.world import bayes, xor
from lcalens.lca.world.concepts import LatentConcepts

every_world = pytest.mark.parametrize("world", WORLDS, ids=NAMES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normalised(row):
    """NaN where nothing is possible."""
    total = math.fsum(row)
    return [one / total if total else math.nan for one in row]


def every_context(m, length):
    return list(itertools.product(range(2**m), repeat=length))


def tensors(world, contexts):
    return world.count(torch.tensor(contexts))


# --- the posterior --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize(("omega", "beta"), [(0.0, 1.0), (0.5, 1.0), (0.5, 0.2), (1.0, 1.0)])
@every_world
def test_the_posterior_is_that_of_exact_products(world, omega, beta, length):
    p, pi = tables(3, omega, beta, **world)
    concepts, contexts = LatentConcepts(3, omega=omega, beta=beta, **world), every_context(3, length)
    slow = np.array([normalised([likelihood(one, y, p, pi) for y in range(8)]) for one in contexts])
    found = concepts.posterior(torch.tensor(contexts)).numpy()
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, slow, rtol=1e-10, atol=1e-300)
    assert ((found == 0) == (slow == 0)).all()
    if omega == 1 and length == 3:
        assert (found == 0).any()
        assert np.isnan(found).all(1).any() == (world["neighborhood"] != "all")


def test_a_context_of_every_token_is_impossible_where_no_concept_speaks_of_itself():
    assert LatentConcepts(3, omega=1.0).posterior(torch.arange(8)[None]).isnan().all()
    assert LatentConcepts(3, omega=0.999).posterior(torch.arange(8)[None]).isfinite().all()


@every_world
def test_a_long_context_has_the_posterior_of_its_log_probabilities(world):
    p, pi = tables(4, 0.3, **world)
    concepts = LatentConcepts(4, omega=0.3, **world)
    tokens, _ = concepts.sample(20, 400, generator())
    log = np.array([[sum(math.log(p[y][t]) for t in one[:-1]) for y in range(16)] for one in tokens.tolist()])
    ends = np.array([[pi[y][one[-1]] for y in range(16)] for one in tokens.tolist()])
    slow = np.exp(log - log.max(1, keepdims=True)) * ends
    np.testing.assert_allclose(concepts.posterior(tokens).numpy(), slow / slow.sum(1, keepdims=True), rtol=1e-9)


def test_the_order_of_all_tokens_but_the_last_does_not_matter():
    world = LatentConcepts(3)
    tokens, _ = world.sample(50, 6, generator())
    torch.testing.assert_close(world.posterior(tokens), world.posterior(tokens[:, [4, 2, 0, 1, 3, 5]]))
    assert not torch.allclose(world.posterior(tokens), world.posterior(tokens.flip(1)))


# --- transforms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 8, 64, 512])
def test_walsh_hadamard_is_hadamards_matrix(size):
    values = torch.randn(2, 3, size, generator=generator(), dtype=torch.float64)
    found = xor.walsh_hadamard(values)
    np.testing.assert_allclose(found.numpy(), values.numpy() @ hadamard(size), rtol=0, atol=1e-12 * size)
    torch.testing.assert_close(xor.walsh_hadamard(found), size * values)


@pytest.mark.parametrize("threshold", [2, 1 << 20])
def test_xor_correlation_is_its_double_sum(monkeypatch, threshold):
    monkeypatch.setattr(xor, "_TRANSFORM_FROM", threshold)
    counts, table = torch.randn(3, 16, generator=generator()).double(), torch.randn(16, generator=generator(1)).double()
    slow = [[math.fsum(row[t] * table[t ^ y].item() for t in range(16)) for y in range(16)] for row in counts.tolist()]
    np.testing.assert_allclose(xor.xor_correlate(counts, table).numpy(), slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("omega", [0.5, 1.0])
@pytest.mark.parametrize(("m", "length"), [(4, 6), (10, 3), (10, 65), (10, 3000)])
@every_world
def test_the_transform_gives_what_the_table_gives(monkeypatch, world, m, length, omega):
    concepts = LatentConcepts(m, omega=omega, **world)
    counts, last = concepts.count(
        torch.cat([concepts.sample(6, length, generator())[0], torch.randint(2**m, (4, length), generator=generator())])
    )
    found = []
    for threshold in (2, 1 << 20):
        monkeypatch.setattr(xor, "_TRANSFORM_FROM", threshold)
        found.append([bayes.log_likelihood(concepts, counts, last), bayes.posterior(concepts, counts, last)])
    (fast, fast_posterior), (slow, slow_posterior) = found
    assert torch.equal(fast.isfinite(), slow.isfinite())
    # The posterior is as exact as the logarithms that it is the exponential of: sums over all tokens, some large.
    exact = rounding(torch.float64, slow, 2**m)
    assert exact < 1e-5
    torch.testing.assert_close(fast, slow, rtol=0, atol=exact)
    torch.testing.assert_close(fast_posterior, slow_posterior, rtol=0, atol=exact, equal_nan=True)


@pytest.mark.parametrize("omega", [0.5, 1.0])
@every_world
def test_divergences_are_the_same_through_the_transform(monkeypatch, world, omega):
    concepts, found = LatentConcepts(10, omega=omega, **world), []
    for threshold in (2, 1 << 20):
        monkeypatch.setattr(xor, "_TRANSFORM_FROM", threshold)
        found.append((bayes.kl_divergence(concepts), bayes.chernoff_information(concepts)))
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)


def test_above_1024_tokens_the_posterior_is_that_of_the_table(monkeypatch):
    world = LatentConcepts(11, omega=1.0, neighborhood="nearest")
    tokens, targets = world.sample(8, 9, generator())
    fast = world.posterior(tokens)
    p, pi = world.p(tokens[:, :-1, None], torch.arange(2048)), world.pi(tokens[:, -1:], torch.arange(2048))
    slow = p.prod(1) * pi
    torch.testing.assert_close(fast, slow / slow.sum(1, keepdim=True))
    assert (fast[torch.arange(8), targets] > 0).all()
    assert ((fast == 0) == (slow == 0)).all()


# --- accuracies -----------------------------------------------------------------------------------------------------


def exact_accuracy(m, length, **world):
    p, pi = tables(m, **world)
    return math.fsum(
        max(likelihood(one, y, p, pi) for y in range(2**m)) / 2**m for one in every_context(m, length)
    )  # fmt: skip


small = pytest.mark.parametrize(("m", "length"), [(2, 1), (2, 2), (2, 3), (3, 2), (3, 3)])


@pytest.mark.parametrize("omega", [0.0, 0.5, 1.0])
@small
@pytest.mark.parametrize("world", WORLDS[:3], ids=NAMES[:3])
def test_bayes_accuracy_over_all_contexts_is_the_sum_of_the_largest_likelihoods(world, m, length, omega):
    concepts, contexts = LatentConcepts(m, omega=omega, **world), every_context(m, length)
    p, pi = tables(m, omega, **world)
    scores = bayes.log_likelihood(concepts, *tensors(concepts, contexts))
    found = math.fsum(
        likelihood(one, y, p, pi) / 2**m * right
        for y in range(2**m)
        for one, right in zip(
            contexts, bayes.accuracy(scores, torch.full((len(contexts),), y), tie=1e-9).tolist(), strict=True
        )
    )
    assert found == pytest.approx(exact_accuracy(m, length, omega=omega, **world), abs=1e-12)


@pytest.mark.parametrize("omega", [0.5, 1.0])
@small
@pytest.mark.parametrize("world", WORLDS[:3], ids=NAMES[:3])
def test_bayes_accuracy_of_a_sample_is_near_the_exact_one(world, m, length, omega):
    concepts, rows = LatentConcepts(m, omega=omega, **world), 20_000
    found = bayes.bayes_accuracy(concepts, *concepts.sample_counts(rows, length, generator(length)))
    exact = exact_accuracy(m, length, omega=omega, **world)
    low, high = binom.interval(1 - 1e-4, rows, exact)  # ties shared out vary less than a coin would
    assert low / rows <= found <= high / rows


def test_bayes_accuracy_does_not_depend_on_how_contexts_are_cut(monkeypatch):
    world = LatentConcepts(4)
    drawn = world.sample_counts(1000, 9, generator())
    whole = bayes.bayes_accuracy(world, *drawn)
    monkeypatch.setattr(bayes, "_CHUNK", 7 * 16)
    assert bayes.bayes_accuracy(world, *drawn) == pytest.approx(whole, abs=1e-15)


def test_ties_are_shared_out_and_nan_is_wrong():
    scores = torch.tensor(
        [[1.0, 3.0, 3.0, 2.0], [1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0], [0.0, torch.nan, 1.0, 2.0]]
    )
    assert bayes.accuracy(scores, torch.tensor([1, 0, 3, 3])).tolist() == [0.5, 0.0, 0.25, 0.0]
    near = torch.tensor([[1.0, 1.0 - 1e-3, 0.0]])
    assert bayes.accuracy(near, torch.tensor([1])).tolist() == [0.0]
    assert bayes.accuracy(near, torch.tensor([1]), tie=1e-2).tolist() == [0.5]


def test_all_impossible_but_one_is_right():
    scores = torch.tensor([[-math.inf, -3.0, -math.inf]])
    assert bayes.accuracy(scores, torch.tensor([1])).tolist() == [1.0]


# --- contexts of two concepts ---------------------------------------------------------------------------------------


def slow_mixture(m, contexts, share, distances, **world):
    p, pi = tables(m, **world)
    spelt, found = strings(m), []
    for one in contexts:
        row = []
        for y in range(2**m):
            others = [o for o in range(2**m) if hamming(spelt[o], spelt[y]) in distances]
            each = [math.prod((1 - share) * p[y][t] + share * p[o][t] for t in one[:-1]) for o in others]
            row.append(math.fsum(each) / len(others) * pi[y][one[-1]])
        found.append(normalised(row))
    return np.array(found)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("omega", [0.5, 1.0])
@pytest.mark.parametrize(
    ("m", "world", "distances"),
    [(2, world, distances) for world in WORLDS[:3] for distances in (None, [1], [2])]
    + [(3, world, distances) for world in WORLDS for distances in (None, [1], [1, 3], [3])],
    ids=str,
)
def test_the_mixture_posterior_sums_over_all_pairs(m, world, distances, omega, share):
    concepts = LatentConcepts(m, omega=omega, **world)
    contexts = [*every_context(m, 3)[:: 1 if m == 2 else 13], (0,) * 5, (1, 2, 3, 0, 2), (3, 3, 1, 3, 3, 1)]
    for length in {len(one) for one in contexts}:
        mine = [one for one in contexts if len(one) == length]
        found = bayes.mixture_posterior(concepts, *tensors(concepts, mine), share=share, distances=distances)
        slow = slow_mixture(m, mine, share, distances or range(1, m + 1), omega=omega, **world)
        np.testing.assert_allclose(found.numpy(), slow, rtol=1e-9, atol=1e-300)


def slow_redrawn(m, context, share, distances, **world):
    """Every y, every y~ and every set of redrawn positions, one by one; p(redrawn) of each position but the last."""
    p, pi = tables(m, **world)
    spelt, rest = strings(m), context[:-1]
    weights = []
    for y in range(2**m):
        others = [o for o in range(2**m) if hamming(spelt[o], spelt[y]) in distances]
        for o in others:
            for redrawn in itertools.product((0, 1), repeat=len(rest)):
                each = [share * p[o][t] if z else (1 - share) * p[y][t] for t, z in zip(rest, redrawn, strict=True)]
                weights.append((redrawn, math.prod(each) / len(others) * pi[y][context[-1]]))
    total = math.fsum(weight for _, weight in weights)
    marked = [math.fsum(weight for z, weight in weights if z[i]) for i in range(len(rest))]
    return [one / total if total else math.nan for one in marked]


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("omega", [0.5, 1.0])
@pytest.mark.parametrize(
    ("m", "world", "distances"),
    [(2, WORLDS[0], None), (2, WORLDS[0], [1]), (3, WORLDS[0], [2]), (3, WORLDS[1], None), (3, WORLDS[2], [1, 3])],
    ids=str,
)
def test_redrawn_positions_are_told_as_every_set_of_them_says(m, world, distances, omega, share):
    concepts = LatentConcepts(m, omega=omega, **world)
    contexts = [(0, 0, 1), (0, 1, 3), (2, 2, 2), (1, 2, 3, 0, 2), (3, 3, 1, 0, 3)]
    for context in contexts:
        found = bayes.redrawn_posterior(concepts, *tensors(concepts, [context]), share=share, distances=distances)[0]
        slow = slow_redrawn(m, context, share, distances or range(1, m + 1), omega=omega, **world)
        np.testing.assert_allclose(found[list(context[:-1])].numpy(), slow, rtol=1e-9, atol=1e-12)


def test_redrawn_positions_are_told_no_better_than_they_are():
    """Where it says 30%, 30% were redrawn."""
    world, rows, share = LatentConcepts(4, omega=0.8), 4000, 0.4
    tokens, y = world.sample(rows, 12, generator())
    other = (y + torch.randint(1, 16, (rows,), generator=generator(1))) % 16
    redrawn = torch.rand(tokens.shape, generator=generator(3)) < share
    redrawn[:, -1] = False
    hijacked = world.hijack(tokens, y, other, positions=redrawn, generator=generator(2))
    found = bayes.redrawn_posterior(world, *world.count(hijacked), share=share).gather(1, hijacked[:, :-1])
    for low, high in ((0.0, 0.35), (0.35, 0.4), (0.4, 0.5), (0.5, 1.0)):
        inside = (found >= low) & (found < high)
        assert int(inside.sum()) > 300
        assert float(redrawn[:, :-1][inside].double().mean()) == pytest.approx(float(found[inside].mean()), abs=0.03)


@every_world
def test_the_mixture_posterior_of_share_0_is_the_clean_one(world):
    concepts = LatentConcepts(5, omega=0.7, **world)
    tokens, _ = concepts.sample(30, 12, generator())
    found = bayes.mixture_posterior(concepts, *concepts.count(tokens), share=0.0)
    torch.testing.assert_close(found, concepts.posterior(tokens))


def test_the_mixture_posterior_is_calibrated_on_hijacked_contexts():
    """Its highest probability is its accuracy, where the clean posterior's is not."""
    world, rows, share = LatentConcepts(4, omega=0.8), 6000, 0.4
    tokens, y = world.sample(rows, 12, generator())
    other = (y + torch.randint(1, 16, (rows,), generator=generator(1))) % 16
    counts = world.count(world.hijack(tokens, y, other, share=share, generator=generator(2)))
    for posterior, calibrated in (
        (bayes.mixture_posterior(world, *counts, share=share), True),
        (bayes.posterior(world, *counts), False),
    ):
        sure, at = posterior.max(-1)
        gap = float(((at == y).double() - sure).mean())
        assert (abs(gap) < 4 * 0.5 / math.sqrt(rows)) == calibrated


# --- divergences ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("omega", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("m", [3, 4])
@every_world
def test_kl_is_its_direct_sum(world, m, omega):
    p, _ = tables(m, omega, **world)
    slow = []
    for y in range(2**m):
        terms = [(a, b) for a, b in zip(p[0], p[y], strict=True) if a > 0]
        slow.append(math.inf if any(b == 0 for _, b in terms) else math.fsum(a * math.log(a / b) for a, b in terms))
    found = bayes.kl_divergence(LatentConcepts(m, omega=omega, **world)).numpy()
    np.testing.assert_allclose(found, slow, rtol=1e-9, atol=1e-13)
    assert (found >= 0).all()


@pytest.mark.parametrize("omega", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("m", [3, 4])
@every_world
def test_chernoff_information_is_the_best_exponent(world, m, omega):
    p, _ = tables(m, omega, **world)
    found = bayes.chernoff_information(LatentConcepts(m, omega=omega, **world)).tolist()
    for y in range(2**m):
        shared = [(a, b) for a, b in zip(p[0], p[y], strict=True) if a > 0 and b > 0]
        if not shared:
            assert found[y] == math.inf
            continue
        exponent = minimize_scalar(
            lambda at, shared=shared: math.log(math.fsum(a**at * b ** (1 - at) for a, b in shared)),
            bounds=(0, 1),
            method="bounded",
            options={"xatol": 1e-10},
        )
        assert found[y] == pytest.approx(-exponent.fun, abs=1e-9)
        assert found[y] >= 0


@pytest.mark.parametrize("omega", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("m", "lengths"), [(2, (1, 2, 3, 4, 5)), (3, (1, 2, 3, 4))])
@pytest.mark.parametrize("world", WORLDS[:3], ids=NAMES[:3])
def test_the_union_bound_is_above_the_exact_bayes_error(world, m, lengths, omega):
    concepts = LatentConcepts(m, omega=omega, **world)
    for length in lengths:
        bound = bayes.union_bound(concepts, length)
        assert 1 - exact_accuracy(m, length, omega=omega, **world) <= bound + 1e-12
        assert 0 <= bound <= 1


@pytest.mark.parametrize("world", WORLDS[:3], ids=NAMES[:3])
def test_the_union_bound_falls_to_0_and_stays_above_the_measured_error(world):
    concepts, bounds = LatentConcepts(5, omega=0.8, beta=0.5, **world), []
    for length in (2, 20, 40, 80, 160):
        bounds.append(bayes.union_bound(concepts, length))
        rows = 4000
        error = 1 - bayes.bayes_accuracy(concepts, *concepts.sample_counts(rows, length, generator(length)))
        assert error <= bounds[-1] + 4 * math.sqrt(max(error, 1 / rows) / rows)
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 1e-2


@every_world
def test_the_union_bound_is_its_sum(world):
    concepts = LatentConcepts(4, omega=0.9, **world)
    p, _ = tables(4, 0.9, **world)
    rest = [math.fsum(math.sqrt(a * b) for a, b in zip(p[0], p[y], strict=True)) for y in range(1, 16)]
    for length in (1, 2, 30, 200):
        slow = min(1.0, math.fsum(one ** (length - 1) for one in rest))
        assert bayes.union_bound(concepts, length) == pytest.approx(slow, rel=1e-9)
