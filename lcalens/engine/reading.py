"""`read_decoder`: a TransformerBridge's own modules as a `Decoder`, tried against the model before anybody uses it.

Nothing here knows a family by its name. What a block is made of is read from the bridge's components, the modules
behind them and the config's facts; where facts leave a choice (which coordinates rotate together, whether the MLP reads
the stream before or after attention, ...) the choice is the one that gives what the model itself computes. Every layer
is then compared with the model's own at several lengths, so what is read wrong is never used.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from lcalens.core.provenance import active_hooks
from lcalens.core.stamp import PerState
from lcalens.engine.attention import average, compare, look, turn, write
from lcalens.engine.decoder import Decoder, Function, Layer, Scaled, Step, identity, wide

_LENGTHS = (3, 12)  # of the trial, beside the study's longest
# Of the largest number; of reduced types it is measured. Models in float64 still take softmax and norms in float32.
_PRECISION = {torch.float64: 2e-6, torch.float32: 2e-5}
_NOISE = 6.0  # how many times its own rounding a result may be off in reduced precision: it is rounded at every step
_SURE = 0.2  # so near, nothing better is looked for
_NOT_FINITE = "its logits are not finite (NaN or infinite weights, or an overflowing dtype)"
_ORDERS: tuple[tuple[Step, ...], ...] = (
    ("clip", "normalise", "rotate"),
    ("normalise", "clip", "rotate"),  # OLMoE
    ("clip", "rotate", "normalise"),  # HunYuan, NanoChat
)
_read = PerState()


class Unreadable(Exception):
    """A part of the model that cannot be read, and why."""


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
            fault = _compare(model, reading.decoder, length)
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


# --- what the model itself computes ---------------------------------------------------------------------------------


class _Stop(Exception):
    """Raised before the first block, to end a forward pass there."""


@dataclass(frozen=True, eq=False)
class Observed:
    """What one block did in a run of the model itself.

    Attributes:
        before: The residual stream before it.
        after: And after it.
        z: What its heads read.
        written: What W_O made of it.
    """

    before: Float[Tensor, "batch position d"]
    after: Float[Tensor, "batch position d"]
    z: Float[Tensor, "batch position all_heads"]
    written: Float[Tensor, "batch position d"]


@contextmanager
def _watching(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else next(item for item in value if isinstance(item, Tensor))


def _given(arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    return named["hidden_states"] if "hidden_states" in named else _first_tensor(arguments)


def observe(
    model: Any, tokens: Int[Tensor, "batch position"]
) -> tuple[list[Observed], Float[Tensor, "batch position v"]]:
    """Every block's input and output, its heads' and its attention's, and the logits, in a run of the model itself.

    Args:
        model: A TransformerBridge.
        tokens: Of one length.
    """
    seen: dict[tuple[str, int], Tensor] = {}
    handles = []

    def enter(index: int) -> Callable[..., None]:
        return lambda module, arguments, named: seen.update({("before", index): _given(arguments, named).clone()})

    def leave(index: int) -> Callable[..., None]:
        return lambda module, arguments, output: seen.update({("after", index): _first_tensor(output).clone()})

    def project(index: int) -> Callable[..., None]:
        return lambda module, arguments, output: seen.update(
            {("z", index): _first_tensor(arguments).clone(), ("written", index): _first_tensor(output).clone()}
        )

    for index, block in enumerate(model.blocks):
        handles.append(block.register_forward_pre_hook(enter(index), with_kwargs=True))
        handles.append(block.register_forward_hook(leave(index)))
        handles.append(block.attn.o.register_forward_hook(project(index)))
    with _watching(handles):
        logits = model(tokens)
    shape = tokens.shape

    def as_rows(value: Tensor) -> Tensor:
        return value.reshape(*shape, -1)  # some attention works on flattened positions

    names = ("before", "after", "z", "written")
    missing = next(((name, i) for name in names for i in range(len(model.blocks)) if (name, i) not in seen), None)
    if missing is not None:
        raise Unreadable(f"layer {missing[1]} shows no {missing[0]}")
    return [Observed(*(as_rows(seen[name, i]) for name in names)) for i in range(len(model.blocks))], logits


def _embed_with(
    network: nn.Module, first: nn.Module, tokens: Int[Tensor, "batch position"]
) -> tuple[Tensor, dict[str, Any]]:
    """What the first block is given: the residual stream, and the model's other arguments to it."""
    caught: dict[str, Any] = {}

    def stop(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        caught.update(named, hidden_states=_given(arguments, named), positional=arguments)
        raise _Stop

    handle = first.register_forward_pre_hook(stop, with_kwargs=True)
    options = {"use_cache": False} if "use_cache" in inspect.signature(network.forward).parameters else {}
    with _watching([handle]), suppress(_Stop):
        network(input_ids=tokens, **options)
    return caught.pop("hidden_states"), caught


# --- reading ----------------------------------------------------------------------------------------------------------


def _raw(component: Any) -> Any:
    """Hugging Face's own module behind a bridge's component, without hook points."""
    return getattr(component, "original_component", None) or component


def _part(block: Any, name: str) -> Any:
    """A block's component of this name, or None."""
    modules = getattr(block, "_modules", {})
    found = modules.get(name)
    return None if found is None or _raw(found) is found else found


def _number(owner: Any, *names: str) -> float | None:
    for name in names:
        value = getattr(owner, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _collect(model: Any) -> Decoder:
    blocks = list(model.blocks)
    for index, block in enumerate(blocks):
        if _part(block, "attn") is None:
            raise Unreadable(f"layer {index} is no attention and MLP (a state-space or convolution block?)")
        if any(getattr(block.attn, name, None) is None for name in "qkvo"):
            raise Unreadable(f"the attention of layer {index} has no separate queries, keys and values")
    settings = _text_config(model)
    norm, unembed, bias = _ending(model)
    device = next(model.original_model.parameters()).device
    tokens = _tokens(_within(model, _LENGTHS[-1]), len(unembed), device)
    observed, logits = observe(model, tokens)
    if not bool(logits.isfinite().all()):
        raise Unreadable(_NOT_FINITE)
    # Nothing here may hold the bridge itself: what is remembered of it must not keep it alive.
    network, first = model.original_model, blocks[0]
    _, passed = _embed_with(network, first, tokens)
    decoder = Decoder(
        layers=(),
        embed=lambda tokens: _embed_with(network, first, tokens)[0],
        final_norm=norm,
        unembed=unembed,
        unembed_bias=bias,
        logit_scale=1.0,
        softcap=_number(settings, "final_logit_softcapping"),
        rotations=_rotations(model),
        key_bias=_key_bias(network, first, passed, int(model.cfg.n_heads)),
        causal=getattr(model.cfg, "attention_dir", "causal") == "causal",
        residual=_adds(observed),
    )
    layers = tuple(_fitted(decoder, block, index, model, observed[index]) for index, block in enumerate(blocks))
    decoder = replace(decoder, layers=layers)
    scales = _number(settings, "logit_scale"), _number(settings, "logits_scaling")
    choices = [1.0, *([scales[0]] if scales[0] else []), *([1 / scales[1]] if scales[1] else [])]
    for scale in choices:
        candidate = replace(decoder, logit_scale=scale)
        if _logits_miss(candidate, observed[-1].after, logits) <= 1:
            return candidate
    raise Unreadable("its logits do not come out of its last layer as they should")


def _text_config(model: Any) -> Any:
    config = model.original_model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _tokens(length: int, vocabulary: int, device: torch.device) -> Int[Tensor, "1 position"]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, vocabulary, (1, length), generator=generator).to(device)


def _within(model: Any, length: int) -> int:
    """No longer than the model's context."""
    limit = _number(model.cfg, "n_ctx")
    return min(length, int(limit)) if limit else length


def _adds(observed: Sequence[Observed]) -> bool:
    """Whether blocks add to the stream: the toy's puts out what attention gathered, and nothing of what came in."""
    return not all(torch.equal(block.after, block.written) for block in observed)


def _ending(model: Any) -> tuple[Function, Float[Tensor, "vocab d"], Float[Tensor, " vocab"] | None]:
    """The norm before the unembedding, W_U, and its bias; a projection between the two is part of W_U (OPT-350m)."""
    unembed = _raw(model.unembed)
    weight, bias = unembed.weight, getattr(unembed, "bias", None)
    if not weight.is_floating_point():
        raise Unreadable("its unembedding is quantised")
    norm = getattr(model, "ln_final", None)
    if norm is not None:
        return _raw(norm), weight, bias
    modules = _after_the_last_block(model)
    if modules and isinstance(modules[-1], nn.Linear):
        projection = modules.pop()
        if projection.bias is not None:
            bias = weight @ projection.bias + (0 if bias is None else bias)
        weight = weight @ projection.weight
    if len(modules) > 1:
        raise Unreadable(f"{len(modules)} modules stand between its last layer and its unembedding")
    return (modules[0] if modules else identity), weight, bias


def _after_the_last_block(model: Any) -> list[nn.Module]:
    """Whatever modules the model calls between its last block and its unembedding, in order."""
    called: list[nn.Module] = []
    inside = {id(module) for part in (*model.blocks, model.unembed) for module in part.modules()}
    leaves = [
        module
        for module in model.original_model.modules()
        if id(module) not in inside and not list(module.children()) and not isinstance(module, HookPoint)
    ]
    finished: list[bool] = []
    handles = [model.blocks[-1].register_forward_hook(lambda *_: finished.append(True))]
    handles += [
        leaf.register_forward_hook(lambda leaf, *_: called.append(leaf) if finished else None) for leaf in leaves
    ]
    with _watching(handles):
        model(torch.zeros(1, 2, dtype=torch.long, device=next(model.original_model.parameters()).device))
    return called


def _rotations(model: Any) -> Callable[[str, Int[Tensor, " position"]], tuple[Tensor, Tensor]]:
    """Cosines and sines by the model's own rotary module, or by the sinusoids that its attention keeps."""
    rotary = _raw(getattr(model, "rotary_emb", None))
    like, attentions = _raw(model.unembed).weight[:1], [_raw(block.attn) for block in model.blocks]
    kept: dict[Any, tuple[Tensor, Tensor]] = {}

    def rotations(name: str, positions: Int[Tensor, " position"]) -> tuple[Tensor, Tensor]:
        key = name, int(positions[0]), len(positions), positions.device
        if key not in kept:
            if len(kept) > 256:
                kept.clear()
            kept[key] = compute(name, positions)
        return kept[key]

    def compute(name: str, positions: Int[Tensor, " position"]) -> tuple[Tensor, Tensor]:
        kind, _, layer = name.partition(":")
        if kind == "table":  # sines, then cosines, of half the rotated width (GPT-J, CodeGen)
            table = attentions[int(layer)].embed_positions.to(positions.device)[positions]
            sin, cos = table.to(like.dtype).chunk(2, -1)
            return cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
        extra = () if not layer else (layer,)
        cos, sin = rotary(like.to(positions.device), positions[None], *extra)
        cos, sin = cos[0], sin[0]
        if kind == "doubled":  # each frequency once (GPT-OSS)
            return torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
        if kind == "spread":  # the frequencies twice over, where adjacent coordinates rotate together (GLM, Ernie)
            half = cos.shape[-1] // 2
            return cos[..., :half].repeat_interleave(2, -1), sin[..., :half].repeat_interleave(2, -1)
        return cos, -sin if kind == "backward" else sin  # (NanoChat)

    return rotations


def _key_bias(
    network: nn.Module, first: nn.Module, passed: dict[str, Any], heads: int
) -> Callable[[int], Tensor] | None:
    """What the model hands its blocks to add to the scores of each key (ALiBi), by head."""
    if not any(isinstance(passed.get(name), Tensor) for name in ("alibi", "position_bias")):
        return None
    kept: dict[int, Tensor] = {}

    def key_bias(length: int) -> Float[Tensor, "head key"]:
        if length not in kept:
            device = next(network.parameters()).device
            _, now = _embed_with(network, first, torch.zeros(1, length, dtype=torch.long, device=device))
            bias = now["alibi"] if isinstance(now.get("alibi"), Tensor) else now["position_bias"]
            kept[length] = bias.reshape(heads, -1)[:, -length:].float()
        return kept[length]

    return key_bias


def _width_of(projection: Any) -> int:
    weight = projection.weight
    return int(weight.shape[1] if _is_conv1d(projection) else weight.shape[0])


def _is_conv1d(module: Any) -> bool:
    """GPT-2's Conv1D keeps its weight as (in, out), every other module as (out, in)."""
    return type(module).__name__ == "Conv1D"


def _fitted(decoder: Decoder, block: Any, index: int, model: Any, observed: Observed) -> Layer:
    """The block as a layer: of all that its facts allow, the first that computes what the block computed."""
    layer = _layer(block, index, model)
    choices = itertools.product(
        (layer.norm, identity),
        _rotary_choices(block, model),
        _scale_choices(block, layer, index),
        # transformers 5 adds Falcon's bias to the scores and, scaled, to the mask besides.
        (1.0, layer.scale, 2 * layer.scale) if decoder.key_bias else (1.0,),
        _normalise_choices(block),
    )
    candidates = (
        replace(
            layer,
            norm=norm,
            rotary=rotary,
            pairing=pairing,
            scale=scale,
            bias_scale=bias_scale,
            normalise=normalise,
            order=order,
            norms_join_heads=any(isinstance(norm, _OnWhole) for norm in normalise.values()),
        )
        for norm, (rotary, pairing), scale, bias_scale, (normalise, order) in choices
    )
    attention = _best(candidates, lambda candidate: _attention_misses(decoder, candidate, observed))
    if attention is None:
        raise Unreadable(f"what the heads of layer {index} read does not come out as the model's own")
    if attention.clip is not None and attention.normalise and _order_is_open(decoder, attention, observed):
        raise Unreadable(f"the clip of layer {index} did not act, so whether its norms come before is not known")
    whole = _best(
        _structures(block, attention, bool(getattr(model.cfg, "parallel_attn_mlp", False))),
        lambda candidate: _block_misses(decoder, candidate, observed),
    )
    if whole is None:
        raise Unreadable(f"what layer {index} adds to the residual stream does not come out as the model's own")
    return whole


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


def _layer(block: Any, index: int, model: Any) -> Layer:
    attention, own = block.attn, _raw(block.attn)
    out = _raw(attention.o)
    projections = {name: _raw(getattr(attention, name)) for name in "qkv"}
    for name, module in [*projections.items(), ("o", out)]:
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise Unreadable(f"W_{name.upper()} of layer {index} is no plain matrix (quantised?)")
    heads = int(_number(own, "num_heads", "num_attention_heads") or model.cfg.n_heads)
    width = _width_of(projections["q"]) // heads
    weight = out.weight if _is_conv1d(out) else out.weight.T
    sinks = getattr(own, "sinks", None)
    return Layer(
        norm=_raw(_part(block, "ln1")) if _part(block, "ln1") is not None else identity,
        project=projections,
        normalise={},
        clip=_number(own, "clip_qkv") or _number(getattr(own, "config", None), "clip_qkv"),
        heads=heads,
        kv_heads=_width_of(projections["k"]) // width,
        scale=1 / math.sqrt(width),
        softcap=_number(own, "attn_logit_softcapping"),
        window=_window(own, index),
        rotary=None,
        pairing="half",
        bias_scale=1.0,
        sinks=sinks if isinstance(sinks, Tensor) else None,
        out=rearrange(weight, "(head width) d -> head width d", head=heads),
        out_bias=getattr(out, "bias", None),
        after_attention=identity,
        mlp=identity,
        parallel=False,
        close=(identity, identity),
        device=out.weight.device,
    )


def _window(own: Any, index: int) -> int | None:
    """How far back this layer looks, by the facts of its attention module and its config."""
    if getattr(own, "is_sliding", True) is False:
        return None  # whatever window the other layers have (EXAONE 4)
    if hasattr(own, "sliding_window"):
        given = own.sliding_window
        return int(given) if isinstance(given, int) and not isinstance(given, bool) else None
    config: Any = getattr(own, "config", None)
    kind = getattr(own, "attention_type", None)
    if kind == "local":
        return int(config.window_size)
    size = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[index] != "sliding_attention":
        return None
    if getattr(config, "use_sliding_window", True) is False or not isinstance(size, int):
        return None
    return size


def _scale_choices(block: Any, layer: Layer, index: int) -> list[float]:
    own = _raw(block.attn)
    told = _number(own, "scaling", "softmax_scale", "scale", "inv_norm_factor")
    divisor = _number(own, "scale_attn")
    plain = layer.scale
    found = [told, 1 / divisor if divisor else None, plain, 1.0, plain / (index + 1), 1 / (index + 1)]
    return list(dict.fromkeys(scale for scale in found if scale))


def _rotary_choices(block: Any, model: Any) -> list[tuple[str | None, Any]]:
    own, rotary = _raw(block.attn), getattr(model, "rotary_emb", None)
    if isinstance(getattr(own, "embed_positions", None), Tensor):
        index = next(i for i, other in enumerate(model.blocks) if other is block)
        return [(f"table:{index}", "adjacent"), (None, "half")]
    if rotary is None or _raw(rotary) is rotary:
        return [(None, "half")]
    kind = getattr(own, "layer_type", None) or getattr(own, "attention_type", None)
    suffix = f":{kind}" if isinstance(kind, str) and _takes_kind(_raw(rotary)) else ""
    choices = [
        ("plain", "half"), ("doubled", "half"), ("plain", "adjacent"), ("spread", "adjacent"), ("backward", "half")
    ]  # fmt: skip
    rotated = [(f"{name}{suffix}", pairing) for name, pairing in choices]
    unused = getattr(own, "use_rope", True) in (False, 0)
    return [(None, "half"), *rotated] if unused else [*rotated, (None, "half")]


def _takes_kind(rotary: Any) -> bool:
    return "layer_type" in inspect.signature(rotary.forward).parameters


def _normalise_choices(block: Any) -> list[tuple[dict[str, Function], tuple[Step, ...]]]:
    """Norms of queries, keys and values, and when they come; none where the block has none."""
    own = _raw(block.attn)
    norms: dict[str, Any] = {}
    for name in "qkv":
        for attribute in (f"{name}_norm", f"{name}_layernorm", f"{name}_ln"):
            module = getattr(own, attribute, None)
            if isinstance(module, nn.Module):
                norms[name] = _raw(module)
        component = _part(block.attn, f"{name}_norm")
        if name not in norms and component is not None:
            norms[name] = _raw(component)
    usual, clipped_after, turned_before = _ORDERS
    if not norms:
        return [({}, usual)]
    by_head = dict(norms)
    whole = {name: _OnWhole(norm) for name, norm in norms.items()}
    heads_first = {name: _heads_first(norm) for name, norm in norms.items()}
    orders = (usual, clipped_after, turned_before)
    return [*((form, order) for order in orders for form in (by_head, whole, heads_first)), ({}, usual)]


def _order_is_open(decoder: Decoder, attention: Layer, observed: Observed) -> bool:
    """Whether norms before the clip and after it give the same here: a clip that never acts in the trial may later."""
    swapped = _ORDERS[1] if attention.order != _ORDERS[1] else _ORDERS[0]
    return _attention_misses(decoder, replace(attention, order=swapped), observed) <= 1


@dataclass(frozen=True, eq=False)
class _OnWhole:
    """A norm of all heads' coordinates together (OLMo 2)."""

    norm: Function

    def __call__(self, x: Float[Tensor, "*batch head width"]) -> Float[Tensor, "*batch head width"]:
        return rearrange(self.norm(rearrange(x, "... head width -> ... (head width)")),
                         "... (head width) -> ... head width", head=x.shape[-2])  # fmt: skip


def _heads_first(norm: Function) -> Function:
    """A norm of each head's own, on (batch, head, position, width) (StableLM)."""

    def normalise(x: Tensor) -> Tensor:
        flat = x.flatten(0, -4) if x.ndim > 4 else x
        return norm(flat.transpose(1, 2)).transpose(1, 2).reshape(x.shape)

    return normalise


def _structures(block: Any, layer: Layer, parallel: bool) -> Iterator[Layer]:
    """How the block's parts may be put together, the likeliest first."""
    multiplier = _number(block, "residual_contribution_scale") or 1.0
    after = _scaled(_norm_of(block, "ln1_post"), multiplier)
    norm1, norm2 = _norm_of(block, "ln1"), _norm_of(block, "ln2")
    post = _norm_of(block, "ln2_post")
    inner = _mlp(block)
    second = norm2 if norm2 is not identity or not parallel else norm1
    sequential = replace(layer, after_attention=after, mlp=_composed(norm2, inner, post, multiplier))
    beside = replace(layer, after_attention=after, mlp=_composed(second, inner, post, multiplier), parallel=True)
    shared = replace(layer, after_attention=after, mlp=_composed(norm1, inner, post, multiplier), parallel=True)
    yield from (beside, sequential, shared) if parallel else (sequential, beside, shared)
    scalar = getattr(_raw(block), "layer_scalar", None)  # of the whole stream (Gemma 4)
    if isinstance(scalar, Tensor) and scalar.numel() == 1:
        yield replace(sequential, close=(identity, Scaled(identity, float(scalar))))
    # Post-norm: the stream itself is normalised after each addition (GPT-1, OPT-350m).
    yield replace(layer, norm=identity, after_attention=identity, mlp=inner, close=(norm1, norm2))


def _norm_of(block: Any, name: str) -> Function:
    part = _part(block, name)
    return identity if part is None else _raw(part)


def _scaled(function: Function, multiplier: float) -> Function:
    return function if multiplier == 1.0 else Scaled(function, multiplier)


def _composed(norm: Function, inner: Function, post: Function, multiplier: float) -> Function:
    if post is identity and multiplier == 1.0:
        return inner if norm is identity else lambda x: inner(norm(x))
    return lambda x: post(inner(norm(x))) * multiplier


def _mlp(block: Any) -> Function:
    """The MLP as a function of each position alone, whatever shape its module asks for."""
    component = getattr(block, "_modules", {}).get("mlp")
    if component is None:
        return torch.zeros_like
    module = _raw(component)
    if module is component or module is _raw(block):  # loose layers, and no module of their own (OPT)
        into, out = (_raw(component._modules[name]) for name in ("in", "out"))
        act = getattr(_raw(block), "activation_fn", None)
        if act is None:
            raise Unreadable("its MLP's activation is not known")
        return lambda x: out(act(into(x)))
    wanted = [
        parameter
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.default is inspect.Parameter.empty and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD,)
    ]
    residual = len(wanted) == 2  # it adds to a stream that it is given (BLOOM, MPT)

    def mlp(x: Tensor) -> Tensor:
        # A mixture of experts asks for (batch, position, d).
        flat = x.reshape(1, -1, x.shape[-1])
        return _first_tensor(module(flat, torch.zeros_like(flat)) if residual else module(flat)).reshape(x.shape)

    return mlp


# --- trying -----------------------------------------------------------------------------------------------------------


def _miss(function: Callable[[Tensor], Tensor], given: Tensor, expected: Tensor, size: float = 0.0) -> float:
    """By how much a function misses what the model itself made of the same, as a share of what rounding allows.

    In full precision that is a share of the largest number. In reduced precision it is measured: how far the result
    moves when what is given moves by its type's own rounding.

    Args:
        function: Of what is given.
        given: The model's own input.
        expected: The model's own output.
        size: Of what the output is a difference of, where that is larger.
    """
    found = function(given)
    if found.shape != expected.shape:
        return math.inf
    error, scale = float((found.double() - expected.double()).abs().max()), max(float(expected.abs().max()), size)
    if not math.isfinite(error) or not math.isfinite(scale):
        return math.inf
    if given.dtype in _PRECISION:
        return error / (_PRECISION[given.dtype] * scale) if scale else math.inf if error else 0.0
    rounding = torch.finfo(given.dtype).eps
    generator = torch.Generator(device=given.device).manual_seed(0)
    signs = [torch.randint(0, 2, given.shape, generator=generator, device=given.device) * 2 - 1 for _ in range(2)]
    moved = [function(given * (1 + rounding * sign.to(given.dtype))) for sign in signs]
    noise = max(float((one.double() - found.double()).abs().max()) for one in moved)
    return error / (_NOISE * noise + 4 * rounding * scale)


def _heads_read(decoder: Decoder, layer: Layer, stream: Float[Tensor, "batch position d"]) -> Tensor:
    normed = layer.norm(stream)[:, None]
    q, k, v = (layer.split(name, normed) for name in "qkv")
    queries, keys = turn(decoder, layer, "q", q, 0), turn(decoder, layer, "k", k, 0)
    pattern = look(layer, compare(decoder, layer, queries, None, 0, keys), q.dtype)
    z = average(layer, pattern, None, layer.averaged(v))[:, 0]
    return rearrange(z, "... head width -> ... (head width)")


def _attention_misses(decoder: Decoder, layer: Layer, observed: Observed) -> float:
    def written(z: Tensor) -> Tensor:
        return write(layer, rearrange(z, "... (head width) -> ... head width", head=layer.heads))

    read = _miss(lambda stream: _heads_read(decoder, layer, stream), observed.before, observed.z)
    return max(read, _miss(written, observed.z, observed.written))


def _block_misses(decoder: Decoder, layer: Layer, observed: Observed) -> float:
    """What the block adds is compared, not the stream, which may be much larger than what one block adds to it."""
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


def _logits_miss(decoder: Decoder, resid: Float[Tensor, "batch position d"], logits: Tensor) -> float:
    return _miss(decoder.logits, resid, logits.to(wide(logits).dtype))


@torch.no_grad()
def _compare(model: Any, decoder: Decoder, length: int) -> str:
    """What differs between the decoder and the model itself in a run of some random tokens; nothing if nothing does."""
    length = _within(model, length)
    tokens = _tokens(length, len(decoder.unembed), next(model.original_model.parameters()).device)
    try:
        observed, logits = observe(model, tokens)
        embedded = decoder.embed(tokens)
    except (Unreadable, RuntimeError, IndexError, ValueError, TypeError) as error:
        return f"it cannot run {length} tokens ({type(error).__name__}: {error!s:.80})"
    if not bool(logits.isfinite().all()):
        return _NOT_FINITE
    if not torch.equal(embedded, observed[0].before):
        return "what goes into its first layer does not come out as the model's own"
    for index, (layer, block) in enumerate(zip(decoder.layers, observed, strict=True)):
        if not _attention_misses(decoder, layer, block) <= 1:
            return f"what the heads of layer {index} read differs from the model's own in a run of {length} tokens"
        if not _block_misses(decoder, layer, block) <= 1:
            return f"what layer {index} adds differs from the model's own in a run of {length} tokens"
    if not _logits_miss(decoder, observed[-1].after, logits) <= 1:
        return f"its logits differ from the model's own in a run of {length} tokens"
    return ""
