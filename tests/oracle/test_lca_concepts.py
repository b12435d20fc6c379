"""The toy world against loops over bit strings, and its samples against the distributions they are drawn from."""

import functools
import itertools
import math
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.slow_world import ALPHA, NAMES, WORLDS, hamming, inside, seen_as, splitmix64, strings, tables
from scipy.stats import binomtest

from lcalens.lca.world import compiled as native
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.lca.world.sampling import AliasTable, Counts, Sampler, halves, seed_words, words

ROWS = 40_000
compiled = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="there is no C compiler")
every_world = pytest.mark.parametrize("world", WORLDS, ids=NAMES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tally(values, size):
    return torch.bincount(values.flatten(), minlength=size).tolist()


def products(a, b):
    return [x * y for x, y in itertools.product(a, b)]


# --- probabilities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.25, 1.0, 7.0])
@pytest.mark.parametrize("omega", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("m", "world"), [(m, world) for m in (2, 3, 4) for world in WORLDS if world.get("cluster_bits", 1) < m], ids=str
)
def test_probabilities_are_those_of_loops_over_bit_strings(m, world, omega, beta):
    found = LatentConcepts(m, omega=omega, beta=beta, **world)
    p, pi = tables(m, omega, beta, **world)
    tokens = torch.arange(2**m)
    np.testing.assert_allclose(found.p(tokens, tokens[:, None]).numpy(), p, rtol=1e-12, atol=0)
    np.testing.assert_allclose(found.pi(tokens, tokens[:, None]).numpy(), pi, rtol=1e-12, atol=0)


@pytest.mark.parametrize("m", [2, 5, 14])
@pytest.mark.parametrize("omega", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("neighborhood", ["all", "nearest", "cluster"])
def test_probabilities_sum_to_1(m, omega, neighborhood):
    world = LatentConcepts(m, omega=omega, beta=0.7, neighborhood=neighborhood)
    tokens, y = torch.arange(2**m), torch.tensor(2**m - 2)
    assert math.fsum(world.p(tokens, y).tolist()) == pytest.approx(1, abs=1e-12)
    assert math.fsum(world.pi(tokens, y).tolist()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("beta", [0.01, 1e-3])
def test_at_low_temperature_only_the_nearest_remain(beta):
    cold, nearest = LatentConcepts(4, omega=1.0, beta=beta), LatentConcepts(4, omega=1.0, neighborhood="nearest")
    torch.testing.assert_close(cold.offset_log_pi.exp(), nearest.offset_log_pi.exp(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("m", [2, 3, 5])
def test_bits_distance_and_neighbors_are_those_of_bit_strings(m):
    spelt, tokens, world = strings(m), torch.arange(2**m), LatentConcepts(m)
    assert world.vocab_size == 2**m
    assert ["".join(map(str, bits)) for bits in world.bits(tokens).tolist()] == spelt
    assert world.bits(tokens.view(2, -1)).shape == (2, 2 ** (m - 1), m)
    assert world.distance(tokens[:, None], tokens).tolist() == [[hamming(a, b) for b in spelt] for a in spelt]
    for kind in WORLDS:
        if kind.get("cluster_bits", 1) < m:
            near = LatentConcepts(m, **kind)
            for y in range(2**m):
                expected = [t for t in range(2**m) if inside(spelt[t], spelt[y], **kind)]
                assert near.neighbors(y).tolist() == expected


# --- random words ---------------------------------------------------------------------------------------------------


def unsigned(tensor):
    return [one % (1 << 64) for one in tensor.flatten().tolist()]


def test_words_are_splitmix64_as_published():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
                 16408922859458223821]  # fmt: skip
    assert splitmix64(1234567, 5) == published
    assert unsigned(words(torch.tensor([1234567]), 1, 5)) == published


@pytest.mark.parametrize("seed", [0, 1, -1, (1 << 63) - 1, -(1 << 63), 0x0123456789ABCDEF])
def test_words_are_those_of_whole_numbers(seed):
    found = words(torch.tensor([seed, 5]), 3, 4)
    assert found.shape == (2, 3, 4)
    assert unsigned(found[0]) == splitmix64(seed % (1 << 64), 12)
    assert unsigned(found[1]) == splitmix64(5, 12)
    assert [low + (high << 32) for low, high in halves(found[0]).view(-1, 2).tolist()] == unsigned(found[0])
    assert halves(found).min() >= 0


def test_seeds_differ_and_move_the_generator_on():
    state = generator()
    drawn = torch.cat([seed_words(state, 500), seed_words(state, 500)])
    assert len(drawn.unique()) == 1000
    assert drawn.min() < -(1 << 62)
    assert drawn.max() > 1 << 62
    assert torch.equal(drawn[:500], seed_words(generator(), 500))


# --- alias tables ---------------------------------------------------------------------------------------------------


def random_distribution(size, seed):
    """Of very different sizes, and zero here and there."""
    random = np.random.default_rng(seed)
    weight = np.exp(random.normal(0, 4, size)) * (random.random(size) < 0.7)
    weight[0] += 1e-6
    return torch.from_numpy(weight / weight.sum())


def drawn_exactly(table):
    """What the two arrays mean, with fractions."""
    size = len(table.limit)
    capacity = 2**32 // size
    found = [Fraction(0)] * size
    for cell, (limit, alias) in enumerate(zip(table.limit.tolist(), table.alias.tolist(), strict=True)):
        assert 0 <= limit <= capacity
        found[cell] += Fraction(limit, 2**32)
        found[alias] += Fraction(capacity - limit, 2**32)
    return found


@pytest.mark.parametrize(
    "distribution",
    [
        *(random_distribution(2**m, m) for m in (1, 2, 3, 7, 10, 14)),
        *(LatentConcepts(m, **world).offset_log_pi.exp() for m in (3, 8, 14) for world in WORLDS),
        LatentConcepts(9, omega=0.0).offset_log_p.exp(),
        LatentConcepts(14, omega=1.0, beta=0.05).offset_log_p.exp(),
        LatentConcepts(6, beta=1e-3).offset_log_pi.exp(),
        torch.tensor([0.0, 1.0]).double(),
        torch.tensor([1 / 3, 1 / 3, 0, 1 / 3], dtype=torch.float64),
    ],
    ids=lambda distribution: len(distribution),
)
def test_an_alias_table_rounds_to_2_to_minus_32_and_keeps_zero(distribution):
    table = AliasTable.of(distribution)
    exact, found = drawn_exactly(table), table.probabilities()
    assert sum(exact) == 1
    assert found.tolist() == [float(one) for one in exact]
    assert np.abs(found - distribution.numpy()).max() < 2.0**-32
    assert (found[distribution.numpy() == 0] == 0).all()


@pytest.mark.parametrize("last", [False, True])
def test_a_draw_takes_its_own_cell_below_the_limit_and_the_alias_from_it_on(last):
    sampler = Sampler(random_distribution(16, 1), random_distribution(16, 2))
    table = sampler.last_table if last else sampler.table
    capacity = 2**28
    for cell, (limit, alias) in enumerate(zip(table.limit.tolist(), table.alias.tolist(), strict=True)):
        for rest in {0, max(limit - 1, 0), limit, capacity - 1} - {capacity}:
            bits = torch.tensor([cell * capacity + rest])
            assert sampler.draw(bits, last=last).item() == (cell if rest < limit else alias)


# --- contexts -------------------------------------------------------------------------------------------------------


@functools.cache
def drawn(m, length, seed, **world):
    """Offsets (row, position) and targets of a sample."""
    tokens, targets = LatentConcepts(m, **world).sample(ROWS, length, generator(seed))
    assert tokens.shape == (ROWS, length)
    assert targets.shape == (ROWS,)
    return tokens ^ targets[:, None], targets


sampled = pytest.mark.parametrize(
    ("m", "world", "omega"),
    [
        (m, world, omega)
        for m, (world, omega) in itertools.product((2, 3), itertools.product(WORLDS, (0.0, 0.5, 1.0)))
        if world.get("cluster_bits", 1) < m
    ],
    ids=str,
)


@sampled
def test_tokens_follow_p_the_last_follows_pi_and_targets_are_uniform(m, world, omega):
    offsets, targets = drawn(m, 4, 1, omega=omega, **world)
    p, pi = tables(m, omega, **world)
    size = 2**m
    assert seen_as(tally(targets, size), [1 / size] * size) > ALPHA
    for position in range(3):
        assert seen_as(tally(offsets[:, position], size), p[0]) > ALPHA
    assert seen_as(tally(offsets[:, 3], size), pi[0]) > ALPHA


@sampled
def test_positions_and_targets_are_independent(m, world, omega):
    offsets, targets = drawn(m, 4, 2, omega=omega, **world)
    p, pi = tables(m, omega, **world)
    size = 2**m
    of = [p[0], p[0], p[0], pi[0], [1 / size] * size]
    columns = [*offsets.unbind(1), targets]
    for (a, first), (b, second) in itertools.combinations(enumerate(columns), 2):
        assert seen_as(tally(first * size + second, size**2), products(of[a], of[b])) > ALPHA


@sampled
def test_neighbouring_rows_are_independent(m, world, omega):
    offsets, targets = drawn(m, 4, 3, omega=omega, **world)
    p, pi = tables(m, omega, **world)
    size = 2**m
    of = [p[0], p[0], p[0], pi[0], [1 / size] * size]
    columns = [*offsets.unbind(1), targets]
    for (a, first), (b, second) in itertools.product(enumerate(columns), repeat=2):
        joint = first[0::2] * size + second[1::2]
        assert seen_as(tally(joint, size**2), products(of[a], of[b])) > ALPHA


@pytest.mark.parametrize(("m", "length"), [(10, 12), (14, 41)])
@pytest.mark.parametrize("neighborhood", ["all", "nearest", "cluster"])
def test_many_latents_are_sampled_exactly_as_well(m, length, neighborhood):
    world = LatentConcepts(m, neighborhood=neighborhood)
    tokens, targets = world.sample(ROWS, length, generator(4))
    offsets = tokens ^ targets[:, None]
    distance, log_pi = world.offset_distance, world.offset_log_pi
    kinds = distance * 2 + log_pi.isfinite()  # tokens of one kind are equally likely: their counts may be added

    def grouped(values):
        return torch.zeros(2 * m + 2, dtype=torch.float64).scatter_add_(0, kinds, values.double()).tolist()

    for offsets_of, probability in ((offsets[:, :-1], world.offset_log_p.exp()), (offsets[:, -1], log_pi.exp())):
        counts = torch.bincount(offsets_of.flatten(), minlength=2**m)
        assert (counts[probability == 0] == 0).all()
        kept = [(a, b) for a, b in zip(grouped(counts), grouped(probability), strict=True) if b * counts.sum() >= 5]
        others = float(counts.sum()) - sum(a for a, _ in kept), 1 - sum(b for _, b in kept)
        if others[1] > 1e-9:
            kept.append(others)
        assert seen_as(*zip(*kept, strict=True)) > ALPHA
    for bit in range(m):  # every latent of the targets and of uniform noise
        assert binomtest(int((targets >> bit & 1).sum()), ROWS, 0.5).pvalue > ALPHA


def test_a_sample_is_a_pure_function_of_the_generator_state():
    world, state = LatentConcepts(5), generator(7)
    first, second = world.sample(9, 6, state), world.sample(9, 6, state)
    again = generator(7)
    assert all(map(torch.equal, first, world.sample(9, 6, again)))
    assert all(map(torch.equal, second, world.sample(9, 6, again)))
    assert not torch.equal(first[0], second[0])


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    LatentConcepts(5).sample(9, 6, generator())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_contexts_are_made_from_the_words_one_by_one(length):
    """Word 0 of a row gives the concept and the last token, every later word two tokens, low half first."""
    m, rows = 4, 5
    world = LatentConcepts(m, omega=0.8, neighborhood="cluster")
    seed = int(seed_words(generator(3)))
    per_row = 1 + length // 2
    stream = splitmix64(seed % (1 << 64), rows * per_row)

    def offset(bits, table):
        cell, rest = bits >> 28, bits & (2**28 - 1)
        return cell if rest < table.limit[cell] else int(table.alias[cell])

    tokens, targets = world.sample(rows, length, generator(3))
    for row in range(rows):
        mine = stream[row * per_row : (row + 1) * per_row]
        y = mine[0] >> 60
        each = [half for word in mine[1:] for half in (word & 0xFFFFFFFF, word >> 32)]
        context = [offset(bits, world.sampler.table) ^ y for bits in each[: length - 1]]
        context.append(offset(mine[0] & 0xFFFFFFFF, world.sampler.last_table) ^ y)
        assert tokens[row].tolist() == context
        assert targets[row] == y


# --- counts, compiled and not ---------------------------------------------------------------------------------------


def counted(tokens, size):
    return torch.stack([torch.bincount(row, minlength=size) for row in tokens]).float()


@pytest.mark.parametrize("length", [1, 2, 3, 8, 128, 129, 130, 257, 1000])
@pytest.mark.parametrize("m", [2, 5, 14])
def test_counts_are_those_of_the_sample(m, length):
    world = LatentConcepts(m)
    tokens, targets = world.sample(7, length, generator(length))
    found = world.sample_counts(7, length, generator(length))
    assert torch.equal(found.counts, counted(tokens, 2**m))
    assert torch.equal(found.last, tokens[:, -1])
    assert torch.equal(found.target, targets)
    assert all(map(torch.equal, world.count(tokens), found[:2]))


@compiled
@pytest.mark.parametrize("length", [1, 2, 3, 127, 128, 129, 130, 256, 1000])
@pytest.mark.parametrize("m", [2, 3, 9, 14])
@pytest.mark.parametrize("weighted", [False, True])
def test_compiled_and_torch_give_the_same_bits(monkeypatch, m, length, weighted):
    assert native.kernel() is not None
    world = LatentConcepts(m, omega=0.7, neighborhood="cluster")
    seeds = torch.tensor([0, -1, 1 << 62, -(1 << 63)])
    weight = torch.arange(length + 1).float().log() if weighted else None
    fast = world.sampler.counts(seeds, 3, length, weight=weight)
    monkeypatch.setattr(native, "kernel", lambda: None)
    slow = world.sampler.counts(seeds, 3, length, weight=weight)
    assert fast.counts.shape == (12, 2**m)
    for name in Counts._fields:
        a, b = getattr(fast, name), getattr(slow, name)
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@compiled
def test_counts_are_written_into_what_is_given():
    world = LatentConcepts(4)
    into = Counts(torch.full((6, 16), torch.nan), *torch.full((2, 6), -1))
    found = world.sampler.counts(torch.tensor([3, 4]), 3, 11, into=into)
    assert found.counts.data_ptr() == into.counts.data_ptr()
    fresh = world.sampler.counts(torch.tensor([3, 4]), 3, 11)
    assert all(map(torch.equal, into, fresh))


def test_blocks_are_the_samples_of_their_seeds():
    world = LatentConcepts(4)
    tokens, targets = world.sampler.tokens(torch.tensor([3, -4, 5]), 6, 9)
    for block, seed in enumerate((3, -4, 5)):
        alone = world.sampler.tokens(torch.tensor([seed]), 6, 9)
        assert torch.equal(tokens[block], alone[0][0])
        assert torch.equal(targets[block], alone[1][0])


def test_a_longer_batch_of_rows_begins_with_the_shorter():
    world = LatentConcepts(4)
    few, many = world.sample(5, 8, generator()), world.sample(50, 8, generator())
    assert all(torch.equal(a, b[:5]) for a, b in zip(few, many, strict=True))


@pytest.fixture
def fresh_kernel(monkeypatch, tmp_path):
    """The compiled sampler as in a new process, with an empty cache."""
    monkeypatch.setenv("LCALENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LCALENS_COMPILE", raising=False)
    native.kernel.cache_clear()
    yield tmp_path
    native.kernel.cache_clear()


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


BROKEN = {
    "switched off": lambda set_, at: set_("LCALENS_COMPILE", "0"),
    "no such compiler": lambda set_, at: set_("CC", str(at / "none")),
    "no compiler on the path": lambda set_, at: set_("PATH", str(at)),
    "a folder as compiler": lambda set_, at: set_("CC", str(at)),
    "a compiler that fails at once": lambda set_, at: set_("CC", program(at / "cc", "exit 1")),
    "a compiler that fails to compile": lambda set_, at: set_("CC", program(at / "cc", '[ "$1" = --version ]')),
    "a compiler that writes nothing": lambda set_, at: set_("CC", program(at / "cc", "exit 0")),
    "a compiler that writes rubbish": lambda set_, at: set_(
        "CC", program(at / "cc", 'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo rubbish > "$2"; shift; done; exit 0')
    ),
    "a cache that is a file": lambda set_, at: set_("LCALENS_CACHE", program(at / "file", "")),
}


@pytest.mark.parametrize("how", BROKEN)
def test_without_a_compiler_the_bits_are_the_same(fresh_kernel, monkeypatch, how):
    expected = LatentConcepts(5).sample(20, 33, generator(9))
    monkeypatch.delenv("CC", raising=False)
    BROKEN[how](monkeypatch.setenv, fresh_kernel)
    assert native.kernel() is None
    found = LatentConcepts(5).sample_counts(20, 33, generator(9))
    assert torch.equal(found.counts, counted(expected[0], 32))
    assert torch.equal(found.last, expected[0][:, -1])
    assert torch.equal(found.target, expected[1])


@compiled
def test_the_sampler_is_compiled_once_and_kept(fresh_kernel):
    assert native.kernel() is not None
    (library,) = (fresh_kernel / "cache").rglob("*.so")
    before = library.stat()
    native.kernel.cache_clear()
    assert native.kernel() is not None
    assert [path for path in (fresh_kernel / "cache").rglob("*") if path.is_file()] == [library]
    assert library.stat().st_mtime_ns == before.st_mtime_ns
    found = LatentConcepts(5).sample_counts(20, 33, generator(9))
    tokens, _ = LatentConcepts(5).sample(20, 33, generator(9))
    assert torch.equal(found.counts, counted(tokens, 32))


def test_the_number_of_threads_changes_nothing():
    world, before = LatentConcepts(8), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append((*world.sample(3000, 64, generator()), *world.sample_counts(3000, 64, generator())))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


# --- hijacked contexts ----------------------------------------------------------------------------------------------

# With omega 1 nobody draws the concept itself: a context of `other` alone shows every redrawn position.
SHOWING = LatentConcepts(3, omega=1.0)


def hijacked(other, *, rows=5000, length=5, seed=0, world=SHOWING, **options):
    tokens = torch.full((rows, length), other)
    who = torch.full((rows,), other)
    return world.hijack(tokens, who, who, generator=generator(seed), **options)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.85])
def test_the_share_of_positions_is_redrawn_independently_and_the_last_kept(share):
    redrawn = hijacked(6, share=share) != 6
    assert not redrawn[:, -1].any()
    for position in range(4):
        assert binomtest(int(redrawn[:, position].sum()), len(redrawn), share).pvalue > ALPHA
    for a, b in itertools.combinations(range(4), 2):
        joint = redrawn[:, a] * 2 + redrawn[:, b]
        assert seen_as(tally(joint, 4), products([1 - share, share], [1 - share, share])) > ALPHA


def test_share_0_keeps_all_and_share_1_redraws_all_but_the_last():
    assert (hijacked(6, share=0.0) == 6).all()
    redrawn = hijacked(6, share=1.0)
    assert (redrawn[:, :-1] != 6).all()
    assert (redrawn[:, -1] == 6).all()


@every_world
@pytest.mark.parametrize("omega", [0.5, 1.0])
def test_redrawn_tokens_follow_p_of_the_other(world, omega):
    redrawn = hijacked(5, share=1.0, rows=10_000, world=LatentConcepts(3, omega=omega, **world))
    p, _ = tables(3, omega, **world)
    for position in range(4):
        assert seen_as(tally(redrawn[:, position], 8), p[5]) > ALPHA
    for a, b in itertools.combinations(range(4), 2):
        assert seen_as(tally(redrawn[:, a] * 8 + redrawn[:, b], 64), products(p[5], p[5])) > ALPHA


def test_whether_a_position_is_redrawn_does_not_depend_on_what_is_drawn():
    all_drawn, some = hijacked(5, share=1.0, rows=20_000), hijacked(5, share=0.4, rows=20_000) != 5
    p, _ = tables(3, 1.0)
    joint = all_drawn[:, :-1] * 2 + some[:, :-1]
    assert seen_as(tally(joint, 16), products(p[5], [0.6, 0.4])) > ALPHA


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_the_same_state_redraws_the_same_positions_with_the_same_offsets_whatever_the_other(share):
    found = [hijacked(other, share=share) ^ other for other in range(8)]
    assert all(torch.equal(found[0], one) for one in found)


def test_a_larger_share_redraws_what_a_smaller_one_does_and_more():
    few, many = (hijacked(6, share=share) for share in (0.3, 0.7))
    assert ((few == 6) | (few == many)).all()


def test_hijacking_touches_neither_the_contexts_nor_the_positions_given():
    tokens, y = SHOWING.sample(50, 6, generator())
    positions = torch.ones(50, 6, dtype=torch.bool)
    kept = tokens.clone(), y.clone(), positions.clone()
    SHOWING.hijack(tokens, y, y ^ 7, positions=positions, generator=generator())
    assert all(map(torch.equal, kept, (tokens, y, positions)))


def test_positions_are_redrawn_where_told_with_the_draws_of_a_share():
    tokens, y = SHOWING.sample(400, 6, generator())
    other = y ^ 3
    everywhere = SHOWING.hijack(tokens, y, other, share=1.0, generator=generator(1))
    positions = torch.rand(400, 6, generator=generator(2)) < 0.5
    found = SHOWING.hijack(tokens, y, other, positions=positions, generator=generator(1))
    kept = ~positions
    kept[:, -1] = True
    assert torch.equal(found, torch.where(kept, tokens, everywhere))


def test_each_context_is_hijacked_by_its_own_other():
    other = torch.arange(4000) % 8
    found = SHOWING.hijack(torch.zeros(4000, 5).long(), other, other, share=1.0, generator=generator())
    p, _ = tables(3, 1.0)
    assert seen_as(tally(found[:, :-1] ^ other[:, None], 8), p[0]) > ALPHA


# --- mixtures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 1.0], [0.0, 2.0], [2.0, 0.0], [0.2, 0.5, 0.3], [1.0, 0.0, 1.0]])
def test_each_position_chooses_a_concept_by_weight(weights):
    world = LatentConcepts(3, omega=0.6)
    choices = [0b000, 0b110, 0b011][: len(weights)]
    concepts = torch.tensor(choices).expand(10_000, -1)
    found = world.sample_mixture(concepts, weights, 4, generator(1))
    p, pi = tables(3, 0.6)
    share = [one / sum(weights) for one in weights]
    mixed = [sum(w * p[y][t] for w, y in zip(share, choices, strict=True)) for t in range(8)]
    for position in range(3):
        assert seen_as(tally(found[:, position], 8), mixed) > ALPHA
    for a, b in itertools.combinations(range(3), 2):
        assert seen_as(tally(found[:, a] * 8 + found[:, b], 64), products(mixed, mixed)) > ALPHA
    assert seen_as(tally(found[:, 3], 8), pi[choices[0]]) > ALPHA


@pytest.mark.parametrize(
    "weights", [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 3.0], [1.0, 3.0, 0.0]]
)
def test_a_concept_of_weight_0_never_speaks(weights):
    world = LatentConcepts(4, omega=1.0, neighborhood="nearest")
    choices = [0b0000, 0b1111, 0b0101]
    pairs = {t: [k for k, y in enumerate(choices) if bin(t ^ y).count("1") == 1] for t in range(16)}
    found = world.sample_mixture(torch.tensor(choices).expand(2000, -1), weights, 4, generator(2))
    for t in found[:, :-1].unique().tolist():
        assert any(weights[k] > 0 for k in pairs[t])


def test_a_mixture_of_one_concept_is_its_own_and_rows_have_their_own_concepts():
    world = LatentConcepts(3)
    concepts = torch.arange(8).repeat(2000)[:, None]
    found = world.sample_mixture(concepts, [5.0], 3, generator(3)) ^ concepts
    p, pi = tables(3)
    assert seen_as(tally(found[:, :-1], 8), p[0]) > ALPHA
    assert seen_as(tally(found[:, -1], 8), pi[0]) > ALPHA


# --- as a dataset ---------------------------------------------------------------------------------------------------


def test_a_dataset_is_the_sample_of_its_seed():
    world = LatentConcepts(4)
    rows = list(world.to_dataset(5, seed=11, size=1030))
    assert len(rows) == 1030
    tokens, targets = world.sample(1024, 5, generator(11))
    assert [row["input_ids"] for row in rows[:1024]] == tokens.tolist()
    assert [row["labels"] for row in rows[:1024]] == targets.tolist()
    assert len({tuple(row["input_ids"]) for row in rows[1024:]} & {tuple(one) for one in tokens[:6].tolist()}) == 0


def test_a_dataset_repeats_itself_and_differs_by_seed():
    world = LatentConcepts(6)
    stream = world.to_dataset(9, seed=1, size=5)
    assert list(stream) == list(stream) == list(world.to_dataset(9, seed=1, size=5))
    assert list(stream) != list(world.to_dataset(9, seed=2, size=5))
    assert list(itertools.islice(world.to_dataset(9, seed=1), 5)) == list(stream)


@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 2048])
def test_a_dataset_has_the_size_asked_for(size):
    assert sum(1 for _ in LatentConcepts(2).to_dataset(1, seed=0, size=size)) == size


def test_a_dataset_batches_in_torch_format():
    batch = next(iter(LatentConcepts(4).to_dataset(5, seed=0, size=8).batch(8).with_format("torch")))
    assert batch["input_ids"].shape == (8, 5)
    assert batch["labels"].shape == (8,)
