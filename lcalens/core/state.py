"""What a model's numbers depend on, read into one digest: tensors' contents, configurations, switches, code, libraries.

A module may hold anything, and anything it holds may decide what it computes. So all is read but what is known to
decide nothing, and an attribute that no one thought of changes the digest rather than hides.
"""

import functools
import inspect
from collections.abc import Iterator, Mapping
from copyreg import dispatch_table
from dataclasses import dataclass
from enum import Enum
from types import CodeType
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from lcalens.core.checksums import checksum
from lcalens.core.sources import sources
from lcalens.core.versions import versions

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, Enum)
AUTOCAST = ("cpu", "cuda")
"""Kinds of device on which autocast may be on."""
# Attributes of torch's own, and those that say where a model came from or how to spread, save or sample from it.
_TORCH = frozenset(vars(nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}
_ELSEWHERE = frozenset(
    "_name_or_path name_or_path _commit_hash transformers_version model_name tokenizer_name original_architecture "  # noqa: SIM905
    "architectures id2label label2id generation_config loss_type all_tied_weights_keys lcalens_info lcalens_loading "
    "persistent _is_buffer _is_hf_initialized _output_capturing_hooks_installed _original_object_hash _post_init_done "
    "_tp_plan _ep_plan _pp_plan _fsdp_plan _weight_conversions _no_split_modules _skip_keys_device_placement "
    "_keep_in_fp32_modules _keep_in_fp32_modules_strict "
    "_keys_to_ignore_on_load_unexpected _keys_to_ignore_on_load_missing _keys_to_ignore_on_save".split()
)
# What TransformerLens keeps to find its parts; with an underscore, what it noted when it last ran.
_LENS = frozenset({"adapter", "context_level", "processor", "submodules", "real_components", "conversion_rule", "name"})
_LENS_KEPT = frozenset({"_parameters", "_buffers", "_modules", "_output_contribution_scale", "_weights_processed"})


@dataclass(frozen=True)
class State:
    """A model's state at one moment.

    Attributes:
        digest: Equal for models that compute the same numbers in the same way, in any process.
        identity: The modules and tensors themselves; what refers to them is valid only while they are the same.
    """

    digest: str
    identity: tuple[int, ...]


def read_state(model: Any) -> State:
    """The model's state now, every tensor's contents read.

    Args:
        model: A TransformerBridge.
    """
    return _Reader().read(model)


def digest_of(value: Any, *, skip: frozenset[str] = frozenset()) -> str:
    """A digest of any object by what it holds, at any depth.

    Args:
        value: The object. Of one that is not written in Python what pickle would keep is read, and its class.
        skip: Attributes that do not count.

    Raises:
        TypeError: It holds something that cannot be read so.
    """
    return _Reader(skip, whole=True).digest(value)


class _Reader:
    """Reads a model into one digest: text for what is plain, checksums for tensors, each object once."""

    def __init__(self, skip: frozenset[str] = frozenset(), *, whole: bool = False):
        self._skip, self._whole = _ELSEWHERE | skip, whole
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
        return State(self._digest(), tuple(self._identity))

    def digest(self, value: Any) -> str:
        self._value(value)
        return self._digest()

    def _digest(self) -> str:
        return xxhash.xxh3_128_hexdigest("\n".join(self._text).encode())

    def _surroundings(self) -> None:
        autocast = [
            (device, torch.get_autocast_dtype(device)) for device in AUTOCAST if torch.is_autocast_enabled(device)
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
                for key, tensor in value.items():
                    text.append(key)
                    self._value(tensor)
            elif name == "_modules":
                for key, inner in value.items():
                    if inner is not None and not _is_hook_point(inner):
                        text.append(key)
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
            kind = type(value)
            self._text.append(f"{kind.__module__}.{kind.__qualname__}")
            if self._whole and not getattr(value, "__dict__", None):
                self._pickled(value)
            for name, inner in getattr(value, "__dict__", {}).items():
                kept = isinstance(inspect.getattr_static(kind, name, None), functools.cached_property)
                if name not in self._skip and not (self._whole and kept):
                    self._text.append(name)
                    self._value(inner)

    def _pickled(self, value: Any) -> None:
        """What pickle would keep of an object that has no attributes to read, such as one of another language."""
        try:
            reduced = dispatch_table.get(type(value), lambda one: one.__reduce_ex__(2))(value)
        except Exception as error:  # it cannot be pickled, and may hold anything
            kind = type(value)
            if kind.__module__ == "_thread":  # a lock, which decides nothing
                return
            raise TypeError(f"a {kind.__qualname__} of {kind.__module__}") from error
        self._value([part for part in reduced if not isinstance(part, Iterator)] if reduced[1:] else reduced)

    def _collection(self, value: Any) -> None:
        self._text.append(f"{type(value).__name__} {len(value)}")
        if isinstance(value, Mapping):
            for name, inner in value.items():
                if not (self._whole and name in self._skip):
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


def _code_of(function: Any) -> str:
    """What a function is called and does; a method's or partial's own values are read with what holds them."""
    if isinstance(function, functools.partial):
        return f"partial {_code_of(function.func)} {_plain(function.args)} {_plain(function.keywords)}"
    function = getattr(function, "__func__", function)  # of a method, a class's or a static one too
    named = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    plain = inspect.unwrap(function) if callable(function) else function
    code = getattr(plain, "__code__", None)
    if not isinstance(code, CodeType):
        return named
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _filled(cell)]
    defaults = [*(plain.__defaults__ or ()), *(plain.__kwdefaults__ or {}).items()]
    return f"{named} {_bytecode(code)} {_plain(cells)}{_plain(defaults) if defaults else ''}"


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
    return str({name: _written(value) for name, value in items if _is_plain(value)})


def _is_plain(value: Any) -> bool:
    """Whether a value is text, numbers and the like, or holds nothing else."""
    if isinstance(value, Mapping):
        return all(_is_plain(one) for pair in value.items() for one in pair)
    return isinstance(value, _PLAIN) or (
        isinstance(value, list | tuple | set | frozenset) and all(map(_is_plain, value))
    )


def _written(value: Any) -> Any:
    """A plain value, sets in one order in every process."""
    return sorted(map(repr, value)) if isinstance(value, set | frozenset) else value


@functools.lru_cache(maxsize=4096)
def _bytecode(code: CodeType) -> str:
    digest = xxhash.xxh3_64(code.co_code)
    digest.update(repr((code.co_names, code.co_varnames)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            text = _bytecode(constant)
        else:  # a set is written in another order by every process
            text = repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)
        digest.update(text.encode())
    return digest.hexdigest()
