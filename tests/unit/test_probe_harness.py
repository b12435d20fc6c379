"""What the probes share: rules against verdicts written by hand, cells that are kept, pages, and the two commands."""

import importlib
import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import probes
from lcalens import LatentConcepts, TrainConfig
from lcalens.core.errors import LcalensError
from lcalens.core.estimates import Estimate, exact, over_seeds, ratio_of_facts
from lcalens.core.statistics import wilson
from probes.harness import run
from probes.harness.commits import UNCOMMITTED, _history, _rules, rules_commit
from probes.harness.naive import runs_of
from probes.harness.order import HALVES, ORDER, figure_page
from probes.harness.page import _judged, duration, escaped, page, short_table, table, verdict_table
from probes.harness.rules import ANGLE, CHANGE, Evidence, Rule, paired, shown, unpaired
from probes.harness.shares import mean_change, mean_share
from probes.harness.study import ROOMS, Counterpart, Report, Settings, module_of, run_probe
from probes.harness.work import left_out, reported_seeds

COMMON = {"group": "ours", "unit": "share", "effect_range": CHANGE, "control_range": CHANGE}
RISES = {"claim": "It rises.", "source": "Figure 0", "effect": "the rise", "control": "nothing"}
RULE = Rule(**RISES, **COMMON, minimum=0.1, margin=0.05, headline="Rises")
FALLS = Rule(
    claim="It falls.", source="Figure 0", effect="the angle", minimum=10, control="noise", margin=5, sense="at most",
    group="stronger", unit="degrees", effect_range=ANGLE, control_range=ANGLE,
)  # fmt: skip
OPEN = replace(RULE, unknown="L", group="paper", sentence="It rises.")


def evidence(effect, control, excess):
    return Evidence(setting="here", effect=Estimate(*effect), control=Estimate(*control), excess=Estimate(*excess))


CLEAR = evidence((0.3, 0.2, 0.4), (0, -0.05, 0.05), (0.3, 0.2, 0.4))
SMALL = evidence((0.12, 0.09, 0.15), (0, 0, 0), (0.12, 0.09, 0.15))  # its interval reaches over the minimum
BELOW = evidence((0.06, 0.05, 0.07), (0, 0, 0), (0.06, 0.05, 0.07))  # the whole of it is below
MATCHED = evidence((0.3, 0.2, 0.4), (0.28, 0.2, 0.36), (0.02, -0.05, 0.09))  # the control does as well
UNSURE = evidence((0.3, math.nan, math.nan), (0, 0, 0), (0.3, math.nan, math.nan))
MET = [(CLEAR, "yes"), (SMALL, "undecided"), (MATCHED, "undecided"), (BELOW, "no"), (UNSURE, "no")]


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ([CLEAR], "holds"),
        ([CLEAR, SMALL], "holds in part"),
        ([BELOW], "does not hold"),
        ([CLEAR, BELOW], "holds in part"),
        ([SMALL, BELOW], "does not hold"),
        ([SMALL], "undecided"),
        ([MATCHED], "undecided"),
        ([MATCHED, SMALL], "undecided"),
        ([UNSURE], "does not hold"),
        ([CLEAR, UNSURE], "holds in part"),
    ],
)
def test_a_verdict_needs_effect_and_margin_by_whole_intervals(found, word):
    verdict = RULE.judge(found)
    assert verdict.word == word
    assert found[-1] in (verdict.worst, CLEAR, SMALL)
    met = [next(word for known, word in MET if known is one) for one in found]
    assert verdict.to_frame()["met"].tolist() == met


def test_at_most_turns_both_conditions_round():
    below = evidence((4, 3, 5), (20, 18, 22), (-16, -18, -14))
    assert FALLS.judge([below]).word == "holds"
    assert FALLS.judge([evidence((9, 7, 11), (20, 18, 22), (-11, -13, -9))]).word == "undecided"
    assert FALLS.judge([evidence((12, 11, 13), (20, 18, 22), (-8, -9, -7))]).word == "does not hold"
    assert FALLS.judge([evidence((4, 3, 5), (6, 5, 7), (-2, -3, -1))]).word == "does not hold"


def test_what_is_exactly_at_the_limit_is_met():
    assert RULE.meets(Evidence(setting="", effect=exact(0.1), control=exact(0.05), excess=exact(0.05)))


@pytest.mark.parametrize(
    "changes",
    [
        {"minimum": 0.8, "effect_range": (0, 0.7)},  # the effect cannot be so large
        {"margin": 0.6, "control_range": (0.5, 1)},  # nothing can be so far above the control
        {"sense": "at most", "minimum": 10, "margin": 10, "effect_range": ANGLE, "control_range": (0, 3)},
    ],
)
def test_a_rule_that_cannot_hold_is_refused(changes):
    with pytest.raises(LcalensError, match=r"'It rises\.' cannot hold"):
        replace(RULE, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"minimum": 0, "margin": 0, "effect_range": (0, 1), "control_range": (-1, 0)},
        {"sense": "at most", "minimum": 90, "margin": 0, "effect_range": (0, 10), "control_range": (10, 90)},
    ],
)
def test_a_rule_that_cannot_fail_is_refused(changes):
    with pytest.raises(LcalensError, match=r"'It rises\.' cannot fail"):
        replace(RULE, **changes)


def test_a_claim_of_the_paper_quotes_its_sentence():
    with pytest.raises(LcalensError, match="quote the sentence"):
        replace(RULE, group="paper")
    with pytest.raises(LcalensError, match="a lower and a higher end"):
        replace(RULE, effect_range=(1, 1))


def at(value, found):
    return replace(found, at=value, setting=f"L = {value}")


def test_what_is_left_open_decides_neither_way():
    verdict = OPEN.judge([at(64, SMALL), at(64, SMALL), at(256, CLEAR), at(256, CLEAR)])
    assert verdict.word == "depends on"
    assert verdict.told() == "depends on L: from 0.12 at L = 64 (met in 0 of 2) to 0.3 at L = 256 (met in 2 of 2)"
    assert OPEN.judge([at(64, CLEAR), at(256, CLEAR)]).told() == "holds, 2 of 2"
    assert OPEN.judge([at(64, BELOW), at(256, SMALL)]).told() == "does not hold, 0 of 2, 1 undecided"
    # One of two at either value: it is not L that decides.
    assert (
        OPEN.judge([at(64, SMALL), at(64, CLEAR), at(256, CLEAR), at(256, SMALL)]).told()
        == "holds in 2 of 4, 2 undecided"
    )
    with pytest.raises(LcalensError, match="may depend on L"):
        OPEN.judge([CLEAR])


def test_what_was_not_run_to_its_end_has_not_failed():
    unfinished = [replace(at(64, SMALL), unfinished=True), replace(at(256, SMALL), unfinished=True)]
    assert OPEN.judge(unfinished).word == "depends on"
    assert OPEN.judge([*unfinished, at(512, BELOW)]).word == "does not hold"  # this one was, and failed
    assert OPEN.judge(unfinished).told().endswith("; more of them would still move it")
    assert OPEN.judge([replace(at(64, CLEAR), unfinished=True)]).word == "holds"
    assert RULE.judge(unfinished).word == "undecided"  # nothing is left open


def test_from_the_first_to_the_last_value_the_same_cases_are_compared():
    small, clear = replace(at(64, SMALL), case="m = 5"), replace(at(256, CLEAR), case="m = 5")
    other = replace(at(64, CLEAR), case="m = 6")
    told = OPEN.judge([small, other, clear]).told()
    assert told == "depends on L: from 0.12 at L = 64 (met in 0 of 1) to 0.3 at L = 256 (met in 1 of 1)"


def test_what_misses_the_margin_alone_is_told_as_a_difference():
    near = evidence((0.3, 0.28, 0.32), (0.29, 0.27, 0.31), (0.01, 0, 0.02))
    told = OPEN.judge([at(64, near), at(256, CLEAR)]).told()
    assert told == "depends on L: a difference from 0.01 at L = 64 (met in 0 of 1) to 0.3 at L = 256 (met in 1 of 1)"


def test_an_interval_of_a_share_stays_where_a_share_can_be():
    near_one = [0.99, 1.0, 1.0, 1.0, 0.98]
    assert over_seeds(near_one).high > 1
    assert mean_share(near_one).high <= 1
    assert mean_share(near_one).mean == over_seeds(near_one).mean
    assert mean_change([-0.99, -1.0, -1.0]).low >= -1
    assert mean_share([0.4, 0.5, 0.6]) == over_seeds([0.4, 0.5, 0.6])


def test_what_is_true_by_construction_is_shown_and_not_counted():
    shown_only = replace(SMALL, counted=False)
    verdict = RULE.judge([CLEAR, shown_only])
    assert verdict.told() == "holds, 1 of 1"
    assert verdict.to_frame()["met"].tolist() == ["yes", "undecided, not counted"]
    assert verdict.worst is verdict.evidence[0]
    with pytest.raises(LcalensError, match="a setting that counts"):
        RULE.judge([shown_only])


def test_one_of_many_is_not_the_word_of_most():
    many = [CLEAR] + [BELOW] * 23
    assert RULE.judge(many).told() == "holds in 1 of 24"
    assert RULE.judge(many[:1] * 23 + [SMALL]).told() == "holds in 23 of 24, 1 undecided"


def test_intervals_stay_in_the_range_of_what_they_are_of():
    # 19 of 20 by the normal approximation reaches past 1; Wilson's interval of the same does not.
    half = 1.959963985 * math.sqrt(0.95 * 0.05 / 20)
    past = Estimate(0.95, 0.95 - half, 0.95 + half)
    assert past.high > 1
    assert past.within(0.0, 1.0) == pytest.approx((0.95, *wilson(19, 20)))
    assert Estimate(-0.95, -past.high, -past.low).within(-1.0, 0.0) == pytest.approx(
        (-0.95, *(-x for x in wilson(19, 20)[::-1]))
    )
    assert Estimate(0.5, 0.4, 0.6).within(0.0, 1.0) == (0.5, 0.4, 0.6)
    low, high = Estimate(0.5, -0.2, 1.2).within(0.0, math.inf)[1:]
    assert 0 < low < 0.5 < 1.2 < high
    assert Estimate(0.5, -0.2, 1.2).within(0.0, 1e6) == pytest.approx((0.5, low, high), rel=1e-5)
    assert Estimate(-0.5, -1.2, 0.2).within(-math.inf, 0.0) == pytest.approx((-0.5, -high, -low))
    with pytest.raises(LcalensError, match="outside"):
        Estimate(1.2, 1.1, 1.3).within(0.0, 1.0)
    wide = evidence((0.95, 0.8, 1.1), (0, -0.1, 0.1), (0.95, 0.8, 1.1))
    for one in (found := RULE.judge([wide]).evidence[0]).effect, found.excess:
        assert one.high <= 2
    assert found.effect.high <= 1


def test_no_interval_is_shown_of_rounding_error():
    assert shown(Estimate(9.79e-16, 7e-16, 1.2e-15)) == "1e-15 (rounding error)"
    assert shown(Estimate(0.0, 0.0, 0.0)) == "0"
    assert shown(Estimate(0.5, math.nan, math.nan)) == "0.5"
    assert "rounding" in RULE.judge([evidence((1e-16,) * 3, (0, 0, 0), (1e-16,) * 3)]).effects()


def test_a_verdict_shows_the_effect_first_and_the_worst_only_where_it_failed():
    low = evidence((0.2, 0.15, 0.25), (0, 0, 0), (0.2, 0.15, 0.25))
    verdict = RULE.judge([CLEAR, low, CLEAR])
    assert (verdict.effects(), verdict.told()) == ("0.2 to 0.3, middle 0.3", "holds, 3 of 3")
    text = "\n".join(_judged(verdict))
    assert "The rise (share): 0.2 to 0.3, middle 0.3 (**holds, 3 of 3**; ours; Figure 0)." in text
    assert "The whole 95% interval of the rise must be at least 0.1 and exceed the control's by 0.05." in text
    assert "Worst setting" not in text
    text = "\n".join(_judged(RULE.judge([CLEAR, SMALL])))
    assert "Worst setting: here. Effect 0.12 [0.09, 0.15], control 0, difference 0.12 [0.09, 0.15]." in text


def test_no_evidence_is_an_error():
    with pytest.raises(LcalensError, match="none for 'It rises"):
        RULE.judge([])


def test_intervals_over_seeds_are_students():
    values = np.array([0.1, 0.4, 0.2, 0.3, 0.9])
    found = over_seeds(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found == pytest.approx((values.mean(), expected.low, expected.high))
    assert math.isnan(over_seeds([0.5]).low)
    both = paired("here", values, values[::-1])
    expected = stats.ttest_rel(values, values[::-1]).confidence_interval(0.95)
    assert both.excess[1:] == pytest.approx((expected.low, expected.high))
    with pytest.raises(LcalensError, match="give one a seed"):
        paired("here", values, values[:3])
    with pytest.raises(LcalensError, match="one number per seed"):
        over_seeds([])


def test_the_difference_of_independent_shares_is_newcombes():
    # 56/70 against 48/80, Newcombe (1998), table II, method 10.
    found = unpaired("here", Estimate(0.8, 0.6918, 0.8777), Estimate(0.6, 0.4904, 0.7008))
    assert found.excess == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-4)


def test_a_share_is_of_means_and_resamples_relations():
    part, whole = np.repeat([1.0, 3.0], 10), np.repeat([2.0, 4.0], 10)
    assert ratio_of_facts(part, whole, np.repeat(["a", "b"], 10)) == pytest.approx((4 / 6, 1 / 2, 3 / 4))


@dataclass(frozen=True, kw_only=True)
class Own(Settings):
    """Settings of a probe for tests.

    Attributes:
        sizes: Of the cells.
    """

    sizes: tuple[int, ...] = (1, 2, 3)


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """A probe in a file of its own, and what it measured."""
    file = tmp_path / "own_probe.py"
    file.write_text('"""Does <it> rise | at all (Figure 0)."""\n')
    module = ModuleType("own_probe", '"""Does <it> rise | at all (Figure 0).\n\nTwo lines.\n"""'.strip('"'))
    module.__file__ = str(file)
    measured = []

    def measure(cell, work):
        if cell["size"] == 3 and not measured[2:]:
            measured.append("killed")
            raise KeyboardInterrupt
        measured.append(cell["size"])
        work.train(LatentConcepts(3), TrainConfig(8, 4, 4, steps=cell["size"], batch_size=8), 2)
        return [{"size": cell["size"], "value": np.float64(cell["size"] / 3), "none": math.nan}]

    module.PRESETS = {"quick": Own(preset="quick", sizes=(1,)), "standard": Own()}
    module.RULES = (RULE,)
    module.CHOICES = "None."
    module.grid = lambda settings: [{"size": size} for size in settings.sizes]
    module.measure = measure
    module.report = lambda settings, rows: Report(
        evidence=((RULE, [paired(f"{size} <b>", [0, size / 10], [0, 0]) for size in rows["size"]]),),
        tables={"All": rows},
    )
    monkeypatch.setitem(sys.modules, "own_probe", module)
    return module, measured


def test_a_probe_that_was_stopped_measures_only_what_is_missing(probe, tmp_path):
    module, measured = probe
    settings = Own(out=tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run_probe(module, settings, progress=False)
    second = run_probe(module, settings, progress=False)
    assert measured == [1, 2, "killed", 3]
    assert (second.loaded, second.computed) == (2, 1)
    third = run_probe(module, settings, progress=False)
    assert (third.loaded, third.computed) == (3, 0)
    pd.testing.assert_frame_equal(second.report.tables["All"], third.report.tables["All"])
    assert third.report.tables["All"]["value"].tolist() == [1 / 3, 2 / 3, 1.0]
    assert third.seconds == second.seconds


def test_a_changed_probe_measures_again_and_a_comment_does_not(probe, tmp_path):
    module, measured = probe
    settings = Own(out=tmp_path / "out", sizes=(1,))
    run_probe(module, settings, progress=False)
    with open(module.__file__, "a") as file:
        file.write("# changed\n")
    run_probe(module, settings, progress=False)
    assert measured == [1]
    plain = module.measure

    def changed(cell, work):
        return plain(cell, work)

    module.measure = changed
    run_probe(module, settings, progress=False)
    assert measured == [1, 1]


def test_other_weights_in_the_same_folder_are_measured_again(probe, tmp_path):
    module, measured = probe
    folder = tmp_path / "model"
    folder.mkdir()
    module.grid = lambda settings: [{"size": 1, "model": str(folder)}]
    for weights, expected in (("one", 1), ("one", 1), ("others", 2)):
        if not (folder / "w").exists() or (folder / "w").read_text() != weights:
            (folder / "w").write_text(weights)
        run_probe(module, Own(out=tmp_path / "out"), progress=False)
        assert len(measured) == expected


def test_rules_that_were_not_said_beforehand_are_refused(probe, tmp_path):
    module, _ = probe
    module.RULES = (FALLS,)
    with pytest.raises(LcalensError, match="said beforehand"):
        run_probe(module, Own(out=tmp_path, sizes=(1,)), progress=False)


def test_a_rule_that_these_settings_do_not_measure_gets_no_verdict(probe, tmp_path):
    module, _ = probe
    module.RULES = (RULE, FALLS)
    module.report = lambda settings, rows: Report(evidence=((RULE, [CLEAR]), (FALLS, [])))
    outcome = run_probe(module, Own(out=tmp_path, sizes=(1,)), progress=False)
    assert [verdict.rule for verdict in outcome.verdicts] == [RULE]
    assert "Not measured with these settings: It falls. (Figure 0)" in page(module, outcome, "command", None)


def test_the_command_writes_a_page_and_quick_gives_no_verdict(probe, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert run.main("own_probe", ["quick", "--out", out]) == 0
    text = (tmp_path / "out/quick/own_probe.md").read_text()
    assert text.startswith("# Does <it> rise | at all (Figure 0)\n\nTwo lines.")
    assert "too little for a verdict" in text
    assert json.loads((tmp_path / "out/quick/own_probe.json").read_text()) == {"verdicts": []}
    assert run.main("own_probe", ["--out", out, "--sizes", "1", "2"]) == 0
    text = (tmp_path / "out/standard/own_probe.md").read_text()
    assert "**undecided, 0 of 2 met**" in text  # two seeds that far apart leave an interval about 0
    assert "1 &lt;b&gt;" in text
    assert "<b>" not in text
    assert "python -m probes.own_probe standard" in text
    assert run.main("own_probe", ["quick", "--out", str(tmp_path / "own_probe.py")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run.main("own_probe", ["quick", "--out", out, "--seeds", "0"])
    assert "seeds: expected 1 or more" in capsys.readouterr().err


def test_publishing_copies_pages_and_puts_the_verdicts_between_the_marks(probe, tmp_path, monkeypatch):
    module, _ = probe
    monkeypatch.setitem(sys.modules, "probes.own_probe", module)
    module.grid = lambda settings: [{"size": 1}]
    run.run_all(["own_probe"], "standard", tmp_path / "out")
    readme, docs = tmp_path / "README.md", tmp_path / "docs/claims"
    docs.mkdir(parents=True)
    (docs / "gone.md").write_text("old")
    readme.write_text(f"before\n{run.BEGIN}\nold\n{run.END}\nafter\n")
    monkeypatch.chdir(tmp_path)
    run.publish(tmp_path / "out", docs.relative_to(tmp_path), readme)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "\nold\n" not in text
    effect = "undecided, 0 of 1 met | the rise (share): 0.05 [-0.585, 0.685]; 1 &lt;b&gt;"
    assert f"| [Rises](docs/claims/own_probe.md) | ours | {effect} |" in text
    assert sorted(one.name for one in docs.iterdir()) == ["figures", "figures.md", "index.md", "own_probe.md"]
    index = (docs / "index.md").read_text()
    assert "## Ours" in index
    assert "## The paper's claims" not in index
    assert "| It rises. | Figure 0 | the rise (share): 0.05 [-0.585, 0.685] | undecided, 0 of 1 met |" in index
    readme.write_text("no marks")
    with pytest.raises(LcalensError, match="each once"):
        run.publish(tmp_path / "out", docs, readme)
    with pytest.raises(LcalensError, match="run `make paper` first"):
        run.publish(tmp_path / "nothing", docs, readme)


def test_what_data_says_stays_text():
    assert escaped("<b>|x|\n*y* [a](b) $1$ `c`") == r"&lt;b&gt;\|x\| \*y\* [a\](b) \$1\$ \`c\`"
    lines = table(pd.DataFrame({"a|b": ["<i>", "x"], "n": [0.123456, 12345.6], "k": [1, 2], "ok": [True, False]}))
    assert lines == [
        r"| a\|b | n | k | ok |",
        "| --- | --- | --- | --- |",
        "| &lt;i&gt; | 0.123 | 1 | yes |",
        "| x | 12346 | 2 | no |",
    ]


def test_durations_are_said_in_the_unit_that_fits():
    assert [duration(s) for s in (0.123, 59, 150, 3600, 9000, 360000)] == [
        "0.12 seconds",
        "59 seconds",
        "2.5 minutes",
        "60 minutes",
        "2.5 hours",
        "100 hours",
    ]


def test_a_run_that_two_cells_need_is_counted_once():
    world, config = {"m": 5}, {"context_length": 64, "d_model": 16, "d_head": 16, "batch_size": 512, "steps": 100}
    one = {"m": 5, "world": world, "config": config, "seeds": [0, 1]}
    other = {**one, "config": {**config, "steps": 50}}
    assert runs_of([[one], [one, other], [{**one, "seeds": [1, 2]}]]) == {(5, 64, 16, 16, 512): 400}


def test_the_short_table_has_twelve_rows_at_most(probe, tmp_path):
    module, _ = probe
    module.RULES = tuple(replace(RULE, claim=f"It rises {number}.") for number in range(13))
    module.report = lambda settings, rows: Report(evidence=tuple((rule, [CLEAR]) for rule in module.RULES))
    outcome = run_probe(module, Own(out=tmp_path, sizes=(1,)), progress=False)
    with pytest.raises(LcalensError, match="13 rules have one"):
        short_table([outcome], "")


def test_rows_say_that_they_are_of_the_shipped_sample(probe, tmp_path):
    module, _ = probe
    outcome = run_probe(module, Own(out=tmp_path, sizes=(1,)), progress=False)
    told = "(shipped sample, without CounterFact)"
    assert told not in "".join(verdict_table([outcome], ""))
    alone = replace(outcome, report=replace(outcome.report, notes=left_out({"name": "sample"})))
    assert "".join(verdict_table([alone], "")).count(told) == len(alone.verdicts) > 0
    assert left_out({"name": "counterfact"}) == ()


def test_figures_stand_in_the_papers_order_with_what_is_missing(probe, tmp_path):
    module, _ = probe
    of = {"settings": "m = 8.", "sentence": "It rises.", "caption": "", "paragraph": "It does."}
    module.report = lambda settings, rows: Report(
        evidence=((RULE, [CLEAR]),),
        paper=(Counterpart(figure="Lemma 2", **of), Counterpart(figure="Figure 2a", **of)),
    )
    outcome = run_probe(module, Own(out=tmp_path, sizes=(1,)), progress=False)
    text = figure_page([outcome], {"own_probe": "probes.toy.own_probe"})
    assert text.index("## Figure 2a") < text.index("## Lemma 2") < text.index("## Without a counterpart")
    assert "python -m probes.toy.own_probe standard" in text
    assert text.count("- Figure") + text.count("- Theorem") + text.count("- Lemma") + text.count("- Section") == len(
        ORDER
    ) - 2 + len(HALVES)
    for changes, message in (({"figure": "Figure 9"}, "expected one of"), ({"caption": "none"}, "has no figure")):
        report = replace(outcome.report, paper=(replace(outcome.report.paper[0], **changes),))
        with pytest.raises(LcalensError, match=message):
            figure_page([replace(outcome, report=report)], {"own_probe": "probes.own_probe"})


def test_the_commit_of_the_rules_is_named(tmp_path):
    from probes.toy import value_matrix

    assert re.fullmatch(r"[0-9a-f]{7,}|\(uncommitted\)", rules_commit(value_matrix))
    outside = ModuleType("outside")
    outside.__file__ = str(tmp_path / "outside.py")
    assert rules_commit(outside) == UNCOMMITTED


def test_the_commit_is_that_of_the_rules_and_not_of_what_stands_around_them(tmp_path):
    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True, text=True)

    def commit(text):
        (tmp_path / "own.py").write_text(text)
        git("add", "own.py")
        git("commit", "-qm", "a change")
        return git("log", "-1", "--format=%h").stdout.strip()

    git("init", "-q")
    commit("LEAST = 1\nRULES = (LEAST,)\n")
    changed = commit("LEAST = 2\nRULES = (LEAST,)\n")
    commit("LEAST = 2\nOTHER = 3\nRULES = (\n    LEAST,\n)\n")
    git("mv", "own.py", "moved.py")
    git("commit", "-qm", "moved")
    assert _history(tmp_path / "moved.py", _rules) == changed
    (tmp_path / "moved.py").write_text("LEAST = 9\nRULES = (LEAST,)\n")
    assert _history(tmp_path / "moved.py", _rules) is None


PROBES = sorted(path for room in ROOMS for path in (Path(probes.__file__).parent / room).glob("[a-z]*.py"))


@pytest.mark.parametrize("path", PROBES, ids=lambda path: path.stem)
def test_no_page_names_a_seed_that_is_not_reported(path):
    module = importlib.import_module(f"probes.{path.parent.name}.{path.stem}")
    assert module_of(module) == module.__name__
    text = Path(module.__file__).read_text() + getattr(module, "CHOICES", "")
    named = {int(number) for number in re.findall(r"\(seed (\d+)\)", text)}
    assert named <= {*reported_seeds(1)}


def test_at_most_twelve_claims_are_in_the_short_table():
    modules = [importlib.import_module(f"probes.{path.parent.name}.{path.stem}") for path in PROBES]
    assert sum(bool(rule.headline) for module in modules for rule in module.RULES) <= 12


def test_no_page_claims_to_know_more_than_its_copy():
    for path in PROBES:
        text = path.read_text()
        for phrase in ("not public", "as printed", "falling curves"):
            assert phrase not in text, path
