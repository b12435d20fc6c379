"""How often a hijack works: the efficacy score of every scheme and number of sentences, with intervals and controls."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from lcalens.core.cells import CellStore, cell_key
from lcalens.core.chat import chat_prompt
from lcalens.core.errors import LcalensError
from lcalens.core.limits import check_length, context_limit
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import active_hooks, provenance_of
from lcalens.core.results import Result
from lcalens.core.stamp import holds_steady, stamp
from lcalens.core.tokens import encode, follow, source_tokenizer, spell
from lcalens.llm.efficacy.config import EfficacyConfig, check_config
from lcalens.llm.efficacy.scoring import Continuation, score
from lcalens.llm.efficacy.tables import summarise
from lcalens.llm.facts.facts import Fact, Facts
from lcalens.llm.prompts.hijack import HijackedPrompt, Hijacks, hijack_prompts
from lcalens.llm.prompts.related import EmbeddingNeighbours, RelatedTable
from lcalens.llm.prompts.words import RelatedWords

_CELL_FACTS = 64
_QUANTITIES = ("logp_true", "logp_false", "greedy")
_MEASURED = (*_QUANTITIES, *(f"first_{name}" for name in _QUANTITIES), "alike")
SAME_FIRST_TOKEN = "the objects begin with the same token"


@holds_steady
def efficacy(
    model: Any,
    facts: Facts | Sequence[Fact],
    *,
    schemes: Sequence[str] | str = EfficacyConfig.schemes,
    counts: Sequence[int] = EfficacyConfig.counts,
    scoring: str = EfficacyConfig.scoring,
    chat: bool = EfficacyConfig.chat,
    related: str = EfficacyConfig.related,
    seed: int = EfficacyConfig.seed,
    join: str | None = EfficacyConfig.join,
    out: str | os.PathLike[str] | None = None,
    progress: bool | ProgressCallback = True,
) -> Result:
    """How often a model prefers the false object, before and behind the sentences of each scheme.

    The efficacy score ES is the share of facts with log Pr[false] > log Pr[true] (Meng et al. 2022); retention is
    1 - ES. n = 0 is always measured, as every test is against it.

    Args:
        model: A TransformerBridge, from `load_model` or elsewhere.
        facts: The facts, from `load_facts` or a list of `Fact`.
        schemes: See `EfficacyConfig`, as for the next five.
        counts: Numbers of sentences.
        scoring: `"whole"` or `"first"`; `"first"` leaves out facts whose objects begin alike, and counts them.
        chat: Ask through the chat template.
        related: `"table"` or `"embedding"`.
        seed: Of everything drawn.
        join: What stands between prompts and objects; None finds it.
        out: A folder where finished parts are kept: a second run computes only what is missing.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes example, scheme and n, with `logp_true` and `logp_false` in nats and `greedy` (1 where
        greedy decoding gives the true object). Its tables: `summary` (ES, retention, mean log odds, changes, tests, for
        three subsets of the facts: see `lcalens.llm.efficacy.tables`), `controls`, `by_relation`,
        `impossible`, which counts what could not be made or not be scored exactly. `true_tokens` and `false_tokens` of
        its examples spell the tokens that are scored behind the clean prompt.

    Raises:
        LcalensError: An argument that cannot be used; the message names it and the fix.
    """
    config = check_config(schemes, counts, scoring, chat, related, seed, join)
    facts = _as_facts(facts)
    if not len(facts):
        raise LcalensError("facts: there are none; load some with load_facts().")
    tokenizer = source_tokenizer(model)
    words = (
        RelatedTable(tokenizer)
        if config.related == "table"
        else EmbeddingNeighbours(model, _objects_by_relation(facts))
    )
    positions = {fact.case_id: i for i, fact in enumerate(facts)}
    shape = (len(facts), len(config.schemes), len(config.counts))
    values = {name: np.full(shape, np.nan) for name in _QUANTITIES}
    impossible: Counter[tuple[str, int, str]] = Counter()
    store = CellStore(None if active_hooks(model) else out)
    paths: set[str] = set()
    spelled = [("", "")] * len(facts)
    _check_lengths(model, facts, config, words)
    with progress_callback(progress, unit="prompts") as report:
        alike = 0
        done, total = 0, len(facts) * (1 + len(config.schemes) * len(config.counts[1:]))
        # One scheme's prompts at a time: memory does not grow with the number of schemes.
        for index in range(-1, len(config.schemes)):
            what = "clean" if index < 0 else config.schemes[index]
            found = _prompts(facts, config, words, index)
            impossible.update((what, item.n, item.reason) for item in found.impossible)
            total -= len(found.impossible)
            report(done, total, what)
            for chunk in _chunks(found.prompts):
                done += len(chunk)
                chunk, continuations, problems = _scorable(tokenizer, chunk, config)
                for n, reason in problems:
                    impossible.update((scheme, n, reason) for scheme in (config.schemes if index < 0 else [what]))
                cell = _cell(store, continuations, model, paths) if chunk else {}
                for i, prompt in enumerate(chunk):
                    row = positions[prompt.fact.case_id]
                    if index < 0:
                        true, false = (spell(tokenizer, item.ids[item.start :]) for item in continuations[2 * i :][:2])
                        spelled[row] = true, false
                    if config.scoring == "first" and cell["alike"][i]:
                        alike += index < 0
                        continue
                    at = row, slice(None) if index < 0 else index, config.counts.index(prompt.n)
                    for name in _QUANTITIES:
                        values[name][at] = cell[name if config.scoring == "whole" else f"first_{name}"][i]
                report(done, total, what)

    if not any(true for true, _ in spelled):
        raise LcalensError(f"facts: none of {len(facts)} can be scored exactly ({_listed_reasons(impossible)}).")
    examples = _examples(facts, known=values["greedy"][:, 0, 0] == 1)
    examples[["true_tokens", "false_tokens"]] = spelled
    impossible.update(
        {(scheme, n, SAME_FIRST_TOKEN): alike for scheme in config.schemes for n in config.counts if alike}
    )
    axes = {"example": tuple(range(len(facts))), "scheme": config.schemes, "n": config.counts}
    settings = {
        "facts": {"source": facts.source, "digest": facts.digest, "count": len(facts), "skipped": len(facts.skipped)},
        "config": asdict(config),
        "cells": {"loaded": store.loaded, "computed": store.computed},
        "logits": "after any soft cap",
    }
    provenance = provenance_of(model, path=sorted(paths), settings=settings)
    tables = summarise(examples, axes, values, impossible, seed=config.seed)
    return Result(kind="efficacy", axes=axes, values=values, examples=examples, tables=tables, provenance=provenance)


def _objects_by_relation(facts: Facts) -> list[set[str]]:
    objects: dict[str, set[str]] = {}
    for fact in facts.pool:
        objects.setdefault(fact.relation_id, set()).update((fact.target_true, fact.target_false))
    return list(objects.values())


def _prompts(facts: Facts, config: EfficacyConfig, words: RelatedWords, index: int) -> Hijacks:
    """One scheme's hijacked prompts; the clean ones for index -1, once for all schemes."""
    if index < 0:
        return hijack_prompts(facts, "neutral", counts=(0,))
    if not config.counts[1:]:
        return Hijacks((), ())
    return hijack_prompts(facts, config.schemes[index], counts=config.counts[1:], seed=config.seed, words=words)


def _chunks(prompts: Sequence[HijackedPrompt]) -> Iterator[Sequence[HijackedPrompt]]:
    """Prompts in parts of some 64 facts; facts with the same sentences together, so that they share them."""
    by_fact: dict[Any, list[HijackedPrompt]] = {}
    for prompt in prompts:
        by_fact.setdefault(prompt.fact.case_id, []).append(prompt)
    groups = sorted(by_fact.values(), key=lambda group: group[-1].text)
    for first in range(0, len(groups), _CELL_FACTS):
        yield [prompt for group in groups[first : first + _CELL_FACTS] for prompt in group]


def _check_lengths(model: Any, facts: Facts, config: EfficacyConfig, words: RelatedWords) -> None:
    """Refuse prompts that the model's context does not hold, before any of them is run."""
    limit = context_limit(model)
    if limit is None:
        return
    tokenizer = source_tokenizer(model)
    frame = len(chat_prompt(tokenizer, "x")) if config.chat else 0
    for index in range(-1, len(config.schemes)):
        prompts = _prompts(facts, config, words, index).prompts
        objects = [max(p.fact.target_true, p.fact.target_false, key=len) for p in prompts]
        # A token is a byte at the least, so that few texts need to be read for this.
        sizes = [len(f"{p.text} {name}".encode()) + frame for p, name in zip(prompts, objects, strict=True)]
        long = [i for i, size in enumerate(sizes) if size + 8 > limit]
        for first in range(0, len(long), _CELL_FACTS):
            chunk = long[first : first + _CELL_FACTS]
            texts = [prompts[i].text if config.chat else f"{prompts[i].text} {objects[i]}" for i in chunk]
            check_length(model, max(len(item.ids) for item in encode(tokenizer, texts, chat=config.chat)))


def _continuations(
    tokenizer: Any, prompts: Sequence[HijackedPrompt], chat: bool, join: str | None = None
) -> tuple[list[Continuation], dict[int, str]]:
    """For each prompt the true object's tokens and the false one's behind it; and which prompts are not exact, why."""
    answers = [answer for p in prompts for answer in (p.fact.target_true, p.fact.target_false)]
    twice = [prompt for prompt in prompts for _ in range(2)]
    texts, before = [prompt.text for prompt in twice], [prompt.fact.text for prompt in twice]
    followed = follow(tokenizer, texts, answers, prompts=before, join=join, chat=chat)
    problems: dict[int, str] = {}
    for i, item in enumerate(followed):
        if item.problem:
            problems.setdefault(i // 2, item.problem)
    exact = [
        Continuation(item.ids, item.start, len(item.ids)) for i, item in enumerate(followed) if i // 2 not in problems
    ]
    return exact, problems


def _scorable(
    tokenizer: Any, chunk: Sequence[HijackedPrompt], config: EfficacyConfig
) -> tuple[list[HijackedPrompt], list[Continuation], list[tuple[int, str]]]:
    """The prompts behind which both objects can be scored exactly, with their tokens; n and reason of the others."""
    continuations, problems = _continuations(tokenizer, chunk, config.chat, config.join)
    kept = [prompt for i, prompt in enumerate(chunk) if i not in problems]
    return kept, continuations, [(chunk[i].n, problem) for i, problem in problems.items()]


def _cell(
    store: CellStore, continuations: Sequence[Continuation], model: Any, paths: set[str]
) -> dict[str, np.ndarray]:
    """One part's arrays, for both scorings at once: a function of the model's state and the tokens alone."""
    name = cell_key((_cell, score), [stamp(model), [(item.ids, item.start, item.stop) for item in continuations]])
    arrays = store.get(name)
    if arrays is not None and all(len(arrays.get(kind, ())) == len(continuations) // 2 for kind in _MEASURED):
        return arrays
    scores = score(model, continuations)
    first = np.array([item.ids[item.start] for item in continuations])
    whole = (scores.logp[::2], scores.logp[1::2], scores.greedy[::2])
    opening = (scores.first_logp[::2], scores.first_logp[1::2], scores.first_greedy[::2])
    columns = (np.array(values, dtype=np.float64) for values in (*whole, *opening, first[::2] == first[1::2]))
    arrays = dict(zip(_MEASURED, columns, strict=True))
    paths.add(scores.path)
    store.put(name, arrays)
    return arrays


def _listed_reasons(impossible: Counter[tuple[str, int, str]]) -> str:
    return "; ".join(dict.fromkeys(reason for _, _, reason in impossible))


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
