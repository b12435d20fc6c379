"""Tokens as readers see them: each id decoded, whitespace and control characters made visible."""

from collections.abc import Sequence
from typing import Any, Literal

from lcalens.core.checks import check_choice
from lcalens.core.errors import LcalensError

_UNDECODED = "\ufffd"  # part of a character
_SPACE = "\u2581"  # how metaspace tokenizers write the space before a word


def tokenizer_of(model: Any) -> Any:
    """The source's tokenizer, or None where it cannot be found: tokens are then shown as their ids.

    Args:
        model: A TransformerBridge.

    Raises:
        LcalensError: It is something else.
    """
    from lcalens.core.provenance import model_info
    from lcalens.core.tokens import source_tokenizer

    model_info(model)
    try:
        return source_tokenizer(model)
    except LcalensError:
        return None


def read_token(tokenizer: Any, token: int) -> str:
    r"""One token as text, without the space before a word; blanks and control characters visible.

    Args:
        tokenizer: A Hugging Face tokenizer, or None for the id itself.
        token: Its id.
    """
    if tokenizer is None:
        return str(token)
    text = str(tokenizer.decode([token]))
    if _UNDECODED in text or not text:
        piece = tokenizer.convert_ids_to_tokens([token])[0]
        text = str(token) if not piece else str(piece).replace(_SPACE, " ")
    if not text.strip(" "):
        return "␣" * len(text)
    inside = text[1:] if text[0] == " " else text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in inside)


def read_text(tokenizer: Any, tokens: Sequence[int]) -> str:
    """A whole run as text, special tokens included.

    Args:
        tokenizer: A Hugging Face tokenizer, or None for the ids.
        tokens: Its ids.
    """
    return " ".join(map(str, tokens)) if tokenizer is None else str(tokenizer.decode(list(tokens)))


def token_labels(model: Any, contrast: Any, *, run: Literal["clean", "hijacked"] = "hijacked") -> tuple[str, ...]:
    """Labels for a map over positions, to be given to `result.plot(labels=...)`.

    They are the tokens that all examples share. Where tokens differ a label is the shortest span that holds the place
    in every example (`[word]`), else the position counted from the end.

    Args:
        model: A TransformerBridge, whose source's tokenizer reads the tokens.
        contrast: The examples that were patched.
        run: Whose tokens.

    Returns:
        A label for each position of the longest example, the last position last.

    Raises:
        LcalensError: An argument that cannot be used.
    """
    from lcalens.mechanism.contrast.contrast import Contrast

    tokenizer = tokenizer_of(model)
    if not isinstance(contrast, Contrast):
        raise LcalensError(f"contrast: expected a Contrast, got {type(contrast).__name__} ({contrast!r:.60}).")
    check_choice("run", run, ("clean", "hijacked"))
    rows: tuple[tuple[int, ...], ...] = getattr(contrast, run)
    labels = []
    for back in range(max(map(len, rows)), 0, -1):
        tokens = {row[-back] if len(row) >= back else None for row in rows}
        (token,) = tokens if len(tokens) == 1 else (None,)
        labels.append(_span_at(contrast, back, run) if token is None else read_token(tokenizer, token))
    return tuple(labels)


def label_record(model: Any, contrast: Any, direction: str) -> dict[str, list[str]]:
    """What a result over positions says of them: a label for each position of the run that was changed.

    Args:
        model: A TransformerBridge.
        contrast: The examples.
        direction: `restore` changes the hijacked run, `corrupt` the clean one.
    """
    return {
        "position_labels": list(token_labels(model, contrast, run="clean" if direction == "corrupt" else "hijacked"))
    }


def _span_at(contrast: Any, back: int, run: str) -> str:
    """Where tokens differ: the span, if the run is the hijacked one, whose spans they are."""
    held = {}
    for name, rows in contrast.spans.items() if run == "hijacked" else ():
        at = [len(tokens) - back for tokens in contrast.hijacked]
        inside = [any(first <= i < last for first, last in row) for i, row in zip(at, rows, strict=True)]
        if all(inside):
            held[name] = sum(last - first for row in rows for first, last in row)
    return f"[{min(held, key=lambda name: held[name])}]" if held else f"−{back}"
