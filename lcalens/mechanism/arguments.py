"""The one door of every verb: what a user gives, seen to be usable and made plain, in one wording.

Every verb takes its arguments through these functions, so that what one verb accepts (a NumPy integer, a tensor of
positions, a hook's name for a site) every verb accepts, and what it refuses it refuses in the same words. The model
itself is seen to, and held steady, by `lcalens.core.stamp.holds_steady`, which every verb is wrapped in.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, SupportsIndex, get_args

import numpy as np
from torch import Tensor

from lcalens.core.checks import check_choice
from lcalens.core.errors import LcalensError
from lcalens.core.limits import context_limit
from lcalens.core.near import did_you_mean
from lcalens.engine.decoder import Decoder
from lcalens.engine.metrics import MetricName
from lcalens.engine.reading import read_decoder
from lcalens.engine.sites import ALIGNED_FROM_THE_END, NEEDS_ALIGNED
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.hook_names import Place, read_place
from lcalens.mechanism.sources import SOURCES

Direction = Literal["restore", "corrupt", "denoise", "noise"]
_DIRECTIONS: dict[str, Literal["restore", "corrupt"]] = {
    "restore": "restore",
    "corrupt": "corrupt",
    "denoise": "restore",
    "noise": "corrupt",
}
Head = tuple[int, int]
Heads = Iterable[Any]
"""Pairs (layer, head) in any collection: lists, sets, iterators, NumPy arrays, tensors."""
Positions = str | SupportsIndex | Sequence[SupportsIndex] | np.ndarray | Tensor
"""`last`, `all`, `each`, a span's name, or indices: negative from the end, else from the hijacked tokens' start."""


def check_contrast(model: Any, contrast: Any, *, answers: bool = False, name: str = "contrast") -> None:
    """Refuse what is no contrast, or one that this model cannot read: other tokens, or more than its context holds.

    Args:
        model: A TransformerBridge.
        contrast: What was given as the contrast.
        answers: Whether whole answers are read behind the runs, so that they take room too.
        name: The argument.

    Raises:
        LcalensError: It is none, a token is outside the vocabulary, or a run is too long.
    """
    if not isinstance(contrast, Contrast):
        raise LcalensError(f"{name}: expected a Contrast, got {type(contrast).__name__} ({contrast!r:.60}).")
    vocabulary = int(model.cfg.d_vocab)
    for part in ("clean", "hijacked", "true", "false"):
        for example, ids in enumerate(getattr(contrast, part)):
            if max(ids) >= vocabulary:
                raise LcalensError(
                    f"{name}: token {max(ids)} is none of the model's {vocabulary} ({part}, example {example}); make "
                    "the contrast with the model's own tokenizer."
                )
    limit = context_limit(model)
    for example, (clean, hijacked, true, false) in enumerate(
        zip(contrast.clean, contrast.hijacked, contrast.true, contrast.false, strict=True)
    ):
        # The last token of an answer is predicted, never read.
        length = max(len(clean), len(hijacked)) + (max(len(true), len(false)) - 1 if answers else 0)
        if limit is not None and length > limit:
            raise LcalensError(
                f"{name}: example {example} has {length} tokens{' with its answer' if answers else ''}, and the "
                f"model's context holds {limit}; shorten it, or choose others, contrast[[...]]."
            )


def check_equal_lengths(verb: str, contrast: Contrast) -> None:
    """Refuse clean and hijacked runs of different lengths.

    Args:
        verb: Which needs them equal.
        contrast: The runs.

    Raises:
        LcalensError: Some are not.
    """
    apart = int((~contrast.aligned).sum())
    if apart:
        raise LcalensError(
            f"contrast: {verb} needs clean and hijacked runs of equal length, and {apart} of {len(contrast)} examples "
            "have others; give a control of as many tokens."
        )


def read_layers(model: Any, verb: str, contrast: Contrast) -> Decoder:
    """The model layer by layer.

    Args:
        model: A TransformerBridge.
        verb: Which needs it so.
        contrast: What it will run, so that it is tried at such lengths.

    Raises:
        LcalensError: It cannot be read; the message says why, and what can be used.
    """
    decoder = read_decoder(model, contrast.longest)
    if isinstance(decoder, str):
        raise LcalensError(
            f"model: {verb} needs a model that lcalens reads layer by layer, and cannot here: {decoder}; use patch()."
        )
    return decoder


def read_heads(name: str, heads: Any, layers: int, count: int, *, as_given: bool = False) -> tuple[Head, ...]:
    """Heads as pairs of ints, each once, sorted.

    Args:
        name: The argument.
        heads: Pairs (layer, head) in any collection: lists, sets, iterators, NumPy arrays, tensors.
        layers: How many layers the model has.
        count: How many heads a layer has.
        as_given: Keep the order in which they are given.

    Raises:
        LcalensError: They are no pairs, none are given, or the model has no such head.
    """
    listed = _listed(heads)
    if not listed:
        raise LcalensError(f"{name}: expected pairs (layer, head), got {heads!r:.60}; [(0, 1)] is layer 0's head 1.")
    pairs: dict[Head, None] = {}
    for given in listed:
        pair = _listed(given)
        if len(pair) != 2 or not all(map(is_index, pair)) or not (0 <= pair[0] < layers and 0 <= pair[1] < count):
            raise LcalensError(
                f"{name}: {given!r:.60} is no (layer, head) of a model of {layers} layers of {count} heads; both are "
                "counted from 0, in a list of pairs: [(23, 4)] is layer 23's head 4."
            )
        pairs[int(pair[0]), int(pair[1])] = None
    return tuple(pairs if as_given else sorted(pairs))


def read_head_sets(name: str, sets: Any, layers: int, count: int) -> tuple[tuple[Head, ...], ...]:
    """Sets of heads, each as `read_heads` gives it.

    Args:
        name: The argument.
        sets: A collection of collections of pairs (layer, head).
        layers: How many layers the model has.
        count: How many heads a layer has.

    Raises:
        LcalensError: They are none, or as `read_heads`.
    """
    listed = _listed(sets)
    if not listed:
        raise LcalensError(f"{name}: expected sets of heads, got {sets!r:.60}; [[(0, 1), (2, 3)]] is one set of two.")
    return tuple(read_heads(name, heads, layers, count) for heads in listed)


def read_positions(positions: Any) -> str | int | tuple[int, ...]:
    """Positions as a name, an int, or a tuple of ints; whether examples have them is seen by `Contrast.places`.

    Args:
        positions: A name, an integer or several, NumPy's and tensors included.

    Raises:
        LcalensError: They are something else.
    """
    if isinstance(positions, str):
        return str(positions)
    plain: Any = positions.tolist() if isinstance(positions, np.ndarray | np.generic | Tensor) else positions
    if is_index(plain):
        return int(plain)
    listed = _listed(plain)
    if not listed or not all(map(is_index, listed)):
        raise LcalensError(
            f"positions: expected a span's name, 'last', 'all', 'each' or integers, got {positions!r:.60}."
        )
    return tuple(int(at) for at in listed)


def read_site(site: Any) -> Place:
    """The site, and the one layer that a hook's name may ask for.

    Args:
        site: A site's name (`z` and `head` are the same), or a hook's (`attn.hook_z`, `blocks.3.attn.hook_z`).

    Raises:
        LcalensError: It is neither.
    """
    return read_place(site)


def check_layer(place: Place, layers: int) -> None:
    """Refuse a hook's name of a layer that the model does not have.

    Raises:
        LcalensError: It has not.
    """
    if place.layer is not None and place.layer >= layers:
        raise LcalensError(f"site: layer {place.layer} is none of the model's {layers}; they are counted from 0.")


def check_aligned(site: str, contrast: Contrast) -> None:
    """Refuse sites that hold a value for each key position, where clean and hijacked differ in length.

    Args:
        site: The site's name.
        contrast: The runs.

    Raises:
        LcalensError: They do.
    """
    apart = int((~contrast.aligned).sum())
    if site in NEEDS_ALIGNED and apart:
        raise LcalensError(
            f"site: {site!r} has a value for each key position, and {apart} of {len(contrast)} examples have clean and "
            "hijacked runs of different lengths, whose positions do not align. Use a control of equal length, or "
            f"knockout(), which takes the sentence away; {', '.join(ALIGNED_FROM_THE_END)} align from the end."
        )


def read_direction(direction: Any) -> Literal["restore", "corrupt"]:
    """`restore` or `corrupt`; `denoise` and `noise` are the same by another name.

    Args:
        direction: What was given.

    Raises:
        LcalensError: It is none of the four.
    """
    return _DIRECTIONS[check_choice("direction", direction, _DIRECTIONS)]


def read_source(source: Any) -> Any:
    """`other`, `zero` or `mean`, or activations by TransformerLens's hook names.

    Args:
        source: What was given: a word, a mapping, or an ActivationCache.

    Raises:
        LcalensError: It is neither.
    """
    if isinstance(source, str):
        return check_choice("source", source, SOURCES)
    held = getattr(source, "cache_dict", source)
    if isinstance(source, type) or not isinstance(held, Mapping) or not held:
        raise LcalensError(
            f"source: {source!r:.60} is not one of {', '.join(SOURCES)}, nor an ActivationCache or a mapping from hook "
            "names to tensors."
        )
    return source


def check_metric(metric: Any, verb: str, *, but: Collection[str] = (), own: str | None = None) -> Any:
    """Refuse what is no metric, or none that this verb can measure.

    Args:
        metric: A metric's name, or a function of (logits of the last position, index of the example).
        verb: Which measures it.
        but: Names that this verb does not take.
        own: Why it takes no function; None where it takes them.

    Raises:
        LcalensError: It cannot be measured here.
    """
    known = [name for name in get_args(MetricName) if name not in but]
    if isinstance(metric, str) and metric in known:
        return metric
    if callable(metric) and not isinstance(metric, type):
        if own is not None:
            raise LcalensError(f"metric: {verb} takes no function of your own: {own}.")
        return metric
    functions = "" if own is not None else (
        "; or give a function of (logits of the last position, index of the example), row by row"
    )  # fmt: skip
    reason = f"{metric!r:.60} is not one of {', '.join(known)}"
    if isinstance(metric, str) and metric in but:
        reason = f"{verb} does not measure {metric!r}; it takes {', '.join(known)}"
    raise LcalensError(f"metric: {reason}{functions}.{did_you_mean(metric, known)}")


def is_index(value: Any) -> bool:
    """Whether the value is an integer of any kind, and no bool."""
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim == 0 and isinstance(value.item(), int) and not isinstance(value.item(), bool)
    return isinstance(value, Integral) and not isinstance(value, bool | np.bool_)


def _listed(values: Any) -> list[Any]:
    """What a collection holds, or nothing where it is none."""
    if isinstance(values, np.ndarray | Tensor):
        values = values.tolist()
    if isinstance(values, str | bytes | dict) or not isinstance(values, Iterable):
        return []
    return list(values)
