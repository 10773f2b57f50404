"""Retrieval: queries, a corpus, and which of its passages answer them, judged by MRR@10 over the whole corpus."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hanzoo.data.beir import Qrels, RetrievalData, is_read
from hanzoo.data.catalogue import is_held_out
from hanzoo.data.document import Document, Pair, Passage, Query, Triple, texts_of
from hanzoo.data.files import AtomicFile, expanded
from hanzoo.data.leakage import leaked_queries
from hanzoo.data.matching_catalogue import MATCHING_SETS, load_retrieval
from hanzoo.data.text_streams import StandardOutput
from hanzoo.data.training_items import ItemKind
from hanzoo.errors import DataError, RunError
from hanzoo.evaluation.report import results_table, run_card, show_difference, show_interval, show_p
from hanzoo.evaluation.retrieval import RetrievalScores, mean_of, score_rankings
from hanzoo.evaluation.significance import Comparison, compare
from hanzoo.models.cross_encoder import CrossEncoder
from hanzoo.models.layers.text_matcher import TextMatcher
from hanzoo.models.model import Matcher, Model, Settings, objective_names
from hanzoo.models.search.bm25 import BM25Index
from hanzoo.models.search.index import Hit, Index, Staged
from hanzoo.tasks.aiming import aim, note_leaks
from hanzoo.tasks.mining import Mined, MiningSettings, mine
from hanzoo.tasks.task import DataSettings, EvaluateSettings, Report, Say, Subject, Task, extent
from hanzoo.training.distributed import gather_objects, merge, num_ranks, on_first, share
from hanzoo.training.trick import Start

RANKED = 100  # passages of a query that figures look at
CANDIDATES = 100  # of a first stage
WEIGHT = 0.7  # of the model's score beside the first stage's
CALLS = (
    'model.search(["租房押金不退怎么办"], ["押金应当退还。", "今天下雨"], 1)',
    "BEIR_FOLDER --output run.trec",
)  # on a card

_FIRST_STAGE: Mapping[str, Mapping[str, Any]] = {
    "--first-stage": {"choices": ["bm25"], "help": "what finds the candidates, which the model ranks"},
    "--candidates": {"type": int, "help": f"of a query, that the first stage gives (default: {CANDIDATES})"},
    "--weight": {
        "type": float,
        "help": f"of the model's score in the mix with the first stage's, 0 to 1 (default: {WEIGHT}; 1: the model's alone)",
    },
}
PREDICT_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "--k": {"type": int, "help": f"passages a query (default: {RANKED})"},
    "--queries": {"metavar": "SPLIT", "help": "only the queries that are judged in this split; default: all"},
    **_FIRST_STAGE,
}


class RetrievalDataSettings(DataSettings):
    """The `data` section: a retrieval set by name, or a BEIR folder of one's own.

    Attributes:
        name: stard.
        folder: with corpus.jsonl, queries.jsonl and qrels/train.tsv; qrels/dev.tsv (a tenth of the queries of train, if left out)
            and qrels/test.tsv (optional). `~` is put in full.
        most: queries of train that are used at most, the first ones; None = all.
        mining: give each query and passage that answers it negatives from the corpus, which BM25 or a trained bi-encoder finds:
            triples are trained on then (`MiningSettings`).
        dev_passages: about so many passages are searched for dev after each epoch, to select by: those that are relevant to its
            queries, and others evenly from the corpus. None = all, which takes as long as encoding the corpus. The figures of the
            run, at its end, are over all in either case.
    """

    sources: ClassVar[tuple[str, ...]] = ("name", "folder")
    kept: ClassVar[tuple[str, ...]] = ("mining",)
    names: ClassVar[Collection[str]] = tuple(name for name, known in MATCHING_SETS.items() if known.kind == "retrieval")

    name: str | None = None
    folder: str | None = None
    most: int | None = Field(default=None, ge=1)
    mining: MiningSettings | None = None
    dev_passages: int | None = Field(default=None, ge=1)

    @field_validator("folder")
    @classmethod
    def _with_home(cls, path: str | None) -> str | None:
        return str(expanded(path)) if path is not None and path.startswith("~") else path

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.name is None) == (self.folder is None):
            raise PydanticCustomError(
                "section",
                "must have exactly one of name and folder. Name a data set (data.name=stard) or a BEIR folder of your own "
                "(data.folder=my_folder).",
            )
        return self

    def located(self) -> Self:
        folder = None if self.folder is None else str(Path(self.folder).absolute())
        mining = None if self.mining is None else self.mining.located()
        return self.model_copy(update={"folder": folder, "mining": mining})


class RetrievalEvaluateSettings(EvaluateSettings):
    """The `evaluate` section.

    Attributes:
        metric: what selects the best epoch on dev.
    """

    metric: Literal["mrr@10", "ndcg@10", "recall@10", "recall@100"] = "mrr@10"


class SearchedCorpus:
    """Passages that are searched, and the indexes of them that were made last: one of a model, one of words.

    Attributes:
        passages: in the order of the file.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages
        self._bm25: BM25Index | None = None
        self._of_model: tuple[str, Index] | None = None

    def bm25(self) -> BM25Index:
        if self._bm25 is None:
            self._bm25 = BM25Index.build(self.passages)
        return self._bm25

    def index_of(self, model: Matcher, whole: bool = True) -> Index:
        """The index of a model; made anew where its weights are others. `whole` = False: of this rank's share alone."""
        name = _index_name(model, whole)
        if self._of_model is None or self._of_model[0] != name:
            self._of_model = None  # before the next is made: two need twice the room
            self._of_model = name, model.index(self.passages if whole else share(self.passages))
        return self._of_model[1]

    def behind_bm25(self, model: Matcher, queries: Sequence[str], candidates: int, weight: float) -> Staged:
        """BM25 and a model, for some queries: where the model has no index of the corpus yet, it reads their candidates alone."""
        if self._of_model is not None and self._of_model[0] == _index_name(model):
            return Staged(self.bm25(), self._of_model[1], candidates, weight)
        return Staged.for_queries(queries, self.bm25(), model.index, self.passages, candidates, weight)


def _index_name(model: Matcher, whole: bool = True) -> str:
    return f"{model.fingerprint()} {whole}"


class JudgedQuery(NamedTuple):
    """A query, and how relevant passages are to it.

    Attributes:
        query: what is asked.
        judged: id of a passage to its judgement.
    """

    query: Query
    judged: Mapping[str, int]


@dataclass(frozen=True)
class JudgedQueries(Sequence[JudgedQuery]):
    """The queries of a split, with the corpus that they are asked of."""

    queries: tuple[JudgedQuery, ...]
    corpus: SearchedCorpus

    def __len__(self) -> int:
        return len(self.queries)

    @overload
    def __getitem__(self, place: int) -> JudgedQuery: ...
    @overload
    def __getitem__(self, place: slice) -> JudgedQueries: ...
    def __getitem__(self, place: int | slice) -> JudgedQuery | JudgedQueries:
        return JudgedQueries(self.queries[place], self.corpus) if isinstance(place, slice) else self.queries[place]

    def in_fewer(self, passages: int) -> JudgedQueries:
        """The same queries over so many passages, evenly from the corpus, and those that are judged for them."""
        known = self.corpus.passages
        evenly = np.linspace(0, len(known) - 1, min(passages, len(known))).astype(np.int64)
        kept = {known[place].id for place in evenly}
        kept |= {name for item in self.queries for name in item.judged}
        return JudgedQueries(self.queries, SearchedCorpus([passage for passage in known if passage.id in kept]))

    @property
    def texts(self) -> list[str]:
        return [item.query.text for item in self.queries]

    @property
    def qrels(self) -> Qrels:
        return {item.query.id: item.judged for item in self.queries}


def searched_items(items: Sequence[Any]) -> JudgedQueries:
    """The items of this task, as the type that they have."""
    assert isinstance(items, JudgedQueries)
    return items


class RetrievalTaskData:
    """A retrieval set, and its parts: what is trained on, selected on, reported on. See `Data`.

    Attributes:
        name, hashes, notes: of the set.
        train: a pair for each query of train and passage that is relevant to it; with mined negatives a triple.
        dev, test: queries with their judgements.
        selected: dev as it is searched after each epoch; see `RetrievalDataSettings.dev_passages`.
        known: the set as it was read.
        view: what is trained on, as it stands beside a figure, where it is not the pairs alone.
        items, trained_on, allow_leakage, mined, item_settings: see `AimedData`.
    """

    items: ItemKind = "matches"
    allow_leakage = False
    mined: Mined | None = None
    item_settings: ClassVar[Mapping[ItemKind, str]] = {
        "matches": "Remove data.mining",
        "triples": "Set data.mining.finder, which gives each pair negatives",
    }

    def __init__(
        self, known: RetrievalData, most: int | None = None, dev_passages: int | None = None, view: str = ""
    ) -> None:
        if "train" not in known.qrels:
            raise DataError(f"{known.name}: must have qrels/train.tsv to be trained on, but has none. Add it.")
        self.known, self.view = known, view
        self.name, self.hashes, self.trained_on = known.name, known.hashes, (known.name,)
        corpus = SearchedCorpus(known.corpus)
        judged = {name: judgements(known, name) for name in known.qrels}
        train, notes = judged["train"], list(known.notes)
        if "dev" in judged:
            dev, self.dev_source = judged["dev"], "dev"
        else:
            dev, self.dev_source = [item for item in train if is_held_out(item.query.text)], "10 % of train"
            train = [item for item in train if not is_held_out(item.query.text)]
            notes.append(
                f"{known.name} has no dev: {len(dev):,} queries of train, by a fixed hash, are held out for it"
            )
        if not dev or not train:
            raise DataError(
                f"{known.name}: train and dev must hold a query each, but hold {len(train)} and {len(dev)}. "
                "Add queries, or qrels/dev.tsv."
            )
        held_out = "the tenth of qrels/train.tsv that is held out for dev"
        _require_relevant(dev, f"{known.name}: {'qrels/dev.tsv' if 'dev' in judged else held_out}")
        if "test" in judged:
            _require_relevant(judged["test"], f"{known.name}: qrels/test.tsv")
        train = train[:most]
        for name, queries in (("dev", dev), ("test", judged.get("test", []))):
            notes += leaked_queries([item.query for item in train], [item.query for item in queries], name)
        texts = {passage.id: passage.full_text for passage in known.corpus}
        self.train: Sequence[Pair | Triple] = tuple(
            Pair(item.query.text, texts[passage], 1.0, item.query.source, item.query.id)
            for item in train
            for passage, score in item.judged.items()
            if score > 0
        )
        if not self.train:
            raise DataError(f"{known.name}: train must hold a relevant passage, but holds none. Mend qrels/train.tsv.")
        self.queries = train
        self.dev = JudgedQueries(tuple(dev), corpus)
        self.selected = self.dev
        if dev_passages is not None and dev_passages < len(known.corpus):
            self.selected = self.dev.in_fewer(dev_passages)
            notes.append(
                f"after each epoch dev is searched in {len(self.selected.corpus.passages):,} passages, at the end in all"
            )
        self.notes = tuple(notes)
        self.test = JudgedQueries(tuple(judged["test"]), corpus) if "test" in judged else None
        self.test_source = "test" if self.test else "none"

    def with_negatives(self, mined: Mined) -> Self:
        """The same, trained on triples."""
        other = copy(self)
        other.items, other.train, other.mined = "triples", mined.triples, mined
        return other

    def split(self, name: str) -> JudgedQueries:
        """The queries of a split. Raises DataError where there is none."""
        if name == "train":
            return JudgedQueries(tuple(self.queries), self.dev.corpus)
        found = {"dev": self.dev, "test": self.test}.get(name)
        if found is None:
            raise DataError(
                f"{self.name}: a split must be there to be judged on, but {name} is not. Use the split dev."
            )
        return found


def judgements(data: RetrievalData, split: str) -> list[JudgedQuery]:
    """The queries that are judged in a split, in the order of its judgements."""
    return [JudgedQuery(data.queries[query], judged) for query, judged in data.judged(split).items()]


class FirstStage(NamedTuple):
    """BM25 before a model: how many candidates it gives, and the weight of the model's score beside its own."""

    candidates: int = CANDIDATES
    weight: float = WEIGHT

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self | None:
        """What the options of a command ask for. Raises RunError where they do not fit together."""
        candidates, weight = options.get("--candidates"), options.get("--weight")
        if options.get("--first-stage") is None:
            if candidates is not None or weight is not None:
                raise RunError(
                    "--candidates and --weight: must stand with --first-stage, but it is not given. Add --first-stage bm25."
                )
            return None
        stage = cls(CANDIDATES if candidates is None else candidates, WEIGHT if weight is None else weight)
        if stage.candidates < 1 or not 0 <= stage.weight <= 1:
            raise RunError(
                f"--candidates must be at least 1 and --weight in 0 to 1, but are {stage.candidates} and {stage.weight}. Mend them."
            )
        return stage


def hits_of(
    model: Matcher, queries: Sequence[str], corpus: SearchedCorpus, k: int, stage: FirstStage | None
) -> list[list[Hit]]:
    """What a model finds for queries. Collective: without a first stage the ranks share the corpus, with one the queries."""
    if stage is None and isinstance(model, CrossEncoder):
        stage = FirstStage(weight=1.0)
    if stage is not None:
        own = share(queries)
        return merge(gather_objects(corpus.behind_bm25(model, own, *stage).search(own, k)))
    if num_ranks() == 1:
        return corpus.index_of(model).search(queries, k)
    found = corpus.index_of(model, whole=False).search(queries, k)
    places = {passage.id: place for place, passage in enumerate(corpus.passages)}
    merged = []
    for parts in zip(*gather_objects(found), strict=True):
        hits = [hit for part in parts for hit in part]
        merged.append(sorted(hits, key=lambda hit: (-hit.score, places[str(hit.id)]))[:k])
    return merged


def scores_of(model: Matcher, items: JudgedQueries, stage: FirstStage | None = None) -> RetrievalScores:
    """How well a model finds what was judged relevant. Collective."""
    return score_hits(items, hits_of(model, items.texts, items.corpus, RANKED, stage))


def score_hits(items: JudgedQueries, hits: Sequence[Sequence[Hit]]) -> RetrievalScores:
    """Judge what was found for queries. Raises DataError where none of them has a relevant passage."""
    rankings = {item.query.id: [str(hit.id) for hit in row] for item, row in zip(items, hits, strict=True)}
    if not any(score > 0 for item in items for score in item.judged.values()):
        raise DataError("qrels: must name a relevant passage, but name none. There is nothing to judge by.")
    return score_rankings(rankings, items.qrels)


@dataclass(frozen=True, kw_only=True)
class RetrievalReport(Report):
    """The evaluation of a matcher's run as a search.

    Attributes:
        scores: a seed.
        stage: the first stage; None without one.
        alone: what the first stage finds by itself; None without one.
        notes: what a person should be told of what was read.
    """

    scores: Sequence[RetrievalScores]
    stage: FirstStage | None
    alone: RetrievalScores | None
    notes: Sequence[str]

    def remarks(self) -> list[str]:
        items = searched_items(self.subject.items)
        searched = f"{len(items):,} queries in {len(items.corpus.passages):,} passages"
        if self.stage is not None:
            searched += (
                f"; of {self.stage.candidates} candidates of BM25 a query, ranked by {self.stage.weight:g} x the model's score "
                f"and {1 - self.stage.weight:g} x BM25's, both normalised over the candidates"
            )
        return [searched, *self.notes, *self.scores[0].describe()]

    def summary(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            name: values[0] if len(values) == 1 else values for name, values in self._metrics().items()
        }
        if self.stage is not None and self.alone is not None:
            told["first_stage"] = {"name": "bm25", **self.stage._asdict(), **self.alone.figures}
        return told

    def _metrics(self) -> dict[str, list[float]]:
        return {name: [scores.figures[name] for scores in self.scores] for name in self.scores[0].figures}

    def recorded(self) -> dict[str, Any]:
        found: dict[str, Any] = {"metrics": self._metrics()}
        gain = self.against_first_stage
        if self.stage is not None and self.alone is not None and gain is not None:
            alone = self.alone.figures[self.task.figure]
            found["first_stage"] = {"name": "bm25", **self.stage._asdict(), "figure": alone, **gain.to_json()}
        return found

    def counts(self, figure: str) -> NDArray[np.float64]:
        """(seeds, queries, 2): the figure of each query, and 1."""
        return np.stack([counted(scores, figure) for scores in self.scores])

    def compare(self, other: RetrievalReport) -> Comparison:
        figure = self.task.figure
        return compare(self.counts(figure), other.counts(figure), mean_of, seed=0)

    @cached_property
    def against_first_stage(self) -> Comparison | None:
        """How the main figure differs from that of the first stage alone."""
        if self.alone is None:
            return None
        figure = self.task.figure
        alone = np.repeat(counted(self.alone, figure)[None], len(self.scores), axis=0)
        return compare(self.counts(figure), alone, mean_of, seed=0)


def counted(scores: RetrievalScores, figure: str) -> NDArray[np.float64]:
    """(queries, 2): a figure of each query, and 1: what `mean_of` takes the mean of."""
    values = scores.per_query[figure]
    return np.stack([values, np.ones(len(values))], axis=-1)


class Retrieval(Task):
    """Finding the passages of a corpus that answer a query, by a `Matcher`."""

    kind = "search model"
    predicts = "a BEIR folder"
    model = Matcher
    items = "queries"
    figure = "mrr@10"
    columns = ("mrr@10", "ndcg@10", "recall@10", "recall@100")
    next_step = "search: python predict.py {run} BEIR_FOLDER"
    data_settings = RetrievalDataSettings
    evaluate_settings = RetrievalEvaluateSettings
    options: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "evaluate": _FIRST_STAGE,
        "predict": PREDICT_OPTIONS,
    }
    objectives = tuple(objective_names())

    # Data.

    def load_data(self, settings: RetrievalDataSettings) -> RetrievalTaskData:
        known = load_retrieval(name=settings.name, folder=settings.folder)
        view = "with mined negatives" if settings.mining else ""
        return RetrievalTaskData(known, settings.most, settings.dev_passages, view)

    def ready(
        self,
        data: RetrievalTaskData,
        settings: RetrievalDataSettings,
        folder: Path,
        load: Callable[[Path], Any],
        say: Say,
    ) -> RetrievalTaskData:
        how = settings.mining
        if how is None:
            return data
        matching = [item for item in data.train if isinstance(item, Pair)]
        corpus = [passage.full_text for passage in data.known.corpus]
        return data.with_negatives(mine(corpus, matching, how, folder, load, say))

    def keep(self, data: RetrievalTaskData, folder: Path) -> None:
        if data.mined is not None:
            data.mined.keep(folder)

    def check(self, settings: RetrievalEvaluateSettings, data: RetrievalTaskData, place: str) -> None:
        """Nothing: every metric can be had of all data."""

    def describe(self, data: RetrievalTaskData) -> dict[str, Any]:
        known = data.known
        counts: dict[str, dict[str, int]] = {"corpus": {"passages": len(known.corpus)}}
        for name, queries in _splits(data).items():
            counts[name] = {"queries": len(queries), "relevant": _relevant(queries)}
        reported = data.dev_source if data.test is None else "test"
        few = "" if data.selected is data.dev else f" in {len(data.selected.corpus.passages):,} of its passages"
        return {
            "name": known.name,
            "view": data.view,
            "official": known.official,
            "sha256": dict(known.hashes),
            "counts": counts,
            "dev_source": data.dev_source,
            "test_source": data.test_source,
            "protocol": f"selected on {data.dev_source}{few}, reported on {reported} over the whole corpus",
            "notes": list(data.notes),
            "licence": known.licence,
            "source": known.source,
            "cite": known.cite,
        }

    def tables(self, data: RetrievalTaskData) -> list[list[dict[str, Any]]]:
        passages = {"": "corpus", "texts": len(data.known.corpus)} | extent(
            passage.full_text for passage in data.known.corpus
        )
        rows = [
            {"": f"{name} queries", "texts": len(queries)}
            | extent(item.query.text for item in queries)
            | {"relevant passages": _relevant(queries)}
            for name, queries in _splits(data).items()
        ]
        return [[passages, *rows]]

    # Items.

    def training_items(self, data: RetrievalTaskData, say: Say = lambda line: None) -> list[Any]:
        return list(data.train)

    def classes(self, item: Any) -> list[str]:
        return []

    def text(self, item: Any) -> str:
        if isinstance(item, Pair | Triple):
            return "\t".join(texts_of(item))
        return item.query.text if isinstance(item, JudgedQuery) else str(item.text)

    def without_gold(self, item: Any) -> Any:
        return Pair(item.first, item.second) if isinstance(item, Pair) else item

    def read_texts(self, path: Path, format: str | None) -> Sequence[Any]:
        """The queries of a BEIR folder."""
        queries = load_retrieval(folder=path, splits=()).queries.values()
        return [Document(query.text, (), query.source, query.id) for query in queries]

    def read_labelled(self, path: Path, format: str | None, settings: Any) -> JudgedQueries:
        """The queries of a BEIR folder with its corpus: of its test, or of the one split that it has."""
        data = load_retrieval(folder=path)
        if "test" not in data.qrels and len(data.qrels) != 1:
            raise DataError(
                f"{path}: must have qrels/test.tsv, or only one split, but has {', '.join(data.qrels)}. Leave one of them there."
            )
        split = "test" if "test" in data.qrels else next(iter(data.qrels))
        queries = tuple(judgements(data, split))
        _require_relevant(queries, f"{path}: qrels/{split}.tsv")
        return JudgedQueries(queries, SearchedCorpus(data.corpus))

    # Training.

    def aim(self, model: Matcher, objective: str, settings: Settings, data: RetrievalTaskData) -> None:
        aim(model, objective, settings, data)

    def teach(self, teacher: Matcher, student: Matcher, data: RetrievalTaskData) -> None:
        note_leaks(student, data, teacher.trained_on)

    def restrict(self, model: Matcher, data: RetrievalTaskData) -> None:
        """Nothing: a matcher has no labels."""

    def start(self, model: Matcher, old_data: Callable[[], Any]) -> Start:
        def items() -> list[Any]:
            return [model.featurize(item) for item in old_data().train]

        return Start(model.fresh, items, contextlib.nullcontext)

    def dev_evaluation(
        self, model: Matcher, items: Sequence[Any], data: RetrievalTaskData
    ) -> Callable[[Model], dict[str, Any]]:
        searched = data.selected if items is data.dev else searched_items(items)

        def evaluate_dev(trained: Model) -> dict[str, Any]:
            assert isinstance(trained, Matcher)
            figures = scores_of(trained, searched).figures
            return {name: figures[name] for name in self.columns}

        return evaluate_dev

    def dev_sample(self, data: RetrievalTaskData, most: int) -> tuple[JudgedQueries, float]:
        """A few queries over a part of the corpus, since encoding it is what takes the time."""
        few = data.selected[:most].in_fewer(4 * most)
        return few, len(data.selected.corpus.passages) / len(few.corpus.passages)

    def calibrate(
        self, model: Matcher, items: Sequence[Any], settings: RetrievalEvaluateSettings, data: RetrievalTaskData
    ) -> dict[str, Any]:
        return {"note": "a ranking has no threshold: nothing is fitted"}

    def figures(self, model: Matcher, items: Sequence[Any], data: RetrievalTaskData) -> dict[str, Any]:
        return scores_of(model, searched_items(items)).to_json()

    def card(self, results: Mapping[str, Any], recipe: Mapping[str, Any], run: str) -> str:
        return run_card(results, recipe, run, CALLS, "queries")

    # Evaluation.

    def report(self, subject: Subject, models: Iterable[Matcher], options: Mapping[str, Any]) -> RetrievalReport:
        stage = FirstStage.of(options)
        items = searched_items(subject.items)
        scores = []
        notes: tuple[str, ...] = ()
        for model in models:
            scores.append(scores_of(model, items, stage))
            notes = _notes(model, items.texts, items.corpus)
            if stage is None and isinstance(model, CrossEncoder):
                stage = FirstStage(weight=1.0)
        alone = None if stage is None else score_hits(items, items.corpus.bm25().search(items.texts, RANKED))
        return RetrievalReport(
            task=self,
            subject=subject,
            figures=[each.to_json() for each in scores],
            scores=scores,
            stage=stage,
            alone=alone,
            notes=notes,
        )

    def require_same(self, subject: Subject, other: Subject) -> None:
        one, two = searched_items(subject.items), searched_items(other.items)
        same_corpus = [passage.id for passage in one.corpus.passages] == [passage.id for passage in two.corpus.passages]
        if not same_corpus or {**one.qrels} != {**two.qrels} or list(one.texts) != list(two.texts):
            raise DataError(
                f"{subject.run}: {subject.split} must hold the queries, judgements and passages of {other.split} in {other.run}, "
                "but holds others. Compare runs of the same data, or on one --file."
            )

    def details(self, reports: Sequence[RetrievalReport], arguments: argparse.Namespace) -> Iterator[str]:
        staged = [report for report in reports if report.alone is not None]
        for report in staged:
            assert report.alone is not None
            found = report.against_first_stage
            assert found is not None
            table = results_table(
                [{"first stage": "BM25"} | {name: report.alone.figures[name] for name in self.columns}]
            )
            yield (
                f"{table}\n{report.subject.run} against BM25 alone, {self.figure}: {show_difference(found.difference)}, 95 % "
                f"interval {show_interval(found.interval)}, p {show_p(found.p)}"
            )

    def write_submission(self, run: Path, model: Matcher, data: RetrievalTaskData, path: Path) -> None:
        raise RunError(f"{run}: a submission needs cluener, but this run is of {data.name}. Leave --submission out.")

    # Prediction.

    def takes_file(self, path: str) -> bool:
        return Path(path).is_dir()

    def predict(self, model: Matcher, arguments: argparse.Namespace, say: Say) -> int:
        """Search the corpus of a BEIR folder for its queries, and write the rankings. Judgements are read of --queries alone.

        By the ending of the file: .tsv (query-id, corpus-id, score, as qrels), .json (query to passage to score, what BEIR's own
        evaluation reads); else a TREC run.

        Raises:
            RunError: options do not fit together.
            DataError: the folder is at fault, the output is one of its files, or an id cannot stand in a TREC run.
            StorageError: the output cannot be written; said before the search where it cannot even be opened.
        """
        stage = FirstStage.of({f"--{name.replace('_', '-')}": value for name, value in vars(arguments).items()})
        if stage is None and isinstance(model, CrossEncoder):
            raise RunError(
                "--first-stage: must be given for a cross-encoder, which re-ranks candidates. Add --first-stage bm25."
            )
        k = RANKED if arguments.k is None else arguments.k
        if k < 1:
            raise RunError(f"--k: must be at least 1, but is {k}. Mend it.")
        output = None if arguments.output in (None, "-") else Path(arguments.output)
        if output is not None and is_read(output, Path(arguments.file)):
            raise DataError(
                f"{output}: the output must be another file than the input, but {arguments.file} is read from it. "
                "Name another one with --output."
            )
        split = arguments.queries
        data = load_retrieval(folder=arguments.file, splits=() if split is None else (split,))
        queries = list(data.queries.values()) if split is None else list(data.queries_of(split))
        corpus = SearchedCorpus(data.corpus)
        texts = [query.text for query in queries]
        ending = "" if output is None else Path(output.name.removesuffix(".gz")).suffix
        if ending not in (".json", ".tsv"):
            _require_no_blanks([*queries, *data.corpus])
        with contextlib.ExitStack() as opened:
            written: list[AtomicFile | StandardOutput] = []  # of the first rank alone

            def open_output() -> None:
                written.append(StandardOutput() if output is None else opened.enter_context(AtomicFile(output)))

            def write() -> None:
                content = "".join(_run_lines([query.id for query in queries], hits, ending))
                written[0].write(content.encode("utf-8"))
                opened.close()

            on_first(open_output)  # before the search, which may take long
            hits = hits_of(model, texts, corpus, k, stage)
            for note in _notes(model, texts, corpus):
                say(note)
            on_first(write)
        return 0


def _require_no_blanks(items: Iterable[Query | Passage]) -> None:
    """Raise DataError where an id cannot stand in a TREC run."""
    for item in items:
        if item.id.split() != [item.id]:
            raise DataError(
                f'{item.source}: "_id" must hold no blank in a TREC run, whose fields blanks divide, but is {item.id!r}. '
                "Write another form: --output run.tsv or run.json."
            )


def _run_lines(queries: Sequence[str], hits: Sequence[Sequence[Hit]], ending: str) -> Iterator[str]:
    if ending == ".json":
        found = {query: {str(hit.id): hit.score for hit in row} for query, row in zip(queries, hits, strict=True)}
        yield json.dumps(found, ensure_ascii=False) + "\n"
        return
    if ending == ".tsv":
        yield "query-id\tcorpus-id\tscore\n"
    for query, row in zip(queries, hits, strict=True):
        for rank, hit in enumerate(row, start=1):
            if ending == ".tsv":
                yield f"{query}\t{hit.id}\t{hit.score:.9g}\n"
            else:
                yield f"{query} Q0 {hit.id} {rank} {hit.score:.9g} hanzoo\n"


def _notes(model: Matcher, queries: Sequence[str], corpus: SearchedCorpus) -> tuple[str, ...]:
    """What a person should be told of texts that are too long for a model."""
    if not isinstance(model, TextMatcher):
        return ()
    return (*model.query_notes(queries), *model.corpus_notes([passage.full_text for passage in corpus.passages]))


def _splits(data: RetrievalTaskData) -> dict[str, JudgedQueries]:
    return {name: data.split(name) for name in ("train", "dev", "test") if name != "test" or data.test}


def _require_relevant(queries: Iterable[JudgedQuery], where: str) -> None:
    """Raise DataError where no passage is relevant."""
    if not _relevant(queries):
        raise DataError(
            f"{where} must name a relevant passage (a score above 0), but names none: there is nothing to judge by. "
            "Mend the judgements."
        )


def _relevant(queries: Iterable[JudgedQuery]) -> int:
    return sum(score > 0 for item in queries for score in item.judged.values())
