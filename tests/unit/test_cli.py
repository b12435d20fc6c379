"""The command line: what it prints and writes, and errors as text for people."""

import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers import standins

import lcalens
from lcalens import cli
from lcalens.commands import shared
from lcalens.commands.defend import Evaluate, Fit, Generate
from lcalens.commands.listed import EMBEDDED
from lcalens.llm.prompts.schemes import SCHEMES
from lcalens.views import text

CITIES, LANDS = list(standins.CAPITALS.values()), list(standins.CAPITALS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A file of 16 facts, and one malformed record."""
    records = standins.capital_records()
    file = tmp_path_factory.mktemp("facts") / "facts.json"
    file.write_text(json.dumps([*records, {"prompt": "nothing else"}]))
    return file


@pytest.fixture
def lc(standin, place, capsys, unhurried):
    """A function from arguments to the exit status, the output and the errors, on the stand-in and its facts."""

    def run(*arguments):
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    run.model = ("--model", str(standin("gpt2").folder))
    run.hijack = ("hijack", *run.model, "--facts", str(place), "--counts", "0", "1")
    return run


def test_hijack_prints_and_writes_and_goes_on(lc, tmp_path):
    out = tmp_path / "deep" / "out"
    arguments = (*lc.hijack, "--schemes", "dont-think", "neutral", "--out", out)
    status, said, errors = lc(*arguments)
    assert (status, errors) == (0, "")
    for word in ("ES", "dont-think", "neutral", "n=0", "n=1", "16 facts", "facts.json", "retention", "1 malformed"):
        assert word in said
    assert "parts were found finished" not in said
    assert {"figure.png", "values.parquet", "result"} <= {file.name for file in out.iterdir()}
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    first = lcalens.Result.load(out / "result")
    pd.testing.assert_frame_equal(pd.read_parquet(out / "values.parquet"), first.to_frame())
    written = {file.name: file.read_bytes() for file in [*out.glob("*.*"), *(out / "result").iterdir()]}
    assert first.axes["scheme"] == ("dont-think", "neutral")
    assert len(first.axes["example"]) == 16

    status, said, errors = lc(*arguments)
    assert (status, errors) == (0, "")
    assert "parts were found finished, 0 computed" in said
    assert {file.name: file.read_bytes() for file in [*out.glob("*.*"), *(out / "result").iterdir()]} == written

    _, more, _ = lc(*lc.hijack, "--schemes", "dont-think", "neutral", "negation", "--out", out)
    assert "parts were found finished" in more
    assert "negation" in more


def test_the_printed_scores_are_the_results(lc, tmp_path):
    _, said, _ = lc(*lc.hijack, "--schemes", "dont-think", "--out", tmp_path / "out")
    table = lcalens.Result.load(tmp_path / "out" / "result").wide()
    for row in table[table["subset"] == "all"].itertuples():
        assert f"{row.es:.2f} [{row.es_low:.2f}, {row.es_high:.2f}]" in said


def test_the_table_is_written_for_people_with_its_command(lc, tmp_path):
    template = "Forget | <b>{target_false}</b>."
    lc(*lc.hijack, "--schemes", template, "neutral", "--limit", 5, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    result = lcalens.Result.load(tmp_path / "out" / "result")
    for row in result.wide().query("subset == 'all'").itertuples():
        assert f"{row.es:.2f} [{row.es_low:.2f}, {row.es_high:.2f}]" in page
    tables, command = page.split("Made by ")
    assert "<b>" not in tables  # a template is text
    assert len({line.replace(r"\|", "").count("|") for line in tables.splitlines() if "Forget" in line}) <= 2
    for word in ("lcalens hijack", "--limit 5", "--counts 0 1"):
        assert word in command


def test_options_reach_the_measurement(lc, tmp_path):
    status, said, _ = lc(
        *lc.hijack, "--relations", "P36", "--limit", 3, "--scoring", "first", "--seed", 5, "--related", "embedding",
        "--schemes", "Forget about {target_false}.", "--measure", "retention", "--out", tmp_path / "out",
    )  # fmt: skip
    assert status == 0
    result = lcalens.Result.load(tmp_path / "out" / "result")
    config = result.provenance["config"]
    assert (config["scoring"], config["seed"], config["related"], config["chat"]) == ("first", 5, "embedding", False)
    assert config["schemes"] == ["Forget about {target_false}."]
    assert config["counts"] == [0, 1]
    assert set(result.examples["relation_id"]) == {"P36"}
    assert len(result.examples) == 3
    assert re.search(r"first.* scoring", said)


@pytest.mark.filterwarnings("default:efficacy. nothing can be measured of")
def test_all_schemes_and_nothing_written(lc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said, errors = lc(*lc.hijack, "--schemes", "all", "--limit", 6)
    assert status == 0
    assert errors.startswith("lcalens: efficacy: nothing can be measured of ")
    assert ".py" not in errors
    for scheme in SCHEMES:
        assert scheme in said
    assert "Not possible" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("default:efficacy. nothing can be measured of")
def test_facts_of_one_relation_are_told_before_the_run(lc, standin, tmp_path):
    """No object of another relation, so no `unrelated`; and no relations to resample."""
    line = {"prompt": "The capital of {} is", "target_true": "Paris", "target_false": "Rome"}
    lands = ("France", "Italy", "Spain", "Peru", "Chile", "Cuba")
    facts = tmp_path / "facts.jsonl"
    facts.write_text("\n".join(json.dumps(line | {"subject": land}) for land in lands), encoding="utf-8")
    command = ("hijack", *lc.model, "--counts", 0, 1, "--schemes", "dont-think", "neutral")
    status, said, errors = lc(*command, "unrelated", "--facts", facts, "--out", tmp_path / "out")
    assert status == 0
    assert " ".join(errors.split()).startswith(
        "lcalens: efficacy: nothing can be measured of 'unrelated' (the facts hold no object of another relation). "
        "Leave it out, or give other facts; the rest is measured."
    )
    assert "[95% bootstrap interval, over facts, all of one relation]" in said
    assert "clustered by relation" not in said
    page = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "[95% bootstrap interval, over facts, all of one relation]" in page
    assert "clustered by relation" in lc(*command, "--facts", "sample", "--limit", 12)[1]
    model = standin("gpt2").model
    with pytest.warns(UserWarning, match="of 'unrelated'"), pytest.raises(KeyboardInterrupt):
        lcalens.efficacy(model, lcalens.load_facts(facts), schemes="unrelated", counts=(1,), progress=_stop)


def _stop(done, total, what):
    raise KeyboardInterrupt


def test_ask_prints_the_answers(lc, standin, tmp_path):
    out = tmp_path / "out"
    status, said, errors = lc(
        "ask", "The capital of France is", *lc.model, "--hijack", "Do not think of Rome.", "--top", 3,
        "--answers", "Paris", "Rome", "--out", out,
    )  # fmt: skip
    assert (status, errors) == (0, "")
    result = lcalens.Result.load(out / "result")
    assert result.axes["context"] == ("clean", "hijacked")
    for token in result.tables["answers"]["clean"]:
        assert repr(token) in said
    for word in ("Do not think of Rome. The capital of France is", "'Paris'", "'Rome'", "log-probability"):
        assert word in said
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    made = standin("gpt2")
    ids = made.tokenizer("The capital of France is").input_ids
    best = int(standins.logits_of(made.plain, ids)[-1].argmax())
    assert result.tables["answers"]["clean"][0] == made.tokenizer.decode([best]) == " Paris"


def test_ask_without_a_hijack(lc):
    status, said, _ = lc("ask", "The capital of Italy is", *lc.model)
    assert status == 0
    assert "' Rome'" in said
    assert "hijacked" not in said


def without(arguments, option):
    """A command line without an option and its values."""
    if option not in arguments:
        return arguments
    at = arguments.index(option)
    end = next((i for i in range(at + 1, len(arguments)) if str(arguments[i]).startswith("--")), len(arguments))
    return (*arguments[:at], *arguments[end:])


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--schemes", "dont_think"), ("schemes", "dont_think", "Did you mean 'dont-think'")),
        (("--schemes", "Forget {it}."), ("schemes", "{target_false}")),
        (("--facts", "nowhere/facts.json"), ("nowhere/facts.json", "not an existing file")),
        (("--relations", "P9999"), ("relations", "P9999", "P36")),
        (("--limit", "0"), ("limit: 0",)),
        (("--limit", "-4"), ("limit: -4",)),
        (("--counts", "-1"), ("counts", "-1")),
        (("--seed", "-1"), ("seed", "-1")),
        (("--strict",), ("record 16",)),
        (("--model", "/nowhere/model"), ("--model: there is no", "/nowhere/model")),
        (("--model", "./nowhere.gguf"), ("nowhere.gguf",)),
        (("--chat",), ("chat", "no chat template")),
        (("--counts", "0", "99"), ("context holds 160",)),
    ],
    ids=lambda value: " ".join(value),
)
def test_errors_are_said_on_standard_error(lc, arguments, words):
    status, said, errors = lc(*without(lc.hijack, arguments[0]), *arguments)
    assert (status, said) == (2, "")
    told = " ".join(errors.split())
    assert told.startswith("lcalens: ")
    for word in words:
        assert word in told
    assert "Traceback" not in errors


def test_a_file_in_the_place_of_out(lc, tmp_path):
    (tmp_path / "out").write_text("mine")
    status, _, errors = lc(*lc.hijack, "--out", tmp_path / "out")
    assert status == 2
    assert errors.startswith("lcalens: --out:")
    status, _, errors = lc("ask", "The capital of Italy is", *lc.model, "--out", tmp_path / "out")
    assert status == 2
    assert "out" in errors
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_of_ones_own_in_the_place_of_the_result(lc, tmp_path):
    (tmp_path / "out" / "result").mkdir(parents=True)
    (tmp_path / "out" / "result" / "thesis.tex").write_text("mine")
    status, _, errors = lc(*lc.hijack, "--out", tmp_path / "out")
    assert status == 2
    assert "something else than a result" in " ".join(errors.split())
    assert (tmp_path / "out" / "result" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("name", ["figure.png", "values.parquet", "table.md"])
def test_what_cannot_be_written_is_said(lc, tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    status, _, errors = lc(*lc.hijack, "--out", tmp_path / "out")
    assert status == 2
    assert errors.startswith("lcalens: --out:")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("ask", ""), "prompt"),
        (("ask", "x", "--top", "0"), "--top:"),
        (("ask", "x", "--answers", ""), "--answers:"),
        (("ask", "x", "--chat"), "--chat:"),
    ],
    ids=str,
)
def test_errors_of_ask(lc, arguments, word):
    status, said, errors = lc(*arguments, *lc.model)
    assert (status, said) == (2, "")
    assert errors.startswith(f"lcalens: {word}")


@pytest.mark.parametrize(
    "arguments",
    [(), ("hijack", "--limit", "many"), ("hijack", "--scoring", "half"), ("measure",), ("ask",), ("hijack", "--nope")],
    ids=str,
)
def test_a_malformed_command_line_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("out", [True, False])
@pytest.mark.parametrize("command", ["hijack", "trace", "ask"])
def test_an_interrupt_is_status_130_and_promises_what_is_true(lc, place, tmp_path, monkeypatch, command, out):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("lcalens.llm.efficacy.measure.efficacy", interrupted)
    monkeypatch.setattr("lcalens.llm.trace.trace_facts", interrupted)
    monkeypatch.setattr("lcalens.llm.ask.ask", interrupted)
    arguments = {"hijack": lc.hijack, "trace": ("trace", *lc.model, "--facts", place), "ask": ("ask", "x", *lc.model)}
    status, said, errors = lc(*arguments[command], *(["--out", tmp_path / "out"] if out else []))
    assert (status, said) == (130, "")
    assert errors.startswith("\nlcalens: stopped; ")
    assert "Traceback" not in errors
    assert ("goes on from there" in errors) == (out and command != "ask")
    assert ("--out" in errors) == (not out and command != "ask")


def drawn_facts(lc, monkeypatch, command, place, seed):
    """The facts that a command measures."""
    seen = []

    def measured(model, facts, **options):
        seen.extend(fact.case_id for fact in facts)
        raise lcalens.LcalensError("enough")

    monkeypatch.setattr("lcalens.llm.efficacy.measure.efficacy", measured)
    monkeypatch.setattr("lcalens.llm.trace.trace_facts", measured)
    lc(command, *lc.model, "--facts", place, "--limit", 5, "--seed", seed)
    return seen


def test_the_seed_draws_the_same_facts_for_every_command(lc, place, monkeypatch):
    drawn = {
        (command, seed): drawn_facts(lc, monkeypatch, command, place, seed)
        for command in ("hijack", "trace")
        for seed in (0, 1)
    }
    for seed in (0, 1):
        expected = [fact.case_id for fact in lcalens.load_facts(place, limit=5, seed=seed)]
        assert drawn["hijack", seed] == drawn["trace", seed] == expected
    assert drawn["hijack", 0] != drawn["hijack", 1]


EARLY = [
    ("hijack", "--counts", "-1"),
    ("hijack", "--limit", "0"),
    ("hijack", "--seed", "-1"),
    ("hijack", "--schemes", "dont_think"),
    ("trace", "--n", "0"),
    ("trace", "--limit", "3"),
    ("trace", "--scheme", "Forget {it}."),
    ("ask", ""),
    ("ask", "x", "--top", "0"),
    ("ask", "x", "--answers", " "),
    ("ask", "x\u200b"),
    ("ask", "x", "--hijack", "\ufeffDo not think of Rome."),
    ("hijack", "--facts", "nowhere.json"),
    ("hijack", "--relations", "P9999"),
    ("trace", "--facts", "nowhere.json"),
    ("ask", "x", "--out", "FILE"),
    ("hijack", "--out", "FILE"),
    ("trace", "--out", "FILE"),
    ("hijack", "--limit", "1", "--limit", "2"),
    ("hijack", "--counts", "0", "1", "--seed=1", "--counts=3"),
    ("ask", "x", "--chat", "--no-chat"),
    ("hijack", "--facts", "."),
    ("hijack", "--counts", "99999999999999999999"),
    ("trace", "--views", "-1"),
    ("trace", "--n", "99999999999999999999"),
    ("trace", "--scheme", ""),
    ("ask", "x\x01y"),
    ("ask", "x", "--top", "-3"),
    ("recall", "--pairs", "France"),
    ("defend", "fit", "--out", "x", "--heads", "0"),
    ("defend", "evaluate", "nowhere"),
    ("defend", "generate", "nowhere", "x"),
]


@pytest.mark.parametrize("arguments", EARLY, ids=" ".join)
def test_arguments_are_checked_before_anything_heavy_is_loaded(tmp_path, arguments):
    (tmp_path / "FILE").write_text("mine")
    status, said, errors, loaded = in_a_process(*arguments, cwd=tmp_path)
    assert (status, said) == (2, "")
    assert errors.startswith("lcalens: ")
    assert not loaded & HEAVY


def test_a_closed_pipe_is_no_error(lc, monkeypatch):
    def closed(*arguments, **options):
        raise BrokenPipeError

    monkeypatch.setattr("lcalens.views.text.efficacy_screen", closed)
    assert lc(*lc.hijack, "--limit", 2) == (0, "", "")


# --- help -----------------------------------------------------------------------------------------------------------


def help_of(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_lists_commands_schemes_and_options(capsys):
    assert {"hijack", "trace", "ask", "recall", "defend"} <= set(help_of(capsys).split())
    # Boxes and line ends may come between: hyphens are where a long name is broken.
    said = "".join(help_of(capsys, "hijack").split()).replace("│", "")
    for scheme in SCHEMES:
        assert scheme in said
    for name in ("--schemes", "--counts", "--scoring", "--chat", "--related", "--seed", "--facts", "--out", "--limit"):
        assert name in said
    for name in ("--hijack", "--answers", "--top", "--model", "--out"):
        assert name in help_of(capsys, "ask")


HEAVY = {"torch", "transformer_lens", "transformers", "pandas", "scipy", "datasets", "matplotlib", "pyarrow"}


def in_a_process(*arguments, cwd=None):
    """Exit status, output, errors, and the libraries of a fresh process that runs `lcalens`."""
    script = (
        "import sys\nfrom lcalens import cli\nstatus = 0\n"
        f"try:\n    status = cli.main({[str(argument) for argument in arguments]!r})\n"
        "except SystemExit as stop:\n    status = stop.code\n"
        "print('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))\nsys.exit(status)"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=os.environ | LIKE_HERE)
    said, _, loaded = done.stdout.rpartition("LOADED")
    return done.returncode, said, done.stderr, set(loaded.split())


LIKE_HERE = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.mark.parametrize(
    "command",
    [(), ("hijack",), ("trace",), ("ask",), ("recall",), ("defend",), ("defend", "fit"), ("runs", "list")],
    ids=str,
)
def test_help_loads_no_heavy_library(command):
    status, said, errors, loaded = in_a_process(*command, "--help")
    assert (status, errors) == (0, "")
    assert "usage" in said.lower()
    assert not loaded & HEAVY


def test_help_is_quick():
    script = "import time\nstart = time.process_time()\nfrom lcalens import cli\n" + (
        "try:\n    cli.main(['hijack', '--help'])\nexcept SystemExit:\n    pass\nprint(time.process_time() - start)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ | LIKE_HERE
        )
        for _ in range(3)
    ]
    assert min(float(run.stdout.split()[-1]) for run in runs) < 1  # of the processor, and the least of three


@pytest.mark.parametrize("arguments", [("--version",), ("--version", "--help")], ids=str)
def test_version(arguments):
    assert in_a_process(*arguments)[:3] == (0, f"lcalens {lcalens.__version__}\n", "")


@pytest.mark.parametrize(("arguments", "status"), [(["--version"], 0), (["ask", "x", "--top", "0"], 2)], ids=str)
def test_python_m_lcalens_is_the_command(arguments, status, capsys):
    command = [sys.executable, "-m", "lcalens", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | LIKE_HERE)
    assert done.returncode == cli.main(arguments) == status
    assert (done.stdout, done.stderr) == tuple(capsys.readouterr())


@pytest.mark.parametrize(
    "command", ["lcalens trace --scheme '<b> & c'", "a `b`", "``", "`a", "lcalens trace --scheme '```'"]
)
def test_a_command_in_a_page_reads_as_it_was_typed(command):
    span = text._code(command)
    fence = re.match("`+", span).group()
    inside = span[len(fence) : -len(fence)]
    assert span.endswith(fence)
    assert not re.search(rf"(?<!`){fence}(?!`)", inside)  # nothing in it ends the span
    # A space at both ends is no part of a code span (CommonMark 6.1).
    assert (inside[1:-1] if inside[0] == inside[-1] == " " else inside) == command


def test_a_command_of_several_lines_is_written_in_one():
    line = shared.typed(["ask", "a\nb'c\\", "plain"])
    assert "\n" not in line
    told = subprocess.run(
        ["bash", "-c", f"lcalens() {{ printf '%s\\0' \"$@\"; }}; {line}"], capture_output=True, check=True
    )
    assert told.stdout.decode().split("\0")[:-1] == ["ask", "a\nb'c\\", "plain"]


def test_a_whole_process_ends_as_main_says(tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "lcalens.cli", "hijack", "--facts", str(tmp_path / "none.json")],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("lcalens: ")
    assert "Traceback" not in found.stderr


def test_scores_are_those_of_the_function(lc, standin, place, tmp_path):
    lc(*lc.hijack, "--out", tmp_path / "out")
    result = lcalens.Result.load(tmp_path / "out" / "result")
    facts = lcalens.load_facts(place)
    same = lcalens.efficacy(
        standin("gpt2").model, facts, schemes=("dont-think", "neutral", "unrelated"), counts=(0, 1), progress=False
    )
    for name, array in same.values.items():
        np.testing.assert_allclose(result.values[name], array, atol=1e-4)


@pytest.fixture
def trace(lc, place):
    return lambda *arguments: lc("trace", *lc.model, "--facts", str(place), *arguments)


def test_trace_prints_and_writes_and_goes_on(trace, tmp_path):
    out = tmp_path / "out"
    template = "Think of <b>{target_false}</b> & `no` other."
    arguments = ("--limit", "12", "--control", "other-object", "--views", "1", "--out", out, "--scheme", template)
    status, said, errors = trace(*arguments)
    assert (status, errors) == (0, "")
    ranked = lcalens.Result.load(out / "ranking").wide()
    shown = re.findall(r"^  L(\d+)H(\d+) +(\S+) +(\S+)  \[", said, flags=re.MULTILINE)
    assert len(shown) == min(10, len(ranked))
    best = ranked.iloc[0]
    assert (int(shown[0][0]), int(shown[0][1])) == (best["layer"], best["head"])
    assert float(shown[0][2]) == pytest.approx(best["value"], abs=0.005)
    assert float(shown[0][3]) == pytest.approx(best["held_out"], abs=0.005)
    balance = lcalens.Result.load(out / "split").wide("balance").set_index("part")
    parts = balance.loc[["heads", "mlps", "embedding", "biases"]]
    assert parts["change"].sum() == pytest.approx(balance["change"]["total"], rel=1e-4)
    written = {path.name for path in out.iterdir()}
    assert {"trace.md", "heads.png", "ranking.png", "split.png", "attention-0.html"} <= written
    page = (out / "trace.md").read_text()
    assert template in page.splitlines()[0]
    assert said.split("\n\nWritten to")[0] in page
    cells = {path: path.stat().st_mtime_ns for path in (out / "patching" / "cells").iterdir()}
    assert cells
    assert trace(*arguments)[1] == said
    assert {path: path.stat().st_mtime_ns for path in (out / "patching" / "cells").iterdir()} == cells


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--scheme", "no such"), "--control:"),
        (("--scheme", "Forget {nothing}."), "--scheme:"),
        (("--n", "0"), "--n:"),
        (("--limit", "3"), "--limit:"),
        (("--views", "-1"), "--views:"),
        (("--scheme", "unrelated"), "--control:"),
    ],
)
def test_what_cannot_be_traced(trace, arguments, named):
    status, said, errors = trace("--control", "other-object", *arguments)
    assert (status, said) == (2, "")
    assert errors.startswith(f"lcalens: {named}")


def test_a_control_sentence_of_ones_own_is_traced_against(trace, tmp_path):
    words = ("--limit", "8", "--views", "0", "--scheme", "Think of {target_false}.")
    assert trace(*words, "--control", "Think of {unrelated}.", "--out", tmp_path)[0] == 0
    clean = lcalens.Result.load(tmp_path / "heads").examples["clean_text"]
    assert all(text.startswith("Think of ") for text in clean)
    for control, said in (("none", "the bare prompt has fewer"), ("netural", "Did you mean 'neutral'?")):
        status, _, errors = trace(*words, "--control", control)
        assert status == 2
        assert errors.startswith("lcalens: --control: ")
        assert said in " ".join(errors.split())


# --- what every command has -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cli._COMMANDS)
def test_every_commands_examples_can_be_typed(name, monkeypatch, capsys):
    """Each example is read by the parser to a command, and the help of its command ends with it."""
    command = cli._COMMANDS[name]
    ran = []
    for kind in (command, *(action for action in (Fit, Evaluate, Generate) if name == "defend")):
        monkeypatch.setattr(kind, "run", lambda self, typed: ran.append(self))
    assert command.EXAMPLES
    for example in command.EXAMPLES:
        assert cli.main(shlex.split(example)[1:]) == 0
    assert [type(one) for one in ran] == [command] * len(command.EXAMPLES)
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    assert capsys.readouterr().out.rstrip().endswith(command.EXAMPLES[-1])


def test_json_is_the_result(lc):
    status, said, errors = lc(*lc.hijack, "--schemes", "dont-think", "--json")
    assert (status, errors) == (0, "")
    ((name, content),) = json.loads(said).items()
    assert (name, content["kind"]) == ("efficacy", "efficacy")
    rows = [row for row in content["tables"]["summary"] if row["quantity"] == "es" and row["subset"] == "all"]
    assert [row["n"] for row in rows] == [0, 1]
    assert all(0 <= row["value_low"] <= row["value"] <= row["value_high"] <= 1 for row in rows)
    assert content["provenance"]["model"]["fingerprint"]
    assert any(row["value"] is None for row in content["tables"]["summary"])  # no NaN, which JSON has not


def test_with_json_what_was_written_is_said_on_standard_error(lc, tmp_path):
    status, said, errors = lc("ask", "The capital of France is", *lc.model, "--json", "--out", tmp_path / "out")
    assert status == 0
    assert json.loads(said)["answers"]["kind"] == "answers"
    assert errors.strip().startswith("Written to")


def test_a_fault_is_told_in_a_sentence_and_shown_by_debug(lc, monkeypatch):
    def fails(*_, **__):
        raise ZeroDivisionError("of\nnothing")

    monkeypatch.setattr("lcalens.llm.ask.ask", fails)
    status, said, errors = lc("ask", "x", *lc.model)
    assert (status, said) == (1, "")
    assert "ZeroDivisionError: of nothing" in " ".join(errors.split())
    assert "--debug" in errors
    assert "Traceback" not in errors
    with pytest.raises(ZeroDivisionError):
        lc("ask", "x", *lc.model, "--debug")
    with pytest.raises(lcalens.LcalensError):
        lc("ask", "x", "--top", "0", "--debug")


def test_an_error_names_the_flag_that_was_typed(lc):
    for arguments, begins in (
        (("ask", "x", "--top", "0"), "lcalens: --top: "),
        (("ask", " "), "lcalens: prompt: "),
        (("ask", "x", "--model", "/nowhere"), "lcalens: --model: "),
        (("recall", "--heads", "1.1", "--pairs", "x"), "lcalens: --pairs: "),
        (("defend", "fit", "--limit", "0", "--out", "x"), "lcalens: --limit: "),
    ):
        status, _, errors = lc(*arguments)
        assert status == 2
        assert errors.startswith(begins)


def test_models_and_schemes_are_listed_without_loading_anything():
    code = ("import sys; from lcalens import cli; cli.main(['models']); cli.main(['schemes', '--json']);"
            "print('torch' in sys.modules, file=sys.stderr)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip().endswith("False")
    listed, _, rest = done.stdout.partition("[")
    assert "smollm2" in listed
    assert [row["name"] for row in json.loads("[" + rest)] == list(SCHEMES)


def test_the_listed_models_are_those_that_load():
    from lcalens.llm.models.load import _EMBEDDED

    assert set(EMBEDDED) == set(_EMBEDDED)
