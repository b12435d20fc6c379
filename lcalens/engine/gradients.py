"""First-order effects of patches: gradient times difference at the base run, or averaged on the way to the source run.

Nothing before the first patched position can differ, so only the positions from there on are run with a graph; keys
and values of the earlier ones are numbers. At the last position that is one token through every layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import Edit, Trace, average, compare, trace, write

_BYTES = 1 << 30  # that a graph may take, roughly
_PER_TOKEN = 32  # numbers of d that a layer keeps of a token for the backward pass
_BY_QUERY = ("pattern", "attn_scores")
_BY_HEAD = ("head", "q", "k", "v")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Runs of the same lengths, and where they are patched.

    Attributes:
        base: Tokens of the runs that are patched.
        source: Tokens of the runs that the activations come from.
        true: The true answers' first tokens.
        false: The false answers'.
        chosen: For each group of positions that is patched by itself, which of the last positions belong to it.
    """

    base: Int[Tensor, "batch position"]
    source: Int[Tensor, "batch source_position"]
    true: Int[Tensor, " batch"]
    false: Int[Tensor, " batch"]
    chosen: Bool[Tensor, "batch group reach"]

    def __getitem__(self, rows: slice) -> "Pairs":
        return Pairs(self.base[rows], self.source[rows], self.true[rows], self.false[rows], self.chosen[rows])


@dataclass(frozen=True, eq=False)
class Effects:
    """What was found of some pairs.

    Attributes:
        effect: Predicted change of the metric.
        base: The metric of the base runs.
        source: The metric of the source runs.
        exact: Of integrated gradients, the change when a layer's site is patched whole, all its heads together.
    """

    effect: Float[Tensor, "batch layer *head group"]
    base: Float[Tensor, " batch"]
    source: Float[Tensor, " batch"]
    exact: Float[Tensor, "batch layer group"] | None = None


def logit_difference(
    decoder: Decoder,
    final: Float[Tensor, "batch variant d"],
    true: Int[Tensor, " batch"],
    false: Int[Tensor, " batch"],
) -> Float[Tensor, "batch variant"]:
    """logit(false) - logit(true) after any soft cap, from these two rows of the unembedding alone.

    Args:
        decoder: The model.
        final: The residual stream after the last layer, at the last position.
        true: The true answers' first tokens.
        false: The false answers'.
    """
    normed = decoder.final_norm(final)

    def logit(token: Int[Tensor, " batch"]) -> Tensor:
        found = torch.einsum("bvd,bd->bv", normed, decoder.unembed[token])
        return decoder.cap(found if decoder.unembed_bias is None else found + decoder.unembed_bias[token][:, None])

    return logit(false) - logit(true)


def run_from(
    decoder: Decoder,
    before: Trace,
    start: int,
    resid: Float[Tensor, "batch variant position d"],
    edit: Edit,
    *,
    first: int = 0,
) -> Float[Tensor, "batch variant d"]:
    """Run variants of the positions from `start` on, every site open to edits, and read the last position.

    Args:
        decoder: The model.
        before: A run with the keys and values of the positions before `start`.
        start: The first position.
        resid: The residual stream before the layer `first`.
        edit: Called as by `trace`, on activations with an axis for variants behind the batch's.
        first: The layer to begin with.
    """
    stream = resid
    for index, layer in enumerate(decoder.layers):
        if index < first:
            continue
        stream = edit("resid_pre", index, stream)
        normed = layer.norm(stream)
        q, k, v = (edit(name, index, layer.split(name, normed)) for name in "qkv")
        queries, own = decoder.turn(layer, "q", q, start), decoder.turn(layer, "k", k, start)
        keys, values = before.keys[index][:, :, :start], before.values[index][:, :, :start]
        scores = compare(decoder, layer, queries, keys, start, own)  # (batch, variant, head, query, key)
        pattern = edit("pattern", index, edit("attn_scores", index, scores).softmax(-1))
        z = edit("head", index, average(layer, pattern, values, v))
        added = edit("attn_out", index, layer.after_attention(write(layer, z)))
        middle = stream + added if decoder.residual else added
        stream = edit("resid_post", index, middle + edit("mlp_out", index, layer.mlp(middle)))
    return stream[:, :, -1]


def patching_effects(decoder: Decoder, pairs: Pairs, site: str) -> Effects:
    """Attribution patching (Nanda 2023; Syed et al. 2023): the metric's gradient at the base run times the difference.

    Args:
        decoder: The model.
        pairs: The runs.
        site: What is patched.
    """
    length, reach = pairs.base.shape[1], pairs.chosen.shape[2]
    # With a graph a position costs some three times as much: a short way from the start it pays to run all at once.
    start = length - reach if decoder.causal and 3 * (length - reach) > length else 0
    seen: list[Tensor] = []

    def watch(name: str, index: int, value: Tensor) -> Tensor:
        if name == site:
            seen.append(value if value.requires_grad else value.requires_grad_())  # a toy's MLP gives plain zeros
        return value

    with torch.no_grad():
        source = trace(decoder, pairs.source, keep={site})
        before = trace(decoder, pairs.base, keep={site}) if start else None
    with torch.enable_grad():
        if before is None:
            leaf = decoder.embed(pairs.base).detach().requires_grad_()
            final = trace(decoder, pairs.base, keep=(), edit=watch, resid=leaf).final[:, None, -1]
        else:
            leaf = before.resid[0][:, None, start:].detach().requires_grad_()
            final = run_from(decoder, before, start, leaf, watch)
        metric = logit_difference(decoder, final, pairs.true, pairs.false)
        gradients = torch.autograd.grad(metric.sum(), seen)
    # Where both runs are the same, so are the numbers: those of a whole run are compared with those of a whole run.
    values = seen if before is None else before.kept[site]
    chosen, found = pairs.chosen.to(leaf.dtype), []
    with torch.no_grad():
        for gradient, value, other in zip(gradients, values, source.kept[site], strict=True):
            gradient = gradient if before is None else gradient[:, 0]
            difference = _difference(_last(site, other, reach), _last(site, value.detach(), reach))
            each = _summed(site, _last(site, gradient, reach) * difference)
            found.append(torch.einsum("bgr,br...->b...g", chosen, each))
        ended = logit_difference(decoder, source.final[:, None, -1], pairs.true, pairs.false)
    return Effects(torch.stack(found, 1), metric.detach()[:, 0], ended[:, 0])


@torch.no_grad()
def integrated_effects(decoder: Decoder, pairs: Pairs, site: str, steps: int, tick: Callable[[int], None]) -> Effects:
    """Integrated gradients (Sundararajan et al. 2017): a layer's activation goes from base to source, layer by layer.

    All heads of a layer move together, so their effects sum to the exact change when the layer is patched whole, up to
    the error of Gauss and Legendre's rule. `exact` is that change.

    Args:
        decoder: The model.
        pairs: The runs.
        site: What is patched.
        steps: Points on the way.
        tick: Called with the number of examples after each layer.
    """
    base = trace(decoder, pairs.base, keep={site})
    source = trace(decoder, pairs.source, keep={site})
    at, by = (
        logit_difference(decoder, run.final[:, None, -1], pairs.true, pairs.false)[:, 0] for run in (base, source)
    )
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    # The source's own activation comes last: it has no part in the mean, but its metric is the exact change.
    way = torch.tensor([*(nodes + 1) / 2, 1.0]).to(base.final)
    share = torch.tensor([*weights / 2, 0.0]).to(base.final)
    effects, exact = [], []
    for index in range(len(decoder.layers)):
        found = [_along(decoder, pairs, site, base, source, index, group, way, share) for group in _groups(pairs)]
        effects.append(torch.stack([effect for effect, _ in found], -1))
        exact.append(torch.stack([end - at for _, end in found], -1))
        tick(len(at))
    return Effects(torch.stack(effects, 1), at, by, torch.stack(exact, 1))


def _groups(pairs: Pairs) -> Iterator[Bool[Tensor, "batch own_reach"]]:
    """Each group's positions, from its own first one on."""
    for group in pairs.chosen.unbind(1):
        yield group[:, int(group.any(0).nonzero()[0]) :]


def _along(
    decoder: Decoder,
    pairs: Pairs,
    site: str,
    base: Trace,
    source: Trace,
    index: int,
    chosen: Bool[Tensor, "batch own_reach"],
    way: Float[Tensor, " step"],
    share: Float[Tensor, " step"],
) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
    """One layer's effects, and the metric at the end of the way."""
    length, reach = pairs.base.shape[1], chosen.shape[1]
    start = length - reach if decoder.causal else 0
    own = _last(site, base.kept[site][index], length - start)
    apart = _difference(_last(site, source.kept[site][index], reach), _last(site, own, reach))
    shape = (-1, 1, reach, 1) if site in _BY_QUERY else (-1, reach) + (1,) * (apart.ndim - 2)
    difference = torch.zeros_like(own)
    _last(site, difference, reach).copy_(apart * chosen.view(shape))
    resid, total, end = base.resid[index][:, None, start:], torch.zeros_like(difference), None
    size = max(1, rows_at_once(decoder, length) // (len(resid) * (length - start)))
    for some, weight in zip(way.split(size), share.split(size), strict=True):
        factor = some.view(1, -1, *(1 for _ in own.shape[1:]))
        leaf = (own[:, None] + factor * difference[:, None]).requires_grad_()

        def put(name: str, at: int, value: Tensor, leaf: Tensor = leaf) -> Tensor:
            return leaf if (name, at) == (site, index) else value

        with torch.enable_grad():
            variants = resid.expand(-1, len(some), -1, -1)
            final = run_from(decoder, base, start, variants, put, first=index)
            metric = logit_difference(decoder, final, pairs.true, pairs.false)
            (gradient,) = torch.autograd.grad(metric.sum(), leaf)
        total += torch.einsum("bs...,s->b...", gradient, weight)
        end = metric.detach()[:, -1]
    assert end is not None, "the way has no points"
    return _summed(site, total * difference).sum(1), end


def rows_at_once(decoder: Decoder, length: int) -> int:
    """How many tokens may run with a graph at the same time.

    Args:
        decoder: The model.
        length: Of the contexts.
    """
    heads = max(layer.heads for layer in decoder.layers)
    numbers = len(decoder.layers) * (_PER_TOKEN * decoder.unembed.shape[1] + 6 * heads * length)
    return max(1, _BYTES // (numbers * decoder.unembed.element_size()))


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Without gradients for the parameters meanwhile: graphs are smaller, and no `.grad` is filled.

    Args:
        model: A TransformerBridge.
    """
    trained = [parameter for parameter in model.original_model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode(False):  # inside which there are no gradients
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _last(site: str, value: Tensor, size: int) -> Tensor:
    """A view of the last positions (queries) of a site's activation."""
    axis = value.ndim - (3 if site in _BY_HEAD else 2)
    return value.narrow(axis, value.shape[axis] - size, size)


def _difference(source: Tensor, base: Tensor) -> Tensor:
    """Source less base; scores are -inf in both where a query may not look, and do not differ there."""
    return torch.where(torch.isneginf(base), torch.zeros_like(base), source - base)


def _summed(site: str, products: Tensor) -> Float[Tensor, "batch position *head"]:
    found = products.sum(-1)
    return found.transpose(1, 2) if site in _BY_QUERY else found
