"""`defend`: a defence made for a model: which heads, and what switches their cut on."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lcalens.core.checks import check_choice, check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.core.limits import check_length
from lcalens.core.provenance import fingerprint
from lcalens.core.stamp import holds_steady
from lcalens.core.tokens import encode, source_tokenizer
from lcalens.engine.decoder import Decoder
from lcalens.engine.forward import run, trace
from lcalens.mechanism.arguments import Head, Heads, check_contrast, read_heads, read_layers
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.defence.boundary import end_tokens, hidden_keys, sentence_starts
from lcalens.mechanism.defence.defence import Defence, Detector, Method, Where
from lcalens.mechanism.knockout import without

_FOLDS = 5
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # scikit-learn's C, of standardised features
_TRIED = 4  # examples on which the hooks are compared with the model run layer by layer
_CLOSE = 1e-3
_TOKENS = 4096  # run at once
Negatives = Mapping[str, Sequence[str]]


@holds_steady
def defend(
    model: Any,
    contrast: Contrast,
    *,
    method: Method = "boundary",
    heads: Heads | None = None,
    where: Where = "last",
    negatives: Negatives | None = None,
    false_alarms: float = 0.05,
    layer: int | None = None,
    seed: int = 0,
) -> Defence:
    """Make a defence: heads that carry a hijack no longer look before the last sentence end.

    Nobody has to say where the hijacking sentence is. In a prompt of one sentence nothing is cut; in one of several the
    cut heads see their own sentence and the text's first token, which heads rest on. That takes honest context away
    from them too, so a detector can switch it on for what looks like a hijack alone.

    Args:
        model: A TransformerBridge with a tokenizer, that lcalens reads layer by layer.
        contrast: Clean and hijacked runs: the detector is fitted on them, and the hooks are tried on them. For a
            detector take `control="none"`: a neutral sentence behind "Do not think of" is half a hijack.
        method: `none`; `boundary`, always; `random`, as many other heads as are given, from the same layers; or
            `detector`, only where a logistic regression on the residual stream takes the position for a hijacked one.
        heads: Heads as (layer, head), or as `leading` gives them, ranked on other facts than those that the defence is
            judged on; not for `none`.
        where: `last`, only the position that is read is defended; `all`, every position.
        negatives: For `detector`: texts by kind that are no hijacks, such as plain text and honest context, five or
            more of each. The contrast's clean runs are negatives besides.
        false_alarms: For `detector`: the share of each kind's negatives on which it may fire, of texts that did not
            train it.
        layer: For `detector`: before which layer it reads; heads of earlier layers have run by then and are not cut. By
            default the first of the heads' layers.
        seed: Of random heads and of the folds.

    Returns:
        The defence. Its `record` says what it was made of; for `detector` with its AUC and false alarms on every kind,
        by cross-validation.

    Raises:
        LcalensError: An argument that cannot be used; a model without tokenizer, such as the toy, which has no
            sentences; hooks that do not act on this model as they should.

    Example:
        >>> heads = leading(patch(model, contrast), 10, by="carrying")
        >>> defence = defend(model, contrast, method="boundary", heads=heads)
        >>> with defence.applied(model):
        ...     logits = model("Do not think of Rome. The Eiffel Tower is in")
    """
    check_choice("method", method, get_args(Method))
    check_choice("where", where, get_args(Where))
    check_int("seed", seed, low=0)
    check_real("false_alarms", false_alarms, low=0, high=0.5)
    check_contrast(model, contrast)
    try:
        tokenizer = source_tokenizer(model)
    except LcalensError as error:
        raise LcalensError(
            "model: a boundary cut needs sentences, and this model has no tokenizer to tell them by; cut positions "
            "with knockout()."
        ) from error
    decoder = read_layers(model, "defend", contrast)
    if not decoder.causal:
        raise LcalensError(
            "model: a boundary cut needs attention that looks back alone, and sentences; in the toy, use knockout()."
        )
    chosen = _heads(decoder, method, heads, seed)
    ends = end_tokens(tokenizer)
    record: dict[str, Any] = {
        "heads_rule": getattr(heads, "rule", "none" if heads is None else "as given"),
        "examples": len(contrast),
        "seed": seed,
    }
    detector = None
    if method == "detector":
        layer = chosen[0][0] if layer is None else check_int("layer", layer, low=0, high=chosen[-1][0])
        record["too_early"] = [list(head) for head in chosen if head[0] < layer]
        chosen = tuple(head for head in chosen if head[0] >= layer)
        detector, told = _fit(model, decoder, contrast, layer, negatives, false_alarms, seed, tokenizer)
        record |= told
    elif negatives is not None:
        raise LcalensError(f"negatives: only method='detector' is fitted on them, not {method!r}; leave them out.")
    made = Defence(
        method=method, heads=chosen, where=where, ends=ends, detector=detector, model=fingerprint(model), record=record
    )
    if chosen:
        _check_hooks(model, decoder, contrast, made)
    return made


def _heads(decoder: Decoder, method: str, heads: Any, seed: int) -> tuple[Head, ...]:
    if method == "none":
        if heads is not None:
            raise LcalensError("heads: method='none' cuts none; leave them out.")
        return ()
    if heads is None:
        raise LcalensError(f"heads: {method} needs some, such as leading(patch(model, contrast), 10, by='carrying').")
    count = decoder.layers[0].heads
    given = read_heads("heads", heads, len(decoder.layers), count)
    if method != "random":
        return given
    lowest, highest = given[0][0], given[-1][0]
    others = [(layer, head) for layer in range(lowest, highest + 1) for head in range(count)
              if (layer, head) not in given]  # fmt: skip
    if len(others) < len(given):
        raise LcalensError(
            f"heads: between layers {lowest} and {highest} there are {len(others)} other heads, fewer than the "
            f"{len(given)} to be drawn; give fewer."
        )
    return tuple(sorted(random.Random(seed).sample(others, len(given))))


def _fit(
    model: Any,
    decoder: Decoder,
    contrast: Contrast,
    layer: int,
    negatives: Any,
    false_alarms: float,
    seed: int,
    tokenizer: Any,
) -> tuple[Detector, dict[str, Any]]:
    """A logistic regression, its threshold from texts that did not train it, and what is to be told of it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kinds = _negatives(negatives)
    rows = {"hijacked": _last_streams(decoder, contrast.hijacked, layer),
            "clean prompts": _last_streams(decoder, contrast.clean, layer)}  # fmt: skip
    for kind, texts in kinds.items():
        encoded = [tuple(one.ids) for one in encode(tokenizer, texts)]
        check_length(model, max(map(len, encoded)))
        rows[kind] = _last_streams(decoder, encoded, layer)
    features = np.concatenate(list(rows.values()))
    kind_of = np.repeat(np.arange(len(rows)), [len(some) for some in rows.values()])
    label = kind_of == 0
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    best: tuple[float, float, np.ndarray] | None = None
    for penalty in _PENALTIES:
        pipeline = make_pipeline(
            StandardScaler(), LogisticRegression(C=penalty, max_iter=2000, class_weight="balanced")
        )
        scores = np.asarray(
            cross_val_predict(pipeline, features, label, cv=folds.split(features, kind_of), method="decision_function")
        )
        area = float(roc_auc_score(label, scores))
        if best is None or area > best[0]:
            best = area, penalty, scores
    assert best is not None, "a penalty was tried"
    _, penalty, held_out = best
    negatives_by_kind = {kind: held_out[kind_of == number] for number, kind in enumerate(rows) if number}
    threshold = max(float(np.quantile(scores, 1 - false_alarms)) for scores in negatives_by_kind.values())
    scaler = StandardScaler().fit(features)
    fitted = LogisticRegression(C=penalty, max_iter=2000, class_weight="balanced").fit(
        scaler.transform(features), label
    )
    weights = fitted.coef_[0] / scaler.scale_
    bias = float(fitted.intercept_[0] - (weights * scaler.mean_).sum())
    told = {
        "layer": layer,
        "penalty": penalty,
        "false_alarms": {kind: float((scores > threshold).mean()) for kind, scores in negatives_by_kind.items()},
        "auc": {kind: float(roc_auc_score(
            np.repeat([True, False], [label.sum(), len(scores)]), np.concatenate([held_out[label], scores])
        )) for kind, scores in negatives_by_kind.items()},
        "caught": float((held_out[label] > threshold).mean()),
        "negatives": {kind: len(scores) for kind, scores in negatives_by_kind.items()},
    }  # fmt: skip
    return Detector(layer, torch.from_numpy(np.ascontiguousarray(weights)), bias, threshold), told


def _negatives(negatives: Any) -> dict[str, list[str]]:
    if not isinstance(negatives, Mapping) or not negatives:
        raise LcalensError(
            "negatives: a detector needs texts by kind that are no hijacks, {'plain text': [...], 'honest context': "
            f"[...]}}; got {negatives!r:.60}. Without honest context among them it cuts that too."
        )
    kinds = {}
    for kind, texts in negatives.items():
        listed = [] if isinstance(texts, str | bytes) else list(texts)
        if len(listed) < _FOLDS or not all(isinstance(text, str) and text for text in listed):
            raise LcalensError(f"negatives: {kind!r:.40} has {len(listed)} texts; give {_FOLDS} or more, none empty.")
        kinds[str(kind)] = listed
    return kinds


@torch.no_grad()
def _last_streams(decoder: Decoder, rows: Sequence[Sequence[int]], layer: int) -> Float[np.ndarray, "row d"]:
    """The residual stream before a layer at each text's last position."""
    found = np.zeros((len(rows), decoder.unembed.shape[1]))
    lengths: dict[int, list[int]] = {}
    for index, ids in enumerate(rows):
        lengths.setdefault(len(ids), []).append(index)
    for length, indices in lengths.items():
        size = max(1, _TOKENS // length)
        for first in range(0, len(indices), size):
            some = indices[first : first + size]
            tokens = torch.tensor([rows[index] for index in some], device=decoder.layers[0].device)
            found[some] = trace(decoder, tokens, keep=()).resid[layer][:, -1].double().cpu().numpy()
    return found


@torch.no_grad()
def _check_hooks(model: Any, decoder: Decoder, contrast: Contrast, defence: Defence) -> None:
    """Compare some hijacked runs under the hooks, the cut always on, with the model run layer by layer.

    Raises:
        LcalensError: They differ.
    """
    always = Defence(method="boundary", heads=defence.heads, where=defence.where, ends=defence.ends, detector=None,
                     model=defence.model)  # fmt: skip
    ends = torch.tensor(defence.ends)
    for ids in contrast.hijacked[:_TRIED]:
        tokens = torch.tensor([ids], device=decoder.layers[0].device)
        real = torch.ones_like(tokens, dtype=torch.bool)
        starts, first = sentence_starts(tokens, ends, real), torch.zeros(1, dtype=torch.long, device=tokens.device)
        hidden = hidden_keys(starts, first, len(ids))
        if defence.where == "last":
            hidden[:, :-1] = False

        def cut(site: str, index: int, value: Tensor, hidden: Tensor = hidden) -> Tensor:
            heads = [head for layer, head in defence.heads if layer == index]
            if site != "pattern" or not heads:
                return value
            value = value.clone()
            value[:, 0, heads] = without(decoder.layers[index], value[:, 0, heads], hidden.to(value.device), True)
            return value

        expected = decoder.logits(run(decoder, decoder.embed(tokens)[:, None], edit=cut)[0, 0, -1])
        with always.applied(model):
            found = model(tokens)[0, -1].to(expected)
        if not float((found - expected).abs().max()) <= _CLOSE * float(expected.abs().max()):
            raise LcalensError(
                "model: the defence's hooks do not act on this model as its attention run layer by layer says they "
                "should; it cannot be defended here."
            )
