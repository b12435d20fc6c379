"""Schemes of one's own under names of one's own: a sentence, and the control that it is compared with."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lcalens.core.errors import LcalensError
from lcalens.core.near import did_you_mean
from lcalens.core.text import check_written
from lcalens.llm.prompts.schemes import DONT_THINK, SCHEMES, Wording, find_scheme

CONTROLS = {"neutral": "neutral", "other": "other-object", "other-object": "other-object", "none": "none"}
"""Kinds of control that are made to align with the scheme's sentences, by the names that are taken for them."""

_OBJECT = re.compile(r"\{target_(?:true|false)\}")
_NAMED = re.compile(r"(?P<name>[^\s={}]+)=(?P<sentence>.*[\s{].*)", re.DOTALL)


@dataclass(frozen=True)
class Scheme:
    """A sentence of your own and its control: `efficacy(schemes={name: Scheme(...)})`, `contrast_facts(scheme=...)`.

    Attributes:
        sentence: A template with `{target_false}`, `{target_true}`, `{subject}` or `{unrelated}`, a random object of
            another relation; or the name of a built-in scheme.
        control: What it is compared with, a template or a built-in scheme's name; it is measured too. None: the same
            sentence about `{unrelated}` if that is measured, and `neutral` if that is.

    Raises:
        LcalensError: A sentence or control that is no template of these fields.

    Example:
        >>> forget = Scheme("Forget about {target_false}.", control="Forget about {unrelated}.")
        >>> efficacy(model, facts, schemes={"forget": forget}, counts=(0, 1)).plot()
    """

    sentence: str
    control: str | None = None

    def __post_init__(self):
        find_scheme(self.sentence)
        if self.control is not None and not _may_control(self.control):
            raise _hijacks_itself(self.control)


def _hijacks_itself(control: str) -> LcalensError:
    return LcalensError(
        f"control: {control!r:.120} hijacks itself; name no object of the fact, such as in 'Forget about "
        "{unrelated}.', or give 'neutral'."
    )


def _may_control(name: str) -> bool:
    """Whether a scheme or a sentence names neither object of the fact."""
    wording = find_scheme(name)
    return wording.role == "control" or (name not in SCHEMES and not _OBJECT.search(name))


def read_control(control: Any) -> str | Wording:
    """The control of a contrast: one of the kinds that are made to align, or the wording of a sentence.

    Args:
        control: A kind's name, or a sentence such as `"Forget about {unrelated}."`.

    Returns:
        `neutral`, `other-object`, `none`, or the sentence's wording.

    Raises:
        LcalensError: It is neither, or names an object of the fact.

    Example:
        >>> read_control("other")
        'other-object'
        >>> read_control("It is a sunny day.").role
        'hijack'
    """
    if isinstance(control, str) and control in CONTROLS:
        return CONTROLS[control]
    if isinstance(control, str) and control == "unrelated":
        return find_scheme(DONT_THINK.replace("{target_false}", "{unrelated}"))
    if not isinstance(control, str) or control in SCHEMES or not re.search(r"[\s{}]", control.strip()):
        known = (*CONTROLS, "unrelated")
        raise LcalensError(
            f"control: {control!r:.60} is not one of {', '.join(known)}, nor a sentence such as 'It is a sunny day.' "
            f"or 'Forget about {{unrelated}}.'.{did_you_mean(control, known)}"
        )
    try:
        wording = find_scheme(control)
    except LcalensError as error:
        raise LcalensError("control" + str(error).removeprefix("schemes")) from error
    if not _may_control(control):
        raise _hijacks_itself(control)
    return wording


def named_schemes(schemes: Any) -> dict[str, Wording]:
    """The schemes that `efficacy` measures, by the names they go under; controls asked for are among them.

    Args:
        schemes: Names and sentences; or a mapping of names to sentences or `Scheme`s; or `"all"` built-in ones.

    Raises:
        LcalensError: None, an unknown one, or a name that means something else.
    """
    if isinstance(schemes, Mapping):
        return _of_mapping(schemes)
    if not isinstance(schemes, Iterable):
        raise LcalensError(f"schemes: expected names or sentences, got {schemes!r:.60} ({type(schemes).__name__}).")
    names = [schemes] if isinstance(schemes, str) else list(schemes)
    found = {one.name: one for one in map(find_scheme, list(SCHEMES) if names == ["all"] else names)}
    if not found:
        raise LcalensError(f"schemes: there are none; known are {', '.join(SCHEMES)}.")
    return found


def with_names(schemes: Iterable[str]) -> list[str] | dict[str, str]:
    """What a command line means by its schemes: `name=Forget about {target_false}.` gives a sentence a name.

    Args:
        schemes: As typed.
    """
    typed = list(schemes)
    matches = [_NAMED.fullmatch(one) for one in typed]
    if not any(matches):
        return typed
    return {
        match["name"] if match else one: match["sentence"] if match else one
        for one, match in zip(typed, matches, strict=True)
    }


def _of_mapping(schemes: Mapping[Any, Any]) -> dict[str, Wording]:
    asked = {_name(name): one if isinstance(one, Scheme) else Scheme(one) for name, one in schemes.items()}
    if not asked:
        raise LcalensError(f"schemes: there are none; known are {', '.join(SCHEMES)}.")
    by_sentence = {one.sentence: name for name, one in asked.items()}
    for name, one in asked.items():
        if name in SCHEMES and one.sentence != name:
            raise LcalensError(f"schemes: {name!r} is a built-in scheme's name; give your sentence another.")
        if "{" in name and one.sentence != name:
            raise LcalensError(f"schemes: {name!r:.120} looks like a sentence; give a name without braces.")
    found: dict[str, Wording] = {}
    controls: dict[str, Wording] = {}
    for name, one in asked.items():
        wording = find_scheme(one.sentence)
        control = wording.control if one.control is None else one.control
        beside = by_sentence.get(control, control)
        if one.control is not None and beside not in asked and control not in SCHEMES:
            beside = f"{name} (control)"
        if one.control is not None and beside not in asked:
            controls[beside] = replace(find_scheme(control), name=beside, role="control", control="")
        found[name] = replace(wording, name=name, control=beside)
    return found | controls


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise LcalensError(f"schemes: a name must be some text, got {name!r:.60} ({type(name).__name__}).")
    check_written("schemes", name)
    return name
