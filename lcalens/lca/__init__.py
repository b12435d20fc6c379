"""The toy world: latent concept association, its one-layer model, closed-form memories, training, geometry, theory."""
