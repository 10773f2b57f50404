"""Retrieval sets as BEIR has them: a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.

corpus.jsonl holds {"_id", "title", "text"} (title or text may be absent or empty), queries.jsonl {"_id", "text"}; a file of
qrels has the header query-id, corpus-id, score between tabs, and says in each line how relevant a passage is to a query: a whole
number, 0 = judged and not relevant. Ids are strings. Each file may be gzipped (.gz).

Source: Thakur et al. 2021 (BEIR), and the loader of its release for the form of the files.
Differs: a repeated id, an id in qrels that is nowhere else, and an empty text are refused; there they are kept or skipped without
a word.
Cost: the whole corpus is held in memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hanzoo.data.catalogue import find_file, places_of, plain_sha256
from hanzoo.data.document import Passage, Query, is_blank
from hanzoo.data.readers import parse_object, read_lines, shorten
from hanzoo.errors import DataError, nearest

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels"
_HEADER = ("query-id", "corpus-id", "score")
_SCORE_DIGITS = 9
_NOT_IN_ID = re.compile("[\t\n\r\ud800-\udfff]")  # no line of qrels or of a ranking can hold them

Qrels = Mapping[str, Mapping[str, int]]  # id of a query to id of a passage to how relevant it is


@dataclass(frozen=True)
class RetrievalData:
    """A corpus, queries, and which passages answer them.

    Attributes:
        name: what a figure is filed under.
        corpus: the passages, in the order of the file.
        queries: all queries, in the order of the file; id to query.
        qrels: split to judgements, of those queries that are judged in it.
        hashes: file name to the sha256 of its content (of the plain text, where it lies gzipped).
        notes: all a person should be told, one sentence each.
        official: whether all counts are those of a known data set.
        licence, source, cite: facts of a named data set, else "".
    """

    name: str
    corpus: tuple[Passage, ...]
    queries: Mapping[str, Query]
    qrels: Mapping[str, Qrels]
    hashes: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    official: bool = False
    licence: str = ""
    source: str = ""
    cite: str = ""

    def judged(self, split: str) -> Qrels:
        """The judgements of a split.

        Raises:
            DataError: there is no such split.
        """
        if split not in self.qrels:
            raise _no_split(self.name, split, self.qrels)
        return self.qrels[split]

    def queries_of(self, split: str) -> tuple[Query, ...]:
        """The queries that are judged in a split, in the order of its judgements.

        Raises:
            DataError: there is no such split.
        """
        return tuple(self.queries[query] for query in self.judged(split))


def read_beir(folder: Path | str, splits: Sequence[str] | None = None) -> RetrievalData:
    """Read a BEIR folder.

    Args:
        folder: holds corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.
        splits: which files of qrels are read, which may be none; None reads all there are, and wants one at least.

    Raises:
        DataError: a file is missing, a line is not of its form, an id stands twice, a text is empty, qrels name an id that the
            corpus or the queries lack, or judge a pair twice and differently. The message has file and line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            f"{folder}: must be a folder with {CORPUS}, {QUERIES} and {QRELS}/, but is none. Check the path."
        )
    hashes: dict[str, str] = {}
    notes: list[str] = []
    corpus: dict[str, Passage] = {}
    for where, name, record in _entries(_found(folder, CORPUS, hashes)):
        given = {"text": "", "title": ""} | {key: value for key, value in record.items() if value is not None}
        passage = Passage(name, _string(given, "text", where), _string(given, "title", where), where)
        if is_blank(passage.full_text):
            raise DataError(f"{where}: a passage must have a text or a title, but {name!r} has none. Remove the line.")
        _refuse_repeat(name, corpus, where)
        corpus[name] = passage
    queries: dict[str, Query] = {}
    for where, name, record in _entries(_found(folder, QUERIES, hashes)):
        text = _string(record, "text", where)
        if is_blank(text):
            raise DataError(
                f"{where}: the text of a query must hold a character that is no blank, but {name!r} is {text!r}. "
                "Mend or remove the line."
            )
        _refuse_repeat(name, queries, where)
        queries[name] = Query(name, text, where)
    qrels = {}
    known = _splits(folder / QRELS)
    for split in known if splits is None else splits:
        if split not in known:
            raise _no_split(str(folder), split, known)
        qrels[split] = _read_qrels(_found(folder, f"{QRELS}/{split}.tsv", hashes), corpus, queries, split, notes)
    if not qrels and splits is None:
        raise DataError(
            f"{folder / QRELS}: must hold SPLIT.tsv, but holds none. Add {QRELS}/test.tsv; to train, {QRELS}/train.tsv."
        )
    unjudged = len(queries.keys() - set().union(*qrels.values()))
    notes.insert(0, f"{len(corpus):,} passages, {len(queries):,} queries")
    if qrels and unjudged:
        notes.append(f"{unjudged:,} queries are judged in no split that was read: they are not used")
    return RetrievalData(
        folder.name,
        tuple(corpus.values()),
        MappingProxyType(queries),
        MappingProxyType(qrels),
        MappingProxyType(hashes),
        tuple(notes),
    )


def is_read(path: Path, folder: Path) -> bool:
    """Whether a BEIR folder is read from a file, or would be once it is there (beside NAME.gz, NAME is what is read)."""
    places = [*places_of(folder, CORPUS), *places_of(folder, QUERIES)]
    for split in _splits(folder / QRELS):
        places += places_of(folder / QRELS, f"{split}.tsv")
    return os.path.realpath(path) in map(os.path.realpath, places)


def _found(folder: Path, name: str, hashes: dict[str, str]) -> Path:
    inner = Path(name)
    found = find_file(folder / inner.parent, inner.name)
    if found is None:
        raise DataError(
            f"{folder / name}: the file must exist, also as {name}.gz, but does not. "
            f"A BEIR folder holds {CORPUS}, {QUERIES} and {QRELS}/SPLIT.tsv. Check the path."
        )
    hashes[name] = plain_sha256(found)
    return found


def _splits(folder: Path) -> list[str]:
    """The splits that are there; a name that begins with a dot is no split (macOS writes ._test.tsv beside test.tsv)."""
    names = [path.name.removesuffix(".gz") for path in folder.glob("[!.]*.tsv*")] if folder.is_dir() else []
    return sorted({name.removesuffix(".tsv").removesuffix(".rebuilt") for name in names if name.endswith(".tsv")})


def _no_split(where: str, split: str, known: Collection[str]) -> DataError:
    return DataError(
        f"{where}: the split must be one of {', '.join(known) or f'those of {QRELS}/, which has none'}, but is {split!r}."
        f"{nearest(split, known)} Name one of them, or add {QRELS}/{split}.tsv."
    )


def _entries(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}:{number}"
            record = parse_object(line, where)
            name = _string(record, "_id", where)
            if not name.strip() or _NOT_IN_ID.search(name):
                raise DataError(
                    f'{where}: "_id" must be a string that is not empty and has no tab, end of line or lone surrogate, '
                    f"but is {name!r}. Mend it."
                )
            yield where, name, record


def _string(record: Mapping[str, Any], key: str, where: str) -> str:
    given = record.get(key)
    if not isinstance(given, str):
        raise DataError(f'{where}: "{key}" must be a string, but is {shorten(given)}. Mend the line.')
    return given


def _refuse_repeat(name: str, known: Mapping[str, Passage | Query], where: str) -> None:
    if name in known:
        raise DataError(
            f'{where}: "_id" must be unique in its file, but {name!r} stands at {known[name].source} too. Rename or remove one.'
        )


def _read_qrels(
    path: Path, corpus: Mapping[str, Passage], queries: Mapping[str, Query], split: str, notes: list[str]
) -> Qrels:
    judged: dict[str, dict[str, int]] = {}
    header_read = False
    repeats = relevant = 0
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        row = line.split("\t")
        if not header_read:
            header_read = True
            if tuple(field.strip() for field in row) != _HEADER:
                raise DataError(
                    f"{where}: the first line must be the header {', '.join(_HEADER)} with tabs between, "
                    f"but is {shorten(line)}. Add it."
                )
            continue
        if len(row) != 3:
            raise DataError(
                f"{where}: a line must hold 3 fields ({', '.join(_HEADER)}) with tabs between, "
                f"but holds {len(row)}: {shorten(line)}. Mend the line."
            )
        query, passage, written = row
        for name, known, file in ((query, queries, QUERIES), (passage, corpus, CORPUS)):
            if name not in known:
                raise DataError(
                    f"{where}: an id must be one of {file}, but {name!r} is not. Remove the line, or add what it names."
                )
        if not written.strip().isdecimal() or len(written.strip()) > _SCORE_DIGITS:
            raise DataError(
                f"{where}: the score must be a whole number from 0 (not relevant), of {_SCORE_DIGITS} digits at most, but is "
                f"{shorten(written)}. Mend the line."
            )
        score = int(written)
        before = judged.setdefault(query, {}).get(passage)
        if before is not None and before != score:
            raise DataError(
                f"{where}: a passage must be judged once, but {passage!r} is {before} and {score} for {query!r}. "
                "Keep one of the lines."
            )
        repeats += before is not None
        relevant += score > 0 and before is None
        judged[query][passage] = score
    if not judged:
        raise DataError(f"{path}: must hold at least one judgement, but holds none. Check the file.")
    pairs = sum(map(len, judged.values()))
    notes.append(f"{split}: {len(judged):,} queries, {pairs:,} judged pairs, {relevant:,} of them relevant")
    if repeats:
        notes.append(f"{split}: {repeats:,} judgements stand twice (counted once)")
    without = sum(not any(scores.values()) for scores in judged.values())
    if without:
        notes.append(f"{split}: {without:,} queries have no relevant passage: they count in no figure")
    return MappingProxyType(judged)
