"""The configuration that a GGUF's metadata describes: each key is carried, or the file is refused with its name.

transformers' own reader drops what its table does not list (rope scaling, soft caps, windows of half the families, the
context of GPT-2). Here the table is the other way round: what no line below takes is refused, unless its value is what
would hold without it. Defaults of absent keys are llama.cpp's, for which the file was written. Architectures that have
not been held against the model that a file was made from (tests/oracle/test_gguf.py) are refused.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lcalens.core.errors import LcalensError
from lcalens.llm.models.gguf_file import GGUF, Metadata

# Keys that say nothing where they have this value, or nothing about numbers at all (None: any value).
_NEUTRAL: dict[str, tuple[Any, ...] | None] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_feed_forward_length": (0,),
    "expert_shared_count": (0,),
    "final_logit_softcapping": (0.0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "pooling_type": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.finetuned": None,  # whether the model was tuned for its scaling
    "tensor_data_layout": None,  # how the file that was converted was laid out
    "use_parallel_residual": (False,),
}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def config_of(gguf: GGUF) -> Any:
    """The Hugging Face configuration of a GGUF's model.

    Args:
        gguf: The open file.

    Raises:
        LcalensError: Its architecture is not proven, a key has no place in the configuration, or keys contradict each
            other or the tensors.
    """
    meta = gguf.metadata
    build = _ARCHITECTURES.get(meta.architecture)
    if build is None:
        raise LcalensError(
            f"source: {gguf.paths[0].name} has the architecture {meta.architecture!r}, which lcalens does not read "
            f"from GGUF: it has been proven for {', '.join(_ARCHITECTURES)}. Use the model's Hugging Face folder or id."
        )
    config = build(gguf, meta)
    for name in meta.left_over():
        key, value = name.removeprefix(f"{meta.architecture}."), meta.values[name]
        allowed = _NEUTRAL.get(key, ())
        if allowed is not None and value not in allowed:
            raise LcalensError(
                f"source: {gguf.paths[0].name} sets {name} = {value!s:.60}, which lcalens cannot carry into a Hugging "
                "Face configuration, and without it the numbers are wrong. Use the model's Hugging Face folder or id."
            )
    return config


def _common(gguf: GGUF, meta: Metadata, *, norm: str = "attention.layer_norm_rms_epsilon") -> dict[str, Any]:
    """What every architecture says, by Hugging Face's names, with the epsilon of its norms as `eps`."""
    heads = _one(meta, "attention.head_count")
    rows, width = gguf.shape("token_embd.weight") if "token_embd.weight" in gguf.tensors else (0, 0)
    if not rows:
        raise LcalensError(f"source: {gguf.paths[0].name} has no token_embd.weight: a part of it is missing.")
    hidden = _one(meta, "embedding_length")
    vocabulary = int(meta.take("vocab_size", rows))
    if (vocabulary, hidden) != (rows, width):
        raise LcalensError(
            f"source: {gguf.paths[0].name} says {vocabulary} tokens of width {hidden}, and its embedding has {rows} of "
            f"{width}."
        )
    ids = {name: meta.values.get(f"tokenizer.ggml.{key}") for name, key in _IDS.items()}
    return {
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": _one(meta, "feed_forward_length"),
        "num_hidden_layers": _one(meta, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _one(meta, "attention.head_count_kv", heads),
        "max_position_embeddings": _one(meta, "context_length"),
        "eps": _decimal(meta.take(norm, needed=True)),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        **{name: int(token) if token is not None and int(token) < rows else None for name, token in ids.items()},
    }


def _named(common: dict[str, Any], epsilon: str) -> dict[str, Any]:
    """The common fields, with the norms' epsilon by the name that an architecture has for it."""
    return {(epsilon if name == "eps" else name): value for name, value in common.items()}


_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}


def _one(meta: Metadata, key: str, default: Any = None) -> int:
    """A count that is the same in every layer."""
    value = meta.take(key, default, needed=default is None)
    listed = set(value) if isinstance(value, list) else {value}
    if len(listed) != 1:
        raise LcalensError(
            f"source: {meta.architecture}.{key} differs from layer to layer; lcalens does not read such."
        )
    return int(listed.pop())


def _decimal(value: Any) -> float:
    """The decimal number that was rounded to the file's float32: 1e-05 for 9.99999974738e-06."""
    return float(f"{float(value):.7g}")


def _head_width(meta: Metadata, common: dict[str, Any]) -> int:
    usual = common["hidden_size"] // common["num_attention_heads"]
    key, value = (int(meta.take(f"attention.{kind}_length", usual)) for kind in ("key", "value"))
    if key != value:
        raise LcalensError(
            f"source: the GGUF has keys of width {key} and values of width {value}; transformers has one."
        )
    return key


def _rope(gguf: GGUF, meta: Metadata, width: int, context: int, *, partial: bool = False) -> dict[str, Any]:
    """Rotary embeddings: base, share of the head, scaling; from keys and from the tensors that hold factors."""
    rotated = int(meta.take("rope.dimension_count", width))
    rope: dict[str, Any] = {"rope_theta": _decimal(meta.take("rope.freq_base", 10000.0)), "rope_type": "default"}
    if partial:
        rope["partial_rotary_factor"] = rotated / width
    elif rotated != width:
        raise LcalensError(
            f"source: the GGUF rotates {rotated} of the {width} dimensions of a head "
            f"({meta.architecture}.rope.dimension_count), which its Hugging Face model cannot."
        )
    # llama.cpp: no type is linear, no factor (or 0) is 1; `scale_linear` is its old name.
    factor = float(meta.take("rope.scaling.factor", 0.0)) or float(meta.take("rope.scale_linear", 0.0)) or 1.0
    kind = str(meta.take("rope.scaling.type", "linear"))
    original = int(meta.take("rope.scaling.original_context_length", context))
    long, short = (f"rope_factors_{which}.weight" for which in ("long", "short"))
    if long in gguf.tensors or short in gguf.tensors or kind == "longrope":
        return rope | _longrope(gguf, meta, factor, original, long, short)
    if "rope_freqs.weight" in gguf.tensors:
        return rope | _frequency_factors(gguf, meta, factor, context, rope["rope_theta"], rotated)
    if kind == "none" or factor == 1.0:
        return rope
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": _decimal(factor)}
    if kind == "yarn":
        return rope | _yarn(meta, _decimal(factor), original)
    raise LcalensError(
        f"source: the GGUF's {meta.architecture}.rope.scaling.type is {kind!r}, which lcalens cannot carry."
    )


def _longrope(gguf: GGUF, meta: Metadata, factor: float, original: int, long: str, short: str) -> dict[str, Any]:
    if long not in gguf.tensors or short not in gguf.tensors or factor != 1.0:
        raise LcalensError(
            f"source: {gguf.paths[0].name} scales its rotations by factors for short and long texts, and does not hold "
            f"both {long} and {short} alone; download it again."
        )
    return {
        "rope_type": "longrope",
        "short_factor": [_decimal(value) for value in gguf.read(short).ravel()],
        "long_factor": [_decimal(value) for value in gguf.read(long).ravel()],
        "original_max_position_embeddings": original,
        "attention_factor": float(meta.take("rope.scaling.attn_factor", 1.0)),
    }


def _frequency_factors(
    gguf: GGUF, meta: Metadata, factor: float, context: int, theta: float, rotated: int
) -> dict[str, Any]:
    """What divides each frequency, kept as a tensor: Llama 3.1's rule where it fits, else the numbers themselves."""
    divisors = gguf.read("rope_freqs.weight").ravel().astype(np.float64)
    if factor != 1.0 or len(divisors) != rotated // 2:
        raise LcalensError(
            f"source: {gguf.paths[0].name} has {len(divisors)} factors in rope_freqs.weight for {rotated // 2} "
            f"frequencies, and the factor {factor:g} in {meta.architecture}.rope.scaling.factor; lcalens cannot join "
            "them."
        )
    if np.all(divisors == 1.0):
        return {}
    rule = {"rope_type": "llama3", "factor": _decimal(divisors.max()), **_LLAMA3}
    if np.allclose(divisors, _llama3_divisors(theta, rotated, rule), rtol=1e-5, atol=0):
        return rule
    same = [float(value) for value in divisors]
    return {
        "rope_type": "longrope",  # with the same factors for every length: the one kind that takes any numbers
        "short_factor": same,
        "long_factor": same,
        "original_max_position_embeddings": context,
        "attention_factor": 1.0,
    }


def _llama3_divisors(theta: float, rotated: int, rule: dict[str, Any]) -> np.ndarray:
    """What Llama 3.1's rule divides each frequency by (Dubey et al., 2024, as Hugging Face computes it)."""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, rotated, 2) / rotated)
    low, high, original = (
        _LLAMA3[key] for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / rule["factor"] + smooth)


def _yarn(meta: Metadata, factor: float, original: int) -> dict[str, Any]:
    """YaRN; llama.cpp and Hugging Face agree on it where nothing but the ramp is given."""
    extra = {
        "rope.scaling.attn_factor": (1.0,),
        "rope.scaling.yarn_attn_factor": (1.0, -1.0),
        "rope.scaling.yarn_ext_factor": (1.0, -1.0),
        "rope.scaling.yarn_log_multiplier": (0.0,),
    }
    for key, allowed in extra.items():
        value = meta.take(key, allowed[0])
        if value not in allowed:
            raise LcalensError(
                f"source: the GGUF sets {meta.architecture}.{key} = {value}, which lcalens cannot carry."
            )
    ramp = {
        "beta_fast": _decimal(meta.take("rope.scaling.yarn_beta_fast", 32.0)),
        "beta_slow": _decimal(meta.take("rope.scaling.yarn_beta_slow", 1.0)),
    }
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **ramp}


def _has(gguf: GGUF, ending: str) -> bool:
    return any(name.endswith(ending) for name in gguf.tensors)


def _llama(gguf: GGUF, meta: Metadata) -> Any:
    """LLaMA and what llama.cpp takes for one (SmolLM2, Mistral); with windows it is Mistral's class."""
    from transformers import LlamaConfig, MistralConfig

    common = _common(gguf, meta)
    width = _head_width(meta, common)
    # Old files give the head's width as what is rotated, and no key_length.
    if f"{meta.architecture}.attention.key_length" not in meta.values:
        width = int(meta.take("rope.dimension_count", width))
    fields: dict[str, Any] = _named(common, "rms_norm_eps") | {"head_dim": width}
    fields["rope_parameters"] = _rope(gguf, meta, width, common["max_position_embeddings"])
    window = int(meta.take("attention.sliding_window", 0))
    biased = {kind: _has(gguf, f".{kind}.bias") for kind in ("attn_q", "ffn_up")}
    if window and not any(biased.values()):
        return MistralConfig(**fields, sliding_window=window, architectures=["MistralForCausalLM"])
    if window:
        raise LcalensError("source: the GGUF has windows and biases, and no Hugging Face model of its kind has both.")
    return LlamaConfig(
        **fields,
        attention_bias=biased["attn_q"],
        mlp_bias=biased["ffn_up"],
        architectures=["LlamaForCausalLM"],
    )


def _plain(kind: str) -> Callable[[GGUF, Metadata], Any]:
    """An architecture whose configuration is the common fields, a head's width and rotations."""

    def build(gguf: GGUF, meta: Metadata) -> Any:
        import transformers

        common = _common(gguf, meta)
        width = _head_width(meta, common)
        fields: dict[str, Any] = _named(common, "rms_norm_eps")
        fields["rope_parameters"] = _rope(gguf, meta, width, common["max_position_embeddings"])
        if width != common["hidden_size"] // common["num_attention_heads"] and kind == "Qwen2":
            raise LcalensError(f"source: the GGUF has heads of width {width}, and Qwen 2 has no field for it.")
        if kind == "Qwen3":
            fields["head_dim"] = width
        return getattr(transformers, f"{kind}Config")(**fields, architectures=[f"{kind}ForCausalLM"])

    return build


def _gemma(kind: str, layers_of_27b: int) -> Callable[[GGUF, Metadata], Any]:
    """Gemma 2 and 3: windows in some layers, soft caps, a scale of the queries that only the largest sets apart."""

    def build(gguf: GGUF, meta: Metadata) -> Any:
        import transformers

        common = _common(gguf, meta)
        width = _head_width(meta, common)
        layers, heads = common["num_hidden_layers"], common["num_attention_heads"]
        fields: dict[str, Any] = _named(common, "rms_norm_eps") | {
            "head_dim": width,
            # The file does not say it. llama.cpp goes by the number of layers, and so must who reads its files.
            "query_pre_attn_scalar": common["hidden_size"] // heads if layers == layers_of_27b else width,
            "sliding_window": int(meta.take("attention.sliding_window", 4096)),
        }
        rope = _rope(gguf, meta, width, common["max_position_embeddings"])
        if kind == "Gemma2":
            fields["rope_parameters"] = rope
            fields["attn_logit_softcapping"] = _decimal(meta.take("attn_logit_softcapping", 50.0)) or None
            fields["final_logit_softcapping"] = _decimal(meta.take("final_logit_softcapping", 30.0)) or None
            return transformers.Gemma2Config(**fields, architectures=["Gemma2ForCausalLM"])
        local = {"rope_type": "default", "rope_theta": _decimal(meta.take("rope.freq_base_swa", 10000.0))}
        if f"{meta.architecture}.rope.freq_base" not in meta.values:
            rope["rope_theta"] = 1e6
        period = meta.take("attention.sliding_window_pattern", 6)
        full = period if isinstance(period, list) else [(layer + 1) % int(period) != 0 for layer in range(layers)]
        fields["layer_types"] = ["sliding_attention" if windowed else "full_attention" for windowed in full]
        fields["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
        fields["final_logit_softcapping"] = _decimal(meta.take("final_logit_softcapping", 0.0)) or None
        return transformers.Gemma3TextConfig(**fields, architectures=["Gemma3ForCausalLM"])

    return build


def _phi3(gguf: GGUF, meta: Metadata) -> Any:
    from transformers import Phi3Config

    common = _common(gguf, meta)
    width, context = _head_width(meta, common), common["max_position_embeddings"]
    if width != common["hidden_size"] // common["num_attention_heads"]:
        raise LcalensError(f"source: the GGUF has heads of width {width}, and Phi-3 has no field for it.")
    fields: dict[str, Any] = _named(common, "rms_norm_eps")
    rope = _rope(gguf, meta, width, context, partial=True)
    original = rope.get("original_max_position_embeddings", context)
    return Phi3Config(
        **fields,
        rope_parameters=rope,
        original_max_position_embeddings=original,
        sliding_window=int(meta.take("attention.sliding_window", 0)) or None,
        architectures=["Phi3ForCausalLM"],
    )


def _gpt2(gguf: GGUF, meta: Metadata) -> Any:
    from transformers import GPT2Config

    common = _common(gguf, meta, norm="attention.layer_norm_epsilon")
    if common["num_key_value_heads"] != common["num_attention_heads"]:
        raise LcalensError("source: the GGUF says gpt2 and shares keys among heads, which GPT-2 does not.")
    ids = {name: common[name] for name in _IDS}
    return GPT2Config(
        vocab_size=common["vocab_size"],
        n_positions=common["max_position_embeddings"],
        n_embd=common["hidden_size"],
        n_layer=common["num_hidden_layers"],
        n_head=common["num_attention_heads"],
        n_inner=common["intermediate_size"],
        layer_norm_epsilon=common["eps"],
        tie_word_embeddings=common["tie_word_embeddings"],
        **ids,
        architectures=["GPT2LMHeadModel"],
    )


def _starcoder2(gguf: GGUF, meta: Metadata) -> Any:
    from transformers import Starcoder2Config

    common = _common(gguf, meta, norm="attention.layer_norm_epsilon")
    width = _head_width(meta, common)
    fields: dict[str, Any] = _named(common, "norm_epsilon")
    fields["rope_parameters"] = _rope(gguf, meta, width, common["max_position_embeddings"])
    return Starcoder2Config(
        **fields,
        use_bias=_has(gguf, ".attn_q.bias"),
        sliding_window=int(meta.take("attention.sliding_window", 0)) or None,
        architectures=["Starcoder2ForCausalLM"],
    )


def _stablelm(gguf: GGUF, meta: Metadata) -> Any:
    from transformers import StableLmConfig

    common = _common(gguf, meta, norm="attention.layer_norm_epsilon")
    width = _head_width(meta, common)
    rope = _rope(gguf, meta, width, common["max_position_embeddings"], partial=True)
    fields: dict[str, Any] = _named(common, "layer_norm_eps")
    fields["partial_rotary_factor"] = rope["partial_rotary_factor"]
    meta.take("use_parallel_residual")  # llama.cpp and Hugging Face both go by whether there is a second norm
    return StableLmConfig(
        **fields,
        rope_parameters=rope,
        use_qkv_bias=_has(gguf, ".attn_q.bias"),
        use_parallel_residual=not _has(gguf, ".ffn_norm.weight"),
        architectures=["StableLmForCausalLM"],
    )


_ARCHITECTURES: dict[str, Callable[[GGUF, Metadata], Any]] = {
    "llama": _llama,
    "qwen2": _plain("Qwen2"),
    "qwen3": _plain("Qwen3"),
    "gemma2": _gemma("Gemma2", 46),
    "gemma3": _gemma("Gemma3", 62),
    "phi3": _phi3,
    "gpt2": _gpt2,
    "starcoder2": _starcoder2,
    "stablelm": _stablelm,
}
