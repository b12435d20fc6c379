"""The probe of embeddings' singular values, on matrices whose singular values are known."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lcalens import LatentConcepts
from probes.toy import embedding_spectrum as probe

M, D = 4, 8
SETTINGS = replace(probe.EmbeddingSpectrum(), m=(M,), spectra_m=(M,), spectra_d=(D,), seeds=3)


def matrix(values: list[float], seed: int = 0) -> torch.Tensor:
    """Of these singular values, with columns that sum to 0 but for the last, which is along the constant."""
    drawn = torch.randn(1 << M, len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn[:, 0] = 1
    left = torch.linalg.qr(drawn)[0].roll(-1, 1)
    right = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))[0]
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right


def rows_of(values: list[float], lost: int | None = None) -> pd.DataFrame:
    rows = []
    for part, kind, seed in product((probe.GRID, probe.WIDTH, probe.SPEED), (probe.TRAINED, probe.IDENTITY), range(3)):
        shared: dict[str, Any] = {"part": part, "m": M, "d": D, "L": 64, "lr": 0.1, "weight_decay": 0.0, "steps": 1}
        shared |= {"W_V": kind, "seed": seed, "accuracy": 0.5, "bayes": 0.9, "diverged": 1 if seed == lost else None}
        found = matrix([*values[:-1], values[-1] * (1 - seed / 1000)], seed)
        concepts = LatentConcepts(M)
        after = probe.missing(found) if seed == lost else probe.gaps(concepts, found)
        rows.append(shared | {"W_E": "trained"} | after)
        if part == probe.GRID:
            flat = [1 - k / 100 - seed / 1e4 for k in range(D)]
            rows.append(shared | {"W_E": "untrained"} | probe.gaps(concepts, matrix(flat, seed)))
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([4, 4, 4, 4, 2, 2, 2, 2], ["holds", "holds"]),
        ([4, 4, 4, 4, 2, 2, 2, 0.5], ["holds", "does not hold"]),  # a larger gap at the end
        ([4, 4, 4, 4, 4, 2, 2, 2], ["does not hold", "does not hold"]),  # after m + 1
        ([4, 4, 4, 3, 2.8, 2.8, 2.8, 2.8], ["does not hold", "does not hold"]),
    ],
)
def test_verdicts_follow_where_the_singular_values_fall(values, words):
    found = probe.report(SETTINGS, rows_of(values))
    assert [rule.judge(evidence).word for rule, evidence in found.evidence] == words


def test_l_decides_where_the_gap_is_there_at_one_l_alone():
    here, there = rows_of([4, 4, 4, 4, 2, 2, 2, 2]), rows_of([4, 4, 4, 3.9, 3.8, 2, 2, 2]).assign(L=256)
    rule, evidence = probe.report(SETTINGS, pd.concat([here, there])).evidence[0]
    verdict = rule.judge(evidence)
    assert verdict.word == "depends on"
    assert "L = 64 (met in 1 of 1)" in verdict.told()
    assert "L = 256 (met in 0 of 1)" in verdict.told()


def test_the_table_says_where_the_largest_gap_is():
    table = probe.report(SETTINGS, rows_of([4, 4, 4, 4, 4, 2, 2, 2])).tables["Gaps by m, d, L and W_V"]
    assert table.loc[table["W_E"] == "trained", "largest after"].tolist() == ["5 (3)", "5 (3)"]


def test_a_diverged_run_leaves_the_claim_unmet_and_is_counted():
    found = probe.report(SETTINGS, rows_of([4, 4, 4, 4, 2, 2, 2, 2], lost=1))
    assert [rule.judge(evidence).word for rule, evidence in found.evidence] == ["does not hold", "does not hold"]
    table = found.tables["Gaps by m, d, L and W_V"]
    assert table.loc[table["W_E"] == "trained", "diverged"].tolist() == [1, 1]


def test_numbers_are_those_of_the_gram_matrix_and_centring_takes_the_mean_away():
    values = [6.0, 5.0, 4.0, 3.0, 2.5, 1.0, 0.5, 7.0]
    embedding = matrix(values)
    found = probe.gaps(LatentConcepts(M), embedding)
    eigen = np.sqrt(np.linalg.eigvalsh((embedding.T @ embedding).numpy())[::-1])
    assert found["values"] == pytest.approx(eigen / eigen[0])
    assert found["ratio after m"] == pytest.approx(4.0 / 3.0)
    assert found["largest after"] == 6
    assert found["ratio after m / largest other"] == pytest.approx(4.0 / 3.0 / 2.5)
    assert found["share of squares in the first m"] == pytest.approx((49 + 36 + 25 + 16) / sum(x * x for x in values))
    assert found["share of squares in the mean"] == pytest.approx(49 / sum(x * x for x in values))
    assert found["ratio after m, centred"] == pytest.approx(3.0 / 2.5)


def test_centring_a_full_set_of_embeddings_makes_no_gap_at_the_end():
    found = probe.gaps(LatentConcepts(M), matrix([float(k) for k in range(60, 28, -2)]) @ torch.eye(16, 20).double())
    assert found["largest after, centred"] == 14  # 60, 58, ... 32: the smallest, 30, was the mean's
