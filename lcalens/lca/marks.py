"""Positions of a toy context that look redrawn: evidence from the model's parts, a detector, the model without them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.lca.model.model import LCAForCausalLM
from lcalens.lca.world.concepts import LatentConcepts

EVIDENCE = (
    "score", "agreement", "answer", "value for last", "residual and last", "values of both", "belief", "belief and last"
)  # fmt: skip
"""What is told of each position: see `position_evidence`."""
_PENALTY = 0.1  # scikit-learn's C, of standardised evidence
_LEAST = 1e-3


def position_evidence(
    concepts: LatentConcepts, model: LCAForCausalLM, tokens: Int[Tensor, "batch length"]
) -> Float[Tensor, "batch position evidence"]:
    """What the model has of each position but the last, in numbers that know no concept's name.

    Concepts are uniform, so the residual stream at a position says nothing by itself of whether it was redrawn; what
    says something is how it goes with the others and with the last token, which is never redrawn.

    Args:
        concepts: The world.
        model: Its model.
        tokens: Contexts.

    Returns:
        For each position i the names of `EVIDENCE`, with v = W_V e: the attention's score of the last position for it;
        v_i times what all other positions recall; the same with its own part in it; v_i e_last, e_i e_last and
        v_i v_last; and the logit that v_i gives a concept, on average over the model's belief (the softmax of its
        logits), and over that belief when the last token's own value is added to the logits once more.

    Example:
        >>> from lcalens.lca.marks import position_evidence
        >>> concepts, model = LatentConcepts(3), LCAForCausalLM(LCAConfig(m=3, d_model=4))
        >>> position_evidence(concepts, model, torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 2, 8])
    """
    with torch.no_grad():
        counts, last = concepts.count(tokens)
        embedded = model.embed.weight
        values = model.attn.v(embedded)
        score = model.attn.q(embedded[last]) @ model.attn.k(embedded).T * model.attn.scale  # (batch, token)
        paid = (score - (score + counts.log()).logsumexp(-1, keepdim=True)).exp()  # to one copy of each token
        recalled = model.attn.v(model.gathered(counts, last))
        answer = recalled @ values.T
        alone = (answer - paid * (values * values).sum(-1)) / (1 - paid).clamp(min=_LEAST)
        gives = values @ embedded.T  # (token, concept)
        logits = recalled @ embedded.T
        anchored = logits + gives[last]
        of_tokens = [
            score, alone, answer, gives[:, last].T, (embedded @ embedded.T)[last], (values @ values.T)[last],
            logits.softmax(-1) @ gives.T, anchored.softmax(-1) @ gives.T,
        ]  # fmt: skip
        return torch.stack([some.gather(1, tokens[:, :-1]) for some in of_tokens], -1)


@dataclass(frozen=True, eq=False)
class Detector:
    """A logistic regression on a position's evidence.

    Attributes:
        weights: Of each kind of evidence.
        bias: Added to the sum.
    """

    weights: Float[Tensor, " evidence"]
    bias: float

    def scores(self, evidence: Float[Tensor, "batch position evidence"]) -> Float[Tensor, "batch position"]:
        """The log odds that each position was redrawn, by the fit's own prior.

        Args:
            evidence: As `position_evidence` gives it.
        """
        return evidence.double() @ self.weights + self.bias


def fit_detector(
    evidence: Float[Tensor, "batch position evidence"], redrawn: Bool[Tensor, "batch position"]
) -> Detector:
    """A detector of redrawn positions.

    Args:
        evidence: As `position_evidence` gives it.
        redrawn: Which positions were redrawn.

    Raises:
        LcalensError: All positions are of one kind.

    Example:
        >>> from lcalens.lca.marks import fit_detector
        >>> evidence = torch.tensor([[[0.0], [1.0], [2.0], [3.0]]])
        >>> detector = fit_detector(evidence, torch.tensor([[False, False, True, True]]))
        >>> float(detector.weights[0]) > 0
        True
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if bool(redrawn.all()) or not bool(redrawn.any()):
        raise LcalensError(
            "redrawn: all positions are of one kind, which nothing can be told from; draw more contexts."
        )
    features, labels = evidence.flatten(0, 1).double().numpy(), redrawn.flatten().numpy()
    scaler = StandardScaler().fit(features)
    fitted = LogisticRegression(C=_PENALTY, max_iter=1000).fit(scaler.transform(features), labels)
    weights = fitted.coef_[0] / scaler.scale_
    bias = float(fitted.intercept_[0] - (weights * scaler.mean_).sum())
    return Detector(torch.from_numpy(weights), bias)


def defended(
    concepts: LatentConcepts,
    model: LCAForCausalLM,
    tokens: Int[Tensor, "batch length"],
    marked: Bool[Tensor, "batch position"],
) -> Float[Tensor, "batch vocab"]:
    """The last position's logits when it no longer sees some others; what is left of its attention sums to 1.

    Args:
        concepts: The world.
        model: Its model.
        tokens: Contexts.
        marked: Of positions 1 to L - 1, those that it no longer sees.

    Example:
        >>> from lcalens.lca.marks import defended
        >>> concepts, model = LatentConcepts(3), LCAForCausalLM(LCAConfig(m=3, d_model=4))
        >>> defended(concepts, model, torch.tensor([[1, 2, 3]]), torch.tensor([[True, False]])).shape
        torch.Size([1, 8])
    """
    weight = torch.cat([~marked, torch.ones_like(marked[:, :1])], 1).to(model.embed.weight.dtype)
    counts = torch.zeros(len(tokens), concepts.vocab_size, dtype=weight.dtype).scatter_add_(1, tokens, weight)
    return model.from_counts(counts, tokens[:, -1])
