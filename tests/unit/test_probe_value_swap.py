"""The probe of swapped value matrices: verdicts on hand-made rows, and accuracies against sums in plain Python."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lcalens import LatentConcepts, LCAConfig, LCAForCausalLM, TrainConfig
from probes.toy.value_swap import PRESETS, RULES, grid, report, swapped

QUICK = PRESETS["quick"]
USUAL = {
    "trained": 0.9,
    "constructed": 0.895,
    "random pairs": 0.1,
    "E E^T": 0.2,
    "identity": 0.3,
    "pseudo-inverse": 0.89,
}


def words(changes=None, *, part="trained E"):
    """The three verdicts where accuracies are as usual but for `changes` in one part."""
    rows = []
    for cell in grid(QUICK):
        for seed in range(cell["seeds"]):
            for kind, right in (USUAL | (changes or {} if cell["part"] == part else {})).items():
                found = {"W_V": kind, "seed": seed, "accuracy": right + seed / 1000, "bayes": 0.95, "diverged": None}
                rows.append(cell | found)
    made = report(QUICK, pd.DataFrame(rows))
    return [rule.judge(evidence).word for rule, evidence in made.evidence], made


YES, NO = "holds", "does not hold"


@pytest.mark.parametrize(
    ("changes", "part", "expected"),
    [
        ({}, "trained E", [YES, YES, NO]),  # frozen: no better than the paper's construction
        ({"constructed": 0.87}, "trained E", [NO, NO, NO]),
        ({"random pairs": 0.88}, "trained E", [NO, YES, NO]),
        ({"identity": 0.88}, "trained E", [YES, NO, NO]),
        ({"E E^T": 0.88}, "trained E", [YES, NO, NO]),
        ({"constructed": 0.4}, "frozen E", [YES, YES, YES]),
        ({"constructed": 0.4, "pseudo-inverse": 0.87}, "frozen E", [YES, YES, NO]),
        ({"constructed": math.nan}, "trained E", [NO, NO, NO]),
    ],
)
def test_verdicts_follow_the_accuracies(changes, part, expected):
    assert words(changes, part=part)[0] == expected


def test_the_tables_show_what_a_swap_changes():
    made = words({"constructed": 0.65, "random pairs": 0.15}, part="worlds")[1]
    (changed,) = [frame for title, frame in made.tables.items() if "over worlds" in title]
    assert all(text.startswith("-0.25") for text in changed["constructed - trained"])
    assert all(text.startswith("-0.75") for text in changed["random pairs - trained"])
    assert len(changed) == len(QUICK.sweep_omega) * len(QUICK.sweep_beta)
    assert [rule for rule, _ in made.evidence] == list(RULES)


def by_hand(model, value, tokens, target):
    """By how much the target leads, as a share of the largest score, token by token: attention, then recall."""
    rows, q, k = (
        weight.detach().double().numpy() for weight in (model.embed.weight, model.attn.q.weight, model.attn.k.weight)
    )
    leads = []
    for context, y in zip(tokens.tolist(), target.tolist(), strict=True):
        scores = np.array([(k @ rows[t]) @ (q @ rows[context[-1]]) for t in context]) / math.sqrt(len(q))
        paid = np.exp(scores - scores.max())
        looked = sum(p * rows[t] for p, t in zip(paid / paid.sum(), context, strict=True))
        logits = rows @ (value @ looked)
        leads.append((logits[y] - np.delete(logits, y).max()) / np.abs(logits).max())
    return np.array(leads)


def test_accuracies_are_those_of_sums_over_tokens():
    concepts, seed = LatentConcepts(3), 4
    torch.manual_seed(0)
    model = LCAForCausalLM(LCAConfig(m=3, d_model=8, d_head=4))
    run = SimpleNamespace(model=model, concepts=concepts, seed=seed, config=TrainConfig(40, 8, 4), diverged=None)
    found, bayes = swapped(run, 300)
    tokens, target = concepts.sample(300, 40, torch.Generator().manual_seed(seed))
    rows = model.embed.weight.detach().double().numpy()
    dual = np.linalg.pinv(rows).T
    values = {
        "trained": model.attn.v.weight.detach().double().numpy(),
        "constructed": sum(np.outer(rows[t], rows[t ^ bit]) for t in range(8) for bit in (1, 2, 4)),
        "E E^T": sum(np.outer(rows[t], rows[t]) for t in range(8)),
        "identity": np.eye(8),
        "pseudo-inverse": sum(np.outer(dual[t], dual[t ^ bit]) for t in range(8) for bit in (1, 2, 4)),
    }
    for kind, value in values.items():
        leads = by_hand(model, value, tokens, target)
        # The exact memory ties where two concepts have seen the same neighbours; single precision breaks a tie anyhow.
        surely, perhaps = np.mean(leads > 1e-5), np.mean(leads > -1e-5)
        assert surely <= found[kind] <= perhaps, kind
        assert perhaps - surely < 0.1
    assert bayes > max(found.values())


def test_a_diverged_run_gives_no_numbers():
    model = LCAForCausalLM(LCAConfig(m=3, d_model=4, d_head=4))
    with torch.no_grad():
        model.embed.weight.fill_(math.nan)
    run = SimpleNamespace(
        model=model, concepts=LatentConcepts(3), seed=0, config=TrainConfig(9, 4, 4), diverged=50
    )  # fmt: skip
    found, bayes = swapped(run, 50)
    assert set(found) == set(USUAL)
    assert all(math.isnan(right) for right in found.values())
    assert 0 < bayes <= 1
