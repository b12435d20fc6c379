"""Ablation as a source of `patch`, against loops over TransformerLens's hooks: zeros, means, tensors of one's own."""

import numpy as np
import pytest
import torch
from helpers import slow_patching as slow
from helpers.closeness import assert_near, rounding, size_of
from helpers.slow_patching import BY_QUERY, HEADLESS, SITES

from lcalens.core.errors import LcalensError
from lcalens.lca.model.bridge import lca_bridge
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.mechanism.cache import run_with_cache
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.patch import patch

NO_ZERO = BY_QUERY  # zeros are no attention


def toy():
    torch.manual_seed(0)
    model = LCAForCausalLM(LCAConfig(m=4, d_model=8, d_head=12)).eval()
    with torch.no_grad():
        model.embed.weight.mul_(2)
        model.attn.v.weight.mul_(4)
    return lca_bridge(model)


def model_of(standin, name):
    return toy() if name == "toy" else standin(name).model


def contrast_of(*cases):
    rows = {side: [row for case in cases for row in getattr(case, side).tolist()] for side in ("clean", "hijacked")}
    answers = {side: [[row] for case in cases for row in getattr(case, side).tolist()] for side in ("true", "false")}
    return Contrast(**rows, **answers)


def by_hand(model, base, case, site, group, made):
    """The logit difference of every ablated run, (batch, layer, head): one forward for each, by a hook of its own."""
    layers = []
    for layer, there in enumerate(slow.kept(model, base, site)):
        columns = []
        for head in range(slow.heads_of(site, there)):

            def hook_function(value, hook, layer=layer, head=head):
                new = value.clone()
                slow.put(new, made(layer, value), site, head, group)
                return new

            with torch.no_grad():
                name = f"blocks.{layer}.{slow.HOOKS[site]}"
                logits = model.run_with_hooks(base, fwd_hooks=[(name, hook_function)])[:, -1]
            columns.append(slow.measured("logit-difference", logits, case.true, case.false, logits, case.cap))
        layers.append(torch.stack(columns, 1))
    return torch.stack(layers, 1)


def check(found, expected, base_end, path="growing batch"):
    """Values and effects within 1e-4 of the largest effect, which matters."""
    assert found.provenance["path"].startswith(path)
    effects = expected - base_end.view(-1, 1, 1)
    largest = effects.abs().max().item()
    allowed = 1e-4 * largest + rounding(torch.float32, [1.0, size_of(expected, base_end)], 64)
    for name, wanted in (("value", expected), ("effect", effects)):
        values = torch.from_numpy(found.values[name]).view(wanted.shape)
        assert (values - wanted).abs().max() <= allowed, name
    table = found.wide()["effect"].to_numpy(float).reshape(effects.shape[1:])
    np.testing.assert_allclose(table, effects.mean(0), atol=allowed)
    return largest


def hooked(model):
    """A hook that changes nothing sends every measurement through TransformerLens's hooks."""
    model.add_hook("blocks.0.hook_mlp_out", lambda value, hook: value)
    return model


@pytest.mark.parametrize("by_hooks", [False, True], ids=["batch", "hooks"])
@pytest.mark.parametrize("name", ["toy", "llama", "gpt2"])
@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_ablation_is_the_hook_loop(standin, kind, name, by_hooks):
    model = model_of(standin, name)
    case = slow.case(model, length=7, changed=(2, 3, 5), batch=3)
    contrast = contrast_of(case)
    if by_hooks:
        hooked(model)
    try:
        largest = 0.0
        for turn, site in enumerate(SITES):
            if kind == "zero" and site in NO_ZERO:
                continue
            direction = ("restore", "corrupt")[turn % 2]
            positions, group = [("last", (-1,)), ("all", tuple(range(-7, 0))), ([2, -1], (-5, -1))][turn % 3]
            base = slow.sides(case, direction)[0]
            clean = slow.kept(model, case.clean, site)

            def made(layer, value, clean=clean):
                if kind == "zero":
                    return torch.zeros_like(value)
                return clean[layer].double().mean(0, keepdim=True).to(value).expand_as(value)

            expected = by_hand(model, base, case, site, group, made)
            ends = dict(zip(("clean", "hijacked"), slow.ends("logit-difference", case), strict=True))
            found = patch(
                model, contrast, site=site, positions=positions, direction=direction, source=kind, progress=False
            )
            run = "hijacked" if direction == "restore" else "clean"
            assert found.provenance["source"] == kind
            assert found.provenance["ablated"] == run
            path = "hooks" if by_hooks else "growing batch"
            largest = max(largest, check(found, expected, ends[run], path))
        assert largest > 1
    finally:
        model.reset_hooks()


def test_the_mean_is_over_all_clean_runs_at_the_same_place_from_the_end(standin):
    model = standin("llama").model
    cases = [slow.case(model, length=length, batch=2, seed=length) for length in (7, 9)]
    contrast = contrast_of(*cases)
    found = patch(model, contrast, site="z", source="mean", progress=False)
    clean = [slow.kept(model, case.clean, "head") for case in cases]
    for rows, case in ((slice(0, 2), cases[0]), (slice(2, 4), cases[1])):

        def made(layer, value):
            mean = torch.cat([side[layer][:, -1] for side in clean]).mean(0)
            return mean[None, None].expand_as(value)

        expected = by_hand(model, case.hijacked, case, "head", (-1,), made)
        np.testing.assert_allclose(found.values["value"][rows], expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(LcalensError, match=r"^source: clean runs of 7 to 9 tokens have the last"):
        patch(model, contrast, source="mean", positions="all", progress=False)
    with pytest.raises(LcalensError, match=r"^source: 'pattern' has a value for each key"):
        patch(model, contrast, site="pattern", source="mean", progress=False)
    with pytest.raises(LcalensError, match=r"^source: the mean over one example"):
        patch(model, contrast[0], source="mean", progress=False)


def test_a_single_example_of_a_subset_has_another_mean(standin, tmp_path):
    """Finished parts hold what the mean was of: another reference is another number."""
    model = standin("llama").model
    contrast = contrast_of(slow.case(model, length=7, batch=4))
    arguments = {"site": "z", "source": "mean", "progress": False, "out": tmp_path}
    whole, half = patch(model, contrast, **arguments), patch(model, contrast[:2], **arguments)
    assert np.abs(whole.values["value"][:2] - half.values["value"]).max() > 1e-2
    again = patch(model, contrast[:2], **(arguments | {"out": None}))
    np.testing.assert_array_equal(half.values["value"], again.values["value"])
    zero = patch(model, contrast, **(arguments | {"source": "zero"}))
    assert np.abs(zero.values["value"] - whole.values["value"]).max() > 1e-2


@pytest.mark.parametrize("metric", ["probability", "kl", "whole-answer"])
def test_other_metrics_of_an_ablation(standin, metric):
    """Zero is the same as zeros that are given, and as the other run where that is zero: every metric takes it."""
    model = standin("llama").model
    case = slow.case(model, length=7, batch=2)
    rows = {side: getattr(case, side).tolist() for side in ("clean", "hijacked")}
    contrast = Contrast(**rows, true=[[5, 6]] * 2, false=[[7, 8, 9]] * 2)
    for site in ("z", "mlp_out", "v", "resid_pre"):
        zero = patch(model, contrast, site=site, positions=[2, -1], source="zero", metric=metric, progress=False)
        held = slow.kept(model, case.hijacked, "head" if site == "z" else site)
        given = {f"blocks.{i}.{slow.HOOKS['head' if site == 'z' else site]}": torch.zeros_like(v[:1, :1])
                 for i, v in enumerate(held)}  # fmt: skip
        own = patch(model, contrast, site=site, positions=[2, -1], source=given, metric=metric, progress=False)
        assert np.abs(zero.values["effect"]).max() > 1e-3
        assert_near(zero.values["value"], own.values["value"], effect=zero.values["effect"])


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gpt2"])
@pytest.mark.parametrize("site", SITES)
def test_a_cache_of_the_other_run_is_the_other_run(standin, family, site):
    model = standin(family).model
    case = slow.case(model, length=8, batch=3)
    contrast = contrast_of(case)
    for direction in ("restore", "corrupt"):
        source = case.clean if direction == "restore" else case.hijacked
        names = [f"blocks.{layer}.{slow.HOOKS[site]}" for layer in range(model.cfg.n_layers)]
        with torch.no_grad():
            cache = model.run_with_cache(source, names_filter=names)[1]
        arguments = {"site": site, "positions": [-1, -3], "direction": direction, "progress": False}
        other = patch(model, contrast, **arguments)
        own = patch(model, contrast, source=cache, **arguments)
        scale = np.abs(other.values["value"]).max()
        np.testing.assert_allclose(own.values["value"], other.values["value"], atol=3e-5 * scale)
        assert np.abs(own.values["effect"]).max() > 1e-3 or site == "k" or site in HEADLESS


def test_what_is_given_must_fit(standin):
    model = standin("llama").model
    contrast = contrast_of(slow.case(model, length=7, batch=3))
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(3)]
    good = {name: torch.zeros(3, 7, 4, 16) for name in names}
    patch(model, contrast, source=good, progress=False)

    def refused(match, **changes):
        with pytest.raises(LcalensError, match=match):
            patch(model, contrast, source={**good, **changes} if changes else {}, progress=False)

    missing = {name: good[name] for name in names[:2]}
    with pytest.raises(
        LcalensError, match=r"^source: it has no 'blocks.2.attn.hook_z'; it has 'blocks.0.attn.hook_z', "
    ):
        patch(model, contrast, source=missing, progress=False)
    with pytest.raises(LcalensError, match=r"no 'blocks.2.attn.hook_z'; rename 'blocks.2.attn.hook_zz' to it, or give"):
        patch(model, contrast, source={**missing, "blocks.2.attn.hook_zz": good[names[2]]}, progress=False)
    patch(model, contrast, source=missing, site=names[1], progress=False)
    for bad in (torch.zeros(2, 7, 4, 16), torch.zeros(7, 4, 16), torch.zeros(0, 7, 4, 16)):
        refused(r"^source: 'blocks.1.attn.hook_z' has the shape", **{names[1]: bad})
    for bad in (torch.zeros(3, 7, 2, 16), torch.zeros(3, 7, 4, 8)):
        refused(r"^source: 'blocks.1.attn.hook_z' has the shape", **{names[1]: bad})
    refused(
        r"^source: .* has 6 positions, and the runs of example 0 have 7 and 7", **{names[1]: torch.zeros(3, 6, 4, 16)}
    )
    refused(r"^source: .* holds NaN", **{names[1]: torch.full((1, 1, 4, 16), torch.nan)})
    refused(r"^source: .* floating-point", **{names[1]: torch.zeros(3, 7, 4, 16, dtype=torch.long)})
    for site in BY_QUERY:
        with pytest.raises(LcalensError, match=r"^source: zero at"):
            patch(model, contrast, site=site, source="zero", progress=False)


def test_zeros_need_no_partner(standin):
    """Key and value heads of runs of other lengths have no partner in the other run; zeros need none."""
    model = standin("llama").model
    clean, hijacked = [[5, 9, 8, 7]], [[5, 6, 11, 9, 8, 7]]
    contrast = Contrast(clean, hijacked, true=5, false=6)
    with pytest.raises(LcalensError, match=r"^site: 'v' has a value"):
        patch(model, contrast, site="v", progress=False)
    found = patch(model, contrast, site="v", source="zero", positions=[-2], progress=False)
    base = torch.tensor(hijacked)
    case = slow.SimpleNamespace(true=torch.tensor([5]), false=torch.tensor([6]), cap=None)
    expected = by_hand(model, base, case, "v", (-2,), lambda layer, value: torch.zeros_like(value))
    np.testing.assert_allclose(found.values["value"], expected, rtol=1e-4, atol=1e-4)


# --- caches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_hooks", [False, True], ids=["read", "hooks"])
@pytest.mark.parametrize("name", ["toy", "llama", "gemma2", "gpt2"])
def test_the_cache_is_the_bridges_own(standin, name, by_hooks):
    model = model_of(standin, name)
    case = slow.case(model, length=8, batch=3)
    contrast = contrast_of(case)
    for run in ("clean", "hijacked"):
        if by_hooks:
            hooked(model)
        try:
            logits, cache = run_with_cache(model, contrast, run=run)
        finally:
            model.reset_hooks()
        names = [f"blocks.{layer}.{hook}" for layer in range(model.cfg.n_layers) for hook in slow.HOOKS.values()]
        assert set(cache.keys()) == set(names)
        with torch.no_grad():
            expected, theirs = model.run_with_cache(getattr(case, run), names_filter=names)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        for hook in names:
            seen = cache[hook].isfinite()
            assert cache[hook].shape == theirs[hook].shape
            size = float(theirs[hook][seen].abs().max())
            assert float((cache[hook] - theirs[hook])[seen].abs().max()) <= 2e-5 * size, hook
        np.testing.assert_array_equal(cache["z", 0], cache["blocks.0.attn.hook_z"])  # by TransformerLens's short names


def test_what_a_cache_keeps(standin):
    model = standin("llama").model
    contrast = contrast_of(slow.case(model, length=8, batch=2))
    every = [f"blocks.{layer}.attn.hook_z" for layer in range(3)]
    for names, kept in (
        ("z", every),
        ("blocks.1.attn.hook_z", every[1:2]),
        (["head", "blocks.1.hook_mlp_out"], [*every, "blocks.1.hook_mlp_out"]),
        (lambda name: name.endswith("hook_z"), every),
    ):
        assert set(run_with_cache(model, contrast, names_filter=names)[1].keys()) == set(kept)
    uneven = contrast_of(slow.case(model, length=8), slow.case(model, length=9))
    with pytest.raises(
        LcalensError, match=r"^contrast: a cache holds runs of one length, and the clean ones have 8 to 9"
    ):
        run_with_cache(model, uneven)


def test_a_hook_that_shows_something_else_is_refused():
    """GPT-Neo's bridge shows scores that are not those its pattern is made of."""
    from tests.matrix import families

    model = families.boot("gpt-neo")
    contrast = Contrast([[5, 6, 7, 8]] * 2, [[5, 9, 7, 8]] * 2, true=5, false=6)
    with pytest.raises(
        LcalensError, match=r"^names_filter: .*'blocks.0.attn.hook_attn_scores' is not the 'attn_scores'"
    ):
        run_with_cache(model, contrast)
    with torch.no_grad():
        cache = model.run_with_cache(torch.tensor([[5, 6, 7, 8]]), names_filter=lambda name: "attn_scores" in name)[1]
    with pytest.raises(LcalensError, match=r"^source: .*'blocks.0.attn.hook_attn_scores' is not the 'attn_scores'"):
        patch(model, contrast, site="attn_scores", source=cache, progress=False)
    logits, _ = run_with_cache(model, contrast, names_filter=("pattern", "z"))
    assert logits.shape[:2] == (2, 4)
