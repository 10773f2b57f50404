from __future__ import annotations

import gzip
import itertools
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanzoo.data.document import Document, Span
from hanzoo.data.readers import (
    FORMATS,
    ReadingReport,
    read_documents,
    read_lines,
    read_texts,
    reader_of,
    sniff_format,
    spans,
)
from hanzoo.errors import DataError, StorageError


@pytest.fixture
def file(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(content: str | bytes, name: str = "data.txt") -> Path:
        path = tmp_path / name
        raw = content.encode("utf-8") if isinstance(content, str) else content
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return write


def texts(documents: list[Document]) -> list[tuple[str, list[tuple[int, int, str]]]]:
    return [(document.text, [(start, end, label) for start, end, label in document.spans]) for document in documents]


# --- lines -----------------------------------------------------------------------------------------------------------


def test_readers_are_found_by_their_file_names() -> None:
    assert FORMATS == ("cluener", "columns", "spans", "weibo")
    with pytest.raises(DataError, match="Did you mean 'columns'"):
        reader_of("colums")


def test_lines_end_at_line_feeds_alone(file) -> None:  # type: ignore[no-untyped-def]
    content = "\ufeff一\u2028二\x0c三\x85四\r\n\r\n五\r六"
    wanted = [(1, "一\u2028二\x0c三\x85四"), (2, ""), (3, "五\r六")]
    assert list(read_lines(file(content))) == wanted
    assert list(read_lines(file(content, "data.txt.gz"))) == wanted


def test_only_the_first_byte_order_mark_goes(file) -> None:  # type: ignore[no-untyped-def]
    assert [line for _, line in read_lines(file("\ufeff\ufeff一\n\ufeff二\n"))] == ["\ufeff一", "\ufeff二"]


def test_bytes_that_are_not_utf8_are_named_with_their_place(file) -> None:  # type: ignore[no-untyped-def]
    path = file("中 O\n".encode() + "国 O\n".encode("gb18030"))
    with pytest.raises(DataError, match=r"data.txt:2: the text must be UTF-8, but byte 6 of the file is 0xb9"):
        read_documents(path)


@pytest.mark.parametrize("format", [None, *FORMATS])
def test_missing_empty_and_damaged_files(tmp_path: Path, file, format: str | None) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=r"nothing.txt: the file must exist"):
        read_documents(tmp_path / "nothing.txt", format)
    with pytest.raises(DataError, match="is empty"):
        read_documents(file(""), format)
    with pytest.raises(DataError, match="is empty"):
        read_documents(file("", "empty.gz"), format)
    with pytest.raises(DataError, match="must hold at least one sentence"):
        read_documents(file("\n\r\n\n"), format)
    with pytest.raises(DataError, match="must hold at least one sentence"):
        read_documents(file("\ufeff"), format)
    with pytest.raises(DataError, match="must be a file that can be read"):
        read_documents(tmp_path, format)
    (tmp_path / "cut.gz").write_bytes(gzip.compress("中 O\n".encode() * 1000)[:-20])
    with pytest.raises(DataError, match=r"cut.gz: must be a whole gzip file"):
        read_documents(tmp_path / "cut.gz", format)
    (tmp_path / "no.gz").write_bytes("中 O\n".encode())
    with pytest.raises(DataError, match=r"no.gz: must be a whole gzip file"):
        read_documents(tmp_path / "no.gz", format)


@pytest.mark.parametrize(
    ("line", "format"),
    [
        ("中 O", "columns"),
        ("中\tB-LOC", "columns"),
        ("{ O", "columns"),
        ("[\tO", "columns"),
        ("科0\tO", "columns"),
        ('{"text": "中", "label": {}}', "cluener"),
        ('{"id": 1, "text": "中"}', "cluener"),
        ('{"text": "中", "entities": []}', "spans"),
        ('{"text": "中", "spans": []}', "spans"),
        ('{"text": "中", "label": [[0, 1, "x"]]}', "spans"),
    ],
)
def test_formats_are_told_from_the_first_line(file, line: str, format: str) -> None:  # type: ignore[no-untyped-def]
    assert sniff_format(file(f"\ufeff\n\n{line}\n")) == format


@pytest.mark.parametrize(
    "line", ['{"text": "中"', '[{"text": "中"}]', '{"txt": "中"}', '{"text": "中", "entities": 3}']
)
def test_json_that_is_no_known_form_is_refused(file, line: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=r"data.txt:2: "):
        sniff_format(file(f"\n{line}\n"))


# --- columns ---------------------------------------------------------------------------------------------------------

TWO = [("中国人民", [(0, 2, "LOC")]), ("好", [])]


@pytest.mark.parametrize(
    "content",
    [
        "中 B-LOC\n国 I-LOC\n人 O\n民 O\n\n好 O\n\n",
        "中 B-LOC\n国 I-LOC\n人 O\n民 O\n\n好 O",  # no final line feed
        "中 B-LOC\n国 I-LOC\n人 O\n民 O\n\n\n\n好 O\n",  # no final blank line, several between
        "\ufeff中\tB-LOC\r\n国\tI-LOC\r\n人\tO\r\n民\tO\r\n\r\n好\tO\r\n\r\n",
        "中  B-LOC\n国  I-LOC\n人  O\n民 O\n\n好  O\n",
        "中 B-LOC\n国 E-LOC\n人 O\n民 O\n\n好 O\n",
        "中 NR B-LOC\n国 NR I-LOC\n人 NN O\n民 NN O\n\n好 JJ O\n",
        "中国\tB-LOC\n人民\tO\n\n好\tO\n",  # words
        "-DOCSTART- -X- O O\n\n中 B-LOC\n国 I-LOC\n人 O\n民 O\n-DOCSTART- O\n好 O\n",
    ],
)
@pytest.mark.parametrize("name", ["data.txt", "data.bmes.gz"])
def test_columns_in_all_their_shapes(file, content: str, name: str) -> None:  # type: ignore[no-untyped-def]
    path = file(content, name)
    documents, report = read_documents(path)
    assert texts(documents) == TWO
    assert (report.sentences, report.characters, report.entities, report.mended) == (2, 5, {"LOC": 1}, 0)
    first = 3 if "DOCSTART" in content else 1
    assert documents[0].source == f"{path}:{first}"
    assert documents[1].source == f"{path}:{[i for i, line in read_lines(path) if line.startswith('好')][0]}"  # noqa: RUF015
    assert ("2 -DOCSTART- lines skipped" in report.notes) == ("DOCSTART" in content)


@pytest.mark.parametrize("scheme", ["B-x I-x O B-y", "B-x E-x O S-y", "B-x I-x O S-y"])
def test_schemes_are_recognised(file, scheme: str) -> None:  # type: ignore[no-untyped-def]
    lines = "".join(f"{token} {tag}\n" for token, tag in zip("甲乙丙丁", scheme.split(), strict=True))
    assert texts(read_documents(file(lines))[0]) == [("甲乙丙丁", [(0, 2, "x"), (3, 4, "y")])]


@pytest.mark.parametrize(
    ("content", "text", "lost"),
    [
        ("a B-x\n  I-x\nb I-x\n", "a b", 0),  # a blank, a blank, the tag
        ("a\tB-x\n \tI-x\nb\tI-x\n", "a b", 0),
        ("a\tB-x\n\u3000\tI-x\nb\tI-x\n", "a\u3000b", 0),
        ("a B-x\n\u3000 I-x\nb I-x\n", "a\u3000b", 0),
        ("a B-x\n\xa0 I-x\nb I-x\n", "a\xa0b", 0),
        ("a\tB-x\n\t\tI-x\nb\tI-x\n", "a\tb", 0),
        ("a B-x\n I-x\nb I-x\n", "a b", 1),  # the token was stripped away
        ("a\tB-x\n\tI-x\nb\tI-x\n", "a b", 1),
        ("a N B-x\n  N I-x\nb N I-x\n", "a b", 0),
    ],
)
def test_tokens_may_be_blanks(file, content: str, text: str, lost: int) -> None:  # type: ignore[no-untyped-def]
    documents, report = read_documents(file(content))
    assert texts(documents) == [(text, [(0, 3, "x")])]
    assert report.notes == ([f"{lost} lines without a token read as a blank"] if lost else [])


def test_spans_are_in_characters_where_tokens_are_words(file) -> None:  # type: ignore[no-untyped-def]
    documents, _ = read_documents(file("Apple\tB-x\n公司\tI-x\n的\tO\n\U0001f600\U0001f600\tB-y\n"))
    assert texts(documents) == [("Apple公司的\U0001f600\U0001f600", [(0, 7, "x"), (8, 10, "y")])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("中 O\n国\n", "data.txt:2: a line must hold 2 fields .token, tag. with blanks between, but holds 1: '国'"),
        ("中 O\n国 B-LOC x\n", "data.txt:2: a line must hold 2 fields .* but holds 3: '国 B-LOC x'. Fix the line."),
        ("中\tO\n国 O\n", "data.txt:2: a line must hold 2 fields .* with a tab between, but holds 1"),
        ("中 N O\n国 O\n", "data.txt:2: a line must hold 3 fields .* but holds 2"),
        ("中国人民\n", "data.txt:1: a line must hold 2 fields"),
        ("中 O\n \n国 O\n", "data.txt:2: .* Empty the line"),
        ("中\tO\n0\t\n", "data.txt:2: the tag, the last field, must not be empty"),
        ("中 O\n0 \n", "data.txt:2: the tag, the last field, must not be empty"),
        ("中 O\n国 X-LOC\n", "data.txt:2: a tag must be 'O' or one of"),
        ("中 O\n国 U-LOC\n", "data.txt:2: a tag must be .* write E for L and S for U"),
        ("中\tO\n国\tO \n", "data.txt:2: a tag must be"),
        ("中\tO\n国\tB-x\u200b\n", "data.txt:2: a tag must be"),
        ("中 M-x\n国 I-x\n", "data.txt: the tags of a file must follow one scheme"),
    ],
)
def test_columns_that_are_wrong(file, content: str, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=message):
        read_documents(file(content))


def test_illegal_tags_are_mended_counted_and_placed(file) -> None:  # type: ignore[no-untyped-def]
    documents, report = read_documents(file("甲 O\n乙 I-x\n\n丙 B-x\n丁 I-y\n" + "\n戊 I-x\n" * 5))
    assert texts(documents)[:2] == [("甲乙", [(1, 2, "x")]), ("丙丁", [(0, 1, "x"), (1, 2, "y")])]
    assert report.mended == 7
    assert report.mended_places == [f"data.txt:{line}" for line in (2, 5, 7, 9, 11)]
    assert "7 tags in illegal sequences mended: data.txt:2, data.txt:5, data.txt:7, data.txt:9, data.txt:11, ..." in (
        report.describe()
    )


def test_reading_streams(file) -> None:  # type: ignore[no-untyped-def]
    path = file("中 O\n\n" * 3)
    report = ReadingReport()
    stream = reader_of("columns")(path, report)
    next(stream)
    assert report.sentences == 1


def test_reading_columns_is_quick(file) -> None:  # type: ignore[no-untyped-def]
    """200,000 characters, a twelfth of MSRA; the limit is twenty times what it takes."""
    sentence = "".join(
        f"{token} {tag}\n" for token, tag in zip("甲乙丙丁" * 10, ["B-x", "E-x", "O", "O"] * 10, strict=True)
    )
    path = file((sentence + "\n") * 5000)
    began = time.perf_counter()
    documents, _ = read_documents(path)
    assert len(documents) == 5000
    assert time.perf_counter() - began < 6


# --- weibo -----------------------------------------------------------------------------------------------------------


def test_weibo_tokens(file) -> None:  # type: ignore[no-untyped-def]
    content = (
        "科0\tB-PER.NAM\n技1\tI-PER.NAM\n20\tO\n110\tO\n字39\tO\n"
        "\ufffd\ufffd0\tB-PER.NOM\n\ufffd0\tI-PER.NOM\n00\tO\n\n好0\tI-x\n"
    )
    documents, report = read_documents(file(content), "weibo")
    assert texts(documents) == [
        ("科技21字\ufffd\ufffd\ufffd0", [(0, 2, "PER.NAM"), (5, 8, "PER.NOM")]),
        ("好", [(0, 1, "x")]),
    ]
    assert report.mended_places == ["data.txt:10"]
    assert documents[1].source.endswith("data.txt:10")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("科\tO", "a token must be a character and its index"),
        ("\ufffd\ufffd\tO", "a token must be a character and its index"),
        ("科技0\tO", "a token must be a character and its index"),
        ("科²\tO", "a token must be a character and its index"),
        ("科0 O", "a line must hold 2 fields"),
        ("科0\tO\tO", "a line must hold 2 fields"),
        ("科0\t", "a tag must be 'O'"),
        ("科0\tS-x", "a tag must be O, B-label or I-label"),
    ],
)
def test_weibo_lines_that_are_wrong(file, line: str, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=f"data.txt:2: {message}"):
        read_documents(file(f"好0\tO\n{line}\n"), "weibo")


# --- cluener ---------------------------------------------------------------------------------------------------------


def test_cluener_takes_all_places_and_nested_entities(file) -> None:  # type: ignore[no-untyped-def]
    lines = [
        {
            "text": "甲乙\u2028甲乙丙",
            "label": {"name": {"甲乙": [[0, 1], [3, 4]], "丙": [[5, 5]]}, "book": {"甲乙丙": [[3, 5]]}},
        },
        {"id": 7, "text": "无"},
        {"text": "", "label": {}},
    ]
    documents, report = read_documents(file("\n".join(json.dumps(line, ensure_ascii=False) for line in lines)))
    assert texts(documents) == [
        ("甲乙\u2028甲乙丙", [(0, 2, "name"), (3, 5, "name"), (3, 6, "book"), (5, 6, "name")]),
        ("无", []),
        ("", []),
    ]
    assert [document.id for document in documents] == [None, 7, None]
    assert (report.sentences, report.nested, report.unlabelled) == (3, 2, 1)
    assert report.entities == {"name": 3, "book": 1}
    assert report.unlabelled_place.endswith("data.txt:2")
    assert any("2 pairs of nested" in line for line in report.describe())


def test_an_entity_that_stands_twice_is_said(file) -> None:  # type: ignore[no-untyped-def]
    documents, report = read_documents(file('{"text": "甲", "label": {"x": {"甲": [[0, 0], [0, 0]]}}}'))
    assert texts(documents) == [("甲", [(0, 1, "x")])]
    assert report.notes == ["1 entities stand twice in their line (counted once)"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "甲乙"', "a line must be one JSON object"),
        ("[" * 100_000, "a line must be one JSON object"),
        ('["甲乙"]', "a line must be one JSON object"),
        ('{"text": 3, "label": {}}', '"text" must be a string'),
        ('{"text": "甲乙", "text": "丙", "label": {}}', "the key 'text' stands twice"),
        ('{"text": "甲乙", "label": {"x": {"甲": [[0, 0]]}, "x": {}}}', "the key 'x' stands twice"),
        ('{"text": "甲乙", "label": ["x"]}', '"label" must be an object'),
        ('{"text": "甲乙", "label": {"x": ["甲"]}}', "'x' must hold mentions"),
        ('{"text": "甲乙", "label": {"x ": {"甲": [[0, 0]]}}}', "a label must be printable text .* but is 'x '"),
        ('{"text": "甲乙", "label": {"x": {"甲": [0, 0]}}}', r"must be \[first, last\]"),
        ('{"text": "甲乙", "label": {"x": {"甲": []}}}', "must have a list"),
        ('{"text": "甲乙", "label": {"x": {"甲": [[0.0, 0]]}}}', r"must be \[first, last\]"),
        ('{"text": "甲乙", "label": {"x": {"甲": [[true, 0]]}}}', r"must be \[first, last\]"),
        ('{"text": "甲乙", "label": {"x": {"甲乙": [[0, 2]]}}}', "must lie in 0 to 1, but is"),
        ('{"text": "甲乙", "label": {"x": {"乙": [[-1, 1]]}}}', "must lie in 0 to 1, but is"),
        ('{"text": "甲乙", "label": {"x": {"甲": [[0, 1]]}}}', "must be '甲', but is '甲乙'"),
        ('{"text": "甲乙", "label": {}, "id": [1]}', '"id" must be an integer or a string'),
    ],
)
def test_cluener_lines_that_are_wrong(file, line: str, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=f"data.txt:3: .*{message}"):
        read_documents(file('{"text": "甲", "label": {}}\n\n' + line), "cluener")


# --- spans -----------------------------------------------------------------------------------------------------------


def test_span_lines_in_all_their_shapes(file) -> None:  # type: ignore[no-untyped-def]
    lines = [
        '{"text": "甲乙丙", "entities": [{"start": 1, "end": 3, "label": "y", "text": "乙丙"}, [0, 1, "x"]]}',
        '{"text": "甲乙丙", "entities": [{"start": 1, "end": 3, "label": "y"}, {"start": 0, "end": 1, "label": "x"}]}',
        '{"text": "甲乙丙", "spans": [[1, 3, "y"], [0, 1, "x"]], "id": "a"}',
        '{"text": "甲乙丙", "label": [[1, 3, "y"], [0, 1, "x"]]}',
    ]
    documents, report = read_documents(file("\n".join(lines)))
    assert texts(documents) == [("甲乙丙", [(0, 1, "x"), (1, 3, "y")])] * 4
    assert documents[2].id == "a"
    assert report.nested == 0


def test_nested_spans_are_read_and_counted(file) -> None:  # type: ignore[no-untyped-def]
    documents, report = read_documents(
        file('{"text": "甲乙丙", "spans": [[0, 3, "a"], [1, 2, "b"], [1, 2, "c"], [1, 3, "b"]]}')
    )
    assert len(documents[0].spans) == 4
    assert report.nested == 6


def test_lone_surrogates_survive(file, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    documents, _ = read_documents(file('{"text": "a\\ud800\\ud83d\\ude00b", "spans": [[1, 3, "x"]]}'))
    assert documents[0].text == "a\ud800\U0001f600b"
    spans.write(tmp_path / "again.jsonl", documents)
    assert b"\\ud800\xf0\x9f\x98\x80" in (tmp_path / "again.jsonl").read_bytes()
    assert texts(read_documents(tmp_path / "again.jsonl")[0]) == texts(documents)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "甲乙丙", "spans": [[0, 4, "x"]]}', "0 <= start < end <= 3 must hold, but the 'x' is 0 to 4"),
        ('{"text": "甲乙丙", "spans": [[-1, 2, "x"]]}', "0 <= start < end"),
        ('{"text": "甲乙丙", "spans": [[1, 1, "x"]]}', "0 <= start < end"),
        (
            '{"text": "甲乙丙", "spans": [[0, 1, ""]]}',
            "a label must be printable text without blanks around it, but is ''",
        ),
        ('{"text": "甲乙丙", "spans": [[0, 1, 5]]}', "a label must be printable text"),
        (
            '{"text": "甲乙丙", "spans": [[0, 1, " x "]]}',
            "a label must be printable text without blanks around it, but is ' x '",
        ),
        ('{"text": "甲乙丙", "spans": [[0, 1, "x\\ny"]]}', r"a label must be printable text .* but is 'x\\ny'"),
        ('{"text": "甲乙丙", "spans": [[0, 1, "x\u200b"]]}', "a label must be printable text"),
        ('{"text": "甲乙丙", "spans": [["0", 1, "x"]]}', "start and end must be integers"),
        ('{"text": "甲乙丙", "spans": [[0, true, "x"]]}', "start and end must be integers"),
        ('{"text": "甲乙丙", "spans": [{"start": 0, "label": "x"}]}', "start and end must be integers"),
        ('{"text": "甲乙丙", "spans": [[0, 1]]}', "an entity must be"),
        ('{"text": "甲乙丙", "spans": {"x": 1}}', '"spans" must be a list'),
        ('{"text": "甲乙丙", "spans": [], "entities": []}', "under one key"),
        ('{"text": "甲乙丙", "spans": [[0, 2, "x"], [1, 3, "y"]]}', "entities must not cross"),
        ('{"text": "甲乙丙", "spans": [[0, 2, "x"], [0, 2, "x"]]}', "stands twice"),
        ('{"text": "甲乙丙", "entities": [{"start": 0, "end": 1, "label": "x", "text": "乙"}]}', "must be '甲', but"),
        ('{"text": "甲乙丙", "spans": [', "a line must be one JSON object"),
    ],
)
def test_span_lines_that_are_wrong(file, line: str, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=f"data.txt:2: .*{message}"):
        read_documents(file('{"text": "甲", "spans": []}\n' + line), "spans")


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec=None, exclude_categories=()), min_size=1).filter(
                lambda text: (
                    not any(
                        "\ud800" <= one <= "\udbff" and "\udc00" <= two <= "\udfff"
                        for one, two in itertools.pairwise(text)
                    )
                )
            ),
            st.one_of(st.none(), st.integers(), st.text("ab")),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([".jsonl", ".jsonl.gz"]),
)
def test_documents_survive_being_written(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, int | str | None]], ending: str
) -> None:
    path = tmp_path_factory.mktemp("written") / f"data{ending}"
    written = [Document(text, (Span(0, len(text), "x"),), id=id) for text, id in drawn]
    spans.write(path, written)
    read, _ = read_documents(path, "spans")
    assert [(one.text, one.spans, one.id) for one in read] == [(one.text, one.spans, one.id) for one in written]
    assert [left.name for left in path.parent.iterdir()] == [path.name]


def test_writing_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    spans.write(path, [Document("一")])
    before = path.read_bytes()
    with pytest.raises(DataError, match="side by side"):
        spans.write(path, [Document("二"), Document("\ud83d\ude00")])
    assert path.read_bytes() == before
    with pytest.raises(StorageError, match=r"folder.data.jsonl: must be written"):
        spans.write(tmp_path / "folder" / "data.jsonl", [Document("二")])
    assert [left.name for left in tmp_path.iterdir()] == ["data.jsonl"]


# --- the real files --------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "format", "sentences", "characters", "entities", "nested", "mended"),
    [
        ("cluener/train.json.gz", "cluener", 10_748, 401_764, 23_971, 2, 0),
        ("cluener/dev.json", "cluener", 1_343, 50_260, 3_072, 0, 0),
        ("cluener/test.json", "cluener", 1_345, 50_972, 0, 0, 0),
        ("msra/train_dev.char.bmes.gz", "columns", 46_364, 2_169_879, 74_703, 0, 0),
        ("msra/test.char.bmes.gz", "columns", 4_365, 172_601, 6_181, 0, 0),
        ("weibo/weiboNER_2nd_conll.train", "weibo", 1_350, 73_778 + 12, 1_895, 0, 10),
        ("weibo/weiboNER_2nd_conll.dev", "weibo", 270, 14_509 + 16, 389, 0, 0),
        ("weibo/weiboNER_2nd_conll.test", "weibo", 270, 14_842 + 16, 418, 0, 4),
        ("resume/train.char.bmes.gz", "columns", 3_821, 124_099, 13_440, 0, 4),
        ("resume/dev.char.bmes", "columns", 463, 13_890, 1_497, 0, 0),
        ("resume/test.char.bmes", "columns", 477, 15_100, 1_630, 0, 0),
    ],
)
def test_real_files_have_their_known_counts(
    name: str, format: str, sentences: int, characters: int, entities: int, nested: int, mended: int
) -> None:
    path = Path(os.environ["HANZOO_DATA"]) / name
    documents, report = read_documents(path, format)
    assert (len(documents), report.sentences, report.characters) == (sentences, sentences, characters)
    assert (sum(report.entities.values()), report.nested, report.mended) == (entities, nested, mended)


# --- texts without their gold ----------------------------------------------------------------------------------------


def test_texts_of_any_format_come_without_gold(file) -> None:  # type: ignore[no-untyped-def]
    long = "很长" * 4000
    plain = f"  浙商银行\n\n \t\n叶老桂\u2028说\r\n{long}\n"
    wanted = ["  浙商银行", "叶老桂\u2028说", long]
    for name in ("more.txt", "more.txt.gz"):
        assert [document.text for document in read_texts(file(plain, name))] == wanted
    assert read_texts(file(plain, "more.txt"))[1].source.endswith("more.txt:4")
    tagged = "浙 B-x\n商 I-x\n\n好 O\n"
    for name in ("tagged.txt", "tagged.conll"):
        found = read_texts(file(tagged, name))
        assert [(document.text, document.spans) for document in found] == [("浙商", ()), ("好", ())]
    line = '{"text": "浙商银行", "label": {"company": {"浙商银行": [[0, 3]]}}}\n{"text": "", "label": {}}\n{"text": "好"}\n'
    assert [(document.text, document.spans) for document in read_texts(file(line, "a.json"))] == [
        ("浙商银行", ()),
        ("好", ()),
    ]
    assert [document.text for document in read_texts(file("a b\n", "a.log"), "text")] == ["a b"]


def test_files_without_texts_are_refused(file) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=r"more.txt: the file must hold at least one text"):
        read_texts(file(" \n\n", "more.txt"))
    with pytest.raises(DataError, match=r"format: must be one of text, cluener.*Did you mean 'text'"):
        read_texts(file("a\n"), "txt")
