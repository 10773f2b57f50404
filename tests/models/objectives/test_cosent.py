"""CoSENT against the sum over all pairs of pairs: ties, labels of any kind, order, operations, refusals."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hanzoo.models.objectives.cosent import CoSENT
from tests.models.objectives.agreement import agree, differ, random_numbers
from tests.references import matching as reference

TEMPERATURE = 0.2
scales = st.sampled_from([[0, 1], [0, 1, 2, 3, 4, 5], [-0.5, 0.1, 0.30000000000000004, 0.3]])


def loss(scores: Tensor, labels: Tensor) -> Tensor:
    return CoSENT(TEMPERATURE).losses(scores, labels)["cosent"]


def by_pairs(scores: Tensor, labels: Tensor) -> Tensor:
    return reference.cosent(list(scores), labels.tolist(), TEMPERATURE).view(1)


@settings(max_examples=40, deadline=None)
@given(st.data(), scales, st.integers(2, 9), st.booleans())
def test_the_loss_is_that_of_all_pairs(data: st.DataObject, scale: list[float], number: int, tied: bool) -> None:
    labels = torch.tensor(
        data.draw(st.lists(st.sampled_from(scale), min_size=number, max_size=number)), dtype=torch.float64
    )
    scores = random_numbers(number)
    if tied:
        scores = (3 * scores).round() / 3
    if len(labels.unique()) > 1:
        agree(lambda s: loss(s, labels), lambda s: by_pairs(s, labels), scores)


def test_labels_of_every_type() -> None:
    scores = random_numbers(6)
    expected = by_pairs(scores, torch.tensor([0, 1, 1, 0, 1, 0]))
    for labels in (torch.tensor([0, 1, 1, 0, 1, 0]), torch.tensor([False, True, True, False, True, False])):
        assert torch.allclose(loss(scores, labels), expected, rtol=0, atol=1e-10)
        assert torch.allclose(loss(scores, labels.float() * 5 - 7), expected, rtol=0, atol=1e-10)


def test_ties_are_not_compared() -> None:
    labels = torch.tensor([0, 1, 1])
    scores = random_numbers(3).requires_grad_()
    without = loss(scores[:2], labels[:2])
    assert loss(scores, labels).item() > without.item()
    # between pairs of one label there is no pull: each is as alone with the lower one
    (gradient,) = torch.autograd.grad(loss(scores, labels), scores)
    differences = ((scores[0] - scores) / TEMPERATURE).exp()[1:].detach()
    assert torch.allclose(gradient[1:], -differences / (1 + differences.sum()) / TEMPERATURE, rtol=0, atol=1e-10)
    ordered = torch.tensor([0, 1, 2])  # the control: it matters that they are tied
    differ(lambda s: loss(s, labels), lambda s: loss(s, ordered), scores.detach())


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(7)))
def test_the_order_of_a_batch_changes_nothing(order: list[int]) -> None:
    scores, labels = random_numbers(7), torch.tensor([0, 2, 1, 0, 2, 2, 1])
    assert torch.allclose(loss(scores[order], labels[order]), loss(scores, labels), rtol=0, atol=1e-12)


def test_scores_may_not_be_moved_away_from_their_labels() -> None:
    scores, labels = random_numbers(7), torch.tensor([0, 2, 1, 0, 2, 2, 1])
    differ(lambda s: loss(s.flip(0), labels), lambda s: loss(s, labels), scores)


def test_separated_pairs_cost_nothing_and_distant_ones_do_not_overflow() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    assert CoSENT(0.001).losses(torch.tensor([-0.9, -0.8, 0.8, 0.9]), labels)["cosent"].item() == 0.0
    scores = torch.tensor([0.9, 0.8, -0.8, -0.9]).requires_grad_()
    value = CoSENT(0.001).losses(scores, labels)["cosent"]  # exp(1800) is no float32
    assert value.item() == pytest.approx(1800, rel=1e-5)
    (gradient,) = torch.autograd.grad(value, scores)
    assert gradient.tolist() == pytest.approx([1000.0, 0.0, 0.0, -1000.0], abs=1e-3)


def test_second_derivatives() -> None:
    labels = torch.tensor([0, 2, 1, 0, 2])
    assert torch.autograd.gradgradcheck(lambda s: loss(s, labels), random_numbers(5).requires_grad_())


def test_half_precision_is_float32_from_there_on() -> None:
    scores, labels = random_numbers(20).bfloat16(), torch.arange(20) % 3
    found = loss(scores, labels)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), loss(scores.double(), labels), rtol=1e-5)


# Work.


class Work(TorchDispatchMode):
    """How many numbers all operations write."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            self.numbers += tensor.numel() if isinstance(tensor, Tensor) else 0
        return result


def all_at_once(scores: Tensor, labels: Tensor) -> Tensor:
    """The square of all pairs."""
    differences = (scores[:, None] - scores[None, :]) / TEMPERATURE
    differences = differences.masked_fill(labels[:, None] >= labels[None, :], float("-inf"))
    return torch.cat([scores.new_zeros(1), differences.flatten()]).logsumexp(0, keepdim=True)


def work(function: Any, number: int) -> int:
    scores = random_numbers(number).requires_grad_()
    labels = torch.arange(number) % 5
    with Work() as done:
        function(scores, labels).backward()
    return done.numbers


def test_work_grows_like_pairs_times_their_logarithm() -> None:
    few, many = 256, 2048
    grown = work(loss, many) / work(loss, few)
    assert grown < 1.1 * (many * math.log2(many)) / (few * math.log2(few))
    assert work(all_at_once, many) / work(all_at_once, few) > 0.9 * (many / few) ** 2  # the control
    scores, labels = random_numbers(few), torch.arange(few) % 5
    assert torch.allclose(loss(scores, labels), all_at_once(scores, labels), rtol=0, atol=1e-10)


# R-Drop, refusals.


def test_divergence_is_the_mean_squared_difference() -> None:
    first, second = random_numbers(4, seed=1), random_numbers(4, seed=2)
    agree(
        lambda p, q: CoSENT().divergence(p, q)["cosent"],
        lambda p, q: (sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / 4).view(1),
        first,
        second,
    )
    assert CoSENT().divergence(first, first)["cosent"].item() == 0.0


@pytest.mark.parametrize("label", [1, 0.5])
def test_one_label_teaches_nothing(label: float) -> None:
    one, two = torch.tensor([label] * 3), torch.tensor([label, label, 2])
    scores = random_numbers(3).requires_grad_()
    value = loss(scores, one)
    (gradient,) = torch.autograd.grad(value, scores)
    assert value.tolist() == [0.0]
    assert gradient.tolist() == [0.0] * 3
    (gradient,) = torch.autograd.grad(loss(scores, two), scores)
    assert gradient.all()
    assert not CoSENT().teaches(SimpleNamespace(labels=one))
    assert CoSENT().teaches(SimpleNamespace(labels=two))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature must be above 0, but is -1"):
        CoSENT(-1)
    with pytest.raises(
        ValueError, match=r"labels must have the shape of the similarities, \(pairs,\), but have \(2,\)"
    ):
        loss(random_numbers(3), torch.tensor([0, 1]))
