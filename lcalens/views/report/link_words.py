"""What the numbers of attention, paths and recall say, in sentences made from them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lcalens.views.report.numbers import (
    ENDS,
    FLATTERS,
    LOST,
    estimate_of,
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

_MANY = 6  # sets, heads and paths that are told one by one


def knockout(result: "Result") -> list[str]:
    """How much of the hijack goes with the attention that is cut."""
    _, rows = recoveries_of(result)
    made = result.provenance
    if not rows:
        return []
    row, heads = max(rows, key=lambda row: row["recovery"]), made["heads"]
    over = over_examples(result, row)
    if heads == "each":
        name, gone = site_of(result, row), estimate_of(row, "recovery")
        if len(rows) == 1:
            return [f"Where {name} does not look at the span {made['span']!r}, {gone} of the hijack is gone, {over}."]
        return [
            f"Of {sites_of(rows)}, each by itself kept from looking at the span {made['span']!r}, {name} takes most of "
            f"the hijack away: {gone}, {over}. {FLATTERS}"
        ]
    whose = "no head" if not heads else "all heads" if heads == "all" else f"{len(heads)} heads"
    return [
        f"Where {'one head does' if whose == '1 heads' else f'{whose} do'} not look at the span {made['span']!r}, "
        f"{estimate_of(row, 'recovery')} of the hijack is gone, {over}."
    ]


def exchange(result: "Result") -> list[str]:
    """What each set's patterns and values bring back."""
    rows = rows_of(result, None)
    sets = dict.fromkeys(row["set"] for row in rows)
    says = []
    for name in list(sets)[:_MANY]:
        by = {row["twin"]: estimate_of(row, "recovery") for row in rows if row["set"] == name}
        told = "; ".join(f"{short_name(twin)} {share}" for twin, share in by.items())
        says.append(f"Set {short_name(str(name))} brings back, of the way to the clean run: {told}.")
    return says


def attribution(result: "Result") -> list[str]:
    """The largest estimate by slopes, and what it is."""
    quantity, rows = recoveries_of(result)
    if not rows or not {"layer", "head"} <= set(rows[0]):
        return []
    best = max(rows, key=lambda row: row[quantity])
    method = str(result.provenance["method"]).replace("-", " ")
    told = (
        f"Of {sites_of(rows)}, by the method {method!r}, {site_of(result, best)} has the largest {quantity}: "
        f"{estimate_of(best, quantity)}, {over_examples(result, best)}."
    )
    return [" ".join([told, *([ENDS] if quantity == LOST else []), *([FLATTERS] if len(rows) > 1 else [])])]


def path(result: "Result") -> list[str]:
    """To each receiver: how much reaches it directly in all, and from whom most."""
    rows = [row for row in rows_of(result, None) if measured(row.get("share"))]
    says = []
    for whole in rows_of(result, "receivers")[:_MANY]:
        to = [row for row in rows if row["receiver"] == whole["receiver"]]
        if not to:
            continue
        best = max(to, key=lambda row: row["share"])
        most = f"{short_name(best['sender'])}'s direct path"
        carries = (
            f"Of {len(to)} senders {most} carries most" if len(to) > 1 else f"{most[:1].upper()}{most[1:]} carries"
        )
        says.append(
            f"What {short_name(whole['receiver'])} reads of the clean run's stream takes {estimate_of(whole, 'share')} "
            f"of the hijack away. {carries}: {estimate_of(best, 'share')}."
        )
    return [*says, FLATTERS] if says else []


def head_kinds(result: "Result") -> list[str]:
    """Which heads are of which kind by the rule, and how many would be by chance."""
    says = []
    counts = {row["kind"]: row for row in rows_of(result, "counts")}
    heads = rows_of(result, None)
    for column, kind, does in (
        ("mover", "mover", "look at the false object and write it"),
        ("amplifier", "amplifier", "carry what movers wrote"),
        ("counter", "counter", "push back"),
    ):
        named = [str(row["head"]) for row in heads if row[column]]
        chance = counts.get(kind, {}).get("by_chance")
        by_chance = f" (by chance {chance:.2f})" if measured(chance) else ""
        listed = f": {', '.join(named[:_MANY])}{' and more' if len(named) > _MANY else ''}" if named else ""
        says.append(f"{len(named)} of {len(heads)} heads {does}{listed}{by_chance}.")
    return says


def score_parts(result: "Result") -> list[str]:
    """How much more a head's score for the object's tokens is than for others, and who writes it on either side."""
    says, kinds = [], rows_of(result, "kinds")
    for row in rows_of(result, "heads")[:_MANY]:
        sides = []
        for side in ("query", "key"):
            own = [one for one in kinds if one["head"] == row["head"] and one["side"] == side]
            if own:
                best = max(own, key=lambda one: one["score"])
                sides.append(f"on the {side} side {short_name(best['kind'])} write {estimate_of(best, 'score')}")
        says.append(
            f"{row['head']}'s score for the object is {estimate_of(row, 'score', signed=True)} above what it is "
            f"compared with{': ' if sides else ''}{', '.join(sides)}."
        )
    return says


def memory(result: "Result") -> list[str]:
    """What is recalled of held-out pairs by the built matrices, beside shuffled pairs, and what stays of the hijack."""
    held, stays = (_by(rows_of(result, table), "memory") for table in ("held_out", None))
    says = []
    for name in ("circuit", "sum", "centred"):
        row = held.get(name, {})
        if not measured(row.get("auc")):
            continue
        control = held.get(f"{name}, shuffled", {}).get("auc")
        beside = f" (of shuffled pairs {control:.2f})" if measured(control) else ""
        left = stays.get(name, {})
        kept = f"; in the head's place {estimate_of(left, 'stays')} of the hijack stays" if left else ""
        what = "The head's own circuit" if name == "circuit" else f"The memory {name!r}"
        says.append(
            f"{what} ranks the answers of held-out cues above others: AUC {estimate_of(row, 'auc')}{beside}{kept}."
        )
    nothing = stays.get("nothing", {})
    if measured(nothing.get("stays")):
        says.append(f"With nothing in the head's place {estimate_of(nothing, 'stays')} of the hijack stays.")
    return says


def _by(rows: list[dict[str, Any]], column: str) -> Mapping[str, dict[str, Any]]:
    return {str(row[column]): row for row in rows}
