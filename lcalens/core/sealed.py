"""Folders that are written whole and sealed: what is read is what was written, to the bit, or it is refused.

`seal.json` in such a folder holds the SHA-256 digest of every other file. A damaged byte, a file of another folder or a
half-written one is found when the folder is read.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lcalens.core.errors import LcalensError

SEAL = "seal.json"
_FORMAT = 1


class Unsealed(ValueError):
    """A folder's files are not those that were sealed together."""


def folder_path(folder: str | os.PathLike[str]) -> Path:
    """A folder's path as a user gives it; `~` is the home folder.

    Args:
        folder: The path.

    Raises:
        LcalensError: It is no path.
    """
    if not isinstance(folder, str | os.PathLike):
        raise LcalensError(f"folder: expected a folder's path, got {folder!r:.60} ({type(folder).__name__}).")
    path = os.fsdecode(folder)
    if not path or "\0" in path:
        raise LcalensError(f"folder: {path!r:.60} is no folder's name; give another.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise LcalensError(f"folder: {path!r:.60} cannot be found ({error}); give another.") from error


@contextmanager
def sealed_folder(folder: Path, what: str) -> Iterator[Path]:
    """A new folder to write files into; sealed at the end, it takes the place of `folder`, whole or not at all.

    Args:
        folder: Made where it is missing; an earlier sealed folder is replaced.
        what: What it holds, in words, such as `a result`.

    Yields:
        The folder to write into.

    Raises:
        LcalensError: The folder holds something else, or cannot be written.
    """
    try:
        if folder.exists() and not _is_replaceable(folder):
            raise LcalensError(f"folder: {str(folder)!r} holds something else than {what}; name a new folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}."[:40], dir=folder.parent))
        try:
            new = temporary / "new"
            new.mkdir()
            yield new
            (new / SEAL).write_text(_sealed(new), encoding="utf-8")
            _swap(new, folder, temporary / "old")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise LcalensError(
            f"folder: {str(folder)!r} cannot be written ({error.strerror or error}); free some space, or give another."
        ) from error


def read_sealed(folder: Path) -> dict[str, bytes]:
    """Every file of a sealed folder, as it was written.

    Args:
        folder: The folder.

    Raises:
        OSError: It, or a file of it, is missing or cannot be read.
        Unsealed: The files are not those that were sealed together.
    """
    seal = _read(folder / SEAL)
    try:
        digests = json.loads(seal)
        listed = {str(name): str(digest) for name, digest in digests["files"].items()}
        if digests["format"] != _FORMAT or _seal_of(listed) != seal.decode():
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unsealed(f"{SEAL} is not as it was written") from error
    found = {}
    for name, digest in listed.items():
        if Path(name).name != name:
            raise Unsealed(f"{SEAL} names {name!r:.60}, which is not in the folder")
        found[name] = _read(folder / name)
        if hashlib.sha256(found[name]).hexdigest() != digest:
            raise Unsealed(f"{name} is not the file that was written")
    return found


def _read(file: Path) -> bytes:
    # A pipe would never end.
    if file.exists() and not file.is_file():
        raise Unsealed(f"{file.name} is not a regular file")
    return file.read_bytes()


def _sealed(folder: Path) -> str:
    return _seal_of({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())})


def _seal_of(digests: dict[str, str]) -> str:
    return json.dumps({"format": _FORMAT, "files": dict(sorted(digests.items()))}, indent=1) + "\n"


def _is_replaceable(folder: Path) -> bool:
    """Whether there is nothing in the folder but what was sealed there, or nothing at all."""
    if not folder.is_dir():
        return False
    present = {item.name for item in folder.iterdir()}
    try:
        sealed = set(json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]) if present else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return present <= {SEAL, *sealed}


def _swap(new: Path, target: Path, old: Path) -> None:
    """Put `new` in the place of `target`, which comes back if that fails."""
    if not target.exists():
        new.rename(target)
        return
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
