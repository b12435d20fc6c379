"""Words of the user's as tokens, with what is related to each, and these tokens as they come from the embedding."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.core.tokens import follow
from lcalens.engine.decoder import Decoder
from lcalens.mechanism.arguments import is_index

_FRAME = "It is"  # a word's tokens are those that it has behind this
_FILLER = 4  # positions before a bare source, so that it does not stand first


def tokens_of(
    model: Any, text: Any, argument: str, given: Any
) -> tuple[dict[int, list[int]], dict[int, str], list[str]]:
    """Sources with what is related to them, as tokens; names; and words that are not one token.

    Args:
        model: A TransformerBridge.
        text: The tokenizer, or None where tokens are no text.
        argument: Whose they are.
        given: A mapping from each source to one or several related to it; sources alone, of `sources`; or None, of
            others.

    Raises:
        LcalensError: It is no such mapping, or something in it is no word and no token of this model.
    """
    if isinstance(given, Mapping):
        pairs = [(source, _several(argument, some)) for source, some in given.items()]
    elif argument == "sources":
        pairs = [(source, []) for source in given]
    elif given is None:
        pairs = []
    else:
        raise LcalensError(
            f"{argument}: expected a mapping from a source to what is related to it, got {given!r:.60}; "
            '{"France": ["French"]} is one.'
        )
    every = [one for source, some in pairs for one in (source, *some)]
    vocabulary = int(model.cfg.d_vocab)
    for one in every:
        if not isinstance(one, str) and not (is_index(one) and 0 <= int(one) < vocabulary):
            raise LcalensError(f"{argument}: {one!r:.60} is no word, nor a token of the model's {vocabulary}.")
    words = list(dict.fromkeys(one for one in every if isinstance(one, str)))
    if words and text is None:
        raise LcalensError(f"{argument}: {words[0]!r:.60} is a word, and this model has no tokenizer of text; give "
                           "token ids.")  # fmt: skip
    followed = follow(text, [_FRAME] * len(words), words, argument=argument) if words else []
    token_of = {
        word: int(answer.ids[-1]) if not answer.problem and len(answer.ids) == answer.start + 1 else None
        for word, answer in zip(words, followed, strict=True)
    }
    relations: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for source, some in pairs:
        found = [token_of[one] if isinstance(one, str) else int(one) for one in (source, *some)]
        if found[0] is not None:
            relations.setdefault(found[0], []).extend(token for token in found[1:] if token is not None)
            names.setdefault(found[0], source if isinstance(source, str) else str(int(source)))
    return relations, names, [word for word in words if token_of[word] is None]


def _several(argument: str, some: Any) -> list[Any]:
    """One or several related words or token ids as a list."""
    if isinstance(some, str) or is_index(some):
        return [some]
    if isinstance(some, np.ndarray | Tensor):
        some = some.tolist()
    if isinstance(some, bytes | Mapping | type) or not isinstance(some, Iterable):
        raise LcalensError(f"{argument}: expected related words or token ids, one or several, got {some!r:.60}.")
    return list(some)


def embedded_tokens(decoder: Decoder, tokens: Sequence[int]) -> Float[Tensor, "token d"]:
    """Tokens as they come from the embedding, behind the same few others so that none stands first.

    Args:
        decoder: The model.
        tokens: Their ids.
    """
    device = decoder.layers[0].device
    column = torch.tensor(tokens, device=device)[:, None]
    filler = torch.zeros(len(tokens), _FILLER if decoder.causal else 0, dtype=column.dtype, device=device)
    return decoder.embed(torch.cat([filler, column], 1))[:, -1]
