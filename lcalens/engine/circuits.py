"""Value circuits: what a head would write of any token, read as logits, whether the head looks there or not.

A head's circuit is a function of its own, from the residual stream at a source to the logits: norm, W_V, W_O, the norm
after attention where there is one, the final norm and W_U. With the norms' scales frozen at some run's values it is
linear from the value on, so an entry is a number of logits: what the answer gets for every unit of attention.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.core.errors import LcalensError
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
    unembed = decoder.unembed[answers.to(decoder.unembed.device)].double() * decoder.logit_scale
    return _back(decoder, tokens, unembed)


def _back(decoder: Decoder, tokens: Int[Tensor, "run position"], unembed: Float[Tensor, "answer d"]) -> Readout:
    check_open(decoder)
    run = trace(decoder, tokens, keep=("attn_raw",))
    last = run.final[:, -1]
    norm = freeze(decoder.final_norm, last.to(decoder.norm_device))
    final = norm.to(unembed.device).back(unembed)
    directions, scales = [], []
    for index, layer in enumerate(decoder.layers):
        after = freeze(layer.after_attention, run.kept["attn_raw"][index][:, -1])
        reaches = 1.0 if decoder.residual or index + 1 == len(decoder.layers) else 0.0
        directions.append(reaches * after.back(final.to(layer.device)))
        scales.append((norm.scale * after.scale.to(norm.scale)).to(unembed.device))
    return Readout(tuple(directions), final, torch.stack(scales, 1))


@torch.no_grad()
def token_writers(
    decoder: Decoder, tokens: Int[Tensor, "1 position"], heads: Sequence[tuple[int, int]]
) -> Float[Tensor, "head width d"]:
    """For each head a map from a token's unembedding to the value that writes this token more than any of its size.

    It is W_O behind the gains of the norms that follow. Their scales, which differ from run to run, only make such a
    value longer or shorter.

    Args:
        decoder: The model.
        tokens: Any run; nothing of it but rounding is left in the maps.
        heads: As (layer, head).

    Raises:
        LcalensError: The model's logits are no sum over what its layers write.
    """
    unembed = decoder.unembed
    every = _back(decoder, tokens, torch.eye(unembed.shape[1], dtype=torch.float64, device=unembed.device)).directions
    rows = [einsum(wide(decoder.layers[layer].out[head]).double(), every[layer], "width d, row d -> width row")
            for layer, head in heads]  # fmt: skip
    return torch.stack([row.to(unembed.device) for row in rows]).float()


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


@dataclass(frozen=True, eq=False)
class Circuit:
    """A linear map from what attention reads to what a head writes, as a product of two thin matrices.

    Attributes:
        write: From a few numbers to what is written.
        read: From what attention reads to these.
    """

    write: Float[Tensor, "d rank"]
    read: Float[Tensor, "rank d"]

    def __call__(self, normed: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """What is written of a unit of attention.

        Args:
            normed: What attention reads.
        """
        return normed.to(self.read) @ self.read.T @ self.write.T

    def times(self, factor: float) -> "Circuit":
        """The same map, as many times as loud.

        Args:
            factor: By what.
        """
        return Circuit(self.write * factor, self.read)

    def inner(self, other: "Circuit") -> float:
        """The sum over entries of the two maps' products.

        Args:
            other: Of as many dimensions.
        """
        return float(((other.write.T @ self.write) * (other.read @ self.read.T)).sum())

    @property
    def size(self) -> float:
        """The Frobenius norm."""
        return max(self.inner(self), 0.0) ** 0.5

    def svd(self) -> tuple[Float[Tensor, "d rank"], Float[Tensor, " rank"], Float[Tensor, "d rank"]]:
        """Where it writes, its singular values, and what it reads."""
        writes, reads = torch.linalg.qr(self.write), torch.linalg.qr(self.read.T)
        left, values, right = torch.linalg.svd(writes.R @ reads.R.T, full_matrices=False)
        return writes.Q @ left, values, reads.Q @ right.T


@torch.no_grad()
def value_circuit(layer: Layer, head: int) -> Circuit:
    """W_V W_O of one head, in double precision; a bias is no part of it.

    Args:
        layer: Whose head.
        head: Which.

    Raises:
        LcalensError: The layer clips or normalises values, so what a head writes is not linear in what it reads.
    """
    if layer.clip is not None or "v" in layer.normalise:
        raise LcalensError(
            "model: it clips or normalises values, so a head's value circuit is no linear map; recall() takes it."
        )
    reading, writing = _weights(layer, head)
    return Circuit(writing.T, reading.T)


def spectrum(layer: Layer, head: int) -> Float[Tensor, " width"]:
    """The singular values of W_V W_O of one head, from what attention reads to what the head writes.

    Args:
        layer: Whose head.
        head: Which.
    """
    reading, writing = _weights(layer, head)
    return torch.linalg.svdvals(torch.linalg.qr(reading).R @ torch.linalg.qr(writing.T).R.T)


def _weights(layer: Layer, head: int) -> tuple[Float[Tensor, "d width"], Float[Tensor, "width d"]]:
    """A head's W_V and W_O."""
    size = layer.out.shape[-1]
    eye = torch.eye(size, dtype=layer.out.dtype, device=layer.device)
    nothing = layer.project["v"](torch.zeros_like(eye[:1]))
    weights = rearrange(
        layer.project["v"](eye) - nothing, "read (kv width) -> kv read width", kv=layer.kv_heads
    )[head * layer.kv_heads // layer.heads]  # fmt: skip
    return wide(weights).double(), wide(layer.out[head]).double()


def random_circuit(size: int, values: Float[Tensor, " width"], generator: torch.Generator) -> Circuit:
    """A circuit of given singular values whose singular vectors are drawn at random.

    Args:
        size: Dimensions of the residual stream.
        values: The singular values.
        generator: Where its singular vectors come from.
    """
    width = min(len(values), size)
    frames = [torch.linalg.qr(torch.randn(size, width, generator=generator, dtype=torch.float64)).Q for _ in range(2)]
    reading, writing = (frame.to(values.device) for frame in frames)
    return Circuit(writing, reading.T * values[:width, None])


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
    drawn = random_circuit(normed.shape[-1], values.double().to(directions.device), generator)
    return (normed.double().to(directions.device) @ drawn.read.T) @ (directions.double() @ drawn.write).T
