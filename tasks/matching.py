"""Matching: pairs of texts and how well they match, judged by rank correlation and, for two classes, at a threshold."""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator, model_validator
from pydantic_core import PydanticCustomError

from hanzoo.data.document import Document, Pair
from hanzoo.data.files import expanded
from hanzoo.data.matching_catalogue import MATCHING_SETS, PairData, load_pairs
from hanzoo.data.pair_files import read_pairs
from hanzoo.errors import DataError, RecipeError, RunError
from hanzoo.evaluation.calibration import brier, expected_calibration_error, fit_platt
from hanzoo.evaluation.matching import (
    accuracy_of,
    bootstrap_difference,
    choose_threshold,
    outcome_counts,
    score_pairs,
)
from hanzoo.evaluation.report import run_card, show_figure
from hanzoo.evaluation.significance import Comparison, compare
from hanzoo.models.model import Matcher, Model, Settings, objective_class, objective_names
from hanzoo.tasks.matching_errors import worst_pairs
from hanzoo.tasks.matching_prediction import PREDICT_OPTIONS, score_file
from hanzoo.tasks.task import ERRORS_OPTION, DataSettings, EvaluateSettings, Report, Say, Subject, Task
from hanzoo.training.distributed import gather_objects, merge, share
from hanzoo.training.trick import Start

OWN_FILES = ("train", "dev", "test")


class MatchingDataSettings(DataSettings):
    """The `data` section: a data set of pairs by name, or files of one's own.

    Attributes:
        name: afqmc, stsb, atec, bq, lcqmc, pawsx, ocnli and others.
        train: files of one's own (TSV, CSV, JSON lines), split already; with them
        dev: (10 % of train by a fixed hash, if left out) and
        test: (optional). `~` is put in full, here and in the two before.
        scale: what the labels of one's own files mean; None = two classes, 0 and 1.
        columns: which column of one's own files is what.
        dev_from_train: hold out 10 % of train for selection; the official dev is then only reported on.
        items: what is trained on: pairs with their labels; matches, the pairs with the highest label; texts, each of them once,
            without labels.
        most: pairs of train that are used at most, the first ones; None = all.
    """

    sources: ClassVar[tuple[str, ...]] = ("name", "train")
    names: ClassVar[Collection[str]] = tuple(name for name, known in MATCHING_SETS.items() if known.kind != "retrieval")

    name: str | None = None
    train: str | None = None
    dev: str | None = None
    test: str | None = None
    scale: str | None = None
    columns: dict[str, str | int] | None = None
    dev_from_train: bool = False
    items: Literal["pairs", "matches", "texts"] = "pairs"
    most: int | None = None

    @field_validator(*OWN_FILES)
    @classmethod
    def _with_home(cls, path: str | None) -> str | None:
        return str(expanded(path)) if path is not None and path.startswith("~") else path

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        given = [key for key in self.sources if getattr(self, key) is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "section",
                "must have exactly one of name and train, but has {given}. "
                "Name a data set (data.name=stsb) or a file of your own (data.train=my.tsv).",
                {"given": " and ".join(given) or "none"},
            )
        return self

    def located(self) -> Self:
        given = {key: getattr(self, key) for key in OWN_FILES}
        places = {key: str(Path(path).absolute()) for key, path in given.items() if path is not None}
        return self.model_copy(update=places)


class MatchingEvaluateSettings(EvaluateSettings):
    """The `evaluate` section.

    Attributes:
        metric: what selects the best epoch on dev. auc is for two classes.
        calibrate: for two classes: choose the threshold on dev, and fit on half of it how probable a match is.
        chosen_for: what the threshold is the best for.
    """

    metric: Literal["spearman", "pearson", "auc"] = "spearman"
    chosen_for: Literal["accuracy", "f1"] = "accuracy"


@dataclass(frozen=True)
class MatchingData:
    """Pairs, and which items are trained on.

    Attributes:
        pairs: read and checked.
        items: see `MatchingDataSettings`.
        most: see there.
    """

    pairs: PairData
    items: str
    most: int | None

    @property
    def name(self) -> str:
        return self.pairs.name

    @property
    def scale(self) -> Any:
        return self.pairs.scale

    @property
    def train(self) -> Sequence[Pair | Document]:
        pairs = self.pairs.train[: self.most]
        if self.items == "pairs":
            return pairs
        if self.items == "matches":
            return tuple(pair for pair in pairs if pair.label == self.scale.high)
        texts = dict.fromkeys(text for pair in pairs for text in (pair.first, pair.second))
        return tuple(Document(text) for text in texts)

    @property
    def dev(self) -> Sequence[Pair]:
        return self.pairs.dev

    @property
    def test(self) -> Sequence[Pair] | None:
        return self.pairs.test

    @property
    def hashes(self) -> Mapping[str, str]:
        return self.pairs.hashes

    @property
    def notes(self) -> Sequence[str]:
        return self.pairs.notes

    @property
    def dev_source(self) -> str:
        return self.pairs.dev_source

    @property
    def test_source(self) -> str:
        return self.pairs.test_source

    def split(self, name: str) -> Sequence[Pair]:
        return self.pairs.split(name)


def labels_of(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """(pairs,) the labels of pairs that all have one."""
    return np.array([pair.label for pair in pairs], dtype=np.float64)


def scores_of(model: Matcher, pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """(pairs,) what a model says of pairs, whose gold is not looked at. Collective: the ranks share the work."""
    mine = share(pairs)
    found = model.scores([(pair.first, pair.second) for pair in mine]).tolist() if mine else []
    return np.array(merge(gather_objects(found)), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class MatchingReport(Report):
    """The evaluation of a matcher's run.

    Attributes:
        scores: (seeds, pairs).
        thresholds: a seed: the model's; None where it has none.
    """

    scores: NDArray[np.float64]
    thresholds: Sequence[float | None]

    def remarks(self) -> list[str]:
        first = self.figures[0]
        known = (
            f"{first['pairs']:,} pairs; the highest Spearman with their ties is {show_figure(first['spearman_ceiling'])}; "
            f"always saying the most frequent label is right in {show_figure(first['majority'])} %"
        )
        constant = [figures["constant"] for figures in self.figures if figures["constant"]]
        return [known, *(f"{what} are constant: the correlation is 0" for what in constant)]

    def summary(self) -> dict[str, Any]:
        names = [name for name, value in self.figures[0].items() if isinstance(value, int | float)]
        return {name: _seeds([figures[name] for figures in self.figures]) for name in names}

    def recorded(self) -> dict[str, Any]:
        names = [name for name, value in self.figures[0].items() if isinstance(value, int | float)]
        return {"metrics": {name: [figures[name] for figures in self.figures] for name in names}}

    def counts(self) -> NDArray[Any]:
        """(seeds, pairs, counts): what `outcome_counts` gives at each seed's threshold."""
        gold, judged = labels_of(self.subject.items), zip(self.scores, self.thresholds, strict=True)
        return np.stack([outcome_counts(gold, row, threshold) for row, threshold in judged if threshold is not None])

    def compare(self, other: MatchingReport) -> Comparison:
        gold = labels_of(self.subject.items)
        if None not in (*self.thresholds, *other.thresholds):
            return compare(self.counts(), other.counts(), accuracy_of, seed=0)
        rounds = 1000
        difference, interval = bootstrap_difference(gold, self.scores, other.scores, seed=0, rounds=rounds)
        return Comparison(difference, interval, None, rounds)


def _seeds(values: Sequence[float]) -> float | list[float]:
    return values[0] if len(values) == 1 else list(values)


class Matching(Task):
    """Saying how well two texts match: `Pair`s of a `MatchingData`, for a `Matcher`."""

    kind = "matcher"
    model = Matcher
    items = "items"
    figure = "spearman"
    columns = ("spearman", "pearson", "auc", "accuracy", "f1")
    next_step = "score: python predict.py {run} pairs.tsv"
    data_settings = MatchingDataSettings
    evaluate_settings = MatchingEvaluateSettings
    options: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "evaluate": {"--errors": ERRORS_OPTION},
        "predict": PREDICT_OPTIONS,
    }
    objectives = tuple(objective_names())

    # Data.

    def load_data(self, settings: MatchingDataSettings) -> MatchingData:
        given = settings.model_dump(exclude={"items", "most"})
        return MatchingData(load_pairs(**given), settings.items, settings.most)

    def check(self, settings: MatchingEvaluateSettings, data: MatchingData, place: str) -> None:
        if settings.metric == "auc" and not data.scale.is_binary:
            raise RecipeError(
                f"{place}: evaluate.metric must be spearman or pearson for {data.name}, but is 'auc', which needs two classes. "
                "Set evaluate.metric=spearman."
            )

    def describe(self, data: MatchingData) -> dict[str, Any]:
        pairs = data.pairs
        return {
            "name": pairs.name,
            "view": data.items,
            "official": pairs.official,
            "sha256": dict(pairs.hashes),
            "counts": {
                name: {"pairs": len(split)}
                for name, split in {"train": pairs.train, "dev": pairs.dev, "test": pairs.test or ()}.items()
            },
            "dev_source": pairs.dev_source,
            "test_source": pairs.test_source,
            "protocol": pairs.protocol,
            "notes": list(pairs.notes),
            "licence": pairs.licence,
            "source": pairs.source,
            "cite": pairs.cite,
        }

    def tables(self, data: MatchingData) -> list[list[dict[str, Any]]]:
        splits = {"train": data.pairs.train, "dev": data.dev} | ({"test": data.test} if data.test else {})
        return [[{"split": split} | _extent(pairs) for split, pairs in splits.items()]]

    # Items.

    def training_items(self, data: MatchingData, say: Say = lambda line: None) -> list[Any]:
        return list(data.train)

    def classes(self, item: Any) -> list[str]:
        return [f"{item.label:g}"] if isinstance(item, Pair) and item.label is not None else []

    def text(self, item: Any) -> str:
        return f"{item.first}\t{item.second}" if isinstance(item, Pair) else str(item.text)

    def without_gold(self, item: Any) -> Any:
        return Pair(item.first, item.second) if isinstance(item, Pair) else Document(item.text)

    def read_texts(self, path: Path, format: str | None) -> Sequence[Pair]:
        return [Pair(pair.first, pair.second, None, pair.source, pair.id) for pair in read_pairs(path)[0]]

    def read_labelled(self, path: Path, format: str | None) -> Sequence[Pair]:
        pairs, report = read_pairs(path)
        if report.unlabelled:
            raise DataError(f"{path}: a pair must have a label to be judged by, but has none. Score it by predict.py.")
        return pairs

    # Training.

    def aim(self, model: Matcher, objective: str, settings: Settings, data: MatchingData) -> None:
        model.objective = objective_class(objective).build(settings, model, data)

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

    def calibrate(self, model: Matcher, items: Sequence[Pair], settings: MatchingEvaluateSettings) -> dict[str, Any]:
        """For two classes: the threshold that is best on dev, and probabilities, both saved with the model.

        The threshold is chosen on all of dev. Probabilities are fitted on every other pair of each class, and judged on the rest.
        """
        gold = labels_of(items)
        if set(gold) != {0.0, 1.0}:
            return {"note": "labels are no two classes: there is no threshold and no probability"}
        scores = scores_of(model, items)
        chosen = choose_threshold(gold, scores, settings.chosen_for)
        model.threshold = chosen.value
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
        threshold = model.threshold if two_classes else None
        figures = score_pairs(gold, scores, two_classes=two_classes, threshold=threshold).to_json()
        return figures | _reliability(model, scores, gold == 1.0) if two_classes else figures

    def card(self, results: Mapping[str, Any], recipe: Mapping[str, Any], run: str) -> str:
        calls = ['model.score("花呗怎么还款", "如何偿还花呗")']
        if "factor" in results.get("calibration", {}):
            calls.append('model.probability("花呗怎么还款", "如何偿还花呗")')
        return run_card(results, recipe, run, [*calls, "pairs.tsv --output scored.tsv"])

    # Evaluation.

    def report(self, subject: Subject, models: Iterable[Matcher], options: Mapping[str, Any]) -> MatchingReport:
        gold = labels_of(subject.items)
        two_classes = set(gold) <= {0.0, 1.0}
        scores, figures, thresholds = [], [], []
        for model in models:
            found = scores_of(model, subject.items)
            scores.append(found)
            figures.append(self._figures(model, gold, found, two_classes))
            thresholds.append(model.threshold if two_classes else None)
        return MatchingReport(
            task=self, subject=subject, figures=figures, scores=np.stack(scores), thresholds=thresholds
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
                pairs, report.scores[0], report.thresholds[0], set(labels_of(pairs)) <= {0.0, 1.0}
            ):
                yield f"{report.subject.run}, {report.subject.place}{which}: {block}"

    def write_submission(self, run: Path, model: Matcher, data: MatchingData, path: Path) -> None:
        raise RunError(f"{run}: a submission needs cluener, but this run is of {data.name}. Leave --submission out.")

    # Prediction.

    def predict(self, model: Matcher, arguments: argparse.Namespace, say: Say) -> int:
        return score_file(model, arguments, say)


def _reliability(model: Matcher, scores: NDArray[np.float64], matches: NDArray[np.bool_]) -> dict[str, float]:
    """How far a model's probabilities are from what came true; {} for one that says none."""
    if model.calibration is None:
        return {}
    probabilities = model.calibrated(scores)
    return {"ece": expected_calibration_error(probabilities, matches), "brier": brier(probabilities, matches)}


def _extent(pairs: Sequence[Pair]) -> dict[str, Any]:
    lengths = sorted(len(text) for pair in pairs for text in (pair.first, pair.second))
    return {
        "pairs": len(pairs),
        "characters": sum(lengths),
        "median length": statistics.median_low(lengths),
        "95 %": lengths[(len(lengths) - 1) * 95 // 100],
        "longest": lengths[-1],
    }
