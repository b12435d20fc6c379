"""Theorems 1 and 4: closed-form models whose error goes to 0 as the context grows.

Accuracy over the context length L, beside Bayes, of models with uniform attention and the constructed value matrix, on
orthonormal embeddings (Theorem 1) and on embeddings of equation 5.2 (Theorem 4). The controls put random pairs in W_V,
or Gaussian embeddings in place of equation 5.2's. Contexts are the same for every kind of model.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
import torch

from lcalens import LatentConcepts
from lcalens.core.estimates import over_contexts
from lcalens.lca import LCAForCausalLM, theory
from lcalens.lca.model import closed_forms as memory
from probes.harness.figures import curves
from probes.harness.paper_figures import beside, span
from probes.harness.rules import SHARE, Evidence, Rule
from probes.harness.run import main
from probes.harness.shares import mean_change, mean_share
from probes.harness.study import Report, Settings
from probes.harness.work import Work, reported_seeds

RULES = (
    Rule(
        claim="Theorem 1: for m >= 3 and no noise the closed-form model's error goes to 0 as the context grows.",
        source="Theorem 1",
        group="paper",
        sentence=(
            "For any epsilon > 0 there is a Transformer, given by equation 4.1, with an error below epsilon if "
            "the context length L is large enough."
        ),
        effect="accuracy at the longest L",
        unit="accuracy",
        minimum=0.99,
        control="the same model with random pairs in W_V",
        margin=0.5,
        effect_range=SHARE,
        control_range=SHARE,
    ),
    Rule(
        claim="The model of Theorem 1 carries beyond its premises: to noise, and to m = 2.",
        source="section 5.1",
        group="ours",
        effect="accuracy at the longest L",
        unit="accuracy",
        minimum=0.99,
        control="the same model with random pairs in W_V",
        margin=0.5,
        effect_range=SHARE,
        control_range=SHARE,
    ),
    Rule(
        claim="Theorem 4: with embeddings of equation 5.2 the error goes to 0 as b0 and the context grow.",
        source="Theorem 4",
        group="paper",
        sentence=(
            "Under certain conditions on a and b, the error can be made arbitrarily small if b0 and the "
            "context length L are large enough."
        ),
        effect="accuracy at the longest L and the largest b0",
        unit="accuracy",
        minimum=0.99,
        control="the same embeddings with random pairs in W_V",
        margin=0.5,
        effect_range=SHARE,
        control_range=SHARE,
    ),
    Rule(
        claim="It takes the geometry of equation 5.2: Gaussian embeddings of as many dimensions err more.",
        source="Theorem 4, a stronger control",
        group="stronger",
        effect="accuracy at the longest L and the largest b0",
        unit="accuracy",
        minimum=0.99,
        control="Gaussian embeddings of d = V dimensions, and W_V constructed from them",
        margin=0.01,
        effect_range=SHARE,
        control_range=SHARE,
    ),
)
CHOICES = """
The theorems say "L large enough" and "under certain conditions on a and b", and give no numbers. The models are asked
at the longest L of the settings; the table of shortest contexts shows how long is long enough, by m, beta and noise. In
Theorem 4 neither a factor on all inner products nor a constant added to them changes an answer, so a is 1, and b is
a m / 2, the least with which such embeddings exist at b0 = b.

The sweep shows accuracy over beta and b0 at both ends of L, with W_V = I beside it. At b0 = b the embeddings answer by
themselves, without a memory; as b0 grows they become orthogonal, and Theorem 4 becomes Theorem 1. That the error goes
to 0 at all is decided exactly by the lead: by how much y's logit exceeds the largest other, at worst, when token
frequencies are p(. | y), as a share of the logits' range. It is in the sweep's table; 0 is a tie, said in the other's.
"""
_BUILT, _RANDOM, _GAUSSIAN, _IDENTITY = "constructed", "random pairs", "Gaussian embeddings", "W_V = I"


@dataclass(frozen=True, kw_only=True)
class Theorems(Settings):
    """Accuracy of closed-form models over the context length.

    Attributes:
        m: Numbers of latent bits; of Theorem 4 those of at least 3.
        omega: Shares of a context that speak of the concept; the theorems' is 1.
        beta: Temperatures; the figures show the middle one.
        lengths: Context lengths L, rising.
        samples: Contexts at each, for each seed.
        above: By how much b0 exceeds b, rising; the last one is the rule's.
        sweep_m: Latent bits of the sweep over beta and b0.
    """

    m: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    omega: tuple[float, ...] = (1.0, 0.5)
    beta: tuple[float, ...] = (0.5, 1.0, 2.0)
    lengths: tuple[int, ...] = (16, 64, 256, 1024, 4096)
    samples: int = 1000
    above: tuple[float, ...] = (0, 1, 4, 16, 64, 256)
    sweep_m: int = 5


_QUICK: dict[str, Any] = {
    "m": (2, 3, 4),
    "beta": (1.0,),
    "lengths": (16, 256),
    "samples": 500,
    "above": (0, 256),
    "sweep_m": 3,
}
PRESETS = {
    "quick": Theorems(preset="quick", seeds=2, **_QUICK),
    "standard": Theorems(),
    "full": Theorems(preset="full", seeds=3, lengths=(16, 64, 256, 1024, 4096, 16384), samples=4000),
}


def grid(settings: Theorems) -> list[dict[str, Any]]:
    """A cell for each theorem and world."""
    first, fourth, swept = (_BUILT, _RANDOM, _IDENTITY), (_BUILT, _RANDOM, _GAUSSIAN), (_BUILT, _GAUSSIAN, _IDENTITY)
    plan = [
        ("theorem 1", m, omega, beta, None, None, first)
        for m, omega, beta in product(settings.m, settings.omega, settings.beta)
    ]
    plan += [
        ("theorem 4", m, 1.0, beta, m / 2, settings.above[-1], fourth)
        for m, beta in product(settings.m, settings.beta)
        if m >= 3
    ]
    m = settings.sweep_m
    plan += [("sweep", m, 1.0, beta, m / 2, more, swept) for beta, more in product(settings.beta, settings.above)]
    names = ("part", "m", "omega", "beta", "b", "above", "kinds")
    shared = {"lengths": settings.lengths, "samples": settings.samples, "seeds": settings.seeds}
    return [dict(zip(names, one, strict=True)) | shared for one in plan]


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """A row for each kind of model, length and sample of contexts."""
    concepts, rows = LatentConcepts(cell["m"], omega=cell["omega"], beta=cell["beta"]), []
    shared = {name: cell[name] for name in ("part", "m", "omega", "beta", "b", "above")}
    for seed, kind in product(reported_seeds(cell["seeds"]), cell["kinds"]):
        rows += [shared | {"seed": seed, "kind": kind} | one for one in _accuracies(concepts, cell, seed, str(kind))]
    return rows


def _accuracies(concepts: LatentConcepts, cell: dict[str, Any], seed: int, kind: str) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1000 + seed)  # one state for all kinds: the same contexts
    drawn: dict[str, Any] = {"lengths": cell["lengths"], "samples": cell["samples"], "generator": generator}
    if cell["b"] is None:
        eye = torch.eye(concepts.vocab_size, dtype=torch.float64)
        claim = theory.theorem1(concepts, _model(concepts, kind, seed, eye), **drawn)
    else:

        def build(world: LatentConcepts, **geometry: float) -> LCAForCausalLM:
            return _model(world, kind, seed, memory.hamming_embedding(world, world.vocab_size, **geometry))

        claim = theory.theorem4(concepts, build, b=cell["b"], b0=[cell["b"] + cell["above"]], **drawn)
    found = claim.details.rename(columns={"length": "L"})[["L", "accuracy", "bayes"]]
    return found.assign(lead=claim.numbers["population_margin"]).to_dict("records")  # pyright: ignore[reportReturnType]


def _model(concepts: LatentConcepts, kind: str, seed: int, embedding: torch.Tensor) -> LCAForCausalLM:
    generator = torch.Generator().manual_seed(seed)
    if kind == _GAUSSIAN:
        embedding = memory.gaussian_embedding(concepts.vocab_size, concepts.vocab_size, generator)
    value = memory.identity_value(embedding) if kind == _IDENTITY else memory.constructed_value(concepts, embedding)
    if kind == _RANDOM:
        value = memory.random_pair_value(concepts, embedding, generator)
    return memory.closed_form_model(embedding, value)


def report(settings: Theorems, rows: pd.DataFrame) -> Report:
    """Accuracy at the longest L, by world."""
    first, fourth, sweep = (rows[rows["part"] == part] for part in ("theorem 1", "theorem 4", "sweep"))
    inside = (first["omega"] == 1) & (first["m"] >= 3)
    middle = settings.beta[len(settings.beta) // 2]
    seen = first[(first["beta"] == middle) & (first["kind"] != _IDENTITY)]
    drawn = [_curve(seen[seen["omega"] == omega], f", omega = {omega:g}") for omega in settings.omega]
    shades = (
        f"beta = {middle:g}; mean and 95% interval over {settings.seeds} samples of contexts. Bayes is the ceiling."
    )
    words: dict[str, Any] = {
        "x": "L",
        "y": "mean",
        "xlabel": "context length L",
        "ylabel": "accuracy",
        "panel": "panel",
    }
    words |= {"series": "series", "log2": True, "ylim": (-0.03, 1.03)}
    one, four = (list(_evidence(settings, rows, _RANDOM)) for rows in (first[inside], fourth))
    captions = (
        f"Theorem 1: accuracy over the context length, {shades}",
        f"Theorem 4: the same at the largest b0, omega = 1, {shades}",
    )
    ours = f"m = {span(settings.m)}, beta = {span(settings.beta)}, L up to {max(settings.lengths)}"
    seen = [
        f"At the longest L the constructed model's accuracy is {span(each.effect.mean for each in some)} over all m "
        f"and beta; with random pairs in W_V, our control, {span(each.control.mean for each in some)}."
        for some in (one, four)
    ]
    seen[0] += " m = 2, where y and its complement tie exactly, and noise are ours: a rule of their own."
    return Report(
        evidence=(
            (RULES[0], one),
            (RULES[1], list(_evidence(settings, first[~inside], _RANDOM))),
            (RULES[2], four),
            (RULES[3], list(_evidence(settings, fourth, _GAUSSIAN))),
        ),
        figures={
            captions[0]: curves(pd.concat(drawn), **words),
            captions[1]: curves(_curve(fourth[fourth["beta"] == middle]), **words),
        },
        paper=(
            beside("Theorem 1", f"{ours}; noise and m = 2 beside it.", captions[0], seen[0]),
            beside("Theorem 4", f"{ours}; a = 1, b = a m / 2, the values of b0.", captions[1], seen[1]),
        ),
        tables={
            "Theorem 1: the shortest L with an accuracy of 0.99, constructed W_V (Bayes)": _shortest(first),
            f"Theorem 4: the sweep, m = {settings.sweep_m}, omega = 1": _swept(sweep),
        },
    )


def _evidence(settings: Theorems, rows: pd.DataFrame, control: str) -> Iterator[Evidence]:
    for (m, omega, beta), part in rows[rows["L"] == max(settings.lengths)].groupby(["m", "omega", "beta"]):
        found = part.pivot(index="seed", columns="kind", values="accuracy")
        yield Evidence(
            setting=f"m = {m}, omega = {omega:g}, beta = {beta:g}",
            effect=over_contexts(found[_BUILT], settings.samples),
            control=mean_share(found[control]),
            excess=mean_change(found[_BUILT] - found[control]),
        )


def _curve(rows: pd.DataFrame, more: str = "") -> pd.DataFrame:
    drawn = []
    for (m, length), part in rows.groupby(["m", "L"]):
        means = {kind: mean_share(some["accuracy"]) for kind, some in part.groupby("kind", sort=False)}
        means["Bayes"] = mean_share(part.groupby("seed")["bayes"].first())
        drawn += [{"panel": f"m = {m}", "L": length, "series": f"{kind}{more}"} | mean._asdict()
                  for kind, mean in means.items()]  # fmt: skip
    return pd.DataFrame(drawn)


def _shortest(rows: pd.DataFrame) -> pd.DataFrame:
    table = []
    for m, world in rows[rows["kind"] == _BUILT].groupby("m"):
        line: dict[str, Any] = {"m": m}
        for (omega, beta), part in world.groupby(["omega", "beta"], sort=False):
            means = part.groupby("L")[["accuracy", "bayes"]].mean()
            shown = [str(next((at for at in means.index if means[name][at] >= 0.99), "none"))
                     for name in ("accuracy", "bayes")]  # fmt: skip
            tie = ", a tie" if part["lead"].abs().max() < 1e-6 else ""
            line[f"omega {omega:g}, beta {beta:g}"] = f"{shown[0]}{tie} ({shown[1]})"
        table.append(line)
    return pd.DataFrame(table)


def _swept(rows: pd.DataFrame) -> pd.DataFrame:
    table = []
    for (beta, above), part in rows.groupby(["beta", "above"]):
        line: dict[str, Any] = {"beta": beta, "b0 - b": above, "lead": part[part["kind"] == _BUILT]["lead"].mean()}
        for length, kind in product((part["L"].min(), part["L"].max()), (_BUILT, _GAUSSIAN, _IDENTITY)):
            found = part[(part["L"] == length) & (part["kind"] == kind)]
            line[f"{kind}, L = {length}"] = str(mean_share(found["accuracy"]))
        table.append(line)
    return pd.DataFrame(table)


if __name__ == "__main__":
    sys.exit(main(__name__))
