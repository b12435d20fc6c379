"""The estimate of memory against the most that tensors really take, counted storage by storage."""

import gc

import pytest
import torch
from helpers import slow_patching as slow

from lcalens.core.errors import LcalensError
from lcalens.core.memory import LiveTensors
from lcalens.mechanism import estimate as estimating
from lcalens.mechanism.attribute import attribute
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.estimate import memory_estimate
from lcalens.mechanism.exchange import exchange
from lcalens.mechanism.patch import patch

SETS = {"sets": [[(0, 0)], [(1, 1), (2, 3)]]}
CALLS = [
    ("patch", patch, {}),
    ("patch", patch, {"site": "pattern", "positions": "all"}),
    ("patch", patch, {"site": "mlp_out", "positions": "all", "memory": 0.002}),
    ("patch", patch, {"source": "mean", "positions": "all"}),
    ("exchange", exchange, SETS),
    ("attribute", attribute, {"positions": "all"}),
]


def contrast_of(model, batch=24, length=16):
    case = slow.case(model, length=length, batch=batch)
    rows = {side: getattr(case, side).tolist() for side in ("clean", "hijacked")}
    return Contrast(**rows, true=case.true[:, None].tolist(), false=case.false[:, None].tolist())


def test_what_lives_is_counted_once_and_until_it_is_freed():
    with LiveTensors() as live:
        one = torch.ones(1000)
        other = one.view(10, 100) + 1
        assert live.peak == 8000
        del one, other
        gc.collect()
        third = torch.ones(500)
    assert live.peak == 8000
    assert third.sum() == 500


@pytest.mark.parametrize(("name", "verb", "arguments"), CALLS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_within_a_factor_of_two(standin, family, name, verb, arguments):
    model = standin(family).model
    contrast = contrast_of(model)
    found = memory_estimate(model, contrast, verb=name, **arguments)
    with LiveTensors() as live:
        verb(model, contrast, **arguments, progress=False)
    assert live.peak / 2 <= found.bytes <= live.peak * 2, (found, live.peak)
    assert found.fits


def test_what_does_not_fit_is_told(standin, monkeypatch):
    model = standin("llama").model
    monkeypatch.setattr(estimating, "free_memory", lambda device: 10_000)
    with pytest.warns(UserWarning, match=r"^patch takes .* GB for \d+ examples of 32 tokens .*smaller memory="):
        assert not memory_estimate(model, contrast_of(model)).fits
    faults = {"verb": "split", "progress": False, "out": "x", "site": "x", "memory": "2"}
    for name, value in faults.items():
        with pytest.raises(LcalensError, match=f"^{name}: "):
            memory_estimate(model, contrast_of(model), **{name: value})
