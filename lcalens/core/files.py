"""Files that are written whole or not at all, and what a killed writer leaves."""

import os
import time
from uuid import uuid4

from lcalens.core.places import Place, is_elsewhere, reaching

PART = ".part"
"""How the name of a half-written file ends."""
ABANDONED_SECONDS = 3600
"""A half-written file that is older is of a run that was killed."""


def write_whole(file: Place, content: bytes) -> None:
    """Write a file, whole or not at all: whoever reads it sees what was there before, or all of this.

    Args:
        file: In a folder that is there.
        content: What it will hold.

    Raises:
        OSError: It cannot be written; nothing half-written stays.
    """
    if is_elsewhere(file):  # an object is there whole or not at all
        with reaching(file):
            file.write_bytes(content)
        return
    for last in (False, True):
        unfinished = file.with_name(f"{file.stem}.{uuid4().hex}{PART}")
        try:
            with unfinished.open("wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            unfinished.replace(file)
            return
        except FileNotFoundError:  # a run whose clock is hours ahead took it for abandoned
            if last or not file.parent.is_dir():
                raise
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise


def abandoned(folder: Place) -> list[Place]:
    """Half-written files of runs that were killed; a living run's are young.

    Args:
        folder: With files of `write_whole`.

    Raises:
        OSError: It cannot be read.
    """
    if is_elsewhere(folder):
        return []
    found, now = [], time.time()
    for file in sorted(folder.glob(f"*{PART}")):
        try:
            age = now - file.lstat().st_mtime
        except FileNotFoundError:  # a living run has just finished it
            continue
        if age > ABANDONED_SECONDS:
            found.append(file)
    return found
