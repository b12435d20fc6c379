"""Patching by TransformerLens's hooks, a forward pass for every patched run: for models that nobody reads by layers."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.core.tensors import check_finite
from lcalens.engine.decoder import wide
from lcalens.engine.metrics import Asked, Metric, read
from lcalens.engine.sites import BY_QUERY, HEADS, SHARED, SITES, hook_name, roles

_TRIED = 7  # tokens of the trial
_SAME = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
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
    made: Callable[[Mapping[int, Tensor]], Mapping[int, Tensor]] | None = None,
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
        made: From the base run's activations by layer to what is put in, where that is not the other run's.

    Raises:
        LcalensError: The model does not let the site be edited.
    """
    try_site(model, site)
    device = next(model.original_model.parameters()).device
    tokens = {name: run.to(device) for name, run in zip(("clean", "hijacked"), runs, strict=True)}
    base, source = (tokens[name] for name in roles(direction))
    patched = list(layers or range(model.cfg.n_layers))
    names = [hook_name(site, layer) for layer in patched]
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def look(value: Tensor, hook: Any) -> None:
            kept[name] = value.detach().clone()

        return look

    keeping = [(name, keep(name)) for name in names]
    # What is put in is the source run's, or made to fit the base run's.
    base_logits = _last(model, base, keeping if made else [], site, metric)
    source_logits = _last(model, source, [] if made else keeping, site, metric)
    if len(kept) < len(names):
        raise LcalensError(f"site: {site!r} cannot be patched in this model, which shows none; use another site.")
    if made is not None:
        put_in = made({layer: kept[name] for layer, name in zip(patched, names, strict=True)})
        kept = {name: put_in[layer] for layer, name in zip(patched, names, strict=True)}
    ends = dict(zip(roles(direction), (base_logits, source_logits), strict=True))
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


def try_site(model: Any, site: str) -> None:
    """Refuse a site whose hook is not what its name says, or whose edits the model discards, found by trying.

    Every layer must show it; what a run itself had, put back, must change nothing; another run's must change something;
    and what the site is must fit what the block does: the stream after a block is the stream before it and what was
    added, attention weights average the values to z, z goes into W_O.

    Args:
        model: A TransformerBridge.
        site: One of `SITES`.

    Raises:
        LcalensError: It cannot be patched; the message says why.
    """
    device, layers = next(model.original_model.parameters()).device, range(model.cfg.n_layers)
    generator = torch.Generator().manual_seed(0)
    clean_tokens, other_tokens = (
        torch.randint(0, int(model.cfg.d_vocab), (1, _TRIED), generator=generator).to(device) for _ in range(2)
    )
    activations = [_activations(model, tokens) for tokens in (clean_tokens, other_tokens)]
    absent = next((layer for layer in layers if hook_name(site, layer) not in activations[0]), None)
    reason = f"layer {absent} shows none" if absent is not None else ""
    reason = reason or next(filter(None, (misfit(activations[0], site, layer, model) for layer in layers)), "")
    plain = _last(model, clean_tokens, [], site, "kl")
    closeness = _SAME.get(plain.dtype, 1e-4) * float(plain.abs().max())
    if not reason:
        names = [hook_name(site, layer) for layer in layers]
        same = _last(model, clean_tokens, [(name, _constant(activations[0][name])) for name in names], site, "kl")
        if float((same - plain).abs().max()) > closeness:
            reason = "its own activations, put back, change what the model says"
        for name in names:
            moved = _last(model, clean_tokens, [(name, _constant(activations[1][name]))], site, "kl")
            if torch.equal(moved, plain) and not torch.equal(activations[0][name], activations[1][name]):
                reason = reason or f"what is put in at {name} is discarded"
    if reason:
        raise LcalensError(f"site: {site!r} cannot be patched in this model by its hooks: {reason}; use another site.")


def _activations(model: Any, tokens: Int[Tensor, "1 position"]) -> dict[str, Tensor]:
    """Every site's activation in every layer, as far as hooks show it, and what W_O is given."""
    names = [hook_name(site, layer) for site in SITES for layer in range(model.cfg.n_layers)]
    return shown(model, tokens, names)[0]


def shown(
    model: Any, tokens: Int[Tensor, "batch position"], names: Sequence[str]
) -> tuple[dict[str, Tensor], Float[Tensor, "batch position vocab"]]:
    """What the model's hooks of these names show in a run, those that it has and that fire; and its logits.

    Args:
        model: A TransformerBridge.
        tokens: Of one length.
        names: As TransformerLens has them.
    """
    kept: dict[str, Tensor] = {}

    def look(value: Tensor, hook: Any, name: str) -> None:
        kept[name] = value.detach().clone()

    present = [name for name in dict.fromkeys(names) if _has_hook(model, name)]
    logits = model.run_with_hooks(tokens, fwd_hooks=[(name, partial(look, name=name)) for name in present])
    return kept, logits.detach()


def _has_hook(model: Any, name: str) -> bool:
    """Whether the model has a hook of this name, or one that the name is an alias of."""
    owner = model
    for step in name.split("."):
        owner = owner[int(step)] if step.isdigit() else getattr(owner, step, None)
        if owner is None:
            return False
    return hasattr(owner, "fwd_hooks")


def misfit(activations: Mapping[str, Tensor], site: str, layer: int, model: Any) -> str:
    """What is wrong with a site in a layer, by the identities of a block; nothing where they hold or say nothing.

    Args:
        activations: What hooks of a run show, by their names; those of the site in this layer are among them.
        site: One of `SITES`.
        layer: Which.
        model: The TransformerBridge.
    """

    def at(name: str, index: int = layer) -> Tensor | None:
        shown = activations.get(hook_name(name, index))
        return None if shown is None else wide(shown)

    def apart(left: Tensor, right: Tensor) -> bool:
        if left.shape != right.shape:
            return True
        precision = 64 * torch.finfo(activations[hook_name(site, layer)].dtype).eps
        return float((left - right).abs().max()) > max(precision, 1e-4) * float(right.abs().max())

    if site in HEADS | SHARED:
        value, heads = activations[hook_name(site, layer)], int(model.cfg.n_heads)
        counts = {heads} if site in HEADS else {heads, int(getattr(model.cfg, "n_key_value_heads", None) or heads)}
        if value.ndim != 4 or value.shape[1 if site in BY_QUERY else 2] not in counts:
            return f"in layer {layer} it is not shown head by head, but as {tuple(value.shape)}"
    if site in ("resid_pre", "resid_post") and layer + 1 < model.cfg.n_layers:
        after, following = at("resid_post"), at("resid_pre", layer + 1)
        if after is not None and following is not None and apart(after, following):
            return f"the stream after layer {layer} is not the one before the next"
    if site in ("attn_out", "mlp_out"):
        before, attention, mlp, after = (at(name) for name in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
        if before is None or attention is None or mlp is None or after is None:
            return f"in layer {layer} the other parts of the block are not shown, so nothing tells what it is"
        if attention.shape != mlp.shape or attention.shape != after.shape:
            return f"in layer {layer} the parts of the block are of different shapes"
        # A model without a residual stream, the toy, puts out what it writes and nothing of what came in.
        if apart(before + attention + mlp, after) and apart(attention + mlp, after):
            return f"in layer {layer} the stream before it and what is added are not the stream after it"
    pattern, scores = at("pattern"), at("attn_scores")
    attention_module: Any = getattr(model.blocks[layer].attn, "original_component", None)
    if site == "pattern" and pattern is not None:
        if bool((pattern < 0).any()) or bool((pattern.sum(-1) > 1 + 1e-2).any()):
            return f"in layer {layer} its rows are no shares"
        clipped = any(
            getattr(owner, "clip_qkv", None) for owner in (attention_module, getattr(attention_module, "config", None))
        )
        if not clipped and _averages(pattern, at("v"), at("z"), apart) is False:
            return f"in layer {layer} it does not average the values to z"
    if site == "attn_scores" and scores is not None and pattern is not None:
        sinks = getattr(attention_module, "sinks", None) is not None  # they take part in the softmax and are not shown
        if not sinks and apart(scores.softmax(-1), pattern):
            return f"in layer {layer} their softmax is not the attention pattern"
    return ""


def _averages(pattern: Tensor, values: Tensor | None, z: Tensor | None, apart: Any) -> bool | None:
    """Whether the pattern averages the values to z; None where they are not shown head by head."""
    if values is None or z is None or values.ndim != 4 or z.ndim != 4 or values.shape[3] != z.shape[3]:
        return None
    shared = values.repeat_interleave(pattern.shape[1] // values.shape[2], 2)
    return not apart(einsum(pattern, shared, "batch head query key, batch key head width -> batch query head width"), z)


def _constant(value: Tensor) -> Any:
    """A hook that puts in the same value whatever comes."""

    def put(current: Tensor, hook: Any) -> Tensor:
        return value.to(current)

    return put


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
