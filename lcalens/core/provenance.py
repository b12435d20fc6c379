"""What a result must say of where it came from: the model, its dtype and processing, the versions of the libraries.

A model that `load_model` made carries a `ModelInfo`; any other TransformerBridge gets one worked out from what it
holds, so that no result is ever without.
"""

import functools
import hashlib
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lcalens.core.checks import check_bridge
from lcalens.core.known_faults import faults_of
from lcalens.core.offload import check_in_memory
from lcalens.core.stamp import PerState, every_module, stamp
from lcalens.core.verdicts import verdicts_record
from lcalens.core.versions import versions

__all__ = [
    "ModelInfo",
    "active_hooks",
    "attach_info",
    "fingerprint",
    "model_info",
    "processing_of",
    "provenance_of",
    "quantisation_of",
    "versions",
]

_ATTRIBUTE = "lcalens_info"
# Whose functions belong to the model; and where TransformerLens wraps hooks, which count as what they wrap.
_OWNERS = ("transformer_lens.model_bridge", "transformers", "accelerate", "lcalens")
_WRAPPER = "transformer_lens.hook_points"
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_STEPS = ("layer norms folded", "writing weights centred", "unembedding centred", "value biases folded")
_fingerprints = PerState()


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Where a model came from and what was done to it.

    Attributes:
        source: What `load_model` takes to make this model again; a folder is given by its name alone.
        family: The architecture as Hugging Face calls it (`llama`, `gpt2`, `gemma3_text`, ...).
        revision: The hub's commit, or the content hash of a GGUF file; empty where there is none.
        dtype: The parameters' type, as torch names it.
        quantisation: What the weights went through before they were loaded (`Q4_1, dequantised`), or `none`.
        processing: `raw`: nothing folded, centred or untied; else what TransformerLens did, see `processing_of`.
        attention: The attention implementation that runs.
        tokenizer: The source's own tokenizer, as Hugging Face loads it; the bridge's copy adds a BOS by its own rule.
    """

    source: str
    family: str
    revision: str
    dtype: str
    quantisation: str
    processing: str = "raw"
    attention: str = "eager"
    tokenizer: Any = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, str]:
        """The fields but the tokenizer, for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "tokenizer"}


def attach_info(model: Any, info: ModelInfo) -> None:
    """Leave `info` on a TransformerBridge, where `model_info` finds it."""
    setattr(model, _ATTRIBUTE, info)


def model_info(model: Any) -> ModelInfo:
    """The `ModelInfo` of any TransformerBridge, one that `load_model` did not make included.

    Type and processing are the model's own now: a model may be cast, folded or centred after it was loaded.

    Args:
        model: A TransformerBridge.

    Raises:
        LcalensError: It is something else, or some of its weights are offloaded.
    """
    check_bridge(model)
    check_in_memory(model.original_model)
    now = {"dtype": _dtypes(model), "processing": processing_of(model)}
    info = vars(model).get(_ATTRIBUTE)
    if isinstance(info, ModelInfo):
        return replace(info, **now)
    config = model.original_model.config
    return ModelInfo(
        source=str(getattr(config, "_name_or_path", "") or "unnamed").rstrip("/").rsplit("/", 1)[-1],
        family=str(getattr(config, "model_type", type(model.original_model).__name__)),
        revision=str(getattr(config, "_commit_hash", None) or ""),
        quantisation=quantisation_of(config),
        attention=str(getattr(config, "_attn_implementation", "unknown")),
        **now,
    )


def _dtypes(model: Any) -> str:
    """The parameters' types, those of most numbers first."""
    sizes: Counter[str] = Counter()
    for weight in model.original_model.parameters():
        sizes[str(weight.dtype).removeprefix("torch.")] += weight.numel()
    return ", ".join(name for name, _ in sizes.most_common())


def processing_of(model: Any) -> str:
    """What TransformerLens did to the weights: `raw`, or compatibility mode with each step that they show.

    TransformerLens does not record the steps, so they are read off the weights: gains of 1 and biases of 0 in every
    norm, means of 0 of the unembedding and of what attention and MLPs write, value biases of 0.

    Args:
        model: A TransformerBridge.
    """
    mode = ["compatibility mode"] if getattr(model, "compatibility_mode", False) else []
    if not getattr(model, "_weights_processed", False):
        return ", ".join([*mode, "no weights processed"]) if mode else "raw"
    return ", ".join([*mode, *(_steps(model) or ["weights processed"])])


@torch.no_grad()
def _steps(model: Any) -> list[str]:
    components = dict(model.named_modules())
    offset = bool(getattr(model.cfg, "rmsnorm_uses_offset", False))
    signs: dict[str, list[bool]] = {step: [] for step in _STEPS}
    for name, component in components.items():
        kind = name.rpartition(".")[2]
        module = getattr(component, "original_component", None)
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(weight, Tensor) and kind in ("ln1", "ln2", "ln_final"):
            plain = torch.zeros_like(weight) if offset else torch.ones_like(weight)
            signs["layer norms folded"].append(torch.equal(weight, plain) and (bias is None or not bias.any()))
        elif isinstance(weight, Tensor) and kind == "unembed":
            signs["unembedding centred"].append(_centred(weight, 0))
        elif isinstance(weight, Tensor) and weight.ndim == 2 and (kind == "out" or name.endswith("attn.o")):
            into_last = type(module).__name__ == "Conv1D"  # (in, out); every other module keeps (out, in)
            signs["writing weights centred"].append(_centred(weight, 1 if into_last else 0))
        elif isinstance(bias, Tensor) and name.endswith("attn.v"):
            signs["value biases folded"].append(not bias.any())
    return [step for step, seen in signs.items() if seen and all(seen)]


def _centred(weight: Tensor, dim: int) -> bool:
    return bool(weight.double().mean(dim).abs().max() <= 1e-5 * weight.double().abs().mean())


def quantisation_of(config: Any) -> str:
    """How a Hugging Face configuration says that its weights are quantised, or `none`."""
    quantised = getattr(config, "quantization_config", None)
    if quantised is None:
        return "none"
    method = quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", None)
    return str(getattr(method, "value", method) or "unknown method")


def active_hooks(model: Any) -> list[str]:
    """Names of hook points and modules where somebody's function is attached: it may change what the model computes.

    Functions of TransformerLens's bridges, transformers, accelerate and lcalens itself do not count: they belong to the
    model. Whose a function is, is told by where it was written, through partials, bound methods and wrappers.

    Args:
        model: A TransformerBridge.
    """
    modules = {id(module): module for module in every_module(model)}
    modules |= {id(point): point for point in model.hook_dict.values()}
    hooked = [module for module in modules.values() if any(map(_is_somebodys, _attached(vars(module))))]
    hooked_names = set()
    if hooked:
        names = {id(module): name for root in (model, model.original_model) for name, module in root.named_modules()}
        names |= {id(point): name for name, point in model.hook_dict.items()}
        hooked_names = {names[id(module)] or type(module).__name__ for module in hooked}
    everywhere = {name.removeprefix("_global"): value for name, value in vars(torch.nn.modules.module).items()}
    if any(map(_is_somebodys, _attached(everywhere))):
        hooked_names.add("every module")
    return sorted(hooked_names)


def _attached(attributes: Mapping[str, Any]) -> Iterator[Any]:
    """The functions that torch calls with a module."""
    for kind in _HOOKS:
        functions = attributes.get(kind)
        if functions:
            yield from functions.values()


def _is_somebodys(function: Any) -> bool:
    """Whether a person wrote it, or gave it to a library's function that calls it."""
    if isinstance(function, functools.partial):
        arguments = [value for value in (*function.args, *function.keywords.values()) if _is_called(value)]
        return any(map(_is_somebodys, [function.func, *arguments]))
    if inspect.ismethod(function):
        return _is_foreign(type(function.__self__).__module__) or _is_somebodys(function.__func__)
    if not inspect.isfunction(function):
        return _is_foreign(type(function).__module__)
    if function.__module__ == _WRAPPER:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        return "hook" not in cells or _is_somebodys(cells["hook"].cell_contents)
    return _is_foreign(function.__module__)


def _is_called(value: Any) -> bool:
    return callable(value) and not isinstance(value, torch.nn.Module | type)


def _is_foreign(module: Any) -> bool:
    return not any(f"{module}.".startswith(f"{owner}.") for owner in _OWNERS)


def provenance_of(model: Any, *, path: str | Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What every result says of how it was made: one record for all verbs.

    Args:
        model: A TransformerBridge.
        path: How the model was run: layer by layer, through hooks, padded, ...
        settings: What was asked for, and of what: the verb's arguments, digests of the contrast or the facts.

    Returns:
        `model` (see `ModelInfo`, with the weights' `fingerprint` and the `hooks` that were attached), the settings,
        `path` and `versions`; `known_faults`, where a library is known to compute such a model wrongly; and `doctor`,
        where it found something wrong on this model: what, and whether the verb was forced.
    """
    info = model_info(model)
    record = info.to_dict() | {"fingerprint": fingerprint(model), "hooks": active_hooks(model)}
    faults = faults_of(info.family)
    warned = {"known_faults": faults} if faults else {}
    return {
        "model": record,
        **settings,
        "path": path,
        "versions": versions(),
        **warned,
        **verdicts_record(stamp(model)),
    }


def fingerprint(model: Any) -> str:
    """A content hash of the weights: every parameter's name, shape, type and bytes.

    Editing one number changes it; loading the same weights from another place does not. It is computed once for each
    state of the model.

    Args:
        model: A TransformerBridge.
    """
    return _fingerprints.get(model, lambda: _fingerprint(model))


@torch.no_grad()
def _fingerprint(model: Any) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(model.original_model.named_parameters(), key=lambda item: item[0]):
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
