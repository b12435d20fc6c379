"""lcalens against short scripts that were written from the paper's definitions alone, without its code.

The two sides share no random number, so means over seeds are compared: a 99.9% Welch interval of their difference has
to hold 0, and the difference has to stay below `TOLERANCE` whatever the interval's width. What related words keep of a
hijack is asked of the same facts, so there the numbers are the same.
"""

import math
import runpy
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import related
from helpers.closeness import assert_near
from scipy import stats

from lcalens import LatentConcepts, TrainConfig, train
from lcalens.lca.geometry import spectral_gap
from lcalens.lca.model.closed_forms import (
    constructed_value,
    gram_value,
    identity_value,
    random_pair_value,
    theorem1_model,
    with_value,
)
from probes.harness.work import COUNTERFACT

SCRIPTS = Path(__file__).parent / "scripts"
NAMES = ("figure_3a", "value_swap", "theorem_1", "spectrum", "related_words")
TOLERANCE = 0.03  # at 300 steps and five seeds the difference of two means has a standard error of up to .008
M, LENGTH, STEPS, SEEDS = 5, 16, 300, range(5)
FROZEN = {"trained": {}, "identity": {"value": "identity", "train_value": False}}
SWAPS = ("trained", "constructed", "random pairs", "identity", "gram")


def script(name: str, function: str) -> Callable:
    return runpy.run_path(str(SCRIPTS / f"{name}.py"))[function]


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """The difference of the means and its 99.9% interval."""
    u, w = (torch.tensor(s, dtype=torch.float64) for s in (a, b))
    p, q = u.var().item() / len(u), w.var().item() / len(w)
    difference = (u.mean() - w.mean()).item()
    if p + q == 0:
        return difference, difference, difference
    freedom = (p + q) ** 2 / (p**2 / (len(u) - 1) + q**2 / (len(w) - 1))
    half = float(stats.t.ppf(0.9995, freedom)) * math.sqrt(p + q)
    return difference, difference - half, difference + half


def agree(a: Sequence[float], b: Sequence[float], tolerance: float = TOLERANCE) -> bool:
    difference, low, high = welch(a, b)
    return low <= 0 <= high and abs(difference) < tolerance


@cache
def figure_3a(value: str) -> list[float]:
    accuracy = script("figure_3a", "accuracy")
    return [accuracy(M, LENGTH, value, 100 + seed, steps=STEPS) for seed in SEEDS]


@cache
def runs(value: str):
    config = TrainConfig(LENGTH, 2**M // 2, 2**M // 2, lr=0.03, steps=STEPS, **FROZEN[value])
    return train(LatentConcepts(M), config, seeds=SEEDS, progress=False)


@cache
def swapped(m: int = M, length: int = LENGTH, d: int = 2**M // 2, steps: int = STEPS) -> dict[str, list[float]]:
    accuracies = script("value_swap", "accuracies")
    rows = [accuracies(m, length, 0.5, 1.0, 200 + seed, steps=steps, d=d) for seed in SEEDS]
    return {name: [row[name] for row in rows] for name in SWAPS}


@cache
def swapped_by_lcalens(
    m: int = M, length: int = LENGTH, d: int = 2**M // 2, steps: int = STEPS
) -> dict[str, list[float]]:
    concepts, found = LatentConcepts(m), {name: [] for name in SWAPS}
    for run in train(concepts, TrainConfig(length, d, min(d, 32), lr=0.03, steps=steps), seeds=SEEDS, progress=False):
        g = torch.Generator().manual_seed(300 + run.seed)
        embedding = run.model.state_dict()["embed.weight"]
        models = {
            "trained": run.model,
            "constructed": with_value(run.model, constructed_value(concepts, embedding)),
            "random pairs": with_value(run.model, random_pair_value(concepts, embedding, g)),
            "identity": with_value(run.model, identity_value(embedding)),
            "gram": with_value(run.model, gram_value(embedding)),
        }
        counts, last, target = concepts.sample_counts(16000, length, g)
        with torch.no_grad():
            for name, model in models.items():
                found[name].append((model.from_counts(counts, last).argmax(-1) == target).double().mean().item())
    return found


def theorem_1_by_lcalens(m: int, length: int, seed: int, contexts: int) -> float:
    """Accuracy of the closed form, ties shared out: L times its logits are whole numbers."""
    concepts = LatentConcepts(m, omega=1.0, beta=1.0)
    counts, last, target = concepts.sample_counts(contexts, length, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        logits = theorem1_model(concepts).from_counts(counts, last) * length
    assert torch.allclose(logits, logits.round(), atol=1e-2)
    best = logits.round() == logits.round().amax(-1, keepdim=True)
    return (best.gather(-1, target[:, None])[:, 0] / best.sum(-1)).double().mean().item()


@pytest.mark.parametrize("name", NAMES)
def test_script_is_short_and_independent(name):
    text = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert max(map(len, text.splitlines())) <= 120
    assert "lcalens" not in text.lower()
    assert {path.stem for path in SCRIPTS.glob("*.py")} == set(NAMES)


@pytest.mark.parametrize("value", FROZEN)
def test_figure_3a_agrees(value):
    ours = [run.accuracy for run in runs(value)]
    assert agree(ours, figure_3a(value)), welch(ours, figure_3a(value))


def test_figure_3a_tells_the_values_apart():
    for a, b in (("trained", "identity"), ("identity", "trained")):
        assert not agree([run.accuracy for run in runs(a)], figure_3a(b))


@pytest.mark.parametrize("name", SWAPS)
def test_value_swap_agrees(name):
    ours, theirs = swapped_by_lcalens()[name], swapped()[name]
    assert agree(ours, theirs), welch(ours, theirs)


def test_value_swap_tells_the_matrices_apart():
    ours, theirs = swapped_by_lcalens(), swapped()
    for a in ("trained", "constructed"):
        for b in ("random pairs", "identity", "gram"):
            assert not agree(ours[a], theirs[b])


@pytest.mark.parametrize(
    ("length", "d", "steps"),
    [
        (32, 2**M // 4, 150),
        (8, 2**M, 150),
        *(pytest.param(length, d, 1000, marks=pytest.mark.slow) for length in (64, 256) for d in (8, 16, 32)),
    ],
)
def test_value_swap_agrees_over_lengths_and_dimensions(length, d, steps):
    ours, theirs = swapped_by_lcalens(M, length, d, steps), swapped(M, length, d, steps)
    for name in SWAPS:
        assert agree(ours[name], theirs[name]), (name, welch(ours[name], theirs[name]))


@cache
def gaps_after_m(m: int, d: int, length: int, steps: int) -> list[float]:
    """The ratio after the m-th singular value, by the script."""
    ratios = script("spectrum", "ratios")
    return [ratios(m, d, length, 600 + seed, steps=steps)[m - 1] for seed in range(4)]


@cache
def gaps_after_m_by_lcalens(m: int, d: int, length: int, steps: int) -> list[float]:
    concepts = LatentConcepts(m)
    found = train(concepts, TrainConfig(length, d, min(d, 32), lr=0.03, steps=steps), seeds=SEEDS, progress=False)
    return [spectral_gap(concepts, run.model.embed.weight.detach()).after_m for run in found]


@pytest.mark.parametrize(
    ("m", "d", "length", "steps"),
    [
        (6, 24, 16, 200),
        *(pytest.param(m, d, 64, 1000, marks=pytest.mark.slow) for m in (7, 8) for d in (32, 64)),
    ],
)
def test_spectrum_agrees(m, d, length, steps):
    ours, theirs = gaps_after_m_by_lcalens(m, d, length, steps), gaps_after_m(m, d, length, steps)
    assert agree(ours, theirs, tolerance=0.1), welch(ours, theirs)  # single runs differ by up to .1


def test_spectrum_tells_dimensions_apart():
    gaussian = [spectral_gap(LatentConcepts(6), torch.randn(64, 24)).after_m for _ in SEEDS]
    assert not agree(gaussian, gaps_after_m(6, 24, 16, 200), tolerance=0.1)


@pytest.mark.parametrize(("m", "length"), [(2, 8), (2, 64), (4, 8), (4, 16), (6, 16), (6, 64), (8, 32)])
def test_theorem_1_agrees(m, length):
    accuracy = script("theorem_1", "accuracy")
    theirs = [accuracy(m, length, 400 + seed, contexts=2000) for seed in SEEDS]
    ours = [theorem_1_by_lcalens(m, length, 500 + seed, contexts=2000) for seed in SEEDS]
    assert agree(ours, theirs), welch(ours, theirs)


def test_theorem_1_tells_lengths_and_ties_apart():
    accuracy = script("theorem_1", "accuracy")
    theirs = [accuracy(4, 16, 400 + seed, contexts=8000) for seed in SEEDS]
    assert not agree([theorem_1_by_lcalens(4, 14, 500 + seed, contexts=8000) for seed in SEEDS], theirs)
    assert 0.45 < accuracy(2, 64, 0, contexts=2000) < 0.55  # y and its complement tie exactly


@pytest.mark.real
@pytest.mark.parametrize(
    ("relation", "facts"),
    [(None, 6), *(pytest.param(relation, 100, marks=pytest.mark.slow) for relation in (None, "P1412"))],
)
def test_what_related_words_keep_is_the_probes(real_model, tmp_path, monkeypatch, relation, facts):
    """The same facts and sentences, so the shares are equal; against no sentence they are others, and it shows."""
    if facts < 100:  # six of the shipped sample have every stratum, six of another file need not
        monkeypatch.delenv(COUNTERFACT, raising=False)
    model = real_model(related.MODEL)
    rows = related.script_rows(model, relation, facts)
    work = SimpleNamespace(model=lambda _: model, parts=tmp_path)
    ours = related.probe_shares(work, relation, facts)
    theirs = script("related_words", "shares")(rows, related.model_file())
    strata = {"name", "associate"} if relation else {"name", "form", "associate"}
    assert ours.keys() == theirs.keys() == strata
    for stratum, found in ours.items():
        wanted, other = theirs[stratum][related.START], theirs[stratum]["no sentence"]
        assert found["facts"] == theirs[stratum]["facts"]
        assert wanted["hijack"] > 1  # nats
        for word in ("related", "unrelated"):
            assert_near(found[word], wanted[word], effect=1.0, share=related.TOLERANCE)
        assert max(abs(found[word] - other[word]) for word in ("related", "unrelated")) > 20 * related.TOLERANCE
