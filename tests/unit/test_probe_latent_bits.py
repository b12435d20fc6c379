import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from lcalens import LatentConcepts
from probes.harness.work import FIRST_SEED, Work
from probes.toy import latent_bits


def test_a_probe_reads_what_is_linear_and_nothing_else():
    drawn = np.random.default_rng(0)
    x = drawn.normal(size=(400, 4)) * (1, 1e4, 1, 0) + (0, 5e4, 0, 3)  # a large scale, and a feature that is constant
    linear, parity = x[:, 1] > 5e4, x[:, 0] * x[:, 2] > 0
    assert latent_bits.probe((x[:200], linear[:200]), (x[200:], linear[200:]), 1.0) > 0.95
    assert latent_bits.probe((x[:200], parity[:200]), (x[200:], parity[200:]), 1.0) < 0.65


def test_a_probe_that_does_not_converge_is_no_number(monkeypatch):
    real = latent_bits.LogisticRegression
    monkeypatch.setattr(latent_bits, "LogisticRegression", lambda **options: real(**options | {"max_iter": 1}))
    x = np.random.default_rng(0).normal(size=(50, 5))
    with pytest.raises(ConvergenceWarning):
        latent_bits.probe((x, x.sum(1) > 0), (x, x.sum(1) > 0), 100.0)


def test_bayes_of_a_bit_is_the_likeliest_value_of_that_bit_by_enumeration(tmp_path):
    cell = {"part": "grid", "m": 3, "d": 4, "steps": 1, "C": 1.0, "L": 4, "lr": 0.03, "splits": 2, "contexts": 400}
    rows = latent_bits.measure(cell | {"seeds": 1}, Work(tmp_path))
    (found,) = [row["accuracy"] for row in rows if row["kind"] == "Bayes"]
    concepts, right = LatentConcepts(3), 0
    drawn = concepts.sample_counts(800, 4, torch.Generator().manual_seed(1000 + FIRST_SEED))
    p, pi = ({o: float(table[o].exp()) for o in range(8)} for table in (concepts.offset_log_p, concepts.offset_log_pi))
    contexts = list(zip(drawn.counts.tolist(), drawn.last.tolist(), drawn.target.tolist(), strict=True))
    for counts, last, y in contexts[400:]:  # the half that probes are tested on
        likely = []
        for one in range(8):
            product = pi[last ^ one]
            for token, count in enumerate(counts):
                product *= p[token ^ one] ** (count - (token == last))
            likely.append(product)
        for bit in range(3):
            set_, clear = (sum(at for one, at in enumerate(likely) if (one >> bit & 1) == value) for value in (1, 0))
            right += (set_ > clear) == bool(y >> bit & 1)
    assert found == pytest.approx(right / 1200)


def test_verdicts_need_more_than_what_is_there_before_training():
    settings = latent_bits.LatentBits(m=(5,), seeds=3, sweep_d=(4,), sweep_penalty=(1.0,), sweep_steps=(5,))

    def words(before):
        rows = []
        for part, source, seed in itertools.product(("grid", "penalty", "steps"), ("W_E", "h(x)"), range(3)):
            for kind, accuracy in (("before training", before), ("trained", 0.95)):
                row = {"part": part, "from": source, "seed": seed, "kind": kind, "accuracy": accuracy, "shuffled": 0.5}
                rows.append(row | {"m": 5, "d": 4, "C": 1.0, "steps": 5, "diverged": None})
        report = latent_bits.report(settings, pd.DataFrame(rows))
        return [rule.judge(evidence).word for rule, evidence in report.evidence]

    assert words(0.5) == ["holds", "holds"]
    assert words(0.85) == ["does not hold", "holds"]
    assert words(0.92) == ["does not hold", "does not hold"]
