"""Loaded models against Hugging Face's own: the same logits, alone and in batches; nothing of the user's changes."""

import copy

import pytest
import torch
from helpers import standins
from helpers.closeness import rounding
from safetensors.torch import load_file

from lcalens.core.provenance import active_hooks, fingerprint, model_info
from lcalens.core.tokens import source_tokenizer, tokenize
from lcalens.llm.models.load import load_model

# Logits near 20, through three layers of 64 dimensions.
TOLERANCE = {"rtol": 0, "atol": rounding(torch.float32, 20, 3 * 64)}
TEXTS = [
    "The capital of France is",
    "x",
    "Do not think of Rome. Do not think of Athens. The capital of Italy is",
    "日本 🙂",
    "The mother tongue of Dante is",
]


def run(bridge, ids):
    with torch.no_grad():
        return bridge(torch.tensor([list(ids)]))[0]


@pytest.mark.parametrize("family", standins.FAMILIES)
def test_logits_are_hugging_faces_own(standin, family):
    one = standin(family)
    for text in TEXTS:
        ids = one.tokenizer(text).input_ids
        wanted = standins.logits_of(one.plain, ids)
        assert wanted.std() > 0.5
        torch.testing.assert_close(run(one.model, ids), wanted, **TOLERANCE)


@pytest.mark.parametrize("family", standins.FAMILIES)
def test_a_batch_is_what_its_texts_are_alone(standin, family):
    one = standin(family)
    batch = tokenize(one.model, TEXTS)
    assert (batch.attention_mask[:, 0] == 0).any(), "nothing was padded"
    with torch.no_grad():
        logits = one.model(batch.ids, attention_mask=batch.attention_mask)
    for i, text in enumerate(TEXTS):
        wanted = standins.logits_of(one.plain, one.tokenizer(text).input_ids)
        torch.testing.assert_close(logits[i, -len(wanted) :], wanted, **TOLERANCE)
        torch.testing.assert_close(logits[i, -1], wanted[-1], **TOLERANCE)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_batches_longer_than_a_sliding_window(tmp_path, family):
    standins.save_standin(tmp_path, family, sliding_window=8)
    bridge, plain = load_model(tmp_path), standins.hugging_face(tmp_path)
    batch = tokenize(bridge, TEXTS)
    assert batch.ids.shape[1] > 16
    with torch.no_grad():
        logits = bridge(batch.ids, attention_mask=batch.attention_mask)
    for i, mask in enumerate(batch.attention_mask.bool()):
        wanted = standins.logits_of(plain, batch.ids[i][mask].tolist())
        torch.testing.assert_close(logits[i, mask], wanted, **TOLERANCE)


@pytest.mark.parametrize("family", standins.FAMILIES)
def test_it_says_what_it_is(standin, family):
    one = standin(family)
    info = model_info(one.model)
    kind = {"gemma3": "gemma3_text"}.get(family, family)
    assert (info.source, info.family, info.dtype, info.quantisation) == (family, kind, "float32", "none")
    assert (info.processing, info.attention) == ("raw", "eager")
    assert one.model.original_model.config._attn_implementation == "eager"
    assert str(one.folder.parent) not in str(info.to_dict()), "a result must not tell the user's paths"
    assert not one.model.original_model.training
    assert active_hooks(one.model) == []


def test_its_tokenizer_is_the_sources(standin):
    for family in ("gpt2", "gemma"):
        one = standin(family)
        assert source_tokenizer(one.model)("x y").input_ids == one.tokenizer("x y").input_ids
        assert tokenize(one.model, "x y").ids.tolist() == [one.tokenizer("x y").input_ids]


def test_attention_patterns_can_be_read(standin):
    one = standin("llama")
    ids = one.tokenizer(TEXTS[0]).input_ids
    with torch.no_grad():
        _, cache = one.model.run_with_cache(torch.tensor([ids]), names_filter="blocks.1.attn.hook_pattern")
        wanted = one.plain(torch.tensor([ids]), output_attentions=True).attentions[1]
    torch.testing.assert_close(cache["blocks.1.attn.hook_pattern"], wanted, **TOLERANCE)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", torch.float64])
def test_a_dtype_is_given(standin, dtype):
    one = standin("llama")
    bridge = load_model(one.folder, dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {parameter.dtype for parameter in bridge.original_model.parameters()} == {wanted}
    assert model_info(bridge).dtype == str(wanted).removeprefix("torch.")
    plain = standins.hugging_face(one.folder, dtype=wanted)
    ids = one.tokenizer(TEXTS[0]).input_ids
    with torch.no_grad():
        torch.testing.assert_close(run(bridge, ids), plain(torch.tensor([ids])).logits[0])


def test_paths_and_strings_and_an_own_tokenizer(standin, monkeypatch):
    one = standin("llama")
    monkeypatch.chdir(one.folder.parent)
    ids = one.tokenizer(TEXTS[0]).input_ids
    wanted = standins.logits_of(one.plain, ids)
    for source in (str(one.folder), one.folder, "llama", "./llama"):
        torch.testing.assert_close(run(load_model(source), ids), wanted, **TOLERANCE)
    other = copy.deepcopy(one.tokenizer)
    other.backend_tokenizer.post_processor = None
    assert source_tokenizer(load_model(one.folder, tokenizer=other)) is other


# --- a model already loaded -----------------------------------------------------------------------------------------


def everything_of(model):
    """What a user can see of a model without running it."""
    return {
        "classes": [(name, type(module)) for name, module in model.named_modules()],
        "state": {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()},
        "flags": [(name, parameter.requires_grad) for name, parameter in model.named_parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()),
        "own": [sorted(vars(module)) for module in model.modules()],
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
    }


def assert_same(before, after):
    assert {name: before[name] for name in before if name != "state"} == {
        name: after[name] for name in after if name != "state"
    }
    assert before["state"].keys() == after["state"].keys()
    for name, (place, value) in before["state"].items():
        assert after["state"][name][0] == place, f"{name} is another tensor now"
        assert torch.equal(after["state"][name][1], value)


@pytest.mark.parametrize("family", standins.FAMILIES)
@pytest.mark.parametrize("attention", ["eager", None])
def test_a_loaded_model_is_bridged_and_left_as_it_was(standin, tmp_path, family, attention):
    one = standin(family)
    mine = standins.hugging_face(one.folder, attn_implementation=attention)
    mine.train()  # its mode is the user's too
    mine.get_input_embeddings().weight.requires_grad_(False)
    ids = one.tokenizer(TEXTS[0]).input_ids
    mine.eval()
    logits_before = standins.logits_of(mine, ids)
    mine.train()
    before = everything_of(mine)

    bridge = load_model(mine, tokenizer=one.tokenizer)
    assert_same(before, everything_of(mine))
    torch.testing.assert_close(run(bridge, ids), standins.logits_of(one.plain, ids), **TOLERANCE)
    batch = tokenize(bridge, TEXTS)
    with torch.no_grad():
        batched = bridge(batch.ids, attention_mask=batch.attention_mask)
    torch.testing.assert_close(batched[0, -len(ids) :], standins.logits_of(one.plain, ids), **TOLERANCE)
    assert_same(before, everything_of(mine))

    mine.eval()
    assert torch.equal(standins.logits_of(mine, ids), logits_before)
    mine.save_pretrained(tmp_path)
    theirs, written = (load_file(folder / "model.safetensors") for folder in (one.folder, tmp_path))
    assert theirs.keys() == written.keys()
    assert all(torch.equal(theirs[name], written[name]) for name in theirs)


def test_a_loaded_models_parameters_are_shared(standin):
    one = standin("llama")
    mine = standins.hugging_face(one.folder)
    bridge = load_model(mine, tokenizer=one.tokenizer)
    ids = one.tokenizer(TEXTS[0]).input_ids
    assert {p.data_ptr() for p in bridge.original_model.parameters()} == {p.data_ptr() for p in mine.parameters()}
    before, mark = run(bridge, ids), fingerprint(bridge)
    with torch.no_grad():
        mine.model.layers[1].mlp.down_proj.weight *= 0.5
    after = run(bridge, ids)
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, standins.logits_of(mine, ids), **TOLERANCE)
    assert fingerprint(bridge) != mark == fingerprint(one.model)


def test_a_loaded_model_says_what_it_is(standin):
    one = standin("gemma")
    info = model_info(load_model(standins.hugging_face(one.folder), tokenizer=one.tokenizer))
    assert (info.family, info.dtype, info.quantisation, info.attention) == ("gemma", "float32", "none", "eager")
    assert info.source
    assert str(one.folder.parent) not in info.source
    assert info.tokenizer is one.tokenizer


def test_a_model_and_a_tokenizer_that_come_from_no_folder(standin):
    """Both made in memory: they have no name."""
    tokenizer = standins.byte_level_tokenizer()
    standins.set_seed(3)
    mine = standins.AutoModelForCausalLM.from_config(standins.config_of("gpt2", len(tokenizer))).eval()
    bridge = load_model(mine, tokenizer=tokenizer)
    ids = tokenizer(TEXTS[0]).input_ids
    assert tokenize(bridge, TEXTS[0]).ids.tolist() == [ids]
    torch.testing.assert_close(run(bridge, ids), standins.logits_of(mine, ids), **TOLERANCE)


def test_two_bridges_of_one_folder_do_not_touch(standin):
    one = standin("gpt2")
    first, second = load_model(one.folder), load_model(one.folder)
    ids = one.tokenizer(TEXTS[0]).input_ids
    with torch.no_grad():
        first.original_model.transformer.wte.weight.zero_()
    torch.testing.assert_close(run(second, ids), standins.logits_of(one.plain, ids), **TOLERANCE)
