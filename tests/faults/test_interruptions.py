"""`efficacy` killed, interrupted, or out of disk at any moment: the next run finishes it, and the result is the same.

One process loads the model and forks a child for each run, so that dying costs milliseconds.
"""

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import standins

from lcalens import Fact, LcalensError, Result, efficacy, load_model
from lcalens.core.studies import find_studies

CITIES = list(standins.CAPITALS.values())
OPTIONS = {"schemes": ("dont-think", "neutral", "unrelated"), "counts": (0, 1, 2)}

# A line of JSON in: the folder, where to save the result, and how to die. A line out: the child's exit status.
SERVER = """
import json, os, signal, sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from faults_facts import FACTS, OPTIONS
from lcalens import efficacy, load_model
import lcalens.core.cells, lcalens.llm.efficacy.measure, lcalens.llm.efficacy.tables, safetensors.numpy
model = load_model({model!r})

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def child(job):
    how, at = job["how"], job["at"]
    count = [0]
    def meant(*arguments):  # files of the cells, or of the manifests
        return not arguments or f"/{{job['of']}}/" in str(arguments[0])
    def when(real, after=False):
        def wrapped(*arguments, **options):
            if how != "progress" and not meant(*arguments):
                return real(*arguments, **options)
            count[0] += 1
            if count[0] == at and not after:
                die()
            found = real(*arguments, **options)
            if count[0] == at:
                die()
            return found
        return wrapped
    progress = False
    if how == "progress":
        progress = when(lambda *call: None)
    elif how == "before the rename":
        os.replace = when(os.replace)
    elif how == "after the rename":
        os.replace = when(os.replace, after=True)
    elif how == "in the middle of writing":
        def half(real):
            def fsync(number):
                if not meant(os.readlink(f"/proc/self/fd/{{number}}")):
                    return real(number)
                count[0] += 1
                if count[0] == at:
                    os.ftruncate(number, os.fstat(number).st_size // 2)
                    die()
                return real(number)
            return fsync
        os.fsync = half(os.fsync)
    elif how == "timer":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, at)
    result = efficacy(model, FACTS, **OPTIONS, out=job["out"], progress=progress)
    if job["save"]:
        result.save(job["save"])

print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    pids = []
    for twin in range(job["twins"]):
        pids.append(os.fork())
        if pids[-1] == 0:
            if job["twins"] > 1:
                job["save"] += f" {{twin}}"
            try:
                child(job)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(9)
            os._exit(0)
    print(*(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids), flush=True)
"""

FACTS_SOURCE = f"""
from lcalens import Fact
CITIES = {CITIES!r}
LANDS = {list(standins.CAPITALS)!r}
OPTIONS = {OPTIONS!r}
FACTS = [
    Fact(case_id=i, relation_id="P36" if i % 3 else "P17", prompt="The capital of {{}} is",
         subject=f"{{LANDS[i % 16]}} {{i}}",
         target_true=(CITIES if i % 3 else LANDS)[i % 16], target_false=CITIES[i % 16 - 3])
    for i in range(90)
]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A function that runs a study in a child: its exit status."""
    place = tmp_path_factory.mktemp("server")
    standins.save_standin(place / "model", "llama")
    (place / "faults_facts.py").write_text(FACTS_SOURCE)
    script = SERVER.format(tests=str(place), model=str(place / "model"))
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout.readline() == "ready\n", process.communicate()[1][-2000:]

    def run(out, *, how="", at=0, of="cells", save=None, twins=1):
        places = {name: str(place) if place else None for name, place in (("out", out), ("save", save))}
        process.stdin.write(json.dumps({**places, "how": how, "at": at, "of": of, "twins": twins}) + "\n")
        process.stdin.flush()
        statuses = [int(status) for status in process.stdout.readline().split()]
        return statuses if twins > 1 else statuses[0]

    yield run
    _, said = process.communicate()
    assert process.returncode == 0, said[-2000:]


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """The study that nothing interrupted, without a folder and with one."""
    place = tmp_path_factory.mktemp("whole")
    assert server(None, save=place / "plain") == 0
    assert server(place / "out", save=place / "kept") == 0
    plain, kept = Result.load(place / "plain"), Result.load(place / "kept")
    assert same(plain, kept)
    assert "cells" not in kept.provenance
    assert len(list((place / "out" / "cells").iterdir())) == 8
    return kept


def same(left, right):
    """Whether two results are the same to the last bit."""
    for name, array in left.values.items():
        np.testing.assert_array_equal(array, right.values[name])
    for name, table in left.tables.items():
        pd.testing.assert_frame_equal(table, right.tables[name], check_exact=True)
    pd.testing.assert_frame_equal(left.examples, right.examples)
    assert told(left) == told(right)
    return True


def told(result):
    """Where a result comes from, as it is saved."""
    return json.loads(json.dumps({name: value for name, value in result.provenance.items() if name != "cells"}))


def finished(out):
    return {file.name: file.stat().st_mtime_ns for file in (out / "cells").glob("*.safetensors")}


def told_of(out):
    """The one study that the folder tells of, whole and readable."""
    (kept,), problems = find_studies(out)
    assert problems == []
    return kept


def finish(server, whole, out, save):
    """The run after the death: it takes what is finished, computes the rest, and gives the whole result."""
    before = finished(out)
    assert server(out, save=save) == 0
    again = Result.load(save)
    assert same(again, whole)
    after = finished(out)
    assert len(after) == 8
    assert {name: after[name] for name in before} == before, "a finished part was written again"
    kept = told_of(out)
    assert (kept.state, kept.study.total) == ("finished", 8)
    assert {f"{key}.safetensors" for key in kept.study.cells} == set(after)
    return len(before)


# --- killed ---------------------------------------------------------------------------------------------------------

DEATHS = [
    ("progress", 1),
    ("progress", 2),
    ("progress", 5),
    ("progress", 9),
    ("in the middle of writing", 1),
    ("in the middle of writing", 4),
    ("before the rename", 1),
    ("before the rename", 8),
    ("after the rename", 1),
    ("after the rename", 8),
]


@pytest.mark.parametrize(("how", "at"), DEATHS, ids=lambda value: str(value))
def test_a_killed_run_is_finished_by_the_next(server, whole, tmp_path, how, at):
    out = tmp_path / "out"
    assert server(out, how=how, at=at, save=tmp_path / "never") == -signal.SIGKILL
    assert not (tmp_path / "never").exists()
    parts = list((out / "cells").glob("*.part"))
    kept = finish(server, whole, out, tmp_path / "again")
    if how in ("in the middle of writing", "before the rename"):
        assert (len(parts), kept) == (1, at - 1)
    elif how == "after the rename":
        assert (len(parts), kept) == (0, at)


@pytest.mark.parametrize("how", ["in the middle of writing", "before the rename", "after the rename"])
@pytest.mark.parametrize("at", [1, 3, 5])  # a write for the clean prompts, one for every scheme, and one at the end
def test_a_run_killed_while_it_says_what_it_is_loses_nothing(server, whole, tmp_path, how, at):
    out = tmp_path / "out"
    assert server(out, how=how, at=at, of="studies", save=tmp_path / "never") == -signal.SIGKILL
    if (at, how) != (1, "after the rename") and at == 1:
        assert find_studies(out) == ([], [])
    else:
        kept = told_of(out)
        assert kept.state == ("finished" if (at, how) == (5, "after the rename") else "unfinished")
        assert {f"{key}.safetensors" for key in kept.present} == set(finished(out)), "a cell that no manifest lists"
        assert kept.study.total == 8
    finish(server, whole, out, tmp_path / "again")


def test_a_run_killed_again_and_again_gets_there(server, whole, tmp_path):
    out, deaths = tmp_path / "out", 0
    while (status := server(out, how="after the rename", at=2, save=tmp_path / "end")) != 0:
        assert status == -signal.SIGKILL
        deaths += 1
        assert len(finished(out)) == 2 * deaths
    assert deaths == 4
    assert same(Result.load(tmp_path / "end"), whole)


def test_runs_killed_at_any_moment(server, whole, tmp_path):
    """Wherever a timer happens to strike."""
    out = tmp_path / "out"
    statuses = [server(out, how="timer", at=seconds) for seconds in (0.005, 0.05, 0.1, 0.2)]
    assert set(statuses) <= {-signal.SIGALRM, 0}
    assert -signal.SIGALRM in statuses
    out.mkdir(exist_ok=True)
    (out / "cells").mkdir(exist_ok=True)
    finish(server, whole, out, tmp_path / "again")


def test_two_runs_at_once_in_one_folder(server, whole, tmp_path):
    """They may do the same work twice, but never spoil it."""
    assert server(tmp_path / "out", save=tmp_path / "result", twins=2) == [0, 0]
    for i in range(2):
        found = Result.load(tmp_path / f"result {i}")
        assert same(found, whole)
    assert list((tmp_path / "out" / "cells").glob("*.part")) == []
    assert len(finished(tmp_path / "out")) == 8


# --- interrupted, and no room, in this process ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(standin):
    """A function that runs the study here."""
    scope = {}
    exec(FACTS_SOURCE, scope)
    model = standin("llama").model
    return lambda **options: efficacy(model, scope["FACTS"], **({**OPTIONS, "progress": False} | options))


@pytest.mark.parametrize("at", [1, 4, 9])
def test_an_interrupt_keeps_what_is_finished(study, tmp_path, at):
    calls = itertools.count(1)

    def interrupt(done, total, what):
        if next(calls) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(out=tmp_path, progress=interrupt)
    before = finished(tmp_path)
    again = study(out=tmp_path)
    assert again.provenance["cells"] == {"loaded": len(before), "computed": 8 - len(before)}
    np.testing.assert_allclose(again.values["logp_false"], study().values["logp_false"], atol=1e-4)


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize(("of", "fails"), [("cells", 3), ("studies", 1), ("studies", 2)])
def test_a_full_disk_is_told_and_the_next_run_goes_on(study, tmp_path, monkeypatch, name, of, fails):
    calls, real = itertools.count(1), getattr(os, name)

    def full(*arguments, **options):
        place = arguments[0] if name == "replace" else os.readlink(f"/proc/self/fd/{arguments[0]}")
        if f"/{of}/" in str(place) and next(calls) >= fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(LcalensError, match=r"^out: .*No space left on device"):
            study(out=tmp_path)
    there = 2 if of == "cells" else 2 * (fails - 1)  # two parts of clean prompts, and then of every scheme
    assert sorted(file.suffix for file in (tmp_path / "cells").iterdir()) == [".safetensors"] * there
    assert all(file.suffix == ".json" for file in (tmp_path / "studies").iterdir())
    again = study(out=tmp_path)
    assert again.provenance["cells"] == {"loaded": there, "computed": 8 - there}


def test_a_disk_full_when_the_result_is_saved(study, tmp_path, monkeypatch):
    result = study()
    result.save(tmp_path / "result")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", full)
        with pytest.raises(LcalensError, match=r"^folder: .*No space left on device"):
            result.save(tmp_path / "result")
    assert same(Result.load(tmp_path / "result"), result)
    assert [item.name for item in tmp_path.iterdir()] == ["result"]


def test_a_folder_taken_away_while_running(study, tmp_path):
    out = tmp_path / "out"
    calls = itertools.count(1)

    def vanish(done, total, what):
        if next(calls) == 4:
            shutil.rmtree(out)

    with pytest.raises(LcalensError, match=r"^out: "):
        study(out=out, progress=vanish)


def test_a_model_whose_logits_are_not_numbers_keeps_nothing(standin, tmp_path):
    import copy
    import math

    import torch

    plain = copy.deepcopy(standin("llama").plain)
    with torch.no_grad():
        plain.model.norm.weight[0] = math.nan
    with pytest.warns(UserWarning, match="weights that are NaN or infinite"):
        model = load_model(plain, tokenizer=standin("llama").tokenizer)
    fact = Fact(
        case_id=1, relation_id="P36", prompt="The capital of {} is", subject="France", target_true="Paris",
        target_false="Rome",
    )  # fmt: skip
    with pytest.raises(LcalensError, match="model: its logits are not finite"):
        efficacy(model, [fact], counts=(0,), out=tmp_path, progress=False)
    assert list(Path(tmp_path, "cells").iterdir()) == []
