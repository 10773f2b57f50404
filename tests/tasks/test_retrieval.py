"""Retrieval by recipe: trained on a BEIR folder, judged over the corpus, compared, searched from the shell."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import hanzoo
from hanzoo import build, cli
from hanzoo.data.document import Pair
from hanzoo.data.matching_catalogue import load_retrieval
from hanzoo.data.pair_files import read_triples
from hanzoo.errors import DataError, RecipeError, RunError
from hanzoo.evaluation.retrieval import score_rankings
from hanzoo.models.bi_encoder import BiEncoder
from hanzoo.models.layers.text_matcher import text_number
from hanzoo.models.objectives.info_nce import InfoNCE, known_matches
from hanzoo.models.search.bm25 import BM25Index
from hanzoo.recipe import check_recipe
from hanzoo.tasks import retrieval
from hanzoo.tasks.catalogue import task_for_file, task_of
from hanzoo.tasks.matching import Matching
from hanzoo.tasks.retrieval import JudgedQueries, Retrieval, RetrievalDataSettings, RetrievalTaskData, SearchedCorpus
from tests.fixtures import train_until_saved, write_recipe

pytestmark = pytest.mark.usefixtures("deterministic", "encoders")

HEADER = "query-id\tcorpus-id\tscore\n"
PLACES = ["北京", "上海", "广州", "成都", "杭州", "西安"]
WHAT = ["银行搬家了", "下雨", "开会", "书店开了三家分行", "的秋天很长"]


def write_folder(folder: Path, dev: bool = True) -> Path:
    """A passage for each place and what is there; a query asks for both, some for two places."""
    passages = [f"{place}{what}" for place in PLACES for what in WHAT]
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for number, text in enumerate(passages):
            file.write(json.dumps({"_id": f"d{number}", "text": text}, ensure_ascii=False) + "\n")
    queries = [f"{what}，在{place}" for place in PLACES for what in WHAT]
    with (folder / "queries.jsonl").open("w", encoding="utf-8") as file:
        for number, text in enumerate(queries):
            file.write(json.dumps({"_id": f"q{number}", "text": text}, ensure_ascii=False) + "\n")
    splits: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for number in range(len(queries)):
        split = "dev" if number % 5 == 3 and dev else "test" if number % 5 == 4 else "train"
        splits[split].append(f"q{number}\td{number}\t1\n")
        if number % 5 == 0:
            splits[split].append(f"q{number}\td{(number + 5) % 30}\t1\n")
    for split, lines in splits.items():
        if lines:
            (folder / "qrels" / f"{split}.tsv").write_text(HEADER + "".join(lines), encoding="utf-8")
    return folder


def recipe_of(folder: Path, **model: Any) -> dict[str, Any]:
    return {
        "data": {"folder": str(folder)},
        "model": {"name": "bi_encoder", "encoder": "tiny-bert"} | model,
        "objective": {"name": "info_nce"},
        "train": {"epochs": 2, "batch_size": 8, "log_every": 5, "optimizer": {"learning_rate": 0.002}},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("places") / "places")


@pytest.fixture(scope="module")
def runs(folder: Path, encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bi-encoder that has learnt, and one whose rate was next to nothing."""
    root = tmp_path_factory.mktemp("runs")
    found = {}
    for name, rate in (("learnt", 0.002), ("raw", 1e-9)):
        sections = recipe_of(folder)
        sections["train"] |= {"epochs": 8, "optimizer": {"learning_rate": rate}}
        recipe = write_recipe(root / f"{name}.yaml", sections)
        assert cli.train([str(recipe), "--run", str(root / name)]) == 0
        found[name] = root / name
    return found


def test_the_data_section_says_which_task_it_is() -> None:
    assert isinstance(task_of(BiEncoder), Matching)
    assert isinstance(task_of(BiEncoder, {"name": "stsb"}), Matching)
    assert isinstance(task_of(BiEncoder, {"train": "pairs.tsv"}), Matching)
    assert isinstance(task_of(BiEncoder, {"name": "stard"}), Retrieval)
    assert isinstance(task_of(BiEncoder, {"folder": "here"}), Retrieval)
    assert isinstance(task_of(BiEncoder, RetrievalDataSettings(name="stard")), Retrieval)
    assert isinstance(task_for_file(BiEncoder, "-"), Matching)


def test_a_folder_is_a_task(folder: Path) -> None:
    task = Retrieval()
    data = task.load_data(RetrievalDataSettings(folder=str(folder)))
    assert len(data.train) == 24
    assert Pair("银行搬家了，在北京", "北京银行搬家了", 1.0) == Pair(data.train[0].first, data.train[0].second, 1.0)
    assert (len(data.dev), len(data.test or ())) == (6, 6)
    assert task.describe(data)["counts"]["train"] == {"queries": 18, "relevant": 24}
    few, times = task.dev_sample(data, 2)
    assert len(few) == 2
    assert isinstance(few, JudgedQueries)
    known = {passage.id for passage in few.corpus.passages}
    assert all(passage in known for item in few for passage in item.judged)
    assert times == 30 / len(known) > 1


def test_dev_may_be_searched_in_fewer_passages_while_training(folder: Path) -> None:
    task = Retrieval()
    data = task.load_data(RetrievalDataSettings(folder=str(folder), dev_passages=5))
    few = [passage.id for passage in data.selected.corpus.passages]
    assert few == [passage.id for passage in data.known.corpus if passage.id in few]  # ties stand as in the whole
    assert {passage for item in data.dev for passage in item.judged} <= set(few)
    assert len(few) < len(data.dev.corpus.passages) == 30
    for number in (1, 20, 29, 30, 99):
        judged = {passage for item in data.dev for passage in item.judged}
        found = {passage.id for passage in data.dev.in_fewer(number).corpus.passages}
        assert min(number, 30) <= len(found | judged) <= min(number, 30) + len(judged)
        assert judged <= found
    assert "of its passages, reported on test over the whole corpus" in task.describe(data)["protocol"]
    seen: list[int] = []

    class Counting(BiEncoder):
        def index(self, corpus: Any, folder: Any = None) -> Any:
            seen.append(len(corpus))
            return super().index(corpus, folder)

    model = Counting.build(Counting.Config(encoder="tiny-bert"), data)
    task.dev_evaluation(model, data.dev, data)(model)
    task.figures(model, data.dev, data)
    assert seen == [len(few), 30]


def test_without_dev_a_tenth_of_train_is_held_out(tmp_path: Path) -> None:
    data = RetrievalTaskData(load_retrieval(folder=write_folder(tmp_path / "own", dev=False)))
    held = {item.query.text for item in data.dev}
    assert held
    assert not held & {pair.first for pair in data.train}
    assert data.dev_source == "10 % of train"
    assert any("are held out" in note for note in data.notes)
    (tmp_path / "own" / "qrels" / "train.tsv").unlink()
    with pytest.raises(DataError, match=r"must have qrels/train\.tsv"):
        RetrievalTaskData(load_retrieval(folder=tmp_path / "own"))


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_split_without_a_relevant_passage_is_refused_before_training(
    split: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "own")
    (folder / "qrels" / f"{split}.tsv").write_text(HEADER + "q0\td0\t0\nq1\td1\t0\n", encoding="utf-8")
    recipe = write_recipe(tmp_path / "own.yaml", recipe_of(folder))
    assert cli.train([str(recipe), "--run", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"own: qrels/{split}.tsv must name a relevant passage (a score above 0), but names none" in said
    assert not (tmp_path / "run").exists()
    if split == "test":
        assert cli.evaluate([str(runs["learnt"]), "--file", str(folder)]) == 2
        assert capsys.readouterr().err.startswith(f"{folder}: qrels/test.tsv must name a relevant passage")


def test_a_held_out_dev_must_have_a_relevant_passage(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own", dev=False)
    held = {item.query.id for item in RetrievalTaskData(load_retrieval(folder=folder)).dev}
    path = folder / "qrels" / "train.tsv"
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()[1:]]
    path.write_text(HEADER + "".join(f"{query}\t{passage}\t{int(query not in held)}\n" for query, passage, _ in rows))
    with pytest.raises(DataError, match=r"tenth of qrels/train\.tsv that is held out for dev must name a relevant"):
        RetrievalTaskData(load_retrieval(folder=folder))


def test_queries_of_dev_and_test_that_stand_in_train_are_said(folder: Path, tmp_path: Path) -> None:
    assert not any("stand in train" in note for note in RetrievalTaskData(load_retrieval(folder=folder)).notes)
    leaking = write_folder(tmp_path / "own")
    rows = (leaking / "qrels" / "test.tsv").read_text("utf-8")
    (leaking / "qrels" / "test.tsv").write_text(f"{rows}q0\td0\t1\nq1\td1\t1\n", encoding="utf-8")
    data = RetrievalTaskData(load_retrieval(folder=leaking))
    assert data.notes[-1] == "2 of 8 test queries stand in train, by id or by text"
    assert data.notes[-1] in Retrieval().describe(data)["notes"]


def test_what_is_known_to_match_is_no_negative(folder: Path) -> None:
    data = RetrievalTaskData(load_retrieval(folder=folder))
    first = data.train[0].first
    own = [pair for pair in data.train if pair.first == first]
    assert len(own) == 2
    other = next(pair for pair in data.train if pair.first != first and pair.second == own[1].second)
    batch = [own[0], other, next(pair for pair in data.train if pair.second not in (own[0].second, own[1].second))]
    keys = torch.tensor([[text_number(pair.first), text_number(pair.second)] for pair in batch])
    objective = InfoNCE(matches=known_matches(data.train))
    # the second row's passage answers the first row's question too; the first's does not answer the second's
    assert objective.known(keys, keys).tolist() == [[True, True, False], [False, True, False], [False, False, True]]
    assert InfoNCE().known(keys, keys).tolist() == [[True, False, False], [False, True, False], [False, False, True]]
    similarities = torch.tensor([[0.1, 0.9, 0.2], [0.3, 0.4, 0.5], [0.0, 0.1, 0.2]])
    losses = objective.losses(similarities, None, objective.known(keys, keys))["info_nce"]
    objective.to("meta")  # an objective goes where the model goes; `teaches` is asked before a batch does
    assert objective.teaches(SimpleNamespace(keys=keys))
    assert objective.match(keys[:, 0].to("meta"), keys[:, 1].to("meta")).shape == (3, 3)
    left = torch.log_softmax(similarities[0, [0, 2]] / 0.05, 0)
    assert float(losses[0]) == pytest.approx(-float(left[0]), abs=1e-5)


def test_a_trained_run_is_judged_over_the_corpus(runs: dict[str, Path], folder: Path) -> None:
    results = json.loads((runs["learnt"] / "results.json").read_text("utf-8"))
    found = build.evaluate(runs["learnt"], split="test")
    assert found["mrr@10"] == results["splits"]["test"]["mrr@10"]
    data = load_retrieval(folder=folder)
    model = build.load(runs["learnt"])
    assert isinstance(model, BiEncoder)
    queries = data.queries_of("test")
    vectors, asked = model.encode([p.full_text for p in data.corpus]), model.encode([query.text for query in queries])
    order = np.argsort(-(asked @ vectors.T), axis=1, kind="stable")
    rankings = {query.id: [data.corpus[i].id for i in row] for query, row in zip(queries, order, strict=True)}
    assert found["mrr@10"] == pytest.approx(score_rankings(rankings, data.judged("test")).figures["mrr@10"])
    raw = build.evaluate(runs["raw"], split="test")["mrr@10"]
    assert found["mrr@10"] > raw
    compared = build.evaluate(runs["learnt"], split="test", against=runs["raw"])["against"]
    assert compared["difference"] == pytest.approx(found["mrr@10"] - raw)
    assert 0 < compared["p"] <= 1


def test_the_commands(runs: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, record = str(runs["learnt"]), tmp_path / "places.json"
    options = ["--first-stage", "bm25", "--candidates", "5"]
    assert cli.evaluate([run, "--split", "test", *options, "--against", str(runs["raw"])]) == 0
    said = capsys.readouterr().out
    assert "MRR@10" in said
    assert "of 5 candidates of BM25 a query, ranked by 0.7 x the model's score and 0.3 x BM25's" in said
    assert f"{run} against BM25 alone, mrr@10:" in said
    assert cli.evaluate([run, "--file", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recall@10"] > 0
    assert cli.evaluate([run, "--record", str(record)]) == 0
    assert set(json.loads(record.read_text("utf-8"))["metrics"]) >= {"mrr@10", "ndcg@10", "recall@100"}
    recorded = json.loads(record.read_text("utf-8"))
    assert "first_stage" not in recorded
    staged = ["--record", str(record), "--first-stage", "bm25", "--candidates", "5", "--weight", "0.5"]
    assert cli.evaluate([run, *staged, "--variant", "bm25"]) == 0
    recorded = json.loads(record.read_text("utf-8"))
    first = recorded["first_stage"]
    assert (first["name"], first["candidates"], first["weight"]) == ("bm25", 5, 0.5)
    assert first["difference"] == pytest.approx(recorded["metrics"]["mrr@10"][0] - first["figure"])
    assert first["interval"][0] <= first["difference"] <= first["interval"][1]
    # another run behind the same stage, against this one behind it: a figure of its own with the same weights
    assert cli.evaluate([run, "--record", str(tmp_path / "a.json")]) == 0
    other, raw = tmp_path / "raw.json", str(runs["raw"])
    for given, variant in ((staged[2:], "bm25"), ([], "")):
        assert cli.evaluate([raw, "--against", run, "--record", str(other), *given]) == 0
        found = json.loads(other.read_text("utf-8"))
        against = json.loads((record if variant else tmp_path / "a.json").read_text("utf-8"))
        assert found["against"]["variant"] == variant
        assert found["against"]["difference"] == pytest.approx(
            found["metrics"]["mrr@10"][0] - against["metrics"]["mrr@10"][0]
        )
    capsys.readouterr()
    assert cli.evaluate([run, "--candidates", "5"]) == 2
    assert "must stand with --first-stage" in capsys.readouterr().err

    assert cli.predict([run, str(folder), "--k", "3", "--queries", "test"]) == 0
    lines = [line.split(" ") for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 18
    assert [line[0] for line in lines[:3]] == ["q4"] * 3
    assert [line[3] for line in lines[:3]] == ["1", "2", "3"]
    assert all((line[1], line[5]) == ("Q0", "hanzoo") for line in lines)
    assert cli.predict([run, str(folder), "--k", "3", "--output", str(tmp_path / "run.json")]) == 0
    found = json.loads((tmp_path / "run.json").read_text("utf-8"))
    assert len(found) == 30
    assert list(found["q4"]) == [line[2] for line in lines[:3]]
    assert cli.predict([run, str(folder), *options, "--output", str(tmp_path / "run.tsv")]) == 0
    rows = (tmp_path / "run.tsv").read_text("utf-8").splitlines()
    assert rows[0] == "query-id\tcorpus-id\tscore"
    assert 1 < len(rows) <= 1 + 5 * 30
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\n今天下雨\t下雨\n", "utf-8")
    capsys.readouterr()
    assert cli.predict([run, str(tmp_path / "pairs.tsv")]) == 0  # the same model scores pairs
    assert json.loads(capsys.readouterr().out)["score"] <= 1


def test_a_search_needs_no_judgements_but_those_it_is_asked_for(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = str(runs["learnt"]), write_folder(tmp_path / "own")
    (folder / "qrels" / "train.tsv").write_text("no judgement", encoding="utf-8")
    assert cli.predict([run, str(folder), "--k", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 30
    assert cli.predict([run, str(folder), "--k", "1", "--queries", "test"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert cli.predict([run, str(folder), "--queries", "train"]) == 2
    assert "train.tsv:1: the first line must be the header" in capsys.readouterr().err
    shutil.rmtree(folder / "qrels")
    assert cli.predict([run, str(folder), "--k", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 30
    assert len(Retrieval().read_texts(folder, None)) == 30
    assert cli.predict([run, str(folder), "--queries", "test"]) == 2
    assert "the split must be one of those of qrels/, which has none, but is 'test'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "corpus.jsonl.gz", "link.trec", "gone/run.trec"]
)
def test_an_output_that_must_not_be_written_is_refused_before_the_search(
    name: str,
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_folder(tmp_path / "own")
    (folder / "link.trec").symlink_to(folder / "queries.jsonl")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(retrieval, "hits_of", None)
    assert cli.predict([str(runs["learnt"]), str(folder), "--output", str(folder / name)]) == 2
    said = capsys.readouterr().err
    if name == "gone/run.trec":
        assert said.startswith(f"{folder}/gone/run.trec: must be written, but the folder {folder}/gone does not exist.")
    else:
        assert said.startswith(f"{folder / name}: the output must be another file than the input, but {folder} is read")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_rankings_on_a_standard_output_of_any_kind(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = str(runs["learnt"]), write_folder(tmp_path / "own")
    corpus = folder / "corpus.jsonl"
    corpus.write_text(corpus.read_text("utf-8").replace('"d', '"法'), encoding="utf-8")
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", narrow)
        assert cli.predict([run, str(folder), "--k", "1"]) == 0
    assert isinstance(narrow.buffer, io.BytesIO)
    lines = narrow.buffer.getvalue().decode("utf-8").splitlines()
    assert len(lines) == 30
    assert all(line.split(" ")[2].startswith("法") for line in lines)
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", None)
        patch.setattr(retrieval, "hits_of", None)
        assert cli.predict([run, str(folder), "--k", "1"]) == 2
    assert capsys.readouterr().err == "standard output: must be open, but is closed. Name a file with --output.\n"


def test_an_id_with_a_blank_is_refused_in_a_trec_run_alone(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = str(runs["learnt"]), write_folder(tmp_path / "own")
    corpus = folder / "corpus.jsonl"
    corpus.write_text(corpus.read_text("utf-8").replace('"d7"', '"民法典 第7条"'), encoding="utf-8")
    for output in ([], ["--output", str(tmp_path / "run.trec.gz")]):
        assert cli.predict([run, str(folder), *output]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(f'{corpus}:8: "_id" must hold no blank in a TREC run')
        assert "but is '民法典 第7条'. Write another form: --output run.tsv or run.json." in err
    assert not (tmp_path / "run.trec.gz").exists()
    for form in ("tsv", "json.gz"):
        assert cli.predict([run, str(folder), "--output", str(tmp_path / f"run.{form}")]) == 0
    assert "\t民法典 第7条\t" in (tmp_path / "run.tsv").read_text("utf-8")


def test_a_dry_run_shows_the_corpus(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "places.yaml", recipe_of(folder))
    assert cli.train([str(recipe), "--dry-run", "--run", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "train queries" in said
    assert "relevant passages" in said
    assert not (tmp_path / "run").exists()


def test_colbert_is_trained_the_same_way(folder: Path, tmp_path: Path) -> None:
    sections = recipe_of(folder, name="colbert", document_marker="#")
    sections["objective"]["temperature"] = 1.0
    recipe = write_recipe(tmp_path / "places.yaml", sections)
    assert cli.train([str(recipe), "--run", str(tmp_path / "run")]) == 0
    assert build.evaluate(tmp_path / "run", split="test")["recall@100"] == 1.0


def test_the_index_of_a_model_is_made_once(folder: Path, runs: dict[str, Path]) -> None:
    corpus = SearchedCorpus(load_retrieval(folder=folder).corpus)
    model = build.load(runs["learnt"])
    assert isinstance(model, BiEncoder)
    first = corpus.index_of(model)
    assert corpus.index_of(model) is first
    with torch.no_grad():
        next(iter(model.parameters())).mul_(1.5)
    assert corpus.index_of(model) is not first


def test_ranks_share_the_corpus(folder: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_retrieval(folder=folder)
    passages = [*data.corpus, *(replace(passage, id=f"again {passage.id}") for passage in data.corpus)]  # ties
    texts = [query.text for query in data.queries_of("test")]
    model = build.load(runs["learnt"])
    assert isinstance(model, BiEncoder)
    alone = retrieval.hits_of(model, texts, SearchedCorpus(passages), 7, None)
    other = model.search(texts, passages[1::2], 7)
    monkeypatch.setattr(retrieval, "num_ranks", lambda: 2)
    monkeypatch.setattr(retrieval, "share", lambda items: list(items[::2]))
    monkeypatch.setattr(retrieval, "gather_objects", lambda mine: [mine, other])
    found = retrieval.hits_of(model, texts, SearchedCorpus(passages), 7, None)
    for one, two in zip(found, alone, strict=True):
        assert [hit.id for hit in one] == [hit.id for hit in two]


def test_a_wrong_section_is_one_error() -> None:
    sections: dict[str, Any] = recipe_of(Path("x"))
    sections["data"] = {"folder": "x", "name": "stard"}
    with pytest.raises(RecipeError, match="exactly one of name and folder"):
        check_recipe(sections, name="x", place="x")
    sections["data"] = {"name": "stard"}
    sections["evaluate"] = {"metric": "spearman"}
    with pytest.raises(RecipeError, match=r"evaluate\.metric"):
        check_recipe(sections, name="x", place="x")


def test_an_objective_that_learns_nothing_from_matches_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "places.yaml", recipe_of(folder) | {"objective": {"name": "cosent"}})
    assert cli.train([str(recipe), "--run", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "cosent must have pairs to learn from, but the data's items are matches. Take another objective: " in said
    recipe = write_recipe(tmp_path / "triples.yaml", recipe_of(folder) | {"objective": {"name": "triplet"}})
    assert cli.train([str(recipe), "--run", str(tmp_path / "run")]) == 2
    assert "Set data.mining.finder, which gives each pair negatives, or take another" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Negatives.


@pytest.mark.parametrize("finder", ["bm25", "learnt"])
def test_negatives_come_from_the_corpus(
    finder: str,
    folder: Path,
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = recipe_of(folder)
    recipe["data"]["mining"] = {"finder": str(runs.get(finder, finder)), "number": 2, "ratio": None}
    path = write_recipe(tmp_path / "mined.yaml", recipe)
    assert cli.train([str(path), "--run", str(tmp_path / "run")]) == 0
    assert "48 negatives found for 24 pairs" in capsys.readouterr().err
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results["data"]["view"] == "with mined negatives"
    assert ("finder of negatives" in results["inputs"]) == (finder == "learnt")
    data = load_retrieval(folder=folder)
    texts = {passage.full_text: passage.id for passage in data.corpus}
    relevant = {item.query.text: set(item.judged) for item in retrieval.judgements(data, "train")}
    found, _ = read_triples(tmp_path / "run" / "negatives" / "triples.jsonl")
    assert {(triple.anchor, texts[triple.positive]) for triple in found} == {
        (query, passage) for query, passages in relevant.items() for passage in passages
    }
    for triple in found:
        assert len({texts[negative] for negative in triple.negatives} - relevant[triple.anchor]) == 2
    if finder == "bm25":  # of the other passages those that share most words with the query
        index = BM25Index.build(list(texts))
        for triple in found:
            scores = dict(zip(texts, index.scores([triple.anchor])[0].tolist(), strict=True))
            others = sorted((score for text, score in scores.items() if texts[text] not in relevant[triple.anchor]))
            assert sorted(scores[negative] for negative in triple.negatives) == pytest.approx(others[-2:])

    # killed after the first epoch, it goes on with what was found; of other settings it does not
    train_until_saved(path, tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr("hanzoo.tasks.mining._found", None)
        again = build.train(path, run=tmp_path / "cut", resume=True)
    assert again["weights_sha256"] == results["weights_sha256"]
    settings = RetrievalDataSettings.model_validate(recipe["data"] | {"mining": recipe["data"]["mining"] | {"skip": 1}})
    with pytest.raises(RunError, match="settings of the negatives must be what the run began with"):
        Retrieval().ready(Retrieval().load_data(settings), settings, tmp_path / "run", hanzoo.load, lambda line: None)
