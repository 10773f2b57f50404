"""EMA, exponential moving average of the weights: train the raw weights, evaluate and keep their average.

Source: Polyak and Juditsky 1992 (averaging); the warm-up of the decay, min(decay, (1 + n) / (10 + n)) after n steps, is that of
TensorFlow's ExponentialMovingAverage.
Cost: one pass over the weights a step, and one more copy of them. Training itself does not change by a bit. Not with SWA:
one model is evaluated and kept, and of two averages one would be without effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hanzoo.models.model import Model, Settings
from hanzoo.training.trick import Trick


class EMASettings(Settings):
    """Fields of `train.tricks.ema`.

    Attributes:
        decay: share of the old average that a step keeps; 0 is training without it.
    """

    decay: float = Field(default=0.999, ge=0.0, lt=1.0)


class EMA(Trick):
    """Averages all trained parameters; buffers stay the model's own."""

    Settings: ClassVar[type[EMASettings]] = EMASettings
    rank: ClassVar[int] = 20
    excludes: ClassVar[Mapping[str, str]] = {"swa": "of two averages of the weights only one can be evaluated and kept"}

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.average: dict[str, Tensor] = {}
        self.num_steps = 0

    @torch.no_grad()
    def after_step(self, model: Model) -> None:
        parameters = dict(model.named_parameters())
        if not self.average:
            self.average = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.num_steps += 1
        decay = min(self.settings.decay, (1 + self.num_steps) / (10 + self.num_steps))
        names = list(self.average)
        torch._foreach_lerp_([self.average[name] for name in names], [parameters[name] for name in names], 1 - decay)

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
        return {**self.average, "num_steps": torch.tensor(self.num_steps)}

    def load_state(self, tensors: Mapping[str, Tensor], model: Model) -> None:
        self.num_steps = int(tensors["num_steps"])
        self.average = {
            name: tensor.to(model.device).clone() for name, tensor in tensors.items() if name != "num_steps"
        }
