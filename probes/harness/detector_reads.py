"""What a detector reads: who writes it, and whether it is what makes heads look at the hijacking word."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lcalens import Contrast
from lcalens.core.errors import LcalensError
from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import run, trace
from lcalens.engine.gradients import frozen
from lcalens.engine.reading import read_decoder

Head = tuple[int, int]


def slopes(model: Any, contrast: Contrast, layer: int, heads: Sequence[Head]) -> Float[np.ndarray, "example head d"]:
    """How the log of each head's attention to the hijacking word grows with the stream before a layer.

    It is the gradient at the last position, through that layer and all up to the head's; other positions, and so the
    keys, are held.

    Args:
        model: The TransformerBridge.
        contrast: With the span `word`.
        layer: Before which the stream is read.
        heads: As (layer, head), none before it.
    """
    decoder = _decoder(model, contrast)
    found = np.zeros((len(contrast), len(heads), decoder.unembed.shape[1]))
    words = [[at for first, last in pairs for at in range(first, last)] for pairs in contrast.spans["word"]]
    with frozen(model):
        for bucket in contrast.buckets():
            indices = bucket.indices.tolist()
            kept = trace(decoder, bucket.hijacked, keep=())
            stream = kept.resid[layer].detach()
            last = stream[:, -1].clone().requires_grad_()
            patterns: dict[int, Tensor] = {}

            def watch(site: str, index: int, value: Tensor, patterns: dict[int, Tensor] = patterns) -> Tensor:
                if site == "pattern":
                    patterns[index] = value[:, 0, :, -1]
                return value

            with torch.enable_grad():
                run(decoder, torch.cat([stream[:, :-1], last[:, None]], 1)[:, None], first=layer, edit=watch)
                for number, (at, head) in enumerate(heads):
                    paid = [patterns[at][row, head, words[index]].sum().clamp(min=1e-30).log()
                            for row, index in enumerate(indices)]  # fmt: skip
                    (slope,) = torch.autograd.grad(torch.stack(paid).sum(), last, retain_graph=True)
                    found[indices, number] = slope.double().cpu().numpy()
    return found


def written(
    model: Any, contrast: Contrast, layer: int, direction: Float[np.ndarray, " d"]
) -> dict[str, Float[np.ndarray, " example"]]:
    """Who writes what a direction before a layer tells hijacked runs from clean ones by, at the last position.

    Args:
        model: The TransformerBridge.
        contrast: The runs.
        layer: Before which the stream is read.
        direction: Along which.

    Returns:
        Of the embedding and of the attention and the MLP of each layer before, hijacked - clean along the direction;
        `whole` is of the stream itself, and their sum.
    """
    decoder = _decoder(model, contrast)
    along = torch.from_numpy(direction)
    found: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for bucket in contrast.buckets():
            ends = [trace(decoder, rows, keep=("attn_out", "mlp_out")) for rows in (bucket.hijacked, bucket.clean)]
            parts = {"whole": [one.resid[layer] for one in ends], "embedding": [one.resid[0] for one in ends]}
            for index in range(layer):
                parts |= {f"{name} {index}": [one.kept[site][index] for one in ends]
                          for name, site in (("attention", "attn_out"), ("MLP", "mlp_out"))}  # fmt: skip
            for name, (hijacked, clean) in parts.items():
                change = (hijacked[:, -1].double() - clean[:, -1].double()).cpu()
                found.setdefault(name, np.zeros(len(contrast)))[bucket.indices.numpy()] = (change @ along).numpy()
    return found


def _decoder(model: Any, contrast: Contrast) -> Decoder:
    decoder = read_decoder(model, contrast.longest)
    if isinstance(decoder, str):
        raise LcalensError(f"model: it cannot be followed layer by layer: {decoder}.")
    return decoder


def cosines(vectors: Float[np.ndarray, "*many d"], direction: Float[np.ndarray, " d"]) -> Float[np.ndarray, "*many"]:
    """Of each vector with a direction.

    Args:
        vectors: Any number of them.
        direction: One.
    """
    sizes = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(direction)
    return (vectors @ direction) / np.where(sizes > 0, sizes, 1)
