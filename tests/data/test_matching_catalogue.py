"""Data sets for matching by name: recognised by their counts, called otherwise where these differ; files of one's own."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from hanzoo.data import matching_catalogue
from hanzoo.data.catalogue import SPLITS, plain_sha256
from hanzoo.data.document import Pair
from hanzoo.data.leakage import LEAKS, leakage
from hanzoo.data.matching_catalogue import (
    MATCHING_SETS,
    SplitCounts,
    is_pair_held_out,
    load_pairs,
    load_retrieval,
    load_triples,
)
from hanzoo.errors import DataError, RecipeError
from tests.data.test_beir import folder_with


def rows(first: int, count: int) -> str:
    return "".join(f"问题{number}\t答案{number}\t{number % 2}\n" for number in range(first, first + count))


@pytest.fixture
def small_lcqmc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HANZOO_DATA with an LCQMC of a few rows, whose counts are held to be the official ones."""
    counts = {
        split: SplitCounts(count, {0.0: count // 2, 1.0: count // 2})
        for split, count in zip(SPLITS, (20, 4, 6), strict=True)
    }
    entry = replace(MATCHING_SETS["lcqmc"], counts=counts)
    monkeypatch.setattr(matching_catalogue, "MATCHING_SETS", MappingProxyType({**MATCHING_SETS, "lcqmc": entry}))
    folder = tmp_path / "lcqmc"
    folder.mkdir()
    (folder / "train.rebuilt.txt").write_text(rows(0, 20), encoding="utf-8")
    (folder / "dev.txt").write_text(rows(18, 4), encoding="utf-8")
    (folder / "test.txt").write_text(rows(100, 6), encoding="utf-8")
    monkeypatch.setenv("HANZOO_DATA", str(tmp_path))
    return folder


def test_a_data_set_is_recognised_by_its_counts(small_lcqmc: Path) -> None:
    data = load_pairs(name="lcqmc")
    assert (data.name, data.official, data.protocol) == ("lcqmc", True, "selected on dev, reported on test")
    assert (len(data.train), len(data.dev), len(data.test or ())) == (20, 4, 6)
    assert data.train[0] == Pair("问题0", "答案0", 0.0, f"{small_lcqmc}/train.rebuilt.txt:1")
    assert data.hashes["dev.txt"] == plain_sha256(small_lcqmc / "dev.txt")
    assert "train.rebuilt.txt: read in place of the official train.txt: rebuilt, its order may differ" in data.notes
    assert any(
        "2 of 4 dev pairs stand in train, in either order, 2 of them with the same label" in n for n in data.notes
    )
    assert data.split("dev") == data.dev
    with pytest.raises(DataError, match=r"split: must be one of train, dev, test, but is 'tset'\. Did you mean 'test'"):
        data.split("tset")

    (small_lcqmc / "dev.txt").write_text(rows(18, 3), encoding="utf-8")
    other = load_pairs(name="lcqmc")
    assert (other.name, other.official) == ("lcqmc-unofficial", False)
    assert (
        "not the official lcqmc: dev has 3 rows (0: 2, 1: 1; 0 left out), officially 4 rows (0: 2, 1: 2; 0 left out)"
        in other.notes
    )


def test_a_missing_file_says_how_to_get_it(small_lcqmc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small_lcqmc / "test.txt").unlink()
    with pytest.raises(
        DataError, match=r"test\.txt: the file must exist, also as .* Get lcqmc from HIT ICRC.*: 20 rows"
    ):
        load_pairs(name="lcqmc")
    monkeypatch.delenv("HANZOO_DATA")
    with pytest.raises(DataError, match=r"HANZOO_DATA: must be the folder that holds lcqmc/train\.txt, but is not set"):
        load_pairs(name="lcqmc")
    with pytest.raises(
        DataError, match=r"holds stard/corpus\.jsonl, .*\(a BEIR folder: 40,855 passages, 1,543 queries"
    ):
        load_retrieval(name="stard")


def test_the_official_dev_is_not_touched_where_a_tenth_of_train_is_asked_for(small_lcqmc: Path) -> None:
    (small_lcqmc / "train.rebuilt.txt").write_text(rows(0, 60), encoding="utf-8")
    data = load_pairs(name="lcqmc", dev_from_train=True)
    assert data.protocol == "selected on 10 % of train, reported on test"
    assert "dev is not used" in data.notes
    assert len(data.train) + len(data.dev) == 60
    assert all(map(is_pair_held_out, data.dev))
    assert not any(map(is_pair_held_out, data.train))


def test_an_unlabelled_test_is_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANZOO_DATA", str(tmp_path))
    folder = tmp_path / "afqmc"
    folder.mkdir()
    for split, count in (("train", 60), ("dev", 4)):
        lines = [{"sentence1": f"{split}{k}", "sentence2": f"b{split}{k}", "label": str(k % 2)} for k in range(count)]
        (folder / f"{split}.json").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert "test.json: absent; it has no labels and is needed for a submission only" in load_pairs(name="afqmc").notes
    (folder / "test.json").write_text('{"id": 0, "sentence1": "a", "sentence2": "b"}\n', encoding="utf-8")
    data = load_pairs(name="afqmc")
    assert (data.test, len(data.unlabelled), data.unlabelled[0].id) == (None, 1, 0)
    assert data.protocol == "selected on dev, reported on dev"
    with pytest.raises(DataError, match=r"test must have labels, but .* has no test with labels\. Use the split dev"):
        data.split("test")
    held_out = load_pairs(name="afqmc", dev_from_train=True)
    assert held_out.protocol == "selected on 10 % of train, reported on dev"
    assert held_out.test == data.dev


def test_the_rule_of_the_held_out_tenth_is_fixed() -> None:
    pairs = [Pair(f"问题{number}", f"答案{number}", 0.0) for number in range(400)]
    held = [number for number, pair in enumerate(pairs) if is_pair_held_out(pair)]
    assert len(held) == pytest.approx(40, abs=20)
    assert held[:5] == [11, 28, 29, 39, 47]
    for pair in pairs:
        assert is_pair_held_out(Pair(pair.second, pair.first)) == is_pair_held_out(pair)


def test_files_of_ones_own(tmp_path: Path) -> None:
    for split, first, count in (("train", 0, 20), ("dev", 50, 4), ("test", 60, 4)):
        (tmp_path / f"{split}.tsv").write_text(f"s1\ts2\tlabel\n{rows(first, count)}", encoding="utf-8")
    data = load_pairs(train=tmp_path / "train.tsv", dev=tmp_path / "dev.tsv", test=tmp_path / "test.tsv")
    assert (data.name, data.official, data.scale.name) == ("train", False, "binary")
    assert data.protocol == "selected on dev.tsv, reported on test.tsv"
    assert sorted(data.hashes) == ["dev.tsv", "test.tsv", "train.tsv"]
    graded = tmp_path / "lcqmc.csv"
    graded.write_text("a,b,c\n" + "".join(f"x{k},y{k},{k % 6}\n" for k in range(60)), encoding="utf-8")
    names: dict[str, str | int] = {"first": "a", "second": "b", "label": "c"}
    own = load_pairs(train=graded, scale="sts", columns=names)
    assert own.name == "lcqmc (own file)"
    assert {pair.label for pair in own.train} == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}
    with pytest.raises(DataError, match=r"lcqmc\.csv:4: the label must be one of 0, 1 \(scale binary\), but is '2'"):
        load_pairs(train=graded, columns=names)


def test_dev_has_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("s1\ts2\n" + "".join(f"a{k}\tb{k}\n" for k in range(60)), encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.tsv:2: a pair must have a label where a tenth of train serves as dev"):
        load_pairs(train=path)
    with pytest.raises(DataError, match=r"a\.tsv:2: a pair in dev must have a label, but has none"):
        load_pairs(train=path, dev=path)
    path.write_text("s1\ts2\tlabel\na\tb\t1\n", encoding="utf-8")
    with pytest.raises(DataError, match="10 % of train must hold pairs to serve as dev"):
        load_pairs(train=path)


def test_arguments_that_contradict_each_other() -> None:
    for arguments, said in (
        ({}, "must be given, but none is"),
        ({"name": "bq", "train": "a.tsv"}, "but both are"),
        ({"name": "bq", "scale": "sts"}, "scale and columns are for files of one's own"),
        ({"name": "lcqcm"}, "must be one of afqmc, .* but is 'lcqcm'. Did you mean 'lcqmc'"),
        ({"name": "simclue"}, r"must be a data set of pairs \(afqmc.*\), but simclue is one of triples"),
        ({"dev": "a.tsv"}, "data.train: must be given"),
        ({"train": "a.tsv", "scale": "stss"}, "data.scale: must be one of binary, .* Did you mean 'sts'"),
    ):
        with pytest.raises(RecipeError, match=said):
            load_pairs(**arguments)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="exactly one of name and train"):
        load_triples()
    with pytest.raises(RecipeError, match=r"data\.columns: is for files of one's own"):
        load_triples(name="simclue", columns={"anchor": 1})
    with pytest.raises(RecipeError, match="exactly one of name and folder"):
        load_retrieval(name="stard", folder="x")


def test_triples_and_folders_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text("anchor\tpositive\tnegative\na\tb\tc\n", encoding="utf-8")
    triples = load_triples(train=path)
    assert (triples.name, len(triples.train), triples.official) == ("mine", 1, False)
    data = load_retrieval(folder=folder_with(tmp_path / "stard"))
    assert (data.name, data.official) == ("stard (own file)", False)
    monkeypatch.setenv("HANZOO_DATA", str(tmp_path))
    other = load_retrieval(name="stard")
    assert other.name == "stard-unofficial"
    assert "not the official stard: 5 passages and 3 queries, officially 40,855 and 1,543" in other.notes


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "train", "dev", "test", "unlabelled"),
    [
        ("afqmc", 34_334, 4_316, None, 3_861),
        ("stsb", 5_231, 1_458, 1_361, 0),
        ("atec", 92_218, 10_259, None, 0),
        ("bq", 100_000, 10_000, 10_000, 0),
        ("lcqmc", 238_766, 8_802, 12_500, 0),
        ("pawsx", 49_129, 2_000, 2_000, 0),
        ("ocnli", 50_437, 2_950, None, 3_000),
    ],
)
def test_real_pairs_are_recognised(name: str, train: int, dev: int, test: int | None, unlabelled: int) -> None:
    assert os.environ["HANZOO_DATA"]
    data = load_pairs(name=name)
    assert (data.name, data.official) == (name, True), data.notes
    assert (len(data.train), len(data.dev), data.test and len(data.test)) == (train, dev, test)
    assert len(data.unlabelled) == unlabelled


@pytest.mark.data
def test_real_triples_and_articles_are_recognised() -> None:
    triples = load_triples(name="simclue")
    assert (triples.name, triples.official, len(triples.train)) == ("simclue", True, 10_000), triples.notes
    data = load_retrieval(name="stard")
    assert (data.name, data.official) == ("stard", True), data.notes
    assert [len(data.queries_of(split)) for split in SPLITS] == [943, 200, 400]


@pytest.mark.data
def test_afqmc_stands_in_atec() -> None:
    assert any((leak.trained_on, leak.scored_on, leak.refused) == ("atec", "afqmc", True) for leak in LEAKS)
    atec, afqmc = load_pairs(name="atec"), load_pairs(name="afqmc")
    whole = (*atec.train, *atec.dev)
    for pairs, exact in ((afqmc.train, 34_333), (afqmc.dev, 4_316), (afqmc.unlabelled, 3_861)):
        report = leakage(whole, pairs)
        assert (report.pairs_in_train, report.pairs_normalised) == (exact, len(pairs))
        assert report.other_label == 0
    assert leakage(afqmc.train, atec.dev).pairs_in_train == 3_483


@pytest.mark.data
def test_a_sample_of_simclue_stands_in_other_data_sets() -> None:
    triples = load_triples(name="simclue").train
    found = {}
    for name in ("afqmc", "ocnli", "stsb"):
        data = load_pairs(name=name)
        found[name] = [leakage(triples, pairs).pairs_in_train for pairs in (data.train, data.dev)]
    assert found == {"afqmc": [61, 0], "ocnli": [143, 0], "stsb": [13, 0]}
