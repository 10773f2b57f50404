from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.optimize import minimize

from hanzoo.evaluation.calibration import (
    brier,
    expected_calibration_error,
    fit_platt,
    fit_temperature,
    log_loss,
    reliability,
)


def naive_error(confidence: list[float], correct: list[bool], bins: int) -> float:
    error = 0.0
    for index in range(bins):
        inside = [
            (c, y)
            for c, y in zip(confidence, correct, strict=True)
            if index / bins < c <= (index + 1) / bins or (index == 0 and c == 0.0)
        ]
        if inside:
            accuracy = sum(y for _, y in inside) / len(inside)
            error += len(inside) * abs(accuracy - sum(c for c, _ in inside) / len(inside))
    return error / len(confidence)


@pytest.mark.parametrize("bins", [1, 7, 10, 15])
def test_equals_the_naive_sum(bins: int) -> None:
    generator = np.random.default_rng(bins)
    confidence = generator.random(500)
    correct = generator.random(500) < confidence**2
    error = expected_calibration_error(confidence, correct, bins)
    assert error == pytest.approx(naive_error(confidence.tolist(), correct.tolist(), bins), abs=1e-12)
    assert error != pytest.approx(expected_calibration_error(confidence, ~correct, bins), abs=1e-3)


def test_a_calibrated_tagger_has_almost_no_error() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.random(200_000)
    calibrated = generator.random(200_000) < confidence
    assert expected_calibration_error(confidence, calibrated) < 0.01
    assert expected_calibration_error(confidence, generator.random(200_000) < confidence / 2) > 0.2


def test_bins_by_hand() -> None:
    rows = reliability([0.0, 0.5, 0.6, 1.0], [False, True, False, True], bins=2)
    assert [(row.count, row.accuracy) for row in rows] == [(2, 0.5), (2, 0.5)]  # an edge belongs to the bin below it
    assert [row.confidence for row in rows] == pytest.approx([0.25, 0.8])
    assert (rows[0].low, rows[0].high, rows[1].high) == (0.0, 0.5, 1.0)
    assert json.loads(json.dumps(rows[1].to_json()))["count"] == 2
    assert expected_calibration_error([0.0, 0.5, 0.6, 1.0], [False, True, False, True], 2) == pytest.approx(0.275)


def test_log_loss_by_hand() -> None:
    assert log_loss([0.8, 0.4], [True, False]) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert log_loss([0.8, 0.4], [False, True]) > log_loss([0.8, 0.4], [True, False])
    assert log_loss(np.array([1.0], dtype=np.float32), [False]) == pytest.approx(-math.log(1e-7), rel=1e-6)


def test_no_entities_is_zero() -> None:
    assert expected_calibration_error([], []) == log_loss([], []) == 0.0
    assert [row.count for row in reliability([], [], 3)] == [0, 0, 0]


@pytest.mark.parametrize("value", [1.1, -0.1, math.nan, math.inf])
def test_refuses_what_is_no_probability(value: float) -> None:
    with pytest.raises(ValueError, match=r"confidence must lie in \[0, 1\], but holds"):
        expected_calibration_error([0.5, value], [True, False])


def test_refuses_shapes_and_bins() -> None:
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\)"):
        log_loss([0.5, 0.5], [True])
    with pytest.raises(ValueError, match="bins must be at least 1, but is 0"):
        reliability([0.5], [True], bins=0)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 1.7, 3.0])
def test_finds_the_temperature_that_was_put_in(true_temperature: float) -> None:
    logits = np.random.default_rng(3).normal(0.0, 3.0, 2000)
    truth = 1 / (1 + np.exp(-logits / true_temperature))

    def loss_at(temperature: float) -> float:
        # The expectation of the log loss over the truth itself: its minimum lies exactly at the true temperature.
        score = logits / temperature
        return float(np.mean(truth * np.logaddexp(0, -score) + (1 - truth) * np.logaddexp(0, score)))

    assert fit_temperature(loss_at) == pytest.approx(true_temperature, rel=5e-3)


def test_fitting_lowers_loss_and_calibration_error() -> None:
    generator = np.random.default_rng(5)
    logits = generator.normal(1.0, 4.0, 4000)
    correct = generator.random(4000) < 1 / (1 + np.exp(-logits / 2.5))  # a tagger 2.5 times too sure

    def confidence_at(temperature: float) -> np.ndarray:
        return np.asarray(1 / (1 + np.exp(-logits / temperature)))

    half = slice(0, 2000), slice(2000, 4000)
    temperature = fit_temperature(lambda t: log_loss(confidence_at(t)[half[0]], correct[half[0]]))
    assert temperature == pytest.approx(2.5, rel=0.15)
    before = expected_calibration_error(confidence_at(1.0)[half[1]], correct[half[1]])
    after = expected_calibration_error(confidence_at(temperature)[half[1]], correct[half[1]])
    assert after < before / 2


def test_takes_the_deeper_of_two_valleys() -> None:
    def loss_at(temperature: float) -> float:
        x = math.log(temperature)
        return 1 - 0.5 * math.exp(-(((x + 1.0) / 0.3) ** 2)) - 0.9 * math.exp(-(((x - 1.2) / 0.3) ** 2))

    assert fit_temperature(loss_at) == pytest.approx(math.exp(1.2), rel=5e-3)


def test_stays_at_one_or_within_the_bounds() -> None:
    assert fit_temperature(lambda temperature: 0.0) == 1.0
    assert fit_temperature(lambda temperature: temperature) == pytest.approx(0.2, rel=2e-3)
    assert fit_temperature(lambda temperature: -temperature, high=3.0) == pytest.approx(3.0, rel=2e-3)
    assert fit_temperature(lambda temperature: -temperature, low=1.5, high=3.0) <= 3.0


def test_refuses_bounds_and_losses() -> None:
    with pytest.raises(ValueError, match="0 < low < high, but low is 2 and high is 1"):
        fit_temperature(lambda temperature: 0.0, low=2, high=1)
    with pytest.raises(ValueError, match="the loss must be a finite number, but is nan at temperature"):
        fit_temperature(lambda temperature: math.nan)


# Matchers.


def drawn_pairs(number: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose log-odds of a match are 3 x score - 1."""
    draw = np.random.default_rng(5)
    scores = draw.normal(0.3, 1.0, number)
    return scores, draw.random(number) < 1 / (1 + np.exp(-(3 * scores - 1)))


def test_platt_is_the_least_loss_against_smoothed_targets() -> None:
    scores, matches = drawn_pairs()
    ones = int(matches.sum())
    targets = [(ones + 1) / (ones + 2) if match else 1 / (len(matches) - ones + 2) for match in matches]

    def loss(weights: np.ndarray) -> float:
        total = 0.0
        for score, target in zip(scores, targets, strict=True):
            probability = 1 / (1 + math.exp(-(weights[0] * score + weights[1])))
            total -= target * math.log(probability) + (1 - target) * math.log(1 - probability)
        return total

    found = fit_platt(scores, matches)
    assert found == pytest.approx(minimize(loss, [1.0, 0.0], tol=1e-10).x, rel=1e-4)
    assert loss(np.array(found)) < loss(np.array([1.0, 0.0])) - 1  # the control: another curve is worse
    assert found == pytest.approx((3, -1), abs=0.6)


def test_platt_does_not_depend_on_the_unit() -> None:
    scores, matches = drawn_pairs()
    factor, offset = fit_platt(scores, matches)
    other = fit_platt(1000 * scores + 7, matches)
    assert 1000 * other[0] == pytest.approx(factor, rel=1e-6)
    assert other[1] + 7 * other[0] == pytest.approx(offset, rel=1e-6)


def test_platt_stays_finite() -> None:
    factor, offset = fit_platt([0.1, 0.2, 0.8, 0.9], [False, False, True, True])
    assert 0 < factor < 100
    assert factor * 0.5 + offset == pytest.approx(0, abs=1e-6)
    assert fit_platt([0.5, 0.5, 0.5], [True, False, False])[0] == 0.0
    factor, offset = fit_platt([1.0, 2.0], [True, True])
    assert math.isfinite(factor)
    assert 1 / (1 + math.exp(-(factor * 1.5 + offset))) == pytest.approx(0.75, abs=0.01)  # (2 + 1) / (2 + 2)
    with pytest.raises(ValueError, match="must be finite"):
        fit_platt([math.nan, 1.0], [True, False])
    with pytest.raises(ValueError, match="equal length"):
        fit_platt([], [])


def test_brier_is_the_mean_squared_distance() -> None:
    assert brier([0.8, 0.4, 1.0], [True, False, False]) == pytest.approx((0.04 + 0.16 + 1.0) / 3)
    assert brier([0.3] * 10, [True] * 3 + [False] * 7) == pytest.approx(0.3 * 0.7)
    assert brier([], []) == 0.0
