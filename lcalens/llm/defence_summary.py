"""What is told of defences: recovery, honest context kept, and plain text, from differences and next tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from lcalens.core.statistics import ratio_of_means
from lcalens.llm.plain import ASKED

CLEAN, PLAIN = "clean", "plain text"


def summary_of(
    difference: Float[np.ndarray, "fact defence condition"],
    top: Float[np.ndarray, "fact defence condition"],
    kl: Float[np.ndarray, "text defence"],
    surprise: Float[np.ndarray, "text defence"],
    defences: Sequence[str],
    conditions: Sequence[str],
    kinds: Sequence[str],
    examples: pd.DataFrame,
) -> pd.DataFrame:
    """Every quantity of every defence, with its 95% interval over relations; of plain text over texts.

    Args:
        difference: logit(false) - logit(true); NaN where a condition has no such fact.
        top: The most likely next token.
        kl: KL(undefended || defended) of the next token.
        surprise: The next token's negative log probability, in nats.
        defences: Their names, the undefended model first.
        conditions: Their names, the clean prompts first.
        kinds: Which conditions are honest contexts.
        examples: The facts, with `relation_id` and `true_token`.
    """
    clusters, true = examples["relation_id"].to_numpy(), examples["true_token"].to_numpy()
    rows: list[dict[str, Any]] = []

    def add(defence: str, condition: str, quantity: str, part: Any, whole: Any = None, groups: Any = clusters) -> None:
        part = np.asarray(part, dtype=float)
        measured = ~np.isnan(part)
        ends = (np.nan,) * 3
        if measured.any():
            whole = np.ones(len(part)) if whole is None else np.asarray(whole, dtype=float)
            own = None if groups is None else groups[measured]
            ends = tuple(float(end[0]) for end in ratio_of_means(part[measured][:, None], whole[measured], own))
        unit = {"kl": "nats", "perplexity": "1"}.get(quantity, "share")
        if quantity == "perplexity":
            ends = tuple(float(np.exp(end)) for end in ends)
        named = dict(zip(("value", "value_low", "value_high"), ends, strict=True))
        rows.append({"defence": defence, "condition": condition, "quantity": quantity} | named
                    | {"unit": unit, "n": int(measured.sum())})  # fmt: skip

    base = difference[:, 0]
    clean = base[:, 0]
    for at, defence in enumerate(defences):
        own = difference[:, at]
        add(defence, CLEAN, "es", _prefers(own[:, 0]))
        there = ~np.isnan(own[:, 0])
        add(defence, CLEAN, "flips", _where(there, (own[:, 0] > 0) != (clean > 0)))
        add(defence, CLEAN, "accuracy", _where(there, top[:, at, 0] == true))
        add(defence, CLEAN, "top flips", _where(there, top[:, at, 0] != top[:, 0, 0]))
        for column, condition in list(enumerate(conditions))[1:]:
            there = ~np.isnan(base[:, column])
            if condition in kinds:
                right = ASKED[condition]
                changed = there & (np.sign(clean) != right) & (np.sign(base[:, column]) == right)
                add(defence, condition, "kept", _where(changed, np.sign(own[:, column]) == right))
                continue
            before, after = _prefers(base[:, column]), _prefers(own[:, column])
            add(defence, condition, "es", after)
            raised = before - _where(there, clean > 0)
            moved = np.nansum(raised) > 0  # a hijack that does not raise ES leaves nothing to recover
            add(defence, condition, "recovery", before - after if moved else np.full(len(raised), np.nan), raised)
            flipped = there & (clean <= 0) & (base[:, column] > 0)
            add(defence, condition, "returned", _where(flipped, own[:, column] <= 0))
            add(defence, condition, "agreement", _where(there, (own[:, column] > 0) == (clean > 0)))
        if len(kl):
            add(defence, PLAIN, "kl", kl[:, at], groups=None)
            add(defence, PLAIN, "perplexity", surprise[:, at], groups=None)
    return pd.DataFrame(rows)


def _prefers(difference: np.ndarray) -> np.ndarray:
    """Whether the false object is preferred; NaN where nothing was measured."""
    return _where(~np.isnan(difference), difference > 0)


def _where(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(mask, values.astype(float), np.nan)


def grouped(summary: pd.DataFrame, group: Mapping[str, str]) -> pd.DataFrame:
    """Of a name with several defences the mean over them, with the middle 95% of them in place of an interval.

    Args:
        summary: Of every defence.
        group: Its name, where several have one.
    """
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
