"""The epoch plan: every item once, sizes kept, little padding, a function of its key."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hanzoo.data.batching import WINDOWS_A_BUCKET, Window, plan_epoch, repeat_factors
from hanzoo.data.randomness import generator

LENGTHS = [int(length) for length in generator(1, "lengths").geometric(0.03, size=3000)]


def plan(
    epoch: int = 0,
    *,
    lengths: list[int] = LENGTHS,
    batch_size: int = 16,
    micro_batches: int = 1,
    batch_characters: int = 0,
    repeats: list[float] | None = None,
) -> list[Window]:
    return plan_epoch(
        lengths, generator(1, "plan", epoch), batch_size=batch_size, micro_batches=micro_batches,
        batch_characters=batch_characters, repeats=repeats,
    )  # fmt: skip


sizes = st.sampled_from([0, 30, 200])


@given(st.integers(0, 800), st.integers(1, 7), st.integers(1, 4), st.integers(0, 5), sizes)  # up to sixteen buckets
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_every_item_is_trained_once(num: int, batch_size: int, micro_batches: int, epoch: int, limit: int) -> None:
    lengths = LENGTHS[:num]
    windows = plan(epoch, lengths=lengths, batch_size=batch_size, micro_batches=micro_batches, batch_characters=limit)
    batches = [batch for window in windows for batch in window]
    assert sorted(item for batch in batches for item in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert all(1 <= len(window) <= micro_batches for window in windows)
    if limit:
        padded = [len(batch) * max(lengths[item] for item in batch) for batch in batches]
        assert all(cost <= limit or len(batch) == 1 for cost, batch in zip(padded, batches, strict=True))


@pytest.mark.parametrize("num_items", [0, 1, 16, 799, 800, 801, 1600, 1617])
def test_count_of_windows_at_the_edges_of_buckets(num_items: int) -> None:
    assert 16 * WINDOWS_A_BUCKET == 800
    for micro_batches in (1, 3):
        windows = plan(lengths=[5] * num_items, micro_batches=micro_batches)
        assert len(windows) == -(-num_items // (16 * micro_batches))  # no window is short but the last


def test_a_window_does_not_depend_on_how_it_is_cut() -> None:
    whole = plan(batch_size=48)
    assert [batch for window in whole for batch in window] == [
        [item for batch in window for item in batch] for window in plan(batch_size=16, micro_batches=3)
    ]
    assert plan(batch_size=48) != plan(batch_size=47)


def test_a_limit_on_characters_makes_batches_of_about_equal_cost() -> None:
    batches = [batch for window in plan(batch_size=1000, batch_characters=800) for batch in window]
    assert len({len(batch) for batch in batches}) > 10  # long texts stand in small batches
    costs = [len(batch) * max(LENGTHS[item] for item in batch) for batch in batches]
    assert sum(costs) / len(costs) > 0.8 * 800


def test_repeats_are_kept_on_average() -> None:
    wanted = [1.0] * 10 + [1.5] * 10 + [3.0] * 10
    counts = np.zeros(30)
    for epoch in range(200):
        items = [i for w in plan(epoch, lengths=[5] * 30, repeats=wanted) for batch in w for i in batch]
        counts += np.bincount(items, minlength=30)
    counts /= 200
    assert np.array_equal(counts[:10], np.ones(10))
    assert np.array_equal(counts[20:], np.full(10, 3.0))
    assert np.allclose(counts[10:20], 1.5, atol=0.15)
    assert counts[10:20].min() < 1.5 < counts[10:20].max()  # drawn anew for each item and epoch


def test_repeat_factors() -> None:
    labels = [["a"], ["a", "b"], ["a"], []] + [["a"]] * 12  # a: 15 of 16, b: 1 of 16
    factors = repeat_factors(labels, 0.25)
    assert factors == [1.0, 2.0, 1.0, 1.0] + [1.0] * 12  # sqrt(0.25 / (1 / 16)) = 2
    assert repeat_factors(labels, 0.0) == [1.0] * 16


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


@given(st.integers(0, 300), st.integers(2, 5), st.integers(1, 3), st.integers(0, 3), sizes)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_no_batch_holds_fewer_items_than_it_must(num: int, size: int, micro: int, epoch: int, limit: int) -> None:
    def batches(least: int) -> list[list[int]]:
        key = generator(1, "plan", epoch)
        given = {"batch_size": size, "micro_batches": micro, "batch_characters": limit, "least": least}
        return [batch for window in plan_epoch(LENGTHS[:num], key, **given) for batch in window]  # type: ignore[arg-type]

    joined = batches(2)
    assert sorted(item for batch in joined for item in batch) == list(range(num))
    assert all(len(batch) >= 2 for batch in joined) or num == 1
    free = batches(1)
    if all(len(batch) >= 2 for batch in free):
        assert joined == free
    else:
        assert joined != free or num == 1


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("rest", [1, 2, 3])
def test_a_last_bucket_of_too_few_items_is_joined_with_the_one_before(micro: int, rest: int) -> None:
    whole = 4 * WINDOWS_A_BUCKET * micro
    for num in (rest, whole + rest, 2 * whole + rest):
        windows = plan_epoch(
            [5] * num, generator(1, "plan"), batch_size=4, micro_batches=micro, least=3
        )  # fmt: skip
        sizes = sorted(len(batch) for window in windows for batch in window)
        assert sum(sizes) == num
        assert sizes[0] == min(rest, 3) if num == rest or rest == 3 else sizes[0] == 4
        assert sizes[-1] == (4 if rest == 3 else 4 + rest) or num == rest
