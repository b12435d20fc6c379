import pandas as pd
import pytest
import torch

from lcalens import LatentConcepts
from lcalens.lca.model.closed_forms import constructed_value, with_value
from probes.harness.work import FIRST_SEED, Work
from probes.toy import toy_hijack as probe

SMALL = probe.ToyHijack(
    m=(3,), lengths=(16,), seeds=1, steps=40, contexts=1000, aware=50, shares=(0.5,), sweep_lr=(0.03,), sweep_steps=(1,)
)


def test_what_is_put_in_comes_from_its_source():
    concepts, generator = LatentConcepts(4, omega=1.0, neighborhood="nearest"), torch.Generator().manual_seed(0)
    tokens, y = concepts.sample(2000, 40, generator)
    other = y ^ torch.randint(1, 16, y.shape, generator=generator)
    fresh = probe.redrawn(concepts, tokens, y, other, generator)
    for source, drawn in fresh.items():
        assert torch.equal(drawn[:, -1], tokens[:, -1]), source
    assert (concepts.distance(fresh["y~"][:, :-1], other[:, None]) == 1).all()
    away = concepts.distance(fresh["one bit from y~"][:, :-1], other[:, None])
    assert set(away.unique().tolist()) == {0, 2}  # a neighbour of a neighbour
    # Were it y that speaks there, all its tokens were one bit from y.
    assert not (concepts.distance(fresh["one bit from y~"][:, :-1], y[:, None]) == 1).all(1).any()
    counted = torch.bincount((fresh["noise"][:, :-1] ^ y[:, None]).flatten(), minlength=16) / (2000 * 39)
    assert counted.tolist() == pytest.approx([1 / 16] * 16, abs=0.01)


def test_contexts_are_hijacked_and_lengthened_as_they_say():
    concepts, cell = LatentConcepts(3, omega=1.0, neighborhood="nearest"), probe.grid(SMALL)[0]
    found = {
        (curve, x, source): (tokens, y, other)
        for curve, x, source, tokens, y, other in probe.hijacked(concepts, cell, torch.Generator().manual_seed(1))
    }
    clean, y, _ = found["share", 0.0, "y~"]
    assert (concepts.distance(clean, y[:, None]) == 1).all()
    half, changed = found["share", 0.5, "y~"][0], found["share", 0.7, "y~"][0]
    moved = ((half != clean).double().mean() / (changed != clean).double().mean()).item()
    assert moved == pytest.approx(5 / 7, abs=0.02)  # an equal part of redrawn tokens is the same by chance
    for source, speaks in (("y", 1), ("y~", 2)):
        longer = found["added", 2.0, source]
        assert longer[0].shape[1] == 16 * 3
        assert (concepts.distance(longer[0][:, :32], longer[speaks][:, None]) == 1).all()
        assert torch.equal(longer[0][:, 32:], half)
    for distance in (1, 2, 3):
        _, y, other = found["distance", distance, "y~"]
        assert (concepts.distance(y, other) == distance).all()


def test_answers_are_a_plain_count_on_the_same_contexts(tmp_path):
    cell, work = probe.grid(SMALL)[0], Work(tmp_path)
    names = ("curve", "x", "source", "reader")
    found = {tuple(row[name] for name in names): row for row in probe.measure(cell, work)}
    concepts = LatentConcepts(3)
    trained = work.train(concepts, probe.recipe(3, 16, 0.03, 40), 1)[0].model
    models = {"trained": trained, "constructed": with_value(trained, constructed_value(concepts, trained.embed.weight))}
    for curve, x, source, tokens, y, other in probe.hijacked(concepts, cell, torch.Generator().manual_seed(FIRST_SEED)):
        for name, model in models.items():
            with torch.no_grad():
                answers = model(tokens, logits_to_keep=1).logits[:, -1].argmax(-1)
            row = found[curve, x, source, name]
            assert row["y"] == pytest.approx(float((answers == y).double().mean()), abs=2e-3)
            assert row["y~"] == pytest.approx(float((answers == other).double().mean()), abs=2e-3)


def rows(fooled, beside, noise, returned, by_noise):
    """The share answered y~ at 0.7, whoever speaks there; and accuracy once 2 L tokens are added."""
    found = []
    for part in ("grid", "sweep"):
        for seed in range(3):
            cell = {"part": part, "m": 6, "L": 64, "lr": 0.03, "steps": 1, "seed": seed}
            for x, (y, false) in {0.0: (0.9, (0.0,) * 3), 0.7: (0.2, (fooled, beside, noise))}.items():
                for source, one in zip(probe._SOURCES, false, strict=True):
                    found.append(cell | {"curve": "share", "x": x, "source": source, "y": y, "y~": one})
            for x, right in {0.0: (0.4,) * 3, 2.0: (returned, by_noise, 0.1)}.items():
                for source, one in zip(("y", "noise", "y~"), right, strict=True):
                    found.append(cell | {"curve": "added", "x": x, "source": source, "y": one, "y~": 0.0})
            found.append(cell | {"curve": "distance", "x": 1, "source": "y~", "y": 0.5, "y~": 0.5})
    frame = pd.DataFrame(found).assign(reader="trained")
    wobble = frame["x"] * frame["seed"] * 1e-4
    return frame.assign(**{"y": frame["y"] + wobble, "y~": frame["y~"] + wobble})


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.7, 0.1, 0.1, 0.9, 0.4), ["holds", "holds", "holds"]),
        # A neighbour, or any token, does as well.
        ((0.7, 0.6, 0.1, 0.9, 0.85), ["holds", "does not hold", "does not hold"]),
        ((0.7, 0.1, 0.6, 0.45, 0.1), ["holds", "does not hold", "does not hold"]),
        ((0.2, 0.0, 0.0, 0.9, 0.4), ["holds", "does not hold", "holds"]),
    ],
)
def test_verdicts_follow_the_rows(numbers, words):
    report = probe.report(probe.ToyHijack(m=(6,), lengths=(64,), seeds=3), rows(*numbers))
    assert [rule.judge(evidence).word for rule, evidence in report.evidence] == words
