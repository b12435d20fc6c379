"""Modules' names as nnsight and PyTorch's hooks have them, and which hook of TransformerLens shows the same numbers."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.core.near import did_you_mean
from lcalens.engine.by_hooks import shown, try_site
from lcalens.engine.decoder import wide
from lcalens.engine.reading import read_decoder
from lcalens.engine.sites import BY_QUERY, SITES, hook_name
from lcalens.mechanism.hook_names import read_place
from lcalens.mechanism.sources import check_same_as_hooks

_TOKENS = 7  # of the trial
_SIDE = re.compile(r"(?P<path>.+?)(?:\.(?P<side>input|output)s?(?:\.0|\[0\])*)?", re.DOTALL)
_SAME = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


class Hook(NamedTuple):
    """A hook of TransformerLens.

    Attributes:
        name: Its name, `blocks.3.attn.hook_z`.
        shape: What it shows of one example of a few tokens.
        by_query: Whether its dimensions are (example, head, query, key).
    """

    name: str
    shape: torch.Size
    by_query: bool

    @property
    def says(self) -> str:
        """Its shape in words."""
        if self.by_query:
            return f"(examples, {self.shape[1]}, queries, keys)"
        return f"(examples, positions, {', '.join(map(str, self.shape[2:]))})"


class _Side(NamedTuple):
    """What goes into a module, or comes out of it."""

    module: Any
    side: str
    layer: int | None


def hooks_of(model: Any, names: Sequence[str]) -> dict[str, Hook]:
    """The hook that each name means, seen on a few tokens.

    Args:
        model: A TransformerBridge.
        names: Of hooks, or of modules with `.input` or `.output` behind them.

    Raises:
        LcalensError: One is neither, is never run, or is shown by no hook.
    """
    hooks = {name: hook for name in names if (hook := _as_hook(model, name)) is not None}
    sides = {name: _side(model, name) for name in names if name not in hooks}
    every = [hook_name(site, layer) for layer in range(int(model.cfg.n_layers)) for site in SITES]
    own = [hook for side in sides.values() if (hook := _own_hook(side)) is not None]
    wanted = list(dict.fromkeys([*(every if sides else ()), *own, *hooks.values()]))
    values, seen = _run(model, wanted, sides)
    for name, side in sides.items():
        hooks[name] = _match(name, side, seen.get(name), values)
    absent = next((name for name, hook in hooks.items() if hook not in values), None)
    if absent is not None:
        raise LcalensError(f"path: {absent!r:.80} is never shown when this model runs; leave it out.")
    _check_sites(model, hooks)
    by_query = {hook_name(site, layer) for layer in range(int(model.cfg.n_layers)) for site in BY_QUERY}
    return {name: Hook(hook, values[hook].shape, hook in by_query) for name, hook in hooks.items()}


def _as_hook(model: Any, name: str) -> str | None:
    """The whole name of a hook, where it is one of this model's."""
    try:
        site, layer = read_place(name)
    except LcalensError:
        return name if name in model.hook_dict else None
    if layer is None or layer >= int(model.cfg.n_layers):
        raise LcalensError(
            f"path: {name!r:.80} is in no layer of this model's {model.cfg.n_layers}; names are such as "
            f"{hook_name(site, 0)!r}."
        )
    return hook_name(site, layer)


def _side(model: Any, name: str) -> _Side:
    """The module that a name means, and which side of it."""
    match = _SIDE.fullmatch(name)
    path = match["path"] if match else name
    for candidate in dict.fromkeys((path, path.removeprefix("model."))):  # nnsight's own root is called model
        try:
            module = model.original_model.get_submodule(candidate)
        except AttributeError:
            continue
        number = re.search(r"\.(\d+)(?:\.|$)", candidate)
        return _Side(module, (match and match["side"]) or "output", int(number[1]) if number else None)
    known = [hook_name(site, layer) for layer in range(int(model.cfg.n_layers)) for site in SITES]
    raise LcalensError(
        f"path: {name!r:.80} is neither a hook nor a module of this model; names are such as 'blocks.0.attn.hook_z' or "
        f"{_module_like(model)!r}.{did_you_mean(name, known)}"
    )


def _module_like(model: Any) -> str:
    """The name of the first block as this model has it."""
    names = (name for name, _ in model.original_model.named_modules())
    return next((name for name in names if re.search(r"\.0$", name)), "model.layers.0") + ".output"


def _own_hook(side: _Side) -> str | None:
    """The bridge's own hook on that side of the module."""
    point = getattr(side.module, "hook_in" if side.side == "input" else "hook_out", None)
    return getattr(point, "name", None)


def _run(model: Any, names: list[str], sides: dict[str, _Side]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What hooks show, and what goes through modules, in one run of a few tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, int(model.cfg.d_vocab), (1, _TOKENS), generator=generator)
    seen: dict[str, Tensor] = {}

    def look(name: str, side: str) -> Any:
        def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            value = next(iter((*args, *kwargs.values())), None) if side == "input" else output
            value = value[0] if isinstance(value, tuple | list) and value else value
            if isinstance(value, Tensor):
                seen.setdefault(name, value.detach().clone())

        return keep

    handles = [
        side.module.register_forward_hook(look(name, side.side), with_kwargs=True) for name, side in sides.items()
    ]
    try:
        values, _ = shown(model, tokens.to(next(model.original_model.parameters()).device), names)
    finally:
        for handle in handles:
            handle.remove()
    return values, seen


def _match(name: str, side: _Side, value: Tensor | None, values: dict[str, Tensor]) -> str:
    """The hook that shows what went through a module."""
    if value is None:
        raise LcalensError(f"path: {name!r:.80} is never run in this model, or passes no tensor; leave it out.")
    equal = [hook for hook, other in values.items() if _same(value, other)]
    if not equal:
        raise LcalensError(
            f"path: no hook of this model shows what {name!r:.80} holds, shape {tuple(value.shape)}; take a module "
            f"whose input or output is a site: {', '.join(SITES)}."
        )

    # The stream after a block is the one before the next: the module's own layer says which of the two is meant.
    places = {hook: place for hook in equal if (place := _place(hook)) is not None}
    of_layer = [hook for hook, place in places.items() if place[1] == side.layer]
    return next(iter([*of_layer, *places, *equal]))


def _place(hook: str) -> tuple[str, int] | None:
    """The site and layer of a hook, where it is a site's."""
    try:
        site, layer = read_place(hook)
    except LcalensError:
        return None
    return None if layer is None else (site, layer)


def _same(value: Tensor, other: Tensor) -> bool:
    if value.numel() != other.numel() or value.shape[:2] != other.shape[:2]:
        return False
    one, two = wide(value).reshape(-1), wide(other).reshape(-1).to(value.device)
    largest = float(two.abs().max())
    return 0 < largest < float("inf") and float((one - two).abs().max()) <= _SAME.get(value.dtype, 1e-5) * largest


def _check_sites(model: Any, hooks: dict[str, str]) -> None:
    """Refuse sites where the bridge's hook is not what lcalens reads and patches."""
    found = {place for hook in hooks.values() if (place := _place(hook)) is not None}
    layers = {site: [layer for one, layer in found if one == site] for site, _ in found}
    if not layers:
        return
    decoder = read_decoder(model, _TOKENS)
    if isinstance(decoder, str):
        for site in layers:
            try_site(model, site)
        return
    tokens = torch.arange(_TOKENS)[None] % int(model.cfg.d_vocab)
    spans = {site: range(min(some), max(some) + 1) for site, some in layers.items()}
    check_same_as_hooks("path", model, decoder, tokens, spans)
