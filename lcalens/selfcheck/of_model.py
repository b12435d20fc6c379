"""Identities of a model as a whole: it is Hugging Face's, lcalens reads its layers, and batches change nothing."""

from collections.abc import Sequence

import torch
from einops import einsum, rearrange
from torch import Tensor

from lcalens.core.limits import context_limit
from lcalens.core.verdicts import EVERY
from lcalens.engine.decoder import Layer, wide
from lcalens.engine.forward import Trace, trace
from lcalens.engine.observing import Observed, observe
from lcalens.engine.trial import trial_tokens
from lcalens.llm.efficacy.scoring import path_of
from lcalens.selfcheck.identity import Identity, Measured, Unjudged
from lcalens.selfcheck.subject import Subject

_LONG = 40
_LAYERED = ("patch", "attribute", "knockout", "exchange", "split", "shapley", "path", "score_parts", "head_kinds",
            "recall", "memory", "run_with_cache", "defend", "learn_heads", "evaluate_defence")  # fmt: skip


@torch.no_grad()
def original_logits(subject: Subject) -> Measured:
    """The bridge's logits and those of Hugging Face's own model, of the hijack and of random tokens, short and long."""
    longest = min(context_limit(subject.model) or _LONG, _LONG)
    rows = [subject.bucket.hijacked]
    rows += [trial_tokens(subject.model, length, int(subject.model.cfg.d_vocab)) for length in (2, longest)]
    found = []
    for tokens in rows:
        logits = wide(subject.model(tokens))
        expected = wide(subject.original(input_ids=tokens).logits).to(logits.device)
        if logits.shape != expected.shape:
            raise Unjudged(f"Hugging Face's model gives logits of shape {tuple(expected.shape)}")
        spread = float((expected - expected.mean(-1, keepdim=True)).abs().max())
        found.append(Measured(_apart(logits, expected), subject.carried["logits"][0], spread))
    return _worst(found)


@torch.no_grad()
def original_patterns(subject: Subject) -> Measured:
    """Where each head looks, by lcalens and by Hugging Face's own model."""
    tokens = subject.bucket.hijacked
    given = getattr(subject.original(input_ids=tokens, output_attentions=True), "attentions", None) or ()
    patterns = [subject.hook("hijacked", "pattern", layer) for layer in range(int(subject.model.cfg.n_layers))]
    shapes = [None if one is None else tuple(one.shape) for one in given]
    if shapes != [tuple(one.shape) for one in patterns]:
        raise Unjudged("Hugging Face's model does not show where its heads look")
    found = _traced(subject).kept["pattern"]
    return _worst(
        [Measured(_apart(mine, theirs), tolerance + subject.rounding(theirs), float(theirs.abs().max()))
         for mine, theirs, tolerance in zip(found, given, subject.carried["pattern"], strict=True)]
    )  # fmt: skip


@torch.no_grad()
def batches(subject: Subject) -> Measured:
    """Examples run together, and each by itself."""
    tokens = torch.cat([subject.bucket.clean, subject.bucket.hijacked])
    together = wide(subject.model(tokens))
    alone = torch.cat([wide(subject.model(row[None])) for row in tokens])
    return Measured(_apart(together, alone), subject.carried["logits"][0], _apart(alone[0], alone[-1]))


@torch.no_grad()
def padding(subject: Subject) -> Measured:
    """A short text padded on the left beside a long one, and by itself."""
    long, short = subject.bucket.hijacked[0], subject.bucket.hijacked[1][2:]
    pad = getattr(subject.tokenizer, "pad_token_id", None)
    filling = long[:1].repeat(2) if pad is None or pad >= int(subject.model.cfg.d_vocab) else long.new_tensor([pad] * 2)
    tokens = torch.stack([long, torch.cat([filling, short])])
    mask = torch.ones_like(tokens)
    mask[1, :2] = 0
    padded = wide(subject.model(tokens, attention_mask=mask))[1, 2:]
    alone = wide(subject.model(short[None]))[0]
    error, tolerance = _apart(padded, alone), subject.carried["logits"][0]
    if error > tolerance and path_of(subject.model, len(short), len(long), share=False) == "single":
        raise Unjudged(f"padding changes this bridge's logits by {error:.3g}, so lcalens runs its texts one by one")
    return Measured(error, tolerance, _apart(alone[0], alone[-1]))


def _carried(subject: Subject, site: str) -> list[float]:
    if site not in subject.carried:
        raise Unjudged(f"TransformerLens shows no {site}, so what rounding makes of it is not known")
    return subject.carried[site]


def _observed(subject: Subject) -> tuple[list[Observed], Tensor]:
    return subject.once("observed", lambda: observe(subject.model, subject.bucket.hijacked))


def _traced(subject: Subject) -> Trace:
    keep = ("pattern", "attn_out", "mlp_out")
    return subject.once("traced", lambda: trace(subject.decoder, subject.bucket.hijacked, keep=keep))


@torch.no_grad()
def layers(subject: Subject) -> Measured:
    """Run layer by layer from the tokens on: every layer's stream and the logits, and the model's own."""
    observed, logits = _observed(subject)
    traced = _traced(subject)

    tolerances = [*_carried(subject, "resid_post"), *subject.carried["logits"]]
    mine = [*traced.resid[1:], subject.decoder.logits(traced.final)]
    theirs = [*(block.after for block in observed), wide(logits)]
    effects = [*(float((block.after - block.before).abs().max()) for block in observed), float(logits.abs().max())]
    return _worst([Measured(_apart(*numbers[:2]), *numbers[2:])
                   for numbers in zip(mine, theirs, tolerances, effects, strict=True)])  # fmt: skip


@torch.no_grad()
def sums(subject: Subject) -> Measured:
    """The stream before a block, what attention adds and what the MLP adds: together the stream after it."""
    decoder = subject.decoder
    if not decoder.residual or not all(layer.open for layer in decoder.layers):
        raise Unjudged("its blocks do more to the stream than add to it, so there is no sum")
    observed, _ = _observed(subject)
    traced = _traced(subject)
    found = []
    for index, (block, tolerance) in enumerate(zip(observed, _carried(subject, "resid_post"), strict=True)):
        added = [wide(traced.kept[name][index]) for name in ("attn_out", "mlp_out")]
        after = wide(block.before) + added[0] + added[1]
        rounding = subject.rounding(block.before, block.after, *added)
        effect = min(float(part.abs().max()) for part in added)
        found.append(Measured(_apart(after, wide(block.after)), tolerance + rounding, effect))
    return _worst(found)


@torch.no_grad()
def averages(subject: Subject) -> Measured:
    """Where a head looks times the values there: what it reads, as W_O is given it."""
    observed, _ = _observed(subject)
    traced = _traced(subject)
    found = []
    for index, (block, tolerance) in enumerate(zip(observed, _carried(subject, "z"), strict=True)):
        layer = subject.decoder.layers[index]
        values = traced.values[index].double().repeat_interleave(layer.heads // layer.kv_heads, 1)
        read = einsum(traced.kept["pattern"][index].double(), values, "batch head query key, batch head key width -> "
                      "batch query head width")  # fmt: skip
        mine = rearrange(read, "batch query head width -> batch query (head width)")
        found.append(Measured(_apart(mine, block.z), tolerance + subject.rounding(values), float(block.z.abs().max())))
    return _worst(found)


@torch.no_grad()
def head_outputs(subject: Subject) -> Measured:
    """What each head writes by itself, and the bias: together what W_O gives."""
    observed, _ = _observed(subject)
    return _worst([_heads_of(subject, layer, block)
                   for layer, block in zip(subject.decoder.layers, observed, strict=True)])  # fmt: skip


def _heads_of(subject: Subject, layer: Layer, block: Observed) -> Measured:
    z = rearrange(block.z.double(), "batch position (head width) -> batch position head width", head=layer.heads)
    each = einsum(z, layer.out.double(), "batch position head width, head width d -> batch position head d")
    bias = 0.0 if layer.out_bias is None else layer.out_bias.double()
    size = each.abs().sum(2)
    return Measured(_apart(each.sum(2) + bias, block.written), subject.rounding(size), float(each.abs().max()))


def _apart(mine: Tensor, theirs: Tensor) -> float:
    return float((mine.double() - theirs.to(mine.device).double()).abs().max())


def _worst(found: Sequence[Measured]) -> Measured:
    """The one that is nearest to its tolerance, or farthest beyond."""
    return max(found, key=lambda one: (one.error != one.error, one.error / max(one.tolerance, 1e-300)))


IDENTITIES: tuple[Identity, ...] = (
    Identity("Hugging Face's logits", "the bridge's logits are those of Hugging Face's own model", (EVERY,),
             original_logits),
    Identity("Hugging Face's patterns", "heads look where they do in Hugging Face's own model",
             ("run_with_cache", "knockout", "head_kinds"), original_patterns),
    Identity("batch and single", "examples run together give what each gives by itself", (EVERY,), batches),
    Identity("left padding", "a text padded on the left gives what it gives by itself", ("efficacy", "ask", "score",
             "evaluate_defence"), padding),
    Identity("layer by layer", "the layers that lcalens reads give the model's own streams and logits", _LAYERED,
             layers),
    Identity("stream sums", "resid_pre + attn_out + mlp_out = resid_post", ("patch", "attribute", "split", "path"),
             sums),
    Identity("averaged values", "probabilities @ values = z", ("patch", "knockout", "exchange", "split"), averages),
    Identity("head outputs", "the heads' outputs and the bias sum to attention's output",
             ("attribute", "split", "path", "recall", "memory"), head_outputs),
)  # fmt: skip
