"""One stamp of a model's state: when it is read, how long it holds, and what is remembered under it.

What lcalens remembers of a model (its layers, the paths that are exact on it) and what it keeps on disk is valid only
while the model computes the same numbers. Neither the identity of a parameter nor its version says so: `p.data = q`
keeps both, as does an edit in place through `p.data`, or of a tensor that shares its memory. So contents are read at
every public call, and with them all else a forward pass depends on; `state` says what that is.

`steady` is the door of every public function that measures: it refuses what makes numbers another model's, holds
the model in evaluation mode, and reads the stamp once.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lcalens.core.checks import check_bridge
from lcalens.core.errors import LcalensError
from lcalens.core.offload import check_in_memory
from lcalens.core.rotary import recall_nothing, settle
from lcalens.core.state import AUTOCAST, State, read_state
from lcalens.core.verdicts import check_verdicts

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_held: ContextVar[Mapping[int, tuple[State, tuple[nn.Module, ...]]] | None] = ContextVar("held", default=None)


def stamp(model: Any) -> str:
    """A digest that changes with anything that decides the model's numbers.

    Read are: each parameter, each buffer (the non-persistent too) and each other tensor that a module holds, by
    content, shape, type and device; the values of every configuration; plain attributes and code of every module;
    train or eval; autocast; default dtype; precision of matrix products; versions of the libraries. Equal models have
    equal stamps in any process, wherever they were loaded from. Attached hooks are not part of it: see
    `lcalens.core.provenance.active_hooks`.

    Args:
        model: A TransformerBridge.

    Example:
        ```
        before = stamp(model)
        model.original_model.lm_head.weight.data[0, 0] += 1
        assert stamp(model) != before
        ```
    """
    return state_of(model).digest


def state_of(model: Any) -> State:
    """The stamp with the identity of what it was read from; inside `steady`, the one that was read there.

    Args:
        model: A TransformerBridge.
    """
    held = (_held.get() or {}).get(id(model))
    if held is not None:
        return held[0]
    settle(model.original_model)
    return read_state(model)


@contextmanager
def steady(model: Any) -> Iterator[str]:
    """Hold a model as it is measured: in evaluation mode, outside autocast, its stamp read once.

    Every module gets its own mode back. Rotary embeddings whose frequencies depend on the lengths they have seen
    forget them before every forward pass, so that no number depends on what ran before. Inside, `stamp`, `state_of`
    and `PerState` read nothing again. It can be entered again.

    Args:
        model: A TransformerBridge.

    Yields:
        The stamp.

    Raises:
        LcalensError: It is no TransformerBridge; autocast is on; or weights are not in memory.

    Example:
        ```
        with steady(model) as stamp:
            logits = model(ids)
        ```
    """
    held = _held.get() or {}
    if id(model) in held:
        yield held[id(model)][0].digest
        return
    check_state(model)
    modules = tuple(every_module(model))
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        with recall_nothing(model.original_model):
            state = read_state(model)
            token = _held.set({**held, id(model): (state, modules)})
            try:
                yield state.digest
            finally:
                _held.reset(token)
    finally:
        for module in training:
            module.training = True


def holds_steady(function: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A public function of (model, ...) that runs inside `steady`, and not on a model that `doctor` found it wrong on.

    Args:
        function: Its first argument is the model.
    """

    @functools.wraps(function)
    def held(model: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with steady(model) as digest:
            check_verdicts(digest, getattr(function, "__name__", ""))
            return function(model, *args, **kwargs)

    return held


def check_state(model: Any) -> None:
    """Refuse a model whose numbers now would not be its own.

    Args:
        model: A TransformerBridge; train mode is not refused, as `steady` takes it out.

    Raises:
        LcalensError: It is no TransformerBridge; autocast is on; or weights are not in memory.
    """
    check_bridge(model)
    check_in_memory(model.original_model)
    for device in AUTOCAST:
        if torch.is_autocast_enabled(device):
            kind = str(torch.get_autocast_dtype(device)).removeprefix("torch.")
            raise LcalensError(
                f"model: autocast to {kind} is on for {device}, so that its numbers are not those of its own dtype; "
                f"leave the autocast block, or load the model with dtype={kind!r}."
            )


class PerState:
    """What was worked out for a model, valid as long as its stamp is the same and its tensors the same objects."""

    def __init__(self):
        self._kept: WeakKeyDictionary[Any, tuple[State, Any]] = WeakKeyDictionary()

    def get(self, model: Any, make: Callable[[], T]) -> T:
        """What `make` gave for this state of the model, calling it once per state.

        Args:
            model: A TransformerBridge.
            make: A function of nothing.
        """
        state = state_of(model)
        remembered = self._kept.get(model)
        if remembered is None or remembered[0] != state:
            remembered = (state, make())
            self._kept[model] = remembered
        return remembered[1]


def every_module(model: Any) -> Iterator[nn.Module]:
    """Every module once; the bridge does not register Hugging Face's model among its own.

    Inside `steady` they are those that were there when it was entered: to find them takes longer than to look at them.

    Args:
        model: A TransformerBridge.
    """
    held = (_held.get() or {}).get(id(model))
    if held is not None:
        yield from held[1]
        return
    seen: set[int] = set()
    for root in (model, model.original_model):
        for module in root.modules():
            if id(module) not in seen:
                seen.add(id(module))
                yield module
