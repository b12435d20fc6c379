"""Where records of facts come from: the sample in the package, a file, the hub, or the caller."""

import contextlib
import importlib.resources
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lcalens.core.errors import LcalensError
from lcalens.core.folders import near_path
from lcalens.core.near import did_you_mean
from lcalens.llm.facts.files import USE_SAMPLE, parse_text, read_file
from lcalens.llm.facts.records import Fact, Records, Skipped, known_case_id, parse_record, shown
from lcalens.llm.hub import ask_hub, offline

COUNTERFACT_VARIABLE = "LCALENS_COUNTERFACT"
COUNTERFACT_HUB_ID = "azhx/counterfact"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FILE_ENDING = re.compile(r"\.(json|jsonl|ndjson|parquet|gz|csv|tsv|txt|zip)$", re.IGNORECASE)


def read(source: object) -> Records:
    """Reads every record of a source.

    Args:
        source: A known word, a path, the id of a hub data set, or the records themselves.

    Returns:
        At least one record.

    Raises:
        LcalensError: Where the source cannot be found or read, or holds nothing.
    """
    records = _read(source)
    if not records.records:
        raise LcalensError(f"source: {shown(records.name)} holds no records; give at least one, or {USE_SAMPLE}.")
    return records


def _read(source: object) -> Records:
    if isinstance(source, str):
        return _read_named(source)
    if isinstance(source, os.PathLike):
        return read_file(Path(os.fsdecode(source)))
    pandas: Any = sys.modules.get("pandas")  # a caller who has a data frame has imported it
    if pandas and isinstance(source, pandas.DataFrame):
        return Records("records", pandas.DataFrame.to_dict(source, "records"))
    if isinstance(source, Mapping):
        # The usual mapping of data sets is the one that datasets.load_dataset returns without a split.
        if source and all(_is_dataset(value) for value in source.values()):
            return Records("records", list(_one_split(source)))
        raise LcalensError(f"source: {shown(source)} is one mapping; give a list of records, [record].")
    if isinstance(source, bytes | bytearray) or not isinstance(source, Iterable):
        raise LcalensError(
            f"source: {shown(source)} is a {type(source).__name__}; give a path, a hub id, a list of dicts, "
            "or 'sample'."
        )
    return Records("records", list(source))


def _read_named(source: str) -> Records:
    if source == "sample":
        return _read_sample()
    if source == "counterfact":
        path = os.environ.get(COUNTERFACT_VARIABLE)
        if not path:
            return read_hub(COUNTERFACT_HUB_ID)
        try:
            return read_file(Path(path))
        except LcalensError as error:
            raise LcalensError(f"environment variable {COUNTERFACT_VARIABLE}: {error}") from error
    if not source.strip():
        raise LcalensError(f"source: {shown(source)} is empty; {USE_SAMPLE}.")
    try:
        path = Path(source).expanduser()
    except RuntimeError:  # "~name" of a user this machine does not have
        path = Path(source)
    if os.path.lexists(path):
        return read_file(path)
    if _HUB_ID.fullmatch(source) and not _FILE_ENDING.search(source):
        return read_hub(source)
    if "/" in source or os.sep in source or _FILE_ENDING.search(source):
        near = near_path(path)
        hint = f" Did you mean {near!r:.120}?" if near else ""
        raise LcalensError(f"source: {shown(source)} is not an existing file; check the path, or {USE_SAMPLE}.{hint}")
    raise LcalensError(
        f"source: {shown(source)} is neither 'sample', 'counterfact', an existing file nor a hub id 'owner/name'; "
        f"{USE_SAMPLE}.{did_you_mean(source, ('sample', 'counterfact'))}"
    )


def _read_sample() -> Records:
    resource = importlib.resources.files("lcalens") / "llm" / "data" / "sample_facts.json"
    try:
        data = resource.read_bytes()
    except OSError as error:
        raise LcalensError("source: 'sample' is missing from this installation; install lcalens again.") from error
    records, lines = parse_text("'sample'", data)
    return Records("sample", records, lines)


def _is_dataset(value: object) -> bool:
    return hasattr(value, "column_names") and isinstance(value, Iterable)


def _one_split(splits: Mapping[Any, Any]) -> Any:
    return splits["train"] if "train" in splits else next(iter(splits.values()))


def read_hub(hub_id: str) -> Records:
    """Reads a data set of the Hugging Face hub; no code of its repository is run.

    Args:
        hub_id: Its id, `"owner/name"`.

    Returns:
        The records of its `"train"` split, or of its first one where it has none of that name.

    Raises:
        LcalensError: Where the hub cannot be reached, or has no such data set, or it cannot be loaded.
    """
    import datasets
    import datasets.exceptions

    where = f"source: {shown(hub_id)}"
    try:
        with contextlib.nullcontext() if _answers(hub_id) else offline():
            loaded = datasets.load_dataset(hub_id)
        records = list(_one_split(loaded) if isinstance(loaded, Mapping) else loaded)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise LcalensError(
            f"{where} is neither an existing file nor a public data set on the hub; check the spelling, "
            f"log in if it is private, or {USE_SAMPLE}."
        ) from error
    except (ConnectionError, TimeoutError) as error:
        raise LcalensError(
            f"{where} is not an existing file, and the hub could not be reached ({shown(str(error), 200)}); connect to "
            f"the network and leave HF_HUB_OFFLINE unset, give the path of a file ({COUNTERFACT_VARIABLE} for "
            f"'counterfact'), or {USE_SAMPLE}."
        ) from error
    except Exception as error:  # datasets raises whatever its readers and its network library do
        raise LcalensError(
            f"{where} could not be loaded ({type(error).__name__}: {shown(str(error), 200)}); load it with "
            f"datasets.load_dataset and give its rows as source, or {USE_SAMPLE}."
        ) from error
    return Records(hub_id, records)


def _answers(hub_id: str) -> bool:
    """Whether the hub can be asked; where not, a copy on this machine will do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        ask_hub(hub_id, "README.md", kind="dataset")
    except HfHubHTTPError:
        return True  # what it says, datasets hears again and tells
    except Exception:
        return False
    return True


def check(records: Records, *, strict: bool) -> tuple[list[Fact], list[Skipped]]:
    """Sorts records into valid facts and the rest; of records with the same identifier, the first valid one is kept.

    Args:
        records: As they were read from the source.
        strict: Whether to raise on the first that holds no valid fact.

    Returns:
        The facts, at least one, and the records skipped.

    Raises:
        LcalensError: Where no record holds a valid fact, or where `strict` is true and one does not.
    """
    kept: dict[int | str, tuple[int, Fact]] = {}
    skipped: list[Skipped] = []
    for position, record in enumerate(records.records):
        try:
            fact = parse_record(record, position)
            if fact.case_id in kept:
                raise LcalensError(
                    f"case_id: {shown(fact.case_id)} is a duplicate, of record {kept[fact.case_id][0]}; "
                    "give it another."
                )
        except LcalensError as error:
            problem = str(error).rstrip(".")
            reason = f"line {records.lines[position]}: {problem}" if records.lines else problem
            if strict:
                raise LcalensError(
                    f"source: {shown(records.name)}, record {position}: {reason}; or pass strict=False to skip it."
                ) from error
            skipped.append(Skipped(position, known_case_id(record), reason))
        else:
            kept[fact.case_id] = (position, fact)
    if not kept:
        count = f"{len(skipped)} record{'s' if len(skipped) > 1 else ''}"
        reasons = " / ".join(f"record {item.position}: {item.reason}" for item in skipped[:3])
        raise LcalensError(f"source: {shown(records.name)} holds no valid fact in {count}; mend them ({reasons}).")
    return [fact for _, fact in kept.values()], skipped
