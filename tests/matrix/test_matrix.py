"""The quick part of the matrix: every family and verb once, over them every pair of the rest. `make matrix` is all."""

import itertools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.matrix.cells import BATCHES, CONTROLS, DTYPES, SITES, VERBS, cells, expected_refusals, judge_all, quick_cells
from tests.matrix.families import FAMILIES

QUICK = list(quick_cells())


@pytest.fixture(scope="module")
def verdicts(request):
    """Of the cells that are tested: a family after the other, in two processes."""
    tested = [item.callspec.params["cell"] for item in request.session.items if "verdicts" in item.fixturenames]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), mp_context=context) as pool:
        families = [[cell for cell in tested if cell.family == family] for family in FAMILIES]
        yield {verdict.cell: verdict for found in pool.map(judge_all, filter(None, families)) for verdict in found}


@pytest.mark.parametrize("cell", QUICK, ids=lambda cell: f"{cell.family}-{cell.verb}")
def test_exact_or_refused_as_expected(cell, verdicts):
    assert verdicts[cell].good, str(verdicts[cell])


def test_every_family_meets_every_verb_and_every_pair_is_met():
    assert {(cell.family, cell.verb) for cell in QUICK} == set(itertools.product(FAMILIES, VERBS))
    pairs = {
        (cell.verb, *pair)
        for cell in QUICK
        for pair in itertools.combinations((cell.site, cell.control, cell.dtype, cell.batch), 2)
    }
    for verb, how in VERBS.items():
        axes = (how.sites, CONTROLS, DTYPES, BATCHES)
        for one, two in itertools.combinations(axes, 2):
            assert {(verb, *pair) for pair in itertools.product(one, two)} <= pairs, verb


def test_no_cell_is_listed_twice_and_none_is_left_out():
    every = list(cells())
    assert len({cell.name for cell in every}) == len(every)
    met = {(cell.family, cell.verb, cell.site, cell.control, cell.dtype, cell.batch) for cell in every}
    for verb, how in VERBS.items():
        assert set(itertools.product(FAMILIES, [verb], how.sites, CONTROLS, DTYPES, BATCHES)) <= met
    assert set(VERBS["patch"].sites) == set(SITES)


def test_every_expected_refusal_says_why():
    for entry in expected_refusals():
        assert len(entry.why) > 20, entry
        assert len(entry.reason) > 5, entry
