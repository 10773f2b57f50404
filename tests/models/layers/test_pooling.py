"""Pooling against loops over each text's own pieces: values, gradients, padding of any content and side, refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hanzoo.models.layers.pooling import cls_pooling, first_last_pooling, mean_pooling
from tests.references import matching as reference

WIDTH = 5


def random_states(lengths: Sequence[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, WIDTH, generator=generator, dtype=torch.float64) for length in lengths]


def padded(states: Sequence[Tensor], seq: int, fill: float, left: bool = False) -> tuple[Tensor, Tensor]:
    """(texts, seq, WIDTH) with `fill` at padding, and the mask."""
    tensor = torch.full((len(states), seq, WIDTH), fill, dtype=torch.float64)
    mask = torch.zeros(len(states), seq, dtype=torch.bool)
    for row, state in enumerate(states):
        columns = slice(seq - len(state), seq) if left else slice(0, len(state))
        tensor[row, columns] = state
        mask[row, columns] = True
    return tensor.requires_grad_(), mask


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 3), st.sampled_from([0.0, 9.0, torch.nan]))
def test_pooling_is_that_of_the_pieces_alone(lengths: list[int], more: int, fill: float) -> None:
    first, last = random_states(lengths, 1), random_states(lengths, 2)
    seq = max(lengths) + more
    weights = torch.linspace(-1, 2, WIDTH, dtype=torch.float64)
    for left in (False, True):
        first_padded, mask = padded(first, seq, fill, left)
        last_padded, _ = padded(last, seq, fill, left)
        found = {
            "mean": mean_pooling(last_padded, mask),
            "cls": cls_pooling(last_padded, mask),
            "first-last": first_last_pooling(first_padded, last_padded, mask),
        }
        for row, (one, other) in enumerate(zip(first, last, strict=True)):
            expected = {
                "mean": reference.mean_pooling(list(other)),
                "cls": other[0],
                "first-last": reference.first_last_pooling(list(one), list(other)),
            }
            for name, value in expected.items():
                assert torch.allclose(found[name][row], value, rtol=0, atol=1e-10), name
        gradients = torch.autograd.grad((found["mean"] * weights).sum(), last_padded)[0]
        lengths_of = torch.tensor(lengths, dtype=torch.float64)[:, None, None]
        assert torch.allclose(gradients, torch.where(mask.unsqueeze(2), weights / lengths_of, 0.0), rtol=0, atol=1e-10)
        gradients = torch.autograd.grad(found["first-last"].sum(), first_padded)[0]
        assert torch.allclose(gradients, torch.where(mask.unsqueeze(2), 0.5 / lengths_of, 0.0), rtol=0, atol=1e-10)


def test_what_counts_padding_differs() -> None:
    states, mask = padded(random_states([2, 5]), 5, 0.0)
    assert torch.allclose(states.mean(1)[1], mean_pooling(states, mask)[1])
    assert not torch.allclose(states.mean(1)[0], mean_pooling(states, mask)[0], rtol=0.1)
    assert not torch.allclose(cls_pooling(states, mask), mean_pooling(states, mask), rtol=0.1)
    first, _ = padded(random_states([2, 5], 7), 5, 0.0)
    assert not torch.allclose(first_last_pooling(first, states, mask), mean_pooling(states, mask), rtol=0.1)


@pytest.mark.parametrize("pool", [mean_pooling, cls_pooling])
def test_half_precision_is_summed_in_float32(pool: Callable[[Tensor, Tensor], Tensor]) -> None:
    states, mask = padded(random_states([300]), 300, 0.0)
    half = states.detach().bfloat16()
    found = pool(half, mask)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), pool(half.double(), mask), rtol=1e-5, atol=1e-7)
    if pool is mean_pooling:
        assert not torch.allclose(half.mean(1).double(), pool(half.double(), mask), rtol=1e-5, atol=1e-7)


def test_a_text_without_pieces_is_refused() -> None:
    states, mask = padded(random_states([2, 3]), 3, 0.0)
    mask[1] = False
    for pool in (mean_pooling, cls_pooling):
        with pytest.raises(ValueError, match=r"row 1 of mask must have a real piece, but has none"):
            pool(states, mask)
    with pytest.raises(ValueError, match="row 1 of mask must have a real piece"):
        first_last_pooling(states, states, mask)


def test_wrong_shapes_are_refused() -> None:
    states, mask = padded(random_states([2, 3]), 3, 0.0)
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 3\)"):
        mean_pooling(states, mask[:, :2])
    with pytest.raises(ValueError, match=r"mask must be bool, but is torch.int64"):
        cls_pooling(states, mask.long())
    with pytest.raises(ValueError, match=r"first must have shape \(2, 3, 5\), but has \(2, 2, 5\)"):
        first_last_pooling(states[:, :2], states, mask)
