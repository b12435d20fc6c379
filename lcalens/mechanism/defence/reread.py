"""What is taken from what heads have read: the part that writes the tokens read, or what was read a first time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from lcalens.core.errors import LcalensError
from lcalens.engine.components import ending_of
from lcalens.mechanism.arguments import Head

Hook = tuple[str, Callable[..., Any]]


def own_token_part(
    pattern: Float[Tensor, "batch query key"],
    values: Float[Tensor, "batch key width"],
    writer: Float[Tensor, "width d"],
    unembed: Float[Tensor, "batch key d"],
) -> Float[Tensor, "batch query width"]:
    """Of what one head has read, the part along those values that would write the tokens that it has read.

    Args:
        pattern: Where the head looks.
        values: What it reads there.
        writer: From a token's unembedding to the value that writes it (`token_writers`).
        unembed: Of the tokens that stand there.
    """
    along = nn.functional.normalize(
        einsum(unembed.to(writer), writer, "batch key d, width d -> batch key width"), dim=-1
    )
    part = (values.to(along) * along).sum(-1, keepdim=True) * along
    return einsum(pattern.to(part), part, "batch query key, batch key width -> batch query width").to(values)


class OwnTokens:
    """Takes from what heads have read the part that would write the tokens that they have read.

    Args:
        model: The TransformerBridge.
        heads: Of the defence.
        values: Its `writers`, and its `strength`: how often the part is taken.
    """

    def __init__(self, model: Any, heads: Sequence[Head], values: Mapping[str, Tensor]):
        self.heads, self.writers, self.strength = heads, values["writers"], float(values["strength"])
        self.unembed = ending_of(model)[1]
        self.ids, self.past = torch.zeros(0, 0, dtype=torch.long), None
        self.patterns: dict[int, Tensor] = {}
        self.fresh: dict[int, Tensor] = {}

    def begin(self, ids: Int[Tensor, "batch position"], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A forward pass begins.

        Args:
            ids: All tokens, those of earlier passes included.
            arguments: Of the pass.
            options: Of the pass.
        """
        self.ids, self.past = ids, options.get("past_key_values")

    def hooks(self) -> Iterator[Hook]:
        """What has to be seen before: where the heads look, and what they read there."""
        for layer in sorted({layer for layer, _ in self.heads}):
            for site, kept in (("pattern", self.patterns), ("v", self.fresh)):

                def keep(
                    module: nn.Module, inputs: Any, value: Tensor, kept: dict[int, Tensor] = kept, layer: int = layer
                ) -> None:
                    kept[layer] = value

                yield f"blocks.{layer}.attn.hook_{site}", keep

    def change(
        self, rows: Float[Tensor, "batch query head width"], numbers: Sequence[int]
    ) -> Float[Tensor, "batch query head width"]:
        """What one layer's heads are left with.

        Args:
            rows: What they have read.
            numbers: Which of the defence's heads they are.
        """
        layer, width = self.heads[numbers[0]][0], rows.shape[-1]
        pattern, values = self.patterns[layer], self._values(layer, width)
        shared = pattern.shape[1] // values.shape[2]
        unembed = self.unembed[self.ids[:, -values.shape[1] :].to(self.unembed.device)].to(rows.device)
        parts = [
            own_token_part(
                pattern[:, head], values[:, :, head // shared], self.writers[number].to(rows.device), unembed
            )
            for number, head in ((number, self.heads[number][1]) for number in numbers)
        ]
        return rows - self.strength * torch.stack(parts, 2).to(rows)

    def _values(self, layer: int, width: int) -> Float[Tensor, "batch key head width"]:
        """What the layer's heads read of every position: this pass's, or the cache's, which has them too by now."""
        found = self.fresh[layer]
        if self.past is not None:
            layers = getattr(self.past, "layers", ())
            found = getattr(layers[layer], "values", None) if layer < len(layers) else None
            if isinstance(found, Tensor):
                found = rearrange(found, "batch head key width -> batch key head width")
        elif found.ndim == 3:
            found = found.unflatten(-1, (-1, width))
        if not isinstance(found, Tensor) or found.shape[1] != self.patterns[layer].shape[-1]:
            raise LcalensError("defence: this model's cache does not show what its heads see; run it without a cache.")
        return found


class Subtracted:
    """Runs each pass a first time as it is, and takes what heads read then from what they read.

    Args:
        model: The TransformerBridge.
        heads: Of the defence.
        values: Its `strength`: how often it is taken.
    """

    def __init__(self, model: Any, heads: Sequence[Head], values: Mapping[str, Tensor]):
        self.network, self.heads, self.strength = model.original_model, heads, float(values["strength"])
        self.first: dict[int, Tensor] = {}
        self.past: Any = None
        self.reading = False

    def begin(self, ids: Int[Tensor, "batch position"], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A forward pass begins: it is run once before, with a cache of its own.

        Args:
            ids: All tokens, those of earlier passes included.
            arguments: Of the pass.
            options: Of the pass.
        """
        given: Any = options.get("past_key_values")
        before = 0 if given is None else int(given.get_seq_length())
        if not before:
            own = {"past_key_values": None, "use_cache": options.get("use_cache") is not False}
        else:  # by itself the first reading would have gone on from a cache of its own
            own = {} if self.past is None else {"past_key_values": self.past}
        self.reading = True
        try:
            found = self.network(*arguments, **(options | own))
        finally:
            self.reading = False
        if own:
            self.past = getattr(found, "past_key_values", None)
        elif given is not None:
            given.crop(before - ids.shape[1])

    def hooks(self) -> Iterator[Hook]:
        """Nothing has to be seen before."""
        return iter(())

    def change(
        self, rows: Float[Tensor, "batch query head width"], numbers: Sequence[int]
    ) -> Float[Tensor, "batch query head width"]:
        """What one layer's heads are left with.

        Args:
            rows: What they have read.
            numbers: Which of the defence's heads they are.
        """
        layer = self.heads[numbers[0]][0]
        if self.reading:
            self.first[layer] = rows
            return rows
        return rows - self.strength * self.first[layer]


REREAD: dict[str, type[OwnTokens] | type[Subtracted]] = {"own-token": OwnTokens, "subtracted": Subtracted}
"""Methods that change what a head has read by what it reads."""
