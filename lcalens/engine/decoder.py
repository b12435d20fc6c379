"""A TransformerBridge's model as plain functions of the residual stream, so that a layer can be run by itself.

Patching in one growing batch needs each layer alone, on some positions, with keys and values of others given. A bridge
has no such entrance, so `read_decoder` collects the model's own modules into `Layer`s, runs a few tokens through both,
and gives nothing unless the logits agree: what is read wrong is never used.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.core.provenance import active_hooks
from lcalens.core.stamp import PerState

FAMILIES = frozenset({"gpt2", "llama", "gemma", "gemma2", "gemma3_text", "lca"})
_TRIED = 6  # tokens of the trial
_CLOSE = 1e-4
Function = Callable[[Tensor], Tensor]
_read = PerState()


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One block. Every function acts on each position alone.

    Attributes:
        norm: What attention reads, from the residual stream.
        project: `q`, `k` and `v`: (..., d) to (..., heads * width), before any normalisation or rotation.
        normalise: `q` and `k`, head by head; left out where the model has none.
        heads: Query heads.
        kv_heads: Key and value heads; each serves `heads // kv_heads` query heads.
        scale: Of the scores.
        softcap: Of the scores, or None.
        window: How many positions back attention reaches, itself included, or None.
        rotary: Which of the decoder's rotations this layer uses.
        out: W_O by head.
        out_bias: Added once to the sum over heads.
        after_attention: From the sum over heads to what is added to the residual stream (Gemma 2 and 3 normalise).
        mlp: From the residual stream to what the MLP adds to it.
    """

    norm: Function
    project: dict[str, Function]
    normalise: dict[str, Function]
    heads: int
    kv_heads: int
    scale: float
    softcap: float | None
    window: int | None
    rotary: str | None
    out: Float[Tensor, "head width d"]
    out_bias: Float[Tensor, " d"] | None
    after_attention: Function
    mlp: Function

    def split(
        self, name: str, resid: Float[Tensor, "*batch position d"]
    ) -> Float[Tensor, "*batch position head width"]:
        """Queries, keys or values of each head, as `hook_q`, `hook_k` and `hook_v` see them.

        Args:
            name: `q`, `k` or `v`.
            resid: What `norm` gave.
        """
        heads = self.heads if name == "q" else self.kv_heads
        return self.project[name](resid).unflatten(-1, (heads, -1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoder:
    """The whole model.

    Attributes:
        layers: Its blocks.
        embed: Token ids to the residual stream before the first block.
        final_norm: Before the unembedding.
        unembed: W_U, a row a token.
        unembed_bias: Or None.
        softcap: Of the logits, or None.
        rotations: For each name the cosines and sines of positions.
        causal: Whether a position sees only itself and those before it.
        residual: Whether blocks add to what they read; the toy model has no residual stream.
    """

    layers: tuple[Layer, ...]
    embed: Callable[[Int[Tensor, "batch position"]], Tensor]
    final_norm: Function
    unembed: Float[Tensor, "vocab d"]
    unembed_bias: Float[Tensor, " vocab"] | None
    softcap: float | None
    rotations: Callable[[str, Int[Tensor, " position"]], tuple[Tensor, Tensor]]
    causal: bool
    residual: bool

    def logits(self, resid: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch vocab"]:
        """From the last block's output to the logits of the next token.

        Args:
            resid: The residual stream after the last block.
        """
        found = self.final_norm(resid) @ self.unembed.T
        return self.cap(found if self.unembed_bias is None else found + self.unembed_bias)

    def logits_of(
        self, resid: Float[Tensor, "batch variant d"], tokens: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch variant"]:
        """One token's logit alone.

        Args:
            resid: The residual stream after the last block.
            tokens: Which token, for each example.
        """
        found = (self.final_norm(resid) @ self.unembed[tokens][:, :, None]).squeeze(-1)
        return self.cap(found if self.unembed_bias is None else found + self.unembed_bias[tokens][:, None])

    def cap(self, logits: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The soft cap, where the model has one.

        Args:
            logits: Before it.
        """
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def turn(
        self, layer: Layer, name: str, heads: Float[Tensor, "*batch position head width"], start: int
    ) -> Float[Tensor, "*batch position head width"]:
        """Queries or keys as attention compares them: normalised, and rotated by their positions.

        Args:
            layer: Whose.
            name: `q` or `k`.
            heads: What `Layer.split` gave.
            start: The first of their positions.
        """
        if name in layer.normalise:
            heads = layer.normalise[name](heads)
        if layer.rotary is None:
            return heads
        length = heads.shape[-3]
        cos, sin = self.rotations(layer.rotary, torch.arange(start, start + length, device=heads.device))
        first, second = heads.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
        return heads * cos[:, None] + turned * sin[:, None]


def read_decoder(model: Any) -> Decoder | str:
    """The model as a `Decoder`, or why it cannot be one.

    Args:
        model: A TransformerBridge.
    """
    hooked = active_hooks(model)
    if hooked:
        return f"hooks are attached ({', '.join(hooked[:3])})"
    return _read.get(model, lambda: _try(model, list(model.original_model.parameters())))


@torch.no_grad()
def _try(model: Any, weights: list[Tensor]) -> Decoder | str:
    family = str(model.original_model.config.model_type)
    if family not in FAMILIES:
        return f"the family {family} is not known"
    if any(weight.dtype not in (torch.float32, torch.float64) for weight in weights):
        return "the weights are of reduced precision"
    if len({weight.device for weight in weights}) > 1:
        return "the weights lie on several devices"
    from lcalens.engine.forward import trace

    try:
        decoder = _collect(model, family)
        tokens = torch.arange(1, 1 + _TRIED, device=weights[0].device)[None] % decoder.unembed.shape[0]
        found = decoder.logits(trace(decoder, tokens, keep=()).final)
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        return f"its parts are not as expected ({type(error).__name__}: {error!s:.80})"
    expected = model(tokens)
    error = float((found - expected)[:, -1].abs().max())
    if not error <= _CLOSE * max(1.0, float(expected[:, -1].abs().max())):
        return f"its logits differ by {error:.2g} when it is read layer by layer"
    return decoder


def _raw(component: Any) -> Any:
    """Hugging Face's own module behind a bridge's component, without hook points."""
    return getattr(component, "original_component", None) or component


def _collect(model: Any, family: str) -> Decoder:
    config = model.original_model.config
    embed, rotary = _raw(model.embed), getattr(model, "rotary_emb", None)
    places = _raw(model.pos_embed) if family == "gpt2" else None
    unembed = _raw(model.unembed)

    def embedded(tokens: Int[Tensor, "batch position"]) -> Tensor:
        found = embed(tokens)
        return found if places is None else found + places(torch.arange(tokens.shape[1], device=tokens.device))

    def rotations(name: str, positions: Int[Tensor, " position"]) -> tuple[Tensor, Tensor]:
        like, kind = unembed.weight[:1], () if name == "all" else (name,)
        cos, sin = _raw(rotary)(like, positions[None], *kind)
        return cos[0], sin[0]

    return Decoder(
        layers=tuple(_layer(block, config, family) for block in model.blocks),
        embed=embedded,
        final_norm=_identity if family == "lca" else _raw(model.ln_final),
        unembed=unembed.weight,
        unembed_bias=getattr(unembed, "bias", None),
        softcap=getattr(config, "final_logit_softcapping", None),
        rotations=rotations,
        causal=family != "lca",
        residual=family != "lca",
    )


def _layer(block: Any, config: Any, family: str) -> Layer:
    attention, own = block.attn, _raw(block.attn)
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    out = _raw(attention.o)
    # GPT-2's Conv1D keeps (in, out), every other module (out, in).
    weight = out.weight if type(out).__name__ == "Conv1D" else out.weight.T
    kind = getattr(own, "layer_type", None)
    names = {"gpt2": None, "lca": None, "gemma3_text": kind}
    norms = {"q": "q_norm", "k": "k_norm"} if family == "gemma3_text" else {}
    scaling = getattr(own, "scaling", None) or getattr(own, "scale", None)
    width = int(getattr(own, "head_dim", None) or config.head_dim)
    return Layer(
        norm=_identity if family == "lca" else _raw(block.ln1),
        project={name: _raw(getattr(attention, name)) for name in "qkv"},
        normalise={name: _raw(getattr(attention, norm)) for name, norm in norms.items()},
        heads=heads,
        kv_heads=kv_heads,
        scale=float(scaling or 1 / math.sqrt(width)),
        softcap=getattr(own, "attn_logit_softcapping", None),
        window=getattr(own, "sliding_window", None),
        rotary=names.get(family, "all"),
        out=weight.unflatten(0, (heads, -1)),
        out_bias=getattr(out, "bias", None),
        after_attention=_raw(block.ln1_post) if family in ("gemma2", "gemma3_text") else _identity,
        mlp=_mlp(block, family),
    )


def _mlp(block: Any, family: str) -> Function:
    if family == "lca":
        return torch.zeros_like
    norm, mlp = _raw(block.ln2), _raw(block.mlp)
    if family in ("gemma2", "gemma3_text"):
        after = _raw(block.ln2_post)
        return lambda resid: after(mlp(norm(resid)))
    return lambda resid: mlp(norm(resid))


def _identity(x: Tensor) -> Tensor:
    return x
