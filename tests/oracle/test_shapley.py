"""`shapley` against loops over coalitions in TransformerLens's hooks, and over orders; closed forms in the toy."""

import math
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from helpers import standins

from lcalens.core.errors import LcalensError
from lcalens.core.results import Result
from lcalens.llm.models.load import load_model
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.exchange import exchange
from lcalens.mechanism.leading import leading
from lcalens.mechanism.patch import patch
from lcalens.mechanism.players import shapley

FAMILIES = ("gpt2", "gemma", "gemma3", "llama")
HEADS = [(0, 1), (0, 2), (1, 3), (2, 0)]


def runs_of(model, sizes, seed=1, low=5):
    """Random contexts that end alike, and the two answers whose logits their difference pulls apart the most."""
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
    return Contrast(clean, hijacked, true=true, false=false)


def worth_by_hooks(model, contrast, index, heads, coalition, how, groups=None):
    """What a coalition takes from the hijacked run's logit difference: key by key, in hooks, with nothing of lcalens.

    Args:
        coalition: Members: heads, or, where there are `groups`, their names.
        groups: For each name the clean and the hijacked positions that are this player's.
    """
    _, clean = model.run_with_cache(torch.tensor([contrast.clean[index]]))
    patterns, values = {}, {}

    def by_head(kept, width):
        return kept if kept.ndim == 4 else kept.unflatten(-1, (-1, width))

    def look(layer):
        def hook(value, hook):
            patterns[layer] = value.detach().clone()
            return value

        return hook

    def hold(layer):
        def hook(value, hook):
            values[layer] = value.detach().clone()
            return value

        return hook

    def read(layer):
        def hook(z, hook):
            own_values, clean_values = by_head(values[layer], z.shape[-1]), by_head(
                clean[f"blocks.{layer}.attn.hook_v"], z.shape[-1]
            )  # fmt: skip
            for head in (head for at, head in heads if at == layer):
                kv = head * own_values.shape[2] // patterns[layer].shape[1]
                own, there = patterns[layer][0, head, -1], clean[f"blocks.{layer}.attn.hook_pattern"][0, head, -1]
                mine, others = own_values[0, :, kv], clean_values[0, :, kv]
                if groups is None:
                    if (layer, head) not in coalition:
                        continue
                    weights = own if how == "values" else there
                    source = mine if how == "pattern" else others
                    z[0, -1, head] = sum(w * v for w, v in zip(weights, source, strict=True))
                    continue
                gone = {key for name in coalition for key in groups[name][1]}
                come = {key for name in coalition for key in groups[name][0]}
                total = sum(own[key] * mine[key] for key in range(len(own)) if key not in gone)
                for key in come:
                    weight = own[key] if how == "values" else there[key]
                    total = total + weight * (mine[key] if how == "pattern" else others[key])
                z[0, -1, head] = total
            return z

        return hook

    layers = sorted({layer for layer, _ in heads})
    names = (("pattern", look), ("v", hold), ("z", read))
    hooks = [(f"blocks.{i}.attn.hook_{name}", made(i)) for i in layers for name, made in names]
    tokens = torch.tensor([contrast.hijacked[index]])
    with torch.no_grad():
        before = model(tokens)[0, -1].double()
        after = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1].double()
    cap = getattr(model.original_model.config, "final_logit_softcapping", None)
    if cap:
        before, after = (cap * torch.atanh(logits / cap) for logits in (before, after))
    true, false = contrast.true[index][0], contrast.false[index][0]
    return ((before - after)[false] - (before - after)[true]).item()


def by_orders(worth, players):
    """What each player adds, over every order of joining."""
    worths = {frozenset(some): worth(frozenset(some)) for k in range(len(players) + 1)
              for some in combinations(players, k)}  # fmt: skip
    found = dict.fromkeys(players, 0.0)
    for order in permutations(players):
        for step, player in enumerate(order):
            before = frozenset(order[:step])
            found[player] += (worths[before | {player}] - worths[before]) / math.factorial(len(players))
    return found, worths


def near(contrast, model):
    """An absolute tolerance: a ten-thousandth of the largest logit, which is float32's rounding through a model."""
    return 1e-4 * model(torch.tensor([contrast.hijacked[0]]))[0, -1].abs().max().item()


@pytest.mark.parametrize("how", ["both", "values", "pattern"])
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_are_worth_what_a_loop_over_orders_says(standin, family, how):
    model, hooked = standin(family).model, load_model(standin(family).folder)
    contrast = runs_of(model, [(9, 9), (7, 7)])
    found = shapley(model, contrast, HEADS, exchange=how, progress=False)
    for index in range(2):
        expected, worths = by_orders(
            lambda some, at=index: worth_by_hooks(hooked, contrast, at, HEADS, some, how), HEADS
        )  # fmt: skip
        everyone, close = worths[frozenset(HEADS)], near(contrast, model)
        assert abs(everyone) > 20 * close
        assert found.values["shapley"][index] == pytest.approx([*expected.values()], abs=close)
        assert found.values["alone"][index] == pytest.approx([worths[frozenset({h})] for h in HEADS], abs=close)
        last = [everyone - worths[frozenset(HEADS) - {head}] for head in HEADS]
        assert found.values["last"][index] == pytest.approx(last, abs=close)
        assert found.examples["together"][index] == pytest.approx(everyone, abs=close)
        # The interaction of the first two by its definition, over the sets of the other two.
        first, second, *others = HEADS
        between = sum(
            (worths[some | {first, second}] - worths[some | {first}] - worths[some | {second}] + worths[some])
            / (3 * math.comb(2, k))
            for k in range(3)
            for some in map(frozenset, combinations(others, k))
        )
        told = found.tables["interactions"].query(f"example == {index} and head == 'L0H1' and other == 'L0H2'")
        assert told["value"].item() == pytest.approx(between, abs=4 * close)
        best = found.tables["best"].query(f"example == {index}")["value"].tolist()
        by_size = [max(worth for some, worth in worths.items() if len(some) == k) for k in range(5)]
        assert best == pytest.approx(by_size, abs=close)


@pytest.mark.parametrize("how", ["both", "values", "pattern"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_positions_of_several_heads_are_worth_what_the_loop_says(standin, family, how):
    model, hooked = standin(family).model, load_model(standin(family).folder)
    contrast = runs_of(model, [(5, 5)])
    found = shapley(model, contrast, HEADS, players="positions", exchange=how, progress=False)
    groups = {key - 5: ([key], [key]) for key in range(5)}
    expected, worths = by_orders(
        lambda some: worth_by_hooks(hooked, contrast, 0, HEADS, some, how, groups), list(groups)
    )  # fmt: skip
    assert found.axes["position"] == (-5, -4, -3, -2, -1)
    assert abs(worths[frozenset(groups)]) > 20 * near(contrast, model)
    assert found.values["shapley"][0] == pytest.approx([*expected.values()], abs=near(contrast, model))


def test_tokens_gather_the_positions_they_stand_at_in_runs_of_other_lengths(standin):
    model, hooked = standin("gpt2").model, load_model(standin("gpt2").folder)
    clean, hijacked = [7, 8, 9, 7, 11], [9, 9, 12, 8, 7, 11]
    contrast = Contrast([clean], [hijacked], true=20, false=30)
    found = shapley(model, contrast, HEADS, players="tokens", samples=4, progress=False)
    tokens = sorted({*clean, *hijacked})
    groups = {
        token: ([i for i, t in enumerate(clean) if t == token], [i for i, t in enumerate(hijacked) if t == token])
        for token in tokens
    }
    assert found.axes["token"] == tuple(tokens)
    for place, token in enumerate(tokens):
        alone = worth_by_hooks(hooked, contrast, 0, HEADS, {token}, "both", groups)
        assert found.values["alone"][0, place] == pytest.approx(alone, abs=near(contrast, model))
        rest = worth_by_hooks(hooked, contrast, 0, HEADS, set(tokens) - {token}, "both", groups)
        assert found.examples["together"][0] - found.values["last"][0, place] == pytest.approx(
            rest, abs=near(contrast, model)
        )
    assert found.values["shapley"].sum() == pytest.approx(found.examples["together"][0], abs=near(contrast, model))


def test_the_toys_positions_add_up_and_do_not_interact():
    model = standins.loud_toy()
    contrast = runs_of(model, [(8, 8)] * 3, low=0)
    found = shapley(model, contrast, players="positions", progress=False)
    change = found.examples["hijacked"] - found.examples["clean"]
    assert found.examples["together"].to_numpy() == pytest.approx(change.to_numpy(), rel=1e-4)
    assert found.values["alone"] == pytest.approx(found.values["shapley"], abs=1e-4)
    assert found.tables["pairs"]["value"].abs().max() < 1e-4 * change.abs().max()
    # A position's part is what its attention times its token's value changes along the answers' direction.
    runs = [model.run_with_cache(torch.tensor(rows))[1] for rows in (contrast.clean, contrast.hijacked)]
    weights = model.original_model.state_dict()
    written = [
        torch.einsum(
            "bk,bkw->bkw", run["blocks.0.attn.hook_pattern"][:, 0, -1], run["blocks.0.attn.hook_v"].flatten(2)
        ) for run in runs
    ]  # fmt: skip
    change = written[1] - written[0]
    out, unembed = model.blocks[0].attn.W_O.reshape(change.shape[-1], -1), model.W_U
    assert weights
    logits = change @ out @ unembed
    true, false = (torch.tensor(rows)[:, :1].expand(-1, 8)[..., None] for rows in (contrast.true, contrast.false))
    parts = (logits.gather(2, false) - logits.gather(2, true)).squeeze(2)
    assert found.values["shapley"] == pytest.approx(parts.detach().numpy(), abs=1e-4)


def test_a_batch_too_small_for_every_coalition_gives_the_same(standin):
    model = standin("llama").model
    contrast = runs_of(model, [(9, 9)] * 3)
    whole, small = (shapley(model, contrast, HEADS, memory=gib, progress=False) for gib in (2.0, 0.001))
    assert small.values["shapley"] == pytest.approx(whole.values["shapley"], abs=near(contrast, model))


def test_exchange_gives_the_same_worth_to_every_set(standin):
    model = standin("gemma2").model
    contrast = runs_of(model, [(9, 9)] * 5)
    found = shapley(model, contrast, HEADS, progress=False)
    table = exchange(model, contrast, [HEADS], progress=False)
    assert found.examples["together"].to_numpy() == pytest.approx(
        (found.examples["hijacked"] - table.values["value"][:, 0, 2]).to_numpy(), abs=near(contrast, model)
    )


def test_runs_of_other_lengths_exchange_what_heads_read(standin):
    model, hooked = standin("llama").model, load_model(standin("llama").folder)
    contrast = runs_of(model, [(5, 9), (8, 6)])
    found = shapley(model, contrast, HEADS, progress=False)
    for index in range(2):
        together = worth_by_hooks(hooked, contrast, index, HEADS, set(HEADS), "both")
        assert found.examples["together"][index] == pytest.approx(together, abs=near(contrast, model))
    with pytest.raises(LcalensError, match="equal length"):
        shapley(model, contrast, HEADS, exchange="values", progress=False)


def test_sampled_orders_are_near_the_exact_values_by_their_own_error(standin):
    model = standin("gpt2").model
    contrast = runs_of(model, [(13, 13)] * 4)
    options = {"players": "positions", "progress": False}
    found = shapley(model, contrast, HEADS, samples=400, **options)
    again = shapley(model, contrast, HEADS, samples=400, seed=1, **options)
    assert "pairs" not in found.tables
    assert found.provenance["method"] == "sampled orders"
    error = np.hypot(found.values["error"], again.values["error"])
    apart = np.abs(found.values["shapley"] - again.values["shapley"])
    assert (apart <= 4 * error + near(contrast, model)).mean() > 0.97
    assert (apart > 0).any()
    total = found.values["shapley"].sum(1)
    assert total == pytest.approx(found.examples["together"].to_numpy(), abs=near(contrast, model))


def test_finished_examples_are_not_run_again(standin, tmp_path):
    model = standin("gpt2").model
    contrast = runs_of(model, [(9, 9)] * 3)
    first = shapley(model, contrast, HEADS, out=tmp_path, progress=False)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    second = shapley(model, contrast, HEADS, out=tmp_path, progress=False)
    assert written
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert np.array_equal(first.values["shapley"], second.values["shapley"])
    shapley(model, contrast, HEADS[:3], out=tmp_path, progress=False)
    assert len([*tmp_path.rglob("*.safetensors")]) > len(written)


def test_a_result_is_saved_and_loaded_whole(standin, tmp_path):
    model = standin("gpt2").model
    found = shapley(model, runs_of(model, [(9, 9)] * 4), HEADS, progress=False)
    found.save(tmp_path / "kept")
    same = Result.load(tmp_path / "kept")
    assert same.axes == found.axes
    assert set(same.tables) == set(found.tables)
    assert np.array_equal(same.values["shapley"], found.values["shapley"])


def test_a_curve_is_measured_on_examples_that_did_not_choose(standin):
    model = standin("gpt2").model
    contrast = runs_of(model, [(9, 9)] * 6)
    curve = shapley(model, contrast, HEADS, progress=False).wide("curve")
    assert curve["size"].tolist() == [0, 1, 2, 3, 4]
    assert curve["recovery"].iloc[-1] == pytest.approx(curve["here"].iloc[-1])
    assert (curve["recovery"] <= curve["here"] + 1e-9).all()
    few = shapley(model, contrast[:3], HEADS, progress=False).wide("curve")
    assert "recovery" not in few or few["recovery"].isna().all()


def test_leading_heads_go_in_as_they_are(standin):
    model = standin("gpt2").model
    contrast = runs_of(model, [(9, 9)] * 4)
    heads = leading(patch(model, contrast, progress=False), 3)
    found = shapley(model, contrast, heads, progress=False)
    assert set(found.axes["head"]) == set(heads.names)
    assert found.provenance["heads_rule"] == heads.rule


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"players": "tokens", "exchange": "values"}, "exchange"),
        ({"samples": 5}, "samples"),
        ({"samples": 2}, "samples"),
        ({"metric": "whole-answer"}, "metric"),
        ({"heads": []}, "heads"),
        ({"heads": [(99, 0)]}, "heads"),
        ({"seed": -1}, "seed"),
        ({"memory": float("nan")}, "memory"),
    ],
)
def test_what_cannot_be_used_is_named(standin, options, named):
    model = standin("gpt2").model
    with pytest.raises(LcalensError, match=f"^{named}"):
        shapley(model, runs_of(model, [(9, 9)]), **({"heads": HEADS} | options), progress=False)


def test_all_heads_of_a_large_model_are_not_taken_unasked(standin):
    model = standin("gpt2").model
    if model.cfg.n_layers * model.cfg.n_heads <= 12:
        pytest.skip("the stand-in has few heads")
    with pytest.raises(LcalensError, match="heads: the model has"):
        shapley(model, runs_of(model, [(9, 9)]), progress=False)


def test_one_player_alone_has_the_whole_effect(standin):
    model = standin("gpt2").model
    contrast = runs_of(model, [(9, 9)])
    found = shapley(model, contrast, [(0, 1)], progress=False)
    patched = patch(model, contrast, site="z", progress=False).values["value"][:, 0, 1]
    worth = found.examples["hijacked"].to_numpy() - patched
    assert np.abs(worth).max() > 0
    np.testing.assert_allclose(found.values["shapley"][:, 0], worth, rtol=0, atol=1e-4 * np.abs(worth).max())
    assert not len(found.tables["pairs"])
