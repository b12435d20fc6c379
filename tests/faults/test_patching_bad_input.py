"""What patching and knockout say to arguments they cannot use: an LcalensError that names them."""

import errno
import math
import os

import numpy as np
import pytest
import torch

from lcalens.core.errors import LcalensError
from lcalens.lca.model.bridge import lca_bridge
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.knockout import knockout
from lcalens.mechanism.patch import patch

ODD = [None, 1, 2.5, True, "", "Head", b"head", ["head"], {"head": 1}, {1}, np.array([1, 2]), torch.ones(2), object]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return lca_bridge(LCAForCausalLM(LCAConfig(m=3, d_model=4, d_head=4)).eval())


@pytest.fixture(scope="module")
def contrast():
    return Contrast([[1, 2, 3, 4]] * 2, [[1, 5, 3, 4]] * 2, true=1, false=2, spans={"sentence": (1, 2)})


UNEQUAL = Contrast([[1, 3, 4]], [[1, 5, 3, 4]], true=1, false=2, spans={"sentence": (1, 2)})
NO_SPAN = Contrast([[1, 2, 4]] * 2, [[1, 5, 4]] * 2, true=1, false=2, spans={"sentence": [[(1, 2)], []]})


def refused(name):
    return pytest.raises(LcalensError, match=rf"^{name}\b")


@pytest.mark.parametrize("function", [patch, knockout])
def test_no_model(function, contrast):
    plain = LCAForCausalLM(LCAConfig(m=3, d_model=4, d_head=4))
    for wrong in (None, "smollm2", 3, object(), torch.nn.Linear(2, 2), plain, lca_bridge):
        with refused("model"):
            function(wrong, contrast, progress=False)


@pytest.mark.parametrize("function", [patch, knockout])
def test_no_contrast(function, model):
    for wrong in (None, "a", [[1, 2]], ([1], [2]), {"clean": [1]}, torch.ones(2, 3), Contrast, model):
        with refused("contrast"):
            function(model, wrong, progress=False)


@pytest.mark.parametrize("value", ODD, ids=lambda value: f"{value!r:.12}")
def test_no_site_metric_or_direction(model, contrast, value):
    for name in ("site", "direction"):
        with refused(name):
            patch(model, contrast, progress=False, **{name: value})
    if value is not object:
        for function in (patch, knockout):
            with refused("metric"):
                function(model, contrast, progress=False, metric=value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        2.5,
        True,
        "",
        "word",
        "Last",
        [],
        [True],
        [0.5],
        ["last"],
        [4],
        [-5],
        9,
        {},
        [[1]],
        [None],
        [10**30],
        object,
    ],
    ids=lambda value: f"{value!r:.12}",
)
def test_no_positions(model, contrast, value):
    with refused("positions"):
        patch(model, contrast, progress=False, positions=value)
    with refused("positions"):
        knockout(model, contrast, progress=False, positions=value)


def test_positions_of_every_integer_type(model, contrast):
    expected = patch(model, contrast, site="v", positions=[1, 2], progress=False)
    for same in ((1, 2), np.array([1, 2]), torch.tensor([1, 2]), range(1, 3), [np.int64(1), -2]):
        found = patch(model, contrast, site="v", positions=same, progress=False)
        np.testing.assert_array_equal(found.values["value"], expected.values["value"])
        assert found.provenance["positions"] in ([1, 2], [1, -2])
    assert patch(model, contrast, positions=-1, progress=False).provenance["positions"] == -1
    assert patch(model, contrast, positions=np.int64(-1), progress=False).to_frame().shape[0] == 4


@pytest.mark.parametrize("value", [math.nan, math.inf, 0, -1, 1e-9, "2", None, True, [2], 1j, 10**400, torch.ones(2)])
def test_no_memory(model, contrast, value):
    with refused("memory"):
        patch(model, contrast, progress=False, memory=value)


def test_memory_of_any_size(model, contrast):
    for value in (1e-3, 1, 1e12, np.float32(2)):
        assert patch(model, contrast, progress=False, memory=value).provenance["path"] == "growing batch"


@pytest.mark.parametrize("value", [None, 1, "yes", [], 0.5])
def test_no_progress(model, contrast, value):
    for function in (patch, knockout):
        with refused("progress"):
            function(model, contrast, progress=value)


def test_a_folder_that_is_none(model, contrast, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for value in (file, file / "below", 3, [tmp_path], b"x\0y", "a\0b", object()):
        with refused("out"):
            patch(model, contrast, out=value, progress=False)


def test_a_folder_that_cannot_be_written(model, contrast, tmp_path, monkeypatch):
    def refuse(path, *mode, **options):  # not chmod: root may write everywhere
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "mkdir", refuse)
    with refused("out"):
        patch(model, contrast, out=tmp_path / "below", progress=False)


def test_a_metric_of_ones_own_that_is_none(model, contrast, tmp_path):
    for own in (
        lambda logits, index: logits,
        lambda logits, index: 1.0,
        lambda logits, index: None,
        lambda logits, index: logits.mean(),
    ):
        for function in (patch, knockout):
            with refused("metric"):
                function(model, contrast, metric=own, progress=False)
    with refused("out"):
        patch(model, contrast, metric=lambda logits, index: logits[:, 0], out=tmp_path, progress=False)


def test_lengths_that_differ(model):
    for site in ("k", "v", "pattern", "attn_scores"):
        with pytest.raises(LcalensError, match=r"^site: .* different lengths.*knockout"):
            patch(model, UNEQUAL, site=site, progress=False)
    for site in ("resid_pre", "resid_post", "attn_out", "mlp_out", "head", "q"):
        assert patch(model, UNEQUAL, site=site, progress=False).to_frame()["value"].notna().all()
    for positions in ("sentence", [0], [-4]):
        with pytest.raises(LcalensError, match=r"^positions: .*knockout"):
            patch(model, UNEQUAL, site="resid_pre", positions=positions, progress=False)


def test_an_example_without_the_span(model):
    with pytest.raises(LcalensError, match=r"^positions: example 1 has no span"):
        patch(model, NO_SPAN, positions="sentence", progress=False)
    with pytest.raises(LcalensError, match=r"^span: example 1 has no span"):
        knockout(model, NO_SPAN, progress=False)


@pytest.mark.parametrize("value", [*ODD, "word", "all"], ids=lambda value: f"{value!r:.12}")
def test_knockout_of_no_span(model, contrast, value):
    with refused("span"):
        knockout(model, contrast, span=value, progress=False)


@pytest.mark.parametrize(
    "value",
    [
        "last",
        "",
        None,
        3,
        [],
        [3],
        [(0,)],
        [(0, 0, 0)],
        [(1, 0)],
        [(0, 1)],
        [(-1, 0)],
        [(0.0, 0)],
        [(True, 0)],
        ["00"],
        {},
    ],
    ids=lambda value: f"{value!r:.12}",
)
def test_knockout_of_no_heads(model, contrast, value):
    with refused("heads"):
        knockout(model, contrast, heads=value, progress=False)


def test_knockout_of_heads_of_every_integer_type(model, contrast):
    expected = knockout(model, contrast, heads=[(0, 0)], progress=False).values["value"]
    for heads in ([(np.int64(0), np.int32(0))], {(0, 0)}, [[0, 0]], iter([(0, 0)]), np.array([[0, 0]])):
        np.testing.assert_array_equal(knockout(model, contrast, heads=heads, progress=False).values["value"], expected)


def test_knockout_without_meaning(model, contrast):
    with refused("positions"):
        knockout(model, contrast, positions="sentence", progress=False)
    with refused("metric"):
        knockout(model, contrast, metric="whole-answer", progress=False)
    for value in (None, 1, "yes", 0.0):
        with refused("renormalise"):
            knockout(model, contrast, renormalise=value, progress=False)


def test_tokens_that_the_model_has_not(model):
    for wrong in (
        {"clean": [[1, 2, 30]], "hijacked": [[1, 5, 30]], "true": 1, "false": 2},
        {"clean": [[1, 2, 3]], "hijacked": [[1, 5, 3]], "true": 1, "false": 200},
    ):
        for function in (patch, knockout):
            with refused("contrast"):
                function(model, Contrast(**wrong, spans={"sentence": (1, 2)}), progress=False)
