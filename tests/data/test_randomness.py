"""Draws are a function of their key: the same again for the same key, unrelated for another, and nothing has a state."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from hanzoo.data.randomness import generator, key, reseed


def test_every_part_of_the_key_counts() -> None:
    keys = {
        key(1, "dropout", 2, 3), key(2, "dropout", 2, 3), key(1, "plan", 2, 3), key(1, "dropout", 3, 2),
        key(1, "dropout", 2), key(1, "dropout", 23), key(1, "dropout", 2, 3, 0), key(1, "dropout"), key(12, "dropout", 3),
    }  # fmt: skip
    assert len(keys) == 9
    assert key(1, "dropout", 2, 3) in keys


def test_keys_are_the_same_in_every_version() -> None:
    # a run that is resumed by a later version must draw the same
    assert key(1, "dropout", 2, 3) == 16_944_338_484_574_570_858


def test_low_words_differ() -> None:
    # torch's generator on the CPU reads no more than 32 bits
    low = {key(1, "dropout", step, 0, micro) & 0xFFFF_FFFF for step in range(4000) for micro in range(2)}
    assert len(low) > 7990


def test_generators_of_a_key_repeat_and_others_do_not() -> None:
    first = generator(1, "input", 5).random(1000)
    assert np.array_equal(first, generator(1, "input", 5).random(1000))
    for other in (generator(1, "input", 6), generator(2, "input", 5), generator(1, "plan", 5)):
        assert abs(np.corrcoef(first, other.random(1000))[0, 1]) < 0.15


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_reseed_sets_the_masks_of_dropout(device: str) -> None:
    def mask(step: int) -> torch.Tensor:
        reseed(1, "dropout", step)
        return torch.nn.functional.dropout(torch.ones(2000, device=device), 0.5).cpu()

    first = mask(0)
    torch.rand(7, device=device)  # a draw between changes nothing
    assert torch.equal(first, mask(0))
    assert abs(np.corrcoef(first.numpy(), mask(1).numpy())[0, 1]) < 0.15


def test_no_other_generator_is_touched() -> None:
    random.seed(3)
    np.random.seed(3)  # the state that must not be touched
    states = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    reseed(1, "dropout", 0)
    generator(1, "plan", 0).random(10)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
