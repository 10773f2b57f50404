"""Lattices of a batch: all characters, then all words, each text in its row; against plain loops."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from hanzoo.data.lattice import Lattice
from hanzoo.data.lexicon import Lexicon

LEXICON = Lexicon(["ab", "bc", "abc", "😀c", "c"], min_length=1)


def lattice_of(texts: list[str], more: int = 0) -> Lattice:
    found = LEXICON.match(texts)
    seq, most = max(map(len, texts)) + more, max(map(len, found)) + more
    return Lattice.of([len(text) for text in texts], [(some.starts, some.ends) for some in found], seq, most)


def tokens(lattice: Lattice, row: int) -> list[tuple[int, int]]:
    """Head and tail of each real column of a row, from left to right."""
    return [
        (int(start), int(start) + lattice.lengths[int(kind)])
        for start, kind, real in zip(lattice.starts[row], lattice.kinds[row], lattice.mask[row], strict=True)
        if real
    ]


def plain(text: str) -> list[tuple[int, int]]:
    """Head and tail of each token, as the paper has them."""
    words = [(start, end - 1) for start in range(len(text)) for end in range(start + 1, len(text) + 1)]
    return [
        *((index, index) for index in range(len(text))),
        *((head, tail) for head, tail in words if text[head : tail + 1] in LEXICON),
    ]


@given(st.lists(st.text("abc😀", min_size=1, max_size=9), min_size=1, max_size=5), st.integers(0, 3))
def test_a_batch_is_each_text_by_itself_and_padding(texts: list[str], more: int) -> None:
    lattice = lattice_of(texts, more)
    for row, text in enumerate(texts):
        assert tokens(lattice, row) == plain(text)
    assert lattice.seq == max(map(len, texts)) + more
    assert lattice.starts[:, : lattice.seq].eq(torch.arange(lattice.seq)).all()
    assert not lattice.kinds[~lattice.mask].any()
    for side in (lattice.mask[:, : lattice.seq], lattice.mask[:, lattice.seq :]):
        assert side.long().diff(dim=1).le(0).all()  # filled from the left


def test_two_texts_by_hand() -> None:
    lattice = lattice_of(["aab", "b"])
    assert lattice.starts.tolist() == [[0, 1, 2, 1], [0, 1, 2, 0]]
    assert lattice.kinds.tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    assert lattice.mask.tolist() == [[True] * 4, [True, False, False, False]]
    assert lattice.lengths == (0, 1)
    assert lattice.seq == 3
