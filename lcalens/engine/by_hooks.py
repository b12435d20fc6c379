"""Patching by TransformerLens's hooks, a forward pass for every patched run: for models that nobody reads by layers."""

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.engine.metrics import Metric, read
from lcalens.mechanism.contrast.contrast import Bucket
from lcalens.mechanism.sites import HEADS, SHARED, roles

_POINTS = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "head": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
    "attn_scores": "attn.hook_attn_scores",
}
_DISCARDED = r".*The edit is discarded"  # TransformerLens, where attention runs inside Hugging Face's own module


def patch_hooked(
    model: Any,
    bucket: Bucket,
    groups: tuple[tuple[int, ...], ...],
    site: str,
    direction: str,
    metric: Metric,
    layers: range | None = None,
) -> tuple[Float[Tensor, "batch variant group"], Float[Tensor, "batch 2"]]:
    """The patched runs' metric, and the clean and hijacked run's.

    Args:
        model: A TransformerBridge.
        bucket: Examples of the same lengths.
        groups: Positions, counted from the end.
        site: What is patched.
        direction: `restore` or `corrupt`.
        metric: The metric.
        layers: Which layers are patched; all by default.

    Raises:
        LcalensError: The model does not let the site be edited.
    """
    device = next(model.original_model.parameters()).device
    tokens = {name: getattr(bucket, name).to(device) for name in ("clean", "hijacked")}
    base, source = (tokens[name] for name in roles(direction))
    names = [f"blocks.{layer}.{_POINTS[site]}" for layer in layers or range(model.cfg.n_layers)]
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def look(value: Tensor, hook: Any) -> None:
            kept[name] = value.detach().clone()

        return look

    def last(tokens: Tensor, hooks: list[tuple[str, Any]]) -> Float[Tensor, "batch vocab"]:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=_DISCARDED)
            try:
                return model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1].float()
            except (KeyError, UserWarning) as error:
                raise LcalensError(
                    f"site: {site!r} cannot be patched in this model ({error!s:.60}...); use another site."
                ) from error

    source_logits = last(source, [(name, keep(name)) for name in names])
    if len(kept) < len(names):
        raise LcalensError(f"site: {site!r} cannot be patched in this model, which shows none; use another site.")
    other = last(base, [])
    runs = dict(zip(roles(direction), (other, source_logits), strict=True))
    told = bucket.true.to(device), bucket.false.to(device), runs["clean"], bucket.indices.to(device)
    ends = torch.stack([read(metric, runs[name], *told) for name in ("clean", "hijacked")], 1)
    columns = []
    for name in names:
        for head in range(_heads(kept[name], site)):
            found = [
                read(metric, last(base, [(name, _replace(kept[name], site, head, group))]), *told) for group in groups
            ]
            columns.append(torch.stack(found, -1))
    return torch.stack(columns, 1), ends


def _heads(value: Tensor, site: str) -> int:
    if site in ("pattern", "attn_scores"):
        return value.shape[1]
    return value.shape[2] if site in HEADS | SHARED else 1


def _replace(source: Tensor, site: str, head: int, group: tuple[int, ...]) -> Any:
    """A hook that puts in the source's activation at the group's positions."""

    def put(value: Tensor, hook: Any) -> Tensor:
        value, rows = value.clone(), list(group)
        if site in ("pattern", "attn_scores"):
            value[:, head, rows] = source[:, head, rows]
        elif site in HEADS | SHARED:
            value[:, rows, head] = source[:, rows, head]
        else:
            value[:, rows] = source[:, rows]
        return value

    return put
