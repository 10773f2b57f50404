"""What `predict.py` does with a matcher: pairs from a file or a stream, each written with its score."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from hanzoo.data.document import Pair
from hanzoo.data.pair_files import PAIR_NAMES
from hanzoo.data.text_streams import (
    Additions,
    Format,
    Header,
    Row,
    RowReader,
    counted_columns,
    open_writer,
    read_rows,
)
from hanzoo.errors import DataError, RunError
from hanzoo.models.model import Matcher, cut_notes
from hanzoo.tasks.streams import found_in
from hanzoo.tasks.task import Say
from hanzoo.training.distributed import gather_objects, rank

SIDES = ("first", "second")
FORMATS: tuple[Format, ...] = ("tsv", "csv", "jsonl", "parquet")


def _columns(text: str) -> dict[str, str]:
    given = dict(part.partition("=")[::2] for part in text.split(","))
    if not set(given) <= set(SIDES) or not all(given.values()):
        raise argparse.ArgumentTypeError(f"must be like first=NAME,second=NAME, but is {text!r}")
    return given


PREDICT_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "--format": {
        "choices": FORMATS,
        "help": "how pairs are written; default: as the file's suffix says (.txt: tsv); standard input: two texts a line, between "
        "them a tab, or tsv whose first line names both",
    },
    "--columns": {
        "type": _columns,
        "metavar": "first=NAME,second=NAME",
        "help": "which columns (or JSON keys) hold the texts of a pair, or in tsv without a header their numbers from 1",
    },
}


class Found(NamedTuple):
    """What a matcher says of a pair.

    Attributes:
        score: the higher the better.
        probability: of a match; None for a model that says none.
        match: whether the score reaches the model's threshold; None where it has none.
    """

    score: float
    probability: float | None
    match: bool | None


def score_file(model: Matcher, arguments: argparse.Namespace, say: Say) -> int:
    """Score the pairs of `arguments.file`, and write them with their scores. Returns how many could not be read.

    Raises:
        HanzooError: a file cannot be read or written, or has no columns for the two texts.
    """
    additions = _additions(model)
    refused = 0
    with ExitStack() as open_files:
        rows, names = _open(arguments)
        open_files.enter_context(rows)
        replaced = [name for name in additions.names if name in (rows.header or ())]
        if replaced:
            say(f"{arguments.file}: its columns {', '.join(replaced)} are replaced in what is written")
        keys: dict[str, int] = {}  # of JSON lines, which have no header: how many have what is replaced
        cut: dict[str, tuple[int, int]] = {}
        scored = found_in(_with_both(rows, names), _length, lambda chunk: _scored(model, chunk, names, cut))
        if rank():  # works for the first one, which writes
            refused = sum(isinstance(found, str) for _, found in scored)
            gather_objects(cut)
            return refused
        writer = open_files.enter_context(open_writer(arguments.output, rows, additions))
        for row, found in scored:
            if isinstance(found, str):
                refused += 1
                writer.write(replace(row, text=None, error=found), None)
            else:
                writer.write(row, found)
                for name in additions.names if rows.header is None else ():
                    keys[name] = keys.get(name, 0) + (name in row.columns)
    for name, number in keys.items():
        if number:
            say(f"{arguments.file}: the key {name} of {number:,} lines is replaced in what is written")
    total: dict[str, tuple[int, int]] = {}
    for part in gather_objects(cut):
        _add(total, part)
    for note in cut_notes(total):
        say(note)
    return refused


def _additions(model: Matcher) -> Additions[Found]:
    known = {"score": True, "probability": model.calibration is not None, "match": model.threshold is not None}
    columns = tuple(name for name, is_known in known.items() if is_known)

    def arrow() -> Mapping[str, Any]:
        import pyarrow as pa

        return {"score": pa.float64(), "probability": pa.float64(), "match": pa.bool_()}

    return Additions(columns, lambda found: {name: getattr(found, name) for name in columns}, arrow)


def _open(arguments: argparse.Namespace) -> tuple[RowReader, Mapping[str, tuple[str, ...]]]:
    """The rows of the input, and for each side the names that its column may have."""
    given = arguments.columns or {}
    names = {side: (given[side],) if side in given else PAIR_NAMES[side] for side in SIDES}
    place, format = str(arguments.file), arguments.format
    if len(set(given.values())) < len(given):
        raise RunError(
            f"--columns: the two texts must stand in two columns, but both are {given['first']}. Name another for one of them."
        )
    header: Header | None = None
    if place == "-" and format is None:
        format = "tsv"
        header = None if given else partial(_sides_unless_named, names)
    suffix = place.lower().removesuffix(".gz").rpartition(".")[2]
    if format is None and suffix == "txt":
        format = "tsv"
    if given and all(name.isdecimal() for name in given.values()):
        if set(given) != set(SIDES) or not (format == "tsv" or (format is None and suffix == "tsv")):
            raise RunError(
                "--columns: numbers must be of both texts, in tsv, but are not. Name the columns, or add --format tsv."
            )
        header = counted_columns
    rows = read_rows(place, text_column=names["first"], option="--columns first=NAME", format=format, header=header)
    if rows.header is not None:
        for side in SIDES:
            present = [name for name in names[side] if name in rows.header]
            if len(present) != 1:
                rows.close()
                raise _no_column(place, side, names[side], present, rows.header)
    return rows, names


def _sides_unless_named(names: Mapping[str, tuple[str, ...]], first: Sequence[str]) -> Sequence[str] | None:
    """The columns of lines without a header; None where the first line has names of both sides, and so is one."""
    return None if all(set(first) & set(known) for known in names.values()) else SIDES


def _no_column(place: str, side: str, names: Sequence[str], present: Sequence[str], header: Sequence[str]) -> DataError:
    has = f"there are {' and '.join(present)}" if present else f"its columns are {', '.join(header)[:200]}"
    where = "standard input" if place == "-" else place
    return DataError(
        f"{where}: one column must hold the {side} texts ({', '.join(names)}), but {has}. "
        f"Say which it is with --columns {side}=NAME."
    )


def _name(names: Sequence[str], present: Collection[str]) -> str:
    return next((name for name in names if name in present), names[0])


def _with_both(rows: Iterator[Row], names: Mapping[str, tuple[str, ...]]) -> Iterator[Row]:
    """The same rows, with an error where one of the texts is missing or blank."""
    for row in rows:
        yield row if row.error else replace(row, error=_fault(row, names))


def _fault(row: Row, names: Mapping[str, tuple[str, ...]]) -> str | None:
    for side in SIDES:
        name = _name(names[side], row.columns)
        text = row.columns.get(name)
        if not isinstance(text, str):
            what = f"is {text!r}"[:60] if name in row.columns else "is missing"
            return (
                f"{row.place}: {name!r} must be a string, but {what}. Fix it, or say with --columns where the text is."
            )
        if not text.strip():
            return f"{row.place}: {name!r} must hold a character that is no blank, but is {text[:20]!r}. Leave the pair out."
    return None


def _length(row: Row) -> int:
    return sum(len(value) for value in row.columns.values() if isinstance(value, str))


def _add(total: dict[str, tuple[int, int]], part: Mapping[str, tuple[int, int]]) -> None:
    """Add what `Matcher.cut_counts` says of further pairs."""
    for said, (longer, number) in part.items():
        before = total.get(said, (0, 0))
        total[said] = before[0] + longer, before[1] + number


def _scored(
    model: Matcher, rows: Sequence[Row], names: Mapping[str, tuple[str, ...]], cut: dict[str, tuple[int, int]]
) -> list[Found | str]:
    """What the model says of each row, or why it can say nothing; what it does not read whole is added to `cut`."""
    good = [row for row in rows if row.error is None]
    if good:
        _add(cut, model.cut_counts([Pair(*_texts(row, names)) for row in good]))
    said = iter(_found(model, good, names))
    return [row.error or next(said) for row in rows]


def _texts(row: Row, names: Mapping[str, tuple[str, ...]]) -> tuple[str, str]:
    first, second = (str(row.columns[_name(names[side], row.columns)]) for side in SIDES)
    return first, second


def _found(model: Matcher, rows: Sequence[Row], names: Mapping[str, tuple[str, ...]]) -> list[Found | str]:
    if not rows:
        return []
    try:
        scores = model.scores([_texts(row, names) for row in rows])
    except DataError as error:  # a text of which the tokenizer leaves nothing: which one, halves tell
        if len(rows) == 1:
            return [f"{rows[0].place}: {str(error).removeprefix('text: ')}"]
        half = len(rows) // 2
        return _found(model, rows[:half], names) + _found(model, rows[half:], names)
    probabilities = [None] * len(scores) if model.calibration is None else model.calibrated(scores).tolist()
    return [
        Found(score, probability, None if model.threshold is None else score >= model.threshold)
        for score, probability in zip(scores.tolist(), probabilities, strict=True)
    ]
