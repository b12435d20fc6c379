"""The closer two concepts' distributions, the more easily one is taken for the other (section 5.5).

For two concepts y and y' the Kullback-Leibler divergence of p(. | y) from p(. | y') is the same for all pairs that
differ in as many bits. Measured is how often a trained model's logit of y' is above that of y on clean contexts of y,
over that divergence times the L - 1 tokens that are drawn from p: one model a seed, asked at many lengths, and Bayes on
the same contexts. If the divergence decides, curves of different L and m come together.
"""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lcalens import LatentConcepts
from lcalens.lca.training.trainer import start_model
from lcalens.lca.world import bayes
from probes.harness.figures import curves
from probes.harness.paper_figures import FIGURES, beside, span
from probes.harness.rules import CHANGE, SHARE, Rule, paired
from probes.harness.run import main
from probes.harness.shares import mean_share
from probes.harness.study import Report, Settings
from probes.harness.toy import Reader, reader, recipe
from probes.harness.work import Work

RULES = (
    Rule(
        claim="A concept is taken for another more often, the closer the distributions of their tokens are.",
        source="section 5.5",
        group="paper",
        sentence=FIGURES["Section 5.5"].sentence,
        effect="the pairwise error against the closest concepts",
        unit="share of pairs",
        minimum=0.01,
        control="the pairwise error against the furthest concepts",
        margin=0.01,
        effect_range=SHARE,
        control_range=SHARE,
        unknown="L",
    ),
    Rule(
        claim="Training makes the difference: before it, near and far concepts are confused alike.",
        source="section 5.5; a stronger control",
        group="stronger",
        effect="the pairwise error against the closest concepts, less that against the furthest",
        unit="share of pairs",
        minimum=0.01,
        control="the same before training",
        margin=0.01,
        effect_range=CHANGE,
        control_range=CHANGE,
        unknown="L",
    ),
)
CHOICES = """
Section 5.5 gives no settings and no measure. Here an error is counted pair by pair: the logit of one other concept is
above that of the true one, a tie counting a half, whatever the rest of the vocabulary does. Concepts are grouped by the
number of bits in which they differ from y, which fixes the divergence; the closest are not always one bit away, since y
itself is never drawn from pi(. | y), so they are told by their divergence. The last token is drawn from pi and is left
out of the divergence. L decides how many errors there are at all: in long contexts there are none to tell apart.
"""
_MODEL, _BEFORE, _BAYES = "trained model", "before training", "Bayes"


@dataclass(frozen=True, kw_only=True)
class Divergence(Settings):
    """Pairwise errors over the divergence of two concepts' distributions.

    Attributes:
        m: Numbers of latent bits.
        lengths: Context lengths L at which models are asked.
        trained_at: L that they are trained at.
        lr: Learning rate.
        steps: Training steps.
        contexts: Contexts at each length, for each run.
    """

    m: tuple[int, ...] = (5, 6, 7, 8)
    lengths: tuple[int, ...] = (8, 16, 32, 64, 128)
    trained_at: int = 64
    lr: float = 0.03
    steps: int = 1000
    contexts: int = 4000


PRESETS = {
    "quick": Divergence(
        preset="quick", seeds=2, m=(4,), lengths=(8, 32), trained_at=32, steps=60, contexts=1000
    ),
    "standard": Divergence(),
    "full": Divergence(preset="full", seeds=3, lengths=(8, 16, 32, 64, 128, 256), steps=3000, contexts=16_000),
}  # fmt: skip


def grid(settings: Divergence) -> list[dict[str, Any]]:
    """A cell for each m."""
    shared = {"lengths": sorted(set(settings.lengths)), "trained at": settings.trained_at, "lr": settings.lr}
    shared |= {"steps": settings.steps, "contexts": settings.contexts, "seeds": settings.seeds}
    return [{"m": m} | shared for m in settings.m]


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """Train, and ask at every length; a row for each run, reader, length and number of bits."""
    concepts, rows = LatentConcepts(cell["m"]), []
    config = recipe(cell["m"], cell["trained at"], cell["lr"], cell["steps"])
    apart = concepts.offset_distance
    divergence = bayes.kl_divergence(concepts)
    for run in work.train(concepts, config, cell["seeds"]):
        readers: dict[str, Reader] = {
            _MODEL: reader(run),
            _BEFORE: start_model(concepts, config, run.seed).from_counts,
            _BAYES: partial(bayes.log_likelihood, concepts),
        }
        generator = torch.Generator().manual_seed(run.seed)
        for length in cell["lengths"]:
            counts, last, y = concepts.sample_counts(cell["contexts"], length, generator)
            for name, read in readers.items():
                errors = pairwise_errors(read, counts, last, y)
                rows += [
                    {"m": cell["m"], "L": length, "seed": run.seed, "reader": name, "D_H": bits}
                    | {"KL": float(divergence[apart == bits][0]), "error": float(errors[apart == bits].mean())}
                    for bits in range(1, concepts.m + 1)
                ]
    return rows


@torch.no_grad()
def pairwise_errors(read: Reader, counts: Tensor, last: Tensor, y: Tensor) -> Tensor:
    """For every mask the share of contexts in which y XOR mask scores above y; a tie counts a half, NaN stays NaN.

    Args:
        read: A model's scores, or Bayes'.
        counts: How often each token occurs.
        last: The last token.
        y: The concept of each context.
    """
    scores = read(counts, last).double()
    masks = torch.arange(scores.shape[1])
    others = scores.gather(1, y[:, None] ^ masks)
    true = scores.gather(1, y[:, None])
    wrong = (others > true).double() + (others == true).double() / 2
    return torch.where(scores.isnan().any(), torch.nan, wrong.mean(0))


def report(settings: Divergence, rows: pd.DataFrame) -> Report:
    """Errors against the closest and the furthest concepts, by m and L."""
    paper, stronger, drawn, table = [], [], [], []
    for (m, length), part in rows.groupby(["m", "L"]):
        near, far = (int(part["D_H"].iloc[at]) for at in (int(part["KL"].argmin()), int(part["KL"].argmax())))
        over = part.pivot(index="seed", columns=["reader", "D_H"], values="error")
        setting = f"m = {m}, L = {length}"
        paper.append(paired(setting, over[_MODEL, near], over[_MODEL, far], at=length))  # pyright: ignore[reportArgumentType]
        gaps = [over[name, near] - over[name, far] for name in (_MODEL, _BEFORE)]
        stronger.append(paired(setting, *gaps, at=length))  # pyright: ignore[reportArgumentType]
        line: dict[str, Any] = {"m": m, "L": length, "closest, D_H": near, "furthest, D_H": far}
        for name in (_MODEL, _BAYES):
            line |= {f"{name}, closest": str(mean_share(over[name, near]))}
            line |= {f"{name}, furthest": str(mean_share(over[name, far]))}
        table.append(line)
        for name in (_MODEL, _BAYES):
            of = part[part["reader"] == name].groupby("KL")["error"]
            drawn += [
                {"panel": f"m = {m}", "series": f"{name}, L = {length}", "KL times tokens": kl * (length - 1)}  # pyright: ignore[reportOperatorIssue]
                | mean_share(errors)._asdict()
                for kl, errors in of
            ]
    caption = (
        "How often another concept scores above the true one, over the divergence of the two times L - 1, clean "
        f"contexts; mean and 95% interval over {settings.seeds} seeds."
    )
    shown = pd.DataFrame(drawn)
    figure = curves(
        shown[~shown["series"].str.startswith(_BAYES)], x="KL times tokens", y="mean",
        xlabel="divergence times (L - 1), nats", ylabel="pairwise error", panel="panel", series="series", ylim=(0, 0.5),
    )  # fmt: skip
    for axis in figure.axes:
        axis.set_xscale("log")
        axis.set_xticks([1, 10, 100], ["1", "10", "100"])
        axis.minorticks_off()
    seen = (
        f"Against the closest concepts the pairwise error is {span(one.effect.mean for one in paper)} over all m and "
        f"L, against the furthest {span(one.control.mean for one in paper)}; both fall as L grows. The rank "
        "correlation of error and divergence times L - 1, over all lengths and distances of one m, is "
        f"{span(_ranks(rows))}."
    )
    ours = f"everything: m, L = {', '.join(map(str, settings.lengths))}, d = V/2, the recipe, errors pair by pair."
    return Report(
        evidence=tuple(zip(RULES, (paper, stronger), strict=True)),
        figures={caption: figure},
        tables={"Pairwise errors against the closest and the furthest concepts": pd.DataFrame(table)},
        paper=(beside("Section 5.5", ours, caption, seen),),
    )


def _ranks(rows: pd.DataFrame) -> list[float]:
    """Spearman's correlation of the trained models' mean error with the divergence times L - 1, for each m."""
    kept = rows[rows["reader"] == _MODEL]
    found = []
    for _, part in kept.groupby("m"):
        means = part.groupby(["L", "KL"])["error"].mean().reset_index()
        found.append(float(np.corrcoef((means["KL"] * (means["L"] - 1)).rank(), means["error"].rank())[0, 1]))
    return found


if __name__ == "__main__":
    sys.exit(main(__name__))
