"""Facts to hijack: a checked, immutable collection of them, and its loader."""

import hashlib
import html
import json
import operator
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, overload

from lcalens.core.errors import LcalensError
from lcalens.core.near import did_you_mean
from lcalens.llm.facts.records import Fact, Skipped, shown
from lcalens.llm.facts.sources import check, read

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Fact", "Facts", "Skipped", "load_facts"]

_SHOWN_ROWS = 10
_SHOWN_RELATIONS = 50


class Facts(Sequence[Fact]):
    """An immutable sequence of facts that remembers the source it was chosen from.

    Slicing, `sample` and `where` return another `Facts` with the same pool and the same skipped records; `+` puts two
    together, each fact once.

    Args:
        facts: The facts, no two of them with the same `case_id`.
        pool: Every valid fact of the source, those of `facts` among them; `facts` itself where None.
        skipped: The records of the source that hold no valid fact.
        source: The source's name.

    Raises:
        LcalensError: Where an item has the wrong type, a `case_id` occurs twice, or the pool lacks one of the facts.
    """

    __slots__ = ("_digest", "_facts", "_pool", "_skipped", "_source")

    def __init__(
        self,
        facts: Iterable[Fact],
        *,
        pool: Iterable[Fact] | None = None,
        skipped: Iterable[Skipped] = (),
        source: str = "user",
    ) -> None:
        self._facts = _items("facts", facts, Fact)
        self._pool = self._facts if pool is None else _items("pool", pool, Fact)
        self._skipped = _items("skipped", skipped, Skipped)
        if not isinstance(source, str):
            raise LcalensError(f"source: {shown(source)} is a {type(source).__name__}; give a name, a string.")
        self._source = source
        self._digest: str | None = None
        for name, group in (("facts", self._facts), ("pool", self._pool)):
            seen: set[int | str] = set()
            for fact in group:
                if fact.case_id in seen:
                    raise LcalensError(f"{name}: case_id {shown(fact.case_id)} occurs twice; give each fact its own.")
                seen.add(fact.case_id)
        if missing := set(self._facts) - set(self._pool):
            raise LcalensError(
                f"pool: {shown(self._pool)} lacks {len(missing)} of the facts, such as {shown(min(missing, key=str))}; "
                "give all the facts of the source, or leave it out."
            )

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The records of the source that hold no valid fact, in its order."""
        return self._skipped

    @property
    def pool(self) -> tuple[Fact, ...]:
        """Every valid fact of the source, before any of them was chosen."""
        return self._pool

    @property
    def source(self) -> str:
        """The name of the source: a word, a file's name, or a hub id."""
        return self._source

    @property
    def relations(self) -> tuple[str, ...]:
        """The relations that occur among these facts, sorted."""
        return tuple(sorted({fact.relation_id for fact in self._facts}))

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with the content or the order of the facts or of the pool.

        The pool counts because what is drawn from it is part of a measurement; the source's name does not.
        """
        if self._digest is None:
            content = [[_row(fact) for fact in group] for group in (self._facts, self._pool)]
            self._digest = hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()[:16]
        return self._digest

    def sample(self, n: int, seed: int = 0) -> "Facts":
        """Chooses facts at random and keeps them in order.

        A larger sample with the same seed holds the smaller one, so that a study can be extended.

        Args:
            n: How many; all of them where there are fewer.
            seed: Of the choice.

        Returns:
            The facts chosen.

        Raises:
            LcalensError: Where `n` is not a positive integer or `seed` is not an integer.
        """
        n, seed = _integer("n", n, 1), _integer("seed", seed)
        order = list(range(len(self._facts)))
        random.Random(seed).shuffle(order)
        return self._derive(self._facts[index] for index in sorted(order[:n]))

    def where(self, *, relations: str | Iterable[str] | None = None) -> "Facts":
        """Chooses the facts of some relations.

        Args:
            relations: One relation, or several; None for all.

        Returns:
            The facts chosen, in order.

        Raises:
            LcalensError: Where a relation does not occur among these facts; the message lists those that do.
        """
        if relations is None:
            return self._derive(self._facts)
        chosen = _relation_ids(relations)
        known = self.relations
        for relation in chosen:
            if relation not in known:
                listed = ", ".join(shown(name, 30) for name in known[:_SHOWN_RELATIONS])
                more = f" and {len(known) - _SHOWN_RELATIONS} more" if len(known) > _SHOWN_RELATIONS else ""
                raise LcalensError(
                    f"relations: {shown(relation)} does not occur in {shown(self._source)}; give one of {listed}{more}."
                    f"{did_you_mean(relation, known)}"
                )
        return self._derive(fact for fact in self._facts if fact.relation_id in chosen)

    def to_frame(self) -> "pd.DataFrame":
        """The facts as a table, which `load_facts` reads back.

        Returns:
            A pandas data frame with one row per fact and one column per field.
        """
        import pandas as pd

        columns = [field.name for field in fields(Fact)]
        return pd.DataFrame([_row(fact) for fact in self._facts], columns=pd.Index(columns))

    def _derive(self, facts: Iterable[Fact]) -> "Facts":
        # What __init__ checks holds for any selection, and checking it again would make slicing slow.
        derived = object.__new__(type(self))
        derived._facts = tuple(facts)
        derived._pool, derived._skipped, derived._source = self._pool, self._skipped, self._source
        derived._digest = None
        return derived

    def __len__(self) -> int:
        return len(self._facts)

    def __iter__(self) -> Iterator[Fact]:
        return iter(self._facts)

    @overload
    def __getitem__(self, index: int) -> Fact: ...
    @overload
    def __getitem__(self, index: slice) -> "Facts": ...
    def __getitem__(self, index: int | slice) -> "Fact | Facts":
        return self._derive(self._facts[index]) if isinstance(index, slice) else self._facts[index]

    def __add__(self, other: "Facts") -> "Facts":
        """These facts and others behind them, from both pools.

        Raises:
            LcalensError: Both have a fact of one `case_id`, and they are not the same.
        """
        if not isinstance(other, Facts):
            return NotImplemented
        source = self._source if self._source == other._source else f"{self._source} + {other._source}"
        clash = {fact.case_id for fact in set(self._facts) ^ set(other._facts)}
        clash &= {fact.case_id for fact in self._facts} & {fact.case_id for fact in other._facts}
        if clash:
            raise LcalensError(
                f"facts: case_id {shown(min(clash, key=str))} is another fact's in the other source; sources without "
                "identifiers both count from 0: give their records a key or column case_id."
            )
        facts = dict.fromkeys((*self._facts, *other._facts))
        pool = dict.fromkeys((*self._pool, *other._pool))
        skipped = dict.fromkeys((*self._skipped, *other._skipped))
        return Facts(list(facts), pool=list(pool), skipped=list(skipped), source=source)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Facts):
            return NotImplemented
        return self._facts == other._facts and self._pool == other._pool

    def __hash__(self) -> int:
        return hash(self._facts)

    def __repr__(self) -> str:
        skipped = f"; {_count(len(self._skipped), 'record')} skipped" if self._skipped else ""
        facts, relations = _count(len(self._facts), "fact"), _count(len(self.relations), "relation")
        return f"Facts({facts}, {relations}, from {shown(self._source)}{skipped})"

    def _repr_html_(self) -> str:
        columns = [field.name for field in fields(Fact)]
        head = "".join(f"<th>{name}</th>" for name in columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in _row(fact)) + "</tr>"
            for fact in self._facts[:_SHOWN_ROWS]
        )
        skipped = "".join(
            f"<li>record {item.position}: {html.escape(item.reason)}</li>" for item in self._skipped[:_SHOWN_ROWS]
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        more = _more(len(self._facts), "to_frame() has them all")
        left_out = f"<p>Skipped:</p><ul>{skipped}</ul>{_more(len(self._skipped), '.skipped has them all')}"
        return f"<p>{html.escape(repr(self))}</p>{table}{more}{left_out if skipped else ''}"


def facts_record(facts: Facts) -> dict[str, Any]:
    """What results and manifests say of facts.

    Args:
        facts: The facts.
    """
    return {"source": facts.source, "digest": facts.digest, "count": len(facts), "skipped": len(facts.skipped)}


def load_facts(
    source: str | os.PathLike[str] | Iterable[Any] = "sample",
    *,
    relations: str | Iterable[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    strict: bool = False,
) -> Facts:
    """Loads facts in the schema of CounterFact, EasyEdit, NeelNanda/counterfact-tracing, or comp-mech.

    The schema is found from each record, and the format of a file from its content.

    Args:
        source: `"sample"`, the facts that come with lcalens; `"counterfact"`, the file that the environment variable
            `LCALENS_COUNTERFACT` names, or else azhx/counterfact from the hub; the path of a JSON list, of JSON lines,
            of parquet or of CSV with a line of names (`.csv`, `.tsv`), plain or gzip; the id of a data set on the hub;
            or records already loaded.
        relations: One relation or several, to keep only their facts.
        limit: The most facts to return, chosen at random and kept in order.
        seed: Of that choice.
        strict: Whether a record without a valid fact is an error. Where False, it is listed in `skipped`.

    Returns:
        At least one fact.

    Raises:
        LcalensError: Where the source cannot be read or holds no valid fact, or another argument cannot be used.

    Example:
        >>> facts = load_facts("sample", limit=20)
        >>> len(facts)
        20
    """
    seed = _integer("seed", seed)
    limit = None if limit is None else _integer("limit", limit, 1)
    relations = None if relations is None else _relation_ids(relations)
    if not isinstance(strict, bool):
        raise LcalensError(f"strict: {shown(strict)} is a {type(strict).__name__}; give True or False.")
    records = read(source)
    valid, skipped = check(records, strict=strict)
    facts = Facts(valid, skipped=skipped, source=records.name)
    facts = facts.where(relations=relations)
    return facts if limit is None else facts.sample(limit, seed)


def objects_by_relation(facts: Facts) -> dict[str, list[str]]:
    """The true and the false objects of each relation, in alphabetical order.

    Args:
        facts: All facts of their pool count.
    """
    objects: dict[str, set[str]] = {}
    for fact in facts.pool:
        objects.setdefault(fact.relation_id, set()).update((fact.target_true, fact.target_false))
    return {relation: sorted(names) for relation, names in objects.items()}


def _row(fact: Fact) -> tuple[int | str, str, str, str, str, str]:
    return (fact.case_id, fact.relation_id, fact.prompt, fact.subject, fact.target_true, fact.target_false)


def _more(count: int, where: str) -> str:
    """How many there are besides those that are shown, or nothing."""
    return f"<p>... and {count - _SHOWN_ROWS} more; {where}.</p>" if count > _SHOWN_ROWS else ""


def _items(name: str, items: Any, kind: type) -> tuple[Any, ...]:
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise LcalensError(f"{name}: {shown(items)} is a {type(items).__name__}; give a list of {kind.__name__}.")
    values = tuple(items)
    for index, item in enumerate(values):
        if not isinstance(item, kind):
            raise LcalensError(
                f"{name}[{index}]: {shown(item)} is a {type(item).__name__}; give a {kind.__name__}, "
                "or use load_facts for records."
            )
    return values


def _integer(name: str, value: Any, least: int | None = None) -> int:
    kind = "an integer" if least is None else f"an integer of at least {least}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        raise LcalensError(f"{name}: {shown(value)} cannot be used; give {kind}.")
    return number


def _relation_ids(relations: Any) -> tuple[str, ...]:
    if isinstance(relations, str):
        return (relations,)
    if isinstance(relations, bytes) or not isinstance(relations, Iterable):
        raise LcalensError(
            f"relations: {shown(relations)} is a {type(relations).__name__}; give a relation id, or a list of them."
        )
    ids = tuple(relations)
    if not ids:
        raise LcalensError(f"relations: {shown(relations)} names no relation; give at least one, or None for all.")
    for relation in ids:
        if not isinstance(relation, str):
            raise LcalensError(
                f"relations: {shown(relation)} is a {type(relation).__name__}; give relation ids, strings."
            )
    return ids


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
