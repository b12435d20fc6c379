"""The speed's history: `make bench` appends its rows to docs/measured/speed.csv, and this draws docs/measured/speed.md.

A row is a number of one benchmark on one day: the commit, the machine and how busy it was stand beside it, so that a
ratio that fell can be told from a machine that was shared.
"""

import csv
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "docs" / "measured" / "speed.csv"
PAGE = RECORDS.with_suffix(".md")
FIGURE = ROOT / "docs" / "figures" / "speed.png"
COLUMNS = ("date", "commit", "machine", "busy", "benchmark", "quantity", "value")


def rows_of(measured: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """What one run of the benchmarks adds to the records.

    Args:
        measured: For each benchmark its quantities, by name.
    """
    known = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "machine": _machine(),
        "busy": f"{os.getloadavg()[0] / (os.cpu_count() or 1):.1f}",
    }
    return [
        {**known, "benchmark": benchmark, "quantity": quantity, "value": f"{float(value):.4g}"}
        for benchmark, quantities in measured.items()
        for quantity, value in quantities.items()
    ]


def append(rows: Iterable[Mapping[str, str]], file: Path = RECORDS) -> None:
    """Add rows to the records.

    Args:
        rows: As `rows_of` makes them.
        file: The records.
    """
    new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read(file: Path = RECORDS) -> list[dict[str, str]]:
    """All records, oldest first.

    Args:
        file: The records.
    """
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def page(rows: Sequence[Mapping[str, str]]) -> str:
    """The history as a page: for each benchmark and quantity its last value, beside the one before.

    Args:
        rows: The records.
    """
    lines = [
        "# Speed, dated",
        "",
        "Each run of `make bench` adds its numbers, with the day, the commit, the machine and how busy it was (the",
        "load of the last minute over the number of cores: 0.5 for one thread on two). Shown is each quantity's last",
        "value, and the one before; [all of them](speed.csv). What they mean: [speed](../performance.md).",
        "",
        "![Ratios over a peer, by date](../figures/speed.png)",
        "",
        "| benchmark | quantity | last | date | commit | busy | before |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    history: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        history.setdefault((row["benchmark"], row["quantity"]), []).append(row)
    for (benchmark, quantity), found in history.items():
        last = found[-1]
        before = f"{found[-2]['value']} ({found[-2]['date']})" if len(found) > 1 else ""
        told = [_plain(benchmark), quantity, last["value"], last["date"], f"`{last['commit']}`", last["busy"], before]
        lines.append("| " + " | ".join(one.replace("|", "\\|") for one in told) + " |")
    machines = dict.fromkeys(row["machine"] for row in rows)
    return "\n".join([*lines, "", f"Machines: {'; '.join(machines)}.", ""])


def draw(rows: Sequence[Mapping[str, str]], file: Path = FIGURE) -> None:
    """Every ratio over a peer, by date, on a logarithmic axis.

    Args:
        rows: The records.
        file: The picture.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    ratios: dict[str, list[tuple[int, float]]] = {}
    days = sorted({row["date"] for row in rows})
    for row in rows:
        if "ratio" in row["quantity"]:
            name = f"{_plain(row['benchmark'])}: {row['quantity']}"
            ratios.setdefault(name, []).append((days.index(row["date"]), float(row["value"])))
    figure, axis = plt.subplots(figsize=(7, 3 + 0.14 * len(ratios)), dpi=170, layout="constrained")
    for number, (name, points) in enumerate(ratios.items()):
        at, values = zip(*points, strict=True)
        axis.plot(at, values, marker="osD^v<>"[number % 7], markersize=4, label=name)
    axis.set(yscale="log", ylabel="times as fast as the peer", xlim=(-0.5, max(len(days) - 0.5, 0.5)))
    axis.set_xticks(range(len(days)), days)
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=6, ncols=1, frameon=False)
    figure.savefig(file)
    plt.close(figure)


def _plain(benchmark: str) -> str:
    """A test's name as words."""
    return benchmark.removeprefix("test_").replace("_", " ")


def main() -> int:
    """Make the page of what is recorded."""
    rows = read()
    draw(rows)
    PAGE.write_text(page(rows), encoding="utf-8")
    print(f"{len(rows)} numbers; {PAGE.relative_to(ROOT)}")
    return 0


def _commit() -> str:
    """The commit that was measured, with a + where files have changed since."""

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return ""

    return (git("rev-parse", "--short=9", "HEAD").strip() or "unknown") + ("+" if git("status", "--porcelain") else "")


def _machine() -> str:
    """The processor, its cores, and the versions that decide the speed."""
    import torch

    try:
        told = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")]  # fmt: skip
    except OSError:
        told = []
    name = told[0] if told else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
