"""A batch that halves itself when memory runs out, and says how often it did."""

from collections.abc import Callable

import numpy as np
import torch

from lcalens.core.errors import LcalensError
from lcalens.mechanism.contrast.contrast import Bucket

Arrays = dict[str, np.ndarray]
_SAID = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
_LEAST = 2.0**20  # bytes: less than this is no batch


def halving(measure: Callable[[Bucket, float], Arrays], bucket: Bucket, budget: float) -> tuple[Arrays, int]:
    """Measure a bucket; where memory runs out, its halves one after the other with half the memory each.

    Args:
        measure: From examples and a number of bytes to arrays whose first axis is the examples.
        bucket: The examples.
        budget: Bytes that may be taken at once.

    Returns:
        The arrays of all the examples, and how often the batch was halved.

    Raises:
        LcalensError: Memory does not suffice for one example.
    """
    try:
        return measure(bucket, budget), 0
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    # Out of the handler, so that the failed batch's tensors are free.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    size = len(bucket.indices)
    if size == 1 and budget <= _LEAST:
        raise LcalensError(f"memory: it ran out with one example and the least batch ({reason:.80}); free some.")
    cuts = [slice(0, (size + 1) // 2), slice((size + 1) // 2, size)] if size > 1 else [slice(0, 1)]
    halves = [halving(measure, Bucket(*(tensor[cut] for tensor in bucket)), budget / 2) for cut in cuts]
    joined = {name: np.concatenate([arrays[name] for arrays, _ in halves]) for name in halves[0][0]}
    return joined, 1 + max(times for _, times in halves)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the processor or on a device.

    Args:
        error: The error.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAID)
