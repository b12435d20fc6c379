"""`score_parts`: why heads look where they look, as a sum over what was written at the query and at the keys."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from lcalens.core.checks import check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import provenance_of
from lcalens.core.results import EXAMPLE, Result
from lcalens.core.stamp import holds_steady
from lcalens.core.statistics import ratio_of_means
from lcalens.core.tables import lengthen
from lcalens.engine.decoder import Decoder
from lcalens.engine.paths import Sender
from lcalens.engine.scores import BIAS, Factors, check_sums, parts_before, score_factors
from lcalens.mechanism.arguments import Head, Heads, Positions, check_contrast, read_heads, read_layers
from lcalens.mechanism.contrast.contrast import Bucket, Contrast
from lcalens.mechanism.exchange import batches
from lcalens.mechanism.looked import OTHERS, Looked, read_looked
from lcalens.mechanism.measured import clusters_of
from lcalens.mechanism.parts import sender_name
from lcalens.mechanism.summary import interval

SIDES = ("query", "key")
_BYTES = 1 << 28  # of what parts wrote, at a time
_COLUMNS = 1024  # whose intervals are drawn together
_UNIT = "score"
_PAIRS = ("head", *(f"{side}_part" for side in SIDES))


@holds_steady
def score_parts(
    model: Any,
    contrast: Contrast,
    heads: Heads,
    *,
    keys: Positions | None = None,
    over: Positions | None = OTHERS,
    pairs: int = 10,
    memory: float | int = 2.0,
    progress: bool | ProgressCallback = True,
) -> Result:
    """Take apart why heads look at the false object: which parts of the model raise the score there, on either side.

    In the hijacked run a head's score of the last position with a key, before mask and softmax, is scale * q . k. With
    the norms' scales held as they are in that run, q and k are sums over what the embedding, every earlier head and MLP
    and the biases wrote at their positions, rotated by the place. So the score is exactly a sum over pairs of a part of
    the query and a part of the key; that it sums to the model's own score is checked. The softmax sees differences
    alone: by default the score on the keys is taken less that on the hijack's other tokens.

    Args:
        model: A TransformerBridge, of a toy or a real model, whose blocks add to the residual stream.
        contrast: Of whose hijacked runs; the clean ones are not read.
        heads: Heads as (layer, head), or as `leading` gives them.
        keys: Where they look: a span's name, or indices of the hijacked tokens. By default the span of the false
            object, `word`, or `redrawn` in the toy. Scores are means over these positions.
        over: What is taken away: the mean score of `others`, the tokens of the span `sentence` that are no keys (where
            there is no such span, of all before the last), but for the run's first token, on which idle attention
            rests; or of a span or indices, but for the keys; None for nothing.
        pairs: How many leading pairs of each head are told, by the magnitude of their means.
        memory: GiB that the pairs may take.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        A result over the axes example, head, side (`query`, `key`) and part (`bias`, `embed`, `L3H1`, `MLP3`; `bias` is
        what projections and norms add, and ALiBi), with `score`: what the part adds to the score, summed over all parts
        of the other side; NaN where it does not stand before the head. Each side sums to the whole. Its tables, with
        95% bootstrap intervals over examples: `summary`, these means and their share of the whole; `kinds`, summed over
        biases, embedding, heads and MLPs; `heads`, each head's score on the keys, on the others, and the difference;
        `pairs`. A soft cap of scores (Gemma 2) comes after all of this. `provenance["largest_error"]` is by how much
        the parts miss the model's own score.

    Raises:
        LcalensError: An argument that cannot be used, a head whose window does not reach the keys, or a model that
            cannot be read, or not as a sum.

    Example:
        >>> heads = leading(patch(model, contrast), 2, by="carrying")
        >>> found = score_parts(model, contrast, heads)
        >>> found.plot()  # what draws them to the word
        >>> found.wide("kinds")
        >>> found.wide("pairs")
    """
    check_contrast(model, contrast)
    looked = read_looked(contrast, keys, over)
    check_int("pairs", pairs, low=0)
    budget = check_real("memory", memory, low=1e-3) * 2**30
    decoder = read_layers(model, "score_parts", contrast)
    chosen = read_heads("heads", heads, len(decoder.layers), decoder.layers[0].heads)
    check_sums(decoder, chosen)
    _check_windows(decoder, contrast, chosen, looked)
    parts = parts_before(decoder, chosen[-1][0])
    _check_memory(decoder, contrast, chosen, bool(pairs), budget)
    score = np.full((len(contrast), len(chosen), len(SIDES), len(parts)), np.nan)
    ends = np.full((len(contrast), len(chosen), 2), np.nan)
    held: list[list[tuple[np.ndarray, ...]]] = [[] for _ in chosen]
    done, error = 0, 0.0
    with torch.no_grad(), progress_callback(progress, unit="examples") as report:
        for bucket in _some(contrast, decoder, len(parts)):
            rows = bucket.indices.tolist()
            weights = looked.weights(rows, bucket.hijacked.shape[1]).to(decoder.layers[0].device)
            for at, factors in enumerate(score_factors(decoder, bucket.hijacked, chosen, weights[0] - weights[1])):
                for side, values in enumerate((factors.by_query, factors.by_key)):
                    score[rows, at, side, : values.shape[1]] = values.cpu().numpy()
                ends[rows, at] = (weights.to(factors.scores) * factors.scores).sum(-1).T.cpu().numpy()
                error = max(error, float(factors.error.max()))
                if pairs:
                    held[at].append(_held(rows, factors))
            done += len(rows)
            report(done, len(contrast), "parts of scores")
    names, clusters = tuple(_name(part) for part in parts), clusters_of(contrast.examples)
    labels = tuple(f"L{layer}H{head}" for layer, head in chosen)
    tables = _tables(labels, names, score, ends, parts, clusters, bool(any(looked.others)))
    if pairs:
        leading = [_leading_pairs(label, names, some, pairs, clusters)
                   for label, some in zip(labels, held, strict=True)]  # fmt: skip
        tables["pairs"] = lengthen(pd.concat(leading, ignore_index=True), {_UNIT: _UNIT})
    settings = looked.record | {
        "query": "last",
        "heads": [list(head) for head in chosen],
        "heads_rule": getattr(heads, "rule", "as given"),
        "scores": "before mask and any soft cap",
        "largest_error": error,
        "examples": len(contrast),
    }
    return Result(
        kind="score-parts",
        axes={EXAMPLE: tuple(range(len(contrast))), "head": labels, "side": SIDES, "part": names},
        values={_UNIT: score},
        examples=contrast.examples,
        tables=tables,
        units={_UNIT: _UNIT},
        provenance=provenance_of(model, path="layer by layer", settings=settings),
    )


def _name(part: Sender) -> str:
    return "bias" if part == BIAS else sender_name(part)


def _check_windows(decoder: Decoder, contrast: Contrast, heads: Sequence[Head], looked: Looked) -> None:
    """Refuse heads that cannot look where they are asked to."""
    back = max(
        len(tokens) - min(keys + others)
        for tokens, keys, others in zip(contrast.hijacked, looked.keys, looked.others, strict=True)
    )
    for layer, head in heads:
        window = decoder.layers[layer].window
        if window is not None and back > window:
            raise LcalensError(
                f"heads: L{layer}H{head} looks {window} tokens back, and some keys (or what they are compared with) "
                f"stand {back} back; choose other heads or shorter runs."
            )


def _check_memory(decoder: Decoder, contrast: Contrast, heads: Sequence[Head], pairs: bool, budget: float) -> None:
    """Refuse what would not fit: the parts of every query and key, kept for their pairs."""
    width = decoder.layers[0].out.shape[1] + 1
    numbers = 2 * width * len(contrast) * sum(len(parts_before(decoder, layer)) for layer, _ in heads)
    if pairs and numbers * 4 > budget:
        raise LcalensError(
            f"memory: the pairs of {len(heads)} heads take {numbers * 4 / 2**30:.2g} GiB; give more, fewer heads or "
            "examples, or pairs=0."
        )


def _some(contrast: Contrast, decoder: Decoder, parts: int) -> Any:
    """Examples of one length, so many that what parts wrote at their keys fits."""
    size = decoder.layers[0].out.shape[-1] * 8 * parts
    for bucket in batches(contrast, decoder):
        most = max(1, _BYTES // (size * bucket.hijacked.shape[1]))
        for first in range(0, len(bucket.indices), most):
            yield Bucket(*(tensor[first : first + most] for tensor in bucket))


def _held(rows: list[int], factors: Factors) -> tuple[np.ndarray, ...]:
    return np.array(rows), *(side.float().cpu().numpy() for side in (factors.query, factors.key))


def _estimated(
    name: str, values: Float[np.ndarray, "example place"], whole: np.ndarray, clusters: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Means (or shares of a whole) with intervals, some columns at a time."""
    some = [ratio_of_means(values[:, first : first + _COLUMNS], whole, clusters)
            for first in range(0, values.shape[1], _COLUMNS)]  # fmt: skip
    middle, low, high = (np.concatenate(ends) for ends in zip(*some, strict=True))
    return interval(name, (middle, low, high))


def _tables(
    labels: tuple[str, ...],
    names: tuple[str, ...],
    score: Float[np.ndarray, "example head side part"],
    ends: Float[np.ndarray, "example head 2"],
    parts: Sequence[Sender],
    clusters: np.ndarray | None,
    compared: bool,
) -> dict[str, pd.DataFrame]:
    each, units = np.ones(len(score)), {_UNIT: _UNIT, "share": "share"}
    kinds = np.array(["biases", "embedding", *("heads" if part.head >= 0 else "MLPs" for part in parts[2:])])
    summary, by_kind, whole = [], [], []
    for at, label in enumerate(labels):
        total = ends[:, at, 0] - ends[:, at, 1]
        columns = {"on_keys": ends[:, at, 0]} | ({"on_others": ends[:, at, 1]} if compared else {}) | {_UNIT: total}
        row: dict[str, Any] = {"head": [label]}
        for name, values in columns.items():
            row |= _estimated(name, values[:, None], each, clusters)
        whole.append(pd.DataFrame(row))
        for side, place in zip(SIDES, range(len(SIDES)), strict=True):
            values = score[:, at, place]
            there = np.isfinite(values).all(0)
            for rows, column, listed, found in (
                (summary, "part", np.array(names)[there], values[:, there]),
                (by_kind, "kind", np.unique(kinds[there]), np.stack(
                    [values[:, there & (kinds == kind)].sum(1) for kind in np.unique(kinds[there])], 1)),
            ):  # fmt: skip
                columns = {"head": label, "side": side, column: listed}
                columns |= _estimated(_UNIT, found, each, clusters) | _estimated("share", found, total, clusters)
                rows.append(pd.DataFrame(columns))
    scores = {name: _UNIT for name in ("on_keys", "on_others", _UNIT) if compared or name != "on_others"}
    return {
        "summary": lengthen(pd.concat(summary, ignore_index=True), units),
        "kinds": lengthen(pd.concat(by_kind, ignore_index=True), units),
        "heads": lengthen(pd.concat(whole, ignore_index=True), scores),
    }


def _leading_pairs(
    label: str,
    names: tuple[str, ...],
    held: list[tuple[np.ndarray, ...]],
    count: int,
    clusters: np.ndarray | None,
) -> pd.DataFrame:
    """The pairs of the largest mean, of a part of the query and a part of the key."""
    rows, queries, keys = (np.concatenate(arrays) for arrays in zip(*held, strict=True))
    order = np.argsort(rows)
    queries, keys = queries[order], keys[order]
    mean = np.einsum("eqw,ekw->qk", queries, keys, optimize=True) / len(queries)
    at = np.unravel_index(np.argsort(-np.abs(mean), axis=None, kind="stable")[:count], mean.shape)
    values = np.einsum("epw,epw->ep", queries[:, at[0]], keys[:, at[1]]).astype(float)
    named = {column: [names[i] for i in places] for column, places in zip(_PAIRS[1:], at, strict=True)}
    return pd.DataFrame({"head": label} | named | _estimated(_UNIT, values, np.ones(len(values)), clusters))
