"""Recipes: one strict YAML file says all of a training.

Sections: `data`, `model`, `train`, `distillation` (optional), `evaluate`; `include: other.yaml` takes what recipes share. All
mistakes of a recipe are gathered and shown at once, each with the nearest known key. What `data` and `evaluate` hold follows from
the model: it is of a task (`hanzoo.tasks`).
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from hanzoo.errors import RecipeError, nearest
from hanzoo.models.model import Settings, TeacherSettings, model_class, model_names, objective_class
from hanzoo.tasks.catalogue import TASKS, task_of
from hanzoo.tasks.task import DataSettings, EvaluateSettings, Task
from hanzoo.training.distillation import DistillationSettings
from hanzoo.training.optimizers import scaled_rate
from hanzoo.training.trainer import TrainSettings
from hanzoo.training.trick import conflicts, trick_class, trick_names

S = TypeVar("S", bound=Settings)
SECTIONS = ("data", "model", "objective", "train", "distillation", "evaluate")


class StepSize(NamedTuple):
    """How much an optimizer step trains: `size` rows, or padded characters where the recipe limits those."""

    size: int
    unit: str


def step_size(train: TrainSettings, ranks: int) -> StepSize:
    """The size of a step over all its micro-batches and ranks."""
    micro_batches = train.accumulation * ranks
    if train.batch_characters:
        return StepSize(train.batch_characters * micro_batches, "padded characters")
    return StepSize(train.batch_size * micro_batches, "rows")


@dataclass(frozen=True)
class Recipe:
    """A recipe, checked.

    Attributes:
        name: file name without its ending.
        place: where it came from, for messages.
        data: section.
        model_name: file name in models/.
        model: the model's own settings.
        train: section.
        tricks: settings of each trick, by its file name.
        evaluate: section.
        objective_name: file name in models/objectives/; None for a task whose models bring their own loss.
        objective: the objective's own settings.
        distillation: section; None = the recipe has none.
        file_step: how much a step trains as the file has it, without the settings of the command line; None where the file
            is wrong without them.
        overridden: the settings that the command line names.
    """

    name: str
    place: str
    data: DataSettings
    model_name: str
    model: Settings
    train: TrainSettings
    tricks: Mapping[str, Settings]
    evaluate: EvaluateSettings
    objective_name: str | None = None
    objective: Settings | None = None
    distillation: DistillationSettings | None = None
    file_step: StepSize | None = None
    overridden: frozenset[str] = frozenset()

    @property
    def task(self) -> Task:
        """What the model is trained on and judged by."""
        return task_of(model_class(self.model_name), self.data)

    def to_dict(self) -> dict[str, Any]:
        """All settings, defaults included, as plain values."""
        train = self.train.model_dump(mode="json")
        train["tricks"] = {name: settings.model_dump(mode="json") for name, settings in self.tricks.items()}
        return {
            "data": {key: value for key, value in self.data.model_dump(mode="json").items() if value is not None},
            "model": {"name": self.model_name, **self.model.model_dump(mode="json")},
            **({} if self.objective is None else {"objective": self._objective()}),
            "train": train,
            **({} if self.distillation is None else {"distillation": self.distillation.model_dump(mode="json")}),
            "evaluate": self.evaluate.model_dump(mode="json"),
        }

    def _objective(self) -> dict[str, Any]:
        assert self.objective is not None
        return {"name": self.objective_name, **self.objective.model_dump(mode="json")}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), allow_unicode=True, sort_keys=False)

    def located(self) -> Recipe:
        """The same recipe with absolute paths to files and runs of one's own, so that a run finds them from any folder."""
        distillation = None if self.distillation is None else self.distillation.located()
        objective = self.objective.located() if isinstance(self.objective, TeacherSettings) else self.objective
        return replace(
            self, data=self.data.located(), train=self.train.located(), distillation=distillation, objective=objective
        )

    @property
    def teaching(self) -> TeacherSettings | None:
        """The section that names teachers; None where there are none."""
        return self.objective if isinstance(self.objective, TeacherSettings) else self.distillation

    def with_seed(self, seed: int) -> Recipe:
        values = self.to_dict()
        values["train"]["seed"] = seed
        changed = check_recipe(values, name=self.name, place=self.place)
        return replace(changed, file_step=self.file_step, overridden=self.overridden)

    def suggested_rates(self, ranks: int = 1) -> str | None:
        """A line for people where a step trains more or less than the file's learning rate was chosen for. Nothing is changed.

        Args:
            ranks: processes that train together, each with its own micro-batches.

        Returns:
            The scaled rates, or None: a step is that of the file, or the command line names the rates itself.
        """
        step, of_file, settings = step_size(self.train, ranks), self.file_step, self.train.optimizer
        if of_file is None or step.size == of_file.size or step.unit != of_file.unit:
            return None
        rates = []
        for key, name in (("learning_rate", settings.name), ("sgd_learning_rate", "sgd")):
            rate = getattr(settings, key)
            if rate is not None and f"train.optimizer.{key}" not in self.overridden:
                rates.append(f"train.optimizer.{key}={scaled_rate(name, rate, step.size, of_file.size):.3g}")
        if not rates:
            return None
        return (
            f"a step has {step.size} {step.unit}, but the rate of {self.place} is for {of_file.size}. Scaled with them (sgd in "
            f"proportion, others by the square root) it is {' '.join(rates)}"
        )


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets the last of two equal keys win in silence; a recipe does not. And 1e-3 is a number, as in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # "<<: *base"; what it brings may stand again
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"a key must be a word, but is {key!r}", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_UniqueKeyLoader.add_implicit_resolver(  # PyYAML takes 1e-3 for a word, since YAML 1.1 wants 1.0e-3
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _UniqueKeyLoader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date like 2024-13-45
        raise RecipeError(f"{where} must be YAML, but is not: {' '.join(str(error).split())}. Mend it.") from error


def bundled_recipes() -> list[str]:
    """The names of the recipes that come with hanzoo."""
    folder = importlib.resources.files("hanzoo.recipes")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check all of it.

    Args:
        recipe: a path, or the name of a bundled recipe.
        overrides: "key.sub=value" each, the value in YAML.

    Raises:
        RecipeError: with every mistake.
    """
    name, place, values = _read(recipe, ())
    sources = {f"data.{source}" for task in TASKS for source in task.data_settings.sources}
    if any(override.partition("=")[0] in sources for override in overrides):
        # another source on the command line takes the place of the recipe's, with all that belongs to it
        values["data"] = _kept(values.get("data"), overrides)
    file_step = _step_of_file(values.get("train"))
    overridden: set[str] = set()
    for override in overrides:
        overridden |= _apply(values, override)
    checked = check_recipe(values, name=name, place=place)
    return replace(checked, file_step=file_step, overridden=frozenset(overridden))


def _kept(section: Any, overrides: Sequence[str]) -> dict[str, Any]:
    """What stays of a `data` section where the overrides name another source."""
    new: dict[str, Any] = {}
    for override in overrides:
        _apply(new, override)
    if not isinstance(section, dict) or not isinstance(new["data"], dict):
        return {}
    kept = {key for task in TASKS if task.knows(new["data"]) for key in task.data_settings.kept}
    for key in sorted({key for task in TASKS for key in task.data_settings.kept} - kept - new["data"].keys()):
        if kept and section.get(key) is not None:
            raise RecipeError(
                f"data.{key}: the recipe says {section[key]!r}, but the data that the command line names has no such setting. "
                "Take another recipe."
            )
    return {key: value for key, value in section.items() if key in kept}


def _step_of_file(section: Any) -> StepSize | None:
    """What a file's `train` section means; None where the command line has to mend it first."""
    try:
        return step_size(TrainSettings.model_validate({} if section is None else section), ranks=1)
    except ValidationError:
        return None


def _read(recipe: str | Path, including: Sequence[Path]) -> tuple[str, str, dict[str, Any]]:
    path = Path(recipe)
    if path.is_file():
        text, place = _text(path), str(path)
    elif str(recipe) in bundled_recipes():
        resource = importlib.resources.files("hanzoo.recipes") / f"{recipe}.yaml"
        text, place = resource.read_text(encoding="utf-8"), f"{recipe}.yaml"
        path = Path(str(resource))
    else:
        known = bundled_recipes()
        raise RecipeError(
            f"{recipe}: a recipe must be a YAML file or one of the bundled ones, but is neither.{nearest(path.stem, known)} "
            f"Bundled: {', '.join(known)}."
        )
    values = _parse_yaml(text, f"{place}: a recipe")
    if not isinstance(values, dict):
        raise RecipeError(f"{place}: must hold the sections {', '.join(SECTIONS)}, but holds {type(values).__name__}.")
    include = values.pop("include", None)
    if include is not None:
        if path.resolve() in including:
            raise RecipeError(
                f"{place}: include must not lead back to the recipe itself, but does. Remove one include."
            )
        if not isinstance(include, str) or not (path.parent / include).is_file():
            raise RecipeError(
                f"{place}: include must be a recipe beside this one, but {include!r} is no file there. Mend its name."
            )
        _, _, base = _read(path.parent / include, (*including, path.resolve()))
        values = _merge(base, values)
    return path.stem, place, values


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: a recipe must be UTF-8 text, but cannot be read ({error}).") from error


def _merge(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply(values: dict[str, Any], override: str) -> set[str]:
    """Put a setting of the command line into a recipe's values; returns the settings that it names."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"command line: a setting must be key.sub=value, but is {override!r}.")
    *parents, last = path.split(".")
    section = values
    for parent in parents:
        if section.get(parent) is None:  # absent, or a heading with nothing below it
            section[parent] = {}
        inner = section[parent]
        if not isinstance(inner, dict):
            raise RecipeError(f"command line: {path} must name a setting, but {parent} is a value, not a section.")
        section = inner
    section[last] = _parse_yaml(text, f"command line: the value of {path}")
    return set(_settings_in(path, section[last]))


def _settings_in(path: str, value: Any) -> Iterator[str]:
    """The settings of a value: itself, or those of a section."""
    if not isinstance(value, dict):
        yield path
        return
    for key, inner in value.items():
        yield from _settings_in(f"{path}.{key}", inner)


def check_recipe(values: Mapping[str, Any], *, name: str, place: str) -> Recipe:
    """Check the sections of a recipe. Raises RecipeError with every mistake at once."""
    mistakes: list[str] = []
    for key in values:
        if key not in SECTIONS:
            mistakes.append(f"{key} is not a section.{nearest(str(key), SECTIONS)} Known: {', '.join(SECTIONS)}.")
    sections: dict[str, dict[str, Any]] = {}
    for key in SECTIONS:
        section = {} if values.get(key) is None else values[key]
        if not isinstance(section, dict):
            mistakes.append(f"{key} must be a section, but is {section!r}.")
            section = {}
        sections[key] = dict(section)

    model_name = sections["model"].pop("name", None)
    cls = model_class(model_name) if model_name in model_names() else None
    # an unknown model leaves its task open: it is taken for one of the first, so that the rest is checked all the same
    task = TASKS[0] if cls is None else task_of(cls, sections["data"])
    data = _check(task.data_settings, sections["data"], "data", mistakes)
    model = None
    if cls is not None:
        model = _check(cls.Config, sections["model"], "model", mistakes)
    else:
        known = model_names()
        mistakes.append(
            f"model.name must be one of {', '.join(known)}, but is {model_name!r}.{nearest(str(model_name), known)}"
        )
    objective_name, objective = _check_objective(task, values.get("objective"), sections["objective"], mistakes)
    train = _check(TrainSettings, sections["train"], "train", mistakes)
    tricks: dict[str, Settings] = {}
    if train is not None:
        for trick, section in train.tricks.items():
            if trick not in trick_names():
                known = trick_names()
                mistakes.append(
                    f"train.tricks.{trick} is not a trick.{nearest(trick, known)} Known: {', '.join(known)}."
                )
                continue
            settings = _check(trick_class(trick).Settings, section or {}, f"train.tricks.{trick}", mistakes)
            if settings is not None:
                tricks[trick] = settings
            if trick_class(trick).needs_start and train.start_from is None:
                mistakes.append(
                    f"train.tricks.{trick} needs a trained model that the training goes on from, but train.start_from is not set. "
                    f"Set train.start_from=RUN, or remove train.tricks.{trick}."
                )
        mistakes.extend(conflicts(tricks, {"model": model, "train": train}))
        if objective_name is not None:
            mistakes.extend(_whole_batches(objective_name, train))
            mistakes.extend(
                f"train.tricks.{trick} must be left out with the objective {objective_name}: {reason}. Remove the trick, or take "
                "another objective."
                for trick, reason in objective_class(objective_name).refuses.items()
                if trick in tricks
            )
    distillation = None
    if values.get("distillation") is not None and task.objectives:
        mistakes.append(
            f"distillation is a section for models that bring their own loss; a {task.kind} learns from a teacher by "
            "objective.name=distillation (or margin_mse) and objective.teacher. Remove it."
        )
    elif values.get("distillation") is not None:
        distillation = _check(DistillationSettings, sections["distillation"], "distillation", mistakes)
    evaluate = _check(task.evaluate_settings, sections["evaluate"], "evaluate", mistakes)
    if mistakes:
        raise RecipeError("\n".join(f"{place}: {mistake}" for mistake in mistakes))
    assert data is not None
    assert model is not None
    assert train is not None
    assert evaluate is not None
    return Recipe(
        name, place, data, str(model_name), model, train, tricks, evaluate, objective_name, objective, distillation
    )


def _check_objective(
    task: Task, given: Any, section: dict[str, Any], mistakes: list[str]
) -> tuple[str | None, Settings | None]:
    known = task.objectives
    if not known:
        if given is not None:
            mistakes.append(f"objective is a section for models that compare texts; a {task.kind} has none. Remove it.")
        return None, None
    name = section.pop("name", None)
    if name not in known:
        mistakes.append(
            f"objective.name must be one of {', '.join(known)}, but is {name!r}.{nearest(str(name), known)}"
        )
        return None, None
    return name, _check(objective_class(name).Settings, section, "objective", mistakes)


def _whole_batches(objective: str, train: TrainSettings) -> Iterator[str]:
    """What of a `train` section cuts the batches of an objective that compares all of a batch."""
    cls = objective_class(objective)
    if not cls.decomposes and train.accumulation > 1:
        yield (
            f"train.accumulation must be 1 with the objective {objective}, but is {train.accumulation}: it compares the items of a "
            "batch with each other, and would compare fewer. Raise train.batch_size, with model.rows_at_once for the memory."
        )
    if train.batch_size < cls.least_items:
        yield (
            f"train.batch_size must be {cls.least_items} or more with the objective {objective}, but is {train.batch_size}: it "
            "compares the items of a batch with each other. Raise it."
        )


def _check(settings: type[S], values: Mapping[str, Any], where: str, mistakes: list[str]) -> S | None:
    try:
        return settings.model_validate(dict(values))
    except ValidationError as error:
        mistakes.extend(_describe(settings, where, error))
        return None


def _describe(settings: type[BaseModel], where: str, error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        section, place, choices = _locate(settings, item["loc"])
        path = ".".join([where, *place])
        if item["type"] == "extra_forbidden":
            known = [] if section is None else list(section.model_fields)
            parent = path.rpartition(".")[0]
            kind = getattr(section, "model_fields", {}).get("name")
            chosen = f" ({kind.default})" if kind is not None and choices else ""
            others = [name for name, other in choices.items() if place[-1] in other.model_fields]
            belongs = f" It belongs to {', '.join(others)}." if others else nearest(place[-1], known)
            yield (
                f"{path} is not a setting of {parent}{chosen}.{belongs} Known: {', '.join(sorted(known)) or 'none'}."
            )
        elif item["type"] == "union_tag_invalid":
            given = item["ctx"]["tag"]
            if isinstance(item["input"], Mapping):
                yield f"{path}.name must be one of {', '.join(choices)}, but is {given!r}.{nearest(given, choices)}"
            else:
                yield f"{path}: must be a section, but is {item['input']!r}."
        elif item["type"] == "section":  # of a validator of ours, for the section as a whole
            yield f"{path} {item['msg']}"
        elif item["type"] == "value_error":  # of a validator of ours: it begins with the setting's name, and says all
            yield f"{path}.{item['ctx']['error']}"
        else:
            message = item["msg"][0].lower() + item["msg"][1:]
            yield f"{path}: {message.replace('input should be', 'must be')}, but is {item.get('input')!r}."


def _locate(
    settings: type[BaseModel], location: Sequence[int | str]
) -> tuple[type[BaseModel] | None, list[str], dict[str, type[BaseModel]]]:
    """Where an error lies: the section around it, its path as the recipe writes it, and the sections to choose from by name.

    pydantic puts the chosen section's name into the location, where a section is one of several; the recipe has none there.
    """
    section: type[BaseModel] | None = settings
    path: list[str] = []
    choices: dict[str, type[BaseModel]] = {}
    for part in map(str, location):
        if section is None and part in choices:
            section = choices[part]
            continue
        path.append(part)
        annotation = section.model_fields[part].annotation if section and part in section.model_fields else None
        if annotation is None:
            continue
        kinds = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in get_args(annotation)]
        sections = [kind for kind in (annotation, *kinds) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        choices = {kind.model_fields["name"].default: kind for kind in sections if len(sections) > 1}
        section = sections[0] if len(sections) == 1 else None
    return section, path, choices
