"""`train.py RECIPE --dry-run`: what would be trained, said before hours go into it. The run directory is not touched.

All is built as training builds it, so what training would refuse is refused. Two steps are trained: the one over the most
characters, which shows the memory that is needed and compiles what has to be compiled, and one of median length, a few times,
which shows the speed. Seconds are carried over to all steps by their padded characters, and to the evaluations by items.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hanzoo import build
from hanzoo.evaluation.report import results_table
from hanzoo.models.model import Model
from hanzoo.recipe import Recipe
from hanzoo.training.distributed import joined, num_ranks, on_first, rank
from hanzoo.training.optimizers import describe_groups, parameter_groups
from hanzoo.training.progress import peak_gigabytes
from hanzoo.training.trainer import Trainer

TIMED_STEPS = 5  # of the one of median length: the first ones are slower
DEV_ITEMS = 128  # that are evaluated


@dataclass(frozen=True)
class Estimate:
    """What the two steps and a few items of dev showed.

    Attributes:
        longest: padded characters of the longest step, of all ranks.
        step_seconds: of the step of median length.
        minutes: expected of one training, evaluations on dev included.
        peak_gb: memory of a process, with the longest step.
        cuda_gb: of its GPU; None without one.
    """

    longest: int
    step_seconds: float
    minutes: float
    peak_gb: float
    cuda_gb: float | None


def dry_run(recipe: Recipe, *, run: Path, seeds: Sequence[int] = (), say: Callable[[str], None]) -> str:
    """Build everything, train two steps in a folder that is removed again, and say what a training would be.

    Args:
        recipe: what would be trained.
        run: its run directory, which must be new.
        seeds: one run a seed in `run/seed-<n>`; empty: one run.
        say: gets lines for people.

    Returns:
        Tables and lines.

    Raises:
        HanzooError: what training would raise.
    """
    recipe = recipe.located()
    device = build.choose_device(recipe.train.device)
    with joined(device.type), build.settings_of_training(recipe, device), ExitStack() as held:
        if seeds:
            on_first(lambda: build.check_seeds(recipe, seeds, run, resume=False))
        else:
            on_first(lambda: build.check_run(run, recipe, resume=False))
        scratch = on_first(lambda: Path(held.enter_context(TemporaryDirectory())))
        unlogged = replace(recipe, train=recipe.train.model_copy(update={"log_every": sys.maxsize}))
        tried = unlogged.with_seed(seeds[0]) if seeds else unlogged
        said = say if rank() == 0 else lambda line: None
        training = build.prepare(tried, scratch, False, device, said)
        training.ensure_files(scratch, said)
        training.trainer.begin()
        estimate = _estimate(training)
    head = f"{recipe.name}: nothing is kept; it would be trained in {run} on {build.describe_device(device)}"
    optimizer = recipe.train.optimizer
    blocks = [
        head if num_ranks() == 1 else f"{head}, {num_ranks()} ranks",
        *map(results_table, training.task.tables(training.data)),
        results_table(list(_parameters(training.model))),
        "\n".join(describe_groups(parameter_groups(training.model, optimizer), optimizer.learning_rate)),
        "\n".join(_plan(recipe, training.trainer, estimate, max(1, len(seeds)))),
    ]
    return "\n\n".join(blocks)


def _windows(trainer: Trainer) -> Iterator[list[list[int]]]:
    for epoch in range(trainer.settings.epochs):
        yield from trainer.plan(epoch)


def _estimate(training: build.Training) -> Estimate:
    data, trainer = training.data, training.trainer

    def characters(window: Sequence[Sequence[int]]) -> int:
        return sum(len(numbers) * max(trainer.lengths[i] for i in numbers) for numbers in window)

    # all windows at once would be part of the memory that is looked for
    costs = [characters(window) for window in _windows(trainer)]
    longest, median = max(costs), statistics.median_low(costs)
    trainer.rehearse(next(window for window in _windows(trainer) if characters(window) == longest))
    usual = next(window for window in _windows(trainer) if characters(window) == median)
    seconds = statistics.median(trainer.rehearse(usual) for _ in range(TIMED_STEPS))
    few, times = training.task.dev_sample(data, DEV_ITEMS)
    evaluate = training.task.dev_evaluation(training.model, few, data)
    evaluate(training.model)  # compiles
    started = time.monotonic()
    evaluate(training.model)
    evaluation = (time.monotonic() - started) * times
    total = seconds / median * sum(costs) + evaluation * trainer.settings.epochs
    cuda = torch.cuda.max_memory_allocated(trainer.device) / 1e9 if trainer.device.type == "cuda" else None
    return Estimate(longest, seconds, total / 60, peak_gigabytes(), cuda)


def _parameters(model: Model) -> Iterator[Mapping[str, Any]]:
    """What is trained, and what is only looked up (frozen weights, and rows that stay as they were read), by module."""
    trained: Counter[str] = Counter()
    frozen: Counter[str] = Counter()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            (trained if tensor.requires_grad else frozen)[name.partition(".")[0]] += tensor.numel()
    for module in dict.fromkeys([*trained, *frozen]):
        yield {"module": module, "trained": trained[module], "frozen": frozen[module]}
    yield {"module": "all", "trained": trained.total(), "frozen": frozen.total()}


def _plan(recipe: Recipe, trainer: Trainer, estimate: Estimate, num_runs: int) -> Iterator[str]:
    settings = recipe.train
    yield f"tricks: {', '.join(recipe.tricks) or 'none'}; schedule: {settings.schedule.name}; {settings.precision}"
    patience = f", fewer after {settings.patience} epochs without a better dev" if settings.patience else ""
    parts = settings.accumulation * num_ranks()
    cut = (
        ""
        if parts == 1
        else f" ({settings.accumulation} micro-batches of {settings.batch_size} on {num_ranks()} ranks)"
    )
    yield (
        f"{settings.epochs} epochs, {trainer.num_steps} steps of at most {parts * settings.batch_size} {recipe.task.items}"
        f"{cut}{patience}"
    )
    of_gpu = "" if estimate.cuda_gb is None else f", {estimate.cuda_gb:.2f} GB of the GPU"
    yield f"memory: {estimate.peak_gb:.2f} GB{of_gpu} in the longest step ({estimate.longest} characters with padding)"
    runs = "" if num_runs == 1 else f" a run, {num_runs * estimate.minutes:.1f} for {num_runs} runs"
    yield (
        f"expected: {estimate.minutes:.1f} minutes{runs}, evaluations on dev included "
        f"({1000 * estimate.step_seconds:.1f} ms a step)"
    )
