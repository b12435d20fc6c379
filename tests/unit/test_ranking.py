"""Rankings and agreement on results whose order, overlap and intervals are known beforehand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from lcalens.core.errors import LcalensError
from lcalens.core.results import Result
from lcalens.core.tables import SCHEMA
from lcalens.mechanism.leading import leading
from lcalens.mechanism.ranking import agreement, ranking

SHAPE = (3, 4)
OFFSET = np.array([[0.0, 3.0, -5.0, 0.5], [1.0, -1.5, 2.0, 0.0], [0.25, -0.75, 4.0, -2.5]])


def made(effect, *, kind="attribution", examples=None, direction="restore", **extra):
    count = len(effect)
    names = ("layer", "head", "position", "group")[: effect.ndim - 1]
    if kind == "split":
        names = ("layer", "head", "group")
    axes = {"example": tuple(range(count))}
    axes |= {name: tuple(range(size)) for name, size in zip(names, effect.shape[1:], strict=True)}
    if examples is None:
        examples = pd.DataFrame({"index": range(count), "clean": -9.0 - np.arange(count) / 10, "hijacked": 5.0})
    values = {"total" if kind == "split" else "effect": effect} | extra
    provenance = {"direction": direction, "metric": "logit-difference"}
    return Result(kind=kind, axes=axes, values=values, examples=examples, provenance=provenance)


def patched(effect, direction="restore"):
    """A patching result whose sites change the metric by `effect`."""
    examples = made(effect).examples
    shape = (-1, *(1 for _ in effect.shape[1:]))
    clean, hijacked = (examples[name].to_numpy(float).reshape(shape) for name in ("clean", "hijacked"))
    value = effect + (hijacked if direction == "restore" else clean)
    recovery = (value - hijacked) / (clean - hijacked)
    whole = made(effect, kind="patching", direction=direction, value=value, recovery=recovery)
    return Result(
        kind="patching",
        axes=whole.axes,
        values={"value": value, "recovery": recovery},
        examples=examples,
        provenance=whole.provenance,
    )


def noisy(count=40, noise=0.5, seed=0, offset=OFFSET):
    draw = np.random.default_rng(seed)
    return offset + noise * draw.standard_normal((count, *offset.shape))


def test_order_means_and_intervals():
    result = made(noisy())
    found = ranking(result)
    means = result.values["effect"].mean(0)
    np.testing.assert_allclose(found.values["value"], means)
    expected = np.empty(means.size)
    expected[np.argsort(-np.abs(means).ravel())] = np.arange(1, means.size + 1)
    np.testing.assert_array_equal(found.values["rank"].ravel(), expected)
    table = found.wide()
    assert list(table["rank"]) == list(range(1, 13))
    assert tuple(table[["layer", "head"]].iloc[0]) == (0, 2)
    assert table["value"].iloc[0] == pytest.approx(means[0, 2])
    assert list(found.summary.columns) == ["layer", "head", *SCHEMA]
    assert list(dict.fromkeys(found.summary["quantity"])) == ["rank", "value"]
    np.testing.assert_allclose(found.values["value_low"].ravel(), result.mean("effect")["value_low"])
    np.testing.assert_allclose(found.values["value_high"].ravel(), result.mean("effect")["value_high"])
    assert found.axes == {"layer": (0, 1, 2), "head": (0, 1, 2, 3)}


def test_rank_intervals_say_how_sure_the_order_is():
    sure = ranking(made(noisy(noise=1e-6)))
    distinct = sure.values["rank"] < 11  # two sites have an effect of 0
    np.testing.assert_array_equal(sure.values["rank_low"][distinct], sure.values["rank"][distinct])
    np.testing.assert_array_equal(sure.values["rank_high"][distinct], sure.values["rank"][distinct])
    unsure = ranking(made(noisy(noise=4.0)))
    spread = unsure.values["rank_high"] - unsure.values["rank_low"]
    assert spread.max() > 3
    assert (unsure.values["rank_low"] <= unsure.values["rank"]).all()
    assert (unsure.values["rank"] <= unsure.values["rank_high"]).all()
    assert ((unsure.values["rank_low"] >= 1) & (unsure.values["rank_high"] <= 12)).all()


def test_rank_intervals_are_those_of_a_plain_loop():
    effect = noisy(count=9, noise=3.0)
    found = ranking(made(effect), resamples=200, seed=3, confidence=0.8)
    counts = np.random.default_rng(3).multinomial(9, np.full(9, 1 / 9), size=200)
    drawn = []
    for row in counts:
        mean = np.abs(np.repeat(effect, row, axis=0).mean(0)).ravel()
        drawn.append([1 + (mean > own).sum() for own in mean])
    low = np.quantile(drawn, 0.1, axis=0, method="lower")
    high = np.quantile(drawn, 0.9, axis=0, method="higher")
    np.testing.assert_array_equal(found.values["rank_low"].ravel(), low)
    np.testing.assert_array_equal(found.values["rank_high"].ravel(), high)


def test_ties_share_the_better_rank():
    effect = np.tile([[1.0, -2.0, 2.0, 0.5]], (3, 1, 1))
    assert ranking(made(effect)).values["rank"].tolist() == [[3, 1, 1, 4]]


def test_magnitudes_do_not_cancel():
    effect = np.zeros((4, 1, 2))
    effect[:, 0, 0] = [3, -3, 3, -3]
    effect[:, 0, 1] = 1
    assert ranking(made(effect)).values["rank"].tolist() == [[2, 1]]
    assert ranking(made(effect), by="magnitude").values["rank"].tolist() == [[1, 2]]
    assert ranking(made(effect), by="magnitude").values["value"].tolist() == [[0, 1]]


def test_held_out_effects_are_not_flattered():
    """Pure noise: the leaders look strong where they were chosen, and are nothing elsewhere."""
    draw = np.random.default_rng(0)
    one, two = (draw.standard_normal((30, 20, 10)) for _ in range(2))
    others = pd.DataFrame({"index": range(30, 60), "clean": 0.0, "hijacked": 1.0})
    found = ranking(made(one), held_out=made(two, examples=others)).wide()
    assert found["value"].abs().iloc[:10].min() > 0.3
    assert found["held_out"].iloc[:10].abs().mean() < 0.25
    inside = (found["held_out_low"] <= 0) & (found["held_out_high"] >= 0)
    assert inside.mean() > 0.85
    expected = two.mean(0)
    np.testing.assert_allclose(
        found["held_out"], [expected[layer, head] for layer, head in zip(found["layer"], found["head"], strict=True)]
    )


def test_the_same_examples_are_not_held_out():
    result = made(noisy())
    with pytest.raises(LcalensError, match="40 of its 40 examples"):
        ranking(result, held_out=result)
    # The same index, but another example: its metrics differ.
    others = result.examples.assign(clean=-100.0)
    ranking(result, held_out=made(noisy(seed=1), examples=others))
    named = [
        pd.DataFrame({"fact": [f"{name}{i}" for i in range(40)], "clean": 0.0, "hijacked": 1.0}) for name in ("a", "b")
    ]
    ranking(made(noisy(), examples=named[0]), held_out=made(noisy(seed=1), examples=named[1]))
    with pytest.raises(LcalensError, match="examples are among those ranked"):
        ranking(made(noisy(), examples=named[0]), held_out=made(noisy(seed=1), examples=named[0].iloc[::-1]))


def test_recovery_is_a_ratio_of_means():
    effect = -np.abs(noisy()) - 0.1
    found = ranking(patched(effect))
    examples = patched(effect).examples
    gap = (examples["clean"] - examples["hijacked"]).mean()
    np.testing.assert_allclose(found.values["value"], effect.mean(0) / gap)
    assert found.provenance["quantity"] == "recovery"
    corrupted = ranking(patched(effect, "corrupt"))
    # A site that does nothing has recovery 1 there, and must not lead for it.
    np.testing.assert_array_equal(corrupted.values["rank"], found.values["rank"])
    np.testing.assert_allclose(corrupted.values["value"], effect.mean(0) / gap)
    raw = ranking(patched(effect), quantity="value")
    np.testing.assert_allclose(raw.values["value"], effect.mean(0) + 5)


def test_an_example_that_nothing_moves_does_not_explode():
    effect = noisy()
    result = patched(effect)
    result.examples["clean"] = [5.0 + 1e-12, *result.examples["clean"].iloc[1:]]
    assert np.abs(ranking(result).values["value"]).max() < 5


def test_groups_of_a_split_are_summed():
    parts = np.random.default_rng(0).standard_normal((20, 3, 4, 2))
    parts[:, 0, 0] = np.nan
    found = ranking(made(parts, kind="split"))
    summed = parts.sum(-1).mean(0)
    np.testing.assert_allclose(found.values["value"], summed)
    assert np.isnan(found.values["rank"][0, 0])
    assert np.isnan(found.values["value_low"][0, 0])
    assert np.isnan(found.values["rank_low"][0, 0])
    assert np.nanmax(found.values["rank"]) == 11
    assert found.wide()["rank"].isna().tolist() == [False] * 11 + [True]


def test_positions_are_sites_and_some_examples_lack_them():
    effect = np.random.default_rng(0).standard_normal((20, 2, 2, 3)) + np.arange(3)
    effect[5:, :, :, 0] = np.nan
    found = ranking(made(effect))
    np.testing.assert_allclose(found.values["value"], np.nanmean(effect, 0))
    assert np.isfinite(found.values["value_low"]).all()
    assert len(found.wide()) == 12


def test_clusters_are_resampled_whole():
    relation = np.repeat(np.arange(4), 10)
    effect = noisy(noise=0.1) + relation[:, None, None]
    examples = made(effect).examples.assign(relation=relation)
    result = made(effect, examples=examples)
    wide, narrow = ranking(result, cluster="relation"), ranking(result)
    expected = result.mean("effect", cluster="relation")
    np.testing.assert_allclose(wide.values["value_low"].ravel(), expected["value_low"])
    assert (
        (wide.values["value_high"] - wide.values["value_low"])
        > 1.5 * (narrow.values["value_high"] - narrow.values["value_low"])
    ).all()


def test_one_example_has_no_intervals():
    found = ranking(made(noisy(count=1)))
    assert np.isfinite(found.values["rank"]).all()
    assert np.isnan(found.values["value_low"]).all()
    assert np.isnan(found.values["rank_high"]).all()


def test_rankings_are_kept(tmp_path):
    found = ranking(made(noisy()), cluster=None)
    again = Result.load(found.save(tmp_path / "kept"))
    pd.testing.assert_frame_equal(again.summary, found.summary)
    assert again.provenance["of"]["kind"] == "attribution"


def agreed(*args, **options):
    found = agreement(*args, **options)
    told = {name: found.provenance[name] for name in ("sites", "shared")}
    return found.wide().assign(**told).set_index("measure")


def test_a_result_agrees_with_itself():
    result = made(noisy())
    found = agreed(result, result, k=3)
    assert found["agreement"].tolist() == pytest.approx([1, 1, 1])
    assert found["agreement_low"].tolist() == pytest.approx([1, 1, 1])
    assert found["shared"].tolist() == [40] * 3
    assert found["sites"].tolist() == [12] * 3
    assert found["chance"].tolist() == pytest.approx([0, 0, 0.25])


def test_correlation_and_overlap_by_hand():
    one, two = made(noisy(noise=1.0)), made(noisy(noise=3.0, seed=5))
    found = agreed(one, two, k=4)
    x, y = (result.values["effect"].mean(0).ravel() for result in (one, two))
    assert found.loc["spearman", "agreement"] == pytest.approx(spearmanr(x, y).statistic)
    assert found.loc["spearman of magnitudes", "agreement"] == pytest.approx(spearmanr(abs(x), abs(y)).statistic)
    leading = [set(np.argsort(-abs(z))[:4]) for z in (x, y)]
    assert found.loc["overlap of the top 4", "agreement"] == len(leading[0] & leading[1]) / 4
    assert ((found["agreement_low"] <= found["agreement"]) & (found["agreement"] <= found["agreement_high"])).all()
    assert (found["agreement_low"] < found["agreement_high"]).all()


def test_kinds_are_compared_as_parts_in_the_hijack():
    """Restored or corrupted, as effect or recovery, a head that carries the hijack is the same head."""
    effect = noisy()
    carried = made(-effect[..., None] * np.array([0.25, 0.75]), kind="split")
    results = [made(effect), made(-effect, direction="corrupt"), patched(effect), patched(-effect, "corrupt"), carried]
    for other in results[1:]:
        found = agreed(results[0], other, k=5)
        assert found["agreement"].tolist() == pytest.approx([1, 1, 1])
    raw = agreed(made(effect), patched(effect), k=5, quantity=("effect", "recovery"))
    assert raw.loc["spearman", "agreement"] == pytest.approx(-1, abs=0.1)  # more recovered, less of the metric


def test_only_shared_examples_are_compared():
    effect = noisy(noise=2.0)
    whole = made(effect)
    some = np.array([7, 3, 30, 12])
    part = made(effect[some], examples=whole.examples.iloc[some].reset_index(drop=True))
    found = agreed(whole, part, k=3)
    assert found["shared"].tolist() == [4] * 3
    assert found["agreement"].tolist() == pytest.approx([1, 1, 1])
    # With none in common each is resampled by itself, however many it has.
    apart = made(noisy(count=7, seed=8), examples=whole.examples.iloc[:7].assign(clean=-50.0))
    found = agreed(whole, apart, k=3)
    assert found["shared"].tolist() == [0] * 3
    assert (found["agreement_low"] <= found["agreement_high"]).all()


def test_examples_are_told_apart_by_what_they_are_and_not_by_what_was_measured():
    """Two verbs measure the same runs in bfloat16 as far apart as that rounds; other tokens may measure alike."""
    effect, keys = noisy(noise=2.0), [f"{row:016x}" for row in range(40)]

    def of(rows, sd, keys=keys):
        ends = made(effect).examples[["clean", "hijacked"]].iloc[rows] + sd
        examples = pd.DataFrame({"index": range(len(rows))}).assign(**ends.reset_index(drop=True))
        found = made(effect[rows], examples=examples)
        return replace(found, provenance=found.provenance | {"example_keys": [keys[row] for row in rows]})

    whole, rounded = of(np.arange(40), 0.0), of(np.array([30, 7, 3]), 0.11)
    assert agreed(whole, rounded, k=3)["shared"].tolist() == [3] * 3
    assert agreed(whole, rounded, k=3)["agreement"].tolist() == pytest.approx([1, 1, 1])
    with pytest.raises(LcalensError, match="held_out: 3 of its 3"):
        ranking(whole, held_out=rounded)
    others = of(np.arange(40), 0.0, keys=[f"{row:016x}" for row in range(40, 80)])
    assert agreed(whole, others, k=3)["shared"].tolist() == [0] * 3
    twice = of(np.array([5, 5, 6]), 0.0)
    assert agreed(twice, of(np.array([5, 6]), 0.0), k=3)["shared"].tolist() == [2] * 3


def test_sites_without_an_effect_lead_nothing():
    few = np.zeros((40, 3, 4))
    few[:, 0, :2] = noisy()[:, 0, :2]
    with pytest.raises(LcalensError, match=r"^k: 3 sites cannot lead in b, where 2 of 12"):
        agreement(made(noisy()), made(few), k=3)
    assert agreed(made(noisy()), made(few), k=2).shape[0] == 3
    with pytest.raises(LcalensError, match=r"^a: no site has an effect"):
        agreement(made(few * 0), made(few), k=1)


def test_sides_that_each_sum_to_the_whole_are_not_summed():
    parts = np.ones((4, 2, 2, 3))
    axes = {"example": tuple(range(4)), "head": ("L0H0", "L1H1"), "side": ("query", "key"), "part": ("a", "b", "c")}
    result = Result(kind="score-parts", axes=axes, values={"score": parts}, examples=pd.DataFrame({"i": range(4)}))
    with pytest.raises(LcalensError, match=r"^result: .* two sides"):
        ranking(result)


def test_noise_agrees_as_often_as_chance():
    draw = np.random.default_rng(1)
    overlaps = []
    for _ in range(60):
        one, two = (made(draw.standard_normal((5, 5, 8))) for _ in range(2))
        found = agreed(one, two, k=10, resamples=2)
        overlaps.append(found["agreement"].iloc[2])
    assert np.mean(overlaps) == pytest.approx(found["chance"].iloc[2], abs=0.04)


def test_arguments_that_cannot_be_used():
    result = made(noisy())
    plain = getattr(ranking, "__wrapped__", ranking), getattr(agreement, "__wrapped__", agreement)
    curve = Result(
        kind="curve", axes={"example": (0,)}, values={"loss": np.zeros(1)}, examples=pd.DataFrame({"a": [1]})
    )
    other = made(noisy(offset=OFFSET[:2]))
    for call, named in (
        (lambda: plain[0](result, quantity="recovery"), "quantity: 'recovery' is not one of effect"),
        (lambda: plain[0](result, by="size"), "by: 'size'"),
        (lambda: plain[0](result, cluster="relation"), "cluster: 'relation'"),
        (lambda: plain[0](result, held_out=other), "held_out: its sites"),
        (lambda: plain[0](result, resamples=0), "resamples"),
        (lambda: plain[0](result, confidence=2.0), "confidence"),
        (lambda: plain[0](curve), "result: a result of kind 'curve'"),
        (lambda: plain[0](result.summary), "result: expected a Result"),
        (lambda: plain[0](ranking(result)), "result: a result of kind 'ranking'"),
        (lambda: plain[1](result, other), "b: its sites"),
        (lambda: plain[1](result, result, k=13), "k: "),
        (lambda: plain[1](result, result, quantity=("effect",)), "quantity"),
        (lambda: plain[1](result, 3), "b: expected a Result"),
    ):
        with pytest.raises(LcalensError, match=named):
            call()


def test_agreement_is_a_result_that_is_kept(tmp_path):
    found = agreement(made(noisy()), made(noisy(seed=2)), k=3)
    again = Result.load(found.save(tmp_path / "kept"))
    pd.testing.assert_frame_equal(again.summary, found.summary)
    assert found.axes["measure"] == ("spearman", "spearman of magnitudes", "overlap of the top 3")
    frame = found.to_frame().set_index(["measure", "quantity"])
    assert frame.loc[("spearman", "agreement"), "unit"] == "share"


# --- the leading heads ----------------------------------------------------------------------------------------------


def test_leading_heads_by_either_rule_against_a_sort():
    effect = noisy(noise=0.2)
    for result in (made(effect), made(-effect, direction="corrupt"), patched(effect), patched(-effect, "corrupt")):
        carried = -effect.mean(0)  # a hijack is carried by what lowers the metric when it is restored
        places = [(layer, head) for layer in range(3) for head in range(4)]
        assert list(leading(result, 12)) == sorted(places, key=lambda at: -abs(carried[at]))
        carrying = sorted((at for at in places if carried[at] > 0), key=lambda at: -carried[at])
        assert list(leading(result, 2, by="carrying")) == carrying[:2]
        assert list(leading(result, 12, by="carrying")) == carrying, "heads that work against the hijack"
        assert 2 < len(carrying) < 12
    split = made(np.stack([effect, effect], -1), kind="split")
    assert list(leading(split, 2, by="carrying")) == sorted(places, key=lambda at: carried[at])[:2]
    with pytest.raises(LcalensError, match=r"^by: no head raises"):
        leading(made(np.abs(effect)), 3, by="carrying")


def test_the_rule_is_told_with_the_heads():
    found = leading(patched(noisy()), 2)
    assert str(found) == "L0H2, L2H2 (largest mean recovery of either sign, of 40 examples)"
    assert "that raises the metric" in leading(patched(noisy()), 2, by="carrying").rule
    assert "direct effect" in leading(made(np.stack([noisy()], -1), kind="split"), 2).rule
    assert list(leading(patched(noisy()), 2)) == [
        (int(row.layer), int(row.head)) for row in ranking(patched(noisy())).wide().head(2).itertuples()
    ]


def test_heads_that_have_not_one_effect_each_do_not_lead():
    positions = made(np.zeros((4, 2, 2, 3)))
    layers = made(np.zeros((4, 2)))
    for result in (positions, layers, "x"):
        with pytest.raises(LcalensError, match=r"^result: "):
            getattr(leading, "__wrapped__", leading)(result)


def test_heads_lead_by_their_direct_paths_to_one_receiver():
    effect = noisy().reshape(40, 12, 1)
    names = tuple(f"L{layer}H{head}" for layer in range(3) for head in range(4))
    effect[:, 0] = np.nan  # a sender that does not stand before the receiver
    parts = np.concatenate([effect, np.full((40, 2, 1), 99.0)], 1)  # an MLP and the embedding lead, and are no heads
    axes = {"example": tuple(range(40)), "sender": (*names, "MLP1", "embed"), "receiver": ("logits",)}
    found = Result(kind="path", axes=axes, values={"effect": parts}, examples=made(noisy()).examples)
    means = {divmod(at, 4): float(effect[:, at].mean()) for at in range(1, 12)}
    assert list(leading(found, 20, by="carrying")) == sorted(
        (at for at in means if means[at] > 0), key=lambda at: -means[at]
    )
    assert list(leading(found, 3)) == sorted(means, key=lambda at: -abs(means[at]))[:3]
    assert leading(found, 3).rule.startswith("largest mean path")
    two = Result(kind="path", axes=axes | {"receiver": ("L3H0", "logits")}, values={"effect": parts.repeat(2, 2)},
                 examples=found.examples)  # fmt: skip
    with pytest.raises(LcalensError, match=r"^result"):
        leading(two)
