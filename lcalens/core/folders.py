"""What a folder holds in place of what was to be read from it, and what to do about it."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from lcalens.core.cells import is_run_folder
from lcalens.core.near import nearest

_MOST = 1_000  # files of a folder that are looked at


class Holding(NamedTuple):
    """A kind of folder.

    Attributes:
        head: The file that every such folder has.
        what: What it holds, in words.
        read: How it is read.
    """

    head: str
    what: str
    read: str


RESULT = Holding("result.json", "a result", "lcalens.Result.load")
DEFENCE = Holding("defence.json", "a defence", "lcalens.Defence.load")
MODEL = Holding("config.json", "a model", "lcalens.load_model")
_KINDS = (RESULT, DEFENCE, MODEL)


def lacking(folder: Path, wanted: Holding) -> str | None:
    """Why nothing of a kind can be read from a folder, and the fix; None where its head file is there.

    Args:
        folder: What was given.
        wanted: What is to be read from it.

    Raises:
        OSError: It cannot be looked into.
    """
    if (folder / wanted.head).exists():
        return None
    if not folder.exists():
        near = near_path(folder)
        fix = f"did you mean {near!r:.120}?" if near else f"give one that holds {wanted.what}."
        return f"there is no folder {str(folder)!r:.200}; {fix}"
    shown = f"{str(folder)!r:.200}"
    if not folder.is_dir():
        return f"{shown} is a file; give the folder that it is in."
    inside = [str(place) for place in _beneath(folder) if (place / wanted.head).is_file()]
    if inside:
        more = f" ({len(inside)} of its folders do)" if len(inside) > 1 else ""
        return f"{shown} holds no {_bare(wanted)} itself, but {inside[-1]!r:.200} does{more}; give that."
    for other in _KINDS:
        if (folder / other.head).is_file():
            return f"{shown} holds {other.what} and not {wanted.what}; read it with {other.read}."
    if is_run_folder(folder):
        return (
            f"{shown} holds no {_bare(wanted)} but finished parts of a study, which out= names; the same call reads "
            "them, and `lcalens runs list` says what they are."
        )
    if not any(folder.iterdir()):
        return f"{shown} is empty; give a folder that holds {wanted.what}."
    return f"{shown} holds no {_bare(wanted)} ({wanted.head} is missing); give a folder that {_writer(wanted)} wrote."


def near_path(path: Path) -> str | None:
    """A file or folder beside a path that is not there, whose name is near.

    Args:
        path: What was given.
    """
    try:
        names = [child.name for child in islice(path.parent.iterdir(), _MOST)]
    except OSError:
        return None
    near = nearest(path.name, names)
    return None if near is None else str(path.with_name(near))


def _beneath(folder: Path) -> Iterator[Path]:
    """The folders in a folder, the oldest first: of several checkpoints the last is the one that is meant."""
    children = [child for child in islice(folder.iterdir(), _MOST) if child.is_dir()]
    yield from sorted(children, key=lambda child: (child.stat().st_mtime, child.name))


def _bare(kind: Holding) -> str:
    return kind.what.partition(" ")[2]


def _writer(kind: Holding) -> str:
    return "save_pretrained" if kind is MODEL else "save()"
