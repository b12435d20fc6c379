"""GGUF files of small Hugging Face models, written as llama.cpp's converter writes them.

What it does to names and numbers (convert_hf_to_gguf.py) is done here again, with gguf's own table of names.
"""

import copy
import json

import gguf
import numpy as np
import torch
import transformers

from helpers import standins

COMMON = {
    "vocab_size": 420,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def made(config):
    """The configuration's model, with weights large enough for an error in a setting to show, gains and biases too."""
    standins.set_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
            else:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def write(path, model, architecture, keys, *, tensors=None, leave_out=(), split=None, pre="default", words=None):
    """Write a model as a GGUF file.

    Args:
        path: Where to.
        model: A Hugging Face model.
        architecture: llama.cpp's name for its kind.
        keys: The settings by key without the architecture, each a number, a bool, a string or a list.
        tensors: More tensors by their name in the file.
        leave_out: Beginnings of names of tensors that are not written.
        split: (number, count, total tensors) of a part.
        pre: How the tokenizer cuts text.
        words: The kind of tokenizer, byte-level by default.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(int(gguf.LlamaFileType.ALL_F32))
    for key, value in keys.items():
        add(writer, key if key.startswith(("general.", "tokenizer.")) else f"{architecture}.{key}", value)
    if split is not None:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
        writer.add_int32("split.tensors.count", split[2])
    _add_tokenizer(writer, pre, words or "gpt2")
    for name, values in (named(model, architecture) | (tensors or {})).items():
        if not name.startswith(tuple(leave_out)):
            writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer, key, value):
    kind = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kind.get(type(value), writer.add_array)(key, value)


def named(model, architecture):
    """Every tensor of the model under llama.cpp's name and in its layout."""
    config = model.config
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    found = {}
    for name, tensor in model.state_dict().items():
        if config.tie_word_embeddings and name.startswith("lm_head"):
            continue
        base, _, kind = name.rpartition(".")
        theirs = f"{names.get_name(base)}.{kind}"
        found[theirs] = _layout(theirs, tensor.detach().numpy(), architecture, config)
    return found


def _layout(name, values, architecture, config):
    if architecture == "llama":
        for kind, heads in (("attn_q", config.num_attention_heads), ("attn_k", config.num_key_value_heads)):
            if f".{kind}." in name:  # the rotated pairs side by side
                return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return values + 1
    turned = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    if architecture == "gpt2" and name.endswith(turned):
        return values.T
    return values


def _add_tokenizer(writer, pre, kind):
    spec = json.loads(standins.byte_level_tokenizer().backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(sorted(spec["vocab"], key=spec["vocab"].get))
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(spec["vocab"]) - 1))
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in spec["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def keys_of(config, **more):
    """What the converter writes for every architecture; a key of `more` that is None is left out."""
    norm = "rms_norm_eps" if hasattr(config, "rms_norm_eps") else "layer_norm_eps"
    epsilon = getattr(config, norm, None) or getattr(config, "norm_epsilon", None) or config.layer_norm_epsilon
    kind = "rms_" if hasattr(config, "rms_norm_eps") else ""
    keys = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", None) or config.n_inner or 4 * config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", config.num_attention_heads),
        f"attention.layer_norm_{kind}epsilon": float(epsilon),
        "vocab_size": config.vocab_size,
    }
    return {key: value for key, value in (keys | more).items() if value is not None}
