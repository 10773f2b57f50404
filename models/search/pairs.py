"""Re-ranking by a model that reads query and text together: it keeps the texts, and compares the candidates of a first stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from hanzoo.errors import RunError
from hanzoo.models.search.index import Corpus, Index, Ranking, TextId, read_corpus


class PairModel(Protocol):
    """What such an index asks of a model."""

    def scores(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]: ...


class PairIndex(Index):
    """A corpus whose texts are read together with each query."""

    def __init__(self, model: PairModel, ids: Sequence[TextId], texts: Sequence[str]) -> None:
        self.model = model
        self.ids = ids
        self.texts = texts

    @classmethod
    def build(cls, model: PairModel, corpus: Corpus) -> Self:
        """Keep a corpus. Raises DataError where it is empty, holds a blank text or an id twice."""
        return cls(model, *read_corpus(corpus))

    def rankings(self, queries: Sequence[str], k: int) -> Iterator[Ranking]:
        raise RunError(
            "search: a cross-encoder must have a first stage, whose candidates it re-ranks, but has none: it reads query and text "
            "together, and the whole corpus with each query would take too long. Give first_stage='bm25', or an index."
        )

    def scores_of(self, queries: Sequence[str], places: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        pairs = [(query, self.texts[place]) for query, row in zip(queries, places, strict=True) for place in row]
        if not pairs:
            return [np.empty(0, dtype=np.float32) for _ in places]
        scores = self.model.scores(pairs).astype(np.float32)
        return np.split(scores, np.cumsum([len(row) for row in places])[:-1])

    def write(self, folder: Path) -> dict[str, Any]:
        raise RunError(
            "search: an index of a cross-encoder holds nothing but the corpus. Save the first stage's instead."
        )
