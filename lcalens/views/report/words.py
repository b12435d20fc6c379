"""What the numbers of a result say, in sentences made from them; a kind without words of its own has none."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lcalens.views.answers_text import moved_in_words
from lcalens.views.report import link_words
from lcalens.views.report.numbers import estimate_of, head_of, measured, rows_of
from lcalens.views.text import short_name

if TYPE_CHECKING:
    from lcalens.core.results import Result


def sentences(result: "Result") -> list[str]:
    """The main numbers of a result, in sentences. None where its kind has no words of its own.

    Args:
        result: Any result.
    """
    says = [*_SAYS[result.kind](result)] if result.kind in _SAYS else []
    resolution = result.provenance.get("resolution", {}).get("says")
    return [*says, *([f"Resolution: {resolution}"] if resolution else [])]


def _answers(result: "Result") -> list[str]:
    config = result.provenance["config"]
    said = f"The prompt: {config['prompt']!r}."
    if len(result.axes["context"]) < 2:
        return [said]
    return [f"{said} Before it: {' '.join(config['hijack'])!r}.", moved_in_words(result)]


def _efficacy(result: "Result") -> list[str]:
    """For each scheme that has a control: ES at the largest n, without a sentence, and against the control."""
    shares = {(row["scheme"], row["n"]): row["es"] for row in rows_of(result, None, subset="all")}
    against = rows_of(result, "controls", subset="all")
    says = []
    for row in against:
        scheme, n = row["scheme"], row["n"]
        if not n or not row["facts"] or n != max(other["n"] for other in against if other["scheme"] == scheme):
            continue
        before = shares.get((scheme, 0))
        start = f", {before:.2f} without a sentence" if measured(before) else ""
        opening = (
            f"{short_name(scheme)}, n = {n}: the false object is the more probable for a share of "
            f"{estimate_of(row, 'es')} of {row['facts']} facts{start}."
        )
        said = (
            f"Behind {short_name(row['control'])} it is {estimate_of(row, 'es_control')}; the difference is "
            f"{estimate_of(row, 'difference', signed=True)}, {_apart(row, 'difference')}."
        )
        if says and says[-1].startswith(opening):
            says[-1] += f" {said}"
        else:
            says.append(f"{opening} {said}")
    if len(result.tables["impossible"]):
        says.append("Some facts have no sentence of a scheme; they are left out, and counted in the result.")
    return says


def _apart(row: Any, quantity: str) -> str:
    low, high = row.get(f"{quantity}_low"), row.get(f"{quantity}_high")
    if not (measured(low) and measured(high)):
        return "for which too few facts are there to give an interval"
    return "whose interval holds zero" if low <= 0 <= high else "whose interval does not hold zero"


def _ranking(result: "Result") -> list[str]:
    rows = rows_of(result, None)
    first = rows[0]
    if "held_out" not in first:
        return [f"The first of {len(rows)} is {head_of(first)}: {estimate_of(first, 'value')}."]
    return [
        f"The first of {len(rows)} is {head_of(first)}: {estimate_of(first, 'value')} on the examples that ranked it, "
        f"{estimate_of(first, 'held_out')} on {result.provenance['held_out']} others."
    ]


def _patching(result: "Result") -> list[str]:
    rows = [row for row in rows_of(result, None) if measured(row.get("recovery"))]
    if not rows or not {"layer", "head"} <= set(rows[0]):
        return []
    best, against = (choose(rows, key=lambda row: row["recovery"]) for choose in (max, min))
    made = result.provenance
    if (made.get("direction", "restore"), made.get("source", "other")) != ("restore", "other"):
        return [
            f"Of {len(rows)} heads, each by itself, the largest recovery is {head_of(best)}'s, "
            f"{estimate_of(best, 'recovery')}, and the smallest {head_of(against)}'s, "
            f"{estimate_of(against, 'recovery')}, over {made['examples']} examples."
        ]
    return [
        f"Of {len(rows)} heads, each by itself, {head_of(best)} brings back most: {estimate_of(best, 'recovery')} of "
        f"the way from the hijacked run to the clean one, over {result.provenance['examples']} examples. "
        f"{head_of(against)} works the other way most: {estimate_of(against, 'recovery')}. The largest of so many "
        "flatters itself; it is to be measured again on other examples."
    ]


def _split(result: "Result") -> list[str]:
    whole, total = rows_of(result, None, group="all"), rows_of(result, "balance", part="total")
    if not whole or not total:
        return []
    row = whole[0]
    return [
        f"The sentence changes the metric by {estimate_of(total[0], 'change', signed=True)} {result.units['total']}. "
        f"Of this, heads write "
        f"{estimate_of(row, 'total', signed=True)} directly: {estimate_of(row, 'attention', signed=True)} because they "
        f"look elsewhere, {estimate_of(row, 'recall', signed=True)} because what they look at recalls something else."
    ]


def _shapley(result: "Result") -> list[str]:
    together = {row["part"]: row for row in rows_of(result, "together")}
    axis = next(name for name in result.axes if name != "example")
    first = max(rows_of(result, None), key=lambda row: row["shapley"])
    return [
        f"Together they carry {estimate_of(together['together'], 'share')} of the hijack; each alone, summed, would be "
        f"{estimate_of(together['each alone, summed'], 'share')}. {short_name(first[axis])} has the largest share: "
        f"{estimate_of(first, 'share')} ({estimate_of(first, 'alone')} alone, {estimate_of(first, 'shapley')} as a "
        f"Shapley value, in {result.units['shapley']})."
    ]


def _recall(result: "Result") -> list[str]:
    tests = {row["head"]: row.get("p_holm") for row in rows_of(result, "tests")}
    says = []
    for row in rows_of(result, None):
        p, auc = tests.get(row["head"]), row.get("related_auc")
        kin = f"; related answers above unrelated ones: AUC {auc:.2f}" if measured(auc) else ""
        test = f" (p = {p:.3f} against random circuits of the same spectrum, Holm-corrected)" if measured(p) else ""
        own = f"puts a word's own token first for a share of {estimate_of(row, 'own_first')} of the words"
        says.append(f"{row['head']} {own}{kin}{test}.")
    return says


def _defence(result: "Result") -> list[str]:
    back: dict[str, list[str]] = {}
    for row in rows_of(result, None):
        if measured(row.get("recovery")):
            back.setdefault(row["defence"], []).append(f"{short_name(row['condition'])} {estimate_of(row, 'recovery')}")
    return [
        f"{short_name(name)} gives back, of the efficacy score that the sentences take: {'; '.join(shares)}."
        for name, shares in back.items()
    ]


_SAYS: dict[str, Callable[["Result"], list[str]]] = {
    "answers": _answers,
    "efficacy": _efficacy,
    "ranking": _ranking,
    "patching": _patching,
    "split": _split,
    "shapley": _shapley,
    "recall": _recall,
    "defence": _defence,
    "knockout": link_words.knockout,
    "exchange": link_words.exchange,
    "attribution": link_words.attribution,
    "path": link_words.path,
    "head-kinds": link_words.head_kinds,
    "score-parts": link_words.score_parts,
    "memory": link_words.memory,
}
