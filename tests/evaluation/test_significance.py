"""Fast against slow; right under the null hypothesis; and seeds that are exchanged together."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hanzoo.data.document import Span
from hanzoo.evaluation import significance
from hanzoo.evaluation.significance import approximate_randomisation, compare, paired_bootstrap
from hanzoo.evaluation.tagging import micro_f1, score_entities, sentence_counts
from tests.references import significance as reference


def random_counts(generator: np.random.Generator, num_models: int, num_sentences: int, share: float) -> np.ndarray:
    """(models, sentences, 3): 3 gold entities a sentence, each found with probability `share`, some spurious ones."""
    found = generator.binomial(3, share, size=(num_models, num_sentences))
    return np.stack([found, generator.integers(3, size=found.shape), 3 - found], axis=-1)


def listed(counts: np.ndarray) -> list[list[reference.Counts]]:
    return [[tuple(sentence) for sentence in model] for model in counts.tolist()]


@pytest.mark.parametrize("num_models", [1, 3])
@pytest.mark.parametrize("case", range(4))
def test_the_p_value_is_that_of_all_exchanges(num_models: int, case: int) -> None:
    generator = np.random.default_rng([num_models, case])
    first = random_counts(generator, num_models, 8, 0.8)
    second = random_counts(generator, num_models, 8, (0.5, 0.6, 0.7, 0.8)[case])
    exact = reference.exact_p(listed(first), listed(second))
    p = approximate_randomisation(first, second, micro_f1, seed=case, rounds=20_000)
    spread = (exact * (1 - exact) / 20_000) ** 0.5
    assert abs(p - exact) < 4 * spread + 1 / 20_000
    assert approximate_randomisation(second, first, micro_f1, seed=case, rounds=20_000) == p, "two-sided"
    # Not any exchange gives this: sentences paired otherwise, or one model alone, give another p-value.
    shuffled = second[:, generator.permutation(8)]
    others = [
        reference.exact_p(listed(first), listed(shuffled)),
        reference.exact_p(listed(first[:1]), listed(second[:1])),
    ]
    assert any(abs(p - other) > 4 * spread + 1 / 20_000 for other in others)


@pytest.mark.parametrize("num_models", [1, 2])
def test_the_interval_is_that_of_all_draws(num_models: int) -> None:
    generator = np.random.default_rng(num_models)
    first, second = (random_counts(generator, num_models, 5, share) for share in (0.7, 0.4))
    draws = np.array(reference.all_draws(listed(first), listed(second)))
    low, high = paired_bootstrap(first, second, micro_f1, seed=0, rounds=20_000)
    assert low < reference.difference(listed(first), listed(second)) < high

    def is_percentile(value: float, share: float) -> bool:
        # 0.005: four standard errors of a share of 0.025 in 20,000 draws
        return bool(np.mean(draws < value - 1e-9) <= share + 0.005 and np.mean(draws <= value + 1e-9) >= share - 0.005)

    assert is_percentile(low, 0.025)
    assert is_percentile(high, 0.975)
    assert not is_percentile(low - 0.03, 0.025)
    assert not is_percentile(high, 0.95)


def test_the_draws_of_both_sides_are_paired() -> None:
    # The second side always finds one entity in ten less: whatever the sentences, which vary much, the difference hardly does.
    found = np.repeat([0, 100], 50)
    first = np.stack([found, 100 - found], axis=-1)[None]
    second = np.stack([found - found // 10, 100 - found + found // 10], axis=-1)[None]

    def accuracy(counts: np.ndarray) -> np.ndarray:
        return np.asarray(counts[..., 0] / counts.sum(axis=-1))

    comparison = compare(first, second, accuracy, seed=0, rounds=2000)
    assert comparison.difference == pytest.approx(0.05)
    low, high = comparison.interval
    assert 0.02 < low < 0.05 < high < 0.08
    assert comparison.p == pytest.approx(1 / 2001), "none of the exchanges gives as much"
    unpaired = paired_bootstrap(first, second[:, ::-1], accuracy, seed=0, rounds=2000)
    assert unpaired[0] < -0.05
    assert unpaired[1] > 0.15


def null_p_values(num_models: int, *, together: bool) -> np.ndarray:
    """400 p-values of two sides that do not differ; the models of a side err on the same sentences."""
    generator = np.random.default_rng(5)
    values = []
    for case in range(400):
        sides = []
        for _ in range(2):
            hard = generator.beta(0.5, 0.5, size=60)
            found = generator.binomial(3, hard, size=(num_models, 60))
            sides.append(np.stack([found, np.zeros_like(found), 3 - found], axis=-1))
        one, other = sides if together else (side.reshape(1, -1, 3) for side in sides)
        values.append(approximate_randomisation(one, other, micro_f1, seed=case, rounds=199))
    return np.array(values)


@pytest.mark.parametrize("num_models", [1, 4])
def test_under_the_null_hypothesis_p_values_are_uniform(num_models: int) -> None:
    values = null_p_values(num_models, together=True)
    for level in (0.05, 0.2, 0.5, 0.8):
        assert abs(np.mean(values <= level) - level) < 4 * (level * (1 - level) / 400) ** 0.5


def test_seeds_that_are_exchanged_one_by_one_would_give_too_small_p_values() -> None:
    assert np.mean(null_p_values(4, together=False) <= 0.05) > 0.15


def test_a_comparison_of_entities_is_one_of_their_figures() -> None:
    gold = [[Span(0, 2, "X"), Span(3, 4, "Y")], [], [Span(1, 2, "X")], [Span(0, 1, "Y")]]
    first = [[Span(0, 2, "X")], [Span(0, 1, "X")], [Span(1, 2, "X"), Span(1, 2, "X")], [Span(0, 1, "Y")]]
    second = [[Span(0, 2, "Y")], [], [Span(1, 2, "X")], []]
    one, other = (sentence_counts(gold, spans)[None] for spans in (first, second))
    scores = score_entities(gold, first)
    assert one.sum(axis=(0, 1)).tolist() == [
        scores.micro.true_positives,
        scores.micro.false_positives,
        scores.micro.false_negatives,
    ]
    comparison = compare(one, other, micro_f1, seed=0, rounds=500)
    assert comparison.difference == scores.f1 - score_entities(gold, second).f1 > 0
    assert json.loads(json.dumps(comparison.to_json())) == {
        "difference": comparison.difference,
        "interval": list(comparison.interval),
        "p": comparison.p,
        "rounds": 500,
    }
    assert micro_f1(np.zeros((2, 3))).tolist() == [0.0, 0.0]


def test_a_system_does_not_differ_from_itself() -> None:
    counts = random_counts(np.random.default_rng(0), 2, 30, 0.5)
    comparison = compare(counts, counts, micro_f1, seed=0, rounds=100)
    assert (comparison.difference, comparison.interval, comparison.p) == (0.0, (0.0, 0.0), 1.0)


def test_the_result_is_a_function_of_seed_and_input_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    first, second = (random_counts(generator, 2, 67, share) for share in (0.5, 0.55))
    found = compare(first, second, micro_f1, seed=3, rounds=300)
    assert compare(first, second, micro_f1, seed=4, rounds=300) != found
    monkeypatch.setattr(significance, "_NUMBERS_AT_ONCE", 67 * 7)
    assert compare(first, second, micro_f1, seed=3, rounds=300) == found
    monkeypatch.setattr(significance, "_NUMBERS_AT_ONCE", 1)  # more sentences than are allowed: one round at a time
    assert compare(first, second, micro_f1, seed=3, rounds=300) == found


def test_what_cannot_be_paired_is_refused() -> None:
    counts = np.ones((2, 5, 3))
    with pytest.raises(ValueError, match=r"second must have the shape of first, \(2, 5, 3\), but has \(1, 5, 3\)"):
        compare(counts, counts[:1], micro_f1, seed=0)
    with pytest.raises(ValueError, match=r"first must be \(models, sentences, counts\)"):
        paired_bootstrap(counts[:, :0], counts[:, :0], micro_f1, seed=0)
    with pytest.raises(ValueError, match="rounds must be at least 1, but is 0"):
        approximate_randomisation(counts, counts, micro_f1, seed=0, rounds=0)
