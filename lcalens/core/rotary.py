"""Rotary embeddings that remember: frequencies that depend on the longest sequence seen so far.

Hugging Face's dynamic NTK scaling keeps the frequencies of the longest sequence until one shorter than the original
context comes, so that a text's numbers depend on which texts ran before it; longrope leaves the last sequence's
frequencies in its buffer. Here both are brought back to what a fresh model has, by their own code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_REMEMBERING = ("dynamic", "longrope")


def remembering(network: nn.Module) -> list[nn.Module]:
    """The modules whose rotary frequencies depend on lengths.

    Args:
        network: A Hugging Face model.
    """
    return [module for module in network.modules() if any(_is_remembering(kind) for kind in _kinds(module).values())]


def settle(network: nn.Module) -> None:
    """Forget every length seen.

    Args:
        network: A Hugging Face model.
    """
    for module in remembering(network):
        _settle(module)


@contextmanager
def recall_nothing(network: nn.Module) -> Iterator[None]:
    """Forget every length before each forward pass, and at the end.

    Args:
        network: A Hugging Face model.
    """
    modules = remembering(network)
    for module in modules:
        _settle(module)
    handles = [module.register_forward_pre_hook(_before) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in modules:
            _settle(module)


def _before(module: nn.Module, inputs: Any) -> None:
    _settle(module)


@torch.no_grad()
def _settle(module: nn.Module) -> None:
    """A sequence of one token, which Hugging Face's own code answers by the original frequencies."""
    for layer_type, kind in _kinds(module).items():
        if _is_remembering(kind):
            name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
            device = getattr(module, name).device
            place = torch.zeros(1, 1, dtype=torch.long, device=device)
            options = {} if layer_type is None else {"layer_type": layer_type}
            module.forward(torch.zeros(1, device=device), place, **options)
            if getattr(module, name) is getattr(module, name.replace("inv_freq", "original_inv_freq"), None):
                # Its own again, as in a fresh model: an edit of the one must not be one of the other.
                module.register_buffer(name, getattr(module, name).clone(), persistent=False)


def _kinds(module: nn.Module) -> dict[str | None, Any]:
    """The rotary scaling by type of layer; for None where all layers share one."""
    kind = vars(module).get("rope_type")
    return dict(kind) if isinstance(kind, dict) else {None: kind}


def _is_remembering(kind: Any) -> bool:
    return isinstance(kind, str) and any(name in kind for name in _REMEMBERING)
