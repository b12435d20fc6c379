"""`lcalens runs`: what is listed is what is there, what is removed is what nobody needs, and a command goes on."""

import json
import os
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lcalens import Result, cli
from lcalens.commands import runs
from lcalens.core.cells import CellStore, content_key
from lcalens.core.cleaning import plan_cleaning
from lcalens.core.command_line import running
from lcalens.core.comparison import compare_numbers, saved_result
from lcalens.core.errors import LcalensError
from lcalens.core.manifest import Manifest
from lcalens.core.studies import find_studies, one_study, written

ARRAYS = {"value": np.arange(3.0)}


def key(*what):
    return content_key(list(what))


def measured():
    """What these cells are of."""


def study(folder, *keys, put: int | None = None, end=True, words=None, out=None, **settings):
    """A study of these cells, some of them there."""
    with running(words or [], out):
        store = CellStore(folder)
        manifest = Manifest(store, "count", code=[measured], settings=settings, data=lambda: {"contrast": "c"})
        manifest.expect(keys)
        for one in keys[:put]:
            store.put(one, ARRAYS)
        if end:
            manifest.end()
    return folder


def said(capsys, *arguments, status=0):
    assert cli.main(["runs", *map(str, arguments)]) == status
    return capsys.readouterr()


# --- list and show ----------------------------------------------------------------------------------------------------


def test_list_tells_every_study_below_and_what_cannot_be_read(tmp_path, capsys):
    study(tmp_path / "a", key(1), key(2), level=1)
    study(tmp_path / "b" / "deep", key(1), key(2), key(3), put=1, end=False, level=2)
    broken = study(tmp_path / "c", key(1), level=3)
    next((broken / "studies").iterdir()).write_text("{")
    told = said(capsys, "list", tmp_path)
    lines = told.out.replace("just now", "0 seconds ago").splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["a", "b/deep"]
    assert [line.split()[5:7] for line in lines[1:]] == [["2/2", "finished"], ["1/3", "unfinished"]] or "2/2" in lines[
        1
    ]
    assert "is damaged" in told.err
    listed = json.loads(said(capsys, "list", tmp_path, "--json").out)
    assert [(one["finished"], one["total"], one["state"]) for one in listed["studies"]] == [
        (2, 2, "finished"),
        (1, 3, "unfinished"),
    ]
    assert len(listed["problems"]) == 1


def test_show_tells_everything_and_hostile_names_cannot_steer_a_terminal(tmp_path, capsys):
    folder = study(tmp_path, key(1), words=["hijack", "--schemes", "a\x1b[31mb"], out=tmp_path, evil="\x1b]0;x\x07")
    told = said(capsys, "show", folder).out
    assert "\x1b" not in told
    assert "settings.evil" in told
    assert one_study(folder).study.name in told
    shown = json.loads(said(capsys, "show", folder, "--json").out)
    assert shown["manifest"]["settings"] == {"evil": "\x1b]0;x\x07"}
    assert "\x1b" not in said(capsys, "list", folder).out


@pytest.mark.parametrize("action", ["list", "show", "resume", "clean"])
def test_a_folder_that_is_not_there_is_told(tmp_path, capsys, action):
    told = said(capsys, action, tmp_path / "none", status=2)
    assert (told.out, told.err.startswith("lcalens: folder")) == ("", True)


def test_several_studies_are_named_where_one_is_meant(tmp_path, capsys):
    study(tmp_path, key(1), level=1)
    study(tmp_path, key(1), level=2)
    told = said(capsys, "show", tmp_path, status=2).err
    assert "holds 2 studies; name one by its manifest" in " ".join(told.split())
    for kept in find_studies(tmp_path)[0]:
        assert kept.study.name in said(capsys, "show", kept.file).out


# --- compare ----------------------------------------------------------------------------------------------------------


def result(values, cases, n=(0, 1), **provenance):
    return Result(
        kind="efficacy",
        axes={"example": tuple(range(len(cases))), "n": n},
        values={"logp": np.array(values, dtype=float)},
        examples=pd.DataFrame({"case_id": cases}),
        provenance={"model": {"fingerprint": "f"}, **provenance},
    )


def test_numbers_are_compared_where_both_have_the_same_fact_and_label():
    left = result([[0, 1], [2, np.nan], [4, 5]], ["a", "b", "c"])
    right = result([[7, 4, 4.5], [9, 1, 1.25]], ["c", "a"], n=(2, 0, 1))
    (numbers,) = compare_numbers(left, right)
    assert (numbers.compared, numbers.alone, numbers.largest) == (4, 0, 1.0)
    assert (numbers.at, numbers.left, numbers.right) == ({"example": ("a",), "n": 0}, 0.0, 1.0)
    (numbers,) = compare_numbers(left, result([[0, 1], [2, 3]], ["a", "b"]))
    assert (numbers.compared, numbers.alone, numbers.largest) == (3, 1, 0.0)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (result([[1, 2]], ["z"]), "no example in common"),
        (result([[1, 2], [1, 2]], ["a", "a"]), "cannot be told to be the same"),
        (replace(result([[1, 2]], ["a"]), examples=pd.DataFrame({"row": [1]})), "cannot be told to be the same"),
        (replace(result([[1, 2]], ["a"]), axes={"example": (0,), "head": (0, 1)}), "their axes are"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_numbers_of_other_examples_are_not_compared(other, why):
    with pytest.raises(LcalensError, match=why):
        compare_numbers(result([[0, 1]], ["a"]), other)


@pytest.fixture(scope="module")
def hijacked(standin, tmp_path_factory):
    """Two commands that differ in the counts, and what they were typed as."""
    place = tmp_path_factory.mktemp("hijacked")
    model = str(standin("gpt2").folder)
    words = ["hijack", "--model", model, "--limit", "4", "--schemes", "dont-think", "--counts"]
    commands = {name: [*words, *counts, "--out", str(place / name)] for name, counts in
                (("a", ("0", "1")), ("b", ("0", "1", "2")))}  # fmt: skip
    for command in commands.values():
        assert cli.main(command) == 0
    return place, commands


def test_compare_says_settings_and_the_largest_difference(hijacked, capsys):
    place, _ = hijacked
    capsys.readouterr()
    told = json.loads(said(capsys, "compare", place / "a", place / "b", "--json").out)
    assert [one["name"] for one in told["differences"]] == ["settings.config.counts"]
    both = [Result.load(place / name / "result").values["logp_true"] for name in "ab"]
    largest = np.abs(both[0] - both[1][..., :2]).max()
    numbers = {one["quantity"]: one for one in told["numbers"]}
    assert numbers["logp_true"]["largest"] == pytest.approx(largest)
    assert numbers["logp_true"]["compared"] == both[0].size
    assert "settings.config.counts: [0, 1] | [0, 1, 2]" in said(capsys, "compare", place / "a", place / "b").out


def test_a_result_of_other_settings_is_not_taken_for_a_studys_own(hijacked, tmp_path):
    import shutil

    place, _ = hijacked
    assert saved_result(one_study(place / "a")) == place / "a" / "result"
    mixed = tmp_path / "mixed"
    shutil.copytree(place / "a", mixed)
    shutil.rmtree(mixed / "result")
    shutil.copytree(place / "b" / "result", mixed / "result")
    assert saved_result(one_study(mixed)) is None


# --- resume -----------------------------------------------------------------------------------------------------------


def files(folder):
    """What the command wrote for people, to the byte; cells and manifests hold times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in ("cells", "studies") and path.suffix != ".png"
    }


def test_resume_runs_the_command_again_and_writes_what_an_undisturbed_run_writes(hijacked, capfd):
    place, commands = hijacked
    folder, before = place / "b", files(place / "b")
    assert "table.md" in before
    next((folder / "cells").iterdir()).unlink()
    for name in before:
        (folder / name).unlink()
    capfd.readouterr()
    assert cli.main(["runs", "resume", str(place)]) == 0
    told = capfd.readouterr()
    assert "Written to" in told.out
    assert files(folder) == before
    assert one_study(folder).state == "finished"
    command = one_study(folder).study.command
    assert command is not None
    assert command.words == (*commands["b"],)
    assert cli.main(["runs", "resume", str(folder)]) == 2
    assert "has come to its end" in " ".join(capfd.readouterr().err.split())


def planned(capsys, place):
    told = json.loads(said(capsys, "resume", place, "--json").out)
    return sorted((one["command"], one["directory"]) for one in told)


def test_a_folder_that_was_moved_is_resumed_where_it_is_now(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "out"
    for words in (["trace", "--out=out/t", "--limit", "9"], ["trace", "--limit", "8", "--out", "out/t"]):
        study(place / "t" / "patching", key(*words), put=0, end=False, words=words, out=place / "t", words_=words)
    report = ["report", "--limit", "6"]
    study(place / "r-parts" / "efficacy", key(3), put=0, end=False, words=report, out=place / "r.html")
    study(place / "r-parts" / "patching", key(4), put=0, end=False, words=report, out=place / "r.html")
    assert [words for words, _ in planned(capsys, place / "t")] == [
        ["trace", "--limit", "8", "--out", "out/t"], ["trace", "--out=out/t", "--limit", "9"]
    ]  # fmt: skip
    moved = tmp_path / "moved"
    place.rename(moved)
    found = planned(capsys, moved)
    assert [words for words, _ in found if words[0] == "trace"] == [
        ["trace", "--limit", "8", "--out", str(moved / "t")], ["trace", "--out", str(moved / "t"), "--limit", "9"]
    ]  # fmt: skip
    assert [words for words, _ in found if words[0] == "report"] == [[*report, "--out", str(moved / "r.html")]]
    assert {directory for _, directory in found} == {str(tmp_path)}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (None, "was called from Python"),
        (["runs", "clean", "/", "--yes"], "is none that keeps parts"),
        (["ask", "x"], "is none that keeps parts"),
    ],
    ids=str,
)
def test_what_cannot_be_resumed_is_refused_with_the_reason(tmp_path, capsys, words, why):
    out = None if words is None else tmp_path
    study(tmp_path, key(1), put=0, end=False, words=words, out=out)
    assert why in " ".join(said(capsys, "resume", tmp_path, status=2).err.split())


def test_a_command_typed_in_a_folder_that_is_gone_is_told(tmp_path, capsys, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    study(tmp_path / "out", key(1), put=0, end=False, words=["hijack", "--out", "../out"], out=tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    gone.rmdir()
    assert "is not there; type it where" in " ".join(said(capsys, "resume", tmp_path, status=2).err.split())


def test_a_command_that_fails_again_ends_with_its_status(tmp_path, capfd):
    words = ["hijack", "--facts", str(tmp_path / "none.json")]
    study(tmp_path / "out", key(1), put=0, end=False, words=words, out=tmp_path / "out")
    with pytest.raises(SystemExit) as ended:
        cli.main(["runs", "resume", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "none.json" in capfd.readouterr().err


def test_every_command_that_keeps_parts_can_be_resumed():
    from lcalens.commands.defend import Defend

    keeping = {name for name, command in cli._COMMANDS.items() if command is Defend or command.keeps_parts}
    assert keeping == set(runs._KEEPING)


# --- clean ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path):
    """A folder with a finished study, an unfinished one that shares a cell with it, and what nobody needs."""
    folder = tmp_path / "run"
    study(folder, key("done"), key("shared"), level=1)
    study(folder, key("shared"), key("new"), put=1, end=False, level=2)
    CellStore(folder).put(key("nobody's"), ARRAYS)
    old, young = folder / "cells" / "x.1.part", folder / "cells" / "x.2.part"
    for file in (old, young, folder / "cells" / "notes.txt", folder / "cells" / "mine.safetensors", tmp_path / "mine"):
        file.write_text("x")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    (folder / "result").mkdir()
    (folder / "result" / "values.safetensors").write_text("x")
    outside = tmp_path / "elsewhere"
    study(outside / "run", key("far"), level=3)
    (folder / "linked").symlink_to(outside)
    (folder / "cells" / f"{key('link')}.safetensors").symlink_to(tmp_path / "mine")
    return folder


def every(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_clean_says_what_would_go_and_removes_it_only_when_told(full, capsys):
    before = every(full.parent)
    told = said(capsys, "clean", full).out
    assert "Nothing is removed yet: give --yes" in told
    assert "would have to be computed again" in " ".join(told.split())
    assert every(full.parent) == before
    assert "Removed." in said(capsys, "clean", full, "--yes").out
    gone = {f"run/cells/{name}.safetensors" for name in (key("done"), key("nobody's"))} | {"run/cells/x.1.part"}
    assert before - every(full.parent) == gone
    states = {one.study.settings["level"]: one.state for one in find_studies(full)[0]}
    assert states == {1: "cleaned", 2: "unfinished"}
    assert "Nothing can go." in said(capsys, "clean", full).out


def test_a_cleaned_study_that_runs_again_is_finished_again(full):
    plan = plan_cleaning(full)
    assert cli.main(["runs", "clean", str(full), "--yes"]) == 0
    assert len(plan.finished) == 1
    study(full, key("done"), key("shared"), level=1)
    assert {one.state for one in find_studies(full)[0]} == {"finished", "unfinished"}


def test_cells_stay_where_a_manifest_cannot_be_read(full, capsys):
    kept = find_studies(full)[0]
    kept[1].file.write_text("damaged")
    before = every(full)
    told = said(capsys, "clean", full, "--yes").out
    assert "Cells stay where a manifest cannot be read" in told
    assert before - every(full) == {"cells/x.1.part"}


def test_a_folder_of_cells_without_a_manifest_is_left_alone(tmp_path, capsys):
    CellStore(tmp_path).put(key(1), ARRAYS)
    assert "Nothing can go." in said(capsys, "clean", tmp_path, "--yes").out
    assert len(list((tmp_path / "cells").iterdir())) == 1


def test_folders_that_are_links_are_not_followed(tmp_path, capsys):
    outside = study(tmp_path / "outside", key(1))
    CellStore(outside).put(key("nobody's"), ARRAYS)
    inside = tmp_path / "inside"
    (inside / "studies").mkdir(parents=True)
    (kept,) = find_studies(outside)[0]
    (inside / "studies" / kept.file.name).write_bytes(written(kept.study))
    (inside / "cells").symlink_to(outside / "cells")
    other = tmp_path / "other"
    other.mkdir()
    (other / "studies").symlink_to(outside / "studies")
    (other / "cells").mkdir()
    assert "Nothing can go." in said(capsys, "clean", inside, "--yes").out
    assert "Nothing can go." in said(capsys, "clean", other, "--yes").out
    assert len(list((outside / "cells").iterdir())) == 2
