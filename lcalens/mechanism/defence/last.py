"""The last position of many prompts under many defences: each prompt is run once, then its last token from the cache.

A defence of the last position changes nothing before it, so the keys and values there are those of the undefended run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.mechanism.defence.cut import Cut
from lcalens.mechanism.defence.defence import Defence

Rows = Sequence[tuple[int, ...] | None]
_TOKENS = 4096  # run at once
_CLOSE = 1e-4


@dataclass(frozen=True)
class Way:
    """How a model's prompts can be run without a change to what comes out.

    Attributes:
        padded: Shorter rows beside longer ones, padded on the left.
        cached: The last token from a cache of all before it.
    """

    padded: bool
    cached: bool


@dataclass(frozen=True, eq=False)
class Prompts:
    """Some prompts that ran together, undefended.

    Attributes:
        model: The TransformerBridge.
        indices: Which rows they are.
        ids: Their tokens, padded on the left.
        mask: 1 on tokens; None without padding.
        logits: The next token's.
        cache: Keys and values of all positions; None where each defence runs the whole prompt.
    """

    model: Any
    indices: list[int]
    ids: Int[Tensor, "row position"]
    mask: Int[Tensor, "row position"] | None
    logits: Float[Tensor, "row vocab"]
    cache: Any

    def begins(self, begins: Sequence[int | None]) -> list[int]:
        """Where each prompt's own text begins, of all rows'; 0 where that is not known.

        Args:
            begins: Of all rows.
        """
        return [begins[index] or 0 for index in self.indices]

    def under(self, defence: Defence, begins: Sequence[int | None] | None = None) -> Float[Tensor, "row vocab"]:
        """The next token's logits with a defence on.

        Args:
            defence: Made for this model.
            begins: For `span`, of all rows where the text begins.
        """
        if defence.method == "none":
            return self.logits
        own = None if defence.method != "span" else self.begins([None] * (max(self.indices) + 1) if begins is None
                                                                 else begins)  # fmt: skip
        return self.run(Cut(defence, self.model, begins=own))

    def run(self, cut: Cut) -> Float[Tensor, "row vocab"]:
        """The next token's logits with hooks on.

        Args:
            cut: The hooks, not yet attached.
        """
        handles = list(cut.attach())
        network = self.model.original_model
        options = {} if self.mask is None else {"attention_mask": self.mask}
        try:
            if self.cache is None or cut.defence.where == "all":
                return network(input_ids=self.ids, **options).logits[:, -1].double()
            with torch.no_grad():  # what an earlier run with gradients added is cut off, and its graph with it
                self.cache.crop(-1)
            cut.prime(self.ids, self.mask)
            found = network(input_ids=self.ids[:, -1:], past_key_values=self.cache, use_cache=True, **options)
            return found.logits[:, -1].double()
        finally:
            for handle in handles:
                handle.remove()


def prompts(model: Any, rows: Rows, way: Way, *, tokens: int = _TOKENS) -> Iterator[Prompts]:
    """Rows of like length together, some thousand tokens at a time.

    Args:
        model: The TransformerBridge.
        rows: Token ids; None for one that is left out.
        way: How they can be run.
        tokens: The most that run at once.
    """
    batches: list[list[int]] = []
    for index in sorted((at for at, row in enumerate(rows) if row is not None), key=lambda at: _length(rows, at)):
        length, batch = _length(rows, index), batches[-1] if batches else []
        alike = way.padded or not batch or _length(rows, batch[0]) == length
        if not batch or not alike or (len(batch) + 1) * length > tokens:
            batches.append([])
        batches[-1].append(index)
    for batch in batches:
        yield _run(model, rows, batch, way.cached)


def way_of(model: Any, rows: Rows) -> Way:
    """Whether the shortest row gives the same beside the longest as by itself, and from a cache as without.

    Args:
        model: The TransformerBridge.
        rows: Token ids.
    """
    order = sorted((at for at, row in enumerate(rows) if row is not None), key=lambda at: _length(rows, at))
    pair = [order[0], order[-1]]
    alone = torch.cat([_run(model, rows, [index], False).logits for index in pair])

    def close(logits: Tensor) -> bool:
        return bool((alone - logits).abs().max() <= _CLOSE * alone.abs().max())

    padded = close(_run(model, rows, pair, False).logits)
    return Way(padded, _caches(model, rows, pair, padded, close))


def _caches(model: Any, rows: Rows, pair: list[int], padded: bool, close: Callable[[Tensor], bool]) -> bool:
    """Whether the last token from a cache gives the same, twice; no cache, or one that cannot be cut, does not."""
    nothing = Defence(method="zero", heads=(), where="last", ends=(), detector=None, model="")
    runs = [_run(model, rows, some, True) for some in ([pair] if padded else [[one] for one in pair])]
    if not all(hasattr(one.cache, "crop") for one in runs):
        return False
    try:  # a second time, from a cache that has been cut
        return all(close(torch.cat([one.run(Cut(nothing, model)) for one in runs])) for _ in range(2))
    except (NotImplementedError, RuntimeError, ValueError):  # what transformers raises where a window has slid on
        return False


def _run(model: Any, rows: Rows, batch: list[int], cached: bool) -> Prompts:
    device = next(model.original_model.parameters()).device
    some = [rows[index] or () for index in batch]
    longest = max(map(len, some))
    ids = torch.tensor([(0,) * (longest - len(row)) + tuple(row) for row in some], device=device)
    mask = torch.tensor([(0,) * (longest - len(row)) + (1,) * len(row) for row in some], device=device)
    masked = None if bool(mask.all()) else mask
    options: dict[str, Any] = {} if masked is None else {"attention_mask": masked}
    if "logits_to_keep" in signature(model.original_model.forward).parameters:
        options["logits_to_keep"] = 1  # no other position's next token is read
    with torch.no_grad():
        found = model.original_model(input_ids=ids, use_cache=cached, **options)
    return Prompts(model, batch, ids, masked, found.logits[:, -1].double(), found.past_key_values if cached else None)


def _length(rows: Rows, index: int) -> int:
    row = rows[index]
    return 0 if row is None else len(row)
