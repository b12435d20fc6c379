"""Lemma 6: the gradient in the attention scores, and whether it pulls attention into the cluster (section 5.4).

With alpha_t copies of token t in the context, normalised scores p_t = exp(u_t) / sum_l exp(u_tl) and R the row vector
grad l(f)^T W_E^T W_V, the gradient of the loss in the score u_t of token t against the last token is

    alpha_t p_t R (e_t - sum_l p_tl e_tl).

The formula in the rendering of the paper that we have lacks the factor alpha_t in its second term. It is right for
tokens that occur once, and for tokens that do not occur: their normalised score p_t is 0, and so is the gradient.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.core.checks import check_int
from lcalens.core.errors import LcalensError
from lcalens.core.statistics import clustered_mean_interval
from lcalens.lca.model.model import LCAForCausalLM
from lcalens.lca.theory.claims import Claim, Verdict, check_model, describe, in_double, random_model
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.lca.world.sampling import Counts

SAMPLES = 1000
_EXACT = 1e-9


class ScoreGradients(NamedTuple):
    """The gradient of each context's cross-entropy in the attention scores of the last token.

    Attributes:
        autograd: Through the model's own forward; 0 for tokens that are not in the context.
        corrected: The formula above.
        printed: The formula in the rendering that we have; 0 for tokens that are not in the context, where p_t is 0.
    """

    autograd: Float[Tensor, "batch vocab"]
    corrected: Float[Tensor, "batch vocab"]
    printed: Float[Tensor, "batch vocab"]


def score_gradients(
    model: LCAForCausalLM,
    counts: Float[Tensor, "batch vocab"],
    last: Int[Tensor, " batch"],
    targets: Int[Tensor, " batch"],
) -> ScoreGradients:
    """Lemma 6's gradient three ways, in double precision.

    Args:
        model: The model.
        counts: alpha, how often each token occurs, the last one included.
        last: The last token.
        targets: The concepts.
    """
    exact, alpha = in_double(model).requires_grad_(False), counts.double()
    # A score u + x weights a token as exp(x) copies of it would: the gradient in x at 0 is the one in the score.
    shift = torch.zeros_like(alpha, requires_grad=True)
    logits = exact.from_counts(torch.where(alpha > 0, alpha * shift.exp(), 0.0), last)
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    (autograd,) = torch.autograd.grad(loss, shift)
    with torch.no_grad():
        rows, value = exact.get_parameter("embed.weight"), exact.get_parameter("attn.v.weight")
        queries = rows[last] @ exact.get_parameter("attn.q.weight").T
        scores = queries @ (rows @ exact.get_parameter("attn.k.weight").T).T * exact.attn.scale
        p = (scores - (scores + alpha.log()).logsumexp(-1, keepdim=True)).exp()
        wrong = logits.softmax(-1) - torch.nn.functional.one_hot(targets, alpha.shape[1])
        recall = wrong @ rows @ value @ rows.T  # R e_t
        mean = (alpha * p * recall).sum(-1, keepdim=True)  # R times the sum of p e over the context
        rendered = torch.where(alpha > 0, p * (alpha * recall - mean), 0.0)
        return ScoreGradients(autograd, alpha * p * (recall - mean), rendered)


def lemma6(
    concepts: LatentConcepts,
    model: LCAForCausalLM | None = None,
    *,
    length: int = 32,
    samples: int = SAMPLES,
    generator: torch.Generator,
) -> Claim:
    """Lemma 6's formula for the gradient in the attention scores, against automatic differentiation.

    `holds` where the rendering's formula agrees to 1e-9 of the largest gradient; `holds in part` where only the
    corrected one does; `does not hold` where neither does.

    Args:
        concepts: The world; the lemma's has N = `cluster`.
        model: The model; by default one at its random initialisation, with d = V.
        length: L.
        samples: Contexts.
        generator: Where the model and the contexts come from.

    Raises:
        LcalensError: A model of another vocabulary, or a size below 1.
    """
    model, drawn = _prepare(concepts, model, length, samples, generator)
    gradients = score_gradients(model, *drawn)
    scale = float(gradients.autograd.abs().max())
    gaps = {name: (getattr(gradients, name) - gradients.autograd).abs() / scale for name in ("corrected", "printed")}
    corrected, printed = (float(gap.max()) for gap in gaps.values())
    verdict: Verdict = "does not hold"
    if corrected <= _EXACT:
        verdict = "holds" if printed <= _EXACT else "holds in part"
    copies = drawn.counts.long().clamp(max=3)
    rows = [
        {"alpha": "3 or more" if copy == 3 else str(copy), "tokens": int((copies == copy).sum())}
        | {name: float(gap[copies == copy].max()) for name, gap in gaps.items()}
        for copy in copies.unique().tolist()
    ]
    return Claim(
        name="Lemma 6, the formula",
        claim="The gradient in the score of token t is grad l(f)^T W_E^T W_V (alpha_t p_t e_t - p_t sum_l p_tl e_tl).",
        setting=describe(concepts, f"L = {length}", f"{samples} contexts"),
        quantity="largest error of the formula in the rendering that we have, as a share of the largest gradient",
        measured=printed,
        low=printed,
        high=printed,
        expected=0.0,
        verdict=verdict,
        numbers={"corrected": corrected, "printed": printed},
        details=pd.DataFrame(rows),
    )


def lemma6_pull(
    concepts: LatentConcepts,
    model: LCAForCausalLM | None = None,
    *,
    length: int = 32,
    samples: int = SAMPLES,
    generator: torch.Generator,
) -> Claim:
    """What Lemma 6 is taken to say: gradient descent raises the scores inside the last token's cluster the most.

    The pull on a token's score is minus its gradient. For each context it is averaged over the tokens of the vocabulary
    inside the last token's cluster, and over those outside. `holds` where the mean difference, inside less outside, is
    above 0 (95% bootstrap interval over contexts); `does not hold` where it is below; where its interval contains 0,
    `holds in part` if at least the gradient's size is larger inside, and `does not hold` if it is not.

    Args:
        concepts: The world, with N = `cluster`.
        model: The model; by default one at its random initialisation, with d = V.
        length: L.
        samples: Contexts.
        generator: Where the model and the contexts come from.

    Raises:
        LcalensError: A world without clusters, a model of another vocabulary, or a size below 1.
    """
    if concepts.neighborhood != "cluster":
        raise LcalensError(
            f"concepts: Lemma 6 compares clusters; give neighborhood='cluster', not {concepts.neighborhood!r}."
        )
    model, drawn = _prepare(concepts, model, length, samples, generator)
    gradient = score_gradients(model, *drawn).autograd
    tokens = torch.arange(concepts.vocab_size)
    inside = (drawn.last[:, None] ^ tokens) < concepts.vocab_size >> concepts.cluster_bits
    rows, gaps = [], {}
    for name, values in (("pull", -gradient), ("size", gradient.abs()), ("alpha", drawn.counts.double())):
        within = (values * inside).sum(-1) / inside.sum(-1)
        beyond = (values * ~inside).sum(-1) / (~inside).sum(-1)
        low, high = clustered_mean_interval((within - beyond).numpy())
        gaps[name] = (float((within - beyond).mean()), low, high)
        rows.append({"quantity": name, "inside": float(within.mean()), "outside": float(beyond.mean())})
        rows[-1] |= dict(zip(("difference", "low", "high"), gaps[name], strict=True))
    verdict: Verdict = "does not hold"
    if gaps["pull"][1] > 0:
        verdict = "holds"
    elif gaps["pull"][2] >= 0 and gaps["size"][1] > 0:
        verdict = "holds in part"
    return Claim(
        name="Lemma 6, the pull",
        claim="Gradient descent raises attention scores inside the last token's cluster more than outside.",
        setting=describe(concepts, f"L = {length}", f"{samples} contexts"),
        quantity="mean downhill pull on a score inside the cluster, less that outside",
        measured=gaps["pull"][0],
        low=gaps["pull"][1],
        high=gaps["pull"][2],
        expected=0.0,
        verdict=verdict,
        numbers={"size_ratio": _ratio(rows[1]), "alpha_ratio": _ratio(rows[2])},
        details=pd.DataFrame(rows),
    )


def _ratio(row: dict[str, Any]) -> float:
    return row["inside"] / row["outside"] if row["outside"] else np.inf


def _prepare(
    concepts: LatentConcepts, model: LCAForCausalLM | None, length: int, samples: int, generator: torch.Generator
) -> tuple[LCAForCausalLM, Counts]:
    check_int("length", length, low=1)
    check_int("samples", samples, low=2, why="one context has no interval")
    model = random_model(concepts, concepts.vocab_size, generator) if model is None else model
    check_model(concepts, model)
    return model, concepts.sample_counts(samples, length, generator)
