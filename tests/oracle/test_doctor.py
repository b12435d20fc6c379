"""`doctor` holds on models that are right, and a fault that is planted is wrong by the identity that should see it."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import lcalens
from lcalens.core.errors import LcalensError
from lcalens.engine import reading
from lcalens.engine.decoder import identity
from lcalens.selfcheck.doctor import IDENTITIES
from tests.matrix.families import FAMILIES, boot

pytestmark = pytest.mark.filterwarnings("ignore")

UNREADABLE = {"gemma4", "deepseek-v2", "deepseek-v3"}  # layer by layer: what vouches for verbs there is less
NAMES = [one.name for one in IDENTITIES]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Verdicts on stand-ins are kept where no other test looks."""
    monkeypatch.setenv("LCALENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def words(result):
    return dict(zip(result.tables["verdicts"]["identity"], result.tables["verdicts"]["verdict"], strict=True))


def wrong(result):
    table = result.tables["verdicts"]
    return table[table["verdict"] == "wrong"][["identity", "reason"]].to_dict("records")


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "toy"])
def test_it_holds(family):
    result = lcalens.doctor(boot(family), progress=False)
    assert not wrong(result)
    assert result.provenance["counts"]["exact"] >= (31 if family == "toy" else len(NAMES)), words(result)
    table = result.tables["verdicts"]
    assert (table["effect"][table["verdict"] == "exact"] > 0).all()


@pytest.mark.parametrize("share", [0.1, 0.01, 0.001])
def test_faint_logits_are_not_called_wrong(share):
    """Logits near zero, as an untrained model of a large vocabulary has: log-probabilities are rounded by more."""
    model = boot("llama")
    model.original_model.lm_head.weight.data.mul_(share)
    assert not wrong(lcalens.doctor(model, progress=False))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_it_holds_on_every_family(family):
    try:
        model = boot(family)
    except LcalensError:
        pytest.skip("which load_model refuses")
    result = lcalens.doctor(model, progress=False)
    assert not wrong(result)
    assert result.provenance["counts"]["exact"] >= (9 if family in UNREADABLE else 22), words(result)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_is_not_called_wrong(family):
    try:
        model = boot(family, dtype=torch.bfloat16)
    except LcalensError:
        pytest.skip("which load_model refuses")
    assert not wrong(lcalens.doctor(model, progress=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_it_holds_on_real_models(name, real_model):
    result = lcalens.doctor(real_model(name), progress=False)
    assert not wrong(result)
    assert result.provenance["counts"]["exact"] >= 35, words(result)
    assert result.provenance["runs"]["of"] == "sentences"


def of_layers(**changes):
    def fault(decoder):
        layers = tuple(
            dataclasses.replace(layer, **{name: change(layer) for name, change in changes.items()})
            for layer in decoder.layers
        )
        return dataclasses.replace(decoder, layers=layers)

    return fault


# What is read wrongly of a model, where the trial before use is silenced too: by which identities it must be seen.
MISREAD = {
    "scores scaled twice": (
        "llama", of_layers(scale=lambda layer: layer.scale / 2), {"layer by layer", "patch attn_out", "knockout"}),
    "no norm before attention": (
        "llama", of_layers(norm=lambda layer: identity), {"layer by layer", "averaged values", "patch z"}),
    "heads of W_O in another order": (
        "llama", of_layers(out=lambda layer: layer.out.flip(0)), {"head outputs", "paths to the logits", "exchange"}),
    "bias of W_O dropped": ("gpt2", of_layers(out_bias=lambda layer: None), {"head outputs", "stream sums"}),
    "queries not rotated": (
        "llama", of_layers(rotary=lambda layer: None), {"Hugging Face's patterns", "parts of scores", "patch q"}),
    "no norm after attention": (
        "gemma3", of_layers(after_attention=lambda layer: identity), {"stream sums", "split", "direct effects"}),
}  # fmt: skip


@pytest.mark.parametrize("name", MISREAD)
def test_a_model_read_wrongly_is_wrong(name, monkeypatch):
    family, fault, seen_by = MISREAD[name]
    read = reading._collect
    monkeypatch.setattr(reading, "_collect", lambda *given: fault(read(*given)))
    monkeypatch.setattr(reading, "disagreement", lambda *given: "")
    result = lcalens.doctor(boot(family), only=sorted(seen_by), progress=False)
    assert {one["identity"] for one in wrong(result)} == seen_by, words(result)


def twice_the_scale(model):
    model.blocks[1].attn.original_component.scaling *= 1.01


def another_epsilon(model):
    for component in model.modules():
        config: Any = getattr(component, "config", None)
        if hasattr(config, "eps"):
            config.eps = 0.1


def a_rotary_table_off_by_one(model):
    table = model.original_model.model.rotary_emb._original_component.inv_freq
    table.copy_(table.roll(1))


def a_copy_edited(model):
    model.blocks[0].attn.q.original_component.weight.data[0, 0] += 0.1


# What the bridge does otherwise than Hugging Face's own model of the same weights.
ASTRAY = {
    "attention's scale": ("llama", twice_the_scale),
    "a norm's epsilon": ("starcoder2", another_epsilon),
    "a rotary table": ("llama", a_rotary_table_off_by_one),
    "an edited copy": ("gpt-neox", a_copy_edited),
}


@pytest.mark.parametrize("name", ASTRAY)
def test_a_bridge_that_is_another_model_is_wrong(name):
    family, plant = ASTRAY[name]
    model = boot(family)
    plant(model)
    result = lcalens.doctor(model, only=["Hugging Face's logits"], progress=False)
    assert [one["identity"] for one in wrong(result)] == ["Hugging Face's logits"]


def test_weights_edited_in_both_are_a_model_of_their_own():
    model = boot("llama")
    model.original_model.lm_head.weight.data.mul_(1.1)
    assert words(lcalens.doctor(model, only=["Hugging Face's logits"], progress=False)) == {
        "Hugging Face's logits": "exact"
    }


def scaled(function, by=1.02):
    """A function whose numbers are all a little too large."""

    def larger(*given, **named):
        found: Any = function(*given, **named)
        if isinstance(found, tuple):
            return (found[0], found[1] * by)
        if isinstance(found, torch.Tensor):
            return found * by
        if isinstance(found, np.ndarray):
            return found * by
        if hasattr(found, "effect"):
            return dataclasses.replace(found, effect=found.effect * by)
        return {name: value * by for name, value in found.items()}

    return larger


# A verb's own arithmetic, two parts in a hundred too large: where it is, and which identity says so.
MISTAKES = {
    "lcalens.mechanism.patch_cells.of_variants": "patch z",
    "lcalens.mechanism.knockout.without": "knockout",
    "lcalens.mechanism.exchange.exchange_bucket": "exchange",
    "lcalens.mechanism.players_cells._measure": "Shapley sum",
    "lcalens.mechanism.path.measure_paths": "paths to the logits",
    "lcalens.mechanism.split.divide": "split",
}


@pytest.mark.parametrize("place", MISTAKES)
def test_a_verb_that_is_wrong_is_wrong(place, monkeypatch):
    import importlib

    module, _, name = place.rpartition(".")
    held = importlib.import_module(module)
    monkeypatch.setattr(held, name, scaled(getattr(held, name)))
    result = lcalens.doctor(boot("llama"), only=[MISTAKES[place]], progress=False)
    assert [one["identity"] for one in wrong(result)] == [MISTAKES[place]], words(result)


@pytest.mark.parametrize("name", ["patching_effects", "integrated_effects"])
def test_slopes_that_are_half_too_large_are_wrong(name, monkeypatch):
    import lcalens.mechanism.attribute as held

    monkeypatch.setattr(held, name, scaled(getattr(held, name), 1.5))
    seen_by = {"patching_effects": "slopes", "integrated_effects": "integrated gradients"}[name]
    result = lcalens.doctor(boot("gemma3"), only=[seen_by], progress=False)
    assert [one["identity"] for one in wrong(result)] == [seen_by], words(result)


def test_a_defence_that_stays_is_wrong(monkeypatch):
    import lcalens.selfcheck.of_texts as held
    from lcalens.mechanism.defence.cut import Cut

    attach, defend = Cut.attach, held.defend

    def defend_and_stay(*given, **named):
        defence = defend(*given, **named)
        monkeypatch.setattr(Cut, "attach", lambda self: list(attach(self))[:0])
        return defence

    monkeypatch.setattr(held, "defend", defend_and_stay)
    result = lcalens.doctor(boot("llama"), only=["defence taken off"], progress=False)
    assert [one["identity"] for one in wrong(result)] == ["defence taken off"], words(result)


def test_a_failure_is_wrong_and_the_others_are_measured(monkeypatch):
    import lcalens.selfcheck.of_heads as held

    def broken(*given, **named):
        raise IndexError("out of range")

    monkeypatch.setattr(held, "knockout", broken)
    result = lcalens.doctor(boot("llama"), only=["knockout", "batch and single"], progress=False)
    assert words(result) == {"batch and single": "exact", "knockout": "wrong"}
    assert "IndexError: out of range" in wrong(result)[0]["reason"]


def test_what_nothing_moves_is_not_exact(monkeypatch):
    from lcalens.selfcheck.subject import Subject

    monkeypatch.setattr(Subject, "grain", 1e3)
    result = lcalens.doctor(boot("llama"), only=["patch z"], progress=False)
    assert words(result) == {"patch z": "refused"}
    assert "nothing moves by more than" in result.tables["verdicts"]["reason"][0]
