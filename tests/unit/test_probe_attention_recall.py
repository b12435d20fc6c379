"""The probe of attention against recall in the toy: its numbers by hand, and what its rule makes of them."""

import numpy as np
import pandas as pd
import pytest
import torch

from lcalens import LatentConcepts, contrast_concepts
from probes.harness.toy import recipe
from probes.harness.work import Work
from probes.toy import attention_recall

CELL = {"m": 4, "neighborhood": "all", "L": 12, "lr": 0.03, "steps": 60, "contexts": 10, "share": 0.5, "distance": 2,
        "seeds": 2}  # fmt: skip


RUNS = (
    ("clean", "clean", "clean"),
    ("hijacked", "hijacked", "hijacked"),
    ("values", "hijacked", "clean"),
    ("patterns", "clean", "hijacked"),
)


def test_recovery_and_split_are_those_of_the_formulas(tmp_path):
    """The toy's logits are W_E W_V sum_t a_t e_t: exchanged by hand, a or the sum's e alone."""
    work = Work(tmp_path)
    rows = pd.DataFrame(attention_recall.measure(CELL, work))
    concepts = LatentConcepts(4)
    runs = work.train(concepts, recipe(4, 12, 0.03, 60), 2)
    for control in attention_recall.CONTROLS:
        contrast = contrast_concepts(
            concepts, limit=10, length=12, share=0.5, distance=2, control=control,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        for run in runs:
            model = run.model.double()
            e = model.embed.weight.detach()
            found = {"clean": 0.0, "hijacked": 0.0, "values": 0.0, "patterns": 0.0}
            for index in range(len(contrast)):
                tokens = {
                    "clean": torch.tensor(contrast.clean[index]),
                    "hijacked": torch.tensor(contrast.hijacked[index]),
                }
                pattern = {
                    name: (model.attn.k(e[own]) @ model.attn.q(e[own[-1]]) * model.attn.scale).softmax(0)
                    for name, own in tokens.items()
                }
                pair = contrast.true[index][0], contrast.false[index][0]
                for name, looks, says in RUNS:
                    logits = (e @ model.attn.v(pattern[looks] @ e[tokens[says]])).detach()
                    found[name] += float(logits[pair[1]] - logits[pair[0]])
            change = found["hijacked"] - found["clean"]
            row = rows[(rows["control"] == control) & (rows["seed"] == run.seed)].iloc[0]
            for name in ("values", "patterns"):
                assert row[name] == pytest.approx((found["hijacked"] - found[name]) / change, rel=1e-3, abs=1e-3)
            assert row["change"] == pytest.approx(change / len(contrast), rel=1e-4)
            assert row["attention"] + row["recall"] == pytest.approx(row["change"], rel=1e-4)
            assert max(abs(row["missed by patching"]), abs(row["missed by direct"])) < 1e-3


def rows_with(values, patterns):
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.01, 5)
    return pd.DataFrame([
        {"m": 6, "neighborhood": "all", "control": "same", "L": 64, "seed": seed, "values": values + noise[seed],
         "patterns": patterns - noise[seed], "missed by patching": 0.0, "missed by direct": 0.0, "attention": 0.1,
         "recall": 2.0, "change": 2.1}
        for seed in range(5)
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("values", "patterns", "share"), [(0.9, 0.1, "1 of 1"), (0.4, 0.1, "0 of 1"), (0.9, 0.8, "0 of 1")]
)
def test_the_rule_needs_values_that_give_back_half_and_more_than_patterns(values, patterns, share):
    told = attention_recall.report(attention_recall.AttentionRecall(), rows_with(values, patterns))
    ((rule, evidence),) = told.evidence
    assert rule.judge(evidence).share == share
    assert len(told.figures) == 1
    assert list(told.tables["The metric's change, split, in logits"]["change"]) == ["2.1"]
