"""BM25 over words: the baseline of every search, and a first stage that needs no training.

Words are jieba's. bm25s's own tokeniser is not used: it takes a Chinese clause for one word, and drops words of one character.

Source: Robertson and Zaragoza 2009; Lù 2024 (bm25s), its defaults: Lucene's variant, k1 = 1.5, b = 0.75.
Differs: a text that shares no word with the query is no hit (bm25s fills up with texts that score 0).
Cost: linear in the texts that share a word with the query; cutting a corpus into words takes most of the time of building.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hanzoo.errors import DataError, RunError
from hanzoo.models.search.index import IDS_FILE, Corpus, ScoringIndex, TextId, read_corpus, read_index

KIND = "bm25"


def words(text: str, punctuation: bool = False) -> list[str]:
    """jieba's words of a text, in lower case.

    Args:
        text: any.
        punctuation: keep what holds no letter, no digit and no character (punctuation, blanks) too.
    """
    import jieba

    jieba.setLogLevel(logging.ERROR)  # it reports the reading of its dictionary as debugging
    found = (word.lower() for word in jieba.lcut(text))
    return [word for word in found if punctuation or any(character.isalnum() for character in word)]


class BM25Index(ScoringIndex):
    """See the head of this file; `BM25Index.build(corpus)`."""

    def __init__(self, ids: Sequence[TextId], scorer: Any, punctuation: bool) -> None:
        self.ids = ids
        self.punctuation = punctuation
        self._scorer = scorer

    @classmethod
    def build(cls, corpus: Corpus, *, punctuation: bool = False) -> Self:
        """Index a corpus.

        Args:
            corpus: texts, passages, or a mapping from ids to texts.
            punctuation: see `words`; what most published figures count, and it makes them worse.

        Raises:
            RunError: bm25s is not installed.
            DataError: the corpus is empty, holds a blank text or an id twice, or no word at all.
        """
        bm25s = _bm25s()
        ids, texts = read_corpus(corpus)
        cut = [words(text, punctuation) for text in texts]
        if not any(cut):
            raise DataError("corpus: must hold a word, but has only punctuation. There is nothing to search for.")
        scorer = bm25s.BM25()
        scorer.index(cut, show_progress=False)
        return cls(ids, scorer, punctuation)

    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        found = np.zeros((len(queries), len(self)), dtype=np.float32)
        for row, query in zip(found, queries, strict=True):
            known = [word for word in words(query, self.punctuation) if word in self._scorer.vocab_dict]
            if known:
                row[:] = self._scorer.get_scores(known)
        return np.where(found > 0, found, np.float32(-np.inf))

    def scores_of(self, queries: Sequence[str], places: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        return [np.maximum(self.scores([query])[0][row], 0) for query, row in zip(queries, places, strict=True)]

    def write(self, folder: Path) -> dict[str, Any]:
        self._scorer.save(folder / KIND, show_progress=False)
        return {"kind": KIND, "punctuation": self.punctuation}

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """A saved index, its arrays mapped into memory. Raises RunError where it is none, or damaged."""
        bm25s, folder = _bm25s(), Path(folder)
        ids, facts = read_index(folder, KIND)
        try:
            scorer = bm25s.BM25.load(folder / KIND, mmap=True, show_progress=False)
            texts = scorer.scores["num_docs"]
        except Exception as error:  # whatever damaged files make bm25s raise, which looks at none of them
            raise RunError(
                f"{folder / KIND}: must be an index of bm25s, but cannot be read ({error}). Build it again."
            ) from error
        if texts != len(ids):
            raise RunError(
                f"{folder / KIND}: must be of the {len(ids)} texts of {IDS_FILE}, but is of {texts}. Build the index again."
            )
        return cls(ids, scorer, bool(facts.get("punctuation")))


def _bm25s() -> ModuleType:
    try:
        import bm25s
    except ImportError as error:
        raise RunError(
            "bm25: the package bm25s must be installed, but is not. Install it: pip install 'hanzoo[search]'."
        ) from error
    logging.getLogger("bm25s").setLevel(logging.ERROR)
    module: ModuleType = bm25s
    return module
