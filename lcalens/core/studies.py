"""Which studies a run folder holds: each has a manifest beside its cells, which says what it is and which are its own.

A manifest is `studies/{name}.json`, where the name is a digest of what the study is, so that several studies share a
folder and each keeps to its own file. It holds a SHA-256 digest of its content. What is finished is not written in it:
that is told by the cells that are there.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lcalens.core.errors import LcalensError
from lcalens.core.places import Place

STUDIES = "studies"
"""The folder of the manifests within a run's folder."""
CELLS = "cells"
"""The folder of the cells within a run's folder."""
_FORMAT = 1
_LARGEST = 1 << 26  # bytes; a million cells have half as many
_KEY = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Typed:
    """The command line that a study was begun with.

    Attributes:
        words: All but the program's name.
        directory: Where it was typed.
        out: What its `--out` named, seen from the run's folder.
    """

    words: tuple[str, ...]
    directory: str
    out: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study, as its manifest tells it.

    Attributes:
        verb: What measured: `efficacy`, `patch`, ...
        settings: What it was asked for.
        data: What it was measured on: facts or a contrast by their digests, or concepts.
        model: Where the model came from, its `fingerprint`, its `stamp` and the device; empty where none is given.
        code: A digest of the sources that compute its cells.
        versions: Of Python, lcalens and the libraries that numbers depend on.
        begun: When, in UTC.
        worked: When it was last worked on.
        ended: When the last of its runs came to its end; None while one runs, or after it was stopped.
        cleaned: When its cells were removed, as it had ended; None where they were not.
        total: How many cells it has in all.
        cells: The keys of those known so far; all of them once it has ended.
        states: Keys of what is kept meanwhile and forgotten at the end, such as a training's state.
        command: The command line; None where Python called it.
    """

    verb: str
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    code: str
    versions: Mapping[str, str]
    begun: str
    worked: str
    ended: str | None = None
    cleaned: str | None = None
    total: int = 0
    cells: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    command: Typed | None = None

    @property
    def name(self) -> str:
        """A digest of what it is: another model, setting, source or version is another study."""
        what = [self.verb, self.settings, self.data, self.model, self.code, self.versions]
        return hashlib.sha256(_text(what).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Kept:
    """A study in its run folder.

    Attributes:
        study: What its manifest says.
        folder: The run's folder.
        present: The keys of its cells that are there.
    """

    study: Study
    folder: Place
    present: frozenset[str]

    @property
    def file(self) -> Place:
        """Its manifest."""
        return manifest_file(self.folder, self.study)

    @property
    def worked(self) -> datetime:
        """When it was last worked on: its youngest cell's time, or what its manifest says."""
        times = [_time(self.study.worked)]
        for key in self.present:
            try:
                times.append(datetime.fromtimestamp(cell_file(self.folder, key).lstat().st_mtime, UTC))
            except OSError:  # removed meanwhile
                continue
        return max(times)

    @property
    def state(self) -> str:
        """`finished`; `cleaned`, finished and its cells removed; or `unfinished`."""
        if self.study.ended and len(self.present) == self.study.total:
            return "finished"
        return "cleaned" if self.study.cleaned else "unfinished"


def manifest_file(folder: Place, study: Study) -> Place:
    """Where a study's manifest is.

    Args:
        folder: The run's folder.
        study: Which.
    """
    return folder / STUDIES / f"{study.name}.json"


def cell_file(folder: Place, key: str) -> Place:
    """Where a cell is.

    Args:
        folder: The run's folder.
        key: The cell's.
    """
    return folder / CELLS / f"{key}.safetensors"


def written(study: Study) -> bytes:
    """A manifest's bytes.

    Args:
        study: What it says.
    """
    content = asdict(study)
    return (json.dumps({"format": _FORMAT, "sha256": _seal(content), "study": content}, indent=1) + "\n").encode()


def read_study(file: Place) -> Study:
    """What a manifest says.

    Args:
        file: The manifest.

    Raises:
        LcalensError: It cannot be read, is damaged, of another study than its name says, or of a later lcalens.
    """
    shown = f"{str(file)!r:.200}"
    try:
        if not file.is_file() or file.stat().st_size > _LARGEST:
            raise ValueError("it is no file of a manifest's size")
        content = json.loads(file.read_bytes())
        later = isinstance(content, dict) and isinstance(content.get("format"), int) and content["format"] > _FORMAT
        if not later:
            return _checked(content, file.stem)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LcalensError(
            f"folder: the manifest {shown} is damaged ({error!s:.120}); start its study again, which writes it anew, "
            "or remove the file. Its cells are not harmed."
        ) from error
    raise LcalensError(f"folder: the manifest {shown} was written by a later lcalens; upgrade to read it.")


def _checked(content: Any, name: str) -> Study:
    """The study of a file's content.

    Raises:
        ValueError: Something in it is not what was written there, or of the wrong type.
    """
    record = content["study"]
    if content["format"] != _FORMAT or content["sha256"] != _seal(record):
        raise ValueError("it is not as it was written")
    texts = ("verb", "code", "begun", "worked")
    keys = [*record["cells"], *record["states"]]
    sound = (
        set(record) == {field.name for field in fields(Study)}
        and all(isinstance(record[field], str) for field in texts)
        and all(isinstance(record[field], dict) for field in ("settings", "data", "model", "versions"))
        and all(record[field] is None or isinstance(record[field], str) for field in ("ended", "cleaned"))
        and isinstance(record["total"], int)
        and all(isinstance(key, str) and _KEY.fullmatch(key) for key in keys)
    )
    if not sound:
        raise ValueError("its fields are not a manifest's")
    for moment in ("begun", "worked"):
        _time(record[moment])
    typed = record["command"] and Typed(**record["command"] | {"words": tuple(record["command"]["words"])})
    if typed and not all(isinstance(word, str) for word in (*typed.words, typed.directory, typed.out)):
        raise ValueError("its command is none")
    study = Study(**record | {"cells": tuple(record["cells"]), "states": tuple(record["states"]), "command": typed})
    if study.name != name:
        raise ValueError("its name is that of another study")
    return study


def find_studies(folder: Place) -> tuple[list[Kept], list[LcalensError]]:
    """Every study in a folder and below it, in the order of their beginnings; links are not followed.

    Args:
        folder: Where to look.

    Returns:
        The studies, and what is wrong with manifests that cannot be read.

    Raises:
        LcalensError: There is no such folder.
    """
    kept, problems = [], []
    for place in find_folders(folder):
        found, wrong = studies_in(place)
        kept += found
        problems += wrong
    return sorted(kept, key=lambda one: (one.study.begun, str(one.file))), problems


def find_folders(folder: Place) -> Iterator[Place]:
    """Every run folder in a folder, itself and below; links are not followed.

    Args:
        folder: Where to look.

    Raises:
        LcalensError: There is no such folder.
    """
    if not folder.is_dir():
        raise LcalensError(f"folder: there is no folder {str(folder)!r:.200}; give one that `out` or --out named.")
    for place, below, _ in os.walk(folder):
        if STUDIES in below and not (Path(place) / STUDIES).is_symlink():
            yield Path(place)
        below[:] = sorted(name for name in below if name not in (STUDIES, CELLS))


def one_study(place: Place) -> Kept:
    """The study that a path means.

    Args:
        place: Its manifest, or a folder in which there is no other.

    Raises:
        LcalensError: There is none, or several, or its manifest cannot be read.
    """
    if place.is_file():
        study, folder = read_study(place), place.parent.parent
        return Kept(study, folder, present_cells(folder).intersection(study.cells))
    kept, problems = find_studies(place)
    if len(kept) == 1 and not problems:
        return kept[0]
    if problems and not kept:
        raise problems[0]
    if not kept:
        raise LcalensError(f"folder: {str(place)!r:.200} holds no study; give one that `out` or --out named.")
    named = ", ".join(f"{str(one.file)!r:.200}" for one in kept[:4]) + (", ..." if len(kept) > 4 else "")
    raise LcalensError(f"folder: {str(place)!r:.200} holds {len(kept)} studies; name one by its manifest: {named}.")


def studies_in(folder: Place) -> tuple[list[Kept], list[LcalensError]]:
    """The studies of one run folder, and what is wrong with manifests that cannot be read.

    Args:
        folder: The run's folder.
    """
    kept, problems, present = [], [], present_cells(folder)
    for file in sorted((folder / STUDIES).glob("*.json")):
        try:
            study = read_study(file)
        except LcalensError as error:
            problems.append(error)
        else:
            kept.append(Kept(study, folder, present.intersection(study.cells)))
    return kept, problems


def present_cells(folder: Place) -> frozenset[str]:
    """The keys of a run folder's finished cells.

    Args:
        folder: The run's folder.
    """
    return frozenset(file.stem for file in (folder / CELLS).glob("*.safetensors"))


def now() -> str:
    """The time in UTC, as manifests have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _text(content: Any) -> str:
    return json.dumps(content, sort_keys=True)


def _seal(content: Any) -> str:
    return hashlib.sha256(_text(content).encode()).hexdigest()
