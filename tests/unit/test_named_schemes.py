"""Schemes under names of one's own, their controls, and how many tokens run at once."""

import numpy as np
import pytest

from lcalens import Scheme, efficacy, load_facts, load_model
from lcalens.core.errors import LcalensError
from lcalens.llm.prompts.named import named_schemes, with_names

FORGET, OTHER = "Forget about {target_false}.", "Forget about {unrelated}."


@pytest.fixture(scope="module")
def model(standin):
    return load_model(standin("llama").folder, progress=False)


@pytest.fixture(scope="module")
def facts():
    return load_facts("sample", limit=6)


def controls(schemes):
    return {name: (one.role, one.control) for name, one in named_schemes(schemes).items()}


def test_a_named_sentence_has_the_control_of_its_sentence_or_the_one_it_asks_for():
    assert controls({"forget": FORGET}) == {"forget": ("hijack", OTHER)}
    assert controls({"forget": FORGET, "other": OTHER}) == {"forget": ("hijack", "other"), "other": ("control", "")}
    assert controls({"forget": Scheme(FORGET, control=OTHER)}) == {
        "forget": ("hijack", "forget (control)"),
        "forget (control)": ("control", ""),
    }
    assert controls({"other": OTHER, "forget": Scheme(FORGET, control=OTHER)}) == {
        "other": ("control", ""),
        "forget": ("hijack", "other"),
    }
    assert controls({"forget": Scheme(FORGET, control="neutral")}) == {
        "forget": ("hijack", "neutral"),
        "neutral": ("control", ""),
    }
    assert controls({"dont-think": "dont-think"}) == controls(["dont-think"])


def test_a_command_line_names_sentences_and_leaves_names_alone():
    assert with_names(("dont-think", FORGET)) == ["dont-think", FORGET]
    assert with_names(("dont-think", f"forget={FORGET}", "1 + 1 = 2.")) == {
        "dont-think": "dont-think",
        "forget": FORGET,
        "1 + 1 = 2.": "1 + 1 = 2.",
    }


def test_names_change_no_number(model, facts):
    named = efficacy(model, facts, schemes={"forget": Scheme(FORGET, control=OTHER)}, counts=(0, 2), progress=False)
    plain = efficacy(model, facts, schemes=(FORGET, OTHER), counts=(0, 2), progress=False)
    assert named.axes["scheme"] == ("forget", "forget (control)")
    for name, values in plain.values.items():
        np.testing.assert_array_equal(named.values[name], values)
    beside = [one.wide("controls").drop(columns=["scheme", "control", "mcnemar_p", "holm_p"]) for one in (named, plain)]
    np.testing.assert_array_equal(beside[0].select_dtypes("number"), beside[1].select_dtypes("number"))
    assert set(named.wide("controls")["control"]) == {"forget (control)"}


def test_a_named_study_is_drawn_with_its_control_after_it_was_saved(model, facts, tmp_path):
    asked = {"forget": Scheme(FORGET, control=OTHER), "neutral": "neutral"}
    found = efficacy(model, facts, schemes=asked, counts=(0, 1), progress=False)
    found.save(tmp_path / "out")
    (panel,) = type(found).load(tmp_path / "out").plot().axes
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["forget", "forget (control)", "neutral"]


@pytest.mark.parametrize(
    ("schemes", "said"),
    [
        ({}, "there are none"),
        ({"": FORGET}, "a name must be some text"),
        ({3: FORGET}, "a name must be some text, got 3"),
        ({"dont-think": FORGET}, "'dont-think' is a built-in scheme's name"),
        ({OTHER: FORGET}, "looks like a sentence"),
        ({"a\x1b[2J": FORGET}, "schemes"),
        ({"forget": "Forget about {false}."}, "may hold only"),
    ],
)
def test_what_cannot_be_named_is_refused(schemes, said):
    with pytest.raises(LcalensError, match=said):
        named_schemes(schemes)


def test_a_control_that_hijacks_is_refused():
    with pytest.raises(LcalensError, match=r"control: 'Love {target_false}\.' hijacks itself"):
        Scheme(FORGET, control="Love {target_false}.")
    with pytest.raises(LcalensError, match="'dont-thin' is not known"):
        Scheme(FORGET, control="dont-thin")


def test_fewer_tokens_at_once_give_the_same_numbers(model, facts, tmp_path):
    whole = efficacy(model, facts, counts=(0, 3), out=tmp_path, progress=False)
    few = efficacy(model, facts, counts=(0, 3), batch=1, out=tmp_path, progress=False)
    assert few.provenance["cells"]["loaded"] == 0
    odds = [one.values["logp_false"] - one.values["logp_true"] for one in (whole, few)]
    np.testing.assert_allclose(odds[1], odds[0], atol=1e-5 * np.abs(odds[0]).max())


def test_a_sentence_that_names_no_object_may_be_a_control(standin):
    facts = load_facts("sample", limit=6)
    scheme = Scheme("Forget about {target_false}.", control="Kindly forget the weather of {subject} today.")
    found = efficacy(standin("llama").model, facts, schemes={"forget": scheme}, counts=(0, 1), progress=False)
    assert found.axes["scheme"] == ("forget", "forget (control)")
    assert found.provenance["schemes"]["forget (control)"]["role"] == "control"
    assert set(found.tables["controls"]["control"]) == {"forget (control)"}
    for bad in ("Forget about {target_true}.", "dont-think"):
        with pytest.raises(LcalensError, match=r"^control: .* hijacks itself"):
            Scheme("Forget about {target_false}.", control=bad)
