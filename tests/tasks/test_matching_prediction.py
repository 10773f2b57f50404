"""`predict.py` with a matcher: pairs in every form, in order, with scores; what cannot be read is counted and said."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hanzoo import cli
from hanzoo.data.document import Pair
from hanzoo.data.randomness import reseed
from hanzoo.data.text_streams import read_rows
from hanzoo.models import model as model_module
from hanzoo.models.bi_encoder import BiEncoder
from hanzoo.models.model import load_model
from tests.fixtures import json_lines

pytestmark = pytest.mark.usefixtures("encoders")

TEXTS = ["王小明在北京工作", "今天下雨", "昨天的会开得太长了", '他说"好"，a, b', "张伟和刘洋"]
PAIRS = [(one, other) for one in TEXTS for other in TEXTS]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, encoders: Path) -> Path:
    """The folder of a matcher with a threshold and probabilities."""
    reseed(1, "weights")
    data = SimpleNamespace(train=[Pair(*pair) for pair in PAIRS])
    model = BiEncoder.build(BiEncoder.Config(encoder="tiny-bert"), data).eval()  # type: ignore[arg-type]
    model.threshold = float(np.median(model.scores(PAIRS)))
    model.calibration = (10.0, -10.0 * model.threshold)
    folder = tmp_path_factory.mktemp("run") / "model"
    folder.mkdir()
    model.save(folder)
    return folder


def scores(run: Path) -> list[float]:
    model = load_model(run)
    assert isinstance(model, BiEncoder)
    return [float(score) for score in model.scores(PAIRS)]


def tsv(header: str = "first\tsecond\n") -> str:
    return header + "".join(f"{first}\t{second}\n" for first, second in PAIRS)


def check(run: Path, records: list[dict[str, Any]], names: tuple[str, str] = ("first", "second")) -> None:
    """Each pair is there, in order, with what the model says of it."""
    model = load_model(run)
    assert isinstance(model, BiEncoder)
    assert [(record[names[0]], record[names[1]]) for record in records] == PAIRS
    expected = scores(run)
    assert np.allclose([float(record["score"]) for record in records], expected, atol=1e-6)
    assert model.calibration is not None
    assert np.allclose(
        [float(record["probability"]) for record in records], model.calibrated(np.array(expected)), atol=1e-5
    )
    assert {str(record["match"]).lower() for record in records} == {"true", "false"}
    for record in records:
        assert (str(record["match"]).lower() == "true") == (float(record["probability"]) >= 0.5)


def test_a_table_stays_one_or_becomes_lines(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(tsv(), encoding="utf-8")
    assert cli.predict([str(run), str(path)]) == 0
    check(run, json_lines(capfd.readouterr().out))
    assert cli.predict([str(run), str(path), "--output", str(tmp_path / "scored.tsv")]) == 0
    lines = (tmp_path / "scored.tsv").read_text(encoding="utf-8").split("\n")
    assert lines[0] == "first\tsecond\tscore\tprobability\tmatch\terror"
    check(run, [dict(zip(lines[0].split("\t"), line.split("\t"), strict=True)) for line in lines[1:-1]])
    assert capfd.readouterr().out == ""


def test_a_carriage_return_within_a_field_stays(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_bytes("first\tsecond\tnote\n今天\t下雨\ta\rb\n".encode())
    assert cli.predict([str(run), str(path), "--output", str(tmp_path / "scored.tsv")]) == 0
    assert b"\ta\rb\t" in (tmp_path / "scored.tsv").read_bytes()


def test_csv_json_lines_and_parquet(run: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (tmp_path / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["n", "sentence1", "sentence2"], *([n, *pair] for n, pair in enumerate(PAIRS))])
    assert cli.predict([str(run), str(tmp_path / "pairs.csv"), "--output", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    check(run, records, ("sentence1", "sentence2"))
    assert [record["n"] for record in records] == [str(number) for number in range(len(PAIRS))]

    lines = "".join(json.dumps({"id": n, "query": a, "document": b}) + "\n" for n, (a, b) in enumerate(PAIRS))
    (tmp_path / "pairs.jsonl").write_text(lines, encoding="utf-8")
    assert cli.predict([str(run), str(tmp_path / "pairs.jsonl"), "--output", str(tmp_path / "out.jsonl.gz")]) == 0
    with read_rows(tmp_path / "out.jsonl.gz", text_column="query") as rows:
        check(run, [dict(row.columns) for row in rows], ("query", "document"))

    table = pa.table({"first": [a for a, _ in PAIRS], "second": [b for _, b in PAIRS], "n": range(len(PAIRS))})
    pq.write_table(table, tmp_path / "pairs.parquet")
    assert cli.predict([str(run), str(tmp_path / "pairs.parquet"), "--output", str(tmp_path / "out.parquet")]) == 0
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.schema.field("match").type == pa.bool_()
    check(run, written.to_pylist())


def test_standard_input_needs_no_header(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(content: str) -> None:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content.encode())))

    given(tsv(header=""))
    assert cli.predict([str(run)]) == 0
    check(run, json_lines(capfd.readouterr().out))
    for header in ("first\tsecond\n", "sentence1\tsentence2\n"):  # a first line that names both sides is no pair
        given(tsv(header=header))
        assert cli.predict([str(run)]) == 0
        check(run, json_lines(capfd.readouterr().out), tuple(header.split()))
    given("first\t别的\n")  # one that names one side is
    assert cli.predict([str(run)]) == 0
    assert [row["second"] for row in json_lines(capfd.readouterr().out)] == ["别的"]
    given("".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in PAIRS))
    assert cli.predict([str(run), "-", "--format", "jsonl", "--columns", "first=a,second=b"]) == 0
    check(run, json_lines(capfd.readouterr().out), ("a", "b"))


def test_a_stream_with_columns_is_a_table(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(tsv(header="q\td\n").encode())))
    assert cli.predict([str(run), "-", "--columns", "first=q,second=d"]) == 0
    check(run, json_lines(capfd.readouterr().out), ("q", "d"))


def test_what_does_not_go_with_pairs_is_said_of_the_file(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairs.TXT"
    path.write_text(tsv(), encoding="utf-8")
    assert cli.predict([str(run), str(path), "--output", str(tmp_path / "out.jsonl")]) == 0
    capfd.readouterr()
    for given, said in (
        (
            [str(path), "--k", "3"],
            f"--k: must stand with a BEIR folder, but {path} holds pairs of texts. Leave it out.",
        ),
        (
            [str(tmp_path), "--columns", "first=a,second=b"],
            f"must stand with pairs of texts, but {tmp_path} holds a BEIR folder",
        ),
        ([str(tmp_path / "none"), "--k", "3"], f"{tmp_path / 'none'}: must exist, but does not"),
        ([str(path), "--columns", "first=1,second=1"], "must stand in two columns, but both are 1"),
        ([str(path), "--labels", "name"], f"--labels: the run must hold a tagger, but {run} holds a matcher"),
    ):
        assert cli.predict([str(run), *given]) == 2
        assert said in capfd.readouterr().err


def test_columns_by_number(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{b}\tx\t{a}\n" for a, b in PAIRS), encoding="utf-8")
    assert cli.predict([str(run), str(path), "--columns", "first=3,second=1"]) == 0
    check(run, json_lines(capfd.readouterr().out), ("3", "1"))
    assert cli.predict([str(run), str(path), "--columns", "first=3"]) == 2
    assert "numbers must be of both texts" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("one\ttwo\na\tb\n", "the file must have a column 'first', but its columns are 'one', 'two'"),
        ("first\ttwo\na\tb\n", "one column must hold the second texts (second, sentence2"),
        ("first\tquery\tsecond\na\tb\tc\n", "one column must hold the first texts"),
        ("first\tsecond\tsecond\na\tb\tc\n", "column names must be unique"),
        ("", "must hold texts, but is empty"),
    ],
)
def test_a_file_without_its_columns_is_one_error(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(content, encoding="utf-8")
    assert cli.predict([str(run), str(path), "--output", str(tmp_path / "out.jsonl")]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_bad_lines_are_refused_and_counted(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {
        2: (b"\xff\t\xe5\xa5\xbd", "must be UTF-8, but holds the byte 0xff"),
        5: ("好\t  ".encode(), "'second' must hold a character that is no blank, but is '  '"),
        9: ("好".encode(), "a line must hold 2 fields"),
        11: ("\u200b\t好".encode(), "a text to compare must hold a character that is no blank, but is '\\u200b'"),
        12: ("好\t\u200b\u200b".encode(), "is '\\u200b\\u200b'"),
        14: (b"a\tb\tc", "but holds 3"),
    }
    lines = [f"{first}\t{second}".encode() for first, second in PAIRS]
    for place, (line, _) in sorted(bad.items()):
        lines.insert(place, line)
    path = tmp_path / "pairs.tsv"
    path.write_bytes(b"first\tsecond\n" + b"\n".join(lines) + b"\n")
    monkeypatch.setattr(model_module, "TEXTS_A_CHUNK", 7)
    assert cli.predict([str(run), str(path)]) == 1
    out, err = capfd.readouterr()
    assert err == "6 of the inputs could not be read: see the field `error` of each\n"
    records = json_lines(out)
    for place, (_, message) in bad.items():
        assert records[place]["error"].startswith(f"{path}:{place + 2}: ")
        assert message in records[place]["error"]
        assert "score" not in records[place]
    check(run, [record for place, record in enumerate(records) if place not in bad])


def test_a_column_that_is_replaced_is_said(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("first\tsecond\tscore\n好\t坏\t5\n", encoding="utf-8")
    assert cli.predict([str(run), str(path)]) == 0
    out, err = capfd.readouterr()
    assert err == f"{path}: its columns score are replaced in what is written\n"
    assert json_lines(out)[0]["score"] != 5
    lines = tmp_path / "pairs.jsonl"
    rows = [{"first": "好", "second": "坏", "score": 5}, {"first": "好", "second": "坏"}]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert cli.predict([str(run), str(lines)]) == 0
    out, err = capfd.readouterr()
    assert err == f"{lines}: the key score of 1 lines is replaced in what is written\n"
    assert json_lines(out)[0]["score"] != 5


def test_what_the_model_does_not_say_is_no_column(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = load_model(run)
    assert isinstance(model, BiEncoder)
    model.threshold = model.calibration = None
    model.save(tmp_path)
    (tmp_path / "pairs.tsv").write_text(tsv(), encoding="utf-8")
    assert cli.predict([str(tmp_path), str(tmp_path / "pairs.tsv")]) == 0
    assert set(json_lines(capfd.readouterr().out)[0]) == {"first", "second", "score"}


def test_memory_does_not_grow_with_the_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk is written before the next one is read."""
    monkeypatch.setattr(model_module, "TEXTS_A_CHUNK", 5)
    events: list[str] = []
    plain = BiEncoder.scores

    def scored(self: BiEncoder, pairs: Any) -> Any:
        events.append(f"score {len(pairs)}")
        return plain(self, pairs)

    from hanzoo.tasks import matching_prediction

    rows_of = matching_prediction._with_both

    def read(*given: Any) -> Iterator[Any]:
        for row in rows_of(*given):
            events.append("read")
            yield row

    monkeypatch.setattr(BiEncoder, "scores", scored)
    monkeypatch.setattr(matching_prediction, "_with_both", read)
    path = tmp_path / "pairs.tsv"
    path.write_text(tsv(), encoding="utf-8")
    assert cli.predict([str(run), str(path), "--output", str(tmp_path / "out.jsonl")]) == 0
    assert events == [*["read"] * 5, "score 5"] * (len(PAIRS) // 5)


def test_an_output_is_whole_or_not_there(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, output = tmp_path / "pairs.tsv", tmp_path / "out.tsv"
    path.write_text(tsv(), encoding="utf-8")
    output.write_text("before", encoding="utf-8")
    monkeypatch.setattr(model_module, "TEXTS_A_CHUNK", 5)
    plain = BiEncoder.scores
    left = [2]

    def fails(self: BiEncoder, pairs: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return plain(self, pairs)

    monkeypatch.setattr(BiEncoder, "scores", fails)
    assert cli.predict([str(run), str(path), "--output", str(output)]) == 130
    assert output.read_text(encoding="utf-8") == "before"
    assert {entry.name for entry in tmp_path.iterdir()} == {"pairs.tsv", "out.tsv"}


def test_the_input_is_not_overwritten(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(tsv(), encoding="utf-8")
    assert cli.predict([str(run), str(path), "--output", str(path)]) == 2
    assert "must be another file than the input" in capfd.readouterr().err
    assert path.read_text(encoding="utf-8") == tsv()
