"""Files of records: a JSON list, JSON lines, parquet or CSV, plain or gzip: CSV told by name, others by content."""

import csv
import gzip
import io
import json
import stat
import zlib
from pathlib import Path
from typing import Any

from lcalens.core.errors import LcalensError
from lcalens.core.folders import near_path
from lcalens.llm.facts.records import MAX_DIGITS, Records, Unreadable, shown

USE_SAMPLE = "use 'sample' for the facts that come with lcalens"
# Twenty times the whole of CounterFact: beyond it, a small gzip file that unpacks to fill the memory is likelier.
MAX_BYTES = 1 << 30
MAX_RECORDS = 2_000_000
# A value of one character takes a hundred bytes of memory.
_MAX_VALUES = 20_000_000

_FORMATS = "a JSON list, JSON lines, parquet or CSV (.csv, .tsv), plain or gzip"
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_file(path: Path) -> Records:
    """Reads a file of records, whose format its content tells, or the ending `.csv` or `.tsv`.

    Args:
        path: The file: a JSON list, JSON lines, parquet or CSV with a line of names, plain or gzip.

    Returns:
        Its records, named by the file's name.

    Raises:
        LcalensError: Where it is missing, is no regular file, is too large, or has another format.
    """
    # The end of a long path tells more than its start.
    where = shown(str(path) if len(str(path)) < 75 else "..." + str(path)[-72:])
    try:
        path = path.expanduser()
        status = path.stat()
        # Nothing else is opened: a pipe may never end, and /dev/zero never does.
        regular = stat.S_ISREG(status.st_mode)
        data = path.read_bytes() if regular and status.st_size <= MAX_BYTES else b""
    except FileNotFoundError as error:
        near = near_path(path)
        hint = f" Did you mean {near!r:.120}?" if near else ""
        raise LcalensError(
            f"source: {where} is not an existing file; check the path, or {USE_SAMPLE}.{hint}"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise LcalensError(f"source: {where} cannot be read ({error}); check the path and its permissions.") from error
    if stat.S_ISDIR(status.st_mode):
        raise LcalensError(f"source: {where} is a directory; give the file in it.")
    if not regular:
        raise LcalensError(f"source: {where} is not a regular file; copy its content to one.")
    if status.st_size > MAX_BYTES:
        raise _too_large(where)
    if data.startswith(b"\x1f\x8b"):
        data = _unzip(where, data)
    if data.startswith(b"PAR1"):
        return Records(path.name, _parse_parquet(where, data))
    separator = _SEPARATORS.get(Path(path.name.lower().removesuffix(".gz")).suffix)
    if separator:
        return Records(path.name, *_parse_csv(where, data, separator))
    records, lines = parse_text(where, data)
    return Records(path.name, records, lines)


def _too_large(where: str) -> LcalensError:
    return LcalensError(
        f"source: {where} holds more than {MAX_BYTES:,} bytes or {MAX_RECORDS:,} records; split it into smaller files."
    )


def _check_values(where: str, data: bytes, marks: bytes) -> None:
    """Refuse more values than memory holds: each takes far more there than the mark before it does in the file."""
    if sum(data.count(mark) for mark in marks) > _MAX_VALUES:
        raise LcalensError(f"source: {where} holds more than {_MAX_VALUES:,} values; split it into smaller files.")


def _unzip(where: str, data: bytes) -> bytes:
    try:
        with gzip.open(io.BytesIO(data)) as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise LcalensError(f"source: {where} is damaged gzip ({error}); download or compress it again.") from error
    if len(data) > MAX_BYTES:
        raise _too_large(where)
    return data


def _parse_parquet(where: str, data: bytes) -> list[Any]:
    import pyarrow as pa
    import pyarrow.parquet

    records: list[Any] = []
    try:
        with pyarrow.parquet.ParquetFile(pa.BufferReader(data)) as file:
            size = 0
            # A few bytes can stand for a column of one long text: what is unpacked is measured, some rows at a time.
            for batch in file.iter_batches(batch_size=_rows_at_a_time(file.metadata)):
                parts = [_unpacked(column) for column in batch.columns]
                size += sum(part.nbytes for part in parts)
                if size > MAX_BYTES or len(records) + batch.num_rows > MAX_RECORDS:
                    raise _too_large(where)
                columns = {
                    name: _values(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)
                }
                records += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, LcalensError):
            raise
        reason = shown(str(error).split("\n")[0], 200)
        raise LcalensError(f"source: {where} is damaged parquet ({reason}); download or write it again.") from error
    return records


def _rows_at_a_time(metadata: Any) -> int:
    """So many rows that, if each held all that a group of rows holds when unpacked, they would still fit."""
    # A column's own size is not asked for: in a damaged file pyarrow ends the process over it.
    sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
    return max(1, min(1 << 16, MAX_BYTES // max([1, *sizes])))


def _unpacked(column: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        return column.dictionary_decode()
    if "dictionary<" in str(column.type):
        raise ValueError("a dictionary within a column; write it with plain values")
    return column


def _values(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raise
    except (OverflowError, ValueError):  # a time beyond the year 9999, say; no field of a fact is one
        return [None] * len(column)


def _decode(where: str, data: bytes) -> str:
    # ASCII text in UTF-16 has a zero in every second byte, whether or not a byte-order mark leads it.
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:2]:
        raise LcalensError(f"source: {where} is UTF-16 or UTF-32, not UTF-8, at byte 0; save it again as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # error.start counts from after the byte-order mark; a person with a hex editor counts from before it.
        mark = 3 if data.startswith(b"\xef\xbb\xbf") else 0
        raise LcalensError(
            f"source: {where} is not UTF-8 at byte {error.start + mark}; save it again as UTF-8 (it may be {_FORMATS})."
        ) from error


def parse_text(where: str, data: bytes) -> tuple[list[Any], list[int] | None]:
    """Parses JSON or JSON lines.

    Args:
        where: What to call the data in a message.
        data: The text, in UTF-8.

    Returns:
        The records, an `Unreadable` in place of a line that is not JSON; and their line numbers, for JSON lines.

    Raises:
        LcalensError: Where the data is empty, not UTF-8, or not JSON.
    """
    _check_values(where, data, b",[{")
    text = _decode(where, data)
    start = text.lstrip()[:1]
    if not start:
        raise LcalensError(f"source: {where} is an empty file; give {_FORMATS}.")
    if start == "[":
        try:
            return _loads(text), None
        except json.JSONDecodeError as error:
            raise LcalensError(
                f"source: {where} is not whole JSON: {error.msg} at line {error.lineno}, column {error.colno}; "
                f"mend it there, or download it again if it ends early."
            ) from error
        except RecursionError as error:
            raise LcalensError(f"source: {where} is JSON nested too deeply; give a flat list of records.") from error
    if start == "{":
        return _parse_lines(text)
    raise LcalensError(f"source: {where} begins with {shown(text.lstrip()[:20])}, which no JSON does; give {_FORMATS}.")


def _parse_csv(where: str, data: bytes, separator: str) -> tuple[list[Any], list[int]]:
    """Records of a table with a line of names; a whole number in `case_id` is a number, as it is in JSON."""
    _check_values(where, data, separator.encode() + b"\n")
    reader = csv.DictReader(io.StringIO(_decode(where, data), newline=""), delimiter=separator, strict=True)
    records, lines = [], []
    try:
        for row in reader:
            rest = row.pop(None, None)  # pyright: ignore[reportArgumentType, reportCallIssue]
            if rest is not None:
                records.append(Unreadable(f"it has {len(rest)} more values than the table has names; quote its commas"))
            else:
                record: dict[str, Any] = {name: value or None for name, value in row.items()}
                number = record.get("case_id") or ""
                if number.removeprefix("-").isdecimal() and len(number) <= MAX_DIGITS:
                    record["case_id"] = int(number)
                records.append(record)
            lines.append(reader.line_num)
    except csv.Error as error:
        reason = str(error).replace("\t", "\\t")
        raise LcalensError(
            f"source: {where} is not whole CSV: {reason} at line {reader.line_num}; mend it there, or write it again."
        ) from error
    return records, lines


def _parse_lines(text: str) -> tuple[list[Any], list[int] | None]:
    records: list[Any] = []
    lines: list[int] = []
    # Not str.splitlines: JSON strings may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            records.append(_parse_line(line))
            lines.append(number)
    if not any(isinstance(record, dict) for record in records):
        try:
            return [_loads(text)], None  # one record, written over several lines
        except (json.JSONDecodeError, RecursionError):
            pass
    return records, lines


def _parse_line(line: str) -> Any:
    try:
        return _loads(line)
    except json.JSONDecodeError as error:
        return Unreadable(f"the line {shown(line)} is not JSON ({error.msg} at column {error.colno}); mend it")
    except RecursionError:
        return Unreadable(f"the line {shown(line)} is JSON nested too deeply; give a flat record")


def _loads(text: str) -> Any:
    return json.loads(text, parse_int=_parse_int)


def _parse_int(digits: str) -> int:
    # Python refuses to convert some thousands of digits, with an error that would lose the whole file; a number as
    # long as this fails only its own record, and only where the record needs it.
    return int(digits) if len(digits) <= MAX_DIGITS else 10**MAX_DIGITS
