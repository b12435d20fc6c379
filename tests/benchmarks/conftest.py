"""What a run of the benchmarks measured is added to the dated records that the variable LCALENS_RECORDS names."""

import os
from pathlib import Path

import pytest

from tests.house.speed import append, rows_of


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Add the quantities of every benchmark that has some."""
    records, found = os.environ.get("LCALENS_RECORDS"), getattr(session.config, "_benchmarksession", None)
    if not records or found is None:
        return
    append(rows_of({one.name: one.extra_info for one in found.benchmarks if one.extra_info}), Path(records))
