"""Sides of a measurement of training speed: the trainer as a recipe runs it, beside others, in turns in one process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hanzoo.models.model import Model
from hanzoo.recipe import Recipe
from hanzoo.training.trainer import Trainer
from hanzoo.training.trick import build_tricks

WARM_UP = 5  # steps of each side before the first round: kernels are compiled, slots are made
Side = Callable[[int], int]  # number of steps -> sentences trained


def our_side(recipe: Recipe, model: Model, features: Sequence[Any], folder: Path) -> Side:
    """The trainer as the recipe runs it, tricks and all, step by step.

    Args:
        recipe: its `train` section and its tricks.
        model: is trained; of this side alone.
        features: of the sentences.
        folder: is made; for the log.
    """
    folder.mkdir()
    trainer = Trainer(model, features, recipe.train, build_tricks(recipe.tricks), lambda model: {}, "f1", folder, {})
    windows = (window for epoch in range(recipe.train.epochs) for window in trainer.plan(epoch))

    def train(steps: int) -> int:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        sentences = 0
        for window in islice(windows, steps):
            trainer._step(0, window)  # nothing but the log reads the epoch
            sentences += sum(map(len, window))
        return sentences

    return train


def difference_of_emissions(found: Tensor, wanted: Tensor, other: Tensor, mask: Tensor) -> float:
    """Largest difference of two networks that should be one; fails unless it is small, and unless that of other weights is not.

    Args:
        found: (batch, seq, tags) emissions of the plain network with our weights.
        wanted: (batch, seq, tags) ours.
        other: (batch, seq, tags) of the plain network with other weights.
        mask: (batch, seq) bool, True = real.
    """
    difference = float((found - wanted)[mask].abs().max())
    assert difference < 1e-4, f"not the same network: emissions differ by {difference}"
    assert float((other - wanted)[mask].abs().max()) > 1e-2, "the check would not notice a difference"
    return difference


def in_turn(sides: dict[str, Side], rounds: int, steps: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Sentences per second of each side in each round; the order turns around every other round."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for train in sides.values():
        train(WARM_UP)
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            start = clock()
            sentences = sides[name](steps)
            speeds[name].append(sentences / (clock() - start))
        shown = "  ".join(f"{name} {speed[-1]:.0f}/s" for name, speed in speeds.items())
        sys.stderr.write(f"round {number + 1}/{rounds}: {shown}\n")
    return speeds
