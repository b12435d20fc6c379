"""A GGUF's tensors as Hugging Face's: every parameter of the model filled, every tensor of the file used."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from einops import rearrange

from lcalens.core.errors import LcalensError
from lcalens.llm.models.gguf_file import GGUF

# Tensors from which the configuration is read (lcalens.llm.models.gguf_config).
_SETTINGS = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})


def weights_of(gguf: GGUF, config: Any) -> dict[str, torch.Tensor]:
    """The state dict of the configuration's model, in float32; a tied output is left to its embedding.

    Args:
        gguf: The open file.
        config: The Hugging Face configuration of its model.

    Raises:
        LcalensError: The file lacks a tensor, holds one that the model has no place for, or one of another shape.
    """
    shapes = _parameters(config)
    names = _names(gguf.metadata.architecture, config, shapes)
    absent = sorted(set(names.values()) - set(gguf.tensors))
    file = gguf.paths[0].name
    if absent:
        raise LcalensError(
            f"source: {file} lacks {len(absent)} of its model's {len(names)} tensors ({_listed(absent)}), which would "
            "be random. It is one part of a split model, or damaged: download all of it."
        )
    spare = sorted(set(gguf.tensors) - set(names.values()) - _SETTINGS)
    if spare:
        raise LcalensError(
            f"source: {file} holds {len(spare)} tensors that the Hugging Face model has no place for "
            f"({_listed(spare)}), and without them it is another model. Use the model's Hugging Face folder or id."
        )
    undo = _UNDO.get(gguf.metadata.architecture, lambda name, values, config: values)
    weights: dict[str, torch.Tensor] = {}
    for name, source in names.items():
        values = np.ascontiguousarray(undo(source, gguf.read(source), config))
        if values.shape != shapes[name]:
            raise LcalensError(
                f"source: {file}: {source} has the shape {values.shape}, and the model that the file describes takes "
                f"{shapes[name]}; it is damaged or of another model."
            )
        # The reader maps the file: what is kept must not hang on it.
        weights[name] = torch.from_numpy(values.copy())
    return weights


def _parameters(config: Any) -> dict[str, tuple[int, ...]]:
    """The model's parameters with their shapes, none of which is made; a tied output is left out."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def _names(architecture: str, config: Any, parameters: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Each parameter's name in the file, by llama.cpp's own table."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key, value in MODEL_ARCH_NAMES.items() if value == architecture)
    table = get_tensor_name_map(arch, config.num_hidden_layers)
    names: dict[str, str] = {}
    for name in parameters:
        base, _, kind = name.rpartition(".")
        theirs = table.get_name(base)
        if theirs is None:
            raise LcalensError(f"source: llama.cpp has no name for the parameter {name} of a {architecture} model.")
        names[name] = f"{theirs}.{kind}"
    return names


def _llama(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    """llama.cpp keeps the two numbers of a rotated pair side by side; Hugging Face in the two halves of a head."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for kind, count in heads.items():
        if f".{kind}." in name:
            return rearrange(values, "(head pair half) ... -> (head half pair) ...", head=count, half=2)
    return values


def _gemma(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    """llama.cpp adds to a norm's gains the 1 that Gemma adds when it runs."""
    return values - 1 if name.endswith("norm.weight") else values


def _gpt2(name: str, values: np.ndarray, config: Any) -> np.ndarray:
    """GPT-2's matrices are written inputs first."""
    turned = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    return values.T if name.endswith(turned) else values


_UNDO: dict[str, Callable[[str, np.ndarray, Any], np.ndarray]] = {
    "llama": _llama,
    "gemma2": _gemma,
    "gemma3": _gemma,
    "gpt2": _gpt2,
}


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
