"""How well a source-to-answer table recalls: its own token, related ones, and what is left without the easy reasons."""

import numpy as np
from jaxtyping import Bool, Float, Int

QUANTITIES = (
    "own_first", "own_last", "own_rank", "own_gap", "related_rank", "related_auc", "related_gap", "left"
)  # fmt: skip
UNITS = {
    "own_first": "share", "own_last": "share", "own_rank": "rank", "own_gap": "logits", "related_rank": "rank",
    "related_auc": "share", "related_gap": "logits", "left": "sd",
}  # fmt: skip
_FLAT = 1e-6  # of the table's spread: less than this is rounding


def measures(
    table: Float[np.ndarray, "source answer"],
    own: Int[np.ndarray, " source"],
    related: Bool[np.ndarray, "source answer"],
    similarity: Float[np.ndarray, "source answer"],
) -> dict[str, Float[np.ndarray, " source"]]:
    """What a table recalls, source by source.

    The table is taken less each answer's mean over the sources: what this source recalls more than others do. Equal
    entries share their ranks. NaN is where a source has no own token, nothing related, or nothing unrelated to hold
    these against.

    Args:
        table: What each answer's logit gets of each source.
        own: Where each source's own token stands among the answers; -1 where it does not.
        related: Which answers are related to each source; its own token is not, whatever is said here.
        similarity: Of the embeddings of source and answer, for `left`.

    Returns:
        `own_first` and `own_last`, 1 where the own token alone has the largest or the smallest entry; `own_rank`, 1 for
        the largest; `own_gap`, its entry less the mean of the unrelated; `related_rank`, the mean rank of related
        tokens among all but the own; `related_auc`, the share of pairs of a related and an unrelated token in which the
        related one has the larger entry, of equal ones half; `related_gap`, the related ones' mean less that of the
        unrelated; `left`, the same in standard deviations of the unrelated (no less than a millionth of the table's),
        when own token and similarity, less each answer's mean as the table is, are regressed out of the whole table.
        It is NaN where they leave nothing.
    """
    centred = table - table.mean(0)
    sources = np.arange(len(table))
    is_own = np.zeros(table.shape, dtype=bool)
    is_own[sources[own >= 0], own[own >= 0]] = True
    related = related & ~is_own
    unrelated = ~related & ~is_own
    found = {name: np.full(len(table), np.nan) for name in QUANTITIES}
    beside = _mean(centred, unrelated)
    has = own >= 0
    mine = centred[sources[has], own[has]]
    higher, lower, level = (compare(centred[has], mine[:, None]).sum(1) for compare in (np.greater, np.less, np.equal))
    found["own_rank"][has] = 1 + higher + (level - 1) / 2
    found["own_first"][has] = (higher == 0) & (level == 1)
    found["own_last"][has] = (lower == 0) & (level == 1)
    found["own_gap"][has] = mine - beside[has]
    found["related_gap"] = _mean(centred, related) - beside
    for row in np.flatnonzero(related.any(1) & unrelated.any(1)):
        of_related, of_others = centred[row, related[row], None], centred[row, unrelated[row]]
        found["related_auc"][row] = (of_related > of_others).mean() + (of_related == of_others).mean() / 2
        ranked = centred[row, ~is_own[row]]
        found["related_rank"][row] = np.mean((ranked > of_related).sum(1) + ((ranked == of_related).sum(1) + 1) / 2)
    found["left"] = _left(centred, is_own, related, unrelated, similarity)
    return found


def _mean(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    count = mask.sum(1)
    return np.where(count > 0, (values * mask).sum(1) / np.maximum(count, 1), np.nan)


def _left(
    centred: np.ndarray, own: np.ndarray, related: np.ndarray, unrelated: np.ndarray, similarity: np.ndarray
) -> np.ndarray:
    """How far related answers stand above unrelated ones when own token and similarity are projected out."""
    # Less their means over the sources as the table is, or what they put there would be left of answers of their kind.
    reasons = np.stack([(reason - reason.mean(0)).ravel() for reason in (own, similarity)], 1)
    left = centred - (reasons @ np.linalg.lstsq(reasons, centred.ravel(), rcond=None)[0]).reshape(centred.shape)
    if left.std() <= _FLAT * centred.std():
        return np.full(len(centred), np.nan)  # nothing but the reasons
    middle = _mean(left, unrelated)
    spread = np.sqrt(_mean((left - middle[:, None]) ** 2, unrelated))
    return (_mean(left, related) - middle) / np.maximum(spread, _FLAT * centred.std())


def copying_score(table: Float[np.ndarray, "source source"]) -> float:
    """The sum of a square table's eigenvalues over the sum of their magnitudes (Elhage et al. 2021).

    It is 1 where every token raises itself, -1 where it lowers itself.

    Args:
        table: Sources and answers are the same tokens, in the same order.
    """
    values = np.linalg.eigvals(table)
    size = np.abs(values).sum()
    return float(values.sum().real / size) if size > 0 else float("nan")
