"""The probe of subspaces: verdicts on hand-made rows, and angles against the norms of products of projectors."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lcalens import LatentConcepts, LCAConfig, LCAForCausalLM
from probes.toy.value_subspace import PRESETS, compared, grid, report

QUICK = PRESETS["quick"]
ANGLES = {"constructed": 3.0, "random pairs": 40.0, "Gaussian": 60.0, "E E^T": 4.0}


def reported(changes=None, right=None):
    """Rules and evidence where smallest angles are as usual but for `changes`, on the right side but for `right`."""
    rows = []
    for cell in grid(QUICK):
        for seed in range(cell["seeds"]):
            for name, angle in (ANGLES | (changes or {})).items():
                other = angle if right is None else (ANGLES | right)[name]
                numbers = {"smallest, left": angle, "smallest, right": other, "mean, left": 50.0, "mean, right": 50.0}
                shared = {"cosine": 0.5, "gap of trained": 2.0, "gap of other": 3.0, "accuracy": 0.8, "bayes": 0.9}
                about = {name: value for name, value in cell.items() if name != "ranks"}
                rows += [
                    about | {"seed": seed, "matrix": name, "rank": rank, "diverged": None} | shared | numbers
                    for rank in cell["ranks"]
                ]
    made = report(QUICK, pd.DataFrame(rows))
    return made.evidence


def words(changes, right):
    return [rule.judge(evidence).word for rule, evidence in reported(changes, right)]


def evidence_of():
    return reported()[0][1]


YES, PART, NO = "holds", "holds in part", "does not hold"


@pytest.mark.parametrize(
    ("changes", "right", "expected"),
    [
        ({}, None, [YES, YES]),
        ({"E E^T": 1.0}, None, [YES, NO]),
        ({"constructed": 12.0}, None, [YES, NO]),  # far, and yet the nearest of what the paper compares
        ({"constructed": 50.0, "random pairs": 80.0}, None, [NO, NO]),
        ({"random pairs": 2.0}, None, [NO, YES]),
        ({}, {"constructed": 50.0}, [PART, PART]),
        ({"constructed": math.nan}, None, [NO, NO]),
    ],
)
def test_verdicts_follow_the_smallest_angles(changes, right, expected):
    assert words(changes, right) == expected


def test_subspaces_that_must_meet_are_not_counted():
    """Two of m dimensions share a direction where 2 m > d, whatever the matrices."""
    assert {(cell["m"], cell["d"]) for cell in grid(QUICK) if cell["part"] == "grid"} == {
        (3, 4),
        (3, 8),
        (4, 8),
        (4, 16),
    }
    counted = {one.setting: one.counted for one in evidence_of()}
    assert {name.split(", L")[0]: counted for name, counted in counted.items()} == {
        "m = 3, d = 4": False, "m = 3, d = 8": True, "m = 4, d = 8": True, "m = 4, d = 16": True
    }  # fmt: skip


def test_angles_are_those_of_projectors():
    """The cosine of the smallest angle is the norm of the product of the two projectors."""
    torch.manual_seed(0)
    model, concepts = LCAForCausalLM(LCAConfig(m=4, d_model=8, d_head=4)), LatentConcepts(4)
    run = SimpleNamespace(model=model, concepts=concepts, seed=3, diverged=None)
    found = {(one["matrix"], one["rank"]): one for one in compared(run, [1, 3])}
    rows = model.embed.weight.detach().double().numpy()
    trained = model.attn.v.weight.detach().double().numpy()
    others = {
        "constructed": sum(np.outer(rows[t], rows[t ^ bit]) for t in range(16) for bit in (1, 2, 4, 8)),
        "E E^T": rows.T @ rows,
    }
    for name, other in others.items():
        for rank in (1, 3):
            one = found[name, rank]
            for side, (a, b) in {
                "left": (trained @ trained.T, other @ other.T),
                "right": (trained.T @ trained, other.T @ other),
            }.items():
                bases = [np.linalg.eigh(square)[1][:, -rank:] for square in (a, b)]
                projectors = [basis @ basis.T for basis in bases]
                cosines = np.linalg.svd(projectors[0] @ projectors[1])[1][:rank].clip(max=1)
                degrees = np.degrees(np.arccos(cosines))
                assert one[f"smallest, {side}"] == pytest.approx(degrees.min(), abs=1e-3)
                assert one[f"mean, {side}"] == pytest.approx(degrees.mean(), abs=1e-3)
            lengths = np.linalg.norm(trained) * np.linalg.norm(other)
            assert one["cosine"] == pytest.approx((trained * other).sum() / lengths)
            for title, matrix in (("gap of trained", trained), ("gap of other", other)):
                values = np.linalg.svd(matrix)[1]
                assert one[title] == pytest.approx(values[rank - 1] / values[rank])


def test_a_diverged_run_gives_no_numbers():
    model = LCAForCausalLM(LCAConfig(m=3, d_model=4, d_head=4))
    with torch.no_grad():
        model.attn.v.weight.fill_(math.nan)
    found = compared(SimpleNamespace(model=model, concepts=LatentConcepts(3), seed=0, diverged=50), [1, 2])
    assert len(found) == 2 * len(ANGLES)
    assert all(math.isnan(one["smallest, left"]) and math.isnan(one["cosine"]) for one in found)
