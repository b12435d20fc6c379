"""The story of a study: each kind of result as a section, in the order in which they explain each other."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lcalens.core.errors import LcalensError
from lcalens.views.intervals import about_intervals
from lcalens.views.report.maps import HeadMap, head_map
from lcalens.views.report.tables import Table, tables_of
from lcalens.views.report.words import sentences

if TYPE_CHECKING:
    from lcalens.core.results import Result

_DPI = 160
# What each kind of result asks, and how it is read. In this order.
_STORY: dict[str, tuple[str, str]] = {
    "answers": (
        "One prompt",
        "The likeliest next tokens without the sentence and with it, and the log-probability of whole answers.",
    ),
    "efficacy": (
        "The curve, with its controls",
        "ES is the share of facts whose false object is more probable than the true one behind n sentences. A control "
        "is a sentence of the same form that does not name the false object. What a sentence does beyond its control "
        "is owed to the object that it names.",
    ),
    "training": ("Training", "The accuracy over the steps, beside Bayes, which nothing beats."),
    "gram": ("Embeddings", "Inner products of embeddings over the Hamming distance of their concepts."),
    "attention-pattern": ("Attention in the toy", "How much attention a token pays to each, by their distance."),
    "patching": (
        "Heads and layers, one at a time",
        "Each site's output in the hijacked run is replaced by the clean run's (or the other way round, where it says "
        "so). A recovery of 0 is the hijacked run, of 1 the clean one.",
    ),
    "knockout": ("Without a head's look", "Attention that is cut away, and what of the hijack goes with it."),
    "exchange": ("Sets of heads exchanged", "Patterns, values or both of a set of heads taken from the other run."),
    "attribution": (
        "By gradients",
        "Each site's effect by a linear estimate. Exact patching stands above the estimate.",
    ),
    "ranking": (
        "The heads that lead",
        "Heads in the order of their effect on one half of the examples. The effect on the other half is the one to "
        "quote: heads chosen for an effect show more of it on the examples that chose them.",
    ),
    "split": (
        "Where heads look, and what they recall",
        "A head's direct effect on the logit of the false answer against the true one changes because it looks "
        "elsewhere (attention), because what it looks at recalls something else (recall), or because the final norm's "
        "scale is another. The three sum to the change.",
    ),
    "shapley": (
        "Heads together",
        "Effects of heads overlap. A Shapley value is what a head adds to the set, averaged over every order in which "
        "the set can be put together; the curve shows how few of them do how much.",
    ),
    "path": ("Whom they listen to", "Direct paths: what one part writes, as one other part alone receives it."),
    "head-kinds": (
        "Kinds of head",
        "Movers look at the object, amplifiers read what movers wrote, counter-heads push back.",
    ),
    "score-parts": (
        "Why they look there",
        "A head's attention score as an exact sum over what wrote its query and keys.",
    ),
    "recall": (
        "What their value circuits recall",
        "From a word to the answers: what a head's value matrix writes of a word that it looks at, through the final "
        "norm and the unembedding. Beside it the same of what is no recall: similarity of embeddings, other heads, "
        "random circuits of the same spectrum: of many the mean, with the middle 95% of them in brackets.",
    ),
    "memory": (
        "An associative memory in the head's place",
        "A matrix that is built from pairs of cue and answer alone, beside the head's value circuit and in its place.",
    ),
    "defence": (
        "The hijack turned off",
        "What each defence gives back of the efficacy score that the sentences take, and what it costs: clean facts, "
        "plain text, and honest context that is to be followed.",
    ),
    "toy-defence": (
        "The toy's defence",
        "What a detector gives back in the toy, beside a Bayes that knows of the mixture.",
    ),
}
_ORDER = list(_STORY)
_IN_SHORT = ("site", "positions", "direction", "source", "metric", "examples", "control", "method", "exchange", "level")


@dataclass(frozen=True, kw_only=True)
class Section:
    """One result, as the page shows it. All text is text: the template escapes it.

    Attributes:
        name: Its anchor.
        title: What it is about.
        asks: What it shows and how it is read.
        says: What the numbers say, in sentences.
        settings: The main settings, in a line.
        figure: A PNG, or nothing where the kind has no figure.
        shows: The figure in words, for who cannot see it.
        map: Effects by layer and head, where the result has them.
        tables: The most important first.
        record: The whole provenance, as JSON.
    """

    name: str
    title: str
    asks: str
    says: tuple[str, ...]
    settings: str
    figure: bytes | None
    shows: str
    map: HeadMap | None
    tables: tuple[Table, ...]
    record: str


def sections_of(results: Sequence["Result"]) -> tuple[Section, ...]:
    """A section for each result, in the order of the story; of one kind, in the order given.

    Args:
        results: Of any kinds.

    Raises:
        LcalensError: A kind that the report does not know.
    """
    for result in results:
        if result.kind not in _STORY:
            raise LcalensError(f"results: the report does not know the kind {result.kind!r:.60}; leave it out.")
    ordered = sorted(results, key=lambda result: _ORDER.index(result.kind))
    kinds = [result.kind for result in ordered]
    sections = []
    for number, result in enumerate(ordered):
        again = kinds[:number].count(result.kind)
        sections.append(_section(result, again + 1 if kinds.count(result.kind) > 1 else 0))
    return tuple(sections)


def _section(result: "Result", number: int) -> Section:
    title, asks = _STORY[result.kind]
    says = (*sentences(result), *about_intervals(result))
    effects = head_map(result)
    return Section(
        name=f"{result.kind}-{number}" if number else result.kind,
        title=f"{title} ({number})" if number else title,
        asks=asks,
        says=says,
        settings=_settings(result),
        figure=None if effects else _figure(result),
        shows=f"{title}. {' '.join(says)}".strip(),
        map=effects,
        tables=tables_of(result),
        record=json.dumps(dict(result.provenance), indent=1, ensure_ascii=False, default=str),
    )


def _settings(result: "Result") -> str:
    """The provenance's short entries: what a reader must know to read the numbers."""
    made: dict[str, Any] = {**result.provenance, **result.provenance.get("config", {})}
    short = [f"{name} {made[name]}" for name in _IN_SHORT if isinstance(made.get(name), str | int)]
    facts = result.provenance.get("facts")
    if isinstance(facts, dict) and "count" in facts:
        short.insert(0, f"{facts['count']} facts of {facts.get('source', '?')}")
    return ", ".join(short)


def _figure(result: "Result") -> bytes:
    file = io.BytesIO()
    result.plot().savefig(file, format="png", dpi=_DPI, bbox_inches="tight")
    return file.getvalue()
