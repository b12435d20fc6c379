"""Every verb's result has sentences in the report, and the numbers in them are those of its tables."""

import numpy as np
import pandas as pd
import pytest
from helpers import slow_patching as slow
from helpers.standins import loud_toy

from lcalens import (
    Contrast,
    LatentConcepts,
    Result,
    attribute,
    contrast_concepts,
    exchange,
    head_kinds,
    knockout,
    memory,
    patch,
    path,
    ranking,
    recall,
    score_parts,
    shapley,
    split,
)
from lcalens.core.tables import lengthen
from lcalens.views.report.numbers import estimate, estimate_of, rows_of
from lcalens.views.report.tables import tables_of
from lcalens.views.report.words import sentences

HEADS = [(0, 1), (1, 0), (1, 2)]


@pytest.fixture
def model(standin):
    return standin("llama").model


@pytest.fixture
def contrast(model):
    case = slow.case(model, length=10, batch=6)
    rows = {side: getattr(case, side).tolist() for side in ("clean", "hijacked")}
    true, false = case.true[:, None].tolist(), case.false[:, None].tolist()
    return Contrast(**rows, true=true, false=false, spans={"sentence": [[(1, 4)]] * 6})


@pytest.fixture(scope="module")
def toys():
    """A toy of one head, and a contrast for it."""
    return loud_toy(), contrast_concepts(LatentConcepts(4), limit=12, length=8, seed=0)


def mixed():
    """One example of equal lengths, and three whose hijacked run has two tokens more."""
    clean = [[2, 10, 30, 40, 35], [2, 30, 40, 35], [2, 32, 40, 36], [2, 33, 41, 36]]
    hijacked = [[2, 10, 31, 40, 35], [2, 11, 12, 31, 40, 35], [2, 11, 13, 31, 40, 36], [2, 11, 13, 35, 41, 36]]
    return Contrast(clean, hijacked, true=34, false=37)


def test_knockout(model, contrast):
    found = knockout(model, contrast, heads=HEADS[:1], progress=False)
    share = estimate_of(rows_of(found, None)[0], "recovery")
    assert sentences(found)[0] == (
        f"Where one head does not look at the span 'sentence', {share} of the hijack is gone, over 6 examples."
    )
    assert sentences(knockout(model, contrast, progress=False))[0].startswith("Where all heads do not look")


def test_knockout_of_each_head_names_the_head_that_takes_most(model, contrast):
    found = knockout(model, contrast, heads="each", progress=False)
    rows = rows_of(found, None)
    best = max(rows, key=lambda row: row["recovery"])
    (said,) = sentences(found)[:1]
    assert said.startswith(f"Of {len(rows)} heads, each by itself kept from looking at the span 'sentence', ")
    assert f"L{best['layer']}H{best['head']} takes most of the hijack away: {estimate_of(best, 'recovery')}, " in said
    assert best != rows[0]


def test_knockout_of_the_only_head(toys):
    toy, contrast = toys
    found = knockout(toy, contrast, span="redrawn", positions="last", heads="each", progress=False)
    share = estimate_of(rows_of(found, None)[0], "recovery")
    assert sentences(found)[0] == (
        f"Where L0H0 does not look at the span 'redrawn', {share} of the hijack is gone, over 12 examples."
    )


@pytest.mark.parametrize("verb", [patch, attribute])
def test_heads_at_positions_are_counted_as_sites_and_named_with_them(model, verb):
    found = verb(model, mixed(), positions="each", progress=False)
    rows = [row for row in rows_of(found, None) if not np.isnan(row["recovery"])]
    best = max(rows, key=lambda row: row["recovery"])
    (said,) = sentences(found)[:1]
    heads = {(row["layer"], row["head"]) for row in rows}
    assert len(rows) > len(heads)
    assert said.startswith(f"Of {len(rows)} sites (a head at a position), ")
    label = found.provenance["position_labels"][best["position"]]
    named = f"L{best['layer']}H{best['head']} at position {best['position']}"
    assert named + (f" ({label})" if not label.startswith("−") else "") in said
    assert estimate_of(best, "recovery") in said
    (said,) = sentences(ranking(found))
    first = rows_of(ranking(found), None)[0]
    assert f"L{first['layer']}H{first['head']} at position {first['position']}: " in said


def test_layers_are_ranked_by_their_numbers(model, contrast):
    found = ranking(patch(model, contrast, site="resid_pre", progress=False))
    first = rows_of(found, None)[0]
    count = len(rows_of(found, None))
    assert sentences(found)[0].startswith(f"The first of {count} is layer {first['layer']}: recovery ")


def test_a_position_that_few_examples_have_is_told_with_their_number():
    values = np.array([[[[0.9, 0.2]]], [[[np.nan, 0.4]]], [[[np.nan, -0.1]]]])
    wide = pd.DataFrame({"layer": 0, "head": 0, "position": [-2, -1], "recovery": [0.9, 0.3]})
    found = Result(kind="patching", axes={"example": (0, 1, 2), "layer": (0,), "head": (0,), "position": (-2, -1)},
                   values={"value": values}, examples=pd.DataFrame({"index": range(3)}),
                   tables={"summary": lengthen(wide, {"recovery": "share"})},
                   provenance={"examples": 3, "position_labels": ["cat", "−1"]})  # fmt: skip
    (said,) = sentences(found)
    assert "L0H0 at position -2 (cat) brings back most: 0.90 of the way" in said
    assert "over the 1 of 3 examples that have this position" in said
    assert "The smallest is that of L0H0 at position -1: 0.30, over 3 examples." in said


def test_attribution_of_what_is_put_into_the_clean_run(model, contrast):
    found = attribute(model, contrast, direction="corrupt", progress=False)
    best = min(rows_of(found, None), key=lambda row: row["recovery"])
    share = estimate(
        *(1 - best[name] if name in best else None for name in ("recovery", "recovery_high", "recovery_low"))
    )
    said = sentences(found)[0]
    assert (
        f"L{best['layer']}H{best['head']} has the largest 1 - recovery: {share}, over 6 examples. 1 - recovery" in said
    )


def test_parts_of_a_split_are_told_with_how_many_examples_they_are_of(model):
    found = split(model, mixed(), progress=False, twin=0)
    whole = found.tables["summary"].query("group == 'all'").set_index("quantity")
    assert whole["n"].to_dict() == {"attention": 1, "recall": 1, "scale": 1, "inserted": 3, "shared": 3, "total": 4}
    told = {part: estimate(*row, signed=True) for part, row in whole[["value", "value_low", "value_high"]].T.items()}
    said = sentences(found)[0]
    assert (
        f"heads write {told['total']} directly, over 4 examples. Over the 1 example whose runs are of one length"
        in said
    )
    assert f"{told['attention']} is because they look elsewhere, {told['recall']} because" in said
    assert f"{told['scale']} because the final norm's scale is another" in said
    assert f"Over the 3 examples whose runs' lengths differ, {told['inserted']} comes from" in said
    assert f"{told['shared']} from all others, undivided. These means are over different examples" in said
    table = tables_of(found)[0]
    (cells,) = [[entry.text for entry in row] for row in table.rows if row[0].text == "all"]
    assert [cell[-7:] for cell in cells[1:]] == [f"(n = {n})" for n in whole["n"]]


def test_a_split_of_equal_lengths_has_one_count_and_of_others_no_division(model, contrast):
    found = split(model, contrast, progress=False, twin=0)
    whole = rows_of(found, None, group="all")[0]
    said = sentences(found)[0]
    assert f"directly: {estimate_of(whole, 'attention', signed=True)} because they look elsewhere, " in said
    assert said.endswith("because what they look at recalls something else.")
    assert "n = " not in "".join(entry.text for row in tables_of(found)[0].rows for entry in row)
    found = split(model, mixed()[[1, 2, 3]], progress=False, twin=0)
    whole = rows_of(found, None, group="all")[0]
    said = sentences(found)[0]
    assert "not measured" not in said
    assert (
        f"directly: {estimate_of(whole, 'inserted', signed=True)} comes from positions that one run alone has" in said
    )


def test_the_first_player_is_the_one_of_the_largest_shapley_value(toys):
    found = shapley(*toys, players="tokens", progress=False, samples=4)
    best = max(rows_of(found, None), key=lambda row: row["shapley"])
    said = sentences(found)[0]
    assert f"Token {best['token']} has the largest Shapley value: {estimate_of(best, 'shapley')} logits (" in said
    assert f"its share of the hijack is {estimate_of(best, 'share')}." in said


def test_a_larger_share_of_a_smaller_value_is_not_called_the_largest():
    wide = pd.DataFrame({"token": [3, 9], "shapley": [1.25, 0.5], "alone": [1.0, 0.25], "share": [1.05, 11.2]})
    parts = pd.DataFrame({"part": ["together", "each alone, summed"], "effect": [1.75, 1.25], "share": [1.0, 0.7]})
    units = {"shapley": "logits", "alone": "logits", "share": "share"}
    found = Result(kind="shapley", axes={"token": (3, 9)}, values={}, units=units,
                   tables={"summary": lengthen(wide, units),
                           "together": lengthen(parts, {"effect": "logits", "share": "share"})})  # fmt: skip
    assert sentences(found)[0].endswith(
        "Token 3 has the largest Shapley value: 1.25 logits (1.00 alone); its share of the hijack is 1.05."
    )


def test_recalls_p_stands_behind_what_it_tests(model):
    found = recall(model, {30: [31], 32: [33], 34: [35], 36: []}, [(0, 0), (1, 1)], draws=10, progress=False)
    tests = {row["head"]: row["p_holm"] for row in rows_of(found, "tests")}
    for said, row in zip(sentences(found), rows_of(found, None), strict=True):
        left = f"{estimate_of(row, 'left')} sd (p = {tests[row['head']]:.3f} against random circuits"
        assert f"own token and similarity regressed out, is {left}" in said
        assert f"AUC {estimate_of(row, 'related_auc')}; their lead" in said


def test_exchange(model, contrast):
    found = exchange(model, contrast, sets=[HEADS[:1], HEADS], progress=False)
    said = sentences(found)
    assert len([one for one in said if one.startswith("Set ")]) == 2
    assert all(estimate_of(row, "recovery") in " ".join(said) for row in rows_of(found, None))


def test_attribution(model, contrast):
    found = attribute(model, contrast, progress=False)
    best = max(rows_of(found, None), key=lambda row: row["recovery"])
    assert (
        f"L{best['layer']}H{best['head']} has the largest recovery: {estimate_of(best, 'recovery')}"
        in (sentences(found)[0])
    )


def test_path(model, contrast):
    found = path(model, contrast, senders="heads", receivers=[(1, 0)], at="q", progress=False)
    said = sentences(found)
    best = max(rows_of(found, None), key=lambda row: row["share"])
    (whole,) = rows_of(found, "receivers")
    assert f"takes {estimate_of(whole, 'share')} of the hijack away" in said[0]
    assert f"{best['sender']}'s direct path carries most: {estimate_of(best, 'share')}" in said[0]
    assert said[-1].startswith("The largest of so many")


def test_score_parts(model, contrast):
    found = score_parts(model, contrast, heads=HEADS[:2], keys=[3], progress=False)
    said = sentences(found)
    for row, sentence in zip(rows_of(found, "heads"), said, strict=True):
        assert sentence.startswith(f"{row['head']}'s score for the object is {estimate_of(row, 'score', signed=True)}")
        assert "on the query side" in sentence
        assert "on the key side" in sentence


def test_head_kinds_and_memory_name_what_they_found(model):
    case = slow.case(model, length=10, batch=12)
    rows = {side: getattr(case, side).tolist() for side in ("clean", "hijacked")}
    made = Contrast(**rows, true=case.true[:, None].tolist(), false=case.false[:, None].tolist(),
                    spans={"word": [[(3, 4)]] * 12})  # fmt: skip
    kinds = head_kinds(model, made, HEADS, keys=[3], progress=False)
    said = sentences(kinds)
    for column, sentence in zip(("mover", "amplifier", "counter"), said, strict=False):
        count = int(kinds.wide()[column].sum())
        assert sentence.startswith(f"{count} of 3 heads ")
    cues = sorted({row[3] for row in made.hijacked})
    pairs = {cue: cue + 1 for cue in cues}
    found = memory(model, made, head=(1, 0), pairs=pairs, level="embedding", draws=2, progress=False)
    said = sentences(found)
    held = {row["memory"]: row for row in rows_of(found, "held_out")}
    assert said[0].startswith("The head's own circuit ranks the answers of held-out cues above others: AUC")
    assert estimate_of(held["sum"], "auc") in " ".join(said)
