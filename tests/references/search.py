"""Search written from the papers, in plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence


def ranking(scores: Sequence[float], k: int) -> list[int]:
    """The places of the k highest scores, ties in order, without those of -inf."""
    places = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    return [place for place in places if scores[place] > -math.inf][:k]


def bm25_scores(query: Sequence[str], texts: Sequence[Sequence[str]], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """BM25 of a query with texts, as Lucene counts it (Robertson and Zaragoza 2009, with an IDF that is never negative)."""
    mean = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for word in query:
            having = sum(word in other for other in texts)
            idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
            frequency = text.count(word)
            score += idf * frequency / (frequency + k1 * (1 - b + b * len(text) / mean))
        scores.append(score)
    return scores
