"""The leading heads: one function, whose rule is in the record, so that two tables never mean two sets by one word."""

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from lcalens.core.checks import check_choice, check_int
from lcalens.core.errors import LcalensError
from lcalens.core.results import Result
from lcalens.mechanism.arguments import Head
from lcalens.mechanism.measured import measure_hijack

By = Literal["magnitude", "carrying"]
_NAMES = {"patching": "recovery", "knockout": "recovery", "attribution": "effect", "split": "direct effect",
          "path": "path"}  # fmt: skip


@dataclass(frozen=True)
class Leading(Sequence[Head]):
    """Heads in order, and the rule that chose them. It is a sequence of (layer, head), and goes wherever heads do.

    Attributes:
        heads: As (layer, head), the first leads.
        rule: What they lead in, as it is printed.
    """

    heads: tuple[Head, ...]
    rule: str

    def __getitem__(self, index: Any) -> Any:
        return self.heads[index]

    def __len__(self) -> int:
        return len(self.heads)

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    @property
    def names(self) -> tuple[str, ...]:
        """`L23H4` for layer 23's head 4."""
        return tuple(f"L{layer}H{head}" for layer, head in self.heads)

    def __str__(self) -> str:
        return f"{', '.join(self.names)} ({self.rule})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(str(self))}</p>"


def leading(result: Result, k: int = 10, *, by: By = "magnitude") -> Leading:
    """The heads that lead in a result.

    Two rules, and no third: `magnitude` takes the largest mean effects of either sign, so heads that work against the
    hijack are among them; `carrying` takes those that raise the metric most, so they are not. On the examples that
    ranked them the heads' effects flatter: report them on others.

    Args:
        result: Of `patch` at a site of heads, `knockout` of each head, `attribute`, `split`, or of `path` from heads to
            one receiver.
        k: How many heads; all where fewer are measured, or fewer raise the metric with `carrying`.
        by: `magnitude` or `carrying`.

    Returns:
        The heads in order, with the rule in words.

    Raises:
        LcalensError: An argument that cannot be used, a result that has no effect for each head alone, or with
            `carrying` one in which no head raises the metric.

    Example:
        >>> heads = leading(patch(model, contrast[::2]), 10)
        >>> print(heads)  # L23H4, L24H4, ... (largest mean recovery of either sign, of 20 examples)
        >>> split(model, contrast[1::2], twin=heads).tables["twin"]
    """
    count = check_int("k", k, low=1)
    check_choice("by", by, get_args(By))
    measured = measure_hijack("result", result)
    means = measured.mean(np.ones((1, len(measured.part))))[0]
    if result.kind == "path" and len(measured.axes["receiver"]) == 1:
        senders = [re.fullmatch(r"L(\d+)H(\d+)", str(name)) for name in measured.axes["sender"]]
        found = {(int(match[1]), int(match[2])): mean
                 for match, mean in zip(senders, means, strict=True) if match and np.isfinite(mean)}  # fmt: skip
        if found:
            grid = np.full(tuple(1 + max(head) for head in zip(*found, strict=True)), np.nan)
            for head, mean in found.items():
                grid[head] = mean
            return lead(grid, min(count, len(found)), by=by, kind=result.kind, examples=len(measured.part))
    heads = measured.axes.get("head", ())
    if list(measured.axes) != ["layer", "head"] or not all(isinstance(head, int | np.integer) for head in heads):
        raise LcalensError(
            f"result: heads lead where each has one effect, and this one is over {', '.join(measured.axes)}"
            f"{' of heads that share keys and values' if heads else ''}; patch the site z at one set of positions, or "
            "follow paths from heads to one receiver."
        )
    grid = means.reshape(len(measured.axes["layer"]), len(heads))
    leaders = lead(grid, count, by=by, kind=result.kind, examples=len(measured.part))
    layers = measured.axes["layer"]  # a hook's name may have asked for one alone
    return Leading(tuple((int(layers[layer]), int(heads[head])) for layer, head in leaders), leaders.rule)


def lead(means: Float[np.ndarray, "layer head"], k: int, *, by: By, kind: str, examples: int) -> Leading:
    """The heads that lead by their mean effects, positive where they raise the metric.

    Args:
        means: Of every head.
        k: How many.
        by: `magnitude` or `carrying`.
        kind: Of the result that they are of.
        examples: Of how many examples they are means.
    """
    keys = -np.abs(means) if by == "magnitude" else np.where(means > 0, -means, np.nan)
    if by == "carrying" and np.isnan(keys).all():
        raise LcalensError("by: no head raises the metric on average, so none is 'carrying'; take 'magnitude'.")
    order = np.argsort(np.where(np.isnan(keys), np.inf, keys), axis=None, kind="stable")
    order = order[: min(k, int(np.isfinite(keys).sum()))]
    places = zip(*np.unravel_index(order, means.shape), strict=True)
    sign = "of either sign" if by == "magnitude" else "that raises the metric"
    rule = f"largest mean {_NAMES.get(kind, 'effect')} {sign}, of {examples} examples"
    return Leading(tuple((int(layer), int(head)) for layer, head in places), rule)
