"""Identities of slopes and sums: attribution beside finite differences, and parts that make the whole."""

from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lcalens.engine.sites import hook_name
from lcalens.mechanism.attribute import attribute
from lcalens.mechanism.scores import score_parts
from lcalens.mechanism.split import split
from lcalens.selfcheck.by_hand import edited, patched, sampled
from lcalens.selfcheck.identity import Identity, Measured
from lcalens.selfcheck.subject import Subject

_STEP = 0.02  # of the way from one run to the other
_AROUND = (-_STEP, 0.0, _STEP)
_POINTS = 3  # of integrated gradients


def slopes(subject: Subject) -> Measured:
    """Attribution of heads, and the metric's slope by finite differences."""
    effects = torch.from_numpy(attribute(subject.model, subject.contrast, progress=False).values["effect"])
    places = sampled(effects.abs().amax(0), 1)
    runs = []
    for layer, head in places:
        clean, hijacked = (subject.hook(side, "z", layer) for side in ("clean", "hijacked"))
        way = (clean - hijacked)[:, -1, head]
        runs += [{hook_name("z", layer): partial(_along, way=step * way, head=head)} for step in _AROUND]
    found = edited(subject, subject.bucket.hijacked, runs).view(len(places), len(_AROUND), -1)
    slope, uncertain = _slope(subject, found)
    mine = torch.stack([effects[:, layer, head] for layer, head in places])
    return Measured(_apart(mine, slope), float(uncertain.max()), float(slope.abs().max()))


def _slope(subject: Subject, found: Float[Tensor, "place around batch"]) -> tuple[Tensor, Tensor]:
    """The metric's slope at some places of a way, and how far it is uncertain.

    A kink between the points (of a ReLU, or where an expert takes over) shows as a slope that differs from before to
    behind the place, and so does what bends; beside that there is rounding.

    Args:
        subject: The model.
        found: The metric a step before each place, there, and a step behind.
    """
    before, here, behind = found.unbind(1)
    bend = (behind - 2 * here + before).abs() / _STEP
    return (behind - before) / (2 * _STEP), bend + subject.grain / _STEP


def _along(z: Tensor, way: Tensor, head: int | slice) -> Tensor:
    z[:, -1, head] = z[:, -1, head] + way.to(z)
    return z


def complete(subject: Subject) -> Measured:
    """Integrated gradients of a layer's heads: the mean of slopes by finite differences at the same points of the way.

    How far their sum misses the exact change is the method's own error; that it is told right is seen by hand.
    """
    result = attribute(
        subject.model, subject.contrast[:1], method="integrated-gradients", steps=_POINTS, progress=False
    )
    summed = torch.from_numpy(result.values["effect"]).sum(-1)  # (example, layer)
    layer = int(summed.abs().amax(0).argmax())
    clean, hijacked = (subject.hook(side, "z", layer) for side in ("clean", "hijacked"))
    way = (clean - hijacked)[:, -1]
    nodes, weights = np.polynomial.legendre.leggauss(_POINTS)
    places = [float((1 + node) / 2 + step) for node in nodes for step in _AROUND]
    runs = [{hook_name("z", layer): partial(_along, way=place * way, head=slice(None))} for place in places]
    found = edited(subject, subject.bucket.hijacked, runs).view(_POINTS, len(_AROUND), -1)[..., :1]
    slope, uncertain = _slope(subject, found)
    rule = torch.from_numpy(weights / 2).to(slope)[:, None]
    expected, tolerance = (rule * slope).sum(0), float((rule * uncertain).sum(0).max())
    table = result.wide("completeness")
    told = table[table["layer"] == layer].to_dict("records")[0]
    exact = (patched(subject, [(layer, None)], "z", [-1])[0, :1] - subject.ends[:1, 1]).cpu()
    error = max(_apart(summed[:, layer], expected), abs(float(told["exact"]) - float(exact.mean())))
    gap = float(told["gap"]) / max(float(exact.abs().mean()), 1e-30)
    return Measured(
        error, tolerance, float(expected.abs().max()), f"{_POINTS} points miss the whole by {gap:.1%}, as told"
    )


def balance(subject: Subject) -> Measured:
    """Direct effects of heads, MLPs, embedding and biases, and the model's own metric."""
    table = attribute(subject.model, subject.contrast, method="direct", progress=False).wide("balance")
    parts = torch.from_numpy(table[table["part"] != "total"][["clean", "hijacked"]].to_numpy(float))
    ends = subject.ends.mean(0).cpu()
    tolerance = subject.grain + subject.rounding(parts)
    return Measured(_apart(parts.sum(0), ends), tolerance, float((ends[1] - ends[0]).abs()))


def divided(subject: Subject) -> Measured:
    """What `split` divides a hijack into: its parts, and with what is no head's, the whole change of the metric."""
    result = split(subject.model, subject.contrast, twin=0, progress=False)
    parts = {name: torch.from_numpy(result.values[name]) for name in ("attention", "recall", "scale", "total")}
    inside = _apart(parts["attention"] + parts["recall"] + parts["scale"], parts["total"])
    table = result.wide("balance")
    others = float(table[table["part"].isin(["mlps", "embedding", "biases"])]["change"].to_numpy(float).sum())
    change = float((subject.ends[:, 1] - subject.ends[:, 0]).mean())
    whole = abs(float(parts["total"].sum((1, 2, 3)).mean()) + others - change)
    tolerance = subject.grain + subject.rounding(parts["total"].abs().sum((1, 2, 3)))
    return Measured(max(inside, whole), tolerance, abs(change))


def scores(subject: Subject) -> Measured:
    """What the parts of queries and keys make of a head's score, and the score itself."""
    layers = int(subject.model.cfg.n_layers)
    head = next((one for one in sorted(subject.heads, reverse=True) if one[0]), (layers - 1, 0))
    cap = getattr(subject.model.original_model.config.get_text_config(), "attn_logit_softcapping", None)
    keys = [subject.bucket.hijacked.shape[1] - 2]  # within every window
    result = score_parts(subject.model, subject.contrast, [head], keys=keys, over=None, pairs=0, progress=False)
    parts = torch.from_numpy(result.values["score"][:, 0]).nansum(-1)  # (example, side)
    shown = subject.hook("hijacked", "attn_scores", head[0])[:, head[1], -1].double()
    expected = shown[:, keys[0]].cpu()
    parts = parts if cap is None else cap * torch.tanh(parts / cap)  # hooks show scores behind a soft cap
    tolerance = subject.carried["attn_scores"][head[0]]
    size = torch.from_numpy(result.values["score"][:, 0]).nan_to_num().abs().sum(-1)
    return Measured(_apart(parts, expected[:, None]), tolerance + subject.rounding(size), float(expected.abs().max()))


def _apart(mine: Tensor, expected: Tensor) -> float:
    return float((mine.double() - expected.double().cpu()).abs().max())


IDENTITIES: tuple[Identity, ...] = (
    Identity("slopes", "attribution is the metric's slope, by finite differences", ("attribute",), slopes),
    Identity("integrated gradients", "integrated gradients are the mean slope on the way, by finite differences",
             ("attribute",), complete),
    Identity("direct effects", "heads, MLPs, embedding and biases sum to the metric", ("attribute", "split"), balance),
    Identity("split", "the parts of a split sum to the change of the metric", ("split",), divided),
    Identity("parts of scores", "the parts of queries and keys sum to a head's own score", ("score_parts",), scores),
)  # fmt: skip
