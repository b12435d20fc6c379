"""Direct effects: what each part of the model writes along the direction between the two answers at the last position.

With every norm's scale frozen at the run's own value, the metric, logit(false) - logit(true) before any soft cap, is
linear in what the parts write to the residual stream. So it is a sum over heads and the positions they look at, MLPs,
the embedding and biases; in the toy model it is sum_l a_l r(t_l), attention times recall, and nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.engine.decoder import Decoder, Layer, Scaled, identity, wide
from lcalens.engine.forward import Trace, trace

_BALANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3}  # of the parts' size; 1e-4 in full precision
_LOUD = 1e3  # so large that no norm's epsilon matters


@dataclass(frozen=True, kw_only=True, eq=False)
class DirectEffects:
    """The metric of each run as a sum. All in units of logits, but for the three factors of a head's effect.

    Attributes:
        pattern: Attention of the last position.
        recall: What each position's value writes along the answer direction through W_O, before norms scale it; norms'
            weights are part of the direction.
        scale: Of the final norm, times that of the norm after attention, where there is one.
        attention_bias: What attention adds that depends on no position.
        mlp: What each MLP writes.
        embedding: What the embedding writes; 0 where there is no residual stream.
        constant: Biases of the final norm and the unembedding.
        metric: logit(false) - logit(true), by itself: the final norm is run, not frozen.
    """

    pattern: Float[Tensor, "batch layer head position"]
    recall: Float[Tensor, "batch layer head position"]
    scale: Float[Tensor, "batch layer"]
    attention_bias: Float[Tensor, "batch layer"]
    mlp: Float[Tensor, "batch layer"]
    embedding: Float[Tensor, " batch"]
    constant: Float[Tensor, " batch"]
    metric: Float[Tensor, " batch"]

    @property
    def heads_by_source(self) -> Float[Tensor, "batch layer head position"]:
        """Each head's direct effect by the position it looks at."""
        return self.pattern * self.recall * self.scale[..., None, None]

    @property
    def heads(self) -> Float[Tensor, "batch layer head"]:
        """Each head's direct effect."""
        return self.heads_by_source.sum(-1)

    @property
    def balance(self) -> dict[str, Float[Tensor, " batch"]]:
        """The sum by kind of part: `heads`, `mlps`, `embedding`, `biases`; together they are `metric`."""
        return {
            "heads": self.heads.sum((1, 2)),
            "mlps": self.mlp.sum(1),
            "embedding": self.embedding,
            "biases": self.attention_bias.sum(1) + self.constant,
        }

    @property
    def error(self) -> Float[Tensor, " batch"]:
        """By how much the parts miss the metric."""
        return (sum(self.balance.values(), torch.zeros_like(self.metric)) - self.metric).abs()


@dataclass(frozen=True, eq=False)
class Frozen:
    """A norm with its scale held: x to scale * gain * (x, centred or not) + bias.

    Attributes:
        gain: What each coordinate is multiplied by.
        bias: What is added.
        centred: Whether the mean is taken away first.
        scale: Of each vector that the norm was frozen at.
    """

    gain: Float[Tensor, " d"]
    bias: Float[Tensor, " d"]
    centred: bool
    scale: Float[Tensor, " batch"]

    def to(self, device: torch.device) -> "Frozen":
        """The same on another device."""
        return Frozen(self.gain.to(device), self.bias.to(device), self.centred, self.scale.to(device))

    def of(self, parts: Float[Tensor, "batch part d"]) -> Float[Tensor, "batch part d"]:
        """What the norm makes of each of the parts that a vector is the sum of, without its bias.

        Args:
            parts: Of every vector whose scale is held.
        """
        scaled = (parts - parts.mean(-1, keepdim=True) if self.centred else parts) * self.gain
        return scaled * self.scale[:, None, None]

    def back(self, direction: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The direction before the norm that its output's `direction` is, but for the scale."""
        scaled = direction * self.gain
        return scaled - scaled.mean(-1, keepdim=True) if self.centred else scaled


@torch.no_grad()
def direct_effects(
    decoder: Decoder,
    tokens: Int[Tensor, "batch position"],
    true: Int[Tensor, " batch"],
    false: Int[Tensor, " batch"],
) -> DirectEffects:
    """Run the model and take its metric at the last position apart.

    A head's effect at a position is pattern * recall * scale, all in the run itself: the norms' scales, of the final
    norm and of Gemma 2's and 3's norm after attention, are frozen at this run's values.

    Args:
        decoder: The model, from `read_decoder`.
        tokens: Of one length, without padding.
        true: The true answers' first tokens.
        false: The false answers'.

    Raises:
        LcalensError: The parts do not sum to the metric within 1e-4 of their size.
    """
    check_open(decoder)
    pattern, written, run = _last_position(decoder, tokens)
    final = run.final[:, -1]
    unembed = (decoder.unembed[false].double() - decoder.unembed[true].double()) * decoder.logit_scale
    norm = freeze(decoder.final_norm, final.to(decoder.norm_device)).to(unembed.device)
    direction = norm.back(unembed)

    def read(vectors: Tensor) -> Tensor:
        return norm.scale * (vectors.to(direction) * direction).sum(-1)

    layers = [
        _attention(layer, values, attention, norm, direction)
        for layer, values, attention in zip(decoder.layers, run.values, written["attn_raw"], strict=True)
    ]
    # Without a residual stream the unembedding reads the last layer alone.
    reaches = torch.ones(len(layers), dtype=torch.float64, device=direction.device)
    reaches[:-1] = decoder.residual
    bias = torch.zeros_like(norm.scale)
    if decoder.unembed_bias is not None:
        bias = (decoder.unembed_bias[false].double() - decoder.unembed_bias[true].double()) * decoder.logit_scale
    effects = DirectEffects(
        pattern=torch.stack([rows.to(direction.device) for rows in pattern], 1),
        recall=torch.stack([recall for recall, _, _ in layers], 1) * reaches[:, None, None],
        scale=torch.stack([scale for _, scale, _ in layers], 1),
        attention_bias=torch.stack([bias for _, _, bias in layers], 1) * reaches,
        mlp=torch.stack([read(mlp) for mlp in written["mlp_out"]], 1) * reaches,
        embedding=read(written["resid_pre"][0]) * decoder.residual,
        constant=(unembed * norm.bias).sum(-1) + bias,
        metric=decoder.logit_difference(final[:, None], true, false)[:, 0].double(),
    )
    _check_balance(effects, _BALANCE.get(decoder.unembed.dtype, 1e-4))
    return effects


def check_open(decoder: Decoder) -> None:
    """Refuse models whose logits are no sum over what layers write."""
    closed = next((index for index, layer in enumerate(decoder.layers) if not layer.open), None)
    if closed is None:
        return
    instead = "patch(), exchange() and attribute(method='patching') measure it all the same"
    if isinstance(decoder.layers[closed].close[1], Scaled):
        raise LcalensError(
            f"model: layer {closed} multiplies the residual stream itself by a factor, which direct effects do not "
            f"follow; {instead}."
        )
    raise LcalensError(
        f"model: layer {closed} normalises the residual stream itself (post-norm), so its logits are no sum over "
        f"what layers write; {instead}."
    )


def _last_position(
    decoder: Decoder, tokens: Int[Tensor, "batch position"]
) -> tuple[list[Tensor], dict[str, list[Tensor]], Trace]:
    """A run: where each layer's last position looks, what is written there by site, and the whole trace."""
    pattern: list[Tensor] = []
    written: dict[str, list[Tensor]] = {"resid_pre": [], "attn_raw": [], "mlp_out": []}

    def see(site: str, index: int, value: Tensor) -> Tensor:
        # Copies: a view of its last row would keep every layer's whole pattern alive.
        if site == "pattern":
            pattern.append(value[:, 0, :, -1].double())
        elif site in written:
            written[site].append(value[:, 0, -1].clone())
        return value

    run = trace(decoder, tokens, keep=(), edit=see)
    return pattern, written, run


def _attention(
    layer: Layer,
    values: Float[Tensor, "batch kv position width"],
    written: Float[Tensor, "batch d"],
    norm: Frozen,
    direction: Float[Tensor, "batch d"],
) -> tuple[Float[Tensor, "batch head position"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """What each position's value writes along the direction, by head; the norms' scale; and what depends on neither.

    Args:
        layer: Whose attention.
        values: As it averages them.
        written: What its heads write together at the last position, before any norm that follows.
        norm: The final norm.
        direction: Before the final norm.
    """
    after = freeze(layer.after_attention, written)
    write_direction = after.back(direction.to(layer.device))
    # In the model's own precision where that is full, in float32 where it is reduced.
    out = wide(layer.out)
    reader = einsum(out, write_direction.to(out), "head width d, batch d -> batch head width")
    reader = rearrange(reader, "batch (kv group) width -> batch kv group width", kv=layer.kv_heads)
    recall = einsum(reader, values.to(reader), "batch kv group width, batch kv key width -> batch kv group key")
    scale = norm.scale * after.scale.to(norm.scale)
    bias = norm.scale * (after.bias.to(direction) * direction).sum(-1)
    if layer.out_bias is not None:
        bias = bias + scale * (layer.out_bias.to(write_direction) * write_direction).sum(-1).to(norm.scale)
    return rearrange(recall, "batch kv group key -> batch (kv group) key").to(direction), scale, bias


def _check_balance(effects: DirectEffects, tolerance: float) -> None:
    size = effects.heads_by_source.abs().sum((1, 2, 3)) + effects.mlp.abs().sum(1) + effects.embedding.abs()
    size = size + effects.attention_bias.abs().sum(1) + effects.constant.abs()
    # Not `error > limit`: that lets NaN pass.
    if not bool((effects.error <= tolerance * size).all()):
        worst = int(torch.argmax(torch.nan_to_num(effects.error, nan=torch.inf)))
        total = float(sum(term[worst] for term in effects.balance.values()))
        raise LcalensError(
            f"model: its parts sum to {total:.6g}, its metric is {float(effects.metric[worst]):.6g}; a norm of this "
            "model cannot be taken apart as lcalens does."
        )


def freeze(norm: Callable[[Tensor], Tensor], x: Float[Tensor, "batch d"]) -> Frozen:
    """The norm as it acts on `x`, and on whatever `x` is the sum of.

    What kind of norm it is, and its gain and bias, are seen by what it does to a vector: RMSNorm with weight or 1 +
    weight, LayerNorm with or without bias.
    """
    x = x.detach()
    size, dtype = x.shape[-1], x.dtype
    unit_gain = torch.ones(size, dtype=torch.float64, device=x.device)
    no_bias = torch.zeros(size, dtype=torch.float64, device=x.device)
    if norm is identity:
        return Frozen(unit_gain, no_bias, False, torch.ones_like(x[:, 0], dtype=torch.float64))
    if isinstance(norm, Scaled):
        inner = freeze(norm.function, x)
        return Frozen(inner.gain * norm.multiplier, inner.bias * norm.multiplier, inner.centred, inner.scale)
    probe = torch.where(torch.arange(size, device=x.device) % 2 == 0, 1.0, -1.0).double() * _LOUD

    def act(vector: Tensor) -> Tensor:
        return norm(vector.to(dtype)[None])[0].double()

    centred = bool((act(probe + _LOUD) - act(probe)).abs().max() <= 0.1 * act(probe).abs().max())
    shifted = probe - probe.mean() if centred else probe
    bias = (act(probe) + act(-probe)) / 2
    gain = (act(probe) - act(-probe)) / 2 * shifted.square().mean().sqrt() / shifted
    scaled = x.double() - x.double().mean(-1, keepdim=True) if centred else x.double()
    scaled = scaled * gain
    normed = norm(x).double() - bias
    return Frozen(gain, bias, centred, (normed * scaled).sum(-1) / scaled.square().sum(-1))
