"""What `recall` says, by loops over sources and answers. Nothing of lcalens is used.

Ties count half: of two equal entries each is as much above as below the other.
"""

import math

import numpy as np

QUANTITIES = (
    "own_first", "own_last", "own_rank", "own_gap", "related_rank", "related_auc", "related_gap", "left"
)  # fmt: skip


def less_the_mean(table):
    """A table less each answer's mean over the sources."""
    rows, columns = len(table), len(table[0])
    means = [sum(table[i][j] for i in range(rows)) / rows for j in range(columns)]
    return [[table[i][j] - means[j] for j in range(columns)] for i in range(rows)]


def rank(entry, among):
    """1 for the largest; equal ones share their places."""
    higher, level = sum(other > entry for other in among), sum(other == entry for other in among)
    return 1 + higher + (level - 1) / 2


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def without(table, reasons):
    """What least squares leaves of a table, all entries together: Gram and Schmidt, reason by reason."""
    axes = []
    for reason in reasons:
        axis = np.array(reason, dtype=float).ravel()
        size = np.sqrt((axis**2).sum())
        for other in axes * 2:  # twice, as rounding asks for
            axis = axis - (axis @ other) * other
        if np.sqrt((axis**2).sum()) > 1e-9 * size:
            axes.append(axis / np.sqrt((axis**2).sum()))
    left = np.array(table, dtype=float).ravel()
    for axis in axes * 2:
        left = left - (left @ axis) * axis
    return left.reshape(np.shape(table))


def slow_measures(table, own, related, similarity):
    """`measures` by its docstring, one source after another; `left` is NaN where rounding alone is left."""
    rows, columns = len(table), len(table[0])
    centred = less_the_mean(table)
    is_own = [[float(own[i] == j) for j in range(columns)] for i in range(rows)]
    left = without(centred, [less_the_mean(is_own), less_the_mean(similarity)])
    nothing = np.abs(left).max() <= 1e-6 * np.abs(centred).max()
    found = {name: np.full(rows, np.nan) for name in QUANTITIES}
    for i in range(rows):
        others = [j for j in range(columns) if j != own[i]]
        near = [j for j in others if related[i][j]]
        far = [j for j in others if not related[i][j]]
        row = centred[i]
        if own[i] >= 0:
            mine = row[own[i]]
            found["own_first"][i] = all(mine > row[j] for j in others)
            found["own_last"][i] = all(mine < row[j] for j in others)
            found["own_rank"][i] = rank(mine, row)
            found["own_gap"][i] = mine - mean(row[j] for j in far)
        if not near or not far:
            continue
        found["related_rank"][i] = mean(rank(row[j], [row[k] for k in others]) for j in near)
        found["related_auc"][i] = mean((row[j] > row[k]) + (row[j] == row[k]) / 2 for j in near for k in far)
        found["related_gap"][i] = mean(row[j] for j in near) - mean(row[k] for k in far)
        middle = mean(left[i][k] for k in far)
        spread = math.sqrt(mean((left[i][k] - middle) ** 2 for k in far))
        if not nothing and spread > 0:
            found["left"][i] = (mean(left[i][j] for j in near) - middle) / spread
    return found
