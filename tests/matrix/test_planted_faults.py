"""Faults planted on purpose: the matrix calls each one wrong, and the trial before use does not let it be used.

Each fault changes one thing that a family has, as a mistake in reading it would. With the trial silenced the cell must
be `wrong`; with the trial at work the same model must be exact by another path, or refused.
"""

import dataclasses

import pytest

from lcalens.engine import reading
from lcalens.engine.decoder import identity
from tests.matrix import cells as matrix
from tests.matrix.cells import VERBS, Cell, Material
from tests.matrix.families import FAMILIES, boot

pytestmark = pytest.mark.filterwarnings("ignore")


def each_layer(**changes):
    """A change of every layer's fields, each a function of the layer."""

    def fault(decoder):
        layers = tuple(
            dataclasses.replace(layer, **{name: change(layer) for name, change in changes.items()})
            for layer in decoder.layers
        )
        return dataclasses.replace(decoder, layers=layers)

    return fault


def whole(**changes):
    """A change of the model's own fields."""
    return lambda decoder: dataclasses.replace(decoder, **{name: change(decoder) for name, change in changes.items()})


def with_projection(name, change):
    return lambda layer: layer.project | {name: lambda x, old=layer.project[name]: change(layer, old(x))}


FAULTS = {
    "heads of W_O in another order": ("llama", "patch", "z", each_layer(out=lambda layer: layer.out.flip(0))),
    "value heads in another order": (
        "llama", "exchange", "", each_layer(project=with_projection("v", lambda layer, v: v.roll(8, -1)))),
    "value heads in another order under ablation": (
        "llama", "ablation", "z", each_layer(project=with_projection("v", lambda layer, v: v.roll(8, -1)))),
    "bias of W_O dropped": ("gpt2", "direct", "attn_out", each_layer(out_bias=lambda layer: None)),
    "bias of q dropped": (
        "qwen2", "attribution", "k", each_layer(project=with_projection("q", lambda layer, q: q - q.new_tensor(0.3)))),
    "window longer by one": ("mistral", "patch", "resid_pre", each_layer(window=lambda layer: layer.window + 1)),
    "window in no layer": ("gemma3", "knockout", "", each_layer(window=lambda layer: None)),
    "norm before attention missing": ("olmo", "view", "", each_layer(norm=lambda layer: identity)),
    "norm after attention missing": ("gemma2", "split", "", each_layer(after_attention=lambda layer: identity)),
    "norms of q and k missing": ("qwen3", "integrated", "q", each_layer(normalise=lambda layer: {})),
    "other coordinates rotated together": (
        "gptj", "patch", "pattern",
        each_layer(pairing=lambda layer: "half" if layer.pairing == "adjacent" else "adjacent")),
    "rotated where there is no position": (
        "smollm3", "whole-answer", "q", each_layer(rotary=lambda layer: layer.rotary or "plain")),
    "rotated the other way": ("nanochat", "patch", "q", each_layer(rotary=lambda layer: "plain")),
    "norms before the rotation, not after": (
        "hunyuan", "attribution", "q", each_layer(order=lambda layer: ("clip", "normalise", "rotate"))),
    "clip before the norms, not after": (
        "olmoe", "patch", "resid_pre", each_layer(order=lambda layer: ("clip", "normalise", "rotate"))),
    "window where all is seen": ("exaone4", "knockout", "", each_layer(window=lambda layer: 4)),
    "soft cap of scores dropped": ("gemma2", "knockout", "", each_layer(softcap=lambda layer: None)),
    "scores scaled where they are not": (
        "gpt-neo", "patch", "attn_out", each_layer(scale=lambda layer: layer.scale / 2)),
    "sinks dropped": ("gpt-oss", "view", "", each_layer(sinks=lambda layer: None)),
    "MLP after attention, not beside it": (
        "gpt-neox", "patch", "attn_out", each_layer(parallel=lambda layer: not layer.parallel)),
    "clip dropped": ("mpt", "patch", "q", each_layer(clip=lambda layer: None)),
    "ALiBi dropped": ("bloom", "patch", "resid_post", whole(key_bias=lambda decoder: None)),
    "final norm missing": ("llama", "whole-answer", "mlp_out", whole(final_norm=lambda decoder: identity)),
    "scale of logits dropped": ("cohere", "patch", "mlp_out", whole(logit_scale=lambda decoder: 1.0)),
    "soft cap of logits dropped": ("gemma2", "whole-answer", "z", whole(softcap=lambda decoder: None)),
    "bias of the unembedding dropped": ("phi", "patch", "v", whole(unembed_bias=lambda decoder: None)),
    "no mask": ("llama", "attribution", "z", whole(causal=lambda decoder: False)),
}  # fmt: skip


def cell_of(family, verb, site):
    options = VERBS[verb].options[0] | (
        {"positions": "all"} if verb not in ("direct", "exchange", "split", "view") else {}
    )
    return Cell(family, verb, site, "aligned", "float32", "batch", tuple(sorted(options.items())))


@pytest.fixture
def afresh(monkeypatch):
    """Models that nothing is remembered of."""
    materials = {}
    monkeypatch.setattr(matrix, "material", lambda family: materials.setdefault(family, Material(family)))


def plant(monkeypatch, fault, *, tried):
    read = reading._collect
    monkeypatch.setattr(reading, "_collect", lambda *given: fault(read(*given)))
    if not tried:
        monkeypatch.setattr(reading, "disagreement", lambda *given: "")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_is_not_tried_is_wrong(name, monkeypatch, afresh):
    family, verb, site, fault = FAULTS[name]
    plant(monkeypatch, fault, tried=False)
    verdict = matrix.judge(cell_of(family, verb, site))
    assert verdict.word == "wrong", str(verdict)
    assert verdict.error > 3 * verdict.allowed or "Error" in verdict.reason, str(verdict)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_is_tried_is_not_used(name, monkeypatch, afresh):
    family, verb, site, fault = FAULTS[name]
    plant(monkeypatch, fault, tried=True)
    verdict = matrix.judge(cell_of(family, verb, site))
    assert verdict.word in ("exact", "refused"), str(verdict)
    assert "growing batch" not in verdict.path


@pytest.mark.parametrize("site", ["q", "k"])
def test_a_norm_of_all_heads_taken_as_each_heads_own_is_wrong(site, monkeypatch, afresh):
    plant(monkeypatch, each_layer(norms_join_heads=lambda layer: False), tried=True)
    assert matrix.judge(cell_of("olmo2", "patch", site)).word == "wrong"


def test_a_clip_that_does_not_act_leaves_the_order_unknown(monkeypatch):
    family = FAMILIES["olmoe"]
    idle = dataclasses.replace(family, config={**family.config, "clip_qkv": 1e3})
    monkeypatch.setitem(FAMILIES, "olmoe", idle)
    assert "whether its norms come before" in str(reading.read_decoder(boot("olmoe")))


def test_every_verb_has_a_fault():
    texts = {"efficacy", "ask"}  # which the engine has no part in
    assert {fault[1] for fault in FAULTS.values()} | texts == set(VERBS)


@pytest.mark.parametrize("verb", ["efficacy", "ask"])
def test_a_token_dropped_from_a_text_is_wrong(verb, monkeypatch, afresh):
    import lcalens.llm.ask
    import lcalens.llm.efficacy.parts
    from lcalens.llm.efficacy.scoring import Continuation, score

    def short(model, continuations, **options):
        cut = [Continuation(item.ids[1:], item.start - 1, item.stop - 1) for item in continuations]
        return score(model, cut, **options)

    for module in (lcalens.llm.ask, lcalens.llm.efficacy.parts):
        monkeypatch.setattr(module, "score", short)
    assert matrix.judge(Cell("gpt2", verb, "", "aligned", "float32", "batch")).word == "wrong"


def test_a_number_that_is_refused_without_being_expected_is_not_good(monkeypatch, afresh):
    monkeypatch.setattr(reading, "_collect", lambda *given: (_ for _ in ()).throw(reading.Unreadable("no reason")))
    verdict = matrix.judge(cell_of("llama", "split", ""))
    assert verdict.word == "refused"
    assert not verdict.good
