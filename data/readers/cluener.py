"""CLUENER's JSON lines: {"text": ..., "label": {label: {mention: [[first, last], ...]}}, "id": ...}.

Both positions are inclusive: `text[first:last + 1] == mention`. A mention may have several places, and all are taken. A
line without "label" is a test line: its document has no spans and counts as unlabelled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hanzoo.data.document import Document, Span
from hanzoo.data.readers import ReadingReport, identifier, parse_json, read_lines, shorten
from hanzoo.data.schemes import LABEL_RULE, is_label
from hanzoo.errors import DataError


def read(path: Path, report: ReadingReport) -> Iterator[Document]:
    """Yield the documents of a file in order.

    Raises:
        DataError: a line is not JSON of this form, a position lies outside its text, or a mention is not what the text
            holds there.
    """
    repeats = 0
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        record = parse_json(line, where)
        spans = list(_spans(record, where))
        distinct = sorted(set(spans))
        repeats += len(spans) - len(distinct)
        document = Document(record["text"], tuple(distinct), where, identifier(record, where))
        yield report.add(document, labelled="label" in record)
    if repeats:
        report.notes.append(f"{repeats:,} entities stand twice in their line (counted once)")


def _spans(record: dict[str, Any], where: str) -> Iterator[Span]:
    text, labels = record["text"], record.get("label", {})
    if not isinstance(labels, dict):
        raise DataError(f'{where}: "label" must be an object, but is {shorten(labels)}. Mend the line.')
    for label, mentions in labels.items():
        if not is_label(label):
            raise DataError(f"{where}: a label must be {LABEL_RULE}, but is {shorten(label)}. Mend the line.")
        if not isinstance(mentions, dict):
            raise DataError(f"{where}: {label!r} must hold mentions, but holds {shorten(mentions)}. Mend the line.")
        for mention, places in mentions.items():
            if not isinstance(places, list) or not places:
                raise DataError(
                    f"{where}: {mention!r} must have a list of [first, last], but has {shorten(places)}. Mend the line."
                )
            for place in places:
                if not isinstance(place, list) or len(place) != 2 or any(type(at) is not int for at in place):
                    raise DataError(
                        f"{where}: the place of {mention!r} must be [first, last], but is {shorten(place)}. Mend the line."
                    )
                first, last = place
                if not 0 <= first <= last < len(text):
                    raise DataError(
                        f"{where}: the place of {mention!r} must lie in 0 to {len(text) - 1}, but is {place}. "
                        "Positions count characters from 0, the last included. Mend the line."
                    )
                if text[first : last + 1] != mention:
                    raise DataError(
                        f"{where}: the text at {place} must be {mention!r}, but is {text[first : last + 1]!r}. "
                        "The last position is included. Mend the line."
                    )
                yield Span(first, last + 1, label)
