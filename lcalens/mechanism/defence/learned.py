"""What a defence learns by descent: which heads are cut, and a direction of the residual stream."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from lcalens.core.checks import check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.core.progress import ProgressCallback, progress_callback
from lcalens.core.provenance import fingerprint
from lcalens.core.stamp import holds_steady
from lcalens.core.tokens import source_tokenizer
from lcalens.engine.decoder import Decoder
from lcalens.mechanism.arguments import check_contrast, read_layers
from lcalens.mechanism.contrast.contrast import Contrast
from lcalens.mechanism.defence.boundary import end_tokens
from lcalens.mechanism.defence.cut import Cut
from lcalens.mechanism.defence.defence import Defence
from lcalens.mechanism.defence.fit import Negatives, features, rows_by_kind
from lcalens.mechanism.defence.last import Prompts, prompts, way_of
from lcalens.mechanism.leading import Leading

_STRETCH, _HEAT = (-0.1, 1.1), 2 / 3  # of the hard concrete distribution, as Louizos et al. have them
_RATE = 0.05
_TOKENS = 512  # in a step
Steps = Callable[[Prompts], Float[Tensor, "row vocab"]]


@holds_steady
def learn_heads(
    model: Any,
    contrast: Contrast,
    k: int = 10,
    *,
    negatives: Negatives | None = None,
    kl: float | int = 1.0,
    sparsity: float | int = 0.02,
    steps: int = 300,
    seed: int = 0,
    progress: bool | ProgressCallback = True,
) -> Leading:
    """Which heads to cut, learned: a gate for every head, closed as far as that gives the clean run's answer back.

    A gate is hard concrete (Louizos et al. 2018): 0 leaves the head as it is, 1 lets it see nothing before the last
    sentence end, at the position that is read. What is minimised is KL(clean || hijacked and cut) of the next token,
    plus `kl` times KL(undefended || cut) on texts that are no hijacks, plus `sparsity` times the expected number of
    heads that are cut at all.

    Args:
        model: A TransformerBridge with a tokenizer, that lcalens reads layer by layer.
        contrast: Clean and hijacked runs.
        k: How many heads are taken, those whose gates are open widest.
        negatives: As for `defend`; needed unless `kl` is 0, a mask for the task alone.
        kl: The weight of texts that are no hijacks.
        sparsity: The weight of each head.
        steps: Of Adam.
        seed: Of the gates' noise and of the batches.
        progress: True for a bar, False for silence, or a function of (done, total, what).

    Returns:
        The heads in order of their gates, with the rule in words; they go wherever heads do.

    Raises:
        LcalensError: An argument that cannot be used.

    Example:
        >>> heads = learn_heads(model, contrast, 5, kl=0, steps=2)
        >>> defence = defend(model, contrast, heads=heads)
    """
    check_int("k", k, low=1)
    check_int("steps", steps, low=1)
    check_real("kl", kl, low=0)
    check_real("sparsity", sparsity, low=0)
    check_contrast(model, contrast)
    decoder = read_layers(model, "learn_heads", contrast)
    tokenizer = source_tokenizer(model)
    if kl == 0:
        rows: dict[str, Any] = {"hijacked": list(contrast.hijacked), "clean prompts": list(contrast.clean)}
    else:
        rows = rows_by_kind(model, tokenizer, contrast, negatives)
    heads = tuple((layer, head) for layer, one in enumerate(decoder.layers) for head in range(one.heads))
    cut = Defence(method="boundary", heads=heads, where="last", ends=end_tokens(tokenizer), detector=None,
                  model=fingerprint(model))  # fmt: skip
    wide = torch.full((len(heads),), -1.0, requires_grad=True)
    noise = torch.Generator().manual_seed(seed)
    low, high = _STRETCH

    def opened() -> Tensor:
        drawn = torch.rand(len(heads), generator=noise).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((drawn.log() - (-drawn).log1p() + wide) / _HEAT)
        return (low + (high - low) * soft).clamp(0, 1)

    def expected() -> Tensor:
        return torch.sigmoid(wide - _HEAT * torch.log(torch.tensor(-low / high))).sum()

    _descend(
        model, rows, [wide], lambda some: some.run(Cut(cut, model, gates=opened())),
        penalty=lambda: sparsity * expected(), kl=kl, steps=steps, seed=seed, progress=progress,
    )  # fmt: skip
    order = wide.detach().argsort(descending=True, stable=True)[:k].tolist()
    rule = f"widest gates after {steps} steps, KL {kl:g} and {sparsity:g} a head, of {len(contrast)} examples"
    return Leading(tuple(heads[at] for at in order), rule)


def learn_direction(
    model: Any,
    decoder: Decoder,
    rows: Mapping[str, Sequence[Sequence[int]]],
    layer: int,
    *,
    steps: int = 200,
    seed: int = 0,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The direction of the stream before a layer whose part, set to the clean runs' mean, gives their answers back.

    In the manner of Minder et al. 2025, who learn it so that exchanging the part switches a model between its context
    and what it knows; here it is set to one level, and other texts are to keep their next token.

    Args:
        model: The TransformerBridge.
        decoder: The same model.
        rows: Token ids by kind: hijacked runs, their clean runs in the same order, and texts that are no hijacks.
        layer: Before which it is.
        steps: Of Adam.
        seed: Of the first direction and of the batches.

    Returns:
        Its values, as `Defence` keeps them, and what is to be told.
    """
    width = decoder.unembed.shape[1]
    free = torch.randn(width, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    clean = torch.from_numpy(features(decoder, rows["clean prompts"], layer, "residual", ()).mean(0)).float()
    made = fingerprint(model)

    def values() -> dict[str, Tensor]:
        along = normalize(free, dim=0)
        return {"direction": along, "level": clean.to(along) @ along, "layer": torch.tensor(layer)}

    def under(some: Prompts) -> Tensor:
        turned = Defence(method="direction", heads=(), where="last", ends=(), detector=None, model=made,
                         values=values())  # fmt: skip
        return some.run(Cut(turned, model))

    losses = _descend(model, rows, [free], under, penalty=lambda: torch.zeros(()), kl=1.0, steps=steps, seed=seed,
                      progress=False)  # fmt: skip
    found = {name: value.detach().clone() for name, value in values().items()}
    return found, {"layer": layer, "steps": steps, "loss": losses}


def _descend(
    model: Any,
    rows: Mapping[str, Sequence[Sequence[int]]],
    learned: list[Tensor],
    under: Steps,
    *,
    penalty: Callable[[], Tensor],
    kl: float | int,
    steps: int,
    seed: int,
    progress: bool | ProgressCallback,
) -> list[float]:
    """Adam; the losses of the first and of the last tenth of the steps are told."""
    hijacked, clean, *others = ([tuple(row) for row in some] for some in rows.values())
    quiet = [row for some in others for row in some]
    way = way_of(model, hijacked + quiet)
    if not way.cached:
        raise LcalensError("model: its last token does not come out of a cache as without one; nothing is learned so.")
    targets = torch.zeros(0)
    for some in prompts(model, clean, way):
        logs = some.logits.log_softmax(-1).float()
        targets = torch.zeros(len(clean), logs.shape[1]) if not len(targets) else targets
        targets[some.indices] = logs.cpu()
    runs = list(prompts(model, hijacked, way, tokens=_TOKENS))
    still = list(prompts(model, quiet, way, tokens=_TOKENS)) if kl and quiet else []
    order = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(learned, lr=_RATE)
    losses: list[float] = []
    with _frozen(model), torch.enable_grad(), progress_callback(progress, unit="steps") as report:
        for step in range(steps):
            one = runs[int(torch.randint(len(runs), (1,), generator=order))]
            loss = _divergence(targets[one.indices], under(one)) + penalty()
            if still:
                other = still[int(torch.randint(len(still), (1,), generator=order))]
                loss = loss + kl * _divergence(other.logits.log_softmax(-1).float(), under(other))
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(float(loss.detach()))
            report(step + 1, steps, "learned")
    tenth = max(1, steps // 10)
    return [sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth]


def _divergence(before: Float[Tensor, "row vocab"], after: Float[Tensor, "row vocab"]) -> Float[Tensor, ""]:
    """KL(before || after), the mean over rows."""
    logs = after.log_softmax(-1)
    before = before.to(logs)
    return (before.exp() * (before - logs)).sum(-1).mean()


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """No weight asks for a gradient."""
    asked = [weight for weight in model.original_model.parameters() if weight.requires_grad]
    for weight in asked:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in asked:
            weight.requires_grad_(True)
