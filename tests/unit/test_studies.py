"""Manifests: what a run folder says of the studies in it, and that no cell is ever there that nobody lists."""

import json
import threading

import numpy as np
import pytest

from lcalens import LatentConcepts, TrainConfig, cli, contrast_concepts, efficacy, lca_bridge, load_facts, patch, train
from lcalens.core.cells import CellStore, content_key
from lcalens.core.errors import LcalensError
from lcalens.core.manifest import Manifest
from lcalens.core.studies import find_studies, read_study, studies_in

KEYS = [content_key(number) for number in range(4)]
ARRAYS = {"value": np.arange(3.0)}


def measured(value):
    """What the cells of these tests are of."""
    return value


def begin(folder, keys=KEYS, *, total=None, **settings):
    store = CellStore(folder)
    manifest = Manifest(store, "count", code=[measured], settings=settings, data=lambda: {"facts": {"digest": "d"}})
    manifest.expect(keys, total=total)
    return store, manifest


def only(folder):
    (kept,), problems = studies_in(folder)
    assert problems == []
    return kept


# --- one study --------------------------------------------------------------------------------------------------------


def test_a_study_is_unfinished_until_its_cells_are_there_and_it_has_ended(tmp_path):
    store, manifest = begin(tmp_path, KEYS[:2], total=4, level=np.int64(3))
    kept = only(tmp_path)
    assert (kept.state, kept.study.total, kept.study.cells, kept.present) == ("unfinished", 4, (*KEYS[:2],), set())
    assert kept.study.settings == {"level": 3}
    assert kept.study.data == {"facts": {"digest": "d"}}
    store.put(KEYS[0], ARRAYS)
    manifest.expect(KEYS[2:])
    for key in KEYS[1:]:
        store.put(key, ARRAYS)
    assert (only(tmp_path).state, len(only(tmp_path).present)) == ("unfinished", 4)  # nobody has said that it ended
    manifest.end()
    assert only(tmp_path).state == "finished"
    store.forget(KEYS[3])
    assert (only(tmp_path).state, len(only(tmp_path).present)) == ("unfinished", 3)


def test_the_same_study_goes_on_in_its_own_manifest_and_another_has_its_own(tmp_path):
    begin(tmp_path, KEYS[:2], level=1)
    first = only(tmp_path).study
    begin(tmp_path, KEYS[1:3], level=1)
    again = only(tmp_path).study
    assert (again.cells, again.begun, again.name) == ((*KEYS[:3],), first.begun, first.name)
    begin(tmp_path, KEYS, level=2)
    kept, problems = find_studies(tmp_path)
    assert ({one.study.settings["level"] for one in kept}, problems) == ({1, 2}, [])


def test_with_no_folder_nothing_is_written_and_nothing_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = Manifest(CellStore(None), "count", code=[measured], settings={}, data=lambda: {"never": 1 / 0})
    manifest.expect(KEYS)
    manifest.end()
    assert list(tmp_path.iterdir()) == []


def test_many_writers_at_once_leave_every_cell_listed(tmp_path):
    keys = [content_key(["many", number]) for number in range(40)]

    def run():
        store, manifest = begin(tmp_path, [])
        for first in range(0, len(keys), 4):
            manifest.expect(keys[first : first + 4], total=len(keys))
            for key in keys[first : first + 4]:
                store.put(key, ARRAYS)
        manifest.end()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = only(tmp_path)
    assert (set(kept.study.cells), kept.present, kept.state) == (set(keys), set(keys), "finished")
    assert [file.suffix for file in (tmp_path / "studies").iterdir()] == [".json"]


# --- damaged and foreign ----------------------------------------------------------------------------------------------


def changed(content, change):
    record = json.loads(content)
    change(record)
    return json.dumps(record).encode()


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "no JSON": lambda content: b"\x00\xff" * 40,
    "a list": lambda content: b"[1]",
    "deep": lambda content: b"[" * 100_000,
    "a digit": lambda content: content.replace(b'"total": 4', b'"total": 5'),
    "no format": lambda content: changed(content, lambda record: record.pop("format")),
    "a key's letter": lambda content: content.replace(KEYS[0][:6].encode(), b"xyzxyz"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_manifest_is_told_and_written_anew_by_its_study(tmp_path, how):
    store, _ = begin(tmp_path)
    store.put(KEYS[0], ARRAYS)
    file = only(tmp_path).file
    file.write_bytes(DAMAGE[how](file.read_bytes()))
    with pytest.raises(LcalensError, match=r"^folder: the manifest .* is damaged .*; start its study again"):
        read_study(file)
    kept, problems = studies_in(tmp_path)
    assert (kept, len(problems)) == ([], 1)
    begin(tmp_path)
    assert only(tmp_path).present == {KEYS[0]}


def test_a_manifest_under_anothers_name_is_refused(tmp_path):
    begin(tmp_path)
    file = only(tmp_path).file
    file.rename(file.with_name(f"{content_key('another')}.json"))
    with pytest.raises(LcalensError, match="its name is that of another study"):
        read_study(file.with_name(f"{content_key('another')}.json"))


def test_a_manifest_of_a_later_lcalens_is_not_called_damaged(tmp_path):
    begin(tmp_path)
    file = only(tmp_path).file
    file.write_bytes(changed(file.read_bytes(), lambda record: record.update(format=99)))
    with pytest.raises(LcalensError, match="written by a later lcalens; upgrade"):
        read_study(file)


def resealed(file, **changes):
    """As somebody would write it who knows how."""
    import hashlib

    record = json.loads(file.read_bytes())
    record["study"].update(changes)
    record["sha256"] = hashlib.sha256(json.dumps(record["study"], sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps(record))


@pytest.mark.parametrize(
    "changes",
    [
        {"cells": ["../../elsewhere"]}, {"cells": [1]}, {"cells": None}, {"total": "4"}, {"begun": "yesterday"},
        {"command": {"words": "hijack"}}, {"command": {"words": [1], "directory": "", "out": ""}}, {"verb": 3},
        {"settings": []}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_well_sealed_manifest_with_other_fields_is_refused(tmp_path, changes):
    begin(tmp_path)
    resealed(only(tmp_path).file, **changes)
    kept, problems = studies_in(tmp_path)
    assert (kept, len(problems)) == ([], 1)


def test_a_pipe_in_a_manifests_place_is_not_waited_for(tmp_path):
    import os

    begin(tmp_path)
    os.mkfifo(tmp_path / "studies" / f"{KEYS[0]}.json")
    kept, problems = studies_in(tmp_path)
    assert (len(kept), len(problems)) == (1, 1)


# --- studies that measure ---------------------------------------------------------------------------------------------


def listed(folder):
    """Every study in a folder, each of whose cells it lists; no cell is there that none does."""
    kept, problems = find_studies(folder)
    assert problems == []
    for place in {one.folder for one in kept}:
        there = {file.stem for file in (place / "cells").iterdir()}
        assert there == {key for one in kept if one.folder == place for key in one.study.cells}
    return kept


def test_efficacy_says_what_it_is(standin, tmp_path):
    model, facts = standin("gpt2").model, load_facts("sample", limit=6)
    result = efficacy(model, facts, schemes=("dont-think",), counts=(0, 1), out=tmp_path, progress=False)
    (kept,) = listed(tmp_path)
    study = kept.study
    assert (study.verb, kept.state, study.total) == ("efficacy", "finished", result.provenance["cells"]["computed"])
    assert study.settings["config"]["counts"] == [0, 1]
    assert study.data["facts"] == result.provenance["facts"]
    assert study.model["fingerprint"] == result.provenance["model"]["fingerprint"]
    assert study.versions == result.provenance["versions"]
    assert study.command is None
    efficacy(model, facts, schemes=("dont-think",), counts=(0, 1, 2), out=tmp_path, progress=False)
    assert len(listed(tmp_path)) == 2


@pytest.fixture(scope="module")
def toy():
    concepts = LatentConcepts(4)
    run = train(concepts, TrainConfig(16, 8, 8, steps=30), seeds=[0], progress=False)[0]
    return lca_bridge(run.model), contrast_concepts(concepts, limit=8, length=16)


def test_patch_and_train_say_what_they_are(toy, tmp_path):
    patch(*toy, out=tmp_path / "patched", progress=False)
    train(LatentConcepts(4), TrainConfig(16, 8, 8, steps=30), seeds=[0, 1], out=tmp_path / "trained", progress=False)
    patched, trained = sorted(listed(tmp_path), key=lambda one: one.study.verb)
    assert (patched.study.verb, patched.state) == ("patch", "finished")
    assert patched.study.data["examples"] == 8
    assert (trained.study.verb, trained.state, trained.study.total) == ("train", "finished", 2)
    assert trained.study.data["concepts"]["m"] == 4
    assert len(trained.study.states) == 1


def test_a_command_says_how_it_was_typed(lc_hijack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*lc_hijack, "--out", "out/study"]
    assert cli.main(words) == 0
    (kept,) = listed(tmp_path)
    command = kept.study.command
    assert command is not None
    assert (command.words, command.directory, command.out) == ((*words,), str(tmp_path), ".")


@pytest.fixture
def lc_hijack(standin):
    model = str(standin("gpt2").folder)
    return ["hijack", "--model", model, "--limit", "4", "--schemes", "dont-think", "--counts", "0", "1"]
