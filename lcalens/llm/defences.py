"""`evaluate_defence`: what defences give back of a hijack, and what they take of everything else, on one frontier."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from lcalens.core.cells import CellStore, cell_key, content_key
from lcalens.core.checks import check_choice, check_int
from lcalens.core.errors import LcalensError
from lcalens.core.limits import check_length
from lcalens.core.manifest import Manifest
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import active_hooks, provenance_of
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.stamp import holds_steady, stamp
from lcalens.core.tokens import encode, source_tokenizer
from lcalens.core.work import Piece, finish
from lcalens.core.workers import check_jobs
from lcalens.llm.contrasts import contrast_facts
from lcalens.llm.defence_summary import CLEAN, PLAIN, grouped, summary_of
from lcalens.llm.facts.facts import Fact, Facts, facts_record
from lcalens.llm.plain import HONEST, honest_contexts, plain_texts
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.defence.defence import Defence
from lcalens.mechanism.defence.last import Way, prompts, way_of

NONE = "none"


@holds_steady
@torch.no_grad()
def evaluate_defence(
    model: Any,
    defences: Mapping[str, Defence | Sequence[Defence]],
    facts: Facts | Sequence[Fact],
    *,
    schemes: Sequence[str | tuple[str, int]] = ("dont-think", "negation", "factual"),
    n: int = 1,
    honest: Sequence[str] = HONEST,
    texts: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    n_jobs: int = 1,
    progress: bool | ProgressCallback = True,
) -> Result:
    """Measure defences on facts, schemes and texts that none of them was made of.

    A preference is read of the next token alone: the false object's first token against the true one's. The hijack is
    never pointed out to the defence. The undefended model is always measured, as `none`.

    Args:
        model: The TransformerBridge that the defences were made for.
        defences: Names with defences; of a name with several (draws of random heads) the mean is told, with the middle
            95% of them.
        facts: Facts that ranked no heads and fitted no detector.
        schemes: Names of schemes, templates such as `"Forget about {target_false}."`, or pairs of either with a number
            of sentences; none for clean prompts and texts alone.
        n: How many sentences of those that have no number of their own.
        honest: Kinds of honest context, see `lcalens.llm.plain.honest_contexts`.
        texts: Plain texts, read before their last token; the shipped ones of the half `evaluation` by default, and `()`
            for none.
        limit: The most facts, chosen at random.
        seed: Of everything drawn.
        out: A folder in which every finished condition is kept; nothing is where hooks are attached.
        n_jobs: How many processes compute, each with the model and one thread; 1 is this one with its own threads, and
            -1 one per core. They are joblib's, or those that your `joblib.parallel_config` names.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes example (fact), defence and condition (`clean`, the schemes, the kinds of honest
        context): `difference`, logit(false) - logit(true), and `top`, the most likely next token. Its table `summary`
        has, with 95% bootstrap intervals over relations:

        - for a scheme `es`; `recovery`, (ES hijacked - ES defended) / (ES hijacked - ES clean), NaN where the hijack
          does not raise ES, and without an interval where that of its rise holds 0; `returned`, the share of facts
          flipped by the hijack whose clean preference is back; and `agreement`, the share of all facts that prefer what
          they prefer clean and undefended;
        - for `clean` its `es`; `flips` of preference; `accuracy`, the share whose most likely next token is the true
          object's first; and `top flips`, of most likely tokens;
        - for a kind of honest context `kept`, of the facts that it rightly changes undefended the share that still
          follow it;
        - for plain text `kl`, KL(undefended || defended) of the next token in nats, and the last tokens' `perplexity`.

    Raises:
        LcalensError: An argument that cannot be used, or a defence made for other weights.

    Example:
        >>> defence = defend(model, contrast, heads=leading(patch(model, contrast), 10, by="carrying"))
        >>> found = evaluate_defence(model, {"boundary cut": defence}, facts, schemes=("dont-think",))
        >>> found.wide()  # `facts` should be others than those of the contrast
    """
    listed = _listed(defences)
    check_int("n", n, low=1)
    check_int("seed", seed, low=0)
    n_jobs = check_jobs(n_jobs, model)
    kinds = [check_choice("honest", kind, HONEST) for kind in _several("honest", honest)]
    facts = facts if isinstance(facts, Facts) else Facts(facts)
    facts = facts if limit is None else facts.sample(check_int("limit", limit, low=1), seed)
    named = _schemes(schemes, n)
    contrasts = {
        name: contrast_facts(model, facts, scheme=scheme, n=count, control="none", seed=seed)
        for name, (scheme, count) in (named or {"dont-think": ("dont-think", 1)}).items()
    }
    examples, rows, begins = _rows(model, facts, contrasts, kinds, seed)
    rows = {name: some for name, some in rows.items() if name in (CLEAN, *named, *kinds)}
    plain = plain_texts("evaluation", seed=seed) if texts is None else _several("texts", texts)
    read = _plain_rows(model, plain)
    texts_read = [row for some in [*rows.values(), [row for row, _ in read]] for row in some if row]
    check_length(model, max(map(len, texts_read)))
    for _, defence in listed.values():
        defence.check(model)
    way = way_of(model, texts_read)
    every = {NONE: None} | {name: defence for name, (_, defence) in listed.items()}
    shape = (len(examples), len(every), len(rows))
    difference, top = np.full(shape, np.nan), np.full(shape, np.nan)
    kl, surprise = np.full((len(read), len(every)), np.nan), np.full((len(read), len(every)), np.nan)
    answers = torch.tensor(examples[["true_token", "false_token"]].to_numpy())
    total = len(every) * sum(row is not None for some in [*rows.values(), read] for row in some)
    store = CellStore(None if active_hooks(model) else out)
    tasks: list[_Task] = [_OfFacts(name, column, rows[name], begins.get(name)) for column, name in enumerate(rows)]
    tasks += [_OfTexts(PLAIN, read)] if read else []
    pieces = [Piece("" if out is None else _key_of(model, listed, task, answers), task) for task in tasks]
    settings = {
        "schemes": {name: list(one) for name, one in named.items()},
        "honest": kinds,
        "texts": len(read),
        "seed": seed,
        "defences": {name: {"method": one.method, "heads": [list(head) for head in one.heads],
                            "where": one.where, **dict(one.record)} for name, (_, one) in listed.items()},
    }  # fmt: skip
    manifest = Manifest(
        store, "evaluate_defence", code=_CODE, model=model, settings=settings,
        data=lambda: {"facts": len(examples), "chosen": facts_record(facts),
                      "prompts": content_key([rows, read, answers.tolist()])},
    )  # fmt: skip
    manifest.expect([piece.key for piece in pieces])
    plan, done = _Plan(every, way, answers), 0
    with (
        progress_callback(progress, unit="prompts") as report,
        finish(store, pieces, plan.measure, model, code=_CODE, n_jobs=n_jobs) as cells,
    ):
        for task, cell, _ in cells:
            if isinstance(task, _OfFacts):
                difference[:, :, task.column], top[:, :, task.column] = cell["difference"], cell["top"]
            else:
                kl, surprise = cell["kl"], cell["surprise"]
            done += len(every) * sum(row is not None for row in task.rows)
            report(done, total, task.name)
    manifest.end()
    axes = {EXAMPLE: tuple(range(len(examples))), "defence": tuple(every), "condition": tuple(rows)}
    group = {name: label for name, (label, _) in listed.items()}
    summary = summary_of(difference, top, kl, surprise, axes["defence"], axes["condition"], kinds, examples)
    return Result(
        kind="defence",
        axes=axes,
        values={"difference": difference, "top": top},
        examples=examples,
        tables={"summary": grouped(summary, group)},
        units={"difference": "logits", "top": "token id"},
        provenance=provenance_of(
            model,
            path="hooks",
            settings=settings
            | {
                "padded": way.padded,
                "cached": way.cached,
                "cells": {"loaded": store.loaded, "computed": store.computed},
                "facts": len(examples),
            },
        ),
    )


class _OfFacts(NamedTuple):
    """One condition's prompts.

    Attributes:
        name: The condition.
        column: Its place on the axis.
        rows: Each fact's tokens; None where it has none.
        begins: Where each fact's own prompt begins; None where that is the beginning.
    """

    name: str
    column: int
    rows: Sequence[tuple[int, ...] | None]
    begins: Sequence[int | None] | None


class _OfTexts(NamedTuple):
    """Plain texts.

    Attributes:
        name: What they are called in progress.
        rows: Each text's tokens but the last, and the last.
    """

    name: str
    rows: Sequence[tuple[tuple[int, ...], int]]


_Task = _OfFacts | _OfTexts


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is measured of every condition.

    Attributes:
        every: Names with defences; None for the undefended model.
        way: How prompts can be run.
        answers: Each fact's true and false token.
    """

    every: Mapping[str, Defence | None]
    way: Way
    answers: torch.Tensor

    @torch.no_grad()
    def measure(self, model: Any, task: _Task) -> tuple[dict[str, np.ndarray], int]:
        """A condition's arrays; no batch of it is ever halved.

        Args:
            model: A TransformerBridge.
            task: The condition.
        """
        if isinstance(task, _OfTexts):
            return _of_texts(model, self.every, task.rows, self.way), 0
        return _of_facts(model, self.every, task.rows, self.way, self.answers, task.begins), 0


def _key_of(model: Any, listed: Mapping[str, Any], task: _Task, answers: torch.Tensor) -> str:
    """A finished condition's key: the model, what defends it, the prompts and what is asked of them."""
    asked = (
        [[row for row, _ in task.rows], [last for _, last in task.rows], None]
        if isinstance(task, _OfTexts)
        else [task.rows, answers.tolist(), task.begins]
    )
    what: list[Any] = [stamp(model), *asked]
    for _, one in listed.values():
        detector = one.detector and asdict(one.detector) | {"weights": one.detector.weights.tolist()}
        values = {name: value.tolist() for name, value in one.values.items()}
        what.append([one.method, one.heads, one.where, one.ends, detector, values])
    return cell_key(_CODE, what)


def _of_facts(
    model: Any, every: Mapping[str, Defence | None], rows: Any, way: Way, answers: torch.Tensor, begins: Any
) -> dict[str, np.ndarray]:
    """Of every prompt and defence logit(false) - logit(true), and the most likely token; NaN where there is none."""
    found = {name: np.full((len(rows), len(every)), np.nan) for name in ("difference", "top")}
    for some in prompts(model, rows, way):
        pair = answers[some.indices]
        for at, defence in enumerate(every.values()):
            logits = some.logits if defence is None else some.under(defence, begins)
            both = logits.gather(1, pair.to(logits.device))
            found["difference"][some.indices, at] = (both[:, 1] - both[:, 0]).cpu().numpy()
            found["top"][some.indices, at] = logits.argmax(-1).cpu().numpy()
    return found


def _of_texts(
    model: Any, every: Mapping[str, Defence | None], read: Sequence[tuple[tuple[int, ...], int]], way: Way
) -> dict[str, np.ndarray]:
    """Of every text and defence KL(undefended || defended) of its last token, and how surprising that token is."""
    found = {name: np.full((len(read), len(every)), np.nan) for name in ("kl", "surprise")}
    for some in prompts(model, [row for row, _ in read], way):
        before = some.logits.log_softmax(-1)
        follows = torch.tensor([read[index][1] for index in some.indices], device=before.device)[:, None]
        for at, defence in enumerate(every.values()):
            logs = before if defence is None else some.under(defence).log_softmax(-1)
            found["kl"][some.indices, at] = (before.exp() * (before - logs)).sum(-1).clamp(min=0).cpu().numpy()
            found["surprise"][some.indices, at] = -logs.gather(1, follows)[:, 0].cpu().numpy()
    return found


_CODE = (_of_facts, _of_texts)


def _listed(defences: Any) -> dict[str, tuple[str, Defence]]:
    """Every defence by a name of its own, with the name it was given under."""
    if not isinstance(defences, Mapping) or not defences:
        raise LcalensError(
            f"defences: expected names with defences, {{'boundary cut': defence}}, got {defences!r:.60}."
        )
    found: dict[str, tuple[str, Defence]] = {}
    for name, given in defences.items():
        some = [given] if isinstance(given, Defence) else list(given)
        if not some or not all(isinstance(one, Defence) for one in some):
            raise LcalensError(f"defences: {name!r:.40} is {given!r:.40}, no defence that defend() made.")
        if name == NONE:
            raise LcalensError(f"defences: {NONE!r} is the undefended model's name; give yours another.")
        for number, one in enumerate(some, 1):
            own = str(name) if len(some) == 1 else f"{name} {number}"
            if own in found:
                raise LcalensError(f"defences: two are called {own!r:.60}, one of them by its number; rename one.")
            found[own] = str(name), one
    return found


def _several(name: str, values: Any) -> list[str]:
    if not isinstance(values, list | tuple) or not all(isinstance(one, str) for one in values):
        raise LcalensError(f"{name}: expected several texts, got {values!r:.60}.")
    return list(values)


def _schemes(schemes: Any, n: int) -> dict[str, tuple[str, int]]:
    """Each condition's name, with its scheme and how many sentences."""
    if isinstance(schemes, str | bytes) or not isinstance(schemes, Sequence):
        raise LcalensError(f"schemes: expected several names, templates or pairs (name, n), got {schemes!r:.60}.")
    found: dict[str, tuple[str, int]] = {}
    for one in schemes:
        if isinstance(one, str):
            found[one] = one, n
            continue
        if not isinstance(one, Sequence) or len(one) != 2 or not isinstance(one[0], str):
            raise LcalensError(f"schemes: expected a name, a template or a pair (name, n), got {one!r:.60}.")
        count = check_int("schemes", one[1], low=1)
        found[f"{one[0]}, n = {count}"] = one[0], count
    return found


def _plain_rows(model: Any, texts: Sequence[str]) -> list[tuple[tuple[int, ...], int]]:
    """Each text's tokens but the last, and the last."""
    encoded = encode(source_tokenizer(model), list(texts)) if texts else ()
    rows = [tuple(one.ids) for one in encoded]
    short = [text for text, row in zip(texts, rows, strict=True) if len(row) < 2]
    if short:
        raise LcalensError(f"texts: {short[0]!r:.40} has no two tokens; the last is what the ones before are read for.")
    return [(row[:-1], row[-1]) for row in rows]


def _rows(
    model: Any, facts: Facts, contrasts: dict[str, Contrast], kinds: list[str], seed: int
) -> tuple[pd.DataFrame, dict[str, list[tuple[int, ...] | None]], dict[str, list[int | None]]]:
    """The facts that some scheme can hijack, each condition's tokens for them, and where their prompts begin."""
    columns = ["case_id", "relation_id", "subject", "target_true", "target_false"]
    known: dict[Any, dict[str, Any]] = {}
    tokens: dict[str, dict[Any, tuple[int, ...]]] = {CLEAN: {}} | {scheme: {} for scheme in contrasts}
    for scheme, contrast in contrasts.items():
        for row, example in enumerate(contrast.examples[columns].to_dict("records")):
            answers = {"true_token": contrast.true[row][0], "false_token": contrast.false[row][0]}
            known.setdefault(example["case_id"], {str(key): value for key, value in example.items()} | answers)
            tokens[CLEAN][example["case_id"]] = contrast.clean[row]
            tokens[scheme][example["case_id"]] = contrast.hijacked[row]
    order = [fact for fact in facts if _key(fact, known) is not None]
    keys = [_key(fact, known) for fact in order]
    found: dict[str, list[tuple[int, ...] | None]] = {
        name: [some.get(key) for key in keys] for name, some in tokens.items()
    }
    begins = {scheme: _begins(contrast, keys) for scheme, contrast in contrasts.items()}
    tokenizer = source_tokenizer(model)
    for kind in kinds:
        texts = honest_contexts(Facts(order, pool=facts.pool), kind, seed=seed)
        told = [text for text in texts if text is not None]
        encoded = iter(encode(tokenizer, told) if told else ())
        found[kind] = [None if text is None else tuple(next(encoded).ids) for text in texts]
    return pd.DataFrame([known[key] for key in keys]), found, begins


def _key(fact: Fact, known: Mapping[Any, Any]) -> Any:
    """The fact's id as the contrasts' tables have it."""
    return next((key for key in (fact.case_id, str(fact.case_id)) if key in known), None)


def _begins(contrast: Contrast, keys: Sequence[Any]) -> list[int | None]:
    """Where each fact's prompt begins in its hijacked run."""
    cases = contrast.examples["case_id"]
    first = {case: spans[0][0] for case, spans in zip(cases, contrast.spans["prompt"], strict=True)}
    return [first.get(key) for key in keys]
