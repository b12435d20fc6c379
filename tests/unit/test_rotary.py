"""Rotary embeddings that remember lengths forget them, so that no number depends on what ran before."""

import pytest
import torch
from helpers import standins
from transformers import AutoModelForCausalLM

from lcalens.core.provenance import active_hooks
from lcalens.core.stamp import stamp, steady
from lcalens.llm.models.load import load_model

ROPES = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "rope_theta": 1e4,
        "original_max_position_embeddings": 24,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0, 3.0, 4.0, 5.0] * 2,
    },
}


def build(kind):
    tokenizer = standins.metaspace_tokenizer()
    changes = {"rope_parameters": ROPES[kind], "max_position_embeddings": 24 if kind == "dynamic" else 160}
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(
        standins.config_of("llama", len(tokenizer), **changes), attn_implementation="eager"
    )
    return plain.eval(), tokenizer


def last(model, length):
    with torch.no_grad():
        found = model(torch.arange(5, 5 + length)[None])
    return getattr(found, "logits", found)[0, -1].clone()


@pytest.mark.parametrize("kind", ROPES)
def test_a_texts_numbers_are_a_fresh_models_whatever_ran_before(kind):
    plain, tokenizer = build(kind)
    model = load_model(plain, tokenizer=tokenizer)
    lengths = (30, 60, 30, 12, 60, 26)
    before = stamp(model)
    fresh = {length: last(build(kind)[0], length) for length in lengths}
    with steady(model):
        for length in lengths:
            torch.testing.assert_close(last(model, length), fresh[length], rtol=1e-5, atol=1e-4)
            assert active_hooks(model) == []
    assert stamp(model) == before
    last(model, 60)
    assert stamp(model) == before


def test_the_stretched_frequencies_are_what_the_test_is_about():
    """Without forgetting, a text of 30 tokens behind one of 60 has the frequencies of 60."""
    plain, _ = build("dynamic")
    fresh = last(build("dynamic")[0], 30)
    last(plain, 60)
    assert (last(plain, 30) - fresh).abs().max() > 0.1
