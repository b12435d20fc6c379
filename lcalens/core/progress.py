"""Progress goes through one callback: a bar or sparse lines by default, silence, or the caller's own."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, TypeAlias

from lcalens.core.errors import LcalensError

ProgressCallback: TypeAlias = Callable[[int, int, str], None]
"""Called with the units done, the units in all and what is being done."""

_PAUSE = 0.2  # seconds between two lines of a notebook: each is a message to whoever looks on
_FIRST = 5.0  # seconds until a log hears of work: what is done sooner needs no line
_SPARSE = 30.0  # seconds between two lines of a log


@contextlib.contextmanager
def progress_callback(progress: bool | ProgressCallback, *, unit: str) -> Iterator[ProgressCallback]:
    """The callback that long work reports to: a bar for True, nothing for False, else `progress` itself.

    In a terminal the bar is tqdm's. In a notebook it is one line that is written over and empty at the end: a saved
    notebook keeps nothing of it, and no widgets are needed. Anywhere else, in a log, under nohup or in CI, it is
    a plain line on standard error after some seconds, one every half a minute, and one at the end.

    Args:
        progress: What the caller asked for.
        unit: What is counted, for the bar.

    Raises:
        LcalensError: `progress` is neither a bool nor callable.
    """
    if callable(progress):
        yield progress
    elif progress is False:
        yield lambda done, total, what: None
    elif progress is True:
        with (_line if _in_notebook() else _bar if _on_terminal() else _lines)(unit) as show:
            yield show
    else:
        raise LcalensError(
            f"progress: expected True, False or a function of (done, total, what), got {progress!r:.60}."
        )


def _in_notebook() -> bool:
    """Whether this runs in the kernel of a notebook."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def _on_terminal() -> bool:
    """Whether somebody looks at standard error, where a bar can be drawn over itself."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


@contextlib.contextmanager
def _line(unit: str) -> Iterator[ProgressCallback]:
    display = import_module("IPython.display").display  # a notebook has it, and lcalens does without
    began, last, handle = time.monotonic(), float("-inf"), None

    def show(done: int, total: int, what: str) -> None:
        nonlocal last, handle
        now = time.monotonic()
        if now - last < _PAUSE:
            return
        last = now
        text = {"text/plain": f"{what}: {done} of {total} {unit}, {now - began:.0f} s"}
        if handle is None:
            handle = display(text, raw=True, display_id=True)
        else:
            handle.update(text, raw=True)

    try:
        yield show
    finally:
        if handle is not None:
            handle.update({"text/plain": ""}, raw=True)


@contextlib.contextmanager
def _lines(unit: str) -> Iterator[ProgressCallback]:
    began, said_at, said, latest = time.monotonic(), None, "", ""

    def say(now: float) -> None:
        nonlocal said, said_at
        said, said_at = latest, now
        with contextlib.suppress(AttributeError, OSError, ValueError):  # no standard error, or a closed one
            sys.stderr.write(f"lcalens: {latest}, {now - began:.0f} s\n")
            sys.stderr.flush()

    def show(done: int, total: int, what: str) -> None:
        nonlocal latest
        now = time.monotonic()
        latest = f"{' '.join(what.split()):.60}: {done} of {total} {unit}"
        if now - began >= _FIRST if said_at is None else now - said_at >= _SPARSE:
            say(now)

    try:
        yield show
    finally:
        if said_at is not None and latest != said:
            say(time.monotonic())


@contextlib.contextmanager
def _bar(unit: str) -> Iterator[ProgressCallback]:
    from tqdm.std import tqdm

    bar = tqdm(unit=f" {unit}", dynamic_ncols=True, leave=False)

    def show(done: int, total: int, what: str) -> None:
        bar.total = total
        bar.set_description(what, refresh=False)
        bar.update(done - bar.n)

    with bar:
        yield show
