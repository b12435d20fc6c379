"""What doctor found wrong is kept: verbs refuse that model, in that state, on this lcalens, until they are forced."""

import json
import time

import pytest

import lcalens
from lcalens.cli import main
from lcalens.core import verdicts
from lcalens.core.errors import LcalensError
from lcalens.core.stamp import stamp
from lcalens.core.verdicts import keep_verdicts, wrong_on
from tests.matrix.families import boot

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lcalens.mechanism")

KNOCKOUT = {"knockout": {"verbs": ["knockout"], "reason": "they differ by 1"}}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Nothing is kept for other tests."""
    monkeypatch.setenv("LCALENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model():
    return boot("llama")


@pytest.fixture(scope="module")
def contrast():
    return lcalens.Contrast([[5, 6, 7, 8]], [[5, 9, 7, 8]], true=3, false=4, spans={"sentence": (1, 2)})


def test_a_verb_that_was_found_wrong_is_refused_and_others_are_not(model, contrast):
    keep_verdicts(stamp(model), KNOCKOUT)
    with pytest.raises(LcalensError, match=r"model: doctor found that knockout gives wrong numbers.*forced"):
        lcalens.knockout(model, contrast, progress=False)
    told = lcalens.patch(model, contrast, progress=False).provenance["doctor"]
    assert told == {"wrong": {"knockout": "they differ by 1"}, "forced": False}


def test_forced_it_runs_and_says_so(model, contrast):
    keep_verdicts(stamp(model), KNOCKOUT)
    with lcalens.forced():
        result = lcalens.knockout(model, contrast, progress=False)
    assert result.provenance["doctor"] == {"wrong": {"knockout": "they differ by 1"}, "forced": True}
    with lcalens.forced(False), pytest.raises(LcalensError):
        lcalens.knockout(model, contrast, progress=False)


def test_every_verb_is_refused_where_the_model_is_wrong(model, contrast):
    keep_verdicts(stamp(model), {"batch and single": {"verbs": ["*"], "reason": "they differ"}})
    for verb in (lcalens.patch, lcalens.attribute, lcalens.split, lcalens.knockout):
        with pytest.raises(LcalensError, match="batch and single"):
            verb(model, contrast, progress=False)


def test_another_state_of_the_model_is_another_model(contrast):
    model = boot("llama")
    keep_verdicts(stamp(model), KNOCKOUT)
    model.original_model.lm_head.weight.data[0, 0] += 1
    lcalens.knockout(model, contrast, progress=False)


def test_verdicts_on_another_lcalens_say_nothing(model, contrast, monkeypatch):
    keep_verdicts(stamp(model), KNOCKOUT)
    monkeypatch.setattr(verdicts, "_files_digest", lambda: "another")
    lcalens.knockout(model, contrast, progress=False)


@pytest.mark.parametrize("damage", ["a byte", "a file gone", "another model's", "no table"])
def test_what_is_damaged_is_said_and_not_used(damage, model, contrast):
    folder = keep_verdicts(stamp(model), KNOCKOUT)
    file = folder / "verdicts.json"
    if damage == "a byte":
        file.write_text(file.read_text().replace("differ by 1", "differ by 2"))
    elif damage == "a file gone":
        file.unlink()
    elif damage == "another model's":
        other = keep_verdicts("0" * 32, KNOCKOUT)
        for name in ("verdicts.json", "seal.json"):
            (folder / name).write_bytes((other / name).read_bytes())
    else:
        from lcalens.core.sealed import sealed_folder

        with sealed_folder(folder, "verdicts") as new:
            (new / "verdicts.json").write_text("[]")
    with pytest.warns(UserWarning, match="damaged"):
        lcalens.knockout(model, contrast, progress=False)


def test_doctor_keeps_what_is_wrong_and_lets_go_of_it(model, contrast, monkeypatch):
    import lcalens.selfcheck.doctor as held

    chosen = tuple(one for one in held.IDENTITIES if one.name in ("knockout", "batch and single"))
    monkeypatch.setattr(held, "IDENTITIES", chosen)
    whole = lcalens.knockout

    def off(*given, **named):
        result = whole(*given, **named)
        result.values["value"][:] += 1
        return result

    import lcalens.selfcheck.of_heads as of_heads

    with monkeypatch.context() as planted:
        planted.setattr(of_heads, "knockout", off)
        found = lcalens.doctor(model, progress=False)
    assert found.provenance["counts"] == {"exact": 1, "refused": 0, "wrong": 1}
    with pytest.raises(LcalensError, match="knockout"):
        lcalens.knockout(model, contrast, progress=False)
    assert lcalens.doctor(model, progress=False).provenance["counts"]["wrong"] == 0
    lcalens.knockout(model, contrast, progress=False)
    assert wrong_on(stamp(model)) == {}


def test_a_notebook_shows_every_verdict_escaped(model, monkeypatch):
    found = lcalens.doctor(model, only=["batch and single", "stream sums"], progress=False)
    found.tables["verdicts"].loc[0, "reason"] = "<script>alert(1)</script>"
    shown = found._repr_html_()
    assert "2 exact, 0 refused, 0 wrong" in shown
    assert "stream sums" in shown
    assert "<script>" not in shown


def test_a_worker_of_a_verb_that_was_forced_is_not_refused(standin, monkeypatch):
    model = standin("llama").model
    facts = lcalens.load_facts("sample", limit=70)
    keep_verdicts(stamp(model), {"batch and single": {"verbs": ["*"], "reason": "they differ"}})
    hijack = {"schemes": ("dont-think",), "counts": (0, 1), "progress": False}
    with pytest.raises(LcalensError, match="batch and single"):
        lcalens.efficacy(model, facts, n_jobs=2, **hijack)
    with lcalens.forced():
        result = lcalens.efficacy(model, facts, n_jobs=2, **hijack)
    assert result.provenance["doctor"]["forced"]


def test_a_cache_folder_that_cannot_be_is_no_hindrance(model, contrast, monkeypatch):
    import lcalens.selfcheck.doctor as held

    monkeypatch.setattr(held, "IDENTITIES", tuple(one for one in held.IDENTITIES if one.name == "batch and single"))
    monkeypatch.setenv("LCALENS_CACHE", "~nobody-of-this-name/cache")
    lcalens.knockout(model, contrast, progress=False)
    monkeypatch.setattr(held, "keep_verdicts", lambda stamp, wrong: keep_verdicts(stamp, KNOCKOUT))
    assert lcalens.doctor(model, progress=False).provenance["kept"].startswith("not kept: ")


def test_nothing_is_kept_of_a_few_identities(model, cache):
    lcalens.doctor(model, only=["batch and single"], progress=False)
    assert not (cache / "doctor").exists()


def test_where_nothing_is_kept_looking_costs_nothing(model):
    state = stamp(model)
    began = time.perf_counter()
    for _ in range(100):
        verdicts.check_verdicts(state, "patch")
    assert time.perf_counter() - began < 0.1


@pytest.mark.parametrize("only", ["knockout", [], ["nothing"]])
def test_names_that_are_none_are_refused(only, model):
    with pytest.raises(LcalensError, match="only: "):
        lcalens.doctor(model, only=only, progress=False)


def test_a_model_with_hooks_is_refused(model):
    point = model.blocks[0].attn.hook_z
    point.add_hook(lambda value, hook: value * 2)
    try:
        with pytest.raises(LcalensError, match="model: hooks are attached"):
            lcalens.doctor(model, progress=False)
    finally:
        model.reset_hooks()


@pytest.fixture
def folder(standin):
    return str(standin("llama").folder)


def test_the_command(folder, capsys, monkeypatch):
    import lcalens.selfcheck.doctor as held

    chosen = tuple(one for one in held.IDENTITIES if one.name in ("knockout", "batch and single"))
    monkeypatch.setattr(held, "IDENTITIES", chosen)
    assert main(["doctor", "--model", folder]) == 0
    screen = capsys.readouterr().out
    assert "2 exact, 0 refused, 0 wrong" in screen
    assert "tokenizer: usable" in screen
    assert main(["doctor", "--model", folder, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["doctor"]
    assert [row["verdict"] for row in told["tables"]["verdicts"]] == ["exact", "exact"]
    assert told["provenance"]["machine"]["tokenizer"] == "usable"


def test_the_command_says_what_is_wrong_and_others_refuse_it(folder, capsys, monkeypatch):
    import lcalens.selfcheck.doctor as held

    broken = [one for one in held.IDENTITIES if one.name == "scores"]
    monkeypatch.setattr(held, "IDENTITIES", tuple(broken))
    monkeypatch.setattr("lcalens.selfcheck.of_texts.score", None)
    assert main(["doctor", "--model", folder]) == 1
    assert "1 wrong" in capsys.readouterr().out
    ask = ["ask", "The Eiffel Tower is in", "--model", folder]
    assert main(ask) == 2
    assert "doctor found that ask gives wrong numbers" in " ".join(capsys.readouterr().err.split())
    assert main([*ask, "--force"]) == 0


def test_a_model_that_is_none_is_status_2(capsys):
    assert main(["doctor", "--model", "/nowhere/model"]) == 2
    assert "model" in capsys.readouterr().err
