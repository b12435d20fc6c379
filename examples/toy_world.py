# %% [markdown]
# # The toy world in ten lines
# Latent concept association, a one-layer model trained on it, what its embeddings look like and where it attends.
# Run it as a script, or open it as a notebook with jupytext. It takes half a minute.

# %%
import torch

from lcalens import LatentConcepts, TrainConfig, lca_bridge, train
from lcalens.lca import attention_pattern, gram, lca_tokenizer

concepts = LatentConcepts(6, neighborhood="cluster")  # 6 latent bits, 64 tokens; a concept speaks of its own half
runs = train(concepts, TrainConfig(context_length=64, d_model=32, d_head=16), seeds=range(5), out="out/toy_world")
runs.plot()  # accuracy over the steps, and Bayes, which nothing beats

# %%
model = runs[0].model
embeddings, attention = gram(concepts, model), attention_pattern(concepts, model)
embeddings.plot()  # inner products fall with the Hamming distance: equation 5.2
attention.plot()  # each token looks at its own cluster

# %% [markdown]
# The trained model is a TransformerLens model. A context is bits; hijack it, and see what the model says.

# %%
bridge, tokenizer = lca_bridge(model), lca_tokenizer(concepts.m)
tokens, y = concepts.sample(1000, 64, torch.Generator().manual_seed(0))
other = y ^ 0b011111  # as far from y as the cluster allows: all bits but the first
for share in (0.0, 0.2, 0.4, 0.6):
    hijacked = concepts.hijack(tokens, y, other, share=share, generator=torch.Generator().manual_seed(1))
    answer = bridge(hijacked)[:, -1].argmax(-1)
    best = concepts.posterior(hijacked).argmax(-1)  # Bayes for clean contexts: the reference, not a ceiling
    print(f"share {share}: model says y {(answer == y).double().mean():.3f}, the other "
          f"{(answer == other).double().mean():.3f}; Bayes says y {(best == y).double().mean():.3f}")  # fmt: skip
print("a context:", tokenizer.decode(tokens[0, :6]), "...")

# %%
for name, result in (("training", runs.result), ("gram", embeddings), ("attention", attention)):
    result.plot().savefig(f"out/toy_world/{name}.png", dpi=150)
