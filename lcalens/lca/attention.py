"""Where attention looks: at the tokens that speak of the target, or at all alike."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.core.tensors import check_tokens
from lcalens.lca.model.model import LCAForCausalLM
from lcalens.lca.world.concepts import LatentConcepts


@dataclass(frozen=True, eq=False)
class AttentionMass:
    """Attention paid to the tokens that speak of the target (figures 3c, C.7, C.8).

    Attributes:
        attended: For each context, the model's attention to the target and its neighbourhood N(target) together.
        uniform: What uniform attention would pay: their share of the context.
    """

    attended: Float[np.ndarray, " context"]
    uniform: Float[np.ndarray, " context"]

    @property
    def means(self) -> tuple[float, float]:
        """The mean over the contexts: the model's attention, and uniform attention."""
        return float(self.attended.mean()), float(self.uniform.mean())


@torch.no_grad()
def attention_mass(
    concepts: LatentConcepts,
    model: LCAForCausalLM,
    counts: Float[Tensor, "batch vocab"],
    last: Int[Tensor, " batch"],
    target: Int[Tensor, " batch"],
) -> AttentionMass:
    """The last position's attention to the target and its neighbourhood, against uniform attention.

    For `cluster` this is the target's cluster, which is also the last token's. For `all` it is every token, and so 1.

    Args:
        concepts: The world.
        model: The model.
        counts: How often each token occurs, the last one included.
        last: The last token.
        target: The concepts.

    Raises:
        LcalensError: A token outside the vocabulary, or counts or a model of another vocabulary.
    """
    last = check_tokens("last", last, concepts.vocab_size, shape=(len(counts),))
    target = check_tokens("target", target, concepts.vocab_size, shape=(len(counts),))
    for name, vocabulary in (("counts", counts.shape[-1]), ("model", model.config.vocab_size)):
        if vocabulary != concepts.vocab_size:
            raise LcalensError(
                f"{name}: it has {vocabulary} tokens and the world {concepts.vocab_size}; they must agree."
            )
    inside = (concepts.offset_log_pi.isfinite() | (concepts.offset_distance == 0)).to(counts.device)
    tokens = torch.arange(concepts.vocab_size, device=counts.device)
    near = inside[target[:, None] ^ tokens].double()
    paid = model.attention_from_counts(counts.to(model.dtype), last).double()
    share = counts.double() / counts.double().sum(-1, keepdim=True)
    return AttentionMass((paid * near).sum(-1).cpu().numpy(), (share * near).sum(-1).cpu().numpy())
