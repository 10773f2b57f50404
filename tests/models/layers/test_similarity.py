"""Cosines and candidates against plain loops, and their precision."""

from __future__ import annotations

import torch
from torch import Tensor

from hanzoo.models.layers.similarity import (
    candidate_divergence,
    candidate_log_probabilities,
    cosine_similarities,
    paired_cosine_similarities,
)
from tests.models.objectives.agreement import agree, differ, random_numbers
from tests.references import matching as reference


def test_cosines_are_those_of_the_loops() -> None:
    first, second = random_numbers(3, 4, seed=1), random_numbers(5, 4, seed=2)

    def by_loops(one: Tensor, other: Tensor) -> Tensor:
        return torch.stack([torch.stack([reference.cosine(u, v) for v in other]) for u in one])

    agree(cosine_similarities, by_loops, first, second)
    agree(paired_cosine_similarities, lambda u, v: by_loops(u, v).diagonal(), first, second[:3])
    differ(cosine_similarities, lambda u, v: u @ v.T, first, second)


def test_half_precision_and_autocast_are_float32_from_there_on() -> None:
    first, second = random_numbers(3, 64, seed=1).bfloat16(), random_numbers(5, 64, seed=2).bfloat16()
    expected = cosine_similarities(first.double(), second.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, pairs = cosine_similarities(first, second), paired_cosine_similarities(first, second[:3])
        rounded = first @ second.T / (first.norm(dim=1)[:, None] * second.norm(dim=1))
    assert found.dtype == pairs.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=0, atol=1e-6)
    assert torch.allclose(pairs.double(), expected.diagonal(), rtol=0, atol=1e-6)
    assert not torch.allclose(rounded.double(), expected, rtol=0, atol=1e-4)  # the control


def test_a_zero_vector_is_like_none() -> None:
    vectors = torch.zeros(2, 3, requires_grad=True)
    found = cosine_similarities(vectors, torch.ones(1, 3))
    found.sum().backward()
    assert not found.any()
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()


def test_what_is_removed_takes_no_part() -> None:
    scores, removed = random_numbers(2, 4), torch.tensor([[False, True, False, True], [False] * 4])

    def expected(given: Tensor) -> Tensor:
        kept = [row[~gone] for row, gone in zip(given, removed, strict=True)]
        return torch.cat([torch.stack(reference.softmax([value / 0.5 for value in row])).log() for row in kept])

    agree(lambda s: candidate_log_probabilities(s, 0.5, removed)[~removed], expected, scores)
    logs = candidate_log_probabilities(scores, 0.5, removed)
    assert (logs[removed] == -torch.inf).all()
    assert not torch.allclose(logs[0], candidate_log_probabilities(scores, 0.5)[0])
    leaf = scores.clone().requires_grad_()
    other = candidate_log_probabilities(scores.flip(1), 0.5, removed)
    candidate_divergence(candidate_log_probabilities(leaf, 0.5, removed), other).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert not leaf.grad[removed].any()
    assert leaf.grad[~removed].any()
