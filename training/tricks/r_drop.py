"""R-Drop: run each batch twice with other dropout masks and pull the two outputs together.

Source: Liang et al. 2021, equation 4.
Differs: the mean of both losses plus alpha times half the sum of both Kullback-Leibler divergences, as the authors' README has it;
the equation has the sum of both losses, beside which an alpha weighs half as much. For a CRF the divergence is the exact one
between the two distributions over tag sequences, not one of token softmaxes; it is divided by the same units as the loss, so alpha
means the same at every batch size.
Cost: two forward and backward passes a step. Without any dropout it changes nothing.
Place: outside focal, Poly and flooding, inside the gradient penalty. Not with model.multi_sample_dropout. Not with FreeLB, which
has no clean pass, and the same masks in all of its passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from hanzoo.models.model import Model, Settings
from hanzoo.training.trick import Loss, LossFunction, Trick


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

    def wrap_loss(self, loss: LossFunction, model: Model) -> LossFunction:
        def twice(batch: Any) -> Loss:
            first, second = loss(batch), loss(batch)
            divergence = model.divergence(first.output, second.output, batch)
            one, other = first.weighted(), second.weighted()  # weights are of the hard loss alone
            values = {part: 0.5 * (one[part] + other[part]) + self.settings.alpha * divergence[part] for part in one}
            return Loss(values, first.output, hard=first.gold())

        return twice
