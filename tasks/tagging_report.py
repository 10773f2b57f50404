"""How a tagger's run is judged: its predictions on documents with gold, all figures of them, and what is printed of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hanzoo.data.catalogue import TaggingData, seen_in_train
from hanzoo.data.document import Document, Span
from hanzoo.errors import DataError, RunError
from hanzoo.evaluation.cluener import LABELS, official_scores
from hanzoo.evaluation.error_report import ErrorReport, error_report, mentions_in
from hanzoo.evaluation.report import results_table, show_figure
from hanzoo.evaluation.scorers import SCORERS, Predictions, Score, known_scorers, score
from hanzoo.evaluation.significance import Comparison, compare
from hanzoo.evaluation.tagging import bootstrap_interval, micro_f1, score_entities, score_where, sentence_counts
from hanzoo.models.model import Tagger
from hanzoo.tasks.task import ERRORS_OPTION, Report, Subject, Task
from hanzoo.training.distributed import gather_objects, merge, share

LONG_TEXT = 250  # the Lattice LSTM family drops test sentences from this length on: scored apart for comparison


def _scorers(text: str) -> list[str]:
    try:
        return known_scorers(text.split(","))
    except RunError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


EVALUATE_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "--scorer": {
        "type": _scorers,
        "default": [],
        "metavar": "NAME,...",
        "help": f"also count as others do: {', '.join(SCORERS)}",
    },
    "--errors": ERRORS_OPTION,
    "--per-label": {"action": "store_true", "help": "also print the figures of each label"},
    "--submission": {
        "type": Path,
        "help": "write CLUENER's submission file (cluener_predict.json) of the first run",
    },
}


def predict(model: Tagger, documents: Sequence[Document]) -> Predictions:
    """What a model says of documents, whose gold is not looked at.

    Several ranks share the work, and all have the result.
    """
    features = [model.featurize(Document(document.text)) for document in share(documents)]
    spans = merge(gather_objects([[span for span, _ in row] for row in model.tag(features)]))
    if model.tag_set is None:
        return Predictions(spans)
    return Predictions(spans, merge(gather_objects(model.predicted_tags(features))), model.tag_set.scheme)


def figures_of(documents: Sequence[Document], predictions: Predictions, data: TaggingData | None) -> dict[str, Any]:
    """Figures of predictions: micro, macro, per label, interval, legality, subsets; CLUENER's official macro where it applies."""
    gold, predicted = [document.spans for document in documents], predictions.spans
    low, high = bootstrap_interval(gold, predicted, seed=0)
    figures = score_entities(gold, predicted).to_json() | {"f1_interval": [low, high], "legal": predictions.legal}
    if data is None:
        return figures | {"subsets": {}}
    if has_official_counting(data):
        figures["official_macro_f1"] = official(documents, predicted)
    return figures | {"subsets": _subsets(documents, gold, predicted, data)}


def _subsets(
    documents: Sequence[Document],
    gold: Sequence[Sequence[Span]],
    predicted: Sequence[Sequence[Span]],
    data: TaggingData,
) -> dict[str, Any]:
    seen = seen_in_train(documents, data.train)
    choices = {
        "not seen in train": [not value for value in seen],
        f"under {LONG_TEXT} characters": [len(document.text) < LONG_TEXT for document in documents],
    }
    subsets = {}
    for name, keep in choices.items():
        if not all(keep) and any(keep):
            scores = score_where(gold, predicted, keep)
            subsets[name] = {
                "sentences": sum(keep),
                "f1": scores.f1,
                "precision": scores.precision,
                "recall": scores.recall,
            }
    return subsets


def has_official_counting(data: TaggingData) -> bool:
    """Whether CLUENER's official counting applies: data with its ten types (the data's own name says whether it is CLUENER)."""
    return set(data.labels) == set(LABELS)


def official(documents: Sequence[Document], predicted: Sequence[Sequence[Span]]) -> float:
    """CLUENER's official macro F1 over mention strings."""
    return official_scores([d.text for d in documents], [d.spans for d in documents], predicted).macro_f1


@dataclass(frozen=True, kw_only=True)
class TaggingReport(Report):
    """The evaluation of a tagger's run.

    Attributes:
        predicted: a seed: the spans found in each document.
        figures: a seed: what `figures_of` gives.
        scores: scorer -> a seed: what it found; for the scorers that were asked for.
        labels_taken: how many labels took part, and
        labels_known: of how many that the model knows.
    """

    predicted: Sequence[Sequence[Sequence[Span]]]
    scores: Mapping[str, Sequence[Score]]
    labels_taken: int
    labels_known: int

    def counts(self) -> np.ndarray:
        """(num_seeds, num_sentences, 3): what `sentence_counts` gives for each seed."""
        gold = [document.spans for document in self.subject.items]
        return np.stack([sentence_counts(gold, predicted) for predicted in self.predicted])

    def error_report(self) -> ErrorReport:
        """What is wrong with the (first seed's) predictions."""
        return error_report(
            self.subject.items, self.predicted[0], mentions_in(self.subject.data.train) if self.subject.data else None
        )

    def per_label(self) -> list[dict[str, Any]]:
        """For each label its figures: one value, or one a seed."""
        labels = sorted({label for figures in self.figures for label in figures["per_label"]})
        rows = []
        for label in labels:
            each = [figures["per_label"].get(label, {}) for figures in self.figures]
            rows.append(
                {"label": label}
                | {name: _seeds([f.get(name, 0.0) for f in each]) for name in ("precision", "recall", "f1")}
            )
        return rows

    def per_scorer(self) -> dict[str, dict[str, Any]]:
        """For each scorer that was asked for: who uses it, and its figures and counts, one value or one a seed."""
        told: dict[str, dict[str, Any]] = {}
        for name, scores in self.scores.items():
            each = [score.to_json() for score in scores]
            told[name] = {key: _seeds([values[key] for values in each]) for key in each[0]}
            told[name]["used_by"] = SCORERS[name].used_by
        return told

    @property
    def legal(self) -> float | list[float] | None:
        """The share of legal tag sequences: one value, or one a seed; None for a model without tags."""
        rates = [figures["legal"] for figures in self.figures]
        return None if None in rates else _seeds(rates)

    def remarks(self) -> list[str]:
        """What stands below the table: the interval, the subsets, the legality."""
        lines = []
        if self.labels_taken < self.labels_known:
            lines.append(f"{self.labels_taken} of the model's {self.labels_known} labels take part: those of the data")
        if len(self.figures) == 1:
            low, high = self.figures[0]["f1_interval"]
            lines.append(f"F1 95 % interval over sentences: {100 * low:.2f} to {100 * high:.2f}")
        for name in self.figures[0].get("subsets", {}):
            each = [figures["subsets"][name] for figures in self.figures]
            lines.append(
                f"{name} ({each[0]['sentences']} sentences): F1 {show_figure(_seeds([e['f1'] for e in each]))}"
            )
        if self.legal is not None:
            lines.append(f"legal tag sequences: {show_figure(self.legal)} %")
        for name, scores in self.scores.items():
            if scores[0].gold_left_out:
                lines.append(f"scorer {name}: {scores[0].gold_left_out} gold entities inside longer ones are left out")
        return lines

    def summary(self) -> dict[str, Any]:
        names = [name for name, value in self.figures[0].items() if isinstance(value, int | float)]
        told: dict[str, Any] = {name: _seeds([figures[name] for figures in self.figures]) for name in names}
        told["per_label"] = self.per_label()
        if self.scores:
            told["scorers"] = self.per_scorer()
        return told

    def recorded(self) -> dict[str, Any]:
        names = ("f1", "precision", "recall", "macro_f1", "official_macro_f1")
        known = [name for name in names if name in self.figures[0]]
        return {
            "metrics": {name: [figures[name] for figures in self.figures] for name in known},
            "subsets": {
                f"{name} ({value['sentences']} sentences)": {
                    "f1": [figures["subsets"][name]["f1"] for figures in self.figures]
                }
                for name, value in self.figures[0]["subsets"].items()
            },
            "legal": [figures["legal"] for figures in self.figures],
            "scorers": {
                name: {metric: [getattr(score.scores, metric) for score in scores] for metric in ("f1", "macro_f1")}
                for name, scores in self.scores.items()
            },
        }

    def compare(self, other: TaggingReport) -> Comparison:
        return compare(self.counts(), other.counts(), micro_f1, seed=0)


def _seeds(values: Sequence[float]) -> float | list[float]:
    return values[0] if len(values) == 1 else list(values)


def judge(task: Task, subject: Subject, models: Iterable[Tagger], scorers: Sequence[str]) -> TaggingReport:
    """Judge taggers, one a seed.

    On a data set only the labels that its train has take part (a model that went on from another data set knows more); on a file
    all that the model knows.

    Raises:
        RunError: a model knows none of the labels; a scorer is not known, or cannot score these predictions.
    """
    documents, data = subject.items, subject.data
    predicted, figures = [], []
    scores: dict[str, list[Score]] = {name: [] for name in known_scorers(scorers)}
    for model in models:
        if subject.from_data:
            model.restrict(_shared_labels(model, subject))
        predictions = predict(model, documents)
        predicted.append(predictions.spans)
        figures.append(figures_of(documents, predictions, data))
        for scorer, found in scores.items():
            found.append(score(scorer, documents, predictions))
    return TaggingReport(
        task=task,
        subject=subject,
        figures=figures,
        predicted=predicted,
        scores=scores,
        labels_taken=len(model.active_labels),
        labels_known=len(model.labels),
    )


def _shared_labels(model: Tagger, subject: Subject) -> list[str]:
    labels = subject.data.labels
    shared = [label for label in labels if label in model.labels]
    if not shared:
        raise RunError(
            f"{subject.run}: one of the data's labels ({', '.join(labels)}) must be known to the model, but it knows "
            f"{', '.join(model.labels)}. Evaluate on data with its labels."
        )
    return shared


def require_same_documents(subject: Subject, other: Subject) -> None:
    """Raise DataError unless two runs are evaluated on the same sentences with the same entities."""
    said = f"{subject.run}: {subject.split} must hold the sentences and entities of {other.split} in {other.run}"
    cure = "Compare runs of the same data, or on one --file."
    ours, theirs = subject.items, other.items
    if len(ours) != len(theirs):
        raise DataError(f"{said} ({len(theirs)} sentences), but holds {len(ours)} sentences. {cure}")
    for number, (one, two) in enumerate(zip(ours, theirs, strict=True), start=1):
        if one.text != two.text:
            raise DataError(f"{said}, but sentence {number} is {one.text[:30]!r} instead of {two.text[:30]!r}. {cure}")
        if set(one.spans) != set(two.spans):
            raise DataError(f"{said}, but sentence {number}, {one.text[:30]!r}, has other entities. {cure}")


def blocks(reports: Sequence[TaggingReport], arguments: argparse.Namespace) -> Iterator[str]:
    """What the options of `evaluate` ask for beside the figures: scorers (a JSON line has them already), labels, errors."""
    if arguments.scorer and not arguments.json:
        yield _scorer_table(reports)
    if arguments.per_label:
        for report in reports:
            yield results_table(report.per_label())
    if arguments.errors:
        for report in reports:
            which = ", first seed" if len(report.predicted) > 1 else ""
            yield f"{report.subject.run}, {report.subject.place}{which}\n{report.error_report().render()}"


def _scorer_table(reports: Sequence[TaggingReport]) -> str:
    """Each run under each scorer, the share of its legal tag sequences, and who counts so."""
    rows = [
        {
            "run": str(report.subject.run),
            "scorer": name,
            **{figure: values[figure] for figure in ("precision", "recall", "f1", "macro_f1")},
            "legal": report.legal,
            "used by": values["used_by"],
        }
        for report in reports
        for name, values in report.per_scorer().items()
    ]
    return results_table(rows)
