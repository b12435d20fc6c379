"""Memory does not grow with the number of calls: what is remembered of a model is bounded, and hooks and graphs go."""

import gc

import psutil
import pytest

from lcalens import attribute, contrast_facts, efficacy, knockout, load_facts, patch, split

CALLS = 1000
VERBS = {
    "patch": lambda model, contrast, facts: patch(model, contrast, site="z", progress=False),
    "attribute": lambda model, contrast, facts: attribute(model, contrast, progress=False),
    "knockout": lambda model, contrast, facts: knockout(model, contrast, progress=False),
    "split": lambda model, contrast, facts: split(model, contrast, progress=False),
    "efficacy": lambda model, contrast, facts: efficacy(
        model, facts, schemes=("dont-think",), counts=(0, 1), progress=False
    ),
}


def in_use():
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_thousand_calls_take_no_more_memory_than_a_hundred(standin, verb):
    model, facts = standin("llama").model, load_facts("sample", limit=2)
    contrast = contrast_facts(model, facts)
    calls = CALLS if verb == "patch" else CALLS // 5
    for _ in range(calls // 10):
        VERBS[verb](model, contrast, facts)
    before = in_use()
    for _ in range(calls):
        VERBS[verb](model, contrast, facts)
    grown = in_use() - before
    print(f"{verb}: {calls} calls, {before:.0f} MiB, {grown:+.1f}")
    assert grown < 0.02 * before
