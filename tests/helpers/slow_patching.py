"""Activation patching as one writes it by hand: a forward pass with TransformerLens's hooks for every patched run.

Nothing of lcalens is used. Positions are counted from the end, as -1 is the last of both runs.
"""

from types import SimpleNamespace

import torch

HOOKS = {
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
SITES = tuple(HOOKS)
HEADLESS = ("resid_pre", "resid_post", "attn_out", "mlp_out")
BY_QUERY = ("pattern", "attn_scores")  # (batch, head, query, key)
BY_KEY = ("k", "v", "pattern", "attn_scores")  # what has no meaning where lengths differ


def kept(model, tokens, site):
    """A site's activation in every layer, in an ordinary run."""
    seen, hooks = {}, []
    for layer in range(model.cfg.n_layers):

        def look(value, hook, layer=layer):
            seen[layer] = value.detach().clone()

        hooks.append((f"blocks.{layer}.{HOOKS[site]}", look))
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=hooks)
    return [seen[layer] for layer in range(model.cfg.n_layers)]


def put(value, source, site, head, group, beyond=0):
    """Writes the source's activation of one head into the base's, which `beyond` tokens follow."""
    for place in group:
        to = value.shape[2 if site in BY_QUERY else 1] - beyond + place
        at = source.shape[2 if site in BY_QUERY else 1] + place
        if site in BY_QUERY:
            value[:, head, to, : source.shape[3]] = source[:, head, at]
        elif site in HEADLESS:
            value[:, to] = source[:, at]
        else:
            value[:, to, head] = source[:, at, head]


def heads_of(site, activation):
    return 1 if site in HEADLESS else activation.shape[1 if site in BY_QUERY else 2]


def patched(model, base, source, site, groups, *, beyond=0, one_by_one=False, read=None):
    """Logits of every patched run: (batch, layer, head, group, ...); of the last position, or of what `read` says.

    The runs of one layer go through the model as rows of one batch, or `one_by_one`.
    """
    sources = kept(model, source, site)
    variants = [(head, group) for head in range(heads_of(site, sources[0])) for group in groups]
    found = []
    for layer, there in enumerate(sources):
        name = f"blocks.{layer}.{HOOKS[site]}"
        rows = []
        for some in [[variant] for variant in variants] if one_by_one else [variants]:

            def hook_function(value, hook, there=there, some=some):
                new = value.clone().unflatten(0, (len(base), len(some)))
                for i, (head, group) in enumerate(some):
                    put(new[:, i], there, site, head, group, beyond)
                return new.flatten(0, 1)

            tokens = base.repeat_interleave(len(some), 0)
            with torch.no_grad():
                logits = model.run_with_hooks(tokens, fwd_hooks=[(name, hook_function)])
            logits = logits[:, -1] if read is None else read(logits)
            rows.append(logits.unflatten(0, (len(base), len(some))))
        found.append(torch.cat(rows, 1).unflatten(1, (-1, len(groups))))
    return torch.stack(found, 1)


def plain(model, tokens):
    with torch.no_grad():
        return model(tokens)[:, -1]


def torn(clean, hijacked):
    """The answers that a pair of runs moves most, of its last logits: what the metric is then is much above 1."""
    change = hijacked - clean
    return change.argmin(-1), change.argmax(-1)


def cap_of(model):
    """The soft cap of the logits, or None."""
    return getattr(model.original_model.config, "final_logit_softcapping", None)


def uncapped(model, logits):
    """The logits before the soft cap, where the model has one: differences are read there."""
    cap = cap_of(model)
    return logits if cap is None else (logits / cap).atanh() * cap


def measured(metric, logits, true, false, clean, cap=None):
    """A metric of logits (batch, ..., vocab), by its definition, in double precision; logits before any cap."""
    logits, clean = logits.double(), clean.double()
    shape = (len(logits),) + (1,) * (logits.ndim - 2)
    index = [answer.view(*shape, 1).expand(*logits.shape[:-1], 1) for answer in (true, false)]
    if metric == "probability":
        chances = logits.exp() / logits.exp().sum(-1, keepdim=True)
        return (chances.gather(-1, index[1]) - chances.gather(-1, index[0]))[..., 0]
    if metric == "kl":
        of = clean.log_softmax(-1).view(*shape, -1)
        return (of.exp() * (of - logits.log_softmax(-1))).sum(-1)
    assert metric == "logit-difference"
    if cap is not None:
        logits = (logits / cap).atanh() * cap
    return (logits.gather(-1, index[1]) - logits.gather(-1, index[0]))[..., 0]


def groups_of(positions, clean, hijacked, spans=None):
    """What positions mean for runs of these lengths; of unequal ones the common first token is no common position."""
    both = min(clean, hijacked) - (clean != hijacked)
    if positions == "last":
        return [(-1,)]
    if positions == "all":
        return [tuple(range(-both, 0))]
    if positions == "each":
        return [(place,) for place in range(-both, 0)]
    if isinstance(positions, str):
        return [tuple(at - hijacked for first, stop in spans[positions] for at in range(first, stop))]
    return [tuple(sorted(at if at < 0 else at - hijacked for at in positions))]


def pair(vocabulary, length, changed, *, batch=2, seed=0, least=5):
    """Clean and hijacked tokens of one length that differ at the positions `changed` alone."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(least, vocabulary, (batch, length), generator=generator)
    hijacked = clean.clone()
    for at in changed:
        hijacked[:, at] = least + (clean[:, at] - least + 1 + seed + at) % (vocabulary - least)
    return clean, hijacked


def case(model, length=9, changed=(2, 3, 5), *, batch=2, seed=0, spans=None):
    """A pair of runs, the answers they are torn between, and their last logits."""
    clean, hijacked = pair(model.cfg.d_vocab, length, changed, batch=batch, seed=seed, least=0 if toy(model) else 5)
    logits = {"clean": plain(model, clean), "hijacked": plain(model, hijacked)}
    true, false = torn(logits["clean"], logits["hijacked"])
    spans = {"word": ((2, 4), (5, 6))} if spans is None else spans
    return SimpleNamespace(
        clean=clean, hijacked=hijacked, true=true, false=false, logits=logits, spans=spans, cap=cap_of(model)
    )


def toy(model):
    return "LCA" in type(model).__name__


def sides(case, direction):
    """The run that is patched, and where the activations come from."""
    return (case.hijacked, case.clean) if direction == "restore" else (case.clean, case.hijacked)


def ends(metric, case):
    """The metric of the clean and of the hijacked runs."""
    return [
        measured(metric, case.logits[side], case.true, case.false, case.logits["clean"], case.cap)
        for side in ("clean", "hijacked")
    ]
