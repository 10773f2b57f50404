"""Pretrained word vectors: word2vec text, plain or .gz, parsed once and kept as safetensors in a cache folder.

Source: the text format of word2vec (Mikolov et al. 2013): a header `count dimension`, then the rows, each a word and its
numbers. Differs: the header may be absent (GloVe); a word may hold spaces, since rows are read from the right; a few rows
with a wrong number of columns, which some well-known downloads hold, are skipped, counted and said in `Vectors.notes`.
Cost: parsing takes about 4 s per 10 million numbers on one core, loading from the cache a tenth of a second. The matrix
is held once.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hanzoo.data.files import beside, expanded, reason_of
from hanzoo.errors import DataError

BAD_ROWS_ALLOWED = 0.05  # a share of the rows; with more, the file has another format or its header another dimension
CACHE_FORMAT = "1"  # raised whenever the rules of parsing change, so that no cache keeps what older rules made
BLOCK_BYTES = 1 << 24  # of text parsed at once: large enough for numpy's parser, small beside the matrix

_HEADER = re.compile(rb"\s*(\d{1,18})[ \t]+(\d{1,18})\s*")
_BLANK = b" \t\r\n"


@dataclass(frozen=True, eq=False)
class Vectors:
    """The rows of one vector file, in the order of the file.

    Attributes:
        words: (n) words, each once.
        matrix: (n, dimension) float32, finite; row i is the vector of `words[i]`.
        sha256: hexadecimal digest of the file as it is stored (of the .gz bytes, where it is one).
        name: the file's name without its folder.
        notes: what a run should say of this file, a sentence each: rows skipped, words repeated, no cache kept.
    """

    words: tuple[str, ...]
    matrix: NDArray[np.float32]
    sha256: str
    name: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.words)

    @property
    def dimension(self) -> int:
        return int(self.matrix.shape[1])

    def scaled(self, root_mean_square: float) -> Vectors:
        """Return all rows times one factor, after which an entry has this root mean square over the whole file."""
        now = float(np.sqrt(np.mean(np.square(self.matrix, dtype=np.float64))))
        return replace(self, matrix=self.matrix * np.float32(root_mean_square / now)) if now else self

    def select(self, keep: Callable[[str], bool]) -> Vectors:
        """Return the rows whose word `keep` accepts, in the same order; a copy, so that the whole matrix can go."""
        rows = [row for row, word in enumerate(self.words) if keep(word)]
        return replace(self, words=tuple(self.words[row] for row in rows), matrix=self.matrix[rows])


def load_vectors(name_or_path: str | Path, *, cache: Path | None = None) -> Vectors:
    """Read a word2vec text file, from the cache where it was parsed before.

    Args:
        name_or_path: a path, or the name of a file in the folder $HANZOO_VECTORS; where it is absent, `NAME.gz` is read.
        cache: the folder for parsed files; None: $HANZOO_CACHE, else $XDG_CACHE_HOME/hanzoo, else ~/.cache/hanzoo.
            Parsed vectors lie in its folder vectors/, under the sha256 of the file. A damaged cache is rebuilt. One
            that cannot be written costs only the caching, which the notes say.

    Returns:
        All rows of the file.

    Raises:
        DataError: the file is missing, empty, truncated, not UTF-8; its header gives another count or dimension than
            the rows have; more than `BAD_ROWS_ALLOWED` of the rows have a wrong number of columns; a number is not finite.
    """
    path = _find(name_or_path)
    try:
        digest = _sha256(path)
        folder, reason = _cache_folder(cache)
        kept = folder / f"{digest}.safetensors" if folder else None
        vectors = _read_cache(kept, digest) if kept else None
        if vectors is not None:
            return replace(vectors, name=path.name)
        vectors = _parse(path, digest)
    except OSError as error:
        raise DataError(
            f"{path}: vectors must be a readable file, but {error.strerror or error}. Check the path."
        ) from None
    if kept:
        reason = _write_cache(kept, vectors)
    if reason:
        note = f"parsed anew in each run, since the cache cannot be written ({reason}): set HANZOO_CACHE"
        return replace(vectors, notes=(*vectors.notes, note))
    return vectors


def _find(name_or_path: str | Path) -> Path:
    folder = os.environ.get("HANZOO_VECTORS", "")
    places = [expanded(name_or_path)]
    if folder:
        places.append(expanded(folder) / name_or_path)
    for place in places:
        for path in (place, place.with_name(place.name + ".gz") if place.name else place):
            if path.is_file():
                return path
    looked = ", ".join(str(place) for place in dict.fromkeys(places))
    unset = "" if folder else "; HANZOO_VECTORS is not set"
    raise DataError(
        f"{name_or_path}: vectors must be a file in word2vec text form (plain or .gz), but there is none "
        f"(looked for: {looked}{unset}). Set HANZOO_VECTORS to the folder that holds it, or give its path."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- parsing


def _parse(path: Path, digest: str) -> Vectors:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"  # by content: downloads get unpacked, or packed, without renaming
    opener = cast("Callable[[Path, str], IO[bytes]]", gzip.open if compressed else open)
    reader = _RowReader(path)
    try:
        with opener(path, "rb") as file:
            for lines in _blocks(file, path):
                reader.read(lines)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: vectors must be a whole .gz file, but unpacking it stops ({error}). Download the file again."
        ) from None
    return reader.finish(digest)


def _blocks(file: IO[bytes], path: Path) -> Iterator[list[bytes]]:
    """Yield whole lines, a block at a time. Only LF ends a line: words may hold U+2028 or U+0085."""
    rest = b""
    while block := file.read(BLOCK_BYTES):
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        if len(rest) > BLOCK_BYTES:
            raise DataError(
                f"{path}: a row must be at most {BLOCK_BYTES:,} bytes long, but one is longer. "
                "Give vectors in word2vec text form (the binary form is not read)."
            )
        if lines:
            yield lines
    if rest:
        yield [rest]


class _RowReader:
    """Collects the rows of one file; keeps the place for errors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line = 0  # lines read so far
        self.header: tuple[int, int] | None = None  # count, dimension
        self.dimension = 0
        self.num_rows = 0  # read, skipped or repeated
        self.num_bad = 0
        self.num_repeated = 0
        self.first_bad = ""  # "line: what it holds"
        self.rows: dict[str, None] = {}
        self.matrices: list[NDArray[np.float32]] = []

    def read(self, lines: list[bytes]) -> None:
        if self.line == 0:
            lines = self._start(lines)
        words: list[bytes] = []
        numbers: list[bytes] = []
        places: list[int] = []
        for line in lines:
            self.line += 1
            line = line.rstrip(_BLANK)
            if not line:
                continue
            self.num_rows += 1
            if line.count(b" ") == self.dimension and b"\t" not in line:
                word, _, row = line.partition(b" ")
            else:
                word, row = self._split(line)
            if word and row:
                words.append(word)
                numbers.append(row)
                places.append(self.line)
            else:
                self._skip(self.line, line)
        matrix = self._numbers(words, numbers, places)
        self._keep(self._decode(words, places), matrix, places)

    def _start(self, lines: list[bytes]) -> list[bytes]:
        first = lines[0].removeprefix(b"\xef\xbb\xbf")
        header = _HEADER.fullmatch(first)
        if not header:
            self.dimension = len(re.split(rb"[ \t]+", first.strip(_BLANK))) - 1
            if self.dimension < 1:
                raise DataError(
                    f"{self.path}:1: the first line must be a header (count, dimension) or a word and its numbers, "
                    f"but is {_shown(first)}. Give vectors in word2vec text form."
                )
            return [first, *lines[1:]]
        self.header = (int(header[1]), int(header[2]))
        self.dimension = self.header[1]
        self.line = 1
        if self.dimension < 1:
            raise DataError(
                f"{self.path}:1: the header's dimension must be at least 1, but is {self.dimension}. "
                "Download the file again."
            )
        return lines[1:]

    def _split(self, line: bytes) -> tuple[bytes, bytes]:
        """Split a row from the right, so that a word may hold blanks; two empty parts where the columns do not fit."""
        fields = re.split(rb"[ \t]", line)
        if len(fields) <= self.dimension or not all(fields[-self.dimension :]):
            return b"", b""
        if len(fields) > self.dimension + 1 and _is_number(fields[-self.dimension - 1]):
            return b"", b""  # one number too many, not a word that ends in a number
        word = line[: -sum(map(len, fields[-self.dimension :])) - self.dimension]
        return word.strip(b" \t") or b" ", b" ".join(fields[-self.dimension :])

    def _numbers(self, words: list[bytes], numbers: list[bytes], places: list[int]) -> NDArray[np.float32]:
        """Parse rows of text; rows that hold something else than numbers are taken out of the three lists."""
        matrix = _parse_numbers(b" ".join(numbers), len(numbers) * self.dimension)
        if matrix is None:  # find the rows at fault, one by one
            good: list[NDArray[np.float32]] = []
            for index in range(len(numbers) - 1, -1, -1):
                row = _parse_numbers(numbers[index], self.dimension)
                if row is None:
                    self._skip(places[index], words[index] + b" " + numbers[index])
                    del words[index], numbers[index], places[index]
                else:
                    good.append(row)
            matrix = np.concatenate(good[::-1]) if good else np.zeros(0, np.float32)
        return matrix.reshape(-1, self.dimension)

    def _decode(self, words: list[bytes], places: list[int]) -> list[str]:
        try:
            return b"\n".join(words).decode("utf-8").split("\n") if words else []
        except UnicodeDecodeError:
            for word, place in zip(words, places, strict=True):
                try:
                    word.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{self.path}:{place}: a word must be UTF-8, but is {word[:40]!r} ({error.reason}). "
                        "Convert the file to word2vec text in UTF-8 (the binary form is not read)."
                    ) from None
            raise

    def _keep(self, words: list[str], matrix: NDArray[np.float32], places: list[int]) -> None:
        finite = np.isfinite(matrix).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            value = matrix[row][~np.isfinite(matrix[row])][0]
            raise DataError(
                f"{self.path}:{places[row]}: a vector must hold finite numbers, but that of {words[row]!r} holds "
                f"{value}. Remove the row or download the file again."
            )
        before = len(self.rows)
        fresh = []
        for index, word in enumerate(words):
            if word not in self.rows:
                self.rows[word] = None
                fresh.append(index)
        self.num_repeated += len(words) - (len(self.rows) - before)
        self.matrices.append(matrix if len(fresh) == len(words) else matrix[fresh])

    def _skip(self, place: int, line: bytes) -> None:
        self.num_bad += 1
        if not self.first_bad or place < int(self.first_bad.partition(":")[0]):
            self.first_bad = f"{place}: {_shown(line)}"

    def finish(self, digest: str) -> Vectors:
        path, header = self.path, self.header
        if not self.num_rows:
            raise DataError(f"{path}: vectors must hold at least one row, but the file holds none. Download it again.")
        place, _, bad = self.first_bad.partition(": ")
        if self.num_bad > BAD_ROWS_ALLOWED * self.num_rows:
            source = "as the header says" if header else "as the first line holds"
            raise DataError(
                f"{path}:{place}: a row must hold a word and {self.dimension} numbers, {source}, but is {bad} "
                f"({self.num_bad:,} of {self.num_rows:,} rows are unlike that). "
                "Correct the header or download the file again."
            )
        if header and header[0] != self.num_rows:
            raise DataError(
                f"{path}:1: the header's count must be the number of rows, but is {header[0]:,}, and "
                f"{self.num_rows:,} rows follow. The file is cut short or its header is wrong: download it again."
            )
        notes = []
        if self.num_bad:
            notes.append(
                f"{self.num_bad:,} of {self.num_rows:,} rows skipped, since they do not hold a word and "
                f"{self.dimension} numbers (the first: line {place})"
            )
        if self.num_repeated:
            notes.append(f"{self.num_repeated:,} rows repeat a word: the first row of each word holds")
        matrix = np.empty((len(self.rows), self.dimension), dtype=np.float32)
        end = len(matrix)
        while self.matrices:  # from the back, each block let go once it is copied: the matrix is never held twice
            block = self.matrices.pop()
            matrix[end - len(block) : end] = block
            end -= len(block)
        return Vectors(tuple(self.rows), matrix, digest, path.name, tuple(notes))


def _parse_numbers(text: bytes, count: int) -> NDArray[np.float32] | None:
    """Parse numbers divided by single blanks; None where the text is not exactly `count` numbers."""
    if not count:
        return np.zeros(0, dtype=np.float32)
    if text.startswith(b" ") or b"  " in text:  # an empty field, which a row with a number too many would make up for
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy stops at what is no number: a warning in numpy 2, an error later
        try:
            numbers = np.fromstring(text, dtype=np.float32, sep=" ")
        except (DeprecationWarning, ValueError):
            return None
    return numbers if numbers.size == count else None


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _shown(line: bytes) -> str:
    text = line.decode("utf-8", errors="backslashreplace")
    return repr(text if len(text) <= 60 else text[:60] + "...")


# ---- the cache: one safetensors file (matrix, words as UTF-8 bytes, one a line) with a checksum, renamed into place


def _cache_folder(cache: Path | None) -> tuple[Path | None, str]:
    """Return the folder of parsed vectors, or None and the reason why there is none."""
    if cache is None:
        own, shared = os.environ.get("HANZOO_CACHE"), os.environ.get("XDG_CACHE_HOME")
        try:
            cache = expanded(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "hanzoo"
        except RuntimeError as error:  # no home folder, as in some containers
            return None, str(error)
    return cache / "vectors", ""


def _read_cache(path: Path, digest: str) -> Vectors | None:
    """Return what the cache holds, or None where it holds nothing usable: it is then written anew."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            if about.get("format") != CACHE_FORMAT or about.get("sha256") != digest:
                return None
            matrix, text = file.get_tensor("matrix"), file.get_tensor("words")
        words = tuple(text.tobytes().decode("utf-8").split("\n"))
        if _checksum(matrix, text) != about["checksum"] or len(words) != len(matrix):
            return None
        return Vectors(words, matrix, digest, about["name"], tuple(json.loads(about["notes"])))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _write_cache(path: Path, vectors: Vectors) -> str:
    """Keep the parsed vectors; return an empty string, or the reason why that was not possible."""
    text = np.frombuffer("\n".join(vectors.words).encode("utf-8"), dtype=np.uint8)
    about = {
        "format": CACHE_FORMAT,
        "sha256": vectors.sha256,
        "name": vectors.name,
        "notes": json.dumps(vectors.notes),
        "checksum": _checksum(vectors.matrix, text),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside(path) as partial:
            save_file({"matrix": vectors.matrix, "words": text}, partial, metadata=about)
    except (OSError, SafetensorError) as error:
        return f"{path.parent}: {reason_of(error)}"
    return ""


def _checksum(matrix: NDArray[np.float32], text: NDArray[np.uint8]) -> str:
    return f"{zlib.crc32(text.data, zlib.crc32(matrix.data)):08x}"
