"""The closing table: a row a prediction, each world's numbers beside their control, and the verdict."""

import importlib
from dataclasses import replace

import pytest

from lcalens.core.errors import LcalensError
from lcalens.core.estimates import Estimate
from probes import closing
from probes.harness.rules import Evidence
from probes.harness.study import Outcome, Report
from probes.harness.work import SIZES


def outcome(name, effect):
    probe = importlib.import_module(f"probes.{name}")

    def seen(setting, counted):
        low, high = (Estimate(mean, mean - 0.01, mean + 0.01) for mean in (0.0, effect))
        return Evidence(setting=setting, effect=high, control=low, excess=high, counted=counted)

    worlds = [(f"{SIZES['smollm2']}, 13 of 270 heads", True), ("toy, m = 6", False)]
    evidence = tuple((rule, [seen(*world) for world in worlds]) for rule in probe.RULES)
    return Outcome(
        name=name.split(".")[1], settings=probe.PRESETS["standard"], report=Report(evidence=evidence),
        verdicts=tuple(rule.judge(some) for rule, some in evidence), loaded=0, computed=0, seconds=0.0, trained=[],
    )  # fmt: skip


def test_every_prediction_has_a_rule_and_a_row():
    names = dict.fromkeys(name for name, _, _ in closing.PREDICTIONS)
    table = closing.gathered([outcome(name, 0.95) for name in names])
    assert len(table) == len(closing.PREDICTIONS)
    assert (table[SIZES["gemma3-270m"]] == "not measured").all()
    assert table["toy"].str.endswith("(not counted)").all()
    assert table[SIZES["smollm2"]].str.contains("beside").all()
    assert table["verdict"].str.startswith("holds, 1 of 1").all()
    low = closing.gathered([outcome(name, 0.02) for name in names])
    assert low["verdict"].str.startswith("does not hold").all()


def test_a_rule_that_was_not_judged_is_left_open():
    names = dict.fromkeys(name for name, _, _ in closing.PREDICTIONS)
    table = closing.gathered([replace(outcome(name, 0.95), verdicts=()) for name in names])
    assert (table["verdict"] == "no verdict").all()
    nothing = closing.gathered([])
    assert (nothing["verdict"] == "no verdict").all()
    assert (nothing["toy"] == "not measured").all()


def test_finished_pages_are_copied_and_others_stay(tmp_path):
    source, docs = tmp_path / "out", tmp_path / "docs"
    with pytest.raises(LcalensError, match="no finished pages"):
        closing.publish(source, docs)
    (source / "figures").mkdir(parents=True)
    (docs / "figures").mkdir(parents=True)
    (docs / "defence.md").write_text("of an earlier run")
    (docs / "figures/recall-2.png").write_bytes(b"old")
    (source / "recall.md").write_text("new")
    (source / "link.md").write_text("another place's")
    (source / "figures/recall-1.png").write_bytes(b"figure")
    closing.publish(source, docs)
    assert {str(path.relative_to(docs)) for path in docs.rglob("*.*")} == {
        "defence.md", "recall.md", "figures/recall-1.png"
    }  # fmt: skip
    assert (docs / "defence.md").read_text() == "of an earlier run"


def test_a_run_of_what_is_finished_measures_no_real_model_and_says_so(tmp_path, capsys, monkeypatch):
    """Toys alone are measured, and with the quick preset they are small."""
    monkeypatch.setattr("probes.harness.work.Work.model", lambda *arguments: pytest.fail("a model was loaded"))
    monkeypatch.setattr(closing, "run_probe", lambda probe, settings: pytest.fail(f"{probe} has no finished model"))
    assert closing.main(["quick", "--out", str(tmp_path), "--finished"]) == 0
    told = capsys.readouterr().out
    assert "left open: real.link of SmolLM2" in told
    assert told.count("not measured") >= 3 * len(closing.PREDICTIONS)
    assert (tmp_path / "quick/closing.md").read_text() in told
