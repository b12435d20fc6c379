"""Models that load and yet are not what was meant: too little, too much, no numbers, no decoder, no memory."""

import json
import subprocess
import time

import httpx
import huggingface_hub
import pytest
import torch
import transformers
from helpers import standins
from safetensors.torch import load_file, save_file

import lcalens
from lcalens.core.errors import LcalensError
from lcalens.llm.models import bridging, hub, load, memory
from lcalens.llm.models.load import load_model


def refusal(*args, **options):
    with pytest.raises(LcalensError) as caught:
        load_model(*args, **options)
    return str(caught.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return standins.save_standin(tmp_path_factory.mktemp("whole") / "whole", "llama")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil_copy(whole, tmp_path / "broken")


def shutil_copy(source, target):
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def edit(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


# --- no numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"])
def test_weights_that_are_no_numbers(folder, name, value):
    def spoil(weights):
        weights[name][-1, -1] = float(value)  # the last token's: no trial of a few tokens meets it

    edit(folder, spoil)
    said = refusal(folder)
    assert name in said
    assert "NaN or infinite" in said


def test_a_loaded_model_with_such_weights_is_warned_of(whole):
    model = standins.hugging_face(whole)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 3] = float("nan")
    with pytest.warns(UserWarning, match=r"NaN or infinite, first in model\.layers\.1\.mlp\.down_proj\.weight"):
        load_model(model, tokenizer=standins.hugging_face_tokenizer(whole))


def test_activations_that_overflow(folder):
    def enlarge(weights):
        weights["model.layers.0.mlp.down_proj.weight"] *= 3e4  # each below 65504, their sums not

    edit(folder, enlarge)
    load_model(folder)
    said = refusal(folder, dtype="float16")
    assert "float16" in said
    assert "dtype='float32' or bfloat16" in said
    assert "though its weights are finite" in said


# --- too little, too much -------------------------------------------------------------------------------------------


def test_weights_of_more_layers_than_the_configuration_has(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    said = refusal(folder)
    assert "model.layers.2." in said
    assert "no place for" in said


def test_a_bias_that_the_configuration_leaves_out(folder):
    edit(folder, lambda weights: weights.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}))
    assert "model.layers.0.self_attn.q_proj.bias" in refusal(folder)


def test_masks_and_frequencies_are_no_weights(folder):
    """As older checkpoints hold them."""
    spare = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.layers.0.self_attn.masked_bias": torch.ones(1),
        "vision_tower.patch.weight": torch.ones(1),
    }
    edit(folder, lambda weights: weights.update(spare))
    load_model(folder)


@pytest.mark.parametrize("damage", ["shard", "entry"])
def test_a_shard_that_is_missing(whole, tmp_path, damage):
    model = standins.hugging_face(whole)
    shutil_copy(whole, tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    shards = sorted((tmp_path / "sharded").glob("model-*.safetensors"))
    assert len(shards) > 2
    load_model(tmp_path / "sharded")
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    if damage == "shard":
        shards[1].unlink()
    else:
        listed = json.loads(index.read_text())
        listed["weight_map"] = {k: v for k, v in listed["weight_map"].items() if v != shards[1].name}
        index.write_text(json.dumps(listed))
    said = refusal(tmp_path / "sharded")
    assert "sharded" in said
    assert "copy" in said
    assert damage == "entry" or "every shard" in said


# --- no decoder -----------------------------------------------------------------------------------------------------


def configured(folder, config):
    config.save_pretrained(folder)
    return refusal(folder)


def test_kinds_of_models_that_are_refused_with_their_reason(folder):
    assert "encoder-decoder model (t5)" in configured(folder, transformers.T5Config(architectures=["T5Model"]))
    assert "state-space model (mamba" in configured(folder, transformers.MambaConfig())
    hybrid = transformers.Lfm2Config(layer_types=["conv", "full_attention"], num_hidden_layers=2)
    assert "state-space model (lfm2: conv)" in configured(folder, hybrid)
    assert "no causal language model" in configured(folder, transformers.ViTConfig())
    said = configured(folder, transformers.ReformerConfig(is_decoder=True, architectures=["ReformerModelWithLMHead"]))
    assert "TransformerLens" in said
    assert "has no adapter for" in said
    assert "config.json" not in said


def test_what_a_loaded_model_is_refused_for(whole):
    tokenizer = standins.hugging_face_tokenizer(whole)
    small = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**small))
    assert "encoder-decoder" in refusal(t5, tokenizer=tokenizer)
    mamba = transformers.MambaForCausalLM(transformers.MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1))
    assert "state-space" in refusal(mamba, tokenizer=tokenizer)


def test_what_is_no_language_model(whole):
    tokenizer, model = standins.hugging_face_tokenizer(whole), standins.hugging_face(whole)
    assert "LlamaModel has no output layer" in refusal(model.model, tokenizer=tokenizer)
    assert "TransformerBridge already" in refusal(load_model(whole), tokenizer=tokenizer)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    both_ways = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=551, **small, initializer_range=0.5))
    assert "is no causal language model" in refusal(both_ways.eval(), tokenizer=tokenizer)


def test_a_configuration_that_contradicts_itself(whole):
    small = {"num_experts": 2, "num_experts_per_tok": 4, "moe_intermediate_size": 16, "head_dim": 8}
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(vocab_size=551, **sizes, **small))
    said = refusal(model, tokenizer=standins.hugging_face_tokenizer(whole))
    assert "Qwen3MoeForCausalLM itself fails on a few tokens" in said


def test_an_adapter_that_fails(whole, monkeypatch):
    def fail(bridge):
        raise TypeError("this adapter knows no such head")

    monkeypatch.setattr(load, "mend_attention_scale", fail)
    said = refusal(whole)
    assert "TransformerLens' adapter for LlamaForCausalLM fails" in said
    assert "this adapter knows no such head" in said
    assert "check its config.json" not in said


# --- memory and places ----------------------------------------------------------------------------------------------


def test_a_model_that_cannot_fit_is_refused_before_its_weights_are_read(whole, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 100_000)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("read"))
    said = refusal(whole)
    count = sum(parameter.numel() for parameter in standins_parameters(whole))
    assert f"{count * 4 / 1e9:.3g} GB in float32" in said
    assert "0.0001 GB are free on cpu" in said
    assert f"dtype='bfloat16' ({count * 2 / 1e9:.3g} GB)" in said


def standins_parameters(folder):
    return load_file(folder / "model.safetensors").values()


def test_what_is_free_is_a_number_of_bytes():
    assert 10**7 < memory.free_memory(torch.device("cpu")) < 10**14


PLACES = dict.fromkeys(["model.layers.0", "model.layers.2", "model.norm", "lm_head", "model.rotary_emb"], "cpu")


@pytest.mark.parametrize("module", ["model.layers.1", "model.embed_tokens"])
def test_offloaded_layers_are_named_at_once_and_refused_by_every_call(whole, module):
    places = PLACES | {"model.layers.1": "cpu", "model.embed_tokens": "cpu"} | {module: "disk"}
    with pytest.warns(UserWarning, match=f"offloaded.*{module}"):
        model = load_model(whole, device_map=places)
    calls = {
        "ask": lambda: lcalens.ask(model, "Rome is in"),
        "tokens": lambda: lcalens.Contrast.from_texts(model, "Rome is in", "Oslo is in", true=" A", false=" B"),
        "efficacy": lambda: lcalens.efficacy(model, lcalens.load_facts("sample", limit=1), counts=(0,), progress=False),
    }
    for name, call in calls.items():
        if name == "tokens" and not hasattr(lcalens.Contrast, "from_texts"):
            continue
        with pytest.raises(LcalensError, match=f"offloaded.*{module}"):
            call()


def test_a_loaded_model_without_its_weights_is_refused(whole):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(standins.config_of("llama", 551))
    assert "not in memory" in refusal(model, tokenizer=standins.hugging_face_tokenizer(whole))


# --- what is not asked for ------------------------------------------------------------------------------------------


def test_no_load_installs_packages_or_looks_for_image_processors(whole, monkeypatch):
    text = standins.config_of("gemma3", 551, head_dim=16).to_dict()
    sight = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(text_config=text, vision_config=sight | {"image_size": 28, "patch_size": 14})
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    for name in ("check_call", "run", "Popen"):
        monkeypatch.setattr(subprocess, name, lambda *a, **k: pytest.fail("a program was started"))
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *a, **k: pytest.fail("asked"))
    bridge = load_model(model, tokenizer=standins.hugging_face_tokenizer(whole))
    assert bridge.cfg.is_multimodal, "a bridge for which TransformerLens would look for one"


def test_what_is_kept_off_is_put_back():
    from transformer_lens.model_bridge.sources.transformers import helpers, source

    before = source.load_modality_processor, helpers._ensure_torchvision
    with bridging.text_only():
        assert not helpers._ensure_torchvision()
    assert before == (source.load_modality_processor, helpers._ensure_torchvision)


# --- the hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def online(monkeypatch):
    """As if the hub might be there: what it is asked is counted, and it does not answer."""
    asked = []

    def unreachable(url, **options):
        asked.append(url)
        raise httpx.ConnectError("name or service not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    return asked


def test_a_hub_that_cannot_be_reached_is_asked_once(online, capfd):
    started = time.monotonic()
    said = refusal("nobody/no-such-model-xyz")
    assert "cannot be reached" in said
    assert len(online) == 1
    assert time.monotonic() - started < 10
    assert capfd.readouterr().err == ""


def test_a_copy_on_this_machine_serves_where_the_hub_cannot_be_reached(online, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **options: "/somewhere/config.json")
    assert hub.reach_hub("a/b", "main", None) == {"revision": "main", "token": None, "local_files_only": True}
