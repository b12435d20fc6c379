"""A probe's run: its cells, each kept as it is finished; then its verdicts, tables, figures and page."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import tyro

from lcalens.core.cells import CellStore, cell_key
from lcalens.core.errors import LcalensError
from lcalens.core.manifest import Manifest
from lcalens.core.progress import progress_callback
from lcalens.core.versions import versions
from probes.harness.rules import Evidence, Rule, Verdict
from probes.harness.work import Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Preset = Literal["quick", "standard", "full"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every probe's settings have.

    Attributes:
        preset: Which set of settings this began as.
        seeds: Runs of every toy setting.
        out: Where pages, figures and finished cells go.
        device: Where models run.
    """

    preset: tyro.conf.Fixed[Preset] = "standard"
    seeds: int = 5
    out: Path = Path("out/paper")
    device: str = "cpu"

    def __post_init__(self):
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, tuple) and not value:
                raise LcalensError(f"{name}: none given; write one at least.")
        if self.seeds < 1:
            raise LcalensError(f"seeds: expected 1 or more, got {self.seeds}.")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a probe makes of its rows.

    Attributes:
        evidence: For every rule what each setting says.
        figures: Captions with figures, in the page's order.
        tables: Titles with tables.
        notes: Sentences whose numbers were put in by the probe.
        paper: The figures of the paper that this has something beside, for the page in the paper's order.
    """

    evidence: tuple[tuple[Rule, list[Evidence]], ...]
    figures: Mapping[str, "Figure"] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    paper: tuple["Counterpart", ...] = ()


@dataclass(frozen=True, kw_only=True)
class Counterpart:
    """What stands beside one figure, theorem or lemma of the paper on `docs/claims/figures.md`.

    Attributes:
        figure: Its name in the paper's order: one of `probes.harness.order.ORDER`.
        settings: The paper's settings, as far as they are known, and which are ours.
        sentence: The sentence of the paper about it, translated; empty where there is none.
        caption: Which of the report's figures shows it: that one's caption; empty where a table alone does.
        paragraph: What we see, in plain words.
    """

    figure: str
    settings: str
    sentence: str
    caption: str
    paragraph: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A probe that has run.

    Attributes:
        name: The probe's.
        settings: Its settings.
        report: What it made of its rows.
        verdicts: One a rule that was measured; none at `quick`, which measures too little.
        loaded: Cells that were found finished.
        computed: Cells that were measured now.
        seconds: What all its cells took when they were measured.
        trained: What each cell trained.
        captions: The report's captions, in the order of its figures' files.
    """

    name: str
    settings: Settings
    report: Report
    verdicts: tuple[Verdict, ...]
    loaded: int
    computed: int
    seconds: float
    trained: list[list[dict[str, Any]]]
    captions: tuple[str, ...] = ()

    @property
    def unmeasured(self) -> list[Rule]:
        """The rules for which these settings have no evidence that counts."""
        return [rule for rule, evidence in self.report.evidence if not _counts(evidence)]


ROOMS = ("real", "toy", "theory")


def name_of(probe: ModuleType) -> str:
    """The file's name, though it was run as a script.

    Args:
        probe: The module.
    """
    return Path(str(probe.__file__)).stem


def module_of(probe: ModuleType) -> str:
    """The name under which Python runs it, such as `probes.toy.value_swap`.

    Args:
        probe: The module.
    """
    path = Path(str(probe.__file__))
    room = [path.parent.name] if path.parent.name in ROOMS else []
    return ".".join(["probes", *room, path.stem])


def run_probe(probe: ModuleType, settings: Settings, *, progress: bool = True) -> Outcome:
    """Measure the cells that are missing, and report on all.

    Args:
        probe: The module: `grid`, `measure`, `report`, `RULES`.
        settings: One of its settings.
        progress: Whether to show a bar.

    Raises:
        LcalensError: Settings that cannot be used; or a report that leaves out a rule.
    """
    name = name_of(probe)
    store = CellStore(settings.out)
    work = Work(settings.out, settings.device)
    rows: list[dict[str, Any]] = []
    trained: list[list[dict[str, Any]]] = []
    seconds = 0.0
    cells = [_plain(cell) for cell in probe.grid(settings)]
    keys = [_key(probe, settings, cell) for cell in cells]
    manifest = Manifest(
        store, module_of(probe), code=[probe.measure],
        settings={name: value for name, value in asdict(settings).items() if name != "out"},
    )  # fmt: skip
    manifest.expect(keys)
    with progress_callback(progress, unit="cells") as told:
        for done, (cell, key) in enumerate(zip(cells, keys, strict=True)):
            told(done, len(cells), name)
            found = _read(store.get(key))
            if found is None:
                with _timed() as took:
                    work.forget()
                    measured = [_plain(row) for row in probe.measure(cell, work)]
                found = {"rows": measured, "seconds": took[0], "trained": _plain(work.trained)}
                store.put(key, {"json": np.frombuffer(json.dumps(found).encode(), dtype=np.uint8)})
            rows += found["rows"]
            seconds += found["seconds"]
            trained.append(found["trained"])
        told(len(cells), len(cells), name)
    manifest.end()
    report = probe.report(settings, pd.DataFrame(rows))
    if [rule for rule, _ in report.evidence] != list(probe.RULES):
        raise LcalensError(f"{name}: its report has evidence of other rules than RULES, which were said beforehand.")
    judged = settings.preset != "quick"
    return Outcome(
        name=name,
        settings=settings,
        report=report,
        verdicts=tuple(rule.judge(evidence) for rule, evidence in report.evidence if judged and _counts(evidence)),
        loaded=store.loaded,
        computed=store.computed,
        seconds=seconds,
        trained=trained,
        captions=tuple(report.figures),
    )


def unfinished(probe: ModuleType, settings: Settings) -> list[dict[str, Any]]:
    """The cells that a run would have to measure.

    Args:
        probe: The module.
        settings: One of its settings.
    """
    store = CellStore(settings.out)
    cells = (_plain(cell) for cell in probe.grid(settings))
    return [cell for cell in cells if _key(probe, settings, cell) not in store]


def _key(probe: ModuleType, settings: Settings, cell: dict[str, Any]) -> str:
    return cell_key(probe.measure, [name_of(probe), settings.device, cell, _weights(cell), versions()])


def _counts(evidence: list[Evidence]) -> bool:
    """Whether there is a setting that a verdict would count."""
    return any(one.counted for one in evidence)


@contextmanager
def _timed() -> Iterator[list[float]]:
    took, start = [0.0], time.perf_counter()
    yield took
    took[0] = time.perf_counter() - start


def _weights(cell: dict[str, Any]) -> list[Any]:
    """Of a model that is a file or a folder its files, so that other weights in the same place are another cell."""
    path = Path(str(cell.get("model", "")))
    files = [path] if path.is_file() else sorted(path.iterdir()) if "model" in cell and path.is_dir() else []
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _read(arrays: dict[str, np.ndarray] | None) -> dict[str, Any] | None:
    return None if arrays is None else json.loads(arrays["json"].tobytes().decode())


def _plain(content: Any) -> Any:
    """The same as numbers, strings, lists and dictionaries: what is measured now is what a later run reads."""

    def number(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        raise TypeError(f"a cell's rows hold numbers, strings and lists, not {type(value).__name__}")

    return json.loads(json.dumps(content, default=number))
