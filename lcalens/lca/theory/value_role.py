"""The role of the value matrix (section 5.2): it brings what attention gathered to where it is classified right."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.core.checks import check_int
from lcalens.core.statistics import clustered_mean_interval, wilson
from lcalens.lca.model.closed_forms import constructed_value, identity_value, with_value
from lcalens.lca.model.model import LCAForCausalLM
from lcalens.lca.theory.claims import TIE, Claim, Verdict, check_model, describe, in_double
from lcalens.lca.world import bayes
from lcalens.lca.world.concepts import LatentConcepts

SAMPLES = 2000
_EXACT = 1e-9
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@torch.no_grad()
def value_margins(
    model: LCAForCausalLM, hidden: Float[Tensor, "batch d"], targets: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """How far W_V h(x) lies inside the polyhedron S_y of the vectors that are classified right (section 5.2).

    S_y = {v : (e_y - e_t)^T v > 0 for all t != y}. The margin is the least over t of (e_y - e_t)^T v / |e_y - e_t|, as
    a share of |v|: the sine of the angle to the nearest face, from -1 to 1, and above 0 exactly inside S_y.

    Args:
        model: The model; its embedding and its W_V are used.
        hidden: h(x), what attention gathered at the last position.
        targets: y.
    """
    exact = in_double(model)
    rows = exact.get_parameter("embed.weight")
    recalled = hidden.double() @ exact.get_parameter("attn.v.weight").T
    return _margins(rows, recalled, recalled @ rows.T, targets)


@torch.no_grad()
def value_role(
    concepts: LatentConcepts,
    model: LCAForCausalLM,
    *,
    values: Mapping[str, Float[Tensor, "d d"]] | None = None,
    length: int = 32,
    samples: int = SAMPLES,
    generator: torch.Generator,
) -> Claim:
    """Section 5.2: h(x) lies in the hull of the embeddings, and x is classified right exactly when W_V h(x) is in S_y.

    h(x) is read where the model computes it. `does not hold` where it is no convex combination of embeddings, where
    right answers and margins above 0 do not coincide, or where W_V brings fewer contexts into S_y than W_V = I does in
    the same model, not in one trained with it (95% interval of the difference, paired by context); `holds` where it
    brings more; `holds in part` where the interval contains 0, so that W_V is not seen to help.

    Args:
        concepts: The world.
        model: The model.
        values: Value matrices to show beside the model's; by default the constructed one and the identity.
        length: L.
        samples: Contexts.
        generator: Where they come from.

    Raises:
        LcalensError: A model of another vocabulary, or a value matrix of another size.
    """
    check_model(concepts, model)
    check_int("samples", samples, low=2, why="one context has no interval")
    drawn = concepts.sample_counts(samples, length, generator)
    exact, counts = in_double(model), drawn.counts.double()
    rows = exact.get_parameter("embed.weight")
    seen: list[Tensor] = []
    handle = exact.attn.v.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    logits = exact.from_counts(counts, drawn.last)
    handle.remove()
    hidden, paid = seen[0], exact.attention_from_counts(counts, drawn.last)
    recalled = hidden @ exact.get_parameter("attn.v.weight").T
    answered = _margins(rows, recalled, logits, drawn.target) > TIE
    outside = max(
        float((paid @ rows - hidden).abs().max() / rows.abs().max()),
        float((paid.sum(-1) - 1).abs().max()),
        float(-paid.min().clamp(max=0)),
    )
    if values is None:
        values = {"constructed": constructed_value(concepts, rows), "identity": identity_value(rows)}
    margins, table = value_margins(exact, hidden, drawn.target), []
    for name, margin in [("model", margins)] + [
        (name, value_margins(with_value(exact, value), hidden, drawn.target)) for name, value in values.items()
    ]:
        hits = int((margin > TIE).sum())
        low, high = wilson(hits, samples)
        quantiles = np.quantile(margin.numpy(), _QUANTILES)
        table.append({"value": name, "inside": hits / samples, "low": low, "high": high})
        table[-1] |= {f"q{100 * at:02.0f}": float(quantile) for at, quantile in zip(_QUANTILES, quantiles, strict=True)}
    plain = value_margins(with_value(exact, identity_value(rows)), hidden, drawn.target)
    gained = (margins > TIE).double() - (plain > TIE).double()
    low, high = clustered_mean_interval(gained.numpy())
    agreement = float((answered == (margins > TIE)).double().mean())
    verdict: Verdict = "does not hold"
    if outside <= _EXACT and agreement == 1 and high >= 0:
        verdict = "holds" if low > 0 else "holds in part"
    return Claim(
        name="Section 5.2, the role of W_V",
        claim="h(x) lies in the hull of the embeddings; x is classified right when W_V h(x) is in S_y; W_V helps.",
        setting=describe(concepts, f"L = {length}", f"{samples} contexts"),
        quantity="share of contexts in S_y: by the model's W_V less by W_V = I",
        measured=float(gained.mean()),
        low=low,
        high=high,
        expected=0.0,
        verdict=verdict,
        numbers={
            "agreement": agreement,
            "outside_hull": outside,
            "accuracy": float(answered.double().mean()),
            "bayes": bayes.bayes_accuracy(concepts, *drawn),
        },
        details=pd.DataFrame(table),
    )


def _margins(
    rows: Float[Tensor, "vocab d"],
    recalled: Float[Tensor, "batch d"],
    logits: Float[Tensor, "batch vocab"],
    targets: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    tiny = torch.finfo(rows.dtype).tiny
    apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")[targets]  # (batch, vocab)
    leads = (logits.gather(1, targets[:, None]) - logits) / apart.clamp(min=tiny)
    return leads.scatter(1, targets[:, None], torch.inf).amin(1) / recalled.norm(dim=1).clamp(min=tiny)
