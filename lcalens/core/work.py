"""The cells of a study: those that are finished are read, the others are computed, here or elsewhere, and kept."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from itertools import islice
from typing import Any, NamedTuple

from lcalens.core.cells import CellStore
from lcalens.core.workers import Arrays, Code, Work, compute_elsewhere

_SENT = 256  # jobs that are held at once where other processes compute them


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
    store: CellStore, pieces: Iterable[Piece], work: Work, model: Any, *, code: Code, n_jobs: int
) -> AbstractContextManager[Iterator[Done]]:
    """Every cell, as it is found or made, within a `with`, at whose end no process is at work; of several, in no order.

    Args:
        store: Where they are kept.
        pieces: The cells.
        work: From the model and a job to a cell's arrays, and how often its batch was halved.
        model: A TransformerBridge.
        code: The functions that decide the cells' values.
        n_jobs: How many processes compute, as `check_jobs` gives it.

    Raises:
        LcalensError: A cell cannot be kept, or a worker was lost; or what `work` raises.
    """
    here = n_jobs == 1
    return closing(
        _here(store, pieces, work, model) if here else _shared(store, iter(pieces), work, model, code, n_jobs)
    )


def _here(store: CellStore, pieces: Iterable[Piece], work: Work, model: Any) -> Generator[Done, None, None]:
    for key, job in pieces:
        cell, halved = store.get(key), 0
        if cell is None:
            cell, halved = work(model, job)
            store.put(key, cell)
        yield Done(job, cell, halved)


def _shared(
    store: CellStore, pieces: Iterator[Piece], work: Work, model: Any, code: Code, n_jobs: int
) -> Generator[Done, None, None]:
    """Some hundred cells at a time, so that memory does not grow with the study."""
    while some := list(islice(pieces, _SENT)):
        missing = []
        for piece in some:
            cell = store.get(piece.key)
            if cell is None:
                missing.append(piece)
            else:
                yield Done(piece.job, cell, 0)
        if missing:
            with closing(compute_elsewhere(store, missing, work, model, code, n_jobs)) as found:
                for number, cell, halved in found:
                    yield Done(missing[number].job, cell, halved)
