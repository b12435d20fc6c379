"""Latent concept association in plain Python: loops over bit strings, exact sums, and splitmix64 on whole numbers."""

import functools
import itertools
import math

from scipy.stats import chisquare

ALPHA = 1e-4  # seeds are fixed: a test passes always or never

WORLDS = [
    *({"neighborhood": name} for name in ("all", "nearest", "cluster")),
    {"neighborhood": "cluster", "cluster_bits": 2},
]
NAMES = ["all", "nearest", "cluster1", "cluster2"]


def strings(m):
    """Every token as its bits, token 0 first."""
    return ["".join(bits) for bits in itertools.product("01", repeat=m)]


def hamming(a, b):
    return sum(x != y for x, y in zip(a, b, strict=True))


def inside(t, y, neighborhood="all", cluster_bits=1):
    """Whether the bit string t is in N(y)."""
    if neighborhood == "nearest":
        return hamming(t, y) == 1
    return t != y and (neighborhood == "all" or t[:cluster_bits] == y[:cluster_bits])


@functools.cache
def tables(m, omega=0.5, beta=1.0, neighborhood="all", cluster_bits=1):
    """p[y][t] and pi[y][t]."""
    p, pi = [], []
    for y in strings(m):
        weight = [
            math.exp(-hamming(t, y) / beta) if inside(t, y, neighborhood, cluster_bits) else 0.0 for t in strings(m)
        ]
        pi.append([one / math.fsum(weight) for one in weight])
        p.append([omega * one + (1 - omega) / 2**m for one in pi[-1]])
    return p, pi


def likelihood(context, y, p, pi):
    """p(context | y): all tokens but the last from p, the last from pi."""
    return math.prod(p[y][t] for t in context[:-1]) * pi[y][context[-1]]


def splitmix64(seed, count):
    """Steele, Lea and Flood's generator, as printed."""
    mask, found = (1 << 64) - 1, []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        found.append(z ^ (z >> 31))
    return found


def seen_as(counts, probabilities):
    """Chi-squared's p-value; what is impossible must not have been seen at all."""
    pairs = list(zip(counts, probabilities, strict=True))
    assert all(count == 0 for count, probability in pairs if probability == 0)
    pairs = [pair for pair in pairs if pair[1] > 0]
    if len(pairs) == 1:
        return 1.0
    total = math.fsum(count for count, _ in pairs)
    return float(chisquare([count for count, _ in pairs], [total * probability for _, probability in pairs]).pvalue)
