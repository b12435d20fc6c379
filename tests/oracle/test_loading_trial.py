"""A bridge computes what the model itself computes, whatever its configuration switches; where not, it is refused."""

import copy

import pytest
import torch
import transformers
from helpers import standins

from lcalens.core.errors import LcalensError
from lcalens.llm.models import load as loading
from lcalens.llm.models import trial
from lcalens.llm.models.load import load_model

SIZES = {"vocab_size": 259, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
GPT2 = SIZES | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
LLAMA = SIZES | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 4.0,
    "rope_theta": 1e4,
    "original_max_position_embeddings": 24,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32}
CONFIGS = {
    "unscaled": transformers.GPT2Config(**GPT2, scale_attn_weights=False),
    "by layer": transformers.GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True),
    "unscaled by layer": transformers.GPT2Config(
        **GPT2, scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True
    ),
    "upcast": transformers.GPT2Config(**GPT2, reorder_and_upcast_attn=True),
    "upcast unscaled": transformers.GPT2Config(**GPT2, reorder_and_upcast_attn=True, scale_attn_weights=False),
    "longrope": transformers.LlamaConfig(**LLAMA, rope_parameters=LONGROPE),
    "yarn": transformers.LlamaConfig(**LLAMA, rope_parameters=YARN),
    "window": transformers.MistralConfig(**LLAMA, sliding_window=9),
    "multipliers": transformers.GraniteConfig(
        **LLAMA, logits_scaling=3.0, attention_multiplier=0.3, residual_multiplier=0.5, embedding_multiplier=2.0
    ),
    "caps": transformers.Gemma2Config(
        **LLAMA, head_dim=8, attn_logit_softcapping=3.0, final_logit_softcapping=4.0, query_pre_attn_scalar=3
    ),
    "epsilon": transformers.Starcoder2Config(**LLAMA, norm_epsilon=0.01),
    "logit scale": transformers.CohereConfig(**LLAMA, logit_scale=0.3),
}


def made(config, dtype=torch.float32):
    standins.set_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model.to(dtype)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_what_a_configuration_switches_reaches_the_bridge(name, dtype):
    model = made(CONFIGS[name], dtype)
    bridge = load_model(model, tokenizer=standins.byte_level_tokenizer())
    ids = torch.arange(5, 45)[None]
    expected = model(input_ids=ids, use_cache=False).logits.float()
    spread = (expected - expected.mean(-1, keepdim=True)).abs().max()
    assert spread > 1, "the model says something that an error can change"
    assert (bridge(ids).float() - expected).abs().max() <= 8 * torch.finfo(dtype).eps * spread


@pytest.mark.parametrize(
    "config",
    [
        transformers.Phi3Config(**LLAMA),
        transformers.GPTNeoXConfig(vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                   num_attention_heads=4, max_position_embeddings=64),
        transformers.CohereConfig(**LLAMA),
    ],
    ids=["phi3", "neox", "cohere"],
)  # fmt: skip
def test_float64_is_not_refused_for_what_a_family_computes_in_float32(config):
    load_model(made(config, torch.float64), tokenizer=standins.byte_level_tokenizer())


@torch.no_grad()
def test_hooks_see_queries_as_they_are_where_the_scale_is_mended():
    model = made(CONFIGS["unscaled"])
    bridge = load_model(model, tokenizer=standins.byte_level_tokenizer())
    ids = torch.arange(5, 25)[None]
    _, cache = bridge.run_with_cache(ids)
    block = model.transformer.h[0]
    projected = block.attn.c_attn(block.ln_1(model.transformer.wte(ids) + model.transformer.wpe.weight[:20]))
    torch.testing.assert_close(cache["blocks.0.attn.hook_q"].flatten(2), projected[..., :32], rtol=1e-5, atol=1e-5)
    q, k = (projected[..., part : part + 8] for part in (0, 32))
    scores = torch.einsum("bqd,bkd->bqk", q, k)
    kept = torch.ones(20, 20).tril().bool()
    found = cache["blocks.0.attn.hook_attn_scores"][:, 0]
    torch.testing.assert_close(found[:, kept], scores[:, kept], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_bridge_that_is_not_the_model_is_refused(monkeypatch, dtype):
    """What the mending mends, unmended."""
    monkeypatch.setattr(loading, "mend_attention_scale", lambda bridge: None)
    with pytest.raises(LcalensError, match=r"other logits than the model itself.*GPT2LMHeadModel"):
        load_model(made(CONFIGS["unscaled"], dtype), tokenizer=standins.byte_level_tokenizer())


@pytest.mark.parametrize(("name", "beyond"), [("window", 12), ("longrope", 27), ("yarn", 35), ("unscaled", 23)])
def test_the_trial_goes_beyond_windows_and_switches_of_frequencies(name, beyond):
    rows = trial.run_trial(made(CONFIGS[name])).rows
    lengths = [row.shape[1] for row in rows]
    assert beyond in lengths
    assert len(set(lengths)) == len(lengths) >= 3
    assert max(lengths) <= CONFIGS[name].max_position_embeddings


def test_the_trial_stays_within_a_short_context():
    model = made(transformers.GPT2Config(**(GPT2 | {"n_positions": 5})))
    assert [row.shape[1] for row in trial.run_trial(model).rows] == [2]
    load_model(model, tokenizer=standins.byte_level_tokenizer())
