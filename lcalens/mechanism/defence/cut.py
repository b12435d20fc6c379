"""The hooks of a defence that is applied: what each run is, and what its heads no longer see or write."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lcalens.core.errors import LcalensError
from lcalens.core.tokens import source_tokenizer
from lcalens.mechanism.defence.boundary import hidden_keys, sentence_starts, shares_name
from lcalens.mechanism.defence.plan import Plan
from lcalens.mechanism.defence.reread import REREAD, Subtracted

WRITES = ("zero", "mean", "resample")
"""Methods that replace what a head has read; others change where it looks, or the stream."""


class Cut:
    """A defence at one model, for as long as it is applied.

    Args:
        defence: What is applied.
        model: The TransformerBridge.
        begins: Where the text begins in each row, for `span`.
        gates: How much of each head's cut is made, in place of all of it; they may need gradients.
    """

    def __init__(
        self,
        defence: Plan,
        model: Any,
        *,
        begins: Sequence[int] | None = None,
        gates: Float[Tensor, " head"] | None = None,
    ):
        self.defence, self.model, self.begins, self.gates = defence, model, begins, gates
        self.ends = torch.tensor(defence.ends, dtype=torch.int64)
        self.sinks = any(name.endswith("sinks") for name, _ in model.original_model.named_parameters())
        self.tokenizer = source_tokenizer(model) if defence.method == "names" else None
        self.seed = int(defence.record.get("seed", 0))
        self.run: Run | None = None
        kind = REREAD.get(defence.method)
        self.reread = kind and kind(model, defence.heads, defence.values)

    def attach(self) -> Iterator[Any]:
        """Hook the model; each handle takes one hook off."""
        defence, points = self.defence, self.model.hook_dict
        yield self.model.original_model.register_forward_pre_hook(_foreign(self.begin), with_kwargs=True)
        if defence.method == "direction":
            layer = int(defence.values["layer"])
            yield points[f"blocks.{layer}.hook_resid_pre"].register_forward_hook(_foreign(self.turn))
        detector = defence.detector
        if detector is not None:
            for layer in range(detector.layer if detector.reads != "residual" else 0):
                yield points[f"blocks.{layer}.attn.hook_pattern"].register_forward_hook(_foreign(self.watch))
            yield points[f"blocks.{detector.layer}.hook_resid_pre"].register_forward_hook(_foreign(self.detect))
        for point, keep in self.reread.hooks() if self.reread else ():
            yield points[point].register_forward_hook(_foreign(keep))
        writes = self.reread or defence.method in WRITES
        site, act = ("z", self.write) if writes else ("pattern", self.look)
        for layer in sorted({layer for layer, _ in defence.heads}):
            numbers = [number for number, (at, _) in enumerate(defence.heads) if at == layer]

            def change(module: nn.Module, inputs: Any, value: Tensor, numbers: list[int] = numbers) -> Tensor:
                return act(value, [defence.heads[number][1] for number in numbers], numbers)

            yield points[f"blocks.{layer}.attn.hook_{site}"].register_forward_hook(_foreign(change))

    def prime(self, tokens: Int[Tensor, "batch position"], mask: Tensor | None) -> None:
        """The next pass reads the last position alone, from a cache of an undefended run of all before it.

        Args:
            tokens: The whole text, its last token included.
            mask: 1 on tokens, 0 on padding; None for no padding.
        """
        self._begins(tokens, mask)
        run = self._run()
        run.goes_on, run.tokens = True, run.tokens[:, :-1]

    def begin(self, module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A forward pass begins: a prompt's tokens and mask are kept, what adds to a cache goes on with them."""
        if isinstance(self.reread, Subtracted) and self.reread.reading:
            return
        tokens = options.get("input_ids", arguments[0] if arguments else None)
        mask = options.get("attention_mask")
        if not isinstance(tokens, Tensor) or tokens.ndim != 2:
            raise LcalensError("defence: a forward pass without token ids; give the model ids or text.")
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise LcalensError(
                "defence: a mask of its own shape, as studies that share beginnings have; use evaluate_defence()."
            )
        past = options.get("past_key_values")
        length = 0 if past is None else int(past.get_seq_length())
        if length == 0:
            self._begins(tokens, mask)
        elif self.run is None or self.run.tokens.shape != (len(tokens), length):
            raise LcalensError("defence: a cache that was begun without it; begin the generation inside the block.")
        else:
            self.run.goes_on, self.run.tokens = True, torch.cat([self.run.tokens, tokens], 1)
        if self.reread:
            self.reread.begin(self._run().tokens, arguments, options)

    def _begins(self, tokens: Tensor, mask: Tensor | None) -> None:
        self.run = run = Run.of(tokens, mask, self.ends)
        if self.defence.method == "resample":  # by what a row says, so that no row depends on those beside it
            rows = (row[first:].tolist() for row, first in zip(tokens, run.first.tolist(), strict=True))
            run.draw = torch.tensor([random.Random(f"{self.seed} {row}").random() for row in rows])
        if self.begins is not None:
            if len(self.begins) != len(tokens):
                raise LcalensError(f"begins: {len(self.begins)} for {len(tokens)} rows; give one for each.")
            own = run.first + torch.tensor(self.begins, device=tokens.device)
            run.starts = own[:, None].expand_as(tokens)
        if self.tokenizer is not None:
            of_last = run.starts.gather(1, run.last[:, None])[:, 0]
            shares = [
                shares_name(*(self.tokenizer.decode(row[first:last].tolist()) for first, last in ((a, b), (b, c + 1))))
                for row, a, b, c in zip(tokens, run.first.tolist(), of_last.tolist(), run.last.tolist(), strict=True)
            ]
            run.on = ~torch.tensor(shares, device=tokens.device)

    def watch(self, module: nn.Module, inputs: Any, pattern: Tensor) -> None:
        """Keep what each head of a layer before the detector pays to what is before the sentence."""
        if self.run is not None and self.run.on is None:
            self.run.seen.append(self._before(pattern))

    def _before(self, pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query"]:
        """The share of attention that is paid to what a cut would hide."""
        hidden = self._run().hidden(pattern.shape[-1], self.defence.where).to(pattern.device)
        return (pattern * hidden[:, None]).sum(-1)

    def _run(self) -> "Run":
        assert self.run is not None, "a forward pass has begun"
        return self.run

    def detect(self, module: nn.Module, inputs: Any, stream: Tensor) -> None:
        """Ask the detector at the position that is read; while a generation goes on its first answer holds."""
        run, detector = self._run(), self.defence.detector
        assert detector is not None, "only a detector detects"
        if run.on is not None:
            return
        parts = []
        if detector.reads != "attention":
            parts.append(stream)
        if detector.reads != "residual":
            parts.append(torch.cat([one.to(stream.device) for one in run.seen], 1).transpose(1, 2))
        features = torch.cat(parts, -1)
        if self.defence.where == "last":
            at = torch.full_like(run.last, -1) if run.goes_on else run.last
            features = features[torch.arange(len(features), device=stream.device), at.to(stream.device)]
        run.on = detector.fires(features)

    def _on(self, device: torch.device) -> Bool[Tensor, "batch query"] | None:
        """Whether the defence is on, by row and query of the pass that runs (or 1 for all of them)."""
        run = self._run()
        if run.on is None:
            return None
        on = run.on.to(device)
        return on[:, None] if on.ndim == 1 else on[:, -1:] if run.goes_on else on

    def look(
        self, pattern: Float[Tensor, "batch head query key"], heads: list[int], numbers: list[int]
    ) -> Float[Tensor, "batch head query key"]:
        """The pattern in which these heads see nothing before the sentence, where the defence is on.

        Args:
            pattern: The layer's.
            heads: The layer's heads.
            numbers: Which of the defence's they are.
        """
        hidden = self._run().hidden(pattern.shape[-1], self.defence.where).to(pattern.device)  # (batch, query, key)
        on = self._on(pattern.device)
        if on is not None:
            hidden = hidden & on[..., None]
        rows = pattern[:, heads]
        each = hidden[:, None].expand(-1, len(heads), -1, -1)
        if self.defence.method == "attention":
            most = self.defence.values["thresholds"][numbers].to(pattern)
            each = each & ((rows * each).sum(-1) > most[:, None])[..., None]
        left = rows.masked_fill(each, 0.0)
        total = left.sum(-1, keepdim=True)
        if self.sinks:  # a sink stays in the softmax with the share that it had beside what is left
            total = total + (1 - rows.sum(-1, keepdim=True)).clamp(min=0)
        tiny = torch.finfo(left.dtype).tiny
        cut = torch.where(each.any(-1, keepdim=True) & (total > tiny), left / total.clamp(min=tiny), rows)
        return self._changed(pattern, heads, cut, rows, numbers, (-1, 1, 1))

    def write(self, z: Tensor, heads: list[int], numbers: list[int]) -> Tensor:
        """What these heads have read, replaced or changed at the positions that are defended.

        Args:
            z: (batch, query, head, width), or the last two in one axis.
            heads: The layer's heads.
            numbers: Which of the defence's they are.
        """
        run, every = self._run(), self.model.cfg.n_heads
        split = z.unflatten(-1, (every, -1)) if z.ndim == 3 else z
        rows = split[:, :, heads]
        if self.reread:
            new = self.reread.change(rows, numbers)
        else:
            bank = self.defence.values["z"][:, numbers].to(z)  # (choice, head, width)
            chosen = torch.zeros(len(z), dtype=torch.long) if run.draw is None else (run.draw * len(bank)).long()
            new = bank[chosen.to(z.device)][:, None].expand_as(rows)
        if self.defence.where == "last" and not run.goes_on:
            at = torch.arange(z.shape[1], device=z.device) == run.last.to(z.device)[:, None]
            new = torch.where(at[..., None, None], new, rows)
        return self._changed(split, heads, new, rows, numbers, (-1, 1), dim=2).reshape(z.shape)

    def _changed(
        self, value: Tensor, heads: list[int], new: Tensor, rows: Tensor, numbers: list[int], shape: tuple[int, ...],
        dim: int = 1,
    ) -> Tensor:  # fmt: skip
        """A copy in which some heads have new values, as far as their gates go."""
        if self.gates is not None:
            new = rows + self.gates[numbers].to(rows).view(shape) * (new - rows)
        return value.index_copy(dim, torch.tensor(heads, device=value.device), new)

    def turn(self, module: nn.Module, inputs: Any, stream: Float[Tensor, "batch query d"]) -> Tensor:
        """The stream with its part along the direction set to what it is in clean runs."""
        run, values = self._run(), self.defence.values
        along = values["direction"].to(stream)
        moved = (values["level"].to(stream) - stream @ along)[..., None] * along
        if self.defence.where == "last" and not run.goes_on:
            at = torch.arange(stream.shape[1], device=stream.device) == run.last.to(stream.device)[:, None]
            moved = moved * at[..., None]
        return stream + moved


@dataclass(eq=False)
class Run:
    """One prompt, or a batch of them, and whether its generation goes on.

    Attributes:
        first: The first real position of each.
        last: The position that is read.
        starts: Where each position's sentence begins.
        tokens: All that have been read so far, padding included.
        goes_on: Whether the pass that runs adds to what is cached.
        on: Whether the defence is on, by row, or by row and position; None for always, or for not asked yet.
        seen: The shares of attention that a detector reads, layer by layer.
        draw: A number from 0 to 1 for each row, of which clean run its heads are given; None where there is one.
    """

    first: Int[Tensor, " batch"]
    last: Int[Tensor, " batch"]
    starts: Int[Tensor, "batch position"]
    tokens: Int[Tensor, "batch position"]
    goes_on: bool = False
    on: Tensor | None = None
    seen: list[Tensor] = field(default_factory=list)
    draw: Float[Tensor, " batch"] | None = None

    @classmethod
    def of(cls, tokens: Int[Tensor, "batch position"], mask: Tensor | None, ends: Tensor) -> "Run":
        """A new prompt's.

        Args:
            tokens: Its ids.
            mask: 1 on tokens, 0 on padding; None for no padding.
            ends: Tokens that end a sentence.
        """
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask[:, -tokens.shape[1] :].bool()
        index = torch.arange(tokens.shape[1], device=tokens.device)
        last = torch.where(real, index, -1).max(1).values
        return cls(real.int().argmax(1), last, sentence_starts(tokens, ends, real), tokens)

    def hidden(self, keys: int, where: str) -> Bool[Tensor, "batch query key"]:
        """What the queries of the pass that runs no longer see.

        Args:
            keys: How many keys there are.
            where: `last` or `all`.
        """
        of_last = self.starts.gather(1, self.last[:, None])
        if self.goes_on:  # the sentence of the prompt's last position began where it began
            return hidden_keys(of_last, self.first, keys)
        if where == "all":
            return hidden_keys(self.starts, self.first, keys)
        is_last = torch.arange(keys, device=self.last.device) == self.last[:, None]
        return hidden_keys(of_last.expand(-1, keys), self.first, keys) & is_last[..., None]


def _foreign(function: Any) -> Any:
    """The function, counted as somebody's hook: with it on, the model is another (see `active_hooks`)."""

    def hook(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **options)

    hook.__module__ = "a defence"
    return hook
