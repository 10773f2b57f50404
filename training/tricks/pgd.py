"""PGD, projected gradient descent: train on the input, and on the input moved several times along the gradient inside a ball.

Source: Madry et al. 2018, section 2.1.
Differs: the random start is a setting (off); the clean and the last adversarial gradient are weighted to sum to one; parameter
gradients of the passes between are never made.
Cost: num_steps + 1 forward and backward passes a step, one more with a random start. Not with FGM or FreeLB: they move the same
input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator

from hanzoo.models.model import Model
from hanzoo.training.attack import SAME_INPUT, AttackSettings, CleanAndAdversarial
from hanzoo.training.trick import Backward


class PGDSettings(AttackSettings):
    """Fields of `train.tricks.pgd`.

    Attributes:
        num_steps: ascents; one with step_size >= epsilon is FGM.
        step_size: norm of one ascent.
        random_start: begin at a random place, whose expected norm is epsilon / sqrt(3), instead of at the input. Activations
            only: which rows of a table a window uses is known only after its first pass.
    """

    lengths: ClassVar[tuple[str, ...]] = ("epsilon", "step_size")

    num_steps: int = Field(default=3, ge=1)
    step_size: float = Field(default=0.3, gt=0.0)
    random_start: bool = False

    @model_validator(mode="after")
    def _tables_start_where_they_are(self) -> Self:
        if self.random_start and self.target == "table":
            raise ValueError("random_start must be false where target is table, but is true. Set one of them.")
        return self


class PGD(CleanAndAdversarial):
    """Ascents of `step_size` inside a ball of `epsilon`."""

    Settings: ClassVar[type[PGDSettings]] = PGDSettings
    excludes: ClassVar[Mapping[str, str]] = dict.fromkeys(("fgm", "free_lb"), SAME_INPUT)

    def wrap_backward(self, backward: Backward, model: Model) -> Backward:
        settings = self.settings
        return self.attack(
            backward, model, num_steps=settings.num_steps, step_size=settings.step_size,
            random_start=settings.random_start,
        )  # fmt: skip
