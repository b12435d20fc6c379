"""Training of many toy models at once."""
