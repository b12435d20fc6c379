"""The cells of `efficacy`: prompts that are scored together, with the tokens of both objects behind them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lcalens.core.cells import cell_key
from lcalens.core.tokens import follow
from lcalens.llm.efficacy.config import EfficacyConfig
from lcalens.llm.efficacy.scoring import Continuation, score
from lcalens.llm.prompts.hijack import HijackedPrompt

QUANTITIES = ("logp_true", "logp_false", "greedy", "greedy_false")
PATH = "path"
CELL_FACTS = 64
_MEASURED = (*QUANTITIES, *(f"first_{name}" for name in QUANTITIES), "alike")


class Part(NamedTuple):
    """Prompts of one scheme that are scored together.

    Attributes:
        index: The scheme's; -1 for clean prompts.
        prompts: Those that can be scored.
        size: How many there were.
        continuations: Of each prompt the true object's tokens and the false one's.
    """

    index: int
    prompts: list[HijackedPrompt]
    size: int
    continuations: list[Continuation]


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


def _continuations(
    tokenizer: Any, prompts: Sequence[HijackedPrompt], chat: bool, join: str | None = None
) -> tuple[list[Continuation], dict[int, str]]:
    """For each prompt the true object's tokens and the false one's behind it; and which prompts are not exact, why."""
    answers = [answer for p in prompts for answer in (p.fact.target_true, p.fact.target_false)]
    twice = [prompt for prompt in prompts for _ in range(2)]
    texts, before = [prompt.text for prompt in twice], [prompt.fact.text for prompt in twice]
    followed = follow(tokenizer, texts, answers, prompts=before, join=join, chat=chat)
    problems: dict[int, str] = {}
    for i, item in enumerate(followed):
        if item.problem:
            problems.setdefault(i // 2, item.problem)
    exact = [
        Continuation(item.ids, item.start, len(item.ids)) for i, item in enumerate(followed) if i // 2 not in problems
    ]
    return exact, problems


def scorable(
    tokenizer: Any, chunk: Sequence[HijackedPrompt], config: EfficacyConfig
) -> tuple[list[HijackedPrompt], list[Continuation], list[tuple[int, str]]]:
    """The prompts behind which both objects can be scored exactly, with their tokens; n and reason of the others.

    Args:
        tokenizer: The model's own.
        chunk: Some prompts.
        config: The settings.
    """
    continuations, problems = _continuations(tokenizer, chunk, config.chat, config.join)
    kept = [prompt for i, prompt in enumerate(chunk) if i not in problems]
    return kept, continuations, [(chunk[i].n, problem) for i, problem in problems.items()]


def key_of(model: str, part: Part, batch: int | None) -> str:
    """A part's key: its numbers are a function of the model's stamp and the tokens alone.

    Args:
        model: The stamp.
        part: The prompts.
        batch: The most tokens that run at once.
    """
    return cell_key(CODE, [model, [(item.ids, item.start, item.stop) for item in part.continuations], batch])


def score_part(model: Any, part: Part, *, batch: int | None) -> tuple[dict[str, np.ndarray], int]:
    """A part's arrays; no batch of it is ever halved.

    Args:
        model: A TransformerBridge.
        part: The prompts.
        batch: The most tokens that run at once.
    """
    return _arrays(model, part.continuations, batch), 0


def _arrays(model: Any, continuations: Sequence[Continuation], batch: int | None) -> dict[str, np.ndarray]:
    """Both objects' scores, for both scorings at once."""
    scores = score(model, continuations, batch=batch)
    first = np.array([item.ids[item.start] for item in continuations])
    whole = (scores.logp[::2], scores.logp[1::2], scores.greedy[::2], scores.greedy[1::2])
    opening = (scores.first_logp[::2], scores.first_logp[1::2], scores.first_greedy[::2], scores.first_greedy[1::2])
    columns = (np.array(values, dtype=np.float64) for values in (*whole, *opening, first[::2] == first[1::2]))
    arrays: dict[str, np.ndarray] = dict(zip(_MEASURED, columns, strict=True))
    arrays[PATH] = np.frombuffer(scores.path.encode(), dtype=np.uint8)  # a resumed study says how it was run
    return arrays


CODE = (_arrays, score)
"""What a cell's values depend on besides what it is of."""
