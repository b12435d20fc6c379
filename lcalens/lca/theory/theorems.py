"""Theorems 1 and 4: closed-form models whose error goes to 0 as the context grows."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from lcalens.core.checks import check_real
from lcalens.lca.model.closed_forms import nearest, theorem1_model, theorem4_model
from lcalens.lca.model.model import LCAForCausalLM
from lcalens.lca.theory.claims import (
    TIE,
    Claim,
    Verdict,
    accuracy_over_lengths,
    check_rising,
    describe,
    population_margin,
)
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.lca.world.xor import walsh_hadamard

LENGTHS = (8, 16, 32, 64, 128, 256)
SAMPLES = 2000


def theorem1(
    concepts: LatentConcepts,
    model: LCAForCausalLM | None = None,
    *,
    lengths: Sequence[int] = LENGTHS,
    samples: int = SAMPLES,
    epsilon: float = 0.01,
    generator: torch.Generator,
) -> Claim:
    """Theorem 1: for m >= 3, omega = 1 and N = `all`, the closed-form model's error goes to 0 as L grows.

    The verdict rests on the population margin, which decides the limit exactly, and on the error at the longest L:
    `holds` where the margin is above 0 and the error's upper limit is at most epsilon; `holds in part` where only the
    margin is above 0, so that L is not yet long enough; `does not hold` where the margin is not above 0. At m = 2 the
    two tokens farthest apart have one and the same N1, so their logits are equal for every context: the margin is 0.

    Args:
        concepts: The world; another than the theorem's shows how far it carries.
        model: Another model than the theorem's.
        lengths: Values of L.
        samples: Contexts at each.
        epsilon: The error to get below.
        generator: Where the contexts come from.

    Raises:
        LcalensError: An argument that does not fit.
    """
    check_real("epsilon", epsilon, low=0, high=1, why="it is an error rate")
    model = theorem1_model(concepts) if model is None else model
    details = accuracy_over_lengths(concepts, model, lengths, samples, generator)
    margin, last = population_margin(concepts, model), details.iloc[-1]
    return Claim(
        name="Theorem 1",
        claim="With uniform attention, orthonormal embeddings and the constructed W_V the error goes to 0 as L grows.",
        setting=describe(concepts, f"L = {lengths[-1]}", f"{samples} contexts"),
        quantity="accuracy at the longest L",
        measured=float(last.accuracy),
        low=float(last.low),
        high=float(last.high),
        expected=1 - epsilon,
        verdict=_in_the_limit(margin, 1 - float(last.low), epsilon),
        numbers={"population_margin": margin, "bayes": float(last.bayes)},
        details=details,
    )


def theorem4(
    concepts: LatentConcepts,
    build: Callable[..., LCAForCausalLM] = theorem4_model,
    *,
    a: float = 1.0,
    b: float | None = None,
    b0: Sequence[float] | None = None,
    lengths: Sequence[int] = LENGTHS,
    samples: int = SAMPLES,
    epsilon: float = 0.01,
    generator: torch.Generator,
) -> Claim:
    """Theorem 4: with embeddings of equation 5.2 the error can be as small as wanted, if b0 and L are large enough.

    The verdict is Theorem 1's, taken at the largest b0: `holds` where the population margin is above 0 and the error
    at the longest L is at most epsilon at its upper limit; `holds in part` where only the margin is; `does not hold`
    where the margin is not. The table shows every b0; accuracy need not rise with it.

    Args:
        concepts: The world; the theorem's has m >= 3, omega = 1 and N = `all`.
        build: Makes the model from the world, `a`, `b` and `b0`; Theorem 4's own by default.
        a: Slope of the inner product in the Hamming distance.
        b: Its intercept; a m / 2 by default.
        b0: Squared lengths of an embedding, rising; from b on by default.
        lengths: Values of L.
        samples: Contexts at each.
        epsilon: The error to get below.
        generator: Where the contexts come from.

    Raises:
        LcalensError: An argument that does not fit, or no embedding has the Gram matrix.
    """
    check_real("epsilon", epsilon, low=0, high=1, why="it is an error rate")
    b = a * concepts.m / 2 if b is None else b
    lengths_squared = tuple(b + a * more for more in (0, 1, 4, 16, 64, 256)) if b0 is None else b0
    check_rising("b0", lengths_squared)
    tables, margin = [], math.nan
    for square in lengths_squared:
        model = build(concepts, a=a, b=b, b0=square)
        margin = population_margin(concepts, model)
        accuracies = accuracy_over_lengths(concepts, model, lengths, samples, generator)
        tables.append(accuracies.assign(b0=square, population_margin=margin))
    details = pd.concat(tables, ignore_index=True)
    last = details.iloc[-1]
    return Claim(
        name="Theorem 4",
        claim="With embeddings of equation 5.2 and the constructed W_V the error goes to 0 as b0 and L grow.",
        setting=describe(
            concepts,
            f"a = {a:g}",
            f"b = {b:g}",
            f"b0 = {lengths_squared[-1]:g}",
            f"L = {lengths[-1]}",
            f"{samples} contexts",
        ),
        quantity="accuracy at the largest b0 and the longest L",
        measured=float(last.accuracy),
        low=float(last.low),
        high=float(last.high),
        expected=1 - epsilon,
        verdict=_in_the_limit(margin, 1 - float(last.low), epsilon),
        numbers={
            "population_margin": margin,
            "bayes": float(last.bayes),
            "b0_enough": theorem4_threshold(concepts, a=a, b=b),
        },
        details=details,
    )


def theorem4_threshold(concepts: LatentConcepts, *, a: float, b: float) -> float:
    """The b0 above which Theorem 4's model leads with the target for every token, in an infinitely long context.

    With x = b0 - b the logits are (x I + G0) N1 (x I + G0) p, where G0 is equation 5.2's Gram matrix for b0 = b. The
    target's lead over each other token is a quadratic in x; this is b plus the largest root of any, if any.

    Args:
        concepts: The world.
        a: Slope.
        b: Intercept.

    Returns:
        Infinity where no b0 is enough; -infinity where every b0 is.
    """
    distance, near = concepts.offset_distance.double(), nearest(concepts)[0]
    gram, joint = walsh_hadamard(b - a * distance), walsh_hadamard(near) * walsh_hadamard(concepts.offset_log_p.exp())
    # By XOR these are functions of the offset from the target: coefficients of x^2, x and 1.
    powers = torch.stack([joint, 2 * gram * joint, gram**2 * joint])
    logits = walsh_hadamard(powers) / concepts.vocab_size
    leads = (logits[:, :1] - logits[:, 1:]).T.numpy()
    scale = np.abs(logits.numpy()).max(1) + np.finfo(float).tiny
    if (leads[:, 0] <= TIE * scale[0]).any():
        return math.inf
    roots = np.concatenate([np.roots(lead) for lead in leads])
    real = roots.real[np.abs(roots.imag) <= TIE * np.maximum(1, np.abs(roots.real))]
    return b + float(real.max()) if len(real) else -math.inf


def _in_the_limit(margin: float, error: float, epsilon: float) -> Verdict:
    if margin <= TIE:
        return "does not hold"
    return "holds" if error <= epsilon else "holds in part"
