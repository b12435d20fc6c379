"""lcalens: context hijacking of language models, measured and traced."""

__version__ = "0.1.0"
