"""One fact, what makes it valid, and how a record of each known schema becomes one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from lcalens.core.errors import LcalensError

PLACEHOLDER = "{}"
MAX_CHARACTERS = 10_000
MAX_DIGITS = 1_000
UNKNOWN_RELATION = "unknown"

# A lone surrogate cannot be encoded and a control character is never part of a name, so both mean a damaged file.
_BAD_IN_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# A prompt of several lines ("Q: ...\nA:") is a legitimate one.
_BAD_IN_PROMPT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

_TRUE_KEYS = ("target_true", "ground_truth")
_FALSE_KEYS = ("target_false", "target_new")


def shown(value: object, width: int = 80) -> str:
    """The start of `repr(value)`, in time and space that do not depend on the size of the value.

    Args:
        value: Anything, however large or hostile.
        width: The most characters to return.

    Returns:
        A one-line text for an error message.
    """
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return f"<{type(value).__name__} of {len(value)}>"
    if isinstance(value, str | bytes):
        value = value[: width + 1]
    try:
        text = repr(value)
    except Exception:  # an integer of too many digits, or a class of the user's whose __repr__ fails
        text = f"<{type(value).__name__}>"
    return text if len(text) <= width else text[: width - 3] + "..."


def _text(label: str, value: object, bad: re.Pattern[str] = _BAD_IN_NAME) -> str:
    if not isinstance(value, str):
        raise LcalensError(f"{label}={shown(value)} is a {type(value).__name__}: give a string")
    if len(value) > MAX_CHARACTERS:
        raise LcalensError(
            f"{label}={shown(value)} has {len(value):,} characters: give at most {MAX_CHARACTERS:,} of them"
        )
    text = value.strip()
    if not text:
        raise LcalensError(f"{label}={shown(value)} is empty or only white space: give its text")
    if found := bad.search(text):
        kind = "a lone surrogate" if "\ud800" <= found[0] <= "\udfff" else "a control character"
        raise LcalensError(
            f"{label}={shown(value)} holds {kind}, U+{ord(found[0]):04X}, at character {found.start()}: remove it"
        )
    return text


def _template(label: str, value: object) -> str:
    # A space at the end would double the one that begins the object, and so would change the tokens measured.
    prompt = _text(label, value, _BAD_IN_PROMPT)
    count = prompt.count(PLACEHOLDER)
    if count != 1:
        raise LcalensError(
            f"{label}={shown(value)} has {count or 'no'} placeholder{'s' * (count > 1)} for the subject: "
            f"give exactly one {PLACEHOLDER!r}"
        )
    return prompt


def _case_id(label: str, value: object) -> int | str:
    if isinstance(value, str):
        return _text(label, value)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise LcalensError(f"{label}={shown(value)} is a {type(value).__name__}: give an integer or a string")
    number = int(value)
    if abs(number) >= 10**MAX_DIGITS:
        raise LcalensError(f"{label}={shown(number)} has more than {MAX_DIGITS:,} digits: give a shorter one")
    return number


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One fact and a false alternative to it. Every string is stripped of white space at its ends.

    Args:
        case_id: The identifier the fact has in its source.
        relation_id: The relation, such as `"P36"`.
        prompt: A template with exactly one `"{}"`, the place of the subject; the object comes right after its end.
        subject: What the fact is about.
        target_true: The true object.
        target_false: The false object.

    Raises:
        LcalensError: Where a field has the wrong type, is empty, is too long, or holds a control character or a lone
            surrogate; where the template has not exactly one `"{}"`; where the two objects are the same text.
    """

    case_id: int | str
    relation_id: str
    prompt: str
    subject: str
    target_true: str
    target_false: str

    def __post_init__(self) -> None:
        fields: dict[str, object] = {
            "case_id": _case_id("case_id", self.case_id),
            "relation_id": _text("relation_id", self.relation_id),
            "prompt": _template("prompt", self.prompt),
            "subject": _text("subject", self.subject),
            "target_true": _text("target_true", self.target_true),
            "target_false": _text("target_false", self.target_false),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if self.target_true.casefold() == self.target_false.casefold():
            raise LcalensError(
                f"target_false={shown(self.target_false)} is the same text as target_true: give another object"
            )

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        # Not str.format: a subject or a prompt may hold braces of its own.
        return self.prompt.replace(PLACEHOLDER, self.subject)


@dataclass(frozen=True)
class Skipped:
    """A record that holds no usable fact.

    Args:
        position: The record's index in its source, from 0.
        case_id: Its identifier, where it has a usable one.
        reason: What is wrong with it.
    """

    position: int
    case_id: int | str | None
    reason: str


@dataclass(frozen=True)
class Records:
    """Records as they were read, none of them checked.

    Args:
        name: The source's name, for people.
        records: The records, in the source's order.
        lines: The line each of them stands on, for JSON lines.
    """

    name: str
    records: list[Any]
    lines: list[int] | None = None


@dataclass(frozen=True)
class Unreadable:
    """Takes the place of a record that could not even be parsed."""

    reason: str


def parse_record(record: object, position: int) -> Fact:
    """Reads one record, of whichever known schema it is.

    Args:
        record: The record: a mapping, or a `Fact`, which is returned as it is.
        position: Its index in its source, used as the identifier of a record that has none.

    Returns:
        The fact it holds.

    Raises:
        LcalensError: Where it holds no valid fact; the message says why.
    """
    if isinstance(record, Fact):
        return record
    if isinstance(record, Unreadable):
        raise LcalensError(record.reason)
    if not isinstance(record, Mapping):
        raise LcalensError(f"record={shown(record)} is a {type(record).__name__}: give a dict")
    case_id = record.get("case_id")
    case_id = position if case_id is None else _case_id("case_id", case_id)
    if record.get("requested_rewrite") is not None:
        return _parse_nested(record["requested_rewrite"], case_id)
    return _parse_flat(record, case_id)


def known_case_id(record: object) -> int | str | None:
    """The identifier of a record that is not valid, where that at least is.

    Args:
        record: Anything.

    Returns:
        The identifier, or None.
    """
    if not isinstance(record, Mapping):
        return None
    try:
        return _case_id("case_id", record.get("case_id"))
    except LcalensError:
        return None


def _required(record: Mapping[str, Any], *keys: str, within: str = "") -> tuple[str, Any]:
    # A table stores a key that a row lacks as a null, so null and absent mean the same.
    for key in keys:
        if record.get(key) is not None:
            return within + key, record[key]
    names = " or ".join(repr(within + key) for key in keys)
    found = ", ".join(shown(key, 30) for key in list(record)[:8]) or "none"
    raise LcalensError(f"missing key {names}: add it (the keys found are {found})")


def _target(label: str, value: object) -> str:
    if isinstance(value, Mapping):
        label, value = _required(value, "str", within=label + ".")
    return _text(label, value)


def _parse_nested(rewrite: object, case_id: int | str) -> Fact:
    within = "requested_rewrite."
    if not isinstance(rewrite, Mapping):
        raise LcalensError(f"requested_rewrite={shown(rewrite)} is a {type(rewrite).__name__}: give a dict")
    return Fact(
        case_id=case_id,
        relation_id=_text(*_required(rewrite, "relation_id", within=within)),
        prompt=_template(*_required(rewrite, "prompt", within=within)),
        subject=_text(*_required(rewrite, "subject", within=within)),
        target_true=_target(*_required(rewrite, "target_true", within=within)),
        target_false=_target(*_required(rewrite, "target_new", within=within)),
    )


def _parse_flat(record: Mapping[str, Any], case_id: int | str) -> Fact:
    if not any(record.get(key) is not None for key in ("prompt", "subject", *_TRUE_KEYS, *_FALSE_KEYS)):
        # Nothing of the flat schema is there, so naming only its keys would mislead a user of the nested one.
        _required(record, "requested_rewrite", "prompt")
    label, prompt = _required(record, "prompt")
    prompt = _text(label, prompt, _BAD_IN_PROMPT)
    raw_subject = _required(record, "subject")[1]
    subject = _text("subject", raw_subject)
    prefix, suffix = record.get("relation_prefix"), record.get("relation_suffix")
    if isinstance(prefix, str) and isinstance(suffix, str):
        prompt = _join(record["prompt"], prefix, raw_subject, suffix)
    elif PLACEHOLDER not in prompt or (PLACEHOLDER in subject and _once(prompt, subject)):
        prompt = _unfill(prompt, subject)
    relation = record.get("relation_id")
    return Fact(
        case_id=case_id,
        relation_id=UNKNOWN_RELATION if relation is None else _text("relation_id", relation),
        prompt=_template("prompt", prompt),
        subject=subject,
        target_true=_target(*_required(record, *_TRUE_KEYS)),
        target_false=_target(*_required(record, *_FALSE_KEYS)),
    )


def _join(prompt: str, prefix: str, subject: str, suffix: str) -> str:
    """The template of a record that says where its subject stands; the subject carries its own leading space."""
    if prompt != prefix + subject + suffix:
        raise LcalensError(
            f"prompt={shown(prompt)} is not relation_prefix + subject + relation_suffix: make the four agree"
        )
    return prefix + subject.replace(subject.strip(), PLACEHOLDER, 1) + suffix


def _once(prompt: str, subject: str) -> bool:
    # Not str.count: it takes "ana" to occur once in "anana", where two templates are possible.
    return subject in prompt and prompt.find(subject) == prompt.rfind(subject)


def _unfill(prompt: str, subject: str) -> str:
    """The template of a prompt that already holds its subject."""
    if subject not in prompt:
        raise LcalensError(
            f"prompt={shown(prompt)} holds neither {PLACEHOLDER!r} nor the subject {shown(subject, 40)}: "
            f"put {PLACEHOLDER!r} where the subject stands"
        )
    if _once(prompt, subject):
        return prompt.replace(subject, PLACEHOLDER)
    # "Ann" occurs twice in "Annual report of Ann", but only once as a word.
    words = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt))
    if len(words) != 1:
        raise LcalensError(
            f"prompt={shown(prompt)} holds the subject {shown(subject, 40)} more than once: "
            f"put {PLACEHOLDER!r} where the subject stands"
        )
    return prompt[: words[0].start()] + PLACEHOLDER + prompt[words[0].end() :]
