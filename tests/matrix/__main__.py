"""The whole matrix: `python -m tests.matrix` judges every cell and writes the page docs/matrix.md.

Finished families are kept under out/matrix, and judged again where lcalens, the oracle or a library has changed. It
ends with an error where a cell is wrong, a refusal is not on the list, or an entry of the list meets no cell.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lcalens.core.cells import CellStore, cell_key
from lcalens.core.versions import versions
from tests.matrix.cells import (
    CONTROLS,
    DTYPES,
    FAR,
    REDRAWN,
    SHARE,
    TIMES,
    VERBS,
    Cell,
    Verdict,
    cells,
    expected_refusals,
    judge_all,
)
from tests.matrix.families import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "matrix.md"
_WORDS = ("exact", "refused", "wrong")


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, report, write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), metavar="NAME")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8), help="processes")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page; not written unless every cell is judged")
    parser.add_argument("--keep", type=Path, default=Path("out/matrix"), help="where finished families are kept")
    chosen = parser.parse_args(arguments)
    started, store = time.perf_counter(), CellStore(chosen.keep)
    # Judged by this very code, lcalens and the oracle alike, and by these versions.
    keys = {family: cell_key(judge_all, [family, chosen.dtypes, versions()]) for family in chosen.families}
    verdicts = {family: found for family in chosen.families if (found := _kept(store.get(keys[family]))) is not None}
    if verdicts:
        print(f"{len(verdicts)} families were judged by this code before", flush=True)
    with ProcessPoolExecutor(chosen.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {
            pool.submit(judge_all, [cell for cell in cells([family]) if cell.dtype in chosen.dtypes]): family
            for family in chosen.families
            if family not in verdicts
        }
        for future in as_completed(waiting):
            family = waiting[future]
            verdicts[family] = future.result()
            store.put(keys[family], _keepable(verdicts[family]))
            print(f"[{len(verdicts)}/{len(keys)}] {family}: {_counted(verdicts[family])}", flush=True)
            for verdict in verdicts[family]:
                if not verdict.good:
                    print(f"    {verdict}", flush=True)
    every = [verdict for family in chosen.families for verdict in verdicts[family]]
    wall, seconds = time.perf_counter() - started, sum(verdict.seconds for verdict in every)
    whole = chosen.families == list(FAMILIES) and chosen.dtypes == list(DTYPES)
    idle = _idle(every) if whole else []
    for entry in idle:
        print(f"expected_refusals.toml: no cell is refused by {entry!r}; take the entry out", flush=True)
    if whole:
        chosen.out.write_text(page(every, seconds), encoding="utf-8")
    bad = sum(not verdict.good for verdict in every)
    print(f"{_counted(every)}; {bad} not as they should be; {wall:.0f} s with {chosen.jobs} processes", flush=True)
    return 1 if bad or idle else 0


def _keepable(verdicts: Sequence[Verdict]) -> dict[str, np.ndarray]:
    return {"json": np.frombuffer(json.dumps([asdict(verdict) for verdict in verdicts]).encode(), dtype=np.uint8)}


def _kept(arrays: dict[str, np.ndarray] | None) -> list[Verdict] | None:
    if arrays is None:
        return None
    rows = json.loads(arrays["json"].tobytes().decode())
    for row in rows:
        options = tuple((name, value) for name, value in row["cell"].pop("options"))
        row["cell"] = Cell(**row["cell"], options=options)
    return [Verdict(**row) for row in rows]


def _idle(verdicts: Sequence[Verdict]) -> list[str]:
    met = {verdict.expected for verdict in verdicts}
    return [entry.reason for i, entry in enumerate(expected_refusals()) if i not in met]


def _counted(verdicts: Sequence[Verdict]) -> str:
    words = Counter(verdict.word for verdict in verdicts)
    return ", ".join(f"{words[word]} {word}" for word in _WORDS if words[word] or word == "exact")


def _cell(verdicts: Sequence[Verdict]) -> str:
    words = Counter(verdict.word for verdict in verdicts)
    told = [str(words["exact"])] if words["exact"] else []
    told += [f"{words['refused']} r"] if words["refused"] else []
    told += [f"**{words['wrong']} wrong**"] if words["wrong"] else []
    return " + ".join(told)


def page(verdicts: Sequence[Verdict], seconds: float) -> str:
    """The page as Markdown.

    Args:
        verdicts: Of every cell.
        seconds: What they took.
    """
    table: dict[str, dict[str, list[Verdict]]] = defaultdict(lambda: defaultdict(list))
    for verdict in verdicts:
        table[verdict.cell.family][verdict.cell.verb].append(verdict)
    words = Counter(verdict.word for verdict in verdicts)
    lines = [
        "# The matrix: which numbers are right for which models",
        "",
        "Written by `make matrix`; do not edit.",
        "",
        f"{len(verdicts)} cells: **{words['exact']} exact, {words['refused']} refused, {words['wrong']} wrong** "
        f"({seconds / 60:.0f} minutes of one processor).",
        "",
        "A cell is a model family, a verb, a site, a control (clean and hijacked runs of equal or unequal length), a "
        "precision (float32, bfloat16) and one example or four of two lengths; positions, direction and other "
        "arguments take turns. Each is measured by lcalens and, independently, by hooks written by hand on Hugging "
        "Face's own model (`tests/matrix/plain.py`, `oracle.py`), which share no code with lcalens or TransformerLens. "
        "The models are tiny and random, with weights, norms and biases so large that the metric moves by more than 1, "
        "and windows and caps so small that they act.",
        "",
        "- **exact**: in float32 every number is within "
        f"{SHARE:g} of the largest effect of its cell; in bfloat16 the root mean square error against Hugging Face's "
        f"float32 run of the same weights is at most {TIMES:g} times that of Hugging Face's own bfloat16 run, "
        f"the largest of four examples; where it is not, by less than {FAR:g} times, {REDRAWN} sets of examples "
        "decide together, since two small samples of one rounding differ by chance and a fault does not go away.",
        "- **refused** (`r`): an error that says why, and that reason is on the committed list below. A refusal that "
        "is not on the list is counted as a failure, and so is an entry that no cell meets.",
        "- **wrong**: any other number or error. There must be none.",
        "",
        "## Families and verbs",
        "",
        "| family | " + " | ".join(VERBS) + " | s |",
        "| --- |" + " --- |" * (len(VERBS) + 1),
    ]
    for family, rows in table.items():
        spent = sum(verdict.seconds for row in rows.values() for verdict in row)
        lines.append(f"| {family} | " + " | ".join(_cell(rows[verb]) for verb in VERBS) + f" | {spent:.0f} |")
    totals = [[verdict for verdict in verdicts if verdict.cell.verb == verb] for verb in VERBS]
    spent = sum(verdict.seconds for verdict in verdicts)
    lines.append("| *all* | " + " | ".join(_cell(row) for row in totals) + f" | {spent:.0f} |")
    lines += ["", "`s`: processor seconds, lcalens and the oracle together.", "", "## What is refused, and why", ""]
    lines += ["| cells | families | verbs | why | the error says |", "| --- | --- | --- | --- | --- |"]
    for number, entry in enumerate(expected_refusals()):
        count = sum(verdict.expected == number for verdict in verdicts if verdict.word == "refused")
        where = [", ".join(part) if part != ("*",) else "all" for part in (entry.families, entry.verbs)]
        if entry.sites != ("*",):
            where[1] += f" ({', '.join(entry.sites)})"
        if entry.controls != ("*",):
            where[1] += f", {', '.join(entry.controls)} lengths"
        if entry.dtypes != ("*",):
            where[1] += f", {', '.join(entry.dtypes)}"
        lines.append(f"| {count} | {where[0]} | {where[1]} | {entry.why} | {entry.reason} |")
    errors = {
        dtype: [v.error / v.allowed for v in verdicts if v.word == "exact" and v.cell.dtype == dtype and v.allowed]
        for dtype in DTYPES
    }
    lines += [
        "",
        "## How near",
        "",
        "| precision | cells | median error / allowed | largest |",
        "| --- | --- | --- | --- |",
    ]
    for dtype, found in errors.items():
        if found:
            lines.append(f"| {dtype} | {len(found)} | {sorted(found)[len(found) // 2]:.2g} | {max(found):.2g} |")
    lines += ["", "## What sets each family apart", "", "| family | transformers | |", "| --- | --- | --- |"]
    lines += [f"| {name} | `{family.kind}` | {family.notes} |" for name, family in FAMILIES.items()]
    lines += ["", f"Controls: {', '.join(CONTROLS)}. Precisions: {', '.join(DTYPES)}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
