"""Margins of student and teacher, one triplet at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hanzoo.models.objectives.margin_mse import MarginMSE
from tests.models.objectives.agreement import agree, differ, random_numbers
from tests.references import matching as reference

STUDENT = random_numbers(5, seed=1), random_numbers(5, 3, seed=2)
TEACHER = random_numbers(5, seed=3, bound=9.0), random_numbers(5, 3, seed=4, bound=9.0)


def means(*scores: Tensor) -> Tensor:
    """Of each query the mean of the reference over its negatives."""
    good, bad, taught_good, taught_bad = scores
    rows = [
        [reference.margin_mse(good[i], bad[i, j], taught_good[i], taught_bad[i, j]) for j in range(3)] for i in range(5)
    ]
    return torch.stack([torch.stack(row).mean() for row in rows])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_that_of_each_triplet(temperature: float) -> None:
    def loss(good: Tensor, bad: Tensor) -> Tensor:
        return MarginMSE(temperature).losses(good, bad, *(scores.to(good.dtype) for scores in TEACHER))["margin_mse"]

    def by_loop(good: Tensor, bad: Tensor) -> Tensor:
        softened = [scores / temperature for scores in TEACHER]
        return means(good, bad, *softened)

    agree(loss, by_loop, *STUDENT)
    differ(loss, lambda good, bad: loss(-good, -bad), *STUDENT)


def test_the_teacher_learns_nothing() -> None:
    given = [scores.clone().requires_grad_() for scores in (*STUDENT, *TEACHER)]
    MarginMSE().losses(*given)["margin_mse"].sum().backward()
    assert [scores.grad is None for scores in given] == [False, False, True, True]


def test_divergence_is_the_squared_difference_of_the_margins() -> None:
    other = random_numbers(5, seed=5), random_numbers(5, 3, seed=6)
    found = MarginMSE().divergence(STUDENT, other)["margin_mse"]
    assert torch.allclose(found, means(*STUDENT, *other), rtol=0, atol=1e-12)
    assert not MarginMSE().divergence(STUDENT, STUDENT)["margin_mse"].any()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"teacher_negatives must have shape \(5, 3\), .* but have \(2, 3\)"):
        MarginMSE().losses(*STUDENT, TEACHER[0], TEACHER[1][:2])
    with pytest.raises(ValueError, match=r"negatives must have shape"):
        MarginMSE().losses(*(scores[:, 0] if scores.dim() > 1 else scores for scores in (*STUDENT, *TEACHER)))
    with pytest.raises(ValueError, match="teacher_temperature must be above 0, but is 0"):
        MarginMSE(0)
