"""Results: the tidy table, means, saving without loss or pickle, and HTML that cannot be injected into."""

import builtins
import json
import os
import pickle
import shutil
import tempfile
from dataclasses import FrozenInstanceError
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lcalens.core.errors import LcalensError
from lcalens.core.results import Result
from lcalens.core.statistics import clustered_mean_interval
from lcalens.core.tables import SCHEMA, lengthen, widen

NAN = float("nan")
PAYLOAD = "<script>alert(1)</script>"


def make(**changes):
    """Three facts, two schemes, two counts; one cell was not measured."""
    generator = np.random.default_rng(0)
    logp, greedy = generator.normal(size=(3, 2, 2)), generator.integers(0, 2, (3, 2, 2)).astype(float)
    logp[1, 1, 1] = greedy[1, 1, 1] = NAN
    fields = {
        "kind": "efficacy",
        "axes": {"example": (0, 1, 2), "scheme": ("b", "a"), "n": (0, 10)},
        "values": {"logp": logp, "greedy": greedy},
        "examples": pd.DataFrame({"case_id": [7, 8, 9], "relation_id": ["P1", "P2", "P1"]}),
        "tables": {
            "summary": pd.DataFrame({"scheme": ["b", "a"], "es": [0.5, NAN]}),
            "another": pd.DataFrame({"n": [0, 1], "reason": ["<", "é🎈"]}),
        },
        "provenance": {"model": {"source": "gpt2", "dtype": "float32", "quantisation": "none"}, "seed": 3},
    }
    return Result(**(fields | changes))


def same(left, right):
    """Whether two results hold the same, in the same order."""
    assert left.kind == right.kind
    assert list(left.axes.items()) == list(right.axes.items())
    assert [[type(label) for label in labels] for labels in left.axes.values()] == [
        [type(label) for label in labels] for labels in right.axes.values()
    ]
    assert list(left.values) == list(right.values)
    assert list(left.tables) == list(right.tables)
    assert dict(left.units) == dict(right.units)
    for name, array in left.values.items():
        np.testing.assert_array_equal(array, right.values[name])
        assert array.dtype == right.values[name].dtype
    for name, table in left.tables.items():
        pd.testing.assert_frame_equal(table, right.tables[name])
    pd.testing.assert_frame_equal(left.examples, right.examples)
    assert json.dumps(left.provenance) == json.dumps(right.provenance)
    return True


# --- what may be made -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 2), (3, 2, 2, 1), ()])
def test_arrays_must_fit_the_axes(shape):
    with pytest.raises(LcalensError, match="values: 'logp' has shape"):
        make(values={"logp": np.zeros(shape)})


def test_there_is_a_row_for_each_example():
    with pytest.raises(LcalensError, match="examples: 2 rows for 3"):
        make(examples=pd.DataFrame({"case_id": [1, 2]}))


def test_a_result_is_frozen():
    with pytest.raises(FrozenInstanceError):
        make().kind = "other"


def test_the_summary_is_the_first_table_or_all_values():
    result = make()
    assert result.summary is result.tables["summary"]
    bare = make(tables={})
    pd.testing.assert_frame_equal(bare.summary, bare.to_frame())


def test_repr_says_what_and_how_much():
    text = repr(make())
    assert "efficacy" in text
    assert "logp, greedy" in text
    assert "example 3, scheme 2, n 2" in text


# --- the tidy table -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_to_frame_has_a_row_for_each_value(count, place):
    """Against loops, wherever the axis of examples stands."""
    names = ["scheme", "n"][: count - 1]
    names.insert(place, "example")
    labels = {"example": (0, 1, 2), "scheme": ("b", "a"), "n": (0, 10)}
    axes = {name: labels[name] for name in names}
    shape = tuple(len(axes[name]) for name in names)
    array = np.random.default_rng(1).normal(size=shape)
    other = -array
    array[(0,) * count] = other[(0,) * count] = NAN  # left out
    other[(1,) * count] = NAN  # kept: the other one was measured
    result = make(axes=axes, values={"logp": array, "other": other}, tables={})
    rows = []
    for index in product(*map(range, shape)):
        if index == (0,) * count:
            continue
        at = dict(zip(names, index, strict=True))
        row = {}
        for name in names:
            if name == "example":
                row |= {"case_id": [7, 8, 9][at[name]], "relation_id": ["P1", "P2", "P1"][at[name]]}
            else:
                row[name] = axes[name][at[name]]
        rows.append(row | {"logp": array[index], "other": other[index]})
    pd.testing.assert_frame_equal(result.wide("values"), pd.DataFrame(rows))
    nothing = {"value_low": NAN, "value_high": NAN, "unit": ""}
    long = [
        {name: row[name] for name in row if name not in ("logp", "other")}
        | {"quantity": quantity, "value": row[quantity]}
        | nothing
        for row in rows
        for quantity in ("logp", "other")
        if not np.isnan(row[quantity])
    ]
    pd.testing.assert_frame_equal(result.to_frame(), pd.DataFrame(long))


def test_intervals_and_units_stand_beside_their_quantity():
    values = {"a": np.array([1.0, 2.0]), "a_low": np.array([0.5, NAN]), "a_high": np.array([1.5, NAN])}
    result = Result(
        kind="test",
        axes={"layer": (3, 4)},
        values=values | {"b": np.array([7.0, 8.0])},
        units={"a": "logits", "b": "share"},
    )
    assert result.quantities == ("a", "b")
    frame = result.to_frame()
    assert list(frame.columns) == ["layer", *SCHEMA]
    assert frame["quantity"].tolist() == ["a", "b", "a", "b"]
    assert frame["unit"].tolist() == ["logits", "share", "logits", "share"]
    assert frame["value_low"].tolist()[0] == 0.5
    assert frame["value_low"].isna().tolist() == [False, True, True, True]
    wide = widen(frame)
    assert list(wide.columns) == ["layer", "a", "a_low", "a_high", "b"]
    pd.testing.assert_frame_equal(lengthen(wide, result.units), frame)


def test_an_examples_own_column_keeps_its_numbers_beside_the_schema():
    result = make(
        axes={"example": (0, 1)}, values={"logp": np.ones(2)}, tables={},
        examples=pd.DataFrame({"value": [5, 6], "unit": ["m", "s"]}),
    )  # fmt: skip
    frame = result.to_frame()
    assert frame["example_value"].tolist() == [5, 6]
    assert frame["value"].tolist() == [1.0, 1.0]
    assert frame["example_unit"].tolist() == ["m", "s"]


def test_what_0_1_saved_is_refused_by_its_version(tmp_path):
    place = make().save(tmp_path / "out")
    head = json.loads((place / "result.json").read_text())
    (place / "result.json").write_text(json.dumps(head | {"format": 1}))
    with pytest.raises(LcalensError, match=r"^folder: .* lcalens 0\.1, .*measure again"):
        Result.load(place)


def test_to_frame_without_examples():
    result = Result(
        kind="answers",
        axes={"context": ("clean", "hijacked"), "rank": (1, 2)},
        values={"p": np.arange(4.0).reshape(2, 2)},
    )
    assert result.to_frame().to_dict("list") == {
        "context": ["clean", "clean", "hijacked", "hijacked"],
        "rank": [1, 2, 1, 2],
        "quantity": ["p"] * 4,
        "value": [0.0, 1.0, 2.0, 3.0],
        "value_low": [pytest.approx(NAN, nan_ok=True)] * 4,
        "value_high": [pytest.approx(NAN, nan_ok=True)] * 4,
        "unit": [""] * 4,
    }


def test_to_frame_of_an_empty_axis():
    result = make(axes={"example": (0, 1, 2), "n": ()}, values={"logp": np.zeros((3, 0))})
    frame = result.to_frame()
    assert len(frame) == 0
    assert list(frame) == ["case_id", "relation_id", "n", *SCHEMA]


# --- means ----------------------------------------------------------------------------------------------------------


def test_means_against_numpy():
    generator = np.random.default_rng(5)
    array = generator.normal(size=(4, 30, 3))
    array[0, :7, 1] = NAN
    array[2, :, 2] = NAN
    groups = np.array([f"P{i % 6}" for i in range(30)])
    result = Result(
        kind="test",
        axes={"head": ("a", "b", "c", "d"), "example": tuple(range(30)), "layer": (0, 1, 2)},
        values={"first": -array, "effect": array},
        examples=pd.DataFrame({"relation_id": groups}),
    )
    options = {"resamples": 300, "seed": 2, "confidence": 0.8}
    for cluster in (None, "relation_id"):
        table = result.mean("effect", cluster=cluster, **options)
        assert list(table) == ["head", "layer", *SCHEMA, "n"]
        assert len(table) == 12
        for row in table.itertuples():
            column = array["abcd".index(row.head), :, row.layer]
            there = ~np.isnan(column)
            assert row.n == there.sum()
            if not there.any():
                assert np.isnan([row.value, row.value_low, row.value_high]).all()
                continue
            assert row.value == pytest.approx(column[there].mean())
            expected = clustered_mean_interval(column[there], groups[there] if cluster else None, **options)
            assert (row.value_low, row.value_high) == pytest.approx(expected)


def test_the_mean_of_the_first_quantity_is_the_default():
    result = make(values={"a": np.full((3, 2, 2), 4.0), "b": np.zeros((3, 2, 2))})
    assert set(result.mean(resamples=10)["value"]) == {4.0}


def test_means_of_what_cannot_be_averaged():
    with pytest.raises(LcalensError, match="no axis 'example'"):
        Result(kind="answers", axes={"rank": (1,)}, values={"p": np.zeros(1)}).mean()
    with pytest.raises(LcalensError, match="quantity: 'logq' is not one of logp, greedy"):
        make().mean("logq")
    with pytest.raises(LcalensError, match="cluster: 'relation' is not one of case_id, relation_id"):
        make().mean(cluster="relation")


# --- saved and loaded -----------------------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
labels_of = st.one_of(
    st.lists(st.integers(-(2**40), 2**40), unique=True, max_size=4),
    st.lists(words, unique=True, max_size=4),
    st.lists(st.one_of(st.integers(0, 9), words), unique=True, max_size=4),
).map(tuple)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
columns = st.sampled_from(
    [
        [1, 2, 3],
        [0.5, NAN, float("inf")],
        ["a", "b", "<é🎈"],
        [True, False, True],
        [],
    ]
)


@st.composite
def results(draw):
    names = draw(
        st.lists(st.sampled_from(["scheme", "n", "layer", "z", "example"]), min_size=1, max_size=3, unique=True)
    )
    axes = {name: draw(labels_of) for name in names}
    shape = tuple(len(labels) for labels in axes.values())
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    values = {}
    for name in draw(st.permutations(["logp", "a", "greedy"])):
        kind = draw(st.sampled_from([np.float64, np.float32, np.int64, np.bool_]))
        values[name] = (generator.normal(size=shape) * 3).astype(kind)
    some = next(iter(values))
    if values[some].size and values[some].dtype == np.float64:
        values[some].flat[0] = draw(st.sampled_from([NAN, float("inf"), -0.0, 5e-324]))
    tables = {
        name: pd.DataFrame({column: draw(columns) for column in ("x",)} if draw(st.booleans()) else {})
        for name in draw(st.permutations(["summary", "controls", "impossible"]))[: draw(st.integers(0, 3))]
    }
    examples = pd.DataFrame({"case_id": list(range(len(axes["example"])))}) if "example" in axes else pd.DataFrame()
    return Result(
        kind=draw(words),
        axes=axes,
        values=values,
        examples=examples,
        tables=tables,
        provenance=draw(st.dictionaries(words, plain, max_size=3)),
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(results())
def test_loading_gives_back_what_was_saved(result):
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "result"
        assert result.save(place) == place
        assert same(Result.load(place), result)
        assert same(Result.load(str(place)), result)


def test_the_order_of_values_and_tables_is_kept(tmp_path):
    zeros = np.zeros((3, 2, 2))
    result = make(
        values={"z": zeros, "a": zeros, "m": zeros},
        tables={name: pd.DataFrame({"x": [1]}) for name in ("zeta", "alpha", "mu")},
    )
    found = Result.load(result.save(tmp_path / "out"))
    assert list(found.values) == ["z", "a", "m"]
    assert list(found.tables) == ["zeta", "alpha", "mu"]
    assert found.axes == {"example": (0, 1, 2), "scheme": ("b", "a"), "n": (0, 10)}


def test_numpys_numbers_and_tuples_may_stand_in_provenance_and_axes(tmp_path):
    result = make(
        axes={"example": (0, 1, 2), "scheme": ("b", "a"), "n": tuple(np.array([0, 10]))},
        provenance={"seed": np.int64(3), "share": np.float64(0.5), "counts": (0, 1), "on": np.bool_(True)},
    )
    found = Result.load(result.save(tmp_path / "out"))
    assert found.provenance == {"seed": 3, "share": 0.5, "counts": [0, 1], "on": True}
    assert found.axes["n"] == (0, 10)


def test_saving_again_replaces(tmp_path):
    place = make().save(tmp_path / "deep" / "er" / "out")
    other = make(kind="other", tables={"only": pd.DataFrame({"x": [1]})})
    other.save(place)
    assert same(Result.load(place), other)
    assert not (place / "summary.parquet").exists()
    assert [item.name for item in place.parent.iterdir()] == ["out"]


def test_an_empty_folder_is_taken(tmp_path):
    assert same(Result.load(make().save(tmp_path)), make())


@pytest.mark.parametrize("name", ["examples", "result", "values"])
def test_a_table_may_have_any_name(tmp_path, name):
    result = make(tables={name: pd.DataFrame({"x": [1.0, 2.0]})})
    assert same(Result.load(result.save(tmp_path / "out")), result)


def test_nothing_saved_is_a_pickle(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    place = make().save(tmp_path / "out")
    assert same(Result.load(place), make())
    assert {item.suffix for item in place.iterdir()} == {".json", ".safetensors", ".parquet"}
    for item in place.iterdir():
        data = item.read_bytes()
        assert data[:2] not in {bytes([0x80, protocol]) for protocol in range(2, 6)}
        assert b"pickle" not in data
        if item.suffix == ".parquet":
            assert data.startswith(b"PAR1")


# --- never at the cost of what is there -----------------------------------------------------------------------------


def test_another_folder_is_not_touched(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(LcalensError, match="something else than a result; name a new folder"):
        make().save(tmp_path / "thesis")
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(LcalensError, match="folder"):
        make().save(tmp_path / "notes")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    assert (tmp_path / "notes").read_text() == "mine"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["notes", "thesis"]


@pytest.mark.parametrize("theirs", ['{"accuracy": 0.9}', "[1, 2]", "not JSON"])
def test_another_programs_result_json_is_not_a_result(tmp_path, theirs):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(theirs)
    (tmp_path / "run" / "weights.bin").write_text("days of training")
    with pytest.raises(LcalensError, match="something else"):
        make().save(tmp_path / "run")
    assert (tmp_path / "run" / "weights.bin").read_text() == "days of training"


def test_notes_beside_a_result_outlive_the_next_save(tmp_path):
    place = make().save(tmp_path / "out")
    (place / "notes.md").write_text("mine")
    try:
        make(kind="other").save(place)
    except LcalensError:
        assert same(Result.load(place), make())
    assert (place / "notes.md").read_text() == "mine"


def _break(monkeypatch, places, error, at):
    """Make the call number `at` of some functions fail, as a full disk or Ctrl-C would."""
    calls = []

    def breaking(real):
        def broken(*arguments, **options):
            calls.append(real)
            if len(calls) == at:
                raise error
            return real(*arguments, **options)

        return broken

    for owner, name in places:
        monkeypatch.setattr(owner, name, breaking(getattr(owner, name)))
    return calls


WRITING = [(Path, "write_text")]
NUMBERS = [(safetensors.numpy, "save_file")]
TABLES = [(pd.DataFrame, "to_parquet")]
MOVING = [(os, "rename"), (os, "replace")]  # pathlib's own go through these


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
@pytest.mark.parametrize(
    ("places", "at"),
    [(WRITING, 1), (NUMBERS, 1), (TABLES, 1), (TABLES, 3), (MOVING, 1), (MOVING, 2)],
    ids=["head", "values", "examples", "tables", "first move", "second move"],
)
def test_an_interrupted_save_leaves_the_old_result(tmp_path, places, at, error):
    place = make().save(tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        calls = _break(patch, places, error, at)
        with pytest.raises((OSError, KeyboardInterrupt, LcalensError)):
            make(kind="new").save(place)
        assert len(calls) >= at
    assert [item.name for item in tmp_path.iterdir()] == ["out"]
    assert same(Result.load(place), make())


def test_an_interrupted_first_save_leaves_nothing(tmp_path, monkeypatch):
    _break(monkeypatch, TABLES, OSError(28, "No space left on device"), 2)
    with pytest.raises((OSError, LcalensError)):
        make().save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --- what cannot be loaded ------------------------------------------------------------------------------------------

FILES = ("result.json", "values.safetensors", "examples.parquet", "summary.parquet", "another.parquet", "seal.json")


@pytest.fixture
def place(tmp_path):
    return make().save(tmp_path / "out")


def test_the_files_are_these(place):
    assert sorted(item.name for item in place.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(place, name):
    (place / name).unlink()
    with pytest.raises(LcalensError, match=rf"{place}' holds no result \({name} is missing\)"):
        Result.load(place)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_damage(place, name, share):
    data = (place / name).read_bytes()
    (place / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(LcalensError, match="damaged"):
        Result.load(place)


@pytest.mark.parametrize("name", FILES)
def test_garbage_is_damage(place, name):
    (place / name).write_bytes(b"\x00\xff" * 400)
    with pytest.raises(LcalensError, match="damaged"):
        Result.load(place)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 3}, "later lcalens; upgrade"),
        ({"format": 99}, "later lcalens; upgrade"),
        ({"values": ["logp", "gone"]}, "damaged"),
        ({"axes": {"example": [0, 1, 2]}}, "damaged"),
        ({"axes": None}, "damaged"),
        ({"kind": ...}, "damaged"),
    ],
)
def test_a_head_that_does_not_fit(place, changes, message):
    head = json.loads((place / "result.json").read_text()) | changes
    head = {name: value for name, value in head.items() if value is not ...}
    (place / "result.json").write_text(json.dumps(head))
    with pytest.raises(LcalensError, match=message):
        Result.load(place)


def test_a_head_of_another_kind(place):
    (place / "result.json").write_text("[]")
    with pytest.raises(LcalensError, match="damaged"):
        Result.load(place)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(LcalensError, match=r"folder: there is no folder .*gone'; give one that holds a result"):
        Result.load(tmp_path / "gone")
    (tmp_path / "file").write_text("x")
    with pytest.raises(LcalensError, match=r"folder: .*file' is a file; give the folder that it is in"):
        Result.load(tmp_path / "file")


def test_a_saved_table_is_not_read_from_another_folder(place, tmp_path):
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "secret.parquet")
    head = json.loads((place / "result.json").read_text())
    head["tables"] = ["../secret"]
    (place / "result.json").write_text(json.dumps(head))
    with pytest.raises(LcalensError):
        Result.load(place)


# --- HTML -----------------------------------------------------------------------------------------------------------


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def evil(where):
    zeros = np.zeros((3, 2, 2))
    return {
        "kind": lambda: make(kind=PAYLOAD),
        "axis": lambda: make(axes={"example": (0, 1, 2), PAYLOAD: ("b", "a"), "n": (0, 10)}),
        "label": lambda: make(axes={"example": (0, 1, 2), "scheme": (PAYLOAD, "a"), "n": (0, 10)}, tables={}),
        "quantity": lambda: make(values={PAYLOAD: zeros}),
        "cell": lambda: make(tables={"summary": pd.DataFrame({"scheme": [PAYLOAD]})}),
        "column": lambda: make(tables={"summary": pd.DataFrame({PAYLOAD: [1]})}),
        "example": lambda: make(examples=pd.DataFrame({"case_id": [PAYLOAD, "1", "2"]}), tables={}),
        "source": lambda: make(provenance={"model": {"source": PAYLOAD}}),
        "dtype": lambda: make(provenance={"model": {"source": "x", "dtype": PAYLOAD}}),
        "quantisation": lambda: make(provenance={"model": {"source": "x", "quantisation": PAYLOAD}}),
    }[where]()


@pytest.mark.parametrize(
    "where",
    ["kind", "axis", "label", "quantity", "cell", "column", "example", "source", "dtype", "quantisation"],
)
def test_text_is_escaped_in_html(where):
    page = evil(where)._repr_html_()
    parser = _Tags()
    parser.feed(page)
    assert "script" not in parser.tags
    assert PAYLOAD in parser.text  # shown as it is
    assert "table" in parser.tags


def test_html_shows_the_model_and_its_quantisation():
    page = make(provenance={"model": {"source": "gemma", "dtype": "float32", "quantisation": "Q4_1, dequantised"}})
    assert "gemma, float32, Q4_1, dequantised" in page._repr_html_()
    assert make(provenance={})._repr_html_()


def test_a_kind_without_a_figure_says_so():
    with pytest.raises(LcalensError, match="kind 'unheard' have no figure; use to_frame"):
        make(kind="unheard").plot()


def test_nothing_is_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(builtins, "print", None)
    result = make()
    result.to_frame()
    result.mean(resamples=10)
    Result.load(result.save(tmp_path / "out"))._repr_html_()
    shutil.rmtree(tmp_path / "out")
    assert capsys.readouterr() == ("", "")


def test_a_mean_of_recoveries_is_refused():
    """One example that the hijack hardly changes has a recovery that outweighs all others."""
    one = Result(
        kind="patching", axes={"example": (0, 1)}, values={"recovery": np.array([0.5, -90.0])},
        examples=pd.DataFrame({"clean": [0.0, 0.0], "hijacked": [1.0, 0.001]}),
    )  # fmt: skip
    with pytest.raises(LcalensError, match=r"^quantity: a mean of 'recovery'"):
        one.mean("recovery")
