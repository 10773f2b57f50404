"""The figures of evaluation/matching.py and evaluation/retrieval.py from their definitions: loops over pairs, float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence


def average_ranks(values: Sequence[float]) -> list[float]:
    """The mean of the places that a value could take: one more than those below, half of the others that are equal."""
    return [
        1 + sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]


def pearson(first: Sequence[float], second: Sequence[float]) -> float:
    mean_first, mean_second = sum(first) / len(first), sum(second) / len(second)
    covariance = sum((a - mean_first) * (b - mean_second) for a, b in zip(first, second, strict=True))
    variance_first = sum((a - mean_first) ** 2 for a in first)
    variance_second = sum((b - mean_second) ** 2 for b in second)
    if not variance_first or not variance_second:
        return 0.0
    return covariance / math.sqrt(variance_first * variance_second)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    return pearson(average_ranks(first), average_ranks(second))


def highest_spearman(gold: Sequence[float], scores: Sequence[float]) -> float:
    """The best of all ways to give these scores to the pairs."""
    return max(spearman(gold, arranged) for arranged in set(itertools.permutations(scores)))


def auc(gold: Sequence[float], scores: Sequence[float]) -> float:
    """Every pair of class 1 against every pair of class 0."""
    won = 0.0
    compared = 0
    for label, score in zip(gold, scores, strict=True):
        for other_label, other_score in zip(gold, scores, strict=True):
            if label == 1 and other_label == 0:
                compared += 1
                won += 1.0 if score > other_score else 0.5 if score == other_score else 0.0
    return won / compared


def outcomes(gold: Sequence[float], scores: Sequence[float], threshold: float) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives, true negatives."""
    counted = [0, 0, 0, 0]
    for label, score in zip(gold, scores, strict=True):
        called = score >= threshold
        counted[(0 if label == 1 else 1) if called else (2 if label == 1 else 3)] += 1
    return counted[0], counted[1], counted[2], counted[3]


def figure(gold: Sequence[float], scores: Sequence[float], threshold: float, chosen_for: str) -> float:
    true_positives, false_positives, false_negatives, true_negatives = outcomes(gold, scores, threshold)
    if chosen_for == "accuracy":
        return (true_positives + true_negatives) / len(gold)
    spread = 2 * true_positives + false_positives + false_negatives
    return 2 * true_positives / spread if spread else 0.0


def best_figure(gold: Sequence[float], scores: Sequence[float], chosen_for: str) -> float:
    """The best of all thresholds: at each score, and above all of them."""
    return max(figure(gold, scores, threshold, chosen_for) for threshold in [*scores, math.inf])


def unit(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(number**2 for number in vector))
    return [number / length for number in vector]


def distance(first: Sequence[float], second: Sequence[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(unit(first), unit(second), strict=True)))


def alignment(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], alpha: float) -> float:
    return sum(distance(a, b) ** alpha for a, b in zip(first, second, strict=True)) / len(first)


def uniformity(embeddings: Sequence[Sequence[float]], t: float) -> float:
    kernel = [math.exp(-t * distance(a, b) ** 2) for a, b in itertools.combinations(embeddings, 2)]
    return math.log(sum(kernel) / len(kernel))


def retrieval(
    rankings: Mapping[str, Sequence[str]], qrels: Mapping[str, Mapping[str, int]], k: int
) -> dict[str, float]:
    """MRR, nDCG, recall and hit at k; the ideal order is the best of all orders of the judged passages."""
    sums = {"mrr": 0.0, "ndcg": 0.0, "recall": 0.0, "hit": 0.0}
    num_queries = 0
    for query, judged in qrels.items():
        if max(judged.values()) == 0:
            continue
        num_queries += 1
        top = list(rankings.get(query, []))[:k]
        sums["ndcg"] += gain(top, judged, k) / max(gain(order, judged, k) for order in itertools.permutations(judged))
        relevant = [passage for passage in judged if judged[passage] > 0]
        sums["recall"] += sum(passage in top for passage in relevant) / len(relevant)
        ranks = [place + 1 for place in range(len(top)) if top[place] in relevant]
        if ranks:
            sums["hit"] += 1
            sums["mrr"] += 1 / min(ranks)
    return {name: value / num_queries for name, value in sums.items()}


def gain(order: Sequence[str], judged: Mapping[str, int], k: int) -> float:
    return sum(judged.get(passage, 0) / math.log2(place + 2) for place, passage in enumerate(order) if place < k)
