"""Training steps of many models at once: counts, gradients written out, AdamW.

A stack holds R models of one shape. Batch b of model r is (counts, last token, target); with E the embeddings, a row
each, and G the gradient of the mean cross-entropy in the logits:

    Q = E W_Q^T,   K = E W_K^T                                           (vocab, d_a)
    A = softmax(Q[last] K^T / sqrt(d_a) + log counts)                    (batch, vocab)
    h = A E,   u = h W_V^T,   logits = u E^T                             (batch, d), (batch, d), (batch, vocab)

    dW_V = (G E)^T h,   dA = (G E W_V) E^T,   dS = softmax'(dA) / sqrt(d_a)
    dE   = G^T u + A^T (G E W_V) + dK W_K + dQ W_Q,   dK = dS^T Q[last],   dQ[last] += dS K

which the tests compare with autograd. Memory is O(B V): no table of V x V.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lcalens.lca.model.model import LCAConfig, LCAForCausalLM

_BETAS = (0.9, 0.999)
_EPS = 1e-8
NAMES = ("embed", "v", "k", "q")
softmax_backward = torch.ops.aten._softmax_backward_data.out


class Stack:
    """R models of one shape, their optimiser's state, and one step of training them all.

    Attributes:
        parameters: `embed` (R, V, d), `v` (R, d, d), `k` and `q` (R, d_a, d).
        moments: The first and second moments of what is trained, flat: (2, R x trained numbers).
        steps: Steps taken.
    """

    def __init__(self, models: Sequence[LCAForCausalLM], lr: Sequence[float], weight_decay: Sequence[float]):
        config = models[0].config
        self.scale = 1 / math.sqrt(config.d_head)
        self.trained = [name for name, trains in zip(NAMES, _trains(config), strict=True) if trains]
        weights = {name: torch.stack([weights_of(model)[name].detach() for model in models]) for name in NAMES}
        device, trained = weights["embed"].device, [weights[name] for name in self.trained]
        size = sum(weight.numel() for weight in trained)
        self._flat, self._gradient, self._update = (torch.zeros(size, device=device) for _ in range(3))
        self.moments = torch.zeros(2, size, device=device)
        self.parameters, self.gradients, start = dict(weights), {}, 0
        for name, weight in zip(self.trained, trained, strict=True):
            place = slice(start, start := start + weight.numel())
            self.parameters[name] = self._flat[place].view(weight.shape).copy_(weight)
            self.gradients[name] = self._gradient[place].view(weight.shape)
        rates = torch.tensor([lr, [rate * decay for rate, decay in zip(lr, weight_decay, strict=True)]])
        self._lr, self._decay = (
            torch.cat([rates.repeat_interleave(weight[0].numel(), 1) for weight in trained], 1).to(device)
            if trained
            else torch.zeros(2, 0)
        )
        self.steps = 0
        self._buffers: dict[str, Tensor] = {}
        self._buffers_for = 0

    @torch.no_grad()
    def step(
        self,
        log_counts: Float[Tensor, "run batch vocab"],
        last: Int[Tensor, "run batch"],
        target: Int[Tensor, "run batch"],
        rate: float,
    ) -> Float[Tensor, " run"]:
        """Train on one batch each.

        Args:
            log_counts: The logarithm of how often each token occurs in the context.
            last: The last token.
            target: The concept.
            rate: The schedule's factor on each model's learning rate.

        Returns:
            The batch's mean cross-entropy before the step, in nats; it saturates near 87.
        """
        loss = self.backward(log_counts, last, target)
        self._adamw(rate)
        return loss

    @torch.no_grad()
    def forward(
        self, log_counts: Float[Tensor, "run batch vocab"], last: Int[Tensor, "run batch"]
    ) -> Float[Tensor, "run batch vocab"]:
        """The last position's logits; they lie in the workspace until the next call.

        Args:
            log_counts: The logarithm of how often each token occurs in the context.
            last: The last token.
        """
        embed, v, k, q = (self.parameters[name] for name in NAMES)
        work, d_head = self._workspace(log_counts.shape[1]), k.shape[1]
        keys = torch.bmm(embed, k.mT, out=work["keys"])  # (run, vocab, d_a)
        queries, asked = work["queries"], torch.bmm(embed, q.mT, out=work["asked"])  # every token's query
        torch.index_select(asked.view(-1, d_head), 0, self._places(last), out=queries.view(-1, d_head))
        scores = torch.baddbmm(log_counts, queries, keys.mT, alpha=self.scale, out=work["scores"])
        pattern = torch.softmax(scores, -1, out=work["pattern"])  # (run, batch, vocab)
        looked = torch.bmm(pattern, embed, out=work["looked"])  # (run, batch, d)
        recalled = torch.bmm(looked, v.mT, out=work["recalled"])
        return torch.bmm(recalled, embed.mT, out=work["scores"])

    @torch.no_grad()
    def backward(
        self,
        log_counts: Float[Tensor, "run batch vocab"],
        last: Int[Tensor, "run batch"],
        target: Int[Tensor, "run batch"],
    ) -> Float[Tensor, " run"]:
        """The loss; its gradients go into `gradients`.

        Args:
            log_counts: The logarithm of how often each token occurs in the context.
            last: The last token.
            target: The concept.
        """
        logits = self.forward(log_counts, last)
        embed, v, k, q = (self.parameters[name] for name in NAMES)
        batch, bmm = last.shape[1], torch.bmm
        work = self._workspace(batch)
        keys, queries, pattern = work["keys"], work["queries"], work["pattern"]
        wrong = torch.softmax(logits, -1, out=work["wrong"])  # becomes the gradient in the logits
        right = wrong.gather(2, target[..., None])
        loss = -right.clamp(min=torch.finfo(right.dtype).tiny).log().mean((1, 2))
        wrong.scatter_(2, target[..., None], right - 1)  # times 1 / batch, which the products below put in
        d_recalled = _product(wrong, embed, 1 / batch, into=work["d_recalled"])  # (run, batch, d)
        if "v" in self.trained:
            bmm(d_recalled.mT, work["looked"], out=self.gradients["v"])
        if "embed" not in self.trained and "k" not in self.trained:
            return loss
        d_looked = bmm(d_recalled, v, out=work["d_looked"])
        if "embed" in self.trained:
            _product(wrong.mT, work["recalled"], 1 / batch, into=self.gradients["embed"])
            self.gradients["embed"].baddbmm_(pattern.mT, d_looked)
        # Embeddings move the attention too, whether or not W_K and W_Q are trained.
        d_pattern = bmm(d_looked, embed.mT, out=work["scores"])
        softmax_backward(d_pattern, pattern, -1, pattern.dtype, grad_input=work["wrong"])
        d_scores, d_head = work["wrong"], keys.shape[2]
        d_keys = _product(d_scores.mT, queries, self.scale, into=work["d_keys"])
        d_queries = _product(d_scores, keys, self.scale, into=work["d_queries"])
        d_asked = work["asked"].zero_()
        d_asked.view(-1, d_head).index_add_(0, self._places(last), d_queries.view(-1, d_head))
        if "k" in self.trained:
            bmm(d_keys.mT, embed, out=self.gradients["k"])
            bmm(d_asked.mT, embed, out=self.gradients["q"])
        if "embed" in self.trained:
            self.gradients["embed"].baddbmm_(d_keys, k).baddbmm_(d_asked, q)
        return loss

    def _places(self, last: Int[Tensor, "run batch"]) -> Int[Tensor, " row"]:
        """Where the last tokens' embeddings lie when all models' are one table."""
        runs, vocab, _ = self.parameters["embed"].shape
        return (last + torch.arange(runs, device=last.device)[:, None] * vocab).flatten()

    def _workspace(self, batch: int) -> dict[str, Tensor]:
        """Buffers for a batch of this size, kept: fresh memory costs more than what is computed in it."""
        if self._buffers_for != batch:
            runs, vocab, d = self.parameters["embed"].shape
            d_head, like = self.parameters["k"].shape[1], self.parameters["embed"]
            shapes = {
                **dict.fromkeys(("scores", "pattern", "wrong"), (batch, vocab)),
                **dict.fromkeys(("looked", "recalled", "d_recalled", "d_looked"), (batch, d)),
                **dict.fromkeys(("queries", "d_queries"), (batch, d_head)),
                **dict.fromkeys(("keys", "d_keys", "asked"), (vocab, d_head)),
            }
            self._buffers = {name: like.new_empty(runs, *shape) for name, shape in shapes.items()}
            self._buffers_for = batch
        return self._buffers

    def _adamw(self, rate: float) -> None:
        """AdamW (Loshchilov and Hutter 2019), each model with its own learning rate and decay."""
        self.steps += 1
        (first, second), gradient, update = self.moments, self._gradient, self._update
        first.lerp_(gradient, 1 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        torch.sqrt(second, out=update).div_(math.sqrt(1 - _BETAS[1] ** self.steps)).add_(_EPS)
        torch.div(first, update, out=update)
        self._flat.addcmul_(self._flat, self._decay, value=-rate)
        self._flat.addcmul_(update, self._lr, value=-rate / (1 - _BETAS[0] ** self.steps))

    @property
    def trained_numbers(self) -> Float[Tensor, " number"]:
        """What is trained, flat; writing into it changes the models."""
        return self._flat

    @torch.no_grad()
    def drop(self, run: int) -> None:
        """Train one model no more: its weights become 0 and stay so, and the others are not touched."""
        for name in NAMES:
            self.parameters[name][run] = 0
        for numbers in (self._lr, self._decay, *self.moments):
            start = 0
            for name in self.trained:
                shape = self.parameters[name].shape
                numbers[start : start + shape.numel()].view(shape)[run] = 0
                start += shape.numel()

    @torch.no_grad()
    def write(self, model: LCAForCausalLM, run: int) -> None:
        """Put one run's weights into a model of its shape."""
        for name, weight in weights_of(model).items():
            weight.copy_(self.parameters[name][run])


def _product(
    a: Float[Tensor, "run i j"], b: Float[Tensor, "run j k"], factor: float, *, into: Float[Tensor, "run i k"]
) -> Float[Tensor, "run i k"]:
    return torch.baddbmm(into, a, b, beta=0, alpha=factor, out=into)


def _trains(config: LCAConfig) -> tuple[bool, bool, bool, bool]:
    return config.train_embedding, config.train_value, config.train_attention, config.train_attention


def weights_of(model: LCAForCausalLM) -> dict[str, Tensor]:
    """The model's weights by the names of a stack's parameters.

    Args:
        model: A model.
    """
    attention = model.attn
    return {
        "embed": model.embed.weight,
        "v": attention.v.weight,
        "k": attention.k.weight,
        "q": attention.q.weight,
    }
