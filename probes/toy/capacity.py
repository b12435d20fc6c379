"""How many associations a trained value matrix of width d holds (beyond the paper; section 5.1).

In the toy model there is an association for every concept: what attention gathers from a context of y has to be mapped
to the embedding of y, V = 2^m of them by one matrix of d x d. Measured is the accuracy over m at fixed d, in contexts
so long that Bayes hardly errs, with embeddings trained and frozen. Beside it stands the linear associative memory of
recent theory: p pairs of independent Gaussian vectors of d dimensions, and a matrix W that maps each input nearer to
its own output than to all others. It can hold p pairs up to p log p / d^2 = 1/2 as d grows (Giorlandino, Maillard and
Goldt 2026, arXiv 2605.10795, their abstract; shown there for a decoupled model, by methods of statistical physics).
That is checked here first, at the d that we can reach.
"""

import math
import sys
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lcalens import LatentConcepts
from lcalens.lca.training.trainer import start_model
from probes.harness.figures import curves
from probes.harness.rules import SHARE, Rule, paired
from probes.harness.run import main
from probes.harness.shares import mean_share
from probes.harness.study import Report, Settings
from probes.harness.toy import recipe
from probes.harness.work import Work, reported_seeds

RULES = (
    Rule(
        claim="With trained embeddings a width of d holds more associations than random pairs allow.",
        source="section 5.1, beyond the paper",
        group="ours",
        effect="the accuracy at the smallest m with V log V / d^2 of 5/4 or more",
        unit="accuracy",
        minimum=0.5,
        control="the share that a linear memory of as many random pairs recalls at that d",
        margin=0.2,
        effect_range=SHARE,
        control_range=SHARE,
    ),
)
CHOICES = """
We read the abstract of the paper on linear memories and not its proofs. What differs here: its inputs and outputs are
independent, ours share one embedding; its inputs are exact, ours are means over a finite context; its pairs have no
structure, ours have that of m bits, so that with trained embeddings a matrix of d = m dimensions can hold all 2^m
concepts at L without end, and no law in d alone can bound them. With frozen Gaussian embeddings the structure is left
in the inputs alone, which overlap for neighbouring concepts. "Frozen, L without end" takes the mean embedding of
p(. | y) for what attention gathers and learns W alone. The law is a limit: log p is still small at these d, and the
table of the linear memory shows by how much it is exceeded. A linear memory is learnt by cross-entropy to its optimum
(L-BFGS); where not all pairs can be recalled, another loss might recall more of them.
"""
_RANDOM, _POPULATION = "linear memory, random pairs", "frozen, L without end"
_KINDS = {"W_E trained": True, "W_E frozen": False}
_OVER = 1.25
"""V log V / d^2 from which the rule judges: the linear memory of small d is full by then."""
_ROUND, _ROUNDS = 25, 16  # iterations of L-BFGS between looks, and how many times


@dataclass(frozen=True, kw_only=True)
class Capacity(Settings):
    """Accuracy over m at fixed widths.

    Attributes:
        m: Numbers of latent bits.
        d: Widths.
        length: Context length L.
        lr: Learning rate with trained embeddings.
        frozen_lr: Learning rate with frozen ones.
        steps: Training steps.
        law_d: Widths of the linear memory by itself.
        law: Its loads, p log p / d^2.
    """

    m: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    d: tuple[int, ...] = (8, 16, 32)
    length: int = 256
    lr: float = 0.03
    frozen_lr: float = 0.1
    steps: int = 1000
    law_d: tuple[int, ...] = (8, 16, 32, 64)
    law: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)


PRESETS = {
    "quick": Capacity(
        preset="quick", seeds=2, m=(3, 4, 5), d=(8,), length=64, steps=60, law_d=(8,), law=(0.5, 1.0, 1.5)
    ),
    "standard": Capacity(),
    "full": Capacity(preset="full", seeds=3, m=(3, 4, 5, 6, 7, 8, 9), d=(8, 16, 32, 64), steps=3000,
                     law_d=(8, 16, 32, 64, 128)),
}  # fmt: skip


def grid(settings: Capacity) -> list[dict[str, Any]]:
    """A cell for each m and d of the toy model, and for each load and d of the linear memory."""
    rates = {"lr": settings.lr, "frozen lr": settings.frozen_lr, "steps": settings.steps, "L": settings.length}
    plan: list[dict[str, Any]] = [{"part": "toy", "m": m, "d": d} | rates for d in settings.d for m in settings.m]
    plan += [
        {"part": "law", "d": d, "load": load, "p": pairs_at(load, d)} for d in settings.law_d for load in settings.law
    ]
    return [one | {"seeds": settings.seeds} for one in plan]


def pairs_at(load: float, d: int) -> int:
    """The number of pairs p whose p log p / d^2 is nearest to a load.

    Args:
        load: p log p / d^2.
        d: The width.

    Example:
        >>> pairs_at(0.5, 16)
        36
    """
    p = 2
    while p * math.log(p) < load * d * d:
        p += 1
    return min((p - 1, p), key=lambda one: abs(one * math.log(max(one, 1)) - load * d * d))


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """A row a seed and kind of memory."""
    seeds = reported_seeds(cell["seeds"])
    if cell["part"] == "law":
        return [
            cell | {"kind": _RANDOM, "seed": seed, "recalled": random_pairs(cell["p"], cell["d"], seed)}
            for seed in seeds
        ]
    concepts = LatentConcepts(cell["m"])
    same = {"part": "toy", "m": cell["m"], "d": cell["d"], "p": concepts.vocab_size}
    rows = []
    for kind, train_embedding in _KINDS.items():
        lr = cell["lr"] if train_embedding else cell["frozen lr"]
        config = recipe(cell["m"], cell["L"], lr, cell["steps"], cell["d"], train_embedding=train_embedding)
        for run in work.train(concepts, config, cell["seeds"]):
            found = {"recalled": run.accuracy, "bayes": run.bayes, "diverged": run.diverged}
            rows.append(same | {"kind": kind, "seed": run.seed} | found)
            if not train_embedding:
                embedding = start_model(concepts, config, run.seed).embed.weight.detach().double()
                share = recalled(gathered(concepts, embedding), embedding)
                rows.append(same | {"kind": _POPULATION, "seed": run.seed, "recalled": share})
    pairs = [random_pairs(concepts.vocab_size, cell["d"], seed) for seed in seeds]
    return rows + [
        same | {"kind": _RANDOM, "seed": seed, "recalled": one} for seed, one in zip(seeds, pairs, strict=True)
    ]


def gathered(concepts: LatentConcepts, embedding: Float[Tensor, "vocab d"]) -> Float[Tensor, "vocab d"]:
    """What uniform attention gathers from a context of each concept without end: the mean embedding of p(. | y).

    Args:
        concepts: The world.
        embedding: Row t is token t's.
    """
    tokens = torch.arange(concepts.vocab_size)
    return concepts.offset_log_p.exp().to(embedding)[tokens[:, None] ^ tokens] @ embedding


def random_pairs(count: int, d: int, seed: int) -> float:
    """The share of independent Gaussian pairs that a linear memory recalls.

    Args:
        count: How many pairs.
        d: The width.
        seed: Of the pairs.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = torch.randn(2, count, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
    return recalled(inputs, outputs)


def recalled(inputs: Float[Tensor, "pair d"], outputs: Float[Tensor, "pair d"]) -> float:
    """The share of pairs with output_i^T W input_i above output_j^T W input_i for all j, W learnt by cross-entropy.

    Args:
        inputs: Row i is pair i's.
        outputs: Likewise.
    """
    w = torch.zeros(outputs.shape[1], inputs.shape[1], dtype=inputs.dtype, requires_grad=True)
    own = torch.arange(len(inputs))
    optimizer = torch.optim.LBFGS([w], max_iter=_ROUND, history_size=20, line_search_fn="strong_wolfe",
                                  tolerance_grad=1e-9, tolerance_change=1e-13)  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = torch.nn.functional.cross_entropy(inputs @ w.T @ outputs.T, own)
        found.backward()
        return found

    share, before = 0.0, math.inf
    for _ in range(_ROUNDS):
        now = float(optimizer.step(loss).detach())  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        with torch.no_grad():
            share = float(((inputs @ w.T @ outputs.T).argmax(1) == own).double().mean())
        if share == 1 or before - now < 1e-7:
            break
        before = now
    return share


def report(settings: Capacity, rows: pd.DataFrame) -> Report:
    """Accuracy over the load, by d; and where the linear memory is full."""
    toy, law = rows[rows["part"] == "toy"], rows[rows["part"] == "law"]
    loads = rows["p"] * [math.log(p) for p in rows["p"]] / rows["d"] ** 2
    toy = toy.assign(load=loads[toy.index])
    evidence, drawn, table = [], [], []
    for d, of_d in toy.groupby("d"):
        over = of_d[of_d["load"] >= _OVER]
        if len(over):
            part = over[over["m"] == over["m"].min()].pivot(index="seed", columns="kind", values="recalled")
            setting = f"d = {d}, m = {over['m'].min():g}"
            evidence.append(paired(setting, part["W_E trained"], part[_RANDOM]))
    for (d, m, load), part in toy.groupby(["d", "m", "load"]):
        means = {kind: mean_share(some["recalled"]) for kind, some in part.groupby("kind", sort=False)}
        drawn += [{"panel": f"d = {d}", "load": load, "series": kind} | one._asdict() for kind, one in means.items()]
        line = {"d": d, "m": m, "V": 1 << int(m), "V log V / d^2": load}  # pyright: ignore[reportArgumentType]
        bayes = str(mean_share(part["bayes"].dropna()))
        table.append(line | {kind: str(one) for kind, one in means.items()} | {"Bayes": bayes})
    full = []
    for (d, load, p), part in law.groupby(["d", "load", "p"]):
        every = f"{int((part['recalled'] == 1).sum())} of {len(part)}"
        full.append({"d": d, "p log p / d^2": load, "pairs p": p, "recalled": str(mean_share(part["recalled"]))})
        full[-1]["all recalled in"] = every
    figure = curves(
        pd.DataFrame(drawn), x="load", y="mean", xlabel="V log V / d^2", ylabel="recalled", panel="panel",
        series="series", log2=True, ylim=(-0.03, 1.03),
    )  # fmt: skip
    for axis in figure.axes:
        axis.axvline(0.5, color="black", lw=0.8, ls=":")
        axis.set_xticks([2.0**power for power in range(-4, 6, 2)], ["1/16", "1/4", "1", "4", "16"])
    return Report(
        evidence=((RULES[0], evidence),),
        figures={
            f"What is recalled over V log V / d^2, L = {settings.length}; mean and 95% interval over {settings.seeds} "
            "seeds. The dotted line is the law's 1/2, a limit of large d.": figure
        },
        tables={
            f"Accuracy by d and m, L = {settings.length}": pd.DataFrame(table),
            "The linear memory of random pairs by itself": pd.DataFrame(full),
        },
        notes=(_filled(law),),
    )


def _filled(law: pd.DataFrame) -> str:
    """At which loads the linear memory still recalls every pair, by d, in words."""
    parts = []
    for d, of_d in law.groupby("d"):
        whole = of_d.groupby("load")["recalled"].min()
        most = max((float(load) for load, least in whole.items() if least == 1), default=math.nan)  # pyright: ignore[reportArgumentType]
        parts.append(f"{most:g} at d = {d}" if most == most else f"none of these at d = {d}")
    return (
        "The largest p log p / d^2 at which the linear memory recalled every random pair in every run: "
        + "; ".join(parts)
        + ". The law's limit is 1/2."
    )


if __name__ == "__main__":
    sys.exit(main(__name__))
