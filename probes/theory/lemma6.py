"""Lemma 6: the gradient in the attention scores, and whether it pulls attention into the cluster (section 5.4).

The formula, in the rendering that we have and with the factor alpha_t in both terms, against automatic
differentiation; the rendering's by how often a token occurs. Then what the paper reads from it: that the gradient is
larger inside the last token's cluster, as tokens there occur more often (the control is the same for each copy of a
token), and that descent raises the scores there, at initialisation and after training. The pulls of all tokens in a
context sum to 0, so the pull outside says nothing of its own: the control is the half of the vocabulary that shares
another bit with the last token.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
import torch

from lcalens import LatentConcepts
from lcalens.core.estimates import over_seeds
from lcalens.lca import theory
from lcalens.lca.training.trainer import start_model
from probes.harness.figures import curves
from probes.harness.paper_figures import beside, span
from probes.harness.rules import ANY, Evidence, Rule, paired
from probes.harness.run import main
from probes.harness.study import Report, Settings
from probes.harness.toy import recipe
from probes.harness.work import Work, reported_seeds

_PULL = "the mean downhill pull on scores inside the cluster less that outside, over the gradient's mean size,"
_HALVES = "the same of halves of the vocabulary that share another bit with the last token"
_ERROR = "the largest error, as a share of the largest gradient,"
RULES = (
    Rule(
        claim="Lemma 6's formula is the gradient in the attention scores.",
        source="Lemma 6, in the rendering that we have",
        group="paper",
        sentence=(
            "The gradient in u(t, t_L) is the loss's gradient times W_E^T W_V (alpha_t p_t W_E(t) - p_t sum_l "
            "p_(t_l) W_E(t_l))."
        ),
        effect=_ERROR,
        unit="relative error",
        minimum=1e-6,
        control="the gradient of another context",
        margin=0.01,
        sense="at most",
        effect_range=(0.0, math.inf),
        control_range=(0.0, math.inf),
    ),
    Rule(
        claim="With the factor alpha_t in both terms Lemma 6's formula is the gradient.",
        source="Lemma 6, corrected",
        group="ours",
        effect=_ERROR,
        unit="relative error",
        minimum=1e-6,
        control="the formula in the rendering that we have",
        margin=0.01,
        sense="at most",
        effect_range=(0.0, math.inf),
        control_range=(0.0, math.inf),
    ),
    Rule(
        claim="At initialisation the gradient is larger inside the last token's cluster.",
        source="section 5.4, on its size",
        group="paper",
        sentence=(
            "For tokens in the same cluster the gradient's contribution to the unnormalised attention score is "
            "therefore usually larger."
        ),
        effect="the gradient's mean size inside the cluster over that outside",
        unit="ratio",
        minimum=1.5,
        control="the same for each copy of a token",
        margin=0.5,
        effect_range=(0.0, math.inf),
        control_range=(0.0, math.inf),
    ),
    Rule(
        claim="At initialisation descent raises attention scores inside the last token's cluster.",
        source="section 5.4, on its direction",
        group="ours",
        effect=_PULL,
        unit="share of the gradient",
        minimum=0.05,
        control=_HALVES,
        margin=0.05,
        effect_range=ANY,
        control_range=ANY,
    ),
    Rule(
        claim="Through training descent raises attention scores inside the last token's cluster.",
        source="section 5.4, on its direction",
        group="ours",
        effect=_PULL,
        unit="share of the gradient",
        minimum=0.05,
        control=_HALVES,
        margin=0.05,
        effect_range=ANY,
        control_range=ANY,
    ),
)
CHOICES = """
The paper says that gradients are larger inside the cluster, and not at which weights, nor with which sign. Here the
weights are those of the toy probes' recipe: before training, over many initialisations, and after training of several
lengths, each a complete run whose learning rate falls to 0. The sweep shows the pull over learning rates and numbers of
steps at the smallest m. The formula is checked at initialisation, in worlds with noise and without.
"""
_NEVER = "never"
_TIMES = ("any number of times", _NEVER, "once", "twice or more")


@dataclass(frozen=True, kw_only=True)
class Lemma6(Settings):
    """The gradient's formula, its size and its direction.

    Attributes:
        m: Numbers of latent bits.
        omega: Shares of a context that speak of the concept, of the formula; the other numbers take the first.
        length: Context length L.
        samples: Contexts of each model.
        starts: Initialisations of each m.
        lr: Learning rate.
        steps: Lengths of training, in steps.
        sweep_lr: Learning rates of the sweep.
        sweep_steps: Its steps.
    """

    m: tuple[int, ...] = (4, 5, 6)
    omega: tuple[float, ...] = (0.5, 1.0)
    length: int = 64
    samples: int = 4000
    starts: int = 20
    lr: float = 0.03
    steps: tuple[int, ...] = (5, 20, 100, 1000)
    sweep_lr: tuple[float, ...] = (0.01, 0.03, 0.1)
    sweep_steps: tuple[int, ...] = (5, 20, 100, 300, 1000, 3000)


_QUICK: dict[str, Any] = {"m": (3, 4), "length": 32, "samples": 500, "starts": 4, "steps": (5, 20)}
PRESETS = {
    "quick": Lemma6(preset="quick", seeds=2, **_QUICK, sweep_lr=(0.03,), sweep_steps=(5,)),
    "standard": Lemma6(),
    "full": Lemma6(preset="full", seeds=3, m=(4, 5, 6, 7), steps=(5, 20, 100, 1000, 3000)),
}


def grid(settings: Lemma6) -> list[dict[str, Any]]:
    """A cell for each world and number of steps."""
    first, least = settings.omega[0], min(settings.m)
    plan = [("formula", m, omega, settings.lr, 0, settings.seeds) for m, omega in product(settings.m, settings.omega)]
    plan += [("start", m, first, settings.lr, 0, settings.starts) for m in settings.m]
    plan += [
        ("trained", m, first, settings.lr, *one, settings.seeds) for m, *one in product(settings.m, settings.steps)
    ]
    plan += [("sweep", least, first, lr, steps, settings.seeds)
             for lr, steps in product(settings.sweep_lr, settings.sweep_steps)]  # fmt: skip
    names = ("part", "m", "omega", "lr", "steps", "seeds")
    shared = {"L": settings.length, "samples": settings.samples}
    return [dict(zip(names, one, strict=True)) | shared for one in plan]


@torch.no_grad()
def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """A row a model, and of the formula one for each number of times that a token occurs."""
    concepts = LatentConcepts(cell["m"], omega=cell["omega"], neighborhood="cluster")
    ours = recipe(cell["m"], cell["L"], lr=cell["lr"], steps=max(cell["steps"], 1))
    models = [(seed, start_model(concepts, ours, seed), None) for seed in reported_seeds(cell["seeds"])]
    if cell["steps"]:
        models = [(run.seed, run.model, run.diverged) for run in work.train(concepts, ours, cell["seeds"])]
    rows = []
    for seed, model, diverged in models:
        drawn = concepts.sample_counts(cell["samples"], cell["L"], torch.Generator().manual_seed(1000 + seed))
        with torch.enable_grad():
            found = theory.score_gradients(model, *drawn)
        if diverged is not None:
            found = type(found)(*(torch.full_like(one, torch.nan) for one in found))
        shared = cell | {"seed": seed, "diverged": diverged}
        numbers = (
            _errors(found, drawn.counts) if cell["part"] == "formula" else [_pulls(concepts, found.autograd, drawn)]
        )
        rows += [shared | one for one in numbers]
    return rows


def _errors(found: Any, counts: torch.Tensor) -> Iterator[dict[str, Any]]:
    """The largest errors over tokens that occur so often, and of the gradient of the context before."""
    scale = found.autograd.abs().max()
    gaps = {"printed": found.printed, "corrected": found.corrected, "another context": found.autograd.roll(1, 0)}
    for times, which in zip(_TIMES, (counts >= 0, counts == 0, counts == 1, counts >= 2), strict=True):
        yield {"times": times} | {
            name: float(((one - found.autograd).abs() / scale)[which].max()) for name, one in gaps.items()
        }


def _pulls(concepts: LatentConcepts, gradient: torch.Tensor, drawn: Any) -> dict[str, float]:
    """Means inside less outside, by the bit of the cluster (the first) and by others; sizes, and counts."""
    apart = drawn.last[:, None] ^ torch.arange(concepts.vocab_size)
    mean_size, pulls = gradient.abs().mean(), []
    for bit in reversed(range(concepts.m)):  # the first bit is the highest
        inside = (apart >> bit & 1 == 0).double()  # half of the vocabulary, whatever the last token is
        pulls.append(float((-gradient * (2 * inside - 1)).mean() * 2 / mean_size))
    inside = apart < concepts.vocab_size >> concepts.cluster_bits
    size, copies = (float(one[inside].mean() / one[~inside].mean()) for one in (gradient.abs(), drawn.counts.double()))
    others = pulls[1:]
    return {"pull": pulls[0], "other bits": sum(others) / len(others), "size": size, "copies": copies}


def report(settings: Lemma6, rows: pd.DataFrame) -> Report:
    """The formula's errors, sizes and pulls, by world and training."""
    parts = {name: rows[rows["part"] == name] for name in ("formula", "start", "trained", "sweep")}
    printed, corrected, errors, table, drawn = [], [], [], [], []
    for (m, omega, times), part in parts["formula"].groupby(["m", "omega", "times"], sort=False):
        setting = f"m = {m}, omega = {omega:g}"
        if times == _TIMES[0]:
            corrected.append(paired(setting, part["corrected"], part["printed"]))
        else:
            # A token that never occurs has p_t = 0, which makes the formula right whatever its factors: not counted.
            pair, counted = (part["printed"], part["another context"]), times != _NEVER
            printed.append(paired(f"{setting}, tokens that occur {times}", *pair, counted=counted))
        worst = {name: f"{part[name].max():.2g}" for name in ("printed", "corrected", "another context")}
        errors.append({"m": m, "omega": omega, "token occurs": times} | worst)
    starts, trained = parts["start"], parts["trained"]
    sizes = [paired(f"m = {m}", part["size"], part["size"] / part["copies"]) for m, part in starts.groupby("m")]
    words = {"pull": "cluster bit", "other bits": "other bits"}
    for (m, steps), part in pd.concat([starts, trained]).groupby(["m", "steps"]):
        means = {head: over_seeds(part[name]) for name, head in words.items()}
        drawn += [{"panel": f"m = {m}", "steps": steps, "series": head} | one._asdict() for head, one in means.items()]
        above = f"{(part['pull'] > 0).sum()} of {len(part)}"
        table.append({"m": m, "steps": steps} | {head: str(one) for head, one in means.items()} | {"above 0": above})
        table[-1] |= {"size ratio": str(over_seeds(part["size"])), "count ratio": str(over_seeds(part["copies"]))}
        table[-1]["diverged"] = part["diverged"].notna().sum()
    figure = curves(
        pd.DataFrame(drawn),
        x="steps",
        y="mean",
        xlabel="training steps",
        ylabel="pull inside less outside",
        panel="panel",
        series="series",
    )
    for axis in figure.axes:
        axis.set_xscale("symlog", linthresh=min(settings.steps))
        axis.set_xticks([0, *settings.steps], ["0", *map(str, settings.steps)])
        axis.minorticks_off()
        axis.axhline(0, color="0.4", lw=0.6)
    pull = (
        "The downhill pull on scores of tokens that share the cluster's bit with the last token, less that on the "
        "others, over the gradient's mean size; beside it the same for the other bits. 0 steps: initialisation. "
        "Mean and 95% interval over models."
    )
    ours = (
        f"m = {', '.join(map(str, settings.m))}, L = {settings.length}, d = V/2, the models before training and after."
    )
    seen = (
        "The formula in the rendering that we have is the gradient for tokens that occur once, and for those that "
        "never occur, where it is 0; for tokens that occur more often its second term lacks the factor alpha_t. At "
        f"initialisation the gradient is {span(one.effect.mean for one in sizes)} times as large inside the cluster as "
        f"outside; for each copy of a token it is {span(one.control.mean for one in sizes)} times as large, so it is "
        "the number of copies that makes it so, as the paper says. The figure, on the gradient's direction, is ours."
    )
    return Report(
        paper=(beside("Lemma 6", ours, pull, seen),),
        evidence=(
            (RULES[0], printed),
            (RULES[1], corrected),
            (RULES[2], sizes),
            (RULES[3], _pulled(starts)),
            (RULES[4], _pulled(trained)),
        ),
        figures={pull: figure},
        tables={
            "The formula's largest errors": pd.DataFrame(errors),
            "The pull, and sizes": pd.DataFrame(table),
            f"The sweep: the pull at m = {min(settings.m)}": pd.DataFrame(
                {"lr": lr, "steps": steps} | {head: str(over_seeds(part[name])) for name, head in words.items()}
                for (lr, steps), part in parts["sweep"].groupby(["lr", "steps"])
            ),
        },
    )


def _pulled(rows: pd.DataFrame) -> list[Evidence]:
    return [
        paired(f"m = {m}, {steps} steps, {len(part)} models", part["pull"], part["other bits"])
        for (m, steps), part in rows.groupby(["m", "steps"])
    ]


if __name__ == "__main__":
    sys.exit(main(__name__))
