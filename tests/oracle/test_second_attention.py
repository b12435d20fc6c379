"""Transformers' two attentions must agree: where not, a model is refused with a logit of each."""

import re

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from lcalens.core.errors import LcalensError
from lcalens.llm.models.load import load_model
from lcalens.llm.models.second_attention import check_attentions
from lcalens.llm.models.trial import run_trial
from tests.matrix import families

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
AGREE = ["falcon-7b", "llama", "gpt2", "mistral", "opt", "gemma3", "nanochat", "qwen3-moe", "deepseek-v3"]


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_falcon_rw_is_refused_with_a_logit_of_each(dtype):
    model, tokenizer = families.build("falcon-rw", dtype=dtype)
    with pytest.raises(LcalensError, match="two attentions for FalconForCausalLM disagree") as caught:
        load_model(model, tokenizer=tokenizer)
    said = re.search(r"behind (\d+) .* token (\d+) is (\S+) with eager .* and (\S+) with sdpa", str(caught.value))
    length, token = int(said[1]), int(said[2])
    # The same weights in a model that transformers itself makes with sdpa attention from the start.
    other = AutoModelForCausalLM.from_config(families.config_of(families.FAMILIES["falcon-rw"]),
                                             attn_implementation="sdpa", dtype=dtype).eval()  # fmt: skip
    other.load_state_dict(model.state_dict())
    row = run_trial(model).rows[-1]
    for logits, told in ((model(row).logits, said[3]), (other(row).logits, said[4])):
        assert float(logits[0, length - 1, token]) == pytest.approx(float(told), rel=2e-3)
    assert abs(float(said[3]) - float(said[4])) > 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", AGREE)
def test_families_whose_attentions_agree_are_taken(name, dtype):
    model, _ = families.build(name, dtype=dtype)
    trial = run_trial(model)
    check_attentions(name, model, trial)
    assert model.config._attn_implementation == "eager"
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(run_trial(model).logits, trial.logits, strict=True))


def scaled_by(factor):
    """Transformers' sdpa attention with scores that are too large."""
    own = transformers.AttentionInterface()["sdpa"]

    def wrong(module, q, k, v, mask, *arguments, **options):
        return own(module, q * factor, k, v, mask, *arguments, **options)

    return wrong


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "deepseek-v3"])
def test_any_disagreement_is_seen(monkeypatch, name, dtype):
    model, _ = families.build(name, dtype=dtype)
    trial = run_trial(model)
    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "sdpa", scaled_by(1.3))
    with pytest.raises(LcalensError, match="disagree by more than rounding"):
        check_attentions(name, model, trial)
    assert model.config._attn_implementation == "eager"


def test_a_second_attention_that_fails_is_told(monkeypatch):
    model, _ = families.build("llama")
    trial = run_trial(model)

    def failing(*arguments, **options):
        raise RuntimeError("no kernel")

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "sdpa", failing)
    with pytest.warns(
        UserWarning, match=r"sdpa attention for LlamaForCausalLM fails .*no kernel.* compared with no other"
    ):
        check_attentions("llama", model, trial)
    assert model.config._attn_implementation == "eager"
