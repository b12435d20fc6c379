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
# # 2. The toy world: train it, open its value matrix, hijack it
#
# To see *why* a sentence hijacks a model, the paper builds the smallest world in which it can happen. A concept
# is a handful of bits. A text speaks of a concept in tokens that are near it, bit for bit, and never names it;
# the model has to say which concept it is. Copying does not help, since the answer is not in the text: the model
# must associate.
#
# Here you train the paper's one-layer model in seconds, look into the matrix that does the associating, replace
# it by one that is written down by hand, and hijack it. Half a minute on a laptop.

# %%
# Where lcalens is not installed (Colab, VS Code, Jupyter): make the wheel with `make build`, and take the mark away.
# %pip install --quiet dist/lcalens-0.2.0-py3-none-any.whl

# %%
import pandas as pd
import torch
from matplotlib import pyplot

from lcalens import LatentConcepts, TrainConfig, contrast_concepts, lca_bridge, patch, train
from lcalens.lca import gram, lca_tokenizer
from lcalens.lca.model.closed_forms import constructed_value, random_pair_value, with_value

concepts = LatentConcepts(6)  # 6 bits: 64 concepts, and 64 tokens
tokens, y = concepts.sample(2000, 64, torch.Generator().manual_seed(0))
tokenizer = lca_tokenizer(concepts.m)
print("a context:", tokenizer.decode(tokens[0, :8]), "...")
print("its concept:", tokenizer.decode(y[0]))

# %% [markdown]
# ## Train

# %%
runs = train(concepts, TrainConfig(context_length=64, d_model=32, d_head=16), seeds=range(3))
runs

# %%
runs.plot()

# %% [markdown]
# The line is the mean accuracy of the three models on contexts they have not seen, the band their range. The
# dashes are Bayes' rule, which knows the world and which nothing beats: the models end a little below it.
#
# ## What it has learnt about tokens

# %%
model = runs[0].model
geometry = gram(concepts, model)
geometry.plot()

# %% [markdown]
# Nobody told the model which tokens are alike, yet tokens that differ in up to three bits have embeddings that point
# the same way, on average, and tokens that differ in more have embeddings that point apart. The orange line is the
# form that the paper gives such embeddings (its equation 5.2); at six bits the fit is rough, as the R² in the legend
# says.
#
# ## Open the value matrix
#
# Through embedding and value matrix, each token that is looked at raises or lowers each answer: a table of 64 by 64.

# %%
embedding, value = model.embed.weight.detach(), model.attn.v.weight.detach()
constructed = constructed_value(concepts, embedding)  # the paper's: the sum of e(t) e(t')^T over neighbours t and t'
tables = {"trained": embedding @ value @ embedding.T, "constructed": embedding @ constructed @ embedding.T}

figure, panels = pyplot.subplots(1, 2, figsize=(7, 3.3), dpi=130, layout="constrained")
for panel, (name, table) in zip(panels, tables.items(), strict=True):
    most = float(table.abs().max())
    panel.imshow(table, cmap="RdBu_r", vmin=-most, vmax=most)
    panel.set(title=f"{name} value matrix", xlabel="token looked at", ylabel="answer raised (red) or lowered (blue)")

# %% [markdown]
# Rows and columns are in binary order, so blocks are tokens that share their first bits. On the left is what
# training found, on the right the paper's construction, in which each token recalls its neighbours: the same
# blocks in the same places, because both are a memory of who is near whom.

# %%
distance = torch.tensor([[bin(a ^ b).count("1") for b in range(64)] for a in range(64)])
by_distance = pd.DataFrame(
    {name: [float(table[distance == d].mean()) for d in range(7)] for name, table in tables.items()}
)
by_distance.index.name = "bits that differ"
by_distance.round(2)

# %% [markdown]
# On average a token raises the answers nearest to it most, and lowers those farthest from it most.
#
# If that is what the matrix is, then the one written by hand should serve in its place, and one that pairs tokens
# at random should not.


# %%
def accuracy(model):
    """The share of the 2000 contexts whose concept the model names."""
    with torch.no_grad():
        return float((model(tokens, logits_to_keep=1).logits[:, -1].argmax(-1) == y).double().mean())


random_pairs = random_pair_value(concepts, embedding, torch.Generator().manual_seed(1))
swapped = pd.Series(
    {
        "as trained": accuracy(model),
        "the paper's matrix in its place": accuracy(with_value(model, constructed)),
        "random pairs in its place": accuracy(with_value(model, random_pairs)),
    },
    name="accuracy",
)
swapped.to_frame().round(3)

# %% [markdown]
# The hand-written memory keeps most of the accuracy. The random one, of the same form, leaves none.
#
# ## Hijack it
#
# Replace a share of a context's tokens by tokens that speak of another concept, here the one that differs in all
# bits but the first. No token is forbidden and none is a lie; there is more and more of the other.

# %%
other = y ^ 0b011111
says = []
for share in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
    hijacked = concepts.hijack(tokens, y, other, share=share, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        answer = model(hijacked, logits_to_keep=1).logits[:, -1].argmax(-1)
    best = concepts.posterior(hijacked).argmax(-1)
    row = {"the concept": answer == y, "the other": answer == other, "Bayes: the concept": best == y}
    says.append({"share": share} | {name: float(where.double().mean()) for name, where in row.items()})
says = pd.DataFrame(says).set_index("share")
axes = says.plot(style=["o-", "s-", "k--"], figsize=(5, 3.2), xlabel="share of tokens replaced")
axes.set_ylabel("share of contexts")
axes.figure.set_dpi(130)

# %% [markdown]
# The model says the concept less and less often, and the other one more and more: it is hijacked. Dashes are
# Bayes' rule for clean contexts, which is hijacked in the same way: to take every word as evidence is what the
# task rewards.

# %%
says.round(3)

# %% [markdown]
# ## What puts the answer right again?
#
# The trained model is also a TransformerLens model, and takes the calls of notebook 1. Patch where the head looks
# (`pattern`), and what it reads there (`v`), from a clean run into the hijacked one.

# %%
bridge = lca_bridge(model)
contrast = contrast_concepts(concepts, limit=200, length=64, share=0.5, distance=3, seed=0)
patched = {site: patch(bridge, contrast, site=site, positions="all") for site in ("pattern", "v")}
recovery = {site: result.wide()["recovery"].item() for site, result in patched.items()}
pd.Series(recovery, name="recovery (0: hijacked, 1: clean)").to_frame().round(3)

# %% [markdown]
# To look where the clean run looked does nothing; to read what the clean run read does nearly everything. In this
# world a hijack is recall. Notebook 3 asks the same of SmolLM2, in the same words.
#
# ## What this page says, held to its numbers

# %% tags=["holds"]
table = runs.to_frame()
assert (table["accuracy"] < table["bayes"]).all() and (table["accuracy"] > table["bayes"] - 0.07).all()
assert (geometry.values["mean"][1:4] > 0).all() and (geometry.values["mean"][4:] < 0).all()
correlation = torch.corrcoef(torch.stack([table.flatten() for table in tables.values()]))[0, 1]
print(f"the two tables' correlation: {correlation:.2f}")
assert correlation > 0.9
assert (by_distance.loc[1:].diff().dropna() < 0).all(axis=None)
assert (by_distance.max() == by_distance.loc[:1].max()).all() and (by_distance.min() == by_distance.loc[6]).all()
trained, paper, chance = swapped
assert paper > 0.9 * trained and chance < 0.02
assert says["the concept"].is_monotonic_decreasing and says["the other"].is_monotonic_increasing
assert says["Bayes: the concept"].is_monotonic_decreasing
assert says["the other"].iloc[-1] > says["the concept"].iloc[-1]
assert abs(recovery["pattern"]) < 0.05 and recovery["v"] > 0.95
