"""How often a hijack works: scoring, and the tables made of it."""
