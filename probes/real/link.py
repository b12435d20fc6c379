"""Which heads carry a hijack, and is it where they look or what they recall (the question that the paper leaves open).

On both worlds. Real models: heads are ranked by exact patching on one half of the facts, and all that is said of them
is measured on the other. *A few heads* are 5% of the model's, rounded down: those of the largest mean recovery. At
the last position their patterns, the values that they average, or both are made the clean run's, all heads together.
Beside them stand many sets of as many other heads, drawn at random from the same range of layers. The clean run has a
neutral sentence in the hijack's place, or one that names another object. The toy's one head is treated the same; its
clean run's tokens are redrawn from the concept itself, or from a third concept as far away.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from lcalens import (
    LatentConcepts,
    Result,
    contrast_concepts,
    contrast_facts,
    exchange,
    lca_bridge,
    leading,
    patch,
)
from lcalens.core.estimates import Estimate, over_seeds, ratio_of_facts
from lcalens.mechanism.arguments import Head
from lcalens.mechanism.exchange import TWINS
from probes.harness.figures import curves, dots
from probes.harness.rules import ANY, Evidence, Rule, paired, unpaired
from probes.harness.run import main
from probes.harness.study import Report, Settings
from probes.harness.toy import recipe
from probes.harness.work import (
    FEWEST,
    Work,
    facts_source,
    facts_table,
    judged_facts,
    left_out,
    model_label,
    model_names,
)

RULES = (
    Rule(
        claim="A few heads (5%) carry half of the hijack or more.",
        headline="5% of the heads carry half of the hijack or more",
        source="the link",
        group="ours",
        effect="the share of the hijack that the leading heads carry together, on facts they were not ranked on",
        unit="share of the hijack",
        effect_range=ANY,
        control_range=ANY,
        minimum=0.5,
        control="sets of as many other heads, drawn at random from the same range of layers, on average",
        margin=0.3,
    ),
    Rule(
        claim="A hijack is carried by what heads recall, whatever the clean sentence.",
        source="the link",
        group="ours",
        effect="the share that goes with the leading heads' values alone",
        unit="share of the hijack",
        effect_range=ANY,
        control_range=ANY,
        minimum=0.5,
        control="the share that goes with their patterns alone",
        margin=0.2,
    ),
    Rule(
        claim="Against a sentence that names nothing, where heads look carries a part too.",
        source="the link",
        group="ours",
        effect="the share that goes with the leading heads' patterns alone, against the neutral sentence",
        unit="share of the hijack",
        effect_range=ANY,
        control_range=ANY,
        minimum=0.2,
        control="the same against a sentence that names another object",
        margin=0.2,
    ),
)
CHOICES = """
How many heads are *a few*, and which sentence is the clean one, decide what is found: the first figure and the tables
have both. Heads that work against a hijack are not among the leading ones. The sets drawn at random hold none of these;
their range of layers is that of the leading heads, and widens by a layer on either side until there are enough sets to
draw from. Every exchange is of the last position alone. The toy has one head in a world where every token may occur
(N = all), so where it looks carries next to nothing by construction: its rows are shown, and not counted. The share of
its context that is redrawn and the distance of the hijacking concept are open: the sweep goes over both. Shares are
ratios of means, with 95% bootstrap intervals that resample whole relations; the toy's are Student's over seeds.
"""
_PERCENT = 5
_CONTROLS: dict[Any, Literal["neutral", "other-object"]] = {"same": "neutral", "other": "other-object"}


@dataclass(frozen=True, kw_only=True)
class Link(Settings):
    """Heads, patterns, values and related words, in real models and in the toy.

    Attributes:
        models: As `lcalens.load_model` takes them; `paper` stands for the paper's own.
        facts: How many; heads are ranked on one half and measured on the other.
        heads: Numbers of leading heads for the curve; the verdicts are of 5% of the heads.
        draws: Sets of heads drawn at random, no two alike.
        drawn_facts: Facts on which they are measured, of those that the leading heads are measured on.
        m: Latent bits of the toys.
        length: Their context length L.
        steps: Their training steps.
        contexts: Contexts a toy model is measured on.
        shares: Shares of the context that are redrawn; the verdicts are of the first.
        distances: Distances of the hijacking concept; the verdicts are of the first.
    """

    models: tuple[str, ...] = ("smollm2", "gemma3-270m")
    facts: int = 400
    heads: tuple[int, ...] = (1, 2, 5, 10)
    draws: int = 200
    drawn_facts: int = 50
    m: tuple[int, ...] = (6, 8)
    length: int = 64
    steps: int = 1000
    contexts: int = 1000
    shares: tuple[float, ...] = (0.5, 0.25)
    distances: tuple[int, ...] = (3, 1)


PRESETS = {
    "quick": Link(
        preset="quick",
        models=("smollm2",),
        seeds=2,
        facts=8,
        heads=(1, 2),
        draws=2,
        drawn_facts=2,
        m=(4,),
        length=16,
        steps=30,
        contexts=50,
        shares=(0.5,),
        distances=(2,),
    ),
    "standard": Link(),
    "full": Link(preset="full", steps=3000),
}


def grid(settings: Link) -> list[dict[str, Any]]:
    """A cell for each real model and control, and for each toy, share and distance."""
    cells: list[dict[str, Any]] = []
    for model in model_names(settings.models):
        of = {"model": model, "source": facts_source(), "facts": settings.facts}
        heads = {"heads": list(settings.heads), "draws": settings.draws, "drawn_facts": settings.drawn_facts}
        cells += [{"part": "heads", "control": control} | of | heads for control in _CONTROLS]
    for m in settings.m:
        of = {"m": m, "length": settings.length, "steps": settings.steps, "seeds": settings.seeds}
        of["contexts"] = settings.contexts
        for part in settings.shares:
            for distance in settings.distances:
                cells.append({"part": "toy", "share": part, "distance": distance} | of)
    return cells


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """Rows of one cell: metrics a fact, or shares a seed."""
    part = _heads if cell["part"] == "heads" else _toy
    known = {name: cell[name] for name in ("part", "model", "control", "m", "share", "distance") if name in cell}
    return [known | row for row in part(cell, work)]


def _heads(cell: dict[str, Any], work: Work) -> Iterator[dict[str, Any]]:
    model = work.model(cell["model"])
    facts = judged_facts(cell["source"]).sample(cell["facts"], 0)
    contrast = contrast_facts(model, facts, scheme="dont-think", control=_CONTROLS[cell["control"]])
    first, second = contrast[::2], contrast[1::2]
    ranked = patch(model, first, out=work.parts, progress=False)
    order = carrying_first(ranked)
    few = max(1, len(order) * _PERCENT // 100)
    counts = sorted({few, *(count for count in cell["heads"] if count < len(order))})
    found = exchange(model, second, [order[:count] for count in counts], progress=False)
    drawn, layers = control_sets(order, few, cell["draws"])
    yield {
        "set": "ends",
        "clean": found.examples["clean"].to_numpy(),
        "hijacked": found.examples["hijacked"].to_numpy(),
        "cluster": second.examples["cluster"].tolist(),
        "names": [f"L{layer}H{head}" for layer, head in order[:few]],
        "layers": list(layers),
        "heads": len(order),
        "few": few,
    }
    for number, count in enumerate(counts):
        for twin, kind in enumerate(TWINS):
            patched = found.values["value"][:, number, twin]
            yield {"set": "leading", "twin": kind, "count": count, "patched": patched}
    beside = exchange(model, second[: cell["drawn_facts"]], drawn, progress=False)
    yield {"set": "drawn", "twin": "both", "count": few, "patched": beside.values["value"][:, :, TWINS.index("both")].T}


def carrying_first(ranked: Result) -> list[Head]:
    """All heads, those that raise the metric first and the one that lowers it most last."""
    count = ranked.values["value"][0].size
    carrying = list(leading(ranked, count, by="carrying"))
    return carrying + [head for head in reversed(list(leading(ranked, count))) if head not in carrying]


def control_sets(order: list[Head], few: int, draws: int) -> tuple[list[list[Head]], tuple[int, int]]:
    """Sets of heads that lead nothing, as many as lead, from the same range of layers; no two sets alike.

    Args:
        order: All heads, the leading ones first.
        few: How many lead.
        draws: How many sets; all there are, where a model has fewer.

    Returns:
        The sets, and the first and the last layer that they are from: the leading heads' range, widened by a layer on
        either side until that many different sets exist.
    """
    lowest, highest = (end(layer for layer, _ in order[:few]) for end in (min, max))
    last = max(layer for layer, _ in order)
    others = sorted(order[few:])
    while True:
        within = [head for head in others if lowest <= head[0] <= highest]
        if math.comb(len(within), few) >= draws or (lowest == 0 and highest == last):
            break
        lowest, highest = max(lowest - 1, 0), min(highest + 1, last)
    wanted = min(draws, math.comb(len(within), few))
    generator = np.random.default_rng(0)
    sets: dict[tuple[Head, ...], None] = {}
    while len(sets) < wanted:
        sets[tuple(within[i] for i in sorted(generator.permutation(len(within))[:few]))] = None
    return [list(one) for one in sets], (lowest, highest)


def _toy(cell: dict[str, Any], work: Work) -> Iterator[dict[str, Any]]:
    concepts = LatentConcepts(cell["m"])
    runs = work.train(concepts, recipe(cell["m"], cell["length"], steps=cell["steps"]), cell["seeds"])
    sizes = {"limit": cell["contexts"], "length": cell["length"]} | {name: cell[name] for name in ("share", "distance")}
    for control in _CONTROLS:
        contrast = contrast_concepts(concepts, **sizes, control=control, generator=torch.Generator().manual_seed(0))
        for run in runs:
            found = exchange(lca_bridge(run.model), contrast, [[(0, 0)]], progress=False)
            clean, hijacked = (found.examples[end].to_numpy() for end in ("clean", "hijacked"))
            moved = (hijacked[:, None] - found.values["value"][:, 0]).mean(0) / (hijacked - clean).mean()
            yield {"control": control, "seed": run.seed} | dict(zip(TWINS, moved.tolist(), strict=True))


def report(settings: Link, rows: pd.DataFrame) -> Report:
    """Shares with intervals, world by world."""
    carried, tables = _carried(rows[rows["part"] == "heads"])
    shown = [row for row in carried if row["few"]]
    toy = rows[rows["part"] == "toy"].astype({"m": int, "distance": int})
    first = toy[(toy["share"] == settings.shares[0]) & (toy["distance"] == settings.distances[0])]
    toys = {(f"toy, m = {m}", control): part for (m, control), part in first.groupby(["m", "control"], sort=False)}
    values = [row["values over patterns"] for row in shown]
    drawn = [_dot(row["model"], row["control"], twin, row[twin]) for row in shown for twin in TWINS]
    patterns = []
    for model in dict.fromkeys(row["model"] for row in shown):
        same, other = (next(r for r in shown if (r["model"], r["control"]) == (model, c)) for c in _CONTROLS)
        counted = min(same["facts"], other["facts"]) >= FEWEST
        patterns.append(unpaired(model, same["pattern"], other["pattern"], counted=counted))
    for (name, control), part in toys.items():
        values.append(paired(f"{name}, {_CONTROLS[control]}", part["values"], part["pattern"], counted=False))
        drawn += [_dot(name, control, twin, over_seeds(part[twin])) for twin in TWINS]
    for name in dict.fromkeys(name for name, _ in toys):
        patterns.append(paired(name, toys[name, "same"]["pattern"], toys[name, "other"]["pattern"], counted=False))
    curve = [
        {"panel": row["model"], "count": row["count"], "series": f"{_CONTROLS[row['control']]}: {name}"}
        | row[kind]._asdict()
        for row in carried
        for name, kind in (("leading", "both"), ("drawn at random", "drawn"))
        if kind == "both" or row["few"]
    ]
    return Report(
        evidence=((RULES[0], [row["leading over drawn"] for row in shown]), (RULES[1], values), (RULES[2], patterns)),
        figures={
            "Share of the hijack that the leading heads carry together, over how many lead, against both clean "
            "sentences; beside 5% of the heads as many drawn at random. 95% intervals over relations.": curves(
                pd.DataFrame(curve), x="count", y="mean", xlabel="heads", ylabel="share carried", panel="panel",
                series="series", log2=True,
            ),
            "Share that goes with the leading heads' patterns, values or both, against a neutral sentence (left) and "
            "against one that names another object (right).": dots(
                pd.DataFrame(drawn), xlabel="share of the hijack", series="exchanged", panel="control"
            ),
        },
        tables={
            **tables,
            "The toy's sweep: shares that patterns and values carry": _swept(toy),
            "The facts": facts_table(facts_source()),
        },
        notes=left_out(facts_source()),
    )  # fmt: skip


def _carried(rows: pd.DataFrame) -> tuple[list[dict[str, Any]], dict[str, pd.DataFrame]]:
    """For each model, control and number of leading heads: what each twin carries."""
    found, leading, beside = [], [], []
    for (name, control), part in rows.groupby(["model", "control"], sort=False):
        model, against = model_label(str(name)), _CONTROLS[control]
        ends = part[part["set"] == "ends"].iloc[0]
        clean, hijacked, clusters = (np.array(ends[end]) for end in ("clean", "hijacked", "cluster"))
        whole = hijacked - clean
        leading.append({"model": model, "against": against, "facts": len(whole), "heads": ", ".join(ends["names"])})
        drawn = np.array(part[part["set"] == "drawn"].iloc[0]["patched"], dtype=float)
        few, of_drawn = int(ends["few"]), slice(drawn.shape[1])
        others = hijacked[of_drawn] - drawn
        sets = part[part["set"] == "leading"]
        for count, some in sets.groupby("count", sort=False):
            moved = {row["twin"]: hijacked - np.array(row["patched"]) for row in some.to_dict("records")}
            row: dict[str, Any] = {"model": model, "control": control, "count": count, "facts": len(whole)}
            row |= {twin: ratio_of_facts(moved[twin], whole, clusters) for twin in TWINS} | {"few": count == few}
            found.append(row)
            if count != few:
                continue
            mean = others.mean(0)
            apart = moved["both"][of_drawn] - mean
            row["drawn"] = ratio_of_facts(mean, whole[of_drawn], clusters[of_drawn])
            setting = f"{model}, {against}, {few} of {int(ends['heads'])} heads, {len(whole)} facts"
            row["leading over drawn"] = Evidence(
                setting=f"{setting} (control and difference: {len(mean)} of them)",
                effect=row["both"],
                control=row["drawn"],
                excess=ratio_of_facts(apart, whole[of_drawn], clusters[of_drawn]),
                counted=len(mean) >= FEWEST,
            )
            values_apart = ratio_of_facts(moved["values"] - moved["pattern"], whole, clusters)
            row["values over patterns"] = Evidence(
                setting=setting,
                effect=row["values"],
                control=row["pattern"],
                excess=values_apart,
                counted=len(whole) >= FEWEST,
            )
            ours = float(moved["both"][of_drawn].mean() / whole[of_drawn].mean())
            beside.append(
                {"model": model, "against": against} | _place(ours, others.mean(1) / whole[of_drawn].mean())
                | {"from layers": "{} to {}".format(*ends["layers"]), "facts": len(mean)}
            )  # fmt: skip
    shares = [
        {"model": row["model"], "against": _CONTROLS[row["control"]], "heads": row["count"]}
        | {twin: str(row[twin]) for twin in TWINS}
        for row in found
    ]
    return found, {
        "The leading heads, in order": pd.DataFrame(leading),
        "What they carry on facts they were not ranked on": pd.DataFrame(shares),
        "Where the leading set lies among sets of as many other heads": pd.DataFrame(beside),
    }


def _place(ours: float, shares: np.ndarray) -> dict[str, Any]:
    """Where the leading set's share lies among those of the sets that were drawn."""
    low, middle, high = np.quantile(shares, (0.025, 0.5, 0.975))
    return {
        "leading set": f"{ours:.3g}",
        "sets drawn": len(shares),
        "their median": f"{middle:.3g}",
        "their middle 95%": f"{low:.3g} to {high:.3g}",
        "their largest": f"{shares.max():.3g}",
        "of them below the leading set": f"{(shares < ours).sum()} of {len(shares)}",
    }


def _dot(world: str, control: Any, twin: str, found: Estimate) -> dict[str, Any]:
    return {"setting": world, "control": _CONTROLS[control], "exchanged": twin} | found._asdict()


def _swept(rows: pd.DataFrame) -> pd.DataFrame:
    swept = []
    for (m, control, part_of, distance), part in rows.groupby(["m", "control", "share", "distance"]):
        shares = {twin: str(over_seeds(part[twin])) for twin in TWINS[:2]}
        swept.append({"m": m, "against": _CONTROLS[control], "share redrawn": part_of, "distance": distance} | shares)
    return pd.DataFrame(swept)


if __name__ == "__main__":
    sys.exit(main(__name__))
