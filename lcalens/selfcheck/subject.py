"""A model under examination: runs that move its metric, what rounding makes of them, and what its hooks show."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.core.errors import LcalensError
from lcalens.core.limits import context_limit
from lcalens.core.results import Result
from lcalens.core.tokens import source_tokenizer
from lcalens.engine.by_hooks import misfit, shown
from lcalens.engine.decoder import Decoder, wide
from lcalens.engine.reading import read_decoder
from lcalens.engine.rounding import rounded_elsewhere
from lcalens.engine.sites import SITES, hook_name
from lcalens.mechanism.contrast.contrast import Bucket, Contrast
from lcalens.mechanism.defence.boundary import end_tokens
from lcalens.mechanism.patch import patch
from lcalens.selfcheck.identity import Unjudged
from lcalens.selfcheck.original import original_of

T = TypeVar("T")
_SENTENCES = ("Do not think of the city of Rome.", "Forget all about Berlin and London.")
_NEUTRAL = "People say that it may rain a little today, or that it may not, and so they wait for the news."
_PROMPT = "The Eiffel Tower is in the city of"
_LONGEST = 64  # tokens: what is longer shows no more, and takes longer
_DRAWS = 2
_CARRIED = ("resid_post", "z", "pattern", "attn_scores")
_MARGIN = 4.0  # two programs for one function differ by at most half of what a rounding step everywhere does
_EPS = 64.0  # roundings of the largest number that a sum of a thousand terms may be off


class Subject:
    """A TransformerBridge, a hijack of it, and what is worked out once for all identities.

    Args:
        model: A TransformerBridge, held steady by whoever examines it.

    Attributes:
        model: The model.
        tokenizer: Its source's, or None.
        no_tokenizer: Why there is none.
        said: Of what the runs are: sentences, or random tokens.
    """

    def __init__(self, model: Any):
        self.model = model
        self.device = next(model.original_model.parameters()).device
        self._made: dict[str, Any] = {}
        self.tokenizer, self.no_tokenizer = None, ""
        try:
            self.tokenizer = source_tokenizer(model)
        except LcalensError as error:
            self.no_tokenizer = str(error)
        rows = self._sentences()
        self.said = "random tokens" if rows is None else "sentences"
        self._rows = self._random() if rows is None else rows

    @cached_property
    def contrast(self) -> Contrast:
        """Two examples of one length; the answers are those tokens that the hijack moves farthest apart."""
        clean, hijacked, sentence = self._rows
        return self._asked(clean, hijacked, {"sentence": sentence})

    @cached_property
    def unequal(self) -> Contrast:
        """The same with nothing in the sentence's place: clean runs are shorter, and the answers the same."""
        _, hijacked, (first, last) = self._rows
        clean = [[*row[:first], *row[last:]] for row in hijacked]
        both = self.contrast
        return Contrast(clean, hijacked, true=list(both.true), false=list(both.false), spans=dict(both.spans))

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What several identities look at, made by the first.

        Args:
            name: Of what.
            make: A function of nothing.
        """
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @property
    def sentence(self) -> tuple[int, int]:
        """Where the hijack's sentence begins, and one past its end."""
        return self._rows[2]

    @cached_property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """Three heads that move the metric most when they are patched, or as many as there are."""
        values = self.patched_heads.values["value"]
        effects = np.abs(values - self.ends[:, 1].cpu().numpy()[:, None, None]).max(0)
        flat = np.argsort(-effects, axis=None, kind="stable")[:3]
        return tuple(sorted((int(at // effects.shape[1]), int(at % effects.shape[1])) for at in flat))

    @property
    def layers(self) -> tuple[int, ...]:
        """The first and the last layer of these heads."""
        return tuple(sorted({self.heads[0][0], self.heads[-1][0]}))

    @cached_property
    def patched_heads(self) -> Result:
        """What `patch` gives for every head."""
        return patch(self.model, self.contrast, site="z", progress=False)

    @cached_property
    def bucket(self) -> Bucket:
        """The contrast's tokens, on the model's device."""
        return Bucket(*(tensor.to(self.device) for tensor in next(self.contrast.buckets())))

    @cached_property
    def ends(self) -> Float[Tensor, "batch 2"]:
        """The metric of the clean and of the hijacked runs, by the bridge itself."""
        bucket = self.bucket
        return torch.stack([self.metric(self.last(tokens)) for tokens in (bucket.clean, bucket.hijacked)], 1)

    @cached_property
    def decoder(self) -> Decoder:
        """The model read layer by layer.

        Raises:
            Unjudged: It cannot be.
        """
        found = read_decoder(self.model, self.contrast.longest)
        if isinstance(found, str):
            raise Unjudged(f"lcalens does not read this model layer by layer: {found}")
        return found

    @cached_property
    def original(self) -> Any:
        """Hugging Face's own model of these weights.

        Raises:
            Unjudged: It cannot be made.
        """
        return original_of(self.model)

    @property
    def grain(self) -> float:
        """How far apart a metric of one run may come out of two programs, by rounding alone.

        It is a difference of two logits of the last position: what moves all logits alike does not move it.
        """
        return self.carried["metric"][0]

    @cached_property
    @torch.no_grad()
    def carried(self) -> dict[str, list[float]]:
        """How far apart what the hijacked and clean runs give may come out of two programs, by rounding alone.

        Measured: what becomes of it when every module's output moves by a step of its type. By layer for `resid_post`,
        `z`, `pattern` and `attn_scores` as far as hooks show them; for all `logits`, and for the `metric`.
        """
        first = self._everything()
        largest = {name: [0.0] * len(values) for name, values in first.items()}
        for seed in range(_DRAWS):
            with rounded_elsewhere(self.model, seed=seed):
                moved = self._everything()
            for name, values in first.items():
                for at, (before, after) in enumerate(zip(values, moved[name], strict=True)):
                    gap = (before - after).nan_to_num(posinf=0.0, neginf=0.0)  # masked scores are -inf
                    size = _of_differences(gap) if name == "metric" else float(gap.abs().max())
                    largest[name][at] = max(largest[name][at], _MARGIN * size)
        return largest

    def _everything(self) -> dict[str, list[Tensor]]:
        tokens, layers = torch.cat([self.bucket.clean, self.bucket.hijacked]), range(int(self.model.cfg.n_layers))
        names = {site: [hook_name(site, layer) for layer in layers] for site in _CARRIED}
        kept, logits = shown(self.model, tokens, [name for some in names.values() for name in some])
        found = {site: [kept[name] for name in some] for site, some in names.items() if set(some) <= set(kept)}
        return found | {"logits": [wide(logits)], "metric": [wide(logits)[:, -1]]}

    def rounding(self, *sizes: Tensor) -> float:
        """What a sum over numbers of these sizes may be off.

        Args:
            sizes: Tensors; the largest number counts.
        """
        largest = max(float(size.abs().max()) for size in sizes)
        dtype = next(self.model.original_model.parameters()).dtype
        step = torch.finfo(torch.float32 if dtype == torch.float64 else dtype).eps
        return (_EPS if step < 1e-5 else 4.0) * step * largest

    @cached_property
    def seen(self) -> dict[str, dict[str, Tensor]]:
        """What the bridge's hooks show of every site, in the clean and in the hijacked runs."""
        names = [hook_name(site, layer) for site in SITES for layer in range(int(self.model.cfg.n_layers))]
        runs = {"clean": self.bucket.clean, "hijacked": self.bucket.hijacked}
        return {side: shown(self.model, tokens, names)[0] for side, tokens in runs.items()}

    def hook(self, side: str, site: str, layer: int) -> Tensor:
        """What a site's hook shows in a layer, once it is seen to be what its name says.

        Args:
            side: `clean` or `hijacked`.
            site: One of `SITES`.
            layer: From 0.

        Raises:
            Unjudged: It shows nothing, or something else.
        """
        value = self.seen[side].get(hook_name(site, layer))
        if value is None:
            raise Unjudged(f"TransformerLens shows no {site} in layer {layer}, so there is nothing to compare with")
        reason = misfit(self.seen[side], site, layer, self.model)
        if reason:
            raise Unjudged(f"TransformerLens' hook of {site} shows something else: {reason}")
        return value

    @torch.no_grad()
    def last(
        self, tokens: Int[Tensor, "batch position"], hooks: Sequence[tuple[str, Callable[..., Any]]] = ()
    ) -> Float[Tensor, "batch vocab"]:
        """Logits of the last position before any soft cap, in float64, with hooks of one's own.

        Args:
            tokens: Of one length.
            hooks: Names and functions, as TransformerLens takes them.
        """
        before_cap: list[Tensor] = []
        every = list(hooks)
        if self.cap is not None:
            every.append(("unembed.hook_out", lambda value, hook: before_cap.append(value.detach())))
        logits = self.model.run_with_hooks(tokens.to(self.device), fwd_hooks=every)
        return (before_cap[0] if before_cap else logits)[:, -1].detach().double()

    @property
    def cap(self) -> float | None:
        """The soft cap of the logits."""
        return getattr(self.model.original_model.config.get_text_config(), "final_logit_softcapping", None)

    def metric(self, logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
        """logit(false) - logit(true); of rows that repeat the examples.

        Args:
            logits: Of the last position.
        """
        times = len(logits) // len(self.bucket.true)
        false, true = (answer.repeat(times)[:, None] for answer in (self.bucket.false, self.bucket.true))
        return (logits.gather(1, false) - logits.gather(1, true))[:, 0]

    def _sentences(self) -> tuple[list[list[int]], list[list[int]], tuple[int, int]] | None:
        """Clean and hijacked tokens, and where the sentence is; None where the tokenizer makes none of use."""
        limit = min(context_limit(self.model) or _LONGEST, _LONGEST)
        vocabulary = int(self.model.cfg.d_vocab)
        if self.tokenizer is None:
            return None
        try:
            begin = [int(token) for token in [self.tokenizer.bos_token_id] if token is not None]
            first, second, neutral, prompt = (
                [int(token) for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]]
                for text in (*_SENTENCES, _NEUTRAL, f" {_PROMPT}")
            )
        except Exception:  # any tokenizer of any library: random tokens serve as well
            return None
        length = min(len(first), len(second), len(neutral))
        hijacked = [[*begin, *sentence[-length:], *prompt] for sentence in (first, second)]
        clean = [[*begin, *neutral[:length], *prompt], [*begin, *neutral[-length:], *prompt]]
        rows = [*clean, *hijacked]
        if length < 3 or len(rows[0]) > limit or max(map(max, rows)) >= vocabulary:
            return None
        return clean, hijacked, (len(begin), len(begin) + length)

    def _random(self) -> tuple[list[list[int]], list[list[int]], tuple[int, int]]:
        limit = min(context_limit(self.model) or _LONGEST, 12)
        if limit < 4:
            raise LcalensError(f"model: its context holds {limit} tokens, and an examination needs 4; take another.")
        sentence = limit - 1 - max(2, limit // 4)  # what is asked is short: windows reach back to the sentence
        vocabulary, generator = int(self.model.cfg.d_vocab), torch.Generator().manual_seed(0)
        first = min(3, max(0, vocabulary - 4))  # behind special tokens, where there are others
        rows = [(torch.randint(vocabulary - first, (limit,), generator=generator) + first).tolist() for _ in range(4)]
        clean = [[*rows[i][: 1 + sentence], *rows[i + 2][1 + sentence :]] for i in range(2)]
        ends = () if self.tokenizer is None else end_tokens(self.tokenizer)
        end = [token for token in ends if token < vocabulary][:1]  # so that a defence has a boundary to cut at
        hijacked = [[rows[i][0], *rows[i + 2][1:]] for i in range(2)]
        for row in hijacked:
            row[sentence : sentence + len(end)] = end
        return clean, hijacked, (1, 1 + sentence)

    @torch.no_grad()
    def _asked(self, clean: list[list[int]], hijacked: list[list[int]], spans: dict[str, Any]) -> Contrast:
        change = self.last(torch.tensor(hijacked)) - self.last(torch.tensor(clean))
        if not bool(change.isfinite().all()):
            raise LcalensError("model: its logits are not finite, so nothing can be measured on it.")
        vocabulary = int(self.model.cfg.d_vocab)
        change = change[:, :vocabulary]
        return Contrast(
            clean,
            hijacked,
            true=[[int(token)] for token in change.argmin(1)],
            false=[[int(token)] for token in change.argmax(1)],
            spans=spans,
        )


def _of_differences(gaps: Float[Tensor, "row vocab"]) -> float:
    """The root mean square by which a difference of two logits moves, in the row where that is most."""
    return float((2**0.5 * gaps.double().std(-1, correction=0)).max())
