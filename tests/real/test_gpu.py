"""The same numbers on an accelerator: every verb against the processor, in two precisions, on one device and on two."""

import numpy as np
import pytest
import torch
from helpers import slow_patching as slow
from helpers import standins

from lcalens.llm.models.load import load_model
from lcalens.mechanism.attribute import attribute
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.exchange import exchange
from lcalens.mechanism.knockout import knockout
from lcalens.mechanism.patch import patch
from lcalens.mechanism.split import split

pytestmark = pytest.mark.gpu
ONE = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two CUDA devices")
VERBS = {
    "patch": lambda model, contrast: patch(model, contrast, positions="each", progress=False).values["value"],
    "exchange": lambda model, contrast: exchange(model, contrast, [[(0, 0), (1, 1)]], progress=False).values["value"],
    "knockout": lambda model, contrast: knockout(model, contrast, span="word", progress=False).values["value"],
    "attribute": lambda model, contrast: attribute(model, contrast, progress=False).values["effect"],
    "split": lambda model, contrast: split(model, contrast, twin=0, progress=False).values["total"],
}
PLACES = {
    "one device": ({"device": "cuda"}, ONE),
    "two devices": ({"device_map": "balanced"}, TWO),
}


@pytest.mark.parametrize("where", [pytest.param(place, marks=mark, id=name) for name, (place, mark) in PLACES.items()])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("verb", VERBS)
def test_an_accelerator_gives_the_processors_numbers(tmp_path, where, dtype, verb):
    folder = standins.save_standin(tmp_path / "llama", "llama")
    here = load_model(folder, progress=False)
    case = slow.case(here, length=9, changed=(2, 3, 5))
    contrast = Contrast(
        case.clean,
        case.hijacked,
        true=case.true[:, None],
        false=case.false[:, None],
        spans={"word": [list(case.spans["word"]) for _ in case.clean]},
    )
    expected = VERBS[verb](here, contrast)
    found = VERBS[verb](load_model(folder, dtype=dtype, progress=False, **where), contrast)
    effect = np.abs(expected).max()
    assert effect > 1
    np.testing.assert_allclose(found, expected, rtol=0, atol={"float32": 1e-4, "bfloat16": 0.1}[dtype] * effect)
