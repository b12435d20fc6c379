"""The command line of a probe and of all of them; what they write."""

import json
import os
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import tyro

from lcalens.core.cells import CellStore, cell_key
from lcalens.core.errors import LcalensError
from lcalens.core.manifest import Manifest
from lcalens.core.versions import versions
from probes.harness.naive import runs_of, seconds_a_step
from probes.harness.order import figure_page
from probes.harness.page import COPY, FAMILIES, duration, page, short_table, verdict_table
from probes.harness.rules import GROUPS, Word
from probes.harness.study import Outcome, Report, Settings, module_of, run_probe

SHORT = "short.txt"
BEGIN, END = "<!-- verdicts: begin -->", "<!-- verdicts: end -->"
_PRESETS = {
    "quick": "seconds: shows that it works, gives no verdict",
    "standard": "the verdicts that are published",
    "full": "longer training, more facts and models",
}


def main(name: str, arguments: Sequence[str] | None = None) -> int:
    """Run one probe from the command line.

    Args:
        name: The module's name; where it is run as a script, Python calls it `__main__`.
        arguments: The command line; the process's own by default.
    """
    probe = sys.modules[name]
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    preset = (
        arguments if (arguments and not arguments[0].startswith("-")) or set(arguments) & {"-h", "--help"} else None
    )
    told = ["standard", *arguments] if preset is None else arguments
    title = (probe.__doc__ or "").strip().partition("\n")[0]
    choices = {preset: (_PRESETS[preset], settings) for preset, settings in probe.PRESETS.items()}
    prog = f"python -m {module_of(probe)}"

    def run() -> None:
        settings = tyro.extras.overridable_config_cli(choices, prog=prog, description=title, args=told)
        outcome = run_probe(probe, settings)
        text = _write(probe, outcome, _command(prog, told))
        print(text)
        print(f"{outcome.loaded} cells were there, {outcome.computed} measured now; written to {_folder(settings)}")

    return told_plainly(run)


def told_plainly(run: object) -> int:
    """Call it; an error is told on standard error and is exit status 2, an interrupt 130.

    Args:
        run: A function of nothing.
    """
    try:
        run()  # pyright: ignore[reportCallIssue]
    except LcalensError as error:
        print(f"probes: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nprobes: stopped; finished cells are kept, the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


def run_all(names: Sequence[str], preset: str, out: Path, device: str = "cpu", jobs: int = 1) -> list[Outcome]:
    """Run probes, and write their pages and the table of all verdicts.

    Args:
        names: Of the probes; they are begun in this order.
        preset: `quick`, `standard` or `full`.
        out: Where pages, figures and finished cells go.
        device: Where models run.
        jobs: How many probes run at once, each in a process with its share of the cores.

    Raises:
        LcalensError: A number of jobs below 1; or some probes failed, which is told when the others are done.
    """
    from joblib import Parallel, delayed

    if jobs < 1:
        raise LcalensError(f"jobs: expected 1 or more, got {jobs}.")
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None
    begun = (delayed(_run_one)(name, preset, out, device, threads) for name in names)
    found: dict[str, Outcome] = {}
    errors, start = [], time.perf_counter()
    together: Any = Parallel(n_jobs=jobs, return_as="generator_unordered", pre_dispatch="n_jobs")
    # A process that has grown is ended and another begun, which is no news to anybody.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs", category=UserWarning)
    for name, outcome, took in together(begun):
        if isinstance(outcome, str):
            errors.append(f"{name}: {outcome}")
            print(f"{name:20} failed: {outcome}", flush=True)
            continue
        found[name] = outcome
        words = "; ".join(verdict.told() for verdict in outcome.verdicts) or "not judged"
        cells = f"{outcome.loaded} cells there, {outcome.computed} measured"
        print(f"{name:20} {duration(took):>12}  {cells}: {words}", flush=True)
    if errors:
        raise LcalensError(f"{'; '.join(errors)}. What is finished is kept; the same command goes on from there.")
    outcomes = [found[name] for name in names]
    print(_told(outcomes))
    took = time.perf_counter() - start
    computed = sum(outcome.computed for outcome in outcomes)
    modules = {outcome.name: f"probes.{name}" for name, outcome in zip(names, outcomes, strict=True)}
    _write_index(outcomes, out / preset, took, computed)
    _save(out / preset / "figures.md", figure_page(outcomes, modules))
    return outcomes


def _run_one(name: str, preset: str, out: Path, device: str, threads: int | None) -> tuple[str, Outcome | str, float]:
    """One probe, in a process of its own where there are several; its error as text."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    probe, start = import_module(f"probes.{name}"), time.perf_counter()
    try:
        outcome = run_probe(probe, replace(probe.PRESETS[preset], out=out, device=device), progress=threads is None)
        _write(probe, outcome, _command(f"python -m probes.{name}", [preset]))
    except LcalensError as error:
        return name, str(error), 0.0
    except Exception as error:  # the others' work is not to be lost for a fault in one
        return name, f"{error!r}\n{traceback.format_exc()}", 0.0
    # Figures and tables are on the page, and need not be sent.
    report = Report(evidence=outcome.report.evidence, paper=outcome.report.paper)
    return name, replace(outcome, report=report), time.perf_counter() - start


def _told(outcomes: Sequence[Outcome]) -> str:
    """All verdicts for a terminal."""
    lines = []
    for verdict in (verdict for outcome in outcomes for verdict in outcome.verdicts):
        rule = verdict.rule
        lines += ["", f"{rule.claim} [{GROUPS[rule.group]}; {rule.source}]"]
        lines.append(f"    {rule.effect}, {rule.unit}: {verdict.effects()} ({verdict.told()})")
    return "\n".join(lines)


def _write_index(outcomes: list[Outcome], folder: Path, took: float, computed: int) -> None:
    """The table of verdicts, and what all of it took."""
    naive = _naive(outcomes)
    cells = sum(outcome.seconds for outcome in outcomes)
    cost = (
        f"The cells of all probes took {duration(cells)} when they were measured. A plain script, one training run "
        f"at a time, would need about {duration(naive)} for the same toy models alone: the time of a step of every "
        "shape, measured on a few steps, times the steps that the grid needs."
    )
    if computed and not any(outcome.loaded for outcome in outcomes):
        cost += f" This run, which measured all {computed} cells, took {duration(took)} in all."
    lines = [
        "# The paper's claims, one by one",
        "",
        "Each row is a rule: a minimum effect, and a margin over a control, both written down before the runs that are",
        "judged. Whether it is met is decided by the whole 95% interval of the effect and of the difference. Shown are",
        "the range over the settings, and the setting in the middle (the lower of two). Only the first group speaks of",
        "the paper; the others ask more than it does. [Our figures in the paper's order](figures.md).",
        "",
        COPY,
        "",
        FAMILIES,
        "",
        *_counted(outcomes),
        "",
        *verdict_table(outcomes, ""),
        "",
        cost,
    ]
    _save(folder / "index.md", "\n".join(lines) + "\n")
    _save(folder / SHORT, "\n".join(short_table(outcomes, "")) + "\n")


def _counted(outcomes: Sequence[Outcome]) -> list[str]:
    """How many of the paper's claims hold: of its own group, and without those that depend on what it leaves open."""
    words = [one.word for outcome in outcomes for one in outcome.verdicts if one.rule.group == "paper"]
    if not words:
        return []
    counts = {word: words.count(word) for word in get_args(Word)}
    return [
        f"Of {len(words)} claims of the paper, {counts['holds']} hold in all their settings, {counts['holds in part']} "
        f"in some and {counts['does not hold']} in none; {counts['undecided']} are undecided, and "
        f"{counts['depends on']} depend on what the paper leaves open; these count neither way."
    ]


def publish(out: Path, docs: Path, readme: Path) -> None:
    """Copy the pages of the standard preset into the documentation, and the verdicts into the README.

    Args:
        out: Where `run_all` wrote.
        docs: The folder of the claims' pages.
        readme: A page with the two marks between which the table stands.

    Raises:
        LcalensError: Nothing was run yet, or the page lacks the marks.
    """
    import shutil

    source = out / "standard"
    if not (source / "index.md").exists():
        raise LcalensError(f"out: no finished pages in {str(source)!r}; run `make paper` first.")
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise LcalensError(f"{readme.name}: expected {BEGIN} and {END}, each once.")
    for folder, pattern in ((docs, "*.md"), (docs / "figures", "*.png")):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(pattern):
            old.unlink()
        for new in sorted((source / folder.relative_to(docs)).glob(pattern)):
            shutil.copyfile(new, folder / new.name)
    short = (source / SHORT).read_text(encoding="utf-8").splitlines()
    rows = "\n".join(line.replace("](", f"]({docs.as_posix()}/") for line in short if line.startswith("|"))
    head, _, rest = text.partition(BEGIN)
    _save(readme, f"{head}{BEGIN}\n{rows}\n{END}{rest.partition(END)[2]}")


def _command(prog: str, arguments: Sequence[str]) -> str:
    return shlex.join([*prog.split(), *arguments])


def _folder(settings: Settings) -> Path:
    return settings.out / settings.preset


def _naive(outcomes: Sequence[Outcome]) -> float:
    """Seconds of the plain script for all that was trained; a shape's time is measured once and kept."""
    steps = runs_of(cell for outcome in outcomes for cell in outcome.trained)
    store = CellStore(outcomes[0].settings.out)
    keys = {shape: cell_key(seconds_a_step, ["naive step", *shape, versions()]) for shape in steps}
    manifest = Manifest(store, "probes.naive", code=[seconds_a_step], settings={"shapes": [list(one) for one in steps]})
    manifest.expect(list(keys.values()))
    total = 0.0
    for shape, count in steps.items():
        key = keys[shape]
        found = store.get(key)
        if found is None:
            found = {"seconds": np.array(seconds_a_step(shape))}
            store.put(key, found)
        total += float(found["seconds"]) * count
    manifest.end()
    return total


def _write(probe: ModuleType, outcome: Outcome, command: str) -> str:
    from matplotlib import pyplot

    folder = _folder(outcome.settings)
    text = page(probe, outcome, command, _naive([outcome]))
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for number, figure in enumerate(outcome.report.figures.values(), 1):
            figure.savefig(folder / "figures" / f"{outcome.name}-{number}.png", dpi=150)
            pyplot.close(figure)
        words = [[verdict.rule.claim, verdict.word] for verdict in outcome.verdicts]
        _save(folder / f"{outcome.name}.json", json.dumps({"verdicts": words}, indent=1) + "\n")
        _save(folder / f"{outcome.name}.md", text)
    except OSError as error:
        raise LcalensError(f"out: {str(folder)!r} cannot be written ({error.strerror or error}).") from error
    return text


def _save(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
