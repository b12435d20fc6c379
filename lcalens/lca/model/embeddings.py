"""Embeddings in closed form: orthonormal, Gaussian, and with the geometry of equation 5.2. Row t is token t's.

    <e_t, e_t'> = b - a D_H(t, t')  for t != t',      <e_t, e_t> = b0                                  (equation 5.2)

This Gram matrix depends on t XOR t' alone, so the Walsh functions (-1)^popcount(t & s) are its eigenvectors, and it has
three eigenvalues: V (b - a m / 2) + b0 - b for s = 0, a V / 2 + b0 - b for the m single bits, and b0 - b for the rest.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lcalens.core.checks import check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.lca.world.concepts import LATENTS, LatentConcepts

_ROUNDING = 1e-12
_LARGEST = 1e100


def gaussian_embedding(vocab_size: int, d: int, generator: torch.Generator) -> Float[Tensor, "vocab d"]:
    """Entries from N(0, 1/d), so that embeddings have length 1 on average; double precision.

    Args:
        vocab_size: V.
        d: Dimensions.
        generator: Where the randomness comes from; the embedding is made on its device.

    Raises:
        LcalensError: A size is no integer above 0.
    """
    check_int("vocab_size", vocab_size, low=1)
    check_int("d", d, low=1)
    drawn = torch.randn(vocab_size, d, generator=generator, dtype=torch.float64, device=generator.device)
    return drawn / math.sqrt(d)


def orthonormal_embedding(vocab_size: int, d: int, generator: torch.Generator) -> Float[Tensor, "vocab d"]:
    """Orthogonal embeddings of length 1, in a uniformly random direction (Theorem 1); double precision.

    The paper asks for orthonormal rows of W_E; its columns are meant, one per token, hence d >= V.

    Args:
        vocab_size: V.
        d: Dimensions.
        generator: Where the randomness comes from; the embedding is made on its device.

    Raises:
        LcalensError: A size is no integer above 0, or d is below V.
    """
    check_int("d", d, low=vocab_size, why="V orthonormal embeddings need V dimensions")
    q, r = torch.linalg.qr(gaussian_embedding(vocab_size, d, generator).T)
    return (q * r.diagonal().sign()).T  # the signs make the distribution uniform (Mezzadri 2007)


def hamming_eigenvalues(m: int, *, a: float, b: float, b0: float) -> dict[str, float]:
    """The eigenvalues of equation 5.2's Gram matrix: of the `constant`, of the m single `bits`, of all the `rest`.

    Args:
        m: Latent bits.
        a: Slope.
        b: Intercept.
        b0: Squared length of an embedding.

    Raises:
        LcalensError: m is no integer from 2 to 14, or a number is not finite or is beyond 1e100.
    """
    check_int("m", m, low=LATENTS[0], high=LATENTS[-1], why="a vocabulary has 2^m tokens")
    for name, value in (("a", a), ("b", b), ("b0", b0)):
        check_real(name, value, low=-_LARGEST, high=_LARGEST, why="it is part of an inner product")
    size, rest = 1 << m, b0 - b
    eigenvalues = {"constant": size * (b - a * m / 2) + rest, "bits": a * size / 2 + rest, "rest": rest}
    floor = _ROUNDING * size * max(abs(a) * m, abs(b), abs(b0))
    return {name: 0.0 if abs(value) <= floor else value for name, value in eigenvalues.items()}


def hamming_embedding(
    concepts: LatentConcepts | int, d: int | None = None, *, a: float, b: float, b0: float
) -> Float[Tensor, "vocab d"]:
    """Embeddings whose Gram matrix is exactly equation 5.2's; double precision.

    Args:
        concepts: The world, or m alone.
        d: Dimensions; the rank of the Gram matrix by default. Those beyond the rank are 0.
        a: Slope: how much an inner product falls with each differing bit.
        b: Intercept.
        b0: Squared length of an embedding.

    Raises:
        LcalensError: No embedding has this Gram matrix, as it is not positive semi-definite, or none of d dimensions.
    """
    m = concepts.m if isinstance(concepts, LatentConcepts) else concepts
    eigenvalues = hamming_eigenvalues(m, a=a, b=b, b0=b0)
    for name, fix in (("rest", "raise b0 to at least b"), ("constant", "raise b to at least a m / 2, or b0")):
        if eigenvalues[name] < 0:
            raise LcalensError(
                f"{'b' if name == 'constant' else 'b0'}: a = {a:g}, b = {b:g}, b0 = {b0:g} give the Gram matrix the "
                f"eigenvalue {eigenvalues[name]:g}, so no embedding has it; {fix}."
            )
    if eigenvalues["bits"] < 0:
        raise LcalensError(f"a: {a:g} gives the Gram matrix the eigenvalue {eigenvalues['bits']:g}; raise a or b0.")
    size = 1 << m
    bits = [1 << bit for bit in range(m)]
    functions = [0] if eigenvalues["constant"] else []
    functions += bits if eigenvalues["bits"] else []
    if eigenvalues["rest"]:
        functions += sorted({*range(1, size)} - {*bits})
    rank = len(functions)
    width = max(1, rank) if d is None else d
    check_int("d", width, low=max(1, rank), why=f"this Gram matrix has rank {rank}")
    chosen = torch.tensor(functions, dtype=torch.long)
    parity = torch.zeros(size, rank, dtype=torch.long)
    for bit in range(m):
        parity ^= (torch.arange(size)[:, None] & chosen) >> bit & 1
    values = torch.full((rank,), eigenvalues["rest"], dtype=torch.float64)
    values[chosen == 0] = eigenvalues["constant"]
    values[torch.isin(chosen, torch.tensor(bits))] = eigenvalues["bits"]
    embedding = torch.zeros(size, width, dtype=torch.float64)
    embedding[:, :rank] = (1 - 2 * parity) * (values / size).sqrt()
    return embedding
