"""Turning a hijack off: heads that no longer look before the last sentence end, always or when a detector says so."""
