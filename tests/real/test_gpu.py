"""The same numbers on an accelerator: every verb against the processor, in two precisions, on one device and on two.

The same is run on the processor alone, so that each call and each tolerance is known to hold before there is a device.
"""

import numpy as np
import pytest
import torch
from helpers import slow_patching as slow
from helpers import standins

from lcalens import (
    Contrast,
    Fact,
    attribute,
    defend,
    efficacy,
    exchange,
    head_kinds,
    knockout,
    load_model,
    memory,
    patch,
    path,
    recall,
    run_with_cache,
    score_parts,
    shapley,
    split,
)

ONE = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two CUDA devices")
HEADS = [(0, 0), (1, 1), (1, 2)]
PAIRS = {cue: cue + 40 for cue in range(10, 18)}
OBJECTS = {cue: [cue + 40] for cue in range(10, 18)}
QUIET = {"progress": False}


def values_of(result):
    """All numbers of a result, largest first axis kept: what is compared."""
    return np.concatenate([np.asarray(values, dtype=float).ravel() for _, values in sorted(result.values.items())])


def defended(model, contrast):
    """Logits under a cut, position by position of the last."""
    with defend(model, contrast, method="zero", heads=HEADS[:2]).applied(model):
        return model(torch.tensor(contrast.hijacked))[:, -1].detach().float().cpu().numpy()


def measured(model, contrast):
    """Log-probabilities of two objects, before and behind a sentence."""
    facts = [Fact(prompt="The capital of {} is", subject=name, target_true="Paris", target_false="Rome")
             for name in ("France", "Italy")]  # fmt: skip
    found = efficacy(model, facts, schemes=("dont-think",), counts=(0, 1), **QUIET)
    return np.stack([found.values["logp_true"], found.values["logp_false"]])


def cosines(found):
    """The cosines of the built memories with the head's own circuit."""
    return found.wide("beside")["cosine"].dropna().to_numpy(dtype=float)


VERBS = {
    "patch": lambda model, contrast: values_of(patch(model, contrast, positions="each", **QUIET)),
    "exchange": lambda model, contrast: values_of(exchange(model, contrast, [HEADS[:2]], **QUIET)),
    "knockout": lambda model, contrast: values_of(knockout(model, contrast, span="word", **QUIET)),
    "attribute": lambda model, contrast: values_of(attribute(model, contrast, **QUIET)),
    "split": lambda model, contrast: split(model, contrast, twin=0, **QUIET).values["total"],
    "shapley": lambda model, contrast: shapley(model, contrast, HEADS, **QUIET).values["shapley"],
    "path": lambda model, contrast: values_of(
        path(model, contrast, senders="heads", receivers=[(1, 1)], at="q", **QUIET)
    ),
    "score_parts": lambda model, contrast: values_of(score_parts(model, contrast, HEADS, keys="word", **QUIET)),
    "head_kinds": lambda model, contrast: head_kinds(model, contrast, HEADS, keys="word", **QUIET).values["total"],
    "recall": lambda model, contrast: values_of(recall(model, OBJECTS, HEADS, **QUIET)),
    "memory": lambda model, contrast: cosines(
        memory(model, contrast, (1, 1), pairs=PAIRS, level="embedding", draws=2, **QUIET)
    ),
    "run_with_cache": lambda model, contrast: (
        run_with_cache(model, contrast, names_filter="z")[0].float().cpu().numpy()
    ),
    "defend": defended,
    "efficacy": measured,
}
PLACES = {
    "the processor": ({"device": "cpu"}, ()),
    "one device": ({"device": "cuda"}, (pytest.mark.gpu, ONE)),
    "two devices": ({"device_map": "balanced"}, (pytest.mark.gpu, TWO)),
}
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.35}  # of the largest effect


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model of the Llama family, on the disk."""
    return standins.save_standin(tmp_path_factory.mktemp("gpu") / "llama", "llama")


@pytest.fixture(scope="module")
def here(folder):
    """The same in float32 on the processor, which all others are compared with."""
    return load_model(folder, progress=False)


@pytest.mark.parametrize("where", [pytest.param(place, marks=mark, id=name) for name, (place, mark) in PLACES.items()])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("verb", VERBS)
def test_an_accelerator_gives_the_processors_numbers(folder, here, where, dtype, verb):
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
    effect = np.nanmax(np.abs(expected))
    assert effect > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCES[dtype] * effect)
