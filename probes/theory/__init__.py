"""Probes of theorems and lemmas: closed forms, without training or with little."""
