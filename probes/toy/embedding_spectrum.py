"""Trained embeddings are nearly of rank m: their singular values fall after the m-th (C.9 to C.12).

The ratio of each singular value of W_E to the next, in trained models. A gap is a large ratio. Controls:
the same embeddings before training, which are Gaussian and have no gap; and the trained embeddings' own ratios
everywhere else, as a gap that is one among many is no rank. W_E is taken as it is; centred embeddings, which lack the
direction of their mean, stand beside it: with a large mean the gap would be after the (m + 1)-th.
"""

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from lcalens import LatentConcepts
from lcalens.core.estimates import over_seeds
from lcalens.lca.geometry import spectral_gap, spectrum
from lcalens.views.style import tidy
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
from probes.harness.figures import COLOURS, curves, panels
from probes.harness.paper_figures import FIGURES, beside, span
from probes.harness.rules import Rule, paired
from probes.harness.run import main
from probes.harness.study import Report
from probes.harness.work import Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AFTER, _LEAD, _FIRST = "ratio after m", "ratio after m / largest other", "share of squares in the first m"
_CENTRED, _MEAN = "ratio after m, centred", "share of squares in the mean"
RULES = (
    Rule(
        claim="Trained embeddings' singular values have a gap after the m-th.",
        source="C.9 to C.12",
        group="paper",
        sentence=FIGURES["Figure C.9"].sentence,
        effect="the m-th singular value over the next",
        unit="ratio",
        minimum=1.5,
        control="the same of the untrained embeddings",
        margin=0.3,
        effect_range=(1.0, math.inf),
        control_range=(1.0, math.inf),
        unknown="L",
        headline="Trained embeddings are nearly of rank m",
    ),
    Rule(
        claim="The gap after the m-th singular value is the largest.",
        source="C.9 to C.12",
        group="ours",
        effect="the ratio after the m-th singular value over the largest ratio after any other",
        unit="ratio of ratios",
        minimum=1.1,
        control="the same of the untrained embeddings",
        margin=0.1,
        effect_range=(0.0, math.inf),
        control_range=(0.0, math.inf),
        unknown="L",
    ),
)
CHOICES = """
The paper's figures are at m = 7 and 8 with d = 32 and 64, four runs each; its L and recipe are unknown to us. It speaks
of a gap between the top and the bottom singular values and names no index: that the gap is after the m-th is what
section 5.3 suggests, that it is the largest of all is ours. Equation 5.2 asks for m, or m + 1 where embeddings have a
mean: its Gram matrix has one eigenvalue for the constant direction, one for all m single bits, and one for the rest.
Any Gram matrix that depends on Hamming distance alone has groups of 1, m, m (m - 1) / 2, ... equal eigenvalues, so a
gap may also lie after m + m (m - 1) / 2: the tables say where the largest is, of W_E as it is and centred. m = 5 and 6,
and d = V/2, are ours: shown, not counted. The two sweeps show how the gap depends on d, weight decay, learning rate and
steps, at the smallest m; the largest number of steps is the full preset's.
"""
_DRAWN = 4  # runs in each panel, as in the paper
_UNTRAINED = "untrained"
_PLACES = ("largest after", "largest after, centred")
_NUMBERS = (_AFTER, _LEAD, _FIRST, _CENTRED, _MEAN)


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpectrum(EmbeddingSettings):
    """Singular values of embeddings."""


PRESETS = {"quick": EmbeddingSpectrum(**QUICK), "standard": EmbeddingSpectrum(), "full": EmbeddingSpectrum(**FULL)}


def grid(settings: EmbeddingSpectrum) -> list[dict[str, Any]]:
    """A cell for each m, and for each point of both sweeps."""
    return cells(settings, (TRAINED, IDENTITY))


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """The spectrum of each run's embeddings, and in the grid of those before training; a row an embedding."""
    concepts, rows = LatentConcepts(cell["m"]), []
    kept = {name: cell[name] for name in ("part", "m", "d", "L", "lr", "weight_decay", "steps")}
    for kind, run, embedding, start in trained(cell, work):
        found = {"trained": missing(start) if embedding is None else gaps(concepts, embedding)}
        if cell["part"] == GRID:
            found[_UNTRAINED] = gaps(concepts, start)
        shared = kept | {"W_V": kind, "seed": run.seed, "accuracy": run.accuracy, "bayes": run.bayes}
        shared["diverged"] = run.diverged
        rows += [shared | {"W_E": name} | one for name, one in found.items()]
    return rows


def missing(like: torch.Tensor) -> dict[str, Any]:
    """What `gaps` gives, NaN: of a run that diverged.

    Args:
        like: An embedding of the same shape.
    """
    values = [np.nan] * min(like.shape)
    return dict.fromkeys(_NUMBERS, np.nan) | {"values": values, "ratios": values[1:]} | dict.fromkeys(_PLACES)


def gaps(concepts: LatentConcepts, embedding: torch.Tensor) -> dict[str, Any]:
    """The singular values, as shares of the largest, and what the rules and tables ask of them.

    Args:
        concepts: The world; it says what m is.
        embedding: Row t is token t's.
    """
    # Centring takes one of V dimensions away: where d >= V, the last singular value is 0 and no gap before it counts.
    m, mean = concepts.m, embedding.mean(0)
    found, centred = spectral_gap(concepts, embedding), spectral_gap(concepts, embedding - mean)
    inside = int(np.nanargmax(centred.ratios[: len(embedding) - 2])) + 1
    values, others = spectrum(embedding), np.delete(found.ratios, m - 1)
    numbers = (
        found.after_m,
        found.after_m / np.nanmax(others),
        (values[:m] ** 2).sum() / (values**2).sum(),
        centred.after_m,
        len(embedding) * mean.double().square().sum().item() / (values**2).sum(),
    )
    return (
        dict(zip(_NUMBERS, map(float, numbers), strict=True))
        | {
            "values": (values / values[0]).tolist(),
            "ratios": found.ratios.tolist(),
        }
        | dict(zip(_PLACES, (found.largest_after, inside), strict=True))
    )


def report(settings: EmbeddingSpectrum, rows: pd.DataFrame) -> Report:
    """The gap after the m-th singular value, by m, d, L and W_V."""
    main_part, first = rows[rows["part"] == GRID], settings.lengths[0]
    evidence: dict[str, list[Any]] = {_AFTER: [], _LEAD: []}
    table, lines = [], []
    spectra = main_part[main_part["m"].isin(settings.spectra_m) & main_part["d"].isin(settings.spectra_d)]
    for (m, d, length, kind), part in main_part.groupby(["m", "d", "L", "W_V"], sort=False):
        of = {name: one.sort_values("seed") for name, one in part.groupby("W_E")}
        place = {"m": m, "d": d, "L": length}
        if kind == TRAINED:
            asked = {"at": length, "counted": m in settings.spectra_m and d in settings.spectra_d}
            for name, found in evidence.items():
                pair = (of[one][name].to_numpy() for one in ("trained", _UNTRAINED))
                found.append(paired(f"m = {m}, d = {d}, L = {length}", *pair, **asked))
            table.append(place | {"W_E": _UNTRAINED, "W_V": "any"} | _shown(of[_UNTRAINED], trained=False))
        table.append(place | {"W_E": "trained", "W_V": kind} | _shown(of["trained"]))
        if 2 * int(d) == 1 << int(m) and length == first:  # pyright: ignore[reportArgumentType]
            lines.append((m, kind, of["trained"]))
            lines += [(m, _UNTRAINED, of[_UNTRAINED])] * (kind == TRAINED)
    figures = {}
    runs = f"Singular values of W_E at L = {first}, {_DRAWN} runs each; the dotted line is after the m-th."
    if len(drawn := spectra[(spectra["L"] == first) & (spectra["W_V"] == TRAINED) & (spectra["W_E"] == "trained")]):
        figures[runs] = _runs(drawn)
    counted = [one for one in evidence[_AFTER] if one.counted]
    return Report(
        evidence=tuple(zip(RULES, evidence.values(), strict=True)),
        figures=figures | _figures(settings, lines),
        tables={
            "Gaps by m, d, L and W_V": pd.DataFrame(table),
            f"Sweep of d and weight decay: m = {min(settings.m)}, L = {first}": _sweep(
                rows, WIDTH, ["d", "weight_decay"]
            ),
            f"Sweep of learning rate and steps: m = {min(settings.m)}, L = {first}": _sweep(
                rows, SPEED, ["lr", "steps"]
            ),
        },
        notes=(
            "'Largest after' says after which singular value the largest ratio is, and in brackets in how many of "
            f"{settings.seeds} runs. A mean with a share of squares near 0 cannot change the spectrum, centred or not.",
        ),
        paper=tuple(
            beside(
                f"Figure C.{number}",
                f"L = {', '.join(map(str, settings.lengths))}, omega = 1/2, beta = 1, the recipe.",
                runs,
                f"{_seen(counted, f'm = {m}, d = {d},')} (The figure is the same for C.9 to C.12, a panel each.)",
            )
            for number, (m, d) in enumerate(((7, 32), (7, 64), (8, 32), (8, 64)), 9)
            if m in settings.spectra_m and d in settings.spectra_d and runs in figures
        ),
    )


def _seen(evidence: list[Any], place: str) -> str:
    """The gap at one m and d, by L."""
    here = [one for one in evidence if one.setting.startswith(place)]
    gaps = "; ".join(f"{one.effect.mean:.3g} at L = {one.at}" for one in here)
    return (
        f"The m-th singular value over the next is {gaps}; in embeddings before training it is "
        f"{span(one.control.mean for one in here)}."
    )


def _runs(part: pd.DataFrame) -> "Figure":
    """Singular values over their index, a panel for each m and d and a line a run."""
    shapes = list(part.groupby(["m", "d"]))
    figure, axes = panels(len(shapes), sharey=True)
    for axis, ((m, d), some) in zip(axes, shapes, strict=True):
        for colour, values in zip(COLOURS, some.sort_values("seed")["values"].to_list()[:_DRAWN], strict=False):
            axis.plot(range(1, len(values) + 1), values, color=colour, lw=0.9, marker="o", ms=1.8)
        axis.axvline(int(m) + 0.5, color="black", lw=0.8, ls=":")  # pyright: ignore[reportArgumentType]
        axis.set_title(f"m = {m}, d = {d}", fontsize=8)
        axis.set_xlabel("index k")
        axis.set_ylim(0, 1.05)
        tidy(axis)
    axes[0].set_ylabel("singular value / largest")
    return figure


def _figures(settings: EmbeddingSpectrum, lines: list[tuple[int, str, pd.DataFrame]]) -> dict[str, "Figure"]:
    """Values and ratios over their index, a dotted line at m; ratios of the rules' two alone, as W_V = I's are huge."""
    asked = {
        "values": ("Singular values of W_E, as shares of the largest", "singular value / largest", (0, 1.05)),
        "ratios": ("Each singular value over the next", "ratio to the next", None),
    }
    figures = {}
    for name, (caption, label, ylim) in asked.items():
        drawn = [
            {"k": k, "panel": f"m = {m}", "W_E": series} | over_seeds(at_k)._asdict()
            for m, series, part in lines
            if name == "values" or series in (TRAINED, _UNTRAINED)
            for k, at_k in enumerate(zip(*part[name], strict=True), 1)
        ]
        words = {"x": "k", "y": "mean", "xlabel": "index k", "ylabel": label, "panel": "panel", "series": "W_E"}
        figure = curves(pd.DataFrame(drawn), **words, ylim=ylim)  # pyright: ignore[reportArgumentType]
        for axis, m in zip(figure.axes, dict.fromkeys(m for m, _, _ in lines), strict=True):
            axis.set_xscale("log", base=2)
            axis.set_xticks([1 << power for power in range(m)], [str(1 << power) for power in range(m)])
            axis.axvline(m, color="black", lw=0.8, ls=":")
            if name == "ratios":
                axis.set_yscale("log")
                axis.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
                axis.minorticks_off()
                axis.set_ylim(bottom=0.8)
        figures[f"{caption}; mean and 95% interval over {settings.seeds} seeds. The dotted line is at k = m."] = figure
    return figures


def _shown(part: pd.DataFrame, *, trained: bool = True) -> dict[str, Any]:
    """A table's columns for one setting."""
    found = {name: str(over_seeds(part[name])) for name in (_AFTER, _CENTRED)}
    for name in _PLACES:
        counts = part[name].dropna().astype(int).value_counts()
        found[name] = ", ".join(f"{index} ({count})" for index, count in counts.items())
    found |= {name: str(over_seeds(part[name])) for name in (_FIRST, _MEAN)}
    names = ("accuracy", "bayes")
    found |= {name: str(over_seeds(part[name])) if trained else "" for name in names}
    return found | {"diverged": part["diverged"].notna().sum() if trained else ""}


def _sweep(rows: pd.DataFrame, part: str, over: list[str]) -> pd.DataFrame:
    found = rows[rows["part"] == part].groupby([*over, "W_V"], sort=False)
    return pd.DataFrame([dict(zip([*over, "W_V"], at, strict=True)) | _shown(one) for at, one in found])


if __name__ == "__main__":
    sys.exit(main(__name__))
