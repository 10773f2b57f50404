"""PGD, projected gradient descent: train on the input, and on the input moved several times along the gradient inside a ball.

Source: Madry et al. 2018, section 2.1.
Differs: no random start; the clean and the last adversarial gradient are weighted to sum to one; parameter gradients of the
passes between are never made.
Cost: num_steps + 1 forward and backward passes a step. Not with FGM: both move the same input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from hanzoo.models.model import Model
from hanzoo.training.attack import AttackSettings, attack
from hanzoo.training.trick import Backward, Trick


class PGDSettings(AttackSettings):
    """Fields of `train.tricks.pgd`.

    Attributes:
        num_steps: ascents; one with step_size >= epsilon is FGM.
        step_size: L2 norm of one ascent.
    """

    num_steps: int = Field(default=3, ge=1)
    step_size: float = Field(default=0.3, gt=0.0)


class PGD(Trick):
    """Ascents of `step_size` inside a ball of `epsilon`."""

    Settings: ClassVar[type[PGDSettings]] = PGDSettings
    rank: ClassVar[int] = 10
    excludes: ClassVar[Mapping[str, str]] = {"fgm": "both attack the same input"}

    def wrap_backward(self, backward: Backward, model: Model) -> Backward:
        return attack(
            backward, model, self.settings, num_steps=self.settings.num_steps, step_size=self.settings.step_size
        )
