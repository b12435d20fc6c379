"""What was measured fact by fact: the same facts under several schemes, complete cases, clustered intervals."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from lcalens.core.estimates import Estimate, Numbers, matched, over_clusters, share
from lcalens.core.statistics import holm, mcnemar
from probes.harness.rules import Evidence
from probes.harness.work import FEWEST

STRATA = ("all", "prefers-true", "known")
"""All facts; those whose clean prompt makes the true object the likelier; those that the model answers right."""


class FactCurves:
    """Facts by number of sentences n, for several schemes on the same facts.

    Args:
        odds: For each scheme log Pr[false] - log Pr[true] in nats, NaN where the fact has none: a row a fact, a column
            an n, from 0.
        relation: Each fact's relation.
        known: Whether the model knows the fact.
        says: For each scheme 1 where greedy decoding gives the false object, likewise.

    Attributes:
        odds: As given.
        frames: 1 where the false object is the likelier one.
        says: As given.
        relation: As given.
        known: As given.
    """

    def __init__(
        self,
        odds: Mapping[str, pd.DataFrame],
        relation: Numbers,
        known: Numbers,
        says: Mapping[str, pd.DataFrame] | None = None,
    ):
        self.odds, self.says = dict(odds), dict(says or {})
        self.frames = {name: (frame > 0).astype(float).where(frame.notna()) for name, frame in odds.items()}
        self.relation, self.known = np.asarray(relation), np.asarray(known, dtype=bool)

    @classmethod
    def of(cls, rows: pd.DataFrame) -> "FactCurves":
        """From a probe's rows, one a scheme: `scheme`, `counts`, `odds`, `says`, `relation`, `known`.

        Args:
            rows: Of one model and one set of facts.
        """
        found: list[dict[Any, Any]] = rows.to_dict("records")
        odds, says = (
            {row["scheme"]: pd.DataFrame(row[name], columns=row["counts"], dtype=float) for row in found}
            for name in ("odds", "says")
        )
        return cls(odds, found[0]["relation"], found[0]["known"], says)

    def together(self, *schemes: str) -> tuple[list[pd.DataFrame], np.ndarray]:
        """The schemes' frames on the counts and the facts that all have, and which facts those are.

        A count that fewer than half of a scheme's facts reach is left out, so that it does not take the facts with it.

        Args:
            schemes: Their names.
        """
        frames = [self.frames[name] for name in schemes]
        counts = [n for n in frames[0] if all(n in one and _reached(one, n) for one in frames)]
        complete = np.logical_and.reduce([one[counts].notna().all(axis=1).to_numpy() for one in frames])
        return [one.loc[complete, counts] for one in frames], complete

    def evidence(
        self, name: str, scheme: str, control: str, *, since: int = 0, odds: bool = False, counted: bool = True
    ) -> Evidence:
        """The change from one count to the largest, beside the control's, clustered by relation.

        Args:
            name: What the setting begins with.
            scheme: The scheme.
            control: The scheme that it is compared with, on the same facts.
            since: The count to begin at; the largest, where there is none so large.
            odds: Whether the change is of the log odds in nats, with ES in the setting's words; of ES otherwise.
            counted: Whether the verdict counts it; never of fewer than `FEWEST` facts.
        """
        (one, other), chosen = self.together(scheme, control)
        last = _largest(one)
        first = min(since, last)
        setting = f"{name}: {scheme}, n = {first} to {last}, {len(one)} facts"
        if odds:
            setting += f" (ES {one[first].mean():.2f} to {one[last].mean():.2f})"
            one, other = (self.odds[label].loc[chosen, one.columns] for label in (scheme, control))
        effect, beside = (frame[last] - frame[first] for frame in (one, other))
        differences = (effect, beside, effect - beside)
        estimates = (over_clusters(values, self.relation[chosen]) for values in differences)
        return Evidence(
            setting=setting,
            effect=next(estimates),
            control=next(estimates),
            excess=next(estimates),
            counted=counted and len(one) >= FEWEST,
        )

    def strata(self, scheme: str, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """Which of the chosen facts belong to each of `STRATA`.

        Args:
            scheme: Any of the schemes: before the first sentence all are alike.
            chosen: Of `together`.
        """
        prefers = (self.odds[scheme][0] < 0).to_numpy()[chosen]
        return dict(zip(STRATA, (np.ones(chosen.sum(), dtype=bool), prefers, self.known[chosen]), strict=True))

    def table(self) -> list[dict[str, Any]]:
        """For every scheme and stratum the share by n, and McNemar's p of the largest n on all facts."""
        rows = []
        for scheme in self.frames:
            (frame,), chosen = self.together(scheme)
            for subset, members in self.strata(scheme, chosen).items():
                part = frame[members]
                before, after = (part[n].to_numpy() > 0 for n in (0, _largest(frame)))
                p = mcnemar(before, after) if subset == "all" and len(part) else math.nan
                shares = {f"n = {n}": share(part[n]) for n in frame}
                rows.append({"scheme": scheme, "subset": subset, "facts": len(part)} | shares | {"p": p})
        return rows

    def said(self, schemes: Iterable[str]) -> list[dict[str, Any]]:
        """For schemes and strata the share of facts for which greedy decoding gives the false object, by n.

        Args:
            schemes: Their names.
        """
        rows = []
        for scheme in schemes:
            (frame,), chosen = self.together(scheme)
            says = self.says[scheme].loc[chosen, frame.columns]
            for subset, members in self.strata(scheme, chosen).items():
                shares = {f"n = {n}": str(share(says[members][n])) for n in frame} if members.any() else {}
                rows.append({"scheme": scheme, "subset": subset, "facts": int(members.sum())} | shares)
        return rows

    def lines(self, schemes: Mapping[str, str]) -> list[dict[str, Any]]:
        """Rows for `curves`: the share by n, of the facts that all the schemes have.

        Args:
            schemes: What each line is called, with its scheme.
        """
        frames, _ = self.together(*schemes.values())
        named = zip(schemes, frames, strict=True)
        return [{"series": name, "n": n} | share(frame[n])._asdict() for name, frame in named for n in frame]

    def by_relation(self, schemes: Mapping[str, str]) -> list[dict[str, Any]]:
        """For every relation, the change from no sentence to the largest n, of few facts.

        Args:
            schemes: What each is called, with its scheme.
        """
        frames, chosen = self.together(*schemes.values())
        of, rows = self.relation[chosen], []
        for name, frame in zip(schemes, frames, strict=True):
            for relation in np.unique(of):
                part = frame[of == relation]
                change = matched(part[0], part[_largest(part)])
                rows.append({"series": name, "relation": relation, "facts": len(part)} | change._asdict())
        return rows


def shares_table(rows: list[dict[str, Any]], *, retention: bool = False) -> pd.DataFrame:
    """Rows of `FactCurves.table` as text: ES with p, Holm-corrected over the rows, or retention.

    Args:
        rows: Of one study.
        retention: Whether to show 1 - ES, of all facts.
    """

    def text(value: Any) -> Any:
        if not isinstance(value, Estimate):
            return value
        if math.isnan(value.mean):
            return ""
        return str(Estimate(1 - value.mean, 1 - value.high, 1 - value.low) if retention else value)

    shown = [row for row in rows if not retention or row["subset"] == STRATA[0]]
    frame = pd.DataFrame([{name: text(value) for name, value in row.items() if name != "p"} for row in shown])
    return frame if retention else frame.assign(p=holm([row["p"] for row in rows]))


def _largest(frame: pd.DataFrame) -> int:
    return int(frame.columns.max())


def _reached(frame: pd.DataFrame, n: Any) -> bool:
    there = frame.notna().sum()
    return n == 0 or there[n] >= there[there.index > 0].iloc[0] / 2
