"""`defend`: a defence made for a model: which heads, and what switches their cut on."""

import random
from typing import Any, get_args

import torch

from lcalens.core.checks import check_choice, check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.core.provenance import fingerprint
from lcalens.core.stamp import holds_steady
from lcalens.core.tokens import source_tokenizer
from lcalens.engine.circuits import token_writers
from lcalens.engine.decoder import Decoder
from lcalens.mechanism.arguments import Head, Heads, check_contrast, read_heads, read_layers
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.defence.boundary import end_tokens
from lcalens.mechanism.defence.cut import WRITES
from lcalens.mechanism.defence.defence import Defence
from lcalens.mechanism.defence.fit import Negatives, detector_of, rows_by_kind, thresholds_of, z_of
from lcalens.mechanism.defence.learned import learn_direction
from lcalens.mechanism.defence.plan import Method, Reads, Where
from lcalens.mechanism.defence.reread import REREAD
from lcalens.mechanism.defence.tried import check_hooks

_FITTED = ("detector", "attention", "direction")


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
    reads: Reads = "residual",
    strength: float | int = 1.0,
    seed: int = 0,
) -> Defence:
    """Make a defence: heads that carry a hijack no longer look before the last sentence end.

    Nobody has to say where the hijacking sentence is. In a prompt of one sentence nothing is cut; in one of several the
    cut heads see their own sentence and the text's first token, which heads rest on. That takes honest context away
    from them too, so a detector can switch it on for what looks like a hijack alone. The other methods are what a
    defence is to be compared with.

    Args:
        model: A TransformerBridge with a tokenizer, that lcalens reads layer by layer.
        contrast: Clean and hijacked runs: the detector is fitted on them, and the hooks are tried on them. For a
            detector take `control="none"`: a neutral sentence behind "Do not think of" is half a hijack.
        method: What is done, when, to the heads.

            - `none`: nothing.
            - `boundary`: they do not look before the last sentence end, always. `random`: the same of as many other
              heads, from the same layers.
            - `detector`: the same, only where a logistic regression takes the position for a hijacked one.
            - `names`: the same, unless a name in the last sentence stands before it too.
            - `attention`: the same for each head by itself, where it pays more attention to what is before the sentence
              than it does on nearly all `negatives`.
            - `span`: they do not look before where the text is said to begin (see `Defence.applied`): what a cut could
              do if it were told.
            - `zero`, `mean`, `resample`: what they have read is replaced by 0, by its mean over the clean runs, or by
              that of one clean run, drawn by the seed and the text's tokens.
            - `own-token`: of what they have read, the part along the values that would write the very tokens they read
              is taken `strength` times: their copying, and not what they recall of other tokens.
            - `subtracted`: the model runs twice; what they read the first time is taken `strength` times from what they
              read the second time, in the manner of JuICE (Li et al. 2025, arXiv 2503.10996), which adds other heads.
            - `direction`: no heads; before a layer the stream's part along one direction becomes what it is in clean
              runs. The direction is learned: hijacked runs are to end like clean ones, and `negatives` as they do.
        heads: Heads as (layer, head), or as `leading` gives them, ranked on other facts than those that the defence is
            judged on; not for `none` and `direction`.
        where: `last`, only the position that is read is defended; `all`, every position.
        negatives: For `detector`, `attention` and `direction`: texts by kind that are no hijacks, such as plain text
            and honest context, five or more of each. The contrast's clean runs are negatives besides.
        false_alarms: For `detector` and `attention`: the share of each kind's negatives on which it may fire; for
            `detector`, of texts that did not train it.
        layer: For `detector`: before which layer it reads; heads of earlier layers have run by then and are not cut. By
            default the first of the heads' layers. For `direction`, where it is, which has to be given.
        reads: For `detector`: the `residual` stream; the share of `attention` that every head of the layers before pays
            to what is before the sentence; or `both`.
        strength: For `own-token` and `subtracted`: how often; 2 turns the part round.
        seed: Of random heads, of runs that are drawn, of the folds and of what is learned.

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
    if negatives is not None and method not in _FITTED:
        raise LcalensError(f"negatives: {method!r} is not fitted on them, only {_listed(_FITTED)} are; leave them out.")
    if method == "names" and where == "all":
        raise LcalensError("where: names are compared at the position that is read; method='names' takes 'last'.")
    strength = check_real("strength", strength, low=0)
    if strength != 1 and method not in REREAD:
        raise LcalensError(f"strength: {method!r} has none, only {_listed(tuple(REREAD))} have one; leave it out.")
    detector, values = None, {}
    if method in WRITES:
        values = {"z": torch.zeros(1, len(chosen), decoder.layers[0].out.shape[1])}
        if method != "zero":
            clean = z_of(decoder, contrast.clean, chosen)
            values = {"z": clean.mean(0, keepdim=True) if method == "mean" else clean}
    elif method in REREAD:
        values["strength"] = torch.tensor(strength, dtype=torch.float64)
        if method == "own-token":
            tokens = torch.tensor([contrast.clean[0]], device=decoder.layers[0].device)
            values["writers"] = token_writers(decoder, tokens, chosen)
    elif method in _FITTED:
        rows = rows_by_kind(model, tokenizer, contrast, negatives)
        if method == "detector":
            layer = chosen[0][0] if layer is None else check_int("layer", layer, low=0, high=chosen[-1][0])
            record["too_early"] = [list(head) for head in chosen if head[0] < layer]
            chosen = tuple(head for head in chosen if head[0] >= layer)
            check_choice("reads", reads, get_args(Reads))
            if reads != "residual" and layer == 0:
                raise LcalensError("layer: before layer 0 no head has looked; a detector of attention reads later.")
            detector, told = detector_of(decoder, rows, layer, reads, ends, false_alarms, seed)
        elif method == "attention":
            values["thresholds"], told = thresholds_of(decoder, rows, chosen, ends, false_alarms)
        else:
            layer = check_int("layer", layer, low=0, high=len(decoder.layers) - 1)
            values, told = learn_direction(model, decoder, rows, layer, seed=seed)
        record |= told
    made = Defence(
        method=method, heads=chosen, where=where, ends=ends, detector=detector, model=fingerprint(model), record=record,
        values=values,
    )  # fmt: skip
    if chosen:
        check_hooks(model, decoder, contrast, made)
    return made


def _heads(decoder: Decoder, method: str, heads: Any, seed: int) -> tuple[Head, ...]:
    if method in ("none", "direction"):
        if heads is not None:
            raise LcalensError(f"heads: method={method!r} cuts none; leave them out.")
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


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))
