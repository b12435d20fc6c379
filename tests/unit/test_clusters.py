"""A contrast's column `cluster` reaches every interval: ten copies of an example are as sure as the one."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.closeness import assert_near

from lcalens.mechanism.attribute import attribute
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.patch import patch
from lcalens.mechanism.ranking import agreement, ranking
from lcalens.mechanism.split import split

COPIES = 10


@pytest.fixture(scope="module")
def contrasts(standin):
    """Two examples; ten copies of each, told to be clusters; and the copies alone."""
    model = standin("gpt2").model
    generator = torch.Generator().manual_seed(3)
    clean, hijacked = torch.randint(5, model.cfg.d_vocab, (2, 2, 8), generator=generator)

    def copies(count, **options):
        return Contrast(clean.repeat(count, 1), hijacked.repeat(count, 1), true=7, false=9, **options)

    named = pd.DataFrame({"cluster": ["a", "b"] * COPIES})
    return model, copies(1), copies(COPIES, examples=named), copies(COPIES)


@pytest.mark.parametrize(
    "measure",
    [
        lambda model, contrast: patch(model, contrast, progress=False).summary,
        lambda model, contrast: attribute(model, contrast, progress=False).summary,
        lambda model, contrast: split(model, contrast, twin=0, progress=False).summary,
        lambda model, contrast: split(model, contrast, twin=[(0, 1)], progress=False).tables["twin"],
        lambda model, contrast: split(model, contrast, twin=0, progress=False).tables["heads"],
        lambda model, contrast: ranking(patch(model, contrast, progress=False)).summary,
    ],
    ids=["patch", "attribute", "split", "twin", "heads", "ranking"],
)
def test_copies_in_one_cluster_are_as_sure_as_one_example(contrasts, measure):
    model, two, clustered, alone = contrasts
    expected, found, loose = (measure(model, one) for one in (two, clustered, alone))
    for end in ("value_low", "value_high"):
        assert_near(found[end], expected[end], effect=expected[end])
    width, narrow = (table["value_high"] - table["value_low"] for table in (found, loose))
    assert (narrow < width).sum() > 0.8 * (width > 1e-4).sum() > 0


def test_agreement_resamples_clusters_too(contrasts):
    model, two, clustered, alone = contrasts
    found = []
    for one in (two, clustered, alone):
        estimates = [attribute(model, one, method=method, progress=False) for method in ("patching", "direct")]
        found.append(agreement(*estimates, k=3))
    expected, clusters, loose = (
        np.stack([one.values[f"agreement_{end}"] for end in ("low", "high")], 1) for one in found
    )
    assert_near(clusters, expected, effect=1)
    assert np.abs(loose - clusters).max() > 0.01
