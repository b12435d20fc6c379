"""Contrasts by hand and from the toy world: tokens, answers, spans, places and buckets against what they must be."""

import ast
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import lcalens
from lcalens.core.errors import LcalensError
from lcalens.lca.contrasts import contrast_concepts
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.mechanism.contrast.contrast import Contrast

CLEAN = ["The capital of France is", "The mother tongue of Dante is"]
HIJACKED = ["Do not think of Rome. The capital of France is", "Do not think of German. The mother tongue of Dante is"]
TRUE, FALSE = [" Paris", " Italian"], [" Rome", " German"]
FAMILIES = ("gpt2", "llama")  # byte-level without a BOS, and metaspace with one

RAGGED = {
    "clean": [[5, 1, 2, 3], [5, 4, 3], [5, 6, 7, 8, 2], [5, 9, 9]],
    "hijacked": [[5, 1, 9, 3], [5, 6, 6, 4, 3], [5, 6, 9, 9, 2], [5, 8, 9]],
    "true": [[1], [2, 3], [4], [6]],
    "false": [[2], [1], [5, 1], [7]],
    "spans": {"word": [(2, 3), (1, 3), [(2, 3), (3, 4)], (1, 2)]},
}


def ragged(**changes):
    return Contrast(**(RAGGED | changes))


def padded(rows, side, total):
    mask = [[1] * len(row) + [0] * (total - len(row)) for row in rows]
    full = [list(row) + [0] * (total - len(row)) for row in rows]
    if side == "left":
        full = [row[len(kept) :] + row[: len(kept)] for row, kept in zip(full, rows, strict=True)]
        mask = [row[::-1] for row in mask]
    return torch.tensor(full), torch.tensor(mask)


def same(one, other):
    return (
        one.content() == other.content()
        and one.examples.reset_index(drop=True).equals(other.examples.reset_index(drop=True))
        and one.excluded.equals(other.excluded)
    )


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_become_the_tokenizers_own_ids(standin, family):
    place = standin(family)
    made = Contrast(CLEAN, HIJACKED, true=TRUE, false=FALSE, tokenizer=place.tokenizer)
    assert [list(row) for row in made.clean] == place.tokenizer(CLEAN).input_ids
    assert [list(row) for row in made.hijacked] == place.tokenizer(HIJACKED).input_ids
    assert same(made, Contrast(CLEAN, HIJACKED, true=TRUE, false=FALSE, tokenizer=place.model))
    assert same(made[1], Contrast(CLEAN[1], HIJACKED[1], true=TRUE[1], false=FALSE[1], tokenizer=place.model)) is False
    assert (
        made[1].content()
        == Contrast(CLEAN[1], HIJACKED[1], true=TRUE[1], false=FALSE[1], tokenizer=place.model).content()
    )
    assert made.examples["hijacked_text"].tolist() == HIJACKED


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_what_follows_in_place(standin, family):
    tokenizer = standin(family).tokenizer
    made = Contrast(CLEAN, HIJACKED, true=TRUE, false=FALSE, tokenizer=tokenizer)
    for row, (prompt, answers) in enumerate(zip(HIJACKED, zip(TRUE, FALSE, strict=True), strict=True)):
        for answer, ids in zip(answers, (made.true[row], made.false[row]), strict=True):
            assert tokenizer(prompt + answer).input_ids == [*made.hijacked[row], *ids]
    bare = Contrast(CLEAN, HIJACKED, true=[text.strip() for text in TRUE], false=FALSE, tokenizer=tokenizer)
    assert same(bare, made)
    glued = Contrast(CLEAN, HIJACKED, true=[text.strip() for text in TRUE], false=FALSE, tokenizer=tokenizer, join=" ")
    assert same(glued, made)
    glued = Contrast(CLEAN[0], HIJACKED[0], true="Paris", false="Rome", tokenizer=tokenizer, join="")
    assert tokenizer(HIJACKED[0] + "Paris").input_ids == [*glued.hijacked[0], *glued.true[0]]
    assert glued.true != made[0].true


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_scored_is_told(standin, family):
    tokenizer = standin(family).tokenizer
    made = Contrast(CLEAN, HIJACKED, true=TRUE, false=FALSE, tokenizer=tokenizer)
    for name in ("true", "false"):
        told = [" ".join(tokenizer.convert_ids_to_tokens(list(ids))) for ids in getattr(made, name)]
        assert made.examples[f"{name}_tokens"].tolist() == told
    assert "true_tokens" not in ragged().examples


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_behind_token_ids_are_those_behind_the_text_they_spell(standin, family):
    tokenizer = standin(family).tokenizer
    wanted = Contrast(CLEAN, HIJACKED, true=TRUE, false=FALSE, tokenizer=tokenizer)
    clean, hijacked = (tokenizer(texts).input_ids for texts in (CLEAN, HIJACKED))
    assert Contrast(clean, hijacked, true=TRUE, false=FALSE, tokenizer=tokenizer).content() == wanted.content()
    ended = Contrast(
        tokenizer("It is\n").input_ids, tokenizer("It was\n").input_ids, true="Paris", false="Rome",
        tokenizer=tokenizer,
    )  # fmt: skip
    assert tokenizer("It was\nParis").input_ids == [*ended.hijacked[0], *ended.true[0]]


def test_token_ids_that_spell_no_text_have_no_words_behind_them(standin):
    tokenizer = standin("gpt2").tokenizer
    pieces = [tokenizer(letter).input_ids[0] for letter in " Paris"]
    assert tokenizer(" Paris").input_ids != pieces
    with pytest.raises(LcalensError, match="true: the tokens of example 0 are not those of a text"):
        Contrast([pieces], [pieces], true="Paris", false=3, tokenizer=tokenizer)


def test_an_answer_must_be_the_same_behind_both_prompts(standin):
    tokenizer = standin("gpt2").tokenizer
    with pytest.raises(LcalensError, match="true: 'Paris' has other tokens behind the clean prompt of example 0"):
        Contrast("It is", "It is:\n", true="Paris", false="Rome", tokenizer=tokenizer)
    with pytest.raises(LcalensError, match="true: ' Paris': the prompt ends with white space"):
        Contrast("It is ", "It was ", true=" Paris", false="Rome", tokenizer=tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_words_become_the_spans_of_their_tokens(standin, family):
    tokenizer = standin(family).tokenizer
    twice = [f"Rome is Rome. {HIJACKED[0]}", HIJACKED[1]]
    made = Contrast(
        CLEAN, twice, true=TRUE, false=FALSE, tokenizer=tokenizer,
        spans={"word": ["Rome", "German"], "prompt": CLEAN, "think": "think"},
    )  # fmt: skip
    for name, word, counts in (("word", ["Rome", "German"], (3, 1)), ("prompt", CLEAN, (1, 1))):
        for row, spans in enumerate(made.spans[name]):
            assert len(spans) == counts[row]
            # Where a token holds a word and the full stop behind it, the token belongs to the word.
            assert {tokenizer.decode(made.hijacked[row][a:b]).strip(" .") for a, b in spans} == {word[row]}
    for row, ((first, last),) in zip(made.hijacked, made.spans["think"], strict=True):
        assert tokenizer.decode(row[first:last]).strip() == "think"
    assert made.spans["last"] == tuple(((len(row) - 1, len(row)),) for row in made.hijacked)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["tensor", "array", "lists"])
def test_padding_with_a_mask_is_the_same_as_none(side, kind):
    clean, clean_mask = padded(RAGGED["clean"], side, 7)
    hijacked, hijacked_mask = padded(RAGGED["hijacked"], side, 6)
    moved = []
    for row, spans in zip(RAGGED["hijacked"], RAGGED["spans"]["word"], strict=True):
        by = 6 - len(row) if side == "left" else 0
        moved.append([(a + by, b + by) for a, b in ([spans] if isinstance(spans, tuple) else spans)])
    given = {"clean": clean, "clean_mask": clean_mask, "hijacked": hijacked, "hijacked_mask": hijacked_mask.bool()}
    if kind != "tensor":
        given = {name: value.numpy() if kind == "array" else value.tolist() for name, value in given.items()}
    assert same(ragged(**given, spans={"word": moved}), ragged())


def test_a_span_reaching_into_the_padding_keeps_its_tokens():
    hijacked, mask = padded(RAGGED["hijacked"], "left", 6)
    made = ragged(hijacked=hijacked, hijacked_mask=mask, spans={"begin": (0, 4)})
    assert made.spans["begin"] == (((0, 2),), ((0, 3),), ((0, 3),), ((0, 1),))


def test_one_example_is_given_bare():
    one = Contrast(torch.tensor([1, 2, 3]), [1, 4, 3], true=7, false=8, spans={"word": (1, 2)})
    assert one.content() == Contrast([[1, 2, 3]], [[1, 4, 3]], true=[[7]], false=torch.tensor([8]), spans={"word": [(1, 2)]}).content()  # fmt: skip # noqa: E501
    assert (one.clean, one.hijacked, one.true, one.false) == (((1, 2, 3),), ((1, 4, 3),), ((7,),), ((8,),))
    assert len(one) == 1


def test_pairs_whose_first_tokens_coincide_are_left_out_and_counted():
    table = pd.DataFrame({"name": list("abcd")})
    made = ragged(false=[[2], [2, 4], [4], [7]], examples=table)
    assert made.content() == ragged()[[0, 3]].content()
    assert made.examples["name"].tolist() == ["a", "d"]
    assert made.excluded["index"].tolist() == [1, 2]
    assert made.excluded["name"].tolist() == ["b", "c"]
    assert made.excluded["reason"].str.contains("token 2").tolist() == [True, False]
    assert made[:1].excluded.equals(made.excluded)
    with pytest.raises(LcalensError, match=r"^false: in every one of 4"):
        ragged(false=RAGGED["true"])
    before = pd.DataFrame({"index": [9], "reason": ["earlier"]})
    assert ragged(excluded=before).excluded["reason"].tolist() == ["earlier"]
    assert len(ragged(excluded=before, false=[[2], [2, 4], [4], [7]]).excluded) == 3


def test_choosing_examples():
    whole = ragged(examples=pd.DataFrame({"name": list("abcd")}))
    for which, names in (
        (slice(1, 3), "bc"), (slice(None, None, -1), "dcba"), (2, "c"), (-1, "d"), ([3, 0], "da"), ((1,), "b"),
        ([True, False, False, True], "ad"), (np.array([False, True, False, True]), "bd"), (torch.tensor([2, 2]), "cc"),
        (torch.tensor([True, True, False, False]), "ab"), (np.int64(0), "a"), (np.array([-4, 1]), "ab"),
    ):  # fmt: skip
        part = whole[which]
        rows = ["abcd".index(name) for name in names]
        assert "".join(part.examples["name"]) == names
        assert part.clean == tuple(tuple(RAGGED["clean"][row]) for row in rows)
        assert part.hijacked == tuple(tuple(RAGGED["hijacked"][row]) for row in rows)
        assert part.true == tuple(tuple(RAGGED["true"][row]) for row in rows)
        assert part.false == tuple(tuple(RAGGED["false"][row]) for row in rows)
        assert part.spans["last"] == tuple(((len(row) - 1, len(row)),) for row in part.hijacked)
        assert part.aligned.tolist() == [len(a) == len(b) for a, b in zip(part.clean, part.hijacked, strict=True)]
    assert [one.content() for one in whole] == [whole[i].content() for i in range(4)]


def test_buckets_hold_every_example_once_and_no_padding():
    whole = ragged(
        clean=[*RAGGED["clean"], [1, 1, 1, 1]], hijacked=[*RAGGED["hijacked"], [2, 2, 2, 2]],
        true=[*RAGGED["true"], [9]], false=[*RAGGED["false"], [8]], spans=None,
    )  # fmt: skip
    buckets = list(whole.buckets())
    assert [bucket.indices.tolist() for bucket in buckets] == [[0, 4], [1], [2], [3]]
    for bucket in buckets:
        for at, row in enumerate(bucket.indices.tolist()):
            assert tuple(bucket.clean[at].tolist()) == whole.clean[row]
            assert tuple(bucket.hijacked[at].tolist()) == whole.hijacked[row]
            assert bucket.true[at] == whole.true[row][0]
            assert bucket.false[at] == whole.false[row][0]


def test_places_count_from_the_end():
    whole = ragged()
    # The second example's lengths differ, 3 and 5, and both begin with token 5, which lines up with no other.
    assert whole.places("last") == (((-1,),),) * 4
    assert whole.places("all") == (((-4, -3, -2, -1),), ((-2, -1),), ((-5, -4, -3, -2, -1),), ((-3, -2, -1),))
    assert whole.places("each") == tuple(tuple((at,) for at in groups[0]) for groups in whole.places("all"))
    assert whole[[0, 2, 3]].places("word") == (((-2,),), ((-3, -2),), ((-2,),))
    assert whole[[0, 2]].places([0, -1, 1]) == (((-4, -3, -1),), ((-5, -4, -1),))
    assert whole.places(-2) == whole.places((-2, -2)) == (((-2,),),) * 4
    for groups, row in zip(whole[[0, 2, 3]].places("word"), (0, 2, 3), strict=True):
        tokens = [RAGGED["hijacked"][row][at] for at in groups[0]]
        assert tokens == {0: [9], 2: [9, 9], 3: [8]}[row]


@pytest.mark.parametrize("positions", ["word", [0], -3, [-1, 1]])
def test_what_the_clean_run_does_not_have_is_refused_with_the_way_out(positions):
    with pytest.raises(LcalensError, match=r"^positions: .*example 1.*Use knockout"):
        ragged().places(positions)


def test_without_a_token_in_common_at_the_start_the_shorter_run_aligns_whole():
    made = Contrast([7, 4, 3], [5, 6, 6, 4, 3], true=1, false=2)
    assert made.places("all") == (((-3, -2, -1),),)


def test_content_is_json_and_tells_contrasts_apart():
    content = ragged().content()
    assert json.loads(json.dumps(content)) == content
    changes = {
        "clean": [[5, 1, 2, 4], *RAGGED["clean"][1:]],
        "hijacked": [[5, 1, 9, 4], *RAGGED["hijacked"][1:]],
        "true": [[1, 1], *RAGGED["true"][1:]],
        "false": [[3], *RAGGED["false"][1:]],
        "spans": {"word": (0, 1)},
    }
    for name, value in changes.items():
        assert ragged(**{name: value}).content() != content


def test_it_shows_itself_without_markup_from_outside(standin):
    evil = "<script>alert(1)</script>"
    made = Contrast(evil, f"Do not. {evil}", true=" Paris", false=" Rome", tokenizer=standin("gpt2").tokenizer)
    assert "<script>" not in made._repr_html_()
    assert "&lt;script&gt;" in made._repr_html_()
    assert repr(ragged()) == "Contrast(4 examples, 3 to 5 tokens, 3 aligned, spans: word, last)"
    assert "1 excluded" in repr(ragged(false=[[1], *RAGGED["false"][1:]]))


def test_it_is_frozen():
    with pytest.raises(AttributeError):
        ragged().clean = ()


def test_the_mechanism_imports_neither_world():
    """And the worlds do not import each other."""
    rooms = {"mechanism": ("lcalens.llm", "lcalens.lca"), "llm": ("lcalens.lca",), "lca": ("lcalens.llm",)}
    for room, others in rooms.items():
        for file in (Path(lcalens.__file__).parent / room).glob("*contrast*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = (
                    [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
                )
                assert not any(str(name).startswith(others) for name in names)


# --- from concepts ----------------------------------------------------------------------------------------------------


WORLD = LatentConcepts(5, omega=0.7, beta=0.8)


def drawn(seed=0, **changes):
    given = {"limit": 400, "length": 24, "generator": torch.Generator().manual_seed(seed)}
    return contrast_concepts(WORLD, **(given | changes))


def hamming(a, b):
    return np.array([int(x ^ y).bit_count() for x, y in zip(a, b, strict=True)])


@pytest.mark.parametrize("control", ["same", "other"])
@pytest.mark.parametrize("distance", [None, 1, 2, 4])
def test_concepts_keep_their_distances(control, distance):
    made = drawn(control=control, distance=distance)
    table = made.examples
    assert made.true == tuple((y,) for y in table["y"])
    assert made.false == tuple((other,) for other in table["other"])
    assert (hamming(table["y"], table["other"]) == table["distance"]).all()
    assert (table["y"] != table["other"]).all()
    if distance is not None:
        assert (table["distance"] == distance).all()
    if control == "same":
        assert (table["control"] == table["y"]).all()
    else:
        assert (hamming(table["y"], table["control"]) == table["distance"]).all()
        assert (table["control"] != table["other"]).all()
        assert (table["control"] != table["y"]).all()
    assert made.aligned.all()
    assert {len(row) for row in made.hijacked} == {24}


@pytest.mark.parametrize("control", ["same", "other"])
def test_only_redrawn_positions_differ_and_never_the_last(control):
    made = drawn(control=control)
    share = []
    for clean, hijacked, spans in zip(made.clean, made.hijacked, made.spans["redrawn"], strict=True):
        redrawn = {at for first, last in spans for at in range(first, last)}
        assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))  # runs, as long as can be
        assert {at for at in range(24) if clean[at] != hijacked[at]} <= redrawn
        assert 23 not in redrawn
        share.append(len(redrawn) / 23)
    assert np.mean(share) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(23 * len(made)))


@pytest.mark.parametrize("control", ["same", "other"])
def test_redrawn_tokens_come_from_the_distributions_they_should(control):
    made = drawn(limit=8_000, length=9, control=control, distance=2, share=0.4)
    mask = np.zeros((len(made), 9), dtype=bool)
    for row, spans in enumerate(made.spans["redrawn"]):
        for first, last in spans:
            mask[row, first:last] = True
    table = made.examples
    clean, hijacked = np.array(made.clean), np.array(made.hijacked)
    p = WORLD.offset_log_p.exp().numpy()
    for tokens, concept, where in (
        (hijacked, table["other"], mask),
        (clean, table["control"], mask),
        (clean, table["y"], ~mask & (np.arange(9) < 8)),
    ):
        offsets = (tokens ^ concept.to_numpy()[:, None])[where]
        found = np.bincount(offsets, minlength=32) / len(offsets)
        assert np.abs(found - p).max() < 5 * np.sqrt(p.max() / len(offsets))
    last = np.bincount(clean[:, 8] ^ table["y"].to_numpy(), minlength=32) / len(made)
    assert np.abs(last - WORLD.offset_log_pi.exp().numpy()).max() < 5 * np.sqrt(0.3 / len(made))
    # Independent draws: where both redraw, tokens coincide as often as two draws from the two distributions do.
    a, b = (table["other"] ^ table["control"]).to_numpy(), p
    expected = np.array([(b * b[np.arange(32) ^ offset]).sum() for offset in range(32)])[a][:, None].repeat(9, 1)[mask]
    agree = (clean == hijacked)[mask]
    assert agree.mean() == pytest.approx(expected.mean(), abs=5 * np.sqrt(expected.mean() / len(agree)))


@pytest.mark.parametrize("control", ["same", "other"])
def test_the_hijacking_concept_is_uniform(control):
    made = drawn(limit=10_000, length=2, share=1.0, control=control)
    offsets = made.examples["y"] ^ made.examples["other"]
    counts = np.bincount(offsets, minlength=32)
    possible = counts[1:] if control == "same" else counts[1:31]
    assert counts[0] == 0
    assert counts.sum() == possible.sum() == 10_000
    assert np.abs(possible / 10_000 - 1 / len(possible)).max() < 5 * np.sqrt(1 / len(possible) / 10_000)
    if control == "other":  # so is y', among the others of the distance
        two = made.examples[made.examples["distance"] == 2]
        steps = pd.crosstab(two["y"] ^ two["other"], two["y"] ^ two["control"])
        assert steps.shape == (10, 10)
        off = steps.to_numpy()[~np.eye(10, dtype=bool)]
        assert np.diag(steps).sum() == 0
        assert np.abs(off / len(two) - 1 / 90).max() < 5 * np.sqrt(1 / 90 / len(two))


def test_a_seed_gives_the_same_and_both_controls_the_same_hijack():
    assert same(drawn(distance=2), drawn(distance=2))
    assert drawn(seed=1, distance=2).hijacked != drawn(distance=2).hijacked
    one, two = drawn(distance=2), drawn(distance=2, control="other")
    assert one.hijacked == two.hijacked
    assert one.spans == two.spans
    assert one.clean != two.clean


def test_contexts_where_nothing_is_redrawn_are_counted():
    made = drawn(limit=300, length=3, share=0.2)
    assert len(made) + len(made.excluded) == 300
    assert len(made.excluded) == pytest.approx(300 * 0.64, abs=5 * np.sqrt(300 * 0.64 * 0.36))
    assert set(made.excluded["reason"]) == {"no position was redrawn"}
    assert set(made.excluded) == {"index", "reason", "y", "other", "control", "distance", "share"}
    assert all(made.spans["redrawn"])
    with pytest.raises(LcalensError, match=r"^share: 1e-09 redraws nothing"):
        drawn(share=1e-9)


def test_the_whole_context_can_be_redrawn():
    made = drawn(share=1.0)
    assert set(made.spans["redrawn"]) == {((0, 23),)}
    assert made.places("redrawn")[0] == (tuple(range(-24, -1)),)


def test_a_seed_is_a_generator_and_both_worlds_name_their_controls_alike():
    given = {"limit": 30, "length": 6}
    for seed in (0, 7):
        expected = contrast_concepts(LatentConcepts(4), **given, generator=torch.Generator().manual_seed(seed))
        assert contrast_concepts(LatentConcepts(4), **given, seed=seed).content() == expected.content()
    assert contrast_concepts(LatentConcepts(4), **given).content() != expected.content()
    for one, same in (("neutral", "same"), ("other", "other-object")):
        found = [contrast_concepts(LatentConcepts(4), **given, control=name).content() for name in (one, same)]
        assert found[0] == found[1]
    with pytest.raises(LcalensError, match="seed: give a seed or a generator"):
        contrast_concepts(LatentConcepts(4), **given, seed=1, generator=torch.Generator())


def test_size_is_the_old_name_of_limit():
    given = {"length": 6, "seed": 3}
    with pytest.warns(DeprecationWarning, match=r"size is limit since lcalens 0.2"):
        old = contrast_concepts(LatentConcepts(4), size=20, **given)
    assert old.content() == contrast_concepts(LatentConcepts(4), limit=20, **given).content()
    with pytest.raises(LcalensError, match=r"^size: .*give limit alone"):
        contrast_concepts(LatentConcepts(4), size=20, limit=20, **given)
    with pytest.raises(LcalensError, match=r"^limit: expected an integer"):
        contrast_concepts(LatentConcepts(4), **given)
