"""Aiming: what a matcher is trained towards, whichever task it is of; and what of its past must not meet what it is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from hanzoo.data.document import Pair
from hanzoo.data.leakage import check_leaks
from hanzoo.data.randomness import generator, reseed
from hanzoo.data.training_items import ItemKind
from hanzoo.errors import DataError, RecipeError
from hanzoo.models.model import Matcher, Settings, TeacherSettings, evaluating, objective_class, objective_names
from hanzoo.tasks.mining import Mined

DRAWN_FROM = 8  # texts on which it is tried whether dropout does anything


class AimedData(Protocol):
    """Data that a matcher is trained on.

    Attributes:
        name: of the data set that it is judged by.
        items: what its items are.
        train: the items.
        trained_on: names of the data sets that they come from.
        allow_leakage: train also where what it is judged by is known to stand in what it is trained on.
        notes: all a person was told of the data.
        mined: negatives that were found for the items; None = none were.
        item_settings: kinds that the items can be, and the setting that makes them so.
    """

    @property
    def name(self) -> str: ...
    @property
    def items(self) -> ItemKind: ...
    @property
    def train(self) -> Sequence[Any]: ...
    @property
    def trained_on(self) -> Sequence[str]: ...
    @property
    def allow_leakage(self) -> bool: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def mined(self) -> Mined | None: ...
    @property
    def item_settings(self) -> Mapping[ItemKind, str]: ...


def aim(model: Matcher, objective: str, settings: Settings, data: AimedData) -> None:
    """Train a matcher towards an objective.

    Raises:
        RecipeError: the objective learns nothing from such items, or not through such a model; or the model, or its encoder, was
            trained on what it is judged by.
        DataError: all pairs have one label.
    """
    cls = objective_class(objective)
    if data.items not in cls.learns_from:
        others = [name for name in objective_names() if data.items in objective_class(name).learns_from]
        settings_for_it = [data.item_settings[kind] for kind in cls.learns_from if kind in data.item_settings]
        cure = "".join(f"{setting}, or take " for setting in settings_for_it[:1]) or "Take "
        raise RecipeError(
            f"objective.name: {objective} must have {' or '.join(cls.learns_from)} to learn from, but the data's items are "
            f"{data.items}. {cure}another objective: {', '.join(others)}."
        )
    labels = {item.label for item in data.train if isinstance(item, Pair)}
    if data.items == "pairs" and len(labels) < 2:
        raise DataError(
            f"{data.name}: the pairs that are trained on must have two labels at least, but all have {labels.pop():g}. "
            "Raise data.most, or check the file."
        )
    note_leaks(model, data, data.trained_on)
    model.objective = cls.build(settings, model, data)
    frozen = getattr(model.config, "freeze_epochs", 0)
    above = (
        name for name, weight in model.named_parameters() if weight.requires_grad and not name.startswith("encoder.")
    )
    if frozen and not any(above):
        raise RecipeError(
            f"model.freeze_epochs: must be 0 where nothing but the encoder has weights to train, but is {frozen}. Set it to 0."
        )
    if data.mined is not None:
        model.inputs = {**model.inputs, **data.mined.inputs}
    if not isinstance(settings, TeacherSettings):
        _try_out(model, data.train[: max(2, cls.least_items)])
    if data.items == "texts":
        _require_dropout(model, data.train[:DRAWN_FROM])


def note_leaks(model: Matcher, data: AimedData, names: Sequence[str]) -> None:
    """Add to what a model was trained on, unless it leaks into what it is judged by; see `check_leaks`."""
    model.trained_on = tuple(dict.fromkeys((*model.trained_on, *names)))
    said = check_leaks(
        map(official_name, model.trained_on), official_name(data.name), encoder=encoder_name(model),
        force=data.allow_leakage,
    )  # fmt: skip
    model.notes = (*model.notes, *(line for line in said if line not in (*data.notes, *model.notes)))


def official_name(name: str) -> str:
    """The data set that a copy with other counts is of, for what is known of it."""
    return name.removesuffix("-unofficial")


def encoder_name(model: Matcher) -> str | None:
    """The name of the encoder that a model began with."""
    name = getattr(model.config, "encoder", None)
    return None if name is None else Path(name).name


def _try_out(model: Matcher, items: Sequence[Any]) -> None:
    """Compute a loss once, so that an objective that does not go with a model is refused before anything is written."""
    with evaluating(model), torch.no_grad():
        batch = model.collate([model.featurize(item) for item in items])
        model.losses(model(batch), batch)


def _require_dropout(model: Matcher, items: Sequence[Any]) -> None:
    """Raise RecipeError where the views of a single text are the same, so that nothing can be learnt from them."""
    features = [model.featurize(item) for item in items]

    def collated() -> Any:
        return model.collate(features, lambda item: generator(0, "dropout is tried", item), range(len(features)))

    objective = model.objective
    assert objective is not None
    drawn = (objective.views(item.texts, generator(0, "dropout is tried", n)) for n, item in enumerate(features))
    if any(not np.array_equal(views[0], views[1]) for views in drawn):
        return
    was_training = model.training
    model.train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        reseed(0, "dropout is tried")
        first, second = (model(collated()).paired(0, 1) for _ in range(2))
    model.train(was_training)
    if torch.equal(first, second):
        raise RecipeError(
            "model.encoder_dropout: must be above 0 with single texts, whose two views differ by dropout alone, but "
            f"{encoder_name(model)} has none. Set model.encoder_dropout=0.1."
        )
