"""Activations of a run by site and layer, and a source made of such activations in place of another run's."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.engine.attention import look
from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import Trace, trace

_STREAM = {"resid_pre": 0, "resid_post": 1}  # which of a trace's residual streams, counted from the layer


def activations(
    decoder: Decoder, tokens: Int[Tensor, "batch position"], sites: Iterable[str], layers: Iterable[int]
) -> tuple[dict[tuple[str, int], Tensor], Float[Tensor, "batch position d"]]:
    """Run whole contexts; what each site holds in each layer, and the residual stream after the last layer.

    Args:
        decoder: The model.
        tokens: Of one length, without padding.
        sites: Which activations, in the shapes that TransformerLens's hooks show them in.
        layers: Of which layers.
    """
    sites, layers = list(sites), list(layers)
    kept = trace(decoder, tokens, keep=set(sites) - set(_STREAM))
    return {(site, layer): of_trace(kept, site, layer) for site in sites for layer in layers}, kept.final


def of_trace(run: Trace, site: str, layer: int) -> Tensor:
    """What a site holds in a layer of a run.

    Args:
        run: With the site kept; of `attn_scores` the pattern, which has the same shape, is enough.
        site: Which activation.
        layer: Which layer.
    """
    if site in _STREAM:
        return run.resid[layer + _STREAM[site]]
    return run.kept[site if site in run.kept else "pattern"][layer]


def made_source(decoder: Decoder, site: str, values: Mapping[int, Tensor]) -> Trace:
    """A source for `variants_of` that is no run: given activations of one site, aligned from the end.

    Args:
        decoder: The model.
        site: Which activation they are.
        values: By layer, in the site's shape; those of the layers that are patched.
    """
    first = next(iter(values.values()))
    batch, length = first.shape[0], first.shape[2 if site in ("pattern", "attn_scores") else 1]
    # No token is -1, so nothing before the patched position is taken for equal on the ground of equal tokens.
    tokens = torch.full((batch, length), -1, device=decoder.layers[0].device)
    count, width = len(decoder.layers), decoder.unembed.shape[1]
    nothing = torch.zeros(()).expand(batch, length, width)  # of layers that are not patched; takes no memory
    made = Trace(tokens, resid=[nothing] * (count + 1))
    if site in _STREAM:
        for layer, value in values.items():
            made.resid[layer + _STREAM[site]] = value
        return made
    name = "pattern" if site == "attn_scores" else site
    made.kept[name] = [torch.zeros(0)] * count
    if site == "v":
        made.values.extend([torch.zeros(0).expand(0, 0, 0, 0)] * count)
    for layer, value in values.items():
        if site == "attn_scores":
            value = look(decoder.layers[layer], value, decoder.unembed.dtype)
        made.kept[name][layer] = value
        if site == "v":  # as attention averages them: clipped and normalised, where the model does that
            made.values[layer] = decoder.layers[layer].averaged(value).transpose(1, 2)
    return made
