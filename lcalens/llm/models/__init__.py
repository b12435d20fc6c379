"""Real models: loaded, converted from GGUF, and what can go wrong meanwhile."""
