"""What verbs say of a logit difference beside its effects, and other metrics of `exchange`."""

import numpy as np
import pytest
from helpers import slow_patching as slow
from helpers.closeness import assert_near

from lcalens.core.errors import LcalensError
from lcalens.llm.models.load import load_model
from lcalens.mechanism.attribute import attribute
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.exchange import exchange
from lcalens.mechanism.patch import patch
from lcalens.mechanism.split import split


def own(logits, index):
    return logits[:, ::7].square().mean(1) * (1.0 + index)


def contrast_of(case):
    rows = {side: getattr(case, side).tolist() for side in ("clean", "hijacked")}
    return Contrast(**rows, true=case.true[:, None].tolist(), false=case.false[:, None].tolist())


@pytest.mark.parametrize("metric", ["probability", "kl", own], ids=["probability", "kl", "own"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_both_twins_of_one_head_are_patching_z_in_any_metric(standin, family, metric):
    """And `patch` is held against loops over hooks in each of these metrics."""
    model = standin(family).model
    contrast = contrast_of(slow.case(model, length=7, batch=3))
    found = exchange(model, contrast, [[(1, 2)], [(2, 0)]], metric=metric, progress=False)
    patched = patch(model, contrast, site="z", metric=metric, progress=False)
    effects = found.values["value"] - found.examples["hijacked"].to_numpy()[:, None, None]
    scale = np.abs(effects).max()
    assert scale > 1e-5  # an answer's probability in a random model may be small
    for at, (layer, head) in enumerate([(1, 2), (2, 0)]):
        expected = patched.values["value"][:, layer, head]
        np.testing.assert_allclose(found.values["value"][:, at, 2], expected, rtol=2e-4, atol=2e-3 * scale)
    for end in ("clean", "hijacked"):
        assert_near(found.examples[end], patched.examples[end], effect=effects)
    assert found.units["value"] == patched.units["value"]


def test_split_and_exchange_refuse_what_is_not_exact(standin):
    model = standin("llama").model
    contrast = contrast_of(slow.case(model, length=7, batch=2))
    for metric in ("probability", "kl", "whole-answer", own):
        with pytest.raises(LcalensError, match=r"^metric: split divides .* alone"):
            split(model, contrast, metric=metric, progress=False)
    with pytest.raises(LcalensError, match=r"^metric: exchange does not measure 'whole-answer'"):
        exchange(model, contrast, [[(0, 0)]], metric="whole-answer", progress=False)


def test_attribute_and_split_tell_both_sides_of_a_soft_cap(standin):
    model = standin("gemma2").model
    case = slow.case(model, length=7, batch=2)
    contrast = contrast_of(case)
    for found in (attribute(model, contrast, progress=False), split(model, contrast, progress=False)):
        for side in ("clean", "hijacked"):
            logits = case.logits[side]
            expected = (logits.gather(1, case.false[:, None]) - logits.gather(1, case.true[:, None]))[:, 0].numpy()
            np.testing.assert_allclose(found.examples[f"{side}_after_cap"], expected, rtol=1e-4, atol=1e-4)
            assert np.abs(found.examples[side] - expected).max() > 1e-2
    assert "clean_after_cap" not in attribute(model, contrast, metric="kl", progress=False).examples


def test_attribute_and_split_tell_the_grid_of_a_reduced_dtype(standin):
    family = standin("llama")
    model = load_model(family.folder, dtype="bfloat16", progress=False)
    contrast = contrast_of(slow.case(family.model, length=7, batch=2))
    expected = patch(model, contrast, progress=False)
    grid = expected.provenance["resolution"]["grid"]
    assert grid >= 2.0**-8
    for found in (attribute(model, contrast, progress=False), split(model, contrast, progress=False)):
        assert found.provenance["resolution"]["grid"] == grid
        assert found.provenance["resolution"]["dtype"] == "bfloat16"
        assert set(found.summary["resolution"]) == {grid}
    whole = split(family.model, contrast, progress=False)
    assert "resolution" not in whole.provenance
    assert "resolution" not in whole.summary
