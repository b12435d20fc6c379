"""Identities of `patch`: each site as hooks by hand would do it, and what must come out whatever the model is."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from lcalens.engine.sites import HEADS, SHARED, SITES, hook_name
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.patch import patch
from lcalens.selfcheck.by_hand import edited, patched, putting, sampled
from lcalens.selfcheck.identity import FAINT, Identity, Measured
from lcalens.selfcheck.subject import Subject

_ALL = {"k", "v"}  # one key of many moves too little to be measured by itself
_DEAR = {"q", "pattern", "attn_scores"}  # heads of every layer take long, and those of `z` are measured all
_STILL = ("resid_pre", "mlp_out", "z", "v")
_SHORT = ("resid_post", "z")


def _values(subject: Subject, contrast: Contrast, site: str, **options: Any) -> tuple[np.ndarray, str]:
    """What `patch` gives, (example, layer, head), and how it ran."""
    known = site == "z" and contrast is subject.contrast and options in ({}, {"positions": "last"})
    result = subject.patched_heads if known else patch(subject.model, contrast, site=site, progress=False, **options)
    values = result.values["value"]
    return values if values.ndim == 3 else values[:, :, None], str(result.provenance["path"])


def by_hand(subject: Subject, site: str) -> Measured:
    """A site patched, and by hand the same where it moves most."""
    headed = site in HEADS | SHARED
    if site in _ALL:
        return _by_hand(subject, site, subject.layers, headed, "all")
    measured = _by_hand(subject, site, subject.layers if site in _DEAR else None, headed, "last")
    if measured.effect >= FAINT * measured.tolerance or not measured.error <= measured.tolerance:
        return measured
    return _by_hand(subject, site, subject.layers, headed, "all")  # the last token is the same in both runs


def _by_hand(subject: Subject, site: str, layers: Sequence[int] | None, headed: bool, positions: str) -> Measured:
    """A site of all layers at once, or of some one by one.

    Args:
        subject: The model.
        site: Which.
        layers: Some; None for all.
        headed: Whether the site has heads.
        positions: `last` or `all`.
    """
    hijacked = subject.ends[:, 1].cpu().numpy()
    names = [site] if layers is None else [hook_name(site, layer) for layer in layers]
    given = [_values(subject, subject.contrast, name, positions=positions) for name in names]
    values, path = np.concatenate([one for one, _ in given], 1), given[0][1]
    numbers = range(values.shape[1]) if layers is None else layers
    effects = torch.from_numpy(np.abs(values - hijacked[:, None, None]).max(0))
    places = sampled(effects)
    named = [(numbers[layer], head if headed else None) for layer, head in places]
    expected = patched(subject, named, site, slice(None) if positions == "all" else [-1]).T.cpu().numpy()
    mine = np.stack([values[:, layer, head] for layer, head in places], 1)
    return _compared(subject, mine, expected, hijacked[:, None], path)


def unequal(subject: Subject) -> Measured:
    """Sites that align from the end, between runs of different lengths."""
    clean, hijacked = next(subject.unequal.buckets()).clean, subject.ends[:, 1].cpu().numpy()
    layer, head = subject.heads[0]
    found = []
    for site in _SHORT:
        name = hook_name(site, layer)
        values, path = _values(subject, subject.unequal, name)
        subject.hook("hijacked", site, layer)
        kept: list[torch.Tensor] = []
        subject.last(clean, [(name, lambda value, hook, kept=kept: kept.append(value.detach().clone()))])
        change = putting(site, kept[0], head if site in HEADS else None, [-1])
        (expected,) = edited(subject, subject.bucket.hijacked, [{name: change}]).cpu().numpy()
        mine = values[:, 0, head if site in HEADS else 0]
        found.append(_compared(subject, mine, expected, hijacked, path))
    return Measured(max(one.error for one in found), subject.grain, min(one.effect for one in found), found[0].note)


def still(subject: Subject) -> Measured:
    """The clean run put into the clean run: nothing changes."""
    both, layer = subject.contrast, subject.heads[0][0]
    same = Contrast(both.clean, both.clean, true=list(both.true), false=list(both.false))
    clean = subject.ends[:, 0].cpu().numpy()[:, None, None]
    changes = []
    for site in _STILL:
        values, _ = _values(subject, same, hook_name(site, layer), positions="all")
        changes.append(float(np.abs(values - clean).max()))
    return Measured(max(changes), subject.grain, _whole(subject))


def everything(subject: Subject) -> Measured:
    """All that the first layer reads made the clean run's, and all that the last writes: the clean run."""
    clean = subject.ends[:, 0].cpu().numpy()
    last = int(subject.model.cfg.n_layers) - 1
    first = _values(subject, subject.contrast, "blocks.0.hook_resid_pre", positions="all")[0]
    end = _values(subject, subject.contrast, f"blocks.{last}.hook_resid_post", positions="all")[0]
    error = max(float(np.abs(values[:, 0, 0] - clean).max()) for values in (first, end))
    return Measured(error, subject.grain, _whole(subject))


def ablated(subject: Subject) -> Measured:
    """Zeros in a head's place."""
    layer, head = subject.heads[-1]
    name, hijacked = hook_name("z", layer), subject.ends[:, 1].cpu().numpy()
    values, path = _values(subject, subject.contrast, name, source="zero")
    (expected,) = edited(subject, subject.bucket.hijacked, [{name: partial(_zero, head=head)}]).cpu().numpy()
    return _compared(subject, values[:, 0, head], expected, hijacked, path)


def _zero(value: torch.Tensor, head: int) -> torch.Tensor:
    value[:, -1, head] = 0
    return value


def together_and_alone(subject: Subject) -> Measured:
    """Examples patched together, and each by itself."""
    name = hook_name("z", subject.heads[-1][0])
    both, path = _values(subject, subject.contrast, name)
    each = np.concatenate([_values(subject, one, name)[0] for one in subject.contrast])
    return _compared(subject, both, each, subject.ends[:, 1].cpu().numpy()[:, None, None], path)


def again(subject: Subject) -> Measured:
    """The same call twice: the same bytes."""
    name = hook_name("z", subject.heads[-1][0])
    first, second = (_values(subject, subject.contrast, name)[0] for _ in range(2))
    error = 0.0 if first.tobytes() == second.tobytes() else max(float(np.abs(first - second).max()), 1e-300)
    return Measured(error, 0.0, float(np.abs(first - subject.ends[:, 1].cpu().numpy()[:, None, None]).max()))


def _whole(subject: Subject) -> float:
    """By how much clean and hijacked runs differ."""
    return float((subject.ends[:, 1] - subject.ends[:, 0]).abs().max())


def _compared(subject: Subject, mine: np.ndarray, expected: np.ndarray, base: np.ndarray, path: str) -> Measured:
    note = "" if path == "growing batch" else "through hooks"
    return Measured(float(np.abs(mine - expected).max()), subject.grain, float(np.abs(expected - base).max()), note)


IDENTITIES: tuple[Identity, ...] = (
    *(Identity(f"patch {site}", f"patching {site} is what hooks by hand make of it", ("patch", "head_kinds"),
               partial(by_hand, site=site)) for site in SITES),
    Identity("patch unequal", "sites that align from the end, between runs of different lengths", ("patch",), unequal),
    Identity("clean into clean", "the clean run put into itself changes nothing", ("patch",), still),
    Identity("everything patched", "every site at once gives the clean run", ("patch",), everything),
    Identity("zero ablation", "zeros in a head's place are what hooks by hand make of them", ("patch",), ablated),
    Identity("patch together", "examples patched together give what each gives by itself", ("patch",),
             together_and_alone),
    Identity("patch again", "the same call twice gives the same bytes", ("patch",), again),
)  # fmt: skip
