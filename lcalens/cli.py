"""The command line: `lcalens hijack`, `trace` and `ask`, from the dataclasses that the functions use."""

import shlex
import sys
import textwrap
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lcalens.core.errors import LcalensError
from lcalens.llm.prompts.schemes import SCHEMES

if TYPE_CHECKING:
    from lcalens.core.results import Result
from lcalens.llm.efficacy.measure import EfficacyConfig

_OWN = '`"Forget about {target_false}."`'
_SCHEMES_HELP = f"Any of: {', '.join(SCHEMES)}; `all` of them; or a sentence of your own such as {_OWN}."


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which model, and where it runs.

    Attributes:
        model: `smollm2`, `gemma3-270m`, a hub id, a Hugging Face folder or a .gguf file.
        device: Where it runs: `cpu`, `cuda`, `mps`.
        dtype: The type of its parameters.
    """

    model: str = "smollm2"
    device: str | None = None
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class Hijack(EfficacyConfig, Source):
    """How often sentences before the prompt make the model prefer the false object (Figure 2).

    Attributes:
        facts: `sample`, `counterfact`, a file (JSON, JSON lines, parquet, gzip) or a hub data set.
        relations: Keep only these relations (`P190`).
        limit: At most so many facts, drawn at random.
        strict: Stop at the first malformed record.
        out: A folder for tables, figure and finished parts; the same command again computes only what is missing.
        measure: What the figure shows: `es`, or `retention` (1 - ES, the paper's falling curves).
    """

    schemes: Annotated[tuple[str, ...], tyro.conf.arg(help=_SCHEMES_HELP)] = ("dont-think", "neutral", "unrelated")
    facts: str = "sample"
    relations: tuple[str, ...] = ()
    limit: int | None = None
    strict: bool = False
    out: Path | None = None
    measure: Literal["es", "retention"] = "es"


@dataclass(frozen=True, kw_only=True)
class Ask(Source):
    """The model's top answers before and after a sentence is put before the prompt (Figure 1).

    Attributes:
        prompt: The question, ready to be continued: "The Eiffel Tower is in".
        hijack: One or more sentences to put before it.
        answers: Whole answers to score beside.
        top: How many answers to show.
        chat: Ask through the chat template.
        out: A folder for the table and the figure.
    """

    prompt: tyro.conf.Positional[str]
    hijack: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    top: int = 5
    chat: bool = False
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Trace(Source):
    """Which heads carry a hijack, and whether by where they look or by what they recall.

    Attributes:
        facts: `sample`, `counterfact`, a file (JSON, JSON lines, parquet, gzip) or a hub data set.
        relations: Keep only these relations (`P190`).
        limit: At most so many facts, drawn at random; heads are ranked on one half and reported on the other.
        scheme: What hijacks them: a scheme's name or a sentence of your own.
        n: How many sentences.
        control: The clean run: a `neutral` sentence of as many tokens, or one that names an `other-object`.
        seed: Of what is drawn.
        views: For how many facts the leading heads' attention is written as a page.
        out: A folder for tables, figures, attention views and finished parts.
    """

    facts: str = "sample"
    relations: tuple[str, ...] = ()
    limit: int = 32
    scheme: str = "dont-think"
    n: int = 1
    control: Literal["neutral", "other-object"] = "neutral"
    seed: int = 0
    views: int = 2
    out: Path | None = None


def main(arguments: list[str] | None = None) -> int:
    """Run a command; an error is told on standard error and is exit status 2, an interrupt is 130.

    Args:
        arguments: The command line; the process's own by default.
    """
    Command = (
        Annotated[Hijack, tyro.conf.subcommand("hijack", description=_first_line(Hijack))]
        | Annotated[Trace, tyro.conf.subcommand("trace", description=_first_line(Trace))]
        | Annotated[Ask, tyro.conf.subcommand("ask", description=_first_line(Ask))]
    )
    description = "Measure context hijacking of language models."
    command = tyro.cli(Command, args=arguments, prog="lcalens", description=description)
    try:
        if isinstance(command, Ask):
            return run_ask(command)
        return run_trace(command, arguments) if isinstance(command, Trace) else run_hijack(command, arguments)
    except LcalensError as error:
        print(textwrap.fill(f"lcalens: {error}", 110), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nlcalens: stopped; finished parts are kept in --out, the same command goes on from there.",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        return 0


def _first_line(command: type) -> str:
    return (command.__doc__ or "").splitlines()[0]


def run_hijack(command: Hijack, arguments: list[str] | None = None) -> int:
    """Measure, print the table, and write what `--out` asks for."""
    from lcalens import efficacy, load_facts, load_model
    from lcalens.llm.efficacy.measure import check_config
    from lcalens.views.text import efficacy_markdown, efficacy_screen

    config = {field.name: getattr(command, field.name) for field in fields(EfficacyConfig)}
    check_config(**config)  # before anything is loaded
    facts = load_facts(command.facts, relations=command.relations or None, limit=command.limit, strict=command.strict)
    model = load_model(command.model, device=command.device, dtype=command.dtype, progress=sys.stderr.isatty())
    result = efficacy(model, facts, **config, out=command.out, progress=sys.stderr.isatty())
    print(efficacy_screen(result))
    if command.out is not None:
        table = efficacy_markdown(result, _typed(arguments))
        _write(result, command.out, table, measure=command.measure)
    return 0


def run_trace(command: Trace, arguments: list[str] | None = None) -> int:
    """Trace, print what was found, and write what `--out` asks for."""
    from lcalens import attention_view, load_facts, load_model
    from lcalens.commands.tracing import trace_facts, trace_markdown, trace_text
    from lcalens.core.checks import check_int
    from lcalens.llm.prompts.schemes import find_scheme

    find_scheme(command.scheme)  # before anything is loaded
    for name, low in (("n", 1), ("limit", 4), ("seed", 0), ("views", 0)):
        check_int(name, getattr(command, name), low=low)
    facts = load_facts(command.facts, relations=command.relations or None, limit=command.limit, seed=command.seed)
    model = load_model(command.model, device=command.device, dtype=command.dtype, progress=sys.stderr.isatty())
    options = {name: getattr(command, name) for name in ("scheme", "n", "control", "seed", "out")}
    found = trace_facts(model, facts, **options, progress=sys.stderr.isatty())
    print(trace_text(found))
    if command.out is not None:
        leading = found.ranked.summary.iloc[0]
        results = {"heads": found.patched, "ranking": found.ranked, "split": found.parts}
        try:
            for name, result in results.items():
                result.save(command.out / name)
                result.plot().savefig(command.out / f"{name}.png", dpi=200)
            for example in range(min(command.views, len(found.contrast))):
                view = attention_view(model, found.contrast, int(leading["layer"]), example=example)
                view.save(command.out / f"attention-{example}.html")
            (command.out / "trace.md").write_text(trace_markdown(found, _typed(arguments)), encoding="utf-8")
        except OSError as error:
            raise LcalensError(f"out: {str(command.out)!r} cannot be written ({error.strerror or error}).") from error
        print(f"\nWritten to {command.out}: trace.md, {', '.join(f'{name}.png' for name in results)}, attention views, "
              "results (lcalens.Result.load reads them)")  # fmt: skip
    return 0


def run_ask(command: Ask) -> int:
    """Ask, print the table, and write what `--out` asks for."""
    from lcalens import ask, load_model
    from lcalens.views.text import answers_screen

    model = load_model(command.model, device=command.device, dtype=command.dtype, progress=sys.stderr.isatty())
    options = {name: asdict(command)[name] for name in ("answers", "top", "chat")}
    result = ask(model, command.prompt, hijack=command.hijack or None, **options)
    print(answers_screen(result))
    if command.out is not None:
        _write(result, command.out)
    return 0


def _typed(arguments: list[str] | None) -> str:
    return shlex.join(["lcalens", *(sys.argv[1:] if arguments is None else arguments)])


def _write(result: "Result", out: Path, table: str = "", **options: str) -> None:
    """The result (parquet, safetensors, JSON), its tidy table and its figure, in one folder."""
    try:
        result.save(out / "result")
        result.to_frame().to_parquet(out / "values.parquet")
        result.plot(**options).savefig(out / "figure.png", dpi=200)
        if table:
            (out / "table.md").write_text(table, encoding="utf-8")
    except OSError as error:
        raise LcalensError(f"out: {str(out)!r} cannot be written ({error.strerror or error}).") from error
    print(f"\nWritten to {out}: figure.png, tables, values.parquet, result/ (read it with lcalens.Result.load)")


if __name__ == "__main__":
    sys.exit(main())
