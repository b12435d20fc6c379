"""Longer contexts are recalled better (section C.6; Theorems 1 and 4).

One trained model a seed is asked about contexts of many lengths L, beside Bayes on the same contexts and the union
bound on Bayes' error. The control for length alone: contexts in which only as many tokens as the shortest context has
are drawn for the concept, and the rest are uniform noise.
"""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch

from lcalens import LatentConcepts
from lcalens.core.estimates import exact
from lcalens.lca.world import bayes
from probes.harness.figures import curves
from probes.harness.paper_figures import FIGURES, beside, span
from probes.harness.rules import CHANGE, SHARE, Rule, paired
from probes.harness.run import main
from probes.harness.shares import mean_change, mean_share
from probes.harness.study import Report, Settings
from probes.harness.toy import answered, reader, recipe
from probes.harness.work import Work

_PADDED = "contexts of the longest L in which all but as many tokens as the shortest has are uniform noise"
RULES = (
    Rule(
        claim="The longer the context, the more accurate the recall.",
        source="section C.6",
        group="paper",
        sentence=FIGURES["Figure C.14"].sentence,
        effect="accuracy at the longest L",
        unit="accuracy",
        minimum=0.5,
        control="accuracy of the same models at the shortest L",
        margin=0.3,
        effect_range=SHARE,
        control_range=SHARE,
    ),
    Rule(
        claim="It is what the tokens say that helps: as long a context of noise does not.",
        source="section C.6; a stronger control",
        group="stronger",
        effect="accuracy at the longest L, less that at the shortest",
        unit="accuracy",
        minimum=0.3,
        control=f"the same with {_PADDED}",
        margin=0.2,
        effect_range=CHANGE,
        control_range=CHANGE,
    ),
    Rule(
        claim="In long contexts a trained model recalls the concept almost always.",
        source="section C.6; Theorems 1 and 4",
        group="ours",
        effect="accuracy at the longest L",
        unit="accuracy",
        minimum=0.95,
        control=_PADDED,
        margin=0.2,
        effect_range=SHARE,
        control_range=SHARE,
    ),
)
CHOICES = """
Whether the paper trains a model for each length is not said. Here one model, trained at a single L, is asked about all
of them: what changes is the context alone. The sweep shows whether the L it was trained at matters, over numbers of
training steps, at the smallest m; its largest number of steps is the full preset's. The smallest, middle and largest
of the lengths are shown there.

The last token speaks of the concept at every L and in the control. The union bound leaves it out: one less the bound
is a lower bound on Bayes' accuracy, not drawn where it is 0 and says nothing.
"""
_MODEL, _BAYES, _NOISE, _BOUND = "trained model", "Bayes", "padded with noise", "1 - union bound"


@dataclass(frozen=True, kw_only=True)
class ContextLength(Settings):
    """Accuracy of one trained model over lengths.

    Attributes:
        m: Numbers of latent bits.
        lengths: Context lengths L at which models are measured.
        trained_at: L that they are trained at.
        lr: Learning rate.
        steps: Training steps.
        contexts: Contexts measured at each length, for each run.
        sweep_trained_at: L that the models of the sweep are trained at.
        sweep_steps: Steps of the sweep.
    """

    m: tuple[int, ...] = (5, 6, 7, 8)
    lengths: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512)
    trained_at: int = 64
    lr: float = 0.03
    steps: int = 1000
    contexts: int = 8000
    sweep_trained_at: tuple[int, ...] = (16, 64, 256)
    sweep_steps: tuple[int, ...] = (300, 1000, 3000)


PRESETS = {
    "quick": ContextLength(
        preset="quick",
        seeds=2,
        m=(4,),
        lengths=(4, 16, 64, 256),
        trained_at=32,
        steps=60,
        contexts=1000,
        sweep_trained_at=(32,),
        sweep_steps=(30,),
    ),
    "standard": ContextLength(),
    "full": ContextLength(preset="full", seeds=3, steps=3000),
}


def grid(settings: ContextLength) -> list[dict[str, Any]]:
    """A cell for each m, and for each recipe of the sweep."""
    plan = [("grid", m, settings.trained_at, settings.steps) for m in settings.m]
    plan += [
        ("sweep", min(settings.m), at, steps) for at in settings.sweep_trained_at for steps in settings.sweep_steps
    ]
    names = ("part", "m", "trained at", "steps")
    lengths = sorted(set(settings.lengths))
    shared = {"lr": settings.lr, "lengths": lengths, "contexts": settings.contexts, "seeds": settings.seeds}
    return [dict(zip(names, one, strict=True)) | shared for one in plan]


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """Train, and ask at every length; a row a run and length."""
    concepts, lengths = LatentConcepts(cell["m"]), cell["lengths"]
    config = recipe(cell["m"], cell["trained at"], cell["lr"], cell["steps"])
    shown = {name: cell[name] for name in ("part", "m", "trained at", "steps")}
    rows = []
    for run in work.train(concepts, config, cell["seeds"]):
        generator, model = torch.Generator().manual_seed(run.seed), reader(run)
        ideal = partial(bayes.log_likelihood, concepts)
        for length in lengths:
            counts, last, y = concepts.sample_counts(cell["contexts"], length, generator)
            noisy, spoken = padded(concepts, cell["contexts"], min(lengths), length, generator)
            found = {
                _MODEL: answered(model, counts, last, y)[0],
                _BAYES: answered(ideal, counts, last, y)[0],
                _NOISE: answered(model, *concepts.count(noisy), spoken)[0],
                _BOUND: 1 - bayes.union_bound(concepts, length),
            }
            rows.append(shown | {"seed": run.seed, "L": length, "diverged": run.diverged is not None} | found)
    return rows


def padded(
    concepts: LatentConcepts, contexts: int, informed: int, length: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Contexts of which the last `informed` tokens are drawn as ever and those before are noise; and their concepts."""
    tokens, y = concepts.sample(contexts, informed, generator)
    noise = torch.randint(concepts.vocab_size, (contexts, length - informed), generator=generator)
    return torch.cat([noise, tokens], 1), y


def report(settings: ContextLength, rows: pd.DataFrame) -> Report:
    """Accuracy over L, by m."""
    lengths = sorted(set(settings.lengths))
    shortest, longest = lengths[0], lengths[-1]
    longer, gains, levels, drawn, table = [], [], [], [], []
    for m, part in rows[rows["part"] == "grid"].groupby("m"):
        over = {name: part.pivot(index="seed", columns="L", values=name) for name in (_MODEL, _NOISE)}
        start, where = over[_MODEL][shortest], f"m = {m}"
        longer.append(paired(where, over[_MODEL][longest], start))
        gains.append(paired(where, over[_MODEL][longest] - start, over[_NOISE][longest] - start))
        levels.append(paired(where, over[_MODEL][longest], over[_NOISE][longest]))
        for length, at in part.groupby("L"):
            means = {name: mean_share(at[name]) for name in (_MODEL, _BAYES, _NOISE)}
            means[_BOUND] = exact(at[_BOUND].iloc[0])
            told = {name: mean for name, mean in means.items() if name != _BOUND or mean.mean > 0}
            drawn += [{"L": length, "panel": where, "series": name} | mean._asdict() for name, mean in told.items()]
            shown = {name: str(mean) for name, mean in means.items()}
            table.append({"m": m, "L": length} | shown | {"diverged": at["diverged"].sum()})
    swept, marks = [], (shortest, lengths[len(lengths) // 2], longest)
    for (at, steps), part in rows[rows["part"] == "sweep"].groupby(["trained at", "steps"]):
        over = part.pivot(index="seed", columns="L", values=_MODEL)
        swept.append(
            {"trained at L =": at, "steps": steps}
            | {f"accuracy, L = {length}": str(mean_share(over[length])) for length in dict.fromkeys(marks)}
            | {"longest - shortest": str(mean_change(over[longest] - over[shortest]))}
        )
    caption = (
        f"Accuracy over L of models trained at L = {settings.trained_at}; mean and 95% interval over {settings.seeds} "
        "seeds. Bayes is the ceiling; 1 - union bound is a lower bound on it, not a measurement. Padded: the model on "
        f"{shortest} tokens as in a context of L = {shortest}, after noise."
    )
    seen = (
        f"The accuracy rises from {span(one.control.mean for one in longer)} at L = {shortest} to "
        f"{span(one.effect.mean for one in longer)} at L = {longest}, with Bayes a little above it. Padded with noise "
        f"to L = {longest} it is {span(one.control.mean for one in levels)}."
    )
    ours = f"one model a run, trained at L = {settings.trained_at} and asked at every L; d = V/2, the recipe, Bayes."
    return Report(
        evidence=tuple(zip(RULES, (longer, gains, levels), strict=True)),
        paper=(beside("Figure C.14", ours, caption, seen),),
        figures={
            caption: curves(
                pd.DataFrame(drawn),
                x="L",
                y="mean",
                xlabel="context length L",
                ylabel="accuracy",
                panel="panel",
                series="series",
                log2=True,
                ylim=(-0.03, 1.03),
            )
        },
        tables={
            "Accuracy by m and L": pd.DataFrame(table),
            f"The sweep: m = {min(settings.m)}, over the L and the steps of training": pd.DataFrame(swept),
        },
    )


if __name__ == "__main__":
    sys.exit(main(__name__))
