"""What a TransformerBridge computes itself: the oracle that what is read of it is tried against.

Everything here runs the model as it is and looks on. Nothing is computed from weights, so that an error in reading
them cannot hide in what they are compared with.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint


class Unreadable(Exception):
    """A part of the model that cannot be read, and why."""


class _Stop(Exception):
    """Raised before the first block, to end a forward pass there."""


@dataclass(frozen=True, eq=False)
class Observed:
    """What one block did in a run of the model itself.

    Attributes:
        before: The residual stream before it.
        after: And after it.
        z: What its heads read.
        written: What W_O made of it.
    """

    before: Float[Tensor, "batch position d"]
    after: Float[Tensor, "batch position d"]
    z: Float[Tensor, "batch position all_heads"]
    written: Float[Tensor, "batch position d"]


def observe(
    model: Any, tokens: Int[Tensor, "batch position"]
) -> tuple[list[Observed], Float[Tensor, "batch position v"]]:
    """Every block's input and output, its heads' and its attention's, and the logits, in a run of the model itself.

    Args:
        model: A TransformerBridge.
        tokens: Of one length.

    Raises:
        Unreadable: A block or its attention was not called.
    """
    seen: dict[tuple[str, int], Tensor] = {}
    handles = []

    def enter(index: int) -> Callable[..., None]:
        return lambda module, arguments, named: seen.update({("before", index): _stream(arguments, named).clone()})

    def leave(index: int) -> Callable[..., None]:
        return lambda module, arguments, output: seen.update({("after", index): first_tensor(output).clone()})

    def project(index: int) -> Callable[..., None]:
        return lambda module, arguments, output: seen.update(
            {("z", index): first_tensor(arguments).clone(), ("written", index): first_tensor(output).clone()}
        )

    for index, block in enumerate(model.blocks):
        handles.append(block.register_forward_pre_hook(enter(index), with_kwargs=True))
        handles.append(block.register_forward_hook(leave(index)))
        handles.append(block.attn.o.register_forward_hook(project(index)))
    with _watching(handles):
        logits = model(tokens)

    def tensor_of(name: str, index: int) -> Tensor:
        if (name, index) not in seen:
            raise Unreadable(f"layer {index} shows no {name}")
        return seen[name, index].reshape(*tokens.shape, -1)  # some attention works on flattened positions

    names = ("before", "after", "z", "written")
    return [Observed(*(tensor_of(name, index) for name in names)) for index in range(len(model.blocks))], logits


def enter_first_block(
    network: nn.Module, first: nn.Module, tokens: Int[Tensor, "batch position"]
) -> tuple[Tensor, dict[str, Any]]:
    """What the first block is given: the residual stream, and the model's other arguments to it.

    Args:
        network: Hugging Face's model.
        first: Its first block, as the bridge wraps it.
        tokens: Of one length.
    """
    arguments_of: dict[str, Any] = {}

    def stop(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        arguments_of.update(named, hidden_states=_stream(arguments, named), positional=arguments)
        raise _Stop

    handle = first.register_forward_pre_hook(stop, with_kwargs=True)
    options = {"use_cache": False} if "use_cache" in inspect.signature(network.forward).parameters else {}
    with _watching([handle]), suppress(_Stop):
        network(input_ids=tokens, **options)
    return arguments_of.pop("hidden_states"), arguments_of


def called_after_blocks(model: Any) -> list[nn.Module]:
    """The modules that the model calls between its last block and its unembedding, in order.

    Args:
        model: A TransformerBridge.
    """
    called: list[nn.Module] = []
    inside = {id(module) for outer in (*model.blocks, model.unembed) for module in outer.modules()}
    leaves = [
        module
        for module in model.original_model.modules()
        if id(module) not in inside and not list(module.children()) and not isinstance(module, HookPoint)
    ]
    finished: list[bool] = []
    handles = [model.blocks[-1].register_forward_hook(lambda *_: finished.append(True))]
    handles += [
        leaf.register_forward_hook(lambda leaf, *_: called.append(leaf) if finished else None) for leaf in leaves
    ]
    with _watching(handles):
        model(torch.zeros(1, 2, dtype=torch.long, device=device_of(model.original_model)))
    return called


def first_tensor(value: Any) -> Tensor:
    """A module's output, which may stand in a tuple with others.

    Args:
        value: A tensor, or a collection that holds one.
    """
    return value if isinstance(value, Tensor) else next(item for item in value if isinstance(item, Tensor))


def device_of(network: nn.Module) -> torch.device:
    """Where a model's first weights are.

    Args:
        network: Hugging Face's model.
    """
    return next(network.parameters()).device


def _stream(arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """The residual stream among a block's arguments."""
    return named["hidden_states"] if "hidden_states" in named else first_tensor(arguments)


@contextmanager
def _watching(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
