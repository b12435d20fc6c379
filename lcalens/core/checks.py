"""Arguments seen to be what they should be, with an error that names the argument, the value and the reason."""

import math
import numbers
from collections.abc import Iterable
from typing import Any

from lcalens.core.errors import LcalensError
from lcalens.core.near import did_you_mean


def check_int(name: str, value: Any, *, low: int, high: int | None = None, why: str = "") -> int:
    """The value as an int, seen to be an integer in [low, high].

    Raises:
        LcalensError: It is not.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or int(value) < low or (high is not None and int(value) > high):
        range_in_words = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
        raise LcalensError(f"{name}: expected {range_in_words}, got {value!r:.60}{'; ' + why if why else ''}.")
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
        range_in_words = f"a number of at least {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
        raise LcalensError(f"{name}: expected {range_in_words}, got {value!r:.60}{'; ' + why if why else ''}.")
    return number


def check_choice(name: str, value: Any, known: Iterable[str]) -> str:
    """The value, seen to be one of some words.

    Args:
        name: The argument.
        value: What was given for it.
        known: The words.

    Raises:
        LcalensError: It is none of them.
    """
    words = tuple(known)
    if not isinstance(value, str) or value not in words:
        raise LcalensError(f"{name}: {value!r:.60} is not one of {', '.join(words)}.{did_you_mean(value, words)}")
    return str(value)


def check_bool(name: str, value: Any) -> bool:
    """The value, seen to be True or False.

    Args:
        name: The argument.
        value: What was given for it.

    Raises:
        LcalensError: It is neither.
    """
    if not isinstance(value, bool):
        raise LcalensError(f"{name}: expected True or False, got {value!r:.60}.")
    return value


def check_bridge(model: Any) -> None:
    """Refuse what is no TransformerBridge, with the call that makes one of it.

    Args:
        model: What was given as the model.

    Raises:
        LcalensError: It is something else.
    """
    if hasattr(model, "original_model") and hasattr(model, "hook_dict") and not isinstance(model, type):
        return
    family = getattr(getattr(model, "config", None), "model_type", None)
    if family == "lca":
        advice = "lcalens.lca_bridge(model) makes one of it"
    elif isinstance(family, str):
        advice = "lcalens.load_model(model, tokenizer=tokenizer) makes one of it"
    else:
        advice = "lcalens.load_model(name) makes one, and lcalens.lca_bridge(model) one of a toy model"
    raise LcalensError(f"model: expected a TransformerBridge, got {type(model).__name__}; {advice}.")
