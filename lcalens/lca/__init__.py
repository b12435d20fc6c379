"""The toy world: latent concept association, its one-layer model, closed-form memories, training, geometry, theory.

`lca_bridge`, which loads TransformerLens, is in `lcalens.lca.bridge` and at the top level; the rest is here.
"""
