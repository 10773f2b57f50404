"""Span JSON lines: {"text": ..., "entities": [{"start": 0, "end": 4, "label": "company", "text": "浙商银行"}], "id": ...}.

Positions count code points, the end excluded; "text" in an entity is optional and checked. An entity may also be a triple
[start, end, label], and the list may stand under "spans" or "label" (as doccano writes it). A line without any of the three
counts as unlabelled; a text without entities has an empty list. Nested entities are read and counted; two that cross, and
one that stands twice, are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hanzoo.data.document import Document, Span
from hanzoo.data.files import AtomicFile
from hanzoo.data.readers import ReadingReport, identifier, parse_json, read_lines, shorten
from hanzoo.data.schemes import LABEL_RULE, is_label
from hanzoo.errors import DataError

_KEYS = ("entities", "spans", "label")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def read(path: Path, report: ReadingReport) -> Iterator[Document]:
    """Yield the documents of a file in order.

    Raises:
        DataError: a line is not JSON of this form, a span is empty, outside its text, given twice, or crosses another.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        record = parse_json(line, where)
        keys = [key for key in _KEYS if key in record]
        if len(keys) > 1:
            raise DataError(f"{where}: entities must stand under one key, but stand under {', '.join(keys)}. Keep one.")
        given = record[keys[0]] if keys else []
        if not isinstance(given, list):
            raise DataError(f'{where}: "{keys[0]}" must be a list, but is {shorten(given)}. Mend the line.')
        spans = tuple(sorted(_span(entity, record["text"], where) for entity in given))
        _refuse_crossing(spans, where)
        document = Document(record["text"], spans, where, identifier(record, where))
        yield report.add(document, labelled=bool(keys))


def _span(entity: Any, text: str, where: str) -> Span:
    mention = None
    if isinstance(entity, dict):
        start, end, label = entity.get("start"), entity.get("end"), entity.get("label")
        mention = entity.get("text")
    elif isinstance(entity, list) and len(entity) == 3:
        start, end, label = entity
    else:
        raise DataError(
            f'{where}: an entity must be {{"start", "end", "label"}} or [start, end, label], but is {shorten(entity)}. '
            "Mend the line."
        )
    if type(start) is not int or type(end) is not int:
        raise DataError(f"{where}: start and end must be integers, but are {start!r} and {end!r}. Mend the line.")
    if not is_label(label):
        raise DataError(f"{where}: a label must be {LABEL_RULE}, but is {shorten(label)}. Mend the line.")
    if not 0 <= start < end <= len(text):
        raise DataError(
            f"{where}: 0 <= start < end <= {len(text)} must hold, but the {label!r} is {start} to {end}. "
            "Positions count characters from 0, the end excluded. Mend the line."
        )
    if mention is not None and mention != text[start:end]:
        raise DataError(
            f"{where}: the {label!r} at {start} to {end} must be {text[start:end]!r}, but is said to be {shorten(mention)}. "
            "Positions count characters from 0, the end excluded. Mend the line."
        )
    return Span(start, end, label)


def _refuse_crossing(spans: tuple[Span, ...], where: str) -> None:
    for index, span in enumerate(spans):
        for other in spans[index + 1 :]:
            if other.start >= span.end:
                break
            if other == span:
                raise DataError(f"{where}: an entity must stand once, but {tuple(span)} stands twice. Remove one.")
            if other.start > span.start and other.end > span.end:
                raise DataError(
                    f"{where}: entities must not cross, but {tuple(span)} and {tuple(other)} do (one may lie inside the "
                    "other). Mend the line."
                )


def write(path: Path | str, documents: Iterable[Document]) -> None:
    """Write documents so that `read` gives them back; gzipped if the name ends in .gz.

    The file is UTF-8; lone surrogates, which UTF-8 cannot hold, are written as JSON escapes. It appears whole or not at all.

    Raises:
        DataError: a text holds a high and a low surrogate side by side: JSON would read them as one character, and every
            position after it would shift.
        StorageError: the file cannot be written.
    """
    with AtomicFile(path) as file:
        for document in documents:
            file.write(_line(document))


def _line(document: Document) -> bytes:
    text = document.text
    if _SURROGATE_PAIR.search(text):
        raise DataError(
            f"{document.source or 'document'}: a text must not hold a high and a low surrogate side by side, "
            f"but is {shorten(text)}. Join them into the character that they stand for."
        )
    record: dict[str, Any] = {} if document.id is None else {"id": document.id}
    record["text"] = text
    record["entities"] = [
        {"start": start, "end": end, "label": label, "text": text[start:end]} for start, end, label in document.spans
    ]
    shown = json.dumps(record, ensure_ascii=False)
    return (_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", shown) + "\n").encode("utf-8")
