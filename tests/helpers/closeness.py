"""How near two numbers must be. One rule for all tests.

A tolerance stands between two bounds:

- *Not below rounding.* Another processor, thread count or batch sums in another order. Two such sums of n terms differ
  by up to `rounding(dtype, size, terms)`. The size is that of the terms (the sum of their absolute values), not of what
  is left when they cancel: a difference of two logits is only as exact as the logits, however small it is.
- *Far below the effect.* What the test is about must be at least twenty times the tolerance, or a wrong number passes.
  Random models have effects near 1e-4: scale their weights until the metric moves by more than 1, and assert that it
  does.

So a tolerance is written as a share of the effect, as `rounding(...)`, or as their sum; `assert_near` takes both and
checks the second bound. Bare numbers between single and double precision (1e-9 to 1e-5) are neither: too tight for
float32, too loose for float64, and test_tolerances.py refuses them. What is drawn at random has its standard error as
tolerance, four of them or more.
"""

import math

import numpy as np
import torch

# Higham and Mary (2019): n rounded sums are off by more than DEVIATIONS * sqrt(n) units with a probability below
# 2 exp(-DEVIATIONS**2 / 2).
DEVIATIONS = 6


def array(value):
    """Anything that holds numbers as a NumPy array in double precision."""
    value = value.detach().cpu() if isinstance(value, torch.Tensor) else value
    return np.asarray(value, dtype=np.float64)


def size_of(*values):
    """The largest magnitude among finite numbers, of tensors, arrays or plain numbers."""
    found = 0.0
    for value in values:
        finite = np.abs(array(value))
        finite = finite[np.isfinite(finite)]
        found = max(found, float(finite.max(initial=0.0)))
    return found


def rounding(dtype, size, terms=1):
    """By how much two sums of `terms` terms, each rounded to `dtype`, may differ when the order differs.

    `size` is the sum of the terms' absolute values, or what bounds it: a number, or an array whose largest counts.
    """
    return DEVIATIONS * math.sqrt(terms) * torch.finfo(dtype).eps * size_of(size)


def assert_near(found, expected, *, effect, share=1e-4, rounding=0.0):
    """`found` is `expected` to within a share of the effect and the rounding given; the effect stands far above both.

    `effect` is what the test is about: how far the metric moves, a number or an array whose largest counts. NaN equals
    NaN, and nothing else.
    """
    effect = size_of(effect)
    allowed = share * effect + rounding
    assert allowed <= effect / 20, (
        f"a tolerance of {allowed:.3g} hides an effect of {effect:.3g}: make the effect larger"
    )
    np.testing.assert_allclose(array(found), array(expected), rtol=0, atol=allowed)
