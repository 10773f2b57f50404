"""Sentence-BERT's classifier, one pair at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hanzoo.models.objectives.softmax import Softmax
from tests.models.objectives.agreement import agree, differ, random_numbers
from tests.references import matching as reference

LABELS = [2, 0, 1, 1]


def test_the_loss_is_that_of_each_pair() -> None:
    objective = Softmax(3, 3)
    inputs = (
        random_numbers(4, 3, seed=1),
        random_numbers(4, 3, seed=2),
        random_numbers(3, 9, seed=3),
        random_numbers(3, seed=4),
    )

    def loss(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weights = {"classifier.weight": weight, "classifier.bias": bias}
        logits = torch.func.functional_call(objective, weights, (first, second))
        return objective.losses(logits, torch.tensor(LABELS))["softmax"]

    def by_loop(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows = []
        for u, v, label in zip(first, second, LABELS, strict=True):
            rows.append(-torch.log(reference.softmax(reference.pair_logits(weight, bias, u, v))[label]))
        return torch.stack(rows)

    agree(loss, by_loop, *inputs)
    differ(loss, lambda u, v, weight, bias: loss(v, u, weight, bias), *inputs)


def test_its_weights_are_learnt() -> None:
    objective = Softmax(3, 2)
    vectors = random_numbers(4, 3).float()
    objective.losses(objective(vectors, vectors.flip(0)), torch.tensor([0, 1, 0, 1]))["softmax"].sum().backward()
    for parameter in objective.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()
    objective.zero_grad()
    objective.losses(objective(vectors, vectors), torch.tensor([0, 1, 0, 1]))["softmax"].sum().backward()
    weight = objective.classifier.weight.grad
    assert weight is not None
    assert not weight[:, 6:].any()  # a text and itself differ in nothing
    assert weight[:, :6].any()


def test_divergence_is_that_of_the_labels() -> None:
    first, second = random_numbers(4, 3, seed=1), random_numbers(4, 3, seed=2)
    agree(
        lambda p, q: Softmax(3, 3).divergence(p, q)["softmax"],
        lambda p, q: torch.stack(
            [
                reference.half_symmetric_kl(reference.softmax(list(one)), reference.softmax(list(other)))
                for one, other in zip(p, q, strict=True)
            ]
        ),
        first,
        second,
    )
    assert not Softmax(3, 3).divergence(first, first)["softmax"].any()


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 2, but is 1"):
        Softmax(3, 1)
