"""`lcalens recall` and `lcalens defend`: what they print and write, what a fit has seen, errors as text for people."""

import json
import re

import pytest
from helpers import standins

import lcalens
from lcalens import cli
from lcalens.commands.heads import named_heads
from lcalens.commands.saved_defences import find_defences, unseen
from lcalens.core.errors import LcalensError
from lcalens.mechanism.defence.defence import Defence
from lcalens.views.link_text import generated_screen

LANDS = list(standins.CAPITALS)
HEADS = ("--heads", "0.1", "L1H3", "2.0")
CUT = Defence(method="boundary", heads=((0, 1),), where="last", ends=(3,), detector=None, model="x")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A file of 16 facts of two relations."""
    records = standins.capital_records()
    file = tmp_path_factory.mktemp("facts") / "facts.json"
    file.write_text(json.dumps(records))
    return file


PASSAGES = tuple(
    (half, f"{start} a house stood by the road, and it was {colour}.")
    for half, colour in (("train", "red"), ("evaluation", "green"))
    for start in ("Once", "In spring", "Far away")
)


@pytest.fixture
def lc(standin, place, capsys, monkeypatch, unhurried):
    """A function from arguments to the exit status, the output and the errors, on the stand-in and its facts."""
    monkeypatch.setattr("lcalens.llm.plain._passages", lambda: PASSAGES)  # the shipped ones are longer than its context

    def run(*arguments):
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    run.model = ("--model", str(standin("gpt2").folder))
    run.facts = (*run.model, "--facts", str(place))
    run.fit = ("defend", "fit", *run.facts, "--limit", "6", "--control", "other-object")
    run.evaluate = ("--schemes", "dont-think", *run.facts)
    return run


@pytest.fixture
def fitted(lc, tmp_path):
    assert lc(*lc.fit, *HEADS, "--out", tmp_path / "cut")[0] == 0
    return tmp_path / "cut"


# --- defend fit -----------------------------------------------------------------------------------------------------


def test_fit_ranks_heads_and_says_what_it_saw(lc, standin, place, tmp_path):
    out = tmp_path / "deep" / "cut"
    status, said, errors = lc(*lc.fit, "--heads", "3", "--seed", "4", "--out", out)
    assert (status, errors) == (0, "")
    made = Defence.load(out / "defence")
    facts = lcalens.load_facts(place, limit=6, seed=4)
    assert made.record["facts"]["case_ids"] == [fact.case_id for fact in facts]
    assert made.record["facts"]["prompts"] == [fact.text for fact in facts]
    assert made.record["facts"]["relations"] == list(facts.relations)
    model = standin("gpt2").model
    contrast = lcalens.contrast_facts(model, facts, control="other-object", seed=4)
    ranked = lcalens.leading(lcalens.patch(model, contrast, progress=False), 3, by="carrying")
    assert made.heads == tuple(sorted(ranked))
    assert all(name in said for name in ranked.names)
    for word in ("6 facts", "boundary", "largest mean recovery", "facts.json"):
        assert word in said
    assert (out / "heads.png").read_bytes().startswith(b"\x89PNG")
    assert lcalens.Result.load(out / "heads").kind == "patching"
    cells = {path: path.stat().st_mtime_ns for path in (out / "patching" / "cells").iterdir()}
    assert cells
    assert lc(*lc.fit, "--heads", "3", "--seed", "4", "--out", out)[1] == said
    assert {path: path.stat().st_mtime_ns for path in (out / "patching" / "cells").iterdir()} == cells


def test_fit_stopped_in_the_middle_goes_on(lc, tmp_path, monkeypatch):
    arguments = (*lc.fit, "--heads", "2", "--out", tmp_path / "cut")

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("lcalens.mechanism.defence.defend.defend", stopped)
        status, said, errors = lc(*arguments)
    assert (status, said) == (130, "")
    assert "goes on from there" in errors
    assert not (tmp_path / "cut" / "defence").exists()
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut" / "patching" / "cells").iterdir()}
    assert cells
    assert lc(*arguments)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cut" / "patching" / "cells").iterdir()} == cells
    assert len(Defence.load(tmp_path / "cut" / "defence").heads) == 2


def test_fit_a_detector(lc, tmp_path):
    status, said, _ = lc(*lc.fit, *HEADS, "--method", "detector", "--layer", "1", "--honest", "correction",
                         "--out", tmp_path / "cut")  # fmt: skip
    assert status == 0
    made = Defence.load(tmp_path / "cut" / "defence")
    assert made.detector is not None
    assert made.heads == ((1, 3), (2, 0))
    assert set(made.record["negatives"]) == {"clean prompts", "plain text", "correction"}
    for kind, area in made.record["auc"].items():
        assert re.search(rf"{kind} +\d+ +{area:.3f}", said)
    assert "not cut" in said
    assert "L0H1" in said


# --- defend evaluate ------------------------------------------------------------------------------------------------


def test_evaluate_judges_facts_that_no_fit_has_seen(lc, fitted, place, tmp_path):
    assert lc(*lc.fit, "--heads", "1.0", "--seed", "5", "--out", tmp_path / "other")[0] == 0
    out = tmp_path / "out"
    arguments = ("defend", "evaluate", fitted, tmp_path / "other", *lc.evaluate, "--out", out)
    status, said, errors = lc(*arguments)
    assert (status, errors) == (0, "")
    result = lcalens.Result.load(out / "result")
    assert result.axes["defence"] == ("none", "cut", "other")
    seen = set()
    for seed in (0, 5):
        seen |= {fact.case_id for fact in lcalens.load_facts(place, limit=6, seed=seed)}
    assert set(result.examples["case_id"].astype(int)) == set(range(16)) - seen
    table = result.summary.set_index(["defence", "condition", "quantity"])["value"]
    for defence in ("none", "cut", "other"):
        assert re.search(rf"{defence} +dont-think +{table[defence, 'dont-think', 'es']:.2f}", said)
        assert f"{table[defence, 'dont-think', 'agreement']:.2f}" in said
        assert f"{table[defence, 'plain text', 'kl']:.4f}" in said
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "table.md").read_text(encoding="utf-8")
    assert page.startswith("`lcalens defend evaluate")
    assert said.split("\n\nWritten to")[0] in page

    status, again, _ = lc(*arguments)
    assert status == 0
    assert "parts were found finished, 0 computed" in again
    assert lcalens.Result.load(out / "result").summary.equals(result.summary)


def test_evaluate_stopped_in_the_middle_goes_on(lc, fitted, tmp_path, monkeypatch):
    from lcalens.llm import defences

    whole, done = defences.prompts, []

    def stopped(*arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return whole(*arguments)

    arguments = ("defend", "evaluate", fitted, *lc.evaluate, "--out", tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(defences, "prompts", stopped)
        status, said, errors = lc(*arguments)
    assert (status, said) == (130, "")
    assert "goes on from there" in errors
    assert "3 parts were found finished" in lc(*arguments)[1]
    told = lcalens.Result.load(tmp_path / "out" / "result")
    assert lc("defend", "evaluate", fitted, *lc.evaluate, "--out", tmp_path / "fresh")[0] == 0
    fresh = lcalens.Result.load(tmp_path / "fresh" / "result")
    assert told.summary.equals(fresh.summary)


def test_evaluate_facts_of_new_relations_alone(lc, tmp_path):
    assert lc(*lc.fit, *HEADS, "--relations", "P36", "--out", tmp_path / "cut")[0] == 0
    assert (
        lc("defend", "evaluate", tmp_path / "cut", *lc.evaluate, "--new-relations", "--out", tmp_path / "out")[0] == 0
    )
    result = lcalens.Result.load(tmp_path / "out" / "result")
    assert set(result.examples["relation_id"]) == {"P1376"}
    assert len(result.examples) == 8


def test_a_fact_is_seen_by_its_prompt_and_by_its_number_in_its_own_source(place):
    facts = lcalens.load_facts(place)
    seen = {"source": facts.source, "case_ids": [1, 2], "prompts": [facts[5].text], "relations": ["P36"]}
    made = Defence("boundary", (), "last", (), None, "x", {"facts": seen})
    assert [fact.case_id for fact in unseen(facts, {"cut": made}, new_relations=False)][:4] == [0, 3, 4, 6]
    elsewhere = Defence("boundary", (), "last", (), None, "x", {"facts": seen | {"source": "another"}})
    assert [fact.case_id for fact in unseen(facts, {"cut": elsewhere}, new_relations=False)][:5] == [0, 1, 2, 3, 4]
    assert len(unseen(facts, {"cut": elsewhere}, new_relations=False)) == 15
    with pytest.raises(LcalensError, match=r"^folders: 'cut' does not say"):
        unseen(facts, {"cut": CUT}, new_relations=False)


def test_two_folders_of_one_name_go_by_their_paths(tmp_path):
    for name in ("a/cut", "b/cut", "none"):
        CUT.save(tmp_path / name / "defence")
    names = list(find_defences([tmp_path / name for name in ("a/cut", "b/cut", "none")]))
    assert names == [str(tmp_path / name) for name in ("a/cut", "b/cut", "none")]
    assert list(find_defences([tmp_path / "a/cut/defence"])) == ["defence"]
    with pytest.raises(LcalensError, match=r"^folders: .*twice"):
        find_defences([tmp_path / "a/cut", tmp_path / "a/cut/defence"])


# --- defend generate ------------------------------------------------------------------------------------------------


def test_generate_shows_both(lc, standin, fitted):
    prompts = ("Do not think of Rome. The capital of France is", "The capital of France is")
    status, said, errors = lc("defend", "generate", fitted, *prompts, *lc.model, "--tokens", "4")
    assert (status, errors) == (0, "")
    model, tokenizer = standin("gpt2").model, standin("gpt2").tokenizer
    defence = Defence.load(fitted / "defence")
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        options = {"max_new_tokens": 4, "do_sample": False, "verbose": False, "return_type": "tokens"}
        plain = model.generate(ids, **options)
        with defence.applied(model):
            cut = model.generate(ids, **options)
        block = said[said.index(repr(prompt)) :]
        for label, found in (("without:", plain), ("with:", cut)):
            text = tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
            assert f"{label:10}{text!r}" in block
            block = block[block.index(label) + 5 :]


def test_what_is_generated_cannot_steer_a_terminal():
    said = generated_screen("a\x1b[2J", CUT, [("prompt", "red \x1b[31m", "\x07")])
    assert said.isascii()
    assert all(character.isprintable() or character == "\n" for character in said)
    assert "\\x1b[31m" in said


# --- recall ---------------------------------------------------------------------------------------------------------


def test_recall_of_pairs(lc, standin, tmp_path):
    cities = list(standins.CAPITALS.values())
    pairs = [f"{city}={other}" for city, other in zip(cities[:8], cities[8:], strict=True)]
    out = tmp_path / "out"
    status, said, errors = lc("recall", *lc.model, *HEADS, "--pairs", *pairs, "--draws", "5", "--out", out)
    assert (status, errors) == (0, "")
    result = lcalens.Result.load(out / "result")
    assert result.axes["head"] == ("L0H1", "L1H3", "L2H0")
    same = lcalens.recall(
        standin("gpt2").model,
        dict(pair.split("=") for pair in pairs),
        [(0, 1), (1, 3), (2, 0)],
        draws=5,
        progress=False,
    )
    assert result.summary.equals(same.summary)
    shown = result.wide().set_index("head")
    for head in result.axes["head"]:
        assert re.search(rf"{head} +{shown.loc[head, 'own_first']:.2f} +{shown.loc[head, 'related_auc']:.2f}", said)
    for word in ("embedding similarity", "logit lens", "same spectrum", "other heads of the layer", "as given"):
        assert word in said
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "--pairs Paris=Cairo" in (out / "table.md").read_text(encoding="utf-8")


def test_recall_of_facts_ranks_on_every_second_one(lc, standin, place, tmp_path):
    out = tmp_path / "out"
    options = (
        "--heads",
        "2",
        "--scheme",
        "dont-think",
        "--control",
        "other-object",
        "--draws",
        "3",
        "--level",
        "residual",
    )
    status, said, _ = lc("recall", *lc.facts, *options, "--out", out)
    assert status == 0
    model = standin("gpt2").model
    contrast = lcalens.contrast_facts(model, lcalens.load_facts(place), scheme="dont-think", control="other-object")
    ranked = lcalens.leading(lcalens.patch(model, contrast[::2], progress=False), 2, by="carrying")
    result = lcalens.Result.load(out / "result")
    assert set(result.axes["head"]) == set(ranked.names)
    assert list(result.examples["case_id"]) == list(contrast[1::2].examples["case_id"])
    assert "largest mean recovery that raises the metric" in " ".join(said.split())
    assert (out / "patching" / "cells").is_dir()


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "heads"),
    [(("10",), 10), (("23.4", "29.2"), [(23, 4), (29, 2)]), (("L23H4", "l2h0"), [(23, 4), (2, 0)])],
    ids=str,
)
def test_heads_by_number_and_by_name(words, heads):
    assert named_heads(words) == heads


@pytest.mark.parametrize("words", [(), ("0",), ("-1",), ("x",), ("1", "2"), ("1.2", "L1H2"), ("1.2.3",), ("1.2", "3")])
def test_what_is_no_head(words):
    with pytest.raises(LcalensError, match=r"^heads: "):
        named_heads(words)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("recall", "--pairs", "France"), "pairs"),
        (("recall", "--pairs", "France=French", "Italy=Italian"), "pairs"),
        (("recall", "--pairs", "=French", "a=b", "c=d"), "pairs"),
        (("recall", "--pairs", "a=b", "c=d", "e=f", "--level", "residual"), "level"),
        (("recall", "--heads", "many"), "heads"),
        (("recall", "--draws", "0"), "draws"),
        (("recall", "--limit", "5"), "limit"),
        (("recall", "--scheme", "Forget {it}."), "scheme"),
        (("recall", "--facts", "nowhere.json"), "facts"),
        (("recall", "--out", "FILE"), "out"),
        (("defend", "fit", "--out", "FILE"), "out"),
        (("defend", "fit", "--out", "x", "--heads", "0"), "heads"),
        (("defend", "fit", "--out", "x", "--limit", "2"), "limit"),
        (("defend", "fit", "--out", "x", "--layer", "3"), "layer"),
        (("defend", "fit", "--out", "x", "--reads", "both"), "reads"),
        (("defend", "fit", "--out", "x", "--honest", "lies"), "honest"),
        (("defend", "evaluate", "KEPT", "--honest", "lies"), "honest"),
        (("defend", "fit", "--out", "x", "--false-alarms", "0.9"), "false_alarms"),
        (("defend", "fit", "--out", "x", "--seed", "-1"), "seed"),
        (("defend", "fit", "--out", "x", "--scheme", "dont_think"), "scheme"),
        (("defend", "evaluate"), "folders"),
        (("defend", "evaluate", "nowhere"), "folders"),
        (("defend", "evaluate", "FILE"), "folders"),
        (("defend", "evaluate", "KEPT", "--limit", "0"), "limit"),
        (("defend", "evaluate", "KEPT", "--schemes", "negation", "negation"), "schemes"),
        (("defend", "evaluate", "KEPT", "--schemes", "dont_think"), "schemes"),
        (("defend", "evaluate", "KEPT", "--n", "0"), "n"),
        (("defend", "evaluate", "KEPT", "KEPT"), "folders"),
        (("defend", "generate", "KEPT"), "prompts"),
        (("defend", "generate", "KEPT", " "), "prompts"),
        (("defend", "generate", "KEPT", "x\x01y"), "prompts"),
        (("defend", "generate", "KEPT", "x", "--tokens", "0"), "tokens"),
        (("defend", "generate", "nowhere", "x"), "folders"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_errors_are_said_before_a_model_is_loaded(lc, tmp_path, monkeypatch, arguments, named):
    (tmp_path / "FILE").write_text("mine")
    CUT.save(tmp_path / "KEPT" / "defence")
    monkeypatch.chdir(tmp_path)

    def loaded(*arguments, **options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("lcalens.llm.models.load.load_model", loaded)
    status, said, errors = lc(*arguments)
    assert (status, said) == (2, "")
    told = " ".join(errors.split())
    flag = named if named in ("folder", "folders", "prompts") else f"--{named.replace('_', '-')}"
    assert told.startswith(f"lcalens: {flag}")
    assert "Traceback" not in errors


def test_a_defence_of_another_model_is_refused(lc, standin, fitted):
    other = ("--model", standin("llama").folder)
    for arguments in (("evaluate", fitted), ("generate", fitted, "The capital of France is")):
        status, said, errors = lc("defend", *arguments, *other)
        assert (status, said) == (2, "")
        assert "made for other weights" in " ".join(errors.split())


def test_facts_that_a_fit_has_all_seen_are_refused(lc, place, tmp_path):
    assert lc("defend", "fit", *lc.facts, *HEADS, "--out", tmp_path / "cut")[0] == 0
    status, _, errors = lc("defend", "evaluate", tmp_path / "cut", *lc.evaluate)
    assert status == 2
    assert errors.startswith("lcalens: --facts:")


def test_a_generation_beyond_the_context_is_refused(lc, fitted):
    status, _, errors = lc("defend", "generate", fitted, "The capital of France is", *lc.model, "--tokens", "999")
    assert status == 2
    assert "160" in errors


@pytest.mark.parametrize(
    "arguments", [("defend",), ("defend", "fit"), ("defend", "undo"), ("defend", "generate")], ids=str
)
def test_a_malformed_command_line_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
