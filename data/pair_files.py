"""Files of pairs and triples: TSV, CSV, JSON lines, and the official forms of the Chinese matching sets.

What is what in a line is told by the header of the file (by its keys in JSON lines), or by `columns`, which names them or, in
a file without header, counts them from 1. Nothing is guessed beyond the well-known names in `PAIR_NAMES` and `TRIPLE_NAMES`.

- TSV (.tsv, .txt): fields between tabs, no quoting: a `"` is a character like any other, as the official files want it.
- CSV (.csv): fields between commas; in quotes a field may hold commas, quotes (doubled) and ends of lines.
- JSON lines (.jsonl, .json): one object a line.

All may be gzipped (.gz). Texts keep every character, blanks at their ends and byte order marks inside included. A text that
holds nothing but blanks, control and format characters is refused.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hanzoo.data.document import Document, Pair, Triple, is_blank
from hanzoo.data.readers import identifier, parse_object, read_lines, read_whole_lines, shorten
from hanzoo.data.text_streams import allow_long_fields
from hanzoo.errors import DataError, RecipeError, nearest

PAIR_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "first": ("first", "sentence1", "text1", "text_a", "question1", "s1", "query"),
        "second": ("second", "sentence2", "text2", "text_b", "question2", "s2", "document"),
        "label": ("label", "score", "similarity"),
        "id": ("id",),
    }
)
TRIPLE_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "anchor": ("anchor", "query"),
        "positive": ("positive", "title"),
        "negative": ("negative", "neg_title", "negatives"),
        "id": ("id",),
    }
)
TEXT_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType({"text": ("text", "sentence", "query"), "id": ("id",)})
_OPTIONAL = ("label", "id")
_EMPTY = "must hold a character that is no blank"


@dataclass(frozen=True, slots=True)
class Scale:
    """What the labels of pairs mean, as numbers that rise with similarity.

    Attributes:
        name: how recipes call it.
        low, high: the least and the greatest label.
        classes: where labels are classes, their names in the files, in order of rising similarity: class k is the number k.
            Empty where labels are scores.
    """

    name: str
    low: float
    high: float
    classes: tuple[str, ...] = ()

    @property
    def is_binary(self) -> bool:
        """Whether there are two classes: then accuracy, F1 and AUC mean something."""
        return len(self.classes) == 2

    @property
    def rule(self) -> str:
        """What a label must be, for an error."""
        if self.classes:
            return f"one of {', '.join(self.classes)}"
        return f"a number from {self.low:g} to {self.high:g}"

    def read(self, given: object, where: str) -> float:
        """Turn a label as a file has it, a string or a number, into its number.

        Raises:
            DataError: it is not on the scale.
        """
        if self.classes:
            if not isinstance(given, bool) and _plain_number(given) in self.classes:
                return float(self.classes.index(_plain_number(given)))
        elif isinstance(given, int | float | str) and not isinstance(given, bool):
            try:
                number = float(given)
            except (ValueError, OverflowError):
                number = math.nan
            if self.low <= number <= self.high:
                return number
        raise DataError(
            f"{where}: the label must be {self.rule} (scale {self.name}), but is {shorten(given)}. "
            f"Mend the line, or name another scale ({', '.join(SCALES)})."
        )

    def to_unit(self, label: float) -> float:
        """The label as a share of the scale, in [0, 1]."""
        return (label - self.low) / (self.high - self.low)


def _plain_number(given: object) -> str:
    """The class as it is written, 1.0 as "1": tables that once had a hole write whole numbers so."""
    written = str(given)
    return written.removesuffix(".0") if isinstance(given, int | float | str) else written


SCALES: Mapping[str, Scale] = MappingProxyType(
    {
        scale.name: scale
        for scale in (
            Scale("binary", 0, 1, ("0", "1")),
            Scale("unit", 0, 1),
            Scale("sts", 0, 5),
            Scale("nli", 0, 2, ("contradiction", "neutral", "entailment")),
        )
    }
)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the lines of a file are cut into fields.

    Attributes:
        separator: what stands between fields: a tab, "||", or "," (then quotes are read as CSV has them); "json" for JSON lines.
        columns: field ("first", "second", "label", "id"; "anchor", "positive", "negative") to the name in the header, to the
            key in JSON, or to the number of the column, from 1, where there is no header. Empty: the well-known names.
    """

    separator: str
    columns: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def has_header(self) -> bool:
        """Whether the first line names the columns: unless they are counted."""
        return not any(isinstance(column, int) for column in self.columns.values())


@dataclass
class PairReport:
    """What was met while reading one file of pairs or triples.

    Attributes:
        rows: rows of the file, those left out included.
        labels: how many pairs have each label, as a number on the scale.
        left_out: rows left out, by reason.
        unlabelled: pairs that came without a label.
        identical: pairs whose two texts are equal.
        longest: characters of the longest text.
    """

    rows: int = 0
    labels: Counter[float] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    unlabelled: int = 0
    identical: int = 0
    longest: int = 0

    def describe(self) -> list[str]:
        """Say in lines for people what was read."""
        by_label = ", ".join(f"{label:g}: {count:,}" for label, count in sorted(self.labels.items()))
        lines = [f"{self.rows:,} rows" + (f" (labels {by_label})" if by_label else "")]
        if self.unlabelled:
            lines.append(f"{self.unlabelled:,} pairs without labels")
        lines += [f"{count:,} rows left out: {reason}" for reason, count in sorted(self.left_out.items())]
        if self.identical:
            lines.append(f"{self.identical:,} pairs of two equal texts")
        return lines


def layout_of(path: Path | str, columns: Mapping[str, str | int] | None = None) -> Layout:
    """Tell the layout of a file of one's own from the ending of its name.

    Raises:
        DataError: the ending is none of .tsv, .txt, .csv, .jsonl, .json (each also with .gz).
    """
    plain = Path(path).name.removesuffix(".gz").lower()
    for endings, separator in (((".tsv", ".txt"), "\t"), ((".csv",), ","), ((".jsonl", ".json"), "json")):
        if plain.endswith(endings):
            return Layout(separator, dict(columns or {}))
    raise DataError(
        f"{path}: the name must end in .tsv, .txt, .csv, .jsonl or .json (each also with .gz), but does not. Rename the file."
    )


def read_pairs(
    path: Path | str,
    scale: Scale = SCALES["binary"],
    *,
    columns: Mapping[str, str | int] | None = None,
    layout: Layout | None = None,
    without_gold: str | None = None,
    skip_empty: bool = False,
) -> tuple[list[Pair], PairReport]:
    """Read a whole file of pairs.

    Args:
        path: a file of UTF-8 text, gzipped if its name ends in .gz.
        scale: what its labels mean.
        columns: which column, or which key, is "first", "second", "label" and "id"; see `Layout`.
        layout: how lines are cut; None tells it from the name of the file.
        without_gold: a label that says that there is none ("-" in OCNLI): such rows are left out, and counted.
        skip_empty: leave out, and count, rows with an empty text, in place of refusing them: for official files that have them.

    Returns:
        The pairs in order, and what was met. Either all of them have a label or none.

    Raises:
        DataError: the file is missing or empty, a column is missing, a line has another number of fields, a text is empty or
            none, a label is not on the scale, or some rows have a label and some have not. The message has file and line.
        RecipeError: `columns` names a field that pairs do not have.
    """
    path = Path(path)
    layout = layout or layout_of(path, columns)
    pairs: list[Pair] = []
    report = PairReport()
    labelled: bool | None = None
    for where, record in _records(path, layout, PAIR_NAMES):
        report.rows += 1
        if without_gold is not None and record.get("label") == without_gold:
            report.left_out[f"the label is {without_gold!r}"] += 1
            continue
        if skip_empty and any(isinstance(record[key], str) and is_blank(record[key]) for key in ("first", "second")):
            report.left_out["a text is empty"] += 1
            continue
        first, second = (_text(record, key, where) for key in ("first", "second"))
        has_label = record.get("label") is not None
        if labelled is not None and has_label != labelled:
            raise DataError(
                f"{where}: the row must have {'a label' if labelled else 'no label'}, as the rows before it, "
                f"but has {'one' if has_label else 'none'}. Mend the line, or split the file."
            )
        labelled = has_label
        label = None
        if has_label:
            label = scale.read(record["label"], where)
            report.labels[label] += 1
        report.unlabelled += not has_label
        report.identical += first == second
        report.longest = max(report.longest, len(first), len(second))
        pairs.append(Pair(first, second, label, where, identifier(record, where)))
    if not pairs:
        raise DataError(f"{path}: the file must hold at least one pair, but holds none. Check the path.")
    return pairs, report


def read_triples(
    path: Path | str, *, columns: Mapping[str, str | int] | None = None, layout: Layout | None = None
) -> tuple[list[Triple], PairReport]:
    """Read a whole file of triples.

    Args:
        path: a file of UTF-8 text, gzipped if its name ends in .gz.
        columns: which column, or which key, is "anchor", "positive", "negative" and "id"; see `Layout`. In JSON lines a negative
            may be a list of them.
        layout: how lines are cut; None tells it from the name of the file.

    Returns:
        The triples in order, and what was met.

    Raises:
        DataError: as `read_pairs`; also where a negative is, character by character, the positive or the anchor: no model
            can learn from that; or where a row has another number of negatives than the rows before it.
        RecipeError: `columns` names a field that triples do not have.
    """
    path = Path(path)
    layout = layout or layout_of(path, columns)
    triples: list[Triple] = []
    report = PairReport()
    for where, record in _records(path, layout, TRIPLE_NAMES):
        report.rows += 1
        anchor, positive = (_text(record, key, where) for key in ("anchor", "positive"))
        given = record["negative"]
        negatives = tuple(
            _text({"negative": each}, "negative", where) for each in (given if isinstance(given, list) else [given])
        )
        for negative in negatives:
            if negative in (anchor, positive):
                other = "positive" if negative == positive else "anchor"
                raise DataError(
                    f"{where}: the negative must be another text than the {other}, but both are {shorten(negative)}. "
                    "Mend or remove the line."
                )
        wanted = len(triples[0].negatives) if triples else max(1, len(negatives))
        if len(negatives) != wanted:
            raise DataError(
                f"{where}: a row must have {wanted} negatives{', as the rows before it' if triples else ''}, but has "
                f"{len(negatives)}. Mend the line, or split the file."
            )
        report.identical += anchor == positive
        report.longest = max(report.longest, len(anchor), len(positive), *map(len, negatives))
        triples.append(Triple(anchor, positive, negatives, where, identifier(record, where)))
    if not triples:
        raise DataError(f"{path}: the file must hold at least one triple, but holds none. Check the path.")
    return triples, report


def read_texts(path: Path | str) -> list[Document]:
    """Read a whole file of single texts.

    Args:
        path: a file of UTF-8 text, gzipped if its name ends in .gz; a .txt holds a text a line, blank lines aside, every other file
            a column, or key, of one of `TEXT_NAMES`.

    Raises:
        DataError: as `read_pairs`.
    """
    path = Path(path)
    if path.name.removesuffix(".gz").lower().endswith(".txt"):
        texts = [Document(line, (), f"{path}:{number}") for number, line in read_lines(path) if not is_blank(line)]
    else:
        found = _records(path, layout_of(path), TEXT_NAMES)
        texts = [
            Document(_text(record, "text", where), (), where, identifier(record, where)) for where, record in found
        ]
    if not texts:
        raise DataError(f"{path}: the file must hold at least one text, but holds none. Check the path.")
    return texts


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    given = record[key]
    what = "text" if key == "text" else f"{key} text"
    if not isinstance(given, str):
        raise DataError(f"{where}: the {what} must be a string, but is {shorten(given)}. Mend the line.")
    if is_blank(given):
        raise DataError(f"{where}: the {what} {_EMPTY}, but is {given!r}. Mend or remove the line.")
    return given


def _records(path: Path, layout: Layout, names: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield "file:line" and what is found under each field; an optional field that is absent has no key."""
    for column, times in Counter(layout.columns.values()).items():
        if times > 1:
            alike = " and ".join(name for name, other in layout.columns.items() if other == column)
            raise RecipeError(
                f"columns: each must be another column, but {alike} are both {column!r}. Mend one of them."
            )
    for name in layout.columns:
        if name not in names:
            raise RecipeError(f"columns: must name {', '.join(names)}, but names {name!r}.{nearest(name, names)}")
    if layout.separator == "json":
        yield from _json_records(path, layout, names)
        return
    rows = _csv_rows(path) if layout.separator == "," else _plain_rows(path, layout.separator)
    at: dict[str, int] | None = None
    width = 0
    for number, row in rows:
        where = f"{path}:{number}"
        if at is None:
            if layout.has_header:
                at, width = _columns_of(row, layout, names, where), len(row)
                continue
            at, width = _counted(layout, names), max(len(row), *(int(c) for c in layout.columns.values()))
        if len(row) != width:
            raise DataError(
                f"{where}: a line must hold {width} fields, but holds {len(row)}: "
                f"{shorten(layout.separator.join(row))}. Mend the line."
            )
        yield where, {name: row[column] for name, column in at.items()}


def _json_records(
    path: Path, layout: Layout, names: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    if not layout.has_header:
        raise RecipeError(f"columns: must be names of keys for {path.name}, but some are numbers. Name the keys.")
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        record = parse_object(line, where)
        keys = _find(list(record), layout, names, where, "a key")
        yield where, {name: record[key] for name, key in keys.items()}


def _plain_rows(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(path):
        if line.strip() or separator in line:
            yield number, line.split(separator)


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV file with the number of the first line of each."""
    allow_long_fields()
    reader = csv.reader((line for _, line in read_whole_lines(path)), strict=True)
    first = 1
    try:
        for row in reader:
            if row:
                yield first, row
            first = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}:{first}: a row must be CSV, but is not: {error}. Close or double its quotes."
        ) from error


def _columns_of(row: list[str], layout: Layout, names: Mapping[str, tuple[str, ...]], where: str) -> dict[str, int]:
    header = [name.strip() for name in row]
    repeated = next((name for name, count in Counter(header).items() if count > 1), None)
    if repeated is not None:
        raise DataError(f"{where}: the header must name each column once, but names {repeated!r} twice. Mend it.")
    return {name: header.index(column) for name, column in _find(header, layout, names, where, "a column").items()}


def _find(
    present: list[str], layout: Layout, names: Mapping[str, tuple[str, ...]], where: str, kind: str
) -> dict[str, str]:
    """Say under which of the names that are present each field stands."""
    found: dict[str, str] = {}
    for name, known in names.items():
        named = layout.columns.get(name)
        candidates = [str(named)] if named is not None else [other for other in known if other in present]
        if len(candidates) > 1:
            raise DataError(
                f"{where}: one name must stand for {name}, but {' and '.join(candidates)} do. "
                f"Rename the others{_or_train_with(names, name)}."
            )
        if candidates and candidates[0] in present:
            found[name] = candidates[0]
        elif name not in _OPTIONAL or named is not None:
            wanted = repr(candidates[0]) if candidates else f"one of {', '.join(known)}"
            cure = _or_train_with(names, name)
            counted = ", or, in a file without header, its number from 1" if cure and kind == "a column" else ""
            raise DataError(
                f"{where}: there must be {kind} for {name} ({wanted}), but there are only {shorten(', '.join(present))}. "
                f"Rename one{cure}{counted}."
            )
    return found


def _or_train_with(names: Mapping[str, tuple[str, ...]], field: str) -> str:
    """How a recipe says which column is what, for an error; "" where it cannot."""
    sections = {"first": "columns", "anchor": "triple_columns"}
    section = next((sections[name] for name in names if name in sections), None)
    return f", or train with data.{section}.{field}=NAME" if section else ""


def _counted(layout: Layout, names: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Places, from 0, of columns that are counted from 1."""
    for name in names:
        if name not in layout.columns and name not in _OPTIONAL:
            raise RecipeError(f"columns: must say where {name} is, as the others are counted, but does not. Add it.")
    at = {}
    for name, column in layout.columns.items():
        if not isinstance(column, int) or column < 1:
            raise RecipeError(
                f"columns: all must be numbers from 1, or all names, but {name} is {column!r}. Use one way for all."
            )
        at[name] = column - 1
    return at
