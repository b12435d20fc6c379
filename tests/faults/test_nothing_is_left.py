"""After a verb, and after an exception in the middle of one, all is as it was before.

Hooks, the mode of gradients, generators, the default type, threads, filters of warnings, logging, matplotlib's
settings, the model's own state: a notebook that goes on after an interrupt goes on with what it had.
"""

import itertools
import logging
import os
import random
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from helpers.standins import raising
from matplotlib import pyplot

import lcalens
from lcalens.core.stamp import every_module
from lcalens.lca.defences import evaluate_toy_defence

CONCEPTS = lcalens.LatentConcepts(4)
RECIPE = lcalens.TrainConfig(8, 8, 8, steps=20, batch_size=4)


@pytest.fixture(scope="module")
def model(standin):
    return lcalens.load_model(standin("llama").folder, progress=False)


@pytest.fixture(scope="module")
def facts():
    return lcalens.load_facts("sample", limit=6)


@pytest.fixture(scope="module")
def contrast(model, facts):
    return lcalens.contrast_facts(model, facts)


def verbs(model, facts, contrast, standin):
    """Every verb that reports progress, as a function of its callback."""
    heads = [(0, 1), (1, 0)]
    bare = lcalens.contrast_facts(model, facts, control="none")
    raises = raising(model, contrast)
    cut = lcalens.defend(model, bare, heads=heads)
    cues = (10, 14, 16, 18)
    by_ids = lcalens.Contrast(
        [[12, 11, 13, 19]] * 4,
        [[12, cue, 13, 19] for cue in cues],
        true=12,
        false=[15, 17, 22, 23],
        spans={"word": (1, 2)},
    )
    known = {"plain text": [f"A short text of {i} words." for i in range(6)]}
    texts = ("A short text of some words.", "Another one, as short as that.")
    runs = lcalens.train(CONCEPTS, RECIPE, seeds=range(1), progress=False)
    return {
        "load_model": lambda told: lcalens.load_model(standin("llama").folder, progress=told),
        "efficacy": lambda told: lcalens.efficacy(model, facts, counts=(0, 1), progress=told),
        "patch": lambda told: lcalens.patch(model, contrast, progress=told),
        "patch, pattern": lambda told: lcalens.patch(model, contrast, site="pattern", positions="all", progress=told),
        "knockout": lambda told: lcalens.knockout(model, contrast, progress=told),
        "exchange": lambda told: lcalens.exchange(model, contrast, [heads], progress=told),
        "attribute": lambda told: lcalens.attribute(model, contrast, progress=told),
        "split": lambda told: lcalens.split(model, contrast, progress=told),
        "shapley": lambda told: lcalens.shapley(model, contrast, heads, progress=told),
        "path": lambda told: lcalens.path(model, contrast, progress=told),
        "path, screened": lambda told: lcalens.path(model, contrast, method="gradient", progress=told),
        "recall": lambda told: lcalens.recall(model, by_ids, heads, progress=told),
        "memory": lambda told: lcalens.memory(model, by_ids, (1, 0), draws=2, progress=told),
        "head_kinds": lambda told: lcalens.head_kinds(model, raises, heads, progress=told),
        "score_parts": lambda told: lcalens.score_parts(model, contrast, heads, progress=told),
        "learn_heads": lambda told: lcalens.learn_heads(model, bare, 2, negatives=known, steps=2, progress=told),
        "evaluate_defence": lambda told: lcalens.evaluate_defence(
            model, {"cut": cut}, facts, schemes=("dont-think",), honest=("fiction",), texts=texts, progress=told
        ),
        "train": lambda told: lcalens.train(CONCEPTS, RECIPE, seeds=range(2), progress=told),
        "evaluate_toy_defence": lambda told: evaluate_toy_defence(
            CONCEPTS, runs, length=8, share=0.5, contexts=10, progress=told
        ),
    }


NAMES = (
    "load_model", "efficacy", "patch", "patch, pattern", "knockout", "exchange", "attribute", "split", "shapley",
    "path", "path, screened", "recall", "memory", "head_kinds", "score_parts", "learn_heads", "evaluate_defence",
    "train", "evaluate_toy_defence",
)  # fmt: skip


@pytest.fixture(scope="module")
def every_verb(model, facts, contrast, standin):
    found = verbs(model, facts, contrast, standin)
    assert tuple(found) == NAMES
    return found


def hooks_of(module):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "fwd_hooks", "bwd_hooks")
    return [len(getattr(module, kind, None) or ()) for kind in kinds]


def state(model):
    """All that a verb may not leave behind."""
    loggers = [logging.getLogger(name) for name in ("", "transformers", "datasets", "torch", "lcalens", "jaxtyping")]
    return {
        "hooks": [hooks_of(module) for module in every_module(model)],
        "modes": [module.training for module in every_module(model)],
        "gradients": [(p.requires_grad, p.grad is None) for p in model.original_model.parameters()],
        "weights": [p.detach().double().sum().item() for p in model.original_model.parameters()],
        "attention": model.original_model.config._attn_implementation,
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "default dtype": (torch.get_default_dtype(), torch.get_default_device()),
        "threads": (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": str(np.random.get_state()),  # noqa: NPY002 - the global one is what is looked at
        "generator": hash(random.getstate()),
        "warnings": list(warnings.filters),
        "logging": [(log.level, log.disabled, log.propagate, list(log.handlers), list(log.filters)) for log in loggers],
        "matplotlib": dict(matplotlib.rcParams),
        "figures": pyplot.get_fignums(),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "numbers": np.geterr(),
    }


def same(before, after):
    for name, value in before.items():
        assert after[name] == value, name


class Stop(Exception):
    """Raised in a callback."""


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_behind(every_verb, model, name):
    every_verb[name](False)  # what is imported at the first call may draw numbers of its own
    before = state(model)
    every_verb[name](False)
    same(before, state(model))


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_behind_by_an_exception_at_any_callback(every_verb, model, name, error):
    calls = itertools.count(1)
    every_verb[name](lambda done, total, what: next(calls))
    count = next(calls) - 1
    assert count > 0 or name == "load_model", "it never reports"
    before = state(model)
    for at in sorted({1, min(2, count), max(1, count // 2), count} if count else ()):
        calls = itertools.count(1)

        def told(done, total, what, calls=calls, at=at):
            if next(calls) == at:
                raise error

        with pytest.raises(error):
            every_verb[name](told)
        same(before, state(model))


def test_what_was_set_before_is_set_after(every_verb):
    """Where gradients are off, or another type is the default, it stays so."""
    with torch.no_grad():
        every_verb["attribute"](False)
        assert not torch.is_grad_enabled()
    torch.set_default_dtype(torch.float64)
    try:
        every_verb["patch"](False)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_figures_and_reports_leave_settings_alone(every_verb, model, contrast):
    found = every_verb["patch"](False)
    before = state(model)
    found.plot()
    found.to_frame()
    lcalens.report([found])
    lcalens.attention_view(model, contrast[:1], [(0, 1)])
    same(before, state(model))
