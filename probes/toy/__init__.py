"""Probes of the trained toy model (sections 5 and 6)."""
