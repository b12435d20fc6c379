"""The cells of a study: those that are finished are read, the others are computed, here or elsewhere, and kept."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from typing import Any, NamedTuple

from lcalens.core.cells import CellStore
from lcalens.core.workers import Arrays, Code, Piece, Work, compute_elsewhere

_FIRST, _AHEAD = 16, 256  # cells that wait for workers: before the first is sent, and while they compute


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
    store: CellStore,
    pieces: Iterable[Piece],
    work: Work,
    model: Any,
    *,
    code: Code,
    n_jobs: int,
    tokenizer: str = "",
) -> AbstractContextManager[Iterator[Done]]:
    """Every cell, as it is found or made, within a `with`, at whose end no process is at work; of several, in no order.

    Args:
        store: Where they are kept.
        pieces: The cells.
        work: From the model and a job to a cell's arrays, and how often its batch was halved.
        model: A TransformerBridge.
        code: The functions that decide the cells' values.
        n_jobs: How many processes compute, as `check_jobs` gives it.
        tokenizer: The stamp of the tokenizer that the work reads texts with, if it does.

    Raises:
        LcalensError: A cell cannot be kept, or a worker was lost; or what `work` raises.
    """
    if n_jobs == 1:
        return closing(_here(store, pieces, work, model))
    return closing(_shared(store, iter(pieces), work, model, code, n_jobs, tokenizer))


def _here(store: CellStore, pieces: Iterable[Piece], work: Work, model: Any) -> Generator[Done, None, None]:
    for key, job in pieces:
        cell, halved = store.get(key), 0
        if cell is None:
            cell, halved = work(model, job)
            store.put(key, cell)
        yield Done(job, cell, halved)


def _shared(
    store: CellStore, pieces: Iterator[Piece], work: Work, model: Any, code: Code, n_jobs: int, tokenizer: str
) -> Generator[Done, None, None]:
    """Cells are read ahead of the workers while these compute: none waits, and memory does not grow with the study."""
    waiting: deque[Piece] = deque()
    yield from _read_ahead(store, pieces, waiting, _FIRST)
    while waiting:  # workers that took every cell before the next was read end their call, and another begins
        with closing(compute_elsewhere(store, waiting, work, model, code, n_jobs, tokenizer)) as found:
            for piece, cell, halved in found:
                yield Done(piece.job, cell, halved)
                yield from _read_ahead(store, pieces, waiting, _AHEAD)


def _read_ahead(
    store: CellStore, pieces: Iterator[Piece], waiting: deque[Piece], count: int
) -> Generator[Done, None, None]:
    """Let so many unfinished cells wait for workers; the finished ones on the way there are found."""
    while len(waiting) < count and (piece := next(pieces, None)) is not None:
        cell = store.get(piece.key)
        if cell is None:
            waiting.append(piece)
        else:
            yield Done(piece.job, cell, 0)
