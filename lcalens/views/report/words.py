"""What the numbers of a result say, in sentences made from them; a kind without words of its own has none."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lcalens.views.answers_text import moved_in_words
from lcalens.views.link_text import about_draws
from lcalens.views.report import link_words
from lcalens.views.report.numbers import (
    ENDS,
    FLATTERS,
    LOST,
    estimate_of,
    examples_of,
    measured,
    over_examples,
    recoveries_of,
    rows_of,
    site_of,
    sites_of,
)
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
    against = rows_of(result, "controls", subset="all")
    # Of the facts that have the control too: the table `summary` is of all facts of the scheme.
    without = {(row["scheme"], row["control"]): row["es"] for row in against if not row["n"]}
    says = []
    for row in against:
        scheme, n = row["scheme"], row["n"]
        if not n or not row["facts"] or n != max(other["n"] for other in against if other["scheme"] == scheme):
            continue
        before = without.get((scheme, row["control"]))
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
    first, quantity = rows[0], str(result.provenance.get("quantity", "value"))
    of = result.provenance.get("of", {}).get("provenance", {})
    if quantity == "recovery" and of.get("direction") == "corrupt":
        quantity = "recovery less 1"  # what the site brings of the hijack, with its sign turned
    begins = (
        f"The first of {len(rows)} is {site_of(result, first)}: {short_name(quantity)} {estimate_of(first, 'value')}"
    )
    if "held_out" not in first:
        return [f"{begins}."]
    others = f"{estimate_of(first, 'held_out')} on {result.provenance['held_out']} others"
    return [f"{begins} on the examples that ranked it, {others}."]


def _patching(result: "Result") -> list[str]:
    quantity, rows = recoveries_of(result)
    if not rows or not {"layer", "head"} <= set(rows[0]):
        return []
    best, least = (choose(rows, key=lambda row: row[quantity]) for choose in (max, min))
    name, most, over = site_of(result, best), estimate_of(best, quantity), over_examples(result, best)
    if result.provenance.get("source", "other") != "other":
        told = f"the largest {quantity} is that of {name}, {most}, {over}."
    elif quantity == LOST:
        told = f"{name} brings most of the hijack into the clean run: {most} of the way, {over}."
    else:
        told = f"{name} brings back most: {most} of the way from the hijacked run to the clean one, {over}."
    ends = [ENDS] if quantity == LOST else []
    if len(rows) == 1:
        return [" ".join([f"{told[0].upper()}{told[1:]}", *ends])]
    beside = [_least(result, best, least, quantity), FLATTERS]
    return [" ".join([f"Of {sites_of(rows)}, each by itself, {told}", *ends, *beside])]


def _least(result: "Result", best: Any, least: Any, quantity: str) -> str:
    """The smallest effect: what works the other way, where its sign is the other."""
    name, over = site_of(result, least), over_examples(result, least)
    shown = estimate_of(least, quantity) + ("" if over == over_examples(result, best) else f", {over}")
    if round(float(least[quantity]), 2) < 0:
        return f"{name} works the other way most: {shown}."
    return f"The smallest is that of {name}: {shown}."


def _split(result: "Result") -> list[str]:
    whole, total = rows_of(result, None, group="all"), rows_of(result, "balance", part="total")
    if not whole or not total:
        return []
    row, counts = whole[0], _counts(result)
    told = {part: estimate_of(row, part, signed=True) for part in counts}
    change = f"{estimate_of(total[0], 'change', signed=True)} {result.units['total']}"
    opening = f"The sentence changes the metric by {change}. Of this, heads write {told['total']} directly"
    if "inserted" not in counts:
        looks = f"{told['attention']} because they look elsewhere, "
        return [f"{opening}: {looks}{told['recall']} because what they look at recalls something else."]
    inserted = (
        f"{told['inserted']} comes from positions that one run alone has, and {told['shared']} from all others, "
        "undivided"
    )
    if "attention" not in counts:
        return [f"{opening}: {inserted}, as the runs' lengths differ."]
    every, aligned, others = (examples_of(counts[part]) for part in ("total", "attention", "inserted"))
    return [
        f"{opening}, over {every}. Over the {aligned} whose runs are of one length, {told['attention']} is because "
        f"they look elsewhere, {told['recall']} because what they look at recalls something else, {told['scale']} "
        f"because the final norm's scale is another. Over the {others} whose runs' lengths differ, {inserted}. These "
        "means are over different examples, and do not sum to the whole."
    ]


def _counts(result: "Result") -> dict[str, int]:
    """Over how many examples each part of a split is."""
    table = result.tables["summary"]
    whole = table[table["group"] == "all"]
    return dict(zip(map(str, whole["quantity"]), map(int, whole["n"]), strict=True))


def _shapley(result: "Result") -> list[str]:
    together = {row["part"]: row for row in rows_of(result, "together")}
    axis = next(name for name in result.axes if name != "example")
    first = max(rows_of(result, None), key=lambda row: row["shapley"])
    name = short_name(first[axis]) if axis == "head" else f"{axis.capitalize()} {short_name(first[axis])}"
    return [
        f"Together they carry {estimate_of(together['together'], 'share')} of the hijack; each alone, summed, would be "
        f"{estimate_of(together['each alone, summed'], 'share')}. {name} has the largest Shapley value: "
        f"{estimate_of(first, 'shapley')} {result.units['shapley']} ({estimate_of(first, 'alone')} alone); its share "
        f"of the hijack is {estimate_of(first, 'share')}."
    ]


def _recall(result: "Result") -> list[str]:
    tests = {row["head"]: row.get("p_holm") for row in rows_of(result, "tests")}
    says = []
    for row in rows_of(result, None):
        p, auc = tests.get(row["head"]), row.get("related_auc")
        kin = f"; related answers above unrelated ones: AUC {estimate_of(row, 'related_auc')}" if measured(auc) else ""
        test = f" (p = {p:.3f} against random circuits of the same spectrum, Holm-corrected)" if measured(p) else ""
        lead = "; their lead, own token and similarity regressed out, is"
        left = f"{lead} {estimate_of(row, 'left')} sd{test}" if measured(row.get("left")) else ""
        own = f"puts a word's own token first for a share of {estimate_of(row, 'own_first')} of the words"
        says.append(f"{row['head']} {own}{kin}{left}.")
    return says


def _defence(result: "Result") -> list[str]:
    back: dict[str, list[str]] = {}
    for row in rows_of(result, None):
        if measured(row.get("recovery")):
            back.setdefault(row["defence"], []).append(f"{short_name(row['condition'])} {estimate_of(row, 'recovery')}")
    return [
        f"{short_name(name)} gives back, of the efficacy score that the sentences take: {'; '.join(shares)}."
        for name, shares in back.items()
    ] + about_draws(result)


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
