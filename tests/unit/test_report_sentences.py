"""Every verb's result has sentences in the report, and the numbers in them are those of its tables."""

import pytest
from helpers import slow_patching as slow

from lcalens import Contrast, attribute, exchange, head_kinds, knockout, memory, path, score_parts
from lcalens.views.report.numbers import estimate_of, rows_of
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


def test_knockout(model, contrast):
    found = knockout(model, contrast, heads=HEADS[:1], progress=False)
    share = estimate_of(rows_of(found, None)[0], "recovery")
    assert sentences(found)[0] == (
        f"Where one head does not look at the span 'sentence', {share} of the hijack is gone, over 6 examples."
    )
    assert sentences(knockout(model, contrast, progress=False))[0].startswith("Where all heads do not look")


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
