"""What `recall` says to arguments it cannot use: an LcalensError that begins with the argument's name."""

import math
import re

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lcalens import LCAConfig, LCAForCausalLM, lca_bridge, load_model, recall
from lcalens.core.errors import LcalensError
from lcalens.mechanism.contrast.contrast import Contrast

VOCABULARY = 30
NEAR = {1: [2, 3], 4: 5, 6: (7,)}


def refused(name):
    return pytest.raises(LcalensError, match=rf"^{name}\b")


@pytest.fixture(scope="module")
def toy():
    torch.manual_seed(0)
    return lca_bridge(LCAForCausalLM(LCAConfig(m=3, d_model=4, d_head=4)).eval())


@pytest.fixture(scope="module")
def tiny():
    """A model with a context of 12 and a vocabulary far smaller than its tokenizer's."""
    from helpers.standins import byte_level_tokenizer

    torch.manual_seed(0)
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=12, n_layer=2, n_head=3, n_positions=12)).eval()
    return load_model(plain, tokenizer=byte_level_tokenizer(), progress=False)


def contrast_of(spans, count=4, **changes):
    parts = {"clean": [[1, 2, 3, 4]] * count, "hijacked": [[1, 5, 3, 4]] * count, "true": 1, "false": 2} | changes
    return Contrast(**parts, spans=spans)


def test_what_works(toy, tiny):
    for model in (toy, tiny):
        recall(model, NEAR, [(0, 0)], draws=1, progress=False)
        for level in ("embedding", "residual"):
            recall(model, contrast_of({"word": (1, 2)}), [(0, 0)], level=level, draws=1, progress=False)


def shown(value):
    """A value's name as a test's, the same in every process: without addresses."""
    return re.sub(r" at 0x\w+", "", repr(value))[:30]


@pytest.mark.parametrize(
    "value",
    [
        None, 3, 2.5, True, "", "France", "France Italy Spain", b"abc", object(), object, [], {}, [1, 2], [1, 1, 1],
        {1: 2, 3: 4}, [1, 2, VOCABULARY + 500], [1, 2, -1], [1, 2, True], [1, 2, 2.0], [1, 2, None], [1, 2, math.nan],
        [[1], [2], [3]], [{1}, {2}, {3}], [b"a", b"b", b"c"], {(1, 2): 3, 4: 5, 6: 7}, [1, 2, 10**30], [object()] * 3,
        {1: None, 2: 3, 4: 5}, {1: 2.5, 2: 3, 4: 5}, {1: [None], 2: 3, 4: 5}, {1: b"ab", 2: 3, 4: 5},
        {1: [[2]], 2: 3, 4: 5}, {1: {2: 3}, 2: 3, 4: 5}, {1: VOCABULARY + 500, 2: 3, 4: 5}, {1: object(), 2: 3, 4: 5},
        {1: True, 2: 3, 4: 5}, [1, 2, ""], [1, 2, " "], ["\ud800", 1, 2], ["a\x00b", 1, 2],
    ],
    ids=shown,
)  # fmt: skip
def test_no_sources(toy, tiny, value):
    for model in (toy, tiny):
        with refused("sources"):
            recall(model, value, [(0, 0)], draws=1, progress=False)


@pytest.mark.parametrize(
    "value",
    [
        3, 2.5, True, "", "France", [1, 2], {1, 2}, object(), dict, {1: None}, {1: 2.5}, {1: [None]}, {1: b"ab"},
        {1: [[2]]}, {1: {2: 3}}, {None: 1}, {2.5: 1}, {-1: 1}, {1: -1}, {VOCABULARY + 500: 1}, {(1, 2): 3}, {1: ""},
    ],
    ids=shown,
)  # fmt: skip
def test_nothing_related(toy, tiny, value):
    for model in (toy, tiny):
        for sources in ([1, 2, 3], NEAR, contrast_of({"word": (1, 2)})):
            with refused("related"):
                recall(model, sources, [(0, 0)], related=value, draws=1, progress=False)


def test_words_of_a_model_whose_tokens_are_no_text(toy):
    with pytest.raises(LcalensError, match=r"^sources: .*token ids"):
        recall(toy, ["France", "Italy", "Spain"], [(0, 0)], draws=1, progress=False)
    with pytest.raises(LcalensError, match=r"^related: .*token ids"):
        recall(toy, [1, 2, 3], [(0, 0)], related={1: "Italy"}, draws=1, progress=False)


def test_too_few_sources_say_what_was_left_out(tiny):
    with pytest.raises(LcalensError, match=r"^sources: three or more .* got 2.*Liechtenstein"):
        recall(tiny, [1, 2, "Liechtenstein"], [(0, 0)], draws=1, progress=False)
    with refused("sources"):
        recall(tiny, contrast_of({"word": (1, 2)}, count=2), [(0, 0)], draws=1, progress=False)


def test_bare_objects_have_no_residual_stream(toy, tiny):
    for model in (toy, tiny):
        with pytest.raises(LcalensError, match=r"^level: .*contrast"):
            recall(model, NEAR, [(0, 0)], level="residual", progress=False)


def test_a_contrast_without_the_word(toy, tiny):
    """The last token of a sentence is a full stop, and no source."""
    some = [[(1, 2)], [(1, 2)], [], [(1, 2)]]
    for model in (toy, tiny):
        for spans in ({}, {"sentence": (1, 2)}, {"subject": (1, 2)}):
            with pytest.raises(LcalensError, match=r"^sources: .*'word'"):
                recall(model, contrast_of(spans), [(0, 0)], draws=1, progress=False)
        with pytest.raises(LcalensError, match=r"^sources: example 2 has no span 'word'"):
            recall(model, contrast_of({"word": some}), [(0, 0)], draws=1, progress=False)


def test_a_contrast_of_another_models_tokens(toy, tiny):
    for model in (toy, tiny):
        for changes in ({"clean": [[1, 2, 3, 500]] * 4}, {"hijacked": [[1, 500, 3, 4]] * 4}, {"true": 500}):
            with refused("sources"):
                recall(model, contrast_of({"word": (1, 2)}, **changes), [(0, 0)], draws=1, progress=False)
    with refused("sources"):
        recall(tiny, contrast_of({"word": (1, 2)}, clean=[[1] * 13] * 4), [(0, 0)], draws=1, progress=False)


ODD = {
    "model": [None, "smollm2", 3, object(), torch.nn.Linear(2, 2), lca_bridge],
    "heads": [None, 3, "last", [], {}, [3], [(0,)], [(9, 0)], [(0, 9)], [(-1, 0)], [(0.0, 0)], [(True, 0)]],
    "level": [None, 1, "Embedding", "resid", ["residual"], object],
    "draws": [math.nan, -1, 0, 2.5, "2", None, True, [2], 1j],
    "seed": [math.nan, -1, 2.5, "2", None, True, [2]],
    "progress": [None, 1, "yes", []],
}


@pytest.mark.parametrize("name", ODD)
def test_every_other_argument(toy, tiny, name):
    for model in (toy, tiny):
        for value in ODD[name]:
            whole = {"model": model, "sources": NEAR, "heads": [(0, 0)], "draws": 1, "progress": False}
            with refused(name):
                recall(**(whole | {name: value}))
                pytest.fail(f"{name}={value!r:.60} is taken")


def test_tokens_and_heads_of_every_integer_type(toy):
    expected = recall(toy, NEAR, [(0, 0)], draws=1, progress=False)
    for same in (
        {np.int64(1): np.array([2, 3]), np.int32(4): np.int64(5), 6: [np.int16(7)]},
        {1: torch.tensor([2, 3]), 4: torch.tensor(5), 6: range(7, 8)},
        {1: [2, 3, 2], 4: [5, 4], 6: {7}},
    ):
        found = recall(toy, same, np.array([[0, 0]]), draws=1, progress=False)
        np.testing.assert_array_equal(found.values["recall"], expected.values["recall"])
        assert found.wide().equals(expected.wide())
