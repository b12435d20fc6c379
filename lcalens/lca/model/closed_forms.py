"""Closed-form weights: value matrices that are associative memories (section 5.1 of the paper), and models of them.

An embedding is (V, d), row t the embedding e_t of token t: the transpose of the paper's W_E. A value matrix is (d, d)
and recalls W u, as the weight of `nn.Linear` does. N1(t) are the tokens of N(t) at Hamming distance 1.
"""

import copy
import math

import torch
from jaxtyping import Float
from torch import Tensor

from lcalens.core.checks import check_int
from lcalens.core.errors import LcalensError
from lcalens.lca.model.embeddings import gaussian_embedding as gaussian_embedding
from lcalens.lca.model.embeddings import hamming_embedding as hamming_embedding
from lcalens.lca.model.embeddings import orthonormal_embedding as orthonormal_embedding
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.lca.world.concepts import LatentConcepts

_CHUNK = 1 << 24


def constructed_value(concepts: LatentConcepts, embedding: Float[Tensor, "vocab d"]) -> Float[Tensor, "d d"]:
    """Theorem 1's memory (equation 5.1): the sum over t of e_t (sum of e_t' over t' in N1(t))^T.

    Args:
        concepts: The world; it says what N1 is.
        embedding: Row t is the embedding of token t.

    Raises:
        LcalensError: The embedding has not V rows, or a number in it is not finite.
    """
    _check_embedding(concepts, embedding)
    return embedding.T @ _sum_over_nearest(concepts, embedding)


def random_pair_value(
    concepts: LatentConcepts, embedding: Float[Tensor, "vocab d"], generator: torch.Generator
) -> Float[Tensor, "d d"]:
    """The control of appendix C.1: as many pairs as Theorem 1's memory has, at random.

    Each token t is paired with |N1(t)| distinct tokens other than t, drawn uniformly, in place of N1(t).

    Args:
        concepts: The world; it says how many tokens N1(t) has.
        embedding: Row t is the embedding of token t.
        generator: Where the randomness comes from.

    Raises:
        LcalensError: The embedding has not V rows, or a number in it is not finite.
    """
    _check_embedding(concepts, embedding)
    size, pairs = concepts.vocab_size, len(_nearest_offsets(concepts))
    summed = torch.empty_like(embedding)
    rows = max(1, _CHUNK // size)
    for start in range(0, size, rows):
        stop = min(start + rows, size)
        keys = torch.rand(stop - start, size, generator=generator, device=generator.device)
        # A token's own key is below every other, so that it is never among the largest.
        keys[torch.arange(stop - start), torch.arange(start, stop)] = -1
        partners = keys.topk(pairs, dim=1).indices.to(embedding.device)
        summed[start:stop] = embedding[partners].sum(1)
    return embedding.T @ summed


def identity_value(embedding: Float[Tensor, "vocab d"]) -> Float[Tensor, "d d"]:
    """W_V = I: nothing but what attention gathered.

    Args:
        embedding: It says what d, the precision and the device are.
    """
    return torch.eye(embedding.shape[1], dtype=embedding.dtype, device=embedding.device)


def gram_value(embedding: Float[Tensor, "vocab d"]) -> Float[Tensor, "d d"]:
    """W_E W_E^T, the sum over t of e_t e_t^T: a memory of each token by itself, a control of Theorem 1's.

    Args:
        embedding: Row t is the embedding of token t.
    """
    return embedding.T @ embedding


def gaussian_value(d: int, generator: torch.Generator) -> Float[Tensor, "d d"]:
    """Entries from N(0, 1/d), in double precision: a control.

    Args:
        d: Dimensions.
        generator: Where the randomness comes from; the matrix is made on its device.

    Raises:
        LcalensError: d is no integer above 0.
    """
    check_int("d", d, low=1)
    return torch.randn(d, d, generator=generator, dtype=torch.float64, device=generator.device) / math.sqrt(d)


def pseudo_inverse_value(concepts: LatentConcepts, embedding: Float[Tensor, "vocab d"]) -> Float[Tensor, "d d"]:
    """The memory for embeddings that are not orthogonal: e_t^T W e_s is 1 where s is in N1(t), and 0 elsewhere.

    W is the sum over t of f_t (sum of f_t' over t' in N1(t))^T with F = pinv(W_E)^T in place of W_E. Where the
    embeddings are linearly independent (d >= V) it is exact, and otherwise nearest in least squares. For orthonormal
    embeddings it is `constructed_value`.

    Args:
        concepts: The world; it says what N1 is.
        embedding: Row t is the embedding of token t.

    Raises:
        LcalensError: The embedding has not V rows, or a number in it is not finite.
    """
    _check_embedding(concepts, embedding)
    dual = torch.linalg.pinv(embedding).T  # (vocab, d)
    return dual.T @ _sum_over_nearest(concepts, dual)


def theorem1_model(concepts: LatentConcepts, d_model: int | None = None) -> LCAForCausalLM:
    """Theorem 1's model: uniform attention, orthonormal embeddings (the first V axes), the constructed value matrix.

    Args:
        concepts: The world.
        d_model: d; V by default.

    Raises:
        LcalensError: d_model is no integer of at least V.
    """
    width = concepts.vocab_size if d_model is None else d_model
    check_int("d_model", width, low=concepts.vocab_size, why="V orthonormal embeddings need V dimensions")
    embedding = torch.eye(concepts.vocab_size, width)
    return closed_form_model(embedding, constructed_value(concepts, embedding))


def theorem4_model(
    concepts: LatentConcepts, *, a: float, b: float, b0: float, d_model: int | None = None
) -> LCAForCausalLM:
    """Theorem 4's model: uniform attention, embeddings of equation 5.2, the value matrix constructed from them.

    Args:
        concepts: The world.
        a: Slope: how much an inner product falls with each differing bit.
        b: Intercept.
        b0: Squared length of an embedding.
        d_model: d; V by default.

    Raises:
        LcalensError: No embedding of d_model dimensions has this Gram matrix.
    """
    width = concepts.vocab_size if d_model is None else d_model
    embedding = hamming_embedding(concepts, width, a=a, b=b, b0=b0)
    return closed_form_model(embedding, constructed_value(concepts, embedding))


def closed_form_model(embedding: Float[Tensor, "vocab d"], value: Float[Tensor, "d d"]) -> LCAForCausalLM:
    """The model of these weights with W_K = W_Q = 0, which attends to every position alike; single precision.

    Args:
        embedding: Row t is the embedding of token t.
        value: W_V.

    Raises:
        LcalensError: The number of rows is no power of 2 from 4 to 2^14, or a value matrix of another size.
    """
    size, width = embedding.shape
    m = size.bit_length() - 1
    if size != 1 << m:
        raise LcalensError(f"embedding: expected 2^m rows, one per token, got {size}.")
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten: the caller's stream stays put
        model = LCAForCausalLM(LCAConfig(m=m, d_model=width, value="identity", attention="zero"))
    with torch.no_grad():
        model.get_parameter("embed.weight").copy_(embedding)
        model.get_parameter("attn.q.weight").zero_()
        model.get_parameter("attn.k.weight").zero_()
    return with_value(model, value)


def with_value(model: LCAForCausalLM, value: Float[Tensor, "d d"]) -> LCAForCausalLM:
    """A copy of the model with another W_V, in the model's own precision; the model itself is left alone.

    Args:
        model: The model.
        value: The new W_V.

    Raises:
        LcalensError: W_V has another size, or a number in it is not finite.
    """
    weight = model.attn.v.weight
    if value.shape != weight.shape or not value.isfinite().all():
        raise LcalensError(
            f"value: expected finite numbers of shape {tuple(weight.shape)}, got shape {tuple(value.shape)}; "
            "a value matrix is d x d."
        )
    swapped = copy.deepcopy(model)
    with torch.no_grad():
        swapped.attn.v.weight.copy_(value)
    return swapped


def nearest(concepts: LatentConcepts) -> Float[Tensor, "vocab vocab"]:
    """The matrix of N1: 1 where the column's token is in N1 of the row's, and 0 elsewhere; double precision.

    Args:
        concepts: The world.
    """
    tokens = torch.arange(concepts.vocab_size)
    matrix = torch.zeros(concepts.vocab_size, concepts.vocab_size, dtype=torch.float64)
    for offset in _nearest_offsets(concepts):
        matrix[tokens, tokens ^ offset] = 1
    return matrix


def _nearest_offsets(concepts: LatentConcepts) -> list[int]:
    inside = concepts.offset_log_pi.isfinite() & (concepts.offset_distance == 1)
    return torch.nonzero(inside).squeeze(1).tolist()


def _sum_over_nearest(concepts: LatentConcepts, rows: Float[Tensor, "vocab d"]) -> Float[Tensor, "vocab d"]:
    # One gather a bit: the V x V matrix of N1 is never built.
    tokens = torch.arange(concepts.vocab_size, device=rows.device)
    return sum((rows[tokens ^ offset] for offset in _nearest_offsets(concepts)), torch.zeros_like(rows))


def _check_embedding(concepts: LatentConcepts, embedding: Float[Tensor, "vocab d"]) -> None:
    if not isinstance(embedding, torch.Tensor):
        raise LcalensError(
            f"embedding: expected a tensor of {concepts.vocab_size} rows, got {type(embedding).__name__}; a model's is "
            "model.embed.weight."
        )
    if embedding.ndim != 2 or len(embedding) != concepts.vocab_size or not embedding.isfinite().all():
        raise LcalensError(
            f"embedding: expected {concepts.vocab_size} rows of finite numbers, one for each token, got shape "
            f"{tuple(embedding.shape)}; it is the transpose of W_E."
        )
