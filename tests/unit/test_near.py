"""Errors that ask "Did you mean ...?": asked where a known name is near, and only there."""

import pytest

from lcalens import LcalensError, load_facts, load_model, site_of
from lcalens.cli import main
from lcalens.core.checks import check_choice
from lcalens.core.near import did_you_mean, nearest
from lcalens.llm.prompts.schemes import SCHEMES, find_scheme

FACT = {"prompt": "{} is in", "subject": "Rome", "target_true": "Italy", "target_false": "France"}


@pytest.mark.parametrize(
    ("typed", "known", "meant"),
    [
        ("sumary", ("summary", "controls", "by_relation"), "summary"),
        ("by relation", ("summary", "by_relation"), "by_relation"),
        ("Attention", ("attention", "zero"), "attention"),
        ("smolm2", ("smollm2", "gemma3-270m"), "smollm2"),
        ("gemma-270m", ("smollm2", "gemma3-270m"), "gemma3-270m"),
        ("p36", ("P36", "P37"), "P36"),
        ("blocks.3.attn.hook_zz", ("blocks.3.attn.hook_z", "blocks.13.attn.hook_z"), "blocks.3.attn.hook_z"),
    ],
)
def test_a_slip_is_near(typed, known, meant):
    assert nearest(typed, known) == meant
    assert did_you_mean(typed, known) == f" Did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("typed", "known"),
    [
        ("P17", ("P19", "P170", "P1")),
        ("blocks.3.attn.hook_z", ("blocks.2.attn.hook_z", "blocks.13.attn.hook_z", "blocks.31.attn.hook_z")),
        ("cut", ("none", "boundary", "zero")),
        ("mean", ("zero", "other")),
        ("z", ("q", "k", "v")),
        ("gpt2", ("smollm2", "gemma3-270m")),
        ("", ("summary",)),
        ("   ", ("summary",)),
        ("summary", ()),
        (3, ("summary",)),
        (None, ("None",)),
        ("summary" * 1000, ("summary" * 1000 + "s",)),
        ("sumary", (3, None, ("summary",))),
    ],
)
def test_no_silly_question(typed, known):
    assert nearest(typed, known) is None
    assert did_you_mean(typed, known) == ""


def test_what_is_named_is_escaped_and_short():
    hint = did_you_mean("sum\x1bmarx", ["sum\x1bmary", "other"])
    assert hint == " Did you mean 'sum\\x1bmary'?"
    assert len(did_you_mean("a" * 78, ["a" * 79])) < 90


def test_many_names_are_looked_through_in_time():
    assert nearest("sumary", (f"relation {number}" for number in iter(int, 1))) is None  # without an end


def test_a_choice():
    with pytest.raises(LcalensError, match=r"^method: 'zreo' is not one of mean, zero\. Did you mean 'zero'\?"):
        check_choice("method", "zreo", ("mean", "zero"))
    with pytest.raises(LcalensError, match=r"^method: 'other' is not one of mean, zero\.(?! Did)"):
        check_choice("method", "other", ("mean", "zero"))


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: load_facts("sampel"), "sample"),
        (lambda: load_facts("counterfcat"), "counterfact"),
        (lambda: load_facts([FACT | {"relation_id": "capital"}], relations="captial"), "capital"),
        (lambda: load_model("./smolm2", progress=False), "smollm2"),
        (lambda: load_model("smollm2", dtype="flaot32"), "float32"),
        (lambda: find_scheme("dont-thnk"), "dont-think"),
        (lambda: site_of("attn_ot"), "attn_out"),
        (lambda: site_of("blocks.3.attn.hook_zz"), "blocks.3.attn.hook_z"),
        (lambda: site_of("blocks.3.hook_resid_pots"), "blocks.3.hook_resid_post"),
        (lambda: site_of("hook_patern"), "attn.hook_pattern"),
    ],
)
def test_where_a_name_is_refused(call, meant):
    with pytest.raises(LcalensError) as caught:
        call()
    assert f"Did you mean {meant!r}?" in str(caught.value)


@pytest.mark.parametrize("site", ["mlp.hook_pre", "hook_resid_mid", "blocks.3", "attention", "x" * 500, "blocks.2.\n"])
def test_a_site_that_is_none_is_near_to_none(site):
    with pytest.raises(LcalensError) as caught:
        site_of(site)
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("target_fals", "target_false"), ("Subject", "subject"), ("promt", "prompt"), ("target true", "target_true")],
)
def test_a_column_is_renamed(wrong, right):
    record = {name: value for name, value in FACT.items() if name != right} | {wrong: FACT[right]}
    with pytest.raises(LcalensError, match=f"rename '{wrong}' to '{right}', or add it"):
        load_facts([record])


def test_a_key_within_a_rewrite_is_renamed():
    rewrite = {"relation_id": "P17", "prompt": "{} is in", "subjct": "Rome"}
    rewrite |= {"target_true": {"str": "Italy"}, "target_new": {"str": "France"}}
    with pytest.raises(LcalensError, match=r"rename 'requested_rewrite\.subjct' to 'requested_rewrite\.subject'"):
        load_facts([{"requested_rewrite": rewrite}])


@pytest.mark.parametrize("gone", ["target_true", "target_false"])
def test_a_column_of_the_schema_is_never_to_be_renamed(gone):
    with pytest.raises(LcalensError, match=f"missing key '{gone}' or .*; add it"):
        load_facts([{name: value for name, value in FACT.items() if name != gone}])


def test_a_command(capsys):
    with pytest.raises(SystemExit):
        main(["hijak"])
    assert "lcalens: Did you mean 'hijack'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["measure"])
    with pytest.raises(SystemExit):
        main(["hijack", "--scoring", "none"])
    assert "Did you mean" not in capsys.readouterr().err


def test_every_scheme_but_for_its_last_letter_is_that_scheme():
    for name in SCHEMES:
        assert nearest(name[:-1], SCHEMES) == name


def test_a_hub_name_near_to_an_embedded_one(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LcalensError, match=r"no network\. Did you mean 'smollm2'\?"):
        load_model("smolm2", progress=False)
    with pytest.raises(LcalensError, match=r"no network\.(?! Did)"):
        load_model("gpt2-of-nobody", progress=False)
