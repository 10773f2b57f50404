"""Focal loss: units that the model is sure of already count less.

Source: Lin et al. 2017, equation 4: (1 - p)^gamma * -log p, without their alpha (class weights are a field of the model).
Differs: p is the probability of the whole gold of a unit; under a CRF that is the whole tag sequence, so only sentences known by
heart are turned down, and long ones hardly ever. `normalise: token` takes the geometric mean of p over a unit's positions
(the characters of a sentence) instead. 1 - p is computed as -expm1(log p), exact where p is nearly 1.
Cost: nothing. Early in training of rare classes one or two epochs without it are said to help.
Place: innermost, inside Poly, flooding, R-Drop and the gradient penalty; class weights multiply what it gives. Not with
model.label_smoothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from hanzoo.models.model import Model, Settings
from hanzoo.training.trick import Loss, LossFunction, Trick

_SMALLEST = 1e-8  # rounding may take a negative log-likelihood below 0; (1 - p)^gamma has no slope at 0 for gamma < 1


class FocalSettings(Settings):
    """Fields of `train.tricks.focal`.

    Attributes:
        gamma: exponent; 0 is training without it.
        normalise: p is that of the whole unit (sequence), or its geometric mean over the unit's positions (token).
    """

    gamma: float = Field(default=2.0, ge=0.0)
    normalise: Literal["sequence", "token"] = "sequence"


class Focal(Trick):
    """Multiplies each value by (1 - p)^gamma; the gradient goes through both factors."""

    Settings: ClassVar[type[FocalSettings]] = FocalSettings
    rank: ClassVar[int] = 2
    excludes: ClassVar[Mapping[str, str]] = {
        "model.label_smoothing": "a smoothed target has no one probability that could turn its loss down"
    }

    def wrap_loss(self, loss: LossFunction, model: Model) -> LossFunction:
        def focused(batch: Any) -> Loss:
            found = loss(batch)
            values = {}
            for part, hard in found.gold().items():
                surprise = hard / batch.unit_lengths[part] if self.settings.normalise == "token" else hard
                doubt = -torch.expm1(-surprise.clamp_min(_SMALLEST))
                values[part] = doubt**self.settings.gamma * found.values[part]
            return found._replace(values=values, hard=found.gold())

        return focused
