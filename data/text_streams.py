"""Texts in and what was found in them out, in order and in constant memory: what `predict.py` reads and writes.

Read: `.txt` and standard input (one text a line), `.jsonl` / `.json` (one object a line), `.csv` and `.tsv` (with a header; tsv
knows no quotes), each also as `.gz`, and `.parquet`. A line or record that cannot be read never ends the run: it becomes a `Row`
with an `error`.

Written: JSON lines, one object a text, `{"text": ..., "entities": [...]}` or `{"text": ..., "error": "..."}`, with the keys
of the input record kept. A csv, tsv or parquet file stays one, where the output is a file: they gain the columns `entities` (in
csv and tsv: the same JSON) and `error`. A column of these two names that was there before is replaced. What else than entities can
be found, `Additions` says.
What is written is always valid UTF-8: a lone surrogate, which only JSON can carry, goes out as the escape it came in as.

A named file that is empty is an error, like one that is missing; empty standard input is no rows.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import datetime
import gzip
import io
import itertools
import json
import math
import os
import re
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, Literal, Self, TypeVar, cast

from hanzoo.data.document import Entity
from hanzoo.data.files import AtomicFile, storage_errors
from hanzoo.data.readers import without_repeats
from hanzoo.errors import DataError, StorageError

Format = Literal["txt", "jsonl", "csv", "tsv", "parquet"]

SUFFIXES: Mapping[str, Format] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".json": "jsonl",  # CLUENER's own files: JSON lines by the name of .json
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
ERROR = "error"  # the column that says why a row was refused

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_BOM = b"\xef\xbb\xbf"
_LARGEST_CSV_FIELD = 2**31 - 1  # characters; the module's default of 131,072 refuses a long document
_PARQUET_BATCH = 512  # rows read at a time
_PARQUET_ROW_GROUP = (65_536, 32 * 2**20)  # rows, bytes: a row group is written when it reaches either


@dataclass(frozen=True, slots=True)
class Row:
    """One text of the input, or the reason why there is none.

    Attributes:
        text: the text as given; None where `error` says why it cannot be tagged.
        error: None, or one sentence: where, what must hold, what is, what to do.
        columns: the record as given, the text's own column included, in its order.
        place: "file:line" ("file:row N" in parquet), both counted from 1.
    """

    text: str | None
    error: str | None
    columns: Mapping[str, Any]
    place: str


class RowReader(Iterator[Row]):
    """The rows of one input, in order; a context manager that closes it.

    Attributes:
        path: the file, or None for standard input.
        format: how the input is written.
        text_column: the name under which the text stands in each row's `columns`.
        header: the columns known beforehand (txt, csv, tsv, parquet); None for JSON lines, where each record has its own.
        schema: the pyarrow schema of a parquet file, else None.
        has_bom: whether a csv file starts with a byte order mark, as Excel writes and needs it.
    """

    def __init__(
        self,
        rows: Iterator[Row],
        close: Callable[[], None],
        *,
        path: Path | None,
        format: Format,
        text_column: str,
        header: tuple[str, ...] | None,
        schema: Any = None,
        has_bom: bool = False,
    ) -> None:
        self._rows = rows
        self._close = close
        self.path = path
        self.format = format
        self.text_column = text_column
        self.header = header
        self.schema = schema
        self.has_bom = has_bom

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Row:
        with _reading(_name(self.path)):
            return next(self._rows)

    def close(self) -> None:
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# From the fields of the first line of a tsv input to its columns; None = these fields are their names.
Header = Callable[[Sequence[str]], Sequence[str] | None]


def read_rows(
    path: str | Path | None,
    *,
    text_column: str | Sequence[str] = "text",
    option: str = "--text-column",
    format: Format | None = None,
    header: Header | None = None,
) -> RowReader:
    """Open an input and return its rows, to be iterated once; what is wrong with the file as a whole is raised here.

    txt, standard input: one text a line, split at "\\n" only, one "\\r" before it dropped; a blank line is the text "".
    jsonl: one object a line, the text under `text_column`; blank lines are skipped.
    csv: RFC 4180 with a header; blank lines are skipped. Raises the `csv` module's field limit for the whole process.
    tsv: fields between tabs, a `"` is a character like any other; with a header; blank lines are skipped.
    parquet: any table with a column of strings.

    Args:
        path: the file; None or "-" for standard input.
        text_column: the column (jsonl: the key) that holds the text, or several names, of which the first that is there does.
            Without meaning for txt.
        option: what says on the command line which column that is, for errors.
        format: how the input is written; None = as the suffix says, and standard input one text a line.
        header: of a tsv input; what its first line names, where that is not always its columns.

    Raises:
        DataError: the file is missing, empty, unreadable, of an unknown suffix, or has no such column. While iterating:
            the file cannot be read to its end (a disk error, a truncated .gz).
    """
    wanted = _Wanted((text_column,) if isinstance(text_column, str) else tuple(text_column), option)
    if path is None or str(path) == "-":
        if sys.stdin is None:
            raise DataError("standard input: must be open, but is closed. Name a file, or pipe texts in.")
        if format == "parquet":
            raise DataError("standard input: must be lines, but is parquet. Name a file.")
        # A BufferedReader has `peek`; what a test or a notebook puts in its place may lack it.
        return _open_lines(None, sys.stdin.buffer, format or "txt", wanted, header)  # type: ignore[arg-type]
    path = Path(path)
    name = _name(path)
    found = format or _format_of(path)
    if found is None:
        raise DataError(
            f"{name}: the suffix must be one of {', '.join(SUFFIXES)} (or .txt.gz, .jsonl.gz, .csv.gz, .tsv.gz), but is "
            f"{path.suffix!r}. Rename the file, or pipe it through standard input as one text a line."
        )
    with _reading(name):
        if found == "parquet":
            return _open_parquet(path, name, wanted)
        stream = _open_bytes(path)
        try:
            if not stream.peek(1):
                raise DataError(f"{name}: the file must hold texts, but is empty. Check how it was made.")
            return _open_lines(path, stream, found, wanted, header)
        except BaseException:
            stream.close()
            raise


@dataclass(frozen=True)
class _Wanted:
    """The column of the text.

    Attributes:
        names: it may have.
        option: what says which it is.
    """

    names: tuple[str, ...]
    option: str

    def among(self, present: Collection[str]) -> str:
        """The first of the names that is present; where none is, the first."""
        return next((name for name in self.names if name in present), self.names[0])


def _open_lines(
    path: Path | None,
    stream: io.BufferedReader,
    format: Format,
    wanted: _Wanted,
    header: Header | None,
) -> RowReader:
    name = _name(path)
    close = _nothing if path is None else stream.close
    if format == "csv":
        return _open_csv(path, stream, name, wanted)
    if format == "tsv":
        return _open_tsv(path, stream, name, wanted, header)
    if format == "jsonl":
        rows = _jsonl_rows(stream, name, wanted)
        return RowReader(rows, close, path=path, format=format, text_column=wanted.names[0], header=None)
    rows = _txt_rows(stream, name)
    return RowReader(rows, close, path=path, format=format, text_column="text", header=("text",))


def _name(path: Path | None) -> str:
    return "standard input" if path is None else str(path)


def _open_bytes(path: Path) -> io.BufferedReader:
    if path.suffix.lower() == ".gz":
        # A GzipFile is no BufferedReader, but has all of it that is used here: peek, iteration, what TextIOWrapper wants.
        return cast(io.BufferedReader, gzip.GzipFile(path, "rb"))
    return path.open("rb")


def _nothing() -> None:
    """Standard input is not ours to close."""


def _format_of(path: Path) -> Format | None:
    """The format that a file's suffix names, `.gz` aside (parquet compresses by itself)."""
    if path.suffix.lower() != ".gz":
        return SUFFIXES.get(path.suffix.lower())
    inner = SUFFIXES.get(Path(path.stem).suffix.lower())
    return None if inner == "parquet" else inner


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{name}: the file must exist, but does not. Check the path.") from error
    except IsADirectoryError as error:
        raise DataError(f"{name}: the input must be a file, but is a folder. Name one file in it.") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{name}: the file must be readable to its end, but is not: {reason}. Check the file."
        ) from error


def _clip(value: object, length: int = 60) -> str:
    shown = repr(value)
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def _not_utf8(place: str, what: str, byte: int) -> str:
    return (
        f"{place}: {what} must be UTF-8, but holds the byte 0x{byte:02x}. "
        "Convert the file, for example: iconv -f GB18030 -t UTF-8."
    )


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines of a stream, counted from 1, without their end and without a byte order mark at the start."""
    for number, line in enumerate(stream, start=1):
        if number == 1:
            line = line.removeprefix(_BOM)
            if not line:
                continue  # nothing but a mark, and not even an end of line: no row
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def _txt_rows(stream: IO[bytes], name: str) -> Iterator[Row]:
    for number, line in _lines(stream):
        place = f"{name}:{number}"
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield Row(None, _not_utf8(place, "a line", line[error.start]), {"text": None}, place)
        else:
            yield Row(text, None, {"text": text}, place)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):  # 1e999: it could not be written back as JSON
        raise ValueError(f"the number {number} is out of range")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _jsonl_rows(stream: IO[bytes], name: str, wanted: _Wanted) -> Iterator[Row]:
    for number, line in _lines(stream):
        if not line.strip():
            continue
        place = f"{name}:{number}"
        nothing = {wanted.names[0]: None}
        try:
            record = json.loads(
                line.decode("utf-8"),
                parse_float=_finite,
                parse_constant=_no_constant,
                object_pairs_hook=without_repeats,
            )
        except UnicodeDecodeError as error:
            yield Row(None, _not_utf8(place, "a line", line[error.start]), nothing, place)
            continue
        except (ValueError, RecursionError) as error:
            shown = _clip(line.decode("utf-8"))
            yield Row(
                None,
                f"{place}: a line must be one JSON object, but is {shown} ({error}). Fix the line.",
                nothing,
                place,
            )
            continue
        if not isinstance(record, dict):
            message = f"{place}: a line must be one JSON object, but is {_clip(record)}. Fix the line."
            yield Row(None, message, nothing, place)
            continue
        text_column = wanted.among(record)
        text = record.get(text_column)
        if isinstance(text, str):
            yield Row(text, None, record, place)
            continue
        if text_column in record:
            message = f"{place}: {text_column!r} must be a string, but is {_clip(text)}. Fix the line."
        else:
            known = ", ".join(map(repr, record)) or "none"
            message = (
                f"{place}: the object must have the key {text_column!r}, but its keys are {_clip_text(known)}. "
                f"Add it, or name the key of the text with {wanted.option}."
            )
        yield Row(None, message, {text_column: None, **record}, place)


def _clip_text(text: str, length: int = 200) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _column(name: str, wanted: _Wanted, columns: Sequence[str]) -> str:
    """The column of the text. Raises DataError where a file has none, or a name twice."""
    text_column = wanted.among(columns)
    if text_column not in columns:
        known = _clip_text(", ".join(map(repr, columns)) or "none")
        raise DataError(
            f"{name}: the file must have a column {text_column!r}, but its columns are {known}. "
            f"Name the column that holds the text with {wanted.option}."
        )
    _check_unique(name, columns)
    return text_column


def _check_unique(name: str, columns: Sequence[str]) -> None:
    for column in columns:
        if columns.count(column) > 1:
            raise DataError(f"{name}: column names must be unique, but {column!r} comes twice. Rename one of them.")


def allow_long_fields() -> None:
    """Raise the `csv` module's limit of a field, for the whole process."""
    csv.field_size_limit(max(csv.field_size_limit(), _LARGEST_CSV_FIELD))


def _open_csv(path: Path | None, stream: io.BufferedReader, name: str, wanted: _Wanted) -> RowReader:
    has_bom = path is not None and stream.peek(len(_BOM))[: len(_BOM)] == _BOM
    allow_long_fields()
    # Bytes that are not UTF-8 come through as lone surrogates, so that one bad record does not end the run.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    # Strict, for otherwise '"a"b' is read as 'ab': a text that is not in the file.
    records = csv.reader(text, strict=True)
    try:
        header = next(records, [])
    except csv.Error as error:
        raise DataError(f"{name}:1: the header must be a line of csv, but is not ({error}). Fix the line.") from error
    damaged = _first_escaped_byte("".join(header))
    if damaged is not None and wanted.among(header) not in header:
        raise DataError(_not_utf8(f"{name}:1", "the header", damaged))
    header = [_show_bytes(column) for column in header]
    text_column = _column(name, wanted, header)
    return RowReader(
        _csv_rows(records, name, text_column, tuple(header)),
        _nothing if path is None else text.close,
        path=path,
        format="csv",
        text_column=text_column,
        header=tuple(header),
        has_bom=has_bom,
    )


def _first_escaped_byte(text: str) -> int | None:
    """The first byte that was not UTF-8, out of the lone surrogate that `surrogateescape` made of it."""
    found = _ESCAPED_BYTE.search(text)
    return None if found is None else ord(found[0]) - 0xDC00


def _show_bytes(text: str) -> str:
    r"""Bytes that are not UTF-8 as \xNN, the rest as it is."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# typeshed names no public type for a csv reader; the two members used are `__next__` and `line_num`.
def _csv_rows(records: Any, name: str, text_column: str, header: tuple[str, ...]) -> Iterator[Row]:
    while True:
        place = f"{name}:{records.line_num + 1}"
        try:
            fields: list[str] = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            message = f"{place}: a record must be valid csv, but is not ({error}). Fix its quotes."
            yield Row(None, message, {text_column: None}, place)
            continue
        if not fields:
            continue
        damaged = _first_escaped_byte("".join(fields))
        columns: dict[str, str | None] = {text_column: None} if len(fields) < len(header) else {}
        columns.update(zip(header, map(_show_bytes, fields) if damaged is not None else fields, strict=False))
        if damaged is not None:
            yield Row(None, _not_utf8(place, "a record", damaged), columns, place)
        elif len(fields) != len(header):
            message = (
                f"{place}: a record must hold {len(header)} fields ({_clip_text(', '.join(header))}), "
                f"but holds {len(fields)}: {_clip(fields)}. Fix the record."
            )
            yield Row(None, message, columns, place)
        else:
            yield Row(columns[text_column], None, columns, place)


def _open_tsv(
    path: Path | None,
    stream: IO[bytes],
    name: str,
    wanted: _Wanted,
    header: Header | None,
) -> RowReader:
    lines = _lines(stream)
    number, first = next(lines, (1, b""))
    columns = header(first.decode("utf-8", "replace").split("\t")) if header else None
    if columns is None:
        try:
            columns = first.decode("utf-8").split("\t")
        except UnicodeDecodeError as error:
            raise DataError(_not_utf8(f"{name}:1", "the header", first[error.start])) from error
    else:
        lines = itertools.chain([(number, first)], lines)
    text_column = _column(name, wanted, columns)
    close = _nothing if path is None else stream.close
    rows = _tsv_rows(lines, name, text_column, tuple(columns))
    return RowReader(rows, close, path=path, format="tsv", text_column=text_column, header=tuple(columns))


def counted_columns(fields: Sequence[str]) -> list[str]:
    """A `Header` of a file without one: its columns by number, from 1."""
    return [str(column) for column in range(1, len(fields) + 1)]


def _tsv_rows(
    lines: Iterator[tuple[int, bytes]], name: str, text_column: str, header: tuple[str, ...]
) -> Iterator[Row]:
    for number, line in lines:
        if not line.strip() and b"\t" not in line:
            continue
        place = f"{name}:{number}"
        try:
            fields = line.decode("utf-8").split("\t")
        except UnicodeDecodeError as error:
            yield Row(None, _not_utf8(place, "a line", line[error.start]), {text_column: None}, place)
            continue
        columns: dict[str, str | None] = {text_column: None} if len(fields) < len(header) else {}
        columns.update(zip(header, fields, strict=False))
        if len(fields) == len(header):
            yield Row(columns[text_column], None, columns, place)
            continue
        message = (
            f"{place}: a line must hold {len(header)} fields ({_clip_text(', '.join(header))}) between tabs, "
            f"but holds {len(fields)}: {_clip(fields)}. Fix the line."
        )
        yield Row(None, message, columns, place)


class ParquetRecord(Mapping[str, Any]):
    """One row of a parquet file: values are converted when asked for, and written back with their types untouched."""

    __slots__ = ("batch", "index")

    def __init__(self, batch: Any, index: int) -> None:
        self.batch = batch  # pyarrow.RecordBatch
        self.index = index

    def __getitem__(self, column: str) -> Any:
        position = self.batch.schema.get_field_index(column)
        if position < 0:
            raise KeyError(column)
        scalar = self.batch.column(position)[self.index]
        try:
            return _json_value(scalar.as_py())
        except UnicodeDecodeError:
            return scalar.as_buffer().to_pybytes().decode("utf-8", "backslashreplace")

    def __iter__(self) -> Iterator[str]:
        return iter(self.batch.schema.names)

    def __len__(self) -> int:
        return int(self.batch.num_columns)


def _json_value(value: Any) -> Any:
    """A value of a parquet column as JSON has it: times as ISO 8601, bytes as base64, not-a-number as null."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    return str(value)


def _open_parquet(path: Path, name: str, wanted: _Wanted) -> RowReader:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as stream:
        if not stream.read(1):
            raise DataError(f"{name}: the file must hold texts, but is empty. Check how it was made.")
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise DataError(f"{name}: the file must be parquet, but is not ({error}). Check the file.") from error
    try:
        schema = file.schema_arrow
        text_column = _column(name, wanted, schema.names)
        kind = schema.field(text_column).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_string_view(values)):
            raise DataError(
                f"{name}: the column {text_column!r} must hold strings, but holds {kind}. "
                f"Name another column with {wanted.option}, or convert this one."
            )
    except BaseException:
        file.close()
        raise
    return RowReader(
        _parquet_rows(file, name, text_column),
        file.close,
        path=path,
        format="parquet",
        text_column=text_column,
        header=tuple(schema.names),
        schema=schema,
    )


def _parquet_rows(file: Any, name: str, text_column: str) -> Iterator[Row]:
    import pyarrow as pa

    number = 0
    batches = file.iter_batches(batch_size=_PARQUET_BATCH)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except pa.ArrowException as error:
            raise DataError(
                f"{name}: the file must be readable to its end, but is not ({error}). Check the file."
            ) from error
        texts = batch.column(batch.schema.get_field_index(text_column))
        for index in range(batch.num_rows):
            number += 1
            place = f"{name}:row {number}"
            record = ParquetRecord(batch, index)
            try:
                text = texts[index].as_py()
            except UnicodeDecodeError as error:
                yield Row(None, _not_utf8(place, f"{text_column!r}", error.object[error.start]), record, place)
                continue
            if text is None:
                message = f"{place}: {text_column!r} must be a string, but is null. Fill it in or leave the row out."
                yield Row(None, message, record, place)
            else:
                yield Row(text, None, record, place)


F = TypeVar("F")


@dataclass(frozen=True)
class Additions(Generic[F]):
    """What a row gains by what was found in it.

    Attributes:
        columns: the names of what is added, in order.
        record: from what was found to JSON values by column; a column may be left out.
        arrow: the types of the columns, as pyarrow has them, by name.
    """

    columns: tuple[str, ...]
    record: Callable[[F], Mapping[str, Any]]
    arrow: Callable[[], Mapping[str, Any]]

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that a file gains."""
        return (*self.columns, ERROR)

    def cells(self, row: Row, found: F | None) -> list[Any]:
        """A value for each of `names`, None where there is none; for tables of text: lists as JSON."""
        record = {} if found is None else self.record(found)
        values = (record.get(column) for column in self.columns)
        shown = (
            json.dumps(value, ensure_ascii=False, allow_nan=False) if isinstance(value, (list, bool)) else value
            for value in values
        )
        return [*shown, row.error]

    def merged(self, row: Row, found: F | None) -> dict[str, Any]:
        """The record as given, and what was found or what is wrong."""
        record = {key: value for key, value in row.columns.items() if key not in self.names}
        if row.error is not None:
            return record | {ERROR: row.error}
        assert found is not None
        return record | dict(self.record(found))


class RowWriter(ABC, Generic[F]):
    """Writes what was found, row by row, in the order given; a context manager.

    Where the `with` block ends without an error the output is complete; where it raises, an output file is left as it was
    before (lines on standard output have gone).

    """

    def write(self, row: Row, found: F | None) -> None:
        """Write one row with what was found; `found` is not looked at (None will do) where the row has an error.

        Raises:
            StorageError: no room, no permission.
            BrokenPipeError: the reader of a pipe has gone; the caller should end quietly.
        """
        if row.error is None and found is None:
            raise ValueError(f"{row.place}: a row without an error must come with what was found")
        self._write(row, found if row.error is None else None)

    @abstractmethod
    def _write(self, row: Row, found: F | None) -> None: ...

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def entity_record(entity: Entity) -> dict[str, Any]:
    """An entity as the keys and values that are written."""
    return {
        "start": entity.start,
        "end": entity.end,
        "label": entity.label,
        "text": entity.text,
        "confidence": entity.confidence,
    }


def json_line(record: Mapping[str, Any]) -> bytes:
    """One object as a line of UTF-8 JSON: Chinese as it is, a lone surrogate as its escape."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    return line.encode("utf-8", "backslashreplace")  # only surrogates fail to encode, and "\ud83d" is JSON's own escape


def _entity_types() -> Mapping[str, Any]:
    import pyarrow as pa

    fields = [
        pa.field("start", pa.int64()),
        pa.field("end", pa.int64()),
        pa.field("label", pa.string()),
        pa.field("text", pa.string()),
        pa.field("confidence", pa.float64()),
    ]
    return {"entities": pa.list_(pa.struct(fields))}


ENTITIES: Additions[Sequence[Entity]] = Additions(
    ("entities",), lambda found: {"entities": [entity_record(entity) for entity in found]}, _entity_types
)


class StandardOutput:
    """Standard output for bytes, whatever encoding it has for text; each write is flushed.

    Raises:
        StorageError: it is closed, or cannot be written.
        BrokenPipeError: its reader has gone.
    """

    def __init__(self) -> None:
        if sys.stdout is None:
            raise StorageError("standard output: must be open, but is closed. Name a file with --output.")
        sys.stdout.flush()
        self._stream = sys.stdout.buffer

    def write(self, content: bytes) -> None:
        with storage_errors("standard output", "Make room, or name a file with --output."):
            try:
                rest = memoryview(content)
                while rest:  # unbuffered (python -u), one write may take a part only
                    rest = rest[self._stream.write(rest) :]
                self._stream.flush()
            except OSError:
                self._drop_buffer()
                raise

    def _drop_buffer(self) -> None:
        """Send what standard output still holds nowhere: at exit Python would try again, and complain a second time."""
        with contextlib.suppress(io.UnsupportedOperation):  # not a real file, as under a test's capture
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self._stream.fileno())
            finally:
                os.close(nowhere)


class StandardOutputWriter(RowWriter[F]):
    """JSON lines to standard output, each flushed: the next command in the pipe sees a text as soon as it is tagged."""

    def __init__(self, additions: Additions[F]) -> None:
        self._additions = additions
        self._output = StandardOutput()

    def _write(self, row: Row, found: F | None) -> None:
        self._output.write(json_line(self._additions.merged(row, found)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Every line has been flushed."""


class JSONLinesWriter(RowWriter[F]):
    """JSON lines into a file, compressed where its name ends in .gz."""

    def __init__(self, output: Path, additions: Additions[F]) -> None:
        self._additions = additions
        self._file = AtomicFile(output)

    def _write(self, row: Row, found: F | None) -> None:
        self._file.write(json_line(self._additions.merged(row, found)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)


class CSVWriter(RowWriter[F]):
    """The input's columns and order, then what was found (empty where there is an error) and `error`."""

    def __init__(self, output: Path, header: Sequence[str], additions: Additions[F], *, has_bom: bool) -> None:
        self._additions = additions
        self._columns = [column for column in header if column not in additions.names]
        self._file = AtomicFile(output)
        self._records = csv.writer(_CSVLines(self._file))
        if has_bom:
            self._file.write(_BOM)
        self._records.writerow([*self._columns, *additions.names])

    def _write(self, row: Row, found: F | None) -> None:
        kept = (row.columns.get(column) for column in self._columns)
        self._records.writerow([*kept, *self._additions.cells(row, found)])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)


class TSVWriter(RowWriter[F]):
    """As `CSVWriter`, between tabs and without quotes."""

    def __init__(self, output: Path, header: Sequence[str], additions: Additions[F]) -> None:
        self._additions = additions
        self._columns = [column for column in header if column not in additions.names]
        self._file = AtomicFile(output)
        self._line([*self._columns, *additions.names])

    def _line(self, fields: Sequence[Any]) -> None:
        # no field of a tsv input holds a tab or a "\n"; an error may, where a file's name does
        cells = ("" if field is None else re.sub(r"[\t\n]", " ", str(field)) for field in fields)
        self._file.write(("\t".join(cells) + "\n").encode("utf-8", "backslashreplace"))

    def _write(self, row: Row, found: F | None) -> None:
        self._line([*(row.columns.get(column) for column in self._columns), *self._additions.cells(row, found)])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)


class _CSVLines:
    """What csv.writer writes to.

    Its "\\r\\n" makes it quote both characters inside a field (with "\\n" alone Python 3.11 leaves "\\r" bare, and the
    record could not be read back); the line itself ends in "\\n".
    """

    def __init__(self, file: AtomicFile) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write((line.removesuffix("\r\n") + "\n").encode("utf-8", "backslashreplace"))


class ParquetWriter(RowWriter[F]):
    """The input's columns with their types, then what was found (null where there is an error) and `error`."""

    def __init__(self, output: Path, schema: Any, additions: Additions[F]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._additions = additions
        types = additions.arrow()
        self._kept = [index for index, name in enumerate(schema.names) if name not in additions.names]
        self._schema = pa.schema(
            [
                *(schema.field(index) for index in self._kept),
                *(pa.field(column, types[column]) for column in additions.columns),
                pa.field(ERROR, pa.string()),
            ],
            metadata=schema.metadata,
        )
        self._runs: list[_Run] = []
        self._batches: list[Any] = []
        self._num_waiting = 0
        self._num_bytes = 0
        self._file = AtomicFile(output)
        try:
            with storage_errors(output):
                self._writer = pq.ParquetWriter(self._file.stream, self._schema)
        except BaseException as error:
            self._file.__exit__(type(error), error, error.__traceback__)
            raise

    def _write(self, row: Row, found: F | None) -> None:
        record = row.columns
        if not isinstance(record, ParquetRecord):
            raise TypeError(
                f"{row.place}: a row of a parquet file is wanted, but its columns are {type(record).__name__}"
            )
        run = self._runs[-1] if self._runs else None
        if run is None or run.batch is not record.batch or run.start + len(run.errors) != record.index:
            self._convert()
            run = _Run(record.batch, record.index, [], [])
            self._runs.append(run)
        run.found.append({} if found is None else self._additions.record(found))
        # A file name that is not UTF-8 comes into the message as lone surrogates, which parquet has no way to hold.
        run.errors.append(None if row.error is None else row.error.encode("utf-8", "backslashreplace").decode("utf-8"))

    def _convert(self) -> None:
        """Turn the rows gathered into one record batch, and write a row group when there are enough of them."""
        import pyarrow as pa

        for run in self._runs:
            rows = run.batch.slice(run.start, len(run.errors))
            columns = [rows.column(index) for index in self._kept]
            for column in self._additions.columns:
                values = [record.get(column) for record in run.found]
                columns.append(pa.array(values, type=self._schema.field(column).type))
            columns.append(pa.array(run.errors, type=pa.string()))
            self._batches.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
            self._num_waiting += rows.num_rows
            self._num_bytes += self._batches[-1].nbytes
        self._runs.clear()
        if self._num_waiting >= _PARQUET_ROW_GROUP[0] or self._num_bytes >= _PARQUET_ROW_GROUP[1]:
            self._write_row_group()

    def _write_row_group(self) -> None:
        import pyarrow as pa

        if self._batches:
            with storage_errors(self._file.path):
                self._writer.write_table(pa.Table.from_batches(self._batches, schema=self._schema))
        self._batches.clear()
        self._num_waiting = self._num_bytes = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._convert()
                self._write_row_group()
            with storage_errors(self._file.path):
                self._writer.close()
        except BaseException as failure:
            self._file.__exit__(type(failure), failure, failure.__traceback__)
            if kind is None:
                raise
        else:
            self._file.__exit__(kind, error, trace)


@dataclass(slots=True)
class _Run:
    """Neighbouring rows of one record batch."""

    batch: Any
    start: int
    found: list[Mapping[str, Any]]
    errors: list[str | None]


def open_writer(output: str | Path | None, like: RowReader, additions: Additions[F]) -> RowWriter[F]:
    """Open an output for the rows of `like`.

    None or "-": JSON lines to standard output, whatever the input. A file: csv for csv, tsv for tsv and parquet for parquet, unless
    its suffix names JSON lines (.jsonl, .json, .txt); JSON lines for everything else, and csv for txt and tsv where the suffix
    is .csv.

    Args:
        output: where to write.
        like: the input.
        additions: what rows gain.

    Raises:
        DataError: the output is the input itself, or a csv, tsv or parquet file is asked for that the input has no columns for.
        StorageError: the file cannot be created.
    """
    if output is None or str(output) == "-":
        return StandardOutputWriter(additions)
    output = Path(output)
    if like.path is not None and output.exists() and output.samefile(like.path):
        raise DataError(f"{output}: the output must be another file than the input. Name another one with --output.")
    wanted = _format_of(output)
    if wanted is None:
        wanted = "jsonl" if like.format == "txt" else like.format
    if wanted == "parquet" and like.format == "parquet":
        return ParquetWriter(output, like.schema, additions)
    if wanted == "csv" and like.format in ("csv", "tsv", "txt") and like.header is not None:
        return CSVWriter(output, like.header, additions, has_bom=like.has_bom)
    if wanted == "tsv" and like.format == "tsv" and like.header is not None:
        return TSVWriter(output, like.header, additions)
    if wanted in ("csv", "tsv", "parquet"):
        raise DataError(
            f"{output}: the output of {_name(like.path)} must be JSON lines (.jsonl) or keep the input's format, "
            f"but its suffix is {output.suffix!r}. Name another one with --output."
        )
    return JSONLinesWriter(output, additions)
