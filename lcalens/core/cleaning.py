"""What of run folders nobody needs any more: half-written files, cells that no study lists, finished studies' cells."""

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lcalens.core.errors import LcalensError
from lcalens.core.files import abandoned, write_whole
from lcalens.core.studies import CELLS, STUDIES, Kept, find_folders, now, studies_in, written

Why = Literal["half-written", "that no study lists", "of finished studies"]
_CELL = re.compile(r"[0-9a-f]{32}\.safetensors")


@dataclass(frozen=True)
class Waste:
    """A file that can go.

    Attributes:
        file: Which.
        why: Why.
        size: In bytes.
    """

    file: Path
    why: Why
    size: int


@dataclass(frozen=True)
class Cleaning:
    """What can go of the run folders in a folder.

    Attributes:
        waste: The files.
        finished: The finished studies whose cells are among them.
        problems: What is wrong with manifests that cannot be read; cells beside them stay.
    """

    waste: tuple[Waste, ...]
    finished: tuple[Kept, ...]
    problems: tuple[LcalensError, ...]


def plan_cleaning(folder: Path) -> Cleaning:
    """See what can go; nothing is removed. Links are not followed, and only files of run folders are named.

    A cell that an unfinished study lists stays, whoever else lists it. Where a manifest cannot be read it may list any
    cell, so that all stay. A folder without a manifest is no run folder.

    Args:
        folder: A run folder, or one above.

    Raises:
        LcalensError: There is no such folder.
    """
    waste: list[Waste] = []
    finished: list[Kept] = []
    problems: list[LcalensError] = []
    for place in find_folders(folder):
        # Cells first: a study lists a cell before it writes it, so that what is seen here is listed when we look there.
        cells = [file for file in _files(place / CELLS) if _CELL.fullmatch(file.name)]
        kept, wrong = studies_in(place)
        problems += wrong
        waste += [_waste(file, "half-written") for part in (CELLS, STUDIES) for file in _half_written(place / part)]
        if wrong or not kept:
            continue
        done = [one for one in kept if one.state == "finished"]
        listed, needed = _keys(kept), _keys([one for one in kept if one.state == "unfinished"])
        waste += [_waste(file, "that no study lists") for file in cells if file.stem not in listed]
        waste += [_waste(file, "of finished studies") for file in cells if file.stem in listed - needed]
        finished += [one for one in done if one.present - needed]
    return Cleaning(tuple(waste), tuple(finished), tuple(problems))


def clean(plan: Cleaning) -> None:
    """Remove what was planned; a finished study's manifest stays, and says that its cells were removed.

    Args:
        plan: What `plan_cleaning` saw.

    Raises:
        LcalensError: Something cannot be removed.
    """
    try:
        for kept in plan.finished:  # before its cells go: stopped here or later, it is seen to have ended
            write_whole(kept.file, written(replace(kept.study, cleaned=now())))
        for item in plan.waste:
            item.file.unlink(missing_ok=True)
    except OSError as error:
        raise LcalensError(
            f"folder: {str(error.filename or '')!r:.200} cannot be removed ({error.strerror or error}); give yourself "
            "the right to write there."
        ) from error


def _keys(kept: list[Kept]) -> set[str]:
    return {key for one in kept for key in (*one.study.cells, *one.study.states)}


def _half_written(folder: Path) -> list[Path]:
    return [file for file in abandoned(folder) if _is_file(file)] if not folder.is_symlink() else []


def _files(folder: Path) -> Iterator[Path]:
    if not folder.is_symlink():
        yield from (file for file in sorted(folder.glob("*")) if _is_file(file))


def _is_file(file: Path) -> bool:
    """Whether it is a file itself: no link, no folder, no pipe."""
    try:
        return stat.S_ISREG(file.lstat().st_mode)
    except OSError:
        return False


def _waste(file: Path, why: Why) -> Waste:
    try:
        return Waste(file, why, file.lstat().st_size)
    except OSError:  # removed meanwhile
        return Waste(file, why, 0)
