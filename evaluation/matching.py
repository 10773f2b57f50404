"""The project's numbers for pairs of texts: scores of a model against gold labels, and what its embeddings look like.

Rank correlation asks whether pairs are in the right order; AUC the same where there are two classes; accuracy and F1 need a
threshold, which is chosen on other data than it is judged on (`choose_threshold`, `outcome_counts`). Beside every accuracy
belongs `majority_rate`, beside every Spearman its ceiling.

Source: Spearman 1904 with average ranks for ties (as `scipy.stats.spearmanr`); Hanley and McNeil 1982 (AUC as a rank statistic,
ties count half); Wang and Isola 2020 (alignment, uniformity).
Differs: a correlation with a constant is 0.0 and is said, where scipy gives NaN and a warning.
Cost: n log n in the pairs; `uniformity` is quadratic in the texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy.stats import rankdata

from hanzoo.data.randomness import generator

Numbers = Sequence[float] | np.ndarray
ChosenFor = Literal["accuracy", "f1"]  # what a threshold is the best for
CHOSEN_FOR: tuple[ChosenFor, ...] = get_args(ChosenFor)
_ROWS_AT_ONCE = 1_000


def pearson(gold: Numbers, scores: Numbers) -> float:
    """Pearson's correlation, in [-1, 1]; 0.0 where one of the two is constant.

    Args:
        gold, scores: (num_pairs,) finite numbers.

    Raises:
        ValueError: the two are not of one length, are empty, or hold a number that is not finite.
    """
    return _correlation(*_numbers(gold, scores))


def spearman(gold: Numbers, scores: Numbers) -> float:
    """Spearman's rank correlation, in [-1, 1]; equal values share the average of their ranks; 0.0 where one is constant.

    Args:
        gold, scores: (num_pairs,) finite numbers. Scores should be float32 or finer: half precision makes ties.

    Raises:
        ValueError: see `pearson`.
    """
    labels, given = _numbers(gold, scores)
    return _correlation(rankdata(labels), rankdata(given))


def spearman_ceiling(gold: Numbers, scores: Numbers | None = None) -> float:
    """The highest Spearman that can be reached with these ties.

    The ranks of gold and of the scores are two multisets of numbers, each fixed by its ties alone, and Spearman is the
    correlation of the two under some pairing. By the rearrangement inequality no pairing has a greater one than that of both in
    ascending order: that is the ceiling.

    Without `scores` they are taken to have no ties, as a model's hardly have. Sorted, each group of t equal labels then meets t
    consecutive ranks with the same mean, so the covariance of the two is the variance of gold's ranks, and the ceiling is the
    ratio of their standard deviations, sqrt(1 - sum(t^3 - t) / (n^3 - n)). For two classes with a share p of ones it tends to
    sqrt(3 p (1 - p)): 0.866 for p = 1/2, 0.801 for AFQMC's dev. Scores with ties of their own may reach more: a model that
    says only 0 and 1 can reach 1.

    Args:
        gold: (num_pairs,) finite labels.
        scores: (num_pairs,) finite scores, of which only the ties matter; None for scores without ties.

    Returns:
        In [0, 1]; 0.0 where gold or scores are constant.

    Raises:
        ValueError: see `pearson`.

    Source: the rearrangement inequality, Hardy, Littlewood and Pólya 1934, theorem 368; the variance of tied ranks, Kendall 1970,
    chapter 3. The rest is derived above.
    """
    labels, given = _numbers(gold, np.arange(len(gold)) if scores is None else scores)
    return _correlation(np.sort(rankdata(labels)), np.sort(rankdata(given)))


def auc(gold: Numbers, scores: Numbers) -> float:
    """The area under the ROC curve: how often a pair of class 1 has a higher score than one of class 0, ties counting half.

    Args:
        gold: (num_pairs,) labels, 0 or 1.
        scores: (num_pairs,) finite scores.

    Returns:
        In [0, 1]; 0.5 where scores tell nothing.

    Raises:
        ValueError: see `pearson`; or gold holds something else than 0 and 1, or only one of the two.

    Source: Hanley and McNeil 1982; Mann and Whitney 1947.
    """
    labels, given = _numbers(gold, scores)
    positive = _classes(labels)
    ones = int(positive.sum())
    zeros = len(labels) - ones
    if not ones or not zeros:
        raise ValueError(f"gold must hold both classes, but holds {ones} ones and {zeros} zeros. AUC compares the two.")
    rank_sum = float(rankdata(given)[positive].sum())
    return (rank_sum - ones * (ones + 1) / 2) / (ones * zeros)


def majority_rate(gold: Numbers) -> float:
    """The accuracy of always saying the most frequent label, in (0, 1].

    Raises:
        ValueError: `gold` is empty or holds a number that is not finite.
    """
    labels, _ = _numbers(gold, gold)
    _, counts = np.unique(labels, return_counts=True)
    return float(counts.max() / len(labels))


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How many pairs were called a match or none, rightly and wrongly.

    Attributes:
        true_positives, false_positives, false_negatives, true_negatives: numbers of pairs.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def accuracy(self) -> float:
        """The share of pairs that are right, in [0, 1]; 0.0 for no pairs."""
        right = self.true_positives + self.true_negatives
        return _ratio(right, right + self.false_positives + self.false_negatives)

    @property
    def precision(self) -> float:
        """The share of called matches that are right, in [0, 1]; 0.0 where nothing was called one."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """The share of matches that were called so, in [0, 1]; 0.0 where there is none."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """F1 of class 1, in [0, 1]; 0.0 where there is neither a match nor a call."""
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)


def outcome_counts(gold: Numbers, scores: Numbers, threshold: float) -> np.ndarray:
    """Count each pair apart, for what draws or exchanges pairs (`significance`).

    Args:
        gold: (num_pairs,) labels, 0 or 1.
        scores: (num_pairs,) finite scores.
        threshold: a pair is called a match where its score is at least this.

    Returns:
        (num_pairs, 4) int64: true positive, false positive, false negative, true negative; a single 1 in each row.

    Raises:
        ValueError: see `pearson`; or gold holds something else than 0 and 1, or the threshold is not a number.
    """
    if np.isnan(threshold):
        raise ValueError("threshold must be a number, but is nan.")
    labels, given = _numbers(gold, scores)
    positive = _classes(labels)
    called = given >= threshold
    outcomes = (positive & called, ~positive & called, positive & ~called, ~positive & ~called)
    return np.stack(outcomes, axis=-1).astype(np.int64)


def judge(gold: Numbers, scores: Numbers, threshold: float) -> Outcomes:
    """Count the outcomes of all pairs at a threshold. Args and raises: see `outcome_counts`."""
    return Outcomes(*outcome_counts(gold, scores, threshold).sum(axis=0).tolist())


def accuracy_of(counts: np.ndarray) -> np.ndarray:
    """Accuracy of outcomes summed over pairs: (..., 4) as in `outcome_counts` -> (...); 0.0 where all are 0."""
    return np.asarray((counts[..., 0] + counts[..., 3]) / np.maximum(counts.sum(axis=-1), 1))


def f1_of(counts: np.ndarray) -> np.ndarray:
    """F1 of class 1 of outcomes summed over pairs: (..., 4) as in `outcome_counts` -> (...); 0.0 where there is nothing."""
    doubled = 2 * counts[..., 0]
    return np.asarray(doubled / np.maximum(doubled + counts[..., 1] + counts[..., 2], 1))


@dataclass(frozen=True, slots=True)
class Threshold:
    """From which score on two texts are called a match.

    Attributes:
        value: the least score of a match.
        figure: what was reached with it on the data that it was chosen on, in [0, 1]: too good by as much as it was chosen.
        chosen_for: "accuracy" or "f1".
    """

    value: float
    figure: float
    chosen_for: ChosenFor


def choose_threshold(gold: Numbers, scores: Numbers, chosen_for: ChosenFor = "accuracy") -> Threshold:
    """Choose the threshold that is best on some data: on dev, never on the data that a figure is reported on.

    Thresholds lie midway between neighbouring scores; equal scores fall on one side. Calling all of them a match, or none, is
    allowed too. Among equally good ones the highest is taken.

    Args:
        gold: (num_pairs,) labels, 0 or 1.
        scores: (num_pairs,) finite scores.
        chosen_for: what is made as high as can be.

    Raises:
        ValueError: see `pearson`; or gold holds something else than 0 and 1.
    """
    labels, given = _numbers(gold, scores)
    positive = _classes(labels)
    order = np.argsort(-given, kind="stable")
    sorted_scores = given[order]
    matches = np.concatenate([[0], np.cumsum(positive[order])])  # true positives where the first k are called a match
    called = np.arange(len(given) + 1)
    total = int(matches[-1])
    counts = np.stack([matches, called - matches, total - matches, len(given) - total - called + matches], axis=-1)
    figures = (accuracy_of if chosen_for == "accuracy" else f1_of)(counts)
    cut = np.concatenate([[True], sorted_scores[:-1] > sorted_scores[1:], [True]])  # not between two equal scores
    best = int(np.argmax(np.where(cut, figures, -1.0)))  # the first: the fewest are called a match
    if best == 0:
        value = np.nextafter(sorted_scores[0], np.inf)
    elif best == len(given):
        value = sorted_scores[-1]
    else:
        above, below = sorted_scores[best - 1], sorted_scores[best]
        middle = below + (above - below) / 2
        value = middle if middle > below else above  # neighbours in float64 have no number between them
    return Threshold(float(value), float(figures[best]), chosen_for)


@dataclass(frozen=True, slots=True)
class PairScores:
    """What `score_pairs` found; all figures but the correlations in [0, 1].

    Attributes:
        pairs: how many were scored.
        spearman, pearson: correlations of scores and labels, in [-1, 1].
        spearman_ceiling: the highest Spearman with gold's ties, for scores without ties.
        constant: what was constant, so that the correlations are 0.0: "gold", "scores", or "".
        majority: the accuracy of always saying the most frequent label.
        auc: None where labels are no two classes, or only one of them occurs.
        accuracy_threshold, f1_threshold: what accuracy and F1 were judged at; None where none was given.
        accuracy, f1: (F1 of class 1) each at its threshold; None where there is none.
    """

    pairs: int
    spearman: float
    pearson: float
    spearman_ceiling: float
    constant: str
    majority: float
    auc: float | None = None
    accuracy_threshold: float | None = None
    f1_threshold: float | None = None
    accuracy: float | None = None
    f1: float | None = None

    def to_json(self) -> dict[str, Any]:
        """All figures by name, without those that are None, ready for `json.dumps`."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}


def score_pairs(
    gold: Numbers,
    scores: Numbers,
    *,
    two_classes: bool = False,
    accuracy_threshold: float | None = None,
    f1_threshold: float | None = None,
) -> PairScores:
    """Score a model's figures for pairs against their labels.

    Args:
        gold: (num_pairs,) finite labels.
        scores: (num_pairs,) finite scores, the higher the more alike.
        two_classes: whether labels are the classes 0 and 1; then AUC is counted too.
        accuracy_threshold: chosen on other data, see `choose_threshold`; gives the accuracy. Needs `two_classes`.
        f1_threshold: and F1. Where matches are few the threshold of the best accuracy may call nothing a match.

    Raises:
        ValueError: see `pearson`; or a threshold is given for labels that are no two classes.
    """
    labels, given = _numbers(gold, scores)
    if not two_classes and (accuracy_threshold is not None or f1_threshold is not None):
        raise ValueError("a threshold must be None where labels are no two classes: accuracy and F1 need them.")
    constant = "gold" if _is_constant(labels) else "scores" if _is_constant(given) else ""
    return PairScores(
        pairs=len(labels),
        spearman=spearman(labels, given),
        pearson=pearson(labels, given),
        spearman_ceiling=spearman_ceiling(labels),
        constant=constant,
        majority=majority_rate(labels),
        auc=auc(labels, given) if two_classes and constant != "gold" else None,
        accuracy_threshold=accuracy_threshold,
        f1_threshold=f1_threshold,
        accuracy=None if accuracy_threshold is None else judge(labels, given, accuracy_threshold).accuracy,
        f1=None if f1_threshold is None else judge(labels, given, f1_threshold).f1,
    )


def bootstrap_difference(
    gold: Numbers,
    first: np.ndarray,
    second: np.ndarray,
    figure: Callable[[Numbers, Numbers], float] = spearman,
    *,
    seed: int,
    rounds: int = 1000,
) -> tuple[float, tuple[float, float]]:
    """How two systems differ in a figure that is no sum over pairs, with the interval that comes from the choice of the pairs.

    For accuracy and F1 use `significance.compare`, which also gives a p-value. Rank correlations and AUC compare all pairs with
    each other, so that they are counted anew in every draw; and scores of two systems are in two units, so that they cannot be
    exchanged: there is no p-value here.

    Args:
        gold: (num_pairs,) finite labels.
        first, second: (num_models, num_pairs) finite scores of the models of each side, one a training seed.
        figure: from labels and scores to a number, of any draw of pairs: `spearman`, `pearson`. Not `auc` where a class is rare:
            a draw may lack it, and has no AUC then.
        seed: key of the draws (>= 0); the same seed and input give the same interval.
        rounds: how many times the pairs are drawn with replacement, the same ones for all models of both sides.

    Returns:
        The first side's mean figure minus the second's, and its 95 % percentile interval.

    Raises:
        ValueError: the shapes do not fit, or `rounds` is below 1; or see `figure`.

    Source: Efron and Tibshirani 1993, chapter 13 (percentile interval); Koehn 2004 (paired).
    Cost: rounds x models x the cost of the figure.
    """
    labels, one, other = (np.asarray(given, dtype=np.float64) for given in (gold, first, second))
    for side in (one, other):
        if side.ndim != 2 or not len(side) or side.shape[1:] != labels.shape:
            raise ValueError(f"scores must be (num_models, {len(labels)}), as there are labels, but are {side.shape}.")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, but is {rounds}.")

    def difference(drawn: np.ndarray | slice) -> float:
        sides = [np.mean([figure(labels[drawn], scores[drawn]) for scores in side]) for side in (one, other)]
        return float(sides[0] - sides[1])

    draws = generator(seed, "bootstrap_difference")
    differences = [difference(draws.integers(len(labels), size=len(labels))) for _ in range(rounds)]
    low, high = np.percentile(differences, [2.5, 97.5])
    return difference(slice(None)), (float(low), float(high))


def alignment(first: np.ndarray, second: np.ndarray, alpha: float = 2.0) -> float:
    """How near matching texts lie to each other: the mean of |f(x) - f(y)|^alpha over matching pairs, on the unit sphere.

    Args:
        first, second: (num_pairs, hidden) float embeddings of the two texts of each pair; brought to unit length here.
        alpha: the power of the distance.

    Returns:
        In [0, 2^alpha]; 0.0 where the texts of each pair coincide.

    Raises:
        ValueError: the shapes differ or are empty, or an embedding is zero or not finite.

    Source: Wang and Isola 2020, section 4.1, equation of L_align.
    """
    one, other = _on_the_sphere(first), _on_the_sphere(second)
    if one.shape != other.shape:
        raise ValueError(f"first and second must have one shape, but have {one.shape} and {other.shape}.")
    return float(np.mean(np.linalg.norm(one - other, axis=1) ** alpha))


def uniformity(embeddings: np.ndarray, t: float = 2.0) -> float:
    """How evenly texts are spread over the unit sphere: log of the mean of exp(-t |f(x) - f(y)|^2) over pairs of different texts.

    Args:
        embeddings: (num_texts, hidden) float, two at least; brought to unit length here.
        t: how fast a pair's part falls with its distance.

    Returns:
        In [-4 t, 0]; 0.0 where all coincide, the lower the more even.

    Raises:
        ValueError: there are fewer than two texts, or an embedding is zero or not finite.

    Source: Wang and Isola 2020, section 4.1, equation of L_uniform; pairs of a text with itself are left out, as in its release.
    Cost: num_texts^2 / 2 distances, in blocks; take a sample of 10,000 where there are more.
    """
    points = _on_the_sphere(embeddings)
    num_texts = len(points)
    if num_texts < 2:
        raise ValueError(f"embeddings must hold at least 2 texts, but hold {num_texts}.")
    total = 0.0
    for start in range(0, num_texts, _ROWS_AT_ONCE):
        block = points[start : start + _ROWS_AT_ONCE]
        distances = np.maximum(2 - 2 * (block @ points[start:].T), 0.0)  # squared; both of unit length
        kernel = np.exp(-t * distances)
        total += float(kernel[:, len(block) :].sum() + np.triu(kernel[:, : len(block)], k=1).sum())
    return float(np.log(total / (num_texts * (num_texts - 1) / 2)))


def _on_the_sphere(embeddings: np.ndarray) -> np.ndarray:
    """(rows, hidden) float64 of unit length."""
    points = np.asarray(embeddings, dtype=np.float64)
    if points.ndim != 2 or not points.size:
        raise ValueError(f"embeddings must be (num_texts, hidden) and not empty, but are {points.shape}.")
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise ValueError("embeddings must be finite and not zero, but some are not: they have no place on the sphere.")
    return np.asarray(points / lengths)


def _numbers(gold: Numbers, scores: Numbers) -> tuple[np.ndarray, np.ndarray]:
    labels, given = np.asarray(gold, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != given.shape or not labels.size:
        raise ValueError(
            f"gold and scores must hold one number a pair, and one pair at least, but are {labels.shape} and {given.shape}."
        )
    if not np.isfinite(labels).all() or not np.isfinite(given).all():
        raise ValueError(
            "gold and scores must be finite, but some are NaN or infinite. The model that gave them diverged."
        )
    return labels, given


def _classes(labels: np.ndarray) -> np.ndarray:
    if not np.isin(labels, (0.0, 1.0)).all():
        other = labels[~np.isin(labels, (0.0, 1.0))][0]
        raise ValueError(f"gold must hold the classes 0 and 1, but holds {other:g}.")
    return np.asarray(labels == 1.0)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation; 0.0 where one of the two is constant."""
    one, other = _centred(first), _centred(second)
    lengths = np.linalg.norm(one), np.linalg.norm(other)
    if not all(lengths):
        return 0.0
    return min(1.0, max(-1.0, float((one / lengths[0]) @ (other / lengths[1]))))


def _centred(numbers: np.ndarray) -> np.ndarray:
    """Less their mean, in a unit in which neither sums nor squares leave the range of float64; zeros where all are equal."""
    if _is_constant(numbers):  # the mean of equal numbers may differ from them by rounding
        return np.zeros_like(numbers)
    scaled = numbers / np.abs(numbers).max()
    centred = scaled - scaled.mean()
    return np.asarray(centred / np.abs(centred).max())


def _is_constant(numbers: np.ndarray) -> bool:
    return bool(numbers.min() == numbers.max())


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
