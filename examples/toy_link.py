"""Attention against recall in the toy world, as Markdown: `python examples/toy_link.py > docs/measured/toy-link.md`.

Five trained models for each world; half of every hijacked context is redrawn from another concept at distance 3.
"""

from typing import Literal

import numpy as np
import torch

from lcalens import LatentConcepts, TrainConfig, attribute, contrast_concepts, lca_bridge, patch, split, train
from lcalens.engine.sites import Site
from lcalens.lca import Runs
from lcalens.mechanism.attribute import Method

SIZE, LENGTH, SHARE, DISTANCE = 200, 64, 0.5, 3
Control = Literal["same", "other"]
SITES: tuple[tuple[str, Site], ...] = (("pattern", "pattern"), ("values", "v"))
METHODS: tuple[Method, ...] = ("patching", "direct")
CONTROLS: tuple[Control, ...] = ("same", "other")
COLUMNS = ("pattern", "values", "attention", "recall", "change", *METHODS)
WORLDS = {
    "m = 6, N = all": LatentConcepts(6),
    "m = 6, N = cluster of 1 bit": LatentConcepts(6, neighborhood="cluster"),
    "m = 8, N = all": LatentConcepts(8),
    "m = 8, N = cluster of 1 bit": LatentConcepts(8, neighborhood="cluster"),
}


def measured(runs: Runs, concepts: LatentConcepts, control: Control) -> dict[str, list[float]]:
    """What pattern and values carry, and the split of the metric's change, model by model."""
    found: dict[str, list[float]] = {name: [] for name in COLUMNS}
    generator = torch.Generator().manual_seed(0)
    sizes = {"limit": SIZE, "length": LENGTH, "share": SHARE, "distance": DISTANCE}
    contrast = contrast_concepts(concepts, **sizes, control=control, generator=generator)
    for run in runs:
        model = lca_bridge(run.model)
        for name, site in SITES:
            result = patch(model, contrast, site=site, positions="all", progress=False)
            found[name].append(result.wide()["recovery"].item())
        exact = patch(model, contrast, site="head", progress=False).wide()["recovery"].item()
        for method in METHODS:
            estimate = attribute(model, contrast, method=method, site="head", progress=False).wide()["recovery"].item()
            found[method].append(estimate - exact)
        parts = split(model, contrast, twin=0, progress=False).summary
        whole = parts[parts["group"] == "all"].set_index("quantity")["value"]
        for name, part in (("attention", "attention"), ("recall", "recall"), ("change", "total")):
            found[name].append(whole[part])
    return found


print("## Attention against recall in the toy world\n")
print(f"Mean ± standard deviation over five trained models, {SIZE} contexts of {LENGTH} tokens; each of positions 1 to")
print(f"L - 1 redrawn with probability {SHARE} from y~ at distance {DISTANCE}. Recovery: the hijacked run with all")
print("patterns, or all values, of the clean run. Attention and recall: their parts in the metric's change, in logits.")
print("Last two columns: by how much the head's recovery at the last position, of attribution patching and of direct")
print("effects, misses that of exact patching, which is 1: the head is the only way to the logits.\n")
print("| world | control | patterns recover | values recover | attention | recall | change | attribution | direct |")
print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
for name, concepts in WORLDS.items():
    config = TrainConfig(LENGTH, concepts.vocab_size // 2, min(concepts.vocab_size // 2, 32))
    runs = train(concepts, config, seeds=range(5), out="out/toy_link")
    for control in CONTROLS:
        columns = [
            f"{np.mean(part):.2f} ± {np.std(part, ddof=1):.2f}" for part in measured(runs, concepts, control).values()
        ]
        print(f"| {name} | {control} | " + " | ".join(columns) + " |")
