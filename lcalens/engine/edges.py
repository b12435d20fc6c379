"""Direct paths to first order: the metric's slope in what a receiver reads, times what each sender changes there.

One backward pass serves every sender and receiver: receivers are variants of one batch, and senders are vectors that
the slopes are multiplied by.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from lcalens.engine.decoder import wide
from lcalens.engine.forward import run
from lcalens.engine.gradients import Measure, rows_at_once
from lcalens.engine.paths import Changes, Receiver, Sender, Ways

Slopes = dict[Receiver, Tensor]


@torch.no_grad()
def edge_effects(
    ways: Ways,
    senders: Sequence[Sender],
    receivers: Mapping[int, Sequence[int]],
    measure: Measure,
    steps: int | None,
) -> tuple[list[tuple[Sender, Receiver]], Float[Tensor, "batch path"]]:
    """What every sender's path to every receiver behind it changes of the metric, to first order.

    Args:
        ways: Where they lead.
        senders: Where they begin.
        receivers: By layer the heads that read.
        measure: The metric, of residual streams after the last layer.
        steps: Points at which the slope is taken while what the receiver reads goes straight from the base run's to the
            source run's (integrated gradients, by Gauss and Legendre's rule); None for the base run's own slope.

    Returns:
        Which paths there are, and the predicted change of each.
    """
    way, share = [0.0], [1.0]
    if steps is not None:
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        way, share = ((nodes + 1) / 2).tolist(), (weights / 2).tolist()
    slopes = _slopes(ways, receivers, measure, way, share)
    paths, effects = [], []
    for index, present, change in _walk(ways, senders, receivers):
        for head in receivers[index]:
            slope = slopes[Receiver(index, head)]
            paths += [(sender, Receiver(index, head)) for sender in present]
            moved = wide(change).to(slope)
            effects.append(einsum(slope, moved, "batch row d, batch sender row d -> batch sender").cpu())
    return paths, torch.cat(effects, 1)


def _walk(
    ways: Ways, senders: Sequence[Sender], receivers: Mapping[int, Sequence[int]]
) -> Iterator[tuple[int, list[Sender], Float[Tensor, "batch sender row d"]]]:
    """At each layer that has receivers, what senders change of the stream before it."""
    changes = Changes(ways, senders)
    for index in range(max(receivers) + 1):
        changes.reach(index)
        present, change = changes.here(index)
        if index in receivers and change is not None:
            yield index, list(present), change


def _slopes(
    ways: Ways,
    receivers: Mapping[int, Sequence[int]],
    measure: Measure,
    way: Sequence[float],
    share: Sequence[float],
) -> Slopes:
    """For each receiver the metric's mean slope in the stream that it reads, at the path's positions."""
    points = [(index, head, step) for index in sorted(receivers) for head in receivers[index]
              for step in range(len(way))]  # fmt: skip
    batch, length = ways.base.tokens.shape
    size = max(1, rows_at_once(ways.decoder, length) // (batch * (length - ways.start)))
    found: Slopes = {}
    for first in range(0, len(points), size):
        some = points[first : first + size]
        for (index, head, step), slope in zip(some, _slopes_at(ways, some, measure, way), strict=True):
            receiver, part = Receiver(index, head), wide(slope) * share[step]
            found[receiver] = found[receiver] + part if receiver in found else part
    return found


def _slopes_at(
    ways: Ways, points: Sequence[tuple[int, int, int]], measure: Measure, way: Sequence[float]
) -> list[Float[Tensor, "batch row d"]]:
    """The slope at each point (layer, head, step), each a variant of one batch."""
    leaves: list[Tensor] = []

    def join(stage: str, index: int) -> Tensor | None:
        mine = [(head, step) for layer, head, step in points if layer == index]
        if not mine or (stage == "mid") != (ways.at in ("q", "k", "v")):
            return None
        steps = torch.tensor([way[step] for _, step in mine]).to(ways.base.resid[index])
        leaf = (steps[:, None, None] * ways.apart(index)).requires_grad_()
        leaves.append(leaf)
        streams = ways.stream(index, leaf)
        if stage == "pre":
            return streams
        heads = dict.fromkeys(head for head, _ in mine)
        own = {head: [row for row, (other, _) in enumerate(mine) if other == head] for head in heads}
        return torch.cat([ways.read(index, [head], streams[:, own[head]])[0] for head in heads], 1)

    with torch.enable_grad():
        final = run(ways.decoder, None, start=ways.start, before=ways.base, join=join, reads=1)
        gradients = torch.autograd.grad(measure(final[:, :, -1]).sum(), leaves)
    return [slope for gradient in gradients for slope in gradient.unbind(1)]
