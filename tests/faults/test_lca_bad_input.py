"""What the toy world, its model and its training say to arguments they cannot use: an LcalensError that names them."""

import contextlib
import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from lcalens.core.errors import LcalensError
from lcalens.lca.model.model import LCAConfig, lca_tokenizer
from lcalens.lca.training.config import TrainConfig
from lcalens.lca.training.training import train
from lcalens.lca.world import bayes
from lcalens.lca.world.concepts import LatentConcepts

NAN, INF = math.nan, math.inf
WORLD = LatentConcepts(3)
TOKENS, Y = torch.tensor([[1, 5, 0, 7], [2, 2, 6, 3]]), torch.tensor([4, 1])
RECIPE = TrainConfig(context_length=4, d_model=8, d_head=4, batch_size=4, steps=2)
NO_INTEGERS = [0, -1, 2.5, NAN, INF, True, None, "3", [3], 1j]
NO_NUMBERS = [NAN, INF, -INF, True, None, "0.5", [0.5], 1j, 10**400]


class Anything:
    """An object of no type that is meant."""


def generator():
    return torch.Generator().manual_seed(0)


def refused(name):
    return pytest.raises(LcalensError, match=rf"^{name}\b")


@contextlib.contextmanager
def refused_or_fine(name):
    """Either what is done within succeeds, or lcalens refuses the argument by name."""
    try:
        yield
    except LcalensError as error:
        if not re.match(rf"{name}\b", str(error)):
            raise


# --- the world ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("m", value) for value in (1, 15, *NO_INTEGERS)),
        *(("omega", value) for value in (-0.1, 1.1, *NO_NUMBERS)),
        *(("beta", value) for value in (0, 0.0, -1, *NO_NUMBERS)),
        *(("neighborhood", value) for value in ("foo", "All", "", None, 1, [], ["all"])),
        *(("cluster_bits", value) for value in (3, 4, *NO_INTEGERS)),
    ],
    ids=lambda value: f"{value!r:.12}",
)
def test_a_world_that_is_none(argument, value):
    with refused(argument):
        LatentConcepts(**({"m": 3} | {argument: value}))


@pytest.mark.parametrize("beta", [5e-324, 1e-310, 1e-300, 1e300])
def test_extreme_temperatures_are_refused_or_give_a_distribution(beta):
    with refused_or_fine("beta"):
        world = LatentConcepts(3, beta=beta)
        assert world.pi(torch.arange(8), torch.tensor(0)).sum() == pytest.approx(1)


def test_numbers_of_numpy_and_fractions_are_numbers():
    world = LatentConcepts(np.int64(3), omega=Fraction(1, 2), beta=np.float32(1))
    for found, expected in zip(world.sample(3, 4, generator()), WORLD.sample(3, 4, generator()), strict=True):
        assert torch.equal(found, expected)


# --- sampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sample", "sample_counts"])
@pytest.mark.parametrize("argument", ["batch", "length"])
@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
def test_a_sample_of_no_size(method, argument, value):
    with refused(argument):
        getattr(WORLD, method)(**({"batch": 2, "length": 3, "generator": generator()} | {argument: value}))


@pytest.mark.parametrize("value", [None, 0, "cpu", Anything()], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "draw",
    [
        lambda source: WORLD.sample(2, 3, source),
        lambda source: WORLD.sample_counts(2, 3, source),
        lambda source: WORLD.sample_mixture(TOKENS[:, :2], [0.5, 0.5], 3, source),
        lambda source: WORLD.hijack(TOKENS, Y, Y, share=0.5, generator=source),
    ],
    ids=["sample", "sample_counts", "sample_mixture", "hijack"],
)
def test_no_generator(draw, value):
    with refused("generator"):
        draw(value)


NO_TOKENS = {
    "too large": TOKENS + 1,
    "negative": TOKENS - 1,
    "floats": TOKENS.float(),
    "booleans": TOKENS > 2,
    "list": TOKENS.tolist(),
    "array": TOKENS.numpy(),
    "nothing": None,
    "complex": TOKENS.to(torch.complex64),
}


@pytest.mark.parametrize("kind", NO_TOKENS)
@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("tokens", WORLD.posterior),
        ("tokens", WORLD.count),
        ("tokens", WORLD.bits),
        ("tokens", lambda bad: WORLD.p(bad, Y[:, None])),
        ("y", lambda bad: WORLD.p(TOKENS, bad)),
        ("tokens", lambda bad: WORLD.pi(bad, Y[:, None])),
        ("y", lambda bad: WORLD.pi(TOKENS, bad)),
        ("a", lambda bad: WORLD.distance(bad, TOKENS)),
        ("b", lambda bad: WORLD.distance(TOKENS, bad)),
        ("concepts", lambda bad: WORLD.sample_mixture(bad, [1.0] * 4, 3, generator())),
        ("tokens", lambda bad: WORLD.hijack(bad, Y, Y, share=0.5, generator=generator())),
        ("y", lambda bad: WORLD.hijack(TOKENS, bad, Y, share=0.5, generator=generator())),
        ("other", lambda bad: WORLD.hijack(TOKENS, Y, bad, share=0.5, generator=generator())),
    ],
    ids=["posterior", "count", "bits", "p", "p y", "pi", "pi y", "distance a", "distance b", "mixture", "hijack",
         "hijack y", "hijack other"],
)  # fmt: skip
def test_tokens_that_are_none(argument, call, kind):
    with refused(argument):
        call(NO_TOKENS[kind])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize(
    "call",
    [
        WORLD.posterior,
        WORLD.bits,
        lambda tokens: WORLD.count(tokens)[0],
        lambda tokens: WORLD.p(tokens, tokens[:, :1]),
        lambda tokens: WORLD.pi(tokens, tokens[:, :1]),
        lambda tokens: WORLD.distance(tokens, tokens[:, :1]),
        lambda tokens: WORLD.sample_mixture(tokens, [1.0] * 4, 3, generator()),
        lambda tokens: WORLD.hijack(tokens, tokens[:, 0], tokens[:, 1], share=0.5, generator=generator()),
    ],
    ids=["posterior", "bits", "count", "p", "pi", "distance", "mixture", "hijack"],
)
def test_integers_of_any_size_are_refused_or_fine(call, dtype):
    with refused_or_fine("(tokens|y|a|concepts|other)"):
        torch.testing.assert_close(call(TOKENS.to(dtype)), call(TOKENS), check_dtype=False)


@pytest.mark.parametrize("tokens", [TOKENS[0], TOKENS[0, 0], TOKENS[None], TOKENS[:, :0]], ids=["1", "0", "3", "L=0"])
@pytest.mark.parametrize(
    "call",
    [
        WORLD.posterior,
        WORLD.count,
        lambda tokens: WORLD.hijack(tokens, Y, Y, share=0.5, generator=generator()),
    ],
    ids=["posterior", "count", "hijack"],
)
def test_contexts_of_another_shape(call, tokens):
    with refused("(tokens|y)"):
        call(tokens)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *((name, value) for name in ("y", "other") for value in (Y[:1], Y.repeat(2), Y[0], Y[:, None], TOKENS)),
        *(("share", value) for value in (-0.1, 1.5, torch.tensor(0.5), *NO_NUMBERS) if value is not None),
        ("positions", TOKENS),
        ("positions", (TOKENS > 2)[:, :3]),
        ("positions", (TOKENS > 2)[0]),
        ("positions", (TOKENS > 2).tolist()),
        ("positions", (TOKENS > 2).numpy()),
        ("positions", 1),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{getattr(value, 'shape', value)!r:.20}",
)
def test_a_hijacking_that_is_none(argument, value):
    given = {"tokens": TOKENS, "y": Y, "other": Y, "generator": generator()}
    given |= {"share": None if argument == "positions" else 0.5} | {argument: value}
    with refused(argument):
        WORLD.hijack(**given)


def test_both_or_neither_of_share_and_positions():
    for options in ({}, {"share": 0.5, "positions": TOKENS > 2}):
        with refused("share"):
            WORLD.hijack(TOKENS, Y, Y, generator=generator(), **options)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("weights", value) for value in ([1.0], [1.0] * 3, [], [0.0, 0.0], [1.0, -1.0], [NAN, 1.0], [INF, 1.0])),
        *(("weights", value) for value in (["a", "b"], [None, 1.0], None, 1.0, "ab", [[1.0, 2.0]], [[1.0], [2.0]])),
        *(("length", value) for value in NO_INTEGERS),
        *(("concepts", value) for value in (Y, Y[0], TOKENS[None])),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{getattr(value, 'shape', value)!r:.20}",
)
def test_a_mixture_that_is_none(argument, value):
    given = {"concepts": TOKENS[:, :2], "weights": [0.5, 0.5], "length": 3, "generator": generator()}
    with refused(argument):
        WORLD.sample_mixture(**(given | {argument: value}))


def test_very_large_weights_are_refused_or_weighed():
    with refused_or_fine("weights"):
        world = LatentConcepts(4, omega=1.0, neighborhood="nearest")
        concepts = torch.tensor([[0, 15]]).expand(200, -1)
        drawn = world.sample_mixture(concepts, [1e308, 1e308], 5, generator())[:, :-1]
        assert 0.3 < (world.distance(drawn, torch.tensor(0)) == 1).double().mean() < 0.7


@pytest.mark.parametrize("value", [-1, 8, 2.5, True, None, "0", Y], ids=lambda value: f"{value!r:.12}")
def test_neighbors_of_no_token(value):
    with refused("y"):
        WORLD.neighbors(value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("length", value) for value in NO_INTEGERS),
        *(("size", value) for value in NO_INTEGERS if value is not None),
        *(("seed", value) for value in ("a", None, 2.5, 1 << 64, [1])),
    ],
    ids=lambda value: f"{value!r:.12}",
)
def test_a_dataset_that_is_none(argument, value):
    with refused(argument):
        list(WORLD.to_dataset(**({"length": 3, "seed": 0, "size": 2} | {argument: value})))


# --- Bayes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("share", value) for value in (-0.1, 1.5, *NO_NUMBERS)),
        *(("distances", value) for value in ([0], [4], [1, 4], [1.5], [True], ["1"], [None], [], 1, "1")),
    ],
    ids=lambda value: f"{value!r:.12}",
)
def test_a_mixture_aware_posterior_that_is_none(argument, value):
    with refused(argument):
        bayes.mixture_posterior(WORLD, *WORLD.count(TOKENS), **({"share": 0.5} | {argument: value}))


def test_a_mixture_aware_posterior_of_too_many_latents():
    with refused("m"):
        bayes.mixture_posterior(LatentConcepts(9), torch.ones(1, 512), torch.tensor([0]), share=0.5)


@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
def test_a_union_bound_at_no_length(value):
    with refused("length"):
        bayes.union_bound(WORLD, value)


# --- the model and its recipe ---------------------------------------------------------------------------------------

START = [
    *((name, value) for name in ("d_model", "d_head") for value in NO_INTEGERS),
    *((name, value) for name in ("embedding", "value", "attention") for value in ("foo", "", None, 1, [], True)),
    *((f"train_{name}", value) for name in ("embedding", "value", "attention") for value in (1, None, "True", [])),
]


@pytest.mark.parametrize(
    ("argument", "value"),
    [*START, *(("m", value) for value in (1, 15, *NO_INTEGERS))],
    ids=lambda value: f"{value!r:.18}",
)
def test_a_model_that_is_none(argument, value):
    with refused(argument):
        LCAConfig(**({"m": 3, "d_model": 8, "d_head": 4} | {argument: value}))


def test_more_orthonormal_embeddings_than_dimensions():
    with refused("d_model"):
        LCAConfig(m=4, d_model=15, embedding="orthonormal")
    recipe = TrainConfig(4, 7, 4, embedding="orthonormal")
    with refused("d_model"):
        recipe.model_config(3)
    with refused("d_model"):
        train(WORLD, recipe, progress=False)


@pytest.mark.parametrize("value", [1, 15, *NO_INTEGERS], ids=repr)
def test_a_tokenizer_for_no_latents(value):
    with refused("m"):
        lca_tokenizer(value)
    with refused("m"):
        RECIPE.model_config(value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *START,
        *((name, value) for name in ("context_length", "batch_size", "steps") for value in NO_INTEGERS),
        *((name, value) for name in ("lr", "weight_decay") for value in (-0.1, *NO_NUMBERS)),
    ],
    ids=lambda value: f"{value!r:.18}",
)
def test_a_recipe_that_is_none(argument, value):
    given = {"context_length": 4, "d_model": 8, "d_head": 4}
    with refused(argument):
        TrainConfig(**(given | {argument: value}))
    with refused(argument):
        RECIPE.grid(**{argument: [getattr(RECIPE, argument), value]})


def test_a_grid_over_no_field():
    with pytest.raises(LcalensError, match=r"^grid: 'rate'.*\blr\b"):
        RECIPE.grid(rate=[0.1])


@pytest.mark.parametrize("value", [0.02, None, 5, True], ids=repr)
def test_a_grid_of_a_lone_value(value):
    with refused("(grid|lr)"):
        RECIPE.grid(lr=value)


# --- training -------------------------------------------------------------------------------------------------------


def training(**changes):
    given = {"concepts": WORLD, "config": RECIPE, "seeds": [0], "progress": False} | changes
    return train(given.pop("concepts"), given.pop("config"), **given)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("concepts", value) for value in (None, 3, "all", LatentConcepts, {"m": 3})),
        *(("config", value) for value in (None, [], (), "abc", {}, 3, [RECIPE, None], TrainConfig, {"lr": 0.1})),
        *(("seeds", value) for value in (None, [], 3, True, "12", [-1], [1.5], [True], [None], ["0"], [[0]], [NAN])),
        *(("checkpoint_seconds", value) for value in (-1, *NO_NUMBERS)),
        *(("progress", value) for value in (None, 3, "yes", [])),
        *(("out", value) for value in (3, b"out", True, ["out"], "a\0b")),
        *(("device", value) for value in ("gpu", "", None, [], 2.5, "cpu:x")),
    ],
    ids=lambda value: f"{value!r:.18}",
)
def test_a_training_that_is_none(argument, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(argument):
        training(**{argument: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there():
    with refused("device"):
        training(device="cuda")


def test_a_folder_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    for out in (file, file / "below"):
        with refused("out"):
            training(out=out)
    assert file.read_text() == "kept"


@pytest.mark.parametrize(
    "changes",
    [
        {"config": TrainConfig(np.int64(4), np.int64(8), np.int64(4), batch_size=4, steps=2)},
        {"config": TrainConfig(4, 8, 4, batch_size=4, steps=2, lr=np.float32(0.03125))},
        {"concepts": LatentConcepts(np.int64(3))},
        {"concepts": LatentConcepts(3, omega=Fraction(1, 2))},
        {"seeds": np.arange(1)},
        {"seeds": iter([0])},
        {"config": iter([RECIPE])},
    ],
    ids=["numpy sizes", "numpy lr", "numpy m", "fraction", "numpy seeds", "seeds once", "recipes once"],
)
def test_numbers_of_any_kind_train_as_plain_ones_do(changes):
    (plain,), (found,) = training(), training(**changes)
    if "config" not in changes or not isinstance(changes["config"], TrainConfig) or changes["config"].lr == RECIPE.lr:
        assert torch.equal(plain.model.embed.weight, found.model.embed.weight)
    assert not found.history.empty
