"""The probe of recall and memories: the toy's rows, and a report whose numbers are known beforehand."""

import numpy as np
import pandas as pd
import pytest

from lcalens.core.results import Result
from probes.harness.work import Work
from probes.real import recall


def fact_rows(left=2.0, kept=0.8, held=0.5):
    """Two heads that lead and one that does not, on 60 facts of six relations; and memories in the second's place."""
    clusters, noise = [str(at % 6) for at in range(60)], np.random.default_rng(0).normal(0, 0.01, 60)
    rows = [
        {
            "part": "recall",
            "model": "smollm2",
            "head": head,
            "leads": leads,
            "cluster": clusters,
            "left": value + noise,
            "related_auc": 0.9 + 0 * noise,
            "own_rank": 1 + 0 * noise,
        }
        for head, leads, value in (("L1H0", True, left - 0.5), ("L1H1", True, left + 0.5), ("L1H2", False, 0.1))
    ]
    judged = np.arange(60) % 10 != 0  # those that are not judged would spoil every mean
    whole = 4 + noise

    def moved(share):
        return np.where(judged, share * (1 + noise), 1e6)

    rows.append({"part": "memory", "model": "smollm2", "set": "ends", "head": "L1H1", "of": 2, "cluster": clusters,
                 "judged": judged, "whole": whole})  # fmt: skip
    rows += [{"part": "memory", "model": "smollm2", "set": name, "held": moved(low), "every": moved(high)}
             for name, low, high in (("circuit", 1, 1), ("nothing", 0, 0), ("centred", held, kept),
                                     ("centred, shuffled", 0, 0.1))]  # fmt: skip
    return rows


def toy_rows():
    numbers = {"left": 3.0, "random": 0.0, "centred, held": 0.7, "centred, all": 1.0,
               "centred, shuffled, held": 0.0, "centred, shuffled, all": 0.0}  # fmt: skip
    return [{"part": "toy", "m": 6, "seed": seed} | {name: value + seed / 100 for name, value in numbers.items()}
            for seed in range(3)]  # fmt: skip


def test_effects_and_controls_are_what_the_rows_say():
    told = recall.report(recall.PRESETS["standard"], pd.DataFrame(fact_rows() + toy_rows()))
    real = [evidence[0] for _, evidence in told.evidence]
    assert [round(one.effect.mean, 2) for one in real] == [2.0, 0.8, 0.5]
    assert [round(one.control.mean, 2) for one in real] == [0.1, 0.1, 0.0]
    assert [round(one.excess.mean, 2) for one in real] == [1.9, 0.7, 0.5]
    assert all(one.counted for one in real)
    toy = [evidence[1] for _, evidence in told.evidence]
    assert not any(one.counted for one in toy)
    assert [round(one.effect.mean, 2) for one in toy] == [3.01, 1.01, 0.71]
    verdicts = [rule.judge(evidence) for rule, evidence in told.evidence]
    assert all(verdict.told().startswith("holds") for verdict in verdicts)
    table = told.tables["Memories in the place of the head that reads most of the word"]
    assert table["it carries of the hijack"].str.startswith("0.25 [").all()


def test_what_a_head_reads_leaves_out_facts_that_are_not_judged():
    values = {"hijack": np.zeros((3, 2)), "hijack_all": np.array([[2.0, 0.5], [np.nan, np.nan], [1.0, 0.5]])}
    found = Result(
        kind="memory", axes={"example": (0, 1, 2), "memory": ("circuit", "nothing")}, values=values,
        examples=pd.DataFrame({"judged": [True, False, True]}),
    )  # fmt: skip
    assert recall._read(found) == 1.0


def test_a_memory_that_does_nothing_does_not_hold():
    told = recall.report(recall.PRESETS["standard"], pd.DataFrame(fact_rows(left=0.2, kept=0.1, held=0.0) + toy_rows()))
    assert all(rule.judge(evidence).told().startswith("does not hold") for rule, evidence in told.evidence)


def test_the_toys_head_recalls_neighbours_and_its_memory_stands_in_for_it(tmp_path):
    cell = {"part": "toy", "m": 4, "length": 32, "steps": 300, "seeds": 2, "contexts": 60, "draws": 4}
    rows = pd.DataFrame(recall.measure(cell, Work(tmp_path)))
    assert (rows["left"] > rows["random"] + 1).all()
    assert (rows["centred, all"] > 0.8).all()
    assert (rows["centred, shuffled, all"].abs() < 0.3).all()


@pytest.mark.slow
@pytest.mark.real
def test_a_real_model_is_measured(tmp_path):
    cells = [cell for cell in recall.grid(recall.PRESETS["quick"]) if cell["part"] != "toy"]
    rows = pd.DataFrame([row for cell in cells for row in recall.measure(cell, Work(tmp_path))])
    leads = rows[rows["part"] == "recall"]["leads"].astype(bool)
    assert leads.sum() == 13
    kept = rows[rows["part"] == "memory"].set_index("set")
    every = np.asarray(kept.loc["nothing", "every"], dtype=float)  # NaN where a fact's word is not one token
    assert np.isfinite(every).mean() > 0.5
    assert np.allclose(every[np.isfinite(every)], 0)
