"""Weibo NER, second edition (`weiboNER_2nd_conll.*`): a character with its index in the segmented word, a tab, a BIO tag.

The token `科0` is 科, first in its word; `110` is the character 1 at index 10: the first character counts, the digits after it
do not. Where an emoji was destroyed, a token may hold two U+FFFD and the index: both characters are kept and carry one tag.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hanzoo.data.document import Document
from hanzoo.data.readers import ReadingReport, read_lines, shorten, tagged_document
from hanzoo.data.schemes import split_tag
from hanzoo.errors import DataError

_DESTROYED = "\ufffd\ufffd"


def read(path: Path, report: ReadingReport) -> Iterator[Document]:
    """Yield the sentences of a file in order.

    Raises:
        DataError: a line is not a character with its index, a tab, and a BIO tag.
    """
    first_line = 0
    tokens: list[str] = []
    tags: list[str] = []
    for number, line in read_lines(path):
        if line:
            if not tokens:
                first_line = number
            token, tag = _row(line, f"{path}:{number}")
            tokens.append(token)
            tags.append(tag)
        elif tokens:
            yield tagged_document(tokens, tags, "BIO", path, first_line, report)
            tokens, tags = [], []
    if tokens:
        yield tagged_document(tokens, tags, "BIO", path, first_line, report)


def _row(line: str, where: str) -> tuple[str, str]:
    fields = line.split("\t")
    if len(fields) != 2:
        raise DataError(
            f"{where}: a line must hold 2 fields (token, tag) with a tab between, but holds {len(fields)}: "
            f"{shorten(line)}. Fix the line."
        )
    token, tag = fields
    size = 2 if token.startswith(_DESTROYED) else 1
    index = token[size:]
    if not (index.isascii() and index.isdigit()):
        raise DataError(
            f"{where}: a token must be a character and its index in the word, as in '科0', but is {token!r}. "
            "If the file has no indices, name the format columns."
        )
    try:
        letter, _ = split_tag(tag)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if letter not in "BIO":
        raise DataError(f"{where}: a tag must be O, B-label or I-label, but is {tag!r}. Fix the line.")
    return token[:size], tag
