"""The probe of defences: splits that share nothing they should not, a run on a small model, and its report."""

import numpy as np
import pandas as pd
import pytest
import torch

from lcalens.llm.contrasts import contrast_facts
from lcalens.llm.facts import load_facts
from lcalens.llm.models.load import load_model
from lcalens.llm.plain import HONEST
from probes.harness import defences, detector_reads
from probes.harness.work import Work
from probes.real import defence, frontier


def test_a_split_keeps_half_of_the_relations_and_all_judged_facts_away():
    facts = load_facts("sample")
    first, judged, more = defences.divided(facts, 0, 20, 16)
    cases, relations = ({getattr(fact, name) for fact in first} for name in ("case_id", "relation_id"))
    assert (len(first), len(judged), len(more)) == (20, 16, 16)
    assert not cases & {fact.case_id for fact in (*judged, *more)}
    new = [fact for fact in judged if fact.relation_id not in relations]
    assert len(new) >= 8
    assert [fact.case_id for fact in defences.divided(facts, 1, 20, 16)[0]] != [fact.case_id for fact in first]
    assert [fact.case_id for fact in defences.divided(facts, 0, 20, 16)[1]] == [fact.case_id for fact in judged]


def test_a_fifth_of_the_heads_have_run_before_the_detector_reads():
    heads = [(3, 0), (1, 0), (2, 0), (4, 1), (4, 0), (5, 0), (6, 0), (7, 0), (8, 0), (9, 0)]
    assert defences.late(heads) == 3
    assert defences.late([(2, 0), (1, 0)]) == 1


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_who_writes_a_direction_and_what_makes_heads_look(standin, family):
    """The parts sum to the stream's own change; a slope is what a small step changes, by the model's own hooks."""
    model = load_model(standin(family).folder)
    contrast = contrast_facts(model, load_facts("sample").sample(6, 0), control="none")
    layer, heads = 1, [(1, 0), (1, 2), (2, 3)]
    direction = np.random.default_rng(0).standard_normal(model.cfg.d_model)
    parts = detector_reads.written(model, contrast, layer, direction)
    whole = parts.pop("whole")
    assert len(parts) == 1 + 2 * layer
    np.testing.assert_allclose(sum(parts.values()), whole, rtol=1e-3, atol=1e-3 * np.abs(whole).max())
    slopes = detector_reads.slopes(model, contrast, layer, heads)
    for index in (0, 3):
        ids, step = torch.tensor([contrast.hijacked[index]]), torch.from_numpy(direction).float()
        word = [at for first, last in contrast.spans["word"][index] for at in range(first, last)]

        def log_paid(size, at, head, ids=ids, step=step, word=word):
            def push(stream, hook):
                stream[0, -1] += size * step
                return stream

            name, seen = f"blocks.{at}.attn.hook_pattern", []
            with torch.no_grad():
                model.run_with_hooks(ids, fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", push),
                                                     (name, lambda value, hook: seen.append(value))])  # fmt: skip
            return float(seen[0][0, head, -1, word].double().sum().log())

        size = 1e-3
        for number, (at, head) in enumerate(heads):
            expected = (log_paid(size, at, head) - log_paid(-size, at, head)) / (2 * size)
            scale = np.linalg.norm(slopes[index, number]) * np.linalg.norm(direction)
            assert slopes[index, number] @ direction == pytest.approx(expected, abs=0.02 * scale)


@pytest.mark.slow
@pytest.mark.real
def test_splits_and_every_method_are_measured_and_reported(tmp_path):
    few = {"models": ("smollm2",), "train": 24, "judged": 12, "draws": 2}
    settings = defence.Defences(**few, splits=2)
    table = pd.DataFrame([row for cell in defence.grid(settings) for row in defence.measure(cell, Work(tmp_path))])
    assert len(table["heads"].iloc[0]) == 10
    told = defence.report(settings, table)
    assert [len(evidence) for _, evidence in told.evidence] == [1, 1, 1]
    splits = told.tables["Every split: means, and 95% intervals over splits"]
    assert list(splits)[3:] == ["none", "boundary cut", "detector", "random heads"]
    every = frontier.Frontier(**few, clean=10, steps=2)
    table = pd.DataFrame([row for cell in frontier.grid(every) for row in frontier.measure(cell, Work(tmp_path))])
    methods = table[table["part"].isin(frontier.METHODS)]
    assert set(methods["defence"]) >= {"none", "detector", "span known", "zero", "learned gates", "direction"}
    assert {"dont-think", "factual, n = 5", *frontier.PLACES, *HONEST} <= set(methods["condition"])
    assert set(table[table["part"] == "clean"]["quantity"]) == {"es", "flips", "accuracy", "top flips"}
    assert [len(evidence) for _, evidence in frontier.report(every, table).evidence] == [1, 1]


def _row(part, name, condition, quantity, value, **more):
    return {"model": "smollm2", "part": part, "split": 0, "defence": name, "condition": condition,
            "quantity": quantity, "value": value, "value_low": value - 0.1, "value_high": value + 0.1,
            "unit": "share", "heads": ["L1H1"], "of": 12, "layer": 1} | more  # fmt: skip


def test_the_frontier_is_of_methods_that_none_beats_in_both():
    """By hand: `b` gives less back than `a` and keeps more; `c` is beaten by `b`; who is told the span beats nobody."""
    rows = []
    for name, back, kept in (("a", 0.9, 0.5), ("b", 0.7, 0.8), ("c", 0.7, 0.7), ("span known", 1.0, 1.0)):
        for one in defences.SCHEMES:
            condition = one if isinstance(one, str) else f"{one[0]}, n = {one[1]}"
            rows += [_row("cuts", name, condition, "recovery", 1.2), _row("cuts", name, condition, "returned", back)]
        rows += [_row("cuts", name, kind, "kept", kept) for kind in HONEST]
        rows.append(_row("cuts", name, "plain text", "kl", 0.01))
    places = frontier.places_of(pd.DataFrame(rows)).set_index("method")
    assert list(places["on the frontier"]) == ["yes", "yes", "no", "told the span"]
    np.testing.assert_allclose(places["given back"], [0.9, 0.7, 0.7, 1.0])
    np.testing.assert_allclose(places["kept"], [0.5, 0.8, 0.7, 1.0])


def test_heads_are_held_against_random_sets_and_silence_against_looking_elsewhere():
    rows = [_row("cuts", "boundary cut", "dont-think", "recovery", 0.9),
            _row("cuts", "boundary cut", "dont-think", "returned", 0.8),
            _row("cuts", "boundary cut", "fiction", "kept", 0.5),
            _row("cuts", "boundary cut", "plain text", "kl", 0.02),
            _row("ablations", "zero", "plain text", "kl", 0.5),
            _row("ablations", "zero", "dont-think", "recovery", 0.5),
            _row("ablations", "zero", "dont-think", "returned", 0.5),
            _row("ablations", "zero", "fiction", "kept", 0.2),
            _row("random", "random heads", "dont-think", "recovery", 0.0)]  # fmt: skip
    told = frontier.report(frontier.Frontier(models=("smollm2",)), pd.DataFrame(rows))
    (heads, [cut]), (silence, [zero]) = told.evidence
    assert (cut.effect.mean, cut.control.mean, cut.excess.mean) == pytest.approx((0.9, 0.0, 0.9))
    assert (zero.effect.mean, zero.control.mean) == pytest.approx((0.5, 0.02))
    assert heads.judge([cut]).share == silence.judge([zero]).share == "1 of 1"
    assert list(told.figures)
    assert "The frontier" in told.tables


def test_means_are_over_splits_and_the_aim_is_held_to_the_smaller():
    def row(split, name, condition, quantity, value):
        return {"model": "smollm2", "part": "splits", "split": split, "defence": name, "condition": condition,
                "quantity": quantity, "value": value, "value_low": 0.0, "value_high": 1.0, "unit": "share",
                "heads": ["L1H1"], "of": 12, "layer": 1, "auc": {"plain text": 1.0}, "caught": 1.0}  # fmt: skip

    rows = []
    for split in (0, 1):
        for name, recovery in (("none", 0.0), ("boundary cut", 0.9), ("detector", 0.8 + 0.1 * split),
                               ("random heads", 0.0)):  # fmt: skip
            for condition, _ in defence.AIMS:
                rows += [
                    row(split, name, condition, "recovery", recovery),
                    row(split, name, condition, "returned", 0.84),
                ]
            rows += [row(split, name, kind, "kept", 0.5 if name == "boundary cut" else 1.0) for kind in HONEST]
            rows += [row(split, name, "clean", "es", 0.3), row(split, name, "clean", "accuracy", 0.3)]
            rows.append(row(split, name, "plain text", "kl", 0.004))
    report = defence.report(defence.Defences(models=("smollm2",), splits=2), pd.DataFrame(rows))
    (_, [cut]), (_, [honest]), (_, [forget]) = report.evidence
    assert (cut.effect.mean, cut.control.mean) == pytest.approx((0.9, 0.0))
    assert (honest.effect.mean, honest.control.mean) == pytest.approx((1.0, 0.5))
    assert forget.effect.mean == pytest.approx(0.85)
    aims = next(iter(report.tables.values())).set_index(["defence", "of"])
    assert aims.loc[("boundary cut", "dont-think"), "measured"] == pytest.approx(0.84)
    assert aims.loc[("boundary cut", "dont-think"), "reached"] == "no"
    assert aims.loc[("boundary cut", "negation"), "reached"] == "yes"
    assert aims.loc[("detector", "KL, nats"), "reached"] == "yes"
    assert aims.loc[("boundary cut", "fiction, kept"), "reached"] == "no"
