"""Figure 1: what a model answers before and after a sentence is put in front of the question."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from lcalens.core.errors import LcalensError
from lcalens.core.provenance import model_info, versions
from lcalens.core.results import Result
from lcalens.core.tokens import check_text, encode, source_tokenizer, tokenize
from lcalens.llm.efficacy.scoring import Continuation, check_finite, score
from lcalens.llm.prompts.hijack import JOIN

_CONTEXTS = ("clean", "hijacked")


@torch.no_grad()
def ask(
    model: Any,
    prompt: str,
    *,
    hijack: str | Sequence[str] | None = None,
    answers: str | Sequence[str] = (),
    top: int = 5,
    chat: bool = False,
) -> Result:
    """The model's top next tokens for a prompt, without and with sentences before it.

    Args:
        model: A TransformerBridge.
        prompt: The question, ready to be continued: `"The Eiffel Tower is in"`.
        hijack: A sentence or several to put before it; none shows the clean answers alone.
        answers: Whole answers to score beside, of any number of tokens.
        top: How many tokens to show of each.
        chat: Ask through the chat template.

    Returns:
        A result over the axes context (clean, hijacked) and rank: `probability` and `token_id`; its table
        `answers` has the tokens beside each other, and `scored` the whole answers' log-probabilities in nats.

    Raises:
        LcalensError: An empty prompt, a `top` below 1 or above the vocabulary, or as `tokenize` and `score`.
    """
    tokenizer = source_tokenizer(model)
    answers, sentences = _listed("answers", answers), _listed("hijack", () if hijack is None else hijack)
    for name, text in [("prompt", prompt), *(("answers", answer) for answer in answers)]:
        check_text(name, text)
        if not text.strip():
            raise LcalensError(f"{name}: {text!r} is empty; give a text, such as 'The Eiffel Tower is in'.")
    for sentence in sentences:
        check_text("hijack", sentence)
    sentences = [sentence.strip() for sentence in sentences if sentence.strip()]
    vocabulary = model.original_model.config.get_text_config().vocab_size
    if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= vocabulary:
        raise LcalensError(f"top: {top!r} is not a whole number from 1 to the vocabulary's {vocabulary}.")
    prompt = prompt.rstrip()
    clean = [prompt] if not sentences else [prompt, JOIN.join([*sentences, prompt])]
    texts: dict[str, str] = dict(zip(_CONTEXTS, clean, strict=False))

    ids, probabilities = [], []
    for text in texts.values():
        batch = tokenize(model, text, chat=chat)
        logits = model(batch.ids, attention_mask=batch.attention_mask)[0, -1].float()
        check_finite(logits)
        found = logits.softmax(-1).topk(top)
        ids.append(found.indices.cpu().numpy())
        probabilities.append(found.values.cpu().double().numpy())
    return Result(
        kind="answers",
        axes={"context": tuple(texts), "rank": tuple(range(1, top + 1))},
        values={"probability": np.array(probabilities), "token_id": np.array(ids).astype(float)},
        tables={
            "answers": _beside(tokenizer, list(texts), np.array(ids), np.array(probabilities)),
            "scored": _scored(model, tokenizer, texts, answers, chat),
        },
        provenance={
            "model": model_info(model).to_dict(),
            "config": {"prompt": prompt, "hijack": sentences, "answers": list(answers), "top": top, "chat": chat},
            "versions": versions(),
        },
    )


def _listed(name: str, given: Any) -> list[Any]:
    """One text or several, as a list."""
    if not isinstance(given, Iterable):
        raise LcalensError(f"{name}: expected a text or several, got {given!r:.60} ({type(given).__name__}).")
    return [given] if isinstance(given, str) else list(given)


def _beside(tokenizer: Any, contexts: list[str], ids: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    columns: dict[str, Any] = {"rank": range(1, ids.shape[1] + 1)}
    for context, row, shares in zip(contexts, ids, probabilities, strict=True):
        columns[context] = [tokenizer.decode([int(i)]) for i in row]
        columns[f"{context}_probability"] = shares
    return pd.DataFrame(columns)


def _scored(model: Any, tokenizer: Any, texts: dict[str, str], answers: Sequence[str], chat: bool) -> pd.DataFrame:
    """Each whole answer's log-probability in each context, and what the hijack changed."""
    if not answers:
        return pd.DataFrame({"answer": [], **{f"{context}_logp": [] for context in texts}})
    contexts = [text for text in texts.values() for _ in answers]
    encoded = encode(tokenizer, contexts, answers=list(answers) * len(texts), chat=chat)
    found = score(model, [Continuation(item.ids, *item.spans["answer"][0]) for item in encoded])
    logp = found.logp.reshape(len(texts), len(answers))
    table = pd.DataFrame(
        {"answer": list(answers), **{f"{name}_logp": row for name, row in zip(texts, logp, strict=True)}}
    )
    if len(texts) == 2:
        table["change"] = logp[1] - logp[0]
    return table
