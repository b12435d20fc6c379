"""The probe of trained and frozen embeddings: verdicts on rows with a known answer, the choice of learning rate."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from lcalens.core.errors import LcalensError
from probes.harness.work import reported_seeds
from probes.toy import embedding_training as probe

SETTINGS = replace(probe.EmbeddingTraining(), m=(4,), seeds=3)


def rows_of(gains: dict[int, float]) -> pd.DataFrame:
    """Frozen at .5, trained `gains` above it; a little noise over seeds, the same for both."""
    base: dict[str, Any] = {"m": 4, "steps": 1000, "lr": 0.01, "bayes": 0.95, "diverged": None, "loss": 1.0}
    parts = [(part, d, gain) for part in ("grid", "wide") for d, gain in gains.items()]
    return pd.DataFrame(
        base | {"part": part, "d": d, "W_E": kind, "seed": seed, "accuracy": 0.5 + more + seed / 1000}
        for part, d, gain in parts
        for kind, more in (("trained", gain), ("frozen", 0.0))
        for seed in range(3)
    )


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ({8: 0.2, 16: 0.1, 32: 0.0}, ["holds", "holds"]),
        ({8: 0.2, 16: 0.1, 32: 0.19}, ["holds", "does not hold"]),
        ({8: 0.04, 16: 0.1, 32: 0.0}, ["does not hold", "holds"]),
        ({8: 0.01, 16: 0.1, 32: 0.0}, ["does not hold", "does not hold"]),  # as little below V as above
    ],
)
def test_verdicts_follow_the_differences_below_and_above_the_vocabulary(gains, words):
    rows = rows_of(gains)
    longer = rows[rows["part"] == "grid"].assign(steps=4000)  # no loss has fallen: training had ended
    found = probe.report(SETTINGS, pd.concat([rows, longer]))
    assert [rule.judge(evidence).word for rule, evidence in found.evidence] == words * 2
    # Of one number of steps nobody knows whether it was enough, and what is not met has not failed.
    found = probe.report(SETTINGS, rows)
    told = [rule.judge(evidence).word for rule, evidence in found.evidence]
    assert told == ["holds" if word == "holds" else "depends on" for word in words] + words
    assert [one.setting for one in found.evidence[0][1]] == ["m = 4, d = 8, 1000 steps"]


def test_a_loss_that_still_falls_leaves_what_is_not_met_open():
    rows = rows_of({8: 0.2, 16: 0.1, 32: 0.19})
    longer = rows[rows["part"] == "grid"].assign(steps=4000)
    still = longer.assign(loss=longer["loss"].where(longer["W_E"] == "trained", 0.9 * longer["loss"]))
    above, evidence = probe.report(SETTINGS, pd.concat([rows, still])).evidence[1]
    assert (
        above.judge(evidence).told().startswith("depends on steps: from 0.19 at steps = 1000 (met in 0 of 1) to 0.19")
    )
    above, evidence = probe.report(SETTINGS, pd.concat([rows, longer])).evidence[1]
    assert above.judge(evidence).word == "does not hold"


def test_steps_decide_where_frozen_embeddings_come_up_with_more_of_them():
    few, many = rows_of({8: 0.3, 32: 0.2}), rows_of({8: 0.3, 32: 0.0}).assign(steps=4000, loss=0.9)
    found = probe.report(SETTINGS, pd.concat([few, many[many["part"] == "grid"]]))
    (below, at_below), (above, at_above) = found.evidence[:2]
    assert below.judge(at_below).word == "holds"
    assert above.judge(at_above).told().startswith("depends on steps: from 0.2 at steps = 1000 (met in 0 of 1)")
    assert "m = 4, d = 8, trained (by 10% from 1000 to 4000 steps)" in found.notes[1]


def test_a_diverged_run_leaves_the_claim_unmet_and_is_counted():
    rows = rows_of({8: 0.2, 16: 0.1, 32: 0.0})
    lost = (rows["part"] == "grid") & (rows["d"] == 8) & (rows["W_E"] == "trained") & (rows["seed"] == 1)
    rows.loc[lost, ["accuracy", "diverged"]] = [float("nan"), 40]
    found = probe.report(SETTINGS, rows)
    assert found.evidence[0][0].judge(found.evidence[0][1]).word == "does not hold"
    assert found.tables["Accuracy and loss by m, d and steps, at the learning rate chosen"]["diverged"].tolist() == [
        1,
        0,
        0,
    ]


def test_the_learning_rate_is_the_best_of_other_seeds_and_never_one_that_diverged():
    accuracy = {0.01: {100: 0.5, 101: 0.5}, 0.1: {100: 0.4, 101: 0.7}, 1.0: {100: 0.9, 101: float("nan")}}
    asked, history = [], pd.DataFrame({"loss": [1.0]})

    def train(_concepts, configs, seeds):
        configs = configs if isinstance(configs, list) else [configs]
        which = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
        asked.append(which)
        return [
            SimpleNamespace(
                seed=seed, accuracy=accuracy[one.lr].get(seed, 0.0), bayes=1.0, diverged=None, history=history
            )
            for one in configs
            for seed in which
        ]

    cell = {"part": "grid", "m": 4, "d": 8, "L": 8, "lr": (0.01, 0.1, 1.0), "steps": 1, "seeds": 2}
    work: Any = SimpleNamespace(train=train)
    rows = probe.measure(cell | {"choosing": (100, 101)}, work)
    assert {row["lr"] for row in rows} == {0.1}
    assert [row["seed"] for row in rows] == [0, 1, 0, 1]
    assert asked == [[100, 101], [0, 1]] * 2


def test_settings_say_what_they_cannot_use():
    reported = reported_seeds(SETTINGS.seeds)
    for seeds in ((reported[0],), (100, reported[-1]), tuple(reported)):
        with pytest.raises(LcalensError, match="choosing"):
            replace(SETTINGS, choosing=seeds)
    assert replace(SETTINGS, choosing=(0, reported[-1] + 1)).choosing == (0, reported[-1] + 1)
    with pytest.raises(LcalensError, match=r"choosing: the seeds 100 are among those reported, 20 to 114"):
        replace(SETTINGS, seeds=95)
