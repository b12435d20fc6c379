"""Whether a defence's hooks do to a model what its attention, run layer by layer, says that they should."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import Edit, run, trace
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.defence.boundary import hidden_keys, sentence_starts
from lcalens.mechanism.defence.cut import WRITES
from lcalens.mechanism.defence.defence import Defence
from lcalens.mechanism.defence.reread import REREAD, own_token_part
from lcalens.mechanism.knockout import without

_TRIED = 4  # examples
_CLOSE = 1e-3


@torch.no_grad()
def check_hooks(model: Any, decoder: Decoder, contrast: Contrast, defence: Defence) -> None:
    """Compare some hijacked runs under the hooks, always on, with the model run layer by layer.

    Args:
        model: The TransformerBridge.
        decoder: The same model.
        contrast: Whose hijacked runs.
        defence: With heads.

    Raises:
        LcalensError: They differ.
    """
    method, values = "boundary", {}
    if defence.method in WRITES:
        method, values = "mean", {"z": defence.values["z"].mean(0, keepdim=True)}
    elif defence.method in REREAD:
        method, values = defence.method, defence.values
    always = Defence(method=method, heads=defence.heads, where=defence.where, ends=defence.ends, detector=None,
                     model=defence.model, values=values)  # fmt: skip
    ends = torch.tensor(defence.ends)
    for ids in contrast.hijacked[:_TRIED]:
        tokens = torch.tensor([ids], device=decoder.layers[0].device)
        real = torch.ones_like(tokens, dtype=torch.bool)
        starts, first = sentence_starts(tokens, ends, real), torch.zeros(1, dtype=torch.long, device=tokens.device)
        hidden = hidden_keys(starts, first, len(ids))
        begin = 0 if defence.where == "all" else len(ids) - 1
        hidden[:, :begin] = False
        edit = _by_layers(decoder, always, tokens, hidden, begin)
        expected = decoder.logits(run(decoder, decoder.embed(tokens)[:, None], edit=edit)[0, 0, -1])
        with always.applied(model):
            found = model(tokens)[0, -1].to(expected)
        if not float((found - expected).abs().max()) <= _CLOSE * float(expected.abs().max()):
            raise LcalensError(
                "model: the defence's hooks do not act on this model as its attention run layer by layer says they "
                "should; it cannot be defended here."
            )


def _by_layers(
    decoder: Decoder,
    defence: Defence,
    tokens: Int[Tensor, "1 position"],
    hidden: Bool[Tensor, "1 query key"],
    begin: int,
) -> Edit:
    """What the defence does, always on, in a run layer by layer.

    Args:
        decoder: The model.
        defence: Always on: a cut, heads' reading replaced by one, or changed by what they read.
        tokens: The run.
        hidden: Which keys each query no longer sees.
        begin: The first position that is defended.
    """
    subtracted = defence.method == "subtracted"
    before = trace(decoder, tokens, keep=("z",)).kept["z"] if subtracted else []
    values: dict[int, Tensor] = {}
    patterns: dict[int, Tensor] = {}

    def change(site: str, index: int, value: Tensor) -> Tensor:
        numbers = [number for number, (layer, _) in enumerate(defence.heads) if layer == index]
        heads = [defence.heads[number][1] for number in numbers]
        if not heads:
            return value
        layer = decoder.layers[index]
        if site == "v":
            values[index] = layer.averaged(value)[:, 0]
        if site == "pattern":
            patterns[index] = value[:, 0]
        if site != ("pattern" if defence.method == "boundary" else "z"):
            return value
        changed = value.clone()
        if site == "pattern":
            changed[:, 0, heads] = without(layer, value[:, 0, heads], hidden.to(value.device), True)
            return changed
        for number, head in zip(numbers, heads, strict=True):  # (batch, variant, position, head, width)
            if defence.method == "mean":
                new = defence.values["z"][0, number].to(value)
            elif subtracted:
                new = value[:, 0, :, head] - defence.values["strength"].to(value) * before[index][:, :, head]
            else:
                kept = values[index][:, :, head * layer.kv_heads // layer.heads]
                unembed = decoder.unembed[tokens.to(decoder.unembed.device)].to(value)
                part = own_token_part(patterns[index][:, head], kept, defence.values["writers"][number], unembed)
                new = value[:, 0, :, head] - defence.values["strength"].to(value) * part
            changed[:, 0, begin:, head] = new if new.ndim == 1 else new[:, begin:]
        return changed

    return change
