"""The cache of converted weights: made once, mended when damaged, whole whatever dies or runs beside it."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import standins

from lcalens.core.cache import cache_root
from lcalens.core.errors import LcalensError
from lcalens.llm.models import gguf as gguf_cache
from lcalens.llm.models.gguf import convert_gguf
from lcalens.llm.models.load import load_model

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = "The capital of France is"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A small GGUF file, and the model it was written from."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, standins.save_tiny_gguf(path)


@pytest.fixture(scope="session")
def filled(tiny, tmp_path_factory):
    """A cache that holds it."""
    cache = tmp_path_factory.mktemp("filled")
    convert_gguf(tiny[0], cache)
    return cache


@pytest.fixture
def cache(filled, tmp_path):
    """A copy of that cache to damage."""
    return shutil.copytree(filled, tmp_path / "cache")


@pytest.fixture
def conversions(monkeypatch):
    """The GGUF files that were read."""
    read, open_gguf = [], gguf_cache.open_gguf

    def spy(path):
        read.append(path.name)
        return open_gguf(path)

    monkeypatch.setattr(gguf_cache, "open_gguf", spy)
    return read


def folders(cache):
    return [path for path in (cache / "models").iterdir() if path.is_dir()]


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def right(folder, tiny):
    """Whether Hugging Face finds in the folder the model that the GGUF was written from."""
    ids = standins.byte_level_tokenizer()(TEXT).input_ids
    wanted, found = (standins.logits_of(model, ids) for model in (tiny[1], standins.hugging_face(folder)))
    return torch.allclose(found, wanted, rtol=0, atol=1e-4)


# --- made once ------------------------------------------------------------------------------------------------------


def test_a_gguf_is_the_model_it_was_written_from(tiny, tmp_path):
    bridge = load_model(tiny[0], cache_dir=tmp_path)
    ids = standins.byte_level_tokenizer()(TEXT).input_ids
    with torch.no_grad():
        logits = bridge(torch.tensor([ids]))[0]
    torch.testing.assert_close(logits, standins.logits_of(tiny[1], ids), rtol=0, atol=1e-4)
    info = bridge.lcalens_info
    digest = hashlib.sha256(tiny[0].read_bytes()).hexdigest()
    assert (info.source, info.family, info.quantisation) == ("tiny.gguf", "llama", "F32, dequantised")
    assert digest.startswith(info.revision)
    assert len(info.revision) >= 8
    assert info.tokenizer(TEXT).input_ids == ids


def test_it_is_converted_once(tiny, tmp_path, conversions):
    first = convert_gguf(tiny[0], tmp_path)
    before = content(first.folder)
    again = convert_gguf(tiny[0], tmp_path)
    load_model(tiny[0], cache_dir=tmp_path)
    assert conversions == ["tiny.gguf"]
    assert again == first
    assert content(first.folder) == before
    assert folders(tmp_path) == [first.folder]


def test_it_is_keyed_by_content(tiny, cache, tmp_path, conversions):
    """The same bytes under another time are known; other bytes under the same name are not."""
    (known,) = folders(cache)
    same = tmp_path / "elsewhere" / "tiny.gguf"
    same.parent.mkdir()
    shutil.copyfile(tiny[0], same)
    assert convert_gguf(same, cache).folder == known
    assert conversions == []
    standins.save_tiny_gguf(same, seed=1)
    other = convert_gguf(same, cache)
    assert other.folder != known
    assert right(known, tiny)
    assert not right(other.folder, tiny)
    assert conversions == ["tiny.gguf"]


def test_the_argument_then_the_variable_then_the_platform(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LCALENS_CACHE", str(tmp_path / "variable"))
    load_model(tiny[0])
    assert len(folders(tmp_path / "variable")) == 1
    load_model(tiny[0], cache_dir=str(tmp_path / "argument"))
    assert len(folders(tmp_path / "argument")) == 1
    assert len(folders(tmp_path / "variable")) == 1
    assert cache_root() == tmp_path / "variable"
    assert cache_root("~/x") == Path.home() / "x"
    monkeypatch.setenv("LCALENS_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "platform"))
    assert "lcalens" in str(cache_root())
    assert cache_root() != Path()


# --- damaged --------------------------------------------------------------------------------------------------------


def flip(path):
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    path.write_bytes(damaged)


def another_digest(path):
    manifest = json.loads(path.read_text())
    manifest["files"]["config.json"] = "0" * 64
    path.write_text(json.dumps(manifest))


DAMAGES = {
    "a flipped bit in the weights": ("model.safetensors", flip),
    "weights cut short": ("model.safetensors", lambda path: os.truncate(path, 1000)),
    "weights gone": ("model.safetensors", Path.unlink),
    "a flipped bit in the config": ("config.json", flip),
    "an empty tokenizer": ("tokenizer.json", lambda path: path.write_bytes(b"")),
    "tokenizer gone": ("tokenizer.json", Path.unlink),
    "no manifest": ("lcalens.json", Path.unlink),
    "an empty manifest": ("lcalens.json", lambda path: path.write_text("")),
    "a manifest that lists nothing": ("lcalens.json", lambda path: path.write_text('{"files": {}}')),
    "a manifest that is a list": ("lcalens.json", lambda path: path.write_text("[]")),
    "another digest": ("lcalens.json", another_digest),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_again(tiny, cache, conversions, damage):
    (folder,) = folders(cache)
    before = content(folder)
    name, spoil = DAMAGES[damage]
    spoil(folder / name)
    converted = convert_gguf(tiny[0], cache)
    assert conversions == ["tiny.gguf"]
    assert converted.folder == folder
    assert content(folder) == before
    assert folders(cache) == [folder]
    convert_gguf(tiny[0], cache)
    assert conversions == ["tiny.gguf"]


def test_what_a_dead_process_left_is_cleared(tiny, cache):
    (folder,) = folders(cache)
    for name in ("tmp-abc", "tmp-def"):
        stale = folder.with_name(f"{folder.name}.{name}")
        (stale / "model").mkdir(parents=True)
        (stale / "model" / "model.safetensors").write_bytes(b"half")
    (folder / "lcalens.json").unlink()
    assert right(convert_gguf(tiny[0], cache).folder, tiny)
    assert folders(cache) == [folder]


# --- processes ------------------------------------------------------------------------------------------------------

SETUP = (
    "import os, signal, resource, time; from pathlib import Path; from lcalens.llm.models import gguf as gguf_cache; "
    "from lcalens.llm.models.gguf import convert_gguf"
)


def start(code, *arguments):
    """Another Python, with this one's lcalens."""
    home = str(Path(gguf_cache.__file__).parents[3])
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {home!r}); {SETUP}\n{code}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )


def test_two_processes_at_once(tiny, tmp_path):
    """Both begin together, at a signal; both succeed, and one folder is there."""
    code = """
go = Path(sys.argv[2]) / f"ready-{os.getpid()}"
go.touch()
while len(list(go.parent.glob("ready-*"))) < 2:
    time.sleep(0.001)
print(convert_gguf(Path(sys.argv[1]), Path(sys.argv[2])).folder)
"""
    both = [start(code, tiny[0], tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    (folder,) = folders(tmp_path)
    assert [out.strip() for out, _ in said] == [str(folder)] * 2
    assert right(folder, tiny)


def test_a_kill_in_the_middle_leaves_nothing_half_done(tiny, tmp_path):
    code = """
def dies(weights, target, **options):
    Path(target).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
gguf_cache.save_file = dies
convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
"""
    killed = start(code, tiny[0], tmp_path)
    killed.communicate(timeout=600)
    assert killed.returncode == -signal.SIGKILL
    (left,) = folders(tmp_path)
    converted = convert_gguf(tiny[0], tmp_path)
    assert left != converted.folder
    assert folders(tmp_path) == [converted.folder]
    assert right(converted.folder, tiny)


def test_a_full_disk_is_said_and_leaves_nothing(tiny, tmp_path):
    """No file may grow past 50 KB: what a full disk does to the weights."""
    code = """
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
from lcalens.core.errors import LcalensError
try:
    convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
except LcalensError as error:
    print(error)
"""
    assert resource.RLIMIT_FSIZE
    process = start(code, tiny[0], tmp_path)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "cache_dir" in out
    assert "LCALENS_CACHE" in out
    assert folders(tmp_path) == []
    assert right(convert_gguf(tiny[0], tmp_path).folder, tiny)


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_cache_that_cannot_be_written(tiny, tmp_path, below):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(LcalensError) as caught:
        load_model(tiny[0], cache_dir=tmp_path / "file" / below)
    assert "LCALENS_CACHE" in str(caught.value)
    assert "cache_dir" in str(caught.value)
    assert str(tmp_path / "file") in str(caught.value)
