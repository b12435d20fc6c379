"""Activations as a file that other libraries read and write: safetensors, a tensor for each hook or module by name."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.core.files import write_whole
from lcalens.core.folders import near_path
from lcalens.core.stamp import holds_steady
from lcalens.mechanism.module_names import Hook, hooks_of

if TYPE_CHECKING:
    from transformer_lens import ActivationCache

_ENDING = ".safetensors"


def save_activations(path: str | os.PathLike[str], activations: "Mapping[str, Tensor] | ActivationCache") -> Path:
    """Write activations into a safetensors file, whole or not at all, each under its name.

    Args:
        path: A file that ends with `.safetensors`; one that is there is replaced.
        activations: An ActivationCache, or tensors by the names of hooks or modules.

    Returns:
        The file.

    Raises:
        LcalensError: They are no tensors by name, or the file cannot be written.

    Example:
        >>> logits, cache = run_with_cache(model, contrast[:1], names_filter="z")
        >>> file = save_activations("out/z.safetensors", cache)
        >>> load_activations(model, file)["blocks.3.attn.hook_z"].shape == cache["z", 3].shape
        True
    """
    from safetensors.torch import save

    file = _file(path)
    held = getattr(activations, "cache_dict", activations)
    if not isinstance(held, Mapping) or not held:
        raise LcalensError(
            f"activations: expected an ActivationCache or tensors by name, got {activations!r:.60}; "
            "run_with_cache(model, contrast) gives one."
        )
    batched = getattr(activations, "has_batch_dim", True)
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, value in held.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            what = f"a {type(value).__name__}" if isinstance(name, str) else "no name"
            raise LcalensError(f"activations: {name!r:.80} is {what}; give tensors by name (of a tuple its first).")
        value = (value if batched else value[None]).detach().cpu().contiguous()
        # The stream after a layer is the one before the next, and a file holds nothing twice in one place.
        tensors[name] = value.clone() if value.untyped_storage().data_ptr() in places else value
        places.add(tensors[name].untyped_storage().data_ptr())
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, save(tensors, metadata={"format": "pt"}))
    except OSError as error:
        raise LcalensError(f"path: {str(file)!r:.200} cannot be written ({error.strerror or error}).") from error
    return file


@holds_steady
@torch.no_grad()
def load_activations(model: Any, path: str | os.PathLike[str]) -> "ActivationCache":
    """Read activations by hook name, whichever library named them, seen to fit the model.

    Names may be TransformerLens's (`blocks.3.attn.hook_z`) or those of the model's own modules as nnsight and plain
    PyTorch hooks have them (`model.layers.3.self_attn.o_proj.input`, `transformer.h.3.output`; without `input` or
    `output` the output is meant). A module's name is looked up by trying: the model runs a few tokens, and the hook
    that shows what goes into or comes out of the module is the one, a site that `patch` takes before others. Heads that
    a module has side by side are taken apart, as the hook has them.

    Args:
        model: The TransformerBridge whose activations they are.
        path: A safetensors file, of `save_activations` or of any other library.

    Returns:
        An ActivationCache by hook name, each tensor in the shape of the hook, on the model's device; `patch(source=)`
        takes it.

    Raises:
        LcalensError: No such file, no safetensors, or a tensor that is no hook's or module's of this model, has another
            shape than that, or is there twice with other numbers.

    Example:
        >>> theirs = {"model.layers.3.self_attn.o_proj.input": torch.zeros(1, 5, 576)}
        >>> cache = load_activations(model, save_activations("out/theirs.safetensors", theirs))
        >>> {name: tuple(value.shape) for name, value in cache.items()}
        {'blocks.3.attn.hook_z': (1, 5, 9, 64)}
    """
    from transformer_lens import ActivationCache

    tensors = _read(_file(path))
    hooks = hooks_of(model, list(tensors))
    device = next(model.original_model.parameters()).device
    loaded: dict[str, Tensor] = {}
    for name, value in tensors.items():
        hook = hooks[name]
        fitted = _fitted(name, value, hook).to(device)
        if hook.name in loaded and not torch.equal(loaded[hook.name], fitted):
            raise LcalensError(f"path: {name!r:.80} is {hook.name!r}, which is there with other numbers; keep one.")
        loaded[hook.name] = fitted
    return ActivationCache(loaded, model)


def _file(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike) or not os.fsdecode(path).endswith(_ENDING) or "\0" in os.fsdecode(path):
        raise LcalensError(f"path: expected a file that ends with {_ENDING}, got {path!r:.80}.")
    try:
        return Path(os.fsdecode(path)).expanduser()
    except RuntimeError as error:
        raise LcalensError(f"path: {path!r:.80} cannot be found ({error}); give another.") from error


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        near = near_path(file)
        hint = f" Did you mean {near!r:.120}?" if near else ""
        raise LcalensError(f"path: there is no file {str(file)!r:.200}; give one of save_activations.{hint}")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise LcalensError(
            f"path: {str(file)!r:.200} is damaged or no safetensors file ({error!s:.120}); write it again."
        ) from error
    if not tensors:
        raise LcalensError(f"path: {str(file)!r:.200} holds no tensors; write it again.")
    return tensors


def _fitted(name: str, value: Tensor, hook: Hook) -> Tensor:
    """The tensor in the hook's shape, whose examples and positions are as many as they are."""
    if not value.is_floating_point():
        raise LcalensError(f"path: {name!r:.80} is a tensor of {value.dtype}; give floating-point numbers.")
    if hook.by_query:
        fits = value.ndim == 4 and value.shape[1] == hook.shape[1]
    else:
        wide = value.ndim == 3 and value.shape[2] == hook.shape[2:].numel()
        fits = value.ndim >= 2 and (value.shape[2:] == hook.shape[2:] or wide)
        value = value.reshape(*value.shape[:2], *hook.shape[2:]) if fits else value
    if not fits or not value.numel():
        raise LcalensError(
            f"path: {name!r:.80} has the shape {tuple(value.shape)}, and {hook.name!r} of this model is {hook.says}; "
            "give that, or the model that the activations are of."
        )
    return value
