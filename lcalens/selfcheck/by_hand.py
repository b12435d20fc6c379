"""Patches by hand: hooks on the bridge, written here and nowhere else, that the verbs are compared with.

Many patched runs go in one forward pass, a row for each; a row is nobody else's, which an identity of its own checks.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.engine.sites import BY_QUERY, HEADS, SHARED, hook_name
from lcalens.selfcheck.identity import Unjudged
from lcalens.selfcheck.subject import Subject

Change = Callable[[Tensor], Tensor]
"""Of the rows of one edited run: an activation to what is put in its place."""
Edited = dict[str, Change]
"""What one edited run changes, by the hook's name."""
_DISCARDED = r".*The edit is discarded"  # TransformerLens, where attention runs inside Hugging Face's own module


def edited(
    subject: Subject, tokens: Int[Tensor, "batch position"], runs: Sequence[Edited]
) -> Float[Tensor, "run batch"]:
    """The metric of some edited runs, all in one forward pass.

    Args:
        subject: The model.
        tokens: Of the run that is edited.
        runs: What each changes.

    Raises:
        Unjudged: The bridge discards edits, or calls a hook never.
    """
    size, called = len(tokens), set()

    def put(name: str) -> Callable[..., Tensor]:
        def change(value: Tensor, hook: Any) -> Tensor:
            called.add(name)
            value = value.clone()
            for number, run in enumerate(runs):
                if name in run:
                    rows = slice(number * size, (number + 1) * size)
                    value[rows] = run[name](value[rows].clone()).to(value)
            return value

        return change

    names = list(dict.fromkeys(name for run in runs for name in run))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=_DISCARDED)
        try:
            logits = subject.last(tokens.repeat(len(runs), 1), [(name, put(name)) for name in names])
        except (KeyError, UserWarning) as error:
            raise Unjudged(f"TransformerLens does not let this be edited ({error!s:.60}), by hand neither") from error
    missed = [name for name in names if name not in called]
    if missed:
        raise Unjudged(f"TransformerLens never calls {missed[0]}, so nothing can be compared there")
    return subject.metric(logits).view(len(runs), size)


def putting(site: str, source: Tensor, head: int | None, positions: Sequence[int] | slice) -> Change:
    """What puts a source's activation in at some positions of one head, or of the whole site.

    Args:
        site: One of `SITES`.
        source: The activation in the other run.
        head: Which; None for the whole site.
        positions: Counted from the end.
    """

    def change(value: Tensor) -> Tensor:
        index: Any = (slice(None), positions)
        if site in BY_QUERY:
            index = (slice(None), slice(None) if head is None else head, positions)
        elif site in HEADS | SHARED and head is not None:
            index = (slice(None), positions, head)
        value[index] = source[index].to(value)
        return value

    return change


def patched(
    subject: Subject,
    places: Sequence[tuple[int, int | None]],
    site: str,
    positions: Sequence[int] | slice,
    *,
    together: bool = False,
) -> Float[Tensor, "place batch"]:
    """The hijacked runs' metric where a site is the clean runs', at each place by itself or at all at once.

    Args:
        subject: The model.
        places: Layers and heads.
        site: Which activation.
        positions: Counted from the end.
        together: All in one run.

    Raises:
        Unjudged: A hook shows something else than its name says, or edits do nothing.
    """
    single: list[Edited] = []
    for layer, head in places:
        change = putting(site, subject.hook("clean", site, layer), head, positions)
        single.append({hook_name(site, layer): change})
    runs = [_joined(single)] if together else single
    return edited(subject, subject.bucket.hijacked, runs)


def _joined(runs: Sequence[Edited]) -> Edited:
    joined: Edited = {}
    for run in runs:
        for name, change in run.items():
            before = joined.get(name)
            joined[name] = change if before is None else _after(before, change)
    return joined


def _after(first: Change, second: Change) -> Change:
    return lambda value: second(first(value))


def without(subject: Subject, layer: int, hidden: Tensor, heads: Sequence[int] | slice) -> Change:
    """What takes keys away from a pattern; what is left is as the softmax without them would give it.

    Args:
        subject: The model.
        layer: Which.
        hidden: (batch, query, key): what is not seen.
        heads: Whose.
    """
    attention = getattr(subject.model.blocks[layer].attn, "original_component", None)
    sinks = getattr(attention, "sinks", None) is not None

    def change(pattern: Tensor) -> Tensor:
        before = pattern[:, heads].double()
        left = before.masked_fill(hidden[:, None].to(before.device), 0.0)
        # What attention sinks take stays theirs.
        sink = (1 - before.sum(-1, keepdim=True)).clamp(min=0) if sinks else 0.0
        pattern[:, heads] = (left / (left.sum(-1, keepdim=True) + sink)).to(pattern)
        return pattern

    return change


def sampled(values: Tensor, count: int = 3) -> list[tuple[int, ...]]:
    """Where to look closely: the places of the largest effects, and the first and the last.

    Args:
        values: An effect for each place.
        count: How many of the largest.
    """
    flat = values.abs().flatten()
    chosen = [*flat.topk(min(count, len(flat))).indices.tolist(), 0, len(flat) - 1]
    places = {tuple(int(at[0]) for at in torch.unravel_index(torch.tensor([one]), values.shape)) for one in chosen}
    return sorted(places)
