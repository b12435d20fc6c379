"""`score_parts` against hooks by hand: every part alone as the query or the key, pairs, and sums."""

import numpy as np
import pytest
import torch
from helpers import slow_patching as slow
from helpers import slow_scores, standins
from helpers.closeness import assert_near, rounding
from matrix.families import boot

import lcalens.engine.scores as engine
from lcalens.core.errors import LcalensError
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.scores import score_parts

OTHERS = ("gpt-neox", "gpt-neox-sequential", "qwen3", "llama-wide")
SUMS = (*standins.FAMILIES, *OTHERS, "bloom", "falcon-7b", "olmo2", "granite", "gpt-oss", "cohere", "glm4", "hunyuan")
KEYS, LATE = (2, 3), (5, 6)
WINDOWED = ("qwen3", "gpt-oss")  # whose stand-ins look four tokens back


@pytest.fixture(scope="module")
def model_of(standin):
    made = {}

    def get(name):
        if name not in made:
            made[name] = standin(name).model if name in standins.FAMILIES else boot(name)
        return made[name]

    return get


def contrast_of(case):
    answers = {"true": case.true[:, None], "false": case.false[:, None]}
    spans = {"word": [(KEYS[0], KEYS[-1] + 1)] * len(case.clean)}
    return Contrast(case.clean, case.hijacked, spans=spans, **answers)


def places(name, length):
    """Keys, and what they are compared with."""
    return (LATE, (length - 2,)) if name in WINDOWED else (KEYS, (1, *range(4, length - 1)))


def weighted(scores, keys, others):
    return (scores[:, list(keys)].mean(1) - scores[:, list(others)].mean(1)).numpy()


def found_of(name, model, case, heads, **options):
    keys, others = places(name, case.hijacked.shape[1])
    result = score_parts(model, contrast_of(case), heads, keys=keys, over=others, progress=False, **options)
    return result, keys, others


@pytest.mark.parametrize("family", [*standins.FAMILIES, *OTHERS])
def test_every_part_is_the_hook_loop(model_of, family):
    model = model_of(family)
    case, layer, head = slow.case(model), model.cfg.n_layers - 1, 1
    result, keys, others = found_of(family, model, case, [(layer, head)])
    size = result.values["score"]
    near = {"effect": size, "rounding": rounding(torch.float32, np.abs(size).sum(-1), 64)}
    for side, name in enumerate(("query", "key")):
        expected = [weighted(slow_scores.score(model, case.hijacked, layer, head, **{name: part}), keys, others)
                    for part in result.axes["part"]]  # fmt: skip
        assert_near(size[:, 0, side], np.stack(expected, 1), **near)
        assert np.abs(size[:, 0, side]).max() > 0.05
    pairs = result.wide("pairs")
    assert pairs["score"].abs().is_monotonic_decreasing
    for _, row in pairs.head(3).iterrows():
        both = slow_scores.score(model, case.hijacked, layer, head, row["query_part"], row["key_part"])
        assert_near(row["score"], weighted(both, keys, others).mean(), **near)


@pytest.mark.parametrize("family", SUMS)
def test_parts_sum_to_the_hooks_score(model_of, family):
    model = model_of(family)
    case = slow.case(model)
    heads = [(layer, head) for layer in (0, model.cfg.n_layers - 1) for head in (0, 1)]
    result, keys, others = found_of(family, model, case, heads)
    for at, (layer, head) in enumerate(heads):
        scores = slow_scores.score(model, case.hijacked, layer, head)
        score = result.values["score"][:, at]
        near = {"effect": scores, "rounding": rounding(torch.float32, np.nansum(np.abs(score), -1), 64)}
        for side in range(2):
            assert_near(np.nansum(score[:, side], -1), weighted(scores, keys, others), **near)
        row = result.wide("heads").iloc[at]
        assert_near(row["on_keys"], scores[:, list(keys)].mean(), **near)
        assert_near(row["on_others"], scores[:, list(others)].mean(), **near)
        # A part that does not stand before the head has no score.
        there = np.isfinite(score[0, 0])
        assert there.sum() == 2 + layer * (model.cfg.n_heads + 1)


def test_the_toys_score_is_its_embeddings(standin):
    toy = standins.loud_toy()
    case = slow.case(toy, length=8, changed=(0, 2, 3, 5, 7), seed=3)
    result, keys, others = found_of("toy", toy, case, [(0, 0)])
    scores = slow_scores.score(toy, case.hijacked, 0, 0)
    for side in range(2):
        assert_near(
            result.values["score"][:, 0, side, result.axes["part"].index("embed")], weighted(scores, keys, others),
            effect=scores, rounding=rounding(torch.float32, scores, 8),
        )  # fmt: skip


def test_what_is_compared_and_the_tables(model_of):
    model = model_of("llama")
    case, heads = slow.case(model), [(1, 2), (2, 0)]
    contrast = contrast_of(case)
    found = {over: score_parts(model, contrast, heads, over=over, progress=False) for over in ("others", None)}
    rivals = [at for at in range(1, case.hijacked.shape[1] - 1) if at not in KEYS]
    scores = slow_scores.score(model, case.hijacked, *heads[1])
    for over, result in found.items():
        expected = scores[:, list(KEYS)].mean(1) - (scores[:, rivals].mean(1) if over else 0)
        whole = result.values["score"][:, 1].sum(-1)
        assert_near(whole, np.stack([expected] * 2, 1), effect=scores, rounding=rounding(torch.float32, scores, 640))
        kinds = result.wide("kinds").query("head == 'L2H0' and side == 'key'").set_index("kind")
        assert set(kinds.index) == {"biases", "embedding", "heads", "MLPs"}
        assert_near(kinds["score"].sum(), whole[:, 0].mean(), effect=scores)
        assert_near(kinds["share"].sum(), 1.0, effect=1.0)
        heads_alone = [part for part in result.axes["part"] if "H" in part]
        columns = [result.axes["part"].index(part) for part in heads_alone]
        by_head = result.values["score"][:, 1, 1][:, columns]
        assert_near(kinds["score"]["heads"], by_head.sum(1).mean(), effect=by_head)
    assert "on_others" not in found[None].wide("heads")
    every = score_parts(model, contrast, [(1, 2)], pairs=10**6, progress=False).wide("pairs")
    parts = 2 + model.cfg.n_heads + 1
    assert len(every) == parts**2
    assert_near(
        every["score"].sum(), found["others"].values["score"][:, 0, 0].mean(0)[:parts].sum(), effect=every["score"]
    )


def test_runs_of_other_lengths_and_in_parts_are_the_same(model_of, monkeypatch):
    model = model_of("gemma3")
    case = slow.case(model, batch=3)
    whole = score_parts(model, contrast_of(case), [(1, 2), (2, 0)], progress=False)
    shorter = Contrast(case.clean[:, 3:], case.hijacked, true=case.true[:, None], false=case.false[:, None])
    monkeypatch.setattr("lcalens.mechanism.scores._BYTES", 1)
    parts = score_parts(model, shorter, [(2, 0), (1, 2), (2, 0)], keys=list(KEYS), progress=False)
    near = {"effect": whole.values["score"][:, 0], "rounding": rounding(torch.float32, 10.0, 64)}
    assert_near(parts.values["score"], whole.values["score"], **near)
    assert_near(parts.wide("pairs")["score"].abs(), whole.wide("pairs")["score"].abs(), **near)


def test_in_reduced_precision_it_is_near_and_says_how_near(standin):
    place = boot("llama")
    case = slow.case(place)
    exact = score_parts(place, contrast_of(case), [(2, 1)], progress=False)
    place.original_model.to(torch.bfloat16)
    found = score_parts(place, contrast_of(case), [(2, 1)], progress=False)
    assert_near(found.values["score"], exact.values["score"], effect=exact.values["score"], share=0.05)
    assert exact.provenance["largest_error"] < found.provenance["largest_error"]


def test_what_is_no_sum_is_refused(model_of, monkeypatch):
    for family, said in (("opt-post-norm", "no sum over"), ("mpt", "clip acts")):
        model = model_of(family)
        with pytest.raises(LcalensError, match=rf"^model: .*{said}"):
            score_parts(model, contrast_of(slow.case(model)), [(1, 0)], progress=False)
    model = model_of("qwen3")
    with pytest.raises(LcalensError, match=r"^heads: L0H1 looks 4 tokens back"):
        score_parts(model, contrast_of(slow.case(model)), [(0, 1)], progress=False)
    model = model_of("llama")
    monkeypatch.setattr(engine, "freeze", lambda norm, x: engine.Frozen(*frozen_wrong(x)))
    with pytest.raises(LcalensError, match=r"score sum to .* cannot be taken apart"):
        score_parts(model, contrast_of(slow.case(model)), [(1, 0)], progress=False)


def frozen_wrong(x):
    ones = torch.ones(x.shape[-1], dtype=torch.float64)
    return ones, 0 * ones, False, torch.ones(len(x), dtype=torch.float64)
