"""Attribution against finite differences through TransformerLens's hooks, its own attribution, and exact patching."""

import functools
import inspect
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import slow_patching as slow
from helpers import standins
from helpers.closeness import assert_near, rounding, size_of
from transformer_lens.tools.analysis.attribution_patching import attribution_patch

from lcalens.core.errors import LcalensError
from lcalens.core.results import Result
from lcalens.engine import gradients
from lcalens.engine.direct import direct_effects
from lcalens.engine.reading import read_decoder
from lcalens.lca.model.bridge import lca_bridge
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.llm.models.load import load_model
from lcalens.mechanism.attribute import attribute
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.patch import patch
from tests.matrix.cells import material
from tests.matrix.families import boot

FAMILIES = ("gpt2", "gemma", "gemma2", "gemma3", "llama", "lca")
SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "head", "q", "k", "v", "pattern", "attn_scores")
POINTS = {"head": "attn.hook_z"} | {name: f"attn.hook_{name}" for name in ("q", "k", "v", "pattern", "attn_scores")}
HEADED = tuple(POINTS)
BY_QUERY = ("pattern", "attn_scores")
DOUBLE = ("gpt2", "lca")  # Hugging Face's RMSNorm and softmax count in single precision, whatever the weights are
PRECISION = {family: torch.float64 if family in DOUBLE else torch.float32 for family in FAMILIES}
CLOSE = {family: 1e-6 if family in DOUBLE else 1e-3 for family in FAMILIES}
SAME = {family: 1e-9 if family in DOUBLE else 1e-4 for family in FAMILIES}


def quiet(model, contrast, **options):
    return attribute(model, contrast, progress=False, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A function from a family to its model in double precision, the metric of its contrast moving by more than 1."""

    @functools.cache
    def get(family):
        if family == "lca":
            torch.manual_seed(0)
            model = LCAForCausalLM(LCAConfig(m=4, d_model=8, d_head=12)).double().eval()
            with torch.no_grad():
                model.embed.weight.mul_(1.5)
                for linear in (model.attn.q, model.attn.k, model.attn.v):
                    linear.weight.mul_(2.5)
            one = SimpleNamespace(model=lca_bridge(model), vocabulary=16)
        else:
            folder = tmp_path_factory.mktemp("attribution") / family
            # Not so loud as the other tests' stand-ins, whose attention is all or nothing: no step there is small.
            standins.save_standin(folder, family, train_steps=60, initializer_range=0.1)
            one = SimpleNamespace(model=load_model(folder), vocabulary=300)
            one.model.original_model.double()
        draw = torch.Generator().manual_seed(1)
        hijacked = torch.randint(3, one.vocabulary, (3, 8), generator=draw)
        clean = hijacked.clone()
        clean[:, 2:7] = torch.randint(3, one.vocabulary, (3, 5), generator=draw)
        clean[1:, 7] = torch.randint(3, one.vocabulary, (2,), generator=draw)
        logits = [one.model(tokens)[:, -1] for tokens in (hijacked, clean)]
        moved = logits[0] - logits[1]  # the two answers between which the runs differ most
        spans = {"middle": [[(2, 4)], [(3, 5)], [(2, 3), (5, 6)]]}
        one.contrast = Contrast(clean, hijacked, true=moved.argmin(-1), false=moved.argmax(-1), spans=spans)
        difference = quiet(one.model, one.contrast).examples
        assert (difference["hijacked"] - difference["clean"]).min() > 1
        return one

    return get


def metric_size(result):
    """The largest metric of both runs, from which effects are differences."""
    return size_of(result.examples[["clean", "hijacked"]].to_numpy())


def difference(model, logits, true, false):
    logits = slow.uncapped(model, logits)
    return logits[false] - logits[true]


def point(site, layer):
    return f"blocks.{layer}.{POINTS.get(site, 'hook_' + site)}"


@torch.no_grad()
def moved_by(model, contrast, site, layer, head, positions, shares, direction="restore"):
    """(example, share): how the metric moves when the site goes a share of the way from base to source, by hooks."""
    base, source = (torch.tensor(getattr(contrast, name)) for name in ("hijacked", "clean"))
    if direction == "corrupt":
        base, source = source, base
    kept = []
    for tokens in (base, source):
        look = [(point(site, layer), lambda value, hook: kept.append(value.clone()))]
        model.run_with_hooks(tokens, fwd_hooks=look)
    own, other = kept
    difference = torch.zeros_like(own)
    for row, (group,) in enumerate(contrast.places(positions)):
        rows = list(group)
        where = (row, head, rows) if site in BY_QUERY else (row, rows, head) if site in HEADED else (row, rows)
        difference[where] = torch.nan_to_num(other[where] - own[where])  # scores: -inf less -inf
    shares = torch.tensor([0.0, *shares]).to(own)
    step = torch.einsum("s,b...->bs...", shares, difference).flatten(0, 1)
    runs = base.repeat_interleave(len(shares), 0)
    logits = model.run_with_hooks(runs, fwd_hooks=[(point(site, layer), lambda value, hook: value + step)])[:, -1]
    true, false = (
        torch.tensor([row[0] for row in rows]).repeat_interleave(len(shares))[:, None]
        for rows in (contrast.true, contrast.false)
    )
    logits = slow.uncapped(model, logits)
    metric = (logits.gather(1, false) - logits.gather(1, true)).view(len(base), len(shares)).double()
    return (metric[:, 1:] - metric[:, :1]).numpy()


STEP = {family: 1e-3 if family in DOUBLE else 2e-2 for family in FAMILIES}


def slopes(one, family, contrast, site, positions, shape, **options):
    """Fourth-order central differences of every layer and head, (example, layer, head)."""
    step = STEP[family]
    found = np.zeros(shape)
    for place in np.ndindex(shape[1:]):
        head = place[1] if len(place) > 1 else None
        shares = (-2 * step, -step, step, 2 * step)
        far_back, back, on, far_on = moved_by(one.model, contrast, site, place[0], head, positions, shares, **options).T
        found[(slice(None), *place)] = (8 * (on - back) - (far_on - far_back)) / (12 * step)
    return found


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_effects_are_finite_differences(world, family, site):
    one = world(family)
    for positions in ("last", "middle"):
        found = quiet(one.model, one.contrast, site=site, positions=positions)
        effect = found.values["effect"]
        expected = slopes(one, family, one.contrast, site, positions, effect.shape)
        # A slope is made of metrics weighted 8, 8, 1 and 1, over 12 steps.
        rounded = 18 / 12 / STEP[family] * rounding(PRECISION[family], metric_size(found))
        if family == "lca" and size_of(expected) <= rounded:  # its MLP and the middle's queries do nothing
            np.testing.assert_allclose(effect, 0, atol=rounded)
        else:
            assert_near(effect, expected, effect=expected, share=CLOSE[family], rounding=rounded)


@pytest.mark.parametrize("family", ["gpt2", "llama", "lca"])
def test_the_other_direction_starts_from_the_clean_run(world, family):
    one = world(family)
    options = {"direction": "corrupt", "positions": [-1, -3]}
    effect = quiet(one.model, one.contrast, **options).values["effect"]
    expected = slopes(one, family, one.contrast, "head", [-1, -3], effect.shape, direction="corrupt")
    np.testing.assert_allclose(effect, expected, atol=CLOSE[family] * np.abs(expected).max())


@pytest.mark.parametrize("family", ["gpt2", "gemma", "gemma3", "llama"])
def test_heads_and_mlps_as_transformer_lens_attributes_them(world, family):
    one = world(family)
    contrast = one.contrast
    for index in range(2):
        true, false = contrast.true[index][0], contrast.false[index][0]
        theirs = attribution_patch(
            one.model,
            torch.tensor([contrast.clean[index]]),
            torch.tensor([contrast.hijacked[index]]),
            lambda logits, true=true, false=false: difference(one.model, logits[0, -1], true, false),
        ).node_scores
        heads = quiet(one.model, contrast[index], positions="each").values["effect"][0]
        mlps = quiet(one.model, contrast[index], site="mlp_out", positions="each").values["effect"][0]
        scale = max(map(abs, theirs.values()))
        seen = 0
        for node, score in theirs.items():
            if node.kind != "embed":
                own = heads[node.layer, node.head] if node.kind == "attn_head_out" else mlps[node.layer]
                assert own[node.position] == pytest.approx(score, rel=SAME[family], abs=SAME[family] * scale)
                seen += 1
        assert seen == heads.size + mlps.size


@pytest.mark.parametrize("site", ["head", "k", "attn_scores", "mlp_out"])
@pytest.mark.parametrize("family", FAMILIES)
def test_integrated_gradients_are_complete(world, family, site):
    """Under 1% of the effect at 32 steps, and `exact` is what hooks find when the whole layer is patched."""
    one = world(family)
    for positions in ("all", "middle"):
        found = quiet(one.model, one.contrast, site=site, positions=positions, method="integrated-gradients")
        table, effect = found.wide("completeness"), found.values["effect"]
        summed = effect.sum(2) if effect.ndim == 3 else effect
        exact = np.stack(
            [
                moved_by(one.model, one.contrast, site, layer, slice(None), positions, [1.0])[:, 0]
                for layer in range(summed.shape[1])
            ],
            1,
        )
        # As exact as the metrics of which it is the difference, at single precision where norms are.
        close = {"rtol": SAME[family], "atol": SAME[family] * metric_size(found)}
        np.testing.assert_allclose(table["exact"], exact.mean(0), **close)
        np.testing.assert_allclose(table["effect"], summed.mean(0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(table["gap"], np.abs(summed - exact).mean(0), **close)
        if positions == "all" and not (family == "lca" and site == "mlp_out"):
            assert size_of(table["exact"]) > 50 * close["atol"]
        assert not (table["relative_gap"] > 0.01).any()
        assert table["relative_gap"].notna().any() or (family == "lca" and (positions == "middle" or site == "mlp_out"))


def test_one_layers_integrated_gradients_are_its_exact_patch(world):
    """Of a site without heads nothing is shared out, so the effect itself is exact, each position by itself."""
    one = world("gemma2")
    for positions in ("last", "each"):
        found = quiet(one.model, one.contrast, site="mlp_out", positions=positions, method="integrated-gradients")
        exact = patch(one.model, one.contrast, site="mlp_out", positions=positions, progress=False)
        base = exact.examples["hijacked"].to_numpy().reshape(-1, *(1 for _ in exact.values["value"].shape[1:]))
        np.testing.assert_allclose(found.values["effect"], exact.values["value"] - base, rtol=1e-3, atol=1e-5)
    assert "position" in found.tables["completeness"]


@pytest.mark.parametrize("direction", ["restore", "corrupt"])
def test_the_toys_values_are_exact(world, direction):
    """Its logits are linear in the values under a given attention, and in what the head recalls."""
    one = world("lca")
    for site in ("v", "head", "pattern", "attn_out", "resid_post"):
        for positions in ("all", "each", "last"):
            options = {"site": site, "positions": positions, "direction": direction}
            exact = patch(one.model, one.contrast, progress=False, **options)
            base = exact.examples["hijacked" if direction == "restore" else "clean"].to_numpy()
            moved = exact.values["value"] - base.reshape(-1, *(1 for _ in exact.values["value"].shape[1:]))
            if positions == "all":
                assert np.abs(moved).max() > 1
            for method in ("patching", "integrated-gradients"):
                found = quiet(one.model, one.contrast, method=method, **options).values["effect"]
                np.testing.assert_allclose(found, moved, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", ["patching", "integrated-gradients", "direct"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_into_itself_changes_nothing(world, family, method):
    one = world(family)
    runs = one.contrast.hijacked
    same = Contrast(runs, runs, true=[row[0] for row in one.contrast.true], false=[r[0] for r in one.contrast.false])
    for site in ("head", "mlp_out") if method == "direct" else SITES:
        for positions in ("last",) if method == "direct" else ("last", "all"):
            effect = quiet(one.model, same, site=site, method=method, positions=positions, steps=3).values["effect"]
            assert effect.size
            assert not effect.any()


@pytest.mark.parametrize("site", ["head", "k", "attn_scores", "resid_pre"])
@pytest.mark.parametrize("family", FAMILIES)
def test_effects_of_positions_add_up(world, family, site):
    """Gradients are linear, whichever positions are run with a graph; all at once, the last alone, a few, each."""
    one = world(family)
    each = quiet(one.model, one.contrast, site=site, positions="each")
    assert each.axes["position"] == tuple(range(-8, 0))
    effect = each.values["effect"]
    for positions, expected in (
        ("all", effect.sum(-1)),
        ("last", effect[..., -1]),
        ([-1, 2], effect[..., -1] + effect[..., 2]),
    ):
        found = quiet(one.model, one.contrast, site=site, positions=positions).values["effect"]
        np.testing.assert_allclose(found, expected, atol=SAME[family] * np.abs(effect).max())


def test_integrated_positions_are_by_themselves(world):
    one = world("gpt2")
    each = quiet(one.model, one.contrast, positions="each", method="integrated-gradients", steps=8).values["effect"]
    for at in (-1, -4):
        alone = quiet(one.model, one.contrast, positions=at, method="integrated-gradients", steps=8).values["effect"]
        np.testing.assert_allclose(alone, each[..., at], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "lca"])
def test_runs_of_other_lengths_align_from_the_end(world, family):
    one = world(family)
    whole = one.contrast
    answers = {name: [row[0] for row in getattr(whole, name)] for name in ("true", "false")}
    uneven = Contrast([row[3:] for row in whole.clean], whole.hijacked, **answers)
    for positions in ("last", [-2, -1], "all"):
        for direction in ("restore", "corrupt"):
            options = {"positions": positions, "direction": direction}
            effect = quiet(one.model, uneven, **options).values["effect"]
            expected = slopes(one, family, uneven, "head", shape=effect.shape, **options)
            np.testing.assert_allclose(effect, expected, atol=CLOSE[family] * np.abs(expected).max())
    for site in ("k", "v", "pattern", "attn_scores"):
        with pytest.raises(LcalensError, match="knockout"):
            quiet(one.model, uneven, site=site)
    with pytest.raises(LcalensError, match="equal length"):
        quiet(one.model, uneven, method="direct", positions="each")
    # The longer run may be either, whatever is patched into what, and everything both have may be patched.
    for direction in ("restore", "corrupt"):
        for method in ("patching", "integrated-gradients"):
            found = quiet(one.model, uneven, positions="each", direction=direction, method=method, steps=2)
            assert found.axes["position"] == tuple(range(-5, 0))
            assert np.isfinite(found.values["effect"]).all()


@pytest.mark.parametrize("method", ["patching", "integrated-gradients", "direct"])
def test_several_lengths_are_each_as_if_alone(world, method, monkeypatch):
    one = world("gpt2")
    whole = one.contrast
    cut = [slice(None), slice(2, None), slice(None)]
    mixed = Contrast(
        [row[some] for row, some in zip(whole.clean, cut, strict=True)],
        [row[some] for row, some in zip(whole.hijacked, cut, strict=True)],
        true=[row[0] for row in whole.true],
        false=[row[0] for row in whole.false],
    )
    options = {"method": method, "positions": "each", "steps": 5}
    found = quiet(one.model, mixed, **options).values["effect"]
    monkeypatch.setattr(gradients, "_BYTES", 1)  # one example, and one step, at a time
    small = quiet(one.model, mixed, **options).values["effect"]
    np.testing.assert_allclose(small, found, rtol=1e-9, atol=1e-12)
    for index, length in enumerate((8, 6, 8)):
        alone = quiet(one.model, mixed[index], **options).values["effect"][0]
        assert alone.shape[-1] == length
        np.testing.assert_allclose(found[index, ..., -length:], alone, rtol=1e-9, atol=1e-12)
        assert np.isnan(found[index, ..., :-length]).all()


def test_keys_and_values_are_named_by_the_heads_they_serve(world):
    assert quiet(world("llama").model, world("llama").contrast, site="k").axes["head"] == ("0-1", "2-3")
    assert quiet(world("gemma").model, world("gemma").contrast, site="v").axes["head"] == ("0-3",)
    assert quiet(world("gpt2").model, world("gpt2").contrast, site="k").axes["head"] == (0, 1, 2, 3)
    assert quiet(world("llama").model, world("llama").contrast, site="q").axes["head"] == (0, 1, 2, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_direct_effects_are_differences_that_sum_to_the_metrics(world, family):
    one = world(family)
    decoder = read_decoder(one.model)
    (bucket,) = one.contrast.buckets()
    runs = [direct_effects(decoder, tokens, bucket.true, bucket.false) for tokens in (bucket.hijacked, bucket.clean)]
    for direction, sign in (("restore", 1), ("corrupt", -1)):
        heads, mlps, outputs, sources = (
            quiet(one.model, one.contrast, method="direct", direction=direction, **options)
            for options in ({}, {"site": "mlp_out"}, {"site": "attn_out"}, {"positions": "each"})
        )
        expected = sign * (runs[1].heads - runs[0].heads).numpy()
        np.testing.assert_allclose(heads.values["effect"], expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(sources.values["effect"].sum(-1), expected, rtol=1e-9, atol=1e-12)
        balance = heads.wide("balance").set_index("part")
        rounded = SAME[family] * metric_size(heads)
        np.testing.assert_allclose(balance.loc["heads", "effect"], heads.values["effect"].sum((1, 2)).mean(), rtol=1e-9)
        np.testing.assert_allclose(balance.loc["mlps", "effect"], mlps.values["effect"].sum(1).mean(), atol=1e-12)
        for name in ("clean", "hijacked"):
            assert balance.loc["total", name] == pytest.approx(heads.examples[name].mean(), abs=rounded)
            assert balance[name].iloc[:-1].sum() == pytest.approx(balance.loc["total", name], rel=1e-12)
        together = outputs.values["effect"].sum(1) + mlps.values["effect"].sum(1)
        rest = balance.loc["total", "effect"] - together.mean() - balance.loc["embedding", "effect"]
        assert rest == pytest.approx(0, abs=rounded)  # the other biases are the same in both runs


def test_metrics_and_recovery(world):
    one = world("gemma2")
    with torch.no_grad():
        logits = {name: one.model(torch.tensor(getattr(one.contrast, name)))[:, -1] for name in ("clean", "hijacked")}
    for direction in ("restore", "corrupt"):
        found = quiet(one.model, one.contrast, direction=direction, positions="all")
        for name, ends in logits.items():
            ends = slow.uncapped(one.model, ends)
            expected = [
                float(row[false[0]] - row[true[0]])
                for row, true, false in zip(ends, one.contrast.true, one.contrast.false, strict=True)
            ]
            np.testing.assert_allclose(found.examples[name], expected, rtol=1e-5)
        clean, hijacked = (found.examples[name].mean() for name in ("clean", "hijacked"))
        effect = found.values["effect"].mean(0).ravel()
        base = hijacked if direction == "restore" else clean
        summary = found.wide()
        np.testing.assert_allclose(summary["effect"], effect, rtol=1e-12)
        np.testing.assert_allclose(summary["recovery"], (base + effect - hijacked) / (clean - hijacked), rtol=1e-12)
        assert (summary["effect_low"] <= summary["effect"]).all()
        assert (summary["effect"] <= summary["effect_high"]).all()
        assert list(summary.columns[:2]) == ["layer", "head"]
        means = found.mean("effect")
        np.testing.assert_allclose(
            summary[["effect_low", "effect_high"]], means[["value_low", "value_high"]], rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_parameters_stay_as_they_were(world, around):
    one = world("gpt2")
    parameters = list(one.model.original_model.parameters())
    before = [parameter.requires_grad for parameter in parameters]
    parameters[0].requires_grad_(False)
    try:
        expected = quiet(one.model, one.contrast).values["effect"]
        with around():
            np.testing.assert_array_equal(quiet(one.model, one.contrast).values["effect"], expected)
            quiet(one.model, one.contrast, method="integrated-gradients", steps=2)

        def stop(done, total, what):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            attribute(one.model, one.contrast, progress=stop)
        assert all(parameter.grad is None for parameter in parameters)
        assert [parameter.requires_grad for parameter in parameters] == [False, *before[1:]]
    finally:
        parameters[0].requires_grad_(before[0])


def test_only_the_positions_that_matter_run_with_a_graph(world, monkeypatch):
    one = world("llama")
    seen = []
    true_run = gradients.run

    def look(decoder, stream, *, start=0, **options):
        seen.append((start, stream.shape[2]))
        return true_run(decoder, stream, start=start, **options)

    monkeypatch.setattr(gradients, "run", look)
    quiet(one.model, one.contrast)
    quiet(one.model, one.contrast, positions="all")
    assert seen == [(7, 1), (0, 8)]


def test_progress_counts_to_the_end(world):
    one = world("gpt2")
    for method, total in (("patching", 3), ("integrated-gradients", 9), ("direct", 3)):
        seen = []
        attribute(one.model, one.contrast, method=method, steps=2, progress=lambda *args, seen=seen: seen.append(args))
        assert seen[-1][:2] == (total, total)


def test_results_are_kept_whole(world, tmp_path):
    one = world("llama")
    found = quiet(one.model, one.contrast, site="v", positions=[-1, 3], method="integrated-gradients", steps=2)
    again = Result.load(found.save(tmp_path / "kept"))
    np.testing.assert_array_equal(again.values["effect"], found.values["effect"])
    assert again.axes == found.axes
    assert again.provenance["steps"] == 2
    assert again.provenance["positions"] == [-1, 3]
    assert list(again.tables) == ["summary", "completeness"]
    frame = again.to_frame()
    assert {"layer", "head", "quantity", "clean", "hijacked"} <= set(frame)
    assert math.isfinite(frame["value"].sum())


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_other_metrics_have_effects_too(world, family):
    """By their names or as functions alike, and complete."""
    one = world(family)
    true, false = (torch.tensor([row[0] for row in rows]) for rows in (one.contrast.true, one.contrast.false))

    def own(logits, index):
        shares = logits.softmax(-1)
        return shares.gather(1, false[index][:, None])[:, 0] - shares.gather(1, true[index][:, None])[:, 0]

    named, mine = (quiet(one.model, one.contrast, metric=metric) for metric in ("probability", own))
    assert size_of(named.values["effect"]) > 1e-3
    np.testing.assert_allclose(mine.values["effect"], named.values["effect"], rtol=1e-9, atol=1e-12)
    # Sums of effects are what the whole layer's patch does, run by itself.
    integrated = quiet(one.model, one.contrast, metric=own, method="integrated-gradients")
    table = integrated.wide("completeness")
    assert size_of(table["exact"]) > 1e-3
    assert (table["relative_gap"].dropna() < 0.01).all()
    assert table["relative_gap"].notna().any()


def test_arguments_that_cannot_be_used(world):
    one = world("gpt2")
    for options, named in (
        ({"method": "gradients"}, "method: 'gradients'"),
        ({"site": "Z"}, "site: 'Z'"),
        ({"direction": "both"}, "direction: 'both'"),
        ({"metric": "whole-answer"}, "metric: attribute does not measure 'whole-answer'"),
        ({"metric": "kl", "method": "direct"}, "metric: direct effects"),
        ({"metric": lambda logits, index: logits.detach().amax(-1)}, "metric: it has no gradient"),
        ({"steps": 0}, "steps"),
        ({"positions": "nowhere"}, "positions: 'nowhere'"),
        ({"method": "direct", "site": "q"}, "site: 'q'"),
        ({"method": "direct", "positions": "all"}, "positions: 'all'"),
        ({"method": "direct", "positions": "each", "site": "mlp_out"}, "positions"),
    ):
        # The type checker of the tests is in the way of what a user would see.
        with pytest.raises(LcalensError, match=named):
            inspect.unwrap(attribute)(one.model, one.contrast, progress=False, **options)
    handle = one.model.blocks[0].hook_resid_pre.add_hook(lambda value, hook: value * 2)
    try:
        with pytest.raises(LcalensError, match=r"model: .*hooks are attached"):
            quiet(one.model, one.contrast)
    finally:
        one.model.reset_hooks()
    del handle


@pytest.mark.parametrize(
    ("metric", "unit"), [("logit-difference", "logits"), ("probability", "probability"), ("kl", "nats")]
)
def test_units_are_the_metrics(metric, unit):
    contrast = material("llama").examples("aligned").contrast("batch")
    result = attribute(boot("llama", dtype=torch.float32), contrast, metric=metric, progress=False)
    assert result.units == {"effect": unit}
    summary = result.tables["summary"]
    assert set(summary.loc[summary["quantity"] == "effect", "unit"]) == {unit}
    bar = result.plot().axes[-1]
    assert ("logit" in bar.get_ylabel()) == (metric == "logit-difference")
