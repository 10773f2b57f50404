"""Texts of any length through a model that reads only so many characters at once: overlapping windows.

A text that fits is one window. A longer one is cut into as few windows as have the wanted overlap, all of the same length and
spread evenly, so that real overlaps are that or a little more. Each character belongs to the window in which it is farther from
an edge (the text's own ends are no edges): neighbours are cut at the middle of their overlap, and a character in the very middle
goes to the left one. The cuts depend on the lengths alone, not on what the text says.

Cost: window / (window - overlap) times the characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hanzoo.data.movable import Movable

COLUMNS = 8
"""Rows are padded to a multiple of it: kernels may be made, and kept, for each shape, so the fewer shapes the better; and GPUs
multiply such matrices faster."""


def rounded(columns: int) -> int:
    """The next multiple of COLUMNS."""
    return -(-columns // COLUMNS) * COLUMNS


class Window(NamedTuple):
    """A part of a text, half-open in characters, and the part of it that is its own.

    Attributes:
        start: of what is read.
        end: of what is read.
        own_start: of what counts; within start and end.
        own_end: of what counts.
    """

    start: int
    end: int
    own_start: int
    own_end: int


def cut(length: int, window: int, overlap: int) -> list[Window]:
    """Cut a text into windows, in order; their own parts are a partition of the text.

    Args:
        length: of the text in characters, at least 0.
        window: characters a window at most, at least 1.
        overlap: characters that two neighbours share at least; no more than half a window is used.

    Raises:
        ValueError: a number is below its least.
    """
    if length < 0 or window < 1 or overlap < 0:
        raise ValueError(
            f"windows: must have length >= 0, window >= 1, overlap >= 0, but are {length}, {window}, {overlap}."
        )
    if length <= window:
        return [Window(0, length, 0, length)]
    stride = window - min(overlap, window // 2)
    steps = -(-(length - window) // stride)
    starts = [step * (length - window) // steps for step in range(steps + 1)]
    middles = [(before + window + after + 1) // 2 for before, after in pairwise(starts)]
    bounds = [0, *middles, length]
    return [
        Window(start, start + window, own_start, own_end)
        for start, own_start, own_end in zip(starts, bounds[:-1], bounds[1:], strict=True)
    ]


@dataclass(frozen=True)
class Windows(Movable):
    """The windows of several texts, padded: the rows that an encoder reads for a batch.

    Attributes:
        pieces: (rows, width) int64: a window each, as [CLS] pieces [SEP].
        mask: (rows, width) bool, True = real, [CLS] and [SEP] included; a prefix of each row.
        places: (batch, seq) int64: where in pieces.flatten() each character stands in the window it belongs to; 0 at padding.
        texts: (rows,) int64: which text a row is of; rows are in the order of the texts and of the windows.
        starts: (rows,) int64: the character of the text that stands at place 1 of the row.
        ends: (rows,) int64: the one behind the last character of the row.
        own_starts: (rows,) int64: the characters that belong to the row begin here,
        own_ends: (rows,) int64: and end before this one.
    """

    pieces: Tensor
    mask: Tensor
    places: Tensor
    texts: Tensor
    starts: Tensor
    ends: Tensor
    own_starts: Tensor
    own_ends: Tensor

    @property
    def samples(self) -> Tensor:
        """(rows, width) int64: the text that each piece belongs to; -1 at padding, [CLS] and [SEP].

        A character in the overlap of two windows stands in both rows.
        """
        positions = torch.arange(self.pieces.shape[1], device=self.pieces.device)
        inner = (positions > 0) & (positions <= (self.ends - self.starts).unsqueeze(1))
        return torch.where(inner, self.texts.unsqueeze(1), -1)


def lay_out(
    texts: Sequence[NDArray[np.int64]],
    window: int,
    overlap: int,
    *,
    first: int,
    last: int,
    padding: int,
    widest: int | None = None,
) -> Windows:
    """The windows of several texts.

    Args:
        texts: pieces of each, one a character.
        window: see `cut`.
        overlap: see `cut`.
        first: piece before each window, [CLS].
        last: piece behind it, [SEP].
        padding: piece at padding.
        widest: pieces a row at most, [CLS] and [SEP] included; None = no limit. Within it the width is a multiple of COLUMNS.
    """
    rows = [(number, part) for number, text in enumerate(texts) for part in cut(len(text), window, overlap)]
    width = 2 + max(part.end - part.start for _, part in rows)
    if widest is None or rounded(width) <= widest:
        width = rounded(width)
    pieces = np.full((len(rows), width), padding, dtype=np.int64)
    places = np.zeros((len(texts), max(map(len, texts))), dtype=np.int64)
    for row, (number, part) in enumerate(rows):
        size = part.end - part.start
        pieces[row, 0], pieces[row, size + 1] = first, last
        pieces[row, 1 : size + 1] = texts[number][part.start : part.end]
        offset = row * width + 1 - part.start
        places[number, part.own_start : part.own_end] = np.arange(part.own_start, part.own_end) + offset
    numbers = np.array([(number, *part) for number, part in rows], dtype=np.int64)
    mask = np.arange(width) < (numbers[:, 2] - numbers[:, 1] + 2)[:, None]
    columns = (np.ascontiguousarray(column) for column in numbers.T)
    return Windows(*map(torch.from_numpy, (pieces, mask, places, *columns)))
