"""Clusters of two nodes, of Ray and of Dask: the same bits, and no finished cell is lost if a node dies."""

import os
import signal
import sys
import threading
import time

import pytest
from helpers import nodes
from helpers.elsewhere import slowly, where

from lcalens import Result, cli, efficacy, load_facts
from lcalens.core.cells import CellStore, content_key
from lcalens.core.engines import check_engine, workers_of
from lcalens.core.errors import LcalensError
from lcalens.core.studies import cell_file, one_study
from lcalens.core.work import finish
from lcalens.core.workers import Piece

pytestmark = pytest.mark.filterwarnings("ignore")  # of the engines' own
HIJACK = {"schemes": ("dont-think", "neutral"), "counts": (0, 1), "progress": False}
CELLS = 24


@pytest.fixture(scope="module")
def model(standin):
    return standin("llama").model


@pytest.fixture(scope="module", params=["ray", "dask"])
def cluster(request, tmp_path_factory):
    library = {"ray": "ray", "dask": "distributed"}[request.param]
    pytest.importorskip(library, reason=f"{library} is not installed: pip install 'lcalens[{request.param}]'")
    made = nodes.RayNodes() if request.param == "ray" else nodes.DaskNodes(tmp_path_factory.mktemp("dask"))
    yield made
    made.close()


def same(left, right):
    for name, array in left.values.items():
        assert array.tobytes() == right.values[name].tobytes()
    assert all(table.equals(right.tables[name]) for name, table in left.tables.items())
    return True


@pytest.mark.slow
def test_tables_are_the_same_to_the_bit_whatever_the_engine(model, cluster, tmp_path):
    facts = load_facts("sample", limit=70)
    with cluster.connected():
        found = efficacy(model, facts, **HIJACK, n_jobs=2, out=tmp_path)
        again = efficacy(model, facts, **HIJACK, n_jobs=-1)
    assert same(found, again)
    assert same(found, efficacy(model, facts, **HIJACK))
    assert one_study(tmp_path).state == "finished"


@pytest.mark.slow
def test_workers_stay_and_load_the_model_once(model, cluster):
    found = []
    with cluster.connected():
        for _ in range(2):
            with cells(model, where, range(6), None) as done:
                found += [cell["found"] for _, cell, _ in done]
    assert len({(int(pid), int(model)) for pid, model, _, _ in found}) == len({int(pid) for pid, *_ in found}) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["worker", "node"])
def test_no_finished_cell_is_lost_or_computed_again(model, cluster, tmp_path, killed):
    jobs = [(str(tmp_path), number) for number in range(CELLS)]
    keys = [key(number) for number in range(CELLS)]
    there = []

    def kill():
        while sum(cell_file(tmp_path, one).exists() for one in keys) < 6:
            time.sleep(0.05)
        if killed == "node":
            cluster.kill_node()
        else:
            last = max(tmp_path.glob("begun-*"), key=os.path.getmtime)
            os.kill(int(last.read_text().split()[-1]), signal.SIGKILL)
        there.extend(number for number in range(CELLS) if cell_file(tmp_path, keys[number]).exists())

    killer = threading.Thread(target=kill)
    killer.start()
    said = []
    while len(said) < 4:
        try:
            with cluster.connected(), cells(model, slowly, jobs, tmp_path) as done:
                found = sorted(int(cell["found"][0]) for _, cell, _ in done)
            break
        except LcalensError as error:
            said.append(str(error))
    killer.join()
    if killed == "node":
        cluster.mend()
    assert found == list(range(CELLS))
    begun = {number: len((tmp_path / f"begun-{number}").read_text().split()) for number in range(CELLS)}
    assert len(there) >= 6
    assert {begun[number] for number in there} == {1}
    assert max(begun.values()) >= 2  # what was at work when it died
    assert all("a worker process was ended from outside" in one and "Start it again" in one for one in said)
    print(f"{killed} killed: {len(there)} cells were finished, {sum(begun.values())} begun in {1 + len(said)} calls")


@pytest.mark.slow
def test_commands_take_an_engines_address(standin, cluster, tmp_path, capsys):
    words = ["hijack", "--model", str(standin("llama").folder), "--limit", "4", "--counts", "0", "1"]
    address = "ray" if isinstance(cluster, nodes.RayNodes) else f"dask://{cluster.address}"
    assert cli.main([*words, "--engine", address, "--out", str(tmp_path / "there")]) == 0
    assert cli.main([*words, "--out", str(tmp_path / "here")]) == 0
    capsys.readouterr()
    assert same(*(Result.load(tmp_path / place / "result") for place in ("there", "here")))


@pytest.mark.parametrize("engine", ["rey", "ray:/localhost:1", "dask://nowhere", "http://localhost:1", "dask", ""])
def test_what_is_no_address_is_refused(engine):
    with pytest.raises(LcalensError, match=r"^engine: .* is not the address of a cluster; give ray://HOST:PORT"):
        check_engine(engine)


def test_a_cluster_that_does_not_answer_is_named():
    pytest.importorskip("distributed", reason="Dask is not installed: pip install 'lcalens[dask]'")
    nowhere = "dask://127.0.0.1:9"
    with pytest.raises(LcalensError, match=f"^engine: no cluster answers at {nowhere!r}"), workers_of(nowhere, 1):
        pass


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    needed = r'^engine: .ray. needs `pip install "lcalens\[ray\]"`'
    with pytest.raises(LcalensError, match=needed), workers_of("ray", 1):
        pass


def test_without_an_engine_the_processes_are_this_machines():
    with workers_of(None, 3) as jobs:
        assert jobs == 3


def key(number):
    return content_key(["engines", number])


def cells(model, work, jobs, folder):
    pieces = [Piece(key(number), job) for number, job in enumerate(jobs)]
    return finish(CellStore(folder), pieces, work, model, code=[work], n_jobs=2)
