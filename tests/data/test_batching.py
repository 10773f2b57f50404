"""The epoch plan: every item once, sizes kept, little padding, a function of its key."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanzoo.data.batching import BATCHES_A_BUCKET, Window, num_windows, plan_epoch
from hanzoo.data.randomness import generator

LENGTHS = [int(length) for length in generator(1, "lengths").geometric(0.03, size=3000)]


def plan(epoch: int = 0, *, lengths: list[int] = LENGTHS, batch_size: int = 16, accumulation: int = 1) -> list[Window]:
    return plan_epoch(lengths, generator(1, "plan", epoch), batch_size=batch_size, accumulation=accumulation)


@given(st.integers(0, 800), st.integers(1, 7), st.integers(1, 4), st.integers(0, 5))  # up to sixteen buckets
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_every_item_is_trained_once(num_items: int, batch_size: int, accumulation: int, epoch: int) -> None:
    lengths = LENGTHS[:num_items]
    windows = plan(epoch, lengths=lengths, batch_size=batch_size, accumulation=accumulation)
    batches = [batch for window in windows for batch in window]
    assert sorted(item for batch in batches for item in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert all(len(window) == accumulation for window in windows[:-1])
    assert len(windows) == num_windows(len(lengths), batch_size=batch_size, accumulation=accumulation)


@pytest.mark.parametrize("num_items", [0, 1, 16, 799, 800, 801, 1600, 1617])
def test_count_of_windows_at_the_edges_of_buckets(num_items: int) -> None:
    assert 16 * BATCHES_A_BUCKET == 800
    for accumulation in (1, 3):
        windows = plan(lengths=[5] * num_items, accumulation=accumulation)
        assert len(windows) == num_windows(num_items, batch_size=16, accumulation=accumulation)


def test_plan_is_a_function_of_its_key() -> None:
    assert plan(0) == plan(0)
    assert plan(0) != plan(1)
    assert plan(0) != plan_epoch(LENGTHS, generator(2, "plan", 0), batch_size=16)


def test_plan_draws_from_nothing_global() -> None:
    np.random.seed(5)  # the state that must not be touched
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    plan(0)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]


def real_share(windows: list[Window]) -> float:
    batches = [[LENGTHS[item] for item in batch] for window in windows for batch in window]
    return sum(map(sum, batches)) / sum(max(batch) * len(batch) for batch in batches)


def test_buckets_leave_little_padding() -> None:
    order = generator(1, "order").permutation(len(LENGTHS)).tolist()
    unsorted = [[order[at : at + 16]] for at in range(0, len(order), 16)]
    assert real_share(plan(0)) > 0.85
    assert real_share(unsorted) < 0.5


def test_batches_do_not_come_by_length() -> None:
    longest = [max(LENGTHS[item] for item in window[0]) for window in plan(0)]
    ascending = sum(a <= b for a, b in itertools.pairwise(longest)) / (len(longest) - 1)
    assert 0.35 < ascending < 0.65


def test_epochs_mix_their_batches() -> None:
    first, second = ({frozenset(window[0]) for window in plan(epoch)} for epoch in (0, 1))
    assert len(first & second) < 0.05 * len(first)
