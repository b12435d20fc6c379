import itertools

import pandas as pd
import pytest
import torch

from lcalens import LatentConcepts
from probes.harness.toy import recipe
from probes.harness.work import FIRST_SEED, Work
from probes.toy import value_role

SIZE = {"m": 3, "L": 8, "beta": 1.0, "steps": 60, "lr": 0.03, "samples": 200, "seeds": 1}


def test_shares_in_s_y_are_those_of_right_answers_counted_one_by_one(tmp_path):
    work = Work(tmp_path)
    rows = {row["kind"]: row for row in value_role.measure(SIZE | {"part": "S_y"}, work)}
    concepts = LatentConcepts(3)
    (run,) = work.train(concepts, recipe(3, 8, lr=0.03, steps=60), 1)
    tokens, y = concepts.sample(200, 8, torch.Generator().manual_seed(1000 + FIRST_SEED))
    model = run.model.double()
    e = model.embed.weight.detach()
    right = {"trained": 0, "identity instead": 0}
    for context, target in zip(tokens, y, strict=True):
        scores = model.attn.k(e[context]) @ model.attn.q(e[context[-1]]) * model.attn.scale
        h = (scores.softmax(0) @ e[context]).detach()
        right["trained"] += int((e @ model.attn.v(h)).argmax() == target)
        right["identity instead"] += int((e @ h).argmax() == target)
    for kind, count in right.items():
        assert rows[kind]["share"] == pytest.approx(count / 200)
        assert sum(rows[kind]["histogram"]) == pytest.approx(1)
        assert sum(rows[kind]["histogram"][20:]) == pytest.approx(count / 200)  # the bins above 0
    assert rows["trained"]["agreement"] == 1


def test_the_line_is_fitted_over_pairs_of_tokens(tmp_path):
    work = Work(tmp_path)
    (row,) = value_role.measure(SIZE | {"part": "line"}, work)
    ours = recipe(3, 8, lr=0.03, steps=60, value="identity", train_value=False)
    (run,) = work.train(LatentConcepts(3, omega=1.0), ours, 1)
    e = run.model.embed.weight.detach().double()
    pairs = list(itertools.combinations(range(8), 2))
    data = pd.DataFrame({"d": [bin(s ^ t).count("1") for s, t in pairs], "p": [float(e[s] @ e[t]) for s, t in pairs]})
    data["pi"] = [2.718281828459045**-d for d in data["d"]]
    found = data.corr()
    assert abs(row["r2"]) == pytest.approx(found["d"]["p"] ** 2)
    assert (row["r2"] > 0) == (found["d"]["p"] < 0)
    assert row["control"] == pytest.approx(found["d"]["pi"] ** 2)


def test_verdicts_need_the_line_to_beat_the_exponential_and_w_v_the_identity():
    settings = value_role.ValueRole(m=(4,), line_m=(4,), seeds=3)
    shared = {"m": 4, "L": 16, "beta": 1.0, "steps": 5, "diverged": None, "bayes": 0.9}

    def words(identity, r2):
        rows = []
        for seed in range(3):
            for kind in value_role._ROLES:
                share = identity if kind == value_role._ROLES[-1] else 0.8
                row = {"part": "S_y", "seed": seed, "kind": kind, "share": share, "histogram": [0.025] * 40}
                rows.append(shared | row | {"agreement": 1.0, "outside": 0.0})
            line = {"r2": r2, "control": 0.9, "shuffled": 0.0, "slope": 0.8, "premise": 0.1, "share": 0.9}
            rows += [shared | {"part": part, "seed": seed} | line for part in ("line", "sweep")]
        rows.append(shared | {"part": "solved", "r2": 1.0, "control": 0.9, "slope": 1.0, "residual": 0.0, "free": 1})
        report = value_role.report(settings, pd.DataFrame(rows))
        return [rule.judge(evidence).word for rule, evidence in report.evidence]

    assert words(0.6, 0.99) == ["holds", "holds", "holds"]
    assert words(0.8, 0.94) == ["does not hold", "holds", "does not hold"]
    assert words(0.6, -0.99)[2] == "does not hold"
