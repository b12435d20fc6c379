"""Direct effects against sums by hand, of TransformerLens's patterns and values and Hugging Face's weights."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import standins
from helpers.closeness import rounding

from lcalens.core.errors import LcalensError
from lcalens.engine.direct import direct_effects
from lcalens.engine.reading import read_decoder
from lcalens.lca.model.bridge import lca_bridge
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.llm.models.load import load_model
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.split import split

FAMILIES = ("gpt2", "gemma", "gemma2", "gemma3", "llama")
POST_NORMS = ("gemma2", "gemma3")


def contexts(model, batch=3, length=9, seed=1):
    return torch.randint(5, model.cfg.d_vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def answers(logits):
    """The likeliest and the least likely next token of each row: a metric that moves by much more than 1."""
    return logits[:, -1].argmin(-1), logits[:, -1].argmax(-1)


def toy(m=4, d=8, a=12, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    model = LCAForCausalLM(LCAConfig(m=m, d_model=d, d_head=a)).eval()
    with torch.no_grad():
        model.embed.weight.mul_(2)
        for linear in (model.attn.q, model.attn.k, model.attn.v):
            linear.weight.mul_(4)
    return model.to(dtype)


def parts_of(plain, family):
    """Hugging Face's own modules: of each layer what writes, and the norms."""
    if family == "gpt2":
        inner = plain.transformer
        return SimpleNamespace(
            first=inner.drop,
            final=inner.ln_f,
            layers=[SimpleNamespace(out=h.attn.c_proj, w_o=h.attn.c_proj.weight, mlp=h.mlp) for h in inner.h],
        )
    layers = []
    for layer in plain.model.layers:
        out = layer.self_attn.o_proj
        mlp = layer.post_feedforward_layernorm if family in POST_NORMS else layer.mlp
        layers.append(SimpleNamespace(out=out, w_o=out.weight.T, mlp=mlp, after=layer.post_attention_layernorm))
    return SimpleNamespace(first=plain.model.layers[0], final=plain.model.norm, layers=layers)


def seen_of(plain, modules, ids):
    """What goes into or comes out of modules in a plain forward pass, in double precision."""
    seen = {}

    def keep(name, side):
        def hook(module, given, found):
            value = given[0] if side == "in" else found
            seen[name] = value.detach().double()

        return hook

    handles = [module.register_forward_hook(keep(name, side)) for name, (module, side) in modules.items()]
    with torch.no_grad():
        plain(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def by_hand(stand, family, ids, true, false):
    """Every direct effect as a sum over one thing at a time, norms by their formulas."""
    plain, names = stand.plain, [f"blocks.{i}.attn.hook_{what}" for i in range(3) for what in ("pattern", "v")]
    # A bridge of its own: caching leaves Hugging Face's hooks behind.
    _, cache = load_model(stand.folder).run_with_cache(ids, names_filter=lambda name: name in names)
    parts = parts_of(plain, family)
    modules = {"final": (parts.final, "in"), "normed": (parts.final, "out")}
    modules["first"] = (parts.first, "out" if family == "gpt2" else "in")
    for i, layer in enumerate(parts.layers):
        modules |= {f"raw{i}": (layer.out, "out"), f"mlp{i}": (layer.mlp, "out")}
    seen = seen_of(plain, modules, ids)
    u = (plain.lm_head.weight[false] - plain.lm_head.weight[true]).detach().double()

    def rms(x, eps):
        return 1 / (x.square().mean(-1) + eps).sqrt()

    def final(write, row):
        """The frozen final norm's output for one write of one example, read along the answers."""
        x = seen["final"][row, -1]
        if family == "gpt2":
            scale = 1 / (x.var(correction=0) + 1e-5).sqrt()
            return (u[row] * (write - write.mean()) * scale * parts.final.weight.detach().double()).sum().item()
        gain = parts.final.weight.detach().double() + (1 if family.startswith("gemma") else 0)
        return (u[row] * write * rms(x, plain.config.rms_norm_eps) * gain).sum().item()

    def after(write, row, i):
        if family not in POST_NORMS:
            return write
        gain = 1 + parts.layers[i].after.weight.detach().double()
        return write * rms(seen[f"raw{i}"][row, -1], plain.config.rms_norm_eps) * gain

    batch, length = ids.shape
    heads, kv = 4, {"gpt2": 4, "gemma": 1}.get(family, 2)
    found = {
        "heads_by_source": torch.zeros(batch, 3, heads, length, dtype=torch.float64),
        "mlp": torch.zeros(batch, 3, dtype=torch.float64),
        "attention_bias": torch.zeros(batch, 3, dtype=torch.float64),
        "embedding": torch.tensor([final(seen["first"][row, -1], row) for row in range(batch)]).double(),
        "metric": (seen["normed"][:, -1] * u).sum(-1),
        "constant": (u * parts.final.bias.detach().double()).sum(-1) if family == "gpt2" else u.sum(-1) * 0,
    }
    for i, layer in enumerate(parts.layers):
        w_o = layer.w_o.detach().double().unflatten(0, (heads, -1))
        pattern, v = (cache[f"blocks.{i}.attn.hook_{what}"].double() for what in ("pattern", "v"))
        v = v if v.ndim == 4 else v.unflatten(-1, (kv, -1))
        for row in range(batch):
            found["mlp"][row, i] = final(seen[f"mlp{i}"][row, -1], row)
            if family == "gpt2":
                found["attention_bias"][row, i] = final(layer.out.bias.detach().double(), row)
            for head in range(heads):
                for s in range(length):
                    write = pattern[row, head, -1, s] * (v[row, s, head * kv // heads] @ w_o[head])
                    found["heads_by_source"][row, i, head, s] = final(after(write, row, i), row)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_is_the_sum_by_hand(standin, family):
    stand = standin(family)
    ids = contexts(stand.model)
    true, false = answers(stand.model(ids))
    found = direct_effects(read_decoder(stand.model), ids, true, false)
    expected = by_hand(stand, family, ids, true, false)
    assert (expected["metric"] > 1).all()
    assert expected["heads_by_source"].abs().amax() > 0.1
    for name, values in expected.items():
        size = expected["metric"].abs().max() if name != "heads_by_source" else values.abs().max()
        assert (getattr(found, name) - values).abs().max() <= 2e-5 * size, name
    if family == "gpt2":
        assert found.attention_bias.abs().max() > 1e-3
        assert found.constant.abs().max() > 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_sum_to_the_metric(standin, family):
    stand = standin(family)
    ids = contexts(stand.model, batch=6, length=14, seed=3)
    true, false = answers(stand.model(ids))
    found = direct_effects(read_decoder(stand.model), ids, true, false)
    whole = sum(found.balance.values())
    assert ((whole - found.metric).abs() <= 1e-4 * found.metric.abs()).all()
    torch.testing.assert_close(found.error, (whole - found.metric).abs())
    torch.testing.assert_close(found.heads, found.heads_by_source.sum(-1))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
def test_without_a_soft_cap_the_metric_is_the_logits(standin, family):
    model = standin(family).model
    ids = contexts(model)
    logits = model(ids)
    true, false = answers(logits)
    found = direct_effects(read_decoder(model), ids, true, false)
    rows = torch.arange(len(ids))
    torch.testing.assert_close(
        found.metric.float(), logits[rows, -1, false] - logits[rows, -1, true], rtol=1e-5, atol=0
    )


def test_a_soft_cap_is_left_off(standin):
    model = standin("gemma2").model
    ids = contexts(model)
    logits = model(ids)[:, -1].double()
    true, false = answers(model(ids))
    decoder = read_decoder(model)
    # Tokens that the cap of 15 has not flattened, so that it can be undone.
    middling = logits.abs().argsort(-1)[:, :2]
    true, false = middling[:, 0], middling[:, 1]
    rows = torch.arange(len(ids))
    undone = 15 * torch.atanh(logits / 15)
    found = direct_effects(decoder, ids, true, false)
    torch.testing.assert_close(found.metric, undone[rows, false] - undone[rows, true], rtol=1e-3, atol=1e-4)


def test_a_batch_is_its_rows(standin):
    model = standin("gemma3").model
    ids = contexts(model)
    true, false = answers(model(ids))
    decoder = read_decoder(model)
    whole = direct_effects(decoder, ids, true, false)
    for i in range(len(ids)):
        alone = direct_effects(decoder, ids[i : i + 1], true[i : i + 1], false[i : i + 1])
        for name in ("heads_by_source", "mlp", "embedding", "metric"):
            size = whole.metric.abs().max()
            assert (getattr(alone, name)[0] - getattr(whole, name)[i]).abs().max() <= 1e-5 * size


@pytest.mark.parametrize("kind", ["final", "after attention"])
def test_a_norm_that_is_none_of_the_known_is_refused(standin, kind):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return x * x.abs().sqrt()

    model = standin("gemma2").model
    decoder = read_decoder(model)
    if kind == "final":
        decoder = replace(decoder, final_norm=Odd())
    else:
        decoder = replace(decoder, layers=(replace(decoder.layers[0], after_attention=Odd()), *decoder.layers[1:]))
    ids = contexts(model)
    with pytest.raises(LcalensError, match="its parts sum to"):
        direct_effects(decoder, ids, *answers(model(ids)))


# --- the toy model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "d", "a"), [(3, 8, 4), (4, 8, 12), (5, 6, 6), (4, 20, 8)])
def test_the_toys_metric_is_attention_times_recall(m, d, a):
    model = toy(m, d, a)
    ids = torch.randint(2**m, (4, 11), generator=torch.Generator().manual_seed(2))
    bridge = lca_bridge(model)
    true, false = answers(bridge(ids))
    found = direct_effects(read_decoder(bridge), ids, true, false)
    embed, w_v = model.embed.weight.detach().double(), model.attn.v.weight.detach().double()
    query = embed[ids[:, -1]] @ model.attn.q.weight.detach().double().T
    keys = embed[ids] @ model.attn.k.weight.detach().double().T
    attention = ((keys * query[:, None]).sum(-1) / a**0.5).softmax(-1)
    metric = torch.zeros(4, dtype=torch.float64)
    for row in range(4):
        for at, token in enumerate(ids[row].tolist()):
            recall = (embed[false[row]] - embed[true[row]]) @ w_v @ embed[token]
            assert abs(found.recall[row, 0, 0, at] - recall) < 1e-5 * max(1.0, abs(recall.item()))
            metric[row] += attention[row, at] * recall
    assert metric.abs().min() > 1
    torch.testing.assert_close(found.heads_by_source.sum((1, 2, 3)), metric, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.metric, metric, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.pattern[:, 0, 0], attention, rtol=0, atol=1e-5)
    assert (found.scale == 1).all()
    for nothing in (found.embedding, found.mlp, found.attention_bias, found.constant):
        assert not nothing.any()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_norms_epsilon_is_part_of_its_scale(tmp_path, family):
    """So large here that leaving it out would be seen: at 1e-5 it hides below the tolerance."""
    epsilon = {"layer_norm_epsilon" if family == "gpt2" else "rms_norm_eps": 0.5}
    model = load_model(standins.save_standin(tmp_path / family, family, **epsilon))
    ids = contexts(model)
    logits = model(ids)
    true, false = answers(logits)
    found = direct_effects(read_decoder(model), ids, true, false)
    rows = torch.arange(len(ids))
    assert (found.metric > 1).all()
    assert (found.error <= 1e-5 * found.heads_by_source.abs().sum((1, 2, 3))).all()
    if family != "gemma2":  # whose logits are behind a soft cap
        metric = logits[rows, -1, false] - logits[rows, -1, true]
        torch.testing.assert_close(found.metric.float(), metric, rtol=1e-4, atol=0)


def test_the_toy_in_double_precision():
    bridge = lca_bridge(toy(dtype=torch.float64))
    ids = torch.randint(16, (4, 11), generator=torch.Generator().manual_seed(2))
    true, false = answers(bridge(ids))
    found = direct_effects(read_decoder(bridge), ids, true, false)
    assert found.error.max() <= 1e-12 * found.metric.abs().max()


# --- real weights ---------------------------------------------------------------------------------------------------

FACTS = [
    ("The Eiffel Tower is in", "Paris", "Chicago", "The Eiffel Tower"),
    ("The capital of France is", "Paris", "Rome", "France"),
    ("The mother tongue of Dante is", "Italian", "Greek", "Dante"),
    ("The capital of Japan is", "Tokyo", "Madrid", "Japan"),
]


@pytest.mark.real
@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_real_models_balance(real_model, name):
    model = real_model(name)
    prompts, true, false, subjects = (list(column) for column in zip(*FACTS, strict=True))
    contrast = Contrast(
        [f"Do not think of Monday. {prompt}" for prompt in prompts],
        [f"Do not think of {word}. {prompt}" for prompt, word in zip(prompts, false, strict=True)],
        true=[f" {word}" for word in true],
        false=[f" {word}" for word in false],
        tokenizer=model,
        spans={"word": false, "subject": subjects, "prompt": prompts},
    )
    assert contrast.aligned.all()
    found = split(model, contrast, progress=False)
    for index in range(len(contrast)):
        for side in ("clean", "hijacked"):
            logits = model(torch.tensor([getattr(contrast, side)[index]]))[0, -1]
            metric = logits[contrast.false[index][0]] - logits[contrast.true[index][0]]
            rounded = rounding(torch.float32, logits[contrast.true[index][0]], model.cfg.d_model)
            assert found.examples[side][index] == pytest.approx(metric.item(), abs=rounded)
    balance = found.wide("balance").set_index("part")
    assert balance["change"]["total"] > 1
    parts = balance["change"][["heads", "mlps", "embedding", "biases"]].sum()
    assert parts == pytest.approx(balance["change"]["total"], rel=1e-4)
    assert balance["error"]["largest error"] < 1e-4 * balance["clean"].abs()["total"]
    assert found.values["total"].sum() / 4 == pytest.approx(balance["change"]["heads"], rel=1e-9)
    # Both are the head's own output exchanged at the last position: the hijack is undone in part, and not by much more.
    recovery = found.wide("twin").set_index("twin")["recovery"]
    assert 0.05 < recovery["both"] < 1.5
    assert recovery["interaction"] == pytest.approx(recovery["both"] - recovery["pattern"] - recovery["values"])
