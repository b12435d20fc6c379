"""The probe of errors over divergence: a count by hand, and verdicts on rows whose answer is known."""

import math

import pandas as pd
import pytest
import torch

from lcalens import LatentConcepts
from probes.harness.work import Work
from probes.toy import divergence as probe


def test_pairwise_errors_are_a_count_over_pairs_and_a_tie_is_a_half():
    scores = torch.tensor([[2.0, 1.0, 3.0, 2.0], [0.0, 5.0, 1.0, 1.0]])
    y = torch.tensor([0, 3])
    found = probe.pairwise_errors(lambda counts, last: scores, torch.zeros(2, 4), torch.zeros(2), y)
    # Context 0: against 1, 2, 3 no, yes, a tie. Context 1 is of 3: against 3 ^ 1 = 2, 3 ^ 2 = 1, 3 ^ 3 = 0.
    assert found.tolist() == pytest.approx([0.5, (0 + 0.5) / 2, (1 + 1) / 2, (0.5 + 0) / 2])


def test_divergence_is_the_sum_over_tokens(tmp_path):
    settings = probe.Divergence(m=(3,), lengths=(8,), seeds=1, trained_at=8, steps=2, contexts=100)
    rows = pd.DataFrame(probe.measure(probe.grid(settings)[0], Work(tmp_path)))
    concepts = LatentConcepts(3)
    tokens = torch.arange(8)
    for bits, other in ((1, 4), (2, 3), (3, 7)):
        p, q = concepts.p(tokens, torch.tensor(0)), concepts.p(tokens, torch.tensor(other))
        by_hand = sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
        assert rows.loc[rows["D_H"] == bits, "KL"].tolist() == pytest.approx([by_hand] * 3)


def rows_of(near: float, far: float, before: float) -> pd.DataFrame:
    """Errors at two distances, at two lengths; D_H = 2 is the closer by its divergence."""
    return pd.DataFrame(
        {"m": 4, "L": length, "seed": seed, "reader": name, "D_H": bits, "KL": kl, "error": error + seed / 1e4}
        for length in (8, 32)
        for seed in range(3)
        for bits, kl, of in ((1, 0.3, (far, 0.5, 0.0)), (2, 0.2, (near, before, 0.0)))
        for name, error in zip((probe._MODEL, probe._BEFORE, probe._BAYES), of, strict=True)
    )


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.3, 0.1, 0.5), ["holds", "holds"]),
        ((0.1, 0.3, 0.5), ["does not hold", "does not hold"]),  # the further concept is the more confused
        ((0.3, 0.1, 0.7), ["holds", "does not hold"]),  # as much before training
    ],
)
def test_verdicts_follow_the_closest_and_the_furthest(numbers, words):
    settings = probe.Divergence(m=(4,), lengths=(8, 32), seeds=3)
    report = probe.report(settings, rows_of(*numbers))
    assert [rule.judge(evidence).word for rule, evidence in report.evidence] == words
