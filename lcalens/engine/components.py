"""What a bridge's components and the config say outright: a layer's projections and sizes, its window, the ending.

Nothing here knows a family by its name, and nothing here is chosen: what these leave open is in `choices`.
"""

import math
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lcalens.engine.decoder import Function, Layer, identity
from lcalens.engine.observing import Unreadable, called_after_blocks


def original(component: Any) -> Any:
    """Hugging Face's own module behind a bridge's component, without hook points.

    Args:
        component: Of a bridge; a module of Hugging Face's stays as it is.
    """
    return getattr(component, "original_component", None) or component


def component_of(owner: Any, name: str) -> Any:
    """A component of this name behind which there is a module of Hugging Face's, or None.

    Args:
        owner: A bridge's block, or its attention.
        name: As TransformerLens calls it, such as `ln1`.
    """
    component = getattr(owner, "_modules", {}).get(name)
    return None if component is None or original(component) is component else component


def function_of(owner: Any, name: str) -> Function:
    """A component as a function; `identity` where the owner has none of this name.

    Args:
        owner: A bridge's block.
        name: As TransformerLens calls it.
    """
    component = component_of(owner, name)
    return identity if component is None else original(component)


def number(owner: Any, *names: str) -> float | None:
    """The first of these attributes that is a number.

    Args:
        owner: A module or a configuration.
        *names: What families call it.
    """
    for name in names:
        value = getattr(owner, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def text_config(model: Any) -> Any:
    """The configuration of the part that reads text.

    Args:
        model: A TransformerBridge.
    """
    config = model.original_model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def check_blocks(blocks: list[Any]) -> None:
    """Refuse blocks that are not attention with queries, keys and values of its own.

    Args:
        blocks: Of a bridge.

    Raises:
        Unreadable: One of them is not.
    """
    for index, block in enumerate(blocks):
        if component_of(block, "attn") is None:
            raise Unreadable(f"layer {index} is no attention and MLP (a state-space or convolution block?)")
        if any(getattr(block.attn, name, None) is None for name in "qkvo"):
            raise Unreadable(f"the attention of layer {index} has no separate queries, keys and values")


def layer_of(block: Any, index: int, model: Any) -> Layer:
    """What is said outright about a layer; every field that `choices` fills is as if the model had nothing there.

    Args:
        block: Of the bridge.
        index: Which.
        model: The TransformerBridge.

    Raises:
        Unreadable: A projection is no plain matrix.
    """
    attention = original(block.attn)
    out = original(block.attn.o)
    projections = {name: original(getattr(block.attn, name)) for name in "qkv"}
    for name, module in [*projections.items(), ("o", out)]:
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise Unreadable(f"W_{name.upper()} of layer {index} is no plain matrix (quantised?)")
    heads = int(number(attention, "num_heads", "num_attention_heads") or model.cfg.n_heads)
    width = _width_of(projections["q"]) // heads
    weight = out.weight if _is_conv1d(out) else out.weight.T
    sinks = getattr(attention, "sinks", None)
    return Layer(
        norm=function_of(block, "ln1"),
        project=projections,
        normalise={},
        clip=number(attention, "clip_qkv") or number(getattr(attention, "config", None), "clip_qkv"),
        heads=heads,
        kv_heads=_width_of(projections["k"]) // width,
        scale=1 / math.sqrt(width),
        softcap=number(attention, "attn_logit_softcapping"),
        window=_window(attention, index),
        rotary=None,
        pairing="half",
        bias_scale=1.0,
        sinks=sinks if isinstance(sinks, Tensor) else None,
        out=rearrange(weight, "(head width) d -> head width d", head=heads),
        out_bias=getattr(out, "bias", None),
        after_attention=identity,
        mlp=identity,
        parallel=False,
        close=(identity, identity),
        device=out.weight.device,
    )


def _window(attention: Any, index: int) -> int | None:
    """How far back this layer looks, by the facts of its attention module and its config."""
    if getattr(attention, "is_sliding", True) is False:
        return None  # whatever window the other layers have (EXAONE 4)
    if hasattr(attention, "sliding_window"):
        window = attention.sliding_window
        return int(window) if isinstance(window, int) and not isinstance(window, bool) else None
    config: Any = getattr(attention, "config", None)
    if getattr(attention, "attention_type", None) == "local":
        return int(config.window_size)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[index] != "sliding_attention":
        return None
    if getattr(config, "use_sliding_window", True) is False or not isinstance(window, int):
        return None
    return window


def _width_of(projection: Any) -> int:
    weight = projection.weight
    return int(weight.shape[1] if _is_conv1d(projection) else weight.shape[0])


def matrix_of(projection: Any) -> tuple[Float[Tensor, "read written"], Float[Tensor, " written"] | None]:
    """A projection's weight, from what it reads to what it writes, and its bias.

    Args:
        projection: A module whose weight is a plain matrix.
    """
    weight = projection.weight
    return weight if _is_conv1d(projection) else weight.T, getattr(projection, "bias", None)


def _is_conv1d(module: Any) -> bool:
    """GPT-2's Conv1D keeps its weight as (in, out), every other module as (out, in)."""
    return type(module).__name__ == "Conv1D"


def ending_of(model: Any) -> tuple[Function, Float[Tensor, "vocab d"], Float[Tensor, " vocab"] | None]:
    """The norm before the unembedding, W_U, and its bias; a projection between the two is part of W_U (OPT-350m).

    Args:
        model: A TransformerBridge.

    Raises:
        Unreadable: W_U is quantised, or more than a norm and a projection stand before it.
    """
    unembed = original(model.unembed)
    weight, bias = unembed.weight, getattr(unembed, "bias", None)
    if not weight.is_floating_point():
        raise Unreadable("its unembedding is quantised")
    norm = getattr(model, "ln_final", None)
    if norm is not None:
        return original(norm), weight, bias
    modules = called_after_blocks(model)
    if modules and isinstance(modules[-1], nn.Linear):
        projection = modules.pop()
        if projection.bias is not None:
            bias = weight @ projection.bias + (0 if bias is None else bias)
        weight = weight @ projection.weight
    if len(modules) > 1:
        raise Unreadable(f"{len(modules)} modules stand between its last layer and its unembedding")
    return (modules[0] if modules else identity), weight, bias


def logit_scales(model: Any) -> list[float]:
    """What the logits may be multiplied by: nothing, or a number of the config, which some families divide by instead.

    Args:
        model: A TransformerBridge.
    """
    config = text_config(model)
    multiplier, divisor = number(config, "logit_scale"), number(config, "logits_scaling")
    return [1.0, *([multiplier] if multiplier else []), *([1 / divisor] if divisor else [])]
