"""Facts: the collection, every schema and format it is read from, and the promises of the sample."""

import copy
import gzip
import hashlib
import io
import json
import operator
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import lcalens
from lcalens.core.errors import LcalensError
from lcalens.llm.facts.facts import Fact, Facts, Skipped, load_facts
from lcalens.llm.facts.halves import held_out

COUNTERFACT = os.environ.get("LCALENS_COUNTERFACT", "")
SAMPLE = Path(lcalens.__file__).parent / "llm" / "data" / "sample_facts.json"


def make(case_id=0, **changes):
    fields = {
        "case_id": case_id,
        "relation_id": "P36",
        "prompt": "The capital of {} is",
        "subject": "France",
        "target_true": "Paris",
        "target_false": "Rome",
    }
    return Fact(**(fields | changes))


def many(count=40, relations=4):
    return [make(index, relation_id=f"P{index % relations}", subject=f"Land {index}") for index in range(count)]


# --- the schemas, written from a fact -------------------------------------------------------------------------------


def nested(fact):
    return {
        "case_id": fact.case_id,
        "pararel_idx": 7,
        "requested_rewrite": {
            "prompt": fact.prompt,
            "relation_id": fact.relation_id,
            "target_new": {"str": fact.target_false, "id": "Q1"},
            "target_true": {"str": fact.target_true, "id": "Q2"},
            "subject": fact.subject,
        },
        "paraphrase_prompts": ["x"],
    }


def easyedit_filled(fact):
    return easyedit_template(fact) | {"prompt": fact.text, "rephrase_prompt": "x"}


def easyedit_template(fact):
    return {
        "case_id": fact.case_id,
        "relation_id": fact.relation_id,
        "prompt": fact.prompt,
        "subject": fact.subject,
        "target_new": fact.target_false,
        "ground_truth": fact.target_true,
    }


def tracing(fact):
    """As NeelNanda/counterfact-tracing, with a `case_id` added so that nothing of the fact is lost."""
    prefix, suffix = fact.prompt.split("{}")
    lead = " " if prefix.endswith(" ") else ""
    prefix = prefix[: len(prefix) - len(lead)]
    return {
        "case_id": fact.case_id,
        "relation": prefix + "{}" + suffix,
        "relation_prefix": prefix,
        "relation_suffix": suffix,
        "prompt": fact.text,
        "relation_id": fact.relation_id,
        "target_false_id": "Q1",
        "target_true_id": "Q2",
        "target_true": " " + fact.target_true,
        "target_false": " " + fact.target_false,
        "subject": lead + fact.subject,
    }


SCHEMAS = {
    "nested": nested,
    "filled": easyedit_filled,
    "template": easyedit_template,
    "tracing": tracing,
    "own": asdict,
}


# --- the formats ----------------------------------------------------------------------------------------------------


def as_json(records):
    return json.dumps(records).encode()


def as_json_utf8(records):
    return b"\xef\xbb\xbf \n" + json.dumps(records, ensure_ascii=False, indent=1).encode()


def as_lines(records):
    return "\r\n".join(json.dumps(record, ensure_ascii=False) for record in records).encode() + b"\n\n"


def as_parquet(records):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue()


FORMATS = {"list": as_json, "indented": as_json_utf8, "lines": as_lines, "parquet": as_parquet}

# Characters that a reader sees; what cannot be seen is refused (test_text.py).
clean = st.characters(
    exclude_categories=["Cc", "Cs", "Cf"], exclude_characters="\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
)
words = st.text(clean, min_size=1, max_size=12).map(str.strip).filter(bool) | st.sampled_from(
    ["a{b}", "{}", "ana", "x"]
)
around = st.text(clean | st.sampled_from("\n\t{} a"), max_size=12)


@st.composite
def facts_lists(draw):
    ids = draw(st.sampled_from([st.integers(-(2**63), 2**63 - 1), words]))
    found = []
    for case_id in draw(st.lists(ids, min_size=1, max_size=4, unique=True)):
        prompt = draw(around) + "{}" + draw(around)
        true, false = draw(words), draw(words)
        assume(prompt.count("{}") == 1 and not prompt.split("{}")[0].isspace())
        assume(len({unicodedata.normalize("NFC", name).casefold() for name in (true, false)}) == 2)
        found.append(
            make(
                case_id,
                relation_id=draw(words),
                prompt=prompt,
                subject=draw(words),
                target_true=true,
                target_false=false,
            )
        )
    return found


@settings(deadline=None, max_examples=150)
@given(
    facts=facts_lists(),
    schema=st.sampled_from(sorted(SCHEMAS)),
    form=st.sampled_from(sorted(FORMATS)),
    zipped=st.booleans(),
)
def test_what_is_written_comes_back(tmp_path_factory, facts, schema, form, zipped):
    if schema == "filled":
        for fact in facts:
            # Elsewhere a filled prompt does not say where its subject stands.
            once = fact.text.find(fact.subject) == fact.text.rfind(fact.subject)
            assume(once and ("{}" not in fact.text))
    data = FORMATS[form]([SCHEMAS[schema](fact) for fact in facts])
    path = tmp_path_factory.mktemp("facts") / "facts.txt"  # the name tells nothing
    path.write_bytes(gzip.compress(data, 1) if zipped else data)
    loaded = load_facts(path, strict=True)
    assert list(loaded) == facts
    assert loaded.pool == tuple(facts)
    assert loaded == Facts(facts)
    assert loaded.source == "facts.txt"
    assert loaded.digest == Facts(facts).digest


@settings(deadline=None, max_examples=50)
@given(facts=facts_lists())
def test_frame_comes_back(facts):
    frame = Facts(facts).to_frame()
    assert list(frame.columns) == ["case_id", "relation_id", "prompt", "subject", "target_true", "target_false"]
    assert list(load_facts(frame, strict=True)) == facts


# --- one fact -------------------------------------------------------------------------------------------------------


def test_text_fills_in_the_subject_and_leaves_other_braces_alone():
    assert make().text == "The capital of France is"
    assert make(subject="{0.__class__} {}").text == "The capital of {0.__class__} {} is"
    assert make(prompt="{x} {} %s {0}").text == "{x} France %s {0}"


def test_a_facts_prompt_is_kept_as_written_and_its_names_are_stripped():
    for end in ("\n", " ", "", "\n\n", "\t", "\u00a0"):
        fact = make(subject=" France\n", target_true=" Paris ", prompt=f" Q: {{}}?\nA:{end}")
        assert (fact.subject, fact.target_true, fact.prompt) == ("France", "Paris", f" Q: {{}}?\nA:{end}")
        assert fact.text == f" Q: France?\nA:{end}"
        assert load_facts([nested(fact)], strict=True)[0] == fact
        assert load_facts([easyedit_filled(fact)], strict=True)[0] == fact


def test_a_fact_is_frozen():
    fact = make()
    with pytest.raises(FrozenInstanceError):
        fact.subject = "Italy"  # pyright: ignore
    assert hash(fact) == hash(replace(fact))


@pytest.mark.parametrize(
    ("prompt", "subject", "text"),
    [
        ("The capital of {} is", " France", "The capital of France is"),  # one space, not two
        ("The capital of{} is", " France", "The capital of France is"),  # nor none
        ("The capital of {}is", "France ", "The capital of France is"),
        ("({})", " France ", "(France)"),
        ("首都は{}", " 東京", "首都は東京"),
    ],
)
def test_a_subjects_spaces_part_it_from_the_words_beside_it(prompt, subject, text):
    fact = make(prompt=prompt, subject=subject)
    assert (fact.text, fact.subject) == (text, subject.strip())
    assert load_facts([nested(fact) | {"requested_rewrite": nested(fact)["requested_rewrite"] | {
        "prompt": prompt, "subject": subject}}], strict=True)[0].text == text  # fmt: skip


# --- the schemas, as their sources write them -----------------------------------------------------------------------


def test_easyedit_record_without_ids():
    record = {
        "prompt": "The mother tongue of Danielle Darrieux is",
        "subject": "Danielle Darrieux",
        "target_new": "English",
        "ground_truth": "French",
        "locality_prompt": "x",
    }
    (fact,) = load_facts([record])
    assert fact == Fact(
        case_id=0,
        relation_id="unknown",
        prompt="The mother tongue of {} is",
        subject="Danielle Darrieux",
        target_true="French",
        target_false="English",
    )


@pytest.mark.parametrize(
    ("prompt", "subject", "template"),
    [
        ("Ann wrote the Annual report", "Ann", "{} wrote the Annual report"),  # once as a word
        ("東京都は", "東京", "{}都は"),  # no spaces around words
        ("The set {} is", "{}", "The set {} is"),
        ("The set a{} is", "a{}", "The set {} is"),  # the braces are the subject's, not a placeholder
    ],
)
def test_subject_is_found_in_a_filled_prompt(prompt, subject, template):
    (fact,) = load_facts([easyedit_template(make()) | {"prompt": prompt, "subject": subject}])
    assert (fact.prompt, fact.text) == (template, prompt)


def test_tracing_record_knows_where_its_subject_is():
    record = {
        "relation": "{} is the twin city of",
        "relation_prefix": "Paris and",
        "relation_suffix": " are the twins of",
        "prompt": "Paris and Paris are the twins of",
        "relation_id": "P190",
        "target_false_id": "Q1",
        "target_true_id": "Q2",
        "target_true": " Rome",
        "target_false": " Cairo",
        "subject": " Paris",
    }
    (fact,) = load_facts([record])
    assert fact.prompt == "Paris and {} are the twins of"
    assert (fact.subject, fact.target_true, fact.target_false, fact.text) == (
        "Paris",
        "Rome",
        "Cairo",
        record["prompt"],
    )


def test_comp_mech_records_have_a_premise_before_their_base_prompt():
    record = {
        "base_prompt": "Seattle City Light is based in",
        "template": "{}: Seattle City Light is based in{}. Seattle City Light is based in",
        "target_true": " Seattle",
        "target_new": " Philadelphia",
        "prompt": "Redefine: Seattle City Light is based in Philadelphia. Seattle City Light is based in",
        "subject": "Seattle City Light",
    }
    wanted = Fact(case_id=0, relation_id="unknown", prompt="{} is based in", subject="Seattle City Light",
                  target_true="Seattle", target_false="Philadelphia")  # fmt: skip
    premise = record | {"prompt": "It is in Philadelphia. Seattle City Light is based in"}  # the subject once
    alone = {key: value for key, value in record.items() if key != "prompt"}
    for same in (record, premise, alone, record | {"prompt": record["base_prompt"]}):
        assert load_facts([same], strict=True)[0] == wanted
    for other, reason in (
        (record | {"prompt": "Seattle City Light stands in"}, "are two prompts"),
        (record | {"base_prompt": "Seattle is based in"}, "base_prompt: 'Seattle is based in' holds neither"),
        (record | {"base_prompt": "Seattle City Light, Seattle City Light"}, "more than once"),
    ):
        with pytest.raises(LcalensError, match=reason):
            load_facts([other], strict=True)


@pytest.mark.parametrize("kind", ["float", "Int64", "object", "string", "category", "NaT"])
def test_what_a_table_lacks_is_missing_row_by_row(kind):
    facts = many(4)
    frame = pd.DataFrame([easyedit_template(fact) for fact in facts])
    frame["requested_rewrite"] = None
    frame["base_prompt"] = float("nan")
    if kind == "NaT":
        frame["base_prompt"] = pd.NaT
        kind = "object"
    ids = [*frame["case_id"][:3], None]
    frame["case_id"] = pd.Series(ids, dtype={"string": "object"}.get(kind, kind))
    if kind == "string":
        frame["case_id"] = [str(fact.case_id) if i < 3 else pd.NA for i, fact in enumerate(facts)]
        frame = frame.astype("string")
    wanted = [str(fact.case_id) if kind == "string" and i < 3 else fact.case_id for i, fact in enumerate(facts)]
    # The last one's identifier is its position.
    assert [fact.case_id for fact in load_facts(frame, strict=True)] == [*wanted[:3], 3]
    assert [fact.case_id for fact in load_facts(frame.to_dict("records"), strict=True)] == [*wanted[:3], 3]
    frame.loc[1, "subject"] = None
    loaded = load_facts(frame)
    assert [fact.case_id for fact in loaded] == [wanted[0], wanted[2], 3]
    assert "missing key 'subject'" in loaded.skipped[0].reason


def test_schemas_may_be_mixed_and_a_missing_id_is_the_position():
    facts = many(5)
    records = [write(fact) for write, fact in zip(SCHEMAS.values(), facts, strict=True)]
    for record in records:
        del record["case_id"]
    loaded = load_facts(records, strict=True)
    assert list(loaded) == facts


def test_records_already_loaded():
    facts = many(4)
    assert list(load_facts(nested(fact) for fact in facts)) == facts
    assert list(load_facts(facts)) == facts
    assert list(load_facts(datasets.Dataset.from_list([nested(fact) for fact in facts]))) == facts
    splits = datasets.DatasetDict(
        test=datasets.Dataset.from_list([nested(facts[3])]), train=datasets.Dataset.from_list([nested(facts[0])])
    )
    assert list(load_facts(splits)) == facts[:1]


# --- files ----------------------------------------------------------------------------------------------------------


def test_one_record_over_several_lines(tmp_path):
    path = tmp_path / "one"
    path.write_text(json.dumps(nested(make()), indent=2))
    assert list(load_facts(path)) == [make()]


def test_path_as_string_relative_and_home(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "facts").write_bytes(as_json([nested(make())]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("a/facts", "./a/facts", "~/a/facts", Path("a/facts"), Path("~/a/facts")):
        assert list(load_facts(source)) == [make()], source


def test_known_word_wins_over_a_file_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "counterfact").write_bytes(as_json([nested(make(1))]))
    (tmp_path / "other").write_bytes(as_json([nested(make(2))]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LCALENS_COUNTERFACT", str(tmp_path / "other"))
    assert load_facts("counterfact")[0].case_id == 2
    assert load_facts("counterfact").source == "other"
    assert load_facts("./counterfact")[0].case_id == 1


def test_line_separators_inside_strings_do_not_end_a_line(tmp_path):
    facts = [make(index, subject="a\u2028b\u2029c") for index in range(2)]
    path = tmp_path / "facts"
    path.write_bytes(as_lines([nested(fact) for fact in facts]))
    assert list(load_facts(path, strict=True)) == facts


# --- the hub --------------------------------------------------------------------------------------------------------


def test_hub_counterfact_tracing(monkeypatch):
    facts = many(3)
    columns = ["relation", "relation_prefix", "relation_suffix", "prompt", "relation_id", "target_false_id"]
    columns += ["target_true_id", "target_true", "target_false", "subject"]
    rows = [{name: tracing(fact)[name] for name in columns} for fact in facts]
    asked = []

    def fake(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.DatasetDict(train=datasets.Dataset.from_list(rows))

    monkeypatch.setattr(datasets, "load_dataset", fake)
    loaded = load_facts("NeelNanda/counterfact-tracing")
    assert list(loaded) == facts
    assert loaded.source == "NeelNanda/counterfact-tracing"
    assert asked == [(("NeelNanda/counterfact-tracing",), {})]  # no remote code is asked for


@pytest.mark.parametrize("splits", [["test", "train"], ["validation", "test"]])
def test_hub_counterfact(monkeypatch, splits):
    facts = many(4)
    parts = {
        name: datasets.Dataset.from_list([nested(fact) for fact in facts[2 * index : 2 * index + 2]])
        for index, name in enumerate(splits)
    }
    monkeypatch.delenv("LCALENS_COUNTERFACT", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(parts) if name else None)
    loaded = load_facts("counterfact")
    assert list(loaded) == (facts[2:] if "train" in splits else facts[:2])
    assert loaded.source == "azhx/counterfact"


# --- choosing -------------------------------------------------------------------------------------------------------


def test_relations_and_limit_keep_pool_and_order():
    records = [*(nested(fact) for fact in many()), {"bad": 1}]
    loaded = load_facts(records, relations=["P1", "P3"], limit=7, seed=5)
    assert len(loaded) == 7
    assert set(loaded.relations) <= {"P1", "P3"}
    assert len(loaded.pool) == 40
    assert [item.position for item in loaded.skipped] == [40]
    assert [fact.case_id for fact in loaded] == sorted(fact.case_id for fact in loaded)
    again = load_facts(records, relations={"P3", "P1"}, limit=7, seed=5)
    assert again == loaded
    assert again.digest == loaded.digest
    assert load_facts(records, relations=["P1", "P3"], limit=7, seed=6) != loaded


def test_one_relation_and_a_large_limit():
    loaded = load_facts(many(), relations="P2", limit=1000)
    assert loaded.relations == ("P2",)
    assert len(loaded) == 10


@settings(deadline=None)
@given(small=st.integers(1, 50), large=st.integers(1, 50), seed=st.integers())
def test_a_larger_sample_holds_the_smaller(small, large, seed):
    facts = Facts(many())
    small, large = sorted((small, large))
    less, more = facts.sample(small, seed), facts.sample(large, seed)
    assert len(less) == min(small, 40)
    assert set(less) <= set(more)
    assert list(more) == [fact for fact in facts if fact in set(more)]


def test_sampling_is_uniform_enough():
    facts = Facts(many(10))
    counts = Counter(fact.case_id for seed in range(2000) for fact in facts.sample(3, seed))
    # Each fact is drawn in 3 of 10 samples: 600 times, give or take five standard deviations of 20.5.
    assert all(abs(counts[index] - 600) < 105 for index in range(10))


def test_where():
    facts = Facts(many())
    assert facts.where() == facts
    assert {fact.relation_id for fact in facts.where(relations=("P0", "P2"))} == {"P0", "P2"}
    assert facts.where(relations="P0").pool == facts.pool


# --- the collection -------------------------------------------------------------------------------------------------


def test_sequence():
    given_facts = many(6)
    facts = Facts(given_facts, skipped=[Skipped(9, None, "why")], source="mine")
    assert len(facts) == 6
    assert facts[0] is given_facts[0]
    assert facts[-1] is given_facts[-1]
    assert given_facts[2] in facts
    assert facts.index(given_facts[2]) == 2
    part = facts[1:5:2]
    assert isinstance(part, Facts)
    assert list(part) == given_facts[1:5:2]
    assert (part.pool, part.skipped, part.source) == (facts.pool, facts.skipped, "mine")
    assert len(facts[:0]) == 0
    assert len(facts[:0].to_frame().columns) == 6
    with pytest.raises(IndexError):
        facts[6]


def test_relations_are_sorted():
    names = [f"P{index:02}" for index in range(50)]
    facts = Facts([make(index, relation_id=name) for index, name in enumerate(reversed(names))])
    assert facts.relations == tuple(names)
    assert facts[:2].relations == ("P48", "P49")


def test_immutable():
    facts = Facts(many(3))
    for name in ("pool", "skipped", "source", "digest", "relations", "anything"):
        with pytest.raises(AttributeError):
            setattr(facts, name, ())
    with pytest.raises(TypeError):
        facts[0] = make()  # pyright: ignore
    given_facts = many(3)
    facts = Facts(given_facts)
    given_facts.clear()
    assert len(facts) == 3


def test_digest_is_of_content():
    facts = Facts(many(6))
    assert len(facts.digest) == 16
    assert int(facts.digest, 16) >= 0
    assert facts.digest == Facts(many(6), source="other name").digest == copy.deepcopy(facts).digest
    changed = many(6)
    for name in ("relation_id", "prompt", "subject", "target_true", "target_false"):
        other = [*changed[:-1], replace(changed[-1], **{name: "changed {}" if name == "prompt" else "changed"})]
        assert Facts(other).digest != facts.digest, name
    assert Facts([*changed[:-1], replace(changed[-1], case_id="5")]).digest != facts.digest
    assert Facts(changed[::-1]).digest != facts.digest
    # What contexts are drawn from is part of what a study measures.
    assert facts[:3].digest != Facts(list(facts[:3])).digest
    assert facts[:3] != Facts(list(facts[:3]))


def test_digest_does_not_change_between_versions():
    # Of '[[F], [F]]' with F the one fact as JSON, by coreutils' sha256sum.
    assert Facts([make()]).digest == "c69810fd967ea1b6"


def test_equal_and_hash():
    assert Facts(many(3)) == Facts(many(3))
    assert hash(Facts(many(3))) == hash(Facts(many(3)))
    assert Facts(many(3)) != Facts(many(4))
    assert Facts(many(3)) != many(3)


def test_repr():
    facts = load_facts([*many(5), 3, 4, 5])
    assert repr(facts) == "Facts(5 facts, 4 relations, from 'records'; 3 records skipped)"
    assert repr(facts[:1]) == "Facts(1 fact, 1 relation, from 'records'; 3 records skipped)"
    assert repr(load_facts([*many(1), 3])) == "Facts(1 fact, 1 relation, from 'records'; 1 record skipped)"
    assert repr(Facts(many(5))) == "Facts(5 facts, 4 relations, from 'user')"


def test_html_is_escaped():
    evil = "<script>alert('1')</script>"
    fields = dict.fromkeys(("case_id", "relation_id", "subject", "target_true"), evil)
    facts = Facts(
        [make(**fields, prompt=evil + "{}", target_false=evil + "x")], skipped=[Skipped(0, None, evil)], source=evil
    )
    page = facts._repr_html_()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 8
    assert len(load_facts(many(5000))._repr_html_()) < 10_000


def test_import_is_light():
    heavy = "datasets", "pandas", "pyarrow", "torch"
    code = f"import sys, lcalens.llm.facts.facts; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the half that is held out ----------------------------------------------------------------------------------


def test_the_held_out_half_depends_on_the_identifier_alone():
    facts = Facts(many(400))
    held = held_out(facts)
    expected = [f for f in facts if int(hashlib.sha256(str(f.case_id).encode()).hexdigest()[:2], 16) % 2]
    assert list(held) == expected
    assert 150 < len(held) < 250
    assert held.pool == facts.pool  # sentences about other subjects come from any record
    assert list(held_out(facts.sample(50))) == [fact for fact in facts.sample(50) if fact in expected]
    as_text = Facts([make(str(fact.case_id), subject=fact.subject) for fact in facts])
    assert [int(fact.case_id) for fact in held_out(as_text)] == [fact.case_id for fact in held]


def test_what_was_published_is_left_out_of_the_held_out_half():
    facts = Facts(many(100))
    ids = [fact.case_id for fact in held_out(facts)]
    assert [fact.case_id for fact in held_out(facts, without=[ids[0], str(ids[1])])] == ids[2:]
    assert not len(held_out(facts, without=ids))


# --- the sample, and the real data ----------------------------------------------------------------------------------


@pytest.mark.skipif(not SAMPLE.is_file(), reason="lcalens/llm/data/sample_facts.json is not there")
def test_sample_keeps_its_promises(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = load_facts()
    assert facts == load_facts("sample", strict=True)
    assert facts.source == "sample"
    assert not facts.skipped
    assert len(facts) >= 500
    assert len(facts.relations) >= 12
    subjects: dict[str, set[str]] = {}
    for fact in facts.pool:
        subjects.setdefault(fact.target_true, set()).add(fact.subject)
    lonely = [fact for fact in facts if len(subjects.get(fact.target_false, set()) - {fact.subject}) < 3]
    assert not lonely
    counts = Counter(fact.relation_id for fact in facts)
    assert all(counts[relation] >= 40 for relation in ("P103", "P131", "P190", "P641", "P1412"))
    assert not [fact for fact in facts if fact.target_true == fact.target_false]


@pytest.mark.skipif(not os.path.isfile(COUNTERFACT), reason="LCALENS_COUNTERFACT names no file")
def test_real_counterfact():
    facts = load_facts("counterfact", strict=True)
    with open(COUNTERFACT, encoding="utf-8") as stream:
        records = json.load(stream)
    assert len(facts) == len(records) == len(facts.pool)
    for fact, record in zip(facts, records, strict=True):
        rewrite = record["requested_rewrite"]
        assert fact.case_id == record["case_id"]
        assert fact.text == rewrite["prompt"].format(rewrite["subject"])
        assert fact.target_true == rewrite["target_true"]["str"]
        assert fact.target_false == rewrite["target_new"]["str"]
    flat = load_facts([easyedit_filled(fact) for fact in facts])
    assert not flat.skipped
    assert flat.digest == facts.digest
    assert load_facts(pd.DataFrame(tracing(fact) for fact in facts)).digest == facts.digest
    with pytest.raises(LcalensError, match="P1303"):
        facts.where(relations="P0")


# --- tables as text, facts put together, facts by hand ----------------------------------------------------------------


@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("tsv", "\t"), ("CSV.gz", ",")])
def test_a_table_as_text_gives_the_facts_of_its_frame(tmp_path, ending, separator):
    frame = load_facts("sample", limit=12).to_frame()
    frame.loc[3, "subject"] = 'Bell, "Alexander"\tGraham'.replace("\t", " ")
    file = tmp_path / f"facts.{ending}"
    text = frame.to_csv(index=False, sep=separator).encode()
    file.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    facts = load_facts(file)
    assert list(facts) == list(load_facts(frame))
    assert all(isinstance(fact.case_id, int) for fact in facts)
    assert facts.source == file.name


def test_a_tables_bad_lines_are_skipped_with_their_reason(tmp_path):
    file = tmp_path / "facts.csv"
    file.write_text(
        "prompt,subject,target_true,target_false,relation_id\n"
        "{} is in,The Louvre,Paris,Rome,\n"
        "{} is in,The Louvre, in France,Paris,Rome,P1\n"
        "{} is in,,Paris,Rome,P1\n"
        "{} is in,The Forum,Rome\n"
    )
    facts = load_facts(file)
    assert [(fact.subject, fact.relation_id, fact.case_id) for fact in facts] == [("The Louvre", "unknown", 0)]
    reasons = [item.reason for item in facts.skipped]
    assert "1 more values than the table has names" in reasons[0]
    assert "'subject'" in reasons[1]
    assert "'target_false'" in reasons[2]
    with pytest.raises(LcalensError, match="line 3"):
        load_facts(file, strict=True)
    file.write_text('prompt,subject\n"{} is in,The Louvre\n')
    with pytest.raises(LcalensError, match=r"is not whole CSV: .* at line"):
        load_facts(file)


def test_facts_are_put_together_each_once():
    sample = load_facts("sample")
    assert sample[:5] + sample[3:8] == sample[:8]
    assert (sample[:5] + sample[3:8]).pool == sample.pool
    own = load_facts([Fact(prompt="{} is in", subject="The Louvre", target_true="Paris", target_false="Rome")])
    both = sample[:2] + own
    assert [fact.subject for fact in both] == [*(fact.subject for fact in sample[:2]), "The Louvre"]
    assert both.source == "sample + records"
    assert len(both.pool) == len(sample.pool) + 1
    other = load_facts([replace(own[0], case_id=sample[0].case_id)])
    with pytest.raises(LcalensError, match=r"case_id .* another fact's"):
        sample + other
    with pytest.raises(TypeError):
        operator.add(sample, [1])


def test_a_fact_by_hand_has_an_identifier_of_its_content():
    parts = {"prompt": "{} is in", "subject": "The Louvre", "target_true": "Paris", "target_false": "Rome"}
    fact = Fact(**parts)
    assert fact == Fact(**parts)
    assert fact.case_id != Fact(**{**parts, "target_false": "Oslo"}).case_id
    assert re.fullmatch("fact-[0-9a-f]{12}", str(fact.case_id))
    assert fact.relation_id == "unknown"
    assert copy.deepcopy(fact) == fact
    assert Fact(**parts, case_id="a digest of the other fields").case_id == "a digest of the other fields"


def test_two_sources_without_identifiers_are_not_put_together_in_silence():
    record = {"prompt": "{} is in", "subject": "Rome", "target_true": "Italy", "target_false": "Spain"}
    one, other = load_facts([record]), load_facts([record | {"subject": "Pisa"}])
    with pytest.raises(LcalensError, match=r"^facts: case_id 0 is another fact's in the other source.*column case_id"):
        one + other
    assert len(one + load_facts([record])) == 1
    assert len(one + load_facts([record | {"subject": "Pisa", "case_id": 7}])) == 2


def test_an_empty_cell_is_called_empty(tmp_path):
    file = tmp_path / "facts.csv"
    file.write_text("prompt,subject,target_true,target_false\n{} is in,Rome,Italy,Spain\n{} is in,Pisa,Italy,\n")
    found = load_facts(file)
    assert len(found) == 1
    reason = found.skipped[0].reason
    assert "'target_false' is there and empty, give its text" in reason
    assert "target_false" not in reason.partition("the keys found are")[2]
