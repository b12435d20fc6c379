"""An identity that must hold on every model, and the verdict on it: exact, refused or wrong."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lcalens.core.errors import LcalensError

Word = Literal["exact", "refused", "wrong"]
FAINT = 5.0
"""How many times the tolerance an effect must be for the identity to say anything."""


class Unjudged(Exception):
    """Why an identity can be neither seen to hold nor to fail on a model."""


@dataclass(frozen=True)
class Measured:
    """What was found of an identity.

    Attributes:
        error: By how much its two sides differ.
        tolerance: By how much rounding, or the error of what they are compared with, lets them.
        effect: The largest change that they agree on: an identity of nothing says nothing.
        note: In a few words, which way was taken.
    """

    error: float
    tolerance: float
    effect: float
    note: str = ""


@dataclass(frozen=True)
class Identity:
    """What must hold.

    Attributes:
        name: Short and unique.
        says: In a sentence.
        verbs: Whose numbers are wrong where it fails; `EVERY` for those of all.
        measure: What is found of it on a subject.
    """

    name: str
    says: str
    verbs: tuple[str, ...]
    measure: Callable[[Any], Measured]


@dataclass(frozen=True)
class Verdict:
    """What became of an identity on a model.

    Attributes:
        identity: Which.
        word: `exact`, `refused` or `wrong`.
        reason: Of all but `exact`; there, which way was taken.
        error: See `Measured`; NaN where nothing was measured.
        tolerance: See `Measured`.
        effect: See `Measured`.
        seconds: That it took.
    """

    identity: Identity
    word: Word
    reason: str = ""
    error: float = math.nan
    tolerance: float = math.nan
    effect: float = math.nan
    seconds: float = 0.0


def judge(identity: Identity, subject: Any) -> Verdict:
    """Measure an identity, and say what became of it.

    A verb that refuses the model with a reason is refused; one that fails in any other way is wrong, for then nobody
    knows what it does.

    Args:
        identity: Which.
        subject: On what.
    """
    started = time.perf_counter()
    try:
        measured = identity.measure(subject)
    except (LcalensError, Unjudged) as error:
        return Verdict(identity, "refused", str(error), seconds=time.perf_counter() - started)
    except Exception as error:  # a fault of ours or of a library: to be told, with the other identities
        reason = f"it fails with {type(error).__name__}: {error!s:.200}"
        return Verdict(identity, "wrong", reason, seconds=time.perf_counter() - started)
    word, reason = _word(measured)
    numbers = (measured.error, measured.tolerance, measured.effect)
    return Verdict(identity, word, reason, *numbers, seconds=time.perf_counter() - started)


def _word(measured: Measured) -> tuple[Word, str]:
    if not measured.error <= measured.tolerance:  # NaN is wrong
        behind = f"; {measured.note}" if measured.note else ""
        return "wrong", f"they differ by {measured.error:.3g}, where rounding allows {measured.tolerance:.2g}{behind}"
    if not measured.effect >= FAINT * measured.tolerance:
        return "refused", (
            f"nothing moves by more than {measured.effect:.2g}, and the tolerance is {measured.tolerance:.2g}: what "
            "agrees on so little shows nothing"
        )
    return "exact", measured.note
