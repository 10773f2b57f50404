"""Pairs and triples: every layout read, texts kept to the character, each fault said with its line."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanzoo.data.document import Pair, Triple, is_blank
from hanzoo.data.pair_files import SCALES, Layout, read_pairs, read_texts, read_triples
from hanzoo.errors import DataError, RecipeError

BINARY, STS, NLI = SCALES["binary"], SCALES["sts"], SCALES["nli"]


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    raw = content.encode("utf-8")
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "sentence1\tsentence2\tlabel\n花呗\t借呗\t0\n还款\t还 款\t1\n"),
        ("a.txt.gz", "\ufefftext1\ttext2\tscore\r\n花呗\t借呗\t0\r\n还款\t还 款\t1\r\n"),
        ("a.csv", 'label,question2,question1\n0,借呗,花呗\n1,"还 款",还款\n'),
        ("a.jsonl", '{"sentence1": "花呗", "sentence2": "借呗", "label": "0"}\n\n{"s1": "还款", "s2": "还 款", "label": 1}\n'),
    ],
)  # fmt: skip
def test_layouts(tmp_path: Path, name: str, content: str) -> None:
    pairs, report = read_pairs(written(tmp_path, name, content))
    assert [(pair.first, pair.second, pair.label) for pair in pairs] == [("花呗", "借呗", 0.0), ("还款", "还 款", 1.0)]
    assert pairs[1].source == f"{tmp_path / name}:3"
    assert (report.rows, dict(report.labels), report.unlabelled, report.longest) == (2, {0.0: 1, 1.0: 1}, 0, 3)


def test_columns_are_named_or_counted(tmp_path: Path) -> None:
    named = written(tmp_path, "a.tsv", "x\ty\tz\n花呗\t1\t借呗\n")
    assert read_pairs(named, columns={"first": "x", "second": "z", "label": "y"})[0] == [
        Pair("花呗", "借呗", 1.0, f"{named}:2")
    ]
    counted = written(tmp_path, "b.tsv", '"花呗\t1\t借"呗\n')
    assert read_pairs(counted, columns={"first": 3, "second": 1, "label": 2})[0] == [
        Pair('借"呗', '"花呗', 1.0, f"{counted}:1")
    ]
    keyed = written(tmp_path, "c.jsonl", '{"a": "花呗", "b": "借呗", "label": 1, "id": 7}\n')
    assert read_pairs(keyed, columns={"first": "a", "second": "b"})[0] == [
        Pair("花呗", "借呗", 1.0, f"{keyed}:1", id=7)
    ]


def test_csv_may_hold_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'sentence1,sentence2,label\n"a,""b""\nc",d,1\ne,f,0\n')
    pairs, _ = read_pairs(path)
    assert [(pair.first, pair.source) for pair in pairs] == [('a,"b"\nc', f"{path}:2"), ("e", f"{path}:4")]


def test_a_field_of_csv_may_be_long_and_keeps_its_own_line_ends(tmp_path: Path) -> None:
    csv.field_size_limit(131_072)  # the module's own, whatever was read before
    path = written(tmp_path, "a.csv", f'sentence1,sentence2,label\r\n"a\r\nb\n",{"花" * 140_000},1\r\n\r\ne,f,0')
    pairs, report = read_pairs(path)
    assert [(pair.first, pair.source) for pair in pairs] == [("a\r\nb\n", f"{path}:2"), ("e", f"{path}:6")]
    assert report.longest == 140_000


TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\t\n\r\ufeff"), min_size=1).filter(
    lambda text: not is_blank(text)
)


@given(st.lists(st.tuples(TEXTS, TEXTS, st.sampled_from("01")), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_texts_are_kept_to_the_character(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    tabs = "sentence1\tsentence2\tlabel\n" + "".join(f"{first}\t{second}\t{label}\n" for first, second, label in rows)
    commas = io.StringIO()
    csv.writer(commas, lineterminator="\n").writerows([("sentence1", "sentence2", "label"), *rows])
    objects = "".join(
        json.dumps({"sentence1": first, "sentence2": second, "label": label}, ensure_ascii=False) + "\n"
        for first, second, label in rows
    )
    for name, content in (("a.tsv", tabs), ("a.csv", commas.getvalue()), ("a.jsonl", objects)):
        pairs, _ = read_pairs(written(folder, name, content))
        assert [(pair.first, pair.second, f"{pair.label:g}") for pair in pairs] == rows


def test_rows_without_gold_and_empty_ones_are_counted_where_it_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", "sentence1\tsentence2\tlabel\na\tb\t-\n\t \t1\nc\tc\tneutral\n")
    pairs, report = read_pairs(path, NLI, without_gold="-", skip_empty=True)
    assert [pair.label for pair in pairs] == [1.0]
    assert (report.rows, report.left_out.total(), report.identical) == (3, 2, 1)
    assert report.describe() == [
        "3 rows (labels 1: 1)",
        "1 rows left out: a text is empty",
        "1 rows left out: the label is '-'",
        "1 pairs of two equal texts",
    ]
    with pytest.raises(DataError, match=r"a\.tsv:2: the label must be one of contradiction, neutral, entailment"):
        read_pairs(path, NLI, skip_empty=True)
    with pytest.raises(DataError, match=r"a\.tsv:3: the first text must hold a character that is no blank, but is ''"):
        read_pairs(path, NLI, without_gold="-")


@pytest.mark.parametrize(
    ("scale", "given", "number"),
    [
        ("binary", "1", 1), ("binary", 0, 0), ("binary", "1.0", 1), ("binary", 1.0, 1),
        ("sts", "3", 3), ("sts", 2.5, 2.5), ("unit", "0.25", 0.25), ("nli", "entailment", 2),
    ],
)  # fmt: skip
def test_labels_on_their_scale(scale: str, given: object, number: float) -> None:
    assert SCALES[scale].read(given, "a:1") == number


@pytest.mark.parametrize(
    ("scale", "given"),
    [
        ("binary", "2"), ("binary", True), ("binary", 0.5), ("binary", ""), ("binary", None), ("sts", "5.1"), ("sts", "nan"),
        ("sts", "x"), ("sts", -1), ("sts", [1]), ("sts", True), ("nli", "neutrl"), ("nli", 1), ("unit", 10**400),
    ],
)  # fmt: skip
def test_labels_outside_their_scale(scale: str, given: object) -> None:
    with pytest.raises(DataError, match=rf"^a:1: the label must be .* \(scale {scale}\), but is .* Mend the line"):
        SCALES[scale].read(given, "a:1")


def test_a_scale_is_of_unit_length() -> None:
    assert [STS.to_unit(label) for label in (0, 2.5, 5)] == [0, 0.5, 1]
    assert (BINARY.is_binary, STS.is_binary, NLI.is_binary) == (True, False, False)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "sentence1\tsentence2\tlabel\na\t\t1\n", r":2: the second text must hold a character .* but is ''"),
        ("a.tsv", "sentence1\tsentence2\tlabel\na\t\u200b\ufeff\t1\n", r":2: the second text must hold .* '\\u200b\\ufeff'"),
        ("a.tsv", "sentence1\tsentence2\tlabel\na\tb\n", r":2: a line must hold 3 fields, but holds 2: 'a\\tb'"),
        ("a.tsv", "sentence1\tsentence2\tlabel\na\tb\t3\n", r":2: the label must be one of 0, 1 .* but is '3'"),
        ("a.tsv", "sentence1\tlabel\na\t1\n", r":1: there must be a column for second \(one of .*sentence2.*Rename one, or train"),
        ("a.tsv", "花呗\t借呗\t1\n", r":1: there must be a column for first .* data\.columns\.first=NAME, or, in a file without"),
        ("a.tsv", "s1\ts2\tlabel\tscore\na\tb\t1\t1\n", r":1: one name must stand for label, but label and score do"),
        ("a.tsv", "s1\ts2\ts2\na\tb\tc\n", r":1: the header must name each column once, but names 's2' twice"),
        ("a.tsv", "s1\ts2\tlabel\n", r": the file must hold at least one pair, but holds none"),
        ("a.csv", 's1,s2,label\na,b,1\nc,"d,1\ne,f,0\n', r":3: a row must be CSV, but is not: .* Close or double its quotes"),
        ("a.jsonl", '{"s1": "a", "s2": 5}\n', r":1: the second text must be a string, but is 5"),
        ("a.jsonl", '{"s1": "a"}\n', r":1: there must be a key for second"),
        ("a.jsonl", '{"s1": "a", "s2": "b"}\n{"s1": "a", "s2": "b", "label": 1}\n', r":2: the row must have no label, as the rows"),
        ("a.jsonl", '{"s1": "a", "s2": "b", "label": 1}\n{"s1": "a", "s2": "b"}\n', r":2: the row must have a label, as the rows"),
        ("a.jsonl", "[1]\n", r":1: a line must be one JSON object, but is"),
        ("a.jsonl", '{"s1": "a", "s2": "b", "id": [1]}\n', r':1: "id" must be an integer or a string'),
        ("a.xlsx", "x", r": the name must end in .tsv, .txt, .csv, .jsonl or .json .* Rename"),
    ],
)  # fmt: skip
def test_faults_are_said_with_their_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read_pairs(written(tmp_path, name, content))
    assert str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "columns", "said"),
    [
        ("a.tsv", {"frist": "s1"}, "must name first, second, label, id, but names 'frist'. Did you mean 'first'"),
        ("a.tsv", {"first": 1, "second": 1}, "each must be another column, but first and second are both 1"),
        ("a.tsv", {"first": 1}, "must say where second is"),
        ("a.tsv", {"first": 1, "second": "s2"}, "all must be numbers from 1, or all names, but second is 's2'"),
        ("a.tsv", {"first": 0, "second": 1}, "but first is 0"),
        ("a.jsonl", {"first": 1, "second": 2}, "must be names of keys"),
    ],
)
def test_columns_that_make_no_sense(tmp_path: Path, name: str, columns: dict[str, str | int], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read_pairs(written(tmp_path, name, "s1\ts2\na\tb\n"), columns=columns)


def test_a_named_column_must_be_there(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", "s1\ts2\na\tb\n")
    assert read_pairs(path)[0] == [Pair("a", "b", None, f"{path}:2")]
    with pytest.raises(DataError, match=r"a\.tsv:1: there must be a column for label \('gold'\), but there are only"):
        read_pairs(path, columns={"label": "gold"})


def test_triples(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"query": "a", "title": "b", "neg_title": "c", "id": "x"}\n')
    triples, report = read_triples(path)
    assert triples == [Triple("a", "b", ("c",), f"{path}:1", "x")]
    assert (report.rows, report.describe()) == (1, ["1 rows"])
    tabs = written(tmp_path, "a.tsv", "a\tb\tc\n")
    assert read_triples(tabs, columns={"anchor": 1, "positive": 2, "negative": 3})[0] == [
        Triple("a", "b", ("c",), f"{tabs}:1")
    ]
    for third, other in (("b", "positive"), ("a", "anchor")):
        bad = written(tmp_path, "b.tsv", f"anchor\tpositive\tnegative\na\tb\t{third}\n")
        with pytest.raises(DataError, match=rf"b\.tsv:2: the negative must be another text than the {other}"):
            read_triples(bad)
    with pytest.raises(DataError, match=r"c\.csv:2: the negative text must hold a character"):
        read_triples(written(tmp_path, "c.csv", "anchor,positive,negative\na,b,\n"))
    with pytest.raises(DataError, match="at least one triple, but holds none"):
        read_triples(written(tmp_path, "d.csv", "anchor,positive,negative\n"))


def test_fields_between_two_bars(tmp_path: Path) -> None:
    path = written(tmp_path, "sts.txt", "2012test-0001||一架飞机||飞|机||5\r\n")
    layout = Layout("||", {"id": 1, "first": 2, "second": 3, "label": 4})
    assert read_pairs(path, STS, layout=layout)[0] == [Pair("一架飞机", "飞|机", 5.0, f"{path}:1", "2012test-0001")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "花呗\n\n借 O\n"),  # no token and tag: a text
        ("a.tsv", "id\ttext\n1\t花呗\n2\t借 O\n"),
        ("a.csv", "text\n花呗\n借 O\n"),
        ("a.jsonl", '{"text": "花呗", "label": 1}\n{"text": "借 O", "label": "x"}\n'),
    ],
)
def test_single_texts(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    found = read_texts(path)
    assert [document.text for document in found] == ["花呗", "借 O"]
    lines = {"a.txt": (1, 3), "a.jsonl": (1, 2)}.get(name, (2, 3))
    assert [document.source for document in found] == [f"{path}:{line}" for line in lines]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "  \n", "the file must hold at least one text"),
        ("a.tsv", "text\tid\n \t1\n", ":2: the text must hold a character that is no blank"),
        ("a.jsonl", '{"words": "花"}\n', r"there must be a key for text .* Rename one\.$"),
        ("a.docx", "x", "the name must end in"),
    ],
)
def test_single_texts_that_will_not_do(name: str, content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_texts(path)
