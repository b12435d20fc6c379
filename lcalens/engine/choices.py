"""What a layer may be where its components and the config leave it open, the likeliest first.

Whether norms act on a head or on all together, by what the scores are scaled, whether the MLP reads the stream before
or after attention: no config says these alike in every family. So each possibility is a candidate, and `reading` takes
the one that computes what the model itself computed.
"""

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lcalens.engine.components import component_of, function_of, number, original
from lcalens.engine.decoder import Decoder, Function, Layer, Scaled, Step, identity
from lcalens.engine.observing import Unreadable, first_tensor
from lcalens.engine.positions import rotary_choices

_USUAL: tuple[Step, ...] = ("clip", "normalise", "rotate")
_CLIPPED_AFTER: tuple[Step, ...] = ("normalise", "clip", "rotate")  # OLMoE
_TURNED_BEFORE: tuple[Step, ...] = ("clip", "rotate", "normalise")  # HunYuan, NanoChat
_ORDERS = (_USUAL, _CLIPPED_AFTER, _TURNED_BEFORE)


# --- attention --------------------------------------------------------------------------------------------------------


def attentions(decoder: Decoder, layer: Layer, block: Any, index: int, model: Any) -> Iterator[Layer]:
    """Every attention that the facts allow.

    Args:
        decoder: The model so far.
        layer: What is said outright.
        block: Of the bridge.
        index: Which.
        model: The TransformerBridge.
    """
    choices = itertools.product(
        (layer.norm, identity),
        rotary_choices(block, index, model),
        _scales(block, layer, index),
        # transformers 5 adds Falcon's bias to the scores and, scaled, to the mask besides.
        (1.0, layer.scale, 2 * layer.scale) if decoder.key_bias else (1.0,),
        _head_norms(block),
    )
    for norm, (rotary, pairing), scale, bias_scale, (head_norms, order) in choices:
        yield replace(
            layer,
            norm=norm,
            rotary=rotary,
            pairing=pairing,
            scale=scale,
            bias_scale=bias_scale,
            normalise=head_norms,
            order=order,
            norms_join_heads=any(isinstance(head_norm, _OnWhole) for head_norm in head_norms.values()),
        )


def with_clip_elsewhere(attention: Layer) -> Layer:
    """The same attention with the clip on the other side of the norms.

    Args:
        attention: One of `attentions`.
    """
    return replace(attention, order=_USUAL if attention.order == _CLIPPED_AFTER else _CLIPPED_AFTER)


def _scales(block: Any, layer: Layer, index: int) -> list[float]:
    attention = original(block.attn)
    multiplier = number(attention, "scaling", "softmax_scale", "scale", "inv_norm_factor")
    divisor = number(attention, "scale_attn")
    usual = layer.scale
    scales = [multiplier, 1 / divisor if divisor else None, usual, 1.0, usual / (index + 1), 1 / (index + 1)]
    return list(dict.fromkeys(scale for scale in scales if scale))


def _head_norms(block: Any) -> list[tuple[dict[str, Function], tuple[Step, ...]]]:
    """Norms of queries, keys and values, and when they come; none where the block has none."""
    norms: dict[str, Any] = {}
    for name in "qkv":
        norm = _norm_named(block.attn, name)
        if norm is not None:
            norms[name] = norm
    if not norms:
        return [({}, _USUAL)]
    whole = {name: _OnWhole(norm) for name, norm in norms.items()}
    heads_first = {name: _heads_first(norm) for name, norm in norms.items()}
    return [*((form, order) for order in _ORDERS for form in (norms, whole, heads_first)), ({}, _USUAL)]


def _norm_named(bridge_attention: Any, name: str) -> Any:
    """The norm of queries, keys or values that the attention module has, or else the bridge's; or None."""
    attention, norm = original(bridge_attention), None
    for attribute in (f"{name}_norm", f"{name}_layernorm", f"{name}_ln"):
        module = getattr(attention, attribute, None)
        if isinstance(module, nn.Module):
            norm = original(module)
    if norm is None:
        component = component_of(bridge_attention, f"{name}_norm")
        norm = None if component is None else original(component)
    return norm


@dataclass(frozen=True, eq=False)
class _OnWhole:
    """A norm of all heads' coordinates together (OLMo 2)."""

    norm: Function

    def __call__(self, x: Float[Tensor, "*batch head width"]) -> Float[Tensor, "*batch head width"]:
        return rearrange(self.norm(rearrange(x, "... head width -> ... (head width)")),
                         "... (head width) -> ... head width", head=x.shape[-2])  # fmt: skip


def _heads_first(norm: Function) -> Function:
    """A norm of each head's own, on (batch, head, position, width) (StableLM)."""

    def normalise(x: Tensor) -> Tensor:
        flat = x.flatten(0, -4) if x.ndim > 4 else x
        heads = rearrange(flat, "batch position head width -> batch head position width")
        return rearrange(norm(heads), "batch head position width -> batch position head width").reshape(x.shape)

    return normalise


# --- the whole block --------------------------------------------------------------------------------------------------


def structures(block: Any, attention: Layer, parallel: bool) -> Iterator[Layer]:
    """How the block's parts may be put together.

    Args:
        block: Of the bridge.
        attention: The layer, with its attention chosen.
        parallel: Whether the config says that attention and MLP read the same stream.
    """
    multiplier = number(block, "residual_contribution_scale") or 1.0
    after = _scaled(function_of(block, "ln1_post"), multiplier)
    norm1, norm2 = function_of(block, "ln1"), function_of(block, "ln2")
    post = function_of(block, "ln2_post")
    mlp = _mlp(block)
    second = norm2 if norm2 is not identity or not parallel else norm1
    sequential = replace(attention, after_attention=after, mlp=_composed(norm2, mlp, post, multiplier))
    beside = replace(attention, after_attention=after, mlp=_composed(second, mlp, post, multiplier), parallel=True)
    shared = replace(attention, after_attention=after, mlp=_composed(norm1, mlp, post, multiplier), parallel=True)
    yield from (beside, sequential, shared) if parallel else (sequential, beside, shared)
    scalar = getattr(original(block), "layer_scalar", None)  # of the whole stream (Gemma 4)
    if isinstance(scalar, Tensor) and scalar.numel() == 1:
        yield replace(sequential, close=(identity, Scaled(identity, float(scalar))))
    # Post-norm: the stream itself is normalised after each addition (GPT-1, OPT-350m).
    yield replace(attention, norm=identity, after_attention=identity, mlp=mlp, close=(norm1, norm2))


def _scaled(function: Function, multiplier: float) -> Function:
    return function if multiplier == 1.0 else Scaled(function, multiplier)


def _composed(norm: Function, mlp: Function, post: Function, multiplier: float) -> Function:
    if post is identity and multiplier == 1.0:
        return mlp if norm is identity else lambda x: mlp(norm(x))
    return lambda x: post(mlp(norm(x))) * multiplier


def _mlp(block: Any) -> Function:
    """The MLP as a function of each position alone, whatever shape its module asks for."""
    component = getattr(block, "_modules", {}).get("mlp")
    if component is None:
        return torch.zeros_like
    module = original(component)
    if module is component or module is original(block):  # loose layers, and no module of their own (OPT)
        into, out = (original(component._modules[name]) for name in ("in", "out"))
        act = getattr(original(block), "activation_fn", None)
        if act is None:
            raise Unreadable("its MLP's activation is not known")
        return lambda x: out(act(into(x)))
    required = [
        parameter
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.default is inspect.Parameter.empty and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD,)
    ]
    residual = len(required) == 2  # it adds to a stream that it is given (BLOOM, MPT)

    def mlp(x: Tensor) -> Tensor:
        # A mixture of experts asks for (batch, position, d).
        flat = x.reshape(1, -1, x.shape[-1])
        return first_tensor(module(flat, torch.zeros_like(flat)) if residual else module(flat)).reshape(x.shape)

    return mlp
