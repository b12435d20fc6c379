"""Probes of language models: context hijacking, and what carries it (section 3 and the link)."""
