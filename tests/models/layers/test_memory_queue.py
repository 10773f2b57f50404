"""The queue of past vectors: what it holds, what it gives as negatives, how it goes on, what it leaves out of a model."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hanzoo.models.layers.memory_queue import NO_TEXT, MemoryQueue
from hanzoo.models.layers.similarity import cosine_similarities


def batch(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, generator=generator), torch.arange(100 * seed, 100 * seed + rows)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.lists(st.integers(0, 9), max_size=5))
def test_it_holds_the_newest(capacity: int, sizes: list[int]) -> None:
    queue = MemoryQueue(capacity, 3)
    newest: deque[tuple[int, list[float]]] = deque(maxlen=capacity)
    for seed, rows in enumerate(sizes):
        vectors, ids = batch(rows, seed)
        queue.push(vectors, ids)
        newest.extend(zip(ids.tolist(), vectors.tolist(), strict=True))
    held = zip(queue.ids[queue.mask].tolist(), queue.vectors[queue.mask].tolist(), strict=True)
    assert sorted(held) == sorted(newest)
    assert queue.num_pushed.item() == sum(sizes)
    assert not queue.vectors[~queue.mask].any()
    if sum(sizes) % capacity and sum(sizes) > capacity:  # the oldest is the next to go
        assert queue.ids[sum(sizes) % capacity] == newest[0][0]


def test_a_vector_of_the_same_text_is_no_negative() -> None:
    queue = MemoryQueue(4, 3)
    assert not queue.negatives_of(torch.tensor([5, 6])).any()
    queue.push(batch(2, 0)[0], torch.tensor([5, 7]))
    queue.push(batch(1, 1)[0])  # of no text in particular
    negatives = queue.negatives_of(torch.tensor([5, 6, NO_TEXT]))
    assert negatives.tolist() == [[False, True, True, False], [True, True, True, False], [True, True, True, False]]


def test_what_is_pushed_has_no_gradient_and_is_a_copy() -> None:
    queue = MemoryQueue(4, 3)
    vectors = batch(2, 0)[0].requires_grad_()
    queue.push(2 * vectors)
    assert not queue.vectors.requires_grad
    held = queue.vectors.clone()
    with torch.no_grad():
        vectors.zero_()
    assert torch.equal(queue.vectors, held)
    anchors = batch(2, 1)[0].requires_grad_()
    cosine_similarities(anchors, queue.vectors).sum().backward()
    assert anchors.grad is not None
    assert anchors.grad.any()


def test_a_push_before_the_backward_pass_is_seen() -> None:
    queue = MemoryQueue(4, 3)
    queue.push(batch(4, 0)[0])
    anchors = batch(2, 1)[0].requires_grad_()
    product = (anchors @ queue.vectors.T).sum()
    queue.push(batch(1, 2)[0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_it_goes_on_from_its_state_to_the_same_bits() -> None:
    whole, cut = MemoryQueue(5, 3), MemoryQueue(5, 3)
    for seed in range(3):
        whole.push(*batch(4, seed))
        cut.push(*batch(4, seed))
    saved = {name: tensor.clone() for name, tensor in cut.training_state().items()}
    resumed = MemoryQueue(5, 3)
    for name, tensor in resumed.training_state().items():  # as the trainer does
        tensor.copy_(saved[name])
    for seed in range(3, 5):
        whole.push(*batch(4, seed))
        resumed.push(*batch(4, seed))
    for name, tensor in whole.training_state().items():
        assert torch.equal(resumed.training_state()[name], tensor), name
    assert not torch.equal(whole.vectors, cut.vectors)


def test_it_is_no_part_of_a_model() -> None:
    queue = MemoryQueue(5, 3)
    assert not queue.state_dict()
    assert not list(queue.parameters())
    assert set(queue.training_state()) == {"vectors", "ids", "num_pushed"}
    assert queue.to("meta").training_state()["vectors"].device.type == "meta"  # but goes to the device with it


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="capacity must be at least 1, but is 0"):
        MemoryQueue(0, 3)
    queue = MemoryQueue(2, 3)
    with pytest.raises(ValueError, match=r"vectors must have shape \(rows, 3\), but have \(2, 4\)"):
        queue.push(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"ids must have shape \(2,\), but have \(3,\)"):
        queue.push(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
