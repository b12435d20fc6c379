"""Several processes: the same tables to the bit, one load each, and no finished cell lost if a worker dies."""

import copy
import os
from collections import deque

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.elsewhere import die, grow, refuse, where
from helpers.standins import TEMPLATE, raising, save_standin

from lcalens import (
    LatentConcepts,
    LCAConfig,
    LCAForCausalLM,
    Result,
    cli,
    contrast_concepts,
    contrast_facts,
    defend,
    efficacy,
    evaluate_defence,
    head_kinds,
    lca_bridge,
    load_facts,
    load_model,
    patch,
    path,
    shapley,
)
from lcalens.core.cells import CellStore, content_key
from lcalens.core.errors import LcalensError
from lcalens.core.sources import sources
from lcalens.core.stamp import stamp
from lcalens.core.studies import cell_file, one_study
from lcalens.core.tokenizer_stamp import ModelTokenizer
from lcalens.core.tokens import follow, source_tokenizer
from lcalens.core.work import finish
from lcalens.core.workers import Piece, Task, compute_elsewhere
from lcalens.llm.efficacy import parts
from lcalens.llm.efficacy.parts import Reading, key_of, part_of, score_part
from lcalens.llm.prompts.hijack import hijack_prompts


@pytest.fixture(scope="module")
def model(standin):
    return standin("llama").model


@pytest.fixture(scope="module")
def facts():
    return load_facts("sample", limit=70)  # two cells a scheme


@pytest.fixture(scope="module")
def contrast(model, facts):
    return contrast_facts(model, facts[:6], scheme="dont-think", control="other-object")


HIJACK = {"schemes": ("dont-think", "neutral"), "counts": (0, 1), "progress": False}


def same(left, right):
    for name, array in left.values.items():
        np.testing.assert_array_equal(array, right.values[name])
    for name, table in left.tables.items():
        pd.testing.assert_frame_equal(table, right.tables[name], check_exact=True)
    pd.testing.assert_frame_equal(left.examples, right.examples)
    told = [{name: value for name, value in one.provenance.items() if name != "cells"} for one in (left, right)]
    assert told[0] == told[1]
    return True


# --- the same numbers -------------------------------------------------------------------------------------------------


def test_efficacy_is_the_same_to_the_bit_and_goes_on_with_any_number_of_processes(model, facts, tmp_path):
    calls = []
    alone = efficacy(model, facts, **HIJACK)
    both = efficacy(model, facts, **{**HIJACK, "progress": lambda *call: calls.append(call)}, n_jobs=2)
    assert same(alone, both)
    assert (calls[-1][0], calls[-1][0]) == (calls[-1][1], max(done for done, _, _ in calls))
    kept = efficacy(model, facts, **HIJACK, n_jobs=2, out=tmp_path)
    assert same(alone, kept)
    assert kept.provenance["cells"] == {"loaded": 0, "computed": 6}
    assert (one_study(tmp_path).state, len(one_study(tmp_path).present)) == ("finished", 6)
    some = sorted((tmp_path / "cells").iterdir())[:2]
    for file in some:
        file.unlink()
    again = efficacy(model, facts, **HIJACK, n_jobs=2, out=tmp_path)
    assert again.provenance["cells"] == {"loaded": 4, "computed": 2}
    assert same(alone, again)
    alone_again = efficacy(model, facts, **HIJACK, out=tmp_path)
    assert alone_again.provenance["cells"] == {"loaded": 6, "computed": 0}


VERBS = {
    "patch": lambda model, contrast, **options: patch(model, contrast, site="z", **options),
    "patch with means": lambda model, contrast, **options: patch(
        model, contrast, site="attn_out", source="mean", **options
    ),
    "patch with a metric of one's own": lambda model, contrast, **options: patch(
        model, contrast, metric=lambda logits, index: logits.logsumexp(-1), **options
    ),
    "path": lambda model, contrast, **options: path(model, contrast, senders="heads", **options),
    "head_kinds": lambda model, contrast, **options: head_kinds(
        model, raising(model, contrast), [(0, 0), (1, 1)], **options
    ),
    "shapley": lambda model, contrast, **options: shapley(model, contrast, [(0, 0), (1, 1), (1, 0)], **options),
}


def test_the_commands_take_a_number_of_processes(standin, tmp_path, capsys):
    words = ["hijack", "--model", str(standin("llama").folder), "--limit", "4", "--counts", "0", "1", "--jobs"]
    for jobs in ("1", "2"):
        assert cli.main([*words, jobs, "--out", str(tmp_path / jobs)]) == 0
    assert same(*(Result.load(tmp_path / jobs / "result") for jobs in ("1", "2")))
    capsys.readouterr()
    for command in (words, ["trace", "--jobs"], ["defend", "evaluate", str(tmp_path), "--jobs"]):
        assert cli.main([*command, "0"]) == 2
        assert capsys.readouterr().err.startswith(("lcalens: --jobs: expected", "lcalens: folders: "))


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_are_the_same_to_the_bit(model, contrast, verb):
    assert same(*(VERBS[verb](model, contrast, progress=False, n_jobs=n_jobs) for n_jobs in (1, 2)))


def test_a_defence_is_judged_the_same(model, facts, contrast):
    made = {"cut": defend(model, contrast, heads=[(0, 0), (1, 1)], method="zero")}
    options = {"schemes": ("dont-think",), "honest": (), "texts": (), "progress": False}
    assert same(*(evaluate_defence(model, made, facts[6:16], **options, n_jobs=n_jobs) for n_jobs in (1, 2)))


def test_the_users_own_backend_is_taken(model, facts):
    before = torch.get_num_threads()
    with joblib.parallel_config(backend="threading"):
        found = efficacy(model, facts[:4], **HIJACK, n_jobs=2)
    assert same(found, efficacy(model, facts[:4], **HIJACK))
    assert torch.get_num_threads() == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Dask's own
def test_dasks_workers_are_the_same_to_the_bit(model, facts, tmp_path):
    dask = pytest.importorskip("dask.distributed", reason="Dask is not installed: pip install 'lcalens[dask]'")
    with (
        dask.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        dask.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        found = efficacy(model, facts, **HIJACK, n_jobs=2, out=tmp_path)
    assert same(found, efficacy(model, facts, **HIJACK))
    assert one_study(tmp_path).state == "finished"


# --- workers ----------------------------------------------------------------------------------------------------------


def key(number):
    return content_key(["elsewhere", number])


def elsewhere(model, work, jobs, folder=None):
    store = CellStore(folder)
    waiting = deque(Piece(key(number), job) for number, job in enumerate(jobs))
    return store, compute_elsewhere(store, waiting, work, model, [work], 2)


def test_a_worker_loads_the_model_once_and_has_one_thread(model):
    _, results = elsewhere(model, where, range(8))
    found = np.array([cell["found"] for _, cell, _ in results])
    assert sorted(found[:, 3]) == list(range(8))
    assert os.getpid() not in found[:, 0]
    assert len({tuple(row) for row in found[:, :2]}) == len(set(found[:, 0])) <= 2
    assert set(found[:, 2]) == {1}


def test_a_worker_whose_memory_grows_stays_with_its_model(model):
    _, results = elsewhere(model, grow, range(12))  # 480 MB each; loky ends what grows by 300 MB
    assert len({int(cell["found"][0]) for _, cell, _ in results}) <= 2


def test_cells_are_read_ahead_of_the_workers_and_no_further(model, monkeypatch):
    monkeypatch.setattr("lcalens.core.work._FIRST", 2)
    monkeypatch.setattr("lcalens.core.work._AHEAD", 3)
    read, done = [], []

    def pieces():
        for number in range(12):
            assert number - len(done) <= 3 + 2 * 2 + 2  # those that wait, those at work, those that have just come back
            read.append(number)
            yield Piece(key(number), number)

    with finish(CellStore(None), pieces(), where, model, code=[where], n_jobs=2) as cells:
        for _, cell, _ in cells:
            done.append(int(cell["found"][3]))
    assert sorted(done) == read == list(range(12))


def test_an_error_comes_back_as_it_was_and_what_was_finished_is_kept(model, tmp_path):
    store, results = elsewhere(model, refuse, range(3), tmp_path)
    with pytest.raises(LcalensError, match=r"^facts: the third cannot be used; give another"):
        list(results)
    assert key(0) in store


@pytest.mark.parametrize("kept", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_worker_that_is_killed_loses_no_finished_cell(model, tmp_path, kept):
    awaited = [str(cell_file(tmp_path, key(number))) for number in range(3)] if kept else [str(tmp_path)]
    store, results = elsewhere(model, die, [*[None] * 3, awaited, None, None], tmp_path if kept else None)
    said = f"finished parts are in {str(tmp_path)!r}" if kept else "nothing is kept"
    with pytest.raises(LcalensError, match=r"^n_jobs: a worker process was ended from outside.*Start it again") as told:
        list(results)
    assert said in str(told.value)
    if kept:
        assert all(store.get(key(number)) for number in range(3))
    _, results = elsewhere(model, where, range(2))
    assert len(list(results)) == 2  # the next call has new workers


@pytest.mark.parametrize("error", [KeyboardInterrupt, pytest.param(RuntimeError, marks=pytest.mark.slow)])
def test_an_interrupt_or_an_error_of_the_callers_keeps_what_is_finished(model, facts, tmp_path, error):
    def interrupt(done, total, what):
        if done:
            raise error

    with pytest.raises(error):
        efficacy(model, facts, **{**HIJACK, "progress": interrupt}, n_jobs=2, out=tmp_path)
    there = len(list((tmp_path / "cells").glob("*.safetensors")))
    assert there >= 1
    again = efficacy(model, facts, **HIJACK, n_jobs=2, out=tmp_path)
    assert again.provenance["cells"]["loaded"] >= there


# --- what other processes cannot have ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_jobs", [0, -2], ids=repr)
def test_what_is_no_number_of_processes_is_refused(model, facts, n_jobs):
    with pytest.raises(LcalensError, match=r"^n_jobs: expected an integer of at least 1"):
        efficacy(model, facts, **HIJACK, n_jobs=n_jobs)


def test_a_model_that_was_changed_is_refused(standin, facts):
    model = load_model(standin("llama").folder)
    with torch.no_grad():
        model.original_model.lm_head.weight[0, 0] += 1
    with pytest.raises(LcalensError, match=r"^n_jobs: the model that a worker loads is not this one.*n_jobs=1"):
        efficacy(model, facts[:4], **HIJACK, n_jobs=2)
    assert efficacy(model, facts[:4], **HIJACK).values


@pytest.mark.slow
def test_a_copy_of_a_loaded_model_that_was_changed_is_refused(model, facts):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.original_model.lm_head.weight[0, 0] += 1
    with pytest.raises(LcalensError, match=r"^n_jobs: the model that a worker loads is not this one"):
        efficacy(changed, facts[:4], **HIJACK, n_jobs=2)


def test_a_tokenizer_that_was_changed_is_refused_until_it_is_saved(facts, tmp_path):
    save_standin(tmp_path / "model", "llama")
    asked = {**HIJACK, "chat": True, "n_jobs": 2}
    model = load_model(tmp_path / "model")
    efficacy(model, facts, **HIJACK, n_jobs=2)  # workers have this model, with its tokenizer of now
    tokenizer = source_tokenizer(model)
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(LcalensError, match=r"^n_jobs: the tokenizer that a worker loads is not this one: .*n_jobs=1"):
        efficacy(model, facts, **asked)
    given = load_model(tmp_path / "model", tokenizer=tokenizer)
    found = efficacy(given, facts, **asked)
    tokenizer.save_pretrained(tmp_path / "model")
    assert same(found, efficacy(load_model(tmp_path / "model"), facts, **asked))
    assert same(found, efficacy(given, facts, **{**asked, "n_jobs": 1}))


def test_tokens_that_depend_on_the_day_are_never_mixed(standin, facts, monkeypatch):
    model = standin("llama").model
    how = Reading(ModelTokenizer(model), chat=False, join=None, batch=None)
    prompts = hijack_prompts(facts[:3], "dont-think", counts=(1,)).prompts
    today = part_of(0, prompts, model, how)
    score_part(model, today, how=how)
    monkeypatch.setattr(parts, "follow", lambda *given, **options: follow(*changed(given), **options))
    tomorrow = part_of(0, prompts, model, how)
    assert key_of("model", today, how) != key_of("model", tomorrow, how)
    with pytest.raises(LcalensError, match=r"^chat: the same text has other tokens than when .*date"):
        score_part(model, today, how=how)


def changed(given):
    """The texts as a chat template may write them another day."""
    tokenizer, texts, *others = given
    return tokenizer, [f"Today is Monday. {text}" for text in texts], *others


def test_a_model_that_no_name_loads_is_refused(standin, facts):
    made = load_model(standin("llama").plain, tokenizer=standin("llama").tokenizer)
    with pytest.raises(LcalensError, match=r"^n_jobs: the model was not loaded by a name or a path.*n_jobs=1"):
        efficacy(made, facts[:4], **HIJACK, n_jobs=2)
    toy = lca_bridge(LCAForCausalLM(LCAConfig(m=4, d_model=8, d_head=8)))
    with pytest.raises(LcalensError, match=r"^n_jobs: the model was not loaded by a name or a path"):
        patch(toy, contrast_concepts(LatentConcepts(4), limit=4, length=16), n_jobs=2, progress=False)


def test_hooks_are_refused(model, facts):
    with (
        model.hooks(fwd_hooks=[("blocks.0.hook_out", lambda value, hook: value)]),
        pytest.raises(LcalensError, match=r"^n_jobs: hooks are attached to the model"),
    ):
        efficacy(model, facts[:4], **HIJACK, n_jobs=2)


def test_a_worker_with_other_sources_is_refused(model):
    loading = vars(model)["lcalens_loading"]
    task = Task(loading, stamp(model), [where], sources(where)[::-1], where, None)
    with pytest.raises(LcalensError, match=r"^n_jobs: a worker has another lcalens"):
        task.compute(0, "", 0)


def test_a_cell_that_another_worker_has_finished_is_not_computed_again(model, tmp_path):
    CellStore(tmp_path).put(key(0), {"found": np.array([7])})
    task = Task(vars(model)["lcalens_loading"], stamp(model), [refuse], sources(refuse), refuse, tmp_path)
    _, cell, _, kept = task.compute(0, key(0), 2)  # which would be refused
    assert (cell["found"].tolist(), kept) == ([7], True)


def test_how_a_model_was_loaded_is_no_part_of_its_stamp_and_shows_no_token(standin):
    folder = standin("llama").folder
    first, second = load_model(folder), load_model(folder, dtype="float32", token="secret")
    assert stamp(first) == stamp(second)
    assert "secret" not in repr(vars(second)["lcalens_loading"])
