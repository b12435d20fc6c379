"""The examples' probe, held against Hugging Face's own forward passes and against rows made by hand."""

import numpy as np
import pandas as pd
import pytest
from helpers import standins

from lcalens.core.estimates import matched, share
from probes.harness.work import Work
from probes.real import hijack_examples as probe


def test_rows_are_the_plain_models_log_probabilities(standin, tmp_path):
    made = standin("gpt2")
    cell = {"model": str(made.folder), "wording": "negation", "copies": 2, "examples": 1}
    rows = probe.measure(cell, Work(tmp_path))
    assert [row["sentence"] for row in rows] == [
        "The Eiffel Tower is not in Chicago.",
        "The Eiffel Tower is not a piano.",
        "The Eiffel Tower is not unknown.",
    ]
    for row in rows:
        texts = {"clean": row["prompt"], "hijacked": f"{row['sentence']} {row['sentence']} {row['prompt']}"}
        for context, text in texts.items():
            # lcalens puts a BOS first, which GPT-2's tokenizer does not do of its own accord.
            prompt = made.tokenizer(text).input_ids
            for kind in ("true", "false"):
                ids = prompt + made.tokenizer(" " + row[kind]).input_ids
                expected, _ = standins.brute_force(made.plain, tuple(ids), len(prompt), len(ids))
                assert row[f"{context}_{kind}"] == pytest.approx(expected, abs=1e-3)


def _rows(push, flip):
    """Four examples whose log odds the sentence raises by `push`, its controls by nothing; with `flip` past 0."""
    rows = []
    for wording in ("negation", "do not think"):
        for index in range(4):
            clean = -push / 2 if flip else -100 * push
            for about in ("the false answer", "something unrelated", "nothing"):
                moved = clean + (push + 0.1 * index if about == "the false answer" else 0)
                rows.append(
                    {"model": "m", "wording": wording, "copies": 1, "examples": 4, "prompt": f"q{index}", "true": "a"}
                    | {"subject": f"s{index}"}
                    | {"false": "b", "about": about, "sentence": "s", "paper": False, "clean_says": "a"}
                    | {"hijacked_says": "b", "clean_true": 0.0, "clean_false": clean}
                    | {"hijacked_true": 0.0, "hijacked_false": moved}
                )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("push", "flip", "words"),
    [
        (5.0, False, ["holds"]),
        (0.2, True, ["does not hold"]),
        (0.0, False, ["does not hold"]),
    ],
)
def test_verdicts_on_rows_made_by_hand(push, flip, words):
    report = probe.report(probe.HijackExamples(copies=(1,), examples=4), _rows(push, flip))
    assert [rule.judge(evidence).word for rule, evidence in report.evidence] == words
    assert report.evidence[0][1][0].effect.mean == pytest.approx(push + 0.15 if push else 0.15)


def test_an_answer_that_flips_in_every_example_is_in_the_sweep():
    many = pd.concat([_rows(5.0, True).assign(prompt=lambda rows, i=i: rows["prompt"] + str(i)) for i in range(3)])
    report = probe.report(probe.HijackExamples(copies=(1,), examples=12), many)
    sweep = report.tables["The sweep: change in log odds (nats) by wording and copies, mean over examples"]
    assert sweep["the false answer likelier"].iloc[0].startswith("12 of 12")
    assert [one.figure for one in report.paper] == ["Figure 1"]


def test_agresti_and_mins_interval():
    # By hand for 8 gains of 8: (8.5 - 0.5) / 10 = 0.8; sqrt((0.9 - 0.64) / 10) = 0.16125; 1.96 of it is 0.31604.
    assert np.allclose(matched([0] * 8, [1] * 8), (1, 0.8 - 0.31604, 1), atol=1e-4)
    # 3 gains and 1 loss of 10: (3.5 - 1.5) / 12 = 1/6; sqrt((5/12 - 1/36) / 12) = 0.18002.
    before, after = [0] * 3 + [1] + [0] * 6, [1] * 3 + [0] * 7
    assert np.allclose(matched(before, after), (0.2, 1 / 6 - 0.35284, 1 / 6 + 0.35284), atol=1e-4)
    assert matched([0, 0, 0], [0, 0, 0]).low < 0 < matched([0, 0, 0], [0, 0, 0]).high


def test_wilsons_interval_of_a_share():
    # 5 of 10: the centre is 0.5, the half width 1.96 sqrt(0.025 + 0.00960) / (1 + 0.38416) = ... = 0.2634.
    assert np.allclose(share([1, 0] * 5), (0.5, 0.2366, 0.7634), atol=1e-4)
