"""SWA, stochastic weight averaging: evaluate and keep the equal average of the weights that late epochs end with.

Source: Izmailov et al. 2018, algorithm 1.
Differs: the rate stays the recipe's `train.schedule` (the paper's is constant or cyclic from `start` on; under one that falls to 0
the averaged weights lie close together, and the average is worth less); no second pass for batch normalisation, which no model
here has.
Cost: one pass over the weights each time, and one more copy of them. Training itself does not change by a bit. Not with EMA: one
model is evaluated and kept, and of two averages one would be without effect.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hanzoo.errors import RunError
from hanzoo.models.model import Model, Settings
from hanzoo.training.trick import Trick


class SWASettings(Settings):
    """Fields of `train.tricks.swa`.

    Attributes:
        start: share of all steps from which on weights are averaged; until then the raw ones are evaluated.
        every: steps between two that are averaged; 0 = those at the end of each epoch.
    """

    start: float = Field(default=0.75, ge=0.0, lt=1.0)
    every: int = Field(default=0, ge=0)


class SWA(Trick):
    """Averages all trained parameters in float32; buffers stay the model's own."""

    Settings: ClassVar[type[SWASettings]] = SWASettings
    rank: ClassVar[int] = 20
    excludes: ClassVar[Mapping[str, str]] = {"ema": "of two averages of the weights only one can be evaluated and kept"}

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.average: dict[str, Tensor] = {}
        self.count = 0
        self._epoch_ends: frozenset[int] = frozenset()
        self._first = 0
        self._done = 0
        self._num_planned = 0

    def plan(self, epoch_starts: Sequence[int]) -> None:
        self._epoch_ends = frozenset(epoch_starts[1:])
        self._first = max(1, math.ceil(self.settings.start * epoch_starts[-1]))
        self._num_planned = sum(map(self._averages, range(1, epoch_starts[-1] + 1)))

    def _averages(self, done: int) -> bool:
        """Whether the weights after so many steps are averaged."""
        if done < self._first:
            return False
        every = self.settings.every
        return (done - self._first) % every == 0 if every else done in self._epoch_ends

    def notes(self) -> list[str]:
        if self._num_planned < 2:
            raise RunError(
                "train.tricks.swa: must average the weights of 2 steps or more, but start and every choose "
                f"{self._num_planned}: the model would be the same without. Lower train.tricks.swa.start, set "
                "train.tricks.swa.every, or train more epochs."
            )
        return []

    def before_step(self, model: Model, step: int) -> None:
        self._done = step + 1

    @torch.no_grad()
    def after_step(self, model: Model) -> None:
        if not self._averages(self._done):
            return
        self.count += 1
        parameters = dict(model.named_parameters())
        if not self.average:
            self.average = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        names = list(self.average)
        torch._foreach_lerp_(
            [self.average[name] for name in names], [parameters[name] for name in names], 1 / self.count
        )

    @contextmanager
    def evaluation_weights(self, model: Model) -> Iterator[None]:
        if not self.average:
            yield
            return
        raw = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self._put(self.average, model)
        try:
            yield
        finally:
            self._put(raw, model)

    @staticmethod
    @torch.no_grad()
    def _put(weights: Mapping[str, Tensor], model: Model) -> None:
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])

    def state(self) -> Mapping[str, Tensor]:
        return {**self.average, "count": torch.tensor(self.count)}

    def load_state(self, tensors: Mapping[str, Tensor], model: Model) -> None:
        self.count = int(tensors["count"])
        self.average = {name: tensor.to(model.device).clone() for name, tensor in tensors.items() if name != "count"}
