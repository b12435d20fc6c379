"""What `path` is given and cannot use is refused, with the reason and what to do instead."""

import pytest
import torch

from lcalens.core.errors import LcalensError
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.path import path


@pytest.fixture(scope="module")
def given(standin):
    model = standin("gpt2").model
    generator = torch.Generator().manual_seed(0)
    clean, hijacked = (torch.randint(5, model.cfg.d_vocab, (2, 6), generator=generator) for _ in range(2))
    return model, Contrast(clean, hijacked, true=7, false=8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"at": "q"}, "receivers: at='q' needs heads"),
        ({"at": "resid"}, "needs layers"),
        ({"at": "z"}, "at: "),
        ({"receivers": [(1, 0)]}, "one by themselves"),
        ({"receivers": [(3, 0)], "at": "q"}, r"no \(layer, head\) of a model of 3 layers"),
        ({"receivers": [3], "at": "resid"}, "layer 3 is none of the model's 3"),
        ({"receivers": ["x"], "at": "resid"}, "expected layers"),
        ({"receivers": [(0, 1)], "at": "q", "senders": "heads"}, "none of them stands before"),
        ({"senders": ["L1"]}, "nor 'MLP3'"),
        ({"senders": ["MLP7"]}, "layer 7 is none"),
        ({"senders": []}, "senders: expected heads"),
        ({"senders": 3}, "senders: expected heads"),
        ({"positions": "all"}, "last position's"),
        ({"positions": "each", "at": "q", "receivers": [(1, 0)]}, "not for paths"),
        ({"metric": "whole-answer"}, "does not measure"),
        ({"method": "slope"}, "method: "),
        ({"steps": 0}, "steps: "),
        ({"metric": lambda logits, index: logits[:, 0].detach(), "method": "gradient"}, "no gradient"),
        ({"metric": lambda logits, index: logits[:, 0], "out": "x"}, "cannot be told apart"),
    ],
)
def test_what_is_refused(given, options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LcalensError, match=said):
        path(*given, progress=False, **options)
