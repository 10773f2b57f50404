"""FGM, the fast gradient method: train on the input, and on the input moved once along the gradient of the loss.

Source: Goodfellow et al. 2015; Miyato, Dai and Goodfellow 2017 (text: normalised gradient, embeddings), equation 8.
Differs: the clean and the adversarial gradient are weighted to sum to one (public snippets add both, which doubles the gradient);
one norm a sample, not one over the batch.
Cost: two forward and backward passes a step. Not with PGD or FreeLB: they move the same input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from hanzoo.models.model import Model
from hanzoo.training.attack import SAME_INPUT, AttackSettings, CleanAndAdversarial
from hanzoo.training.trick import Backward


class FGM(CleanAndAdversarial):
    """epsilon 0 is training without it (the adversarial pass is then the clean one)."""

    Settings: ClassVar[type[AttackSettings]] = AttackSettings
    excludes: ClassVar[Mapping[str, str]] = dict.fromkeys(("free_lb", "pgd"), SAME_INPUT)

    def wrap_backward(self, backward: Backward, model: Model) -> Backward:
        return self.attack(backward, model, num_steps=1, step_size=self.settings.epsilon)
