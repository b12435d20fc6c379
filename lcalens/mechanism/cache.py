"""Activations of a contrast's runs as TransformerLens's ActivationCache, from the same forward that `patch` runs."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from lcalens.core.checks import check_choice
from lcalens.core.errors import LcalensError
from lcalens.core.stamp import holds_steady
from lcalens.engine.activations import activations
from lcalens.engine.by_hooks import shown, try_site
from lcalens.engine.decoder import Decoder
from lcalens.engine.reading import read_decoder
from lcalens.engine.sites import SITES, Run, hook_name
from lcalens.mechanism.arguments import check_contrast, check_layer, read_site
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.sources import check_same_as_hooks

if TYPE_CHECKING:
    from transformer_lens import ActivationCache

_RUNS = ("clean", "hijacked")
Names = str | Iterable[str] | Callable[[str], bool]


@holds_steady
@torch.no_grad()
def run_with_cache(
    model: Any, contrast: Contrast, *, run: Run = "clean", names_filter: Names | None = None
) -> tuple[Float[Tensor, "example position vocab"], "ActivationCache"]:
    """The logits of a contrast's clean or hijacked runs and their activations, as the bridge's own `run_with_cache`.

    The activations are those that `patch` puts in and takes out, from the same forward, so the cache goes back into
    `patch(source=cache)`, changed or not. Each asked for is first compared, on one example, with what the bridge's hook
    of this name shows, and refused where the two differ. Those that are kept take memory: give `names_filter`.

    Args:
        model: A TransformerBridge, of a toy or a real model.
        contrast: Clean and hijacked runs; those that are run must be of one length.
        run: `clean` or `hijacked`.
        names_filter: What is kept: sites (`z`: in every layer), hook names (`blocks.3.attn.hook_z`), several of both,
            or a function of a hook name. By default every site that `patch` knows, in every layer.

    Returns:
        Logits of every position, after any soft cap, in float32 at least; and an ActivationCache by hook name, each
        tensor in the shape of the hook: `z`, `q`, `k`, `v` (example, position, head, width), `pattern` and
        `attn_scores` (example, head, query, key), the others (example, position, d).

    Raises:
        LcalensError: An argument that cannot be used, runs of several lengths, or a hook that shows something else.

    Example:
        >>> logits, cache = run_with_cache(model, contrast[:1], names_filter="z")
        >>> halved = {name: value / 2 for name, value in cache.items()}
        >>> patch(model, contrast[:1], source=halved)  # your own activations, put into the hijacked run
    """
    from transformer_lens import ActivationCache

    check_contrast(model, contrast)
    rows = getattr(contrast, check_choice("run", run, _RUNS))
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise LcalensError(
            f"contrast: a cache holds runs of one length, and the {run} ones have {lengths[0]} to {lengths[-1]} "
            "tokens; take some, contrast[[...]]."
        )
    decoder = read_decoder(model, contrast.longest)
    layers = len(decoder.layers) if isinstance(decoder, Decoder) else int(model.cfg.n_layers)
    wanted = _wanted(names_filter, layers)
    tokens = torch.tensor([list(row) for row in rows])
    names = [hook_name(site, layer) for site, layer in wanted]
    by_site = {site: range(layers) for site, _ in wanted}
    if isinstance(decoder, str):
        for site in by_site:
            try_site(model, site)
        kept, logits = shown(model, tokens.to(next(model.original_model.parameters()).device), names)
    else:
        check_same_as_hooks("names_filter", model, decoder, tokens[:1], by_site)
        found, final = activations(decoder, tokens.to(decoder.layers[0].device), by_site, range(layers))
        kept = {hook_name(*at): found[at] for at in wanted}
        logits = decoder.logits(final)
    return logits, ActivationCache({name: kept[name] for name in names}, model)


def _wanted(names_filter: Any, layers: int) -> list[tuple[str, int]]:
    """Sites and layers in the order of the table, layer by layer."""
    every = [(site, layer) for layer in range(layers) for site in SITES]
    if names_filter is None:
        return every
    if callable(names_filter) and not isinstance(names_filter, type):
        found = [at for at in every if names_filter(hook_name(*at))]
    else:
        listed = [names_filter] if isinstance(names_filter, str) else names_filter
        if isinstance(listed, type | bytes) or not isinstance(listed, Iterable):
            raise LcalensError(
                f"names_filter: expected names of sites or hooks, or a function, got {names_filter!r:.60}."
            )
        places = set()
        for name in listed:
            try:
                place = read_site(name)
                check_layer(place, layers)
            except LcalensError as error:
                raise LcalensError(f"names_filter: {str(error).removeprefix('site: ')}") from error
            places |= {(place.site, at) for at in (range(layers) if place.layer is None else [place.layer])}
        found = [at for at in every if at in places]
    if not found:
        raise LcalensError(f"names_filter: {names_filter!r:.60} keeps none of {', '.join(SITES)} in {layers} layers.")
    return found
