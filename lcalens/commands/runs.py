"""`lcalens runs`: which studies a folder holds, how far they are, how two differ; go on with them, and clean up."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from lcalens.commands.shared import first_line, typed
from lcalens.core.errors import LcalensError
from lcalens.core.studies import Kept, find_studies, one_study

if TYPE_CHECKING:
    from lcalens.core.comparison import Numbers

_KEEPING = ("hijack", "trace", "recall", "defend", "report")


@dataclass(frozen=True, kw_only=True)
class _Action:
    """What the actions share.

    Attributes:
        json: Print JSON, for scripts.
    """

    json: bool = False


@dataclass(frozen=True, kw_only=True)
class List(_Action):
    """The studies in a folder and below it: what they measure, and how far they are.

    Attributes:
        folder: What `--out` or `out=` named, or a folder above.
    """

    folder: tyro.conf.Positional[Path]

    def run(self, arguments: Sequence[str]) -> None:
        """Print them.

        Args:
            arguments: The command line.
        """
        kept, problems = find_studies(self.folder)
        if self.json:
            _print_json({"studies": [_record(one) for one in kept], "problems": [str(error) for error in problems]})
            return
        from lcalens.views.runs_text import studies_screen

        print(studies_screen(kept, self.folder))
        for error in problems:
            print(f"lcalens: {error}", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class Show(_Action):
    """One study, whole: its command, settings, model, data, versions and cells.

    Attributes:
        folder: A folder with one study, or a study's manifest (`FOLDER/studies/*.json`).
    """

    folder: tyro.conf.Positional[Path]

    def run(self, arguments: Sequence[str]) -> None:
        """Print it.

        Args:
            arguments: The command line.
        """
        kept = one_study(self.folder)
        if self.json:
            _print_json(_record(kept) | {"manifest": asdict(kept.study)})
            return
        from lcalens.views.runs_text import study_screen

        print(study_screen(kept, _command_of(kept)))


@dataclass(frozen=True, kw_only=True)
class Compare(_Action):
    """In which settings, versions, model and data two studies differ, and how far their results' numbers are apart.

    Attributes:
        left: A folder with one study, or a study's manifest.
        right: Another.
    """

    left: tyro.conf.Positional[Path]
    right: tyro.conf.Positional[Path]

    def run(self, arguments: Sequence[str]) -> None:
        """Print it.

        Args:
            arguments: The command line.
        """
        kept = one_study(self.left), one_study(self.right)

        from lcalens.core.comparison import differences

        differing = differences(kept[0].study, kept[1].study)
        numbers, why = _numbers(*kept)
        if self.json:
            told = {"differences": [asdict(one) for one in differing], "numbers": [asdict(one) for one in numbers]}
            _print_json(told | {"not_compared": why})
            return
        from lcalens.views.runs_text import comparison_screen

        print(comparison_screen(differing, numbers, why))


@dataclass(frozen=True, kw_only=True)
class Resume(_Action):
    """Go on with what is unfinished: run the command lines again that a folder's studies were begun with.

    Attributes:
        folder: What `--out` named, or a folder above; or a study's manifest, whose command is run in any case.
        json: Print the commands as JSON, and run none.
    """

    folder: tyro.conf.Positional[Path]

    def run(self, arguments: Sequence[str]) -> None:
        """Run them, one after the other.

        Args:
            arguments: The command line.

        Raises:
            LcalensError: There is nothing to go on with, or only studies that Python called.
            SystemExit: A command did not end well; the status is its own.
        """
        commands = _commands(self.folder)
        if self.json:
            _print_json([{"command": words, "directory": str(directory)} for words, directory in commands])
            return
        for words, directory in commands:
            print(f"In {directory}: {typed(words)}", file=sys.stderr)
            status = subprocess.run([sys.executable, "-m", "lcalens", *words], cwd=directory, check=False).returncode
            if status:
                raise SystemExit(status if status > 0 else 128 - status)


@dataclass(frozen=True, kw_only=True)
class Clean(_Action):
    """Say what of run folders can go: half-written files, cells that no study lists, finished studies' cells.

    Attributes:
        folder: What `--out` or `out=` named, or a folder above.
        yes: Remove it. Results, pages and figures stay, and so does what an unfinished study needs.
    """

    folder: tyro.conf.Positional[Path]
    yes: bool = False

    def run(self, arguments: Sequence[str]) -> None:
        """Say it, or do it.

        Args:
            arguments: The command line.
        """
        from lcalens.core.cleaning import clean, plan_cleaning
        from lcalens.core.comparison import saved_result

        plan = plan_cleaning(self.folder)
        unsaved = [kept for kept in plan.finished if saved_result(kept) is None]
        if self.yes:
            clean(plan)
        if self.json:
            _print_json(
                {
                    "removed": self.yes,
                    "files": [asdict(item) for item in plan.waste],
                    "without_saved_result": [kept.study.name for kept in unsaved],
                    "problems": [str(error) for error in plan.problems],
                }
            )
            return
        from lcalens.views.runs_text import cleaning_screen

        print(cleaning_screen(plan, unsaved, self.yes))


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Run folders: list their studies, show or compare them, resume what is unfinished, clean up.

    Attributes:
        action: What to do.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "lcalens runs list out",
        "lcalens runs show out/hijack",
        "lcalens runs compare out/smollm2 out/gemma",
        "lcalens runs resume out/hijack",
        "lcalens runs clean out --yes",
    )
    keeps_parts: ClassVar[bool] = False
    out: ClassVar[Path | None] = None

    action: (
        Annotated[List, tyro.conf.subcommand("list", description=first_line(List))]
        | Annotated[Show, tyro.conf.subcommand("show", description=first_line(Show))]
        | Annotated[Compare, tyro.conf.subcommand("compare", description=first_line(Compare))]
        | Annotated[Resume, tyro.conf.subcommand("resume", description=first_line(Resume))]
        | Annotated[Clean, tyro.conf.subcommand("clean", description=first_line(Clean))]
    )

    def run(self, arguments: Sequence[str]) -> None:
        """Do it.

        Args:
            arguments: The command line.
        """
        self.action.run(arguments)


def _commands(place: Path) -> list[tuple[list[str], Path]]:
    """The command lines to run again, each once, with the folder that each was typed in.

    Raises:
        LcalensError: There is none.
    """
    if place.is_file():
        wanted, kept = [one_study(place)], [one_study(place)]
    else:
        kept, problems = find_studies(place)
        if problems:
            raise problems[0]
        wanted = [one for one in kept if one.state == "unfinished"]
    if not kept:
        raise LcalensError(f"folder: {str(place)!r:.200} holds no study; give one that `out` or --out named.")
    if not wanted:
        raise LcalensError(
            f"folder: every study in {str(place)!r:.200} has come to its end; name one by its manifest "
            f"({kept[-1].file}) to run its command again."
        )
    for one in wanted:
        if one.study.command is None:
            raise LcalensError(
                f"folder: {one.study.verb} in {str(one.folder)!r:.200} was called from Python, and no manifest holds a "
                "program; run the program again, it computes only what is missing."
            )
    found = [_again(one) for one in wanted]
    return [one for at, one in enumerate(found) if one not in found[:at]]


def _again(kept: Kept) -> tuple[list[str], Path]:
    """A study's command line with `--out` where the folder is now, and where it was typed.

    Raises:
        LcalensError: It is no command that keeps parts, or the folder in which it was typed is not there.
    """
    command = kept.study.command
    assert command is not None
    words, directory = list(command.words), Path(command.directory)
    if not words or words[0] not in _KEEPING:
        raise LcalensError(f"folder: the command of {str(kept.file)!r:.200} is none that keeps parts; type it again.")
    words = _with_out(words, directory, (kept.folder.absolute() / command.out).resolve())
    if not directory.is_dir():
        raise LcalensError(
            f"folder: {str(directory)!r:.200}, in which the command was typed, is not there; type it where its files "
            f"are: {typed(words)}"
        )
    return words, directory


def _with_out(words: list[str], directory: Path, out: Path) -> list[str]:
    """The words with `--out` where the folder is now; as they were typed, where it is still there."""
    at = next((at for at, word in enumerate(words) if word.partition("=")[0] == "--out"), len(words))
    end = at + (1 if "=" in "".join(words[at : at + 1]) else 2)
    named = words[at].partition("=")[2] or "".join(words[at + 1 : end]) if at < len(words) else ""
    if named and (directory / Path(named).expanduser()).resolve() == out:
        return words
    return [*words[:at], "--out", str(out), *words[end:]]


def _command_of(kept: Kept) -> str | None:
    return typed(kept.study.command.words) if kept.study.command else None


def _numbers(left: Kept, right: Kept) -> "tuple[list[Numbers], str]":
    """How far the numbers of two studies' saved results are apart; or why that cannot be told."""
    from lcalens.core.comparison import compare_numbers, saved_result
    from lcalens.core.results import Result

    folders = [saved_result(kept) for kept in (left, right)]
    for kept, folder in zip((left, right), folders, strict=True):
        if folder is None:
            return [], f"no result of {kept.study.name[:8]} is saved beside it."
    try:
        return compare_numbers(*(Result.load(folder) for folder in folders if folder is not None)), ""
    except LcalensError as error:
        return [], str(error)


def _record(kept: Kept) -> dict[str, Any]:
    """A study as `list --json` has it."""
    study = kept.study
    return {
        "study": study.name,
        "folder": str(kept.folder),
        "verb": study.verb,
        "model": study.model.get("source"),
        "data": study.data,
        "state": kept.state,
        "finished": len(kept.present),
        "total": study.total,
        "begun": study.begun,
        "worked": kept.worked.isoformat(timespec="seconds"),
        "command": _command_of(kept),
    }


def _print_json(content: Any) -> None:
    print(json.dumps(_strict(content), indent=1, default=str, allow_nan=False))


def _strict(content: Any) -> Any:
    """NaN and infinities as null: JSON has none."""
    if isinstance(content, dict):
        return {name: _strict(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_strict(value) for value in content]
    return None if isinstance(content, float) and content - content != 0 else content
