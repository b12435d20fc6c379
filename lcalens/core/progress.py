"""Progress goes through one callback: a bar by default, silence, or the caller's own."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeAlias

from lcalens.core.errors import LcalensError

ProgressCallback: TypeAlias = Callable[[int, int, str], None]
"""Called with the units done, the units in all and what is being done."""


@contextlib.contextmanager
def progress_callback(progress: bool | ProgressCallback, *, unit: str) -> Iterator[ProgressCallback]:
    """The callback that long work reports to: a tqdm bar for True, nothing for False, else `progress` itself.

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
        from tqdm.auto import tqdm

        bar = tqdm(unit=f" {unit}", dynamic_ncols=True, leave=False)

        def show(done: int, total: int, what: str) -> None:
            bar.total = total
            bar.set_description(what, refresh=False)
            bar.update(done - bar.n)

        with bar:
            yield show
    else:
        raise LcalensError(
            f"progress: expected True, False or a function of (done, total, what), got {progress!r:.60}."
        )
