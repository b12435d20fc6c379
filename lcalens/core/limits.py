"""What a model can run: token ids no longer than its context, without padding among them."""

from collections.abc import Iterable, Sequence
from typing import Any

from lcalens.core.errors import LcalensError


def check_length(model: Any, longest: int) -> None:
    """Refuse what does not fit the model's positions.

    Raises:
        LcalensError: `longest` tokens are more than the model's context holds.
    """
    limit = context_limit(model)
    if limit is not None and longest > limit:
        raise LcalensError(
            f"texts: the longest has {longest} tokens, the model's context holds {limit}; shorten it, "
            "or put fewer sentences before it."
        )


def check_ids(model: Any, rows: Iterable[Sequence[int]]) -> None:
    """Refuse tokens that the model's embedding has no row for: its tokenizer has more tokens than it.

    Args:
        model: A TransformerBridge.
        rows: Token ids.

    Raises:
        LcalensError: There are such tokens.
    """
    size, highest = int(model.cfg.d_vocab), max((max(row) for row in rows if row), default=-1)
    if highest >= size:
        raise LcalensError(
            f"texts: token {highest} of the tokenizer is none of the model's {size}; load the model with the tokenizer "
            "that it was trained with, or call resize_token_embeddings before training where tokens were added."
        )


def context_limit(model: Any) -> int | None:
    """How many tokens the model's context holds; None where nothing limits it, as with ALiBi.

    Args:
        model: A TransformerBridge.
    """
    config = model.original_model.config.get_text_config()
    if getattr(config, "alibi", False) or config.model_type == "bloom":
        return None
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx")
    limits = (getattr(config, name, None) for name in names)
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)


def check_padding(tokenizer: Any, rows: Sequence[Sequence[int]], argument: str) -> None:
    """Refuse token ids that begin or end with padding, or begin with two BOS: a model would read them as text.

    Args:
        tokenizer: Whose ids they are.
        rows: Token ids; where there was a mask, without what it takes away.
        argument: What to call them in errors.

    Raises:
        LcalensError: There are such rows.
    """
    bos, padding = tokenizer.bos_token_id, tokenizer.pad_token_id
    for i, row in enumerate(rows):
        begins, ends = row[0] == padding and padding != bos, row[-1] == padding
        if padding is not None and (begins or ends):
            where = "begins" if begins else "ends"
            raise LcalensError(
                f"{argument}: example {i} {where} with padding ({tokenizer.pad_token!r}, token {padding}); "
                f"give {argument}_mask, or the tokens without it."
            )
        if bos is not None and list(row[:2]) == [bos, bos]:
            raise LcalensError(
                f"{argument}: example {i} begins with {tokenizer.bos_token!r} twice; a model reads one: leave one out."
            )
