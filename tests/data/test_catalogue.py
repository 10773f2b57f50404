from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from hanzoo.data import catalogue
from hanzoo.data.catalogue import (
    DATA_SETS,
    find_file,
    find_texts,
    is_held_out,
    load_tagging_data,
    plain_sha256,
    seen_in_train,
)
from hanzoo.data.document import Document, Span
from hanzoo.data.readers import spans
from hanzoo.errors import DataError, RecipeError

TEXTS = [f"张三去北京第{number}次" for number in range(100)]
GOLD = (Span(0, 2, "name"), Span(3, 5, "address"))


def documents_of(texts: Iterable[str], gold: tuple[Span, ...] = GOLD) -> list[Document]:
    return [Document(text, gold) for text in texts]


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Path]:
    def write(documents: Iterable[Document], name: str = "my.jsonl") -> Path:
        spans.write(tmp_path / name, documents)
        return tmp_path / name

    return write


@pytest.fixture
def small_cluener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the form of CLUENER whose counts are held to be the official ones."""
    folder = tmp_path / "data" / "cluener"
    folder.mkdir(parents=True)
    label = {"name": {"张三": [[0, 1]]}, "address": {"北京": [[3, 4]]}}
    for name, texts in (("train", TEXTS), ("dev", ["张三去北京玩", TEXTS[3]])):
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text in texts]
        (folder / f"{name}.json").write_text("\n".join(lines), encoding="utf-8")
    (folder / "test.json").write_text('{"id": 0, "text": "李四"}\n', encoding="utf-8")
    counts: dict[catalogue.Split, tuple[int, int | None]] = {"train": (100, 200), "dev": (2, 4), "test": (1, 0)}
    entry = dataclasses.replace(DATA_SETS["cluener"], counts=counts)
    monkeypatch.setattr(catalogue, "DATA_SETS", {**DATA_SETS, "cluener": entry})
    monkeypatch.setenv("HANZOO_DATA", str(tmp_path / "data"))
    return folder


# --- the hash --------------------------------------------------------------------------------------------------------


def test_the_rule_of_the_held_out_part_never_changes() -> None:
    held = [text for text in TEXTS if is_held_out(text)]
    digest = int.from_bytes(hashlib.sha256(TEXTS[0].encode()).digest()[:8], "big")
    assert is_held_out(TEXTS[0], parts=7) == (digest % 7 == 0)
    assert held == [f"张三去北京第{number}次" for number in (5, 6, 8, 9, 14, 15, 16, 49, 52, 54, 69, 70, 71, 73, 84)]
    assert isinstance(is_held_out("\ud800"), bool)
    assert is_held_out("什么", parts=1)
    assert 900 < sum(is_held_out(str(number)) for number in range(10_000)) < 1_100


# --- files of one's own ----------------------------------------------------------------------------------------------


def test_one_file_is_enough(own: Callable[..., Path]) -> None:
    path = own(documents_of(TEXTS))
    data = load_tagging_data(path=path)
    assert [document.text for document in data.dev] == [text for text in TEXTS if is_held_out(text)]
    assert [document.text for document in data.train] == [text for text in TEXTS if not is_held_out(text)]
    assert data.test is None
    assert (data.name, data.view, data.official) == ("my", "", False)
    assert data.labels == ("address", "name")
    assert data.hashes == {"my.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert any("dev is 10 % of train by a hash" in note for note in data.notes)
    assert data.protocol == "selected on 10 % of train, reported on 10 % of train"
    assert data.split("dev") == data.dev
    with pytest.raises(DataError, match="no test with labels"):
        data.split("test")
    with pytest.raises(DataError, match="Did you mean 'train'"):
        data.split("trian")


def test_three_files(own: Callable[..., Path]) -> None:
    train = own(documents_of(TEXTS), "a.jsonl.gz")
    dev = own(documents_of([TEXTS[0], "张三去北京玩"]), "b.jsonl")
    test = own(documents_of(["张三爱北京"]), "c.jsonl")
    data = load_tagging_data(train=train, dev=dev, test=test)
    assert (len(data.train), len(data.dev)) == (100, 2)
    assert data.test is not None
    assert len(data.test) == 1
    assert data.protocol == "selected on b.jsonl, reported on c.jsonl"
    assert "1 of 2 dev sentences stand in train" in data.notes
    assert not any("test sentences stand in train" in note for note in data.notes)
    assert set(data.hashes) == {"a.jsonl", "b.jsonl", "c.jsonl"}
    assert data.hashes["a.jsonl"] == hashlib.sha256(gzip.decompress(train.read_bytes())).hexdigest()
    cut = load_tagging_data(train=train, dev=dev, test=test, dev_from_train=True)
    assert cut.test == data.test
    assert cut.protocol == "selected on 10 % of train, reported on c.jsonl"
    assert "b.jsonl is not used" in cut.notes


def test_a_format_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "w.txt"
    path.write_text(
        "".join(f"第0\tB-x\n{number}1\tI-x\n好0\tO\n\n" for number in range(50) if number < 10), encoding="utf-8"
    )
    named = load_tagging_data(path=path, dev=path, format="weibo")
    guessed = load_tagging_data(path=path, dev=path)
    assert named.train[0].text == "第0好"
    assert guessed.train[0].text == "第001好0"


def test_a_file_of_ones_own_never_bears_the_name_of_a_known_data_set(own: Callable[..., Path]) -> None:
    assert load_tagging_data(path=own(documents_of(TEXTS), "msra.jsonl.gz")).name == "msra (own file)"


def test_a_rare_label_stays_in_train(own: Callable[..., Path]) -> None:
    held = next(text for text in TEXTS if is_held_out(text))
    documents = [Document(text, (Span(0, 1, "rare"),) if text == held else GOLD) for text in TEXTS]
    data = load_tagging_data(path=own(documents))
    assert held in {document.text for document in data.train}
    assert held not in {document.text for document in data.dev}
    assert len(data.train) + len(data.dev) == 100
    assert "rare" in data.labels
    assert any("1 held-out sentences have a label found nowhere else" in note for note in data.notes)


def test_too_few_sentences_to_hold_out(own: Callable[..., Path]) -> None:
    few = [text for text in TEXTS if not is_held_out(text)][:3]
    with pytest.raises(DataError, match=r"my: 10 % of train must hold sentences.* Give a file for dev"):
        load_tagging_data(path=own(documents_of(few)))


def test_a_label_that_train_lacks(own: Callable[..., Path]) -> None:
    train = own(documents_of(TEXTS), "train.jsonl")
    for split in ("dev", "test"):
        wrong = own(
            [Document("张三", (Span(0, 2, "name"),)), Document("张三", (Span(0, 2, "nmae"),))], f"{split}.jsonl"
        )
        files = {"train": train, "dev": train, split: wrong}
        message = rf"{split}.jsonl:2: a label in {split} must be one of train's \(address, name\), but is 'nmae'. Did you mean"
        with pytest.raises(DataError, match=message):
            load_tagging_data(**files)  # type: ignore[arg-type]


def test_texts_without_labels_are_refused_but_in_test(own: Callable[..., Path], tmp_path: Path) -> None:
    train = own(documents_of(TEXTS), "train.jsonl")
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"text": "甲"}\n{"text": "乙"}\n', encoding="utf-8")
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text('{"text": "甲", "spans": []}\n{"text": "乙"}\n', encoding="utf-8")
    data = load_tagging_data(train=train, test=bare)
    assert data.test is None
    assert [document.text for document in data.unlabelled] == ["甲", "乙"]
    for files in ({"train": train, "dev": bare}, {"train": train, "test": mixed}, {"path": mixed}):
        with pytest.raises(DataError, match=r"jsonl:\d: a text in \w+ must say its entities"):
            load_tagging_data(**files)  # type: ignore[arg-type]


def test_train_without_entities_is_refused(own: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="train must hold entities"):
        load_tagging_data(path=own(documents_of(TEXTS, ())))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "name, hub, or path must be given"),
        ({"name": "cluner"}, "Did you mean 'cluener'"),
        ({"name": "cluener", "path": "x"}, "both are"),
        ({"hub": "a/b", "train": "x"}, "both are"),
        ({"path": "x", "train": "x"}, "one of path and train"),
        ({"dev": "x"}, "data.train: must be given"),
        ({"name": "cluener", "format": "spans"}, "data.format"),
        ({"name": "cluener", "view": "nam"}, "none for this data"),
        ({"name": "weibo", "view": "all"}, "nam, nom; but is 'all'"),
        ({"path": "x", "view": "nam"}, "data.view"),
    ],
)
def test_arguments_that_contradict_each_other(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_tagging_data(**arguments)  # type: ignore[arg-type]


# --- by name ---------------------------------------------------------------------------------------------------------


def test_a_named_data_set(small_cluener: Path) -> None:
    data = load_tagging_data(name="cluener")
    assert (data.name, data.official) == ("cluener", True)
    assert (len(data.train), len(data.dev), data.test, len(data.unlabelled)) == (100, 2, None, 1)
    assert data.protocol == "selected on dev, reported on dev"
    assert "1 of 2 dev sentences stand in train" in data.notes
    assert "CLUENER2020" in data.source
    assert data.hashes["test.json"] == plain_sha256(small_cluener / "test.json")


def test_the_official_dev_can_be_kept_for_reporting(small_cluener: Path) -> None:
    data = load_tagging_data(name="cluener", dev_from_train=True)
    assert [document.text for document in data.dev] == [text for text in TEXTS if is_held_out(text)]
    assert not {document.text for document in data.train} & {document.text for document in data.dev}
    assert data.test == load_tagging_data(name="cluener").dev
    assert (data.dev_source, data.test_source) == ("10 % of train", "dev")
    assert data.protocol == "selected on 10 % of train, reported on dev"
    assert data.official


def test_another_copy_gets_another_name(small_cluener: Path) -> None:
    lines = (small_cluener / "dev.json").read_text(encoding="utf-8").split("\n")
    (small_cluener / "dev.json").write_text(lines[0], encoding="utf-8")
    data = load_tagging_data(name="cluener")
    assert (data.name, data.official) == ("cluener-unofficial", False)
    assert (
        "not the official cluener: dev has 1 sentences and 2 entities, officially 2 sentences and 4 entities"
        in data.notes
    )


def test_rebuilt_and_gzipped_files_are_found_and_said(small_cluener: Path) -> None:
    plain = (small_cluener / "train.json").read_bytes()
    (small_cluener / "train.json").unlink()
    (small_cluener / "train.rebuilt.json.gz").write_bytes(gzip.compress(plain))
    data = load_tagging_data(name="cluener")
    assert data.official
    assert any("train.rebuilt.json.gz: read in place of the official train.json" in note for note in data.notes)
    assert data.hashes["train.rebuilt.json"] == hashlib.sha256(plain).hexdigest()
    (small_cluener / "train.json.gz").write_bytes(gzip.compress(plain))  # the official file comes first
    data = load_tagging_data(name="cluener")
    assert not any("rebuilt" in note for note in data.notes)
    assert data.hashes["train.json"] == hashlib.sha256(plain).hexdigest()


def test_the_order_in_which_a_file_is_looked_for(tmp_path: Path) -> None:
    assert find_file(tmp_path, "a.b.train") is None
    for name in ("a.b.rebuilt.train.gz", "a.b.rebuilt.train", "a.b.train.gz", "a.b.train"):
        (tmp_path / name).touch()
        assert find_file(tmp_path, "a.b.train") == tmp_path / name


def test_missing_files_say_how_to_get_them(small_cluener: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small_cluener / "test.json").unlink()
    data = load_tagging_data(name="cluener")
    assert data.official
    assert data.unlabelled == ()
    (small_cluener / "dev.json").unlink()
    with pytest.raises(
        DataError, match=r"cluener.dev\.json: the file must exist.*CLUENER2020.*2 sentences, 4 entities.*HANZOO_DATA"
    ):
        load_tagging_data(name="cluener")
    monkeypatch.delenv("HANZOO_DATA")
    with pytest.raises(
        DataError, match=r"HANZOO_DATA: must be the folder.*train\.json.*CLUENER2020.*train\.json: 100 sentences"
    ):
        load_tagging_data(name="cluener")


def test_a_view_keeps_its_labels_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "weibo"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        content = f"{split[1]}0\tB-PER.NAM\n乙0\tB-PER.NOM\n丙0\tO\n\n"
        (folder / f"weiboNER_2nd_conll.{split}").write_text(content, encoding="utf-8")
    monkeypatch.setenv("HANZOO_DATA", str(tmp_path))
    wanted = {"": ("PER.NAM", "PER.NOM"), "nam": ("PER.NAM",), "nom": ("PER.NOM",)}
    for view, labels in wanted.items():
        data = load_tagging_data(name="weibo", view=view)
        assert data.view == view
        assert data.name == "weibo-unofficial"
        assert data.test is not None
        for documents in (data.train, data.dev, data.test):
            assert {span.label for document in documents for span in document.spans} == set(labels)
        assert data.labels == labels


def test_seen_in_train_compares_texts() -> None:
    train = documents_of(["甲", "乙"])
    assert seen_in_train(documents_of(["乙", "丙", "乙 "], ()), train) == [True, False, False]


# --- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    datasets = pytest.importorskip("datasets")

    def put(loaded: Any) -> None:
        def load_dataset(name: str) -> Any:
            if isinstance(loaded, Exception):
                raise loaded
            return datasets.DatasetDict(loaded)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return put


def test_tokens_and_tags_from_the_hub(hub: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=["O", "B-NR", "I-NR"])),
        }
    )
    rows = {"tokens": [["张", "三", text[6:]] for text in TEXTS], "ner_tags": [[1, 2, 0]] * 99 + [[2, 2, 0]]}
    train = datasets.Dataset.from_dict(rows, features=features)
    hub({"train": train, "validation": train.select([1]), "test": train.select([1, 2])})
    data = load_tagging_data(hub="some/msra")
    assert data.name == "some/msra"
    assert not data.official
    assert data.train[0] == Document("张三" + TEXTS[0][6:], (Span(0, 2, "NR"),), "hub:some/msra/train:0")
    assert (len(data.train), len(data.dev), len(data.test or ())) == (100, 1, 2)
    assert any("1 tags in illegal sequences mended" in note and "train:99" in note for note in data.notes)
    assert set(data.hashes) == {"hub:some/msra/train", "hub:some/msra/validation", "hub:some/msra/test"}
    other = load_tagging_data(hub="some/msra", name="msra")
    assert (other.name, other.official) == ("some/msra (not the official msra)", False)
    hub({"train": train, "test": train.select([1, 2])})
    entry = dataclasses.replace(DATA_SETS["msra"], counts={"train": (100, 100), "test": (2, 2)})
    monkeypatch.setattr(catalogue, "DATA_SETS", {**DATA_SETS, "msra": entry})
    same = load_tagging_data(hub="some/msra", name="msra")
    assert (same.name, same.official) == ("msra", True)
    assert same.dev_source == "10 % of train"


def test_texts_and_entities_from_the_hub(hub: Callable[[Any], None]) -> None:
    import datasets

    entities = [{"start": 0, "end": 2, "label": "name"}, {"start": 3, "end": 5, "label": "address"}]
    hub({"train": datasets.Dataset.from_dict({"text": TEXTS, "entities": [entities] * 100})})
    data = load_tagging_data(hub="some/spans")
    assert data.train[0].spans == GOLD
    assert len(data.train) + len(data.dev) == 100


def test_what_the_hub_may_have_wrong(hub: Callable[[Any], None]) -> None:
    import datasets

    wrong: list[tuple[Any, str]] = [
        (ConnectionError("no network"), "`datasets` must be able to load it, but: ConnectionError: no network"),
        ({"test": datasets.Dataset.from_dict({"tokens": [["a"]], "tags": [["O"]]})}, "must have a split train"),
        ({"train": datasets.Dataset.from_dict({"words": [["a"]]})}, "must have the columns"),
        ({"train": datasets.Dataset.from_dict({"tokens": [["a"]], "tags": [["O", "O"]]})}, "train:0: .*equally many"),
        ({"train": datasets.Dataset.from_dict({"tokens": [["a"]], "tags": [[3]]})}, "train:0: tags must be strings"),
        ({"train": datasets.Dataset.from_dict({"tokens": [["a"]], "tags": [["X"]]})}, "some/data/train: a tag must be"),
        (
            {
                "train": datasets.Dataset.from_dict(
                    {"text": ["a"], "entities": [[{"start": 0, "end": 2, "label": "x"}]]}
                )
            },
            "train:0: 0 <= start < end <= 1 must hold",
        ),
    ]
    for loaded, message in wrong:
        hub(loaded)
        with pytest.raises(DataError, match=message):
            load_tagging_data(hub="some/data")


# --- what comes with hanzoo, and the real files ----------------------------------------------------------------------


def test_the_bundled_corpus() -> None:
    data = load_tagging_data(name="bundled")
    assert (data.name, data.official) == ("bundled", True), data.notes
    assert (len(data.train), len(data.dev), len(data.test or ())) == (400, 100, 100)
    assert len(data.labels) == 10


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "train", "dev", "test", "labels", "seen"),
    [
        ("cluener", 10_748, 1_343, None, 10, None),
        ("msra", 41_688, 4_676, 4_365, 3, 0),
        ("weibo", 1_350, 270, 270, 8, 40),
        ("resume", 3_821, 463, 477, 8, 5),
    ],
)
def test_real_data_sets_are_recognised(
    name: str, train: int, dev: int, test: int | None, labels: int, seen: int | None
) -> None:
    assert os.environ["HANZOO_DATA"]
    data = load_tagging_data(name=name)
    assert data.official, data.notes
    assert (len(data.train), len(data.dev), data.test and len(data.test)) == (train, dev, test)
    assert len(data.labels) == labels
    if data.test is not None:
        assert sum(seen_in_train(data.test, data.train)) == seen
    assert len(data.unlabelled) == (1_345 if name == "cluener" else 0)


@pytest.mark.data
def test_the_views_of_weibo() -> None:
    counts = {}
    for view in ("", "nam", "nom"):
        data = load_tagging_data(name="weibo", view=view)
        assert data.official
        counts[view] = sum(len(document.spans) for document in data.test or ())
    assert counts == {"": 418, "nam": 218, "nom": 200}


def test_a_file_of_texts_is_found_as_named_or_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HANZOO_DATA", raising=False)
    (tmp_path / "more.txt").write_text("a", encoding="utf-8")
    assert find_texts("more.txt") == Path("more.txt")
    (tmp_path / "all/cluener").mkdir(parents=True)
    (tmp_path / "all/cluener/test.json.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"cluener/test.json: the file must exist, .* HANZOO_DATA, .* is not set"):
        find_texts("cluener/test.json")
    monkeypatch.setenv("HANZOO_DATA", str(tmp_path / "all"))
    assert find_texts("cluener/test.json") == tmp_path / "all/cluener/test.json.gz"
    with pytest.raises(DataError, match=r"cluener/dev.json: the file must exist, but does not, nor in HANZOO_DATA"):
        find_texts("cluener/dev.json")
