"""The notebooks of examples/, made from the scripts beside them: `python -m tests.house.notebooks` (`make notebooks`).

Two kernels run at once, one thread each. `run` is also what the tests execute, with fewer facts.
"""

import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COMMAND = "make notebooks"
HOLDS = "holds"  # the tag of the cell that holds a notebook's sentences to its numbers
LONG = "5"  # begun first, so that both kernels end together
TIMEOUT = 900  # seconds for a cell
SMALLER = (
    (re.compile(r"limit=(?:40|48|200)\b"), "limit=8"),
    (re.compile(r"counts=\([\d, ]+\)"), "counts=(0, 1)"),
    (re.compile(r"facts\[:64\]"), "facts[:8]"),
    (re.compile(r'honest=\("fiction", "correction"\)'), 'honest=("fiction",), texts=("The sea was calm.",)'),
    (re.compile(r"facts\[64:94\]"), "facts[64:70]"),
    (re.compile(r"(leading\(.*), 10,"), r"\1, 3,"),
    (re.compile(r"contrast\[:24\]"), "contrast[:4]"),
    (re.compile(r"range\(3\)"), "range(1)"),
)


def scripts() -> list[Path]:
    """The notebooks' scripts, in their order: those that begin with a number."""
    return sorted(EXAMPLES.glob("[0-9]_*.py"))


def read(script: Path) -> Any:
    """A script as a notebook without outputs; a cell's id is its number, the same whenever it is made.

    Args:
        script: In jupytext's percent format.
    """
    book = jupytext.read(script)
    for number, cell in enumerate(book.cells):
        cell["id"] = f"cell-{number}"
    del book.metadata["jupytext"]  # which would name a version
    return book


def smaller(book: Any) -> Any:
    """The same notebook for a quick trial: fewer facts, models and heads, and no cell that judges the numbers."""
    book.cells = [cell for cell in book.cells if HOLDS not in cell.metadata.get("tags", ())]
    for cell in book.cells:
        for pattern, put in SMALLER:
            cell.source = pattern.sub(put, cell.source)
    return book


def run(book: Any) -> Any:
    """Execute a notebook in a new kernel and an empty folder.

    Args:
        book: Its outputs are put into it.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as sockets:
        # Over TCP the kernel warns that anybody may listen.
        kernel = Config({"ConnectionFileMixin": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        NotebookClient(book, config=kernel, timeout=TIMEOUT, resources={"metadata": {"path": folder}}).execute()
    return tidy(book)


def tidy(book: Any) -> Any:
    """Without when it ran, by which Python, and the places of bars that are empty by now.

    Args:
        book: Executed.
    """
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("data") != {"text/plain": ""}]
    book.metadata.get("language_info", {}).pop("version", None)
    return book


def make(script: Path) -> str:
    """Render a script into the notebook beside it.

    Args:
        script: One of `scripts`.

    Returns:
        What was made, and how long it took.
    """
    began = time.monotonic()
    target = script.with_suffix(".ipynb")
    nbformat.write(run(read(script)), target)
    return f"{target.name}: {time.monotonic() - began:.0f} s, {target.stat().st_size / 1e6:.1f} MB"


def main(names: Iterable[str]) -> None:
    """Render all notebooks, or those whose numbers are given.

    Args:
        names: Numbers, `1` to `6`.
    """
    began = time.monotonic()
    chosen = [script for script in scripts() if not names or script.name[0] in names]
    with ThreadPoolExecutor(2) as pool:
        for told in pool.map(make, sorted(chosen, key=lambda script: script.name[0] not in LONG)):
            print(told, flush=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"all: {time.monotonic() - began:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processor")


if __name__ == "__main__":
    main(sys.argv[1:])
