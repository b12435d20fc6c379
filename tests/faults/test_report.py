"""What is given to `report` and is no result, refused by name."""

import pytest

from lcalens import LcalensError, Result, report


@pytest.mark.parametrize(
    ("results", "named"),
    [
        ([], "results: expected a list"),
        ("x", "results: expected a list"),
        (None, "results: expected a list"),
        (Result(kind="answers", axes={}, values={}), "results: expected a list"),
        ([1], "results: 1 is neither"),
        ([Result(kind="other", axes={}, values={})], "results: the report does not know the kind 'other'"),
    ],
)
def test_what_is_no_result_is_refused(results, named):
    with pytest.raises(LcalensError, match=named):
        report(results)
