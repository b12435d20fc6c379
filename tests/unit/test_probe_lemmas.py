import itertools

import pandas as pd
import pytest

from probes.harness.work import Work
from probes.theory import lemmas

SETTINGS = lemmas.Lemmas(m=(3,), lengths=(3,), seeds=2, samples=4000, rank_m=(3,), a=(1.0,), b=(1.0,))


def measured(tmp_path, cell):
    return lemmas.measure(cell, Work(tmp_path))


def test_errors_are_those_of_every_context_gone_through_by_hand(tmp_path):
    """At m = 3, L = 3: y is y's own neighbours' neighbour; count every context, one attention weight a position."""
    y, near = 0, (1, 2, 4)
    contexts = list(itertools.product(near, repeat=3))  # equally likely; y = 0 stands for all by XOR
    level = 0
    for context in contexts:
        logits = [sum(bin(token ^ other).count("1") == 1 for token in context) for other in range(8)]
        assert max(logits) == logits[y] == 3
        level += logits.count(3) > 1
    rows = measured(tmp_path, {"part": "errors", "m": 3, "L": 3, "samples": 100, "seeds": 1})
    (built,) = [row for row in rows if row["kind"] == "constructed"]
    assert built["all"]
    assert built["above"] == pytest.approx(0, abs=1e-12)
    assert built["level"] == pytest.approx(level / len(contexts))
    (identity,) = [row for row in rows if row["kind"] == "identity"]
    assert identity["above"] == pytest.approx(1)  # y is in no context, so its own logit is 0


def test_ranks_are_of_a_line_and_of_all_tokens(tmp_path):
    (row,) = measured(tmp_path, {"part": "rank", "m": 4, "a": 2.0, "b": 1.0})
    assert (row["rank"], row["control"]) == (5, 16)  # a constant and four bits; exp(-D_H) has every Walsh function


def test_verdicts_tell_ties_from_errors_and_high_ranks_from_low():
    shared = {"part": "errors", "m": 3, "L": 3, "all": True, "bayes": 0.4, "split": 0.4}
    kinds = {"constructed": (0.0, 0.7), "identity": (1.0, 1.0), "random pairs": (0.6, 0.9)}
    rows = [shared | {"seed": seed, "kind": kind, "above": above, "level": level}
            for seed in range(2) for kind, (above, level) in kinds.items()]  # fmt: skip
    rows.append({"part": "rank", "m": 3, "a": 1.0, "b": 1.0, "rank": 4, "control": 8})

    def words():
        report = lemmas.report(SETTINGS, pd.DataFrame(rows))
        return [rule.judge(evidence).word for rule, evidence in report.evidence]

    assert words() == ["holds", "does not hold", "holds"]
    rows[-1]["rank"] = 6
    assert words()[2] == "does not hold"
