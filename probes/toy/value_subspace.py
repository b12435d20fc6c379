"""The trained and the constructed value matrix share a low-rank subspace (section 6.1, Figure C.3).

Of the trained value matrix W_V and of another matrix the best approximations of rank m are compared: the principal
angles between the subspaces that they write to (left singular vectors) and read from (right). The paper reports the
smallest angle, which says that one direction is shared; the mean over all m angles says whether the subspace is. The
other matrix is the constructed one of equation 5.1, made of the model's own embeddings, or a control: the same number
of pairs, drawn at random; a Gaussian matrix; and E E^T, which stores each token by itself, and knows of no neighbours.
The cosine between the whole matrices stands beside, as angles between subspaces see neither signs nor sizes.
"""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from lcalens import LatentConcepts
from lcalens.core.estimates import over_seeds
from lcalens.lca.geometry import cosine, principal_angles
from lcalens.lca.training.runs import Run
from probes.harness.figures import curves
from probes.harness.paper_figures import FIGURES, beside, span
from probes.harness.rules import ANGLE, Rule, paired
from probes.harness.run import main
from probes.harness.shares import mean_share
from probes.harness.study import Report, Settings
from probes.harness.toy import recipe
from probes.harness.values import value_matrices
from probes.harness.work import Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ANGLE = "the smallest principal angle between the rank-m parts of the trained and the constructed matrix"
RULES = (
    Rule(
        claim="Among the constructed matrix, random pairs and a Gaussian one, the constructed one's rank-m part is "
        "nearest to the trained matrix's.",
        source="Section 6.1, Figure C.3",
        group="paper",
        sentence=FIGURES["Figure C.3"].sentence,
        effect=_ANGLE,
        unit="degrees",
        minimum=45,
        control="the smaller angle of random pairs and a Gaussian matrix in each run",
        margin=0,
        sense="at most",
        effect_range=ANGLE,
        control_range=ANGLE,
        unknown="L",
    ),
    Rule(
        claim="It is also nearer than that of E E^T, which stores each token by itself.",
        source="Figure C.3, with a stronger control",
        group="stronger",
        effect=_ANGLE,
        unit="degrees",
        minimum=45,
        control="that of the trained matrix and E E^T",
        margin=0,
        sense="at most",
        effect_range=ANGLE,
        control_range=ANGLE,
        unknown="L",
    ),
)
CHOICES = """
The paper compares parts of rank m over the dimension d and reports the smallest angle, on average the least with the
constructed matrix. On which side, at which d and L, with which omega, beta and recipe is unknown to us: both sides are
shown here. The rules ask for the sign of a difference alone; by how many degrees is in the table. The larger the rank,
the smaller the angles between any two subspaces: where 2 m > d any two share a direction, the smallest angle is 0
whatever the matrices, and such a setting is shown and not counted. The first sweep shows the angles over ranks and
numbers of steps; the second, at rank m, over learning rates and numbers of steps. The largest number of steps is the
full preset's.
"""
_OTHERS = ("constructed", "random pairs", "Gaussian", "E E^T")
_SIDES, _WHAT = ("left", "right"), ("smallest", "mean")
_NUMBERS = (*(f"{what}, {side}" for what in _WHAT for side in _SIDES), "cosine", "gap of other")


@dataclass(frozen=True, kw_only=True)
class ValueSubspace(Settings):
    """Angles between the trained W_V and other matrices.

    Attributes:
        m: Numbers of latent bits.
        widths: Dimensions d, as multiples of V.
        lengths: Context lengths L; the sweeps are at the shortest.
        omega: Share of a context that speaks of the concept.
        beta: Temperature of the tokens' distances.
        lr: Learning rate.
        steps: Training steps.
        sweep_rank: Ranks of the first sweep, all below d at the smallest m; the rank m is added.
        sweep_lr: Learning rates of the second sweep.
        sweep_steps: Steps of both sweeps.
    """

    m: tuple[int, ...] = (5, 6, 7, 8)
    widths: tuple[float, ...] = (0.25, 0.5, 1.0)
    lengths: tuple[int, ...] = (64, 128, 256)
    omega: float = 0.5
    beta: float = 1.0
    lr: float = 0.03
    steps: int = 1000
    sweep_rank: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12)
    sweep_lr: tuple[float, ...] = (0.01, 0.03, 0.1)
    sweep_steps: tuple[int, ...] = (300, 1000, 3000)


PRESETS = {
    "quick": ValueSubspace(
        preset="quick",
        seeds=2,
        m=(3, 4),
        widths=(0.5, 1.0),
        lengths=(32,),
        steps=60,
        sweep_rank=(1, 2),
        sweep_lr=(0.03,),
        sweep_steps=(30, 60),
    ),
    "standard": ValueSubspace(),
    "full": ValueSubspace(preset="full", seeds=3, widths=(0.125, 0.25, 0.5, 1.0, 2.0), steps=3000),
}


def grid(settings: ValueSubspace) -> list[dict[str, Any]]:
    """A cell for each m, d and L, and for each learning rate and number of steps at the smallest m."""
    small, first = min(settings.m), min(settings.lengths)
    ranks = sorted({*settings.sweep_rank, small})
    plan = [
        ("grid", m, round(width * (1 << m)), length, settings.lr, settings.steps, [m])
        for m in settings.m
        for length in settings.lengths
        for width in settings.widths
        if round(width * (1 << m)) >= m  # no matrix of fewer dimensions has rank m
    ]
    lrs = sorted({*settings.sweep_lr, settings.lr})  # the sweep over ranks is at the usual one
    plan += [
        ("sweep", small, 1 << (small - 1), first, lr, steps, ranks) for lr in lrs for steps in settings.sweep_steps
    ]
    names = ("part", "m", "d", "L", "lr", "steps", "ranks")
    shared = {"omega": settings.omega, "beta": settings.beta, "seeds": settings.seeds}
    return [dict(zip(names, one, strict=True)) | shared for one in plan]


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """Train, then compare; a row a run, other matrix and rank."""
    concepts = LatentConcepts(cell["m"], omega=cell["omega"], beta=cell["beta"])
    config = recipe(cell["m"], cell["L"], cell["lr"], cell["steps"], d_model=cell["d"])
    about = {name: value for name, value in cell.items() if name != "ranks"}
    return [
        about | {"seed": run.seed, "accuracy": run.accuracy, "bayes": run.bayes, "diverged": run.diverged} | found
        for run in work.train(concepts, config, cell["seeds"])
        for found in compared(run, cell["ranks"])
    ]


def compared(run: Run, ranks: list[int]) -> list[dict[str, Any]]:
    """Angles and cosine between the trained W_V and each other matrix; NaN where the run diverged."""
    trained, rows = run.model.attn.v.weight.detach().double().cpu(), []
    if run.diverged is not None:  # its weights need not be numbers
        missing = dict.fromkeys((*_NUMBERS, "gap of trained"), float("nan"))
        return [{"matrix": name, "rank": rank} | missing for name in _OTHERS for rank in ranks]
    matrices = value_matrices(run.concepts, run.model.embed.weight, run.seed)
    for name in _OTHERS:
        for rank in ranks:
            angles = principal_angles(trained, matrices[name], rank)
            means, (gap, other_gap) = (float(angles.left.mean()), float(angles.right.mean())), angles.gaps
            numbers = (*angles.smallest, *means, cosine(trained, matrices[name]), other_gap)
            found = dict(zip(_NUMBERS, numbers, strict=True)) | {"gap of trained": gap}
            rows.append({"matrix": name, "rank": rank} | found)
    return rows


def report(settings: ValueSubspace, rows: pd.DataFrame) -> Report:
    """Angles and cosines by m, d and L, by rank and by recipe."""
    main_part, sweep = rows[rows["part"] == "grid"], rows[rows["part"] == "sweep"]
    paper, stronger = [], []
    for (m, d, length), part in main_part.groupby(["m", "d", "L"]):
        for side in _SIDES:
            angle = part.pivot(index="seed", columns="matrix", values=f"smallest, {side}")
            asked = {"at": length, "counted": bool(2 * m <= d)}  # pyright: ignore[reportOperatorIssue]
            setting = f"m = {m}, d = {d}, L = {length}, {side}"
            random = angle[["random pairs", "Gaussian"]].min(axis=1, skipna=False)
            paper.append(paired(setting, angle["constructed"], random, **asked))
            stronger.append(paired(setting, angle["constructed"], angle["E E^T"], **asked))
    small, first, seeds = min(settings.m), min(settings.lengths), f"mean and 95% interval over {settings.seeds} seeds"
    at_m, by_rank = sweep[sweep["rank"] == small], sweep[sweep["lr"] == settings.lr]
    longest = by_rank[by_rank["steps"] == by_rank["steps"].max()]
    shape = f"m = {small}, d = {1 << (small - 1)}, L = {first}"
    over_d = f"The smallest principal angle in degrees over d, left singular vectors, L = {first}; {seeds}."
    shortest = main_part[main_part["L"] == first]
    return Report(
        evidence=tuple(zip(RULES, (paper, stronger), strict=True)),
        figures={
            over_d: _over_d(shortest),
            f"Cosine between the whole matrices over m, d = V/2, L = {first}; {seeds}.": _cosines(
                shortest[2 * shortest["d"] == 2 ** shortest["m"]]
            ),
            f"Angles in degrees over the rank k that is kept: {shape}, lr = {settings.lr:g}, "
            f"{longest['steps'].iloc[0]} steps; {seeds}. 90 is orthogonal.": _angles(longest, "rank", "rank k"),
        },
        tables={
            "Angles in degrees and cosine, by m, d and L": _table(main_part, ["m", "d", "L"]),
            "The trained matrix's ratio of the m-th to the next singular value, and accuracy": _runs(
                main_part, ["m", "d", "L"]
            ),
            f"Over ranks and steps: {shape}, lr = {settings.lr:g}": _table(by_rank, ["rank", "steps"]),
            f"Over learning rates and steps: {shape}, rank m": _table(at_m, ["lr", "steps"]),
            f"Accuracy over learning rates and steps: {shape}": _runs(at_m, ["lr", "steps"]),
        },
        paper=(
            beside(
                "Figure C.3",
                f"L = {', '.join(map(str, settings.lengths))}, omega = {settings.omega:g}, beta = {settings.beta:g}, "
                "the recipe, the values of d, both sides; E E^T as a control.",
                over_d,
                _seen(paper, stronger),
            ),
        ),
    )


def _seen(paper: list[Any], stronger: list[Any]) -> str:
    """The differences in words, over the settings that count."""
    of_random, of_gram = ([one.excess.mean for one in some if one.counted] for some in (paper, stronger))
    angles = [one.effect.mean for one in paper if one.counted]
    return (
        f"Over all m, d and L that count the constructed matrix is {span(angles)} degrees from the trained one. The "
        f"nearer of random pairs and a Gaussian matrix is further, by {span(-one for one in of_random)} degrees; "
        f"E E^T, which knows of no neighbours and is our control, by {span(-one for one in of_gram)} degrees (below 0: "
        "nearer)."
    )


def _over_d(frame: pd.DataFrame) -> "Figure":
    drawn = [
        {"panel": f"m = {m}", "matrix": name, "d": d} | over_seeds(part["smallest, left"])._asdict()
        for (m, name, d), part in frame.groupby(["m", "matrix", "d"], sort=False)
    ]
    return curves(
        pd.DataFrame(drawn), x="d", y="mean", xlabel="dimension d", ylabel="angle (degrees)", panel="panel",
        series="matrix", log2=True, ylim=(0, 92),
    )  # fmt: skip


def _angles(frame: pd.DataFrame, x: str, xlabel: str) -> "Figure":
    drawn = [
        {"panel": f"{what} angle, {side}", "matrix": name, x: at} | over_seeds(part[f"{what}, {side}"])._asdict()
        for what in _WHAT
        for side in _SIDES
        for (name, at), part in frame.groupby(["matrix", x], sort=False)
    ]
    return curves(
        pd.DataFrame(drawn), x=x, y="mean", xlabel=xlabel, ylabel="angle (degrees)", panel="panel", series="matrix",
        ylim=(0, 92),
    )  # fmt: skip


def _cosines(frame: pd.DataFrame) -> "Figure":
    drawn = [
        {"m": m, "matrix": name} | over_seeds(part["cosine"])._asdict()
        for (name, m), part in frame.groupby(["matrix", "m"], sort=False)
    ]
    return curves(pd.DataFrame(drawn), x="m", y="mean", xlabel="latent bits m", ylabel="cosine", series="matrix")


def _table(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    shown = [
        dict(zip([*by, "matrix"], at, strict=True)) | {name: str(over_seeds(part[name])) for name in _NUMBERS}
        for at, part in frame.groupby([*by, "matrix"], sort=False)
    ]
    return pd.DataFrame(shown)


def _runs(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """What is one a run: the trained matrix's own gap, and accuracy."""
    shown = []
    for at, part in frame[frame["matrix"] == "constructed"].groupby(by, sort=False):
        means = {"gap of trained": str(over_seeds(part["gap of trained"]))}
        means |= {name: str(mean_share(part[name])) for name in ("accuracy", "bayes")}
        shown.append(dict(zip(by, at, strict=True)) | means | {"diverged": part["diverged"].notna().sum()})
    return pd.DataFrame(shown).rename(columns={"bayes": "Bayes"})


if __name__ == "__main__":
    sys.exit(main(__name__))
