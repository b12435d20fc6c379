"""`path` against two or three hooked forwards for every path, with nothing of lcalens; and against identities."""

import numpy as np
import pytest
import torch
from helpers import slow_patching as slow
from helpers import slow_paths, standins
from helpers.closeness import assert_near, rounding
from matrix.families import boot

from lcalens.core.errors import LcalensError
from lcalens.core.results import Result
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.patch import patch
from lcalens.mechanism.path import path
from lcalens.mechanism.ranking import agreement

OTHERS = ("gpt-neox", "gpt-neox-sequential", "opt-post-norm", "bloom", "gpt-oss", "granite")
ALL = tuple(range(-9, 0))
AT = ("q", "k", "v", "resid", "logits")


@pytest.fixture(scope="module")
def model_of(standin):
    made = {}

    def get(name):
        if name not in made:
            made[name] = standin(name).model if name in standins.FAMILIES else boot(name)
        return made[name]

    return get


@pytest.fixture(scope="module")
def toy():
    return standins.loud_toy()


def contrast_of(case):
    spans = {name: list(span) for name, span in case.spans.items()}
    rows = {name: getattr(case, name) for name in ("clean", "hijacked")}
    return Contrast(
        **rows,
        true=case.true[:, None],
        false=case.false[:, None],
        spans={n: [s] * len(case.clean) for n, s in spans.items()},
    )


def senders_of(model, before):
    heads = [(layer, head) for layer in range(before) for head in range(model.cfg.n_heads)]
    return [slow_paths.EMBEDDING, *heads, *(f"MLP{layer}" for layer in range(before))]


def label(part):
    return part if isinstance(part, str) else f"L{part[0]}H{part[1]}"


def loop(model, case, senders, receiver, at, group, metric="logit-difference"):
    """What each path takes from the hijacked run's metric, and the metric of both runs."""
    ends = slow.ends(metric, case)
    found = []
    for sender in senders:
        logits = slow_paths.patched(model, case.hijacked, case.clean, sender, receiver, at, group)
        value = slow.measured(metric, logits, case.true, case.false, case.logits["clean"], case.cap)
        found.append((ends[1] - value).numpy())
    return np.stack(found, 1), np.stack(ends, 1)


def check(model, case, receiver, at, group, senders=None, metric="logit-difference", **options):
    """Compares every path to a receiver with the loop; what the largest of them takes."""
    before = {"logits": model.cfg.n_layers, "resid": receiver}[at] if at in ("logits", "resid") else receiver[0]
    senders = senders_of(model, before) if senders is None else senders
    expected, ends = loop(model, case, senders, receiver, at, group, metric)
    receivers = None if at == "logits" else [receiver]
    found = path(
        model, contrast_of(case), senders=senders, receivers=receivers, at=at, metric=metric, progress=False, **options
    )
    order = [found.axes["sender"].index(label(sender)) for sender in senders]
    effect = np.abs(expected).max()
    assert_near(found.values["effect"][:, order, 0], expected, effect=effect, rounding=rounded(ends))
    assert_near(found.examples[["clean", "hijacked"]], ends, effect=ends, rounding=rounded(ends))
    return effect


def rounded(metric):
    """What another order of summation does to sums over a stand-in's 64 dimensions."""
    return rounding(torch.float32, metric, 64)


@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("family", [*standins.FAMILIES, *OTHERS])
def test_every_path_is_the_hook_loop(model_of, family, at):
    model = model_of(family)
    top = model.cfg.n_layers - 1
    receiver = {"logits": None, "resid": top}.get(at, (top, 1))
    check(model, slow.case(model), receiver, at, ALL if at in ("k", "v") else (-1,))


@pytest.mark.parametrize("at", ["q", "k", "v", "resid"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt-neox", "opt-post-norm"])
def test_paths_that_pass_some_positions(model_of, family, at):
    """Those of a word, before the last; the layers behind the receiver then have more than one way to the metric."""
    model = model_of(family)
    receiver = 1 if at == "resid" else (1, 2)
    case = slow.case(model, changed=(2, 3, 5))
    check(model, case, receiver, at, (-7, -6, -4), positions="word")
    check(model, case, receiver, at, (-6, -1), positions=[3, -1], senders=[(0, 1), "MLP0", "embed"])


@pytest.mark.parametrize("metric", ["probability", "kl"])
def test_other_metrics(model_of, metric):
    model = model_of("gemma2")
    for at, receiver in (("q", (2, 0)), ("logits", None)):
        check(model, slow.case(model), receiver, at, (-1,), metric=metric)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_beyond_the_window(model_of, family):
    model = model_of(family)
    case = slow.case(model, length=70, changed=(2, 3, 60), spans={})
    check(model, case, (2, 1), "k", tuple(range(-70, 0)), senders=[(1, 1), (0, 3), "MLP1", "embed"])
    check(model, case, (1, 1), "v", tuple(range(-70, 0)), senders=[(0, 1), (0, 3), "MLP0", "embed"])


def test_a_norm_over_all_heads_is_the_receivers_own(model_of):
    """OLMo 2 normalises the queries of all heads together: the receiver's is normalised with those it would have."""
    model = model_of("olmo2")
    case = slow.case(model)
    heads, norms = model.cfg.n_heads, [layer.self_attn.q_norm for layer in model.original_model.model.layers]
    base, source = (slow_paths.everything(model, tokens) for tokens in (case.hijacked, case.clean))
    senders, kept = senders_of(model, 2), []
    hijacked, expected = slow.ends("logit-difference", case)[1], []
    for sender in senders:
        handle = norms[2].register_forward_hook(lambda module, given, out: kept.append(out.detach().clone()))
        with torch.no_grad():
            model.run_with_hooks(case.hijacked, fwd_hooks=slow_paths.held(model, base, source, sender, (-1,)))
        handle.remove()

        def put(module, given, out):
            by_head, new = (values.unflatten(-1, (heads, -1)).clone() for values in (out, kept[-1]))
            by_head[:, -1, 1] = new[:, -1, 1]
            return by_head.flatten(-2)

        handle = norms[2].register_forward_hook(put)
        logits = slow.plain(model, case.hijacked)
        handle.remove()
        value = slow.measured("logit-difference", logits, case.true, case.false, logits, case.cap)
        expected.append((hijacked - value).numpy())
    found = path(model, contrast_of(case), senders=senders, receivers=[(2, 1)], at="q", progress=False)
    order = [found.axes["sender"].index(label(sender)) for sender in senders]
    expected = np.stack(expected, 1)
    assert_near(found.values["effect"][:, order, 0], expected, effect=expected, rounding=rounded(hijacked))


@pytest.mark.parametrize("at", ["q", "k", "v"])
def test_the_toys_embedding_reaches_its_head(toy, at):
    case = slow.case(toy, length=8, changed=(0, 2, 3, 5, 7), seed=3)
    group = (-1,) if at == "q" else tuple(range(-8, 0))
    effect = check(toy, case, (0, 0), at, group, senders=["embed"])
    assert effect > 0.1
    found = path(toy, contrast_of(case), receivers=[(0, 0)], at=at, progress=False)
    whole = patch(toy, contrast_of(case), site=at, positions="last" if at == "q" else "all", progress=False)
    taken = found.examples["hijacked"].to_numpy() - whole.values["value"][:, 0, 0]
    assert_near(found.values["effect"][:, 0, 0], taken, effect=effect, rounding=rounded(found.examples["hijacked"]))


def test_the_toys_head_is_all_that_the_logits_read(toy):
    case = slow.case(toy, length=8, changed=(0, 2, 3, 5, 7), seed=3)
    check(toy, case, None, "logits", (-1,), senders=["embed", (0, 0)])
    found = path(toy, contrast_of(case), senders=["embed", (0, 0)], progress=False)
    change = (found.examples["hijacked"] - found.examples["clean"]).to_numpy()
    assert_near(found.values["effect"][:, 1, 0], change, effect=change, rounding=rounded(change))
    assert not found.values["effect"][:, 0].any()  # there is no residual stream


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_all_senders_together_are_the_receivers_own_patch(model_of, family):
    model = model_of(family)
    contrast = contrast_of(slow.case(model))
    found = {}
    for at, receiver in (("q", (1, 2)), ("resid", 1), ("k", (1, 0)), ("v", (1, 0)), ("logits", None)):
        if at in ("k", "v") and family != "gpt2":  # `patch` exchanges a group's, `path` one head's
            continue
        receivers = None if at == "logits" else [receiver]
        found[at] = path(model, contrast, receivers=receivers, at=at, progress=False).wide("receivers")
        site, positions = {"resid": "resid_pre"}.get(at, at), "all" if at in ("k", "v") else "last"
        if at == "logits":
            ends = patch(model, contrast, progress=False).examples
            taken = (ends["hijacked"] - ends["clean"]).to_numpy()
        else:
            whole = patch(model, contrast, site=site, positions=positions, progress=False)
            value = whole.values["value"][:, 1] if at == "resid" else whole.values["value"][:, *receiver]
            taken = whole.examples["hijacked"].to_numpy() - value
        assert_near(found[at]["together"], [taken.mean()], effect=taken, rounding=rounded(whole.examples["hijacked"]))
    assert len(found) >= 3


def test_runs_of_other_lengths_pass_the_positions_that_they_share(model_of):
    model = model_of("llama")
    case = slow.case(model)
    case.clean = torch.cat([case.clean[:, :2], case.clean[:, 4:]], 1)
    case.logits["clean"] = slow.plain(model, case.clean)
    contrast = Contrast(case.clean, case.hijacked, true=case.true[:, None], false=case.false[:, None])
    for at, receiver, group, positions in (
        ("q", (2, 1), (-1,), None),
        ("resid", 1, (-3, -2, -1), [-3, -2, -1]),
        ("logits", None, (-1,), None),
    ):
        expected, ends = loop(model, case, senders_of(model, 1), receiver, at, group)
        found = path(
            model, contrast, senders=senders_of(model, 1), receivers=None if receiver is None else [receiver], at=at,
            positions=positions, progress=False,
        )  # fmt: skip
        order = [found.axes["sender"].index(label(sender)) for sender in senders_of(model, 1)]
        assert_near(found.values["effect"][:, order, 0], expected, effect=expected, rounding=rounded(ends))
    with pytest.raises(LcalensError, match="equal length"):
        path(model, contrast, receivers=[(2, 1)], at="k", progress=False)


def test_many_receivers_at_once_and_in_small_batches_are_each_alone(model_of):
    model = model_of("llama")
    contrast = contrast_of(slow.case(model, batch=3))
    receivers = [(0, 3), (1, 2), (2, 0), (2, 1)]
    for at in ("q", "v"):
        every = path(model, contrast, receivers=receivers, at=at, progress=False)
        small = path(model, contrast, receivers=receivers, at=at, memory=0.001, progress=False)
        size = rounded(every.examples["hijacked"])
        effect = np.nanmax(np.abs(every.values["effect"]))
        assert_near(small.values["effect"], every.values["effect"], effect=effect, rounding=size)
        for place, receiver in enumerate(receivers):
            alone = path(model, contrast, receivers=[receiver], at=at, progress=False)
            first = len(alone.axes["sender"])
            assert_near(
                every.values["effect"][:, :first, place], alone.values["effect"][:, :, 0], effect=effect, rounding=size
            )
            assert np.isnan(every.values["effect"][:, first:, place]).all()
    # Of paths that do not exist there is no row.
    assert len(every.wide()) == sum(1 + 5 * layer for layer, _ in receivers)


# --- screens --------------------------------------------------------------------------------------------------------


def slope_by_hand(model, case, layer, head):
    """The metric's slope in the stream that one head's query reads, at the last position, by autograd through hooks."""
    block = model.blocks[layer]
    norm, project = block.ln1.original_component, block.attn.q.original_component
    seen = slow_paths.everything(model, case.hijacked)
    leaf = seen["resid_pre", layer][:, -1].clone().requires_grad_()

    def put(q, hook):
        own = project(norm(leaf)).unflatten(-1, (model.cfg.n_heads, -1))[:, head]
        q = q.clone()
        q[:, -1, head] = own
        return q

    logits = model.run_with_hooks(case.hijacked, fwd_hooks=[(f"blocks.{layer}.attn.hook_q", put)])[:, -1]
    metric = slow.measured("logit-difference", logits, case.true, case.false, case.logits["clean"], case.cap)
    return torch.autograd.grad(metric.sum(), leaf)[0]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_gradient_is_autograds(model_of, family):
    model = model_of(family)
    case, (layer, head) = slow.case(model), (2, 1)
    slope = slope_by_hand(model, case, layer, head)
    base, source = (slow_paths.everything(model, tokens) for tokens in (case.hijacked, case.clean))
    senders, name = senders_of(model, layer), f"blocks.{layer}.hook_resid_pre"
    expected = []
    for sender in senders:
        changed = slow_paths.seen_under(
            model, case.hijacked, slow_paths.held(model, base, source, sender, (-1,)), name
        )  # fmt: skip
        change = (changed - base["resid_pre", layer])[:, -1]
        expected.append(-(slope * change).sum(-1).detach().numpy())
    expected = np.stack(expected, 1)
    found = path(
        model, contrast_of(case), senders=senders, receivers=[(layer, head)], at="q", method="gradient", progress=False
    )
    order = [found.axes["sender"].index(label(sender)) for sender in senders]
    size = rounding(torch.float32, (slope.abs() * base["resid_pre", layer][:, -1].abs()).sum(-1), 64)
    assert_near(found.values["effect"][:, order, 0], expected, effect=expected, rounding=size)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt-neox"])
@pytest.mark.parametrize("at", AT)
def test_integrated_slopes_sum_to_the_whole(model_of, family, at):
    """Where blocks only add to the stream, what all senders change is the whole change of it."""
    model = model_of(family)
    contrast = contrast_of(slow.case(model))
    receivers = {"logits": None, "resid": [2]}.get(at, [(1, 0), (2, 1)])
    options = {"receivers": receivers, "at": at, "progress": False}
    found = path(model, contrast, method="integrated", steps=128, **options)
    exact = path(model, contrast, **options).wide("receivers")
    sums = found.wide("receivers")
    assert sums["together"].tolist() == exact["together"].tolist()
    effect = exact["together"].abs().max()
    assert_near(sums["summed"], sums["together"], effect=effect, share=0.02)


def test_integrated_in_parts_is_the_same(model_of, monkeypatch):
    model = model_of("llama")
    contrast = contrast_of(slow.case(model, batch=3))
    options = {"receivers": [(1, 0), (2, 1), (2, 3)], "at": "k", "method": "integrated", "progress": False}
    whole = path(model, contrast, **options)
    monkeypatch.setattr("lcalens.engine.edges.rows_at_once", lambda *_: 1)
    parts = path(model, contrast, **options)
    effect = np.nanmax(np.abs(whole.values["effect"]))
    assert_near(parts.values["effect"], whole.values["effect"], effect=effect)


def test_a_screen_says_what_it_misses(model_of):
    model = model_of("gpt2")
    contrast = contrast_of(slow.case(model, batch=6))
    options = {"at": "q", "progress": False}
    exact = path(model, contrast[:4], senders="heads", receivers=[(2, 1), (2, 3)], **options)
    screen = path(model, contrast, receivers=[(1, 0), (2, 1), (2, 3)], method="gradient", **options)
    told = agreement(exact, screen, k=4)
    assert told.provenance["sites"] == 16
    assert told.provenance["shared"] == 4
    table = told.wide().set_index("measure")
    columns = [screen.axes["sender"].index(name) for name in exact.axes["sender"]]
    first = np.abs(exact.values["effect"].mean(0)).ravel()
    second = np.abs(screen.values["effect"][:4].mean(0)[columns][:, [1, 2]]).ravel()
    leading = [set(np.argsort(-some)[:4].tolist()) for some in (first, second)]
    missed = len(leading[0] - leading[1]) / 4
    assert table.loc["missed of the top 4", "agreement"] == pytest.approx(missed)
    assert table.loc["missed of the top 4", "chance"] == pytest.approx(0.75)
    same = agreement(exact, exact, k=4).wide().set_index("measure")["agreement"]
    assert same.tolist() == pytest.approx([1, 1, 1, 0])


# --- the verb -------------------------------------------------------------------------------------------------------


def test_finished_examples_are_not_run_again(model_of, tmp_path):
    model = model_of("gpt2")
    contrast = contrast_of(slow.case(model, batch=3))
    first = path(model, contrast, out=tmp_path, progress=False)
    written = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    second = path(model, contrast, out=tmp_path, progress=False)
    assert written
    assert written == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    assert np.array_equal(first.values["effect"], second.values["effect"])
    path(model, contrast, method="gradient", out=tmp_path, progress=False)
    assert len([*tmp_path.rglob("*.safetensors")]) > len(written)
    first.save(tmp_path / "kept")
    same = Result.load(tmp_path / "kept")
    assert same.axes == first.axes
    assert set(same.tables) == {"summary", "receivers"}


def test_names_of_results_go_back_in(model_of):
    model = model_of("gpt2")
    contrast = contrast_of(slow.case(model))
    first = path(model, contrast, receivers=["L2H1"], at="q", progress=False)
    again = path(
        model, contrast, senders=first.axes["sender"], receivers=first.axes["receiver"], at="q", progress=False
    )
    assert again.axes == first.axes
    assert np.array_equal(again.values["effect"], first.values["effect"])
    streams = path(model, contrast, senders=["embed", "mlps"], receivers=["L1", 2], at="resid", progress=False)
    assert streams.axes["sender"] == ("embed", "MLP0", "MLP1")
    assert streams.axes["receiver"] == ("L1", "L2")


def test_runs_that_do_not_differ_where_a_path_passes(model_of):
    model = model_of("llama")
    case = slow.case(model, changed=(4, 5))
    found = path(model, contrast_of(case), receivers=[(1, 0)], at="q", positions=[0, 2], progress=False)
    assert not found.values["effect"].any()
    assert np.isfinite(found.values["effect"]).all()
