import pandas as pd
import pytest
import torch

from lcalens import LatentConcepts
from lcalens.lca.training.trainer import start_model
from probes.harness.toy import recipe
from probes.harness.work import FIRST_SEED, Work
from probes.theory import lemma6

CELL = {"m": 3, "omega": 0.5, "lr": 0.03, "steps": 0, "seeds": 1, "L": 6, "samples": 5}


def by_hand():
    """Minus the gradient in the score of each token, through a softmax over positions, context by context."""
    concepts = LatentConcepts(3, neighborhood="cluster")
    model = start_model(concepts, recipe(3, 6, lr=0.03, steps=1), FIRST_SEED).double()
    drawn = concepts.sample_counts(5, 6, torch.Generator().manual_seed(1000 + FIRST_SEED))
    rows = model.embed.weight.detach()
    pulls = torch.zeros(5, 8, dtype=torch.float64)
    for index, (counts, last, y) in enumerate(zip(drawn.counts, drawn.last, drawn.target, strict=True)):
        x = torch.repeat_interleave(torch.arange(8), counts.long())
        scores = (model.attn.k(rows) @ model.attn.q(rows[last]) * model.attn.scale).detach().requires_grad_(True)
        h = scores[x].softmax(0) @ rows[x]
        loss = torch.nn.functional.cross_entropy(rows @ model.attn.v.weight.detach() @ h, y)
        pulls[index] = -torch.autograd.grad(loss, scores)[0]
    return pulls, drawn.last


def test_pulls_are_those_of_a_softmax_over_positions_by_hand(tmp_path):
    (row,) = lemma6.measure(CELL | {"part": "start"}, Work(tmp_path))
    pulls, last = by_hand()

    def inside_less_outside(bit):
        gaps = [
            sum(pull[t] * (1 if (t >> bit & 1) == (end >> bit & 1) else -1) for t in range(8)) / 4
            for pull, end in zip(pulls.tolist(), last.tolist(), strict=True)
        ]
        return sum(gaps) / len(gaps) / float(pulls.abs().mean())

    assert row["pull"] == pytest.approx(inside_less_outside(2))
    assert row["other bits"] == pytest.approx((inside_less_outside(0) + inside_less_outside(1)) / 2)


def test_the_printed_formula_is_right_for_tokens_that_occur_once_alone(tmp_path):
    rows = {row["times"]: row for row in lemma6.measure(CELL | {"part": "formula"}, Work(tmp_path))}
    assert rows["once"]["printed"] < 1e-12
    assert rows["twice or more"]["printed"] > 0.01
    assert rows["any number of times"]["corrected"] < 1e-12


def test_verdicts_follow_the_numbers():
    settings = lemma6.Lemma6(m=(4,), omega=(0.5,), starts=3, seeds=3, steps=(5,), sweep_lr=(0.03,), sweep_steps=(5,))
    world = {"m": 4, "omega": 0.5, "lr": 0.03, "diverged": None}
    rows = []
    for seed in range(3):
        for times, printed in zip(lemma6._TIMES, (0.4, 0.1, 0.0, 0.4), strict=True):
            errors = {"printed": printed, "corrected": 1e-15, "another context": 1.0}
            rows.append(world | {"part": "formula", "steps": 0, "seed": seed, "times": times} | errors)
        for part, steps, pull in (("start", 0, (-0.3, 0.0, 0.3)[seed]), ("trained", 5, 0.5), ("sweep", 5, 0.5)):
            found = {"pull": pull, "other bits": 0.01 * seed, "size": 3.0 + seed / 100, "copies": 3.0}
            rows.append(world | {"part": part, "steps": steps, "seed": seed} | found)
    report = lemma6.report(settings, pd.DataFrame(rows))
    words = [rule.judge(evidence).word for rule, evidence in report.evidence]
    assert words == ["holds in part", "holds", "holds", "undecided", "holds"]
