"""The role of the value matrix: without W_V, h(x) itself has to lie where it is classified right (section 5.2).

S_y holds the vectors that are classified as y. Measured is the share of contexts whose read-out lies in S_y, with W_V
trained, against models trained with W_V = I; and how far inside, for each value matrix. Theorem 3 says what W_V = I
asks of the embeddings instead: how well a line in the Hamming distance fits their inner products, against inner
products that fall exponentially.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch

from lcalens import LatentConcepts
from lcalens.core.estimates import exact, over_seeds
from lcalens.lca import Run, theory
from lcalens.lca.geometry import gram_hamming_fit
from lcalens.lca.model import closed_forms as memory
from lcalens.lca.theory.claims import in_double
from probes.harness.figures import curves
from probes.harness.paper_figures import FIGURES, beside, span
from probes.harness.rules import SHARE, Evidence, Rule, paired
from probes.harness.run import main
from probes.harness.shares import mean_change, mean_share
from probes.harness.study import Report, Settings
from probes.harness.toy import recipe
from probes.harness.work import Work

RULES = (
    Rule(
        claim="W_V brings h(x) to where it is classified right, more often than h(x) can be there by itself.",
        source="section 5.2",
        group="paper",
        sentence="The remapping effect of the value matrix can help to solve this.",
        effect="the share of contexts with W_V h(x) in S_y, W_V trained",
        unit="share of contexts",
        minimum=0.5,
        control="models trained with W_V = I: the share with h(x) in S_y",
        margin=0.01,
        effect_range=SHARE,
        control_range=SHARE,
    ),
    Rule(
        claim="Theorem 3: where its premise holds, inner products fall linearly with the Hamming distance.",
        source="Theorem 3",
        group="paper",
        sentence=FIGURES["Theorem 3"].sentence,
        effect="R^2 of a falling line over all pairs of tokens, of inner products that solve the premise",
        unit="R^2 of pairs",
        minimum=0.99,
        control="the same line through inner products that fall as exp(-D_H / beta), the shape of pi",
        margin=0.01,
        effect_range=(-1.0, 1.0),
        control_range=SHARE,
    ),
    Rule(
        claim="Training without W_V comes near it.",
        source="Theorem 3, for trained models",
        group="ours",
        effect="R^2 of a falling line over all pairs of tokens, of trained embeddings",
        unit="R^2 of pairs",
        minimum=0.95,
        control="the same line through inner products that fall as exp(-D_H / beta), the shape of pi",
        margin=0.01,
        effect_range=(-1.0, 1.0),
        control_range=SHARE,
        unknown="L",
    ),
)
CHOICES = """
S_y is asked of the models of the probe value_matrix, so the share in S_y is their accuracy. The table shows in what
share of contexts the two agree, how far h(x) is from the hull of the embeddings (0 but for rounding, if section 5.2 is
right), and where other value matrices bring the same h(x).

Theorem 3 asks that softmax(f(x)) be p(y | x), and no finite logits give that where y is in x. Models are trained here
without noise, and their distance from the posterior is taken over y not in x (total variation). The sweep shows the
line and that distance over L and the number of steps; its largest number of steps is the full preset's. What the
theorem says is judged where the premise is solved as equations in the inner products, which takes a small world: m = 3
and 4. Trained models, which only come near the premise, are ours.
"""
_ROLES = ("trained", "constructed instead", "identity instead", "trained with W_V = I")
_EDGES = np.linspace(-1, 1, 41)
_SOLVED = 4  # bits, at most: there is an unknown for every pair of tokens

_HEADS = {
    "r2": "R^2",
    "control": "R^2, exponential",
    "shuffled": "R^2, tokens shuffled",
    "slope": "slope over L / beta",
    "premise": "distance from the posterior",
    "share": "accuracy",
    "bayes": "Bayes",
}
_MEANS: Mapping[str, Any] = {
    **dict.fromkeys(("r2", "control", "shuffled"), mean_change),
    **dict.fromkeys(("slope", "premise"), over_seeds),
}
"""How the above are averaged, where they are no shares: R^2 of a falling line is below 0 where it rises."""


@dataclass(frozen=True, kw_only=True)
class ValueRole(Settings):
    """Where W_V h(x) lies, and the geometry without W_V.

    Attributes:
        m: Numbers of latent bits of the models asked for S_y.
        length: Their L.
        line_m: Numbers of latent bits of Theorem 3.
        line_beta: Its temperatures.
        line_lengths: Its L; the premise is solved at the first.
        samples: Contexts of each seed.
        lr: Learning rate.
        steps: Training steps.
        sweep_lengths: Context lengths of Theorem 3's sweep.
        sweep_steps: Steps of the sweep.
    """

    m: tuple[int, ...] = (5, 6, 7, 8)
    length: int = 64
    line_m: tuple[int, ...] = (3, 4, 5, 6)
    line_beta: tuple[float, ...] = (0.5, 1.0, 2.0)
    line_lengths: tuple[int, ...] = (4, 16)
    samples: int = 4000
    lr: float = 0.03
    steps: int = 1000
    sweep_lengths: tuple[int, ...] = (8, 16, 64)
    sweep_steps: tuple[int, ...] = (300, 1000, 3000)


_QUICK: dict[str, Any] = {"m": (4,), "length": 32, "line_m": (4,), "line_beta": (1.0,), "line_lengths": (16,)}
_QUICK |= {"samples": 500, "steps": 60, "sweep_lengths": (16,), "sweep_steps": (30,)}
PRESETS = {
    "quick": ValueRole(preset="quick", seeds=2, **_QUICK),
    "standard": ValueRole(),
    "full": ValueRole(preset="full", seeds=3, line_lengths=(4, 16, 64), steps=3000),
}


def grid(settings: ValueRole) -> list[dict[str, Any]]:
    """A cell for each statement and world."""
    steps, solved = settings.steps, settings.line_lengths[0]
    plan = [("S_y", m, settings.length, 1.0, steps) for m in settings.m]
    plan += [
        ("line", m, length, beta, steps)
        for m, length, beta in product(settings.line_m, settings.line_lengths, settings.line_beta)
    ]
    swept = sorted(settings.line_m)[len(settings.line_m) // 2]
    plan += [("sweep", swept, length, 1.0, most) for length in settings.sweep_lengths for most in settings.sweep_steps]
    names = ("part", "m", "L", "beta", "steps")
    shared = {"lr": settings.lr, "samples": settings.samples, "seeds": settings.seeds}
    plan += [
        ("solved", m, solved, beta, None) for m, beta in product(settings.line_m, settings.line_beta) if m <= _SOLVED
    ]
    return [dict(zip(names, one, strict=True)) | shared for one in plan]


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """A row a seed, and of S_y one for each value matrix too."""
    found = {"S_y": _role, "line": _line, "sweep": _line, "solved": _solved}[cell["part"]](cell, work)
    return [{name: cell[name] for name in ("part", "m", "L", "beta", "steps")} | row for row in found]


def _role(cell: dict[str, Any], work: Work) -> Iterator[dict[str, Any]]:
    concepts = LatentConcepts(cell["m"])
    size = {"lr": cell["lr"], "steps": cell["steps"]}
    trained = work.train(concepts, recipe(cell["m"], cell["L"], **size), cell["seeds"])
    identity = recipe(cell["m"], cell["L"], **size, value="identity", train_value=False)
    for ours, other in zip(trained, work.train(concepts, identity, cell["seeds"]), strict=True):
        yield from _shares(concepts, cell, ours, dict(zip(("model", "constructed", "identity"), _ROLES, strict=False)))
        yield from _shares(concepts, cell, other, {"model": _ROLES[-1]})


def _shares(
    concepts: LatentConcepts, cell: dict[str, Any], run: Run, kinds: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """The share in S_y and the histogram of margins, for the run's own W_V and what takes its place."""
    row: dict[str, Any] = {"seed": run.seed, "diverged": run.diverged, "bayes": run.bayes}
    if run.diverged is not None:
        yield from (row | {"kind": kind, "share": np.nan} for kind in kinds.values())
        return
    model, samples, length = in_double(run.model), cell["samples"], cell["L"]
    first, again = (torch.Generator().manual_seed(1000 + run.seed) for _ in range(2))  # the same contexts
    claim = theory.value_role(concepts, model, length=length, samples=samples, generator=first)
    drawn, rows = concepts.sample_counts(samples, length, again), model.embed.weight.detach()
    hidden = model.gathered(drawn.counts.double(), drawn.last).detach()
    values = {"model": model.attn.v.weight, "constructed": memory.constructed_value(concepts, rows)}
    values["identity"] = memory.identity_value(rows)
    inside = claim.details.set_index("value")["inside"]
    row |= {"agreement": claim.numbers["agreement"], "outside": claim.numbers["outside_hull"]}
    for name, kind in kinds.items():
        margins = theory.value_margins(memory.with_value(model, values[name]), hidden, drawn.target).numpy()
        counted = np.histogram(margins, _EDGES)[0] / samples
        yield row | {"kind": kind, "share": inside[name], "histogram": counted.tolist()}


def _line(cell: dict[str, Any], work: Work) -> Iterator[dict[str, Any]]:
    concepts = LatentConcepts(cell["m"], omega=1.0, beta=cell["beta"])
    tokens, control = torch.arange(concepts.vocab_size), _exponential(concepts)
    ours = recipe(cell["m"], cell["L"], lr=cell["lr"], steps=cell["steps"], value="identity", train_value=False)
    for run in work.train(concepts, ours, cell["seeds"]):
        row: dict[str, Any] = {"seed": run.seed, "diverged": run.diverged, "bayes": run.bayes, "share": run.accuracy}
        row |= {"control": control, "r2": np.nan}
        if run.diverged is None:
            generator = torch.Generator().manual_seed(1000 + run.seed)
            drawn = {"length": cell["L"], "samples": cell["samples"], "generator": generator}
            claim = theory.theorem3(concepts, run.model, **drawn)
            shuffled = run.model.embed.weight[torch.randperm(len(tokens), generator=generator)].detach()
            row["premise"] = claim.numbers["distance_to_posterior"]
            row["shuffled"] = gram_hamming_fit(concepts, shuffled).r2_pairs
            row["slope"] = claim.numbers["a"] * cell["beta"] / cell["L"]
            row["r2"] = claim.measured if claim.numbers["a"] > 0 else -claim.measured  # one that rises is no support
        yield row


def _exponential(concepts: LatentConcepts) -> float:
    """R^2 over pairs of a line through exp(-D_H / beta)."""
    tokens = torch.arange(concepts.vocab_size)
    # The rows of a Cholesky factor have the inner products of the matrix.
    falling = torch.linalg.cholesky((-concepts.distance(tokens[:, None], tokens) / concepts.beta).double().exp())
    return gram_hamming_fit(concepts, falling).r2_pairs


def _solved(cell: dict[str, Any], work: Work) -> Iterator[dict[str, Any]]:
    concepts = LatentConcepts(cell["m"], omega=1.0, beta=cell["beta"])
    claim = theory.theorem3_solved(concepts, length=cell["L"], generator=torch.Generator().manual_seed(0))
    found = {"residual": claim.numbers["residual"], "free": claim.numbers["free_constants"]}
    found |= {"control": _exponential(concepts), "seed": 0}
    yield found | {"r2": claim.measured, "slope": claim.numbers["a"] * cell["beta"] / cell["L"]}


def report(settings: ValueRole, rows: pd.DataFrame) -> Report:
    """Shares in S_y by value matrix, the margins, and the line."""
    role, line, sweep, solved = (rows[rows["part"] == part] for part in ("S_y", "line", "sweep", "solved"))
    inside, drawn, shares, lines, exactly = [], [], [], [], []
    for m, part in role.groupby("m"):
        share = part.pivot(index="seed", columns="kind", values="share")
        inside.append(paired(f"m = {m}, L = {settings.length}", share[_ROLES[0]], share[_ROLES[-1]]))
        shown = {kind: str(mean_share(share[kind])) for kind in _ROLES}
        shown["Bayes"] = str(mean_share(part.groupby("seed")["bayes"].first()))
        ours = part[part["kind"] == _ROLES[0]]
        checked = {"right answers agree": ours["agreement"].min(), "distance from the hull": part["outside"].max()}
        diverged = part[part["kind"].isin((_ROLES[0], _ROLES[-1]))]["diverged"].notna().sum()
        shares.append({"m": m} | shown | checked | {"diverged": diverged})
        for kind, some in part.dropna(subset="histogram").groupby("kind", sort=False):
            middles, heights = (_EDGES[1:] + _EDGES[:-1]) / 2, np.transpose(some["histogram"].tolist())
            for at, values in zip(middles, heights, strict=True):
                drawn.append({"panel": f"m = {m}", "series": kind, "at": at} | mean_share(values)._asdict())
    for (m, beta, length), part in line.groupby(["m", "beta", "L"]):
        asked = {"at": length}
        lines.append(paired(f"m = {m}, beta = {beta:g}, L = {length}", part["r2"], part["control"], **asked))  # pyright: ignore[reportArgumentType]
    for one in solved.to_dict("records"):
        numbers = (exact(one["r2"]), exact(one["control"]), exact(one["r2"] - one["control"]))
        named = dict(zip(("effect", "control", "excess"), numbers, strict=True))
        exactly.append(Evidence(setting=f"m = {one['m']}, beta = {one['beta']:g}, L = {one['L']:g}", **named))
    words: dict[str, Any] = {"xlabel": "margin", "ylabel": "share of contexts", "panel": "panel", "series": "series"}
    figure = curves(pd.DataFrame(drawn), x="at", y="mean", **words)
    for axis in figure.axes:
        axis.set_xticks((-1, -0.5, 0, 0.5, 1))
    line_seen = (
        f"Solved as equations for the inner products, the premise gives a line with an R^2 of "
        f"{span(one.effect.mean for one in exactly)} at m = {span(solved['m'])} and L = {span(solved['L'])}. Models "
        f"trained without W_V, which only come near it, have one of {span(one.effect.mean for one in lines)}."
    )
    return Report(
        evidence=tuple(zip(RULES, (inside, exactly, lines), strict=True)),
        paper=(beside("Theorem 3", f"m, beta and L = {span(solved['L'])}; y not in x.", "", line_seen),),
        figures={
            "How far inside S_y: the sine of the angle from W_V h(x) to the nearest face; below 0 the answer is wrong. "
            f"Mean and 95% interval over {settings.seeds} seeds.": figure
        },
        tables={
            f"Share of contexts in S_y, L = {settings.length}": pd.DataFrame(shares),
            "Theorem 3: the line, trained without W_V": _fits(line, ["m", "beta", "L"]),
            f"Theorem 3: the sweep, m = {sweep['m'].max()}, beta = 1": _fits(sweep, ["L", "steps"]),
            "Theorem 3: its premise solved for the inner products": solved[
                ["m", "beta", "r2", "slope", "residual", "free"]
            ].rename(columns=_HEADS | {"residual": "largest residual", "free": "free constants"}),
        },
    )


def _fits(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    table = []
    for key, part in rows.groupby(by):
        shown = {head: str(_MEANS.get(name, mean_share)(part[name])) for name, head in _HEADS.items()}
        table.append(dict(zip(by, key, strict=True)) | shown | {"diverged": part["diverged"].notna().sum()})
    return pd.DataFrame(table)


if __name__ == "__main__":
    sys.exit(main(__name__))
