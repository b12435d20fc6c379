"""The toy's defence against sums by hand, against `knockout`, and against the contexts that it was judged on."""

import math

import numpy as np
import pytest
import torch
from helpers.closeness import assert_near

from lcalens.core.errors import LcalensError
from lcalens.core.results import Result
from lcalens.lca import LatentConcepts, LCAConfig, LCAForCausalLM, TrainConfig, defences, lca_bridge, train
from lcalens.lca.contrasts import contrast_concepts
from lcalens.lca.defences import evaluate_toy_defence
from lcalens.lca.marks import EVIDENCE, defended, fit_detector, position_evidence
from lcalens.lca.world import bayes
from lcalens.mechanism.knockout import knockout

WORLD, LENGTH = LatentConcepts(4), 24


@pytest.fixture(scope="module")
def runs():
    return train(WORLD, TrainConfig(context_length=LENGTH, d_model=12, d_head=6, steps=150), seeds=range(2),
                 progress=False)  # fmt: skip


@pytest.fixture(scope="module")
def found(runs):
    return evaluate_toy_defence(WORLD, runs, length=LENGTH, contexts=300, progress=False)


@pytest.fixture
def drawn():
    torch.manual_seed(3)
    model = LCAForCausalLM(LCAConfig(m=4, d_model=6, d_head=3)).double()
    tokens, _ = WORLD.sample(5, 7, torch.Generator().manual_seed(1))
    return model, tokens, torch.rand(5, 6, generator=torch.Generator().manual_seed(2)) < 0.4


def by_hand(model, row, keep):
    """W_V times the average of the embeddings that are kept, by the softmax of the last token's scores over them."""
    embedded = model.embed.weight.detach()
    q, k, v = (part.weight.detach() for part in (model.attn.q, model.attn.k, model.attn.v))
    query = q @ embedded[row[-1]]
    scores = [float(query @ (k @ embedded[t])) / math.sqrt(model.config.d_head) for t in row]
    weights = [math.exp(score) if kept else 0.0 for score, kept in zip(scores, keep, strict=True)]
    paid = [weight / sum(weights) for weight in weights]
    return scores, paid, sum(share * (v @ embedded[t]) for share, t in zip(paid, row, strict=True))


def test_what_is_not_seen_is_left_out_of_the_average(drawn):
    model, tokens, marked = drawn
    logits = defended(WORLD, model, tokens, marked)
    moved = logits - defended(WORLD, model, tokens, torch.zeros_like(marked))
    for row, some, cut in zip(tokens.tolist(), logits, marked.tolist(), strict=True):
        _, _, recalled = by_hand(model, row, [not one for one in cut] + [True])
        assert_near(some, model.embed.weight.detach() @ recalled, effect=moved)


def test_the_evidence_is_what_its_names_say(drawn):
    model, tokens, _ = drawn
    evidence = position_evidence(WORLD, model, tokens)
    assert evidence.shape == (5, 6, len(EVIDENCE))
    embedded, v = model.embed.weight.detach(), model.attn.v.weight.detach()
    for row, some in zip(tokens.tolist(), evidence, strict=True):
        scores, paid, recalled = by_hand(model, row, [True] * len(row))
        belief = (embedded @ recalled).softmax(-1)
        last = embedded[row[-1]]
        anchored = (embedded @ recalled + embedded @ (v @ last)).softmax(-1)
        for position, token in enumerate(row[:-1]):
            value, others = v @ embedded[token], [i for i in range(len(row)) if i != position]
            weight = sum(paid[i] for i in others)
            without = sum(paid[i] / weight * (v @ embedded[row[i]]) for i in others)
            expected = [
                scores[position], value @ without, value @ recalled, value @ last, embedded[token] @ last,
                value @ (v @ last), belief @ (embedded @ value), anchored @ (embedded @ value),
            ]  # fmt: skip
            for one, hand, spread in zip(some[position], expected, some.std(0), strict=True):
                assert_near(one, float(hand), effect=spread)


def test_knowing_the_redrawn_positions_is_the_knockout_of_their_span(runs):
    contrast = contrast_concepts(WORLD, limit=12, length=LENGTH, share=0.4, seed=0)
    model = runs[0].model
    told = knockout(lca_bridge(model), contrast, span="redrawn", positions="last", progress=False)
    tokens = torch.tensor(contrast.hijacked)
    marked = torch.zeros_like(tokens, dtype=torch.bool)
    for row, spans in enumerate(contrast.spans["redrawn"]):
        for first, last in spans:
            marked[row, first:last] = True
    logits = defended(WORLD, model, tokens, marked[:, :-1]).detach()
    rows = torch.arange(len(tokens))
    true, false = (torch.tensor([one[0] for one in some]) for some in (contrast.true, contrast.false))
    change = told.values["value"] - told.examples["hijacked"].to_numpy()
    assert_near(told.values["value"], logits[rows, false] - logits[rows, true], effect=change)


def test_the_table_counts_the_contexts_that_were_judged(runs, found):
    generator = torch.Generator().manual_seed(1)
    _, judged = (defences._draw(WORLD, 300, LENGTH, 0.4, None, generator) for _ in range(2))
    model = runs[1].model
    row = {name: place for place, name in enumerate(found.axes["defence"])}

    def share(logits, answers):
        return np.mean([int(one.argmax()) == answer for one, answer in zip(logits, answers.tolist(), strict=True)])

    with torch.no_grad():
        plain = model(judged.hijacked, logits_to_keep=1).logits[:, -1]
        kept = [context[~cut] for context, cut in zip(judged.hijacked, judged.redrawn, strict=True)]
        told = torch.stack([model(one[None], logits_to_keep=1).logits[0, -1] for one in kept])
    accuracy, other = (found.values[name][1, :, 0] for name in ("accuracy", "other"))
    assert accuracy[row["none"]] == pytest.approx(share(plain, judged.y), abs=0.005)
    assert other[row["none"]] == pytest.approx(share(plain, judged.other), abs=0.005)
    assert accuracy[row["told"]] == pytest.approx(share(told, judged.y), abs=0.005)
    aware = bayes.mixture_posterior(WORLD, *WORLD.count(judged.hijacked), share=0.4)
    assert accuracy[row["Bayes, told the share"]] == pytest.approx(share(aware, judged.y), abs=0.01)
    assert not bool((judged.hijacked != judged.clean)[~judged.redrawn].any())


def test_what_can_be_known_bounds_what_is_recovered(found):
    table = found.wide().set_index(["condition", "defence"])
    accuracy, recovery = table["accuracy"]["hijacked"], table["recovery"]["hijacked"]
    assert recovery["none"] == 0
    assert accuracy["random"] <= accuracy["detector"] <= accuracy["Bayes, told the share"] + 0.02
    assert accuracy["Bayes's marks"] <= accuracy["Bayes, told the share"] + 0.02
    assert accuracy["told"] > accuracy["Bayes's marks"]
    clean, none = table["accuracy"]["clean"]["none"], accuracy["none"]
    by_run = found.values["accuracy"]
    ratios = (by_run[:, 4, 0] - by_run[:, 0, 0]) / (by_run[:, 0, 1] - by_run[:, 0, 0])
    assert recovery["told"] == pytest.approx(ratios.mean())
    assert recovery["told"] == pytest.approx((accuracy["told"] - none) / (clean - none), abs=0.1)
    assert table["accuracy"]["clean"]["told"] == clean
    marks = found.wide("detector").set_index("marks")
    assert 0.5 < marks["auc"]["detector"] <= marks["auc"]["Bayes's marks"] + 0.01
    assert (marks["cut_redrawn"] >= marks["cut_kept"]).all()


def test_the_same_seed_gives_the_same_numbers(runs, found):
    again = evaluate_toy_defence(WORLD, [run.model for run in runs], length=LENGTH, contexts=300, progress=False)
    np.testing.assert_array_equal(again.values["accuracy"], found.values["accuracy"])


def test_it_is_saved_loaded_and_drawn(found, tmp_path):
    found.save(tmp_path / "kept")
    assert Result.load(tmp_path / "kept").kind == "toy-defence"
    labels = [text.get_text() for text in found.plot().axes[0].get_yticklabels()]
    assert labels == list(found.axes["defence"])


def test_a_detector_finds_what_evidence_has():
    evidence = torch.randn(40, 10, 3, generator=torch.Generator().manual_seed(0))
    redrawn = evidence[..., 1] > 0.2
    detector = fit_detector(evidence, redrawn)
    assert int(detector.weights.abs().argmax()) == 1
    assert ((detector.scores(evidence) > 0) == redrawn).double().mean() > 0.95
    with pytest.raises(LcalensError, match=r"^redrawn"):
        fit_detector(evidence, torch.ones_like(redrawn))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"models": []}, "models"),
        ({"models": "runs"}, "models"),
        ({"models": [3]}, "models"),
        ({"models": [LCAForCausalLM(LCAConfig(m=3, d_model=4))]}, "models"),
        ({"length": 1}, "length"),
        ({"share": 0.0}, "share"),
        ({"share": 1.0}, "share"),
        ({"share": 2.0}, "share"),
        ({"distance": 5}, "distance"),
        ({"contexts": 3}, "contexts"),
        ({"seed": -1}, "seed"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_named(runs, options, named):
    given = {"concepts": WORLD, "models": runs, "length": LENGTH} | options
    with pytest.raises(LcalensError, match=f"^{named}"):
        evaluate_toy_defence(given.pop("concepts"), given.pop("models"), **given, progress=False)
