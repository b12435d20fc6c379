"""The tables of `memory`: what each memory is beside the circuit, what it recalls, and what stays of the hijack."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.linalg import subspace_angles

from lcalens.core.statistics import ratio_of_means
from lcalens.core.tables import lengthen
from lcalens.engine.circuits import Circuit
from lcalens.mechanism.association import KINDS, Kind, Maker, Memory, Pairs
from lcalens.mechanism.recall_measures import measures
from lcalens.mechanism.summary import interval
from lcalens.mechanism.swapped import Swapped

OWN, NONE, DRAWN = "circuit", "nothing", "same spectrum"
_GROUPS = 100  # of cues, of which the jackknife leaves one out
_FLAT = 1e-9  # of the largest singular value
_SWAPPED = {
    "stays": "share", "stays_all": "share", "of_head": "share", "of_head_all": "share", "right": "share",
    "right_all": "share",
}  # fmt: skip
_BESIDE = {
    "cosine": "cosine", "writes_angle": "degrees", "reads_angle": "degrees", "writes_mean_angle": "degrees",
    "reads_mean_angle": "degrees", "size": "share",
}  # fmt: skip
Quantities = dict[str, list[dict[str, Any]]]
_HELD_OUT = {"first": "share", "auc": "share", "rank": "rank"}


def quantities_of(maker: Maker, asked: Pairs, memories: Sequence[Memory], rank: int) -> list[dict[str, Any]]:
    """For each draw of a memory: what it is beside the circuit, and what it recalls of cues held out.

    Args:
        maker: Of the head's memories.
        asked: The pairs.
        memories: The draws, or the one that there is.
        rank: How many singular vectors span the subspaces.
    """
    return [_compared(maker.circuit, one.whole, rank) | {"cues": _recalled(maker, asked, one)} for one in memories]


def _compared(own: Circuit, other: Circuit, rank: int) -> dict[str, float]:
    """Cosine and principal angles; NaN of nothing."""
    if other.size == 0 or own.size == 0:
        return dict.fromkeys(list(_BESIDE)[:-1], np.nan)
    parts = [one.svd() for one in (own, other)]
    known = [int((values > _FLAT * values[0]).sum()) for _, values, _ in parts]
    kept = min(rank, *known)
    found = {"cosine": own.inner(other) / (own.size * other.size)}
    for name, side in (("writes", 0), ("reads", 2)):
        angles = np.rad2deg(subspace_angles(*(part[side][:, :kept].cpu().numpy() for part in parts)))
        found[f"{name}_angle"], found[f"{name}_mean_angle"] = float(angles.min()), float(angles.mean())
    return found


def _recalled(maker: Maker, asked: Pairs, made: Memory) -> dict[str, Float[np.ndarray, " cue"]]:
    """Cue by cue, where the right answers stand among those of its half, by the memory of the other half."""
    found = {name: np.full(len(asked.cues), np.nan) for name in _HELD_OUT}
    for half in (0, 1):
        rows = np.flatnonzero(asked.half == half)
        columns = np.flatnonzero(asked.right[rows].any(0))
        written = made.halves[1 - half](maker.streams[torch.from_numpy(rows).to(maker.streams.device)])
        table = (written @ maker.directions[torch.from_numpy(columns).to(written.device)].T).cpu().numpy()
        right = asked.right[np.ix_(rows, columns)]
        measured = measures(table, np.full(len(rows), -1), right, np.zeros_like(table))
        found["auc"][rows], found["rank"][rows] = measured["related_auc"], measured["related_rank"]
        centred = table - table.mean(0)
        top = centred == centred.max(1, keepdims=True)
        found["first"][rows] = (top & right).any(1) & ~(top & ~right).any(1)
    return found


def beside_table(maker: Maker, found: Quantities) -> pd.DataFrame:
    """Cosines, angles and sizes, a row for each memory.

    Args:
        maker: Of the head's memories.
        found: Of each memory, from `quantities_of`.
    """
    columns: dict[str, Any] = {"memory": list(found)}
    for name in list(_BESIDE)[:-1]:
        columns |= interval(name, _spread([[one[name] for one in some] for some in found.values()]))
    columns["size"] = [
        maker.made(kind, every, every).size / maker.circuit.size if kind in KINDS else np.nan
        for every in [np.arange(len(maker.streams))]
        for kind in found
    ]
    for kind in KINDS:
        row = list(found).index(kind)
        ends = _cosine_interval(maker, kind, columns["cosine"][row])
        columns["cosine_low"][row], columns["cosine_high"][row] = ends
    return lengthen(pd.DataFrame(columns), _BESIDE)


def _cosine_interval(maker: Maker, kind: Kind, cosine: float) -> tuple[float, float]:
    """Of the cosine, by the jackknife over cues: a resample would have some of them twice, which lowers it."""
    count = len(maker.streams)
    groups = np.random.default_rng(0).permutation(count) % min(count, _GROUPS)
    found = []
    for group in range(groups.max() + 1):
        which = np.flatnonzero(groups != group)
        made = maker.made(kind, which, which)
        if made.size > 0:
            found.append(maker.circuit.inner(made) / (maker.circuit.size * made.size))
    if len(found) < 2:
        return np.nan, np.nan
    reach = 1.96 * np.sqrt((len(found) - 1) * np.var(found))
    return cosine - reach, cosine + reach


def _spread(draws: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of draws, and their middle 95%; of one draw the number alone."""
    means = np.array([np.mean(some) for some in draws])
    ends = [np.array([np.quantile(some, q) if len(some) > 1 else np.nan for some in draws]) for q in (0.025, 0.975)]
    return means, ends[0], ends[1]


def held_out_table(found: Quantities) -> pd.DataFrame:
    """Where right answers stand, on average over cues, a row for each memory.

    Args:
        found: Of each memory, from `quantities_of`.
    """
    columns: dict[str, Any] = {"memory": list(found)}
    for name in _HELD_OUT:
        columns |= interval(name, _over([[one["cues"][name] for one in some] for some in found.values()], None, None))
    return lengthen(pd.DataFrame(columns), _HELD_OUT)


def by_cue_table(asked: Pairs, found: Quantities) -> pd.DataFrame:
    """Where right answers stand, a row for each memory and cue.

    Args:
        asked: The pairs.
        found: Of each memory, from `quantities_of`.
    """
    cues, answers = asked.names
    said = [", ".join(np.array(answers)[row]) for row in asked.right]
    frame = pd.DataFrame(
        {
            "memory": np.repeat(list(found), len(cues)),
            "cue": cues * len(found),
            "answers": said * len(found),
            "half": np.tile(asked.half, len(found)),
        }
        | {
            name: np.concatenate([np.mean([one["cues"][name] for one in some], 0) for some in found.values()])
            for name in _HELD_OUT
        }
    )
    return lengthen(frame, _HELD_OUT)


# --- in the circuit's place -----------------------------------------------------------------------------------------


def what_stays(
    memories: dict[str, list[Memory]], swapped: Swapped, judged: Bool[np.ndarray, " example"], clusters: Any
) -> tuple[dict[str, np.ndarray], pd.DataFrame, dict[str, list[list[float]]]]:
    """Values by example and memory; what stays as a table; and the same draw by draw.

    Args:
        memories: By name, all draws of each.
        swapped: Of the draws, in their order.
        judged: Which examples count.
        clusters: Of the examples, for the intervals.
    """
    ends = np.cumsum([0, *map(len, memories.values())])
    parts = [slice(first, last) for first, last in pairwise(ends)]
    hijack = np.where(judged[:, None, None], swapped.metric[:, 1] - swapped.metric[:, 0], np.nan)
    right = np.where(judged[:, None, None], swapped.right, np.nan)
    whole = np.where(judged, swapped.ends[:, 1] - swapped.ends[:, 0], 0.0)
    nothing = hijack[:, 1]
    values: dict[str, np.ndarray] = {}
    table: dict[str, Any] = {"memory": list(memories)}
    drawn: dict[str, list[list[float]]] = {}
    for made, behind in ((1, ""), (0, "_all")):
        values[f"hijack{behind}"] = np.stack([hijack[:, part, made].mean(1) for part in parts], 1)
        values[f"right{behind}"] = np.stack([right[:, part, made].mean(1) for part in parts], 1)
        beyond = hijack[:, :, made] - nothing[:, [made]]
        of_head = np.nan_to_num(beyond[:, 0])
        for name, some, over in (
            ("stays", hijack[:, :, made], whole),
            ("of_head", beyond, of_head),
            ("right", right[:, :, made], np.ones(len(right))),
        ):
            lists = [[some[:, at] for at in range(part.start, part.stop)] for part in parts]
            table |= interval(f"{name}{behind}", _over(lists, over, clusters))
            drawn[f"{name}{behind}"] = [[_ratio(one, over) for one in each] for each in lists]
    return values, lengthen(pd.DataFrame(table), _SWAPPED), drawn


def _ratio(part: Float[np.ndarray, " some"], whole: Float[np.ndarray, " some"] | None) -> float:
    known = np.isfinite(part)
    under = float(known.sum() if whole is None else whole[known].sum())
    return float(part[known].sum()) / under if abs(under) > 0 else np.nan


def _over(
    lists: Sequence[Sequence[Float[np.ndarray, " some"]]], whole: Float[np.ndarray, " some"] | None, clusters: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each memory the ratio of means with its interval; of what is drawn the draws' mean and middle 95%."""
    ends = _spread([[_ratio(one, whole) for one in some] for some in lists])
    for row, some in enumerate(lists):
        if len(some) == 1:
            over = np.ones(len(some[0])) if whole is None else whole
            for end, found in zip(ends, ratio_of_means(some[0][:, None], over, clusters), strict=True):
                end[row] = found[0]
    return ends


def tests_table(found: Quantities, stays: dict[str, list[list[float]]]) -> pd.DataFrame:
    """For each memory the share of its controls with as large a value.

    Args:
        found: Of each memory, from `quantities_of`.
        stays: Of each quantity of `what_stays`, the draws of each memory.
    """
    names = list(found)

    def numbers(memory: str, quantity: str) -> list[float]:
        if quantity == "cosine":
            return [one["cosine"] for one in found[memory]]
        if quantity == "auc":
            return [_ratio(one["cues"]["auc"], None) for one in found[memory]]
        return stays[quantity][names.index(memory)]

    rows = []
    for kind in KINDS:
        for control in (f"{kind}, shuffled", DRAWN):
            row: dict[str, Any] = {"memory": kind, "control": control}
            for quantity in ("cosine", "auc", "stays", "stays_all"):
                row[quantity] = share_as_large(numbers(kind, quantity)[0], numbers(control, quantity))
            rows.append(row)
    return lengthen(pd.DataFrame(rows), dict.fromkeys(("cosine", "auc", "stays", "stays_all"), "probability"))


def share_as_large(value: float, drawn: Sequence[float]) -> float:
    """The share of draws, the value itself among them, that are as large; NaN where there is none to compare.

    Args:
        value: What was found.
        drawn: What chance gives.
    """
    known = np.array(drawn)[~np.isnan(drawn)]
    if np.isnan(value) or not len(known):
        return float("nan")
    return float((1 + (known >= value).sum()) / (1 + len(known)))
