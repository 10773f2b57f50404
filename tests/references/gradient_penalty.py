"""The gradient penalty by finite differences: slow, obvious, float64, no second derivative of autograd.

Double backpropagation (Drucker and Le Cun 1992): a sample's loss plus strength / 2 * sum over its input numbers x of (dl/dx)^2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LossOfInputs = Callable[[Sequence[Tensor]], float]


def squared_gradient(loss: LossOfInputs, inputs: Sequence[Tensor], width: float = 1e-6) -> float:
    """The squared norm of the gradient of a sample's loss, each number moved up and down in turn."""
    total = 0.0
    moved = [part.detach().double().clone() for part in inputs]
    for part in moved:
        flat = part.view(-1)
        for index in range(len(flat)):
            here = float(flat[index])
            flat[index] = here + width
            above = loss(moved)
            flat[index] = here - width
            below = loss(moved)
            flat[index] = here
            total += ((above - below) / (2 * width)) ** 2
    return total


def slope(value: Callable[[], float], parameters: Sequence[Tensor], direction: Sequence[Tensor], width: float) -> float:
    """The derivative of `value` where the parameters move along a direction; they come back."""
    saved = [parameter.detach().clone() for parameter in parameters]

    def at(step: float) -> float:
        with torch.no_grad():
            for parameter, start, move in zip(parameters, saved, direction, strict=True):
                parameter.copy_(start + step * move)
        return value()

    above, below = at(width), at(-width)
    at(0.0)
    return (above - below) / (2 * width)
