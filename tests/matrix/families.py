"""Tiny random models of every decoder family, the special settings of each small enough to bite at a few tokens.

`build(name)` is Hugging Face's own model, `boot(name)` a TransformerBridge over a model of the same weights. These are
random and large, norms and biases too: a model fresh from its configuration has norms of 1, biases of 0 and logits
that nothing moves, and would hide most mistakes.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

VOCABULARY = 259  # three special tokens, and a token for each byte
WINDOW = 4
CONTEXT = 96


@dataclass(frozen=True)
class Family:
    """A configuration to be built.

    Attributes:
        name: Unique.
        kind: The configuration's `model_type` in transformers; `lca` is the toy model.
        config: Its settings beside the shared ones of `_SHARED`.
        notes: What sets it apart.
        gain: Of the weights: larger ones make sharper attention.
        unembed: Of the unembedding; where that is tied, a third of it is the final norm's.
        embed: Of the embedding.
    """

    name: str
    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: str = ""
    gain: float = 1.3
    unembed: float = 18.0
    embed: float = 1.0


_SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
# Configurations that name their sizes in their own way; None where there is no such size.
_NAMES: dict[str, dict[str, str | None]] = {
    kind: {
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": None,
        "max_position_embeddings": "n_positions",
    }
    for kind in ("gpt2", "gptj", "codegen", "gpt_bigcode")
}
_NAMES |= {
    "gpt_neo": {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads", "num_key_value_heads": None},
    "gpt_neox": {"num_key_value_heads": None},
    "opt": {"intermediate_size": "ffn_dim", "num_key_value_heads": None},
    "bloom": {
        "intermediate_size": None,
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": None,
        "max_position_embeddings": None,
    },
    "mpt": {
        "hidden_size": "d_model",
        "intermediate_size": None,
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": None,
        "max_position_embeddings": "max_seq_len",
    },
    "falcon": {"intermediate_size": "ffn_hidden_size", "num_key_value_heads": "num_kv_heads"},
    "mamba": dict.fromkeys(
        ("intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    ),
    "t5": {
        "hidden_size": "d_model",
        "intermediate_size": "d_ff",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": None,
        "max_position_embeddings": None,
    },
}
_FINAL_NORMS = ("ln_f.", "norm_f.", "final_layer_norm.", "final_layernorm.", "model.norm.")
_WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]
_GEMMA = {"head_dim": 12, "hidden_activation": "gelu_pytorch_tanh"}
_MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 8}

_LISTED = (
    Family("gpt2", "gpt2", notes="learned positions, fused qkv, biases; the embedding is tied",
           config={"tie_word_embeddings": True}),
    Family("gpt2-scaled", "gpt2", notes="scores also divided by the layer's number",
           config={"scale_attn_by_inverse_layer_idx": True}, gain=1.6),
    Family("gpt-neo", "gpt_neo", notes="local and global layers by turns, scores not scaled",
           config={"attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": WINDOW}, gain=0.8),
    Family("gptj", "gptj", notes="parallel, one norm, partial interleaved rotary", config={"rotary_dim": 4}),
    Family("gpt-neox", "gpt_neox", notes="Pythia: parallel, two norms, partial rotary, fused qkv by head",
           config={"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}}),
    Family("gpt-neox-sequential", "gpt_neox", notes="the same, one after the other",
           config={"use_parallel_residual": False}),
    Family("opt", "opt", notes="positions with an offset, biases", config={"tie_word_embeddings": True}),
    Family("opt-projected", "opt", notes="embeddings narrower than the stream",
           config={"word_embed_proj_dim": 24, "tie_word_embeddings": True}),
    Family("opt-post-norm", "opt", notes="OPT-350m: norms after the sums, no final norm, narrow embeddings",
           config={"do_layer_norm_before": False, "word_embed_proj_dim": 24, "tie_word_embeddings": True},
           gain=1.5),
    Family("bloom", "bloom", notes="ALiBi, norm after the embedding, fused qkv by head"),
    Family("mpt", "mpt", notes="ALiBi, clipped qkv, no biases",
           config={"attn_config": {"clip_qkv": 1.0, "alibi": True, "alibi_bias_max": 4}, "tie_word_embeddings": True}),
    Family("falcon-7b", "falcon", notes="parallel, one norm, one key and value head, rotary",
           config={"multi_query": True, "parallel_attn": True, "new_decoder_architecture": False, "bias": False}),
    Family("falcon-40b", "falcon", notes="parallel, two norms, grouped heads in its own fused layout",
           config={"new_decoder_architecture": True, "num_kv_heads": 2, "bias": False,
                                                                              "multi_query": True}),
    Family("falcon-40b-plain", "falcon", notes="the same, said in the configuration as TransformerLens expects it",
           config={"new_decoder_architecture": True, "num_kv_heads": 2, "bias": False, "multi_query": False}),
    Family("falcon-rw", "falcon", notes="sequential, ALiBi, biases, fused qkv by head",
           config={"multi_query": False, "parallel_attn": False, "new_decoder_architecture": False, "alibi": True,
                   "bias": True, "num_kv_heads": 4}),
    Family("codegen", "codegen", notes="parallel, partial interleaved rotary, qkv fused in four blocks",
           config={"rotary_dim": 4}),
    Family("gpt-bigcode", "gpt_bigcode", notes="one key and value head, learned positions",
           config={"multi_query": True, "tie_word_embeddings": True}),
    Family("gpt-bigcode-multi-head", "gpt_bigcode", notes="as many as queries, fused by head",
           config={"multi_query": False, "tie_word_embeddings": True}),
    Family("llama", "llama", notes="two queries to a key and value head"),
    Family("llama-multi-query", "llama", notes="four to one", config={"num_key_value_heads": 1}),
    Family("llama-wide", "llama", notes="six heads, three to one, wider together than the stream; biases; tied",
           config={"num_attention_heads": 6, "hidden_size": 36, "head_dim": 8, "attention_bias": True, "mlp_bias": True,
                   "tie_word_embeddings": True}),
    Family("llama3-rope", "llama", notes="scaled rotary of Llama 3.1",
           config={"rope_parameters": {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0,
                                       "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                       "original_max_position_embeddings": 16}}),
    Family("llama-yarn", "llama", notes="YaRN, whose rotary also scales", config={"rope_parameters": _YARN}),
    Family("mistral", "mistral", notes="a window in every layer", config={"sliding_window": WINDOW}),
    Family("mixtral", "mixtral", notes="two of four experts, a window",
           config={"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW}),
    Family("qwen2", "qwen2", notes="biases of q, k and v; windows by layer",
           config={"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": _WINDOWS}),
    Family("qwen3", "qwen3", notes="norms of q and k by head, windows by layer",
           config={"head_dim": 12, "use_sliding_window": True, "sliding_window": WINDOW, "layer_types": _WINDOWS},
           unembed=36.0),
    Family("qwen2-moe", "qwen2_moe", notes="experts and a shared one behind a gate",
           config={"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                   "shared_expert_intermediate_size": 24, "mlp_only_layers": [1]}),
    Family("qwen3-moe", "qwen3_moe", notes="experts, norms of q and k",
           config={"head_dim": 12, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                   "norm_topk_prob": True}),
    Family("gemma", "gemma", notes="1 + weight in norms, a scaled embedding, one key and value head",
           config=_GEMMA | {"num_key_value_heads": 1}, embed=0.3),
    Family("gemma2", "gemma2", notes="norms before and after, soft caps of scores and logits, windows by layer",
           config=_GEMMA | {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 12.0, "layer_types": _WINDOWS,
                            "query_pre_attn_scalar": 6, "sliding_window": WINDOW}, embed=0.3),
    Family("gemma3", "gemma3_text", notes="norms before, after, and of q and k; two rotary bases; windows by layer",
           config=_GEMMA | {"query_pre_attn_scalar": 6, "sliding_window": WINDOW, "layer_types": _WINDOWS,
                            "rope_parameters": {
                                "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
                                "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0}}},
           embed=0.3),
    Family("gemma4", "gemma4_text", notes="norms of q, k and v, layers of other head sizes, a scale of the stream",
           config=_GEMMA | {"sliding_window": WINDOW, "global_head_dim": 16, "num_global_key_value_heads": 1,
                            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
                            "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
                            "vocab_size_per_layer_input": VOCABULARY}, embed=0.3),
    Family("phi", "phi", notes="parallel, one norm, partial rotary, biases everywhere",
           config={"num_key_value_heads": 4,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}}),
    Family("phi-qk-norm", "phi", notes="the same with norms of q and k", config={"qk_layernorm": True}),
    Family("phi3", "phi3", notes="fused qkv and gate, a window",
           config={"sliding_window": WINDOW, "original_max_position_embeddings": CONTEXT}),
    Family("phi3-longrope", "phi3", notes="rotary frequencies that depend on the length: short and long within reach",
           config={"original_max_position_embeddings": 10,
                   "rope_parameters": {"rope_type": "longrope", "rope_theta": 100.0, "partial_rotary_factor": 1.0,
                                       "short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [2.0, 3.0, 4.0, 5.0],
                                       "original_max_position_embeddings": 10}}),
    Family("olmo", "olmo", notes="norms without weights, clipped qkv", config={"clip_qkv": 1.0}),
    Family("olmo2", "olmo2", notes="norms after, of q and k whole"),
    Family("olmo3", "olmo3", notes="as OLMo 2, windows by layer",
           config={"sliding_window": WINDOW, "layer_types": _WINDOWS}),
    Family("stablelm", "stablelm", notes="layer norms, partial rotary, biases of q, k and v",
           config={"use_qkv_bias": True,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}}),
    Family("stablelm-parallel", "stablelm", notes="parallel, norms of q and k by head",
           unembed=54.0, config={"use_parallel_residual": True, "qk_layernorm": True, "rope_parameters": {
               "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25}}),
    Family("cohere", "cohere", notes="parallel, centred norms without bias, interleaved rotary, a scale of the logits",
           config={"logit_scale": 0.5}, unembed=36.0),
    Family("cohere-qk-norm", "cohere", notes="the same with norms of q and k by head",
           config={"logit_scale": 0.5, "use_qk_norm": True, "tie_word_embeddings": True}, embed=0.7, unembed=120.0),
    Family("cohere2", "cohere2", notes="windows with rotary, full attention without positions",
           config={"logit_scale": 0.5, "sliding_window": WINDOW, "layer_types": _WINDOWS}, unembed=36.0),
    Family("granite", "granite", notes="multipliers of embedding, attention, residual and logits",
           config={"embedding_multiplier": 1.5, "attention_multiplier": 0.3, "residual_multiplier": 0.6,
                   "logits_scaling": 2.0}, unembed=36.0),
    Family("granite-moe", "granitemoe", notes="the same with experts",
           config={"num_local_experts": 4, "num_experts_per_tok": 2, "embedding_multiplier": 1.5,
                   "attention_multiplier": 0.3, "residual_multiplier": 0.6, "logits_scaling": 2.0}, unembed=36.0),
    Family("starcoder2", "starcoder2", notes="layer norms, biases, a window", config={"sliding_window": WINDOW}),
    Family("smollm3", "smollm3", notes="every other layer without positions, windows by layer",
           config={"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": WINDOW,
                   "layer_types": _WINDOWS}),
    Family("gpt-oss", "gpt_oss", notes="sinks, windows by layer, experts with biases, YaRN",
           config={"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW,
                   "layer_types": _WINDOWS, "rope_parameters": _YARN | {"beta_fast": 32.0, "beta_slow": 1.0,
                                                                        "truncate": False}}),
    Family("olmoe", "olmoe", notes="experts, norms of q and k whole, before the clip",
           config={"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 1.0}),
    Family("nemotron", "nemotron", notes="1 + weight in centred norms, partial rotary, an MLP of squared ReLU",
           config={"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}}),
    Family("glm4", "glm4", notes="norms before and after, partial rotary of adjacent pairs, fused gate",
           config={"head_dim": 8, "attention_bias": True,
                   "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}}),
    Family("exaone4", "exaone4", notes="norms after, of q and k by head; windows with rotary, full attention without",
           config={"sliding_window": WINDOW, "layer_types": _WINDOWS}),
    Family("hunyuan", "hunyuan_v1_dense", notes="norms of q and k after the rotation",
           config={"head_dim": 12}),
    Family("nanochat", "nanochat", notes="norms without weights, of q and k after the rotation; a soft cap",
           config={"final_logit_softcapping": 12.0}),
    Family("apertus", "apertus", notes="norms of q and k by head, an activation with weights of its own (xIELU)",
           config={}),
    Family("deepseek-v2", "deepseek_v2", notes="latent keys and values, experts", config=_MLA),
    Family("deepseek-v3", "deepseek_v3", notes="latent keys and values, experts chosen with a bias", config=_MLA),
    Family("toy", "lca", notes="latent concepts: one head, no residual stream, no mask",
           config={"m": 5, "d_model": 24, "d_head": 8}),
    Family("mamba", "mamba", notes="state space: there is no attention", config={"state_size": 4, "expand": 2}),
    Family("t5", "t5", notes="encoder and decoder", config={"d_kv": 8}),
)  # fmt: skip
FAMILIES: dict[str, Family] = {family.name: family for family in _LISTED}


def config_of(family: Family) -> Any:
    """Its transformers configuration."""
    from transformers import AutoConfig

    if family.kind == "lca":
        from lcalens import LCAConfig

        return LCAConfig(**family.config)
    names = _NAMES.get(family.kind, {})
    shared = {names.get(key, key): value for key, value in _SHARED.items()}
    return AutoConfig.for_model(
        family.kind, **({key: value for key, value in shared.items() if key is not None} | dict(family.config))
    )


def build(name: str, *, dtype: torch.dtype = torch.float32, rounded: bool = False, seed: int = 0) -> tuple[Any, Any]:
    """Hugging Face's model, fresh from its configuration with large random weights, and a tokenizer of bytes.

    Args:
        name: One of `FAMILIES`.
        dtype: Of the weights. Whatever it is, they are the same numbers, drawn in float32.
        rounded: Whether they are rounded to bfloat16 first: what a bfloat16 model is to be compared with.
        seed: Of the weights.
    """
    import transformers

    family = FAMILIES[name]
    config = config_of(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family.kind == "lca":
            from lcalens import LCAForCausalLM

            model: Any = LCAForCausalLM(config).to(dtype)
        elif family.kind == "t5":
            model = transformers.T5ForConditionalGeneration(config).to(dtype)
        else:
            if dtype == torch.float64:
                config._experts_implementation = "eager"  # grouped products are for other dtypes alone
            model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    _randomise(model, family, torch.Generator().manual_seed(seed), rounded)
    model.config.architectures = [type(model).__name__]
    return model.eval().requires_grad_(False), tokenizer_of(family)


def boot(name: str, *, dtype: torch.dtype = torch.float32, rounded: bool = False) -> Any:
    """The same model as a TransformerBridge.

    Args:
        name: One of `FAMILIES`.
        dtype: Of the weights.
        rounded: As for `build`.
    """
    import lcalens

    model, tokenizer = build(name, dtype=dtype, rounded=rounded)
    if FAMILIES[name].kind == "lca":
        return lcalens.lca_bridge(model)
    return lcalens.load_model(model, tokenizer=tokenizer)


@torch.no_grad()
def _randomise(model: Any, family: Family, generator: torch.Generator, rounded: bool) -> None:
    """Draw every weight, in float32 and in an order that the dtype does not change."""
    conv = {id(module.weight) for module in model.modules() if type(module).__name__ == "Conv1D"}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    tokens = {id(model.get_input_embeddings().weight)}
    output = model.get_output_embeddings()
    head = {id(output.weight)} - tokens if output is not None else set()
    final = 1.0 if head else family.unembed / 6
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if "scalar" in name or "correction" in name]
    for name, weight in [*model.named_parameters(), *buffers]:
        noise = torch.randn(weight.shape, generator=generator)
        if family.kind == "mamba" and ("A_log" in name or ".D" in name or "dt_proj" in name):
            continue
        if "layer_scalar" in name:
            drawn = torch.full(weight.shape, 0.8)
        elif "sinks" in name:
            drawn = noise
        elif id(weight) in head:
            drawn = noise * family.unembed / math.sqrt(weight.shape[-1])
        elif id(weight) in embeddings:
            drawn = noise * (family.embed if id(weight) in tokens else 0.5)
        elif weight.ndim < 2 or name.endswith(("_proj_bias", ".bias")) or "layernorm" in name.lower():
            start = float(weight.float().mean().round()) if weight.numel() else 0.0  # norms begin at 1, the rest at 0
            drawn = start + 0.3 * noise
            if ".layers." not in name and any(part in name for part in _FINAL_NORMS):
                drawn = drawn * final
        else:
            fan_in = weight.shape[0] if id(weight) in conv else weight.shape[-1]
            # A sharp router: experts that change places on a rounding error have little weight.
            sharper = 4.0 if "router" in name or name.endswith("mlp.gate.weight") else 1.0
            drawn = noise * sharper * family.gain / math.sqrt(fan_in)
        weight.copy_(drawn.bfloat16().float() if rounded else drawn)


def tokenizer_of(family: Family) -> Any:
    """A token for each byte behind three special ones; the toy model has its own."""
    if family.kind == "lca":
        from lcalens.lca.model.model import lca_tokenizer

        return lca_tokenizer(int(family.config["m"]))
    return _bytes()


@functools.cache
def _bytes() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<pad>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
