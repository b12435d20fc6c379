"""Clean and hijacked runs, made of texts or token ids."""
