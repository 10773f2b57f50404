"""L2-SP, L2 towards the starting point: pull each weight back to where the run started, all equally.

Source: Li, Grandvalet and Davoine 2018, L2-SP: alpha / 2 of the squared distance to the start, for what is new (here the tags of
new labels) beta / 2 of the squared norm. In the gradient, as there; a decoupled form, after the optimizer and times its rate, is
another algorithm under Adam, and is not this.
Cost: two more copies of the weights, one pass over them a step; no pass of the model. Needs `train.start_from`. Not with EWC: both
hold the weights in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hanzoo.models.model import Model, Settings
from hanzoo.training.anchors import Pull, kept
from hanzoo.training.trick import Start


class L2SPSettings(Settings):
    """Fields of `train.tricks.l2_sp`.

    Attributes:
        alpha: strength of the pull to the starting point; 0 is training without it.
        beta: strength of the pull to zero of what the start did not have.
    """

    alpha: float = Field(default=0.01, ge=0.0)
    beta: float = Field(default=0.01, ge=0.0)


class L2SP(Pull):
    """The same strength for every weight that the start had."""

    Settings: ClassVar[type[L2SPSettings]] = L2SPSettings
    excludes: ClassVar[Mapping[str, str]] = {"ewc": "both hold the weights in place"}

    @torch.no_grad()
    def pulls(self, model: Model, start: Start, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        old = kept(model, start)
        anchors = {name: torch.where(old[name], parameter, 0.0) for name, parameter in model.named_parameters()}
        strengths = {
            name: torch.where(mask, self.settings.alpha, self.settings.beta).to(anchors[name])
            for name, mask in old.items()
        }
        return anchors, strengths
