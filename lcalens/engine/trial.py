"""By how much what was read misses what the model itself computed, as a share of what rounding allows.

A layer is tried on what the model gave to it and not on what the layers below made, so that errors do not add up and
each is found where it is. At most 1 is agreement.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.engine.attention import average, compare, look, turn, write
from lcalens.engine.components import number
from lcalens.engine.decoder import Decoder, Layer, wide
from lcalens.engine.observing import Observed, Unreadable, device_of, observe

# Of the largest number; of reduced types it is measured. Models in float64 still take softmax and norms in float32.
_PRECISION = {torch.float64: 2e-6, torch.float32: 2e-5}
_NOISE = 6.0  # how many times its own rounding a result may be off in reduced precision: it is rounded at every step

NOT_FINITE = "its logits are not finite (NaN or infinite weights, or an overflowing dtype)"
"""Why a model whose weights overflow is not read."""


def trial_tokens(model: Any, length: int, vocabulary: int) -> Int[Tensor, "1 position"]:
    """Random tokens, the same for each length; no more than the model's context holds.

    Args:
        model: A TransformerBridge.
        length: How many.
        vocabulary: Rows of W_U.
    """
    limit = number(model.cfg, "n_ctx")
    length = min(length, int(limit)) if limit else length
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, vocabulary, (1, length), generator=generator).to(device_of(model.original_model))


@torch.no_grad()
def disagreement(model: Any, decoder: Decoder, length: int) -> str:
    """What differs between the decoder and the model itself in a run of some random tokens; nothing if nothing does.

    Args:
        model: A TransformerBridge.
        decoder: What was read of it.
        length: How many tokens.
    """
    tokens = trial_tokens(model, length, len(decoder.unembed))
    length = tokens.shape[1]
    try:
        observed, logits = observe(model, tokens)
        embedded = decoder.embed(tokens)
    except (Unreadable, RuntimeError, IndexError, ValueError, TypeError) as error:
        return f"it cannot run {length} tokens ({type(error).__name__}: {error!s:.80})"
    if not bool(logits.isfinite().all()):
        return NOT_FINITE
    if not torch.equal(embedded, observed[0].before):
        return "what goes into its first layer does not come out as the model's own"
    for index, (layer, block) in enumerate(zip(decoder.layers, observed, strict=True)):
        if not attention_misses(decoder, layer, block) <= 1:
            return f"what the heads of layer {index} read differs from the model's own in a run of {length} tokens"
        if not block_misses(decoder, layer, block) <= 1:
            return f"what layer {index} adds differs from the model's own in a run of {length} tokens"
    if not logits_miss(decoder, observed[-1].after, logits) <= 1:
        return f"its logits differ from the model's own in a run of {length} tokens"
    return ""


def attention_misses(decoder: Decoder, layer: Layer, observed: Observed) -> float:
    """By how much a layer's heads read or write otherwise than the model's.

    Args:
        decoder: The model.
        layer: As it was read.
        observed: What the model's own block did.
    """

    def written(z: Tensor) -> Tensor:
        return write(layer, rearrange(z, "... (head width) -> ... head width", head=layer.heads))

    read = _miss(lambda stream: _heads_read(decoder, layer, stream), observed.before, observed.z)
    return max(read, _miss(written, observed.z, observed.written))


def _heads_read(decoder: Decoder, layer: Layer, stream: Float[Tensor, "batch position d"]) -> Tensor:
    normed = rearrange(layer.norm(stream), "batch position d -> batch 1 position d")  # one variant
    q, k, v = (layer.split(name, normed) for name in "qkv")
    queries, keys = turn(decoder, layer, "q", q, 0), turn(decoder, layer, "k", k, 0)
    pattern = look(layer, compare(decoder, layer, queries, None, 0, keys), q.dtype)
    z = average(layer, pattern, None, layer.averaged(v))
    return rearrange(z, "batch 1 position head width -> batch position (head width)")


def block_misses(decoder: Decoder, layer: Layer, observed: Observed) -> float:
    """By how much a block adds something else to the stream than the model's.

    What it adds is compared, not the stream, which may be much larger than what one block adds to it.

    Args:
        decoder: The model.
        layer: As it was read.
        observed: What the model's own block did.
    """
    adds = layer.open and decoder.residual
    expected = observed.after - observed.before if adds else observed.after

    def added(stream: Tensor) -> Tensor:
        attention = layer.after_attention(observed.written)
        middle = layer.close[0](stream + attention) if decoder.residual else attention
        after = layer.close[1](middle + layer.mlp(stream if layer.parallel else middle))
        return after - stream if adds else after

    # What is added is known only to the rounding of the stream that it was added to.
    precision = _PRECISION.get(observed.after.dtype)
    rounding = torch.finfo(observed.after.dtype).eps * float(observed.after.abs().max())
    return _miss(added, observed.before, expected, 8 * rounding / precision if precision and adds else 0.0)


def logits_miss(decoder: Decoder, resid: Float[Tensor, "batch position d"], logits: Tensor) -> float:
    """By how much the logits of the model's own last stream differ from the model's own logits.

    Args:
        decoder: The model.
        resid: What its last block put out.
        logits: What it made of it.
    """
    return _miss(decoder.logits, resid, logits.to(wide(logits).dtype))


def _miss(function: Callable[[Tensor], Tensor], inputs: Tensor, expected: Tensor, size: float = 0.0) -> float:
    """By how much a function misses what the model itself made of the same, as a share of what rounding allows.

    In full precision that is a share of the largest number. In reduced precision it is measured: how far the result
    moves when what is given moves by its type's own rounding.

    Args:
        function: Of what is given.
        inputs: The model's own input.
        expected: The model's own output.
        size: Of what the output is a difference of, where that is larger.
    """
    result = function(inputs)
    if result.shape != expected.shape:
        return math.inf
    error, scale = float((result.double() - expected.double()).abs().max()), max(float(expected.abs().max()), size)
    if not math.isfinite(error) or not math.isfinite(scale):
        return math.inf
    if inputs.dtype in _PRECISION:
        return error / (_PRECISION[inputs.dtype] * scale) if scale else math.inf if error else 0.0
    rounding = torch.finfo(inputs.dtype).eps
    noise = _noise(function, inputs, result)
    return error / (_NOISE * noise + 4 * rounding * scale)


def _noise(function: Callable[[Tensor], Tensor], inputs: Tensor, result: Tensor) -> float:
    """How far the result moves when every number that is given moves up or down by its type's rounding."""
    rounding = torch.finfo(inputs.dtype).eps
    generator = torch.Generator(device=inputs.device).manual_seed(0)
    largest = 0.0
    for _ in range(2):
        signs = torch.randint(0, 2, inputs.shape, generator=generator, device=inputs.device) * 2 - 1
        moved = function(inputs * (1 + rounding * signs.to(inputs.dtype)))
        largest = max(largest, float((moved.double() - result.double()).abs().max()))
    return largest
