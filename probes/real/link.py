"""Which heads carry a hijack, and is it where they look or what they recall (the question that the paper leaves open).

On both worlds. Real models: heads are ranked by exact patching on one half of the facts, and all that is said of
them is measured on the other. At the last position the leading heads' patterns, the values that they average, or both
are made the clean run's, all heads together. The clean run has a neutral sentence in the hijack's place, or one that
names another object. The toy's one head is treated the same; its clean run's tokens are redrawn from the concept
itself, or from a third concept as far away.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from lcalens import (
    LatentConcepts,
    contrast_concepts,
    contrast_facts,
    exchange,
    lca_bridge,
    leading,
    load_facts,
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
from probes.harness.work import Work, facts_source, facts_table, model_names

RULES = (
    Rule(
        claim="A few heads carry the hijack.",
        source="the link",
        group="ours",
        effect="the share of it that the leading heads carry together, on facts they were not ranked on",
        unit="share of the hijack",
        effect_range=ANY,
        control_range=ANY,
        minimum=0.5,
        control="as many other heads of the same layers, drawn at random",
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
How many heads are *a few*, and which sentence is the clean one, decide what is found: the first figure and the second
table have both. The heads that lead are those of the largest mean recovery, so heads that work against a hijack are not
among them. Every exchange is of the last position alone. In the toy, the share of the context that is redrawn and the
distance of the hijacking concept are open: the sweep goes over both. Shares are ratios of means, with 95% bootstrap
intervals that resample whole relations; the toy's are Student's over seeds.
"""
_CONTROLS: dict[Any, Literal["neutral", "other-object"]] = {"same": "neutral", "other": "other-object"}


@dataclass(frozen=True, kw_only=True)
class Link(Settings):
    """Heads, patterns, values and related words, in real models and in the toy.

    Attributes:
        models: As `lcalens.load_model` takes them; `paper` stands for the paper's own.
        facts: How many; heads are ranked on one half and measured on the other.
        heads: Numbers of leading heads; the verdicts are of the largest.
        draws: Random sets of heads.
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
    draws: int = 5
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
        draws=1,
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
        heads = {"heads": list(settings.heads), "draws": settings.draws}
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
    facts = load_facts(cell["source"]["name"], limit=cell["facts"])
    contrast = contrast_facts(model, facts, scheme="dont-think", control=_CONTROLS[cell["control"]])
    first, second = contrast[::2], contrast[1::2]
    ranked = patch(model, first, out=work.parts, progress=False)
    order = list(leading(ranked, ranked.values["value"][0].size, by="carrying"))
    most = min(max(cell["heads"]), len(order) // 2)
    sets = [order[:count] for count in cell["heads"]]
    sets += [_others(order, most, seed) for seed in range(cell["draws"])]
    found = exchange(model, second, sets, progress=False)
    names = [f"{count} leading" for count in cell["heads"]] + ["random"] * cell["draws"]
    yield {
        "set": "ends",
        "clean": found.examples["clean"].to_numpy(),
        "hijacked": found.examples["hijacked"].to_numpy(),
        "cluster": second.examples["cluster"].tolist(),
        "names": [f"L{layer}H{head}" for layer, head in order[:most]],
    }
    for number, (name, one) in enumerate(zip(names, sets, strict=True)):
        for twin, kind in enumerate(TWINS):
            yield {"set": name, "twin": kind, "count": len(one), "patched": found.values["value"][:, number, twin]}


def _others(order: list[Head], count: int, seed: int) -> list[Head]:
    """As many heads as lead, layer by layer, none of them leading where there are others."""
    generator = np.random.default_rng(seed)
    chosen: list[Head] = []
    for layer in sorted({layer for layer, _ in order[:count]}):
        wanted = sum(at == layer for at, _ in order[:count])
        rest = [head for head in order[count:] if head[0] == layer]
        chosen += [rest[i] for i in generator.permutation(len(rest))[:wanted]]
    return chosen or [order[-1]]


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
    most = max(row["count"] for row in carried)
    shown = [row for row in carried if row["count"] == most]
    toy = rows[rows["part"] == "toy"].astype({"m": int, "distance": int})
    first = toy[(toy["share"] == settings.shares[0]) & (toy["distance"] == settings.distances[0])]
    toys = {(f"toy, m = {m}", control): part for (m, control), part in first.groupby(["m", "control"], sort=False)}
    values = [row["values over patterns"] for row in shown]
    drawn = [_dot(row["model"], row["control"], twin, row[twin]) for row in shown for twin in TWINS]
    patterns = []
    for model in dict.fromkeys(row["model"] for row in shown):
        same, other = (next(r for r in shown if (r["model"], r["control"]) == (model, c)) for c in _CONTROLS)
        patterns.append(unpaired(model, same["pattern"], other["pattern"]))
    for (name, control), part in toys.items():
        values.append(paired(f"{name}, {_CONTROLS[control]}", part["values"], part["pattern"]))
        drawn += [_dot(name, control, twin, over_seeds(part[twin])) for twin in TWINS]
    for name in dict.fromkeys(name for name, _ in toys):
        patterns.append(paired(name, toys[name, "same"]["pattern"], toys[name, "other"]["pattern"]))
    curve = [
        {"panel": row["model"], "count": row["count"], "series": f"{_CONTROLS[row['control']]}: {name}"}
        | row[kind]._asdict()
        for row in carried
        for name, kind in (("leading", "both"), ("random", "random"))
        if kind == "both" or row["count"] == most
    ]
    return Report(
        evidence=((RULES[0], [row["leading over random"] for row in shown]), (RULES[1], values), (RULES[2], patterns)),
        figures={
            "Share of the hijack that the leading heads carry together, over how many lead, against both clean "
            "sentences; beside the most of them as many random heads of the same layers. 95% intervals over "
            "relations.": curves(
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
    )  # fmt: skip


def _carried(rows: pd.DataFrame) -> tuple[list[dict[str, Any]], dict[str, pd.DataFrame]]:
    """For each model, control and number of leading heads: what each twin carries."""
    found, leading = [], []
    for (model, control), part in rows.groupby(["model", "control"], sort=False):
        ends = part[part["set"] == "ends"].iloc[0]
        clean, hijacked, clusters = (np.array(ends[name]) for name in ("clean", "hijacked", "cluster"))
        whole = hijacked - clean

        def moved(name: str, twin: str, part: pd.DataFrame = part, hijacked: np.ndarray = hijacked) -> np.ndarray:
            return hijacked - np.mean(part[(part["set"] == name) & (part["twin"] == twin)]["patched"].tolist(), axis=0)

        leading.append({"model": model, "against": _CONTROLS[control], "facts": len(whole)})
        leading[-1]["heads"] = ", ".join(ends["names"])
        for name in [name for name in dict.fromkeys(part["set"]) if name not in ("ends", "random")]:
            row: dict[str, Any] = {"model": model, "control": control, "set": name, "count": int(name.split()[0])}
            row |= {twin: ratio_of_facts(moved(name, twin), whole, clusters) for twin in TWINS}
            both, random = moved(name, "both"), moved("random", "both")
            setting = f"{model}, {_CONTROLS[control]}"
            row["random"] = ratio_of_facts(random, whole, clusters)
            row["leading over random"] = Evidence(
                setting=setting,
                effect=row["both"],
                control=row["random"],
                excess=ratio_of_facts(both - random, whole, clusters),
            )
            apart = ratio_of_facts(moved(name, "values") - moved(name, "pattern"), whole, clusters)
            row["values over patterns"] = Evidence(
                setting=setting, effect=row["values"], control=row["pattern"], excess=apart
            )
            found.append(row)
    shares = [
        {"model": row["model"], "against": _CONTROLS[row["control"]], "heads": row["set"]}
        | {twin: str(row[twin]) for twin in TWINS}
        | {"as many random heads as the most": str(row["random"])}
        for row in found
    ]
    return found, {
        "The leading heads, in order": pd.DataFrame(leading),
        "What they carry on facts they were not ranked on": pd.DataFrame(shares),
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
