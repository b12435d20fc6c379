"""What the probes of defences share: facts that share nothing they should not, heads and texts, and their tables."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lcalens import Defence, contrast_facts, leading, patch
from lcalens.core.estimates import over_seeds
from lcalens.llm.facts import Facts
from lcalens.llm.plain import HONEST, honest_contexts, plain_texts
from lcalens.mechanism.leading import Leading
from probes.harness.work import Work, judged_facts

UNSEEN = tuple(kind for kind in HONEST if kind not in ("fiction", "correction"))
"""Kinds of honest context that no detector is shown."""
FORGET = "Forget about {target_false}."
SCHEMES: tuple[Any, ...] = (
    "dont-think", FORGET, "I have always loved {target_false}.", "negation", ("negation", 5), "factual", ("factual", 5),
)  # fmt: skip

_PERCENT, _FEWEST = 4, 7
_SHARES = ("es", "returned", "agreement", "flips", "accuracy", "top flips", "kept")


@dataclass(frozen=True)
class Prepared:
    """What defences are made of, and judged on.

    Attributes:
        model: The bridge.
        train: The facts that rank heads and fit detectors.
        bare: Their contrast with clean prompts alone.
        judged: The facts that defences are judged on.
        rest: Others that were not trained on.
        heads: Those that carry the hijack.
        of: How many heads the model has.
        layer: The layer before which a detector reads.
        negatives: The texts that a detector is shown as no hijack.
    """

    model: Any
    train: Facts
    bare: Any
    judged: Facts
    rest: Facts
    heads: Leading
    of: int
    layer: int
    negatives: dict[str, list[str]]


def prepare(cell: dict[str, Any], work: Work) -> Prepared:
    """Draw a split's facts, rank the model's heads on the first, and gather what is shown to a detector.

    Args:
        cell: With model, source, split, train and judged.
        work: Where the ranking is kept.
    """
    model = work.model(cell["model"])
    train, judged, rest = divided(judged_facts(cell["source"]), cell["split"], cell["train"], cell["judged"])
    ranked = patch(model, contrast_facts(model, train), out=work.parts, progress=False)
    size = int(ranked.values["value"][0].size)
    heads = leading(ranked, min(max(_FEWEST, size * _PERCENT // 100), size // 3), by="carrying")
    negatives = {"plain text": plain_texts("train", cuts=1)} | {
        kind: [text for text in honest_contexts(train, kind) if text] for kind in HONEST if kind not in UNSEEN
    }
    bare = contrast_facts(model, train, control="none")
    return Prepared(model, train, bare, judged, rest, heads, size, late(heads), negatives)


def rows_of(cell: dict[str, Any], prepared: Prepared, found: Any, detector: Defence | None = None) -> list[dict]:
    """The rows of one evaluation's table, each with what it is of.

    Args:
        cell: Of the probe.
        prepared: What the defences were made of.
        found: The result of `evaluate_defence`.
        detector: Whose AUC and false alarms are told.
    """
    known: dict[str, Any] = {name: cell[name] for name in ("model", "part", "split") if name in cell}
    known |= {"heads": [f"L{layer}H{head}" for layer, head in prepared.heads], "of": prepared.of}
    known |= {"layer": prepared.layer}
    if detector is not None:
        known |= {name: detector.record[name] for name in ("auc", "false_alarms", "caught")}
    return [known | {str(name): value for name, value in row.items()} for row in found.summary.to_dict("records")]


def divided(facts: Facts, split: int, train: int, judged: int) -> tuple[Facts, Facts, Facts]:
    """Facts to rank and fit on; others to judge on, half of them of relations that the first have none of; and more.

    Args:
        facts: All of them.
        split: Of the draw of relations and facts.
        train: How many to rank and fit on.
        judged: How many to judge on.

    Returns:
        The first, the second, and as many as `judged` of all that are not among the first.
    """
    relations = sorted({fact.relation_id for fact in facts})
    random.Random(split).shuffle(relations)
    unseen = set(relations[: len(relations) // 2])
    known = Facts([fact for fact in facts if fact.relation_id not in unseen], pool=facts.pool)
    first = known.sample(train, split)
    taken = {fact.case_id for fact in first}
    rest = [fact for fact in facts if fact.case_id not in taken]
    halves = [
        Facts([fact for fact in rest if (fact.relation_id in unseen) == new], pool=facts.pool).sample(
            judged // 2, split
        )
        for new in (False, True)
    ]
    judge = Facts([fact for half in halves for fact in half], pool=facts.pool)
    return first, Facts(judge, pool=facts.pool), Facts(rest, pool=facts.pool).sample(judged, split)


def late(heads: Sequence[tuple[int, int]]) -> int:
    """The layer before which a fifth of the heads have run, and no more.

    Args:
        heads: As (layer, head).
    """
    layers = sorted(layer for layer, _ in heads)
    return layers[len(layers) // 5]


def within(quantity: str, ends: Sequence[float]) -> list[float]:
    """A mean and its interval, no end of it where the quantity cannot be."""
    if quantity in _SHARES:
        low, high = 0.0, 1.0
    else:
        low, high = {"kl": 0.0, "perplexity": 1.0}.get(quantity, -np.inf), np.inf
    return [float(np.clip(end, low, high)) for end in ends]


def short(condition: str) -> str:
    """A condition in at most forty characters, for tables and figures."""
    text = condition.replace("{target_false}", "...").replace("\n", " (line break)")
    return text if len(text) <= 40 else text[:37] + "..."


def told(part: pd.DataFrame) -> str:
    """A mean and its interval: over splits where there are several, else as they were measured."""
    values = part["value"].to_numpy(dtype=float)
    ends = list(over_seeds(values))
    if len(values) == 1:
        ends = [float(part[name].iloc[0]) for name in ("value", "value_low", "value_high")]
    mean, low, high = within(str(part["quantity"].iloc[0]), ends)
    digits = 4 if part["unit"].iloc[0] == "nats" else 2
    if not np.isfinite(mean):
        return "none"
    return f"{mean:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if np.isfinite([low, high]).all() else "")


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each model, condition and quantity, and a column for each defence."""
    found = []
    for (model, condition, quantity), some in rows.groupby(["model", "condition", "quantity"], sort=False):
        row = {"model": model, "condition": short(str(condition)), "quantity": quantity}
        found.append(row | {str(name): told(part) for name, part in some.groupby("defence", sort=False)})
    return pd.DataFrame(found)
