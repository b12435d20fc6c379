"""Dividing what changes between two runs: Shapley values of attention, recall and scale, by groups of positions.

Runs of different lengths are not divided: positions that one of them alone has are a term of their own.
"""

from collections.abc import Callable, Sequence
from itertools import product
from math import factorial
from typing import Any

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.engine.direct import DirectEffects
from lcalens.mechanism.contrast.contrast import Contrast

DIVIDED = ("attention", "recall", "scale")
UNDIVIDED = ("inserted", "shared")
REST = "rest"
_ORDER = ("word", "sentence", "subject", "last", "prompt")
_BY_GROUP = "batch layer head source, batch source group -> batch layer head group"
Labels = list[tuple[list[int], list[int]]]


def shapley(worth: Callable[[tuple[bool, ...]], Tensor], players: int) -> list[Tensor]:
    """Each player's Shapley value, exactly, over all 2^players coalitions; they sum to all's worth minus nobody's.

    Args:
        worth: From who takes part, a bool per player, to what they are worth.
        players: How many.
    """
    worths = {who: worth(who) for who in product((False, True), repeat=players)}
    values = []
    for player in range(players):
        value = torch.zeros_like(worths[(False,) * players])
        for who in worths:
            if not who[player]:
                joined = (*who[:player], True, *who[player + 1 :])
                share = factorial(sum(who)) * factorial(players - sum(who) - 1) / factorial(players)
                value = value + share * (worths[joined] - worths[who])
        values.append(value)
    return values


def lone_positions(clean: Sequence[int], hijacked: Sequence[int]) -> tuple[range, range]:
    """The positions that only the clean run has, and those that only the hijacked one has.

    Tokens align from the end. Of those before the longest common ending, as many as are equal align from the start: a
    BOS, the opening of a chat. What the longer run has besides is one block; runs of equal length have none.

    Args:
        clean: Token ids.
        hijacked: Token ids.
    """
    shorter = min(len(clean), len(hijacked))
    ending = next((i for i in range(shorter) if clean[-1 - i] != hijacked[-1 - i]), shorter)
    start = next((i for i in range(shorter - ending) if clean[i] != hijacked[i]), shorter - ending)
    return range(start, start + len(clean) - shorter), range(start, start + len(hijacked) - shorter)


def group_names(contrast: Contrast, groups: Any) -> tuple[str, ...]:
    """The spans that positions are grouped by, the first that holds a position having it.

    Args:
        contrast: Whose spans.
        groups: Names; by default those the user named in their order, then from `word` to `prompt`.

    Raises:
        LcalensError: They are no spans of the contrast.
    """
    if groups is None:
        spans_of_user = tuple(name for name in contrast.spans if name not in _ORDER)
        return spans_of_user + tuple(name for name in _ORDER if name in contrast.spans)
    listed = [groups] if isinstance(groups, str) else list(groups) if isinstance(groups, Sequence) else groups
    if not isinstance(listed, list) or not listed or any(name not in [*contrast.spans] for name in listed):
        raise LcalensError(f"groups: expected names of spans ({', '.join(contrast.spans)}), got {groups!r:.80}.")
    return tuple(dict.fromkeys(listed))


def group_positions(contrast: Contrast, names: tuple[str, ...]) -> tuple[Labels, Labels]:
    """For each example, of its clean and its hijacked positions: their groups, and whether one run alone has them.

    Args:
        contrast: The examples; its spans lie in the hijacked tokens, and clean positions have their partner's group.
        names: Of groups, the first that holds a position having it; the group after them is of what none holds.
    """
    labels, lone = [], []
    for index, (clean, hijacked) in enumerate(zip(contrast.clean, contrast.hijacked, strict=True)):
        groups_hijacked = [len(names)] * len(hijacked)
        for label in reversed(range(len(names))):
            for first, last in contrast.spans[names[label]][index]:
                groups_hijacked[first:last] = [label] * (last - first)
        alone = [[at in only for at in range(len(run))]
                 for only, run in zip(lone_positions(clean, hijacked), (clean, hijacked), strict=True)]  # fmt: skip
        partners = iter([label for label, only in zip(groups_hijacked, alone[1], strict=True) if not only])
        labels.append(([len(names) if only else next(partners) for only in alone[0]], groups_hijacked))
        lone.append((alone[0], alone[1]))
    return labels, lone


def divide(
    clean: DirectEffects,
    hijacked: DirectEffects,
    grouped: tuple[Int[Tensor, "batch clean_position"], Int[Tensor, "batch position"]],
    lone: tuple[Bool[Tensor, "batch clean_position"], Bool[Tensor, "batch position"]],
    groups: int,
) -> dict[str, Float[Tensor, "batch layer head group"]]:
    """Every head's direct effect in the hijacked run minus that in the clean one, by group of positions.

    Args:
        clean: Direct effects of some examples of one bucket.
        hijacked: Of the same.
        grouped: The group of every clean and every hijacked position.
        lone: Which positions only one of the runs has.
        groups: How many there are.

    Returns:
        `total`, and its parts. For runs of equal length `attention`, `recall` and `scale`: Shapley values of the
        product pattern * recall * scale, position by position. Else NaN for these three, and `inserted`, what comes
        from positions that one run alone has, and `shared`, the others' change.
    """
    members = [torch.nn.functional.one_hot(index, groups).double() for index in grouped]

    def total(effects: DirectEffects, members: Tensor) -> Tensor:
        return einsum(effects.heads_by_source, members, _BY_GROUP)

    totals = {"total": total(hijacked, members[1]) - total(clean, members[0])}
    if clean.pattern.shape != hijacked.pattern.shape:
        alone = [member * mask[..., None] for member, mask in zip(members, lone, strict=True)]
        inserted = total(hijacked, alone[1]) - total(clean, alone[0])
        unknown = torch.full_like(inserted, torch.nan)
        return dict.fromkeys(DIVIDED, unknown) | {"inserted": inserted, "shared": totals["total"] - inserted} | totals
    factors = [(run.pattern, run.recall, run.scale[..., None, None]) for run in (clean, hijacked)]
    changes = shapley(lambda who: factors[who[0]][0] * factors[who[1]][1] * factors[who[2]][2], len(DIVIDED))
    shares = [einsum(change, members[1], _BY_GROUP) for change in changes]
    nothing = torch.zeros_like(totals["total"])
    return dict(zip(DIVIDED, shares, strict=True)) | dict.fromkeys(UNDIVIDED, nothing) | totals
