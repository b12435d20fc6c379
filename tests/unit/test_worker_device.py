"""Workers of one machine take its GPUs in turn; nothing else is changed."""

import multiprocessing
import os

import pytest
import torch

from lcalens.core.worker_device import take_device

NAME = "CUDA_VISIBLE_DEVICES"


@pytest.fixture
def machine(monkeypatch):
    def made(count, visible=None, process="LokyProcess-1", started=False):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
        monkeypatch.setattr(multiprocessing.current_process(), "_name", process)
        monkeypatch.setenv(NAME, visible or "")
        if visible is None:
            monkeypatch.delenv(NAME)

    return made


def seen(options):
    take_device(options)
    return os.environ.get(NAME)


@pytest.mark.parametrize("device", ["cuda", torch.device("cuda")], ids=str)
def test_workers_take_them_in_turn(machine, device):
    found = []
    for process in range(1, 5):
        machine(2, process=f"LokyProcess-{process}")
        found.append(seen({"device": device}))
    assert found == ["1", "0", "1", "0"]


def test_of_those_that_the_user_shows(machine):
    found = []
    for process in range(1, 4):
        machine(3, "4, GPU-7f,2", process=f"LokyProcess-{process}")
        found.append(seen({"device": "cuda"}))
    assert found == ["GPU-7f", "2", "4"]


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"count": 2}, {"device": None}),
        ({"count": 2}, {"device": "cpu"}),
        ({"count": 2}, {"device": "cuda:1"}),
        ({"count": 2}, {"device": None, "device_map": "auto"}),
        ({"count": 1}, {"device": "cuda"}),
        ({"count": 1, "visible": "5"}, {"device": "cuda"}),
        ({"count": 0}, {"device": "cuda"}),
        ({"count": 2, "process": "MainProcess"}, {"device": "cuda"}),
        ({"count": 2, "started": True}, {"device": "cuda"}),
    ],
    ids=str,
)
def test_what_is_left_as_it_is(machine, changes, options):
    machine(**changes)
    assert seen(options) == changes.get("visible")
