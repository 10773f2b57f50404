"""R-Drop: run each batch twice with other dropout masks and pull the two outputs together.

Source: Liang et al. 2021, equation 4.
Differs: the mean of both losses plus alpha times half the sum of both Kullback-Leibler divergences, as the authors' README has it;
the equation has the sum of both losses, beside which an alpha weighs half as much. For a CRF the divergence is the exact one
between the two distributions over tag sequences, not one of token softmaxes; it is divided by the same units as the loss, so alpha
means the same at every batch size.
Cost: two forward and backward passes a step. Without any dropout it would change nothing: such a training is stopped.
Place: outside focal, Poly and flooding, inside the gradient penalty. Not with model.multi_sample_dropout. Not with FreeLB, which
has no clean pass, and the same masks in all of its passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hanzoo.errors import RunError
from hanzoo.models.model import Model, Settings
from hanzoo.training.distributed import sum_integers
from hanzoo.training.trick import Loss, LossFunction, Trick

LEAST_STEPS = 50  # after which it is said that in none of them two passes differed


class RDropSettings(Settings):
    """Fields of `train.tricks.r_drop`.

    Attributes:
        alpha: factor of the divergence.
    """

    alpha: float = Field(default=1.0, ge=0.0)


class RDrop(Trick):
    """The second pass draws on where the first one stopped in the same keyed stream: other masks, as reproducible."""

    Settings: ClassVar[type[RDropSettings]] = RDropSettings
    rank: ClassVar[int] = 10
    excludes: ClassVar[Mapping[str, str]] = {
        "free_lb": "R-Drop compares clean passes, and FreeLB has none",
        "model.multi_sample_dropout": "there is no agreed divergence between two passes of several masks each",
    }

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self._differing: list[Tensor] = []  # for each batch not counted yet: whether its two passes differed
        self._num_steps = 0
        self._any_differed = False

    def wrap_loss(self, loss: LossFunction, model: Model) -> LossFunction:
        def twice(batch: Any) -> Loss:
            first, second = loss(batch), loss(batch)
            divergence = model.divergence(first.output, second.output, batch)
            if not self._any_differed:
                self._differing.append(torch.stack([part.detach().any() for part in divergence.values()]).any())
            one, other = first.weighted(), second.weighted()  # weights are of the hard loss alone
            values = {part: 0.5 * (one[part] + other[part]) + self.settings.alpha * divergence[part] for part in one}
            return Loss(values, first.output, hard=first.gold())

        return twice

    def before_step(self, model: Model, step: int) -> None:
        self._num_steps += 1

    def notes(self) -> list[str]:
        if self._any_differed:
            return []
        (differing,) = sum_integers([sum(bool(differed) for differed in self._differing)])
        self._differing = []
        self._any_differed = differing > 0
        if not self._any_differed and self._num_steps >= LEAST_STEPS:
            raise RunError(
                f"train.tricks.r_drop: the two passes over a batch must differ, but in the first {self._num_steps} steps they "
                "were the same: there is no dropout. Set it (model.dropout; model.encoder_dropout=0.1 where the encoder's folder "
                "has none), or remove the trick."
            )
        return []
