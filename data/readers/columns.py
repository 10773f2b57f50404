"""CoNLL-style columns: one token a line, its tag in the last field, an empty line after each sentence.

The separator is a tab if the first line has one, else blanks (U+0020). Two fields are the rule; with more, the first is
the token and the last the tag, and their number must not change within a file. The scheme is told from the tags of the
whole file, so the file is read twice and never held in memory.

Tokens may be blanks themselves and lines are therefore read from the right: " \\tO" and "  O" are the token " ". A line that
has lost its token (" O", "\\tO") is also read as a blank, and counted. Tokens may have several characters; the text is the
tokens with nothing between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hanzoo.data.document import Document
from hanzoo.data.readers import ReadingReport, read_lines, shorten, tagged_document
from hanzoo.data.schemes import Scheme, detect_scheme, split_tag
from hanzoo.errors import DataError

_DOCSTART = "-DOCSTART-"


def read(path: Path, report: ReadingReport) -> Iterator[Document]:
    """Yield the sentences of a file in order.

    Raises:
        DataError: a line has another number of fields than the first, an empty or unknown tag, or the tags mix schemes.
    """
    scheme = _scheme(path)
    starts = lost = 0
    first_line = 0
    tokens: list[str] = []
    tags: list[str] = []
    for number, token, tag in _rows(path):
        if tag:
            if not tokens:
                first_line = number
            if not token:
                token = " "
                lost += 1
            tokens.append(token)
            tags.append(tag)
            continue
        starts += token == _DOCSTART
        if tokens:
            yield tagged_document(tokens, tags, scheme, path, first_line, report)
            tokens, tags = [], []
    if tokens:
        yield tagged_document(tokens, tags, scheme, path, first_line, report)
    if starts:
        report.notes.append(f"{starts:,} {_DOCSTART} lines skipped")
    if lost:
        report.notes.append(f"{lost:,} lines without a token read as a blank")


def _scheme(path: Path) -> Scheme:
    """Read the file once for its tags, and check all of them."""
    seen: dict[str, int] = {}
    for number, _, tag in _rows(path):
        if tag and tag not in seen:
            seen[tag] = number
            try:
                split_tag(tag)
            except DataError as error:
                raise DataError(f"{path}:{number}: {error}") from None
    try:
        return detect_scheme(seen)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, token and tag; an empty line has neither, a document start has no tag."""
    separator, width = "", 0
    for number, line in read_lines(path):
        if not line:
            yield number, "", ""
            continue
        if width == 2:  # the common case, kept short: a file may have millions of lines
            token, _, tag = line.rpartition(separator)
            if token and tag and separator not in token and token != _DOCSTART:
                yield number, token, tag
                continue
        if line.startswith(_DOCSTART):
            yield number, _DOCSTART, ""
            continue
        separator = separator or ("\t" if "\t" in line else " ")
        fields = _fields(line, separator)
        where = f"{path}:{number}"
        if not fields[-1] and len(fields) > 1 and line.strip():
            raise DataError(
                f"{where}: the tag, the last field, must not be empty, but is in {shorten(line)}. Add the tag."
            )
        if len(fields) < 2 or (width and len(fields) != width):
            cure = "Fix the line." if line.strip() else "Empty the line, or give the blank its tag."
            names = "token, tag" if width <= 2 else "token, ..., tag"
            between = "a tab" if separator == "\t" else "blanks"
            raise DataError(
                f"{where}: a line must hold {width or 2} fields ({names}) with {between} between, "
                f"but holds {len(fields)}: {shorten(line)}. {cure}"
            )
        width = len(fields)
        yield number, fields[0], fields[-1]


def _fields(line: str, separator: str) -> list[str]:
    """Split a line whose first field may be the separator itself, or missing (then it is empty)."""
    if not line.strip(" \t"):
        return [line]
    if separator == "\t":
        if line.startswith("\t\t"):
            return ["\t", *line[2:].split("\t")]
        return line.split("\t")
    head = [" "] if line.startswith("  ") else [""] if line.startswith(" ") else []
    tail = [""] if line.endswith(" ") else []
    return head + [part for part in line.split(" ") if part] + tail
