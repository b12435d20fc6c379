"""What a defence is fitted on: a detector, thresholds of attention, and what heads write in clean runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.core.limits import check_length
from lcalens.core.tokens import encode
from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import Trace, trace
from lcalens.mechanism.arguments import Head
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.defence.boundary import hidden_keys, sentence_starts
from lcalens.mechanism.defence.plan import Detector, Reads

Negatives = Mapping[str, Sequence[str]]
_FOLDS = 5
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # scikit-learn's C, of standardised features
_TOKENS = 4096  # run at once


def rows_by_kind(
    model: Any, tokenizer: Any, contrast: Contrast, negatives: Negatives | None
) -> dict[str, list[tuple[int, ...]]]:
    """The token ids of hijacked runs, of clean ones and of texts that are no hijacks, by kind.

    Args:
        model: For its context's length.
        tokenizer: Of the texts.
        contrast: Clean and hijacked runs.
        negatives: Texts by kind.

    Raises:
        LcalensError: No kinds, or one with too few texts.
    """
    if not isinstance(negatives, Mapping) or not negatives:
        raise LcalensError(
            "negatives: what is fitted needs texts by kind that are no hijacks, {'plain text': [...], "
            f"'honest context': [...]}}; got {negatives!r:.60}. Without honest context among them it cuts that too."
        )
    rows = {"hijacked": list(contrast.hijacked), "clean prompts": list(contrast.clean)}
    for kind, texts in negatives.items():
        listed = [] if isinstance(texts, str | bytes) else list(texts)
        if len(listed) < _FOLDS or not all(isinstance(text, str) and text for text in listed):
            raise LcalensError(f"negatives: {kind!r:.40} has {len(listed)} texts; give {_FOLDS} or more, none empty.")
        rows[str(kind)] = [tuple(one.ids) for one in encode(tokenizer, listed)]
        check_length(model, max(map(len, rows[str(kind)])))
    return rows


def detector_of(
    decoder: Decoder,
    rows: Mapping[str, Sequence[Sequence[int]]],
    layer: int,
    reads: Reads,
    ends: Sequence[int],
    false_alarms: float,
    seed: int,
) -> tuple[Detector, dict[str, Any]]:
    """A logistic regression, its threshold from texts that did not train it, and what is to be told of it.

    Args:
        decoder: The model.
        rows: Token ids by kind, hijacked ones first.
        layer: Before which it reads.
        reads: The stream, the heads' attention, or both.
        ends: Tokens that end a sentence.
        false_alarms: The share of each kind on which it may fire.
        seed: Of the folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values = np.concatenate([features(decoder, some, layer, reads, ends) for some in rows.values()])
    kind_of = np.repeat(np.arange(len(rows)), [len(some) for some in rows.values()])
    label = kind_of == 0
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    best: tuple[float, float, np.ndarray] | None = None
    for penalty in _PENALTIES:
        pipeline = make_pipeline(
            StandardScaler(), LogisticRegression(C=penalty, max_iter=2000, class_weight="balanced")
        )
        scores = np.asarray(
            cross_val_predict(pipeline, values, label, cv=folds.split(values, kind_of), method="decision_function")
        )
        area = float(roc_auc_score(label, scores))
        if best is None or area > best[0]:
            best = area, penalty, scores
    assert best is not None, "a penalty was tried"
    _, penalty, held_out = best
    by_kind = {kind: held_out[kind_of == number] for number, kind in enumerate(rows) if number}
    threshold = max(float(np.quantile(scores, 1 - false_alarms)) for scores in by_kind.values())
    scaler = StandardScaler().fit(values)
    fitted = LogisticRegression(C=penalty, max_iter=2000, class_weight="balanced").fit(scaler.transform(values), label)
    weights = fitted.coef_[0] / scaler.scale_
    bias = float(fitted.intercept_[0] - (weights * scaler.mean_).sum())
    told = {
        "layer": layer,
        "reads": reads,
        "penalty": penalty,
        "false_alarms": {kind: float((scores > threshold).mean()) for kind, scores in by_kind.items()},
        "auc": {kind: float(roc_auc_score(
            np.repeat([True, False], [label.sum(), len(scores)]), np.concatenate([held_out[label], scores])
        )) for kind, scores in by_kind.items()},
        "caught": float((held_out[label] > threshold).mean()),
        "negatives": {kind: len(scores) for kind, scores in by_kind.items()},
    }  # fmt: skip
    return Detector(layer, torch.from_numpy(np.ascontiguousarray(weights)), bias, threshold, reads), told


def thresholds_of(
    decoder: Decoder,
    rows: Mapping[str, Sequence[Sequence[int]]],
    heads: Sequence[Head],
    ends: Sequence[int],
    false_alarms: float,
) -> tuple[Float[Tensor, " head"], dict[str, Any]]:
    """For each head the share of attention before the sentence that few texts of any kind exceed.

    Args:
        decoder: The model.
        rows: Token ids by kind, hijacked ones first.
        heads: The heads.
        ends: Tokens that end a sentence.
        false_alarms: The share of each kind that may exceed it.
    """
    layers, at = heads[-1][0] + 1, [layer * decoder.layers[0].heads + head for layer, head in heads]
    shares = {kind: features(decoder, some, layers, "attention", ends)[:, at] for kind, some in rows.items()}
    hijacked, *others = shares.values()
    most = np.max([np.quantile(some, 1 - false_alarms, axis=0) for some in others], axis=0)
    told = {"caught": [float(share) for share in (hijacked > most).mean(0)],
            "false_alarms": {kind: [float(share) for share in (some > most).mean(0)]
                             for kind, some in list(shares.items())[1:]}}  # fmt: skip
    return torch.from_numpy(most), told


@torch.no_grad()
def z_of(decoder: Decoder, rows: Sequence[Sequence[int]], heads: Sequence[Head]) -> Float[Tensor, "row head width"]:
    """What heads have read at the last position of each run.

    Args:
        decoder: The model.
        rows: Token ids.
        heads: The heads.
    """
    width = decoder.layers[0].out.shape[1]
    found = torch.zeros(len(rows), len(heads), width)
    for some, run in _runs(decoder, rows, keep=("z",)):
        for number, (layer, head) in enumerate(heads):
            found[some, number] = run.kept["z"][layer][:, -1, head].float().cpu()
    return found


@torch.no_grad()
def features(
    decoder: Decoder, rows: Sequence[Sequence[int]], layer: int, reads: str, ends: Sequence[int]
) -> Float[np.ndarray, "row feature"]:
    """What a detector reads at each text's last position.

    Args:
        decoder: The model.
        rows: Token ids.
        layer: Before which it reads.
        reads: `residual`, `attention` or `both`.
        ends: Tokens that end a sentence.
    """
    found: dict[int, np.ndarray] = {}
    marks = torch.tensor(ends)
    decoder = replace(decoder, layers=decoder.layers[:layer] or decoder.layers[:1])  # later ones change nothing here
    for some, run in _runs(decoder, rows, keep=() if reads == "residual" else ("pattern",)):
        parts = [] if reads == "attention" else [run.resid[layer][:, -1].double().cpu()]
        if reads != "residual":
            tokens = run.tokens.cpu()
            starts = sentence_starts(tokens, marks, torch.ones_like(tokens, dtype=torch.bool))[:, -1:]
            first = torch.zeros(len(tokens), dtype=torch.long)
            hidden = hidden_keys(starts, first, tokens.shape[1])
            parts += [(one[:, :, -1].double().cpu() * hidden).sum(-1) for one in run.kept["pattern"][:layer]]
        found |= dict(zip(some, torch.cat(parts, -1).numpy(), strict=True))
    return np.stack([found[index] for index in range(len(rows))])


def _runs(decoder: Decoder, rows: Sequence[Sequence[int]], keep: tuple[str, ...]) -> Any:
    """Runs of rows of the same length, with which rows they are."""
    lengths: dict[int, list[int]] = {}
    for index, ids in enumerate(rows):
        lengths.setdefault(len(ids), []).append(index)
    for length, indices in lengths.items():
        size = max(1, _TOKENS // length)
        for first in range(0, len(indices), size):
            some = indices[first : first + size]
            tokens = torch.tensor([rows[index] for index in some], device=decoder.layers[0].device)
            run: Trace = trace(decoder, tokens, keep=keep)
            yield some, run
