"""`head_kinds` against the public measurements it is made of, its rule anew, and heads planted by hand."""

import numpy as np
import pytest
import torch
from helpers import slow_patching as slow
from helpers import standins
from helpers.closeness import assert_near, rounding
from matrix.families import boot

from lcalens.core.errors import LcalensError
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.kinds import head_kinds
from lcalens.mechanism.patch import patch
from lcalens.mechanism.path import path

HEADS = ((0, 1), (0, 3), (1, 0), (1, 2), (2, 0), (2, 1), (2, 3))
COUNTED = ["mover", "amplifier", "counter", "mover and amplifier", "none"]


def contrast_of(case, words=None, which=slice(None), clusters=None):
    """Answers in the order in which the hijack raises the metric; the word is where a head looks, or positions 2, 3."""
    ends = slow.ends("logit-difference", case)
    raised = (ends[1] > ends[0])[:, None]
    true, false = case.true[:, None], case.false[:, None]
    words = [(2, 4)] * len(case.clean) if words is None else [(int(at), int(at) + 1) for at in words]
    whole = Contrast(
        case.clean, case.hijacked, spans={"word": words}, true=torch.where(raised, true, false),
        false=torch.where(raised, false, true),
    )  # fmt: skip
    if clusters is not None:
        whole = Contrast(
            whole.clean, whole.hijacked, spans={"word": words}, true=whole.true,
            false=whole.false, examples=whole.examples.assign(cluster=clusters),
        )  # fmt: skip
    return whole[which]


def pattern_of(model, case, layer, head):
    """Where the head looks from the last position of the hijacked run."""
    return slow.kept(model, case.hijacked, "pattern")[layer][:, head, -1]


def percentiles(part, whole, clusters):
    """The ends of a 95% bootstrap interval of a ratio of means, one resample at a time."""
    groups = [np.flatnonzero(clusters == one) for one in np.unique(clusters)]
    draws = np.random.default_rng(0).multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=2000)
    found = []
    for counts in draws:
        rows = np.concatenate([np.tile(group, times) for group, times in zip(groups, counts, strict=True)])
        found.append(part[rows].mean(0) / whole[rows].mean())
    return np.quantile(found, [0.025, 0.975], axis=0)


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_it_is_what_path_and_patch_say(standin, family, clustered):
    model = standin(family).model
    case = slow.case(model, batch=12)
    clusters = np.arange(12) // 3 if clustered else None
    contrast = contrast_of(case, clusters=clusters)
    found = head_kinds(model, contrast, HEADS, threshold=0.02, progress=False)
    labels = [f"L{layer}H{head}" for layer, head in HEADS]
    assert list(found.axes["head"]) == labels
    patched = patch(model, contrast, progress=False)
    ends = patched.examples[["clean", "hijacked"]].to_numpy()
    whole = ends[:, 1] - ends[:, 0]
    total = np.stack([ends[:, 1] - patched.values["value"][:, layer, head] for layer, head in HEADS], 1)
    alone = [path(model, contrast, senders=[head], progress=False).values["effect"][:, 0, 0] for head in HEADS]
    direct = np.stack(alone, 1)
    near = {"effect": whole, "rounding": rounding(torch.float32, ends, 64)}
    assert_near(found.values["total"], total, **near)
    assert_near(found.values["direct"], direct, **near)
    others = [1, *range(4, case.hijacked.shape[1] - 1)]
    looks = np.stack(
        [(paid[:, [2, 3]].mean(1) - paid[:, others].mean(1)).numpy()
         for paid in (pattern_of(model, case, *head).double() for head in HEADS)], 1,
    )  # fmt: skip
    assert_near(found.values["looks"], looks, effect=1.0)
    assert_near(found.values["on_keys"] - found.values["on_others"], looks, effect=1.0)
    groups = np.arange(12) if clusters is None else clusters
    one = np.ones(len(whole))
    movers = (percentiles(direct, whole, groups)[0] > 0.02) & (percentiles(looks, one, groups)[0] > 0)
    heard = np.zeros_like(total)
    for receiver in HEADS:
        for sender in np.array(HEADS)[movers]:
            if sender[0] < receiver[0]:
                for at in "qkv":
                    told = path(model, contrast, senders=[tuple(sender)], receivers=[receiver], at=at,
                                positions="last", progress=False)  # fmt: skip
                    heard[:, HEADS.index(receiver)] += told.values["effect"][:, 0, 0]
    assert_near(found.values["heard"], heard, **near)
    table = found.wide()
    assert table["mover"].tolist() == movers.tolist()
    amplifiers = (percentiles(total, whole, groups)[0] > 0.02) & (percentiles(heard, whole, groups)[0] > 0.02)
    assert table["amplifier"].tolist() == amplifiers.tolist()
    highs = [percentiles(effect, whole, groups)[1] for effect in (direct, total)]
    assert table["counter"].tolist() == ((highs[0] < -0.02) | (highs[1] < -0.02)).tolist()
    named = [", ".join(kind for kind in COUNTED[:3] if row[kind]) or "none" for _, row in table.iterrows()]
    assert table["kind"].tolist() == named
    counts = found.wide("counts").set_index("kind")
    assert counts["count"].tolist() == [
        movers.sum(), amplifiers.sum(), table["counter"].sum(), (movers & amplifiers).sum(), named.count("none")
    ]  # fmt: skip


def amplify(model, head, factor):
    """Multiplies what a head of the last layer writes."""
    width = model.cfg.d_head
    with torch.no_grad():
        model.blocks[2].attn.o.original_component.weight[:, head * width : (head + 1) * width] *= factor


def planted(head=3):
    """A LLaMA stand-in one of whose last heads is loud enough to say most of the hijack, and looks at the word."""
    model = boot("llama")
    amplify(model, head, 4)
    case = slow.case(model, batch=12)
    words = pattern_of(model, case, 2, head)[:, 1:-1].argmax(-1) + 1
    return model, case, contrast_of(case, words), head


def test_a_head_that_looks_at_the_word_and_says_it_is_a_mover_and_negated_it_is_a_counter():
    model, _, contrast, head = planted()
    heads = [(2, other) for other in range(4)]
    before = head_kinds(model, contrast, heads, progress=False).wide().iloc[head]
    assert before["kind"] == "mover"
    amplify(model, head, -0.5)  # all else says what it said, so half as loud it does not turn the hijack
    after = head_kinds(model, contrast, heads, progress=False).wide().iloc[head]
    assert after["kind"] == "counter"
    assert after["looks"] == before["looks"]


def test_a_head_that_does_not_look_at_the_word_is_no_mover():
    model, case, _, head = planted()
    least = pattern_of(model, case, 2, head)[:, 1:-1].argmin(-1) + 1
    found = head_kinds(model, contrast_of(case, least), [(2, head)], progress=False).wide()
    assert found["direct_share_low"][0] > 0.01
    assert not found["mover"][0]
    assert found["looks_high"][0] < 0


def test_the_counts_by_means_are_the_rule_in_resamples_and_under_signs(standin):
    model = standin("llama").model
    contrast = contrast_of(slow.case(model, batch=12))
    found = head_kinds(model, contrast, HEADS, threshold=0.02, progress=False)
    ends = found.examples[["clean", "hijacked"]].to_numpy()
    whole, values = ends[:, 1] - ends[:, 0], found.values

    def movers(rows):
        limit = 0.02 * whole[rows].mean()
        return ((values["direct"][rows].mean(0) > limit) & (values["looks"][rows].mean(0) > 0)).sum()

    def counters(rows):
        limit = -0.02 * whole[rows].mean()
        return ((values["direct"][rows].mean(0) < limit) | (values["total"][rows].mean(0) < limit)).sum()

    draws = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=2000)
    table = found.wide("counts").set_index("kind")
    for kind, count in (("mover", movers), ("counter", counters)):
        assert table.loc[kind, "by_means"] == count(np.arange(12))
        drawn = [count(np.repeat(np.arange(12), times)) for times in draws]
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert (table.loc[kind, "by_means_low"], table.loc[kind, "by_means_high"]) == (low, high)
    flipped = []
    for sign in np.random.default_rng(0).choice([-1.0, 1.0], (200, 12))[:40]:
        direct, looks = (values[name] * sign[:, None] for name in ("direct", "looks"))
        groups = np.arange(12)
        above = percentiles(direct, whole, groups)[0] > 0.02
        flipped.append((above & (percentiles(looks, np.ones(12), groups)[0] > 0)).sum())
    assert abs(table.loc["mover", "by_chance"] - np.mean(flipped)) <= 4 * (np.std(flipped) + 0.1) / np.sqrt(40)


def test_finished_examples_are_kept_and_runs_of_other_lengths_have_queries_alone(standin, tmp_path):
    model = standin("llama").model
    case = slow.case(model, batch=6)
    contrast = contrast_of(case)
    first = head_kinds(model, contrast, HEADS, out=tmp_path, progress=False)
    files = sorted(tmp_path.rglob("*"))
    assert files
    again = head_kinds(model, contrast, HEADS, out=tmp_path, progress=False)
    assert sorted(tmp_path.rglob("*")) == files
    for name, array in first.values.items():
        np.testing.assert_array_equal(again.values[name], array)
    assert first.provenance["paths"] == ["q", "k", "v"]
    ends = slow.ends("logit-difference", case)
    shorter = Contrast(case.clean[:, 1:], case.hijacked, true=contrast.true, false=contrast.false)
    patched = patch(model, shorter, progress=False).examples
    if patched["hijacked"].mean() <= patched["clean"].mean():
        shorter = Contrast(case.clean[:, 1:], case.hijacked, true=contrast.false, false=contrast.true)
    assert len(ends[0]) == len(shorter)
    assert head_kinds(model, shorter, HEADS, keys=[2, 3], progress=False).provenance["paths"] == ["q"]


def test_the_toys_head_is_told(standin):
    toy = standins.loud_toy()
    contrast = contrast_of(slow.case(toy, length=8, changed=(0, 2, 3, 5, 7), seed=3, batch=8))
    found = head_kinds(toy, contrast, [(0, 0)], progress=False)
    whole = (found.examples["hijacked"] - found.examples["clean"]).to_numpy()
    near = {"effect": whole, "rounding": rounding(torch.float32, found.examples["hijacked"], 8)}
    assert_near(found.values["direct"][:, 0], whole, **near)
    assert_near(found.values["total"][:, 0], whole, **near)
    assert not found.values["heard"].any()


def test_a_hijack_that_does_not_raise_the_metric_is_refused(standin):
    model = standin("llama").model
    contrast = contrast_of(slow.case(model, batch=6))
    other = Contrast(contrast.clean, contrast.hijacked, true=contrast.false, false=contrast.true,
                     spans={"word": [(2, 4)] * 6})  # fmt: skip
    with pytest.raises(LcalensError, match=r"^contrast: its hijack changes the metric by -"):
        head_kinds(model, other, HEADS, progress=False)
