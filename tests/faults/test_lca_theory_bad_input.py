"""Matrices, models and sizes that the toy world's theory cannot use: one error, which names the argument."""

import pytest
import torch

from lcalens.core.errors import LcalensError
from lcalens.lca.geometry import attention_mass, cosine, least_squares_scale, principal_angles
from lcalens.lca.model.closed_forms import closed_form_model, theorem1_model
from lcalens.lca.theory import (
    every_claim,
    lemma2,
    lemma5,
    lemma6,
    lemma6_pull,
    population_margin,
    theorem1,
    theorem3,
    theorem3_solved,
    theorem4,
    value_role,
)
from lcalens.lca.world.concepts import LatentConcepts

WORLD = LatentConcepts(3, omega=1.0)


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("compare", [cosine, least_squares_scale, lambda a, b: principal_angles(a, b, 1)])
def test_matrices_of_two_shapes(compare):
    with pytest.raises(LcalensError, match=r"b: shape \(3, 3\) is not the shape of a, \(4, 4\)"):
        compare(torch.eye(4), torch.eye(3))


def test_angles_of_what_is_no_matrix():
    with pytest.raises(LcalensError, match="a: expected a matrix"):
        principal_angles(torch.ones(4), torch.ones(4), 1)


def test_a_value_of_another_size():
    with pytest.raises(LcalensError, match=r"value: .*\(4, 4\), got shape \(3, 3\)"):
        closed_form_model(torch.zeros(8, 4), torch.zeros(3, 3))
    with pytest.raises(LcalensError, match=r"value: .*\(8, 8\)"):
        value_role(WORLD, theorem1_model(WORLD), values={"small": torch.eye(3)}, generator=seeded())


@pytest.mark.parametrize("last", [torch.tensor([0.5]), [1], torch.tensor([8])])
def test_tokens_that_are_none(last):
    with pytest.raises(LcalensError, match="last"):
        attention_mass(WORLD, theorem1_model(WORLD), torch.ones(1, 8), last, torch.tensor([0]))


@pytest.mark.parametrize(
    "measure",
    [
        lambda model: theorem1(WORLD, model, generator=seeded()),
        lambda model: theorem3(WORLD, model, generator=seeded()),
        lambda model: theorem4(WORLD, lambda *_, **__: model, generator=seeded()),
        lambda model: lemma2(WORLD, [model], generator=seeded()),
        lambda model: lemma6(WORLD, model, generator=seeded()),
        lambda model: lemma6_pull(LatentConcepts(3, neighborhood="cluster"), model, generator=seeded()),
        lambda model: value_role(WORLD, model, generator=seeded()),
        lambda model: population_margin(WORLD, model),
    ],
)
def test_models_of_another_world_and_no_models(measure):
    with pytest.raises(LcalensError, match="model: it has 16 tokens and the world 8; give a model with m = 3"):
        measure(theorem1_model(LatentConcepts(4)))
    with pytest.raises(LcalensError, match="model: expected an LCAForCausalLM, got str"):
        measure("model")


@pytest.mark.parametrize("lengths", [5, "5", [], [0, 4], [8, 8], [8, 4], [1.5], [None]])
def test_lengths(lengths):
    with pytest.raises(LcalensError, match="lengths"):
        theorem1(WORLD, lengths=lengths, generator=seeded())


@pytest.mark.parametrize("b0", [5.0, [], [3.0, 2.0], [3.0, 3.0], [float("nan")], ["x"]])
def test_squared_lengths(b0):
    with pytest.raises(LcalensError, match="b0"):
        theorem4(WORLD, b0=b0, generator=seeded())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: theorem1(WORLD, samples=0, generator=seeded()), "samples: expected"),
        (lambda: theorem1(WORLD, epsilon=2, generator=seeded()), "epsilon: expected"),
        (lambda: theorem4(WORLD, b=1.0, generator=seeded()), "raise b to at least a m / 2"),
        (lambda: theorem3(WORLD, theorem1_model(WORLD), generator=seeded()), "model: Theorem 3 speaks of W_V = I"),
        (lambda: theorem3(WORLD, length=0, generator=seeded()), "length: expected"),
        (lambda: theorem3(WORLD, least_r2=3, generator=seeded()), "least_r2: expected"),
        (lambda: theorem3_solved(LatentConcepts(6, omega=1.0), generator=seeded()), "m: expected"),
        (lambda: theorem3_solved(WORLD, samples=0, generator=seeded()), "samples: expected"),
        (lambda: lemma2(WORLD, [], generator=seeded()), "models: expected at least one"),
        (lambda: lemma2(WORLD, length=8, generator=seeded()), "length: 8 tokens give"),
        (lambda: lemma2(WORLD, samples=0, generator=seeded()), "samples: expected"),
        (lambda: lemma5(WORLD, a=1.0, b=1.0), "raise b to at least a m / 2"),
        (lambda: lemma5(WORLD, torch.eye(7)), "embedding: expected 8 rows"),
        (lambda: lemma5(WORLD, tolerance=-1), "tolerance: expected"),
        (lambda: lemma6(WORLD, samples=0, generator=seeded()), "samples: expected"),
        (lambda: lemma6_pull(WORLD, generator=seeded()), "give neighborhood='cluster'"),
        (lambda: value_role(WORLD, theorem1_model(WORLD), samples=0, generator=seeded()), "samples: expected"),
        (lambda: every_claim(2, generator=seeded()), "m: expected"),
    ],
)
def test_errors_name_the_argument_the_value_and_the_fix(wrong, message):
    with pytest.raises(LcalensError, match=message):
        wrong()
