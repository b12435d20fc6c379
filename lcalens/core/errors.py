"""The one error that lcalens raises for an argument."""


class LcalensError(ValueError):
    """An argument lcalens cannot use: the message names it, its value and the fix.

    Example:
        >>> from lcalens import LatentConcepts
        >>> try:
        ...     LatentConcepts(m=-1)
        ... except LcalensError as error:
        ...     print(str(error).partition(":")[0])
        m
    """
