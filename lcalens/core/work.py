"""The cells of a study, one after the other: those that are finished are read, the others are computed and kept."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from lcalens.core.cells import CellStore

Arrays = Mapping[str, np.ndarray]


class Piece(NamedTuple):
    """One cell's work.

    Attributes:
        key: The cell's; empty where nothing is kept.
        job: What is to be computed.
    """

    key: str
    job: Any


class Done(NamedTuple):
    """One cell, finished.

    Attributes:
        job: What was to be computed.
        cell: Its arrays.
        halved: How often the batch was halved for want of memory; 0 where it was found finished.
    """

    job: Any
    cell: Arrays
    halved: int


def finish(
    store: CellStore, pieces: Iterable[Piece], work: Callable[[Any, Any], tuple[Arrays, int]], model: Any
) -> Iterator[Done]:
    """Every cell, as it is found or made.

    Args:
        store: Where they are kept.
        pieces: The cells.
        work: From the model and a job to a cell's arrays, and how often its batch was halved.
        model: A TransformerBridge.

    Raises:
        LcalensError: A cell cannot be kept; or what `work` raises.
    """
    for key, job in pieces:
        cell, halved = store.get(key), 0
        if cell is None:
            cell, halved = work(model, job)
            store.put(key, cell)
        yield Done(job, cell, halved)
