"""What `efficacy` measures of what, and what can be said of its prompts before the first of them is run."""

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from lcalens.core.chat import chat_prompt
from lcalens.core.limits import check_length, context_limit
from lcalens.core.tokens import encode, source_tokenizer
from lcalens.llm.efficacy.config import EfficacyConfig
from lcalens.llm.efficacy.parts import CELL_FACTS, chunks
from lcalens.llm.facts.facts import Facts
from lcalens.llm.prompts.hijack import HijackedPrompt, Hijacks, hijack_prompts, worded_prompts
from lcalens.llm.prompts.schemes import Wording
from lcalens.llm.prompts.words import RelatedWords


class Study(NamedTuple):
    """What is measured of what.

    Attributes:
        model: A TransformerBridge.
        facts: The facts.
        config: The settings.
        wordings: Each scheme's sentences.
        words: Words that schemes draw.
    """

    model: Any
    facts: Facts
    config: EfficacyConfig
    wordings: Mapping[str, Wording]
    words: RelatedWords

    def prompts(self, index: int, *, longest: bool = False) -> Hijacks:
        """One scheme's hijacked prompts; the clean ones for index -1, once for all schemes.

        Args:
            index: The scheme's.
            longest: Of each fact's prompts only the one with the most sentences.
        """
        if index < 0:
            return hijack_prompts(self.facts, "neutral", counts=(0,))
        counts = self.config.counts[1:]
        if not counts:
            return Hijacks((), ())
        wording = self.wordings[self.config.schemes[index]]
        seed = self.config.seed
        return worded_prompts(self.facts, wording, counts=counts, seed=seed, words=self.words, longest=longest)

    @property
    def count(self) -> int:
        """How many prompts there are, those that cannot be made among them."""
        return len(self.facts) * (1 + len(self.config.schemes) * len(self.config.counts[1:]))

    def check_prompts(self) -> int:
        """Refuse prompts that the model's context does not hold, and warn of schemes that have none.

        Returns:
            How many parts the others come in.

        Raises:
            LcalensError: A prompt is too long.
        """
        nothing: dict[str, str] = {}
        parts = 0
        for index in range(-1, len(self.config.schemes)):
            hijacks = self.prompts(index, longest=True)
            self._check_lengths(hijacks.prompts)
            parts += len(chunks(hijacks.prompts))
            if hijacks.impossible and not hijacks.prompts:
                reasons = Counter(item.reason for item in hijacks.impossible)
                nothing[self.config.schemes[index]] = reasons.most_common(1)[0][0]
        if nothing:
            told = "; ".join(f"{scheme!r:.60} ({reason})" for scheme, reason in nothing.items())
            them = "it" if len(nothing) == 1 else "them"
            warnings.warn(
                f"efficacy: nothing can be measured of {told}. Leave {them} out, or give other facts; the rest is "
                "measured.",
                stacklevel=4,  # where efficacy is called
            )
        return parts

    def _check_lengths(self, prompts: tuple[HijackedPrompt, ...]) -> None:
        limit = context_limit(self.model)
        if limit is None:
            return
        tokenizer, chat = source_tokenizer(self.model), self.config.chat
        frame = len(chat_prompt(tokenizer, "x")) if chat else 0
        objects = [max(p.fact.target_true, p.fact.target_false, key=len) for p in prompts]
        # A token is a byte at the least, so that few texts need to be read for this.
        sizes = [len(f"{p.text} {name}".encode()) + frame for p, name in zip(prompts, objects, strict=True)]
        long = [i for i, size in enumerate(sizes) if size + 8 > limit]
        for first in range(0, len(long), CELL_FACTS):
            chunk = long[first : first + CELL_FACTS]
            texts = [prompts[i].text if chat else f"{prompts[i].text} {objects[i]}" for i in chunk]
            check_length(self.model, max(len(item.ids) for item in encode(tokenizer, texts, chat=chat)))
