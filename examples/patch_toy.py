# %% [markdown]
# # Activation patching on the toy model
# Contexts whose tokens are partly redrawn from another concept, the trained model, and what puts its answer right.
# The same functions run on GPT-2, Gemma and LLaMA: see `patch_smollm2.py`.

# %%
from pathlib import Path

import torch

from lcalens import LatentConcepts, TrainConfig, contrast_concepts, lca_bridge, patch, split, train

concepts = LatentConcepts(6)
run = train(concepts, TrainConfig(context_length=64, d_model=32, d_head=16), seeds=(0,), out="out/patch_toy")[0]
model = lca_bridge(run.model)

# %% [markdown]
# Half of each hijacked context comes from another concept at distance 3. The controls: the same positions redrawn from
# the concept itself, or from a third one.

# %%
generator = torch.Generator().manual_seed(0)
for control in ("same", "other"):
    contrast = contrast_concepts(
        concepts, limit=200, length=64, share=0.5, distance=3, control=control, generator=generator
    )
    print(f"\ncontrol {control}: {contrast}")
    for site in ("v", "pattern", "head"):
        result = patch(model, contrast, site=site, positions="all", progress=False)
        print(f"  {site}: recovery {result.wide()['recovery'].item():.2f}")
    parts = split(model, contrast, progress=False)
    whole = parts.summary.query("group == 'all'").set_index("quantity")["value"]
    print(f"  of {whole['total']:.2f} logits: attention {whole['attention']:.2f}, recall {whole['recall']:.2f}")

# %%
Path("out/patch_toy").mkdir(parents=True, exist_ok=True)
parts.plot().savefig("out/patch_toy/split.png", dpi=150)
