"""What the numbers of a result say, in sentences made from them; a kind without words of its own has none."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lcalens.views.answers_text import moved_in_words
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
    shares = {(row["scheme"], row["n"]): row["es"] for row in _rows(result, None, subset="all")}
    against = _rows(result, "controls", subset="all")
    says = []
    for row in against:
        scheme, n = row["scheme"], row["n"]
        if not n or not row["facts"] or n != max(other["n"] for other in against if other["scheme"] == scheme):
            continue
        before = shares.get((scheme, 0))
        start = f", {before:.2f} without a sentence" if _measured(before) else ""
        opening = (
            f"{short_name(scheme)}, n = {n}: the false object is the more probable for a share of "
            f"{_estimate(row, 'es')} of {row['facts']} facts{start}."
        )
        said = (
            f"Behind {short_name(row['control'])} it is {_estimate(row, 'es_control')}; the difference is "
            f"{_estimate(row, 'difference', signed=True)}, {_apart(row, 'difference')}."
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
    if not (_measured(low) and _measured(high)):
        return "for which too few facts are there to give an interval"
    return "whose interval holds zero" if low <= 0 <= high else "whose interval does not hold zero"


def _ranking(result: "Result") -> list[str]:
    rows = _rows(result, None)
    first = rows[0]
    if "held_out" not in first:
        return [f"The first of {len(rows)} is {_head(first)}: {_estimate(first, 'value')}."]
    return [
        f"The first of {len(rows)} is {_head(first)}: {_estimate(first, 'value')} on the examples that ranked it, "
        f"{_estimate(first, 'held_out')} on {result.provenance['held_out']} others."
    ]


def _patching(result: "Result") -> list[str]:
    rows = [row for row in _rows(result, None) if _measured(row.get("recovery"))]
    if not rows or not {"layer", "head"} <= set(rows[0]):
        return []
    best, against = (choose(rows, key=lambda row: row["recovery"]) for choose in (max, min))
    made = result.provenance
    if (made.get("direction", "restore"), made.get("source", "other")) != ("restore", "other"):
        return [
            f"Of {len(rows)} heads, each by itself, the largest recovery is {_head(best)}'s, "
            f"{_estimate(best, 'recovery')}, and the smallest {_head(against)}'s, "
            f"{_estimate(against, 'recovery')}, over {made['examples']} examples."
        ]
    return [
        f"Of {len(rows)} heads, each by itself, {_head(best)} brings back most: {_estimate(best, 'recovery')} of the "
        f"way from the hijacked run to the clean one, over {result.provenance['examples']} examples. "
        f"{_head(against)} works the other way most: {_estimate(against, 'recovery')}. The largest of so many "
        "flatters itself; it is to be measured again on other examples."
    ]


def _split(result: "Result") -> list[str]:
    whole, total = _rows(result, None, group="all"), _rows(result, "balance", part="total")
    if not whole or not total:
        return []
    row = whole[0]
    return [
        f"The sentence changes the metric by {_estimate(total[0], 'change', signed=True)} {result.units['total']}. "
        f"Of this, heads write "
        f"{_estimate(row, 'total', signed=True)} directly: {_estimate(row, 'attention', signed=True)} because they "
        f"look elsewhere, {_estimate(row, 'recall', signed=True)} because what they look at recalls something else."
    ]


def _shapley(result: "Result") -> list[str]:
    together = {row["part"]: row for row in _rows(result, "together")}
    axis = next(name for name in result.axes if name != "example")
    first = max(_rows(result, None), key=lambda row: row["shapley"])
    return [
        f"Together they carry {_estimate(together['together'], 'share')} of the hijack; each alone, summed, would be "
        f"{_estimate(together['each alone, summed'], 'share')}. {short_name(first[axis])} has the largest share: "
        f"{_estimate(first, 'share')} ({_estimate(first, 'alone')} alone, {_estimate(first, 'shapley')} as a Shapley "
        f"value, in {result.units['shapley']})."
    ]


def _recall(result: "Result") -> list[str]:
    tests = {row["head"]: row.get("p_holm") for row in _rows(result, "tests")}
    says = []
    for row in _rows(result, None):
        p, auc = tests.get(row["head"]), row.get("related_auc")
        kin = f"; related answers above unrelated ones: AUC {auc:.2f}" if _measured(auc) else ""
        test = f" (p = {p:.3f} against random circuits of the same spectrum, Holm-corrected)" if _measured(p) else ""
        own = f"puts a word's own token first for a share of {_estimate(row, 'own_first')} of the words"
        says.append(f"{row['head']} {own}{kin}{test}.")
    return says


def _defence(result: "Result") -> list[str]:
    back: dict[str, list[str]] = {}
    for row in _rows(result, None):
        if _measured(row.get("recovery")):
            back.setdefault(row["defence"], []).append(f"{short_name(row['condition'])} {_estimate(row, 'recovery')}")
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
}


def _rows(result: "Result", table: str | None, **only: str) -> list[dict[str, Any]]:
    """A table's rows as dictionaries; of `only`, those with these entries."""
    rows = [{str(name): value for name, value in row.items()} for row in result.wide(table).to_dict("records")]
    return [row for row in rows if all(row.get(name) == value for name, value in only.items())]


def _head(row: Any) -> str:
    return f"L{int(row['layer'])}H{int(row['head'])}"


def _estimate(row: Any, quantity: str, *, signed: bool = False) -> str:
    return estimate(*(row.get(f"{quantity}{end}") for end in ("", "_low", "_high")), signed=signed)


def estimate(value: float | None, low: float | None, high: float | None, *, signed: bool = False) -> str:
    """A number with its interval where it has one, as text.

    Args:
        value: The number; nothing was measured where it is missing.
        low: The interval's lower end.
        high: Its upper end.
        signed: Show the sign of what is above zero too.
    """
    if not _measured(value):
        return "not measured"
    sign = "+" if signed else ""
    numbers = [number for number in (value, low, high) if number is not None and _measured(number)]
    shown, *ends = (f"{round(number, 2) + 0.0:{sign}.2f}" for number in numbers)  # never -0.00
    return f"{shown} [{', '.join(ends)}]" if len(ends) == 2 else shown


def _measured(number: float | None) -> bool:
    return number is not None and number == number  # NaN is not
