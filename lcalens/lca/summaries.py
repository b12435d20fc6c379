"""What a trained model looks like, as results that show themselves: its Gram matrix, its attention."""

import numpy as np
import pandas as pd
import torch

from lcalens.core.checks import check_int
from lcalens.core.results import Result
from lcalens.lca.geometry import gram_hamming_fit
from lcalens.lca.model.model import LCAForCausalLM
from lcalens.lca.training.runs import training as training
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.lca.world.provenance import world_provenance

_MOST_LATENTS = 10


def gram(concepts: LatentConcepts, model: LCAForCausalLM) -> Result:
    """Inner products of the embeddings by Hamming distance, and the line of equation 5.2 through them.

    Args:
        concepts: The world.
        model: The model.

    Returns:
        A result over the axis distance (0 to m), with the inner products' `mean` and `deviation`; `summary` has a, b,
        b0 and both R2 of <e_t, e_t'> = b - a D_H.

    Raises:
        LcalensError: A model of another vocabulary.
    """
    embedding = model.embed.weight.detach()
    fit = gram_hamming_fit(concepts, embedding)
    squared = embedding.double().square().sum(-1).cpu().numpy()
    fitted = {name: [getattr(fit, name)] for name in ("a", "b", "b0", "r2_pairs", "r2_means")}
    return Result(
        kind="gram",
        axes={"distance": tuple(range(concepts.m + 1))},
        values={"mean": np.array([fit.b0, *fit.means]), "deviation": np.array([squared.std(), *fit.deviations])},
        tables={"summary": pd.DataFrame(fitted)},
        provenance=world_provenance(concepts),
    )


def attention_pattern(concepts: LatentConcepts, model: LCAForCausalLM) -> Result:
    """Where each token as the last one looks, when every token occurs once.

    Args:
        concepts: The world.
        model: The model.

    Returns:
        A result over the axes query (the last token) and key, with `attention`; every row sums to 1.

    Raises:
        LcalensError: m above 10: the table is V x V.
    """
    check_int("m", concepts.m, low=2, high=_MOST_LATENTS, why="the table is V x V")
    size, device = concepts.vocab_size, model.embed.weight.device
    with torch.no_grad():
        pattern = model.attention_from_counts(torch.ones(size, size, device=device), torch.arange(size, device=device))
    names = tuple(format(token, f"0{concepts.m}b") for token in range(size))
    return Result(
        kind="attention-pattern",
        axes={"query": names, "key": names},
        values={"attention": pattern.double().cpu().numpy()},
        provenance=world_provenance(concepts),
    )
