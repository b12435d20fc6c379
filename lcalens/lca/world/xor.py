"""XOR convolutions: sums over tokens of a table of their offsets, and what a context says by two such tables.

In the toy world a distribution is a table of V numbers over the offset t XOR y, so every sum over tokens is a XOR
correlation; from V = 1024 on it goes through the Walsh-Hadamard transform. Nothing here knows what the tables mean.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

_TRANSFORM_FROM = 1024


def walsh_hadamard(values: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
    """The Walsh-Hadamard transform of the last axis, not normalised: twice gives V times the values.

    Args:
        values: V of them, a power of 2, in the last axis.
    """
    size, width = values.shape[-1], 1
    while width < size:
        pairs = rearrange(values, "... (block pair width) -> ... block pair width", pair=2, width=width)
        even, odd = pairs.unbind(-2)
        sums = torch.stack([even + odd, even - odd], -2)
        values = rearrange(sums, "... block pair width -> ... (block pair width)")
        width *= 2
    return values


def xor_correlate(counts: Float[Tensor, "batch vocab"], table: Float[Tensor, " vocab"]) -> Float[Tensor, "batch vocab"]:
    """For every y the sum over t of counts(t) table(t XOR y).

    Args:
        counts: What is summed over.
        table: A function of the offset.
    """
    size = len(table)
    if size >= _TRANSFORM_FROM:
        return walsh_hadamard(walsh_hadamard(counts) * walsh_hadamard(table)) / size
    offsets = torch.arange(size, device=table.device)
    return counts @ table[offsets[:, None] ^ offsets]


def log_likelihood(
    log_p: Float[Tensor, " vocab"],
    log_pi: Float[Tensor, " vocab"],
    counts: Float[Tensor, "batch vocab"],
    last: Int[Tensor, " batch"],
) -> Float[Tensor, "batch vocab"]:
    """Log p(context | y) for every y, but for a constant that does not depend on y; -inf where it cannot be.

    Double precision. A token that is impossible given y has log-probability -inf: such tokens are counted by a
    transform of their own, and one of them rules y out.

    Args:
        log_p: Of each offset t XOR y, for all tokens but the last.
        log_pi: The same for the last token.
        counts: How often each token occurs, the last one included.
        last: The last token.
    """
    size = len(log_p)
    counts = counts.double()
    counts = counts - torch.nn.functional.one_hot(last, size)
    log_p, log_pi = log_p.to(last.device), log_pi.to(last.device)
    possible = log_p.isfinite()
    centred = torch.where(possible, log_p - log_p[possible].mean(), 0.0)
    scores = xor_correlate(counts, centred)
    if not possible.all():
        violations = xor_correlate(counts, (~possible).double()).round()
        scores = scores.masked_fill(violations > 0, -math.inf)
    offsets = torch.arange(size, device=last.device)
    return scores + log_pi[last[:, None] ^ offsets]
