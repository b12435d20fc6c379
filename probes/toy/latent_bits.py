"""The latent bits can be read off by linear probes: from embeddings, and from what attention gathered.

Logistic regression for each latent bit, on trained and on untrained models. From W_E: the token's bit, fitted on half
of the tokens and tested on the others. From h(x), what attention gathered at the last position before W_V: the bit of
y, fitted and tested on fresh contexts, beside the same probe on the bare counts of the context and Bayes' own answer
for a bit. Shuffled labels show what a probe makes of nothing.
"""

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit

from lcalens import LatentConcepts
from lcalens.lca import LCAForCausalLM
from lcalens.lca.training.trainer import start_model
from lcalens.lca.world import bayes
from probes.harness.figures import curves
from probes.harness.rules import SHARE, Rule, paired
from probes.harness.run import main
from probes.harness.shares import mean_share
from probes.harness.study import Report, Settings
from probes.harness.toy import recipe
from probes.harness.work import Work

RULES = (
    Rule(
        claim="Training makes the latent bits of a token linearly readable from its embedding.",
        source="sections 5.3 and 6.2",
        group="ours",
        effect="the probe's accuracy on held-out tokens",
        unit="accuracy",
        minimum=0.9,
        control="the same models before training",
        margin=0.2,
        effect_range=SHARE,
        control_range=SHARE,
    ),
    Rule(
        claim="Training makes the latent bits of y linearly readable from what attention gathered.",
        source="sections 5.2 and 5.4",
        group="ours",
        effect="the probe's accuracy on held-out contexts",
        unit="accuracy",
        minimum=0.9,
        control="the same models before training",
        margin=0.05,
        effect_range=SHARE,
        control_range=SHARE,
    ),
)
CHOICES = """
The paper does not probe. Probes are logistic regression on standardised features, with scikit-learn's own penalty
C = 1 in the rules. The sweeps show both accuracies over the dimension d and C, and over d and the number of steps, at
the smallest m. Accuracy is the mean over bits, and over splits of the tokens in halves with as many of each value.

Before training, h(x) is a random projection of the context's counts, which is no empty control: counts hold all there
is to know.
"""
_FROM = {"W_E": "a token's bit, from W_E", "h(x)": "a bit of y, from h(x)"}
_KINDS = ("before training", "trained")
_SCORES = {"grid": ("accuracy", "shuffled"), "penalty": ("accuracy",), "steps": ("accuracy",)}


@dataclass(frozen=True, kw_only=True)
class LatentBits(Settings):
    """Linear probes for the latent bits.

    Attributes:
        m: Numbers of latent bits.
        length: Context length L.
        lr: Learning rate.
        steps: Training steps.
        splits: Splits of the tokens in two halves.
        contexts: Contexts to fit a probe on, and as many to test it.
        penalty: C of the logistic regression: the larger, the weaker its penalty.
        sweep_d: Dimensions of the sweeps.
        sweep_penalty: C of the sweep.
        sweep_steps: Steps of the sweep.
    """

    m: tuple[int, ...] = (5, 6, 8)
    length: int = 64
    lr: float = 0.03
    steps: int = 1000
    splits: int = 5
    contexts: int = 4000
    penalty: float = 1.0
    sweep_d: tuple[int, ...] = (4, 8, 16, 32)
    sweep_penalty: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    sweep_steps: tuple[int, ...] = (300, 1000, 3000)


_QUICK: dict[str, Any] = {"m": (3, 4), "length": 32, "steps": 60, "splits": 4, "contexts": 500, "sweep_d": (4,)}
PRESETS = {
    "quick": LatentBits(preset="quick", seeds=2, **_QUICK, sweep_penalty=(0.1,), sweep_steps=(30,)),
    "standard": LatentBits(),
    "full": LatentBits(preset="full", steps=3000),
}


def grid(settings: LatentBits) -> list[dict[str, Any]]:
    """A cell for each model size, recipe and C."""
    least, steps, one = min(settings.m), settings.steps, settings.penalty
    plan = [("grid", m, 1 << (m - 1), steps, one) for m in settings.m]
    plan += [("penalty", least, d, steps, at) for d, at in product(settings.sweep_d, settings.sweep_penalty)]
    plan += [("steps", least, d, most, one) for d, most in product(settings.sweep_d, settings.sweep_steps)]
    shared = {"L": settings.length, "lr": settings.lr, "splits": settings.splits, "contexts": settings.contexts}
    names = ("part", "m", "d", "steps", "C")
    return [dict(zip(names, cell, strict=True)) | shared | {"seeds": settings.seeds} for cell in plan]


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """A row a run and kind of probe."""
    concepts = LatentConcepts(cell["m"])
    ours = recipe(cell["m"], cell["L"], lr=cell["lr"], steps=cell["steps"])
    ours = replace(ours, d_model=cell["d"], d_head=min(cell["d"], 32))
    rows = []
    for run in work.train(concepts, ours, cell["seeds"]):
        models = {"before training": start_model(concepts, ours, run.seed), "trained": run.model}
        missing = []
        if run.diverged is not None:
            del models["trained"]
            missing = [{"from": source, "kind": "trained", "accuracy": np.nan} for source in _FROM]
        found = [*_tokens(concepts, models, cell, run.seed), *_contexts(concepts, models, cell, run.seed), *missing]
        rows += [cell | {"seed": run.seed, "diverged": run.diverged} | row for row in found]
    return rows


def probe(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], penalty: float) -> float:
    """The accuracy on `test` of logistic regression fitted on `train`; a fit that does not converge is an error.

    Args:
        train: Features and labels.
        test: Others.
        penalty: C.
    """
    (x, y), (held, labels) = train, test
    # By hand: scikit-learn's pipeline costs several times as much as such a small fit.
    middle, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        fitted = LogisticRegression(C=penalty, max_iter=5000).fit((x - middle) / scale, y)
    return float((fitted.predict((held - middle) / scale) == labels).mean())


def _tokens(
    concepts: LatentConcepts, models: dict[str, LCAForCausalLM], cell: dict[str, Any], seed: int
) -> Iterator[dict[str, Any]]:
    """Each bit of a token from its embedding, on tokens that the probe has not seen."""
    bits = concepts.bits(torch.arange(concepts.vocab_size)).numpy()
    halves = StratifiedShuffleSplit(cell["splits"], test_size=0.5, random_state=seed)
    for kind, model in models.items():
        rows, drawn = model.embed.weight.detach().double().numpy(), np.random.default_rng(seed)
        scores: dict[str, list[float]] = {name: [] for name in _SCORES[cell["part"]]}
        for bit, (name, found) in product(bits.T, scores.items()):
            label = bit if name == "accuracy" else drawn.permutation(bit)
            for one, other in halves.split(rows, label):
                found.append(probe((rows[one], label[one]), (rows[other], label[other]), cell["C"]))
        yield {"from": "W_E", "kind": kind} | {name: np.mean(found) for name, found in scores.items()}


@torch.no_grad()
def _contexts(
    concepts: LatentConcepts, models: dict[str, LCAForCausalLM], cell: dict[str, Any], seed: int
) -> Iterator[dict[str, Any]]:
    """Each bit of y from h(x), from the counts alone, and by Bayes, on contexts that the probe has not seen."""
    count, generator = cell["contexts"], torch.Generator().manual_seed(1000 + seed)
    drawn = concepts.sample_counts(2 * count, cell["L"], generator)
    bits, drawing = concepts.bits(drawn.target).numpy(), np.random.default_rng(seed)
    labels = {"accuracy": bits, "shuffled": drawing.permutation(bits)}
    features = {"counts": drawn.counts.double().numpy()} if cell["part"] == "grid" else {}
    for kind, model in models.items():
        features[kind] = model.gathered(drawn.counts, drawn.last).double().numpy()
    for kind, found in features.items():
        row: dict[str, Any] = {"from": "h(x)", "kind": kind}
        for name in _SCORES[cell["part"]]:
            halves = [((found[:count], one[:count]), (found[count:], one[count:])) for one in labels[name].T]
            row[name] = np.mean([probe(train, test, cell["C"]) for train, test in halves])
        yield row
    # What is most likely of a bit alone, not the bit of what is most likely.
    every = concepts.bits(torch.arange(concepts.vocab_size)).double()
    marginal = bayes.posterior(concepts, drawn.counts, drawn.last) @ every
    right = ((marginal > 0.5).numpy() == bits)[count:]
    yield {"from": "h(x)", "kind": "Bayes", "accuracy": right.mean()}


def report(settings: LatentBits, rows: pd.DataFrame) -> Report:
    """Accuracies by m; over d, C and steps."""
    evidence, drawn, table = {"W_E": [], "h(x)": []}, [], []
    for m, source in product(settings.m, _FROM):
        part = rows[(rows["part"] == "grid") & (rows["m"] == m) & (rows["from"] == source)]
        found = part.pivot(index="seed", columns="kind", values="accuracy")
        evidence[source].append(paired(f"m = {m}", found["trained"], found["before training"]))
        means = {kind: mean_share(found[kind]) for kind in part["kind"].unique()}
        drawn += [{"panel": _FROM[source], "m": m, "series": kind} | one._asdict() for kind, one in means.items()]
        mixed = part.pivot(index="seed", columns="kind", values="shuffled")
        shown = {kind: str(one) for kind, one in means.items()}
        shown |= {f"{kind}, labels shuffled": str(mean_share(mixed[kind])) for kind in _KINDS}
        table.append({"probe": _FROM[source], "m": m} | shown | {"diverged": _diverged(part)})
    words: dict[str, Any] = {"y": "mean", "ylabel": "accuracy", "panel": "panel", "series": "series"}
    figure = curves(pd.DataFrame(drawn), x="m", xlabel="latent bits m", **words)
    for axis in figure.axes:
        axis.set_xticks(settings.m)
    return Report(
        evidence=tuple(zip(RULES, evidence.values(), strict=True)),
        figures={
            f"Accuracy of linear probes over m; mean and 95% interval over {settings.seeds} seeds. Counts: the same "
            "probe on the counts of the context's tokens. Bayes is the ceiling.": figure,
            f"The sweep over d and C, m = {min(settings.m)}, trained.": curves(
                _curve(rows[rows["part"] == "penalty"], "C"), x="d", xlabel="dimensions d", log2=True, **words
            ),
        },
        tables={
            "Accuracy of the probes": pd.DataFrame(table).fillna(""),
            f"The sweep over d and C, m = {min(settings.m)}": _swept(rows[rows["part"] == "penalty"], "C"),
            f"The sweep over d and the number of steps, m = {min(settings.m)}": _swept(
                rows[rows["part"] == "steps"], "steps"
            ),
        },
    )


def _curve(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"panel": _FROM[str(source)], "d": d, "series": f"{name} = {at:g}"} | mean_share(part["accuracy"])._asdict()
        for (source, d, at), part in rows[rows["kind"] == "trained"].groupby(["from", "d", name])
    )


def _swept(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    table = []
    for (d, at), world in rows.groupby(["d", name]):
        line: dict[str, Any] = {"d": d, name: at}
        for source, kind in product(_FROM, _KINDS):
            part = world[(world["from"] == source) & (world["kind"] == kind)]
            line[f"{source}, {kind}"] = str(mean_share(part["accuracy"]))
        table.append(line | {"diverged": _diverged(world)})
    return pd.DataFrame(table)


def _diverged(rows: pd.DataFrame) -> int:
    return int(rows.groupby("seed")["diverged"].first().notna().sum())


if __name__ == "__main__":
    sys.exit(main(__name__))
