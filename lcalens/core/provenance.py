"""What a result must say of where it came from: the model, its dtype and processing, the versions of the libraries.

A model that `load_model` made carries a `ModelInfo`; any other TransformerBridge gets one worked out from what it
holds, so that no result is ever without.
"""

import hashlib
import platform
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import lcalens
from lcalens.core.errors import LcalensError

_ATTRIBUTE = "lcalens_info"
_LOOK = ("transformer_lens", "transformers")
_REPORTED = ("torch", "transformers", "transformer-lens", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Where a model came from and what was done to it.

    Attributes:
        source: What `load_model` takes to make this model again; a folder is given by its name alone.
        family: The architecture as Hugging Face calls it (`llama`, `gpt2`, `gemma3_text`, ...).
        revision: The hub's commit, or the content hash of a GGUF file; empty where there is none.
        dtype: The parameters' type, as torch names it.
        quantisation: What the weights went through before they were loaded (`Q4_1, dequantised`), or `none`.
        processing: `raw`: nothing folded, centred or untied.
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

    Args:
        model: A TransformerBridge.

    Raises:
        LcalensError: It is something else.
    """
    if not hasattr(model, "original_model") or not hasattr(model, "hook_dict"):
        raise LcalensError(
            f"model: expected a TransformerBridge, got {type(model).__name__}; "
            "make one with lcalens.load_model(name), or load_model(hf_model, tokenizer=tokenizer)."
        )
    info = vars(model).get(_ATTRIBUTE)
    if isinstance(info, ModelInfo):
        return info
    config = model.original_model.config
    return ModelInfo(
        source=str(getattr(config, "_name_or_path", "") or "unnamed").rstrip("/").rsplit("/", 1)[-1],
        family=str(getattr(config, "model_type", type(model.original_model).__name__)),
        revision=str(getattr(config, "_commit_hash", None) or ""),
        dtype=str(next(model.original_model.parameters()).dtype).removeprefix("torch."),
        quantisation=quantisation_of(config),
        processing="compatibility mode" if getattr(model, "compatibility_mode", False) else "raw",
        attention=str(getattr(config, "_attn_implementation", "unknown")),
    )


def quantisation_of(config: Any) -> str:
    """How a Hugging Face configuration says that its weights are quantised, or `none`."""
    quantised = getattr(config, "quantization_config", None)
    if quantised is None:
        return "none"
    method = quantised.get("quant_method") if isinstance(quantised, dict) else getattr(quantised, "quant_method", None)
    return str(getattr(method, "value", method) or "unknown method")


def active_hooks(model: Any) -> list[str]:
    """Names of hook points and modules where somebody's function is attached: it may change what the model computes."""
    points = {name for name, point in model.hook_dict.items() if point.fwd_hooks}
    return sorted(points | {name for name, module in model.original_model.named_modules() if _is_hooked(module)})


def _is_hooked(module: torch.nn.Module) -> bool:
    """Whether torch calls somebody's function with the module; the libraries' own, which only look, do not count."""
    functions = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(str(getattr(function, "__module__", "")).split(".")[0] not in _LOOK for function in functions)


@torch.no_grad()
def fingerprint(model: Any) -> str:
    """A content hash of the weights: every parameter's name, shape, type and bytes.

    Editing one number changes it; loading the same weights from another place does not.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.original_model.named_parameters(), key=lambda item: item[0]):
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """The versions of Python, lcalens and the libraries whose numerics or tokenisation a result depends on."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "lcalens": lcalens.__version__}
    for name in _REPORTED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
