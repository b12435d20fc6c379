"""Attention selects the tokens of the last token's cluster (Figures 3c, C.7, C.8; sections 5.4 and 6.3).

Attention mass of trained models inside the last token's cluster, against uniform attention on the same contexts. The
controls: the same models before training, and groups of tokens that share as many other bits with the last token.
Then whether that is what makes the model accurate: beside models trained with W_K = W_Q = 0, in worlds with clusters
and in the world without (N = all). Bayes is the ceiling that nothing beats.
"""

import copy
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from lcalens import LatentConcepts
from lcalens.core.estimates import over_seeds
from lcalens.lca import LCAForCausalLM, attention_pattern
from lcalens.lca.training.trainer import start_model
from lcalens.lca.world import bayes
from probes.harness.figures import dots, heat_maps
from probes.harness.paper_figures import FIGURES, beside, span
from probes.harness.rules import CHANGE, Rule, paired
from probes.harness.run import main
from probes.harness.shares import mean_change, mean_share
from probes.harness.study import Report, Settings
from probes.harness.toy import answered, reader, recipe
from probes.harness.work import Work

_MASS = "attention mass inside the last token's cluster, less what uniform attention pays there"
RULES = (
    Rule(
        claim="Attention selects the tokens of the last token's cluster.",
        source="Figures 3c, C.7, C.8",
        group="paper",
        sentence=FIGURES["Figure 3c"].sentence,
        effect=_MASS,
        unit="attention mass",
        minimum=0.1,
        control="the same models before training",
        margin=0.1,
        effect_range=CHANGE,
        control_range=CHANGE,
        headline="Attention selects the last token's cluster",
    ),
    Rule(
        claim="What attention selects is the cluster, not tokens alike in any bits.",
        source="Figures 3c, C.7, C.8; a stronger control",
        group="stronger",
        effect=_MASS,
        unit="attention mass",
        minimum=0.1,
        control="the same for tokens that share as many other bits with the last token, at the most over such bits",
        margin=0.1,
        effect_range=CHANGE,
        control_range=CHANGE,
    ),
    Rule(
        claim="Attention that can select makes the model more accurate, where there are clusters.",
        source="sections 5.4, 6.3",
        group="ours",
        effect="accuracy with W_K and W_Q trained, less that of models trained with W_K = W_Q = 0",
        unit="accuracy",
        minimum=0.02,
        control="the same in the world N = all, where no cluster is shut out",
        margin=0.02,
        effect_range=CHANGE,
        control_range=CHANGE,
    ),
)
CHOICES = """
The paper's share of noise, temperature, L, d and recipe are unknown to us. Here omega and beta are those of
`LatentConcepts`' defaults in every world, and the recipe is that of the other toy probes. The sweep shows selection
and accuracy over learning rates and numbers of steps, at the smallest m and one bit of cluster; its largest number of
steps is the full preset's. The heat maps are means over the runs, of the attention in a context in which every token
occurs once, times V: uniform attention is 1 everywhere.

"Forced uniform" sets W_K and W_Q to zero in the trained model, whose W_E and W_V have come to rely on its attention;
the rule asks for models that were trained without it instead. "Cluster alone" gives uniform attention to the tokens of
the last token's cluster and none to the others: selection, and nothing else. In N = all there is no cluster; columns
that need one take the tokens that share the first bit with the last token.
"""
_EXCESS = {"trained": "mass", "before training": "before training", "other bits": "other bits"}
_ACCURACY = ("trained", "forced uniform", "cluster alone", "K = Q = 0", "K = Q = 0, cluster alone", "Bayes")


@dataclass(frozen=True, kw_only=True)
class AttentionSelection(Settings):
    """Attention inside the cluster, and accuracy with attention and without.

    Attributes:
        m: Numbers of latent bits, 4 or more.
        bits: Bits that define a cluster; the world N = all is always added.
        length: Context length L.
        lr: Learning rate.
        steps: Training steps.
        contexts: Contexts measured for each run.
        sweep_lr: Learning rates of the sweep.
        sweep_steps: Steps of the sweep.
    """

    m: tuple[int, ...] = (5, 6, 7, 8)
    bits: tuple[int, ...] = (1, 2)
    length: int = 64
    lr: float = 0.03
    steps: int = 1000
    contexts: int = 8000
    sweep_lr: tuple[float, ...] = (0.01, 0.03, 0.1)
    sweep_steps: tuple[int, ...] = (300, 1000, 3000)


PRESETS = {
    "quick": AttentionSelection(
        preset="quick", seeds=2, m=(4,), length=32, steps=60, contexts=2000, sweep_lr=(0.03,), sweep_steps=(30,)
    ),
    "standard": AttentionSelection(),
    "full": AttentionSelection(preset="full", seeds=3, steps=3000),
}


def grid(settings: AttentionSelection) -> list[dict[str, Any]]:
    """A cell for each m, world (0 bits: N = all) and recipe."""
    plan = [("grid", m, bits, settings.lr, settings.steps) for m in settings.m for bits in (*settings.bits, 0)]
    smallest = (min(settings.m), min(settings.bits))
    plan += [("sweep", *smallest, lr, steps) for lr in settings.sweep_lr for steps in settings.sweep_steps]
    names = ("part", "m", "bits", "lr", "steps")
    shared = {"L": settings.length, "contexts": settings.contexts, "seeds": settings.seeds}
    return [dict(zip(names, one, strict=True)) | shared for one in plan]


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """Train with attention and without; a row a seed."""
    m, bits = cell["m"], cell["bits"] or 1
    concepts = LatentConcepts(m, neighborhood="cluster", cluster_bits=bits) if cell["bits"] else LatentConcepts(m)
    ours = recipe(m, cell["L"], cell["lr"], cell["steps"])
    blind = replace(ours, attention="zero", train_attention=False)
    runs = work.train(concepts, (ours, blind), cell["seeds"])
    first, *others = (((1 << bits) - 1) << shift for shift in range(m - bits, -1, -1))
    others = [mask for mask in others if not mask & first]
    rows = []
    for run, without in zip(runs[: cell["seeds"]], runs[cell["seeds"] :], strict=True):
        counts, last, y = concepts.sample_counts(cell["contexts"], cell["L"], torch.Generator().manual_seed(run.seed))
        before = start_model(concepts, ours, run.seed)
        paid, uniform = mass(run.model, counts, last, first) if run.diverged is None else (np.nan, np.nan)
        alike = [np.subtract(*mass(run.model, counts, last, mask)) for mask in others]
        inside = counts * (((torch.arange(1 << m) ^ last[:, None]) & first) == 0)
        forced = reader(run, forced_uniform)
        found = {
            "mass": paid - uniform,
            "before training": np.subtract(*mass(before, counts, last, first)),
            "other bits": max(alike) if run.diverged is None else np.nan,
            "paid": paid,
            "uniform": uniform,
            "trained": answered(reader(run), counts, last, y)[0],
            "forced uniform": answered(forced, counts, last, y)[0],
            "cluster alone": answered(forced, inside, last, y)[0],
            "K = Q = 0": answered(reader(without), counts, last, y)[0],
            "K = Q = 0, cluster alone": answered(reader(without), inside, last, y)[0],
            "Bayes": answered(partial(bayes.log_likelihood, concepts), counts, last, y)[0],
            "diverged": (run.diverged is not None) + (without.diverged is not None),
            "pattern": None,
        }
        rows.append(cell | {"seed": run.seed} | found)
    if cell["part"] == "grid" and cell["bits"]:
        rows[0]["pattern"] = mean_pattern(concepts, runs[: cell["seeds"]])
    return rows


def mean_pattern(concepts: LatentConcepts, runs: Any) -> list[list[float]] | None:
    """The mean over the runs of the attention where every token occurs once, times V; None where all diverged.

    Args:
        concepts: The world.
        runs: Trained models.
    """
    sound = [attention_pattern(concepts, run.model).values["attention"] for run in runs if run.diverged is None]
    return (np.mean(sound, 0) * concepts.vocab_size).round(3).tolist() if sound else None


@torch.no_grad()
def mass(model: LCAForCausalLM, counts: torch.Tensor, last: torch.Tensor, mask: int) -> tuple[float, float]:
    """Attention to the tokens that share the mask's bits with the last token, and what uniform attention pays them."""
    near = ((torch.arange(counts.shape[1]) ^ last[:, None]) & mask) == 0
    share = counts.double() / counts.double().sum(-1, keepdim=True)
    paid = model.attention_from_counts(counts, last).double()
    return float((paid * near).sum(-1).mean()), float((share * near).sum(-1).mean())


def forced_uniform(model: LCAForCausalLM) -> LCAForCausalLM:
    """A copy that attends to every position alike."""
    changed = copy.deepcopy(model)
    for projection in (changed.attn.q, changed.attn.k):
        torch.nn.init.zeros_(projection.weight)
    return changed


def report(settings: AttentionSelection, rows: pd.DataFrame) -> Report:
    """Selection and accuracy, by m and world."""
    main_part, sweep = rows[rows["part"] == "grid"], rows[rows["part"] == "sweep"]
    selected, cluster, accurate, masses, accuracies, drawn = [], [], [], [], [], []
    gained = {
        key: pd.Series(part["trained"].to_numpy() - part["K = Q = 0"].to_numpy(), index=part["seed"])
        for key, part in main_part.groupby(["m", "bits"])
    }
    for (m, bits), part in main_part.groupby(["m", "bits"], sort=False):
        named = {"m": m, "world": _world(bits)}
        where = f"m = {m}, {_world(bits)}"
        part = part.set_index("seed")
        if bits:
            selected.append(paired(where, part["mass"], part["before training"]))
            cluster.append(paired(where, part["mass"], part["other bits"]))
            accurate.append(paired(where, gained[m, bits], gained[m, 0]))
        masses.append(
            named
            | {"trained": str(mean_share(part["paid"])), "uniform": str(mean_share(part["uniform"]))}
            | {f"excess, {name}": str(mean_change(part[column])) for name, column in _EXCESS.items()}
        )
        means = {name: mean_share(part[name]) for name in _ACCURACY}
        accuracies.append(
            named | {name: str(mean) for name, mean in means.items()} | {"diverged": part["diverged"].sum()}
        )
        sensible = {name: mean for name, mean in means.items() if bits or "cluster" not in name}
        drawn += [{"setting": where, "model": name} | mean._asdict() for name, mean in sensible.items()]
    swept = []
    for (lr, steps), part in sweep.groupby(["lr", "steps"]):
        columns = {"excess mass": part["mass"], "before training": part["before training"]}
        columns |= {name: part[name] for name in ("trained", "K = Q = 0", "Bayes")}
        columns["trained - (K = Q = 0)"] = part["trained"] - part["K = Q = 0"]
        swept.append({"lr": lr, "steps": steps} | {name: str(over_seeds(one)) for name, one in columns.items()})
    smallest = min(settings.m)
    figures, captions = {}, {}
    for bits in settings.bits:
        kept = main_part[(main_part["bits"] == bits) & main_part["pattern"].notna()]
        maps = {f"m = {one['m']}": np.array(one["pattern"]) for one in kept.to_dict("records")}
        if maps:
            captions[bits] = (
                f"Mean attention over {settings.seeds} models, {_world(bits)}, every token once in the context; 1 is "
                "uniform attention. Tokens are in order, so that a cluster is a block."
            )
            figures[captions[bits]] = heat_maps(
                maps, xlabel="token attended to", ylabel="last token", label="attention times V"
            )
    figures[
        f"Accuracy at L = {settings.length}; mean and 95% interval over {settings.seeds} seeds. Bayes is the ceiling."
    ] = dots(pd.DataFrame(drawn), xlabel="accuracy", series="model")
    return Report(
        evidence=((RULES[0], selected), (RULES[1], cluster), (RULES[2], accurate)),
        figures=figures,
        tables={
            "Attention mass inside the last token's cluster": pd.DataFrame(masses),
            "Accuracy with attention and without": pd.DataFrame(accuracies),
            f"The sweep: m = {smallest}, {_world(min(settings.bits))}": pd.DataFrame(swept),
        },
        paper=tuple(
            beside(
                figure,
                f"L = {settings.length}, d = V/2, omega = 1/2, beta = 1, the recipe.",
                captions[bits],
                _seen(main_part[main_part["bits"] == bits]),
            )
            for figure, bits in (("Figure 3c", 1), ("Figure C.7", 1), ("Figure C.8", 2))
            if bits in captions
        ),
    )


def _seen(part: pd.DataFrame) -> str:
    """The attention inside the cluster by m, in words."""
    means = part.groupby("m")[["paid", "uniform", "other bits"]].mean()
    return (
        f"Trained attention pays {span(means['paid'])} of its mass to the last token's cluster, where uniform "
        f"attention would pay {span(means['uniform'])}. To tokens that share as many other bits with the last token, "
        f"our control, it pays at most {span(means['other bits'])} above uniform."
    )


def _world(bits: Any) -> str:
    return f"clusters of {bits} bit{'s' * (bits > 1)}" if bits else "N = all"


if __name__ == "__main__":
    sys.exit(main(__name__))
