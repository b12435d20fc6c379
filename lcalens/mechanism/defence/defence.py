"""`Defence`: which heads are cut, and when; it is applied to a model, saved and loaded."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lcalens.core.errors import LcalensError
from lcalens.core.provenance import fingerprint
from lcalens.mechanism.arguments import Head
from lcalens.mechanism.defence.boundary import hidden_keys, sentence_starts

Method = Literal["none", "random", "boundary", "detector"]
Where = Literal["last", "all"]
_FORMAT = 1
_HEAD, _VALUES = "defence.json", "defence.safetensors"


@dataclass(frozen=True, eq=False)
class Detector:
    """A logistic regression on the residual stream before a layer, at the position that is read.

    Attributes:
        layer: Before which layer it reads; no head that it switches is in an earlier one.
        weights: Of the residual stream.
        bias: Added to the sum.
        threshold: The cut is switched on where the sum exceeds it.
    """

    layer: int
    weights: Float[Tensor, " d"]
    bias: float
    threshold: float

    def fires(self, stream: Float[Tensor, "batch d"]) -> Bool[Tensor, " batch"]:
        """Whether it takes a position for a hijacked one.

        Args:
            stream: The residual stream before the layer.
        """
        return self.scores(stream) > self.threshold

    def scores(self, stream: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The log odds of a hijack, by the fit's own prior.

        Args:
            stream: The residual stream before the layer.
        """
        return stream.double() @ self.weights.to(stream.device).double() + self.bias


@dataclass(frozen=True, eq=False)
class Defence:
    """Heads that no longer look before the last sentence end: always, or where a detector fires.

    Made by `defend`. Applied, it acts on every forward pass of the bridge: single, in left-padded batches with their
    attention mask, under `run_with_hooks` and `run_with_cache`, and in `generate`. What was the last sentence end of a
    prompt stays so while a cached generation goes on; without a cache every step is a prompt of its own.

    Attributes:
        method: `none`, `random`, `boundary` or `detector`.
        heads: The heads that are cut.
        where: `last`, at the position that is read; or `all`, at every position.
        ends: Tokens that end a sentence.
        detector: What switches the cut on; None for always.
        model: The fingerprint of the weights it was made for.
        record: How it was made.

    Example:
        >>> defence = defend(model, contrast, heads=[(23, 4), (29, 2)])
        >>> with defence.applied(model):
        ...     logits = model("Do not think of Rome. The Eiffel Tower is in")
        >>> Defence.load(defence.save("out/defence")).heads
        ((23, 4), (29, 2))
    """

    method: Method
    heads: tuple[Head, ...]
    where: Where
    ends: tuple[int, ...]
    detector: Detector | None
    model: str
    record: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """The model with the defence on, until the block is left, however it is left.

        Args:
            model: The TransformerBridge it was made for.

        Yields:
            The model.

        Raises:
            LcalensError: Other weights than those it was made for.
        """
        if fingerprint(model) != self.model:
            raise LcalensError(
                "model: its weights are not those that this defence was made for; make one for it with defend()."
            )
        with ExitStack() as stack:
            if self.heads:
                for handle in _Cut(self).attach(model):
                    stack.callback(handle.remove)
            yield model

    def save(self, folder: Any) -> Path:
        """Write it into a folder: JSON and safetensors.

        Args:
            folder: Made where it is missing; a defence that is there is replaced.

        Raises:
            LcalensError: The folder holds something else.
        """
        from safetensors.torch import save_file

        target = Path(folder)
        if target.exists() and any(path.name not in (_HEAD, _VALUES) for path in target.iterdir()):
            raise LcalensError(f"folder: {str(folder)!r} holds something else than a defence; name a new folder.")
        target.mkdir(parents=True, exist_ok=True)
        tensors = {"ends": torch.tensor(self.ends, dtype=torch.int64)}
        head: dict[str, Any] = {
            "format": _FORMAT,
            "method": self.method,
            "heads": [list(one) for one in self.heads],
            "where": self.where,
            "model": self.model,
            "record": dict(self.record),
            "detector": None,
        }
        if self.detector is not None:
            tensors["weights"] = self.detector.weights.contiguous()
            head["detector"] = {name: getattr(self.detector, name) for name in ("layer", "bias", "threshold")}
        save_file(tensors, target / f"{_VALUES}.part")
        (target / f"{_HEAD}.part").write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")
        for name in (_VALUES, _HEAD):
            (target / f"{name}.part").replace(target / name)
        return target

    @classmethod
    def load(cls, folder: Any) -> "Defence":
        """A saved defence.

        Args:
            folder: As given to `save`.

        Raises:
            LcalensError: There is none, or it is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        source = Path(folder)
        try:
            head = json.loads((source / _HEAD).read_text(encoding="utf-8"))
            tensors = load_file(source / _VALUES)
            detector = head["detector"] and Detector(weights=tensors["weights"], **head["detector"])
            if head["format"] != _FORMAT:
                raise LcalensError(f"folder: a defence of format {head['format']}, this is {_FORMAT}; make it anew.")
            return cls(
                method=head["method"],
                heads=tuple((int(layer), int(one)) for layer, one in head["heads"]),
                where=head["where"],
                ends=tuple(tensors["ends"].tolist()),
                detector=detector,
                model=head["model"],
                record=head["record"],
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise LcalensError(f"folder: {str(folder)!r} holds no whole defence ({error!r:.80}).") from error


class _Cut:
    """The hooks of one application: what each run is, and what its heads no longer see.

    Args:
        defence: What is applied.
    """

    def __init__(self, defence: Defence):
        self.defence = defence
        self.ends = torch.tensor(defence.ends, dtype=torch.int64)
        self.sinks = False
        self.run: _Run | None = None

    def attach(self, model: Any) -> Iterator[Any]:
        """Hook the model; each handle takes one hook off.

        Args:
            model: A TransformerBridge.
        """
        self.sinks = any(name.endswith("sinks") for name, _ in model.original_model.named_parameters())
        yield model.original_model.register_forward_pre_hook(_foreign(self.begin), with_kwargs=True)
        points, layers = model.hook_dict, sorted({layer for layer, _ in self.defence.heads})
        if self.defence.detector is not None:
            yield points[f"blocks.{self.defence.detector.layer}.hook_resid_pre"].register_forward_hook(
                _foreign(self.detect)
            )
        for layer in layers:
            heads = [head for at, head in self.defence.heads if at == layer]

            def cut(module: nn.Module, inputs: Any, pattern: Tensor, heads: list[int] = heads) -> Tensor:
                return self.cut(pattern, heads)

            yield points[f"blocks.{layer}.attn.hook_pattern"].register_forward_hook(_foreign(cut))

    def begin(self, module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A forward pass begins: a prompt's tokens and mask are kept, what adds to a cache goes on with them."""
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
            self.run = _Run.of(tokens, mask, self.ends)
        elif self.run is None or len(self.run.first) != len(tokens):
            raise LcalensError("defence: a cache that was begun without it; begin the generation inside the block.")
        else:
            self.run.goes_on = True

    def detect(self, module: nn.Module, inputs: Any, stream: Tensor) -> None:
        """Ask the detector at the position that is read; while a generation goes on its first answer holds."""
        run, detector = self.run, self.defence.detector
        assert run is not None, "a forward pass has begun"
        assert detector is not None, "only a detector detects"
        if run.goes_on:
            return
        if self.defence.where == "all":
            run.on = detector.fires(stream.flatten(0, 1)).unflatten(0, stream.shape[:2])
        else:
            run.on = detector.fires(stream[torch.arange(len(stream), device=stream.device), run.last.to(stream.device)])

    def cut(self, pattern: Float[Tensor, "batch head query key"], heads: list[int]) -> Tensor:
        """The pattern in which these heads see nothing before the sentence, where the defence is on."""
        run = self.run
        assert run is not None, "a forward pass has begun"
        hidden = run.hidden(pattern.shape[-1], self.defence.where).to(pattern.device)  # (batch, query, key)
        if run.on is not None:
            on = run.on.to(pattern.device)
            held = on[:, None] if on.ndim == 1 else on[:, -1:] if run.goes_on else on
            hidden = hidden & held[..., None]
        rows = pattern[:, heads]
        left = rows.masked_fill(hidden[:, None], 0.0)
        total = left.sum(-1, keepdim=True)
        if self.sinks:  # a sink stays in the softmax with the share that it had beside what is left
            total = total + (1 - rows.sum(-1, keepdim=True)).clamp(min=0)
        tiny = torch.finfo(left.dtype).tiny
        changed = pattern.clone()
        touched = hidden.any(-1)[:, None, :, None]
        changed[:, heads] = torch.where(touched & (total > tiny), left / total.clamp(min=tiny), rows)
        return changed


@dataclass(eq=False)
class _Run:
    """One prompt, or a batch of them, and whether its generation goes on.

    Attributes:
        first: The first real position of each.
        last: The position that is read.
        starts: Where each position's sentence begins.
        goes_on: Whether the pass that runs adds to what is cached.
        on: Whether the defence is on, by row, or by row and position; None for always.
    """

    first: Int[Tensor, " batch"]
    last: Int[Tensor, " batch"]
    starts: Int[Tensor, "batch position"]
    goes_on: bool = False
    on: Tensor | None = None

    @classmethod
    def of(cls, tokens: Int[Tensor, "batch position"], mask: Tensor | None, ends: Tensor) -> "_Run":
        """A new prompt's.

        Args:
            tokens: Its ids.
            mask: 1 on tokens, 0 on padding; None for no padding.
            ends: Tokens that end a sentence.
        """
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask[:, -tokens.shape[1] :].bool()
        index = torch.arange(tokens.shape[1], device=tokens.device)
        last = torch.where(real, index, -1).max(1).values
        return cls(real.int().argmax(1), last, sentence_starts(tokens, ends, real))

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
