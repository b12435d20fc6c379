"""The rule of helpers/closeness.py: it refuses what it must, and no tolerance of a test lies between the precisions."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.closeness import assert_near, rounding, size_of

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("*.py"))
NAMES = ("atol", "rtol", "abs", "rel")
BAND = (1e-9, 1e-5)  # float32's rounding of numbers near 1 is above it times ten, float64's below it by a million


def literals(tree):
    """The line and value of each bare number that serves as a tolerance."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in NAMES:
            yield from numbers(node.value)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in NAMES:
                    yield from numbers(value)
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for below, sign, above in zip(sides, node.ops, sides[1:], strict=False):
                # Something small: `error < 1e-6`, and its mirror image.
                if isinstance(sign, (ast.Lt, ast.LtE)):
                    yield from numbers(above)
                elif isinstance(sign, (ast.Gt, ast.GtE)):
                    yield from numbers(below)


def numbers(node):
    if isinstance(node, ast.IfExp):
        yield from numbers(node.body)
        yield from numbers(node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        yield node.lineno, node.value


def between(source):
    return [line for line, value in literals(ast.parse(source)) if BAND[0] < value < BAND[1]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_tolerance_is_a_bare_number_between_single_and_double_precision(path):
    assert between(path.read_text(encoding="utf-8")) == [], "write it by `rounding` or as a share of the effect"


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ("close(a, b, atol=1e-6)", True),
        ("close(a, b, rtol=2e-7)", True),
        ("assert a == approx(b, abs=1e-6 if small else 0.1)", True),
        ("CLOSE = {'atol': 1e-6, 'rtol': 0}", True),
        ("assert error < 1e-6", True),
        ("assert 1e-6 >= error", True),
        ("assert error > 1e-6", False),  # something is there
        ("close(a, b, atol=1e-6 * size)", False),
        ("close(a, b, atol=rounding(torch.float32, 1))", False),
        ("close(a, b, atol=1e-4, rtol=1e-12)", False),
    ],
)
def test_the_reading_of_tolerances(source, refused):
    assert bool(between(source)) is refused


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("terms", [16, 1024, 8192])
def test_sums_in_another_order_differ_by_less_than_rounding(dtype, terms):
    values = torch.randn(64, terms, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    running = torch.zeros(64, dtype=dtype)
    for column in values.T:  # the plainest order, and the worst
        running += column
    bound = rounding(dtype, values.abs().sum(1), terms)
    worst = float((running - values.flip(1).sum(1)).abs().max())
    assert 0 < worst < bound


def test_near_is_a_share_of_the_effect():
    assert_near(1.0 + 5e-5, 1.0, effect=1.0)
    with pytest.raises(AssertionError):
        assert_near(1.0 + 2e-4, 1.0, effect=1.0)
    assert_near(100.0, 100.0 + 2e-4, effect=np.array([0.1, -3.0]))
    assert_near(torch.tensor([1.0, torch.nan]), [1.0, np.nan], effect=1)
    with pytest.raises(AssertionError):
        assert_near([1.0, np.nan], [1.0, 1.0], effect=1)


def test_an_effect_below_the_tolerance_is_refused():
    with pytest.raises(AssertionError, match="hides an effect"):
        assert_near(0.0, 0.0, effect=1e-5, rounding=1e-6)
    with pytest.raises(AssertionError, match="hides an effect"):
        assert_near(0.0, 0.0, effect=0.0, rounding=1e-6)
    assert_near(0.0, 0.0, effect=1.0, rounding=1e-6)


def test_size_is_the_largest_finite_magnitude():
    assert size_of(np.array([1.0, -3.0, np.inf]), torch.tensor([2.0, float("nan")]), 0.5) == 3
    assert size_of([]) == 0
