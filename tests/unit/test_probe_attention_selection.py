import numpy as np
import pandas as pd
import pytest
import torch

from lcalens import LatentConcepts
from lcalens.lca import LCAConfig, LCAForCausalLM
from lcalens.lca.attention import attention_mass
from probes.harness.work import Work
from probes.toy import attention_selection as probe


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = LCAForCausalLM(LCAConfig(m=4, d_model=8, d_head=4))
    for projection in (made.attn.q, made.attn.k):
        torch.nn.init.normal_(projection.weight, std=2.0)
    return made


def test_mass_is_what_the_full_pattern_pays_to_the_group(model):
    tokens, _ = LatentConcepts(4).sample(50, 12, torch.Generator().manual_seed(1))
    with torch.no_grad():
        pattern = model(tokens, output_attentions=True).attentions[0][:, 0, -1]
    counts, last = LatentConcepts(4).count(tokens)
    for mask in (0b1000, 0b0110):
        alike = (tokens & mask) == (tokens[:, -1:] & mask)
        paid, uniform = probe.mass(model, counts, last, mask)
        assert paid == pytest.approx(float((pattern * alike).sum(1).mean()), abs=1e-5)
        assert uniform == pytest.approx(float(alike.double().mean()), abs=1e-5)


def test_mass_of_the_first_bits_is_that_of_the_cluster(model):
    concepts = LatentConcepts(4, neighborhood="cluster", cluster_bits=2)
    drawn = concepts.sample_counts(64, 16, torch.Generator().manual_seed(2))
    assert probe.mass(model, drawn.counts, drawn.last, 0b1100) == pytest.approx(
        attention_mass(concepts, model, *drawn).means, abs=1e-5
    )


def test_forced_uniform_pays_what_uniform_attention_pays(model):
    drawn = LatentConcepts(4).sample_counts(64, 16, torch.Generator().manual_seed(3))
    paid, uniform = probe.mass(probe.forced_uniform(model), drawn.counts, drawn.last, 0b1000)
    assert paid == pytest.approx(uniform, abs=1e-5)
    assert probe.mass(model, drawn.counts, drawn.last, 0b1000)[0] != pytest.approx(uniform, abs=1e-3)


def rows(mass, other, without, without_all):
    found = []
    for part, bits in (("grid", 1), ("grid", 0), ("sweep", 1)):
        for seed in range(3):
            numbers = dict.fromkeys((*probe._EXCESS.values(), *probe._ACCURACY, "paid", "uniform"), 0.9)
            numbers |= {"mass": mass, "other bits": other, "before training": 0.0}
            numbers |= {"trained": 0.9, "K = Q = 0": without if bits else without_all}
            cell = {"part": part, "m": 5, "bits": bits, "lr": 0.03, "steps": 1, "seed": seed, "diverged": 0}
            pattern = np.full((4, 4), 0.25).tolist() if seed == 0 else None
            found.append(cell | {name: one + seed * 1e-4 for name, one in numbers.items()} | {"pattern": pattern})
    return pd.DataFrame(found)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.3, 0.0, 0.8, 0.9), ["holds", "holds", "holds"]),
        ((0.3, 0.25, 0.8, 0.9), ["holds", "does not hold", "holds"]),  # tokens alike in any bits
        ((0.05, 0.0, 0.8, 0.8), ["does not hold", "does not hold", "does not hold"]),  # attention helps everywhere
        ((0.3, 0.0, 0.89, 0.9), ["holds", "holds", "does not hold"]),
    ],
)
def test_verdicts_follow_the_rows(numbers, words):
    settings = probe.AttentionSelection(m=(5,), bits=(1,), seeds=3, sweep_lr=(0.03,), sweep_steps=(1,))
    report = probe.report(settings, rows(*numbers))
    assert [rule.judge(evidence).word for rule, evidence in report.evidence] == words


def test_measured_accuracy_is_a_plain_count_on_fresh_contexts(tmp_path):
    settings = probe.AttentionSelection(m=(4,), bits=(1,), length=16, steps=40, contexts=4000, seeds=1)
    (row,) = probe.measure(probe.grid(settings)[0], work := Work(tmp_path))
    concepts = LatentConcepts(4, neighborhood="cluster", cluster_bits=1)
    trained = work.train(concepts, probe.recipe(4, 16, 0.03, 40), 1)[0].model
    tokens, y = concepts.sample(8000, 16, torch.Generator().manual_seed(7))
    with torch.no_grad():
        answers = trained(tokens).logits[:, -1].argmax(-1)
        # Tokens of the cluster alone, all alike: their mean embedding is what is recalled from.
        inside = ((tokens ^ y[:, None]) < 8).double()[..., None]
        looked = (trained.embed(tokens) * inside).sum(1) / inside.sum(1)
        alone = (trained.attn.v(looked.float()) @ trained.embed.weight.T).argmax(-1)
    assert row["trained"] == pytest.approx(float((answers == y).double().mean()), abs=0.03)
    assert row["cluster alone"] == pytest.approx(float((alone == y).double().mean()), abs=0.03)
    assert len(row["pattern"]) == 16
