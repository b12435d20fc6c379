"""What `memory` says to arguments it cannot use: an LcalensError that begins with the argument's name."""

import math
import re

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OlmoConfig, OlmoForCausalLM

from lcalens import LCAConfig, LCAForCausalLM, contrast_concepts, lca_bridge, load_model, memory
from lcalens.core.errors import LcalensError
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.mechanism.contrast.contrast import Contrast

VOCABULARY = 30
PAIRS = {1: 2, 4: 5, 6: 7, 8: [9, 10]}


def refused(name):
    return pytest.raises(LcalensError, match=rf"^{name}\b")


@pytest.fixture(scope="module")
def toy():
    torch.manual_seed(0)
    return lca_bridge(LCAForCausalLM(LCAConfig(m=4, d_model=4, d_head=4)).eval())


def loaded(plain):
    from helpers.standins import byte_level_tokenizer

    return load_model(plain.eval(), tokenizer=byte_level_tokenizer(), progress=False)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return loaded(GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=12, n_layer=2, n_head=3, n_positions=12)))


def contrast_of(cues=(1, 4, 6, 8), span=(1, 2), name="word", **changes):
    hijacked = [[2, cue, 3, 9] for cue in cues]
    parts = {
        "clean": [[2, 11, 3, 9]] * len(cues),
        "hijacked": hijacked,
        "true": 2,
        "false": [5, 7, 12, 13][: len(cues)],
    }
    return Contrast(**(parts | changes), spans={name: span})


def test_what_works(toy, tiny):
    for level in ("embedding", "residual"):
        for pairs in (None, PAIRS):
            memory(tiny, contrast_of(), (0, 1), pairs=pairs, level=level, draws=1, progress=False)
        memory(toy, contrast_of(), (0, 0), pairs=PAIRS, level=level, draws=1, progress=False)
    memory(toy, contrast_concepts(LatentConcepts(4), limit=6, length=8), (0, 0), draws=1, progress=False)


def test_cues_that_stand_in_no_run_need_the_embedding(tiny):
    contrast = contrast_of(cues=(20, 21, 22, 23))
    with refused("pairs"):
        memory(tiny, contrast, (0, 0), pairs=PAIRS, draws=1, progress=False)
    found = memory(tiny, contrast, (0, 0), pairs=PAIRS, level="embedding", draws=1, progress=False)
    assert found.provenance["judged"] == 0
    assert found.wide()["stays"].isna().all()
    assert found.wide("held_out")["auc"].notna().all()
    some = memory(tiny, contrast_of(cues=(1, 4, 6, 8)), (0, 0), pairs=PAIRS | {20: 21}, draws=1, progress=False)
    assert some.provenance["left_out"] == ["20"]


def test_words_of_several_tokens_are_no_cues(tiny):
    with pytest.raises(LcalensError, match=r"^pairs\b.*got 0"):
        memory(tiny, contrast_of(span=(1, 3)), (0, 0), draws=1, progress=False)


def shown(value):
    """A value's name as a test's, the same in every process: without addresses."""
    return re.sub(r" at 0x\w+", "", repr(value))[:30]


@pytest.mark.parametrize(
    "value",
    [
        3, 2.5, True, "", "France", [1, 2], {}, {1: 2}, {1: 2, 3: 4, 5: 6}, object(), dict, {1: None}, {-1: 1, 2: 3},
        {1: 2, 4: 2, 6: 2, 8: 2}, {1: 2, 4: 5, 6: 7, 8: VOCABULARY + 500}, {1: 2, 4: 5, 6: 7, 8: [[9]]},
        {1: 2, 4: 5, 6: 7, 8: 2.5}, {1: [], 4: [], 6: [], 8: []},
    ],
    ids=shown,
)  # fmt: skip
def test_no_pairs(toy, tiny, value):
    for model in (toy, tiny):
        with refused("pairs"):
            memory(model, contrast_of(), (0, 0), pairs=value, draws=1, progress=False)


def test_words_of_a_model_whose_tokens_are_no_text(toy):
    with refused("pairs"):
        memory(toy, contrast_of(), (0, 0), pairs={"a": "b", "c": "d", "e": "f", "g": "h"}, draws=1, progress=False)


@pytest.mark.parametrize("contrast", [None, 3, [1, 2], "contrast", object(), {}], ids=shown)
def test_no_contrast(tiny, contrast):
    with refused("contrast"):
        memory(tiny, contrast, (0, 0), draws=1, progress=False)


def test_a_contrast_without_the_word_or_of_other_tokens(tiny):
    with refused("contrast"):
        memory(tiny, contrast_of(name="sentence"), (0, 0), draws=1, progress=False)
    with refused("contrast"):
        memory(tiny, contrast_of(cues=(1, 4, 6, 99)), (0, 0), draws=1, progress=False)


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "head": [None, 3, (0,), (0, 1, 2), (0, 9), (9, 0), (-1, 0), (0.5, 1), "L0H1", [(0, 1), (0, 2)], [], (True, 0)],
        "level": [None, "", "logits", 3, True, ["residual"]],
        "scale": [None, "", "frobenius", 3, True, ["norm"]],
        "rank": [0, -1, 2.5, True, "8", None, math.nan],
        "draws": [0, -1, 2.5, True, "8", None],
        "seed": [-1, 2.5, True, "8", None],
        "progress": [None, 3, "yes"],
    }.items(),
)
def test_every_other_argument(toy, tiny, name, values):
    for model in (toy, tiny):
        for value in values:
            options = {"pairs": PAIRS, "head": (0, 0), "draws": 1, "progress": False} | {name: value}
            with refused(name):
                memory(model, contrast_of(), **options)


def test_a_model_that_clips_values_is_refused():
    torch.manual_seed(0)
    config = OlmoConfig(
        vocab_size=VOCABULARY, hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=3,
        clip_qkv=0.5, pad_token_id=0, eos_token_id=1, max_position_embeddings=12,
    )  # fmt: skip
    with refused("model"):
        memory(loaded(OlmoForCausalLM(config)), contrast_of(), (0, 0), draws=1, progress=False)


def test_tokens_and_heads_of_every_integer_type(toy):
    expected = memory(toy, contrast_of(), (0, 0), pairs=PAIRS, draws=1, progress=False)
    for head in (np.array([0, 0]), torch.tensor([0, 0]), [np.int64(0), 0]):
        same = {np.int64(1): torch.tensor(2), 4: np.int32(5), 6: {7}, 8: np.array([9, 10])}
        found = memory(toy, contrast_of(), head, pairs=same, draws=1, progress=False)
        assert found.wide().equals(expected.wide())
