"""The real world: language models, facts, hijacks, and how often a hijack works."""
