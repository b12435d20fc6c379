"""What was saved is read as it was written, to the bit, or refused: results, defences, and the cells of a study."""

import json
import random
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from lcalens import Defence, Result
from lcalens.core.cells import CellStore
from lcalens.core.errors import LcalensError
from lcalens.core.sealed import SEAL, read_sealed, sealed_folder
from lcalens.mechanism.defence.plan import Detector


def result(seed=0):
    generator = np.random.default_rng(seed)
    return Result(
        kind="patching",
        axes={"example": (0, 1, 2), "layer": (0, 1)},
        values={"value": generator.standard_normal((3, 2))},
        examples=pd.DataFrame({"case_id": [7, 8, 9]}),
        tables={"summary": pd.DataFrame({"layer": [0, 1], "value": generator.standard_normal(2)})},
        provenance={"seed": seed, "cells": {"loaded": seed, "computed": 1}},
    )


def defence(seed=0):
    weights = torch.from_numpy(np.random.default_rng(seed).standard_normal(8))
    detector = Detector(layer=1, bias=0.5, threshold=0.1, reads="residual", weights=weights)
    return Defence(method="detector", heads=((1, 0),), where="last", ends=(3, 5), detector=detector, model="x",
                   record={"seed": seed}, values={})  # fmt: skip


KINDS = {"result": (result, Result), "defence": (defence, Defence)}


@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_is_read(kind, tmp_path):
    """One bit of one file, of every file in turn: refused in words, or, where the file is not read, without effect."""
    make, reader = KINDS[kind]
    place = make().save(tmp_path / "out")
    generator = random.Random(0)
    for file in sorted(place.iterdir()):
        whole = file.read_bytes()
        for _ in range(min(60, 8 * len(whole))):
            at = generator.randrange(8 * len(whole))
            damaged = bytearray(whole)
            damaged[at // 8] ^= 1 << at % 8
            file.write_bytes(damaged)
            with pytest.raises(LcalensError, match="folder"):
                reader.load(place)
        for cut in (0, 1, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:cut])
            with pytest.raises(LcalensError, match="folder"):
                reader.load(place)
        file.write_bytes(whole)
    reader.load(place)


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_two_folders_do_not_mix(kind, tmp_path):
    make, reader = KINDS[kind]
    one, other = make(0).save(tmp_path / "one"), make(1).save(tmp_path / "other")
    for file in sorted(item.name for item in one.iterdir()):
        whole = (one / file).read_bytes()
        if whole == (other / file).read_bytes():
            continue
        (one / file).write_bytes((other / file).read_bytes())
        with pytest.raises(LcalensError, match="folder"):
            reader.load(one)
        (one / file).write_bytes(whole)
    reader.load(one)


def test_a_seal_names_files_of_its_folder_alone(tmp_path):
    place = result().save(tmp_path / "out")
    seal = json.loads((place / SEAL).read_text())
    shutil.copy(place / "result.json", tmp_path / "result.json")
    seal["files"]["../result.json"] = seal["files"]["result.json"]
    (place / SEAL).write_text(json.dumps(dict(seal, files=dict(sorted(seal["files"].items()))), indent=1) + "\n")
    with pytest.raises(LcalensError, match=r"names '\.\./result\.json', which is not in the folder"):
        Result.load(place)


def test_what_is_read_are_the_sealed_bytes(tmp_path):
    with sealed_folder(tmp_path / "out", "a test") as new:
        (new / "a").write_bytes(b"1")
    assert read_sealed(tmp_path / "out") == {"a": b"1"}
    (tmp_path / "out" / "beside").write_text("a note")
    with (
        pytest.raises(LcalensError, match="holds something else than a test"),
        sealed_folder(tmp_path / "out", "a test"),
    ):
        pass
    assert read_sealed(tmp_path / "out") == {"a": b"1"}
    assert (tmp_path / "out" / "beside").read_text() == "a note"


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    place = result().save(tmp_path / "out")
    before = {file.name: file.read_bytes() for file in place.iterdir()}

    def half():
        with sealed_folder(place, "a result") as new:
            (new / "half").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out"]


def test_a_cell_under_anothers_name_is_missing(tmp_path):
    store = CellStore(tmp_path)
    store.put("one", {"value": np.arange(3.0)})
    store.put("other", {"value": np.arange(3.0) + 1})
    one, other = (tmp_path / "cells" / f"{key}.safetensors" for key in ("one", "other"))
    one.rename(tmp_path / "kept")
    other.rename(one)
    (tmp_path / "kept").rename(other)
    again = CellStore(tmp_path)
    assert again.get("one") is None
    assert again.get("other") is None
    assert again.loaded == 0


def test_a_saved_result_does_not_say_how_much_was_resumed(tmp_path):
    place = result(3).save(tmp_path / "out")
    assert "cells" not in Result.load(place).provenance
    assert Result.load(place).provenance["seed"] == 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_home_folder(kind, tmp_path, monkeypatch):
    make, reader = KINDS[kind]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make().save("~/deep/out") == tmp_path / "deep/out"
    reader.load("~/deep/out")


@pytest.mark.parametrize("kind", KINDS)
def test_paths_that_cannot_be_written_are_refused_in_words(kind, tmp_path):
    make, reader = KINDS[kind]
    (tmp_path / "file").write_text("")
    for path in ("", "a\0b", "~nobody-of-this-name/out", tmp_path / "file", tmp_path / "file" / "out", "/proc/none/out",
                 "x" * 5000):  # fmt: skip
        with pytest.raises(LcalensError, match="folder"):
            make().save(path)
        with pytest.raises(LcalensError, match="folder"):
            reader.load(path)
