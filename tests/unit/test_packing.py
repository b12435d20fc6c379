"""Tries in rows: what is read is exactly what each sequence is, and nothing is held twice."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lcalens.llm.efficacy.tries import batches, pack


@st.composite
def sequences(draw):
    """Sequences over few tokens, so that they begin alike, are each other's beginnings, and come twice."""
    found = draw(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=7), min_size=1, max_size=9))
    starts = [draw(st.integers(1, len(sequence) - 1)) for sequence in found]
    return found, starts


# One sequence is another's beginning, and between what the two read there is a node that nobody reads.
GAP = ([[1, 2], [1, 3, 4, 5], [1, 2, 0, 1, 2]], [1, 3, 4])


def spelled(row, node):
    """The tokens that a node sees, in the order of their depths."""
    seen = np.flatnonzero(row.ancestors[node])
    order = seen[np.argsort(row.depths[seen], kind="stable")]
    assert row.depths[order].tolist() == list(range(len(order)))
    return tuple(row.ids[order].tolist())


@given(sequences(), st.integers(1, 30), st.booleans())
@example(GAP, 30, True)
@example(GAP, 30, False)
def test_every_token_is_read_once_where_its_own_beginning_ends(case, max_nodes, share):
    found, starts = case
    rows = pack(found, starts, max_nodes=max_nodes, share=share)
    reads = Counter((read.sequence, read.token) for row in rows for read in row.reads)
    wanted = [(i, token) for i, sequence in enumerate(found) for token in range(starts[i], len(sequence))]
    assert reads == Counter(wanted)
    assert all(count == 1 for count in reads.values())
    for row in rows:
        for read in row.reads:
            assert spelled(row, read.node) == tuple(found[read.sequence][: read.token])
            assert row.depths[read.node] == read.token - 1


@given(sequences(), st.integers(1, 30), st.booleans())
@example(GAP, 30, True)
def test_rows_are_tries_within_their_size_with_what_is_read_last(case, max_nodes, share):
    found, starts = case
    for row in pack(found, starts, max_nodes=max_nodes, share=share):
        size = len(row.ids)
        assert row.ids.shape == row.depths.shape == (size,)
        assert row.ancestors.shape == (size, size)
        assert row.ancestors.diagonal().all()
        beginnings = [spelled(row, node) for node in range(size)]
        assert len(set(beginnings)) == size, "a common beginning is held twice"
        members = {tuple(found[read.sequence][:-1]) for read in row.reads}
        longest = max(map(len, members))
        assert size <= max_nodes or (size == longest and (len(members) == 1 or not share))
        assert all(size - row.tail <= read.node < size for read in row.reads)
        assert 1 <= row.tail <= size


@given(sequences())
def test_sharing_never_computes_more_than_the_sequences_apart(case):
    found, starts = case
    shared, plain = (sum(len(row.ids) for row in pack(found, starts, max_nodes=64, share=it)) for it in (True, False))
    beginnings = {tuple(seq[:end]) for seq in found for end in range(1, len(seq))}
    assert len(beginnings) <= shared <= plain <= sum(len(seq) - 1 for seq in found)


def test_long_prompts_with_short_answers_are_held_once():
    stem = list(range(100, 140))
    (row,) = pack([[*stem, first, 1, 2] for first in range(6)], [40] * 6, max_nodes=128)
    assert len(row.ids) == 40 + 6 * 2
    assert row.tail == 1 + 6 * 2


@given(sequences(), st.integers(1, 30))
@example(GAP, 30)
def test_without_sharing_a_row_is_one_plain_chain(case, max_nodes):
    """A model that takes no mask sees each token's place by its order alone: order, depth and sight must agree."""
    found, starts = case
    for row in pack(found, starts, max_nodes=max_nodes, share=False):
        size = len(row.ids)
        assert row.depths.tolist() == list(range(size))
        np.testing.assert_array_equal(row.ancestors, np.tri(size, dtype=bool))
        for read in row.reads:
            assert row.ids[: read.token].tolist() == found[read.sequence][: read.token]


@given(sequences(), st.integers(1, 30), st.booleans())
@example(GAP, 30, True)
def test_no_node_stands_before_its_ancestors(case, max_nodes, share):
    """Some models keep a causal mask of their own (GPT-Neo): a node must never see what comes after it."""
    found, starts = case
    for row in pack(found, starts, max_nodes=max_nodes, share=share):
        assert not np.triu(row.ancestors, 1).any()


@given(sequences(), st.integers(1, 30), st.booleans())
def test_the_layout_depends_on_the_arguments_alone(case, max_nodes, share):
    found, starts = case
    first, second = (pack(found, starts, max_nodes=max_nodes, share=share) for _ in range(2))
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert (one.ids.tolist(), one.depths.tolist()) == (other.ids.tolist(), other.depths.tolist())
        assert (one.reads, one.tail) == (other.reads, other.tail)


@given(sequences(), st.integers(1, 40), st.integers(1, 12))
def test_batches_hold_every_row_once_within_their_bounds(case, max_tokens, max_reads):
    found, starts = case
    rows = pack(found, starts, max_nodes=8)
    made = list(batches(rows, max_tokens=max_tokens, max_reads=max_reads))
    assert Counter(id(row) for batch in made for row in batch) == Counter(map(id, rows))
    lengths = [len(row.ids) for batch in made for row in batch]
    assert lengths == sorted(lengths, reverse=True)
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(len(row.ids) for row in batch) <= max_tokens
        assert len(batch) == 1 or len(batch) * max(row.tail for row in batch) <= max_reads


@pytest.mark.parametrize("share", [True, False])
def test_nothing_packs_into_nothing(share):
    assert pack([], [], max_nodes=8, share=share) == []
    assert list(batches([], max_tokens=8, max_reads=8)) == []
