"""Identities of what is done to heads: cut off, exchanged, taken together, and patched along single paths."""

import torch
from einops import einsum
from torch import Tensor

from lcalens.engine.sites import hook_name
from lcalens.mechanism.exchange import exchange
from lcalens.mechanism.knockout import knockout
from lcalens.mechanism.path import path
from lcalens.mechanism.players import shapley
from lcalens.selfcheck.by_hand import Edited, edited, patched, putting, without
from lcalens.selfcheck.identity import Identity, Measured, Unjudged
from lcalens.selfcheck.subject import Subject

_TWINS = ("pattern", "values", "both")


def cut_off(subject: Subject) -> Measured:
    """No head of any position behind the sentence looks at it."""
    result = knockout(subject.model, subject.contrast, span="sentence", progress=False)
    hidden, layers = _sentence_hidden(subject), range(int(subject.model.cfg.n_layers))
    for layer in layers:
        subject.hook("hijacked", "pattern", layer)
    run = {hook_name("pattern", layer): without(subject, layer, hidden, slice(None)) for layer in layers}
    (expected,) = edited(subject, subject.bucket.hijacked, [run])
    return _compared(subject, torch.from_numpy(result.values["value"]), expected)


def _sentence_hidden(subject: Subject) -> Tensor:
    (first, last), length = subject.sentence, subject.bucket.hijacked.shape[1]
    hidden = torch.zeros(len(subject.bucket.hijacked), length, length, dtype=torch.bool)
    hidden[:, :first, first:last] = True
    hidden[:, last:, first:last] = True
    return hidden


def exchanged(subject: Subject) -> Measured:
    """A head's pattern, values or both made the clean run's."""
    head = subject.heads[0]
    result = exchange(subject.model, subject.contrast, [[head]], progress=False)
    layer, number = head
    pattern = {hook_name("pattern", layer): putting("pattern", subject.hook("clean", "pattern", layer), number, [-1])}
    both = {hook_name("z", layer): putting("z", subject.hook("clean", "z", layer), number, [-1])}
    old, values = subject.hook("hijacked", "pattern", layer), subject.hook("clean", "v", layer)
    shared = values.repeat_interleave(old.shape[1] // values.shape[2], 2).transpose(1, 2)
    clean_z, clean_pattern = subject.hook("clean", "z", layer), subject.hook("clean", "pattern", layer)
    again = einsum(clean_pattern.double(), shared.double(), "batch head query key, batch head key width -> "
                   "batch query head width")  # fmt: skip
    if again.shape != clean_z.shape or _apart(again, clean_z.double()) > subject.rounding(shared):
        raise Unjudged("its hooks show values before a clip or a norm, and not as heads average them")
    read = einsum(old[:, number, -1].double(), shared[:, number].double(), "batch key, batch key width -> "
                  "batch width")  # fmt: skip

    def averaged(z: Tensor) -> Tensor:
        z[:, -1, number] = read.to(z)
        return z

    expected = edited(subject, subject.bucket.hijacked, [pattern, {hook_name("z", layer): averaged}, both])
    return _compared(subject, torch.from_numpy(result.values["value"][:, 0]).T, expected)


def shared_out(subject: Subject) -> Measured:
    """Shapley values of some heads, and what all of them do together."""
    result = shapley(subject.model, subject.contrast, list(subject.heads), progress=False)
    places = list(subject.heads)
    (together,) = patched(subject, places, "z", [-1], together=True)
    expected = subject.ends[:, 1] - together
    mine = torch.from_numpy(result.values["shapley"].sum(1))
    return Measured(_apart(mine, expected), subject.grain, float(expected.abs().max()))


def paths_to_logits(subject: Subject) -> Measured:
    """What heads and MLPs say to the logits directly, all that stands between held by hand."""
    layers = int(subject.model.cfg.n_layers)
    middle = layers // 2
    senders = [f"L{layer}H{head}" for layer, head in subject.heads] + [f"MLP{middle}"]
    result = path(subject.model, subject.contrast, senders=senders, progress=False)
    runs = []
    for name in result.axes["sender"]:
        runs.append(_sent(subject, name) | _held(subject, _layer_of(name), layers, mlp=name.startswith("L")))
    expected = subject.ends[:, 1] - edited(subject, subject.bucket.hijacked, runs)
    mine = torch.from_numpy(result.values["effect"][:, :, 0]).T
    return Measured(_apart(mine, expected), subject.grain, float(expected.abs().max()))


def path_to_query(subject: Subject) -> Measured:
    """What the first layers' MLP and heads say to a later head's query."""
    layers = int(subject.model.cfg.n_layers)
    if layers < 2:
        raise Unjudged("it has one layer, and a path leads from a layer to a later one")
    receiver = max(subject.heads)
    receiver = receiver if receiver[0] else (layers - 1, 0)
    if subject.decoder.layers[receiver[0]].norms_join_heads:
        raise Unjudged("a norm joins its heads' queries, so one of them cannot be changed alone by hand")
    sender = f"MLP{receiver[0] - 1}"
    result = path(subject.model, subject.contrast, senders=[sender, "embed"], receivers=[receiver], at="q",
                  progress=False)  # fmt: skip
    kept: list[Tensor] = []
    held = _sent(subject, sender) | _held(subject, receiver[0] - 1, receiver[0], mlp=False)
    names = [(name, lambda value, hook, change=change: change(value.clone())) for name, change in held.items()]
    query = hook_name("q", receiver[0])
    subject.hook("hijacked", "q", receiver[0])
    subject.last(subject.bucket.hijacked, [*names, (query, lambda value, hook: kept.append(value.detach().clone()))])
    run = {query: putting("q", kept[0], receiver[1], [-1])}
    expected = subject.ends[:, 1] - edited(subject, subject.bucket.hijacked, [run])[0]
    mine = torch.from_numpy(result.values["effect"][:, list(result.axes["sender"]).index(sender), 0])
    return Measured(_apart(mine, expected), subject.grain, float(expected.abs().max()))


def _layer_of(sender: str) -> int:
    return int(sender.removeprefix("MLP")) if sender.startswith("MLP") else int(sender[1:].partition("H")[0])


def _sent(subject: Subject, sender: str) -> Edited:
    """A sender's output at the last position made the clean run's."""
    layer = _layer_of(sender)
    if sender.startswith("MLP"):
        return {hook_name("mlp_out", layer): putting("mlp_out", subject.hook("clean", "mlp_out", layer), None, [-1])}
    head = int(sender.partition("H")[2])
    return {hook_name("z", layer): putting("z", subject.hook("clean", "z", layer), head, [-1])}


def _held(subject: Subject, layer: int, end: int, *, mlp: bool) -> Edited:
    """Attention and MLPs behind a layer held as in the hijacked run, and this layer's MLP too where a head sends."""
    held: Edited = {}
    for index in range(layer, end):
        sites = ("attn_out", "mlp_out") if index > layer else ("mlp_out",) if mlp else ()
        for site in sites:
            held[hook_name(site, index)] = putting(site, subject.hook("hijacked", site, index), None, slice(None))
    return held


def _compared(subject: Subject, mine: Tensor, expected: Tensor) -> Measured:
    effect = float((expected - subject.ends[:, 1]).abs().max())
    return Measured(_apart(mine, expected), subject.grain, effect)


def _apart(mine: Tensor, expected: Tensor) -> float:
    return float((mine.double() - expected.cpu()).abs().max())


IDENTITIES: tuple[Identity, ...] = (
    Identity("knockout", "no attention to the sentence is what hooks by hand make of it", ("knockout",), cut_off),
    Identity("exchange", "a head's pattern, values or both are put in as by hand", ("exchange", "split"), exchanged),
    Identity("Shapley sum", "Shapley values sum to the joint effect, patched by hand", ("shapley",), shared_out),
    Identity("paths to the logits", "what is said to the logits directly, all between held by hand",
             ("path", "head_kinds"), paths_to_logits),
    Identity("path to a query", "what an MLP says to a later head's query, all between held by hand",
             ("path", "head_kinds"), path_to_query),
)  # fmt: skip
