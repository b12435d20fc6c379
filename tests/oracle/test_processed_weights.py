"""What TransformerLens' weight processing changes: nothing of the model, and in `split` where a constant counts."""

import numpy as np
import pytest
import torch

import lcalens
from tests.matrix.cells import material
from tests.matrix.families import boot

FAMILIES = ("gpt2", "llama", "gemma", "olmo")  # with and without biases, norms that centre and that do not
SITES = ("z", "q", "k", "v", "pattern", "attn_out", "mlp_out", "resid_pre")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    raw, processed = (boot(request.param, dtype=torch.float32) for _ in range(2))
    processed.enable_compatibility_mode(disable_warnings=True)
    return request.param, raw, processed, material(request.param).examples("aligned").contrast("batch")


def largest_change(before, after, quantity):
    """Relative to the largest value."""
    before, after = (np.asarray(result.values[quantity], dtype=float) for result in (before, after))
    return np.nanmax(np.abs(after - before)) / np.nanmax(np.abs(before))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("verb", ["patch", "attribute"])
def test_sites_give_the_same_effects(family, verb, site):
    _, raw, processed, contrast = family
    before, after = (getattr(lcalens, verb)(model, contrast, site=site, progress=False) for model in (raw, processed))
    assert largest_change(before, after, "value" if verb == "patch" else "effect") < 1e-4


def test_attention_cut_or_exchanged_gives_the_same(family):
    _, raw, processed, contrast = family
    before, after = (lcalens.knockout(model, contrast, progress=False) for model in (raw, processed))
    assert largest_change(before, after, "value") < 1e-4
    before, after = (
        lcalens.exchange(model, contrast, [[(0, 0), (1, 1)]], progress=False) for model in (raw, processed)
    )
    assert largest_change(before, after, "value") < 1e-4


def test_split_moves_where_values_have_a_bias(family):
    name, raw, processed, contrast = family
    before, after = (lcalens.split(model, contrast, progress=False) for model in (raw, processed))
    moved = {quantity: largest_change(before, after, quantity) for quantity in ("recall", "attention", "scale")}
    assert moved["recall"] < 1e-4
    biased = name == "gpt2"
    assert (moved["attention"] > 0.01) == (moved["scale"] > 0.01) == biased
    if not biased:
        assert max(moved.values()) < 1e-4
