"""How often a hijack works: the efficacy score of every scheme and number of sentences, with intervals and controls."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from lcalens.core.cells import CellStore
from lcalens.core.errors import LcalensError
from lcalens.core.manifest import Manifest
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import active_hooks, provenance_of
from lcalens.core.results import Result
from lcalens.core.stamp import holds_steady, stamp
from lcalens.core.tokenizer_stamp import ModelTokenizer
from lcalens.core.tokens import source_tokenizer
from lcalens.core.work import Piece, finish
from lcalens.core.workers import check_jobs
from lcalens.llm.efficacy.config import EfficacyConfig, check_config
from lcalens.llm.efficacy.parts import CODE, QUANTITIES, Part, Reading, chunks, key_of, part_of, score_part, told_by
from lcalens.llm.efficacy.study import Study
from lcalens.llm.efficacy.tables import summarise, unmeasured
from lcalens.llm.facts.facts import Fact, Facts, facts_record, objects_by_relation
from lcalens.llm.prompts.named import Scheme
from lcalens.llm.prompts.related import EmbeddingNeighbours, RelatedTable

SAME_FIRST_TOKEN = "the objects begin with the same token"


@holds_steady
def efficacy(
    model: Any,
    facts: Facts | Sequence[Fact],
    *,
    schemes: Sequence[str] | str | Mapping[str, str | Scheme] = EfficacyConfig.schemes,
    counts: Sequence[int] = EfficacyConfig.counts,
    scoring: str = EfficacyConfig.scoring,
    chat: bool = EfficacyConfig.chat,
    related: str = EfficacyConfig.related,
    seed: int = EfficacyConfig.seed,
    join: str | None = EfficacyConfig.join,
    batch: int | None = EfficacyConfig.batch,
    out: str | os.PathLike[str] | None = None,
    n_jobs: int = 1,
    progress: bool | ProgressCallback = True,
) -> Result:
    """How often a model prefers the false object, before and behind the sentences of each scheme.

    The efficacy score ES is the share of facts with log Pr[false] > log Pr[true] (Meng et al. 2022); retention is
    1 - ES. n = 0 is always measured, as every test is against it.

    Args:
        model: A TransformerBridge, from `load_model` or elsewhere.
        facts: The facts, from `load_facts` or a list of `Fact`.
        schemes: See `EfficacyConfig`, as for the next five; or your own names with sentences or `Scheme` objects.
        counts: Numbers of sentences.
        scoring: `"whole"` or `"first"`; `"first"` leaves out facts whose objects begin alike, and counts them.
        chat: Ask through the chat template.
        related: `"table"` or `"embedding"`.
        seed: Of everything drawn.
        join: What stands between prompts and objects; None finds it.
        batch: The most tokens that run at once, padding included: more suits an accelerator, fewer a small memory. One
            prompt is never cut. Numbers of two sizes differ by rounding.
        out: A folder where finished parts are kept: a second run computes only what is missing.
        n_jobs: How many processes compute, each with the model and one thread; 1 is this one with its own threads, and
            -1 one per core. They are joblib's, or those that your `joblib.parallel_config` names.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes example, scheme and n, with `logp_true` and `logp_false` in nats, `greedy` (1 where
        greedy decoding gives the true object, or with `scoring="first"` its first token) and `greedy_false` (the same
        of the false one). Its tables: `summary` (ES, retention, mean log odds, changes, tests, for three subsets of the
        facts: see
        `lcalens.llm.efficacy.tables`), `controls` and `by_relation`, all long (`wide(name)` has a column for each
        quantity), and `impossible`, which counts what could not be made or not be scored exactly. A scheme of which
        nothing could be measured is in `provenance["unmeasured"]` with the reason. `true_tokens` and `false_tokens` of
        its examples spell the tokens that are scored behind the clean prompt.

    Raises:
        LcalensError: An argument that cannot be used; the message names it and the fix.

    Example:
        >>> result = efficacy(model, facts, schemes=("dont-think", "unrelated"), counts=(0, 1))
        >>> result.wide("summary")
        >>> result.plot()
    """
    config, wordings = check_config(schemes, counts, scoring, chat, related, seed, join, batch)
    n_jobs = check_jobs(n_jobs, model)
    facts = _as_facts(facts)
    if not len(facts):
        raise LcalensError("facts: there are none; load some with load_facts().")
    words = (
        RelatedTable(source_tokenizer(model))
        if config.related == "table"
        else EmbeddingNeighbours(model, objects_by_relation(facts).values())
    )
    store = CellStore(None if active_hooks(model) else out)
    study = Study(model, facts, config, wordings, words)
    parts = study.check_prompts()
    settings = {
        "config": asdict(config),
        "schemes": {
            name: {"role": one.role, "control": one.control, "sentence": one.summary} for name, one in wordings.items()
        },
    }
    manifest = Manifest(
        store, "efficacy", code=CODE, model=model, settings=settings, data=lambda: {"facts": facts_record(facts)}
    )
    measured = _measure(study, store, manifest, parts, n_jobs, progress)
    if not any(true for true, _ in measured.spelled):
        raise LcalensError(f"facts: none of {len(facts)} can be scored exactly ({measured.reasons()}).")
    examples = _examples(facts, known=measured.values["greedy"][:, 0, 0] == 1)
    examples[["true_tokens", "false_tokens"]] = measured.spelled
    axes = {"example": tuple(range(len(facts))), "scheme": config.schemes, "n": config.counts}
    settings |= {
        "facts": facts_record(facts),
        "cells": {"loaded": store.loaded, "computed": store.computed},
        "logits": "after any soft cap",
    }
    tables = summarise(examples, axes, measured.values, measured.impossible, seed=config.seed, wordings=wordings)
    settings["unmeasured"] = unmeasured(axes, measured.values, tables["impossible"])
    return Result(
        kind="efficacy",
        axes=axes,
        values=measured.values,
        units={"logp_true": "nats", "logp_false": "nats", "greedy": "share", "greedy_false": "share"},
        examples=examples,
        tables=tables,
        provenance=provenance_of(model, path=sorted(measured.paths), settings=settings),
    )


class _Measured:
    """What has been measured so far, and of what it could not be and why.

    Attributes:
        values: Each quantity by fact, scheme and number of sentences; NaN where there is nothing.
        spelled: The tokens that are scored behind each fact's clean prompt, of the true and of the false object.
        impossible: How many prompts of a scheme and number of sentences could not be made or scored, by reason.
        paths: How the model was run.
    """

    def __init__(self, facts: Facts, config: EfficacyConfig):
        self._config = config
        self._rows = {fact.case_id: row for row, fact in enumerate(facts)}
        shape = (len(facts), len(config.schemes), len(config.counts))
        self.values = {name: np.full(shape, np.nan) for name in QUANTITIES}
        self.spelled = [("", "")] * len(facts)
        self.impossible: Counter[tuple[str, int, str]] = Counter()
        self.paths: set[str] = set()
        self._alike: set[Any] = set()
        self._missing: dict[tuple[str, int], set[Any]] = {}  # facts that are counted already

    def leave_out(self, index: int, problems: Iterable[tuple[Any, int, str]]) -> None:
        """Count prompts that cannot be scored, by case id, n and reason; a clean one is missing from every scheme."""
        schemes = self._config.schemes if index < 0 else self._config.schemes[index : index + 1]
        for case_id, n, reason in problems:
            self.impossible.update((scheme, n, reason) for scheme in schemes)
            if self._config.scoring != "whole":
                for scheme in schemes:
                    self._missing.setdefault((scheme, n), set()).add(case_id)

    def add(self, part: Part, cell: Mapping[str, np.ndarray]) -> None:
        """Put a cell's numbers in their places; a clean prompt's are those of every scheme at n = 0."""
        whole, told = self._config.scoring == "whole", told_by(cell)
        problems = ((part.prompts[i], problem) for i, problem in told.problems.items())
        self.leave_out(part.index, ((prompt.fact.case_id, prompt.n, problem) for prompt, problem in problems))
        if told.path:
            self.paths.add(told.path)
        for i, prompt in enumerate(part.prompts):
            if i in told.problems:
                continue
            row = self._rows[prompt.fact.case_id]
            if told.spelled is not None:
                self.spelled[row] = told.spelled[i]
            if not whole and cell["alike"][i]:
                self._alike |= {prompt.fact.case_id} if part.index < 0 else set()
                continue
            at = row, slice(None) if part.index < 0 else part.index, self._config.counts.index(prompt.n)
            for name in QUANTITIES:
                self.values[name][at] = cell[name if whole else f"first_{name}"][i]

    def leave_out_alike(self) -> None:
        """Count facts whose objects begin with the same token as missing everywhere: the first token tells nothing."""
        for scheme in self._config.schemes:
            for n in self._config.counts:
                alike = self._alike - self._missing.get((scheme, n), set())
                if alike:
                    self.impossible[scheme, n, SAME_FIRST_TOKEN] += len(alike)

    def reasons(self) -> str:
        """Every reason once."""
        return "; ".join(sorted({reason for _, _, reason in self.impossible}))


def _measure(
    study: Study, store: CellStore, manifest: Manifest, parts: int, n_jobs: int, progress: bool | ProgressCallback
) -> _Measured:
    measured, config = _Measured(study.facts, study.config), study.config
    with progress_callback(progress, unit="prompts") as report:
        told = _Told(report, study.count)
        how = Reading(ModelTokenizer(study.model), config.chat, config.join, config.batch)
        pieces = _pieces(study, how, store, manifest, parts, measured, told)
        work, whose = partial(score_part, how=how), how.tokenizer.stamp if n_jobs != 1 else ""
        with finish(store, pieces, work, study.model, code=CODE, n_jobs=n_jobs, tokenizer=whose) as cells:
            for part, cell, _ in cells:
                measured.add(part, cell)
                told.add(len(part.prompts), "clean" if part.index < 0 else config.schemes[part.index])
    measured.leave_out_alike()
    manifest.end()
    return measured


class _Told:
    """What progress is told.

    Args:
        report: Whom it is told.
        total: How many prompts there are.
    """

    def __init__(self, report: ProgressCallback, total: int):
        self._report, self._done, self._total = report, 0, total

    def begin(self, scheme: str, impossible: int) -> None:
        """A scheme is begun."""
        self._total -= impossible
        self.add(0, scheme)

    def add(self, prompts: int, scheme: str) -> None:
        """Prompts of a scheme are done."""
        self._done += prompts
        self._report(self._done, self._total, scheme)


def _pieces(
    study: Study,
    how: Reading,
    store: CellStore,
    manifest: Manifest,
    total: int,
    measured: _Measured,
    told: _Told,
) -> Iterator[Piece]:
    """Every part with its key; prompts that cannot be made are counted on the way.

    One scheme's prompts at a time: memory does not grow with the number of schemes.
    """
    whose = stamp(study.model)
    for index in range(-1, len(study.config.schemes)):
        hijacks = study.prompts(index)
        measured.leave_out(index, ((item.fact.case_id, item.n, item.reason) for item in hijacks.impossible))
        told.begin("clean" if index < 0 else study.config.schemes[index], len(hijacks.impossible))
        parts = [part_of(index, chunk, study.model, how) for chunk in chunks(hijacks.prompts)]
        keys = [key_of(whose, part, how) if store.folder else "" for part in parts]
        manifest.expect(keys, total=total)
        yield from map(Piece, keys, parts)


def _as_facts(facts: Any) -> Facts:
    if isinstance(facts, Facts):
        return facts
    if not isinstance(facts, Iterable):
        raise LcalensError(
            f"facts: expected facts from load_facts() or a list of Fact, got {type(facts).__name__} ({facts!r:.60})."
        )
    return Facts(facts)


def _examples(facts: Facts, *, known: np.ndarray) -> pd.DataFrame:
    frame = facts.to_frame().drop(columns=["prompt"])
    # A table's column is of one type, and its whole numbers are of 64 bits.
    if not all(isinstance(case_id, int) and abs(case_id) < 1 << 63 for case_id in frame["case_id"]):
        frame["case_id"] = frame["case_id"].map(str)
    return frame.assign(known=known)
