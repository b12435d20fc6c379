"""Facts to prompts: the sentences of a scheme and the prompt, joined, with the spans of what matters."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from lcalens.core.text import join_sentences
from lcalens.core.tokens import Span
from lcalens.llm.facts.facts import Fact, Facts
from lcalens.llm.prompts.counts import check_counts
from lcalens.llm.prompts.related import RelatedTable
from lcalens.llm.prompts.schemes import Sentence, Surroundings, Wording, find_scheme
from lcalens.llm.prompts.words import Impossible, RelatedWords


@dataclass(frozen=True, kw_only=True)
class HijackedPrompt:
    """A fact's prompt with `n` sentences before it.

    Attributes:
        fact: The fact.
        scheme: The scheme's name.
        n: How many sentences stand before the prompt.
        text: Sentences and prompt, joined by a space, or as `lcalens.core.text.join_sentences` has it.
        word: The word that the scheme works by, or None.
        spans: Character spans in `text`: `sentence` (each), `word` (each time it occurs in a sentence), `subject` and
            `prompt`. `lcalens.core.tokens.encode(tokenizer, [text], spans=[spans])` turns them into token spans.
    """

    fact: Fact
    scheme: str
    n: int
    text: str
    word: str | None
    spans: Mapping[str, tuple[Span, ...]]


@dataclass(frozen=True, kw_only=True)
class NotPossible:
    """A fact that a scheme has no `n` sentences for, and why."""

    fact: Fact
    scheme: str
    n: int
    reason: str


@dataclass(frozen=True)
class Hijacks:
    """The prompts of one scheme, and what could not be made.

    Attributes:
        prompts: One for each fact and n that exists, in the order of the facts and counts.
        impossible: One for each that does not.
    """

    prompts: tuple[HijackedPrompt, ...]
    impossible: tuple[NotPossible, ...]

    def reasons(self) -> Counter[tuple[int, str]]:
        """How many facts each reason ruled out, by n."""
        return Counter((item.n, item.reason) for item in self.impossible)


def hijack_prompts(
    facts: Facts | Sequence[Fact],
    scheme: str = "dont-think",
    *,
    counts: Sequence[int] = (0, 1, 2, 3, 5, 10),
    seed: int = 0,
    words: RelatedWords | None = None,
) -> Hijacks:
    """Every fact's prompt behind n sentences of a scheme, for every n.

    Args:
        facts: The facts; `factual` draws its sentences from their whole source, `facts.pool`.
        scheme: A scheme's name, or a template such as `"Forget about {target_false}."`.
        counts: The n's; 0 is the bare prompt.
        seed: Of what is drawn at random: the order of `factual`, the unrelated words.
        words: Where related words come from; the shipped table by default.

    Raises:
        LcalensError: An unknown scheme, a malformed template, counts that are not whole numbers from 0 up.
    """
    return worded_prompts(facts, find_scheme(scheme), counts=counts, seed=seed, words=words)


def worded_prompts(
    facts: Facts | Sequence[Fact],
    chosen: Wording,
    *,
    counts: Sequence[int],
    seed: int = 0,
    words: RelatedWords | None = None,
    longest: bool = False,
) -> Hijacks:
    """The same, of a scheme that was found before.

    Args:
        facts: The facts.
        chosen: The scheme; its prompts go under its name.
        counts: The n's.
        seed: Of what is drawn at random.
        words: Where related words come from.
        longest: Of each fact's prompts only the one with the most sentences.
    """
    numbers = check_counts(counts)
    facts = facts if isinstance(facts, Facts) else Facts(list(facts))
    around = Surroundings(facts, RelatedTable() if words is None else words, seed)
    prompts, impossible = [], []
    for fact in facts:
        sentences: list[Sentence] = []
        reason = "too few sentences of this kind exist"
        try:
            sentences.extend(islice(chosen.sentences(fact, around), max(numbers)))
        except Impossible as error:
            reason = str(error)
        possible = [n for n in numbers if n <= len(sentences)]
        prompts += _with_counts(fact, chosen.name, sentences, possible[-1:] if longest else possible)
        impossible += [NotPossible(fact=fact, scheme=chosen.name, n=n, reason=reason) for n in numbers[len(possible) :]]
    return Hijacks(tuple(prompts), tuple(impossible))


def put_before(fact: Fact, scheme: str, sentences: Sequence[Sentence]) -> HijackedPrompt:
    """The sentences and the fact's prompt, joined, with their spans."""
    return next(_with_counts(fact, scheme, sentences, [len(sentences)]))


def _with_counts(
    fact: Fact, scheme: str, sentences: Sequence[Sentence], counts: Sequence[int]
) -> Iterator[HijackedPrompt]:
    """The fact's prompt behind its first n sentences, for every n of rising counts: the text is written once."""
    prompt, subject = fact.text, fact.prompt.index("{}")
    word = sentences[0].word if sentences else None
    before, sentence_spans, word_spans = "", [], []
    for number, sentence in enumerate([*sentences[: max(counts, default=0)], None]):
        last = sentences[number - 1].text if number else ""
        if number in counts:
            opening = before + join_sentences(last, prompt)
            at = len(opening)
            yield HijackedPrompt(
                fact=fact,
                scheme=scheme,
                n=number,
                text=opening + prompt,
                word=word if number else None,
                spans={
                    "sentence": tuple(sentence_spans),
                    "word": tuple(word_spans),
                    "subject": ((at + subject, at + subject + len(fact.subject)),),
                    "prompt": ((at, at + len(prompt)),),
                },
            )
        if sentence is not None:
            before += join_sentences(last, sentence.text)
            at = len(before)
            sentence_spans.append((at, at + len(sentence.text)))
            word_spans += [(at + first, at + end) for first, end in sentence.places]
            before += sentence.text
