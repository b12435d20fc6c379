"""How a model tells positions apart inside attention: rotations of queries and keys, or a bias on the scores of keys.

The names of `rotary_choices` are those that `rotations_of` understands: a new kind of rotation goes into both.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from lcalens.engine.components import original
from lcalens.engine.decoder import Pairing
from lcalens.engine.observing import device_of, enter_first_block

_KEPT = 256  # rotations, each of one name, start and length


def rotary_choices(block: Any, index: int, model: Any) -> list[tuple[str | None, Pairing]]:
    """Which rotation a layer may use, and which coordinates may rotate together; the likeliest first.

    Args:
        block: Of the bridge.
        index: Which.
        model: The TransformerBridge.
    """
    attention, rotary = original(block.attn), getattr(model, "rotary_emb", None)
    if isinstance(getattr(attention, "embed_positions", None), Tensor):
        return [(f"table:{index}", "adjacent"), (None, "half")]
    if rotary is None or original(rotary) is rotary:
        return [(None, "half")]
    kind = getattr(attention, "layer_type", None) or getattr(attention, "attention_type", None)
    suffix = f":{kind}" if isinstance(kind, str) and _asks_for_kind(original(rotary)) else ""
    rotated: list[tuple[str | None, Pairing]] = [
        (f"plain{suffix}", "half"),
        (f"doubled{suffix}", "half"),
        (f"plain{suffix}", "adjacent"),
        (f"spread{suffix}", "adjacent"),
        (f"backward{suffix}", "half"),
    ]
    unused = getattr(attention, "use_rope", True) in (False, 0)
    return [(None, "half"), *rotated] if unused else [*rotated, (None, "half")]


def _asks_for_kind(rotary: Any) -> bool:
    return "layer_type" in inspect.signature(rotary.forward).parameters


def rotations_of(model: Any) -> Callable[[str, Int[Tensor, " position"]], tuple[Tensor, Tensor]]:
    """Cosines and sines by the model's own rotary module, or by the sinusoids that its attention keeps.

    Args:
        model: A TransformerBridge; what is returned holds Hugging Face's modules and not the bridge.
    """
    rotary = original(getattr(model, "rotary_emb", None))
    like, attentions = original(model.unembed).weight[:1], [original(block.attn) for block in model.blocks]
    computed: dict[Any, tuple[Tensor, Tensor]] = {}

    def rotations(name: str, positions: Int[Tensor, " position"]) -> tuple[Tensor, Tensor]:
        key = name, int(positions[0]), len(positions), positions.device
        if key not in computed:
            if len(computed) > _KEPT:
                computed.clear()
            computed[key] = compute(name, positions)
        return computed[key]

    def compute(name: str, positions: Int[Tensor, " position"]) -> tuple[Tensor, Tensor]:
        kind, _, layer = name.partition(":")
        if kind == "table":  # sines, then cosines, of half the rotated width (GPT-J, CodeGen)
            table = attentions[int(layer)].embed_positions.to(positions.device)[positions]
            sin, cos = table.to(like.dtype).chunk(2, -1)
            return _twice_adjacent(cos), _twice_adjacent(sin)
        layer_kind = () if not layer else (layer,)
        cos, sin = rotary(like.to(positions.device), positions[None], *layer_kind)
        cos, sin = cos[0], sin[0]
        if kind == "doubled":  # each frequency once (GPT-OSS)
            return torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
        if kind == "spread":  # the frequencies twice over, where adjacent coordinates rotate together (GLM, Ernie)
            half = cos.shape[-1] // 2
            return _twice_adjacent(cos[..., :half]), _twice_adjacent(sin[..., :half])
        return cos, -sin if kind == "backward" else sin  # (NanoChat)

    return rotations


def _twice_adjacent(values: Float[Tensor, "position frequency"]) -> Float[Tensor, "position width"]:
    return repeat(values, "position frequency -> position (frequency two)", two=2)


def key_bias_of(
    network: nn.Module, first: nn.Module, passed: dict[str, Any], heads: int
) -> Callable[[int], Tensor] | None:
    """What the model hands its blocks to add to the scores of each key (ALiBi), by head and length; None without.

    Args:
        network: Hugging Face's model.
        first: Its first block, as the bridge wraps it.
        passed: What the first block is given besides the stream.
        heads: Of each layer.
    """
    if not any(isinstance(passed.get(name), Tensor) for name in ("alibi", "position_bias")):
        return None
    computed: dict[int, Tensor] = {}

    def key_bias(length: int) -> Float[Tensor, "head key"]:
        if length not in computed:
            tokens = torch.zeros(1, length, dtype=torch.long, device=device_of(network))
            _, arguments = enter_first_block(network, first, tokens)
            bias = arguments["alibi"] if isinstance(arguments.get("alibi"), Tensor) else arguments["position_bias"]
            computed[length] = bias.reshape(heads, -1)[:, -length:].float()
        return computed[length]

    return key_bias
