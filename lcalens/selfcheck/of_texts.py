"""Identities of what is asked in words: scores of continuations, and a defence that is put on and taken off."""

import torch
from torch import Tensor

from lcalens.engine.decoder import wide
from lcalens.engine.sites import hook_name
from lcalens.llm.efficacy.scoring import Continuation, score
from lcalens.mechanism.defence.defence import Defence
from lcalens.mechanism.defence.defend import defend
from lcalens.selfcheck.by_hand import edited, without
from lcalens.selfcheck.identity import Identity, Measured, Unjudged
from lcalens.selfcheck.subject import Subject

_ROUNDINGS = 4  # of two log-probabilities, of their sum, and of the sum of exponentials behind them


@torch.no_grad()
def scored(subject: Subject) -> Measured:
    """Log-probabilities of texts of several lengths, scored together, and of each by Hugging Face's own model."""
    ahead = getattr(subject.model.cfg, "attention_dir", "causal") != "causal"
    rows = [*subject.contrast.hijacked, subject.unequal.clean[0], subject.contrast.clean[0][1:]]
    tail = 1 if ahead else 2
    asked = [Continuation(tuple(row), len(row) - tail, len(row)) for row in rows]
    found = score(subject.model, asked)
    expected = []
    for item in asked:
        tokens = torch.tensor([item.ids], device=subject.device)
        logits = wide(subject.original(input_ids=tokens[:, :-1]).logits)[0, item.start - 1 :].double()
        expected.append(float(logits.log_softmax(-1).gather(1, tokens[0, item.start :, None]).sum()))
    error = max(abs(mine - theirs) for mine, theirs in zip(found.logp.tolist(), expected, strict=True))
    # A log-probability is rounded as a number of its own size, which for faint logits is more than moves them.
    rounded = _ROUNDINGS * torch.finfo(torch.float32).eps * max(map(abs, expected))
    return Measured(error, tail * subject.grain + rounded, max(expected) - min(expected), f"{found.path} texts")


def _defence(subject: Subject) -> Defence:
    heads = list(subject.heads)
    return subject.once("defence", lambda: defend(subject.model, subject.unequal, method="boundary", heads=heads))


@torch.no_grad()
def taken_off(subject: Subject) -> Measured:
    """The logits before a defence was put on, and after it was taken off: the same bytes."""
    defence, tokens = _defence(subject), subject.bucket.hijacked
    before = subject.model(tokens)
    with defence.applied(subject.model):
        during = subject.model(tokens)
    after = subject.model(tokens)
    return Measured(_apart(after, before), 0.0, _apart(during, before))


@torch.no_grad()
def cut_at_boundary(subject: Subject) -> Measured:
    """A boundary cut, and by hand the same: heads that see nothing before the last sentence end but the first token."""
    defence, tokens = _defence(subject), subject.bucket.hijacked
    length = tokens.shape[1]
    hidden = torch.zeros(len(tokens), length, length, dtype=torch.bool)
    for row, ids in enumerate(tokens.tolist()):
        ended = [at for at, token in enumerate(ids[:-1]) if token in defence.ends]
        hidden[row, -1, 1 : max(ended, default=0) + 1] = True
    if not bool(hidden.any()):
        raise Unjudged("no token of these runs ends a sentence, so nothing is cut")
    run = {}
    for layer in {layer for layer, _ in defence.heads}:
        subject.hook("hijacked", "pattern", layer)
        heads = [head for at, head in defence.heads if at == layer]
        run[hook_name("pattern", layer)] = without(subject, layer, hidden, heads)
    (expected,) = edited(subject, tokens, [run])
    with defence.applied(subject.model):
        found = subject.metric(subject.last(tokens))
    return Measured(_apart(found, expected), subject.grain, _apart(expected, subject.ends[:, 1]))


def _apart(mine: Tensor, theirs: Tensor) -> float:
    return float((mine.double() - theirs.double()).abs().max())


IDENTITIES: tuple[Identity, ...] = (
    Identity("scores", "texts scored together have Hugging Face's own probabilities",
             ("efficacy", "ask", "score", "evaluate_defence"), scored),
    Identity("defence taken off", "a defence that is taken off leaves the logits as they were",
             ("defend", "evaluate_defence", "learn_heads"), taken_off),
    Identity("boundary cut", "a boundary cut is what hooks by hand make of it",
             ("defend", "evaluate_defence", "learn_heads"), cut_at_boundary),
)  # fmt: skip
