"""Windows: their own parts are a partition, each inside its window; what fits is one window."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanzoo.data.windows import COLUMNS, Window, cut, lay_out

sizes = st.tuples(st.integers(0, 3000), st.integers(1, 600), st.integers(0, 700))


@given(sizes)
def test_own_parts_are_a_partition_inside_their_windows(size: tuple[int, int, int]) -> None:
    length, window, overlap = size
    windows = cut(length, window, overlap)
    assert windows[0].own_start == 0
    assert windows[-1].own_end == length
    for before, after in pairwise(windows):
        assert before.own_end == after.own_start
        assert before.start < after.start
        assert before.end - after.start >= min(overlap, window // 2)
    for each in windows:
        assert 0 <= each.start <= each.own_start <= each.own_end <= each.end <= length
        assert each.end - each.start == min(window, length)
        assert each.own_end > each.own_start or not length


@given(sizes)
def test_each_character_belongs_where_it_is_farthest_from_an_edge(size: tuple[int, int, int]) -> None:
    length, window, overlap = size
    windows = cut(length, window, overlap)

    def distance(at: int, each: Window) -> float:
        left = at - each.start if each.start else np.inf
        right = each.end - 1 - at if each.end < length else np.inf
        return min(left, right)

    for at in range(0, length, 7):
        holding = [each for each in windows if each.start <= at < each.end]
        best = max(holding, key=lambda each: distance(at, each))  # the first one where two are equal
        assert best.own_start <= at < best.own_end


@given(sizes)
def test_no_fewer_windows_would_do(size: tuple[int, int, int]) -> None:
    length, window, overlap = size
    number = len(cut(length, window, overlap))
    if length <= window:
        assert cut(length, window, overlap) == [Window(0, length, 0, length)]
    else:
        shared = min(overlap, window // 2)
        assert window + (number - 2) * (window - shared) < length <= window + (number - 1) * (window - shared)


def test_what_makes_no_sense_is_refused() -> None:
    for size in ((-1, 5, 1), (5, 0, 0), (5, 3, -1)):
        with pytest.raises(ValueError, match="windows: must have"):
            cut(*size)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(1, 20),
    st.integers(0, 12),
    st.none() | st.integers(0, 9),
)
def test_every_character_is_found_at_its_place(lengths: list[int], window: int, overlap: int, room: int | None) -> None:
    texts = [np.arange(length, dtype=np.int64) + 1000 * (number + 1) for number, length in enumerate(lengths)]
    widest = None if room is None else window + 2 + room
    windows = lay_out(texts, window, overlap, first=1, last=2, padding=0, widest=widest)
    rows = SimpleNamespace(**{field.name: getattr(windows, field.name).numpy() for field in fields(windows)})
    needed, width = int(rows.mask.sum(1).max()), rows.pieces.shape[1]
    rounded = -(-needed // COLUMNS) * COLUMNS
    assert width == (rounded if widest is None or rounded <= widest else needed)
    flat = rows.pieces.reshape(-1)
    for number, text in enumerate(texts):
        assert (flat[rows.places[number, : len(text)]] == text).all()
        assert (rows.places[number, len(text) :] == 0).all()
    for row, (number, start, end) in enumerate(zip(rows.texts, rows.starts, rows.ends, strict=True)):
        real = rows.pieces[row][rows.mask[row]]
        assert real.tolist() == [1, *texts[number][start:end].tolist(), 2]
        assert (rows.pieces[row][~rows.mask[row]] == 0).all()
        own = rows.places[number, rows.own_starts[row] : rows.own_ends[row]]
        assert (own // rows.pieces.shape[1] == row).all()
    assert sorted(rows.texts.tolist()) == rows.texts.tolist()
