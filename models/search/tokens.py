"""Exact search by MaxSim: the vectors of all tokens of a corpus on the disk, mapped into memory, and compared without padding.

Texts stand in the file by their number of tokens, so that those of one length are a block without padding: a product with the
tokens of a few queries, and for each query's token the highest of each text's. What does not count was never written.

    tokens.bin      (tokens, dimension) float16, text by text, the shortest texts first
    places.npy      (texts,) int64: which text of the corpus each is
    lengths.npy     (texts,) int64: how many tokens it has

Source: Khattab and Zaharia 2020 (ColBERT), equation 3; see `layers/max_sim.py`, whose scores these are but for float16.
Differs: no compression and no approximation (PLAID); candidates come from another index where the whole is too slow.
Cost: 2 x dimension bytes a token on the disk, read once for a few queries; a block is held as float32, whatever the corpus.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hanzoo.errors import RunError
from hanzoo.models.search.index import (
    Corpus,
    ScoringIndex,
    TextId,
    new_folder,
    open_array,
    read_corpus,
    read_index,
    write_index,
)

KIND = "tokens"
TOKENS_FILE, PLACES_FILE, LENGTHS_FILE = "tokens.bin", "places.npy", "lengths.npy"
SIMILARITIES_AT_ONCE = 2**21  # 8 MiB of float32
TOKENS_AT_ONCE = 2**14  # of 128 dimensions: 8 MiB of float32
QUERIES_AT_ONCE = 16


class Stretch(NamedTuple):
    """Texts of one length that stand one after the other in a store.

    Attributes:
        first, last: their numbers in the store, the last one exclusive.
        token: the first token.
        length: tokens of each.
    """

    first: int
    last: int
    token: int
    length: int


class TokenStore:
    """The vectors of the tokens of a corpus, read-only.

    Args:
        tokens: (tokens, dimension) float16, mapped into memory.
        lengths: (texts,) int64, never falling: the number of tokens of each text, in the order of the file; at least 1.
        places: (texts,) int64: the place in the corpus of each, in the order of the file.
    """

    def __init__(self, tokens: NDArray[np.float16], lengths: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        self.tokens = tokens
        self.lengths = lengths
        self.places = places
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.numbers = np.argsort(places)  # of the text at a place of the corpus

    @classmethod
    def open(cls, folder: Path, texts: int, dimension: int) -> Self:
        """The store in a folder. Raises RunError where it is missing or damaged."""
        lengths = open_array(folder / LENGTHS_FILE, (texts,), np.int64)
        places = open_array(folder / PLACES_FILE, (texts,), np.int64)
        whole = (
            np.array_equal(np.sort(places), np.arange(texts)) and lengths[0] > 0 and bool((np.diff(lengths) >= 0).all())
        )
        path, size = folder / TOKENS_FILE, int(lengths.sum()) * dimension * 2
        if not whole or not path.is_file() or path.stat().st_size != size:
            raise RunError(
                f"{path}: must hold the tokens of {texts} texts ({size} bytes), but does not. Build the index again."
            )
        # copy on write: torch wants an array that may be written, though nothing writes
        tokens = np.memmap(path, dtype=np.float16, mode="c", shape=(size // dimension // 2, dimension))
        return cls(tokens, np.array(lengths), np.array(places))

    @staticmethod
    def write(
        folder: Path,
        lengths: NDArray[np.int64],
        dimension: int,
        texts: Iterable[tuple[Sequence[int], NDArray[np.float16]]],
    ) -> None:
        """Write a store as its texts come, in any order.

        Args:
            folder: is there, and is not yet the index.
            lengths: (texts,) int64 in the order of the corpus: how many tokens each has.
            dimension: of a vector.
            texts: places of some texts, and their tokens one text after the other, (tokens, dimension) float16; each text once.
        """
        order = np.argsort(lengths, kind="stable")
        starts = np.empty(len(lengths) + 1, dtype=np.int64)
        starts[order] = np.concatenate([[0], np.cumsum(lengths[order])[:-1]])
        shape = (int(lengths.sum()), dimension)
        kept = np.memmap(folder / TOKENS_FILE, dtype=np.float16, mode="w+", shape=shape)
        for places, tokens in texts:
            at = 0
            for place in places:
                length = int(lengths[place])
                kept[starts[place] : starts[place] + length] = tokens[at : at + length]
                at += length
        kept.flush()
        del kept
        np.save(folder / PLACES_FILE, order.astype(np.int64), allow_pickle=False)
        np.save(folder / LENGTHS_FILE, lengths[order], allow_pickle=False)

    def stretches(self, tokens_at_once: int) -> Iterator[Stretch]:
        """All texts, those of one length together, at most so many tokens at once."""
        lengths, ends = np.unique(self.lengths, return_index=True)
        for length, first, last in zip(
            lengths.tolist(), ends.tolist(), [*ends[1:].tolist(), len(self.lengths)], strict=True
        ):
            few = max(1, tokens_at_once // length)
            for start in range(first, last, few):
                yield Stretch(start, min(start + few, last), int(self.starts[start]), length)

    def scores(self, queries: Sequence[Tensor]) -> Tensor:
        """MaxSim of queries with all texts, summed over a query's tokens.

        Args:
            queries: (query_tokens, dimension) float32 each, of any length; at least one token each.

        Returns:
            (queries, texts) float32 in the order of the corpus, on the CPU.
        """
        asked = torch.cat(list(queries))
        counts = torch.tensor([len(query) for query in queries], device=asked.device)
        own = torch.eye(len(queries), device=asked.device).repeat_interleave(
            counts, dim=1
        )  # which tokens are a query's
        found = torch.empty(len(queries), len(self.places), device=asked.device)
        few = max(1, min(TOKENS_AT_ONCE, SIMILARITIES_AT_ONCE // len(asked)))
        for first, last, token, length in self.stretches(few):
            block = torch.from_numpy(self.tokens[token : token + (last - first) * length]).to(asked.device).float()
            best = (asked @ block.T).view(len(asked), last - first, length).amax(-1)
            found[:, first:last] = own @ best
        return found.cpu()[:, torch.from_numpy(self.numbers)]

    def scores_of(self, query: Tensor, places: NDArray[np.int64]) -> Tensor:
        """MaxSim of a query with some texts.

        Args:
            query: (query_tokens, dimension) float32.
            places: (texts,) int64 in the corpus.

        Returns:
            (texts,) float32, on the CPU.
        """
        found = torch.empty(len(places))
        order = np.argsort(self.numbers[places])  # as they stand in the file
        for start in range(0, len(order), 256):
            part = order[start : start + 256]
            numbers = self.numbers[places[part]]
            lengths = self.lengths[numbers]
            starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
            rows = np.repeat(self.starts[numbers] - starts, lengths) + np.arange(lengths.sum())
            block = torch.from_numpy(self.tokens[rows]).to(query.device).float()
            similarities = (query @ block.T).cpu().numpy()
            best = np.maximum.reduceat(similarities, starts, axis=1)
            found[torch.from_numpy(part)] = torch.from_numpy(best).sum(0)
        return found


class TokenModel(Protocol):
    """What such an index asks of a model.

    `mean_of_tokens`: scores are the mean over a query's tokens. `query_tokens`: each query's vectors that count,
    (tokens, dimension) float32. `document_tokens`: the numbers of tokens of texts, and the tokens as `TokenStore.write` takes them.
    """

    @property
    def token_dimension(self) -> int: ...
    @property
    def mean_of_tokens(self) -> bool: ...
    def query_tokens(self, texts: Sequence[str]) -> list[Tensor]: ...
    def document_tokens(
        self, texts: Sequence[str]
    ) -> tuple[NDArray[np.int64], Iterator[tuple[Sequence[int], NDArray[np.float16]]]]: ...
    def fingerprint(self) -> str: ...
    def corpus_notes(self, texts: Sequence[str]) -> tuple[str, ...]: ...


class TokenIndex(ScoringIndex):
    """Exact search by MaxSim over a `TokenStore`."""

    def __init__(self, model: TokenModel, ids: Sequence[TextId], folder: Path) -> None:
        self.model = model
        self.ids = ids
        self.folder = folder
        self.store = TokenStore.open(folder, len(ids), model.token_dimension)

    @classmethod
    def build(cls, model: TokenModel, corpus: Corpus, folder: str | Path | None = None) -> Self:
        """Encode a corpus.

        Args:
            model: encodes.
            corpus: texts, passages, or a mapping from ids to texts.
            folder: of the index, to be opened again; None = a temporary one, that goes with the index.

        Raises:
            DataError: the corpus is empty, holds a blank text or an id twice.
            RunError, StorageError: the folder is there already, or cannot be written.
        """
        ids, texts = read_corpus(corpus)
        temporary = Path(tempfile.mkdtemp(prefix="hanzoo-index-")) if folder is None else None
        try:
            target = Path(folder) if folder is not None else Path(str(temporary)) / "index"
            with new_folder(target) as beside:
                lengths, tokens = model.document_tokens(texts)
                TokenStore.write(beside, lengths, model.token_dimension, tokens)
                write_index(beside, ids, cls._facts(model))
            index = cls(model, ids, target)
        except BaseException:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        if temporary is not None:
            weakref.finalize(index, shutil.rmtree, temporary, ignore_errors=True)
        index.notes = model.corpus_notes(texts)
        return index

    @staticmethod
    def _facts(model: TokenModel) -> dict[str, Any]:
        return {"kind": KIND, "model": model.fingerprint(), "dimension": model.token_dimension, "dtype": "float16"}

    @classmethod
    def open(cls, model: TokenModel, folder: str | Path) -> Self:
        """A saved index, its tokens mapped into memory. Raises RunError where it is none, damaged, or of another model."""
        ids, _ = read_index(Path(folder), KIND, model.fingerprint())
        return cls(model, ids, Path(folder))

    def write(self, folder: Path) -> dict[str, Any]:
        for name in (TOKENS_FILE, PLACES_FILE, LENGTHS_FILE):
            shutil.copyfile(self.folder / name, folder / name)
        return self._facts(self.model)

    @torch.inference_mode()
    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        found = np.empty((len(queries), len(self)), dtype=np.float32)
        tokens = self.model.query_tokens(queries)
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = tokens[start : start + QUERIES_AT_ONCE]
            scores = self.store.scores(part)
            if self.model.mean_of_tokens:
                scores /= torch.tensor([len(query) for query in part]).unsqueeze(1)
            found[start : start + len(part)] = scores.numpy()
        return found

    @torch.inference_mode()
    def scores_of(self, queries: Sequence[str], places: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        found = []
        for query, row in zip(self.model.query_tokens(queries), places, strict=True):
            scores = self.store.scores_of(query, row) if len(row) else torch.empty(0)
            found.append((scores / len(query) if self.model.mean_of_tokens else scores).numpy())
        return found
