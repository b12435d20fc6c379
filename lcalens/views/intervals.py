"""What is to be known of a result's intervals, in sentences that stand beside its numbers."""

from typing import TYPE_CHECKING

import pandas as pd

from lcalens.core.statistics import bootstrap_coverage

if TYPE_CHECKING:
    from lcalens.core.results import Result

_OF_RELATIONS = ("efficacy", "defence")  # kinds whose facts are resampled by relation
_COUNTED = ("own_first",)  # shares of words: that none did is no more certain than that all did
_ENOUGH = 10  # groups, of which a bootstrap interval of 95% holds 90%
_NO_INTERVAL = (
    "Recovery and shares have no interval over one example, nor where what they are of may be nothing: its own "
    "interval holds 0."
)
_NO_WIDTH = (
    "An interval of no width is of numbers that are all alike, which says nothing of how far others would be from them."
)


def about_intervals(result: "Result") -> list[str]:
    """What is to be known of a result's intervals: few groups, shares of nothing, and no width.

    Args:
        result: Over facts of relations, or examples of clusters; where there is a single one it is not resampled.
    """
    lines = _few_groups(result)
    if any(map(_shares_without_interval, result.tables.values())):
        lines.append(_NO_INTERVAL)
    if any(_without_width(table, result.kind in _OF_RELATIONS) for table in result.tables.values()):
        lines.append(_NO_WIDTH)
    return lines


def _without_width(table: pd.DataFrame, of_zero: bool) -> bool:
    """Whether an interval has no width; of a site that does nothing, whose effect is 0 in each example, it is right."""
    if not {"quantity", "value", "value_low", "value_high"} <= set(table):
        return False
    told = of_zero | (table["value"] != 0) | table["quantity"].isin(_COUNTED)
    return bool(((table["value_low"] == table["value_high"]) & told).any())


def _shares_without_interval(table: pd.DataFrame) -> bool:
    if not {"quantity", "value", "value_low"} <= set(table):
        return False
    quantity = table["quantity"].astype(str)
    of_a_whole = quantity.isin(("recovery", "share", "held_out", "relative")) | quantity.str.endswith("_share")
    return bool((of_a_whole & table["value"].notna() & table["value_low"].isna()).any())


def _few_groups(result: "Result") -> list[str]:
    examples, column = result.examples, "relation_id" if result.kind in _OF_RELATIONS else "cluster"
    count = examples[column].nunique() if column in examples else 0
    if not 2 <= count < _ENOUGH:
        return []
    groups = "relations" if "relation_id" in examples else "groups"
    held = f"one of 95% holds the mean about {bootstrap_coverage(count):.0%} of the time"
    return [f"Bootstrap intervals are over {count} {groups}, which are too few: {held}."]
