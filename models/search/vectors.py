"""Search by one vector a text: exact, over vectors in memory or mapped from the disk; or by faiss, for more than memory holds.

Source: for faiss Johnson et al. 2019; its kinds of indexes are named as `faiss.index_factory` takes them ("IVF4096,PQ64").
Cost: exact: 4 x width bytes a text, and one product of all vectors with a few queries.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from hanzoo.errors import RunError
from hanzoo.models.search.index import (
    Corpus,
    Index,
    Ranking,
    ScoringIndex,
    TextId,
    new_folder,
    open_array,
    read_corpus,
    read_index,
    write_index,
)

KIND, FAISS_KIND = "vectors", "faiss"
VECTORS_FILE, FAISS_FILE = "vectors.npy", "vectors.faiss"
TEXTS_AT_ONCE = 8_192  # that are encoded before their vectors are put away
VECTORS_AT_ONCE = 65_536  # that are compared at once


class VectorModel(Protocol):
    """What such an index asks of a model."""

    @property
    def width(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]: ...
    def fingerprint(self) -> str: ...
    def corpus_notes(self, texts: Sequence[str]) -> tuple[str, ...]: ...


class VectorIndex(ScoringIndex):
    """Exact search by cosine."""

    def __init__(self, model: VectorModel, ids: Sequence[TextId], vectors: NDArray[np.float32]) -> None:
        self.model = model
        self.ids = ids
        self.vectors = vectors

    @classmethod
    def build(cls, model: VectorModel, corpus: Corpus, folder: str | Path | None = None) -> Self:
        """Encode a corpus.

        Args:
            model: encodes.
            corpus: texts, passages, or a mapping from ids to texts.
            folder: where to write the vectors as they come, and map them into memory from; None = keep them in memory.

        Raises:
            DataError: the corpus is empty, holds a blank text or an id twice.
            RunError, StorageError: the folder is there already, or cannot be written.
        """
        ids, texts = read_corpus(corpus)
        if folder is None:
            index = cls(model, ids, model.encode(texts))
        else:
            with new_folder(Path(folder)) as beside:
                shape = (len(texts), model.width)
                kept = np.lib.format.open_memmap(beside / VECTORS_FILE, mode="w+", dtype=np.float32, shape=shape)
                for start, vectors in _encoded(model, texts):
                    kept[start : start + len(vectors)] = vectors
                kept.flush()
                del kept
                write_index(beside, ids, {"kind": KIND, "model": model.fingerprint(), "width": model.width})
            index = cls.open(model, folder)
        index.notes = model.corpus_notes(texts)
        return index

    @classmethod
    def open(cls, model: VectorModel, folder: str | Path) -> Self:
        """A saved index, its vectors mapped into memory. Raises RunError where it is none, damaged, or of another model."""
        folder = Path(folder)
        ids, _ = read_index(folder, KIND, model.fingerprint())
        return cls(model, ids, open_array(folder / VECTORS_FILE, (len(ids), model.width), np.float32))

    def write(self, folder: Path) -> dict[str, Any]:
        np.save(folder / VECTORS_FILE, np.asarray(self.vectors), allow_pickle=False)
        return {"kind": KIND, "model": self.model.fingerprint(), "width": self.model.width}

    @torch.inference_mode()
    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        device = self.model.device
        asked = torch.from_numpy(self.model.encode(queries)).to(device)
        found = np.empty((len(queries), len(self)), dtype=np.float32)
        for start in range(0, len(self), VECTORS_AT_ONCE):
            block = torch.from_numpy(self.vectors[start : start + VECTORS_AT_ONCE]).to(device)
            found[:, start : start + len(block)] = (asked @ block.T).cpu().numpy()
        return found

    def scores_of(self, queries: Sequence[str], places: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        asked = self.model.encode(queries)
        return [np.asarray(self.vectors[row] @ query) for query, row in zip(asked, places, strict=True)]


class FaissIndex(Index):
    """Search by cosine in an index of faiss: as exact as its kind is, and ties stand as faiss leaves them."""

    def __init__(self, model: VectorModel, ids: Sequence[TextId], index: Any) -> None:
        self.model = model
        self.ids = ids
        self.index = index

    @classmethod
    def build(cls, model: VectorModel, corpus: Corpus, kind: str, sample: int = 100_000) -> Self:
        """Encode a corpus a part at a time into an index of faiss.

        Args:
            model: encodes.
            corpus: see `VectorIndex.build`.
            kind: as `faiss.index_factory` takes it: "Flat", "SQ8", "HNSW32", "IVF4096,PQ64".
            sample: texts, evenly over the corpus, that a kind which has to be trained is trained on.

        Raises:
            RunError: faiss is not installed, knows no such kind, or has too few texts to train it on.
            DataError: see `VectorIndex.build`.
        """
        faiss = _faiss()
        ids, texts = read_corpus(corpus)
        with _making(kind):
            index = faiss.index_factory(model.width, kind, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            evenly = np.linspace(0, len(texts) - 1, min(sample, len(texts))).astype(np.int64)
            sampled = model.encode([texts[place] for place in evenly])
            with _making(kind):
                index.train(sampled)
        for _, vectors in _encoded(model, texts):
            with _making(kind):
                index.add(vectors)
        made = cls(model, ids, index)
        made.notes = model.corpus_notes(texts)
        return made

    @classmethod
    def open(cls, model: VectorModel, folder: str | Path) -> Self:
        """A saved index, mapped into memory where its kind can be. Raises RunError."""
        faiss, folder = _faiss(), Path(folder)
        ids, _ = read_index(folder, FAISS_KIND, model.fingerprint())
        try:
            index = faiss.read_index(str(folder / FAISS_FILE), faiss.IO_FLAG_MMAP)
        except RuntimeError as error:
            raise RunError(
                f"{folder / FAISS_FILE}: must be an index of faiss, but cannot be read. Build it again."
            ) from error
        if (index.ntotal, index.d) != (len(ids), model.width):
            raise RunError(
                f"{folder / FAISS_FILE}: must hold {len(ids):,} vectors of {model.width} numbers, but holds {index.ntotal:,} of "
                f"{index.d}. Build the index again."
            )
        return cls(model, ids, index)

    def write(self, folder: Path) -> dict[str, Any]:
        _faiss().write_index(self.index, str(folder / FAISS_FILE))
        return {"kind": FAISS_KIND, "model": self.model.fingerprint(), "width": self.model.width}

    def rankings(self, queries: Sequence[str], k: int) -> Iterator[Ranking]:
        scores, places = self.index.search(self.model.encode(queries), min(k, len(self)))
        for row, found in zip(scores, places, strict=True):
            real = found >= 0  # -1: fewer were found
            yield Ranking(found[real].astype(np.int64), row[real])

    def scores_of(self, queries: Sequence[str], places: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        raise RunError(
            "faiss: must be the first stage, but is asked to re-rank, for which it keeps no vectors. Exchange the two."
        )


def _encoded(model: VectorModel, texts: Sequence[str]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        yield start, model.encode(texts[start : start + TEXTS_AT_ONCE])


@contextlib.contextmanager
def _making(kind: str) -> Iterator[None]:
    """Turn what faiss says against a kind of index into one RunError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise RunError(f"faiss: must make an index of kind {kind!r}, but: {reason}. Name another kind.") from error


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        raise RunError(
            "faiss: the package faiss-cpu must be installed, but is not. Install it: pip install 'hanzoo[faiss]', or search "
            "without it: exactly, over vectors on the disk (index(corpus, folder=...))."
        ) from error
    module: ModuleType = faiss
    return module
