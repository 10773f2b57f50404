"""BEIR folders: read as they are, each fault said with its line."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

from hanzoo.data.beir import read_beir
from hanzoo.data.document import Passage, Query
from hanzoo.errors import DataError

HEADER = "query-id\tcorpus-id\tscore\n"
FILES = {
    "corpus.jsonl": (
        '{"_id": "d0", "title": "", "text": "合同"}\n{"_id": "d1", "text": "正文", "title": "标题"}\n'
        '{"_id": "d2", "text": "", "title": "t"}\n{"_id": "d3", "title": "题"}\n{"_id": "d4", "text": null, "title": "u"}\n'
    ),
    "queries.jsonl": '{"_id": "q0", "text": "谁"}\n{"_id": "q1", "text": "何时"}\n{"_id": "q2", "text": "哪里"}\n',
    "qrels/train.tsv": HEADER + "q0\td0\t1\nq0\td1\t0\n",
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\r\nq1\td1\t2\r\nq1\td1\t2\r\nq2\td0\t0\r\n",
}


def folder_with(folder: Path, **changed: str | None) -> Path:
    """Write the files, those of `changed` with other content; None leaves one out."""
    names = dict(zip(("corpus", "queries", "train", "test"), FILES, strict=True))
    files = {**FILES, **{names[short]: text for short, text in changed.items()}}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder


def test_a_folder_is_read(tmp_path: Path) -> None:
    data = read_beir(folder_with(tmp_path / "own"))
    assert (data.name, data.official) == ("own", False)
    assert data.corpus[0] == Passage("d0", "合同", "", f"{tmp_path}/own/corpus.jsonl:1")
    assert [passage.full_text for passage in data.corpus] == ["合同", "标题 正文", "t", "题", "u"]
    assert data.queries["q1"] == Query("q1", "何时", f"{tmp_path}/own/queries.jsonl:2")
    assert {split: {query: dict(judged) for query, judged in qrels.items()} for split, qrels in data.qrels.items()} == {
        "test": {"q1": {"d1": 2}, "q2": {"d0": 0}},
        "train": {"q0": {"d0": 1, "d1": 0}},
    }
    assert [query.id for query in data.queries_of("test")] == ["q1", "q2"]
    assert data.notes == (
        "5 passages, 3 queries",
        "test: 2 queries, 2 judged pairs, 1 of them relevant",
        "test: 1 judgements stand twice (counted once)",
        "test: 1 queries have no relevant passage: they count in no figure",
        "train: 1 queries, 2 judged pairs, 1 of them relevant",
    )
    assert data.hashes["queries.jsonl"] == hashlib.sha256(FILES["queries.jsonl"].encode()).hexdigest()
    only = read_beir(tmp_path / "own", ["train"])
    assert list(only.qrels) == ["train"]
    assert only.notes[-1] == "2 queries are judged in no split that was read: they are not used"
    with pytest.raises(DataError, match="the split must be one of train, but is 'test'"):
        only.judged("test")
    (tmp_path / "own" / "qrels" / "test.tsv").write_text("no judgement", encoding="utf-8")
    (tmp_path / "own" / "qrels" / "._train.tsv").write_bytes(b"\x00\xff")
    assert list(read_beir(tmp_path / "own", ["train"]).qrels) == ["train"]
    none = read_beir(tmp_path / "own", [])
    assert (none.queries, none.notes) == (data.queries, ("5 passages, 3 queries",))
    with pytest.raises(
        DataError, match=r"own: the split must be one of test, train, but is 'tset'\. Did you mean 'test'"
    ):
        read_beir(tmp_path / "own", ["tset"])
    with pytest.raises(DataError, match=r"test\.tsv:1: the first line must be the header"):
        read_beir(tmp_path / "own")


def test_files_may_be_gzipped(tmp_path: Path) -> None:
    plain = read_beir(folder_with(tmp_path / "plain"))
    folder = folder_with(tmp_path / "packed")
    for name in FILES:
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    (folder / "qrels" / "test.tsv.gz").rename(folder / "qrels" / "test.rebuilt.tsv.gz")
    packed = read_beir(folder)
    assert packed.hashes == plain.hashes
    assert [passage.text for passage in packed.corpus] == [passage.text for passage in plain.corpus]
    assert packed.qrels == plain.qrels


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"corpus": '{"_id": "d0", "text": "a"}\n{"_id": "d0", "text": "b"}\n'},
         r"corpus\.jsonl:2: \"_id\" must be unique in its file, but 'd0' stands at .*corpus\.jsonl:1 too"),
        ({"corpus": '{"_id": "d0", "text": " ", "title": ""}\n'}, r"corpus\.jsonl:1: a passage must have a text or a title"),
        ({"corpus": '{"_id": "d0", "text": "\\u200b", "title": "\\ue000"}\n'}, r"jsonl:1: a passage must have a text"),
        ({"corpus": '{"_id": 0, "text": "a"}\n'}, r'corpus\.jsonl:1: "_id" must be a string, but is 0'),
        ({"corpus": '{"_id": "", "text": "a"}\n'}, r'corpus\.jsonl:1: "_id" must be a string that is not empty'),
        ({"corpus": '{"_id": "a\\nb", "text": "a"}\n'}, r"corpus\.jsonl:1: .* end of line or lone surrogate, but is 'a\\nb'"),
        ({"queries": '{"_id": "\\ud83d", "text": "a"}\n'}, r"queries\.jsonl:1: .* or lone surrogate, but is '\\ud83d'"),
        ({"corpus": '{"_id": "d0"}\n'}, r"corpus\.jsonl:1: a passage must have a text or a title, but 'd0' has none"),
        ({"corpus": '{"_id": "d0", "text": 1}\n'}, r'corpus\.jsonl:1: "text" must be a string, but is 1'),
        ({"corpus": '{"_id": "d0", "text": "a", "title": 1}\n'}, r'corpus\.jsonl:1: "title" must be a string'),
        ({"queries": '{"_id": "q0", "text": " "}\n'}, r"queries\.jsonl:1: the text of a query must hold a character"),
        ({"queries": '{"_id": "q0", "text": "\\u200b\\u0000"}\n'}, r"queries\.jsonl:1: the text of a query must hold a character"),
        ({"queries": '{"_id": "q0", "text": "a"}\n{"_id": "q0", "text": "a"}\n'}, r"queries\.jsonl:2: .* must be unique"),
        ({"queries": None}, r"queries\.jsonl: the file must exist, also as queries\.jsonl\.gz, but does not"),
        ({"test": HEADER + "q9\td0\t1\n"}, r"test\.tsv:2: an id must be one of queries\.jsonl, but 'q9'"),
        ({"test": HEADER + "q0\td9\t1\n"}, r"test\.tsv:2: an id must be one of corpus\.jsonl, but 'd9'"),
        ({"test": "q0\td0\t1\n"}, r"test\.tsv:1: the first line must be the header query-id, corpus-id, score"),
        ({"test": HEADER + "q0\td0\n"}, r"test\.tsv:2: a line must hold 3 fields .* but holds 2"),
        ({"test": HEADER + "q0\td0\t-1\n"}, r"test\.tsv:2: the score must be a whole number from 0"),
        ({"test": HEADER + f"q0\td0\t{'9' * 5000}\n"}, r"test\.tsv:2: .* of 9 digits at most, but is .9999"),
        ({"test": HEADER + "q0\td0\t1\nq0\td0\t2\n"}, r":3: a passage must be judged once, but 'd0' is 1 and 2"),
        ({"test": HEADER}, r"test\.tsv: must hold at least one judgement"),
        ({"test": None, "train": None}, r"qrels: must hold SPLIT\.tsv, but holds none"),
    ],
)  # fmt: skip
def test_faults_are_said_with_their_line(tmp_path: Path, changed: dict[str, str | None], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_beir(folder_with(tmp_path, **changed))


def test_a_folder_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: must be a folder with corpus\.jsonl"):
        read_beir(tmp_path / "none")
