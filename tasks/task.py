"""The contract `Task`: what a kind of model is trained on and judged by.

Recipes, trainings, evaluations and commands are the same for every model. What its data is, which figures it is judged by, what of
it is fitted on dev, and what `predict.py` does with it, depends on what the model is for. All of that, and nothing else, is here:

    recipe.py    data_settings, evaluate_settings             # the sections that differ
    build.py     load_data, check, ready, keep, training_items, teach, restrict,  # a training
                 classes, start, dev_evaluation, calibrate, figures, describe, card
                 text, without_gold, read_texts               # distillation: items of which only the teachers speak
                 read_labelled, require_same, report          # an evaluation
    dry_run.py   tables
    cli.py       options, details, write_submission, predict

A task has no state. Data, models and items are its own: what it takes as `Any` is what it gave, or of its class of models.
"""

from __future__ import annotations

import argparse
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from hanzoo.evaluation.significance import Comparison
from hanzoo.models.model import Model, Settings
from hanzoo.training.trick import Start

Say = Callable[[str], None]  # takes a line for people

ERRORS_OPTION: Mapping[str, Any] = {  # of `evaluate`, for every task that shows its errors
    "action": "store_true",
    "help": "also report the errors; of a tagger: boundary, type, missed, spurious ...; of a matcher: the worst pairs",
}


class DataSettings(Settings):
    """The `data` section of a recipe; a task says which settings it has.

    Attributes:
        sources: settings that say which data is meant. On the command line one of them takes the place of the whole section,
            but for
        kept: those that say what is done with the data, whichever it is.
        names: the values of `name`.
    """

    sources: ClassVar[tuple[str, ...]]
    kept: ClassVar[tuple[str, ...]] = ()
    names: ClassVar[Collection[str]]

    def located(self) -> Self:
        """The same with absolute paths to files of one's own, so that a run finds them from any folder."""
        raise NotImplementedError


class EvaluateSettings(Settings):
    """The `evaluate` section of a recipe; a task says which metrics it has.

    Attributes:
        metric: what selects the best epoch on dev.
        calibrate: fit on dev, after the training, what the model's answers are read by.
    """

    metric: str
    calibrate: bool = True


def extent(texts: Iterable[str]) -> dict[str, Any]:
    """How long texts are, in characters, for the tables of a dry run."""
    lengths = sorted(map(len, texts))
    return {
        "characters": sum(lengths),
        "median length": statistics.median_low(lengths),
        "95 %": lengths[(len(lengths) - 1) * 95 // 100],
        "longest": lengths[-1],
    }


class Data(Protocol):
    """What all data says of itself, whatever its items are; see `hanzoo.data.catalogue.TaggingData`."""

    @property
    def name(self) -> str: ...
    @property
    def train(self) -> Sequence[Any]: ...
    @property
    def dev(self) -> Sequence[Any]: ...
    @property
    def test(self) -> Sequence[Any] | None: ...
    @property
    def hashes(self) -> Mapping[str, str]: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def dev_source(self) -> str: ...
    @property
    def test_source(self) -> str: ...

    def split(self, name: str) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a run, on items with their gold.

    Attributes:
        run: the run directory.
        split: the name of the split, or of the file.
        items: with their gold.
        data: the run's data, or the other data that was asked for; None where a file is evaluated and the run's data is not there
            any more.
        settings: the section `data` that says how the items are to be read, of the run or of the other data; None where a file is
            evaluated that another task than the run's takes.
        from_data: whether the items are a split of `data`, and not a file's.
        elsewhere: whether `data` is not the run's own.
        results: a seed: what training left in results.json.
    """

    run: Path
    split: str
    items: Sequence[Any]
    data: Any
    settings: Any
    from_data: bool
    elsewhere: bool
    results: Sequence[Mapping[str, Any]]

    @property
    def place(self) -> str:
        """What is evaluated on, as a person should read it."""
        return f"{self.data.name} {self.split}" if self.elsewhere and self.data is not None else self.split


@dataclass(frozen=True, kw_only=True)
class Report(ABC):
    """The evaluation of a run: of one model, or of one model a seed. A task says what it holds.

    Attributes:
        task: of the run.
        subject: what was evaluated.
        figures: a seed: all figures, 0 to 1.
        against: the run that it was compared with, and how their main figures (the mean over the seeds) differ; or None.
    """

    task: Task
    subject: Subject
    figures: Sequence[Mapping[str, Any]]
    against: tuple[Report, Comparison] | None = None

    @abstractmethod
    def remarks(self) -> list[str]:
        """What stands below the table of figures."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """What `to_json` says of the figures: values, or lists of one value a seed."""

    @abstractmethod
    def recorded(self) -> dict[str, Any]:
        """What the record of a figure (recipes/results/) holds of them: lists of one value a seed."""

    @abstractmethod
    def compare(self, other: Any) -> Comparison:
        """How the main figure differs from that of another report on the same items, of as many seeds."""

    def to_json(self) -> dict[str, Any]:
        """Run, split, and the figures; how it differs from another run."""
        told = {"run": str(self.subject.run), "split": self.subject.place} | self.summary()
        if self.against:
            other, comparison = self.against
            told["against"] = {"run": str(other.subject.run), **comparison.to_json()}
        return told


class Task(ABC):
    """What a kind of model is trained on and judged by.

    Attributes:
        kind: what one calls such a model: "tagger".
        predicts: what `predict.py` is given with such a model: "texts".
        model: the base class of such models.
        items: what it is trained on, as a word: "sentences".
        figure: the main one: curves show it, and runs are compared in it.
        columns: figures in the tables of `train.py` and `evaluate.py`, in order.
        next_step: what to do with a run ({run}) that is trained and evaluated.
        data_settings, evaluate_settings: sections of the recipe.
        objectives: what the recipe's `objective` section may name; none = there is no such section: the models bring their loss.
        options: command ("evaluate", "predict") -> option of this task -> how argparse takes it; its default must be None, False
            or empty.
    """

    kind: ClassVar[str]
    predicts: ClassVar[str]
    model: ClassVar[type[Model]]
    items: ClassVar[str]
    figure: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    next_step: ClassVar[str]
    data_settings: ClassVar[type[DataSettings]]
    evaluate_settings: ClassVar[type[EvaluateSettings]]
    options: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]]
    objectives: ClassVar[Sequence[str]] = ()

    # Data.

    def knows(self, section: Mapping[str, Any]) -> bool:
        """Whether a `data` section, not yet checked, names data of this task and of no other of its models."""
        settings = self.data_settings
        return section.get("name") in settings.names or any(key in section for key in settings.sources if key != "name")

    @abstractmethod
    def load_data(self, settings: Any) -> Data:
        """The data of a recipe's section, read and checked. Raises DataError or RecipeError."""

    @abstractmethod
    def check(self, settings: Any, data: Any, place: str) -> None:
        """Raise RecipeError where the `evaluate` section of the recipe at `place` asks for what the data does not have."""

    @abstractmethod
    def describe(self, data: Any) -> dict[str, Any]:
        """What of the data stands beside a figure; see `hanzoo.evaluation.report.DataRecord`."""

    @abstractmethod
    def tables(self, data: Any) -> list[list[dict[str, Any]]]:
        """What a dry run shows of the data: tables of rows, as `results_table` takes them."""

    def ready(self, data: Any, settings: Any, folder: Path, load: Callable[[Path], Any], say: Say) -> Any:
        """The data as it is trained on, with what a trained model has to find in it first. Collective. Nothing is written.

        Args:
            data: as `load_data` gave it,
            settings: for this section of the recipe.
            folder: the run directory, with what `keep` wrote, where a run goes on.
            load: the model of a run, which must be of this task, on the device that is trained on.
            say: gets lines for people.
        """
        return data

    def keep(self, data: Any, folder: Path) -> None:  # noqa: B027 - most find nothing
        """Have in the run directory what `ready` found, so that a run that goes on trains on the same. Collective."""

    # Items.

    @abstractmethod
    def training_items(self, data: Any, say: Say = lambda line: None) -> list[Any]:
        """The items that are trained on, in order; says which ones are left out."""

    @abstractmethod
    def classes(self, item: Any) -> list[str]:
        """What is rare or frequent in an item, for over-sampling."""

    @abstractmethod
    def text(self, item: Any) -> str:
        """What a model is given of an item: two items with one text are the same, but for their gold."""

    @abstractmethod
    def without_gold(self, item: Any) -> Any:
        """The same item, of which nothing is known but its text."""

    @abstractmethod
    def read_texts(self, path: Path, format: str | None) -> Sequence[Any]:
        """Items of a file, whose gold, if it has any, is not looked at. Raises DataError."""

    @abstractmethod
    def read_labelled(self, path: Path, format: str | None, settings: Any) -> Sequence[Any]:
        """Items of a file with their gold. Raises DataError, also where one has none."""

    # Training.

    def aim(self, model: Any, objective: str, settings: Settings, data: Any) -> None:
        """Train a model towards an objective; of a task that has some. Raises RecipeError where the two do not fit the data."""
        raise NotImplementedError

    def teach(self, teacher: Any, student: Any, data: Any) -> None:  # noqa: B027 - most have nothing against it
        """Told of each teacher of a model that is trained on data. Raises RecipeError where it must not teach it."""

    @abstractmethod
    def restrict(self, model: Any, data: Any) -> None:
        """Let a model that knows more than the data say only what the data's gold could say."""

    @abstractmethod
    def start(self, model: Any, old_data: Callable[[], Any]) -> Start:
        """What a model goes on from that was trained before, on `old_data`."""

    @abstractmethod
    def dev_evaluation(self, model: Any, items: Sequence[Any], data: Any) -> Callable[[Model], dict[str, Any]]:
        """What the trainer calls after each epoch: figures on dev, the items, whose features are computed once. Collective."""

    def dev_sample(self, data: Any, most: int) -> tuple[Sequence[Any], float]:
        """Some items of dev, for an estimate: about `most`, and how many times as long the evaluation on all of dev takes."""
        few = data.dev[:: max(1, len(data.dev) // most)]
        return few, len(data.dev) / len(few)

    @abstractmethod
    def calibrate(self, model: Any, items: Sequence[Any], settings: Any, data: Any) -> dict[str, Any]:
        """Fit on dev what the model's answers are read by, and is saved with it; says what was fitted, and how well it does.

        Args:
            model: trained.
            items: of dev, with their gold.
            settings: the recipe's `evaluate` section.
            data: that they are of.
        """

    @abstractmethod
    def figures(self, model: Any, items: Sequence[Any], data: Any) -> dict[str, Any]:
        """All figures of a model on items of its data, 0 to 1. Collective."""

    @abstractmethod
    def card(self, results: Mapping[str, Any], recipe: Mapping[str, Any], run: str) -> str:
        """The README.md of a run directory: see `hanzoo.evaluation.report.run_card`."""

    # Evaluation.

    @abstractmethod
    def report(self, subject: Subject, models: Iterable[Any], options: Mapping[str, Any]) -> Report:
        """Evaluate models, one a seed, each as it comes. Collective.

        Args:
            subject: of which run, on what.
            models: on their device.
            options: those of this task that were given to `evaluate`.

        Raises:
            HanzooError: a model cannot be judged by the items, or not as an option wants.
        """

    @abstractmethod
    def require_same(self, subject: Subject, other: Subject) -> None:
        """Raise DataError unless two runs are evaluated on the same items with the same gold."""

    @abstractmethod
    def details(self, reports: Sequence[Any], arguments: argparse.Namespace) -> Iterator[str]:
        """What `evaluate.py` prints below the figures, block by block, for the options that were given."""

    @abstractmethod
    def write_submission(self, run: Path, model: Any, data: Any, path: Path) -> None:
        """Write the file that a leaderboard takes. Collective. Raises RunError where the data has none."""

    # Prediction.

    def takes_file(self, path: str) -> bool:
        """Whether `predict` is for what is at a path ("-" = standard input), where a model is of several tasks."""
        return not Path(path).is_dir()

    @abstractmethod
    def predict(self, model: Any, arguments: argparse.Namespace, say: Say) -> int:
        """Do what `predict.py` does. Collective. Returns how many inputs were refused."""
