"""The cells of `efficacy`: prompts that are read and scored together, with both objects behind them.

A worker reads the tokens: the caller, who makes all prompts, would keep several of them waiting.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lcalens.core.cells import cell_key
from lcalens.core.errors import LcalensError
from lcalens.core.limits import check_ids
from lcalens.core.tokenizer_stamp import ModelTokenizer
from lcalens.core.tokens import Answer, follow, spell
from lcalens.llm.efficacy.scoring import Continuation, score
from lcalens.llm.prompts.hijack import HijackedPrompt

QUANTITIES = ("logp_true", "logp_false", "greedy", "greedy_false")
CELL_FACTS = 64
_MEASURED = (*QUANTITIES, *(f"first_{name}" for name in QUANTITIES), "alike")
_TOLD = "told"


class Part(NamedTuple):
    """Prompts of one scheme that are scored together.

    Attributes:
        index: The scheme's; -1 for clean prompts.
        prompts: At least one.
        first: The first prompt's tokens with the true and the false object behind it, as the caller reads them.
    """

    index: int
    prompts: list[HijackedPrompt]
    first: list[Answer]


@dataclass(frozen=True)
class Reading:
    """How prompts become tokens, and how many run at once.

    Attributes:
        tokenizer: The model's.
        chat: Ask through the chat template.
        join: What stands between prompts and objects; None finds it.
        batch: The most tokens that run at once.
    """

    tokenizer: ModelTokenizer
    chat: bool
    join: str | None
    batch: int | None


class Told(NamedTuple):
    """What a cell says besides its numbers.

    Attributes:
        path: How the model was run; empty where nothing was.
        problems: Which prompts cannot be scored exactly, and why.
        spelled: Of clean prompts the tokens of the true and of the false object; None for the others.
    """

    path: str
    problems: dict[int, str]
    spelled: list[tuple[str, str]] | None


def chunks(prompts: Sequence[HijackedPrompt]) -> list[list[HijackedPrompt]]:
    """Prompts in parts of some 64 facts; facts with the same sentences together, so that they share them.

    Args:
        prompts: Of one scheme.
    """
    by_fact: dict[Any, list[HijackedPrompt]] = {}
    for prompt in prompts:
        by_fact.setdefault(prompt.fact.case_id, []).append(prompt)
    groups = sorted(by_fact.values(), key=lambda group: group[-1].text)
    return [
        [prompt for group in groups[first : first + CELL_FACTS] for prompt in group]
        for first in range(0, len(groups), CELL_FACTS)
    ]


def part_of(index: int, prompts: Sequence[HijackedPrompt], model: Any, how: Reading) -> Part:
    """Prompts as a part.

    Args:
        index: Their scheme's; -1 for clean prompts.
        prompts: At least one.
        model: A TransformerBridge.
        how: How they are read.
    """
    return Part(index, list(prompts), answers_of(how.tokenizer.of(model), prompts[:1], how.chat, how.join))


def key_of(model: str, part: Part, how: Reading) -> str:
    """A part's key: its numbers are a function of the model's stamp, the tokenizer's and the texts.

    The first prompt's tokens are in it as well: what a tokenizer asks of its surroundings, such as the date that a chat
    template writes, is in no stamp.

    Args:
        model: The stamp.
        part: The prompts.
        how: How they are read.
    """
    settings = [how.tokenizer.stamp, how.chat, how.join, how.batch, part.index < 0]
    first = [(item.ids, item.start, item.problem) for item in part.first]
    return cell_key(CODE, [model, settings, first, *_texts(part.prompts)])


def score_part(model: Any, part: Part, *, how: Reading) -> tuple[dict[str, np.ndarray], int]:
    """A part's arrays, one number for each prompt, NaN where it cannot be scored; no batch of it is ever halved.

    Args:
        model: A TransformerBridge.
        part: The prompts.
        how: How they are read.

    Raises:
        LcalensError: The first prompt has other tokens than when the part was made.
    """
    tokenizer = how.tokenizer.of(model)
    answers = answers_of(tokenizer, part.prompts, how.chat, how.join)
    if answers[:2] != part.first:
        raise LcalensError(
            "chat: the same text has other tokens than when this began, as where the chat template writes the date; "
            "start it again."
        )
    return _arrays(model, tokenizer, answers, how.batch, spelled=part.index < 0), 0


def told_by(cell: Mapping[str, np.ndarray]) -> Told:
    """What a cell says besides its numbers.

    Args:
        cell: Its arrays.
    """
    told = json.loads(cell[_TOLD].tobytes())
    spelled = told["spelled"] and [(true, false) for true, false in told["spelled"]]
    return Told(told["path"], {int(i): problem for i, problem in told["problems"].items()}, spelled)


def answers_of(tokenizer: Any, prompts: Sequence[HijackedPrompt], chat: bool, join: str | None) -> list[Answer]:
    """For each prompt the true object behind it, and the false one.

    Args:
        tokenizer: The model's.
        prompts: The prompts.
        chat: Ask through the chat template.
        join: What stands between prompts and objects; None finds it.
    """
    return _read(tokenizer, *_texts(prompts), join, chat)


def scorable(answers: Sequence[Answer]) -> tuple[list[Continuation], dict[int, str]]:
    """The tokens behind prompts that can be scored exactly with both objects; and which others there are, why.

    Args:
        answers: Two of each prompt.
    """
    problems: dict[int, str] = {}
    for i, item in enumerate(answers):
        if item.problem:
            problems.setdefault(i // 2, item.problem)
    exact = [item for i, item in enumerate(answers) if i // 2 not in problems]
    return [Continuation(item.ids, item.start, len(item.ids)) for item in exact], problems


def _texts(prompts: Sequence[HijackedPrompt]) -> tuple[list[str], list[str], list[str]]:
    """Of each prompt, twice: its text, its text without the sentences before it; and both objects."""
    twice = [prompt for prompt in prompts for _ in range(2)]
    answers = [answer for p in prompts for answer in (p.fact.target_true, p.fact.target_false)]
    return [prompt.text for prompt in twice], [prompt.fact.text for prompt in twice], answers


def _read(
    tokenizer: Any, texts: list[str], before: list[str], answers: list[str], join: str | None, chat: bool
) -> list[Answer]:
    return follow(tokenizer, texts, answers, prompts=before, join=join, chat=chat)


def _arrays(
    model: Any, tokenizer: Any, answers: Sequence[Answer], batch: int | None, *, spelled: bool
) -> dict[str, np.ndarray]:
    """Both objects' scores, for both scorings at once."""
    continuations, problems = scorable(answers)
    check_ids(model, (item.ids for item in continuations))
    size = len(answers) // 2
    exact = [i for i in range(size) if i not in problems]
    arrays = {name: np.full(size, np.nan) for name in _MEASURED}
    told: dict[str, Any] = {"path": "", "problems": problems, "spelled": None}
    if exact:
        scores = score(model, continuations, batch=batch)
        first = np.array([item.ids[item.start] for item in continuations])
        whole = (scores.logp[::2], scores.logp[1::2], scores.greedy[::2], scores.greedy[1::2])
        opening = (scores.first_logp[::2], scores.first_logp[1::2], scores.first_greedy[::2], scores.first_greedy[1::2])
        for name, values in zip(_MEASURED, (*whole, *opening, first[::2] == first[1::2]), strict=True):
            arrays[name][exact] = values
        told["path"] = scores.path  # a resumed study says how it was run
    if spelled:
        objects = [spell(tokenizer, item.ids[item.start :]) for item in answers]
        pairs = zip(objects[::2], objects[1::2], strict=True)
        told["spelled"] = [("", "") if i in problems else pair for i, pair in enumerate(pairs)]
    return arrays | {_TOLD: np.frombuffer(json.dumps(told).encode(), dtype=np.uint8)}


CODE = (_arrays, _read)
"""What a cell's values depend on besides what it is of."""
