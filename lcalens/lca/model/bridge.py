"""`lca_bridge`: the toy model as a TransformerLens `TransformerBridge`, over the same parameters.

The bridge is one block of one head and nothing else: there is no residual stream, so what the block puts out is the
head's output, and it is unembedded as it is. Its caches therefore do not count the embedding among the writers
(`decompose_resid`, direct logit attribution), and `hook_resid_mid` and `hook_attn_out` are one point. The MLP is there
for the tools that ask for one; it writes zeros. Values are d_model wide beside d_a-wide queries and keys, and W_O is
the identity. Tools that take the embedding for a writer to the logits (edges, direct paths) are refused.
"""

import copy
import math
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.conversion_utils.conversion_steps.base_tensor_conversion import BaseTensorConversion
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    LinearBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutput

from lcalens.core.errors import LcalensError
from lcalens.core.provenance import ModelInfo, attach_info
from lcalens.core.quiet import quiet_libraries
from lcalens.lca.model.model import LCAAttention, LCAForCausalLM, lca_tokenizer

_POSITIONS = 1 << 14  # there are none, but TransformerLens cuts texts here, and makes tables this long


def lca_bridge(model: Any, *, tokenizer: Any = None) -> TransformerBridge:
    """The toy model as a TransformerBridge: hooks, caches and the tools of TransformerLens.

    The bridge shares the model's parameters, so it follows training, and the model stays as it is: it can be trained,
    saved and bridged again. Move or cast it before it is bridged. `hook_q` and `hook_k` are (batch, position, 1, d_a),
    `hook_v` and `hook_z` (batch, position, 1, d), `hook_attn_scores` (before the softmax, editable) and `hook_pattern`
    (batch, 1, query, key), and `hook_result`, after `set_use_attn_result(True)`, (batch, position, 1, d). There is no
    causal mask; give `attention_mask` with padded token ids. Compatibility mode takes `no_processing=True` alone.

    Args:
        model: An `LCAForCausalLM`.
        tokenizer: A Hugging Face tokenizer; `lca_tokenizer(m)`, whose tokens are their bits, by default.

    Returns:
        A bridge whose logits are the model's own. `lcalens.core.provenance.model_info` says what it is.

    Raises:
        LcalensError: `model` is no LCAForCausalLM, or is inside a bridge already; `tokenizer` is not Hugging Face's.

    Example:
        >>> from lcalens.lca import LCAConfig, LCAForCausalLM
        >>> bridge = lca_bridge(LCAForCausalLM(LCAConfig(m=5, d_model=16, d_head=8)))
        >>> bridge.cfg.n_heads
        1
    """
    _check_plain(model)
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise LcalensError(
            f"tokenizer: expected a Hugging Face tokenizer, got {type(tokenizer).__name__} ({tokenizer!r:.60}); "
            "leave it out for lca_tokenizer(m)."
        )
    tokenizer_used = lca_tokenizer(model.config.m) if tokenizer is None else tokenizer
    source = str(getattr(model.config, "_name_or_path", "") or "lca").rstrip("/").rsplit("/", 1)[-1]
    # Bridging rewires the module it is given: give it one of its own that shares the parameters.
    shared = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()}).eval()
    sizes = {"d_model": model.config.d_model, "d_head": model.config.d_head, "d_vocab": model.config.vocab_size}
    cfg = TransformerBridgeConfig(**sizes, n_layers=1, n_heads=1, n_ctx=_POSITIONS)
    with quiet_libraries():
        bridge = build_bridge_from_module(shared, "LCAForCausalLM", tl_config=cfg, model_name=source)
    padding = copy.deepcopy(tokenizer_used)
    padding.padding_side = "left"
    if padding.pad_token is None:
        padding.add_special_tokens({"pad_token": "<pad>"})  # outside the vocabulary: no token of the world is padding
    bridge.tokenizer = padding
    known = {
        "revision": str(getattr(model.config, "_commit_hash", None) or ""),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    attach_info(bridge, ModelInfo(source=source, family="lca", **known, quantisation="none", tokenizer=tokenizer_used))
    return bridge


def _check_plain(model: Any) -> None:
    if not isinstance(model, LCAForCausalLM):
        raise LcalensError(
            f"model: expected an LCAForCausalLM, got {type(model).__name__} ({repr(model).splitlines()[0]:.60}); make "
            "one with LCAForCausalLM(LCAConfig(m=5)) or from_pretrained(folder). Other models: lcalens.load_model."
        )
    if isinstance(model, _StagedLCA):
        raise LcalensError(
            f"model: this {type(model).__name__} is a bridge's own; give the LCAForCausalLM that it was made from."
        )


class _Matrix(nn.Module):
    """x W^T: the embedding's own parameter as the unembedding, and W_O, a buffer that nobody trains."""

    bias = None

    def __init__(self, weight: Float[Tensor, "out into"]):
        super().__init__()
        if isinstance(weight, nn.Parameter):
            self.weight = weight
        else:
            self.register_buffer("weight", weight, persistent=False)

    def forward(self, x: Float[Tensor, "batch query into"]) -> Float[Tensor, "batch query out"]:
        return x @ self.weight.T


class _Nothing(nn.Module):
    """An MLP that writes zeros, and through which a gradient can be asked for."""

    def forward(self, x: Float[Tensor, "batch query d"]) -> Float[Tensor, "batch query d"]:
        return x * 0


class _Block(nn.Module):
    """What is recalled, and nothing of what came in."""

    def __init__(self, attn: LCAAttention):
        super().__init__()
        self.attn = attn
        self.mlp = _Nothing()

    def forward(
        self, sources: Float[Tensor, "batch key d"], mask: Int[Tensor, "batch key"] | None
    ) -> Float[Tensor, "batch query d"]:
        recalled = self.attn(sources, mask)
        return recalled + self.mlp(recalled)


class _StagedLCA(LCAForCausalLM):
    """The model cut into the stages that TransformerLens names: embed, blocks, unembed."""

    layers: Any
    head: Any

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Int[Tensor, "batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length d"] | None = None,
        logits_to_keep: int = 0,
        **ignored: Any,
    ) -> CausalLMOutput:
        if inputs_embeds is None:
            if attention_mask is not None and input_ids is not None:
                # Tokenizers give padding an id outside the vocabulary; nothing looks at it, so any embedding will do.
                input_ids = input_ids.masked_fill((attention_mask == 0) & (input_ids >= self.config.vocab_size), 0)
            inputs_embeds = self.embed(input_ids)
        (block,) = self.layers
        logits = self.head(block(inputs_embeds, attention_mask))
        return CausalLMOutput(logits=logits[:, -logits_to_keep:])


class _OneHead(BaseTensorConversion):
    """Hooks see a head's axis, (batch, position, 1, width), at any width."""

    def handle_conversion(self, input_value: Any, *full_context: Any) -> Any:
        if input_value.ndim != 3:
            return input_value
        return rearrange(input_value, "batch position width -> batch position 1 width")

    def revert(self, input_value: Any, *full_context: Any) -> Any:
        if input_value.ndim != 4:
            return input_value
        return rearrange(input_value, "batch position 1 width -> batch position width")


class LCAAttentionBridge(AttentionBridge):
    """Attention over all positions, with d_a-wide queries and keys and values of the model's own width."""

    supports_attn_result = True
    supports_split_qkv_fork = False  # one layer, one head: hook_q, hook_k and hook_v tell the paths apart already

    def __init__(self, config: Any):
        parts: dict[str, GeneralizedComponent] = {name: LinearBridge(name=name) for name in "qkvo"}
        super().__init__("attn", config, submodules=parts, is_causal=False)
        self.hook_in.hook_conversion = self.hook_out.hook_conversion = None  # theirs keeps a note of every tensor
        self._v_head_dim = config.d_model  # W_V and W_O may be this wide

    def _setup_qkv_hook_reshaping(self) -> None:
        for point in (self.q.hook_out, self.k.hook_out, self.v.hook_out, self.o.hook_in):
            point.hook_conversion = _OneHead()

    def forward(
        self, sources: Float[Tensor, "batch key d"], mask: Int[Tensor, "batch key"] | None = None
    ) -> Float[Tensor, "batch query d"]:
        """What each position recalls; every operation is `LCAAttention`'s, with a hook point after it.

        Args:
            sources: The embeddings, which attend and are attended to.
            mask: 0 where there is only padding.
        """
        attn: Any = self.original_component
        sources = self.hook_in(sources)
        scores = self.q(sources) @ self.k(sources).mT * attn.scale  # (batch, query, key)
        if mask is not None:
            scores = scores.masked_fill(rearrange(mask, "batch key -> batch 1 key") == 0, -math.inf)
        scores = self.hook_attn_scores(rearrange(scores, "batch query key -> batch 1 query key"))  # one head
        pattern = self.hook_pattern(scores.softmax(-1))
        recalled = self.o(pattern[:, 0] @ self.v(sources))  # (batch, query, d)
        if getattr(self.config, "use_attn_result", False):
            recalled = self.hook_result(recalled[:, :, None])[:, :, 0]  # with one head and no bias, the output itself
        return self.hook_out(recalled)


class LCABlockBridge(BlockBridge):
    """The one block; it has no residual stream, so what is in its middle is the head's output."""

    hook_aliases = {
        name: target
        for name, target in BlockBridge.hook_aliases.items()
        if name not in ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")
    } | {"hook_resid_mid": "attn.hook_out"}


class LCACache(ActivationCache):
    """A cache that knows that the embedding is read by the head alone, and is no part of what is unembedded."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.has_embed = False

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "LCACache":
        """The cache of some of the examples."""
        cache = super().apply_slice_to_batch_dim(batch_slice)
        return LCACache(cache.cache_dict, cache.model, has_batch_dim=cache.has_batch_dim)


class LCABridge(TransformerBridge):
    """A TransformerBridge whose caches are `LCACache`s."""

    def run_with_cache(self, *args: Any, **kwargs: Any) -> Any:
        """Logits and activations."""
        output, cache = super().run_with_cache(*args, **kwargs)
        if isinstance(cache, ActivationCache):
            cache = LCACache(cache.cache_dict, cache.model, has_batch_dim=cache.has_batch_dim)
        return output, cache

    def process_weights(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: centred and folded, the model would be another.

        Raises:
            LcalensError: Always.
        """
        raise LcalensError(
            "no_processing: False would centre the weights and untie W_E from the unembedding, which changes what this "
            "model says; call enable_compatibility_mode(no_processing=True)."
        )


class LCAArchitectureAdapter(ArchitectureAdapter):
    """Where TransformerLens finds the parts of an `LCAForCausalLM` (entry point `transformer_lens.architectures`)."""

    supports_generation = False
    supports_causal_loss = False

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        cfg.n_layers = cfg.n_heads = 1
        cfg.n_ctx = _POSITIONS
        cfg.d_mlp = 0
        cfg.normalization_type = None
        cfg.positional_embedding_type = "none"
        cfg.attention_dir = "bidirectional"
        cfg.default_prepend_bos = cfg.tokenizer_prepends_bos = False
        cfg.default_padding_side = "left"  # so that the last position is everyone's last token
        parts = {"attn": LCAAttentionBridge(cfg), "mlp": GeneralizedComponent("mlp")}
        self.component_mapping = {
            "embed": EmbeddingBridge(name="embed"),
            "blocks": LCABlockBridge("layers", config=cfg, submodules=parts, mlp_reads_resid_directly=True),
            "unembed": UnembeddingBridge(name="head"),
        }

    def prepare_model(self, hf_model: Any) -> None:
        """Cut the model into its stages, in place."""
        super().prepare_model(hf_model)
        _check_plain(hf_model)
        self.cfg.d_head = hf_model.config.d_head
        hf_model.__class__ = _StagedLCA
        hf_model.attn.o = _Matrix(torch.eye(self.cfg.d_model).to(hf_model.attn.v.weight))
        hf_model.layers = nn.ModuleList([_Block(hf_model.attn)])
        hf_model.head = _Matrix(hf_model.embed.weight)
        del hf_model.attn

    def setup_hook_compatibility(self, bridge: Any) -> None:
        """Give the bridge its class, which TransformerLens does not let an adapter choose."""
        bridge.__class__ = LCABridge
