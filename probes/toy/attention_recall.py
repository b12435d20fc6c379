"""Is a toy model hijacked by where its head looks, or by what its head recalls?

A share of the positions 1 to L - 1 of a context of y is redrawn from another concept at a fixed distance; the last
token is kept. The metric is the other concept's logit less that of y. The hijacked run is then given all attention
patterns of the clean run, or all its values; and the metric's change is split, exactly, into attention and recall.
Against `same` the clean context is the one that was redrawn; against `other` it is redrawn from a third concept.
"""

import sys
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch

from lcalens import LatentConcepts, attribute, contrast_concepts, lca_bridge, patch, split
from lcalens.core.estimates import over_seeds
from lcalens.engine.sites import Site
from lcalens.mechanism.attribute import Method
from probes.harness.figures import dots
from probes.harness.rules import Rule, paired, shown
from probes.harness.run import main
from probes.harness.study import Report, Settings
from probes.harness.toy import recipe
from probes.harness.work import Work

RULES = (
    Rule(
        claim="What the toy's head recalls carries its hijack; where it looks, by itself, does not.",
        source="the link",
        group="ours",
        effect="the recovery of the hijacked run with all values of the clean run",
        unit="share of the metric's change",
        minimum=0.5,
        control="the same with all attention patterns of the clean run",
        margin=0.3,
        effect_range=(-10.0, 10.0),
        control_range=(-10.0, 10.0),
    ),
)
CHOICES = """
The recovery is of the means over contexts, for each trained model; means and intervals are over models. With one head
and one layer there is no other way from the context to the logits, so that what attribution patching and direct effects
miss of the whole head's recovery is an error of theirs: that is the last table.
"""
Control = Literal["same", "other"]
CONTROLS: tuple[Control, ...] = ("same", "other")
SITES: tuple[tuple[str, Site], ...] = (("patterns", "pattern"), ("values", "v"))
METHODS: tuple[Method, ...] = ("patching", "direct")
_PARTS = {"attention": "attention", "recall": "recall", "change": "total"}


@dataclass(frozen=True, kw_only=True)
class AttentionRecall(Settings):
    """Attention against recall in the toy.

    Attributes:
        m: Numbers of latent bits.
        neighborhoods: Which tokens a concept may be stated with.
        length: L.
        lr: Learning rate.
        steps: Training steps.
        contexts: Contexts for each model and control.
        share: The chance that a position is redrawn.
        distance: How many bits the other concept is away.
    """

    m: tuple[int, ...] = (6, 8)
    neighborhoods: tuple[Literal["all", "cluster"], ...] = ("all", "cluster")
    length: int = 64
    lr: float = 0.03
    steps: int = 1000
    contexts: int = 200
    share: float = 0.5
    distance: int = 3


PRESETS = {
    "quick": AttentionRecall(preset="quick", seeds=2, m=(4,), length=16, steps=30, contexts=20),
    "standard": AttentionRecall(),
    "full": AttentionRecall(preset="full", seeds=20, m=(5, 6, 7, 8), contexts=1000),
}


def grid(settings: AttentionRecall) -> list[dict[str, Any]]:
    """A cell for each world."""
    of = {name: getattr(settings, name) for name in ("lr", "steps", "contexts", "share", "distance", "seeds")}
    return [{"m": m, "neighborhood": kind, "L": settings.length} | of
            for m in settings.m for kind in settings.neighborhoods]  # fmt: skip


def measure(cell: dict[str, Any], work: Work) -> list[dict[str, Any]]:
    """A row for each model and control."""
    concepts = LatentConcepts(cell["m"], neighborhood=cell["neighborhood"])
    runs = work.train(concepts, recipe(cell["m"], cell["L"], cell["lr"], cell["steps"]), cell["seeds"])
    sizes = {"limit": cell["contexts"], "length": cell["L"], "share": cell["share"], "distance": cell["distance"]}
    rows = []
    for control in CONTROLS:
        generator = torch.Generator().manual_seed(0)
        contrast = contrast_concepts(concepts, **sizes, control=control, generator=generator)
        for run in runs:
            model = lca_bridge(run.model)
            row = {name: _recovery(patch(model, contrast, site=site, positions="all", progress=False))
                   for name, site in SITES}  # fmt: skip
            exact = _recovery(patch(model, contrast, site="head", progress=False))
            for method in METHODS:
                found = _recovery(attribute(model, contrast, method=method, site="head", progress=False))
                row[f"missed by {method}"] = found - exact
            parts = split(model, contrast, twin=0, progress=False).summary
            whole = parts[parts["group"] == "all"].set_index("quantity")["value"]
            row |= {name: float(whole[part]) for name, part in _PARTS.items()}
            known = {"m": cell["m"], "neighborhood": cell["neighborhood"], "L": cell["L"], "control": control}
            rows.append(known | {"seed": run.seed} | row)
    return rows


def _recovery(result: Any) -> float:
    return float(result.wide()["recovery"].item())


def report(settings: AttentionRecall, rows: pd.DataFrame) -> Report:
    """Recovery by values and by patterns, and the split of the metric's change."""
    names = ["m", "neighborhood", "control"]
    evidence, points, parts, missed = [], [], [], []
    for (m, kind, control), own in rows.groupby(names, sort=False):
        setting = f"m = {m}, N = {'all' if kind == 'all' else 'cluster of 1 bit'}, against {control}"
        evidence.append(paired(setting, own["values"], own["patterns"]))
        for name in ("values", "patterns"):
            mean, low, high = over_seeds(own[name].to_numpy())
            points.append({"setting": setting, "given": f"clean {name}", "mean": mean, "low": low, "high": high})
        told = {
            name: shown(over_seeds(own[name].to_numpy())) for name in own.columns if name not in (*names, "seed", "L")
        }
        parts.append({"setting": setting} | {name: told[name] for name in _PARTS})
        missed.append({"setting": setting} | {method: told[f"missed by {method}"] for method in METHODS})
    return Report(
        evidence=((RULES[0], evidence),),
        figures={
            "What the clean run's values, or its attention patterns, give back of the hijack in the toy; 1 is all. "
            "Means over models with 95% intervals.": dots(pd.DataFrame(points), xlabel="recovery", series="given"),
        },
        tables={
            "The metric's change, split, in logits": pd.DataFrame(parts),
            "By how much attribution misses the whole head's recovery": pd.DataFrame(missed),
        },
    )


if __name__ == "__main__":
    sys.exit(main(__name__))
