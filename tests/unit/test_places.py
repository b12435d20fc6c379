"""Run folders wherever fsspec reaches: an in-memory file system, a local one by its address, and no place at all."""

import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lcalens import LatentConcepts, TrainConfig, cli, contrast_facts, efficacy, load_facts, patch, train
from lcalens.core.cells import CellStore, is_run_folder
from lcalens.core.errors import LcalensError
from lcalens.core.places import is_elsewhere, place_of, reaching
from lcalens.core.studies import studies_in

HIJACK = {"schemes": ("dont-think", "neutral"), "counts": (0, 1), "progress": False}
SMALL = TrainConfig(8, 8, 8, steps=20, batch_size=4)


@pytest.fixture
def memory():
    pytest.importorskip("upath", reason="universal-pathlib is not installed: pip install 'lcalens[fsspec]'")
    yield "memory://runs"
    fsspec.filesystem("memory").rm("/", recursive=True)


VERBS = {
    "efficacy": lambda model, facts, out: efficacy(model, facts, **HIJACK, out=out),
    "patch": lambda model, facts, out: patch(model, contrast_facts(model, facts), site="z", progress=False, out=out),
    "train": lambda model, facts, out: train(LatentConcepts(4), SMALL, seeds=range(2), progress=False, out=out),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_study_is_kept_and_gone_on_with_in_memory(standin, memory, verb):
    model, facts = standin("llama").model, load_facts("sample", limit=6)
    files = fsspec.filesystem("memory")
    VERBS[verb](model, facts, memory)
    cells = files.glob("/runs/cells/*.safetensors")
    assert cells
    before = {cell: files.cat(cell) for cell in cells}
    files.rm(cells[0])
    found = VERBS[verb](model, facts, memory)
    assert {cell: files.cat(cell) for cell in files.glob("/runs/cells/*.safetensors")} == before
    if verb == "efficacy":
        assert found.provenance["cells"] == {"loaded": len(cells) - 1, "computed": 1}
        alone = efficacy(model, facts, **HIJACK)
        assert all(np.array_equal(array, found.values[name], equal_nan=True) for name, array in alone.values.items())
        kept, problems = studies_in(place_of("out", memory))
        assert [one.state for one in kept] == ["finished"]
        assert not problems


def test_other_processes_hand_their_cells_to_the_caller_where_they_do_not_see_the_place(standin, memory):
    model, facts = standin("llama").model, load_facts("sample", limit=6)
    found = efficacy(model, facts, **HIJACK, n_jobs=2, out=memory)
    assert found.provenance["cells"] == {"loaded": 0, "computed": 3}
    assert len(fsspec.filesystem("memory").glob("/runs/cells/*.safetensors")) == 3


def test_a_damaged_cell_is_missing_there_too(memory):
    CellStore(memory).put("key", {"found": np.arange(3)})
    file = place_of("out", memory) / "cells" / "key.safetensors"
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = CellStore(memory).get("key")
        assert found is None or found["found"].tolist() == [0, 1, 2]
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert CellStore(memory).get("key") is None


class StoreError(Exception):
    """As stores' libraries have them: no OSError."""


def failing(*given, **options):
    raise StoreError("no credentials")


def test_a_store_that_cannot_be_reached_is_refused_by_name(memory, monkeypatch):
    for name in ("mkdir", "makedirs", "info", "exists", "isdir"):
        monkeypatch.setattr(MemoryFileSystem, name, failing)
    said = r"^out: 'memory://runs' cannot be written \(StoreError: no credentials\); give another folder"
    with pytest.raises(LcalensError, match=said):
        CellStore(memory)


def test_a_store_that_fails_later_is_told_and_nothing_is_wrong(standin, memory, monkeypatch):
    store = CellStore(memory)
    store.put("key", {"found": np.arange(3)})
    with monkeypatch.context() as broken:
        broken.setattr(MemoryFileSystem, "_open", failing)
        broken.setattr(MemoryFileSystem, "pipe_file", failing)
        broken.setattr(MemoryFileSystem, "cat_file", failing)
        broken.setattr(MemoryFileSystem, "info", failing)
        assert store.get("key") is None
        assert not is_run_folder(place_of("out", memory))  # a worker hands its cells to the caller then
        broken.undo()
        broken.setattr(MemoryFileSystem, "_open", failing)
        broken.setattr(MemoryFileSystem, "pipe_file", failing)
        with pytest.raises(LcalensError, match=r"^out: a finished part cannot be written \(StoreError: no credentials"):
            store.put("other", {"found": np.arange(3)})
        with pytest.raises(LcalensError, match=r"^out: what the study is cannot be written .*StoreError"):
            efficacy(standin("llama").model, load_facts("sample", limit=6), **HIJACK, out=memory)
    assert store.get("key")["found"].tolist() == [0, 1, 2]


def test_errors_of_ones_own_on_a_disk_stay_as_they_are(tmp_path):
    with pytest.raises(StoreError), reaching(tmp_path):
        failing()
    with pytest.raises(KeyboardInterrupt), reaching(place_of("out", "memory://runs")):
        raise KeyboardInterrupt


def test_a_local_address_is_a_path(tmp_path):
    place = place_of("out", f"file://{tmp_path}/run")
    assert place == tmp_path / "run"
    assert not is_elsewhere(place)
    assert place_of("out", "~/run") == Path("~/run").expanduser()


@pytest.mark.parametrize("out", ["nonsense://bucket/study", 7, b"run"], ids=repr)
def test_what_is_no_place_is_refused(memory, out):
    with pytest.raises(LcalensError, match=r"^out: "):
        CellStore(out)


def test_an_address_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(LcalensError, match=r'^out: .s3://bucket/study. is an address.*"lcalens\[fsspec\]"'):
        CellStore("s3://bucket/study")


def test_commands_write_files_and_take_paths_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["hijack", "--limit", "4", "--out", "s3://bucket/study"]) == 2
    assert "--out: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
