"""Searching a corpus: what an index is, whatever it compares by, and two of them in stages.

    index = model.index(corpus)                 # once
    index.search(["花呗怎么还款"], k=10)          # many times: for each query its hits, the best first
    index.save("laws.index"); model.open_index("laws.index")

Every answer is exact unless the index says otherwise, and ties stand in the order of the corpus. A text that does not match at all
(for BM25: that shares no word with the query) is no hit, so that there may be fewer hits than were asked for; nothing is filled up.

Source: for two stages Nogueira and Cho 2019 (re-ranking BM25); for the mix of two rankings Lee 1997 (min-max normalisation).
Cost: queries are answered a few at a time: the memory that is needed does not grow with their number, but by 4 bytes a text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hanzoo.data.document import Passage, is_blank
from hanzoo.data.files import storage_errors, sync, write_file
from hanzoo.errors import DataError, RunError

INDEX_FORMAT = 1
META_FILE, IDS_FILE = "index.json", "ids.json"
QUERIES_AT_ONCE = 64  # at most
SCORES_AT_ONCE = 2**24  # of a few queries with all texts: 64 MiB of float32

TextId = int | str
Corpus = Sequence[str] | Sequence[Passage] | Mapping[str, str]


class Hit(NamedTuple):
    """A text that was found.

    Attributes:
        id: the passage's id, the key of the text in a mapping, or its place in a list.
        score: the higher the better; of one query they can be compared.
    """

    id: TextId
    score: float


class Ranking(NamedTuple):
    """What was found for a query.

    Attributes:
        places: (found,) int64 in the corpus, the best first.
        scores: (found,) float32.
    """

    places: NDArray[np.int64]
    scores: NDArray[np.float32]

    def first(self, k: int) -> Ranking:
        return Ranking(self.places[:k], self.scores[:k])


def read_corpus(corpus: Corpus) -> tuple[list[TextId], list[str]]:
    """The ids and the texts of a corpus.

    Raises:
        TypeError: it is no list or mapping of texts.
        DataError: it is empty, an id stands twice, or a text is blank.
    """
    if isinstance(corpus, str):
        raise TypeError("corpus: must be a list of texts, but is one string. Write [text].")
    ids: list[TextId] = []
    texts: list[str] = []
    if isinstance(corpus, Mapping):
        ids, texts = list(corpus), list(corpus.values())
    else:
        for number, item in enumerate(corpus):
            passage = item if isinstance(item, Passage) else None
            ids.append(number if passage is None else passage.id)
            texts.append(item if passage is None else passage.full_text)  # type: ignore[arg-type]  # checked below
    if not texts:
        raise DataError("corpus: must hold a text, but is empty. There is nothing to search in.")
    seen: set[TextId] = set()
    for id, text in zip(ids, texts, strict=True):
        if not isinstance(text, str):
            raise TypeError(f"corpus: must hold texts, but text {id!r} is {type(text).__name__}.")
        if id in seen:
            raise DataError(f"corpus: an id must be unique, but {id!r} stands twice. Rename or remove one.")
        seen.add(id)
        if is_blank(text):
            raise DataError(
                f"corpus: a text must hold a character that is no blank, but text {id!r} is {text[:20]!r}. Leave it out."
            )
    return ids, texts


def read_queries(queries: Iterable[str], before: int = 0) -> list[str]:
    """Queries as a list, which can be read again.

    Args:
        queries: texts; none may be blank.
        before: how many others went before them, for the number that an error names.

    Raises:
        TypeError: queries are one string, or hold something else.
        DataError: a query is blank.
    """
    if isinstance(queries, str):
        raise TypeError("search: queries must be a list of strings, but are one string. Write search([query]).")
    queries = list(queries)
    for number, query in enumerate(queries, before):
        if not isinstance(query, str):
            raise TypeError(f"search: queries must be strings, but query {number} is {type(query).__name__}.")
        if is_blank(query):
            raise DataError(
                f"query: must hold a character that is no blank, but query {number} is {query[:20]!r}. Leave it out."
            )
    return queries


def best_places(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The places of the k highest scores, the highest first, ties in order; what is -inf is none of them.

    Args:
        scores: (texts,) float.
        k: at least 1.

    Returns:
        (at most k,) int64.

    Raises:
        RunError: a score is no number.
    """
    if np.isnan(scores).any():
        raise RunError(
            "search: scores must be numbers, but some are not (NaN): the index or the model is damaged. Build the index again."
        )
    if k < len(scores):
        bound = np.partition(scores, len(scores) - k)[len(scores) - k]
        above = np.flatnonzero(scores > bound)
        equal = np.flatnonzero(scores == bound)[: k - len(above)]
        chosen = np.union1d(above, equal)
    else:
        chosen = np.arange(len(scores))
    chosen = chosen[scores[chosen] > -np.inf]
    return np.asarray(chosen[np.argsort(-scores[chosen], kind="stable")], dtype=np.int64)


class Index(ABC):
    """A corpus that is searched.

    Attributes:
        ids: of its texts, in order.
        notes: what a person should be told of them.
    """

    ids: Sequence[TextId]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def rankings(self, queries: Sequence[str], k: int) -> Iterator[Ranking]:
        """For each query the k texts that match best, fewer where fewer match."""

    @abstractmethod
    def scores_of(self, queries: Sequence[str], places: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """The scores of each query with some texts of its own, (texts,) each: what re-ranking asks for."""

    @abstractmethod
    def write(self, folder: Path) -> dict[str, Any]:
        """Write files into a folder; returns what `index.json` must say of them."""

    def stream(self, queries: Iterable[str], k: int = 10) -> Iterator[list[Hit]]:
        """`search` for any number of queries, in order, in constant memory.

        Raises:
            TypeError: queries are one string, or hold something else.
            DataError: a query is blank.
            ValueError: k is below 1.
        """
        if k < 1:
            raise ValueError(f"search: k must be at least 1, but is {k}.")
        if isinstance(queries, str):  # whose characters would be queries
            read_queries(queries)
        waiting, before = iter(queries), 0
        while block := list(islice(waiting, QUERIES_AT_ONCE)):
            read_queries(block, before)
            before += len(block)
            for ranking in self.rankings(block, k):
                pairs = zip(ranking.places.tolist(), ranking.scores.tolist(), strict=True)
                yield [Hit(self.ids[place], score) for place, score in pairs]

    def search(self, queries: Iterable[str], k: int = 10) -> list[list[Hit]]:
        """For each query the k texts of the corpus that match best, the best first.

        Args:
            queries: texts; none may be blank.
            k: at least 1; there are fewer hits where fewer texts match, or there are fewer.

        Raises:
            TypeError: queries are one string, or hold something else.
            DataError: a query is blank.
            ValueError: k is below 1.
        """
        return list(self.stream(read_queries(queries), k))

    def save(self, folder: str | Path) -> None:
        """Write all that searching needs into a new folder, which appears whole or not at all.

        Raises:
            RunError: there is something already.
            StorageError: no room, no permission.
        """
        with new_folder(Path(folder)) as beside:
            write_index(beside, self.ids, self.write(beside))


class ScoringIndex(Index):
    """An index that scores each text of the corpus."""

    @abstractmethod
    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """(queries, texts), -inf = no match."""

    def rankings(self, queries: Sequence[str], k: int) -> Iterator[Ranking]:
        few = max(1, SCORES_AT_ONCE // len(self))
        for start in range(0, len(queries), few):
            for row in self.scores(queries[start : start + few]):
                places = best_places(row, k)
                yield Ranking(places, row[places])


@dataclass(frozen=True)
class PartIndex(Index):
    """An index of some texts of a corpus, which scores them by their places in the whole.

    Attributes:
        ids: of the whole corpus.
        places: (texts of the part,) int64, rising: where they stand in the whole.
        index: of them alone.
    """

    ids: Sequence[TextId]
    places: NDArray[np.int64]
    index: Index

    def rankings(self, queries: Sequence[str], k: int) -> Iterator[Ranking]:
        for ranking in self.index.rankings(queries, k):
            yield Ranking(self.places[ranking.places], ranking.scores)

    def scores_of(self, queries: Sequence[str], places: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        rows = [np.searchsorted(self.places, row) for row in places]
        for row, wanted in zip(rows, places, strict=True):
            if not np.array_equal(self.places.take(row, mode="clip"), wanted):
                raise ValueError("search: texts must be of the part of the corpus that was read, but are not.")
        return self.index.scores_of(queries, rows)

    def write(self, folder: Path) -> dict[str, Any]:
        raise RunError("search: an index of a part must be saved as what it is made of. Save that one.")


@dataclass(frozen=True)
class Staged(Index):
    """The candidates of one index, ranked by another.

    Attributes:
        first: finds the candidates.
        second: scores them; an index of the same corpus.
        candidates: of a query, that are looked at.
        weight: of the second's score, the rest is of the first's, both normalised over a query's candidates to [0, 1]. 1 = the
            second's score alone, as it is.
    """

    first: Index
    second: Index
    candidates: int = 100
    weight: float = 1.0

    def __post_init__(self) -> None:
        if list(self.first.ids) != list(self.second.ids):
            raise ValueError("search: both stages must index the same corpus, but do not. Build both of one corpus.")
        if self.candidates < 1 or not 0 <= self.weight <= 1:
            raise ValueError(
                f"search: candidates must be at least 1 and weight in [0, 1], but are {self.candidates} and {self.weight}."
            )

    @classmethod
    def for_queries(
        cls,
        queries: Sequence[str],
        first: Index,
        read: Callable[[Sequence[str]], Index],
        corpus: Corpus,
        candidates: int = 100,
        weight: float = 1.0,
    ) -> Self:
        """Two stages for some queries alone: of the corpus only their candidates are read into the second.

        Args:
            queries: that it will be asked; none may be blank.
            first: an index of the corpus.
            read: makes the second of texts.
            corpus: texts, passages, or a mapping from ids to texts.
            candidates, weight: see the class.

        Cost: the first stage is asked twice, here and when these queries are searched.
        """
        queries = read_queries(queries)
        ids, texts = read_corpus(corpus)
        whole = cls(first, PartIndex(ids, np.arange(len(ids)), first), candidates, weight)  # which checks what is given
        found = [ranking.places for ranking in first.rankings(queries, candidates)]
        places = np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)
        if not len(places):
            return whole
        second = PartIndex(ids, places, read([texts[place] for place in places]))
        return replace(whole, second=second)

    @property
    def ids(self) -> Sequence[TextId]:  # type: ignore[override]  # as both have them
        return self.first.ids

    def rankings(self, queries: Sequence[str], k: int) -> Iterator[Ranking]:
        found = list(self.first.rankings(queries, self.candidates))
        again = self.second.scores_of(queries, [ranking.places for ranking in found])
        for ranking, scores in zip(found, again, strict=True):
            mixed = mix(scores, ranking.scores, self.weight)
            # candidates in the order of the corpus, for ties
            order = np.argsort(ranking.places)
            best = order[best_places(mixed[order], k)]
            yield Ranking(ranking.places[best], mixed[best])

    def scores_of(self, queries: Sequence[str], places: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        return self.second.scores_of(queries, places)

    def write(self, folder: Path) -> dict[str, Any]:
        raise RunError("search: an index of two stages must be saved as the two that it is made of. Save each.")


def mix(second: NDArray[np.float32], first: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
    """weight x second + (1 - weight) x first, each brought to [0, 1] over the candidates of a query; see `Staged`.

    Args:
        second, first: (candidates,) float32.
        weight: in [0, 1]; with 1 the second is returned as it is.
    """
    if weight == 1:
        return second
    return np.asarray(weight * normalised(second) + (1 - weight) * normalised(first), dtype=np.float32)


def normalised(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores less their lowest, divided by their range: in [0, 1]; all 0 where they are equal."""
    if not len(scores):
        return scores
    low, high = scores.min(), scores.max()
    return np.asarray((scores - low) / (high - low) if high > low else np.zeros_like(scores), dtype=np.float32)


# Folders.


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder that becomes `folder` when the block ends, and is removed where it raises.

    Raises:
        RunError: there is something at `folder` already.
        StorageError: no room, no permission.
    """
    cure = "Make room, or name another place."
    with storage_errors(folder, cure):
        if folder.exists():
            raise RunError(
                f"{folder}: an index must be written to a new folder, but it is there. Name another, or remove it."
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with storage_errors(folder, cure):
            yield beside
            for path in beside.rglob("*"):
                sync(path)
            sync(beside)
            beside.chmod(0o755)  # mkdtemp's is for the owner alone
            beside.rename(folder)
            sync(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_index(folder: Path, ids: Sequence[TextId], facts: Mapping[str, Any]) -> None:
    """Write what every index has beside its own files."""
    write_file(folder / IDS_FILE, json.dumps(list(ids), ensure_ascii=False) + "\n")
    content = {"format": INDEX_FORMAT, "texts": len(ids), **facts}
    write_file(folder / META_FILE, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def index_kind(folder: Path) -> str | None:
    """What a saved index is of; None where it does not say (`read_index` says what is wrong with it)."""
    try:
        kind = json.loads((folder / META_FILE).read_text(encoding="utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(kind)


def read_index(folder: Path, kind: str, model: str | None = None) -> tuple[list[TextId], dict[str, Any]]:
    """The ids and the facts of a saved index.

    Args:
        folder: of it.
        kind: that it must be of.
        model: the fingerprint of the model that it must have been made with.

    Raises:
        RunError: a file is missing or damaged, or it is another kind, of another model, or of a newer format.
    """
    try:
        facts = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        ids = json.loads((folder / IDS_FILE).read_text(encoding="utf-8"))
        found, count, made_with = facts["kind"], facts["texts"], facts.get("model")
        version = facts["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder}: must be a saved index with {META_FILE} and {IDS_FILE}, but cannot be read ({error}). Build it again."
        ) from error
    if version != INDEX_FORMAT:
        raise RunError(
            f"{folder / META_FILE}: format must be {INDEX_FORMAT}, but is {version!r}. Install the newer hanzoo."
        )
    if found != kind:
        raise RunError(
            f"{folder}: must be an index of {kind}, but is one of {found}. Open it with the model that made it."
        )
    if model is not None and made_with != model:
        raise RunError(
            f"{folder}: must be an index made by this model, but another made it, or this one with other weights. Build it again."
        )
    if not isinstance(ids, list) or len(ids) != count:
        raise RunError(f"{folder / IDS_FILE}: must hold {count} ids, but does not. Build the index again.")
    return ids, facts


def open_array(path: Path, shape: tuple[int | None, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """A saved array, mapped into memory and not read. Raises RunError where it is missing, damaged, or of another shape."""
    try:
        # copy on write: torch wants an array that may be written
        found = np.lib.format.open_memmap(path, mode="c")
    except Exception as error:  # whatever a damaged header makes numpy's parser of Python raise
        raise RunError(f"{path}: must be an array, but cannot be read ({error}). Build the index again.") from error
    fits = len(found.shape) == len(shape) and all(n in (None, m) for n, m in zip(shape, found.shape, strict=True))
    if found.dtype != dtype or not fits:
        raise RunError(
            f"{path}: must be {np.dtype(dtype)} of shape {shape}, but is {found.dtype} of {found.shape}. Build the index again."
        )
    return np.asarray(found) if found.size == 0 else found


def fingerprint(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """A hash of weights and of settings, in whatever order they come."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
