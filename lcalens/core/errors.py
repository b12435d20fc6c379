"""The one error that lcalens raises for an argument."""


class LcalensError(ValueError):
    """An argument lcalens cannot use: the message names it, its value and the fix."""
