"""A hijack traced through a model: contrasts of facts, patched, attributed and split."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lcalens.core.errors import LcalensError
from lcalens.core.progress import ProgressCallback
from lcalens.core.results import Result
from lcalens.llm.contrasts import contrast_facts
from lcalens.mechanism.attribute import attribute
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.leading import Leading, leading
from lcalens.mechanism.patch import patch
from lcalens.mechanism.ranking import agreement, ranking
from lcalens.mechanism.split import split

_LEADING = 10
_FEWEST = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """A hijack, traced.

    Attributes:
        contrast: The facts' pairs of runs.
        ranked: Heads in order of their effect on every second fact, with their effects on the others.
        patched: Exact patching on the others.
        parts: Attention against recall, on all.
        leading: The heads that lead on every second fact, with the rule that chose them.
        twin: The split of the others, whose causal twin exchanges these heads.
        agreement: How far attribution and direct effects agree with exact patching, on the facts ranked.
    """

    contrast: Contrast
    ranked: Result
    patched: Result
    parts: Result
    leading: Leading
    twin: Result
    agreement: pd.DataFrame


def trace_facts(
    model: Any,
    facts: Any,
    *,
    scheme: str,
    n: int,
    control: Any,
    seed: int,
    out: Path | None,
    n_jobs: int,
    progress: bool | ProgressCallback,
) -> Trace:
    """Rank heads on every second fact, and measure on the others.

    Args:
        model: A TransformerBridge.
        facts: The facts.
        scheme: What hijacks them.
        n: How many sentences.
        control: The clean run's sentence.
        seed: Of what is drawn.
        out: Where finished parts are kept.
        n_jobs: As for `patch`.
        progress: As for `patch`.

    Raises:
        LcalensError: An argument that cannot be used, or fewer than four facts with a control.
    """
    contrast = contrast_facts(model, facts, scheme=scheme, n=n, control=control, seed=seed)
    if len(contrast) < _FEWEST:
        raise LcalensError(
            f"limit: {len(contrast)} facts have this scheme and control; to rank on one half and measure on the other "
            f"takes {_FEWEST} at least. Take more."
        )
    first, second = contrast[::2], contrast[1::2]
    folder = None if out is None else out / "patching"
    before, after = (patch(model, half, out=folder, n_jobs=n_jobs, progress=progress) for half in (first, second))
    estimates = {name: attribute(model, first, method=name, progress=progress) for name in ("patching", "direct")}
    rows = [
        agreement(before, estimate, k=min(_LEADING, before.values["value"][0].size)).wide().assign(of=name)
        for name, estimate in estimates.items()
    ]
    heads = leading(before, _LEADING)
    return Trace(
        contrast=contrast,
        ranked=ranking(before, held_out=after),
        patched=after,
        parts=split(model, contrast, twin=0, progress=progress),
        leading=heads,
        twin=split(model, second, twin=heads, progress=progress),
        agreement=pd.concat(rows, ignore_index=True),
    )
