"""Which known name a mistyped one is near to, for errors that ask "Did you mean ...?"."""

import difflib
import re
from collections.abc import Iterable
from itertools import islice
from typing import Any

_NEAR = 0.65  # of difflib's ratio: "sampel" and "sample" have 0.83, "zero" and "mean" 0.25
_LONGEST = 80  # characters; nobody mistypes more than a name
_MOST = 2_000  # names that are looked through


def nearest(value: Any, known: Iterable[Any]) -> str | None:
    """The known name that the value was likely meant to be.

    Upper case, spaces, hyphens and underscores do not count. Names that differ in their digits are not near: P17 is
    no slip for P19, nor layer 3 for layer 13.

    Args:
        value: What was given; what is no string is near to nothing.
        known: The names; such as are no strings are passed over.

    Returns:
        The name as it is known, or None where none is near.

    Example:
        >>> nearest("sampel", ["sample", "counterfact"])
        'sample'
        >>> nearest("P17", ["P19", "P170"]) is None
        True
    """
    if not isinstance(value, str) or not value.strip() or len(value) > _LONGEST:
        return None
    typed = _plain(value)
    by_plain: dict[str, str] = {}
    for name in islice(known, _MOST):
        if isinstance(name, str) and len(name) <= _LONGEST and name != value and _agree(typed, _plain(name)):
            by_plain.setdefault(_plain(name), name)
    near = difflib.get_close_matches(typed, by_plain, n=1, cutoff=_NEAR)
    return by_plain[near[0]] if near else None


def did_you_mean(value: Any, known: Iterable[Any]) -> str:
    """A question to put behind an error's last sentence, or nothing where no known name is near.

    Args:
        value: What was given.
        known: The names.

    Example:
        >>> did_you_mean("dont_thnik", ["dont-think", "negation"])
        " Did you mean 'dont-think'?"
        >>> did_you_mean("Paris", ["dont-think", "negation"])
        ''
    """
    near = nearest(value, known)
    return "" if near is None else f" Did you mean {near!r:.60}?"


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().casefold())


def _agree(one: str, other: str) -> bool:
    """Whether two names have the same digits, or one of two long ones lacks some, as "gemma-270m" does."""
    digits, others = re.sub(r"\D", "", one), re.sub(r"\D", "", other)
    if digits == others:
        return True
    letters = re.sub(r"[\W\d_]", "", one)
    same = len(letters) >= 4 and letters == re.sub(r"[\W\d_]", "", other)
    return same and len(digits) < len(others) and digits in others and "." not in one
