"""What a study of a large model would cost, counted and not measured: prompts, tokens, operations, bytes, hours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lcalens.core.checks import check_int, check_real
from lcalens.core.tokens import source_tokenizer
from lcalens.llm.efficacy.config import EfficacyConfig, check_config
from lcalens.llm.efficacy.parts import answers_of, chunks, scorable
from lcalens.llm.efficacy.scoring import MAX_NODES
from lcalens.llm.efficacy.tries import pack
from lcalens.llm.facts.facts import Fact, Facts
from lcalens.llm.prompts.hijack import hijack_prompts, worded_prompts
from lcalens.llm.prompts.named import Scheme
from lcalens.llm.prompts.related import RelatedTable


@dataclass(frozen=True, kw_only=True)
class StudyCost:
    """What `efficacy` would take on a model of a given size.

    Attributes:
        facts: How many it is of.
        prompts: Prompts behind which both objects can be scored.
        tokens: Tokens that run, with common beginnings computed once.
        tokens_apart: Tokens that would run with every prompt and object apart, as a plain loop does.
        parameters: The model's.
        weights: Bytes of its weights.
        operations: Floating-point operations: two for each parameter and token. Attention's products of queries, keys
            and values are left out: below a hundred tokens a prompt they are less than a hundredth.
    """

    facts: int
    prompts: int
    tokens: int
    tokens_apart: int
    parameters: float
    weights: float
    operations: float

    def hours(self, gpus: int = 1, *, tera_operations: float | int = 400.0, share: float = 0.4) -> float:
        """Hours of all GPUs together, were they to keep up that share of their rate, and never to wait.

        Args:
            gpus: How many compute.
            tera_operations: What one does at best, in 10^12 operations a second, from its data sheet.
            share: Of that rate, what is reached; not measured here.

        Raises:
            LcalensError: A number that cannot be used.

        Example:
            >>> cost = efficacy_cost(model, facts, parameters=70e9)
            >>> cost.hours(8, tera_operations=990, share=0.4) < cost.hours(1, tera_operations=990, share=0.4)
            True
        """
        check_int("gpus", gpus, low=1)
        rate = check_real("tera_operations", tera_operations, low=1e-6) * 1e12
        return self.operations / (rate * check_real("share", share, low=1e-6, high=1.0) * gpus) / 3600

    def __str__(self) -> str:
        return (
            f"{self.facts} facts, {self.prompts} prompts, {self.tokens / 1e6:.3g} million tokens "
            f"({self.tokens_apart / 1e6:.3g} million with every prompt apart); {self.operations:.3g} operations; "
            f"weights of {self.weights / 1e9:.3g} GB. Counted, not measured."
        )


def efficacy_cost(
    model: Any,
    facts: Facts | Sequence[Fact],
    *,
    parameters: float | int,
    schemes: Sequence[str] | str | Mapping[str, str | Scheme] = EfficacyConfig.schemes,
    counts: Sequence[int] = EfficacyConfig.counts,
    chat: bool = EfficacyConfig.chat,
    seed: int = EfficacyConfig.seed,
    of: int | None = None,
    bytes_each: float | int = 2,
) -> StudyCost:
    """Count what `efficacy` would run on a model that is too large to try it on.

    Prompts are made and packed as `efficacy` makes and packs them, by the tokenizer of a model that is here; another
    tokenizer gives some more or fewer tokens. Nothing is run. Padding within batches is not counted.

    Args:
        model: A TransformerBridge, for its tokenizer.
        facts: The facts; a sample of them will do, see `of`.
        parameters: How many the large model has that every token passes; of a mixture of experts, those of one token.
        schemes: As for `efficacy`.
        counts: As for `efficacy`.
        chat: As for `efficacy`.
        seed: Of everything drawn.
        of: How many facts the study is to have, where `facts` are a sample: everything is scaled up. A sample shares
            fewer beginnings than the whole, so that `tokens` is the higher for it.
        bytes_each: Bytes of one parameter; 2 in bfloat16.

    Returns:
        The count.

    Raises:
        LcalensError: An argument that cannot be used.

    Example:
        >>> cost = efficacy_cost(model, facts, parameters=70e9, schemes=("dont-think",), counts=(0, 1), of=10_000)
        >>> print(cost)
        >>> cost.hours(8)
    """
    size = check_real("parameters", parameters, low=1.0)
    each = check_real("bytes_each", bytes_each, low=0.1)
    config, wordings = check_config(schemes, counts, EfficacyConfig.scoring, chat, EfficacyConfig.related, seed)
    facts = facts if isinstance(facts, Facts) else Facts(facts)
    whole = len(facts) if of is None else check_int("of", of, low=len(facts), why="a sample is no larger")
    tokenizer = source_tokenizer(model)
    words = RelatedTable(tokenizer)
    prompts = tokens = apart = 0
    for scheme in (None, *config.schemes):
        if scheme is None:
            made = hijack_prompts(facts, "neutral", counts=(0,))
        elif config.counts[1:]:
            made = worded_prompts(facts, wordings[scheme], counts=config.counts[1:], seed=config.seed, words=words)
        else:
            continue
        for chunk in chunks(made.prompts):
            continuations, _ = scorable(answers_of(tokenizer, chunk, config.chat, config.join))
            sequences, starts = [item.ids for item in continuations], [item.start for item in continuations]
            prompts += len(continuations) // 2
            tokens += sum(len(row.ids) for row in pack(sequences, starts, max_nodes=MAX_NODES))
            apart += sum(map(len, sequences))
    scale = whole / len(facts)
    tokens, apart = round(tokens * scale), round(apart * scale)
    return StudyCost(
        facts=whole,
        prompts=round(prompts * scale),
        tokens=tokens,
        tokens_apart=apart,
        parameters=size,
        weights=size * each,
        operations=2.0 * size * tokens,
    )
