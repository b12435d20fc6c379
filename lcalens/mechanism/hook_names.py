"""Sites by their names here and by TransformerLens's hook points, both ways.

| site | hook point | what it is |
| --- | --- | --- |
| `resid_pre`, `resid_post` | `blocks.3.hook_resid_pre`, `...hook_resid_post` | the residual stream around a block |
| `attn_out`, `mlp_out` | `blocks.3.hook_attn_out`, `...hook_mlp_out` | what attention and MLP add to it |
| `z` (or `head`) | `blocks.3.attn.hook_z` | what each head averages, before W_O |
| `q`, `k`, `v` | `blocks.3.attn.hook_q`, `...hook_k`, `...hook_v` | queries, keys and values, before any rotation |
| `pattern`, `attn_scores` | `blocks.3.attn.hook_pattern`, `...hook_attn_scores` | attention, and its scores |

`hook_resid_mid` is left out on purpose: in TransformerLens 4.3 an edit there misses the skip connection.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from lcalens.core.errors import LcalensError
from lcalens.core.near import nearest
from lcalens.engine.sites import HOOKS

SITES: Mapping[str, str] = MappingProxyType(HOOKS)
"""Each site's hook point within a block."""
_SYNONYMS = {"head": "z"}
_FULL = re.compile(r"(?:blocks\.(?P<layer>\d+)\.)?(?:attn\.)?(?P<point>hook_\w+)")
_BY_POINT = {hook.rsplit(".", 1)[-1]: site for site, hook in SITES.items()}


class Place(NamedTuple):
    """A site, and the one layer that was asked for.

    Attributes:
        site: Its name, as results record it.
        layer: The layer; None for every one.
    """

    site: str
    layer: int | None


def hook_name(site: str, layer: int | None = None) -> str:
    """The TransformerLens hook point of a site.

    Args:
        site: The site: `z`, `resid_pre`, ...
        layer: Which block's; without it the name within a block.

    Raises:
        LcalensError: There is no such site, or the layer is no number.

    Example:
        >>> hook_name("z", 3)
        'blocks.3.attn.hook_z'
        >>> hook_name("resid_pre")
        'hook_resid_pre'
    """
    point = SITES[read_place(site).site]
    if layer is None:
        return point
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
        raise LcalensError(f"layer: expected an integer of at least 0, got {layer!r:.60}.")
    return f"blocks.{layer}.{point}"


def site_of(hook: str) -> tuple[str, int | None]:
    """The site that a TransformerLens hook point is, and the layer it names.

    Args:
        hook: `blocks.3.attn.hook_z`, `attn.hook_z` or `hook_z`; a site's own name is taken too.

    Raises:
        LcalensError: It is none that can be patched.

    Example:
        >>> site_of("blocks.3.attn.hook_z")
        ('z', 3)
        >>> site_of("hook_resid_pre")
        ('resid_pre', None)
    """
    site, layer = read_place(hook, "hook")
    return site, layer


def read_place(site: Any, name: str = "site") -> Place:
    """The site and the layer that a site's or a hook's name means.

    Args:
        site: The name.
        name: The argument's, for the error.

    Raises:
        LcalensError: It is neither a site nor a hook point.
    """
    if isinstance(site, str):
        plain = _SYNONYMS.get(site, site)
        if plain in SITES:
            return Place(plain, None)
        match = _FULL.fullmatch(site)
        if match is not None and match["point"] in _BY_POINT:
            known_site = _BY_POINT[match["point"]]
            if "attn." not in site or SITES[known_site].startswith("attn."):
                return Place(known_site, None if match["layer"] is None else int(match["layer"]))
        if match is not None and match["point"] == "hook_resid_mid":
            raise LcalensError(
                f"{name}: an edit at {site!r:.60} misses the skip connection in TransformerLens; take resid_pre, "
                "attn_out or resid_post."
            )
    raise LcalensError(
        f"{name}: {site!r:.60} is not one of {', '.join(SITES)}, nor a hook's name such as blocks.3.attn.hook_z."
        f"{_meant(site)}"
    )


def _meant(site: Any) -> str:
    """The question whether a near site was meant, as a hook's name where one was typed."""
    if not isinstance(site, str):
        return ""
    written = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.*)", site, re.DOTALL)
    layer, point = written.groups() if written else (None, site)
    points = {hook.replace("hook_", ""): hook for hook in SITES.values()}
    near = nearest(point.replace("hook_", ""), [*SITES, *points])
    if near is None:
        return ""
    if "hook_" not in site and layer is None:
        return f" Did you mean {near!r}?"
    hook = points.get(near) or SITES[near]
    return f" Did you mean {hook if layer is None else f'blocks.{layer}.{hook}'!r:.60}?"
