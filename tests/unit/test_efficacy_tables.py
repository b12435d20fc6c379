"""The tables of an efficacy result from log odds written down by hand: ties, gaps, subsets, controls, corrections."""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from lcalens.core.statistics import holm, wilson
from lcalens.core.tables import SCHEMA, widen
from lcalens.llm.efficacy.tables import summarise

NAN = math.nan
SCHEMES, COUNTS = ("dont-think", "neutral"), (0, 1)
RELATION = ["P36", "P36", "P36", "P17", "P17", "P17"]
KNOWN = [True, True, False, True, False, True]
# logp_false - logp_true of six facts, at n = 0 and n = 1; the clean prompt is the same for both schemes.
ODDS = {
    "dont-think": [(-2, 3), (-1, 0), (-1, 2), (1, 2), (0, 1), (-3, NAN)],
    "neutral": [(-2, -1), (-1, 1), (-1, -2), (1, -1), (0, -1), (-3, -4)],
}
CLEAN_TRUE = [0, 1, 2, 5]  # where the true object is likelier, a tie being neither


@pytest.fixture(scope="module")
def tables():
    odds = np.array([[ODDS[scheme][fact] for scheme in SCHEMES] for fact in range(6)], dtype=float)
    true = np.linspace(-9, -4, 6)[:, None, None] + 0 * odds
    examples = pd.DataFrame({"relation_id": RELATION, "known": KNOWN})
    axes = {"example": tuple(range(6)), "scheme": SCHEMES, "n": COUNTS}
    values = {"logp_true": true, "logp_false": true + odds}
    return summarise(examples, axes, values, Counter({("dont-think", 1, "too long"): 1}), seed=0)


MEMBERS = {"all": range(6), "known": [0, 1, 3, 5], "prefers-true": CLEAN_TRUE}


def complete(scheme):
    return [fact for fact in range(6) if not any(map(math.isnan, ODDS[scheme][fact]))]


def wins(scheme, n, facts):
    """A tie is no win: the false object must be likelier."""
    return [ODDS[scheme][fact][n] > 0 for fact in facts]


@pytest.mark.parametrize("subset", MEMBERS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("n", COUNTS)
def test_scores_of_each_subset_are_counted_on_facts_that_have_every_n(tables, subset, scheme, n):
    facts = [fact for fact in complete(scheme) if fact in MEMBERS[subset]]
    frame = widen(tables["summary"])
    (row,) = frame[(frame["subset"] == subset) & (frame["scheme"] == scheme) & (frame["n"] == n)].itertuples()
    hijacked = wins(scheme, n, facts)
    assert row.facts == len(facts)
    assert row.es == pytest.approx(sum(hijacked) / len(facts))
    assert row.retention == pytest.approx(1 - row.es)
    assert (row.es_low, row.es_high) == pytest.approx(wilson(sum(hijacked), len(facts)))
    assert (row.retention_low, row.retention_high) == pytest.approx((1 - row.es_high, 1 - row.es_low))
    assert row.log_odds == pytest.approx(np.mean([ODDS[scheme][fact][n] for fact in facts]))
    if n:
        change = np.subtract(hijacked, wins(scheme, 0, facts), dtype=float)
        assert row.change == pytest.approx(change.mean())
        assert row.change_low <= row.change <= row.change_high
    assert math.isnan(row.mcnemar_p) == (n == 0 or subset != "all")


def exact_p(before, after):
    gained = sum(b and not a for a, b in zip(before, after, strict=True))
    lost = sum(a and not b for a, b in zip(before, after, strict=True))
    return binomtest(gained, gained + lost).pvalue if gained + lost else 1.0


def test_a_test_compares_the_same_facts_clean_and_hijacked(tables):
    frame = widen(tables["summary"]).query("subset == 'all' and n == 1").set_index("scheme")
    for scheme in SCHEMES:
        facts = complete(scheme)
        assert frame.loc[scheme, "mcnemar_p"] == pytest.approx(exact_p(wins(scheme, 0, facts), wins(scheme, 1, facts)))
    assert frame.loc["dont-think", "mcnemar_p"] == 0.25  # three gained, none lost
    assert frame.loc["neutral", "mcnemar_p"] == 1  # one gained, one lost


@pytest.mark.parametrize("subset", MEMBERS)
@pytest.mark.parametrize("n", COUNTS)
def test_a_control_is_compared_on_the_facts_that_both_have(tables, subset, n):
    frame = widen(tables["controls"])
    (row,) = frame.query("subset == @subset and n == @n and control == 'neutral'").itertuples()
    facts = [fact for fact in complete("dont-think") if fact in MEMBERS[subset] and fact in complete("neutral")]
    ours, theirs = (wins(scheme, n, facts) for scheme in SCHEMES)
    assert row.facts == len(facts)
    assert (row.es, row.es_control) == pytest.approx((np.mean(ours), np.mean(theirs)))
    assert row.difference == pytest.approx(np.mean(ours) - np.mean(theirs))
    if subset == "all" and n:
        assert row.mcnemar_p == pytest.approx(exact_p(theirs, ours))
    else:
        assert math.isnan(row.mcnemar_p)


def test_all_tests_of_a_study_are_corrected_together(tables):
    summary, controls = widen(tables["summary"]), widen(tables["controls"])
    corrected = holm([*summary["mcnemar_p"], *controls["mcnemar_p"]])
    assert [*summary["holm_p"], *controls["holm_p"]] == pytest.approx(corrected, nan_ok=True)
    assert np.isfinite(corrected).sum() == 3


def test_relations_have_their_own_scores(tables):
    frame = widen(tables["by_relation"]).set_index(["relation_id", "scheme", "n"])
    for relation in ("P36", "P17"):
        for scheme in SCHEMES:
            facts = [fact for fact in complete(scheme) if RELATION[fact] == relation]
            for n in COUNTS:
                row = frame.loc[(relation, scheme, n)]
                assert row["facts"] == len(facts)
                assert row["es"] == pytest.approx(np.mean(wins(scheme, n, facts)))
    assert len(frame) == 8


@pytest.mark.parametrize("name", ["summary", "controls", "by_relation"])
def test_the_tables_are_long(tables, name):
    table = tables[name]
    at = list(table.columns).index(SCHEMA[0])
    assert tuple(table.columns[at:]) == (*SCHEMA, "facts")
    units = dict(zip(table["quantity"], table["unit"], strict=True))
    assert units["es"] == "share"
    assert set(units.values()) <= {"share", "nats", "probability"}
    assert not table.duplicated([*table.columns[:at], "quantity"]).any()


def test_what_was_impossible_is_counted(tables):
    assert tables["impossible"].to_dict("records") == [
        {"scheme": "dont-think", "n": 1, "reason": "too long", "facts": 1}
    ]


def test_counts_that_differ_between_quantities_stand_beside_theirs():
    """A place stays one row, whatever each of its quantities was counted over."""
    estimate = {"value": 0.5, "value_low": 0.4, "value_high": 0.6, "unit": "share"}
    places = (("a", "es", 10), ("a", "returned", 4), ("b", "es", 10))
    rows = [{"condition": place, "quantity": name, **estimate, "n": n} for place, name, n in places]
    wide = widen(pd.DataFrame(rows))
    assert list(wide["condition"]) == ["a", "b"]
    assert list(wide["es_n"]) == [10, 10]
    assert wide["returned_n"].tolist() == [4, pd.NA]
    same = widen(pd.DataFrame(rows).assign(n=7))
    assert list(same.columns[:2]) == ["condition", "n"]
    assert "es_n" not in same
    told_apart = pd.DataFrame([rows[0], rows[0] | {"n": 3, "value": 0.1}])
    assert list(widen(told_apart)["n"]) == [10, 3]
