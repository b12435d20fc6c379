"""One fact, what makes it valid, and how a record of each known schema becomes one."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from lcalens.core.errors import LcalensError
from lcalens.core.near import nearest
from lcalens.core.text import first_unseen, named, spaceless, word_of

PLACEHOLDER = "{}"
MAX_CHARACTERS = 10_000
MAX_DIGITS = 1_000
UNKNOWN_RELATION = "unknown"


class _Unnamed(str):
    """What stands for an identifier that was not given; told by identity from one that reads alike."""

    __slots__ = ()


_UNNAMED: str = _Unnamed("a digest of the other fields")

# A lone surrogate cannot be encoded and a control character is never part of a name, so both mean a damaged file.
_BAD_IN_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# A prompt of several lines ("Q: ...\nA:") is a legitimate one.
_BAD_IN_PROMPT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

_TRUE_KEYS = ("target_true", "ground_truth")
_FALSE_KEYS = ("target_false", "target_new")
_KEYS = {"case_id", "relation_id", "prompt", "base_prompt", "subject", "relation_prefix", "relation_suffix",
         "requested_rewrite", "str", *_TRUE_KEYS, *_FALSE_KEYS}  # fmt: skip


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


def _written(label: str, value: object, bad: re.Pattern[str] = _BAD_IN_NAME) -> str:
    """The value, seen to be a text that shows all it holds."""
    if not isinstance(value, str):
        raise LcalensError(f"{label}: {shown(value)} is a {type(value).__name__}; give a string.")
    if len(value) > MAX_CHARACTERS:
        raise LcalensError(
            f"{label}: {shown(value)} has {len(value):,} characters; give at most {MAX_CHARACTERS:,} of them."
        )
    if not value.strip():
        raise LcalensError(f"{label}: {shown(value)} is empty or only white space; give its text.")
    if match := bad.search(value):
        kind = "a lone surrogate" if "\ud800" <= match[0] <= "\udfff" else "a control character"
        raise LcalensError(
            f"{label}: {shown(value)} holds {kind}, U+{ord(match[0]):04X}, at character {match.start()}; remove it."
        )
    at = first_unseen(value)
    if at is not None:
        raise LcalensError(
            f"{label}: {shown(value)} holds {named(value[at])} at character {at}, which cannot be seen; remove it."
        )
    return value


def _text(label: str, value: object) -> str:
    """A name, without white space at its ends."""
    return _written(label, value.strip() if isinstance(value, str) and value.strip() else value)


def _object(label: str, value: object) -> str:
    """An object: a word behind the prompt, with or without its space, as every answer is."""
    return word_of(label, _written(label, value.strip(" ") if isinstance(value, str) and value.strip() else value))


def _template(label: str, value: object) -> str:
    prompt = _written(label, value, _BAD_IN_PROMPT)
    count = prompt.count(PLACEHOLDER)
    if count != 1:
        raise LcalensError(
            f"{label}: {shown(value)} has {count or 'no'} placeholder{'s' * (count > 1)} for the subject; "
            f"give exactly one {PLACEHOLDER!r}."
        )
    return prompt


def _case_id(label: str, value: object) -> int | str:
    if isinstance(value, str):
        return _text(label, value)
    # A table makes a column of integers with a gap one of floats, exact up to 2 to the 53.
    if isinstance(value, Real) and not isinstance(value, Integral) and -(1 << 53) < float(value) < 1 << 53:
        value = int(number) if (number := float(value)).is_integer() else value
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise LcalensError(f"{label}: {shown(value)} is a {type(value).__name__}; give an integer or a string.")
    number = int(value)
    if abs(number) >= 10**MAX_DIGITS:
        raise LcalensError(f"{label}: {shown(number)} has more than {MAX_DIGITS:,} digits; give a shorter one.")
    return number


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One fact and a false alternative to it.

    The prompt is kept as it is written, white space at its ends included: it decides what follows. White space at the
    ends of the other strings is no part of them.

    Args:
        case_id: The identifier the fact has in its source; a digest of the other fields by default.
        relation_id: The relation, such as `"P36"`; facts of an unknown one have no true negated sentences.
        prompt: A template with exactly one `"{}"`, the place of the subject; the object is the word behind it.
        subject: What the fact is about. Where a space at its end kept it from running into the template's words, the
            template gets it.
        target_true: The true object, with or without the space before it.
        target_false: The false object, likewise.

    Raises:
        LcalensError: Where a field has the wrong type, is empty, is too long, or holds a control character, a lone
            surrogate or a character that cannot be seen; where an object begins or ends with white space other than
            spaces; where the template has not exactly one `"{}"`; where the two objects are the same text.

    Example:
        >>> fact = Fact(prompt="{} is in", subject="The Eiffel Tower", target_true="Paris", target_false="Rome")
        >>> fact.text
        'The Eiffel Tower is in'
        >>> facts = load_facts([fact, Fact(prompt="{} is in", subject="The Colosseum", target_true="Rome",
        ...                                target_false="Paris")])
    """

    case_id: int | str = _UNNAMED
    relation_id: str = UNKNOWN_RELATION
    prompt: str
    subject: str
    target_true: str
    target_false: str

    def __post_init__(self) -> None:
        fields: dict[str, object] = {
            "case_id": self.case_id if self.case_id is _UNNAMED else _case_id("case_id", self.case_id),
            "relation_id": _text("relation_id", self.relation_id),
            "prompt": _template("prompt", self.prompt),
            "subject": _text("subject", self.subject),
            "target_true": _object("target_true", self.target_true),
            "target_false": _object("target_false", self.target_false),
        }
        fields["prompt"] = _parted(str(fields["prompt"]), self.subject)
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if self.case_id is _UNNAMED:
            content = [self.relation_id, self.prompt, self.subject, self.target_true, self.target_false]
            digest = hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()[:12]
            object.__setattr__(self, "case_id", f"fact-{digest}")
        if _same(self.target_true) == _same(self.target_false):
            raise LcalensError(
                f"target_false: {shown(self.target_false)} is the same text as target_true; give another object."
            )

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        # Not str.format: a subject or a prompt may hold braces of its own.
        return self.prompt.replace(PLACEHOLDER, self.subject)


def _same(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _parted(prompt: str, subject: str) -> str:
    """The template with the spaces that a subject brings along, where it would run into the words beside it."""
    before, after = prompt.split(PLACEHOLDER)
    name = subject.strip()
    if subject != subject.lstrip() and _run_together(before[-1:], name[0]):
        before += " "
    if subject != subject.rstrip() and _run_together(name[-1], after[:1]):
        after = " " + after
    return before + PLACEHOLDER + after


def _run_together(left: str, right: str) -> bool:
    return left.isalnum() and right.isalnum() and not (spaceless(left) or spaceless(right))


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
        raise LcalensError(f"record: {shown(record)} is a {type(record).__name__}; give a dict.")
    case_id = record.get("case_id")
    case_id = position if _missing(case_id) else _case_id("case_id", case_id)
    if not _missing(record.get("requested_rewrite")):
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


def _missing(value: object) -> bool:
    """Whether a value stands for one that a table's row lacks: null, NaN, and pandas' NA and NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Real) and value != value


def _required(record: Mapping[str, Any], *keys: str, within: str = "") -> tuple[str, Any]:
    for key in keys:
        if not _missing(record.get(key)):
            return within + key, record[key]
    names = " or ".join(repr(within + key) for key in keys)
    empty = next((key for key in keys if key in record), None)
    fix = _renamed(record, keys, within) if empty is None else f"{within + empty!r} is there and empty, give its text"
    present = ", ".join(shown(key, 30) for key, value in list(record.items())[:8] if not _missing(value)) or "none"
    raise LcalensError(f"missing key {names}; {fix} (the keys found are {present}).")


def _renamed(record: Mapping[str, Any], keys: tuple[str, ...], within: str) -> str:
    """What to do about a key that is missing: to rename one that is near to it and means nothing else, or to add it."""
    strange = [key for key in list(record)[:100] if key not in _KEYS and not _missing(record[key])]
    for key in keys:
        near = nearest(key, strange)
        if near is not None:
            return f"rename {within + near!r:.60} to {within + key!r}, or add it"
    return "add it"


def _target(label: str, value: object) -> str:
    if isinstance(value, Mapping):
        label, value = _required(value, "str", within=label + ".")
    return _object(label, value)


def _parse_nested(rewrite: object, case_id: int | str) -> Fact:
    within = "requested_rewrite."
    if not isinstance(rewrite, Mapping):
        raise LcalensError(f"requested_rewrite: {shown(rewrite)} is a {type(rewrite).__name__}; give a dict.")
    return Fact(
        case_id=case_id,
        relation_id=_text(*_required(rewrite, "relation_id", within=within)),
        prompt=_template(*_required(rewrite, "prompt", within=within)),
        subject=_written(*_required(rewrite, "subject", within=within), _BAD_IN_PROMPT),
        target_true=_target(*_required(rewrite, "target_true", within=within)),
        target_false=_target(*_required(rewrite, "target_new", within=within)),
    )


def _parse_flat(record: Mapping[str, Any], case_id: int | str) -> Fact:
    if all(_missing(record.get(key)) for key in ("prompt", "base_prompt", "subject", *_TRUE_KEYS, *_FALSE_KEYS)):
        # Nothing of the flat schema is there, so naming only its keys would mislead a user of the nested one.
        _required(record, "requested_rewrite", "prompt")
    label, prompt = _required(record, "prompt", "base_prompt")
    prompt = _written(label, prompt, _BAD_IN_PROMPT)
    raw_subject = _required(record, "subject")[1]
    subject = _text("subject", raw_subject)
    prefix, suffix = record.get("relation_prefix"), record.get("relation_suffix")
    if isinstance(prefix, str) and isinstance(suffix, str):
        prompt = _join(prompt, prefix, raw_subject, suffix)
    else:
        if not _missing(record.get("base_prompt")):
            base = _written("base_prompt", record["base_prompt"], _BAD_IN_PROMPT)
            label, prompt = _without_premise(label, prompt, base, subject)
        if PLACEHOLDER not in prompt or (PLACEHOLDER in subject and _once(prompt, subject)):
            prompt = _unfill(label, prompt, subject)
    relation = record.get("relation_id")
    return Fact(
        case_id=case_id,
        relation_id=UNKNOWN_RELATION if _missing(relation) else _text("relation_id", relation),
        prompt=_template(label, prompt),
        subject=raw_subject,
        target_true=_target(*_required(record, *_TRUE_KEYS)),
        target_false=_target(*_required(record, *_FALSE_KEYS)),
    )


def _without_premise(label: str, prompt: str, base: str, subject: str) -> tuple[str, str]:
    """The prompt of a record whose `prompt` may have a sentence before its `base_prompt`, as comp-mech's have."""
    if prompt.endswith(base) or not _once(prompt, subject):
        return "base_prompt", base
    raise LcalensError(
        f"prompt: {shown(prompt)} and base_prompt {shown(base)} are two prompts; leave out the one that is not meant."
    )


def _join(prompt: str, prefix: str, subject: str, suffix: str) -> str:
    """The template of a record that says where its subject stands; the subject carries its own leading space."""
    if prompt != prefix + subject + suffix:
        raise LcalensError(
            f"prompt: {shown(prompt)} is not relation_prefix + subject + relation_suffix; make the four agree."
        )
    # Where nothing stands before the subject, its space parts it from nothing.
    template = prefix + subject.replace(subject.strip(), PLACEHOLDER, 1) + suffix
    return template if prefix else template.lstrip(" ")


def _once(prompt: str, subject: str) -> bool:
    # Not str.count: it takes "ana" to occur once in "anana", where two templates are possible.
    return subject in prompt and prompt.find(subject) == prompt.rfind(subject)


def _unfill(label: str, prompt: str, subject: str) -> str:
    """The template of a prompt that already holds its subject."""
    if subject not in prompt:
        raise LcalensError(
            f"{label}: {shown(prompt)} holds neither {PLACEHOLDER!r} nor the subject {shown(subject, 40)}; "
            f"put {PLACEHOLDER!r} where the subject stands."
        )
    if _once(prompt, subject):
        return prompt.replace(subject, PLACEHOLDER)
    # "Ann" occurs twice in "Annual report of Ann", but only once as a word.
    words = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt))
    if len(words) != 1:
        raise LcalensError(
            f"{label}: {shown(prompt)} holds the subject {shown(subject, 40)} more than once; "
            f"put {PLACEHOLDER!r} where the subject stands."
        )
    return prompt[: words[0].start()] + PLACEHOLDER + prompt[words[0].end() :]
