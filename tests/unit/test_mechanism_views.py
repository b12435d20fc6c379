"""Figures of the mechanism and attention views: they show the tables' numbers and the model's patterns."""

import dataclasses
import html
import io
import re

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import cbook, colors
from matplotlib.collections import PolyCollection

import lcalens
from lcalens import views
from lcalens.core.errors import LcalensError
from lcalens.core.provenance import fingerprint
from lcalens.core.results import Result
from lcalens.lca.model.bridge import lca_bridge
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.mechanism.attribute import attribute
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.kinds import head_kinds
from lcalens.mechanism.knockout import knockout
from lcalens.mechanism.labels import read_token
from lcalens.mechanism.patch import patch
from lcalens.mechanism.path import path
from lcalens.mechanism.players import shapley
from lcalens.mechanism.ranking import ranking
from lcalens.mechanism.scores import score_parts
from lcalens.mechanism.split import split
from lcalens.mechanism.summary import patching_result

EXAMPLES = 6
SUBJECT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def toy():
    torch.manual_seed(0)
    return lca_bridge(LCAForCausalLM(LCAConfig(m=3, d_model=8, d_head=4)))


def toy_contrast():
    clean = torch.randint(0, 8, (EXAMPLES, 5), generator=torch.Generator().manual_seed(0))
    hijacked = clean.clone()
    hijacked[:, 1:3] = 7 - hijacked[:, 1:3]
    return Contrast(clean, hijacked, true=1, false=6, spans={"redrawn": (1, 3)})


def france(place, words=("Rome", "Madrid"), subject="France"):
    texts = [[f"Do not think of {w}. The capital of {subject} is" for w in row] for row in (["it"] * len(words), words)]
    return Contrast(
        *texts, true=" Paris", false=[f" {w}" for w in words], tokenizer=place.model, spans={"word": list(words)}
    )


def made(*, kind="patching", scale=1.0, model="a model", missing=False, **labels):
    """A patching result of made-up numbers over these axes, its tables made as a measurement's are."""
    generator = np.random.default_rng(0)
    contrast = Contrast([[1, 2]] * EXAMPLES, [[3, 2]] * EXAMPLES, true=1, false=2)
    values = generator.normal(0, scale, (EXAMPLES, *map(len, labels.values())))
    ends = np.stack([generator.normal(-3, 0.1, EXAMPLES), generator.normal(2, 0.1, EXAMPLES)], 1)
    settings = {"site": "head", "positions": "last", "metric": "logit-difference", "direction": "restore"}
    result = patching_result(
        contrast, values, ends, labels, kind=kind, provenance={"model": {"source": model}} | settings
    )
    if missing:
        result.summary.loc[result.summary["layer"] == 0, ["value", "value_low", "value_high"]] = np.nan
    return result


def draw(figure):
    """What it takes to see a figure; a warning is an error, and so is text outside."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=60)
        assert len(file.getvalue()) > 2000
    box, page = figure.get_tightbbox(), figure.bbox_inches
    assert min(box.x0, box.y0) >= -0.01
    assert box.x1 <= page.x1 + 0.01
    assert box.y1 <= page.y1 + 0.01
    return figure


def texts_of(figure):
    found = figure.findobj(lambda item: hasattr(item, "get_text") and hasattr(item, "get_fontsize"))
    return [text for text in found if text.get_text() and text.get_visible()]


def words_of(figure):
    return [text.get_text() for text in texts_of(figure)]


def map_of(figure):
    (image,) = (image for panel in figure.axes for image in panel.images)
    return image


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


# --- maps and curves --------------------------------------------------------------------------------------------------

LAYERS, HEADS, PLACES = tuple(range(12)), tuple(range(6)), tuple(range(-9, 0))
SHAPES = {
    "heads": {"layer": LAYERS, "head": HEADS},
    "positions": {"layer": LAYERS, "position": PLACES},
    "all three": {"layer": LAYERS, "head": HEADS, "position": PLACES},
    "layers": {"layer": LAYERS},
    "one layer": {"layer": (0,), "head": HEADS},
    "one layer's positions": {"layer": (0,), "position": PLACES},
    "one head": {"layer": (0,), "head": (0,)},
    "one head's positions": {"layer": (0,), "head": (0,), "position": PLACES},
    "one head a layer": {"layer": LAYERS, "head": (0,)},
    "key heads": {"layer": LAYERS, "head": ("0-2", "3-5")},
    "large": {"layer": tuple(range(48)), "head": tuple(range(32))},
    "long": {"layer": LAYERS, "position": tuple(range(-200, 0))},
    "nothing": {},
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_can_be_drawn(shape, missing):
    axes = SHAPES[shape]
    if missing and len(axes.get("layer", ())) < 2:
        return
    for kind in ("patching", "knockout"):
        figure = draw(made(kind=kind, missing=missing, **axes).plot())
        assert figure.get_figwidth() == pytest.approx(3.4), "one column"
        assert all(5.9 <= text.get_fontsize() <= 8 for text in texts_of(figure))


@pytest.mark.parametrize("shape", ["heads", "positions", "key heads", "large"])
def test_a_map_is_the_mean_recovery_with_0_in_the_middle(shape):
    result = made(**SHAPES[shape])
    image = map_of(result.plot())
    values = result.wide()["recovery"].to_numpy().reshape(image.get_array().shape)
    np.testing.assert_allclose(image.get_array(), values)
    assert image.norm.vmin == -image.norm.vmax == -np.abs(values).max()
    red, _, blue, _ = image.cmap(1.0)
    assert blue > red, "towards the clean run is blue"
    assert np.ptp(image.cmap(0.5)[:3]) < 0.02, "0 is white"


def test_a_map_has_a_layer_a_row_from_below():
    panel = map_of(made(**SHAPES["heads"]).plot()).axes
    assert panel.get_ylabel() == "layer"
    assert panel.get_xlabel() == "head"
    low, high = panel.get_ylim()
    assert low < high
    assert ticks(panel.xaxis) == [str(head) for head in HEADS]


def test_what_was_not_measured_is_no_colour_of_the_map():
    image = map_of(draw(made(missing=True, **SHAPES["heads"]).plot()))
    assert np.ma.getmaskarray(np.ma.masked_invalid(image.get_array()))[0].all()
    assert colors.to_rgb(image.axes.get_facecolor()) == (0.85, 0.85, 0.85)


def test_a_curve_is_the_mean_recovery_in_its_interval():
    result = made(**SHAPES["layers"])
    (panel,) = draw(result.plot()).axes
    np.testing.assert_allclose(panel.lines[0].get_ydata(), result.wide()["recovery"])
    (band,) = (item for item in panel.collections if isinstance(item, PolyCollection))
    corners = band.get_paths()[0].vertices[:, 1]
    assert corners.min() == pytest.approx(result.wide()["recovery_low"].min())
    assert corners.max() == pytest.approx(result.wide()["recovery_high"].max())


def test_leading_heads_stand_at_the_top():
    result = made(**SHAPES["all three"])
    image = map_of(result.plot())
    values = result.wide()["recovery"].to_numpy().reshape(-1, len(PLACES))
    order = np.argsort(-np.abs(values).max(1))[:12]
    np.testing.assert_allclose(image.get_array(), values[order])
    assert ticks(image.axes.yaxis) == [f"L{i // 6}H{i % 6}" for i in order]
    low, high = image.axes.get_ylim()
    assert low > high


def test_everything_at_once_is_drawn_example_by_example():
    result = made(kind="knockout")
    (panel,) = draw(result.plot()).axes
    assert ticks(panel.xaxis) == ["hijacked", "cut", "clean"]
    rows = np.array([line.get_ydata() for line in panel.lines[:EXAMPLES]])
    np.testing.assert_allclose(rows[:, 1], result.values["value"])
    np.testing.assert_allclose(rows[:, [0, 2]], result.examples[["hijacked", "clean"]])
    assert f"recovery {result.wide()['recovery'].item():.2f}" in panel.get_title()


def test_where_the_clean_run_was_patched_recovery_is_counted_from_1():
    """A site that matters to nothing leaves recovery at 1: it must not be the map's strongest colour."""
    result = made(**SHAPES["heads"])
    corrupt = Result(**{**vars(result), "provenance": {**result.provenance, "direction": "corrupt"}})
    image, other = map_of(corrupt.plot()), map_of(result.plot())
    np.testing.assert_allclose(image.get_array(), 1 - other.get_array())
    red, _, blue, _ = image.cmap(1.0)
    assert red > blue, "towards the hijacked run is red"
    assert "1 − recovery (1: hijacked)" in words_of(image.figure)


def test_effects_of_attribution(toy):
    result = attribute(toy, toy_contrast(), site="v", positions="each", progress=False)
    for quantity in (None, "recovery"):
        (panel,) = draw(result.plot(quantity=quantity)).axes
        table, name = result.wide(), quantity or "effect"
        (bars,) = panel.containers
        np.testing.assert_allclose(bars.lines[0].get_ydata(), table[name])
        drawn = [segment[:, 1] if len(segment) else [np.nan] * 2 for segment in bars.lines[2][0].get_segments()]
        if quantity == "recovery":  # of a hijack that may move nothing: no bar, and none of no length
            assert np.isnan(drawn).all()
            assert "recovery_low" not in table
        else:
            np.testing.assert_allclose(drawn, table[[f"{name}_low", f"{name}_high"]], atol=1e-12)


# --- labels -----------------------------------------------------------------------------------------------------------

HARD = ["$x$", "a$b", "_", "<b>", SUBJECT, "\\alpha", "日本", "\t", "𓀀"]


@pytest.mark.parametrize("shape", ["positions", "all three", "one layer's positions"])
def test_labels_are_the_positions(shape):
    panel = next(iter(draw(made(**SHAPES[shape]).plot(labels=["before", *"abcdefghi"])).axes))
    assert ticks(panel.xaxis) == list("abcdefghi"), "aligned from the end"
    assert panel.get_xlabel() == ""


def test_without_labels_positions_count_from_the_end():
    panel = map_of(made(**SHAPES["positions"]).plot()).axes
    assert ticks(panel.xaxis) == [f"−{i}" for i in range(9, 0, -1)]
    assert panel.get_xlabel() == "position"


def test_the_last_of_many_positions_has_its_label():
    panel = map_of(made(**SHAPES["long"]).plot()).axes
    found = ticks(panel.xaxis)
    assert found[-1] == "−1"
    assert 10 <= len(found) <= 28


def test_any_label_is_text():
    figure = draw(made(model="$_^$ <b> _x", **SHAPES["positions"]).plot(labels=HARD))
    assert not any(cbook.is_math_text(word) for word in words_of(figure))
    found = ticks(map_of(figure).axes.xaxis)
    assert found[:4] == [r"\$x\$", r"a\$b", "_", "<b>"]
    assert found[4].startswith("<script>")
    assert found[6] == r"\u65e5\u672c", "characters that the font lacks are named, not boxes"


@pytest.mark.parametrize(("options", "named"), [({"labels": ["a"]}, "labels"), ({"labels": "a" * 20}, "labels"),
                                                ({"quantity": "effect"}, "quantity"), ({"top": 3}, "top")])  # fmt: skip
def test_options_that_do_not_fit_are_named(options, named):
    with pytest.raises((LcalensError, TypeError), match=named):
        made(**SHAPES["positions"]).plot(**options)


def test_a_map_over_positions_has_the_prompts_tokens(standin):
    place = standin("gpt2")
    one = france(place)[:1]
    for measured in (patch(place.model, one, site="resid_pre", positions="each", progress=False),
                     attribute(place.model, one, site="resid_pre", positions="each", progress=False)):  # fmt: skip
        panel = map_of(draw(measured.plot())).axes
        wanted = [read_token(place.tokenizer, token) for token in one.hijacked[0]][-len(measured.axes["position"]) :]
        assert ticks(panel.xaxis) == wanted
        assert panel.get_xlabel() == ""
    clean = patch(place.model, one, site="resid_pre", positions="each", direction="corrupt", progress=False)
    tokens = [read_token(place.tokenizer, token) for token in one.clean[0]]
    assert clean.provenance["position_labels"][-len(tokens) :] == tokens


def test_where_examples_differ_a_map_says_so(standin):
    place = standin("gpt2")
    both = france(place)
    measured = patch(place.model, both, site="resid_pre", positions="each", progress=False)
    panel = map_of(draw(measured.plot())).axes
    shown = ticks(panel.xaxis)
    differ = [i for i, (a, b) in enumerate(zip(*(row[-len(shown) :] for row in both.hijacked), strict=True)) if a != b]
    assert differ
    for i in differ:
        assert re.fullmatch(r"−\d+|\[\w+\]", shown[i]), "no token of one example stands for the others"
    assert panel.get_xlabel() == "position (where examples differ: [span], or from the end)"


def test_token_labels_are_what_all_examples_share(standin):
    place = standin("gpt2")
    one = france(place, ["Rome"])
    found = views.token_labels(place.model, one)
    assert "".join(found).replace("␣", "") == "DonotthinkofRome.ThecapitalofFranceis"
    two = views.token_labels(place.model, france(place))
    assert [(a, b) for a, b in zip(found, two, strict=True) if a != b] == [("Rome", "[word]")]
    assert "it." in "".join(views.token_labels(place.model, france(place), run="clean"))


def test_token_labels_of_the_toy_are_bits(toy):
    contrast = Contrast([[1, 2, 3], [4, 2, 3]], [[5, 2, 3], [6, 7, 3]], true=1, false=2)
    assert views.token_labels(toy, contrast) == ("−3", "−2", "011")
    assert views.token_labels(toy, contrast, run="clean") == ("−3", "010", "011")
    for arguments, named in (((toy, [1]), "contrast"), ((None, contrast), "model")):
        with pytest.raises(LcalensError, match=named):
            views.token_labels(*arguments)
    with pytest.raises((LcalensError, TypeError), match="both"):
        views.token_labels(toy, contrast, run="both")


def test_tokens_are_readable():
    class Letters:
        def decode(self, ids):
            return [" Rome", " ", "\n", "  ", "\x1b[31m", "\ufffd", "é", ""][ids[0]]

        def convert_ids_to_tokens(self, ids):
            return ["<0xE2>" if ids[0] == 5 else "<unused>"]

    found = [read_token(Letters(), i) for i in range(8)]
    assert found == ["Rome", "␣", "\\n", "␣␣", "\\x1b[31m", "<0xE2>", "é", "<unused>"]
    assert read_token(None, 17) == "17"


# --- split and ranking ------------------------------------------------------------------------------------------------


def test_a_split_is_bars_by_span(toy):
    result = split(toy, toy_contrast(), progress=False)
    figure = draw(result.plot())
    (panel,) = figure.axes
    assert ticks(panel.xaxis) == list(dict.fromkeys(result.summary["group"]))
    for bars in panel.containers:
        if bars.get_label() in ("attention", "recall", "scale"):
            rows = result.summary[result.summary["quantity"] == bars.get_label()]
            np.testing.assert_allclose([bar.get_height() for bar in bars], rows["value"])
    rows = result.summary[result.summary["quantity"] == "total"]
    (total,) = (line for line in panel.lines if line.get_label() == "total")
    np.testing.assert_allclose(total.get_ydata(), rows["value"])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["attention", "recall", "scale", "total"]


def test_a_splits_intervals_are_the_tables(toy):
    result = split(toy, toy_contrast(), progress=False)
    (panel,) = result.plot().axes
    drawn = np.array(
        [segment[:, 1] for item in panel.collections for segment in item.get_segments() if np.ptp(segment[:, 1])]
    )
    table = result.summary.iloc[np.lexsort((result.summary.index,))]
    ends = table[table["quantity"].isin(["attention", "recall", "scale", "total"])][
        ["value_low", "value_high"]
    ].to_numpy()
    ends = ends[np.ptp(ends, axis=1) > 0]
    assert len(drawn) == len(ends)
    np.testing.assert_allclose(np.sort(drawn, 0), np.sort(ends, 0))


def test_a_split_of_mixed_lengths_says_how_many_have_each_part(toy):
    contrast = Contrast([[1, 2, 3], [1, 2], [4, 2]], [[5, 2, 3], [5, 6, 2], [5, 1, 2]], true=1, false=2)
    figure = draw(split(toy, contrast, progress=False).plot())
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["attention (1)", "recall (1)", "scale (1)", "inserted (2)", "shared (2)", "total (3)"]


def test_spans_of_any_name_and_number(toy):
    contrast = toy_contrast()
    spans = {name: (i % 4, i % 4 + 1) for i, name in enumerate(["$x$", "_y", "<b>", "n" * 60])}
    contrast = Contrast(
        [list(row) for row in contrast.clean], [list(row) for row in contrast.hijacked], true=1, false=6, spans=spans
    )
    figure = draw(split(toy, contrast, progress=False).plot())
    assert not any(cbook.is_math_text(word) for word in words_of(figure))


@pytest.mark.parametrize("shape", ["heads", "layers", "key heads", "all three", "one head"])
@pytest.mark.parametrize("held", [False, True])
def test_a_ranking_is_bars_of_the_leading_sites(shape, held):
    result = made(**SHAPES[shape])
    other = made(scale=2.0, **SHAPES[shape])
    other = Result(**{**vars(other), "examples": other.examples.assign(index=range(100, 100 + EXAMPLES))})
    found = ranking(result, held_out=other if held else None)
    (panel,) = draw(found.plot()).axes
    table = found.wide().head(10)
    bars = [c for c in panel.containers if hasattr(c, "patches")]
    assert len(bars) == 1 + held
    for container, column in zip(bars, ("value", "held_out"), strict=False):
        np.testing.assert_allclose([bar.get_width() for bar in container], table[column])
    tops = [bar.get_y() for bar in bars[0]]
    assert tops == sorted(tops, reverse=True), "the leading one at the top"
    first = table.iloc[0]
    name = f"L{int(first['layer'])}" + (f"H{first['head']:g}" if shape in ("heads", "one head") else "")
    assert ticks(panel.yaxis)[0].startswith(name)
    assert all(re.fullmatch(r"L\d+(H\d+(-\d+)?)?( at −\d)?", label) for label in ticks(panel.yaxis))


def test_a_rankings_whiskers_are_its_intervals():
    found = ranking(made(**SHAPES["heads"]))
    (panel,) = found.plot(top=4).axes
    (whiskers,) = (item for item in panel.collections if len(item.get_segments()) == 4)
    ends = np.array([segment[:, 0] for segment in whiskers.get_segments()])
    np.testing.assert_allclose(ends, found.wide().head(4)[["value_low", "value_high"]])
    assert "4 leading of 72" in panel.figure.get_suptitle()


def test_a_rankings_positions_have_labels():
    found = ranking(made(**SHAPES["positions"]))
    (panel,) = draw(found.plot(labels=list("abcdefghi"))).axes
    first = found.wide().iloc[0]
    at = int(first["position"])
    assert ticks(panel.yaxis)[0] == f"L{first['layer']:g} at {'abcdefghi'[at]} (−{-at})"
    for options, named in (({"top": 0}, "top"), ({"labels": ["a"]}, "labels")):
        with pytest.raises(LcalensError, match=named):
            found.plot(**options)


def test_what_was_measured_and_loaded_again_draws_the_same(toy, tmp_path):
    contrast = toy_contrast()
    results = [
        patch(toy, contrast, site="v", positions="each", progress=False),
        patch(toy, contrast, site="head", direction="corrupt", progress=False),
        knockout(toy, contrast, span="redrawn", progress=False),
        split(toy, contrast, progress=False),
    ]
    results.append(ranking(results[0]))
    for i, result in enumerate(results):
        again = Result.load(result.save(tmp_path / str(i)))
        assert words_of(draw(again.plot())) == words_of(draw(result.plot()))


# --- attention views --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_patterns_are_transformer_lenss(standin, family):
    place = standin(family)
    contrast = france(place)
    heads = [(1, head) for head in reversed(range(place.model.cfg.n_heads))]
    view = views.attention_view(place.model, contrast, [(2, 1), *heads], example=1)
    for side, tokens in ((view.clean, contrast.clean[1]), (view.hijacked, contrast.hijacked[1])):
        _, cache = place.model.run_with_cache(torch.tensor([tokens]))
        wanted = [cache[f"blocks.{layer}.attn.hook_pattern"][0, head].numpy() for layer, head in view.heads]
        np.testing.assert_allclose(side.patterns, wanted, atol=1e-5)
        assert len(side.tokens) == len(tokens)
    assert view.causal
    assert view.hijacked.text.endswith("Do not think of Madrid. The capital of France is")
    assert view.heads == ((2, 1), *heads)


def test_hooks_of_the_user_are_seen(standin):
    place = standin("gpt2")
    contrast = france(place)
    flat = lambda pattern, hook: torch.ones_like(pattern).tril() / 2  # noqa: E731
    with place.model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", flat)]):
        view = views.attention_view(place.model, contrast, [(0, 1)])
    assert set(np.unique(view.clean.patterns)) == {0.0, 0.5}


def test_the_toys_tokens_are_bits_and_nothing_is_masked(toy):
    view = views.attention_view(toy, Contrast([[5, 1, 2]], [[5, 6, 2]], true=1, false=6), [(0, 0)])
    assert view.clean.tokens == ("101", "001", "010")
    assert view.hijacked.tokens == ("101", "110", "010")
    assert not view.causal
    np.testing.assert_allclose(view.clean.patterns.sum(-1), 1, rtol=1e-5)
    assert '"maskUpperTri": false' in view._repr_html_()


def test_a_saved_view_is_whole(toy, tmp_path):
    view = views.attention_view(toy, toy_contrast(), [(0, 0)])
    path = view.save(tmp_path / "new" / "view.html")
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page.count("var CircuitsVis=") == 1
    outside = re.sub(r"<script.*</script>", "", page, flags=re.DOTALL)
    assert "http" not in outside.replace('http-equiv="', "")
    assert "unpkg" not in page
    assert "sourceMappingURL" not in page
    assert not re.search(r"\b(src|href)=", outside)
    assert len(page) < 2_000_000
    with pytest.raises(LcalensError, match="path"):
        view.save(tmp_path)


def test_a_view_says_what_it_is_of(standin, tmp_path):
    place = standin("gpt2")
    contrast = france(place)
    view = views.attention_view(place.model, contrast, [(1, 0), (0, 2)], example=1)
    said = view.provenance
    assert said["model"]["fingerprint"] == fingerprint(place.model)
    assert said["versions"]["lcalens"] == lcalens.__version__
    assert said["contrast"] == patch(place.model, contrast, progress=False).provenance["contrast"]
    assert (said["heads"], said["example"]) == ([[1, 0], [0, 2]], 1)
    assert said["tokens"] == {"clean": list(contrast.clean[1]), "hijacked": list(contrast.hijacked[1])}
    page = view.save(tmp_path / "view.html").read_text(encoding="utf-8")
    for word in (said["model"]["fingerprint"], said["contrast"], f"lcalens {lcalens.__version__}"):
        assert word in page


def test_a_models_name_is_text(standin):
    view = views.attention_view(standin("gpt2").model, france(standin("gpt2")), [(0, 0)])
    named = {**view.provenance, "model": {**view.provenance["model"], "source": SUBJECT}}
    shown = dataclasses.replace(view, title=SUBJECT, provenance=named)._repr_html_()
    assert SUBJECT not in shown
    assert html.escape(SUBJECT) in shown


def test_markup_in_tokens_is_text(standin):
    place = standin("gpt2")
    shown = views.attention_view(place.model, france(place, subject=SUBJECT), [(0, 0)])._repr_html_()
    before, _, script = shown.partition('<script crossorigin type="module">')
    assert SUBJECT not in shown
    assert html.escape(SUBJECT) in before
    calls = script[script.rindex("CircuitsVis.render(", 0, script.rindex('"circuits-vis-')) :]
    assert "<" not in calls.removesuffix("</script></div>")
    assert r"\u003c" in calls


@pytest.mark.parametrize(
    ("heads", "options", "named"),
    [
        ([(3, 0)], {}, "heads: .3, 0. is no .layer, head. of a model of 3 layers"),
        ([(0, 0), (0, -1)], {}, "heads"),
        ([], {}, "heads"),
        (4, {}, "heads"),
        ([(0, 0)], {"example": 2}, "example: expected an integer from 0 to 1, got 2"),
    ],
)
def test_what_is_out_of_range_is_named(standin, heads, options, named):
    place = standin("gpt2")
    with pytest.raises(LcalensError, match=named):
        views.attention_view(place.model, france(place), heads, **options)


def test_tokens_that_the_model_has_not(toy):
    with pytest.raises(LcalensError, match="contrast: token 9"):
        views.attention_view(toy, Contrast([[9, 1]], [[2, 1]], true=1, false=2), [(0, 0)])


def test_a_view_is_short_to_print(toy):
    view = views.attention_view(toy, toy_contrast(), [(0, 0)])
    assert repr(view) == str(view)
    assert len(repr(view)) < 200
    assert isinstance(pd.DataFrame(view.clean.patterns[0]), pd.DataFrame)


def test_paths_are_a_map_for_each_receiver(standin):
    place = standin("gpt2")
    contrast = france(place)
    found = path(place.model, contrast, receivers=[(1, 0), (2, 1), (2, 3)], at="q", progress=False)
    figure = found.plot(top=2)
    panels = [panel for panel in figure.axes if panel.images]
    means = found.values["effect"].mean(0)
    chosen = sorted(np.argsort(-np.nanmax(np.abs(means), 0), kind="stable")[:2])
    assert [panel.get_title() for panel in panels] == [f"{found.axes['receiver'][at]} q" for at in chosen]
    for panel, at in zip(panels, chosen, strict=True):
        shown = np.ma.filled(panel.images[0].get_array(), np.nan)
        by_name = dict(zip(found.axes["sender"], means[:, at], strict=True))
        assert shown[0, 4] == by_name["embed"]
        assert shown[1, 4] == by_name["MLP0"]
        assert shown[1, 2] == by_name["L0H2"]
        assert np.isnan(shown[0, :4]).all()
    assert [panel.get_title() for panel in path(place.model, contrast, progress=False).plot().axes if panel.images] == [
        "logits"
    ]


def test_parts_of_scores_are_bars_for_each_head_and_side(standin):
    place = standin("gpt2")
    found = score_parts(place.model, france(place), [(1, 0), (2, 1), (2, 3)], progress=False)
    figure = found.plot(top=3, heads=2)
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["L1H0, query", "L1H0, key", "L2H1, query", "L2H1, key"]
    table = found.wide()
    for panel, (head, side) in zip(figure.axes, (title.split(", ") for title in titles), strict=True):
        rows = table[(table["head"] == head) & (table["side"] == side)]
        leading = rows.loc[rows["score"].abs().sort_values(ascending=False, kind="stable").index[:3]]
        assert [bar.get_width() for bar in panel.patches] == leading["score"].tolist()
        assert ticks(panel.yaxis) == leading["part"].tolist()
    assert "2 of 3 heads" in figure.get_suptitle()
    for options in ({"top": 0}, {"heads": 0}):
        with pytest.raises(LcalensError, match=rf"^{next(iter(options))}"):
            found.plot(**options)


def test_kinds_of_heads_are_bars_with_their_names(standin):
    place = standin("gpt2")
    contrast = france(place)[:2]
    ends = patch(place.model, contrast, progress=False).examples
    if ends["hijacked"].mean() <= ends["clean"].mean():
        contrast = Contrast(
            contrast.clean, contrast.hijacked, true=contrast.false, false=contrast.true,
            spans={"word": contrast.spans["word"]},
        )  # fmt: skip
    found = head_kinds(place.model, contrast, [(0, 0), (1, 2), (2, 3)], progress=False)
    figure = found.plot(top=2)
    table = found.wide()
    kept = sorted(table["total"].abs().sort_values(ascending=False, kind="stable").index[:2])
    shown = table.loc[kept]
    carried, looked = figure.axes
    assert [bar.get_width() for bar in carried.patches[:2]] == shown["direct_share"].tolist()
    named = [head if kind == "none" else f"{head}  {kind}" for head, kind in shown[["head", "kind"]].to_numpy()]
    assert ticks(carried.yaxis) == named
    points = [line for line in looked.lines if line.get_marker() == "o"]
    assert points[0].get_xdata().tolist() == shown["on_keys"].tolist()
    assert "2 of 3 heads" in figure.get_suptitle()
    with pytest.raises(LcalensError, match=r"^top"):
        found.plot(top=0)


def test_shares_of_tokens_that_few_examples_have_sum_to_what_all_do(toy):
    found = shapley(toy, toy_contrast(), players="tokens", samples=20, progress=False)
    assert np.isnan(found.values["shapley"]).any(), "a token that an example does not have"
    together = found.wide("together").set_index("part")["effect"]["together"]
    assert found.wide()["shapley"].sum() == pytest.approx(together, rel=1e-4)


def test_a_metric_that_is_no_number_for_an_example_is_refused(toy):
    def metric(logits, index):
        return torch.where(index == 2, torch.nan, logits.sum(-1))

    with pytest.raises(LcalensError, match=r"^metric: it is no finite number for .* example 2"):
        patch(toy, toy_contrast(), metric=metric, progress=False)
