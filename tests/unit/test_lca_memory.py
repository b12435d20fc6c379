"""Closed-form weights against sums written out token by token, and against numpy."""

import numpy as np
import pytest
import torch
from helpers.closeness import rounding
from hypothesis import given, settings
from hypothesis import strategies as st

from lcalens.core.errors import LcalensError
from lcalens.lca.model.closed_forms import (
    closed_form_model,
    constructed_value,
    gaussian_embedding,
    gaussian_value,
    gram_value,
    hamming_embedding,
    identity_value,
    nearest,
    orthonormal_embedding,
    pseudo_inverse_value,
    random_pair_value,
    theorem1_model,
    theorem4_model,
    with_value,
)
from lcalens.lca.model.embeddings import hamming_eigenvalues
from lcalens.lca.world.concepts import LatentConcepts

WORLDS = [
    LatentConcepts(3, omega=1.0),
    LatentConcepts(4, neighborhood="nearest"),
    LatentConcepts(4, neighborhood="cluster"),
    LatentConcepts(4, neighborhood="cluster", cluster_bits=2),
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def hamming(s, t):
    return bin(s ^ t).count("1")


def nearest_by_hand(concepts, t):
    """N1(t) from the definition of the neighbourhoods, not from pi."""
    near = [s for s in range(concepts.vocab_size) if hamming(s, t) == 1]
    if concepts.neighborhood == "cluster":
        free = concepts.m - concepts.cluster_bits
        near = [s for s in near if s >> free == t >> free]
    return near


def memory_by_hand(concepts, rows):
    total = np.zeros((rows.shape[1], rows.shape[1]))
    for t in range(concepts.vocab_size):
        for s in nearest_by_hand(concepts, t):
            total += np.outer(rows[t], rows[s])
    return total


# --- Value matrices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concepts", WORLDS, ids=repr)
@pytest.mark.parametrize("d", [5, 16, 20])
def test_the_constructed_value_is_its_sum(concepts, d):
    rows = gaussian_embedding(concepts.vocab_size, d, seeded())
    found = constructed_value(concepts, rows)
    np.testing.assert_allclose(found.numpy(), memory_by_hand(concepts, rows.numpy()), atol=1e-12)


@pytest.mark.parametrize("concepts", WORLDS, ids=repr)
def test_the_matrix_of_n1(concepts):
    found = nearest(concepts)
    for t in range(concepts.vocab_size):
        assert torch.nonzero(found[t]).squeeze(1).tolist() == nearest_by_hand(concepts, t)
    assert set(found.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("concepts", WORLDS, ids=repr)
def test_a_value_recalls_as_a_linear_layer_does(concepts):
    """Given token s, W recalls the tokens that have s in their N1, and `nn.Linear` uses the matrix as it is."""
    rows = orthonormal_embedding(concepts.vocab_size, concepts.vocab_size + 3, seeded())
    layer = torch.nn.Linear(rows.shape[1], rows.shape[1], bias=False, dtype=torch.float64)
    layer.weight.data = constructed_value(concepts, rows)
    recalled = layer(rows) @ rows.T  # (s, t)
    for s in range(concepts.vocab_size):
        for t in range(concepts.vocab_size):
            assert float(recalled[s, t].detach()) == pytest.approx(float(s in nearest_by_hand(concepts, t)), abs=1e-12)


@pytest.mark.parametrize("concepts", WORLDS, ids=repr)
def test_random_pairs_are_as_many_and_never_a_token_with_itself(concepts):
    size = concepts.vocab_size
    rows = orthonormal_embedding(size, size, seeded())
    table = (rows @ random_pair_value(concepts, rows, seeded(1)) @ rows.T).numpy()
    np.testing.assert_allclose(table, table.round(), atol=1e-12)
    assert set(np.unique(table.round())) == {0.0, 1.0}
    assert (table.round().sum(1) == len(nearest_by_hand(concepts, 0))).all()
    assert (np.diag(table).round() == 0).all()


def test_random_pairs_are_uniform_and_repeatable():
    concepts = LatentConcepts(3)
    rows, generator = torch.eye(8, dtype=torch.float64), seeded()
    assert torch.equal(random_pair_value(concepts, rows, seeded(5)), random_pair_value(concepts, rows, seeded(5)))
    draws = 2000
    mean = sum((random_pair_value(concepts, rows, generator) for _ in range(draws)), torch.zeros(8, 8)) / draws
    expected = 3 / 7 * (1 - torch.eye(8, dtype=torch.float64))
    assert (mean - expected).abs().max() < 5 * (3 / 7 * 4 / 7 / draws) ** 0.5


def test_random_pairs_do_not_depend_on_how_rows_are_cut(monkeypatch):
    concepts, rows = LatentConcepts(4), gaussian_embedding(16, 6, seeded())
    whole = random_pair_value(concepts, rows, seeded(2))
    monkeypatch.setattr("lcalens.lca.model.closed_forms._CHUNK", 48)
    torch.testing.assert_close(random_pair_value(concepts, rows, seeded(2)), whole)


def test_identity_gram_and_gaussian_values():
    rows = gaussian_embedding(16, 6, seeded()).float()
    assert torch.equal(identity_value(rows), torch.eye(6))
    by_hand = sum(np.outer(row, row) for row in rows.numpy())
    np.testing.assert_allclose(gram_value(rows).numpy(), by_hand, rtol=0, atol=rounding(torch.float32, by_hand, 16))
    noise = gaussian_value(200, seeded())
    assert torch.equal(noise, gaussian_value(200, seeded()))
    assert noise.dtype == torch.float64
    assert float(noise.std()) * 200**0.5 == pytest.approx(1, abs=0.02)
    assert abs(float(noise.mean())) < 0.002


@pytest.mark.parametrize("concepts", WORLDS, ids=repr)
def test_the_pseudo_inverse_recalls_exactly_where_embeddings_are_independent(concepts):
    size = concepts.vocab_size
    for d in (size, size + 9):
        rows = gaussian_embedding(size, d, seeded(3))
        table = rows @ pseudo_inverse_value(concepts, rows) @ rows.T
        exact = rounding(torch.float64, torch.linalg.cond(rows) ** 2, size)
        torch.testing.assert_close(table, nearest(concepts), atol=exact, rtol=0)
        assert exact < 1e-5


def test_the_pseudo_inverse_is_nearest_in_least_squares_and_smallest_where_they_are_not():
    concepts = LatentConcepts(3)
    rows = gaussian_embedding(8, 5, seeded())
    design = np.kron(rows.numpy(), rows.numpy())  # vec(R W R^T), row by row
    best = np.linalg.lstsq(design, nearest(concepts).numpy().ravel(), rcond=None)[0]
    np.testing.assert_allclose(pseudo_inverse_value(concepts, rows).numpy().ravel(), best, atol=1e-10)


def test_the_pseudo_inverse_of_orthonormal_embeddings_is_theorem_1():
    concepts = LatentConcepts(4)
    rows = orthonormal_embedding(16, 19, seeded())
    torch.testing.assert_close(pseudo_inverse_value(concepts, rows), constructed_value(concepts, rows))


# --- Embeddings -----------------------------------------------------------------------------------------------------


def test_orthonormal_and_gaussian_embeddings():
    rows = orthonormal_embedding(8, 11, seeded())
    torch.testing.assert_close(rows @ rows.T, torch.eye(8, dtype=torch.float64))
    assert torch.equal(rows, orthonormal_embedding(8, 11, seeded()))
    wide = gaussian_embedding(300, 100, seeded())
    assert float(wide.square().sum(1).mean()) == pytest.approx(1, abs=0.02)
    assert torch.equal(wide, gaussian_embedding(300, 100, seeded()))


def test_orthonormal_embeddings_have_no_preferred_direction():
    """QR alone would leave the signs of the diagonal to the library."""
    generator = seeded()
    drawn = torch.stack([orthonormal_embedding(2, 3, generator) for _ in range(2000)])
    assert drawn.mean(0).abs().max() < 5 * (1 / 3 / 2000) ** 0.5
    assert (drawn.square().mean(0) - 1 / 3).abs().max() < 0.04


grams = st.tuples(*[st.floats(-3, 3)] * 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), grams)
def test_equation_5_2_has_the_eigenvalues_that_numpy_finds(m, gram):
    a, b, b0 = gram
    size = 1 << m
    table = np.array([[b0 if s == t else b - a * hamming(s, t) for t in range(size)] for s in range(size)])
    found = hamming_eigenvalues(m, a=a, b=b, b0=b0)
    every = [found["constant"], *[found["bits"]] * m, *[found["rest"]] * (size - m - 1)]
    np.testing.assert_allclose(np.sort(every), np.linalg.eigvalsh(table), atol=1e-9)
    if min(every) < 0:
        with pytest.raises(LcalensError, match=r"so no embedding|raise a or b0"):
            hamming_embedding(m, a=a, b=b, b0=b0)
    else:
        rows = hamming_embedding(m, a=a, b=b, b0=b0).numpy()
        np.testing.assert_allclose(rows @ rows.T, table, atol=1e-9)


@pytest.mark.parametrize(
    ("m", "b", "b0", "rank"), [(4, 2.0, 2.0, 4), (4, 3.0, 3.0, 5), (4, 2.0, 2.5, 16), (2, 1.0, 1.0, 2)]
)
def test_hamming_embeddings_take_the_rank_and_no_more(m, b, b0, rank):
    rows = hamming_embedding(LatentConcepts(m), a=1.0, b=b, b0=b0)
    assert rows.shape == (1 << m, rank)
    assert np.linalg.matrix_rank(rows.numpy()) == rank
    wider = hamming_embedding(m, rank + 3, a=1.0, b=b, b0=b0)
    torch.testing.assert_close(wider @ wider.T, rows @ rows.T)
    with pytest.raises(LcalensError, match=f"d: .*rank {rank}"):
        hamming_embedding(m, rank - 1, a=1.0, b=b, b0=b0)


def test_below_half_a_m_there_is_an_embedding_only_if_b0_makes_up_for_it():
    with pytest.raises(LcalensError, match="raise b to at least a m / 2"):
        hamming_embedding(4, a=1.0, b=1.9, b0=1.9)
    rows = hamming_embedding(4, a=1.0, b=1.9, b0=1.9 + 16 * 0.1)
    assert rows.shape == (16, 15)  # the constant direction is gone


# --- Models ---------------------------------------------------------------------------------------------------------


def logits_by_hand(model, tokens):
    """The paper's formula with uniform attention, one token at a time."""
    rows, value = model.embed.weight.detach().double().numpy(), model.attn.v.weight.detach().double().numpy()
    gathered = sum(rows[t] for t in tokens) / len(tokens)
    return rows @ (value @ gathered)


@pytest.mark.parametrize("concepts", WORLDS, ids=repr)
def test_theorem_1_counts_neighbours(concepts):
    model = theorem1_model(concepts)
    tokens, _ = concepts.sample(5, 9, seeded())
    found = model(tokens, logits_to_keep=1).logits[:, -1]
    for row, context in zip(found.tolist(), tokens.tolist(), strict=True):
        share = [sum(s in nearest_by_hand(concepts, t) for s in context) / 9 for t in range(concepts.vocab_size)]
        assert row == pytest.approx(share, abs=1e-5)


def test_models_of_closed_form_attend_to_all_alike_and_are_what_the_formula_says():
    concepts = LatentConcepts(4, omega=1.0)
    before = torch.get_rng_state()
    for model in (theorem1_model(concepts, 20), theorem4_model(concepts, a=1.0, b=3.0, b0=5.0)):
        assert not model.attn.q.weight.any()
        assert not model.attn.k.weight.any()
        tokens, _ = concepts.sample(4, 7, seeded())
        found = model.from_counts(*concepts.count(tokens))
        for row, context in zip(found.detach().numpy(), tokens.tolist(), strict=True):
            np.testing.assert_allclose(row, logits_by_hand(model, context), rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers are left alone


def test_theorem_4_is_built_from_its_own_geometry():
    concepts = LatentConcepts(3, omega=1.0)
    model = theorem4_model(concepts, a=0.5, b=2.0, b0=4.0, d_model=10)
    rows = model.embed.weight.detach().numpy()
    table = [[4.0 if s == t else 2.0 - 0.5 * hamming(s, t) for t in range(8)] for s in range(8)]
    np.testing.assert_allclose(rows @ rows.T, table, atol=1e-5)
    np.testing.assert_allclose(model.attn.v.weight.detach().numpy(), memory_by_hand(concepts, rows), atol=1e-4)


def test_a_swapped_value_leaves_the_model_alone():
    concepts = LatentConcepts(3)
    model = theorem1_model(concepts)
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    other = with_value(model, gaussian_value(8, seeded()))
    assert all(torch.equal(weight, kept[name]) for name, weight in model.state_dict().items())
    assert other.attn.v.weight.dtype == torch.float32
    torch.testing.assert_close(other.attn.v.weight.detach(), gaussian_value(8, seeded()).float())
    assert torch.equal(other.embed.weight, model.embed.weight)
    assert not other.attn.q.weight.any()


# --- Arguments that do not fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: orthonormal_embedding(8, 7, seeded()), "d: expected an integer of at least 8, got 7"),
        (lambda: gaussian_embedding(0, 3, seeded()), "vocab_size"),
        (lambda: gaussian_value(0, seeded()), "d: expected"),
        (lambda: hamming_embedding(1, a=1.0, b=1.0, b0=1.0), "m: expected"),
        (lambda: hamming_embedding(3, a=float("nan"), b=1.0, b0=1.0), "a: expected"),
        (lambda: hamming_embedding(3, a=1.0, b=3.0, b0=2.0), "b0: .*raise b0 to at least b"),
        (lambda: hamming_embedding(3, a=-1.0, b=3.0, b0=3.5), "a: -1 .*raise a or b0"),
        (lambda: constructed_value(LatentConcepts(3), torch.zeros(7, 4)), "embedding: expected 8 rows"),
        (lambda: constructed_value(LatentConcepts(3), torch.full((8, 4), torch.nan)), "embedding: expected 8 rows"),
        (lambda: random_pair_value(LatentConcepts(3), torch.zeros(4, 8), seeded()), "embedding: expected 8 rows"),
        (lambda: pseudo_inverse_value(LatentConcepts(3), torch.zeros(9, 4)), "embedding: expected 8 rows"),
        (lambda: theorem1_model(LatentConcepts(3), 7), "d_model: expected an integer of at least 8, got 7"),
        (lambda: theorem4_model(LatentConcepts(3), a=1.0, b=3.0, b0=4.0, d_model=7), "d: .*rank 8"),
        (lambda: closed_form_model(torch.zeros(7, 7), torch.zeros(7, 7)), "embedding: expected 2\\^m rows"),
        (lambda: with_value(theorem1_model(LatentConcepts(3)), torch.zeros(4, 4)), "value: .*\\(8, 8\\)"),
        (lambda: with_value(theorem1_model(LatentConcepts(3)), torch.full((8, 8), torch.inf)), "value: .*finite"),
    ],
)
def test_errors_name_the_argument_the_value_and_the_fix(wrong, message):
    with pytest.raises(LcalensError, match=message):
        wrong()
