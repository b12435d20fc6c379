"""What sends and what receives along direct paths: as users give it, as results name it, as the engine takes it."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.engine.decoder import Decoder
from lcalens.engine.paths import EMBEDDING, MLP, Receiver, Sender
from lcalens.mechanism.arguments import is_index

Part = tuple[int, int] | str
Parts = str | Iterable[Any]
"""Heads as (layer, head), and names as results show them: `L3H1`, `MLP3`, `embed`; `heads` and `mlps` for all."""
_HEAD, _MLP, _LAYER = re.compile(r"L(\d+)H(\d+)"), re.compile(r"MLP(\d+)"), re.compile(r"L(\d+)")


def sender_name(sender: Sender) -> str:
    """As results name it.

    Args:
        sender: A head, an MLP, or the embedding.
    """
    if sender.head == EMBEDDING:
        return "embed"
    return f"MLP{sender.layer}" if sender.head == MLP else f"L{sender.layer}H{sender.head}"


def receiver_name(receiver: Receiver, layers: int) -> str:
    """As results name it.

    Args:
        receiver: A head, a layer, or the logits.
        layers: How many layers the model has.
    """
    if receiver.head >= 0:
        return f"L{receiver.layer}H{receiver.head}"
    return "logits" if receiver.layer == layers else f"L{receiver.layer}"


def read_senders(senders: Any, decoder: Decoder, before: int) -> tuple[Sender, ...]:
    """Senders in the model's order, each once.

    Args:
        senders: What was given; None for all that stand before a layer.
        decoder: The model.
        before: That layer, the last receiver's.

    Raises:
        LcalensError: One is no part of the model, or none stands before the layer.
    """
    layers, heads = len(decoder.layers), decoder.layers[0].heads
    every = {
        "embed": [Sender(-1, EMBEDDING)],
        "heads": [Sender(layer, head) for layer in range(before) for head in range(heads)],
        "mlps": [Sender(layer, MLP) for layer in range(before)],
    }
    if senders is None:
        found = {sender for some in every.values() for sender in some}
    else:
        found = set()
        for part in _listed("senders", senders):
            named = isinstance(part, str)
            if named and part in every:
                found.update(every[part])
            elif named and (match := _MLP.fullmatch(part)):
                found.add(Sender(_layer("senders", int(match[1]), layers), MLP))
            else:
                found.add(Sender(*_head("senders", part, layers, heads)))
    if not any(sender.layer < before for sender in found):
        raise LcalensError("senders: none of them stands before a receiver; give senders of earlier layers.")
    return tuple(sorted(found, key=lambda sender: (sender.layer, sender.head == MLP, sender.head)))


def read_receivers(receivers: Any, at: str, decoder: Decoder) -> tuple[Receiver, ...]:
    """Receivers in the model's order, each once.

    Args:
        receivers: What was given: heads for their queries, keys or values; layers for `resid`; nothing for `logits`.
        at: What of them reads.
        decoder: The model.

    Raises:
        LcalensError: They are missing, or no parts of the model.
    """
    layers, heads = len(decoder.layers), decoder.layers[0].heads
    if at == "logits":
        if receivers is not None and _listed("receivers", receivers) != ["logits"]:
            raise LcalensError("receivers: the logits are one by themselves; leave it out, or give another at=.")
        return (Receiver(layers, -1),)
    if receivers is None:
        what = "layers, such as receivers=[3]" if at == "resid" else "heads, such as receivers=[(3, 1)]"
        raise LcalensError(f"receivers: at={at!r} needs {what}.")
    if at == "resid":
        given = [receivers] if is_index(receivers) else _listed("receivers", receivers)
        named = [_LAYER.fullmatch(layer) if isinstance(layer, str) else None for layer in given]
        numbers = [int(match[1]) if match else layer for match, layer in zip(named, given, strict=True)]
        if not all(is_index(number) for number in numbers):
            raise LcalensError(f"receivers: expected layers, counted from 0, got {receivers!r:.60}.")
        return tuple(sorted({Receiver(_layer("receivers", int(number), layers), -1) for number in numbers}))
    found = {Receiver(*_head("receivers", part, layers, heads)) for part in _listed("receivers", receivers)}
    return tuple(sorted(found))


def _listed(name: str, parts: Any) -> list[Any]:
    if isinstance(parts, np.ndarray | Tensor):
        parts = parts.tolist()
    listed = [parts] if isinstance(parts, str) else list(parts) if isinstance(parts, Iterable) else []
    if not listed or isinstance(parts, bytes | dict):
        raise LcalensError(
            f"{name}: expected heads as (layer, head) or names such as 'L3H1', got {parts!r:.60}; [(3, 1)] is layer "
            "3's head 1."
        )
    return listed


def _layer(name: str, layer: int, layers: int) -> int:
    if not 0 <= layer < layers:
        raise LcalensError(f"{name}: layer {layer} is none of the model's {layers}; they are counted from 0.")
    return layer


def _head(name: str, part: Any, layers: int, heads: int) -> tuple[int, int]:
    pair: Sequence[Any] = ()
    if isinstance(part, str):
        match = _HEAD.fullmatch(part)
        pair = () if match is None else (int(match[1]), int(match[2]))
    elif isinstance(part, np.ndarray | Tensor | Sequence):
        pair = part.tolist() if isinstance(part, np.ndarray | Tensor) else part
    if len(pair) != 2 or not all(map(is_index, pair)) or not (0 <= pair[0] < layers and 0 <= pair[1] < heads):
        kinds = " nor 'MLP3', 'embed', 'heads' or 'mlps'" if name == "senders" else ""
        raise LcalensError(
            f"{name}: {part!r:.60} is no (layer, head) of a model of {layers} layers of {heads} heads{kinds}; both are "
            "counted from 0."
        )
    return int(pair[0]), int(pair[1])
