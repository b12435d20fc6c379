"""Layers on two devices: every operation of the engine has its operands on one, seen by tensors that know their device.

Fake tensors have shapes and devices and no values, and an operation that mixes devices raises. So placement is tested
without accelerators; values on real ones are tests marked `gpu`.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, LlamaConfig

from lcalens.engine import variants
from lcalens.engine.decoder import Decoder, Layer, identity
from lcalens.engine.forward import run, trace, trace_both
from lcalens.engine.gradients import Pairs, patching_effects
from lcalens.engine.sites import SITES

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
FIRST, SECOND = torch.device("meta:0"), torch.device("meta:1")  # pretended, like their values


def put(module, device):
    """The module's weights and tables on a device; fake parameters cannot be moved in place."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            part._parameters[name] = None if weight is None else nn.Parameter(weight.detach().to(device), False)
        for name, table in part._buffers.items():
            part._buffers[name] = None if table is None else table.to(device)


def spread(places, norm, head):
    """A small LLaMA in fake tensors, its layers where `places` says; put together as `read_decoder` would."""
    config = LlamaConfig(vocab_size=40, num_key_value_heads=2, **SIZES)
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for module, place in ((plain.model.embed_tokens, FIRST), (plain.model.norm, norm), (plain.lm_head, head)):
        put(module, place)
    put(plain.model.rotary_emb, FIRST)
    layers = []
    for block, place in zip(plain.model.layers, places, strict=True):
        put(block, place)
        attention = block.self_attn
        layers.append(
            Layer(
                norm=block.input_layernorm,
                project={"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj},
                normalise={},
                clip=None,
                heads=4,
                kv_heads=2,
                scale=0.5,
                softcap=None,
                window=None,
                rotary="plain",
                pairing="half",
                bias_scale=1.0,
                sinks=None,
                out=attention.o_proj.weight.T.unflatten(0, (4, 4)),
                out_bias=None,
                after_attention=identity,
                mlp=lambda x, block=block: block.mlp(block.post_attention_layernorm(x)),
                parallel=False,
                close=(identity, identity),
                device=place,
            )
        )

    def rotations(name, positions):
        cos, sin = plain.model.rotary_emb(plain.lm_head.weight[:1].to(positions.device), positions[None])
        return cos[0], sin[0]

    return Decoder(
        layers=tuple(layers),
        embed=plain.model.embed_tokens,
        final_norm=plain.model.norm,
        unembed=plain.lm_head.weight,
        unembed_bias=None,
        logit_scale=1.0,
        softcap=None,
        rotations=rotations,
        key_bias=None,
        causal=True,
        residual=True,
    )


@pytest.fixture(params=[(SECOND, SECOND), (SECOND, FIRST)], ids=["head with the last layer", "head with the embedding"])
def decoder(request):
    with FakeTensorMode():
        yield spread((FIRST, SECOND, SECOND), *request.param)


def runs():
    return (torch.zeros(2, 7, dtype=torch.long, device=FIRST) for _ in range(2))


def test_mixing_devices_raises(decoder):
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(2, device=FIRST) + torch.zeros(2, device=SECOND)


@pytest.mark.parametrize("site", SITES)
def test_every_sites_variants_stay_on_their_layers_devices(decoder, site, monkeypatch):
    monkeypatch.setattr(variants, "first_apart", lambda *_: 3)  # it looks at values, and there are none
    clean, hijacked = runs()
    source, base = trace_both(decoder, clean, hijacked, keep=variants.kept_for(site))
    assert [stream.device for stream in base.resid] == [FIRST, SECOND, SECOND, SECOND]
    for final in variants.variants_of(decoder, base, source, site, ((-1,), (-3, -2)), 2.0**30):
        answers = torch.zeros(2, dtype=torch.long, device=decoder.unembed.device)
        difference = decoder.logit_difference(final[:, :, -1], answers, answers)
        assert difference.device == decoder.unembed.device
        assert decoder.logits(final[:, :, -1]).device == decoder.unembed.device


@pytest.mark.parametrize("site", ["z", "resid_pre", "pattern"])
def test_gradients_cross_devices(decoder, site):
    base, source = runs()
    answers = torch.zeros(2, dtype=torch.long, device=decoder.unembed.device)
    chosen = torch.ones(2, 1, 2, dtype=torch.bool, device=FIRST)
    found = patching_effects(decoder, Pairs(base, source, answers, answers, chosen), site)
    assert found.effect.shape[:2] == (2, 3)


def test_an_edit_sees_each_layers_device(decoder):
    seen = {}

    def edit(site, index, value):
        seen[site, index] = value.device
        return value

    base, _ = runs()
    run(decoder, trace(decoder, base, keep=()).resid[0][:, None], edit=edit)
    assert {seen["z", index] for index in (1, 2)} == {SECOND}
    assert seen["mlp_out", 0] == FIRST
