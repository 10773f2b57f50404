"""Tagging: texts with entities, judged by strict F1 over spans."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import field_validator, model_validator
from pydantic_core import PydanticCustomError

from hanzoo.data.catalogue import DATA_SETS, TaggingData, load_tagging_data
from hanzoo.data.document import Document
from hanzoo.data.files import expanded
from hanzoo.data.readers import read_documents, read_texts
from hanzoo.errors import DataError, RecipeError, RunError
from hanzoo.evaluation.calibration import expected_calibration_error, fit_temperature, log_loss
from hanzoo.evaluation.cluener import write_submission
from hanzoo.evaluation.report import run_card
from hanzoo.evaluation.tagging import score_entities
from hanzoo.models.model import Model, Tagger
from hanzoo.tasks.tagging_prediction import PREDICT_OPTIONS, tag_file
from hanzoo.tasks.tagging_report import (
    EVALUATE_OPTIONS,
    TaggingReport,
    blocks,
    figures_of,
    has_official_counting,
    judge,
    official,
    predict,
    require_same_documents,
)
from hanzoo.tasks.task import DataSettings, EvaluateSettings, Say, Subject, Task, extent
from hanzoo.training.distributed import gather_objects, merge, on_first, share
from hanzoo.training.trick import Start

OWN_FILES = ("path", "train", "dev", "test")


class TaggingDataSettings(DataSettings):
    """The `data` section: a data set by name, files of one's own, or a data set of the hub.

    Attributes:
        name: cluener, msra, weibo, resume, or bundled (the corpus that comes with hanzoo).
        view: of weibo: nam or nom; empty = all.
        path: one file of one's own; dev is 10 % of it by a fixed hash. `~` is put in full, here and in the next three.
        train: files of one's own, split already; with them
        dev: and
        test: (optional).
        hub: ORG/NAME for Hugging Face `datasets`; with `name`, what its counts are held against.
        format: of one's own files: cluener, columns, weibo, spans; None = recognised.
        dev_from_train: hold out 10 % of train for selection; the official dev is then only reported on.
    """

    sources: ClassVar[tuple[str, ...]] = ("name", "path", "train", "hub")
    names: ClassVar[Collection[str]] = DATA_SETS

    name: str | None = None
    view: str = ""
    path: str | None = None
    train: str | None = None
    dev: str | None = None
    test: str | None = None
    hub: str | None = None
    format: str | None = None
    dev_from_train: bool = False

    @field_validator(*OWN_FILES)
    @classmethod
    def _with_home(cls, path: str | None) -> str | None:
        return str(expanded(path)) if path is not None and path.startswith("~") else path

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        given = [key for key in self.sources if getattr(self, key) is not None]
        if len(given) != 1 and given != ["name", "hub"]:
            raise PydanticCustomError(
                "section",
                "must have exactly one of name, path, train, hub, but has {given}. "
                "Name a data set (data.name=cluener) or a file of your own (data.path=my.jsonl).",
                {"given": ", ".join(given) or "none"},
            )
        return self

    def located(self) -> Self:
        given = {key: getattr(self, key) for key in OWN_FILES}
        places = {key: str(Path(path).absolute()) for key, path in given.items() if path is not None}
        return self.model_copy(update=places)


class TaggingEvaluateSettings(EvaluateSettings):
    """The `evaluate` section.

    Attributes:
        metric: what selects the best epoch on dev.
        calibrate: fit a temperature on half of dev, state the calibration error on the other half.
    """

    metric: Literal["f1", "macro_f1", "official_macro_f1"] = "f1"


class Tagging(Task):
    """Finding entities in texts: `Document`s of a `TaggingData`, for a `Tagger`."""

    kind = "tagger"
    predicts = "texts"
    model = Tagger
    items = "sentences"
    figure = "f1"
    columns = ("precision", "recall", "f1", "macro_f1", "official_macro_f1")
    next_step = "tag: python predict.py {run} texts.txt"
    data_settings = TaggingDataSettings
    evaluate_settings = TaggingEvaluateSettings
    options: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "evaluate": EVALUATE_OPTIONS,
        "predict": PREDICT_OPTIONS,
    }

    # Data.

    def load_data(self, settings: TaggingDataSettings) -> TaggingData:
        return load_tagging_data(**settings.model_dump())

    def check(self, settings: TaggingEvaluateSettings, data: TaggingData, place: str) -> None:
        if settings.metric == "official_macro_f1" and not has_official_counting(data):
            raise RecipeError(
                f"{place}: evaluate.metric must be f1 or macro_f1 for {data.name}, but is 'official_macro_f1', which counts "
                "CLUENER's ten labels. Set evaluate.metric=f1."
            )

    def describe(self, data: TaggingData) -> dict[str, Any]:
        return {
            "name": data.name,
            "view": data.view,
            "official": data.official,
            "sha256": dict(data.hashes),
            "counts": {
                name: {"sentences": len(split), "entities": sum(len(document.spans) for document in split)}
                for name, split in {"train": data.train, "dev": data.dev, "test": data.test or ()}.items()
            },
            "dev_source": data.dev_source,
            "test_source": data.test_source,
            "protocol": data.protocol,
            "notes": list(data.notes),
            "licence": data.licence,
            "source": data.source,
            "cite": data.cite,
        }

    def tables(self, data: TaggingData) -> list[list[dict[str, Any]]]:
        splits = {"train": data.train, "dev": data.dev} | ({"test": data.test} if data.test else {})
        sentences = [
            {"split": split, "sentences": len(documents)}
            | extent(document.text for document in documents)
            | {"entities": sum(len(document.spans) for document in documents)}
            for split, documents in splits.items()
        ]
        counts = {
            split: Counter(label for document in documents for label in self.classes(document))
            for split, documents in splits.items()
        }
        labels = [{"label": label} | {split: counts[split][label] for split in counts} for label in data.labels]
        return [sentences, labels]

    # Items.

    def training_items(self, data: TaggingData, say: Say = lambda line: None) -> list[Document]:
        items = [document for document in data.train if document.text]
        if len(items) < len(data.train):
            say(f"{len(data.train) - len(items)} texts of train are empty: they are left out")
        return items

    def classes(self, item: Document) -> list[str]:
        return [span.label for span in item.spans]

    def text(self, item: Document) -> str:
        return item.text

    def without_gold(self, item: Document) -> Document:
        return Document(item.text)

    def read_texts(self, path: Path, format: str | None) -> Sequence[Document]:
        return read_texts(path, format)

    def read_labelled(self, path: Path, format: str | None, settings: Any) -> Sequence[Document]:
        documents, reading = read_documents(path, format)
        if reading.unlabelled:
            raise DataError(
                f"{reading.unlabelled_place}: a text must say its entities, an empty list if it has none, but says nothing. "
                "Tag texts without labels by predict.py."
            )
        return documents

    # Training.

    def restrict(self, model: Tagger, data: TaggingData) -> None:
        # a model that goes on knows more: those are unlabelled here, neither right nor wrong
        model.restrict(data.labels)

    def start(self, model: Tagger, old_data: Callable[[], TaggingData]) -> Start:
        def items() -> list[Any]:
            # without their gold: whoever asks draws labels from the model
            return [model.featurize(self.without_gold(item)) for item in self.training_items(old_data())]

        return Start(model.fresh, items, lambda: model.restricted(old_data().labels))

    def dev_evaluation(
        self, model: Tagger, items: Sequence[Document], data: TaggingData
    ) -> Callable[[Model], dict[str, Any]]:
        features = [model.featurize(document) for document in items]

        def evaluate_dev(trained: Model) -> dict[str, Any]:
            assert isinstance(trained, Tagger)
            rows = merge(gather_objects(trained.tag(share(features))))
            predicted = [[span for span, _ in row] for row in rows]
            scores = score_entities([document.spans for document in items], predicted)
            figures = {
                "f1": scores.f1,
                "precision": scores.precision,
                "recall": scores.recall,
                "macro_f1": scores.macro_f1,
            }
            if has_official_counting(data):
                figures["official_macro_f1"] = official(items, predicted)
            return figures

        return evaluate_dev

    def calibrate(
        self, model: Tagger, items: Sequence[Document], settings: EvaluateSettings, data: TaggingData
    ) -> dict[str, Any]:
        """Fit the model's temperature on every other document and state the calibration error on the rest.

        Minimises the log loss of "this predicted entity is right" over the temperature that divides all scores of the output layer.
        """
        halves = [items[0::2], items[1::2]]
        # decoded once: the search asks some twenty times, and an encoder is what takes time
        tagged_at = [model.tag_at([model.featurize(document) for document in half]) for half in halves]

        def judged(half: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
            rows = tagged_at[half](temperature)
            pairs = [
                (score, span in set(d.spans)) for d, row in zip(halves[half], rows, strict=True) for span, score in row
            ]
            return np.array([score for score, _ in pairs], dtype=np.float64), np.array(
                [right for _, right in pairs], dtype=bool
            )

        facts: dict[str, Any] = {"sentences_fitted": len(halves[0]), "sentences_measured": len(halves[1])}
        before, right = judged(1, 1.0)
        if not len(before) or not len(judged(0, 1.0)[0]):
            model.temperature = 1.0
            return facts | {"temperature": 1.0, "note": "no entity was predicted in one half of dev: nothing to fit"}
        temperature = fit_temperature(lambda value: log_loss(*judged(0, value)))
        after, _ = judged(1, temperature)
        model.temperature = temperature
        return facts | {
            "temperature": temperature,
            "entities_measured": len(before),
            "ece_before": expected_calibration_error(before, right),
            "ece_after": expected_calibration_error(after, right),
        }

    def figures(self, model: Tagger, items: Sequence[Document], data: TaggingData) -> dict[str, Any]:
        return figures_of(items, predict(model, items), data)

    def card(self, results: Mapping[str, Any], recipe: Mapping[str, Any], run: str) -> str:
        return run_card(results, recipe, run)

    # Evaluation.

    def report(self, subject: Subject, models: Iterable[Tagger], options: Mapping[str, Any]) -> TaggingReport:
        return judge(self, subject, models, options.get("--scorer", ()))

    def require_same(self, subject: Subject, other: Subject) -> None:
        require_same_documents(subject, other)

    def details(self, reports: Sequence[TaggingReport], arguments: argparse.Namespace) -> Iterator[str]:
        return blocks(reports, arguments)

    def write_submission(self, run: Path, model: Tagger, data: TaggingData, path: Path) -> None:
        if not data.unlabelled:
            raise RunError(
                f"{run}: a submission needs the unlabelled test sentences of cluener, but this run is of {data.name}."
            )
        spans = predict(model, data.unlabelled).spans
        on_first(
            lambda: write_submission(path, [d.id for d in data.unlabelled], [d.text for d in data.unlabelled], spans)
        )

    # Prediction.

    def predict(self, model: Tagger, arguments: argparse.Namespace, say: Say) -> int:
        return tag_file(model, arguments, say)
