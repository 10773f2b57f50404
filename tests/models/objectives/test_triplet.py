"""The triplet loss, one triplet at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hanzoo.errors import RecipeError
from hanzoo.models.objectives.triplet import Triplet
from tests.models.objectives.agreement import agree, differ, random_numbers
from tests.references import matching as reference


def test_the_loss_is_that_of_each_triplet() -> None:
    positives, negatives = random_numbers(8, seed=1), random_numbers(8, seed=2)

    def by_loop(good: Tensor, bad: Tensor) -> Tensor:
        return torch.stack([reference.triplet(one, other, 0.3) for one, other in zip(good, bad, strict=True)])

    def loss(good: Tensor, bad: Tensor) -> Tensor:
        return Triplet(0.3).losses(good, bad)["triplet"]

    values = loss(positives, negatives)
    assert values.any()
    assert not values.all()
    agree(loss, by_loop, positives, negatives)
    differ(loss, lambda good, bad: loss(bad, good), positives, negatives)


def test_half_precision_is_float32_from_there_on() -> None:
    assert Triplet().losses(random_numbers(2).bfloat16(), random_numbers(2).half())["triplet"].dtype == torch.float32


def test_r_drop_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"train.tricks.r_drop: must be left out with the objective triplet"):
        Triplet().divergence(random_numbers(2), random_numbers(2))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="margin must be above 0, but is 0"):
        Triplet(0)
    with pytest.raises(ValueError, match=r"negatives must have shape \(2,\), but have \(3,\)"):
        Triplet().losses(random_numbers(2), random_numbers(3))
