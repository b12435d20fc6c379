"""GGUF files against the models that they were made from: the same logits, whatever the metadata sets."""

import math

import pytest
import torch
import transformers
from helpers import ggufs

from lcalens.llm.models import gguf_config
from lcalens.llm.models.load import load_model

IDS = torch.arange(5, 105)[None]


def rope(**changes):
    return {"rope_type": "default", "rope_theta": 10000.0} | changes


def llama(**changes):
    return transformers.LlamaConfig(**(ggufs.COMMON | {"rms_norm_eps": 1e-5} | changes))


def llama3_factors(theta, width, factor, low, high, original):
    """convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors, number by number."""
    factors = []
    for exponent in range(0, width, 2):
        wavelength = 2 * math.pi * theta ** (exponent / width)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LONG = {
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "rms_norm_eps": 1e-5, "sliding_window": 12}


def cases():
    """(name, architecture, configuration, more keys, more tensors)."""
    yield "llama", "llama", llama(tie_word_embeddings=False), {"rope.dimension_count": 8}, {}
    yield "llama-tied", "llama", llama(tie_word_embeddings=True), {}, {}
    yield "llama-base", "llama", llama(rope_parameters=rope(rope_theta=500.0)), {"rope.freq_base": 500.0}, {}
    yield "llama-epsilon", "llama", llama(rms_norm_eps=0.1), {}, {}
    wide = {"attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 16}
    yield "llama-wide-heads", "llama", llama(head_dim=16), wide, {}
    yield "llama-wide-heads-old", "llama", llama(head_dim=16), {"rope.dimension_count": 16}, {}
    yield "llama-linear", "llama", llama(rope_parameters=rope(rope_type="linear", factor=4.0)), LINEAR, {}
    yield (
        "llama-linear-untyped",
        "llama",
        llama(rope_parameters=rope(rope_type="linear", factor=4.0)),
        {"rope.scaling.factor": 4.0},
        {},
    )
    yield (
        "llama-linear-old",
        "llama",
        llama(rope_parameters=rope(rope_type="linear", factor=4.0)),
        {"rope.scale_linear": 4.0},
        {},
    )
    yield "llama-unscaled", "llama", llama(), {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
    yield "llama-yarn", "llama", llama(rope_parameters=rope(**yarn)), keys, {}
    ramp = {"rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.yarn_beta_slow": 2.0}
    yield (
        "llama-yarn-ramp",
        "llama",
        llama(rope_parameters=rope(**yarn, beta_fast=16.0, beta_slow=2.0)),
        keys | ramp,
        {},
    )
    settings = llama(rope_parameters=rope(rope_type="llama3", **LLAMA3, rope_theta=5e5))
    factors = llama3_factors(5e5, 8, 8.0, 1.0, 4.0, 8192)
    yield "llama-3.1", "llama", settings, {"rope.freq_base": 5e5}, {"rope_freqs.weight": factors}
    odd = LLAMA3 | {"original_max_position_embeddings": 40, "low_freq_factor": 1.5}
    settings = llama(rope_parameters=rope(rope_type="llama3", **odd))
    yield "llama-other-factors", "llama", settings, {}, {"rope_freqs.weight": llama3_factors(1e4, 8, 8.0, 1.5, 4.0, 40)}
    yield "llama-biased", "llama", llama(attention_bias=True, mlp_bias=True), {}, {}
    yield (
        "mistral-window",
        "llama",
        transformers.MistralConfig(**ggufs.COMMON, rms_norm_eps=1e-5, sliding_window=12),
        {"attention.sliding_window": 12},
        {},
    )
    yield (
        "qwen2",
        "qwen2",
        transformers.Qwen2Config(**ggufs.COMMON, rms_norm_eps=1e-5, rope_parameters=rope(rope_theta=1e6)),
        {"rope.freq_base": 1e6},
        {},
    )
    yield (
        "qwen2-yarn",
        "qwen2",
        transformers.Qwen2Config(**ggufs.COMMON, rms_norm_eps=1e-5, rope_parameters=rope(**yarn)),
        keys,
        {},
    )
    yield (
        "qwen3",
        "qwen3",
        transformers.Qwen3Config(**ggufs.COMMON, rms_norm_eps=1e-5, head_dim=16),
        {
            "attention.key_length": 16,
            "attention.value_length": 16,
        },
        {},
    )
    gemma = {"attention.key_length": 16, "attention.value_length": 16, "attention.sliding_window": 12}
    caps = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}
    yield "gemma2", "gemma2", transformers.Gemma2Config(**ggufs.COMMON, **GEMMA, **caps), gemma | caps, {}
    yield (
        "gemma2-uncapped",
        "gemma2",
        transformers.Gemma2Config(**ggufs.COMMON, **GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None),
        gemma | dict.fromkeys(caps, 0.0),
        {},
    )
    yield "gemma2-usual-caps", "gemma2", transformers.Gemma2Config(**ggufs.COMMON, **GEMMA), gemma, {}
    two = {"full_attention": rope(rope_theta=1e6), "sliding_attention": rope()}
    yield (
        "gemma3",
        "gemma3",
        transformers.Gemma3TextConfig(**(ggufs.COMMON | {"num_hidden_layers": 7}), **GEMMA, rope_parameters=two),
        gemma | {"rope.freq_base": 1e6},
        {},
    )
    scaled = two | {"full_attention": rope(rope_theta=1e6, rope_type="linear", factor=8.0)}
    yield (
        "gemma3-linear",
        "gemma3",
        transformers.Gemma3TextConfig(
            **(ggufs.COMMON | {"num_hidden_layers": 7}), **GEMMA, rope_parameters=scaled, final_logit_softcapping=5.0
        ),
        gemma | LINEAR | {"rope.scaling.factor": 8.0, "final_logit_softcapping": 5.0},
        {},
    )
    phi = ggufs.COMMON | {"num_key_value_heads": 4, "rms_norm_eps": 1e-5}
    yield (
        "phi3",
        "phi3",
        transformers.Phi3Config(**phi, sliding_window=12),
        {
            "attention.sliding_window": 12,
            "rope.dimension_count": 8,
            "rope.scaling.original_context_length": 128,
        },
        {},
    )
    partial = rope(partial_rotary_factor=0.5)
    yield (
        "phi3-partial",
        "phi3",
        transformers.Phi3Config(**phi, rope_parameters=partial),
        {"rope.dimension_count": 4},
        {},
    )
    settings = transformers.Phi3Config(
        **phi, rope_parameters=rope(rope_type="longrope", **LONG), original_max_position_embeddings=32
    )
    yield (
        "phi3-long",
        "phi3",
        settings,
        {
            "rope.dimension_count": 8,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": math.sqrt(1 + math.log(128 / 32) / math.log(32)),
        },
        {"rope_factors_short.weight": LONG["short_factor"], "rope_factors_long.weight": LONG["long_factor"]},
    )
    small = {"vocab_size": 420, "n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    yield (
        "gpt2",
        "gpt2",
        transformers.GPT2Config(**small, n_positions=128, n_inner=48),
        {
            "attention.head_count_kv": None,
            "vocab_size": None,
        },
        {},
    )
    star = {"norm_epsilon": 1e-3, "rope_parameters": rope(rope_theta=1e5)}
    yield "starcoder2", "starcoder2", transformers.Starcoder2Config(**ggufs.COMMON, **star), {"rope.freq_base": 1e5}, {}
    stable = {"layer_norm_eps": 1e-3, "rope_parameters": rope(partial_rotary_factor=0.25)}
    yield (
        "stablelm",
        "stablelm",
        transformers.StableLmConfig(**ggufs.COMMON, **stable),
        {
            "rope.dimension_count": 2,
            "use_parallel_residual": False,
        },
        {},
    )
    yield (
        "stablelm-parallel",
        "stablelm",
        transformers.StableLmConfig(**ggufs.COMMON, **stable, use_parallel_residual=True, use_qkv_bias=True),
        {"rope.dimension_count": 2, "use_parallel_residual": True},
        {},
    )


CASES = {name: rest for name, *rest in cases()}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_gguf_gives_the_logits_of_the_model_in_it(name, tmp_path):
    architecture, config, keys, tensors = CASES[name]
    model = ggufs.made(config)
    ggufs.write(tmp_path / "it.gguf", model, architecture, ggufs.keys_of(config, **keys), tensors=tensors)
    bridge = load_model(tmp_path / "it.gguf", cache_dir=tmp_path / "cache", progress=False)
    expected = model(input_ids=IDS, use_cache=False).logits
    spread = (expected - expected.mean(-1, keepdim=True)).abs().max()
    gap = (bridge(IDS) - expected).abs().max()
    assert spread > 1, "a setting that is dropped must show"
    assert gap <= 64 * torch.finfo(torch.float32).eps * spread


def test_every_architecture_is_held_against_its_model():
    assert {architecture for architecture, *_ in CASES.values()} == set(gguf_config._ARCHITECTURES)


@pytest.mark.parametrize("name", ["llama-linear", "llama-3.1", "gemma2", "phi3-long", "llama-epsilon", "qwen2"])
@torch.no_grad()
def test_a_setting_that_is_dropped_would_show(name, tmp_path):
    """What the cases above are worth: the same file without its settings gives other logits."""
    architecture, config, keys, tensors = CASES[name]
    model = ggufs.made(config)
    written = ggufs.keys_of(config, **keys)
    if tensors:
        tensors = {}
    plain = {key: value for key, value in written.items() if key not in keys or "length" in key or "dimension" in key}
    plain |= {"attention.layer_norm_rms_epsilon": 1e-5}
    ggufs.write(tmp_path / "it.gguf", model, architecture, plain, tensors=tensors)
    bridge = load_model(tmp_path / "it.gguf", cache_dir=tmp_path / "cache", progress=False)
    expected = model(input_ids=IDS, use_cache=False).logits
    spread = (expected - expected.mean(-1, keepdim=True)).abs().max()
    assert (bridge(IDS) - expected).abs().max() > 1e-2 * spread


@torch.no_grad()
def test_a_split_file_is_joined(tmp_path):
    config = llama(tie_word_embeddings=False)
    model = ggufs.made(config)
    keys, total = ggufs.keys_of(config), len(ggufs.named(model, "llama"))
    halves = (("blk.2.", "output"), ("blk.0.", "blk.1.", "token_embd"))
    for number, left_out in enumerate(halves):
        path = tmp_path / f"it-0000{number + 1}-of-00002.gguf"
        ggufs.write(path, model, "llama", keys, leave_out=left_out, split=(number, 2, total))
    expected = model(input_ids=IDS, use_cache=False).logits
    for number in (1, 2):  # whichever is given
        path = tmp_path / f"it-0000{number}-of-00002.gguf"
        bridge = load_model(path, cache_dir=tmp_path / "cache", progress=False)
        assert (bridge(IDS) - expected).abs().max() <= 64 * torch.finfo(torch.float32).eps * expected.abs().max()
    assert len([path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]) <= 2
