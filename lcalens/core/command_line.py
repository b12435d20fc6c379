"""Which command line is being run, for whoever writes down how a study began."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

_now: ContextVar["CommandLine | None"] = ContextVar("command_line", default=None)


@dataclass(frozen=True)
class CommandLine:
    """What was typed.

    Attributes:
        words: All but the program's name.
        directory: Where it was typed; relative paths among the words begin there.
        out: What `--out` names; None where nothing is kept.
    """

    words: tuple[str, ...]
    directory: Path
    out: Path | None


@contextmanager
def running(words: Sequence[str], out: Path | None) -> Iterator[None]:
    """Say which command line runs, for what is called within.

    Args:
        words: All but the program's name.
        out: What `--out` names.
    """
    token = _now.set(CommandLine(tuple(words), Path(os.getcwd()), out))
    try:
        yield
    finally:
        _now.reset(token)


def command_line() -> CommandLine | None:
    """The command line that runs; None under Python alone."""
    return _now.get()
