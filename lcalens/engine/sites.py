"""The places in a model that can be patched: their names, here and in TransformerLens, and which of them have heads."""

from typing import Literal, get_args

Run = Literal["clean", "hijacked"]
Site = Literal["resid_pre", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern", "attn_scores"]
SITES: tuple[str, ...] = get_args(Site)
HEADS = frozenset({"z", "q", "pattern", "attn_scores"})  # one of each query head
SHARED = frozenset({"k", "v"})  # one of each key and value head, which may serve several query heads
BY_QUERY = frozenset({"pattern", "attn_scores"})  # (batch, head, query, key)
ALIGNED_FROM_THE_END = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "q")
NEEDS_ALIGNED = frozenset({"k", "v", "pattern", "attn_scores"})  # a value for each key position
HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
    "attn_scores": "attn.hook_attn_scores",
}


def hook_name(site: str, layer: int) -> str:
    """What TransformerLens calls a site of a layer.

    Args:
        site: One of `SITES`.
        layer: From 0.

    Example:
        >>> hook_name("z", 3)
        'blocks.3.attn.hook_z'
    """
    return f"blocks.{layer}.{HOOKS[site]}"


def head_labels(heads: int, kv_heads: int, site: str) -> tuple[int | str, ...]:
    """Labels of a site's heads: numbers, or the query heads that a key or value head serves (`0-2`).

    Args:
        heads: Query heads of a layer.
        kv_heads: Its key and value heads.
        site: The site.
    """
    if site in HEADS or (site in SHARED and heads == kv_heads):
        return tuple(range(heads))
    size = heads // kv_heads
    return tuple(f"{first}-{first + size - 1}" for first in range(0, heads, size))


def roles(direction: str) -> tuple[Run, Run]:
    """Which run is patched, and which run the activations come from.

    Args:
        direction: `restore` or `corrupt`.
    """
    return ("hijacked", "clean") if direction == "restore" else ("clean", "hijacked")
