"""The trained value matrix can be swapped for the constructed one (section 6.1, Figure C.2).

Accuracy of a trained model before and after its value matrix W_V is replaced by the constructed one of equation 5.1,
made of the model's own embeddings; nothing else changes and nothing is trained again. The controls are the paper's
(the same number of pairs, drawn at random) and stronger ones that use no pairs: E E^T, which stores each token by
itself, and the identity. Embeddings are trained, or frozen at their Gaussian start, where they are not orthogonal and
interfere; the same construction from the pseudo-inverse is meant to take that out. All matrices of one run see the same
fresh contexts, Bayes too. The answer is an argmax and attention does not read W_V, so the scale of a matrix does not
matter, and none is fitted.
"""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from lcalens import LatentConcepts
from lcalens.lca.model.closed_forms import with_value
from lcalens.lca.training.runs import Run
from lcalens.lca.world.bayes import accuracy, bayes_accuracy
from probes.harness.figures import curves
from probes.harness.paper_figures import FIGURES, beside, span
from probes.harness.rules import CHANGE, Rule, paired
from probes.harness.run import main
from probes.harness.shares import mean_change, mean_share
from probes.harness.study import Report, Settings
from probes.harness.toy import recipe
from probes.harness.values import value_matrices
from probes.harness.work import Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOSS = "accuracy after the swap less accuracy before"
RULES = (
    Rule(
        claim="A trained value matrix can be replaced by the constructed one without losing much accuracy.",
        source="Section 6.1, Figure C.2",
        group="paper",
        sentence=FIGURES["Figure C.2"].sentence,
        effect=_LOSS,
        unit="change of accuracy",
        minimum=-0.02,
        control="the same with random pairs",
        margin=0.05,
        effect_range=CHANGE,
        control_range=CHANGE,
        unknown="L",
        headline="The trained W_V can be swapped for the constructed one",
    ),
    Rule(
        claim="It can be replaced by the constructed one, and by no matrix that ignores neighbours.",
        source="Figure C.2, with stronger controls",
        group="stronger",
        effect=_LOSS,
        unit="change of accuracy",
        minimum=-0.02,
        control="the same with the better of E E^T and the identity in each run",
        margin=0.05,
        effect_range=CHANGE,
        control_range=CHANGE,
        unknown="L",
    ),
    Rule(
        claim="With frozen Gaussian embeddings, it can be replaced by the construction without their interference.",
        source="beyond the paper",
        group="ours",
        effect=f"{_LOSS}, for the pseudo-inverse construction",
        unit="change of accuracy",
        minimum=-0.02,
        control="the same with the paper's construction",
        margin=0.05,
        effect_range=CHANGE,
        control_range=CHANGE,
    ),
)
CHOICES = """
The paper shows the swap over the dimension d at m = 5 to 8. At which L, omega and beta, at which values of d and with
which recipe is unknown to us. L decides: where a trained model is nearly always right there is no room for errors, and
the longer the context, the nearer it is to that. So the rule's word says from which L to which; omega is 1/2 and beta
1, where a model at L = 64 is not nearly always right. The sweeps show what a swap costs over omega and beta, and over
learning rates and numbers of steps; the largest number of steps is the full preset's. With frozen embeddings d goes
through several multiples of V: the pseudo-inverse is exact from d = V on, and well conditioned above that.
"""
_KINDS = ("trained", "constructed", "random pairs", "E E^T", "identity", "pseudo-inverse")


@dataclass(frozen=True, kw_only=True)
class ValueSwap(Settings):
    """Accuracy after a swap of W_V.

    Attributes:
        m: Numbers of latent bits, with trained embeddings.
        widths: Dimensions d with trained embeddings, as multiples of V.
        lengths: Context lengths L with trained embeddings; everything else is at the shortest.
        omega: Share of a context that speaks of the concept.
        beta: Temperature of the tokens' distances.
        lr: Learning rate.
        steps: Training steps.
        contexts: Fresh contexts a run on which all matrices are compared.
        frozen_m: Numbers of latent bits, with frozen embeddings.
        frozen_widths: Dimensions d with frozen embeddings, as multiples of V.
        sweep_omega: Omegas of the first sweep.
        sweep_beta: Betas of the first sweep.
        sweep_lr: Learning rates of the second sweep.
        sweep_steps: Steps of the second sweep.
    """

    m: tuple[int, ...] = (5, 6, 7, 8)
    widths: tuple[float, ...] = (0.25, 0.5, 1.0)
    lengths: tuple[int, ...] = (64, 128, 256)
    omega: float = 0.5
    beta: float = 1.0
    lr: float = 0.03
    steps: int = 1000
    contexts: int = 8000
    frozen_m: tuple[int, ...] = (5, 6)
    frozen_widths: tuple[float, ...] = (0.5, 1.0, 2.0)
    sweep_omega: tuple[float, ...] = (0.25, 0.5, 1.0)
    sweep_beta: tuple[float, ...] = (0.5, 1.0, 2.0)
    sweep_lr: tuple[float, ...] = (0.01, 0.03, 0.1)
    sweep_steps: tuple[int, ...] = (300, 1000, 3000)


PRESETS = {
    "quick": ValueSwap(
        preset="quick", seeds=2, m=(3, 4), widths=(0.5, 1.0), lengths=(32, 64), steps=60, contexts=4000,
        frozen_m=(3,), frozen_widths=(0.5, 2.0), sweep_omega=(0.5,), sweep_beta=(0.5, 2.0), sweep_lr=(0.03,),
        sweep_steps=(30,),
    ),
    "standard": ValueSwap(),
    "full": ValueSwap(preset="full", seeds=3, widths=(0.125, 0.25, 0.5, 1.0, 2.0), steps=3000),
}  # fmt: skip


def grid(settings: ValueSwap) -> list[dict[str, Any]]:
    """A cell for each m, d and L with trained embeddings, for each m and d with frozen ones, and for the sweeps."""
    usual, small, first = (settings.lr, settings.steps), min(settings.m), min(settings.lengths)
    world = (settings.omega, settings.beta)
    plan = [
        ("trained E", m, *world, width, length, *usual)
        for m in settings.m
        for length in settings.lengths
        for width in settings.widths
    ]
    plan += [
        ("frozen E", m, *world, width, first, *usual) for m in settings.frozen_m for width in settings.frozen_widths
    ]
    plan += [
        ("worlds", small, omega, beta, 0.5, first, *usual)
        for omega in settings.sweep_omega
        for beta in settings.sweep_beta
    ]
    plan += [
        ("recipes", small, *world, 0.5, first, lr, steps) for lr in settings.sweep_lr for steps in settings.sweep_steps
    ]
    names = ("part", "m", "omega", "beta", "d/V", "L", "lr", "steps")
    shared = {"contexts": settings.contexts, "seeds": settings.seeds}
    return [dict(zip(names, one, strict=True)) | shared for one in plan]


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """Train, then swap; a row a run and matrix."""
    concepts = LatentConcepts(cell["m"], omega=cell["omega"], beta=cell["beta"])
    config = recipe(
        cell["m"], cell["L"], cell["lr"], cell["steps"], d_model=round(cell["d/V"] * concepts.vocab_size),
        train_embedding=cell["part"] != "frozen E",
    )  # fmt: skip
    return [
        cell | {"W_V": kind, "seed": run.seed, "accuracy": right, "bayes": bayes, "diverged": run.diverged}
        for run in work.train(concepts, config, cell["seeds"])
        for found, bayes in [swapped(run, cell["contexts"])]
        for kind, right in found.items()
    ]


@torch.no_grad()
def swapped(run: Run, contexts: int) -> tuple[dict[str, float], float]:
    """Accuracy with each value matrix, and that of Bayes, on the same contexts; NaN where the run diverged."""
    model, concepts = run.model.cpu(), run.concepts
    generator = torch.Generator().manual_seed(run.seed)
    counts, last, target = concepts.sample_counts(contexts, run.config.context_length, generator)
    bayes = bayes_accuracy(concepts, counts, last, target)
    if run.diverged is not None:  # its weights need not be numbers
        return dict.fromkeys(_KINDS, float("nan")), bayes
    matrices = value_matrices(concepts, model.embed.weight, run.seed)
    models = {"trained": model} | {kind: with_value(model, matrices[kind]) for kind in _KINDS[1:]}
    return {kind: float(accuracy(one.from_counts(counts, last), target).mean()) for kind, one in models.items()}, bayes


def report(settings: ValueSwap, rows: pd.DataFrame) -> Report:
    """What each swap costs, by m, d and L; and by m and d where embeddings are frozen."""
    rows = rows.assign(d=[round(width * (1 << m)) for width, m in zip(rows["d/V"], rows["m"], strict=True)])
    parts = dict(list(rows.groupby("part")))
    trained, frozen = parts["trained E"], parts["frozen E"]
    random_pairs, others, interference = [], [], []
    for (m, d, length), part in trained.groupby(["m", "d", "L"]):
        change, setting = _changes(part), f"m = {m}, d = {d}, L = {length}"
        random_pairs.append(paired(setting, change["constructed"], change["random pairs"], at=length))  # pyright: ignore[reportArgumentType]
        # The larger of the two run by run; a run without numbers stays without one.
        strongest = change[["E E^T", "identity"]].max(axis=1, skipna=False)
        others.append(paired(setting, change["constructed"], strongest, at=length))  # pyright: ignore[reportArgumentType]
    for (m, d), part in frozen.groupby(["m", "d"]):
        change = _changes(part)
        interference.append(paired(f"m = {m}, d = {d}", change["pseudo-inverse"], change["constructed"]))
    first = min(settings.lengths)
    shape = f"m = {min(settings.m)}, L = {first}"
    seeds = f"mean and 95% interval over {settings.seeds} seeds"
    # Panels of one L stand in a row.
    panels = trained.assign(panel=[f"m = {m}, L = {n}" for m, n in zip(trained["m"], trained["L"], strict=True)])
    swap = f"Trained embeddings: accuracy over d after each swap, by m and L; {seeds}. Bayes is the ceiling."
    return Report(
        evidence=tuple(zip(RULES, (random_pairs, others, interference), strict=True)),
        figures={
            swap: _curves(panels.sort_values(["L", "m"], kind="stable"), "d", "dimension d", log2=True),
            f"Frozen Gaussian embeddings, L = {first}: accuracy over d after each swap; {seeds}. Bayes is the "
            "ceiling.": _curves(frozen.assign(panel="m = " + frozen["m"].astype(str)), "d", "dimension d", log2=True),
        },
        tables={
            "Accuracy with trained embeddings": _table(trained, ["m", "L", "d"]),
            f"Accuracy with frozen embeddings, L = {first}": _table(frozen, ["m", "d"]),
            f"What a swap changes, over worlds: {shape}, d = V/2": _table(
                parts["worlds"], ["omega", "beta"], change=True
            ),
            f"What a swap changes, over recipes: {shape}, d = V/2": _table(
                parts["recipes"], ["lr", "steps"], change=True
            ),
        },
        paper=(
            beside(
                "Figure C.2",
                f"L = {', '.join(map(str, settings.lengths))}, omega = {settings.omega:g}, beta = {settings.beta:g}, "
                "the recipe, the values of d.",
                swap,
                _seen(random_pairs),
            ),
        ),
    )


def _seen(evidence: list[Any]) -> str:
    """The change after the swap by L, in words."""
    at = {length: [one for one in evidence if one.at == length] for length in sorted({one.at for one in evidence})}
    by_length = "; ".join(f"{span(one.effect.mean for one in some)} at L = {length}" for length, some in at.items())
    return (
        f"The swap for the constructed matrix changes the accuracy by {by_length}, over all m and d. Random pairs, the "
        f"paper's baseline, change it by {span(one.control.mean for one in evidence)}. The paper's L is unknown to us, "
        "so this counts neither for the claim nor against it where L decides."
    )


def _changes(part: pd.DataFrame) -> pd.DataFrame:
    """Accuracy less that before the swap, by seed and matrix."""
    found = part.pivot(index="seed", columns="W_V", values="accuracy")
    return found.sub(found["trained"], axis=0)


def _curves(frame: pd.DataFrame, x: str, xlabel: str, **options: Any) -> "Figure":
    ceiling = frame[frame["W_V"] == "trained"]
    frame = pd.concat([frame, ceiling.assign(accuracy=ceiling["bayes"], W_V="Bayes")])
    drawn = [
        {"W_V": kind, "panel": panel, x: at} | mean_share(part["accuracy"])._asdict()
        for (kind, panel, at), part in frame.groupby(["W_V", "panel", x], sort=False)
    ]
    labels = {"x": x, "y": "mean", "xlabel": xlabel, "ylabel": "accuracy", "panel": "panel", "series": "W_V"}
    return curves(pd.DataFrame(drawn), **labels, ylim=(-0.03, 1.03), **options)


def _table(frame: pd.DataFrame, by: list[str], *, change: bool = False) -> pd.DataFrame:
    """Accuracies, or by how much each swap changes them."""
    shown, mean = [], mean_change if change else mean_share
    for at, part in frame.groupby(by, sort=False):
        right = part.pivot(index="seed", columns="W_V", values="accuracy")
        before, found = part[part["W_V"] == "trained"], _changes(part) if change else right
        shown.append(
            dict(zip(by, at, strict=True))
            | {"Bayes": str(mean_share(before["bayes"])), "trained": str(mean_share(right["trained"]))}
            | {f"{kind} - trained" if change else kind: str(mean(found[kind])) for kind in _KINDS[1:]}
            | {"diverged": before["diverged"].notna().sum()}
        )
    return pd.DataFrame(shown)


if __name__ == "__main__":
    sys.exit(main(__name__))
