"""What `patch` puts in: the other run's activations, or an ablation: zeros, means over clean runs, or given tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lcalens.core.checksums import checksum
from lcalens.core.errors import LcalensError
from lcalens.core.near import nearest
from lcalens.engine.activations import activations
from lcalens.engine.by_hooks import shown
from lcalens.engine.decoder import Decoder, wide
from lcalens.engine.sites import BY_QUERY, NEEDS_ALIGNED, SHARED, hook_name
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.contrast.inputs import Group, shared_length

SourceName = Literal["other", "zero", "mean"]
SOURCES = ("other", "zero", "mean")
_TOKENS = 4096  # run at once
_NEAR = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}


@dataclass(frozen=True, eq=False)
class Source:
    """What is put in.

    Attributes:
        kind: `other`, `zero`, `mean` or `given`.
        values: Of `mean` and `given`: each patched layer's activations, an example or one for all in a row.
        content: What it depends on besides the model and the patched examples, as JSON can hold it.
        says: The same in words.
    """

    kind: str
    values: Mapping[int, Tensor] = field(default_factory=dict)
    content: Any = None
    says: str = "the other run's activations"

    def fitted(self, site: str, bases: Mapping[int, Tensor], examples: list[int], context: int) -> dict[int, Tensor]:
        """What is put into some examples, by layer, in the base activations' shape, dtype and place.

        Args:
            site: What is patched.
            bases: The base run's activations by layer; an answer may follow the context.
            examples: Which of the contrast's examples they are.
            context: How many positions the context has; positions of the result are aligned with its end.

        Raises:
            LcalensError: Given activations that do not fit.
        """
        return {
            layer: _cut(torch.zeros_like(base), site, context)
            if self.kind == "zero"
            else self._of_layer(site, layer, base, examples, context)
            for layer, base in bases.items()
        }

    def _of_layer(self, site: str, layer: int, base: Tensor, examples: list[int], context: int) -> Tensor:
        value = self.values[layer]
        axis = 2 if site in BY_QUERY else 1
        value = value.expand(len(examples), *value.shape[1:]) if len(value) == 1 else value[examples]
        if self.kind == "given":
            wanted = _cut(base, site, context).shape
            value = value.expand(-1, context, *value.shape[2:]) if axis == 1 and value.shape[1] == 1 else value
            rest = [at for at in range(1, len(wanted)) if at != axis]
            lengths = {context} if site in NEEDS_ALIGNED else None
            if [value.shape[at] for at in rest] != [wanted[at] for at in rest] or (
                lengths is not None and value.shape[axis] not in lengths
            ):
                raise LcalensError(
                    f"source: {hook_name(site, layer)!r} has the shape {tuple(self.values[layer].shape)}, and the runs "
                    f"that are patched have {tuple(wanted)}; give as many examples (or 1 for all), as many positions"
                    f"{'' if axis == 2 else ' (or 1 for all)'}, and the same heads and width."
                )
        return value.to(base)


def _cut(base: Tensor, site: str, context: int) -> Tensor:
    """The activation of the context alone, without an answer that follows."""
    return base[:, :, :context, :context] if site in BY_QUERY else base[:, :context]


def check_zero(site: str) -> None:
    """Refuse zeros where they are no ablation of the site.

    Raises:
        LcalensError: They are none.
    """
    if site in BY_QUERY:
        why = (
            "would let every position look at later ones too"
            if site == "attn_scores"
            else "leaves no attention that sums to 1"
        )
        raise LcalensError(f"source: zero at {site!r} {why}; take site='z', which a head without attention has as 0.")


def given_source(source: Any, site: str, layers: range, contrast: Contrast) -> Source:
    """Activations that the user gives, by TransformerLens's hook names.

    Args:
        source: A mapping from hook names to tensors, or an ActivationCache.
        site: What is patched.
        layers: In which layers.
        contrast: Whose runs are patched.

    Raises:
        LcalensError: A hook is missing, or is no tensor of finite numbers for these examples.
    """
    held: Mapping[str, Any] = getattr(source, "cache_dict", source)
    batched = getattr(source, "has_batch_dim", True)
    values, sums = {}, {}
    for layer in layers:
        name = hook_name(site, layer)
        if name not in held:
            near = nearest(name, held)
            rename = f"rename {near!r:.60} to it, or give" if near else f"it has {_names(held)}; give"
            raise LcalensError(
                f"source: it has no {name!r}; {rename} every layer that is patched (site={name!r} is one alone)."
            )
        value = held[name]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"{value!r:.60}"
            raise LcalensError(f"source: {name!r} is {kind}; give a tensor of floating-point numbers.")
        value = (value if batched else value[None]).detach()
        dimensions = 4 if site in BY_QUERY or site in ("z", "q", *SHARED) else 3
        if value.ndim != dimensions or value.shape[0] not in (1, len(contrast)) or not value.numel():
            raise LcalensError(
                f"source: {name!r} has the shape {tuple(value.shape)}; give {dimensions} dimensions, the first of "
                f"{len(contrast)} examples or 1 for all."
            )
        plain = value.masked_fill(value.isneginf(), 0) if site == "attn_scores" else value
        if not bool(plain.isfinite().all()):
            raise LcalensError(f"source: {name!r} holds NaN or infinite numbers; give finite ones.")
        if site not in BY_QUERY and value.shape[1] != 1:
            _check_length(name, value.shape[1], contrast)
        values[layer], sums[layer] = value, checksum(value)
    return Source("given", values, {"checksums": sums}, "activations that were given, by hook name")


def _names(held: Mapping[str, Any]) -> str:
    """The first names of a mapping, and how many more there are."""
    listed = ", ".join(f"{name!r:.60}" for name in list(held)[:3])
    return listed + (f" and {len(held) - 3} more" if len(held) > 3 else "")


def _check_length(name: str, length: int, contrast: Contrast) -> None:
    """Refuse activations of as many positions as neither run of an example has."""
    for example, runs in enumerate(zip(contrast.clean, contrast.hijacked, strict=True)):
        if length not in map(len, runs):
            raise LcalensError(
                f"source: {name!r} has {length} positions, and the runs of example {example} have {len(runs[0])} and "
                f"{len(runs[1])}; give as many as one of them, or 1 for all positions."
            )


@torch.no_grad()
def mean_source(
    model: Any,
    decoder: Decoder | str,
    contrast: Contrast,
    site: str,
    layers: range,
    places: tuple[tuple[Group, ...], ...],
) -> Source:
    """The mean of a site over the contrast's clean runs, position by position, counted from the end.

    Args:
        model: A TransformerBridge.
        decoder: The same read layer by layer, or why it cannot be.
        contrast: Whose clean runs.
        site: What is patched.
        layers: In which layers.
        places: The positions that are patched.

    Raises:
        LcalensError: One example, or clean runs that have not all of the positions.
    """
    if len(contrast) < 2:
        raise LcalensError(
            "source: the mean over one example's clean run is that run itself; give a contrast of several examples, or "
            "the mean over your own data as source={hook name: tensor}."
        )
    reach = -min(min(group) for groups in places for group in groups)
    shortest = min(contrast.clean, key=len)
    shared = min(shared_length(shortest, row) for row in contrast.clean)
    lengths = sorted({len(row) for row in contrast.clean})
    if site in BY_QUERY and len(lengths) > 1:
        raise LcalensError(
            f"source: {site!r} has a value for each key position, and the clean runs have {lengths[0]} to "
            f"{lengths[-1]} tokens; choose examples of one length, contrast[[...]]."
        )
    if reach > shared:
        raise LcalensError(
            f"source: clean runs of {lengths[0]} to {lengths[-1]} tokens have the last {shared} positions in common, "
            f"and {reach} are to be averaged; choose examples of one length, contrast[[...]], or positions='last'."
        )
    sums: dict[int, Tensor] = {}
    for length in lengths:
        rows = torch.tensor([list(row) for row in contrast.clean if len(row) == length])
        for some in rows.split(max(1, _TOKENS // length)):
            for layer, value in observed(model, decoder, some, site, layers).items():
                end = value if site in BY_QUERY else value[:, length - reach :]
                part = end.double().sum(0, keepdim=True)
                sums[layer] = sums[layer] + part if layer in sums else part
    means = {layer: total / len(contrast) for layer, total in sums.items()}
    said = f"the mean over the {len(contrast)} clean runs at the same position, counted from the end"
    return Source("mean", means, {"clean": [list(row) for row in contrast.clean]}, said)


def observed(model: Any, decoder: Decoder | str, tokens: Tensor, site: str, layers: range) -> dict[int, Tensor]:
    """A site's activations by layer in an ordinary run, in the shape of TransformerLens's hook.

    Args:
        model: A TransformerBridge.
        decoder: The same read layer by layer, or why it cannot be.
        tokens: Of one length.
        site: Which.
        layers: In which layers.

    Raises:
        LcalensError: The model does not show it.
    """
    if isinstance(decoder, Decoder):
        found, _ = activations(decoder, tokens.to(decoder.layers[0].device), [site], layers)
        return {layer: value for (_, layer), value in found.items()}
    names = {layer: hook_name(site, layer) for layer in layers}
    kept, _ = shown(model, tokens.to(next(model.original_model.parameters()).device), list(names.values()))
    absent = next((name for name in names.values() if name not in kept), None)
    if absent is not None:
        raise LcalensError(f"site: {site!r} is not shown by this model ({absent} never fires); use another site.")
    return {layer: kept[name] for layer, name in names.items()}


@torch.no_grad()
def check_same_as_hooks(
    name: str, model: Any, decoder: Decoder | str, tokens: Tensor, sites: Mapping[str, range]
) -> None:
    """Refuse sites where the bridge's hook shows something else than what lcalens reads and patches.

    Args:
        name: The argument.
        model: A TransformerBridge.
        decoder: The same read layer by layer; where it cannot be, hooks are what is patched.
        tokens: One example's, to try it on.
        sites: Which activations, and in which layers.

    Raises:
        LcalensError: One differs.
    """
    if isinstance(decoder, str):
        return
    hooks = {hook_name(site, layer): (site, layer) for site, layers in sites.items() for layer in layers}
    kept, _ = shown(model, tokens.to(decoder.layers[0].device), list(hooks))
    layers = sorted({layer for _, layer in hooks.values()})
    read, _ = activations(decoder, tokens.to(decoder.layers[0].device), sites, layers)
    for hook, (site, layer) in hooks.items():
        own, theirs = wide(read[site, layer]), kept.get(hook)
        reason = "does not fire" if theirs is None else ""
        if theirs is not None and theirs.shape != own.shape:
            reason = f"has the shape {tuple(theirs.shape)} and not {tuple(own.shape)}"
        elif theirs is not None:
            there = own.isfinite()
            apart = (
                (wide(theirs).to(own.device)[there] - own[there]).abs().max()
                if bool(there.any())
                else own.new_zeros(())
            )
            near = _NEAR.get(read[site, layer].dtype, 1e-3)
            if not float(apart) <= near * float(own[there].abs().max()):
                reason = f"is off by {float(apart):.3g}"
        if reason:
            raise LcalensError(
                f"{name}: in this model TransformerLens's {hook!r} is not the {site!r} that lcalens reads and patches "
                f"(it {reason}); use another site."
            )
