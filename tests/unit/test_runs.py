"""Run folders: cells are whole or missing, whatever died, was damaged, or wrote at the same time."""

import errno
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcalens.core.cells import CellStore, content_key
from lcalens.core.errors import LcalensError

KEY = content_key("a cell")


def arrays(size=5):
    return {"logp": np.linspace(-3, 0, size), "greedy": np.arange(size) % 2 == 0, "empty": np.zeros((0, 2))}


def equal(left, right):
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name])
        assert array.dtype == right[name].dtype
    return True


def cell_file(folder):
    (file,) = (folder / "cells").glob("*.safetensors")
    return file


# --- keys -----------------------------------------------------------------------------------------------------------

contents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(contents, contents)
def test_a_key_is_as_different_as_its_content(left, right):
    import json

    alike = json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
    assert (content_key(left) == content_key(right)) is alike


def test_keys_do_not_hang_on_the_order_of_mappings_but_on_that_of_lists():
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key([1, 2]) != content_key([2, 1])
    assert content_key(["a", "bc"]) != content_key(["ab", "c"])
    assert content_key("é") != content_key("e")
    assert content_key(KEY).isalnum()  # fit for a file's name


def test_keys_are_the_same_in_another_process():
    script = "from lcalens.core.cells import content_key; print(content_key({'x': [1, 'é'], 'a': None}))"
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {content_key({"a": None, "x": [1, "é"]})}


# --- cells ----------------------------------------------------------------------------------------------------------


def test_what_is_put_is_got(tmp_path):
    store = CellStore(tmp_path / "new" / "run")
    assert store.get(KEY) is None
    store.put(KEY, arrays())
    assert equal(store.get(KEY), arrays())
    assert (store.loaded, store.computed) == (1, 1)
    later = CellStore(str(tmp_path / "new" / "run"))
    assert equal(later.get(KEY), arrays())
    assert (later.loaded, later.computed) == (1, 0)
    assert later.get(content_key("another")) is None
    assert later.loaded == 1


def test_views_of_larger_arrays_are_kept_as_what_they_show(tmp_path):
    whole = np.arange(12.0).reshape(3, 4)
    views = {
        "column": whole[:, 1],
        "turned": whole.T,
        "one": np.array(3.0),
        "backwards": whole[::-1],
        "some": whole[:, ::2],
    }
    CellStore(tmp_path).put("key", views)
    found = CellStore(tmp_path).get("key")
    assert found is not None
    assert all(np.array_equal(found[name], view) for name, view in views.items())
    assert {name: array.shape for name, array in found.items()} == {name: view.shape for name, view in views.items()}


def test_a_cell_may_be_put_again(tmp_path):
    store = CellStore(tmp_path)
    store.put(KEY, arrays())
    store.put(KEY, arrays(9))
    assert equal(store.get(KEY), arrays(9))
    assert store.computed == 2


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = CellStore(None)
    store.put(KEY, arrays())
    assert store.get(KEY) is None
    assert (store.loaded, store.computed) == (0, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cell_cut_short_is_missing(tmp_path, share):
    CellStore(tmp_path).put(KEY, arrays())
    file = cell_file(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    store = CellStore(tmp_path)
    assert store.get(KEY) is None
    assert store.loaded == 0
    store.put(KEY, arrays())
    assert equal(store.get(KEY), arrays())


@pytest.mark.parametrize("data", [b"\x00" * 200, b"\xff" * 200, b"garbage", b'\x02\x00\x00\x00\x00\x00\x00\x00{"'])
def test_a_cell_of_garbage_is_missing(tmp_path, data):
    CellStore(tmp_path).put(KEY, arrays())
    cell_file(tmp_path).write_bytes(data)
    assert CellStore(tmp_path).get(KEY) is None


def test_a_cell_with_a_changed_byte_is_missing(tmp_path):
    CellStore(tmp_path).put(KEY, arrays())
    file = cell_file(tmp_path)
    data = bytearray(file.read_bytes())
    data[-3] ^= 0x40
    file.write_bytes(data)
    assert CellStore(tmp_path).get(KEY) is None


def test_a_folder_in_a_cells_place_is_missing(tmp_path):
    CellStore(tmp_path).put(KEY, arrays())
    file = cell_file(tmp_path)
    file.unlink()
    file.mkdir()
    store = CellStore(tmp_path)
    assert store.get(KEY) is None
    with pytest.raises(LcalensError, match="out: a finished part cannot be written"):
        store.put(KEY, arrays())
    assert list((tmp_path / "cells").glob("*.part")) == []


# --- parts of the killed --------------------------------------------------------------------------------------------


def test_parts_are_no_cells_and_only_old_ones_are_removed(tmp_path):
    CellStore(tmp_path).put(KEY, arrays())
    young, old = (tmp_path / "cells" / f"{content_key(name)}.0.part" for name in ("young", "old"))
    for part in (young, old):
        part.write_bytes(b"half a cell")
    os.utime(old, (time.time() - 86400,) * 2)
    store = CellStore(tmp_path)
    assert store.get(content_key("young")) is None
    assert young.exists()  # a living process may be writing it
    assert not old.exists()
    assert equal(store.get(KEY), arrays())


# --- folders that cannot be written ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "cells", "deep/er"])
def test_a_file_in_the_folders_place(tmp_path, place):
    out = tmp_path / "out"
    if place == "cells":
        out.mkdir()
        (out / "cells").write_text("mine")
    else:
        out.write_text("mine")
    with pytest.raises(LcalensError, match=r"out: '.*' cannot be written \("):
        CellStore(out / place if place.startswith("deep") else out)
    assert (out / "cells" if place == "cells" else out).read_text() == "mine"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, code, name):
    store = CellStore(tmp_path)
    store.put(KEY, arrays())

    def full(*arguments, **options):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        for key in (KEY, content_key("another")):
            with pytest.raises(LcalensError, match=f"out: a finished part cannot be written .*{os.strerror(code)}"):
                store.put(key, arrays(9))
    assert [file.name for file in (tmp_path / "cells").iterdir()] == [f"{KEY}.safetensors"]
    assert equal(CellStore(tmp_path).get(KEY), arrays())


def test_a_folder_that_vanished(tmp_path):
    store = CellStore(tmp_path / "out")
    (tmp_path / "out" / "cells").rmdir()
    with pytest.raises(LcalensError, match="out: a finished part cannot be written"):
        store.put(KEY, arrays())
    assert store.get(KEY) is None


# --- several processes ----------------------------------------------------------------------------------------------

WRITER = """
import sys
import numpy as np
from lcalens.core.cells import CellStore
folder, key, value = sys.argv[1:]
store = CellStore(folder)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(60):
    store.put(key, {"x": np.full(5000, float(value))})
"""


def test_processes_that_write_the_same_cell_do_not_mix(tmp_path):
    store = CellStore(tmp_path)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), KEY, value],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for value in ("1", "2")
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    seen, missing = set(), 0
    while any(writer.poll() is None for writer in writers):
        found = store.get(KEY)
        if found is None:
            missing += bool(seen)  # once there, always there
        else:
            seen.add(frozenset(found["x"].tolist()))
    for writer in writers:
        _, said = writer.communicate()
        assert (writer.returncode, said) == (0, "")
    assert missing == 0
    assert seen <= {frozenset({1.0}), frozenset({2.0})}
    assert equal(store.get(KEY), {"x": np.full(5000, store.get(KEY)["x"][0])})
    assert [file.name for file in (tmp_path / "cells").iterdir()] == [f"{KEY}.safetensors"]
