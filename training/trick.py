"""The contract of a trick: it wraps the loss or the backward pass; the loop does not ask.

    begin                                                  # once a run: EWC, L2-SP
    for step in range(start, num_steps):
        backward(window)                      # wrapped by FGM, PGD, FreeLB
            for micro in window:
                reseed(...); values = loss(micro.batch)    # wrapped by focal, Poly, flooding, R-Drop, the gradient penalty
                (sum over parts: micro.weight * values.sum() * ranks / units[part]).backward()
        unscale; before_step; clip                         # EWC, L2-SP
        optimizer; after_step                              # EMA, SWA
    at the end of an epoch: evaluate                       # inside evaluation_weights: EMA, SWA

A trick is found by its file name in `training/tricks/`: the one `Trick` that is defined there. It has a `Settings` class, the
fields of its section in the recipe (`train.tricks.<name>`), and a `rank`: tricks that wrap the same thing are nested by it, the
lowest innermost, whatever their order in the recipe.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from hanzoo.errors import RecipeError, nearest
from hanzoo.models.model import Model, Settings, only_class


class Loss(NamedTuple):
    """What a loss function says of a batch.

    Attributes:
        values: for each part (num_units[part],) float32, un-reduced and unweighted.
        output: the model's output that they come from.
        weights: for each part (num_units[part],) float32, factors of the values (class weights); None = all 1.
        hard: for each part (num_units[part],) float32, the negative log-likelihood of the gold in the first pass, before anything
            was made of it (a smoothed target, focal, the mean of two passes); None = the values are that.
    """

    values: Mapping[str, Tensor]
    output: Any
    weights: Mapping[str, Tensor] | None = None
    hard: Mapping[str, Tensor] | None = None

    def gold(self) -> Mapping[str, Tensor]:
        """The negative log-likelihoods of the gold, unweighted: exp(-value) is its probability."""
        return self.values if self.hard is None else self.hard

    def weighted(self) -> Mapping[str, Tensor]:
        """The values times their weights: what is summed and divided by the units."""
        if self.weights is None:
            return self.values
        return {part: value * self.weights[part] for part, value in self.values.items()}


LossFunction = Callable[[Any], Loss]
SampleDraw = Callable[[str, int], np.random.Generator]  # purpose, place of the sample in the batch


@dataclass(slots=True)  # a frozen one takes several times as long to make
class MicroBatch:
    """One forward and backward pass of a window; never changed, only replaced.

    Attributes:
        index: its place in the window; with the step it keys its dropout, so every pass over it has the same masks.
        batch: the model's batch.
        weight: factor of its loss.
        kind: "clean" for the pass on the input as it is (of FreeLB, where it starts); "adversarial" and "ascent" for an attack's.
            Logged apart.
        contexts: entered around the forward and the backward pass.
        inputs: where gradients are wanted; None = all leaves.
        last: the pass in which the gradients of all ranks are added: the last one of the window that reaches the weights.
        counted: False for the stand-in of a rank that has nothing to do in a window: weight 0, and no part of any sum.
        draw: a generator for what a trick draws of its own at one sample, keyed by seed, purpose, step and the sample's item: the
            same however a window is cut. None = there is no such draw.
    """

    index: int
    batch: Any
    weight: float = 1.0
    kind: str = "clean"
    contexts: tuple[AbstractContextManager[Any], ...] = ()
    inputs: Callable[[], Sequence[Tensor]] | None = None
    last: bool = True
    counted: bool = True
    draw: SampleDraw | None = None

    def inside(self, context: AbstractContextManager[Any], **changes: Any) -> MicroBatch:
        """The same micro-batch, its passes run inside one more context."""
        return replace(self, contexts=(*self.contexts, context), **changes)


@dataclass(frozen=True)
class Start:
    """The trained model that a run goes on from; its weights are the run's first ones.

    Attributes:
        fresh: bool a parameter, True = entries that it did not have; a parameter that is not here it had as a whole.
        items: reads the training items it was trained on, featurised for the model that is trained now.
        labelled: entered around passes over them: inside, the model has the labels of those items.
    """

    fresh: Mapping[str, Tensor]
    items: Callable[[], Sequence[Any]]
    labelled: Callable[[], AbstractContextManager[object]]


Window = list[MicroBatch]
Backward = Callable[[Window], None]


@dataclass
class Trick:
    """Does nothing; subclasses override what they change.

    Attributes:
        Settings: the fields of its section.
        rank: where it stands among those that wrap the same thing, the lowest innermost.
        excludes: what it does not go with, each with the reason: the file name of a trick (one of the two need say it), a key of
            the recipe that must be off (`model.label_smoothing`), or a value that a key must not have (`train.precision=float16`).
    """

    Settings: ClassVar[type[Settings]] = Settings
    rank: ClassVar[int] = 0
    excludes: ClassVar[Mapping[str, str]] = {}
    needs_start: ClassVar[bool] = False  # whether it goes only with train.start_from
    settings: Any = field(default_factory=Settings)

    @classmethod
    def excluded_with(cls, settings: Any) -> Mapping[str, str]:
        """`excludes`, and what goes with some of its settings only."""
        return cls.excludes

    def wrap_loss(self, loss: LossFunction, model: Model) -> LossFunction:
        """The loss function that training uses instead of `loss`."""
        return loss

    def wrap_backward(self, backward: Backward, model: Model) -> Backward:
        """The backward pass of a window that training uses instead of `backward`."""
        return backward

    def plan(self, epoch_starts: Sequence[int]) -> None:
        """Told before training, also when a run goes on: the steps at which epochs begin; the last is the number of steps."""

    def begin(self, model: Model, start: Start | None, seed: int) -> None:
        """Called once a run, before its first step, and not when it goes on: what is found out here belongs into `state`.

        Collective: all ranks call it.

        Args:
            model: with its first weights.
            start: what it goes on from; None where it begins anew (never for a trick that `needs_start`).
            seed: the run's, to key draws by.
        """

    def before_step(self, model: Model, step: int) -> None:
        """Called once a step with the gradients of the whole window and all ranks, unscaled and not yet clipped.

        `step` counts from 0 and also those that are left out because a gradient is not finite.
        """

    def after_step(self, model: Model) -> None:
        """Called after each optimizer step that changed the weights."""

    def notes(self) -> Sequence[str]:
        """What a person should be told since it was asked last: whenever the loss is logged, and at the end of an epoch.

        All ranks ask at the same step. Raises RunError where the trick turns out to do nothing.
        """
        return ()

    def evaluation_weights(self, model: Model) -> AbstractContextManager[object]:
        """Entered around evaluating, and keeping the best weights: inside, the model has the weights that inference shall use."""
        return nullcontext()

    def state(self) -> Mapping[str, Tensor]:
        """Tensors that exact resume needs."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor], model: Model) -> None:
        """Take back what `state` gave."""


def trick_names() -> list[str]:
    """The names of all tricks: the files of `training/tricks/`."""
    package = importlib.import_module("hanzoo.training.tricks")
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_"))


def trick_class(name: str) -> type[Trick]:
    """The trick of the file `name`."""
    if name not in trick_names():
        known = trick_names()
        raise RecipeError(
            f"train.tricks: a trick must be one of {', '.join(known)}, but is {name!r}.{nearest(name, known)}"
        )
    return only_class(f"hanzoo.training.tricks.{name}", Trick)


def conflicts(tricks: Mapping[str, Settings], sections: Mapping[str, Settings | None] | None = None) -> list[str]:
    """What does not go together: one sentence for each two tricks, or each trick and another setting, that exclude each other.

    Args:
        tricks: settings of each trick, by its file name.
        sections: the recipe's other sections, by name; a setting of a section that is not given is not looked at.
    """
    found: dict[frozenset[str], str] = {}
    for name, settings in tricks.items():
        for key, reason in trick_class(name).excluded_with(settings).items():
            path, _, refused = key.partition("=")
            section, dot, field_name = path.partition(".")
            if not dot and path in tricks:
                message = f"train.tricks: {name} and {path} must not stand together, but do: {reason}. Keep one."
                found.setdefault(frozenset((name, path)), message)
            elif dot:
                value = getattr((sections or {}).get(section), field_name, None)
                if str(value) == refused if refused else value:
                    found[frozenset((name, path))] = (
                        f"train.tricks.{name} and {path} must not stand together, but {path} is {value!r}: {reason}. "
                        "Change one of them."
                    )
    return list(found.values())


def build_tricks(sections: Mapping[str, Settings]) -> list[Trick]:
    """The tricks of a recipe in the order in which they wrap: lowest rank first.

    Raises:
        RecipeError: two of them do not go together.
    """
    mistakes = conflicts(sections)
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    tricks = [trick_class(name)(settings=settings) for name, settings in sections.items()]
    return sorted(tricks, key=lambda trick: (trick.rank, type(trick).__name__))
