"""Runs in which a head reads its cues through another circuit: what becomes of the metric and the likeliest token."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.core.progress import ProgressCallback
from lcalens.engine.circuits import Circuit
from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import Trace, run, trace
from lcalens.engine.metrics import Asked, of_variants
from lcalens.mechanism.arguments import Head
from lcalens.mechanism.association import Memory
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.exchange import batches

_ROWS = 2048  # positions of the residual stream run at once
_LOGITS = 1 << 25


@dataclass(frozen=True, eq=False)
class Swapped:
    """What the runs are with each memory in the head's place.

    Attributes:
        ends: The metric of the clean and the hijacked run as they are.
        metric: With each memory: of all cues, and of the half in which the cue that is read is not.
        right: Whether the clean run's likeliest token is the true answer, likewise.
    """

    ends: Float[np.ndarray, "example run"]
    metric: Float[np.ndarray, "example run memory made"]
    right: Float[np.ndarray, "example memory made"]


@torch.no_grad()
def swap(
    decoder: Decoder,
    contrast: Contrast,
    head: Head,
    circuit: Circuit,
    half: Int[Tensor, " token"],
    memories: Sequence[Memory],
    report: ProgressCallback,
) -> Swapped:
    """Both runs of every example with each memory in place of the head's value circuit, where it reads a cue.

    At the last position the head writes, for every position of a cue that it looks at, its attention times what the
    memory gives of the stream there, in place of what its own circuit does; bias, attention and all else stay.

    Args:
        decoder: The model.
        contrast: The runs.
        head: The head.
        circuit: Its own.
        half: Of each token, -1 where it is no cue.
        memories: What is put in its place.
        report: Called with (done, total, what).
    """
    size = (len(contrast), 2, len(memories), 2)
    metric, right, ends = np.zeros(size), np.zeros((len(contrast), *size[2:])), np.zeros((len(contrast), 2))
    done = 0
    for bucket in batches(contrast, decoder):
        rows = bucket.indices.cpu().numpy()
        asked = Asked(*(tensor.to(decoder.unembed.device) for tensor in (bucket.true, bucket.false, bucket.indices)))
        for side, tokens in enumerate((bucket.clean, bucket.hijacked)):
            base = trace(decoder, tokens, keep=("pattern",))
            last = base.final[:, None, -1]
            ends[rows, side] = of_variants("logit-difference", decoder, last, asked)[:, 0].double().cpu().numpy()
            metric[rows, side] = ends[rows, side, None, None]
            if not side:
                right[rows] = _likeliest(decoder, last, asked.true)[..., None]
            reads = _reads(decoder, base, head, half)
            if not bool(reads.any()):
                continue  # no cue is read here, so nothing changes
            some = max(1, _ROWS // (2 * len(rows) * (1 if decoder.causal else tokens.shape[1])))
            for first in range(0, len(memories), some):
                part = memories[first : first + some]
                stream = _run(decoder, base, head, _changes(circuit, reads, part))
                found = of_variants("logit-difference", decoder, stream, asked).double().cpu().numpy()
                metric[rows, side, first : first + some] = found.reshape(len(rows), -1, 2)
                if not side:
                    likeliest = _likeliest(decoder, stream, asked.true)
                    right[rows, first : first + some] = likeliest.reshape(len(rows), -1, 2)
        done += len(rows)
        report(done, len(contrast), f"{len(memories)} memories")
    return Swapped(ends, metric, right)


def _reads(decoder: Decoder, base: Trace, head: Head, half: Int[Tensor, " token"]) -> Float[Tensor, "batch half d"]:
    """What the head reads at the last position of each half's cues: attention times what stands there, normed."""
    layer, index = decoder.layers[head[0]], head[0]
    looked = base.kept["pattern"][index][:, head[1], -1].double()
    normed = layer.norm(base.resid[index]).double()
    cue = half[base.tokens.to(half.device)]
    weights = torch.stack([looked * (cue == one) for one in (0, 1)], 1)
    return einsum(weights, normed, "batch half position, batch position d -> batch half d")


def _changes(
    circuit: Circuit, reads: Float[Tensor, "batch half d"], memories: Sequence[Memory]
) -> Float[Tensor, "batch variant d"]:
    """What each memory writes of these reads beyond the head's own circuit: of all cues, then of the other half."""
    own, changes = circuit(reads.sum(1)), []
    for memory in memories:
        changes.append(memory.whole(reads.sum(1)) - own)
        changes.append(memory.halves[1](reads[:, 0]) + memory.halves[0](reads[:, 1]) - own)
    return torch.stack(changes, 1)


def _run(
    decoder: Decoder, base: Trace, head: Head, changes: Float[Tensor, "batch variant d"]
) -> Float[Tensor, "batch variant d"]:
    """The streams at the last position after the last layer, where the head writes so much more."""
    start = base.tokens.shape[1] - 1 if decoder.causal else 0

    def edit(site: str, index: int, value: Tensor) -> Tensor:
        if site != "attn_raw" or index != head[0]:
            return value
        value = value.clone()
        value[:, :, -1] += changes.to(value)
        return value

    stream = base.resid[head[0]][:, None, start:].expand(-1, changes.shape[1], -1, -1)
    return run(decoder, stream, first=head[0], start=start, before=base, edit=edit, reads=1)[:, :, -1]


def _likeliest(
    decoder: Decoder, stream: Float[Tensor, "batch variant d"], answer: Int[Tensor, " batch"]
) -> Float[np.ndarray, "batch variant"]:
    """1 where the likeliest next token of all is the answer."""
    step = max(1, _LOGITS // (len(decoder.unembed) * len(stream)))
    found = [decoder.logits(part).argmax(-1) == answer[:, None] for part in stream.split(step, 1)]
    return torch.cat(found, 1).double().cpu().numpy()
