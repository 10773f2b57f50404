"""Whether two systems differ, judged by the sentences on which both were scored.

Both are compared on the same sentences. A system may be several models, one a training seed; its figure is then the mean
of the models' figures, and the statistic is the difference of the two means. A figure may be any function of counts
summed over sentences: micro F1 of (found, spurious, missed), accuracy of (right, all). Neither function looks inside.

- `approximate_randomisation` gives the p-value. Null hypothesis: for each sentence it does not matter which of the two
  systems gave which output, so that exchanging them leaves the distribution as it is.
- `paired_bootstrap` gives the 95 % interval of the difference over the choice of the sentences.

The sentence is the unit of both. With several models a sentence is exchanged (drawn) for all of them at once, model k of one
side for model k of the other: the models of a side err on the same sentences, and exchanging them one by one would
count each sentence several times over and give p-values that are too small.

What is not tested: whether other training seeds would show the difference too. The models are taken as they are; the
spread over seeds is another matter, and stands beside each figure as its standard deviation.

Source: Noreen 1989 and Yeh 2000 (p-value); Efron and Tibshirani 1993, chapter 13, and Koehn 2004
(interval); Reimers and Gurevych 2017 (why one seed a side says little of two methods).
Differs: in the papers a side is one model.
Cost: rounds x sentences x (models x counts); blocks of about a million numbers, whatever the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hanzoo.data.randomness import generator

Metric = Callable[[np.ndarray], np.ndarray]  # counts, summed over sentences: (..., num_counts) float64 -> (...) float64

ROUNDS = 10_000
_NUMBERS_AT_ONCE = 1_000_000
_TIE = 1e-12  # two arrangements with the same figures may differ by rounding, where a mean over models is summed


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two systems differ.

    Attributes:
        difference: the first's figure minus the second's, each the mean over its models.
        interval: the two ends of the 95 % bootstrap interval of `difference` over sentences.
        p: the two-sided p-value, in (0, 1]; None where the two sides cannot be exchanged.
        rounds: how many times sentences were exchanged, and how many times they were drawn.
    """

    difference: float
    interval: tuple[float, float]
    p: float | None
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """The four, ready for `json.dumps`."""
        return {"difference": self.difference, "interval": list(self.interval), "p": self.p, "rounds": self.rounds}


def compare(first: np.ndarray, second: np.ndarray, metric: Metric, *, seed: int, rounds: int = ROUNDS) -> Comparison:
    """Compare two systems on the same sentences.

    Args:
        first: (num_models, num_sentences, num_counts), what is counted in each sentence for each model of one side.
        second: the same for the other side: as many models, the same sentences in the same order, the same counts.
        metric: from counts summed over sentences, (..., num_counts) float64, to figures, (...).
        seed: key of the draws (>= 0); the same seed and input give the same result.
        rounds: how many exchanges, and how many draws.

    Raises:
        ValueError: the shapes differ, something is empty, or `rounds` is below 1.
    """
    one, other = _paired(first, second, rounds)
    return Comparison(
        difference=float(_difference(one.sum(axis=1), other.sum(axis=1), metric)),
        interval=paired_bootstrap(one, other, metric, seed=seed, rounds=rounds),
        p=approximate_randomisation(one, other, metric, seed=seed, rounds=rounds),
        rounds=rounds,
    )


def approximate_randomisation(
    first: np.ndarray, second: np.ndarray, metric: Metric, *, seed: int, rounds: int = ROUNDS
) -> float:
    """Return the two-sided p-value of the difference of two systems, by exchanging sentences at random.

    In each round every sentence is exchanged between the two sides with probability 1/2. The p-value is (k + 1) / (rounds + 1)
    where in k rounds the difference was at least as large, in absolute value, as it really is; it is never 0.

    Args:
        first, second, metric, seed, rounds: see `compare`.

    Returns:
        The p-value, in (0, 1]; 1.0 where both sides are the same.

    Raises:
        ValueError: see `compare`.

    Source: Noreen 1989; Yeh 2000.
    """
    one, other = _paired(first, second, rounds)
    num_models, num_sentences, num_counts = one.shape
    sum_one, sum_other = one.sum(axis=1), other.sum(axis=1)
    really = abs(float(_difference(sum_one, sum_other, metric)))
    moves = _by_sentence(other - one)  # what the first side gains, and the second loses, where a sentence is exchanged
    draws = generator(seed, "approximate_randomisation")
    at_least = 0
    for rows in _blocks(rounds, num_sentences):
        words = draws.integers(2**64, size=(rows, -(-num_sentences // 64)), dtype=np.uint64)
        exchanged = np.unpackbits(words.view(np.uint8), axis=1, count=num_sentences)
        # Sums of whole numbers in float64 are exact, in whatever order they are taken: equal on every machine.
        gained = (exchanged.astype(np.float64) @ moves).reshape(rows, num_models, num_counts)
        differences = np.abs(_difference(sum_one + gained, sum_other - gained, metric))
        at_least += int(np.count_nonzero(differences >= really - _TIE))
    return (at_least + 1) / (rounds + 1)


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, metric: Metric, *, seed: int, rounds: int = ROUNDS
) -> tuple[float, float]:
    """Return the 95 % percentile interval of the difference of two systems over the choice of the sentences.

    Whole sentences are drawn with replacement, as many as there are, the same ones for all models of both sides.

    Args:
        first, second, metric, seed, rounds: see `compare`.

    Returns:
        (low, high): the 2.5th and the 97.5th percentile of the differences of the draws.

    Raises:
        ValueError: see `compare`.

    Source: Efron and Tibshirani 1993, chapter 13 (percentile interval); Koehn 2004 (paired).
    """
    one, other = _paired(first, second, rounds)
    num_models, num_sentences, num_counts = one.shape
    counts = _by_sentence(np.concatenate([one, other]))
    draws = generator(seed, "paired_bootstrap")
    differences = []
    for rows in _blocks(rounds, num_sentences):
        drawn = draws.integers(num_sentences, size=(rows, num_sentences))
        drawn += num_sentences * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * num_sentences).reshape(rows, num_sentences)
        sums = (times.astype(np.float64) @ counts).reshape(rows, 2, num_models, num_counts)
        differences.append(_difference(sums[:, 0], sums[:, 1], metric))
    low, high = np.percentile(np.concatenate(differences), [2.5, 97.5])
    return float(low), float(high)


def _paired(first: np.ndarray, second: np.ndarray, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Both sides in float64."""
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 3 or one.size == 0:
        raise ValueError(f"first must be (models, sentences, counts), none of them 0, but is {one.shape}.")
    if one.shape != other.shape:
        raise ValueError(f"second must have the shape of first, {one.shape}, but has {other.shape}. Pair them.")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, but is {rounds}.")
    return one, other


def _difference(one: np.ndarray, other: np.ndarray, metric: Metric) -> np.ndarray:
    """The statistic: (..., num_models, num_counts) twice -> (...), the difference of the means over models."""
    return np.asarray(metric(one).mean(axis=-1) - metric(other).mean(axis=-1))


def _by_sentence(counts: np.ndarray) -> np.ndarray:
    """(models, sentences, counts) -> (sentences, models x counts), for one matrix product a block of rounds."""
    return counts.transpose(1, 0, 2).reshape(counts.shape[1], -1)


def _blocks(rounds: int, num_sentences: int) -> Iterator[int]:
    """The rounds in blocks whose sentences fit the memory that is allowed."""
    most = max(1, _NUMBERS_AT_ONCE // num_sentences)
    for first in range(0, rounds, most):
        yield min(most, rounds - first)
