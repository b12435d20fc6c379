"""The toy bridge against the plain model, loops in double precision, a doubled stream, and sums done by hand."""

import copy
import math
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from helpers.closeness import rounding
from safetensors.torch import load_file
from transformer_lens import SVDInterpreter, patching
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools import analysis
from transformer_lens.tools.analysis import interchange

from lcalens.core.errors import LcalensError
from lcalens.core.provenance import active_hooks, fingerprint, model_info
from lcalens.core.tokens import source_tokenizer, tokenize
from lcalens.lca.model.bridge import LCAArchitectureAdapter, lca_bridge
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM, lca_tokenizer

# d_a below d, above it, equal to it; more dimensions than tokens.
SHAPES = [(3, 8, 4), (4, 8, 12), (5, 6, 6), (4, 20, 8)]
# Logits of `scaled` models are up to 60, sums over up to 20 dimensions; edits move them by more than 1.
ROUNDED = {"atol": rounding(torch.float32, 60, 20), "rtol": 1e-5}


def scaled(m=4, d=8, a=12, seed=0, dtype=torch.float32):
    """A random model loud enough that its logits, and what an edit does to them, exceed 1."""
    torch.manual_seed(seed)
    model = LCAForCausalLM(LCAConfig(m=m, d_model=d, d_head=a)).eval()
    with torch.no_grad():
        model.embed.weight.mul_(2)
        for linear in (model.attn.q, model.attn.k, model.attn.v):
            linear.weight.mul_(3)
        model.attn.v.weight.mul_(2)
    return model.to(dtype)


def contexts(model, batch=3, length=7, seed=1):
    return torch.randint(model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding(ids):
    """Padding on the left, on the right and in the middle."""
    mask = torch.ones_like(ids)
    mask[0, :3] = mask[1, -1] = mask[2, 2] = 0
    return mask


def by_hand(model, ids, mask=None, **edits):
    """Every stage in double precision, under its hook's name; an edit is a function of the stage's value."""
    w_e, w_q, w_k, w_v = (
        weight.detach().double()
        for weight in (model.embed.weight, model.attn.q.weight, model.attn.k.weight, model.attn.v.weight)
    )
    stages = {}

    def stage(name, value):
        stages[name] = edits[name](value) if name in edits else value
        return stages[name]

    x = stage("embed", w_e[ids])
    q = stage("q", torch.einsum("ad,bpd->bpa", w_q, x))
    k = stage("k", torch.einsum("ad,bpd->bpa", w_k, x))
    v = stage("v", torch.einsum("ed,bpd->bpe", w_v, x))
    scores = torch.einsum("bqa,bka->bqk", q, k) / math.sqrt(len(w_q))
    if mask is not None:
        scores = torch.where(mask[:, None, :].bool(), scores, -math.inf)
    exponents = stage("scores", scores).exp()
    pattern = stage("pattern", exponents / exponents.sum(-1, keepdim=True))
    z = stage("z", torch.einsum("bqk,bke->bqe", pattern, v))
    stages["logits"] = torch.einsum("te,bqe->bqt", w_e, z)
    return stages


def doubled_stream(model, length):
    """The same function as a standard transformer of TransformerLens: read one half of the stream, write the other."""
    d, a, vocab = model.config.d_model, model.config.d_head, model.config.vocab_size
    wide = max(a, d)
    sizes = {"d_model": 2 * d, "d_head": wide, "n_heads": 1, "n_layers": 1, "n_ctx": length, "d_vocab": vocab}
    kind = {"attn_only": True, "normalization_type": None, "attention_dir": "bidirectional"}
    native = TransformerBridge.boot_native(TransformerBridgeConfig(**sizes, **kind))
    attn = native.blocks[0].attn
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.zero_()
        native.embed.weight[:, :d] = model.embed.weight
        attn.q.weight[:a, :d] = model.attn.q.weight * math.sqrt(wide / a)  # it divides by the root of its own width
        attn.k.weight[:a, :d] = model.attn.k.weight
        attn.v.weight[:d, :d] = model.attn.v.weight
        attn.o.weight[d:, :d] = torch.eye(d)
        native.unembed.weight[:, d:] = model.embed.weight
    return native.eval()


# --- logits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "d", "a"), SHAPES)
@pytest.mark.parametrize("padded", [False, True])
def test_logits_are_the_plain_models(m, d, a, padded):
    model = scaled(m, d, a)
    bridge = lca_bridge(model)
    ids = contexts(model)
    mask = padding(ids) if padded else None
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask).logits
        torch.testing.assert_close(bridge(ids, attention_mask=mask), wanted, **ROUNDED)
        torch.testing.assert_close(bridge(ids, attention_mask=mask, logits_to_keep=1), wanted[:, -1:], **ROUNDED)
    assert wanted.std() > 1


@pytest.mark.parametrize(("m", "d", "a"), SHAPES)
def test_logits_are_the_doubled_streams(m, d, a):
    model = scaled(m, d, a)
    ids = contexts(model)
    native, bridge = doubled_stream(model, 7), lca_bridge(model)
    with torch.no_grad():
        for mask in (None, padding(ids)):
            torch.testing.assert_close(bridge(ids, attention_mask=mask), native(ids, attention_mask=mask), **ROUNDED)


@pytest.mark.parametrize(("m", "d", "a"), SHAPES)
def test_the_last_logits_are_the_papers_equation_in_loops(m, d, a):
    """f(x) = W_E^T W_V attn(W_E chi(x)), last column: U softmax((W_K U)^T (W_Q u) / sqrt(d_a))."""
    model = scaled(m, d, a, dtype=torch.float64)
    ids = contexts(model)
    with torch.no_grad():
        logits = lca_bridge(model)(ids)[:, -1]
    embed, w_q, w_k, w_v = (
        weight.tolist()
        for weight in (model.embed.weight, model.attn.q.weight, model.attn.k.weight, model.attn.v.weight)
    )

    def times(matrix, vector):
        return [math.fsum(entry * x for entry, x in zip(row, vector, strict=True)) for row in matrix]

    for context, got in zip(ids.tolist(), logits.tolist(), strict=True):
        columns = [embed[token] for token in context]
        query = times(w_q, columns[-1])
        weights = []
        for column in columns:
            key = times(w_k, column)
            weights.append(math.exp(math.fsum(x * y for x, y in zip(key, query, strict=True)) / math.sqrt(a)))
        total = math.fsum(weights)
        mean = [
            math.fsum(weight / total * column[i] for weight, column in zip(weights, columns, strict=True))
            for i in range(d)
        ]
        assert got == pytest.approx(times(embed, times(w_v, mean)), abs=1e-11)


def test_left_padded_equals_single():
    model = scaled()
    bridge = lca_bridge(model)
    rows = [[1, 2, 3, 4, 5], [7, 7], [9]]
    ids, mask = torch.zeros(3, 5, dtype=torch.long), torch.zeros(3, 5, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, 5 - len(row) :], mask[i, 5 - len(row) :] = torch.tensor(row), 1
    with torch.no_grad():
        together = bridge(ids, attention_mask=mask)
        without = bridge(ids)
        for i, row in enumerate(rows):
            alone = bridge(torch.tensor([row]))[0]
            torch.testing.assert_close(together[i, 5 - len(row) :], alone, **ROUNDED)
        assert (without - together)[1].abs().max() > 1, "the mask is for nothing"


def test_strings_are_read_as_bits_and_padded():
    bridge = lca_bridge(scaled())
    texts = ["0001 1111 0110", "1000"]
    assert bridge.to_tokens(texts[0]).tolist() == [[1, 15, 6]], "no BOS"
    assert bridge.to_str_tokens(texts[0]) == ["0001", "1111", "0110"]
    assert bridge.to_single_token("1000") == 8
    with torch.no_grad():
        together = bridge(texts)
        _, cache = bridge.run_with_cache(texts)
        for i, text in enumerate(texts):
            torch.testing.assert_close(together[i, -1], bridge(text)[0, -1], **ROUNDED)
            torch.testing.assert_close(together[i, -1], bridge(bridge.to_tokens(text))[0, -1], **ROUNDED)
    assert cache["pattern", 0][1, 0, -1].tolist() == [0, 0, 1]
    with pytest.raises(Exception, match="UNK"):
        bridge.to_tokens("0001 what")


# --- hooks ----------------------------------------------------------------------------------------------------------

HOOKS = {
    "embed": "hook_embed",
    "q": "blocks.0.attn.hook_q",
    "k": "blocks.0.attn.hook_k",
    "v": "blocks.0.attn.hook_v",
    "scores": "blocks.0.attn.hook_attn_scores",
    "pattern": "blocks.0.attn.hook_pattern",
    "z": "blocks.0.attn.hook_z",
}


def as_hook(stage, value):
    """A stage's value with the head's axis, where a hook shows one."""
    if stage == "embed":
        return value
    return value[:, None] if stage in ("scores", "pattern") else value[:, :, None]


@pytest.mark.parametrize(("m", "d", "a"), SHAPES)
@pytest.mark.parametrize("padded", [False, True])
def test_caches_hold_every_stage(m, d, a, padded):
    model = scaled(m, d, a)
    bridge = lca_bridge(model)
    bridge.set_use_attn_result(True)
    ids = contexts(model)
    mask = padding(ids) if padded else None
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(ids, attention_mask=mask)
    wanted = by_hand(model, ids, mask)
    for stage, hook in HOOKS.items():
        torch.testing.assert_close(cache[hook], as_hook(stage, wanted[stage]).float(), **ROUNDED)
    assert cache["q", 0].shape == cache["k", 0].shape == (3, 7, 1, a)
    assert cache["v", 0].shape == cache["z", 0].shape == (3, 7, 1, d)
    assert cache["pattern", 0].shape == cache["attn_scores", 0].shape == (3, 1, 7, 7)
    torch.testing.assert_close(cache["attn_scores", 0].softmax(-1), cache["pattern", 0], atol=0, rtol=0)
    torch.testing.assert_close(logits.double(), wanted["logits"], **ROUNDED)
    torch.testing.assert_close(cache["result", 0], as_hook("z", wanted["z"]).float(), **ROUNDED)
    for name in ("attn_out", "resid_mid", "resid_post"):
        torch.testing.assert_close(cache[name, 0], wanted["z"].float(), **ROUNDED)
    torch.testing.assert_close(cache["resid_pre", 0], cache["embed"], **ROUNDED)
    assert not cache["mlp_out", 0].any()
    _, at_end = bridge.run_with_cache(ids, attention_mask=mask, pos_slice=-1)
    for name in ("q", "z", "result"):
        torch.testing.assert_close(at_end[name, 0], cache[name, 0][:, -1:], **ROUNDED)


EDITS = {
    "embed": lambda x: x.flip(1),
    "q": lambda q: q * torch.linspace(-2, 2, q.shape[-1], dtype=q.dtype),
    "k": lambda k: k * torch.linspace(-2, 2, k.shape[-1], dtype=k.dtype),
    "v": lambda v: v * torch.linspace(-2, 2, v.shape[-1], dtype=v.dtype),
    "scores": lambda scores: scores - 3 * scores.flip(-1),
    "pattern": lambda pattern: pattern.flip(-1),
    "z": lambda z: z.cumsum(1),
}


@pytest.mark.parametrize(("m", "d", "a"), SHAPES)
@pytest.mark.parametrize("stage", list(HOOKS))
def test_an_edit_does_what_the_sum_by_hand_does(m, d, a, stage):
    model = scaled(m, d, a)
    bridge = lca_bridge(model)
    ids = contexts(model)
    wanted = by_hand(model, ids, **{stage: EDITS[stage]})["logits"]
    with torch.no_grad():
        got = bridge.run_with_hooks(ids, fwd_hooks=[(HOOKS[stage], lambda value, hook: EDITS[stage](value))])
        assert (got - bridge(ids)).abs().max() > 1
    torch.testing.assert_close(got.double(), wanted, **ROUNDED)


def test_every_hook_point_fires():
    bridge = lca_bridge(scaled())
    bridge.set_use_attn_result(True)
    bridge.set_use_hook_mlp_in(True)
    _, cache = bridge.run_with_cache(contexts(scaled()))
    silent = {"blocks.0.attn.hook_hidden_states"}  # TransformerLens gives it to every attention, and fires it in none
    assert set(bridge.hook_dict) - set(cache) == silent


def test_edits_of_what_comes_after_the_head():
    model = scaled()
    bridge = lca_bridge(model)
    ids = contexts(model)
    edit = EDITS["z"]
    wanted = by_hand(model, ids, z=edit)["logits"].float()
    plain = model(ids).logits.detach()

    def run(name, change):
        return bridge.run_with_hooks(ids, fwd_hooks=[(f"blocks.0.{name}", lambda value, hook: change(value))])

    with torch.no_grad():
        for name in ("hook_attn_out", "hook_resid_mid", "hook_resid_post"):
            torch.testing.assert_close(run(name, edit), wanted, **ROUNDED)
        bridge.set_use_attn_result(True)
        torch.testing.assert_close(bridge(ids), plain, **ROUNDED)
        torch.testing.assert_close(run("attn.hook_result", edit), wanted, **ROUNDED)
        bridge.set_use_attn_result(False)
        ones = torch.ones(8)
        torch.testing.assert_close(
            run("hook_mlp_out", lambda out: out + ones), plain + ones @ model.embed.weight.T, **ROUNDED
        )
        bridge.set_use_hook_mlp_in(True)
        torch.testing.assert_close(run("hook_mlp_in", lambda x: x + 9), plain, **ROUNDED)
        torch.testing.assert_close(bridge(model.embed(ids), start_at_layer=0), plain, **ROUNDED)


# --- the tools of TransformerLens -----------------------------------------------------------------------------------


def metric(logits):
    return (logits[..., -1, ::2] - logits[..., -1, 1::2]).sum(-1).mean()


def two_runs(model, bridge):
    clean, corrupt = contexts(model), contexts(model, seed=2)
    with torch.no_grad():
        return clean, corrupt, bridge.run_with_cache(clean)[1]


def put(source, at):
    """An edit that takes `source` at an index."""

    def edit(value):
        value = value.clone()
        value[at] = source[at]
        return value

    return edit


PATCHES = {
    "resid_pre": ("embed", "pos"),
    "resid_mid": ("z", "pos"),
    "attn_out": ("z", "pos"),
    "attn_head_out_by_pos": ("z", "pos"),
    "attn_head_out_all_pos": ("z", "all"),
    "attn_head_q_by_pos": ("q", "pos"),
    "attn_head_q_all_pos": ("q", "all"),
    "attn_head_k_by_pos": ("k", "pos"),
    "attn_head_k_all_pos": ("k", "all"),
    "attn_head_v_by_pos": ("v", "pos"),
    "attn_head_v_all_pos": ("v", "all"),
    "attn_head_pattern_by_pos": ("pattern", "pos"),
    "attn_head_pattern_all_pos": ("pattern", "all"),
    "attn_head_pattern_dest_src_pos": ("pattern", "pair"),
}


@pytest.mark.parametrize(("m", "d", "a"), SHAPES[:2])
@pytest.mark.parametrize("name", list(PATCHES))
def test_activation_patching(m, d, a, name):
    model = scaled(m, d, a)
    bridge = lca_bridge(model)
    clean, corrupt, cache = two_runs(model, bridge)
    tool = getattr(patching, f"get_act_patch_{name}")
    with torch.no_grad():
        got = tool(bridge, corrupt, cache, metric)
    stage, where = PATCHES[name]
    source = by_hand(model, clean)[stage]
    places = {
        "all": [slice(None)],
        "pos": [(slice(None), p) for p in range(7)],
        "pair": [(slice(None), p, q) for p in range(7) for q in range(7)],
    }[where]
    wanted = [metric(by_hand(model, corrupt, **{stage: put(source, place)})["logits"]).item() for place in places]
    base = metric(by_hand(model, corrupt)["logits"]).item()
    effect = max(abs(value - base) for value in wanted)
    assert effect > 1
    assert got.flatten().tolist() == pytest.approx(wanted, abs=ROUNDED["atol"], rel=1e-5)
    native = doubled_stream(model, 7)
    if name != "resid_mid":  # the doubled stream carries the input past its head, and names no middle without an MLP
        with torch.no_grad():
            _, native_cache = native.run_with_cache(clean)
            torch.testing.assert_close(got, tool(native, corrupt, native_cache, metric), **ROUNDED)


def test_activation_patching_of_everything():
    model = scaled()
    bridge = lca_bridge(model)
    _, corrupt, cache = two_runs(model, bridge)
    one = {name: getattr(patching, f"get_act_patch_{name}") for name in [*PATCHES, "mlp_out"]}
    with torch.no_grad():
        block = patching.get_act_patch_block_every(bridge, corrupt, cache, metric)
        for row, name in zip(block, ("resid_pre", "attn_out", "mlp_out"), strict=True):
            torch.testing.assert_close(row, one[name](bridge, corrupt, cache, metric), **ROUNDED)
        assert (block[2] - metric(bridge(corrupt))).abs().max() < ROUNDED["atol"], "the MLP's zeros do nothing"
        heads = patching.get_act_patch_attn_head_all_pos_every(bridge, corrupt, cache, metric)
        for row, name in zip(heads, ("out", "q", "k", "v", "pattern"), strict=True):
            torch.testing.assert_close(row, one[f"attn_head_{name}_all_pos"](bridge, corrupt, cache, metric), **ROUNDED)


def test_attribution_patching():
    """By node: exact at z, which the logits are linear in; the gradient by hand at the embedding."""
    model = scaled()
    bridge = lca_bridge(model)
    clean, corrupt = contexts(model)[:1], contexts(model, seed=2)[:1]
    scores = analysis.attribution_patch(bridge, clean, corrupt, metric).node_scores
    base = metric(by_hand(model, corrupt)["logits"])
    z = by_hand(model, clean)["z"]
    lifted = []

    def lift(x):
        lifted.append(x.clone().requires_grad_(True))
        return lifted[0]

    metric(by_hand(model, corrupt, embed=lift)["logits"]).backward()
    by_embedding = ((by_hand(model, clean)["embed"] - lifted[0].detach()) * lifted[0].grad).sum((0, 2))
    for node, score in scores.items():
        wanted = {
            "mlp_out": 0.0,
            "embed": by_embedding[node.position].item(),
            "attn_head_out": (
                metric(by_hand(model, corrupt, z=put(z, (slice(None), node.position)))["logits"]) - base
            ).item(),
        }[node.kind]
        assert score == pytest.approx(wanted, abs=1e-4, rel=1e-5)
    assert max(map(abs, scores.values())) > 10
    assert len(scores) == 21
    assert all(parameter.grad is None for parameter in model.parameters())


def test_direct_logit_attribution_leaves_out_the_embedding():
    model = scaled()
    bridge = lca_bridge(model)
    ids = contexts(model)
    bridge.enable_compatibility_mode(no_processing=True)
    with torch.no_grad():
        plain = model(ids).logits
        torch.testing.assert_close(bridge(ids), plain, **ROUNDED)
        wanted = (plain[:, -1, 3] - plain[:, -1, 5]).tolist()
        for unit, labels in (("component", ["0_attn_out", "0_mlp_out"]), ("head", ["L0H0", "remainder"])):
            result = analysis.direct_logit_attribution(bridge, ids, 3, 5, unit=unit)
            assert result.labels == labels
            assert result.attribution[0].tolist() == pytest.approx(wanted, abs=ROUNDED["atol"], rel=1e-5)
            assert result.attribution[1].abs().max() < ROUNDED["atol"]
    assert max(map(abs, wanted)) > 1


def test_the_stream_is_decomposed_into_the_head_alone():
    model = scaled()
    bridge = lca_bridge(model)
    ids = contexts(model)
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(ids)
        _, single = bridge.run_with_cache(ids[:1], remove_batch_dim=True)
    for part, where in ((cache, slice(None)), (cache.apply_slice_to_batch_dim(1), 1), (single, 0)):
        parts, labels = part.decompose_resid(return_labels=True)
        assert labels == ["0_attn_out", "0_mlp_out"]
        torch.testing.assert_close(parts.sum(0) @ bridge.W_U, logits[where], **ROUNDED)
    heads, labels = cache.stack_head_results(incl_remainder=True, return_labels=True)
    assert labels == ["L0H0", "remainder"]
    torch.testing.assert_close(heads[0] @ bridge.W_U, logits, **ROUNDED)
    assert heads[1].abs().max() < ROUNDED["atol"]
    full, labels = cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True)
    assert labels == ["L0H0", "0_mlp_out", "bias"]
    torch.testing.assert_close(full.sum(0) @ bridge.W_U, logits, **ROUNDED)


def test_the_logit_lens():
    model = scaled()
    bridge = lca_bridge(model)
    ids = contexts(model)
    with torch.no_grad():
        lens = analysis.logit_lens(bridge, ids, positions=None, return_type="logits")
        assert lens.labels == ["0_pre", "final_post"]
        torch.testing.assert_close(lens.values[0], model.embed(ids) @ model.embed.weight.T, **ROUNDED)
        torch.testing.assert_close(lens.values[1], model(ids).logits, **ROUNDED)


@pytest.mark.parametrize(("m", "d", "a"), SHAPES)
def test_the_weights_and_circuits(m, d, a):
    model = scaled(m, d, a)
    bridge = lca_bridge(model)
    w_e, w_q, w_k, w_v = (
        x.detach() for x in (model.embed.weight, model.attn.q.weight, model.attn.k.weight, model.attn.v.weight)
    )
    with torch.no_grad():
        assert bridge.W_Q.shape == bridge.W_K.shape == (1, 1, d, a)
        assert bridge.W_V.shape == bridge.W_O.shape == (1, 1, d, d)
        assert torch.equal(bridge.W_E, w_e)
        assert torch.equal(bridge.W_U, w_e.T)
        assert not bridge.b_U.any()
        torch.testing.assert_close(bridge.OV.AB[0, 0], w_v.T, **ROUNDED)
        torch.testing.assert_close(bridge.QK.AB[0, 0], w_q.T @ w_k, **ROUNDED)
        whole = (bridge.W_E @ bridge.OV @ bridge.W_U).AB[0, 0]  # (token read, token written)
        torch.testing.assert_close(whole, w_e @ w_v.T @ w_e.T, atol=1e-4, rtol=1e-5)
        vectors = SVDInterpreter(bridge).get_singular_vectors("OV", layer_index=0, head_index=0, num_vectors=2)
        written = torch.linalg.svd(w_v).U[:, :2]  # W_V puts its outputs on the left
    torch.testing.assert_close(vectors[:, 0].abs(), (w_e @ written).abs(), atol=1e-4, rtol=1e-4)


def test_interchange():
    model = scaled()
    bridge = lca_bridge(model)
    clean, corrupt, _ = two_runs(model, bridge)
    last = torch.full((3,), 6)

    def task(ids):
        return bridge(ids)[:, -1]

    stages = {"blocks.0.hook_attn_out": "z", "hook_embed": "embed"}
    for hook, stage in stages.items():
        source = analysis.collect_activations(bridge, hook, clean, task, positions=last)
        whole = analysis.SubspaceInterchange(torch.eye(8))
        got = analysis.run_with_intervention(bridge, hook, whole, corrupt, source, task, positions=last)
        edit = put(by_hand(model, clean)[stage], (slice(None), 6))
        wanted = by_hand(model, corrupt, **{stage: edit})["logits"][:, -1]
        torch.testing.assert_close(got.detach().double(), wanted, **ROUNDED)


def test_what_has_no_meaning_here_is_refused():
    model = scaled()
    bridge = lca_bridge(model)
    clean, corrupt, cache = two_runs(model, bridge)
    edges = analysis.EdgeAttributionConfig(granularity="edge")
    refusals = [
        lambda: analysis.attribution_patch(bridge, clean, corrupt, metric, edges),
        lambda: analysis.faithfulness(bridge, clean[:1], corrupt[:1], metric, []),
        lambda: patching.get_act_patch_direct_path(bridge, corrupt, cache, cache, metric, 0, 0),
        lambda: bridge.set_use_split_qkv_input(True),
        lambda: bridge.set_use_attn_in(True),
        lambda: bridge(clean, return_type="loss"),
        lambda: bridge.generate(clean, max_new_tokens=1),
        lambda: SVDInterpreter(bridge).get_singular_vectors("w_in", layer_index=0),
    ]
    for refusal in refusals:
        with pytest.raises(NotImplementedError):
            refusal()
    with pytest.raises(KeyError, match="hook_post"):
        cache.get_full_resid_decomposition()
    torch.testing.assert_close(bridge(clean), model(clean).logits, **ROUNDED)


def test_weights_are_never_processed():
    model = scaled()
    bridge = lca_bridge(model)
    ids = contexts(model)
    wanted = model(ids).logits
    for processing in (bridge.enable_compatibility_mode, bridge.enable_compatibility_mode, bridge.process_weights):
        with pytest.raises(LcalensError, match=r"no_processing.*True"):
            processing()
        torch.testing.assert_close(bridge(ids), wanted, **ROUNDED)
        torch.testing.assert_close(model(ids).logits, wanted, **ROUNDED)
    bridge.enable_compatibility_mode(no_processing=True)
    torch.testing.assert_close(bridge(ids), wanted, **ROUNDED)


# --- one set of parameters ------------------------------------------------------------------------------------------


def anatomy(model):
    """What a user can see of a model without running it."""
    return (
        [(name, type(module), id(module), module.training) for name, module in model.named_modules()],
        [(name, id(parameter), parameter.requires_grad) for name, parameter in model.named_parameters()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        [sorted(vars(module)) for module in model.modules()],
        model.config.to_dict(),
    )


def test_the_model_stays_as_it_is_and_can_be_saved(tmp_path):
    model = scaled().train()
    before = anatomy(model)
    bridges = [lca_bridge(model) for _ in range(2)]
    bridges[0].set_use_attn_result(True)
    ids = contexts(model)
    for bridge in bridges:
        bridge.run_with_cache(ids)
        torch.testing.assert_close(bridge(ids), model(ids).logits, **ROUNDED)
    assert anatomy(model) == before
    assert not bridges[1].training, "tools refuse a model in training mode"
    model.save_pretrained(tmp_path / "toy")
    loaded = LCAForCausalLM(model.config)
    loaded.load_state_dict(load_file(tmp_path / "toy" / "model.safetensors"))
    torch.testing.assert_close(loaded(ids).logits, bridges[0](ids), **ROUNDED)


def test_it_follows_training():
    model = scaled()
    bridge = lca_bridge(model)
    ids, labels = contexts(model), torch.tensor([1, 2, 3])
    before, print_before = bridge(ids), fingerprint(bridge)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(ids, labels=labels).loss.backward()
    optimizer.step()
    after = model(ids).logits
    assert (after - before).abs().max() > 1
    torch.testing.assert_close(bridge(ids), after, **ROUNDED)
    torch.testing.assert_close(bridge.W_U, model.embed.weight.T, **ROUNDED)
    assert fingerprint(bridge) != print_before


def test_gradients_are_the_models():
    model = scaled()
    bridge = lca_bridge(model)
    ids = contexts(model)
    model.zero_grad()
    metric(model(ids).logits).backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    metric(bridge(ids)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], **ROUNDED)
    assert {id(p) for p in bridge.parameters()} == {id(p) for p in model.parameters()}, "W_O is nobody's to train"


def test_copies_go_their_own_way():
    model = scaled()
    bridge = lca_bridge(model)
    ids = contexts(model)
    before = model(ids).logits
    untrained = interchange.reinitialized(bridge, seed=0)
    assert (untrained(ids) - before).abs().max() > 1
    again = copy.deepcopy(bridge)
    torch.testing.assert_close(again(ids), before, **ROUNDED)
    assert again.run_with_cache(ids)[1].decompose_resid().shape[0] == 2
    torch.testing.assert_close(model(ids).logits, before, **ROUNDED)


# --- what it is, and what it is not made of -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_says_what_it_is(dtype):
    model = scaled(dtype=dtype)
    bridge = lca_bridge(model)
    info = model_info(bridge)
    assert (info.source, info.family, info.revision, info.quantisation) == ("lca", "lca", "", "none")
    assert (info.dtype, info.processing) == (str(dtype).removeprefix("torch."), "raw")
    assert active_hooks(bridge) == []
    assert (bridge.cfg.d_model, bridge.cfg.d_head, bridge.cfg.n_heads, bridge.cfg.n_layers) == (8, 12, 1, 1)
    assert (bridge.cfg.d_vocab, bridge.cfg.d_vocab_out, bridge.cfg.dtype) == (16, 16, dtype)
    assert (bridge.cfg.attention_dir, bridge.cfg.normalization_type) == ("bidirectional", None)
    assert bridge.cfg.d_mlp == 0
    ids = contexts(model)
    torch.testing.assert_close(bridge(ids), model(ids).logits, **ROUNDED)


def test_its_tokenizer():
    model = scaled()
    bridge = lca_bridge(model)
    assert source_tokenizer(bridge).pad_token is None, "the source's own is untouched"
    batch = tokenize(bridge, ["0001 1111 0110", "1000"])
    assert batch.ids.tolist() == [[1, 15, 6], [0, 0, 8]]
    logits = bridge(batch.ids, attention_mask=batch.attention_mask)
    torch.testing.assert_close(logits[1, -1], bridge("1000")[0, -1], **ROUNDED)
    own = lca_tokenizer(4)
    own.add_special_tokens({"pad_token": "[PAD]"})
    bridge = lca_bridge(model, tokenizer=own)
    assert source_tokenizer(bridge) is own
    assert (own.padding_side, bridge.tokenizer.padding_side) == ("right", "left")
    assert bridge.tokenizer.pad_token == "[PAD]"
    own.add_special_tokens({"bos_token": "[BOS]"})
    assert lca_bridge(model, tokenizer=own).to_tokens("0001 1000").tolist() == [[1, 8]], "this world has no BOS"


def test_wrong_arguments():
    model = scaled()
    bridge = lca_bridge(model)
    wrong = [
        (torch.nn.Linear(2, 2), r"model: .*Linear.*LCAForCausalLM\(LCAConfig"),
        (None, "model: .*NoneType.*None.*from_pretrained"),
        ("toy", "model: .*str.*'toy'.*from_pretrained"),
        (bridge, "model: .*LCABridge.*from_pretrained"),
        (bridge.original_model, "model: .*bridge's own.*made from"),
    ]
    for given, message in wrong:
        with pytest.raises(LcalensError, match=message):
            lca_bridge(given)
    with pytest.raises(LcalensError, match=r"tokenizer: .*str.*'bits'.*lca_tokenizer"):
        lca_bridge(model, tokenizer="bits")


# --- TransformerLens's own entrance ---------------------------------------------------------------------------------


def test_the_adapter_is_found_by_its_entry_point():
    (found,) = entry_points(group="transformer_lens.architectures", name="LCAForCausalLM")
    assert found.load() is LCAArchitectureAdapter


AFTERWARDS = """
from lcalens.core.provenance import model_info
from transformers import AutoModelForCausalLM

ids = torch.randint(32, (3, 7))
texts = ["00001 11111 01101", "10000 00011"]
loaded = AutoModelForCausalLM.from_pretrained("toy")
again = lca_bridge(loaded)
assert effect.shape == (1, 3, 1)
assert type(booted) is type(bridge) is type(again)
assert model_info(booted).source == model_info(again).source == "toy"
for one in (booted, again):
    for name in ("d_model", "d_head", "d_mlp", "d_vocab", "n_ctx", "n_heads", "n_layers", "attention_dir",
                 "default_prepend_bos", "positional_embedding_type", "normalization_type"):
        assert getattr(one.cfg, name) == getattr(bridge.cfg, name), name
    assert torch.equal(one(ids), bridge(ids))
    assert (one(texts) - bridge(texts))[:, -1].abs().max() < 1e-6
    assert one.run_with_cache(ids)[1].decompose_resid(return_labels=True)[1] == ["0_attn_out", "0_mlp_out"]
    assert one.to_tokens(texts[0]).tolist() == [[1, 31, 13]]
print("all true")
"""


def test_the_page_does_what_it_says(tmp_path):
    """Every line of docs/toy-bridge.md, as a user runs it, and that the line about the list is needed."""
    page = (Path(__file__).parents[2] / "docs" / "toy-bridge.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    line = 'SUPPORTED_ARCHITECTURES["LCAForCausalLM"]'
    before, after = second.split(line)
    without = """
try:
    TransformerBridge.boot_transformers("toy")
except ValueError as error:
    assert "supported architecture" in str(error)
else:
    raise AssertionError("somebody added it silently")
"""
    script = tmp_path / "page.py"
    script.write_text(first + before + without + line + after + AFTERWARDS, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-W", "error", script], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.stdout.endswith("all true\n"), ran.stderr
