"""Value circuits: what a head would write of any token, read as logits, whether the head looks there or not.

A head's circuit is a function of its own, from the residual stream at a source to the logits: norm, W_V, W_O, the norm
after attention where there is one, the final norm and W_U. With the norms' scales frozen at some run's values it is
linear from the value on, so an entry is a number of logits: what the answer gets for every unit of attention.
"""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.engine.decoder import Decoder, Layer, wide
from lcalens.engine.direct import check_open, freeze
from lcalens.engine.forward import trace


@dataclass(frozen=True, eq=False)
class Readout:
    """What answers' logits read at the last position of some runs.

    Attributes:
        directions: For each layer, of what its heads write, an answer's direction, norms' gains included.
        final: The same of the residual stream, for a logit lens.
        scale: Of the norms between a layer's heads and the logits, in each run.
    """

    directions: tuple[Float[Tensor, "answer d"], ...]
    final: Float[Tensor, "answer d"]
    scale: Float[Tensor, "run layer"]


@torch.no_grad()
def readout(decoder: Decoder, tokens: Int[Tensor, "run position"], answers: Int[Tensor, " answer"]) -> Readout:
    """The directions of answers, with the norms' scales of these runs.

    Args:
        decoder: The model.
        tokens: Runs of one length, without padding.
        answers: Token ids.

    Raises:
        LcalensError: The model's logits are no sum over what its layers write.
    """
    check_open(decoder)
    run = trace(decoder, tokens, keep=("attn_raw",))
    last = run.final[:, -1]
    norm = freeze(decoder.final_norm, last.to(decoder.norm_device))
    unembed = decoder.unembed[answers.to(decoder.unembed.device)].double() * decoder.logit_scale
    final = norm.to(unembed.device).back(unembed)
    directions, scales = [], []
    for index, layer in enumerate(decoder.layers):
        after = freeze(layer.after_attention, run.kept["attn_raw"][index][:, -1])
        reaches = 1.0 if decoder.residual or index + 1 == len(decoder.layers) else 0.0
        directions.append(reaches * after.back(final.to(layer.device)))
        scales.append((norm.scale * after.scale.to(norm.scale)).to(unembed.device))
    return Readout(tuple(directions), final, torch.stack(scales, 1))


def values_of(layer: Layer, normed: Float[Tensor, "source d"]) -> Float[Tensor, "source head width"]:
    """What each query head averages of these sources.

    Args:
        layer: Whose heads.
        normed: What its attention reads: the residual stream, normed.
    """
    values = layer.averaged(layer.split("v", normed[:, None]))[:, 0]
    return values.repeat_interleave(layer.heads // layer.kv_heads, 1)


def recalled(
    layer: Layer, normed: Float[Tensor, "source d"], directions: Float[Tensor, "answer d"]
) -> Float[Tensor, "head source answer"]:
    """Each head's source-to-answer table, before the norms' scales.

    Args:
        layer: Whose heads.
        normed: What attention reads of each source.
        directions: Of the answers, in what heads write.
    """
    out = wide(layer.out)
    reader = einsum(out, directions.to(out), "head width d, answer d -> head width answer")
    return einsum(
        values_of(layer, normed).to(reader), reader, "source head width, head width answer -> head source answer"
    ).double()


def spectrum(layer: Layer, head: int) -> Float[Tensor, " width"]:
    """The singular values of W_V W_O of one head, from what attention reads to what the head writes.

    Args:
        layer: Whose head.
        head: Which.
    """
    size = layer.out.shape[-1]
    eye = torch.eye(size, dtype=layer.out.dtype, device=layer.device)
    nothing = layer.project["v"](torch.zeros_like(eye[:1]))
    weights = rearrange(
        layer.project["v"](eye) - nothing, "read (kv width) -> kv read width", kv=layer.kv_heads
    )[head * layer.kv_heads // layer.heads]  # fmt: skip
    reading, writing = wide(weights).double(), wide(layer.out[head]).double().T
    return torch.linalg.svdvals(torch.linalg.qr(reading).R @ torch.linalg.qr(writing).R.T)


def gaussian_circuit(
    normed: Float[Tensor, "source d"],
    values: Float[Tensor, " width"],
    directions: Float[Tensor, "answer d"],
    generator: torch.Generator,
) -> Float[Tensor, "source answer"]:
    """The table of a random circuit of given singular values: what a head would recall if it had learnt nothing.

    Args:
        normed: What attention reads of each source.
        values: The singular values.
        directions: Of the answers.
        generator: Where its singular vectors come from.
    """
    size, width = normed.shape[-1], min(len(values), normed.shape[-1])
    frames = [torch.linalg.qr(torch.randn(size, width, generator=generator, dtype=torch.float64)).Q for _ in range(2)]
    reading, writing = (frame.to(directions.device) for frame in frames)
    return (normed.double().to(directions.device) @ reading * values[:width]) @ (directions.double() @ writing).T
