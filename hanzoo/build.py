"""The one place that knows all parts: recipe -> data, model, trainer, evaluation, run directory."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

import hanzoo
from hanzoo.data.batching import repeat_factors
from hanzoo.data.catalogue import find_texts, plain_sha256
from hanzoo.data.files import PARTIAL, expanded, write_file
from hanzoo.data.randomness import reseed
from hanzoo.errors import DataError, HanzooError, RecipeError, RunError
from hanzoo.evaluation.report import learning_curve
from hanzoo.models.model import Matcher, Model, TargetForm, TeacherSettings, load_model, model_class
from hanzoo.recipe import Recipe, bundled_recipes, load_recipe
from hanzoo.tasks.catalogue import TASKS, require_options, task_for_file, tasks_of
from hanzoo.tasks.task import Data, DataSettings, Report, Say, Subject, Task
from hanzoo.training.checkpoint import (
    GO_ON,
    LOCK,
    clear_leftovers,
    locked,
    state_folders,
    tensors_sha256,
    write_folder,
)
from hanzoo.training.distillation import (
    Distillation,
    SoftTargets,
    common_form,
    describe_targets,
    ensure_targets,
)
from hanzoo.training.distributed import joined, local_device, num_ranks, on_first, rank
from hanzoo.training.event_files import require_tensorboard
from hanzoo.training.progress import peak_gigabytes
from hanzoo.training.trainer import Trainer
from hanzoo.training.trick import Start, Trick, build_tricks

# Training.


def train(
    recipe: str | Path | Recipe,
    *overrides: str,
    run: str | Path | None = None,
    resume: bool = False,
    command: str = "",
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Train a recipe and evaluate it.

    Args:
        recipe: path or name of a recipe, or one that is checked already.
        overrides: "key.sub=value" each.
        run: the run directory; `runs/<recipe>` if not given.
        resume: go on with the run that is there.
        command: how to have these figures again, kept beside them; if not given, made from recipe and overrides.
        say: gets lines for people.

    Returns:
        What results.json of the run holds.

    Raises:
        HanzooError: the recipe, the data or the run directory is not what it must be, or there is no room.
        Interrupted: a signal came; the state is saved.
    """
    if not isinstance(recipe, Recipe):
        command = command or shlex.join(["python", "train.py", str(recipe), *overrides])
        recipe = load_recipe(recipe, overrides)
    recipe = recipe.located()
    folder = Path(run) if run is not None else Path("runs") / recipe.name
    device = choose_device(recipe.train.device)
    with joined(device.type), settings_of_training(recipe, device), contextlib.ExitStack() as held:
        on_first(lambda: _take_run(held, folder, recipe, resume))
        return _train(recipe, folder, resume, device, command, say if rank() == 0 else lambda line: None)


@contextlib.contextmanager
def settings_of_training(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Torch as a training needs it: deterministic, with the recipe's threads. Afterwards it is as the caller had it."""
    memory = torch.utils.deterministic
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns, fills, threads = (
        torch.is_deterministic_algorithms_warn_only_enabled(),
        memory.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.get_num_threads(),
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            torch.use_deterministic_algorithms(True)
            # nothing reads such memory; filling it costs a tenth of a step
            memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            if recipe.train.threads:
                torch.set_num_threads(recipe.train.threads)
            yield
        finally:
            torch.set_num_threads(threads)
            memory.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
            torch.use_deterministic_algorithms(deterministic, warn_only=warns)


def _take_run(held: contextlib.ExitStack, folder: Path, recipe: Recipe, resume: bool) -> None:
    """Check the run directory, and hold it from here on."""
    check_run(folder, recipe, resume)  # before anything is written to it
    held.enter_context(locked(folder))
    check_run(folder, recipe, resume)  # another may have been quicker
    clear_leftovers(folder)


@dataclass(frozen=True)
class Training:
    """What a training consists of; nothing has been written yet.

    Attributes:
        task: of the model.
        data: read and checked.
        model: on its device.
        trainer: of the model.
        labelled: the training items with gold, in the trainer's order; what a lesson adds comes after them.
        lesson: what distillation adds; None without it.
        inputs: files and models that went in, beside the data -> sha256.
    """

    task: Task
    data: Data
    model: Model
    trainer: Trainer
    labelled: Sequence[Any]
    lesson: Lesson | None
    inputs: Mapping[str, str]

    def ensure_files(self, folder: Path, say: Say) -> None:
        """Have in the run directory `folder` what other models found in the data, or say of it; before the first step."""
        self.task.keep(self.data, folder)
        if self.lesson is None:
            return
        self.lesson.ensure_targets(folder / "targets", self.labelled, self.model.device, say)
        if isinstance(self.model, Matcher) and self.model.objective is not None:
            self.model.objective.targets = SoftTargets(folder / "targets")


def prepare(recipe: Recipe, folder: Path, resume: bool, device: torch.device, say: Say) -> Training:
    """Read the data, build the model and its trainer; go on from the state in `folder` if `resume`.

    Raises:
        HanzooError: the recipe, the data or the state is not what it must be.
    """
    if recipe.train.tensorboard:
        require_tensorboard()
    if not resume and recipe.train.precision == "bfloat16" and device.type == "cpu" and not computes_bfloat16():
        say(
            "bfloat16: this processor can only imitate it, which may take several times as long. Set train.precision=float32."
        )
    task, data = recipe.task, load_data(recipe)
    for note in data.notes:
        say(note)
    task.check(recipe.evaluate, data, recipe.place)
    data = task.ready(data, recipe.data, folder, lambda run: load_of(task, run).to(device), say)
    model, start = first_model(recipe, data, folder, say)
    if recipe.objective_name is not None and recipe.objective is not None:
        task.aim(model, recipe.objective_name, recipe.objective, data)
    model.to(device)
    for note in model.notes:
        say(note)
    task.restrict(model, data)
    labelled = task.training_items(data, say)
    features = [model.featurize(item) for item in labelled]
    if recipe.train.oversample:
        repeats = repeat_factors([task.classes(item) for item in labelled], recipe.train.oversample)
        say(f"over-sampling: an epoch trains {sum(repeats):.0f} {task.items} instead of {len(repeats)}")
        if getattr(recipe.model, "class_weights", 0.0):
            say("train.oversample and model.class_weights both raise rare classes: half the weights do beside it")
    else:
        repeats = None
    inputs = dict(model.inputs)
    tricks: list[Trick] = build_tricks(recipe.tricks)
    lesson = None if recipe.teaching is None else prepare_lesson(recipe, recipe.teaching, data, model, say)
    if lesson is not None:
        features += [model.featurize(item) for item in lesson.unlabelled]
        repeats = None if repeats is None else [*repeats, *(1.0 for _ in lesson.unlabelled)]
        inputs |= lesson.inputs
        if recipe.distillation is not None:  # else the objective looks up what the teachers say
            tricks.append(Distillation(recipe.distillation, folder / "targets", len(labelled)))
    trainer = Trainer(
        model,
        features,
        recipe.train,
        tricks,
        task.dev_evaluation(model, data.dev, data),
        recipe.evaluate.metric,
        folder,
        identity(data, model, inputs),
        resume,
        repeats,
        start,
    )
    return Training(task, data, model, trainer, labelled, lesson, inputs)


def _train(recipe: Recipe, folder: Path, resume: bool, device: torch.device, command: str, say: Say) -> dict[str, Any]:
    finished = on_first(lambda: _finished(folder))
    if finished is not None:
        say(f"{folder}: is finished already")
        return finished
    code = commit()  # now: the files may change while it trains
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # an earlier seed's is not this one's
    training = prepare(recipe, folder, resume, device, say)
    task, data, model, trainer = training.task, training.data, training.model, training.trainer
    # nothing is written before the last mistake of a recipe can be found
    on_first(lambda: _begin_run(folder, recipe, model))
    suggestion = recipe.suggested_rates(num_ranks())
    if suggestion:
        say(suggestion)
    say(
        f"{recipe.name}: {len(trainer.features)} {task.items}, {sum(p.numel() for p in model.parameters()):,} weights, "
        f"{trainer.num_steps} steps on {describe_device(device)}; run directory {folder}"
    )
    training.ensure_files(folder, say)
    progress = trainer.fit()
    calibration = task.calibrate(model, data.dev, recipe.evaluate, data) if recipe.evaluate.calibrate else None
    on_first(lambda: write_folder(folder / "model", model.save))
    results: dict[str, Any] = {
        "recipe": recipe.name,
        "model": recipe.model_name,
        "command": command,
        "commit": code,
        "seed": recipe.train.seed,
        "data": task.describe(data),
        "inputs": dict(training.inputs),
        "selected_on": data.dev_source,
        "metric": recipe.evaluate.metric,
        "best_epoch": progress.best_epoch,
        "best_step": progress.best_step,
        "steps": progress.step,
        "nonfinite_steps": progress.nonfinite,
        "minutes": round(progress.seconds / 60, 2),
        "items_per_second": round(progress.trained_items / max(progress.training_seconds, 1e-9), 1),
        "peak_gb": round(peak_gigabytes(device), 2),
        "machine": describe_machine(device),
        "versions": versions(model),
        "weights_sha256": tensors_sha256(model.state_dict()),
        "splits": {
            name: task.figures(model, data.split(name), data) for name in ("dev", "test") if name == "dev" or data.test
        },
    }
    if training.lesson is not None:
        results["distillation"] = training.lesson.describe(len(training.labelled))
    if calibration is not None:
        results["calibration"] = calibration

    def finish() -> dict[str, Any]:
        write_report(folder, recipe, results)
        write_results(folder, results)  # last: it says "finished"
        return results

    return on_first(finish)


def _begin_run(folder: Path, recipe: Recipe, model: Model) -> None:
    if not (folder / "recipe.yaml").is_file():
        write_file(folder / "recipe.yaml", recipe.to_yaml())
    if recipe.train.start_from is not None and not state_folders(folder / "state"):

        def write(target: Path) -> None:
            model.save(target)
            write_file(target / INPUTS_FILE, json.dumps(dict(model.inputs), ensure_ascii=False, indent=1) + "\n")

        write_folder(folder / "start", write)


INPUTS_FILE = "inputs.json"  # in start/: `inputs` of the model, which a model folder does not hold


def first_model(recipe: Recipe, data: Data, folder: Path, say: Say = lambda line: None) -> tuple[Model, Start | None]:
    """The model that a run begins with, on the CPU, and what it goes on from (None: nothing).

    A run that goes on from another needs that one until its own first state is saved. From then on `start/` is its beginning.

    Raises:
        RunError: the run of `train.start_from` is missing or damaged.
        RecipeError: its model is another one, or has other sizes.
    """
    cls = model_class(recipe.model_name)
    reseed(recipe.train.seed, "weights")
    if recipe.train.start_from is None:
        return cls.build(recipe.model, data), None
    old = Path(recipe.train.start_from)
    if on_first(lambda: bool(state_folders(folder / "state"))):
        # as it began, and with what the data decides and a model folder does not hold (class weights)
        model = cls.continue_from(recipe.model, load_model(folder / "start"), data)
        model.inputs, model.notes = read_json(folder / "start" / INPUTS_FILE), ()
    else:
        previous = load(old)
        if type(previous) is not cls:
            name = type(previous).__module__.rpartition(".")[2]
            raise RecipeError(
                f"{recipe.place}: model.name must be {name} as in {old}, but is {recipe.model_name}. "
                f"Set model.name={name}, or train without train.start_from."
            )
        model = cls.continue_from(recipe.model, previous, data)
        model.inputs = {"start_from": tensors_sha256(previous.state_dict()), **model.inputs}
    old_run = old if (old / "recipe.yaml").is_file() else old.parent

    def old_data() -> Data:
        say(f"{old_run}: reading what it was trained on")
        return load_data(read_recipe(old_run))

    return model, recipe.task.start(model, functools.cache(old_data))


def train_seeds(
    recipe: Recipe, seeds: Sequence[int], *, run: Path, resume: bool, command: str, say: Say
) -> dict[str, Any]:
    """Train one run a seed in `run/seed-<n>`; a finished one is not trained again."""
    recipe = recipe.located()
    check_seeds(recipe, seeds, run, resume)  # all of them before hours go into the first
    runs = {}
    for seed in seeds:
        folder = run / f"seed-{seed}"
        going_on = resume and not is_new(folder)
        runs[str(seed)] = train(recipe.with_seed(seed), run=folder, resume=going_on, command=command, say=say)
    for path in seed_folders(run):  # seeds of earlier calls stay part of the run
        earlier = _finished(path)
        if earlier is not None:
            runs.setdefault(str(earlier["seed"]), earlier)
    results = {"recipe": recipe.name, "seeds": [int(seed) for seed in runs], "runs": runs}
    write_results(run, results)
    learning_curve(
        [read_metrics(run / f"seed-{seed}") for seed in runs],
        run / "curve.svg",
        title=recipe.name,
        metric=recipe.task.figure,
        names=[f"seed {seed}" for seed in runs],
    )
    return results


def check_seeds(recipe: Recipe, seeds: Sequence[int], run: Path, resume: bool) -> None:
    """Raise RunError unless one run a seed can be trained in `run`, or gone on with."""
    if (run / "recipe.yaml").is_file():
        raise RunError(f"{run}: must be a directory of several seeds, but holds a single run. Name another by --run.")
    for seed in seeds:
        folder = run / f"seed-{seed}"
        check_run(folder, recipe.with_seed(seed), resume and not is_new(folder))


def _finished(folder: Path) -> dict[str, Any] | None:
    """What a finished run left; None where it has not finished, or its results.json is damaged: then it is made again."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return results if isinstance(results, dict) and "splits" in results else None


def is_new(folder: Path) -> bool:
    """Whether a run directory is absent or empty; a process that was killed at once may have left its lock, or half a file."""
    return not folder.is_dir() or all(path.name == LOCK or path.suffix == PARTIAL for path in folder.iterdir())


def check_run(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Raise RunError unless a run directory is new, or with `resume` one of the same recipe."""
    if folder.name in ("", ".."):
        raise RunError(
            f"{folder}: a run directory must have a name of its own, but has none. Name it: --run runs/NAME."
        )
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: a run directory must be a directory, but is a file. Name another by --run.")
    if is_new(folder):
        if resume:
            raise RunError(f"{folder}: the run to go on with must be there, but is not. Start it without --resume.")
        return
    if not resume:
        raise RunError(
            f"{folder}: the run directory must be new, but is there already. Go on with it by --resume, or name another by --run."
        )
    saved = read_recipe(folder).located().to_dict()
    differences = _differences(saved, recipe.to_dict())
    if differences:
        raise RunError(
            f"{folder}: --resume must go on with the same recipe, but it differs in {'; '.join(differences)}. "
            "Give the same settings, or start another run with --run."
        )


MAY_DIFFER = (
    "train.device",
    "train.threads",
    "train.log_every",
    "train.tensorboard",
    "train.save_every",
)  # the first two are said, by `identity`


def _differences(saved: Mapping[str, Any], given: Mapping[str, Any], where: str = "") -> list[str]:
    found: list[str] = []
    for key in sorted({*saved, *given}):
        if f"{where}{key}" in MAY_DIFFER:
            continue
        old, new = saved.get(key), given.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found.extend(_differences(old, new, f"{where}{key}."))
        elif old != new:
            found.append(f"{where}{key} (was {old!r}, is {new!r})")
    return found


def choose_device(name: str) -> torch.device:
    """The device of a name: auto takes CUDA where it is there, else the CPU.

    Raises:
        RunError: it is not there, or is MPS: that has no float64, which the CRF and the sums of a training are kept in.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(local_device(name))
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise RunError(f"train.device: must be auto, cpu, cuda or cuda:N, but is {name!r}. Use --device cpu.")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RunError(f"train.device: {name!r} must be there, but this torch finds none. Use --device cpu.")
        if (device.index or 0) >= torch.cuda.device_count():
            raise RunError(
                f"train.device: must be cuda:0 to cuda:{torch.cuda.device_count() - 1}, but is {name!r}. Use --device cuda."
            )
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    return device


# Distillation.


@dataclass(frozen=True)
class Lesson:
    """What teachers add to a training.

    Attributes:
        settings: the recipe's section that names them.
        task: of the student and of its teachers.
        data: of the student.
        form: of the soft targets.
        teachers: name, as in `inputs` -> run directory.
        unlabelled: further items.
        inputs: what it is made from: teacher or file -> sha256.
    """

    settings: TeacherSettings
    task: Task
    data: Data
    form: TargetForm
    teachers: Mapping[str, Path]
    unlabelled: Sequence[Any]
    inputs: Mapping[str, str]

    def ensure_targets(self, folder: Path, labelled: Sequence[Any], device: torch.device, say: Say) -> None:
        """Have in `folder` what the teachers say of all training items: those with gold, then the others."""
        items = [self.task.without_gold(item) for item in (*labelled, *self.unlabelled)]
        texts = [self.task.text(item) for item in items]
        say(f"soft targets of {len(self.teachers)} teacher(s) for {len(texts)} texts: {folder}")
        temperature = self.settings.target_temperature
        facts = describe_targets(self.form, temperature, [self.inputs[name] for name in self.teachers], texts)

        def load_teachers() -> list[Model]:
            found = [load_of(self.task, run).to(device) for run in self.teachers.values()]
            for teacher in found:
                self.task.restrict(teacher, self.data)
            return found

        ensure_targets(folder, facts, load_teachers, items)

    def describe(self, num_labelled: int) -> dict[str, Any]:
        """What stands in results.json."""
        return {
            "teachers": [str(run) for run in self.teachers.values()],
            **self.settings.model_dump(exclude={"teacher", "unlabelled", "format"}),
            "labelled": num_labelled,
            "unlabelled": len(self.unlabelled),
        }


def prepare_lesson(recipe: Recipe, settings: TeacherSettings, data: Data, student: Model, say: Say) -> Lesson:
    """Read the texts of a recipe's distillation, look at its teachers, and check that they may be used.

    Raises:
        RecipeError: a teacher teaches what the student does not learn, or was trained on what the student is judged by.
        RunError: a teacher cannot be loaded.
        DataError: a file of texts is missing or damaged, or leaves nothing.
    """
    task = recipe.task
    runs = [run for name in settings.teachers for run in seed_folders(expanded(name)) or [expanded(name)]]
    teachers, inputs, form = {}, {}, None
    for number, run in enumerate(runs, start=1):
        teacher = load_of(task, run)
        form = common_form(student, str(run), teacher)
        task.teach(teacher, student, data)
        _refuse_leak(run, recipe, data, say)
        teachers[f"teacher {number}"] = run
        inputs[f"teacher {number}"] = tensors_sha256(teacher.state_dict())
    assert form is not None  # a recipe names one teacher at least
    judged = {task.text(item) for item in (*data.dev, *(data.test or ()))}
    unlabelled: list[Any] = []
    files, format = (
        ((), None) if recipe.distillation is None else (recipe.distillation.files, recipe.distillation.format)
    )
    for number, file in enumerate(files, start=1):
        path = find_texts(file)
        inputs[f"unlabelled {number} ({path.name})"] = plain_sha256(path)
        found = task.read_texts(path, format)
        kept = [item for item in found if task.text(item) not in judged]
        left_out = f", {len(found) - len(kept):,} left out that stand in dev or test" if len(kept) < len(found) else ""
        say(f"{path.name}: {len(kept):,} texts to learn from the teacher{left_out}")
        if not kept:
            raise DataError(f"{path}: must hold texts that are not in dev or test, but holds none. Give another file.")
        unlabelled += kept
    return Lesson(settings, task, data, form, teachers, unlabelled, inputs)


def _refuse_leak(run: Path, recipe: Recipe, data: Data, say: Say) -> None:
    """Refuse a teacher that was trained on items by which its student is judged: their gold would leak into the figure."""
    try:
        taught_by = read_recipe(run)
        theirs = data if taught_by.data == recipe.data else load_data(taught_by)
    except HanzooError as error:
        say(f"{run}: what the teacher was trained on is not known here ({error})")
        return
    assert recipe.teaching is not None
    task, section = recipe.task, recipe.teaching.section
    known = set(map(task.text, theirs.train)) - set(map(task.text, data.train))
    for split, items in (("dev", data.dev), ("test", data.test or ())):
        leaked = sum(task.text(item) in known for item in items)
        if leaked:
            raise RecipeError(
                f"{recipe.place}: {section}.teacher must not have been trained on the student's {split}, but {run} was, on "
                f"{leaked:,} of its {len(items):,} {task.items}. Train the teacher on the student's data (data.*)."
            )


# Evaluation.


def evaluate(
    run: str | Path,
    split: str | None = None,
    against: str | Path | None = None,
    data: str | None = None,
    scorers: Sequence[str] = (),
) -> dict[str, Any]:
    """The figures of a run's model on a split of its data, 0 to 1.

    Args:
        run: a run directory; one with several seeds gives a list of values, one a seed.
        split: train, dev or test; the test split where the run's data has one with labels, else dev.
        against: another run, of as many seeds, on the same sentences; the key "against" then holds what
            `hanzoo.evaluation.significance` says of the difference of F1.
        data: a data set by name, or a recipe with one, instead of the run's; only its labels take part.
        scorers: names of `hanzoo.evaluation.scorers`; the key "scorers" then holds the figures of each.

    Raises:
        HanzooError: a run or its data is missing or damaged, the two runs cannot be compared, or a scorer is not known or
            cannot score these predictions.
    """
    options = {"--scorer": scorers} if scorers else {}
    other = None if against is None else evaluate_run(against, split=split, data_of=data, options=options)
    return evaluate_run(run, split=split, data_of=data, against=other, options=options).to_json()


def evaluate_run(
    run: str | Path,
    *,
    split: str | None = None,
    file: Path | None = None,
    format: str | None = None,
    data_of: str | None = None,
    against: Report | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    say: Say = lambda line: None,
) -> Report:
    """Evaluate the model(s) of a run on a split of its data, of other data, or on a labelled file, and compare it.

    Args:
        run: the run directory.
        split: train, dev or test; the test split where there is one with labels, else dev.
        file: items with their gold.
        format: of the file; None = recognised.
        data_of: a data set by name, or a recipe (of a run, too) whose data is taken, instead of the run's own.
        against: another run, evaluated on the same.
        options: of `evaluate.py`, that belong to the run's task ("--scorer") -> value.
        say: gets lines for people.

    Raises:
        HanzooError: the run, its data or the file is missing or damaged, or is not what `against` can be compared with; an option
            is not for this task, or not for these models.
    """
    folder = Path(run)
    seeds = seed_folders(folder) or [folder]
    if against:
        _require_as_many_seeds(folder, seeds, against)
    recipe = read_recipe(seeds[0])
    task = recipe.task
    if data_of is not None:
        recipe = replace(recipe, data=_data_settings(recipe, data_of))
        task = recipe.task
    elif file is not None and not task.takes_file(str(file)):
        task = task_for_file(model_class(recipe.model_name), str(file))
    require_options(task, "evaluate", options, folder)
    settings = recipe.data if isinstance(recipe.data, task.data_settings) else None
    data: Data | None = None
    if file is not None:
        try:
            data = load_data(recipe) if task is recipe.task else None
        except DataError:
            say(f"{folder}: its data is not there, so nothing is said of what stands in train")
        name, items = str(file), task.read_labelled(file, format, settings)
    else:
        data = load_data(recipe)
        name = split or ("test" if data.test else "dev")
        items = data.split(name)
    results = [read_json(each / "results.json") for each in seeds if (each / "results.json").is_file()]
    subject = Subject(folder, name, items, data, settings, file is None, data_of is not None, results)
    if against:
        require_kind(task, folder, against)
        task.require_same(subject, against.subject)
    report = task.report(subject, (load_of(task, each) for each in seeds), options)
    return replace(report, against=(against, report.compare(against))) if against else report


def _data_settings(recipe: Recipe, name: str) -> DataSettings:
    """The section `data` of a data set by name, or of a recipe, which a run's model can be judged on."""
    known = tasks_of(model_class(recipe.model_name))
    for task in sorted(known, key=lambda task: task is not recipe.task):
        if task.knows({"name": name}):
            return task.data_settings.model_validate({"name": name})
    names = ", ".join(each for task in known for each in sorted(task.data_settings.names))
    for task in TASKS:
        if name in task.data_settings.names:
            raise RunError(
                f"--data: must be data of a {recipe.task.kind}, but {name} is of a {task.kind}. Take one of {names}."
            )
    if not Path(name).is_file() and name not in bundled_recipes():
        raise RunError(f"--data: must be a recipe or one of {names}, but {name!r} is neither. Mend the name.")
    other = load_recipe(name)
    if other.task not in known:
        raise RunError(
            f"--data: must be data of a {recipe.task.kind}, but {name} is of a {other.task.kind}. Name another."
        )
    return other.data


def require_kind(task: Task, run: Path, other: Report) -> None:
    """Raise RunError unless a run is of the task of one that it stands beside."""
    if task is not other.task:
        raise RunError(
            f"{run}: must hold a {other.task.kind} as {other.subject.run} does, but holds a {task.kind}. Evaluate them apart."
        )


def _require_as_many_seeds(folder: Path, seeds: Sequence[Path], against: Report) -> None:
    # Seeds are paired; and the mean of three seeds varies less than one seed, which alone would make sides unlike.
    wanted = len(against.figures)
    if len(seeds) != wanted:
        raise RunError(
            f"{folder}: seeds must be as many as in {against.subject.run} ({wanted}), but are {len(seeds)}. Train those that are "
            "missing: python train.py RECIPE --seeds 1,2,... --run DIR; or compare single ones: DIR/seed-1."
        )


def write_submission(run: Path, output: Path) -> None:
    """Write the leaderboard's file: what a run finds in the items whose gold is not published.

    Raises:
        RunError: the run's data has no leaderboard, or the run holds several seeds.
    """
    if seeds := seed_folders(run):
        raise RunError(
            f"{run}: a submission must be of one run, but this holds several seeds. Name one of them: {seeds[0]}."
        )
    recipe = read_recipe(run)
    require_options(recipe.task, "evaluate", ["--submission"], run)
    recipe.task.write_submission(run, load_of(recipe.task, run), load_data(recipe), output)


def record_figure(report: Report, path: Path, variant: str, say: Say) -> None:
    """Write what a figure of recipes/README.md is made from (the files of recipes/results/).

    Its command names the seeds that are recorded, which may be fewer than were asked for when the training began.
    Keys of the file that are already there and not measured (published, asked, note, headline) are kept.

    Raises:
        RunError: a seed has not finished, or the run that it was compared with is not recorded in the same folder.
    """
    _require_finished(report)
    subject = report.subject
    data, results, first = subject.data, subject.results, subject.results[0]
    if data is None or (not subject.elsewhere and dict(data.hashes) != first["data"]["sha256"]):
        raise RunError(f"{subject.run}: the data must be what the run was trained on, but differs. Restore it.")
    for name in (first["data"]["name"], data.name):
        if name.endswith("-unofficial"):
            raise RunError(
                f"{subject.run}: a figure must be of official data, but {name} is not. Get the official files."
            )
    record = {
        "recipe": first["recipe"],
        "variant": variant,
        "command": with_seeds(first["command"], [result["seed"] for result in results]),
        "data": data.name,
        "view": report.task.describe(data).get("view", ""),
        "data_sha256": dict(data.hashes),
        "split": _filed_split(subject),
        "selected_on": f"{first['data']['name']} {first['selected_on']}" if subject.elsewhere else first["selected_on"],
        "seeds": [result["seed"] for result in results],
        "best_epochs": [result["best_epoch"] for result in results],
        **report.recorded(),
        # it was measured on the dev of the run's own data
        "calibration": [] if subject.elsewhere else [result.get("calibration") for result in results],
        "inputs": first["inputs"],
        "minutes": round(statistics.fmean(result["minutes"] for result in results), 2),
        "peak_gb": max(result["peak_gb"] for result in results),
        # a run of an earlier version counted what its loss was of, which for CoSENT is batches
        "sentences_per_second": [result["items_per_second"] for result in results if "items_per_second" in result],
        "machine": first["machine"],
        "versions": first["versions"],
        "weights_sha256": [result["weights_sha256"] for result in results],
        "commit": first["commit"],
    }
    if report.against:
        other, comparison = report.against
        record["against"] = _recorded(other, path.parent) | comparison.to_json()
    if path.is_file():
        before = read_json(path)
        record |= {key: before[key] for key in ("published", "asked", "note", "headline") if key in before}
    on_first(lambda: write_file(path, json.dumps(record, ensure_ascii=False, indent=1) + "\n"))
    changed = [result["commit"] for result in results if not result["commit"] or result["commit"].endswith("+")]
    if changed:
        say(
            f"{path}: a figure must come from a commit, but this one's code was {changed[0] or 'in none'}"
            f"{', changed since' if changed[0] else ''}. Commit it and train again, so that others can have the figure too."
        )


def with_seeds(command: str, seeds: Sequence[int]) -> str:
    """A training command with these numbers behind `--seeds`; one without `--seeds` as it is.

    A run that was started with more seeds than are recorded would promise figures that are not there.
    """
    words = shlex.split(command)
    for at, word in enumerate(words[:-1]):
        if word == "--seeds":
            words[at + 1] = ",".join(map(str, seeds))
            return shlex.join(words)
    return command


def _require_finished(report: Report) -> None:
    lacking = len(report.figures) - len(report.subject.results)
    if lacking:
        raise RunError(f"{report.subject.run}: all seeds must have finished, but {lacking} have no results.json.")


def _filed_split(subject: Subject) -> str:
    # where dev was cut from train, the official dev is what is reported on
    official_dev = subject.split == "test" and subject.data is not None and subject.data.test_source == "dev"
    return "dev" if official_dev else subject.split


def _recorded(report: Report, folder: Path) -> dict[str, Any]:
    """Under which recipe and variant a run's figure is filed. No run knows its variant: the weights must say, and the figure,
    where several are of the same weights (behind a first stage, and without it).
    """
    _require_finished(report)
    subject = report.subject
    weights = [result["weights_sha256"] for result in subject.results]
    wanted = (weights, subject.data.name if subject.data else None, _filed_split(subject))
    records = [record for path in sorted(folder.glob("*.json")) if isinstance(record := read_json(path), dict)]
    known = [
        record
        for record in records
        if (record.get("weights_sha256"), record.get("data"), record.get("split")) == wanted
    ]
    mine = report.recorded()

    def unlike(record: Mapping[str, Any]) -> tuple[bool, float]:
        one, other = (statistics.fmean(of["metrics"][report.task.figure]) for of in (record, mine))
        return ("first_stage" in record) != ("first_stage" in mine), abs(one - other)

    if known:
        found = min(known, key=unlike)
        return {"recipe": found["recipe"], "variant": found["variant"], "weights_sha256": weights}
    raise RunError(
        f"{subject.run}: what a figure is compared with must be recorded in {folder}, but is not. "
        f"Record it first: python evaluate.py {subject.run} --record {folder / subject.results[0]['recipe']}.json"
    )


# Run directories.


def load(run: str | Path, device: str = "cpu") -> Model:
    """The model of a run directory (or of its `model/`), ready for inference.

    Raises:
        RunError: a file is missing, damaged, a pickle, or of a newer format; or the run holds several seeds.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise RunError(
            f"{folder}: must be a run directory, but there is none. Train one first: python train.py RECIPE."
        )
    seeds = seed_folders(folder)
    if seeds:
        names = ", ".join(path.name for path in seeds)
        raise RunError(f"{folder}: must be one run, but holds {names}. Name one of them: {seeds[0]}.")
    if (folder / "recipe.yaml").is_file():
        model, old = folder / "model", folder / ".model.old"
        # between the two renames of an exchange only the old one is there; repairing is left to whoever trains
        folder = old if old.is_dir() and not model.is_dir() else model
    return load_model(folder).to(choose_device(device))


def load_of(task: Task, run: Path) -> Model:
    """The model of a run, which must be of a task."""
    model = load(run)
    if not isinstance(model, task.model):
        raise RunError(f"{run}: must hold a {task.kind}, but holds {type(model).__name__}.")
    return model


def seed_folders(folder: Path) -> list[Path]:
    """The runs inside a run directory of several seeds, by seed; empty for a single run."""
    if (folder / "recipe.yaml").is_file():
        return []
    numbers = {path: path.name.removeprefix("seed-") for path in folder.glob("seed-*")}
    return sorted((path for path, number in numbers.items() if number.isdecimal()), key=lambda path: int(numbers[path]))


def read_recipe(folder: Path) -> Recipe:
    """The resolved recipe of a run. Raises RunError where the folder is none."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise RunError(
            f"{folder}: must be a run directory, but has no recipe.yaml. Train one first: python train.py RECIPE."
        )
    return load_recipe(path)


def load_data(recipe: Recipe) -> Data:
    """The data of a recipe, read and checked."""
    return recipe.task.load_data(recipe.data)


def read_json(path: Path) -> Any:
    """A JSON file of a run. Raises RunError where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: must be JSON, but cannot be read ({error}). Go on with the run by --resume."
        ) from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl; a line that is damaged only lacks in the curve."""
    path = folder / "metrics.jsonl"
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if isinstance(record, dict)]


def write_report(folder: Path, recipe: Recipe, results: Mapping[str, Any]) -> None:
    """Write curve.svg and the card, README.md, of a run."""
    title = f"{recipe.name}, seed {recipe.train.seed}"
    learning_curve([read_metrics(folder)], folder / "curve.svg", title=title, metric=recipe.task.figure)
    write_file(folder / "README.md", recipe.task.card(results, recipe.to_dict(), str(folder)), GO_ON)


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write results.json of a run."""
    write_file(folder / "results.json", json.dumps(results, ensure_ascii=False, indent=1) + "\n", GO_ON)


def identity(data: Data, model: Model, inputs: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What a resumed run must agree in: `exact` differences are refused, `approximate` ones are said."""
    return {
        "exact": {"data": dict(data.hashes), "inputs": dict(inputs)},
        "approximate": {
            "ranks": num_ranks(),
            "threads": torch.get_num_threads(),
            "device": str(model.device),
            "cpu": torch.backends.cpu.get_cpu_capability(),
            **versions(model),
        },
    }


def commit() -> str:
    """The commit of the checkout that this code runs from, "+" where it was changed since; empty outside one."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=Path(__file__).resolve().parent, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def versions(model: Model | None = None) -> dict[str, str]:
    """Versions that a figure depends on; where a model is given, also those of the libraries that compute for it."""
    return {
        "hanzoo": hanzoo.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        **{library: importlib.metadata.version(library) for library in (() if model is None else model.libraries)},
    }


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def computes_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16; taken for granted where torch does not know."""
    known = torch.cpu.get_capabilities()
    found = [known[name] for name in ("avx512_bf16", "amx_bf16", "bf16") if name in known]  # the last is ARM's
    return any(found) or not found


def describe_machine(device: torch.device) -> str:
    """Processor and threads, as it stands beside minutes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    without = ", no bfloat16" if device.type == "cpu" and not computes_bfloat16() else ""
    kind = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}{without}"
    return f"{cores} cores ({kind}), {describe_device(device)}"
