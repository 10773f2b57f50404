"""The project's number for taggers: strict scores over spans.

The unit is the set of (sentence, start, end, label). A prediction counts where both borders and the label are right;
there is no half credit, and a span said twice in a sentence counts once. Counts are summed over all sentences and
divided once: no figure here is a mean over batches or sentences.

Source: the rule of CoNLL-2003 (Tjong Kim Sang and De Meulder 2003), without the repair of illegal tags: on legal tags
it equals `seqeval` in mode "strict".
Differs: 0/0 is 0.0 without a warning; a label with neither gold nor prediction has no part in the macro mean.
Cost: linear in the number of spans.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hanzoo.data.document import Span


@dataclass(frozen=True, slots=True)
class Counts:
    """How many predictions were right, how many wrong, and how many gold entities were not found.

    Attributes:
        true_positives: predicted and gold.
        false_positives: predicted, not gold.
        false_negatives: gold, not predicted.
    """

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0

    @property
    def precision(self) -> float:
        """The share of predictions that are right, in [0, 1]; 0.0 where nothing was predicted."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """The share of gold entities that were found, in [0, 1]; 0.0 where there is no gold."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """The harmonic mean of both, in [0, 1]; 0.0 where there is neither gold nor prediction."""
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)

    def to_json(self) -> dict[str, float]:
        """The three figures in [0, 1] and the three counts, by name."""
        return {
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "true_positives": self.true_positives,
            "false_positives": self.false_positives,
            "false_negatives": self.false_negatives,
        }


@dataclass(frozen=True, slots=True)
class TaggingScores:
    """What `score_entities` found.

    Attributes:
        micro: counts over all labels.
        per_label: counts by label, for the labels with gold or prediction, in alphabetical order.
        sentences: how many sentences were scored, those without entities included.
    """

    micro: Counts
    per_label: dict[str, Counts]
    sentences: int

    @property
    def precision(self) -> float:
        """Micro precision, in [0, 1]."""
        return self.micro.precision

    @property
    def recall(self) -> float:
        """Micro recall, in [0, 1]."""
        return self.micro.recall

    @property
    def f1(self) -> float:
        """Micro F1, in [0, 1]: the number that papers on MSRA, Weibo and Resume print."""
        return self.micro.f1

    @property
    def macro_f1(self) -> float:
        """The plain mean of the F1 of every label with gold or prediction, in [0, 1]; 0.0 where there is none."""
        return _ratio(sum(counts.f1 for counts in self.per_label.values()), len(self.per_label))

    @property
    def num_gold(self) -> int:
        """How many gold entities there are."""
        return self.micro.true_positives + self.micro.false_negatives

    @property
    def num_predicted(self) -> int:
        """How many entities were predicted."""
        return self.micro.true_positives + self.micro.false_positives

    def to_json(self) -> dict[str, Any]:
        """All figures (0-1) and counts, ready for `json.dumps`."""
        return {
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "macro_f1": self.macro_f1,
            "sentences": self.sentences,
            "num_gold": self.num_gold,
            "num_predicted": self.num_predicted,
            "num_correct": self.micro.true_positives,
            "per_label": {label: counts.to_json() for label, counts in self.per_label.items()},
        }


def score_entities(gold: Sequence[Iterable[Span]], predicted: Sequence[Iterable[Span]]) -> TaggingScores:
    """Score predictions against gold, a sentence at a time.

    Args:
        gold: the gold spans of each sentence, in any order; nested and overlapping ones all count.
        predicted: the predicted spans of the same sentences, in the same order.

    Returns:
        Counts and figures over all sentences.

    Raises:
        ValueError: `gold` and `predicted` hold different numbers of sentences.
    """
    _require_same_length(gold, predicted)
    found: Counter[str] = Counter()
    spurious: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for gold_spans, predicted_spans in zip(gold, predicted, strict=True):
        expected, given = set(gold_spans), set(predicted_spans)
        found.update(span.label for span in given & expected)
        spurious.update(span.label for span in given - expected)
        missed.update(span.label for span in expected - given)
    labels = sorted(found.keys() | spurious.keys() | missed.keys())
    return TaggingScores(
        micro=Counts(found.total(), spurious.total(), missed.total()),
        per_label={label: Counts(found[label], spurious[label], missed[label]) for label in labels},
        sentences=len(gold),
    )


def sentence_counts(gold: Sequence[Iterable[Span]], predicted: Sequence[Iterable[Span]]) -> np.ndarray:
    """Count each sentence apart, for what draws or exchanges sentences.

    Args:
        gold: the gold spans of each sentence.
        predicted: the predicted spans of the same sentences.

    Returns:
        (num_sentences, 3) int64: found, spurious and missed spans; their sums are those of `score_entities`.

    Raises:
        ValueError: `gold` and `predicted` hold different numbers of sentences.
    """
    _require_same_length(gold, predicted)
    counts = np.zeros((len(gold), 3), dtype=np.int64)
    for index, (gold_spans, predicted_spans) in enumerate(zip(gold, predicted, strict=True)):
        expected, given = set(gold_spans), set(predicted_spans)
        counts[index] = len(given & expected), len(given - expected), len(expected - given)
    return counts


def micro_f1(counts: np.ndarray) -> np.ndarray:
    """Micro F1, in [0, 1], of counts summed over sentences: (..., 3) as in `sentence_counts` -> (...); 0.0 where all are 0."""
    doubled = 2 * counts[..., 0]
    return np.asarray(doubled / np.maximum(doubled + counts[..., 1] + counts[..., 2], 1))


def score_where(
    gold: Sequence[Iterable[Span]], predicted: Sequence[Iterable[Span]], keep: Sequence[bool]
) -> TaggingScores:
    """Score some of the sentences: those under 250 characters, or those that are not in train.

    Args:
        gold: the gold spans of each sentence.
        predicted: the predicted spans of the same sentences.
        keep: True for each sentence that counts.

    Returns:
        What `score_entities` says of the kept sentences.

    Raises:
        ValueError: the three hold different numbers of sentences.
    """
    _require_same_length(gold, predicted)
    if len(keep) != len(gold):
        raise ValueError(f"keep must hold one value a sentence ({len(gold)}), but holds {len(keep)}.")
    return score_entities(
        [spans for spans, kept in zip(gold, keep, strict=True) if kept],
        [spans for spans, kept in zip(predicted, keep, strict=True) if kept],
    )


def legal_rate(illegal: Sequence[int]) -> float:
    """Return the share of predicted tag sequences that the tag scheme allows.

    Args:
        illegal: for each sequence, how many illegal steps it holds (its beginning and its end included).

    Returns:
        The share of zeros, in [0, 1]; 1.0 for no sequences, none of which is illegal.
    """
    return _ratio(sum(count == 0 for count in illegal), len(illegal)) if len(illegal) else 1.0


def bootstrap_interval(
    gold: Sequence[Iterable[Span]], predicted: Sequence[Iterable[Span]], *, seed: int, samples: int = 1000
) -> tuple[float, float]:
    """Return the 95 % interval of micro F1 that comes from the choice of the test sentences.

    Whole sentences are drawn with replacement, as many as there are; the interval lies between the 2.5th and the 97.5th
    percentile of the F1 of the draws. It says nothing of the spread over training seeds.

    Args:
        gold: the gold spans of each sentence.
        predicted: the predicted spans of the same sentences.
        seed: key of the draw (>= 0); the same seed and input give the same interval.
        samples: how many times the set is drawn.

    Returns:
        (low, high), both in [0, 1].

    Raises:
        ValueError: `gold` and `predicted` hold different numbers of sentences, or none; or `samples` is below 1.

    Source: Efron and Tibshirani 1993, chapter 13 (percentile interval).
    Cost: samples x sentences draws; memory for a few million numbers at most.
    """
    _require_same_length(gold, predicted)
    num_sentences = len(gold)
    if num_sentences == 0:
        raise ValueError("gold must hold at least one sentence to draw from, but holds none.")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, but is {samples}.")
    counts = sentence_counts(gold, predicted)
    correct, total = counts[:, 0], counts @ np.array([2, 1, 1])  # F1 = 2 TP / (2 TP + FP + FN)
    generator = np.random.default_rng([seed, zlib.crc32(b"bootstrap_interval")])
    figures = np.zeros(samples)
    rows_at_once = max(1, 1_000_000 // num_sentences)
    for first in range(0, samples, rows_at_once):
        rows = min(rows_at_once, samples - first)
        drawn = generator.integers(num_sentences, size=(rows, num_sentences))
        denominator = total[drawn].sum(axis=1)
        figures[first : first + rows] = 2 * correct[drawn].sum(axis=1) / np.maximum(denominator, 1)
    low, high = np.percentile(figures, [2.5, 97.5])
    return float(low), float(high)


def _require_same_length(gold: Sequence[Iterable[Span]], predicted: Sequence[Iterable[Span]]) -> None:
    if len(gold) != len(predicted):
        raise ValueError(
            f"predicted must hold one entry a gold sentence ({len(gold)}), but holds {len(predicted)}. "
            "Give an empty one for a sentence without entities."
        )


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
