"""Does a confidence of 0.8 mean right in 80 of 100 cases? Figures for that, and what brings it nearer.

A tagger's confidence is the probability that it gives to an entity that it predicts (exactly this span with exactly this label);
an entity is correct where gold holds it, and entities that were not predicted have no part: a temperature is fitted. A matcher's is
the probability that the two texts of a pair match, as a function of its score: two numbers are fitted (`fit_platt`), and the
figures here read "entity" as pair, "correct" as match.

Source: Guo et al. 2017 (On Calibration of Modern Neural Networks), equation 3 (the error) and section 4.2 (the temperature); Platt
1999 (Probabilistic Outputs for Support Vector Machines), section 2; Brier 1950.
Differs: the confidence is that of a predicted entity, not of the best of a fixed set of classes.
Cost: linear in the number of entities; a fit asks for the loss about twenty times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit

_EPSILON = 1e-7  # the resolution of float32 near 1: a posterior cannot say more than that


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One row of a reliability table: the entities with confidence in (low, high].

    Attributes:
        low: lower edge, not included but for the first bin, which holds 0.
        high: upper edge, included.
        count: how many entities lie here.
        confidence: their mean confidence, in [0, 1]; 0.0 where there are none.
        accuracy: the share of them that is correct, in [0, 1]; 0.0 where there are none.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float

    def to_json(self) -> dict[str, float]:
        """The row as numbers by name."""
        return {
            "low": self.low,
            "high": self.high,
            "count": self.count,
            "confidence": self.confidence,
            "accuracy": self.accuracy,
        }


def reliability(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 15) -> tuple[ReliabilityBin, ...]:
    """Return confidence and accuracy by level of confidence, in bins of equal width.

    Args:
        confidence: (entities,) float in [0, 1].
        correct: (entities,) bool, True = gold holds this entity.
        bins: how many; all are returned, empty ones too.

    Returns:
        The bins from low to high.

    Raises:
        ValueError: shapes differ, a confidence is no probability, or `bins` is below 1.
    """
    probability, right = _checked(confidence, correct)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, but is {bins}.")
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, probability, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    divisor = np.maximum(count, 1)
    mean_confidence = np.bincount(place, weights=probability, minlength=bins) / divisor
    accuracy = np.bincount(place, weights=right, minlength=bins) / divisor
    return tuple(
        ReliabilityBin(
            low=float(edges[index]),
            high=float(edges[index + 1]),
            count=int(count[index]),
            confidence=float(mean_confidence[index]),
            accuracy=float(accuracy[index]),
        )
        for index in range(bins)
    )


def expected_calibration_error(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 15) -> float:
    """Return the mean distance between confidence and accuracy, each bin weighted by its entities.

    Args:
        confidence: (entities,) float in [0, 1].
        correct: (entities,) bool, True = gold holds this entity.
        bins: how many bins of equal width.

    Returns:
        The error in [0, 1]; 0.0 where there are no entities.

    Raises:
        ValueError: as `reliability`.

    Source: Guo et al. 2017, equation 3; 15 bins as there.
    """
    rows = reliability(confidence, correct, bins)
    total = sum(row.count for row in rows)
    return sum(row.count * abs(row.accuracy - row.confidence) for row in rows) / max(total, 1)


def log_loss(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Return the mean negative log-likelihood of what came true, in nats.

    Args:
        confidence: (entities,) float in [0, 1]; taken as at least 1e-7 from both ends, so that one entity that was held
            for certain and is wrong costs 16 nats and not infinitely many.
        correct: (entities,) bool.

    Returns:
        The loss, lower is better; 0.0 where there are no entities.

    Raises:
        ValueError: shapes differ, or a confidence is no probability.
    """
    probability, right = _checked(confidence, correct)
    if not probability.size:
        return 0.0
    probability = np.clip(probability, _EPSILON, 1.0 - _EPSILON)
    return float(-np.mean(np.where(right > 0, np.log(probability), np.log1p(-probability))))


def fit_temperature(log_loss_at: Callable[[float], float], low: float = 0.2, high: float = 5.0) -> float:
    """Find the temperature that all scores are divided by for the lowest loss.

    The loss over entity posteriors may have more than one valley: a coarse grid finds the deepest, a bounded search
    (Brent) its ground. Where nothing is better than 1.0 (no entity to fit on) it stays 1.0.

    Args:
        log_loss_at: the loss at a given temperature; above 1 makes the tagger less sure, below 1 surer.
        low: the lowest temperature to try, above 0.
        high: the highest, above `low`.

    Returns:
        The temperature, in [low, high], to about 0.001 of itself.

    Raises:
        ValueError: the bounds are not 0 < low < high, or a loss is not a finite number.

    Source: Guo et al. 2017, section 4.2.
    Differs: searched on log T, where halving and doubling are equally far.
    """
    if not 0.0 < low < high < math.inf:
        raise ValueError(f"the bounds must hold 0 < low < high, but low is {low} and high is {high}.")

    def loss_at(temperature: float) -> float:
        loss = float(log_loss_at(temperature))
        if not math.isfinite(loss):
            raise ValueError(f"the loss must be a finite number, but is {loss} at temperature {temperature:.4g}.")
        return loss

    middle = 1.0 if low < 1.0 < high else math.sqrt(low * high)
    grid = [*np.geomspace(low, middle, 5).tolist(), *np.geomspace(middle, high, 5)[1:].tolist()]
    losses = [loss_at(temperature) for temperature in grid]
    # Of equal ones the nearest to 1: a loss that says nothing (no entities) must not change the tagger.
    best = min(range(len(grid)), key=lambda index: (losses[index], abs(math.log(grid[index]))))
    found = minimize_scalar(
        lambda log_temperature: loss_at(math.exp(log_temperature)),
        bounds=(math.log(grid[max(best - 1, 0)]), math.log(grid[min(best + 1, len(grid) - 1)])),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return math.exp(float(found.x)) if float(found.fun) < losses[best] else grid[best]


def brier(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Return the mean squared distance of the confidence from what came true, 1 or 0.

    Args:
        confidence: (entities,) float in [0, 1].
        correct: (entities,) bool.

    Returns:
        The score in [0, 1], lower is better; 0.0 where there are no entities. Always saying the share p of true ones gets
        p (1 - p).

    Raises:
        ValueError: as `reliability`.

    Source: Brier 1950, for two classes.
    """
    probability, right = _checked(confidence, correct)
    return float(np.mean((probability - right) ** 2)) if probability.size else 0.0


def fit_platt(scores: npt.ArrayLike, matches: npt.ArrayLike) -> tuple[float, float]:
    """Find the logistic curve that says how likely a pair with some score is a match.

    Targets are not 1 and 0 but (matches + 1) / (matches + 2) and 1 / (others + 2): what is left of a uniform prior over labels,
    without which scores that part the two classes entirely would have no finite factor.

    Args:
        scores: (pairs,) finite numbers, the higher the more alike.
        matches: (pairs,) bool, True = gold says that the two texts match.

    Returns:
        (factor, offset): the probability is 1 / (1 + exp(-(factor x score + offset))). Scores that are all equal have factor 0.

    Raises:
        ValueError: shapes differ, there are no pairs, or a score is not a finite number.

    Source: Platt 1999, section 2.2; Newton's method with a search along the line, as Lin, Lin and Weng 2007.
    Differs: scores are brought to mean 0 and deviation 1 first, so that cosines and sums of 32 of them are equally easy.
    """
    given, right = np.asarray(scores, dtype=np.float64), np.asarray(matches, dtype=np.bool_)
    if given.ndim != 1 or given.shape != right.shape or not given.size:
        raise ValueError(
            "scores and matches must be two arrays of one axis and equal length, not empty, "
            f"but have the shapes {given.shape} and {right.shape}."
        )
    if not np.isfinite(given).all():
        raise ValueError("scores must be finite, but some are not.")
    ones = int(right.sum())
    zeros = len(right) - ones
    targets = np.where(right, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    mean, deviation = float(given.mean()), float(given.std())
    constant = deviation <= 1e-12 * max(1.0, abs(mean))
    inputs = np.stack([np.zeros_like(given) if constant else (given - mean) / deviation, np.ones_like(given)], axis=1)

    def loss_at(weights: npt.NDArray[np.float64]) -> float:
        log_odds = inputs @ weights
        return float(np.sum(np.logaddexp(0.0, log_odds) - targets * log_odds))

    weights = np.array([0.0, math.log((ones + 1) / (zeros + 1))])
    loss = loss_at(weights)
    for _ in range(100):
        probability = expit(inputs @ weights)
        gradient = inputs.T @ (probability - targets)
        curvature = (inputs * (probability * (1 - probability))[:, None]).T @ inputs + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while size > 1e-10 and loss_at(weights - size * step) > loss - 1e-4 * size * float(gradient @ step):
            size /= 2
        weights = weights - size * step
        loss = loss_at(weights)
        if np.abs(gradient).max() <= 1e-8 * len(given):
            break
    factor = 0.0 if constant else float(weights[0]) / deviation
    return factor, float(weights[1]) - factor * mean


def _checked(
    confidence: npt.ArrayLike, correct: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    probability = np.asarray(confidence, dtype=np.float64)
    right = np.asarray(correct, dtype=np.bool_).astype(np.float64)
    if probability.ndim != 1 or probability.shape != right.shape:
        raise ValueError(
            "confidence and correct must be two arrays of one axis and equal length, "
            f"but have the shapes {probability.shape} and {right.shape}."
        )
    # Sums of float32 probabilities end a little above 1; more than a little is a mistake, and so is NaN.
    improbable = ~((probability >= -1e-5) & (probability <= 1.0 + 1e-5))
    if improbable.any():
        raise ValueError(f"confidence must lie in [0, 1], but holds {float(probability[improbable][0])}.")
    return np.clip(probability, 0.0, 1.0), right
