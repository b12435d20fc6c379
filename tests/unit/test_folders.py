"""Folders that hold something else than what is to be read: one sentence with the fix, whatever is loaded."""

import json
import os

import numpy as np
import pytest
import torch

from lcalens import Defence, LcalensError, Result, load_facts, load_model
from lcalens.commands.report import saved_results
from lcalens.commands.saved_defences import find_defences

LOADS = {"result": (Result.load, "folder"), "defence": (Defence.load, "folder"), "model": (load_model, "source")}
LOADS |= {"results": (saved_results, "results"), "defences": (lambda folder: find_defences([folder]), "folders")}
SAVED = ("result", "defence", "results", "defences")
READ = {"result": "lcalens.Result.load", "defence": "lcalens.Defence.load", "model": "lcalens.load_model"}


def kind_of(name):
    return name.removesuffix("s")


def refusal(name, folder):
    load, argument = LOADS[name]
    with pytest.raises(LcalensError) as caught:
        load(folder)
    said = str(caught.value)
    assert said.startswith(f"{argument}: ")
    assert "Errno" not in said
    assert "\n" not in said
    return said


def result():
    return Result(kind="x", axes={"n": (1, 2)}, values={"v": np.zeros(2)})


def defence():
    return Defence(method="none", heads=(), where="last", ends=(), detector=None, model="m", record={}, values={})


@pytest.fixture
def saved(tmp_path):
    """A folder of each kind."""
    result().save(tmp_path / "result")
    defence().save(tmp_path / "defence")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return tmp_path


@pytest.mark.parametrize("name", SAVED)
def test_no_such_folder(name, tmp_path):
    said = refusal(name, tmp_path / "a" / "wrong" / "folder")
    assert said.endswith(
        f"there is no folder {str(tmp_path / 'a/wrong/folder')!r}; give one that holds a {kind_of(name)}."
    )


@pytest.mark.parametrize("name", SAVED)
def test_a_near_folder_is_asked_about(name, saved):
    (saved / "my-studies").mkdir()
    assert refusal(name, saved / "my-studeis").endswith(f"did you mean {str(saved / 'my-studies')!r}?")


@pytest.mark.parametrize("name", LOADS)
def test_an_empty_folder(name, tmp_path):
    kind = kind_of(name)
    assert refusal(name, tmp_path).endswith(f"{str(tmp_path)!r} is empty; give a folder that holds a {kind}.")


@pytest.mark.parametrize("name", SAVED)
def test_a_file(name, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert refusal(name, tmp_path / "notes.txt").endswith("notes.txt' is a file; give the folder that it is in.")


@pytest.mark.parametrize("held", READ)
@pytest.mark.parametrize("name", LOADS)
def test_another_kind(name, held, saved):
    if kind_of(name) != held:
        said = refusal(name, saved / held)
        assert f"holds a {held} and not a {kind_of(name)}; read it with {READ[held]}." in said


@pytest.mark.parametrize("name", ["result", "defence", "model"])
def test_the_folder_within(name, saved):
    """What `--out` names holds the result in a folder of its own, and a trainer's output its checkpoints."""
    above = saved / "above"
    above.mkdir()
    (saved / name).rename(above / "first")
    said = refusal(name, above)
    assert said.endswith(f"holds no {name} itself, but {str(above / 'first')!r} does; give that.")


def test_of_several_checkpoints_the_last(tmp_path):
    for step in (1000, 500, 750):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/config.json").write_text("{}")
        os.utime(tmp_path / f"checkpoint-{step}", (step, step))
    said = refusal("model", tmp_path)
    assert f"but {str(tmp_path / 'checkpoint-1000')!r} does (3 of its folders do); give that." in said


@pytest.mark.parametrize("name", ["result", "defence"])
def test_finished_parts_are_no_result(name, tmp_path):
    (tmp_path / "cells").mkdir()
    assert "finished parts of a study" in refusal(name, tmp_path)


@pytest.mark.parametrize("name", LOADS)
def test_something_else(name, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "more").mkdir()
    head = {"result": "result.json", "defence": "defence.json", "model": "config.json"}[kind_of(name)]
    assert f"holds no {kind_of(name)} ({head} is missing); give a folder that save" in refusal(name, tmp_path)


@pytest.mark.parametrize("gone", ["defence.safetensors", "seal.json"])
def test_a_defence_without_one_of_its_files(saved, gone):
    (saved / "defence" / gone).unlink()
    assert f"holds no whole defence ({gone} is missing); copy it again" in refusal("defence", saved / "defence")


def test_a_defence_of_another_format_is_said_plainly(tmp_path, monkeypatch):
    monkeypatch.setattr("lcalens.mechanism.defence.defence._FORMAT", 7)
    defence().save(tmp_path / "d")
    monkeypatch.undo()
    assert refusal("defence", tmp_path / "d") == "folder: a defence of format 7, this is 1; make it anew."


@pytest.mark.parametrize("tokenizer", [True, False])
def test_an_adapter_is_to_be_merged(tmp_path, tokenizer):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    if tokenizer:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))  # some trainers write the base's
    said = refusal("model", tmp_path)
    assert "holds an adapter (PEFT, LoRA), not a whole model: merge it" in said
    assert "merge_and_unload()" in said


def test_files_beside_are_asked_about(tmp_path):
    (tmp_path / "facts.jsonl").write_text("")
    (tmp_path / "model.gguf").write_bytes(b"")
    for load, typed, meant in (
        (load_facts, "fact.jsonl", "facts.jsonl"),
        (load_facts, "facts.json", "facts.jsonl"),
        (load_model, "modle.gguf", "model.gguf"),
    ):
        with pytest.raises(LcalensError) as caught:
            load(str(tmp_path / typed))
        assert str(caught.value).endswith(f"Did you mean {str(tmp_path / meant)!r}?")
    with pytest.raises(LcalensError) as caught:
        load_facts(str(tmp_path / "other.csv"))
    assert "Did you mean" not in str(caught.value)


def test_what_is_whole_is_read(saved):
    assert torch.equal(torch.tensor(Result.load(saved / "result").values["v"]), torch.zeros(2).double())
    assert Defence.load(saved / "defence").method == "none"
    assert len(saved_results(saved)) == 1
