"""Means of shares over seeds, whose intervals stay where a share can be; Student's would run past 1."""

from lcalens.core.estimates import Estimate, Numbers, over_seeds
from probes.harness.rules import CHANGE, SHARE


def mean_share(values: Numbers) -> Estimate:
    """The mean of a share over seeds; the whole interval is in [0, 1].

    Args:
        values: One a seed, such as an accuracy.
    """
    return over_seeds(values).within(*SHARE)


def mean_change(values: Numbers) -> Estimate:
    """The mean of a difference of two shares over seeds; the whole interval is in [-1, 1].

    Args:
        values: One a seed.
    """
    return over_seeds(values).within(*CHANGE)
