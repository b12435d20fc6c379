"""Lemmas 2 and 5: what a value matrix adds where embeddings are orthonormal, and the rank of linear geometry."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lcalens.core.checks import check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.core.statistics import wilson
from lcalens.lca.geometry import gram_hamming_fit, spectrum
from lcalens.lca.model.closed_forms import hamming_embedding, identity_value, theorem1_model, with_value
from lcalens.lca.model.model import LCAForCausalLM
from lcalens.lca.theory.claims import TIE, Claim, Verdict, check_model, describe, every_context, in_double, right
from lcalens.lca.world import bayes
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.lca.world.sampling import Counts

_PROBABILITY = 1e-9


@torch.no_grad()
def lemma2(
    concepts: LatentConcepts,
    models: Sequence[LCAForCausalLM] | None = None,
    *,
    length: int = 3,
    samples: int | None = None,
    generator: torch.Generator,
) -> Claim:
    """Lemma 2: with N = `nearest`, omega = 1 and orthonormal embeddings the constructed W_V errs 0, and W_V = I more.

    Every token of x lies in N1(y), so y's logit is the largest there can be. But two tokens at distance 2 are in two
    neighbourhoods, and where x has no more than two distinct tokens another concept has the same logit and is as
    likely: even the Bayes-optimal classifier errs there, so that an error of 0 needs a tie to count for y. The verdict
    therefore is `holds` where y alone has the largest logit in every context and W_V = I errs; `holds in part` where
    this needs ties to count for y; `does not hold` where the constructed W_V errs even so, or W_V = I does not err.

    Args:
        concepts: The world; the lemma's has m >= 3, omega = 1 and N = `nearest`.
        models: Models with the constructed W_V; by default Theorem 1's with uniform and with random attention, as the
            lemma is about every attention. Each is measured again with W_V = I.
        length: L.
        samples: Contexts to draw; by default every context is gone through, and the numbers are exact.
        generator: Where attention and contexts come from.

    Raises:
        LcalensError: A model of another vocabulary, or more contexts than can be gone through.
    """
    if models is None:
        models = [theorem1_model(concepts), _attending(theorem1_model(concepts), generator)]
    if not models:
        raise LcalensError("models: expected at least one model, got none.")
    if samples is None:
        drawn, weights = every_context(concepts, length)
    else:
        check_int("samples", samples, low=1)
        drawn = concepts.sample_counts(samples, length, generator)
        weights = torch.full((samples,), 1 / samples, dtype=torch.float64)
    rows = []
    for index, model in enumerate(models):
        check_model(concepts, model)
        identity = with_value(model, identity_value(model.get_parameter("attn.v.weight")))
        for value, each in (("constructed", model), ("identity", identity)):
            logits = in_double(each).from_counts(drawn.counts.double(), drawn.last)
            rows.append({"model": index, "value": value, **_errors(logits, drawn, weights)})
    details = pd.DataFrame(rows)
    constructed, identity = details[details.value == "constructed"], details[details.value == "identity"]
    worst, least = float(constructed.error_ties_for_y.max()), float(identity.error.min())
    verdict: Verdict = "does not hold"
    if worst <= _PROBABILITY < least:
        verdict = "holds" if constructed.y_alone.min() >= 1 - _PROBABILITY else "holds in part"
    interval = (worst, worst) if samples is None else wilson(round(worst * samples), samples)
    return Claim(
        name="Lemma 2",
        claim="With orthonormal embeddings and N = nearest the constructed W_V errs 0 and W_V = I errs more than 0.",
        setting=describe(concepts, f"L = {length}", "every context" if samples is None else f"{samples} contexts"),
        quantity="error of the constructed W_V where a tie counts for y",
        measured=worst,
        low=interval[0],
        high=interval[1],
        expected=0.0,
        verdict=verdict,
        numbers={
            "error": float(constructed.error.max()),
            "y_alone": float(constructed.y_alone.min()),
            "error_identity": least,
            "bayes_error": _bayes_error(concepts, drawn, weights),
        },
        details=details,
    )


def lemma5(
    concepts: LatentConcepts,
    embedding: Float[Tensor, "vocab d"] | None = None,
    *,
    a: float = 1.0,
    b: float | None = None,
    tolerance: float = 1e-6,
) -> Claim:
    """Lemma 5: embeddings whose inner products are b - a D_H, b0 = b included, have rank at most m + 2.

    The rank is m + 1, and m for b = a m / 2; for b < a m / 2 there are no such embeddings. So the bound is never
    reached. `holds` where the embedding has this geometry and the rank is at most m + 2; `holds in part` where the rank
    is, but the geometry is another, so that the lemma says nothing of it; `does not hold` where the rank is above.

    Args:
        concepts: The world.
        embedding: An embedding; by default the one that `a` and `b` give.
        a: Slope of the inner product in the Hamming distance.
        b: Its intercept; a m by default.
        tolerance: What counts as equal, as a share of the largest inner product, and as 0 of the singular values.

    Raises:
        LcalensError: b < a m / 2, for which there is no embedding, or one that has not V rows.
    """
    check_real("tolerance", tolerance, low=0, high=1)
    m = concepts.m
    if embedding is None:
        b = a * m if b is None else b
        embedding = hamming_embedding(concepts, concepts.vocab_size, a=a, b=b, b0=b)
    fit, values = gram_hamming_fit(concepts, embedding), spectrum(embedding)
    rank = int((values > tolerance * values[0]).sum())
    scale = max(abs(fit.b0), float(np.abs(fit.means).max()))
    follows = max(fit.largest_error, abs(fit.b0 - fit.b)) <= tolerance * scale
    verdict: Verdict = "does not hold"
    if rank <= m + 2:
        verdict = "holds" if follows else "holds in part"
    return Claim(
        name="Lemma 5",
        claim="If embeddings follow equation 5.2 with b0 = b, then rank(W_E) <= m + 2.",
        setting=f"m = {m}, a = {fit.a:.4g}, b = {fit.b:.4g}, b0 = {fit.b0:.4g}, d = {embedding.shape[1]}",
        quantity="rank of W_E",
        measured=float(rank),
        low=float(rank),
        high=float(rank),
        expected=float(m + 2),
        verdict=verdict,
        numbers={
            "rank_derived": float(m if abs(fit.b - fit.a * m / 2) <= tolerance * scale else m + 1),
            "largest_error": fit.largest_error,
            "b0_less_b": fit.b0 - fit.b,
        },
        details=pd.DataFrame({"index": np.arange(1, len(values) + 1), "singular_value": values}),
    )


def _errors(logits: Float[Tensor, "batch vocab"], drawn: Counts, weights: Float[Tensor, " batch"]) -> dict[str, float]:
    """The chance of an error if a tie counts for y, or is split; and the chance that y alone is largest."""
    share = right(logits, drawn)
    return {
        "error_ties_for_y": float(weights[share == 0].sum()),
        "error": float(weights @ (1 - share)),
        "y_alone": float(weights[share == 1].sum()),
    }


def _bayes_error(concepts: LatentConcepts, drawn: Counts, weights: Float[Tensor, " batch"]) -> float:
    scores = bayes.log_likelihood(concepts, drawn.counts, drawn.last)
    return float(weights @ (1 - bayes.accuracy(scores, drawn.target, tie=TIE)))


def _attending(model: LCAForCausalLM, generator: torch.Generator) -> LCAForCausalLM:
    """A copy whose queries and keys are standard normal; scores of orthonormal embeddings then vary by about 1."""
    copied = with_value(model, model.get_parameter("attn.v.weight"))
    with torch.no_grad():
        for name in ("attn.q.weight", "attn.k.weight"):
            weight = copied.get_parameter(name)
            weight.copy_(torch.randn(weight.shape, generator=generator, device=generator.device))
    return copied
