"""The benchmark of FLAT: both sides are one layer, and the checks that say so would notice if they were not."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks import flat
from benchmarks.flat import PlainInPlace, compare, cut, lattices_of, peak_of
from benchmarks.flat_attention import Lattices
from hanzoo.data.document import Document, Span
from hanzoo.data.lattice import Lattice
from hanzoo.data.lexicon import Lexicon
from hanzoo.models.layers.relative_position import RelativeAttention

TINY = Lattices(7, [[(0, 2), (0, 3), (2, 4), (3, 5), (3, 7)], [(1, 3)], []])


def test_both_sides_are_one_layer() -> None:
    for layers in (1, 2):
        found = compare(TINY, layers, rounds=2, passes=1, clock=time.perf_counter)
        assert found["difference"] < 1e-5
        assert found["range"][0] <= found["ratio"] <= found["range"][1]


def test_another_layer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "copy_weights", lambda plain, ours: None)
    with pytest.raises(AssertionError, match="not the same layer"):
        compare(TINY, 1, rounds=1, passes=1, clock=time.perf_counter)


@pytest.mark.parametrize("options", [{}, {"key_projection": False, "output_projection": False, "scaled": False}])
def test_the_plain_layer_stands_in_for_ours(options: dict[str, bool]) -> None:
    words = [torch.tensor(row, dtype=torch.int64).view(-1, 2).numpy() for row in TINY.words]
    positions = Lattice.of([7, 4, 1], [(row[:, 0], row[:, 1]) for row in words], 8, 8)
    torch.manual_seed(1)
    ours = RelativeAttention(8, 2, **options)
    plain = PlainInPlace(ours)
    hidden = torch.randn(3, 16, 8)
    for num_queries, mask in ((None, positions.mask), (8, positions.mask[:, :8])):
        wanted = ours(hidden, positions, num_queries)
        found = plain(hidden, positions, num_queries)
        assert found.shape == wanted.shape
        torch.testing.assert_close(found[mask], wanted[mask], rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        plain.attention.position_bias += 1.0
    assert (plain(hidden, positions, 8)[mask] - wanted[mask]).abs().max() > 1e-2


def test_texts_are_cut() -> None:
    documents = [
        Document("南京市长", (Span(0, 3, "LOC"),)),
        Document("长江大桥", (Span(0, 2, "LOC"), Span(0, 4, "LOC"))),
    ]
    assert cut(documents, 6) == Document("南京市长长江", (Span(0, 3, "LOC"), Span(4, 6, "LOC")))
    with pytest.raises(ValueError, match="hold 8"):
        cut(documents, 9)
    lexicon = Lexicon(["南京", "市长", "长江", "大桥"])
    assert lattices_of(documents * 2, lexicon, 6, 2) == Lattices(6, [[(0, 2), (2, 4), (4, 6)]] * 2)


def test_the_peak_is_that_of_the_process_alone() -> None:
    ballast = bytearray(300_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    small, printed = peak_of("-c", "print('two', 'lines', sep='\\n')")
    large, _ = peak_of("-c", "kept = b'x' * 100_000_000")
    assert printed == "two\nlines"
    assert small < 60
    assert 100 < large < 160
