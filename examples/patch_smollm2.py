# %% [markdown]
# # Which heads carry a hijack in SmolLM2?
# Exact activation patching of all 270 heads: each, in the hijacked run, is given what it has in the clean run.
# It takes a minute on two cores.

# %%
from pathlib import Path

from lcalens import attention_view, contrast_facts, knockout, load_facts, load_model, patch, ranking

model = load_model("smollm2")
facts = load_facts("sample", limit=40)
contrast = contrast_facts(model, facts, scheme="dont-think", control="neutral")
print(contrast)

# %% [markdown]
# Rank on one half of the facts, report on the other: ranked and reported on the same, effects flatter.

# %%
first, second = contrast[::2], contrast[1::2]
ranked, held_out = (patch(model, half, site="head", positions="last") for half in (first, second))
print(ranking(ranked, held_out=held_out).wide().head(10).to_string(index=False))

# %% [markdown]
# The same without any clean run: nobody sees the word that hijacks, or only the best head does not.

# %%
best = held_out.wide().sort_values("recovery").iloc[-1]
layer, head = int(best["layer"]), int(best["head"])
for heads in ("all", [(layer, head)]):
    cut = knockout(model, second, span="word", positions="last", heads=heads, progress=False)
    print(f"word hidden from {heads}: recovery {cut.wide()['recovery'].item():.2f}")

# %%
out = Path("out/patch_smollm2")
out.mkdir(parents=True, exist_ok=True)
held_out.plot().savefig(out / "heads.png", dpi=150)
attention_view(model, second, [(layer, head)]).save(out / "attention.html")
