"""GGUF files that are cut short, forged, foreign or too large: one error, which names the file."""

import time

import pytest
import torch
from helpers import standins

from lcalens.core.errors import LcalensError
from lcalens.llm.models import gguf as gguf_cache
from lcalens.llm.models.load import load_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    standins.save_tiny_gguf(path)
    return path


def folders(cache):
    return [path for path in (cache / "models").iterdir() if path.is_dir()]


@pytest.mark.parametrize("size", [4, 5, 24, 100, 5000, 0.5, -1])
def test_a_gguf_cut_short(tiny, tmp_path, size):
    cut = tmp_path / "cut.gguf"
    whole = tiny.read_bytes()
    cut.write_bytes(whole[: int(size * len(whole)) if size == 0.5 else size])
    with pytest.raises(LcalensError, match=r"cut\.gguf.*damaged"):
        load_model(cut, cache_dir=tmp_path / "cache")
    assert folders(tmp_path / "cache") == []


@pytest.mark.parametrize("name", ["model.gguf", "model.bin"])
@pytest.mark.parametrize("junk", [b"", b"GGU", b"PK\x03\x04 something else", b"{}"])
def test_a_file_that_is_no_gguf(tmp_path, name, junk):
    (tmp_path / name).write_bytes(junk)
    with pytest.raises(LcalensError, match=rf"{name}.* not a GGUF"):
        load_model(tmp_path / name, cache_dir=tmp_path / "cache")


def test_a_header_that_promises_too_much(tiny, tmp_path):
    """2^60 tensors, 2^60 settings."""
    for place in (8, 16):
        damaged = bytearray(tiny.read_bytes())
        damaged[place : place + 8] = (1 << 60).to_bytes(8, "little")
        path = tmp_path / f"greedy{place}.gguf"
        path.write_bytes(damaged)
        started = time.process_time()  # of this process alone: the machine may be busy
        with pytest.raises(LcalensError, match=path.name):
            load_model(path, cache_dir=tmp_path / "cache")
        assert time.process_time() - started < 20


def test_an_architecture_that_transformers_does_not_read(tmp_path):
    path = tmp_path / "odd.gguf"
    standins.save_tiny_gguf(path, architecture="rwkv6qwen2")
    with pytest.raises(LcalensError, match=r"odd\.gguf.*architecture"):
        load_model(path, cache_dir=tmp_path / "cache")
    assert folders(tmp_path / "cache") == []


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("out of memory")])
def test_no_memory_to_convert(tiny, tmp_path, monkeypatch, error):
    def refuse(*args, **options):
        raise error

    monkeypatch.setattr(gguf_cache, "weights_of", refuse)
    with pytest.raises(LcalensError, match=r"tiny\.gguf.*memory") as caught:
        load_model(tiny, cache_dir=tmp_path)
    assert "damaged" not in str(caught.value)
    assert folders(tmp_path) == []


def test_a_missing_file(tmp_path):
    with pytest.raises(LcalensError, match="no file or folder"):
        load_model(tmp_path / "nothing.gguf")
