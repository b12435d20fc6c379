"""What patching and knockout give back, and how they are kept, resumed, bounded and watched."""

import functools
from itertools import chain

import numpy as np
import pytest
import torch
from helpers import slow_patching as slow

from lcalens.core.errors import LcalensError
from lcalens.core.provenance import fingerprint
from lcalens.core.results import Result
from lcalens.core.tables import SCHEMA
from lcalens.lca.model.bridge import lca_bridge
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.llm.models.load import load_model
from lcalens.mechanism import patch as patching
from lcalens.mechanism import patch_cells
from lcalens.mechanism.attribute import attribute
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.exchange import exchange
from lcalens.mechanism.hook_names import hook_name, site_of
from lcalens.mechanism.knockout import knockout
from lcalens.mechanism.patch import patch
from lcalens.mechanism.split import split
from lcalens.mechanism.summary import ratio_of_means


def toy(seed=0):
    torch.manual_seed(seed)
    model = LCAForCausalLM(LCAConfig(m=4, d_model=8, d_head=12)).eval()
    with torch.no_grad():
        model.embed.weight.mul_(2)
        model.attn.v.weight.mul_(4)
    return lca_bridge(model)


def contrast_of(model, lengths=(8,), batch=2, seed=0):
    cases = [slow.case(model, length=length, batch=batch, seed=seed + length) for length in lengths]
    return Contrast(
        **{side: [row for case in cases for row in getattr(case, side).tolist()] for side in ("clean", "hijacked")},
        **{side: [[row] for case in cases for row in getattr(case, side).tolist()] for side in ("true", "false")},
        spans={"word": (2, 4)},
    )


def computed(monkeypatch):
    """Which examples are really measured."""
    seen, measure = [], patch_cells.measure

    @functools.wraps(measure)  # a cell's key holds the code that computes it
    def watched(model, decoder, contrast, job, *rest):
        seen.append(job.bucket.indices.tolist())
        return measure(model, decoder, contrast, job, *rest)

    monkeypatch.setattr(patch_cells, "measure", watched)
    return seen


# --- the result -----------------------------------------------------------------------------------------------------


def test_axes_labels_and_provenance(standin):
    model = standin("llama").model
    contrast = contrast_of(model)
    found = patch(model, contrast, site="k", positions="each", progress=False)
    assert found.kind == "patching"
    assert found.axes == {
        "example": (0, 1),
        "layer": (0, 1, 2),
        "head": ("0-1", "2-3"),  # a key head and the query heads it serves
        "position": tuple(range(-8, 0)),
    }
    assert set(found.values) == {"value", "recovery"}
    assert {"clean", "hijacked"} <= set(found.examples.columns)
    told = {name: found.provenance[name] for name in ("site", "positions", "direction", "metric", "path")}
    assert told == {
        "site": "k",
        "positions": "each",
        "direction": "restore",
        "metric": "logit-difference",
        "path": "growing batch",
    }
    for family, heads in (("gemma", ("0-3",)), ("gpt2", (0, 1, 2, 3))):
        other = standin(family).model
        assert patch(other, contrast_of(other), site="v", progress=False).axes["head"] == heads
    assert list(patch(model, contrast, site="mlp_out", progress=False).axes) == ["example", "layer"]
    frame = found.to_frame()
    assert len(frame) == 2 * 3 * 2 * 8 * 2
    assert list(frame.columns[-8:]) == ["layer", "head", "position", *SCHEMA]
    units = {"value": "logits", "recovery": "share"}
    assert dict(zip(frame["quantity"], frame["unit"], strict=True)) == units == found.units
    assert list(found.summary.columns) == ["layer", "head", "position", *SCHEMA]


def test_recovery_is_between_the_two_runs():
    model = toy()
    found = patch(model, contrast_of(model), site="v", positions="word", progress=False)
    clean, hijacked = (found.examples[side].to_numpy().reshape(-1, 1, 1) for side in ("clean", "hijacked"))
    np.testing.assert_allclose(found.values["recovery"], (found.values["value"] - hijacked) / (clean - hijacked))
    whole = (found.values["value"] - hijacked).sum() / (clean - hijacked).sum()
    assert found.wide()["recovery"].item() == pytest.approx(whole)
    assert found.wide()["recovery_low"].item() <= whole <= found.wide()["recovery_high"].item()


def test_a_result_is_saved_and_loaded(tmp_path):
    model = toy()
    for i, found in enumerate(
        (
            patch(
                model, contrast_of(model), positions=[-1, 2], metric=lambda logits, index: logits[:, 0], progress=False
            ),
            knockout(model, contrast_of(model), span="word", heads=[(0, 0)], progress=False),
        )
    ):
        found.save(tmp_path / str(i))
        again = Result.load(tmp_path / str(i))
        np.testing.assert_array_equal(found.values["value"], again.values["value"])
        assert again.provenance["path" if i == 0 else "span"] == ("growing batch" if i == 0 else "word")


def test_shares_of_nothing():
    part, whole = np.array([[1.0], [-1.0]]), np.array([2.0, -2.0])
    middle, low, high = ratio_of_means(part, whole)
    assert np.isnan(middle).all()
    assert np.isnan(low).all()
    assert np.isnan(high).all()
    middle, low, high = ratio_of_means(np.array([[1.0, np.nan], [3.0, 2.0]]), np.array([2.0, 4.0]))
    np.testing.assert_allclose(middle, [4 / 6, 2 / 4])
    assert low[0] <= middle[0] <= high[0]
    assert np.isnan([low[1], high[1]]).all(), "measured in one example"


def test_nothing_is_written_into_the_model(standin):
    model = standin("gemma3").model
    contrast = contrast_of(model)
    before = {name: value.clone() for name, value in model.original_model.state_dict().items()}
    with torch.no_grad():
        logits = model(torch.tensor([contrast.clean[0]]))
    found = patch(model, contrast, site="q", positions="all", progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.original_model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(logits, model(torch.tensor([contrast.clean[0]])))
    again = patch(model, contrast, site="q", positions="all", progress=False)
    np.testing.assert_array_equal(found.values["value"], again.values["value"])
    assert torch.is_grad_enabled()


def test_a_cache_that_was_taken_before_does_not_slow_patching_down(standin):
    """Transformers leaves hooks behind that only look."""
    model = standin("gpt2").model
    contrast = contrast_of(model)
    model.run_with_cache(torch.tensor([contrast.clean[0]]), names_filter=["blocks.0.attn.hook_pattern"])
    assert patch(model, contrast, progress=False).provenance["path"] == "growing batch"


# --- memory, progress, resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["head", "v", "resid_pre"])
def test_little_memory_gives_the_same(standin, site, monkeypatch):
    model = standin("llama").model
    contrast = contrast_of(model, lengths=(8, 10), batch=3)
    whole = patch(model, contrast, site=site, positions="all", progress=False)
    seen = computed(monkeypatch)
    monkeypatch.setattr(patching, "check_real", lambda *_, **__: 1e-5)  # some 10 KB: less than a single layer's
    little = patch(model, contrast, site=site, positions="all", progress=False)
    assert sorted(chain(*seen)) == list(range(6))
    if site != "resid_pre":
        assert len(seen) == 6  # one example at a time
    np.testing.assert_allclose(little.values["value"], whole.values["value"], rtol=1e-5, atol=1e-5)


def test_progress_is_told():
    model, told = toy(), []
    contrast = contrast_of(model, lengths=(6, 8))
    patch(model, contrast, progress=lambda done, total, what: told.append((done, total, what)))
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1][:2] == (4, 4)
    told.clear()
    knockout(model, contrast, span="word", progress=lambda *what: told.append(what))
    assert told[-1][:2] == (4, 4)


def test_finished_parts_are_not_computed_again(tmp_path, monkeypatch):
    model = toy()
    contrast = contrast_of(model, lengths=(6, 8, 10))
    whole = patch(model, contrast, progress=False)
    seen = computed(monkeypatch)
    real = patch_cells.measure

    @functools.wraps(real)
    def interrupted(*arguments):
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(patch_cells, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        patch(model, contrast, out=tmp_path, progress=False)
    assert len(seen) == 2
    monkeypatch.setattr(patch_cells, "measure", real)
    found = patch(model, contrast, out=tmp_path, progress=False)
    assert seen[2:] == [[4, 5]]  # the third part alone
    np.testing.assert_array_equal(found.values["value"], whole.values["value"])
    again = patch(model, contrast, out=tmp_path, progress=False)
    assert len(seen) == 3
    np.testing.assert_array_equal(again.values["value"], whole.values["value"])
    np.testing.assert_array_equal(again.examples["clean"], whole.examples["clean"])


def test_a_damaged_part_is_computed_again(tmp_path, monkeypatch):
    model = toy()
    contrast = contrast_of(model)
    first = patch(model, contrast, out=tmp_path, progress=False)
    seen = computed(monkeypatch)
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[:-9])
    again = patch(model, contrast, out=tmp_path, progress=False)
    assert len(seen) == 1
    np.testing.assert_array_equal(first.values["value"], again.values["value"])


def test_anything_else_is_another_part(tmp_path, monkeypatch):
    model = toy()
    contrast = contrast_of(model)
    patch(model, contrast, out=tmp_path, progress=False)
    seen = computed(monkeypatch)
    changes = [
        {"site": "v"},
        {"positions": "all"},
        {"positions": [2]},
        {"direction": "corrupt"},
        {"metric": "kl"},
        {"metric": "probability"},
        {"metric": "whole-answer"},
    ]
    for count, change in enumerate(changes, 1):
        kept = patch(model, contrast, out=tmp_path, progress=False, **change)
        assert len(seen) == count, change
        fresh = patch(model, contrast, progress=False, **change)
        seen.pop()
        np.testing.assert_array_equal(kept.values["value"], fresh.values["value"])
    patch(model, contrast_of(model, seed=1), out=tmp_path, progress=False)
    assert len(seen) == len(changes) + 1
    patch(model, contrast, out=tmp_path, progress=False)  # the first is still there
    assert len(seen) == len(changes) + 1
    with torch.no_grad():
        next(iter(model.original_model.parameters())).mul_(1.01)
    edited = patch(model, contrast, out=tmp_path, progress=False)
    assert len(seen) == len(changes) + 2
    np.testing.assert_array_equal(edited.values["value"], patch(model, contrast, progress=False).values["value"])


def test_nothing_is_kept_of_a_model_with_hooks(standin, tmp_path):
    model = standin("llama").model
    contrast = contrast_of(model)
    plain = patch(model, contrast, out=tmp_path, progress=False)
    model.add_hook("blocks.1.hook_mlp_out", lambda value, hook: value * 3)
    try:
        hooked = patch(model, contrast, out=tmp_path, progress=False)
    finally:
        model.reset_hooks()
    assert np.abs(hooked.values["value"] - plain.values["value"]).max() > 0.1
    again = patch(model, contrast, out=tmp_path, progress=False)
    np.testing.assert_array_equal(plain.values["value"], again.values["value"])


def test_intervals_resample_whole_clusters():
    """Ten copies of two examples are as sure as the two: by hand, from every resample of two clusters."""
    part, whole = np.repeat([[1.0], [3.0]], 10, 0), np.repeat([2.0, 4.0], 10)
    clusters = np.repeat(["a", "b"], 10)
    middle, low, high = ratio_of_means(part, whole, clusters)
    assert (middle[0], low[0], high[0]) == pytest.approx((4 / 6, 1 / 2, 3 / 4))
    _, *alone = ratio_of_means(part, whole)
    assert 1 / 2 < alone[0][0] < alone[1][0] < 3 / 4


def test_one_record_of_how_it_was_made_in_every_verb(standin):
    model = standin("gpt2").model
    contrast = contrast_of(model, batch=4)
    results = [
        patch(model, contrast, progress=False),
        knockout(model, contrast, span="word", progress=False),
        exchange(model, contrast, [[(0, 1)]], progress=False),
        attribute(model, contrast, progress=False),
        split(model, contrast, progress=False),
    ]
    digests = {found.provenance["contrast"] for found in results}
    assert len(digests) == 1
    assert digests != {patch(model, contrast[:2], progress=False).provenance["contrast"]}
    for found in results:
        assert found.provenance["model"]["fingerprint"] == fingerprint(model)
        assert found.provenance["model"]["hooks"] == []
        assert found.provenance["logits"] == "before any soft cap"
        assert found.provenance["path"] in ("growing batch", "layer by layer")
        assert {"versions", "examples", "excluded"} <= set(found.provenance)
        for end in ("clean", "hijacked"):
            expected = results[0].examples[end]
            np.testing.assert_allclose(found.examples[end], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), None])
def test_a_batch_halves_itself_when_memory_runs_out(standin, monkeypatch, error):
    model = standin("llama").model
    contrast = contrast_of(model, batch=5)
    expected = patch(model, contrast, progress=False)
    assert expected.provenance["memory"] == {"gib": 2.0, "halved": 0}
    measure = patch_cells.measure

    def scarce(model, decoder, contrast, job, *rest):
        if len(job.bucket.indices) > 1:
            raise error or RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory")
        return measure(model, decoder, contrast, job, *rest)

    monkeypatch.setattr(patch_cells, "measure", scarce)
    found = patch(model, contrast, progress=False)
    assert found.provenance["memory"]["halved"] == 3  # 5, 3, 2, 1
    np.testing.assert_allclose(found.values["value"], expected.values["value"], rtol=0, atol=1e-4)
    monkeypatch.setattr(patch_cells, "measure", lambda *rest: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(LcalensError, match=r"^memory: "):
        patch(model, contrast, progress=False)
    monkeypatch.setattr(patch_cells, "measure", lambda *rest: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        patch(model, contrast, progress=False)


def test_effects_near_the_grid_of_the_dtype_are_told(standin):
    model = load_model(standin("llama").folder, dtype="bfloat16")
    contrast = contrast_of(model, batch=3)
    found = patch(model, contrast, progress=False)
    rows = (*contrast.clean, *contrast.hijacked)
    logits = torch.stack([model(torch.tensor([row]))[0, -1].detach() for row in rows])
    answers = torch.tensor([[t[0], f[0]] for t, f in zip(contrast.true, contrast.false, strict=True)] * 2)
    largest = logits.float().gather(1, answers).abs().max()
    step = torch.nextafter(largest.bfloat16(), torch.tensor(torch.inf).bfloat16()) - largest.bfloat16()
    told = found.provenance["resolution"]
    assert told["grid"] == pytest.approx(float(step))
    assert told["dtype"] == "bfloat16"
    assert (found.summary["resolution"] == told["grid"]).all()
    same = Contrast(contrast.clean, contrast.clean, true=contrast.true, false=contrast.false)
    near = patch(model, same, progress=False)
    assert "near the grid" in repr(near)
    assert "near the grid" in near._repr_html_()
    exact = patch(standin("llama").model, same, progress=False)
    assert "resolution" not in exact.provenance
    assert "resolution" not in exact.summary


def test_logit_differences_are_told_before_and_after_a_soft_cap(standin):
    model = standin("gemma2").model
    contrast = contrast_of(model, batch=3)
    found = [patch(model, contrast, progress=False), exchange(model, contrast, [[(0, 1)]], progress=False)]
    for result in found:
        for end in ("clean", "hijacked"):
            for i in range(3):
                logits = model(torch.tensor([getattr(contrast, end)[i]]))[0, -1].detach().double()
                raw = 15 * torch.atanh(logits / 15)  # the stand-in's cap
                true, false = contrast.true[i][0], contrast.false[i][0]
                assert result.examples[f"{end}_after_cap"][i] == pytest.approx(
                    float(logits[false] - logits[true]), abs=1e-4
                )
                assert result.examples[end][i] == pytest.approx(float(raw[false] - raw[true]), rel=1e-3, abs=1e-3)
    assert "clean_after_cap" not in patch(standin("llama").model, contrast, progress=False).examples


def test_a_hooks_name_is_its_site_and_its_layer_alone(standin):
    for family in ("llama", "gpt2"):
        model = standin(family).model
        contrast = contrast_of(model, batch=2)
        for measure, sites in ((patch, ("z", "v", "mlp_out", "resid_pre", "pattern")), (attribute, ("z", "attn_out"))):
            for site in sites:
                whole = measure(model, contrast, site=site, progress=False)
                same = measure(model, contrast, site=hook_name(site), progress=False)
                one = measure(model, contrast, site=hook_name(site, 1), progress=False)
                assert one.axes["layer"] == (1,)
                assert one.provenance["site"] == same.provenance["site"] == site
                assert site_of(hook_name(site, 1)) == (site, 1)
                for name, values in whole.values.items():
                    close = {"rtol": 0, "atol": 1e-5 * max(1, np.nanmax(np.abs(values)))}
                    np.testing.assert_array_equal(same.values[name], values)
                    np.testing.assert_allclose(one.values[name], values[:, [1]], **close)


def test_directions_by_either_name(standin):
    model = standin("gpt2").model
    contrast = contrast_of(model, batch=2)
    for name, synonym in (("restore", "denoise"), ("corrupt", "noise")):
        found = [patch(model, contrast, direction=given, progress=False) for given in (name, synonym)]
        np.testing.assert_array_equal(found[0].values["value"], found[1].values["value"])
        assert found[1].provenance["direction"] == name
