"""Pieces of a text put out of sight, for training: nested spans."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def nested_spans(length: int, shares: tuple[float, float], draw: np.random.Generator) -> tuple[slice, slice]:
    """A span of a text, and a shorter one within it.

    Source: ArcCSE (Zhang et al. 2022), section 3.3: of two masked versions of a text one masks all that the other does, and more.

    Args:
        length: pieces of the text, at least 2.
        shares: of the pieces in the shorter and the longer span, rising; each has one piece at least, and the longer one more.
        draw: both places come from it.

    Returns:
        The shorter, the longer.
    """
    shorter = max(1, round(shares[0] * length))
    longer = min(length, max(shorter + 1, round(shares[1] * length)))
    shorter = min(shorter, longer - 1)
    outer = int(draw.integers(0, length - longer + 1))
    inner = outer + int(draw.integers(0, longer - shorter + 1))
    return slice(inner, inner + shorter), slice(outer, outer + longer)


def masked(pieces: NDArray[np.int64], span: slice, mask: int) -> NDArray[np.int64]:
    """The pieces with those of a span replaced by [MASK]."""
    hidden = pieces.copy()
    hidden[span] = mask
    return hidden
