from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanzoo.data.document import Document, Span
from hanzoo.evaluation.error_report import (
    KINDS,
    SEEN,
    SEEN_OTHERWISE,
    UNSEEN,
    EntityError,
    classify_errors,
    error_report,
    mentions_in,
)
from hanzoo.evaluation.tagging import Counts, score_entities

spans = st.lists(
    st.builds(
        lambda start, size, label: Span(start, start + size, label),
        st.integers(0, 12),
        st.integers(1, 5),
        st.sampled_from("XYZ"),
    ),
    max_size=8,
)


def kinds_of(gold: list[Span], predicted: list[Span]) -> list[str]:
    return [error.kind for error in classify_errors(gold, predicted)[1]]


@pytest.mark.parametrize(
    ("gold", "predicted", "kinds"),
    [
        ([Span(0, 2, "X")], [Span(0, 2, "X")], []),
        ([Span(0, 2, "X")], [Span(0, 2, "Y")], ["type"]),
        ([Span(0, 2, "X")], [Span(1, 2, "X")], ["boundary"]),
        ([Span(0, 2, "X")], [Span(1, 4, "Y")], ["both"]),
        ([Span(0, 2, "X")], [], ["missed"]),
        ([], [Span(0, 2, "X")], ["spurious"]),
        ([Span(0, 2, "X")], [Span(2, 4, "X")], ["missed", "spurious"]),  # neighbours do not overlap
        ([Span(2, 4, "X")], [Span(0, 2, "X")], ["spurious", "missed"]),
    ],
)
def test_each_class(gold: list[Span], predicted: list[Span], kinds: list[str]) -> None:
    assert kinds_of(gold, predicted) == kinds


def test_right_ones_are_used_up_first() -> None:
    # The gold Y overlaps a prediction, but that one is right elsewhere and pairs with nothing else.
    right, errors = classify_errors([Span(0, 4, "X"), Span(2, 4, "Y")], [Span(0, 4, "X")])
    assert right == [Span(0, 4, "X")]
    assert errors == [EntityError("missed", Span(2, 4, "Y"), None)]


def test_same_borders_win_over_the_same_label() -> None:
    _, errors = classify_errors([Span(0, 2, "X"), Span(0, 4, "Y")], [Span(0, 2, "Y")])
    assert errors == [
        EntityError("type", Span(0, 2, "X"), Span(0, 2, "Y")),
        EntityError("missed", Span(0, 4, "Y"), None),
    ]


def test_the_largest_overlap_wins_and_one_prediction_pairs_once() -> None:
    _, errors = classify_errors([Span(0, 2, "X"), Span(2, 5, "X")], [Span(0, 5, "X")])
    assert errors == [
        EntityError("missed", Span(0, 2, "X"), None),
        EntityError("boundary", Span(2, 5, "X"), Span(0, 5, "X")),
    ]


def test_ties_go_to_the_same_label_then_to_the_shorter_rest() -> None:
    _, errors = classify_errors([Span(2, 4, "X")], [Span(0, 3, "Y"), Span(3, 6, "X")])
    assert errors == [
        EntityError("spurious", None, Span(0, 3, "Y")),
        EntityError("boundary", Span(2, 4, "X"), Span(3, 6, "X")),
    ]
    _, errors = classify_errors([Span(2, 4, "X")], [Span(0, 3, "X"), Span(3, 5, "X")])
    assert errors[1] == EntityError("boundary", Span(2, 4, "X"), Span(3, 5, "X"))


@settings(max_examples=300)
@given(gold=spans, predicted=spans, shuffle=st.randoms(use_true_random=False))
def test_classes_reconcile_with_the_strict_scorer(
    gold: list[Span], predicted: list[Span], shuffle: random.Random
) -> None:
    right, errors = classify_errors(gold, predicted)
    counts = score_entities([gold], [predicted]).micro
    assert len(right) == counts.true_positives
    assert sum(error.gold is not None for error in errors) == counts.false_negatives
    assert sum(error.predicted is not None for error in errors) == counts.false_positives
    assert sorted([*right, *(e.gold for e in errors if e.gold)]) == sorted(set(gold))  # each once, none lost
    assert sorted([*right, *(e.predicted for e in errors if e.predicted)]) == sorted(set(predicted))
    missed = [error.gold for error in errors if error.kind == "missed"]
    spurious = [error.predicted for error in errors if error.kind == "spurious"]
    # What is left on both sides never overlaps: it would have been a pair.
    assert all(m.end <= s.start or s.end <= m.start for m in missed if m for s in spurious if s)
    shuffle.shuffle(gold)
    shuffle.shuffle(predicted)
    assert classify_errors(gold, predicted) == (right, errors)


@settings(max_examples=100)
@given(pairs=st.lists(st.tuples(spans, spans), max_size=5), examples=st.integers(0, 3))
def test_every_table_sums_to_the_whole(pairs: list[tuple[list[Span], list[Span]]], examples: int) -> None:
    texts = ["甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午", "一" * 30]
    documents = [Document(texts[i % 2], tuple(sorted(set(gold))), f"f:{i}") for i, (gold, _) in enumerate(pairs)]
    predicted = [said for _, said in pairs]
    train = {("甲乙", "X"), ("一", "Y"), ("一一", "Z")}
    report = error_report(documents, predicted, train, examples=examples)
    strict = score_entities([document.spans for document in documents], predicted)
    assert report.counts == strict.micro
    for table in (report.by_entity_length, report.by_sentence_length, report.by_seen):
        assert sum(c.true_positives for c in table.values()) == strict.micro.true_positives
        assert sum(c.false_positives for c in table.values()) == strict.micro.false_positives
        assert sum(c.false_negatives for c in table.values()) == strict.micro.false_negatives
    kinds = report.kinds
    paired = kinds["boundary"] + kinds["type"] + kinds["both"]
    assert paired + kinds["missed"] == strict.micro.false_negatives
    assert paired + kinds["spurious"] == strict.micro.false_positives
    for kind in KINDS:
        assert kinds[kind] == sum(row[kind] for row in report.by_label.values())
        assert kinds[kind] == sum(c.count for c in report.confusions if c.kind == kind)
    for label, row in report.by_label.items():
        gold_errors = sum(row[kind] for kind in KINDS if kind != "spurious")
        assert row["gold"] == row["right"] + gold_errors
        if label in strict.per_label:
            counts = strict.per_label[label]
            assert row["right"] == counts.true_positives
            assert row["gold"] == counts.true_positives + counts.false_negatives
    pairs_by_labels = sum(n for row in report.label_confusion.values() for n in row.values())
    assert pairs_by_labels == strict.micro.true_positives + paired
    assert all(len(c.examples) == min(examples, c.count) for c in report.confusions)
    assert [c.count for c in report.confusions] == sorted((c.count for c in report.confusions), reverse=True)
    assert json.loads(json.dumps(report.to_json()))["kinds"] == kinds


TEXT = "浙商银行企业信贷部叶老桂博士则从另一个角度对五道门槛进行了解读。"
DOCUMENTS = [
    Document(
        TEXT,
        (Span(0, 4, "company"), Span(4, 9, "organization"), Span(9, 12, "name"), Span(12, 14, "position")),
        "dev.json:1",
    ),
    Document("叶老桂说", (Span(0, 3, "name"),), "dev.json:2"),
    Document("没有", (), "dev.json:3"),
]
PREDICTED = [
    [Span(0, 4, "organization"), Span(4, 9, "organization"), Span(9, 14, "name")],
    [Span(0, 4, "name")],
    [Span(0, 1, "scene")],
]


def test_seen_in_train_by_hand() -> None:
    train = [
        Document("叶老桂去了企业信贷部", (Span(0, 3, "name"), Span(5, 10, "company"))),
    ]
    assert mentions_in(train) == {("叶老桂", "name"), ("企业信贷部", "company")}
    report = error_report(DOCUMENTS, PREDICTED, mentions_in(train))
    assert report.by_seen[SEEN] == Counts(0, 0, 2)  # both 叶老桂 of gold, found nowhere with the right borders
    assert report.by_seen[SEEN_OTHERWISE] == Counts(1, 0, 0)  # 企业信贷部, an organization here
    assert report.by_seen[UNSEEN] == Counts(0, 4, 2)
    assert error_report(DOCUMENTS, PREDICTED).by_seen == {}
    assert error_report(DOCUMENTS, PREDICTED, frozenset()).by_seen[UNSEEN] == report.counts


def test_lengths_by_hand() -> None:
    report = error_report(DOCUMENTS, PREDICTED)
    assert list(report.by_entity_length) == ["1", "2", "3-4", "5-8", "9+"]
    assert report.by_entity_length["1"] == Counts(0, 1, 0)
    assert report.by_entity_length["2"] == Counts(0, 0, 1)
    assert report.by_entity_length["3-4"] == Counts(0, 2, 3)
    assert report.by_entity_length["5-8"] == Counts(1, 1, 0)
    assert report.by_sentence_length["0-19"] == Counts(0, 2, 1)
    assert report.by_sentence_length["20-39"] == Counts(1, 2, 3)
    edges = [Document("字" * n, (Span(0, 1, "X"),)) for n in (19, 20, 249, 250)]
    by_length = error_report(edges, [[]] * 4).by_sentence_length
    assert [counts.false_negatives for counts in by_length.values()] == [1, 1, 0, 1, 1]


def test_confusions_hold_examples_with_their_place() -> None:
    report = error_report(DOCUMENTS, PREDICTED, examples=1)
    first = report.confusions[0]
    assert (first.kind, first.gold_label, first.predicted_label, first.count) == ("boundary", "name", "name", 2)
    (example,) = first.examples
    assert example.source == "dev.json:1"
    assert example.excerpt == "浙商银行企业信贷部【叶老桂博士】则从另一个角度对五道…"
    assert (example.gold, example.predicted) == ("叶老桂", "叶老桂博士")
    assert report.label_confusion["company"] == {"organization": 1}
    assert report.by_label["scene"] == {"gold": 0, "right": 0, **dict.fromkeys(KINDS, 0), "spurious": 1}


def test_examples_are_safe_to_print() -> None:
    text = "前\x1b[31m\t半\ud800字" + "长" * 200
    report = error_report([Document(text, (Span(0, 9, "X"),), "f:1")], [[Span(9, len(text), "Y")]])
    shown = report.render() + json.dumps(report.to_json(), ensure_ascii=False)
    shown.encode("utf-8")
    assert "\x1b" not in shown
    assert "\t" not in shown
    assert "长" * 41 not in shown


def columns(line: str) -> int:
    """Columns of a terminal, by the blocks that occur in this test."""
    return sum(2 if "\u4e00" <= c <= "\u9fff" or "\uff00" <= c <= "\uff60" else 1 for c in line)


def test_render_lines_up_wide_characters() -> None:
    documents = [Document("甲乙丙", (Span(0, 1, "人名"), Span(1, 2, "ORG"), Span(2, 3, "Ｗ类"))) for _ in range(12)]
    report = error_report(documents, [[Span(0, 1, "人名")]] * 12, frozenset())
    rendered = report.render()
    blocks = rendered.strip().split("\n\n")
    assert blocks[0] == "12 texts, 36 gold, 12 predicted, 12 right: P 100.0  R 33.3  F1 50.0"
    by_label = next(block for block in blocks if block.startswith("label")).split("\n")
    assert len(by_label) == 4
    assert len({columns(line) for line in by_label}) == 1
    assert len({len(line) for line in by_label}) > 1  # control: counted in characters they would not line up
    assert any(block.startswith("mention") for block in blocks)
    assert "missed ORG: 12\n" in rendered
    assert "missed" not in report.render(confusions=0).split("\n\n")[-1]


def test_render_without_anything() -> None:
    assert error_report([], []).render().startswith("0 texts, 0 gold, 0 predicted, 0 right: P 0.0  R 0.0  F1 0.0\n")


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"predicted must hold one entry a document \(3\), but holds 1"):
        error_report(DOCUMENTS, [[]])
