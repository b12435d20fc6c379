import pandas as pd
import pytest
import torch

from lcalens import LatentConcepts
from lcalens.lca.world import bayes
from probes.harness.work import Work
from probes.toy import context_length as probe

SETTINGS = probe.ContextLength(m=(4,), lengths=(4, 64), seeds=3, sweep_trained_at=(8,), sweep_steps=(1,))


def rows(longest, padded):
    """Accuracy 0.2 at L = 4 and `longest` at 64; `padded` with noise."""
    found = []
    for part in ("grid", "sweep"):
        for seed in range(3):
            for length, right, noisy in ((4, 0.2, 0.2), (64, longest, padded)):
                cell = {"part": part, "m": 4, "trained at": 8, "steps": 1, "seed": seed, "L": length, "diverged": False}
                shown = {probe._MODEL: right, probe._BAYES: 1.0, probe._NOISE: noisy, probe._BOUND: 0.0}
                found.append(cell | {name: abs(number - seed * 1e-4) for name, number in shown.items()})
    return pd.DataFrame(found)


@pytest.mark.parametrize(
    ("longest", "padded", "words"),
    [
        (0.97, 0.2, ["holds", "holds", "holds"]),
        (0.97, 0.9, ["holds", "does not hold", "does not hold"]),  # length alone does it
        (0.6, 0.2, ["holds", "holds", "does not hold"]),
        (0.4, 0.0, ["does not hold", "does not hold", "does not hold"]),
    ],
)
def test_verdicts_follow_the_rows(longest, padded, words):
    report = probe.report(SETTINGS, rows(longest, padded))
    assert [rule.judge(evidence).word for rule, evidence in report.evidence] == words


def test_padding_leaves_only_the_last_tokens_to_speak_of_the_concept():
    concepts = LatentConcepts(3, omega=1.0, neighborhood="nearest")
    tokens, y = probe.padded(concepts, 4000, 4, 20, torch.Generator().manual_seed(0))
    near = concepts.distance(tokens, y[:, None]) == 1
    assert tokens.shape == (4000, 20)
    assert near[:, -4:].all()
    assert near[:, :-4].double().mean(0) == pytest.approx([3 / 8] * 16, abs=0.04)


def test_measured_numbers_agree_with_a_plain_count(tmp_path):
    settings = probe.ContextLength(
        m=(3,), lengths=(2, 32), seeds=1, trained_at=8, steps=20, contexts=3000, sweep_trained_at=(8,), sweep_steps=(1,)
    )
    found = probe.measure(probe.grid(settings)[0], work := Work(tmp_path))
    concepts = LatentConcepts(3)
    model = work.train(concepts, probe.recipe(3, 8, 0.03, 20), 1)[0].model
    for row in found:
        tokens, y = concepts.sample(6000, row["L"], torch.Generator().manual_seed(9))
        with torch.no_grad():
            answers = model(tokens).logits[:, -1].argmax(-1)
        assert row["trained model"] == pytest.approx(float((answers == y).double().mean()), abs=0.04)
        assert row["1 - union bound"] <= row["Bayes"]
        assert row["Bayes"] == pytest.approx(bayes.bayes_accuracy(concepts, *concepts.count(tokens), y), abs=0.04)
