"""Figures of pairs against plain loops and scipy; ceilings that nothing exceeds; thresholds chosen as no other is better."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hanzoo.evaluation import matching
from hanzoo.evaluation.matching import (
    accuracy_of,
    alignment,
    auc,
    bootstrap_difference,
    choose_threshold,
    f1_of,
    judge,
    majority_rate,
    outcome_counts,
    pearson,
    score_pairs,
    spearman,
    spearman_ceiling,
    uniformity,
)
from hanzoo.evaluation.significance import compare
from tests.references import matching_figures as reference

GRADES = st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), min_size=2, max_size=12)
BINARY = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=12)
BOTH_CLASSES = BINARY.filter(lambda rows: len({label for label, _ in rows}) == 2)


def columns(rows: list[tuple[int, int]]) -> tuple[list[float], list[float]]:
    return [float(label) for label, _ in rows], [score / 4 for _, score in rows]


@given(GRADES)
@settings(max_examples=60, deadline=None)
def test_correlations_are_those_of_the_definition(rows: list[tuple[int, int]]) -> None:
    gold, scores = columns(rows)
    assert spearman(gold, scores) == pytest.approx(reference.spearman(gold, scores), abs=1e-12)
    assert pearson(gold, scores) == pytest.approx(reference.pearson(gold, scores), abs=1e-12)


def test_correlations_are_those_of_scipy() -> None:
    generator = np.random.default_rng(0)
    gold = generator.integers(6, size=500)
    scores = gold + generator.normal(scale=3, size=500).round(1)
    assert spearman(gold, scores) == pytest.approx(stats.spearmanr(gold, scores).statistic, abs=1e-12)
    assert pearson(gold, scores) == pytest.approx(stats.pearsonr(gold, scores).statistic, abs=1e-12)
    # Ties are not broken by their place: that would be another figure.
    by_place = np.corrcoef(np.argsort(np.argsort(gold, kind="stable")), np.argsort(np.argsort(scores)))[0, 1]
    assert abs(spearman(gold, scores) - by_place) > 1e-3


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_the_unit_of_scores_does_not_matter(scale: float) -> None:
    gold, scores = [0, 1, 2, 5], np.array([0.1, 0.5, 0.3, 0.9])
    assert pearson(gold, scores * scale) == pytest.approx(pearson(gold, scores), abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=6))
@settings(max_examples=40, deadline=None)
def test_the_ceiling_is_the_best_of_all_orders(rows: list[tuple[int, int]]) -> None:
    gold, scores = columns(rows)
    assert spearman_ceiling(gold, scores) == pytest.approx(reference.highest_spearman(gold, scores), abs=1e-12)
    distinct = [float(place) for place in range(len(gold))]
    assert spearman_ceiling(gold) == pytest.approx(reference.highest_spearman(gold, distinct), abs=1e-12)
    assert spearman(gold, scores) <= spearman_ceiling(gold, scores) + 1e-12


@pytest.mark.parametrize(("ones", "ceiling"), [(500, 0.866), (310, 0.801), (182, 0.668)])
def test_the_ceiling_of_two_classes_is_the_known_one(ones: int, ceiling: float) -> None:
    gold = np.arange(1000) < ones
    share = ones / 1000
    assert spearman_ceiling(gold) == pytest.approx(math.sqrt(3 * share * (1 - share)), abs=1e-3)
    assert spearman_ceiling(gold) == pytest.approx(ceiling, abs=1e-3)
    assert spearman(gold, -np.arange(1000)) == pytest.approx(spearman_ceiling(gold)), "a perfect order reaches it"
    assert spearman_ceiling(gold, gold) == pytest.approx(1.0), "scores with the same ties reach more"


def test_the_ceiling_is_the_closed_form_of_ties() -> None:
    counts = (241, 193, 261, 330, 239, 97)  # the Chinese STS-B's test
    gold = np.repeat(np.arange(6), counts)
    total = sum(counts)
    closed = math.sqrt(1 - sum(count**3 - count for count in counts) / (total**3 - total))
    assert spearman_ceiling(gold) == pytest.approx(closed, abs=1e-12)
    assert 0.97 < closed < 0.99


@given(BOTH_CLASSES)
@settings(max_examples=60, deadline=None)
def test_auc_counts_ties_half(rows: list[tuple[int, int]]) -> None:
    gold, scores = columns(rows)
    assert auc(gold, scores) == pytest.approx(reference.auc(gold, scores), abs=1e-12)
    assert auc(gold, [-score for score in scores]) == pytest.approx(1 - auc(gold, scores), abs=1e-12)


def test_auc_of_constant_scores_is_a_half() -> None:
    assert auc([0, 1, 1], [3, 3, 3]) == 0.5
    assert auc([0, 1, 1], [3, 3, 4]) == 0.75


@given(BINARY, st.sampled_from(["accuracy", "f1"]))
@settings(max_examples=80, deadline=None)
def test_no_threshold_is_better_than_the_chosen_one(rows: list[tuple[int, int]], chosen_for: str) -> None:
    gold, scores = columns(rows)
    chosen = choose_threshold(gold, scores, chosen_for)  # type: ignore[arg-type]
    best = reference.best_figure(gold, scores, chosen_for)
    assert chosen.figure == pytest.approx(best, abs=1e-12)
    assert reference.figure(gold, scores, chosen.value, chosen_for) == pytest.approx(best, abs=1e-12)
    higher = [score for score in scores if score > chosen.value]
    for threshold in [*higher, math.inf]:
        called = [score >= threshold for score in scores]
        if called != [score >= chosen.value for score in scores]:
            assert reference.figure(gold, scores, threshold, chosen_for) < best + 1e-12
    outcomes = judge(gold, scores, chosen.value)
    expected = reference.outcomes(gold, scores, chosen.value)
    assert (outcomes.true_positives, outcomes.false_positives, outcomes.false_negatives, outcomes.true_negatives) == (
        expected
    )
    assert outcomes.accuracy == pytest.approx(reference.figure(gold, scores, chosen.value, "accuracy"))
    assert outcomes.f1 == pytest.approx(reference.figure(gold, scores, chosen.value, "f1"))


def test_a_threshold_lies_midway_and_holds_between_neighbours() -> None:
    assert choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.8]).value == pytest.approx(0.4)
    low = 0.5
    high = np.nextafter(low, 1)
    chosen = choose_threshold([0, 1], [low, high])
    assert (chosen.value, chosen.figure) == (high, 1.0)
    # All alike: between equal scores there is no threshold, and the majority is what remains.
    assert choose_threshold([0, 1, 0], [0.5, 0.5, 0.5]).figure == pytest.approx(2 / 3)
    assert choose_threshold([0, 0], [0.3, 0.4]).value > 0.4
    assert choose_threshold([1, 1], [0.3, 0.4]).value <= 0.3


def test_a_threshold_chosen_on_the_scored_data_is_better_than_it_should_be() -> None:
    generator = np.random.default_rng(1)
    gaps = []
    for _ in range(40):
        gold, scores = generator.integers(2, size=(2, 40)), generator.normal(size=(2, 40))
        on_dev = choose_threshold(gold[0], scores[0])
        gaps.append(choose_threshold(gold[1], scores[1]).figure - judge(gold[1], scores[1], on_dev.value).accuracy)
    assert min(gaps) >= 0
    assert np.mean(gaps) > 0.05, "scores that tell nothing: what the choice alone buys"


def test_all_figures_of_pairs() -> None:
    gold, scores = [0, 0, 1, 1, 0], [0.1, 0.7, 0.6, 0.9, 0.2]
    found = score_pairs(gold, scores, two_classes=True, accuracy_threshold=0.5, f1_threshold=0.95)
    assert (found.pairs, found.majority, found.accuracy, found.f1) == (5, 0.6, 0.8, 0.0)
    found = score_pairs(gold, scores, two_classes=True, accuracy_threshold=0.95, f1_threshold=0.5)
    assert (found.accuracy, found.f1) == (0.6, pytest.approx(0.8))
    assert found.auc == pytest.approx(5 / 6)
    assert found.spearman == pytest.approx(stats.spearmanr(gold, scores).statistic)
    assert found.constant == ""
    assert json.loads(json.dumps(found.to_json())) == found.to_json()
    graded = score_pairs([0, 3, 5], [1, 2, 3])
    assert graded.spearman == graded.spearman_ceiling == pytest.approx(1.0)
    assert (graded.auc, graded.accuracy) == (None, None)
    assert "auc" not in graded.to_json()


def test_what_is_constant_is_said_and_not_nan() -> None:
    found = score_pairs([0, 1, 1], [0.3, 0.3, 0.3], two_classes=True, accuracy_threshold=0.5)
    assert (found.spearman, found.pearson, found.constant, found.auc) == (0.0, 0.0, "scores", 0.5)
    found = score_pairs([1, 1], [0.3, 0.7], two_classes=True)
    assert (found.spearman, found.spearman_ceiling, found.constant, found.auc) == (0.0, 0.0, "gold", None)


def test_outcomes_of_single_pairs_are_what_significance_compares() -> None:
    gold, scores = np.array([0, 1, 1, 0, 1, 0]), np.array([0.2, 0.8, 0.1, 0.9, 0.7, 0.1])
    counts = outcome_counts(gold, scores, 0.5)
    assert counts.shape == (6, 4)
    assert (counts.sum(axis=1) == 1).all()
    outcomes = judge(gold, scores, 0.5)
    assert float(accuracy_of(counts.sum(axis=0))) == pytest.approx(outcomes.accuracy)
    assert float(f1_of(counts.sum(axis=0))) == pytest.approx(outcomes.f1)
    other = outcome_counts(gold, -scores, 0.5)
    comparison = compare(counts[None], other[None], accuracy_of, seed=0, rounds=50)
    assert comparison.difference == pytest.approx(outcomes.accuracy - judge(gold, -scores, 0.5).accuracy)


def test_the_difference_of_two_systems_is_drawn_over_the_same_pairs() -> None:
    draws = np.random.default_rng(2)
    gold = draws.integers(6, size=120)
    hard = draws.normal(scale=3, size=120)  # both sides err on the same pairs
    first = np.stack([gold + hard + draws.normal(scale=0.2, size=120) for _ in range(2)])
    second = np.stack([gold + 1.3 * hard + draws.normal(scale=0.2, size=120) for _ in range(2)])
    difference, (low, high) = bootstrap_difference(gold, first, second, seed=0, rounds=200)
    expected = np.mean([spearman(gold, one) for one in first]) - np.mean([spearman(gold, one) for one in second])
    assert difference == pytest.approx(float(expected))
    assert 0 < low < difference < high
    assert bootstrap_difference(gold, first, second, seed=0, rounds=200) == (difference, (low, high))
    assert bootstrap_difference(gold, first, second, seed=1, rounds=200)[1] != (low, high)
    # Drawn apart the sides would differ by much more.
    single = [spearman(gold[rows], first[0][rows]) for rows in draws.integers(120, size=(200, 120))]
    assert high - low < np.subtract(*np.percentile(single, [97.5, 2.5])) / 2
    # The same scores in another unit are the same system.
    assert bootstrap_difference(gold, first, 5 * first, pearson, seed=0, rounds=20) == (
        pytest.approx(0, abs=1e-12),
        (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12)),
    )
    with pytest.raises(ValueError, match=r"scores must be \(num_models, 120\), .* but are \(120,\)"):
        bootstrap_difference(gold, first[0], second, seed=0)
    with pytest.raises(ValueError, match="rounds must be at least 1, but is 0"):
        bootstrap_difference(gold, first, second, seed=0, rounds=0)


@pytest.mark.parametrize("num_texts", [2, 7])
@pytest.mark.parametrize("at_once", [3, 1000])
def test_alignment_and_uniformity_are_those_of_the_definition(
    num_texts: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_ROWS_AT_ONCE", at_once)
    first, second = np.random.default_rng(num_texts).normal(size=(2, num_texts, 5))
    for alpha in (1.0, 2.0):
        assert alignment(first, second, alpha) == pytest.approx(
            reference.alignment(first.tolist(), second.tolist(), alpha)
        )
    for t in (2.0, 3.0):
        assert uniformity(first, t) == pytest.approx(reference.uniformity(first.tolist(), t), abs=1e-12)
    # Lengths have no part in it, and a text does not stand beside itself.
    assert uniformity(3 * first) == pytest.approx(uniformity(first), abs=1e-12)
    assert alignment(first, -first) == pytest.approx(4.0)
    with_itself = np.exp(-2 * np.linalg.norm(first[:, None] - first, axis=-1) ** 2).mean()
    assert abs(uniformity(first) - np.log(with_itself)) > 1e-3


def test_a_collapsed_model_is_aligned_and_not_uniform() -> None:
    collapsed = np.ones((4, 3))
    assert alignment(collapsed, collapsed) == pytest.approx(0.0, abs=1e-12)
    assert uniformity(collapsed) == pytest.approx(0.0, abs=1e-12)
    assert uniformity(np.concatenate([np.eye(3), -np.eye(3)])) < -3


def test_majority_rate() -> None:
    assert majority_rate([0, 0, 1]) == pytest.approx(2 / 3)
    assert majority_rate([3.0]) == 1.0


@pytest.mark.parametrize(
    ("gold", "scores", "said"),
    [
        ([0, 1], [0.5], r"one number a pair, .* \(2,\) and \(1,\)"),
        ([], [], "one pair at least"),
        ([0, 1], [0.5, math.nan], "must be finite, but some are NaN"),
    ],
)
def test_what_cannot_be_scored_is_refused(gold: list[float], scores: list[float], said: str) -> None:
    for function in (pearson, spearman, spearman_ceiling, auc, choose_threshold):
        with pytest.raises(ValueError, match=said):
            function(gold, scores)


def test_classes_are_0_and_1() -> None:
    for function in (auc, choose_threshold):
        with pytest.raises(ValueError, match="must hold the classes 0 and 1, but holds 2"):
            function([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="both classes, but holds 2 ones and 0 zeros"):
        auc([1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="a threshold must be None"):
        score_pairs([0, 3], [0.1, 0.2], f1_threshold=0.5)
    with pytest.raises(ValueError, match="threshold must be a number"):
        judge([0, 1], [0.1, 0.2], math.nan)
    with pytest.raises(ValueError, match="finite and not zero"):
        alignment(np.zeros((1, 2)), np.ones((1, 2)))
    with pytest.raises(ValueError, match="one shape"):
        alignment(np.ones((1, 2)), np.ones((2, 2)))
    with pytest.raises(ValueError, match="at least 2 texts"):
        uniformity(np.ones((1, 2)))
