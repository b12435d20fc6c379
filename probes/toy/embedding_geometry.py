"""Trained embeddings' inner products fall in a line with Hamming distance (Figure 3b, C.5, C.6; equation 5.2).

Equation 5.2 says <e_t, e_t'> = b - a D_H(t, t') for two tokens and b0 for a token with itself, with b0 > b and a > 0.
It is fitted in least squares to W_E of trained models, W_V trained or left at the identity. R^2 is taken over the mean
of each distance, as the paper speaks of means, and over single pairs, which is harder. Controls: the same models
before training, the trained embeddings with their tokens shuffled, and a similarity that falls with distance but not
in a line: exp(-D_H / beta), as the task's own probabilities do.
"""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from lcalens import LatentConcepts
from lcalens.core.estimates import over_seeds
from lcalens.lca.geometry import gram_hamming_fit
from probes.harness.embeddings import (
    FULL,
    GRID,
    IDENTITY,
    QUICK,
    SPEED,
    TRAINED,
    WIDTH,
    EmbeddingSettings,
    cells,
    trained,
)
from probes.harness.figures import curves, dots
from probes.harness.paper_figures import FIGURES, beside, span
from probes.harness.rules import ANY, SHARE, Rule, paired
from probes.harness.run import main
from probes.harness.shares import mean_share
from probes.harness.study import Report
from probes.harness.work import Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_R2, _ORDER = "R^2 of means", "min(b0 - b, a) / b0"
_STRONGEST = "the strongest of the untrained embeddings and of the trained ones with tokens shuffled"
_LINE = "R^2 of a line through the mean inner product of each distance"
RULES = (
    Rule(
        claim="Trained embeddings' mean inner products are linear in Hamming distance.",
        source="Figure 3b, C.5",
        group="paper",
        sentence=FIGURES["Figure C.5"].sentence,
        effect=_LINE,
        unit="R^2 of means",
        minimum=0.9,
        control=_STRONGEST,
        margin=0.1,
        effect_range=SHARE,
        control_range=SHARE,
        unknown="d and L",
        headline="Embeddings' inner products fall in a line with Hamming distance",
    ),
    Rule(
        claim="Trained embeddings have b0 > b and a > 0.",
        source="equation 5.2",
        group="paper",
        sentence="... where b_0 > b and a > 0.",
        effect="the smaller of b0 - b and a in the fit, over b0",
        unit="share of b0",
        minimum=0.02,
        control=_STRONGEST,
        margin=0.02,
        effect_range=ANY,
        control_range=ANY,
        unknown="d and L",
    ),
    Rule(
        claim="With W_V = I, the mean inner products are linear in Hamming distance too.",
        source="C.6",
        group="paper",
        sentence=FIGURES["Figure C.6"].sentence,
        effect=f"{_LINE}, with W_V = I",
        unit="R^2 of means",
        minimum=0.9,
        control=_STRONGEST,
        margin=0.1,
        effect_range=SHARE,
        control_range=SHARE,
    ),
    Rule(
        claim="The line fits better than it would fit a similarity that falls as the task's own probabilities do.",
        source="Figure 3b, C.5; a stronger control",
        group="stronger",
        effect=_LINE,
        unit="R^2 of means",
        minimum=0.9,
        control="the same of exp(-D_H / beta)",
        margin=0.1,
        effect_range=SHARE,
        control_range=SHARE,
        unknown="d and L",
    ),
)
CHOICES = """
Figures 3b and C.5 are at m = 7 and 8, with W_V = I at m = 5 to 8; the paper's d, L and recipe are unknown to us, and
how its relation was fitted. So the first rules judge m = 7 and 8, over d and L; m = 5 and 6, which are ours, are shown
and not counted. The paper speaks of average inner products: the rules judge means, and R^2 over pairs stands beside.
With AdamW, d, weight decay, learning rate and number of steps all shape the embeddings: the two sweeps show how, at the
smallest m, and the largest number of steps is the full preset's. Embeddings are taken as they are, not centred. Where
they sum to about 0, b is a m / 2 but for terms of order 1 / V; the table shows a m / 2 beside b. Shuffled tokens are
the mean over several permutations. Of the controls of one setting the one with the largest mean is taken.
"""
_NAMES = ("trained", "untrained", "shuffled")
_SHUFFLES = 20


@dataclass(frozen=True, kw_only=True)
class EmbeddingGeometry(EmbeddingSettings):
    """Inner products of embeddings over Hamming distance.

    Attributes:
        judged: Numbers of latent bits of the paper's Figures 3b and C.5; others are shown, and not counted.
    """

    judged: tuple[int, ...] = (7, 8)


PRESETS = {
    "quick": EmbeddingGeometry(**QUICK, judged=(3, 4)),
    "standard": EmbeddingGeometry(),
    "full": EmbeddingGeometry(**FULL),
}


def grid(settings: EmbeddingGeometry) -> list[dict[str, Any]]:
    """A cell for each m, and for each point of both sweeps."""
    return cells(settings, (TRAINED, IDENTITY))


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """Fit equation 5.2 to the embeddings of each run, and in the grid to its controls; a row an embedding."""
    concepts, rows = LatentConcepts(cell["m"]), []
    kept = {name: cell[name] for name in ("part", "m", "d", "L", "lr", "weight_decay", "steps")}
    for kind, run, embedding, start in trained(cell, work):
        found = {"trained": fitted(concepts, embedding)}
        if cell["part"] == GRID:
            generator = torch.Generator().manual_seed(run.seed)
            orders = [torch.randperm(len(start), generator=generator) for _ in range(_SHUFFLES)]
            shuffled = [fitted(concepts, None if embedding is None else embedding[order]) for order in orders]
            found |= {"untrained": fitted(concepts, start)}
            found |= {"shuffled": {name: np.mean([one[name] for one in shuffled], 0) for name in shuffled[0]}}
        shared = kept | {"W_V": kind, "seed": run.seed, "accuracy": run.accuracy, "bayes": run.bayes}
        shared["diverged"] = run.diverged
        rows += [shared | {"W_E": name} | one for name, one in found.items()]
    return rows


def fitted(concepts: LatentConcepts, embedding: torch.Tensor | None) -> dict[str, Any]:
    """The fit's numbers; means and deviations are of distances 0 to m, as shares of b0. NaN where there is nothing.

    Args:
        concepts: The world.
        embedding: Row t is token t's; None of a run that diverged.
    """
    names = (_R2, "R^2 of pairs", "a", "b", "b0", _ORDER)
    if embedding is None:
        missing = [np.nan] * (concepts.m + 1)
        return dict.fromkeys(names, np.nan) | {"means": missing, "deviations": missing}
    fit = gram_hamming_fit(concepts, embedding)
    numbers = (fit.r2_means, fit.r2_pairs, fit.a, fit.b, fit.b0, min(fit.b0 - fit.b, fit.a) / fit.b0)
    own = embedding.double().square().sum(1).std(correction=0).item()
    means, deviations = [fit.b0, *fit.means], [own, *fit.deviations]
    return dict(zip(names, numbers, strict=True)) | {
        "means": [float(one / fit.b0) for one in means],
        "deviations": [float(one / fit.b0) for one in deviations],
    }


def falling_r2(m: int) -> float:
    """R^2 of a line through exp(-D_H / beta) at each distance.

    Args:
        m: Latent bits.
    """
    distances = np.arange(1, m + 1)
    return float(np.corrcoef(distances, np.exp(-distances / LatentConcepts(m).beta))[0, 1] ** 2)


def report(settings: EmbeddingGeometry, rows: pd.DataFrame) -> Report:
    """How well the line fits, by m, d, L and W_V."""
    main_part, first = rows[rows["part"] == GRID], settings.lengths[0]
    line, order, identity, falling_line = [], [], [], []
    fits, controls, drawn, spots = [], [], [], []
    for (m, d, length, kind), part in main_part.groupby(["m", "d", "L", "W_V"], sort=False):
        of = {name: part[part["W_E"] == name].sort_values("seed") for name in _NAMES}
        bits, place = int(m), {"m": m, "d": d, "L": length}  # pyright: ignore[reportArgumentType]
        setting, falling = ", ".join(f"{name} = {value}" for name, value in place.items()), falling_r2(bits)
        asked = {"at": f"{d}, {length}", "counted": bits in settings.judged}
        fitted_r2 = of["trained"][_R2].to_numpy()
        if kind == TRAINED:
            line.append(paired(setting, fitted_r2, _strongest(of, _R2), **asked))
            order.append(paired(setting, of["trained"][_ORDER].to_numpy(), _strongest(of, _ORDER), **asked))
            falling_line.append(paired(setting, fitted_r2, np.full(len(fitted_r2), falling), **asked))
        else:
            identity.append(paired(setting, fitted_r2, _strongest(of, _R2)))
        fits.append(place | {"W_V": kind} | _shown(of["trained"], ("a", "b", "b0", _ORDER)))
        shown = {name: str(mean_share(one[_R2])) for name, one in of.items()}
        controls.append(place | {"W_V": kind} | shown | {"exp(-D_H / beta)": falling})
        if 2 * int(d) != 1 << bits or length != first:  # pyright: ignore[reportArgumentType]
            continue
        series = {kind: of["trained"]} | ({"untrained": of["untrained"]} if kind == TRAINED else {})
        for name, one in series.items():
            means, spread = (np.stack(one[column].to_list()).mean(0) for column in ("means", "deviations"))
            drawn.append(
                pd.DataFrame({"D_H": np.arange(bits + 1), "mean": means, "low": means - spread, "high": means + spread})
                .assign(W_E=str(name), panel=f"m = {m}")
            )  # fmt: skip
            spots += [
                {"setting": f"m = {m}", "panel": measure_, "W_E": name} | mean_share(one[measure_])._asdict()
                for measure_ in (_R2, "R^2 of pairs")
            ]
    figures = _figures(settings, pd.concat(drawn), pd.DataFrame(spots))
    caption, small = next(iter(figures)), f"m = {min(settings.m)}, L = {first}"
    ours = f"d = V/2 and L = {first} in the figure, others in the table; omega = 1/2, beta = 1, the recipe."
    counted = [one for one in line if one.counted]
    seen = (
        f"With W_V trained a line through the means has an R^2 of {span(one.effect.mean for one in counted)} at m = "
        f"{', '.join(map(str, settings.judged))} over all d and L, untrained or shuffled embeddings one of "
        f"{span(one.control.mean for one in counted)}. The point at distance 0 is b0."
    )
    plain = (
        f"With W_V = I the R^2 of the line is {span(one.effect.mean for one in identity)} over m = "
        f"{min(settings.m)} to {max(settings.m)}."
    )
    return Report(
        evidence=tuple(zip(RULES, (line, order, identity, falling_line), strict=True)),
        figures=figures,
        tables={
            "Equation 5.2 by m, d, L and W_V, trained": pd.DataFrame(fits),
            "R^2 of means, and of the controls": pd.DataFrame(controls),
            f"Sweep of d and weight decay: {small}": _sweep(rows, WIDTH, ["d", "weight_decay"]),
            f"Sweep of learning rate and steps: {small}": _sweep(rows, SPEED, ["lr", "steps"]),
        },
        paper=(
            *(beside(figure, ours, caption, seen) for figure in ("Figure 3b", "Figure C.5")),
            beside("Figure C.6", ours, caption, plain),
        ),
    )


def _strongest(of: dict[str, pd.DataFrame], number: str) -> np.ndarray:
    """Of the controls the one with the largest mean; one without numbers counts as the strongest."""
    rivals = [of[name][number].to_numpy() for name in _NAMES[1:]]
    return max(rivals, key=lambda one: np.nan_to_num(one.mean(), nan=np.inf))


def _figures(settings: EmbeddingGeometry, drawn: pd.DataFrame, spots: pd.DataFrame) -> dict[str, "Figure"]:
    words = "Hamming distance", "inner product / b0"
    lines = curves(drawn, x="D_H", y="mean", xlabel=words[0], ylabel=words[1], panel="panel", series="W_E")
    fits = dots(spots, xlabel="R^2", series="W_E", panel="panel")
    for axis in fits.axes:
        axis.set_xlim(-0.05, 1.05)  # an interval over few seeds goes beyond what R^2 can be
    return {
        "Inner products of embeddings over Hamming distance, as shares of b0: mean over pairs and seeds; the band is "
        "one standard deviation over pairs.": lines,
        f"R^2 of the line over Hamming distance; mean and 95% interval over {settings.seeds} seeds.": fits,
    }


def _shown(part: pd.DataFrame, more: tuple[str, ...]) -> dict[str, Any]:
    """A table's columns for the trained runs of one setting."""
    found = {name: str(over_seeds(part[name])) for name in (_R2, "R^2 of pairs", *more)}
    if "b" in more:
        found["a m / 2"] = str(over_seeds(part["a"] * part["m"] / 2))
    accuracy = {name: str(mean_share(part[name])) for name in ("accuracy", "bayes")}
    return found | accuracy | {"diverged": part["diverged"].notna().sum()}


def _sweep(rows: pd.DataFrame, part: str, over: list[str]) -> pd.DataFrame:
    found = rows[rows["part"] == part].groupby([*over, "W_V"], sort=False)
    return pd.DataFrame([dict(zip([*over, "W_V"], at, strict=True)) | _shown(one, (_ORDER,)) for at, one in found])


if __name__ == "__main__":
    sys.exit(main(__name__))
