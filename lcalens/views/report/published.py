"""What lcalens' own pages found for the same model, scheme and number of sentences, beside a user's numbers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from lcalens.views.report.numbers import estimate

if TYPE_CHECKING:
    from lcalens.core.results import Result


@dataclass(frozen=True)
class Beside:
    """One setting, here and on the published page.

    Attributes:
        scheme: What hijacks.
        n: How many sentences.
        here: ES of this study, with its interval.
        facts: Of how many facts.
        published: ES of the page.
        facts_published: Of how many facts.
        says: The paper's sentence on this scheme, translated from the rendering that was read; may be empty.
    """

    scheme: str
    n: int
    here: str
    facts: int
    published: str
    facts_published: int
    says: str


def beside(results: Sequence["Result"]) -> tuple[Beside, ...]:
    """The settings of `efficacy` that the published page has too: the same weights, scheme, n and scoring.

    Args:
        results: Of any kinds; the first efficacy counts.
    """
    for result in results:
        if result.kind == "efficacy":
            return tuple(_rows(result))
    return ()


def _rows(result: "Result") -> list[Beside]:
    config, model = result.provenance["config"], result.provenance["model"]
    page = _published()
    known = page["models"].get(str(model.get("fingerprint")))
    if known is None or config["scoring"] != "whole" or config["chat"] or model.get("hooks"):
        return []
    rows = []
    shares = result.wide()
    for row in shares[shares["subset"] == "all"].to_dict("records"):
        found: dict[str, Any] | None = known.get(row["scheme"], {}).get(str(row["n"]))
        of_words = row["scheme"].startswith("related") and config["related"] != "table"
        if found is None or not row["facts"] or of_words:
            continue
        here = estimate(row["es"], row.get("es_low"), row.get("es_high"))
        there = estimate(found["es"], found["low"], found["high"])
        says = page["sentences"].get(row["scheme"], "")
        rows.append(Beside(row["scheme"], int(row["n"]), here, int(row["facts"]), there, found["facts"], says))
    return rows


@cache
def _published() -> dict[str, Any]:
    """`{"models": {fingerprint: {scheme: {n: {es, low, high, facts}}}}, "sentences": {scheme: text}}`."""
    return json.loads(resources.files("lcalens.views.report").joinpath("published.json").read_text(encoding="utf-8"))
