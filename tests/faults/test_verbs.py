"""One table of faults for all verbs: every bad value, in every verb that has the argument, is refused by its name.

A verb's argument that the table does not know is a failure, so that no argument stays without bad values.
"""

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lcalens import (
    LCAConfig,
    LCAForCausalLM,
    agreement,
    attention_view,
    attribute,
    exchange,
    knockout,
    lca_bridge,
    load_model,
    memory_estimate,
    patch,
    ranking,
    run_with_cache,
    split,
)
from lcalens.core.errors import LcalensError
from lcalens.core.results import Result
from lcalens.mechanism.contrast.contrast import Contrast

LAYERS, HEADS, VOCABULARY, CONTEXT = 2, 3, 30, 12


def made_contrast(**changes):
    parts = {"clean": [[1, 2, 3, 4]] * 4, "hijacked": [[1, 5, 3, 4], [1, 6, 3, 4]] * 2, "true": 1, "false": 2}
    return Contrast(**(parts | changes), spans={"sentence": (1, 2)})


def plain_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=12, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def gpt2():
    from helpers.standins import byte_level_tokenizer

    return load_model(plain_gpt2(), tokenizer=byte_level_tokenizer(), progress=False)


@pytest.fixture(scope="module")
def effects(gpt2):
    return patch(gpt2, made_contrast(), progress=False)


# Each verb, with what it takes besides a model and a contrast.
TAKES_A_MODEL = {
    "patch": (patch, {}),
    "patch at v": (patch, {"site": "v"}),
    "patch by whole answers": (patch, {"metric": "whole-answer"}),
    "patch by zeros": (patch, {"source": "zero"}),
    "patch by means": (patch, {"source": "mean", "positions": "all"}),
    "run_with_cache": (run_with_cache, {}),
    "memory_estimate": (memory_estimate, {}),
    "knockout": (knockout, {}),
    "knockout of each head": (knockout, {"heads": "each"}),
    "exchange": (exchange, {"sets": [[(0, 0)]]}),
    "attribute": (attribute, {}),
    "attribute along the way": (attribute, {"method": "integrated-gradients", "steps": 2}),
    "attribute directly": (attribute, {"method": "direct"}),
    "split": (split, {}),
    "attention_view": (attention_view, {"heads": [(0, 0)]}),
}
TAKES_RESULTS = {"ranking": ranking, "agreement": agreement}

ODD = [None, 1.5, True, "", b"z", ["z"], {"z": 1}, {1}, np.array([1, 2]), torch.ones(2), object, object()]
NOT_A_NUMBER = [None, "2", True, [1], {}, math.nan, 1j, object()]
NO_HEADS = [
    None, 3, 1.5, "", "last", [], {}, [3], [(0,)], [(0, 0, 0)], [(LAYERS, 0)], [(0, HEADS)], [(-1, 0)], [(0.0, 0)],
    [(True, 0)], ["00"], [None], [[None, 0]], np.zeros((1, 3), int), np.zeros((1, 2)), torch.tensor([[0, HEADS]]),
    torch.zeros(1, 2), np.array(0), [(np.int64(LAYERS), np.int64(0))], [(10**30, 0)], object,
]  # fmt: skip
FAULTS = {
    "model": [
        None, "smollm2", 3, object(), torch.nn.Linear(2, 2), plain_gpt2, plain_gpt2(), lca_bridge,
        LCAForCausalLM(LCAConfig(m=3, d_model=4, d_head=4)), LCAForCausalLM,
    ],
    "contrast": [
        None, "x", 3, [[1, 2]], ([1], [2]), {"clean": [1]}, torch.ones(2, 3), Contrast,
        made_contrast(clean=[[1, 2, 3, VOCABULARY]] * 4),
        made_contrast(hijacked=[[VOCABULARY + 5, 2, 3, 4]] * 4),
        made_contrast(clean=[[1] * (CONTEXT + 1)] * 4, hijacked=[[2] * (CONTEXT + 1)] * 4),
        made_contrast(true=VOCABULARY),
        made_contrast(false=2 * VOCABULARY),
        made_contrast(true=[[1, VOCABULARY]] * 4),
    ],
    "site": [
        *ODD, "Head", "hook_resid_mid", "blocks.0.hook_resid_mid", "blocks.0", "blocks.-1.attn.hook_z", "attn.hook_x",
        f"blocks.{LAYERS}.attn.hook_z", "blocks.x.hook_mlp_out", "blocks.0.attn.hook_mlp_out",
    ],
    "positions": [
        None, 2.5, True, "", "word", "Last", [], [True], [0.5], ["last"], [4], [-5], 9, {}, [[1]], [None], [10**30],
        object, np.array([0.5]), torch.ones(1), np.int64(7), torch.tensor([-9]), np.float64(1), b"last",
    ],
    "direction": [*ODD, "Restore", "both"],
    "source": [*ODD, "Zero", "resample", (), {"attn.hook_z": torch.ones(1)},
               {f"blocks.{layer}.attn.hook_z": np.ones((4, 4, HEADS, 4)) for layer in range(LAYERS)},
               {f"blocks.{layer}.attn.hook_z": torch.ones(3, 4, HEADS, 4) for layer in range(LAYERS)}],
    "names_filter": [1.5, True, "", b"z", [], ["z", "x"], [None], "blocks.9.attn.hook_z", object, lambda name: False],
    "verb": [*ODD, "split", "Patch"],
    "run": [*ODD, "Clean", "both"],
    "metric": [*(value for value in ODD if value is not object), "Logit-difference", "loss"],
    "memory": [*NOT_A_NUMBER, 0, -1, 1e-9, math.inf, 10**400],
    "progress": [None, 1, "yes", [], 0.5],
    "out": [3, b"x\0y", "a\0b", object(), ["x"]],
    "span": [*ODD, "word", "all"],
    "heads": NO_HEADS,
    "renormalise": [None, 1, "yes", [], 0.0],
    "sets": [*NO_HEADS, [[]], [NO_HEADS], [[(0, 0)], []]],
    "method": [*ODD, "Direct", "gradient"],
    "steps": [*NOT_A_NUMBER, 0, -3, 1.5, 10**6],
    "groups": [1.5, True, "", b"z", [None], {"z": 1}, {1}, np.array([1, 2]), object, ["word"], "word", []],
    "twin": [None, -1, 2.5, True, *(value for value in NO_HEADS if not isinstance(value, int))],
    "layer": [*NOT_A_NUMBER, -1, LAYERS, 0.5],
    "example": [*NOT_A_NUMBER, 4, -5, 0.5],
    "result": ["x", None, 3, object(), {"values": 1}, Result],
    "n_jobs": [*NOT_A_NUMBER, 0, -2, 1.5],
    "held_out": ["x", 3, object(), Result],
    "a": ["x", None, 3, Result],
    "b": ["x", None, 3, Result],
    "quantity": [3, 1.5, True, "", "loss", ["recovery"], {1}, object],
    "by": [None, 1, "Mean", ["mean"], {1}, object],
    "cluster": [3, "relation", ["index"], {1}, object],
    "confidence": [*NOT_A_NUMBER, -0.1, 1.1],
    "resamples": [*NOT_A_NUMBER, 0, -1, 2.5],
    "seed": [*NOT_A_NUMBER, -1, 2.5],
    "k": [*NOT_A_NUMBER, 0, -1, 2.5, LAYERS * HEADS + 1],
}  # fmt: skip


def refused(name):
    return pytest.raises(LcalensError, match=rf"^{name}\b")


def arguments(verb):
    return [name for name in inspect.signature(verb).parameters if name != "options"]


@pytest.mark.parametrize("column", TAKES_A_MODEL)
def test_every_bad_value_in_every_verb_is_refused_by_name(column, gpt2):
    verb, given = TAKES_A_MODEL[column]
    unknown = set(arguments(verb)) - set(FAULTS) - {"tokenizer", "title", "arguments"}
    assert not unknown, f"{verb.__name__} has arguments without bad values: {sorted(unknown)}"
    whole = {"model": gpt2, "contrast": made_contrast()} | given
    if "progress" in arguments(verb):
        whole["progress"] = False
    verb(**whole)
    for name in arguments(verb):
        for value in FAULTS.get(name, ()):
            with refused(name):
                verb(**(whole | {name: value}))
                pytest.fail(f"{column}({name}={value!r:.60}) is taken")


@pytest.mark.parametrize("column", TAKES_RESULTS)
def test_every_bad_value_of_what_takes_results(column, effects):
    verb = TAKES_RESULTS[column]
    unknown = set(arguments(verb)) - set(FAULTS)
    assert not unknown, f"{column} has arguments without bad values: {sorted(unknown)}"
    whole = {name: effects for name in ("result", "a", "b") if name in arguments(verb)}
    whole |= {"resamples": 5} | ({"k": 2} if "k" in arguments(verb) else {})
    verb(**whole)
    for name in arguments(verb):
        for value in FAULTS[name]:
            with refused(name):
                verb(**(whole | {name: value}))
                pytest.fail(f"{column}({name}={value!r:.60}) is taken")


def test_what_needs_runs_of_equal_length_says_so(gpt2):
    apart = made_contrast(clean=[[1, 3, 4]] * 4)
    for verb, given in ((exchange, {"sets": [[(0, 0)]]}),):
        with pytest.raises(LcalensError, match=r"^contrast: .* equal length"):
            verb(gpt2, apart, **given, progress=False)
    for verb in (patch, attribute):
        for site in ("k", "v", "pattern", "attn_scores", "blocks.1.attn.hook_v"):
            with pytest.raises(LcalensError, match=r"^site: .* different lengths"):
                verb(gpt2, apart, site=site, progress=False)


@pytest.mark.parametrize("verb", [patch, knockout, split, attribute])
def test_what_makes_a_bridge_is_said(verb):
    toy = LCAForCausalLM(LCAConfig(m=3, d_model=4, d_head=4))
    with pytest.raises(LcalensError, match=r"^model: .*lca_bridge\(model\)"):
        verb(toy, made_contrast(), progress=False)
    with pytest.raises(LcalensError, match=r"^model: .*load_model\(model, tokenizer=tokenizer\)"):
        verb(plain_gpt2(), made_contrast(), progress=False)


SAME_HEADS = [[(0, 1), (1, 2)], ((1, 2), (0, 1), (0, 1)), {(0, 1), (1, 2)}, np.array([[0, 1], [1, 2]]),
              torch.tensor([[0, 1], [1, 2]]), iter([(0, 1), [1, 2]]), [np.array([0, 1]), torch.tensor([1, 2])],
              [(np.int64(0), np.int32(1)), (1, 2)]]  # fmt: skip


def test_heads_in_every_form_are_the_same_heads_in_every_verb(gpt2):
    contrast = made_contrast()
    expected = {}
    for heads in SAME_HEADS:
        heads = list(heads) if hasattr(heads, "__next__") else heads
        for name, values in {
            "knockout": knockout(gpt2, contrast, heads=heads, progress=False).values["value"],
            "exchange": exchange(gpt2, contrast, [heads], progress=False).values["value"],
            "split": split(gpt2, contrast, twin=heads, progress=False).tables["twin"]["value"].to_numpy(),
        }.items():
            np.testing.assert_array_equal(values, expected.setdefault(name, values))


SAME_POSITIONS = [
    -2,
    np.int64(-2),
    torch.tensor(-2),
    [2],
    (2,),
    np.array([2]),
    torch.tensor([2]),
    [np.int64(-2)],
    range(2, 3),
]


def test_positions_in_every_form_are_the_same_positions_in_every_verb(gpt2):
    contrast = made_contrast()
    for verb in (patch, attribute, knockout):
        whole: dict[str, Any] = {"site": "resid_pre"} if verb is not knockout else {}
        found = [verb(gpt2, contrast, positions=at, **whole, progress=False) for at in SAME_POSITIONS]
        for one in found:
            for name, values in one.values.items():
                np.testing.assert_array_equal(values, found[0].values[name])
            assert one.provenance["positions"] in (-2, [-2], [2])
