"""Sentences that are put before a prompt: schemes, related words, and the prompts they make."""
