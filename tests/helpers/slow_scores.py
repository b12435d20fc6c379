"""A head's score taken apart as one writes it by hand: a hook puts in each part by itself as the query or the key.

Nothing of lcalens is used. Norms are held by hand: what a part is multiplied by is what the whole was. A norm of
queries or keys normalises the part anew when it runs, which is undone by the ratio of their sizes.
"""

import torch
from torch import nn


def seen(model, tokens, names, edits=()):
    """What hooks of these names show, in a run with these edits."""
    found, hooks = {}, []
    for name in names:  # a hook may call itself by another name

        def look(value, hook, name=name):
            found[name] = value.detach().clone()

        hooks.append((name, look))
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[*edits, *hooks])
    return found


def plain(module):
    """Hugging Face's own module."""
    return getattr(module, "original_component", None) or module


def held(norm, whole, parts):
    """Each part as the norm scales the whole; what the norm adds goes to the first of them, the bias."""
    whole = whole.double()
    if isinstance(norm, nn.LayerNorm):
        size = (whole.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        made = [(part - part.mean(-1, keepdim=True)) / size * norm.weight.double() for part in parts.values()]
        bias = norm.bias.double()
    else:
        eps = getattr(norm, "variance_epsilon", None) or norm.eps
        size = (whole.square().mean(-1, keepdim=True) + eps).sqrt()
        one = norm.weight.double() + (1 if type(norm).__name__.startswith("Gemma") else 0)
        made, bias = [part / size * one for part in parts.values()], 0
    made = dict(zip(parts, made, strict=True))
    made["bias"] = made["bias"] + bias
    return made


def through(linear, vectors):
    """A projection without its bias."""
    nothing = torch.zeros_like(vectors[..., :1, :]).float()
    return linear(vectors.float()).double() - linear(nothing).double()


@torch.no_grad()
def written(model, tokens, layer):
    """What each part has written before a layer, and the stream there."""
    names = [f"blocks.{index}.{name}" for index in range(layer + 1)
             for name in ("hook_resid_pre", "attn.hook_z", "hook_mlp_out")]  # fmt: skip
    shown = seen(model, tokens, names)
    parts = {"embed": shown["blocks.0.hook_resid_pre"].double()}
    for index in range(layer):
        block, z = model.blocks[index], shown[f"blocks.{index}.attn.hook_z"]
        out = plain(block.attn.o)
        for head in range(z.shape[2]):
            alone = torch.zeros_like(z)
            alone[:, :, head] = z[:, :, head]
            added = through(out, alone.flatten(-2))
            if "ln1_post" in dict(block.named_children()):
                whole = out(z.flatten(-2))
                added = held(plain(block.ln1_post), whole, {"bias": 0, "one": added})["one"]
            parts[f"L{index}H{head}"] = added
        parts[f"MLP{index}"] = shown[f"blocks.{index}.hook_mlp_out"].double()
    stream = shown[f"blocks.{layer}.hook_resid_pre"]
    return {"bias": stream.double() - sum(parts.values())} | parts, stream


@torch.no_grad()
def read(model, tokens, layer, name):
    """What each part makes of the queries or the keys of a layer: (batch, position, head, width)."""
    parts, stream = written(model, tokens, layer)
    block = model.blocks[layer]
    linear, norm = plain(getattr(block.attn, name)), plain(block.ln1)
    whole = seen(model, tokens, [f"blocks.{layer}.attn.hook_{name}"])[f"blocks.{layer}.attn.hook_{name}"]
    made = {part: through(linear, value) for part, value in held(norm, stream, parts).items()}
    made["bias"] = made["bias"] + linear(torch.zeros_like(stream)).double()
    return {part: value.reshape(whole.shape) for part, value in made.items()}, whole.double()


@torch.no_grad()
def score(model, tokens, layer, head, query=None, key=None):
    """The last position's scores with every key, before any soft cap, where a part alone is the query or the key."""
    edits, ratio = [], torch.ones(tokens.shape, dtype=torch.float64)
    for name, part in (("q", query), ("k", key)):
        if part is None:
            continue
        parts, whole = read(model, tokens, layer, name)
        own = head * whole.shape[2] // model.cfg.n_heads

        def put(value, hook, part=parts[part]):
            return part.to(value)

        edits.append((f"blocks.{layer}.attn.hook_{name}", put))
        norm = getattr(plain(model.blocks[layer].attn), f"{name}_norm", None)
        if norm is not None:
            eps = getattr(norm, "variance_epsilon", None) or norm.eps
            sizes = [(value[:, :, own].square().mean(-1) + eps).sqrt() for value in (parts[part], whole)]
            change = sizes[0] / sizes[1]
            ratio = ratio * (change[:, -1:] if name == "q" else change)
    shown = seen(model, tokens, [f"blocks.{layer}.attn.hook_attn_scores"], edits)
    found = next(iter(shown.values()))[:, head, -1].double()
    cap = getattr(model.original_model.config, "attn_logit_softcapping", None)
    return (found if cap is None else torch.atanh(found / cap) * cap) * ratio
