"""What a theorem says beside what is measured, and the measurements that several theorems share.

Verdicts are computed from the data by the rule in each function's docstring. Models are measured in double precision.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import pandas as pd
import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from lcalens.core.checks import check_int, check_real
from lcalens.core.errors import LcalensError
from lcalens.core.statistics import wilson
from lcalens.lca.model.model import LCAConfig, LCAForCausalLM
from lcalens.lca.world import bayes
from lcalens.lca.world.concepts import LatentConcepts
from lcalens.lca.world.sampling import Counts

Verdict = Literal["holds", "holds in part", "does not hold"]
# Logits whose difference is below this share of their scale are tied: single-precision weights are no finer.
TIE = 1e-6
_CONTEXTS = 1 << 18
_ROWS = 1 << 12


@dataclass(frozen=True, kw_only=True, eq=False)
class Claim:
    """A statement of the paper, what was measured of it, and whether it holds.

    Attributes:
        name: Which statement.
        claim: What it says, in one sentence.
        setting: The world and the sizes it was measured at.
        quantity: What `measured` is.
        measured: The number that the verdict rests on most.
        low: Lower end of its 95% interval; `measured` itself where it is exact.
        high: Upper end.
        expected: The value or the bound that the statement puts on it.
        verdict: `holds`, `holds in part` or `does not hold`; the rule is in the function's docstring.
        numbers: What else was measured.
        details: The measurements behind it, one per row.
    """

    name: str
    claim: str
    setting: str
    quantity: str
    measured: float
    low: float
    high: float
    expected: float
    verdict: Verdict
    numbers: Mapping[str, float] = field(default_factory=dict)
    details: pd.DataFrame = field(default_factory=pd.DataFrame)


def claims_frame(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row per claim, without `numbers` and `details`.

    Args:
        claims: The claims.
    """
    columns = ("name", "claim", "setting", "quantity", "measured", "low", "high", "expected", "verdict")
    return pd.DataFrame([{column: getattr(claim, column) for column in columns} for claim in claims], columns=columns)


def describe(concepts: LatentConcepts, *more: str) -> str:
    """The world in words, for a claim's setting.

    Args:
        concepts: The world.
        *more: What else belongs to the setting.
    """
    near = concepts.neighborhood
    near = f"{near} of {concepts.cluster_bits}" if near == "cluster" else near
    world = (f"m = {concepts.m}", f"omega = {concepts.omega:g}", f"beta = {concepts.beta:g}", f"N = {near}")
    return ", ".join((*world, *more))


def in_double(model: LCAForCausalLM) -> LCAForCausalLM:
    """A copy of the model in double precision.

    Args:
        model: The model.
    """
    return copy.deepcopy(model).double()


def random_model(concepts: LatentConcepts, d_model: int, generator: torch.Generator) -> LCAForCausalLM:
    """A model at its random initialisation; the global generator is left alone.

    Args:
        concepts: The world.
        d_model: d.
        generator: Where the randomness comes from.

    Raises:
        LcalensError: d_model is no integer above 0.
    """
    seed = int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LCAForCausalLM(LCAConfig(m=concepts.m, d_model=d_model))


def check_model(concepts: LatentConcepts, model: LCAForCausalLM) -> None:
    """Refuse what is no model of the toy world, or one of another vocabulary.

    Raises:
        LcalensError: It is.
    """
    if not isinstance(model, LCAForCausalLM):
        raise LcalensError(f"model: expected an LCAForCausalLM, got {type(model).__name__}.")
    if model.config.vocab_size != concepts.vocab_size:
        raise LcalensError(
            f"model: it has {model.config.vocab_size} tokens and the world {concepts.vocab_size}; give a model with "
            f"m = {concepts.m}."
        )


def check_rising(name: str, values: Any) -> None:
    """Refuse what is no sequence of finite numbers that rise.

    Raises:
        LcalensError: It is not.
    """
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise LcalensError(f"{name}: expected a sequence of rising numbers, got {values!r:.60}.")
    for value in values:
        check_real(name, value, low=-1e100, high=1e100)
    if any(after <= before for before, after in pairwise(values)):
        raise LcalensError(f"{name}: expected numbers that rise, got {values!r:.60}; sort them, each once.")


def right(logits: Float[Tensor, "batch vocab"], drawn: Counts) -> Float[Tensor, " batch"]:
    """1 where the target's logit is the largest, 1/k where it is one of k, 0 elsewhere.

    Args:
        logits: The last position's.
        drawn: The contexts.
    """
    scale = logits.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)
    return bayes.accuracy(logits / scale, drawn.target, tie=TIE)


@torch.no_grad()
def accuracy_over_lengths(
    concepts: LatentConcepts, model: LCAForCausalLM, lengths: Sequence[int], samples: int, generator: torch.Generator
) -> pd.DataFrame:
    """Accuracy at each length with Wilson's interval, and the Bayes-optimal classifier's on the same contexts.

    Args:
        concepts: The world.
        model: The model.
        lengths: Values of L.
        samples: Contexts at each.
        generator: Where the contexts come from.

    Returns:
        Columns `length`, `accuracy`, `low`, `high` and `bayes`. A tie of k logits counts as 1/k.

    Raises:
        LcalensError: A model of another vocabulary, no contexts, or lengths that do not rise.
    """
    check_model(concepts, model)
    check_rising("lengths", lengths)
    for length in lengths:
        check_int("lengths", length, low=1, why="a context holds at least its last token")
    check_int("samples", samples, low=1)
    exact = in_double(model)
    rows = []
    for length in lengths:
        drawn = concepts.sample_counts(samples, length, generator)
        hits = float(right(exact.from_counts(drawn.counts.double(), drawn.last), drawn).sum())
        low, high = wilson(round(hits), samples)
        best = bayes.bayes_accuracy(concepts, *drawn)
        rows.append({"length": length, "accuracy": hits / samples, "low": low, "high": high, "bayes": best})
    return pd.DataFrame(rows)


@torch.no_grad()
def population_margin(concepts: LatentConcepts, model: LCAForCausalLM) -> float:
    """By how much the target leads, at worst, in an infinitely long context.

    As L grows, token frequencies become p(. | y), so the model errs with probability going to 0 exactly where this is
    above 0. It is the least, over concepts y and last tokens, of the target's logit less the largest other, as a share
    of the range of the logits. O(V^2 d) for uniform attention and O(V^3 d) otherwise.

    Args:
        concepts: The world.
        model: The model.

    Raises:
        LcalensError: A model of another vocabulary.
    """
    check_model(concepts, model)
    exact, tokens = in_double(model), torch.arange(concepts.vocab_size)
    looks = bool(exact.attn.q.weight.any() and exact.attn.k.weight.any())
    offsets = concepts.neighbors(0) if looks else concepts.neighbors(0)[:1]  # uniform attention ignores the last token
    p, worst = concepts.offset_log_p.exp(), float("inf")
    for pair in torch.cartesian_prod(tokens, offsets).split(_ROWS):
        y, offset = pair.unbind(1)
        logits = exact.from_counts(p[y[:, None] ^ tokens], y ^ offset)
        others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        spread = logits.amax(1) - logits.amin(1)
        lead = (logits.gather(1, y[:, None]).squeeze(1) - others) / spread.clamp(min=torch.finfo(torch.float64).tiny)
        worst = min(worst, float(lead.min()))
    return worst


def every_context(concepts: LatentConcepts, length: int) -> tuple[Counts, Float[Tensor, " batch"]]:
    """Every context of every concept that can occur, and how likely each is: the weights sum to 1.

    Args:
        concepts: The world.
        length: L.

    Raises:
        LcalensError: There are more than 2^18 of them.
    """
    check_int("length", length, low=1, why="a context holds at least its last token")
    p, pi = concepts.offset_log_p.exp(), concepts.offset_log_pi.exp()
    first, last = torch.nonzero(p).squeeze(1), torch.nonzero(pi).squeeze(1)
    number = concepts.vocab_size * len(first) ** (length - 1) * len(last)
    if number > _CONTEXTS:
        raise LcalensError(
            f"length: {length} tokens give {number:.3g} contexts, too many to go through; give `samples`, or take "
            "fewer tokens or latents."
        )
    offsets = torch.cartesian_prod(*[first] * (length - 1), last).view(-1, length)
    weights = p[offsets[:, :-1]].prod(1) * pi[offsets[:, -1]]
    targets = repeat(torch.arange(concepts.vocab_size), "target -> (target context)", context=len(offsets))
    every = repeat(offsets, "context position -> (target context) position", target=concepts.vocab_size)
    counts, ends = concepts.count(every ^ targets[:, None])
    weights = repeat(weights, "context -> (target context)", target=concepts.vocab_size) / concepts.vocab_size
    return Counts(counts, ends, targets), weights
