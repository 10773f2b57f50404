"""What a teacher says of a query's candidates, one query at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hanzoo.errors import RecipeError
from hanzoo.models.objectives.distillation import Distillation
from tests.models.objectives.agreement import agree, differ, random_numbers
from tests.references import matching as reference

MASK = torch.tensor([[True, True, True, True], [True, False, True, True], [True, True, False, False]])
TEACHER = random_numbers(3, 4, seed=9, bound=6.0)


@pytest.mark.parametrize(("temperature", "teacher_temperature"), [(1.0, None), (0.5, None), (0.5, 3.0)])
def test_the_loss_is_that_of_each_query(temperature: float, teacher_temperature: float | None) -> None:
    objective, scores = Distillation(temperature, teacher_temperature), random_numbers(3, 4)

    def by_loop(given: Tensor) -> Tensor:
        rows = []
        for own, taught, kept in zip(given, TEACHER, MASK, strict=True):
            of_teacher = temperature if teacher_temperature is None else teacher_temperature
            rows.append(reference.distillation(list(own[kept]), list(taught[kept]), temperature, of_teacher))
        return torch.stack(rows)

    def loss(given: Tensor) -> Tensor:
        return objective.losses(given, TEACHER.to(given.dtype), MASK)["distillation"]

    agree(loss, by_loop, scores)
    differ(loss, lambda given: objective.losses(given, TEACHER)["distillation"], scores)


def test_a_student_that_says_the_same_learns_nothing_and_the_teacher_never() -> None:
    scores, teacher = TEACHER.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    values = Distillation(2.0).losses(scores, teacher, MASK)["distillation"]
    values.sum().backward()
    assert torch.allclose(values, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert scores.grad is not None
    assert torch.allclose(scores.grad, torch.zeros_like(scores), rtol=0, atol=1e-12)
    assert teacher.grad is None


def test_divergence_is_that_of_the_candidates() -> None:
    def by_loop(one: Tensor, other: Tensor) -> Tensor:
        rows = []
        for p, q, kept in zip(one, other, MASK, strict=True):
            softened = [reference.softmax([value / 0.5 for value in row[kept]]) for row in (p, q)]
            rows.append(reference.half_symmetric_kl(softened[0], softened[1]))
        return torch.stack(rows)

    first, second = random_numbers(3, 4, seed=1), random_numbers(3, 4, seed=2)
    agree(lambda p, q: Distillation(0.5).divergence(p, q, MASK)["distillation"], by_loop, first, second)


def test_what_cannot_teach_and_what_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match="a query must have 2 candidates or more, but has 1"):
        Distillation().losses(random_numbers(3, 1), random_numbers(3, 1))
    with pytest.raises(ValueError, match=r"teacher must have shape \(3, 2\), but has \(3, 4\)"):
        Distillation().losses(random_numbers(3, 2), TEACHER)
    with pytest.raises(ValueError, match="distillation: temperature must be above 0, but is 0"):
        Distillation(0)
    with pytest.raises(ValueError, match="teacher_temperature must be above 0, but is -1"):
        Distillation(1.0, -1)
