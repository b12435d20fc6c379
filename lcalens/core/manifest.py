"""A study's manifest while it runs: written before the first cell, told of every cell beforehand, ended at the end."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lcalens.core.cells import CellStore
from lcalens.core.command_line import command_line
from lcalens.core.errors import LcalensError
from lcalens.core.files import abandoned, write_whole
from lcalens.core.places import Place, is_elsewhere, reaching
from lcalens.core.provenance import fingerprint, model_info
from lcalens.core.sources import sources
from lcalens.core.stamp import stamp
from lcalens.core.studies import Study, Typed, manifest_file, now, read_study, written
from lcalens.core.versions import versions

Code = Callable[..., Any] | type


class Manifest:
    """What a study writes of itself beside its cells; with no folder, nothing.

    Two runs of one study may write at once: a manifest takes in what it finds. One that is damaged is written anew.

    Args:
        store: Where the cells are kept.
        verb: What measures.
        code: The functions and classes that compute the cells.
        settings: What was asked for, under the names that results' provenance has. JSON must hold it, with paths and
            numbers of numpy written out.
        data: What it is measured on, by digests; called only where something is kept.
        model: A TransformerBridge; None where there is none.
    """

    def __init__(
        self,
        store: CellStore,
        verb: str,
        *,
        code: Sequence[Code],
        settings: Mapping[str, Any],
        data: Callable[[], Mapping[str, Any]] = dict,
        model: Any = None,
    ):
        self._folder, self._study = store.folder, None
        if self._folder is None:
            return
        self._study = Study(
            verb=verb,
            settings=_plain(settings),
            data=_plain(data()),
            model={} if model is None else _told_of(model),
            code=sources(*code),
            versions=versions(),
            begun=now(),
            worked=now(),
            command=_typed(self._folder),
        )

    def expect(self, keys: Sequence[str], *, total: int | None = None, states: Sequence[str] = ()) -> None:
        """Name cells before they are computed, so that none is ever there that nobody knows.

        Args:
            keys: Of cells, some or all.
            total: How many there are in all; as many as are known by default.
            states: Of what is kept meanwhile and forgotten at the end.

        Raises:
            LcalensError: The manifest cannot be written.
        """
        if self._study is None:
            return
        cells = _joined(self._study.cells, keys)
        self._write(
            replace(
                self._study,
                cells=cells,
                states=_joined(self._study.states, states),
                total=max(len(cells), total or 0),
                ended=None,
                cleaned=None,
            )
        )

    def end(self) -> None:
        """Say that every cell is there.

        Raises:
            LcalensError: The manifest cannot be written.
        """
        if self._study is not None:
            self._write(replace(self._study, total=len(self._study.cells), ended=now()))

    def _write(self, study: Study) -> None:
        """Take in what another run wrote of the same study, and write both whole."""
        assert self._folder is not None
        file = manifest_file(self._folder, study)
        try:
            with reaching(self._folder):
                study = self._written(file, study)
        except OSError as error:
            raise LcalensError(
                f"out: what the study is cannot be written to {str(file.parent)!r} ({error.strerror or error}); free "
                "some space, or give another folder."
            ) from error
        self._study = study

    def _written(self, file: Place, study: Study) -> Study:
        file.parent.mkdir(exist_ok=True)
        for unfinished in abandoned(file.parent):
            unfinished.unlink(missing_ok=True)
        study = replace(study, worked=now())
        before = _read(file)
        if before is not None:
            study = replace(
                study,
                begun=min(before.begun, study.begun),
                cells=_joined(before.cells, study.cells),
                states=_joined(before.states, study.states),
                command=study.command or before.command,
            )
            study = replace(study, total=max(study.total, len(study.cells)))
        write_whole(file, written(study))
        return study


def _read(file: Place) -> Study | None:
    """The manifest that is there; None where it is missing or damaged, and is to be written anew."""
    if not file.exists():
        return None
    try:
        return read_study(file)
    except LcalensError:
        return None


def _joined(some: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*some, *more]))


def _told_of(model: Any) -> dict[str, str]:
    device = str(next(model.original_model.parameters()).device)
    return model_info(model).to_dict() | {"fingerprint": fingerprint(model), "stamp": stamp(model), "device": device}


def _typed(folder: Place) -> Typed | None:
    line = command_line()
    if line is None or line.out is None or is_elsewhere(folder):
        return None
    out = os.path.relpath(line.directory / line.out.expanduser(), line.directory / folder)
    return Typed(words=line.words, directory=str(line.directory), out=Path(out).as_posix())


def _plain(content: Any) -> Any:
    """The same as JSON holds it: what is compared now is what is read later."""

    def written_out(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        if isinstance(value, Path):
            return value.name
        return str(value)

    return json.loads(json.dumps(content, default=written_out))
