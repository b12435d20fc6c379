"""A plain Hugging Face model whose activations can be read and edited: hooks written by hand on its own modules.

Nothing of lcalens nor of TransformerLens is used. For each family `_layers` says which module's input or output an
activation is, and which features of a fused projection are whose; attention's scores and pattern are caught where the
model calls `softmax`, and the values it averages where it multiplies the pattern by them.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.matrix.families import FAMILIES, build

Edit = Callable[[str, int, Tensor], Tensor]
_PRODUCTS = {"matmul", "bmm", "__matmul__", "__rmatmul__"}


@dataclass(frozen=True)
class Projection:
    """Queries, keys or values in a projection's output.

    Attributes:
        module: Whose output they are in.
        features: Which of its features are which head's, (head, width).
    """

    module: nn.Module
    features: Tensor


@dataclass(frozen=True)
class Place:
    """A layer's modules.

    Attributes:
        block: The whole layer.
        attention: In which softmax is attention's.
        write: W_O; its input is z.
        attn_out: Its output, times `multiplier`, is what attention adds to the residual stream.
        mlp_out: The same of the MLP.
        projections: By `q`, `k`, `v`; those that there are.
        heads: Query heads.
        multiplier: Granite's.
        after_attention: A norm between W_O and the residual stream.
    """

    block: nn.Module
    attention: nn.Module
    write: nn.Module
    attn_out: nn.Module
    mlp_out: nn.Module
    projections: dict[str, Projection]
    heads: int
    multiplier: float = 1.0
    after_attention: nn.Module | None = None


@dataclass
class Run:
    """What a run gave.

    Attributes:
        logits: At every position, after any soft cap.
        uncapped: Before it.
        kept: By site and layer.
    """

    logits: Tensor
    uncapped: Tensor
    kept: dict[str, dict[int, Tensor]] = field(default_factory=dict)


class Plain:
    """The model of a family.

    Args:
        name: One of `FAMILIES`.
        dtype: Of its weights.
        rounded: Whether they are those of a bfloat16 model.
    """

    def __init__(self, name: str, *, dtype: torch.dtype = torch.float32, rounded: bool = False):
        self.name, self.kind = name, FAMILIES[name].kind
        self.model, self.tokenizer = build(name, dtype=dtype, rounded=rounded)
        self.config = self.model.config
        self.places = _layers(self.model, self.kind)
        self.causal = self.kind != "lca"
        self.residual = self.kind != "lca"

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.places)

    def heads(self, site: str) -> int:
        """How many heads a layer has at a site; 1 where it has none."""
        place = self.places[0]
        if site in ("z", "q", "pattern", "attn_scores"):
            return place.heads
        return len(place.projections[site].features) if site in ("k", "v") else 1

    def run(self, tokens: Tensor, *, edit: Edit | None = None, keep: Collection[str] = ()) -> Run:
        """Run the model.

        Args:
            tokens: (batch, position), without padding.
            edit: Called with each site, layer and activation, in the order in which they come; what it returns goes on.
            keep: Sites to keep.

        The activations are (batch, position, head, width) for `q`, `k`, `v` and `z`, (batch, head, query, key) for
        `attn_scores`, `pattern`, (batch, head, key, width) for `values`, which cannot be edited, else (batch, position,
        d). `attn_out` and `mlp_out` are what is added to the residual stream.
        """
        kept: dict[str, dict[int, Tensor]] = {site: {} for site in keep}

        def at(site: str, layer: int, value: Tensor) -> Tensor:
            if edit is not None:
                value = edit(site, layer, value)
            if site in kept:
                kept[site][layer] = value.clone()  # some models add to their activations in place
            return value

        uncapped: list[Tensor] = []
        output = self.model.get_output_embeddings()
        with _Hooks(self.places, tuple(tokens.shape), at) as hooks:
            if output is not None:
                hooks.after(output, lambda module, value: uncapped.append(value))
            options = {} if self.kind == "lca" else {"use_cache": False}
            logits = self.model(input_ids=tokens, **options).logits
        before = uncapped[0] if getattr(self.config, "final_logit_softcapping", None) else logits
        return Run(logits, before, kept)


class _Hooks:
    """The hooks of one run."""

    def __init__(self, places: list[Place], shape: tuple[int, int], at: Edit):
        self.places, self.shape, self.at = places, shape, at
        self.handles: list[Any] = []
        self.inside: int | None = None  # the layer whose attention runs
        self.pattern: Tensor | None = None
        self.mode = _Softmax(self)

    def __enter__(self) -> "_Hooks":
        for layer, place in enumerate(self.places):
            self._layer(layer, place)
        self.mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.mode.__exit__(*error)
        for handle in self.handles:
            handle.remove()

    def _layer(self, layer: int, place: Place) -> None:
        def enter(module: Any, args: Any) -> None:
            self.inside, self.pattern = layer, None

        def leave(module: Any, args: Any, output: Any) -> None:
            assert self.pattern is not None, "attention called no softmax"
            self.inside = None

        self.handles.append(place.attention.register_forward_pre_hook(enter))
        self.before(place.block, lambda value: self.at("resid_pre", layer, value))
        modules = {id(projection.module): projection.module for projection in place.projections.values()}
        for module in modules.values():
            names = [name for name in "qkv" if name in place.projections and place.projections[name].module is module]
            self.after(module, self._projected(layer, place, names))
        self.before(place.write, self._read(layer, place))
        self.after(place.attn_out, self._added("attn_out", layer, place.multiplier))
        self.after(place.mlp_out, self._added("mlp_out", layer, place.multiplier))
        self.after(place.block, lambda module, value: self.at("resid_post", layer, value))
        self.handles.append(place.attention.register_forward_hook(leave))

    def before(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        """Change a module's first input."""

        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: nn.Module, change: Callable[[Any, Tensor], Any]) -> None:
        """Change a module's first output."""

        def hook(module: Any, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (change(module, output[0]), *output[1:])
            return change(module, output)

        self.handles.append(module.register_forward_hook(hook))

    def _projected(self, layer: int, place: Place, names: list[str]) -> Callable[[Any, Tensor], Tensor]:
        def change(module: Any, output: Tensor) -> Tensor:
            rows = output.reshape(*self.shape, -1).clone()
            for name in names:
                features = place.projections[name].features
                rows[..., features] = self.at(name, layer, rows[..., features])
            return rows.view(output.shape)

        return change

    def _read(self, layer: int, place: Place) -> Callable[[Tensor], Tensor]:
        def change(value: Tensor) -> Tensor:
            return self.at("z", layer, value.unflatten(-1, (place.heads, -1))).flatten(-2)

        return change

    def _added(self, site: str, layer: int, multiplier: float) -> Callable[[Any, Tensor], Tensor]:
        def change(module: Any, output: Tensor) -> Tensor:
            added = output.reshape(*self.shape, -1) * multiplier  # OPT's MLP runs on positions in one row
            return (self.at(site, layer, added) / multiplier).reshape(output.shape)

        return change


class _Softmax(TorchFunctionMode):
    """Where attention's scores become its pattern, and the pattern averages values."""

    def __init__(self, hooks: _Hooks):
        super().__init__()
        self.hooks = hooks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, hooks = kwargs or {}, self.hooks
        name = getattr(func, "__name__", "")
        if hooks.inside is None:
            return func(*args, **kwargs)
        if name == "cat" and hooks.pattern is None and _appends_sink(args[0], hooks.shape[1]):
            # GPT-OSS subtracts the largest of scores and sink before its softmax; the scores are what they were.
            scores, sink = args[0]
            return func([hooks.at("attn_scores", hooks.inside, scores), sink], *args[1:], **kwargs)
        if name == "softmax" and hooks.pattern is None:
            return self._attend(func, args, kwargs)
        if name in _PRODUCTS and hooks.pattern is not None:
            rows, _, length, keys = hooks.pattern.shape
            if args[0].shape[-2:] == (length, keys):
                values = args[1].reshape(rows, -1, *args[1].shape[-2:])
                hooks.at("values", hooks.inside, values)
        return func(*args, **kwargs)

    def _attend(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        hooks, layer = self.hooks, self.hooks.inside
        assert layer is not None
        whole = args[0]
        length, beyond = whole.shape[-2], whole.shape[-1] - whole.shape[-2]  # GPT-OSS appends a sink
        scores = whole.view(whole.shape[0], -1, length, whole.shape[-1])
        if not beyond:
            scores = hooks.at("attn_scores", layer, scores)
        given = func(scores, *args[1:], **kwargs)
        hooks.pattern = hooks.at("pattern", layer, given[..., : given.shape[-1] - beyond])
        found = torch.cat([hooks.pattern, given[..., given.shape[-1] - beyond :]], -1)
        return found.view(whole.shape)


def _appends_sink(tensors: Any, length: int) -> bool:
    """Whether a score for every query and key, and a column behind them, are joined; not two parts of a rotation."""
    return len(tensors) == 2 and tensors[0].shape[-2:] == (length, length) and tensors[1].shape[-1] == 1


def _layers(model: Any, kind: str) -> list[Place]:
    if kind in ("mamba", "t5"):
        return []
    if kind == "lca":
        return [_toy(model)]
    read = _READ.get(kind, _llama)
    return [read(block, model.config) for block in _blocks(model)]


def _blocks(model: Any) -> Any:
    for path in ("transformer.h", "transformer.blocks", "gpt_neox.layers", "model.decoder.layers", "model.layers"):
        found = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found
    raise AssertionError(f"where are the blocks of {type(model).__name__}?")


def _alone(module: Any, heads: int) -> Projection:
    """A projection of its own."""
    size = module.weight.shape[0]
    return Projection(module, torch.arange(size).view(heads, -1))


def _in_blocks(module: Any, size: int, heads: dict[str, int], width: int) -> dict[str, Projection]:
    """All queries, then all keys, then all values."""
    blocks = torch.arange(size).split([heads[name] * width for name in "qkv"])
    return {name: Projection(module, block.view(-1, width)) for name, block in zip("qkv", blocks, strict=True)}


def _by_head(module: Any, heads: int) -> dict[str, Projection]:
    """Each head's query, key and value side by side."""
    features = torch.arange(module.weight.shape[0]).view(heads, 3, -1)
    return {name: Projection(module, features[:, i]) for i, name in enumerate("qkv")}


def _separate(attention: Any, heads: int) -> dict[str, Projection]:
    width = attention.q_proj.weight.shape[0] // heads
    return {
        name: _alone(module, module.weight.shape[0] // width)
        for name, module in (("q", attention.q_proj), ("k", attention.k_proj), ("v", attention.v_proj))
    }


def _gpt2(block: Any, config: Any) -> Place:
    attention, heads = block.attn, config.n_head
    even = dict.fromkeys("qkv", heads)
    projections = _in_blocks(attention.c_attn, 3 * config.n_embd, even, config.n_embd // heads)
    return Place(block, attention, attention.c_proj, attention, block.mlp, projections, heads)


def _gpt_bigcode(block: Any, config: Any) -> Place:
    attention, heads, width = block.attn, config.n_head, config.n_embd // config.n_head
    if config.multi_query:
        counts = {"q": heads, "k": 1, "v": 1}
        projections = _in_blocks(attention.c_attn, (heads + 2) * width, counts, width)
    else:
        projections = _by_head(attention.c_attn, heads)
    return Place(block, attention, attention.c_proj, attention, block.mlp, projections, heads)


def _gpt_neo(block: Any, config: Any) -> Place:
    attention = block.attn.attention
    projections = _separate(attention, config.num_heads)
    return Place(block, attention, attention.out_proj, attention, block.mlp, projections, config.num_heads)


def _gptj(block: Any, config: Any) -> Place:
    attention = block.attn
    projections = _separate(attention, config.n_head)
    return Place(block, attention, attention.out_proj, attention, block.mlp, projections, config.n_head)


def _codegen(block: Any, config: Any) -> Place:
    """In four blocks, each the queries, then the values, then the keys of a fourth of the heads."""
    attention, heads = block.attn, config.n_head
    features = torch.arange(3 * config.n_embd).view(4, 3, heads // 4, -1)
    projections = {name: Projection(attention.qkv_proj, features[:, i].flatten(0, 1)) for i, name in enumerate("qvk")}
    return Place(block, attention, attention.out_proj, attention, block.mlp, projections, heads)


def _gpt_neox(block: Any, config: Any) -> Place:
    attention, heads = block.attention, config.num_attention_heads
    projections = _by_head(attention.query_key_value, heads)
    return Place(block, attention, attention.dense, attention, block.mlp, projections, heads)


def _opt(block: Any, config: Any) -> Place:
    attention, heads = block.self_attn, config.num_attention_heads
    return Place(block, attention, attention.out_proj, attention, block.fc2, _separate(attention, heads), heads)


def _bloom(block: Any, config: Any) -> Place:
    # Attention and MLP add the residual themselves, so what they add is what their last projection gives.
    attention, heads = block.self_attention, config.n_head
    projections = _by_head(attention.query_key_value, heads)
    return Place(block, attention, attention.dense, attention.dense, block.mlp.dense_4h_to_h, projections, heads)


def _mpt(block: Any, config: Any) -> Place:
    attention, heads = block.attn, config.n_heads
    projections = _in_blocks(attention.Wqkv, 3 * config.d_model, dict.fromkeys("qkv", heads), config.d_model // heads)
    return Place(block, attention, attention.out_proj, attention, block.ffn.down_proj, projections, heads)


def _falcon(block: Any, config: Any) -> Place:
    attention, heads, width = block.self_attention, config.num_attention_heads, config.head_dim
    fused, every = attention.query_key_value, torch.arange(attention.query_key_value.weight.shape[0])
    if config.new_decoder_architecture:
        groups = every.view(config.num_kv_heads, -1, width)  # of each: its queries, its key, its value
        features = {"q": groups[:, :-2].flatten(0, 1), "k": groups[:, -2], "v": groups[:, -1]}
    elif config.multi_query:
        rows = every.view(heads + 2, width)
        features = {"q": rows[:-2], "k": rows[-2:-1], "v": rows[-1:]}
    else:
        features = {name: projection.features for name, projection in _by_head(fused, heads).items()}
    projections = {name: Projection(fused, rows) for name, rows in features.items()}
    return Place(block, attention, attention.dense, attention, block.mlp, projections, heads)


def _llama(block: Any, config: Any) -> Place:
    attention, heads = block.self_attn, config.num_attention_heads
    write = attention.dense if hasattr(attention, "dense") else attention.o_proj
    if hasattr(attention, "qkv_proj"):
        size = attention.qkv_proj.weight.shape[0]
        counts = {"q": heads, "k": config.num_key_value_heads, "v": config.num_key_value_heads}
        projections = _in_blocks(attention.qkv_proj, size, counts, size // sum(counts.values()))
    elif hasattr(attention, "kv_b_proj"):  # keys have a part that is no head's own: there is no site k
        features = torch.arange(attention.kv_b_proj.weight.shape[0]).view(heads, -1)
        queries = attention.q_b_proj if hasattr(attention, "q_b_proj") else attention.q_proj
        value = Projection(attention.kv_b_proj, features[:, config.qk_nope_head_dim :])
        projections = {"q": _alone(queries, heads), "v": value}
    else:
        projections = _separate(attention, heads)
    after, last = None, block.block_sparse_moe if hasattr(block, "block_sparse_moe") else block.mlp
    if hasattr(block, "post_feedforward_layernorm"):
        after, last = block.post_attention_layernorm, block.post_feedforward_layernorm
    elif hasattr(block, "post_mlp_layernorm"):
        after, last = block.post_self_attn_layernorm, block.post_mlp_layernorm
    return Place(
        block,
        attention,
        write,
        attention if after is None else after,
        last,
        projections,
        heads,
        multiplier=float(getattr(block, "residual_multiplier", 1.0)),
        after_attention=after,
    )


class _Through(nn.Module):
    """A name for a place of the toy model, where there is no module."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


def _toy(model: Any) -> Place:
    """The toy model's one layer: what it reads is the embedding, and what it recalls is unembedded as it is."""
    attention = model.attn
    block, write, added, nothing = _Through(), _Through(), _Through(), _Nought()
    projections = {name: _alone(getattr(attention, name), 1) for name in "qkv"}

    def forward(input_ids: Tensor, **ignored: Any) -> Any:
        read = block_in(model.embed(input_ids))
        recalled, _ = attention(read, read)
        recalled = added(write(recalled))
        recalled = recalled + nothing(recalled)
        return type("Output", (), {"logits": block(recalled) @ model.embed.weight.T})

    block_in = _Through()
    model.forward = forward
    return Place(_Ends(block_in, block), attention, write, added, nothing, projections, 1)


class _Nought(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states * 0


class _Ends(nn.Module):
    """A block in two halves: hooks before it are on the first, hooks after it on the second."""

    def __init__(self, first: nn.Module, last: nn.Module):
        super().__init__()
        self.first, self.last = first, last

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        return self.first.register_forward_pre_hook(*args, **kwargs)

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
        return self.last.register_forward_hook(*args, **kwargs)


_READ: dict[str, Callable[[Any, Any], Place]] = {
    "gpt2": _gpt2,
    "gpt_bigcode": _gpt_bigcode,
    "gpt_neo": _gpt_neo,
    "gptj": _gptj,
    "codegen": _codegen,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "bloom": _bloom,
    "mpt": _mpt,
    "falcon": _falcon,
}
