"""What `score_parts` and `head_kinds` are given and cannot use is refused by name, with what to do instead."""

import math

import numpy as np
import pytest
import torch
from helpers import standins

from lcalens import head_kinds, score_parts
from lcalens.core.errors import LcalensError
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.patch import patch

NO_HEADS = [None, 3, "", "last", [], [3], [(0,)], [(3, 0)], [(0, 4)], [(-1, 0)], [(0.0, 0)], [(True, 0)], object]
NO_NUMBER = [None, "2", True, [1], math.nan, object()]
NO_PLACE = [2.5, True, "", "object", "all", "each", [], [0.5], [6], -7, {}, object]
VERBS = {score_parts: {}, head_kinds: {}}


@pytest.fixture(scope="module")
def given(standin):
    model = standin("gpt2").model
    generator = torch.Generator().manual_seed(0)
    clean, hijacked = (torch.randint(5, model.cfg.d_vocab, (2, 6), generator=generator) for _ in range(2))
    contrast = Contrast(clean, hijacked, true=7, false=8, spans={"word": [(1, 2)] * 2})
    return model, standins.raising(model, contrast)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("heads", NO_HEADS),
        ("keys", NO_PLACE),
        ("over", [*NO_PLACE, "word"]),
        ("memory", [*NO_NUMBER, 0, -1, math.inf]),
        ("progress", [None, 1, "yes"]),
        ("model", [None, "gpt2", torch.nn.Linear(2, 2)]),
        ("contrast", [None, "x", [[1, 2]], Contrast]),
    ],
)
def test_what_both_refuse(given, verb, name, values):
    whole = {"model": given[0], "contrast": given[1], "heads": [(1, 0)], "progress": False}
    for value in values:
        with pytest.raises(LcalensError, match=rf"^{name}\b"):
            verb(**(whole | {name: value}))


@pytest.mark.parametrize(
    ("verb", "name", "values"),
    [
        (score_parts, "pairs", [*NO_NUMBER, -1, 2.5]),
        (head_kinds, "threshold", [*NO_NUMBER, -0.1, math.inf]),
        (head_kinds, "seed", [*NO_NUMBER, -1, 2.5]),
        (head_kinds, "metric", [None, 3, "loss", "whole-answer"]),
        (head_kinds, "over", [None]),
        (head_kinds, "out", [3, b"x\0y", object()]),
    ],
)
def test_what_one_refuses(given, verb, name, values):
    for value in values:
        with pytest.raises(LcalensError, match=rf"^{name}\b"):
            verb(*given, [(1, 0)], **{name: value}, progress=False)


def test_a_contrast_without_a_word_needs_keys(given):
    model, contrast = given
    bare = Contrast(contrast.clean, contrast.hijacked, true=contrast.true, false=contrast.false)
    for verb in VERBS:
        with pytest.raises(LcalensError, match=r"^keys: the contrast has no span 'word' or 'redrawn'"):
            verb(model, bare, [(1, 0)], progress=False)
        verb(model, bare, [(1, 0)], keys=[1], over=[-2, 3], progress=False)


def test_what_would_not_fit_is_refused_before_it_runs(given):
    model, contrast = given
    many = contrast[[0] * 100]
    heads = [(layer, head) for layer in range(3) for head in range(4)]
    with pytest.raises(LcalensError, match=r"^memory: the pairs of 12 heads take .* or pairs=0"):
        score_parts(model, many, heads, memory=0.001, progress=False)
    whole = score_parts(model, many, heads, pairs=0, memory=0.001, progress=False)
    assert "pairs" not in whole.tables


def test_kinds_are_refused_where_no_interval_can_tell_them(given):
    """No head would be of any kind, as if each had been looked at and found to be none."""
    model, contrast = given
    with pytest.raises(LcalensError, match=r"^contrast: its hijack raises the metric by .* but one example has no"):
        head_kinds(model, contrast[0], [(1, 0), (2, 1)], progress=False)
    false = [list(contrast.true[0]), list(contrast.false[1])]
    true = [list(contrast.false[0]), list(contrast.true[1])]
    mixed = Contrast(
        [list(row) for row in contrast.clean], [list(row) for row in contrast.hijacked],
        true=true, false=false, spans={"word": [(1, 2)] * 2},
    )  # fmt: skip
    other = Contrast(
        [list(row) for row in contrast.clean], [list(row) for row in contrast.hijacked],
        true=false, false=true, spans={"word": [(1, 2)] * 2},
    )  # fmt: skip
    means = [float(np.diff(patch(model, one, progress=False).examples[["clean", "hijacked"]]).mean())
             for one in (mixed, other)]  # fmt: skip
    with pytest.raises(LcalensError, match=r"raises the metric by .* but its 95% interval is -"):
        head_kinds(model, mixed if means[0] > means[1] else other, [(1, 0)], progress=False)
