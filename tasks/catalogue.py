"""The tasks that there are, and which of them a model is of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hanzoo.errors import RunError
from hanzoo.models.model import Model
from hanzoo.tasks.tagging import Tagging
from hanzoo.tasks.task import Task

TASKS: tuple[Task, ...] = (Tagging(),)


def task_of(model: type[Model]) -> Task:
    """The task of a class of models. Raises TypeError where it is of none."""
    for task in TASKS:
        if issubclass(model, task.model):
            return task
    raise TypeError(f"{model.__name__} must be one of {', '.join(task.model.__name__ for task in TASKS)}")


def known_options(command: str) -> dict[str, Mapping[str, Any]]:
    """The options that tasks bring to a command, each with how argparse takes it."""
    return {option: how for task in reversed(TASKS) for option, how in task.options[command].items()}


def require_options(task: Task, command: str, options: Iterable[str], run: Path) -> None:
    """Raise RunError where an option was given that is not for the task of a run."""
    for option in options:
        if option not in task.options[command]:
            owners = " or ".join(other.kind for other in TASKS if option in other.options[command])
            raise RunError(f"{option}: the run must hold a {owners}, but {run} holds a {task.kind}. Leave it out.")
