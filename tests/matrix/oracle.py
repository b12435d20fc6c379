"""What every verb should give, computed by a loop of edits on the plain Hugging Face model.

Every function takes a `Plain` and token tensors of one length, and runs whole forward passes. Metrics are those of the
last position, logit(false) - logit(true) before any soft cap and after any scale of the logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.matrix.plain import Edit, Plain

HEADS = ("z", "q", "k", "v", "pattern", "attn_scores")
BY_QUERY = ("pattern", "attn_scores")
SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", *HEADS)
_ROWS = 2048  # run at once

CAPPED = False  # whether logit differences are read after a model's soft cap


@dataclass(frozen=True)
class Answers:
    """Of each example, the answers' first tokens."""

    true: Tensor
    false: Tensor

    def repeat(self, times: int) -> "Answers":
        """For every example `times` rows, variants outermost."""
        return Answers(self.true.repeat(times), self.false.repeat(times))


def read(run: Any, answers: Answers, metric: str = "logit-difference", clean: Tensor | None = None) -> Tensor:
    """The metric of each row at the last position, in float64 from the model's own logits.

    Args:
        run: What `Plain.run` gave.
        answers: Of each row.
        metric: `logit-difference`, `probability` or `kl`.
        clean: For `kl`, the clean run's logits of each row.
    """
    capped = run.logits[:, -1].double()
    if metric == "kl":
        assert clean is not None
        target = clean.double().log_softmax(-1)
        return (target.exp() * (target - capped.log_softmax(-1))).sum(-1)
    chosen = capped if CAPPED else run.uncapped[:, -1].double()
    chosen = capped.softmax(-1) if metric == "probability" else chosen
    return (chosen.gather(1, answers.false[:, None]) - chosen.gather(1, answers.true[:, None]))[:, 0]


def _put(site: str, value: Tensor, rows: slice, head: int | None, to: list[int], new: Tensor) -> None:
    """Write `new`, a site's activation at positions, into some rows of `value`."""
    index: tuple[Any, ...]
    if site in BY_QUERY:
        index = (rows, head, to, slice(None, new.shape[-1]))
    elif site in HEADS:
        index = (rows, to, head)
    else:
        index = (rows, to)
    value[index] = new


def _get(site: str, value: Tensor, head: int | None, at: list[int]) -> Tensor:
    if site in BY_QUERY:
        return value[:, head, at]
    return value[:, at, head] if site in HEADS else value[:, at]


@torch.no_grad()
def patched(
    plain: Plain,
    base: Tensor,
    source: Tensor,
    answers: Answers,
    site: str,
    groups: Sequence[Sequence[int]],
    *,
    metric: str = "logit-difference",
    clean: Tensor | None = None,
    heads: Sequence[Sequence[int]] | None = None,
    beyond: int = 0,
    read_runs: Any = None,
    ablate: bool = False,
) -> np.ndarray:
    """The metric where one site of one layer (and head) at a group of positions is the source run's.

    Args:
        plain: The model.
        base: The run that is patched.
        source: Where activations come from.
        answers: Of each example.
        site: Which activation.
        groups: Positions counted from the end of the context.
        metric: As for `read`.
        clean: The clean runs' logits, for `kl`.
        heads: Sets of heads patched together; each alone by default.
        beyond: Positions of `base` behind the context.
        read_runs: A function of (run, rows of examples) instead of the metric.
        ablate: Whether zeros are put in, and nothing of the source run.

    Returns:
        (batch, layer, set of heads, group).
    """
    kept = plain.run(source, keep=[site]).kept[site]
    if ablate:
        kept = {layer: torch.zeros_like(value) for layer, value in kept.items()}
    size, ends = len(base), (base.shape[1] - beyond, source.shape[1])
    sets = heads if heads is not None else [[head] for head in range(plain.heads(site))]
    jobs = [(layer, chosen, group) for layer in range(plain.layers) for chosen in sets for group in groups]
    step, found = max(1, _ROWS // size), []
    for first in range(0, len(jobs), step):
        some = jobs[first : first + step]

        def edit(name: str, layer: int, value: Tensor, some: Any = some) -> Tensor:
            if name != site:
                return value
            value = value.clone()
            for number, (at, chosen, group) in enumerate(some):
                if at != layer:
                    continue
                rows = slice(number * size, (number + 1) * size)
                to, come = ([end + position for position in group] for end in ends)
                for head in chosen:
                    _put(site, value, rows, head, to, _get(site, kept[layer], head, come))
            return value

        run = plain.run(base.repeat(len(some), 1), edit=edit)
        every = answers.repeat(len(some))
        if read_runs is not None:
            values = read_runs(run, len(some))
        else:
            values = read(run, every, metric, None if clean is None else clean.repeat(len(some), 1))
        found.append(values.view(len(some), size))
    shape = plain.layers, len(sets), len(groups), size
    return torch.cat(found).view(shape).permute(3, 0, 1, 2).double().numpy()


@torch.no_grad()
def whole_answer(
    plain: Plain,
    base: Tensor,
    source: Tensor,
    true: Sequence[int],
    false: Sequence[int],
    site: str,
    groups: Sequence[Sequence[int]],
) -> np.ndarray:
    """log Pr[false answer] - log Pr[true answer] of the patched run that goes on into the answer.

    Args:
        plain: The model.
        base: The run that is patched, one example's: (1, position).
        source: Where activations come from.
        true: The true answer's tokens.
        false: The false answer's.
        site: Which activation.
        groups: Positions counted from the end of the context.
    """
    nobody = Answers(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    total = 0.0
    pieces = [(sign, *piece) for sign, ids in ((1.0, false), (-1.0, true)) for piece in _pieces(plain, list(ids))]
    for sign, before, answer in pieces:
        base_here = torch.cat([base, torch.tensor([before], dtype=torch.long)], 1)
        ids = torch.tensor([answer])
        longer = torch.cat([base_here, ids[:, :-1]], 1)

        def of_answer(run: Any, times: int, ids: Tensor = ids) -> Tensor:
            logp = run.logits[:, -ids.shape[1] :].double().log_softmax(-1)
            return logp.gather(2, ids.repeat(len(logp), 1)[:, :, None]).sum((1, 2))

        total = total + sign * patched(
            plain, longer, source, nobody, site, groups, beyond=longer.shape[1] - base.shape[1], read_runs=of_answer
        )
    return np.asarray(total)


def _pieces(plain: Plain, answer: list[int]) -> list[tuple[list[int], list[int]]]:
    """What comes before, and what is scored in one run: a token at a time where positions see those behind them."""
    return [([], answer)] if plain.causal else [(answer[:at], [token]) for at, token in enumerate(answer)]


def log_probability(plain: Plain, ids: Sequence[int], start: int) -> float:
    """Of a text's tokens from `start` on, in nats."""
    total, context, answer = 0.0, list(ids[:start]), list(ids[start:])
    for before, scored in _pieces(plain, answer):
        tokens = [*context, *before, *scored[:-1]]
        with torch.no_grad():
            logp = plain.run(torch.tensor([tokens])).logits[0, -len(scored) :].double().log_softmax(-1)
        total += float(logp.gather(1, torch.tensor(scored)[:, None]).sum())
    return total


@torch.no_grad()
def knocked_out(
    plain: Plain,
    tokens: Tensor,
    answers: Answers,
    hidden: Tensor,
    sets: Sequence[Sequence[tuple[int, int]]],
    *,
    renormalise: bool,
    metric: str = "logit-difference",
    clean: Tensor | None = None,
) -> np.ndarray:
    """The metric where some heads pay nothing to what is hidden from a position.

    Args:
        plain: The model.
        tokens: The hijacked runs.
        answers: Of each.
        hidden: (batch, query, key): what is not seen.
        sets: Sets of heads (layer, head), each cut by itself, its heads together.
        renormalise: Whether what is left sums to what it would if the hidden positions were not there.
        metric: As for `read`.
        clean: The clean runs' logits, for `kl`.

    Returns:
        (batch, set).
    """
    size = len(tokens)
    every = hidden.repeat(len(sets), 1, 1)

    def edit(name: str, layer: int, value: Tensor) -> Tensor:
        if name != "pattern":
            return value
        value = value.clone()
        for number, chosen in enumerate(sets):
            rows = slice(number * size, (number + 1) * size)
            for at, head in chosen:
                if at != layer:
                    continue
                before = value[rows, head]
                left = before.masked_fill(every[rows], 0.0)
                if renormalise:  # as if hidden positions had scores of -inf: a sink keeps its place
                    sink = 1 - before.sum(-1, keepdim=True) if plain.kind == "gpt_oss" else 0.0
                    left = left / (left.sum(-1, keepdim=True) + sink)
                value[rows, head] = left
        return value

    run = plain.run(tokens.repeat(len(sets), 1), edit=edit)
    found = read(run, answers.repeat(len(sets)), metric, None if clean is None else clean.repeat(len(sets), 1))
    return found.view(len(sets), size).T.numpy()


@torch.no_grad()
def exchanged(
    plain: Plain, clean: Tensor, hijacked: Tensor, answers: Answers, sets: Sequence[Sequence[tuple[int, int]]]
) -> np.ndarray:
    """The metric of the hijacked run with the last position's pattern, values or both of some heads the clean run's.

    Args:
        plain: The model.
        clean: The clean runs.
        hijacked: The hijacked runs, of the same length.
        answers: Of each.
        sets: Sets of heads.

    Returns:
        (batch, set, twin).
    """
    source = plain.run(clean, keep=["pattern", "values"]).kept
    size, twins = len(clean), ("pattern", "values", "both")
    jobs = [(chosen, twin) for chosen in sets for twin in twins]
    seen: dict[int, Tensor] = {}

    def edit(name: str, layer: int, value: Tensor) -> Tensor:
        if name not in ("pattern", "z"):
            return value
        value = value.clone()
        for number, (chosen, twin) in enumerate(jobs):
            rows = slice(number * size, (number + 1) * size)
            for at, head in chosen:
                if at != layer:
                    continue
                if name == "pattern" and twin != "values":
                    value[rows, head, -1] = source["pattern"][layer][:, head, -1]
                if name == "z" and twin != "pattern":
                    values = source["values"][layer]
                    averaged = values[:, head if values.shape[1] > 1 else 0]
                    value[rows, -1, head] = torch.einsum("bs,bsw->bw", seen[layer][rows, head, -1].to(values), averaged)
        if name == "pattern":
            seen[layer] = value
        return value

    run = plain.run(hijacked.repeat(len(jobs), 1), edit=edit)
    found = read(run, answers.repeat(len(jobs)))
    return found.view(len(sets), len(twins), size).permute(2, 0, 1).numpy()


def _leaves(plain: Plain, site: str, start: dict[int, Tensor] | None, leaves: dict[int, Tensor]) -> Edit:
    """An edit that makes a site's activations leaves of the graph, at `start` or where they are."""

    def edit(name: str, layer: int, value: Tensor) -> Tensor:
        if name != site or (start is not None and layer not in start):
            return value
        leaves[layer] = torch.zeros_like(value).requires_grad_()
        return (value if start is None else start[layer].to(value)) + leaves[layer]

    return edit


def _apart(site: str, base: Tensor, source: Tensor, groups: Sequence[Sequence[int]]) -> list[Tensor]:
    """For each group, source less base at its positions and 0 elsewhere, in the base run's shape."""
    axis, found = (2 if site in BY_QUERY else 1), []
    for group in groups:
        difference = torch.zeros_like(base)
        for position in group:
            to, come = base.shape[axis] + position, source.shape[axis] + position
            change = source.select(axis, come) - base.select(axis, to)
            hidden = torch.isneginf(base.select(axis, to)) & torch.isneginf(source.select(axis, come))
            difference.select(axis, to).copy_(change.masked_fill(hidden, 0.0))
        found.append(difference)
    return found


def _by_head(site: str, products: Tensor) -> Tensor:
    """(batch, head): summed over everything else."""
    if site in BY_QUERY:
        return products.sum((2, 3))
    return products.sum((1, 3)) if site in HEADS else products.sum((1, 2))[:, None]


def attributed(
    plain: Plain, base: Tensor, source: Tensor, answers: Answers, site: str, groups: Sequence[Sequence[int]]
) -> np.ndarray:
    """The metric's gradient at the base run times source less base.

    Args:
        plain: The model.
        base: The run that would be patched.
        source: Where activations would come from.
        answers: Of each example.
        site: Which activation.
        groups: Positions counted from the end.

    Returns:
        (batch, layer, head, group).
    """
    with torch.no_grad():
        values, other = (plain.run(tokens, keep=[site]).kept[site] for tokens in (base, source))
    leaves: dict[int, Tensor] = {}
    with torch.enable_grad():
        run = plain.run(base, edit=_leaves(plain, site, None, leaves))
        read(run, answers).sum().backward()
    effects = []
    for layer in range(plain.layers):
        gradient = leaves[layer].grad
        assert gradient is not None
        differences = _apart(site, values[layer], other[layer], groups)
        effects.append(torch.stack([_by_head(site, gradient.double() * each.double()) for each in differences], -1))
    return torch.stack(effects, 1).numpy()


def integrated(
    plain: Plain,
    base: Tensor,
    source: Tensor,
    answers: Answers,
    site: str,
    groups: Sequence[Sequence[int]],
    steps: int,
) -> np.ndarray:
    """The mean gradient on the straight way from base to source, layer by layer, times the difference.

    Args:
        plain: The model.
        base: The run that would be patched.
        source: Where activations would come from.
        answers: Of each example.
        site: Which activation.
        groups: Positions counted from the end.
        steps: Points of the Gauss-Legendre rule.

    Returns:
        (batch, layer, head, group).
    """
    with torch.no_grad():
        values, other = (plain.run(tokens, keep=[site]).kept[site] for tokens in (base, source))
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    size, effects = len(base), []
    way = torch.from_numpy((nodes + 1) / 2).repeat_interleave(size)  # steps outermost
    share = torch.from_numpy(weights / 2).repeat_interleave(size)
    for layer in range(plain.layers):
        found = []
        for difference in _apart(site, values[layer], other[layer], groups):
            shape = (-1, *(1 for _ in difference.shape[1:]))
            start = values[layer].repeat(steps, *(1 for _ in shape[1:])).double()
            start = start + way.view(shape) * difference.repeat(steps, *(1 for _ in shape[1:])).double()
            leaves: dict[int, Tensor] = {}
            with torch.enable_grad():
                run = plain.run(base.repeat(steps, 1), edit=_leaves(plain, site, {layer: start}, leaves))
                read(run, answers.repeat(steps)).sum().backward()
            gradient = leaves[layer].grad
            assert gradient is not None
            mean = (gradient.double() * share.view(shape)).view(steps, *difference.shape).sum(0)
            found.append(_by_head(site, mean * difference.double()))
        effects.append(torch.stack(found, -1))
    return torch.stack(effects, 1).numpy()


@dataclass(frozen=True)
class Direct:
    """The metric of each run as a sum, norms frozen.

    Attributes:
        pattern: Of the last position, (batch, layer, head, key).
        recall: What each value writes, (batch, layer, head, key), before the norms' scale.
        scale: Of the final norm and of any norm after attention, (batch, layer).
        attention_bias: (batch, layer).
        mlp: (batch, layer).
        embedding: (batch).
        constant: (batch).
        metric: (batch).
    """

    pattern: np.ndarray
    recall: np.ndarray
    scale: np.ndarray
    attention_bias: np.ndarray
    mlp: np.ndarray
    embedding: np.ndarray
    constant: np.ndarray
    metric: np.ndarray

    @property
    def by_source(self) -> np.ndarray:
        """Each head's effect by the position it looks at."""
        return self.pattern * self.recall * self.scale[..., None, None]

    @property
    def heads(self) -> np.ndarray:
        """Each head's effect."""
        return self.by_source.sum(-1)

    @property
    def total(self) -> np.ndarray:
        """Of all parts."""
        return self.heads.sum((1, 2)) + self.mlp.sum(1) + self.embedding + self.attention_bias.sum(1) + self.constant


class Frozen:
    """A norm with its scale held at what it is for `x`: linear in what `x` is the sum of, plus a bias.

    Args:
        norm: A layer norm or an RMS norm of Hugging Face's, or None.
        x: (batch, d).
    """

    def __init__(self, norm: Any, x: Tensor):
        x = x.double()
        kind = type(norm).__name__
        self.centred = "RMSNorm" not in kind and norm is not None
        weight = getattr(norm, "weight", None)
        self.gain = torch.ones(x.shape[-1]).double() if weight is None else weight.double()
        if kind in ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm", "NemotronLayerNorm1P"):
            self.gain = 1 + self.gain
        bias = getattr(norm, "bias", None)
        self.bias = torch.zeros(x.shape[-1]).double() if bias is None else bias.double()
        eps = float(getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", None) or 1e-5)
        middle = x - x.mean(-1, keepdim=True) if self.centred else x
        self.scale = torch.ones(len(x)).double() if norm is None else (middle.square().mean(-1) + eps).rsqrt()
        if norm is not None and norm.parameters is not None:
            given = norm(x.to(weight.dtype if weight is not None else x.dtype)).double()
            mine = self.unscaled(x) * self.scale[:, None] + self.bias
            near = 1e-5 if weight is None or weight.dtype in (torch.float32, torch.float64) else 0.05
            assert torch.allclose(given, mine, rtol=near, atol=near), f"{kind} is not as the oracle reads it"

    def unscaled(self, part: Tensor) -> Tensor:
        """A part through the norm, but for the scale and the bias."""
        part = part.double()
        return (part - part.mean(-1, keepdim=True) if self.centred else part) * self.gain


def _final(model: Any) -> tuple[Any, Any]:
    """The final norm, and what follows it before the unembedding."""
    for path in (
        "transformer.ln_f", "transformer.norm_f", "gpt_neox.final_layer_norm", "model.decoder.final_layer_norm",
        "model.final_layernorm", "model.norm",
    ):  # fmt: skip
        found = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found, getattr(getattr(getattr(model, "model", None), "decoder", None), "project_out", None)
    return None, getattr(getattr(getattr(model, "model", None), "decoder", None), "project_out", None)


@torch.no_grad()
def direct(plain: Plain, tokens: Tensor, answers: Answers) -> Direct:
    """What each part writes at the last position along the answers' direction, every norm's scale frozen.

    Args:
        plain: The model.
        tokens: The runs.
        answers: Of each.
    """
    assert plain.kind != "opt" or plain.config.do_layer_norm_before, "norms behind the sums: there is no such sum"
    run = plain.run(tokens, keep=["pattern", "values", "z", "resid_pre", "resid_post", "mlp_out"])
    kept, last = run.kept, plain.layers - 1
    norm, projected = _final(plain.model)
    frozen = Frozen(norm, kept["resid_post"][last][:, -1])
    output = plain.model.get_output_embeddings() or plain.model.get_input_embeddings()
    difference = output.weight[answers.false].double() - output.weight[answers.true].double()
    difference = difference if projected is None else difference @ projected.weight.double()
    logit_scale = float(getattr(plain.config, "logit_scale", None) or 1.0) if plain.kind.startswith("cohere") else 1.0
    logit_scale /= float(getattr(plain.config, "logits_scaling", None) or 1.0)

    def along(part: Tensor) -> Tensor:  # (batch, ..., d) before the final norm's scale
        written = frozen.unscaled(part)
        return torch.einsum("b...d,bd->b...", written, difference) * logit_scale

    recall, scale, biases, mlps = [], [], [], []
    for layer, place in enumerate(plain.places):
        weight = (
            place.write.weight.double() if hasattr(place.write, "weight") else torch.eye(difference.shape[1]).double()
        )
        weight = weight if type(place.write).__name__ == "Conv1D" else weight.T  # (heads * width, d)
        bias = getattr(place.write, "bias", None)
        raw = kept["z"][layer][:, -1].double().flatten(1) @ weight
        raw = raw if bias is None else raw + bias.double()
        after = Frozen(place.after_attention, raw)
        own = weight.view(place.heads, -1, weight.shape[1])
        values = kept["values"][layer].double()
        values = values.expand(-1, place.heads, -1, -1)
        written = torch.einsum("bhsw,hwd->bhsd", values, own)
        recall.append(along(after.unscaled(written)) * place.multiplier)
        scale.append(frozen.scale * after.scale)
        constant = after.bias if bias is None else after.bias + after.unscaled(bias) * after.scale[:, None]
        biases.append(along(constant.expand(len(tokens), -1)) * frozen.scale * place.multiplier)
        mlps.append(along(kept["mlp_out"][layer][:, -1]) * frozen.scale)
    constant = torch.einsum("d,bd->b", frozen.bias, difference) * logit_scale
    if getattr(output, "bias", None) is not None:
        constant = constant + (output.bias[answers.false] - output.bias[answers.true]).double() * logit_scale
    embedding = along(kept["resid_pre"][0][:, -1]) * frozen.scale * plain.residual
    columns = [torch.stack([kept["pattern"][layer][:, :, -1] for layer in range(plain.layers)], 1).double()]
    columns += [torch.stack(part, 1) for part in (recall, scale, biases, mlps)]
    return Direct(*(part.numpy() for part in (*columns, embedding, constant, read(run, answers))))


def shapley_of_product(base: Sequence[np.ndarray], source: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each of three factors' share of the change of their product, in closed form."""
    found = []
    for own in range(3):
        (y0, z0), (y1, z1) = ([side[i] for i in range(3) if i != own] for side in (base, source))
        change = source[own] - base[own]
        found.append(change * (y0 * z0 / 3 + y1 * z0 / 6 + y0 * z1 / 6 + y1 * z1 / 3))
    return found


def split_parts(
    clean: Direct, hijacked: Direct, members: Sequence[np.ndarray], clean_members: Sequence[np.ndarray], aligned: bool
) -> dict[str, np.ndarray]:
    """What `split` gives, by group of positions.

    Args:
        clean: Of the clean runs.
        hijacked: Of the hijacked runs.
        members: For each group, which positions of the hijacked run are in it (and shared with the clean run).
        clean_members: The same of the clean run.
        aligned: Whether the runs are of equal length; else the first group is what the hijacked run alone has.

    Returns:
        Parts (batch, layer, head, group).
    """

    def summed(effect: np.ndarray, groups: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([effect[..., mask].sum(-1) for mask in groups], -1)

    total = summed(hijacked.by_source, members) - summed(clean.by_source, clean_members)
    if not aligned:
        inserted = np.zeros_like(total)
        inserted[..., 0] = total[..., 0]
        return {"total": total, "inserted": inserted, "shared": total - inserted}
    sides = [(run.pattern, run.recall, run.scale[..., None, None]) for run in (clean, hijacked)]
    parts = shapley_of_product(*sides)
    return {"total": total} | {
        name: summed(part, members) for name, part in zip(("attention", "recall", "scale"), parts, strict=True)
    }
