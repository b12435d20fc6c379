"""What `efficacy` measures, checked; the command line builds its flags of it, so nothing heavy is imported here."""

from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

from lcalens.core.checks import check_choice
from lcalens.core.errors import LcalensError
from lcalens.core.text import check_join
from lcalens.llm.prompts.counts import check_counts
from lcalens.llm.prompts.named import named_schemes
from lcalens.llm.prompts.schemes import Wording


@dataclass(frozen=True, kw_only=True)
class EfficacyConfig:
    """What `efficacy` measures; the command line has the same fields.

    Attributes:
        schemes: Names of schemes, or sentences such as `"Forget about {target_false}."`; `"all"` is every built-in one.
        counts: How many sentences stand before the prompt.
        scoring: `whole`: an object's whole string; `first`: its first token alone.
        chat: Ask through the tokenizer's chat template instead of raw text.
        related: Where related words come from: the shipped `table`, or the model's own `embedding`.
        seed: Of what is drawn at random: the order of `factual`, the unrelated words, the bootstrap.
        join: What stands between prompts and objects, such as `" "` or `""`; None finds it (docs/text.md).
        batch: The most tokens that run at once, padding included; by default as many as a processor runs well.
    """

    schemes: tuple[str, ...] = ("dont-think",)
    counts: tuple[int, ...] = (0, 1, 2, 3, 5, 10)
    scoring: Literal["whole", "first"] = "whole"
    chat: bool = False
    related: Literal["table", "embedding"] = "table"
    seed: int = 0
    join: str | None = None
    batch: int | None = None


def check_config(
    schemes: Any,
    counts: Any,
    scoring: str,
    chat: bool,
    related: str,
    seed: int,
    join: str | None = None,
    batch: int | None = None,
) -> tuple[EfficacyConfig, dict[str, Wording]]:
    """The arguments of `efficacy` as one object, n = 0 among the counts; and its schemes by name.

    Raises:
        LcalensError: One of them cannot be used.
    """
    wordings = named_schemes(schemes)
    check_choice("scoring", scoring, ("whole", "first"))
    check_choice("related", related, ("table", "embedding"))
    if not isinstance(chat, bool):
        raise LcalensError(f"chat: expected True or False, got {chat!r:.40}.")
    check_join(join)
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise LcalensError(f"seed: expected a whole number from 0 up, got {seed!r:.40}.")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, Integral) or batch < 1):
        raise LcalensError(f"batch: expected a whole number of tokens from 1 up, got {batch!r:.40}.")
    config = EfficacyConfig(
        schemes=tuple(wordings),
        counts=check_counts([0, *check_counts(counts)]),
        scoring=scoring,  # pyright: ignore[reportArgumentType]
        chat=chat,
        related=related,  # pyright: ignore[reportArgumentType]
        seed=int(seed),
        join=join,
        batch=None if batch is None else int(batch),
    )
    return config, wordings
