"""`read_decoder`: a TransformerBridge's own modules as a `Decoder`, tried against the model before anybody uses it.

Nothing here knows a family by its name. What a block is made of is read from the bridge's components and the config
(`components`, `positions`); where these leave a choice (which coordinates rotate together, whether the MLP reads the
stream before or after attention, ...) the choice (`choices`) is the one that gives what the model itself computes
(`observing`). Every layer is then compared with the model's own at several lengths (`trial`), so what is read wrong is
never used.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lcalens.core.provenance import active_hooks
from lcalens.core.stamp import PerState
from lcalens.engine.choices import attentions, structures, with_clip_elsewhere
from lcalens.engine.components import check_blocks, ending_of, layer_of, logit_scales, number, text_config
from lcalens.engine.decoder import Decoder, Layer
from lcalens.engine.observing import Observed, Unreadable, enter_first_block, observe
from lcalens.engine.positions import key_bias_of, rotations_of
from lcalens.engine.trial import (
    NOT_FINITE,
    attention_misses,
    block_misses,
    disagreement,
    logits_miss,
    trial_tokens,
)

_LENGTHS = (3, 12)  # of the trial, beside the study's longest
_SURE = 0.2  # so near, nothing better is looked for
_read = PerState()


def read_decoder(model: Any, longest: int = 0) -> Decoder | str:
    """The model as a `Decoder`, or why it cannot be one.

    It is tried once for each state of the model and each length class: again only when a run is longer than all that
    were tried, for windows and rotary tables may act on long contexts alone.

    Args:
        model: A TransformerBridge.
        longest: How many tokens the longest run will have.
    """
    hooked = active_hooks(model)
    if hooked:
        return f"hooks are attached ({', '.join(hooked[:3])})"
    reading = _read.get(model, lambda: _Reading(_attempt(model)))
    for length in sorted({*_LENGTHS, longest}):
        if isinstance(reading.decoder, Decoder) and length > reading.tried:
            fault = disagreement(model, reading.decoder, length)
            reading.decoder, reading.tried = fault or reading.decoder, length
    return reading.decoder


@dataclass(eq=False)
class _Reading:
    """What was made of a model in one state, and up to how many tokens it has been tried."""

    decoder: Decoder | str
    tried: int = 0


@torch.no_grad()
def _attempt(model: Any) -> Decoder | str:
    try:
        return _collect(model)
    except Unreadable as error:
        return str(error)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        return f"its parts are not as expected ({type(error).__name__}: {error!s:.80})"


def _collect(model: Any) -> Decoder:
    blocks = list(model.blocks)
    check_blocks(blocks)
    norm, unembed, bias = ending_of(model)
    tokens = trial_tokens(model, _LENGTHS[-1], len(unembed))
    observed, logits = observe(model, tokens)
    if not bool(logits.isfinite().all()):
        raise Unreadable(NOT_FINITE)
    # Nothing here may hold the bridge itself: what is remembered of it must not keep it alive.
    network, first = model.original_model, blocks[0]
    _, passed = enter_first_block(network, first, tokens)
    decoder = Decoder(
        layers=(),
        embed=lambda tokens: enter_first_block(network, first, tokens)[0],
        final_norm=norm,
        unembed=unembed,
        unembed_bias=bias,
        logit_scale=1.0,
        softcap=number(text_config(model), "final_logit_softcapping"),
        rotations=rotations_of(model),
        key_bias=key_bias_of(network, first, passed, int(model.cfg.n_heads)),
        causal=getattr(model.cfg, "attention_dir", "causal") == "causal",
        residual=_adds(observed),
    )
    layers = tuple(_fitted(decoder, block, index, model, observed[index]) for index, block in enumerate(blocks))
    return _with_scale(replace(decoder, layers=layers), logit_scales(model), observed[-1], logits)


def _adds(observed: Sequence[Observed]) -> bool:
    """Whether blocks add to the stream: the toy's puts out what attention gathered, and nothing of what came in."""
    return not all(torch.equal(block.after, block.written) for block in observed)


def _with_scale(decoder: Decoder, scales: list[float], last: Observed, logits: Tensor) -> Decoder:
    """The decoder with the first scale by which its logits come out as the model's."""
    for scale in scales:
        candidate = replace(decoder, logit_scale=scale)
        if logits_miss(candidate, last.after, logits) <= 1:
            return candidate
    raise Unreadable("its logits do not come out of its last layer as they should")


def _fitted(decoder: Decoder, block: Any, index: int, model: Any, observed: Observed) -> Layer:
    """The block as a layer: of all that its facts allow, the first that computes what the block computed."""
    attention = _best(
        attentions(decoder, layer_of(block, index, model), block, index, model),
        lambda candidate: attention_misses(decoder, candidate, observed),
    )
    if attention is None:
        raise Unreadable(f"what the heads of layer {index} read does not come out as the model's own")
    if attention.clip is not None and attention.normalise and _order_is_open(decoder, attention, observed):
        raise Unreadable(f"the clip of layer {index} did not act, so whether its norms come before is not known")
    layer = _best(
        structures(block, attention, bool(getattr(model.cfg, "parallel_attn_mlp", False))),
        lambda candidate: block_misses(decoder, candidate, observed),
    )
    if layer is None:
        raise Unreadable(f"what layer {index} adds to the residual stream does not come out as the model's own")
    return layer


def _order_is_open(decoder: Decoder, attention: Layer, observed: Observed) -> bool:
    """Whether norms before the clip and after it give the same here: a clip that never acts in the trial may later."""
    return attention_misses(decoder, with_clip_elsewhere(attention), observed) <= 1


def _best(candidates: Iterator[Layer], misses: Callable[[Layer], float]) -> Layer | None:
    """The candidate that misses the model's own by least; the first that agrees, where precision is full.

    Args:
        candidates: The likeliest first.
        misses: By how much one misses, as a share of what is allowed.
    """
    best, least = None, 1.0
    for candidate in candidates:
        try:
            miss = misses(candidate)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            continue  # its shapes do not fit: not this one
        if miss < least or (best is None and miss <= least):
            best, least = candidate, miss
        if least <= _SURE:
            break
    return best
