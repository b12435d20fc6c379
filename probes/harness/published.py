"""The published curves in the wheel, so that a report can show them beside a user's own: lcalens/views/report."""

import json
import re
from pathlib import Path

from lcalens.core.errors import LcalensError

FILE = Path(__file__).parents[2] / "lcalens" / "views" / "report" / "published.json"
_TITLE = "## Efficacy score ES by n, with Wilson's 95% interval"
_ESTIMATE = re.compile(r"([-\d.e]+) \[([-\d.e]+), ([-\d.e]+)\]$")


def curves(page: str, labels: dict[str, str]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """ES by model, scheme and n, of all facts drawn at random.

    Args:
        page: Of the standard run, docs/claims/hijack_curves.md.
        labels: A model's key by the label that the page gives it.

    Raises:
        LcalensError: The page has no such table, or no row of one of the models.
    """
    _, _, rest = page.partition(_TITLE)
    lines = [line for line in rest.split("\n## ")[0].splitlines() if line.startswith("|")]
    if len(lines) < 3:
        raise LcalensError("page: the curves' table is missing; run `make paper` first.")
    head = _cells(lines[0])
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {key: {} for key in labels.values()}
    for line in lines[2:]:
        row = dict(zip(head, _cells(line), strict=True))
        if row["model"] not in labels or (row["facts of"], row["subset"]) != ("random", "all"):
            continue
        by_count = found[labels[row["model"]]].setdefault(row["scheme"], {})
        for name, cell in row.items():
            estimate = _ESTIMATE.match(cell)
            if name.startswith("n = ") and estimate:
                es, low, high = map(float, estimate.groups())
                by_count[name.removeprefix("n = ")] = {"es": es, "low": low, "high": high, "facts": int(row["facts"])}
    empty = [label for label, key in labels.items() if not found[key]]
    if empty:
        raise LcalensError(f"page: it has no curve of {', '.join(empty)}; run `make paper` with these models.")
    return found


def write(page: str, sentences: dict[str, str]) -> None:
    """Write the curves of the models that can be installed, by their weights' fingerprint.

    Args:
        page: Of the standard run.
        sentences: The paper's sentence on a scheme.
    """
    from lcalens import load_model
    from lcalens.core.provenance import fingerprint
    from probes.harness.work import model_label

    labels = {}
    for name in ("smollm2", "gemma3-270m"):
        labels[model_label(name)] = fingerprint(load_model(name, progress=False))
    told = {"models": curves(page, labels), "sentences": sentences}
    FILE.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
