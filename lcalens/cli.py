"""The command line: `lcalens hijack`, `trace`, `ask`, `recall`, `report`, `defend`, each a dataclass of a module."""

import sys
import textwrap
from typing import Annotated, Any

import tyro

import lcalens
from lcalens.commands.ask import Ask
from lcalens.commands.defend import Defend
from lcalens.commands.hijack import Hijack
from lcalens.commands.recall import Recall
from lcalens.commands.report import Report
from lcalens.commands.trace import Trace
from lcalens.core.errors import LcalensError

_WIDTH = 110
_CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
_DESCRIPTION = "Measure context hijacking of language models. `lcalens --version` says which lcalens this is."


def main(arguments: list[str] | None = None) -> int:
    """Run a command; an error is told on standard error and is exit status 2, an interrupt is 130.

    Args:
        arguments: The command line; the process's own by default.
    """
    typed = sys.argv[1:] if arguments is None else arguments
    if typed[:1] == ["--version"]:
        print(f"lcalens {lcalens.__version__}")
        return 0
    Command = (
        Annotated[Hijack, tyro.conf.subcommand("hijack", description=_first_line(Hijack))]
        | Annotated[Trace, tyro.conf.subcommand("trace", description=_first_line(Trace))]
        | Annotated[Ask, tyro.conf.subcommand("ask", description=_first_line(Ask))]
        | Annotated[Recall, tyro.conf.subcommand("recall", description=_first_line(Recall))]
        | Annotated[Report, tyro.conf.subcommand("report", description=_first_line(Report))]
        | Annotated[Defend, tyro.conf.subcommand("defend", description=_first_line(Defend))]
    )
    twice = _given_twice(typed)
    if twice:
        print(f"lcalens: {twice}: given twice, and only the last would count; give it once.", file=sys.stderr)
        return 2
    command = tyro.cli(Command, args=typed, prog="lcalens", description=_DESCRIPTION, config=_CONFIG)
    try:
        command.run(typed)
    except LcalensError as error:
        print(textwrap.fill(f"lcalens: {error}", _WIDTH), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nlcalens: stopped; {_kept(command)}.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        pass
    return 0


def _given_twice(typed: list[str]) -> str | None:
    """The first option that is there a second time: argparse would take the last in silence."""
    names = [word.partition("=")[0].replace("_", "-") for word in typed if word.startswith("--") and len(word) > 2]
    plain = [f"--{name.removeprefix('--').removeprefix('no-')}" for name in names]
    return next((name for i, name in enumerate(plain) if name in plain[:i]), None)


def _first_line(command: type) -> str:
    return (command.__doc__ or "").splitlines()[0]


def _kept(command: Any) -> str:
    """What of an interrupted command is still there."""
    if not command.keeps_parts:
        return "nothing is kept"
    if command.out is None:
        return "nothing is kept, as no folder was given with --out"
    return f"finished parts are kept in {command.out}, the same command goes on from there"


if __name__ == "__main__":
    sys.exit(main())
