"""Why a head looks where it looks: its score of a query and a key as a sum over what parts of the model wrote at both.

With the scale of every norm held at the run's own value a query and a key are linear in the residual stream, and so is
their rotation. So a score is a bilinear form in what was written at the two positions, and its terms sum to it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.engine.attention import compare, turn
from lcalens.engine.components import matrix_of
from lcalens.engine.decoder import Decoder, Layer
from lcalens.engine.direct import Frozen, freeze
from lcalens.engine.forward import Trace, trace
from lcalens.engine.paths import EMBEDDING, MLP, Sender

BIAS = Sender(-1, -4)
"""What no part writes: the biases of projections and norms, and what attention adds for a key's place (ALiBi)."""
_BALANCE = {torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the parts' size; 1e-4 in full precision


@dataclass(frozen=True, eq=False)
class Factors:
    """A head's score of the last position with some keys, as products of a part of the query and a part of the key.

    Attributes:
        layer: Whose head.
        head: Which.
        query: What each part makes of the query, the scores' scale in it.
        key: What each part makes of the weighted sum of keys.
        scores: The model's own score of every key, before any soft cap and mask.
        error: By how much the products miss the weighted sum of the scores.
    """

    layer: int
    head: int
    query: Float[Tensor, "batch part width"]
    key: Float[Tensor, "batch part width"]
    scores: Float[Tensor, "batch position"]
    error: Float[Tensor, " batch"]

    @property
    def by_query(self) -> Float[Tensor, "batch part"]:
        """The score by part of the query, summed over those of the key."""
        return einsum(self.query, self.key.sum(1), "batch part width, batch width -> batch part")

    @property
    def by_key(self) -> Float[Tensor, "batch part"]:
        """The score by part of the key, summed over those of the query."""
        return einsum(self.key, self.query.sum(1), "batch part width, batch width -> batch part")


def parts_before(decoder: Decoder, layer: int) -> tuple[Sender, ...]:
    """What writes to the residual stream before a layer, in the order of `Factors`.

    Args:
        decoder: The model.
        layer: The layer that reads.
    """
    heads = [*range(decoder.layers[0].heads), MLP]
    return BIAS, Sender(-1, EMBEDDING), *(Sender(index, head) for index in range(layer) for head in heads)


@dataclass(eq=False)
class _Stream:
    """The residual stream at some positions as a sum over what has written it, layer after layer.

    Attributes:
        decoder: The model.
        run: With `z`, `attn_raw` and `mlp_out` kept.
        rows: The positions.
        parts: What each has written so far, from the embedding on.
        bias: What biases have added.
        reached: The layer before which it stands.
    """

    decoder: Decoder
    run: Trace
    rows: slice
    parts: list[Float[Tensor, "batch row part d"]] = field(default_factory=list)
    bias: Float[Tensor, "batch row 1 d"] | None = None
    reached: int = 0

    def before(self, index: int) -> Float[Tensor, "batch row part d"]:
        """What each part has written before a layer, biases first.

        Args:
            index: The layer, none before those asked for so far.
        """
        if not self.parts:
            self.parts = [self.run.resid[0][:, self.rows, None].double()]
            self.bias = torch.zeros_like(self.parts[0])
        for layer in range(self.reached, index):
            self._add(layer)
        self.reached = index
        assert self.bias is not None, "biases begin with the embedding"
        return torch.cat([self.bias, *self.parts], 2)

    def _add(self, index: int) -> None:
        layer, kept, batch = self.decoder.layers[index], self.run.kept, len(self.run.tokens)
        read = kept["z"][index][:, self.rows].double()
        written = einsum(read, layer.out.double(), "batch row head width, head width d -> batch row head d")
        raw = kept["attn_raw"][index][:, self.rows]
        bias = torch.zeros_like(raw[:, :, None]).double()
        if layer.out_bias is not None:
            bias = bias + layer.out_bias.double()
        after = freeze(layer.after_attention, rearrange(raw, "batch row d -> (batch row) d"))
        added = after.of(rearrange(torch.cat([bias, written], 2), "batch row part d -> (batch row) part d"))
        added = rearrange(added, "(batch row) part d -> batch row part d", batch=batch)
        self.parts += [added[:, :, 1:], kept["mlp_out"][index][:, self.rows, None].double()]
        assert self.bias is not None, "biases begin with the embedding"
        self.bias = self.bias + added[:, :, :1] + after.bias


def score_factors(
    decoder: Decoder,
    tokens: Int[Tensor, "batch position"],
    heads: Sequence[tuple[int, int]],
    weights: Float[Tensor, "batch position"],
) -> Iterator[Factors]:
    """Run the model and take heads' scores of the last position apart; without gradients, so under `torch.no_grad`.

    Args:
        decoder: The model.
        tokens: Of one length, without padding.
        heads: As (layer, head), in the model's order.
        weights: Of each key's score in the sum that is taken apart.

    Raises:
        LcalensError: The parts do not sum to the model's own scores, or what they write is no sum.
    """
    check_sums(decoder, heads)
    run, last = trace(decoder, tokens, keep=("q", "z", "attn_raw", "mlp_out")), tokens.shape[1] - 1
    used = weights.abs().sum(0).nonzero()[:, 0]
    places = {"q": slice(last, last + 1), "k": slice(int(used.min()), int(used.max()) + 1)}
    streams = {name: _Stream(decoder, run, rows) for name, rows in places.items()}
    written: dict[str, Tensor] = {}
    normed: dict[str, Tensor] = {}
    reached = -1
    for index, head in heads:
        layer = decoder.layers[index]
        if index != reached:
            for name, stream in streams.items():
                before = run.resid[index][:, stream.rows]
                written[name] = _normed(layer, before, stream.before(index))
                normed[name] = layer.norm(before)
            reached = index
        found = {name: _read(decoder, layer, name, head, normed[name], written[name], rows.start)
                 for name, rows in places.items()}  # fmt: skip
        keys = einsum(found["k"], weights[:, places["k"]].to(found["k"]),
                      "batch row part width, batch row -> batch part width")  # fmt: skip
        yield _checked(decoder, run, index, head, found["q"][:, 0] * layer.scale, keys, weights)


def check_sums(decoder: Decoder, heads: Sequence[tuple[int, int]]) -> None:
    """Refuse heads that read a stream which is no sum over what layers wrote.

    Args:
        decoder: The model.
        heads: As (layer, head).

    Raises:
        LcalensError: A norm acts on the stream itself before one of them.
    """
    deepest = max(layer for layer, _ in heads)
    for index, layer in enumerate(decoder.layers[:deepest]):
        if not layer.open or not decoder.residual:
            raise LcalensError(
                f"model: what layer {index + 1} reads is no sum over what was written before (a norm, a factor or no "
                "residual stream), so scores cannot be taken apart; path(at='q') and path(at='k') measure it."
            )


def _normed(
    layer: Layer, before: Float[Tensor, "batch row d"], parts: Float[Tensor, "batch row part d"]
) -> Float[Tensor, "batch row part d"]:
    """The parts as attention reads them."""
    norm = freeze(layer.norm, rearrange(before, "batch row d -> (batch row) d"))
    scaled = norm.of(rearrange(parts, "batch row part d -> (batch row) part d"))
    scaled[:, 0] += norm.bias
    return rearrange(scaled, "(batch row) part d -> batch row part d", batch=len(before))


def _read(
    decoder: Decoder,
    layer: Layer,
    name: str,
    head: int,
    normed: Float[Tensor, "batch row d"],
    parts: Float[Tensor, "batch row part d"],
    start: int,
) -> Float[Tensor, "batch row part width"]:
    """What each part makes of a head's queries or keys, as attention compares them."""
    whole = layer.split(name, normed)
    count, width = whole.shape[2:]
    own = head * count // layer.heads
    matrix, bias = matrix_of(layer.project[name])
    columns = slice(own * width, (own + 1) * width)
    read = parts @ matrix[:, columns].double()
    if bias is not None:
        read[:, :, 0] += bias[columns].double()
    for step in layer.order:
        if step == "rotate":
            alone = replace(layer, order=(step,))
            read = turn(decoder, alone, name, read, start)
            whole = turn(decoder, alone, name, whole, start)
            continue
        after = layer.take(step, name, whole)
        if step == "clip" and not torch.equal(after[:, :, own], whole[:, :, own]):
            raise LcalensError(
                "model: it clips queries and keys, and here the clip acts, so that they are no sum over what was "
                "written; path(at='q') and path(at='k') measure it."
            )
        if step == "normalise" and name in layer.normalise:
            norm = _of_head(layer, name, own, whole)
            scaled = norm.of(rearrange(read, "batch row part width -> (batch row) part width"))
            scaled[:, 0] += norm.bias
            read = rearrange(scaled, "(batch row) part width -> batch row part width", batch=len(read))
        whole = after
    return read


def _of_head(layer: Layer, name: str, own: int, whole: Float[Tensor, "batch row head width"]) -> Frozen:
    """The norm of one head's queries or keys, held at these."""
    count, width = whole.shape[2:]
    normalise = layer.normalise[name]
    if not layer.norms_join_heads:

        def alone(vectors: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
            return normalise(vectors[:, None, None].expand(-1, 1, count, -1))[:, 0, own]

        return freeze(alone, rearrange(whole[:, :, own], "batch row width -> (batch row) width"))

    def together(vectors: Float[Tensor, "row all"]) -> Float[Tensor, "row all"]:
        return normalise(vectors.unflatten(-1, (count, width))[:, None])[:, 0].flatten(-2)

    norm = freeze(together, rearrange(whole, "batch row head width -> (batch row) (head width)"))
    if norm.centred:
        raise LcalensError("model: its norm of queries and keys takes the mean over all heads; use path(at='q').")
    columns = slice(own * width, (own + 1) * width)
    return replace(norm, gain=norm.gain[columns], bias=norm.bias[columns])


def _checked(
    decoder: Decoder, run: Trace, index: int, head: int, query: Tensor, key: Tensor, weights: Tensor
) -> Factors:
    """The factors beside the model's own scores, which their products must sum to."""
    layer, last = decoder.layers[index], run.tokens.shape[1] - 1
    bare = replace(layer, softcap=None, window=None)
    queries = turn(decoder, layer, "q", run.kept["q"][index][:, last:], last)[:, None]
    scores = compare(replace(decoder, causal=False), bare, queries, run.keys[index], last)[:, 0, head, 0].double()
    weights = weights.to(scores)
    if decoder.key_bias is not None:  # one more coordinate, in which biases alone are not 0
        added = weights @ decoder.key_bias(scores.shape[-1])[head].to(scores) * layer.bias_scale
        query, key = (torch.nn.functional.pad(side, (0, 1)) for side in (query, key))
        query[:, 0, -1], key[:, 0, -1] = 1.0, added
    own = (scores * weights).sum(-1)
    total = (query.sum(1) * key.sum(1)).sum(-1)
    factors = Factors(index, head, query, key, scores, (total - own).abs())
    size = torch.maximum(factors.by_query.abs().sum(-1), factors.by_key.abs().sum(-1))
    size = torch.maximum(size, (scores * weights).abs().sum(-1))
    # Not `error > limit`: that lets NaN pass.
    if not bool((factors.error <= _BALANCE.get(decoder.unembed.dtype, 1e-4) * size).all()):
        worst = int(torch.argmax(torch.nan_to_num(factors.error, nan=torch.inf)))
        raise LcalensError(
            f"model: the parts of L{index}H{head}'s score sum to {float(total[worst]):.6g}, and it is "
            f"{float(own[worst]):.6g}; a norm of this model cannot be taken apart as lcalens does."
        )
    return factors
