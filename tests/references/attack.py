"""Adversarial perturbations of one sample, or of embedding tables: slow, obvious, float64, one number at a time.

An input is a list of matrices (the embedded characters of one sample, its embedded bigrams ...; or the tables), a loss is a
function of that list. All matrices share one norm.

FGM (Miyato, Dai and Goodfellow 2017, section 3, equations 5 and 6): r = epsilon * g / ||g||_2, g the gradient of the loss by the
input. PGD (Madry et al. 2018, section 2.1, in the L2 norm): r <- P(r + step_size * g / ||g||_2), where g is taken at the moved
input and P is the projection on the ball of radius epsilon. What is trained on is the mean of the loss at the input and the
loss at the moved input. FreeLB (Zhu et al. 2020, algorithm 1): r starts at random and ascends as in PGD; what is trained on is the
mean of the losses at all places on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Matrices = list[Tensor]
LossOfMatrices = Callable[[Matrices], Tensor]


def norm(matrices: Sequence[Tensor]) -> float:
    """The L2 norm of all numbers of all matrices."""
    total = 0.0
    for matrix in matrices:
        for row in matrix.tolist():
            for number in row:
                total += number * number
    return math.sqrt(total)


def gradient(loss: LossOfMatrices, matrices: Sequence[Tensor]) -> Matrices:
    """The gradient of `loss` at `matrices`, by autograd; zero for a matrix that the loss does not use."""
    leaves = [matrix.detach().double().clone().requires_grad_() for matrix in matrices]
    found = torch.autograd.grad(loss(leaves), leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


def moved(matrices: Sequence[Tensor], perturbation: Sequence[Tensor]) -> Matrices:
    """The sum of both lists, matrix by matrix."""
    return [matrix.detach().double() + change for matrix, change in zip(matrices, perturbation, strict=True)]


def _step(perturbation: Matrices, direction: Matrices, size: float) -> Matrices:
    length = norm(direction)
    if length == 0.0 or not math.isfinite(length):
        return perturbation
    return [r + size * g / length for r, g in zip(perturbation, direction, strict=True)]


def project(perturbation: Matrices, epsilon: float) -> Matrices:
    """The nearest perturbation whose norm is at most `epsilon`."""
    length = norm(perturbation)
    if length <= epsilon:
        return perturbation
    return [r * (epsilon / length) for r in perturbation]


def fgm(loss: LossOfMatrices, matrices: Sequence[Tensor], epsilon: float) -> Matrices:
    """The perturbation of the fast gradient method; zero where the gradient is zero or not finite."""
    nothing = [torch.zeros_like(matrix, dtype=torch.float64) for matrix in matrices]
    return _step(nothing, gradient(loss, matrices), epsilon)


def pgd(
    loss: LossOfMatrices,
    matrices: Sequence[Tensor],
    epsilon: float,
    step_size: float,
    steps: int,
    start: Matrices | None = None,
) -> Matrices:
    """The perturbation after `steps` projected steps from `start`, or from zero."""
    perturbation = start or [torch.zeros_like(matrix, dtype=torch.float64) for matrix in matrices]
    for _ in range(steps):
        ascent = gradient(loss, moved(matrices, perturbation))
        perturbation = project(_step(perturbation, ascent, step_size), epsilon)
    return perturbation


def uniform_start(noise: Sequence[Tensor], size: float) -> Matrices:
    """The random start of one sample: its noise, U(-1, 1) at each number, scaled by size / sqrt(n d).

    n d are the rows and columns of a matrix; several matrices share the square of the norm evenly.
    """
    filled = sum(matrix.numel() > 0 for matrix in noise)
    return [matrix.double() * size / math.sqrt(matrix.shape[0] * matrix.shape[1] * filled) for matrix in noise]


def free_lb(
    loss: LossOfMatrices, matrices: Sequence[Tensor], start: Matrices, step_size: float, max_norm: float, steps: int
) -> list[Matrices]:
    """The perturbation at each of the `steps` passes; max_norm 0 = no projection."""
    passes = [start]
    while len(passes) < steps:
        ascent = gradient(loss, moved(matrices, passes[-1]))
        further = _step(passes[-1], ascent, step_size)
        passes.append(project(further, max_norm) if max_norm else further)
    return passes
