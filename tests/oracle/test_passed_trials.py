"""A trial that a converted model has passed is not run again, unless something that it depends on has changed."""

import pytest
import torch
from helpers import standins

from lcalens.llm.models import load, passed
from lcalens.llm.models.load import load_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    standins.save_tiny_gguf(path)
    return path


@pytest.fixture
def trials(monkeypatch):
    """How often a model was tried."""
    run, run_trial = [], load.run_trial

    def spy(model):
        run.append(model)
        return run_trial(model)

    monkeypatch.setattr(load, "run_trial", spy)
    return run


def test_a_second_load_is_not_tried_and_gives_the_same_numbers(tiny, tmp_path, trials):
    ids = torch.arange(3, 20)[None]
    first = load_model(tiny, cache_dir=tmp_path)(ids)
    second = load_model(tiny, cache_dir=tmp_path)(ids)
    assert len(trials) == 1
    assert torch.equal(first, second)


def test_what_a_trial_depends_on_makes_it_run_again(tiny, tmp_path, trials, monkeypatch):
    load_model(tiny, cache_dir=tmp_path)
    load_model(tiny, cache_dir=tmp_path, dtype="bfloat16")
    assert len(trials) == 2
    for name, other in {
        "versions": lambda: {"torch": "another"},
        "_lie": lambda files: "an edited library",
        "_machine": lambda device: ["another processor"],
    }.items():
        with monkeypatch.context() as patched:
            patched.setattr(passed, name, other)
            before = len(trials)
            load_model(tiny, cache_dir=tmp_path)
            load_model(tiny, cache_dir=tmp_path)
            assert len(trials) == before + 1, name
    before = len(trials)
    load_model(tiny, cache_dir=tmp_path)
    assert len(trials) == before  # the first note is still there


def test_every_file_that_a_trial_runs_through_is_looked_at(tiny, tmp_path, monkeypatch):
    seen, lie = set(), passed._lie

    def spy(files):
        listed = list(files)
        seen.update("/".join(path.parts[-2:]) for path in listed)
        return lie(listed)

    monkeypatch.setattr(passed, "_lie", spy)
    load_model(tiny, cache_dir=tmp_path)
    assert {"models/load.py", "llama/modeling_llama.py", "transformers/masking_utils.py",
            "integrations/sdpa_attention.py", "model_bridge/bridge.py"} <= seen  # fmt: skip


def test_an_edited_library_is_another(tmp_path):
    file = tmp_path / "bridge.py"
    file.write_text("scale = 1\n")
    before = passed._lie([file])
    assert passed._lie([file]) == before
    file.write_text("scale = 2.0\n")
    assert passed._lie([file]) != before


@pytest.mark.parametrize("damage", ["", "0" * 32, "ä"])
def test_a_damaged_note_says_nothing(tiny, tmp_path, trials, damage):
    load_model(tiny, cache_dir=tmp_path)
    (note,) = (tmp_path / "trials").iterdir()
    note.write_text(damage, encoding="utf-8")
    load_model(tiny, cache_dir=tmp_path)
    assert len(trials) == 2
    load_model(tiny, cache_dir=tmp_path)
    assert len(trials) == 2


def test_a_trial_that_fails_is_not_remembered(tiny, tmp_path, trials, monkeypatch):
    def refuse(*_):
        raise load.LcalensError("source: it is not the model.")

    with monkeypatch.context() as patched:
        patched.setattr(load, "check_bridge", refuse)
        for _ in range(2):
            with pytest.raises(load.LcalensError, match="it is not the model"):
                load_model(tiny, cache_dir=tmp_path)
    assert len(trials) == 2
    assert not (tmp_path / "trials").exists()


def test_a_cache_that_cannot_be_written_tries_each_time(tiny, tmp_path, trials):
    load_model(tiny, cache_dir=tmp_path)
    (note,) = (tmp_path / "trials").iterdir()
    note.unlink()
    note.parent.rmdir()
    note.parent.write_text("a file where the folder should be")
    load_model(tiny, cache_dir=tmp_path)
    load_model(tiny, cache_dir=tmp_path)
    assert len(trials) == 3


def test_models_of_a_folder_are_tried_on_every_load(tmp_path, trials):
    folder = standins.save_standin(tmp_path / "model", "llama")
    load_model(folder, cache_dir=tmp_path / "cache")
    load_model(folder, cache_dir=tmp_path / "cache")
    assert len(trials) == 2
