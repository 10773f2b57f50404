"""One file a format: each has `read(path, report) -> Iterator[Document]` and is found by its file name.

What they share is here: lines of plain or gzipped UTF-8 text, JSON lines, tagged tokens to a document, and the report of
what was met on the way.
"""

from __future__ import annotations

# A second copy of every class would follow: isinstance and discovery would fail without a word.
if __name__ != "hanzoo.data.readers":
    raise ImportError(
        f"'{__name__}' is this folder imported from the working directory; write 'from hanzoo.data.readers import ...'"
    )

import gzip
import importlib
import json
import pkgutil
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from hanzoo.data.document import Document, Span
from hanzoo.data.schemes import Scheme, tags_to_spans
from hanzoo.errors import DataError, nearest

FORMATS: tuple[str, ...] = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))

_PLACES_KEPT = 5  # of each kind of trouble: enough to look at, however bad the file


@dataclass
class ReadingReport:
    """What was met while reading one file.

    Attributes:
        sentences, characters: how many were read; characters are code points.
        entities: how many spans each label has.
        nested: pairs of spans in one text that overlap, one inside the other in most cases.
        mended: tags at fault in illegal sequences (see `schemes.tags_to_spans`).
        mended_places: "file:line" of the first of them.
        unlabelled: texts that came without any statement about entities (not: with none in them).
        unlabelled_place: "file:line" of the first of them.
        notes: anything else a person should be told.
    """

    sentences: int = 0
    characters: int = 0
    entities: Counter[str] = field(default_factory=Counter)
    nested: int = 0
    mended: int = 0
    mended_places: list[str] = field(default_factory=list)
    unlabelled: int = 0
    unlabelled_place: str = ""
    notes: list[str] = field(default_factory=list)

    def add(self, document: Document, labelled: bool = True) -> Document:
        """Count one document and hand it back."""
        self.sentences += 1
        self.characters += len(document.text)
        if not labelled:
            self.unlabelled_place = self.unlabelled_place or document.source
            self.unlabelled += 1
        spans = document.spans
        if spans:
            self.entities.update([span.label for span in spans])
            self.nested += _overlapping_pairs(spans)
        return document

    def mend(self, place: str) -> None:
        """Count one tag that was mended."""
        self.mended += 1
        if len(self.mended_places) < _PLACES_KEPT:
            self.mended_places.append(place)

    def describe(self) -> list[str]:
        """Say in lines for people what was read."""
        total = sum(self.entities.values())
        by_label = ", ".join(f"{label} {count:,}" for label, count in sorted(self.entities.items()))
        lines = [
            f"{self.sentences:,} sentences, {self.characters:,} characters, {total:,} entities"
            + (f" ({by_label})" if by_label else "")
        ]
        if self.unlabelled:
            lines.append(f"{self.unlabelled:,} texts without labels, first at {Path(self.unlabelled_place).name}")
        return lines + self.remarks()

    def remarks(self) -> list[str]:
        """Say only what is out of the ordinary."""
        lines = []
        if self.nested:
            lines.append(
                f"{self.nested:,} pairs of nested or overlapping entities: all count in the gold, "
                "a flat tagger learns the longer of each"
            )
        if self.mended:
            more = ", ..." if self.mended > len(self.mended_places) else ""
            lines.append(f"{self.mended:,} tags in illegal sequences mended: {', '.join(self.mended_places)}{more}")
        return lines + self.notes


def _overlapping_pairs(spans: Sequence[Span]) -> int:
    """Count pairs that share a character; `spans` are sorted."""
    pairs = 0
    for index, (_, end, _) in enumerate(spans):
        for other in range(index + 1, len(spans)):
            if spans[other].start >= end:
                break
            pairs += 1
    return pairs


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Yield what `read_whole_lines` does, "\r" and "\n" taken from the end of each line."""
    return ((number, line.rstrip("\r\n")) for number, line in read_whole_lines(path))


def read_whole_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Yield the lines of a UTF-8 text file, gzipped if its name ends in .gz, with their numbers from 1.

    Lines end at "\n" alone: U+2028, form feeds and the like stay inside. A byte order mark is taken from the beginning.

    Raises:
        DataError: the file is missing, empty, unreadable, a damaged gzip file, or not UTF-8.
    """
    number, offset = 0, 0
    raw = b""
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as stream:
            for raw in stream:
                number += 1
                line = raw.decode("utf-8")
                offset += len(raw)
                if number == 1:
                    line = line.removeprefix("\ufeff")
                yield number, line
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: the text must be UTF-8, but byte {offset + error.start} of the file "
            f"is 0x{raw[error.start]:02x}. Convert the file to UTF-8."
        ) from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file must exist, but does not. Check the path.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: must be a whole gzip file, but is not ({error}). Copy it again.") from error
    except OSError as error:
        raise DataError(f"{path}: must be a file that can be read, but: {error.strerror or error}.") from error
    if number == 0:
        raise DataError(f"{path}: the file must hold at least one line, but is empty. Check the path.")


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object (`json.loads`' object_pairs_hook). Raises ValueError where a key stands twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {repeated!r} stands twice in one object")
    return made


def parse_object(line: str, where: str) -> dict[str, Any]:
    """Parse one line as a JSON object.

    Raises:
        DataError: it is none, or a key stands twice in one object (the first would be lost without a word).
    """
    try:
        record = json.loads(line, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: a line must be one JSON object, but it is not: {error}. Mend the line.") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a line must be one JSON object, but is {shorten(line)}. Write one object a line.")
    return record


def parse_json(line: str, where: str) -> dict[str, Any]:
    """Parse one line as a JSON object with a string under "text".

    Raises:
        DataError: it is none, or a key stands twice in one object (the first would be lost without a word).
    """
    record = parse_object(line, where)
    if not isinstance(record.get("text"), str):
        raise DataError(f'{where}: "text" must be a string, but is {shorten(record.get("text"))}. Mend the line.')
    return record


def identifier(record: dict[str, Any], where: str) -> int | str | None:
    """Take the "id" of a JSON record, if it has one.

    Raises:
        DataError: it is neither an integer nor a string.
    """
    given = record.get("id")
    if given is not None and type(given) is not int and not isinstance(given, str):
        raise DataError(f'{where}: "id" must be an integer or a string, but is {shorten(given)}. Mend the line.')
    return given


def shorten(value: object, limit: int = 80) -> str:
    """Show a value in an error, cut where it is long."""
    shown = repr(value)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def tagged_document(
    tokens: list[str], tags: list[str], scheme: Scheme, path: Path, first_line: int, report: ReadingReport
) -> Document:
    """Make a document of one sentence of tokens and tags that stood on consecutive lines.

    The text is the tokens, nothing between them; spans are in characters even where tokens are longer than one.
    """
    text = "".join(tokens)
    spans: list[Span] = []
    if tags.count("O") != len(tags):
        spans, mended = tags_to_spans(tags, scheme)
        for index in mended:
            report.mend(f"{path.name}:{first_line + index}")
        if len(text) != len(tokens):
            at = list(accumulate(map(len, tokens), initial=0))
            spans = [Span(at[start], at[end], label) for start, end, label in spans]
    return report.add(Document(text, tuple(spans), f"{path}:{first_line}"))


def reader_of(format: str) -> Callable[[Path, ReadingReport], Iterator[Document]]:
    """Return the `read` function of a format.

    Raises:
        DataError: there is no such format.
    """
    if format not in FORMATS:
        raise DataError(f"format: must be one of {', '.join(FORMATS)}, but is {format!r}.{nearest(format, FORMATS)}")
    read: Callable[[Path, ReadingReport], Iterator[Document]] = importlib.import_module(f"{__name__}.{format}").read
    return read


def sniff_format(path: Path | str) -> str:
    """Tell the format from the first line that is not blank.

    A JSON object with an object under "label" is "cluener", with a list under "entities", "spans" or "label" "spans",
    with neither "cluener" (an unlabelled line). Anything else is "columns". Weibo's tokens are never guessed.

    Raises:
        DataError: there is no such line, it begins as JSON and is broken, or its labels have no known form.
    """
    path = Path(path)
    for number, line in read_lines(path):
        if not line.strip():
            continue
        if not line.startswith(("{", "[")) or re.fullmatch(
            r".[ \t]+\S+", line
        ):  # the latter: the token "{" and its tag
            return "columns"
        where = f"{path}:{number}"
        record = parse_json(line, where)
        if any(isinstance(record.get(key), list) for key in ("entities", "spans", "label")):
            return "spans"
        if isinstance(record.get("label", {}), dict) and "entities" not in record and "spans" not in record:
            return "cluener"
        raise DataError(
            f'{where}: entities must stand as a list under "entities" (or as CLUENER\'s object under "label"), '
            f"but the line holds {shorten(line)}. Mend the file, or name its format."
        )
    raise DataError(f"{path}: the file must hold at least one sentence, but holds only blank lines. Check the path.")


def read_documents(path: Path | str, format: str | None = None) -> tuple[list[Document], ReadingReport]:
    """Read a whole file.

    Args:
        path: a file of UTF-8 text, gzipped if its name ends in .gz.
        format: one of `FORMATS`; None looks at the first line.

    Raises:
        DataError: the file is missing, empty, or does not hold what its format promises; the message has file and line.
    """
    path = Path(path)
    report = ReadingReport()
    documents = list(reader_of(format or sniff_format(path))(path, report))
    if not documents:
        raise DataError(f"{path}: the file must hold at least one sentence, but holds none. Check the path.")
    return documents, report


TEXT = "text"  # one text a line, without labels: for what is read without its gold
_TAGGED_LINE = re.compile(r"\S+[ \t]+(O|[BIMES]-\S+)")


def read_texts(path: Path | str, format: str | None = None) -> list[Document]:
    """Read the texts of a file of any format, whole lines and all; labels are not kept.

    Args:
        path: a file of UTF-8 text, gzipped if its name ends in .gz.
        format: "text" (one a line; blank lines are skipped) or one of `FORMATS`. None takes .txt for text, unless its first line is
            a token and a tag, and looks at the first line of all else.

    Raises:
        DataError: the file is missing, empty, or does not hold what its format promises.
    """
    path = Path(path)
    if format not in (None, TEXT, *FORMATS):
        known = (TEXT, *FORMATS)
        raise DataError(f"format: must be one of {', '.join(known)}, but is {format!r}.{nearest(str(format), known)}")
    if format is None and path.name.removesuffix(".gz").endswith(".txt"):
        first = next((line for _, line in read_lines(path) if line.strip()), "")
        format = None if _TAGGED_LINE.fullmatch(first) else TEXT
    if format == TEXT:
        documents = [Document(line, (), f"{path}:{number}") for number, line in read_lines(path) if line.strip()]
    else:
        documents, _ = read_documents(path, format)
        documents = [Document(document.text, (), document.source) for document in documents if document.text]
    if not documents:
        raise DataError(f"{path}: the file must hold at least one text, but holds only blank lines. Check the path.")
    return documents
