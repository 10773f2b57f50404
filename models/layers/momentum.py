"""A second set of weights that follows a module's slowly: the encoder of ESimCSE's queue.

Source: He et al. 2020 (MoCo), equation 2; Wu et al. 2022 (ESimCSE), section 3.3 (momentum 0.995).
Differs: it follows once an optimizer step, after it, and all parts of the module follow (the release moves it in the forward pass,
and takes the head that is being trained).
Cost: the weights once more, and a pass without gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class MomentumWeights(nn.Module):
    """Begins as the module is. Its weights are no parameters: nothing trains them, and no model is saved with them.

    Args:
        module: that is followed; it is not kept.
        momentum: how much of themselves the weights keep in a step, in [0, 1].
    """

    def __init__(self, module: nn.Module, momentum: float = 0.995) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum: momentum must lie in [0, 1], but is {momentum}.")
        self.momentum = momentum
        self._names = tuple(name for name, _ in module.named_parameters())
        for number, parameter in enumerate(module.parameters()):
            # numbered, for the name of a buffer can hold no dot
            self.register_buffer(f"weight_{number}", parameter.detach().clone(), persistent=False)

    def weights(self) -> dict[str, Tensor]:
        """By the names of the module's parameters."""
        return dict(zip(self._names, self.buffers(), strict=True))

    @torch.no_grad()
    def follow(self, module: nn.Module) -> None:
        """Go one step towards the module; to be called after each optimizer step."""
        for own, parameter in zip(self.buffers(), module.parameters(), strict=True):
            own.lerp_(parameter, 1 - self.momentum)

    @torch.no_grad()
    def run(self, module: nn.Module, *inputs: Any) -> Any:
        """What the module would give with these weights, without dropout and without gradients.

        Args:
            module: that is followed; it is left as it is, in training or not.
            inputs: of its forward pass.
        """
        modes = [(each, each.training) for each in module.modules()]
        module.eval()
        try:
            return torch.func.functional_call(module, self.weights(), inputs)
        finally:
            for each, training in modes:
                each.training = training

    def training_state(self) -> Mapping[str, Tensor]:
        """What exact resume needs: its own tensors, which may be copied into."""
        return self.weights()
