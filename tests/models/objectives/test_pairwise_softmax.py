"""The softmax over a query's own candidates, one query at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hanzoo.errors import RecipeError
from hanzoo.models.objectives.pairwise_softmax import PairwiseSoftmax
from tests.models.objectives.agreement import agree, differ, random_numbers
from tests.references import matching as reference

MASK = torch.tensor([[True, True, True, True], [True, False, True, True], [True, True, False, False]])


def probabilities(row: Tensor, kept: Tensor) -> list[Tensor]:
    return reference.softmax([value / 0.5 for value in row[kept]])


def test_the_loss_is_that_of_each_query() -> None:
    objective, scores = PairwiseSoftmax(0.5), random_numbers(3, 4)
    agree(
        lambda s: objective.losses(s, MASK)["pairwise_softmax"],
        lambda s: torch.stack([-torch.log(probabilities(row, kept)[0]) for row, kept in zip(s, MASK, strict=True)]),
        scores,
    )
    differ(
        lambda s: objective.losses(s, MASK)["pairwise_softmax"],
        lambda s: objective.losses(s)["pairwise_softmax"],
        scores,
    )
    of_two = objective.losses(scores[:, :2])["pairwise_softmax"]
    assert torch.allclose(of_two, ((scores[:, 1] - scores[:, 0]) / 0.5).exp().log1p(), rtol=0, atol=1e-12)


def test_divergence_is_that_of_the_candidates() -> None:
    def by_loop(one: Tensor, other: Tensor) -> Tensor:
        rows = []
        for p, q, kept in zip(one, other, MASK, strict=True):
            rows.append(reference.half_symmetric_kl(probabilities(p, kept), probabilities(q, kept)))
        return torch.stack(rows)

    first, second = random_numbers(3, 4, seed=1), random_numbers(3, 4, seed=2)
    agree(lambda p, q: PairwiseSoftmax(0.5).divergence(p, q, MASK)["pairwise_softmax"], by_loop, first, second)
    assert not PairwiseSoftmax().divergence(first, first, MASK)["pairwise_softmax"].any()


def test_what_cannot_teach_and_what_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match="a query must have 2 candidates or more, but has 1"):
        PairwiseSoftmax().losses(random_numbers(3, 1))
    with pytest.raises(ValueError, match="temperature must be above 0, but is 0"):
        PairwiseSoftmax(0)
