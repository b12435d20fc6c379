"""How many sentences stand before a prompt: the numbers that may be asked for."""

from collections.abc import Iterable, Sequence
from numbers import Integral

from lcalens.core.errors import LcalensError

MOST = 100_000


def check_counts(counts: Sequence[int]) -> tuple[int, ...]:
    """The numbers of sentences, each once, in rising order.

    Raises:
        LcalensError: Empty, or not whole numbers from 0 up.
    """
    if not isinstance(counts, Integral | Iterable):
        raise LcalensError(f"counts: expected whole numbers from 0 up, got {counts!r:.60}; try (0, 1, 3).")
    listed = [counts] if isinstance(counts, Integral) else list(counts)
    bad = [n for n in listed if isinstance(n, bool) or not isinstance(n, Integral) or not 0 <= int(n) <= MOST]
    if bad or not listed:
        shown = repr(bad[0] if bad else listed)
        raise LcalensError(f"counts: {shown:.40} is not a whole number from 0 up, {MOST:,} at most; try (0, 1, 3).")
    return tuple(sorted({int(n) for n in listed}))
