"""Written text: what may stand in a prompt or an answer, and what stands between the two (docs/text.md).

Everything here is about characters; `lcalens.core.tokens` makes tokens of them.
"""

import re
import unicodedata
from functools import lru_cache
from typing import Any

from lcalens.core.errors import LcalensError

# A control character other than these is never part of a text, so it means a damaged one.
_WRITTEN_CONTROLS = "\t\n"
# Letters, marks and symbols that show nothing, beside the format characters (category Cf).
_BLANKS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
# Format characters that are drawn: the Arabic number signs and their like, and Egyptian signs that set others.
_DRAWN = re.compile(r"[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd\U00013430-\U0001343f]")
_JOINERS = "\u200c\u200d"
_JOINING = ("ARABIC", "SYRIAC", "MONGOLIAN", "DEVANAGARI", "BENGALI", "GURMUKHI", "GUJARATI", "ORIYA", "TAMIL",
            "TELUGU", "KANNADA", "MALAYALAM", "SINHALA", "KHMER", "MYANMAR", "THAANA", "NKO")  # fmt: skip
_WORD_BREAK = "\u200b"
_BREAKING = ("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE", "BALINESE")
_SUSPECT = re.compile(f"[^ -~\\t\\n]|[{_BLANKS}]")

# Scripts whose words are written without spaces, by how the names of their characters begin.
_SPACELESS = (
    "CJK UNIFIED", "CJK COMPATIBILITY", "CJK RADICAL", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA",
    "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI ", "NEW TAI", "JAVANESE", "BALINESE", "YI SYLLABLE",
    "TANGUT", "NUSHU",
)  # fmt: skip
_EAST_ASIAN = _SPACELESS[:8]  # where sentences follow one another without a space as well
# Both ends of a quotation look alike, or change sides from one language to the next.
_QUOTES = '"\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a\u2018\u201a\u201b'
_APOSTROPHES = "'\u2019"
_TIGHT = "/\\_=+&"  # like a hyphen: a space follows only where one stands before
_MARKUP = "*`|<>^"
_ELISION = re.compile(
    r"(?<!\w)(?:[cdjlmnst]|qu|jusqu|lorsqu|puisqu|quoiqu|un|all|dall|dell|nell|sull|coll|quell|quest|bell|sant)$",
    re.IGNORECASE,
)


def check_text(argument: str, text: Any) -> None:
    """Refuse what is not text that UTF-8 can write.

    Raises:
        LcalensError: Not a string, or it holds lone surrogates.
    """
    if not isinstance(text, str):
        raise LcalensError(f"{argument}: expected a string, got {type(text).__name__} ({text!r:.60}).")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LcalensError(
            f"{argument}: {text!r:.60} holds a character that UTF-8 cannot write, at {error.start}."
        ) from error


def check_written(argument: str, text: Any) -> str:
    """The text, seen to hold nothing that a reader cannot see.

    A model reads a zero-width space, a byte-order mark or a soft hyphen as tokens, and nobody sees them. They are kept
    only where a script needs them: joiners in Arabic, Persian and Indic words and in emoji, breaks between Thai, Lao,
    Khmer or Burmese words.

    Raises:
        LcalensError: As `check_text`; a control or an invisible character, which the message names.
    """
    check_text(argument, text)
    at = first_unseen(text)
    if at is not None:
        raise LcalensError(
            f"{argument}: {text!r:.60} holds {named(text[at])} at character {at}, which cannot be seen; remove it."
        )
    return text


def first_unseen(text: str) -> int | None:
    """Where the first character stands that has no place in a text and cannot be seen."""
    return next((match.start() for match in _SUSPECT.finditer(text) if _unseen(text, match.start())), None)


def _unseen(text: str, at: int) -> bool:
    character = text[at]
    category = unicodedata.category(character)
    if category == "Cc":
        return character not in _WRITTEN_CONTROLS
    if character in _BLANKS:
        return True
    if category != "Cf" or _DRAWN.match(character):
        return False
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if character in _JOINERS:
        return not (_script(before, _JOINING) or (character == "\u200d" and _emoji(before) and _emoji(after)))
    if character == _WORD_BREAK:
        return not (_script(before, _BREAKING) and _script(after, _BREAKING))
    if "\U000e0020" <= character <= "\U000e007f":  # the tags that spell a region's flag
        return re.search("\U0001f3f4[\U000e0020-\U000e007f]*$", text[:at]) is None
    return True


def _emoji(character: str) -> bool:
    # A variation selector, a skin tone or a tag may stand between two signs that are joined.
    return bool(character) and (unicodedata.category(character) in ("So", "Sk") or character in "\ufe0f\U000e007f")


def named(character: str) -> str:
    """A character by its code point and name, for errors."""
    name = unicodedata.name(character, "a control character" if unicodedata.category(character) == "Cc" else "")
    return f"U+{ord(character):04X}" + (f" ({name})" if name else "")


def word_of(argument: str, answer: Any) -> str:
    """An answer as the word it is: `" Paris"`, `"Paris "` and `"Paris"` are one.

    Raises:
        LcalensError: As `check_written`; it is empty, or begins or ends with white space other than spaces.
    """
    word = check_written(argument, answer).strip(" ")
    if not word.strip():
        raise LcalensError(f"{argument}: {answer!r:.60} is empty; give a text, such as 'Paris'.")
    if word != word.strip():
        at = 0 if word[0].isspace() else -1
        raise LcalensError(
            f"{argument}: {answer!r:.60} {'ends' if at else 'begins'} with {named(word[at])}; an answer is a word "
            "behind the prompt: leave it out, or put it at the prompt's end or into join."
        )
    return word


def check_join(join: Any) -> None:
    """Refuse a join that is no white space.

    Raises:
        LcalensError: Neither None nor a string of white space.
    """
    if join is not None and (not isinstance(join, str) or join.strip() or first_unseen(join) is not None):
        raise LcalensError(
            f"join: expected white space such as ' ' or '' between prompt and answer, or None to find it, got "
            f"{join!r:.60}."
        )


def join_between(prompt: str, word: str) -> str:
    """What stands between a prompt and the word behind it, as the prompt's language and its end have it.

    Args:
        prompt: The text before.
        word: The answer, without white space at its ends.

    Returns:
        A space or nothing.

    Raises:
        LcalensError: The prompt's end leaves it open.
    """
    if not prompt or prompt[-1].isspace() or _closes(word):
        return ""
    end, kind = prompt[-1], unicodedata.category(prompt[-1])
    before = prompt.rstrip(end)[-1:]
    # A sign at the start of a word, or one that stands alone.
    free = not before or before.isspace() or unicodedata.category(before) in ("Ps", "Pi")
    if end in _MARKUP:
        raise _open()
    if end in _APOSTROPHES and before.isalpha():
        if _ELISION.search(prompt[:-1]):
            return ""
        raise _open()
    if kind == "Ps" or end in "@~" or (end in _QUOTES + _APOSTROPHES and free):
        return ""
    if kind == "Sc":
        return " " if before.isdigit() else ""  # "5$", but "US$"
    if end == "#":
        return " " if before.isalnum() else ""  # "C#", but "is #"
    if kind == "Pd" or end in _TIGHT:
        return " " if free else ""
    return _join_of_scripts(prompt, word)


def _open() -> LcalensError:
    return LcalensError("join: the prompt's end does not tell whether a space follows; give join=' ' or join=''.")


def _closes(word: str) -> bool:
    """Whether a word is such that no space stands before it: a full stop, a closing bracket, `'s`."""
    first, second = word[0], word[1:2]
    if first in _APOSTROPHES:
        return re.match(r".(?:s|t|re|ve|ll|d|m)(?!\w)", word, re.IGNORECASE) is not None
    closing = all(unicodedata.category(character) in ("Pe", "Po") for character in word)
    return closing or (first in ".,:;!?%\u2026" and not second.isalnum())


def _join_of_scripts(prompt: str, word: str) -> str:
    """A space, unless the prompt's end or both sides of the border are written without spaces between words."""
    if _wide(prompt[-1]):
        return ""
    end = next((at for at in range(len(prompt) - 1, -1, -1) if _is_letter(prompt[at])), None)
    if end is None:
        return " "
    if not spaceless(prompt[end]):
        if not spaceless(word[0]):
            return " "
        # "法国 is" is written with spaces up to its end, "約1400" is not.
        tail = prompt[next((at for at in range(end, -1, -1) if spaceless(prompt[at])), -1) + 1 :]
        return "" if len(tail) < len(prompt) and not any(map(str.isspace, tail)) else " "
    if _korean(prompt):
        return " "
    if spaceless(word[0]) or not word[0].isalnum():
        return ""
    # Beside words of another script some writers put spaces, and Thai does: as the prompt itself has it.
    return " " if re.search(r"\w \w", prompt) and _spaced_border(prompt) else ""


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def _spaced_border(prompt: str) -> bool:
    borders = re.finditer(r"(?=(\w) (\w))", prompt)
    return any(spaceless(match[1]) != spaceless(match[2]) for match in borders)


def _korean(prompt: str) -> bool:
    """Whether Han characters stand in a Korean text, which has spaces between its words."""
    hangul = sum(_script(character, ("HANGUL",)) for character in prompt)
    return hangul > sum(map(spaceless, prompt))


@lru_cache(maxsize=65536)
def _script(character: str, names: tuple[str, ...]) -> bool:
    return bool(character) and unicodedata.name(character, "").startswith(names)


def spaceless(character: str) -> bool:
    """Whether a character is of a script that puts no spaces between words: Japanese, Chinese, Thai, Lao, Khmer..."""
    return character > "\u0dff" and _script(character, _SPACELESS) and unicodedata.category(character) != "Sc"


def _wide(character: str) -> bool:
    """Whether a sign brings its own space along, as East Asian punctuation does."""
    return (
        "\u3000" <= character <= "\u303f"
        or "\uff00" <= character <= "\uff65"
        or character in "\u30fb\ufe30\ufe31\ufe32\ufe33"
    )


def join_sentences(before: str, after: str) -> str:
    """What stands between a sentence and the text behind it: a space, or nothing where one of them brings white space.

    Args:
        before: The sentence; where it ends with Japanese or Chinese characters or punctuation, no space follows.
        after: What follows.
    """
    if not before or not after or before[-1].isspace() or after[0].isspace():
        return ""
    return "" if _wide(before[-1]) or _script(before[-1], _EAST_ASIAN) else " "


def full_stop(word: str) -> str:
    """What ends a sentence whose last word this is."""
    return "\u3002" if _script(word[-1], _EAST_ASIAN) else "."
