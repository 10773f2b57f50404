"""Poly-1: a larger first coefficient of the cross-entropy's series in (1 - p).

Source: Leng et al. 2022 (Poly-1): -log p + epsilon * (1 - p).
Differs: p is the probability of the whole gold of a unit; under a CRF that is the whole tag sequence. It stays that of the hard
gold also where focal or label smoothing stand inside (the paper's focal form has (1 - p)^(gamma + 1) instead).
Cost: nothing.
Place: outside focal, inside flooding, R-Drop and the gradient penalty; class weights multiply what it gives. Goes with all others.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from hanzoo.models.model import Model, Settings
from hanzoo.training.trick import Loss, LossFunction, Trick


class PolySettings(Settings):
    """Fields of `train.tricks.poly`.

    Attributes:
        epsilon: factor of 1 - p; 0 is training without it. Below -1 the loss would fall where p falls.
    """

    epsilon: float = Field(default=1.0, ge=-1.0)


class Poly(Trick):
    """Adds epsilon * (1 - p) to each value."""

    Settings: ClassVar[type[PolySettings]] = PolySettings
    rank: ClassVar[int] = 4

    def wrap_loss(self, loss: LossFunction, model: Model) -> LossFunction:
        def lifted(batch: Any) -> Loss:
            found = loss(batch)
            values = {
                part: value - self.settings.epsilon * torch.expm1(-found.gold()[part])
                for part, value in found.values.items()
            }
            return found._replace(values=values, hard=found.gold())

        return lifted
