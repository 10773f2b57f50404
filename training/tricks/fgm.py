"""FGM, the fast gradient method: train on the input, and on the input moved once along the gradient of the loss.

Source: Goodfellow et al. 2015; Miyato, Dai and Goodfellow 2017 (text: normalised gradient, embeddings), equation 8.
Differs: the clean and the adversarial gradient are weighted to sum to one (public snippets add both, which doubles the gradient);
one norm a sample, not one over the batch.
Cost: two forward and backward passes a step. Not with PGD: both move the same input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from hanzoo.models.model import Model
from hanzoo.training.attack import AttackSettings, attack
from hanzoo.training.trick import Backward, Trick


class FGM(Trick):
    """epsilon 0 is training without it (the adversarial pass is then the clean one)."""

    Settings: ClassVar[type[AttackSettings]] = AttackSettings
    rank: ClassVar[int] = 10
    excludes: ClassVar[Mapping[str, str]] = {"pgd": "both attack the same input"}

    def wrap_backward(self, backward: Backward, model: Model) -> Backward:
        return attack(backward, model, self.settings, num_steps=1, step_size=self.settings.epsilon)
