"""What contrasts say to arguments they cannot use: an LcalensError that names them."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import standins
from helpers.names import shown

from lcalens.core.errors import LcalensError
from lcalens.lca.contrasts import contrast_concepts
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.llm.contrasts import contrast_facts
from lcalens.llm.facts.facts import Fact, Facts
from lcalens.mechanism.contrast.contrast import Contrast

NAN, INF = math.nan, math.inf
LANDS = list(standins.CAPITALS.items())
FACTS = Facts(
    Fact(case_id=i, relation_id="P36", prompt="The capital of {} is", subject=land, target_true=city,
         target_false=LANDS[i - 1][1])
    for i, (land, city) in enumerate(LANDS)
)  # fmt: skip


def refused(name):
    return pytest.raises(LcalensError, match=rf"^{name}\b")


@pytest.fixture(scope="module")
def tokenizer():
    return standins.byte_level_tokenizer()


@pytest.fixture(scope="module")
def model(standin):
    return standin("llama").model


# --- by hand ----------------------------------------------------------------------------------------------------------

GIVEN = {"clean": [[1, 2, 3], [4, 5]], "hijacked": [[1, 9, 3], [4, 8]], "true": [6, 6], "false": [7, 7]}


def make(**changes):
    return Contrast(**(GIVEN | changes))


NO_TOKENS = [
    None, 5, 2.5, [], (), {}, b"ab", [[]], [[1, 2], []], [[1.5, 2.0], [1, 2]], [[True, False], [1, 2]], [["a"], [1]],
    [1, "a"], [[1, -1], [1, 2]], [[10**400], [1]], [[1, None], [1, 2]], torch.tensor([[1.0, 2.0]] * 2), torch.zeros(0),
    torch.zeros(2, 2, 2).long(), torch.tensor(3), np.array([["a", "b"]] * 2), np.array([[1.0]] * 2), object(),
    torch.zeros(2, 0).long(), [[[1]], [[2]]], torch.tensor([[True, False]] * 2), NAN,
]  # fmt: skip


@pytest.mark.parametrize("argument", ["clean", "hijacked"])
@pytest.mark.parametrize("value", NO_TOKENS, ids=shown)
def test_what_is_no_tokens(argument, value):
    with refused(argument):
        make(**{argument: value})


@pytest.mark.parametrize("argument", ["true", "false"])
@pytest.mark.parametrize(
    "value",
    [None, 2.5, [], [1], [1, 2, 3], [[1], []], [[1.5], [2]], [True, 1], [1, -2], {}, b"a", [None, 1], NAN, object(),
     torch.tensor([1.5, 2.5]), torch.tensor([1]), torch.zeros(2, 2, 2).long(), True, -1, [[[1]], [[1]]], 10**400],
    ids=shown,
)  # fmt: skip
def test_what_is_no_answer(argument, value):
    with refused(argument):
        make(**{argument: value})


def test_answers_that_never_differ():
    with refused("false"):
        make(false=6)


@pytest.mark.parametrize("value", ["a", ["a", "b"]])
def test_text_needs_a_tokenizer(value):
    for argument in ("clean", "hijacked", "true"):
        with refused("tokenizer"):
            make(**{argument: value})


@pytest.mark.parametrize("value", [5, "gpt2", object(), torch.nn.Linear(1, 1)], ids=shown)
def test_what_is_no_tokenizer(value):
    with refused("tokenizer"):
        make(tokenizer=value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("clean", ""), ("clean", ["a", 5]), ("hijacked", ["a", ""]), ("clean", "\ud800"), ("true", ""), ("true", "\ud800"),
     ("hijacked", ["a", "b", "c"])],
)  # fmt: skip
def test_texts_that_cannot_be(tokenizer, argument, value):
    given = {"clean": "The capital", "hijacked": "Do not", "true": " Paris", "false": " Rome"}
    if isinstance(value, list):
        given |= {"clean": ["a", "b"], "hijacked": ["c", "d"]}
    with refused(argument):
        Contrast(**(given | {argument: value}), tokenizer=tokenizer)


@pytest.mark.parametrize("argument", ["clean", "hijacked"])
@pytest.mark.parametrize(
    "value",
    [5, "1", [], [[1, 1, 1]], [[1, 1], [1, 1]], [[1, 1, 2], [1, 1]], [[1, 0.5, 1], [1, 1]], torch.ones(2, 3), [[1], 1],
     [[1, None, 1], [1, 1]], {}, object()],
    ids=shown,
)  # fmt: skip
def test_what_is_no_mask(argument, value):
    with refused(f"{argument}_mask"):
        make(**{f"{argument}_mask": value})


def test_masks_that_leave_nothing_and_masks_of_texts(tokenizer):
    with refused("clean"):
        make(clean_mask=[[1, 1, 1], [0, 0]])
    with refused("clean_mask"):
        Contrast("a", "b", true=1, false=2, tokenizer=tokenizer, clean_mask=[[1]])


@pytest.mark.parametrize(
    "value",
    [5, "word", [], [(0, 1)], {5: (0, 1)}, {"": (0, 1)}, {"all": (0, 1)}, {"each": (0, 1)}, {"last": (0, 1)},
     {"a": (0, 3)}, {"a": (1, 1)}, {"a": (-1, 1)}, {"a": (2, 1)}, {"a": [(0, 1)]}, {"a": [(0, 1)] * 3}, {"a": 5},
     {"a": None}, {"a": [(0, 1), 5]}, {"a": [(0, 1), (0, 1.5)]}, {"a": [(0, 1), "b"]}, {"a": "word"},
     {"a": [(0, 1), [(0, 1), (1,)]]}, {"a": (True, 2)}, {"a": [(0, 1), None]}],
    ids=shown,
)  # fmt: skip
def test_what_is_no_span(value):
    with refused("spans"):
        make(spans=value)


def test_spans_of_padding_alone_and_words_that_do_not_occur(tokenizer):
    with refused("spans"):
        make(hijacked=[[0, 1, 9], [4, 8, 3]], hijacked_mask=[[0, 1, 1], [1, 1, 1]], spans={"a": (0, 1)})
    for word in ("Oslo", ""):
        with refused("spans"):
            Contrast("a", "b Rome", true=1, false=2, tokenizer=tokenizer, spans={"a": word})


@pytest.mark.parametrize("value", [5, "a", [], pd.DataFrame({"a": [1]}), pd.Series([1, 2])], ids=shown)
def test_what_is_no_table(value):
    with refused("examples"):
        make(examples=value)
    with refused("excluded"):
        make(excluded=value)


def test_counts_that_differ():
    with refused("hijacked"):
        make(hijacked=[[1, 2]])


@pytest.mark.parametrize(
    "which",
    [5, -3, 2.5, None, "a", [0, 5], [True], [True] * 3, [False, False], [], slice(5, 9), torch.tensor([0.5]), [0, 1.5],
     {}, np.array([[0, 1]]), torch.tensor([[True, False]]), True, 10**400],
    ids=shown,
)  # fmt: skip
def test_examples_that_are_not_there(which):
    with refused("contrast"):
        make()[which]


@pytest.mark.parametrize(
    "positions",
    [None, 2.5, "first", "", [], [0.5], [2], 2, -3, [True], True, {}, ["last"], [0, None], 10**400, object(), NAN],
    ids=shown,
)
def test_positions_that_are_not_there(positions):
    with refused("positions"):
        make().places(positions)


def test_a_span_that_an_example_has_not():
    with refused("positions"):
        make(spans={"a": [[], (0, 1)]}).places("a")


# --- facts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("scheme", value) for value in ("dontthink", "", None, 5, "{nothing}", ["dont-think"])),
        *(("n", value) for value in (0, -1, 1.5, NAN, True, None, "1", [1])),
        *(("control", value) for value in ("Neutral", "", 5, [], ["neutral"])),
        *(("related", value) for value in ("tables", None, 5, [])),
        *(("seed", value) for value in (-1, 1.5, None, "0", True)),
        *(("limit", value) for value in (0, -1, 1.5, "3", True, [])),
        *(("facts", value) for value in (None, 5, "sample", [], [5], {})),
        *(("model", value) for value in (None, 5, "smollm2", torch.nn.Linear(1, 1))),
    ],
    ids=shown,
)
def test_arguments_of_contrast_facts(model, argument, value):
    given = {"model": model, "facts": FACTS} | {argument: value}
    with refused(argument):
        contrast_facts(given.pop("model"), given.pop("facts"), **given)


@pytest.mark.parametrize("scheme", ["neutral", "unrelated", "neutral-various", "It rained.", "Think of {unrelated}."])
def test_other_object_needs_an_object(model, scheme):
    with refused("control"):
        contrast_facts(model, FACTS, scheme=scheme, control="other-object")


def test_no_fact_is_left(model):
    with pytest.raises(LcalensError, match=r"^facts: none of 1 .*no other object"):
        contrast_facts(model, FACTS[:1].sample(1) and Facts([FACTS[0]]), control="other-object")
    with pytest.raises(LcalensError, match=r"^facts: none of 16 .*too few|^facts: none of 16 .*no other subject"):
        contrast_facts(model, FACTS, scheme="factual", n=10)


def test_more_tokens_than_the_model_holds(model):
    with refused("texts"):
        contrast_facts(model, FACTS, n=60)


# --- concepts ---------------------------------------------------------------------------------------------------------

WORLD = LatentConcepts(3)
NO_INTEGERS = [0, -1, 2.5, NAN, INF, True, None, "3", [3], 1j]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("limit", value) for value in NO_INTEGERS),
        *(("length", value) for value in (1, *NO_INTEGERS)),
        *(("share", value) for value in (0, 0.0, -0.1, 1.1, NAN, INF, None, "0.5", True, [0.5], 1j, 1e-300)),
        *(("distance", value) for value in (4, *(value for value in NO_INTEGERS if value is not None))),
        *(("control", value) for value in ("Same", "", None, 5, [], ["same"])),
        *(("generator", value) for value in (0, "0", np.random.default_rng(0))),
        *(("concepts", value) for value in (None, 3, "world", torch.nn.Linear(1, 1))),
    ],
    ids=shown,
)
def test_arguments_of_contrast_concepts(argument, value):
    given = {"concepts": WORLD, "limit": 4, "length": 5, "generator": torch.Generator().manual_seed(0)}
    given |= {argument: value}
    with refused(argument):
        contrast_concepts(given.pop("concepts"), **given)


def test_no_companion_at_distance_m():
    with refused("distance"):
        contrast_concepts(
            WORLD, limit=4, length=5, distance=3, control="other", generator=torch.Generator().manual_seed(0)
        )
