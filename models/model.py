"""The contracts between models, the trainer and users: `Model`, and the thin bases that fix what users call.

The trainer knows `Model` and no model by name. A model turns an item into `Features` once (`featurize`), pads features to a
`Batch` (`collate`; every draw of the data side is made there), and says its losses un-reduced, one value a unit, so that the
trainer can divide by the units of the whole window, over micro-batches and ranks.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.special import expit
from torch import Tensor, nn

from hanzoo.data.document import Document, Entity, Span, TaggedText
from hanzoo.data.files import expanded
from hanzoo.data.schemes import TagSet
from hanzoo.data.training_items import ItemKind
from hanzoo.errors import RecipeError, RunError, nearest
from hanzoo.models.layers.embedding import VocabularyEmbedding
from hanzoo.models.layers.gathering import SharedBatch
from hanzoo.models.search.bm25 import BM25Index
from hanzoo.models.search.index import Corpus, Hit, Index, Staged, fingerprint, read_queries

if TYPE_CHECKING:
    from hanzoo.data.lexicon import Lexicon

FORMAT_VERSION = 1
DESCRIPTION_FILE = "hanzoo.json"
WEIGHTS_FILE = "hanzoo.safetensors"
POSITIONS_A_BATCH = 16_384  # at inference: padded characters a batch, so that memory does not grow with the texts
TEXTS_A_CHUNK = 1_024  # at inference: texts read ahead, sorted by length, given back in order
CHARACTERS_A_CHUNK = 131_072
LEAST_BATCHES = 20  # of which one at least must teach something
NOT_OF_AN_INDEX = ("encoder", "encoder_dropout", "freeze_epochs", "rows_at_once")  # fields that change no vector

Draw = Callable[[int], np.random.Generator]  # one generator an item: collate asks for it with the item's id


class Settings(BaseModel):
    """A section of a recipe: unknown keys and wrong types are errors, nothing is converted in silence."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TeacherSettings(Settings):
    """Fields of a section of a recipe that has teachers.

    Attributes:
        teacher: a run directory, or several; one that holds several seeds counts as that many teachers.
    """

    section: ClassVar[str]  # its name in a recipe

    teacher: str | list[str] = Field(min_length=1)

    def located(self) -> Self:
        """The same with absolute paths, so that a run finds them from any folder."""
        return self.model_copy(update={"teacher": [str(expanded(name).absolute()) for name in self.teachers]})

    @property
    def teachers(self) -> list[str]:
        return [self.teacher] if isinstance(self.teacher, str) else self.teacher

    @property
    def target_temperature(self) -> float:
        """That what the teachers say is softened by before it is kept."""
        return 1.0


class Features(Protocol):
    """What `featurize` makes of an item: arrays, no tensors. The trainer reads nothing but its length."""

    @property
    def length(self) -> int:
        """Characters (or word pieces) that will be embedded: batches are built from it."""


class Batch(Protocol):
    """Padded tensors for one forward pass. Masks are bool, True = real."""

    @property
    def num_units(self) -> Mapping[str, int]:
        """For each part of the loss the number of units (sentences, pairs, predicted tokens) in this batch."""

    @property
    def item_ids(self) -> Sequence[int]:
        """The items' places in the training set, as `collate` was given them; empty at inference."""

    @property
    def unit_lengths(self) -> Mapping[str, Tensor]:
        """For each part (num_units[part],) int64: what a unit's loss sums over (the characters of a sentence under a CRF; 1)."""

    def to(self, device: torch.device) -> Self:
        """The same batch with its tensors on `device`."""


@dataclass(frozen=True)
class AttackPoint:
    """A place where an adversarial trick may move the input.

    Attributes:
        module: its output is an embedding, (batch, seq, dimension).
        samples: (batch, seq) int64: for each output position the sample it belongs to, -1 = padding (never moved).
        table: the weight that `module` looks up, (rows, dimension), for attacks on the table; None where it has none.
        num_samples: samples of the batch, where they are not the rows of the output (a long text is several rows); None = its rows.
    """

    module: nn.Module
    samples: Tensor
    table: nn.Parameter | None = None
    num_samples: int | None = None


def is_table(module: nn.Module) -> bool:
    """Whether a module is an embedding table."""
    return isinstance(module, VocabularyEmbedding | nn.Embedding)


@dataclass(frozen=True)
class TargetForm:
    """What the soft targets of a model are: a teacher's must be what its student learns.

    Attributes:
        kind: what they say, in the field's words ("token marginals", "pair scores", "class distributions").
        classes: what their columns stand for, in order.
    """

    kind: str
    classes: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.classes[:6]) + (", ..." if len(self.classes) > 6 else "")
        return f"{self.kind} over {len(self.classes)} classes ({shown})"


class Model(nn.Module, ABC):
    """What the trainer trains. Subclasses set `Config`, the fields of the recipe's `model` section."""

    Config: ClassVar[type[Settings]]

    config: Settings
    inputs: Mapping[str, str] = {}  # files beside the data that it was built from: name -> sha256
    notes: tuple[str, ...] = ()  # what a person should be told of them
    shape_fields: ClassVar[tuple[str, ...]] = ()  # of the config, that going on with a trained model cannot change
    libraries: ClassVar[tuple[str, ...]] = ()  # beside torch and numpy: packages whose versions its figures depend on
    kept_apart: ClassVar[tuple[str, ...]] = ()  # prefixes of weights that `save_files` writes, `from_description` reads
    fresh: Mapping[
        str, Tensor
    ] = {}  # after `continue_from`: bool a parameter, True = drawn anew; not there = none of it

    @classmethod
    @abstractmethod
    def build(cls, config: Any, data: Any) -> Self:
        """A new model for `data`, as its task loads it: vocabularies, labels and vectors come from its train split alone."""

    @abstractmethod
    def featurize(self, item: Any) -> Any:
        """The features of one item: deterministic, computed once, the same in training and at inference."""

    @abstractmethod
    def collate(self, features: Sequence[Any], draw: Draw | None = None, item_ids: Sequence[int] = ()) -> Any:
        """Pad features to a batch.

        Args:
            features: of the items of this batch.
            draw: gives one generator an item, for the random changes that training makes to its input; None = inference.
            item_ids: the items' places in the training set; needed with `draw`.
        """

    @abstractmethod
    def forward(self, batch: Any) -> Any:
        """The model's output for a batch, before any loss or decision."""

    @abstractmethod
    def losses(self, output: Any, batch: Any) -> Mapping[str, Tensor]:
        """Un-reduced losses: for each part (num_units[part],) float32."""

    def smoothing(self, output: Any, batch: Any) -> Mapping[str, Tensor]:
        """What a smoothed target adds to the losses in training, (num_units[part],) float32 a part; {} = targets are hard."""
        return {}

    def unit_weights(self, batch: Any) -> Mapping[str, Tensor] | None:
        """Factors of the losses in training, (num_units[part],) float32 for each part (class weights); None = all 1."""
        return None

    @abstractmethod
    def divergence(self, first: Any, second: Any, batch: Any) -> Mapping[str, Tensor]:
        """Half the sum of both Kullback-Leibler divergences between two outputs for one batch, (num_units[part],) a part."""

    # Distillation. A model that neither teaches nor learns leaves these as they are, and is refused by name.

    def target_form(self) -> TargetForm | None:
        """What its soft targets are; None = it has none."""
        return None

    def soft_targets(self, output: Any, batch: Any, temperature: float) -> list[Tensor]:
        """What it teaches: for each item of the batch its distributions at `temperature`, (rows, classes) float.

        Rows are the item's own, without padding (a token tagger: its length; a classifier: 1).
        """
        raise NotImplementedError(f"{type(self).__name__} has no soft targets")

    def soft_losses(
        self, output: Any, targets: Sequence[Tensor], batch: Any, temperature: float
    ) -> Mapping[str, Tensor]:
        """What it learns: for each part (num_units[part],) float32, un-reduced: temperature^2 times KL(targets || its own).

        Args:
            output: of the batch.
            targets: as `soft_targets` of a teacher of the same form gives them, on the model's device.
            batch: as for `losses`; its gold is not looked at.
            temperature: that of the targets.
        """
        raise NotImplementedError(f"{type(self).__name__} learns from no soft targets")

    @abstractmethod
    def attack_points(self, batch: Any) -> Mapping[str, AttackPoint]:
        """Where adversarial tricks may move the input, by name."""

    def depth(self, parameter: str) -> int:
        """The layer that a parameter belongs to: 0 = embeddings, one more a layer above; the greatest is the top.

        Layer-wise decay of the learning rate reads it. Without more knowledge: embedding tables lie below all else.

        Args:
            parameter: its name, as in `named_parameters`.
        """
        return 0 if is_table(self.get_submodule(parameter.rpartition(".")[0])) else 1

    @classmethod
    def continue_from(cls, config: Any, previous: Self, data: Any) -> Self:
        """A model for `data` that goes on from a trained one, which is left as it is.

        It knows the labels of both, the old ones first, and its vocabularies hold those of the old one. Before it is trained it
        answers as `previous` does wherever only old labels take part. What it had to draw anew is marked in `fresh`.

        Args:
            config: the recipe's; what shapes the model must be as in `previous`, what steers its training is taken from here.
            previous: of this class, trained.
            data: what it will be trained on.

        Raises:
            RecipeError: this model cannot go on, or `config` asks for another shape; the field is named.
        """
        raise RecipeError(
            f"train.start_from: must be left out for the model {cls.__module__.rpartition('.')[2]}, which cannot go on from "
            "trained weights. Remove it."
        )

    @classmethod
    def require_shape(cls, config: Any, previous: Self) -> None:
        """For `continue_from`: raises RecipeError where one of `shape_fields` is another than in the previous model."""
        for name in cls.shape_fields:
            old, new = getattr(previous.config, name), getattr(config, name)
            if old != new:
                plain = isinstance(old, str) and re.fullmatch(r"[\w./~][\w./~ -]*", old)
                written = (
                    old if plain else json.dumps(old, ensure_ascii=False)
                )  # as in a recipe: null, true, "[unused1]"
                raise RecipeError(
                    f"model.{name}: must be {old!r} as in the model of train.start_from, but is {new!r}. "
                    f"Set model.{name}={written}, or train without train.start_from."
                )

    def sample_targets(self, output: Any, batch: Any, draw: np.random.Generator) -> Any:
        """The batch with targets drawn from the model's own distribution, instead of the gold ones.

        What the Fisher information is an expectation over: `losses(output, sample_targets(output, batch, draw))` are values of
        -log p(y | x) for y drawn from p. The output is not differentiated through.

        Args:
            output: of `forward` for this batch.
            batch: its input is kept.
            draw: all randomness comes from it.

        Raises:
            RecipeError: this model gives no distribution over targets.
        """
        raise RecipeError(
            f"train.tricks: {type(self).__module__.rpartition('.')[2]} must say how likely its targets are for this trick, but "
            "does not. Remove the trick."
        )

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch, and where a run goes on within one: for what changes with it (freezing).

        Args:
            epoch: counted from 0.
        """

    def after_step(self) -> None:
        """Called once after each optimizer step, for queues and momentum encoders; where the step was left out, too. Collective."""

    def training_state(self) -> Mapping[str, Tensor]:
        """Tensors that training needs beyond the weights; kept in `state/`, never in `model/`."""
        return {}

    @property
    def least_items(self) -> int:
        """Items that a batch must hold in training for its losses to teach anything."""
        return 1

    def training_notes(self) -> Sequence[str]:
        """What a person should be told of the training since it was asked last; asked as tricks are.

        Raises:
            RunError: nothing of what was trained could teach anything.
        """
        return ()

    def batches_by_length(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of non-empty items, longest first, in batches of at most POSITIONS_A_BATCH padded characters."""
        order = [int(i) for i in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable") if lengths[i] > 0]
        at = 0
        while at < len(order):
            size = max(1, POSITIONS_A_BATCH // lengths[order[at]])
            yield order[at : at + size]
            at += size

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    # Saving. A subclass says what it needs beyond its weights; loading runs no code from the folder.

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What `from_description` needs beyond config and files, as JSON values."""

    @classmethod
    @abstractmethod
    def from_description(cls, config: Any, description: Mapping[str, Any], folder: Path) -> Self:
        """An untrained model of the saved shape."""

    def save_files(self, folder: Path) -> None:
        """Write what else inference needs (vocabularies, a lexicon) into `folder`."""

    def own_weights(self) -> dict[str, Tensor]:
        """The weights that hanzoo.safetensors holds: all but those that are kept apart."""
        return {name: weight for name, weight in self.state_dict().items() if not name.startswith(self.kept_apart)}

    def save(self, folder: Path) -> None:
        """Write everything inference needs into `folder`, which exists: safetensors, JSON and text."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.own_weights().items()}
        save_file(weights, folder / WEIGHTS_FILE)
        self.save_files(folder)
        content = {
            "format": FORMAT_VERSION,
            "model": type(self).__module__.rpartition(".")[2],
            "config": self.config.model_dump(mode="json"),
            "description": self.description(),
        }
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (folder / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The model saved in `folder`, in evaluation mode, on the CPU.

        Raises:
            RunError: a file is missing, damaged, a pickle, or of a newer format.
        """
        content = read_description(folder)
        try:
            config = cls.Config.model_validate_json(json.dumps(content["config"]))
            model = cls.from_description(config, content["description"], folder)
        except RunError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError, MemoryError) as error:
            message = (
                f"{folder / DESCRIPTION_FILE}: the description must fit the model {content['model']!r}, but does not"
            )
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise RunError(f"{message} ({reason}). Use the folder as hanzoo wrote it.") from error
        model.load_weights(folder / WEIGHTS_FILE)
        return model.eval()

    def load_weights(self, path: Path) -> None:
        """Read this model's weights from a safetensors file, strictly."""
        weights = read_tensors(path)
        expected = self.own_weights()
        wrong = sorted(set(expected) ^ set(weights)) or sorted(
            name for name, tensor in expected.items() if tensor.shape != weights[name].shape
        )
        if wrong:
            raise RunError(
                f"{path}: the tensors must be those of {type(self).__name__}, but differ in {', '.join(wrong[:5])}"
                f"{' ...' if len(wrong) > 5 else ''}. The files of this folder do not belong together; train again."
            )
        self.load_state_dict(weights, strict=False)  # the names were compared; what is kept apart has been read


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises RunError where it is missing, truncated, or something else (a pickle)."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise RunError(
            f"{path}: the file must be there, but is missing. Copy the whole folder, or train again."
        ) from None
    except (SafetensorError, OSError) as error:
        start = b""
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(2)
        pickled = start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # zip, or protocol 2 to 5
        cause = "is a pickle, which could run code and is never loaded" if pickled else f"cannot be read ({error})"
        raise RunError(
            f"{path}: the file must be safetensors, but {cause}. Restore it from a copy, or train again."
        ) from error


def read_description(folder: Path) -> dict[str, Any]:
    """The content of a model folder's hanzoo.json, checked. Raises RunError."""
    path = folder / DESCRIPTION_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{path}: the file must be there, but is missing. Give a run directory (or its model/) that a training finished."
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: must be JSON, but cannot be read ({error}). Restore it, or train again.") from error
    if not isinstance(content, dict) or not {"format", "model", "config", "description"} <= set(content):
        raise RunError(f"{path}: must hold format, model, config and description. Restore it, or train again.")
    if content["format"] != FORMAT_VERSION:
        raise RunError(
            f"{path}: format must be {FORMAT_VERSION}, but is {content['format']!r}. "
            "A newer hanzoo wrote this folder: install that version."
        )
    return content


def model_names() -> list[str]:
    """The names of all models: the files of this folder."""
    package = importlib.import_module("hanzoo.models")
    return sorted(
        info.name for info in pkgutil.iter_modules(package.__path__) if not info.ispkg and info.name != "model"
    )


C = TypeVar("C")


def only_class(module_name: str, base: type[C]) -> type[C]:
    """The one subclass of `base` that a module defines. Raises TypeError where there is none, or more than one."""
    module = importlib.import_module(module_name)
    found = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, base) and item.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module_name} must define exactly one {base.__name__}, but defines {len(found)}")
    return found[0]


def model_class(name: str) -> type[Model]:
    """The model of the file `name`: the one `Model` that is defined in it."""
    if name not in model_names():
        raise RunError(
            f"model: name must be one of {', '.join(model_names())}, but is {name!r}.{nearest(name, model_names())}"
        )
    return only_class(f"hanzoo.models.{name}", Model)  # type: ignore[type-abstract]  # looked up, not made


def objective_names() -> list[str]:
    """The names of all objectives: the files of objectives/."""
    package = importlib.import_module("hanzoo.models.objectives")
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__))


def objective_class(name: str) -> type[Objective]:
    """The objective of the file `name`: the one `Objective` that is defined in it."""
    return only_class(f"hanzoo.models.objectives.{name}", Objective)  # type: ignore[type-abstract]  # looked up, not made


def load_model(folder: Path) -> Model:
    """The model saved in `folder`, whatever its class."""
    name = read_description(folder)["model"]
    if name not in model_names():
        raise RunError(
            f"{folder / DESCRIPTION_FILE}: model must be one of {', '.join(model_names())}, but is {name!r}. "
            "A newer hanzoo may have written this folder: install that version."
        )
    return model_class(name).load(folder)


class ItemTargets(Protocol):
    """What teachers say of each training item, looked up by its place among them."""

    def of(self, item_ids: Sequence[int], device: torch.device) -> list[Tensor]:
        """For each item (rows, columns) float32."""


class Comparison(ABC):
    """What a matcher makes of a batch: vectors or scores of the texts of its items, to be compared as an objective asks.

    An item's texts are its views, numbered as the objective's `views` gave them (for a pair: the first text, the second).
    """

    @abstractmethod
    def paired(self, one: int, other: int) -> Tensor:
        """How similar two views of each item are, (items,) float."""

    def candidates(self, num_views: int) -> Tensor:
        """How similar each item's first view is to each of its others, (items, num_views - 1) float."""
        return torch.stack([self.paired(0, other) for other in range(1, num_views)], dim=1)

    @abstractmethod
    def matrix(self, one: int, others: Sequence[int]) -> Tensor:
        """How similar a view of each item is to some views of all items, (items, len(others) x items): those of others[0] first.

        Where views are of all ranks (`gathered`), so are rows or columns.
        """

    @abstractmethod
    def gathered(self, shared: SharedBatch, views: Sequence[int]) -> Comparison:
        """The same with the items of all ranks in some views, with their gradients; the other views stay this rank's. Collective.

        Raises RecipeError for a matcher that compares each item's own texts alone.
        """

    @abstractmethod
    def vectors(self, view: int) -> Tensor:
        """One vector a text, (items, width) float32, as pooled. Raises RecipeError for a matcher that has none."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, and back as it was, whatever happens."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class Objective(nn.Module, ABC):
    """What a matcher is trained towards. A submodule of it while it is trained; no part of what is saved.

    The trainer knows parts and units, as for every loss: `Model.losses` of a matcher are those of its objective.
    """

    Settings: ClassVar[type[Settings]]
    decomposes: ClassVar[bool]  # False: the units of a batch depend on one another, and it may not be cut
    learns_from: ClassVar[tuple[ItemKind, ...]]  # kinds of items
    least_items: ClassVar[int] = 1  # that a batch must hold to teach anything
    refuses: ClassVar[Mapping[str, str]] = {}  # tricks that it does not go with -> why

    targets: ItemTargets | None = None  # what its teachers say, where its settings are `TeacherSettings`
    num_taught = num_untaught = 0  # batches of training items since the last notes after which one taught

    @classmethod
    @abstractmethod
    def build(cls, settings: Any, matcher: Matcher, data: Any) -> Self:
        """The objective of a recipe, for a matcher that is trained on `data`.

        Raises:
            RecipeError: it learns nothing from such data, or not through such a matcher.
        """

    @abstractmethod
    def views(self, texts: Sequence[NDArray[np.int64]], draw: np.random.Generator | None) -> list[NDArray[np.int64]]:
        """The texts to compare of one item, as many for every item.

        Args:
            texts: the pieces of the item's own texts (a pair: two).
            draw: for what is drawn anew each time an item is trained; None = outside of training.
        """

    @abstractmethod
    def num_units(self, num_items: int) -> Mapping[str, int]:
        """For each part of the loss the units that so many items of a batch have."""

    def teaches(self, batch: Any) -> bool:
        """Whether a batch can teach anything. One that cannot has a loss without gradient, and is counted.

        Not asked where ranks share a batch: it may hold what this rank's part lacks.
        """
        return True

    @abstractmethod
    def of(self, compared: Comparison, batch: Any) -> Mapping[str, Tensor]:
        """The losses of a batch, un-reduced: (units,) float32 a part."""

    def sample_targets(self, compared: Comparison, batch: Any, draw: np.random.Generator) -> Any:
        """The batch with targets drawn from the matcher's own distribution, see `Model.sample_targets`; None = it has none."""
        return None

    @abstractmethod
    def agreement(self, first: Comparison, second: Comparison, batch: Any) -> Mapping[str, Tensor]:
        """What R-Drop adds: how far two passes over one batch lie apart, (units,) float32 a part."""

    def after_step(self, matcher: Matcher) -> None:
        """Called once after each optimizer step of the matcher that it is the objective of. Collective."""

    def training_state(self) -> Mapping[str, Tensor]:
        """Tensors that training needs beyond the weights; equal on all ranks; see `Model.training_state`."""
        return {}


def cut_notes(counts: Mapping[str, tuple[int, int]]) -> list[str]:
    """What a person should be told, from `Matcher.cut_counts`; nothing where all is read."""
    return [f"{longer:,} of {number:,} {said}" for said, (longer, number) in counts.items() if longer]


PAIR_SCORES = TargetForm("pair scores", ("score",))


class MatcherDescription(Settings):
    """What hanzoo.json says of a saved matcher beyond its config; see `Matcher`."""

    trained_on: list[str] = Field(default_factory=list)
    threshold: float | None = None
    thresholds: dict[str, float] = Field(default_factory=dict)
    calibration: list[float] | None = Field(default=None, min_length=2, max_length=2)


class Matcher(Model):
    """A model that says how well two texts match.

    Attributes:
        objective: what it is trained towards; None for one that is not being trained.
        trained_on: names of the data sets that it was trained on, in all its stages, those of its teachers included.
        threshold: the score from which two texts are said to match, chosen on dev; None where nothing chose one.
        thresholds: those that figures are judged at: "accuracy" and "f1", each the best for it on dev; empty where nothing chose.
        calibration: (factor, offset): a score's log-odds of a match are factor x score + offset; None where nothing fitted them.
    """

    threshold: float | None = None
    thresholds: Mapping[str, float] = {}
    calibration: tuple[float, float] | None = None
    trained_on: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.objective: Objective | None = None

    @property
    def least_items(self) -> int:
        return 1 if self.objective is None else self.objective.least_items

    def training_notes(self) -> Sequence[str]:
        objective = self.objective
        if objective is None or not objective.num_untaught:
            return ()
        untaught, batches = objective.num_untaught, objective.num_untaught + objective.num_taught
        if not objective.num_taught and batches >= LEAST_BATCHES:
            raise RunError(
                f"objective: batches must hold something to compare, but none of {batches} did. Raise train.batch_size."
            )
        if objective.num_taught:  # else they are counted on, until they are enough to say that none will
            objective.num_taught = objective.num_untaught = 0
        said = f"{untaught:,} of {batches:,} batches held nothing to compare and taught nothing"
        return (f"{said}: a larger train.batch_size has fewer of them",)

    def target_form(self) -> TargetForm | None:
        return PAIR_SCORES

    def soft_targets(self, output: Any, batch: Any, temperature: float) -> list[Tensor]:
        """The scores of each item's first text with each of its others, (others, 1) float; see `Model.soft_targets`."""
        return list((output.candidates(batch.keys.shape[1]) / temperature).unsqueeze(2))

    @property
    def width(self) -> int | None:
        """Of the one vector a text that it has; None where it has none."""
        return None

    @property
    def mask(self) -> int | None:
        """The number of [MASK] among the pieces of its texts; None where it has none."""
        return None

    def losses(self, output: Any, batch: Any) -> Mapping[str, Tensor]:
        assert self.objective is not None
        return self.objective.of(output, batch)

    def divergence(self, first: Any, second: Any, batch: Any) -> Mapping[str, Tensor]:
        assert self.objective is not None
        return self.objective.agreement(first, second, batch)

    def trained_weights(self) -> dict[str, Tensor]:
        """All weights but those of the objective."""
        return {name: weight for name, weight in self.state_dict().items() if not name.startswith("objective.")}

    def sample_targets(self, output: Any, batch: Any, draw: np.random.Generator) -> Any:
        assert self.objective is not None
        drawn = self.objective.sample_targets(output, batch, draw)
        if drawn is None:
            raise RecipeError(
                f"train.tricks: the objective {type(self.objective).__module__.rpartition('.')[2]} must say how likely its "
                "targets are for this trick, but does not. Remove the trick, or take the objective binary."
            )
        return drawn

    def after_step(self) -> None:
        if self.objective is not None:
            self.objective.after_step(self)

    def training_state(self) -> Mapping[str, Tensor]:
        state = {} if self.objective is None else self.objective.training_state()
        return {f"objective/{name}": tensor for name, tensor in state.items()}

    def own_weights(self) -> dict[str, Tensor]:
        return {name: weight for name, weight in super().own_weights().items() if not name.startswith("objective.")}

    @abstractmethod
    def cut_counts(self, items: Sequence[Any]) -> Mapping[str, tuple[int, int]]:
        """Of which texts of items the model does not read all, and of how many: what is said of them -> two numbers."""

    def cut_notes(self, items: Sequence[Any]) -> list[str]:
        """What a person should be told of items of which the model does not read all."""
        return cut_notes(self.cut_counts(items))

    @abstractmethod
    def scores(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """How well the two texts of each pair match, (pairs,): the higher the better.

        Raises:
            TypeError: a pair is not two strings.
            DataError: a text is empty, or all blanks.
        """

    def score(self, first: str, second: str) -> float:
        """How well two texts match; see `scores`."""
        return float(self.scores([(first, second)])[0])

    def calibrated(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probability that two texts with a score match, for any number of scores, in [0, 1].

        Raises:
            RunError: nothing fitted it: the model was not trained on two classes, or `evaluate.calibrate` was false.
        """
        if self.calibration is None:
            raise RunError(
                "probability: the model must have been calibrated on a dev set of two classes, but was not. Take its score, or "
                "train it on such data with evaluate.calibrate=true."
            )
        factor, offset = self.calibration
        odds: NDArray[np.float64] = expit(factor * np.asarray(scores, dtype=np.float64) + offset)
        return odds

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """The probability that the two texts of each pair match, (pairs,). Raises: see `scores` and `calibrated`."""
        return self.calibrated(self.scores(pairs))

    def probability(self, first: str, second: str) -> float:
        """The probability that two texts match; see `probabilities`."""
        return float(self.probabilities([(first, second)])[0])

    # Search.

    @abstractmethod
    def index(self, corpus: Corpus, folder: str | Path | None = None) -> Index:
        """A corpus, read once, to be searched many times.

        Args:
            corpus: a list of texts or of passages, or a mapping from ids to texts.
            folder: a new one, to write the index into as it is made, and to search it from there; None = no file stays.

        Raises:
            DataError: the corpus is empty, holds a blank text or an id twice.
            RunError, StorageError: the folder is there already, or cannot be written.
        """

    @abstractmethod
    def open_index(self, folder: str | Path) -> Index:
        """An index that this model made and that was saved. Raises RunError where it is none, damaged, or of another model."""

    def search(
        self,
        queries: Iterable[str],
        corpus: Corpus | Index,
        k: int = 10,
        *,
        first_stage: Index | Literal["bm25"] | None = None,
        candidates: int = 100,
        weight: float = 1.0,
    ) -> list[list[Hit]]:
        """For each query the k texts of a corpus that match best, the best first.

        Args:
            queries: texts; none may be blank.
            corpus: see `index`; or an index that is there already.
            k: at least 1; there are fewer hits where the corpus is smaller, or a first stage finds fewer.
            first_stage: "bm25", or another index of the same corpus: it finds the candidates, and this model ranks them; of a
                corpus that is no index it reads them alone. None = this model ranks the whole corpus, which a cross-encoder
                refuses.
            candidates: of a query, that the first stage gives.
            weight: of this model's score in the mix with the first stage's; see `Staged`.

        Raises:
            TypeError: queries or corpus are one string, or hold something else.
            DataError: a query or a text is blank, the corpus is empty.
            ValueError: first_stage is neither, or k, candidates or weight are out of range.
            RunError: a cross-encoder has no first stage; a package is missing.
        """
        queries = read_queries(queries)
        if first_stage == "bm25":
            if isinstance(corpus, Index):
                raise ValueError(
                    "search: first_stage must be an index where the corpus is one. Give BM25Index.build(corpus)."
                )
            first_stage = BM25Index.build(corpus)
        elif isinstance(first_stage, str):
            raise ValueError(
                f"search: first_stage must be 'bm25' or an index of the same corpus, but is {first_stage!r}."
            )
        if first_stage is not None and not isinstance(corpus, Index):
            return Staged.for_queries(queries, first_stage, self.index, corpus, candidates, weight).search(queries, k)
        index = corpus if isinstance(corpus, Index) else self.index(corpus)
        if first_stage is not None:
            index = Staged(first_stage, index, candidates, weight)
        return index.search(queries, k)

    def fingerprint(self) -> str:
        """What an index says of the model that made it: a hash of its weights and of how it reads texts."""
        return fingerprint(self.trained_weights(), self.config.model_dump(mode="json", exclude=set(NOT_OF_AN_INDEX)))

    def description(self) -> dict[str, Any]:
        return {
            "trained_on": list(self.trained_on),
            "threshold": self.threshold,
            "thresholds": dict(self.thresholds),
            "calibration": None if self.calibration is None else list(self.calibration),
        }

    def with_description(self, description: Mapping[str, Any]) -> Self:
        """The same, with what `description` said of it."""
        saved = MatcherDescription.model_validate(dict(description))
        self.trained_on = tuple(saved.trained_on)
        self.threshold = saved.threshold
        self.thresholds = saved.thresholds
        self.calibration = None if saved.calibration is None else (saved.calibration[0], saved.calibration[1])
        return self


T = TypeVar("T")


def in_chunks(texts: Iterable[T], length: Callable[[T], int]) -> Iterator[list[T]]:
    """Cut a stream into lists that hold at most TEXTS_A_CHUNK items and about CHARACTERS_A_CHUNK characters."""
    chunk: list[T] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += length(text)
        if len(chunk) >= TEXTS_A_CHUNK or characters >= CHARACTERS_A_CHUNK:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


class TaggerDescription(Settings):
    """What hanzoo.json says of a saved tagger beyond its config. One that needs more extends it, and `description` with it.

    Attributes:
        labels: in the order of the model's.
        temperature: that confidences are computed at.
    """

    labels: list[str] = Field(min_length=1)
    temperature: float = Field(gt=0.0)


class Tagger(Model):
    """A model that finds entities in texts.

    Attributes:
        temperature: that confidences are computed at.
        tag_set: what the tags of its output layer mean; None for a model that says spans without tags.
        lexicon: the words that it looks for, saved with it; may be changed at any time, the next text is read with the change. None
            for a model that looks for none.
    """

    temperature: float = 1.0
    tag_set: TagSet | None = None
    lexicon: Lexicon | None = None
    _active: tuple[str, ...] | None = None

    @property
    def reads_kinds(self) -> bool:
        """Whether a label as the kind of a word of the lexicon says something to it, beyond the word."""
        return False

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """Every label that the model knows, in the order of its tags."""

    def description(self) -> dict[str, Any]:
        return {"labels": list(self.labels), "temperature": self.temperature}

    @property
    def active_labels(self) -> tuple[str, ...]:
        """The labels that take part now; see `restrict`."""
        return self.labels if self._active is None else self._active

    def restrict(self, labels: Iterable[str] | None) -> None:
        """Let only these labels take part from now on: in the loss, in decoding and in confidences.

        A model that went on from one data set to another knows the labels of both, and in neither are those of the other marked:
        there they must be neither right nor wrong. Not saved with the model.

        Args:
            labels: some of `self.labels`; None = all.

        Raises:
            RunError: there is none, or one that the model does not know.
        """
        chosen = set(self.labels if labels is None else labels)
        unknown = sorted(chosen - set(self.labels))
        if unknown or not chosen:
            hint = nearest(unknown[0], self.labels) if unknown else ""
            raise RunError(
                f"labels: must be some of {', '.join(self.labels)}, but are {', '.join(sorted(chosen)) or 'none'}.{hint}"
            )
        self._active = tuple(label for label in self.labels if label in chosen)
        self._restrict(self._active)

    @contextmanager
    def restricted(self, labels: Iterable[str] | None) -> Iterator[None]:
        """`restrict` inside a with-block; the labels from before come back at its end."""
        before = self.active_labels
        self.restrict(labels)
        try:
            yield
        finally:
            self.restrict(before)

    @abstractmethod
    def _restrict(self, labels: Sequence[str]) -> None:
        """Do what `restrict` says: `labels` are some of the model's, in its order."""

    @abstractmethod
    def decode(self, output: Any, batch: Any) -> list[list[Span]]:
        """The best spans of each text in the batch, in order of position."""

    @abstractmethod
    def confidences(
        self, output: Any, batch: Any, spans: Sequence[Sequence[Span]], temperature: float
    ) -> list[list[float]]:
        """For each span the probability that exactly it, with exactly its label, is an entity of the text."""

    def tag_sequences(self, output: Any, batch: Any) -> list[np.ndarray]:
        """For each text in the batch the tags that the output layer chose, (length,) ids of `tag_set`, legal or not.

        Scorers read them; `decode` says the spans of the same sequences. A model without tags (`tag_set` is None) has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no tags")

    @torch.inference_mode()
    def predicted_tags(self, features: Sequence[Any]) -> list[list[str]]:
        """For each text the tags that the output layer chose, one a character. Not of a model without tags."""
        assert self.tag_set is not None
        names = self.tag_set.tags
        found: list[list[str]] = [[] for _ in features]
        for indices, batch, output in self._outputs(features):
            for index, ids in zip(indices, self.tag_sequences(output, batch), strict=True):
                found[index] = [names[tag] for tag in ids.tolist()]
        return found

    def _outputs(self, features: Sequence[Any]) -> Iterator[tuple[list[int], Any, Any]]:
        """The places of the texts of a batch, the batch, and the model's output for it in evaluation mode; batch by batch."""
        with evaluating(self):
            for indices in self.batches_by_length([item.length for item in features]):
                batch = self.collate([features[i] for i in indices]).to(self.device)
                yield indices, batch, self(batch)

    @torch.inference_mode()
    def tag(self, features: Sequence[Any], with_confidence: bool = False) -> list[list[tuple[Span, float | None]]]:
        """Decode features; the result is the same in whatever batches, up to float32 rounding.

        Args:
            features: of any number of texts.
            with_confidence: also compute each span's posterior at the model's temperature.

        Returns:
            For each text its spans in order, each with its confidence or None.
        """
        found: list[list[tuple[Span, float | None]]] = [[] for _ in features]
        for indices, batch, output in self._outputs(features):
            spans = self.decode(output, batch)
            if with_confidence:
                scores = self.confidences(output, batch, spans, self.temperature)
                for index, row, values in zip(indices, spans, scores, strict=True):
                    found[index] = list(zip(row, values, strict=True))
            else:
                for index, row in zip(indices, spans, strict=True):
                    found[index] = [(span, None) for span in row]
        return found

    def tag_at(self, features: Sequence[Any]) -> Callable[[float], list[list[tuple[Span, float]]]]:
        """Decode features once, for confidences at several temperatures.

        Returns:
            From a temperature to each text's spans in order, each with its confidence. It holds the model's outputs.
        """
        with torch.inference_mode():
            kept = [(*found, self.decode(found[2], found[1])) for found in self._outputs(features)]

        @torch.inference_mode()
        def at(temperature: float) -> list[list[tuple[Span, float]]]:
            rows: list[list[tuple[Span, float]]] = [[] for _ in features]
            for indices, batch, output, spans in kept:
                scores = self.confidences(output, batch, spans, temperature)
                for index, row, values in zip(indices, spans, scores, strict=True):
                    rows[index] = list(zip(row, values, strict=True))
            return rows

        return at

    def predict_stream(self, texts: Iterable[str]) -> Iterator[TaggedText]:
        """Tag a stream of texts: in order, in constant memory.

        Yields:
            For each text a `TaggedText`; `text[start:end] == entity.text` in the string that was given.
        """
        for chunk in in_chunks(texts, len):
            tagged = self.tag([self.featurize(Document(text)) for text in chunk], with_confidence=True)
            for text, spans in zip(chunk, tagged, strict=True):
                yield TaggedText(
                    text,
                    tuple(
                        Entity(span.start, span.end, span.label, text[span.start : span.end], confidence)
                        for span, confidence in spans
                    ),
                )

    def predict(self, texts: Sequence[str]) -> list[TaggedText]:
        """Tag texts of any length and content. Raises TypeError where one is not a string."""
        if isinstance(texts, str):
            raise TypeError("predict: texts must be a list of strings, but is one string. Write predict([text]).")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"predict: texts must be strings, but text {index} is {type(text).__name__}.")
        return list(self.predict_stream(texts))


__all__ = [
    "AttackPoint", "Batch", "Comparison", "Draw", "Features", "ItemTargets", "Matcher", "Model", "Objective", "Settings",
    "Tagger", "TaggerDescription", "TargetForm", "TeacherSettings", "cut_notes", "in_chunks", "is_table", "load_model",
    "model_class", "model_names", "only_class", "read_description", "read_tensors",
]  # fmt: skip
