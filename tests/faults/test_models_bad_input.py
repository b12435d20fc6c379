"""Models that are missing, damaged, hostile, too large or of the wrong kind: one error, which names source and fix."""

import builtins
import json
import os
import shutil

import pytest
import torch
import transformers
from helpers import standins
from transformer_lens.model_bridge import TransformerBridge

from lcalens.core.errors import LcalensError
from lcalens.core.tokens import source_tokenizer
from lcalens.llm.models.load import load_model

LONG_NAME = "x" * 300


def refusal(*args, **options):
    """The message, which never points at what the user cannot see."""
    with pytest.raises(LcalensError) as caught:
        load_model(*args, **options)
    return str(caught.value)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    return standins.save_standin(tmp_path_factory.mktemp("whole") / "whole", "llama")


@pytest.fixture
def folder(whole, tmp_path):
    """A folder of its own to damage."""
    return shutil.copytree(whole, tmp_path / "broken")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_hub_id_without_the_hub():
    said = refusal("nobody/no-such-model-xyz")
    assert "'nobody/no-such-model-xyz'" in said
    assert "cannot be reached" in said
    assert "'smollm2'" in said
    assert "local folder" in said


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no-such-folder", "a/b/c", "model.gguf", "..\\x"])
def test_a_path_that_is_not_there(name):
    assert refusal(name) == f"source: there is no file or folder {name!r}."


@pytest.mark.parametrize("name", ["no such model", "a\0b", "-", "..", LONG_NAME, f"a/{LONG_NAME}", "~nobody-here/x"])
def test_names_that_nothing_can_have(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert refusal(name).startswith("source: ")


@pytest.mark.parametrize("source", [None, 3, "", b"gpt2", ["gpt2"], 0.5, {}, transformers.GPT2LMHeadModel, object()])
def test_what_is_no_source(source):
    said = refusal(source)
    assert type(source).__name__ in said
    assert "folder" in said


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_model(tmp_path):
    assert "is empty; give a folder that holds a model" in refusal(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds no model (config.json is missing)" in refusal(tmp_path)
    assert str(tmp_path) in refusal(tmp_path)


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"model_type": "llama"', "\0\0", "null", '"x"'])
def test_a_damaged_config(folder, damage):
    (folder / "config.json").write_text(damage)
    said = refusal(folder)
    assert "broken" in said
    assert "see the error above" not in said


def test_an_unknown_architecture(folder):
    edit(folder / "config.json", model_type="no-such-architecture")
    said = refusal(folder)
    assert "broken" in said
    assert "architecture" in said


@pytest.mark.parametrize("kind", ["t5", "vit"])
def test_what_is_no_causal_language_model(folder, kind):
    edit(folder / "config.json", model_type=kind, architectures=None)
    said = refusal(folder)
    assert "broken" in said
    assert "causal language model" in said


@pytest.mark.parametrize("size", [0, 4, 8, 1000, -1])
def test_weights_cut_short(folder, size):
    path = folder / "model.safetensors"
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    assert "damaged" in refusal(folder)


@pytest.mark.parametrize("junk", [b"abc" * 999, b"\xff" * 999, b"\0" * 999])
def test_weights_that_are_none(folder, junk):
    (folder / "model.safetensors").write_bytes(junk)
    assert "damaged" in refusal(folder)


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    said = refusal(folder)
    assert "model.safetensors" in said
    assert "see the error above" not in said


def test_weights_that_are_not_all_there(folder):
    """Hugging Face fills what is missing at random and says so in a warning, which is not shown: it must not pass."""
    edit(folder / "config.json", num_hidden_layers=5)
    said = refusal(folder)
    assert "broken" in said


def test_weights_of_another_shape(folder):
    edit(folder / "config.json", intermediate_size=32)
    said = refusal(folder)
    assert "broken" in said
    assert "see the error above" not in said


def test_a_folder_without_a_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    said = refusal(folder)
    assert "broken" in said
    assert "tokenizer=" in said


def test_a_damaged_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")
    assert "damaged" in refusal(folder)


# --- code from elsewhere --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["tokenizer", "model"])
@pytest.mark.parametrize("answer", ["y", "n"])
def test_code_in_a_folder_is_never_run(folder, tmp_path, monkeypatch, what, answer):
    """Nor is anybody asked whether it may: not on a terminal, and not in a job that would wait for ever."""
    sentinel = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(sentinel)!r}, 'w').close()\nclass Evil: pass\n")
    if what == "tokenizer":
        edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil")
    else:
        autos = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
        edit(folder / "config.json", model_type="evil", auto_map=autos)
    asked = []
    monkeypatch.setattr(builtins, "input", lambda *prompt: asked.append(prompt) or answer)
    said = refusal(folder)
    assert not sentinel.exists()
    assert asked == []
    assert "code" in said


def test_nor_for_a_bridge_that_somebody_else_made(folder, whole, tmp_path, monkeypatch):
    sentinel = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(sentinel)!r}, 'w').close()\nclass Evil: pass\n")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil")
    monkeypatch.setattr(builtins, "input", lambda *prompt: "y")
    theirs = TransformerBridge.boot_transformers(
        str(whole), hf_model=standins.hugging_face(whole), tokenizer=standins.hugging_face_tokenizer(whole)
    )
    theirs.tokenizer.name_or_path = str(folder)
    with pytest.raises(LcalensError, match="cannot be found again"):
        source_tokenizer(theirs)
    assert not sentinel.exists()


def test_trust_is_never_given(whole, monkeypatch):
    given = []
    for name in ("AutoTokenizer", "AutoModelForCausalLM"):
        auto = getattr(transformers, name)
        monkeypatch.setattr(auto, "from_pretrained", spy(auto.from_pretrained, given))
    bridge = load_model(whole)
    source_tokenizer(bridge)
    assert len(given) >= 2
    assert not any(options.get("trust_remote_code") for options in given)


def spy(function, given):
    def called(*args, **options):
        given.append(options)
        return function(*args, **options)

    return called


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "float31", "", 3, torch.int64, torch.bool, ["float32"]])
def test_a_bad_dtype(whole, dtype):
    said = refusal(whole, dtype=dtype)
    assert said.startswith("dtype: ")
    assert "float32" in said


def test_device_and_device_map_together(whole):
    assert refusal(whole, device="cpu", device_map="auto").startswith("device: 'cpu' and device_map='auto'")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there(whole, device):
    said = refusal(whole, device=device)
    assert "device" in said.split(":")[0], "the argument at fault is the device, not the source"
    assert device in said


@pytest.mark.parametrize("cache", [3, ["x"]])
def test_a_bad_cache_dir(whole, cache):
    assert "cache_dir" in refusal(whole, cache_dir=cache)


def test_a_loaded_model_needs_its_tokenizer_and_stays_where_it_is(whole):
    model, tokenizer = standins.hugging_face(whole), standins.hugging_face_tokenizer(whole)
    assert refusal(model).startswith("tokenizer: ")
    for option, value in (("device", "cpu"), ("dtype", "float32"), ("device_map", "auto")):
        assert refusal(model, tokenizer=tokenizer, **{option: value}).startswith(f"{option}: ")
    said = refusal(model, tokenizer="gpt2")
    assert "tokenizer" in said.split(":")[0], "the argument at fault is the tokenizer, not the source"


def test_a_module_that_is_no_language_model(whole):
    said = refusal(torch.nn.Linear(2, 2), tokenizer=standins.hugging_face_tokenizer(whole))
    assert "Linear" in said
    assert "Hugging Face" in said


def test_an_error_keeps_its_cause(folder):
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(LcalensError) as caught:
        load_model(folder)
    assert caught.value.__cause__ is not None
