"""Words near a false object in meaning, and matched words that are not: from the shipped table, or a model's embedding.

An *associate* shares no stem and no token with the object (Guam: Chamorro); a *form* is another form of the same word
(France: French). The matched unrelated word is the related word of another object, of the same kind (a city for a
city), so that related and unrelated words are the same set of words, dealt out differently.
"""

import random
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch

from lcalens.core.errors import LcalensError
from lcalens.core.provenance import model_info
from lcalens.core.text import spaceless
from lcalens.core.tokens import encode, source_tokenizer
from lcalens.llm.prompts.words import Impossible

STRATA = ("associate", "form")
_STEM = 4


@dataclass(frozen=True)
class RelatedPair:
    """One line of the table: a possible false object, a word related to it, and what kind of word that is."""

    object: str
    related: str
    stratum: str
    kind: str


@cache
def related_pairs() -> tuple[RelatedPair, ...]:
    """The shipped table of related words."""
    text = files("lcalens.llm").joinpath("data/related_words.toml").read_text(encoding="utf-8")
    return tuple(RelatedPair(**pair) for pair in tomllib.loads(text)["pairs"])


class RelatedTable:
    """Related words from the shipped table.

    Args:
        tokenizer: With it, an associate that shares a token with its object is refused, as copying might explain it.
    """

    name = "table"

    def __init__(self, tokenizer: Any = None):
        self._tokenizer = tokenizer
        self._pairs = {(pair.object, pair.stratum): pair for pair in related_pairs()}
        self._shares: dict[str, bool] = {}  # of each object with its associate

    def _pair(self, target: str, stratum: str) -> RelatedPair:
        pair = self._pairs.get((target, stratum))
        if pair is None:
            raise Impossible(f"the table has no related word for this object (stratum {stratum!r})")
        if stratum == "associate" and self._tokenizer is not None:
            if target not in self._shares:
                self._shares[target] = share_token(self._tokenizer, target, pair.related)
            if self._shares[target]:
                raise Impossible("the related word shares a token with the object")
        return pair

    def related(self, target: str, stratum: str) -> str:
        """The table's word for `target`; `Impossible` where it has none, or one that shares a token with it."""
        return self._pair(target, stratum).related

    def unrelated(self, target: str, avoid: Sequence[str], stratum: str, generator: random.Random) -> str:
        """Another object's related word, of the same kind; drawn from those that touch neither `target` nor `avoid`."""
        pair_of_target = self._pair(target, stratum)
        shunned = {target, *avoid}
        known = [(word, kind) for word in shunned for kind in STRATA if (word, kind) in self._pairs]
        shunned |= {self._pairs[key].related for key in known}
        candidates = [
            pair.related
            for pair in related_pairs()
            if (pair.stratum, pair.kind) == (stratum, pair_of_target.kind)
            and pair.object not in shunned
            and pair.related not in shunned
            and not any(same_stem(pair.related, word) for word in (target, *avoid))
        ]
        if not candidates:
            raise Impossible("no unrelated word of the same kind is left")
        return generator.choice(candidates)


class EmbeddingNeighbours:
    """Related words as nearest neighbours in a model's own input embedding, by cosine; one stratum, `associate`.

    A candidate is a whole lower- or upper-case word that is one token, at least four letters long. The object's own
    forms (a common stem, a shared token) are never taken.

    Args:
        model: A TransformerBridge.
        kinds: Groups of objects of one kind (the objects of each relation): an unrelated word is the neighbour of
            another object of the same group.
    """

    name = "embedding"

    def __init__(self, model: Any, kinds: Iterable[Iterable[str]]):
        self._tokenizer = source_tokenizer(model)
        weight = model.original_model.get_input_embeddings().weight.detach().float()
        ids, words = _whole_words(self._tokenizer, weight.shape[0])
        if not ids:
            raise LcalensError(
                f"related: {model_info(model).source!r} has no whole-word tokens to choose from; use related='table'."
            )
        self._words = words
        self._weight = weight
        self._candidates = torch.nn.functional.normalize(weight[ids], dim=-1)
        self._kinds = [frozenset(kind) for kind in kinds]
        self._found: dict[str, str] = {}

    def related(self, target: str, stratum: str) -> str:
        """The nearest whole word of another stem."""
        if stratum != "associate":
            raise Impossible("nearest neighbours of the object's own stem are never taken")
        if target not in self._found:
            middle = self._weight[list(_word_tokens(self._tokenizer, [target])[0])].mean(0)
            order = (self._candidates @ torch.nn.functional.normalize(middle, dim=0)).argsort(descending=True)
            near = (self._words[i] for i in order.tolist())
            self._found[target] = next((word for word in near if not self._too_close(word, target)), "")
        if not self._found[target]:
            raise Impossible("the vocabulary has no whole word of another stem")
        return self._found[target]

    def _too_close(self, word: str, target: str) -> bool:
        return same_stem(word, target) or share_token(self._tokenizer, word, target)

    def unrelated(self, target: str, avoid: Sequence[str], stratum: str, generator: random.Random) -> str:
        """The nearest neighbour of another object of the same kind."""
        neighbour = self.related(target, stratum)
        shunned = {neighbour, target, *avoid} | {self.related(word, stratum) for word in avoid}
        alike = set().union(*(kind for kind in self._kinds if target in kind)) - shunned
        for another in generator.sample(sorted(alike), len(alike)):
            if not same_stem(another, target):
                word = self.related(another, stratum)
                if word not in shunned and not any(same_stem(word, near) for near in (target, *avoid)):
                    return word
        raise Impossible("no other object of the same kind has a neighbour of its own")


def same_stem(left: str, right: str) -> bool:
    """Whether two names have words in common, or words that begin alike (four letters) or hold one another."""
    for a in left.lower().split():
        for b in right.lower().split():
            short, long = sorted((a, b), key=len)
            if a == b or (len(short) >= _STEM and (a[:_STEM] == b[:_STEM] or short in long)):
                return True
    return False


def share_token(tokenizer: Any, left: str, right: str) -> bool:
    """Whether two words, as they are in the middle of a text, have a token in common."""
    first, second = (set(ids) for ids in _word_tokens(tokenizer, [left, right]))
    return bool(first & second)


def _word_tokens(tokenizer: Any, words: Sequence[str]) -> list[tuple[int, ...]]:
    """Each word's tokens after a space, or after none where its script has none."""
    spaces = ["" if spaceless(word[0]) else " " for word in words]
    texts = [space + word for space, word in zip(spaces, words, strict=True)]
    places = [{"word": [(len(space), len(text))]} for space, text in zip(spaces, texts, strict=True)]
    encoded = encode(tokenizer, texts, spans=places)
    return [item.ids[slice(*item.spans["word"][0])] for item in encoded]


def _whole_words(tokenizer: Any, size: int) -> tuple[list[int], list[str]]:
    ids, words = [], []
    for token, i in tokenizer.get_vocab().items():
        word = token[1:]
        if i < size and token[:1] in ("Ġ", "▁") and len(word) >= _STEM and word.isascii() and word.isalpha():
            ids.append(i)
            words.append(word)
    return ids, words
