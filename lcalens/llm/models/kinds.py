"""Which models can be measured, by their configuration alone: decoders that transformers and TransformerLens know.

Asked before any weight is read, so that a model that cannot be used costs a second and not a download.
"""

from importlib.metadata import version
from typing import Any

from lcalens.core.errors import LcalensError

# Hugging Face's model types with a running state in place of attention that do not say so in `layer_types`.
_RECURRENT = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "bamba", "jamba", "zamba", "zamba2", "nemotron_h")
_RECURRENT += ("recurrent_gemma", "rwkv", "rwkv7", "xlstm", "hyenadna")
_LAYER_LISTS = ("layer_types", "layers_block_type")


def check_kind(source: str, config: Any, *, built: bool = False) -> None:
    """Refuse what is no decoder of attention and MLPs, or what one of the two libraries does not know.

    Args:
        source: What the user asked for.
        config: Its Hugging Face configuration.
        built: Whether its model is there already, so that transformers need not know how to build it.

    Raises:
        LcalensError: It is an encoder-decoder or a state-space model, no causal language model, or TransformerLens has
            no adapter for it.
    """
    kind = str(getattr(config, "model_type", "unknown"))
    text = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False):
        raise LcalensError(
            f"source: {source!r:.200} is an encoder-decoder model ({kind}), and lcalens measures a causal language "
            "model: one stack of layers whose every position sees the positions before it. Use a decoder-only model."
        )
    recurrent = _recurrent_layers(text)
    if recurrent:
        raise LcalensError(
            f"source: {source!r:.200} is a state-space model ({kind}: {recurrent}): it keeps a running state where "
            "lcalens traces attention. Use a model all of whose layers are attention and MLP."
        )
    if not built:
        _check_buildable(source, config, kind)
    _check_adapter(source, config)


def _recurrent_layers(text: Any) -> str:
    """What the layers without attention are called; empty where there are none."""
    listed = next((names for name in _LAYER_LISTS if (names := getattr(text, name, None))), None)
    if listed:
        others = {str(name) for name in listed if "attention" not in str(name) or "linear" in str(name)}
        return ", ".join(sorted(others))
    kind = str(getattr(text, "model_type", ""))
    return f"{kind} layers" if kind in _RECURRENT else ""


def _check_buildable(source: str, config: Any, kind: str) -> None:
    from transformers import AutoModelForCausalLM

    if type(config) not in AutoModelForCausalLM._model_mapping:  # pyright: ignore[reportAttributeAccessIssue]
        raise LcalensError(
            f"source: {source!r:.200} is no causal language model: transformers {version('transformers')} builds none "
            f"from a {kind!r} configuration. Use a decoder-only language model; upgrading transformers may help."
        )


def _check_adapter(source: str, config: Any) -> None:
    from transformer_lens.factories.architecture_adapter_factory import (
        SUPPORTED_ARCHITECTURES,
        ArchitectureAdapterFactory,
    )
    from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config

    ArchitectureAdapterFactory.discover_entry_points()
    try:
        name = determine_architecture_from_hf_config(config)
    except ValueError:
        name = ""
    if name not in ArchitectureAdapterFactory._adapters and name not in SUPPORTED_ARCHITECTURES:
        called = ", ".join(getattr(config, "architectures", None) or ()) or str(config.model_type)
        raise LcalensError(
            f"source: {source!r:.200} has the architecture {called}, which TransformerLens "
            f"{version('transformer-lens')} has no adapter for. Use a model that it supports; upgrading it may help."
        )
