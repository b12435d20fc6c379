"""The command line: `lcalens hijack`, `trace`, `ask`, ..., each a dataclass of a module in lcalens/commands."""

import sys
import textwrap
import warnings
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

import lcalens
from lcalens.commands.ask import Ask
from lcalens.commands.defend import Defend
from lcalens.commands.doctor import Doctor
from lcalens.commands.hijack import Hijack
from lcalens.commands.listed import Models, Schemes
from lcalens.commands.recall import Recall
from lcalens.commands.report import Report
from lcalens.commands.runs import Runs
from lcalens.commands.shared import first_line
from lcalens.commands.trace import Trace
from lcalens.core.command_line import running
from lcalens.core.errors import LcalensError
from lcalens.core.near import did_you_mean
from lcalens.core.verdicts import forced

_COMMANDS: dict[str, Any] = {
    "ask": Ask, "hijack": Hijack, "trace": Trace, "recall": Recall, "defend": Defend, "report": Report, "runs": Runs,
    "doctor": Doctor, "models": Models, "schemes": Schemes,
}  # fmt: skip
_WIDTH = 110
_CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
_DESCRIPTION = (
    "Measure context hijacking of language models. `lcalens --version` says which lcalens this is; `--debug` after a "
    "command shows where an error comes from."
)
_DEBUG = "--debug"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; an error is told in a sentence and is exit status 2, an interrupt is 130, a fault of lcalens 1.

    Args:
        arguments: The command line; the process's own by default. `--debug` among them shows tracebacks.
    """
    typed = sys.argv[1:] if arguments is None else arguments
    if typed[:1] == ["--version"]:
        print(f"lcalens {lcalens.__version__}")
        return 0
    debug = _DEBUG in typed
    typed = [word for word in typed if word != _DEBUG]
    twice = _given_twice(typed)
    if twice:
        print(f"lcalens: {twice}: given twice, and only the last would count; give it once.", file=sys.stderr)
        return 2
    choices = [Annotated[command, tyro.conf.subcommand(name, description=first_line(command))]
               for name, command in _COMMANDS.items()]  # fmt: skip
    parse: Any = tyro.cli  # whose types know no union made of a list
    try:
        command = parse(Union[*choices], args=typed, prog="lcalens", description=_DESCRIPTION, config=_CONFIG)
    except SystemExit as stop:
        if not stop.code and typed[0] in _COMMANDS:
            print("\n".join(["examples:", *(f"  {example}" for example in _COMMANDS[typed[0]].EXAMPLES)]))
        meant = did_you_mean(typed[0], _COMMANDS).strip() if stop.code and typed else ""
        if meant and typed[0] not in _COMMANDS:
            print(f"lcalens: {meant}", file=sys.stderr)
        raise
    try:
        force = getattr(getattr(command, "action", command), "force", False)
        with running(typed, command.out), forced(force), warnings.catch_warnings():
            warnings.showwarning = _warned
            return command.run(typed) or 0
    except KeyboardInterrupt:
        print(f"\nlcalens: stopped; {_kept(command)}.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        pass
    except LcalensError as error:
        if debug:
            raise
        print(textwrap.fill(f"lcalens: {_flagged(str(error), command)}", _WIDTH), file=sys.stderr)
        return 2
    except Exception as error:
        if debug:
            raise
        what = f"{type(error).__name__}: {error!s:.300}" if str(error) else type(error).__name__
        fault = f"a fault of lcalens, not yours ({what}); {_kept(command)}. {_DEBUG} shows where; please report it."
        print(textwrap.fill(f"lcalens: {fault}", _WIDTH), file=sys.stderr)
        return 1
    return 0


def _warned(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    """Say a warning of lcalens in a sentence; another library's with its place, as Python does."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        print(textwrap.fill(f"lcalens: {message}", _WIDTH), file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno), end="", file=sys.stderr)


def _flagged(message: str, command: Any) -> str:
    """The message with the flag that was typed, where it begins with the name of an argument."""
    action = getattr(command, "action", command)
    name, colon, rest = message.partition(":")
    name = "facts" if name == "source" else name  # load_facts and load_model call theirs so; `load` says model
    name = "scheme" if name == "schemes" and not hasattr(action, "schemes") else name
    name = "jobs" if name == "n_jobs" else name
    positional = ("prompt", "prompts", "folder", "folders")
    if not colon or name in positional or name not in getattr(type(action), "__dataclass_fields__", {}):
        return message
    return f"--{name.replace('_', '-')}:{rest}"


def _given_twice(typed: list[str]) -> str | None:
    """The first option that is there a second time: argparse would take the last in silence."""
    names = [word.partition("=")[0].replace("_", "-") for word in typed if word.startswith("--") and len(word) > 2]
    plain = [f"--{name.removeprefix('--').removeprefix('no-')}" for name in names]
    return next((name for i, name in enumerate(plain) if name in plain[:i]), None)


def _kept(command: Any) -> str:
    """What of an interrupted command is still there."""
    if not command.keeps_parts:
        return "nothing is kept"
    if command.out is None:
        return "nothing is kept, as no folder was given with --out"
    return f"finished parts are kept in {command.out}, the same command goes on from there"


if __name__ == "__main__":
    sys.exit(main())
