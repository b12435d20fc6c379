"""Hostile input by the hundred, and by the ten thousand with `make fuzz`: only errors of ours, and no file elsewhere.

FUZZ is the number of cases of all tests together.
"""

import gzip
import html.parser
import io
import json
import math
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import standins
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lcalens import Defence, Fact, Result, Scheme, load_facts, load_model
from lcalens.core.cells import CellStore
from lcalens.core.errors import LcalensError
from lcalens.core.provenance import fingerprint
from lcalens.llm.efficacy.config import check_config
from lcalens.llm.efficacy.tables import summarise
from lcalens.llm.facts.facts import Facts
from lcalens.llm.models.gguf import convert_gguf
from lcalens.llm.prompts.hijack import hijack_prompts
from lcalens.llm.prompts.named import named_schemes
from lcalens.mechanism.defence.plan import Detector
from lcalens.views.text import efficacy_markdown

CASES = int(os.environ.get("FUZZ", "500"))
SHARES = {"facts": 0.4, "records": 0.15, "templates": 0.1, "settings": 0.15, "saved": 0.16, "shown": 0.02,
          "gguf": 0.012, "model": 0.008}  # fmt: skip


SLOW = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.function_scoped_fixture,
]


def cases(what):
    many = max(1, round(CASES * SHARES[what]))
    return settings(
        max_examples=many,
        deadline=30_000,
        derandomize=CASES <= 500,
        suppress_health_check=SLOW,
        database=None,
    )


# --- bytes, changed --------------------------------------------------------------------------------------------------


ODD = (b"{", b"[" * 200, b'"', b"\\u0000", b"NaN", b"1e999", b"-", b"\xff\xfe", b"\x00" * 9, b"9" * 6000, b"\r\n")


@st.composite
def damage(draw, whole):
    """Some bytes with a few edits: flips, cuts, insertions, a part twice, other bytes in their place."""
    found = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(found)))
        size = draw(st.integers(0, 40))
        how = draw(st.sampled_from(("flip", "cut", "insert", "repeat", "truncate", "replace")))
        if how == "flip" and at < len(found):
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del found[at : at + size]
        elif how == "insert":
            found[at:at] = draw(st.binary(max_size=40))
        elif how == "repeat":
            found[at:at] = found[at : at + size] * draw(st.integers(1, 50))
        elif how == "truncate":
            del found[at:]
        else:
            found[at : at + size] = draw(st.sampled_from(ODD))
    return bytes(found)


RECORDS = [
    {"case_id": 1, "requested_rewrite": {"prompt": "The capital of {} is", "relation_id": "P36", "subject": "France",
                                         "target_new": {"str": "Rome"}, "target_true": {"str": "Paris"}}},
    {"case_id": 2, "requested_rewrite": {"prompt": "{} is a place in", "relation_id": "P17", "subject": "Kyoto",
                                         "target_new": {"str": "Canada"}, "target_true": {"str": "Japan"}}},
]  # fmt: skip
FLAT = pd.DataFrame([{"prompt": "The capital of France is", "subject": "France", "target_true": "Paris",
                      "target_false": "Rome", "relation_id": "P36", "case_id": 1}] * 2)  # fmt: skip


def as_parquet(table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


LINES = "\n".join(map(json.dumps, RECORDS)).encode()
FILES = {
    "facts.json": json.dumps(RECORDS).encode(),
    "facts.jsonl": LINES,
    "facts.json.gz": gzip.compress(LINES, mtime=0),
    "facts.csv": FLAT.to_csv(index=False).encode(),
    "facts.tsv": FLAT.to_csv(index=False, sep="\t").encode(),
    "facts.parquet": as_parquet(pa.Table.from_pylist(RECORDS)),
    "flat.parquet": as_parquet(pa.Table.from_pandas(FLAT)),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def all_facts(found):
    """What is read is sound: of the fact's own types, with a subject in its prompt, and told apart."""
    for fact in found:
        assert fact.prompt.count("{}") == 1
        assert fact.target_true
        assert fact.target_false
        assert fact.subject in fact.text
        assert isinstance(fact.case_id, int | str)
    return len(found)


@cases("facts")
@given(data=st.data())
def test_facts_from_damaged_files(place, data):
    name = data.draw(st.sampled_from(sorted(FILES)))
    file = place / name
    file.write_bytes(data.draw(damage(FILES[name])))
    said = ""
    try:
        assert all_facts(load_facts(file)) >= 1
    except LcalensError as error:
        said = str(error)
    assert said.replace("\n", " ").isprintable()
    assert {item.name for item in place.iterdir()} <= set(FILES)


TEXTS = ["{}", "P36", "Paris", "The capital of {} is", "", " ", "\x1b[2J", "<script>", "$x^2$", "a" * 20_000]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = (
    "prompt", "subject", "target_true", "target_false", "target_new", "relation_id", "case_id", "requested_rewrite",
    "ground_truth", "relation_prefix", "relation_suffix",
)  # fmt: skip


@cases("records")
@given(
    records=st.lists(st.dictionaries(st.sampled_from(FIELDS), ANYTHING) | ANYTHING, max_size=4), strict=st.booleans()
)
def test_facts_from_any_records(records, strict):
    try:
        found = load_facts(records, strict=strict)
    except LcalensError:
        return
    all_facts(found)
    assert len(found) + len(found.skipped) == len(records)


# --- templates and settings ------------------------------------------------------------------------------------------

PIECES = st.sampled_from([
    "{target_false}", "{target_true}", "{subject}", "{unrelated}", "{", "}", "{}", "{0}", "{x!r}",
    "{target_false.__class__}", " ", ".", "Forget ", "\n", "\u202e", "\x00", "<b>", "$", "|", "`",
])  # fmt: skip
TEMPLATES = st.lists(PIECES | st.text(max_size=8), max_size=8).map("".join)
OBJECTS = (("France", "Paris", "Rome"), ("{subject}", "{target_true}", "<b>"), ("$x$", "a|b", "`c`"))
SOME = Facts(
    [
        Fact(prompt="The capital of {} is", subject=name, target_true=true, target_false=false, relation_id="P36")
        for name, true, false in OBJECTS
    ]
)


@cases("templates")
@given(template=TEMPLATES, control=st.none() | TEMPLATES, name=st.text(max_size=10) | ANYTHING)
def test_templates_and_names(template, control, name):
    try:
        found = hijack_prompts(SOME, template, counts=(0, 1, 3))
    except LcalensError:
        found = None
    for prompt in found.prompts if found else ():
        assert prompt.text.endswith(prompt.fact.text)
        for spans in prompt.spans.values():
            assert all(0 <= first <= last <= len(prompt.text) for first, last in spans)
        if prompt.word:
            assert all(prompt.text[first:last] == prompt.word for first, last in prompt.spans["word"])
    if isinstance(name, list | dict):
        return
    try:
        schemes = named_schemes({name: Scheme(template, control=control)})
    except LcalensError:
        return
    assert name in schemes
    assert all(one.role == "control" or one.control == "neutral" or one.control for one in schemes.values())


NAMES = ("schemes", "counts", "scoring", "chat", "related", "seed", "join", "batch")


@cases("settings")
@given(
    schemes=ANYTHING | st.lists(TEMPLATES, max_size=3), counts=ANYTHING, scoring=ANYTHING, chat=ANYTHING,
    related=ANYTHING, seed=ANYTHING, join=ANYTHING, batch=ANYTHING, sound=st.sets(st.integers(0, 7)),
)  # fmt: skip
def test_settings(schemes, counts, scoring, chat, related, seed, join, batch, sound):
    good = (("dont-think",), (0, 1), "whole", False, "table", 0, None, None)
    asked = (schemes, counts, scoring, chat, related, seed, join, batch)
    chosen: list[Any] = [good[i] if i in sound else value for i, value in enumerate(asked)]
    said = ""
    try:
        config, wordings = check_config(*chosen)
    except LcalensError as error:
        said = str(error)
    if said:
        assert said.split(":")[0] in (*NAMES, "control")
        return
    assert config.schemes == tuple(wordings)
    assert config.counts[0] == 0
    assert list(config.counts) == sorted(set(config.counts))


# --- what is saved ---------------------------------------------------------------------------------------------------


def made(scheme="dont-think"):
    generator = np.random.default_rng(0)
    values = {name: -generator.exponential(3, (6, 2, 2)) for name in ("logp_true", "logp_false")}
    examples = pd.DataFrame({"case_id": range(6), "relation_id": "P17", "known": True, "subject": scheme})
    axes = {"example": tuple(range(6)), "scheme": (scheme, "neutral"), "n": (0, 1)}
    known = named_schemes(["dont-think", "neutral"])
    wordings = {scheme: known["dont-think"], "neutral": known["neutral"]}
    model = {"source": scheme, "fingerprint": "0", "dtype": "float32", "quantisation": "none", "family": "x",
             "revision": "", "processing": "raw"}  # fmt: skip
    return Result(
        kind="efficacy",
        axes=axes,
        values=values,
        examples=examples,
        tables=summarise(examples, axes, values, Counter(), seed=0, wordings=wordings),
        provenance={
            "model": model,
            "facts": {"source": scheme, "count": 6, "digest": "0", "skipped": 0},
            "schemes": {name: {"role": one.role, "control": "", "sentence": name} for name, one in wordings.items()},
            "path": ["shared"],
            "config": {"counts": [0, 1], "scoring": "whole", "chat": False, "seed": 0, "schemes": [scheme]},
            "cells": {"loaded": 0, "computed": 1},
            "versions": {},
            "unmeasured": {},
        },
    )


def a_defence():
    weights = torch.arange(8.0).double()
    return Defence(
        method="detector", heads=((1, 0),), where="last", ends=(3, 5), model="x", record={}, values={},
        detector=Detector(layer=1, bias=0.5, threshold=0.1, reads="residual", weights=weights),
    )  # fmt: skip


@pytest.fixture(scope="module")
def saved(place):
    folder = place.parent / "saved"
    return {"result": made().save(folder / "result"), "defence": a_defence().save(folder / "defence")}


@cases("saved")
@given(data=st.data())
def test_saved_folders_and_cells(saved, tmp_path_factory, data):
    kind = data.draw(st.sampled_from(("result", "defence", "cell")))
    copy = tmp_path_factory.mktemp("copy")
    if kind == "cell":
        store = CellStore(copy)
        store.put("key", {"value": np.arange(5.0)})
        file = copy / "cells" / "key.safetensors"
        whole = file.read_bytes()
        file.write_bytes(data.draw(damage(whole)))
        found = CellStore(copy).get("key")
        assert found is None or np.array_equal(found["value"], np.arange(5.0))
    else:
        folder = Path(shutil.copytree(saved[kind], copy / kind))
        file = folder / data.draw(st.sampled_from(sorted(item.name for item in folder.iterdir())))
        whole = file.read_bytes()
        file.write_bytes(data.draw(damage(whole)))
        reader = {"result": Result, "defence": Defence}[kind]
        try:
            reader.load(folder)
            assert file.read_bytes() == whole
        except LcalensError:
            assert file.read_bytes() != whole
    shutil.rmtree(copy)


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)


HOSTILE = TEMPLATES | st.sampled_from([
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "$\\frac{1}$", "\x1b]8;;x\x07", "a|b\n# c",
    "[x](javascript:1)", "_x_", "**y**", "\ud800", "{{7*7}}",
])  # fmt: skip


@cases("shown")
@given(name=HOSTILE)
@example(name="Forget |" + "\U00083400" * 16)  # ten letters each, where a font has none of them
def test_names_are_text_wherever_they_are_shown(name):
    try:
        named_schemes({name: Scheme("Forget about {target_false}.")})
    except LcalensError:
        return
    result = made(name)
    tags = Tags()
    tags.feed(result._repr_html_())
    assert not tags.seen & {"script", "img", "a", "iframe", "svg"}
    page = efficacy_markdown(result, "lcalens hijack")
    assert "<script" not in page
    assert "<img" not in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert not any("\x1b" in line or "\x00" in line for line in rows)
    with io.BytesIO() as file:
        result.plot().savefig(file, format="png", dpi=40)
    assert math.isfinite(result.values["logp_true"].sum())


# --- models ----------------------------------------------------------------------------------------------------------


@st.composite
def early_damage(draw, whole):
    """Damage among the first bytes, which say what the rest is; now and then a number of them in the millions."""
    size = draw(st.sampled_from((64, 600, 4000, len(whole))))
    found = bytearray(draw(damage(whole[:size])) + whole[size:])
    if draw(st.booleans()):
        at = draw(st.integers(0, max(0, min(size, len(found)) - 8)))
        found[at : at + 8] = draw(st.sampled_from((1 << 20, 1 << 31, (1 << 63) - 1, 0))).to_bytes(8, "little")
    return bytes(found)


@pytest.fixture(scope="module")
def tiny_gguf(place):
    file = place.parent / "tiny.gguf"
    standins.save_tiny_gguf(file)
    return file.read_bytes()


@cases("gguf")
@given(data=st.data())
def test_damaged_gguf_files(tiny_gguf, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("gguf")
    file = folder / "damaged.gguf"
    file.write_bytes(data.draw(early_damage(tiny_gguf)))
    said = ""
    try:
        made = convert_gguf(file, folder / "cache")
        assert made.folder.is_relative_to(folder / "cache" / "models")
    except LcalensError as error:
        said = str(error)
    assert said.replace("\n", " ").isprintable()
    assert {item.name for item in folder.iterdir()} <= {"damaged.gguf", "cache"}
    assert not list(folder.glob("cache/models/*.tmp-*"))
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def model_folder(place):
    folder = place.parent / "model"
    standins.save_standin(folder, "llama")
    return folder, load_model(folder)


def numbers_of(model):
    return {name: tensor.tolist() for name, tensor in model.original_model.state_dict().items()}


@cases("model")
@given(data=st.data())
def test_damaged_folders_of_models(model_folder, tmp_path_factory, data):
    whole, sound = model_folder
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("model") / "damaged"))
    file = folder / data.draw(st.sampled_from(sorted(item.name for item in folder.iterdir())))
    file.write_bytes(data.draw(early_damage(file.read_bytes())))
    names = {item.name for item in folder.iterdir()}
    said = ""
    try:
        found = load_model(folder)
        same = numbers_of(found) == numbers_of(sound)
        assert same or fingerprint(found) != fingerprint(sound)  # another model, and every result says so
    except LcalensError as error:
        said = str(error)
    assert said.replace("\n", " ").isprintable()
    assert {item.name for item in folder.iterdir()} == names
    shutil.rmtree(folder.parent)


OUTSIDE = [("../elsewhere.safetensors", "outside its folder"), ("/elsewhere.safetensors", "outside its folder"),
           (7, "cannot be read")]  # fmt: skip


@pytest.mark.parametrize(("weights", "said"), OUTSIDE)
def test_an_index_that_points_out_of_its_folder_is_refused(model_folder, tmp_path, weights, said):
    whole, sound = model_folder
    folder = Path(shutil.copytree(whole, tmp_path / "inner" / "model"))
    (folder / "model.safetensors").rename(tmp_path / "inner" / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(sound.original_model.state_dict(), weights)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LcalensError, match=said):
        load_model(folder)
