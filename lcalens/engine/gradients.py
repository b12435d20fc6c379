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
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcalens.engine.decoder import Decoder, wide
from lcalens.engine.forward import Trace, run, trace
from lcalens.engine.sites import BY_QUERY

Measure = Callable[[Float[Tensor, "batch variant d"]], Float[Tensor, "batch variant"]]
_BYTES = 1 << 30  # that a graph may take, roughly
_PER_TOKEN = 32  # numbers of d that a layer keeps of a token for the backward pass
_BY_HEAD = ("z", "q", "k", "v")


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


def patching_effects(decoder: Decoder, pairs: Pairs, site: str, measure: Measure | None = None) -> Effects:
    """Attribution patching (Nanda 2023; Syed et al. 2023): the metric's gradient at the base run times the difference.

    Args:
        decoder: The model.
        pairs: The runs.
        site: What is patched.
        measure: The metric, of the residual streams after the last layer; the logit difference by default.
    """
    measure = measure or logit_difference(decoder, pairs)
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
        first = decoder.embed(pairs.base) if before is None else before.resid[0][:, start:]
    with torch.enable_grad():
        leaf = first[:, None].detach().requires_grad_()
        final = run(decoder, leaf, start=start, before=before, edit=watch)
        metric = measure(final[:, :, -1])
        gradients = torch.autograd.grad(metric.sum(), seen)
    # Where both runs are the same, so are the numbers: those of a whole run are compared with those of a whole run.
    values = [value.detach()[:, 0] for value in seen] if before is None else before.kept[site]
    chosen, effects = pairs.chosen.to(leaf), []
    with torch.no_grad():
        for gradient, value, other in zip(gradients, values, source.kept[site], strict=True):
            difference = wide(_difference(_last(site, other, reach), _last(site, value, reach)))
            each = _summed(site, wide(_last(site, gradient[:, 0], reach)) * difference)
            effect = einsum(chosen.to(each), each, "batch group reach, batch reach ... -> batch ... group")
            effects.append(effect.to(metric.device))  # layers may lie on several devices
        ended = measure(source.final[:, None, -1])
    return Effects(torch.stack(effects, 1), metric.detach()[:, 0], ended[:, 0])


def logit_difference(decoder: Decoder, pairs: Pairs) -> Measure:
    """logit(false) - logit(true) of the last position, before any soft cap.

    Args:
        decoder: The model.
        pairs: Whose answers.
    """
    return lambda resid: decoder.logit_difference(resid, pairs.true, pairs.false)


@torch.no_grad()
def integrated_effects(
    decoder: Decoder,
    pairs: Pairs,
    site: str,
    steps: int,
    tick: Callable[[int], None],
    measure: Measure | None = None,
) -> Effects:
    """Integrated gradients (Sundararajan et al. 2017): a layer's activation goes from base to source, layer by layer.

    All heads of a layer move together, so their effects sum to the exact change when the layer is patched whole, up to
    the error of Gauss and Legendre's rule. `exact` is that change.

    Args:
        decoder: The model.
        pairs: The runs.
        site: What is patched.
        steps: Points on the way.
        tick: Called with the number of examples after each layer.
        measure: The metric, of the residual streams after the last layer; the logit difference by default.
    """
    measure = measure or logit_difference(decoder, pairs)
    base = trace(decoder, pairs.base, keep={site})
    source = trace(decoder, pairs.source, keep={site})
    at, by = (measure(traced.final[:, None, -1])[:, 0] for traced in (base, source))
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    # The source's own activation comes last: it has no part in the mean, but its metric is the exact change.
    way = torch.tensor([*(nodes + 1) / 2, 1.0]).to(base.final)
    share = torch.tensor([*weights / 2, 0.0]).to(base.final)
    effects, exact = [], []
    for index in range(len(decoder.layers)):
        ways = [_along(decoder, measure, site, base, source, index, group, way, share) for group in _groups(pairs)]
        effects.append(torch.stack([effect for effect, _ in ways], -1).to(at.device))
        exact.append(torch.stack([end - at for _, end in ways], -1))
        tick(len(at))
    return Effects(torch.stack(effects, 1), at, by, torch.stack(exact, 1))


def _groups(pairs: Pairs) -> Iterator[Bool[Tensor, "batch own_reach"]]:
    """Each group's positions, from the first one that it has."""
    for group in pairs.chosen.unbind(1):
        yield group[:, int(group.any(0).nonzero()[0]) :]


def _along(
    decoder: Decoder,
    measure: Measure,
    site: str,
    base: Trace,
    source: Trace,
    index: int,
    chosen: Bool[Tensor, "batch own_reach"],
    way: Float[Tensor, " step"],
    share: Float[Tensor, " step"],
) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, " batch"]]:
    """One layer's effects, and the metric at the end of the way."""
    length, reach = base.tokens.shape[1], chosen.shape[1]
    start = length - reach if decoder.causal else 0
    activation = _last(site, base.kept[site][index], length - start)
    apart = _difference(_last(site, source.kept[site][index], reach), _last(site, activation, reach))
    shape = (-1, 1, reach, 1) if site in BY_QUERY else (-1, reach) + (1,) * (apart.ndim - 2)
    difference = torch.zeros_like(activation)
    _last(site, difference, reach).copy_(apart * chosen.to(apart.device).view(shape))
    resid, total, end = base.resid[index][:, None, start:], torch.zeros_like(wide(difference)), None
    size = max(1, rows_at_once(decoder, length) // (len(resid) * (length - start)))
    for chunk, weight in zip(way.split(size), share.split(size), strict=True):
        factor = chunk.to(activation).view(1, -1, *(1 for _ in activation.shape[1:]))
        leaf = (activation[:, None] + factor * difference[:, None]).requires_grad_()

        def put(name: str, at: int, value: Tensor, leaf: Tensor = leaf) -> Tensor:
            return leaf if (name, at) == (site, index) else value

        with torch.enable_grad():
            variants = resid.expand(-1, len(chunk), -1, -1)
            final = run(decoder, variants, first=index, start=start, before=base, edit=put)
            metric = measure(final[:, :, -1])
            (gradient,) = torch.autograd.grad(metric.sum(), leaf)
        total += einsum(wide(gradient), weight.to(wide(gradient)), "batch step ..., step -> batch ...")
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
    summed = products.sum(-1)
    return rearrange(summed, "batch head position -> batch position head") if site in BY_QUERY else summed
