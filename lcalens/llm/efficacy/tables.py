"""The tables of an efficacy result: scores with intervals, tests against the clean prompt, controls, relations.

Every curve and test uses the facts for which *every* n of its scheme exists, and shows n = 0 on those same facts.

Three subsets of the facts: `all`; `known`, where greedy decoding of the clean prompt gives the true object, or
its first token where those are scored; and `prefers-true`, where the clean prompt gives the true object the higher
probability. The latter two are chosen by the clean answer, so a test of the hijacked answer against it would find a
change in any noise: they get intervals, and differences from their controls, but no p-values.

The tables are long (`lcalens.core.tables`), with the number of facts behind; `result.wide(name)` has a column for each
quantity. `impossible` counts records, and stays as it is.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lcalens.core.results import Result
from lcalens.core.statistics import clustered_mean_interval, holm, mcnemar, wilson
from lcalens.core.tables import lengthen
from lcalens.llm.prompts.schemes import Wording, find_scheme, relations

_UNITS = {
    "es": "share",
    "retention": "share",
    "log_odds": "nats",
    "change": "share",
    "es_control": "share",
    "difference": "share",
    "mcnemar_p": "probability",
    "holm_p": "probability",
}
_CONTROL_COLUMNS = (
    "subset", "scheme", "control", "n", "facts", "es", "es_low", "es_high", "es_control", "es_control_low",
    "es_control_high", "difference", "difference_low", "difference_high", "mcnemar_p",
)  # fmt: skip


@dataclass(frozen=True)
class _Data:
    """Log odds over (fact, scheme, n), and what is needed to cut them up."""

    odds: np.ndarray
    schemes: tuple[str, ...]
    counts: tuple[int, ...]
    relation: np.ndarray
    known: np.ndarray
    seed: int
    wordings: Mapping[str, Wording]

    def complete(self, *schemes: str) -> np.ndarray:
        """The facts that have every n of all these schemes."""
        missing = np.isnan(self.odds[:, [self.schemes.index(name) for name in schemes]])
        return np.logical_not(missing.any(axis=(1, 2)))

    def subsets(self) -> dict[str, np.ndarray]:
        """Which facts are in each subset."""
        prefers_true = self.odds[:, :, 0].max(axis=1, initial=-np.inf, where=~np.isnan(self.odds[:, :, 0])) < 0
        return {"all": np.ones_like(self.known), "known": self.known, "prefers-true": prefers_true}

    def of(self, scheme: str) -> np.ndarray:
        return self.odds[:, self.schemes.index(scheme)]


def summarise(
    examples: pd.DataFrame,
    axes: Mapping[str, tuple[Any, ...]],
    values: Mapping[str, np.ndarray],
    impossible: Counter[tuple[str, int, str]],
    *,
    seed: int,
    wordings: Mapping[str, Wording] | None = None,
) -> dict[str, pd.DataFrame]:
    """The tables `summary`, `controls`, `by_relation` and `impossible` of an efficacy result.

    Args:
        examples: One row per fact, with `relation_id` and `known`.
        axes: The result's axes: example, scheme, n; n begins with 0.
        values: `logp_true` and `logp_false` over them, in nats.
        impossible: How many facts each (scheme, n, reason) ruled out.
        seed: Of the bootstrap.
        wordings: What each scheme is, where a name does not say it.
    """
    wordings = {name: find_scheme(name) for name in axes["scheme"]} if wordings is None else wordings
    data = _data(examples, axes, values, seed, wordings)
    summary, controls = _summary(data), _controls(data)
    corrected = holm([*summary["mcnemar_p"], *controls["mcnemar_p"]])
    summary["holm_p"], controls["holm_p"] = corrected[: len(summary)], corrected[len(summary) :]
    wide = {"summary": summary, "controls": controls, "by_relation": _by_relation(data)}
    return {name: _long(table) for name, table in wide.items()} | {
        "impossible": pd.DataFrame(
            [(*key, count) for key, count in sorted(impossible.items())], columns=["scheme", "n", "reason", "facts"]
        ),
    }


def rates_together(
    result: Result, schemes: Sequence[str], *, subset: str = "all", relation: str | None = None
) -> pd.DataFrame:
    """Rates of several schemes on the same facts: those that have every n of all of them. A row for each scheme and n.

    Args:
        result: Of `efficacy`.
        schemes: Their names.
        subset: As in the tables.
        relation: One relation's facts alone.
    """
    data = _data(result.examples, result.axes, result.values, 0, {})
    chosen = data.subsets()[subset] & data.complete(*schemes)
    if relation is not None:
        chosen &= data.relation == relation
    rows = [
        {"scheme": scheme, "n": n} | _rates(data.of(scheme)[chosen, column])
        for scheme in schemes
        for column, n in enumerate(data.counts)
    ]
    return pd.DataFrame(rows)


def unmeasured(
    axes: Mapping[str, tuple[Any, ...]], values: Mapping[str, np.ndarray], counted: pd.DataFrame
) -> dict[str, str]:
    """Schemes of which no fact has every n, with the reasons why.

    Args:
        axes: The result's.
        values: Its values.
        counted: Its table `impossible`.
    """
    found = {}
    for index, scheme in enumerate(axes["scheme"]):
        if np.isnan(values["logp_true"][:, index]).any(axis=1).all():
            own = counted[counted["scheme"] == scheme]
            found[scheme] = "; ".join(dict.fromkeys(own["reason"])) or "no fact has every n"
    return found


def _data(
    examples: pd.DataFrame,
    axes: Mapping[str, tuple[Any, ...]],
    values: Mapping[str, np.ndarray],
    seed: int,
    wordings: Mapping[str, Wording],
) -> _Data:
    return _Data(
        odds=values["logp_false"] - values["logp_true"],
        schemes=tuple(axes["scheme"]),
        counts=tuple(axes["n"]),
        relation=examples["relation_id"].to_numpy(),
        known=examples["known"].to_numpy(dtype=bool),
        seed=seed,
        wordings=wordings,
    )


def _long(table: pd.DataFrame) -> pd.DataFrame:
    units = {name: unit for name, unit in _UNITS.items() if name in table}
    return lengthen(table, units, behind=["facts"])


def _rates(odds: np.ndarray) -> dict[str, float | int]:
    """ES and retention with Wilson intervals, from one condition's log odds."""
    hijacked, total = int((odds > 0).sum()), len(odds)
    low, high = wilson(hijacked, total)
    es = hijacked / total if total else float("nan")
    return {
        "facts": total,
        "es": es,
        "es_low": low,
        "es_high": high,
        "retention": 1 - es,
        "retention_low": 1 - high,
        "retention_high": 1 - low,
    }


def _mean(data: _Data, values: np.ndarray, chosen: np.ndarray, name: str) -> dict[str, float | int]:
    low, high = clustered_mean_interval(values, data.relation[chosen], seed=data.seed)
    return {name: values.mean() if len(values) else float("nan"), f"{name}_low": low, f"{name}_high": high}


def _summary(data: _Data) -> pd.DataFrame:
    rows = []
    for subset, members in data.subsets().items():
        for scheme in data.schemes:
            chosen = members & data.complete(scheme)
            odds = data.of(scheme)[chosen]
            clean = odds[:, 0] > 0
            for column, n in enumerate(data.counts):
                now = odds[:, column] > 0
                change = now.astype(float) - clean
                rows.append(
                    {"subset": subset, "scheme": scheme, "role": data.wordings[scheme].role, "n": n}
                    | _rates(odds[:, column])
                    | _mean(data, odds[:, column], chosen, "log_odds")
                    | (_mean(data, change, chosen, "change") if n else {})
                    | {"mcnemar_p": mcnemar(clean, now) if n and len(odds) and subset == "all" else float("nan")}
                )
    columns = [*rows[0], *(f"change{end}" for end in ("", "_low", "_high"))]
    return pd.DataFrame(rows).reindex(columns=[*(c for c in columns if c != "mcnemar_p"), "mcnemar_p"])


def _controls(data: _Data) -> pd.DataFrame:
    """Each scheme against its matched control and the neutral sentence, on the facts that both have."""
    rows = []
    for subset, members in data.subsets().items():
        for scheme in data.schemes:
            wording = data.wordings[scheme]
            for control in dict.fromkeys((wording.control, "neutral")):
                if wording.role == "control" or control not in data.schemes:
                    continue
                chosen = members & data.complete(scheme, control)
                for column, n in enumerate(data.counts):
                    rows.append(
                        {"subset": subset, "scheme": scheme, "control": control, "n": n}
                        | _against(data, scheme, control, column, chosen, tested=subset == "all" and n > 0)
                    )
    return pd.DataFrame(rows, columns=pd.Index(_CONTROL_COLUMNS))


def _against(
    data: _Data, scheme: str, control: str, column: int, chosen: np.ndarray, *, tested: bool
) -> dict[str, Any]:
    odds, odds_control = data.of(scheme)[chosen, column], data.of(control)[chosen, column]
    with_scheme, with_control = odds > 0, odds_control > 0
    rates = {name: value for name, value in _rates(odds).items() if not name.startswith("retention")}
    beside = {
        name.replace("es", "es_control"): value for name, value in _rates(odds_control).items() if name[:2] == "es"
    }
    difference = _mean(data, with_scheme.astype(float) - with_control, chosen, "difference")
    p = mcnemar(with_control, with_scheme) if tested and chosen.any() else float("nan")
    return rates | beside | difference | {"mcnemar_p": p}


def _by_relation(data: _Data) -> pd.DataFrame:
    rows = []
    for relation in sorted(set(data.relation)):
        label = relations().get(relation, {}).get("label", "")
        for scheme in data.schemes:
            chosen = data.complete(scheme) & (data.relation == relation)
            for column, n in enumerate(data.counts):
                head = {"relation_id": relation, "relation": label, "scheme": scheme, "n": n}
                rows.append(head | _rates(data.of(scheme)[chosen, column]))
    return pd.DataFrame(rows)
