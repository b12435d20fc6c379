"""Where workers come from: this machine's processes, or a cluster of Ray or Dask that is named by its address."""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lcalens.core.errors import LcalensError

_ADDRESS = re.compile(r"ray|(?P<kind>ray|dask)://(?P<place>[^\s/]+:\d+)")


def check_engine(engine: str | None) -> str | None:
    """An engine's address, seen to be one.

    Args:
        engine: `ray://HOST:PORT` (of a Ray client server), `ray` (the cluster that this machine is in),
            `dask://HOST:PORT` (of a scheduler), or None: this machine's processes.

    Raises:
        LcalensError: It is none of them.
    """
    if engine is not None and not _ADDRESS.fullmatch(engine):
        raise LcalensError(
            f"engine: {engine!r:.80} is not the address of a cluster; give ray://HOST:PORT, ray (the cluster that this "
            "machine is in) or dask://HOST:PORT."
        )
    return engine


@contextmanager
def workers_of(engine: str | None, jobs: int) -> Iterator[int]:
    """Take workers from a cluster, inside.

    Args:
        engine: Its address, see `check_engine`; None takes this machine's processes.
        jobs: How many workers; with a cluster 1 is all there are.

    Yields:
        What to give as `n_jobs`.

    Raises:
        LcalensError: No address, a library that is not installed, or a cluster that does not answer.
    """
    check_engine(engine)
    if engine is None:
        yield jobs
        return
    match = _ADDRESS.fullmatch(engine)
    assert match is not None
    with _dask(engine, match["place"]) if match["kind"] == "dask" else _ray(engine):
        yield -1 if jobs == 1 else jobs


@contextmanager
def _ray(engine: str) -> Iterator[None]:
    from joblib import parallel_config

    from lcalens.core.ray_workers import RayWorkers

    ray = _installed("ray", engine)
    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(address="auto" if engine == "ray" else engine, log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            raise _unreachable(engine, error) from error
    try:
        with parallel_config(backend=RayWorkers()):
            yield
    finally:
        if mine:
            ray.shutdown()


@contextmanager
def _dask(engine: str, place: str) -> Iterator[None]:
    from joblib import parallel_config

    distributed = _installed("distributed", engine)
    try:
        client = distributed.Client(place, timeout=20)
    except (OSError, ValueError) as error:
        raise _unreachable(engine, error) from error
    with client, parallel_config(backend="dask"):
        yield


def _installed(package: str, engine: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        extra = engine.partition(":")[0]
        raise LcalensError(f'engine: {engine!r} needs `pip install "lcalens[{extra}]"`.') from error


def _unreachable(engine: str, error: Exception) -> LcalensError:
    reason = str(error).partition("\n")[0]
    return LcalensError(f"engine: no cluster answers at {engine!r} ({type(error).__name__}: {reason:.200}).")
