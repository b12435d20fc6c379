"""`memory`: a head's value circuit beside the memory made of its cues and answers, and that memory in its place."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
import torch

from lcalens.core.checks import check_choice, check_int
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import provenance_of
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.stamp import holds_steady
from lcalens.engine.circuits import random_circuit, readout, value_circuit
from lcalens.mechanism.arguments import check_contrast, read_heads, read_layers
from lcalens.mechanism.association import (
    KINDS,
    Maker,
    Memory,
    Pairs,
    Scale,
    fitted,
    pairs_of,
    places,
    same_everywhere,
    shuffled,
    streams_of,
    whose,
)
from lcalens.mechanism.associative_tables import (
    DRAWN,
    NONE,
    OWN,
    beside_table,
    by_cue_table,
    held_out_table,
    quantities_of,
    tests_table,
    what_stays,
)
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.labels import tokenizer_of
from lcalens.mechanism.measured import clusters_of
from lcalens.mechanism.summary import contrast_record
from lcalens.mechanism.swapped import swap

Level = Literal["residual", "embedding"]


@holds_steady
@torch.no_grad()
def memory(
    model: Any,
    contrast: Contrast,
    head: Sequence[int],
    *,
    pairs: Mapping[Any, Any] | None = None,
    level: Level = "residual",
    rank: int = 8,
    scale: Scale = "norm",
    draws: int = 20,
    seed: int = 0,
    progress: bool | ProgressCallback = True,
) -> Result:
    """A head's value circuit beside the paper's associative memory, and the memory in the circuit's place.

    The circuit is W_V W_O, from what attention reads to what the head writes. A cue's e(cue) is what attention reads of
    it; an answer's e(answer) is the direction in what the head writes that raises its logit: its row of W_U through the
    gains of the norms in between. In the toy model both are the embedding. Of cues and their answers four memories are
    made: `sum`, of e(answer) e(cue)^T over the pairs, which is the paper's W_V; `centred`, the same of both less their
    means over the pairs, without what all cues and all answers share; and the smallest least-squares maps from e(cue)
    to `answers`, the mean e(answer) of the cue's, and to what the circuit itself `writes` of it.

    Each is then put in the circuit's place, in both runs: at the last position, for every position of a cue that the
    head looks at, it writes its own attention times what the memory gives of the stream there. Other positions, the
    value's bias, attention and other heads are as they were. A memory of *all* cues knows the cue that it reads.
    *Held out*, every cue is read through a memory of the half of the cues in which it is not; cues that share an answer
    are in one half, unless a group so linked has most of them (in the toy all are linked).

    Args:
        model: A TransformerBridge, of a toy or a real model, whose blocks add to the residual stream.
        contrast: Clean and hijacked runs.
        head: (layer, head).
        pairs: From each cue to its answer or answers, words or token ids. By default the contrast's: the span `word` in
            the hijacked run where it is one token (in the toy every token of the span `redrawn`), and the false answer.
            In standard schemes these are one token: what is held out is then copying.
        level: Where the circuit reads a cue: `residual`, the mean over the contrast's hijacked runs, or `embedding`, as
            it comes from the embedding. In the toy these are one.
        rank: How many leading singular vectors span the subspaces that are compared.
        scale: What makes a memory as loud as the circuit: `norm`, its Frobenius norm; or `writes`, the Frobenius norm
            of what it writes of the cues that the memory was made of (of all, for random circuits).
        draws: Random pairings, and random circuits of the head's singular values.
        seed: Of the halves and of what is drawn.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes example and memory: the head's own `circuit`, `nothing` in its place, the four memories,
        each with its cues shuffled among the answers (`sum, shuffled`), and circuits of the `same spectrum`; of what is
        drawn the mean. `hijack` is logit(false) - logit(true), hijacked - clean, with it in place, held out;
        `hijack_all` by memories of all cues. `right`, `right_all`: whether the clean run's likeliest token is the true
        answer, the accuracy of the paper's swap. NaN where no cue stands in the hijacked run's span. Tables, with 95%
        bootstrap intervals over examples, of what is drawn its middle 95%: `summary`, what `stays` of the hijack, and
        `of_head`, the same of the part that goes with `nothing` in place; `beside`, cosine (jackknife over cues),
        smallest and mean principal angles where it writes and reads, and `size`, its Frobenius norm over the circuit's
        before they were matched; `held_out`, over cues, the place of the right answer among the answers of the cue's
        half: `first`, `auc` (the share of wrong answers below it) and `rank`, in scores less each answer's mean;
        `cues`, the same cue by cue; `tests`, the share of shuffled memories (and random circuits), itself among them,
        with as large a value.

    Raises:
        LcalensError: An argument that cannot be used, fewer than four cues, or a model whose values are not linear.

    Example:
        >>> capitals = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo"}
        >>> found = memory(model, contrast, (23, 4), pairs=capitals, level="embedding", draws=2)
        >>> found.wide("held_out")
    """
    check_contrast(model, contrast)
    check_choice("level", level, get_args(Level))
    check_choice("scale", scale, get_args(Scale))
    check_int("rank", rank, low=1)
    check_int("draws", draws, low=1)
    check_int("seed", seed, low=0)
    decoder = read_layers(model, "memory", contrast)
    at = read_heads("head", [head], len(decoder.layers), decoder.layers[0].heads)[0]
    own = value_circuit(decoder.layers[at[0]], at[1])
    embedded = level == "embedding" or not decoder.causal
    standing = [{run[place] for place in some} for run, some in zip(contrast.hijacked, places(contrast), strict=True)]
    stand = None if embedded else set(chain.from_iterable(standing))
    asked = pairs_of(model, tokenizer_of(model) if decoder.causal else None, contrast, pairs, stand, seed)
    some = next(iter(contrast.buckets())).clean[:1].to(decoder.layers[0].device)
    read = readout(decoder, some, torch.tensor(asked.answers)).directions[at[0]].to(own.write)
    streams = streams_of(decoder, contrast, at[0], asked.cues, embedded=embedded)
    maker = Maker(own, streams, read, asked.right, scale)
    memories = _memories(maker, asked, draws, seed)
    flat = [one for several in memories.values() for one in several]
    half = whose(decoder, asked, int(model.cfg.d_vocab), at)
    with progress_callback(progress, unit="examples") as report:
        swapped = swap(decoder, contrast, at, own, half, flat, report)
    judged = np.array([bool(some & set(asked.cues)) for some in standing])
    found = {name: quantities_of(maker, asked, some, rank) for name, some in memories.items()}
    values, summary, stays = what_stays(memories, swapped, judged, clusters_of(contrast.examples))
    whole = swapped.ends[:, 1] - swapped.ends[:, 0]
    record = {
        "head": list(at),
        "level": "embedding" if embedded else level,
        "rank": rank,
        "scale": scale,
        "draws": draws,
        "seed": seed,
        "cues": asked.cues,
        "answers": asked.answers,
        "half": asked.half.tolist(),
        "halves_share_answers": not asked.whole_answers,
        "left_out": asked.left_out,
        "judged": int(judged.sum()),
    }
    return Result(
        kind="memory",
        axes={EXAMPLE: tuple(range(len(contrast))), "memory": tuple(memories)},
        values=values,
        examples=contrast.examples.reset_index(drop=True).assign(
            clean=swapped.ends[:, 0], hijacked=swapped.ends[:, 1], whole=whole, judged=judged
        ),
        tables={
            "summary": summary,
            "beside": beside_table(maker, found),
            "held_out": held_out_table(found),
            "cues": by_cue_table(asked, found),
            "tests": tests_table(found, stays),
        },
        units={"hijack": "logits", "hijack_all": "logits", "right": "share", "right_all": "share"},
        provenance=provenance_of(
            model, path="growing batch", settings=record | contrast_record(contrast, "logit-difference")
        ),
    )


def _memories(maker: Maker, asked: Pairs, draws: int, seed: int) -> dict[str, list[Memory]]:
    """Every memory by name; of what is drawn all draws."""
    own, generator = maker.circuit, torch.Generator().manual_seed(seed)
    values = own.svd()[1]
    found = {OWN: [same_everywhere(own)], NONE: [same_everywhere(own.times(0.0))]}
    found |= {kind: [fitted(maker, kind, asked.half, None)] for kind in KINDS}
    for kind in KINDS:
        found[f"{kind}, shuffled"] = list(shuffled(maker, kind, asked.half, draws, seed))
    every = np.arange(len(asked.cues))
    drawn = [random_circuit(own.read.shape[1], values, generator) for _ in range(draws)]
    return found | {DRAWN: [same_everywhere(maker.matched(one, every)) for one in drawn]}
