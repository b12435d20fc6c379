"""A decoder-only transformer as plain functions of the residual stream: the dataclasses that every measurement runs on.

`reading` fills them from a TransformerBridge; `forward` runs them. What varies between families is a field here: norms
before and after, norms on queries and keys, rotary, ALiBi, windows, soft caps, sinks, parallel blocks, multipliers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]
Pairing = Literal["half", "adjacent"]
Step = Literal["clip", "normalise", "rotate"]


def identity(x: Tensor) -> Tensor:
    """Where a model has nothing."""
    return x


@dataclass(frozen=True, eq=False)
class Scaled:
    """A function whose result is multiplied: what a block with a residual multiplier adds (Granite).

    Attributes:
        function: A norm, or `identity`.
        multiplier: By what.
    """

    function: Function
    multiplier: float

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The function's result, multiplied."""
        return self.function(x) * self.multiplier


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One block. Every function acts on each position alone.

    Attributes:
        norm: What attention reads, from the residual stream.
        project: `q`, `k` and `v`: (..., d) to (..., heads * width), before any normalisation or rotation.
        normalise: `q`, `k` and `v`, (..., position, head, width) to the same; left out where the model has none.
        norms_join_heads: Whether one head's query or key changes the others', through a norm of all together (OLMo 2).
        order: In which queries and keys are clipped, normalised and rotated; values are never rotated.
        clip: Queries, keys and values are kept within plus and minus this, or None (OLMo, MPT).
        heads: Query heads.
        kv_heads: Key and value heads; each serves `heads // kv_heads` query heads.
        scale: Of the scores.
        softcap: Of the scores, or None.
        window: How many positions back attention reaches, itself included, or None.
        rotary: Which of the decoder's rotations this layer uses; None for no rotation.
        pairing: Which coordinates are rotated together: i and i + r/2 (`half`), or 2i and 2i + 1 (`adjacent`).
        bias_scale: What the decoder's key bias (ALiBi) is multiplied by here.
        sinks: A logit for each head that takes its share of the softmax and recalls nothing, or None (GPT-OSS).
        out: W_O by head.
        out_bias: Added once to the sum over heads.
        after_attention: From the sum over heads to what is added to the residual stream (a norm, a multiplier).
        mlp: From the residual stream to what the MLP adds to it.
        parallel: Whether the MLP reads what attention reads, the stream before the block.
        close: What is done to the stream after attention, and after the MLP, have been added (post-norm models).
        device: Where the block's weights are.
    """

    norm: Function
    project: dict[str, Function]
    normalise: dict[str, Function]
    clip: float | None
    heads: int
    kv_heads: int
    scale: float
    softcap: float | None
    window: int | None
    rotary: str | None
    pairing: Pairing
    bias_scale: float
    sinks: Float[Tensor, " head"] | None
    out: Float[Tensor, "head width d"]
    out_bias: Float[Tensor, " d"] | None
    after_attention: Function
    mlp: Function
    parallel: bool
    close: tuple[Function, Function]
    device: torch.device
    order: tuple[Step, ...] = ("clip", "normalise", "rotate")
    norms_join_heads: bool = False

    def split(
        self, name: str, normed: Float[Tensor, "*batch position d"]
    ) -> Float[Tensor, "*batch position head width"]:
        """Queries, keys or values of each head, as `hook_q`, `hook_k` and `hook_v` see them.

        Args:
            name: `q`, `k` or `v`.
            normed: What `norm` gave.
        """
        return rearrange(
            self.project[name](normed), "... (head width) -> ... head width",
            head=self.heads if name == "q" else self.kv_heads,
        )  # fmt: skip

    def clipped(self, projected: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Within the clip, where the model has one.

        Args:
            projected: Queries, keys or values.
        """
        return projected if self.clip is None else projected.clamp(-self.clip, self.clip)

    def averaged(
        self, values: Float[Tensor, "*batch position head width"]
    ) -> Float[Tensor, "*batch position head width"]:
        """Values as attention averages them: clipped, and normalised where the model does that (Gemma 4).

        Args:
            values: What `split` gave.
        """
        for step in self.order:
            values = self.take(step, "v", values)
        return values

    def take(
        self, step: Step, name: str, heads: Float[Tensor, "*batch position head width"]
    ) -> Float[Tensor, "*batch position head width"]:
        """Queries, keys or values after a step that does not depend on their positions.

        Args:
            step: Clip or normalise; a rotation, which does, leaves them as they are.
            name: `q`, `k` or `v`.
            heads: Before it.
        """
        if step == "clip":
            return self.clipped(heads)
        return self.normalise[name](heads) if step == "normalise" and name in self.normalise else heads

    @property
    def open(self) -> bool:
        """Whether what the block writes stays in the stream as it is: no norm acts on the stream itself."""
        return all(function is identity for function in self.close)


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoder:
    """The whole model.

    Attributes:
        layers: Its blocks.
        embed: Token ids to the residual stream before the first block.
        final_norm: Before the unembedding.
        unembed: W_U, a row for each token.
        unembed_bias: Or None.
        logit_scale: What the logits are multiplied by before any soft cap.
        softcap: Of the logits, or None.
        rotations: From a name and positions to the cosines and sines of those positions.
        key_bias: From the length of the run to what each head adds to the scores of each key (ALiBi), or None.
        causal: Whether a position sees only itself and those before it.
        residual: Whether blocks add to what they read; the toy model has no residual stream.
    """

    layers: tuple[Layer, ...]
    embed: Callable[[Int[Tensor, "batch position"]], Tensor]
    final_norm: Function
    unembed: Float[Tensor, "vocab d"]
    unembed_bias: Float[Tensor, " vocab"] | None
    logit_scale: float
    softcap: float | None
    rotations: Callable[[str, Int[Tensor, " position"]], tuple[Tensor, Tensor]]
    key_bias: Callable[[int], Float[Tensor, "head key"]] | None
    causal: bool
    residual: bool

    def logits(self, resid: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch vocab"]:
        """From the last block's output to the logits of the next token, after any soft cap, in float32 at least.

        Args:
            resid: The residual stream after the last block.
        """
        logits = self.normed(resid) @ self.unembed.T
        if self.unembed_bias is not None:
            logits = logits + self.unembed_bias
        return self.cap(wide(logits) * self.logit_scale)

    def normed(self, resid: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """What the unembedding reads: the norm is taken where its weights are, the result is where W_U is.

        Args:
            resid: The residual stream after the last block.
        """
        return self.final_norm(resid.to(self.norm_device)).to(self.unembed.device)

    @property
    def norm_device(self) -> torch.device:
        """Where the final norm's weights are."""
        weights = self.final_norm.parameters() if isinstance(self.final_norm, nn.Module) else iter(())
        return next(weights, self.unembed).device

    def cap(self, logits: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """The soft cap, where the model has one.

        Args:
            logits: Before it.
        """
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def logit_difference(
        self,
        resid: Float[Tensor, "batch variant d"],
        true: Int[Tensor, " batch"],
        false: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch variant"]:
        """logit(false) - logit(true) before any soft cap, from these two rows of W_U alone, in float32 at least.

        The two logits are not rounded before they are subtracted, so in bfloat16 this is finer than the model's own.

        Args:
            resid: The residual stream after the last block, at the position that is read.
            true: For each example the true answer's first token.
            false: The false answer's.
        """
        normed = wide(self.normed(resid))
        true, false = (tokens.to(normed.device) for tokens in (true, false))
        rows = self.unembed[false].to(normed.dtype) - self.unembed[true].to(normed.dtype)
        difference = einsum(normed, rows, "batch variant d, batch d -> batch variant")
        if self.unembed_bias is not None:
            bias = self.unembed_bias.to(normed.dtype)
            difference = difference + (bias[false] - bias[true])[:, None]
        return difference * self.logit_scale


def wide(values: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """In float32, or float64 where it is already: what is summed or subtracted is not in reduced precision.

    Args:
        values: In any precision.
    """
    return values if values.dtype == torch.float64 else values.float()
