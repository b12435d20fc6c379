import itertools
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from lcalens import LatentConcepts
from probes.harness.work import FIRST_SEED, Work
from probes.theory import theorems

SETTINGS = theorems.Theorems(m=(2, 3), omega=(1.0,), beta=(1.0,), lengths=(16, 64), samples=100, above=(4,))
KINDS = ("constructed", "random pairs", "Gaussian embeddings", "W_V = I")


def rows_of(accuracy):
    """Rows of every part, with the accuracy that `accuracy(m, kind)` gives, whatever L is."""
    rows = []
    plan = [("theorem 1", 2), ("theorem 1", 3), ("theorem 4", 3), ("sweep", 3)]
    for (part, m), kind, seed, length in itertools.product(plan, KINDS, range(3), SETTINGS.lengths):
        place = {"part": part, "m": m, "omega": 1.0, "beta": 1.0, "b": m / 2, "above": 4, "seed": seed, "kind": kind}
        rows.append(place | {"L": length, "accuracy": accuracy(m, kind), "bayes": 1.0, "lead": 0.5})
    return pd.DataFrame(rows)


def words(rows, samples):
    report = theorems.report(replace(SETTINGS, samples=samples), rows)
    return [rule.judge(evidence).word for rule, evidence in report.evidence if evidence]


def good(m, kind):
    return 1.0 if kind == "constructed" and m >= 3 else 0.2


def test_verdicts_follow_the_constructed_model_and_its_controls():
    # At m = 2, outside the theorem, the construction is as bad as the controls.
    assert words(rows_of(good), 1000) == ["holds", "does not hold", "holds", "holds"]


def test_three_hundred_contexts_do_not_show_an_error_below_one_in_a_hundred():
    assert words(rows_of(good), 100)[0] == "undecided"


def test_controls_that_do_as_well_take_the_verdicts_away():
    assert set(words(rows_of(lambda m, kind: 1.0), 1000)) == {"does not hold"}


def test_accuracy_is_that_of_counting_neighbours_by_hand(tmp_path: Path):
    """Theorem 1's logit of y is the share of the context at distance 1 from y: count it token by token."""
    cell = {"part": "theorem 1", "m": 3, "omega": 1.0, "beta": 1.0, "b": None, "above": None, "kinds": ("constructed",)}
    cell |= {"lengths": (7,), "samples": 50, "seeds": 1}
    (row,) = theorems.measure(cell, Work(tmp_path))
    drawn = LatentConcepts(3, omega=1.0).sample_counts(50, 7, torch.Generator().manual_seed(1000 + FIRST_SEED))
    right = 0.0
    for counts, target in zip(drawn.counts.tolist(), drawn.target.tolist(), strict=True):
        logits = [sum(counts[y ^ bit] for bit in (1, 2, 4)) for y in range(8)]
        best = [y for y in range(8) if logits[y] == max(logits)]
        right += (target in best) / len(best)
    assert row["accuracy"] == pytest.approx(right / 50)
    assert 0 < row["accuracy"] < 1
