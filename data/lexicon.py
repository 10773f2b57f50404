"""Words known beforehand, found in a text all at once: every match, with exact positions, as arrays.

Source: Aho and Corasick 1975, as pyahocorasick has it. A match is every (start, end) with text[start:end] in the lexicon, in code
points, overlapping ones included, of `min_length` characters or more (2 as in Lattice LSTM and FLAT; 1 adds single characters, as
SoftLexicon needs them).

Text and words are compared in one form: half-width, lower case, one character for one (`vocabulary.folded`); a character whose
other form has two characters stays as it is. Positions are therefore those of the text that was given. `fold=False` compares
as written.

A word has an id: its place in the order in which the words came. Words added later have ids behind all others, and the id of a
removed word is never given again, so rows of a table that stand for words stay theirs. A repeated word keeps its first id and
written form; what an earlier source says of it (count, kind) holds, unless it says nothing and a later one does.

How it stays fast. A node of pyahocorasick's tree looks for a character among its children one by one, in the order in which they
came; so common characters come first (a scan then takes about two fifths less time). Words and text are reversed: matches
then leave the automaton sorted, if read from the end. Cost: 400,000 words take about a second to build, once; sentences are
then matched at one to two million characters a second (`benchmarks/lattice.py`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Self

import ahocorasick
import numpy as np
from numpy.typing import NDArray

from hanzoo.data.document import Document
from hanzoo.data.files import expanded, write_file
from hanzoo.data.readers import read_lines
from hanzoo.data.vectors import Vectors, load_vectors
from hanzoo.data.vocabulary import folded
from hanzoo.errors import DataError, RunError, nearest

_FORMAT = 1

# No word holds a surrogate, so no match crosses _BREAK, and no word ends in _GUARD. Text that holds _GUARD is read as if it
# held _BREAK there.
_BREAK, _GUARD = "\ud800", "\udfff"
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHORT = 64  # characters up to which `str.translate` is faster than numpy
_MANY = 1_000  # words from which on the order of characters matters

# The characters that Chinese news and messages hold most often, commonest first.
_COMMON = (
    ",，的。一了是我不/在人、有国大中你个和这会来.要地发哈为年好上到:：心小时生家多以1们天新[]就@出学;；对!！日能0自下作”“行动成可经他美得爱都过子"
    "开业说后也用分最工于看力2#全微实加还现进么部起去本方前理机博想9?？活情主民与同长关面高转月里重场事之公8定很市明没道等点而持法真着今意次手展水政如"
    "5合产当从种感表度体只3化队文员己者那比世址给电女然回快所支更无特利将报啊品两平入已第正名知内问头做信位间建济金其制些吧总6安代果三样期老科气流界社"
    "外保元区此4海万通北解提—强友西系记因题话物》《什车太被又相赛十但各二才泪喜放运资再论受教风花术设让乐她7望务立球使应少由性走南任接京并先组东吃门把目"
    "向儿身常斯增打量原每领结候基几别书笑视技华企失张程交-观思干收路决色欢参难近司见认亲战达觉神及导委至求片际党取级节统变管精改军图客包义红深亚山议联办"
    "处清计完农识口越研()（）广拉影白团选调非何etinaorshldcumgpbykv"
)


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """The words found in one text, sorted by (start, end).

    Attributes:
        starts: (matches,) int64, index of the first character (code point, 0-based).
        ends: (matches,) int64, index after the last character.
        words: (matches,) int64, ids in the lexicon.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    words: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class WordList:
    """The words of one or several sources, each once, in their order.

    Attributes:
        words: as written.
        counts: how often each occurs, as the source says; None where it says nothing.
        kinds: what the source says each is (person, place, nr); None where it says nothing.
        name: the source's name, without its folder.
        sha256: hexadecimal digest of the file as it is stored; of several sources, one digest behind the other.
        notes: what a run should say of this source, a sentence each.
    """

    words: tuple[str, ...]
    counts: tuple[int | None, ...]
    kinds: tuple[str | None, ...]
    name: str
    sha256: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.words)


# ---- the lexicon


class Lexicon:
    """Words with stable ids, and where they stand in a text. Not for several threads while it is being changed.

    Args:
        words: in the order of their ids; repeated ones count once. Those outside the lengths are left out.
        counts: for each of `words`, how often it occurs; None: unknown.
        kinds: for each of `words`, what it is; None: unknown.
        min_length: characters that a word has at least; 1 takes single characters too.
        max_length: characters that a word has at most; None: any number.
        fold: whether words and text are compared in half-width lower case.

    Raises:
        DataError: a word is empty, or it or its kind holds a tab, a line feed or a surrogate; a count is negative.
    """

    def __init__(
        self,
        words: Iterable[str] = (),
        *,
        counts: Sequence[int | None] | None = None,
        kinds: Sequence[str | None] | None = None,
        min_length: int = 2,
        max_length: int | None = None,
        fold: bool = True,
    ) -> None:
        if min_length < 1:
            raise ValueError(f"min_length: must be at least 1, but is {min_length}.")
        if max_length is not None and max_length < min_length:
            raise ValueError(f"max_length: must be at least min_length ({min_length}), but is {max_length}.")
        self.min_length = min_length
        self.max_length = max_length
        self.fold = fold
        self._words: list[str] = []
        self._counts: list[int | None] = []
        self._kinds: list[str | None] = []
        self._ids: dict[str, int] = {}  # the form compared -> id, of words not removed; in the order of ids
        self._num_new = 0  # words that the large automaton does not hold, without the removed ones
        self._new: _Automaton | None = None  # of these; None: to be built at the next match
        self._take(words, counts, kinds)
        self._freeze()

    @classmethod
    def of(cls, *lists: WordList, min_length: int = 2, max_length: int | None = None, fold: bool = True) -> Self:
        """Build a lexicon of one or several word lists; for a word in several, see the rule above."""
        merged = merge(*lists)
        return cls(
            merged.words,
            counts=merged.counts,
            kinds=merged.kinds,
            min_length=min_length,
            max_length=max_length,
            fold=fold,
        )

    def select(self, ids: Iterable[int]) -> Lexicon:
        """Another lexicon of some of these words, whose ids there are in the order given."""
        ids = list(ids)
        return Lexicon(
            [self._words[id] for id in ids],
            counts=[self._counts[id] for id in ids],
            kinds=[self._kinds[id] for id in ids],
            min_length=self.min_length,
            max_length=self.max_length,
            fold=self.fold,
        )

    # ---- words and ids

    def __len__(self) -> int:
        """Number of words, without the removed ones."""
        return len(self._ids)

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and self.form(word) in self._ids

    def __iter__(self) -> Iterator[str]:
        """The words as written, in the order of their ids, without the removed ones."""
        return iter([self._words[id] for id in self._ids.values()])

    @property
    def num_ids(self) -> int:
        """Number of ids given so far, to removed words too: the rows of a table with one row a word."""
        return len(self._words)

    def ids(self) -> NDArray[np.int64]:
        """(len,) int64: the ids of the words, in the order in which they are iterated."""
        return np.fromiter(self._ids.values(), np.int64, len(self._ids))

    def word(self, id: int) -> str:
        """The word of an id as written, also of a removed one. Raises IndexError where no such id was given."""
        return self._words[self._known(id)]

    def count(self, id: int) -> int | None:
        """How often the word occurs, as its source says; None: unknown. Raises IndexError."""
        return self._counts[self._known(id)]

    def kind(self, id: int) -> str | None:
        """What the word is, as its source says; None: unknown. Raises IndexError."""
        return self._kinds[self._known(id)]

    def id_of(self, word: str) -> int:
        """The id of a word, in whatever width or case it is given (with `fold`). Raises KeyError where it is not there."""
        return self._ids[self.form(word)]

    def _known(self, id: int) -> int:
        if not 0 <= id < len(self._words):
            raise IndexError(f"lexicon: an id must lie within 0 and {len(self._words) - 1}, but is {id}.")
        return id

    # ---- matching

    def matches(self, text: str) -> Matches:
        """Find all words in one text, overlapping ones included.

        Args:
            text: any string; an empty one has no matches.
        """
        if self._changed:
            return Matches(*self._find(text))
        return Matches(*self._frozen.find(self._reversed(text)))

    def match(self, texts: Sequence[str]) -> list[Matches]:
        """Find all words in each of several texts at once; equals `matches` of one after the other."""
        if not texts:
            return []
        begins = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts)), out=begins[1:])
        starts, ends, words = self._find(_BREAK.join(texts))
        cuts = np.searchsorted(starts, begins).tolist()
        offsets = np.repeat(begins[:-1], np.diff(cuts))
        starts, ends = starts - offsets, ends - offsets
        return [Matches(starts[first:last], ends[first:last], words[first:last]) for first, last in pairwise(cuts)]

    def _find(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Starts, ends, words of all matches in one text, sorted by (start, end)."""
        turned = self._reversed(text)
        starts, ends, words = self._frozen.find(turned)
        if not self._changed:
            return starts, ends, words
        if self._hidden:
            keep = ~np.isin(words, np.fromiter(self._hidden, np.int64))
            starts, ends, words = starts[keep], ends[keep], words[keep]
        if self._num_new:
            if self._new is None:
                self._new = _Automaton((form, id) for form, id in self._ids.items() if id >= self._num_frozen)
            found = zip((starts, ends, words), self._new.find(turned), strict=True)
            starts, ends, words = (np.concatenate(both) for both in found)
            order = np.lexsort((ends, starts))
            starts, ends, words = starts[order], ends[order], words[order]
        return starts, ends, words

    def _reversed(self, text: str) -> str:
        """The text from its end to its beginning, in the form compared, without `_GUARD`."""
        if not self.fold:
            return text[::-1].replace(_GUARD, _BREAK)
        if len(text) < _SHORT:
            return text.translate(_short_table())[::-1]
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        return _table().take(codes[::-1]).tobytes().decode("utf-32-le", "surrogatepass")

    def form(self, word: str) -> str:
        """The form in which a word is compared."""
        return folded(word) if self.fold else word

    # ---- changing

    def add(
        self,
        words: str | Iterable[str],
        *,
        counts: Sequence[int | None] | None = None,
        kinds: Sequence[str | None] | None = None,
    ) -> int:
        """Add words; the next match finds them. A word that is there already is no error: what it lacks (count, kind) is filled in.

        Args:
            words: words, or a single one.
            counts, kinds: one for each of `words`.

        Returns:
            How many were new.

        Raises:
            DataError: a word is shorter or longer than this lexicon takes, or is no word (see the class). Nothing is added.
        """
        words = [words] if isinstance(words, str) else list(words)
        for word in words:
            if word and not self._fits(word):
                most = "" if self.max_length is None else f" and at most {self.max_length}"
                raise DataError(
                    f"lexicon: a word must have at least {self.min_length} characters{most}, but {word!r} has {len(word)}. "
                    "Leave it out, or build the lexicon with other lengths."
                )
        return self._take(words, counts, kinds)

    def load(self, name_or_path: str | Path) -> int:
        """Add the words of a list (see `read_words`); those outside the lengths are left out.

        Returns:
            How many were new.

        Raises:
            DataError: the file is missing or wrong. Nothing is added.
        """
        found = read_words(name_or_path)
        return self._take(found.words, found.counts, found.kinds)

    def remove(self, words: str | Iterable[str]) -> None:
        """Remove words; the next match no longer finds them. Their ids are not given again.

        Raises:
            DataError: a word is not in the lexicon. Nothing is removed.
        """
        forms = {self.form(word): word for word in ([words] if isinstance(words, str) else words)}
        for form, word in forms.items():
            if form not in self._ids:
                near = [
                    other for other in self._ids if abs(len(other) - len(form)) < 3 and not set(form).isdisjoint(other)
                ]
                raise DataError(
                    f"lexicon: a word to remove must be in the lexicon, but {word!r} is not.{nearest(form, near)} "
                    "Nothing was removed."
                )
        for form in forms:
            id = self._ids.pop(form)
            if id < self._num_frozen:
                self._hidden.add(id)
            else:
                self._num_new -= 1
                self._new = None
        if forms:
            self._changed = True

    def _fits(self, word: str) -> bool:
        return self.min_length <= len(word) and (self.max_length is None or len(word) <= self.max_length)

    def _take(
        self, words: Iterable[str], counts: Sequence[int | None] | None, kinds: Sequence[str | None] | None
    ) -> int:
        """Add what fits and is not there; returns how many. All are checked before the first is added."""
        words = list(words)
        counts = [None] * len(words) if counts is None else counts
        kinds = [None] * len(words) if kinds is None else kinds
        if not len(words) == len(counts) == len(kinds):
            raise ValueError(
                f"counts and kinds: must have one entry a word ({len(words)}), but have {len(counts)} and {len(kinds)}."
            )
        _check(words, "a word")
        _check([kind for kind in set(kinds) if kind is not None], "a kind")
        for word, count in zip(words, counts, strict=True):
            if count is not None and count < 0:
                raise DataError(f"lexicon: a count must be at least 0, but that of {word!r} is {count}. Correct it.")
        before = len(self._words)
        for word, form, count, kind in zip(words, self._forms(words), counts, kinds, strict=True):
            if not self._fits(word):
                continue
            id = self._ids.setdefault(form, len(self._words))
            if id == len(self._words):
                self._words.append(word)
                self._counts.append(count)
                self._kinds.append(kind)
                continue
            if self._counts[id] is None:
                self._counts[id] = count
            if self._kinds[id] is None:
                self._kinds[id] = kind
        new = len(self._words) - before
        if new:
            self._num_new += new
            self._new = None
            self._changed = True
        return new

    def _forms(self, words: Sequence[str]) -> list[str]:
        """The form compared of many words: all in one go, since a line feed stays one."""
        if not self.fold or not words:
            return list(words)
        codes = np.frombuffer("\n".join(words).encode("utf-32-le"), "<u4")
        return _table().take(codes).tobytes().decode("utf-32-le").split("\n")

    def _freeze(self) -> None:
        """Put all words that are there into the large automaton; what changes from now on is kept beside it."""
        self._frozen = _Automaton(self._ids.items())
        self._num_frozen = len(self._words)
        self._hidden: set[int] = set()  # ids removed since, which the large automaton still finds
        self._num_new = 0
        self._new = None
        self._changed = False

    def __getstate__(self) -> dict[str, Any]:
        """Copies are made without the automata, which would be pickled."""
        return {name: value for name, value in vars(self).items() if not isinstance(value, _Automaton)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._freeze()

    # ---- the checkpoint

    def save(self, path: Path) -> None:
        """Write all ids as UTF-8 text: a header (JSON), then the word of each id, one a line, removed ones too.

        A line holds the word and, behind tabs, its count and kind, where they are known. What `open` reads has the same ids, and
        the same ids are free.

        Raises:
            StorageError: the file cannot be written.
        """
        lines = []
        for word, count, kind in zip(self._words, self._counts, self._kinds, strict=True):
            if count is None and kind is None:
                lines.append(word)
            else:
                end = "" if kind is None else "\t" + kind
                lines.append(f"{word}\t{'' if count is None else count}{end}")
        body = "".join(line + "\n" for line in lines)
        alive = set(self._ids.values())
        header: dict[str, Any] = {
            "hanzoo": "lexicon",
            "format": _FORMAT,
            "ids": len(lines),
            "min_length": self.min_length,
            "max_length": self.max_length,
            "fold": self.fold,
            "removed": [id for id in range(len(lines)) if id not in alive],
        }
        header["crc32"] = _checksum(header, body.encode("utf-8"))
        write_file(path, json.dumps(header) + "\n" + body)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            RunError: the file is missing, cut short, damaged, or of a newer format.
        """
        cure = "Copy the run directory again."
        try:
            first, _, content = path.read_bytes().partition(b"\n")
            header = json.loads(first.decode("utf-8"))
        except OSError as error:
            raise RunError(
                f"{path}: the lexicon must be a readable file, but {error.strerror or error}. {cure}"
            ) from None
        except (ValueError, RecursionError):
            raise RunError(f"{path}:1: the lexicon must begin with a header in JSON, but does not. {cure}") from None
        version = header.get("format") if isinstance(header, dict) and header.get("hanzoo") == "lexicon" else None
        if version != _FORMAT:
            raise RunError(
                f"{path}:1: the lexicon's format must be {_FORMAT}, but is {version!r}. Update hanzoo, or "
                "copy the run directory again."
            )
        told = header.pop("crc32", None)
        if _checksum(header, content) != told:
            raise RunError(f"{path}: the lexicon must be as it was saved, but is damaged or cut short. {cure}")
        made = cls(min_length=header["min_length"], max_length=header["max_length"], fold=header["fold"])
        for line in content.decode("utf-8").split("\n")[:-1]:
            word, *more = line.split("\t")
            made._words.append(word)
            made._counts.append(int(more[0]) if more and more[0] else None)
            made._kinds.append(more[1] if len(more) > 1 else None)
        removed = set(header["removed"])
        for id, form in enumerate(made._forms(made._words)):
            if id not in removed:
                made._ids.setdefault(form, id)
        made._freeze()
        return made


class _Automaton:
    """The words of one set in reversed form, with their ids."""

    def __init__(self, words: Iterable[tuple[str, int]]) -> None:
        words = list(words)
        longest = max((len(word) for word, _ in words), default=0)
        shift = longest.bit_length()
        self.shift = np.array(shift)  # arrays: numpy takes them in half the time of an int, which counts for a sentence
        self.mask = np.array((1 << shift) - 1)
        self.iter: Callable[[str], Iterator[tuple[int, int]]] = _finds_nothing
        if words:
            automaton = ahocorasick.Automaton()
            if len(words) >= _MANY:
                for character in dict.fromkeys((*map(folded, _COMMON), *_COMMON)):
                    automaton.add_word(character + _GUARD, 0)
            for word, id in words:
                automaton.add_word(word[::-1], id << shift | len(word))
            automaton.make_automaton()
            self.iter = automaton.iter

    def find(self, turned: str) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Starts, ends and ids of all matches, sorted by (start, end), from the text in reversed form.

        pyahocorasick yields (position of a match's last character, what was stored) by rising position, the longest first. Read
        from the end, that is: by rising start, the shortest first.
        """
        found = np.fromiter(chain.from_iterable(self.iter(turned)), np.int64)
        values = found[::-2]
        starts = (len(turned) - 1) - found[-2::-2]
        return starts, starts + (values & self.mask), values >> self.shift


def _checksum(header: Mapping[str, Any], content: bytes) -> str:
    """Of the whole saved file but for the checksum itself."""
    return f"{zlib.crc32(content, zlib.crc32(json.dumps(header).encode())):08x}"


def _finds_nothing(text: str) -> Iterator[tuple[int, int]]:
    return iter(())


@cache
def _table() -> NDArray[np.uint32]:
    """(1114112,) uint32: the form compared of each code point; `_GUARD` becomes `_BREAK`."""
    table = np.arange(sys.maxunicode + 1, dtype="<u4")
    for code in range(0x1FFFF):  # no character above has two cases (tested)
        character = chr(code)
        other = folded(character)
        if other != character:
            table[code] = ord(other)
    table[ord(_GUARD)] = ord(_BREAK)
    return table


@cache
def _short_table() -> str:
    """The same for `str.translate`, which leaves what lies behind the last changed character as it is."""
    table = _table()
    last = int(np.flatnonzero(table != np.arange(len(table)))[-1])
    return table[: last + 1].tobytes().decode("utf-32-le", "surrogatepass")


def _check(words: Sequence[str], name: str) -> None:
    """Refuse what a line of text cannot hold. The text of all is looked at first, which is fast."""
    whole = "".join(words)
    if all(words) and not ("\t" in whole or "\n" in whole or _SURROGATE.search(whole)):
        return
    for word in words:
        if not word or "\t" in word or "\n" in word or _SURROGATE.search(word):
            raise DataError(
                f"lexicon: {name} must be text of at least one character, without tabs, line feeds and surrogates, "
                f"but is {word!r}. Leave it out."
            )


# ---- sources


def read_words(name_or_path: str | Path, *, kind: str | None = None) -> WordList:
    """Read the words of a source: a list, a word2vec file, or the dictionary of jieba.

    A list is UTF-8 text, plain or .gz, a word a line. With tabs, a line holds the word and, in either order, its count (a whole
    number) and its kind (anything else). Without a tab it has jieba's form: word, then, behind blanks, a count in digits and a
    kind in lower-case letters, each or both absent. Blank lines are skipped.
    A word2vec file is known by `.vec` in its name, or by its header; its words have neither count nor kind.

    Args:
        name_or_path: "jieba" for the dictionary that comes with jieba; else a path, or the name of a file in $HANZOO_LEXICONS or
            $HANZOO_VECTORS. Where it is absent, the name with .gz, .txt, .txt.gz behind it is looked for.
        kind: what the words are of which the list itself says nothing; None: the list's name, without its endings. Words of
            a word2vec file have None.

    Raises:
        DataError: the file is missing, empty, cut short, not UTF-8; a line holds something else. The message has file and line.
    """
    path = _find(name_or_path)
    if ".vec" in path.suffixes or _is_word2vec(path):
        return words_of(load_vectors(path), kind=kind)

    default = path.name.partition(".")[0] if kind is None else kind
    rows: dict[str, tuple[int | None, str | None]] = {}
    repeated = 0
    for number, line in read_lines(path):
        if not line.strip(" \t"):
            continue
        word, count, said = _parse(line, f"{path}:{number}")
        if word in rows:
            repeated += 1
            old_count, old_said = rows[word]
            count, said = (count if old_count is None else old_count), (said if old_said is None else old_said)
        rows[word] = count, said
    if not rows:
        raise DataError(f"{path}: a list must hold at least one word, but holds only blank lines. Check the path.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    counts = tuple(count for count, _ in rows.values())
    kinds = tuple(default if said is None else said for _, said in rows.values())
    said_twice = (f"{repeated:,} lines repeat a word: the first count and kind of each word hold",) if repeated else ()
    return WordList(tuple(rows), counts, kinds, path.name, digest, said_twice)


def words_of(vectors: Vectors, *, kind: str | None = None) -> WordList:
    """The words of a word2vec file; one with a tab, which no lexicon can hold, is left out, and said."""
    words = tuple(word for word in vectors.words if word and "\t" not in word and "\n" not in word)
    notes = list(vectors.notes)
    if len(words) < len(vectors):
        notes.append(f"{len(vectors) - len(words):,} words left out, since they hold a tab")
    return WordList(words, (None,) * len(words), (kind,) * len(words), vectors.name, vectors.sha256, tuple(notes))


def merge(*lists: WordList) -> WordList:
    """Put several lists into one, in their order.

    A word in several lists has the place and, where it has one, the count and the kind of the first; what the first does not
    say, the next says.
    """
    rows: dict[str, tuple[int | None, str | None]] = {}
    for some in lists:
        for word, count, kind in zip(some.words, some.counts, some.kinds, strict=True):
            old = rows.get(word)
            if old is not None:
                count, kind = (count if old[0] is None else old[0]), (kind if old[1] is None else old[1])
            rows[word] = count, kind
    return WordList(
        tuple(rows),
        tuple(count for count, _ in rows.values()),
        tuple(kind for _, kind in rows.values()),
        " + ".join(some.name for some in lists),
        " ".join(some.sha256 for some in lists),
        tuple(f"{some.name}: {note}" for some in lists for note in some.notes),
    )


_JIEBA_LINE = re.compile(r"(.+?)(?:[ ]+([0-9]+))?(?:[ ]+([a-z]+))?[ ]*")
_NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?")


def _parse(line: str, where: str) -> tuple[str, int | None, str | None]:
    """Word, count and kind of one line."""
    if "\t" not in line:
        parts = _JIEBA_LINE.fullmatch(line.lstrip(" "))
        assert parts is not None  # a line that is not blank has a first character
        return parts[1], int(parts[2]) if parts[2] else None, parts[3]
    word, *more = (field.strip(" ") for field in line.split("\t"))
    count: int | None = None
    kind: str | None = None
    if not word:
        raise DataError(f"{where}: a line must begin with a word, but begins with a tab: {line[:60]!r}. Mend the line.")
    for field in more:
        if field.isascii() and field.isdigit() and count is None:
            count = int(field)
        elif field and kind is None and not _NUMBER.fullmatch(field):
            kind = field
        elif field:
            raise DataError(
                f"{where}: a line must hold a word, and may hold a count (a whole number, 0 or more) and a kind, "
                f"but holds {line[:60]!r}. Mend the line, or give a list with a word a line."
            )
    return word, count, kind


def _find(name_or_path: str | Path) -> Path:
    if str(name_or_path) == "jieba":
        found = importlib.util.find_spec("jieba")  # not imported: that takes a second and writes a cache
        if found is not None and found.origin:
            return Path(found.origin).with_name("dict.txt")
        raise DataError("jieba: the dictionary of jieba must be installed, but is not. Install it: pip install jieba.")
    folders = {
        "HANZOO_LEXICONS": os.environ.get("HANZOO_LEXICONS"),
        "HANZOO_VECTORS": os.environ.get("HANZOO_VECTORS"),
    }
    places = [expanded(name_or_path), *(expanded(folder) / name_or_path for folder in folders.values() if folder)]
    for place in places:
        for ending in ("", ".gz", ".txt", ".txt.gz"):
            path = place.with_name(place.name + ending) if place.name else place
            if path.is_file():
                return path
    looked = ", ".join(map(str, dict.fromkeys(places)))
    unset = "".join(f"; {name} is not set" for name, folder in folders.items() if not folder)
    raise DataError(
        f"{name_or_path}: a lexicon must be a file (a list of words or a word2vec file, plain or .gz), but there is none "
        f"(looked for: {looked}{unset}). Set HANZOO_LEXICONS to the folder that holds it, or give its path."
    )


def _is_word2vec(path: Path) -> bool:
    """Whether the file begins with a header (count, dimension) and a row that fits it."""
    lines = (line.split() for _, line in read_lines(path))
    header, row = next(lines, []), next(lines, [])
    if not (len(header) == 2 and all(field.isascii() and field.isdigit() for field in header) and int(header[1]) > 1):
        return False
    return len(row) > int(header[1]) and all(_NUMBER.fullmatch(field) for field in row[1:])


# ---- coverage


@dataclass(frozen=True, slots=True)
class Coverage:
    """How well a lexicon knows the entities of a data set. A match counts wherever it lies; shares of nothing are 0.

    Attributes:
        num_entities: gold entities, and of each label.
        num_known: gold entities that are words of the lexicon, and of each label.
        num_bounded: gold entities at whose start some match begins or ends, and at whose end too.
        num_matches: words found in the texts.
        num_right: matches that are gold entities.
        num_crossing: matches that cross a boundary of an entity: they lie partly inside, partly outside, neither holding the other.
        num_characters: characters of the texts.
    """

    num_entities: Mapping[str, int]
    num_known: Mapping[str, int]
    num_bounded: int
    num_matches: int
    num_right: int
    num_crossing: int
    num_characters: int

    @property
    def known(self) -> float:
        """Share of the gold entities that are words of the lexicon."""
        return _share(sum(self.num_known.values()), sum(self.num_entities.values()))

    @property
    def known_by_label(self) -> dict[str, float]:
        return {label: _share(self.num_known.get(label, 0), total) for label, total in self.num_entities.items()}

    @property
    def bounded(self) -> float:
        """Share of the gold entities both of whose boundaries are boundaries of matches."""
        return _share(self.num_bounded, sum(self.num_entities.values()))

    @property
    def precision(self) -> float:
        """Share of the matches that are gold entities."""
        return _share(self.num_right, self.num_matches)

    @property
    def crossing(self) -> float:
        """Share of the matches that cross a boundary of an entity."""
        return _share(self.num_crossing, self.num_matches)

    @property
    def words_per_character(self) -> float:
        return _share(self.num_matches, self.num_characters)

    def __str__(self) -> str:
        total, known = sum(self.num_entities.values()), sum(self.num_known.values())
        return "\n".join(
            [
                f"entities that are words of the lexicon: {self.known:.1%} ({known:,} of {total:,})",
                *(
                    f"  {label}: {share:.1%} ({self.num_known.get(label, 0):,} of {self.num_entities[label]:,})"
                    for label, share in sorted(self.known_by_label.items())
                ),
                f"entities with words at both boundaries: {self.bounded:.1%} ({self.num_bounded:,} of {total:,})",
                f"matches that are entities: {self.precision:.1%} ({self.num_right:,} of {self.num_matches:,})",
                f"matches that cross an entity's boundary: {self.crossing:.1%} ({self.num_crossing:,} of {self.num_matches:,})",
                f"words per character: {self.words_per_character:.2f} ({self.num_characters:,} characters)",
            ]
        )


def coverage(lexicon: Lexicon, documents: Iterable[Document]) -> Coverage:
    """Hold a lexicon against gold entities.

    Whether an entity is known is asked of the matches, so an entity shorter than `lexicon.min_length` is not. An entity whose
    span has several labels counts for each; a match is right once.

    Args:
        lexicon: the words.
        documents: texts with gold spans; read once, a text at a time.
    """
    entities: Counter[str] = Counter()
    known: Counter[str] = Counter()
    bounded = num_matches = right = crossing = characters = 0
    for document in documents:
        matches = lexicon.matches(document.text)
        found = set(zip(matches.starts.tolist(), matches.ends.tolist(), strict=True))
        borders = set(chain.from_iterable(found))
        gold = {(start, end) for start, end, _ in document.spans}
        characters += len(document.text)
        num_matches += len(matches)
        right += len(found & gold)
        for start, end, label in document.spans:
            entities[label] += 1
            known[label] += (start, end) in found
            bounded += start in borders and end in borders
        spans = np.array(sorted(gold), np.int64).reshape(-1, 2)
        starts, ends = matches.starts[:, None], matches.ends[:, None]
        before = (starts < spans[:, 0]) & (spans[:, 0] < ends) & (ends < spans[:, 1])
        behind = (spans[:, 0] < starts) & (starts < spans[:, 1]) & (spans[:, 1] < ends)
        crossing += int((before | behind).any(axis=1).sum())
    return Coverage(dict(entities), dict(known), bounded, num_matches, right, crossing, characters)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
