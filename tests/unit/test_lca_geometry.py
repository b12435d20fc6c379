"""Subspaces, fits, spectra and attention against planted answers, numpy and loops over pairs."""

import numpy as np
import pytest
import torch
from helpers.closeness import rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import linregress

from lcalens.core.errors import LcalensError
from lcalens.lca.geometry import (
    attention_mass,
    cosine,
    gram_hamming_fit,
    least_squares_scale,
    principal_angles,
    spectral_gap,
    spectrum,
)
from lcalens.lca.model.closed_forms import gaussian_embedding, hamming_embedding, orthonormal_embedding, theorem1_model
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.lca.world.concepts import LatentConcepts


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def matrix(left, values, right):
    return torch.tensor(left @ np.diag(values) @ right.T)


# --- Subspaces ------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1, 89), min_size=2, max_size=2), st.lists(st.floats(1, 89), min_size=2, max_size=2))
def test_planted_angles_are_found_on_their_own_sides(left, right):
    """A plane of 2 dimensions in 6, turned by known angles into directions orthogonal to it."""
    turned = []
    for angles in (left, right):
        radians = np.deg2rad(angles)
        plane = np.zeros((6, 2))
        plane[[0, 1], [0, 1]] = np.cos(radians)
        plane[[2, 3], [0, 1]] = np.sin(radians)
        turned.append(plane)
    start = np.eye(6)[:, :2]
    rest = np.eye(6)[:, 4:]
    a = matrix(np.hstack([start, rest]), [4, 3, 1, 0.5], np.hstack([start, rest]))
    b = matrix(np.hstack([turned[0], rest]), [9, 8, 2, 1], np.hstack([turned[1], rest]))
    found = principal_angles(a, b, 2)
    np.testing.assert_allclose(found.left, sorted(left), atol=1e-5)
    np.testing.assert_allclose(found.right, sorted(right), atol=1e-5)
    assert found.gaps == pytest.approx((3.0, 4.0))
    assert found.smallest == pytest.approx((min(left), min(right)), abs=1e-5)


def test_a_scaled_matrix_has_the_same_subspaces_and_a_full_rank_part_leaves_nothing_out():
    a = gaussian_embedding(6, 6, seeded())
    found = principal_angles(a, -3 * a, 2)
    assert max(found.left.max(), found.right.max()) < 1e-5
    assert principal_angles(a, a, 6).gaps == (float("inf"), float("inf"))


def test_cosine_and_scale_are_those_of_numpy():
    a, b = gaussian_embedding(5, 7, seeded(0)), gaussian_embedding(5, 7, seeded(1))
    x, y = a.numpy().ravel(), b.numpy().ravel()
    assert cosine(a, b) == pytest.approx(np.corrcoef(np.r_[x, -x], np.r_[y, -y])[0, 1], abs=1e-12)
    assert least_squares_scale(a, b) == pytest.approx(np.linalg.lstsq(x[:, None], y, rcond=None)[0][0], abs=1e-12)
    assert cosine(a, -2 * a) == pytest.approx(-1)
    assert least_squares_scale(a, -2 * a) == pytest.approx(-2)
    assert np.isnan(cosine(a, 0 * b))
    assert np.isnan(least_squares_scale(0 * a, b))


# --- Equation 5.2 ---------------------------------------------------------------------------------------------------


def pairs_by_hand(rows):
    size = len(rows)
    return [(bin(s ^ t).count("1"), float(rows[s] @ rows[t])) for s in range(size) for t in range(size) if s != t]


@pytest.mark.parametrize("d", [3, 16, 40])
@pytest.mark.parametrize("chunk", [1 << 24, 40])
def test_the_fit_is_a_regression_over_pairs(monkeypatch, d, chunk):
    monkeypatch.setattr("lcalens.lca.geometry._CHUNK", chunk)
    concepts = LatentConcepts(4)
    rows = gaussian_embedding(16, d, seeded(d)) + hamming_embedding(4, max(d, 5), a=0.1, b=2.0, b0=2.0)[:, :d]
    fit = gram_hamming_fit(concepts, rows)
    distance, product = np.array(pairs_by_hand(rows.numpy())).T
    line = linregress(distance, product)
    assert (fit.a, fit.b) == pytest.approx((-line.slope, line.intercept), abs=1e-10)
    assert fit.r2_pairs == pytest.approx(line.rvalue**2, abs=1e-10)
    assert fit.b0 == pytest.approx(float(rows.square().sum(1).mean()), abs=1e-10)
    means = [product[distance == k].mean() for k in range(1, 5)]
    np.testing.assert_allclose(fit.means, means, atol=1e-10)
    deviations = [product[distance == k].std() for k in range(1, 5)]
    # A variance is as exact as the squares that it is the difference of.
    np.testing.assert_allclose(fit.deviations, deviations, atol=rounding(torch.float64, product**2, 256) ** 0.5)
    assert fit.distances.tolist() == [1, 2, 3, 4]
    assert fit.r2_means == pytest.approx(linregress(range(1, 5), means).rvalue ** 2, abs=1e-10)
    worst = max(abs(product - (line.intercept + line.slope * distance)).max(), abs(rows.square().sum(1) - fit.b0).max())
    assert fit.largest_error == pytest.approx(float(worst), abs=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.floats(0.1, 5), st.floats(0, 5), st.floats(0, 5))
def test_equation_5_2_is_found_again(m, a, above, more):
    b = a * m / 2 + above
    fit = gram_hamming_fit(LatentConcepts(m), hamming_embedding(m, a=a, b=b, b0=b + more))
    assert (fit.a, fit.b, fit.b0) == pytest.approx((a, b, b + more), abs=1e-9)
    assert fit.r2_pairs == pytest.approx(1)
    assert fit.r2_means == pytest.approx(1)
    assert fit.largest_error < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products_that_do_not_vary_have_no_r2(dtype):
    fit = gram_hamming_fit(LatentConcepts(4), orthonormal_embedding(16, 20, seeded()).to(dtype))
    assert np.isnan(fit.r2_pairs)
    assert np.isnan(fit.r2_means)
    assert np.isnan(gram_hamming_fit(LatentConcepts(4), torch.ones(16, 2, dtype=dtype)).r2_pairs)


# --- Spectra --------------------------------------------------------------------------------------------------------


def test_the_spectrum_squares_to_the_eigenvalues_of_the_gram_matrix():
    rows = gaussian_embedding(16, 6, seeded())
    eigenvalues = np.linalg.eigvalsh((rows.T @ rows).numpy())[::-1]
    np.testing.assert_allclose(spectrum(rows) ** 2, eigenvalues, atol=1e-12)


def test_the_gap_of_equation_5_2_is_where_its_eigenvalues_say():
    concepts = LatentConcepts(4)
    # Eigenvalues 16 (b - 2a) + b0 - b, 8a + b0 - b (four of them), b0 - b.
    found = spectral_gap(concepts, hamming_embedding(4, a=1.0, b=2.0, b0=2.5))
    assert (
        found.largest_after == 4 + 1 - 1
    )  # the constant direction has eigenvalue .5, as the rest: m above, V - m below
    assert found.largest == pytest.approx((8.5 / 0.5) ** 0.5)
    assert found.after_m == pytest.approx(found.largest)
    found = spectral_gap(concepts, hamming_embedding(4, a=1.0, b=3.0, b0=3.5))
    assert found.largest_after == 5
    assert found.after_m == pytest.approx(1)
    np.testing.assert_allclose(found.ratios[[0, 4]], [(16.5 / 8.5) ** 0.5, (8.5 / 0.5) ** 0.5])


def test_a_spectrum_that_ends_in_zeros():
    found = spectral_gap(LatentConcepts(4), hamming_embedding(4, 16, a=1.0, b=3.0, b0=3.0).float())
    assert found.largest == float("inf")
    assert found.largest_after == 5
    assert np.isnan(found.ratios[5:]).all()
    assert np.isnan(spectral_gap(LatentConcepts(4), gaussian_embedding(16, 4, seeded())).after_m)


# --- Attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "concepts",
    [
        LatentConcepts(4, neighborhood="cluster"),
        LatentConcepts(4, neighborhood="cluster", cluster_bits=2),
        LatentConcepts(4, neighborhood="nearest"),
        LatentConcepts(4),
    ],
    ids=repr,
)
def test_attention_mass_is_the_sum_over_positions(concepts):
    torch.manual_seed(0)
    model = LCAForCausalLM(LCAConfig(m=4, d_model=8, d_head=4))
    with torch.no_grad():
        model.attn.q.weight.mul_(8)
    tokens, targets = concepts.sample(6, 10, seeded())
    found = attention_mass(concepts, model, *concepts.count(tokens), targets)
    pattern = model(tokens, output_attentions=True).attentions[0][:, 0, -1]
    for row, (context, y) in enumerate(zip(tokens.tolist(), targets.tolist(), strict=True)):
        inside = {y, *concepts.neighbors(y).tolist()}
        paid = sum(float(pattern[row, place].detach()) for place, token in enumerate(context) if token in inside)
        assert found.attended[row] == pytest.approx(paid, abs=1e-5)
        assert found.uniform[row] == pytest.approx(sum(token in inside for token in context) / 10, abs=1e-12)
    assert found.means == pytest.approx((found.attended.mean(), found.uniform.mean()))


def test_uniform_attention_pays_the_share_of_the_cluster():
    concepts = LatentConcepts(5, neighborhood="cluster")
    drawn = concepts.sample_counts(2000, 64, seeded())
    attended, uniform = attention_mass(concepts, theorem1_model(concepts), *drawn).means
    assert attended == pytest.approx(uniform, abs=1e-5)
    assert uniform == pytest.approx((63 * (0.5 + 0.5 * 0.5) + 1) / 64, abs=0.005)


# --- Arguments that do not fit --------------------------------------------------------------------------------------

SQUARE = torch.eye(4)
WORLD = LatentConcepts(3)
CONTEXT = (torch.ones(2, 8), torch.tensor([0, 1]), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: principal_angles(SQUARE, SQUARE, 5), "rank: expected an integer from 1 to 4, got 5"),
        (lambda: principal_angles(SQUARE, torch.diag(torch.tensor([1.0, 1, 0, 0])), 3), "rank: 3 is above .* b, 2"),
        (lambda: principal_angles(SQUARE * torch.nan, SQUARE, 2), "a: 16 of its entries"),
        (lambda: spectrum(SQUARE * torch.inf), "embedding: 16 of its entries"),
        (lambda: gram_hamming_fit(WORLD, torch.zeros(7, 3)), "embedding: expected 8 rows"),
        (lambda: gram_hamming_fit(WORLD, torch.full((8, 3), torch.nan)), "embedding: 24 of its entries"),
        (lambda: spectral_gap(WORLD, torch.zeros(8, 3)), "embedding: shape"),
        (lambda: spectral_gap(WORLD, torch.ones(8, 1)), "embedding: shape"),
        (lambda: attention_mass(WORLD, theorem1_model(LatentConcepts(4)), *CONTEXT), "model: it has 16 tokens"),
        (lambda: attention_mass(WORLD, theorem1_model(WORLD), *CONTEXT[:2], CONTEXT[1] + 7), "target: 7 to 8 leave"),
        (
            lambda: attention_mass(WORLD, theorem1_model(WORLD), torch.ones(2, 4), *CONTEXT[1:]),
            "counts: it has 4 tokens",
        ),
    ],
)
def test_errors_name_the_argument_the_value_and_the_fix(wrong, message):
    with pytest.raises(LcalensError, match=message):
        wrong()
