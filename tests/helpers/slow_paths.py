"""Path patching as one writes it by hand: two or three forward passes with TransformerLens's hooks for every path.

Nothing of lcalens is used. First everything is held but what is sent, and what the receiver reads is seen; then that is
put into an ordinary run. Positions are counted from the end, as -1 is the last of both runs.
"""

import torch

from helpers.slow_patching import HOOKS

EMBEDDING = "embed"


def everything(model, tokens):
    """What each head reads, what each MLP writes and what stands before each layer, in an ordinary run."""
    seen, hooks = {}, []
    for name in ("head", "mlp_out", "resid_pre"):
        for layer in range(model.cfg.n_layers):

            def look(value, hook, at=(name, layer)):
                seen[at] = value.detach().clone()

            hooks.append((f"blocks.{layer}.{HOOKS[name]}", look))
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=hooks)
    return seen


def put_at(group, value, source, *which):
    """Writes the source's activation at some positions, aligned from the end."""
    for place in group:
        value[(slice(None), value.shape[1] + place, *which)] = source[(slice(None), source.shape[1] + place, *which)]
    return value


def held(model, base, source, sender, group):
    """Hooks under which every head and MLP writes what it wrote in the base run, and the sender the source's."""
    hooks = []
    for layer in range(model.cfg.n_layers):

        def read(z, hook, layer=layer):
            new = base["head", layer].clone()
            return put_at(group, new, source["head", layer], sender[1]) if sender == (layer, sender[1]) else new

        def write(value, hook, layer=layer):
            new = base["mlp_out", layer].clone()
            return put_at(group, new, source["mlp_out", layer]) if sender == f"MLP{layer}" else new

        hooks += [(f"blocks.{layer}.{HOOKS['head']}", read), (f"blocks.{layer}.{HOOKS['mlp_out']}", write)]
    if sender == EMBEDDING:

        def begin(value, hook):
            return put_at(group, value.clone(), source["resid_pre", 0])

        hooks.append((f"blocks.0.{HOOKS['resid_pre']}", begin))
    return hooks


def seen_under(model, tokens, hooks, name):
    """What a hook shows in a run with other hooks."""
    found = []

    def look(value, hook):
        found.append(value.detach().clone())

    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=[*hooks, (name, look)])
    return found[-1]


def patched(model, base, source, sender, receiver, at, group):
    """The last logits where a sender's output is the source's for one receiver alone."""
    hooks = held(model, everything(model, base), everything(model, source), sender, group)
    if at == "logits":
        with torch.no_grad():
            return model.run_with_hooks(base, fwd_hooks=hooks)[:, -1]
    layer, head = (receiver, None) if at == "resid" else receiver
    name = f"blocks.{layer}.{HOOKS['resid_pre' if at == 'resid' else at]}"
    read = seen_under(model, base, hooks, name)
    if at == "resid":
        which = ()
    elif at == "q":
        which = (head,)
    else:
        which = (head * read.shape[2] // model.cfg.n_heads,)

    def put(value, hook):
        return put_at(group, value.clone(), read, *which)

    if at in ("k", "v"):  # heads that share the key or value must not see it
        own = f"blocks.{layer}.{HOOKS['head']}"
        z = seen_under(model, base, [(name, put)], own)

        def put_z(value, hook):
            value = value.clone()
            value[:, :, head] = z[:, :, head]
            return value

        with torch.no_grad():
            return model.run_with_hooks(base, fwd_hooks=[(own, put_z)])[:, -1]
    with torch.no_grad():
        return model.run_with_hooks(base, fwd_hooks=[(name, put)])[:, -1]
