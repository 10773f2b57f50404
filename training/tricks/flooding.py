"""Flooding: do not learn a unit below a level; where its loss is below, the gradient turns round.

Source: Ishida et al. 2020, equation 1: |loss - b| + b of the mean over a batch.
Differs: per unit (known as iFlood, Xie et al. 2022), since the mean over a batch does not divide: it would depend on
accumulation and ranks. b is in nats per position (character): a unit's loss is divided by its length for the comparison, and
multiplied back. It compares the loss before class weights, so the level means the same in every class.
Cost: nothing.
Place: outside focal and Poly, inside R-Drop (each pass floods its own loss) and the gradient penalty. Not with attacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from hanzoo.models.model import Model, Settings
from hanzoo.training.trick import Loss, LossFunction, Trick

_TURNED = "below the level the gradient turns round, and the attack would make the input easier"


class FloodingSettings(Settings):
    """Fields of `train.tricks.flooding`.

    Attributes:
        level: nats per position below which a unit is not learnt further; 0 is training without it.
    """

    level: float = Field(default=0.01, ge=0.0)


class Flooding(Trick):
    """Turns each value into |value - b| + b, b = level times the unit's length."""

    Settings: ClassVar[type[FloodingSettings]] = FloodingSettings
    rank: ClassVar[int] = 6
    excludes: ClassVar[Mapping[str, str]] = {"fgm": _TURNED, "pgd": _TURNED, "free_lb": _TURNED}

    def wrap_loss(self, loss: LossFunction, model: Model) -> LossFunction:
        def flooded(batch: Any) -> Loss:
            found = loss(batch)
            values = {}
            for part, value in found.values.items():
                lengths = batch.unit_lengths[part]
                values[part] = ((value / lengths - self.settings.level).abs() + self.settings.level) * lengths
            return found._replace(values=values, hard=found.gold())

        return flooded
