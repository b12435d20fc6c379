"""Run folders: every cell of a study is kept as it is finished, so that a second run does only what is missing.

A cell is a key and the arrays that a pure function made for it; the key holds everything that they depend on. Cells are
written whole or not at all, may be written by several processes at once, and one that is damaged, or another's that
was put in its place, counts as missing.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import lcalens
from lcalens.core.errors import LcalensError
from lcalens.core.files import abandoned, write_whole
from lcalens.core.places import Place, place_of, reaching
from lcalens.core.sources import sources
from lcalens.core.studies import CELLS, cell_file


def content_key(content: Any) -> str:
    """A key that changes with anything in `content`, which JSON can write."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def cell_key(code: Callable[..., Any] | type | Sequence[Callable[..., Any] | type], content: Any) -> str:
    """A cell's key: what it is of, the code that computes it, and the version of lcalens.

    What it is of must hold everything else that the values depend on: the model's `stamp`, facts, settings. A number
    that is measured on the way, such as a trial's error, must not be among it: no two machines agree on it.

    Args:
        code: The functions and classes that compute the cell; all that they reach counts, see `sources`.
        content: What JSON can write.
    """
    roots = code if isinstance(code, Sequence) else [code]
    return content_key([lcalens.__version__, sources(*roots), content])


def _checksum(key: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Of the key too: a cell under another's name is no cell."""
    digest = hashlib.sha256(key.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def is_run_folder(folder: Place) -> bool:
    """Whether a run folder has been begun here; not where its store cannot be reached from this process.

    Args:
        folder: Its path.
    """
    try:
        with reaching(folder):
            return (folder / CELLS).is_dir()
    except OSError:
        return False


def _kept_checksum(content: bytes) -> str:
    """What a cell's file says of itself: safetensors begins with its header's length, and the header is JSON."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]["sha256"]


class CellStore:
    """Finished cells in a folder; with no folder, nothing is kept.

    Args:
        folder: The run's folder, made where it is missing, or its address (see `places`); None keeps nothing.

    Attributes:
        folder: The run's folder; None where nothing is kept.
        loaded: How many cells were found finished.
        computed: How many were added.

    Raises:
        LcalensError: The folder cannot be made or written.
    """

    def __init__(self, folder: Place | str | os.PathLike[str] | None):
        self.loaded, self.computed = 0, 0
        self.folder: Place | None = None
        if folder is not None:
            try:
                self.folder = place = place_of("out", folder)
                with reaching(place):
                    (place / CELLS).mkdir(parents=True, exist_ok=True)
                    for unfinished in abandoned(place / CELLS):
                        unfinished.unlink(missing_ok=True)
            except LcalensError:
                raise
            except (OSError, ValueError, RuntimeError, ImportError) as error:
                reason = getattr(error, "strerror", None) or error
                raise LcalensError(
                    f"out: {str(folder)!r} cannot be written ({reason}); give another folder."
                ) from error

    def __contains__(self, key: str) -> bool:
        """Whether the folder has such a cell, damaged or not."""
        if self.folder is None:
            return False
        try:
            with reaching(self.folder):
                return cell_file(self.folder, key).exists()
        except OSError:
            return False

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """The cell's arrays, or None where it is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        if self.folder is None:
            return None
        try:
            with reaching(self.folder):
                content = cell_file(self.folder, key).read_bytes()
            arrays, kept = load(content), _kept_checksum(content)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        if kept != _checksum(key, arrays):
            return None
        self.loaded += 1
        return arrays

    def forget(self, key: str) -> None:
        """Remove a cell that nobody needs any more."""
        if self.folder is not None:
            with reaching(self.folder):
                cell_file(self.folder, key).unlink(missing_ok=True)

    def put(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep a finished cell.

        Raises:
            LcalensError: It cannot be written (a full disk, say); nothing half-written stays.
        """
        from safetensors.numpy import save

        self.computed += 1
        if self.folder is None:
            return
        # safetensors writes an array's memory as it lies, a view of every second number included.
        whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        try:
            write_whole(cell_file(self.folder, key), save(whole, metadata={"sha256": _checksum(key, whole)}))
        except OSError as error:
            raise LcalensError(
                f"out: a finished part cannot be written ({error.strerror or error}); free some space, or give "
                "another folder."
            ) from error
