"""The split: Shapley values against permutations, its parts against sums by hand, its twin against hooks."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch

from lcalens.core.errors import LcalensError
from lcalens.core.results import Result
from lcalens.engine.direct import direct_effects
from lcalens.engine.reading import read_decoder
from lcalens.lca.model.bridge import lca_bridge
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.llm.models.load import load_model
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.division import group_names, group_positions, lone_positions, shapley
from lcalens.mechanism.exchange import exchange
from lcalens.mechanism.split import _check_twin, split

FAMILIES = ("gpt2", "gemma", "gemma2", "gemma3", "llama")
PARTS = ("attention", "recall", "scale", "inserted", "shared")
SPANS = {"sentence": (1, 5), "word": (3, 4), "subject": (6, 8), "prompt": (5, 10)}


def changes_of(found):
    """What each part changes from clean to hijacked, and by how much the parts miss the metric at most."""
    table = found.tables["balance"]
    return table[table["quantity"].isin(["change", "error"])].set_index("part")["value"]


def toy_bridge(seed=0):
    torch.manual_seed(seed)
    model = LCAForCausalLM(LCAConfig(m=4, d_model=8, d_head=12)).eval()
    with torch.no_grad():
        model.embed.weight.mul_(2)
        for linear in (model.attn.q, model.attn.k, model.attn.v):
            linear.weight.mul_(4)
    return lca_bridge(model)


def pairs(model, sizes, seed=1, low=5, **options):
    """Random contexts and the two answers whose logits the hijack pulls apart the most."""
    generator = torch.Generator().manual_seed(seed)
    clean, hijacked, true, false = [], [], [], []
    for short, long in sizes:
        tail = torch.randint(low, model.cfg.d_vocab, (min(short, long) // 2,), generator=generator)
        rows = [torch.randint(low, model.cfg.d_vocab, (n - len(tail),), generator=generator) for n in (short, long)]
        clean.append(torch.cat([rows[0], tail]))
        hijacked.append(torch.cat([rows[1], tail]))
        change = model(hijacked[-1][None])[0, -1] - model(clean[-1][None])[0, -1]
        true.append(int(change.argmin()))
        false.append(int(change.argmax()))
    return Contrast(clean, hijacked, true=true, false=false, **options)


def effects(model, contrast, index):
    """Direct effects of one example's two runs."""
    told = torch.tensor([contrast.true[index][0]]), torch.tensor([contrast.false[index][0]])
    decoder = read_decoder(model)
    return [direct_effects(decoder, torch.tensor([row[index]]), *told) for row in (contrast.clean, contrast.hijacked)]


# --- Shapley values -------------------------------------------------------------------------------------------------


def by_permutations(worth, players):
    """What each adds when it joins, over every order of joining."""
    orders = list(permutations(range(players)))
    found = [0.0] * players
    for order in orders:
        who = [False] * players
        for player in order:
            before = worth(tuple(who))
            who[player] = True
            found[player] = found[player] + (worth(tuple(who)) - before) / len(orders)
    return found


@pytest.mark.parametrize("players", [1, 2, 3, 4])
def test_shapley_values_are_those_of_all_orders(players):
    generator = torch.Generator().manual_seed(players)
    table = torch.randn(*[2] * players, 5, generator=generator, dtype=torch.float64)

    def worth(who):
        return table[tuple(map(int, who))]

    found = shapley(worth, players)
    for value, expected in zip(found, by_permutations(worth, players), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    whole = worth((True,) * players) - worth((False,) * players)
    torch.testing.assert_close(sum(found), whole, rtol=1e-12, atol=1e-12)


# --- which position is whose ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clean", "hijacked", "expected"),
    [
        ((7, 8), (1, 2, 7, 8), ([], [0, 1])),  # a sentence before the prompt
        ((0, 7, 8), (0, 1, 2, 7, 8), ([], [1, 2])),  # the same, after a BOS
        ((0, 7, 8), (0, 7, 2, 7, 8), ([], [1, 2])),  # the sentence begins as the prompt does: the prompt is the last
        ((7, 8), (7, 2, 7, 8), ([], [0, 1])),
        ((0, 3, 8), (0, 1, 2, 4, 8), ([], [1, 2])),  # 3 and 4 share a place
        ((5, 3, 8), (6, 1, 2, 4, 8), ([], [0, 1])),
        ((1, 2, 7, 8), (7, 8), ([0, 1], [])),
        ((1, 2), (3, 4), ([], [])),
    ],
)
def test_positions_that_one_run_alone_has(clean, hijacked, expected):
    assert tuple(map(list, lone_positions(clean, hijacked))) == expected


def test_each_position_belongs_to_the_first_group_that_holds_it():
    contrast = Contrast(torch.arange(12)[None], torch.arange(12)[None] + 1, true=1, false=2, spans=SPANS)
    names = group_names(contrast, None)
    assert names == ("word", "sentence", "subject", "last", "prompt")
    ((_, found),), _ = group_positions(contrast, names)
    told = [[*names, "rest"][label] for label in found]
    expected = "rest sentence sentence word sentence prompt subject subject prompt prompt rest last"
    assert told == expected.split()


def test_own_spans_come_first_and_a_given_order_is_kept():
    contrast = Contrast(
        torch.arange(12)[None], torch.arange(12)[None] + 1, true=1, false=2, spans=SPANS | {"b": (0, 9)}
    )
    assert group_names(contrast, None)[0] == "b"
    assert group_names(contrast, ["prompt", "subject"]) == ("prompt", "subject")
    ((_, found),), _ = group_positions(contrast, ("prompt", "subject"))
    assert found == [2] * 5 + [0] * 5 + [2] * 2
    assert group_names(contrast, "word") == ("word",)


def test_clean_positions_have_their_partners_groups():
    spans = {"word": [[(1, 3)], []], "end": [[(3, 4)], [(0, 1)]]}
    contrast = Contrast([[0, 7, 8], [1, 2, 7, 8]], [[0, 1, 2, 7, 8], [7, 8]], true=1, false=2, spans=spans)
    names = group_names(contrast, None)
    assert names == ("end", "word", "last")
    labels, lone = group_positions(contrast, names)
    assert labels == [([3, 0, 2], [3, 1, 1, 0, 2]), ([3, 3, 0, 2], [0, 2])]
    assert lone == [([False] * 3, [False, True, True, False, False]), ([True, True, False, False], [False] * 2)]


# --- the division ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "toy"])
def test_parts_are_the_shapley_values_of_each_position(standin, family):
    model = toy_bridge() if family == "toy" else standin(family).model
    contrast = pairs(model, [(12, 12)] * 3, low=0 if family == "toy" else 5, spans=SPANS)
    found = split(model, contrast, progress=False, twin=0)
    labels, _ = group_positions(contrast, group_names(contrast, None))
    change = found.examples["hijacked"] - found.examples["clean"]
    assert (change > 1).all()
    for i in range(3):
        runs = effects(model, contrast, i)
        layers, heads = runs[0].heads.shape[1:]
        expected = np.zeros((4, layers, heads, len(found.axes["group"])))
        for layer in range(layers):
            for head in range(heads):
                for at in range(12):

                    def worth(who, layer=layer, head=head, at=at, runs=runs):
                        pattern, recall = runs[who[0]].pattern, runs[who[1]].recall
                        product = pattern[0, layer, head, at] * recall[0, layer, head, at]
                        return float(product * runs[who[2]].scale[0, layer])

                    place = layer, head, labels[i][1][at]
                    expected[(slice(3), *place)] += by_permutations(worth, 3)
                    expected[(3, *place)] += worth((True,) * 3) - worth((False,) * 3)
        size = change[i]
        for name, values in zip((*PARTS[:3], "total"), expected, strict=True):
            assert np.abs(found.values[name][i] - values).max() <= 2e-5 * size, name


@pytest.mark.parametrize("family", [*FAMILIES, "toy"])
def test_parts_sum_to_the_whole_whatever_the_lengths(standin, family):
    model = toy_bridge() if family == "toy" else standin(family).model
    sizes = [(12, 12), (8, 12), (12, 10), (12, 12), (8, 12), (7, 11)]
    contrast = pairs(model, sizes, low=0 if family == "toy" else 5, spans={"word": (3, 4), "mine": (1, 6)})
    found = split(model, contrast, progress=False, twin=0)
    parts = np.nansum([found.values[name] for name in PARTS], axis=0)
    np.testing.assert_allclose(parts, found.values["total"], rtol=0, atol=1e-12 * np.abs(found.values["total"]).max())
    aligned = contrast.aligned.numpy()
    assert aligned.tolist() == [True, False, False, True, False, False]
    for name in PARTS[:3]:
        assert np.isnan(found.values[name][~aligned]).all()
        assert not np.isnan(found.values[name][aligned]).any()
    for name in PARTS[3:]:
        assert not found.values[name][aligned].any()
        assert found.values[name][~aligned].any()
    for i in range(len(sizes)):
        runs = effects(model, contrast, i)
        expected = (runs[1].heads - runs[0].heads)[0].numpy()
        size = np.abs(expected).max()
        np.testing.assert_allclose(found.values["total"][i].sum(-1), expected, rtol=0, atol=2e-5 * size)
    balance = changes_of(found)
    assert balance[["heads", "mlps", "embedding", "biases"]].sum() == pytest.approx(balance["total"], rel=1e-4)
    assert balance["heads"] == pytest.approx(found.values["total"].sum((1, 2, 3)).mean())
    assert balance["total"] == pytest.approx((found.examples["hijacked"] - found.examples["clean"]).mean())
    assert balance["largest error"] <= 1e-4 * found.examples[["clean", "hijacked"]].abs().to_numpy().max()


@pytest.mark.parametrize("family", ["llama", "toy"])
def test_inserted_is_what_the_other_run_has_not(standin, family):
    model = toy_bridge() if family == "toy" else standin(family).model
    contrast = pairs(model, [(8, 12), (12, 8)], low=0 if family == "toy" else 5, spans={"word": (1, 3)})
    found = split(model, contrast, progress=False, twin=0)
    assert found.axes["group"] == ("word", "last", "rest")
    for i in range(2):
        clean, hijacked = (run.heads_by_source[0] for run in effects(model, contrast, i))
        only = [list(places) for places in lone_positions(contrast.clean[i], contrast.hijacked[i])]
        assert sorted(map(len, only)) == [0, 4]
        inserted = found.values["inserted"][i]
        expected = (hijacked[..., only[1]].sum(-1) - clean[..., only[0]].sum(-1)).numpy()
        np.testing.assert_allclose(inserted.sum(-1), expected, rtol=1e-4, atol=1e-5)
        # What the clean run alone has lies in no span of the hijacked tokens.
        assert inserted[..., 0].any() == (i == 0)
        np.testing.assert_allclose(found.values["shared"][i], found.values["total"][i] - inserted, atol=1e-12)


def test_the_same_run_twice_changes_nothing(standin):
    model = standin("gpt2").model
    ids = torch.randint(5, model.cfg.d_vocab, (2, 9), generator=torch.Generator().manual_seed(0))
    found = split(model, Contrast(ids, ids, true=7, false=9), progress=False, twin=0)
    for values in found.values.values():
        assert not values.any()


def test_examples_of_many_lengths_are_as_alone(standin):
    model = standin("gemma3").model
    contrast = pairs(model, [(9, 9), (7, 11), (12, 12), (9, 9)], spans={"word": (1, 3)})
    together = split(model, contrast, progress=False, twin=0)
    for i, one in enumerate(contrast):
        alone = split(model, one, progress=False, twin=0)
        for name, values in alone.values.items():
            size = np.abs(together.values["total"][i]).max()
            np.testing.assert_allclose(values[0], together.values[name][i], rtol=0, atol=2e-5 * size)


# --- the toy model --------------------------------------------------------------------------------------------------


def test_the_toys_parts_sum_to_the_whole_logit_difference():
    model = toy_bridge()
    contrast = pairs(model, [(11, 11)] * 5, low=0)
    found = split(model, contrast, progress=False)
    for i in range(5):
        logits = [model(torch.tensor([row[i]]))[0, -1] for row in (contrast.clean, contrast.hijacked)]
        clean, hijacked = (row[contrast.false[i][0]] - row[contrast.true[i][0]] for row in logits)
        assert hijacked - clean > 1
        assert abs(found.values["total"][i].sum() - (hijacked - clean).item()) < 1e-5 * (hijacked - clean).item()
    assert not found.values["scale"].any()
    balance = changes_of(found)
    assert balance["heads"] == pytest.approx(balance["total"], rel=1e-4)
    assert balance[["mlps", "embedding", "biases"]].eq(0).all()


def test_the_toys_recall_change_is_nothing_by_token_and_something_by_position():
    """By token: attention is summed over where a token occurs; what it recalls is the same in both runs."""
    model = toy_bridge()
    contrast = pairs(model, [(11, 11)] * 5, low=0)
    by_position = split(model, contrast, progress=False, twin=0)
    assert np.abs(by_position.values["recall"].sum((1, 2, 3))).max() > 0.1
    embed, w_v = model.original_model.embed.weight.detach(), read_decoder(model).layers[0].project["v"].weight.detach()
    for i in range(5):
        runs = effects(model, contrast, i)
        answers = (embed[contrast.false[i][0]] - embed[contrast.true[i][0]]) @ w_v
        attention, recall = torch.zeros(2, 16, dtype=torch.float64), torch.zeros(2, 16, dtype=torch.float64)
        for side, tokens in enumerate((contrast.clean[i], contrast.hijacked[i])):
            recall[side] = (embed @ answers).double()  # of tokens that do not occur as well
            for at, token in enumerate(tokens):
                attention[side, token] += runs[side].pattern[0, 0, 0, at]
                assert abs(runs[side].recall[0, 0, 0, at] - recall[side, token]) < 1e-4
        where, what = shapley(lambda who, a=attention, r=recall: a[int(who[0])] * r[int(who[1])], 2)
        assert not what.any()
        change = by_position.examples["hijacked"][i] - by_position.examples["clean"][i]
        assert where.sum().item() == pytest.approx(change, rel=1e-4)


# --- the causal twin ------------------------------------------------------------------------------------------------


def by_hooks(model, contrast, index, heads, kind):
    """The hijacked run with the heads' last rows exchanged, by TransformerLens's hooks; before any soft cap."""
    _, clean = model.run_with_cache(torch.tensor([contrast.clean[index]]))
    seen = {}

    def pattern_of(layer):
        def hook(value, hook):
            if kind != "values":
                for head in (head for at, head in heads if at == layer):
                    value[:, head, -1] = clean[f"blocks.{layer}.attn.hook_pattern"][:, head, -1]
            seen[layer] = value.detach().clone()
            return value

        return hook

    def z_of(layer):
        def hook(value, hook):
            v = clean[f"blocks.{layer}.attn.hook_v"]
            shaped = v if v.ndim == 4 else v.unflatten(-1, (-1, value.shape[-1]))
            for head in (head for at, head in heads if at == layer):
                own = shaped[:, :, head * shaped.shape[2] // seen[layer].shape[1]]
                if kind != "pattern":
                    value[:, -1, head] = torch.einsum("bs,bsw->bw", seen[layer][:, head, -1], own)
            return value

        return hook

    layers = sorted({layer for layer, _ in heads})
    hooks = [(f"blocks.{i}.attn.hook_pattern", pattern_of(i)) for i in layers]
    hooks += [(f"blocks.{i}.attn.hook_z", z_of(i)) for i in layers]
    with torch.no_grad():
        logits = model.run_with_hooks(torch.tensor([contrast.hijacked[index]]), fwd_hooks=hooks)[0, -1]
    logits = logits.double()
    cap = getattr(model.original_model.config, "final_logit_softcapping", None)
    if cap:
        logits = cap * torch.atanh(logits / cap)
    return (logits[contrast.false[index][0]] - logits[contrast.true[index][0]]).item()


@pytest.mark.parametrize("family", [*FAMILIES, "toy"])
def test_the_twin_is_what_hooks_do(standin, family):
    model = toy_bridge() if family == "toy" else standin(family).model
    hooked = toy_bridge() if family == "toy" else load_model(standin(family).folder)
    contrast = pairs(model, [(12, 12), (9, 9)], low=0 if family == "toy" else 5)
    if family == "gemma2":  # answers that the cap of 15 leaves apart
        rows = [model(torch.tensor([row]))[0, -1].abs().argsort()[:2].tolist() for row in contrast.hijacked]
        contrast = Contrast(
            contrast.clean, contrast.hijacked, true=[[a] for a, _ in rows], false=[[b] for _, b in rows]
        )
    heads = [(0, 0)] if family == "toy" else [(0, 1), (0, 2), (1, 3), (2, 0)]
    found = split(model, contrast, progress=False, twin=heads)
    table = found.wide("twin").set_index("twin")["recovery"]
    change = (found.examples["hijacked"] - found.examples["clean"]).mean()
    for kind in ("pattern", "values", "both"):
        patched = np.mean([by_hooks(hooked, contrast, i, heads, kind) for i in range(2)])
        expected = (found.examples["hijacked"].mean() - patched) / change
        assert table[kind] == pytest.approx(expected, rel=2e-3, abs=2e-3), kind
        assert abs(expected) > 0.01
    assert table["interaction"] == pytest.approx(table["both"] - table["pattern"] - table["values"])
    assert found.provenance["twin"] == [list(head) for head in heads]
    if family == "toy":
        assert table["both"] == pytest.approx(1, rel=1e-5)


def test_heads_of_the_twin_are_chosen_on_one_half_and_reported_on_the_other(standin):
    model = standin("llama").model
    contrast = pairs(model, [(9, 9), (7, 9), (9, 9), (9, 9), (9, 9)])
    found = split(model, contrast, progress=False, twin=2)
    assert found.provenance["twin_examples"] == [2, 4]
    mean = np.abs(found.values["total"].sum(-1)[[0, 3]].mean(0))
    best = [np.unravel_index(i, mean.shape) for i in np.argsort(-mean, axis=None)[:2]]
    assert found.provenance["twin"] == sorted([int(layer), int(head)] for layer, head in best)
    assert (found.tables["twin"]["n"] == 2).all()
    again = split(model, contrast[[2, 4]], progress=False, twin=[tuple(head) for head in found.provenance["twin"]])
    pd.testing.assert_frame_equal(again.tables["twin"], found.tables["twin"], rtol=1e-3)


def test_without_aligned_examples_or_heads_there_is_no_twin(standin):
    model = standin("llama").model
    assert "twin" not in split(model, pairs(model, [(7, 9)] * 2), progress=False).tables
    assert "twin" not in split(model, pairs(model, [(9, 9)] * 2), progress=False, twin=0).tables


# --- tables and the rest --------------------------------------------------------------------------------------------


def test_summary_and_heads_are_means_of_the_values(standin):
    model = standin("gemma2").model
    contrast = pairs(model, [(12, 12)] * 4 + [(9, 12)] * 2, spans=SPANS)
    found = split(model, contrast, progress=False)
    aligned = contrast.aligned.numpy()
    assert list(found.tables) == ["summary", "heads", "balance", "twin"]
    summary = found.summary.set_index(["group", "quantity"])
    for group, part in summary.index:
        rows = {"total": np.ones(6, dtype=bool), "inserted": ~aligned, "shared": ~aligned}.get(part, aligned)
        which = slice(None) if group == "all" else [found.axes["group"].index(group)]
        values = found.values[part][rows][..., which].sum((1, 2, 3))
        told = summary.loc[(group, part)]
        assert told["value"] == pytest.approx(values.mean())
        assert told["value_low"] <= told["value"] <= told["value_high"]
        assert told["n"] == rows.sum()
    heads = found.wide("heads")
    assert len(heads) == 10
    assert heads["total"].abs().is_monotonic_decreasing
    for row in heads.to_dict("records"):
        for part in (*PARTS, "total"):
            rows = {"total": np.ones(6, dtype=bool), "inserted": ~aligned, "shared": ~aligned}.get(part, aligned)
            assert row[part] == pytest.approx(found.values[part][rows, row["layer"], row["head"]].sum(-1).mean())
            assert row[f"{part}_n"] == rows.sum()


def test_parts_that_no_example_has_are_not_in_the_summary(standin):
    model = standin("gpt2").model
    assert set(split(model, pairs(model, [(9, 9)]), progress=False).summary["quantity"]) == {*PARTS[:3], "total"}
    assert set(split(model, pairs(model, [(7, 9)]), progress=False).summary["quantity"]) == {*PARTS[3:], "total"}


def test_it_is_saved_and_loaded(standin, tmp_path):
    model = standin("gpt2").model
    found = split(model, pairs(model, [(12, 12)] * 2 + [(9, 12)], spans=SPANS), progress=False)
    again = Result.load(found.save(tmp_path / "split"))
    assert again.kind == "split"
    assert again.axes == found.axes
    for name, values in found.values.items():
        np.testing.assert_array_equal(again.values[name], values)
    for name, table in found.tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table)
    assert {"model", "contrast", "groups", "versions"} <= set(again.provenance)


def test_progress_ends_where_it_said(standin):
    model = standin("gpt2").model
    calls = []
    contrast = pairs(model, [(9, 9)] * 4 + [(7, 9)] * 2)
    split(model, contrast, progress=lambda done, total, what: calls.append((done, total, what)))
    assert [what for *_, what in calls] == ["split", "split", "twin"]
    assert [done for done, *_ in calls] == [4, 6, 8]
    assert {total for _, total, _ in calls} == {8}


def test_what_cannot_be_used_is_named(standin):
    model = standin("gpt2").model
    contrast = pairs(model, [(9, 9)])
    for groups in (["nothing"], [], 3, [3], ["last", None], {"last": 1}):
        with pytest.raises(LcalensError, match="groups: expected names of spans"):
            group_names(contrast, groups)
    for twin in ([(9, 0)], [(0, 4)], [(0, -1)], [3], "all", 2.5, None, [(0, True)], [(0, 1, 2)]):
        with pytest.raises(LcalensError, match=r"^twin: "):
            _check_twin(read_decoder(model), twin)
    with pytest.raises(LcalensError, match="twin: expected an integer of at least 0, got -1"):
        split(model, contrast, progress=False, twin=-1)
    strange = Contrast([[1, 2, 999_999]], [[1, 2, 3]], true=1, false=2)
    with pytest.raises(LcalensError, match="token 999999 is none of the model's"):
        split(model, strange, progress=False)
    with pytest.raises(LcalensError, match="the model's context holds"):
        split(model, Contrast([list(range(1, 200))], [list(range(1, 200))], true=1, false=2), progress=False)


def test_a_model_that_cannot_be_read_is_refused_with_the_reason(standin):
    ids = torch.arange(1, 9)[None]
    hooked = load_model(standin("gpt2").folder)
    hooked.blocks[0].attn.hook_z.add_hook(lambda value, hook: value * 2)
    with pytest.raises(LcalensError, match=r"split needs a model that lcalens reads .*hooks are attached"):
        split(hooked, Contrast(ids, ids + 1, true=1, false=2), progress=False)


@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_sets_of_heads_are_exchanged_each_by_itself(standin, family):
    model, hooked = standin(family).model, load_model(standin(family).folder)
    contrast = pairs(model, [(12, 12), (9, 9), (9, 9)])
    sets = [[(0, 1), (1, 3), (0, 2)], [(2, 0)], [(1, 1), (2, 2)]]
    found = exchange(model, contrast, sets, progress=False)
    for index in range(3):
        assert found.examples["clean"][index] != pytest.approx(found.examples["hijacked"][index])
        for number, heads in enumerate(sets):
            for twin, kind in enumerate(("pattern", "values", "both")):
                expected = by_hooks(hooked, contrast, index, heads, kind)
                assert found.values["value"][index, number, twin] == pytest.approx(expected, rel=1e-3, abs=2e-3)
    ends = split(model, contrast, progress=False, twin=0).examples
    np.testing.assert_allclose(found.examples["clean"], ends["clean"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.examples["hijacked"], ends["hijacked"], rtol=1e-4, atol=1e-4)


def test_what_cannot_be_exchanged_is_refused(standin):
    model = standin("llama").model
    with pytest.raises(LcalensError, match="equal length"):
        exchange(model, pairs(model, [(7, 9)]), [[(0, 0)]], progress=False)
    for sets in ([], [[]], [[(0, 99)]]):
        with pytest.raises(LcalensError, match=r"^sets: "):
            exchange(model, pairs(model, [(9, 9)]), sets, progress=False)
