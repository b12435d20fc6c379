"""Patching by TransformerLens's hooks, a forward pass for every patched run: for models that nobody reads by layers."""

import warnings
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.engine.decoder import wide
from lcalens.engine.metrics import Asked, Metric, check_finite, read
from lcalens.engine.sites import BY_QUERY, HEADS, SHARED, hook_name, roles

_DISCARDED = r".*The edit is discarded"  # TransformerLens, where attention runs inside Hugging Face's own module


def patch_hooked(
    model: Any,
    runs: tuple[Int[Tensor, "batch clean_position"], Int[Tensor, "batch position"]],
    asked: Asked,
    groups: tuple[tuple[int, ...], ...],
    site: str,
    direction: str,
    metric: Metric,
    layers: range | None = None,
) -> tuple[Float[Tensor, "batch variant group"], Float[Tensor, "batch 2"]]:
    """The patched runs' metric, and the clean and hijacked run's.

    Args:
        model: A TransformerBridge.
        runs: The clean and the hijacked tokens, each of one length.
        asked: What is asked of each example.
        groups: Positions, counted from the end.
        site: What is patched.
        direction: `restore` or `corrupt`.
        metric: The metric.
        layers: Which layers are patched; all by default.

    Raises:
        LcalensError: The model does not let the site be edited.
    """
    device = next(model.original_model.parameters()).device
    tokens = {name: run.to(device) for name, run in zip(("clean", "hijacked"), runs, strict=True)}
    base, source = (tokens[name] for name in roles(direction))
    names = [hook_name(site, layer) for layer in layers or range(model.cfg.n_layers)]
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def look(value: Tensor, hook: Any) -> None:
            kept[name] = value.detach().clone()

        return look

    source_logits = _last(model, source, [(name, keep(name)) for name in names], site, metric)
    if len(kept) < len(names):
        raise LcalensError(f"site: {site!r} cannot be patched in this model, which shows none; use another site.")
    ends = dict(zip(roles(direction), (_last(model, base, [], site, metric), source_logits), strict=True))
    question = replace(asked, clean=ends["clean"])
    columns = []
    for name in names:
        for head in range(_heads(kept[name], site)):
            values = []
            for group in groups:
                put = _replace(kept[name], site, head, group)
                values.append(read(metric, _last(model, base, [(name, put)], site, metric), question))
            columns.append(torch.stack(values, -1))
    return torch.stack(columns, 1), torch.stack(
        [read(metric, ends[name], question) for name in ("clean", "hijacked")], 1
    )


def _last(
    model: Any, tokens: Int[Tensor, "batch position"], hooks: list[tuple[str, Any]], site: str, metric: Metric
) -> Float[Tensor, "batch vocab"]:
    """Logits of the last position, in float32 at least; of a logit difference before any soft cap."""
    before_cap: list[Tensor] = []
    capped = getattr(model.original_model.config.get_text_config(), "final_logit_softcapping", None) is not None
    if capped and metric == "logit-difference":
        hooks = [*hooks, ("unembed.hook_out", lambda value, hook: before_cap.append(value.detach()))]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=_DISCARDED)
        try:
            logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
        except (KeyError, UserWarning) as error:
            raise LcalensError(
                f"site: {site!r} cannot be patched in this model ({error!s:.60}...); use another site."
            ) from error
    logits = wide((before_cap[0] if before_cap else logits)[:, -1])
    check_finite(logits)
    return logits


def _heads(value: Tensor, site: str) -> int:
    if site in BY_QUERY:
        return value.shape[1]
    return value.shape[2] if site in HEADS | SHARED else 1


def _replace(source: Tensor, site: str, head: int, group: tuple[int, ...]) -> Any:
    """A hook that puts in the source's activation at the group's positions."""

    def put(value: Tensor, hook: Any) -> Tensor:
        value, rows = value.clone(), list(group)
        if site in BY_QUERY:
            value[:, head, rows] = source[:, head, rows]
        elif site in HEADS | SHARED:
            value[:, rows, head] = source[:, rows, head]
        else:
            value[:, rows] = source[:, rows]
        return value

    return put
