"""A clock that jumps, by a day or by fifty years: nothing is lost, and no number knows of it."""

import itertools
import os
from datetime import UTC, datetime

import pytest

from lcalens import Result, cli, efficacy, load_facts
from lcalens.core import files
from lcalens.core.files import write_whole
from lcalens.core.studies import one_study
from lcalens.views.runs_text import ago

JUMPS = ("2026-05-01T12:00:00+00:00", "1970-01-01T00:00:00+00:00", "2077-01-01T00:00:00+00:00")
HIJACK = {"schemes": ("dont-think", "neutral"), "counts": (0, 1), "progress": False}


@pytest.fixture
def jumping(monkeypatch):
    """Every look at the clock is at another time."""
    moments = itertools.cycle(JUMPS)
    monkeypatch.setattr("lcalens.core.manifest.now", lambda: next(moments))
    seconds = itertools.cycle(datetime.fromisoformat(one).timestamp() for one in JUMPS)
    monkeypatch.setattr(files.time, "time", lambda: next(seconds))


def test_a_study_under_a_jumping_clock_is_the_undisturbed_one(standin, tmp_path, jumping, capsys):
    model, facts = standin("llama").model, load_facts("sample", limit=6)
    undisturbed = efficacy(model, facts, **HIJACK)
    first = efficacy(model, facts, **HIJACK, out=tmp_path / "run")
    for cell in sorted((tmp_path / "run" / "cells").iterdir())[:1]:
        cell.unlink()
    again = efficacy(model, facts, **HIJACK, out=tmp_path / "run")
    assert again.provenance["cells"] == {"loaded": 2, "computed": 1}
    for found in (first, again):
        assert {name: array.tobytes() for name, array in found.values.items()} == {
            name: array.tobytes() for name, array in undisturbed.values.items()
        }
    again.save(tmp_path / "result")
    assert Result.load(tmp_path / "result").tables.keys() == again.tables.keys()
    assert one_study(tmp_path / "run").state == "finished"
    for words in (["list"], ["show"], ["clean"]):
        assert cli.main(["runs", *words, str(tmp_path / "run")]) == 0
    assert "finished" in capsys.readouterr().out


def test_a_file_that_another_runs_clock_called_abandoned_is_written_again(tmp_path, monkeypatch):
    synced = os.fsync

    def remove(number):
        synced(number)
        monkeypatch.setattr(files.os, "fsync", synced)
        for unfinished in tmp_path.glob("*.part"):
            unfinished.unlink()

    monkeypatch.setattr(files.os, "fsync", remove)
    write_whole(tmp_path / "cell", b"whole")
    assert (tmp_path / "cell").read_bytes() == b"whole"
    assert [item.name for item in tmp_path.iterdir()] == ["cell"]


def test_a_folder_that_is_taken_away_is_told_at_once(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "none" / "cell", b"whole")


@pytest.mark.parametrize("moment", ["1970-01-01", "2077-01-01", datetime.now(UTC).isoformat()[:10]])
def test_how_long_ago_is_said_of_any_time(moment):
    said = ago(datetime.fromisoformat(moment).replace(tzinfo=UTC))
    assert said
    assert "-" not in said
