"""The probe of inner products over Hamming distance, on embeddings whose geometry is known."""

from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lcalens import LatentConcepts
from probes.harness.work import Work
from probes.toy import embedding_geometry as probe

SETTINGS = replace(probe.EmbeddingGeometry(), m=(4,), judged=(4,), seeds=3)
M = 4
SIGNS = torch.tensor(list(product((1.0, -1.0), repeat=M)))  # inner product M - 2 D_H


def embedding(own: float, noise: float, seed: int) -> torch.Tensor:
    """a = 2, b = M and b0 = M + own^2, but for the noise."""
    drawn = torch.randn(len(SIGNS), 8, generator=torch.Generator().manual_seed(seed))
    return torch.cat([SIGNS, own * torch.eye(len(SIGNS)), noise * drawn], 1)


def rows_of(own: float, *, curved: bool = False) -> pd.DataFrame:
    concepts, rows = LatentConcepts(M), []
    for kind, seed in product((probe.TRAINED, probe.IDENTITY), range(3)):
        shared: dict[str, Any] = {
            "m": M,
            "d": 8,
            "L": 64,
            "lr": 0.1,
            "weight_decay": 0.0,
            "steps": 1,
            "W_V": kind,
            "seed": seed,
        }
        shared |= {"accuracy": 0.5, "bayes": 0.9, "diverged": None}
        line = embedding(own, 0.02, seed)
        if curved and kind == probe.TRAINED:
            gram = torch.exp(-torch.cdist(SIGNS, SIGNS, p=1) / 4)  # exp(-D_H / 2): R^2 .95, and .86 of exp(-D_H)
            line = torch.linalg.cholesky(gram.double() + 1e-9 * torch.eye(len(gram)))
        start = torch.randn(len(SIGNS), 8, generator=torch.Generator().manual_seed(100 + seed))
        for part, names in ((probe.GRID, ("trained", "untrained", "shuffled")), (probe.WIDTH, ("trained",))):
            for name in names:
                found = probe.fitted(concepts, line if name == "trained" else start)
                if name != "trained":
                    found["R^2 of means"] = 0.1 + seed / 100
                rows.append(shared | {"part": part, "W_E": name} | found)
    return pd.DataFrame([*rows, *({**row, "part": probe.SPEED} for row in rows if row["part"] == probe.WIDTH)])


def words(rows: pd.DataFrame) -> list[str]:
    return [rule.judge(evidence).word for rule, evidence in probe.report(SETTINGS, rows).evidence]


def test_a_line_with_a_longer_diagonal_holds_and_one_without_fails_the_order():
    assert words(rows_of(own=1.5)) == ["holds", "holds", "holds", "holds"]
    assert words(rows_of(own=0.0)) == ["holds", "does not hold", "holds", "holds"]


def test_a_fall_that_is_no_line_is_not_taken_for_one():
    found = words(rows_of(own=1.5, curved=True))
    assert found[2:] == ["holds", "does not hold"]


def test_settings_of_ours_do_not_decide_about_the_papers_figure():
    """At m = 7 and 8, which the paper shows, the line holds; at another m it does not, and that is not counted."""
    ours = rows_of(own=1.5, curved=True)
    ours["R^2 of means"] = ours["R^2 of means"].where(ours["W_E"] != "trained", 0.5)
    theirs = rows_of(own=1.5).assign(m=7)
    rule, evidence = probe.report(replace(SETTINGS, judged=(7,)), pd.concat([ours, theirs])).evidence[0]
    assert [(one.counted, rule.meets(one)) for one in evidence] == [(False, False), (True, True)]
    assert rule.judge(evidence).word == "holds"


def test_the_fit_is_that_of_plain_least_squares_over_all_pairs():
    rows = embedding(1.0, 0.5, 0).double()
    found = probe.fitted(LatentConcepts(M), rows)
    pairs = list(combinations(range(len(rows)), 2))
    distance = np.array([bin(one ^ other).count("1") for one, other in pairs])
    inner = np.array([float(rows[one] @ rows[other]) for one, other in pairs])
    slope, intercept = np.polyfit(distance, inner, 1)
    b0 = float((rows**2).sum(1).mean())
    means = np.array([inner[distance == d].mean() for d in range(1, M + 1)])
    assert (found["a"], found["b"]) == pytest.approx((-slope, intercept))
    assert found["min(b0 - b, a) / b0"] == pytest.approx(min(b0 - intercept, -slope) / b0)
    assert found["R^2 of means"] == pytest.approx(np.corrcoef(np.arange(1, M + 1), means)[0, 1] ** 2)
    assert found["R^2 of pairs"] == pytest.approx(np.corrcoef(distance, inner)[0, 1] ** 2)
    assert found["means"] == pytest.approx([1, *(means / b0)])
    assert found["deviations"][1:] == pytest.approx([inner[distance == d].std() / b0 for d in range(1, M + 1)])


def test_a_cell_has_its_controls_and_a_lost_run_is_no_number(tmp_path):
    settings = replace(
        probe.PRESETS["quick"],
        m=(3,),
        spectra_m=(3,),
        spectra_d=(4,),
        steps=3,
        sweep_steps=(3,),
        sweep_d=(4,),
        out=tmp_path,
    )
    rows = [row for cell in probe.grid(settings) for row in probe.measure(cell, Work(tmp_path))]
    grid = pd.DataFrame(rows)[lambda frame: frame["part"] == probe.GRID]
    assert grid.groupby(["W_V", "W_E"]).size().to_dict() == {
        (kind, name): 2 for kind in (probe.TRAINED, probe.IDENTITY) for name in ("trained", "untrained", "shuffled")
    }
    # The same seed begins with the same embeddings whatever W_V is, and training moves them.
    b0 = grid.pivot(index=["W_E", "seed"], columns="W_V", values="b0")
    assert np.allclose(*b0.loc["untrained"].to_numpy().T)
    assert not np.allclose(b0.loc["trained"], b0.loc["untrained"])
    assert np.allclose(b0.loc["trained"], b0.loc["shuffled"])
    lost = probe.fitted(LatentConcepts(3), None)
    assert np.isnan(lost["R^2 of means"])
    assert len(lost["means"]) == 4
