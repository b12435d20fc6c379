"""A half of the facts to judge by, which nothing was looked at while one decided what to measure."""

import hashlib
from collections.abc import Iterable

from lcalens.core.errors import LcalensError
from lcalens.llm.facts.facts import Facts
from lcalens.llm.facts.records import shown


def held_out(facts: Facts, *, without: Iterable[int | str] = ()) -> Facts:
    """The half of the facts that is kept for judging: those whose `case_id` has an odd hash.

    Samples drawn at random nest, so facts that were looked at while a study was planned come back when it is run. A
    half that depends only on the identifiers stays apart: explore on the others, and judge on these. The pool stays the
    whole source, so sentences about other subjects may still come from any record.

    Args:
        facts: Facts of any source; the same identifier is in the same half everywhere, written as a number or as text.
        without: Identifiers to leave out besides, such as those of tables that were published already.

    Returns:
        About half of the facts, in order, less those of `without`; it may be empty.

    Raises:
        LcalensError: Where `facts` is no `Facts`, or `without` is a single identifier.

    Example:
        >>> facts = load_facts("sample")
        >>> judged = held_out(facts)
        >>> 0.4 < len(judged) / len(facts) < 0.6
        True
    """
    if not isinstance(facts, Facts):
        raise LcalensError(f"facts: {shown(facts)} is a {type(facts).__name__}; give what load_facts returned.")
    if isinstance(without, str | bytes) or not isinstance(without, Iterable):
        raise LcalensError(f"without: {shown(without)} is a {type(without).__name__}; give a list of case_ids.")
    seen = {str(case_id) for case_id in without}
    chosen = [fact for fact in facts if str(fact.case_id) not in seen and _is_odd(str(fact.case_id))]
    return Facts(chosen, pool=facts.pool, skipped=facts.skipped, source=facts.source)


def _is_odd(case_id: str) -> bool:
    return hashlib.sha256(case_id.encode("utf-8")).digest()[0] % 2 == 1
