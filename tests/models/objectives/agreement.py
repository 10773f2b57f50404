"""What every objective is held to: values and gradients of the reference, in float64 and in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[..., Tensor]


def random_numbers(*shape: int, seed: int = 0, bound: float = 1.0) -> Tensor:
    """Evenly drawn in (-bound, bound), float64."""
    generator = torch.Generator().manual_seed(seed)
    return bound * (2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1)


def gradients(function: Function, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The values, and the gradients of a sum of them in which each has a weight of its own."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    values = function(*leaves)
    weights = torch.linspace(0.5, 2, values.numel(), dtype=values.dtype).view(values.shape)
    return values.detach(), list(torch.autograd.grad((values * weights).sum(), leaves))


def agree(function: Function, reference: Function, *inputs: Tensor) -> None:
    """Both give the same values and gradients: to 1e-10 in float64, to 1e-5 of the largest in float32."""
    expected, expected_gradients = gradients(reference, *inputs)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        found, found_gradients = gradients(function, *(tensor.to(dtype) for tensor in inputs))
        assert found.dtype == dtype
        pairs = zip([found, *found_gradients], [expected, *expected_gradients], strict=True)
        for one, other in pairs:
            assert one.shape == other.shape
            scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
            assert torch.allclose(one.double(), other, rtol=0, atol=tolerance * scale)


def differ(function: Function, other: Function, *inputs: Tensor) -> None:
    """The control: values that must not be the same."""
    assert not torch.allclose(function(*inputs), other(*inputs), rtol=1e-3, atol=1e-3)
