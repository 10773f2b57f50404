from __future__ import annotations

import json
import random
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.scheme import IOB2, IOBES

from hanzoo.data.document import Span
from hanzoo.evaluation.tagging import (
    Counts,
    bootstrap_interval,
    legal_rate,
    score_entities,
    score_where,
)

SCHEMES = {"BIO": IOB2, "BIOES": IOBES}


def tags_of(spans: list[Span], length: int, scheme: str) -> list[str]:
    tags = ["O"] * length
    for start, end, label in spans:
        tags[start:end] = [f"B-{label}"] + [f"I-{label}"] * (end - start - 1)
        if scheme == "BIOES":
            tags[end - 1] = f"{'S' if end - start == 1 else 'E'}-{label}"
    return tags


@st.composite
def sentences(draw: st.DrawFn) -> tuple[list[int], list[list[Span]], list[list[Span]]]:
    """Lengths, gold and predictions of a few sentences; predictions are often right and often almost right."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    label = st.sampled_from(["人", "LOC", "ORG"])

    def flat(length: int) -> list[Span]:
        spans, position = [], 0
        while position < length:
            size = draw(st.integers(0, min(3, length - position)))
            if size:
                spans.append(Span(position, position + size, draw(label)))
            position += max(size, 1)
        return spans

    gold = [flat(length) for length in lengths]
    predicted = [spans if draw(st.booleans()) else flat(length) for spans, length in zip(gold, lengths, strict=True)]
    return lengths, gold, predicted


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
@settings(max_examples=80)
@given(case=sentences())
def test_equals_seqeval_strict(scheme: str, case: tuple[list[int], list[list[Span]], list[list[Span]]]) -> None:
    lengths, gold, predicted = case
    scores = score_entities(gold, predicted)
    gold_tags = [tags_of(spans, n, scheme) for spans, n in zip(gold, lengths, strict=True)]
    predicted_tags = [tags_of(spans, n, scheme) for spans, n in zip(predicted, lengths, strict=True)]
    strict = {"mode": "strict", "scheme": SCHEMES[scheme], "zero_division": 0}
    assert scores.f1 == pytest.approx(f1_score(gold_tags, predicted_tags, **strict), abs=1e-12)
    assert scores.precision == pytest.approx(precision_score(gold_tags, predicted_tags, **strict), abs=1e-12)
    assert scores.recall == pytest.approx(recall_score(gold_tags, predicted_tags, **strict), abs=1e-12)
    if any(gold) or any(predicted):
        assert scores.macro_f1 == pytest.approx(
            f1_score(gold_tags, predicted_tags, average="macro", **strict), abs=1e-12
        )
        report = classification_report(gold_tags, predicted_tags, output_dict=True, **strict)
        for label, counts in scores.per_label.items():
            assert counts.f1 == pytest.approx(report[label]["f1-score"], abs=1e-12)
            assert counts.true_positives + counts.false_negatives == report[label]["support"]


def test_differs_from_seqeval_where_tags_are_repaired() -> None:
    # Control: seqeval's default mode reads I-X after O as an entity; the strict scorer gets no span from it.
    gold = [[Span(0, 2, "X")]]
    assert score_entities(gold, [[]]).f1 == 0.0
    assert f1_score([["B-X", "I-X", "O"]], [["I-X", "I-X", "O"]]) == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert f1_score([["B-X", "I-X", "O"]], [["I-X", "I-X", "O"]], mode="strict", scheme=IOB2) == 0.0


def test_counts_by_hand() -> None:
    gold = [[Span(0, 2, "name"), Span(3, 5, "company")], [], [Span(0, 1, "name")]]
    predicted = [
        [Span(0, 2, "name"), Span(3, 6, "company"), Span(0, 2, "name")],  # right, wrong border, said twice
        [Span(1, 2, "scene")],
        [Span(0, 1, "book")],
    ]
    scores = score_entities(gold, predicted)
    assert scores.micro == Counts(true_positives=1, false_positives=3, false_negatives=2)
    assert scores.per_label == {
        "book": Counts(0, 1, 0),
        "company": Counts(0, 1, 1),
        "name": Counts(1, 0, 1),
        "scene": Counts(0, 1, 0),
    }
    assert (scores.precision, scores.recall, scores.f1) == (1 / 4, 1 / 3, 2 / 7)
    assert scores.macro_f1 == pytest.approx((2 / 3) / 4)
    assert (scores.num_gold, scores.num_predicted, scores.sentences) == (3, 4, 3)


def test_the_same_span_in_another_sentence_does_not_count() -> None:
    assert score_entities([[Span(0, 1, "X")], []], [[], [Span(0, 1, "X")]]).micro == Counts(0, 1, 1)


def test_overlapping_gold_counts_whole() -> None:
    gold = [[Span(0, 4, "ORG"), Span(0, 2, "LOC")]]
    assert score_entities(gold, [[Span(0, 4, "ORG")]]).micro == Counts(1, 0, 1)


@pytest.mark.parametrize("spans", [[], [[]], [[], []]])
def test_nothing_at_all_is_zero(spans: list[list[Span]]) -> None:
    scores = score_entities(spans, spans)
    assert (scores.precision, scores.recall, scores.f1, scores.macro_f1) == (0.0, 0.0, 0.0, 0.0)
    assert scores.per_label == {}


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"predicted must hold one entry a gold sentence \(2\), but holds 1"):
        score_entities([[], []], [[]])
    with pytest.raises(ValueError, match=r"keep must hold one value a sentence \(2\), but holds 3"):
        score_where([[], []], [[], []], [True, True, False])


def test_score_where_sees_the_kept_sentences_only() -> None:
    gold = [[Span(0, 1, "X")], [Span(0, 1, "X")], [Span(0, 1, "Y")]]
    predicted = [[Span(0, 1, "X")], [], [Span(0, 1, "X")]]
    assert score_where(gold, predicted, [True, False, True]) == score_entities(
        [gold[0], gold[2]], [predicted[0], predicted[2]]
    )
    assert score_where(gold, predicted, [True, False, False]).f1 == 1.0
    assert score_entities(gold, predicted).f1 != 1.0


def test_json_holds_floats_and_counts() -> None:
    scores = score_entities([[Span(0, 1, "人名")]], [[Span(0, 1, "人名"), Span(1, 2, "人名")]])
    told = json.loads(json.dumps(scores.to_json()))
    assert told["precision"] == 0.5
    assert told["f1"] == pytest.approx(2 / 3)
    assert told["per_label"]["人名"]["false_positives"] == 1
    assert (told["sentences"], told["num_gold"], told["num_predicted"], told["num_correct"]) == (1, 1, 2, 1)


def test_legal_rate() -> None:
    assert legal_rate([0, 0, 2, 0]) == 0.75
    assert legal_rate([0, 0]) == 1.0
    assert legal_rate([]) == 1.0


def random_case(num_sentences: int, accuracy: float) -> tuple[list[list[Span]], list[list[Span]]]:
    generator = random.Random(7)
    gold = [[Span(3 * k, 3 * k + 2, "X") for k in range(generator.randrange(4))] for _ in range(num_sentences)]
    predicted = [
        [s if generator.random() < accuracy else Span(s.start, s.end + 1, s.label) for s in spans] for spans in gold
    ]
    return gold, predicted


def test_bootstrap_interval_holds_the_figure_and_narrows() -> None:
    gold, predicted = random_case(400, 0.7)
    low, high = bootstrap_interval(gold, predicted, seed=1)
    f1 = score_entities(gold, predicted).f1
    assert low < f1 < high
    # A gold entity is right or wrong on its own here, so the binomial rule says how wide the interval has to be.
    num_gold = sum(map(len, gold))
    assert high - low == pytest.approx(2 * 1.96 * (f1 * (1 - f1) / num_gold) ** 0.5, rel=0.15)
    few_low, few_high = bootstrap_interval(gold[:40], predicted[:40], seed=1)
    assert few_high - few_low > 2 * (high - low)


def test_bootstrap_interval_is_a_function_of_seed_and_input() -> None:
    gold, predicted = random_case(60, 0.5)
    first = bootstrap_interval(gold, predicted, seed=3)
    assert bootstrap_interval(gold, predicted, seed=3) == first
    assert bootstrap_interval(gold, predicted, seed=4) != first
    assert bootstrap_interval(gold, gold, seed=3, samples=50) == (1.0, 1.0)
    assert bootstrap_interval([[]], [[]], seed=3, samples=5) == (0.0, 0.0)


def test_bootstrap_interval_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(ValueError, match="at least one sentence"):
        bootstrap_interval([], [], seed=1)
    with pytest.raises(ValueError, match="samples must be at least 1, but is 0"):
        bootstrap_interval([[]], [[]], seed=1, samples=0)
