"""Margins of student and teacher, one triplet at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hanzoo.models.objectives.margin_mse import MarginMSE
from tests.models.objectives.agreement import agree, differ, random_numbers
from tests.references import matching as reference

STUDENT = random_numbers(5, seed=1), random_numbers(5, seed=2)
TEACHER = random_numbers(5, seed=3, bound=9.0), random_numbers(5, seed=4, bound=9.0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_that_of_each_triplet(temperature: float) -> None:
    def loss(good: Tensor, bad: Tensor) -> Tensor:
        return MarginMSE(temperature).losses(good, bad, *(scores.to(good.dtype) for scores in TEACHER))["margin_mse"]

    def by_loop(good: Tensor, bad: Tensor) -> Tensor:
        softened = [scores / temperature for scores in TEACHER]
        return torch.stack([reference.margin_mse(*row) for row in zip(good, bad, *softened, strict=True)])

    agree(loss, by_loop, *STUDENT)
    differ(loss, lambda good, bad: loss(bad, good), *STUDENT)


def test_the_teacher_learns_nothing() -> None:
    given = [scores.clone().requires_grad_() for scores in (*STUDENT, *TEACHER)]
    MarginMSE().losses(*given)["margin_mse"].sum().backward()
    assert [scores.grad is None for scores in given] == [False, False, True, True]


def test_divergence_is_the_squared_difference_of_the_margins() -> None:
    other = random_numbers(5, seed=5), random_numbers(5, seed=6)
    found = MarginMSE().divergence(STUDENT, other)["margin_mse"]
    expected = torch.stack([reference.margin_mse(*row) for row in zip(*STUDENT, *other, strict=True)])
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert not MarginMSE().divergence(STUDENT, STUDENT)["margin_mse"].any()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher_negatives must have shape \(5,\), but have \(2,\)"):
        MarginMSE().losses(*STUDENT, TEACHER[0], TEACHER[1][:2])
    with pytest.raises(ValueError, match="teacher_temperature must be above 0, but is 0"):
        MarginMSE(0)
