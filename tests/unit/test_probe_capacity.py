"""The probe of capacity: what a linear memory can hold by its algebra, and verdicts on rows whose answer is known."""

import math

import pandas as pd
import pytest
import torch

from lcalens import LatentConcepts
from probes.toy import capacity as probe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_as_many_pairs_as_dimensions_are_always_recalled_and_twins_never_both():
    inputs, outputs = torch.randn(2, 8, 8, generator=seeded(), dtype=torch.float64)
    assert probe.recalled(inputs, outputs) == 1  # W = outputs^T inputs^-T is exact
    inputs[1] = inputs[0]  # one input cannot go to two outputs
    assert probe.recalled(inputs, outputs) == 7 / 8


def test_bits_as_embeddings_hold_all_concepts_in_m_dimensions():
    """2^m of them in m dimensions: what trained embeddings can do, and no law in d alone can bound."""
    concepts = LatentConcepts(5)
    bits = 2 * concepts.bits(torch.arange(32)).double() - 1
    hidden = probe.gathered(concepts, bits)
    assert ((hidden @ bits.T).argmax(1) == torch.arange(32)).all()  # W = I does it
    assert probe.recalled(hidden, bits) == 1
    assert probe.random_pairs(32, 5, seed=0) < 0.5


def test_what_is_gathered_is_the_mean_over_the_tokens_of_a_concept():
    concepts, embedding = LatentConcepts(3, omega=0.7), torch.randn(8, 4, generator=seeded(), dtype=torch.float64)
    found = probe.gathered(concepts, embedding)
    for y in range(8):
        by_hand = sum(float(concepts.p(torch.tensor(t), torch.tensor(y))) * embedding[t] for t in range(8))
        torch.testing.assert_close(found[y], by_hand)


def test_random_pairs_fill_a_memory_near_d_squared():
    """At d = 16 all of p log p = d^2 / 2 are recalled, and of three times as many, few."""
    few, many = probe.pairs_at(0.5, 16), probe.pairs_at(1.5, 16)
    assert (few, many) == (36, 86)
    assert abs(few * math.log(few) / 256 - 0.5) < 0.02
    assert probe.random_pairs(few, 16, seed=1) == 1
    assert probe.random_pairs(many, 16, seed=1) < 0.6


def rows_of(trained: float, pairs: float) -> pd.DataFrame:
    toy = [
        {"part": "toy", "m": m, "d": 8, "p": 1 << m, "kind": kind, "seed": seed, "recalled": share - seed / 1e4}
        | {"bayes": 0.99}
        for m in (3, 4, 5)
        for seed in range(3)
        for kind, share in (("W_E trained", trained), ("W_E frozen", 0.1), (probe._RANDOM, pairs if m == 5 else 1.0))
    ]
    law = [
        {"part": "law", "d": 8, "load": load, "p": 13, "kind": probe._RANDOM, "seed": seed, "recalled": share}
        for load, share in ((0.5, 1.0), (1.5, 0.3))
        for seed in range(3)
    ]
    return pd.DataFrame([*toy, *law])


@pytest.mark.parametrize(("numbers", "word"), [((0.9, 0.3), "holds"), ((0.9, 0.8), "does not hold")])
def test_the_verdict_compares_where_random_pairs_no_longer_fit(numbers, word):
    report = probe.report(probe.Capacity(m=(3, 4, 5), d=(8,), seeds=3), rows_of(*numbers))
    ((rule, evidence),) = report.evidence
    assert [one.setting for one in evidence] == ["d = 8, m = 5"]  # 32 log 32 / 64 = 1.7
    assert rule.judge(evidence).word == word
    assert "0.5 at d = 8" in report.notes[0]
