"""What the commands share: which model, what was typed, a result in a folder."""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lcalens.core.checks import check_int
from lcalens.core.engines import check_engine
from lcalens.core.errors import LcalensError
from lcalens.llm.prompts.named import read_control

if TYPE_CHECKING:
    from lcalens.core.results import Result


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which model, and where it runs.

    Attributes:
        model: `smollm2`, `gemma3-270m`, a hub id, a Hugging Face folder or a .gguf file.
        device: Where it runs: `cpu`, `cuda`, `mps`.
        dtype: The type of its parameters.
        json: Print the tables and where they come from as JSON, for scripts, in place of a screen.
        force: Measure also where `lcalens doctor` found that numbers are wrong on this model.
    """

    model: str = "smollm2"
    device: str | None = None
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    json: bool = False
    force: bool = False

    def show(self, screen: str, **results: "Result") -> None:
        """Print the screen, or with `--json` the results.

        Args:
            screen: For people.
            results: By name.
        """
        print(as_json(results) if self.json else screen)

    def note(self, text: str) -> None:
        """Say what was written; on standard error where standard output is JSON.

        Args:
            text: In a sentence.
        """
        print(f"\n{text}", file=sys.stderr if self.json else sys.stdout)

    def write(self, result: "Result", out: Path, table: str = "", **options: str) -> None:
        """Write a result (parquet, safetensors, JSON), its tidy table and its figure into one folder, and say so.

        Args:
            result: Any with a figure.
            out: The folder.
            table: A Markdown page; none is written where it is empty.
            options: For the figure.

        Raises:
            LcalensError: Something cannot be written there.
        """
        try:
            result.save(out / "result")
            result.to_frame().to_parquet(out / "values.parquet")
            result.plot(**options).savefig(out / "figure.png", dpi=200)
            if table:
                (out / "table.md").write_text(table, encoding="utf-8")
        except OSError as error:
            raise cannot_be_written(out, error) from error
        files = "figure.png, table.md, values.parquet" if table else "figure.png, values.parquet"
        self.note(f"Written to {out}: {files}, result/ (its tables too; read it with lcalens.Result.load)")

    def load(self) -> Any:
        """The model, loaded.

        Raises:
            LcalensError: It cannot be; the message names `model`.
        """
        from lcalens import load_model

        try:
            return load_model(self.model, device=self.device, dtype=self.dtype, progress=True)
        except LcalensError as error:
            if str(error).startswith("source:"):
                raise LcalensError(f"model{str(error).removeprefix('source')}") from error
            raise


def first_line(command: Any) -> str:
    """What a command does, in a line.

    Args:
        command: Its class.
    """
    return (command.__doc__ or "").splitlines()[0]


def as_json(results: Mapping[str, "Result"]) -> str:
    """Results as one JSON object: for each its kind, units, tables (a list of rows each) and provenance.

    Args:
        results: By name.
    """
    content = {
        name: {
            "kind": result.kind,
            "units": dict(result.units),
            "tables": {table: _records(result.tables[table]) for table in result.tables},
            "provenance": dict(result.provenance),
        }
        for name, result in results.items()
    }
    return json.dumps(content, indent=1, ensure_ascii=True, default=str, allow_nan=False)


def _records(table: Any) -> list[dict[str, Any]]:
    """A table's rows, with null where nothing was measured."""
    return json.loads(table.to_json(orient="records", double_precision=15))


def typed(arguments: Sequence[str]) -> str:
    """The command line as a shell takes it, in one line.

    Args:
        arguments: All but the program's name.
    """
    return " ".join(["lcalens", *map(_quoted, arguments)])


def _quoted(argument: str) -> str:
    if "\n" not in argument:
        return shlex.quote(argument)
    return "$'" + argument.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def check_processes(jobs: int, engine: str | None) -> None:
    """See before anything is loaded that a number of processes is one, and a cluster's address one.

    Args:
        jobs: 1 or more, or -1.
        engine: The address; None for this machine.

    Raises:
        LcalensError: It is none.
    """
    check_engine(engine)
    if jobs != -1:
        check_int("jobs", jobs, low=1, why="it is a number of processes, or -1 for one per core")


def check_control(control: str) -> None:
    """See before anything is loaded that a control is one that heads can be ranked against.

    Args:
        control: A kind's name, or a sentence.

    Raises:
        LcalensError: It is neither; or `none`, behind which no tokens align.
    """
    if read_control(control) == "none":
        raise LcalensError(
            "control: heads are ranked between runs of as many tokens, and the bare prompt has fewer; give neutral, "
            "other-object, or a sentence such as 'Forget about {unrelated}.'"
        )


def check_folder(out: Path | None) -> None:
    """See before anything is computed that a folder can be written.

    Args:
        out: The folder, made where it is missing.

    Raises:
        LcalensError: It is a file, or cannot be made.
    """
    if out is None:
        return
    if out.parts and re.fullmatch(r"[a-z0-9+.-]{2,}:", out.parts[0]):
        raise LcalensError(
            f"out: {str(out)!r:.200} is an address, and commands write tables and figures to a folder; give a path, or "
            "call from Python, where out= takes addresses."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_be_written(out, error) from error


def cannot_be_written(out: Path, error: OSError) -> LcalensError:
    """The error of a folder in which something cannot be written.

    Args:
        out: The folder.
        error: What the system says.
    """
    return LcalensError(f"out: {str(out)!r} cannot be written ({error.strerror or error}).")
