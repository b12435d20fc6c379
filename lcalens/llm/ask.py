"""Figure 1: what a model answers before and after a sentence is put in front of the question."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int

from lcalens.core.errors import LcalensError
from lcalens.core.limits import check_ids, check_length
from lcalens.core.provenance import provenance_of
from lcalens.core.results import Result
from lcalens.core.stamp import holds_steady
from lcalens.core.tensors import check_finite, one_dtype
from lcalens.core.text import check_written, join_sentences
from lcalens.core.tokens import Answer, Encoded, check_answers, encode, follow, pad, source_tokenizer, spell
from lcalens.llm.efficacy.scoring import Continuation, score

_FEW = 16  # answers in all contexts that are scored one at a time: trying a faster path would cost more than it saves


@holds_steady
@torch.no_grad()
def ask(
    model: Any,
    prompt: str,
    *,
    hijack: str | Sequence[str] | None = None,
    answers: str | Sequence[str] = (),
    top: int = 5,
    chat: bool = False,
    join: str | None = None,
) -> Result:
    """The model's top next tokens for a prompt, without and with sentences before it.

    Args:
        model: A TransformerBridge.
        prompt: The question, ready to be continued: `"The Eiffel Tower is in"`. It is read as it is written, with the
            white space at its ends.
        hijack: A sentence or several to put before it; none shows the clean answers alone.
        answers: Whole answers to score beside, of any number of tokens: words behind the prompt, with or without their
            space (`" Paris"` and `"Paris"` are one).
        top: How many tokens to show of each.
        chat: Ask through the chat template.
        join: What stands between prompt and answers, such as `" "` or `""`; None finds it (docs/text.md).

    Returns:
        A result over the axes context (clean, hijacked) and rank: `probability` and `token_id`; its table
        `answers` has the tokens beside each other, and `scored` the whole answers' log-probabilities in nats with the
        tokens that are scored. The prompts' tokens are in the provenance.

    Raises:
        LcalensError: An empty prompt, a `top` below 1 or above the vocabulary; texts that hold what cannot be seen or
            what the vocabulary does not have; an answer that cannot be scored exactly; or as `score`.

    Example:
        >>> ask(model, "The Eiffel Tower is in", hijack="Do not think of Rome.", answers=["Paris", "Rome"])
    """
    tokenizer = source_tokenizer(model)
    answers, sentences = _listed("answers", answers), _listed("hijack", () if hijack is None else hijack)
    for name, text in [("prompt", prompt), *(("hijack", sentence) for sentence in sentences)]:
        check_written(name, text)
    if not prompt.strip():
        raise LcalensError(f"prompt: {prompt!r} is empty; give a text, such as 'The Eiffel Tower is in'.")
    vocabulary = model.original_model.config.get_text_config().vocab_size
    if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= vocabulary:
        raise LcalensError(f"top: {top!r} is not a whole number from 1 to the vocabulary's {vocabulary}.")
    sentences = [sentence for sentence in sentences if sentence.strip()]
    hijacked = prompt
    for sentence in reversed(sentences):
        hijacked = sentence + join_sentences(sentence, hijacked) + hijacked
    texts = {"clean": prompt} | ({"hijacked": hijacked} if sentences else {})
    encoded = encode(tokenizer, list(texts.values()), chat=chat)
    if any(item.unknown for item in encoded):
        raise LcalensError(
            f"prompt: the tokenizer's vocabulary does not have all of {list(texts.values())[-1]!r:.120}; "
            "choose other words."
        )
    followed = _followed(tokenizer, prompt, texts, answers, chat, join)
    check_length(model, max(len(item.ids) for item in (*encoded, *followed)))
    check_ids(model, (item.ids for item in (*encoded, *followed)))
    ids, probabilities = _top_tokens(model, encoded, top)
    return Result(
        kind="answers",
        axes={"context": tuple(texts), "rank": tuple(range(1, top + 1))},
        values={"probability": probabilities, "token_id": ids.astype(float)},
        tables={
            "answers": _beside(tokenizer, list(texts), ids, probabilities),
            "scored": _scored(model, tokenizer, list(texts), answers, followed),
        },
        provenance=provenance_of(
            model,
            path="single",
            settings={
                "config": {
                    "prompt": prompt,
                    "hijack": sentences,
                    "answers": list(answers),
                    "top": top,
                    "chat": chat,
                    "join": join,
                },
                "tokens": {name: spell(tokenizer, item.ids) for name, item in zip(texts, encoded, strict=True)},
                "logits": "after any soft cap",
            },
        ),
    )


def _top_tokens(
    model: Any, contexts: Sequence[Encoded], top: int
) -> tuple[Int[np.ndarray, "context rank"], Float[np.ndarray, "context rank"]]:
    """The most probable next tokens of each context, and their probabilities."""
    ids, probabilities = [], []
    for context in contexts:
        batch = pad([context], device=next(model.original_model.parameters()).device)
        with one_dtype("model"):
            logits = model(batch.ids, attention_mask=batch.attention_mask)[0, -1].float()
        check_finite(logits)
        best = logits.softmax(-1).topk(top)
        ids.append(best.indices.cpu().numpy())
        probabilities.append(best.values.cpu().double().numpy())
    return np.array(ids), np.array(probabilities)


def _listed(name: str, texts: Any) -> list[Any]:
    """One text or several, as a list."""
    if not isinstance(texts, Iterable):
        raise LcalensError(f"{name}: expected a text or several, got {texts!r:.60} ({type(texts).__name__}).")
    return [texts] if isinstance(texts, str) else list(texts)


def _beside(tokenizer: Any, contexts: list[str], ids: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    columns: dict[str, Any] = {"rank": range(1, ids.shape[1] + 1)}
    for context, row, shares in zip(contexts, ids, probabilities, strict=True):
        columns[context] = [tokenizer.decode([int(i)]) for i in row]
        columns[f"{context}_probability"] = shares
    return pd.DataFrame(columns)


def _followed(
    tokenizer: Any, prompt: str, texts: dict[str, str], answers: Sequence[str], chat: bool, join: str | None
) -> list[Answer]:
    """The answers behind each context, one context after the other."""
    contexts = [text for text in texts.values() for _ in answers]
    repeated = list(answers) * len(texts)
    followed = follow(tokenizer, contexts, repeated, prompts=[prompt] * len(contexts), join=join, chat=chat)
    check_answers("answers", repeated, followed)
    return followed


def _scored(
    model: Any, tokenizer: Any, contexts: Sequence[str], answers: Sequence[str], followed: Sequence[Answer]
) -> pd.DataFrame:
    """Each whole answer's log-probability in each context, what the hijack changed, and the tokens it is of."""
    if not answers:
        return pd.DataFrame({"answer": [], **{f"{context}_logp": [] for context in contexts}, "tokens": []})
    continuations = [Continuation(item.ids, item.start, len(item.ids)) for item in followed]
    scores = score(model, continuations, alone=len(continuations) <= _FEW)
    logp = rearrange(scores.logp, "(context answer) -> context answer", answer=len(answers))
    table = pd.DataFrame(
        {"answer": list(answers), **{f"{name}_logp": row for name, row in zip(contexts, logp, strict=True)}}
    )
    if len(contexts) == 2:
        table["change"] = logp[1] - logp[0]
    return table.assign(tokens=[spell(tokenizer, item.ids[item.start :]) for item in followed[: len(answers)]])
