"""Where a head is asked to look, and at the expense of what: the keys of a hijack, and the hijack's other tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.mechanism.arguments import Positions, read_positions
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.contrast.inputs import place

OTHERS = "others"
_KEYS = ("word", "redrawn")  # where the false object stands, in either world
_AROUND = "sentence"


@dataclass(frozen=True)
class Looked:
    """Positions of every example's hijacked tokens.

    Attributes:
        keys: Where the false object stands.
        others: What it is compared with; empty where it is compared with nothing.
        record: Both in words, as provenance has them.
    """

    keys: tuple[tuple[int, ...], ...]
    others: tuple[tuple[int, ...], ...]
    record: dict[str, Any]

    def weights(self, rows: Sequence[int], length: int) -> Float[Tensor, "side batch position"]:
        """The weights of a mean over the keys, and of one over the others (0 where there are none).

        Args:
            rows: Which examples.
            length: How many tokens they have.
        """
        found = torch.zeros(2, len(rows), length, dtype=torch.float64)
        for side, positions in enumerate((self.keys, self.others)):
            for row, example in enumerate(rows):
                at = list(positions[example])
                found[side, row, at] = 1 / max(1, len(at))
        return found


def read_looked(contrast: Contrast, keys: Positions | None, over: Positions | None) -> Looked:
    """Where heads are asked to look, of what a user gives.

    Args:
        contrast: The examples.
        keys: A span's name or indices of the hijacked tokens; None for the span of the false object.
        over: `others`, a span's name or indices; None for nothing.

    Raises:
        LcalensError: There are no such positions, or nothing is left to compare with.
    """
    if keys is None:
        named = next((name for name in _KEYS if name in contrast.spans), None)
        if named is None:
            raise LcalensError(
                f"keys: the contrast has no span {' or '.join(map(repr, _KEYS))}, where the false object stands; name "
                f"one of {', '.join(contrast.spans)}, or give indices."
            )
        keys = named
    targets = _read("keys", contrast, keys)
    if over is None:
        return Looked(targets, ((),) * len(contrast), {"keys": _plain(keys), "over": None})
    if isinstance(over, str) and over == OTHERS:
        # Attention that has nothing to look at rests on the first token: it is no rival.
        ends = [len(row) - 1 for row in contrast.hijacked]
        around = _read("over", contrast, _AROUND) if _AROUND in contrast.spans else [range(end) for end in ends]
        rivals = [set(some) - {0} for some in around]
    else:
        rivals = [set(some) for some in _read("over", contrast, over)]
    others = tuple(tuple(sorted(some - set(at))) for some, at in zip(rivals, targets, strict=True))
    empty = next((example for example, some in enumerate(others) if not some), None)
    if empty is not None:
        raise LcalensError(
            f"over: example {empty} has no tokens but the keys to compare with; give others, over=None for none, or "
            "choose examples, contrast[[...]]."
        )
    return Looked(targets, others, {"keys": _plain(keys), "over": _plain(over)})


def _plain(positions: Positions) -> Any:
    plain = read_positions(positions)
    return list(plain) if isinstance(plain, tuple) else plain


def _read(name: str, contrast: Contrast, positions: Positions) -> tuple[tuple[int, ...], ...]:
    """Each example's positions from the start of its hijacked tokens; the clean run need not have them."""
    found = []
    try:
        where = read_positions(positions)
        if isinstance(where, str) and where in ("all", "each"):
            raise LcalensError(f"positions: {where!r} leaves nothing to compare with; name a span, or give indices.")
        for example, tokens in enumerate(contrast.hijacked):
            spans = {span: rows[example] for span, rows in contrast.spans.items()}
            (group,) = place(where, spans, tokens, tokens, example)
            found.append(tuple(len(tokens) + at for at in group))
    except LcalensError as error:
        raise LcalensError(name + str(error).removeprefix("positions")) from error
    return tuple(found)
