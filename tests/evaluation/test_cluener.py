from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from hanzoo.data.document import Span
from hanzoo.errors import DataError, StorageError
from hanzoo.evaluation.cluener import LABELS, official_scores, write_submission
from hanzoo.evaluation.tagging import Counts, score_entities
from tests.references.cluener_official import LineLabels, official_f1_of_type, official_macro_f1

TEXT = "浙商银行企业信贷部叶老桂博士则从另一个角度对五道门槛进行了解读。叶老桂认为，"

# Case of the table, gold, predicted, official counts by type, counts of the span scorer.
CASES = [
    (
        "twice in the sentence, predicted once",
        [Span(9, 12, "name"), Span(32, 35, "name")],
        [Span(9, 12, "name")],
        {"name": Counts(1, 0, 0)},
        Counts(1, 0, 1),
    ),
    (
        "predicted at the wrong occurrence only",
        [Span(9, 12, "name")],
        [Span(32, 35, "name")],
        {"name": Counts(1, 0, 0)},
        Counts(0, 1, 1),
    ),
    (
        "predicted twice, gold once",
        [Span(9, 12, "name")],
        [Span(9, 12, "name"), Span(32, 35, "name")],
        {"name": Counts(1, 0, 0)},
        Counts(1, 1, 0),
    ),
    (
        "one span with two types",
        [Span(0, 4, "company")],
        [Span(0, 4, "company"), Span(0, 4, "organization")],
        {"company": Counts(1, 0, 0), "organization": Counts(0, 1, 0)},
        Counts(1, 1, 0),
    ),
    (
        "a trailing character",
        [Span(0, 4, "company")],
        [Span(0, 5, "company")],
        {"company": Counts(0, 1, 1)},
        Counts(0, 1, 1),
    ),
    (
        "a type without predictions",
        [Span(9, 12, "name"), Span(12, 14, "position")],
        [],
        {"name": Counts(0, 0, 1), "position": Counts(0, 0, 1)},
        Counts(0, 0, 2),
    ),
]


@pytest.mark.parametrize(("case", "gold", "predicted", "official", "strict"), CASES, ids=[case[0] for case in CASES])
def test_counts_of_the_table(
    case: str, gold: list[Span], predicted: list[Span], official: dict[str, Counts], strict: Counts
) -> None:
    scores = official_scores([TEXT], [gold], [predicted])
    assert {label: counts for label, counts in scores.per_type.items() if counts != Counts()} == official
    assert score_entities([gold], [predicted]).micro == strict


def test_macro_is_over_all_ten_types() -> None:
    scores = official_scores([TEXT], [[Span(0, 4, "company")]], [[Span(0, 4, "company")]])
    assert scores.macro_f1 == pytest.approx(0.1)  # nine types without anything count as 0
    assert list(scores.per_type) == sorted(LABELS)
    assert len(LABELS) == 10
    told = json.loads(json.dumps(scores.to_json()))
    assert told["macro_f1"] == pytest.approx(0.1)
    assert told["per_type"]["company"]["f1"] == 1.0


def test_labels_beside_the_ten_have_no_part() -> None:
    told = official_scores([TEXT], [[Span(0, 4, "company")]], [[Span(0, 4, "company"), Span(9, 12, "PER")]])
    assert told == official_scores([TEXT], [[Span(0, 4, "company")]], [[Span(0, 4, "company")]])


def layout(text: str, spans: Sequence[Span]) -> LineLabels:
    line: LineLabels = {}
    for start, end, label in spans:
        line.setdefault(label, {}).setdefault(text[start:end], []).append([start, end - 1])
    return line


def test_equals_the_naive_reference() -> None:
    generator = random.Random(5)
    labels = LABELS[:9]  # so that one type is always empty

    def spans(length: int) -> list[Span]:
        drawn = set()
        for _ in range(generator.randrange(6)):
            start = generator.randrange(length)
            drawn.add(Span(start, min(length, start + generator.randint(1, 3)), generator.choice(labels)))
        return sorted(drawn)

    differs = 0
    for _ in range(60):
        texts = ["".join(generator.choices("甲乙丙", k=generator.randint(1, 12))) for _ in range(8)]
        gold = [spans(len(text)) for text in texts]
        predicted = [generator.choice([gold[i], spans(len(texts[i]))]) for i in range(len(texts))]
        scores = official_scores(texts, gold, predicted)
        gold_lines = [layout(*pair) for pair in zip(texts, gold, strict=True)]
        predicted_lines = [layout(*pair) for pair in zip(texts, predicted, strict=True)]
        assert scores.macro_f1 == pytest.approx(official_macro_f1(predicted_lines, gold_lines), abs=1e-12)
        for label in LABELS:
            reference = official_f1_of_type(predicted_lines, gold_lines, label)
            assert scores.per_type[label].f1 == pytest.approx(reference, abs=1e-12)
        differs += scores.macro_f1 != pytest.approx(score_entities(gold, predicted).macro_f1)
    assert differs > 30  # control: spans and mention strings are not the same count


def test_lengths_and_places_are_checked() -> None:
    with pytest.raises(ValueError, match=r"predicted must hold one entry a text \(1\), but holds 2"):
        official_scores([TEXT], [[]], [[], []])
    with pytest.raises(ValueError, match=r"gold must hold one entry a text \(1\), but holds 0"):
        official_scores([TEXT], [], [[]])
    with pytest.raises(ValueError, match=r"must lie in its text of 2 characters, but is \(1, 3, 'name'\)"):
        official_scores(["甲乙"], [[]], [[Span(1, 3, "name")]])


def test_submission_is_the_stated_layout(tmp_path: Path) -> None:
    path = tmp_path / "cluener_predict.json"
    spans = [Span(32, 35, "name"), Span(0, 4, "company"), Span(9, 12, "name"), Span(9, 12, "name")]
    write_submission(path, [7, 3], [TEXT, "没有"], [spans, []])
    assert path.read_bytes().decode("utf-8") == (
        '{"id": 7, "label": {"company": {"浙商银行": [[0, 3]]}, "name": {"叶老桂": [[9, 11], [32, 34]]}}}\n'
        '{"id": 3, "label": {}}\n'
    )
    assert list(tmp_path.iterdir()) == [path]


def test_submission_reads_back_as_what_was_predicted(tmp_path: Path) -> None:
    texts = [TEXT, "Ｌａｄｙ Gaga\t😀𠮷野家\u2028完", "半个\ud800字", '引"号\\n', ""]
    predicted = [
        [Span(0, 4, "company"), Span(9, 12, "name"), Span(9, 12, "position"), Span(32, 35, "name")],
        [Span(0, 9, "name"), Span(10, 14, "company"), Span(13, 15, "scene")],
        [Span(1, 3, "name"), Span(2, 3, "book")],
        [Span(0, 5, "book")],
        [],
    ]
    path = tmp_path / "out.json"
    write_submission(path, range(5), texts, predicted)
    lines = path.read_bytes().decode("utf-8").split("\n")
    assert lines.pop() == ""
    read = [json.loads(line) for line in lines]
    assert [line["id"] for line in read] == [0, 1, 2, 3, 4]
    back = []
    for text, line in zip(texts, read, strict=True):
        spans = []
        for label, mentions in line["label"].items():
            for mention, places in mentions.items():
                for start, last in places:
                    assert text[start : last + 1] == mention
                    spans.append(Span(start, last + 1, label))
        back.append(sorted(spans))
    assert back == predicted
    assert back != [[span._replace(end=span.end - 1) for span in spans] for spans in predicted]


@pytest.mark.parametrize("identifier", [None, "12", True, 1.0])
def test_submission_wants_integer_ids(tmp_path: Path, identifier: object) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(DataError, match="the id of text 2 must be an integer, but is"):
        write_submission(path, [0, identifier], ["甲", "乙"], [[], []])  # type: ignore[list-item]
    assert path.read_text() == "old"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")

    def no_room(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_room)
        with pytest.raises(StorageError, match=r"out\.json: must be written, but the disk is full"):
            write_submission(path, [0], ["甲"], [[]])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_submission(path, [0], ["甲"], [[]])
    assert path.read_text() != "old"


def test_a_missing_folder_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"the folder .*absent does not exist"):
        write_submission(tmp_path / "absent" / "out.json", [0], ["甲"], [[]])
    with pytest.raises(ValueError, match=r"ids must hold one entry a text \(1\), but holds 0"):
        write_submission(tmp_path / "out.json", [], ["甲"], [[]])


@pytest.mark.data
def test_gold_of_dev_counts_as_known() -> None:
    texts, gold = [], []
    with (Path(os.environ["HANZOO_DATA"]) / "cluener" / "dev.json").open(encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            texts.append(record["text"])
            gold.append(
                [
                    Span(start, last + 1, label)
                    for label, mentions in record["label"].items()
                    for places in mentions.values()
                    for start, last in places
                ]
            )
    scores = official_scores(texts, gold, gold)
    assert scores.macro_f1 == 1.0
    assert sum(counts.true_positives for counts in scores.per_type.values()) == 2982
    assert score_entities(gold, gold).num_gold == 3072
    assert official_scores(texts, gold, [[], *gold[1:]]).macro_f1 < 1.0
