"""Transformers' two attentions compared: eager, which shows its patterns and is measured, and sdpa, which people run.

They are two programs for one model. Where they disagree by more than rounding one of them is wrong, and every number
measured on the eager one may be of a model that nobody trained (transformers 5 adds Falcon-RW's ALiBi twice in eager
attention, once in sdpa).
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float

from lcalens.core.errors import LcalensError
from lcalens.engine.rounding import rounded_elsewhere
from lcalens.llm.models.trial import TOLERANCES, Trial


@torch.no_grad()
def check_attentions(source: str, model: Any, trial: Trial) -> bool:
    """Refuse a model whose eager attention gives other logits than its sdpa attention.

    One more short forward, on the longest row of the trial; in bfloat16 and float16 another one, for what rounding
    alone would do. Families that transformers has no sdpa attention for have nothing to be compared with.

    Args:
        source: What the user asked for.
        model: The Hugging Face model that ran the trial, with eager attention, not yet bridged.
        trial: What it said.

    Returns:
        Whether there is nothing more to be said of them: false where sdpa attention failed, which is warned of.

    Raises:
        LcalensError: The two disagree; the message has the logit at which they are farthest apart, in both.
    """
    if not getattr(type(model), "_supports_sdpa", False):
        return True
    row, eager = trial.rows[-1], trial.logits[-1]
    try:
        with _attention(model, "sdpa"):
            sdpa = model(input_ids=row, use_cache=False).logits.detach()
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        warnings.warn(
            f"load_model: transformers' sdpa attention for {type(model).__name__} fails on a few tokens "
            f"({type(error).__name__}: {error!s:.120}), so its eager attention was compared with no other.",
            stacklevel=5,
        )
        return False
    if eager.dtype in (torch.bfloat16, torch.float16):
        with rounded_elsewhere(model):
            rounded = model(input_ids=row, use_cache=False).logits.detach()
        differ = _typical_gap(sdpa, eager) > _typical_gap(rounded, eager)
    else:
        spread = (eager - eager.mean(-1, keepdim=True)).abs().max()
        differ = bool((sdpa - eager).abs().max() > TOLERANCES.get(eager.dtype, TOLERANCES[torch.float32]) * spread)
    if not differ:
        return True
    _, position, token = torch.unravel_index((sdpa - eager).abs().argmax(), eager.shape)
    one, other = (float(logits[0, position, token]) for logits in (eager, sdpa))
    raise LcalensError(
        f"source: {source!r:.200}: transformers' two attentions for {type(model).__name__} disagree by more than "
        f"rounding: behind {int(position) + 1} random tokens the logit of token {int(token)} is {one:.4g} with eager "
        f"attention, which lcalens measures, and {other:.4g} with sdpa attention. At most one of them is the model "
        "that was trained. Use another version of transformers, or another model."
    )


@contextlib.contextmanager
def _attention(model: Any, name: str) -> Iterator[None]:
    """Within it, the model runs another of its attentions.

    By its configurations, which every attention with several programs looks at on each call: what transformers offers
    for this, `set_attn_implementation`, leaves Falcon as it is.
    """
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    found = [config for config in configs.values() if hasattr(config, "_attn_implementation")]
    kept = [config._attn_implementation for config in found]
    try:
        for config in found:
            config._attn_implementation = name
        yield
    finally:
        for config, before in zip(found, kept, strict=True):
            config._attn_implementation = before


def _typical_gap(
    logits: Float[torch.Tensor, "1 position vocab"], others: Float[torch.Tensor, "1 position vocab"]
) -> float:
    """Root mean square of the difference at the median position: an expert that changes places moves one alone."""
    return (logits.float() - others.float()).square().mean(-1).sqrt().median().item()
