"""Where a run folder stands: on this machine's disks, or wherever fsspec reaches (`s3://`, `gs://`, `memory://`)."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lcalens.core.errors import LcalensError

if TYPE_CHECKING:
    Place: TypeAlias = Path
else:
    Place = Any  # or a `UPath` of universal-pathlib, which behaves as a `Path`

_ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def place_of(argument: str, folder: Any) -> Place:
    """A folder by its path, or by its address.

    Args:
        argument: What to call it in errors.
        folder: A path, an address such as `s3://bucket/study`, or a `UPath`.

    Raises:
        LcalensError: Neither, or an address whose library is not installed.
        ValueError: An address of a kind that fsspec does not know.
    """
    if hasattr(folder, "protocol") and hasattr(folder, "storage_options"):
        return folder
    if not isinstance(folder, str | os.PathLike):
        raise LcalensError(
            f"{argument}: expected a folder's path, got {folder!r:.60} ({type(folder).__name__}); leave it out to keep "
            "nothing."
        )
    if not isinstance(folder, str) or not _ADDRESS.match(folder):
        return Path(str(folder).removeprefix("file://") if isinstance(folder, str) else folder).expanduser()
    try:
        from upath import UPath
    except ImportError as error:
        raise LcalensError(
            f'{argument}: {folder!r:.200} is an address, and needs `pip install "lcalens[fsspec]"`; or give a path.'
        ) from error
    return UPath(folder)  # pyright: ignore[reportReturnType]


def is_elsewhere(place: Place) -> bool:
    """Whether a place is none of this machine's file system.

    Args:
        place: Of `place_of`.
    """
    return not isinstance(place, Path)


@contextmanager
def reaching(place: Place) -> Iterator[None]:
    """What goes wrong on the way to a store, as an `OSError`: each store's library has errors of its own.

    Args:
        place: Where something is read or written; on this machine's file system errors stay as they are.

    Raises:
        OSError: The store cannot be reached, lets nobody in, or refuses.
    """
    try:
        yield
    except (OSError, LcalensError):
        raise
    except Exception as error:
        if not is_elsewhere(place):
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error
