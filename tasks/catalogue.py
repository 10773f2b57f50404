"""The tasks that there are, and which of them a model is of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hanzoo.errors import RunError
from hanzoo.models.model import Model
from hanzoo.tasks.matching import Matching
from hanzoo.tasks.retrieval import Retrieval
from hanzoo.tasks.tagging import Tagging
from hanzoo.tasks.task import DataSettings, Task

TASKS: tuple[Task, ...] = (Tagging(), Matching(), Retrieval())


def tasks_of(model: type[Model]) -> list[Task]:
    """The tasks that a class of models is for. Raises TypeError where it is for none."""
    found = [task for task in TASKS if issubclass(model, task.model)]
    if not found:
        known = dict.fromkeys(task.model.__name__ for task in TASKS)
        raise TypeError(f"{model.__name__} must be one of {', '.join(known)}")
    return found


def task_of(model: type[Model], data: Mapping[str, Any] | DataSettings = MappingProxyType({})) -> Task:
    """The task of a class of models on data; the first one where the data does not say.

    Args:
        model: of a recipe.
        data: its section, checked or not.

    Raises:
        TypeError: the models are for no task.
    """
    known = tasks_of(model)
    if isinstance(data, DataSettings):
        return next(task for task in known if isinstance(data, task.data_settings))
    return next((task for task in known if task.knows(data)), known[0])


def task_for_file(model: type[Model], path: str) -> Task:
    """The task of a class of models that predicts on what is at a path ("-" = standard input). Raises as `tasks_of`."""
    known = tasks_of(model)
    return next((task for task in known if task.takes_file(path)), known[0])


def known_options(command: str) -> dict[str, Mapping[str, Any]]:
    """The options that tasks bring to a command, each with how argparse takes it."""
    return {option: how for task in reversed(TASKS) for option, how in task.options[command].items()}


def require_options(task: Task, command: str, options: Iterable[str], run: Path, given: str | None = None) -> None:
    """Raise RunError where an option was given that is not for the task of a run.

    Args:
        task: of the run, or of what its model is given.
        command: predict or evaluate.
        options: that were given.
        run: the run directory.
        given: what a model is given that is of several tasks; None = the run itself says which.
    """
    for option in options:
        if option in task.options[command]:
            continue
        owners = [other for other in TASKS if option in other.options[command]]
        alike = [other.predicts for other in owners if other.model is task.model]
        if given is not None and alike:
            raise RunError(f"{option}: must stand with {alike[0]}, but {given} holds {task.predicts}. Leave it out.")
        kinds = " or ".join(other.kind for other in owners)
        raise RunError(f"{option}: the run must hold a {kinds}, but {run} holds a {task.kind}. Leave it out.")
