"""Facts from damaged, hostile and mistaken input: nothing is lost in silence, and every message says what to do."""

import copy
import gzip
import io
import json
import os
import time
import tracemalloc
from pathlib import Path

import datasets
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcalens.core.errors import LcalensError
from lcalens.llm.facts import files
from lcalens.llm.facts.facts import Fact, Facts, Skipped, load_facts
from lcalens.llm.facts.halves import held_out

GOOD = {
    "case_id": 1,
    "requested_rewrite": {
        "prompt": "The capital of {} is",
        "relation_id": "P36",
        "target_new": {"str": "Rome"},
        "target_true": {"str": "Paris"},
        "subject": "France",
    },
}
FLAT = {"prompt": "The capital of France is", "subject": "France", "target_new": "Rome", "ground_truth": "Paris"}
TRACING = {
    "relation_prefix": "The capital of",
    "relation_suffix": " is",
    "prompt": "The capital of France is",
    "subject": " France",
    "relation_id": "P36",
    "target_true": " Paris",
    "target_false": " Rome",
}
FACT = Fact(
    case_id=1,
    relation_id="P36",
    prompt="The capital of {} is",
    subject="France",
    target_true="Paris",
    target_false="Rome",
)
ABSENT = object()


def nested(case_id=2, **changes):
    """The good record with some keys of its rewrite changed, or absent."""
    record = copy.deepcopy(GOOD) | {"case_id": case_id}
    rewrite = record["requested_rewrite"] | changes
    record["requested_rewrite"] = {key: value for key, value in rewrite.items() if value is not ABSENT}
    return record


def flat(base=FLAT, **changes):
    return {key: value for key, value in (base | changes).items() if value is not ABSENT}


def refused(source, **arguments):
    """The message of the error that loading raises, which no other kind of error may replace."""
    with pytest.raises(LcalensError) as caught:
        load_facts(source, **arguments)
    message = str(caught.value)
    assert len(message) < 2000
    assert ":" in message  # what is wrong: what to do
    return message


def file(tmp_path, data):
    path = tmp_path / "facts.data"
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


LONG = "x" * 10_001
BAD_RECORDS = {
    "number": (3, "record: 3 is a int; give a dict"),
    "null": (None, "record: None is a NoneType"),
    "list": ([GOOD], "record: <list of 1> is a list"),
    "string": ("text", "record: 'text' is a str"),
    "empty": ({}, "missing key 'requested_rewrite' or 'prompt'; add it (the keys found are none)"),
    "other": ({"a": 1, "b": 2}, "(the keys found are 'a', 'b')"),
    "rewrite a list": ({"requested_rewrite": [{}]}, "requested_rewrite: <list of 1> is a list; give a dict"),
    **{
        f"no {key}": (nested(**{key: gone}), f"missing key 'requested_rewrite.{key}'")
        for key in ("prompt", "relation_id", "subject", "target_true", "target_new")
        for gone in (ABSENT, None)
    },
    "no str": (nested(target_true={"id": "Q1"}), "missing key 'requested_rewrite.target_true.str'"),
    "flat no prompt": (flat(prompt=ABSENT), "missing key 'prompt'"),
    "flat no subject": (flat(subject=ABSENT), "missing key 'subject'"),
    "flat no truth": (flat(ground_truth=ABSENT), "missing key 'target_true' or 'ground_truth'"),
    "flat no new": (flat(target_new=ABSENT), "missing key 'target_false' or 'target_new'"),
    "subject a number": (nested(subject=7), "requested_rewrite.subject: 7 is a int; give a string"),
    "subject NaN": (nested(subject=float("nan")), "missing key 'requested_rewrite.subject'"),
    "subject infinite": (nested(subject=float("inf")), "requested_rewrite.subject: inf is a float"),
    "subject bytes": (nested(subject=b"x"), "requested_rewrite.subject: b'x' is a bytes"),
    "target a list": (nested(target_new=["Rome"]), "requested_rewrite.target_new: <list of 1> is a list"),
    "target str a number": (nested(target_new={"str": 5}), "requested_rewrite.target_new.str: 5 is a int"),
    "relation a number": (nested(relation_id=36), "requested_rewrite.relation_id: 36 is a int"),
    "flat relation a number": (flat(relation_id=36), "relation_id: 36 is a int"),
    "flat target a number": (flat(ground_truth=5), "ground_truth: 5 is a int"),
    **{
        f"{key} {name}": (nested(**{key: value}), f"requested_rewrite.{key}: {value!r} is empty or only white space")
        for key in ("prompt", "relation_id", "subject", "target_true", "target_new")
        for name, value in {"empty": "", "blank": " \t\n\u3000"}.items()
    },
    "no placeholder": (nested(prompt="The capital of France is"), "has no placeholder for the subject"),
    "two placeholders": (nested(prompt="{} and {}"), "has 2 placeholders for the subject; give exactly one '{}'"),
    "numbered placeholder": (nested(prompt="The capital of {0} is"), "has no placeholder"),
    "subject not in prompt": (flat(subject="Spain"), "holds neither '{}' nor the subject 'Spain'"),
    "subject twice": (flat(prompt="France, France"), "holds the subject 'France' more than once"),
    "subject overlaps itself": (flat(prompt="an anana", subject="ana"), "more than once"),
    "flat two placeholders": (flat(prompt="{} {}"), "has 2 placeholders"),
    "tracing disagrees": (
        flat(TRACING, prompt="The city of France is"),
        "is not relation_prefix + subject + relation_suffix",
    ),
    "tracing disagrees on space": (flat(TRACING, subject="France"), "make the four agree"),
    "same objects": (nested(target_new={"str": "Paris"}), "target_false: 'Paris' is the same text as target_true"),
    "same but for case": (nested(target_new={"str": " pARIS "}), "is the same text as target_true"),
    "same but for sharp s": (nested(target_new={"str": "GROSS"}, target_true={"str": "groß"}), "is the same text"),
    **{
        f"{key} long": (nested(**{key: LONG}), f"requested_rewrite.{key}: 'xxx")
        for key in ("prompt", "relation_id", "subject", "target_true", "target_new")
    },
    "long says so": (nested(subject=LONG), "has 10,001 characters; give at most 10,000"),
    "surrogate": (nested(subject="a\ud800"), "holds a lone surrogate, U+D800, at character 1; remove it"),
    "low surrogate": (nested(target_true="\udfff"), "holds a lone surrogate, U+DFFF"),
    "surrogate in prompt": (nested(prompt="{} \udc80 is"), "holds a lone surrogate"),
    "NUL": (nested(subject="Fra\0nce"), "holds a control character, U+0000, at character 3"),
    "NUL in prompt": (nested(prompt="{} \0 is"), "holds a control character"),
    "escape": (nested(target_new="\x1b[31mRome"), "holds a control character, U+001B"),
    "C1": (nested(relation_id="P\x85Q"), "holds a control character, U+0085"),
    "newline in subject": (nested(subject="a\nb"), "holds a control character, U+000A"),
    "carriage return in prompt": (nested(prompt="a\r\n{} b"), "holds a control character, U+000D"),
    "zero-width space": (nested(subject="Fra\u200bnce"), "holds U+200B (ZERO WIDTH SPACE) at character 3"),
    "byte-order mark": (nested(prompt="\ufeff{} is"), "holds U+FEFF (ZERO WIDTH NO-BREAK SPACE) at character 0"),
    "soft hyphen": (nested(target_true="Pa\u00adris"), "holds U+00AD (SOFT HYPHEN)"),
    "object with a newline": (nested(target_true="Paris\n"), "holds a control character, U+000A"),
    "object with a no-break space": (nested(target_true="\u00a0Paris"), "begins with U+00A0 (NO-BREAK SPACE)"),
    "same but for its form": (nested(target_true="Curaçao", target_new="Curac\u0327ao"), "is the same text"),
    "bool id": (nested(case_id=True), "case_id: True is a bool; give an integer or a string"),
    "float id": (nested(case_id=1.5), "case_id: 1.5 is a float"),
    "infinite id": (nested(case_id=float("inf")), "case_id: inf is a float"),
    "id beyond what a float holds": (nested(case_id=1e17), "case_id: 1e+17 is a float"),
    "list id": (nested(case_id=[1]), "case_id: <list of 1> is a list"),
    "blank id": (nested(case_id=" "), "case_id: ' ' is empty"),
    "NUL id": (nested(case_id="a\0b"), "case_id: 'a\\x00b' holds a control character"),
    "endless id": (nested(case_id=10**5000), "has more than 1,000 digits"),
    "duplicate id": (nested(case_id=1), "case_id: 1 is a duplicate, of record 0"),
}


@pytest.mark.parametrize(("record", "reason"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_bad_record_is_skipped_and_said(record, reason):
    loaded = load_facts([GOOD, record, nested(case_id=3)])
    assert [fact.case_id for fact in loaded] == [1, 3]
    assert loaded.pool == tuple(loaded)
    (skipped,) = loaded.skipped
    assert skipped.position == 1
    assert reason in skipped.reason
    assert len(skipped.reason) < 400
    message = refused([GOOD, record, nested(case_id=3)], strict=True)
    assert "source: 'records', record 1: " in message
    assert reason in message
    assert "pass strict=False" in message


@pytest.mark.parametrize("base", [GOOD, FLAT, TRACING])
def test_good_record_is_good(base):
    (fact,) = load_facts([base], strict=True)
    assert fact.text == FACT.text
    assert fact.prompt == FACT.prompt


def test_skipped_knows_the_identifier_where_it_is_usable():
    records = [GOOD, nested(case_id=5, subject=""), nested(case_id="a", subject=""), nested(case_id=True), 3, {}]
    assert [item.case_id for item in load_facts(records).skipped] == [5, "a", None, None, None]


def test_first_valid_of_two_with_one_identifier_is_kept():
    loaded = load_facts([nested(1, subject=""), nested(1, subject="Italy"), nested(1, subject="Spain")])
    assert [fact.subject for fact in loaded] == ["Italy"]
    assert "duplicate, of record 1" in loaded.skipped[1].reason
    # "1" and 1 are two identifiers.
    assert len(load_facts([nested(1), nested("1")])) == 2


def test_huge_integers(tmp_path):
    assert load_facts([nested(10**300)])[0].case_id == 10**300
    digits = "9" * 5000  # more than Python converts
    text = f"[{json.dumps(GOOD)}, {json.dumps(nested(77))}, {json.dumps(nested(3, n=88))}]"
    loaded = load_facts(file(tmp_path, text.replace("77", digits).replace("88", digits).encode()))
    assert [fact.case_id for fact in loaded] == [1, 3]
    assert "more than 1,000 digits" in loaded.skipped[0].reason


def test_nan_only_spoils_the_field_it_is_in(tmp_path):
    text = json.dumps([nested(1, other=float("nan")), nested(2, subject=float("inf"))])
    assert "NaN" in text
    loaded = load_facts(file(tmp_path, text.encode()))
    assert [fact.case_id for fact in loaded] == [1]
    assert "subject: inf is a float" in loaded.skipped[0].reason


@pytest.mark.parametrize(
    "changes", [{"subject": "y" * 10**7}, {"target_new": ["y"] * 10**6}, {"prompt": "{}" * 5 * 10**6}]
)
def test_ten_megabytes_in_one_record(tmp_path, changes):
    path = file(tmp_path, [GOOD, nested(2, **changes), nested(3)])
    start = time.process_time()  # of this process alone: the machine may be busy
    loaded = load_facts(path)
    assert time.process_time() - start < 5
    assert [fact.case_id for fact in loaded] == [1, 3]
    assert len(loaded.skipped[0].reason) < 300


def test_the_longest_text_allowed():
    assert len(load_facts([nested(subject="x" * 10_000)])[0].subject) == 10_000


def test_all_bad_lists_the_first_three_reasons():
    message = refused([3, {}, nested(case_id=True), "four", 5])
    assert "source: 'records' holds no valid fact in 5 records" in message
    assert "record 0: record: 3" in message
    assert "record 1: missing key" in message
    assert "record 2: case_id: True" in message
    assert "four" not in message


# --- files ----------------------------------------------------------------------------------------------------------


def test_malformed_line_is_skipped_with_its_number(tmp_path):
    good = [json.dumps(nested(index)) for index in range(3)]
    lines = [
        good[0],
        "",
        good[1][:40],
        "not json",
        "[" * 200_000,
        json.dumps(nested(7, subject="")),
        good[2],
        good[0][:-1],
    ]
    path = file(tmp_path, "\n".join(lines).encode())
    loaded = load_facts(path)
    assert [fact.case_id for fact in loaded] == [0, 2]
    assert [item.position for item in loaded.skipped] == [1, 2, 3, 4, 6]
    starts = [item.reason.split(":")[0] for item in loaded.skipped]
    assert starts == ["line 3", "line 4", "line 5", "line 6", "line 8"]
    assert "is not JSON (" in loaded.skipped[0].reason
    assert "nested too deeply" in loaded.skipped[2].reason
    assert "subject: '' is empty" in loaded.skipped[3].reason
    assert all(len(item.reason) < 300 for item in loaded.skipped)
    assert "record 1: line 3: the line '{" in refused(path, strict=True)


def test_first_line_malformed(tmp_path):
    path = file(tmp_path, f"{json.dumps(GOOD)[:30]}\n{json.dumps(GOOD)}".encode())
    assert load_facts(path).skipped[0].reason.startswith("line 1: ")


def test_truncated_list_says_where(tmp_path):
    text = json.dumps([GOOD, nested(2)], indent=1)
    message = refused(file(tmp_path, text[: text.rindex("Rome")].encode()))
    line = text[: text.rindex("Rome")].count("\n") + 1
    assert "facts.data" in message
    assert f"at line {line}, column " in message
    assert "download it again" in message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is an empty file"),
        (b" \n\t ", "is an empty file"),
        (b"\xef\xbb\xbf", "is an empty file"),
        (gzip.compress(b"", mtime=0), "is an empty file"),
        (b"[]", "holds no records"),
        (b"{}", "holds no valid fact in 1 record"),
        (b'{"a"', "is not JSON"),
        (b"[{} {}]", "is not whole JSON: Expecting ',' delimiter at line 1, column 5"),
        (b"[]\n[]", "Extra data at line 2, column 1"),
        (b"[" * 200_000, "nested too deeply"),
        (b"case_id,prompt\n1,x", "begins with 'case_id,prompt"),
        (b"<!DOCTYPE html>", "begins with '<!DOCTYPE html>'"),
        (b"version https://git-lfs.github.com/spec/v1", "begins with 'version https://git-"),
        (b"PK\x03\x04\x14", "begins with 'PK"),
        (b"PAR1", "is damaged parquet"),
        (b"PAR1" + b"x" * 100 + b"PAR1", "is damaged parquet"),
        (b"\x1f\x8b", "is damaged gzip"),
        (gzip.compress(json.dumps([GOOD]).encode(), mtime=0)[:-12], "is damaged gzip"),
        (gzip.compress(json.dumps([GOOD]).encode(), mtime=0) + b"junk", "is damaged gzip"),
        (gzip.compress(gzip.compress(b"[]", mtime=0), mtime=0), "is not UTF-8 at byte 1"),
        (json.dumps([GOOD]).encode("utf-16"), "is UTF-16 or UTF-32, not UTF-8"),
        (json.dumps([GOOD]).encode("utf-16-le"), "is UTF-16 or UTF-32, not UTF-8"),
        (json.dumps([GOOD]).encode("utf-16-be"), "is UTF-16 or UTF-32, not UTF-8"),
        (json.dumps([GOOD]).encode("utf-32"), "is UTF-16 or UTF-32, not UTF-8"),
        ('["São Paulo"]'.encode("latin-1"), "is not UTF-8 at byte 3; save it again as UTF-8"),
        (b"\xef\xbb\xbf" + '["São Paulo"]'.encode("latin-1"), "is not UTF-8 at byte 6"),
        (b'["\xed\xa0\x80"]', "is not UTF-8 at byte 2"),
    ],
)
def test_unreadable_file(tmp_path, data, words):
    message = refused(file(tmp_path, data))
    assert words in message
    assert "facts.data" in message


def parquet(table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def test_a_small_parquet_file_does_not_fill_the_memory(tmp_path, monkeypatch):
    """One long text, and one number, that some bytes repeat for every row."""
    monkeypatch.setattr(files, "MAX_BYTES", 1 << 24)
    monkeypatch.setattr(files, "MAX_RECORDS", 10_000)
    same, text = pa.array([0] * 5_000, pa.int32()), pa.array(["x" * 100_000])
    for column in (pa.array(["x" * 100_000] * 5_000), pa.array([1] * 3_000_000),
                   pa.DictionaryArray.from_arrays(same, text)):  # fmt: skip
        packed = parquet(pa.table({"prompt": column}))
        del column
        assert len(packed) < 1 << 19
        tracemalloc.start()
        assert "split it into smaller files" in refused(file(tmp_path, packed))
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
        tracemalloc.stop()


def test_a_small_gzip_file_does_not_fill_the_memory(tmp_path):
    for name, text in (("facts.json", b"[" + b"{}," * 11_000_000), ("facts.jsonl", b"{}\n" * 20_000_001),
                       ("facts.csv", b"a\n" * 20_000_001)):  # fmt: skip
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text, 1))
        assert "holds more than 20,000,000 values" in refused(tmp_path / f"{name}.gz")


def test_a_time_that_python_does_not_know_is_no_field_of_a_fact(tmp_path):
    table = pa.Table.from_pylist([GOOD, nested(2)])
    far = pa.array([2**62, 2**62], pa.timestamp("us"))
    assert len(load_facts(file(tmp_path, parquet(table.append_column("seen", far))))) == 2


def test_parquet_faults(tmp_path):
    whole = parquet(pa.Table.from_pylist([GOOD, nested(2)]))
    assert len(load_facts(file(tmp_path, whole))) == 2
    assert "is damaged parquet" in refused(file(tmp_path, whole[: len(whole) // 2]))
    assert "holds no records" in refused(file(tmp_path, parquet(pa.table({"prompt": pa.array([], pa.string())}))))
    assert "missing key" in refused(file(tmp_path, parquet(pa.table({"a": [1]}))))
    broken = pa.StringArray.from_buffers(1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe"))
    assert "is damaged parquet" in refused(file(tmp_path, parquet(pa.table({"prompt": broken}))))


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_any_damage_gives_facts_or_our_error(tmp_path_factory, data):
    text = "\n".join(json.dumps(nested(index)) for index in range(3)).encode()
    table = parquet(pa.Table.from_pylist([GOOD, nested(2)]))
    whole = data.draw(
        st.sampled_from([text, b"[" + text.replace(b"\n", b",") + b"]", gzip.compress(text, mtime=0), table])
    )
    start = data.draw(st.integers(0, len(whole)))
    end = min(len(whole), start + data.draw(st.integers(0, 30)))
    damaged = whole[:start] + data.draw(st.binary(max_size=30)) + whole[end:]
    path = tmp_path_factory.mktemp("damage") / "facts"
    path.write_bytes(damaged)
    try:
        count = len(load_facts(path))
    except LcalensError as error:
        count = None
        length = len(str(error))
    assert length < 2000 if count is None else 1 <= count <= 4


@settings(deadline=None)
@given(
    record=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from([*FLAT, *GOOD, *TRACING]), inner),
    )
)
def test_any_record_is_kept_or_skipped(record):
    loaded = load_facts([GOOD, record])
    assert len(loaded) + len(loaded.skipped) == 2


def test_missing_file_directory_pipe_and_size(tmp_path, monkeypatch):
    for source in (tmp_path / "none", str(tmp_path / "none"), "no/such/facts.jsonl", "facts.json.gz", "a/b.parquet"):
        assert "is not an existing file; check the path, or use 'sample'" in refused(source)
    assert "is a directory; give the file in it" in refused(tmp_path)
    long = tmp_path / ("d" * 100) / "its-name.json"
    assert "its-name.json'" in refused(long)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read" in refused(str(tmp_path / "loop"))
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert "is not an existing file" in refused(str(tmp_path / "gone"))
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refused(tmp_path / "pipe")
    path = file(tmp_path, [GOOD])
    (tmp_path / "zipped").write_bytes(gzip.compress(b"[" + b" " * 10_000 + json.dumps(GOOD).encode() + b"]"))
    monkeypatch.setattr(files, "MAX_BYTES", path.stat().st_size)
    assert len(load_facts(path)) == 1
    assert "bytes or 2,000,000 records; split it into smaller files" in refused(tmp_path / "zipped")
    monkeypatch.setattr(files, "MAX_BYTES", path.stat().st_size - 1)
    assert "bytes or 2,000,000 records; split it into smaller files" in refused(path)


def test_gzip_that_unpacks_to_fill_the_memory(tmp_path, monkeypatch):
    path = file(tmp_path, gzip.compress(bytes(40_000_000), 1))
    monkeypatch.setattr(files, "MAX_BYTES", 1_000_000)
    tracemalloc.start()
    try:
        message = refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "holds more than 1,000,000 bytes" in message
    assert peak < 10_000_000


def test_no_permission(tmp_path, monkeypatch):
    def refuse(path):  # not chmod: root may read every file
        raise PermissionError(13, "Permission denied")

    path = file(tmp_path, [GOOD])
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "cannot be read ([Errno 13] Permission denied); check the path and its permissions" in refused(path)


def test_error_through_the_environment_variable_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LCALENS_COUNTERFACT", str(tmp_path / "none"))
    message = refused("counterfact")
    assert "environment variable LCALENS_COUNTERFACT" in message
    assert "is not an existing file" in message


# --- the source, and the other arguments ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("sampel", "source: 'sampel' is neither 'sample', 'counterfact', an existing file nor a hub id"),
        ("", "source: '' is empty"),
        ("  ", "source: '  ' is empty"),
        ("a\0b", "source: 'a\\x00b' is neither"),
        ("~nobody-of-that-name/x", "is not an existing file"),
        ("../other/data", "is not an existing file"),
        ("x" * 100_000, "is neither"),
        (json.dumps([GOOD]), "is neither"),
        (None, "source: None is a NoneType; give a path"),
        (3, "source: 3 is a int"),
        (b"sample", "source: b'sample' is a bytes"),
        (GOOD, "source: <dict of 2> is one mapping; give a list of records"),
        ({}, "is one mapping"),
        ([], "source: 'records' holds no records"),
        (iter(()), "holds no records"),
        (["sample"], "record: 'sample' is a str"),
    ],
)
def test_bad_source(source, words):
    message = refused(source)
    assert words in message
    if isinstance(source, str):
        assert "use 'sample'" in message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (datasets.exceptions.DatasetNotFoundError("no"), "nor a public data set on the hub; check the spelling"),
        (
            ConnectionError("Couldn't reach it"),
            'the hub could not be reached ("Couldn\'t reach it"); connect to the network',
        ),
        (TimeoutError("slow"), "the hub could not be reached"),
        (
            ValueError("Config name is missing"),
            "could not be loaded (ValueError: 'Config name is missing'); load it with",
        ),
        (RuntimeError("Dataset scripts are no longer supported"), "could not be loaded (RuntimeError"),
        (ValueError("x" * 10_000), "could not be loaded"),
    ],
)
def test_hub_errors_say_what_to_do(monkeypatch, error, words):
    def fail(name):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.delenv("LCALENS_COUNTERFACT", raising=False)
    for source in ("owner/name", "counterfact"):
        message = refused(source)
        assert words in message
        assert "use 'sample'" in message
        assert ("azhx/counterfact" if source == "counterfact" else "owner/name") in message
    with pytest.raises(LcalensError) as caught:
        load_facts("owner/name")
    assert caught.value.__cause__ is error


def test_offline(monkeypatch):
    """The real library, told that there is no network."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused("lcalens-tests/no-such-data-set")
    assert "the hub could not be reached" in message
    assert "HF_HUB_OFFLINE" in message


@pytest.mark.parametrize("source", ["lcalens-tests/no-such-data-set", "counterfact"])
def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch, capfd, source):
    """The real library; only the network is missing."""
    asked = []

    def unreachable(url, **options):
        asked.append(url)
        raise httpx.ConnectError("name or service not known")

    monkeypatch.delenv("LCALENS_COUNTERFACT", raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    started = time.monotonic()
    assert "the hub could not be reached" in refused(source)
    assert time.monotonic() - started < 5
    assert len(asked) == 1
    assert capfd.readouterr().err == ""
    assert not datasets.config.HF_HUB_OFFLINE


def test_hub_data_set_of_another_kind(monkeypatch):
    rows = datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(train=rows))
    message = refused("owner/name")
    assert "source: 'owner/name' holds no valid fact in 2 records" in message
    assert "the keys found are 'text'" in message


def test_unknown_relation_lists_the_known():
    records = [nested(1), nested(2, relation_id="P17")]
    for relations in ("P99", ["P36", "P99"]):
        assert "relations: 'P99' does not occur in 'records'; give one of 'P17', 'P36'" in refused(
            records, relations=relations
        )
    assert " and 150 more" in refused([nested(i, relation_id=f"P{i:03}") for i in range(200)], relations="none")
    with pytest.raises(LcalensError, match="give one of 'P36'"):
        load_facts(records)[:1].where(relations="P17")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"relations": []}, "relations: <list of 0> names no relation; give at least one, or None"),
        ({"relations": 36}, "relations: 36 is a int"),
        ({"relations": ["P36", 36]}, "relations: 36 is a int"),
        ({"relations": b"P36"}, "relations: b'P36' is a bytes"),
        ({"limit": 0}, "limit: 0 cannot be used; give an integer of at least 1"),
        ({"limit": -3}, "limit: -3 cannot be used"),
        ({"limit": True}, "limit: True cannot be used"),
        ({"limit": 2.0}, "limit: 2.0 cannot be used"),
        ({"limit": "2"}, "limit: '2' cannot be used"),
        ({"seed": None}, "seed: None cannot be used; give an integer"),
        ({"seed": False}, "seed: False cannot be used"),
        ({"seed": 0.5}, "seed: 0.5 cannot be used"),
        ({"strict": 1}, "strict: 1 is a int; give True or False"),
    ],
)
def test_bad_arguments(arguments, words):
    assert words in refused([GOOD], **arguments)
    # They are found before the source is read, which may take minutes.
    assert words in refused("/no/such/file", **arguments)


def test_numpy_integers_are_integers():
    assert len(load_facts([GOOD, nested(2)], limit=np.int64(1), seed=np.int32(3))) == 1
    (fact,) = load_facts([nested(np.int64(5))])
    assert type(fact.case_id) is int


# --- facts of the user's own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"case_id": True}, "case_id: True is a bool"),
        ({"case_id": None}, "case_id: None is a NoneType"),
        ({"relation_id": ""}, "relation_id: '' is empty"),
        ({"prompt": "no place"}, "prompt: 'no place' has no placeholder"),
        ({"prompt": "{}{}"}, "prompt: '{}{}' has 2 placeholders"),
        ({"subject": 3}, "subject: 3 is a int; give a string"),
        ({"subject": "\ud800"}, "subject: '\\ud800' holds a lone surrogate"),
        ({"target_true": "rome"}, "target_false: 'Rome' is the same text as target_true; give another object"),
        ({"target_false": "x\0y"}, "target_false: 'x\\x00y' holds a control character"),
    ],
)
def test_fact_checks_itself(changes, words):
    fields = {name: getattr(FACT, name) for name in FACT.__dataclass_fields__}
    with pytest.raises(LcalensError) as caught:
        Fact(**(fields | changes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"facts": [FACT, GOOD]}, "facts[1]: <dict of 2> is a dict; give a Fact, or use load_facts"),
        ({"facts": FACT}, "facts: Fact(case_id=1"),
        ({"facts": "sample"}, "facts: 'sample' is a str; give a list of Fact"),
        ({"facts": None}, "facts: None is a NoneType"),
        ({"facts": [FACT, FACT]}, "facts: case_id 1 occurs twice"),
        ({"facts": [FACT], "pool": []}, "pool: <tuple of 0> lacks 1 of the facts"),
        ({"facts": [FACT], "pool": [3]}, "pool[0]: 3 is a int"),
        ({"facts": [FACT], "skipped": [FACT]}, "skipped[0]: Fact("),
        ({"facts": [FACT], "source": None}, "source: None is a NoneType"),
    ],
)
def test_facts_checks_its_arguments(arguments, words):
    with pytest.raises(LcalensError) as caught:
        Facts(**arguments)
    assert words in str(caught.value)


def test_sample_and_index_check_their_arguments():
    facts = Facts([FACT], skipped=[Skipped(0, None, "x")])
    for n in (0, -1, True, 1.0, None):
        with pytest.raises(LcalensError, match=r"n: .* cannot be used; give an integer of at least 1"):
            facts.sample(n)  # pyright: ignore
    with pytest.raises(LcalensError, match="seed: 'a' cannot be used"):
        facts.sample(1, seed="a")  # pyright: ignore
    with pytest.raises(TypeError):
        facts["a"]  # pyright: ignore


class Hostile:
    def __repr__(self):
        raise RuntimeError("no")


def test_a_value_that_cannot_be_shown_does_not_hide_the_error():
    assert "limit: <Hostile> cannot be used" in refused([GOOD], limit=Hostile())
    assert "record: <Hostile> is a Hostile" in load_facts([GOOD, Hostile()]).skipped[0].reason


@pytest.mark.parametrize(
    ("facts", "without"), [([FACT], ()), (None, ()), (Facts([FACT]), "12"), (Facts([FACT]), 12), (Facts([FACT]), b"1")]
)
def test_a_half_of_what_is_no_facts_is_refused(facts, without):
    with pytest.raises(LcalensError, match="give"):
        held_out(facts, without=without)
