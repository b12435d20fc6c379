"""What a trained value matrix is compared with, for the probes that swap it and those that look at its subspaces."""

import torch
from jaxtyping import Float
from torch import Tensor

from lcalens import LatentConcepts
from lcalens.lca.model import closed_forms as memory


def value_matrices(
    concepts: LatentConcepts, embedding: Float[Tensor, "vocab d"], seed: int
) -> dict[str, Float[Tensor, "d d"]]:
    """The constructed value matrix and its controls, in double precision, made of one model's own embeddings.

    Args:
        concepts: The world.
        embedding: Row t is the embedding of token t.
        seed: Of the random pairs and the Gaussian matrix.
    """
    rows, generator = embedding.detach().double().cpu(), torch.Generator().manual_seed(seed)
    return {
        "constructed": memory.constructed_value(concepts, rows),
        "random pairs": memory.random_pair_value(concepts, rows, generator),
        "E E^T": memory.gram_value(rows),
        "identity": memory.identity_value(rows),
        "Gaussian": memory.gaussian_value(rows.shape[1], generator),
        "pseudo-inverse": memory.pseudo_inverse_value(concepts, rows),
    }
