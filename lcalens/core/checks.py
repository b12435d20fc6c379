"""Arguments seen to be what they should be, with an error that names the argument, the value and the reason."""

import math
import numbers
from typing import Any

from lcalens.core.errors import LcalensError


def check_int(name: str, value: Any, *, low: int, high: int | None = None, why: str = "") -> int:
    """The value as an int, seen to be an integer in [low, high].

    Raises:
        LcalensError: It is not.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or int(value) < low or (high is not None and int(value) > high):
        wanted = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
        raise LcalensError(f"{name}: expected {wanted}, got {value!r:.60}{'; ' + why if why else ''}.")
    return int(value)


def check_real(name: str, value: Any, *, low: float | int, high: float | int = math.inf, why: str = "") -> float:
    """The value as a float, seen to be a finite number in [low, high].

    Raises:
        LcalensError: It is not.
    """
    try:
        number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or not low <= number <= high:
        wanted = f"a number of at least {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
        raise LcalensError(f"{name}: expected {wanted}, got {value!r:.60}{'; ' + why if why else ''}.")
    return number


def check_bridge(model: Any) -> None:
    """Refuse what is no TransformerBridge.

    Raises:
        LcalensError: It is something else.
    """
    if not hasattr(model, "original_model") or not hasattr(model, "hook_dict"):
        raise LcalensError(
            f"model: expected a TransformerBridge, got {type(model).__name__}; "
            "make one with lcalens.load_model(name), or load_model(hf_model, tokenizer=tokenizer)."
        )
