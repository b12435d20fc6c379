"""Memories made by hand: which cues go with which answers, and the maps that recall these and nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.engine.circuits import Circuit
from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import trace
from lcalens.mechanism.arguments import Head
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.labels import read_token, tokenizer_of
from lcalens.mechanism.words import embedded_tokens, tokens_of

Kind = Literal["sum", "centred", "answers", "writes"]
Scale = Literal["norm", "writes"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_LEAST = 4  # cues: two to a half
_CUTOFF = 1e-5  # of the largest singular value: what is smaller is rounding of single precision


@dataclass(frozen=True, eq=False)
class Pairs:
    """What goes with what.

    Attributes:
        cues: Tokens.
        answers: Tokens.
        right: Which answers go with each cue.
        half: Which half each cue is in, 0 or 1.
        whole_answers: Whether no answer has cues in both halves.
        left_out: Words that are not one token, and cues that stand in no run, as they are shown.
        names: Of cues and of answers, as they are shown.
    """

    cues: list[int]
    answers: list[int]
    right: Bool[np.ndarray, "cue answer"]
    half: Int[np.ndarray, " cue"]
    whole_answers: bool
    left_out: list[str]
    names: tuple[list[str], list[str]]


def places(contrast: Contrast) -> list[list[int]]:
    """For each example the positions in its hijacked run where its cues stand.

    Args:
        contrast: With a span `word`, of which only words of one token are cues, or `redrawn`.

    Raises:
        LcalensError: It has neither.
    """
    span = next((name for name in ("word", "redrawn") if name in contrast.spans), None)
    if span is None:
        raise LcalensError("contrast: it has no span 'word'; give Contrast(..., spans={'word': ...}).")
    whole = span == "redrawn"  # in the toy any token stands by itself
    return [
        [at for first, last in rows if whole or last == first + 1 for at in range(first, last)]
        for rows in contrast.spans[span]
    ]


def pairs_of(
    model: Any, text: Any, contrast: Contrast, given: Mapping[Any, Any] | None, stand: set[int] | None, seed: int
) -> Pairs:
    """The pairs of a contrast, or the user's.

    Args:
        model: A TransformerBridge.
        text: Its tokenizer, or None where tokens are no text.
        contrast: Whose cues go with their false answers where none are given.
        given: From a cue to its answers, words or token ids.
        stand: The tokens that stand in a run as cues; None where a cue need not stand in one.
        seed: Of the halves.

    Raises:
        LcalensError: Too few are left, or something in them is no word and no token.
    """
    tokenizer = tokenizer_of(model)
    at = places(contrast)
    if given is None:
        relations: dict[int, list[int]] = {}
        for run, positions, false in zip(contrast.hijacked, at, contrast.false, strict=True):
            for position in positions:
                relations.setdefault(run[position], []).append(false[0])
        left_out = [str(example) for example, positions in enumerate(at) if not positions]
        names = {}
    else:
        relations, names, left_out = tokens_of(model, text, "pairs", given)
        lost = [cue for cue, some in relations.items() if not some or (stand is not None and cue not in stand)]
        left_out = [*left_out, *(names[cue] for cue in lost if names[cue] not in left_out)]
        relations = {cue: some for cue, some in relations.items() if cue not in lost}
    if len(relations) < _LEAST:
        said = f"; left out, as not one token or in no run: {', '.join(left_out)[:80]}" if left_out else ""
        raise LcalensError(f"pairs: {_LEAST} cues or more are needed, two to a half, got {len(relations)}{said}.")
    cues = sorted(relations)
    answers = sorted({token for some in relations.values() for token in some})
    right = np.zeros((len(cues), len(answers)), dtype=bool)
    for row, cue in enumerate(cues):
        right[row, [answers.index(token) for token in set(relations[cue])]] = True
    if len(answers) < 2:
        raise LcalensError("pairs: all cues have one answer, so there is nothing to tell apart; give others.")
    half, apart = _halves(right, seed)
    shown = [names.get(cue, read_token(tokenizer, cue)) for cue in cues]
    return Pairs(
        cues, answers, right, half, apart, left_out, (shown, [read_token(tokenizer, token) for token in answers])
    )


def _halves(right: Bool[np.ndarray, "cue answer"], seed: int) -> tuple[Int[np.ndarray, " cue"], bool]:
    """Two halves of the cues; those that share an answer stay together, unless one group has most of them."""
    linked = (right.astype(np.int64) @ right.T) > 0
    groups = connected_components(linked, directed=False)[1]
    apart = np.bincount(groups).max() <= 0.6 * len(groups)
    if not apart:
        groups = np.arange(len(groups))
    half, sizes = np.zeros(len(groups), dtype=np.int64), [0, 0]
    order = np.random.default_rng(seed).permutation(groups.max() + 1)
    for group in sorted(order, key=lambda group: -np.sum(groups == group)):
        smaller = int(sizes[1] < sizes[0])
        half[groups == group] = smaller
        sizes[smaller] += int((groups == group).sum())
    return half, bool(apart)


@torch.no_grad()
def streams_of(
    decoder: Decoder, contrast: Contrast, layer: int, cues: Sequence[int], *, embedded: bool
) -> Float[Tensor, "cue d"]:
    """What attention reads of each cue: from the embedding, or the mean over where it stands as a cue.

    Args:
        decoder: The model.
        contrast: Whose hijacked runs.
        layer: Whose attention.
        cues: Tokens.
        embedded: Whether from the embedding.
    """
    part = decoder.layers[layer]
    if embedded:
        return part.norm(embedded_tokens(decoder, cues).to(part.device)[:, None])[:, 0].double()
    row = {cue: index for index, cue in enumerate(cues)}
    at = places(contrast)
    total = torch.zeros(len(cues), part.out.shape[-1], dtype=torch.float64, device=part.device)
    count = torch.zeros(len(cues), dtype=torch.float64, device=part.device)
    for bucket in contrast.buckets():
        normed = part.norm(trace(decoder, bucket.hijacked.to(decoder.layers[0].device), keep=()).resid[layer])
        for place, example in enumerate(bucket.indices.tolist()):
            for position in at[example]:
                cue = row.get(contrast.hijacked[example][position])
                if cue is not None:
                    total[cue] += normed[place, position].double()
                    count[cue] += 1
    return total / count[:, None]


@dataclass(frozen=True, eq=False)
class Maker:
    """Makes memories of one head's cues and answers, as loud as the head.

    Attributes:
        circuit: The head's own.
        streams: What attention reads of each cue.
        directions: What raises each answer's logit: its row of W_U through the norms' gains.
        right: Which answers go with each cue.
        scale: `norm`, the Frobenius norm of the head's circuit; or `writes`, what it writes of the cues it was made of.
    """

    circuit: Circuit
    streams: Float[Tensor, "cue d"]
    directions: Float[Tensor, "answer d"]
    right: Bool[np.ndarray, "cue answer"]
    scale: Scale

    def made(self, kind: Kind, which: Int[np.ndarray, " some"], order: Int[np.ndarray, " some"]) -> Circuit:
        """A memory, before its scale is matched.

        Args:
            kind: `sum`, of e(answer) e(cue)^T over pairs; `centred`, the same of both less their means over pairs; or
                least squares from cues to `answers`, the mean of theirs, or to what the head `writes` of them.
            which: The cues it is made of.
            order: For each of these the cue whose answers it is given.
        """
        streams = self.streams[torch.from_numpy(which).to(self.streams.device)]
        if kind == "writes":
            wanted = self.circuit(self.streams[torch.from_numpy(order).to(self.streams.device)])
            return _least_squares(streams, wanted)
        right = torch.from_numpy(self.right[order]).to(self.directions)
        count = right.sum(1, keepdim=True)
        total = right @ self.directions
        if kind == "answers":
            return _least_squares(streams, total / count)
        if kind == "centred":  # the answers' mean drops out where the cues' has been taken off
            streams = streams - (count * streams).sum(0) / count.sum()
        return Circuit(total.T, streams)

    def matched(self, memory: Circuit, which: Int[np.ndarray, " some"]) -> Circuit:
        """The memory as loud as the head; one that recalls nothing stays so.

        Args:
            memory: The memory.
            which: The cues it was made of.
        """
        if self.scale == "norm":
            own, its = self.circuit.size, memory.size
        else:
            streams = self.streams[torch.from_numpy(which).to(self.streams.device)]
            own, its = (float(one(streams).norm()) for one in (self.circuit, memory))
        return memory.times(own / its if its > 0 else 0.0)


def _least_squares(streams: Float[Tensor, "cue d"], wanted: Float[Tensor, "cue d"]) -> Circuit:
    """The smallest map that gives what is wanted of each stream, or comes nearest to it."""
    return Circuit(wanted.T, torch.linalg.pinv(streams, rtol=_CUTOFF).T)


@dataclass(frozen=True, eq=False)
class Memory:
    """A memory of all cues, and one of each half.

    Attributes:
        whole: Of all.
        halves: Of half 0, and of half 1.
    """

    whole: Circuit
    halves: tuple[Circuit, Circuit]


def fitted(maker: Maker, kind: Kind, half: Int[np.ndarray, " cue"], random: np.random.Generator | None) -> Memory:
    """A kind of memory of all cues and of each half, matched.

    Args:
        maker: Of this head.
        kind: Which.
        half: Of each cue.
        random: Where given, answers are shuffled among the cues of each.
    """

    def one(which: Int[np.ndarray, " some"]) -> Circuit:
        order = which if random is None else random.permutation(which)
        return maker.matched(maker.made(kind, which, order), which)

    return Memory(one(np.arange(len(half))), (one(np.flatnonzero(half == 0)), one(np.flatnonzero(half == 1))))


def same_everywhere(circuit: Circuit) -> Memory:
    """A circuit that was made of no cue, as a memory.

    Args:
        circuit: The circuit.
    """
    return Memory(circuit, (circuit, circuit))


def shuffled(maker: Maker, kind: Kind, half: Int[np.ndarray, " cue"], draws: int, seed: int) -> Iterator[Memory]:
    """Memories of random pairings.

    Args:
        maker: Of this head.
        kind: Which.
        half: Of each cue.
        draws: How many.
        seed: Of the pairings, which are the same for every kind.
    """
    for draw in range(draws):
        yield fitted(maker, kind, half, np.random.default_rng([seed, draw]))


def whose(decoder: Decoder, pairs: Pairs, vocabulary: int, head: Head) -> Int[Tensor, " token"]:
    """For each token the half that it is in as a cue, -1 where it is none; where the head's layer is.

    Args:
        decoder: The model.
        pairs: The cues.
        vocabulary: How many tokens there are.
        head: Whose.
    """
    half = torch.full((vocabulary,), -1, dtype=torch.long)
    half[torch.tensor(pairs.cues)] = torch.from_numpy(pairs.half)
    return half.to(decoder.layers[head[0]].device)
