"""Theorem 3: without a value matrix, the embeddings' inner products must be linear in the Hamming distance.

It is measured on a model, and it is solved: the premise is a system of linear equations in the Gram matrix.
"""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lcalens.core.checks import check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.lca.geometry import gram_hamming_fit
from lcalens.lca.model.closed_forms import closed_form_model, hamming_embedding, identity_value
from lcalens.lca.model.model import LCAForCausalLM
from lcalens.lca.theory.claims import Claim, Verdict, check_model, describe, in_double
from lcalens.lca.world import bayes
from lcalens.lca.world.concepts import LatentConcepts

SAMPLES = 2000
_SOLVED_LATENTS = 5
_EXACT = 1e-8


@torch.no_grad()
def theorem3(
    concepts: LatentConcepts,
    model: LCAForCausalLM | None = None,
    *,
    length: int = 8,
    samples: int = SAMPLES,
    least_r2: float = 0.95,
    most_distance: float = 0.1,
    generator: torch.Generator,
) -> Claim:
    """Theorem 3: where W_V = I and the softmax is p(y | x), inner products fall linearly in the Hamming distance.

    Corrected in two places: softmax(f(x))_y is meant, not the softmax of one logit; and as p(y | x) = 0 for y in x,
    which no finite logits give, the premise is asked of the tokens not in x alone. `holds` where the Gram matrix is
    linear (R^2 over pairs at least `least_r2`, slope a > 0) and the premise is met (mean total variation distance
    between softmax(f(x)) and p(. | x), both over y not in x, at most `most_distance`); `holds in part` where the Gram
    matrix is linear and the premise is not met; `does not hold` where the Gram matrix is not linear.

    Args:
        concepts: The world; the theorem's has omega = 1 and N = `all`.
        model: A model with W_V = I; by default the one that meets the premise exactly, with slope L / beta.
        length: L.
        samples: Contexts that the premise is checked on.
        least_r2: What counts as linear.
        most_distance: What counts as equal distributions.
        generator: Where the contexts come from.

    Raises:
        LcalensError: W_V is not the identity, or an argument does not fit.
    """
    check_int("length", length, low=1)
    for name, value in (("least_r2", least_r2), ("most_distance", most_distance)):
        check_real(name, value, low=0, high=1)
    if model is None:
        slope = length / concepts.beta
        middle = slope * concepts.m / 2
        embedding = hamming_embedding(concepts, a=slope, b=middle, b0=middle)
        model = closed_form_model(embedding, identity_value(embedding))
    check_model(concepts, model)
    value = model.get_parameter("attn.v.weight")
    if not torch.equal(value, identity_value(value)):
        raise LcalensError("model: Theorem 3 speaks of W_V = I; give a model with value='identity', train_value=False.")
    drawn = concepts.sample_counts(samples, length, generator)
    logits = in_double(model).from_counts(drawn.counts.double(), drawn.last)
    truth = bayes.log_likelihood(concepts, drawn.counts, drawn.last)
    inside = drawn.counts > 0
    on_context = float((logits.softmax(-1) * inside).sum(-1).mean())
    predicted, posterior = (scores.masked_fill(inside, -math.inf).softmax(-1) for scores in (logits, truth))
    distances = (predicted - posterior).abs().sum(-1) / 2
    distance = float(distances[distances.isfinite()].mean())  # NaN where x holds every token
    fit = gram_hamming_fit(concepts, model.get_parameter("embed.weight"))
    linear = fit.a > 0 and fit.r2_pairs >= least_r2
    verdict: Verdict = "does not hold"
    if linear:
        verdict = "holds" if distance <= most_distance else "holds in part"
    numbers = {
        "a": fit.a,
        "a_expected": length / concepts.beta,
        "b": fit.b,
        "b0": fit.b0,
        "r2_means": fit.r2_means,
        "distance_to_posterior": distance,
        "softmax_on_tokens_of_x": on_context,
    }
    return Claim(
        name="Theorem 3",
        claim="With W_V = I and softmax(f(x)) = p(. | x), <e_t, e_t'> = b - a D_H(t, t') for t != t', with a > 0.",
        setting=describe(concepts, f"L = {length}", f"{samples} contexts", "y not in x"),
        quantity="R^2 of the line over pairs of tokens",
        measured=fit.r2_pairs,
        low=fit.r2_pairs,
        high=fit.r2_pairs,
        expected=least_r2,
        verdict=verdict,
        numbers=numbers,
        details=pd.DataFrame({"distance": fit.distances, "mean": fit.means, "deviation": fit.deviations}),
    )


def theorem3_solved(
    concepts: LatentConcepts, *, length: int = 8, samples: int = 32, generator: torch.Generator
) -> Claim:
    """Theorem 3 as linear algebra: which inner products make softmax(f(x)) equal p(. | x), over y not in x?

    With W_V = I and uniform attention the premise says of every context x and every two concepts y, y' not in x that
    the mean over l of <e_y, e_tl> - <e_y', e_tl> is log p(x | y) - log p(x | y'): linear equations in the inner
    products of pairs. Those of the contexts that repeat one token, which hold for every attention, and of a sample are
    solved together. `holds` where they have a solution, it is unique but for a constant added to all inner products,
    and it is a falling line in the Hamming distance; `does not hold` otherwise.

    Args:
        concepts: The world, m at most 5; the theorem's has omega = 1 and N = `all`.
        length: L.
        samples: Contexts in the sample.
        generator: Where they come from.

    Raises:
        LcalensError: An argument that does not fit.
    """
    check_int("m", concepts.m, low=2, high=_SOLVED_LATENTS, why="there is an unknown for every pair of tokens")
    check_int("length", length, low=1)
    check_int("samples", samples, low=1)
    size = concepts.vocab_size
    repeated = length * torch.eye(size)
    drawn = concepts.sample_counts(samples, length, generator)
    counts = torch.cat([repeated, drawn.counts]).double()
    last = torch.cat([torch.arange(size), drawn.last])
    equations, right_sides = _premise(counts, bayes.log_likelihood(concepts, counts, last))
    u, values, vt = np.linalg.svd(equations, full_matrices=False)
    rank = int((values > _EXACT * values[0]).sum())
    solution = vt[:rank].T @ ((u[:, :rank].T @ right_sides) / values[:rank])
    residual = float(np.abs(equations @ solution - right_sides).max() / np.abs(right_sides).max())
    first, second = np.triu_indices(size, 1)
    apart = concepts.distance(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    slope, _ = np.polyfit(apart, solution, 1)
    r2 = float(np.corrcoef(apart, solution)[0, 1] ** 2)
    free = len(first) - rank
    holds = residual <= _EXACT and free == 1 and r2 >= 1 - _EXACT and slope < 0
    return Claim(
        name="Theorem 3, solved",
        claim="The only inner products for which W_V = I gives softmax(f(x)) = p(. | x) fall linearly in D_H.",
        setting=describe(concepts, f"L = {length}", f"{size + samples} contexts", "y not in x"),
        quantity="R^2 of the line over pairs of tokens",
        measured=r2,
        low=r2,
        high=r2,
        expected=1.0,
        verdict="holds" if holds else "does not hold",
        numbers={
            "a": float(-slope),
            "a_expected": length / concepts.beta,
            "residual": residual,
            "free_constants": float(free),
            "unknowns": float(len(first)),
            "equations": float(len(equations)),
        },
        details=pd.DataFrame({"distance": apart, "inner_product": solution - solution.mean()}),
    )


def _premise(
    counts: Float[Tensor, "context vocab"], truth: Float[Tensor, "context vocab"]
) -> tuple[Float[np.ndarray, "equation pair"], Float[np.ndarray, " equation"]]:
    """One equation for each context and each two neighbouring concepts that it leaves possible."""
    size = counts.shape[1]
    place = np.zeros((size, size), dtype=np.int64)
    first, second = np.triu_indices(size, 1)
    place[first, second] = place[second, first] = np.arange(len(first))
    rows, right_sides = [], []
    for count, score in zip(counts.numpy(), truth.numpy(), strict=True):
        tokens = np.flatnonzero(count)
        share = count[tokens] / count.sum()
        possible = np.flatnonzero((count == 0) & np.isfinite(score))
        for y, other in pairwise(possible):
            row = np.zeros(len(first))
            row[place[y, tokens]] += share
            row[place[other, tokens]] -= share
            rows.append(row)
            right_sides.append(score[y] - score[other])
    return np.array(rows), np.array(right_sides)
