"""Search: exact against slow references, in whatever blocks; saved and opened; two stages; what bad input gets."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hanzoo.data.document import Pair, Passage
from hanzoo.data.randomness import generator, reseed
from hanzoo.errors import DataError, RunError, StorageError
from hanzoo.models.bi_encoder import BiEncoder
from hanzoo.models.colbert import ColBERT
from hanzoo.models.cross_encoder import CrossEncoder
from hanzoo.models.layers import text_encoder
from hanzoo.models.search import tokens
from hanzoo.models.search import vectors as vector_search
from hanzoo.models.search.bm25 import BM25Index, words
from hanzoo.models.search.index import META_FILE, Hit, PartIndex, Staged, best_places, mix
from hanzoo.models.search.tokens import TokenStore
from hanzoo.models.search.vectors import FaissIndex, VectorIndex
from tests.references.matching import max_sim
from tests.references.search import bm25_scores, ranking

pytestmark = pytest.mark.usefixtures("deterministic", "encoders")

CORPUS = [
    "王小明在北京工作，他喜欢北京",
    "今天下雨",
    "昨天的会开得太长了，没有人记得最后说了什么",
    "张伟和刘洋都在云山银行实习过一年多",
    "今天下雨",
    "北京的银行今天不开",
    "雨",
    "刘洋今天在北京开会",
]
QUERIES = ["北京的银行", "今天开会了吗", "谁在实习", "雨"]


def build(cls: type[Any], **settings: Any) -> Any:
    reseed(1, "weights")
    own = {"document_marker": "#"} if cls is ColBERT else {}
    data = SimpleNamespace(train=[Pair("今天", "下雨")])
    return cls.build(cls.Config(**({"encoder": "tiny-bert"} | own | settings)), data).eval()


def ids(found: list[list[Hit]]) -> list[list[Any]]:
    return [[hit.id for hit in row] for row in found]


# The k best.


@pytest.mark.parametrize("k", [1, 3, 7, 8, 20])
def test_the_best_places_are_those_of_a_sort(k: int) -> None:
    draw = generator(3, "scores")
    for _ in range(50):
        scores = draw.integers(0, 4, size=8).astype(np.float32)  # full of ties
        scores[draw.random(8) < 0.2] = -np.inf
        assert best_places(scores, k).tolist() == ranking(scores.tolist(), k)


# One vector a text.


@pytest.mark.parametrize("at_once", [3, 65_536])
def test_vectors_are_searched_exactly(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(vector_search, "VECTORS_AT_ONCE", at_once)
    model = build(BiEncoder)
    found = model.search(QUERIES, CORPUS, 5)
    for query, hits in zip(QUERIES, found, strict=True):
        cosines = [round(model.score(query, text), 5) for text in CORPUS]
        assert [round(hit.score, 5) for hit in hits] == pytest.approx(sorted(cosines, reverse=True)[:5], abs=2e-5)
        assert all(cosines[hit.id] == pytest.approx(hit.score, abs=2e-5) for hit in hits)
    assert ids(found)[1] != ids(found)[3]  # or every order would do


def test_equal_texts_stand_in_the_order_of_the_corpus() -> None:
    hits = build(BiEncoder).search(["今天下雨"], CORPUS, 3)[0]
    assert [hit.id for hit in hits[:2]] == [1, 4]
    assert hits[0].score == pytest.approx(1, abs=1e-5)


def test_queries_are_answered_alike_in_any_company() -> None:
    index = build(BiEncoder).index(CORPUS)
    many = [*QUERIES * 40]
    assert ids(index.search(many, 4))[-4:] == ids(index.search(QUERIES, 4))
    assert ids(list(index.stream(iter(many), 4))) == ids(index.search(many, 4))


@pytest.mark.parametrize("first_stage", [None, "bm25"])
def test_queries_that_can_be_read_once_are_answered_like_a_list(first_stage: Any) -> None:
    model = build(BiEncoder)
    wanted = model.search(QUERIES, CORPUS, 3, first_stage=first_stage)
    assert model.search(iter(QUERIES), CORPUS, 3, first_stage=first_stage) == wanted
    if first_stage is None:
        assert model.index(CORPUS).search(iter(QUERIES), 3) == wanted


def test_ids_are_those_of_the_corpus() -> None:
    model = build(BiEncoder)
    passages = [Passage(f"d{number}", text) for number, text in enumerate(CORPUS)]
    named = {f"n{number}": text for number, text in enumerate(CORPUS)}
    plain = ids(model.search(QUERIES, CORPUS, 3))
    assert ids(model.search(QUERIES, passages, 3)) == [[f"d{number}" for number in row] for row in plain]
    assert ids(model.search(QUERIES, named, 3)) == [[f"n{number}" for number in row] for row in plain]


@pytest.mark.parametrize("cls", [BiEncoder, ColBERT])
@pytest.mark.parametrize("written", ["as built", "afterwards"])
def test_an_index_is_saved_and_opened(cls: type[Any], tmp_path: Path, written: str) -> None:
    model = build(cls)
    if written == "as built":
        index = model.index(CORPUS, tmp_path / "index")
    else:
        index = model.index(CORPUS)
        index.save(tmp_path / "index")
    again = model.open_index(tmp_path / "index")
    assert again.search(QUERIES, 4) == index.search(QUERIES, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    with pytest.raises(RunError, match="must be written to a new folder"):
        index.save(tmp_path / "index")
    with pytest.raises(StorageError, match="File name too long"):
        index.save(tmp_path / ("i" * 300))
    with torch.no_grad():
        next(iter(model.parameters())).add_(0.5)
    with pytest.raises(RunError, match="or this one with other weights"):
        model.open_index(tmp_path / "index")


def test_an_index_of_another_kind_or_damaged_is_refused(tmp_path: Path) -> None:
    model, other = build(BiEncoder), build(ColBERT)
    model.index(CORPUS, tmp_path / "vectors")
    other.index(CORPUS, tmp_path / "tokens")
    with pytest.raises(RunError, match="must be an index of tokens, but is one of vectors"):
        other.open_index(tmp_path / "vectors")
    with pytest.raises(RunError, match="must be a saved index"):
        model.open_index(tmp_path)
    kept = (tmp_path / "tokens" / tokens.TOKENS_FILE).read_bytes()
    (tmp_path / "tokens" / tokens.TOKENS_FILE).write_bytes(kept[:-2])
    with pytest.raises(RunError, match=r"tokens\.bin: must hold the tokens of 8 texts"):
        other.open_index(tmp_path / "tokens")
    (tmp_path / "vectors" / vector_search.VECTORS_FILE).write_bytes(b"\x80\x04.")
    with pytest.raises(RunError, match=r"vectors\.npy: must be an array"):
        model.open_index(tmp_path / "vectors")
    facts = json.loads((tmp_path / "tokens" / META_FILE).read_text("utf-8")) | {"format": 99}
    (tmp_path / "tokens" / META_FILE).write_text(json.dumps(facts), "utf-8")
    with pytest.raises(RunError, match="format must be 1, but is 99"):
        other.open_index(tmp_path / "tokens")


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # np.load leaves open what begins as a zip
def test_what_damage_leaves_of_an_index_is_one_error(tmp_path: Path) -> None:
    vectors, colbert = build(BiEncoder), build(ColBERT)
    vectors.index(CORPUS, tmp_path / "vectors")
    colbert.index(CORPUS, tmp_path / "tokens")
    BM25Index.build(CORPUS).save(tmp_path / "bm25")
    header = b"\x93NUMPY\x01\x00\x10\x00"
    contents = [b"", b"PK\x03\x04", header + b"{'descr'" * 2, header + b"{[]: 1}         ", b"[]"]
    for name, open_index in (
        ("vectors", vectors.open_index),
        ("tokens", colbert.open_index),
        ("bm25", BM25Index.open),
    ):
        for path in sorted((tmp_path / name).rglob("*.*")):
            kept = path.read_bytes()
            for content in contents:
                path.write_bytes(content)
                with pytest.raises(RunError, match=r"[Bb]uild (it|the index) again\."):
                    open_index(tmp_path / name)
            path.write_bytes(kept)
        assert open_index(tmp_path / name).search(QUERIES, 2)
    # random bytes of the right size
    path = tmp_path / "tokens" / tokens.TOKENS_FILE
    path.write_bytes(generator(1, "bytes").bytes(path.stat().st_size))
    damaged = colbert.open_index(tmp_path / "tokens")
    for index in (damaged, Staged(BM25Index.open(tmp_path / "bm25"), damaged)):
        with pytest.raises(RunError, match=r"search: scores must be numbers, but some are not \(NaN\)"):
            index.search(QUERIES, 2)
    # the files of another corpus
    BM25Index.build(CORPUS[:3]).save(tmp_path / "few")
    shutil.rmtree(tmp_path / "bm25" / "bm25")
    shutil.copytree(tmp_path / "few" / "bm25", tmp_path / "bm25" / "bm25")
    with pytest.raises(RunError, match=r"must be of the 8 texts of ids\.json, but is of 3\. Build the index again"):
        BM25Index.open(tmp_path / "bm25")


def test_nothing_is_left_of_an_index_that_could_not_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TokenStore, "write", fail)
    with pytest.raises(Exception, match="the disk is full"):
        build(ColBERT).index(CORPUS, tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


# A vector a token.


def random_store(folder: Path, counts: list[int], offset: float = 0.0) -> tuple[TokenStore, list[np.ndarray]]:
    draw = generator(5, "tokens")
    texts = [draw.standard_normal((count, 6)) - offset for count in counts]
    texts = [(text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float16) for text in texts]
    places = list(range(len(counts)))[::-1]  # as they come
    TokenStore.write(folder, np.array(counts), 6, (([place], texts[place]) for place in places))
    return TokenStore.open(folder, len(counts), 6), texts


def rows(vectors: np.ndarray) -> list[torch.Tensor]:
    return list(torch.from_numpy(vectors.astype(np.float64)))


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("at_once", [4, 2**14])
def test_max_sim_over_a_store_is_that_of_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, offset: float
) -> None:
    monkeypatch.setattr(tokens, "TOKENS_AT_ONCE", at_once)
    store, texts = random_store(tmp_path, [3, 1, 7, 3, 5, 1, 3], offset)
    draw = generator(6, "queries")
    queries = [draw.standard_normal((count, 6)).astype(np.float32) + offset for count in (2, 5, 1)]
    queries = [query / np.linalg.norm(query, axis=1, keepdims=True) for query in queries]
    wanted = np.array([[float(max_sim(rows(query), rows(text))) for text in texts] for query in queries])
    given = [torch.from_numpy(query) for query in queries]
    found = store.scores(given).numpy()
    assert np.allclose(found, wanted, atol=1e-5)
    assert (wanted < -0.5).all() == bool(offset)  # all similarities negative: what was filled up with 0 would win
    one_by_one = torch.cat([store.scores([query]) for query in given])
    assert torch.allclose(one_by_one, torch.from_numpy(found), atol=1e-6)  # no query has tokens of its neighbour
    places = np.array([5, 0, 2])
    for query, row in zip(given, wanted, strict=True):
        assert np.allclose(store.scores_of(query, places).numpy(), row[places], atol=1e-5)


@pytest.mark.parametrize("mean", [False, True])
def test_colbert_finds_what_it_scores(mean: bool) -> None:
    model = build(ColBERT, mean=mean)
    index = model.index(CORPUS)
    for query, hits in zip(QUERIES, index.search(QUERIES, len(CORPUS)), strict=True):
        assert len(hits) == len(CORPUS)
        scores = model.scores([(query, CORPUS[hit.id]) for hit in hits])
        assert np.allclose(scores, [hit.score for hit in hits], atol=0.02 if not mean else 0.002)  # float16
        assert sorted(scores.round(2), reverse=True) == pytest.approx(scores.round(2).tolist(), abs=0.021)
    again = index.scores_of(QUERIES, [np.arange(8)] * 4)
    assert np.allclose(np.stack(again), index.scores(QUERIES), atol=1e-5)


def test_punctuation_is_not_stored() -> None:
    model = build(ColBERT)
    row = model.document_row(model.read_texts(["今天#下雨#"])[0])
    assert len(model.index(["今天#下雨#"]).store.tokens) == row.scored.sum() < len(row.pieces)


# BM25.


def test_bm25_is_that_of_the_formula() -> None:
    index = BM25Index.build(CORPUS)
    cut = [words(text) for text in CORPUS]
    assert "，" not in cut[0]
    assert "，" in words(CORPUS[0], punctuation=True)
    for query, hits in zip(QUERIES, index.search(QUERIES, 8), strict=True):
        wanted = bm25_scores(words(query), cut)
        assert {hit.id for hit in hits} == {place for place, score in enumerate(wanted) if score > 0}
        assert all(hit.score == pytest.approx(wanted[hit.id], abs=1e-4) for hit in hits)
    assert index.search(["银行"], 8)[0]
    assert index.search(["火星", "。"], 8) == [[], []]  # no word of it is there: no hit, and none is made up


def test_bm25_is_saved_and_opened(tmp_path: Path) -> None:
    index = BM25Index.build(CORPUS, punctuation=True)
    index.save(tmp_path / "words")
    again = BM25Index.open(tmp_path / "words")
    assert again.search(QUERIES, 5) == index.search(QUERIES, 5)
    assert again.punctuation
    with pytest.raises(DataError, match="must hold a word"):
        BM25Index.build(["。。", "！"])


# Two stages.


@pytest.mark.parametrize("cls", [BiEncoder, ColBERT, CrossEncoder])
def test_a_model_ranks_the_candidates_of_bm25(cls: type[Any]) -> None:
    model = build(cls)
    first = BM25Index.build(CORPUS)
    found = model.search(QUERIES, CORPUS, 3, first_stage="bm25", candidates=4)
    candidates = first.search(QUERIES, 4)
    for query, hits, known in zip(QUERIES, found, candidates, strict=True):
        assert {hit.id for hit in hits} <= {hit.id for hit in known}
        assert len(hits) == min(3, len(known))
        wanted = {hit.id: model.score(query, CORPUS[hit.id]) for hit in known}
        assert [hit.score for hit in hits] == pytest.approx(sorted(wanted.values(), reverse=True)[:3], abs=0.02)
    # all of the weight on the first stage: its own order
    index = model.index(CORPUS)
    assert ids(Staged(first, index, 4, 0.0).search(QUERIES, 3)) == ids(first.search(QUERIES, 3))
    assert ids(model.search(QUERIES, index, 3, first_stage=first, candidates=4)) == ids(found)


@pytest.mark.parametrize("cls", [BiEncoder, ColBERT, CrossEncoder])
def test_behind_a_first_stage_a_model_reads_the_candidates_alone(
    cls: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(cls)
    first = BM25Index.build(CORPUS)
    wanted = Staged(first, model.index(CORPUS), 2, 0.6).search(QUERIES, 2)
    known = {hit.id for hits in first.search(QUERIES, 2) for hit in hits}
    assert 0 < len(known) < len(CORPUS), "the test would not notice that all are read"
    read: list[str] = []
    index = model.index
    monkeypatch.setattr(model, "index", lambda texts: read.extend(texts) or index(texts))
    found = model.search(QUERIES, CORPUS, 2, first_stage=first, candidates=2, weight=0.6)
    assert read == [CORPUS[place] for place in sorted(known)]
    assert ids(found) == ids(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=1e-5)
    # queries that no text shares a word with have no candidates, and nothing is read for them
    read.clear()
    assert model.search(["龘"], CORPUS, first_stage=first) == [[]]
    assert not read
    for wrong, error in (("一", TypeError), (["  "], DataError)):
        with pytest.raises(error):
            model.search(wrong, CORPUS, first_stage=first)
    with pytest.raises(ValueError, match="first_stage must be 'bm25' or an index of the same corpus, but is 'BM25'"):
        model.search(QUERIES, CORPUS, first_stage="BM25")
    with pytest.raises(ValueError, match="candidates must be at least 1"):
        model.search(QUERIES, CORPUS, first_stage=first, candidates=0)
    with pytest.raises(ValueError, match="both stages must index the same corpus"):
        model.search(QUERIES, CORPUS[:-1], first_stage=first)
    assert not read


def test_a_blank_query_is_named_by_its_place_among_all() -> None:
    first = BM25Index.build(CORPUS)
    with pytest.raises(DataError, match="query 70 is ' '"):
        list(first.stream(query for query in [*QUERIES[:1] * 70, " "]))


def test_a_part_of_a_corpus_knows_its_places() -> None:
    model = build(BiEncoder)
    part = PartIndex(range(len(CORPUS)), np.array([1, 3]), model.index([CORPUS[1], CORPUS[3]]))
    (wanted,) = model.index(CORPUS).scores_of(QUERIES[:1], [np.array([3, 1])])
    (scores,) = part.scores_of(QUERIES[:1], [np.array([3, 1])])
    assert scores == pytest.approx(wanted, abs=1e-6)
    assert {hit.id for hit in part.search(QUERIES[:1], 9)[0]} == {1, 3}
    for other in ([2], [9]):
        with pytest.raises(ValueError, match="of the part of the corpus that was read"):
            part.scores_of(QUERIES[:1], [np.array(other)])


def test_scores_are_mixed_after_they_are_normalised() -> None:
    second, first = np.array([2.0, 4.0, 3.0], np.float32), np.array([10.0, 0.0, 10.0], np.float32)
    assert mix(second, first, 0.7) == pytest.approx([0.3, 0.7, 0.65])
    assert mix(second, first, 1.0).tolist() == second.tolist()
    assert mix(np.array([5.0], np.float32), first[:1], 0.7).tolist() == [0.0]


def test_a_cross_encoder_asks_for_a_first_stage() -> None:
    with pytest.raises(RunError, match="a cross-encoder must have a first stage"):
        build(CrossEncoder).search(QUERIES, CORPUS)


# faiss.


def test_faiss_finds_the_same(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    model = build(BiEncoder)
    index = model.faiss_index(CORPUS[:4], "Flat")
    assert ids(index.search(QUERIES, 9)) == ids(model.search(QUERIES, CORPUS[:4], 9))
    index.save(tmp_path / "index")
    again = model.open_index(tmp_path / "index")
    assert isinstance(again, FaissIndex)
    assert again.search(QUERIES, 2) == index.search(QUERIES, 2)
    model.index(CORPUS[:2], tmp_path / "others")
    for name in (META_FILE, "ids.json"):
        kept = json.loads((tmp_path / "index" / name).read_text("utf-8"))
        if name == META_FILE:
            kept["texts"] = 2
        (tmp_path / "index" / name).write_text(json.dumps(kept if name == META_FILE else kept[:2]), "utf-8")
    with pytest.raises(RunError, match=r"vectors\.faiss: must hold 2 vectors of \d+ numbers, but holds 4 of"):
        model.open_index(tmp_path / "index")
    with pytest.raises(RunError, match="must make an index of kind 'Flatt'"):
        model.faiss_index(CORPUS, "Flatt")
    with pytest.raises(RunError, match="must make an index of kind 'IDMap,Flat', but: "):
        model.faiss_index(CORPUS, "IDMap,Flat")


def test_faiss_learns_from_all_of_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    model, seen = build(BiEncoder), []
    encode = BiEncoder.encode
    monkeypatch.setattr(
        BiEncoder, "encode", lambda self, texts, **given: seen.append(list(texts)) or encode(self, texts, **given)
    )
    corpus = [f"{number}{text}" for number in range(5) for text in dict.fromkeys(CORPUS)]
    FaissIndex.build(model, corpus, "SQ8", sample=20)
    assert len(seen[0]) == 20
    assert (seen[0][0], seen[0][-1]) == (corpus[0], corpus[-1])
    places = [corpus.index(text) for text in seen[0]]
    assert np.diff(places).min() >= 1
    assert np.diff(places).max() <= 3


@pytest.mark.parametrize(
    ("package", "ask"),
    [
        ("faiss", lambda model: model.faiss_index(CORPUS, "Flat")),
        ("bm25s", lambda model: model.search(QUERIES, CORPUS, first_stage="bm25")),
    ],
)
def test_a_missing_package_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, package: str, ask: Callable[[Any], Any]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        RunError, match=rf"{package}.* must be installed, but is not\. Install it: pip install 'hanzoo\["
    ):
        ask(build(BiEncoder))


# Bad input.


@pytest.mark.parametrize(
    ("queries", "corpus", "k", "error", "said"),
    [
        (["  "], CORPUS, 3, DataError, "query: must hold a character that is no blank"),
        (QUERIES, [], 3, DataError, "corpus: must hold a text, but is empty"),
        (QUERIES, ["今天", " "], 3, DataError, "but text 1 is ' '"),
        (QUERIES, ["今天", "\u200b"], 3, DataError, r"but text 1 is '\\u200b'"),
        (["雨", "\x00\ud83d"], CORPUS, 3, DataError, r"but query 1 is '\\x00\\ud83d'"),
        (QUERIES, [Passage("a", "今天"), Passage("a", "下雨")], 3, DataError, "'a' stands twice"),
        (QUERIES, CORPUS, 0, ValueError, "k must be at least 1"),
        ("今天", CORPUS, 3, TypeError, "queries must be a list"),
        (QUERIES, "今天", 3, TypeError, "corpus: must be a list of texts"),
        (QUERIES, ["今天", 3], 3, TypeError, "text 1 is int"),
        (QUERIES, {"a": "今天", "b": None}, 3, TypeError, "text 'b' is NoneType"),
    ],
)
def test_bad_input_is_one_error(queries: Any, corpus: Any, k: int, error: type[Exception], said: str) -> None:
    for cls in (BiEncoder, ColBERT):
        with pytest.raises(error, match=said):
            build(cls).search(queries, corpus, k)


def test_one_query_is_not_searched_by_its_characters() -> None:
    index = build(BiEncoder).index(CORPUS)
    with pytest.raises(TypeError, match="queries must be a list of strings, but are one string"):
        next(index.stream("今天"))
    assert len(next(index.stream(["今天"], 3))) == 3


def test_fewer_texts_give_fewer_hits() -> None:
    for cls in (BiEncoder, ColBERT):
        assert [len(row) for row in build(cls).search(QUERIES, CORPUS[:2], 5)] == [2] * 4


def test_texts_that_are_too_long_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(BiEncoder, max_pieces=8)
    # characters of several pieces, as Hangul where accents are taken off
    several = SimpleNamespace(encode=lambda texts: [np.zeros(3 * len(text), dtype=np.int64) for text in texts])
    with monkeypatch.context() as patched:
        patched.setattr(model, "subwords", several)
        for at_once in (1, 2, 8):
            patched.setattr(text_encoder, "TEXTS_AT_ONCE", at_once)
            assert model.count_longer(["很多", "很多人", "很", ""], 6, said="are cut") == {
                "texts have more than 6 pieces: are cut": (1, 4)
            }
    index = model.index(CORPUS)
    assert isinstance(index, VectorIndex)
    assert index.notes == ("5 of 8 texts have more than 6 pieces: the rest of each is not read",)
    assert build(ColBERT, query_pieces=6).query_notes(QUERIES) == (
        "3 of 4 queries have more than 3 pieces: the rest of each is not read",
    )
