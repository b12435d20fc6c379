"""One stamp of a model's state: everything that decides its numbers, the contents of every tensor included.

What lcalens remembers of a model (its layers, the paths that are exact on it) and what it keeps on disk is valid only
while the model computes the same numbers. Neither the identity of a parameter nor its version says so: `p.data = q`
keeps both, as does an edit in place through `p.data`, or of a tensor that shares its memory. So contents are read at
every public call, at memory's speed (XXH3, 128 bits), and with them all else a forward pass depends on: buffers,
configurations, switches held by modules, code, mode, autocast and libraries.

`steady` is the door of every public function that measures: it refuses what makes numbers another model's, holds
the model in evaluation mode, and reads the stamp once.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from types import CodeType
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
import xxhash
from jaxtyping import UInt8
from torch import Tensor, nn

from lcalens.core.checks import check_bridge
from lcalens.core.errors import LcalensError
from lcalens.core.offload import check_in_memory
from lcalens.core.rotary import recall_nothing, settle
from lcalens.core.sources import sources
from lcalens.core.versions import versions

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, Enum)
_AUTOCAST = ("cpu", "cuda")
# Attributes of torch's own, and those that say where a model came from or how to spread, save or sample from it.
_TORCH = frozenset(vars(nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}
_ELSEWHERE = frozenset(
    "_name_or_path name_or_path _commit_hash transformers_version model_name tokenizer_name original_architecture "  # noqa: SIM905
    "architectures id2label label2id generation_config loss_type all_tied_weights_keys lcalens_info "
    "persistent _is_buffer _is_hf_initialized _output_capturing_hooks_installed _original_object_hash _post_init_done "
    "_tp_plan _ep_plan _pp_plan _fsdp_plan _weight_conversions _no_split_modules _skip_keys_device_placement "
    "_keep_in_fp32_modules _keep_in_fp32_modules_strict "
    "_keys_to_ignore_on_load_unexpected _keys_to_ignore_on_load_missing _keys_to_ignore_on_save".split()
)
# What TransformerLens keeps to find its parts; with an underscore, what it noted when it last ran.
_LENS = frozenset({"adapter", "context_level", "processor", "submodules", "real_components", "conversion_rule", "name"})
_LENS_KEPT = frozenset({"_parameters", "_buffers", "_modules", "_output_contribution_scale", "_weights_processed"})
_GOLDEN = -7046029254386353131
_ODD = (-4658895280553007687, -7723592293110705685, -4417276706812531889)
_MIXED = 1 << 22


@dataclass(frozen=True)
class State:
    """A model's state at one moment.

    Attributes:
        digest: Equal for models that compute the same numbers in the same way, in any process.
        identity: The modules and tensors themselves; what refers to them is valid only while they are the same.
    """

    digest: str
    identity: tuple[int, ...]


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
    return _Reader().read(model)


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
            state = _Reader().read(model)
            token = _held.set({**held, id(model): (state, modules)})
            try:
                yield state.digest
            finally:
                _held.reset(token)
    finally:
        for module in training:
            module.training = True


def holds_steady(function: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A public function of (model, ...) that runs inside `steady`.

    Args:
        function: Its first argument is the model.
    """

    @functools.wraps(function)
    def held(model: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with steady(model):
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
    for device in _AUTOCAST:
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
        kept = self._kept.get(model)
        if kept is None or kept[0] != state:
            kept = (state, make())
            self._kept[model] = kept
        return kept[1]


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


class _Reader:
    """Reads a model into one digest: text for what is plain, checksums for tensors, each object once."""

    def __init__(self):
        self._text: list[str] = []
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # an id is an object's own only as long as it lives
        self._sums: dict[Any, str] = {}
        self._identity: list[int] = []
        self._modules: list[nn.Module] = []

    def read(self, model: Any) -> State:
        self._queue(model)
        self._queue(model.original_model)
        while self._modules:
            self._module(self._modules.pop())
        self._surroundings()
        digest = xxhash.xxh3_128_hexdigest("\n".join(self._text).encode())
        return State(digest, tuple(self._identity))

    def _surroundings(self) -> None:
        autocast = [
            (device, torch.get_autocast_dtype(device)) for device in _AUTOCAST if torch.is_autocast_enabled(device)
        ]
        switches = (
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        )
        self._text.append(f"{autocast} {switches} {versions()}")

    def _first(self, value: Any) -> bool:
        """Whether the object is met for the first time; if not, the text says which one it is."""
        number = self._seen.setdefault(id(value), len(self._seen))
        if number < len(self._alive):
            self._text.append(f"@{number}")
            return False
        self._alive.append(value)
        return True

    def _queue(self, module: nn.Module) -> None:
        if self._first(module):
            self._modules.append(module)

    def _module(self, module: nn.Module) -> None:
        kind, text = type(module), self._text
        lens = _of_lens(kind)
        self._identity.append(id(module))
        text.append(_class_of(kind, kind.forward))
        for name, value in vars(module).items():
            if name in _TORCH or name in _ELSEWHERE:
                continue
            if lens and (name in _LENS or (name[0] == "_" and name not in _LENS_KEPT)):
                continue
            if isinstance(value, _PLAIN):
                text.append(f"{name}={value!r}")
            elif name in ("_parameters", "_buffers"):
                for part, tensor in value.items():
                    text.append(part)
                    self._value(tensor)
            elif name == "_modules":
                for part, inner in value.items():
                    if inner is not None and not _is_hook_point(inner):
                        text.append(part)
                        self._queue(inner)
            elif not _is_hook_point(value):
                text.append(name)
                self._value(value)

    def _value(self, value: Any) -> None:
        """Anything a module may hold."""
        if isinstance(value, _PLAIN):
            self._text.append(repr(value))
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, nn.Module):
            self._queue(value)
        elif isinstance(value, np.ndarray):
            self._text.append(f"{value.dtype}{value.shape} {xxhash.xxh3_128_hexdigest(value.tobytes())}")
        elif isinstance(value, np.generic):
            self._text.append(repr(value))
        elif isinstance(value, Mapping | list | tuple | set | frozenset):
            if self._first(value):
                self._collection(value)
        elif inspect.isroutine(value) or isinstance(value, type | functools.partial):
            self._text.append(_code_of(value))
        elif self._first(value):
            self._text.append(f"{type(value).__module__}.{type(value).__qualname__}")
            for name, inner in getattr(value, "__dict__", {}).items():
                if name not in _ELSEWHERE:
                    self._text.append(name)
                    self._value(inner)

    def _collection(self, value: Any) -> None:
        self._text.append(f"{type(value).__name__} {len(value)}")
        if isinstance(value, Mapping):
            for name, inner in value.items():
                self._text.append(name if isinstance(name, str) else repr(name))
                self._value(inner)
        elif isinstance(value, set | frozenset):
            self._text.extend(sorted(map(repr, value)))
        else:
            for inner in value:
                self._value(inner)

    def _tensor(self, tensor: Tensor) -> None:
        if not self._first(tensor):
            return
        self._text.append(f"{type(tensor).__name__} {tensor.dtype} {tuple(tensor.shape)} {tensor.device}")
        if hasattr(tensor, "__tensor_flatten__"):  # a subclass made of other tensors, such as torchao's
            inner, context = tensor.__tensor_flatten__()  # pyright: ignore[reportAttributeAccessIssue]
            self._value(context)
            for name in inner:
                self._tensor(getattr(tensor, name))
        else:
            self._text.append(self._sum(tensor))
        for name, value in getattr(tensor, "__dict__", {}).items():  # quantised parameters keep their scales there
            if name not in _ELSEWHERE:
                self._text.append(name)
                self._value(value)

    def _sum(self, tensor: Tensor) -> str:
        self._identity += [id(tensor), 0]
        if tensor.device.type == "meta" or type(tensor).__name__ == "FakeTensor":
            return "no contents"
        if tensor.layout != torch.strided:
            tensor = tensor.detach().coalesce() if tensor.layout == torch.sparse_coo else tensor.detach()
            return checksum(tensor.to_dense())
        self._identity[-1] = tensor.data_ptr()
        # Tied weights are read once.
        place = tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device
        if place not in self._sums:
            self._sums[place] = checksum(tensor)
        return self._sums[place]


@torch.no_grad()
def checksum(tensor: Tensor) -> str:
    """A checksum of a tensor's bytes, at memory's speed: XXH3 on the processor, two mixed sums on other devices.

    Args:
        tensor: Any strided tensor.
    """
    plain = tensor.detach()
    if plain.is_quantized:
        plain = plain.int_repr()
    if plain.is_conj() or plain.is_neg():
        plain = plain.resolve_conj().resolve_neg()
    flat = plain.contiguous().reshape(-1).view(torch.uint8)
    if flat.device.type == "cpu":
        return xxhash.xxh3_128_hexdigest(flat.numpy())  # pyright: ignore[reportArgumentType]
    return " ".join(map(str, mixed_sums(flat)))


def mixed_sums(flat: UInt8[Tensor, " byte"]) -> tuple[int, int]:
    """Two sums over 64-bit words, each word mixed and weighted by its place, so that no edit or exchange cancels.

    Args:
        flat: Bytes, on any device.
    """
    missing = -len(flat) % 8
    if missing or flat.storage_offset() % 8:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    words, sums = flat.view(torch.int64), [len(flat) - missing, missing]
    places = torch.arange(min(_MIXED, len(words)), device=flat.device) * _GOLDEN
    places = (places ^ (places >> 29)) * _ODD[0] | 1
    for part in words.split(_MIXED):
        # A word's high bits are folded into the low ones first: a weighted sum alone would not see signs exchanged.
        mixed = part * _ODD[1]
        mixed = (mixed ^ (mixed >> 32)) * _ODD[2]
        mixed = (mixed ^ (mixed >> 29)) * places[: len(part)]
        for which, terms in enumerate((mixed, mixed ^ (mixed >> 31))):
            sums[which] = (sums[which] * _ODD[which] + int(terms.sum())) & (1 << 64) - 1
    return sums[0], sums[1]


def _code_of(function: Any) -> str:
    """What a function is called and does; a method's or partial's own values are read with what holds them."""
    if isinstance(function, functools.partial):
        return f"partial {_code_of(function.func)} {_plain(function.args)} {_plain(function.keywords)}"
    named = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
    if not isinstance(code, CodeType):
        return named
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _filled(cell)]
    return f"{named} {_bytecode(code)} {_plain(cells)}"


def _is_hook_point(value: Any) -> bool:
    """Hook points compute nothing; what is attached to them, `active_hooks` tells."""
    return type(value).__name__ == "HookPoint"


@functools.lru_cache(maxsize=1024)
def _of_lens(kind: type) -> bool:
    return any(base.__module__.startswith("transformer_lens.") for base in kind.__mro__)


@functools.lru_cache(maxsize=1024)
def _class_of(kind: type, forward: Any) -> str:
    # Of lcalens's own modules, the toy model's, with all that they call; libraries are told by their versions.
    code = sources(kind) if kind.__module__.startswith("lcalens.") else ""
    return f"{kind.__module__}.{kind.__qualname__} {_code_of(forward)} {code}"


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name that is not bound yet
        return False


def _plain(values: Any) -> str:
    items = values.items() if isinstance(values, Mapping) else enumerate(values)
    return str({name: value for name, value in items if isinstance(value, _PLAIN)})


@functools.lru_cache(maxsize=4096)
def _bytecode(code: CodeType) -> str:
    digest = xxhash.xxh3_64(code.co_code)
    digest.update(repr((code.co_names, code.co_varnames)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            told = _bytecode(constant)
        else:  # a set is written in another order by every process
            told = repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)
        digest.update(told.encode())
    return digest.hexdigest()
