"""The project's numbers for search: rankings against judgements (qrels).

A passage is relevant where it is judged above 0; one that is not judged counts as not relevant. A ranking is taken in the order
in which it is given: who makes it breaks its ties. Every figure is a mean over the queries that have a relevant passage; a query
without one counts in none, and is counted. A query with relevant passages and no ranking has 0 everywhere, and is counted.

- MRR@k: 1 / rank of the first relevant passage among the first k, else 0.
- nDCG@k: the sum of gain / log2(rank + 1) over the first k, divided by that of the best order of all judged passages; the gain
  is the judgement itself, as in trec_eval and BEIR (not 2^judgement - 1).
- recall@k: the share of the relevant passages that are among the first k. hit@k: whether any is ("recall" in some papers).

Source: Voorhees 1999 (MRR); Järvelin and Kekäläinen 2002 (nDCG); trec_eval.
Differs: trec_eval re-sorts by score and id, and leaves out judged queries that have no ranking unless told otherwise (-c).
Cost: linear in the first max(cutoffs) passages of the rankings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CUTOFFS = (1, 10, 100)
MEASURES = ("mrr", "ndcg", "recall", "hit")


@dataclass(frozen=True)
class RetrievalScores:
    """What `score_rankings` found.

    Attributes:
        figures: "mrr@10", "ndcg@10", "recall@100", "hit@1", ... to the mean over queries, in [0, 1].
        queries: ids of the queries that were scored, in the order of the judgements.
        per_query: each figure's value for each of `queries`, (num_queries,) float64.
        without_relevant: judged queries without a relevant passage: they count in no figure.
        without_judgement: rankings of queries that are not judged: they count in no figure.
        without_ranking: queries with relevant passages and no ranking: they count as 0.
    """

    figures: Mapping[str, float]
    queries: tuple[str, ...]
    per_query: Mapping[str, np.ndarray]
    without_relevant: int
    without_judgement: int
    without_ranking: int

    def describe(self) -> list[str]:
        """Say in lines for people what did not count."""
        lines = []
        if self.without_relevant:
            lines.append(f"{self.without_relevant:,} judged queries have no relevant passage: they count in no figure")
        if self.without_judgement:
            lines.append(
                f"{self.without_judgement:,} rankings are of queries that are not judged: they count in no figure"
            )
        if self.without_ranking:
            lines.append(f"{self.without_ranking:,} judged queries have no ranking: they count as 0")
        return lines

    def to_json(self) -> dict[str, Any]:
        """All figures and counts, ready for `json.dumps`."""
        return {
            **self.figures,
            "queries": len(self.queries),
            "without_relevant": self.without_relevant,
            "without_judgement": self.without_judgement,
            "without_ranking": self.without_ranking,
        }


def score_rankings(
    rankings: Mapping[str, Sequence[str]], qrels: Mapping[str, Mapping[str, int]], cutoffs: Sequence[int] = CUTOFFS
) -> RetrievalScores:
    """Score rankings against judgements.

    Args:
        rankings: id of a query to ids of passages, the best first, none twice. Where one is shorter than a cutoff, what it
            lacks is not found.
        qrels: id of a query to id of a passage to its judgement, a whole number >= 0.
        cutoffs: the k of "@k", each at least 1.

    Raises:
        ValueError: no query has a relevant passage, a passage stands twice in a ranking, a judgement is negative, or a
            cutoff is below 1.
    """
    if not cutoffs or min(cutoffs) < 1:
        raise ValueError(f"cutoffs must be whole numbers of at least 1, but are {tuple(cutoffs)}.")
    for query, ranking in rankings.items():
        if len(set(ranking)) != len(ranking):
            raise ValueError(f"a ranking must hold each passage once, but that of query {query!r} repeats one.")
    scored = []
    without_relevant = without_ranking = 0
    rows = []
    for query, judged in qrels.items():
        if any(score < 0 for score in judged.values()):
            raise ValueError(f"judgements must be at least 0, but query {query!r} has {min(judged.values())}.")
        gains = {passage: score for passage, score in judged.items() if score > 0}
        if not gains:
            without_relevant += 1
            continue
        without_ranking += query not in rankings
        scored.append(query)
        rows.append(_query_figures(rankings.get(query, ()), gains, cutoffs))
    if not scored:
        raise ValueError("qrels must hold a query with a relevant passage, but hold none. Nothing can be scored.")
    names = [f"{measure}@{k}" for k in cutoffs for measure in MEASURES]
    values = np.array(rows, dtype=np.float64)
    return RetrievalScores(
        figures={name: float(values[:, column].mean()) for column, name in enumerate(names)},
        queries=tuple(scored),
        per_query={name: values[:, column] for column, name in enumerate(names)},
        without_relevant=without_relevant,
        without_judgement=sum(query not in qrels for query in rankings),
        without_ranking=without_ranking,
    )


def mean_of(counts: np.ndarray) -> np.ndarray:
    """The mean of what was summed over queries: (..., 2) of value and 1 -> (...); 0.0 for no queries.

    With `np.stack([scores.per_query[name], np.ones(num_queries)], axis=-1)` it lets `significance.compare` judge two systems.
    """
    return np.asarray(counts[..., 0] / np.maximum(counts[..., 1], 1))


def _query_figures(ranking: Sequence[str], gains: Mapping[str, int], cutoffs: Sequence[int]) -> list[float]:
    """MRR, nDCG, recall and hit at each cutoff; `gains` holds the relevant passages."""
    found = [
        (rank, gains[passage]) for rank, passage in enumerate(ranking[: max(cutoffs)], start=1) if passage in gains
    ]
    ideal = sorted(gains.values(), reverse=True)
    figures = []
    for k in cutoffs:
        within = [(rank, gain) for rank, gain in found if rank <= k]
        best = sum(gain / math.log2(rank + 1) for rank, gain in enumerate(ideal[:k], start=1))
        reached = sum(gain / math.log2(rank + 1) for rank, gain in within)
        figures += [
            1 / within[0][0] if within else 0.0,
            reached / best,
            len(within) / len(gains),
            1.0 if within else 0.0,
        ]
    return figures
