"""Matching: pairs of texts and how well they match, judged by rank correlation and, for two classes, at a threshold."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hanzoo.data.document import Document, Pair, Triple, texts_of
from hanzoo.data.files import expanded
from hanzoo.data.leakage import LeakageReport, check_leaks, leakage
from hanzoo.data.matching_catalogue import (
    MATCHING_SETS,
    PairData,
    TextData,
    TripleData,
    load_pairs,
    load_texts,
    load_triples,
    own_scale,
    texts_with_pairs,
    with_pairs,
)
from hanzoo.data.pair_files import Scale, read_pairs
from hanzoo.data.training_items import ItemKind, matches, texts, triples_of_pairs
from hanzoo.errors import DataError, RecipeError, RunError
from hanzoo.evaluation.calibration import brier, expected_calibration_error, fit_platt
from hanzoo.evaluation.matching import (
    CHOSEN_FOR,
    ChosenFor,
    alignment,
    bootstrap_difference,
    choose_threshold,
    score_pairs,
    uniformity,
)
from hanzoo.evaluation.report import run_card, show_figure
from hanzoo.evaluation.significance import Comparison
from hanzoo.models.bi_encoder import BiEncoder
from hanzoo.models.model import Matcher, Model, Settings, objective_names
from hanzoo.tasks.aiming import aim, encoder_name, note_leaks, official_name
from hanzoo.tasks.matching_errors import worst_pairs
from hanzoo.tasks.matching_prediction import PREDICT_OPTIONS, score_file
from hanzoo.tasks.mining import Mined, MiningSettings, mine
from hanzoo.tasks.task import ERRORS_OPTION, DataSettings, EvaluateSettings, Report, Say, Subject, Task, extent
from hanzoo.training.distributed import gather_objects, merge, share
from hanzoo.training.trick import Start

OWN_FILES = ("train", "dev", "test")
RECORDED = (
    "spearman",
    "spearman_ceiling",
    "pearson",
    "auc",
    "accuracy",
    "f1",
    "majority",
    "ece",
    "brier",
)  # of the figures
OF_VECTORS = ("alignment", "uniformity")
SPHERE_TEXTS = 10_000  # on which uniformity, which compares all with all, is measured at most

FORCE_LEAKAGE = "--allow-leakage"
EVALUATE_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "--errors": ERRORS_OPTION,
    FORCE_LEAKAGE: {
        "action": "store_true",
        "help": "score a matcher also on data that it is known to have been trained on; the figure means nothing, and says so",
    },
}


class MatchingDataSettings(DataSettings):
    """The `data` section: a data set of pairs by name, or files of one's own; and what of it is trained on.

    Attributes:
        name: afqmc, stsb, atec, bq, lcqmc, pawsx, ocnli and others.
        train: files of one's own (TSV, CSV, JSON lines), split already; with them
        dev: (10 % of train by a fixed hash, if left out) and
        test: (optional). `~` is put in full, here and in the two before.
        triples: a data set of triples by name (simclue), or a file of one's own. They are trained on; the pairs of `name`, or of
            `dev` and `test`, are what is selected and reported on. Without such pairs 10 % of the triples serve, as pairs.
        texts: a file of one's own with single texts (.txt: one a line; else a column, or key, `text`). They are trained on; the
            pairs of `name`, or of `dev` and `test`, are what is selected and reported on.
        scale: what the labels of one's own files mean; None = two classes, 0 and 1.
        columns: which column of one's own pairs is what.
        triple_columns: and of one's own triples.
        dev_from_train: hold out 10 % of train for selection; the official dev is then only reported on.
        items: what is trained on: pairs with their labels; matches, the pairs with the highest label, or all of a file without
            labels; triples, of pairs: one that matches with one of the lowest label and the same first text; texts, each of them
            once, without labels. None = triples where they are given, else pairs.
        most: items of train (pairs, or triples) that are used at most, the first ones; None = all.
        mining: give pairs that match negatives that BM25 or a bi-encoder finds: triples are trained on then (`MiningSettings`).
        allow_leakage: train also where what is reported on is known to stand in what is trained on: the figure means nothing.
    """

    sources: ClassVar[tuple[str, ...]] = ("name", "train", "triples", "texts")
    kept: ClassVar[tuple[str, ...]] = ("items", "mining")
    names: ClassVar[Collection[str]] = tuple(name for name, entry in MATCHING_SETS.items() if entry.kind == "pairs")

    name: str | None = None
    train: str | None = None
    dev: str | None = None
    test: str | None = None
    triples: str | None = None
    texts: str | None = None
    scale: str | None = None
    columns: dict[str, str | int] | None = None
    triple_columns: dict[str, str | int] | None = None
    dev_from_train: bool = False
    items: ItemKind | None = None
    most: int | None = Field(default=None, ge=1)
    mining: MiningSettings | None = None
    allow_leakage: bool = False

    @field_validator(*OWN_FILES, "triples", "texts")
    @classmethod
    def _with_home(cls, path: str | None) -> str | None:
        return str(expanded(path)) if path is not None and path.startswith("~") else path

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        given = [key for key in ("name", "train") if getattr(self, key) is not None]
        instead = [key for key in ("triples", "texts") if getattr(self, key) is not None]
        if not instead and len(given) != 1:
            raise PydanticCustomError(
                "section",
                "must have exactly one of name and train, or triples, or texts, but has {given}. "
                "Name a data set (data.name=stsb) or a file of your own (data.train=my.tsv).",
                {"given": " and ".join(given) or "none"},
            )
        if len(instead) > 1 or (instead and self.train is not None):
            raise PydanticCustomError(
                "section",
                "must have one of train, triples and texts, which are what is trained on, but has {given}. Remove the others.",
                {"given": " and ".join(key for key in ("train", *instead) if getattr(self, key) is not None)},
            )
        if self.texts is not None and self.name is None and self.dev is None:
            raise PydanticCustomError(
                "section",
                "must have labelled pairs beside texts, to select by, but has none. Name a file of them (data.dev=my.tsv) or a "
                "data set (data.name=stsb).",
            )
        if instead and self.name is None and self.dev_from_train:
            raise PydanticCustomError(
                "section",
                "must have dev_from_train false beside {key} without a data set of pairs, but has true. Remove it.",
                {"key": instead[0]},
            )
        for key, allowed in (("triples", ("triples", "texts")), ("texts", ("texts",))):
            if key in instead and self.items not in (None, *allowed):
                raise PydanticCustomError(
                    "section",
                    "must have items {allowed} beside {key}, but has {items}. Set data.items={key}.",
                    {"allowed": " or ".join(allowed), "key": key, "items": self.items},
                )
        if self.triple_columns is not None and self.triples is None:
            raise PydanticCustomError(
                "section",
                "must have triples beside triple_columns, but has none. Name their file (data.triples=my.tsv).",
            )
        if self.mining is not None and (instead or self.items not in (None, "matches")):
            raise PydanticCustomError(
                "section",
                "must have neither triples nor texts nor other items than matches beside mining, which finds negatives for them, "
                "but has. Remove them, or mining.",
            )
        return self

    def located(self) -> Self:
        given = {key: getattr(self, key) for key in (*OWN_FILES, "texts")}
        if self.triples not in MATCHING_SETS:
            given["triples"] = self.triples
        places = {key: str(Path(path).absolute()) for key, path in given.items() if path is not None}
        mining = None if self.mining is None else self.mining.located()
        return self.model_copy(update={**places, "mining": mining})


class MatchingEvaluateSettings(EvaluateSettings):
    """The `evaluate` section.

    Attributes:
        metric: what selects the best epoch on dev. auc is for two classes.
        calibrate: for two classes: choose the threshold on dev, and fit on half of it how probable a match is.
        chosen_for: what the threshold of `match` is the best for. Accuracy and F1 are each reported at the best threshold for it.
    """

    metric: Literal["spearman", "pearson", "auc"] = "spearman"
    chosen_for: ChosenFor = "accuracy"


@dataclass(frozen=True)
class MatchingData:
    """Pairs, and which items are trained on.

    Attributes:
        pairs: read and checked.
        items: see `MatchingDataSettings`.
        train: the items.
        hashes: of all files.
        notes: all a person should be told.
        trained_on: names of the data sets that the items come from.
        instead: triples or texts that are trained on in the place of pairs; None where what is trained on is made of pairs.
        allow_leakage: see `MatchingDataSettings`.
        view: what is trained on, as it stands beside a figure.
        mined: the triples that a model found; None where none has to, or none did yet.
    """

    pairs: PairData
    items: ItemKind
    train: Sequence[Pair | Triple | Document]
    hashes: Mapping[str, str]
    notes: Sequence[str]
    trained_on: tuple[str, ...]
    instead: TripleData | TextData | None = None
    allow_leakage: bool = False
    view: str = ""
    mined: Mined | None = None

    @property
    def item_settings(self) -> Mapping[ItemKind, str]:
        """See `AimedData`."""
        if self.instead is None:
            return {kind: f"Set data.items={kind} where the data has them" for kind in get_args(ItemKind)}
        kinds: tuple[ItemKind, ...] = ("triples", "texts") if isinstance(self.instead.train[0], Triple) else ("texts",)
        return {kind: f"Set data.items={kind}" for kind in kinds}

    @property
    def name(self) -> str:
        return self.pairs.name

    @property
    def scale(self) -> Scale:
        return self.pairs.scale

    @property
    def dev(self) -> Sequence[Pair]:
        return self.pairs.dev

    @property
    def test(self) -> Sequence[Pair] | None:
        return self.pairs.test

    @property
    def dev_source(self) -> str:
        return self.pairs.dev_source

    @property
    def test_source(self) -> str:
        return self.pairs.test_source

    def split(self, name: str) -> Sequence[Pair]:
        """See `SplitData.split`. Raises DataError also where train holds no labelled pairs to be judged by."""
        found = self.pairs.split(name)
        if name == "train" and (not found or found[0].label is None):
            raise DataError(
                f"split: train must hold labelled pairs, but {self.name} is trained on {self.items} without. Use the split dev."
            )
        return found


def labels_of(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """(pairs,) the labels of pairs that all have one."""
    return np.array([pair.label for pair in pairs], dtype=np.float64)


def scores_of(model: Matcher, pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """(pairs,) what a model says of pairs, whose gold is not looked at. Collective: the ranks share the work."""
    mine = share(pairs)
    found = model.scores([(pair.first, pair.second) for pair in mine]).tolist() if mine else []
    return np.array(merge(gather_objects(found)), dtype=np.float64)


def sphere_figures(model: Matcher, pairs: Sequence[Pair], highest: float) -> dict[str, float]:
    """Alignment and uniformity of a model with one vector a text; nothing of another.

    Args:
        model: the matcher.
        pairs: with labels. Alignment is of those with the label `highest`, left out where none has it; uniformity of all their
            texts, of `SPHERE_TEXTS` evenly among them where there are more.
        highest: the label of a match.
    """
    if not isinstance(model, BiEncoder):
        return {}
    matching = [texts_of(pair) for pair in pairs if pair.label == highest]
    distinct = list(dict.fromkeys(text for pair in pairs for text in texts_of(pair)))
    evenly = np.linspace(0, len(distinct) - 1, min(SPHERE_TEXTS, len(distinct))).astype(np.int64)
    sample = [distinct[place] for place in evenly]
    wanted = list(dict.fromkeys([*sample, *(text for pair in matching for text in pair)]))
    vectors = model.encode(wanted)  # each text once
    places = {text: place for place, text in enumerate(wanted)}
    found = {}
    if matching:
        one, other = (vectors[[places[text] for text in side]] for side in zip(*matching, strict=True))
        found["alignment"] = alignment(one, other)
    if len(sample) > 1:
        found["uniformity"] = uniformity(vectors[: len(sample)])
    return found


@dataclass(frozen=True, kw_only=True)
class MatchingReport(Report):
    """The evaluation of a matcher's run.

    Attributes:
        scores: (seeds, pairs).
        thresholds: a seed: the model's; None where it has none.
        said: what a reader of the figures should be told beside: leaks, texts that are not read whole.
    """

    scores: NDArray[np.float64]
    thresholds: Sequence[float | None]
    said: Sequence[str] = ()

    def remarks(self) -> list[str]:
        first = self.figures[0]
        known = (
            f"{first['pairs']:,} pairs; the highest Spearman with their ties is {show_figure(first['spearman_ceiling'])}; "
            f"always saying the most frequent label is right in {show_figure(first['majority'])} %"
        )
        sphere = [
            f"{name} of the vectors {float(np.mean([figures[name] for figures in self.figures])):.3f}, the lower the better"
            for name in OF_VECTORS
            if name in first
        ]
        constant = [figures["constant"] for figures in self.figures if figures["constant"]]
        return [known, *sphere, *(f"{what} are constant: the correlation is 0" for what in constant), *self.said]

    def summary(self) -> dict[str, Any]:
        names = [name for name, value in self.figures[0].items() if isinstance(value, int | float)]
        return {name: _seeds([figures[name] for figures in self.figures]) for name in names}

    def recorded(self) -> dict[str, Any]:
        first = self.figures[0]
        return {
            kind: {name: [figures[name] for figures in self.figures] for name in names if first.get(name) is not None}
            for kind, names in (("metrics", RECORDED), ("vectors", OF_VECTORS))
            if not first.keys().isdisjoint(names)
        }

    def compare(self, other: MatchingReport) -> Comparison:
        """In Spearman's rho, which is no sum over pairs: it has an interval, and no p-value of randomisation."""
        rounds, gold = 1000, labels_of(self.subject.items)
        difference, interval = bootstrap_difference(gold, self.scores, other.scores, seed=0, rounds=rounds)
        return Comparison(difference, interval, None, rounds)


def _seeds(values: Sequence[float]) -> float | list[float]:
    return values[0] if len(values) == 1 else list(values)


class Matching(Task):
    """Saying how well two texts match: `Pair`s of a `MatchingData`, for a `Matcher`."""

    kind = "matcher"
    predicts = "pairs of texts"
    model = Matcher
    items = "items"
    figure = "spearman"
    columns = ("spearman", "pearson", "auc", "accuracy", "f1")
    next_step = "score: python predict.py {run} pairs.tsv"
    data_settings = MatchingDataSettings
    evaluate_settings = MatchingEvaluateSettings
    options: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "evaluate": EVALUATE_OPTIONS,
        "predict": PREDICT_OPTIONS,
    }
    objectives = tuple(objective_names())

    # Data.

    def load_data(self, settings: MatchingDataSettings) -> MatchingData:
        pairs, instead = _read(settings)
        own: ItemKind = "texts" if settings.texts else "triples" if settings.triples else "pairs"
        kind = settings.items or ("matches" if settings.mining else own)
        sources = (pairs.name,) if instead is None else (instead.name,)
        hashes, notes = dict(pairs.hashes), list(pairs.notes)
        if instead is not None and settings.name is not None:
            hashes |= {f"{own}: {name}": digest for name, digest in instead.hashes.items()}
            notes += instead.notes
        if instead is not None and (settings.name is not None or settings.texts is not None):
            for split, some in (("dev", pairs.dev), ("test", pairs.test or ())):
                notes += [f"{own}: {line}" for line in leakage(instead.train, some).describe(split)]
        notes += check_leaks(
            [official_name(name) for name in sources], official_name(pairs.name), force=settings.allow_leakage
        )
        given: Sequence[Pair | Triple | Document] = pairs.train if instead is None else instead.train
        train = _items(kind, given[: settings.most], pairs)
        view = kind if instead is None else f"{kind} of {instead.name}"
        view += " with mined negatives" if settings.mining else ""
        return MatchingData(pairs, kind, train, hashes, notes, sources, instead, settings.allow_leakage, view)

    def ready(
        self,
        data: MatchingData,
        settings: MatchingDataSettings,
        folder: Path,
        load: Callable[[Path], Any],
        say: Say,
    ) -> MatchingData:
        how = settings.mining
        if how is None:
            return data
        matching = [item for item in data.train if isinstance(item, Pair)]
        corpus = [pair.second for pair in data.pairs.train[: settings.most]]
        mined = mine(corpus, matching, how, folder, load, say)
        return replace(data, items="triples", train=mined.triples, mined=mined)

    def keep(self, data: MatchingData, folder: Path) -> None:
        if data.mined is not None:
            data.mined.keep(folder)

    def check(self, settings: MatchingEvaluateSettings, data: MatchingData, place: str) -> None:
        """See `Task.check`. Raises DataError where dev can select nothing."""
        if settings.metric == "auc" and not data.scale.is_binary:
            raise RecipeError(
                f"{place}: evaluate.metric must be spearman or pearson for {data.name}, but is 'auc', which needs two classes. "
                "Set evaluate.metric=spearman."
            )
        labels = set(labels_of(data.dev).tolist())
        if len(labels) < 2:
            raise DataError(
                f"{data.name}: the {len(data.dev):,} pairs of dev ({data.pairs.dev_source}) must have two labels at least to be "
                f"selected by, but all have {labels.pop():g}. Give another file for data.dev, or more pairs."
            )

    def describe(self, data: MatchingData) -> dict[str, Any]:
        pairs = data.pairs
        return {
            "name": pairs.name,
            "view": data.view,
            "official": pairs.official and (data.instead is None or data.instead.official),
            "sha256": dict(data.hashes),
            "counts": {
                name: {kind: len(split)}
                for name, kind, split in (
                    ("train", data.items, data.train),
                    ("dev", "pairs", pairs.dev),
                    ("test", "pairs", pairs.test or ()),
                )
            },
            "dev_source": pairs.dev_source,
            "test_source": pairs.test_source,
            "protocol": pairs.protocol,
            "notes": list(data.notes),
            "licence": pairs.licence,
            "source": pairs.source,
            "cite": pairs.cite,
        }

    def tables(self, data: MatchingData) -> list[list[dict[str, Any]]]:
        """How long the texts are, and what of dev and test stands in train."""
        judged = {"dev": data.dev} | ({"test": data.test} if data.test else {})
        known = _known(data)
        extents = [{"split": "train", data.items: len(data.train)} | extent(_texts(data.train))]
        extents += [{"split": split, "pairs": len(pairs)} | extent(_texts(pairs)) for split, pairs in judged.items()]
        return [extents, [{"split": split} | _leak_row(leakage(known, pairs)) for split, pairs in judged.items()]]

    # Items.

    def training_items(self, data: MatchingData, say: Say = lambda line: None) -> list[Any]:
        return list(data.train)

    def classes(self, item: Any) -> list[str]:
        return [f"{item.label:g}"] if isinstance(item, Pair) and item.label is not None else []

    def text(self, item: Any) -> str:
        return "\t".join(texts_of(item))

    def without_gold(self, item: Any) -> Any:
        if isinstance(item, Pair):
            return Pair(item.first, item.second)
        return Triple(item.anchor, item.positive, item.negatives) if isinstance(item, Triple) else Document(item.text)

    def read_texts(self, path: Path, format: str | None) -> Sequence[Pair]:
        return [Pair(pair.first, pair.second, None, pair.source, pair.id) for pair in read_pairs(path)[0]]

    def read_labelled(self, path: Path, format: str | None, settings: MatchingDataSettings | None) -> Sequence[Pair]:
        """Pairs as the run's own files have them: of its scale, and with its columns."""
        pairs, report = read_pairs(path, _scale(settings), columns=None if settings is None else settings.columns)
        if report.unlabelled:
            raise DataError(f"{path}: a pair must have a label to be judged by, but has none. Score it by predict.py.")
        return pairs

    # Training.

    def aim(self, model: Matcher, objective: str, settings: Settings, data: MatchingData) -> None:
        aim(model, objective, settings, data)

    def teach(self, teacher: Matcher, student: Matcher, data: MatchingData) -> None:
        note_leaks(student, data, teacher.trained_on)

    def restrict(self, model: Matcher, data: MatchingData) -> None:
        """Nothing: a matcher has one scale."""

    def start(self, model: Matcher, old_data: Callable[[], MatchingData]) -> Start:
        def items() -> list[Any]:
            return [model.featurize(self.without_gold(item)) for item in self.training_items(old_data())]

        return Start(model.fresh, items, contextlib.nullcontext)

    def dev_evaluation(
        self, model: Matcher, items: Sequence[Pair], data: MatchingData
    ) -> Callable[[Model], dict[str, Any]]:
        gold = labels_of(items)

        def evaluate_dev(trained: Model) -> dict[str, Any]:
            assert isinstance(trained, Matcher)
            scores = score_pairs(gold, scores_of(trained, items), two_classes=data.scale.is_binary)
            found = {"spearman": scores.spearman, "pearson": scores.pearson}
            return found if scores.auc is None else found | {"auc": scores.auc}

        return evaluate_dev

    def calibrate(
        self, model: Matcher, items: Sequence[Pair], settings: MatchingEvaluateSettings, data: MatchingData
    ) -> dict[str, Any]:
        """For two classes: the thresholds that are best on dev, and probabilities, both saved with the model.

        Thresholds are chosen on all of dev. Probabilities are fitted on every other pair of each class, and judged on the rest.
        """
        gold = labels_of(items)
        if not data.scale.is_binary or set(gold) != {0.0, 1.0}:
            return {"note": "labels are no two classes: there is no threshold and no probability"}
        scores = scores_of(model, items)
        best = {name: choose_threshold(gold, scores, name) for name in CHOSEN_FOR}
        chosen = best[settings.chosen_for]
        model.threshold, model.thresholds = chosen.value, {name: one.value for name, one in best.items()}
        matches = gold == 1.0
        fitted = np.zeros(len(gold), dtype=np.bool_)
        for own in (matches, ~matches):
            fitted[np.flatnonzero(own)[::2]] = True
        model.calibration = fit_platt(scores[fitted], matches[fitted])
        facts = {"threshold": chosen.value, "chosen_for": chosen.chosen_for, "on_dev": chosen.figure}
        facts |= {"factor": model.calibration[0], "offset": model.calibration[1], "pairs_fitted": int(fitted.sum())}
        rest = ~fitted
        if rest.any():
            share = float(matches[rest].mean())
            facts |= {"pairs_measured": int(rest.sum()), **_reliability(model, scores[rest], matches[rest])}
            facts["brier_of_the_share"] = share * (1 - share)
        return facts

    def figures(self, model: Matcher, items: Sequence[Pair], data: MatchingData) -> dict[str, Any]:
        return self._figures(model, labels_of(items), scores_of(model, items), data.scale.is_binary)

    @staticmethod
    def _figures(
        model: Matcher, gold: NDArray[np.float64], scores: NDArray[np.float64], two_classes: bool
    ) -> dict[str, Any]:
        known = {f"{name}_threshold": model.thresholds.get(name, model.threshold) for name in CHOSEN_FOR if two_classes}
        figures = score_pairs(gold, scores, two_classes=two_classes, **known).to_json()
        return figures | _reliability(model, scores, gold == 1.0) if two_classes else figures

    def card(self, results: Mapping[str, Any], recipe: Mapping[str, Any], run: str) -> str:
        calls = ['model.score("花呗怎么还款", "如何偿还花呗")']
        if "factor" in results.get("calibration", {}):
            calls.append('model.probability("花呗怎么还款", "如何偿还花呗")')
        return run_card(results, recipe, run, [*calls, "pairs.tsv --output scored.tsv"], "pairs")

    # Evaluation.

    def report(self, subject: Subject, models: Iterable[Matcher], options: Mapping[str, Any]) -> MatchingReport:
        gold = labels_of(subject.items)
        scale = _scale(subject.settings)
        two_classes = scale.is_binary
        scores, figures, thresholds = [], [], []
        said: dict[str, None] = {}
        for model in models:
            if subject.elsewhere:
                leaks = check_leaks(
                    map(official_name, model.trained_on), official_name(subject.data.name), encoder=encoder_name(model),
                    force=bool(options.get(FORCE_LEAKAGE)), cure=f"Score other data, or force it by {FORCE_LEAKAGE}",
                )  # fmt: skip
                said.update(dict.fromkeys(leaks))
            elif not subject.from_data and subject.data is not None:
                said.update(dict.fromkeys(leakage(_known(subject.data), subject.items).describe(subject.place)))
            said.update(dict.fromkeys(model.cut_notes(subject.items)))
            found = scores_of(model, subject.items)
            scores.append(found)
            figures.append(
                self._figures(model, gold, found, two_classes) | sphere_figures(model, subject.items, scale.high)
            )
            thresholds.append(model.threshold if two_classes else None)
        return MatchingReport(
            task=self,
            subject=subject,
            figures=figures,
            scores=np.stack(scores),
            thresholds=thresholds,
            said=tuple(said),
        )

    def require_same(self, subject: Subject, other: Subject) -> None:
        one, two = ([(p.first, p.second, p.label) for p in each.items] for each in (subject, other))
        if one != two:
            raise DataError(
                f"{subject.run}: {subject.split} must hold the pairs of {other.split} in {other.run}, but holds others. "
                "Compare runs of the same data, or on one --file."
            )

    def details(self, reports: Sequence[MatchingReport], arguments: argparse.Namespace) -> Iterator[str]:
        for report in reports if arguments.errors else ():
            pairs = report.subject.items
            which = ", first seed" if len(report.scores) > 1 else ""
            for block in worst_pairs(
                pairs, report.scores[0], report.thresholds[0], _scale(report.subject.settings).is_binary
            ):
                yield f"{report.subject.run}, {report.subject.place}{which}: {block}"

    def write_submission(self, run: Path, model: Matcher, data: MatchingData, path: Path) -> None:
        raise RunError(f"{run}: a submission needs cluener, but this run is of {data.name}. Leave --submission out.")

    # Prediction.

    def predict(self, model: Matcher, arguments: argparse.Namespace, say: Say) -> int:
        return score_file(model, arguments, say)


def _texts(items: Iterable[Any]) -> Iterator[str]:
    return (text for item in items for text in texts_of(item))


def _reliability(model: Matcher, scores: NDArray[np.float64], matches: NDArray[np.bool_]) -> dict[str, float]:
    """How far a model's probabilities are from what came true; {} for one that says none."""
    if model.calibration is None:
        return {}
    probabilities = model.calibrated(scores)
    return {"ece": expected_calibration_error(probabilities, matches), "brier": brier(probabilities, matches)}


def _scale(settings: MatchingDataSettings | None) -> Scale:
    """What the labels mean of the pairs that a recipe names; of a file that comes without one, two classes."""
    if settings is None:
        return own_scale(None)
    scale = None if settings.name is None else MATCHING_SETS[settings.name].scale
    return scale or own_scale(settings.scale)


def _read(settings: MatchingDataSettings) -> tuple[PairData, TripleData | TextData | None]:
    """The pairs of a recipe, and the triples or texts that it trains on in their place, if it has any."""
    files = {key: getattr(settings, key) for key in (*OWN_FILES, "scale", "columns")}
    beside = {key: value for key, value in files.items() if key != "train"}
    instead: TripleData | TextData | None = None
    if settings.texts is not None:
        instead = single = load_texts(settings.texts)
        if settings.name is None:
            return texts_with_pairs(single, **beside), single
    elif settings.triples is not None:
        named = settings.triples in MATCHING_SETS
        source = {"name" if named else "train": settings.triples}
        instead = triples = load_triples(**source, columns=settings.triple_columns)
        if settings.name is None:
            left, pairs = with_pairs(triples, **beside)
            return pairs, left
    judged_only = instead is not None
    pairs = load_pairs(name=settings.name, dev_from_train=settings.dev_from_train, judged_only=judged_only, **files)
    return pairs, instead


def _items(
    kind: ItemKind, given: Sequence[Pair | Triple | Document], pairs: PairData
) -> Sequence[Pair | Triple | Document]:
    """What is trained on, of pairs or triples. Raises DataError where that is nothing, or needs labels that are not there."""
    labelled = [item for item in given if isinstance(item, Pair)]
    if labelled and labelled[0].label is None and kind in ("pairs", "triples"):
        raise DataError(
            f"{labelled[0].source}: a pair in train must have a label where {kind} are trained on, but has none. Add a column "
            "label, or say which it is (data.columns.label=NAME). Where all pairs match set data.items=matches; where their texts "
            "alone are to be learnt from data.items=texts; triples are given by data.triples=FILE."
        )
    made: Sequence[Pair | Triple | Document]
    if kind == "texts":
        made = texts(given)
    elif kind == "matches":
        made = matches(labelled, pairs.scale)
    elif kind == "triples" and labelled:
        made = triples_of_pairs(labelled, pairs.scale)
    else:
        made = given
    if not made:
        raise DataError(
            f"{pairs.name}: train must hold {kind} to train on, but of its {len(given):,} pairs none are: the labels "
            f"{pairs.scale.high:g}{f' and {pairs.scale.low:g}, for one first text,' if kind == 'triples' else ''} are needed. "
            "Take other data.items."
        )
    return tuple(made)


def _known(data: MatchingData) -> Sequence[Pair | Triple | Document]:
    """What a model was trained on, as it was read."""
    return data.pairs.train if data.instead is None else data.instead.train


def _leak_row(report: LeakageReport) -> dict[str, Any]:
    return {
        "pairs": report.pairs,
        "in train": report.pairs_in_train,
        "with the same label": report.same_label,
        "in another writing": report.pairs_normalised - report.pairs_in_train,
        "texts": report.texts,
        "texts in train": report.texts_in_train,
    }
