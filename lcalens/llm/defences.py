"""`evaluate_defence`: what defences give back of a hijack, and what they take of everything else, on one frontier."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lcalens.core.checks import check_choice, check_int
from lcalens.core.errors import LcalensError
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import provenance_of
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.stamp import holds_steady
from lcalens.core.statistics import ratio_of_means
from lcalens.core.tokens import encode, source_tokenizer
from lcalens.llm.contrasts import contrast_facts
from lcalens.llm.facts.facts import Fact, Facts
from lcalens.llm.plain import HONEST, honest_contexts, plain_texts
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.defence.defence import Defence

NONE = "none"
_CLEAN = "clean"
_TOKENS = 1024  # run at once
_CLOSE = 1e-4
_RIGHT = {
    "fiction": 1,
    "correction": -1,
    "examples": -1,
}  # the sign of logit(false) - logit(true) that the context asks
Rows = list[tuple[int, ...] | None]


@holds_steady
@torch.no_grad()
def evaluate_defence(
    model: Any,
    defences: Mapping[str, Defence | Sequence[Defence]],
    facts: Facts | Sequence[Fact],
    *,
    schemes: Sequence[str] = ("dont-think", "negation", "factual"),
    n: int = 1,
    honest: Sequence[str] = HONEST,
    texts: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
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
        schemes: Names of schemes, or templates such as `"Forget about {target_false}."`.
        n: How many sentences of each.
        honest: Kinds of honest context, see `lcalens.llm.plain.honest_contexts`.
        texts: Plain texts, read at their end; the shipped ones of the half `evaluation` by default.
        limit: The most facts, chosen at random.
        seed: Of everything drawn.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes example (fact), defence and condition (`clean`, the schemes, the kinds of honest
        context): `difference`, logit(false) - logit(true). Its table `summary` has, with 95% bootstrap intervals over
        relations: for a scheme `es`, `recovery`, (ES hijacked - ES defended) / (ES hijacked - ES clean), `returned`,
        the share of facts flipped by the hijack whose clean preference is back, and `agreement`, the share of all facts
        that prefer what they prefer clean and undefended; for `clean` its `es` and `flips`; for a kind of honest
        context `kept`, of the facts that it rightly changes undefended the share that still follow it; for plain text
        `kl`, KL(undefended || defended) of the next token in nats.

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
    kinds = [check_choice("honest", kind, HONEST) for kind in _several("honest", honest, empty=True)]
    facts = facts if isinstance(facts, Facts) else Facts(facts)
    facts = facts if limit is None else facts.sample(check_int("limit", limit, low=1), seed)
    named = _several("schemes", schemes)
    contrasts = {
        scheme: contrast_facts(model, facts, scheme=scheme, n=n, control="none", seed=seed) for scheme in named
    }
    examples, rows = _rows(model, facts, contrasts, kinds, seed)
    plain = plain_texts("evaluation", seed=seed) if texts is None else _several("texts", texts)
    plain_rows: Rows = [tuple(one.ids) for one in encode(source_tokenizer(model), plain)]
    every = {NONE: None} | {name: defence for name, (_, defence) in listed.items()}
    difference = np.full((len(examples), len(every), len(rows)), np.nan)
    kl = np.full((len(plain_rows), len(every)), np.nan)
    undefended: list[Tensor] = []
    padded = _pads(model, rows[_CLEAN] + plain_rows)
    answers = torch.tensor(examples[["true_token", "false_token"]].to_numpy())
    with progress_callback(progress, unit="conditions") as report:
        total, done = len(every) * (len(rows) + 1), 0
        for at, (name, defence) in enumerate(every.items()):
            for column, condition in enumerate(rows.values()):
                difference[:, at, column] = _differences(model, defence, condition, answers, padded)
                done += 1
                report(done, total, name)
            kl[:, at] = _divergences(model, defence, plain_rows, undefended, padded)
            done += 1
            report(done, total, name)
    axes = {EXAMPLE: tuple(range(len(examples))), "defence": tuple(every), "condition": tuple(rows)}
    group = {name: label for name, (label, _) in listed.items()}
    summary = _summary(difference, kl, axes["defence"], list(rows), kinds, examples["relation_id"].to_numpy())
    return Result(
        kind="defence",
        axes=axes,
        values={"difference": difference},
        examples=examples,
        tables={"summary": _grouped(summary, group)},
        units={"difference": "logits"},
        provenance=provenance_of(
            model,
            path="hooks",
            settings={
                "schemes": named,
                "n": n,
                "honest": kinds,
                "texts": len(plain_rows),
                "padded": padded,
                "seed": seed,
                "facts": len(examples),
                "defences": {name: {"method": one.method, "heads": [list(head) for head in one.heads],
                                    "where": one.where, **dict(one.record)} for name, (_, one) in listed.items()},
            },
        ),
    )  # fmt: skip


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
            found[str(name) if len(some) == 1 else f"{name} {number}"] = str(name), one
    return found


def _several(name: str, values: Any, *, empty: bool = False) -> list[str]:
    listed = [] if isinstance(values, str | bytes) or not isinstance(values, Sequence) else list(values)
    if (not listed and not (empty and values == ())) or not all(isinstance(one, str) for one in listed):
        raise LcalensError(f"{name}: expected several texts, got {values!r:.60}.")
    return listed


def _rows(
    model: Any, facts: Facts, contrasts: dict[str, Contrast], kinds: list[str], seed: int
) -> tuple[pd.DataFrame, dict[str, Rows]]:
    """The facts that some scheme can hijack, and each condition's tokens for each of them."""
    columns = ["case_id", "relation_id", "subject", "target_true", "target_false"]
    known: dict[Any, dict[str, Any]] = {}
    tokens: dict[str, dict[Any, tuple[int, ...]]] = {_CLEAN: {}} | {scheme: {} for scheme in contrasts}
    for scheme, contrast in contrasts.items():
        for row, example in enumerate(contrast.examples[columns].to_dict("records")):
            answers = {"true_token": contrast.true[row][0], "false_token": contrast.false[row][0]}
            known.setdefault(example["case_id"], {str(key): value for key, value in example.items()} | answers)
            tokens[_CLEAN][example["case_id"]] = contrast.clean[row]
            tokens[scheme][example["case_id"]] = contrast.hijacked[row]
    order = [fact for fact in facts if _key(fact, known) is not None]
    keys = [_key(fact, known) for fact in order]
    found: dict[str, Rows] = {name: [some.get(key) for key in keys] for name, some in tokens.items()}
    tokenizer = source_tokenizer(model)
    for kind in kinds:
        texts = honest_contexts(Facts(order, pool=facts.pool), kind, seed=seed)
        told = [text for text in texts if text is not None]
        encoded = iter(encode(tokenizer, told) if told else ())
        found[kind] = [None if text is None else tuple(next(encoded).ids) for text in texts]
    return pd.DataFrame([known[key] for key in keys]), found


def _key(fact: Fact, known: Mapping[Any, Any]) -> Any:
    """The fact's id as the contrasts' tables have it."""
    return next((key for key in (fact.case_id, str(fact.case_id)) if key in known), None)


def _batches(rows: Rows, padded: bool) -> list[list[int]]:
    """Rows of like length, some thousand tokens at a time; of the same length where padding would change them."""
    order = sorted((index for index, row in enumerate(rows) if row is not None), key=lambda index: _length(rows, index))
    batches: list[list[int]] = []
    for index in order:
        length, batch = _length(rows, index), batches[-1] if batches else []
        alike = padded or not batch or _length(rows, batch[0]) == length
        if not batch or not alike or (len(batch) + 1) * length > _TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches


def _length(rows: Rows, index: int) -> int:
    row = rows[index]
    return 0 if row is None else len(row)


def _pads(model: Any, rows: Rows) -> bool:
    """Whether a short row gives the same beside a long one, padded on the left, as by itself."""
    order = [batch[0] for batch in _batches(rows, padded=False)]
    pair = [order[0], order[-1]]
    alone = torch.cat([_logits(model, None, rows, [index]) for index in pair])
    together = _logits(model, None, rows, pair)
    return bool((alone - together).abs().max() <= _CLOSE * alone.abs().max())


def _logits(model: Any, defence: Defence | None, rows: Rows, batch: list[int]) -> Float[Tensor, "row vocab"]:
    """The next token's logits of some rows, with a defence on, or of the model as it is."""
    device = next(model.original_model.parameters()).device
    some = [rows[index] or () for index in batch]
    longest = max(map(len, some))
    ids = torch.tensor([(0,) * (longest - len(row)) + tuple(row) for row in some], device=device)
    mask = torch.tensor([(0,) * (longest - len(row)) + (1,) * len(row) for row in some], device=device)
    options = {} if bool(mask.all()) else {"attention_mask": mask}
    if defence is None:
        return model(ids, **options)[:, -1].double()
    with defence.applied(model):
        return model(ids, **options)[:, -1].double()


def _differences(
    model: Any, defence: Defence | None, rows: Rows, answers: Tensor, padded: bool
) -> Float[np.ndarray, " example"]:
    found = np.full(len(rows), np.nan)
    for batch in _batches(rows, padded):
        logits = _logits(model, defence, rows, batch)
        pair = logits.gather(1, answers[batch].to(logits.device))
        found[batch] = (pair[:, 1] - pair[:, 0]).cpu().numpy()
    return found


def _divergences(
    model: Any, defence: Defence | None, rows: Rows, undefended: list[Tensor], padded: bool
) -> Float[np.ndarray, " text"]:
    """KL(undefended || defended) at the end of every text; the undefended run is kept the first time."""
    found = np.zeros(len(rows))
    for number, batch in enumerate(_batches(rows, padded)):
        logs = _logits(model, defence, rows, batch).log_softmax(-1)
        if defence is None:
            undefended.append(logs.float().cpu())
            continue
        before = undefended[number].double().to(logs.device)
        found[batch] = (before.exp() * (before - logs)).sum(-1).clamp(min=0).cpu().numpy()
    return found


def _summary(
    difference: np.ndarray,
    kl: np.ndarray,
    defences: Sequence[str],
    conditions: Sequence[str],
    kinds: Sequence[str],
    clusters: np.ndarray,
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []

    def add(defence: str, condition: str, quantity: str, part: Any, whole: Any = None, groups: Any = clusters) -> None:
        part = np.asarray(part, dtype=float)
        measured = ~np.isnan(part)
        ends = (np.nan,) * 3
        if measured.any():
            whole = np.ones(len(part)) if whole is None else np.asarray(whole, dtype=float)
            own = None if groups is None else groups[measured]
            ends = tuple(float(end[0]) for end in ratio_of_means(part[measured][:, None], whole[measured], own))
        named = dict(zip(("value", "value_low", "value_high"), ends, strict=True))
        unit = "nats" if quantity == "kl" else "share"
        rows.append({"defence": defence, "condition": condition, "quantity": quantity} | named
                    | {"unit": unit, "n": int(measured.sum())})  # fmt: skip

    base = difference[:, 0]
    clean = base[:, 0]
    for at, defence in enumerate(defences):
        own = difference[:, at]
        add(defence, _CLEAN, "es", _prefers(own[:, 0]))
        add(defence, _CLEAN, "flips", _where(~np.isnan(own[:, 0]), (own[:, 0] > 0) != (clean > 0)))
        for column, condition in list(enumerate(conditions))[1:]:
            there = ~np.isnan(base[:, column])
            if condition in kinds:
                right = _RIGHT[condition]
                changed = there & (np.sign(clean) != right) & (np.sign(base[:, column]) == right)
                add(defence, condition, "kept", _where(changed, np.sign(own[:, column]) == right))
                continue
            before, after = _prefers(base[:, column]), _prefers(own[:, column])
            add(defence, condition, "es", after)
            add(defence, condition, "recovery", before - after, before - _where(there, clean > 0))
            flipped = there & (clean <= 0) & (base[:, column] > 0)
            add(defence, condition, "returned", _where(flipped, own[:, column] <= 0))
            add(defence, condition, "agreement", _where(there, (own[:, column] > 0) == (clean > 0)))
        if len(kl):
            add(defence, "plain text", "kl", kl[:, at], groups=None)
    return pd.DataFrame(rows)


def _prefers(difference: np.ndarray) -> np.ndarray:
    """Whether the false object is preferred; NaN where nothing was measured."""
    return _where(~np.isnan(difference), difference > 0)


def _where(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(mask, values.astype(float), np.nan)


def _grouped(summary: pd.DataFrame, group: Mapping[str, str]) -> pd.DataFrame:
    """Of a name with several defences the mean over them, with the middle 95% of them in place of an interval."""
    label = [group.get(str(name), str(name)) for name in summary["defence"]]
    parts = []
    for name in dict.fromkeys(label):
        some = summary[[own == name for own in label]]
        if some["defence"].nunique() == 1:
            parts.append(some.assign(defence=name))
            continue
        over = some.groupby(["condition", "quantity", "unit"], sort=False)["value"]
        table = over.agg(
            value="mean", value_low=lambda one: one.quantile(0.025), value_high=lambda one: one.quantile(0.975)
        ).reset_index()
        counts = some.groupby(["condition", "quantity"], sort=False)["n"].first().to_numpy()
        parts.append(table.assign(defence=name, n=counts))
    columns = ["defence", "condition", "quantity", "value", "value_low", "value_high", "unit", "n"]
    return pd.concat(parts)[columns].reset_index(drop=True)
