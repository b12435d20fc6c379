"""What weights look like: subspaces of value matrices, inner products against Hamming distance, spectra, attention.

An embedding is (V, d), row t the embedding of token t: the transpose of the paper's W_E. Everything is computed in
double precision.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.linalg import subspace_angles
from torch import Tensor

from lcalens.core.checks import check_int
from lcalens.core.errors import LcalensError
from lcalens.lca.attention import AttentionMass as AttentionMass
from lcalens.lca.attention import attention_mass as attention_mass
from lcalens.lca.world.concepts import LatentConcepts

_CHUNK = 1 << 24


@dataclass(frozen=True, eq=False)
class PrincipalAngles:
    """Angles between the subspaces of two matrices' best approximations of one rank (figure C.3).

    Attributes:
        left: In degrees, smallest first, between the spaces that the approximations write to (left singular vectors).
        right: The same between the spaces that they read from (right singular vectors).
        gaps: For each matrix the ratio of its last singular value kept to the first one left out. Where it is 1 the
            best approximation is not unique, and neither are its angles.
    """

    left: Float[np.ndarray, " rank"]
    right: Float[np.ndarray, " rank"]
    gaps: tuple[float, float]

    @property
    def smallest(self) -> tuple[float, float]:
        """The smallest angle, left and right."""
        return float(self.left[0]), float(self.right[0])


@dataclass(frozen=True, eq=False)
class HammingFit:
    """How well equation 5.2 describes an embedding: <e_t, e_t'> = b - a D_H(t, t') for t != t', and b0 for t = t'.

    Attributes:
        a: Slope of the least-squares line over all pairs t != t'.
        b: Its intercept.
        b0: Mean squared length of an embedding.
        r2_pairs: Share of the variance over pairs that this line explains; NaN where inner products do not vary.
        r2_means: The same for a line through the means of the distances, each distance counted once.
        distances: 1 to m.
        means: The mean inner product at each.
        deviations: The standard deviation of the inner products at each.
        largest_error: The largest |<e_t, e_t'> - (b - a D_H)| over pairs, and |<e_t, e_t> - b0| over tokens.
    """

    a: float
    b: float
    b0: float
    r2_pairs: float
    r2_means: float
    distances: Int[np.ndarray, " distance"]
    means: Float[np.ndarray, " distance"]
    deviations: Float[np.ndarray, " distance"]
    largest_error: float


@dataclass(frozen=True, eq=False)
class SpectralGap:
    """Where a spectrum falls (figures C.9 to C.12).

    Attributes:
        ratios: Each singular value over the next one: entry k - 1 is the ratio after the k-th. Infinite where the next
            is 0, and NaN after that.
        largest: The largest ratio.
        largest_after: After which singular value it is, counted from 1.
        after_m: The ratio after the m-th; NaN where there are no more than m.
    """

    ratios: Float[np.ndarray, " neighbors"]
    largest: float
    largest_after: int
    after_m: float


def principal_angles(a: Float[Tensor, "out in"], b: Float[Tensor, "out in"], rank: int) -> PrincipalAngles:
    """Principal angles between the left, and between the right, singular subspaces of the best rank-k parts.

    Args:
        a: A matrix.
        b: Another of the same shape.
        rank: k, as many singular vectors of each as are compared.

    Raises:
        LcalensError: The shapes differ, an entry is not finite, or a matrix has not so high a rank.
    """
    _check_same_shape(a, b)
    if a.ndim != 2:
        raise LcalensError(f"a: expected a matrix, got shape {tuple(a.shape)}.")
    check_int("rank", rank, low=1, high=min(a.shape), why="a matrix has no more singular vectors")
    left, right, gaps = [], [], []
    for name, matrix in (("a", a), ("b", b)):
        u, values, vt = np.linalg.svd(_array(name, matrix))
        if values[rank - 1] <= _zero(values, matrix):
            raise LcalensError(f"rank: {rank} is above the rank of {name}, {(values > _zero(values, matrix)).sum()}.")
        left.append(u[:, :rank])
        right.append(vt[:rank].T)
        following = values[rank] if rank < len(values) else 0.0
        gaps.append(float(values[rank - 1] / following) if following > _zero(values, matrix) else float("inf"))
    angles = [np.rad2deg(np.sort(subspace_angles(*side))) for side in (left, right)]
    return PrincipalAngles(angles[0], angles[1], (gaps[0], gaps[1]))


def cosine(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> float:
    """The cosine of the angle between two matrices taken as vectors of their entries; NaN where one is 0.

    Args:
        a: A matrix.
        b: Another of the same shape.

    Raises:
        LcalensError: The shapes differ, or an entry is not finite.
    """
    _check_same_shape(a, b)
    x, y = _array("a", a).ravel(), _array("b", b).ravel()
    lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / lengths if lengths else float("nan")


def least_squares_scale(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> float:
    """The number s for which s a is nearest to b in least squares; NaN where a is 0.

    Args:
        a: A matrix.
        b: Another of the same shape.

    Raises:
        LcalensError: The shapes differ, or an entry is not finite.
    """
    _check_same_shape(a, b)
    x, y = _array("a", a).ravel(), _array("b", b).ravel()
    return float(x @ y) / float(x @ x) if x.any() else float("nan")


def gram_hamming_fit(concepts: LatentConcepts, embedding: Float[Tensor, "vocab d"]) -> HammingFit:
    """Equation 5.2 fitted to an embedding in least squares, over pairs of tokens (figures 3b, C.5, C.6).

    Args:
        concepts: The world.
        embedding: Row t is the embedding of token t.

    Raises:
        LcalensError: The embedding has not V rows, or a number in it is not finite.
    """
    if len(embedding) != concepts.vocab_size:
        raise LcalensError(f"embedding: expected {concepts.vocab_size} rows, one per token, got {len(embedding)}.")
    rows, m = torch.from_numpy(_array("embedding", embedding)), concepts.m
    counts, sums, squares = np.zeros(m + 1), np.zeros(m + 1), np.zeros(m + 1)
    low, high = np.full(m + 1, np.inf), np.full(m + 1, -np.inf)
    tokens = torch.arange(len(rows))
    # Inner products are measured from about their mean, so that their squares cancel nothing.
    shift = float(rows.sum(0).square().sum() - rows.square().sum()) / (len(rows) * (len(rows) - 1))
    for chunk in tokens.split(max(1, _CHUNK // len(rows))):
        distance = concepts.distance(chunk[:, None], tokens).numpy().ravel()
        products = (rows[chunk] @ rows.T - shift).numpy().ravel()
        counts += np.bincount(distance, minlength=m + 1)
        sums += np.bincount(distance, weights=products, minlength=m + 1)
        squares += np.bincount(distance, weights=products**2, minlength=m + 1)
        np.minimum.at(low, distance, products)
        np.maximum.at(high, distance, products)
    distances, means = np.arange(1, m + 1), sums / counts
    deviations = np.sqrt(np.maximum(squares / counts - means**2, 0))
    noise = float(64 * torch.finfo(embedding.dtype).eps * np.abs(means + shift).max())
    a, b, r2_pairs = _line(distances, means[1:], counts[1:], deviations[1:], noise)
    predicted = np.concatenate([means[:1], b - a * distances])
    return HammingFit(
        a=a,
        b=b + shift,
        b0=float(means[0]) + shift,
        r2_pairs=r2_pairs,
        r2_means=_line(distances, means[1:], np.ones(m), np.zeros(m), noise)[2],
        distances=distances,
        means=means[1:] + shift,
        deviations=deviations[1:],
        largest_error=float(np.maximum(high - predicted, predicted - low).max()),
    )


def spectrum(embedding: Float[Tensor, "rows columns"]) -> Float[np.ndarray, " value"]:
    """The singular values of a matrix, largest first.

    Args:
        embedding: An embedding, or any matrix.

    Raises:
        LcalensError: A number in it is not finite.
    """
    return np.linalg.svd(_array("embedding", embedding), compute_uv=False)


def spectral_gap(concepts: LatentConcepts, embedding: Float[Tensor, "vocab d"]) -> SpectralGap:
    """The ratios of neighbouring singular values, where the largest is, and what it is after the m-th.

    Args:
        concepts: The world; it says what m is.
        embedding: Row t is the embedding of token t.

    Raises:
        LcalensError: There are fewer than two singular values, all are 0, or a number is not finite.
    """
    values = spectrum(embedding)
    if len(values) < 2 or values[0] == 0:
        raise LcalensError(f"embedding: shape {tuple(embedding.shape)} has no two singular values above 0 to compare.")
    values = np.where(values > _zero(values, embedding), values, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = values[:-1] / values[1:]
    largest = int(np.nanargmax(ratios))
    after_m = float(ratios[concepts.m - 1]) if concepts.m <= len(ratios) else float("nan")
    return SpectralGap(ratios, float(ratios[largest]), largest + 1, after_m)


def _line(
    x: Int[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
    spread: Float[np.ndarray, " n"],
    noise: float,
) -> tuple[float, float, float]:
    """Minus the slope, the intercept and R^2 of the weighted line through groups with these means and deviations.

    R^2 is NaN where the values vary by no more than rounding.
    """
    share = weight / weight.sum()
    dx, dy = x - share @ x, y - share @ y
    slope = float(share @ (dx * dy) / (share @ dx**2))
    total = float(share @ (dy**2 + spread**2))
    r2 = slope * float(share @ (dx * dy)) / total if total > noise**2 else float("nan")
    return -slope, float(share @ y - slope * (share @ x)), r2


def _array(name: str, matrix: Tensor) -> np.ndarray:
    if not matrix.isfinite().all():
        raise LcalensError(f"{name}: {int((~matrix.isfinite()).sum())} of its entries are not finite numbers.")
    return matrix.detach().double().cpu().numpy()


def _zero(values: np.ndarray, matrix: Tensor) -> float:
    """Below this a singular value is rounding error of the matrix's own precision."""
    return float(values[0] * max(matrix.shape) * torch.finfo(matrix.dtype).eps)


def _check_same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise LcalensError(f"b: shape {tuple(b.shape)} is not the shape of a, {tuple(a.shape)}.")
