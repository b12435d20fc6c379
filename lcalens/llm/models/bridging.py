"""What TransformerLens' bridge does besides wrapping a model, kept off, and what it overlooks, mended.

Whether a mended bridge is right is for the trial to say (`lcalens.llm.models.trial`).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def text_only() -> Iterator[None]:
    """Within it, bridging looks for no image or audio processor.

    It would ask the hub for one, and install torchvision by pip where one needs it. lcalens reads text alone.
    """
    from transformer_lens.model_bridge.sources.transformers import helpers, source

    loader: Any = source  # a function that it has imported, and does not export
    kept = loader.load_modality_processor, helpers._ensure_torchvision
    loader.load_modality_processor = lambda *arguments, **options: None
    helpers._ensure_torchvision = lambda: False
    try:
        yield
    finally:
        loader.load_modality_processor, helpers._ensure_torchvision = kept


def mend_attention_scale(bridge: Any) -> None:
    """Give attention with fused queries, keys and values (GPT-2's) the scale that its configuration asks for.

    TransformerLens 4.3 divides their scores by the square root of the head's width, whatever `scale_attn_weights` says.
    """
    from transformer_lens.model_bridge.generalized_components import JointQKVAttentionBridge

    for component in bridge.modules():
        if type(component) is not JointQKVAttentionBridge:  # its children scale their scores themselves
            continue
        attention = component.original_component
        scale, width = getattr(attention, "scaling", None), getattr(attention, "head_dim", None)
        if not isinstance(scale, float) or not isinstance(width, int):
            continue
        assumed = width**-0.5
        if getattr(component.config, "scale_attn_by_inverse_layer_idx", False) and component._layer_idx is not None:
            assumed /= component._layer_idx + 1
        if abs(scale / assumed - 1) > 1e-6:
            component._reconstruct_attention = _rescaled(component._reconstruct_attention, scale / assumed)


def mend_norm_epsilon(bridge: Any) -> None:
    """Give norms the epsilon that the model's own have.

    TransformerLens 4.3 takes it from the configuration by four names, and has 1e-5 where a family calls it otherwise
    (Starcoder 2's `norm_epsilon`).
    """
    from transformer_lens.model_bridge.generalized_components import NormalizationBridge

    norms = [component for component in bridge.modules() if isinstance(component, NormalizationBridge)]
    epsilons = {_epsilon(component.original_component) for component in norms} - {None}
    if len(epsilons) != 1:
        return  # none, or one for each norm, which the configuration has no place for
    epsilon = epsilons.pop()
    for config in {id(component.config): component.config for component in norms}.values():
        if config is not None and getattr(config, "eps", None) != epsilon:
            config.eps = epsilon


def _epsilon(norm: Any) -> float | None:
    epsilon = getattr(norm, "eps", getattr(norm, "variance_epsilon", None))
    return float(epsilon) if isinstance(epsilon, float | int) else None


def _rescaled(reconstruct: Any, factor: float) -> Any:
    """Attention whose scores are multiplied by a factor, by way of its queries; hooks on q see them as they were."""

    def rescaled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> Any:
        return reconstruct(q * factor, k, v, **options)

    return rescaled
