from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hanzoo.data.document import Entity
from hanzoo.data.text_streams import ENTITIES, Row, RowReader, open_writer, read_rows
from hanzoo.errors import DataError, StorageError

ROOT = Path(__file__).resolve().parents[2]


def first_two(text: str) -> list[Entity]:
    """A stand-in for a tagger: the first two characters are a company."""
    return [Entity(0, 2, "company", text[:2], 0.5)] if len(text) >= 2 else []


def rows_of(path: Path, **options: Any) -> list[Row]:
    with read_rows(path, **options) as rows:
        return list(rows)


def convert(path: Path, output: Path | None, **options: Any) -> int:
    """Tag a file with `first_two` as predict.py would; return the number of rows with an error."""
    refused = 0
    with read_rows(path, **options) as rows, open_writer(output, rows, ENTITIES) as writer:
        for row in rows:
            refused += row.error is not None
            writer.write(row, None if row.text is None else first_two(row.text))
    return refused


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().decode("utf-8").splitlines()]


def only(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


# Plain text


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "A.TXT"])
def test_a_line_is_a_text_and_only_a_newline_ends_it(tmp_path: Path, name: str) -> None:
    texts = ["浙商银行", "", "  两 空格\t制表 ", "甲\u2028乙\x0b丙\x85丁\x1c戊", "回\r车", "𠮷😀", "零\x00"]
    path = write(tmp_path / name, b"\xef\xbb\xbf" + "".join(text + "\r\n" for text in texts).encode() + "末行".encode())
    rows = rows_of(path)
    assert [row.text for row in rows] == [*texts, "末行"]
    assert [row.place for row in rows] == [f"{path}:{number}" for number in range(1, 9)]
    assert all(row.error is None for row in rows)


def test_only_one_carriage_return_and_only_the_first_byte_order_mark_go(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfa\r\r\n\xef\xbb\xbfb\n\n")
    assert [row.text for row in rows_of(path)] == ["a\r", "\ufeffb", ""]


def test_a_line_that_is_not_utf8_is_an_error_among_good_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "好\n".encode() + "坏\n".encode("gb18030") + "也好\n".encode())
    output = tmp_path / "a.jsonl"
    assert convert(path, output) == 1
    good, bad, other = lines_of(output)
    assert good == {"text": "好", "entities": []}
    assert bad["text"] is None
    assert "entities" not in bad
    assert bad["error"].startswith(f"{path}:2: a line must be UTF-8, but holds the byte 0xbb.")
    assert other["entities"] == [{"start": 0, "end": 2, "label": "company", "text": "也好", "confidence": 0.5}]


# JSON lines


def test_json_keeps_its_other_keys_and_lone_surrogates(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        b'\xef\xbb\xbf{"id": 7, "text": "\\ud83d\\u4e2d", "more": {"x": [1.5, null, "\\udc00"]}, "error": "old"}\r\n'
        b"\n"
        b'{"entities": [], "text": "\\ud83d\\ude00 ok", "\\ud800": 1}\n',
    )
    first, second = rows_of(path)
    assert first.text == "\ud83d中"
    assert second.text == "😀 ok"
    assert second.place == f"{path}:3"
    output = tmp_path / "out"
    assert convert(path, output) == 0
    assert b"\\ud83d\xe4\xb8\xad" in output.read_bytes()
    assert lines_of(output) == [
        {
            "id": 7,
            "text": "\ud83d中",
            "more": {"x": [1.5, None, "\udc00"]},
            "entities": [{"start": 0, "end": 2, "label": "company", "text": "\ud83d中", "confidence": 0.5}],
        },
        {
            "text": "😀 ok",
            "\ud800": 1,
            "entities": [{"start": 0, "end": 2, "label": "company", "text": "😀 ", "confidence": 0.5}],
        },
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "a"', "must be one JSON object"),
        (b'["text"]', "must be one JSON object, but is ['text']"),
        (b'{"text": null}', "'text' must be a string, but is None"),
        (b'{"text": 5}', "'text' must be a string, but is 5"),
        (b'{"id": 5}', "must have the key 'text', but its keys are 'id'"),
        (b'{"text": "a", "x": NaN}', "NaN is not JSON"),
        (b'{"text": "a", "x": 1e999}', "1e999 is out of range"),
        (b'{"text": "a", "text": "b"}', "the key 'text' stands twice in one object"),
        (b'{"text": "\xff"}', "must be UTF-8, but holds the byte 0xff"),
        (b"[" * 200_000, "must be one JSON object"),
        (b'{"text": "a", "x": ' + b"1" * 5000 + b"}", "must be one JSON object"),
    ],
)
def test_a_broken_json_line_is_an_error_among_good_ones(tmp_path: Path, line: bytes, expected: str) -> None:
    path = write(tmp_path / "a.json.gz", b'{"text": "first"}\n' + line + b'\n{"text": "last"}')
    output = tmp_path / "b.jsonl"
    assert convert(path, output) == 1
    first, bad, last = lines_of(output)
    assert (first["text"], last["text"]) == ("first", "last")
    assert expected in bad["error"]
    assert bad["error"].startswith(f"{path}:2: ")
    assert len(bad["error"]) < 600
    assert "text" in bad
    assert "entities" not in bad


def test_another_key_may_hold_the_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": 1, "句子": "你好"}\n'.encode())
    assert [row.text for row in rows_of(path, text_column="句子")] == ["你好"]
    assert rows_of(path)[0].error is not None


# CSV

CSV = '﻿编号,text,备注\n1,"他说:""好""\n第二行",a\r\n\n2,只有两个\n3,,"b\rc"\n4,"x"y,z\n5,"好,的",\x00\n'.encode()


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv_stays_csv_and_keeps_its_columns(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, CSV)
    rows = rows_of(path)
    assert [row.text for row in rows] == ['他说:"好"\n第二行', None, "", None, "好,的"]
    assert [row.place for row in rows] == [f"{path}:{line}" for line in (2, 5, 6, 8, 9)]
    assert rows[0].columns == {"编号": "1", "text": '他说:"好"\n第二行', "备注": "a"}
    assert "must hold 3 fields (编号, text, 备注), but holds 2: ['2', '只有两个']" in str(rows[1].error)
    assert "must be valid csv" in str(rows[3].error)

    output = tmp_path / ("out" + "".join(path.suffixes))
    assert convert(path, output) == 2
    content = gzip.decompress(output.read_bytes()) if name.endswith(".gz") else output.read_bytes()
    assert content.startswith(b"\xef\xbb\xbf"), "Excel needs the mark that it wrote"
    records = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    assert records[0] == ["编号", "text", "备注", "entities", "error"]
    assert [record[:3] for record in records[1:]] == [
        ["1", '他说:"好"\n第二行', "a"],
        ["2", "只有两个", ""],
        ["3", "", "b\rc"],
        ["", "", ""],
        ["5", "好,的", "\x00"],
    ]
    assert [
        json.loads(record[3])[0]["text"] if record[3] not in ("", "[]") else record[3] for record in records[1:]
    ] == [
        "他说",
        "",
        "[]",
        "",
        "好,",
    ]
    assert [bool(record[4]) for record in records[1:]] == [False, True, False, True, False]


def test_csv_without_mark_stays_without_and_a_byte_that_is_not_utf8_spoils_one_record(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv", b"text,entities,note\n" + "中文,old,\n".encode() + b"\xd6\xd0,old,n\nok,old,\xff\n"
    )
    output = tmp_path / "b.csv"
    assert convert(path, output) == 2
    records = list(csv.reader(io.StringIO(output.read_text(encoding="utf-8"), newline="")))
    assert records[0] == ["text", "note", "entities", "error"]
    assert records[1][:2] == ["中文", ""]
    assert records[2][:2] == [r"\xd6\xd0", "n"]
    assert "must be UTF-8, but holds the byte 0xd6" in records[2][3]
    assert records[3][:2] == ["ok", r"\xff"]


def test_a_field_may_be_longer_than_the_csv_module_likes(tmp_path: Path) -> None:
    text = "字" * 200_000
    path = write(tmp_path / "a.csv", f"text\n{text}\n".encode())
    assert [row.text for row in rows_of(path)] == [text]


def test_an_open_quote_spoils_its_own_record_only_at_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'text\ngood\n"open\nmore\n')
    good, bad = rows_of(path)
    assert good.text == "good"
    assert bad.text is None
    assert bad.place == f"{path}:3"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a,b\n1,2\n", "must have a column 'text', but its columns are 'a', 'b'. Name .* --text-column"),
        (b"text,b,b\n", "'b' comes twice"),
        (b"\xc4\xda\xc8\xdd,b\n", "header must be UTF-8, but holds the byte 0xc4"),
        (b'"text\n', "the header must be a line of csv"),
        (b"\n1\n", "its columns are none"),
        (b"", "must hold texts, but is empty"),
    ],
)
def test_a_csv_header_that_will_not_do(tmp_path: Path, content: bytes, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read_rows(write(tmp_path / "a.csv", content))


# Parquet


def parquet(path: Path, texts: list[str | None] | pa.Array, **columns: Any) -> Path:
    pq.write_table(pa.table({"text": texts, **columns}), path, row_group_size=700)
    return path


def test_parquet_keeps_its_types_and_gains_two_columns(tmp_path: Path) -> None:
    num = 1500  # three batches, three row groups
    texts: list[str | None] = [f"第{number}句😀" for number in range(num)]
    texts[3] = None
    table = pa.table(
        {
            "when": pa.array([1_700_000_000_000_000_001 + number for number in range(num)], pa.timestamp("ns", "UTC")),
            "error": ["old"] * num,
            "text": pa.array(texts),
            "small": pa.array([number % 7 for number in range(num)], pa.int8()),
            "kind": pa.array([f"k{number % 3}" for number in range(num)]).dictionary_encode(),
            "nested": pa.array([[{"a": number}] for number in range(num)]),
        }
    ).replace_schema_metadata({"made by": "a test"})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=700)
    output = tmp_path / "b.parquet"
    assert convert(path, output) == 1
    found = pq.read_table(output)
    kept = ["when", "text", "small", "kind", "nested"]
    assert found.column_names == [*kept, "entities", "error"]
    assert found.select(kept).equals(table.select(kept))
    assert found.schema.metadata[b"made by"] == b"a test"
    assert found.schema.field("when").type == pa.timestamp("ns", "UTC")
    entities = found.column("entities").to_pylist()
    assert entities[3] is None
    assert entities[4] == [{"start": 0, "end": 2, "label": "company", "text": "第4", "confidence": 0.5}]
    errors = found.column("error").to_pylist()
    assert errors[3] == f"{path}:row 4: 'text' must be a string, but is null. Fill it in or leave the row out."
    assert errors[:3] + errors[4:] == [None] * (num - 1)
    assert pq.ParquetFile(output).num_row_groups == 1, "batches are gathered into one row group"


def test_rows_may_be_left_out_of_a_parquet_output(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [f"text {number}" for number in range(1100)])
    output = tmp_path / "b.parquet"
    with read_rows(path) as rows, open_writer(output, rows, ENTITIES) as writer:
        for number, row in enumerate(rows):
            if number % 3 != 1:
                writer.write(row, [])
    assert pq.read_table(output).column("text").to_pylist() == [f"text {n}" for n in range(1100) if n % 3 != 1]


def test_parquet_as_json_lines(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet",
        pa.array(["甲乙", None]).dictionary_encode(),
        day=pa.array([0, 1], pa.date32()),
        raw=[b"\xff", None],
        number=[float("nan"), 0.5],
    )
    output = tmp_path / "b.jsonl"
    assert convert(path, output) == 1
    first, second = lines_of(output)
    entities = [{"start": 0, "end": 2, "label": "company", "text": "甲乙", "confidence": 0.5}]
    assert first == {"text": "甲乙", "day": "1970-01-01", "raw": "/w==", "number": None, "entities": entities}
    assert second["number"] == 0.5
    assert "is null" in second["error"]


def test_a_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    raw = pa.array([b"ok", b"\xff\xfe"], pa.binary())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 2, raw.buffers())}), path)
    good, bad = rows_of(path)
    assert good.text == "ok"
    assert "must be UTF-8, but holds the byte 0xff" in str(bad.error)
    assert convert(path, tmp_path / "b.jsonl") == 1
    assert lines_of(tmp_path / "b.jsonl")[1]["text"] == r"\xff\xfe"


def test_an_empty_table_is_no_rows(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", pa.array([], pa.string()))
    assert convert(path, tmp_path / "b.parquet") == 0
    assert pq.read_table(tmp_path / "b.parquet").column_names == ["text", "entities", "error"]


def test_parquet_files_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold strings, but holds int64"):
        read_rows(parquet(tmp_path / "a.parquet", pa.array([1])))
    with pytest.raises(DataError, match="must have a column 'body', but its columns are 'text'"):
        read_rows(parquet(tmp_path / "b.parquet", ["a"]), text_column="body")
    with pytest.raises(DataError, match="must be parquet, but is not"):
        read_rows(write(tmp_path / "c.parquet", b"no parquet at all"))
    with pytest.raises(DataError, match="is empty"):
        read_rows(write(tmp_path / "d.parquet", b""))


# The file as a whole


def test_inputs_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: the file must exist, but does not"):
        read_rows(tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"suffix must be one of \.txt, .*\.parquet .*, but is '\.docx'"):
        read_rows(write(tmp_path / "a.docx", b"x"))
    with pytest.raises(DataError, match="suffix must be one of"):
        read_rows(write(tmp_path / "a.parquet.gz", b"x"))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match="must be a file, but is a folder"):
        read_rows(tmp_path / "folder.txt")
    for name in ("a.txt", "a.jsonl", "a.txt.gz"):
        with pytest.raises(DataError, match="must hold texts, but is empty"):
            read_rows(write(tmp_path / name, b""))
    with pytest.raises(DataError, match="must be readable to its end, but is not: Not a gzipped file"):
        read_rows(write(tmp_path / "c.txt", b"not compressed").rename(tmp_path / "c.txt.gz"))


def test_a_truncated_gzip_file_is_an_error_and_leaves_no_output(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(os.urandom(50_000).hex("\n").encode())[:-5000])
    with pytest.raises(DataError, match=r"a\.txt\.gz: the file must be readable to its end"):
        convert(path, tmp_path / "b.jsonl")
    assert only(tmp_path, "a.txt.gz")


@pytest.mark.parametrize(
    ("name", "output", "expected"),
    [
        ("a.txt", "b.anything", "jsonl"),
        ("a.txt", "b.txt", "jsonl"),
        ("a.txt", "b.csv", "csv"),
        ("a.jsonl", "b", "jsonl"),
        ("a.csv", "b", "csv"),
        ("a.csv", "b.jsonl.gz", "jsonl"),
        ("a.txt", "b.parquet", None),
        ("a.jsonl", "b.csv", None),
        ("a.csv", "b.parquet", None),
    ],
)
def test_the_format_of_the_output(tmp_path: Path, name: str, output: str, expected: str | None) -> None:
    contents = {"a.txt": b"text\n", "a.jsonl": b'{"text": "text"}\n', "a.csv": b"text\ntext\n"}
    path = write(tmp_path / name, contents[name])
    if expected is None:
        with pytest.raises(DataError, match=r"must be JSON lines \(\.jsonl\) or keep the input's format"):
            convert(path, tmp_path / output)
        assert only(tmp_path, name)
        return
    assert convert(path, tmp_path / output) == 0
    content = (tmp_path / output).read_bytes()
    content = gzip.decompress(content) if output.endswith(".gz") else content
    assert content.startswith(b"text,entities,error\n" if expected == "csv" else b'{"text": "text", "entities": [')


def test_the_output_may_not_be_the_input(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"text\nx\n")
    (tmp_path / "b.csv").symlink_to(path)
    with pytest.raises(DataError, match="must be another file than the input"):
        convert(path, tmp_path / "b.csv")
    assert path.read_bytes() == b"text\nx\n"


# Whole or not at all


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.csv", "a.parquet"])
def test_an_output_that_fails_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    parquet(path, ["one", "two"]) if name == "a.parquet" else write(path, b"text\none\ntwo\n")
    output = write(tmp_path / ("out" + "".join(path.suffixes)), b"before")
    before = output.read_bytes()

    def fail_at_the_second(rows: RowReader) -> None:
        with open_writer(output, rows, ENTITIES) as writer:
            writer.write(next(rows), [])
            raise KeyboardInterrupt

    with read_rows(path) as rows, pytest.raises(KeyboardInterrupt):
        fail_at_the_second(rows)
    assert output.read_bytes() == before
    assert only(tmp_path, name, output.name)


def test_the_output_appears_at_the_end_with_ordinary_permissions(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one\n")
    output = tmp_path / "b.jsonl"
    with read_rows(path) as rows, open_writer(output, rows, ENTITIES) as writer:
        for row in rows:
            writer.write(row, [])
        assert not output.exists()
    assert output.exists()
    mask = os.umask(0)
    os.umask(mask)
    assert output.stat().st_mode & 0o777 == 0o666 & ~mask
    output.chmod(0o600)
    (tmp_path / "link").symlink_to(output)
    convert(path, tmp_path / "link")
    assert output.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_a_disk_that_is_full_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path = tmp_path / ("a.parquet" if suffix == "parquet" else "a.csv")
    parquet(path, ["one"]) if suffix == "parquet" else write(path, b"text\none\n")

    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(StorageError, match=r"must be written, but the disk is full \(No space left on device\)"):
        convert(path, tmp_path / f"b.{suffix}")
    assert only(tmp_path, path.name)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.parquet"])
def test_a_device_is_written_straight_into_and_may_be_full(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    parquet(path, ["one"]) if name == "a.parquet" else write(path, b"text\none\n")
    with pytest.raises(StorageError, match=r"/dev/full: .*No space left"):
        convert(path, Path("/dev/full"))
    convert(path, Path("/dev/null"))
    assert Path("/dev/null").is_char_device()


def test_an_output_without_a_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one\n")
    with pytest.raises(StorageError, match=r"the folder .*nowhere does not exist"):
        convert(path, tmp_path / "nowhere" / "b.jsonl")
    with pytest.raises(StorageError, match="it is a folder"):
        convert(path, tmp_path)


def test_a_row_without_error_must_come_with_entities(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one\n")
    with read_rows(path) as rows, pytest.raises(ValueError, match="must come with what was found"):  # noqa: SIM117
        with open_writer(tmp_path / "b.jsonl", rows, ENTITIES) as writer:
            writer.write(next(rows), None)


# Pipes

PIPE = """
import sys
from hanzoo.data.text_streams import ENTITIES, open_writer, read_rows
try:
    with read_rows(sys.argv[1] if len(sys.argv) > 1 else None) as rows, open_writer("-", rows, ENTITIES) as writer:
        for row in rows:
            writer.write(row, [])
except BrokenPipeError:
    sys.exit(5)
"""


def pipe(*arguments: str, **settings: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PIPE, *arguments],
        cwd=ROOT,
        env={**environment, **settings},  # with PYTHONUNBUFFERED the flushing would show nothing
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_standard_input_to_standard_output_in_any_locale() -> None:
    with pipe(LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0") as process:
        out, err = process.communicate("甲\n\n".encode() + b"\xff\n" + "𠮷".encode())
    assert err == b""
    lines = [json.loads(line) for line in out.decode("utf-8").splitlines()]
    assert [line["text"] for line in lines] == ["甲", "", None, "𠮷"]
    assert lines[2]["error"].startswith("standard input:3: a line must be UTF-8")
    assert '"甲"'.encode() in out


def test_a_text_goes_through_before_the_next_one_comes() -> None:
    with pipe("-") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stop = threading.Timer(20, process.kill)  # a text that is held back would keep both sides waiting
        stop.start()
        for text in ("first", "second"):
            process.stdin.write(text.encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == text
        assert process.communicate() == (b"", b"")
        stop.cancel()


def test_empty_standard_input_is_no_rows() -> None:
    with pipe() as process:
        assert process.communicate(b"") == (b"", b"")
    assert process.returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_ends_the_run_without_a_word(tmp_path: Path, unbuffered: str) -> None:
    path = write(tmp_path / "a.csv", b"text,note\n" + b"some text,x\n" * 50_000)
    with pipe(str(path), PYTHONUNBUFFERED=unbuffered) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline()) == {"text": "some text", "note": "x", "entities": []}
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 5


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet"])
def test_memory_does_not_grow_with_the_input(tmp_path: Path, name: str) -> None:
    texts = [f"{number:06}" + "中" * 94 for number in range(10_000)]  # 3 MB
    path = tmp_path / name
    if name == "a.parquet":
        parquet(path, texts)
    elif name == "a.jsonl":
        write(path, "".join(f'{{"text": "{text}"}}\n' for text in texts).encode())
    else:
        write(path, ("text\n" + "\n".join(texts)).encode())
    del texts
    convert(path, tmp_path / ("warm" + path.suffix))  # what is imported and cached once does not count
    tracemalloc.start()
    try:
        convert(path, tmp_path / ("out" + path.suffix))
        streamed = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        assert len(rows_of(path)) >= 10_000
        gathered = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert streamed < 1.5 * 2**20
    assert gathered > 3 * 2**20, "the control: all rows at once would have shown"
