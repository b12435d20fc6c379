"""What a source-to-answer table recalls, against loops over sources and answers; the copying score's closed forms."""

import numpy as np
import pytest
from helpers.closeness import assert_near
from helpers.slow_recall import QUANTITIES, slow_measures

from lcalens.mechanism.recall_measures import copying_score, measures


def drawn(seed=0, sources=9, answers=14, share=0.25, known=None):
    """A table with sources whose own token is the answer of the same number, for the first `known` of them."""
    generator = np.random.default_rng(seed)
    table, similarity = generator.normal(size=(2, sources, answers))
    own = np.arange(sources)
    own[known if known is not None else sources :] = -1
    related = generator.random((sources, answers)) < share
    related[np.arange(sources)[own >= 0], own[own >= 0]] = False
    return table, own, related, similarity


def same(found, expected):
    assert set(found) == set(expected) == set(QUANTITIES)
    for name, values in expected.items():
        assert_near(found[name], values, effect=max(1, np.nanmax(np.abs(values), initial=0)), share=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_every_measure_is_the_loops(seed):
    case = drawn(seed, known=6)
    found = measures(*case)
    same(found, slow_measures(*case))
    assert np.isnan(found["own_rank"][6:]).all()
    assert not np.isnan(found["own_rank"][:6]).any()


@pytest.mark.parametrize("seed", range(3))
def test_ties_count_half(seed):
    """Small integers, so that many entries of a row are equal; no rounding tells them apart."""
    _, own, related, similarity = drawn(seed, sources=8)
    generator = np.random.default_rng(seed)
    table = generator.integers(0, 3, size=(8, 14)).astype(float)
    same(measures(table, own, related, similarity), slow_measures(table, own, related, similarity))
    # Eights are exact in binary, so the centred rows have their ties still.
    assert any(len(set(row)) < len(row) for row in (table - table.mean(0)).tolist())


def test_a_table_of_equal_entries_puts_nothing_first_or_last():
    _, own, related, similarity = drawn(sources=8)
    found = measures(np.full((8, 14), 2.0), own, related, similarity)
    assert not found["own_first"].any()
    assert not found["own_last"].any()
    assert (found["own_rank"] == 7.5).all()
    some = related.any(1)
    assert some.any()
    assert (found["related_auc"][some] == 0.5).all()
    assert (found["related_rank"][some] == 7).all()
    assert (found["own_gap"] == 0).all()
    assert np.isnan(found["left"]).all()


def test_what_is_the_same_for_every_source_is_taken_off():
    table, own, related, similarity = drawn()
    liked = table + 50 * np.arange(14)
    found, expected = measures(liked, own, related, similarity), measures(table, own, related, similarity)
    same(found, expected)


def test_nothing_related_and_no_own_token_are_nan():
    table, own, related, similarity = drawn(known=7)
    related[2] = False
    related[:, 5] = True
    related[5, 5] = False
    related[2, 5] = False
    found = measures(table, own, related, similarity)
    same(found, slow_measures(table, own, related, similarity))
    for name in ("related_rank", "related_auc", "related_gap", "left"):
        assert np.flatnonzero(np.isnan(found[name])).tolist() == [2]
    for name in ("own_first", "own_last", "own_rank", "own_gap"):
        assert np.flatnonzero(np.isnan(found[name])).tolist() == [7, 8]


def test_where_nothing_is_unrelated_there_is_nothing_to_be_held_against():
    table, own, related, similarity = drawn()
    related[1] = True
    related[1, 1] = False
    found = measures(table, own, related, similarity)
    same(found, slow_measures(table, own, related, similarity))
    for name in ("own_gap", "related_rank", "related_auc", "related_gap", "left"):
        assert np.flatnonzero(np.isnan(found[name])).tolist() == [1]
    assert not np.isnan(found["own_rank"]).any()


def test_a_token_is_never_related_to_itself():
    table, own, related, similarity = drawn()
    also = related.copy()
    also[np.arange(9), own] = True
    same(measures(table, own, also, similarity), measures(table, own, related, similarity))


@pytest.mark.parametrize("answers", [9, 14])
@pytest.mark.parametrize(("of_own", "of_similarity"), [(3, 0), (-3, 0), (0, 2), (3, 2), (-1, 2)])
def test_own_token_and_similarity_leave_nothing(of_own, of_similarity, answers):
    """Whether or not every answer is a source: what a head that moves tokens writes is no association."""
    _, own, related, similarity = drawn(answers=answers)
    copied = np.eye(9, answers)
    liked = np.random.default_rng(7).normal(size=answers)
    found = measures(of_own * copied + of_similarity * similarity + liked, own, related, similarity)
    assert np.isnan(found["left"]).all()


def test_a_token_moved_beside_noise_is_no_association():
    """Related answers are no sources, as in an association between two kinds of word: its own token's share in the
    mean over sources is taken off those answers alone that are sources."""
    lefts = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        related = np.zeros((9, 18), dtype=bool)
        related[np.arange(9), 9 + np.arange(9)] = True
        table = 5 * np.eye(9, 18) + generator.normal(size=(9, 18)) / 4
        found = measures(table, np.arange(9), related, generator.normal(size=(9, 18)))
        lefts.append(found["left"].mean())
    assert abs(np.mean(lefts)) < 4 * np.std(lefts) / np.sqrt(len(lefts))


def test_an_association_stands_beside_what_explains_others():
    table, own, _, similarity = drawn()
    related = np.zeros((9, 14), dtype=bool)
    related[np.arange(9), (np.arange(9) + 4) % 14] = True
    planted = table / 5 + 3 * np.eye(9, 14) + 2 * similarity + 4 * related
    found = measures(planted, own, related, similarity)
    assert found["left"].mean() > 5
    assert measures(planted - 4 * related, own, related, similarity)["left"].mean() < 1


def test_a_perfect_memory_leaves_more_than_any_other():
    """No unrelated answer differs from another: in deviations of theirs it is beyond all measure, and yet a number."""
    related = np.roll(np.eye(8, dtype=bool), 3, axis=1)
    case = np.arange(8), related, np.eye(8)
    for sign in (1, -1):
        found = measures(sign * related.astype(float), *case)
        assert np.isfinite(found["left"]).all()
        assert (sign * found["left"] > 1e3).all()


# --- copying --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7])
def test_copying_of_the_identity_and_its_opposite(size):
    assert copying_score(np.eye(size)) == pytest.approx(1, rel=1e-12)
    assert copying_score(-3 * np.eye(size)) == pytest.approx(-1, rel=1e-12)


def test_copying_of_rotations_is_nothing():
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    assert copying_score(turn) == pytest.approx(0, abs=1e-12)
    assert copying_score(np.kron(np.eye(3), turn)) == pytest.approx(0, abs=1e-12)
    angle = 0.3
    part = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert copying_score(part) == pytest.approx(np.cos(angle), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_copying_is_between_its_ends_and_known_by_its_eigenvalues(seed):
    generator = np.random.default_rng(seed)
    values, basis = generator.normal(size=6), generator.normal(size=(6, 6))
    table = basis @ np.diag(values) @ np.linalg.inv(basis)
    assert copying_score(table) == pytest.approx(values.sum() / np.abs(values).sum(), rel=1e-9)
    assert -1 <= copying_score(generator.normal(size=(9, 9))) <= 1


def test_copying_of_nothing_is_nan():
    assert np.isnan(copying_score(np.zeros((3, 3))))
