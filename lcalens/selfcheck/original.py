"""Hugging Face's own model of a bridge's weights, made anew: what the bridge has to compute.

A bridge rewires the model that it wraps, so that model can vouch for nothing. This one is built from the configuration
by transformers alone, with rotary tables of its own, and holds the bridge's parameters, which take no memory twice.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lcalens.core.provenance import processing_of
from lcalens.core.quiet import quiet_libraries
from lcalens.selfcheck.identity import Unjudged

_WRAPPED = re.compile(r"(^|\.)_original_component(?=\.|$)")


def original_of(model: Any) -> Any:
    """A Hugging Face model over the bridge's parameters, which no bridge has rewired.

    Args:
        model: A TransformerBridge.

    Raises:
        Unjudged: It cannot be made; the message says why.
    """
    processing = processing_of(model)
    if processing != "raw":
        raise Unjudged(f"TransformerLens has changed the weights ({processing}), so Hugging Face has no such model")
    network = model.original_model
    config = copy.deepcopy(network.config)
    if getattr(config, "quantization_config", None) is not None:
        raise Unjudged("its weights are quantised, and a second copy would be another model's")
    dtype = next(network.parameters()).dtype
    try:
        with quiet_libraries(), _empty_parameters():
            made = _built(config, dtype)
    except Exception as error:
        raise Unjudged(f"transformers cannot build it anew ({type(error).__name__}: {error!s:.100})") from error
    held = _by_plain_name(network)
    if config.model_type == "lca":
        held |= {name.removeprefix("layers.0."): value for name, value in held.items()}
    for name, tensor in [*made.named_parameters(), *_kept_buffers(made)]:
        value = held.get(name)
        if value is None or value.shape != tensor.shape:
            raise Unjudged(f"its parameter {name} is not found in the bridge")
        owner = made.get_submodule(name.rpartition(".")[0])
        place = owner._parameters if isinstance(tensor, nn.Parameter) else owner._buffers
        place[name.rpartition(".")[2]] = value
    for buffers in (module._buffers for module in made.modules()):
        for name, value in buffers.items():
            if value is not None:
                buffers[name] = value.to(next(network.parameters()).device)
    return made.eval()


def _built(config: Any, dtype: torch.dtype) -> Any:
    if config.model_type == "lca":
        from lcalens.lca.model.model import LCAForCausalLM

        return LCAForCausalLM(config)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")


@contextmanager
def _empty_parameters() -> Iterator[None]:
    """Within it, modules are made without memory for their parameters; their buffers are computed."""
    register = nn.Module.register_parameter

    def empty(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param)
        if param is not None:
            made: Any = type(param)(param.to("meta"), requires_grad=False)
            self._parameters[name] = made

    nn.Module.register_parameter = empty
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _by_plain_name(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that the bridge keeps in Hugging Face's own modules, by Hugging Face's names.

    A bridge's own copies (queries, keys and values of a fused projection) stand under other names.
    """
    found: dict[str, Tensor] = {}
    for name, value in network.state_dict(keep_vars=True).items():
        # The innermost comes from Hugging Face's module; a wrapper's shortcut to it is the same tensor.
        found.setdefault(_WRAPPED.sub("", name).removeprefix("."), value)
    return found


def _kept_buffers(made: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that are saved with a model, as weights are."""
    saved = made.state_dict()
    yield from ((name, value) for name, value in made.named_buffers() if name in saved)
