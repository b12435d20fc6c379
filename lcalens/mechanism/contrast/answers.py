"""Answers that are given as text: the tokens they have behind the prompts, which must be the same behind both."""

from collections.abc import Mapping, Sequence
from typing import Any

from lcalens.core.errors import LcalensError
from lcalens.core.text import check_join
from lcalens.core.tokens import Answer, Ids, check_answers, follow


def answer_ids(
    name: str,
    answers: Mapping[int, str],
    prompts: Sequence[tuple[Sequence[Ids], Sequence[str] | None]],
    tokenizer: Any,
    join: str | None,
) -> dict[int, Ids]:
    """Each answer's token ids behind its example's clean and hijacked prompts.

    Args:
        name: `true` or `false`, for errors.
        answers: Words, by example.
        prompts: The clean examples' token ids and, where they were given as such, texts; the same of the hijacked ones.
        tokenizer: A Hugging Face tokenizer.
        join: What stands between prompt and word; None finds it.

    Raises:
        LcalensError: An answer that cannot be scored exactly behind one of its prompts, or has other tokens behind one
            than behind the other.
    """
    check_join(join)
    if not answers:
        return {}
    clean, hijacked = (_behind(name, answers, *prompt, tokenizer, join) for prompt in prompts)
    for i, (before, after) in zip(answers, zip(clean, hijacked, strict=True), strict=True):
        if before.ids[before.start :] != after.ids[after.start :]:
            raise LcalensError(
                f"{name}: {answers[i]!r:.60} has other tokens behind the clean prompt of example {i} than behind the "
                "hijacked one; end both alike, or give join."
            )
    return {i: item.ids[item.start :] for i, item in zip(answers, hijacked, strict=True)}


def _behind(
    name: str,
    answers: Mapping[int, str],
    ids: Sequence[Ids],
    texts: Sequence[str] | None,
    tokenizer: Any,
    join: str | None,
) -> list[Answer]:
    """The answers behind one run of each example."""
    rows = [ids[i] for i in answers]
    special = set(tokenizer.all_special_ids)
    bare = [_without_start(row, special) for row in rows]
    # Token ids are read as the text they spell, if it is such a text: only then does a word have a place behind it.
    written = [texts[i] for i in answers] if texts is not None else [_spelled(tokenizer, row) for row in bare]
    answers_behind = follow(tokenizer, written, list(answers.values()), join=join, argument=name)
    for i, row, item in zip(answers, bare, answers_behind, strict=True):
        if texts is None and _without_start(item.ids[: item.start], special) != row:
            raise LcalensError(
                f"{name}: the tokens of example {i} are not those of a text, so no word has a place behind them; give "
                "the answer's token ids, or the prompts as texts."
            )
    check_answers(name, list(answers.values()), answers_behind)
    return answers_behind


def _without_start(ids: Ids, special: set[int]) -> Ids:
    first = next((i for i, token in enumerate(ids) if token not in special), len(ids))
    return tuple(ids[first:])


def _spelled(tokenizer: Any, ids: Ids) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
